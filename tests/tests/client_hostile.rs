//! A host whose runner lies: the real `sortie` program gives one clear error, holds little memory, writes no file that nobody
//! named, and sends nothing to a terminal that this would obey.

mod cli_support;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use cli_support::{Ended, Sortie, at_a_terminal, program, sortie};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// What the client takes for the runner. The host says that it has it already.
const RUNNER: &[u8] = b"the runner";

/// What a terminal would obey, in every coding: colours, a window's title, an answer to be typed, a bell, and text that reads backwards.
const ESCAPES: &str = "\u{1b}[31m\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[6n\u{9b}31m\u{202e}txt\r";

/// A host on which a shell plays the login shell, the script and the runner.
struct Host {
    directory: TempDir,
}

fn digest() -> String {
    Sha256::digest(RUNNER).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn ready() -> Value {
    json!({"version": "1", "platform": "linux", "arch": "amd64", "pid": 7, "sha256": digest(),
        "protocol": {"major": 1, "minor": 1}, "capabilities": {"exec": true}, "session": "00", "nonce": "01",
        "limits": {"frame_bytes": 10_485_760, "concurrency": 32, "output_bytes": 1000, "stdin_window": 1000,
            "queue_commands": 10, "queue_bytes": 1000, "lease": 60}})
}

fn frame(kind: &str, data: &Value) -> String {
    format!("{}\n", json!({"type": kind, "data": data}))
}

fn done() -> String {
    frame("DONE", &json!({"command_id": "c1", "result": {"exit_code": 0, "duration": 0.1}, "duration": 0.1}))
}

fn event(data: Value) -> String {
    let mut event = json!({"command_id": "c1", "message": ""});
    if let (Some(event), Value::Object(data)) = (event.as_object_mut(), data) {
        event.extend(data);
    }
    frame("EVENT", &event)
}

fn exit() -> String {
    frame("EXIT", &json!({"reason": "completed", "exit_code": 0, "self_deleted": true, "commands_total": 1}))
}

impl Host {
    /// `script` is lines of shell with the functions `up` (the script's first line), `say NAME` and `wait_for_end`; `texts` are what `say`
    /// says.
    fn new(script: &str, texts: &[(&str, &str)]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        for machine in ["x86_64", "aarch64"] {
            fs::write(directory.path().join(format!("sortie-runner-{machine}-unknown-linux-musl")), RUNNER)?;
        }
        for (name, text) in texts {
            fs::write(directory.path().join(name), text)?;
        }
        // Whoever comes a second time, to see what is left, is sent away.
        let functions = format!(
            "cd '{}'; mkdir came || exit 1\nmarker=$5$6\nup() {{ echo \"$marker Linux x86_64 1 raw {}\"; read -r _; }}\n\
             say() {{ cat \"$1\"; }}\nwait_for_end() {{ cat > /dev/null; }}\n",
            directory.path().display(),
            digest()
        );
        fs::write(directory.path().join("host"), functions + script)?;
        Ok(Self { directory })
    }

    /// One that comes up, says this, and then waits to be let go unless it said that it goes.
    fn that_says(ready: &Value, frames: &str) -> Result<Self> {
        let end = if frames.ends_with(&exit()) { "" } else { "wait_for_end" };
        let texts = [("ready", &*frame("READY", ready)), ("frames", frames)];
        Self::new(&format!("up; say ready; say frames; {end}\n"), &texts)
    }

    fn call(&self, verb: &str) -> Sortie {
        sortie(verb)
            .env("SORTIE_RUNNERS", self.directory.path())
            .args(["--via", &format!("sh {}", self.directory.path().join("host").display())])
    }

    async fn exec(&self) -> Result<Ended> {
        self.call("exec").args(["--", "true"]).run().await
    }
}

/// Nothing but lines of text.
#[track_caller]
fn harmless(ended: &Ended) {
    for stream in [&ended.stderr, &String::from_utf8_lossy(&ended.stdout).into_owned()] {
        let bad =
            stream.chars().find(|c| c.is_control() && *c != '\n' || ('\u{202a}'..='\u{202e}').contains(c));
        assert_eq!(bad, None, "{stream:?}");
    }
}

/// One error in one line that has these words, and no more.
#[track_caller]
fn one_error(ended: Ended, words: &[&str]) {
    harmless(&ended);
    let ended = ended.says(words);
    assert_ne!(ended.status, 0, "{ended:?}");
    assert!(ended.stderr.len() < 8000 && ended.stderr.lines().count() == 1, "{ended:?}");
    assert!(ended.stdout.is_empty() && !ended.stderr.contains("panicked"), "{ended:?}");
}

#[tokio::test]
async fn whoever_does_not_keep_to_the_protocol_is_given_up_with_one_error() -> Result<()> {
    let ok = ready();
    let with = |key: &str, value: Value| {
        let mut ready = ready();
        ready[key] = value;
        ready
    };
    let deep = format!("{{\"type\":\"DONE\",\"data\":{}{}}}\n", "[".repeat(200_000), "]".repeat(200_000));
    let deep_result = format!(
        "{{\"type\":\"DONE\",\"data\":{{\"command_id\":\"c1\",\"duration\":1,\"result\":{}{}}}}}\n",
        "{\"exit_code\":".repeat(100_000),
        "1".to_owned() + &"}".repeat(100_000)
    );
    let number = |kind: &str, data: &str| {
        format!("{{\"type\":\"{kind}\",\"data\":{{\"command_id\":\"c1\",{data}}}}}\n")
    };
    let cases: Vec<(&str, Value, String, &[&str])> = vec![
        ("a second READY", ok.clone(), frame("READY", &ok), &["second READY"]),
        ("what is no frame", ok.clone(), "oops\u{1b}[31m\n".into(), &["no frame", "oops"]),
        (
            "a frame of the other direction",
            ok.clone(),
            frame("CMD", &json!({"id": "c1"})),
            &["go the other way"],
        ),
        ("an unknown type", ok.clone(), frame(ESCAPES, &json!({})), &["unknown frame type"]),
        ("frames after EXIT", ok.clone(), exit() + &done(), &["DONE after EXIT"]),
        ("a second EXIT", ok.clone(), exit() + &exit(), &["EXIT after EXIT"]),
        ("JSON that is deep", ok.clone(), deep, &["no frame"]),
        ("a result that is deep", ok.clone(), deep_result + &exit(), &["not understood"]),
        (
            "a number beyond any",
            ok.clone(),
            number("DONE", "\"duration\":1e999,\"result\":{}"),
            &["no frame", "duration"],
        ),
        (
            "an exit status beyond any",
            ok.clone(),
            number("DONE", "\"duration\":1,\"result\":{\"exit_code\":1e30,\"duration\":1}") + &exit(),
            &["not understood"],
        ),
        (
            "credit beyond any",
            ok.clone(),
            number("CREDIT", "\"stream\":\"stdin\",\"bytes\":1e30"),
            &["no frame", "bytes"],
        ),
        (
            "a place before the first",
            ok.clone(),
            number("EVENT", "\"message\":\"x\",\"stream\":\"stdout\",\"seq\":-1"),
            &["no frame", "seq"],
        ),
        (
            "more than the window",
            ok.clone(),
            event(json!({"message": "x".repeat(2 << 20), "stream": "stdout"})),
            &["2097152 bytes of output"],
        ),
        ("another digest", with("sha256", json!("0".repeat(64))), String::new(), &["SHA-256"]),
        ("a digest that is none", with("sha256", json!(ESCAPES)), String::new(), &["SHA-256"]),
        (
            "another version",
            with("protocol", json!({"major": 2, "minor": 0})),
            String::new(),
            &["version 2.0"],
        ),
        ("no version", with("protocol", Value::Null), String::new(), &["does not say which version"]),
    ];
    for (what, ready, frames, words) in cases {
        let host = Host::that_says(&ready, &frames)?;
        let ended = host.exec().await.with_context(|| what.to_owned())?;
        eprintln!("{what}: {}", ended.stderr.trim_end());
        one_error(ended, words);
    }
    Ok(())
}

#[tokio::test]
async fn a_script_that_lies_is_given_up_with_one_error() -> Result<()> {
    let endless_line =
        "{ printf '{\"type\":\"DONE\",\"data\":\"'; head -c 60000000 /dev/zero | tr '\\0' x; }";
    let cases: &[(&str, String, &[&str])] = &[
        ("an endless line", format!("up; say ready; {endless_line}; wait_for_end"), &["without an end"]),
        ("an endless line before READY", format!("up; {endless_line}; wait_for_end"), &["printed"]),
        ("endless noise", "head -c 60000000 /dev/zero; wait_for_end".into(), &["printed"]),
        ("endless lines before READY", "up; yes noise | head -c 60000000; wait_for_end".into(), &["printed"]),
        (
            "a first line that never ends",
            "printf %s \"$marker\"; head -c 60000000 /dev/zero | tr '\\0' x".into(),
            &["printed"],
        ),
        ("a machine that is none", "echo \"$marker \u{1b}[31mLinux 1 raw -\"; wait_for_end".into(), &["31m"]),
        ("an end in the middle", "up; say ready | head -c 50".into(), &["exit status 0"]),
        // The marker cannot be guessed: without it there is a runner of the host's own at best, which gets nothing that is not signed.
        ("READY without the script", "say ready".into(), &["instead of a shell"]),
    ];
    for (what, script, words) in cases {
        let host = Host::new(&format!("{script}\n"), &[("ready", &frame("READY", &ready()))])?;
        let ended = host.exec().await.with_context(|| (*what).to_owned())?;
        eprintln!("{what}: {}", ended.stderr.trim_end());
        one_error(ended, words);
    }
    Ok(())
}

#[tokio::test]
async fn frames_about_other_commands_and_repeated_ends_change_nothing() -> Result<()> {
    let forged = |id: &str, code: i32| {
        let result = json!({"exit_code": code, "duration": 0.1, "stdout": "forged"});
        frame("DONE", &json!({"command_id": id, "result": result, "duration": 0.1}))
    };
    let said = |text: &str| event(json!({"message": text, "stream": "stdout"}));
    let frames = forged("c2", 7)
        + &forged("", 7)
        + &forged("C1", 7)
        + &frame("EVENT", &json!({"command_id": "c9", "message": "forged", "stream": "stdout"}))
        + &frame("CREDIT", &json!({"command_id": "c1", "stream": "stdin", "bytes": u64::MAX}))
        + &frame("CREDIT", &json!({"command_id": "c1", "stream": "stdin", "bytes": u64::MAX}))
        + &frame("PONG", &json!({"token": "never sent"}))
        + &event(
            json!({"message": "confirm?", "metadata": {"awaiting": "confirm", "port": "1", "seconds": "1"}}),
        )
        + &said("output\n")
        + &done()
        + &forged("c1", 7)
        + &said("forged\n")
        + &exit();
    let ended = Host::that_says(&ready(), &frames)?.exec().await?.ended_with(0).says(&["confirm?"]);
    assert_eq!((ended.text(), ended.stderr.lines().count()), ("output\n", 1), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn no_string_of_a_runner_reaches_a_terminal_as_it_is() -> Result<()> {
    let mut evil = ready();
    for key in ["version", "arch", "platform", "session", "nonce"] {
        evil[key] = json!(ESCAPES);
    }
    evil["host"] = json!({"hostname": ESCAPES, "os_id": ESCAPES, "os_version": ESCAPES, "kernel": ESCAPES, "boot_id": ESCAPES,
        "user": ESCAPES, "init": ESCAPES, "package_manager": ESCAPES, "container": ESCAPES});
    let error = |id: &str| {
        frame(
            "ERROR",
            &json!({"command_id": id, "code": ESCAPES, "message": ESCAPES, "retryable": false, "class": "permanent",
            "details": {ESCAPES: ESCAPES, "stdout": ESCAPES}}),
        )
    };
    let frames = event(json!({"message": ESCAPES, "level": "warn", "metadata": {ESCAPES: ESCAPES}}))
        + &event(json!({"message": ESCAPES, "progress": {"current": 1, "total": 2, "unit": ESCAPES}}))
        + &event(json!({"message": ESCAPES, "stream": "stdout"}))
        + &event(json!({"message": ESCAPES, "stream": "stderr"}))
        + &frame("EVENT", &json!({"command_id": ESCAPES, "message": ESCAPES}))
        + &error("")
        + &error("c1")
        + &exit();
    for options in ["", "--trace", "--json", "--json --trace"] {
        let host = Host::that_says(&evil, &frames)?;
        let line = format!(
            "NO_COLOR=1 SORTIE_RUNNERS={runners} {} exec {options} --via 'sh {runners}/host' -- true || true",
            program().display(),
            runners = host.directory.path().display()
        );
        let seen = at_a_terminal(&line, "never asked", &[]).await?;
        ensure!(seen.contains("owned"), "{options}: nothing was shown: {seen:?}");
        // Our own line of progress is taken away by these.
        let seen = seen.replace("\r\n", "\n").replace("\r\u{1b}[K", "").replace("\u{1b}[K", "");
        let ours = |c: char| c == '\n' || c == '\t' || c == '\r' && seen.contains("(1 of 2)");
        let bad = seen.chars().find(|c| c.is_control() && !ours(*c) || ('\u{202a}'..='\u{202e}').contains(c));
        ensure!(bad.is_none(), "{options}: {bad:?} in {seen:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_takes_neither_memory_nor_the_terminal() -> Result<()> {
    let refused = frame("ERROR", &json!({"code": "BUSY", "message": "x".repeat(100_000), "retryable": true}));
    let heavy = event(json!({"message": "", "metadata": {"key": "x".repeat(4 << 20)}}));
    let empty = event(json!({"message": "", "stream": "stdout", "metadata": {"key": "x".repeat(1000)}}));
    let end = done() + &exit();
    let texts = [
        ("ready", &*frame("READY", &ready())),
        ("refused", &refused),
        ("heavy", &heavy),
        ("empty", &empty),
        ("end", &end),
    ];
    // Half of what comes is of commands that are being looked at, and half of one that has ended.
    let script = "up; say ready; for n in $(seq 300); do say refused; say empty; done; for n in $(seq 60); do say heavy; done\n\
                  say end; wait_for_end\n";
    let ended = Host::new(script, &texts)?.exec().await?.ended_with(0);
    harmless(&ended);
    assert!(
        ended.stderr.lines().count() <= 100 && ended.stderr.len() < 100_000,
        "{} bytes",
        ended.stderr.len()
    );
    assert!(ended.stderr.contains("not shown"), "{}", ended.stderr);
    assert!(peak_kibibytes()? < 150 * 1024, "{} KiB", peak_kibibytes()?);
    Ok(())
}

/// The most memory that any program of this test took.
fn peak_kibibytes() -> Result<i64> {
    Ok(nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?.max_rss())
}

#[tokio::test]
async fn what_cannot_be_trusted_is_written_to_no_file() -> Result<()> {
    let content = "content";
    let checksum = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let read = |changes: Value| {
        let mut result = json!({"content": content, "size": 7, "mode": "0644", "owner": "root", "group": "root", "path": "/etc/cron.d/owned",
            "name": "../owned", "checksum": checksum, "truncated": false});
        if let (Some(result), Value::Object(changes)) = (result.as_object_mut(), changes) {
            result.extend(changes);
        }
        frame("DONE", &json!({"command_id": "c1", "result": result, "duration": 0.1}))
    };
    let cases = [
        ("a lying checksum", read(json!({"checksum": "0".repeat(64)})), false),
        ("no checksum", read(json!({"checksum": ""})), false),
        ("content that is no base64", read(json!({"encoding": "base64", "content": "!"})), false),
        ("a piece and no more", read(json!({"truncated": true, "size": u64::MAX})), false),
        ("names of other files", read(json!({})), true),
    ];
    for (what, frames, fine) in cases {
        let host = Host::that_says(&ready(), &(frames + &if fine { exit() } else { String::new() }))?;
        let goal = tempfile::tempdir()?;
        let mut call = host.call("get").arg("../../etc/passwd").arg(goal.path());
        if what == "a piece and no more" {
            call = call.args(["--timeout", "1", "--ttl", "1"]);
        }
        let ended = call.run().await.with_context(|| what.to_owned())?;
        eprintln!("{what}: {}", ended.stderr.trim_end());
        harmless(&ended);
        let files: Vec<PathBuf> =
            fs::read_dir(goal.path())?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
        if fine {
            assert_eq!((ended.status, files), (0, vec![goal.path().join("passwd")]), "{what}");
        } else {
            assert_ne!(ended.status, 0, "{what}");
            assert_eq!(files, Vec::<PathBuf>::new(), "{what}");
        }
    }
    Ok(())
}
