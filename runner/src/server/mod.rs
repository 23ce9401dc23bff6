//! The server: reads frames, starts commands, and sees to it that every deadline holds whatever the commands do.
//!
//! This thread never waits for a command, a file or the peer's reading: only for something to happen. It knows no
//! command's work. `intake` takes in what the peer says, `running` starts commands and hears of their ends.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sortie_protocol::message::{Exit, ExitReason};
use sortie_protocol::{FrameDecoder, RunnerMessage};

use crate::anchor::Anchor;
use crate::failure::Failure;
use crate::guardian::Streams;
use crate::hop::{Hops, Settings};
use crate::idempotency::{Idempotency, Outcome};
use crate::job::{Ending, Job};
use crate::locks::Locks;
use crate::options::Options;
use crate::output::{Output, lock};
use crate::pool::Pool;
use crate::scope;
use crate::sequence::Sequences;
use crate::signed::Judge;
use crate::sys::fd::{Signals, Waiting, Wake};
use crate::sys::keeper::{DEFAULT_GRACE, guardian_line};
use crate::workers::Workers;

mod intake;
mod ready;
mod running;

use ready::ready;

/// Commands accepted and not begun, and the bytes of all that are not ended.
const QUEUE_COMMANDS: usize = 1024;
const QUEUE_BYTES: usize = 16 * 1024 * 1024;

/// Bytes of small answers that the peer may leave unread before nothing more is read from it.
const MOST_UNREAD: usize = 1024 * 1024;

/// After its grace and the keeper's own patience a command is answered even if it is stuck in the kernel.
const STUCK: Duration = Duration::from_secs(12);

/// The same for a command that has no processes.
const STUCK_WITHOUT_PROCESSES: Duration = Duration::from_secs(1);

/// How long the peer has to read what was said when the session ends by force.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs the session; the exit status.
pub(crate) fn serve(
    options: Options,
    anchors: Vec<Anchor>,
    streams: Streams,
    self_deleted: bool,
) -> io::Result<u8> {
    Ok(Server::start(options, anchors, streams, self_deleted)?.run())
}

struct Server {
    options: Options,
    self_deleted: bool,
    input: Option<OwnedFd>,
    /// Looked at for whether anybody still reads.
    output_fd: OwnedFd,
    signals: Signals,
    wake: Arc<Wake>,
    output: Arc<Output>,
    pool: Arc<Pool>,
    locks: Arc<Locks>,
    hops: Arc<Hops>,
    decoder: FrameDecoder,
    /// Present where commands must be signed.
    judge: Option<Judge>,
    idempotency: Idempotency,
    sequences: Sequences,
    queue: VecDeque<Arc<Job>>,
    workers: Workers,
    running: Vec<Running>,
    endings: Arc<Endings>,
    next_serial: u64,
    commands_total: u64,
    started: Instant,
    last_heard: Instant,
    phase: Phase,
}

struct Running {
    job: Arc<Job>,
    deadline: Instant,
}

/// Commands that ended, as their threads tell it: serials and outcomes.
struct Endings {
    told: Mutex<Vec<(u64, Outcome)>>,
    wake: Arc<Wake>,
}

impl Endings {
    fn tell(&self, serial: u64, outcome: Outcome) {
        lock(&self.told).push((serial, outcome));
        self.wake.wake();
    }
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Serving,
    /// No more commands; what runs may end by itself, until the moment given.
    Draining {
        reason: ExitReason,
        until: Option<Instant>,
    },
    /// Everything is being ended; past the moment given nothing is waited for.
    Ending {
        reason: ExitReason,
        until: Instant,
    },
    /// EXIT is on its way.
    Leaving {
        reason: ExitReason,
        until: Instant,
    },
}

impl Server {
    fn start(
        options: Options,
        anchors: Vec<Anchor>,
        streams: Streams,
        self_deleted: bool,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let wake = Arc::new(Wake::new()?);
        let output_fd = streams.output.try_clone()?;
        let ready = ready(&options, !anchors.is_empty(), streams.guardian)?;
        let judge = (!anchors.is_empty()).then(|| Judge::new(anchors, &ready));
        let session = ready.session.clone();
        let output = Output::start(streams.output, Arc::clone(&wake))?;
        output.send(&RunnerMessage::Ready(Box::new(ready)));
        let endings = Arc::new(Endings { told: Mutex::default(), wake: Arc::clone(&wake) });
        let settings = Settings {
            ends: now + options.ttl,
            lease: options.lease,
            concurrency: options.concurrency.unwrap_or(1),
        };
        let hops = Arc::new(Hops::new(settings, &output, &wake));
        // After READY, which it must not delay.
        scope::ask_for_one(&session, streams.guardian, options.ttl);
        Ok(Self {
            options,
            self_deleted,
            input: Some(streams.input),
            output_fd,
            signals: streams.signals,
            wake,
            output,
            pool: Arc::default(),
            locks: Arc::default(),
            hops,
            decoder: FrameDecoder::new(),
            judge,
            idempotency: Idempotency::default(),
            sequences: Sequences::default(),
            queue: VecDeque::new(),
            workers: Workers::default(),
            running: Vec::new(),
            endings,
            next_serial: 0,
            commands_total: 0,
            started: now,
            last_heard: now,
            phase: Phase::Serving,
        })
    }

    fn run(&mut self) -> u8 {
        loop {
            self.collect_finished();
            self.start_queued();
            self.check_deadlines();
            if let Some(reason) = self.step_phase() {
                return u8::try_from(reason.exit_code()).unwrap_or(1);
            }
            if self.wait().is_err() {
                self.end_all(ExitReason::Error, Ending::Signal);
            }
        }
    }

    /// Moves from phase to phase as far as things have come; the reason once it is time to go.
    fn step_phase(&mut self) -> Option<ExitReason> {
        let now = Instant::now();
        let idle = self.running.is_empty() && self.queue.is_empty();
        match self.phase {
            Phase::Serving => {}
            Phase::Draining { reason, until } => {
                if idle {
                    self.leave(reason, self.ttl_deadline());
                } else if until.is_some_and(|until| now >= until) {
                    self.end_jobs(Ending::ShutdownGrace, Duration::ZERO);
                    self.phase = Phase::Draining { reason, until: None };
                }
            }
            Phase::Ending { reason, until } => {
                let critical = self.running.iter().any(|running| running.job.is_critical());
                if idle || (now >= until && !critical) {
                    self.leave(reason, now + LAST_WORDS);
                } else if self.running.iter().all(|running| running.job.is_replied()) {
                    // All that is left is answers on their way to a peer that may not read.
                    self.phase = Phase::Ending { reason, until: until.min(now + LAST_WORDS) };
                }
            }
            Phase::Leaving { .. } => {}
        }
        match self.phase {
            // A short EXIT may be on the pipe already, and then nothing would wake us.
            Phase::Leaving { reason, until } if self.output.is_idle() || now >= until => Some(reason),
            _ => None,
        }
    }

    fn leave(&mut self, reason: ExitReason, until: Instant) {
        self.output.send_last(&RunnerMessage::Exit(Exit {
            reason,
            exit_code: reason.exit_code(),
            self_deleted: self.self_deleted,
            commands_total: self.commands_total,
        }));
        self.phase = Phase::Leaving { reason, until };
    }

    fn ttl_deadline(&self) -> Instant {
        self.started + self.options.ttl
    }

    // Waiting.

    fn wait(&mut self) -> io::Result<()> {
        let reading = self.may_read();
        if !reading {
            // While it is not listened to, the controller cannot be late.
            self.last_heard = Instant::now();
        }
        let deadline = self.next_deadline();
        let mut waiting = Waiting::new();
        let wake = waiting.readable(self.wake.fd());
        let signals = waiting.readable(self.signals.fd());
        let output = waiting.hangup(self.output_fd.as_fd());
        let guardian = guardian_line().map(|line| waiting.hangup(line));
        let input = self.input.as_ref().filter(|_| reading).map(|fd| waiting.readable(fd.as_fd()));
        waiting.wait(deadline.map(|at| at.saturating_duration_since(Instant::now())))?;
        let (woken, signalled, unread) = (waiting.came(wake), waiting.came(signals), waiting.hung_up(output));
        let orphaned = guardian.is_some_and(|slot| waiting.hung_up(slot));
        let readable = input.is_some_and(|slot| waiting.came(slot));
        drop(waiting);
        if woken {
            self.wake.clear();
        }
        while signalled && self.signals.take().is_some_and(|signal| signal != Signal::SIGCHLD) {
            self.end_all(ExitReason::Signal, Ending::Signal);
        }
        if orphaned {
            self.end_all(ExitReason::Signal, Ending::Signal);
        }
        if unread || self.output.is_broken() {
            self.end_all(ExitReason::PeerLost, Ending::PeerLost);
        }
        if readable {
            self.read_input();
        }
        Ok(())
    }

    /// Whether frames are taken in: not when the peer does not read what it is told, and for one command at a time not
    /// when the queue is full, as the reference does.
    fn may_read(&self) -> bool {
        let queue_full = self.queue.len() >= QUEUE_COMMANDS || self.accepted_bytes() >= QUEUE_BYTES;
        let held = queue_full && self.options.concurrency.is_none();
        !held && self.output.control_bytes() < MOST_UNREAD && !matches!(self.phase, Phase::Leaving { .. })
    }

    fn next_deadline(&self) -> Option<Instant> {
        let jobs = self.running.iter().map(|running| match running.job.noted_end() {
            None => running.deadline,
            Some(ended) => ended.at + ended.grace + STUCK_WITHOUT_PROCESSES,
        });
        let phase = match self.phase {
            Phase::Serving => None,
            Phase::Draining { until, .. } => until,
            // An answer that begins to be sent wakes nobody.
            Phase::Ending { until, .. } => Some(until.min(Instant::now() + Duration::from_millis(100))),
            Phase::Leaving { until, .. } => Some(until),
        };
        let ended = matches!(self.phase, Phase::Ending { .. } | Phase::Leaving { .. });
        let ttl = (!ended).then(|| self.ttl_deadline());
        let now = Instant::now();
        // A moment that is past has been acted upon; what it set in motion wakes us.
        jobs.chain(phase)
            .chain(ttl)
            .chain(self.lease_deadline())
            .chain(self.hops.next_ping())
            .map(|at| if at <= now { now + Duration::from_millis(100) } else { at })
            .min()
    }

    fn lease_deadline(&self) -> Option<Instant> {
        let counts = self.input.is_some() && matches!(self.phase, Phase::Serving | Phase::Draining { .. });
        self.options.lease.filter(|_| counts).map(|lease| self.last_heard + lease)
    }

    // Deadlines.

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        for running in &self.running {
            match running.job.noted_end() {
                // Another runner sees to it, and says it better.
                None if running.job.is_forwarded() && now < running.deadline + STUCK => {}
                None if now >= running.deadline => running.job.end(Ending::Timeout, DEFAULT_GRACE),
                Some(ended) => {
                    let patience = if running.job.has_keeper() { STUCK } else { STUCK_WITHOUT_PROCESSES };
                    let stuck =
                        now >= ended.at + patience + ended.grace * u32::from(running.job.has_keeper());
                    // One that is past the point of no return is about to be done, and is waited for.
                    if stuck && !running.job.is_past_return() && running.job.take_reply() {
                        let failure = ended.why.failure(&running.job.command).detail("stuck", "true");
                        self.output.send(&RunnerMessage::Error(failure.frame(&running.job.command.id)));
                        self.endings.tell(running.job.serial, Outcome::Failed);
                    }
                }
                None => {}
            }
        }
        self.hops.ping(now);
        if now >= self.ttl_deadline() {
            self.end_all(ExitReason::TtlExpired, Ending::TtlExpired);
        }
        if self.lease_deadline().is_some_and(|at| now >= at) {
            self.end_all(ExitReason::LeaseExpired, Ending::LeaseExpired);
        }
    }

    /// The session ends now. The first reason stands.
    fn end_all(&mut self, reason: ExitReason, why: Ending) {
        if matches!(self.phase, Phase::Ending { .. } | Phase::Leaving { .. }) {
            if reason == ExitReason::PeerLost
                && let Phase::Leaving { until, .. } = &mut self.phase
            {
                *until = Instant::now();
            }
            return;
        }
        self.input = None;
        self.end_jobs(why, DEFAULT_GRACE);
        self.phase = Phase::Ending { reason, until: Instant::now() + DEFAULT_GRACE + STUCK };
    }

    fn end_jobs(&mut self, why: Ending, grace: Duration) {
        for job in std::mem::take(&mut self.queue) {
            self.refuse(&job.command.id, why.failure(&job.command));
        }
        for running in &self.running {
            running.job.end(why, grace);
        }
        self.output.look_again();
    }

    /// Ends a command, queued or running.
    fn end_job(&mut self, job: &Arc<Job>, why: Ending, grace: Duration) {
        if let Some(at) = self.queue.iter().position(|queued| queued.serial == job.serial) {
            self.queue.remove(at);
            self.sequences.failed(&job.command.sequence, &job.command.id, job.serial);
            self.refuse(&job.command.id, why.failure(&job.command));
        } else {
            job.end(why, grace);
            self.output.look_again();
        }
    }

    fn jobs(&self) -> impl Iterator<Item = &Arc<Job>> {
        // What runs comes first: without the flag an id may be there twice.
        self.running.iter().map(|running| &running.job).chain(&self.queue)
    }

    /// Those that an id means. One whose answer is on its way is none of them: the peer may use the id again before
    /// its thread is done.
    fn jobs_named<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Arc<Job>> {
        self.jobs().filter(move |job| job.command.id == id && !job.is_replied())
    }

    fn accepted_bytes(&self) -> usize {
        self.jobs().map(|job| job.size + job.input_bytes()).sum()
    }

    /// Answers with an ERROR; an empty id means the session itself.
    fn refuse(&self, id: &str, failure: Failure) {
        self.output.send(&RunnerMessage::Error(failure.frame(id)));
    }
}
