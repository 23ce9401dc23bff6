//! Who may change what: two commands never change the same file at the same time.
//!
//! Within the session by a table; between sessions by flock(2) on the directory, which leaves no file behind. Knows
//! names and directories, not what is done to them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sortie_protocol::ErrorCode;

use crate::failure::Failure;
use crate::job::Job;
use crate::output::lock;
use crate::sys::file;

/// Time between two looks at a lock that somebody else has.
const FIRST_WAIT: Duration = Duration::from_millis(2);
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// Device and inode.
type Directory = (u64, u64);

/// What commands change besides single files.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Resource {
    Packages,
    Sudoers,
    Sshd,
    Services,
}

impl Resource {
    /// The directory whose lock keeps other sessions away: the first that is there.
    pub(crate) fn directory(self) -> &'static Path {
        let candidates: &[&str] = match self {
            Self::Packages => {
                &["/var/lib/dpkg", "/var/lib/rpm", "/usr/lib/sysimage/rpm", "/var/lib/pacman", "/lib/apk"]
            }
            Self::Sudoers => &["/etc/sudoers.d"],
            Self::Sshd => &["/etc/ssh"],
            Self::Services => &["/etc/systemd/system", "/etc/init.d"],
        };
        candidates.iter().map(Path::new).find(|directory| directory.exists()).unwrap_or(Path::new("/etc"))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Packages => "packages",
            Self::Sudoers => "sudoers",
            Self::Sshd => "sshd",
            Self::Services => "services",
        }
    }
}

#[derive(Default)]
pub(crate) struct Locks(Mutex<Table>);

/// A locked directory.
struct Locked {
    directory: Directory,
    /// None where it could not be opened.
    file: Option<Arc<File>>,
    /// No other session works in the directory.
    alone: bool,
    /// How many commands of this session use the lock.
    users: usize,
}

/// As many entries as commands run at once: few.
#[derive(Default)]
struct Table {
    directories: Vec<Locked>,
    names: Vec<(Directory, OsString)>,
}

/// The right to change one name in one directory, until it is dropped.
pub(crate) struct Held {
    locks: Arc<Locks>,
    directory: Directory,
    name: OsString,
    alone: bool,
}

impl Held {
    /// Whether it keeps other sessions away too, and not only other commands of this one.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone
    }
}

impl Locks {
    /// Waits for the right to change `name` in `directory`, as long as the command lives.
    ///
    /// # Errors
    /// `LOCKED` with the holder when the command's time is over, or why the command was ended.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        job: &Job,
        directory: &Path,
        name: &OsStr,
    ) -> Result<Held, Failure> {
        let opened = File::open(directory);
        let metadata = std::fs::metadata(directory)
            .map_err(|error| Failure::at("cannot look at the directory", directory, &error))?;
        let key = (metadata.dev(), metadata.ino());
        let mut wait = FIRST_WAIT;
        loop {
            if let Some(held) = self.try_acquire(key, name, opened.as_ref().ok()) {
                return Ok(held);
            }
            job.pause(wait).map_err(|failure| match job.timed_out() {
                true => locked(directory, key),
                false => failure,
            })?;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    fn try_acquire(self: &Arc<Self>, key: Directory, name: &OsStr, directory: Option<&File>) -> Option<Held> {
        let mut table = lock(&self.0);
        if table.names.iter().any(|(directory, held)| *directory == key && held == name) {
            return None;
        }
        let known = table.directories.iter_mut().find(|locked| locked.directory == key);
        let alone = if let Some(locked) = known {
            locked.users += 1;
            locked.alone
        } else {
            // A directory that cannot be opened for reading, or a file system without locks, is not locked.
            let file = directory.and_then(|d| d.try_clone().ok()).map(Arc::new);
            let alone = match file.as_deref().map(file::try_lock) {
                Some(Ok(false)) => return None,
                Some(Ok(true)) => true,
                None | Some(Err(_)) => false,
            };
            table.directories.push(Locked { directory: key, file, alone, users: 1 });
            alone
        };
        table.names.push((key, name.to_owned()));
        Some(Held { locks: Arc::clone(self), directory: key, name: name.to_owned(), alone })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = lock(&self.locks.0);
        table.names.retain(|(directory, name)| *directory != self.directory || *name != self.name);
        if let Some(at) = table.directories.iter().position(|locked| locked.directory == self.directory) {
            let locked = &mut table.directories[at];
            locked.users -= 1;
            if locked.users == 0 {
                if let Some(file) = &locked.file {
                    // The lock belongs to the open file, which a command that still waits may share.
                    let _ = file.unlock();
                }
                table.directories.swap_remove(at);
            }
        }
    }
}

fn locked(directory: &Path, key: Directory) -> Failure {
    let holder = std::fs::read_to_string("/proc/locks").ok().and_then(|locks| holder(&locks, key.1));
    let by = match holder {
        Some(pid) => name_of(pid),
        None => "another command of this session, or a process that cannot be seen".to_owned(),
    };
    Failure::new(
        ErrorCode::Locked,
        format!("the lock on {directory:?} was not had within the timeout; {by} holds it"),
    )
    .detail("holder", by)
}

/// A process as people know it.
pub(crate) fn name_of(pid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({})", name.trim())
}

/// The process that holds a flock on this file.
pub(crate) fn flock_holder(path: &Path) -> Option<i32> {
    let inode = std::fs::metadata(path).ok()?.ino();
    holder(&std::fs::read_to_string("/proc/locks").ok()?, inode)
}

/// The process that holds a flock on this inode, by proc_locks(5).
fn holder(locks: &str, inode: u64) -> Option<i32> {
    locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
        let mut fields = line.split_whitespace().skip(1).filter(|field| *field != "->");
        if fields.next()? != "FLOCK" {
            return None;
        }
        let pid = fields.nth(2)?.parse().ok()?;
        let found: u64 = fields.next()?.rsplit(':').next()?.parse().ok()?;
        (found == inode).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_read_from_proc_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 fe:00:5678 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 99 fe:00:5678 0 EOF\n";
        assert_eq!(holder(locks, 5678), Some(1234));
        assert_eq!(holder(locks, 1), None);
    }
}
