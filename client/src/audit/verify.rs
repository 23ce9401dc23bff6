//! Reading a log and finding what is wrong with it. Knows the chain and the order of a session's records, and nothing of
//! terminals: what it quotes is escaped.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead};

use serde::Deserialize;

use super::chain::{self, Link};
use super::read::read_line;
use super::{LINE_LIMIT, VERSION};
use crate::error::printable;

/// Findings that are kept; of a file that is something else altogether every line is one.
const FINDINGS: usize = 1000;

/// What is wrong at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A line is not as it was written.
    Changed,
    /// Lines that stood here are gone.
    Missing,
    /// A line stands where another was written.
    Reordered,
    /// Bytes that are no line; the last ones where a writer died.
    Torn,
    /// What is no line of a log of this version.
    NotALog,
    /// A session has no end: it still goes on, its process died, or lines are gone.
    NoEnd,
    /// Records of a session that were never begun, or come after its end, or that it says are missing.
    Session,
    /// The hash that was kept is not in the log: its end was cut off, or it is another log.
    Head,
}

impl Problem {
    /// A name for programs, stable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Missing => "missing",
            Self::Reordered => "reordered",
            Self::Torn => "torn",
            Self::NotALog => "not_a_log",
            Self::NoEnd => "no_end",
            Self::Session => "session",
            Self::Head => "head",
        }
    }
}

/// Something that is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its line, from 1.
    pub line: u64,
    /// What kind of thing.
    pub problem: Problem,
    /// In words.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

/// What a log was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// Lines that are sound by themselves.
    pub records: u64,
    /// Sessions that were begun.
    pub sessions: u64,
    /// Hash of the last line that is sound by itself: what to keep elsewhere. Empty where there is none.
    pub head: String,
    /// What is wrong, in the order of the lines; at most 1000.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more: u64,
    /// What is as it should be and yet good to know: lines that were torn and are named by the next one.
    pub notes: Vec<Finding>,
}

impl Verification {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    fn note(&mut self, line: u64, problem: Problem, text: impl Into<String>) {
        if self.notes.len() < FINDINGS {
            self.notes.push(Finding { line, problem, text: text.into() });
        }
    }

    fn find(&mut self, line: u64, problem: Problem, text: impl Into<String>) {
        if self.findings.len() < FINDINGS {
            self.findings.push(Finding { line, problem, text: text.into() });
        } else {
            self.more += 1;
        }
    }
}

/// The members that every line has, and those that the order of records hangs on.
#[derive(Deserialize)]
struct Envelope {
    seq: u64,
    record: String,
    prev: String,
    #[serde(default)]
    session: String,
    #[serde(default)]
    version: u32,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    sha256: String,
    #[serde(default)]
    unrecorded: u64,
}

/// A session as far as it was read.
struct Session {
    line: u64,
    ended: bool,
}

/// Reads a whole log. `head` is a hash that was kept when the log ended in it, or before: 64 hexadecimal digits.
///
/// # Errors
/// It cannot be read.
pub fn verify(log: impl BufRead, head: Option<&str>) -> io::Result<Verification> {
    let mut reader = Reader {
        found: Verification::default(),
        last: Link::none(),
        line: 0,
        torn: None,
        sessions: HashMap::new(),
        head_seen: head.is_none(),
    };
    reader.read(log, head)?;
    Ok(reader.found)
}

struct Reader {
    found: Verification,
    /// The last line that is sound by itself.
    last: Link,
    line: u64,
    /// A line that is none, and that the next may name: where, how long, which digest.
    torn: Option<(u64, u64, String)>,
    sessions: HashMap<String, Session>,
    head_seen: bool,
}

impl Reader {
    fn read(&mut self, mut log: impl BufRead, head: Option<&str>) -> io::Result<()> {
        let mut bytes = Vec::new();
        while let Some(whole) = read_line(&mut log, &mut bytes)? {
            self.line += 1;
            self.take(&bytes, whole);
            if head == Some(&self.last.hash) {
                self.head_seen = true;
            }
        }
        self.settle_torn();
        if self.found.records == 0 {
            self.found.find(self.line.max(1), Problem::NotALog, "there is no line of an audit log in it");
        }
        let mut open: Vec<_> = self.sessions.iter().filter(|(_, session)| !session.ended).collect();
        open.sort_by_key(|(_, session)| session.line);
        for (id, session) in open {
            let text = format!(
                "session {} has no end: it still goes on, its process died, or lines are gone",
                shown(id)
            );
            self.found.find(session.line, Problem::NoEnd, text);
        }
        if !self.head_seen {
            let text = "the head that was kept is not in the log: lines after it were cut off or changed, or this is \
                        another log";
            self.found.find(self.line.max(1), Problem::Head, text);
        }
        self.found.head.clone_from(&self.last.hash);
        if self.found.records == 0 {
            self.found.head.clear();
        }
        Ok(())
    }

    fn take(&mut self, line: &[u8], whole: bool) {
        let Some((body, hash)) = chain::split(line) else { return self.no_line(line, whole) };
        let Ok(envelope) = serde_json::from_slice::<Envelope>(line) else {
            return self.no_line(line, whole);
        };
        if chain::digest(body) != hash {
            self.settle_torn();
            self.found.find(self.line, Problem::Changed, "it was changed: its hash is that of another line");
            // What comes after it is not to be blamed for it: it hangs on the hash and the session that stood here.
            match envelope.record.as_str() {
                "session" => {
                    self.sessions.insert(envelope.session, Session { line: self.line, ended: false });
                }
                "end" => {
                    if let Some(session) = self.sessions.get_mut(&envelope.session) {
                        session.ended = true;
                    }
                }
                _ => {}
            }
            self.last = Link { seq: envelope.seq, hash: hash.to_owned() };
            return;
        }
        self.found.records += 1;
        if !whole {
            let text = "its newline is missing: whoever wrote it died, and nobody has written since";
            self.found.note(self.line, Problem::Torn, text);
        }
        self.check_place(&envelope);
        self.check_record(&envelope);
        self.last = Link { seq: envelope.seq, hash: hash.to_owned() };
    }

    fn no_line(&mut self, line: &[u8], whole: bool) {
        self.settle_torn();
        if !whole && (line.len() as u64) < LINE_LIMIT {
            let text = format!(
                "torn: {} bytes without an end. Whoever wrote it died; what it was about to record was not sent, or not \
                 answered to its caller",
                line.len()
            );
            return self.found.find(self.line, Problem::Torn, text);
        }
        self.torn = Some((self.line, line.len() as u64, chain::digest(line)));
    }

    /// A line that is none was not named by the one after it.
    fn settle_torn(&mut self) {
        if let Some((line, ..)) = self.torn.take() {
            self.found.find(
                line,
                Problem::Changed,
                "it is no line of an audit log, and no later one names it",
            );
        }
    }

    fn check_place(&mut self, envelope: &Envelope) {
        let due = self.last.seq + 1;
        let follows = envelope.prev == self.last.hash;
        if follows && envelope.seq == due {
            return;
        }
        let (problem, text) = match envelope.seq {
            seq if seq > due => {
                let count = seq - due;
                let before = if self.last.seq == 0 { "at the beginning" } else { "before it" };
                (
                    Problem::Missing,
                    format!("{count} missing {before}: it is number {seq}, where {due} was due"),
                )
            }
            seq if seq < due => {
                (Problem::Reordered, format!("it is number {seq}, where {due} was due: moved here, or twice"))
            }
            _ => (Problem::Changed, "the line before it is not the one that stood there".to_owned()),
        };
        self.found.find(self.line, problem, text);
    }

    fn check_record(&mut self, envelope: &Envelope) {
        if envelope.record != "log" {
            if envelope.record == "torn" {
                return self.name_torn(envelope);
            }
            self.settle_torn();
        }
        let (line, id) = (self.line, &envelope.session);
        match envelope.record.as_str() {
            "log" if envelope.version > VERSION => {
                let text = format!("it is of version {}, and {VERSION} is understood", envelope.version);
                self.found.find(line, Problem::NotALog, text);
            }
            "log" if envelope.seq == 1 => {}
            "log" => self.found.find(line, Problem::Reordered, "another log begins here"),
            "session" => {
                self.found.sessions += 1;
                let session = Session { line, ended: false };
                if self.sessions.insert(id.clone(), session).is_some() {
                    let text = format!("session {} begins a second time", shown(id));
                    self.found.find(line, Problem::Session, text);
                }
            }
            // Of a kind that a later version has, and of no session.
            _ if id.is_empty() => {}
            kind => {
                let text = match self.sessions.get_mut(id) {
                    None => Some("never began"),
                    Some(session) if session.ended => Some("has ended before"),
                    Some(session) => {
                        session.ended = kind == "end";
                        None
                    }
                };
                if let Some(text) = text {
                    self.found.find(line, Problem::Session, format!("session {} {text}", shown(id)));
                }
                if envelope.unrecorded > 0 {
                    let count = envelope.unrecorded;
                    let text = format!("session {}: {count} records could not be written", shown(id));
                    self.found.find(line, Problem::Session, text);
                }
            }
        }
        if self.last.seq == 0 && envelope.record != "log" && envelope.seq == 1 {
            self.found.find(line, Problem::NotALog, "the first line of a log is missing");
        }
    }

    fn name_torn(&mut self, envelope: &Envelope) {
        let named = |(_, bytes, digest): &(u64, u64, String)| {
            (*bytes, digest.as_str()) == (envelope.bytes, envelope.sha256.as_str())
        };
        match self.torn.take() {
            Some(torn) if named(&torn) => {
                let (line, bytes, _) = torn;
                let text = format!("torn: {bytes} bytes, named by line {}; whoever wrote it died", self.line);
                self.found.note(line, Problem::Torn, text);
            }
            torn => {
                self.torn = torn;
                self.settle_torn();
                let text = "it names a torn line before it, and there is another one or none";
                self.found.find(self.line, Problem::Changed, text);
            }
        }
    }
}

/// Anybody may have written what is read here.
fn shown(id: &str) -> String {
    printable(id.as_bytes(), 64)
}
