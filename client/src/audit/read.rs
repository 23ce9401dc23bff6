//! What a log tells, line by line. Whether it is as it was written is another question: [`super::verify()`].

use std::io::{self, BufRead, Read as _};

use serde::Deserialize;

use super::{LINE_LIMIT, Record};

/// A line of a log.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Entry {
    /// Its number in the file, from 1.
    pub line: u64,
    /// When it was written, RFC 3339 in UTC; whatever stands there.
    pub time: String,
    /// What it tells; `None` for a line that is not understood: torn, changed, or of a later version.
    pub record: Option<Record>,
}

/// The lines of a log, one after the other; each is believed as it stands.
pub fn entries(log: impl BufRead) -> impl Iterator<Item = io::Result<Entry>> {
    #[derive(Deserialize)]
    struct Timed {
        time: String,
    }
    let (mut log, mut bytes, mut line) = (log, Vec::new(), 0);
    std::iter::from_fn(move || {
        let read = read_line(&mut log, &mut bytes).transpose()?;
        line += 1;
        Some(read.map(|_| {
            let time =
                serde_json::from_slice(&bytes).map_or_else(|_| String::new(), |timed: Timed| timed.time);
            Entry { line, time, record: serde_json::from_slice(&bytes).ok() }
        }))
    })
}

/// Reads a line, or the first [`LINE_LIMIT`] bytes of one; `None` at the end, else whether it had a newline, which is taken off.
pub(super) fn read_line(log: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    log.take(LINE_LIMIT).read_until(b'\n', line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(line.pop_if(|byte| *byte == b'\n').is_some()))
}
