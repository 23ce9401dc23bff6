//! A session with the runner under test: the frames that every suite sends and the answers it looks at.
//! Knows the shape of frames, as a client of the reference would, and nothing of how the runner does its work.

// Each suite is a program of its own and uses its part of this; values made in place by `json!` are handed over whole.
#![allow(dead_code, clippy::needless_pass_by_value)]

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use sortie_tests::eventually;
use sortie_tests::process::Process;
use sortie_tests::runner::RunnerProcess;

/// A runner that has said READY.
pub(crate) struct Session {
    runner: RunnerProcess,
    pub(crate) ready: Value,
    count: u32,
}

impl Deref for Session {
    type Target = RunnerProcess;

    fn deref(&self) -> &RunnerProcess {
        &self.runner
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut RunnerProcess {
        &mut self.runner
    }
}

/// A CMD frame with a generous timeout.
pub(crate) fn cmd(id: &str, kind: &str, params: Value) -> Value {
    json!({"type": "CMD", "data": {"id": id, "type": kind, "timeout": 120, "params": params}})
}

/// A CMD frame for a line of shell whose output is captured.
pub(crate) fn shell(id: &str, line: &str) -> Value {
    cmd(id, "exec", json!({"command": line, "capture_out": true, "capture_err": true}))
}

/// A CMD frame for a line of shell whose output is streamed.
pub(crate) fn stream(id: &str, line: &str) -> Value {
    cmd(id, "exec", json!({"command": line, "stream_lines": true}))
}

/// A CMD frame with more fields of its own, such as `window`.
pub(crate) fn with(mut frame: Value, more: Value) -> Value {
    if let (Some(data), Value::Object(more)) = (frame["data"].as_object_mut(), more) {
        data.extend(more);
    }
    frame
}

impl Session {
    /// Starts a runner and reads its READY.
    pub(crate) async fn start(args: &[&str]) -> Result<Self> {
        Self::of(RunnerProcess::builder().args(args).start()?).await
    }

    /// Reads the READY of a runner that was started.
    pub(crate) async fn of(mut runner: RunnerProcess) -> Result<Self> {
        let ready = runner.next().await?.context("no READY")?;
        ensure!(ready["type"] == "READY", "first came {ready}");
        Ok(Self { runner, ready, count: 0 })
    }

    /// An id that this session has not used.
    pub(crate) fn next_id(&mut self) -> String {
        self.count += 1;
        format!("n{}", self.count)
    }

    /// Sends a frame and waits for the DONE or ERROR of its command.
    pub(crate) async fn ask(&mut self, frame: &Value) -> Result<Value> {
        self.send(frame).await?;
        let id = frame["data"]["id"].as_str().context("a frame without id")?.to_owned();
        self.answer(&id).await
    }

    /// Runs a command that has to be DONE; its result.
    pub(crate) async fn done(&mut self, kind: &str, params: Value) -> Result<Value> {
        let id = self.next_id();
        let mut answer = self.ask(&cmd(&id, kind, params)).await?;
        ensure!(answer["type"] == "DONE", "{answer}");
        Ok(answer["data"]["result"].take())
    }

    /// Runs a command that has to end in an ERROR of this code; what the ERROR says.
    pub(crate) async fn error(&mut self, code: &str, kind: &str, params: Value) -> Result<Value> {
        let id = self.next_id();
        self.failed(code, &cmd(&id, kind, params)).await
    }

    /// Sends a CMD that has to end in an ERROR of this code; what the ERROR says.
    pub(crate) async fn failed(&mut self, code: &str, frame: &Value) -> Result<Value> {
        let mut answer = self.ask(frame).await?;
        ensure!(answer["type"] == "ERROR" && answer["data"]["code"] == code, "not {code}: {answer}");
        Ok(answer["data"].take())
    }

    /// Runs a line of shell that has to be DONE; its result with what it said.
    pub(crate) async fn sh(&mut self, line: &str) -> Result<Value> {
        self.done("exec", json!({"command": line, "capture_out": true, "capture_err": true})).await
    }

    /// The next frame, which has to be of this type.
    pub(crate) async fn frame(&mut self, kind: &str) -> Result<Value> {
        let frame = self.next().await?.context("the output ended")?;
        ensure!(frame["type"] == kind, "not {kind}: {frame}");
        Ok(frame)
    }

    /// The first line that a streamed command says, as a number: mostly a pid.
    pub(crate) async fn number(&mut self, id: &str) -> Result<i32> {
        let event = self
            .expect_where("an EVENT", |frame| frame["type"] == "EVENT" && frame["data"]["command_id"] == id)
            .await?;
        let text = event["data"]["message"].as_str().unwrap_or_default();
        text.trim().parse().with_context(|| format!("no number: {event}"))
    }

    /// That it still serves, and has nothing else to say.
    pub(crate) async fn is_in_step(&mut self) -> Result<()> {
        let id = self.next_id();
        self.send(&shell(&id, "echo alive")).await?;
        let done = self.frame("DONE").await?;
        ensure!(done["data"]["command_id"] == id && done["data"]["result"]["stdout"] == "alive\n", "{done}");
        Ok(())
    }

    /// Ends its input and waits for its end: EXIT for this reason, the exit status that goes with it, nothing left.
    pub(crate) async fn finish(mut self) -> Result<()> {
        self.close_stdin();
        self.leaves("stdin_closed", 0).await?;
        self.quiet().await
    }

    /// Waits for EXIT with this reason, the end of output, and the exit status.
    pub(crate) async fn leaves(&mut self, reason: &str, status: i32) -> Result<Value> {
        let exit = self.expect("EXIT").await?;
        ensure!(exit["data"]["reason"] == reason && exit["data"]["exit_code"] == status, "{exit}");
        if let Some(more) = self.next().await? {
            bail!("after EXIT came {more}");
        }
        let code = self.exit_code().await?;
        ensure!(code == status, "exit status {code}");
        Ok(exit)
    }
}

/// Whether a process runs: neither gone nor dead.
pub(crate) fn runs(pid: i32) -> bool {
    Process::read(pid).is_some_and(|process| !process.is_zombie())
}

/// Waits until the processes have ended.
pub(crate) async fn ended(pids: &[i32]) -> Result<()> {
    eventually("the end of the tree", || {
        let left: Vec<_> = pids
            .iter()
            .filter_map(|pid| Process::read(*pid))
            .filter(|process| !process.is_zombie())
            .collect();
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
    .await
}

/// Waits until a file holds so many lines that are numbers; the numbers.
pub(crate) async fn pids(file: &Path, count: usize) -> Result<Vec<i32>> {
    eventually("the pids", || {
        let text = std::fs::read_to_string(file)?;
        let pids: Vec<i32> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
        ensure!(pids.len() >= count && text.ends_with('\n'), "{text:?}");
        Ok(pids)
    })
    .await
}

/// A directory of the test's own, and paths in it.
pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(tempfile::Builder::new().prefix("sortie-suite-").tempdir()?))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As a JSON string or a word of shell: the names are plain.
    pub(crate) fn text(&self, name: &str) -> String {
        self.at(name).to_string_lossy().into_owned()
    }

    /// Writes a file; its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<String> {
        std::fs::write(self.at(name), content)?;
        Ok(self.text(name))
    }

    /// The names in it, sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = std::fs::read_dir(self.path())?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        names.sort();
        Ok(names)
    }
}

/// A line of `/proc/PID/status` in KiB, such as `VmHWM`.
pub(crate) fn status_kib(pid: i32, key: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let value = line.and_then(|line| line.split_whitespace().next()).context("no such line")?;
    Ok(value.parse()?)
}

/// The process that serves: the runner's child of that name.
pub(crate) fn server_of(runner: &RunnerProcess) -> Result<i32> {
    named(runner, "sortie-server")
}

/// The first descendant of this name.
pub(crate) fn named(runner: &RunnerProcess, name: &str) -> Result<i32> {
    let found = runner.descendants();
    let process = found.iter().find(|process| process.name == name);
    Ok(process.with_context(|| format!("no {name} in {found:?}"))?.pid)
}
