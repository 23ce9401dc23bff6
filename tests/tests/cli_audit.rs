//! The audit log: what the command writes into it, what it does when it cannot, and what `sortie audit` finds in a log that is
//! not as it was written.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod cli_support;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cli_support::{Ended, Sortie, name, on, sortie};
use nix::sys::signal::Signal;
use russh::keys::HashAlg;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sortie_tests::embedded::Embedded;
use sortie_tests::keys::KeyPair;
use tempfile::TempDir;

/// What must not be in a log, whatever it came by.
const PLANTED: &str = "hunter2-planted";

struct Log {
    directory: TempDir,
}

impl Log {
    fn new() -> Result<Self> {
        Ok(Self { directory: TempDir::new()? })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("audit.log")
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.bytes()).unwrap().lines().map(str::to_owned).collect()
    }

    fn records(&self) -> Vec<Value> {
        self.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The records of this kind.
    fn of_kind(&self, kind: &str) -> Vec<Value> {
        self.records().into_iter().filter(|record| record["record"] == kind).collect()
    }

    /// The same lines in another order, or fewer of them, as a file of their own.
    fn copy(&self, lines: &[String]) -> Result<PathBuf> {
        let path = self.directory.path().join("copy.log");
        fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
        Ok(path)
    }

    /// Two sessions of one command each.
    async fn of_two_sessions(host: &Embedded) -> Result<Self> {
        let log = Self::new()?;
        for _ in 0..2 {
            audited(host, &log, "exec").args(["--", "true"]).run().await?.fine();
        }
        Ok(log)
    }
}

fn audited(host: &Embedded, log: &Log, verb: &str) -> Sortie {
    on(host.access(), verb).arg("--audit").arg(log.path())
}

async fn verify(log: &Path, more: &[&str]) -> Result<Ended> {
    sortie("audit").arg("verify").arg(log).args(more).run().await
}

/// What is found in a log: lines and kinds of problems.
async fn problems(log: &Path, more: &[&str]) -> Result<Vec<(u64, String)>> {
    let ended = verify(log, &[&["--json"], more].concat()).await?;
    let mut events = ended.events();
    let last = events.pop().unwrap();
    let sound = events.iter().all(|finding| finding["note"] == true);
    assert_eq!((last["event"].as_str(), last["sound"].as_bool()), (Some("audit_verified"), Some(sound)));
    assert_eq!(ended.status, i32::from(!sound), "{ended:?}");
    let found = events.iter().filter(|finding| finding["note"] == false);
    Ok(found
        .map(|finding| (finding["line"].as_u64().unwrap(), finding["problem"].as_str().unwrap().to_owned()))
        .collect())
}

async fn head(log: &Path) -> Result<String> {
    let ended = verify(log, &["--json"]).await?;
    Ok(ended.events().last().unwrap()["head"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_session_says_who_did_what_where_by_which_host_key_and_what_came_of_it() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::new()?;
    let script = "printf out; printf errors >&2; exit 3";
    audited(&host, &log, "sh").arg(script).run().await?.ended_with(3);
    let records = log.records();
    let kinds: Vec<&str> = records.iter().map(|record| record["record"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["log", "session", "login", "command", "ready", "result", "end"]);
    let [_, session, login, command, ready, result, end] = &records[..] else { panic!("{records:?}") };

    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective())?.unwrap();
    assert_eq!(session["who"]["user"], user.name);
    assert_eq!(session["who"]["uid"], user.uid.as_raw());
    assert_eq!(session["who"]["program"], "sortie sh");
    let access = host.access();
    let way = format!("ssh {}@127.0.0.1 port {}", access.user, access.port);
    assert_eq!(session["way"], way);
    let fingerprint = access.host_key().public().fingerprint(HashAlg::Sha256).to_string();
    let entry = format!("[127.0.0.1]:{}", access.port);
    let key = json!([{"host": entry, "algorithm": "ssh-ed25519", "fingerprint": fingerprint}]);
    assert_eq!(login["host_keys"], key);
    assert_eq!(
        (&command["command"], &command["host_key"], &command["who"]),
        (&json!("exec"), &json!(fingerprint), &json!(user.name))
    );
    assert_eq!(command["params"]["argv"], json!(["/bin/sh", "-c", script]));
    assert_eq!(ready["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(
        (&result["id"], &result["outcome"], &result["exit_code"]),
        (&command["id"], &json!("done"), &json!(3))
    );
    assert_eq!((&result["stdout"]["bytes"], &result["stderr"]["bytes"]), (&json!(3), &json!(6)));
    for (stream, text) in [("stdout", "out"), ("stderr", "errors")] {
        let digest: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(result[stream]["sha256"], digest);
    }
    assert_eq!(
        (&end["how"], &end["commands"], &end["unanswered"]),
        (&json!("closed"), &json!(1), &Value::Null)
    );
    // All but the first line are of the one session, and in the order in which they were written.
    assert!(records[1..].iter().all(|record| record["session"] == session["session"]));
    assert_eq!(problems(&log.path(), &[]).await?, []);
    Ok(())
}

#[tokio::test]
async fn no_secret_of_any_kind_is_in_the_log() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::new()?;
    let secret = log.directory.path().join("secret");
    fs::write(&secret, format!("{PLANTED}\n"))?;
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let secret = secret.to_str().unwrap();
    // As standard input, as a variable, as content, as a line, as the password of a method that there is not.
    audited(&host, &log, "sh").arg("cat >read").run_with(PLANTED.as_bytes()).await?.fine();
    let variable = format!("TOKEN={PLANTED}");
    audited(&host, &log, "sh").args(["-e", &variable, "printf %s \"$TOKEN\" >given"]).run().await?.fine();
    let target = host.home().join("target");
    let target = target.to_str().unwrap();
    audited(&host, &log, "put").args([secret, target]).run().await?.ended_with(0);
    let edit = sortie("file").arg("line").args(["-H", &name(host.access())]).login(host.access());
    let edit = edit.arg("--audit").arg(log.path());
    edit.args(["--sensitive", target, "-"])
        .run_with(format!("more {PLANTED}\n").as_bytes())
        .await?
        .ended_with(0);
    audited(&host, &log, "sh")
        .args(["--become=nobody", "--become-method", "doas", "--become-pass-file", secret, "id"])
        .run()
        .await?
        .ended_with(255);
    // All of it got where it was to go.
    for (file, content) in [("read", PLANTED), ("given", PLANTED), ("target", PLANTED)] {
        assert!(fs::read_to_string(host.home().join(file))?.contains(content), "{file}");
    }
    assert!(fs::read_to_string(target)?.contains(&format!("more {PLANTED}")));
    let text = String::from_utf8(log.bytes())?;
    assert!(!text.contains(PLANTED), "{text}");
    let commands = log.of_kind("command");
    assert_eq!(commands[1]["params"]["env"]["TOKEN"], "[redacted]");
    assert_eq!(commands.last().unwrap()["become"], json!({"user": "nobody", "method": "doas"}));
    let shown = sortie("audit").arg("show").arg(log.path()).run().await?.ended_with(0);
    assert!(shown.text().contains("as nobody by doas") && !shown.text().contains(PLANTED));
    Ok(())
}

#[tokio::test]
async fn a_changed_byte_is_found_and_its_line_named() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::of_two_sessions(&host).await?;
    assert_eq!(problems(&log.path(), &[]).await?, []);
    let lines = log.lines();
    for (at, line) in lines.iter().enumerate() {
        let mut changed = lines.clone();
        // One digit of a time, the same length, still JSON.
        changed[at] = match line.split_once("Z\"") {
            Some((before, after)) => {
                let digit = if before.ends_with('7') { '8' } else { '7' };
                format!("{}{digit}Z\"{after}", &before[..before.len() - 1])
            }
            None => unreachable!("every line has a time"),
        };
        let copy = log.copy(&changed)?;
        assert_eq!(problems(&copy, &[]).await?, [(at as u64 + 1, "changed".to_owned())], "{at}");
    }
    let copy = log.copy(&[&lines[..2], &[lines[2].replace("ed25519", "ed25518")], &lines[3..]].concat())?;
    verify(&copy, &[]).await?.ended_with(1).says(&["line 3: it was changed"]);
    Ok(())
}

#[tokio::test]
async fn a_removed_line_and_two_swapped_ones_are_found() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::of_two_sessions(&host).await?;
    let lines = log.lines();
    let mut removed = lines.clone();
    removed.remove(5);
    verify(&log.copy(&removed)?, &[]).await?.ended_with(1).says(&["line 6: 1 missing before it"]);
    let mut swapped = lines.clone();
    swapped.swap(4, 5);
    let found = problems(&log.copy(&swapped)?, &[]).await?;
    assert!(found.contains(&(6, "reordered".into())), "{found:?}");
    // A whole session taken out leaves a hole.
    let found = problems(&log.copy(&[&lines[..1], &lines[7..]].concat())?, &[]).await?;
    assert_eq!(found, [(2, "missing".to_owned())]);
    Ok(())
}

#[tokio::test]
async fn a_cut_tail_is_found_against_the_head_that_was_kept() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::of_two_sessions(&host).await?;
    let kept = head(&log.path()).await?;
    let cut = log.copy(&log.lines()[..7])?;
    assert_eq!(problems(&cut, &[]).await?, []);
    assert_eq!(problems(&cut, &["--head", &kept]).await?, [(7, "head".to_owned())]);
    verify(&cut, &["--head", &kept]).await?.ended_with(1).says(&["cut off"]);
    // A log that has grown since still has what was kept.
    audited(&host, &log, "exec").args(["--", "true"]).run().await?.fine();
    let ended = verify(&log.path(), &["--head", &kept]).await?.fine();
    assert!(ended.text().contains("sound: 19 records, 3 sessions, and the head that was kept"), "{ended:?}");
    verify(&log.path(), &["--head", "abc"]).await?.ended_with(2).says(&["64 hexadecimal digits"]);
    Ok(())
}

#[tokio::test]
async fn a_session_whose_process_was_killed_has_no_end_and_is_named() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::new()?;
    let mut started = audited(&host, &log, "sh").arg("echo begun; sleep 1000").start()?;
    assert_eq!(started.line().await?, "begun\n");
    started.signal(Signal::SIGKILL)?;
    started.end().await?.ended_with(128 + 9);
    // What it had begun is on record all the same.
    assert_eq!(log.of_kind("command")[0]["params"]["argv"][2], "echo begun; sleep 1000");
    assert_eq!(problems(&log.path(), &[]).await?, [(2, "no_end".to_owned())]);
    assert_eq!(problems(&log.path(), &["--allow-open"]).await?, []);
    // The next one goes on.
    audited(&host, &log, "exec").args(["--", "true"]).run().await?.fine();
    assert_eq!(problems(&log.path(), &[]).await?, [(2, "no_end".to_owned())]);
    host.quiet().await
}

#[tokio::test]
async fn a_session_that_the_user_breaks_off_has_its_end() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::new()?;
    let mut started = audited(&host, &log, "sh").arg("echo begun; sleep 1000").start()?;
    assert_eq!(started.line().await?, "begun\n");
    started.signal(Signal::SIGINT)?;
    started.end().await?.ended_with(130);
    assert_eq!(problems(&log.path(), &[]).await?, []);
    let result = &log.of_kind("result")[0];
    assert_eq!((&result["outcome"], &result["code"]), (&json!("error"), &json!("CANCELLED")));
    host.quiet().await
}

#[tokio::test]
async fn a_host_that_let_nobody_in_is_on_record_and_so_is_why() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::new()?;
    let other = KeyPair::generate()?.known_hosts_line("127.0.0.1", host.access().port)?;
    fs::write(&host.access().known_hosts, other + "\n")?;
    audited(&host, &log, "exec").args(["--", "true"]).run().await?.ended_with(255);
    let kinds: Vec<Value> = log.records().iter().map(|record| record["record"].clone()).collect();
    // A command that was never to be sent is not there.
    assert_eq!(kinds, ["log", "session", "end"]);
    let end = &log.of_kind("end")[0];
    assert_eq!((&end["how"], &end["commands"]), (&json!("host_key"), &json!(0)));
    assert!(end["reason"].as_str().unwrap().contains("HAS CHANGED"), "{end}");
    assert_eq!(problems(&log.path(), &[]).await?, []);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_run() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::new()?;
    let ran = host.home().join("ran");
    let touch = |log: &Path| on(host.access(), "exec").arg("--audit").arg(log).args(["--", "touch", "ran"]);
    // No log at all, another file, one that others may write to, one that was changed.
    fs::write(log.path(), "# notes\n")?;
    for (file, words) in [
        (log.directory.path().to_owned(), "cannot be opened"),
        (log.directory.path().join("no/such"), "cannot be opened"),
        ("/dev/null".into(), "no regular file"),
        (log.path(), "is no audit log"),
    ] {
        let ended = touch(&file).run().await?.ended_with(255);
        ended.says(&["audit log", file.to_str().unwrap(), words, "nothing was run"]);
    }
    assert_eq!(fs::read(log.path())?, b"# notes\n");
    fs::write(log.path(), "")?;
    fs::set_permissions(log.path(), std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    touch(&log.path()).run().await?.ended_with(255).says(&["others may write to it"]);
    fs::remove_file(log.path())?;
    touch(&log.path()).run().await?.fine();
    fs::remove_file(&ran)?;
    let changed = String::from_utf8(log.bytes())?.replace("\"commands\":1", "\"commands\":0");
    fs::write(log.path(), changed)?;
    touch(&log.path()).run().await?.ended_with(255).says(&["was changed", "audit verify"]);
    assert!(!ran.exists());
    Ok(())
}

/// Starts the program with a limit on the size of files, in blocks of 512 bytes, that fails writes instead of ending it.
fn with_file_limit(host: &Embedded, log: &Log, blocks: u32, script: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("sh");
    let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    command.args(["-c", &limited, "sh"]).arg(cli_support::program());
    let access = host.access();
    command.args(["sh", "-F", "none", "--batch", "-H", &name(access), "-i"]).arg(&access.identity);
    command.arg("--known-hosts").arg(&access.known_hosts).arg("--audit").arg(log.path()).arg(script);
    command.env("SORTIE_RUNNERS", sortie_tests::runner::directory().unwrap()).env("HOME", "/nonexistent");
    command.stdin(std::process::Stdio::null());
    command
}

#[tokio::test]
async fn a_disk_that_fills_up_stops_the_session_at_the_next_record() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let ran = host.home().join("ran");
    // Full at once: no connection is made. Full after the first record: the host let us in, and was sent nothing.
    for blocks in [0, 1, 2] {
        let log = Log::new()?;
        let output = with_file_limit(&host, &log, blocks, "touch ran").output().await?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(255), "{blocks}: {stderr}");
        assert!(stderr.contains("cannot be written: File too large"), "{blocks}: {stderr}");
        assert!(stderr.contains("what cannot be recorded is not run"), "{blocks}: {stderr}");
        assert!(!ran.exists(), "{blocks}");
        // What was begun to be written was taken back.
        if !log.bytes().is_empty() {
            let found = problems(&log.path(), &["--allow-open"]).await?;
            assert_eq!(found, [], "{blocks}");
        }
    }
    host.quiet().await
}

#[tokio::test]
async fn a_torn_last_line_is_named_and_the_log_goes_on() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::of_two_sessions(&host).await?;
    fs::OpenOptions::new().append(true).open(log.path())?.write_all(b"{\"seq\":14,\"time\":\"20")?;
    verify(&log.path(), &[]).await?.ended_with(1).says(&["line 14: torn: 20 bytes"]);
    audited(&host, &log, "exec").args(["--", "true"]).run().await?.fine();
    let ended = verify(&log.path(), &[]).await?.ended_with(0);
    assert!(ended.stderr.contains("line 14: torn: 20 bytes, named by line 15"), "{ended:?}");
    let torn = log.lines()[14].clone();
    assert!(torn.contains("\"record\":\"torn\",\"bytes\":20"), "{torn}");
    Ok(())
}

#[tokio::test]
async fn processes_that_write_at_once_make_one_chain() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::new()?;
    let started: Vec<_> = (0..6)
        .map(|n| audited(&host, &log, "sh").arg(format!("exit {n}")).start())
        .collect::<Result<Vec<_>>>()?;
    for (n, process) in started.into_iter().enumerate() {
        process.end().await?.ended_with(i32::try_from(n)?);
    }
    assert_eq!(problems(&log.path(), &[]).await?, []);
    let sessions = log.of_kind("session");
    let mut pids: Vec<_> = sessions.iter().map(|session| session["who"]["pid"].as_u64()).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!((sessions.len(), pids.len(), log.of_kind("end").len()), (6, 6, 6));
    Ok(())
}

#[tokio::test]
async fn frames_that_another_program_writes_are_recorded_on_their_way() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::new()?;
    let frame = |id: &str, params: Value| {
        json!({"type": "CMD", "data": {"id": id, "type": "exec", "timeout": 30, "params": params}})
            .to_string()
    };
    let mut frames = frame("a", json!({"command": "echo hi; exit 4", "capture_out": true, "stdin": PLANTED}));
    frames += "\nnonsense\n";
    // The same id again, as the reference allows, and the last line without its newline.
    frames += &(frame("a", json!({"argv": ["no-such-program"]})) + "\n");
    frames += &frame("last", json!({"command": "true"}));
    let pipe = sortie("pipe").login(host.access()).arg("--audit").arg(log.path()).arg(name(host.access()));
    let plain = sortie("pipe").login(host.access()).arg(name(host.access()));
    let (ended, plain) = (pipe.run_with(frames.as_bytes()).await?, plain.run_with(frames.as_bytes()).await?);
    // Nothing is different for the program itself.
    let types = |ended: &Ended| -> Vec<Value> { ended.events().iter().map(|f| f["type"].clone()).collect() };
    assert_eq!((ended.status, types(&ended)), (plain.status, types(&plain)));
    let commands = log.of_kind("command");
    let ids: Vec<_> = commands.iter().map(|command| command["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["a", "a", "last"]);
    let results: Vec<_> = log
        .of_kind("result")
        .iter()
        .map(|result| (result["outcome"].clone(), result["exit_code"].clone()))
        .collect();
    assert_eq!(
        results,
        [(json!("done"), json!(4)), (json!("error"), Value::Null), (json!("done"), json!(0))]
    );
    assert!(!String::from_utf8(log.bytes())?.contains(PLANTED));
    assert_eq!(log.of_kind("end")[0]["how"], "closed");
    assert_eq!(problems(&log.path(), &[]).await?, []);
    Ok(())
}

#[tokio::test]
async fn every_host_and_every_step_of_a_list_is_recorded_and_a_sensitive_step_by_its_program_alone()
-> Result<()> {
    let (one, two) = (Embedded::builder().start().await?, Embedded::builder().start().await?);
    let log = Log::new()?;
    let known = log.directory.path().join("known_hosts");
    let keys = [&one, &two].map(|host| fs::read_to_string(&host.access().known_hosts).unwrap());
    fs::write(&known, keys.concat())?;
    let list = log.directory.path().join("list.yaml");
    let steps = format!(
        "steps:\n- {{id: open, type: exec, params: {{argv: [echo, open]}}}}\n\
         - {{id: withheld, type: exec, sensitive: true, params: {{argv: [echo, {PLANTED}]}}}}\n"
    );
    fs::write(&list, steps)?;
    let mut call = sortie("apply").args(["-F", "none", "--batch", "--known-hosts"]).arg(&known);
    for host in [&one, &two] {
        call = call.arg("-i").arg(&host.access().identity).args(["-H", &name(host.access())]);
    }
    call.arg("--audit").arg(log.path()).arg(&list).run().await?.ended_with(0);
    assert_eq!(log.of_kind("session").len(), 2);
    let mut arguments: Vec<Value> =
        log.of_kind("command").iter().map(|command| command["params"]["argv"].clone()).collect();
    arguments.sort_by_key(Value::to_string);
    let (open, withheld) = (json!(["echo", "open"]), json!(["echo", "[redacted]"]));
    assert_eq!(arguments, [withheld.clone(), withheld, open.clone(), open]);
    for result in log.of_kind("result") {
        // A digest of what is secret could be guessed at.
        let told = result["result_sha256"].is_string();
        let step = log
            .of_kind("command")
            .into_iter()
            .find(|command| (&command["session"], &command["id"]) == (&result["session"], &result["id"]));
        assert_eq!(told, step.unwrap()["params"]["argv"][1] == "open", "{result}");
    }
    assert_eq!(problems(&log.path(), &[]).await?, []);
    Ok(())
}

#[tokio::test]
async fn the_environment_names_the_log_and_the_command_line_counts_more() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let (log, other) = (Log::new()?, Log::new()?);
    let call = || on(host.access(), "exec").env("SORTIE_AUDIT", log.path());
    call().args(["--", "true"]).run().await?.fine();
    call().arg("--audit").arg(other.path()).args(["--", "true"]).run().await?.fine();
    call().args(["--audit", "none", "--", "true"]).run().await?.fine();
    assert_eq!((log.of_kind("session").len(), other.of_kind("session").len()), (1, 1));
    sortie("audit").arg("verify").env("SORTIE_AUDIT", log.path()).run().await?.fine();
    Ok(())
}

#[tokio::test]
async fn a_log_is_shown_in_words_by_host_and_session_and_never_drives_a_terminal() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::new()?;
    audited(&host, &log, "exec").args(["--", "printf", "\x1b[31m\u{202e}red"]).run().await?.fine();
    audited(&host, &log, "exec").args(["--", "true"]).run().await?.fine();
    let show = |more: &[&str]| sortie("audit").arg("show").arg(log.path()).args(more).run();
    let all = show(&[]).await?.fine();
    assert!(all.text().contains("asks for exec, within 300 s: [\"printf\","), "{}", all.text());
    assert!(all.text().contains("exit status 0"));
    assert!(all.text().chars().all(|c| c == '\n' || !(c.is_control() || c == '\u{202e}')), "{}", all.text());
    let session = log.of_kind("session")[1]["session"].as_str().unwrap().to_owned();
    let one = show(&["--session", &session[..16], "-H", "127.0.0.1", "--json"]).await?.fine();
    assert!(!one.events().is_empty() && one.events().iter().all(|event| event["session"] == session));
    assert!(show(&["-H", "another"]).await?.fine().stdout.is_empty());
    let mut lines = log.lines();
    lines.swap(1, 2);
    sortie("audit")
        .arg("show")
        .arg(log.copy(&lines)?)
        .run()
        .await?
        .ended_with(1)
        .says(&["not as it was written"]);
    Ok(())
}

#[tokio::test]
async fn a_log_can_be_turned_over_while_a_session_goes_on() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let log = Log::new()?;
    let mut started = audited(&host, &log, "sh").arg("echo begun; cat").piped().start()?;
    assert_eq!(started.line().await?, "begun\n");
    // As logrotate(8) does it: what is open stays with the old file, what begins takes the new one.
    let old = log.directory.path().join("audit.log.1");
    fs::rename(log.path(), &old)?;
    audited(&host, &log, "exec").args(["--", "true"]).run().await?.fine();
    drop(started.stdin.take());
    started.end().await?.fine();
    for file in [&old, &log.path()] {
        assert_eq!(problems(file, &[]).await?, [], "{}", file.display());
    }
    host.quiet().await
}
