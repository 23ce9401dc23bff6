//! Idempotency keys: the same identity is run once a session, and its first result is given again.
//!
//! Knows identities and stored results, never how a command runs.

use std::collections::VecDeque;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use sortie_protocol::message::{CommandMessage, Done, Strings};
use sortie_protocol::{ErrorCode, encode};

use crate::failure::Failure;

/// Most keys a session remembers.
const MOST_KEYS: usize = 65_536;

/// Most bytes of results that are kept; the oldest go first.
const MOST_RESULT_BYTES: usize = 4 * 1024 * 1024;

/// A key and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    key: String,
    digest: [u8; 32],
}

impl Identity {
    /// None for a command without a key, and for a check, which changes nothing and is not remembered.
    pub(crate) fn of(command: &CommandMessage) -> Option<Self> {
        if command.idempotency_key.is_empty() || command.check {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update(command.kind.name());
        hash.update([
            0,
            u8::from(command.check),
            u8::from(command.diff),
            u8::from(command.r#become.is_some()),
        ]);
        if let Some(whom) = &command.r#become {
            hash.update(whom.user.as_bytes());
            hash.update([0, whom.method as u8]);
        }
        if let Some(limits) = &command.limits {
            hash.update(encode(limits));
            hash.update([0]);
        }
        hash.update(command.params.get());
        Some(Self { key: command.idempotency_key.clone(), digest: hash.finalize().into() })
    }
}

enum Remembered {
    Running,
    /// Seconds it took, and the result as it was sent.
    Done(f64, Box<RawValue>),
    /// The result was too large to keep, or had to go for newer ones.
    Dropped,
}

/// A command that came with a key.
struct Known {
    identity: Identity,
    remembered: Remembered,
}

#[derive(Default)]
pub(crate) struct Idempotency {
    /// By key, in order.
    known: Vec<Known>,
    kept: VecDeque<String>,
    kept_bytes: usize,
}

/// What to do with a command that has a key.
pub(crate) enum Verdict {
    /// It is the first: run it, and tell [`Idempotency::ended`].
    Run,
    /// The first still runs.
    Wait,
    /// Send this instead of running it.
    Replay(Done),
    Refuse(Failure),
}

impl Idempotency {
    pub(crate) fn begin(&mut self, id: &str, identity: &Identity) -> Verdict {
        let at = match self.find(&identity.key) {
            Ok(at) => at,
            Err(_) if self.known.len() >= MOST_KEYS => {
                let message = format!(
                    "this session remembers {MOST_KEYS} idempotency keys already; start another session"
                );
                return Verdict::Refuse(Failure::new(ErrorCode::Busy, message).not_retryable());
            }
            Err(at) => {
                let known = Known { identity: identity.clone(), remembered: Remembered::Running };
                self.known.insert(at, known);
                return Verdict::Run;
            }
        };
        let known = &self.known[at];
        match &known.remembered {
            _ if known.identity.digest != identity.digest => Verdict::Refuse(
                Failure::new(ErrorCode::Conflict, "the same idempotency_key was used for another command")
                    .detail("reason", "other_command"),
            ),
            Remembered::Running => Verdict::Wait,
            Remembered::Dropped => Verdict::Refuse(
                Failure::new(
                    ErrorCode::Conflict,
                    "this command already ran; its result is not kept any more",
                )
                .detail("reason", "already_ran"),
            ),
            Remembered::Done(duration, result) => {
                let mut metadata = Strings::new();
                metadata.insert("idempotent_replay".to_owned(), "true".to_owned());
                let (result, duration) = (result.clone(), *duration);
                Verdict::Replay(Done { command_id: id.to_owned(), result, duration, metadata, usage: None })
            }
        }
    }

    /// Where a key is, or where it belongs.
    fn find(&self, key: &str) -> Result<usize, usize> {
        self.known.binary_search_by(|known| known.identity.key.as_str().cmp(key))
    }

    /// The first run ended: with what it gave, or with none if it failed, which is not remembered.
    pub(crate) fn ended(&mut self, identity: &Identity, outcome: Outcome) {
        let Ok(at) = self.find(&identity.key) else { return };
        let remembered = match outcome {
            Outcome::Replayed => return,
            Outcome::Failed => {
                self.known.remove(at);
                return;
            }
            Outcome::TooLarge => Remembered::Dropped,
            Outcome::Done(duration, result) => {
                self.kept_bytes += result.get().len();
                self.kept.push_back(identity.key.clone());
                Remembered::Done(duration, result)
            }
        };
        self.known[at].remembered = remembered;
        while self.kept_bytes > MOST_RESULT_BYTES
            && let Some(oldest) = self.kept.pop_front()
        {
            if let Ok(at) = self.find(&oldest)
                && let Remembered::Done(_, result) =
                    std::mem::replace(&mut self.known[at].remembered, Remembered::Dropped)
            {
                self.kept_bytes -= result.get().len();
            }
        }
    }
}

/// How a command with a key ended.
pub(crate) enum Outcome {
    Done(f64, Box<RawValue>),
    /// Done, but not to be kept.
    TooLarge,
    Failed,
    /// Nothing was run: the first one's result was sent.
    Replayed,
}

/// Whether a result of this size is kept at all.
pub(crate) fn keeps(bytes: usize) -> bool {
    bytes <= MOST_RESULT_BYTES
}
