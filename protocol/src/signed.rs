//! Signed commands: what is signed, and the bytes that the signature is over. docs/PROTOCOL.md §12 has the rules.
//!
//! Knows no keys and no cryptography: who may sign is the runner's affair, how it is done the client's.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::decode::{decode, fields, read};
use crate::error::ErrorCode;
use crate::message::CommandMessage;
use crate::parse::{Rejected, parse_command};
use crate::value::Sha256Hex;

/// The namespace of OpenSSH's signature format (PROTOCOL.sshsig) that signatures of commands are in, so that none can be
/// taken for a signature of anything else.
pub const NAMESPACE: &str = "sortie-command";

/// Most bytes of input that a signed command may have: it is held in memory until all of it was checked.
pub const INPUT_LIMIT: u64 = 6 * 1024 * 1024;

/// What SSH calls the only kind of key that commands are signed with (RFC 8709 §4).
pub const KEY_TYPE: &str = "ssh-ed25519";

/// SIGNED: a statement, who made it, and the proof. Nothing outside of `text` has any meaning of its own.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Signed {
    /// The JSON of a [`Statement`], byte for byte as it was signed.
    pub text: String,
    /// The public key in base64, as in the second column of authorized_keys.
    pub key: String,
    /// The 64 bytes of the ed25519 signature (RFC 8032) over [`to_be_signed`], in base64.
    pub signature: String,
}

fields!(Signed { text, key, signature; });

impl fmt::Debug for Signed {
    /// The text stays out: it may hold passwords and contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signed {{ key: {}, [{} bytes] }}", self.key, self.text.len())
    }
}

/// What a signer says: this command, in this session of this runner, once. Has either `command` or `confirm`.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Statement {
    /// `session` of READY.
    pub session: String,
    /// `nonce` of READY.
    pub nonce: String,
    /// Greater than that of every statement of the same key that the session has seen; at least 1.
    pub number: u64,
    /// `host.hostname` of READY, where the signer means one host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// `host.user` of READY, where the signer means one login.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// The data of a CMD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Box<CommandMessage>>,
    /// The input of a command that announces INPUT; then it must be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<SignedInput>,
    /// The id of the command whose change is to be kept, as in CONFIRM.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub confirm: String,
}

/// The whole input of a signed command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SignedInput {
    /// SHA-256 of all of it.
    pub sha256: Sha256Hex,
    /// Its bytes, at most [`INPUT_LIMIT`].
    pub bytes: u64,
}

#[derive(Default)]
struct InputDraft {
    sha256: Option<Sha256Hex>,
    bytes: u64,
}

fields!(InputDraft { sha256, bytes; });

impl SignedInput {
    fn parse(json: &str) -> Result<Self, String> {
        let InputDraft { sha256, bytes } = decode(json).map_err(|wrong| wrong.to_string())?;
        match sha256 {
            _ if bytes > INPUT_LIMIT => Err(format!("bytes: at most {INPUT_LIMIT}")),
            Some(sha256) => Ok(Self { sha256, bytes }),
            None => Err("sha256: must not be empty".to_owned()),
        }
    }
}

#[derive(Default)]
struct Draft<'a> {
    session: String,
    nonce: String,
    number: u64,
    host: String,
    user: String,
    command: Option<&'a RawValue>,
    input: Option<&'a RawValue>,
    confirm: String,
}

fields!(Draft<'a> { session, nonce, number; host, user, command, input, confirm });

impl Statement {
    /// Reads `text` of SIGNED, the command in it as that of a CMD.
    ///
    /// # Errors
    /// [`Rejected`] with the command's id where that could be read.
    pub fn parse(text: &str) -> Result<Self, Rejected> {
        let mut draft = Draft::default();
        let wrong = read(&mut draft, text).err();
        let command = draft.command.map(|command| parse_command(command.get())).transpose();
        let (command_id, sequence) = match &command {
            Ok(Some(command)) => (command.id.clone(), command.sequence.clone()),
            Ok(None) => Default::default(),
            Err(rejected) => (rejected.command_id.clone(), rejected.sequence.clone()),
        };
        let rejected = |reason: String| Rejected {
            code: ErrorCode::InvalidCmd,
            command_id,
            sequence,
            message: format!("text of a SIGNED frame: {reason}"),
        };
        if let Some(wrong) = wrong {
            return Err(rejected(wrong.to_string()));
        }
        let input = match draft.input.map(|input| SignedInput::parse(input.get())).transpose() {
            Ok(input) => input,
            Err(wrong) => return Err(rejected(format!("input: {wrong}"))),
        };
        let command = command?;
        if command.is_some() != draft.confirm.is_empty() {
            return Err(rejected("exactly one of command and confirm is required".to_owned()));
        }
        Ok(Self {
            session: draft.session,
            nonce: draft.nonce,
            number: draft.number,
            host: draft.host,
            user: draft.user,
            command: command.map(Box::new),
            input,
            confirm: draft.confirm,
        })
    }

    /// Id and sequence of the command that a text is about, for an answer to a text that nobody vouches for.
    #[must_use]
    pub fn about(text: &str) -> (String, String) {
        match Self::parse(text) {
            Ok(statement) => {
                statement.command.map(|command| (command.id, command.sequence)).unwrap_or_default()
            }
            Err(rejected) => (rejected.command_id, rejected.sequence),
        }
    }
}

/// What the signature is over, given the SHA-512 of the text: the blob of PROTOCOL.sshsig in [`NAMESPACE`], with `sha512`.
/// So `ssh-keygen -Y sign` and an ssh-agent can make the signature too.
#[must_use]
pub fn to_be_signed(sha512_of_text: &[u8; 64]) -> Vec<u8> {
    let mut blob = b"SSHSIG".to_vec();
    for part in [NAMESPACE.as_bytes(), b"", b"sha512", sha512_of_text] {
        string(&mut blob, part);
    }
    blob
}

/// The public key of ssh-ed25519 as SSH writes it (RFC 8709 §4).
#[must_use]
pub fn key_blob(key: &[u8; 32]) -> Vec<u8> {
    let mut blob = Vec::new();
    string(&mut blob, KEY_TYPE.as_bytes());
    string(&mut blob, key);
    blob
}

/// A string of RFC 4251 §5.
fn string(blob: &mut Vec<u8>, part: &[u8]) {
    blob.extend_from_slice(&(part.len() as u32).to_be_bytes());
    blob.extend_from_slice(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMAND: &str = r#""command":{"id":"a","type":"exec","timeout":5,"params":{}}"#;

    #[test]
    fn a_statement_comes_back_as_it_was() {
        let text = format!(
            r#"{{"session":"s","nonce":"n","number":7,"host":"web1","user":"root",{COMMAND},"input":{{"sha256":"{}","bytes":3}}}}"#,
            "0".repeat(64)
        );
        let statement = Statement::parse(&text).unwrap();
        assert_eq!(serde_json::to_string(&statement).unwrap(), text);
    }

    #[test]
    fn what_lacks_anything_is_refused_with_the_id_of_its_command() {
        for (text, part) in [
            (format!(r#"{{"nonce":"n","number":7,{COMMAND}}}"#), "missing field `session`"),
            (format!(r#"{{"session":"s","nonce":"n",{COMMAND}}}"#), "missing field `number`"),
            (format!(r#"{{"session":"s","nonce":"n","number":-1,{COMMAND}}}"#), "number: expected"),
            (format!(r#"{{"session":"s","nonce":"n","number":1,"number":2,{COMMAND}}}"#), "given twice"),
            (
                format!(r#"{{"session":"s","nonce":"n","number":1,{COMMAND},"confirm":"a"}}"#),
                "exactly one of",
            ),
            (format!(r#"{{"session":"s","nonce":"n","number":1,{COMMAND},"input":{{}}}}"#), "input: missing"),
        ] {
            let rejected = Statement::parse(&text).unwrap_err();
            assert!(rejected.message.contains(part), "{}", rejected.message);
            assert_eq!(rejected.command_id, "a", "{text}");
            assert_eq!(Statement::about(&text).0, "a");
        }
        let nothing = Statement::parse(r#"{"session":"s","nonce":"n","number":1}"#).unwrap_err();
        assert!(nothing.message.contains("exactly one of"), "{}", nothing.message);
        assert_eq!(Statement::about("nonsense"), Default::default());
    }

    #[test]
    fn what_is_signed_is_the_blob_of_openssh() {
        let blob = to_be_signed(&[7; 64]);
        let expected = b"SSHSIG\0\0\0\x0esortie-command\0\0\0\0\0\0\0\x06sha512\0\0\0\x40";
        assert_eq!(&blob[..expected.len()], expected);
        assert_eq!(blob[expected.len()..], [7; 64]);
    }
}
