//! Files by their lines: one line or one marked block is changed, every other byte stays.
//!
//! Pure: bytes in, bytes out. A line ends at `\n`, of which a `\r` before it is part; the last one may have no end.

use sortie_protocol::ErrorCode;

use crate::failure::Failure;
use crate::regex::{Places, Regex};

/// Asked from time to time, for the work may be long.
pub(crate) type GoOn<'a> = &'a dyn Fn() -> Result<(), Failure>;

/// What became of a file.
pub(crate) struct Edited {
    /// None: it stays.
    pub(crate) content: Option<Vec<u8>>,
    /// As the result calls it.
    pub(crate) action: &'static str,
}

impl Edited {
    pub(crate) fn not(action: &'static str) -> Self {
        Self { content: None, action }
    }

    /// `parts` one after the other.
    pub(crate) fn new(action: &'static str, parts: &[&[u8]]) -> Self {
        Self { content: Some(parts.concat()), action }
    }
}

/// A line and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Line<'a> {
    /// Of its first byte in the file.
    pub(crate) at: usize,
    /// Without its end.
    pub(crate) text: &'a [u8],
    /// `\n`, `\r\n` or nothing.
    pub(crate) end: &'a [u8],
}

impl Line<'_> {
    /// Where the next line begins.
    pub(crate) fn after(&self) -> usize {
        self.at + self.text.len() + self.end.len()
    }
}

/// The lines of a file.
pub(crate) struct Lines<'a> {
    content: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    pub(crate) fn of(content: &'a [u8]) -> Self {
        Self { content, at: 0 }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let rest = self.content.get(self.at..).filter(|rest| !rest.is_empty())?;
        let length = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        let whole = &rest[..length];
        let text = match whole.strip_suffix(b"\n") {
            Some(text) => text.strip_suffix(b"\r").unwrap_or(text),
            None => whole,
        };
        let line = Line { at: self.at, text, end: &whole[text.len()..] };
        self.at += length;
        Some(line)
    }
}

/// How a new line ends: as the first one does.
pub(crate) fn line_end(content: &[u8]) -> &'static [u8] {
    match Lines::of(content).next() {
        Some(Line { end: b"\r\n", .. }) => b"\r\n",
        _ => b"\n",
    }
}

/// Puts whole lines, with their ends, before the byte `at`, where a line begins.
pub(crate) fn insert(content: &[u8], at: usize, lines: &[u8]) -> Edited {
    let (before, after) = content.split_at(at);
    let unended = !before.is_empty() && !before.ends_with(b"\n");
    let end = if unended { line_end(content) } else { b"" };
    Edited::new("inserted", &[before, end, lines, after])
}

/// Where something new goes.
pub(crate) enum Place {
    Begin,
    End,
    /// Behind the line that matches, else at the end.
    After(Regex),
    /// In front of it.
    Before(Regex),
}

impl Place {
    /// From what is asked for.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for both at once or an expression outside the grammar.
    pub(crate) fn new(after: Option<&str>, before: Option<&str>) -> Result<Self, Failure> {
        match (after, before) {
            (Some(_), Some(_)) => Err(Failure::params("insert_after: not together with insert_before")),
            (None | Some("EOF"), None) => Ok(Self::End),
            (Some(after), None) => Ok(Self::After(Regex::new("insert_after", after)?)),
            (None, Some("BOF")) => Ok(Self::Begin),
            (None, Some(before)) => Ok(Self::Before(Regex::new("insert_before", before)?)),
        }
    }

    fn regex(&self) -> Option<&Regex> {
        match self {
            Self::After(regex) | Self::Before(regex) => Some(regex),
            Self::Begin | Self::End => None,
        }
    }

    /// The byte before which it is.
    fn find(&self, content: &[u8], first: bool, go_on: GoOn<'_>) -> Result<usize, Failure> {
        let Some(regex) = self.regex() else {
            return Ok(if matches!(self, Self::Begin) { 0 } else { content.len() });
        };
        let mut found = content.len();
        for line in Lines::of(content) {
            go_on()?;
            if regex.find(line.text, go_on)?.is_some() {
                found = if matches!(self, Self::Before(_)) { line.at } else { line.after() };
                if first {
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// One line that is to be there, or lines that are not.
pub(crate) struct OneLine<'a> {
    /// Of the line that is replaced or the lines that are removed.
    pub(crate) regexp: Option<Regex>,
    /// Without its end; empty where only `regexp` counts.
    pub(crate) line: &'a str,
    /// Whether `line` has places for groups in it.
    pub(crate) backrefs: bool,
    /// Whether of several the first counts.
    pub(crate) first: bool,
    pub(crate) place: Place,
}

impl OneLine<'_> {
    /// What has to be done for it to be there.
    pub(crate) fn present(&self, content: &[u8], go_on: GoOn<'_>) -> Result<Edited, Failure> {
        let mut matched: Option<(Line<'_>, Places)> = None;
        let mut exact = false;
        for line in Lines::of(content) {
            go_on()?;
            exact |= line.text == self.line.as_bytes();
            if let Some(regexp) = &self.regexp
                && !(self.first && matched.is_some())
                && let Some(places) = regexp.find(line.text, go_on)?
            {
                matched = Some((line, places));
            }
        }
        if let Some((line, places)) = matched {
            let mut new = self.line.as_bytes().to_vec();
            if self.backrefs {
                new = expand(self.line, line.text, &places);
            } else if exact && !self.takes(go_on)? {
                // It is there, and what matches is another line, such as the commented one.
                return Ok(Edited::not("already_present"));
            }
            if new == line.text {
                return Ok(Edited::not("already_present"));
            }
            if new.is_empty() && line.end.is_empty() {
                // Without an end it would be no line.
                new.extend_from_slice(line_end(content));
            }
            let rest = &content[line.at + line.text.len()..];
            return Ok(Edited::new("replaced", &[&content[..line.at], &new, rest]));
        }
        if self.backrefs {
            return Ok(Edited::not("no_match"));
        }
        if exact {
            return Ok(Edited::not("already_present"));
        }
        let at = self.place.find(content, self.first, go_on)?;
        Ok(insert(content, at, &[self.line.as_bytes(), line_end(content)].concat()))
    }

    /// Whether the expression matches the line that is to be there.
    fn takes(&self, go_on: GoOn<'_>) -> Result<bool, Failure> {
        match &self.regexp {
            Some(regexp) => Ok(regexp.find(self.line.as_bytes(), go_on)?.is_some()),
            None => Ok(false),
        }
    }

    /// What has to be done for no such line to be there.
    pub(crate) fn absent(&self, content: &[u8], go_on: GoOn<'_>) -> Result<Edited, Failure> {
        let mut kept = Vec::with_capacity(content.len());
        for line in Lines::of(content) {
            go_on()?;
            let goes = match &self.regexp {
                Some(regexp) => regexp.find(line.text, go_on)?.is_some(),
                None => line.text == self.line.as_bytes(),
            };
            if !goes {
                kept.extend_from_slice(&content[line.at..line.after()]);
            }
        }
        if kept.len() == content.len() {
            return Ok(Edited::not("already_absent"));
        }
        Ok(Edited { content: Some(kept), action: "removed" })
    }
}

/// `line` with what the groups matched in place of `\0` to `\9`.
fn expand(line: &str, matched: &[u8], places: &Places) -> Vec<u8> {
    let mut new = Vec::new();
    let mut rest = line.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            new.push(byte);
            continue;
        }
        match rest.next() {
            Some(digit @ b'0'..=b'9') => {
                let group = usize::from(digit - b'0') * 2;
                if let (Some(begin), Some(end)) = (places[group], places[group + 1]) {
                    new.extend_from_slice(&matched[begin..end]);
                }
            }
            other => new.extend(other),
        }
    }
    new
}

/// A block of lines between two markers.
pub(crate) struct Block<'a> {
    /// The marker lines, without their ends.
    pub(crate) markers: [String; 2],
    pub(crate) lines: &'a str,
    pub(crate) first: bool,
    pub(crate) place: Place,
}

impl Block<'_> {
    /// What has to be done for it to be there.
    ///
    /// # Errors
    /// `CONFLICT` where the markers in the file are no one pair.
    pub(crate) fn present(&self, content: &[u8], go_on: GoOn<'_>) -> Result<Edited, Failure> {
        let end = line_end(content);
        let mut new = Vec::new();
        let [begin_marker, end_marker] = &self.markers;
        for line in std::iter::once(&**begin_marker).chain(self.lines.lines()).chain([&**end_marker]) {
            new.extend_from_slice(line.as_bytes());
            new.extend_from_slice(end);
        }
        let Some((begin, after)) = self.find(content, go_on)? else {
            return Ok(insert(content, self.place.find(content, self.first, go_on)?, &new));
        };
        if !content[begin..after].ends_with(b"\n") {
            new.truncate(new.len() - end.len());
        }
        if content[begin..after] == new {
            return Ok(Edited::not("already_present"));
        }
        Ok(Edited::new("replaced", &[&content[..begin], &new, &content[after..]]))
    }

    /// What has to be done for it not to be there, markers included.
    ///
    /// # Errors
    /// As [`Self::present`].
    pub(crate) fn absent(&self, content: &[u8], go_on: GoOn<'_>) -> Result<Edited, Failure> {
        Ok(match self.find(content, go_on)? {
            Some((begin, after)) => Edited::new("removed", &[&content[..begin], &content[after..]]),
            None => Edited::not("already_absent"),
        })
    }

    /// From where to where the block goes, markers included.
    fn find(&self, content: &[u8], go_on: GoOn<'_>) -> Result<Option<(usize, usize)>, Failure> {
        let refuse = |number: usize, why: &str| {
            let message = format!(
                "line {number}: {why}; nothing was changed. Put the markers right, or use a marker of its own"
            );
            Err(Failure::new(ErrorCode::Conflict, message))
        };
        let mut open = None;
        let mut found = None;
        for (index, line) in Lines::of(content).enumerate() {
            go_on()?;
            let number = index + 1;
            if line.text == self.markers[0].as_bytes() {
                if found.is_some() || open.is_some() {
                    return refuse(number, "a second begin of the block");
                }
                open = Some((line.at, number));
            } else if line.text == self.markers[1].as_bytes() {
                let Some((begin, _)) = open.take() else {
                    return refuse(number, "an end of the block without its begin");
                };
                found = Some((begin, line.after()));
            }
        }
        match open {
            Some((_, number)) => refuse(number, "a begin of the block without its end"),
            None => Ok(found),
        }
    }
}

#[cfg(test)]
#[path = "lines_tests.rs"]
mod tests;
