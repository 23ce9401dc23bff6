//! SSH by russh: the only module, with `ssh_auth`, that knows the library.
//!
//! Rules that come from the library: one task drains the channel whatever happens, one task owns the writer and is
//! never cancelled in a write while the connection lives, and the end is the channel's close, nothing before it.
//!
//! Round trips: TCP 1, versions 1, key exchange 1, login 3 (see `ssh_auth`), channel 1; the exec request's answer
//! comes together with the first output.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use russh::client::{self, ChannelOpenHandle, DisconnectReason, Handle, Msg, Session};
use russh::keys::ssh_key::{Algorithm, EcdsaCurve};
use russh::keys::{HashAlg, PublicKeyOrCertificate};
use russh::{
    Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Disconnect, Names, Preferred, cipher, kex,
};
use tokio::sync::mpsc;

use super::ssh_auth::Login;
use super::ssh_options::{SshOptions, SshSettings};
use super::{Connection, Ended, ExitStatus, Launch, Pipes, Starting, Transport, connection, ssh_connect};
use crate::error::{Error, HostKeyProblem, printable};
use crate::known_hosts::{self, HostKey, HostName, KnownHosts, Verdict};
use crate::observe::{Observer, Step, StepTimer};
use crate::pattern;
use crate::ssh_config::HostKeyPolicy;
use crate::target::Target;

/// Small frames that wait are sent together, up to this many bytes.
const COALESCE: usize = 256 * 1024;
/// A silent peer is asked whether it lives; after three unanswered questions the connection is given up. Together that
/// is longer than a lease, so that it is the session that decides when a host is lost.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// For logging in while a person may be typing.
const ATTENDED: Duration = Duration::from_secs(600);
/// How long a connection that is no longer wanted may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// Reaches a host over SSH.
pub struct Ssh {
    options: SshOptions,
    /// The port that the host is known by, wherever it listens now.
    known_port: u16,
    asked: AtomicBool,
}

impl Ssh {
    /// Reads the configuration files for `target`.
    ///
    /// # Errors
    /// [`Error::Config`] for a configuration that cannot be read or obeyed.
    pub fn new(target: &Target, settings: &SshSettings) -> Result<Self, Error> {
        SshOptions::resolve(target, settings).map(Self::with_options)
    }

    /// A host whose options are all decided.
    #[must_use]
    pub fn with_options(options: SshOptions) -> Self {
        Self { known_port: options.port, options, asked: AtomicBool::new(false) }
    }

    /// How the host is reached.
    #[must_use]
    pub fn options(&self) -> &SshOptions {
        &self.options
    }

    async fn connect(&self, launch: &Launch, observer: &dyn Observer) -> Result<Connection, Error> {
        let options = &self.options;
        for warning in &options.warnings {
            observer.warning(warning);
        }
        let mut handle = self.shake_hands(observer).await?;

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

    /// TCP, versions, keys, and the check of the host key.
    async fn shake_hands(&self, observer: &dyn Observer) -> Result<Handle<Handler>, Error> {
        let options = &self.options;
        let config = |reason| Error::Config { host: options.name.clone(), reason };
        let name = HostName::new(&options.address, self.known_port);
        let files: Vec<_> =
            options.user_known_hosts.iter().chain(&options.global_known_hosts).cloned().collect();
        let known = KnownHosts::load(&files).map_err(|(file, error)| {
            config(format!("{} cannot be read, so host keys cannot be checked: {error}", file.display()))
        })?;
        let kex = kex_algorithms(options.kex_algorithms.as_deref()).map_err(config)?;
        let preferred = preferred(kex, &known.algorithms(&name));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let handler = Handler {
            host: options.name.clone(),
            name,
            known,
            files: files.clone(),
            policy: options.host_key_policy,
            accepted: None,
            seen: Arc::clone(&seen),
        };
        let library = Arc::new(client::Config {
            preferred,
            nodelay: true,
            keepalive_interval: Some(KEEPALIVE),
            keepalive_max: 3,
            ..client::Config::default()
        });
        let shake = async {
            let stream =
                ssh_connect::connect(&options.name, &options.address, options.port, observer).await?;
            let timer = StepTimer::start(observer, Step::KeyExchange);
            let result = client::connect_stream(library, stream, handler).await;
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(error) = seen.refused.take() {
                return Err(error);
            }
            let handle = result.map_err(|error| Error::Unreachable {
                host: options.name.clone(),
                step: Step::KeyExchange,
                reason: seen.disconnect.take().unwrap_or_else(|| handshake_reason(&error)),
            })?;
            timer.done(2, &seen.negotiated);
            if let Some(warning) = &seen.added {
                observer.warning(warning);
            }
            Ok(handle)
        };
        self.limited(Step::Connect, options.connect_timeout, shake).await?
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

    fn unattended(&self) -> bool {
        !self.asked.load(Ordering::Relaxed)
    }

    fn moved(&self, port: u16) -> Option<Arc<dyn Transport>> {
        let options = SshOptions { port, ..self.options.clone() };
        let asked = AtomicBool::new(self.asked.load(Ordering::Relaxed));
        Some(Arc::new(Self { options, known_port: self.known_port, asked }))
    }
}

fn handshake_reason(error: &russh::Error) -> String {
    match error {
        russh::Error::NoCommonAlgo { kind, theirs, .. } => {
            let theirs = printable(theirs.join(", ").as_bytes(), 400);
            format!("no {kind:?} algorithm in common; the server offers {theirs}")
        }
        russh::Error::Disconnect | russh::Error::HUP => {
            "the server closed the connection; it may be busy, or refuse this address".into()
        }
        russh::Error::Version => "what answers is not an SSH server".into(),
        error => error.to_string(),
    }
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

/// What the library's callbacks learnt.
#[derive(Default)]
struct Seen {
    refused: Option<Error>,
    negotiated: String,
    added: Option<String>,
    disconnect: Option<String>,
}

/// Answers the library's questions about one connection.
pub(super) struct Handler {
    host: String,
    name: HostName,
    known: KnownHosts,
    files: Vec<std::path::PathBuf>,
    policy: HostKeyPolicy,
    /// The key of this connection; a new key exchange must show the same.
    accepted: Option<HostKey>,
    seen: Arc<Mutex<Seen>>,
}

impl Handler {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn judge(&mut self, key: &HostKey) -> Result<(), HostKeyProblem> {
        if let Some(accepted) = &self.accepted {
            let unchanged = accepted == key;
            return if unchanged {
                Ok(())
            } else {
                Err(HostKeyProblem::File {
                    file: "this connection".into(),
                    reason: "the host key changed in it".into(),
                })
            };
        }
        match self.known.check(&self.name, key) {
            Verdict::Known => Ok(()),
            Verdict::Changed { file, line } => Err(HostKeyProblem::Changed { file, line }),
            Verdict::Revoked { file, line } => Err(HostKeyProblem::Revoked { file, line }),
            Verdict::Unknown if self.policy == HostKeyPolicy::AcceptNew => self.add(key).await,
            Verdict::Unknown => Err(HostKeyProblem::Unknown { files: self.files.clone() }),
        }
    }

    async fn add(&self, key: &HostKey) -> Result<(), HostKeyProblem> {
        let Some(file) = self.files.first().cloned() else {
            // UserKnownHostsFile none: nothing is remembered, which is what was asked for.
            return Ok(());
        };
        let (name, key, path) = (self.name.clone(), key.clone(), file.clone());
        let entry = name.entry();
        // Waits for a lock that another process may hold.
        let added = tokio::task::spawn_blocking(move || known_hosts::append(&path, &name, &key)).await;
        match added {
            Ok(Ok(())) => {
                self.seen().added = Some(format!("the host key of {entry} was added to {}", file.display()));
                Ok(())
            }
            Ok(Err(error)) => {
                Err(HostKeyProblem::File { file, reason: format!("cannot be added to: {error}") })
            }
            Err(error) => Err(HostKeyProblem::File { file, reason: error.to_string() }),
        }
    }
}

impl client::Handler for Handler {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let public = shown.public_key();
        let key = HostKey { algorithm: public.algorithm().as_str().to_owned(), blob: public.to_bytes()? };
        match self.judge(&key).await {
            Ok(()) => {
                self.accepted = Some(key);
                Ok(true)
            }
            Err(problem) => {
                self.seen().refused = Some(Error::HostKey {
                    host: self.host.clone(),
                    problem,
                    algorithm: key.algorithm,
                    fingerprint: public.fingerprint(HashAlg::Sha256).to_string(),
                });
                Ok(false)
            }
        }
    }

    async fn kex_done(
        &mut self,
        _secret: Option<&[u8]>,
        names: &Names,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let strict = if names.strict_kex() { ", strict" } else { "" };
        self.seen().negotiated =
            format!("{}{strict}, {}, {}", names.kex.as_ref(), names.key.as_str(), names.cipher.as_ref());
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<russh::Error>) -> Result<(), russh::Error> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                let message = printable(info.message.as_bytes(), 300);
                self.seen().disconnect = Some(format!("the server says: {message}"));
                Ok(())
            }
            DisconnectReason::Error(error) => {
                self.seen().disconnect = Some(handshake_reason(&error));
                Err(error)
            }
        }
    }

    // The library accepts channels that the server opens unless told otherwise. We asked for none.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }
}

/// Cheap and safe first. Both ends pay for a key exchange; a hybrid costs little more and is taken where it is all
/// that a server offers.
const KEX: &[kex::Name] = &[
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::MLKEM768X25519_SHA256,
    kex::DH_GEX_SHA256,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::DH_G14_SHA256,
];

/// Without these names among the key exchange methods the library leaves strict key exchange off (CVE-2023-48795).
const KEX_EXTENSIONS: &[kex::Name] =
    &[kex::EXTENSION_SUPPORT_AS_CLIENT, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT];

/// `KexAlgorithms` of ssh_config(5): a list, or with `+`, `-` or `^` a change of the default.
fn kex_algorithms(configured: Option<&str>) -> Result<Vec<kex::Name>, String> {
    let named = |list: &str| -> Vec<kex::Name> {
        let known = |wanted: &str| {
            kex::ALL_KEX_ALGORITHMS.iter().find(|name| {
                name.as_ref() == wanted && **name != &kex::NONE && !KEX_EXTENSIONS.contains(name)
            })
        };
        list.split(',').filter_map(|name| known(name.trim())).map(|name| **name).collect()
    };
    let mut chosen: Vec<kex::Name> = match configured.map(|text| (text, text.as_bytes().first())) {
        None => KEX.to_vec(),
        Some((text, Some(b'+'))) => KEX.iter().copied().chain(named(&text[1..])).collect(),
        Some((text, Some(b'^'))) => named(&text[1..]).into_iter().chain(KEX.iter().copied()).collect(),
        Some((text, Some(b'-'))) => {
            let removed = |name: &kex::Name| pattern::list_matches(text[1..].split(','), name.as_ref());
            KEX.iter().copied().filter(|name| !removed(name)).collect()
        }
        Some((text, _)) => named(text),
    };
    let mut seen = Vec::new();
    chosen.retain(|name| {
        !seen.contains(name) && {
            seen.push(*name);
            true
        }
    });
    if chosen.is_empty() {
        let known: Vec<&str> = KEX.iter().map(AsRef::as_ref).collect();
        return Err(format!("KexAlgorithms leaves none that Sortie knows; it knows {}", known.join(", ")));
    }
    chosen.extend_from_slice(KEX_EXTENSIONS);
    Ok(chosen)
}

/// Host key algorithms, those of keys that are known for the host first; never with SHA-1.
fn host_key_algorithms(known: &[String]) -> Vec<Algorithm> {
    let mut all = vec![
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    let key_type = |algorithm: &Algorithm| match algorithm {
        Algorithm::Rsa { .. } => "ssh-rsa".to_owned(),
        other => other.as_str().to_owned(),
    };
    all.sort_by_key(|algorithm| {
        known.iter().position(|name| *name == key_type(algorithm)).unwrap_or(known.len())
    });
    all
}

fn preferred(kex: Vec<kex::Name>, known: &[String]) -> Preferred {
    let aes_first =
        [cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305, cipher::AES_256_CTR];
    let chacha_first =
        [cipher::CHACHA20_POLY1305, cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::AES_256_CTR];
    Preferred {
        kex: Cow::Owned(kex),
        key: Cow::Owned(host_key_algorithms(known)),
        cipher: Cow::Owned(if has_aes() { aes_first } else { chacha_first }.to_vec()),
        compression: Cow::Borrowed(&[russh::compression::NONE]),
        ..Preferred::DEFAULT
    }
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_key_exchange_is_asked_for_whatever_the_configuration_says() {
        for configured in [
            None,
            Some("curve25519-sha256"),
            Some("+ecdh-sha2-nistp256"),
            Some("-curve*"),
            Some("^diffie-hellman-group16-sha512"),
        ] {
            let kex = kex_algorithms(configured).unwrap();
            assert!(kex.contains(&kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT), "{configured:?}");
            assert!(kex.contains(&kex::EXTENSION_SUPPORT_AS_CLIENT), "{configured:?}");
        }
    }

    #[test]
    fn key_exchange_methods_follow_the_configuration() {
        let names = |configured| -> Vec<&'static str> {
            kex_algorithms(Some(configured))
                .unwrap()
                .iter()
                .map(|n: &kex::Name| match *n {
                    kex::CURVE25519 => "curve25519",
                    kex::DH_G16_SHA512 => "g16",
                    kex::ECDH_SHA2_NISTP256 => "p256",
                    _ => "other",
                })
                .collect()
        };
        assert_eq!(
            names("diffie-hellman-group16-sha512,no-such,curve25519-sha256")[..2],
            ["g16", "curve25519"]
        );
        assert_eq!(names("^diffie-hellman-group16-sha512")[..2], ["g16", "curve25519"]);
        assert!(names("+ecdh-sha2-nistp256").contains(&"p256"));
        assert!(!names("-curve25519*").contains(&"curve25519"));
        assert!(kex_algorithms(Some("sntrup761x25519-sha512")).unwrap_err().contains("curve25519-sha256"));
        assert!(kex_algorithms(Some("none")).is_err(), "no key exchange is no choice");
    }

    #[test]
    fn known_types_of_host_keys_are_asked_for_first_and_sha1_never() {
        let order = host_key_algorithms(&["ssh-rsa".into(), "ecdsa-sha2-nistp384".into()]);
        assert_eq!(order[0], Algorithm::Rsa { hash: Some(HashAlg::Sha512) });
        assert_eq!(order[2], Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 });
        assert!(!order.contains(&Algorithm::Rsa { hash: None }));
        assert_eq!(order.len(), host_key_algorithms(&[]).len());
    }
}
