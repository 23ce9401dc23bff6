//! The reference's behaviour, row by row of its table of observations, with frames as its clients write them: rows to
//! keep are matched, rows to fix have the fixed behaviour. Rows of commands that this runner lacks are not here.

mod runner_support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use runner_support::{Dir, Session, ended, pids, runs};
use serde_json::{Value, json};
use sortie_client::protocol::CommandType;
use sortie_tests::require_programs;

/// A CMD as the reference's client writes it.
fn reference(id: &str, kind: &str, timeout: u32, params: &str) -> String {
    format!(
        "{{\"type\":\"CMD\",\"timestamp\":\"2024-01-01T00:00:00.052129048Z\",\"data\":{{\"id\":\"{id}\",\
         \"type\":\"{kind}\",\"timeout\":{timeout},\"params\":{params}}}}}"
    )
}

/// Sends a CMD and gives the frame that comes next, which has to be the answer.
async fn ask(session: &mut Session, kind: &str, timeout: u32, params: &str) -> Result<Value> {
    let id = session.next_id();
    session.send_line(&reference(&id, kind, timeout, params)).await?;
    let answer = session.next().await?.unwrap_or_default();
    ensure!(answer["data"]["command_id"] == id, "{answer}");
    ensure!(answer["timestamp"].is_string(), "{answer}");
    Ok(answer)
}

async fn done(session: &mut Session, kind: &str, params: &str) -> Result<Value> {
    let mut answer = ask(session, kind, 30, params).await?;
    ensure!(answer["type"] == "DONE" && answer["data"]["duration"].is_f64(), "{answer}");
    Ok(answer["data"]["result"].take())
}

async fn error(session: &mut Session, code: &str, kind: &str, params: &str) -> Result<Value> {
    let mut answer = ask(session, kind, 30, params).await?;
    ensure!(answer["type"] == "ERROR" && answer["data"]["code"] == code, "{answer}");
    ensure!(answer["data"]["retryable"].is_boolean(), "{answer}");
    Ok(answer["data"].take())
}

#[tokio::test]
async fn row_1_ready_comes_first_and_names_the_commands_that_work() -> Result<()> {
    let session = Session::start(&[]).await?;
    let ready = &session.ready["data"];
    assert_eq!(ready["platform"], "linux");
    assert_eq!(ready["pid"], session.pid());
    assert_eq!(ready["metadata"]["ttl"], "10m0s");
    for key in ["version", "arch"] {
        assert!(ready[key].as_str().is_some_and(|text| !text.is_empty()), "{key}");
    }
    let works = CommandType::ALL.iter().flat_map(|kind| [kind.name(), kind.dotted_name()]);
    let works = works.chain(["become", "limits", "sequence"]);
    let works: serde_json::Map<String, Value> = works.map(|name| (name.to_owned(), true.into())).collect();
    assert_eq!(ready["capabilities"], Value::Object(works));
    let sum = std::process::Command::new("sha256sum").arg(sortie_tests::runner::binary()?).output()?;
    let sum = String::from_utf8(sum.stdout)?;
    assert!(sum.starts_with(ready["sha256"].as_str().unwrap_or("none")), "{sum}");
    assert_eq!(ready["protocol"]["major"], 1);
    session.finish().await
}

#[tokio::test]
async fn row_2_at_the_end_of_input_it_says_exit_and_its_file_is_gone() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    session.close_stdin();
    let exit = session.leaves("stdin_closed", 0).await?;
    assert_eq!(exit["data"]["self_deleted"], true);
    assert_eq!(exit["data"]["commands_total"], 0);
    assert!(!session.executable().exists());
    session.quiet().await
}

#[tokio::test]
async fn rows_3_4_7_and_13_a_line_of_shell_is_done_with_its_exit_code_and_output() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let params = r#"{"command":"echo hi; echo err >&2; exit 3","capture_out":true,"capture_err":true}"#;
    let result = done(&mut session, "exec", params).await?;
    assert_eq!(
        (&result["exit_code"], &result["stdout"], &result["stderr"]),
        (&json!(3), &json!("hi\n"), &json!("err\n"))
    );
    assert!(result["duration"].is_f64());
    let result = done(&mut session, "exec", r#"{"command":"echo hi; echo err >&2"}"#).await?;
    assert!(result.get("stdout").is_none() && result.get("stderr").is_none(), "{result}");
    assert_eq!(done(&mut session, "exec", r#"{"command":"/no/such"}"#).await?["exit_code"], 127);
    let result = done(&mut session, "exec", r#"{"command":"cat; echo end","capture_out":true}"#).await?;
    assert_eq!(result["stdout"], "end\n");
    session.finish().await
}

#[tokio::test]
async fn rows_5_and_6_arguments_reach_the_program_without_a_shell() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let params =
        r#"{"command":"printf","args":["%s|","a b","$HOME","\u003c\u0026\u003e"],"capture_out":true}"#;
    assert_eq!(done(&mut session, "exec", params).await?["stdout"], "a b|$HOME|<&>|");
    error(&mut session, "NOT_FOUND", "exec", r#"{"command":"/no/such","args":["x"]}"#).await?;
    error(&mut session, "NOT_FOUND", "exec", r#"{"command":"no-such-program","args":["x"]}"#).await?;
    session.finish().await
}

#[tokio::test]
async fn row_8_a_command_is_required() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    for params in [r#"{"command":""}"#, "{}", "null", r#"{"command":null,"args":null,"env":null}"#] {
        let error = error(&mut session, "INVALID_PARAMS", "exec", params).await?;
        assert_eq!(error["message"], "command is required");
        assert_eq!(error["retryable"], false);
    }
    session.finish().await
}

#[tokio::test]
async fn rows_9_and_10_env_adds_to_the_environment_and_clear_env_replaces_it() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let params = r#"{"command":"echo $A:${PATH:+path}","env":{"A":"1"},"capture_out":true}"#;
    assert_eq!(done(&mut session, "exec", params).await?["stdout"], "1:path\n");
    let params = r#"{"command":"/usr/bin/env","args":["-u","none"],"env":{"A":"1"},"clear_env":true,"capture_out":true}"#;
    assert_eq!(done(&mut session, "exec", params).await?["stdout"], "A=1\n");
    error(&mut session, "NOT_FOUND", "exec", r#"{"command":"pwd","work_dir":"/no/such"}"#).await?;
    let params = r#"{"command":"pwd","work_dir":"/usr","capture_out":true}"#;
    assert_eq!(done(&mut session, "exec", params).await?["stdout"], "/usr\n");
    session.finish().await
}

#[tokio::test]
async fn row_11_a_timeout_is_an_error_and_ends_the_whole_tree() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let file = dir.text("pids");
    let line = format!("echo $$ >> {file}; sleep 1000 & echo $! >> {file}; echo begun; wait");
    let params = json!({"command": line, "capture_out": true}).to_string();
    let answer = ask(&mut session, "exec", 1, &params).await?;
    assert_eq!((&answer["type"], &answer["data"]["code"]), (&json!("ERROR"), &json!("TIMEOUT")), "{answer}");
    assert_eq!(answer["data"]["details"]["stdout"], "begun\n");
    for pid in pids(&dir.at("pids"), 2).await? {
        assert!(!runs(pid), "{pid} outlived the answer");
    }
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn row_12_a_signal_gives_128_plus_its_number_and_its_name() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let result = done(&mut session, "exec", r#"{"command":"kill -KILL $$"}"#).await?;
    assert_eq!((&result["exit_code"], &result["signal"]), (&json!(137), &json!("SIGKILL")));
    session.finish().await
}

#[tokio::test]
async fn row_14_a_child_in_the_background_that_holds_stdout_does_not_hold_up_the_answer() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let params = r#"{"command":"sleep 1000 & echo $!","capture_out":true}"#;
    let result = done(&mut session, "exec", params).await?;
    let sleeper: i32 = result["stdout"].as_str().unwrap_or_default().trim().parse()?;
    assert!(runs(sleeper), "the answer waited for the child");
    assert_eq!((&result["stdout_open"], &result["left_running"]), (&json!(true), &json!(1)));
    sortie_tests::process::kill(sleeper, Signal::SIGKILL)?;
    session.finish().await
}

#[tokio::test]
async fn row_15_stream_lines_sends_events() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    session
        .send_line(&reference(
            "s",
            "exec",
            30,
            r#"{"command":"echo one; exec cat /no/such","stream_lines":true}"#,
        ))
        .await?;
    let event = session.frame("EVENT").await?;
    assert_eq!(event["data"]["level"], "info");
    assert_eq!((&event["data"]["message"], &event["data"]["stream"]), (&json!("one\n"), &json!("stdout")));
    let event = session.frame("EVENT").await?;
    assert_eq!(event["data"]["stream"], "stderr");
    assert_eq!(session.frame("DONE").await?["data"]["result"]["exit_code"], 1);
    session.finish().await
}

#[tokio::test]
async fn rows_16_and_17_a_key_runs_once_and_a_signature_is_ignored() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let params = json!({"command": format!("echo x >> {}", dir.text("f"))});
    for id in ["a", "b"] {
        let frame = json!({"type": "CMD", "timestamp": "2024-01-01T00:00:00Z", "data": {"id": id, "type": "exec",
            "timeout": 30, "params": params, "idempotency_key": "k", "signature": "bogus"}});
        assert_eq!(session.ask(&frame).await?["type"], "DONE");
    }
    assert_eq!(std::fs::read_to_string(dir.at("f"))?, "x\n");
    session.finish().await
}

#[tokio::test]
async fn row_18_what_is_no_command_is_refused_and_the_runner_lives_on() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let cmd = |data: &str| format!("{{\"type\":\"CMD\",\"data\":{data}}}");
    let timeout = |value: &str| {
        cmd(&format!(r#"{{"id":"t","type":"exec","timeout":{value},"params":{{"command":"true"}}}}"#))
    };
    let lines = [
        (cmd(r#"{"id":"t","type":"no.such","timeout":5,"params":{}}"#), "INVALID_CMD"),
        ("{\"type\":\"CMD\",".to_owned(), "INVALID_CMD"),
        ("nonsense".to_owned(), "INVALID_CMD"),
        ("[]".to_owned(), "INVALID_CMD"),
        ("\"CMD\"".to_owned(), "INVALID_CMD"),
        ("{}".to_owned(), "INVALID_CMD"),
        ("\u{0}".to_owned(), "INVALID_CMD"),
        (r#"{"type":"READY","data":{}}"#.to_owned(), "INVALID_CMD"),
        (r#"{"type":"DONE","data":{"command_id":"x","result":null,"duration":1}}"#.to_owned(), "INVALID_CMD"),
        (r#"{"type":"NOSUCH","data":{}}"#.to_owned(), "UNSUPPORTED"),
        (cmd(r#"{"type":"exec","timeout":5,"params":{"command":"true"}}"#), "INVALID_CMD"),
        (cmd(r#"{"id":"","type":"exec","timeout":5,"params":{"command":"true"}}"#), "INVALID_CMD"),
        (timeout("0"), "INVALID_CMD"),
        (timeout("-1"), "INVALID_CMD"),
        (timeout("1.5"), "INVALID_CMD"),
        (timeout("1e0"), "INVALID_CMD"),
        (timeout("\"5\""), "INVALID_CMD"),
        (timeout("null"), "INVALID_CMD"),
        (timeout("99999999999999999999"), "INVALID_CMD"),
        (cmd(r#"{"id":"t","type":"exec","timeout":5}"#), "INVALID_CMD"),
        ("{\"type\":\"CMD\"}".to_owned(), "INVALID_CMD"),
        (cmd("null"), "INVALID_CMD"),
        (cmd("[]"), "INVALID_CMD"),
        (
            r#"{"type":"CMD","timestamp":"yesterday","data":{"id":"t","type":"exec","timeout":5,"params":{}}}"#
                .to_owned(),
            "INVALID_CMD",
        ),
    ];
    for (line, code) in lines {
        session.send_line(&line).await?;
        let answer = session.frame("ERROR").await?;
        assert_eq!(answer["data"]["code"], code, "{line} got {answer}");
        let readable = line.contains(r#""id":"t""#) && !line.contains("yesterday");
        let named = answer["data"].get("command_id").and_then(Value::as_str).unwrap_or("");
        assert_eq!(named, if readable { "t" } else { "" }, "{line}");
        session.is_in_step().await?;
    }
    for blank in ["\n", "\r\n", "  \t\n", "\n\n\n"] {
        session.send_raw(blank.as_bytes()).await?;
        session.is_in_step().await?;
    }
    session.send_raw(b"\xff\xfe\n").await?;
    assert_eq!(session.frame("ERROR").await?["data"]["code"], "INVALID_CMD");
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn row_19_a_field_of_the_wrong_type_is_the_commands_own_error() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    for (kind, params, field) in [
        ("exec", r#"{"command":5}"#, "command"),
        ("exec", r#"{"command":"true","capture_out":"yes"}"#, "capture_out"),
        ("exec", r#"{"command":"true","args":"a b"}"#, "args"),
        ("file.write", r#"{"path":"/x","create":1}"#, "create"),
        ("file.read", r#"{"path":"/x","max_bytes":"all"}"#, "max_bytes"),
    ] {
        let error = error(&mut session, "INVALID_PARAMS", kind, params).await?;
        assert!(error["message"].as_str().is_some_and(|message| message.starts_with(field)), "{error}");
    }
    for params in ["5", "\"text\"", "[1]", "true"] {
        error(&mut session, "INVALID_PARAMS", "exec", params).await?;
    }
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn row_20_unknown_fields_crlf_no_timestamp_and_no_last_newline_are_accepted() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let frame = |id: &str| {
        format!(
            "{{\"type\":\"CMD\",\"more\":[1],\"data\":{{\"id\":\"{id}\",\"type\":\"exec\",\"timeout\":9,\"new\":{{}},\
             \"params\":{{\"command\":\"true\",\"newer\":null}}}}}}"
        )
    };
    session.send_raw(format!("{}\r\n{}", frame("a"), frame("b")).as_bytes()).await?;
    session.close_stdin();
    assert_eq!(session.frame("DONE").await?["data"]["command_id"], "a");
    assert_eq!(session.frame("DONE").await?["data"]["command_id"], "b");
    let exit = session.leaves("stdin_closed", 0).await?;
    assert_eq!(exit["data"]["commands_total"], 2);
    Ok(())
}

#[tokio::test]
async fn row_21_a_line_may_have_10_485_760_bytes_and_not_one_more() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let begin = "{\"type\":\"CMD\",\"data\":{\"id\":\"big\",\"type\":\"exec\",\"timeout\":60,\
                 \"params\":{\"command\":\"true\",\"x\":\"";
    let padded = |length: usize| format!("{begin}{}\"}}}}}}\n", "a".repeat(length - begin.len() - 5));
    let line = padded(10_485_760);
    assert_eq!(line.len(), 10_485_760);
    session.send_raw(line.as_bytes()).await?;
    assert_eq!(session.frame("DONE").await?["data"]["command_id"], "big");
    session.send_raw(padded(10_485_761).as_bytes()).await?;
    assert_eq!(session.frame("ERROR").await?["data"]["code"], "FRAME_TOO_LARGE");
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn rows_22_23_28_and_29_a_file_is_made_only_where_it_may_be() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let write = |path: &str, more: Value| {
        let mut params = json!({"path": path, "content": "hello"});
        if let (Some(params), Value::Object(more)) = (params.as_object_mut(), more) {
            params.extend(more);
        }
        params.to_string()
    };
    let missing = error(&mut session, "NOT_FOUND", "file.write", &write(&dir.text("f"), json!({}))).await?;
    let message = format!("file does not exist and create=false: {}", dir.text("f"));
    assert_eq!(missing["message"], message);
    assert!(dir.names()?.is_empty());
    let result = done(&mut session, "file.write", &write(&dir.text("f"), json!({"create": true}))).await?;
    assert_eq!((&result["created"], &result["bytes_written"]), (&json!(true), &json!(5)));
    assert_eq!(result["checksum"], "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert!(result.get("backup_path").is_none());
    assert_eq!(std::fs::metadata(dir.at("f"))?.mode() & 0o7777, 0o644);
    done(&mut session, "file.write", &write(&dir.text("a/b/f"), json!({"create": true}))).await?;
    for made in ["a", "a/b"] {
        assert_eq!(std::fs::metadata(dir.at(made))?.mode() & 0o7777, 0o755);
    }
    error(&mut session, "CONFLICT", "file.write", &write(&dir.text("a"), json!({"create": true}))).await?;
    error(&mut session, "INVALID_PARAMS", "file.write", &write("", json!({"create": true}))).await?;
    session.finish().await
}

#[tokio::test]
async fn rows_24_to_27_mode_and_owner_are_checked_before_and_exact_afterwards() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "old")?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640))?;
    let write = |more: &str| format!("{{\"path\":\"{path}\",\"content\":\"new\"{more}}}");
    error(&mut session, "INVALID_PARAMS", "file.write", &write(",\"mode\":\"rwx\"")).await?;
    error(&mut session, "INVALID_PARAMS", "file.write", &write(",\"mode\":\"0888\"")).await?;
    error(&mut session, "NOT_FOUND", "file.write", &write(",\"owner\":\"nosuchuser\"")).await?;
    error(&mut session, "NOT_FOUND", "file.write", &write(",\"group\":\"nosuchgroup\"")).await?;
    assert_eq!((std::fs::read_to_string(&path)?.as_str(), dir.names()?.len()), ("old", 1));
    let result = done(&mut session, "file.write", &write(",\"mode\":\"0600\",\"backup\":true")).await?;
    let backup = std::path::PathBuf::from(result["backup_path"].as_str().unwrap_or_default());
    assert_eq!(std::fs::read_to_string(&backup)?, "old");
    assert_eq!(std::fs::metadata(&backup)?.mode() & 0o7777, 0o640);
    assert_eq!(std::fs::metadata(&path)?.mode() & 0o7777, 0o600);
    done(&mut session, "file.write", &write(",\"mode\":\"4755\"")).await?;
    assert_eq!(std::fs::metadata(&path)?.mode() & 0o7777, 0o4755);
    session.finish().await
}

#[tokio::test]
async fn row_30_a_symbolic_link_is_followed_unless_no_follow_says_otherwise() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    dir.write("real", "old")?;
    std::os::unix::fs::symlink("real", dir.at("link"))?;
    let path = dir.text("link");
    let refused = format!("{{\"path\":\"{path}\",\"content\":\"new\",\"no_follow\":true}}");
    error(&mut session, "CONFLICT", "file.write", &refused).await?;
    assert_eq!(std::fs::read_to_string(dir.at("real"))?, "old");
    done(&mut session, "file.write", &format!("{{\"path\":\"{path}\",\"content\":\"new\"}}")).await?;
    assert_eq!(std::fs::read_to_string(dir.at("real"))?, "new");
    assert!(std::fs::symlink_metadata(dir.at("link"))?.is_symlink());
    session.finish().await
}

#[tokio::test]
async fn rows_31_to_34_a_read_is_exact() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "abcdef")?;
    for (most, content, truncated) in [(0, "abcdef", false), (3, "abc", true), (6, "abcdef", false)] {
        let params = format!("{{\"path\":\"{path}\",\"max_bytes\":{most}}}");
        let result = done(&mut session, "file.read", &params).await?;
        assert_eq!(
            (&result["content"], &result["truncated"]),
            (&json!(content), &json!(truncated)),
            "{most}"
        );
        assert_eq!((&result["size"], &result["mode"]), (&json!(6), &json!("0644")));
        assert_eq!(result["owner"], std::fs::metadata(&path)?.uid().to_string());
        assert_eq!(result["checksum"].as_str().map(str::len), Some(64));
    }
    error(&mut session, "INVALID_PARAMS", "file.read", &format!("{{\"path\":\"{path}\",\"max_bytes\":-1}}"))
        .await?;
    let huge = format!("{{\"path\":\"{path}\",\"max_bytes\":{}}}", i64::MAX);
    assert_eq!(done(&mut session, "file.read", &huge).await?["content"], "abcdef");
    error(&mut session, "NOT_FOUND", "file.read", r#"{"path":"/no/such"}"#).await?;
    error(&mut session, "CONFLICT", "file.read", r#"{"path":"/"}"#).await?;
    let path = dir.write("binary", b"\xff\x00\xfe")?;
    let result = done(&mut session, "file.read", &format!("{{\"path\":\"{path}\"}}")).await?;
    assert_eq!((&result["content"], &result["encoding"]), (&json!("/wD+"), &json!("base64")));
    session.finish().await
}

#[tokio::test]
async fn row_35_a_wrong_state_manager_or_name_of_a_package_is_an_error() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    for (params, words) in [
        (json!({"name": "x", "state": ""}), "invalid state: \"\""),
        (json!({"name": "x", "state": "there"}), "invalid state: \"there\""),
        (json!({"name": "x", "state": "present", "manager": "brew"}), "manager: "),
        (json!({"name": "", "state": "present"}), "name: is required"),
        (json!(null), "state: "),
    ] {
        let error = session.error("INVALID_PARAMS", "pkg.ensure", params).await?;
        ensure!(error["message"].as_str().is_some_and(|message| message.contains(words)), "{error}");
    }
    session.finish().await
}

#[tokio::test]
async fn row_36_a_package_that_is_installed_is_already_present() -> Result<()> {
    require_programs!("apt-get", "dpkg-query");
    let mut session = Session::start(&[]).await?;
    let result =
        session.done("pkg.ensure", json!({"name": "dpkg", "state": "present", "manager": "apt"})).await?;
    let version = session.sh("dpkg-query -W -f '${Version}' dpkg").await?["stdout"].take();
    assert_eq!(
        result,
        json!({"changed": false, "previous_version": version, "installed_version": version, "action": "already_present"})
    );
    session.finish().await
}

#[tokio::test]
async fn row_38_a_package_that_is_not_installed_is_already_absent_and_has_no_versions() -> Result<()> {
    require_programs!("apt-get", "dpkg-query");
    let mut session = Session::start(&[]).await?;
    let result = session.done("pkg.ensure", json!({"name": "no-such-package", "state": "absent"})).await?;
    assert_eq!(result, json!({"changed": false, "action": "already_absent"}));
    session.finish().await
}

#[tokio::test]
async fn row_48_an_idle_runner_ends_when_its_time_to_live_is_over() -> Result<()> {
    let mut session = Session::start(&["--ttl", "1"]).await?;
    assert_eq!(session.ready["data"]["metadata"]["ttl"], "1s");
    session.leaves("ttl_expired", 0).await?;
    session.quiet().await
}

#[tokio::test]
async fn row_49_signals_and_a_broken_pipe_leave_neither_processes_nor_the_file() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let mut session = Session::start(&[]).await?;
        session.kill(signal)?;
        session.leaves("signal", 1).await?;
        assert!(!session.executable().exists());
        session.quiet().await?;
    }
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    session
        .send_line(&reference(
            "c",
            "exec",
            60,
            &json!({"command": format!("echo $$ > {}; sleep 1000", dir.text("p"))}).to_string(),
        ))
        .await?;
    let pids = pids(&dir.at("p"), 1).await?;
    session.close_stdout();
    ended(&pids).await?;
    assert_eq!(session.exit_code().await?, 1);
    assert!(!session.executable().exists());
    session.quiet().await
}
