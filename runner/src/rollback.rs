//! What is put back when a change fails, is not confirmed, or loses its server half way: files, and a line of shell that has the old ones
//! take effect.
//!
//! Whoever is left can do it, more than once and from any point: what is back already is passed over.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::{fd, process};

/// Bytes before each order to the guardian: how long it is, and of which rollback, each a number in the machine's order.
const HEADER: usize = 8;

/// A way back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rollback {
    /// The copy of what a file was, and the file. Without a copy there was no file.
    pub(crate) files: Vec<(Option<PathBuf>, PathBuf)>,
    /// For `sh -c`.
    pub(crate) script: String,
}

/// The server's end of the pipe to the guardian.
static GUARDIAN: OnceLock<OwnedFd> = OnceLock::new();

/// To be called once, in the server.
pub(crate) fn set_guardian(orders: OwnedFd) {
    let _ = GUARDIAN.set(orders);
}

/// The guardian does it when the server is gone. Dropped, it stays so.
#[must_use]
pub(crate) struct Armed(u32);

impl Armed {
    /// What was done stands.
    pub(crate) fn disarm(self) {
        // Fails only when the guardian is gone, who would be the one to act.
        let _ = order(self.0, &[]);
    }
}

/// Tells the guardian. It reads when it can; what is in the pipe it reads even after the server's death, and half an order counts
/// for nothing.
fn order(id: u32, text: &[u8]) -> io::Result<()> {
    let guardian = GUARDIAN.get().ok_or_else(|| io::Error::other("no guardian"))?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    let order = [&length.to_ne_bytes(), &id.to_ne_bytes(), text].concat();
    let mut rest = &order[..];
    while !rest.is_empty() {
        let written = fd::write(guardian, rest)?;
        rest = &rest[written..];
    }
    Ok(())
}

/// What the guardian was told to do should the server go.
#[derive(Default)]
pub(crate) struct Orders {
    unread: Vec<u8>,
    armed: Vec<(u32, Rollback)>,
}

impl Orders {
    /// Takes in what is in the pipe, which must not block; false at its end.
    pub(crate) fn read(&mut self, pipe: &OwnedFd) -> bool {
        let mut buffer = [0; 512];
        loop {
            match fd::read(pipe, &mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
            while self.take_one() {}
        }
    }

    fn take_one(&mut self) -> bool {
        let number = |at: usize| {
            let bytes = self.unread.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let (Some(length), Some(id)) = (number(0), number(4)) else { return false };
        let end = HEADER + length as usize;
        let Some(text) = self.unread.get(HEADER..end) else { return false };
        if text.is_empty() {
            self.armed.retain(|(armed, _)| *armed != id);
        } else {
            self.armed.push((id, Rollback::decode(text)));
        }
        self.unread.drain(..end);
        true
    }

    /// The server is gone: does what is armed, the last first.
    pub(crate) fn fire(&mut self) {
        while let Some((_, rollback)) = self.armed.pop() {
            // Nobody is left to tell.
            let _ = rollback.perform();
        }
    }
}

impl Rollback {
    /// From now on until it is disarmed the guardian does this if the server dies.
    ///
    /// # Errors
    /// The guardian is gone.
    pub(crate) fn arm(&self) -> io::Result<Armed> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        order(id, &self.encode())?;
        Ok(Armed(id))
    }

    /// The line, then copy and file in turns, each with a NUL at its end; a copy that is not there is empty.
    fn encode(&self) -> Vec<u8> {
        let mut text = self.script.clone().into_bytes();
        for (copy, file) in &self.files {
            let copy = copy.as_ref().map_or(OsStr::new(""), |copy| copy.as_os_str());
            for path in [copy, file.as_os_str()] {
                text.push(0);
                text.extend_from_slice(path.as_bytes());
            }
        }
        text
    }

    fn decode(text: &[u8]) -> Self {
        let mut fields = text.split(|&b| b == 0);
        let script = String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let mut files = Vec::new();
        while let (Some(copy), Some(file)) = (fields.next(), fields.next()) {
            files.push(((!copy.is_empty()).then(|| path(copy)), path(file)));
        }
        Self { files, script }
    }

    /// Puts everything back; the copies are gone afterwards.
    ///
    /// # Errors
    /// What could not be put back. The rest is all the same.
    pub(crate) fn perform(&self) -> io::Result<()> {
        let mut result = Ok(());
        for (copy, file) in &self.files {
            let done = match copy {
                Some(copy) => fs::rename(copy, file),
                None => fs::remove_file(file),
            };
            match done {
                // Done already, by somebody who was interrupted.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => result = Err(error),
                Ok(()) => {}
            }
        }
        let script = CString::new(self.script.as_str()).unwrap_or_default();
        process::run_shell(&script)?;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollback(directory: &std::path::Path) -> Rollback {
        Rollback {
            files: vec![
                (Some(directory.join("a.bak")), directory.join("a")),
                (None, directory.join("new")),
                (Some(directory.join("gone.bak")), directory.join("c")),
            ],
            script: format!("echo ran >> {}/ran", directory.display()),
        }
    }

    fn order(id: u32, text: &[u8]) -> Vec<u8> {
        [&u32::try_from(text.len()).unwrap().to_ne_bytes()[..], &id.to_ne_bytes(), text].concat()
    }

    #[test]
    fn everything_is_put_back_from_wherever_it_was_left() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (name, text) in [("a", "new"), ("a.bak", "old"), ("new", "new"), ("c", "old already")] {
            fs::write(at(name), text).unwrap();
        }
        for _ in 0..2 {
            rollback(directory.path()).perform().unwrap();
            assert_eq!(fs::read_to_string(at("a")).unwrap(), "old");
            assert_eq!(fs::read_to_string(at("c")).unwrap(), "old already");
            assert!(!at("new").exists() && !at("a.bak").exists());
        }
        assert_eq!(fs::read_to_string(at("ran")).unwrap(), "ran\nran\n");
    }

    #[test]
    fn orders_come_in_any_pieces_and_half_an_order_is_none() {
        let wanted = rollback(std::path::Path::new("/x"));
        let text = wanted.encode();
        let bytes = [order(1, &text), order(2, &text), order(1, &[]), order(3, &text)].concat();
        let cut = bytes.len() - 1;
        let (read, write) = fd::pipe().unwrap();
        fd::set_nonblocking(&read).unwrap();
        let mut orders = Orders::default();
        for piece in bytes[..cut].chunks(7) {
            fd::write(&write, piece).unwrap();
            assert!(orders.read(&read));
        }
        drop(write);
        assert!(!orders.read(&read));
        assert_eq!(orders.armed, [(2, wanted)]);
    }
}
