//! The audit log: who did what on which host, by which host key, as whom, and what came of it.
//!
//! One JSON object a line. Each line carries the hash of the one before and its own, so that a line that was changed,
//! taken out or moved is found by [`verify()`]; that the end was cut off is found by whoever kept the hash of the last
//! line. What a command is asked to do is on the disk before the command is sent, and what came of it before its
//! caller is told. A command that cannot be recorded is not run. Secrets are left out by [`crate::redact`].
//!
//! Format of a line: `{"seq":N,"time":T,"record":KIND,…,"prev":P,"hash":H}`. `seq` counts from 1; `time` is RFC 3339
//! in UTC; `P` is `H` of the line before, 64 zeros in the first. `H` is the SHA-256, in hexadecimal digits, of the line's own
//! bytes up to and without `,"hash":`. See [`Record`] for the kinds.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sortie_protocol::ErrorClass;
use sortie_protocol::message::BecomeMethod;
use sortie_protocol::time::Timestamp;
use tokio::sync::watch;

mod chain;
mod read;
mod session;
mod tap;
mod verify;

use chain::Chain;
pub use read::{Entry, entries};
pub(crate) use session::SessionAudit;
pub(crate) use tap::tap;
pub use verify::{Finding, Problem, Verification, verify};

/// The version of the format that is written.
pub const VERSION: u32 = 1;

/// No line is longer than this, in bytes: a frame's parameters with what stands around them.
pub const LINE_LIMIT: u64 = 16 * 1024 * 1024;

/// Most records that are written at once.
const GROUP: usize = 256;

/// Why something could not be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditError {
    /// The log.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "audit log {}: {}", self.file.display(), self.reason)
    }
}

impl std::error::Error for AuditError {}

/// On whose behalf something is done: a process of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Name of the user that the process runs as; the number where it has none.
    pub user: String,
    /// Its number.
    pub uid: u32,
    /// The user that logged in, whoever it became since (`loginuid` of the kernel's audit), where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// This machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The program, such as `sortie exec`.
    pub program: String,
}

impl Who {
    /// This process, under the name `program`. Nothing of it is taken from the environment, which anybody can set.
    #[must_use]
    pub fn this_process(program: impl Into<String>) -> Self {
        let uid = nix::unistd::Uid::effective();
        let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        let host = nix::unistd::gethostname().unwrap_or_default();
        Self {
            user: name.unwrap_or_else(|| uid.to_string()),
            uid: uid.as_raw(),
            login_uid: login_uid(),
            host: host.to_string_lossy().into_owned(),
            pid: std::process::id(),
            program: program.into(),
        }
    }
}

/// proc(5), `/proc/pid/loginuid`; -1 where nobody logged in.
fn login_uid() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/self/loginuid").ok()?;
    text.trim().parse().ok().filter(|&uid| uid != u32::MAX)
}

/// What a line tells, besides its place in the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Record {
    /// The first line of a log.
    Log {
        /// [`VERSION`].
        version: u32,
        /// Random, 32 hexadecimal digits: names this log.
        log: String,
    },
    /// A host is about to be reached.
    Session {
        /// Names this session in all its lines. Those of one process begin with the same 16 random digits.
        session: String,
        /// The host, as its user named it.
        host: String,
        /// How it is to be reached, such as `ssh deploy@10.0.0.7 port 22`.
        way: String,
        /// Who does it.
        who: Who,
    },
    /// The host let us in. Nothing was sent to it so far but the start script.
    Login {
        /// See [`Record::Session`].
        session: String,
        /// See [`Record::Session`].
        host: String,
        /// The keys of the hosts on the way, the last one its own; empty where the way has none that Sortie checks itself.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        host_keys: Vec<HostKey>,
    },
    /// A command is about to be sent.
    Command {
        /// See [`Record::Session`].
        session: String,
        /// See [`Record::Session`].
        host: String,
        /// Fingerprint of the host's key, as `ssh-keygen -l` prints it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host_key: Option<String>,
        /// Name of the user on this machine.
        who: String,
        /// Fingerprint of the key whose signature it carries, as `ssh-keygen -l` prints it; whether the signature is good the
        /// runner says in its answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signed_by: Option<String>,
        /// Names the command in this session.
        id: String,
        /// Which command.
        command: String,
        /// Seconds.
        timeout: u64,
        /// As whom.
        #[serde(rename = "become", default, skip_serializing_if = "Option::is_none")]
        r#become: Option<Becoming>,
        /// Nothing is to be changed.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        check: bool,
        /// The parameters without their secrets: see [`crate::redact::params`].
        params: Value,
        /// Input follows the command.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        input: bool,
    },
    /// The runner is up.
    Ready {
        /// See [`Record::Session`].
        session: String,
        /// See [`Record::Session`].
        host: String,
        /// The session, as the runner calls it.
        runner_session: String,
        /// SHA-256 of the runner.
        sha256: String,
        /// What the host calls itself.
        hostname: String,
        /// The user that was logged in there.
        user: String,
        /// Its number.
        uid: u32,
        /// Changes with every boot of the host.
        boot_id: String,
    },
    /// A command has ended.
    Result {
        /// See [`Record::Session`].
        session: String,
        /// See [`Record::Session`].
        host: String,
        /// See [`Record::Command`].
        id: String,
        /// See [`Record::Command`].
        command: String,
        /// What came of it.
        #[serde(flatten)]
        outcome: Outcome,
        /// Standard output that came as events.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdout: Option<Output>,
        /// Standard error that came as events.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stderr: Option<Output>,
    },
    /// A session is over.
    End {
        /// See [`Record::Session`].
        session: String,
        /// See [`Record::Session`].
        host: String,
        /// `closed`: in order. Else how it broke off: [`crate::Error::kind`].
        how: String,
        /// Why it broke off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Commands that were recorded as about to be sent.
        commands: u64,
        /// Those of them that no result is known of: they may have run.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unanswered: Vec<String>,
        /// Records of this session that could not be written.
        #[serde(default, skip_serializing_if = "is_zero")]
        unrecorded: u64,
    },
    /// What stands before this line, after the last one that is whole, was torn: whoever wrote it died while doing so.
    Torn {
        /// How many bytes there are.
        bytes: u64,
        /// Their SHA-256.
        sha256: String,
    },
}

impl Record {
    /// The session and the host that it concerns, where it does.
    #[must_use]
    pub fn concerns(&self) -> Option<(&str, &str)> {
        match self {
            Self::Session { session, host, .. }
            | Self::Login { session, host, .. }
            | Self::Command { session, host, .. }
            | Self::Ready { session, host, .. }
            | Self::Result { session, host, .. }
            | Self::End { session, host, .. } => Some((session, host)),
            Self::Log { .. } | Self::Torn { .. } => None,
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The key that a host showed and that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKey {
    /// The host, as it stands in known_hosts.
    pub host: String,
    /// Such as `ssh-ed25519`.
    pub algorithm: String,
    /// As `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The fingerprint of the authority that vouches for it, where it is trusted by its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// The file that it was added to because it was new, by which it was not known before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added_to: Option<PathBuf>,
}

/// Whom a command became.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Becoming {
    /// The user.
    pub user: String,
    /// By which program.
    pub method: BecomeMethod,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// DONE.
    Done {
        /// SHA-256 of the result, byte for byte as the runner sent it; not of a command that is sensitive.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result_sha256: Option<String>,
        /// Seconds it took, by the runner.
        seconds: f64,
        /// Exit status, where a program was run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i64>,
        /// Whether anything was changed, or would be with `check`, where the result says it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        changed: Option<bool>,
    },
    /// ERROR.
    Error {
        /// The runner's code.
        code: String,
        /// For retry policy.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        class: Option<ErrorClass>,
        /// The runner's words, escaped and bounded; not of a command that is sensitive.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
}

/// Output, as it went by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// How much there was.
    pub bytes: u64,
    /// SHA-256 of all of it; not of a command that is sensitive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// What is called once records are on the disk, or cannot be.
type Recorded = Box<dyn FnOnce(Result<(), AuditError>) + Send>;

/// Records that belong together.
struct Batch {
    records: Vec<(Timestamp, Record)>,
    recorded: Recorded,
}

/// A log that is written to. Cheap to clone; several processes may write to the same file.
#[derive(Clone)]
pub struct AuditLog {
    path: Arc<Path>,
    who: Arc<Who>,
    /// Random, 16 hexadecimal digits: the beginning of the names of all sessions of this process.
    run: Arc<str>,
    sessions: Arc<AtomicU64>,
    /// Sessions that have begun and not ended.
    open: watch::Sender<usize>,
    batches: mpsc::Sender<Batch>,
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditLog").field("path", &self.path).field("who", &self.who).finish_non_exhaustive()
    }
}

impl AuditLog {
    /// Opens a log, or makes one with mode 0600. Nothing is written before a session begins.
    ///
    /// # Errors
    /// It cannot be opened or locked, is no regular file, may be written to by others, or its end is not that of a log.
    pub fn open(file: &Path, who: Who) -> Result<Self, AuditError> {
        let chain = Chain::open(file)?;
        let mut run = random_id().map_err(|reason| AuditError { file: file.to_owned(), reason })?;
        run.truncate(16);
        let (batches, receiver) = mpsc::channel();
        // A thread of its own: a disk may take its time, and a lock may have to be waited for.
        std::thread::Builder::new().name("audit".into()).spawn(move || write(chain, &receiver)).map_err(
            |error| AuditError { file: file.to_owned(), reason: format!("no thread to write it: {error}") },
        )?;
        Ok(Self {
            path: file.into(),
            who: Arc::new(who),
            run: run.into(),
            sessions: Arc::default(),
            open: watch::Sender::new(0),
            batches,
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// On whose behalf it is written.
    #[must_use]
    pub fn who(&self) -> &Who {
        &self.who
    }

    /// A name that no other session has, of this process or another.
    pub(crate) fn next_session(&self) -> String {
        format!("{}-{}", self.run, self.sessions.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Waits until no session of this process is open any more and each has its end on record: for a process that is
    /// about to exit. Sessions that were dropped end by themselves within seconds.
    pub async fn settled(&self) {
        // The sender lives as long as self does.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    fn begun(&self) {
        self.open.send_modify(|open| *open += 1);
    }

    fn ended(&self) {
        self.open.send_modify(|open| *open = open.saturating_sub(1));
    }

    /// Has records written in order, after all that came before, and calls `recorded` then, on another thread.
    pub(crate) fn submit(
        &self,
        records: Vec<Record>,
        recorded: impl FnOnce(Result<(), AuditError>) + Send + 'static,
    ) {
        let now = now();
        let records = records.into_iter().map(|record| (now, record)).collect();
        if let Err(mpsc::SendError(batch)) =
            self.batches.send(Batch { records, recorded: Box::new(recorded) })
        {
            (batch.recorded)(Err(self.gone()));
        }
    }

    /// Writes records and waits until they are on the disk.
    pub(crate) async fn record(&self, records: Vec<Record>) -> Result<(), AuditError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.submit(records, move |result| {
            // Whoever waited may have been dropped.
            let _ = sender.send(result);
        });
        receiver.await.unwrap_or_else(|_| Err(self.gone()))
    }

    fn gone(&self) -> AuditError {
        AuditError { file: self.path.to_path_buf(), reason: "what writes it has ended".into() }
    }
}

/// Writes what comes, all that waits at once: one lock and one flush for many sessions.
fn write(mut chain: Chain, batches: &mpsc::Receiver<Batch>) {
    while let Ok(first) = batches.recv() {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(batch) = batches.try_recv()
        {
            group.push(batch);
        }
        let lines = group.iter().flat_map(|batch| &batch.records);
        let lines: Result<Vec<_>, _> =
            lines.map(|(time, record)| Ok((*time, serde_json::to_string(record)?))).collect();
        let result = match lines {
            Ok(lines) => chain.append(&lines),
            Err(error) => Err(chain.unwritable(&error)),
        };
        for batch in group {
            (batch.recorded)(result.clone());
        }
    }
}

/// 128 random bits in hexadecimal digits.
fn random_id() -> Result<String, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| format!("no random numbers: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The time of now.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
