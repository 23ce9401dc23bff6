//! The keeper: a process of its own for each command that starts programs.
//!
//! It is forked from the server by raw calls, is the reaper of everything its leader starts, and so knows that tree
//! exactly. It ends the tree when told to, or when the server or the guardian is gone; it releases the tree (to the
//! guardian, by going away) when the command is done.
//!
//! Here is the server's end of it, and what both ends say on their pipes. `keep` is the keeper's own life, `leader` how
//! its first child becomes a program: both run after a fork of a process with threads: no allocation, no lock, no panic.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use libc::{c_char, c_int, pid_t};
use nix::errno::Errno;

use super::cgroup::{self, Leaf, Place};
use super::fd;

mod keep;
mod leader;

use keep::keep;
use leader::Plan;
pub(crate) use leader::{Leader, StartStep};

/// How long a tree has between SIGTERM and SIGKILL when nobody says otherwise.
pub(crate) const DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// Standard streams of the leader.
pub(crate) struct Stdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// What a keeper tells the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// The leader could not become its program.
    StartFailed { step: StartStep, errno: Errno },
    /// The leader ended (a status of wait(2)); `alone` when nothing of the tree is left.
    Exited { status: c_int, alone: bool },
    /// The tree was ended; so many processes could not be.
    Ended { left: u32 },
    /// The tree was released; so many processes live on.
    Released { count: u32 },
    /// One number of what it took so far, by its place in [`super::bounds::Rusage`].
    Took { which: usize, amount: u64 },
}

const START_STEPS: [StartStep; 4] = [StartStep::Fork, StartStep::WorkDir, StartStep::Limits, StartStep::Exec];

/// A keeper that runs.
#[derive(Debug)]
pub(crate) struct Keeper {
    pid: pid_t,
    control: OwnedFd,
    status: OwnedFd,
    leader: SharedPid,
    leaf: Option<Leaf>,
}

/// A number that keeper and server both see, without a word on the pipe. Taken from pages that are never given back, as
/// mapping one for each command would cost more than the command's pipes.
#[derive(Debug)]
struct SharedPid(&'static AtomicI32);

/// Numbers that nobody uses.
static FREE_PIDS: Mutex<Vec<&'static AtomicI32>> = Mutex::new(Vec::new());

impl SharedPid {
    fn new() -> io::Result<Self> {
        const NUMBERS: usize = 4096 / size_of::<AtomicI32>();
        let mut free = FREE_PIDS.lock().unwrap_or_else(PoisonError::into_inner);
        if free.is_empty() {
            // SAFETY: a new shared mapping touches nothing that exists.
            let memory = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    size_of::<[AtomicI32; NUMBERS]>(),
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            if memory == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: page aligned, zeroed, of this length, and never unmapped.
            let numbers: &'static [AtomicI32; NUMBERS] = unsafe { &*memory.cast() };
            free.extend(numbers);
        }
        let number = free.pop().ok_or_else(|| io::Error::other("no shared number"))?;
        number.store(0, Ordering::Relaxed);
        Ok(Self(number))
    }
}

impl Drop for SharedPid {
    fn drop(&mut self) {
        // The keeper is reaped by then, or will never be heard of again: it stored its number when it began.
        FREE_PIDS.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}

/// The pipes that every keeper holds, besides its own.
struct Lifelines {
    /// Its other end is the guardian's: end of file means that the guardian is gone.
    guardian: OwnedFd,
    /// Its other end is the guardian's too: as long as a keeper lives, the guardian waits.
    alive: OwnedFd,
}

static LIFELINES: OnceLock<Lifelines> = OnceLock::new();

/// To be called once, before the first keeper.
pub(crate) fn set_lifelines(guardian: OwnedFd, alive: OwnedFd) {
    let _ = LIFELINES.set(Lifelines { guardian, alive });
}

/// End of file here means that the guardian is gone.
pub(crate) fn guardian_line() -> Option<BorrowedFd<'static>> {
    LIFELINES.get().map(|lines| lines.guardian.as_fd())
}

const RECORD: usize = 12;
const TELL_START_FAILED: u32 = 1;
const TELL_EXITED: u32 = 2;
const TELL_ENDED: u32 = 3;
const TELL_RELEASED: u32 = 4;
/// And one more for each further number of [`super::bounds::Rusage`].
const TELL_TOOK: u32 = 5;
const ORDER_END: u32 = 1;
const ORDER_RELEASE: u32 = 2;

impl Keeper {
    /// Forks a keeper, which starts the leader, both in a leaf of the session's scope where it has one. The leader's standard
    /// streams are closed here.
    pub(crate) fn start(leader: &Leader, stdio: Stdio) -> io::Result<Self> {
        let lines = LIFELINES.get().ok_or_else(|| io::Error::other("no guardian"))?;
        let (control_read, control) = fd::pipe()?;
        let (status, status_write) = fd::pipe()?;
        let shared = SharedPid::new()?;
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let own = &leader.bounds;
        let mut leaf = match own.measured {
            true => cgroup::own_leaf(leader.critical, &own.cgroup)?,
            false => cgroup::leaf(leader.critical),
        };
        let mut plan = Plan {
            candidates: pointers(&leader.candidates),
            argv: pointers(&leader.argv),
            env: leader.env.as_deref().map(pointers),
            work_dir: leader.work_dir.as_ref().map_or(std::ptr::null(), |d| d.as_ptr()),
            leader,
            stdio: [&stdio.stdin, &stdio.stdout, &stdio.stderr].map(AsRawFd::as_raw_fd),
            control: control_read.as_raw_fd(),
            status: status_write.as_raw_fd(),
            guardian: lines.guardian.as_raw_fd(),
            alive: lines.alive.as_raw_fd(),
            shared: shared.0,
            place: Place::new(leaf.as_ref()),
        };
        // SAFETY: the child calls only `keep`, which obeys the rules of this file and never returns.
        let mut pid = unsafe { raw_fork(leaf.as_ref().filter(|_| !own.measured)) };
        if pid < 0 && leaf.is_some() && !own.measured {
            // A sandbox around the session may know no clone3(2).
            leaf = None;
            plan.place = Place::new(None);
            // SAFETY: as above.
            pid = unsafe { raw_fork(None) };
        }
        match pid {
            0 => keep(&plan),
            pid if pid > 0 => {
                // Now the program alone holds them: their end is its end.
                drop(stdio);
                Ok(Self { pid, control, status, leader: shared, leaf })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// How the tree is kept together: `cgroup` or `subreaper`.
    pub(crate) fn containment(&self) -> &'static str {
        if self.leaf.is_some() { "cgroup" } else { "subreaper" }
    }

    /// Ends the tree: SIGTERM, and SIGKILL for what is left after `grace`. A later order can only shorten it.
    pub(crate) fn end(&self, grace: Duration) {
        if let Some(leaf) = &self.leaf {
            leaf.will_be_killed();
        }
        self.order(ORDER_END, u32::try_from(grace.as_millis()).unwrap_or(u32::MAX));
    }

    /// What the leaf's file of this name says; none without a leaf or such a file.
    pub(crate) fn leaf_file(&self, name: &str) -> Option<String> {
        self.leaf.as_ref()?.read(name)
    }

    /// Lets the tree live on and the keeper go.
    pub(crate) fn release(&self) {
        self.order(ORDER_RELEASE, 0);
    }

    fn order(&self, order: u32, argument: u32) {
        let mut record = [0u8; RECORD];
        record[..4].copy_from_slice(&order.to_ne_bytes());
        record[4..8].copy_from_slice(&argument.to_ne_bytes());
        // Fails only when the keeper is gone already. Shorter than PIPE_BUF, so never in parts; and the pipe cannot
        // be full, as a keeper reads at once and few orders are ever given.
        let _ = fd::write(&self.control, &record);
    }

    /// Where reports come from, for polling.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.status.as_fd()
    }

    /// The next report; none when the keeper is gone. Waits for one.
    pub(crate) fn report(&self) -> Option<Report> {
        let mut record = [0u8; RECORD];
        // Records are written whole and shorter than PIPE_BUF, so they are read whole.
        if fd::read(&self.status, &mut record).ok()? != RECORD {
            return None;
        }
        let word = |at: usize| [record[at], record[at + 1], record[at + 2], record[at + 3]];
        let (a, b) = (i32::from_ne_bytes(word(4)), i32::from_ne_bytes(word(8)));
        Some(match u32::from_ne_bytes(word(0)) {
            TELL_START_FAILED => Report::StartFailed {
                step: usize::try_from(a).ok().and_then(|a| START_STEPS.get(a).copied())?,
                errno: Errno::from_raw(b),
            },
            TELL_EXITED => Report::Exited { status: a, alone: b != 0 },
            TELL_ENDED => Report::Ended { left: u32::try_from(a).unwrap_or(0) },
            TELL_RELEASED => Report::Released { count: u32::try_from(a).unwrap_or(0) },
            told => {
                let which = told.checked_sub(TELL_TOOK)? as usize;
                let (low, high) = (u32::from_ne_bytes(word(4)), u32::from_ne_bytes(word(8)));
                Report::Took { which, amount: u64::from(low) | u64::from(high) << 32 }
            }
        })
    }

    /// For when the keeper was killed, and what it kept has a new parent: ends what is in the leaf. Without one what is in
    /// the leader's session is all that can still be told apart, and only if the leader was not known to have exited:
    /// its number may be another's by now.
    pub(crate) fn kill_orphans(&self, leader_exited: bool) {
        let leader = self.leader.0.load(Ordering::Relaxed);
        match &self.leaf {
            Some(leaf) => leaf.kill(),
            None if leader > 0 && !leader_exited => kill_session(leader),
            None => {}
        }
    }

    /// Waits for the keeper's own end, which is near once it has nothing more to report.
    pub(crate) fn reap(self) {
        // SAFETY: waits for a child that only this handle knows.
        while unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) } < 0 && Errno::last() == Errno::EINTR
        {
        }
    }
}

/// Ends what is still in the session of `leader`.
fn kill_session(leader: pid_t) {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<pid_t>().ok()) {
        // SAFETY: getsid only looks; a pid that is gone gives -1, which is nobody's session.
        if unsafe { libc::getsid(pid) } == leader {
            // SAFETY: a process that was in that session this instant.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

/// fork(2) without the C library's handlers, which take locks that another thread may hold; into a leaf at once if there
/// is one, as moving a process waits for a grace period of the whole machine.
///
/// # Safety
/// The child has one thread and a copy of everybody's locks: it may only make system calls until it execs or exits.
unsafe fn raw_fork(leaf: Option<&Leaf>) -> pid_t {
    /// The first version of clone3(2)'s arguments that knows cgroups.
    #[repr(C)]
    #[derive(Default)]
    struct Arguments {
        flags: u64,
        before: [u64; 3],
        exit_signal: u64,
        between: [u64; 5],
        cgroup: u64,
    }
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let pid = if let Some(directory) = leaf.and_then(Leaf::fd) {
        let cgroup = u64::try_from(directory.as_raw_fd()).unwrap_or(u64::MAX);
        let arguments = Arguments {
            flags: INTO_CGROUP,
            exit_signal: libc::SIGCHLD as u64,
            cgroup,
            ..Arguments::default()
        };
        // SAFETY: clone3 with no flag but the cgroup is fork; it reads as much of the arguments as it is told.
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<Arguments>()) }
    } else {
        // SAFETY: clone with no flags but the exit signal is fork; the order of the other arguments differs between
        // machines, and all of them are zero.
        unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) }
    };
    pid_t::try_from(pid).unwrap_or(-1)
}
