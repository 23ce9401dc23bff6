//! A controller that wants to harm the runner, its memory, or what others have on the host: the real binary stays in step, answers
//! every command once, holds little memory, and leaves nothing behind.

mod runner_support;

use std::collections::HashMap;
use std::os::unix::fs::symlink;

use anyhow::{Context as _, Result, ensure};
use runner_support::{Dir, Session, cmd, runs, server_of, shell, status_kib, stream, with};
use serde_json::{Value, json};

/// Sends a line as it is.
async fn say(session: &mut Session, line: &str) -> Result<()> {
    session.send_raw(format!("{line}\n").as_bytes()).await
}

/// One raw CMD of exec `true`, with something in it replaced.
fn altered(id: &str, from: &str, to: &str) -> String {
    let line = format!(
        "{{\"type\":\"CMD\",\"data\":{{\"id\":\"{id}\",\"type\":\"exec\",\"timeout\":60,\"params\":{{\"command\":\"true\"}}}}}}"
    );
    assert!(line.contains(from), "{from}");
    line.replace(from, to)
}

#[tokio::test]
async fn numbers_beyond_any_are_refused_and_run_nothing() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let numbers =
        ["-1", "0.5", "1e3", "1e999", "18446744073709551616", "-9223372036854775809", "\"60\"", "[60]", "{}"];
    for number in numbers {
        say(&mut session, &altered("n", ":60", &format!(":{number}"))).await?;
        let error = session.frame("ERROR").await?;
        assert_eq!(error["data"]["code"], "INVALID_CMD", "{number}: {error}");
    }
    // The largest that there is: a deadline that no clock holds is none.
    say(&mut session, &altered("n", ":60", ":9223372036854775807")).await?;
    assert_eq!(session.answer("n").await?["type"], "DONE");
    for (kind, data) in [
        ("CREDIT", "\"stream\":\"stdout\",\"bytes\":-1"),
        ("CREDIT", "\"stream\":\"stdout\",\"bytes\":18446744073709551616"),
        ("CANCEL", "\"grace\":-1"),
        ("CANCEL", "\"grace\":1e400"),
    ] {
        say(&mut session, &format!("{{\"type\":\"{kind}\",\"data\":{{\"command_id\":\"n\",{data}}}}}"))
            .await?;
        assert_eq!(session.frame("ERROR").await?["data"]["code"], "INVALID_CMD", "{kind} {data}");
    }
    for params in [
        json!({"path": "/etc/passwd", "offset": u64::MAX}),
        json!({"path": "/etc/passwd", "max_bytes": i64::MAX, "offset": i64::MAX}),
    ] {
        let answer = session.ask(&cmd("r", "file_read", params)).await?;
        ensure!(answer["type"] == "ERROR" || answer["data"]["result"]["content"] == "", "{answer}");
    }
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn credit_and_cancel_without_measure_break_no_count() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    session.send(&with(stream("a", "yes | head -c 3000000; sleep 600"), json!({"window": 1000}))).await?;
    for stream in ["stdout", "stderr", "stdin", "stdout"] {
        let data = json!({"command_id": "a", "stream": stream, "bytes": u64::MAX});
        session.send(&json!({"type": "CREDIT", "data": data})).await?;
    }
    for grace in [u64::MAX, 0, u64::MAX] {
        session.send(&json!({"type": "CANCEL", "data": {"command_id": "a", "grace": grace}})).await?;
    }
    assert_eq!(session.answer("a").await?["data"]["code"], "CANCELLED");
    // Of what has ended, or never was, nothing is said.
    for kind in ["CREDIT", "CANCEL", "CONFIRM"] {
        for id in ["a", "never", ""] {
            session
                .send(&json!({"type": kind, "data": {"command_id": id, "stream": "stdout", "bytes": 1}}))
                .await?;
        }
    }
    session.send(&shell("last", "echo fine")).await?;
    let done = session.answer("last").await?;
    assert_eq!(done["data"]["result"]["stdout"], "fine\n");
    session.finish().await
}

#[tokio::test]
async fn json_as_deep_as_a_frame_ends_no_thread_of_the_runner() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let deep = |open: &str, close: &str| open.repeat(1_000_000) + "1" + &close.repeat(1_000_000);
    for (value, place) in [
        (deep("[", "]"), "\"params\":{\"command\":\"true\"}"),
        (deep("{\"a\":", "}"), "\"params\":{\"command\":\"true\"}"),
        (deep("[", "]"), "\"type\":\"exec\""),
        (deep("{\"env\":", "}"), "\"type\":\"exec\""),
    ] {
        let key = place.split(':').next().unwrap_or_default();
        say(&mut session, &altered("d", place, &format!("{key}:{value}"))).await?;
        let answer = session.answer("d").await?;
        ensure!(answer["type"] == "ERROR", "{answer}");
        ensure!(answer.to_string().len() < 2000, "the refusal repeats what it refuses");
    }
    // What nobody reads may be as deep as it likes.
    say(&mut session, &altered("d", "\"timeout\"", &format!("\"later\":{},\"timeout\"", deep("[", "]"))))
        .await?;
    let answer = session.answer("d").await?;
    ensure!(answer["type"] == "DONE" || answer["data"]["code"] == "INVALID_CMD", "{answer}");
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn a_flood_of_commands_that_are_refused_is_answered_one_by_one_in_little_memory() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let server = server_of(&session)?;
    let large = "x".repeat(1 << 20);
    for n in 0..60 {
        say(&mut session, &altered(&format!("i{n}"), "\"exec\"", &format!("\"{large}\""))).await?;
        say(&mut session, &altered(&format!("k{n}"), "\"timeout\"", &format!("\"{large}\":1,\"timeout\"")))
            .await?;
        let refused = session.answer(&format!("i{n}")).await?;
        ensure!(refused["data"]["code"] == "INVALID_CMD" && refused.to_string().len() < 2000, "{refused}");
        assert_eq!(session.answer(&format!("k{n}")).await?["type"], "DONE");
    }
    let peak = status_kib(server, "VmHWM")?;
    assert!(peak <= 24 * 1024, "{peak} KiB");
    session.finish().await
}

#[tokio::test]
async fn a_thousand_commands_of_one_id_are_answered_once_each() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    for _ in 0..1000 {
        session.send(&shell("same", "true")).await?;
    }
    session.send(&shell("last", "true")).await?;
    let mut answers: HashMap<String, usize> = HashMap::new();
    while answers.values().sum::<usize>() < 1001 {
        let frame = session.next().await?.context("the output ended")?;
        let what =
            if frame["type"] == "DONE" { "DONE" } else { frame["data"]["code"].as_str().unwrap_or("?") };
        *answers.entry(what.to_owned()).or_default() += 1;
    }
    ensure!(answers.keys().all(|what| what == "DONE" || what == "CONFLICT"), "{answers:?}");
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn nothing_that_a_controller_names_makes_the_runner_read_or_write_beyond_what_it_says() -> Result<()> {
    let dir = Dir::new()?;
    dir.write("secret", "secret")?;
    symlink(dir.at("secret"), dir.at("link"))?;
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    for path in ["", "relative", "/tmp/../tmp/x\0y", "/proc/self/mem\0"] {
        for (kind, params) in [
            ("file_write", json!({"path": path, "content": "x", "create": true})),
            ("file_remove", json!({"path": path})),
            ("file_read", json!({"path": path})),
        ] {
            if path == "relative" && kind != "file_remove" {
                // As the reference's, beside the runner: where it was started.
                continue;
            }
            let answer = session.ask(&cmd("p", kind, params)).await?;
            ensure!(answer["type"] == "ERROR", "{kind} {path:?}: {answer}");
        }
    }
    // What has no end is read no further than one answer goes.
    let read = session.done("file_read", json!({"path": "/dev/zero", "max_bytes": 100})).await;
    if let Ok(read) = read {
        assert_eq!(read["truncated"], true, "{read}");
    }
    session
        .error("CONFLICT", "file_write", json!({"path": dir.text("link"), "content": "x", "no_follow": true}))
        .await?;
    assert_eq!(std::fs::read_to_string(dir.at("secret"))?, "secret");
    assert_eq!(dir.names()?, ["link", "secret"]);
    session.finish().await
}

#[tokio::test]
async fn a_controller_that_goes_in_the_middle_of_everything_leaves_nothing() -> Result<()> {
    let dir = Dir::new()?;
    let mut session = Session::start(&["--concurrency", "8"]).await?;
    let server = server_of(&session)?;
    let trap = format!("trap '' TERM HUP; echo $$ >> {}; while :; do sleep 600; done", dir.text("pids"));
    session.send(&shell("a", &trap)).await?;
    session.send(&shell("b", &format!("setsid sh -c \"{trap}\" & wait"))).await?;
    session.send(&with(stream("c", "yes"), json!({"window": 1000}))).await?;
    let params = json!({"path": dir.text("half"), "content_from": "input", "create": true});
    session.send(&cmd("d", "file_write", params)).await?;
    session.send(&json!({"type": "INPUT", "data": {"command_id": "d", "data": "half of it"}})).await?;
    let pids = runner_support::pids(&dir.at("pids"), 2).await?;
    session.send_raw(b"{\"type\":\"CMD\",\"data\":{\"id\":\"e\",\"type\":\"exec\"").await?;
    assert!(pids.iter().all(|pid| runs(*pid)) && runs(server));
    let guardian = session.ready["data"]["pid"].as_i64().context("no pid")?;
    sortie_tests::process::kill(i32::try_from(guardian)?, nix::sys::signal::Signal::SIGHUP)?;
    runner_support::ended(&pids).await?;
    runner_support::ended(&[server]).await?;
    assert_eq!(dir.names()?, ["pids"], "half a file was left");
    Ok(())
}

#[tokio::test]
async fn nothing_of_a_command_is_repeated_in_what_refuses_it() -> Result<()> {
    const SECRET: &str = "hunter2hunter2";
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let bad: [Value; 6] = [
        cmd("s", "exec", json!({"command": "true", "stdin": [SECRET]})),
        cmd("s", "exec", json!({"command": "true", "env": {"A": [SECRET]}})),
        cmd("s", "file_write", json!({"path": "/tmp/x", "content": {"a": SECRET}})),
        cmd(
            "s",
            "file_write",
            json!({"path": "/tmp/x", "content": SECRET, "mode": SECRET, "sensitive": true}),
        ),
        with(shell("s", "true"), json!({"become": {"user": "-x", "method": "sudo", "password": SECRET}})),
        with(shell("s", "true"), json!({"become": {"user": "root", "method": "sudo", "password": [SECRET]}})),
    ];
    for (at, frame) in bad.iter().enumerate() {
        let answer = session.ask(frame).await?;
        ensure!(answer["type"] == "ERROR", "{answer}");
        // A mode is no secret, and is shown so that it can be mended.
        let told = answer.to_string().replace(&format!("mode \\\"{SECRET}\\\""), "");
        ensure!(!told.contains(SECRET), "{at}: {answer}");
    }
    say(
        &mut session,
        &format!(
            "{{\"type\":\"CMD\",\"data\":{{\"id\":\"s\",\"type\":\"exec\",\"timeout\":5,\"params\":\"{SECRET}"
        ),
    )
    .await?;
    let error = session.frame("ERROR").await?;
    ensure!(!error.to_string().contains(SECRET), "{error}");
    session.finish().await
}
