//! Changes that a host takes back unless its controller can still log in: the login that proves it, and CONFIRM.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use sortie_protocol::message::{Cancel, Confirm, ErrorFrame, Event};
use sortie_protocol::{CommandType, ControllerMessage, ErrorCode};

use super::Session;
use crate::error::Error;
use crate::observe::Observer;
use crate::signing::Said;
use crate::transport::{Launch, Transport};

/// Whether the command asks for a confirmation.
pub(crate) fn wants_confirm(kind: CommandType, params: &RawValue) -> bool {
    #[derive(serde::Deserialize, Default)]
    #[serde(default)]
    struct Asked {
        confirm: Option<serde::de::IgnoredAny>,
    }
    let asked: Asked = serde_json::from_str(params.get()).unwrap_or_default();
    kind == CommandType::SshdHarden && asked.confirm.is_some()
}

/// Whether an event is the runner's word that it waits for a confirmation.
#[must_use]
pub fn awaits_confirmation(event: &Event) -> bool {
    event.stream.is_none() && event.metadata.get("awaiting").is_some_and(|what| what == "confirm")
}

impl Session {
    /// Whether this session can confirm a change: it takes a login that asks nobody for anything.
    ///
    /// # Errors
    /// [`Error::Command`] with `UNSUPPORTED`.
    pub fn can_confirm(&self) -> Result<(), Error> {
        if self.transport.unattended() {
            return Ok(());
        }
        let message = "confirm: that takes a second login, and the first one asked a person; use a key, an agent, or a \
                       password that is remembered; nothing was changed";
        Err(self.command_error(ErrorCode::Unsupported, message.to_owned()))
    }

    /// Answers an event of [`awaits_confirmation`]: logs in anew, by a connection of its own and on the port where the server is now,
    /// and sends CONFIRM. If there is no login the command is cancelled, so that the host takes the change back at once.
    ///
    /// # Errors
    /// Why there was no login; the command ends with `ROLLED_BACK`.
    pub async fn confirm(&self, event: &Event) -> Result<(), Error> {
        let command_id = event.command_id.clone();
        match self.log_in_anew(event).await {
            Ok(()) if self.shared.signer.is_some() => {
                self.shared.send_signed(Said::Confirm(&command_id)).await
            }
            Ok(()) => {
                self.shared.send_small(&ControllerMessage::Confirm(Confirm { command_id }));
                Ok(())
            }
            Err(error) => {
                self.shared.send_small(&ControllerMessage::Cancel(Cancel { command_id, grace: None }));
                Err(error)
            }
        }
    }

    async fn log_in_anew(&self, event: &Event) -> Result<(), Error> {
        let number = |name: &str| event.metadata.get(name).and_then(|text| text.parse::<u16>().ok());
        let transport = match number("port") {
            None => Arc::clone(&self.transport),
            Some(port) => self.transport.moved(port).ok_or_else(|| {
                let message =
                    format!("the server listens on port {port} now, where this transport cannot look");
                self.command_error(ErrorCode::Unsupported, message)
            })?,
        };
        // What comes later than that comes too late.
        let limit = Duration::from_secs(number("seconds").unwrap_or(30).into());
        // A host that starts a runner by itself says READY to whoever is let in.
        let said: &[u8] = if self.token.is_empty() { b"\"READY\"" } else { b"sortie-is-in" };
        let login = log_in(&*transport, said, &*self.shared.observer);
        tokio::time::timeout(limit, login).await.unwrap_or_else(|_| {
            let message = format!("no new login within {} s", limit.as_secs());
            Err(self.command_error(ErrorCode::Timeout, message))
        })
    }

    pub(super) fn command_error(&self, code: ErrorCode, message: String) -> Error {
        Error::Command { host: self.shared.host.clone(), error: Box::new(ErrorFrame::new("", code, message)) }
    }
}

/// Logs in and sees it say what a login does.
async fn log_in(transport: &dyn Transport, said: &[u8], observer: &dyn Observer) -> Result<(), Error> {
    // What the shell says is nowhere in the line as it stands, so that an echo of it is no answer.
    const SAY: &str = "echo $0-$1";
    let launch = Launch {
        line: format!("exec sh -c '{SAY}' sortie is-in"),
        argv: ["sh", "-c", SAY, "sortie", "is-in"].map(String::from).to_vec(),
    };
    let mut connection = transport.start(&launch, observer).await?;
    let mut seen = Vec::new();
    while let Some(chunk) = connection.output.recv().await {
        seen.extend_from_slice(&chunk);
        let excess = seen.len().saturating_sub(64 * 1024);
        seen.drain(..excess);
        if seen.windows(said.len()).any(|window| window == said) {
            return Ok(());
        }
    }
    let ended = connection.ending.wait().await;
    Err(Error::Lost {
        host: transport.host().to_owned(),
        step: crate::observe::Step::OpenChannel,
        reason: ended.reason.unwrap_or_else(|| "the login works, but runs no command".into()),
        pid: None,
    })
}
