//! How the bytes travel: a transport starts the bootstrap script on a host and gives one duplex byte stream.
//!
//! A transport knows no frames and no bootstrap; a session knows no sockets. russh is seen by `ssh` alone.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};

use crate::error::Error;
use crate::observe::Observer;

mod command;
#[cfg(any(test, fuzzing))]
pub(crate) mod fake;
mod local;
pub mod openssh;
pub mod ssh;
mod ssh_algorithms;
mod ssh_auth;
mod ssh_connect;
mod ssh_hostkey;
mod ssh_keys;
mod ssh_options;
mod ssh_route;

pub use command::Command;
pub use local::Local;
pub use openssh::OpenSsh;
pub use ssh::Ssh;
pub(crate) use ssh_keys::KeyFile;
pub use ssh_options::{Route, SshOptions, SshSettings};

/// Chunks of output that may wait between a transport and the session; each is at most 64 KiB.
const OUTPUT_CHUNKS: usize = 32;
/// Pieces of input that may wait for the writer.
const INPUT_CHUNKS: usize = 4;
/// How much is kept of standard error, in bytes: its end.
const STDERR_TAIL: usize = 64 * 1024;

/// What is to be started, in both forms that a transport may need.
#[derive(Debug, Clone)]
pub struct Launch {
    /// One line for the user's login shell.
    pub line: String,
    /// Program and arguments, where no login shell is in between.
    pub argv: Vec<String>,
}

/// A connection that is being made.
pub type Starting<'a> = Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send + 'a>>;

/// Reaches one host.
pub trait Transport: Send + Sync {
    /// The host's name, for errors and results.
    fn host(&self) -> &str;

    /// Connects, logs in and starts `launch`. Each call makes a connection of its own.
    fn start<'a>(&'a self, launch: &'a Launch, observer: &'a dyn Observer) -> Starting<'a>;

    /// Whether [`Transport::start`] can be repeated at any time without a person being asked for anything.
    fn unattended(&self) -> bool;

    /// How the host is reached, in words and without secrets, such as `ssh deploy@10.0.0.7 port 22`: for the audit log.
    fn way(&self) -> String {
        self.host().to_owned()
    }

    /// Why a connection ended before anything was heard of the host, where the transport itself was what failed. `stderr` is
    /// the end of what was written there.
    fn explain(&self, ended: &Ended, stderr: &[u8]) -> Option<Error> {
        let _ = (ended, stderr);
        None
    }

    /// The way to the same host once its SSH server listens on another port; `None` where a port means nothing.
    fn moved(&self, _port: u16) -> Option<Arc<dyn Transport>> {
        None
    }
}

/// A started program's streams. Dropping `input` is end of input; dropping all of it ends the connection.
#[derive(Debug)]
pub struct Connection {
    /// Standard output, in pieces as they came. Whoever holds it must take them: a transport keeps few.
    pub output: mpsc::Receiver<Bytes>,
    /// Standard input.
    pub input: mpsc::Sender<Bytes>,
    /// How it ended, and the way to end it.
    pub ending: Ending,
}

/// How a program's exit was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this status.
    Code(u32),
    /// A signal ended it; the name has no `SIG` before it.
    Signal(String),
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(name) => write!(f, "signal {name}"),
        }
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ended {
    /// The program's status, where it was told.
    pub status: Option<ExitStatus>,
    /// The far side closed in order: the program is gone as far as the transport can know.
    pub closed: bool,
    /// Why the connection broke, where it did.
    pub reason: Option<String>,
}

/// Shared by the transport's tasks and whoever waits for the end.
#[derive(Debug, Clone)]
pub struct Ending {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ended: watch::Sender<Option<Ended>>,
    stderr: Mutex<VecDeque<u8>>,
    abort: Notify,
}

impl Ending {
    fn new() -> Self {
        let shared =
            Shared { ended: watch::Sender::new(None), stderr: Mutex::default(), abort: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Waits until the connection has ended.
    pub async fn wait(&self) -> Ended {
        let mut receiver = self.shared.ended.subscribe();
        // The sender lives as long as self does, so this cannot fail; if it did, nothing would be known.
        receiver.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone()).unwrap_or_default()
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn get(&self) -> Option<Ended> {
        self.shared.ended.borrow().clone()
    }

    /// Breaks the connection now. The far side sees its standard input and output close.
    pub fn abort(&self) {
        self.shared.abort.notify_one();
    }

    /// The end of what was written to standard error, at most 64 KiB.
    #[must_use]
    pub fn stderr(&self) -> Vec<u8> {
        self.shared.stderr.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    async fn aborted(&self) {
        self.shared.abort.notified().await;
    }

    fn push_stderr(&self, bytes: &[u8]) {
        let mut tail = self.shared.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &bytes[bytes.len().saturating_sub(STDERR_TAIL)..];
        let excess = (tail.len() + bytes.len()).saturating_sub(STDERR_TAIL);
        tail.drain(..excess);
        tail.extend(bytes);
    }

    /// The first report counts.
    fn set(&self, ended: Ended) {
        self.shared.ended.send_if_modified(|slot| {
            let first = slot.is_none();
            slot.get_or_insert(ended);
            first
        });
    }
}

/// The far ends of a [`Connection`], for the transport that feeds it.
struct Pipes {
    output: mpsc::Sender<Bytes>,
    input: mpsc::Receiver<Bytes>,
    ending: Ending,
}

fn connection() -> (Connection, Pipes) {
    let (output_sender, output) = mpsc::channel(OUTPUT_CHUNKS);
    let (input, input_receiver) = mpsc::channel(INPUT_CHUNKS);
    let ending = Ending::new();
    (
        Connection { output, input, ending: ending.clone() },
        Pipes { output: output_sender, input: input_receiver, ending },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_standard_error_is_kept() {
        let ending = Ending::new();
        for n in 0..100u8 {
            ending.push_stderr(&[n; 1000]);
        }
        let tail = ending.stderr();
        assert_eq!((tail.len(), tail.last()), (STDERR_TAIL, Some(&99)));
        ending.push_stderr(&[7; 3 * STDERR_TAIL]);
        assert_eq!(ending.stderr(), vec![7; STDERR_TAIL]);
    }

    #[tokio::test]
    async fn the_first_report_of_an_end_counts() {
        let ending = Ending::new();
        let first = Ended { closed: true, ..Ended::default() };
        ending.set(first.clone());
        ending.set(Ended { reason: Some("later".into()), ..Ended::default() });
        assert_eq!(ending.wait().await, first);
    }
}
