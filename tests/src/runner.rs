//! A runner binary under test, on a pipe: started as a client starts it, spoken to in lines and raw bytes, its frames
//! read as plain JSON. It knows that frames are lines, and nothing of what is in them.
//!
//! Nothing is read unless a test asks for a frame, so a test that does not read holds the runner back as a slow client
//! would.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use crate::process::{self, Mark, Process};
use crate::within;

/// The environment variable that names the directory of the runners under test.
pub const RUNNERS: &str = "SORTIE_TEST_RUNNERS";

/// The directory of the runners under test: files named `sortie-runner-TARGET`.
///
/// # Errors
/// When [`RUNNERS`] is not set; the error says how to get them.
pub fn directory() -> Result<PathBuf> {
    let dir = std::env::var_os(RUNNERS);
    let dir =
        dir.with_context(|| format!("{RUNNERS} names no directory of runners: use cargo xtask test"))?;
    Ok(dir.into())
}

/// The runner under test for this machine: a musl one, else a static one of glibc.
///
/// # Errors
/// When [`directory`] fails or has none for this machine.
pub fn binary() -> Result<PathBuf> {
    let dir = directory()?;
    let arch = std::env::consts::ARCH;
    let mut targets = vec![format!("{arch}-unknown-linux-musl"), format!("{arch}-unknown-linux-gnu")];
    match arch {
        "arm" => targets.insert(0, "armv7-unknown-linux-musleabihf".to_owned()),
        "riscv64" => targets.insert(0, "riscv64gc-unknown-linux-musl".to_owned()),
        _ => {}
    }
    let mut paths = targets.iter().map(|target| dir.join(format!("sortie-runner-{target}")));
    paths.find(|path| path.exists()).with_context(|| format!("no runner for {arch} in {}", dir.display()))
}

/// How to start a runner; see [`RunnerProcess::builder`].
#[derive(Debug, Default)]
pub struct Builder {
    binary: Option<PathBuf>,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Builder {
    /// Another program than [`binary`].
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Further arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// A variable of its environment, over the test's own.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Copies the runner into a directory of its own (it deletes itself) and starts it there in a process group of its
    /// own.
    ///
    /// # Errors
    /// When there is no runner, or it cannot be copied or started.
    pub fn start(self) -> Result<RunnerProcess> {
        let source = match self.binary {
            Some(path) => path,
            None => binary()?,
        };
        let dir = tempfile::Builder::new().prefix("sortie-runner-").tempdir()?;
        let executable = dir.path().join("runner");
        copy_program(&source, &executable)?;
        let mark = Mark::new();
        let mut command = Command::new(&executable);
        command.args(&self.args).envs(self.env).current_dir(dir.path()).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        mark.apply(command.as_std_mut());
        let mut child = command.spawn().with_context(|| format!("starting {}", source.display()))?;
        let pid = child.id().and_then(|pid| pid.try_into().ok()).context("the runner has no pid")?;
        let stdout = child.stdout.take().context("no standard output")?;
        Ok(RunnerProcess {
            stdin: child.stdin.take(),
            stdout: Some(BufReader::new(stdout)),
            stderr: child.stderr.take(),
            child,
            pid,
            executable,
            mark,
            seen: Vec::new(),
            _dir: dir,
        })
    }
}

/// Copies by a program of its own: a copy that this process itself had open for writing could be inherited by a child
/// that another thread is just starting, and to execute it would then fail with `ETXTBSY`.
fn copy_program(source: &Path, target: &Path) -> Result<()> {
    let status =
        std::process::Command::new("cp").arg("--").args([source, target]).status().context("starting cp")?;
    ensure!(status.success(), "copying {} failed", source.display());
    Ok(())
}

/// A started runner. Dropping it kills it and all that it left running.
#[derive(Debug)]
pub struct RunnerProcess {
    child: Child,
    pid: i32,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: Option<ChildStderr>,
    executable: PathBuf,
    mark: Mark,
    /// The last frames, for errors.
    seen: Vec<String>,
    _dir: TempDir,
}

impl RunnerProcess {
    /// A runner without flags.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The pid of the program that was started.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Where its executable was put: gone, once it has deleted itself.
    pub fn executable(&self) -> &Path {
        &self.executable
    }

    /// Writes one frame.
    ///
    /// # Errors
    /// When the runner has closed its standard input, or does not take it within the deadline.
    pub async fn send(&mut self, frame: &Value) -> Result<()> {
        self.send_line(&frame.to_string()).await
    }

    /// Writes one line; the newline is added.
    ///
    /// # Errors
    /// As [`RunnerProcess::send`].
    pub async fn send_line(&mut self, line: &str) -> Result<()> {
        self.send_raw(format!("{line}\n").as_bytes()).await
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// As [`RunnerProcess::send`].
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input is closed")?;
        within("writing to the runner", stdin.write_all(bytes)).await?.context("writing to the runner")
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Closes the reading end of its standard output, as a client that died does.
    pub fn close_stdout(&mut self) {
        self.stdout = None;
    }

    /// The next line, without its newline; `None` at the end.
    ///
    /// # Errors
    /// When none comes within the deadline; the error has the frames so far and what is on standard error.
    pub async fn next_line(&mut self) -> Result<Option<String>> {
        let stdout = self.stdout.as_mut().context("standard output is closed")?;
        let mut line = Vec::new();
        let read = within("a frame from the runner", stdout.read_until(b'\n', &mut line)).await;
        let count = match read {
            Ok(count) => count.context("reading from the runner")?,
            Err(error) => bail!("{error:#}; frames so far: {:#?}", self.seen),
        };
        if count == 0 {
            return Ok(None);
        }
        ensure!(
            line.pop() == Some(b'\n'),
            "the last line has no newline: {:?}",
            String::from_utf8_lossy(&line)
        );
        let line = String::from_utf8(line).context("a frame that is not UTF-8")?;
        self.seen.push(line.chars().take(400).collect());
        Ok(Some(line))
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// As [`RunnerProcess::next_line`], and when the line is not JSON.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        let Some(line) = self.next_line().await? else { return Ok(None) };
        Ok(Some(serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?))
    }

    /// The next frame of type `kind`, passing over others.
    ///
    /// # Errors
    /// As [`RunnerProcess::next`], and when the output ends before; the error has the frames so far.
    pub async fn expect(&mut self, kind: &str) -> Result<Value> {
        self.expect_where(kind, |frame| frame["type"] == kind).await
    }

    /// The DONE or ERROR frame of a command, passing over others.
    ///
    /// # Errors
    /// As [`RunnerProcess::expect`].
    pub async fn answer(&mut self, command_id: &str) -> Result<Value> {
        self.expect_where(&format!("the answer to {command_id}"), |frame| {
            (frame["type"] == "DONE" || frame["type"] == "ERROR") && frame["data"]["command_id"] == command_id
        })
        .await
    }

    /// The next frame that `wanted` takes, passing over others; `what` is for the error.
    ///
    /// # Errors
    /// As [`RunnerProcess::expect`].
    pub async fn expect_where(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        while let Some(frame) = self.next().await? {
            if wanted(&frame) {
                return Ok(frame);
            }
        }
        let stderr = self.stderr().await;
        bail!("the runner's output ended before {what}; frames: {:#?}; stderr: {stderr}", self.seen)
    }

    /// All frames until the end of its output.
    ///
    /// # Errors
    /// As [`RunnerProcess::next`].
    pub async fn rest(&mut self) -> Result<Vec<Value>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    /// What it wrote to standard error; returns when all holders have closed it.
    pub async fn stderr(&mut self) -> String {
        let mut bytes = Vec::new();
        if let Some(mut stderr) = self.stderr.take() {
            let _ = within("the end of standard error", stderr.read_to_end(&mut bytes)).await;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the started program has ended; reads nothing.
    ///
    /// # Errors
    /// When it has not within the deadline.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        within("the end of the runner", self.child.wait()).await?.context("waiting for the runner")
    }

    /// Waits for the end and gives the exit status, or 128 + n after signal n.
    ///
    /// # Errors
    /// As [`RunnerProcess::wait`].
    pub async fn exit_code(&mut self) -> Result<i32> {
        let status = self.wait().await?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    /// Signals the program that was started.
    ///
    /// # Errors
    /// When it has ended.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        process::kill(self.pid, signal)
    }

    /// Everything below the started program, while it runs.
    pub fn descendants(&self) -> Vec<Process> {
        process::descendants(self.pid)
    }

    /// Everything that still runs of what was started: the program, its descendants, and those of them that now have
    /// another parent.
    pub fn leftovers(&self) -> Vec<Process> {
        self.mark.processes()
    }

    /// Waits until nothing that was started runs any more.
    ///
    /// # Errors
    /// When something still runs at the deadline.
    pub async fn quiet(&self) -> Result<()> {
        self.mark.gone().await
    }
}

impl Drop for RunnerProcess {
    fn drop(&mut self) {
        for process in self.mark.processes() {
            // One that ended meanwhile is as good as killed.
            let _ = process::kill(process.pid, Signal::SIGKILL);
        }
    }
}
