//! Processes: the fork of the guardian, reaping, identity.

use std::io;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

/// Which side of a fork this is.
pub(crate) enum Side {
    Parent { child: i32 },
    Child,
}

/// Forks; call before any thread exists.
pub(crate) fn fork_before_threads() -> io::Result<Side> {
    // SAFETY: the process has one thread, so the child's copy of memory and locks is whole.
    Ok(match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Side::Parent { child: child.as_raw() },
        ForkResult::Child => Side::Child,
    })
}

/// Descendants whose parent dies become children of this process.
pub(crate) fn become_subreaper() -> io::Result<()> {
    match prctl::set_child_subreaper(true) {
        // User-mode emulation (qemu-user 7) refuses what every kernel since 3.4 has.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// SIGTERM comes when the parent dies. Whether the parent is still `parent`.
pub(crate) fn die_with_parent(parent: i32) -> io::Result<bool> {
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    Ok(nix::unistd::getppid().as_raw() == parent)
}

/// No core dump of this process and those that it forks, and nobody but root looks into their memory: there are passwords
/// in it. A program that one of them becomes is as it would be otherwise (prctl(2), PR_SET_DUMPABLE).
pub(crate) fn keep_memory_to_ourselves() {
    // Where the kernel will not, nothing is lost but this.
    let _ = prctl::set_dumpable(false);
}

/// The name that ps(1) shows for this thread, at most 15 bytes.
pub(crate) fn set_name(name: &std::ffi::CStr) {
    let _ = prctl::set_name(name);
}

/// Takes the program's code out of this process's memory; the kernel puts back what is run again. For a process that from
/// here on runs little of what it came by: the kernel maps sixteen pages around each that is touched.
pub(crate) fn give_back_code() {
    unsafe extern "C" {
        /// Where the program begins, and the end of its code: by the linker, see end(3).
        static __executable_start: libc::c_char;
        static etext: libc::c_char;
    }
    // SAFETY: only the addresses of both are taken. What lies between them is read and run, never written (constants that
    // need relocation stand behind it), so the file has every byte of it. A refusal changes nothing.
    unsafe {
        let start = &raw const __executable_start;
        let length = (&raw const etext).addr().saturating_sub(start.addr());
        libc::madvise(start.cast_mut().cast(), length, libc::MADV_DONTNEED);
    }
}

pub(crate) fn id() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// Sends a signal to a child that has not been reaped.
pub(crate) fn signal(pid: i32, signal: Signal) {
    let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
}

/// Runs a line of shell to its end, with nothing to read and nobody to read what it says. No keeper: for what has to be done when
/// there is none any more.
///
/// # Errors
/// It could not be started. Its exit status is no error.
pub(crate) fn run_shell(script: &std::ffi::CStr) -> io::Result<()> {
    let arguments = [c"sh".as_ptr(), c"-c".as_ptr(), script.as_ptr(), std::ptr::null()];
    let path = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let environment = [path.as_ptr(), c"LC_ALL=C".as_ptr(), std::ptr::null()];
    // SAFETY: there may be threads; the child does only what the next block does.
    match unsafe { libc::fork() } {
        // SAFETY: system calls alone, on memory that was there before the fork, and no return.
        0 => unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            // Standard input is /dev/null in both halves of the runner.
            libc::dup2(0, 1);
            libc::dup2(0, 2);
            libc::setsid();
            libc::execve(c"/bin/sh".as_ptr(), arguments.as_ptr(), environment.as_ptr());
            libc::_exit(127)
        },
        child if child > 0 => loop {
            match waitpid(Pid::from_raw(child), None) {
                Err(nix::errno::Errno::EINTR) => {}
                _ => return Ok(()),
            }
        },
        _ => Err(io::Error::last_os_error()),
    }
}

/// A child that was reaped: its pid and exit status, 128 + n when signal n ended it.
pub(crate) struct Reaped {
    pub(crate) pid: i32,
    pub(crate) status: i32,
}

/// Reaps one dead child; none when no child is dead.
pub(crate) fn reap_one() -> Option<Reaped> {
    loop {
        return match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => Some(Reaped { pid: pid.as_raw(), status }),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                Some(Reaped { pid: pid.as_raw(), status: 128 + signal as i32 })
            }
            Err(nix::errno::Errno::EINTR) => continue,
            _ => None,
        };
    }
}
