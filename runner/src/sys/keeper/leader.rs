//! What a keeper starts, and how its child becomes that program.
//!
//! Everything below [`Plan`] runs after a fork of a process with threads: no allocation, no lock, no panic.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicI32;

use libc::{c_char, c_int, pid_t};
use nix::errno::Errno;

use super::{RECORD, TELL_START_FAILED, TELL_TOOK};
use crate::sys::bounds::{self, Bounds};
use crate::sys::cgroup::Place;

/// What to start, with everything allocated beforehand.
#[derive(Debug, Default)]
pub(crate) struct Leader {
    /// Paths to try in order, as execvp(3) would.
    pub(crate) candidates: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    /// The whole environment; none for that of the runner, which costs nothing.
    pub(crate) env: Option<Vec<CString>>,
    pub(crate) work_dir: Option<CString>,
    pub(crate) umask: Option<u32>,
    pub(crate) bounds: Bounds,
    /// Not to be ended half way: only an order ends it, neither the death of the server nor that of the guardian.
    pub(crate) critical: bool,
    /// Becomes its controlling terminal; its streams stay what they are.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Where starting a program failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartStep {
    Fork,
    WorkDir,
    Limits,
    Exec,
}

/// What the processes of one command need to know, all of it made before the fork.
pub(super) struct Plan<'a> {
    pub(super) candidates: Vec<*const c_char>,
    pub(super) argv: Vec<*const c_char>,
    pub(super) env: Option<Vec<*const c_char>>,
    pub(super) work_dir: *const c_char,
    pub(super) leader: &'a Leader,
    pub(super) stdio: [RawFd; 3],
    pub(super) control: RawFd,
    pub(super) status: RawFd,
    pub(super) guardian: RawFd,
    pub(super) alive: RawFd,
    pub(super) shared: &'a AtomicI32,
    pub(super) place: Place,
}

unsafe extern "C" {
    /// The environment of this process, which the runner never changes.
    static environ: *const *const c_char;
}

/// Starts the leader as vfork(2) would. It borrows the keeper's memory until it is its program, which spares copying page
/// tables that exec throws away; the keeper waits that long.
pub(super) fn start_leader(plan: &Plan<'_>, keeper: pid_t) -> pid_t {
    /// Its own, or it would overwrite the keeper's frames.
    #[repr(align(16))]
    struct Stack(MaybeUninit<[u8; 16 * 1024]>);
    extern "C" fn begin(argument: *mut libc::c_void) -> c_int {
        // SAFETY: made from this very tuple, which lives while the keeper waits; and this is just after a fork.
        unsafe {
            let (plan, keeper) = *argument.cast::<(&Plan<'_>, pid_t)>();
            become_leader(plan, keeper)
        }
    }
    let mut stack = Stack(MaybeUninit::uninit());
    let mut argument = (plan, keeper);
    // SAFETY: the top of a stack that grows down and lives until the keeper goes on, which CLONE_VFORK holds back. With
    // CLONE_VM but neither CLONE_FILES nor CLONE_FS nor CLONE_SIGHAND only memory is shared, and the child writes
    // nothing but its stack and errno.
    unsafe {
        let top = stack.0.as_mut_ptr().add(1).cast();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        libc::clone(begin, top, flags, (&raw mut argument).cast())
    }
}

/// Becomes the program, or says why not.
///
/// # Safety
/// Only after a fork; see [`raw_fork`](super::raw_fork).
unsafe fn become_leader(plan: &Plan<'_>, keeper: pid_t) -> ! {
    let failed = |step| -> ! {
        tell_start_failed(plan.status, step);
        exit(127)
    };
    // SAFETY: system calls on this process alone, with pointers that the server allocated before the fork.
    unsafe {
        // The second line of defence, should the keeper be killed; lost by design across setuid programs.
        if !plan.leader.critical {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        }
        if libc::getppid() != keeper {
            exit(1);
        }
        libc::setsid();
        if let Some(terminal) = &plan.leader.terminal
            && libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0) < 0
        {
            failed(StartStep::Limits);
        }
        for (number, fd) in (0..).zip(plan.stdio) {
            libc::dup2(fd, number);
        }
        if !plan.work_dir.is_null() && libc::chdir(plan.work_dir) < 0 {
            failed(StartStep::WorkDir);
        }
        if let Some(mask) = plan.leader.umask {
            libc::umask(mask as libc::mode_t);
        }
        if !bounds::take_on(&plan.leader.bounds, &plan.place) {
            failed(StartStep::Limits);
        }
        // The server ignores SIGPIPE and blocks the signals it reads; a program expects neither.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        let env = match &plan.env {
            Some(env) => env.as_ptr(),
            None => environ,
        };
        let mut refused = None;
        for candidate in plan.candidates.iter().take_while(|c| !c.is_null()) {
            libc::execve(*candidate, plan.argv.as_ptr(), env);
            match Errno::last() {
                Errno::ENOENT | Errno::ENOTDIR => {}
                // Goes on looking, as execvp(3) does, but remembers.
                Errno::EACCES => refused = Some(Errno::EACCES),
                _ => failed(StartStep::Exec),
            }
        }
        if let Some(errno) = refused {
            errno.set();
        }
        failed(StartStep::Exec)
    }
}

/// Tells the server what the last system call left in errno.
pub(super) fn tell_start_failed(status: RawFd, step: StartStep) {
    tell(status, TELL_START_FAILED, step as c_int, Errno::last_raw());
}

/// Tells the server what the tree took so far, where that is asked for.
pub(super) fn tell_took(plan: &Plan<'_>) {
    if plan.leader.bounds.measured {
        bounds::each_rusage(&mut |which, amount| {
            let (low, high) = (amount as u32, (amount >> 32) as u32);
            tell(plan.status, TELL_TOOK + which as u32, low as c_int, high as c_int);
        });
    }
}

pub(super) fn tell(status: RawFd, what: u32, a: c_int, b: c_int) {
    let mut record = [0u8; RECORD];
    record[..4].copy_from_slice(&what.to_ne_bytes());
    record[4..8].copy_from_slice(&a.to_ne_bytes());
    record[8..].copy_from_slice(&b.to_ne_bytes());
    // SAFETY: bounded by the buffer. When the server is gone SIGPIPE is ignored, and nobody is left to tell.
    unsafe { libc::write(status, record.as_ptr().cast(), RECORD) };
}

pub(super) fn exit(status: c_int) -> ! {
    // SAFETY: ends this process without running anything of the server's.
    unsafe { libc::_exit(status) }
}
