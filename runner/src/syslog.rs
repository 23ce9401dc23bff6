//! The host's own log: one line for each command that is run for somebody else.

use std::os::unix::net::UnixDatagram;

use sortie_protocol::message::CommandMessage;

use crate::sys::{host, process};

/// Facility authpriv, severity info, by RFC 3164 §4.1.1.
const PRIORITY: u32 = 10 * 8 + 6;

/// Writes that `login` runs this command here, as far as a log is listening. Parameters stay out: they may hold secrets.
pub(crate) fn command(login: &str, command: &CommandMessage) {
    let id: String = command.id.chars().take(64).collect();
    let line = format!(
        "<{PRIORITY}>sortie-runner[{}]: {login} runs {} as uid {}, id {id:?}{}",
        process::id(),
        command.kind.name(),
        host::uid(),
        if command.check { ", check only" } else { "" },
    );
    if let Ok(socket) = UnixDatagram::unbound() {
        // A log that is full must not hold up the session.
        let _ = socket.set_nonblocking(true);
        let _ = socket.send_to(line.as_bytes(), "/dev/log");
    }
}
