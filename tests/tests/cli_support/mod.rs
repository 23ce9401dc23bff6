//! For the suites of the command: the real `sortie` program, started as a user starts it, against hosts of the kit. It
//! never reads the tester's own files: configuration, agent, home and terminal are the test's.
#![allow(dead_code, reason = "each suite uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use serde_json::Value;
use sortie_tests::access::Access;
use sortie_tests::{runner, within};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// Arguments, and one more that is no text, that any layer between might change.
pub(crate) const NASTY: &[&str] = &[
    "",
    " ",
    "two words",
    "$HOME ${PATH} $(id) `id`",
    "!! !1 bang!",
    "back\\slash \\n \\",
    "'single' \"double\" '\"'\"'",
    "line one\nline two\n",
    "\ttab\rreturn",
    "* ? [a-z] {a,b} ~",
    "; & | < > ( ) # % ^ =",
    "--help",
    "-n",
    "żółw 🐢 \u{202e}",
    "\x1b[31m\x07",
];

/// No UTF-8.
pub(crate) const NO_TEXT: &[u8] = b"\xff\xfe \x80'\n";

/// The program under test: `SORTIE_BIN`, or beside the tests' directory, where cargo puts it.
pub(crate) fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("SORTIE_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().with_file_name("sortie");
    assert!(path.exists(), "{} is not built: cargo build -p sortie-cli", path.display());
    path
}

/// How a program ended and what it wrote.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Standard output as one JSON object a line.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// It ended well and had nothing to say on standard error.
    #[track_caller]
    pub(crate) fn fine(self) -> Self {
        assert!(self.status == 0 && self.stderr.is_empty(), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn ended_with(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self
    }

    /// Standard error has all these words.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {self:?}");
        }
        self
    }
}

/// A call of the program.
pub(crate) struct Sortie {
    command: Command,
}

/// `sortie VERB` without any host.
pub(crate) fn sortie(verb: &str) -> Sortie {
    let mut command = Command::new(program());
    command.arg(verb).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    for name in ["SSH_AUTH_SOCK", "NO_COLOR", "SORTIE_AUDIT", "SORTIE_RUNNERS"] {
        command.env_remove(name);
    }
    command.env("HOME", "/nonexistent");
    if let Ok(runners) = runner::directory() {
        command.env("SORTIE_RUNNERS", runners);
    }
    Sortie { command }
}

/// How a host is named on the command line.
pub(crate) fn name(access: &Access) -> String {
    format!("{}@{}", access.user, access.addr())
}

/// `sortie VERB -H HOST` with all that a login needs.
pub(crate) fn on(access: &Access, verb: &str) -> Sortie {
    sortie(verb).login(access).args(["-H", &name(access)])
}

impl Sortie {
    /// Key and known hosts.
    pub(crate) fn login(self, access: &Access) -> Self {
        self.arg("-i")
            .arg(&access.identity)
            .arg("--known-hosts")
            .arg(&access.known_hosts)
            .args(["-F", "none", "--batch"])
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Standard input is a pipe.
    pub(crate) fn piped(mut self) -> Self {
        self.command.stdin(Stdio::piped());
        self
    }

    pub(crate) fn start(mut self) -> Result<Started> {
        let mut child = self.command.spawn().context("starting sortie")?;
        Ok(Started {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(BufReader::new),
            stderr: child.stderr.take().map(BufReader::new),
            child,
        })
    }

    pub(crate) async fn run(self) -> Result<Ended> {
        self.start()?.end().await
    }

    /// With all of this on standard input.
    pub(crate) async fn run_with(self, input: &[u8]) -> Result<Ended> {
        let mut started = self.piped().start()?;
        let mut stdin = started.stdin.take().context("no standard input")?;
        let input = input.to_vec();
        // A program that does not read its input to the end has its reasons.
        tokio::spawn(async move {
            let _ = stdin.write_all(&input).await;
        });
        started.end().await
    }
}

/// A program that runs.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<BufReader<ChildStdout>>,
    pub(crate) stderr: Option<BufReader<ChildStderr>>,
}

impl Started {
    /// The next line of standard output.
    pub(crate) async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().context("standard output is closed")?;
        within("a line of standard output", stdout.read_line(&mut line)).await??;
        Ok(line)
    }

    /// The next line of standard error.
    pub(crate) async fn error_line(&mut self) -> Result<String> {
        let mut line = String::new();
        let stderr = self.stderr.as_mut().context("standard error is closed")?;
        within("a line of standard error", stderr.read_line(&mut line)).await??;
        Ok(line)
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        let pid = self.child.id().context("it has ended")?;
        sortie_tests::process::kill(i32::try_from(pid)?, signal)
    }

    /// Waits for its end and all that it still writes.
    pub(crate) async fn end(mut self) -> Result<Ended> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let all = async {
            let out = async {
                if let Some(stream) = &mut self.stdout {
                    stream.read_to_end(&mut stdout).await?;
                }
                anyhow::Ok(())
            };
            let err = async {
                if let Some(stream) = &mut self.stderr {
                    stream.read_to_end(&mut stderr).await?;
                }
                anyhow::Ok(())
            };
            tokio::try_join!(out, err)?;
            anyhow::Ok(self.child.wait().await?)
        };
        let status = within("the end of sortie", all).await??;
        // Ended by a signal it is as a shell says it.
        let status = status
            .code()
            .unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0));
        Ok(Ended { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
    }
}

/// Runs a line on a terminal of its own and answers each `prompt` with the next of `answers`; gives all that was shown.
pub(crate) async fn at_a_terminal(line: &str, prompt: &str, answers: &[&str]) -> Result<String> {
    let mut child = Command::new("script")
        .args(["-qec", line, "/dev/null"])
        .env("SORTIE_RUNNERS", runner::directory()?)
        .env("SHELL", "/bin/sh")
        .env("HOME", "/nonexistent")
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let mut stdout = child.stdout.take().context("no standard output")?;
    let talk = async {
        let mut seen = String::new();
        let mut answered = 0;
        let mut buffer = [0; 1024];
        loop {
            let read = stdout.read(&mut buffer).await?;
            if read == 0 {
                return anyhow::Ok(seen);
            }
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
            if seen.matches(prompt).count() > answered {
                let answer = answers.get(answered).with_context(|| format!("asked too often: {seen}"))?;
                answered += 1;
                stdin.write_all(format!("{answer}\n").as_bytes()).await?;
            }
        }
    };
    let seen = within("the talk at the terminal", talk).await??;
    anyhow::ensure!(child.wait().await?.success(), "{seen}");
    Ok(seen)
}
