//! The server: reads frames, starts commands, and sees to it that every deadline holds whatever the commands do.
//!
//! This thread never waits for a command, a file or the peer's reading: only for something to happen. It knows no
//! command's work.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sortie_protocol::map::Map;
use sortie_protocol::message::{
    Cancel, CommandMessage, Credit, Exit, ExitReason, Input, Limits, ProtocolVersion, Ready, Shutdown,
    Strings,
};
use sortie_protocol::passing::tells_of_failure;
use sortie_protocol::{
    CommandType, ControllerMessage, ErrorCode, FRAME_LIMIT, FrameDecoder, Line, PROTOCOL_MAJOR,
    PROTOCOL_MINOR, RunnerMessage, Stream, text,
};

use crate::command::{self, Context};
use crate::facts;
use crate::failure::Failure;
use crate::guardian::Streams;
use crate::hop::{self, Hops, Settings};
use crate::idempotency::{Idempotency, Identity, Outcome, Verdict};
use crate::job::{Ending, Job, STDIN_WINDOW};
use crate::locks::Locks;
use crate::options::Options;
use crate::output::{Output, lock};
use crate::pool::{MOST_CAPTURED, Pool};
use crate::scope;
use crate::sequence::Sequences;
use crate::sys::fd::{self, Signals, Waiting, Wake};
use crate::sys::host;
use crate::sys::keeper::{DEFAULT_GRACE, guardian_line};
use crate::syslog;
use crate::workers::Workers;

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
pub(crate) fn serve(options: Options, streams: Streams, self_deleted: bool) -> io::Result<u8> {
    Ok(Server::start(options, streams, self_deleted)?.run())
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
    fn start(options: Options, streams: Streams, self_deleted: bool) -> io::Result<Self> {
        let now = Instant::now();
        let wake = Arc::new(Wake::new()?);
        let output_fd = streams.output.try_clone()?;
        let ready = ready(&options, streams.guardian)?;
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

    // Reading.

    fn read_input(&mut self) {
        let Some(fd) = &self.input else { return };
        match self.decoder.read_from(&mut Reader(fd)) {
            Ok(0) => {
                while self.take_line(true) {}
                self.input = None;
                self.input_ended();
            }
            Ok(_) => {
                self.last_heard = Instant::now();
                while self.take_line(false) {}
                // Lets go of a large frame at once: it may be long until more is read.
                self.decoder.push(&[]);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                self.input = None;
                self.input_ended();
            }
        }
    }

    fn input_ended(&mut self) {
        // What closes the input of another user's runner is the end of the session.
        if self.options.hop.is_some() {
            return self.end_all(ExitReason::PeerLost, Ending::PeerLost);
        }
        for job in self.queue.iter().chain(self.running.iter().map(|running| &running.job)) {
            job.input_ended();
        }
        if matches!(self.phase, Phase::Serving) {
            self.phase = Phase::Draining { reason: ExitReason::StdinClosed, until: None };
        }
    }

    /// Takes one line if there is one.
    fn take_line(&mut self, at_end: bool) -> bool {
        let line = match self.decoder.next_line() {
            None if at_end => self.decoder.last_line(),
            line => line,
        };
        let message = match line {
            None => return false,
            Some(Line::TooLong) => {
                let message = format!("a line was longer than {FRAME_LIMIT} bytes and was dropped");
                self.refuse("", Failure::new(ErrorCode::FrameTooLarge, message));
                return true;
            }
            Some(Line::Frame(line)) => ControllerMessage::parse(line),
        };
        match message {
            Err(rejected) => {
                self.sequences.failed(&rejected.sequence, &rejected.command_id, self.next_serial);
                self.refuse(&rejected.command_id, Failure::new(rejected.code, rejected.message));
            }
            Ok(ControllerMessage::Command(command)) => self.accept(*command),
            Ok(ControllerMessage::Input(input)) => self.on_input(input),
            Ok(ControllerMessage::Credit(credit)) => self.on_credit(&credit),
            Ok(ControllerMessage::Cancel(cancel)) => self.on_cancel(&cancel),
            Ok(ControllerMessage::Ping(ping)) => self.output.send(&RunnerMessage::Pong(ping)),
            Ok(ControllerMessage::Shutdown(shutdown)) => self.on_shutdown(&shutdown),
            Ok(ControllerMessage::Confirm(confirm)) => {
                if !self.jobs_named(&confirm.command_id).any(|job| job.confirm()) {
                    let message = format!("CONFIRM: {:?} waits for no confirmation", confirm.command_id);
                    self.refuse("", Failure::new(ErrorCode::Conflict, message));
                }
            }
        }
        true
    }

    /// Answers with an ERROR; an empty id means the session itself.
    fn refuse(&self, id: &str, failure: Failure) {
        self.output.send(&RunnerMessage::Error(failure.frame(id)));
    }

    fn accept(&mut self, command: CommandMessage) {
        self.commands_total += 1;
        let (id, sequence) = (command.id.clone(), command.sequence.clone());
        if let Err(failure) = self.admit(command) {
            self.sequences.failed(&sequence, &id, self.next_serial);
            self.refuse(&id, failure);
        }
    }

    fn admit(&mut self, mut command: CommandMessage) -> Result<(), Failure> {
        if !matches!(self.phase, Phase::Serving) {
            return Err(Failure::new(
                ErrorCode::Cancelled,
                "the session is ending and takes no more commands",
            ));
        }
        if !command::SUPPORTED.contains(&command.kind) {
            return Err(Failure::unsupported(format!(
                "this runner has no {}; nothing was run",
                command.kind.name()
            )));
        }
        self.sequences.check(&command.sequence)?;
        // Before anything is taken from the parameters, as the same command is the same text.
        let identity = Identity::of(&command);
        if matches!(command.kind, CommandType::Exec | CommandType::FileWrite | CommandType::SudoersEnsure)
            && let Some(root) = hop::take_use_sudo(&mut command.params)?
        {
            if command.r#become.is_some() {
                return Err(Failure::params("use_sudo: not together with become"));
            }
            command.r#become = Some(root);
        }
        if let Some(whom) = &command.r#become {
            hop::check(whom)?;
        }
        if self.options.concurrency.is_some() {
            if self.jobs_named(&command.id).next().is_some() {
                let message = format!("a command with the id {:?} is queued or running", command.id);
                return Err(Failure::new(ErrorCode::Conflict, message));
            }
            let bytes = self.accepted_bytes() + command.params.get().len();
            if self.queue.len() >= QUEUE_COMMANDS || bytes > QUEUE_BYTES {
                let message =
                    format!("{QUEUE_COMMANDS} commands or {QUEUE_BYTES} bytes of them wait already");
                return Err(Failure::new(ErrorCode::Busy, message));
            }
        }
        let job = Job::new(self.next_serial, command, identity)
            .map_err(|error| Failure::io("no descriptor for another command", &error))?;
        self.next_serial += 1;
        self.queue.push_back(Arc::new(job));
        Ok(())
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

    fn on_input(&mut self, input: Input) {
        // One that has ended meanwhile is not an error: its answer is on the way.
        let Some(job) = self.jobs_named(&input.command_id).next().cloned() else { return };
        if !job.wants_input {
            let message =
                format!("INPUT for {:?}, which did not ask for any; it was dropped", input.command_id);
            return self.refuse("", Failure::new(ErrorCode::InvalidCmd, message));
        }
        match text::decode(input.data, input.encoding) {
            // What waits for a queued command is as bounded as the queue.
            Ok(bytes) if self.accepted_bytes() + bytes.len() > QUEUE_BYTES + STDIN_WINDOW as usize => {
                self.end_job(&job, Ending::InputOverrun, DEFAULT_GRACE);
            }
            Ok(bytes) => job.add_input(bytes, input.eof),
            Err(_) => self.end_job(&job, Ending::InputInvalid, DEFAULT_GRACE),
        }
        if let Some(ended) = job.noted_end() {
            self.end_job(&job, ended.why, ended.grace);
        }
    }

    fn on_credit(&self, credit: &Credit) {
        if credit.stream != Stream::Stdin
            && let Some(job) = self.jobs_named(&credit.command_id).next()
        {
            job.add_output_credit(credit.bytes);
        }
    }

    fn on_cancel(&mut self, cancel: &Cancel) {
        let grace = cancel.grace.map_or(DEFAULT_GRACE, Duration::from_secs).min(self.options.ttl);
        let cancelled: Vec<_> = self.jobs_named(&cancel.command_id).cloned().collect();
        for job in cancelled {
            self.end_job(&job, Ending::Cancelled, grace);
        }
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

    fn on_shutdown(&mut self, shutdown: &Shutdown) {
        if matches!(self.phase, Phase::Serving) {
            let until =
                shutdown.grace.map(|grace| Instant::now() + Duration::from_secs(grace).min(self.options.ttl));
            self.phase = Phase::Draining { reason: ExitReason::Completed, until };
        }
    }

    // Running.

    fn start_queued(&mut self) {
        let at_once = self.options.concurrency.unwrap_or(1) as usize;
        let mut at = 0;
        while self.running.len() < at_once && at < self.queue.len() {
            let job = Arc::clone(&self.queue[at]);
            let sequence = &job.command.sequence;
            if let Some(failure) = self.sequences.stopped(sequence, job.serial) {
                self.refuse(&job.command.id, failure);
                self.queue.remove(at);
                continue;
            }
            let before = self.running.iter().map(|running| &running.job).chain(self.queue.iter().take(at));
            if !sequence.is_empty() && before.into_iter().any(|other| other.command.sequence == *sequence) {
                at += 1;
                continue;
            }
            let verdict = match &job.identity {
                None => Verdict::Run,
                Some(identity) => self.idempotency.begin(&job.command.id, identity),
            };
            match verdict {
                Verdict::Wait => {
                    at += 1;
                    continue;
                }
                Verdict::Run => self.start_command(&job),
                Verdict::Refuse(failure) => {
                    self.sequences.failed(sequence, &job.command.id, job.serial);
                    self.refuse(&job.command.id, failure);
                }
                Verdict::Replay(done) => {
                    let output = Arc::clone(&self.output);
                    job.settle(!tells_of_failure(&done.result));
                    // It may be large and then waits for the peer: not here.
                    let replay = move || {
                        output.send_bulk("DONE", &done, &|| true);
                        Outcome::Replayed
                    };
                    self.begin(&job, Box::new(replay));
                }
            }
            self.queue.remove(at);
        }
    }

    fn start_command(&mut self, job: &Arc<Job>) {
        let context = Context {
            job: Arc::clone(job),
            output: Arc::clone(&self.output),
            pool: Arc::clone(&self.pool),
            locks: Arc::clone(&self.locks),
            started: Instant::now(),
            held: Mutex::default(),
        };
        if let Some(login) = &self.options.hop {
            syslog::command(login, &job.command);
        }
        let hops = Arc::clone(&self.hops);
        self.begin(job, Box::new(move || hops.run(&context)));
    }

    /// Does `work` in a thread of its own, as the job.
    fn begin(&mut self, job: &Arc<Job>, work: Box<dyn FnOnce() -> Outcome + Send>) {
        let (endings, done) = (Arc::clone(&self.endings), Arc::clone(job));
        let whole = move || {
            endings.tell(done.serial, work());
            done.reap_keepers();
        };
        if let Err(error) = self.workers.run(Box::new(whole)) {
            self.refuse(&job.command.id, Failure::io("no thread for another command", &error));
            self.endings.tell(job.serial, Outcome::Failed);
        }
        // Held to what time can express; the time to live is what ends a session.
        let deadline = Instant::now() + Duration::from_secs(job.command.timeout).min(self.options.ttl * 2);
        self.running.push(Running { job: Arc::clone(job), deadline });
    }

    fn collect_finished(&mut self) {
        let told = std::mem::take(&mut *lock(&self.endings.told));
        for (serial, outcome) in told {
            let Some(at) = self.running.iter().position(|running| running.job.serial == serial) else {
                continue;
            };
            let running = self.running.swap_remove(at);
            let job = &running.job;
            if !job.ended_well() {
                self.sequences.failed(&job.command.sequence, &job.command.id, job.serial);
            }
            if let Some(identity) = &running.job.identity {
                self.idempotency.ended(identity, outcome);
            }
        }
    }
}

fn ready(options: &Options, guardian: i32) -> io::Result<Ready> {
    let names = command::SUPPORTED.iter().flat_map(|kind| [kind.name(), kind.dotted_name()]);
    let mut capabilities = Map::new();
    for name in names.chain(["become", "limits", "sequence"]) {
        capabilities.insert(name.to_owned(), true);
    }
    let mut metadata = Strings::new();
    metadata.insert("ttl".to_owned(), go_duration(options.ttl.as_secs()));
    Ok(Ready {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        platform: "linux".to_owned(),
        arch: facts::arch().to_owned(),
        pid: guardian.unsigned_abs(),
        capabilities,
        metadata,
        protocol: Some(ProtocolVersion { major: PROTOCOL_MAJOR, minor: PROTOCOL_MINOR }),
        session: host::random_id()?,
        nonce: host::random_id()?,
        sha256: facts::own_sha256()?.to_string(),
        limits: Some(Limits {
            frame_bytes: FRAME_LIMIT as u64,
            concurrency: options.concurrency.unwrap_or(1),
            output_bytes: MOST_CAPTURED,
            stdin_window: STDIN_WINDOW,
            queue_commands: QUEUE_COMMANDS as u32,
            queue_bytes: QUEUE_BYTES as u64,
            lease: options.lease.map_or(0, |lease| lease.as_secs()),
        }),
        host: Some(facts::host()),
    })
}

/// Seconds as Go's time.Duration writes them.
fn go_duration(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// Reads a descriptor without owning it.
struct Reader<'a>(&'a OwnedFd);

impl io::Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        fd::read(self.0, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (seconds, text) in [(600, "10m0s"), (45, "45s"), (3661, "1h1m1s"), (60, "1m0s")] {
            assert_eq!(go_duration(seconds), text);
        }
    }
}
