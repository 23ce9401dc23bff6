//! What is put back when a change fails, is not confirmed, or loses its server half way: files, and a line of shell that has the old ones
//! take effect.
//!
//! Whoever is left can do it, more than once and from any point: what is back already is passed over.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::PathBuf;

use crate::sys::process;

/// A way back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rollback {
    /// The copy of what a file was, and the file. Without a copy there was no file.
    pub(crate) files: Vec<(Option<PathBuf>, PathBuf)>,
    /// For `sh -c`.
    pub(crate) script: String,
}

impl Rollback {
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
