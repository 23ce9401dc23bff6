//! Framing: one JSON object per line, at most [`FRAME_LIMIT`] bytes with its newline.
//!
//! Framing knows no messages. It never allocates by what a peer claims, and after a line that is too long it is in
//! step again at the next newline.

use std::io::{self, Read};

/// The longest line, newline included, in bytes. The reference's buffer has this size; a longer line kills its client.
pub const FRAME_LIMIT: usize = 10 * 1024 * 1024;

/// Bytes read at a time, and what the buffer shrinks to once a large frame is gone.
const CHUNK: usize = 64 * 1024;

/// What the decoder found up to a newline, or up to the end of input.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line without its newline (and without a carriage return before it). Never empty.
    Frame(&'a [u8]),
    /// A line over the limit; its bytes were dropped as they came.
    TooLong,
}

/// Cuts a byte stream into lines. Push bytes, then take lines until there is none.
///
/// Holds at most [`FRAME_LIMIT`] bytes besides what the last push brought.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    /// Where the first line not yet taken begins.
    start: usize,
    /// Up to where no newline was found.
    scanned: usize,
    /// A line over the limit is being passed over.
    discarding: bool,
}

impl FrameDecoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they came from the peer. Take all lines before pushing again: memory is bounded by that.
    pub fn push(&mut self, bytes: &[u8]) {
        self.compact();
        self.buffer.extend_from_slice(bytes);
    }

    /// Reads once from `reader`; 0 means end of input.
    ///
    /// # Errors
    /// Whatever `reader` returns; nothing is lost then.
    pub fn read_from(&mut self, reader: &mut impl Read) -> io::Result<usize> {
        self.compact();
        let filled = self.buffer.len();
        self.buffer.resize(filled + CHUNK, 0);
        let result = reader.read(&mut self.buffer[filled..]);
        self.buffer.truncate(filled + result.as_ref().copied().unwrap_or(0));
        result
    }

    /// The next whole line, if there is one. Blank lines are skipped.
    pub fn next_line(&mut self) -> Option<Line<'_>> {
        loop {
            let newline = memchr::memchr(b'\n', &self.buffer[self.scanned..]);
            let Some(at) = newline.map(|n| n + self.scanned) else {
                self.scanned = self.buffer.len();
                if self.scanned - self.start >= FRAME_LIMIT {
                    self.discarding = true;
                }
                if self.discarding {
                    self.buffer.clear();
                    self.start = 0;
                    self.scanned = 0;
                }
                return None;
            };
            let begin = std::mem::replace(&mut self.start, at + 1);
            self.scanned = at + 1;
            if std::mem::take(&mut self.discarding) || at + 1 - begin > FRAME_LIMIT {
                return Some(Line::TooLong);
            }
            let range = begin..without_carriage_return(&self.buffer[begin..at]) + begin;
            if !self.buffer[range.clone()].trim_ascii().is_empty() {
                return Some(Line::Frame(&self.buffer[range]));
            }
        }
    }

    /// At the end of input: the last line, if it had no newline. Call after [`Self::next_line`] returned `None`.
    pub fn last_line(&mut self) -> Option<Line<'_>> {
        if std::mem::take(&mut self.discarding) {
            return Some(Line::TooLong);
        }
        let begin = std::mem::replace(&mut self.start, self.buffer.len());
        self.scanned = self.buffer.len();
        let line = &self.buffer[begin..];
        let line = &line[..without_carriage_return(line)];
        (!line.trim_ascii().is_empty()).then_some(Line::Frame(line))
    }

    /// Whether the line whose newline has not come yet is over the limit already: an endless one never is a line.
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        self.discarding
    }

    /// Whether part of a line is waiting for its newline.
    #[must_use]
    pub fn in_frame(&self) -> bool {
        self.discarding || self.start < self.buffer.len()
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
            if self.buffer.capacity() > 4 * CHUNK && self.buffer.len() < CHUNK {
                self.buffer.shrink_to(2 * CHUNK);
            }
        }
    }
}

fn without_carriage_return(line: &[u8]) -> usize {
    line.strip_suffix(b"\r").unwrap_or(line).len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every line that `input` gives when it arrives in pieces of the given sizes.
    fn lines(input: &[u8], sizes: &[usize]) -> Vec<Option<Vec<u8>>> {
        let owned = |line: Line<'_>| match line {
            Line::Frame(bytes) => Some(bytes.to_vec()),
            Line::TooLong => None,
        };
        let mut decoder = FrameDecoder::new();
        let mut found = Vec::new();
        let mut rest = input;
        for size in sizes.iter().copied().chain(std::iter::repeat(CHUNK)) {
            if rest.is_empty() {
                break;
            }
            let (piece, later) = rest.split_at(size.clamp(1, rest.len()));
            decoder.push(piece);
            rest = later;
            while let Some(line) = decoder.next_line() {
                found.push(owned(line));
            }
        }
        found.extend(decoder.last_line().map(owned));
        assert!(!decoder.in_frame());
        found
    }

    #[test]
    fn carriage_returns_blank_lines_and_a_missing_last_newline_are_accepted() {
        let found = lines(b"{\"a\":1}\r\n\n  \r\n{}\n{\"b\":2}", &[]);
        assert_eq!(found, [Some(b"{\"a\":1}".to_vec()), Some(b"{}".to_vec()), Some(b"{\"b\":2}".to_vec())]);
    }

    #[test]
    fn the_limit_counts_the_newline_and_the_next_line_is_in_step() {
        for (length, fits) in [(FRAME_LIMIT - 1, true), (FRAME_LIMIT, false), (3 * FRAME_LIMIT, false)] {
            let mut input = vec![b'x'; length];
            input.extend_from_slice(b"\n{}\n");
            let found = lines(&input, &[]);
            assert_eq!(found.len(), 2);
            assert_eq!(found[0].as_ref().map(Vec::len), fits.then_some(length));
            assert_eq!(found[1].as_deref(), Some(&b"{}"[..]));
        }
    }

    #[test]
    fn an_endless_line_takes_no_more_than_the_limit() {
        let mut decoder = FrameDecoder::new();
        for _ in 0..(4 * FRAME_LIMIT / CHUNK) {
            decoder.push(&[b'x'; CHUNK]);
            assert_eq!(decoder.next_line(), None);
            assert!(decoder.buffer.len() <= FRAME_LIMIT);
        }
        assert!(decoder.is_over_limit());
        assert_eq!(decoder.last_line(), Some(Line::TooLong));
    }

    #[test]
    fn a_large_frame_does_not_leave_a_large_buffer() {
        let mut decoder = FrameDecoder::new();
        decoder.push(&vec![b'x'; FRAME_LIMIT / 2]);
        decoder.push(b"\n");
        assert!(matches!(decoder.next_line(), Some(Line::Frame(_))));
        decoder.push(b"{}\n");
        assert!(decoder.buffer.capacity() <= 4 * CHUNK);
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_lines(
            input in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b' '), any::<u8>()], 0..400),
            sizes in proptest::collection::vec(1usize..20, 0..400),
        ) {
            prop_assert_eq!(lines(&input, &sizes), lines(&input, &[]));
        }
    }
}
