//! What happened, as one kind of event for people and programs alike: rendered as text, or with `--json` as one object
//! a line. This is the only place that writes to standard output and standard error, so the two cannot drift apart.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::value::RawValue;
use sortie_client::audit::Record;
use sortie_client::protocol::command::archive_unpack::ArchiveUnpackResult;
use sortie_client::protocol::command::dir_ensure::DirEnsureResult;
use sortie_client::protocol::command::exec::ExecResult;
use sortie_client::protocol::command::facts::FactsResult;
use sortie_client::protocol::command::file_remove::FileRemoveResult;
use sortie_client::protocol::command::file_stat::FileStatResult;
use sortie_client::protocol::command::file_write::FileWriteResult;
use sortie_client::protocol::command::line_ensure::LineEnsureResult;
use sortie_client::protocol::command::link_ensure::LinkEnsureResult;
use sortie_client::protocol::command::pkg_ensure::PkgEnsureResult;
use sortie_client::protocol::command::service_reload::ServiceReloadResult;
use sortie_client::protocol::command::sshd_harden::SshdHardenResult;
use sortie_client::protocol::command::sudoers_ensure::SudoersEnsureResult;
use sortie_client::protocol::command::wait_for::WaitForResult;
use sortie_client::protocol::message::{Level, Progress};
use sortie_client::protocol::time::Timestamp;
use sortie_client::protocol::{Encoding, ErrorClass, Stream, Usage, text};
use sortie_client::{Error, error::printable};
use tokio::sync::{Semaphore, mpsc, watch};

mod audit;
mod facts;
mod human;

use crate::terminal::{Sink, harmless_json};
use human::Human;

/// Bytes of output that may wait for standard output; whoever has more waits.
const BUDGET: usize = 1024 * 1024;
/// What an event takes at least, however little is in it.
const EVENT: usize = 256;
/// Bytes that are gathered for one write.
const GATHERED: usize = 256 * 1024;

/// Something that happened. The fields are the ones of `--json`; see `docs/CLI.md`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// Output of a command, byte for byte.
    Output {
        host: Arc<str>,
        stream: Stream,
        data: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        encoding: Option<Encoding>,
        #[serde(skip_serializing_if = "Option::is_none")]
        step: Option<Arc<str>>,
    },
    /// Something that a command says of itself.
    Message {
        host: Arc<str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        step: Option<Arc<str>>,
        level: Level,
        message: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        progress: Option<Progress>,
    },
    /// How far the copy of a file is, in bytes.
    Progress { host: Arc<str>, current: u64, total: u64 },
    /// Something to know that stops nothing.
    Warning { host: Arc<str>, message: String },
    /// A frame went by (`--trace`).
    Frame {
        host: Arc<str>,
        direction: &'static str,
        #[serde(rename = "type")]
        kind: &'static str,
        command_id: String,
        bytes: usize,
        summary: String,
    },
    /// One step of `doctor`.
    Check(Check),
    /// A command ended.
    Done {
        host: Arc<str>,
        seconds: f64,
        #[serde(flatten)]
        result: Done,
    },
    /// What the programs of a command took, right before its `Done` or `Error`.
    Usage {
        host: Arc<str>,
        #[serde(flatten)]
        usage: Usage,
    },
    /// A step of a list is through.
    Step(Box<Step>),
    /// What a list would do, on each of these hosts.
    Plan { hosts: Vec<Arc<str>>, steps: Vec<Planned> },
    /// A list is through on a host.
    Applied(Applied),
    /// There is no result, and why.
    Error(Failure),
    /// All hosts are through.
    Summary {
        hosts: usize,
        fine: usize,
        failed: usize,
        unreachable: usize,
        interrupted: usize,
        exit_status: i32,
    },
    /// A line of an audit log.
    AuditRecord {
        line: u64,
        /// When it was written.
        at: String,
        /// Absent where the line is not understood.
        #[serde(flatten)]
        record: Option<Box<Record>>,
    },
    /// Something about an audit log: what is wrong with it, or with `note` what is good to know.
    AuditFinding { line: u64, problem: &'static str, note: bool, text: String },
    /// An audit log was looked through.
    AuditVerified(Verified),
    /// A runner that this command carries.
    Runner { target: String, bytes: usize, gzip_bytes: usize, sha256: String },
    /// Whose signature vouches for those, and for which version of them.
    RunnersSigned { version: String, signer: String, key: String },
}

/// The result of a command.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "command", content = "result", rename_all = "snake_case")]
pub(crate) enum Done {
    /// See the protocol.
    Exec(ExecResult),
    /// See the protocol; `path` and `check` are as asked for.
    Put {
        path: String,
        check: bool,
        #[serde(flatten)]
        result: FileWriteResult,
    },
    /// See the protocol; `path` is as asked for.
    FileStat {
        path: String,
        #[serde(flatten)]
        result: Box<FileStatResult>,
    },
    /// Of a line, a block or an option: see the protocol; `path` and `check` are as asked for.
    FileEdit {
        path: String,
        check: bool,
        #[serde(flatten)]
        result: LineEnsureResult,
    },
    /// See the protocol; `path` and `check` are as asked for.
    FileRemove {
        path: String,
        check: bool,
        #[serde(flatten)]
        result: FileRemoveResult,
    },
    /// See the protocol; `path` and `check` are as asked for.
    DirEnsure {
        path: String,
        check: bool,
        #[serde(flatten)]
        result: DirEnsureResult,
    },
    /// See the protocol; `path` and `check` are as asked for.
    LinkEnsure {
        path: String,
        check: bool,
        #[serde(flatten)]
        result: LinkEnsureResult,
    },
    /// See the protocol; `path` and `check` are as asked for.
    FileUnpack {
        path: String,
        check: bool,
        #[serde(flatten)]
        result: ArchiveUnpackResult,
    },
    /// See the protocol; `name` (empty for several packages) and `check` are as asked for.
    Pkg {
        #[serde(skip_serializing_if = "String::is_empty")]
        name: String,
        check: bool,
        #[serde(flatten)]
        result: Box<PkgEnsureResult>,
    },
    /// See the protocol; `name` and `check` are as asked for.
    Service {
        name: String,
        check: bool,
        #[serde(flatten)]
        result: ServiceReloadResult,
    },
    /// See the protocol; `user` and `check` are as asked for.
    Sudoers {
        user: String,
        check: bool,
        #[serde(flatten)]
        result: SudoersEnsureResult,
    },
    /// See the protocol; `check` is as asked for.
    Harden {
        check: bool,
        #[serde(flatten)]
        result: Box<SshdHardenResult>,
    },
    /// See the protocol.
    Facts(Box<FactsResult>),
    /// See the protocol; `check` is as asked for.
    Wait {
        check: bool,
        #[serde(flatten)]
        result: WaitForResult,
    },
    /// A file was fetched.
    Get { path: String, bytes: u64, sha256: String, mode: String },
    /// `doctor` is through.
    Doctor { fit: bool, round_trips: u32 },
}

/// What an audit log was found to be.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Verified {
    pub(crate) file: String,
    pub(crate) sound: bool,
    pub(crate) records: u64,
    pub(crate) sessions: u64,
    pub(crate) findings: u64,
    /// Hash of the last line; empty where there is none.
    pub(crate) head: String,
    /// A head that was kept was looked for.
    pub(crate) head_checked: bool,
}

/// What became of a step of a list.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Step {
    pub(crate) host: Arc<str>,
    pub(crate) step: Arc<str>,
    pub(crate) command: &'static str,
    /// `changed`, `unchanged`, `skipped`, `failed`, `unknown` or `not_run`.
    pub(crate) status: &'static str,
    pub(crate) check: bool,
    pub(crate) seconds: f64,
    /// Why it was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// What it cannot be known before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) depends_on: Vec<Arc<str>>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<StepError>,
    /// See the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    /// See the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Box<RawValue>>,
}

/// A step that would run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Planned {
    pub(crate) step: Arc<str>,
    pub(crate) command: &'static str,
    pub(crate) about: String,
    /// Absent where its variables say that it does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) flight: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) waits_for: Vec<Arc<str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) when_changed: Vec<Arc<str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) conditions: Vec<String>,
    #[serde(rename = "become", skip_serializing_if = "Option::is_none")]
    pub(crate) r#become: Option<String>,
}

/// Why a step failed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StepError {
    /// The runner's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) class: Option<ErrorClass>,
    pub(crate) message: String,
    /// The list went on.
    pub(crate) ignored: bool,
}

/// What became of a list on a host: how many steps, and which.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Applied {
    pub(crate) host: Arc<str>,
    pub(crate) check: bool,
    pub(crate) changed: usize,
    pub(crate) unchanged: usize,
    pub(crate) skipped: usize,
    pub(crate) unknown: usize,
    pub(crate) ignored: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) left_undone: Vec<Arc<str>>,
}

/// One step of reaching a host.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    pub(crate) host: Arc<str>,
    /// In words.
    pub(crate) step: String,
    pub(crate) ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) milliseconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) round_trips: Option<u32>,
    pub(crate) detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
}

/// Why there is no result.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failure {
    pub(crate) host: Arc<str>,
    /// `unreachable`, `host_key`, `auth`, … as `sortie_client::Error::kind`; `local` for this machine's own, `interrupted`.
    pub(crate) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<&'static str>,
    /// The runner's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) class: Option<ErrorClass>,
    pub(crate) message: String,
}

impl Failure {
    /// The host is named as the user did, whatever it is called in the error.
    pub(crate) fn new(host: &Arc<str>, error: &Error) -> Self {
        let (code, class, message) = match error {
            // The runner's own words: they may hold names of files of the host.
            Error::Command { error, .. } => (
                Some(printable(error.code.as_str().as_bytes(), 100)),
                error.class,
                printable(error.message.as_bytes(), 4096),
            ),
            error => {
                let text = error.to_string();
                let named = format!("{}: ", error.host());
                (None, None, text.strip_prefix(&named).unwrap_or(&text).to_owned())
            }
        };
        let step = Some(error.step().describe());
        Self { host: Arc::clone(host), kind: error.kind(), step, code, class, message }
    }

    /// The user broke it off.
    pub(crate) fn interrupted(host: &Arc<str>) -> Self {
        Self { kind: "interrupted", ..Self::local(host, "interrupted") }
    }

    /// Something on this machine.
    pub(crate) fn local(host: &Arc<str>, message: impl Into<String>) -> Self {
        Self {
            host: Arc::clone(host),
            kind: "local",
            step: None,
            code: None,
            class: None,
            message: message.into(),
        }
    }
}

/// How events are to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// One JSON object a line.
    pub(crate) json: bool,
    /// Output is put together by lines, each with its host before it.
    pub(crate) prefix: bool,
}

/// Takes events. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reporter {
    sender: mpsc::UnboundedSender<Order>,
    budget: Arc<Semaphore>,
    /// Events for which there was no room.
    unshown: Arc<AtomicU64>,
    broken: watch::Receiver<Option<ErrorKind>>,
}

enum Order {
    Show(Event, u32),
    End,
}

/// The thread that writes.
pub(crate) struct Printer {
    sender: mpsc::UnboundedSender<Order>,
    thread: JoinHandle<()>,
}

/// Starts the thread that writes.
pub(crate) fn start(style: Style) -> (Reporter, Printer) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let budget = Arc::new(Semaphore::new(BUDGET));
    let unshown = Arc::new(AtomicU64::new(0));
    let (broken_sender, broken) = watch::channel(None);
    let writer = Writer {
        out: Sink::new(&io::stdout()),
        err: Sink::new(&io::stderr()),
        pending_out: Vec::new(),
        pending_err: Vec::new(),
        style,
        human: Human::default(),
        budget: Arc::clone(&budget),
        unshown: Arc::clone(&unshown),
        broken: broken_sender,
    };
    let thread = std::thread::spawn(move || writer.run(receiver));
    (Reporter { sender: sender.clone(), budget, unshown, broken }, Printer { sender, thread })
}

impl Reporter {
    /// Shows an event that a host can cause as often as it likes, unless too much is still to be written; then it is counted.
    pub(crate) fn show_if_room(&self, event: Event, bytes: usize) {
        let cost = u32::try_from(bytes.clamp(EVENT, BUDGET)).unwrap_or(u32::MAX);
        match self.budget.try_acquire_many(cost) {
            Ok(permit) => {
                permit.forget();
                let _ = self.sender.send(Order::Show(event, cost));
            }
            Err(_) => {
                self.unshown.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Shows an event, soon and in order.
    pub(crate) fn show(&self, event: Event) {
        // Fails only once the printer has ended, when nothing is to be shown any more.
        let _ = self.sender.send(Order::Show(event, 0));
    }

    /// Shows what a command says. Waits while much of it is still to be written.
    pub(crate) async fn output(&self, event: Event, bytes: usize) {
        let cost = u32::try_from(bytes.clamp(EVENT, BUDGET)).unwrap_or(u32::MAX);
        if let Ok(permit) = self.budget.acquire_many(cost).await {
            permit.forget();
        }
        let _ = self.sender.send(Order::Show(event, cost));
    }

    /// Returns once standard output can be written to no more, with why. Never, as long as it can.
    pub(crate) async fn broken(&self) -> ErrorKind {
        let mut broken = self.broken.clone();
        match broken.wait_for(Option::is_some).await.map(|kind| *kind) {
            Ok(Some(kind)) => kind,
            _ => std::future::pending().await,
        }
    }

    /// Why standard output can be written to no more, if that is so.
    pub(crate) fn is_broken(&self) -> Option<ErrorKind> {
        *self.broken.borrow()
    }
}

impl Printer {
    /// Writes what is left.
    pub(crate) fn finish(self) {
        let _ = self.sender.send(Order::End);
        let _ = self.thread.join();
    }
}

/// Text that is gathered for one write.
struct Writer {
    out: Sink,
    err: Sink,
    pending_out: Vec<u8>,
    pending_err: Vec<u8>,
    style: Style,
    human: Human,
    budget: Arc<Semaphore>,
    unshown: Arc<AtomicU64>,
    broken: watch::Sender<Option<ErrorKind>>,
}

impl Writer {
    fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut owed = 0;
        loop {
            let order = orders.try_recv().ok().or_else(|| {
                // Nothing more right now: what is there is written before anything is waited for.
                self.flush();
                self.budget.add_permits(std::mem::take(&mut owed));
                orders.blocking_recv()
            });
            let Some(Order::Show(event, cost)) = order else { break };
            owed += cost as usize;
            let err_first = !self.pending_err.is_empty();
            self.render(event);
            // Both streams may be one file, so their order is kept.
            match (self.pending_out.is_empty(), self.pending_err.is_empty()) {
                (false, false) if err_first => self.flush_err(),
                (false, false) => self.flush_out(),
                _ => {}
            }
            if self.pending_out.len() + self.pending_err.len() >= GATHERED {
                self.flush();
                self.budget.add_permits(std::mem::take(&mut owed));
            }
        }
        let unshown = self.unshown.load(Ordering::Relaxed);
        if unshown > 0 {
            let message = format!(
                "{unshown} frames or warnings are not shown: they came faster than they could be written"
            );
            self.render(Event::Warning { host: Arc::from(""), message });
        }
        self.human.finish(self.out.is_terminal, &mut self.pending_out, &mut self.pending_err);
        self.flush();
    }

    fn render(&mut self, event: Event) {
        if !self.style.json {
            let mut page = human::Page {
                out: &mut self.pending_out,
                err: &mut self.pending_err,
                out_terminal: self.out.is_terminal,
                err_terminal: self.err.is_terminal,
                prefix: self.style.prefix,
            };
            return self.human.render(event, &mut page);
        }
        // Frames were asked for on standard error, away from the results.
        let pending =
            if matches!(event, Event::Frame { .. }) { &mut self.pending_err } else { &mut self.pending_out };
        let begin = pending.len();
        // Into a Vec, and every event serialises.
        let _ = serde_json::to_writer(&mut *pending, &Line { time: now(), event });
        harmless_json(pending, begin);
        pending.push(b'\n');
    }

    fn flush(&mut self) {
        self.flush_err();
        self.flush_out();
    }

    fn flush_err(&mut self) {
        // There is nobody left to tell that errors cannot be told.
        let _ = self.err.write_all(&self.pending_err);
        self.pending_err.clear();
    }

    fn flush_out(&mut self) {
        if self.broken.borrow().is_none()
            && let Err(error) = self.out.write_all(&self.pending_out)
        {
            self.broken.send_replace(Some(error.kind()));
        }
        self.pending_out.clear();
    }
}

#[derive(Serialize)]
struct Line {
    time: String,
    #[serde(flatten)]
    event: Event,
}

fn now() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos()).to_string()
}

/// An error for which there is no printer, such as one of usage.
pub(crate) fn plain_error(error: &anyhow::Error) {
    let _ = Sink::new(&io::stderr()).write_all(format!("sortie: {error:#}\n").as_bytes());
}

/// Text for which there is no printer, such as a script of completions.
pub(crate) fn plain_output(bytes: &[u8]) -> anyhow::Result<()> {
    match Sink::new(&io::stdout()).write_all(bytes) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| anyhow::anyhow!("cannot write to standard output: {error}")),
    }
}

/// The bytes of an output event. What is marked as base64 and is not is given as it is.
fn output_bytes(data: String, encoding: Option<Encoding>) -> Vec<u8> {
    match encoding {
        None => data.into_bytes(),
        Some(_) => text::decode(data.clone(), encoding).unwrap_or_else(|_| data.into_bytes()),
    }
}

/// For [`Human`]: lines that have begun, by host and stream.
type Begun<T> = HashMap<(Arc<str>, Stream), T>;
