//! Commands on their way to a runner that takes signed ones alone: each is signed once the runner is up, and one with input
//! once all of its input is there, as both are signed together.

use sortie_protocol::message::{CommandMessage, ErrorFrame, Shutdown};
use sortie_protocol::signed::INPUT_LIMIT;
use sortie_protocol::{ControllerMessage, ErrorCode};

use super::state::Shared;
use super::within_frame;
use crate::error::Error;
use crate::signing::Said;

/// A command that is not sent before all of its input is known.
pub(super) struct Collected {
    pub(super) message: CommandMessage,
    pub(super) input: Vec<u8>,
}

impl Shared {
    /// Signs and sends, as soon as the runner is up. Nothing else is signed in between.
    pub(super) async fn send_signed(&self, said: Said<'_>) -> Result<(), Error> {
        self.up().await?;
        let (Some(signer), Some(ready)) = (&self.signer, self.ready()) else {
            return Err(Error::Closed { host: self.host.clone() });
        };
        let send = |signed| async {
            let line = within_frame(self, self.encode(&ControllerMessage::Signed(signed)))?;
            self.send_bulk(line).await
        };
        let sent = signer.sign(ready, said, send).await;
        sent.map_err(|error| Error::Config { host: self.host.clone(), reason: error.to_string() })?
    }

    /// Keeps a command back until [`Self::take_collected`].
    pub(super) fn collect(&self, message: CommandMessage) {
        let mut state = self.state();
        if let Some(command) = state.commands.get_mut(&message.id) {
            command.collected = Some(Collected { message, input: Vec::new() });
            state.unsent += 1;
        }
    }

    /// Adds to the input of a command that is kept back, which ends with more than can be signed; `None` for one that is not.
    pub(super) fn collect_input(&self, id: &str, data: &[u8]) -> Option<Result<(), Error>> {
        {
            let mut state = self.state();
            let input = &mut state.commands.get_mut(id)?.collected.as_mut()?.input;
            if (input.len() + data.len()) as u64 <= INPUT_LIMIT {
                input.extend_from_slice(data);
                return Some(Ok(()));
            }
        }
        let reason = format!("the input of a signed command is at most {INPUT_LIMIT} bytes; nothing was run");
        let error = Error::Config { host: self.host.clone(), reason };
        self.take_collected(id);
        self.fail_command(id, error.clone());
        self.collected_is_sent();
        Some(Err(error))
    }

    /// The command, now that its input is whole; [`Self::collected_is_sent`] must follow.
    pub(super) fn take_collected(&self, id: &str) -> Option<Collected> {
        self.state().commands.get_mut(id)?.collected.take()
    }

    /// One less is kept back; what was to be said once none is, is said.
    pub(super) fn collected_is_sent(&self) {
        let mut state = self.state();
        state.unsent = state.unsent.saturating_sub(1);
        if state.unsent == 0 && std::mem::take(&mut state.shutdown_when_sent) {
            drop(state);
            self.send_small(&ControllerMessage::Shutdown(Shutdown { grace: None }));
        }
    }

    /// Ends a command that is kept back; whether it was.
    pub(super) fn cancel_collected(&self, id: &str) -> bool {
        if self.take_collected(id).is_none() {
            return false;
        }
        let message = "cancelled before it was sent".to_owned();
        let error = Box::new(ErrorFrame::new(id, ErrorCode::Cancelled, message));
        self.fail_command(id, Error::Command { host: self.host.clone(), error });
        self.collected_is_sent();
        true
    }

    /// Asks for the end of the session once nothing is kept back any more.
    pub(super) fn shut_down_when_sent(&self) {
        let mut state = self.state();
        if state.unsent > 0 {
            state.shutdown_when_sent = true;
            return;
        }
        drop(state);
        self.send_small(&ControllerMessage::Shutdown(Shutdown { grace: None }));
    }
}
