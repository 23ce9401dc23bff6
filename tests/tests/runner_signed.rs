//! Signed commands with the real binary: a runner with an anchor runs what a trusted key signed, as it was signed, in this
//! session, once, and nothing else.

mod runner_support;
#[path = "runner_support/signer.rs"]
mod signer;

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use runner_support::{Dir, Session, cmd, shell, with};
use serde_json::{Value, json};
use signer::Signer;
use sortie_tests::runner::RunnerProcess;

/// What somebody on the way does to a statement.
type Change = fn(&mut Value);

/// A session that trusts the signer alone.
async fn session(signer: &Signer, flags: &[&str]) -> Result<Session> {
    Session::start(&[&["--trust", &signer.hex()], flags].concat()).await
}

/// A command that leaves a file behind if it is run.
fn touch(id: &str, dir: &Dir) -> Value {
    shell(id, &format!("echo ran >> {}", dir.text("ran")))
}

/// Sends a frame that has to be refused for its signature, with this reason, for the command `id`.
async fn refused(session: &mut Session, frame: &Value, id: &str, reason: &str) -> Result<()> {
    session.send(frame).await?;
    let error = session.frame("ERROR").await?;
    let data = &error["data"];
    ensure!(data["code"] == "SIGNATURE" && data["details"]["reason"] == reason, "not {reason}: {error}");
    ensure!(data["command_id"].as_str().unwrap_or_default() == id, "of {id:?}: {error}");
    ensure!(data["message"].as_str().is_some_and(|said| said.ends_with("nothing was run")), "{error}");
    Ok(())
}

/// Asks by way of a frame of another type.
async fn ask(session: &mut Session, frame: &Value, id: &str) -> Result<Value> {
    session.send(frame).await?;
    session.answer(id).await
}

#[tokio::test]
async fn a_signed_command_is_run_and_an_unsigned_one_is_not() -> Result<()> {
    let (mut signer, dir) = (Signer::new(1), Dir::new()?);
    let mut session = session(&signer, &[]).await?;
    assert_eq!(session.ready["data"]["capabilities"]["signed"], true);
    refused(&mut session, &touch("a", &dir), "a", "unsigned").await?;
    refused(&mut session, &with(touch("b", &dir), json!({"signature": "c2ln"})), "b", "unsigned").await?;
    assert_eq!(dir.names()?, [""; 0]);
    let signed = signer.signed(&session.ready, &touch("c", &dir))?;
    let done = ask(&mut session, &signed, "c").await?;
    assert_eq!(done["data"]["result"]["exit_code"], 0, "{done}");
    assert_eq!(dir.names()?, ["ran"]);
    session.finish().await
}

#[tokio::test]
async fn whatever_is_altered_in_a_signed_command_is_noticed_before_anything_runs() -> Result<()> {
    let (mut signer, dir) = (Signer::new(1), Dir::new()?);
    let mut session = session(&signer, &["--concurrency", "4"]).await?;
    let base = with(touch("a", &dir), json!({"become": {"user": "nobody", "method": "sudo"}, "check": true}));
    let changes: [(&str, Change); 9] = [
        ("params", |s| s["command"]["params"]["command"] = json!("echo other")),
        ("timeout", |s| s["command"]["timeout"] = json!(121)),
        ("become", |s| s["command"]["become"]["user"] = json!("root")),
        ("become", |s| drop(s["command"].as_object_mut().map(|c| c.remove("become")))),
        ("check", |s| s["command"]["check"] = json!(false)),
        ("type", |s| s["command"]["type"] = json!("file_read")),
        ("key", |s| s["command"]["idempotency_key"] = json!("k")),
        ("number", |s| s["number"] = json!(99)),
        ("session", |s| s["session"] = json!("0")),
    ];
    for (what, change) in changes {
        let mut statement = signer.statement(&session.ready, &base);
        let mut frame = signer.sign(&statement)?;
        change(&mut statement);
        ensure!(frame["data"]["text"] != statement.to_string().as_str(), "{what} is changed");
        frame["data"]["text"] = statement.to_string().into();
        refused(&mut session, &frame, "a", "bad_signature").await.context(what)?;
    }
    assert_eq!(dir.names()?, [""; 0]);
    session.finish().await
}

#[tokio::test]
async fn what_stands_outside_of_the_text_is_ignored() -> Result<()> {
    let (mut signer, dir) = (Signer::new(1), Dir::new()?);
    let mut session = session(&signer, &[]).await?;
    let mut frame = signer.signed(&session.ready, &shell("a", "echo as signed"))?;
    let other = touch("b", &dir)["data"].clone();
    for (name, value) in other.as_object().context("data")? {
        frame["data"][name] = value.clone();
    }
    frame["data"]["command"] = other.clone();
    frame["command"] = other;
    let done = ask(&mut session, &frame, "a").await?;
    assert_eq!(done["data"]["result"]["stdout"], "as signed\n");
    assert_eq!(dir.names()?, [""; 0]);
    session.finish().await
}

#[tokio::test]
async fn a_statement_counts_once_and_only_in_order() -> Result<()> {
    let (mut signer, dir) = (Signer::new(1), Dir::new()?);
    let mut session = session(&signer, &[]).await?;
    let first = signer.signed(&session.ready, &touch("a", &dir))?;
    let second = signer.signed(&session.ready, &touch("b", &dir))?;
    ask(&mut session, &second, "b").await?;
    // What was passed over counts no more than what was run.
    refused(&mut session, &second, "b", "replayed").await?;
    refused(&mut session, &first, "a", "replayed").await?;
    // One that is refused for what it says has been used up too.
    let wrong = signer.signed(&session.ready, &cmd("c", "exec", json!({"command": 5})))?;
    assert_eq!(ask(&mut session, &wrong, "c").await?["data"]["code"], "INVALID_PARAMS");
    refused(&mut session, &wrong, "c", "replayed").await?;
    assert_eq!(std::fs::read_to_string(dir.at("ran"))?, "ran\n");
    session.finish().await
}

#[tokio::test]
async fn a_statement_of_another_session_host_or_login_does_not_count() -> Result<()> {
    let (mut signer, dir) = (Signer::new(1), Dir::new()?);
    let (mut one, other) = (session(&signer, &[]).await?, session(&signer, &[]).await?);
    let elsewhere = signer.signed(&other.ready, &touch("a", &dir))?;
    refused(&mut one, &elsewhere, "a", "other_session").await?;
    let mut mixed = signer.statement(&one.ready, &touch("a", &dir));
    mixed["nonce"] = other.ready["data"]["nonce"].clone();
    refused(&mut one, &signer.sign(&mixed)?, "a", "other_session").await?;
    for (field, reason) in [("host", "other_host"), ("user", "other_user")] {
        let mut statement = signer.statement(&one.ready, &touch("a", &dir));
        statement[field] = json!("somebody-elses");
        refused(&mut one, &signer.sign(&statement)?, "a", reason).await?;
    }
    assert_eq!(dir.names()?, [""; 0]);
    let mut statement = signer.statement(&one.ready, &touch("a", &dir));
    statement["host"] = one.ready["data"]["host"]["hostname"].clone();
    statement["user"] = one.ready["data"]["host"]["user"].clone();
    ask(&mut one, &signer.sign(&statement)?, "a").await?;
    assert_eq!(dir.names()?, ["ran"]);
    other.finish().await?;
    one.finish().await
}

#[tokio::test]
async fn a_key_that_is_not_trusted_signs_nothing() -> Result<()> {
    let (mut signer, mut stranger, dir) = (Signer::new(1), Signer::new(2), Dir::new()?);
    let mut session = session(&signer, &[]).await?;
    let frame = stranger.signed(&session.ready, &touch("a", &dir))?;
    refused(&mut session, &frame, "a", "unknown_key").await?;
    let mut forged = frame.clone();
    forged["data"]["key"] = signer.signed(&session.ready, &touch("a", &dir))?["data"]["key"].clone();
    refused(&mut session, &forged, "a", "bad_signature").await?;
    for signature in ["", "AAAA", "not base64"] {
        let mut frame = signer.signed(&session.ready, &touch("a", &dir))?;
        frame["data"]["signature"] = json!(signature);
        refused(&mut session, &frame, "a", "bad_signature").await?;
    }
    assert_eq!(dir.names()?, [""; 0]);
    session.finish().await
}

#[tokio::test]
async fn several_keys_count_each_for_itself() -> Result<()> {
    let (mut one, mut two) = (Signer::new(1), Signer::new(2));
    let mut session = session(&one, &["--trust", &two.hex()]).await?;
    for signer in [&mut one, &mut two] {
        let frame = signer.signed(&session.ready, &shell("a", "echo hi"))?;
        assert_eq!(ask(&mut session, &frame, "a").await?["data"]["result"]["stdout"], "hi\n");
        refused(&mut session, &frame, "a", "replayed").await?;
    }
    session.finish().await
}

fn cat(id: &str, dir: &Dir) -> Value {
    let line = format!("echo begun > {}; cat", dir.text("begun"));
    cmd(id, "exec", json!({"command": line, "capture_out": true, "stdin_from": "input"}))
}

fn input(id: &str, data: &str, eof: bool) -> Value {
    json!({"type": "INPUT", "data": {"command_id": id, "data": data, "eof": eof}})
}

#[tokio::test]
async fn input_is_held_until_all_of_it_is_what_was_signed() -> Result<()> {
    for flags in [&[][..], &["--concurrency", "4"]] {
        let (mut signer, dir) = (Signer::new(1), Dir::new()?);
        let mut session = session(&signer, flags).await?;
        let frame = signer.with_input(&session.ready, &cat("a", &dir), b"one two")?;
        session.send(&frame).await?;
        session.send(&input("a", "one ", false)).await?;
        session.send(&json!({"type": "PING", "data": {}})).await?;
        session.frame("PONG").await?;
        assert_eq!(dir.names()?, [""; 0], "it has not begun");
        session.send(&input("a", "two", true)).await?;
        let done = session.answer("a").await?;
        assert_eq!(done["data"]["result"]["stdout"], "one two");
        // The same for none at all.
        let frame = signer.with_input(&session.ready, &cat("b", &dir), b"")?;
        session.send(&frame).await?;
        session.send(&input("b", "", true)).await?;
        assert_eq!(session.answer("b").await?["data"]["result"]["exit_code"], 0);
        session.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn input_that_was_not_signed_is_never_used() -> Result<()> {
    let (mut signer, dir) = (Signer::new(1), Dir::new()?);
    let mut session = session(&signer, &["--concurrency", "4"]).await?;
    for pieces in [
        &[("one TWO", true)][..],
        &[("one", true)],
        &[("one twotwo", false)],
        &[("one t", false), ("woo", false)],
    ] {
        let frame = signer.with_input(&session.ready, &cat("a", &dir), b"one two")?;
        session.send(&frame).await?;
        for (piece, eof) in pieces {
            session.send(&input("a", piece, *eof)).await?;
        }
        let error = session.answer("a").await?;
        assert_eq!(error["data"]["code"], "SIGNATURE", "{pieces:?}: {error}");
        assert_eq!(error["data"]["details"]["reason"], "input");
    }
    // Announced and not signed, or signed and not announced.
    let bare = signer.signed(&session.ready, &cat("a", &dir))?;
    refused(&mut session, &bare, "a", "input").await?;
    let both = signer.with_input(&session.ready, &touch("a", &dir), b"x")?;
    refused(&mut session, &both, "a", "input").await?;
    let large = signer.statement(&session.ready, &cat("a", &dir));
    let mut large = large;
    large["input"] = json!({"sha256": "0".repeat(64), "bytes": 6 * 1024 * 1024 + 1});
    let error = ask(&mut session, &signer.sign(&large)?, "a").await?;
    assert_eq!(error["data"]["code"], "INVALID_CMD", "{error}");
    assert_eq!(dir.names()?, [""; 0]);
    session.finish().await
}

#[tokio::test]
async fn a_command_whose_input_never_comes_is_not_run() -> Result<()> {
    let (mut signer, dir) = (Signer::new(1), Dir::new()?);
    let mut session = session(&signer, &["--concurrency", "4"]).await?;
    for id in ["a", "b"] {
        let frame = signer.with_input(&session.ready, &cat(id, &dir), b"one two")?;
        session.send(&frame).await?;
        session.send(&input(id, "one ", false)).await?;
    }
    session.send(&json!({"type": "CANCEL", "data": {"command_id": "a"}})).await?;
    assert_eq!(session.answer("a").await?["data"]["code"], "CANCELLED");
    session.close_stdin();
    assert_eq!(session.answer("b").await?["data"]["code"], "CANCELLED");
    session.leaves("stdin_closed", 0).await?;
    assert_eq!(dir.names()?, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn as_much_input_is_held_as_the_limit_says() -> Result<()> {
    let (mut signer, dir) = (Signer::new(1), Dir::new()?);
    let mut session = session(&signer, &["--concurrency", "4"]).await?;
    let whole = vec![b'x'; 6 * 1024 * 1024];
    let line = format!("wc -c > {}", dir.text("count"));
    let command = cmd("a", "exec", json!({"command": line, "stdin_from": "input"}));
    let frame = signer.with_input(&session.ready, &command, &whole)?;
    session.send(&frame).await?;
    let credit = session.frame("CREDIT").await?;
    assert_eq!(credit["data"]["bytes"], whole.len() - 256 * 1024, "room for all of it");
    let pieces: Vec<&[u8]> = whole.chunks(64 * 1024).collect();
    for (at, piece) in pieces.iter().enumerate() {
        session.send(&input("a", std::str::from_utf8(piece)?, at + 1 == pieces.len())).await?;
    }
    let done = session.answer("a").await?;
    assert_eq!(done["data"]["result"]["exit_code"], 0, "{done}");
    assert_eq!(std::fs::read_to_string(dir.at("count"))?.trim(), whole.len().to_string());
    session.finish().await
}

#[tokio::test]
async fn a_change_is_confirmed_by_a_signature_alone() -> Result<()> {
    let mut signer = Signer::new(1);
    let mut session = session(&signer, &[]).await?;
    let plain = json!({"type": "CONFIRM", "data": {"command_id": "a"}});
    refused(&mut session, &plain, "", "unsigned").await?;
    let mut statement = signer.statement(&session.ready, &shell("a", "true"));
    statement.as_object_mut().context("object")?.remove("command");
    statement["confirm"] = json!("a");
    session.send(&signer.sign(&statement)?).await?;
    let error = session.frame("ERROR").await?;
    assert_eq!(error["data"]["code"], "CONFLICT", "it got as far as finding nothing to confirm: {error}");
    session.finish().await
}

#[tokio::test]
async fn to_end_things_takes_no_signature() -> Result<()> {
    let mut signer = Signer::new(1);
    let mut session = session(&signer, &["--concurrency", "4"]).await?;
    let frame = signer.signed(&session.ready, &shell("a", "sleep 600"))?;
    session.send(&frame).await?;
    session.send(&json!({"type": "PING", "data": {}})).await?;
    session.frame("PONG").await?;
    session.send(&json!({"type": "CANCEL", "data": {"command_id": "a"}})).await?;
    assert_eq!(session.answer("a").await?["data"]["code"], "CANCELLED");
    session.send(&json!({"type": "SHUTDOWN", "data": {}})).await?;
    session.leaves("completed", 0).await?;
    Ok(())
}

#[tokio::test]
async fn what_follows_a_refused_command_of_a_sequence_is_not_run() -> Result<()> {
    let (mut signer, dir) = (Signer::new(1), Dir::new()?);
    let mut session = session(&signer, &["--concurrency", "4"]).await?;
    let series = json!({"sequence": "s"});
    let mut first = signer.signed(&session.ready, &with(touch("a", &dir), series.clone()))?;
    first["data"]["signature"] = json!("");
    refused(&mut session, &first, "a", "bad_signature").await?;
    let second = signer.signed(&session.ready, &with(touch("b", &dir), series))?;
    assert_eq!(ask(&mut session, &second, "b").await?["data"]["code"], "CANCELLED");
    assert_eq!(dir.names()?, [""; 0]);
    session.finish().await
}

#[tokio::test]
async fn a_runner_without_an_anchor_takes_no_signature_for_an_answer() -> Result<()> {
    let (mut signer, dir) = (Signer::new(1), Dir::new()?);
    let mut session = Session::start(&[]).await?;
    assert!(session.ready["data"]["capabilities"].get("signed").is_none());
    let frame = signer.signed(&session.ready, &touch("a", &dir))?;
    let error = ask(&mut session, &frame, "a").await?;
    assert_eq!(error["data"]["code"], "UNSUPPORTED", "{error}");
    assert_eq!(dir.names()?, [""; 0]);
    // As the reference: a signature in CMD is not looked at.
    ask(&mut session, &with(touch("b", &dir), json!({"signature": "c2ln"})), "b").await?;
    assert_eq!(dir.names()?, ["ran"]);
    session.finish().await
}

#[tokio::test]
async fn a_runner_does_not_start_with_an_anchor_that_others_can_change() -> Result<()> {
    let (signer, dir) = (Signer::new(1), Dir::new()?);
    let path = dir.write("anchors", signer.line()?)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let missing = dir.text("missing");
    for (flags, part) in [
        (["--anchor", &path], "is not to be trusted"),
        (["--anchor", &missing], "No such file"),
        (["--trust", "nonsense"], "64 hexadecimal digits"),
        (["--trust", &"0".repeat(64)], "no valid ed25519 key"),
    ] {
        let mut runner = RunnerProcess::builder().args(&flags).start()?;
        assert_eq!(runner.next().await?, None, "{flags:?}: no READY");
        assert_eq!(runner.exit_code().await?, 2);
        let said = runner.stderr().await;
        assert!(said.contains(part), "{flags:?}: {said}");
    }
    Ok(())
}
