//! Where an embedder begins: the settings of a client, and the sessions that it opens.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sortie_protocol::{Line, message::Ready};

use crate::audit::{AuditLog, SessionAudit, tap};
use crate::bootstrap::{self, Installed, StartOptions, Started};
use crate::error::Error;
use crate::observe::{Observer, Unobserved};
use crate::runners::RunnerSet;
use crate::session::{Opening, Session};
use crate::signing::Signer;
use crate::target::Target;
use crate::transport::{Connection, Ssh, SshSettings, Transport};

/// Opens sessions, all with the same settings. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    settings: Arc<ClientBuilder>,
}

/// The settings of a [`Client`].
#[derive(Clone)]
#[must_use]
pub struct ClientBuilder {
    ttl: Duration,
    lease: Option<Duration>,
    concurrency: Option<u32>,
    window: u64,
    cache: bool,
    shell_timeout: Duration,
    start_timeout: Duration,
    runners: RunnerSet,
    ssh: SshSettings,
    observer: Arc<dyn Observer>,
    audit: Option<AuditLog>,
    signer: Option<Arc<Signer>>,
    trust: Vec<String>,
    known_only: bool,
}

impl Client {
    /// Settings to begin with: ten minutes to live, a lease of 60 s, 32 commands at once, 1 MiB of unacknowledged
    /// output a command, no cache, the SSH settings of ssh(1), and no runners.
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            ttl: Duration::from_secs(600),
            lease: Some(Duration::from_secs(60)),
            concurrency: Some(32),
            window: 1024 * 1024,
            cache: false,
            shell_timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(120),
            runners: RunnerSet::new(),
            ssh: SshSettings::from_env(),
            observer: Arc::new(Unobserved),
            audit: None,
            signer: None,
            trust: Vec::new(),
            known_only: false,
        }
    }

    /// Connects to `target` over SSH and starts a runner there.
    ///
    /// # Errors
    /// Any but [`Error::Command`] and [`Error::Result`]; each names the step.
    pub async fn connect(&self, target: &Target) -> Result<Session, Error> {
        self.open(self.ssh(target).await?).connect().await
    }

    /// Starts a runner by way of `transport`.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_by(&self, transport: Arc<dyn Transport>) -> Result<Session, Error> {
        self.open(transport).connect().await
    }

    /// A session that commands can be started on before it is connected.
    #[must_use]
    pub fn open(&self, transport: Arc<dyn Transport>) -> Opening {
        Opening::new(self.clone(), transport)
    }

    /// The way to `target` over SSH, by this client's settings. The configuration is read on a thread of its own: it
    /// may run commands and look names up.
    ///
    /// # Errors
    /// [`Error::Config`] for a configuration that cannot be read or obeyed.
    pub async fn ssh(&self, target: &Target) -> Result<Arc<dyn Transport>, Error> {
        let ssh = Ssh::find(target, &self.settings.ssh).await?;
        Ok(Arc::new(ssh))
    }

    /// Starts a runner and hands over its bare streams, for programs that speak the protocol themselves. The runner
    /// gets exactly `flags`; without any it behaves as the reference's.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn pipe(&self, transport: &dyn Transport, flags: Vec<String>) -> Result<Pipe, Error> {
        // Who speaks with it sees by READY which one it is, and one that takes unsigned commands is not taken.
        let audit = self.audit().map(|log| SessionAudit::new(log.clone(), transport.host()));
        let observer = self.observer(transport.host());
        let reached = self.reach(transport, flags, audit.as_deref(), &*observer).await;
        // What follows is between the caller and the runner.
        observer.session_ended(reached.as_ref().err());
        let started = reached?;
        let Started { ready, ready_line, mut decoder, mut connection, .. } = started;
        let mut first = ready_line;
        first.push(b'\n');
        while let Some(Line::Frame(line)) = decoder.next_line() {
            first.extend_from_slice(line);
            first.push(b'\n');
        }
        if let Some(Line::Frame(begun)) = decoder.last_line() {
            first.extend_from_slice(begun);
        }
        if let Some(audit) = audit {
            audit.ready(&ready);
            connection = tap(connection, &first, audit, observer);
        }
        Ok(Pipe { ready, first, connection })
    }

    async fn reach(
        &self,
        transport: &dyn Transport,
        flags: Vec<String>,
        audit: Option<&SessionAudit>,
        observer: &dyn Observer,
    ) -> Result<Started, Error> {
        let Some(audit) = audit else {
            return self.start_with(transport, flags, Bytes::new(), Installed::Taken, observer).await;
        };
        audit.begin(transport.way()).await?;
        let result =
            self.start_with(&audit.watch(transport), flags, Bytes::new(), Installed::Taken, observer).await;
        audit.reached(result).await
    }

    /// Starts a runner for a session. With a signer it is one that takes signed commands alone.
    pub(crate) async fn start(
        &self,
        transport: &dyn Transport,
        early: Bytes,
        observer: &dyn Observer,
    ) -> Result<Started, Error> {
        let settings = &self.settings;
        let mut flags = vec!["--ttl".to_owned(), settings.ttl.as_secs().max(1).to_string()];
        if let Some(lease) = settings.lease {
            flags.extend(["--lease".to_owned(), lease.as_secs().max(1).to_string()]);
        }
        if let Some(concurrency) = settings.concurrency {
            flags.extend(["--concurrency".to_owned(), concurrency.to_string()]);
        }
        let installed = match (&settings.signer, settings.trust.is_empty()) {
            (None, _) => Installed::Refused,
            (Some(_), true) => Installed::Required,
            (Some(_), false) => Installed::Taken,
        };
        self.start_with(transport, flags, early, installed, observer).await
    }

    async fn start_with(
        &self,
        transport: &dyn Transport,
        mut flags: Vec<String>,
        early: Bytes,
        installed: Installed,
        observer: &dyn Observer,
    ) -> Result<Started, Error> {
        let settings = &self.settings;
        for key in &settings.trust {
            flags.extend(["--trust".to_owned(), key.clone()]);
        }
        let options = StartOptions {
            flags,
            cache: settings.cache,
            shell_timeout: settings.shell_timeout,
            start_timeout: settings.start_timeout,
            installed,
            known_only: settings.known_only,
        };
        bootstrap::start(transport, &settings.runners, &options, early, observer).await
    }

    /// Who watches a session with `host`.
    pub(crate) fn observer(&self, host: &str) -> Arc<dyn Observer> {
        let observer = Arc::clone(&self.settings.observer);
        #[cfg(feature = "tracing")]
        let observer = crate::trace::traced(observer, host);
        #[cfg(not(feature = "tracing"))]
        let _ = host;
        observer
    }

    pub(crate) fn signer(&self) -> Option<&Arc<Signer>> {
        self.settings.signer.as_ref()
    }

    pub(crate) fn audit(&self) -> Option<&AuditLog> {
        self.settings.audit.as_ref()
    }

    pub(crate) fn window(&self) -> u64 {
        self.settings.window
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.settings.ttl
    }

    pub(crate) fn lease(&self) -> Option<Duration> {
        self.settings.lease
    }
}

/// The bare streams of a runner.
#[derive(Debug)]
pub struct Pipe {
    /// READY, read and checked.
    pub ready: Ready,
    /// READY as it came, and whatever came with it: the first bytes for whoever speaks the protocol.
    pub first: Vec<u8>,
    /// The streams.
    pub connection: Connection,
}

impl ClientBuilder {
    /// Time to live of a session; whole seconds, at least 1.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// How long the runner goes on without hearing from us, and we without hearing from it; `None`: as long as it lives.
    pub fn lease(mut self, lease: Option<Duration>) -> Self {
        self.lease = lease;
        self
    }

    /// Commands that run at once on one host; `None`: one after the other.
    pub fn concurrency(mut self, concurrency: Option<u32>) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// Most output of a command, in bytes, that is sent before its consumer has taken it.
    pub fn window(mut self, bytes: u64) -> Self {
        self.window = bytes.max(1);
        self
    }

    /// Keep runners in `~/.cache/sortie` of the host, and use those that are there.
    pub fn cache(mut self, cache: bool) -> Self {
        self.cache = cache;
        self
    }

    /// For the login shell to come to the start script.
    pub fn shell_timeout(mut self, limit: Duration) -> Self {
        self.shell_timeout = limit;
        self
    }

    /// For the upload and the start of the runner.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = limit;
        self
    }

    /// The runners to choose from.
    pub fn runners(mut self, runners: RunnerSet) -> Self {
        self.runners = runners;
        self
    }

    /// Sign every command, for hosts that take no others: those that start a runner of their own with an anchor, in place of a
    /// shell, and with [`Self::trust`] any. Where a login gets a shell instead there is no session.
    pub fn signer(mut self, signer: Arc<Signer>) -> Self {
        self.signer = Some(signer);
        self
    }

    /// Start runners that take only commands signed by one of these keys (64 hexadecimal digits each). That protects against
    /// nobody who can log in, and so start another runner.
    pub fn trust(mut self, keys: Vec<String>) -> Self {
        self.trust = keys;
        self
    }

    /// Take no runner that a host starts by itself unless it is one of [`Self::runners`], byte for byte.
    pub fn known_runners_only(mut self, only: bool) -> Self {
        self.known_only = only;
        self
    }

    /// How hosts are reached over SSH.
    pub fn ssh(mut self, ssh: SshSettings) -> Self {
        self.ssh = ssh;
        self
    }

    /// Who watches.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// Where sessions are recorded. What cannot be recorded is not run.
    pub fn audit(mut self, log: AuditLog) -> Self {
        self.audit = Some(log);
        self
    }

    /// The client.
    #[must_use]
    pub fn build(self) -> Client {
        Client { settings: Arc::new(self) }
    }

    /// Connects with these settings; see [`Client::connect`].
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(self, target: &Target) -> Result<Session, Error> {
        self.build().connect(target).await
    }
}
