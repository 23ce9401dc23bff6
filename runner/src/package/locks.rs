//! The locks of package managers: who has them, and waiting for them. Nothing is locked here, only looked at; a manager that
//! comes between is waited for again.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use sortie_protocol::ErrorCode;

use super::Manager;
use crate::command::Context;
use crate::failure::Failure;
use crate::locks::{flock_holder, name_of};

/// Time between two looks.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// How a manager keeps others away.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lock {
    /// A record lock (fcntl(2)) on the file.
    Posix(&'static str),
    /// flock(2) on the file.
    Flock(&'static str),
    /// The file holds the process id of a process that lives.
    Pid(&'static str),
    /// The file is there.
    File(&'static str),
}

/// Somebody has a lock.
struct Held {
    path: &'static str,
    /// None where it cannot be seen, as from inside a container.
    pid: Option<i32>,
    /// Nobody has it open: what is left of a process that was killed.
    stale: bool,
}

impl Lock {
    fn held(self) -> Option<Held> {
        let (Self::Posix(path) | Self::Flock(path) | Self::Pid(path) | Self::File(path)) = self;
        let pid = match self {
            Self::Posix(_) => record_holder(path)?,
            Self::Flock(_) => Some(flock_holder(Path::new(path))?),
            Self::Pid(_) => Some(live_pid(&fs::read_to_string(path).ok()?)?),
            Self::File(_) => {
                fs::symlink_metadata(path).ok()?;
                let pid = who_has_open(path);
                return Some(Held { path, pid, stale: pid.is_none() });
            }
        };
        Some(Held { path, pid, stale: false })
    }
}

/// Waits until nobody has the manager's locks, as long as the command lives. Whom it waits for is told in an EVENT.
///
/// # Errors
/// `LOCKED` naming the process when the command's time is over, and for a lock that its owner left behind; why the command
/// was ended.
pub(crate) fn wait(context: &Context, manager: &Manager) -> Result<(), Failure> {
    let (mut wait, mut told, mut stale) = (FIRST_WAIT, None, false);
    while let Some(held) = manager.locks.iter().find_map(|lock| lock.held()) {
        let who = held.pid.map_or_else(|| "a process that cannot be seen".to_owned(), name_of);
        // Seen twice: whoever had it may have gone between two looks.
        if held.stale && stale {
            let why = " is there, but no process has it open: if no package manager runs, remove it";
            return Err(Failure::new(ErrorCode::Locked, [held.path, why].concat()).not_retryable());
        }
        stale = held.stale;
        if told != Some(held.pid) && !stale {
            context.progress(["waiting for ", &who, ", which holds ", held.path].concat(), None);
            told = Some(held.pid);
        }
        pause(context, wait, &[held.path, " is held by ", &who].concat())
            .map_err(|f| f.detail("holder", who))?;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    Ok(())
}

/// Waits; `LOCKED` for this reason once the command's own time is over, or why else it is ended.
fn pause(context: &Context, wait: Duration, why: &str) -> Result<(), Failure> {
    let Err(failure) = context.job.pause(wait) else { return Ok(()) };
    if !context.job.timed_out() {
        return Err(failure);
    }
    Err(Failure::new(ErrorCode::Locked, [why, " for the whole timeout; nothing was changed"].concat()))
}

/// Waits a little after the manager said that somebody else has its lock, as long as the command lives.
///
/// # Errors
/// `LOCKED` when the command's time is over; why the command was ended.
pub(crate) fn lost(context: &Context, manager: &Manager) -> Result<(), Failure> {
    pause(context, LONGEST_WAIT, &[manager.name, " is in use by another process"].concat())
}

/// Who has a record lock on the file: none if nobody has; the inner none is somebody who cannot be seen.
fn record_holder(path: &str) -> Option<Option<i32>> {
    let file = File::open(path).ok()?;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_GETLK(&mut lock)).ok()?;
    (i32::from(lock.l_type) != libc::F_UNLCK).then(|| Some(lock.l_pid).filter(|pid| *pid > 0))
}

/// The process id at the beginning of the text, if such a process lives.
fn live_pid(text: &str) -> Option<i32> {
    let pid: i32 = text.split_whitespace().next()?.parse().ok()?;
    (pid > 0 && Path::new(&format!("/proc/{pid}")).exists()).then_some(pid)
}

fn who_has_open(path: &str) -> Option<i32> {
    let mut processes = fs::read_dir("/proc").ok()?.flatten();
    processes.find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let mut open = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        open.any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == Path::new(path))).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_id_counts_only_while_its_process_lives() {
        assert_eq!(live_pid("1\n"), Some(1));
        assert_eq!(live_pid(" 1 more"), Some(1));
        for gone in ["", "x", "-1", "0", "999999999"] {
            assert_eq!(live_pid(gone), None, "{gone:?}");
        }
    }

    #[test]
    fn who_has_a_file_open_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(who_has_open(path), i32::try_from(std::process::id()).ok());
        assert_eq!(who_has_open("/nonexistent"), None);
    }
}
