//! What a session's tasks and its users share: the commands under way, what was heard, how it ended.
//!
//! Nothing here waits while it holds the lock, and nothing here knows a transport.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::atomic::{self, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use sortie_protocol::message::{CommandMessage, Done, ErrorFrame, Event, Exit, Ready, RunnerMessage};
use sortie_protocol::signed::Statement;
use sortie_protocol::{ControllerMessage, Stream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::backlog::Backlog;
use super::signed::Collected;
use crate::audit::{SessionAudit, now};
use crate::error::{Error, printable};
use crate::observe::{CommandEnded, CommandStarted, Direction, FrameTrace, Observer, Step};
use crate::redact;
use crate::signing::Signer;
use crate::transport::Ended;

/// How many errors of the runner that belong to no command are told of.
const COMPLAINTS: u32 = 20;
/// What may wait for the link, in KiB, besides small frames.
const BUDGET: usize = 1024;
/// Credit for input where READY does not say it.
const STDIN_WINDOW: u64 = 256 * 1024;

/// How a command ended: its result as it came, or why there is none.
pub(super) type Outcome = Result<Box<Done>, Error>;

/// How a session ended.
#[derive(Debug, Clone)]
pub(super) struct Finish {
    pub(super) exit: Option<Exit>,
    pub(super) ended: Ended,
    /// Why it was not in order.
    pub(super) error: Option<Error>,
}

/// A command under way.
#[derive(Default)]
pub(super) struct Command {
    events: Backlog,
    outcome: Option<Outcome>,
    wants_input: bool,
    input_credit: u64,
    /// Not sent yet: its input is signed with it.
    pub(super) collected: Option<Collected>,
}

/// One queue's worth of news for whoever holds a command.
pub(super) enum News {
    Event(Event),
    Outcome(Outcome),
}

/// What goes to the writer. One queue, in order: a CANCEL must not overtake its CMD.
pub(super) enum Outgoing {
    /// A line, with its share of the budget if it is one that had to wait for some.
    Frame(Bytes, Option<OwnedSemaphorePermit>),
    /// Nothing more comes: end of input.
    End,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) commands: HashMap<String, Command>,
    exit: Option<Exit>,
    /// Errors of the runner that belonged to no command.
    complaints: u32,
    /// Set once; nothing is sent or started afterwards.
    failed: Option<Error>,
    /// SHUTDOWN was sent: commands are accepted no more.
    closing: bool,
    /// Commands that are kept back.
    pub(super) unsent: usize,
    /// SHUTDOWN is to follow the last of them.
    pub(super) shutdown_when_sent: bool,
}

pub(super) struct Shared {
    pub(super) host: String,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) audit: Option<Arc<SessionAudit>>,
    /// Who signs every command, where that is asked for.
    pub(super) signer: Option<Arc<Signer>>,
    trace: bool,
    /// Whether the observer wants to be told of commands.
    tell_commands: bool,
    ready: OnceLock<Ready>,
    state: Mutex<State>,
    /// Wakes whoever waits for events, outcomes or credit.
    news: Notify,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    /// Bounds what commands and input may wait for the link; small frames (CANCEL, CREDIT, PING, SHUTDOWN) need none.
    budget: Arc<Semaphore>,
    pub(super) finish: watch::Sender<Option<Finish>>,
    next_id: AtomicU64,
}

impl Shared {
    pub(super) fn new(
        host: String,
        observer: Arc<dyn Observer>,
        audit: Option<Arc<SessionAudit>>,
        signer: Option<Arc<Signer>>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Outgoing>) {
        let (outgoing, receiver) = mpsc::unbounded_channel();
        let shared = Self {
            host,
            trace: observer.wants_frames(),
            tell_commands: observer.wants_commands(),
            observer,
            audit,
            signer,
            ready: OnceLock::new(),
            state: Mutex::default(),
            news: Notify::new(),
            outgoing,
            budget: Arc::new(Semaphore::new(BUDGET)),
            finish: watch::Sender::new(None),
            next_id: AtomicU64::new(1),
        };
        (Arc::new(shared), receiver)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn next_id(&self) -> String {
        format!("c{}", self.next_id.fetch_add(1, atomic::Ordering::Relaxed))
    }

    pub(super) fn ready(&self) -> Option<&Ready> {
        self.ready.get()
    }

    /// The runner is up: input may flow.
    pub(super) fn set_ready(&self, ready: Ready, bytes: usize) {
        if self.trace {
            self.trace_received(&RunnerMessage::Ready(Box::new(ready.clone())), bytes);
        }
        if let Some(audit) = &self.audit {
            audit.ready(&ready);
        }
        let window = ready.limits.map_or(STDIN_WINDOW, |limits| limits.stdin_window);
        // Set once, by the one task that starts the session.
        let _ = self.ready.set(ready);
        for command in self.state().commands.values_mut().filter(|command| command.wants_input) {
            command.input_credit = window;
        }
        self.news.notify_waiters();
    }

    /// Takes a command under its id, before it is sent.
    pub(super) fn add_command(&self, id: &str, window: Option<u64>, wants_input: bool) -> Result<(), Error> {
        let credit =
            self.ready().map(|ready| ready.limits.map_or(STDIN_WINDOW, |limits| limits.stdin_window));
        let mut state = self.state();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        if state.closing {
            return Err(Error::Closed { host: self.host.clone() });
        }
        if state.commands.contains_key(id) {
            return Err(Error::Config {
                host: self.host.clone(),
                reason: format!("a command with the id {id:?} is already under way"),
            });
        }
        let input_credit = if wants_input { credit.unwrap_or(0) } else { 0 };
        let events = Backlog::new(window.unwrap_or(u64::MAX));
        state
            .commands
            .insert(id.to_owned(), Command { events, wants_input, input_credit, ..Command::default() });
        Ok(())
    }

    /// Forgets a command that nobody waits for. Says whether it was still running.
    pub(super) fn forget(&self, id: &str) -> bool {
        let forgotten = self.state().commands.remove(id);
        if forgotten.as_ref().is_some_and(|command| command.collected.is_some()) {
            self.collected_is_sent();
            return false;
        }
        forgotten.is_some_and(|command| command.outcome.is_none())
    }

    /// Waits until there is a runner.
    pub(super) async fn up(&self) -> Result<(), Error> {
        loop {
            let notified = self.news.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(error) = &self.state().failed {
                return Err(error.clone());
            }
            if self.ready().is_some() {
                return Ok(());
            }
            notified.await;
        }
    }

    /// Ends one command for a reason of this side's.
    pub(super) fn fail_command(&self, id: &str, error: Error) {
        self.tell_outcome(id, Err(error));
        self.news.notify_waiters();
    }

    pub(super) fn set_closing(&self) -> bool {
        !std::mem::replace(&mut self.state().closing, true)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.state().closing
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        self.state().exit.clone()
    }

    /// The next event of a command, or how it ended once its events are taken.
    pub(super) async fn next_news(&self, id: &str) -> News {
        loop {
            let notified = self.news.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(news) = self.try_news(id) {
                return news;
            }
            notified.await;
        }
    }

    fn try_news(&self, id: &str) -> Option<News> {
        let mut state = self.state();
        let Some(command) = state.commands.get_mut(id) else {
            // Taken already, or the session was gone before it was added.
            let error = state.failed.clone().unwrap_or_else(|| Error::Closed { host: self.host.clone() });
            return Some(News::Outcome(Err(error)));
        };
        if let Some(event) = command.events.pop() {
            return Some(News::Event(event));
        }
        let outcome = command.outcome.take()?;
        state.commands.remove(id);
        Some(News::Outcome(outcome))
    }

    /// Output was taken by its consumer, and CREDIT for it is about to be sent.
    pub(super) fn acknowledge(&self, id: &str, bytes: u64) {
        if let Some(command) = self.state().commands.get_mut(id) {
            command.events.acknowledge(bytes);
        }
    }

    /// Waits until input may be sent, and takes at most `wanted` bytes of credit.
    pub(super) async fn take_input_credit(&self, id: &str, wanted: usize) -> Result<usize, Error> {
        loop {
            let notified = self.news.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let mut state = self.state();
                if let Some(error) = &state.failed {
                    return Err(error.clone());
                }
                // A command that has ended takes no more input, which is its own business: `grep -q` does that.
                let Some(command) = state.commands.get_mut(id).filter(|command| command.outcome.is_none())
                else {
                    return Ok(0);
                };
                if command.input_credit > 0 {
                    let taken = usize::try_from(command.input_credit).unwrap_or(usize::MAX).min(wanted);
                    command.input_credit -= taken as u64;
                    return Ok(taken);
                }
            }
            notified.await;
        }
    }

    /// Ends the session for everybody; the first reason counts.
    pub(super) fn fail(&self, error: &Error) {
        {
            let mut state = self.state();
            let error = state.failed.get_or_insert_with(|| error.clone()).clone();
            for command in state.commands.values_mut() {
                command.outcome.get_or_insert_with(|| Err(error.clone()));
            }
        }
        self.news.notify_waiters();
    }

    /// Takes in one frame of the runner. An error is one that ends the session: the peer does not keep to the rules.
    pub(super) fn receive(self: &Arc<Self>, message: RunnerMessage, bytes: usize) -> Result<(), String> {
        self.trace_received(&message, bytes);
        if self.state().exit.is_some() {
            return Err(format!(
                "it sent {} after EXIT, which is the last of its frames",
                message.type_name()
            ));
        }
        match message {
            RunnerMessage::Event(event) => self.receive_event(event)?,
            RunnerMessage::Done(done) => {
                let id = done.command_id.clone();
                self.receive_outcome(id, Ok(Box::new(done)));
            }
            RunnerMessage::Error(error) if error.command_id.is_empty() => {
                // It belongs to no command that waits for it.
                self.complaint(&error);
            }
            RunnerMessage::Error(error) => {
                let id = error.command_id.clone();
                self.receive_outcome(id, Err(self.command_error(error)));
            }
            RunnerMessage::Credit(credit) => {
                if credit.stream == Stream::Stdin
                    && let Some(command) = self.state().commands.get_mut(&credit.command_id)
                {
                    command.input_credit = command.input_credit.saturating_add(credit.bytes);
                }
            }
            RunnerMessage::Exit(exit) => self.state().exit = Some(exit),
            RunnerMessage::Pong(_) => return Ok(()),
            RunnerMessage::Ready(_) => return Err("it sent a second READY".into()),
        }
        self.news.notify_waiters();
        Ok(())
    }

    fn command_error(&self, error: ErrorFrame) -> Error {
        Error::Command { host: self.host.clone(), error: Box::new(error) }
    }

    fn receive_event(&self, event: Event) -> Result<(), String> {
        if let Some(audit) = &self.audit {
            audit.output(&event);
        }
        let mut state = self.state();
        // Of a command that nobody waits for any more, or that has ended.
        match state.commands.get_mut(&event.command_id).filter(|command| command.outcome.is_none()) {
            Some(command) => command.events.push(event),
            None => Ok(()),
        }
    }

    /// The runner refuses something, and does not say of which command.
    fn complaint(&self, error: &ErrorFrame) {
        let complaints = {
            let mut state = self.state();
            state.complaints = state.complaints.saturating_add(1);
            state.complaints
        };
        let more = match complaints.cmp(&COMPLAINTS) {
            Ordering::Less => "",
            Ordering::Equal => "; what more it says of this kind is not shown",
            Ordering::Greater => return,
        };
        let (code, message) = (error.code.as_str().as_bytes(), error.message.as_bytes());
        let said = format!("{}: {}", printable(code, 40), printable(message, 500));
        self.observer.warning(&format!("{}: the runner says {said}{more}", self.host));
    }

    /// A command has ended. It is told when that is on record.
    fn receive_outcome(self: &Arc<Self>, id: String, outcome: Outcome) {
        let Some(audit) = &self.audit else { return self.tell_outcome(&id, outcome) };
        let answer = match &outcome {
            Ok(done) => Ok(&**done),
            Err(Error::Command { error, .. }) => Err(&**error),
            // No answer of the runner's.
            Err(_) => return self.tell_outcome(&id, outcome),
        };
        let (record, shared) = (audit.answer(&id, answer), Arc::clone(self));
        audit.answered(record, move |unrecorded| {
            shared.tell_outcome(&id, unrecorded.map_or(outcome, Err));
        });
    }

    /// A command is about to be sent.
    pub(super) fn command_started(&self, message: &CommandMessage) {
        if self.tell_commands {
            let becoming = message.r#become.as_ref().map(|whom| whom.user.as_str());
            let CommandMessage { id, kind, check, .. } = message;
            self.observer.command_started(&CommandStarted { id, kind: *kind, becoming, check: *check });
        }
    }

    fn command_ended(&self, id: &str, outcome: &Outcome) {
        let (exit_code, error) = match outcome {
            Ok(done) => (exit_code(done), None),
            Err(Error::Command { error, .. }) => (None, Some(error.code.to_string())),
            Err(error) => (None, Some(error.kind().to_owned())),
        };
        self.observer.command_ended(&CommandEnded { id, exit_code, error: error.as_deref() });
    }

    fn tell_outcome(&self, id: &str, outcome: Outcome) {
        if self.tell_commands {
            self.command_ended(id, &outcome);
        }
        if let Some(command) = self.state().commands.get_mut(id) {
            let dropped = command.events.dropped;
            if dropped > 0 {
                self.observer
                    .warning(&format!("{}: {dropped} messages of command {id} were dropped", self.host));
            }
            command.outcome.get_or_insert(outcome);
        }
        self.news.notify_waiters();
    }

    /// A frame as a line, traced.
    pub(super) fn encode(&self, message: &ControllerMessage) -> Bytes {
        let line = message.to_line(now());
        if self.trace {
            self.observer.frame(&FrameTrace {
                direction: Direction::Sent,
                kind: message.type_name(),
                command_id: &sent_command_id(message),
                bytes: line.len(),
                summary: redact::sent(message),
            });
        }
        line.into()
    }

    /// Sends a small frame. Where the session is gone it is dropped, which its user learns elsewhere.
    pub(super) fn send_small(&self, message: &ControllerMessage) {
        let _ = self.outgoing.send(Outgoing::Frame(self.encode(message), None));
    }

    /// Sends a frame that may have to wait for the link.
    pub(super) async fn send_bulk(&self, line: Bytes) -> Result<(), Error> {
        let share = line.len().div_ceil(1024).min(BUDGET);
        let permit =
            Arc::clone(&self.budget).acquire_many_owned(u32::try_from(share).unwrap_or(u32::MAX)).await;
        let sent = match permit {
            Ok(permit) => self.outgoing.send(Outgoing::Frame(line, Some(permit))).is_ok(),
            Err(_) => false,
        };
        if sent {
            return Ok(());
        }
        Err(self.state().failed.clone().unwrap_or_else(|| Error::Closed { host: self.host.clone() }))
    }

    /// Closes the runner's input and lets nobody wait for the link any more.
    pub(super) fn end_output(&self) {
        self.budget.close();
        let _ = self.outgoing.send(Outgoing::End);
    }

    fn trace_received(&self, message: &RunnerMessage, bytes: usize) {
        if !self.trace {
            return;
        }
        let command_id = match message {
            RunnerMessage::Event(event) => event.command_id.as_str(),
            RunnerMessage::Done(done) => done.command_id.as_str(),
            RunnerMessage::Error(error) => error.command_id.as_str(),
            RunnerMessage::Credit(credit) => credit.command_id.as_str(),
            RunnerMessage::Ready(_) | RunnerMessage::Exit(_) | RunnerMessage::Pong(_) => "",
        };
        let summary = redact::received(message);
        let kind = message.type_name();
        self.observer.frame(&FrameTrace { direction: Direction::Received, kind, command_id, bytes, summary });
    }

    /// What an error of this session is called while it lasts.
    pub(super) fn lost(&self, step: Step, reason: String, alive: bool) -> Error {
        let pid = self.ready().map(|ready| ready.pid).filter(|_| alive);
        Error::Lost { host: self.host.clone(), step, reason, pid }
    }
}

/// The exit status that a result has, if it is of a kind that has one.
fn exit_code(done: &Done) -> Option<i64> {
    #[derive(serde::Deserialize)]
    struct Ran {
        exit_code: i64,
    }
    serde_json::from_str(done.result.get()).ok().map(|ran: Ran| ran.exit_code)
}

fn sent_command_id(message: &ControllerMessage) -> Cow<'_, str> {
    let id = match message {
        ControllerMessage::Command(command) => &command.id,
        ControllerMessage::Input(input) => &input.command_id,
        ControllerMessage::Credit(credit) => &credit.command_id,
        ControllerMessage::Cancel(cancel) => &cancel.command_id,
        ControllerMessage::Confirm(confirm) => &confirm.command_id,
        ControllerMessage::Signed(signed) => return Statement::about(&signed.text).0.into(),
        ControllerMessage::Ping(_) | ControllerMessage::Shutdown(_) => "",
    };
    id.into()
}
