//! A session as a whole with the real binary: framing, order, queues, cancelling, idempotency, and what a client of the
//! reference gets to see.

mod runner_support;

use anyhow::{Context as _, Result, ensure};
use runner_support::{Dir, Session, cmd, ended, runs, server_of, shell, status_kib, stream};
use serde_json::{Value, json};

fn cancel(id: &str) -> Value {
    json!({"type": "CANCEL", "data": {"command_id": id, "grace": 0}})
}

fn ping(token: &str) -> Value {
    json!({"type": "PING", "data": {"token": token}})
}

#[tokio::test]
async fn garbage_of_any_kind_leaves_the_session_in_step() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let mut state = 99u32;
    let mut noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(200_000)
    .collect();
    noise.push(b'\n');
    session.send_raw(&noise).await?;
    session.send_raw(&vec![b'['; 100_000]).await?;
    session.send_raw(b"\n").await?;
    session.send_raw("{\"type\":".repeat(20_000).as_bytes()).await?;
    session.send_raw(b"\n").await?;
    session.send(&ping("after all that")).await?;
    loop {
        let frame = session.next().await?.context("ended")?;
        if frame["type"] == "PONG" {
            assert_eq!(frame["data"]["token"], "after all that");
            break;
        }
        ensure!(frame["type"] == "ERROR" && frame["data"]["code"] == "INVALID_CMD", "{frame}");
    }
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn lines_beyond_the_limit_are_dropped_and_take_no_memory() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let server = server_of(&session)?;
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..64 {
        session.send_raw(&piece).await?;
    }
    session.send_raw(b"\n").await?;
    assert_eq!(session.frame("ERROR").await?["data"]["code"], "FRAME_TOO_LARGE");
    session.is_in_step().await?;
    let peak = status_kib(server, "VmHWM")?;
    assert!(peak <= 24 * 1024, "{peak} KiB");
    session.finish().await
}

#[tokio::test]
async fn frames_arrive_whole_however_they_are_cut() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let line = format!("{}\n", shell("a", "echo żółw"));
    for byte in line.as_bytes() {
        session.send_raw(&[*byte]).await?;
    }
    assert_eq!(session.answer("a").await?["data"]["result"]["stdout"], "żółw\n");
    session.send_raw(format!("{}\n{}\n{}\n", ping("1"), shell("b", "true"), ping("2")).as_bytes()).await?;
    let mut kinds = Vec::new();
    for _ in 0..3 {
        kinds.push(session.next().await?.context("ended")?["type"].to_string());
    }
    kinds.sort();
    assert_eq!(kinds, ["\"DONE\"", "\"PONG\"", "\"PONG\""]);
    session.finish().await
}

#[tokio::test]
async fn ping_brings_its_token_back_while_commands_run() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    session.send(&stream("c", "echo 1; sleep 1000")).await?;
    session.number("c").await?;
    for token in ["", "x", "żółw \"\\\n"] {
        session.send(&ping(token)).await?;
        assert_eq!(session.frame("PONG").await?["data"]["token"], token);
    }
    session.send(&json!({"type": "PING"})).await?;
    assert_eq!(session.frame("PONG").await?["data"]["token"], "");
    session.send(&cancel("c")).await?;
    session.answer("c").await?;
    session.finish().await
}

#[tokio::test]
async fn without_the_flag_commands_run_one_after_the_other() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    assert_eq!(session.ready["data"]["limits"]["concurrency"], 1);
    let dir = Dir::new()?;
    let file = dir.text("f");
    for n in 0..10 {
        // The same id again and again is accepted, as the reference does.
        session
            .send(&shell(
                "same",
                &format!("echo begin {n} >> {file}; sleep 0.02; echo end {n} >> {file}; echo {n}"),
            ))
            .await?;
    }
    for n in 0..10 {
        assert_eq!(session.frame("DONE").await?["data"]["result"]["stdout"], format!("{n}\n"));
    }
    let expected: String = (0..10).map(|n| format!("begin {n}\nend {n}\n")).collect();
    assert_eq!(std::fs::read_to_string(&file)?, expected);
    session.finish().await
}

#[tokio::test]
async fn with_the_flag_so_many_commands_run_at_once_and_no_more() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "5"]).await?;
    assert_eq!(session.ready["data"]["limits"]["concurrency"], 5);
    let dir = Dir::new()?;
    ensure!(std::process::Command::new("mkfifo").arg(dir.at("gate")).status()?.success());
    // Each says that it runs, and waits until the gate opens.
    let line = format!("echo begun; read x < {}; echo over", dir.text("gate"));
    for n in 0..8 {
        session.send(&stream(&n.to_string(), &line)).await?;
    }
    let mut begun = Vec::new();
    for _ in 0..5 {
        begun.push(session.frame("EVENT").await?["data"]["command_id"].clone());
    }
    begun.sort_by_key(Value::to_string);
    assert_eq!(begun, ["0", "1", "2", "3", "4"]);
    // PING is answered after all that were read before it: no sixth was begun.
    session.send(&ping("t")).await?;
    session.frame("PONG").await?;
    // A place that becomes free goes to the first in the queue.
    session.send(&cancel("3")).await?;
    assert_eq!(session.frame("ERROR").await?["data"]["command_id"], "3");
    assert_eq!(session.frame("EVENT").await?["data"]["command_id"], "5");
    for n in [0, 1, 2, 4, 5, 6, 7] {
        session.send(&cancel(&n.to_string())).await?;
    }
    for _ in 0..7 {
        assert_eq!(session.expect("ERROR").await?["data"]["code"], "CANCELLED");
    }
    session.finish().await
}

#[tokio::test]
async fn answers_come_in_the_order_in_which_commands_end() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let dir = Dir::new()?;
    let wait = format!("while ! [ -e {} ]; do sleep 0.01; done", dir.text("go"));
    session.send(&shell("slow", &wait)).await?;
    session.send(&shell("quick", "true")).await?;
    assert_eq!(session.frame("DONE").await?["data"]["command_id"], "quick");
    dir.write("go", "")?;
    assert_eq!(session.frame("DONE").await?["data"]["command_id"], "slow");
    session.finish().await
}

#[tokio::test]
async fn an_id_in_use_is_a_conflict_and_free_again_afterwards() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "1"]).await?;
    let dir = Dir::new()?;
    let marker = format!("touch {}", dir.text("ran"));
    session.send(&stream("c", "echo 1; sleep 1000")).await?;
    session.number("c").await?;
    session.send(&shell("queued", "true")).await?;
    for id in ["c", "queued"] {
        session.send(&shell(id, &marker)).await?;
        let error = session.frame("ERROR").await?;
        assert_eq!(
            (&error["data"]["code"], &error["data"]["class"]),
            (&json!("CONFLICT"), &json!("conflict"))
        );
    }
    session.send(&cancel("c")).await?;
    session.answer("c").await?;
    session.answer("queued").await?;
    assert!(dir.names()?.is_empty());
    for _ in 0..300 {
        let read = cmd("c", "file_read", json!({"path": "/proc/version"}));
        assert_eq!(session.ask(&read).await?["type"], "DONE", "its answer was there, the id not free");
    }
    session.finish().await
}

#[tokio::test]
async fn a_full_queue_refuses_with_the_flag() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "1"]).await?;
    session.send(&stream("c", "echo 1; sleep 1000")).await?;
    session.number("c").await?;
    let most = session.ready["data"]["limits"]["queue_commands"].as_u64().context("no limit")?;
    let mut frames = String::new();
    for n in 0..=most {
        frames.push_str(&format!("{}\n", shell(&n.to_string(), "true")));
    }
    session.send_raw(frames.as_bytes()).await?;
    let error = session.frame("ERROR").await?;
    assert_eq!(error["data"]["command_id"], most.to_string());
    assert_eq!((&error["data"]["code"], &error["data"]["class"]), (&json!("BUSY"), &json!("throttled")));
    assert_eq!(error["data"]["retryable"], true);
    session.send(&ping("still listening")).await?;
    session.frame("PONG").await?;
    for n in 0..most {
        session.send(&cancel(&n.to_string())).await?;
        assert_eq!(session.frame("ERROR").await?["data"]["code"], "CANCELLED");
    }
    // By bytes: two of 7 MiB are accepted, a third is too much.
    let large = "x".repeat(7 << 20);
    for id in ["a", "b", "z"] {
        session.send(&cmd(id, "exec", json!({"command": "true", "stdin": large}))).await?;
    }
    let error = session.frame("ERROR").await?;
    assert_eq!((&error["data"]["command_id"], &error["data"]["code"]), (&json!("z"), &json!("BUSY")));
    session.send(&cancel("c")).await?;
    for id in ["c", "a", "b"] {
        session.answer(id).await?;
    }
    session.finish().await
}

#[tokio::test]
async fn a_full_queue_stops_reading_without_the_flag_and_memory_stays_bounded() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let server = server_of(&session)?;
    let dir = Dir::new()?;
    let wait = format!("while ! [ -e {} ]; do sleep 0.01; done", dir.text("go"));
    session.send(&shell("gate", &wait)).await?;
    // Far more than the queue holds: the writer has to wait for the reader, so it is opened meanwhile.
    let large = "x".repeat(9 << 20);
    let gate = dir.at("go");
    let opener = std::thread::spawn(move || {
        // Once the writer below is stuck the server has read all it will.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        std::fs::write(gate, "")
    });
    for n in 0..6 {
        session
            .send(&cmd(
                &n.to_string(),
                "exec",
                json!({"command": "wc -c", "stdin": large, "capture_out": true}),
            ))
            .await?;
    }
    for n in 0..6 {
        let answer = session.answer(&n.to_string()).await?;
        assert_eq!(answer["data"]["result"]["stdout"], format!("{}\n", 9 << 20));
    }
    ensure!(opener.join().is_ok_and(|written| written.is_ok()));
    let peak = status_kib(server, "VmHWM")?;
    assert!(peak <= 40 * 1024, "{peak} KiB");
    session.finish().await
}

#[tokio::test]
async fn large_commands_that_run_and_larger_ones_that_are_refused_take_bounded_memory() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let server = server_of(&session)?;
    let large = "x".repeat(8_200_000);
    for id in ["a", "b"] {
        // They never read what they are given.
        let params = json!({"command": "echo 1; sleep 1000", "stdin": large, "stream_lines": true});
        session.send(&cmd(id, "exec", params)).await?;
        session.number(id).await?;
    }
    let largest = "x".repeat(10_485_000);
    for _ in 0..3 {
        session.failed("BUSY", &cmd("c", "exec", json!({"command": "true", "stdin": largest}))).await?;
    }
    let peak = status_kib(server, "VmHWM")?;
    assert!(peak <= 40 * 1024, "{peak} KiB");
    for id in ["a", "b"] {
        session.send(&cancel(id)).await?;
        session.answer(id).await?;
    }
    session.finish().await
}

#[tokio::test]
async fn cancel_ends_what_runs_takes_back_what_waits_and_forgives_what_is_gone() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "1"]).await?;
    let dir = Dir::new()?;
    session.send(&stream("runs", "echo $$; sleep 1000 & wait")).await?;
    let pid = session.number("runs").await?;
    session.send(&shell("waits", &format!("touch {}", dir.text("ran")))).await?;
    session.send(&cancel("waits")).await?;
    let error = session.frame("ERROR").await?;
    assert_eq!(
        (&error["data"]["command_id"], &error["data"]["code"]),
        (&json!("waits"), &json!("CANCELLED"))
    );
    assert_eq!(error["data"]["retryable"], false);
    session.send(&cancel("runs")).await?;
    assert_eq!(session.frame("ERROR").await?["data"]["code"], "CANCELLED");
    assert!(!runs(pid));
    for id in ["runs", "waits", "never"] {
        session.send(&cancel(id)).await?;
    }
    session.is_in_step().await?;
    assert!(dir.names()?.is_empty());
    session.finish().await
}

#[tokio::test]
async fn a_second_cancel_shortens_the_grace_of_the_first() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "1"]).await?;
    session.send(&stream("c", "trap '' TERM; echo $$; while :; do sleep 1000; done")).await?;
    let pid = session.number("c").await?;
    session.send(&json!({"type": "CANCEL", "data": {"command_id": "c", "grace": 500}})).await?;
    session.send(&ping("t")).await?;
    session.frame("PONG").await?;
    assert!(runs(pid), "the first was not waited for");
    session.send(&cancel("c")).await?;
    assert_eq!(session.answer("c").await?["data"]["code"], "CANCELLED");
    assert!(!runs(pid));
    session.finish().await
}

#[tokio::test]
async fn shutdown_finishes_what_was_accepted_and_takes_no_more() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "1"]).await?;
    session
        .send(&cmd("a", "exec", json!({"command": "cat", "stdin_from": "input", "capture_out": true})))
        .await?;
    session.send(&shell("b", "echo b")).await?;
    session.send(&json!({"type": "SHUTDOWN"})).await?;
    session.send(&shell("late", "echo late")).await?;
    assert_eq!(session.frame("ERROR").await?["data"]["command_id"], "late");
    session.send(&ping("t")).await?;
    session.frame("PONG").await?;
    session.send(&json!({"type": "INPUT", "data": {"command_id": "a", "data": "x", "eof": true}})).await?;
    assert_eq!(session.answer("a").await?["data"]["result"]["stdout"], "x");
    assert_eq!(session.answer("b").await?["data"]["result"]["stdout"], "b\n");
    // Although its input is still open.
    session.leaves("completed", 0).await?;
    session.quiet().await
}

#[tokio::test]
async fn the_grace_of_shutdown_ends_what_does_not_end() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "1"]).await?;
    session.send(&stream("a", "trap '' TERM; echo $$; while :; do sleep 1000; done")).await?;
    let pid = session.number("a").await?;
    session.send(&shell("b", "true")).await?;
    session.send(&json!({"type": "SHUTDOWN", "data": {"grace": 1}})).await?;
    for _ in 0..2 {
        assert_eq!(session.expect("ERROR").await?["data"]["code"], "CANCELLED");
    }
    session.leaves("completed", 0).await?;
    ended(&[pid]).await?;
    session.quiet().await
}

#[tokio::test]
async fn a_client_of_the_reference_sees_the_references_frames_alone() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.text("f");
    for (id, kind, params) in [
        (
            "1",
            "exec",
            json!({"command": "echo out; echo err >&2", "capture_out": true, "stream_lines": true}),
        ),
        ("2", "file.write", json!({"path": path, "content": "x", "create": true})),
        ("3", "file.read", json!({"path": path})),
        ("4", "exec", json!({})),
        ("5", "pkg.ensure", json!({"name": "x", "state": ""})),
    ] {
        session.send(&cmd(id, kind, params)).await?;
    }
    session.send_line("nonsense").await?;
    session.close_stdin();
    for frame in session.rest().await? {
        let kind = frame["type"].as_str().context("no type")?;
        ensure!(["EVENT", "DONE", "ERROR", "EXIT"].contains(&kind), "{frame}");
        // Its decoder wants the types it knows for the fields it knows.
        ensure!(frame["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{frame}");
        let details = frame["data"].get("details").and_then(Value::as_object);
        ensure!(details.into_iter().flatten().all(|(_, value)| value.is_string()), "{frame}");
    }
    Ok(())
}
