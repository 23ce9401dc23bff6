//! What the peer says: frames as they come, and what each of them sets in motion.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sortie_protocol::message::{Cancel, CommandMessage, Credit, ExitReason, Input, Shutdown};
use sortie_protocol::signed::{Signed, SignedInput, Statement};
use sortie_protocol::{
    CommandType, ControllerMessage, ErrorCode, FRAME_LIMIT, Line, RunnerMessage, Stream, text,
};

use super::{Phase, QUEUE_BYTES, QUEUE_COMMANDS, Server};
use crate::command;
use crate::failure::Failure;
use crate::hop;
use crate::idempotency::Identity;
use crate::job::{Ending, Job, STDIN_WINDOW};
use crate::signed;
use crate::sys::fd;
use crate::sys::keeper::DEFAULT_GRACE;
use crate::syslog;

impl Server {
    pub(super) fn read_input(&mut self) {
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
            Ok(ControllerMessage::Command(command)) if self.judge.is_some() => {
                self.sequences.failed(&command.sequence, &command.id, self.next_serial);
                self.refuse(&command.id, unsigned("a command"));
            }
            Ok(ControllerMessage::Command(command)) => self.accept(*command, None),
            Ok(ControllerMessage::Signed(signed)) => self.on_signed(&signed),
            Ok(ControllerMessage::Input(input)) => self.on_input(input),
            Ok(ControllerMessage::Credit(credit)) => self.on_credit(&credit),
            Ok(ControllerMessage::Cancel(cancel)) => self.on_cancel(&cancel),
            Ok(ControllerMessage::Ping(ping)) => self.output.send(&RunnerMessage::Pong(ping)),
            Ok(ControllerMessage::Shutdown(shutdown)) => self.on_shutdown(&shutdown),
            // It makes a change last, which is no less than making it.
            Ok(ControllerMessage::Confirm(_)) if self.judge.is_some() => self.refuse("", unsigned("CONFIRM")),
            Ok(ControllerMessage::Confirm(confirm)) => self.on_confirm(&confirm.command_id),
        }
        true
    }

    fn on_confirm(&mut self, id: &str) {
        if !self.jobs_named(id).any(|job| job.confirm()) {
            let message = format!("CONFIRM: {id:?} waits for no confirmation");
            self.refuse("", Failure::new(ErrorCode::Conflict, message));
        }
    }

    fn on_signed(&mut self, signed: &Signed) {
        let statement = match &mut self.judge {
            Some(judge) => judge.statement(signed),
            None => Err(Failure::unsupported(
                "this runner trusts no key, so a signature says nothing to it; send CMD, or start it with --anchor",
            )),
        };
        match statement {
            Ok((Statement { command: Some(command), input, .. }, who)) => {
                syslog::command(&format!("the key {who}"), &command);
                self.accept(*command, input);
            }
            Ok((Statement { confirm, .. }, _)) => self.on_confirm(&confirm),
            Err(failure) => {
                // Nobody vouches for these, but whoever waits for an answer gets it, and what was to follow is not run.
                let (id, sequence) = Statement::about(&signed.text);
                self.sequences.failed(&sequence, &id, self.next_serial);
                self.refuse(&id, failure);
            }
        }
    }

    fn accept(&mut self, command: CommandMessage, input: Option<SignedInput>) {
        self.commands_total += 1;
        let (id, sequence) = (command.id.clone(), command.sequence.clone());
        if let Err(failure) = self.admit(command, input) {
            self.sequences.failed(&sequence, &id, self.next_serial);
            self.refuse(&id, failure);
        }
    }

    fn admit(&mut self, mut command: CommandMessage, input: Option<SignedInput>) -> Result<(), Failure> {
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
        let announced = sortie_protocol::command::announces_input(&command.params);
        if self.judge.is_some() && announced != input.is_some() {
            return Err(signed::refusal(
                "input",
                "a signed command says what its input is if it has any, and only then",
            ));
        }
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
            let held = input.as_ref().map_or(0, |input| input.bytes as usize);
            let bytes = self.accepted_bytes() + command.params.get().len() + held;
            if self.queue.len() >= QUEUE_COMMANDS || bytes > QUEUE_BYTES {
                let message =
                    format!("{QUEUE_COMMANDS} commands or {QUEUE_BYTES} bytes of them wait already");
                return Err(Failure::new(ErrorCode::Busy, message));
            }
        }
        let more = input.as_ref().map_or(0, |input| input.bytes.saturating_sub(STDIN_WINDOW));
        let id = command.id.clone();
        let job = Job::new(self.next_serial, command, identity, input)
            .map_err(|error| Failure::io("no descriptor for another command", &error))?;
        if more > 0 {
            // All of it is held before any of it is used.
            self.output.send(&RunnerMessage::Credit(Credit {
                command_id: id,
                stream: Stream::Stdin,
                bytes: more,
            }));
        }
        self.next_serial += 1;
        self.queue.push_back(Arc::new(job));
        Ok(())
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

    fn on_shutdown(&mut self, shutdown: &Shutdown) {
        if matches!(self.phase, Phase::Serving) {
            let until =
                shutdown.grace.map(|grace| Instant::now() + Duration::from_secs(grace).min(self.options.ttl));
            self.phase = Phase::Draining { reason: ExitReason::Completed, until };
        }
    }
}

fn unsigned(what: &str) -> Failure {
    signed::refusal(
        "unsigned",
        &format!("this runner takes {what} only in SIGNED, from a key that it trusts"),
    )
}

/// Reads a descriptor without owning it.
struct Reader<'a>(&'a OwnedFd);

impl io::Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        fd::read(self.0, buffer)
    }
}
