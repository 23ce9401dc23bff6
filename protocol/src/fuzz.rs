//! What fuzzing does with this crate, and the replay of what it found: `fuzz/` of the repository, `cargo xtask fuzz`. In no
//! build that ships.

use serde_json::value::RawValue;

use crate::command::{CommandSpec, CommandVisitor};
use crate::passing::{Passing, UseSudo, tells_of_failure};
use crate::signed::Statement;
use crate::time::Timestamp;
use crate::{ControllerMessage, FRAME_LIMIT, FrameDecoder, Line, RunnerMessage, decode, text};

/// Bytes of either side: cut into lines the same way however they arrive, each line a message or a reason why not, and what
/// was read as a message is the same once it is written and read again. The first byte says in what pieces they arrive.
///
/// # Panics
/// Where that is not so.
pub fn frames(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else { return };
    let lines = lines(bytes, usize::from(*size).max(1));
    assert_eq!(lines, self::lines(bytes, bytes.len().max(1)), "the pieces make a difference");
    for line in lines.iter().flatten() {
        controller(line);
        runner(line);
    }
}

fn lines(bytes: &[u8], size: usize) -> Vec<Option<Vec<u8>>> {
    let owned = |line: Line<'_>| match line {
        Line::Frame(line) => Some(line.to_vec()),
        Line::TooLong => None,
    };
    let mut decoder = FrameDecoder::new();
    let mut lines = Vec::new();
    for piece in bytes.chunks(size) {
        decoder.push(piece);
        while let Some(line) = decoder.next_line() {
            lines.push(owned(line));
        }
    }
    lines.extend(decoder.last_line().map(owned));
    assert!(lines.iter().flatten().all(|line| line.len() < FRAME_LIMIT));
    lines
}

/// What a runner reads.
fn controller(line: &[u8]) {
    let message = match ControllerMessage::parse(line) {
        Ok(message) => message,
        Err(rejected) => {
            assert!(rejected.message.len() < 1000, "a refusal repeats what it refuses: {}", rejected.message);
            return;
        }
    };
    let written = message.to_line(Timestamp::from_unix(0, 0));
    let again =
        ControllerMessage::parse(written.trim_ascii_end()).map(|m| m.to_line(Timestamp::from_unix(0, 0)));
    assert_eq!(again.as_ref(), Ok(&written), "{}", String::from_utf8_lossy(&written));
    match message {
        ControllerMessage::Command(command) => {
            command.kind.visit(Params(&command.params));
            let mut params = command.params;
            if UseSudo::take(&mut params).is_ok() && params.get() != "null" {
                let left = UseSudo::take(&mut params)
                    .is_ok_and(|left| !left.use_sudo && left.sudo_password.is_none());
                assert!(left, "what asks for root is left in {params}");
            }
        }
        ControllerMessage::Input(input) => {
            if let Ok(bytes) = text::decode(input.data, input.encoding) {
                let (data, encoding) = text::encode(bytes.clone());
                assert_eq!(text::decode(data, encoding).ok(), Some(bytes));
            }
        }
        ControllerMessage::Signed(signed) => match Statement::parse(&signed.text) {
            Ok(statement) => {
                let written = serde_json::to_string(&statement).unwrap_or_default();
                let again = Statement::parse(&written).map(|again| serde_json::to_string(&again).ok());
                assert_eq!(again, Ok(Some(written)));
            }
            Err(rejected) => assert!(rejected.message.len() < 1000, "{}", rejected.message),
        },
        _ => {}
    }
}

/// Reads params as the runner does: what it takes is the same to serde, by which clients write it.
struct Params<'a>(&'a RawValue);

impl CommandVisitor for Params<'_> {
    type Output = ();

    fn visit<C: CommandSpec + Default>(self) {
        let Ok(params) = decode::<C>(self.0.get()) else { return };
        let written = serde_json::to_string(&params).ok();
        let by_serde: Option<C> = serde_json::from_str(self.0.get()).ok();
        assert_eq!(by_serde.and_then(|params| serde_json::to_string(&params).ok()), written, "{}", self.0);
    }
}

/// What a client reads, and what a runner reads that passes it on.
fn runner(line: &[u8]) {
    let passing = Passing::parse(line);
    if let Some(result) = passing.and_then(|passing| passing.result) {
        let _ = tells_of_failure(result);
    }
    let Ok(message) = RunnerMessage::parse(line) else { return };
    let written = message.to_line(Timestamp::from_unix(0, 0));
    let again = RunnerMessage::parse(written.trim_ascii_end()).map(|m| m.to_line(Timestamp::from_unix(0, 0)));
    assert_eq!(again.as_ref(), Ok(&written), "{}", String::from_utf8_lossy(&written));
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_fuzzing_found_stays_mended() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/frames");
        let files: Vec<_> =
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty(), "{directory} is empty");
        for file in files {
            super::frames(&std::fs::read(file).unwrap());
        }
    }
}
