//! READY: what a session says of itself first.

use std::io;

use sortie_protocol::map::Map;
use sortie_protocol::message::{Limits, ProtocolVersion, Ready, Strings};
use sortie_protocol::{FRAME_LIMIT, PROTOCOL_MAJOR, PROTOCOL_MINOR};

use super::{QUEUE_BYTES, QUEUE_COMMANDS};
use crate::command;
use crate::facts;
use crate::job::STDIN_WINDOW;
use crate::options::Options;
use crate::pool::MOST_CAPTURED;
use crate::sys::host;

pub(super) fn ready(options: &Options, signed: bool, guardian: i32) -> io::Result<Ready> {
    let names = command::SUPPORTED.iter().flat_map(|kind| [kind.name(), kind.dotted_name()]);
    let mut capabilities = Map::new();
    for name in names.chain(["become", "limits", "sequence"]) {
        capabilities.insert(name.to_owned(), true);
    }
    if signed {
        capabilities.insert("signed".to_owned(), true);
    }
    let mut metadata = Strings::new();
    metadata.insert("ttl".to_owned(), go_duration(options.ttl.as_secs()));
    Ok(Ready {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        platform: "linux".to_owned(),
        arch: facts::arch().to_owned(),
        pid: guardian.unsigned_abs(),
        capabilities,
        metadata,
        protocol: Some(ProtocolVersion { major: PROTOCOL_MAJOR, minor: PROTOCOL_MINOR }),
        session: host::random_id()?,
        nonce: host::random_id()?,
        sha256: facts::own_sha256()?.to_string(),
        limits: Some(Limits {
            frame_bytes: FRAME_LIMIT as u64,
            concurrency: options.concurrency.unwrap_or(1),
            output_bytes: MOST_CAPTURED,
            stdin_window: STDIN_WINDOW,
            queue_commands: QUEUE_COMMANDS as u32,
            queue_bytes: QUEUE_BYTES as u64,
            lease: options.lease.map_or(0, |lease| lease.as_secs()),
        }),
        host: Some(facts::host()),
    })
}

/// Seconds as Go's time.Duration writes them.
fn go_duration(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (seconds, text) in [(600, "10m0s"), (45, "45s"), (3661, "1h1m1s"), (60, "1m0s")] {
            assert_eq!(go_duration(seconds), text);
        }
    }
}
