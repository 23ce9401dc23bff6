//! Logging in over SSH: the agent's keys, key files, then passwords, as far as the server goes along.
//!
//! Nothing of a key, passphrase or password ever gets into an error; keys are named by file, comment or fingerprint.
//!
//! Round trips: the service request 1, each key 1 for the question whether it would do and 1 for the signature, each
//! password 1. russh always asks before it signs; without that a login by key would take 2, not 3.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::Signer;
use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::{self, private::PrivateKey, public::PublicKey};
use russh::keys::{HashAlg, PrivateKeyWithHashAlg, signature::Signer as _, ssh_encoding::Encode};
use russh::{MethodKind, MethodSet};
use tokio::net::UnixStream;

use super::ssh_hostkey::Handler;
use super::ssh_options::{Identity, SshOptions};
use crate::error::Error;
use crate::secret::{Question, Secret};

/// How often a passphrase or a password is asked for.
const ATTEMPTS: u32 = 3;

/// How somebody got in.
pub(super) struct LoggedIn {
    pub(super) method: String,
    pub(super) round_trips: u32,
    /// A person may have been asked for something, so this cannot be repeated unattended.
    pub(super) asked: bool,
}

pub(super) struct Login<'a> {
    options: &'a SshOptions,
    handle: &'a mut Handle<Handler>,
    tried: Vec<String>,
    /// What the server would still accept; `None` until it has said so.
    allowed: Option<MethodSet>,
    round_trips: u32,
    asked: bool,
}

/// One outcome of one try.
enum Outcome {
    In,
    /// Go on with the next.
    Refused,
}

impl<'a> Login<'a> {
    pub(super) fn new(options: &'a SshOptions, handle: &'a mut Handle<Handler>) -> Self {
        Self { options, handle, tried: Vec::new(), allowed: None, round_trips: 1, asked: false }
    }

    /// Tries everything there is.
    pub(super) async fn run(mut self) -> Result<LoggedIn, Error> {
        let method = self.try_all().await;
        match method {
            Some(method) => Ok(LoggedIn { method, round_trips: self.round_trips, asked: self.asked }),
            None => {
                if self.handle.is_closed() {
                    self.tried.push("then the server hung up".into());
                }
                Err(Error::Auth {
                    host: self.options.name.clone(),
                    user: self.options.user.clone(),
                    tried: self.tried,
                    allowed: self.allowed.as_ref().map(method_names).unwrap_or_default(),
                })
            }
        }
    }

    async fn try_all(&mut self) -> Option<String> {
        let files = self.read_identities();
        if let Some(method) = self.try_agent(&files).await {
            return Some(method);
        }
        for file in files {
            if !self.goes_on(MethodKind::PublicKey) {
                break;
            }
            if let Some(method) = self.try_file(file).await {
                return Some(method);
            }
        }
        if self.allowed.is_none() && !self.handle.is_closed() {
            // No key was tried, so nothing is known yet of what the server wants.
            let result = self.handle.authenticate_none(&self.options.user).await;
            if let Outcome::In = self.judge(1, "none", result.map_err(|e| e.to_string())) {
                return Some("none".into());
            }
        }
        if self.goes_on(MethodKind::Password)
            && let Some(method) = self.try_password().await
        {
            return Some(method);
        }
        if self.goes_on(MethodKind::KeyboardInteractive) {
            return self.try_keyboard_interactive().await;
        }
        None
    }

    fn goes_on(&self, method: MethodKind) -> bool {
        !self.handle.is_closed() && self.allowed.as_ref().is_none_or(|allowed| allowed.contains(&method))
    }

    /// Takes note of what came of a try.
    fn judge(&mut self, round_trips: u32, what: &str, result: Result<AuthResult, String>) -> Outcome {
        self.round_trips += round_trips;
        match result {
            Ok(AuthResult::Success) => return Outcome::In,
            Ok(AuthResult::Failure { remaining_methods, partial_success }) => {
                let verdict =
                    if partial_success { "accepted, but more is asked for" } else { "not accepted" };
                self.tried.push(format!("{what}: {verdict}"));
                if !(remaining_methods.is_empty() && self.handle.is_closed()) {
                    self.allowed = Some(remaining_methods);
                }
            }
            Err(error) => self.tried.push(format!("{what}: {error}")),
        }
        Outcome::Refused
    }

    async fn try_agent(&mut self, files: &[KeyFile]) -> Option<String> {
        let socket = self.options.agent_socket.clone()?;
        let mut agent = match AgentClient::connect_uds(&socket).await {
            Ok(agent) => agent,
            Err(error) => {
                self.tried.push(format!("agent at {}: {error}", socket.display()));
                return None;
            }
        };
        // For keys that are bound to destinations. An agent that does not know the extension says no; that is fine.
        if let Some(binding) = self.handle.agent_session_binding() {
            let _ = agent.bind_session(binding, false).await;
        }
        let mut identities = match agent.request_identities().await {
            Ok(identities) => identities,
            Err(error) => {
                self.tried.push(format!("agent at {}: {error}", socket.display()));
                return None;
            }
        };
        let named = |identity: &AgentIdentity| {
            files.iter().any(|file| {
                file.public.as_ref().is_some_and(|public| public.key_data() == agent_key(identity))
            })
        };
        if self.options.identities_only {
            identities.retain(named);
        } else {
            // Servers close after few tries, so the keys that somebody named for this host come first.
            identities.sort_by_key(|identity| !named(identity));
        }
        if identities.is_empty() {
            self.tried.push("agent: it holds no key for this".into());
        }
        for identity in identities {
            if !self.goes_on(MethodKind::PublicKey) {
                return None;
            }
            if let Some(method) = self.try_agent_identity(&mut agent, identity).await {
                return Some(method);
            }
        }
        None
    }

    async fn try_agent_identity(
        &mut self,
        agent: &mut AgentClient<UnixStream>,
        identity: AgentIdentity,
    ) -> Option<String> {
        let user = self.options.user.clone();
        let what = format!("agent key {}", agent_key(&identity).fingerprint(HashAlg::Sha256));
        let result = match identity {
            AgentIdentity::PublicKey { key, .. } => {
                let hash = rsa_hash(&key);
                self.handle.authenticate_publickey_with(user, key, hash, agent).await
            }
            AgentIdentity::Certificate { certificate, .. } => {
                let hash = certificate.algorithm().is_rsa().then_some(HashAlg::Sha512);
                self.handle.authenticate_certificate_with(user, certificate, hash, agent).await
            }
        };
        let round_trips = if matches!(result, Ok(AuthResult::Success)) { 2 } else { 1 };
        match self.judge(round_trips, &what, result.map_err(|error| error.to_string())) {
            Outcome::In => Some(what),
            Outcome::Refused => None,
        }
    }

    /// Reads the key files that are there; what is wrong with the others is noted where somebody named them.
    fn read_identities(&mut self) -> Vec<KeyFile> {
        let mut files = Vec::new();
        for identity in &self.options.identities {
            match KeyFile::read(identity) {
                Ok(Some(file)) => files.push(file),
                Ok(None) => {}
                Err(reason) => self.tried.push(format!("key {}: {reason}", identity.file.display())),
            }
        }
        files
    }

    async fn try_file(&mut self, file: KeyFile) -> Option<String> {
        let what = format!("key {}", file.path.display());
        let user = self.options.user.clone();
        let result = match (file.private, file.public) {
            (Stored::Plain(key), _) => {
                let hash = key.algorithm().is_rsa().then_some(HashAlg::Sha512);
                let key = PrivateKeyWithHashAlg::new(Arc::new(*key), hash);
                self.handle.authenticate_publickey(user, key).await.map_err(|error| error.to_string())
            }
            (Stored::PublicOnly, _) => return None,
            (Stored::Encrypted(text), public) => {
                let mut unlock = Unlock { options: self.options, path: &file.path, text, asked: false };
                let result = match public {
                    // The passphrase is asked for only once the server has said that the key would do.
                    Some(public) => {
                        let hash = rsa_hash(&public);
                        let result =
                            self.handle.authenticate_publickey_with(user, public, hash, &mut unlock).await;
                        result.map_err(|error| error.0)
                    }
                    None => match unlock.key().await {
                        Ok(key) => {
                            let hash = key.algorithm().is_rsa().then_some(HashAlg::Sha512);
                            let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
                            self.handle.authenticate_publickey(user, key).await.map_err(|e| e.to_string())
                        }
                        Err(reason) => Err(reason),
                    },
                };
                self.asked |= unlock.asked;
                result
            }
        };
        let round_trips = if matches!(result, Ok(AuthResult::Success)) { 2 } else { 1 };
        match self.judge(round_trips, &what, result) {
            Outcome::In => Some(what),
            Outcome::Refused => None,
        }
    }

    async fn ask(&mut self, question: Question<'_>) -> Option<Secret> {
        let answer = self.options.secrets.ask(question).await;
        self.asked |= answer.is_some() && !self.options.secrets.unattended();
        answer
    }

    async fn try_password(&mut self) -> Option<String> {
        let (user, host) = (&self.options.user, &self.options.name);
        for attempt in 1..=ATTEMPTS {
            if !self.goes_on(MethodKind::Password) {
                return None;
            }
            let password = self.ask(Question::Password { user, host, attempt }).await?;
            let result = self.handle.authenticate_password(user, password.expose()).await;
            if let Outcome::In = self.judge(1, "password", result.map_err(|error| error.to_string())) {
                return Some("password".into());
            }
        }
        None
    }

    async fn try_keyboard_interactive(&mut self) -> Option<String> {
        const WHAT: &str = "keyboard-interactive";
        let (user, host) = (&self.options.user, &self.options.name);
        for _ in 0..ATTEMPTS {
            if !self.goes_on(MethodKind::KeyboardInteractive) {
                return None;
            }
            let mut reply = self.handle.authenticate_keyboard_interactive_start(user, None).await;
            loop {
                self.round_trips += 1;
                let prompts = match reply {
                    Ok(KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. }) => prompts,
                    Ok(KeyboardInteractiveAuthResponse::Success) => return Some(WHAT.into()),
                    Ok(KeyboardInteractiveAuthResponse::Failure { remaining_methods, partial_success }) => {
                        let result = AuthResult::Failure { remaining_methods, partial_success };
                        self.judge(0, WHAT, Ok(result));
                        break;
                    }
                    Err(error) => {
                        self.judge(0, WHAT, Err(error.to_string()));
                        return None;
                    }
                };
                let mut answers = Vec::new();
                for prompt in &prompts {
                    let question = Question::Prompt { user, host, prompt: &prompt.prompt, echo: prompt.echo };
                    let Some(answer) = self.ask(question).await else {
                        self.tried.push(format!("{WHAT}: nobody to answer the server's question"));
                        return None;
                    };
                    answers.push(answer.expose().to_owned());
                }
                reply = self.handle.authenticate_keyboard_interactive_respond(answers).await;
            }
        }
        None
    }
}

fn method_names(methods: &MethodSet) -> Vec<String> {
    methods.iter().map(|method| <&'static str>::from(method).to_owned()).collect()
}

fn agent_key(identity: &AgentIdentity) -> &ssh_key::public::KeyData {
    match identity {
        AgentIdentity::PublicKey { key, .. } => key.key_data(),
        AgentIdentity::Certificate { certificate, .. } => certificate.public_key(),
    }
}

/// SHA-1 signatures are never made; every server of the last ten years takes SHA-512.
fn rsa_hash(key: &PublicKey) -> Option<HashAlg> {
    key.algorithm().is_rsa().then_some(HashAlg::Sha512)
}

/// A key file as found.
struct KeyFile {
    path: PathBuf,
    public: Option<PublicKey>,
    private: Stored,
}

enum Stored {
    Plain(Box<PrivateKey>),
    /// The file's text; it takes a passphrase.
    Encrypted(zeroize::Zeroizing<String>),
    /// A public key: names a key of the agent.
    PublicOnly,
}

impl KeyFile {
    /// `None` where nobody named the file and it is not there.
    fn read(identity: &Identity) -> Result<Option<Self>, String> {
        use std::os::unix::fs::MetadataExt;
        let path = &identity.file;
        let read = std::fs::metadata(path).and_then(|metadata| Ok((metadata, std::fs::read(path)?)));
        let (metadata, bytes) = match read {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !identity.explicit => {
                return Ok(None);
            }
            Err(error) => return Err(error.to_string()),
        };
        let text = zeroize::Zeroizing::new(
            String::from_utf8(bytes).map_err(|_| "not a private key in a text format".to_owned())?,
        );
        let beside = std::fs::read_to_string(format!("{}.pub", path.display()));
        let beside = beside.ok().and_then(|text| PublicKey::from_openssh(&text).ok());
        if let Ok(public) = PublicKey::from_openssh(&text) {
            return Ok(Some(Self { path: path.clone(), public: Some(public), private: Stored::PublicOnly }));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(format!(
                "not used, because others may read it (mode {:04o}); chmod 600 it",
                metadata.mode() & 0o7777
            ));
        }
        match russh::keys::decode_secret_key(&text, None) {
            Ok(key) => {
                let public = Some(key.public_key().clone());
                Ok(Some(Self { path: path.clone(), public, private: Stored::Plain(Box::new(key)) }))
            }
            // The library has several ways to say that a passphrase is missing, so the file itself is asked.
            Err(_) if is_encrypted(&text) => {
                let inside = PrivateKey::from_openssh(text.as_str()).ok().map(|key| key.public_key().clone());
                let public = inside.or(beside);
                Ok(Some(Self { path: path.clone(), public, private: Stored::Encrypted(text) }))
            }
            // The library's own words might quote the file.
            Err(_) => Err("not a private key in a format that can be read".into()),
        }
    }
}

fn is_encrypted(text: &str) -> bool {
    text.contains("BEGIN ENCRYPTED PRIVATE KEY")
        || text.contains("Proc-Type: 4,ENCRYPTED")
        || PrivateKey::from_openssh(text).is_ok_and(|key| key.is_encrypted())
        || text.starts_with("PuTTY-User-Key-File-") && !text.contains("Encryption: none")
}

/// Signs with a key that takes a passphrase, asked for when the signature is.
struct Unlock<'a> {
    options: &'a SshOptions,
    path: &'a Path,
    text: zeroize::Zeroizing<String>,
    asked: bool,
}

/// Why there is no signature, in words that may be shown.
struct NoSignature(String);

impl From<russh::SendError> for NoSignature {
    fn from(error: russh::SendError) -> Self {
        Self(error.to_string())
    }
}

impl Unlock<'_> {
    async fn key(&mut self) -> Result<PrivateKey, String> {
        for attempt in 1..=ATTEMPTS {
            let question = Question::Passphrase { file: self.path, attempt };
            let Some(passphrase) = self.options.secrets.ask(question).await else {
                let wrong = if attempt > 1 {
                    "the passphrase is wrong"
                } else {
                    "it needs a passphrase, and nobody gave one"
                };
                return Err(wrong.into());
            };
            self.asked |= !self.options.secrets.unattended();
            let text = self.text.clone();
            // Deriving the key from the passphrase is slow on purpose.
            let decoded = tokio::task::spawn_blocking(move || {
                russh::keys::decode_secret_key(&text, Some(passphrase.expose())).ok()
            });
            if let Ok(Some(key)) = decoded.await {
                return Ok(key);
            }
        }
        Err("the passphrase is wrong".into())
    }
}

impl Signer for Unlock<'_> {
    type Error = NoSignature;

    /// Returns `to_sign` with the signature behind it (RFC 4252 §7).
    async fn auth_sign(
        &mut self,
        _identity: &AgentIdentity,
        _hash: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, NoSignature> {
        let key = self.key().await.map_err(NoSignature)?;
        // For RSA this is rsa-sha2-512, which is what the server was asked about.
        let signature: ssh_key::Signature =
            key.try_sign(&to_sign).map_err(|_| NoSignature("it cannot sign".into()))?;
        signature.encode_prefixed(&mut to_sign).map_err(|_| NoSignature("it cannot sign".into()))?;
        Ok(to_sign)
    }
}
