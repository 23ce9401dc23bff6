//! What a step writes that stands in a file of its own on this machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::problem::{Problem, ProblemKind};
use super::source::Node;

/// Longest content that travels in the command itself, in bytes.
pub(super) const INLINE: usize = 1024 * 1024;
/// Longest template, in bytes.
const MOST_TEMPLATE: u64 = 16 * 1024 * 1024;

/// Where content comes from.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// The text of a template.
    Template { file: Arc<Path>, text: Arc<str> },
    /// The bytes of a file.
    File(LocalFile),
}

/// A file that was opened before anything ran.
#[derive(Debug, Clone)]
pub(super) struct LocalFile {
    pub(super) path: Arc<Path>,
    file: Arc<File>,
    pub(super) len: u64,
}

impl LocalFile {
    /// A piece of it, at most `most` bytes; an error where the file has become shorter.
    pub(super) fn piece(&self, offset: u64, most: usize) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.len - offset.min(self.len)).unwrap_or(usize::MAX).min(most);
        let mut piece = vec![0; length];
        self.file.read_exact_at(&mut piece, offset)?;
        Ok(piece)
    }
}

fn open(named: &Node, directory: &Path) -> Result<(Arc<Path>, File, u64), Problem> {
    let path = directory.join(named.text()?);
    let wrong =
        |why: &dyn std::fmt::Display| named.problem(ProblemKind::File, format!("{}: {why}", path.display()));
    let file = File::open(&path).map_err(|error| wrong(&error))?;
    let metadata = file.metadata().map_err(|error| wrong(&error))?;
    if !metadata.is_file() {
        return Err(wrong(&"it is no regular file"));
    }
    Ok((path.into(), file, metadata.len()))
}

/// Opens the file that `named` names.
pub(super) fn file(named: &Node, directory: &Path) -> Result<LocalFile, Problem> {
    let (path, file, len) = open(named, directory)?;
    Ok(LocalFile { path, file: Arc::new(file), len })
}

/// Reads the template that `named` names.
pub(super) fn template(named: &Node, directory: &Path) -> Result<(Arc<Path>, Arc<str>), Problem> {
    let (path, file, len) = open(named, directory)?;
    let wrong = |why: String| named.problem(ProblemKind::File, format!("{}: {why}", path.display()));
    if len > MOST_TEMPLATE {
        return Err(wrong(format!("{len} bytes, more than the {MOST_TEMPLATE} of a template")));
    }
    let text = io::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    Ok((path, text.into()))
}
