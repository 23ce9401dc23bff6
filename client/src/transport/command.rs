//! A transport that is a program of this machine: `docker exec -i x`, `kubectl exec -i x --`, `nsenter …`, `ssh host`.
//!
//! The program must run the words that are added to its own, with standard input and output as they are.

use std::process::Stdio;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;

use super::{Ended, Ending, ExitStatus, Launch, Pipes, Starting, Transport, connection};
use crate::error::Error;
use crate::observe::{Observer, Step, StepTimer};

/// Most bytes that are read from a pipe at a time.
const CHUNK: usize = 64 * 1024;

/// Starts the bootstrap through a program.
#[derive(Debug, Clone)]
pub struct Command {
    host: String,
    argv: Vec<String>,
    as_line: bool,
}

impl Command {
    /// `argv` is the program with its arguments; the words `sh -c SCRIPT …` are added to it. `host` names it in errors.
    #[must_use]
    pub fn new(host: impl Into<String>, argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { host: host.into(), argv: argv.into_iter().map(Into::into).collect(), as_line: false }
    }

    /// The script is added as one word that a shell on the far side takes apart, as `ssh host` does.
    #[must_use]
    pub fn line(mut self) -> Self {
        self.as_line = true;
        self
    }
}

impl Transport for Command {
    fn host(&self) -> &str {
        &self.host
    }

    fn start<'a>(&'a self, launch: &'a Launch, observer: &'a dyn Observer) -> Starting<'a> {
        Box::pin(async move {
            let words: &[String] =
                if self.as_line { std::slice::from_ref(&launch.line) } else { &launch.argv };
            start_program(&self.host, program(self.argv.iter().chain(words)), (), observer)
        })
    }

    fn way(&self) -> String {
        // Its arguments are the caller's, who may have put anything there.
        format!("by {}", self.argv.first().map_or("sh", String::as_str))
    }

    fn unattended(&self) -> bool {
        true
    }
}

/// The program that is the first of these words, with the others for arguments.
pub(super) fn program<'a>(mut words: impl Iterator<Item = &'a String>) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(words.next().map_or("sh", String::as_str));
    command.args(words);
    command
}

/// Starts a program with its standard streams as the connection. `kept` is dropped when it has ended.
pub(super) fn start_program(
    host: &str,
    mut command: tokio::process::Command,
    kept: impl Send + 'static,
    observer: &dyn Observer,
) -> Result<super::Connection, Error> {
    let timer = StepTimer::start(observer, Step::Connect);
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Error::Unreachable {
            host: host.to_owned(),
            step: Step::Connect,
            reason: format!("{program} cannot be started: {error}"),
        })?;
    let (connection, pipes) = connection();
    let Pipes { output, input, ending } = pipes;
    let stdout = child.stdout.take().map(|stream| tokio::spawn(read_output(stream, output)));
    let stderr = child.stderr.take().map(|stream| tokio::spawn(read_stderr(stream, ending.clone())));
    if let Some(stdin) = child.stdin.take() {
        tokio::spawn(write_input(stdin, input));
    }
    tokio::spawn(async move {
        let mut ended = wait(&mut child, &ending).await;
        drop(kept);
        if ended.closed {
            // What it wrote before it ended is still in the pipes. A descendant may hold them open for ever, and is
            // then itself a sign that not everything is gone: the reader goes on by itself.
            if let Some(stderr) = stderr {
                let _ = tokio::time::timeout(std::time::Duration::from_secs(1), stderr).await;
            }
        } else if let Some(stdout) = stdout {
            stdout.abort();
        }
        if ended.reason.is_none() && ended.status.is_none() {
            ended.reason = Some("the program ended without a status".into());
        }
        ending.set(ended);
    });
    timer.done(0, &program);
    Ok(connection)
}

async fn wait(child: &mut Child, ending: &Ending) -> Ended {
    use std::os::unix::process::ExitStatusExt;
    let result = tokio::select! {
        result = child.wait() => result,
        () = ending.aborted() => {
            let _ = child.start_kill();
            let _ = child.wait().await;
            return Ended { reason: Some("the connection was broken off".into()), ..Ended::default() };
        }
    };
    match result {
        Ok(status) => {
            let status = match (status.code(), status.signal()) {
                (Some(code), _) => u32::try_from(code).ok().map(ExitStatus::Code),
                (None, Some(signal)) => Some(ExitStatus::Signal(signal.to_string())),
                (None, None) => None,
            };
            Ended { status, closed: true, reason: None }
        }
        Err(error) => Ended { reason: Some(format!("waiting for the program: {error}")), ..Ended::default() },
    }
}

async fn read_output(mut stream: impl AsyncReadExt + Unpin, output: mpsc::Sender<Bytes>) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        match (&mut stream).take(CHUNK as u64).read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                if output.send(buffer.split().freeze()).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn read_stderr(mut stream: impl AsyncReadExt + Unpin, ending: Ending) {
    let mut buffer = vec![0; 4096];
    while let Ok(read) = stream.read(&mut buffer).await {
        if read == 0 {
            return;
        }
        ending.push_stderr(&buffer[..read]);
    }
}

async fn write_input(mut stdin: ChildStdin, mut input: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = input.recv().await {
        // The other end being gone shows on output; nothing more can be said here.
        if stdin.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Unobserved;

    fn launch(script: &str) -> Launch {
        Launch { line: String::new(), argv: ["sh", "-c", script].map(String::from).to_vec() }
    }

    async fn start(script: &str) -> super::super::Connection {
        Command::new("here", ["env"]).start(&launch(script), &Unobserved).await.unwrap()
    }

    async fn all_output(connection: &mut super::super::Connection) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(chunk) = connection.output.recv().await {
            all.extend_from_slice(&chunk);
        }
        all
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_the_status_is_told() {
        let mut connection = start("cat; echo err >&2; exit 3").await;
        connection.input.send(Bytes::from_static(b"a\0b\xff")).await.unwrap();
        connection.input = mpsc::channel(1).0;
        assert_eq!(all_output(&mut connection).await, b"a\0b\xff");
        let ended = connection.ending.wait().await;
        assert_eq!(ended, Ended { status: Some(ExitStatus::Code(3)), closed: true, reason: None });
        assert_eq!(connection.ending.stderr(), b"err\n");
    }

    #[tokio::test]
    async fn aborting_ends_the_program() {
        let mut connection = start("echo up; exec sleep 1000").await;
        assert_eq!(connection.output.recv().await.unwrap(), "up\n");
        connection.ending.abort();
        assert!(!connection.ending.wait().await.closed);
        assert!(connection.output.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_unreachable() {
        let error = Command::new("here", ["/no/such"]).start(&launch("true"), &Unobserved).await.unwrap_err();
        assert!(matches!(&error, Error::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("/no/such"));
    }
}
