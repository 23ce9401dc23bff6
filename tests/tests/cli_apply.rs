//! `sortie apply`: lists of steps, what they change, what they say, and where they stop.

mod cli_support;

use std::fs;
use std::path::Path;

use anyhow::Result;
use cli_support::{Sortie, on, sortie};
use serde_json::Value;
use sortie_tests::embedded::Embedded;
use tempfile::TempDir;

/// A directory with a list in it.
fn list(text: &str) -> Result<(TempDir, std::path::PathBuf)> {
    let directory = TempDir::new()?;
    let file = directory.path().join("list.yaml");
    fs::write(&file, text)?;
    Ok((directory, file))
}

fn apply(host: &Embedded, file: &Path) -> Sortie {
    on(host.access(), "apply").arg(file)
}

/// What `--json` says of every step: its id and status.
fn steps(events: &[Value]) -> Vec<(String, String)> {
    let text = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let steps = events.iter().filter(|event| event["event"] == "step");
    steps.map(|event| (text(event, "step"), text(event, "status"))).collect()
}

fn expected(steps: &[(&str, &str)]) -> Vec<(String, String)> {
    steps.iter().map(|(id, status)| ((*id).to_owned(), (*status).to_owned())).collect()
}

#[tokio::test]
async fn a_list_changes_what_is_not_so_yet_and_a_second_run_changes_nothing() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let goal = host.home().join("goal");
    let text = format!(
        "vars: {{who: world}}\nsteps:\n\
         - {{id: file, type: file_write, params: {{path: {0}, content: \"hello {{{{ who }}}}\\n\"}}}}\n\
         - {{id: read, type: exec, changes: [], params: {{argv: [cat, {0}]}}}}\n\
         - {{id: copy, type: file_write, params: {{path: {0}.copy, content: '{{{{ results.read.stdout }}}}'}}}}\n\
         - {{id: handler, type: exec, when_changed: [file], params: {{argv: [touch, {0}.handled]}}}}\n\
         - {{id: other, type: exec, only_if: \"facts.os_id == 'plan9'\", params: {{argv: ['false']}}}}\n",
        goal.display()
    );
    let (_directory, file) = list(&text)?;

    let checked = apply(&host, &file).args(["--check", "--json"]).run().await?.fine().events();
    let unknown = expected(&[
        ("file", "changed"),
        ("read", "unknown"),
        ("copy", "unknown"),
        ("handler", "changed"),
        ("other", "skipped"),
    ]);
    assert_eq!(steps(&checked), unknown);
    assert!(!goal.exists());

    let ended = apply(&host, &file).arg("--diff").run().await?.fine();
    assert!(ended.text().contains("file: changed") && ended.text().contains("+hello world"), "{ended:?}");
    assert_eq!(fs::read_to_string(goal.with_extension("copy"))?, "hello world\n");
    assert!(goal.with_extension("handled").exists());

    let again = apply(&host, &file).arg("--json").run().await?.fine().events();
    let same = expected(&[
        ("file", "unchanged"),
        ("read", "unchanged"),
        ("copy", "unchanged"),
        ("handler", "skipped"),
        ("other", "skipped"),
    ]);
    assert_eq!(steps(&again), same);
    let last = again.last().unwrap();
    assert_eq!((last["event"].as_str(), last["unchanged"].as_u64()), (Some("applied"), Some(3)));
    let checked = apply(&host, &file).args(["--check", "--json"]).run().await?.fine().events();
    assert_eq!(steps(&checked), same);
    host.quiet().await
}

#[tokio::test]
async fn a_failure_stops_the_list_and_says_what_was_left_undone() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let mark = host.home().join("mark");
    let text = format!(
        "- {{id: one, type: exec, params: {{argv: ['true']}}}}\n\
         - {{id: two, type: exec, params: {{command: 'echo because >&2; exit 3'}}}}\n\
         - {{id: three, type: exec, params: {{argv: [touch, {0}]}}}}\n\
         - {{id: four, type: exec, params: {{argv: [touch, {0}]}}}}\n",
        mark.display()
    );
    let (_directory, file) = list(&text)?;
    let ended = apply(&host, &file).run().await?.ended_with(1);
    let ended = ended.says(&["two: exit status 3: because", "stopped at two; left undone: three, four"]);
    assert!(ended.text().contains("1 changed, 1 failed, 2 left undone"), "{ended:?}");
    let events = apply(&host, &file).arg("--json").run().await?.ended_with(1).events();
    let left = expected(&[("one", "changed"), ("two", "failed"), ("three", "not_run"), ("four", "not_run")]);
    assert_eq!(steps(&events), left);
    assert!(!mark.exists());
    host.quiet().await
}

#[tokio::test]
async fn what_is_wrong_with_a_list_is_told_before_any_host_is_spoken_with() -> Result<()> {
    let (_directory, file) = list("- {id: a, type: file_wrte}\n- {id: b, type: exec, params: {agv: [x]}}\n")?;
    let call = || sortie("apply").args(["-F", "none", "--batch", "-H", "host.invalid"]);
    let ended = call().arg(&file).run().await?.ended_with(2);
    let ended =
        ended.says(&["list.yaml:1:17: there is no command file_wrte; did you mean file_write?", "2:32: "]);
    assert!(ended.stdout.is_empty());
    let ended = call().arg("/no/such/list").run().await?.ended_with(2);
    ended.says(&["/no/such/list", "No such file"]);
    call()
        .args(["--var", "a b=1"])
        .arg(&file)
        .run()
        .await?
        .ended_with(2)
        .says(&["--var", "no name of a variable"]);
    Ok(())
}

#[tokio::test]
async fn a_timeout_of_a_step_is_never_a_success() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let (_directory, file) = list("- {id: long, type: exec, timeout: 1, params: {argv: [sleep, '1000']}}\n")?;
    apply(&host, &file).run().await?.ended_with(124).says(&["long: ", "TIMEOUT"]);
    host.quiet().await
}
