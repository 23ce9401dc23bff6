//! The one way to replace a file: written beside it under another name, made durable, renamed over it.
//!
//! A crash at any moment leaves the old file or the new one. Knows nothing of where the content comes from.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::attributes::Attributes;
use crate::failure::Failure;
use crate::locks::Held;
use crate::path;
use crate::sys::{fd, file, host};

/// How the names of files that are being written begin; nothing else does.
pub(crate) const TEMPORARY: &str = ".sortie-tmp-";

/// The same of copies of old files, until they are whole.
const BACKUP: &str = ".sortie-bak-";

/// Bytes copied at a time.
const CHUNK: usize = 64 * 1024;

/// A new content on its way to its place. Dropped before [`Replacement::commit`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct Replacement {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl Replacement {
    /// An empty file beside `target`, for nobody but this user.
    pub(crate) fn begin(target: &Path) -> Result<Self, Failure> {
        let random = host::random_id().map_err(|error| Failure::io("no random number", &error))?;
        Self::begin_as(target, target.with_file_name(format!("{TEMPORARY}{random}")))
    }

    /// The same by whoever holds the right to change `target`, so that [`clear`] finds it should this run be killed.
    pub(crate) fn begin_held(target: &Path, held: &Held) -> Result<Self, Failure> {
        let temporary = beside(target, held, TEMPORARY)?;
        // Where somebody else has made a file of that name, it is another name.
        Self::begin_as(target, temporary).or_else(|_| Self::begin(target))
    }

    /// The same under a name that the caller chose, in the directory of `target`; nothing may be there.
    pub(crate) fn begin_as(target: &Path, temporary: PathBuf) -> Result<Self, Failure> {
        let file = create_new(&temporary)
            .map_err(|error| Failure::at("cannot make a file in the directory of", target, &error))?;
        Ok(Self { file, temporary, target: target.to_owned(), committed: false })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| Failure::at("cannot write", &self.target, &error))
    }

    /// Owner, mode, and what the old file had besides; then everything to the disk.
    pub(crate) fn finish(&mut self, attributes: Attributes, old: Option<&File>) -> Result<(), Failure> {
        let failed = |what: &str, error: &io::Error| Failure::at(what, &self.target, error);
        // Twice: attributes such as ACLs change the mode, and only the owner may set them.
        attributes
            .apply(&self.file)
            .map_err(|error| failed("cannot set owner, group and mode of", &error))?;
        if let Some(old) = old {
            file::copy_attributes(old, &self.file)
                .map_err(|error| failed("cannot keep the ACL and attributes of", &error))?;
            attributes
                .apply(&self.file)
                .map_err(|error| failed("cannot set owner, group and mode of", &error))?;
        }
        self.file.sync_all().map_err(|error| failed("cannot write to disk", &error))
    }

    /// Where the new content is, for a program that checks it.
    pub(crate) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Takes effect: from here on the new file is there, and durably so once this returned.
    pub(crate) fn commit(mut self) -> Result<(), Failure> {
        fs::rename(&self.temporary, &self.target).map_err(|error| {
            let hint = match error.raw_os_error() {
                Some(libc::EBUSY) => " (a mount point cannot be replaced)",
                _ => "",
            };
            Failure::io(format!("cannot replace {:?}{hint}", self.target), &error)
        })?;
        self.committed = true;
        sync_directory_of(&self.target)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A path beside `target` for what is on its way there; see [`path::temporary`].
fn beside(target: &Path, held: &Held, prefix: &str) -> Result<PathBuf, Failure> {
    Ok(target.with_file_name(path::temporary(target.file_name().unwrap_or_default(), held, prefix)?))
}

/// Removes what a run that was killed left on its way to `target`.
pub(crate) fn clear(target: &Path, held: &Held) -> Result<(), Failure> {
    if held.is_alone() {
        for prefix in [TEMPORARY, BACKUP] {
            let _ = fs::remove_file(beside(target, held, prefix)?);
        }
    }
    Ok(())
}

fn create_new(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Makes names in the directory durable; file systems that cannot are passed over.
pub(crate) fn sync_directory_of(path: &Path) -> Result<(), Failure> {
    let Some(directory) = directory_of(path) else { return Ok(()) };
    match File::open(directory).and_then(|directory| directory.sync_all()) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::EACCES | libc::EINVAL)) => Err(Failure::io(
            format!("the new {path:?} is in place, but its directory could not be written to disk"),
            &error,
        )),
        _ => Ok(()),
    }
}

/// The directory of a path, `.` for a bare name.
pub(crate) fn directory_of(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

/// As [`copy`], of the file that `held` is about to replace: `to` is there once it is whole.
pub(crate) fn back_up(from: &File, target: &Path, held: &Held, to: &Path) -> Result<(), Failure> {
    let temporary = beside(target, held, BACKUP)?;
    copy(from, &temporary)?;
    fs::rename(&temporary, to).map_err(|error| Failure::at("cannot make the backup", to, &error))?;
    sync_directory_of(to)
}

/// Copies a file with owner, mode and attributes to a path that must not exist.
pub(crate) fn copy(from: &File, to: &Path) -> Result<(), Failure> {
    let failed = |error: &io::Error| Failure::at("cannot make the backup", to, error);
    let mut copy = create_new(to).map_err(|error| failed(&error))?;
    let result = (|| {
        let mut buffer = vec![0; CHUNK];
        loop {
            match fd::read(from, &mut buffer)? {
                0 => break,
                count => copy.write_all(&buffer[..count])?,
            }
        }
        let attributes = Attributes::of(&from.metadata()?);
        attributes.apply(&copy)?;
        file::copy_attributes(from, &copy)?;
        attributes.apply(&copy)?;
        copy.sync_all()
    })();
    result.map_err(|error| {
        let _ = fs::remove_file(to);
        failed(&error)
    })?;
    sync_directory_of(to)
}
