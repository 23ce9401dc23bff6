//! The examples of docs/PROTOCOL.md are sessions with the real runner. With SORTIE_UPDATE_DOCS=1 they are written anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use sortie_tests::runner::RunnerProcess;

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/PROTOCOL.md")
}

/// Values that no two runs share, by the name of their field.
fn normalised(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let fixed: Value = match name.as_str() {
                    "timestamp" | "mtime" => "2024-01-01T00:00:00Z".into(),
                    "duration" | "cpu_user_seconds" | "cpu_system_seconds" => 0.001.into(),
                    "memory_peak_bytes" | "read_bytes" | "written_bytes" => 4096.into(),
                    "measured_by" => serde_json::json!({"cpu": "rusage", "memory": "rusage", "io": "rusage"}),
                    "pid" => 4242.into(),
                    "session" | "nonce" => "0123456789abcdef0123456789abcdef".into(),
                    "sha256" => "…".into(),
                    "version" if value.as_str().is_some_and(|v| v.contains(':')) => "…".into(),
                    "self_deleted" => true.into(),
                    "containment" => "subreaper".into(),
                    "host" => serde_json::json!({"hostname": "web1"}),
                    "owner" | "group" => "0".into(),
                    "owner_name" | "group_name" => "root".into(),
                    _ => {
                        normalised(value);
                        continue;
                    }
                };
                *value = fixed;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(normalised),
        _ => {}
    }
}

/// How long no frame comes before the next line is sent, when the document is written anew.
const QUIET: Duration = Duration::from_millis(1500);

/// Replays a block: `>` lines are sent, and what comes stands in the place of the `<` lines. Standard input ends before
/// an EXIT that follows no other frame.
async fn replay(flags: &str, block: &str, update: bool) -> Result<String> {
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let mut runner = RunnerProcess::builder().args(&flags).start()?;
    let mut lines = Vec::new();
    let next = async |runner: &mut RunnerProcess| -> Result<String> {
        let mut frame = runner.next().await?.context("the runner ended")?;
        normalised(&mut frame);
        Ok(format!("< {frame}"))
    };
    let ready = next(&mut runner).await?;
    let mut rest: Vec<&str> = block.lines().collect();
    if rest.first().is_some_and(|line| line.contains("READY")) {
        lines.push(ready);
        rest.remove(0);
    }
    for (at, line) in rest.iter().enumerate() {
        if let Some(frame) = line.strip_prefix("> ") {
            lines.push((*line).to_owned());
            runner.send_line(frame).await?;
            while update && let Ok(Ok(line)) = tokio::time::timeout(QUIET, next(&mut runner)).await {
                lines.push(line);
            }
        } else if line.contains("\"EXIT\"") && at + 1 == rest.len() {
            runner.close_stdin();
            if !lines.last().is_some_and(|line| line.contains("EXIT")) {
                lines.push(next(&mut runner).await?);
            }
        } else if !update {
            lines.push(next(&mut runner).await?);
        }
    }
    Ok(lines.join("\n"))
}

#[tokio::test]
async fn every_session_in_the_protocol_document_is_what_the_runner_answers() -> Result<()> {
    let text = fs::read_to_string(document())?;
    let mut written = String::new();
    let mut sessions = 0;
    let update = std::env::var_os("SORTIE_UPDATE_DOCS").is_some();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("```session") {
        let (before, block) = rest.split_at(at);
        let (head, body) = block.split_once('\n').context("a block without a line")?;
        let (body, after) = body.split_once("\n```").context("a block without an end")?;
        let flags = head.trim_start_matches("```session").trim();
        let replayed = replay(flags, body, update).await.with_context(|| body.to_owned())?;
        written.push_str(&format!("{before}{head}\n{replayed}\n```"));
        rest = after;
        sessions += 1;
    }
    written.push_str(rest);
    assert!(sessions >= 10, "only {sessions} sessions found");
    if update {
        fs::write(document(), &written)?;
        return Ok(());
    }
    assert_eq!(written, text, "docs/PROTOCOL.md is not current: run this test with SORTIE_UPDATE_DOCS=1");
    Ok(())
}
