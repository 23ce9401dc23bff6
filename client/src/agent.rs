//! An ssh-agent(1) on its socket: which keys it holds, and signatures made with them (draft-ietf-sshm-ssh-agent).
//!
//! Keys stay blobs here: what kind of key it is, is for whoever asks. So a key of a kind that nobody else knows does not
//! hide the others, and a signature of a security key or a smartcard passes as it came.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest message that is read, in bytes; ssh-agent itself takes no longer ones.
const LONGEST: usize = 256 * 1024;

const FAILURE: u8 = 5;
const SUCCESS: u8 = 6;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const EXTENSION: u8 = 27;

/// For RSA keys: a signature of the kind `rsa-sha2-256` (RFC 8332).
pub(crate) const RSA_SHA2_256: u32 = 2;
/// For RSA keys: a signature of the kind `rsa-sha2-512`. Without either flag it is one with SHA-1.
pub(crate) const RSA_SHA2_512: u32 = 4;

/// A connection to an agent.
#[derive(Debug)]
pub(crate) struct Agent {
    stream: UnixStream,
}

/// A key that an agent holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldKey {
    /// The public key or certificate as it goes over the wire.
    pub(crate) blob: Vec<u8>,
    /// Mostly the file it was added from.
    pub(crate) comment: String,
}

/// Why an agent is of no help. Says nothing of what was to be signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it refused")]
    Refused,
    #[error("it answered with something else than was asked for")]
    Confused,
}

impl Agent {
    /// Connects to the agent at `socket`.
    ///
    /// # Errors
    /// [`AgentError::Io`] where nobody listens there.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, AgentError> {
        Ok(Self { stream: UnixStream::connect(socket).await? })
    }

    /// The keys that it holds, in its order.
    ///
    /// # Errors
    /// When it cannot be asked or does not answer by the protocol.
    pub(crate) async fn keys(&mut self) -> Result<Vec<HeldKey>, AgentError> {
        let answer = self.ask(&[REQUEST_IDENTITIES], IDENTITIES_ANSWER).await?;
        let mut rest = &answer[..];
        let count = take_u32(&mut rest)?;
        let mut keys = Vec::new();
        for _ in 0..count {
            let blob = take_string(&mut rest)?.to_vec();
            let comment = String::from_utf8_lossy(take_string(&mut rest)?).into_owned();
            keys.push(HeldKey { blob, comment });
        }
        Ok(keys)
    }

    /// The signature over `data` by the key `blob`: the name of its kind, and the bytes (RFC 4253 §6.6), together as they
    /// go over the wire.
    ///
    /// # Errors
    /// [`AgentError::Refused`] where it does not hold the key, or somebody said no to its question.
    pub(crate) async fn sign(&mut self, blob: &[u8], data: &[u8], flags: u32) -> Result<Vec<u8>, AgentError> {
        let mut request = vec![SIGN_REQUEST];
        put_string(&mut request, blob);
        put_string(&mut request, data);
        request.extend(flags.to_be_bytes());
        let answer = self.ask(&request, SIGN_RESPONSE).await?;
        take_string(&mut &answer[..]).map(<[u8]>::to_vec)
    }

    /// Tells it which server's session signatures are for, so that it can hold keys to the destinations that they were
    /// added for (ssh-add(1) `-h`). OpenSSH's own extension: an agent that does not know it refuses, which is no harm.
    pub(crate) async fn bind(
        &mut self,
        host_key: &[u8],
        session: &[u8],
        signature: &[u8],
    ) -> Result<(), AgentError> {
        let mut request = vec![EXTENSION];
        for part in [b"session-bind@openssh.com", host_key, session, signature] {
            put_string(&mut request, part);
        }
        // The agent is not forwarded to the host.
        request.push(0);
        self.ask(&request, SUCCESS).await.map(drop)
    }

    /// One question and the body of its answer, which must be of the kind `wanted`.
    async fn ask(&mut self, request: &[u8], wanted: u8) -> Result<Vec<u8>, AgentError> {
        let mut message = Vec::with_capacity(4 + request.len());
        put_string(&mut message, request);
        self.stream.write_all(&message).await?;
        let length = self.stream.read_u32().await? as usize;
        if length == 0 || length > LONGEST {
            return Err(AgentError::Confused);
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await?;
        match answer.remove(0) {
            kind if kind == wanted => Ok(answer),
            // 28 is the refusal of an extension.
            FAILURE | 28 => Err(AgentError::Refused),
            _ => Err(AgentError::Confused),
        }
    }
}

/// Appends `bytes` behind their length (RFC 4251 §5).
pub(crate) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing here comes near 4 GiB.
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, AgentError> {
    let (number, after) = rest.split_first_chunk().ok_or(AgentError::Confused)?;
    *rest = after;
    Ok(u32::from_be_bytes(*number))
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], AgentError> {
    let length = take_u32(rest)? as usize;
    let (bytes, after) = rest.split_at_checked(length).ok_or(AgentError::Confused)?;
    *rest = after;
    Ok(bytes)
}

/// The kind of a signature or a key, which is the first string of its blob.
pub(crate) fn kind_of(mut blob: &[u8]) -> &[u8] {
    take_string(&mut blob).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that gives these answers, one after the other, and the questions that it got.
    async fn agent(answers: Vec<Vec<u8>>) -> (Agent, tokio::task::JoinHandle<Vec<Vec<u8>>>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let task = tokio::spawn(async move {
            let mut questions = Vec::new();
            for answer in answers {
                let length = theirs.read_u32().await.unwrap();
                let mut question = vec![0; length as usize];
                theirs.read_exact(&mut question).await.unwrap();
                questions.push(question);
                theirs.write_all(&answer).await.unwrap();
            }
            questions
        });
        (Agent { stream: ours }, task)
    }

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(&mut out, body);
        out
    }

    #[tokio::test]
    async fn keys_of_kinds_that_nobody_knows_are_listed_with_the_others() {
        let mut list = vec![IDENTITIES_ANSWER, 0, 0, 0, 2];
        for (blob, comment) in [(b"\0\0\0\x03new...", b"one"), (b"\0\0\0\x03old...", b"\xff!\n")] {
            put_string(&mut list, blob);
            put_string(&mut list, comment);
        }
        let (mut agent, _) = agent(vec![framed(&list)]).await;
        let keys = agent.keys().await.unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!((kind_of(&keys[0].blob), keys[0].comment.as_str()), (&b"new"[..], "one"));
    }

    #[tokio::test]
    async fn a_signature_is_asked_for_by_key_data_and_flags() {
        let mut answer = vec![SIGN_RESPONSE];
        put_string(&mut answer, b"\0\0\0\x01ksignature");
        let (mut agent, task) = agent(vec![framed(&answer)]).await;
        let signature = agent.sign(b"blob", b"data", RSA_SHA2_512).await.unwrap();
        assert_eq!(signature, b"\0\0\0\x01ksignature");
        assert_eq!(task.await.unwrap(), [b"\x0d\0\0\0\x04blob\0\0\0\x04data\0\0\0\x04".to_vec()]);
    }

    #[tokio::test]
    async fn answers_against_the_protocol_are_errors_and_not_believed() {
        for answer in [
            framed(&[IDENTITIES_ANSWER, 0, 0, 0, 1]),
            framed(&[IDENTITIES_ANSWER, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]),
            framed(&[SIGN_RESPONSE]),
            framed(&[]),
            vec![0xff; 4],
        ] {
            let (mut agent, _) = agent(vec![answer.clone()]).await;
            assert!(matches!(agent.keys().await, Err(AgentError::Confused)), "{answer:?}");
        }
        let (mut agent, _) = agent(vec![framed(&[FAILURE])]).await;
        assert!(matches!(agent.sign(b"", b"", 0).await, Err(AgentError::Refused)));
    }
}
