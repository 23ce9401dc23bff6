//! Limits of the programs of any command, and what programs took: what holds without a cgroup, and what is refused there.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use runner_support::{Dir, Session, cmd, with};

mod runner_support;

/// DONE of a line of shell with these fields in its CMD: result and usage.
async fn run(session: &mut Session, line: &str, more: Value) -> Result<(Value, Value)> {
    let id = session.next_id();
    let frame = with(cmd(&id, "exec", json!({"command": line, "capture_out": true})), more);
    let mut answer = session.ask(&frame).await?;
    ensure!(answer["type"] == "DONE", "{answer}");
    Ok((answer["data"]["result"].take(), answer["data"]["usage"].take()))
}

/// Whether this machine gives the session a scope: then a cgroup does some of what is refused elsewhere.
async fn has_scope(session: &mut Session) -> Result<bool> {
    Ok(session.sh("true").await?["containment"] == "cgroup")
}

#[tokio::test]
async fn what_programs_took_is_told_when_asked_for_and_never_else() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    assert_eq!(session.ready["data"]["capabilities"]["limits"], true);
    let answer = session.ask(&cmd("a", "exec", json!({"command": "true"}))).await?;
    let fields: Vec<_> = answer["data"].as_object().context("no data")?.keys().collect();
    assert_eq!(fields, ["command_id", "duration", "result"]);

    // A child's child takes 48 MiB at once; both are waited for, as a shell does.
    let line = "(dd if=/dev/zero of=/dev/null bs=48M count=1 2>/dev/null; :); :";
    let (result, usage) = run(&mut session, line, json!({"usage": true})).await?;
    assert_eq!(result["exit_code"], 0);
    let peak = usage["memory_peak_bytes"].as_u64().context("no peak")?;
    assert!((48 << 20..256 << 20).contains(&peak), "{usage}");
    for what in ["cpu", "memory", "io"] {
        assert!(usage["measured_by"][what] == "rusage" || usage["measured_by"][what] == "cgroup", "{usage}");
    }
    assert!(
        usage["limit"].is_null() && usage["limited_by"].is_null() && usage["exempt"].is_null(),
        "{usage}"
    );

    // What did not end well tells it too.
    let frame = json!({"type": "CMD", "data": {"id": "t", "type": "exec", "timeout": 1, "usage": true,
        "params": {"command": "while :; do :; done"}}});
    let error = session.failed("TIMEOUT", &frame).await?;
    assert!(error["usage"]["cpu_user_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{error}");

    // Nothing was run, so nothing was measured.
    let (_, usage) = run(&mut session, "true", json!({"usage": true, "check": true})).await?;
    assert!(usage.is_object() && usage["measured_by"].is_null(), "{usage}");
    session.finish().await
}

#[tokio::test]
async fn a_program_is_ended_by_its_seconds_of_processor_time_and_the_limit_is_named() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let limits = json!({"limits": {"cpu_seconds": 1}});
    let (result, usage) = run(&mut session, "while :; do :; done", limits.clone()).await?;
    assert!(result["signal"] == "SIGXCPU" || result["signal"] == "SIGKILL", "{result}");
    assert_eq!(usage["limit"], "cpu_seconds", "{usage}");
    assert_eq!(usage["limited_by"], json!({"cpu_seconds": "rlimit"}));
    let took = |name: &str| usage[name].as_f64().unwrap_or_default();
    // The kernel counts in ticks.
    assert!(took("cpu_user_seconds") + took("cpu_system_seconds") > 0.8, "{usage}");
    // A child, which its shell tells of as shells do, that takes no notice of the first signal.
    let line = "sh -c 'trap \"\" XCPU; while :; do :; done'; echo $?";
    let (result, usage) = run(&mut session, line, limits).await?;
    assert!(result["stdout"] == "137\n" || result["signal"] == "SIGKILL", "{result}");
    let seconds = usage["cpu_user_seconds"].as_f64().context("no time")?;
    assert!(seconds > 0.8, "{usage}");
    session.finish().await
}

#[tokio::test]
async fn a_file_that_grows_too_large_ends_its_writer_and_the_limit_is_named() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let file = dir.text("large");
    let line = format!("exec dd if=/dev/zero of={file} bs=1000 count=100 2>/dev/null");
    let (result, usage) = run(&mut session, &line, json!({"limits": {"file_bytes": 10_000}})).await?;
    assert_eq!((&result["signal"], &usage["limit"]), (&json!("SIGXFSZ"), &json!("file_bytes")), "{usage}");
    assert_eq!(std::fs::metadata(&file)?.len(), 10_000);
    session.finish().await
}

#[tokio::test]
async fn limits_of_a_cmd_and_of_execs_own_are_the_same_and_not_given_together() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let limits = json!({"cpu_seconds": 100, "open_files": 33, "file_bytes": 512_000, "nice": 3, "no_new_privs": true,
        "address_space_bytes": 1 << 30});
    let line =
        "ulimit -t; ulimit -n; ulimit -f; ulimit -v; nice; grep NoNewPrivs /proc/self/status | cut -f 2";
    let params = json!({"command": line, "shell": "/bin/bash", "capture_out": true});
    let of_cmd = session.ask(&with(cmd("a", "exec", params.clone()), json!({"limits": limits}))).await?;
    let own = with(json!({"data": params}), json!({"limits": limits}))["data"].take();
    let of_exec = session.ask(&cmd("b", "exec", own.clone())).await?;
    let nice: i32 = session.sh("nice").await?["stdout"].as_str().context("no output")?.trim().parse()?;
    let expected = format!("100\n33\n500\n1048576\n{}\n1\n", (nice + 3).min(19));
    for answer in [of_cmd, of_exec] {
        assert_eq!(answer["data"]["result"]["stdout"], expected, "{answer}");
        assert_eq!(
            answer["data"]["usage"]["limited_by"],
            json!({
                "cpu_seconds": "rlimit", "open_files": "rlimit", "file_bytes": "rlimit", "nice": "process",
                "no_new_privs": "process", "address_space_bytes": "rlimit"
            })
        );
    }
    session.failed("INVALID_PARAMS", &with(cmd("c", "exec", own), json!({"limits": limits}))).await?;
    let line = "dd if=/dev/zero of=/dev/null bs=512M count=1";
    let little = json!({"limits": {"address_space_bytes": 64 << 20}});
    assert_ne!(run(&mut session, line, little).await?.0["exit_code"], 0);
    session.finish().await
}

#[tokio::test]
async fn programs_of_other_commands_are_limited_too() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let (path, said) = (dir.text("file"), dir.text("said"));
    let params = |line: String| json!({"path": path, "content": "x\n", "create": true, "validate": ["sh", "-c", line, "sh", "%s"]});
    let fine = cmd("a", "file_write", params(format!("ulimit -n > {said}")));
    let answer = session.ask(&with(fine, json!({"limits": {"open_files": 34}}))).await?;
    assert_eq!(answer["data"]["result"]["changed"], true, "{answer}");
    assert_eq!(std::fs::read_to_string(&said)?, "34\n");
    assert_eq!(answer["data"]["usage"]["limited_by"], json!({"open_files": "rlimit"}));
    assert!(answer["data"]["usage"]["measured_by"].is_object(), "{answer}");
    // A validator that is ended leaves the file alone, and the error says why.
    let frame = cmd(
        "b",
        "file_write",
        with(json!({"data": params("while :; do :; done".into())}), json!({"content": "y\n"}))["data"].take(),
    );
    let error =
        session.failed("VALIDATION_FAILED", &with(frame, json!({"limits": {"cpu_seconds": 1}}))).await?;
    assert_eq!(error["usage"]["limit"], "cpu_seconds", "{error}");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("limits.cpu_seconds")), "{error}");
    assert_eq!(std::fs::read_to_string(&path)?, "x\n");
    session.finish().await
}

#[tokio::test]
async fn what_takes_a_cgroup_is_unsupported_without_one_and_nothing_is_run() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    if has_scope(&mut session).await? {
        sortie_tests::skip!("this machine gives the runner a cgroup");
    }
    let dir = Dir::new()?;
    let touch = json!({"command": format!("touch {}", dir.text("ran"))});
    let write = json!({"path": dir.text("file"), "content": "x", "create": true});
    for (name, value) in [("memory_bytes", 64 << 20), ("cpu_percent", 50), ("io_weight", 50)] {
        let mut limits = json!({});
        limits[name] = value.into();
        for check in [false, true] {
            for (kind, params) in [("exec", &touch), ("file_write", &write)] {
                let id = session.next_id();
                let frame = with(cmd(&id, kind, params.clone()), json!({"limits": limits, "check": check}));
                let error = session.failed("UNSUPPORTED", &frame).await?;
                let message = error["message"].as_str().context("no message")?;
                assert!(message.contains(name) && message.contains("cgroup"), "{message}");
            }
        }
        let own = with(json!({"data": touch}), json!({"limits": limits}))["data"].take();
        session.error("UNSUPPORTED", "exec", own).await?;
    }
    assert!(dir.names()?.is_empty());
    session.finish().await
}

#[tokio::test]
async fn limits_that_nothing_could_be_held_to_are_refused() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    for (limits, code) in [
        (json!({"memory_bytes": 1000}), "INVALID_PARAMS"),
        (json!({"address_space_bytes": 0}), "INVALID_PARAMS"),
        (json!({"cpu_percent": 0}), "INVALID_PARAMS"),
        (json!({"cpu_percent": 100_001}), "INVALID_PARAMS"),
        (json!({"cpu_seconds": 0}), "INVALID_PARAMS"),
        (json!({"processes": 0}), "INVALID_PARAMS"),
        (json!({"open_files": 2}), "INVALID_PARAMS"),
        (json!({"io_weight": 10_001}), "INVALID_PARAMS"),
        (json!({"nice": 20}), "INVALID_PARAMS"),
        (json!({"nice": -21}), "INVALID_PARAMS"),
        // Of the wrong type it is no CMD.
        (json!({"nice": "5"}), "INVALID_CMD"),
        (json!([1]), "INVALID_CMD"),
    ] {
        let id = session.next_id();
        let frame = with(cmd(&id, "exec", json!({"command": "true"})), json!({"limits": limits}));
        let error = session.failed(code, &frame).await.with_context(|| limits.to_string())?;
        assert!(error["message"].as_str().is_some_and(|text| text.contains("limits")), "{error}");
    }
    session.finish().await
}

#[tokio::test]
async fn limits_are_part_of_what_makes_a_command_the_same() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let frame = |id: &str, limits: Value| {
        with(cmd(id, "exec", json!({"command": "true"})), json!({"idempotency_key": "k", "limits": limits}))
    };
    let first = session.ask(&frame("a", json!({"nice": 1}))).await?;
    assert_eq!(first["data"]["usage"]["limited_by"]["nice"], "process", "{first}");
    let again = session.ask(&frame("b", json!({"nice": 1}))).await?;
    assert_eq!(again["data"]["metadata"]["idempotent_replay"], "true", "{again}");
    // Nothing was run.
    assert!(again["data"]["usage"].is_null(), "{again}");
    session.failed("CONFLICT", &frame("c", json!({"nice": 2}))).await?;
    session.finish().await
}
