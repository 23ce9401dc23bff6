//! A list applied to one host: what is sent when, and what came of it. As much as can be travels at once and runs one
//! after the other on the host (`sequence`); the client waits only where a step needs what an earlier one gave.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use minijinja::Value;
use serde_json::value::RawValue;
use sortie_protocol::ErrorCode;
use sortie_protocol::command::exec::ExecResult;
use sortie_protocol::limits::{ResourceLimits, Usage};
use sortie_protocol::message::{Become, CommandMessage, Done, ErrorFrame};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::file::StepList;
use super::footprint::Part;
use super::outcome::{Ended, Event, Report, Status, StepFailure, as_result};
use super::prepare::{self, Decision, Known, Prepared};
use crate::error::{Error, printable};
use crate::redact;
use crate::session::wants_confirm;
use crate::session::{Farewell, Opening, Running, Session, awaits_confirmation};

/// Events that wait for their consumer before the host has to.
const EVENTS: usize = 64;
/// Bytes of params on their way, at most; a single command may have more.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// Commands on their way, at most.
const MOST_COMMANDS: usize = 256;
/// The sequence that all steps belong to which end the list when they fail.
pub(super) const SEQUENCE: &str = "apply";
/// What is shown of what a failed program said, in bytes.
const SAID: usize = 2000;

/// How a list is applied.
#[derive(Debug, Clone)]
pub struct Options {
    /// For each step that says nothing else; whole seconds, at least 1.
    pub timeout: Duration,
    /// Change nothing, say what would change.
    pub check: bool,
    /// Add unified diffs to results.
    pub diff: bool,
    /// Whom steps become that say nothing else. The password is also for steps that become somebody by the same program
    /// and bring none; with `su`, where it is that of the other user, only if that is the same.
    pub r#become: Option<Become>,
    /// Limits of the programs of every step that says nothing else.
    pub limits: Option<ResourceLimits>,
    /// Say of each step what its programs took.
    pub usage: bool,
}

impl Default for Options {
    /// Five minutes a step, for real, as the login user.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(300),
            check: false,
            diff: false,
            r#become: None,
            limits: None,
            usage: false,
        }
    }
}

/// A list that is being applied to a host. Dropping it ends the session at once, with what runs in it.
#[derive(Debug)]
pub struct Applying {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<Report>,
    stop: watch::Sender<bool>,
}

impl StepList {
    /// Applies the list by way of a session that is not connected yet.
    #[must_use]
    pub fn apply(self: &Arc<Self>, opening: Opening, options: Options) -> Applying {
        let (sender, events) = mpsc::channel(EVENTS);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(Arc::clone(self), opening, options, sender, stopped));
        Applying { events, task, stop }
    }
}

impl Applying {
    /// The next event; `None` once all is through. Who does not take events holds up this host, and no other. Cancel safe.
    pub async fn next_event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// A handle that can stop it from elsewhere.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper { stop: self.stop.clone() }
    }

    /// Waits until the session has ended; events that were not taken are passed over.
    pub async fn wait(mut self) -> Report {
        while self.events.recv().await.is_some() {}
        (&mut self.task).await.unwrap_or_else(|_| Report { stopped: true, ..Report::default() })
    }
}

/// Stops a list on one host.
#[derive(Debug, Clone)]
pub struct Stopper {
    stop: watch::Sender<bool>,
}

impl Stopper {
    /// Ends the step that runs, with all that it started, and begins no other.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

impl Drop for Applying {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    list: Arc<StepList>,
    mut opening: Opening,
    options: Options,
    events: mpsc::Sender<Event>,
    mut stop: watch::Receiver<bool>,
) -> Report {
    let mut host = Host {
        known: prepare::Host::new(&list, opening.host(), &options),
        list: &list,
        events,
        report: Report::default(),
        flying: VecDeque::new(),
        next: 0,
        over: false,
    };
    // The first one travels with the runner, where nothing of the host is needed to know what it is.
    let first = host.send_first(&mut opening);
    let connected = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => None,
        connected = opening.connect() => Some(connected),
    };
    match connected {
        None => {
            host.report.stopped = true;
            let error = Error::Closed { host: host.known.name().to_owned() };
            host.perhaps_run(first, error).await;
        }
        Some(Err(error)) => {
            let first = first.filter(|_| matches!(error, Error::Lost { .. }));
            host.perhaps_run(first, error.clone()).await;
            host.report.error = Some(error);
        }
        Some(Ok(session)) => {
            host.known.connected(session.ready());
            host.flying.extend(first);
            host.steps(&session, &mut stop).await;
            host.flying.clear();
            let ended: Result<Farewell, Error> = session.shutdown(None).await;
            if let Err(error) = ended {
                let whole = host.report.error.is_none() && host.known.settled() == list.steps.len();
                // At its end a session knows more of why it is lost.
                *(if whole { &mut host.report.goodbye } else { &mut host.report.error }) = Some(error);
            }
        }
    }
    host.leave_undone().await;
    host.report
}

/// A step that is on its way, or whose outcome waits for its turn to be told.
struct Flying {
    at: usize,
    /// What it may change.
    writes: Part,
    bytes: usize,
    what: What,
}

enum What {
    Running { running: Running, feeder: Option<Feeder>, exact: bool },
    Settled(Status),
}

/// What a step took.
#[derive(Default)]
struct Took {
    seconds: f64,
    usage: Option<Usage>,
}

/// Sends content; ends with the step.
struct Feeder(tokio::task::AbortHandle);

impl Drop for Feeder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Host<'l> {
    list: &'l StepList,
    known: prepare::Host<'l>,
    events: mpsc::Sender<Event>,
    report: Report,
    /// In the order of the list.
    flying: VecDeque<Flying>,
    /// The first step that is not flying yet.
    next: usize,
    /// Nothing more is sent.
    over: bool,
}

impl Host<'_> {
    fn send_first(&mut self, opening: &mut Opening) -> Option<Flying> {
        let step = self.list.steps.first()?;
        // The host is asked something before anything else.
        if self.known.checks() || step.check || self.known.wanted_facts().is_some() {
            return None;
        }
        if !step.facts.is_empty() || !step.conditions.is_empty() || step.is_alone(self.known.checks()) {
            return None;
        }
        let Decision::Run(prepared) = self.known.decide(0) else { return None };
        if prepared.input.is_some() {
            return None;
        }
        let running = match step.sensitive {
            true => opening.start_raw_sensitive(&prepared.message),
            false => opening.start_raw(&prepared.message),
        };
        let running = running.ok()?;
        self.next = 1;
        if self.list.steps.len() == 1 {
            opening.shutdown();
        }
        Some(Self::flying(0, *prepared, running))
    }

    fn flying(at: usize, prepared: Prepared, running: Running) -> Flying {
        let Prepared { message, writes, input, exact, .. } = prepared;
        let feeder = input.map(|file| {
            let (input, canceller) = (running.input(), running.canceller());
            let feeding = async move {
                let mut offset = 0;
                while offset < file.len {
                    let file = file.clone();
                    let piece = tokio::task::spawn_blocking(move || file.piece(offset, 256 * 1024)).await;
                    // A file that cannot be read to its end must not be taken for a whole one.
                    let Ok(Ok(piece)) = piece else { return canceller.cancel(None) };
                    offset += piece.len() as u64;
                    if !matches!(input.write(&piece).await, Ok(true)) {
                        return;
                    }
                }
                // Fails only with the session, which says so itself.
                let _ = input.finish().await;
            };
            Feeder(tokio::spawn(feeding).abort_handle())
        });
        let bytes = message.params.get().len();
        Flying { at, writes, bytes, what: What::Running { running, feeder, exact } }
    }

    /// The first step may have arrived, and nobody will hear of it.
    async fn perhaps_run(&mut self, first: Option<Flying>, error: Error) {
        if let Some(first) = first {
            let status = Status::Failed { failure: StepFailure::Session(error), ignored: false };
            self.end(first.at, first.writes, status, Took::default(), None).await;
        }
    }

    /// All steps, as far as it goes.
    async fn steps(&mut self, session: &Session, stop: &mut watch::Receiver<bool>) {
        if let Some(message) = self.known.wanted_facts() {
            let told = match session.start_raw(&message).await {
                Ok(running) => running.wait().await,
                Err(error) => Err(error),
            };
            self.known.take_facts(told.map(|done| done.result).map_err(failure_of));
        }
        for look in self.known.where_paths_lead() {
            // Where it fails, steps are called unknown that may not be; the first of them says why.
            if let Ok(running) = session.start_raw(&look.message).await
                && let Ok(done) = running.wait().await
            {
                let result: ExecResult = serde_json::from_str(done.result.get()).unwrap_or_default();
                self.known.paths_lead(look, result.stdout.as_deref().unwrap_or_default());
            }
        }
        loop {
            if *stop.borrow() {
                self.over = true;
                self.report.stopped = true;
            }
            if !self.over {
                self.send(session).await;
            }
            let Some(front) = self.flying.pop_front() else { return };
            self.land(session, front, stop).await;
        }
    }

    /// Sends whatever may be sent now.
    async fn send(&mut self, session: &Session) {
        let sequences = session.ready().capabilities.get("sequence") == Some(&true);
        let most = if sequences { MOST_COMMANDS } else { 1 };
        while let Some(step) = self.list.steps.get(self.next) {
            let bytes: usize = self.flying.iter().map(|flying| flying.bytes).sum();
            if self.flying.len() >= most || bytes >= MOST_BYTES {
                return;
            }
            let alone = step.is_alone(self.known.checks());
            if alone && !self.flying.is_empty() {
                return;
            }
            let at = self.next;
            let flying_writes: Vec<(usize, &Part)> =
                self.flying.iter().map(|flying| (flying.at, &flying.writes)).collect();
            let decision = match self.known.decide_after(at, &flying_writes) {
                Decision::Ask(question) if self.flying.is_empty() => {
                    match self.ask(session, &question, step.sensitive).await {
                        Ok(answer) => {
                            self.known.answer(at, answer);
                            continue;
                        }
                        Err(failure) => Decision::Settle(self.known.failed(at, failure), Part::default()),
                    }
                }
                Decision::Ask(_) | Decision::Wait => return,
                decision => decision,
            };
            let flying = match decision {
                Decision::Settle(status, writes) => {
                    Flying { at, writes, bytes: 0, what: What::Settled(status) }
                }
                Decision::Run(prepared) => {
                    let message = &prepared.message;
                    let asked = wants_confirm(message.kind, &message.params);
                    let sent = if asked { session.can_confirm() } else { Ok(()) };
                    match sent {
                        Ok(()) => match start(session, &prepared.message, step.sensitive).await {
                            Ok(running) => Self::flying(at, *prepared, running),
                            Err(error) => self.lost(at, error),
                        },
                        Err(error) => self.lost(at, error),
                    }
                }
                Decision::Ask(_) | Decision::Wait => return,
            };
            self.next += 1;
            self.flying.push_back(flying);
            if self.next == self.list.steps.len() {
                // The runner goes as soon as they are done: no round trip is spent on a goodbye.
                session.expect_no_more();
            }
            if alone {
                return;
            }
        }
    }

    fn lost(&mut self, at: usize, error: Error) -> Flying {
        let status = self.known.failed(at, failure_of(error));
        Flying { at, writes: Part::default(), bytes: 0, what: What::Settled(status) }
    }

    /// Runs the command of a condition, and says whether it exited with 0.
    async fn ask(
        &self,
        session: &Session,
        message: &CommandMessage,
        sensitive: bool,
    ) -> Result<bool, StepFailure> {
        let running = start(session, message, sensitive).await.map_err(StepFailure::Session)?;
        let done = running.wait().await.map_err(failure_of)?;
        let result: ExecResult = serde_json::from_str(done.result.get()).unwrap_or_default();
        Ok(result.exit_code == 0)
    }

    /// Takes what a step says until it has ended.
    async fn land(&mut self, session: &Session, flying: Flying, stop: &mut watch::Receiver<bool>) {
        let at = flying.at;
        let step = &self.list.steps[at];
        let (status, took, result) = match flying.what {
            What::Settled(status) => (status, Took::default(), None),
            What::Running { mut running, feeder, exact } => {
                self.tell(Event::Started { id: Arc::clone(&step.id), kind: step.kind }).await;
                let canceller = running.canceller();
                loop {
                    let event = tokio::select! {
                        biased;
                        _ = stop.wait_for(|stop| *stop), if !self.report.stopped => {
                            self.report.stopped = true;
                            self.over = true;
                            canceller.cancel(None);
                            continue;
                        }
                        event = running.next_event() => event,
                    };
                    let Some(event) = event else { break };
                    if awaits_confirmation(&event) {
                        // Where it fails the host takes the change back, and the command says so.
                        let _ = session.confirm(&event).await;
                    }
                    if !step.sensitive {
                        self.tell(Event::Said { id: Arc::clone(&step.id), event }).await;
                    }
                }
                drop(feeder);
                match running.wait().await {
                    Ok(Done { result, duration: seconds, usage, .. }) => {
                        let status = self.known.judge(at, &result, exact);
                        (status, Took { seconds, usage }, Some(result))
                    }
                    Err(Error::Command { error, .. }) if left_out(&error) && self.over => {
                        (Status::NotRun, Took::default(), None)
                    }
                    // The session was lost in an earlier step: it is that one which is told of.
                    Err(error) if self.over && !matches!(error, Error::Command { .. }) => {
                        (Status::NotRun, Took::default(), None)
                    }
                    Err(error) => {
                        if self.known.may_be_stale(at, &error) {
                            let status = Status::Unknown { depends_on: vec![Arc::clone(&step.id)] };
                            return self.end(at, flying.writes, status, Took::default(), None).await;
                        }
                        let usage = match &error {
                            Error::Command { error, .. } => error.usage.clone(),
                            _ => None,
                        };
                        (self.known.failed(at, failure_of(error)), Took { seconds: 0.0, usage }, None)
                    }
                }
            }
        };
        self.end(at, flying.writes, status, took, result).await;
    }

    async fn end(
        &mut self,
        at: usize,
        writes: Part,
        status: Status,
        took: Took,
        result: Option<Box<RawValue>>,
    ) {
        let step = &self.list.steps[at];
        if let Status::Failed { failure: StepFailure::Session(error), .. } = &status {
            self.report.error.get_or_insert_with(|| error.clone());
        }
        self.over |= status.ends_the_list();
        let value = as_result(&status, result.as_deref());
        self.known.settle(at, Known::of(&status, writes), value);
        let status = if step.sensitive { withheld(status) } else { status };
        let result = result.filter(|_| !step.sensitive);
        let check = self.known.is_check(at);
        let Took { seconds, usage } = took;
        let ended =
            Ended { id: Arc::clone(&step.id), kind: step.kind, status, check, seconds, result, usage };
        self.report.count(&ended);
        self.tell(Event::Ended(ended)).await;
    }

    /// Tells of every step that there was no outcome of.
    async fn leave_undone(&mut self) {
        let first = self.known.settled();
        for step in &self.list.steps[first..] {
            let ended = Ended {
                id: Arc::clone(&step.id),
                kind: step.kind,
                status: Status::NotRun,
                check: false,
                seconds: 0.0,
                result: None,
                usage: None,
            };
            self.report.count(&ended);
            self.tell(Event::Ended(ended)).await;
        }
    }

    async fn tell(&self, event: Event) {
        // Whoever takes no events any more does without.
        let _ = self.events.send(event).await;
    }
}

async fn start(session: &Session, message: &CommandMessage, sensitive: bool) -> Result<Running, Error> {
    match sensitive {
        true => session.start_raw_sensitive(message).await,
        false => session.start_raw(message).await,
    }
}

/// Whether a command was not run because one before it in its sequence failed.
fn left_out(error: &ErrorFrame) -> bool {
    error.code == ErrorCode::Cancelled && error.details.contains_key("sequence")
}

fn failure_of(error: Error) -> StepFailure {
    match error {
        Error::Command { error, .. } => StepFailure::Command(error),
        error => StepFailure::Session(error),
    }
}

/// What may be told of a step whose author keeps it to himself.
fn withheld(status: Status) -> Status {
    match status {
        Status::Failed { failure: StepFailure::Command(mut error), ignored } => {
            redact::withhold(&mut error);
            Status::Failed { failure: StepFailure::Command(error), ignored }
        }
        Status::Failed { failure: StepFailure::Exit { status, .. }, ignored } => {
            Status::Failed { failure: StepFailure::Exit { status, said: String::new() }, ignored }
        }
        status => status,
    }
}

/// The end of what a program said.
pub(super) fn last_words(result: &ExecResult) -> String {
    let text = |text: &Option<String>, encoded: bool| match text {
        Some(text) if !encoded && !text.trim().is_empty() => Some(printable(text.as_bytes(), SAID)),
        _ => None,
    };
    text(&result.stderr, result.stderr_encoding.is_some())
        .or_else(|| text(&result.stdout, result.stdout_encoding.is_some()))
        .unwrap_or_default()
}

/// Values by name.
pub(super) type Values = BTreeMap<String, Value>;
