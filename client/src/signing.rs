//! Signing commands for runners that take no others: a key in a file or in an agent, and what is said with it.
//!
//! Knows no sessions. The rules are those of docs/PROTOCOL.md §12.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use russh::keys::ssh_key::{HashAlg, SshSig};
use sha2::{Digest, Sha256};
use sortie_protocol::Sha256Hex;
use sortie_protocol::message::{CommandMessage, Ready};
use sortie_protocol::signed::{INPUT_LIMIT, KEY_TYPE, NAMESPACE, Signed, SignedInput, Statement, key_blob};
use tokio::sync::Mutex;

use crate::agent::{self, Agent, AgentError};
use crate::secret::Secrets;
use crate::transport::KeyFile;

/// Why something could not be signed, in words that may be shown; nothing of what was to be signed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot sign with {key}: {reason}")]
pub struct SigningError {
    /// The file that names the key.
    pub key: String,
    /// What is wrong.
    pub reason: String,
}

/// An ed25519 key that signs commands: of a file, or, where only its public half is there, of an agent.
pub struct Signer {
    file: PathBuf,
    public: [u8; 32],
    /// As SSH writes it.
    blob: Vec<u8>,
    agent: Option<PathBuf>,
    secrets: Arc<dyn Secrets>,
    /// The private key once it is open; also keeps signatures in the order of their numbers.
    state: Mutex<State>,
}

struct State {
    key: KeyFile,
    last: u64,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("file", &self.file)
            .field("key", &self.authorized())
            .finish_non_exhaustive()
    }
}

/// What a signature is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Said<'a> {
    /// Run this, with this input if it announces any.
    Command(&'a CommandMessage, Option<&'a [u8]>),
    /// Keep the change of the command of this id.
    Confirm(&'a str),
}

impl Signer {
    /// A key by its file: a private key, whose passphrase is asked for with the first signature, or a public one, whose
    /// private half an agent at the socket `agent` must hold.
    ///
    /// # Errors
    /// The file cannot be used, or is no ed25519 key.
    pub fn new(file: &Path, agent: Option<&Path>, secrets: Arc<dyn Secrets>) -> Result<Self, SigningError> {
        let error = |reason: String| SigningError { key: file.display().to_string(), reason };
        let key = KeyFile::named(file).map_err(error)?;
        let Some(public) = &key.public else {
            return Err(error("its public half is not known; put it beside it as FILE.pub".into()));
        };
        let Some(public) = public.key_data().ed25519().map(|key| key.0) else {
            return Err(error(format!("it is no {KEY_TYPE} key; make one by `ssh-keygen -t ed25519`")));
        };
        Ok(Self {
            file: file.to_owned(),
            public,
            blob: key_blob(&public),
            agent: agent.map(Path::to_owned),
            secrets,
            state: Mutex::new(State { key, last: 0 }),
        })
    }

    /// The public key as a line of authorized_keys and of a file of anchors, without a comment.
    #[must_use]
    pub fn authorized(&self) -> String {
        format!("{KEY_TYPE} {}", STANDARD.encode(&self.blob))
    }

    /// The public key's 32 bytes.
    #[must_use]
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Signs a statement for the session of `ready` and hands it to `send` before anything else is signed, as a runner
    /// takes statements only in the order of their numbers. They are microseconds since 1970 and rise whatever the clock
    /// does, so that several programs may sign for one session one after the other.
    ///
    /// # Errors
    /// The passphrase is missing, the agent refuses, or the input is too long; then nothing was handed over.
    pub async fn sign<F: Future>(
        &self,
        ready: &Ready,
        said: Said<'_>,
        send: impl FnOnce(Signed) -> F,
    ) -> Result<F::Output, SigningError> {
        let mut state = self.state.lock().await;
        let number = micros().max(state.last + 1);
        let statement = statement(ready, number, said).map_err(|reason| self.error(reason))?;
        let text = serde_json::to_string(&statement).map_err(|error| self.error(error.to_string()))?;
        let signature = self.signature(&mut state, &text).await.map_err(|reason| self.error(reason))?;
        state.last = number;
        let signed = Signed { text, key: STANDARD.encode(&self.blob), signature: STANDARD.encode(signature) };
        Ok(send(signed).await)
    }

    fn error(&self, reason: String) -> SigningError {
        SigningError { key: self.file.display().to_string(), reason }
    }

    async fn signature(&self, state: &mut State, text: &str) -> Result<[u8; 64], String> {
        let cannot = |_| "it cannot sign".to_owned();
        let blob = SshSig::signed_data(NAMESPACE, HashAlg::Sha512, text.as_bytes()).map_err(cannot)?;
        let signature = match state.key.elsewhere() {
            None => {
                let key = state.key.open(&*self.secrets, &mut false).await?;
                let signed = key.sign(NAMESPACE, HashAlg::Sha512, text.as_bytes()).map_err(cannot)?;
                signed.signature_bytes().to_vec()
            }
            Some(why) => {
                let socket = self.agent.as_deref().ok_or_else(|| format!("{why}; there is no agent"))?;
                let failed = |error: AgentError| match error {
                    AgentError::Refused => "the agent refused, or does not hold it; ssh-add it".to_owned(),
                    error => format!("the agent at {}: {error}", socket.display()),
                };
                let mut agent = Agent::connect(socket).await.map_err(failed)?;
                let answer = agent.sign(&self.blob, &blob, 0).await.map_err(failed)?;
                if agent::kind_of(&answer) != KEY_TYPE.as_bytes() {
                    return Err("the agent made a signature of another kind".into());
                }
                answer.last_chunk::<64>().map(|bytes| bytes.to_vec()).unwrap_or_default()
            }
        };
        signature.try_into().map_err(|_| "it made something that is no signature of ed25519".to_owned())
    }
}

/// Microseconds since 1970: below 2^53, which is as far as JSON's numbers are exact everywhere.
fn micros() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(1).max(1)
}

fn statement(ready: &Ready, number: u64, said: Said<'_>) -> Result<Statement, String> {
    let (command, input, confirm) = match said {
        Said::Command(command, input) => {
            let command = CommandMessage { signature: String::new(), ..command.clone() };
            (Some(Box::new(command)), input.map(signed_input).transpose()?, String::new())
        }
        Said::Confirm(id) => (None, None, id.to_owned()),
    };
    let host = ready.host.clone().unwrap_or_default();
    Ok(Statement {
        session: ready.session.clone(),
        nonce: ready.nonce.clone(),
        number,
        host: host.hostname,
        user: host.user,
        command,
        input,
        confirm,
    })
}

fn signed_input(input: &[u8]) -> Result<SignedInput, String> {
    let bytes = input.len() as u64;
    if bytes > INPUT_LIMIT {
        return Err(format!(
            "the input of a signed command is at most {INPUT_LIMIT} bytes, and this is {bytes}"
        ));
    }
    Ok(SignedInput { sha256: Sha256Hex::from_bytes(&Sha256::digest(input).into()), bytes })
}

/// The keys of a file, a public key a line as in authorized_keys, as a runner takes them with `--trust`.
///
/// # Errors
/// The file cannot be read, or has something else in it.
pub fn trusted_keys(file: &Path) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let mut keys = Vec::new();
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = russh::keys::ssh_key::PublicKey::from_openssh(line).ok();
        let Some(bytes) = key.as_ref().and_then(|key| key.key_data().ed25519()) else {
            return Err(format!("line {number}: expected {KEY_TYPE} and a public key"));
        };
        keys.push(bytes.0.iter().map(|byte| format!("{byte:02x}")).collect());
    }
    if keys.is_empty() { Err("there is no key in it".into()) } else { Ok(keys) }
}

#[cfg(test)]
#[path = "signing_tests.rs"]
mod tests;
