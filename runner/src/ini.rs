//! Files of options in sections, as php, git, systemd and many others have them: one option is changed, every other byte stays.
//!
//! Pure: bytes in, bytes out. There is no one grammar for such files; where programs differ on a line that matters, it is refused.

use sortie_protocol::ErrorCode;
use sortie_protocol::command::ini_ensure::Continued;

use crate::failure::Failure;
use crate::lines::{Edited, GoOn, Line, Lines, insert, line_end};

/// What is asked for, and how the file is to be read.
pub(crate) struct Ini<'a> {
    /// None: what is before the first section.
    pub(crate) section: Option<&'a str>,
    pub(crate) option: &'a str,
    pub(crate) inline_comments: bool,
    pub(crate) continued: Option<Continued>,
}

/// A line of the option.
struct Found {
    /// Where its line begins, and where what comes after it and all it goes on in.
    at: usize,
    after: usize,
    /// Where the name ends, and where the value begins and ends; without a separator all the same.
    name_end: usize,
    value: (usize, usize),
    separated: bool,
    /// It goes on in other lines.
    long: bool,
}

/// What a file has of it.
#[derive(Default)]
struct Seen {
    found: Vec<Found>,
    /// Where each section of the name begins and ends.
    sections: Vec<(usize, usize)>,
    /// Behind the last header or option of the section.
    last: Option<usize>,
    /// Behind the last comment that has the option in it.
    commented: Option<usize>,
    /// Indentation and separator of the last option with one, in the section, else in the file.
    style: (Vec<u8>, Vec<u8>),
}

/// The option that a line may go on from.
struct Entry {
    indent: usize,
    /// Whether it is one that is asked for.
    ours: bool,
    backslash: bool,
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn trim_end(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|b| !is_blank(*b)).map_or(0, |last| last + 1);
    &text[..end]
}

fn indent(text: &[u8]) -> usize {
    text.iter().take_while(|b| is_blank(**b)).count()
}

/// The name of a section, if the line is its header.
fn header(text: &[u8]) -> Option<&[u8]> {
    let inner = text.strip_prefix(b"[")?;
    let ends = |at: &usize| {
        let rest = &inner[at + 1..];
        matches!(rest[indent(rest)..].first(), None | Some(b'#' | b';'))
    };
    let end = (0..inner.len()).filter(|at| inner[*at] == b']').find(ends)?;
    let name = trim_end(&inner[..end]);
    Some(&name[indent(name)..])
}

impl Ini<'_> {
    /// The option with these values, none for the option alone.
    ///
    /// # Errors
    /// `CONFLICT` where it is not plain what lines of the option are.
    pub(crate) fn present(
        &self,
        content: &[u8],
        values: Option<&[&str]>,
        go_on: GoOn<'_>,
    ) -> Result<Edited, Failure> {
        let seen = self.read(content, go_on)?;
        let count = values.map_or(1, <[&str]>::len);
        let wanted = |at: usize| values.map_or("", |values| values[at]).as_bytes();
        let same = |(at, found): (usize, &Found)| {
            !found.long
                && found.separated == values.is_some()
                && &content[found.value.0..found.value.1] == wanted(at)
        };
        if seen.found.len() == count && seen.found.iter().enumerate().all(same) {
            return Ok(Edited::not("already_present"));
        }
        let (indent, separator) = &seen.style;
        let separator: &[u8] = match (values, separator.is_empty()) {
            (None, _) => b"",
            (_, true) => b"=",
            _ => separator,
        };
        let end = line_end(content);
        let line = |at: usize| [indent, self.option.as_bytes(), separator, wanted(at), end].concat();
        let Some(last) = seen.found.last() else {
            let lines = (0..count).map(line).collect::<Vec<_>>().concat();
            return Ok(self.insert(content, &seen, &lines));
        };
        let mut new = Vec::new();
        let mut done = 0;
        for (at, found) in seen.found.iter().enumerate() {
            let (from, to) = found.value;
            if at >= count {
                new.extend_from_slice(&content[done..found.at]);
            } else if same((at, found)) {
                new.extend_from_slice(&content[done..found.after]);
            } else {
                let nothing_yet = matches!(content.get(from), None | Some(b'\r' | b'\n'));
                let spaced = found.separated && nothing_yet && is_blank(content[found.name_end]);
                let (kept, between): (usize, &[u8]) = match values {
                    None => (found.name_end, b""),
                    Some(_) if !found.separated => (found.name_end, separator),
                    // `name =` would become `name =value`.
                    Some(_) if spaced && !is_blank(content[from - 1]) => (from, b" "),
                    Some(_) => (from, b""),
                };
                // An empty value had none between it and a comment.
                let apart: &[u8] = if matches!(content.get(to), Some(b'#' | b';')) { b" " } else { b"" };
                for part in [&content[done..kept], between, wanted(at), apart, &content[to..found.after]] {
                    new.extend_from_slice(part);
                }
            }
            done = found.after;
        }
        if count > seen.found.len() && !new.ends_with(b"\n") {
            new.extend_from_slice(end);
        }
        for at in seen.found.len()..count {
            new.extend_from_slice(&line(at));
        }
        Ok(Edited::new("replaced", &[&new, &content[last.after..]]))
    }

    /// No such option in the section.
    ///
    /// # Errors
    /// As [`Self::present`].
    pub(crate) fn absent(&self, content: &[u8], go_on: GoOn<'_>) -> Result<Edited, Failure> {
        let seen = self.read(content, go_on)?;
        Ok(without(content, seen.found.iter().map(|found| (found.at, found.after))))
    }

    /// The header of the section.
    ///
    /// # Errors
    /// As [`Self::present`].
    pub(crate) fn section_present(&self, content: &[u8], go_on: GoOn<'_>) -> Result<Edited, Failure> {
        let seen = self.read(content, go_on)?;
        match seen.sections.is_empty() {
            true => Ok(self.insert(content, &seen, b"")),
            false => Ok(Edited::not("already_present")),
        }
    }

    /// No such section, with all that is in it. Comments right above the next section are that one's.
    ///
    /// # Errors
    /// As [`Self::present`].
    pub(crate) fn section_absent(&self, content: &[u8], go_on: GoOn<'_>) -> Result<Edited, Failure> {
        let seen = self.read(content, go_on)?;
        let mut sections = seen.sections;
        if let Some((begin, end)) = sections.last_mut()
            && *end == content.len()
        {
            // The empty line that stood between it and what was before.
            for blank in [&b"\n\n"[..], b"\n\r\n"] {
                if content[..*begin].ends_with(blank) {
                    *begin -= blank.len() - 1;
                    break;
                }
            }
        }
        Ok(without(content, sections.into_iter()))
    }

    /// Puts lines into the section, which is made if it is not there.
    fn insert(&self, content: &[u8], seen: &Seen, lines: &[u8]) -> Edited {
        if let Some(at) = seen.commented.or(seen.last) {
            return insert(content, at, lines);
        }
        let Some(section) = self.section else {
            // Before the first section, if there is one.
            let begins = Lines::of(content).any(|line| header(&line.text[indent(line.text)..]).is_some());
            return insert(content, if begins { 0 } else { content.len() }, lines);
        };
        let end = line_end(content);
        let last = Lines::of(content).last();
        let blank: &[u8] = if last.is_some_and(|last| !trim_end(last.text).is_empty()) { end } else { b"" };
        insert(content, content.len(), &[blank, b"[", section.as_bytes(), b"]", end, lines].concat())
    }

    fn read(&self, content: &[u8], go_on: GoOn<'_>) -> Result<Seen, Failure> {
        let mut seen = Seen::default();
        let mut here = self.section.is_none();
        let mut entry: Option<Entry> = None;
        let mut styled_here = false;
        // Where the comments begin that stand right above what comes next, behind an empty line.
        let mut comments = None;
        let mut after_blank = true;
        for (index, line) in Lines::of(content).enumerate() {
            go_on()?;
            let ambiguous = || {
                let message = format!(
                    "line {}: some programs take it for the rest of the line above, some do not; nothing was changed. Say by `continued` which is right",
                    index + 1
                );
                Failure::new(ErrorCode::Conflict, message)
            };
            let depth = indent(line.text);
            let text = trim_end(&line.text[depth..]);
            let comment = matches!(text.first(), Some(b'#' | b';'));
            let name = header(text);
            if let Some(above) = &mut entry {
                let deeper = !text.is_empty() && !comment && depth > above.indent;
                let rest = match self.continued {
                    Some(Continued::Backslash) => above.backslash,
                    Some(Continued::Indent) => deeper,
                    Some(Continued::None) => false,
                    None => above.backslash || deeper,
                };
                if rest {
                    let option_here = here && self.separator(text).is_some();
                    if self.continued.is_none() && (above.ours || option_here || name.is_some()) {
                        return Err(ambiguous());
                    }
                    above.backslash = ends_with_backslash(line.text);
                    if here {
                        seen.last = Some(line.after());
                    }
                    if let Some(found) = seen.found.last_mut().filter(|_| above.ours) {
                        found.after = line.after();
                        found.value.1 = line.at + line.text.len();
                        found.long = true;
                    }
                    continue;
                }
            }
            entry = None;
            let is_begin_of_comments = comment && comments.is_none() && after_blank;
            if is_begin_of_comments {
                comments = Some(line.at);
            }
            after_blank = text.is_empty();
            if text.is_empty() {
                comments = None;
            } else if comment {
                let inner: &[u8] = &text[text.iter().take_while(|b| matches!(b, b'#' | b';')).count()..];
                if here && self.separator(&inner[indent(inner)..]).is_some_and(|found| found.0 < found.1) {
                    seen.commented = Some(line.after());
                }
            } else if let Some(name) = name {
                if here && let Some(open) = seen.sections.last_mut() {
                    open.1 = comments.unwrap_or(line.at);
                }
                here = self.section.is_some_and(|section| section.as_bytes() == name);
                if here {
                    seen.sections.push((line.at, content.len()));
                    seen.last = Some(line.after());
                }
                comments = None;
            } else {
                comments = None;
                let ours = self.option(content, line, depth, here, &mut seen);
                self.style(text, depth, line, here, &mut styled_here, &mut seen);
                if here {
                    seen.last = Some(line.after());
                }
                entry = Some(Entry { indent: depth, ours, backslash: ends_with_backslash(line.text) });
            }
        }
        Ok(seen)
    }

    /// Notes a line of the option, if it is one.
    fn option(&self, content: &[u8], line: Line<'_>, depth: usize, here: bool, seen: &mut Seen) -> bool {
        let begin = line.at + depth;
        let end = line.at + trim_end(line.text).len();
        let Some((name_end, separator_end)) = self.separator(&content[begin..end]).filter(|_| here) else {
            return false;
        };
        let separated = name_end < separator_end;
        let (mut from, mut to) = (begin + separator_end, begin + separator_end);
        if separated {
            from += indent(&content[from..line.at + line.text.len()]);
            to = from + self.value_length(&content[from..end.max(from)], from > to);
        }
        seen.found.push(Found {
            at: line.at,
            after: line.after(),
            name_end: begin + name_end,
            value: (from, to),
            separated,
            long: false,
        });
        true
    }

    /// Where the name of the option ends and its separator ends, if the text begins with the option; both at the same place where
    /// there is none.
    fn separator(&self, text: &[u8]) -> Option<(usize, usize)> {
        let name = self.option.len();
        let rest = text.strip_prefix(self.option.as_bytes()).filter(|_| name > 0)?;
        let blanks = indent(rest);
        match rest.get(blanks) {
            Some(b'=' | b':') => Some((name, name + blanks + 1)),
            None => Some((name, name)),
            Some(b'#' | b';') if self.inline_comments && blanks > 0 => Some((name, name)),
            Some(_) => None,
        }
    }

    /// How long the value is that the text begins with; `apart`: a blank is before it.
    fn value_length(&self, text: &[u8], apart: bool) -> usize {
        let mut quoted = false;
        let mut blank = apart;
        for (at, byte) in text.iter().enumerate() {
            if self.inline_comments && !quoted && blank && matches!(byte, b'#' | b';') {
                return trim_end(&text[..at]).len();
            }
            quoted ^= *byte == b'"' && !text[..at].ends_with(b"\\");
            blank = is_blank(*byte);
        }
        text.len()
    }

    /// Remembers how options are written.
    fn style(
        &self,
        text: &[u8],
        depth: usize,
        line: Line<'_>,
        here: bool,
        styled_here: &mut bool,
        seen: &mut Seen,
    ) {
        let Some(at) = text.iter().position(|b| *b == b'=') else { return };
        if *styled_here && !here {
            return;
        }
        *styled_here |= here;
        let name = trim_end(&text[..at]);
        let value = at + 1 + indent(&text[at + 1..]);
        // `name =` says nothing of what is between the two.
        if value < text.len() {
            seen.style = (line.text[..depth].to_vec(), text[name.len()..value].to_vec());
        }
    }
}

/// An odd number of them: two are one that stands for itself.
fn ends_with_backslash(text: &[u8]) -> bool {
    text.iter().rev().take_while(|b| **b == b'\\').count() % 2 == 1
}

/// The content without these parts of it, in order.
fn without(content: &[u8], parts: impl Iterator<Item = (usize, usize)>) -> Edited {
    let mut kept = Vec::new();
    let mut done = 0;
    for (begin, end) in parts {
        kept.extend_from_slice(&content[done..begin.max(done)]);
        done = end;
    }
    if done == 0 {
        return Edited::not("already_absent");
    }
    kept.extend_from_slice(&content[done..]);
    Edited { content: Some(kept), action: "removed" }
}

#[cfg(test)]
#[path = "ini_tests.rs"]
mod tests;
