//! One accepted command and all that can be said to it while it is queued or runs.
//!
//! The main thread says; the command's own thread listens. A job knows no frames and no other job.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use sortie_protocol::message::CommandMessage;
use sortie_protocol::signed::SignedInput;
use sortie_protocol::{Decode, ErrorCode, Sha256Hex, Usage, command, decode};

use crate::failure::Failure;
use crate::idempotency::Identity;
use crate::output::lock;
use crate::signed;
use crate::sys::fd::{Waiting, Wake};
use crate::sys::keeper::Keeper;

/// Bytes of INPUT that a command takes before the first CREDIT.
pub(crate) const STDIN_WINDOW: u64 = 256 * 1024;

pub(crate) struct Job {
    /// Order of arrival; unlike the id never used twice.
    pub(crate) serial: u64,
    /// The command without its params; see [`Job::take_params`].
    pub(crate) command: CommandMessage,
    /// Bytes that the command takes in the queue.
    pub(crate) size: usize,
    pub(crate) identity: Option<Identity>,
    /// Whether INPUT was announced.
    pub(crate) wants_input: bool,
    /// Wakes the command's thread.
    pub(crate) wake: Wake,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    params: Option<Box<RawValue>>,
    ending: Option<Ended>,
    keeper: Option<Arc<Keeper>>,
    /// Keepers with nothing more to say, to be reaped once the command is answered.
    spent: Vec<Arc<Keeper>>,
    /// The change takes effect now: too late to end it.
    committed: bool,
    /// Another runner runs it, and answers for its end.
    forwarded: bool,
    /// A confirmation is waited for.
    awaiting: bool,
    /// It came.
    confirmed: bool,
    /// The session's input is at its end: nothing will come any more.
    input_closed: bool,
    /// Critical sections that it is in: an ending waits until it has left them all.
    critical: u32,
    /// Whether it ended well, once that is known.
    well: Option<bool>,
    replied: bool,
    input: VecDeque<Vec<u8>>,
    /// All of the input is awaited and checked before the command may begin.
    held: Option<Held>,
    input_eof: bool,
    /// Bytes of INPUT that may still come.
    input_credit: u64,
    /// Bytes of output that may still be sent; none without a window.
    output_credit: Option<u64>,
    /// What its programs took so far, where somebody asked for that.
    usage: Option<Usage>,
}

/// Input that was signed with the command.
struct Held {
    expected: SignedInput,
    seen: Sha256,
    bytes: u64,
}

impl Held {
    /// Takes in the next piece; whether it can still be what was signed.
    fn fits(&mut self, piece: &[u8], eof: bool) -> bool {
        self.bytes += piece.len() as u64;
        self.seen.update(piece);
        self.bytes <= self.expected.bytes
            && (!eof || Sha256Hex::from_bytes(&self.seen.clone().finalize().into()) == self.expected.sha256)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) why: Ending,
    pub(crate) at: Instant,
    pub(crate) grace: Duration,
}

/// Why a command is ended before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Timeout,
    Cancelled,
    TtlExpired,
    LeaseExpired,
    PeerLost,
    Signal,
    ShutdownGrace,
    /// More INPUT than there was credit for.
    InputOverrun,
    /// INPUT that is not valid base64.
    InputInvalid,
    /// The session's input ended before the command's own did.
    InputLost,
    /// INPUT that is not what was signed.
    InputAltered,
}

impl Ending {
    pub(crate) fn failure(self, command: &CommandMessage) -> Failure {
        match self {
            Self::Timeout => Failure::new(
                ErrorCode::Timeout,
                format!("did not end within its timeout of {} s and was ended", command.timeout),
            ),
            Self::Cancelled => Failure::new(ErrorCode::Cancelled, "cancelled on request"),
            Self::TtlExpired => {
                Failure::new(ErrorCode::TtlExpired, "ended because the runner's time to live is over")
            }
            Self::LeaseExpired => Failure::new(
                ErrorCode::Cancelled,
                "ended because nothing was heard of the controller for a lease",
            ),
            Self::PeerLost => Failure::new(ErrorCode::Cancelled, "ended because the controller is gone"),
            Self::Signal => Failure::new(ErrorCode::Cancelled, "ended because the runner was told to stop"),
            Self::ShutdownGrace => {
                Failure::new(ErrorCode::Cancelled, "ended because the grace of SHUTDOWN is over")
            }
            Self::InputOverrun => Failure::new(
                ErrorCode::Busy,
                "more INPUT came than CREDIT allowed; send no more than limits.stdin_window before the first CREDIT",
            ),
            Self::InputInvalid => {
                Failure::new(ErrorCode::InvalidCmd, "INPUT marked as base64 is not valid base64")
            }
            Self::InputLost => Failure::new(
                ErrorCode::Cancelled,
                "the session's input ended before an INPUT with eof; nothing half-received is used",
            ),
            Self::InputAltered => {
                signed::refusal("input", "the input that came is not the one that was signed")
            }
        }
    }
}

/// Parameters as the command's type.
pub(crate) fn parse<'a, T: Decode<'a> + Default>(params: &'a RawValue) -> Result<T, Failure> {
    // The reference takes null for zero values.
    let text = if params.get() == "null" { "{}" } else { params.get() };
    decode(text).map_err(|invalid| Failure::params(invalid.to_string()))
}

impl Job {
    pub(crate) fn new(
        serial: u64,
        mut command: CommandMessage,
        identity: Option<Identity>,
        input: Option<SignedInput>,
    ) -> std::io::Result<Self> {
        let params = std::mem::replace(&mut command.params, RawValue::NULL.to_owned());
        let (size, wants_input) = (params.get().len(), command::announces_input(&params));
        let state = State {
            params: Some(params),
            input_credit: input.as_ref().map_or(STDIN_WINDOW, |input| input.bytes.max(STDIN_WINDOW)),
            held: input.map(|expected| Held { expected, seen: Sha256::new(), bytes: 0 }),
            output_credit: command.window,
            usage: (command.usage || command.limits.is_some()).then(Usage::default),
            ..State::default()
        };
        Ok(Self {
            serial,
            size,
            wants_input,
            command,
            identity,
            wake: Wake::new()?,
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The parameters as they came, once: they may be as large as a frame, and whoever runs the command knows how long
    /// they are needed.
    pub(crate) fn take_params(&self) -> Box<RawValue> {
        self.lock().params.take().unwrap_or_else(|| RawValue::NULL.to_owned())
    }

    /// Ends the command, its processes first. The first reason stands; a later grace can only be shorter. In a critical
    /// section the ending is noted and takes effect when it is left.
    pub(crate) fn end(&self, why: Ending, grace: Duration) {
        let mut state = self.lock();
        let sooner = state.ending.is_none_or(|ended| grace < ended.grace);
        if sooner {
            let at = Instant::now();
            let why = state.ending.map_or(why, |ended| ended.why);
            state.ending = Some(Ended { why, at, grace });
            if let (Some(keeper), 0) = (&state.keeper, state.critical) {
                keeper.end(grace);
            }
        }
        drop(state);
        self.wake.wake();
    }

    /// Whether the command is being ended, for its own thread: never inside a critical section.
    pub(crate) fn ended(&self) -> Option<Ended> {
        let state = self.lock();
        state.ending.filter(|_| state.critical == 0)
    }

    /// Whether somebody asked for its end.
    pub(crate) fn noted_end(&self) -> Option<Ended> {
        self.lock().ending
    }

    /// Fails when the command is being ended: for handlers, between two steps.
    pub(crate) fn go_on(&self) -> Result<(), Failure> {
        match self.ended() {
            Some(ended) => Err(ended.why.failure(&self.command)),
            None => Ok(()),
        }
    }

    /// Lets time pass; fails as soon as the command is being ended.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Failure> {
        let mut waiting = Waiting::new();
        let wake = waiting.readable(self.wake.fd());
        waiting.wait(Some(time)).map_err(|error| Failure::io("poll", &error))?;
        if waiting.came(wake) {
            self.wake.clear();
        }
        self.go_on()
    }

    /// Whether it is being ended because its own time is over.
    pub(crate) fn timed_out(&self) -> bool {
        self.ended().is_some_and(|ended| ended.why == Ending::Timeout)
    }

    /// Passes the point of no return, unless the command is being ended.
    pub(crate) fn commit(&self) -> Result<(), Failure> {
        let mut state = self.lock();
        if let Some(ended) = state.ending {
            return Err(ended.why.failure(&self.command));
        }
        state.committed = true;
        Ok(())
    }

    /// Whether it must not be interrupted, but be waited for.
    pub(crate) fn is_past_return(&self) -> bool {
        let state = self.lock();
        state.committed || state.forwarded || state.critical > 0
    }

    /// From here on another runner runs it.
    pub(crate) fn set_forwarded(&self) {
        self.lock().forwarded = true;
    }

    pub(crate) fn is_forwarded(&self) -> bool {
        self.lock().forwarded
    }

    pub(crate) fn is_critical(&self) -> bool {
        self.lock().critical > 0
    }

    /// Begins a critical section, unless the command is being ended; until the guard is dropped nothing ends it.
    pub(crate) fn enter_critical(&self) -> Result<Critical<'_>, Failure> {
        let mut state = self.lock();
        if let Some(ended) = state.ending.filter(|_| state.critical == 0 && !state.committed) {
            return Err(ended.why.failure(&self.command));
        }
        state.critical += 1;
        Ok(Critical(self))
    }

    /// Tells what its programs took; none unless that was asked for.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.lock().usage.clone()
    }

    /// Changes what is known of that, which is to be told from now on.
    pub(crate) fn account(&self, change: &dyn Fn(&mut Usage)) {
        change(self.lock().usage.get_or_insert_default());
    }

    /// Makes the keeper known, so that [`Self::end`] reaches it.
    pub(crate) fn set_keeper(&self, keeper: &Arc<Keeper>) {
        // A command may run programs for as long as it likes; one keeper at most waits for its end.
        self.reap_keepers();
        let mut state = self.lock();
        state.keeper = Some(Arc::clone(keeper));
        if let Some(ended) = state.ending.filter(|_| state.critical == 0) {
            keeper.end(ended.grace);
        }
    }

    /// The keeper has nothing more to do.
    pub(crate) fn keeper_done(&self) {
        let mut state = self.lock();
        let keeper = state.keeper.take();
        state.spent.extend(keeper);
    }

    /// Waits for the last moments of keepers that are done.
    pub(crate) fn reap_keepers(&self) {
        let spent = std::mem::take(&mut self.lock().spent);
        spent.into_iter().filter_map(Arc::into_inner).for_each(Keeper::reap);
    }

    pub(crate) fn has_keeper(&self) -> bool {
        self.lock().keeper.is_some()
    }

    /// How it ended: well, or in an ERROR or a program's exit status. The first word stands.
    pub(crate) fn settle(&self, well: bool) {
        self.lock().well.get_or_insert(well);
    }

    /// Whether it is known to have ended well.
    pub(crate) fn ended_well(&self) -> bool {
        self.lock().well == Some(true)
    }

    /// Whether the caller is the one to answer: true once.
    pub(crate) fn take_reply(&self) -> bool {
        !std::mem::replace(&mut self.lock().replied, true)
    }

    /// Whether somebody took it upon himself to answer.
    pub(crate) fn is_replied(&self) -> bool {
        self.lock().replied
    }

    /// INPUT from the main thread.
    pub(crate) fn add_input(&self, bytes: Vec<u8>, eof: bool) {
        let mut state = self.lock();
        let length = bytes.len() as u64;
        let overrun = length > state.input_credit;
        let altered = !state.input_eof && state.held.as_mut().is_some_and(|held| !held.fits(&bytes, eof));
        if !overrun && !altered && !state.input_eof {
            state.input_credit -= length;
            if !bytes.is_empty() {
                state.input.push_back(bytes);
            }
            state.input_eof = eof;
            if eof {
                state.held = None;
            }
        }
        drop(state);
        if altered {
            self.end(Ending::InputAltered, crate::sys::keeper::DEFAULT_GRACE);
        } else if overrun {
            self.end(Ending::InputOverrun, crate::sys::keeper::DEFAULT_GRACE);
        }
        self.wake.wake();
    }

    /// The session's input ended.
    pub(crate) fn input_ended(&self) {
        let (lost, awaiting) = {
            let mut state = self.lock();
            state.input_closed = true;
            (self.wants_input && !state.input_eof, state.awaiting)
        };
        if awaiting {
            self.end(Ending::PeerLost, crate::sys::keeper::DEFAULT_GRACE);
        }
        if lost {
            self.end(Ending::InputLost, crate::sys::keeper::DEFAULT_GRACE);
        }
    }

    /// CONFIRM from the main thread; whether it was waited for.
    pub(crate) fn confirm(&self) -> bool {
        let mut state = self.lock();
        // Whether the other runner waits for it is for that one to say.
        let awaited = state.awaiting || state.forwarded;
        state.confirmed |= awaited;
        drop(state);
        self.wake.wake();
        awaited
    }

    /// CONFIRM is welcome from now on, if it still can come.
    pub(crate) fn await_confirm(&self) {
        let mut state = self.lock();
        state.awaiting = true;
        let closed = state.input_closed;
        drop(state);
        if closed {
            self.end(Ending::PeerLost, crate::sys::keeper::DEFAULT_GRACE);
        }
    }

    /// Whether CONFIRM came since this was last asked: for who passes it on.
    pub(crate) fn take_confirmed(&self) -> bool {
        std::mem::take(&mut self.lock().confirmed)
    }

    /// Waits for CONFIRM until `until`.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn wait_confirmed(&self, until: Instant) -> Result<(), String> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            {
                let mut state = self.lock();
                if state.confirmed {
                    return Ok(());
                }
                if let Some(ended) = state.ending {
                    return Err(ended.why.failure(&self.command).message.clone());
                }
                if left.is_zero() {
                    state.awaiting = false;
                    return Err("no CONFIRM came in time".to_owned());
                }
            }
            let mut waiting = Waiting::new();
            waiting.readable(self.wake.fd());
            waiting.wait(Some(left)).map_err(|error| error.to_string())?;
            self.wake.clear();
        }
    }

    /// The next piece of INPUT; an empty one once all has come; none when more has to be waited for.
    pub(crate) fn take_input(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        match state.input.pop_front() {
            Some(bytes) => Some(bytes),
            None => state.input_eof.then(Vec::new),
        }
    }

    /// Bytes of INPUT that wait here, or for which there is room.
    pub(crate) fn input_bytes(&self) -> usize {
        let state = self.lock();
        match &state.held {
            Some(held) => held.expected.bytes as usize,
            None => state.input.iter().map(Vec::len).sum(),
        }
    }

    /// Whether it may not begin before all of its input is there.
    pub(crate) fn is_held(&self) -> bool {
        self.lock().held.is_some()
    }

    /// The command used so many bytes of INPUT; CREDIT for them goes out.
    pub(crate) fn grant_input(&self, bytes: u64) {
        let mut state = self.lock();
        state.input_credit = state.input_credit.saturating_add(bytes);
    }

    /// CREDIT from the main thread.
    pub(crate) fn add_output_credit(&self, bytes: u64) {
        if let Some(credit) = &mut self.lock().output_credit {
            *credit = credit.saturating_add(bytes);
        }
        self.wake.wake();
    }

    /// Bytes of output that may be sent now.
    pub(crate) fn output_credit(&self) -> u64 {
        self.lock().output_credit.unwrap_or(u64::MAX)
    }

    pub(crate) fn use_output_credit(&self, bytes: u64) {
        if let Some(credit) = &mut self.lock().output_credit {
            *credit = credit.saturating_sub(bytes);
        }
    }
}

/// A critical section of a command, until it is dropped.
pub(crate) struct Critical<'a>(&'a Job);

impl Drop for Critical<'_> {
    fn drop(&mut self) {
        self.0.lock().critical -= 1;
    }
}
