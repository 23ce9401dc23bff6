//! Sequences with the real binary: a list of commands in one flight that runs in order and stops at the first failure.

mod runner_support;

use anyhow::{Result, ensure};
use runner_support::{Dir, Session, cmd, shell, with};
use serde_json::{Value, json};

fn part(frame: Value, sequence: &str) -> Value {
    with(frame, json!({"sequence": sequence}))
}

/// The answers to a to e, of which c is as given, and what those that ran wrote.
async fn answers_around(flags: &[&str], c: impl Fn(&Dir) -> Value) -> Result<(Vec<Value>, String)> {
    let mut session = Session::start(flags).await?;
    let dir = Dir::new()?;
    let append = |id: &str| shell(id, &format!("echo {id} >> {}", dir.text("f")));
    for id in ["a", "b"] {
        session.send(&part(append(id), "s")).await?;
    }
    session.send(&part(c(&dir), "s")).await?;
    for id in ["d", "e"] {
        session.send(&part(append(id), "s")).await?;
    }
    let mut answers = Vec::new();
    while answers.len() < 5 {
        let answer = |frame: &Value| matches!(frame["type"].as_str(), Some("DONE" | "ERROR"));
        answers.push(session.expect_where("an answer", answer).await?);
    }
    // One that is refused is answered before those that wait.
    answers.sort_by_key(|answer| answer["data"]["command_id"].to_string());
    session.finish().await?;
    Ok((answers, std::fs::read_to_string(dir.at("f"))?))
}

const CONCURRENT: &[&str] = &["--concurrency", "8"];

#[tokio::test]
async fn its_commands_run_one_after_the_other_in_the_order_in_which_they_came() -> Result<()> {
    let mut session = Session::start(CONCURRENT).await?;
    let dir = Dir::new()?;
    let ids: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    for id in &ids {
        // Were two of them to run at once, the second would not find what the first leaves.
        let line = format!("mkdir {0} && echo {id} >> {1} && rmdir {0}", dir.text("alone"), dir.text("f"));
        session.send(&part(shell(id, &line), "s")).await?;
    }
    for id in &ids {
        let done = session.answer(id).await?;
        ensure!(done["data"]["result"]["exit_code"] == 0, "{done}");
    }
    assert_eq!(std::fs::read_to_string(dir.at("f"))?, ids.join("\n") + "\n");
    session.finish().await
}

#[tokio::test]
async fn after_a_failure_nothing_of_it_is_run_with_and_without_concurrency() -> Result<()> {
    let failures: [&dyn Fn(&Dir) -> Value; 6] = [
        &|_| shell("c", "exit 3"),
        &|_| shell("c", "kill -9 $$"),
        &|dir| cmd("c", "file_read", json!({"path": dir.text("none")})),
        &|_| cmd("c", "exec", json!({"command": 7})),
        &|_| cmd("c", "no_such_command", json!({})),
        &|_| with(shell("c", "sleep 60"), json!({"timeout": 1})),
    ];
    for flags in [CONCURRENT, &[]] {
        for failure in failures {
            let (answers, written) = answers_around(flags, failure).await?;
            assert_eq!(written, "a\nb\n", "{}", answers[2]);
            for late in &answers[3..] {
                let error = &late["data"];
                assert_eq!(error["code"], "CANCELLED", "{late}");
                assert_eq!(error["details"], json!({"sequence": "s", "failed": "c"}));
                assert_eq!(error["message"], "not run: \"c\", before it in its sequence, failed");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_check_and_a_skipped_command_are_no_failures() -> Result<()> {
    let checked: &dyn Fn(&Dir) -> Value = &|_| with(shell("c", "exit 3"), json!({"check": true}));
    let skipped: &dyn Fn(&Dir) -> Value = &|_| cmd("c", "exec", json!({"command": "exit 3", "creates": "/"}));
    for fine in [checked, skipped] {
        let (_, written) = answers_around(CONCURRENT, fine).await?;
        assert_eq!(written, "a\nb\nd\ne\n");
    }
    Ok(())
}

#[tokio::test]
async fn a_cancelled_command_stops_it_whether_it_runs_or_waits() -> Result<()> {
    for cancelled in ["a", "b"] {
        let mut session = Session::start(CONCURRENT).await?;
        let dir = Dir::new()?;
        let waits = format!("until [ -e {} ]; do sleep 0.01; done", dir.text("go"));
        for id in ["a", "b", "c"] {
            session.send(&part(shell(id, &waits), "s")).await?;
        }
        session.send(&json!({"type": "CANCEL", "data": {"command_id": cancelled, "grace": 0}})).await?;
        ensure!(session.answer(cancelled).await?["data"]["code"] == "CANCELLED");
        dir.write("go", "")?;
        let last = session.answer("c").await?;
        assert_eq!(last["data"]["details"]["failed"], cancelled, "{last}");
        session.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_failure_that_is_only_repeated_stops_it_too() -> Result<()> {
    let mut session = Session::start(CONCURRENT).await?;
    let failing = |id| with(shell(id, "exit 3"), json!({"idempotency_key": "k"}));
    session.ask(&failing("first")).await?;
    session.send(&part(failing("again"), "s")).await?;
    session.send(&part(shell("late", "true"), "s")).await?;
    let again = session.answer("again").await?;
    assert_eq!(again["data"]["metadata"]["idempotent_replay"], "true");
    assert_eq!(session.answer("late").await?["data"]["code"], "CANCELLED");
    session.finish().await
}

#[tokio::test]
async fn others_do_not_wait_for_it_and_do_not_end_with_it() -> Result<()> {
    let mut session = Session::start(CONCURRENT).await?;
    let dir = Dir::new()?;
    let waits = format!("until [ -e {} ]; do sleep 0.01; done; exit 1", dir.text("go"));
    session.send(&part(shell("a", &waits), "one")).await?;
    session.send(&part(shell("b", "true"), "one")).await?;
    for other in [part(shell("x", "true"), "two"), shell("y", "true")] {
        ensure!(session.ask(&other).await?["data"]["result"]["exit_code"] == 0);
    }
    dir.write("go", "")?;
    ensure!(session.answer("b").await?["data"]["code"] == "CANCELLED");
    // It stays stopped, and the others do not.
    session.failed("CANCELLED", &part(shell("c", "true"), "one")).await?;
    for other in [part(shell("x2", "true"), "two"), shell("y2", "true")] {
        ensure!(session.ask(&other).await?["data"]["result"]["exit_code"] == 0);
    }
    session.finish().await
}

#[tokio::test]
async fn names_and_failures_are_bounded() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "8"]).await?;
    let longest = "s".repeat(128);
    ensure!(session.ask(&part(shell("a", "true"), &longest)).await?["type"] == "DONE");
    session.failed("INVALID_PARAMS", &part(shell("b", "true"), &format!("{longest}s"))).await?;
    // What is refused as it comes has failed before the next is read.
    for n in 0..1024 {
        session.failed("INVALID_CMD", &part(cmd("c", "nothing", json!({})), &n.to_string())).await?;
    }
    let error = session.failed("BUSY", &part(shell("d", "true"), "one too many")).await?;
    assert_eq!(error["retryable"], false);
    ensure!(session.ask(&shell("e", "true")).await?["type"] == "DONE", "without one all is as before");
    session.finish().await
}
