//! `exec` with the real binary: what a program is given, how it is limited, and how it ends.

mod runner_support;

use anyhow::{Context as _, Result, ensure};
use runner_support::{Dir, Session, cmd, shell, with};
use serde_json::{Value, json};

/// The standard output of a captured `exec`.
async fn said(session: &mut Session, mut params: Value) -> Result<String> {
    params["capture_out"] = json!(true);
    let result = session.done("exec", params).await?;
    Ok(result["stdout"].as_str().with_context(|| format!("{result}"))?.to_owned())
}

#[tokio::test]
async fn argv_never_meets_a_shell() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let hostile = ["a b", "", "$HOME", "`id`", "*", "'", "\"", "\\", "!", "~", "-n", "line\nbreak", "żółw"];
    let mut argv = vec!["printf", "[%s]"];
    argv.extend(hostile);
    let expected: String = hostile.iter().map(|word| format!("[{word}]")).collect();
    assert_eq!(said(&mut session, json!({"argv": argv})).await?, expected);
    assert_eq!(said(&mut session, json!({"command": "printf", "args": &argv[1..]})).await?, expected);
    // A program alone, without arguments: the reference cannot do this.
    assert_eq!(said(&mut session, json!({"argv": ["/bin/pwd"], "work_dir": "/usr"})).await?, "/usr\n");
    // Without arguments `command` is a line of shell.
    for args in [json!([]), json!(null)] {
        assert_eq!(said(&mut session, json!({"command": "echo $((1+1))", "args": args})).await?, "2\n");
    }
    assert_eq!(said(&mut session, json!({"command": "echo $0", "shell": "/bin/bash"})).await?, "/bin/bash\n");
    session.finish().await
}

#[tokio::test]
async fn argv_that_is_not_utf8_travels_as_base64() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    // printf, %s, and the bytes ff 00-free fe
    let params =
        json!({"argv": ["cHJpbnRm", "JXM=", "//4="], "argv_encoding": "base64", "capture_out": true});
    let result = session.done("exec", params).await?;
    assert_eq!((&result["stdout"], &result["stdout_encoding"]), (&json!("//4="), &json!("base64")));
    let params = json!({"argv": ["not base64!"], "argv_encoding": "base64"});
    session.error("INVALID_PARAMS", "exec", params).await?;
    session.finish().await
}

#[tokio::test]
async fn what_no_program_can_be_given_is_refused() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    for params in [
        json!({"argv": []}),
        json!({"argv": [""]}),
        json!({"argv": ["true"], "command": "true"}),
        json!({"argv": ["true"], "args": ["x"]}),
        json!({"argv": ["echo", "a\u{0}b"]}),
        json!({"command": "echo \u{0}"}),
        json!({"command": "true", "env": {"A=B": "c"}}),
        json!({"command": "true", "env": {"": "c"}}),
        json!({"command": "true", "env": {"A": "\u{0}"}}),
        json!({"command": "true", "work_dir": "/a\u{0}b"}),
        json!({"command": "true", "umask": "1777"}),
        json!({"command": "true", "stdin": "x", "stdin_from": "input"}),
        json!({"command": "true", "stdin": "no base64", "stdin_encoding": "base64"}),
        json!({"command": "true", "stdin_from": "elsewhere"}),
    ] {
        session.error("INVALID_PARAMS", "exec", params).await?;
    }
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn a_program_that_cannot_be_started_says_why() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let plain = dir.write("plain", "#!/bin/sh\n")?;
    let garbage = dir.write("garbage", "no program\n")?;
    let interpreter = dir.write("interpreter", "#!/no/such/shell\n")?;
    for path in [&garbage, &interpreter] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    for (program, code) in [
        ("/no/such", "NOT_FOUND"),
        ("no-such-program", "NOT_FOUND"),
        (plain.as_str(), "PERMISSION_DENIED"),
        ("/", "PERMISSION_DENIED"),
        (garbage.as_str(), "EXEC_FAILED"),
        (interpreter.as_str(), "NOT_FOUND"),
    ] {
        let error = session.error(code, "exec", json!({"argv": [program]})).await?;
        assert!(error["message"].as_str().is_some_and(|text| text.contains(program)), "{error}");
    }
    for (work_dir, code) in [("/no/such", "NOT_FOUND"), (plain.as_str(), "EXEC_FAILED")] {
        let error = session.error(code, "exec", json!({"command": "true", "work_dir": work_dir})).await?;
        assert!(error["message"].as_str().is_some_and(|text| text.contains(work_dir)), "{error}");
    }
    session.finish().await
}

#[tokio::test]
async fn programs_are_looked_up_in_the_path_they_are_given() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let tool = dir.write("tool", "#!/bin/sh\necho mine\n")?;
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = format!("/no/such:{}:/usr/bin:/bin", dir.text(""));
    assert_eq!(said(&mut session, json!({"argv": ["tool"], "env": {"PATH": path}})).await?, "mine\n");
    // Without any PATH the usual directories are meant.
    let params = json!({"argv": ["env"], "clear_env": true, "env": {"B": "2", "A": ""}});
    assert_eq!(said(&mut session, params).await?, "A=\nB=2\n");
    assert_eq!(said(&mut session, json!({"argv": ["./tool"], "work_dir": dir.path()})).await?, "mine\n");
    session.finish().await
}

#[tokio::test]
async fn umask_directory_and_environment_are_those_of_the_login() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let own = session.executable().parent().context("no parent")?.to_string_lossy().into_owned();
    let result = session.sh("umask; pwd; touch made; stat -c %a made; rm made").await?;
    let text = result["stdout"].as_str().unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines, ["0022", own.as_str(), "644"]);
    let params = json!({"command": "umask; touch made; stat -c %a made; rm made", "umask": "0077"});
    assert_eq!(said(&mut session, params).await?, "0077\n600\n");
    session.finish().await
}

#[tokio::test]
async fn a_program_starts_with_default_signals_and_no_descriptor_but_three() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    // Another command's pipes must not be seen either.
    session
        .send(&with(cmd("other", "exec", json!({"command": "cat", "stdin_from": "input"})), json!({})))
        .await?;
    let text = session.sh("ls /proc/self/fd; awk '/^Sig(Blk|Ign)/ { print $2 }' /proc/self/status").await?;
    let text = text["stdout"].as_str().unwrap_or_default();
    let (descriptors, masks) = text.split_at(text.find("3\n").context("ls reads a directory")? + 2);
    assert_eq!(descriptors, "0\n1\n2\n3\n");
    let masks: Vec<u64> = masks.lines().filter_map(|mask| u64::from_str_radix(mask, 16).ok()).collect();
    // Real-time signals may be ignored by whoever started all this; SIGPIPE and the ordinary ones are not.
    assert_eq!((masks[0], masks[1] & 0x7fff_ffff), (0, 0));
    let text = session.sh("sleep 0 | ls /proc/self/fd; ps -o pid=,sid=,pgid= -p $$").await?;
    let text = text["stdout"].as_str().unwrap_or_default().to_owned();
    let ids: Vec<_> = text.lines().last().unwrap_or_default().split_whitespace().collect();
    assert!(ids.len() == 3 && ids[0] == ids[1] && ids[1] == ids[2], "not a session of its own: {ids:?}");
    session.send(&json!({"type": "INPUT", "data": {"command_id": "other", "eof": true}})).await?;
    session.answer("other").await?;
    session.finish().await
}

#[tokio::test]
async fn nothing_that_a_program_writes_becomes_a_frame() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let forged = r#"{"type":"EXIT","data":{"reason":"completed"}}"#;
    // Neither its own streams, nor a terminal, nor those the runner's processes stand for in /proc as 0 to 2.
    let line = format!(
        "echo '{forged}'; echo '{forged}' >&2; echo '{forged}' > /dev/tty; \
         for p in $PPID {} {}; do for f in 0 1 2; do echo '{forged}' > /proc/$p/fd/$f; done; done; echo end",
        session.pid(),
        runner_support::server_of(&session)?
    );
    let id = session.next_id();
    session.send(&shell(&id, &line)).await?;
    let done = session.frame("DONE").await?;
    let text = done["data"]["result"]["stdout"].as_str().unwrap_or_default();
    assert!(text.ends_with("end\n"), "{done}");
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn signals_exit_codes_and_durations_are_told() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    for (line, code, signal) in [
        ("exit 0", 0, json!(null)),
        ("exit 255", 255, json!(null)),
        ("kill -TERM $$", 143, json!("SIGTERM")),
        ("kill -SEGV $$", 139, json!("SIGSEGV")),
        ("kill -PIPE $$", 141, json!("SIGPIPE")),
        ("exit 137", 137, json!(null)),
    ] {
        let result = session.sh(line).await?;
        assert_eq!((&result["exit_code"], &result["signal"]), (&json!(code), &signal), "{line}: {result}");
        // Which it is depends on who runs this, and under what.
        assert!(["subreaper", "cgroup"].map(Value::from).contains(&result["containment"]), "{result}");
    }
    let result = session.sh("kill -36 $$").await?;
    assert_eq!((&result["exit_code"], &result["signal"]), (&json!(164), &json!("SIG36")));
    session.finish().await
}

#[tokio::test]
async fn the_error_of_a_timeout_carries_what_was_said_until_then() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let line = "trap 'echo bye; exit' TERM; echo out; printf '\\377' >&2; sleep 1000 & wait";
    let error = session.failed("TIMEOUT", &with(shell("c", line), json!({"timeout": 1}))).await?;
    assert_eq!(error["details"]["stdout"], "out\nbye\n", "{error}");
    assert_eq!(
        (&error["details"]["stderr"], &error["details"]["stderr_encoding"]),
        (&json!("/w=="), &json!("base64"))
    );
    assert_eq!((&error["class"], &error["retryable"]), (&json!("transient"), &json!(true)));
    assert!(error["message"].as_str().is_some_and(|text| text.contains("1 s")), "{error}");
    session.finish().await
}

#[tokio::test]
async fn creates_and_removes_decide_whether_it_runs() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    dir.write("there", "")?;
    std::os::unix::fs::symlink("/no/such", dir.at("dangling"))?;
    let marker = dir.text("ran");
    for (field, name, runs) in [
        ("creates", "there", false),
        ("creates", "dangling", false),
        ("creates", "absent", true),
        ("creates", "there/below", true),
        ("removes", "there", true),
        ("removes", "absent", false),
    ] {
        for (path, work_dir) in [(dir.text(name), json!(null)), (name.to_owned(), json!(dir.path()))] {
            let params = json!({"command": format!("touch {marker}"), field: path, "work_dir": work_dir});
            let result = session.done("exec", params.clone()).await?;
            assert_eq!(dir.at("ran").exists(), runs, "{field} {name}");
            assert_eq!(result.get("skipped").is_none(), runs, "{field} {name}: {result}");
            assert!(result.get("would_run").is_none(), "{result}");
            let _ = std::fs::remove_file(dir.at("ran"));
            let frame = with(cmd(&session.next_id(), "exec", params), json!({"check": true}));
            let answer = session.ask(&frame).await?;
            let would = answer["data"]["result"]["would_run"].as_bool().unwrap_or_default();
            assert_eq!(would, runs, "{field} {name}: {answer}");
            assert!(!dir.at("ran").exists());
        }
    }
    session.finish().await
}

#[tokio::test]
async fn a_check_runs_nothing_but_refuses_what_could_not_run() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let id = session.next_id();
    let frame = with(shell(&id, &format!("touch {}", dir.text("ran"))), json!({"check": true}));
    let answer = session.ask(&frame).await?;
    assert_eq!(
        answer["data"]["result"],
        json!({"exit_code": 0, "duration": 0.0, "skipped": true, "would_run": true})
    );
    assert!(dir.names()?.is_empty());
    let kept_from_it = cmd("k", "exec", json!({"command": "true", "creates": dir.text("")}));
    let answer = session.ask(&with(kept_from_it, json!({"check": true}))).await?;
    assert_eq!(answer["data"]["result"], json!({"exit_code": 0, "duration": 0.0, "skipped": true}));
    let frame = with(cmd("e", "exec", json!({})), json!({"check": true}));
    session.failed("INVALID_PARAMS", &frame).await?;
    session.finish().await
}

#[tokio::test]
async fn limits_hold_for_the_program_and_its_children() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let own: i32 = said(&mut session, json!({"command": "nice"})).await?.trim().parse()?;
    let limits = json!({"nice": 5, "cpu_seconds": 100, "processes": 77, "open_files": 33});
    let line = "nice; ulimit -t; ulimit -u; ulimit -n";
    let params = json!({"command": line, "shell": "/bin/bash", "limits": limits});
    assert_eq!(said(&mut session, params).await?, format!("{}\n100\n77\n33\n", (own + 5).min(19)));
    let result =
        session.done("exec", json!({"command": "while :; do :; done", "limits": {"cpu_seconds": 1}})).await?;
    assert!(result["signal"] == "SIGXCPU" || result["signal"] == "SIGKILL", "{result}");
    let line = "grep NoNewPrivs /proc/self/status";
    assert_eq!(said(&mut session, json!({"command": line, "no_new_privs": true})).await?, "NoNewPrivs:\t1\n");
    assert_eq!(said(&mut session, json!({"command": line})).await?, "NoNewPrivs:\t0\n");
    let open_files = json!({"command": "ulimit -n", "limits": {"open_files": u64::MAX}});
    let answer = session.ask(&cmd("n", "exec", open_files)).await?;
    ensure!(answer["type"] == "ERROR", "an impossible limit was passed over: {answer}");
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn what_this_runner_cannot_do_is_unsupported_and_runs_nothing() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    let dir = Dir::new()?;
    let run = json!({"command": format!("touch {}", dir.text("ran"))});
    for r#become in [
        json!({"user": "-u root", "method": "sudo", "password": "hunter2"}),
        json!({"user": "", "method": "su", "password": "hunter2"}),
        json!({"user": "root; id", "method": "doas", "password": "hunter2"}),
        json!({"user": "root", "method": "doas", "password": "hunter2\nid"}),
    ] {
        let frame = with(cmd("b", "exec", run.clone()), json!({"become": r#become}));
        let error = session.failed("INVALID_PARAMS", &frame).await?;
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    let both = with(
        cmd("b", "exec", json!({"command": "id", "use_sudo": true})),
        json!({"become": {"user": "x", "method": "su"}}),
    );
    session.failed("INVALID_PARAMS", &both).await?;
    let frame = with(cmd("b", "exec", run.clone()), json!({"become": {"user": "root", "method": "magic"}}));
    session.failed("INVALID_CMD", &frame).await?;
    let write = json!({"path": dir.text("ran"), "content": "x", "create": true, "use_sudo": "yes"});
    session.error("INVALID_PARAMS", "file.write", write).await?;
    session.send(&json!({"type": "CONFIRM", "data": {"command_id": "x"}})).await?;
    assert_eq!(session.frame("ERROR").await?["data"]["code"], "CONFLICT");
    assert!(dir.names()?.is_empty());
    session.finish().await
}

#[tokio::test]
async fn inline_stdin_arrives_whole_whatever_its_bytes_and_size() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let params = json!({"argv": ["cat"], "stdin": "a\tb\n", "capture_out": true});
    assert_eq!(session.done("exec", params).await?["stdout"], "a\tb\n");
    let params = json!({"argv": ["od", "-An", "-tx1"], "stdin": "/wD+", "stdin_encoding": "base64"});
    assert_eq!(said(&mut session, params).await?, " ff 00 fe\n");
    let long = "0123456789abcdef".repeat(250_000);
    let params = json!({"command": "wc -c", "stdin": long});
    assert_eq!(said(&mut session, params).await?, "4000000\n");
    // A program that does not read, or stops reading, is not an error.
    for program in ["true", "head -c 1", "exec 0<&-; sleep 0.1"] {
        let result = session.done("exec", json!({"command": program, "stdin": long})).await?;
        assert_eq!(result["exit_code"], 0, "{program}: {result}");
    }
    assert_eq!(said(&mut session, json!({"command": "wc -c", "stdin": ""})).await?, "0\n");
    session.finish().await
}
