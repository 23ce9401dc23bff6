//! Paths as commands take them: checked, followed to what they name, and the directories above them made.
//!
//! Knows the file system, not what is done with a path.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use sortie_protocol::{ErrorCode, Sha256Hex};

use crate::command::Context;
use crate::failure::Failure;
use crate::locks::Held;
use crate::sys::{at, host};

/// Symbolic links followed before it must be a loop (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Longest path that the kernel takes, in bytes without the NUL (PATH_MAX).
pub(crate) const LONGEST: usize = 4095;

/// What every path of a command must be, before anything is looked at.
///
/// # Errors
/// `INVALID_PARAMS` for one that is empty or holds a NUL.
pub(crate) fn check(path: &str) -> Result<(), Failure> {
    if path.is_empty() {
        return Err(Failure::params("path is required"));
    }
    if path.contains('\0') {
        return Err(Failure::params("path: contains a NUL byte"));
    }
    Ok(())
}

/// As [`check`], and it begins at the root.
///
/// # Errors
/// `INVALID_PARAMS` otherwise.
pub(crate) fn check_absolute(path: &str) -> Result<(), Failure> {
    check(path)?;
    match path.starts_with('/') {
        true if path.len() <= LONGEST => Ok(()),
        true => Err(Failure::params("path: longer than 4095 bytes")),
        false => Err(Failure::params(format!("path: {path:?} is not absolute"))),
    }
}

/// Whether a path says that it is one of a directory.
pub(crate) fn means_directory(path: &str) -> bool {
    path.ends_with('/') || path.ends_with("/.")
}

/// The file itself, behind all symbolic links; it need not exist.
///
/// # Errors
/// `CONFLICT` for a link where `no_follow` is set.
pub(crate) fn resolve(path: &Path, no_follow: bool) -> Result<PathBuf, Failure> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(_) if no_follow => {
                let message = format!("{path:?} is a symbolic link and no_follow is set");
                return Err(Failure::new(ErrorCode::Conflict, message));
            }
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            // Not a link, or not there: that is looked at next.
            Err(_) => return Ok(path),
        }
    }
    Err(Failure::new(ErrorCode::ExecFailed, format!("{path:?}: too many levels of symbolic links")))
}

/// The regular file that is there; none if there is nothing.
///
/// # Errors
/// `CONFLICT` for anything else.
pub(crate) fn present_file(path: &Path) -> Result<Option<Metadata>, Failure> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata)),
        Ok(metadata) => {
            let what = if metadata.is_dir() { "a directory" } else { "not a regular file" };
            Err(Failure::new(ErrorCode::Conflict, format!("{path:?} is {what}")))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::at("cannot look at", path, &error)),
    }
}

/// A name in a directory that is open: whatever happens to the path of the directory meanwhile, it stays that name in that
/// directory. Symbolic links above it are followed, and it itself never is.
pub(crate) struct Place {
    pub(crate) directory: File,
    pub(crate) name: CString,
    /// For messages.
    pub(crate) path: PathBuf,
}

impl Place {
    /// The place that a path names; none where the directory is not there.
    pub(crate) fn find(path: &Path) -> Result<Option<Self>, Failure> {
        let failed = |error: io::Error| Failure::at("cannot look at the directory of", path, &error);
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        let directory = match at::directory_place(directory) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            opened => opened.map_err(failed)?,
        };
        let name = at::name(name).map_err(failed)?;
        // Without what follows its last name.
        let path = path.components().collect();
        Ok(Some(Self { directory, name, path }))
    }

    /// The right to change it, before all others that ask for it.
    pub(crate) fn lock(&self, context: &Context) -> Result<Held, Failure> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        context.locks.acquire(&context.job, directory, self.path.file_name().unwrap_or_default())
    }

    /// A name beside it for something that is on its way. It is always the same, so that a run finds what another that was
    /// killed has left, unless somebody of ours may be at work there besides.
    pub(crate) fn temporary(&self, held: &Held, prefix: &str) -> Result<CString, Failure> {
        let name = temporary(self.path.file_name().unwrap_or_default(), held, prefix)?;
        CString::new(name).map_err(|_| Failure::params("path: contains a NUL byte"))
    }
}

/// See [`Place::temporary`].
pub(crate) fn temporary(name: &OsStr, held: &Held, prefix: &str) -> Result<String, Failure> {
    let id = match held.is_alone() {
        true => Sha256Hex::from_bytes(&Sha256::digest(name.as_bytes()).into()).as_str()[..32].to_owned(),
        false => host::random_id().map_err(|error| Failure::io("no random number", &error))?,
    };
    Ok(format!("{prefix}{id}"))
}

/// Directories that were made for something, taken away again unless they are kept.
#[derive(Default)]
pub(crate) struct Parents(Vec<PathBuf>);

impl Parents {
    /// Makes what is missing above `path`, 0755 whatever the umask.
    pub(crate) fn make(&mut self, path: &Path) -> Result<(), Failure> {
        let mut missing: Vec<&Path> =
            path.ancestors().skip(1).take_while(|d| !d.as_os_str().is_empty() && !d.exists()).collect();
        while let Some(directory) = missing.pop() {
            match fs::create_dir(directory) {
                Ok(()) => {
                    self.0.push(directory.to_owned());
                    // Whatever the umask: the reference makes them 0755. A group that is handed on is handed on further.
                    let handed_on = fs::metadata(directory).map_or(0, |made| made.mode() & libc::S_ISGID);
                    let _ = fs::set_permissions(directory, Permissions::from_mode(0o755 | handed_on));
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(Failure::at("cannot make the directory", directory, &error));
                }
            }
        }
        Ok(())
    }

    /// The nearest directory above `path` that is there: what is made below it inherits from it.
    pub(crate) fn nearest(path: &Path) -> Option<Metadata> {
        path.ancestors().skip(1).find_map(|above| {
            let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
            fs::metadata(above).ok()
        })
    }

    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for directory in self.0.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    }
}
