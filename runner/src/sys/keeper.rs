//! The keeper: a process of its own for each command that starts programs.
//!
//! It is forked from the server by raw calls, is the reaper of everything its leader starts, and so knows that tree
//! exactly. It ends the tree when told to, or when the server or the guardian is gone; it releases the tree (to the
//! guardian, by going away) when the command is done.
//!
//! Everything marked "in the child" runs after a fork of a process with threads: no allocation, no lock, no panic.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use libc::{c_char, c_int, pid_t};
use nix::errno::Errno;

use super::cgroup::{self, Leaf, Place};
use super::fd;
use super::tree::Tree;

/// How long a tree has between SIGTERM and SIGKILL when nobody says otherwise.
pub(crate) const DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// How long SIGKILL is repeated before the keeper says that something cannot be ended.
const KILL_MILLISECONDS: u64 = 10_000;

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
    pub(crate) nice: Option<i32>,
    /// Each with the value for both the soft and the hard limit.
    pub(crate) limits: Vec<(Limit, u64)>,
    pub(crate) no_new_privs: bool,
    /// Not to be ended half way: only an order ends it, neither the death of the server nor that of the guardian.
    pub(crate) critical: bool,
    /// Becomes its controlling terminal; its streams stay what they are.
    pub(crate) terminal: Option<OwnedFd>,
}

/// What setrlimit(2) can limit.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    Cpu,
    Processes,
    OpenFiles,
}

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
}

/// Where starting a program failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartStep {
    Fork,
    WorkDir,
    Limits,
    Exec,
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
        let mut leaf = cgroup::leaf(leader.critical);
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
        let mut pid = unsafe { raw_fork(leaf.as_ref()) };
        if pid < 0 && leaf.is_some() {
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
            _ => return None,
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

struct Plan<'a> {
    candidates: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    env: Option<Vec<*const c_char>>,
    work_dir: *const c_char,
    leader: &'a Leader,
    stdio: [RawFd; 3],
    control: RawFd,
    status: RawFd,
    guardian: RawFd,
    alive: RawFd,
    shared: &'a AtomicI32,
    place: Place,
}

unsafe extern "C" {
    /// The environment of this process, which the runner never changes.
    static environ: *const *const c_char;
}

/// In the child: the whole life of a keeper.
fn keep(plan: &Plan<'_>) -> ! {
    // SAFETY: plain system calls on this process and on descriptors of the plan.
    let (this, leader) = unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"sortie-keeper".as_ptr(), 0, 0, 0);
        // SIGCHLD is read below. The stop signals were blocked by the server and stay so: whoever sends them to a
        // whole group means the session, and the guardian passes them on.
        let mut children: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut children);
        libc::sigaddset(&raw mut children, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const children, std::ptr::null_mut());
        let this = libc::getpid();
        (this, start_leader(plan, this))
    };
    if leader < 0 {
        tell_start_failed(plan.status, StartStep::Fork);
        exit(1);
    }
    plan.shared.store(leader, Ordering::Relaxed);
    close_all_but([plan.control, plan.status, plan.guardian, plan.alive]);
    // SAFETY: as above; 0 is /dev/null in the server, and so here.
    let signals = unsafe {
        libc::dup2(0, 2);
        let mut children: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut children);
        libc::sigaddset(&raw mut children, libc::SIGCHLD);
        libc::signalfd(-1, &raw const children, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    let mut keep = Keep { plan, this, leader, signals, leader_status: None, told: false, deaf: false };
    loop {
        keep.wait_for_anything(-1);
        let alone = keep.reap_all();
        if let (Some(status), false) = (keep.leader_status, keep.told) {
            keep.told = true;
            tell(plan.status, TELL_EXITED, status, c_int::from(alone));
        }
        if keep.told && (alone || keep.deaf) {
            if !alone {
                keep.release();
            }
            exit(0);
        }
        match keep.order() {
            Order::None => {}
            Order::Release => {
                let count = keep.release();
                tell(plan.status, TELL_RELEASED, c_int::try_from(count).unwrap_or(c_int::MAX), 0);
                exit(0);
            }
            Order::End(grace) => {
                let left = keep.end_tree(grace);
                if let (Some(status), false) = (keep.leader_status, keep.told) {
                    tell(plan.status, TELL_EXITED, status, c_int::from(left == 0));
                }
                tell(plan.status, TELL_ENDED, c_int::try_from(left).unwrap_or(c_int::MAX), 0);
                exit(0);
            }
        }
    }
}

struct Keep<'a> {
    plan: &'a Plan<'a>,
    this: pid_t,
    leader: pid_t,
    signals: RawFd,
    leader_status: Option<c_int>,
    told: bool,
    /// Server or guardian died while the leader was critical: nothing more is heard, and it is waited for.
    deaf: bool,
}

enum Order {
    None,
    Release,
    /// Milliseconds of grace.
    End(u64),
}

impl Keep<'_> {
    /// Until a child ended, an order came, somebody died, or the time (milliseconds, -1 for ever) is over.
    fn wait_for_anything(&self, timeout: c_int) {
        let wait_for = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // A negative descriptor is passed over, see poll(2).
        let heard = |fd| wait_for(if self.deaf { -1 } else { fd });
        let mut fds = [wait_for(self.signals), heard(self.plan.control), heard(self.plan.guardian)];
        let mut sink = [0u8; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: three valid pollfd; the read is bounded by the buffer and does not wait.
        unsafe {
            libc::poll(fds.as_mut_ptr(), 3, timeout);
            while libc::read(self.signals, sink.as_mut_ptr().cast(), sink.len()) > 0 {}
        }
    }

    /// Reaps whatever is dead; whether no child is left.
    fn reap_all(&mut self) -> bool {
        loop {
            let mut status = 0;
            // SAFETY: waits for children of this process only, all of which are this keeper's to reap.
            match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
                0 => return false,
                pid if pid == self.leader => self.leader_status = Some(status),
                pid if pid > 0 => {}
                _ if Errno::last() == Errno::EINTR => {}
                _ => return true,
            }
        }
    }

    /// What the server wants by now. Its death, or the guardian's, is the order to end, unless the leader is critical and
    /// lives: then it is the last that is heard.
    fn order(&mut self) -> Order {
        if self.deaf {
            return Order::None;
        }
        let (order, death) = self.order_or_death();
        if !death || !self.plan.leader.critical {
            return order;
        }
        self.deaf = true;
        // Nobody is left to say what becomes of what the leader left running; it lives on.
        if self.leader_status.is_some() { Order::Release } else { Order::None }
    }

    fn order_or_death(&self) -> (Order, bool) {
        let mut fds = [self.plan.control, self.plan.guardian].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: two valid pollfd.
        if unsafe { libc::poll(fds.as_mut_ptr(), 2, 0) } <= 0 {
            return (Order::None, false);
        }
        let default = u64::try_from(DEFAULT_GRACE.as_millis()).unwrap_or(0);
        if fds[1].revents != 0 {
            return (Order::End(default), true);
        }
        let mut record = [0u8; RECORD];
        // SAFETY: bounded by the buffer; poll said that it does not wait.
        let got = unsafe { libc::read(self.plan.control, record.as_mut_ptr().cast(), RECORD) };
        if got != RECORD as isize {
            return (Order::End(default), true);
        }
        let word =
            |at: usize| u32::from_ne_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
        let order = match word(0) {
            ORDER_RELEASE => Order::Release,
            _ => Order::End(u64::from(word(4))),
        };
        (order, false)
    }

    /// Moves what is left out of the session's scope, if it has one; how many processes are left.
    fn release(&self) -> usize {
        let place = &self.plan.place;
        let Some(mut tree) = Tree::new() else { return 0 };
        if place.has_leaf() {
            place.release(self.this);
            return tree.descendants(self.this, &mut |_| {});
        }
        // The scope may have come since this keeper began.
        tree.descendants(self.this, &mut |pid| place.put_outside(pid))
    }

    /// Ends everything below this process; how many processes could not be ended.
    fn end_tree(&mut self, grace: u64) -> usize {
        let Some(mut tree) = Tree::new() else {
            // SAFETY: the group of the leader, which is not reaped yet or has left only its group.
            unsafe { libc::kill(-self.leader, libc::SIGKILL) };
            return 0;
        };
        // The whole tree is listed before the first signal; a process that is asked to stop may take its time, one that
        // is stopped has to go on to hear it.
        let mut listed = [0 as pid_t; 1024];
        let mut count = 0;
        tree.descendants(self.this, &mut |pid| {
            if let Some(place) = listed.get_mut(count) {
                *place = pid;
                count += 1;
            }
        });
        for signal in [libc::SIGTERM, libc::SIGCONT] {
            for pid in &listed[..count] {
                // SAFETY: a process that was a descendant a moment ago.
                unsafe { libc::kill(*pid, signal) };
            }
        }
        let mut deadline = now().saturating_add(grace);
        loop {
            if self.reap_all() {
                return 0;
            }
            let left = deadline.saturating_sub(now());
            if left == 0 {
                break;
            }
            self.wait_for_anything_but_death(left);
            // Only a live server shortens the grace; its death was answered by this very ending.
            if let Some(Order::End(sooner)) = self.order_if_server_lives() {
                deadline = deadline.min(now().saturating_add(sooner));
            }
        }
        self.plan.place.kill();
        let deadline = now().saturating_add(KILL_MILLISECONDS);
        loop {
            // Stopped first, so that nothing forks while the rest is killed.
            let mut before = usize::MAX;
            for _ in 0..16 {
                // SAFETY: descendants found this instant.
                let count = tree.descendants(self.this, &mut |pid| unsafe {
                    libc::kill(pid, libc::SIGSTOP);
                });
                if count == before {
                    break;
                }
                before = count;
            }
            // SAFETY: as above.
            tree.descendants(self.this, &mut |pid| unsafe {
                libc::kill(pid, libc::SIGKILL);
            });
            if self.reap_all() {
                return 0;
            }
            if now() >= deadline {
                return tree.descendants(self.this, &mut |_| {});
            }
            self.wait_for_anything_but_death(20);
        }
    }

    fn wait_for_anything_but_death(&self, milliseconds: u64) {
        let mut signals = libc::pollfd { fd: self.signals, events: libc::POLLIN, revents: 0 };
        let mut sink = [0u8; size_of::<libc::signalfd_siginfo>()];
        // In steps, so that a shorter grace is heard soon.
        let timeout = c_int::try_from(milliseconds.min(100)).unwrap_or(100);
        // SAFETY: one valid pollfd; the read is bounded by the buffer and does not wait.
        unsafe {
            libc::poll(&raw mut signals, 1, timeout);
            while libc::read(self.signals, sink.as_mut_ptr().cast(), sink.len()) > 0 {}
        }
    }

    fn order_if_server_lives(&mut self) -> Option<Order> {
        let mut control = libc::pollfd { fd: self.plan.control, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        let ready = unsafe { libc::poll(&raw mut control, 1, 0) };
        (ready > 0 && control.revents & libc::POLLIN != 0).then(|| self.order())
    }
}

/// In the child: starts the leader as vfork(2) would. It borrows the keeper's memory until it is its program, which
/// spares copying page tables that exec throws away; the keeper waits that long.
fn start_leader(plan: &Plan<'_>, keeper: pid_t) -> pid_t {
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

/// In the child of the keeper: becomes the program, or says why not.
///
/// # Safety
/// Only after a fork; see [`raw_fork`].
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
        if let Some(nice) = plan.leader.nice {
            // -1 is a valid result, errno alone tells.
            Errno::clear();
            if libc::nice(nice) == -1 && Errno::last_raw() != 0 {
                failed(StartStep::Limits);
            }
        }
        for (resource, value) in &plan.leader.limits {
            let limit = libc::rlimit { rlim_cur: *value as libc::rlim_t, rlim_max: *value as libc::rlim_t };
            let resource = match resource {
                Limit::Cpu => libc::RLIMIT_CPU,
                Limit::Processes => libc::RLIMIT_NPROC,
                Limit::OpenFiles => libc::RLIMIT_NOFILE,
            };
            if libc::setrlimit(resource, &raw const limit) < 0 {
                failed(StartStep::Limits);
            }
        }
        if plan.leader.no_new_privs && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
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

/// In the child: tells the server what the last system call left in errno.
fn tell_start_failed(status: RawFd, step: StartStep) {
    tell(status, TELL_START_FAILED, step as c_int, Errno::last_raw());
}

fn tell(status: RawFd, what: u32, a: c_int, b: c_int) {
    let mut record = [0u8; RECORD];
    record[..4].copy_from_slice(&what.to_ne_bytes());
    record[4..8].copy_from_slice(&a.to_ne_bytes());
    record[8..].copy_from_slice(&b.to_ne_bytes());
    // SAFETY: bounded by the buffer. When the server is gone SIGPIPE is ignored, and nobody is left to tell.
    unsafe { libc::write(status, record.as_ptr().cast(), RECORD) };
}

/// In the child: the server's descriptors are not the keeper's, least of all the frames' own and other commands' pipes.
fn close_all_but(mut keep: [RawFd; 4]) {
    keep.sort_unstable();
    let mut from: RawFd = 3;
    for fd in keep {
        close_range(from, fd - 1);
        from = fd + 1;
    }
    close_range(from, RawFd::MAX);
}

fn close_range(from: RawFd, to: RawFd) {
    if from > to {
        return;
    }
    // SAFETY: closes descriptors of this process alone; the numbers are not negative.
    if unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) } < 0 {
        // Before Linux 5.9. The server keeps few files open, so all have low numbers.
        for fd in from..=to.min(4096) {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

/// Milliseconds on a clock that only goes forward.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec as u64) * 1000 + (time.tv_nsec as u64) / 1_000_000
}

fn exit(status: c_int) -> ! {
    // SAFETY: ends this process without running anything of the server's.
    unsafe { libc::_exit(status) }
}
