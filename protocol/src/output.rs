//! The EVENT that carries output of a command, written straight from the bytes.
//!
//! Every byte that a command prints goes through here, in a runner that is built small rather than fast: eight bytes
//! are looked at together, and nothing is copied before it is escaped. The bytes of the frame are those that
//! [`crate::message::Event`] would give.

use std::io::Write as _;

use crate::text::{Encoding, Stream, encode_base64, escaped_len, plain_prefix};
use crate::time::Timestamp;

/// An EVENT with `bytes` as its message, as a line with its newline.
#[must_use]
pub fn event_line(command_id: &str, timestamp: Timestamp, stream: Stream, seq: u64, bytes: &[u8]) -> Vec<u8> {
    let is_text = bytes.is_ascii() || std::str::from_utf8(bytes).is_ok();
    let encoding = (!is_text || escaped_len(bytes) > 2 * bytes.len()).then_some(Encoding::Base64);
    let mut line = Vec::with_capacity(bytes.len() + bytes.len() / 2 + 256);
    // A Vec takes every write.
    let _ = write!(line, "{{\"type\":\"EVENT\",\"timestamp\":\"{timestamp}\",\"data\":{{\"command_id\":\"");
    escape(command_id.as_bytes(), &mut line);
    line.extend_from_slice(b"\",\"level\":\"info\",\"message\":\"");
    match encoding {
        None => escape(bytes, &mut line),
        Some(Encoding::Base64) => line.extend_from_slice(encode_base64(bytes).as_bytes()),
    }
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
        Stream::Stdin => "stdin",
    };
    let _ = write!(line, "\",\"stream\":\"{stream}\",\"seq\":{seq}");
    if encoding.is_some() {
        line.extend_from_slice(b",\"encoding\":\"base64\"");
    }
    line.extend_from_slice(b"}}\n");
    line
}

/// Appends UTF-8 as it stands inside a JSON string (RFC 8259 §7).
pub(crate) fn escape(text: &[u8], line: &mut Vec<u8>) {
    let mut rest = text;
    loop {
        let (plain, special) = rest.split_at(plain_prefix(rest));
        line.extend_from_slice(plain);
        let Some((byte, later)) = special.split_first() else { return };
        rest = later;
        match byte {
            b'"' | b'\\' => line.extend_from_slice(&[b'\\', *byte]),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\t' => line.extend_from_slice(b"\\t"),
            0x08 => line.extend_from_slice(b"\\b"),
            0x0c => line.extend_from_slice(b"\\f"),
            0..=0x1f => {
                let _ = write!(line, "\\u{byte:04x}");
            }
            _ => line.push(*byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunnerMessage;
    use crate::message::Event;
    use proptest::prelude::*;

    fn both(command_id: &str, bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let timestamp = Timestamp::from_unix(1_704_067_200, 5);
        let (message, encoding) = crate::text::encode(bytes.to_vec());
        let event = Event {
            command_id: command_id.to_owned(),
            message,
            encoding,
            stream: Some(Stream::Stderr),
            seq: Some(7),
            ..Event::default()
        };
        let usual = RunnerMessage::Event(event).to_line(timestamp);
        (event_line(command_id, timestamp, Stream::Stderr, 7, bytes), usual)
    }

    #[test]
    fn every_byte_at_every_place_of_a_word_is_written_as_usual() {
        for byte in 0..=255u8 {
            for at in 0..18 {
                let mut bytes = vec![b'a'; 18];
                bytes[at] = byte;
                let (ours, usual) = both("c", &bytes);
                assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(&usual));
            }
        }
    }

    proptest! {
        #[test]
        fn text_is_written_as_usual(id in "\\PC{1,8}", text in any::<String>()) {
            let (ours, usual) = both(&id, text.as_bytes());
            prop_assert_eq!(ours, usual);
        }

        #[test]
        fn bytes_are_written_as_usual(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let (ours, usual) = both("c1", &bytes);
            prop_assert_eq!(ours, usual);
        }
    }
}
