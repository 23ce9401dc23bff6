//! Sequences: commands that run one after the other, in the order in which they came, until one of them fails.
//!
//! Knows names and who failed; nothing of commands, and not who waits.

use sortie_protocol::ErrorCode;
use sortie_protocol::message::SEQUENCE_LIMIT;

use crate::failure::Failure;

/// Sequences of a session that may have failed.
const MOST_FAILED: usize = 1024;

/// The sequences that go no further.
#[derive(Default)]
pub(crate) struct Sequences(Vec<Failed>);

struct Failed {
    name: String,
    /// The command that failed first, by order of arrival.
    id: String,
    serial: u64,
}

impl Sequences {
    /// Whether a command can be part of this sequence; an empty name is none.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for a name that is too long, `BUSY` where too many have failed to remember one more.
    pub(crate) fn check(&self, name: &str) -> Result<(), Failure> {
        if name.len() > SEQUENCE_LIMIT {
            return Err(Failure::params(format!("sequence: a name has at most {SEQUENCE_LIMIT} bytes")));
        }
        if !name.is_empty() && self.0.len() >= MOST_FAILED {
            let message =
                format!("{MOST_FAILED} sequences of this session have failed; start another session");
            return Err(Failure::new(ErrorCode::Busy, message).not_retryable());
        }
        Ok(())
    }

    /// A command of the sequence failed, or was refused: whatever came after `serial` is not run. One that came before it
    /// may still run, and fail too.
    pub(crate) fn failed(&mut self, name: &str, id: &str, serial: u64) {
        // Shown in errors, so it need not be whole.
        let id: String = id.chars().take(SEQUENCE_LIMIT).collect();
        if let Some(known) = self.0.iter_mut().find(|failed| failed.name == name) {
            if known.serial > serial {
                (known.id, known.serial) = (id, serial);
            }
        } else if !name.is_empty() && name.len() <= SEQUENCE_LIMIT && self.0.len() < MOST_FAILED {
            self.0.push(Failed { name: name.to_owned(), id, serial });
        }
    }

    /// The answer to a command whose turn does not come any more.
    pub(crate) fn stopped(&self, name: &str, serial: u64) -> Option<Failure> {
        let failed = self.0.iter().find(|failed| failed.name == name && failed.serial <= serial)?;
        let message = format!("not run: {:?}, before it in its sequence, failed", failed.id);
        let failure = Failure::new(ErrorCode::Cancelled, message);
        Some(failure.detail("sequence", name).detail("failed", failed.id.as_str()))
    }
}
