//! What a program and all that it starts are held to, and what they took: rlimits, attributes of processes, rusage.
//!
//! Knows system calls; which limit is held by which means is `limits.rs`'s affair. What is marked "in the child" obeys the
//! rules of `keeper.rs`.

use libc::c_long;
use nix::errno::Errno;

use super::cgroup::Place;

/// What setrlimit(2) can limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Limit {
    Cpu,
    Processes,
    OpenFiles,
    FileSize,
    AddressSpace,
}

/// What a leader is held to, with all that it starts.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    pub(crate) nice: Option<i32>,
    /// Each with the value for both the soft and the hard limit.
    pub(crate) rlimits: Vec<(Limit, u64)>,
    pub(crate) no_new_privs: bool,
    /// For a leaf of its own: files, and what is written to each. One that this kernel does not have is passed over.
    pub(crate) cgroup: Vec<(&'static str, String)>,
    /// For the whole tree, where its leaf tells what it took.
    pub(crate) cpu_seconds: Option<u64>,
    /// What it takes is told: it has a leaf of its own, if there can be one, and its keeper says what it reaped.
    pub(crate) measured: bool,
}

/// What a keeper knows of the processes that it reaped, in the order of [`each_rusage`].
pub(crate) type Rusage = [u64; 5];
pub(crate) const USER: usize = 0;
pub(crate) const SYSTEM: usize = 1;
pub(crate) const PEAK: usize = 2;
pub(crate) const READ: usize = 3;
pub(crate) const WRITTEN: usize = 4;

/// In the child that becomes the leader: takes them on. Whether they are all in force; else errno says why not.
///
/// # Safety
/// Only after a fork.
pub(super) unsafe fn take_on(bounds: &Bounds, place: &Place) -> bool {
    // SAFETY: system calls on this process alone.
    unsafe {
        // The keeper stays outside: it is neither counted nor ended with the tree.
        if bounds.measured && place.has_leaf() && !place.enter() {
            return false;
        }
        if let Some(nice) = bounds.nice {
            // -1 is a valid result, errno alone tells.
            Errno::clear();
            if libc::nice(nice) == -1 && Errno::last_raw() != 0 {
                return false;
            }
        }
        for (resource, value) in &bounds.rlimits {
            // SIGXCPU comes at the soft limit, which tells more than SIGKILL at the hard one.
            let later = u64::from(matches!(resource, Limit::Cpu));
            let resource = match resource {
                Limit::Cpu => libc::RLIMIT_CPU,
                Limit::Processes => libc::RLIMIT_NPROC,
                Limit::OpenFiles => libc::RLIMIT_NOFILE,
                Limit::FileSize => libc::RLIMIT_FSIZE,
                Limit::AddressSpace => libc::RLIMIT_AS,
            };
            let limit = libc::rlimit {
                rlim_cur: *value as libc::rlim_t,
                rlim_max: value.saturating_add(later) as libc::rlim_t,
            };
            if libc::setrlimit(resource, &raw const limit) < 0 {
                return false;
            }
        }
        !bounds.no_new_privs || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    }
}

/// In the child: what the processes took that were reaped so far: microseconds of user and system time, and bytes of the
/// highest peak, read and written (getrusage(2), RUSAGE_CHILDREN).
pub(super) fn each_rusage(each: &mut dyn FnMut(usize, u64)) {
    // SAFETY: fills the structure it is given; all zeros is valid before.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let number = |value: c_long| value as u64;
    let micros = |time: libc::timeval| (time.tv_sec as u64) * 1_000_000 + (time.tv_usec as u64);
    each(USER, micros(usage.ru_utime));
    each(SYSTEM, micros(usage.ru_stime));
    each(PEAK, number(usage.ru_maxrss) * 1024);
    each(READ, number(usage.ru_inblock) * 512);
    each(WRITTEN, number(usage.ru_oublock) * 512);
}
