//! An SSH server in this process: real key exchange, authentication and channels (russh), and a real child process of
//! this machine for each `exec` request. It needs neither root nor an installed sshd. It knows nothing of what the
//! commands it is asked to run do.
//!
//! Where it differs from OpenSSH's server: what a child does not read of its standard input is kept in memory, without
//! a bound, because russh gives back the window on receipt; nothing ever blocks the connection. Output is held back by
//! the client's window, as it should be. The exit status is sent the moment the child ends, before output still in its
//! pipes: RFC 4254 §6.10 allows it, OpenSSH does it at times, and clients must bear it.

mod child;
mod connection;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use nix::sys::signal::Signal;
use russh::keys::PublicKey;
use russh::server;
use russh::{Preferred, cipher};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use crate::access::Access;
use crate::keys::KeyPair;
use crate::process::{Mark, Process};
use connection::Connection;

/// What the server is to be like; see [`Embedded::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    user: String,
    password: Option<String>,
    dialogue: Vec<Vec<(String, bool, String)>>,
    keys: Vec<PublicKey>,
    host_key: Option<KeyPair>,
    shell: PathBuf,
    env: BTreeMap<OsString, OsString>,
    faults: Faults,
}

/// What goes wrong on purpose. By default nothing does.
#[derive(Clone, Debug, Default)]
struct Faults {
    max_sessions: Option<usize>,
    refuse_exec: bool,
    no_reply: bool,
    delay_exec: Duration,
    noise: Bytes,
    banner: Option<String>,
    cut_after_input: Option<u64>,
    cut_after_output: Option<u64>,
}

impl Builder {
    /// The one user that may log in; `deploy` by default. The name need not exist on this machine: commands run as the
    /// user of this process.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// Accepts this password too. Without it the server offers public keys only.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Asks these questions by `keyboard-interactive` (RFC 4256), round after round, and lets in whoever answers all of
    /// them: the text, whether the answer may be seen, and the answer. A round may be empty. Before each round it says
    /// its number.
    #[must_use]
    pub fn dialogue(mut self, rounds: &[&[(&str, bool, &str)]]) -> Self {
        let owned = |round: &&[(&str, bool, &str)]| {
            round.iter().map(|&(text, echo, answer)| (text.to_owned(), echo, answer.to_owned())).collect()
        };
        self.dialogue = rounds.iter().map(owned).collect();
        self
    }

    /// Accepts this key too, beside the one in [`Access::identity`].
    #[must_use]
    pub fn authorized_key(mut self, key: PublicKey) -> Self {
        self.keys.push(key);
        self
    }

    /// The host key to show; a new one by default.
    #[must_use]
    pub fn host_key(mut self, key: KeyPair) -> Self {
        self.host_key = Some(key);
        self
    }

    /// The login shell, run as `shell -c COMMAND`; `/bin/sh` by default.
    #[must_use]
    pub fn shell(mut self, shell: impl Into<PathBuf>) -> Self {
        self.shell = shell.into();
        self
    }

    /// Sets a variable in the environment of commands, over what a login gives.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// At most so many sessions open at once on one connection (`MaxSessions` of `sshd_config(5)`).
    #[must_use]
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        self.faults.max_sessions = Some(sessions);
        self
    }

    /// Refuses every `exec` request.
    #[must_use]
    pub fn refuse_exec(mut self) -> Self {
        self.faults.refuse_exec = true;
        self
    }

    /// Never answers an `exec` request, and runs nothing.
    #[must_use]
    pub fn no_reply(mut self) -> Self {
        self.faults.no_reply = true;
        self
    }

    /// Waits before it runs a command and says so.
    #[must_use]
    pub fn delay_exec(mut self, delay: Duration) -> Self {
        self.faults.delay_exec = delay;
        self
    }

    /// Bytes that come on standard output before those of any command, as from a shell's start-up files.
    #[must_use]
    pub fn noise(mut self, noise: impl Into<Bytes>) -> Self {
        self.faults.noise = noise.into();
        self
    }

    /// Text shown during authentication (RFC 4252 §5.4).
    #[must_use]
    pub fn banner(mut self, text: &str) -> Self {
        self.faults.banner = Some(text.to_owned());
        self
    }

    /// Drops a connection once so many bytes of standard input have come over it; the child gets exactly those.
    #[must_use]
    pub fn cut_after_input(mut self, bytes: u64) -> Self {
        self.faults.cut_after_input = Some(bytes);
        self
    }

    /// Ends a connection once so many bytes of a command's standard output, noise included, have gone out; the client
    /// gets exactly those and then `SSH_MSG_DISCONNECT`.
    #[must_use]
    pub fn cut_after_output(mut self, bytes: u64) -> Self {
        self.faults.cut_after_output = Some(bytes);
        self
    }

    /// Starts the server on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be bound or no temporary directory made.
    pub async fn start(mut self) -> Result<Embedded> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("binding a port of 127.0.0.1")?;
        let port = listener.local_addr()?.port();
        let files = tempfile::Builder::new().prefix("sortie-embedded-").tempdir()?;
        for name in ["home", "tmp", "run", "client"] {
            fs::create_dir(files.path().join(name))?;
        }
        let key = KeyPair::generate()?;
        self.keys.push(key.public().clone());
        let host_key = match self.host_key.take() {
            Some(key) => key,
            None => KeyPair::generate()?,
        };
        let access = Access::write(
            &files.path().join("client"),
            (Ipv4Addr::LOCALHOST, port),
            &self.user,
            &key,
            &host_key,
        )?;
        let mark = Mark::new();
        let config = Arc::new(server_config(&host_key, &self));
        let shared = Arc::new(Shared {
            env: self.login_env(files.path(), &mark),
            home: files.path().join("home"),
            builder: self,
        });
        let server = Server { config, shared };
        let accepting = tokio::spawn(accept(listener, server.clone())).abort_handle();
        Ok(Embedded { access, files, mark, server, accepting, duplex: JoinSet::new() })
    }

    /// What a login without PAM gives, with every place for temporary files inside `files`.
    fn login_env(&self, files: &Path, mark: &Mark) -> BTreeMap<OsString, OsString> {
        let mut env: BTreeMap<OsString, OsString> = BTreeMap::new();
        env.insert("PATH".into(), "/usr/local/bin:/usr/bin:/bin:/usr/games".into());
        env.insert("SHELL".into(), self.shell.clone().into());
        env.insert("HOME".into(), files.join("home").into());
        env.insert("TMPDIR".into(), files.join("tmp").into());
        env.insert("XDG_RUNTIME_DIR".into(), files.join("run").into());
        env.insert("USER".into(), self.user.clone().into());
        env.insert("LOGNAME".into(), self.user.clone().into());
        let (name, value) = mark.variable();
        env.insert(name.into(), value.into());
        env.extend(self.env.clone());
        env
    }
}

/// What all connections of a server share.
#[derive(Debug)]
struct Shared {
    builder: Builder,
    env: BTreeMap<OsString, OsString>,
    home: PathBuf,
}

#[derive(Clone)]
struct Server {
    config: Arc<server::Config>,
    shared: Arc<Shared>,
}

impl Server {
    /// Serves one client until it is gone. What went wrong is the client's to see.
    async fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connection = Connection::new(self.shared);
        if let Ok(session) = server::run_stream(self.config, stream, connection).await {
            let _ = session.await;
        }
    }
}

/// A running server. Dropping it ends its connections and kills what its commands left running.
pub struct Embedded {
    access: Access,
    files: TempDir,
    mark: Mark,
    server: Server,
    accepting: AbortHandle,
    duplex: JoinSet<()>,
}

impl Embedded {
    /// A server with one user, one new host key, and nothing that goes wrong.
    pub fn builder() -> Builder {
        Builder {
            user: "deploy".to_owned(),
            password: None,
            dialogue: Vec::new(),
            keys: Vec::new(),
            host_key: None,
            shell: "/bin/sh".into(),
            env: BTreeMap::new(),
            faults: Faults::default(),
        }
    }

    /// How to log in.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Opens a connection to the server without a socket: the client's end of it.
    pub fn connect(&mut self) -> DuplexStream {
        let (client, server) = tokio::io::duplex(256 * 1024);
        self.duplex.spawn(self.server.clone().serve(server));
        client
    }

    /// The directory that commands find as `HOME`.
    pub fn home(&self) -> PathBuf {
        self.files.path().join("home")
    }

    /// What its commands left in `HOME`, `TMPDIR` and `XDG_RUNTIME_DIR`, which are the server's own: every path,
    /// relative to the directory that holds the three, sorted.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for name in ["home", "tmp", "run"] {
            list(self.files.path(), Path::new(name), &mut found)?;
        }
        found.sort();
        Ok(found)
    }

    /// The processes that its commands started and that still run, wherever they were reparented to.
    pub fn processes(&self) -> Vec<Process> {
        self.mark.processes()
    }

    /// Waits until nothing that its commands started runs any more.
    ///
    /// # Errors
    /// When something still runs at the deadline.
    pub async fn quiet(&self) -> Result<()> {
        self.mark.gone().await
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.accepting.abort();
        for process in self.mark.processes() {
            // One that ended meanwhile is as good as killed.
            let _ = crate::process::kill(process.pid, Signal::SIGKILL);
        }
    }
}

async fn accept(listener: TcpListener, server: Server) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        // Small packets must not wait for the acknowledgement of earlier ones; OpenSSH does the same where it matters.
        let _ = stream.set_nodelay(true);
        connections.spawn(server.clone().serve(stream));
        while connections.try_join_next().is_some() {}
    }
}

fn list(root: &Path, dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(dir)).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, found)?;
        }
        found.push(path);
    }
    Ok(())
}

fn server_config(host_key: &KeyPair, builder: &Builder) -> server::Config {
    let mut methods = russh::MethodSet::empty();
    methods.push(russh::MethodKind::PublicKey);
    if builder.password.is_some() {
        methods.push(russh::MethodKind::Password);
    }
    if !builder.dialogue.is_empty() {
        methods.push(russh::MethodKind::KeyboardInteractive);
    }
    server::Config {
        methods,
        keys: vec![host_key.private().clone()],
        // A wrong password is told at once: there is nobody here to slow down.
        auth_rejection_time: Duration::ZERO,
        inactivity_timeout: None,
        preferred: Preferred { cipher: CIPHERS.into(), ..Preferred::DEFAULT },
        ..server::Config::default()
    }
}

/// The client's order decides among these; aes128-gcm is not in russh's own list.
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];
