//! Idempotency keys with the real binary: what has a key runs once a session.

mod runner_support;

use anyhow::{Context as _, Result, ensure};
use runner_support::{Dir, Session, cmd, server_of, shell, status_kib, with};
use serde_json::{Value, json};

fn keyed(frame: Value, key: &str) -> Value {
    with(frame, json!({"idempotency_key": key}))
}

#[tokio::test]
async fn a_repeat_gets_the_first_ones_result_and_runs_nothing() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let dir = Dir::new()?;
    let line = format!("echo x >> {0}; echo said; exit 3", dir.text("f"));
    let first = session.ask(&keyed(shell("a", &line), "k")).await?;
    let again = session.ask(&keyed(shell("b", &line), "k")).await?;
    assert_eq!(first["data"]["result"], again["data"]["result"]);
    assert_eq!(again["data"]["result"]["exit_code"], 3, "whatever its exit code");
    assert!(first["data"].get("metadata").is_none());
    assert_eq!(again["data"]["metadata"], json!({"idempotent_replay": "true"}));
    // Neither the timeout nor metadata are part of what a command is; another key is.
    let more = json!({"timeout": 7, "metadata": {"x": "y"}});
    assert_eq!(
        session.ask(&with(keyed(shell("c", &line), "k"), more)).await?["data"]["metadata"]["idempotent_replay"],
        "true"
    );
    session.ask(&keyed(shell("d", &line), "other")).await?;
    session.ask(&shell("e", &line)).await?;
    assert_eq!(std::fs::read_to_string(dir.at("f"))?, "x\n".repeat(3));
    session.finish().await
}

#[tokio::test]
async fn a_repeat_waits_for_the_first_that_still_runs() -> Result<()> {
    for flags in [&["--concurrency", "4"][..], &[]] {
        let mut session = Session::start(flags).await?;
        let dir = Dir::new()?;
        let line =
            format!("echo x >> {0}; while ! [ -e {1} ]; do sleep 0.01; done", dir.text("f"), dir.text("go"));
        for id in ["a", "b", "c"] {
            session.send(&keyed(shell(id, &line), "k")).await?;
        }
        sortie_tests::eventually("the first", || Ok(std::fs::metadata(dir.at("f"))?)).await?;
        if !flags.is_empty() {
            // The others take no place while they wait.
            session.is_in_step().await?;
        }
        dir.write("go", "")?;
        for id in ["a", "b", "c"] {
            let replay = session.expect("DONE").await?["data"]["metadata"]["idempotent_replay"] == "true";
            assert_eq!(replay, id != "a");
        }
        assert_eq!(std::fs::read_to_string(dir.at("f"))?, "x\n");
        session.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_same_key_for_another_command_is_a_conflict() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "x")?;
    session.ask(&keyed(cmd("a", "file_read", json!({"path": path})), "k")).await?;
    for frame in [
        cmd("b", "file_read", json!({"path": path, "offset": 1})),
        cmd("c", "file_write", json!({"path": path})),
        with(cmd("d", "file_read", json!({"path": path})), json!({"diff": true})),
    ] {
        let error = session.failed("CONFLICT", &keyed(frame, "k")).await?;
        assert_eq!(
            (&error["details"]["reason"], &error["retryable"]),
            (&json!("other_command"), &json!(false))
        );
    }
    // The two spellings of a type are the same command.
    let same = keyed(cmd("e", "file.read", json!({"path": path})), "k");
    assert_eq!(session.ask(&same).await?["data"]["metadata"]["idempotent_replay"], "true");
    session.finish().await
}

#[tokio::test]
async fn errors_and_checks_are_not_remembered() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let write = json!({"path": dir.text("f"), "content": "x"});
    session.failed("NOT_FOUND", &keyed(cmd("a", "file_write", write.clone()), "k")).await?;
    dir.write("f", "")?;
    let check = with(keyed(cmd("b", "file_write", write.clone()), "k"), json!({"check": true}));
    assert_eq!(session.ask(&check).await?["data"]["result"]["changed"], true);
    let done = session.ask(&keyed(cmd("c", "file_write", write.clone()), "k")).await?;
    assert!(done["data"]["result"]["changed"] == true && done["data"].get("metadata").is_none(), "{done}");
    let timeout = with(keyed(shell("d", "sleep 1000"), "t"), json!({"timeout": 1}));
    session.failed("TIMEOUT", &timeout).await?;
    session.failed("TIMEOUT", &with(timeout, json!({"id": "e"}))).await?;
    session.finish().await
}

#[tokio::test]
async fn results_are_kept_up_to_4_mib_and_a_dropped_one_is_not_run_again() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let server = server_of(&session)?;
    let dir = Dir::new()?;
    let line = |n: u32| format!("echo {n} >> {}; head -c 1000000 /dev/zero | tr '\\0' x", dir.text("f"));
    for n in 0..6 {
        session.ask(&keyed(shell(&format!("a{n}"), &line(n)), &format!("k{n}"))).await?;
    }
    for n in 0..6 {
        let answer = session.ask(&keyed(shell(&format!("b{n}"), &line(n)), &format!("k{n}"))).await?;
        if n < 2 {
            let error = &answer["data"];
            assert_eq!(
                (&error["code"], &error["details"]["reason"]),
                (&json!("CONFLICT"), &json!("already_ran"))
            );
        } else {
            assert_eq!(answer["data"]["result"]["stdout"].as_str().map(str::len), Some(1_000_000), "{n}");
        }
    }
    assert_eq!(std::fs::read_to_string(dir.at("f"))?, "0\n1\n2\n3\n4\n5\n");
    // One that is too large to be kept at all does not push out the others.
    let both = "head -c 3000000 /dev/zero | tr '\\0' x | tee /dev/stderr";
    session.ask(&keyed(shell("l", both), "large")).await?;
    session.failed("CONFLICT", &keyed(shell("m", both), "large")).await?;
    assert_eq!(session.ask(&keyed(shell("n", &line(5)), "k5")).await?["type"], "DONE");
    let peak = status_kib(server, "VmHWM")?;
    assert!(peak <= 40 * 1024, "{peak} KiB");
    session.finish().await
}

#[tokio::test]
async fn beyond_65_536_keys_nothing_runs_that_could_not_be_remembered() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "8"]).await?;
    let server = server_of(&session)?;
    let dir = Dir::new()?;
    let path = dir.write("f", "")?;
    let frame = |n: u32| {
        // By hand: 65 536 of them are to be made.
        format!(
            "{{\"type\":\"CMD\",\"data\":{{\"id\":\"{n}\",\"type\":\"file_read\",\"timeout\":60,\"idempotency_key\":\"k{n}\",\
             \"params\":{{\"path\":\"{path}\"}}}}}}\n"
        )
    };
    const AT_ONCE: u32 = 512;
    for batch in 0..65_536 / AT_ONCE {
        let frames: String = (0..AT_ONCE).map(|n| frame(batch * AT_ONCE + n)).collect();
        session.send_raw(frames.as_bytes()).await?;
        for _ in 0..AT_ONCE {
            let line = session.next_line().await?.context("ended")?;
            ensure!(line.starts_with("{\"type\":\"DONE\""), "{line}");
        }
    }
    session.send_raw(frame(65_536).as_bytes()).await?;
    let error = session.frame("ERROR").await?;
    assert_eq!((&error["data"]["code"], &error["data"]["retryable"]), (&json!("BUSY"), &json!(false)));
    session.send_raw(frame(65_535).as_bytes()).await?;
    assert_eq!(session.frame("DONE").await?["data"]["metadata"]["idempotent_replay"], "true");
    session.is_in_step().await?;
    let peak = status_kib(server, "VmHWM")?;
    assert!(peak <= 40 * 1024, "{peak} KiB");
    session.finish().await
}
