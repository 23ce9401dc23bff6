//! The commands: one file each, one line each in the registry below. Handlers know their job, never the session.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::value::RawValue;
use sortie_protocol::message::{Done, Event, Progress, Strings};
use sortie_protocol::output::event_line;
use sortie_protocol::{CommandType, Encode, RunnerMessage, Stream, encode};

use crate::failure::Failure;
use crate::idempotency::{Outcome, keeps};
use crate::job::Job;
use crate::limits;
use crate::locks::{Held, Locks, Resource};
use crate::output::{Output, lock, now};
use crate::pool::{Pool, Share};

mod archive_unpack;
mod content;
mod dir_ensure;
mod exec;
mod facts;
mod file_read;
mod file_remove;
mod file_stat;
mod file_write;
mod ini_ensure;
mod line_ensure;
mod link_ensure;
mod pkg_ensure;
mod service_reload;
mod sshd_harden;
mod sudoers_ensure;
mod wait_for;

macro_rules! handlers {
    ($($kind:ident => $module:ident;)*) => {
        /// Every command that works.
        pub(crate) const SUPPORTED: &[CommandType] = &[$(CommandType::$kind,)*];

        /// Runs the command and answers it; how it ended, for those with an idempotency key.
        pub(crate) fn run(context: &Context) -> Outcome {
            // Also where in the end no program is run: what is asked for is to be possible.
            if let Err(failure) = limits::bounds(&context.job, None, false) {
                return context.fail(failure);
            }
            match context.job.command.kind {
                $(CommandType::$kind => context.finish($module::run(context).map(|result| Box::new(result) as Box<dyn Encode>)),)*
                other => context.fail(Failure::unsupported(format!("this runner has no {}", other.name()))),
            }
        }
    };
}

handlers! {
    Exec => exec;
    FileWrite => file_write;
    FileRead => file_read;
    PkgEnsure => pkg_ensure;
    ServiceReload => service_reload;
    SudoersEnsure => sudoers_ensure;
    SshdHarden => sshd_harden;
    FileStat => file_stat;
    LineEnsure => line_ensure;
    IniEnsure => ini_ensure;
    Facts => facts;
    ArchiveUnpack => archive_unpack;
    FileRemove => file_remove;
    DirEnsure => dir_ensure;
    LinkEnsure => link_ensure;
    WaitFor => wait_for;
}

/// Bytes of small frames that the peer has not read, beyond which it is told nothing of progress.
const MOST_UNREAD_PROGRESS: usize = 64 * 1024;

/// What a handler has at hand.
pub(crate) struct Context {
    pub(crate) job: Arc<Job>,
    pub(crate) output: Arc<Output>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) locks: Arc<Locks>,
    pub(crate) started: Instant,
    /// Memory that the answer takes until it is sent.
    pub(crate) held: Mutex<Vec<Share>>,
}

impl Context {
    /// Sends output as an EVENT, waiting for the peer as long as the command is not being ended.
    fn output(&self, stream: Stream, seq: u64, bytes: &[u8]) {
        let line = event_line(&self.job.command.id, now(), stream, seq, bytes);
        self.output.send_line(line, &|| self.job.ended().is_none());
    }

    /// Whether nothing is to be changed.
    pub(crate) fn check(&self) -> bool {
        self.job.command.check
    }

    /// Whether a diff is wanted.
    pub(crate) fn diff(&self) -> bool {
        self.job.command.diff
    }

    /// Tells the peer how far the command is, unless it is so slow in reading that it does not matter any more.
    pub(crate) fn progress(&self, message: impl Into<String>, progress: Option<Progress>) {
        if self.output.control_bytes() < MOST_UNREAD_PROGRESS {
            self.output.send(&RunnerMessage::Event(Event {
                command_id: self.job.command.id.clone(),
                message: message.into(),
                progress,
                ..Event::default()
            }));
        }
    }

    /// Tells the peer that a change goes back unless it comes in anew and sends CONFIRM; `fields` say how.
    fn await_confirm(&self, fields: &[(&str, String)]) {
        self.job.await_confirm();
        let mut metadata = Strings::new();
        metadata.insert("awaiting".to_owned(), "confirm".to_owned());
        for (name, value) in fields {
            metadata.insert((*name).to_owned(), value.clone());
        }
        self.output.send(&RunnerMessage::Event(Event {
            command_id: self.job.command.id.clone(),
            message: "the change is in force, and goes back unless it is confirmed".to_owned(),
            metadata,
            ..Event::default()
        }));
    }

    /// Runs a critical section: whatever is asked for meanwhile takes effect at its end. Its end may be death all the same.
    pub(crate) fn critical<T>(&self, section: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let _critical = self.job.enter_critical()?;
        section()
    }

    /// Waits for the right to change `resource`, in this session and before all others of the host.
    pub(crate) fn lock(&self, resource: Resource) -> Result<Held, Failure> {
        let directory = resource.directory();
        self.locks.acquire(&self.job, directory, OsStr::new(resource.name()))
    }

    /// Keeps memory accounted for until the answer is sent.
    fn hold(&self, shares: impl IntoIterator<Item = Share>) {
        lock(&self.held).extend(shares);
    }

    /// The command took INPUT: more may come.
    pub(crate) fn grant_input(&self, bytes: u64) {
        self.job.grant_input(bytes);
        self.output.send(&RunnerMessage::Credit(sortie_protocol::message::Credit {
            command_id: self.job.command.id.clone(),
            stream: Stream::Stdin,
            bytes,
        }));
    }

    /// Answers the command.
    fn finish(&self, result: Result<Box<dyn Encode>, Failure>) -> Outcome {
        let result = match result {
            Err(failure) => return self.fail(failure),
            Ok(result) => result,
        };
        if !self.job.take_reply() {
            return Outcome::Failed;
        }
        self.job.settle(true);
        let command_id = self.job.command.id.clone();
        let duration = self.started.elapsed().as_secs_f64();
        let usage = self.job.usage();
        if self.job.identity.is_none() {
            let done = Done { command_id, result: &*result, duration, metadata: Strings::new(), usage };
            self.output.send_bulk("DONE", &done, &|| true);
            return Outcome::Failed;
        }
        // What is written is UTF-8 and JSON.
        let text = String::from_utf8(encode(&*result)).unwrap_or_default();
        let result = RawValue::from_string(text).unwrap_or_default();
        let done = Done { command_id, result, duration, metadata: Strings::new(), usage };
        self.output.send_bulk("DONE", &done, &|| true);
        if keeps(done.result.get().len()) { Outcome::Done(duration, done.result) } else { Outcome::TooLarge }
    }

    /// Answers the command with an ERROR.
    pub(crate) fn fail(&self, failure: Failure) -> Outcome {
        if self.job.take_reply() {
            let mut frame = failure.frame(&self.job.command.id);
            frame.usage = self.job.usage().filter(|usage| !usage.measured_by.is_empty());
            if let Some(limit) = frame.usage.as_ref().and_then(|usage| usage.limit.as_ref()) {
                frame.message.push_str("; one of its programs ran into limits.");
                frame.message.push_str(limit);
            }
            self.output.send_bulk("ERROR", &frame, &|| true);
        }
        Outcome::Failed
    }
}
