//! Becoming another user: one more hop, to a second runner that sudo, doas or su starts and that speaks the same protocol.
//!
//! There is one for each user and method, kept until the session ends. A command goes there under its own id, and what
//! comes back goes out as it came. Knows whose a frame is; nothing of what commands do.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use sortie_protocol::message::{Become, BecomeMethod, Cancel, Confirm, Credit, Input, Ping};
use sortie_protocol::passing::{Forwarded, Passing, UseSudo, tells_of_failure};
use sortie_protocol::{CommandType, Encode, ErrorCode, FRAME_LIMIT, Line, Stream, frame, text};

use crate::command::{self, Context};
use crate::failure::Failure;
use crate::idempotency::{Outcome, keeps};
use crate::job::{Ended, Job};
use crate::output::{Output, lock, now};
use crate::sys::fd::{self, Waiting, Wake};
use crate::sys::{self, host};

mod refusal;
mod script;
mod start;

/// Stack of the thread that reads what another runner says.
const STACK: usize = 256 * 1024;

/// What a runner of this session is started with.
pub(crate) struct Settings {
    /// When the session ends.
    pub(crate) ends: Instant,
    pub(crate) lease: Option<Duration>,
    pub(crate) concurrency: u32,
}

/// The runners of other users.
pub(crate) struct Hops {
    settings: Arc<Settings>,
    output: Arc<Output>,
    /// Of the main thread.
    main: Arc<Wake>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    hops: Vec<Arc<Hop>>,
    pinged: Option<Instant>,
}

/// One of them.
struct Hop {
    whom: Become,
    output: Arc<Output>,
    state: Mutex<State>,
    /// Where its frames are written, whole ones only.
    input: Mutex<Option<OwnedFd>>,
}

struct State {
    phase: Phase,
    entries: Vec<Arc<Entry>>,
}

#[derive(Clone)]
enum Phase {
    Starting,
    Up,
    /// Never came up, or is gone again.
    Gone(Failure),
}

/// A command that is there, or waits to be sent.
struct Entry {
    job: Arc<Job>,
    /// How it ended, once it did.
    outcome: Mutex<Option<Outcome>>,
}

/// What a name of a user may consist of: nothing that means anything to a shell or to sudo.
fn is_user_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.@+-".contains(c)
}

/// Takes `use_sudo` and `sudo_password` out of the parameters, as the reference has them for some commands; whom they mean.
///
/// # Errors
/// `INVALID_PARAMS` where they are of the wrong type.
pub(crate) fn take_use_sudo(params: &mut Box<RawValue>) -> Result<Option<Become>, Failure> {
    let taken = UseSudo::take(params).map_err(|invalid| Failure::params(invalid.to_string()))?;
    let password = taken.sudo_password.filter(|password| !password.expose().is_empty());
    let root = Become { user: "root".to_owned(), method: BecomeMethod::Sudo, password };
    Ok(taken.use_sudo.then_some(root))
}

/// Whether there can be such a user.
///
/// # Errors
/// `INVALID_PARAMS` for a name that no user has.
pub(crate) fn check(whom: &Become) -> Result<(), Failure> {
    let user = &whom.user;
    if user.is_empty()
        || user.len() > 256
        || user.starts_with(['-', '+', '.', '@'])
        || !user.chars().all(is_user_char)
    {
        return Err(Failure::params(
            "become.user: a name of letters, digits and _ . @ + -, which does not begin with a sign",
        ));
    }
    if whom.password.as_ref().is_some_and(|password| password.expose().contains(['\n', '\r', '\0'])) {
        return Err(Failure::params(
            "become.password: nobody can type a line break or a NUL byte in a password",
        ));
    }
    Ok(())
}

impl Hops {
    pub(crate) fn new(settings: Settings, output: &Arc<Output>, main: &Arc<Wake>) -> Self {
        let (output, main) = (Arc::clone(output), Arc::clone(main));
        Self { settings: Arc::new(settings), output, main, table: Mutex::default() }
    }

    /// Runs the command as the user it wants.
    pub(crate) fn run(&self, context: &Context) -> Outcome {
        match &context.job.command.r#become {
            // Nobody needs to become who he is.
            Some(whom) if host::user_id(&whom.user) != Some(host::uid()) => {
                self.forward(context, whom).unwrap_or_else(|failure| context.fail(failure))
            }
            _ => command::run(context),
        }
    }

    fn forward(&self, context: &Context, whom: &Become) -> Result<Outcome, Failure> {
        loop {
            context.job.go_on()?;
            let entry = Arc::new(Entry { job: Arc::clone(&context.job), outcome: Mutex::default() });
            let hop = self.join(whom, &entry)?;
            let result = hop.carry(context, &entry);
            lock(&hop.state).entries.retain(|other| !Arc::ptr_eq(other, &entry));
            match result {
                // It was tried with somebody else's password.
                Err(failure)
                    if failure.code == ErrorCode::BecomeFailed && hop.whom.password != whom.password => {}
                result => return result,
            }
        }
    }

    /// The runner of that user, with the command on its list; a new one where there is none.
    fn join(&self, whom: &Become, entry: &Arc<Entry>) -> Result<Arc<Hop>, Failure> {
        let mut table = lock(&self.table);
        for hop in
            table.hops.iter().filter(|hop| hop.whom.user == whom.user && hop.whom.method == whom.method)
        {
            let mut state = lock(&hop.state);
            if !matches!(state.phase, Phase::Gone(_)) {
                state.entries.push(Arc::clone(entry));
                return Ok(Arc::clone(hop));
            }
        }
        table.hops.retain(|hop| !matches!(lock(&hop.state).phase, Phase::Gone(_)));
        let state = State { phase: Phase::Starting, entries: vec![Arc::clone(entry)] };
        let hop = Arc::new(Hop {
            whom: whom.clone(),
            output: Arc::clone(&self.output),
            state: Mutex::new(state),
            input: Mutex::default(),
        });
        let (driven, settings) = (Arc::clone(&hop), Arc::clone(&self.settings));
        sys::start::thread(c"hop", STACK, Box::new(move || driven.drive(&settings)))
            .map_err(|error| Failure::io("no thread for another user's runner", &error))?;
        table.hops.push(Arc::clone(&hop));
        table.pinged.get_or_insert_with(Instant::now);
        // It has a deadline more now.
        self.main.wake();
        Ok(hop)
    }

    /// When [`Self::ping`] wants to be called.
    pub(crate) fn next_ping(&self) -> Option<Instant> {
        let table = lock(&self.table);
        let lease = self.settings.lease.filter(|_| !table.hops.is_empty())?;
        table.pinged.map(|at| at + lease / 3)
    }

    /// Tells the others that this runner lives, which is what their lease is about.
    pub(crate) fn ping(&self, now: Instant) {
        if self.next_ping().is_none_or(|at| at > now) {
            return;
        }
        let mut table = lock(&self.table);
        table.pinged = Some(now);
        let line = frame("PING", crate::output::now(), &Ping::default());
        for hop in &table.hops {
            // Whoever holds it is writing, which says the same. Shorter than PIPE_BUF: written whole or not at all.
            if let Ok(input) = hop.input.try_lock()
                && let Some(fd) = &*input
            {
                let _ = fd::write(fd, &line);
            }
        }
    }
}

impl Hop {
    /// The life of the thread that starts the runner and reads what it says.
    fn drive(&self, settings: &Settings) {
        let (result, child) = start::start(&self.whom, settings);
        let failure = match (result, child) {
            (Ok(()), Some(mut child)) => {
                *lock(&self.input) = child.stdin.take();
                self.enter(Phase::Up);
                self.relay(&mut child, settings.lease);
                // Those that it still has get an answer first: closing waits for its end.
                self.enter(Phase::Gone(
                    Failure::new(
                        ErrorCode::Internal,
                        format!(
                            "the runner of {:?} is gone, and what the command did is not known",
                            self.whom.user
                        ),
                    )
                    .detail("reason", "become_lost"),
                ));
                *lock(&self.input) = None;
                return child.bury();
            }
            (Err(failure), child) => {
                self.enter(Phase::Gone(failure));
                return child.map_or((), start::Child::bury);
            }
            (Ok(()), None) => Failure::new(ErrorCode::Internal, "no runner"),
        };
        self.enter(Phase::Gone(failure));
    }

    fn enter(&self, phase: Phase) {
        let mut state = lock(&self.state);
        state.phase = phase;
        for entry in &state.entries {
            entry.job.wake.wake();
        }
    }

    /// Hands on what the other runner says, until it says nothing more.
    fn relay(&self, child: &mut start::Child, lease: Option<Duration>) {
        loop {
            while let Some(line) = child.decoder.next_line() {
                if let Line::Frame(line) = line {
                    self.on_frame(line);
                }
            }
            // It is pinged three times a lease, so one that lives says something.
            match child.wait(false, lease) {
                Ok(came) if came.frames != Some(0) && (came.anything || lease.is_none()) => {}
                _ => return,
            }
        }
    }

    /// One frame. Only those of commands that are there: other frames, and commands of other users, are none of its business.
    fn on_frame(&self, line: &[u8]) {
        let Some(frame) = Passing::parse(line) else { return };
        let mut state = lock(&self.state);
        let Some(at) = state.entries.iter().position(|entry| entry.job.command.id == frame.command_id) else {
            return;
        };
        let ended = matches!(frame.kind.as_str(), "DONE" | "ERROR");
        // Before the answer is sent: the peer may use the id again at once.
        let entry = if ended { state.entries.swap_remove(at) } else { Arc::clone(&state.entries[at]) };
        drop(state);
        let job = &entry.job;
        let whole = || [line, b"\n"].concat();
        match frame.kind.as_str() {
            "EVENT" => {
                // Only who holds the session's input knows whether a confirmation can still come.
                if job.command.kind == CommandType::SshdHarden && frame.awaits {
                    job.await_confirm();
                }
                self.output.send_line(whole(), &|| job.ended().is_none());
            }
            "CREDIT" => {
                job.grant_input(frame.bytes);
                self.output.send_line(whole(), &|| true);
            }
            _ if !ended => {}
            _ => {
                if job.take_reply() {
                    match job.noted_end() {
                        // It was cancelled there because it was ended here, and that is the reason to be told.
                        Some(Ended { why, .. }) if frame.code == "CANCELLED" => {
                            let mut failure = why.failure(&job.command);
                            failure.details.append(frame.details);
                            self.output.send_bulk("ERROR", &failure.frame(&job.command.id), &|| true);
                        }
                        _ => self.output.send_line(whole(), &|| true),
                    }
                }
                job.settle(frame.result.is_some_and(|result| !tells_of_failure(result)));
                let result = frame.result.filter(|_| job.identity.is_some());
                let outcome = match result {
                    Some(result) if keeps(result.get().len()) => {
                        Outcome::Done(frame.duration, result.to_owned())
                    }
                    Some(_) => Outcome::TooLarge,
                    None => Outcome::Failed,
                };
                *lock(&entry.outcome) = Some(outcome);
                job.wake.wake();
            }
        }
    }

    fn phase(&self) -> Phase {
        lock(&self.state).phase.clone()
    }

    /// Sees one command through: waits for the runner, sends it there, and passes on what is said to it meanwhile.
    fn carry(&self, context: &Context, entry: &Entry) -> Result<Outcome, Failure> {
        let job = &*context.job;
        loop {
            match self.phase() {
                Phase::Up => break,
                Phase::Gone(failure) => return Err(failure),
                Phase::Starting => job.go_on()?,
            }
            wait(job)?;
        }
        self.send_command(context)?;
        let id = &job.command.id;
        let mut credit = job.output_credit();
        let mut told_grace = None;
        let mut input_open = job.wants_input;
        loop {
            if let Some(outcome) = lock(&entry.outcome).take() {
                return Ok(outcome);
            }
            if let Phase::Gone(failure) = self.phase() {
                // The answer may have been the last that was said.
                return lock(&entry.outcome).take().ok_or(failure);
            }
            if let Some(ended) = job.noted_end()
                && told_grace.is_none_or(|told| ended.grace < told)
            {
                told_grace = Some(ended.grace);
                let grace = Some(ended.grace.as_millis().div_ceil(1000) as u64);
                self.send("CANCEL", &Cancel { command_id: id.clone(), grace });
            }
            while let Some(bytes) = if input_open { job.take_input() } else { None } {
                input_open = !bytes.is_empty();
                let (data, encoding) = text::encode(bytes);
                self.send("INPUT", &Input { command_id: id.clone(), data, encoding, eof: !input_open });
            }
            if job.take_confirmed() {
                self.send("CONFIRM", &Confirm { command_id: id.clone() });
            }
            let more = job.output_credit().saturating_sub(credit);
            if more > 0 {
                credit += more;
                self.send("CREDIT", &Credit { command_id: id.clone(), stream: Stream::Stdout, bytes: more });
            }
            wait(job)?;
        }
    }

    fn send_command(&self, context: &Context) -> Result<(), Failure> {
        let job = &context.job;
        let command = &job.command;
        // What starting the other runner took is part of the command's time.
        let timeout = Duration::from_secs(command.timeout).saturating_sub(context.started.elapsed());
        let params = job.take_params();
        let forwarded = Forwarded {
            id: &command.id,
            r#type: command.kind.name(),
            timeout: timeout.as_millis().div_ceil(1000).max(1) as u64,
            params: &params,
            check: command.check,
            diff: command.diff,
            window: command.window,
            limits: command.limits.clone(),
            usage: command.usage,
        };
        job.set_forwarded();
        if self.send("CMD", &forwarded) {
            return Ok(());
        }
        Err(Failure::new(
            ErrorCode::FrameTooLarge,
            "with become a CMD has to be a little shorter than a frame may be",
        ))
    }

    /// Sends a frame, unless it is too long for one. If the other runner is gone, that is seen by its output.
    fn send(&self, kind: &str, data: &dyn Encode) -> bool {
        // Held before the frame is made: of long ones there is only one at a time.
        let input = lock(&self.input);
        let line = frame(kind, now(), data);
        if line.len() > FRAME_LIMIT {
            return false;
        }
        let Some(fd) = &*input else { return true };
        let mut rest = &line[..];
        while !rest.is_empty() && !matches!(self.phase(), Phase::Gone(_)) {
            match fd::write(fd, rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut waiting = Waiting::new();
                    waiting.writable(fd.as_fd());
                    let _ = waiting.wait(Some(Duration::from_secs(1)));
                }
                Err(_) => break,
            }
        }
        true
    }
}

/// Until something is said to the job.
fn wait(job: &Job) -> Result<(), Failure> {
    let mut waiting = Waiting::new();
    waiting.readable(job.wake.fd());
    waiting.wait(None).map_err(|error| Failure::io("poll", &error))?;
    job.wake.clear();
    Ok(())
}

/// What a program that was to make us another user says instead.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(whom: &Become, said: &[u8]) -> Failure {
    refusal::failure(whom, refusal::read(said), said)
}
