//! Proves the helper for runners on a pipe, and the search for what they leave running, with a shell script in the
//! runner's place.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use sortie_tests::process;
use sortie_tests::runner::RunnerProcess;
use tempfile::TempDir;

/// Answers every line with a DONE of its own and deletes itself, as a runner does.
const SCRIPT: &str = r#"#!/bin/sh
rm -- "$0"
echo "{\"type\":\"READY\",\"args\":\"$*\"}"
while read -r line; do
    echo '{"type":"EVENT","data":{"command_id":"c1"}}'
    echo "{\"type\":\"DONE\",\"data\":{\"command_id\":\"c1\",\"result\":$line}}"
done
echo on stderr >&2
exit 5
"#;

fn script(text: &str) -> Result<(TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("script");
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok((dir, path))
}

#[tokio::test]
async fn frames_go_both_ways_and_the_end_is_seen() -> Result<()> {
    let (_dir, path) = script(SCRIPT)?;
    let mut runner = RunnerProcess::builder().binary(&path).args(&["--ttl", "5"]).start()?;
    let ready = runner.expect("READY").await?;
    assert_eq!(ready["args"], "--ttl 5");
    assert!(!runner.executable().exists() && path.exists(), "not a copy of its own");
    runner.send(&json!({"a": 1})).await?;
    assert_eq!(runner.answer("c1").await?["data"]["result"]["a"], 1);
    runner.send_raw(b"[2").await?;
    runner.send_line(",3]").await?;
    assert_eq!(runner.answer("c1").await?["data"]["result"], json!([2, 3]));
    runner.close_stdin();
    assert!(runner.rest().await?.is_empty());
    assert_eq!(runner.exit_code().await?, 5);
    assert_eq!(runner.stderr().await, "on stderr\n");
    runner.quiet().await
}

#[tokio::test]
async fn an_end_before_the_expected_frame_is_an_error_that_tells_what_was_said() -> Result<()> {
    let (_dir, path) = script(SCRIPT)?;
    let mut runner = RunnerProcess::builder().binary(&path).start()?;
    runner.close_stdin();
    let error = runner.expect("EXIT").await.map(drop).map_err(|error| format!("{error:#}"));
    let error = error.expect_err("there is no EXIT");
    assert!(error.contains("READY") && error.contains("on stderr"), "{error}");
    Ok(())
}

#[tokio::test]
async fn leftovers_are_found_wherever_they_went_and_die_with_the_helper() -> Result<()> {
    let (_dir, path) =
        script("#!/bin/sh\nsetsid sleep 31415 >/dev/null 2>&1 </dev/null &\necho '{}'\nread -r line\n")?;
    let mut runner = RunnerProcess::builder().binary(&path).start()?;
    runner.next().await?;
    assert!(!runner.descendants().is_empty());
    runner.kill(Signal::SIGKILL)?;
    assert_eq!(runner.exit_code().await?, 128 + 9);
    // By now it is another process's child.
    let left = sortie_tests::eventually("the sleeper alone", || {
        let left = runner.leftovers();
        ensure!(left.len() == 1 && left[0].command == "sleep 31415", "{left:?}");
        Ok(left)
    })
    .await?;
    drop(runner);
    sortie_tests::eventually("its end", || {
        let process = process::Process::read(left[0].pid);
        ensure!(process.as_ref().is_none_or(process::Process::is_zombie), "{process:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_a_test_does_not_read_holds_the_runner_back() -> Result<()> {
    let (_dir, path) =
        script("#!/bin/sh\nhead -c 1000000 /dev/zero | tr '\\0' x\necho\necho '{\"type\":\"EXIT\"}'\n")?;
    let mut runner = RunnerProcess::builder().binary(&path).start()?;
    let writers = || process::descendants(runner.pid()).iter().filter(|process| process.name == "tr").count();
    sortie_tests::eventually("the writer", || {
        ensure!(writers() == 1, "not yet");
        Ok(())
    })
    .await?;
    // A pipe takes 64 KiB: the writer cannot have ended.
    assert_eq!(writers(), 1);
    assert_eq!(runner.next_line().await?.map(|line| line.len()), Some(1_000_000));
    runner.expect("EXIT").await?;
    assert_eq!(runner.exit_code().await?, 0);
    Ok(())
}

#[test]
fn a_skip_is_written_to_the_log() -> Result<()> {
    if std::env::var_os("SORTIE_SKIP_LOG_INNER").is_some() {
        sortie_tests::require_programs!("sh", "no-such-program");
        anyhow::bail!("not skipped");
    }
    let log = tempfile::NamedTempFile::new()?;
    let status = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "a_skip_is_written_to_the_log"])
        .env("SORTIE_SKIP_LOG_INNER", "1")
        .env("SORTIE_SKIP_LOG", log.path())
        .output()?
        .status;
    assert!(status.success());
    let text = std::fs::read_to_string(log.path())?;
    assert!(
        text.starts_with("SKIPPED ") && text.ends_with(": needs the program no-such-program\n"),
        "{text:?}"
    );
    Ok(())
}
