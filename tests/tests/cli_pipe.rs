//! `sortie pipe` with the frames of the reference as a client of it writes them, and what else the command does without
//! a command on a host.

mod cli_support;

use anyhow::Result;
use cli_support::{name, sortie};
use serde_json::{Value, json};
use sortie_tests::embedded::Embedded;

fn pipe(host: &Embedded) -> cli_support::Sortie {
    sortie("pipe").login(host.access()).arg(name(host.access()))
}

/// A frame as the reference's client writes it: dotted name, its own fields only.
fn command(id: &str, kind: &str, params: &Value) -> String {
    json!({"type": "CMD", "timestamp": "2024-01-01T00:00:00Z", "data": {"id": id, "type": kind, "timeout": 30, "params": params}})
        .to_string()
        + "\n"
}

#[tokio::test]
async fn the_frames_of_the_reference_get_its_answers_although_input_has_ended() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let literal = r#"{"type":"CMD","timestamp":"2024-01-01T00:00:00Z","data":{"id":"cmd-1","type":"exec","timeout":30,"params":{"command":"uptime","capture_out":true,"capture_err":true}}}"#;
    let mut frames = format!("{literal}\r\n");
    frames += &command(
        "r3",
        "exec",
        &json!({"command": "echo hi; echo err >&2; exit 3", "capture_out": true, "capture_err": true}),
    );
    frames += &command("r4", "exec", &json!({"command": "echo hi"}));
    let args = ["%s|", "a b", "$HOME", "<&>"];
    frames += &command("r5", "exec", &json!({"command": "printf", "args": args, "capture_out": true}));
    frames += &command("r6", "exec", &json!({"command": "no-such-program", "args": ["x"]}));
    frames += &command("r7", "exec", &json!({"command": "no-such-program"}));
    frames += &command("r8a", "exec", &json!({"command": ""}));
    frames += &command("r8b", "exec", &json!({}));
    frames += &command("r8c", "exec", &Value::Null);
    frames += &command("r10", "exec", &json!({"command": "true", "work_dir": "/no/such"}));
    frames += &command("r13", "exec", &json!({"command": "cat; echo end", "capture_out": true}));
    frames += &command("r19", "exec", &json!({"command": 7}));
    frames += &command("r20", "exec", &json!({"command": "true", "unknown": {"field": 1}}));
    frames += "{\"type\":\"CMD\",\"data\":{\"id\":\"r20b\",\"type\":\"exec\",\"timeout\":30,\"params\":{\"command\":\"true\"}}}\n";
    frames += &command("r22", "file.write", &json!({"path": "absent", "content": "x"}));
    frames += &command(
        "r23",
        "file.write",
        &json!({"path": "new", "content": "hello", "create": true, "mode": "0644"}),
    );
    frames += &command(
        "r24",
        "file.write",
        &json!({"path": "new", "content": "other", "backup": true, "mode": "0600"}),
    );
    frames += &command("r28", "file.write", &json!({"path": "a/b/c", "content": "x", "create": true}));
    frames += &command("r29a", "file.write", &json!({"path": ".", "content": "x", "create": true}));
    frames += &command("r29b", "file.write", &json!({"path": "", "content": "x", "create": true}));
    frames += &command("r31", "file.read", &json!({"path": "new", "max_bytes": 3}));
    frames += &command("r33a", "file.read", &json!({"path": "absent"}));
    frames += &command("r33b", "file.read", &json!({"path": "a"}));
    // The last one without a newline.
    frames +=
        command("last", "exec", &json!({"command": "sleep 1; echo done", "capture_out": true})).trim_end();

    let ended = pipe(&host).run_with(frames.as_bytes()).await?.fine();
    let frames = ended.events();
    let (ready, exit) = (&frames[0], frames.last().unwrap());
    assert_eq!((&ready["type"], &ready["data"]["metadata"]["ttl"]), (&json!("READY"), &json!("10m0s")));
    for name in ["exec", "file.write", "file.read"] {
        assert_eq!(ready["data"]["capabilities"][name], true, "{name}");
    }
    assert_eq!(exit["type"], "EXIT");
    let exit = &exit["data"];
    assert_eq!(
        (&exit["reason"], &exit["exit_code"], &exit["self_deleted"]),
        (&json!("stdin_closed"), &json!(0), &json!(true))
    );
    // A client of the reference dies on any other type, and its commands are answered in order.
    let types = ["READY", "EVENT", "DONE", "ERROR", "EXIT"];
    assert!(frames.iter().all(|frame| types.contains(&frame["type"].as_str().unwrap())));
    let ids: Vec<&str> =
        frames[1..frames.len() - 1].iter().map(|f| f["data"]["command_id"].as_str().unwrap()).collect();
    assert_eq!(
        ids,
        [
            "cmd-1", "r3", "r4", "r5", "r6", "r7", "r8a", "r8b", "r8c", "r10", "r13", "r19", "r20", "r20b",
            "r22", "r23", "r24", "r28", "r29a", "r29b", "r31", "r33a", "r33b", "last"
        ]
    );
    let answer = |id: &str| frames.iter().find(|frame| frame["data"]["command_id"] == id).unwrap();
    let result = |id: &str| {
        assert_eq!(answer(id)["type"], "DONE", "{}", answer(id));
        &answer(id)["data"]["result"]
    };
    for id in ["r6", "r8a", "r8b", "r8c", "r10", "r19", "r22", "r29a", "r29b", "r33a", "r33b"] {
        let frame = answer(id);
        assert_eq!(frame["type"], "ERROR", "{frame}");
        assert!(frame["data"]["code"].is_string() && frame["data"]["retryable"].is_boolean(), "{frame}");
    }
    let three = result("r3");
    assert_eq!(
        (&three["exit_code"], &three["stdout"], &three["stderr"]),
        (&json!(3), &json!("hi\n"), &json!("err\n"))
    );
    assert!(result("r4").get("stdout").is_none() && result("r4").get("stderr").is_none());
    assert_eq!(result("r5")["stdout"], "a b|$HOME|<&>|");
    assert_eq!(result("r7")["exit_code"], 127);
    assert_eq!(result("r13")["stdout"], "end\n");
    assert_eq!(result("r20")["exit_code"], 0);
    let written = result("r23");
    assert_eq!((&written["created"], &written["bytes_written"]), (&json!(true), &json!(5)));
    assert_eq!(written["checksum"], "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert!(result("r24")["backup_path"].is_string());
    assert_eq!((&result("r31")["content"], &result("r31")["truncated"]), (&json!("oth"), &json!(true)));
    assert_eq!(result("r31")["mode"], "0600");
    assert_eq!(result("last")["stdout"], "done\n");
    assert_eq!(std::fs::read_to_string(host.home().join("a/b/c"))?, "x");
    host.quiet().await
}

#[tokio::test]
async fn the_runner_gets_the_flags_that_were_asked_for_and_no_others() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let plain = pipe(&host).run().await?.fine();
    let limits = &plain.events()[0]["data"]["limits"];
    assert_eq!((&limits["lease"], &limits["concurrency"]), (&json!(0), &json!(1)));
    let asked = pipe(&host).args(["--lease", "50", "--concurrency", "8", "--ttl", "5m"]).run().await?.fine();
    let ready = &asked.events()[0]["data"];
    assert_eq!((&ready["limits"]["lease"], &ready["limits"]["concurrency"]), (&json!(50), &json!(8)));
    assert_eq!(ready["metadata"]["ttl"], "5m0s");
    host.quiet().await
}

#[tokio::test]
async fn frames_pass_as_they_come_while_both_ends_are_open() -> Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let host = Embedded::builder().start().await?;
    let mut started = pipe(&host).piped().start()?;
    assert!(started.line().await?.contains("READY"));
    let mut stdin = started.stdin.take().unwrap();
    for token in ["one", "two"] {
        stdin
            .write_all(format!("{{\"type\":\"PING\",\"data\":{{\"token\":\"{token}\"}}}}\n").as_bytes())
            .await?;
        let answer = started.line().await?;
        assert!(answer.contains("PONG") && answer.contains(token), "{answer}");
    }
    // A reader that goes away takes the runner with it.
    started.stdout = None;
    stdin.write_all(b"{\"type\":\"PING\",\"data\":{\"token\":\"x\"}}\n").await?;
    started.end().await?.ended_with(141);
    host.quiet().await
}

#[tokio::test]
async fn a_host_that_is_not_reached_gives_no_frame_and_255() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let mut access = host.access().clone();
    access.port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let ended =
        sortie("pipe").login(&access).arg(name(&access)).run().await?.ended_with(255).says(&["unreachable"]);
    assert!(ended.stdout.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_runners_that_are_carried_are_listed_and_can_be_taken_out() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let ended = sortie("runners").args(["--json", "--extract"]).arg(directory.path()).run().await?.fine();
    let events = ended.events();
    assert!(!events.is_empty());
    for event in &events {
        let target = event["target"].as_str().unwrap();
        let file = directory.path().join(format!("sortie-runner-{target}"));
        assert_eq!(event["bytes"], std::fs::metadata(&file)?.len());
        let sum = tokio::process::Command::new("sha256sum").arg(&file).output().await?;
        assert!(String::from_utf8(sum.stdout)?.starts_with(event["sha256"].as_str().unwrap()));
    }
    let text = sortie("runners").run().await?.fine();
    assert_eq!(text.text().lines().count(), events.len());
    Ok(())
}

#[tokio::test]
async fn completions_exist_for_every_shell_and_know_every_verb() -> Result<()> {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = sortie("completions").arg(shell).run().await?.fine();
        for verb in ["exec", "sh", "put", "get", "pipe", "doctor", "runners", "completions"] {
            assert!(ended.text().contains(verb), "{shell}: {verb}");
        }
    }
    sortie("completions").arg("ksh").run().await?.ended_with(2);
    Ok(())
}

#[tokio::test]
async fn this_machine_and_any_program_that_runs_sh_are_hosts_too() -> Result<()> {
    for place in [&["--local"][..], &["--via", "env LANG=C"]] {
        let ended = sortie("exec").args(place).args(["--", "echo", "a  b"]).run().await?.fine();
        assert_eq!(ended.text(), "a  b\n");
    }
    sortie("exec")
        .args(["--via", "/no/such/program", "--", "true"])
        .run()
        .await?
        .ended_with(255)
        .says(&["/no/such/program"]);
    Ok(())
}
