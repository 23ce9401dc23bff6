//! Keys to log in with: files with their certificates, and signatures by them or by an agent.
//!
//! Nothing of a key or passphrase ever gets into an error. A passphrase is asked for when a signature is needed, not
//! before: most keys of most people are for other hosts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::Signer;
use russh::keys::HashAlg;
use russh::keys::agent::AgentIdentity;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::ssh_key::{Algorithm, Certificate, PrivateKey, PublicKey, Signature};
use russh::keys::{signature::Signer as _, ssh_encoding::Encode};
use zeroize::Zeroizing;

use super::ssh_options::Identity;
use crate::agent::{self, Agent, AgentError};
use crate::error::printable;
use crate::pattern;
use crate::secret::{Question, Secrets};

/// How often a passphrase is asked for.
const ATTEMPTS: u32 = 3;
/// Longest key file that is read, in bytes; an RSA key of 16384 bits takes 13 KiB.
const LONGEST: u64 = 256 * 1024;

/// What the server is shown.
#[derive(Debug, Clone)]
pub(super) enum Shown {
    Key(PublicKey),
    Certificate(Box<Certificate>),
}

impl Shown {
    /// From a key of an agent; `None` for a kind that we cannot log in with.
    pub(super) fn from_blob(blob: &[u8]) -> Option<Self> {
        if agent::kind_of(blob).ends_with(b"-cert-v01@openssh.com") {
            return Certificate::from_bytes(blob).ok().map(Box::new).map(Self::Certificate);
        }
        PublicKey::from_bytes(blob).ok().map(Self::Key)
    }

    /// The key, or the one inside of the certificate.
    pub(super) fn key(&self) -> &KeyData {
        match self {
            Self::Key(key) => key.key_data(),
            Self::Certificate(certificate) => certificate.public_key(),
        }
    }

    /// How signatures by it are made: for RSA the hash, for others nothing. The outer `None` is a key that is not to be
    /// used: of a kind that `accepted` (`PubkeyAcceptedAlgorithms` of ssh_config(5), as written) leaves out or that we do not
    /// know, or RSA shorter than `shortest_rsa` bits. SHA-1 is never used, whatever is accepted.
    pub(super) fn signature(&self, accepted: Option<&str>, shortest_rsa: u32) -> Option<Option<HashAlg>> {
        let algorithm = self.key().algorithm();
        let of = |algorithm: Algorithm| match self {
            Self::Key(_) => algorithm.as_str().to_owned(),
            Self::Certificate(_) => algorithm.to_certificate_type(),
        };
        match algorithm {
            Algorithm::Rsa { .. } => {
                let long_enough = self.key().rsa().is_some_and(|key| key.key_size() >= shortest_rsa);
                let hashes = [HashAlg::Sha512, HashAlg::Sha256];
                let usable =
                    |hash: &HashAlg| is_accepted(accepted, &of(Algorithm::Rsa { hash: Some(*hash) }));
                hashes.into_iter().find(|hash| long_enough && usable(hash)).map(Some)
            }
            Algorithm::Ed25519
            | Algorithm::Ecdsa { .. }
            | Algorithm::SkEd25519
            | Algorithm::SkEcdsaSha2NistP256 => is_accepted(accepted, &of(algorithm)).then_some(None),
            _ => None,
        }
    }
}

/// Whether a list of algorithms as in ssh_config(5) leaves `name` in, which is one of ours: `+` and `^` take nothing away.
fn is_accepted(list: Option<&str>, name: &str) -> bool {
    match list.map(|list| (list, list.as_bytes().first())) {
        None | Some((_, Some(b'+' | b'^'))) => true,
        Some((list, Some(b'-'))) => !pattern::list_matches(list[1..].split(',').map(str::trim), name),
        Some((list, _)) => pattern::list_matches(list.split(',').map(str::trim), name),
    }
}

/// A key file as found.
pub(crate) struct KeyFile {
    pub(super) path: PathBuf,
    /// Its public half, where it is known without a passphrase.
    pub(crate) public: Option<PublicKey>,
    /// That of `FILE-cert.pub`, or of the file itself.
    pub(super) certificate: Option<Box<Certificate>>,
    private: Stored,
}

enum Stored {
    Open(Arc<PrivateKey>),
    /// The file's text; it takes a passphrase.
    Encrypted(Zeroizing<String>),
    /// Only a public key: names a key of the agent.
    Elsewhere(&'static str),
}

impl KeyFile {
    /// A file that somebody named.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn named(file: &Path) -> Result<Self, String> {
        let identity = Identity { file: file.to_owned(), explicit: true };
        Self::read(&identity)?.ok_or_else(|| "there is no such file".to_owned())
    }

    /// `None` where nobody named the file and it is not there.
    ///
    /// # Errors
    /// Why it is of no use, for people; nothing of its content.
    pub(super) fn read(identity: &Identity) -> Result<Option<Self>, String> {
        use std::os::unix::fs::MetadataExt;
        let path = &identity.file;
        let beside = read_public(&with_ending(path, ".pub"));
        let file = |public, private| {
            let certificate = read_certificate(&with_ending(path, "-cert.pub")).ok().map(Box::new);
            Ok(Some(Self { path: path.clone(), public, certificate, private }))
        };
        let (metadata, text) = match read_text(path) {
            Ok(read) => read,
            // As for ssh(1) the public half alone names a key of the agent.
            Err(_) if beside.is_some() => return file(beside, Stored::Elsewhere(NOT_HELD)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !identity.explicit => {
                return Ok(None);
            }
            Err(error) => return Err(error.to_string()),
        };
        if let Ok(certificate) = Certificate::from_openssh(&text) {
            let public = PublicKey::new(certificate.public_key().clone(), "");
            let (certificate, private) = (Some(Box::new(certificate)), Stored::Elsewhere(NOT_HELD));
            return Ok(Some(Self { path: path.clone(), public: Some(public), certificate, private }));
        }
        if let Ok(public) = PublicKey::from_openssh(&text) {
            return file(Some(public), Stored::Elsewhere(NOT_HELD));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(format!(
                "not used, because others may read it (mode {:04o}); chmod 600 it",
                metadata.mode() & 0o7777
            ));
        }
        match russh::keys::decode_secret_key(&text, None) {
            Ok(key) => {
                let public = key.public_key().clone();
                let private = if is_on_token(&public) {
                    Stored::Elsewhere(ON_TOKEN)
                } else {
                    Stored::Open(Arc::new(key))
                };
                file(Some(public), private)
            }
            // The library has several ways to say that a passphrase is missing, so the file itself is asked.
            Err(_) if is_encrypted(&text) => {
                let inside = PrivateKey::from_openssh(text.as_str()).ok().map(|key| key.public_key().clone());
                // No passphrase makes it sign, so none is asked for.
                let on_token = inside.as_ref().is_some_and(is_on_token);
                let private = if on_token { Stored::Elsewhere(ON_TOKEN) } else { Stored::Encrypted(text) };
                file(inside.or(beside), private)
            }
            // The library's own words might quote the file.
            Err(_) => Err("not a private key in a format that can be read".into()),
        }
    }

    /// Why this file's key cannot sign here whatever is typed, where that is so.
    pub(crate) fn elsewhere(&self) -> Option<&'static str> {
        match self.private {
            Stored::Elsewhere(why) => Some(why),
            Stored::Open(_) | Stored::Encrypted(_) => None,
        }
    }

    /// The private key; asks for the passphrase the first time. `asked` is set when somebody was.
    pub(crate) async fn open(
        &mut self,
        secrets: &dyn Secrets,
        asked: &mut bool,
    ) -> Result<Arc<PrivateKey>, String> {
        let text = match &self.private {
            Stored::Open(key) => return Ok(Arc::clone(key)),
            Stored::Elsewhere(why) => return Err((*why).into()),
            Stored::Encrypted(text) => text.clone(),
        };
        for attempt in 1..=ATTEMPTS {
            let question = Question::Passphrase { file: &self.path, attempt };
            let Some(passphrase) = secrets.ask(question).await else {
                let wrong = if attempt > 1 {
                    "the passphrase is wrong"
                } else {
                    "it needs a passphrase, and nobody gave one"
                };
                return Err(wrong.into());
            };
            *asked |= !secrets.unattended();
            let text = text.clone();
            // Deriving the key from the passphrase is slow on purpose.
            let decoded = tokio::task::spawn_blocking(move || {
                russh::keys::decode_secret_key(&text, Some(passphrase.expose())).ok()
            });
            if let Ok(Some(key)) = decoded.await {
                let key = Arc::new(key);
                self.private = Stored::Open(Arc::clone(&key));
                return Ok(key);
            }
        }
        Err("the passphrase is wrong".into())
    }
}

const NOT_HELD: &str = "only its public half is here, and the agent does not hold the key";
const ON_TOKEN: &str = "a security key's, which only an agent can use: ssh-add it";

/// A certificate in the format of ssh-keygen(1).
///
/// # Errors
/// Why it cannot be used, for people.
pub(super) fn read_certificate(path: &Path) -> Result<Certificate, String> {
    let (_, text) = read_text(path).map_err(|error| error.to_string())?;
    Certificate::from_openssh(&text).map_err(|_| "not a certificate that can be read".into())
}

fn read_public(path: &Path) -> Option<PublicKey> {
    let (_, text) = read_text(path).ok()?;
    PublicKey::from_openssh(&text).ok()
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn read_text(path: &Path) -> std::io::Result<(std::fs::Metadata, Zeroizing<String>)> {
    use std::io::{Error, ErrorKind, Read};
    let file = std::fs::File::open(path)?;
    let metadata = file.metadata()?;
    // Large enough that it is not copied about in memory while it grows.
    let mut text = Zeroizing::new(String::with_capacity(metadata.len().clamp(4096, LONGEST) as usize + 1));
    file.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(Error::new(ErrorKind::FileTooLarge, "too large for a key"));
    }
    Ok((metadata, text))
}

/// Whether its private half is in a security key, whatever a file holds.
fn is_on_token(key: &PublicKey) -> bool {
    matches!(key.algorithm(), Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256)
}

fn is_encrypted(text: &str) -> bool {
    text.contains("BEGIN ENCRYPTED PRIVATE KEY")
        || text.contains("Proc-Type: 4,ENCRYPTED")
        || PrivateKey::from_openssh(text).is_ok_and(|key| key.is_encrypted())
        || text.starts_with("PuTTY-User-Key-File-") && !text.contains("Encryption: none")
}

/// What a server is likely to have against a certificate, for people who look for the reason of a refusal. The server
/// decides by its own clock and rules; this is only said, never acted on.
pub(super) fn flaw(certificate: &Certificate, user: &str, now: u64) -> Option<String> {
    if certificate.cert_type() != CertType::User {
        return Some("it is a host's certificate".into());
    }
    if now < certificate.valid_after() {
        return Some("it is not valid yet".into());
    }
    if now >= certificate.valid_before() {
        return Some("it has expired".into());
    }
    let principals = certificate.valid_principals();
    (!principals.iter().any(|principal| principal == user)).then(|| {
        let shown = printable(principals.join(", ").as_bytes(), 200);
        format!("it is for {}", if shown.is_empty() { "nobody" } else { &shown })
    })
}

/// Who makes a signature.
pub(super) enum Signing<'a> {
    Agent { agent: &'a mut Agent, blob: &'a [u8] },
    File { file: &'a mut KeyFile, secrets: &'a dyn Secrets, asked: &'a mut bool },
}

/// Why there is no signature, in words that may be shown.
pub(super) struct NoSignature(pub(super) String);

impl From<russh::SendError> for NoSignature {
    fn from(error: russh::SendError) -> Self {
        Self(error.to_string())
    }
}

impl Signing<'_> {
    async fn sign(&mut self, hash: Option<HashAlg>, data: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Agent { agent, blob } => {
                let flags = match hash {
                    None => 0,
                    Some(HashAlg::Sha256) => agent::RSA_SHA2_256,
                    Some(_) => agent::RSA_SHA2_512,
                };
                let signature = agent.sign(blob, data, flags).await.map_err(|error| match error {
                    AgentError::Refused => "the agent refused to sign with it".to_owned(),
                    error => format!("the agent: {error}"),
                })?;
                if agent::kind_of(&signature) == b"ssh-rsa" {
                    return Err("the agent can sign with it by SHA-1 only".into());
                }
                Ok(signature)
            }
            Self::File { file, secrets, asked } => {
                let key = file.open(*secrets, asked).await?;
                let signed = match (key.key_data(), hash) {
                    (KeypairData::Rsa(pair), Some(_)) => (pair, hash).try_sign(data),
                    (pair, _) => pair.try_sign(data),
                };
                let signature: Signature = signed.map_err(|_| "it cannot sign".to_owned())?;
                let mut blob = Vec::new();
                signature.encode(&mut blob).map_err(|_| "it cannot sign".to_owned())?;
                Ok(blob)
            }
        }
    }
}

impl Signer for Signing<'_> {
    type Error = NoSignature;

    /// Returns `to_sign` with the signature behind it (RFC 4252 §7).
    async fn auth_sign(
        &mut self,
        _shown: &AgentIdentity,
        hash: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, NoSignature> {
        let signature = self.sign(hash, &to_sign).await.map_err(NoSignature)?;
        agent::put_string(&mut to_sign, &signature);
        Ok(to_sign)
    }
}
