//! A session: one runner on one host, many commands at once, an event stream for each.
//!
//! Knows frames and their rules; knows nothing of how the bytes travel or how the runner came up. Results leave a
//! session only through a command's events and its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use sortie_protocol::message::{Become, CommandMessage, Exit, Ready, Shutdown, Strings};
use sortie_protocol::{CommandSpec, ControllerMessage, ErrorCode, FRAME_LIMIT, ResourceLimits};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::aftermath::{self, Aftermath, Left};
use crate::audit::SessionAudit;
use crate::bootstrap::Started;
use crate::client::Client;
use crate::error::Error;
use crate::observe::{Step, StepTimer};
use crate::signing::Said;
use crate::transport::{ExitStatus, Transport};

mod backlog;
mod confirm;
mod running;
mod signed;
mod state;
mod tasks;

pub(crate) use backlog::output_len;
pub use confirm::awaits_confirmation;
#[cfg(feature = "apply")]
pub(crate) use confirm::wants_confirm;
pub use running::{Canceller, InputWriter, Running, Typed, output};
use state::{Outgoing, Shared};
use tasks::{Order, Times};

/// Seconds between SIGTERM and SIGKILL where nobody says otherwise.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// How one command is to be run, besides its parameters.
#[derive(Debug, Clone)]
pub struct CommandOptions {
    /// After which the command's processes are ended; whole seconds, at least 1.
    pub timeout: Duration,
    /// Change nothing, say what would change.
    pub check: bool,
    /// Add a unified diff to the result.
    pub diff: bool,
    /// At most once a session for each key.
    pub idempotency_key: String,
    /// Run after the commands of the same sequence that were started before, and only if none of them failed (an ERROR, or an
    /// exit status other than 0); else it ends in `CANCELLED`. Empty: none; at most 128 bytes.
    pub sequence: String,
    /// Run as another user.
    pub r#become: Option<Become>,
    /// Free for the caller.
    pub metadata: Strings,
    /// Limits of every program that the command runs; they ask for `usage` too.
    pub limits: Option<ResourceLimits>,
    /// Have DONE or ERROR say what the programs took.
    pub usage: bool,
    /// Keep the arguments of its program, its output and its result out of all that is written down about it on this
    /// machine, such as the audit log. What is secret by its type is kept out without that.
    pub sensitive: bool,
}

impl Default for CommandOptions {
    /// Five minutes; as the login user.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(300),
            check: false,
            diff: false,
            idempotency_key: String::new(),
            sequence: String::new(),
            r#become: None,
            metadata: Strings::new(),
            limits: None,
            usage: false,
            sensitive: false,
        }
    }
}

/// A session that is not connected yet. Commands started on it travel together with the runner, so that the first
/// result comes back in the round trip that brings the runner up.
pub struct Opening {
    client: Client,
    transport: Arc<dyn Transport>,
    shared: Arc<Shared>,
    outgoing: mpsc::UnboundedReceiver<Outgoing>,
    early: Vec<u8>,
    /// What can only be signed once the runner has said READY.
    to_sign: Vec<CommandMessage>,
    window: u64,
}

impl Opening {
    pub(crate) fn new(client: Client, transport: Arc<dyn Transport>) -> Self {
        let host = transport.host().to_owned();
        let audit = client.audit().map(|log| SessionAudit::new(log.clone(), &host));
        let signer = client.signer().cloned();
        let (shared, outgoing) = Shared::new(host.clone(), client.observer(&host), audit, signer);
        let window = client.window();
        Self { client, transport, shared, outgoing, early: Vec::new(), to_sign: Vec::new(), window }
    }

    /// The host, as its user named it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.shared.host
    }

    /// Starts a typed command as soon as the runner is up.
    ///
    /// # Errors
    /// [`Error::Config`] when the command cannot be sent, such as one over the frame limit, or one that wants to be confirmed.
    pub fn start<C: CommandSpec>(
        &mut self,
        command: &C,
        options: CommandOptions,
    ) -> Result<Running<Typed<C::Result>>, Error> {
        let sensitive = options.sensitive;
        let (message, wants_input) = message(&self.shared, command, options, self.window)?;
        if confirm::wants_confirm(message.kind, &message.params) {
            // Only after the login it is known whether another one would ask somebody.
            return Err(Error::Config {
                host: self.shared.host.clone(),
                reason:
                    "a command that wants to be confirmed can only be started on a session that is connected"
                        .into(),
            });
        }
        self.queue(&message, wants_input, sensitive)
    }

    /// Starts a command that is there as JSON as soon as the runner is up.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_raw(&mut self, message: &CommandMessage) -> Result<Running, Error> {
        self.queue(message, wants_input(&message.params), false)
    }

    /// As [`Self::start_raw`], for a command whose arguments and answer are to stay out of all that is written down: see
    /// [`CommandOptions::sensitive`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_raw_sensitive(&mut self, message: &CommandMessage) -> Result<Running, Error> {
        self.queue(message, wants_input(&message.params), true)
    }

    fn queue<R>(
        &mut self,
        message: &CommandMessage,
        wants_input: bool,
        sensitive: bool,
    ) -> Result<Running<R>, Error> {
        let line = if self.shared.signer.is_none() { encode(&self.shared, message)? } else { Bytes::new() };
        self.shared.add_command(&message.id, message.window, wants_input)?;
        if let Some(audit) = &self.shared.audit {
            audit.early(message, sensitive);
        }
        self.shared.command_started(message);
        if self.shared.signer.is_none() {
            self.early.extend_from_slice(&line);
        } else if wants_input {
            self.shared.collect(message.clone());
        } else {
            self.to_sign.push(message.clone());
        }
        Ok(Running::new(message.id.clone(), Arc::clone(&self.shared), message.window))
    }

    /// Nothing but what was started so far will be asked: the runner ends when that is done.
    pub fn shutdown(&mut self) {
        if self.shared.set_closing() && self.shared.signer.is_none() {
            let line = self.shared.encode(&ControllerMessage::Shutdown(Shutdown { grace: None }));
            self.early.extend_from_slice(&line);
        }
    }

    /// Connects, starts the runner, and sends what was started.
    ///
    /// # Errors
    /// Why there is no session; the commands that were started end with the same.
    pub async fn connect(mut self) -> Result<Session, Error> {
        let early = std::mem::take(&mut self.early).into();
        let to_sign = std::mem::take(&mut self.to_sign);
        match self.start_runner(early).await {
            Ok(started) => {
                let session = self.into_session(started);
                session.sign_early(&to_sign).await;
                Ok(session)
            }
            Err(error) => {
                self.shared.observer.session_ended(Some(&error));
                self.shared.fail(&error);
                Err(error)
            }
        }
    }

    async fn start_runner(&self, early: Bytes) -> Result<Started, Error> {
        let Some(audit) = &self.shared.audit else {
            return self.client.start(&*self.transport, early, &*self.shared.observer).await;
        };
        audit.begin(self.transport.way()).await?;
        let result = self.client.start(&audit.watch(&*self.transport), early, &*self.shared.observer).await;
        audit.reached(result).await
    }

    fn into_session(self, started: Started) -> Session {
        let Started { ready, ready_line, connection, decoder, token } = started;
        let Self { client, transport, shared, outgoing, window, .. } = self;
        shared.set_ready(ready, ready_line.len() + 1);
        // A time to live that no clock can hold has no end.
        let deadline = Instant::now().checked_add(client.ttl().saturating_add(2 * GRACE));
        let times = Times { lease: client.lease(), deadline, close_limit: 2 * GRACE };
        let orders = tasks::spawn(&shared, outgoing, connection, decoder, times);
        Session { shared, orders, window, transport, token }
    }
}

/// A session with a runner. Dropping it ends the runner and whatever it runs; [`Session::close`] also says so.
pub struct Session {
    shared: Arc<Shared>,
    orders: mpsc::UnboundedSender<Order>,
    window: u64,
    transport: Arc<dyn Transport>,
    token: String,
}

/// The proof that nothing of a session is left, or as much of it as there is.
#[derive(Debug, Clone, PartialEq)]
pub struct Farewell {
    /// The runner's last frame.
    pub exit: Option<Exit>,
    /// How its process was told to have ended.
    pub status: Option<ExitStatus>,
    /// The far side has closed in order: with `exit` the proof that the runner is gone.
    pub closed: bool,
}

impl Farewell {
    /// Whether the runner is known to be gone.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.exit.is_some() && self.closed
    }
}

impl Session {
    /// Sends what was started before there was a READY to sign it for.
    async fn sign_early(&self, commands: &[CommandMessage]) {
        if self.shared.signer.is_none() {
            return;
        }
        for command in commands {
            if let Err(error) = self.shared.send_signed(Said::Command(command, None)).await {
                self.shared.fail_command(&command.id, error);
            }
        }
        if self.shared.is_closing() {
            self.shared.shut_down_when_sent();
        }
    }

    /// The host, as its user named it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.shared.host
    }

    /// What the runner said of itself and its host.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        // Set before a Session exists.
        static NONE: std::sync::LazyLock<Ready> = std::sync::LazyLock::new(Ready::default);
        self.shared.ready().unwrap_or(&NONE)
    }

    /// Runs a typed command to its end, five minutes at most.
    ///
    /// # Errors
    /// [`Error::Command`] with the runner's ERROR, or why there is no answer.
    pub async fn run<C: CommandSpec>(
        &self,
        command: C,
    ) -> Result<sortie_protocol::message::Done<C::Result>, Error> {
        self.start(command).await?.wait().await
    }

    /// Starts a typed command, five minutes at most.
    ///
    /// # Errors
    /// Why it could not be sent.
    pub async fn start<C: CommandSpec>(&self, command: C) -> Result<Running<Typed<C::Result>>, Error> {
        self.start_with(&command, CommandOptions::default()).await
    }

    /// Starts a typed command. For one that wants to be confirmed (`sshd_harden` with `confirm`) look at its events with
    /// [`awaits_confirmation`] and answer with [`Session::confirm`].
    ///
    /// # Errors
    /// Why it could not be sent; `UNSUPPORTED` where this session cannot confirm what wants to be, or the runner knows no
    /// sequences.
    pub async fn start_with<C: CommandSpec>(
        &self,
        command: &C,
        options: CommandOptions,
    ) -> Result<Running<Typed<C::Result>>, Error> {
        let sensitive = options.sensitive;
        let (message, wants_input) = message(&self.shared, command, options, self.window)?;
        if confirm::wants_confirm(message.kind, &message.params) {
            self.can_confirm()?;
        }
        // It would run what is not to be run.
        if !message.sequence.is_empty() && self.ready().capabilities.get("sequence") != Some(&true) {
            let why = "sequence: this runner does not have it; start one command after the other";
            return Err(self.command_error(ErrorCode::Unsupported, why.to_owned()));
        }
        self.send(&message, wants_input, sensitive).await
    }

    /// Starts a command that is there as JSON. Its id must not be that of another command under way; see
    /// [`Session::next_id`].
    ///
    /// # Errors
    /// Why it could not be sent.
    pub async fn start_raw(&self, message: &CommandMessage) -> Result<Running, Error> {
        self.send(message, wants_input(&message.params), false).await
    }

    /// As [`Self::start_raw`], for a command whose arguments and answer are to stay out of all that is written down: see
    /// [`CommandOptions::sensitive`].
    ///
    /// # Errors
    /// Why it could not be sent.
    pub async fn start_raw_sensitive(&self, message: &CommandMessage) -> Result<Running, Error> {
        self.send(message, wants_input(&message.params), true).await
    }

    /// An id that no command of this session has had.
    #[must_use]
    pub fn next_id(&self) -> String {
        self.shared.next_id()
    }

    async fn send<R>(
        &self,
        message: &CommandMessage,
        wants_input: bool,
        sensitive: bool,
    ) -> Result<Running<R>, Error> {
        let line = if self.shared.signer.is_none() { encode(&self.shared, message)? } else { Bytes::new() };
        self.shared.add_command(&message.id, message.window, wants_input)?;
        // Held from here on: were this future dropped, the command would be cancelled.
        let running = Running::new(message.id.clone(), Arc::clone(&self.shared), message.window);
        if let Some(audit) = &self.shared.audit
            && let Err(error) = audit.command(message, sensitive).await
        {
            // It was not sent, so there is nothing to cancel.
            self.shared.forget(&message.id);
            return Err(error);
        }
        self.shared.command_started(message);
        let sent = if self.shared.signer.is_none() {
            self.shared.send_bulk(line).await
        } else if wants_input {
            self.shared.collect(message.clone());
            Ok(())
        } else {
            self.shared.send_signed(Said::Command(message, None)).await
        };
        if let Err(error) = sent {
            self.shared.forget(&message.id);
            return Err(error);
        }
        Ok(running)
    }

    /// Ends the session: running commands are ended after a grace of 5 s, and the runner is seen gone.
    ///
    /// # Errors
    /// [`Error::Lost`] when it is not known whether the runner is gone, with its process id.
    pub async fn close(self) -> Result<Farewell, Error> {
        self.shutdown(Some(GRACE)).await
    }

    /// Ends the session once the accepted commands are done, or at the latest after `grace`.
    ///
    /// # Errors
    /// As [`Session::close`].
    pub async fn shutdown(self, grace: Option<Duration>) -> Result<Farewell, Error> {
        if self.shared.set_closing() {
            let grace = grace.map(|grace| grace.as_secs());
            self.shared.send_small(&ControllerMessage::Shutdown(Shutdown { grace }));
        }
        if let Some(grace) = grace {
            let _ = self.orders.send(Order::EndWithin(grace + 2 * GRACE));
        }
        self.ended().await
    }

    /// Says that nothing more will be asked: the runner ends by itself when what was asked is done.
    #[cfg(feature = "apply")]
    pub(crate) fn expect_no_more(&self) {
        if self.shared.set_closing() {
            self.shared.shut_down_when_sent();
        }
    }

    /// Waits until the session has ended by itself: after [`Opening::shutdown`], by its time to live, or by loss.
    ///
    /// # Errors
    /// As [`Session::close`].
    pub async fn ended(self) -> Result<Farewell, Error> {
        let timer = StepTimer::start(&*self.shared.observer, Step::Close);
        let mut finish = self.shared.finish.subscribe();
        let finish = finish.wait_for(Option::is_some).await.ok().and_then(|finish| finish.clone());
        let Some(finish) = finish else {
            return Err(Error::Closed { host: self.shared.host.clone() });
        };
        if let Some(error) = finish.error {
            return Err(self.look_after(error).await);
        }
        timer.done(1, finish.exit.as_ref().map_or("", |_| "the runner said goodbye"));
        Ok(Farewell { exit: finish.exit, status: finish.ended.status, closed: finish.ended.closed })
    }

    /// The connection is gone and the runner may not be: if that can be done without asking anybody, log in once more,
    /// look, and end what is left.
    async fn look_after(&self, error: Error) -> Error {
        // Where the host starts a runner by itself another login gets no shell to look with.
        let can_look = self.transport.unattended() && !self.token.is_empty();
        let (Error::Lost { pid: Some(pid), .. }, true) = (&error, can_look) else {
            return error;
        };
        let left = Left { pid: *pid, token: &self.token, sha256: &self.ready().sha256 };
        let found = aftermath::look(&*self.transport, left, &*self.shared.observer).await;
        let Error::Lost { host, step, reason, pid } = error else { return error };
        let (told, pid) = match found {
            Aftermath::Gone => ("a second login found nothing of it left".to_owned(), None),
            Aftermath::Ended => ("a second login found its runner and ended it".to_owned(), None),
            Aftermath::StillThere => {
                ("a second login found its runner still there, ending its commands".to_owned(), pid)
            }
            Aftermath::Unknown(why) => (format!("a second login could not tell what is left ({why})"), pid),
        };
        Error::Lost { host, step, reason: format!("{reason}; {told}"), pid }
    }
}

fn message<C: CommandSpec>(
    shared: &Shared,
    command: &C,
    options: CommandOptions,
    window: u64,
) -> Result<(CommandMessage, bool), Error> {
    let config = |reason: String| Error::Config { host: shared.host.clone(), reason };
    let params: Box<RawValue> = serde_json::value::to_raw_value(command)
        .map_err(|error| config(format!("the parameters of {} cannot be sent: {error}", C::TYPE.name())))?;
    let wants_input = wants_input(&params);
    let message = CommandMessage {
        id: shared.next_id(),
        kind: C::TYPE,
        // Rounded up: a command may not get less time than was asked for.
        timeout: options.timeout.as_secs() + u64::from(options.timeout.subsec_nanos() > 0),
        params,
        idempotency_key: options.idempotency_key,
        signature: String::new(),
        metadata: options.metadata,
        check: options.check,
        diff: options.diff,
        r#become: options.r#become,
        window: Some(window),
        sequence: options.sequence,
        limits: options.limits,
        usage: options.usage,
    };
    if message.timeout == 0 {
        return Err(config("a timeout must be at least a second".into()));
    }
    Ok((message, wants_input))
}

/// Whether the parameters announce INPUT.
fn wants_input(params: &RawValue) -> bool {
    #[derive(serde::Deserialize, Default)]
    #[serde(default)]
    struct Announced {
        stdin_from: Option<serde::de::IgnoredAny>,
        content_from: Option<serde::de::IgnoredAny>,
    }
    let announced: Announced = serde_json::from_str(params.get()).unwrap_or_default();
    announced.stdin_from.is_some() || announced.content_from.is_some()
}

fn encode(shared: &Shared, message: &CommandMessage) -> Result<Bytes, Error> {
    within_frame(shared, shared.encode(&ControllerMessage::Command(Box::new(message.clone()))))
}

/// The line, if it is none that the runner would drop.
fn within_frame(shared: &Shared, line: Bytes) -> Result<Bytes, Error> {
    if line.len() > FRAME_LIMIT {
        return Err(Error::Config {
            host: shared.host.clone(),
            reason: format!(
                "the command takes {} bytes, more than the {FRAME_LIMIT} of a frame; send contents as input instead",
                line.len()
            ),
        });
    }
    Ok(line)
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
