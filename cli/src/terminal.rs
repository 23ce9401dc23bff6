//! Standard output and standard error as files: whole writes, and what a terminal may be shown of bytes that a host
//! sent. Knows nothing of where the bytes come from.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// One of our own output streams, unbuffered.
pub(crate) struct Sink {
    file: Option<File>,
    /// Whether a person looks at it.
    pub(crate) is_terminal: bool,
}

impl Sink {
    pub(crate) fn new(stream: &(impl AsFd + IsTerminal)) -> Self {
        let file = stream.as_fd().try_clone_to_owned().ok().map(File::from);
        Self { file, is_terminal: stream.is_terminal() }
    }

    /// Writes all of it, also where somebody else has made the stream non-blocking.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        while !bytes.is_empty() {
            match file.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Makes what a host sent harmless for a terminal: control sequences are shown, not obeyed. Lines and tabs stay.
/// Characters that are cut in two between pieces come out whole.
#[derive(Debug, Default)]
pub(crate) struct Harmless {
    /// The beginning of a character whose rest has not come yet.
    begun: Vec<u8>,
}

impl Harmless {
    /// What may be shown of the next piece.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut joined;
        let mut rest = bytes;
        if !self.begun.is_empty() {
            joined = std::mem::take(&mut self.begun);
            joined.extend_from_slice(bytes);
            rest = &joined;
        }
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => return show(text, out),
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    show(&String::from_utf8_lossy(good), out);
                    let Some(length) = error.error_len() else {
                        self.begun = bad.to_vec();
                        return;
                    };
                    show_bytes(&bad[..length], out);
                    rest = &bad[length..];
                }
            }
        }
    }

    /// Nothing more comes.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        show_bytes(&std::mem::take(&mut self.begun), out);
    }
}

/// All of `bytes`, harmless.
pub(crate) fn harmless(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut filter = Harmless::default();
    filter.push(bytes, &mut out);
    filter.finish(&mut out);
    out
}

/// Writes in JSON's escapes what JSON leaves as it is and a terminal would obey, from `begin` on: it may end up on one after all.
pub(crate) fn harmless_json(json: &mut Vec<u8>, begin: usize) {
    if json[begin..].iter().all(|b| b.is_ascii() && *b != 0x7f) {
        return;
    }
    let text = String::from_utf8_lossy(&json.split_off(begin)).into_owned();
    for c in text.chars() {
        if c == '\x7f' || is_hidden(c) {
            json.extend(format!("\\u{:04x}", u32::from(c)).bytes());
        } else {
            json.extend(c.encode_utf8(&mut [0; 4]).bytes());
        }
    }
}

/// C1 controls, and what reorders or hides text.
fn is_hidden(c: char) -> bool {
    matches!(c, '\u{80}'..='\u{9f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn show_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        out.extend(format!("\\x{byte:02x}").bytes());
    }
}

fn show(text: &str, out: &mut Vec<u8>) {
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => out.push(c as u8),
            '\r' if chars.peek() == Some(&'\n') => out.push(b'\r'),
            '\0'..='\x1f' => out.extend([b'^', c as u8 + b'@']),
            '\x7f' => out.extend(b"^?"),
            c if is_hidden(c) => {
                out.extend(c.escape_unicode().map(|c| c as u8));
            }
            c => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_are_shown_and_not_obeyed() {
        let shown = harmless(b"\x1b]0;owned\x07a\x1b[2J\r\nb\rc\td\x7f \xc2\x9b31m \xe2\x80\xaetxt\n");
        assert_eq!(
            String::from_utf8(shown).unwrap(),
            "^[]0;owned^Ga^[[2J\r\nb^Mc\td^? \\u{9b}31m \\u{202e}txt\n"
        );
    }

    #[test]
    fn json_says_the_same_in_characters_that_no_terminal_obeys() {
        let mut json = b"before \xc2\x9b".to_vec();
        let begin = json.len();
        json.extend("\"ż\u{9b}31m\u{202e}txt\x7f\"".bytes());
        harmless_json(&mut json, begin);
        assert_eq!(&json[begin..], "\"ż\\u009b31m\\u202etxt\\u007f\"".as_bytes());
        let text: String = serde_json::from_slice(&json[begin..]).unwrap();
        assert_eq!(text, "ż\u{9b}31m\u{202e}txt\x7f");
    }

    #[test]
    fn characters_cut_between_pieces_come_out_whole_and_others_as_numbers() {
        let mut filter = Harmless::default();
        let mut out = Vec::new();
        for piece in [&b"\xc5"[..], b"\xbc\xff\xf0\x9f", b"\x9a", b"\x80!\xe2\x82"] {
            filter.push(piece, &mut out);
        }
        filter.finish(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "ż\\xff🚀!\\xe2\\x82");
    }
}
