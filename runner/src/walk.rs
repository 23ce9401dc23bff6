//! A directory with all that is below it, gone through by descriptors: whatever is moved, or made a symbolic link, meanwhile, what
//! is visited is what was found, and nothing outside.
//!
//! Two directories are open at a time, however deep the tree is. Knows nothing of what is done to what it finds.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sortie_protocol::ErrorCode;

use crate::failure::Failure;
use crate::sys::at;

/// How often a directory is gone through that was not left empty by those that removed its entries: reading and removing at
/// the same time may pass over some.
const MOST_TRIES: u8 = 8;

/// What is done to what is found. Directories come after all that is in them. `path` is for messages.
pub(crate) trait Visitor {
    /// A directory is about to be gone through.
    fn enter(&mut self, directory: &File, path: &Path) -> Result<(), Failure>;
    /// Something that is no directory.
    fn leaf(&mut self, parent: &File, name: &CStr, path: &Path) -> Result<(), Failure>;
    /// A directory that was gone through; false to go through it again.
    fn leave(&mut self, parent: &File, name: &CStr, directory: &File, path: &Path) -> Result<bool, Failure>;
    /// Another file system, or another part of one, is mounted there: it is not entered.
    fn mount_point(&mut self, path: &Path) -> Result<(), Failure>;
}

/// A directory on the way down.
struct Level {
    /// Device and inode, to find it again on the way up.
    id: (u64, u64),
    name: CString,
    /// What may be directories in it, still to be entered.
    pending: Vec<CString>,
    tries: u8,
}

/// Goes through all that is below the directory `top`, whose path is `path`.
///
/// # Errors
/// What the visitor says; a directory that cannot be read; `CONFLICT` for one that was moved away meanwhile.
pub(crate) fn walk(top: File, path: &mut PathBuf, visitor: &mut dyn Visitor) -> Result<(), Failure> {
    let mount = at::mount_of(&top).map_err(|error| failed(path, &error))?;
    let mut current = top;
    let mut levels = vec![enter(&current, CString::default(), 0, path, visitor)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            path.push(OsStr::from_bytes(name.to_bytes()));
            match at::directory_in(&current, &name) {
                Ok(below) => {
                    if at::mount_of(&below).map_err(|error| failed(path, &error))? == mount {
                        let tries = std::mem::take(&mut level.tries);
                        levels.push(enter(&below, name, tries, path, visitor)?);
                        current = below;
                        continue;
                    }
                    visitor.mount_point(path)?;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOTDIR | libc::ELOOP) => visitor.leaf(&current, &name, path)?,
                    // Somebody else was faster.
                    Some(libc::ENOENT) => {}
                    _ => return Err(failed(path, &error)),
                },
            }
            path.pop();
        } else {
            let Some(left) = levels.pop() else { break };
            let Some(above) = levels.last_mut() else { break };
            let parent = at::directory_in(&current, c"..").map_err(|error| failed(path, &error))?;
            if id(&parent).map_err(|error| failed(path, &error))? != above.id {
                let message = format!("{path:?} was moved elsewhere while it was gone through");
                return Err(Failure::new(ErrorCode::Conflict, message));
            }
            if !visitor.leave(&parent, &left.name, &current, path)? {
                if left.tries == MOST_TRIES {
                    return Err(failed(path, &io::Error::from_raw_os_error(libc::ENOTEMPTY)));
                }
                above.tries = left.tries + 1;
                above.pending.push(left.name);
            }
            current = parent;
            path.pop();
        }
    }
    Ok(())
}

fn enter(
    directory: &File,
    name: CString,
    tries: u8,
    path: &mut PathBuf,
    visitor: &mut dyn Visitor,
) -> Result<Level, Failure> {
    visitor.enter(directory, path)?;
    let mut pending = Vec::new();
    for entry in at::entries(directory).map_err(|error| failed(path, &error))? {
        let entry = entry.map_err(|error| failed(path, &error))?;
        let name = at::name(&entry.file_name()).map_err(|error| failed(path, &error))?;
        if entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
            path.push(entry.file_name());
            visitor.leaf(directory, &name, path)?;
            path.pop();
        } else {
            pending.push(name);
        }
    }
    Ok(Level { id: id(directory).map_err(|error| failed(path, &error))?, name, pending, tries })
}

fn id(directory: &File) -> io::Result<(u64, u64)> {
    let metadata = directory.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::at("cannot go through", path, error)
}
