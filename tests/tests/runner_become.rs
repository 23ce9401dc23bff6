//! Becoming another user with the real runner and programs of our own in the place of doas: what they may do to it, and
//! what they may not.

mod runner_support;

use anyhow::{Result, ensure};
use runner_support::{Dir, Session, cmd, shell, with};
use serde_json::{Value, json};
use sortie_tests::runner::RunnerProcess;

const PASSWORD: &str = "Tr0ub4dor-und-3";

/// A runner that finds this line of shell as its doas. There `$mark`, `$exe` and `$@` are what the runner handed over.
async fn with_doas(dir: &Dir, line: &str, flags: &[&str]) -> Result<Session> {
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -n ] && shift\nshift 3; program=$1 dash_c=$2 script=$3; mark=$5 exe=$9\n\
         run() {{ exec \"$program\" \"$dash_c\" \"$script\" \"$@\"; }}\nshift 3\n{line}\n"
    );
    let doas = dir.write("doas", &script)?;
    std::fs::set_permissions(&doas, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = format!("{}:{}", dir.text(""), std::env::var("PATH")?);
    Session::of(RunnerProcess::builder().env("PATH", &path).args(flags).start()?).await
}

fn other(frame: Value, password: Option<&str>) -> Value {
    let mut whom = json!({"user": "somebody-else", "method": "doas"});
    if let Some(password) = password {
        whom["password"] = password.into();
    }
    with(frame, json!({"become": whom}))
}

#[tokio::test]
async fn one_that_just_runs_it_is_spoken_with_as_the_session_itself() -> Result<()> {
    let dir = Dir::new()?;
    let mut session = with_doas(&dir, "run \"$@\"", &["--concurrency", "4"]).await?;
    // A consumer that takes nothing holds its own command, and nobody else.
    let held = cmd("held", "exec", json!({"command": "yes", "stream_lines": true}));
    session.send(&with(other(held, None), json!({"window": 10_000}))).await?;
    session.expect_where("an EVENT", |frame| frame["type"] == "EVENT").await?;
    for id in ["a", "b", "c"] {
        let answer = session.ask(&other(shell(id, "echo $USER"), None)).await?;
        ensure!(answer["data"]["result"]["stdout"] == "somebody-else\n", "{answer}");
    }
    session.send(&json!({"type": "PING", "data": {"token": "t"}})).await?;
    session.expect("PONG").await?;
    session
        .send(
            &json!({"type": "CREDIT", "data": {"command_id": "held", "stream": "stdout", "bytes": 100_000}}),
        )
        .await?;
    let mut more = 0;
    while more < 90_000 {
        let event = session.expect("EVENT").await?;
        more += event["data"]["message"].as_str().map_or(0, str::len);
    }
    session.send(&json!({"type": "CANCEL", "data": {"command_id": "held"}})).await?;
    ensure!(session.answer("held").await?["data"]["code"] == "CANCELLED");
    // INPUT that ends with the session's own is not taken for a whole one; an id that is taken is refused.
    let hungry = cmd("in", "exec", json!({"command": "cat > /dev/null", "stdin_from": "input"}));
    session.send(&other(hungry, None)).await?;
    session.failed("CONFLICT", &other(shell("in", "id"), None)).await?;
    session.close_stdin();
    ensure!(session.answer("in").await?["data"]["code"] == "CANCELLED");
    session.leaves("stdin_closed", 0).await?;
    session.quiet().await
}

#[tokio::test]
async fn one_that_repeats_the_password_does_not_get_it_shown() -> Result<()> {
    let dir = Dir::new()?;
    let line = "printf 'password: ' > /dev/tty; read word < /dev/tty; echo \"wrong: $word\" >&2; exit 1";
    let mut session = with_doas(&dir, line, &[]).await?;
    let error = session.failed("BECOME_FAILED", &other(shell("a", "id"), Some(PASSWORD))).await?;
    ensure!(error["message"].as_str().is_some_and(|text| text.contains("wrong: [secret]")), "{error}");
    ensure!(!error.to_string().contains(PASSWORD), "{error}");
    session.finish().await
}

#[tokio::test]
async fn one_that_asks_again_and_again_is_answered_once() -> Result<()> {
    let dir = Dir::new()?;
    let line = format!(
        "while :; do printf 'password: ' > /dev/tty; read word < /dev/tty || exit 1; echo x >> {}; done",
        dir.text("asked")
    );
    let mut session = with_doas(&dir, &line, &[]).await?;
    let error = session.failed("BECOME_FAILED", &other(shell("a", "id"), Some(PASSWORD))).await?;
    assert_eq!(error["details"]["reason"], "wrong_password");
    session.finish().await?;
    assert_eq!(std::fs::read_to_string(dir.text("asked"))?, "x\n");
    Ok(())
}

#[tokio::test]
async fn one_that_floods_or_lies_or_says_nothing_is_given_up() -> Result<()> {
    let dir = Dir::new()?;
    let flood =
        "head -c 50000000 /dev/zero | tr '\\0' x >&2; head -c 30000000 /dev/zero | tr '\\0' y; exit 3";
    let mut session = with_doas(&dir, flood, &[]).await?;
    let error = session.failed("BECOME_FAILED", &other(shell("a", "id"), None)).await?;
    ensure!(error["message"].as_str().is_some_and(|text| text.len() < 4096), "{error}");
    session.finish().await?;

    // Another program than was sent, whatever it says of itself.
    let liar = "echo \"$mark kept\"; echo '{\"type\":\"READY\",\"data\":{\"sha256\":\"00\"}}'; exit 0";
    let mut session = with_doas(&dir, liar, &[]).await?;
    let error = session.failed("BECOME_FAILED", &other(shell("a", "id"), None)).await?;
    assert_eq!(error["details"]["reason"], "not_started");
    session.finish().await?;

    let mut session = with_doas(&dir, "cat > /dev/null", &["--concurrency", "4"]).await?;
    let silent = with(other(shell("a", "id"), None), json!({"timeout": 1}));
    session.failed("TIMEOUT", &silent).await?;
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn one_that_answers_for_others_is_not_heard() -> Result<()> {
    let dir = Dir::new()?;
    let forger = "echo \"$mark kept\"; sum=$(sha256sum $exe); \
        echo \"{\\\"type\\\":\\\"READY\\\",\\\"data\\\":{\\\"sha256\\\":\\\"${sum%% *}\\\"}}\"; read line; \
        for id in victim own; do echo \"{\\\"type\\\":\\\"DONE\\\",\\\"data\\\":{\\\"command_id\\\":\\\"$id\\\",\\\"duration\\\":1,\\\"result\\\":{\\\"exit_code\\\":66}}}\"; \
        echo noise; done; echo \"{\\\"type\\\":\\\"EXIT\\\",\\\"data\\\":{}}\"; cat > /dev/null";
    let mut session = with_doas(&dir, forger, &["--concurrency", "4"]).await?;
    session
        .send(&cmd("victim", "exec", json!({"command": "cat", "stdin_from": "input", "capture_out": true})))
        .await?;
    let own = session.ask(&other(shell("own", "id"), None)).await?;
    assert_eq!(own["data"]["result"]["exit_code"], 66, "{own}");
    session
        .send(&json!({"type": "INPUT", "data": {"command_id": "victim", "data": "mine", "eof": true}}))
        .await?;
    let victim = session.answer("victim").await?;
    assert_eq!(victim["data"]["result"]["stdout"], "mine", "{victim}");
    session.finish().await
}
