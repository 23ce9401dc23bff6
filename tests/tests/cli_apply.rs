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

#[tokio::test]
async fn a_check_sees_through_links_and_knows_what_a_program_would_do() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let home = host.home();
    fs::create_dir(home.join("real"))?;
    std::os::unix::fs::symlink("real", home.join("link"))?;
    fs::write(home.join("there"), "")?;
    let text = format!(
        "- {{id: done, type: exec, params: {{argv: ['false'], creates: {0}/there}}}}\n\
         - {{id: direct, type: file_write, params: {{path: {0}/real/x, content: 'one\n\n'}}}}\n\
         - {{id: by_link, type: line_ensure, params: {{path: {0}/link/x, line: two}}}}\n\
         - {{id: apart, type: file_write, params: {{path: {0}/other, content: x}}}}\n\
         - {{id: program, type: exec, params: {{argv: ['true'], creates: {0}/not/there}}}}\n\
         - {{id: after, type: file_write, params: {{path: {0}/apart, content: x}}}}\n",
        home.display()
    );
    let (_directory, file) = list(&text)?;
    let checked = apply(&host, &file).args(["--check", "--json"]).run().await?.fine().events();
    let would = expected(&[
        ("done", "unchanged"),
        ("direct", "changed"),
        ("by_link", "unknown"),
        ("apart", "changed"),
        ("program", "changed"),
        ("after", "unknown"),
    ]);
    assert_eq!(steps(&checked), would);
    let of = |id: &str| checked.iter().find(|event| event["step"] == id).unwrap()["depends_on"].clone();
    assert_eq!((of("by_link"), of("after")), (serde_json::json!(["direct"]), serde_json::json!(["program"])));
    let done = apply(&host, &file).arg("--json").run().await?.fine().events();
    assert_eq!(steps(&done).iter().filter(|(_, status)| status == "changed").count(), 5);
    host.quiet().await
}

#[tokio::test]
async fn what_a_step_gives_is_data_and_of_a_sensitive_one_nothing_is_shown() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let home = host.home();
    let text = format!(
        "- {{id: says, type: exec, changes: [], sensitive: true, params: {{argv: [printf, '%s', 'hunter2 {{{{ \"{{{{ facts }}}}\" }}}}']}}}}\n\
         - {{id: kept, type: file_write, sensitive: true, params: {{path: {0}/kept, content: '{{{{ results.says.stdout }}}}'}}}}\n\
         - {{id: tried, type: exec, ignore_failure: true, params: {{argv: [test, -e, {0}/never]}}}}\n\
         - {{id: seen, type: file_write, only_if: results.tried.failed, params: {{path: {0}/seen, mode: '{{{{ \"0600\" }}}}'}}}}\n\
         - {{id: failed, type: exec, sensitive: true, params: {{command: 'echo hunter2 >&2; exit 4'}}}}\n",
        home.display()
    );
    let (_directory, file) = list(&text)?;
    for more in [&["--diff"][..], &["--diff", "--json"]] {
        let ended = apply(&host, &file).args(more).run().await?.ended_with(1);
        assert!(!ended.text().contains("hunter2") && !ended.stderr.contains("hunter2"), "{ended:?}");
        assert!(ended.text().contains("kept") && ended.text().contains("seen"), "{ended:?}");
    }
    assert_eq!(fs::read_to_string(home.join("kept"))?, "hunter2 {{ facts }}");
    assert!(home.join("seen").exists());
    host.quiet().await
}

#[tokio::test]
async fn templates_and_files_stand_beside_the_list_and_variables_have_an_order() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let home = host.home();
    let text = format!(
        "vars: {{a: 1, b: 1, c: 1}}\nsteps:\n\
         - {{id: rendered, type: file_write, template: sub/t, params: {{path: {0}/rendered}}}}\n\
         - {{id: copied, type: file_write, content_file: large, params: {{path: {0}/copied, mode: '0600'}}}}\n\
         - {{id: fact, type: file_write, params: {{path: {0}/fact, content: '{{{{ facts.users | length > 0 }}}} {{{{ facts.uid }}}}'}}}}\n",
        home.display()
    );
    let (directory, file) = list(&text)?;
    let large: Vec<u8> = (0..3_000_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    fs::write(directory.path().join("large"), &large)?;
    fs::create_dir(directory.path().join("sub"))?;
    let template = "{% for n in [a, b, c] %}\n{{ n }};\n{% endfor %}\n{{ host.name }}\n";
    fs::write(directory.path().join("sub/t"), template)?;
    fs::write(directory.path().join("vars.yaml"), "b: 2\nc: 2\nunused: 1\n")?;
    let vars = directory.path().join("vars.yaml");
    let call = || apply(&host, &file).args(["--var", "c=3", "--vars-file"]).arg(&vars);
    call().run().await?.fine();
    let rendered = fs::read_to_string(home.join("rendered"))?;
    assert!(rendered.starts_with("1;\n2;\n3;\n") && rendered.ends_with("127.0.0.1\n"), "{rendered}");
    assert!(fs::read(home.join("copied"))? == large);
    assert!(fs::read_to_string(home.join("fact"))?.starts_with("True "));
    let again = call().arg("--json").run().await?.fine().events();
    assert!(steps(&again).iter().all(|(_, status)| status == "unchanged"), "{again:?}");
    host.quiet().await
}

/// The indented block of docs/APPLY.md that follows a line.
fn documented(line: &str) -> Result<String> {
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/APPLY.md"))?;
    let mut lines =
        document.lines().skip_while(|other| *other != line).skip(1).skip_while(|line| line.is_empty());
    let mut block = String::new();
    while let Some(line) = lines.next().filter(|line| line.is_empty() || line.starts_with("    ")) {
        block.push_str(line.strip_prefix("    ").unwrap_or_default());
        block.push('\n');
    }
    Ok(format!("{}\n", block.trim_end()))
}

#[tokio::test]
async fn the_example_of_the_document_is_planned_as_it_says() -> Result<()> {
    let (directory, file) = list(&documented("`app.yaml`:")?)?;
    fs::write(directory.path().join("app.conf"), documented("and `app.conf` beside it:")?)?;
    let ended = sortie("apply").args(["-H", "web1", "--plan"]).arg(&file).run().await?.fine();
    let shown = documented("    $ sortie apply -H web1 --plan app.yaml")?;
    let plan: Vec<&str> = shown.lines().take_while(|line| !line.starts_with('$')).collect();
    assert_eq!(ended.text().lines().collect::<Vec<_>>(), plan);
    Ok(())
}

#[tokio::test]
async fn a_plan_is_told_without_any_host() -> Result<()> {
    let text = "- {id: one, type: file_write, params: {path: /x}}\n\
                - {id: two, type: service_reload, when_changed: [one], params: {name: nginx, action: reload}}\n";
    let (_directory, file) = list(text)?;
    let call = || sortie("apply").args(["-F", "none", "--batch", "-H", "host.invalid", "--plan"]).arg(&file);
    let ended = call().run().await?.fine();
    assert!(ended.text().starts_with("2 steps in 2 flights, on host.invalid\n"), "{ended:?}");
    assert!(ended.text().contains("nginx reload  when changed: one"), "{ended:?}");
    let events = call().arg("--json").run().await?.fine().events();
    assert_eq!(events[0]["steps"][1]["waits_for"], serde_json::json!(["one"]));
    Ok(())
}

#[tokio::test]
async fn an_interrupt_ends_the_step_that_runs_and_begins_no_other() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let mark = host.home().join("mark");
    let text = format!(
        "- {{id: first, type: exec, params: {{argv: ['true']}}}}\n\
         - {{id: long, type: exec, params: {{command: 'echo ready; exec sleep 1000', stream_lines: true}}}}\n\
         - {{id: never, type: exec, params: {{argv: [touch, {}]}}}}\n",
        mark.display()
    );
    let (_directory, file) = list(&text)?;
    let mut running = apply(&host, &file).start()?;
    while running.line().await? != "ready\n" {}
    running.signal(nix::sys::signal::Signal::SIGINT)?;
    let ended = running.end().await?.ended_with(130);
    ended.says(&["interrupted", "left undone: never"]);
    assert!(!mark.exists());
    host.quiet().await
}
