//! SSH by russh: the only module, with `ssh_auth` and `ssh_hostkey`, that knows the library.
//!
//! Rules that come from the library: one task drains the channel whatever happens, one task owns the writer and is
//! never cancelled in a write while the connection lives, and the end is the channel's close, nothing before it.
//!
//! Round trips: TCP 1, versions 1, key exchange 1, login 3 (see `ssh_auth`), channel 1; the exec request's answer
//! comes together with the first output.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use russh::client::{self, Handle, Msg};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Disconnect, Limits};
use tokio::sync::mpsc;

use super::ssh_auth::Login;
use super::ssh_connect::{Failed, Greeting, Retries};
use super::ssh_hostkey::{Handler, Seen, accepted, handshake_reason, preferred};
use super::ssh_options::{Route, SshOptions, SshSettings};
use super::ssh_route::{Complaint, Program, Stream, through};
use super::{Connection, Ended, ExitStatus, Launch, Pipes, Starting, Transport, connection, ssh_connect};
use crate::error::Error;
use crate::host_trust::{Trust, TrustSettings};
use crate::observe::{Observer, Step, StepTimer};
use crate::target::Target;

/// Small frames that wait are sent together, up to this many bytes.
const COALESCE: usize = 256 * 1024;
/// For logging in while a person may be typing.
const ATTENDED: Duration = Duration::from_secs(600);
/// How long a connection that is no longer wanted may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// A host that is passed, where we are logged in, and its name.
type Hop = (Arc<Handle<Handler>>, String);

/// What a connection runs on.
struct Opened {
    stream: Box<dyn Stream>,
    /// Where it ended up, where that is known.
    address: Option<std::net::IpAddr>,
    /// What comes first, where that tells whether another try may do better.
    greeting: Option<Greeting>,
    complaint: Complaint,
}

/// Reaches a host over SSH.
pub struct Ssh {
    options: SshOptions,
    /// The host that is passed last (`ProxyJump`).
    hop: Option<Box<Ssh>>,
    /// The port that the host is known by, wherever it listens now.
    known_port: u16,
    asked: AtomicBool,
}

impl Ssh {
    /// Reads the configuration files for `target`. Blocks where a configuration runs commands (`Match exec`) or looks
    /// names up (`CanonicalizeHostname`).
    ///
    /// # Errors
    /// [`Error::Config`] for a configuration that cannot be read or obeyed.
    pub fn new(target: &Target, settings: &SshSettings) -> Result<Self, Error> {
        SshOptions::resolve(target, settings).map(Self::with_options)
    }

    /// As [`Ssh::new`], on a thread that may block.
    ///
    /// # Errors
    /// As [`Ssh::new`].
    pub async fn find(target: &Target, settings: &SshSettings) -> Result<Self, Error> {
        let (wanted, settings) = (target.clone(), settings.clone());
        let found = tokio::task::spawn_blocking(move || Self::new(&wanted, &settings)).await;
        found.unwrap_or_else(|error| {
            Err(Error::Config { host: target.to_string(), reason: format!("its configuration: {error}") })
        })
    }

    /// A host whose options are all decided.
    #[must_use]
    pub fn with_options(options: SshOptions) -> Self {
        let hop = match &options.route {
            Route::Through(hop) => Some(Box::new(Self::with_options((**hop).clone()))),
            Route::Direct | Route::Program(_) => None,
        };
        Self { known_port: options.port, options, hop, asked: AtomicBool::new(false) }
    }

    /// How the host is reached.
    #[must_use]
    pub fn options(&self) -> &SshOptions {
        &self.options
    }

    /// A connection to the host, logged in; by way of other hosts, at which it logs in first.
    async fn log_in(&self, observer: &dyn Observer) -> Result<Handle<Handler>, Error> {
        let options = &self.options;
        let hop = match &self.hop {
            Some(hop) => {
                // Its steps have limits of their own, and somebody may be asked for its password.
                let handle = Box::pin(hop.log_in(observer)).await?;
                if hop.asked.load(Ordering::Relaxed) {
                    self.asked.store(true, Ordering::Relaxed);
                }
                Some((Arc::new(handle), hop.options.name.clone()))
            }
            None => None,
        };
        for warning in &options.warnings {
            observer.warning(warning);
        }
        let mut handle = self.shake_hands(hop.as_ref(), observer).await?;

        let timer = StepTimer::start(observer, Step::Authenticate);
        let login = Login::new(options, &mut handle).run();
        let limit = if options.secrets.unattended() {
            options.login_timeout
        } else {
            ATTENDED.max(options.login_timeout)
        };
        let logged_in = self.limited(Step::Authenticate, limit, login).await??;
        if logged_in.asked {
            self.asked.store(true, Ordering::Relaxed);
        }
        timer.done(logged_in.round_trips, &logged_in.method);
        Ok(handle)
    }

    async fn connect(&self, launch: &Launch, observer: &dyn Observer) -> Result<Connection, Error> {
        let options = &self.options;
        let handle = self.log_in(observer).await?;
        let timer = StepTimer::start(observer, Step::OpenChannel);
        let opened =
            self.limited(Step::OpenChannel, options.login_timeout, handle.channel_open_session()).await?;
        let channel = opened.map_err(|error| self.lost(Step::OpenChannel, &error))?;
        // The answer is read with the output: to wait for it here would cost a round trip.
        channel
            .exec(true, launch.line.as_bytes())
            .await
            .map_err(|error| self.lost(Step::OpenChannel, &error))?;
        timer.done(1, "");

        let (connection, pipes) = connection();
        let (read, write) = channel.split();
        let Pipes { output, input, ending } = pipes;
        let writer = tokio::spawn(write_input(write, input));
        tokio::spawn(async move {
            let ended = drain(read, output, &ending, &handle).await;
            // Nobody reads any more what this would write.
            writer.abort();
            ending.set(ended);
            let goodbye = handle.disconnect(Disconnect::ByApplication, "", "");
            let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        });
        Ok(connection)
    }

    /// The stream to the host: TCP, a channel of the hop, or a program.
    async fn open(&self, hop: Option<&Hop>, observer: &dyn Observer) -> Result<Opened, Error> {
        let options = &self.options;
        Ok(match (hop, &options.route) {
            (Some((handle, name)), _) => {
                let stream = through(handle, name, options, observer).await?;
                Opened {
                    stream: Box::new(stream),
                    address: None,
                    greeting: None,
                    complaint: Complaint::default(),
                }
            }
            (None, Route::Program(command)) => {
                let (program, complaint) = Program::start(command, &options.name, observer)?;
                Opened { stream: Box::new(program), address: None, greeting: None, complaint }
            }
            (None, _) => {
                let stream = ssh_connect::connect(options, options.port, observer).await?;
                let (address, greeting) = (stream.remote_address(), Some(stream.greeting()));
                Opened { stream: Box::new(stream), address, greeting, complaint: Complaint::default() }
            }
        })
    }

    /// A stream, versions, keys, and the check of the host key; once more where the server dropped the connection before it
    /// said its version. All of it within one limit.
    async fn shake_hands(
        &self,
        hop: Option<&Hop>,
        observer: &dyn Observer,
    ) -> Result<Handle<Handler>, Error> {
        let options = &self.options;
        let mut retries = Retries::new(options.connect_timeout, options.connection_attempts);
        let shake = async {
            loop {
                let failed = match self.shake_hands_once(hop, observer).await {
                    Ok(handle) => return Ok(handle),
                    Err(failed) => failed,
                };
                // Without random numbers all wait equally long, which is the lesser evil.
                let random = getrandom::u32().unwrap_or_default();
                let (wait, reason) = retries.after(failed, random)?;
                observer.warning(&format!("{reason}; trying again in {:.1} s", wait.as_secs_f64()));
                tokio::time::sleep(wait).await;
            }
        };
        self.limited(Step::Connect, options.connect_timeout, shake).await?
    }

    async fn shake_hands_once(
        &self,
        hop: Option<&Hop>,
        observer: &dyn Observer,
    ) -> Result<Handle<Handler>, Failed> {
        let options = &self.options;
        let config = |reason| Error::Config { host: options.name.clone(), reason };
        let trust = Trust::load(self.trust_settings()).map_err(config)?;
        let preferred = preferred(options, &trust).map_err(config)?;
        let entry = trust.name.entry().to_owned();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let library = Arc::new(client::Config {
            preferred,
            nodelay: true,
            keepalive_interval: Some(options.server_alive_interval).filter(|interval| !interval.is_zero()),
            // The library takes zero for "never give up", ssh(1) for "at once".
            keepalive_max: options.server_alive_count_max.max(1).try_into().unwrap_or(usize::MAX),
            limits: rekey_limits(options.rekey_limit),
            ..client::Config::default()
        });
        let Opened { stream, address, greeting, complaint } = self.open(hop, observer).await?;
        let timer = StepTimer::start(observer, Step::KeyExchange);
        let handler = Handler {
            host: options.name.clone(),
            trust,
            address,
            hash_names: options.hash_known_hosts,
            seen: Arc::clone(&seen),
        };
        let result = client::connect_stream(library, stream, handler).await;
        let complaint = if result.is_err() { complaint.text().await } else { String::new() };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = seen.refused.take() {
            return Err(error.into());
        }
        let handle = result.map_err(|error| {
            let dropped = greeting.and_then(|greeting| greeting.dropped());
            let reason = dropped.clone().or_else(|| seen.disconnect.take());
            let reason = reason.unwrap_or_else(|| handshake_reason(&error)) + &complaint;
            Failed {
                error: Error::Unreachable { host: options.name.clone(), step: Step::KeyExchange, reason },
                dropped,
            }
        })?;
        let key = accepted(&options.name, &mut seen, &handle)?;
        timer.done(2, &seen.negotiated);
        if let Some(file) = &key.added_to {
            observer.warning(&format!("the host key of {entry} was added to {}", file.display()));
        }
        observer.host_key(&entry, &key);
        Ok(handle)
    }

    fn trust_settings(&self) -> TrustSettings {
        let options = &self.options;
        TrustSettings {
            address: options.address.clone(),
            port: self.known_port,
            alias: options.host_key_alias.clone(),
            user_files: options.user_known_hosts.clone(),
            global_files: options.global_known_hosts.clone(),
            revoked_files: options.revoked_host_keys.clone(),
            policy: options.host_key_policy,
            key_algorithms: options.host_key_algorithms.clone(),
            ca_algorithms: options.ca_signature_algorithms.clone(),
            rsa_bits: usize::try_from(options.required_rsa_size).unwrap_or(usize::MAX),
            check_address: options.check_host_ip,
        }
    }

    async fn limited<T>(
        &self,
        step: Step,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Error> {
        tokio::time::timeout(limit, work).await.map_err(|_| Error::TimedOut {
            host: self.options.name.clone(),
            step,
            limit,
            reason: format!("no answer from {} port {}", self.options.address, self.options.port),
        })
    }

    fn lost(&self, step: Step, error: &russh::Error) -> Error {
        Error::Lost { host: self.options.name.clone(), step, reason: error.to_string(), pid: None }
    }
}

impl Transport for Ssh {
    fn host(&self) -> &str {
        &self.options.name
    }

    fn start<'a>(&'a self, launch: &'a Launch, observer: &'a dyn Observer) -> Starting<'a> {
        Box::pin(self.connect(launch, observer))
    }

    fn way(&self) -> String {
        let SshOptions { user, address, port, .. } = &self.options;
        let before = match (&self.hop, &self.options.route) {
            (Some(hop), _) => format!(" through {}", hop.way()),
            (None, Route::Program(_)) => " by ProxyCommand".into(),
            (None, _) => String::new(),
        };
        format!("ssh {user}@{address} port {port}{before}")
    }

    fn unattended(&self) -> bool {
        !self.asked.load(Ordering::Relaxed)
    }

    fn moved(&self, port: u16) -> Option<Arc<dyn Transport>> {
        let moved = Self::with_options(SshOptions { port, ..self.options.clone() });
        moved.asked.store(self.asked.load(Ordering::Relaxed), Ordering::Relaxed);
        Some(Arc::new(Self { known_port: self.known_port, ..moved }))
    }
}

/// `RekeyLimit`, never above what the library takes for safe: 1 GiB and an hour.
fn rekey_limits(configured: Option<(u64, Option<Duration>)>) -> Limits {
    let most = Limits::default();
    let Some((bytes, time)) = configured else { return most };
    let bytes = match usize::try_from(bytes) {
        Ok(bytes @ 1..) => bytes.min(most.rekey_write_limit),
        _ => most.rekey_write_limit,
    };
    Limits::new(bytes, bytes, time.map_or(most.rekey_time_limit, |time| time.min(most.rekey_time_limit)))
}

/// Reads the channel to its close. Waits for nobody but the session's reader, which waits for nobody.
async fn drain(
    mut read: ChannelReadHalf,
    output: mpsc::Sender<Bytes>,
    ending: &super::Ending,
    handle: &Handle<Handler>,
) -> Ended {
    let mut ended = Ended::default();
    // Once nobody takes output any more it is dropped, and the end still waited for.
    let mut output = Some(output);
    loop {
        let message = tokio::select! {
            message = read.wait() => message,
            () = ending.aborted() => {
                ended.reason = Some("the connection was broken off".into());
                return ended;
            }
        };
        match message {
            Some(ChannelMsg::Data { data }) => {
                if let Some(sender) = &output
                    && sender.send(data).await.is_err()
                {
                    output = None;
                }
            }
            Some(ChannelMsg::ExtendedData { data, .. }) => ending.push_stderr(&data),
            Some(ChannelMsg::ExitStatus { exit_status }) => {
                ended.status = Some(ExitStatus::Code(exit_status));
            }
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                ended.status = Some(ExitStatus::Signal(format!("{signal_name:?}")));
            }
            // Data may still come after Eof of a confused server; the reader is told of the end by Close.
            Some(ChannelMsg::Eof) => {}
            Some(ChannelMsg::Failure) => {
                ended.reason = Some("the server refused to run a command".into());
                return ended;
            }
            Some(ChannelMsg::Close) => {
                ended.closed = true;
                return ended;
            }
            Some(_) => {}
            None => {
                let closed = if handle.is_closed() { "" } else { " by the server" };
                ended.reason = Some(format!("the connection was cut{closed}"));
                return ended;
            }
        }
    }
}

/// Owns the writing half: nothing else writes, and no write is ever given up half done.
async fn write_input(write: ChannelWriteHalf<Msg>, mut input: mpsc::Receiver<Bytes>) {
    while let Some(first) = input.recv().await {
        let mut bytes = first;
        if let Ok(second) = input.try_recv() {
            let mut joined = BytesMut::from(&bytes[..]);
            joined.extend_from_slice(&second);
            while joined.len() < COALESCE
                && let Ok(next) = input.try_recv()
            {
                joined.extend_from_slice(&next);
            }
            bytes = joined.freeze();
        }
        if write.data_bytes(bytes).await.is_err() {
            return;
        }
    }
    let _ = write.eof().await;
}
