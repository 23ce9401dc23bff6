//! `sudoers_ensure` whose runner is killed: at each system call of it, one after the other, on a real host. What is in
//! force afterwards is the old rule or the new one, whole, and the next run cleans up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use sortie_tests::host::{Host, Kind, Lab, matrix};
use sortie_tests::{require_kind, require_programs, runner, within};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

const HEADER: &str = "# Managed by Sortie; changes made here are lost.\n";
const OLD: &str = "deploy ALL=(ALL:ALL) NOPASSWD: /usr/bin/id\n";
const NEW: &str = "deploy ALL=(ALL:ALL) NOPASSWD: /usr/bin/env\n";
const REFERENCE: &str = "deploy ALL=(NOPASSWD) ALL\n";

const OURS: &str = "sortie-deploy";
const THEIRS: &str = "froyo-deploy";
/// Where a rule is written before it is in force.
const TEMPORARY: &str = ".sortie-sudoers.tmp";

/// System calls of one kind beyond which a runner that still makes more is in a loop.
const MOST: u32 = 200;

/// A runner in the host, on a pipe.
struct Runner {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Its server, which runs the commands, as this machine sees it.
    server: i32,
}

impl Runner {
    async fn start(host: &Host) -> Result<Self> {
        let mut child = Command::new("nsenter")
            .args(["-t", &host.leader()?.to_string(), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--"])
            .args(["/root/runner", "--keep"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let mut runner = Self { child, stdout, server: 0 };
        let ready = runner.next().await?.context("no READY")?;
        let guardian = ready["data"]["pid"].as_i64().context("no pid")?;
        let processes = host.processes()?;
        let server = processes.iter().find(|process| i64::from(process.ppid) == guardian);
        runner.server = server.context("no server")?.machine_pid;
        Ok(runner)
    }

    async fn next(&mut self) -> Result<Option<Value>> {
        let mut line = String::new();
        within("a frame", self.stdout.read_line(&mut line)).await??;
        if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_str(&line)?)) }
    }

    /// Has it make the rule `params`; its answer, or nothing if it was killed before.
    async fn ask(mut self, params: &Value) -> Result<Option<Value>> {
        let frame = json!({"type": "CMD", "data": {"id": "c", "type": "sudoers_ensure", "timeout": 60, "params": params}});
        let mut stdin = self.child.stdin.take().context("stdin")?;
        // Fails only if it was killed before.
        let _ = stdin.write_all(format!("{frame}\n").as_bytes()).await;
        drop(stdin);
        let mut answer = None;
        while let Some(frame) = self.next().await? {
            if frame["type"] == "DONE" || frame["type"] == "ERROR" {
                answer = Some(frame);
            }
        }
        within("the end of the runner", self.child.wait()).await??;
        Ok(answer)
    }
}

/// strace(1) on the server and its threads; it lets go of what executes another program.
struct Tracer(Child);

impl Tracer {
    async fn attach(server: i32, args: &[&str]) -> Result<Self> {
        let mut child = Command::new("strace")
            .args(["-f", "-b", "execve", "-p", &server.to_string()])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stderr = BufReader::new(child.stderr.take().context("stderr")?);
        let mut line = String::new();
        within("strace", stderr.read_line(&mut line)).await??;
        ensure!(line.contains("attached"), "strace: {line}");
        tokio::spawn(async move {
            let mut rest = Vec::new();
            let _ = stderr.read_to_end(&mut rest).await;
        });
        Ok(Self(child))
    }

    async fn end(mut self) -> Result<()> {
        within("the end of strace", self.0.wait()).await??;
        Ok(())
    }
}

/// The rules below sudoers.d, by name; what else is there has no effect.
async fn rules(host: &Host) -> Result<BTreeMap<String, String>> {
    let directory = host.path("/etc/sudoers.d")?;
    let mut rules = BTreeMap::new();
    for entry in std::fs::read_dir(&directory)? {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        if name != "README" && name != TEMPORARY {
            rules.insert(name, std::fs::read_to_string(entry.path())?);
        }
    }
    Ok(rules)
}

fn state(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

async fn reset(host: &Host, files: &BTreeMap<String, String>) -> Result<()> {
    let directory = host.path("/etc/sudoers.d")?;
    for name in [OURS, THEIRS, TEMPORARY] {
        match std::fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    for (name, text) in files {
        let path = directory.join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o440))?;
    }
    Ok(())
}

/// Every system call that the command makes, by name.
async fn calls(host: &Host, params: &Value, log: &Path) -> Result<Vec<String>> {
    let runner = Runner::start(host).await?;
    let tracer = Tracer::attach(runner.server, &["-o", log.to_str().context("a path")?]).await?;
    let answer = runner.ask(params).await?.context("no answer")?;
    ensure!(answer["type"] == "DONE", "{answer}");
    tracer.end().await?;
    let text = std::fs::read_to_string(log)?;
    let name = |line: &str| {
        let call = line.split_whitespace().nth(1)?.split('(').next()?.to_owned();
        let is_name = !call.is_empty() && call.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        (line.contains('(') && is_name).then_some(call)
    };
    let mut calls: Vec<String> = text.lines().filter_map(name).collect();
    calls.sort();
    calls.dedup();
    Ok(calls)
}

/// Kills the runner at each call, from `before`; `allowed` are the states that may come of it, the last of them when it is not killed.
async fn kill_at_each_call(
    host: &Host,
    params: &Value,
    before: &BTreeMap<String, String>,
    allowed: &[BTreeMap<String, String>],
    log: &Path,
) -> Result<u32> {
    reset(host, before).await?;
    let calls = calls(host, params, log).await?;
    ensure!(calls.iter().any(|call| call.starts_with("rename") || call.starts_with("unlink")), "{calls:?}");
    let done = allowed.last().context("no state")?;
    assert_eq!(rules(host).await?, *done);
    let mut kills = 0;
    let mut seen = Vec::new();
    for call in &calls {
        for count in 1.. {
            if count > MOST {
                bail!("more than {MOST} calls of {call}");
            }
            reset(host, before).await?;
            let runner = Runner::start(host).await?;
            let inject = format!("inject={call}:signal=KILL:when={count}");
            let trace = format!("trace={call}");
            let tracer =
                Tracer::attach(runner.server, &["-o", "/dev/null", "-e", &trace, "-e", &inject]).await?;
            let answer = runner.ask(params).await?;
            tracer.end().await?;
            let after = rules(host).await?;
            assert!(allowed.contains(&after), "killed at {call} {count}: {after:?}");
            if answer.as_ref().is_some_and(|answer| answer["type"] == "DONE") {
                assert_eq!(after, *done, "{call} {count}");
            }
            if !seen.contains(&after) {
                let checked = host.exec(["visudo", "-c"]).await?;
                assert_eq!(checked.status, 0, "killed at {call} {count}: {checked:?}");
                seen.push(after);
            }
            if answer.is_some() {
                break;
            }
            kills += 1;
            // Whatever the killed one left, the next run is not hindered by it and takes it away.
            if host.path(&format!("/etc/sudoers.d/{TEMPORARY}"))?.exists() {
                let answer = Runner::start(host).await?.ask(params).await?.context("no answer")?;
                assert_eq!(answer["type"], "DONE", "after {call} {count}: {answer}");
                assert_eq!(rules(host).await?, *done);
                assert!(!host.path(&format!("/etc/sudoers.d/{TEMPORARY}"))?.exists(), "after {call} {count}");
            }
        }
    }
    // Kills before and after each step were among them.
    assert_eq!(seen.len(), allowed.len(), "{seen:?}");
    Ok(kills)
}

async fn host(lab: &Lab) -> Result<Host> {
    let host = lab.host(Kind::Debian12).start().await?;
    let copied = Command::new("cp").arg(runner::binary()?).arg(host.path("/root/runner")?).status().await?;
    ensure!(copied.success(), "copying the runner failed");
    Ok(host)
}

fn log(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("strace")
}

#[tokio::test]
async fn killed_at_any_system_call_of_an_update_the_old_rule_or_the_new_one_is_in_force() -> Result<()> {
    require_kind!(Kind::Debian12);
    require_programs!("strace", "nsenter");
    let (lab, dir) = (Lab::start().await?, tempfile::tempdir()?);
    let host = host(&lab).await?;
    let (old, new) = (format!("{HEADER}{OLD}"), format!("{HEADER}{NEW}"));
    let before = state(&[(OURS, &old)]);
    let params =
        json!({"user": "deploy", "state": "present", "no_passwd": true, "commands": ["/usr/bin/env"]});
    let allowed = [before.clone(), state(&[(OURS, &new)])];
    let kills = kill_at_each_call(&host, &params, &before, &allowed, &log(&dir)).await?;
    matrix::record(
        "sudoers_ensure",
        Kind::Debian12,
        "SIGKILL at each of its system calls",
        &format!("{kills} times old or new"),
    )?;
    assert!(kills > 50, "{kills}");
    Ok(())
}

#[tokio::test]
async fn killed_at_any_system_call_a_takeover_and_a_removal_are_whole_or_not_begun() -> Result<()> {
    require_kind!(Kind::Debian12);
    require_programs!("strace", "nsenter");
    let (lab, dir) = (Lab::start().await?, tempfile::tempdir()?);
    let host = host(&lab).await?;
    let new = format!("{HEADER}{NEW}");
    let before = state(&[(THEIRS, REFERENCE)]);
    let params =
        json!({"user": "deploy", "state": "present", "no_passwd": true, "commands": ["/usr/bin/env"]});
    let allowed = [before.clone(), state(&[(THEIRS, &new)]), state(&[(OURS, &new)])];
    kill_at_each_call(&host, &params, &before, &allowed, &log(&dir)).await?;
    let before = state(&[(OURS, &new)]);
    let params = json!({"user": "deploy", "state": "absent"});
    kill_at_each_call(&host, &params, &before, &[before.clone(), state(&[])], &log(&dir)).await?;
    Ok(())
}
