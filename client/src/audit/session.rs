//! One session's records: what is noted when, and what becomes of a session whose records cannot be written.
//!
//! The order of a session: `session` before anything is done, `login` and the commands that travel with the runner
//! before anything but the start script is sent, `ready`, each later `command` before it is sent, each `result` before
//! its caller is told, `end`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use sortie_protocol::message::{CommandMessage, Done, ErrorFrame, Event, Ready};
use sortie_protocol::{CommandType, Sha256Hex, Stream};

use super::{AuditError, AuditLog, Becoming, HostKey, Outcome, Output, Record};
use crate::error::{Error, printable};
use crate::observe::{CommandEnded, CommandStarted, FrameTrace, HostKeyShown, Observer, Step};
use crate::redact;
use crate::session::output;
use crate::transport::{Launch, Starting, Transport};

/// Most that is recorded of a runner's own words, in bytes.
const WORDS: usize = 1000;

/// What a session has to record, and has recorded.
pub(crate) struct SessionAudit {
    log: AuditLog,
    session: String,
    host: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    begun: bool,
    ended: bool,
    host_key: Option<String>,
    /// Commands that travel with the runner, until it is known that they will.
    early: Vec<Record>,
    /// Commands that were sent and not answered, by their ids; a program that speaks the protocol itself may use one again before
    /// its first command is answered, and is answered in order.
    commands: HashMap<String, VecDeque<Sent>>,
    count: u64,
    /// Records that could not be written, and why the first could not.
    unrecorded: u64,
    broken: Option<AuditError>,
}

struct Sent {
    kind: CommandType,
    sensitive: bool,
    /// What came as events of standard output and standard error.
    streams: [Option<Passed>; 2],
}

/// Output that went by.
#[derive(Default)]
struct Passed {
    bytes: u64,
    sha256: Sha256,
}

impl SessionAudit {
    pub(crate) fn new(log: AuditLog, host: &str) -> Arc<Self> {
        let session = log.next_session();
        Arc::new(Self { log, session, host: host.to_owned(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The error of a session whose records cannot be written. `ran`: it may have done something.
    pub(crate) fn error(&self, problem: AuditError, ran: bool) -> Error {
        Error::Audit { host: self.host.clone(), problem, ran }
    }

    /// Why nothing more may be run, if that is so.
    pub(crate) fn broken(&self) -> Option<Error> {
        self.state().broken.clone().map(|problem| self.error(problem, true))
    }

    /// The same way to the host, on which nothing is sent before it is on record who let us in. [`Self::begin`] comes first.
    pub(crate) fn watch<'a>(&'a self, transport: &'a dyn Transport) -> impl Transport + 'a {
        Audited { transport, audit: self }
    }

    /// Records why the host was not reached, if it was not.
    pub(crate) async fn reached<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result {
            // Why there is no session is told, whether that can be recorded or not.
            let _ = self.end(Some(error)).await;
        }
        result
    }

    /// Before anything is done.
    pub(crate) async fn begin(&self, way: String) -> Result<(), Error> {
        let who = self.log.who().clone();
        let begin = Record::Session { session: self.session.clone(), host: self.host.clone(), way, who };
        self.log.record(vec![begin]).await.map_err(|problem| self.error(problem, false))?;
        self.log.begun();
        self.state().begun = true;
        Ok(())
    }

    /// A command is to travel with the runner.
    pub(crate) fn early(&self, message: &CommandMessage, sensitive: bool) {
        let record = self.command_record(message, sensitive);
        self.state().early.push(record);
        self.track(message, sensitive);
    }

    /// The host let us in, and nothing was sent to it yet.
    async fn logged_in(&self, host_keys: Vec<HostKey>) -> Result<(), AuditError> {
        let mut records = {
            let mut state = self.state();
            state.host_key = host_keys.last().map(|key| key.fingerprint.clone());
            std::mem::take(&mut state.early)
        };
        let fingerprint = host_keys.last().map(|key| key.fingerprint.clone());
        for record in &mut records {
            if let Record::Command { host_key, .. } = record {
                host_key.clone_from(&fingerprint);
            }
        }
        let count = records.len() as u64;
        let login = Record::Login { session: self.session.clone(), host: self.host.clone(), host_keys };
        records.insert(0, login);
        self.log.record(records).await?;
        self.state().count += count;
        Ok(())
    }

    /// The runner is up.
    pub(crate) fn ready(self: &Arc<Self>, ready: &Ready) {
        let host = ready.host.clone().unwrap_or_default();
        let word = |text: &str| printable(text.as_bytes(), 256);
        let record = Record::Ready {
            session: self.session.clone(),
            host: self.host.clone(),
            runner_session: word(&ready.session),
            sha256: word(&ready.sha256),
            hostname: word(&host.hostname),
            user: word(&host.user),
            uid: host.uid,
            boot_id: word(&host.boot_id),
        };
        self.submit(record, |_| ());
    }

    /// Before a command is sent.
    pub(crate) async fn command(&self, message: &CommandMessage, sensitive: bool) -> Result<(), Error> {
        self.signed_command(message, None, sensitive).await
    }

    /// The same for one that carries a signature of the key with this fingerprint.
    pub(crate) async fn signed_command(
        &self,
        message: &CommandMessage,
        signer: Option<String>,
        sensitive: bool,
    ) -> Result<(), Error> {
        if let Some(error) = self.broken() {
            return Err(error);
        }
        let mut record = self.command_record(message, sensitive);
        if let Record::Command { signed_by, .. } = &mut record {
            *signed_by = signer;
        }
        self.track(message, sensitive);
        match self.log.record(vec![record]).await {
            Ok(()) => {
                self.state().count += 1;
                Ok(())
            }
            Err(problem) => {
                let mut state = self.state();
                if let Some(sent) = state.commands.get_mut(&message.id) {
                    sent.pop_back();
                }
                state.broken.get_or_insert_with(|| problem.clone());
                Err(self.error(problem, false))
            }
        }
    }

    fn track(&self, message: &CommandMessage, sensitive: bool) {
        let sent = Sent { kind: message.kind, sensitive, streams: [None, None] };
        self.state().commands.entry(message.id.clone()).or_default().push_back(sent);
    }

    fn command_record(&self, message: &CommandMessage, sensitive: bool) -> Record {
        let becoming = |whom: &sortie_protocol::message::Become| Becoming {
            user: whom.user.clone(),
            method: whom.method,
        };
        Record::Command {
            session: self.session.clone(),
            host: self.host.clone(),
            host_key: self.state().host_key.clone(),
            who: self.log.who().user.clone(),
            signed_by: None,
            id: message.id.clone(),
            command: message.kind.name().to_owned(),
            timeout: message.timeout,
            r#become: message.r#become.as_ref().map(becoming),
            check: message.check,
            params: redact::params(message.kind, &message.params, sensitive),
            input: sortie_protocol::command::announces_input(&message.params),
        }
    }

    /// Output went by.
    pub(crate) fn output(&self, event: &Event) {
        let Some((stream, bytes)) = output(event) else { return };
        if let Some(sent) = self.state().commands.get_mut(&event.command_id).and_then(VecDeque::front_mut) {
            let passed = sent.streams[usize::from(stream == Stream::Stderr)].get_or_insert_default();
            passed.bytes += bytes.len() as u64;
            if !sent.sensitive {
                passed.sha256.update(&bytes);
            }
        }
    }

    /// What is to be recorded of an answer; nothing of one to a command that is not under way.
    pub(crate) fn answer(&self, id: &str, answer: Result<&Done, &ErrorFrame>) -> Option<Record> {
        let Sent { kind, sensitive, streams } = {
            let mut state = self.state();
            let sent = state.commands.get_mut(id)?;
            let first = sent.pop_front();
            if sent.is_empty() {
                state.commands.remove(id);
            }
            first?
        };
        let [stdout, stderr] = streams.map(|passed| {
            passed.map(|Passed { bytes, sha256 }| Output {
                bytes,
                sha256: (!sensitive).then(|| Sha256Hex::from_bytes(&sha256.finalize().into()).to_string()),
            })
        });
        Some(Record::Result {
            session: self.session.clone(),
            host: self.host.clone(),
            id: id.to_owned(),
            command: kind.name().to_owned(),
            outcome: outcome(answer, sensitive),
            stdout,
            stderr,
        })
    }

    /// A command was answered: `tell` is called once `record` is written, or with the reason why it is not.
    pub(crate) fn answered(
        self: &Arc<Self>,
        record: Option<Record>,
        tell: impl FnOnce(Option<Error>) + Send + 'static,
    ) {
        let Some(record) = record else { return tell(None) };
        let audit = Arc::clone(self);
        self.submit(record, move |problem| tell(problem.map(|problem| audit.error(problem, true))));
    }

    /// The session is over; `error` is why it did not end in order. Gives what could not be recorded of it.
    pub(crate) async fn end(&self, error: Option<&Error>) -> Option<Error> {
        let record = {
            let mut state = self.state();
            if !state.begun || std::mem::replace(&mut state.ended, true) {
                return None;
            }
            self.end_record(&state, error)
        };
        let result = self.log.record(vec![record]).await;
        self.log.ended();
        if let Err(problem) = result {
            self.state().broken.get_or_insert(problem);
        }
        self.broken()
    }

    fn end_record(&self, state: &State, error: Option<&Error>) -> Record {
        // Those that never got as far as the host were not recorded as about to be sent.
        let sent = state.commands.iter().filter(|_| state.count > 0);
        let mut unanswered: Vec<String> =
            sent.flat_map(|(id, sent)| sent.iter().map(|_| id.clone())).collect();
        unanswered.sort();
        Record::End {
            session: self.session.clone(),
            host: self.host.clone(),
            how: error.map_or("closed", Error::kind).to_owned(),
            reason: error.map(|error| printable(error.to_string().as_bytes(), WORDS)),
            commands: state.count,
            unanswered,
            unrecorded: state.unrecorded,
        }
    }

    /// Has a record written whose failure breaks the session.
    fn submit(self: &Arc<Self>, record: Record, then: impl FnOnce(Option<AuditError>) + Send + 'static) {
        let audit = Arc::clone(self);
        self.log.submit(vec![record], move |result| {
            let problem = result.err();
            if let Some(problem) = &problem {
                let mut state = audit.state();
                state.unrecorded += 1;
                state.broken.get_or_insert_with(|| problem.clone());
            }
            then(problem);
        });
    }
}

impl Drop for SessionAudit {
    /// A session that was given up before it came about, or whose process ends at once.
    fn drop(&mut self) {
        let state = std::mem::take(&mut *self.state());
        if state.begun && !state.ended {
            let error = Error::Closed { host: self.host.clone() };
            let log = self.log.clone();
            self.log.submit(vec![self.end_record(&state, Some(&error))], move |_| log.ended());
        }
    }
}

fn outcome(answer: Result<&Done, &ErrorFrame>, sensitive: bool) -> Outcome {
    /// Members that many results have; a result without them is none the worse.
    #[derive(Deserialize, Default)]
    struct Common {
        exit_code: Option<i64>,
        changed: Option<bool>,
    }
    match answer {
        Ok(done) => {
            let Common { exit_code, changed } = serde_json::from_str(done.result.get()).unwrap_or_default();
            let digest = || Sha256Hex::from_bytes(&Sha256::digest(done.result.get()).into()).to_string();
            // Of a runner that lies it may be no number of seconds at all.
            let seconds = Duration::try_from_secs_f64(done.duration).unwrap_or_default().as_secs_f64();
            Outcome::Done { result_sha256: (!sensitive).then(digest), seconds, exit_code, changed }
        }
        Err(error) => {
            let message = (!sensitive).then(|| printable(error.message.as_bytes(), WORDS));
            Outcome::Error {
                code: printable(error.code.to_string().as_bytes(), 100),
                class: error.class,
                message,
            }
        }
    }
}

/// A way to a host on which nothing is sent before it is on record who let us in.
struct Audited<'a> {
    transport: &'a dyn Transport,
    audit: &'a SessionAudit,
}

impl Transport for Audited<'_> {
    fn host(&self) -> &str {
        self.transport.host()
    }

    fn start<'a>(&'a self, launch: &'a Launch, observer: &'a dyn Observer) -> Starting<'a> {
        Box::pin(async move {
            let noting = Noting { observer, host_keys: Mutex::default() };
            let connection = self.transport.start(launch, &noting).await?;
            let host_keys = noting.host_keys.into_inner().unwrap_or_else(PoisonError::into_inner);
            if let Err(problem) = self.audit.logged_in(host_keys).await {
                connection.ending.abort();
                return Err(self.audit.error(problem, false));
            }
            Ok(connection)
        })
    }

    fn unattended(&self) -> bool {
        self.transport.unattended()
    }
}

/// Passes everything on, and notes the host keys.
struct Noting<'a> {
    observer: &'a dyn Observer,
    host_keys: Mutex<Vec<HostKey>>,
}

impl Observer for Noting<'_> {
    fn step_started(&self, step: Step) {
        self.observer.step_started(step);
    }

    fn step_finished(&self, step: Step, took: Duration, round_trips: u32, detail: &str) {
        self.observer.step_finished(step, took, round_trips, detail);
    }

    fn host_key(&self, host: &str, key: &HostKeyShown) {
        let shown = HostKey {
            host: host.to_owned(),
            algorithm: key.algorithm.clone(),
            fingerprint: key.fingerprint.clone(),
            authority: key.authority.clone(),
            added_to: key.added_to.clone(),
        };
        self.host_keys.lock().unwrap_or_else(PoisonError::into_inner).push(shown);
        self.observer.host_key(host, key);
    }

    fn command_started(&self, command: &CommandStarted<'_>) {
        self.observer.command_started(command);
    }

    fn command_ended(&self, command: &CommandEnded<'_>) {
        self.observer.command_ended(command);
    }

    fn wants_commands(&self) -> bool {
        self.observer.wants_commands()
    }

    fn session_ended(&self, error: Option<&Error>) {
        self.observer.session_ended(error);
    }

    fn warning(&self, text: &str) {
        self.observer.warning(text);
    }

    fn frame(&self, frame: &FrameTrace<'_>) {
        self.observer.frame(frame);
    }

    fn wants_frames(&self) -> bool {
        self.observer.wants_frames()
    }
}
