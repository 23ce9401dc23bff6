//! One log file as a chain of lines: opening it, finding its end, and adding to it under a lock. Knows what a line is
//! made of, and nothing of what it tells.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use sortie_protocol::Sha256Hex;
use sortie_protocol::time::Timestamp;

use super::{AuditError, LINE_LIMIT, Record, VERSION};

/// What the first line of a log says of the one before it.
pub(super) const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// What stands in every line before its hash, and after it.
const BEFORE_HASH: &str = ",\"hash\":\"";
const AFTER_HASH: &str = "\"}";
/// How every log begins.
const BEGINNING: &[u8] = b"{\"seq\":1,";
/// How long another process may hold the lock: it holds it for one write.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked whether the lock is free. A blocking call could not be given up.
const LOCK_STEP: Duration = Duration::from_millis(5);
/// How much is read at a time to find the last line.
const BLOCK: u64 = 64 * 1024;

/// A line's number, and its hash: all that the next one has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) hash: String,
}

impl Link {
    /// Before the first line.
    pub(super) fn none() -> Self {
        Self { seq: 0, hash: NO_HASH.to_owned() }
    }
}

/// The line that follows `before`, without its newline, and what the next one has to know of it. `record` is a JSON
/// object that is not empty.
pub(super) fn line(before: &Link, time: Timestamp, record: &str) -> (String, Link) {
    let seq = before.seq + 1;
    let members = record.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(record);
    let mut line = format!("{{\"seq\":{seq},\"time\":\"{time}\",{members},\"prev\":\"{}\"", before.hash);
    let hash = digest(line.as_bytes());
    line.push_str(BEFORE_HASH);
    line.push_str(&hash);
    line.push_str(AFTER_HASH);
    (line, Link { seq, hash })
}

/// A line without its newline, taken apart into what is hashed and the hash; `None` if it does not end in one.
pub(super) fn split(line: &[u8]) -> Option<(&[u8], &str)> {
    let rest = line.strip_suffix(AFTER_HASH.as_bytes())?;
    let (body, hash) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    let body = body.strip_suffix(BEFORE_HASH.as_bytes())?;
    let hash = std::str::from_utf8(hash).ok()?;
    hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).then_some((body, hash))
}

/// SHA-256 in 64 hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256Hex::from_bytes(&Sha256::digest(bytes).into()).to_string()
}

/// What the next line has to know of this one, if it is sound by itself; and what it says of the one before.
fn link_of(line: &[u8]) -> Option<(Link, String)> {
    #[derive(serde::Deserialize)]
    struct Numbered {
        seq: u64,
        prev: String,
    }
    let (body, hash) = split(line)?;
    let Numbered { seq, prev } = serde_json::from_slice(line).ok()?;
    (digest(body) == hash && seq > 0).then(|| (Link { seq, hash: hash.to_owned() }, prev))
}

/// A log that is open for adding to it.
pub(super) struct Chain {
    path: PathBuf,
    file: File,
    /// Where the file ended when this process last wrote, and what its last line was.
    known: Option<(u64, Link)>,
}

/// What stands at the end of a log.
struct Tail {
    last: Link,
    /// Bytes that are no line: somebody died while writing them.
    torn: Vec<u8>,
    /// The last line, or what is torn, has no newline after it.
    open: bool,
}

impl Chain {
    /// Opens a log, or makes one with mode 0600. No line is written yet.
    pub(super) fn open(path: &Path) -> Result<Self, AuditError> {
        let fail = |reason: String| AuditError { file: path.to_owned(), reason };
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| fail(format!("it cannot be opened for reading and writing: {error}")))?;
        let metadata = file.metadata().map_err(|error| fail(error.to_string()))?;
        if !metadata.is_file() {
            return Err(fail("it is no regular file".into()));
        }
        let mode = metadata.permissions().mode();
        if mode & 0o022 != 0 {
            return Err(fail(format!(
                "others may write to it (mode {:04o}), so it would prove nothing; chmod go-w it",
                mode & 0o7777
            )));
        }
        let mut chain = Self { path: path.to_owned(), file, known: None };
        // That it is another kind of file is to be found out before anything is done.
        chain.locked(|chain| chain.tail().map(drop))?;
        Ok(chain)
    }

    /// Adds all `records`, each with its time, or none of them. They are on the disk when this returns.
    pub(super) fn append(&mut self, records: &[(Timestamp, String)]) -> Result<(), AuditError> {
        self.locked(|chain| chain.append_locked(records))
    }

    fn append_locked(&mut self, records: &[(Timestamp, String)]) -> Result<(), AuditError> {
        let Some(&(now, _)) = records.first() else { return Ok(()) };
        let length = self.length()?;
        let Tail { last: mut link, torn, open } = match self.known.take() {
            Some((known, last)) if known == length => Tail { last, torn: Vec::new(), open: false },
            _ => self.tail()?,
        };
        let mut text = String::from(if open { "\n" } else { "" });
        let begins = link.seq == 0;
        let mut add = |time: Timestamp, record: &str| {
            let (line, next) = line(&link, time, record);
            text.push_str(&line);
            text.push('\n');
            link = next;
        };
        if begins {
            add(now, &self.json(&Record::Log { version: VERSION, log: self.random()? })?);
        }
        if !torn.is_empty() {
            add(now, &self.json(&Record::Torn { bytes: torn.len() as u64, sha256: digest(&torn) })?);
        }
        for (time, record) in records {
            add(*time, record);
        }
        if let Err(error) = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data()) {
            // What was begun is taken back where that can be; else the next writer names it as torn.
            let _ = self.file.set_len(length);
            return Err(self.fail(format!("it cannot be written: {error}")));
        }
        self.known = Some((length + text.len() as u64, link));
        Ok(())
    }

    /// Finds the last line, and what comes after it.
    fn tail(&mut self) -> Result<Tail, AuditError> {
        let length = self.length()?;
        let mut bytes = Vec::new();
        let mut begin = length;
        // Backwards until a whole line is there: a newline that ends it, and one before it or the beginning.
        while begin > 0 && bytes.iter().filter(|&&b| b == b'\n').count() < 2 {
            if bytes.len() as u64 > 2 * LINE_LIMIT {
                return Err(self.not_a_log("its last line has no end"));
            }
            let size = begin.min(BLOCK);
            begin -= size;
            let mut block = vec![0; usize::try_from(size).unwrap_or_default()];
            self.file
                .seek(SeekFrom::Start(begin))
                .and_then(|_| self.file.read_exact(&mut block))
                .map_err(|error| self.fail(format!("it cannot be read: {error}")))?;
            block.extend_from_slice(&bytes);
            bytes = block;
        }
        let (last, rest) = match bytes.iter().rposition(|&b| b == b'\n') {
            Some(end) => {
                let begin = bytes[..end].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
                let (last, _) = link_of(&bytes[begin..end])
                    .ok_or_else(|| self.not_a_log("its last line is no line of one, or was changed"))?;
                (last, &bytes[end + 1..])
            }
            None if bytes.starts_with(BEGINNING) || BEGINNING.starts_with(&bytes) => {
                (Link::none(), &bytes[..])
            }
            None => return Err(self.not_a_log("it does not begin as one")),
        };
        Ok(match link_of(rest) {
            // All of it was written but its newline.
            Some((link, prev)) if prev == last.hash => Tail { last: link, torn: Vec::new(), open: true },
            _ => Tail { last, torn: rest.to_vec(), open: !rest.is_empty() },
        })
    }

    fn length(&self) -> Result<u64, AuditError> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(|error| self.fail(error.to_string()))
    }

    fn locked<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, AuditError>) -> Result<T, AuditError> {
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            match self.file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_STEP),
                Err(TryLockError::WouldBlock) => {
                    let limit = LOCK_LIMIT.as_secs();
                    return Err(self.fail(format!(
                        "another process has held its lock for {limit} s; see who has it open"
                    )));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(self.fail(format!("it cannot be locked: {error}")));
                }
            }
        }
        let result = work(self);
        // Fails only where there is no lock any more.
        let _ = self.file.unlock();
        result
    }

    fn json(&self, record: &Record) -> Result<String, AuditError> {
        serde_json::to_string(record).map_err(|error| self.unwritable(&error))
    }

    /// A record that is no JSON.
    pub(super) fn unwritable(&self, error: &serde_json::Error) -> AuditError {
        self.fail(format!("a record cannot be written: {error}"))
    }

    fn random(&self) -> Result<String, AuditError> {
        super::random_id().map_err(|reason| self.fail(reason))
    }

    fn not_a_log(&self, why: &str) -> AuditError {
        self.fail(format!(
            "it is no audit log that can be gone on with ({why}); see what `sortie audit verify` says of it, or name \
             another file"
        ))
    }

    fn fail(&self, reason: String) -> AuditError {
        AuditError { file: self.path.clone(), reason }
    }
}
