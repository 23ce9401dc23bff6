//! What a caller may watch while a session is made and used: the steps with their times, and the frames.
//!
//! The CLI's `doctor` and `--trace` are built on it. An observer sees no parameters, no output and no secrets.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sortie_protocol::CommandType;

use crate::error::Error;
use crate::place::Place;

/// A step of reaching a host. Errors name the step they happened in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Step {
    /// Reading ssh_config(5), known_hosts and keys on this machine.
    Configure,
    /// From a name to addresses.
    Resolve,
    /// The TCP connection, or the start of a local program.
    Connect,
    /// Version exchange, key exchange and the check of the host key.
    KeyExchange,
    /// Proving who we are.
    Authenticate,
    /// Opening the one session channel.
    OpenChannel,
    /// The exec request, up to the first line of the bootstrap script.
    StartShell,
    /// Sending the runner, up to its READY.
    StartRunner,
    /// The session itself.
    Session,
    /// Ending the session and seeing the runner gone.
    Close,
}

impl Step {
    /// For people: what was being done.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Configure => "reading the configuration",
            Self::Resolve => "looking up the address",
            Self::Connect => "connecting",
            Self::KeyExchange => "exchanging keys",
            Self::Authenticate => "logging in",
            Self::OpenChannel => "opening a channel",
            Self::StartShell => "starting a shell",
            Self::StartRunner => "starting the runner",
            Self::Session => "talking to the runner",
            Self::Close => "ending the session",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

/// Which way a frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the runner.
    Sent,
    /// From the runner.
    Received,
}

/// A frame as an observer may see it: without parameters, output or contents.
#[derive(Debug, Clone)]
pub struct FrameTrace<'a> {
    /// Which way it went.
    pub direction: Direction,
    /// `CMD`, `EVENT`, …
    pub kind: &'static str,
    /// The command it is about, where it is about one.
    pub command_id: &'a str,
    /// Length of the line in bytes, newline included.
    pub bytes: usize,
    /// What else may be shown, such as `exec, timeout 30 s`.
    pub summary: String,
}

/// The key that a host proved to have, and why it is trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostKeyShown {
    /// The type of the key, such as `ssh-ed25519`.
    pub algorithm: String,
    /// Its SHA-256 fingerprint, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The fingerprint of the authority that vouches for it, if it is trusted by its certificate.
    pub authority: Option<String>,
    /// The line of known_hosts with the key, or with its authority.
    pub known_at: Option<Place>,
    /// The file that it was added to, being new.
    pub added_to: Option<PathBuf>,
}

/// A command that is about to be sent.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct CommandStarted<'a> {
    /// Names it in its session.
    pub id: &'a str,
    /// Which command.
    pub kind: CommandType,
    /// The user that it becomes.
    pub becoming: Option<&'a str>,
    /// It is to change nothing.
    pub check: bool,
}

/// A command that was answered, or never will be.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct CommandEnded<'a> {
    /// As of [`CommandStarted`].
    pub id: &'a str,
    /// The exit status, where a program was run.
    pub exit_code: Option<i64>,
    /// Why there is no result: the runner's code such as `TIMEOUT`, or [`Error::kind`].
    pub error: Option<&'a str>,
}

/// Watches a session. Called from the session's own tasks: must return at once and must not panic.
pub trait Observer: Send + Sync {
    /// A step begins.
    fn step_started(&self, step: Step) {
        let _ = step;
    }

    /// A step ended well. `round_trips` is how often the network was crossed and back, by the protocol's own
    /// rules; `detail` says what came of it.
    fn step_finished(&self, step: Step, took: Duration, round_trips: u32, detail: &str) {
        let _ = (step, took, round_trips, detail);
    }

    /// A host proved who it is, before anybody logs in: the host as it stands in known_hosts, and the key that is
    /// accepted. Of several hosts on the way to one, that one comes last.
    fn host_key(&self, host: &str, key: &HostKeyShown) {
        let _ = (host, key);
    }

    /// A command is about to be sent.
    fn command_started(&self, command: &CommandStarted<'_>) {
        let _ = command;
    }

    /// A command was answered. Of those that a session leaves unanswered only [`Observer::session_ended`] is called.
    fn command_ended(&self, command: &CommandEnded<'_>) {
        let _ = command;
    }

    /// Whether [`Observer::command_started`] and [`Observer::command_ended`] want to be called; asked once a session.
    fn wants_commands(&self) -> bool {
        false
    }

    /// The session is over, or never came about; `error` says why, where it did not end in order.
    fn session_ended(&self, error: Option<&Error>) {
        let _ = error;
    }

    /// Something a user should know that does not stop anything.
    fn warning(&self, text: &str) {
        let _ = text;
    }

    /// A frame went by.
    fn frame(&self, frame: &FrameTrace<'_>) {
        let _ = frame;
    }

    /// Whether [`Observer::frame`] wants to be called; asked once a session.
    fn wants_frames(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// A step that is under way; finished by [`StepTimer::done`].
pub(crate) struct StepTimer<'a> {
    observer: &'a dyn Observer,
    step: Step,
    began: Instant,
}

impl<'a> StepTimer<'a> {
    pub(crate) fn start(observer: &'a dyn Observer, step: Step) -> Self {
        observer.step_started(step);
        Self { observer, step, began: Instant::now() }
    }

    pub(crate) fn done(self, round_trips: u32, detail: &str) {
        self.observer.step_finished(self.step, self.began.elapsed(), round_trips, detail);
    }
}
