//! The session's cgroup: a scope that systemd made, in it a leaf for the runner and a leaf for each command that runs
//! programs.
//!
//! Knows the files of cgroup v2 (cgroups(7); the kernel's "Control Group v2"), nothing of D-Bus. Where there is no scope
//! commands have no leaf, and their keepers do without.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use libc::{c_char, pid_t};

use super::tree::{digits, number_in};
use crate::output::lock;

const MOUNT: &str = "/sys/fs/cgroup";

/// The leaf of guardian and server.
const RUNNER: &str = "/runner";

/// How the names of commands' leaves begin, a number follows: of those that the guardian ends with the session, and of
/// those that nobody ends before the scope itself ends (critical sections).
const COMMAND: &str = "/command-";
const CRITICAL: &str = "/critical-";

/// How often a tree is moved before those that fork faster are left where they are.
const ROUNDS: usize = 64;

/// How long a scope is waited for at a time by who needs one.
const LOOK: Duration = Duration::from_millis(50);

/// What is known of the session's scope.
enum State {
    /// There is none.
    Off,
    /// There may be one soon; commands wait until then.
    Asked(Instant),
    On(Scope),
}

static STATE: Mutex<State> = Mutex::new(State::Off);
static SETTLED: Condvar = Condvar::new();

/// Where processes go that outlive their command: `cgroup.procs` of the cgroup that the runner was started in, then, should
/// that be gone, of those above it. Set once a scope was asked for.
static OUTSIDE: OnceLock<Vec<CString>> = OnceLock::new();

struct Scope {
    path: String,
    /// `cgroup.procs` of the runner's leaf.
    home: CString,
    /// Empty leaves. They are kept until the scope goes: making and removing one for each command would cost more than all
    /// else about a leaf.
    free: Vec<Files>,
    /// Number and kind of leaves that are not empty yet, or must not be used again.
    spent: Vec<(u32, bool)>,
    made: u32,
    /// Controllers that are on for the leaves.
    enabled: Vec<String>,
}

/// A leaf as the file system has it.
#[derive(Debug)]
struct Files {
    number: u32,
    critical: bool,
    path: String,
    directory: File,
    procs: CString,
    kill: CString,
    home: CString,
}

/// The leaf of one command, given back when dropped.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// Always there until the drop.
    files: Option<Files>,
    /// Somebody may have used `cgroup.kill`. After that whatever is cloned into the cgroup may be killed as well (seen on
    /// Linux 6.18, which compares the number of kills with that of the cloning process's own cgroup).
    killed: AtomicBool,
    /// It has limits of its own and has counted: for nobody else.
    own: bool,
}

/// Whether there is systemd on a unified hierarchy, and a kernel that can kill a cgroup (Linux 5.14).
pub(crate) fn is_usable() -> bool {
    let there = |path: &str| fs::metadata(path).is_ok();
    there("/run/systemd/system") && there("/sys/fs/cgroup/system.slice/cgroup.kill")
}

/// A scope is on its way, perhaps.
pub(crate) fn asked_for(commands_wait: Instant) {
    let Some(origin) = own() else { return };
    let mut above = origin.as_str();
    let mut outside = Vec::new();
    while above.len() >= MOUNT.len() {
        outside.extend(CString::new(format!("{above}/cgroup.procs")));
        above = &above[..above.rfind('/').unwrap_or(0)];
    }
    let _ = OUTSIDE.set(outside);
    *lock(&STATE) = State::Asked(commands_wait);
}

/// There will be no scope.
pub(crate) fn refused() {
    *lock(&STATE) = State::Off;
    SETTLED.notify_all();
}

/// Makes the scope `unit` the session's if this process has been moved there; whether there is no more to wait for.
pub(crate) fn adopt(unit: &str, guardian: pid_t) -> bool {
    let Some(path) = own().filter(|path| path.ends_with(unit)) else { return false };
    let this = super::process::id();
    let Some(scope) = Scope::new(path) else {
        // As if nothing had been: systemd removes the empty scope.
        Place::new(None).put_outside(this);
        refused();
        return true;
    };
    let home = scope.home.clone();
    *lock(&STATE) = State::On(scope);
    SETTLED.notify_all();
    // Commands need not wait for this: each move may take a grace period of the kernel, some milliseconds.
    for pid in [guardian, this] {
        write(home.as_ptr(), digits(pid, &mut [0; 10]));
    }
    true
}

/// A leaf for a command that begins; none where there is no scope.
pub(crate) fn leaf(critical: bool) -> Option<Leaf> {
    in_scope(&mut |scope| scope.leaf(critical))
}

/// A leaf that no other command has had, with these values in its files; none where there is no scope. A file that this
/// kernel does not have is passed over.
pub(crate) fn own_leaf(critical: bool, values: &[(&str, String)]) -> io::Result<Option<Leaf>> {
    let leaf = in_scope(&mut |scope| {
        // For what they count; a limit that needs one asked for it before.
        let _ = (scope.enable("memory"), scope.enable("io"));
        let files = scope.new_leaf(critical)?;
        Some(Leaf { files: Some(files), killed: AtomicBool::new(false), own: true })
    });
    if let Some(files) = leaf.as_ref().and_then(|leaf| leaf.files.as_ref()) {
        for (file, value) in values {
            match fs::write(format!("{}/{file}", files.path), value) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(leaf)
}

/// Whether leaves have this file, such as `memory.max`, its controller turned on if need be. None while there may be a scope
/// soon; that is waited for a little.
pub(crate) fn has(file: &str) -> Option<bool> {
    let mut state = lock(&STATE);
    match &mut *state {
        State::Off => Some(false),
        State::On(scope) => {
            let controller = file.split('.').next().unwrap_or(file);
            Some(scope.enable(controller) && fs::metadata(format!("{}{RUNNER}/{file}", scope.path)).is_ok())
        }
        State::Asked(_) => {
            drop(SETTLED.wait_timeout(state, LOOK));
            None
        }
    }
}

/// Does something with the scope as soon as there is one; not where there is none.
fn in_scope(take: &mut dyn FnMut(&mut Scope) -> Option<Leaf>) -> Option<Leaf> {
    let mut state = lock(&STATE);
    loop {
        match &mut *state {
            State::Off => return None,
            State::On(scope) => return take(scope),
            State::Asked(until) => {
                let wait = until.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())?;
                state =
                    SETTLED.wait_timeout(state, wait).map_or_else(|e| e.into_inner().0, |(state, _)| state);
            }
        }
    }
}

/// For the guardian, when server and keepers are gone: ends whatever is in a command's leaf. What was released is in none.
pub(crate) fn end_leaves() {
    let Some(own) = own() else { return };
    let Some(scope) = own.strip_suffix(RUNNER).filter(|scope| scope.ends_with(".scope")) else { return };
    let mut number = 1;
    while fs::write(format!("{scope}{COMMAND}{number}/cgroup.kill"), "1").is_ok()
        || fs::metadata(format!("{scope}{CRITICAL}{number}")).is_ok()
    {
        number += 1;
    }
}

/// The directory of this process's cgroup.
fn own() -> Option<String> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(format!("{MOUNT}/{path}"))
}

fn make(directory: &str) -> Option<()> {
    let path = CString::new(directory).ok()?;
    // SAFETY: a path that ends in a NUL and lives through the call.
    (unsafe { libc::mkdir(path.as_ptr(), 0o755) } == 0).then_some(())
}

impl Scope {
    /// Makes the runner's leaf: a cgroup whose children are to be limited holds no process itself.
    fn new(path: String) -> Option<Self> {
        let runner = format!("{path}{RUNNER}");
        make(&runner)?;
        let home = CString::new(runner + "/cgroup.procs").ok()?;
        Some(Self { path, home, free: Vec::new(), spent: Vec::new(), made: 0, enabled: Vec::new() })
    }

    fn leaf(&mut self, critical: bool) -> Option<Leaf> {
        let fits = |files: &Files| files.critical == critical;
        let files = match self.free.iter().rposition(fits) {
            Some(at) => self.free.swap_remove(at),
            None => self.new_leaf(critical)?,
        };
        Some(Leaf { files: Some(files), killed: AtomicBool::new(false), own: false })
    }

    fn new_leaf(&mut self, critical: bool) -> Option<Files> {
        // The kernel removes what is empty and nothing else.
        let is_gone = |(number, critical): &(u32, bool)| {
            let removed = fs::remove_dir(self.path_of(*number, *critical));
            removed.map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
        };
        let place = self.spent.iter().position(is_gone);
        let number = place.map_or(self.made + 1, |at| self.spent[at].0);
        let path = self.path_of(number, critical);
        make(&path)?;
        match place {
            Some(at) => _ = self.spent.swap_remove(at),
            None => self.made = number,
        }
        Some(Files {
            number,
            critical,
            directory: File::open(&path).ok()?,
            procs: CString::new(format!("{path}/cgroup.procs")).ok()?,
            kill: CString::new(format!("{path}/cgroup.kill")).ok()?,
            home: self.home.clone(),
            path,
        })
    }

    /// Turns a controller on for the leaves; whether it is. It stays on, at the cost of its counting: so only when asked for.
    fn enable(&mut self, controller: &str) -> bool {
        if self.enabled.iter().any(|on| on == controller) {
            return true;
        }
        // Not while a process is in the scope itself: this one before it has moved, or a keeper that it forked just then. The
        // kernel refuses some controllers then, and with others no leaf would take processes any more (cgroups(7), "domain
        // invalid").
        for pid in fs::read_to_string(format!("{}/cgroup.procs", self.path)).unwrap_or_default().lines() {
            write(self.home.as_ptr(), pid.as_bytes());
        }
        let is_on =
            fs::write(format!("{}/cgroup.subtree_control", self.path), format!("+{controller}")).is_ok();
        if is_on {
            self.enabled.push(controller.to_owned());
        }
        is_on
    }

    fn path_of(&self, number: u32, critical: bool) -> String {
        format!("{}{}{number}", self.path, if critical { CRITICAL } else { COMMAND })
    }
}

impl Leaf {
    /// The directory, for clone3(2).
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.files.as_ref().map(|files| files.directory.as_fd())
    }

    /// What its file of this name says.
    pub(super) fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(format!("{}/{name}", self.files.as_ref()?.path)).ok()
    }

    /// Ends every process in it with SIGKILL.
    pub(super) fn kill(&self) {
        self.will_be_killed();
        if let Some(files) = &self.files {
            write(files.kill.as_ptr(), b"1");
        }
    }

    /// Its keeper may do the same from now on.
    pub(super) fn will_be_killed(&self) {
        self.killed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        let Some(files) = self.files.take() else { return };
        let State::On(scope) = &mut *lock(&STATE) else { return };
        let events = fs::read(format!("{}/cgroup.events", files.path));
        let empty = events.is_ok_and(|text| text.starts_with(b"populated 0"));
        if empty && !self.own && !self.killed.load(Ordering::Relaxed) {
            scope.free.push(files);
        } else {
            scope.spent.push((files.number, files.critical));
        }
    }
}

/// What a keeper knows of cgroups: paths, prepared before its fork and good as long as the leaf and the program are.
pub(super) struct Place {
    /// `cgroup.procs`, `cgroup.kill` of the tree's leaf and `cgroup.procs` of the runner's; null without a leaf.
    procs: *const c_char,
    kill: *const c_char,
    home: *const c_char,
    outside: &'static [CString],
}

impl Place {
    pub(super) fn new(leaf: Option<&Leaf>) -> Self {
        let files = leaf.and_then(|leaf| leaf.files.as_ref());
        let pointer = |path: &CString| path.as_ptr();
        Self {
            procs: files.map_or(std::ptr::null(), |files| pointer(&files.procs)),
            kill: files.map_or(std::ptr::null(), |files| pointer(&files.kill)),
            home: files.map_or(std::ptr::null(), |files| pointer(&files.home)),
            outside: OUTSIDE.get().map_or(&[], Vec::as_slice),
        }
    }

    /// In the child, which is in the leaf itself: ends everything else in it with SIGKILL.
    pub(super) fn kill(&self) {
        if !self.kill.is_null() && write(self.home, b"0") {
            write(self.kill, b"1");
        }
    }

    /// In the child, which is in the leaf itself: moves everything else in it out of the scope, so that it lives on when the
    /// scope is gone.
    pub(super) fn release(&self, this: pid_t) {
        // What was forked before its parent was moved is there in the next round.
        let mut left = true;
        for _ in 0..ROUNDS {
            if !std::mem::replace(&mut left, false) {
                return;
            }
            each_process(self.procs, &mut |pid| {
                if pid != this {
                    left = true;
                    self.put_outside(pid);
                }
            });
        }
    }

    /// In the child: moves this process into the leaf; whether that went well.
    pub(super) fn enter(&self) -> bool {
        write(self.procs, b"0")
    }

    pub(super) fn has_leaf(&self) -> bool {
        !self.procs.is_null()
    }

    /// In the child: moves one process out of the scope, if there is or may be one.
    pub(super) fn put_outside(&self, pid: pid_t) {
        let mut text = [0; 10];
        let pid = digits(pid, &mut text);
        let _ = self.outside.iter().any(|procs| write(procs.as_ptr(), pid));
    }
}

/// In the child: calls `each` with the processes that the file lists, one a line.
fn each_process(procs: *const c_char, each: &mut dyn FnMut(pid_t)) {
    // SAFETY: a path that ends in a NUL; see `Place`.
    let file = unsafe { libc::open(procs, libc::O_RDONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return;
    }
    let mut buffer = [0u8; 4096];
    let mut kept = 0;
    loop {
        // SAFETY: reads at most what is left of the buffer.
        let got = unsafe { libc::read(file, buffer[kept..].as_mut_ptr().cast(), buffer.len() - kept) };
        let Ok(got @ 1..) = usize::try_from(got) else { break };
        let filled = kept + got;
        let whole = buffer[..filled].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        buffer[..whole].split(|&b| b == b'\n').filter_map(number_in).for_each(&mut *each);
        buffer.copy_within(whole..filled, 0);
        kept = filled - whole;
    }
    // SAFETY: opened above and not used any more.
    unsafe { libc::close(file) };
}

/// In the child: whether the file took the bytes.
fn write(path: *const c_char, bytes: &[u8]) -> bool {
    // SAFETY: a path that ends in a NUL, see `Place`; the write is bounded by the bytes, the descriptor is ours.
    unsafe {
        let file = libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC);
        if file < 0 {
            return false;
        }
        let written = libc::write(file, bytes.as_ptr().cast(), bytes.len());
        libc::close(file);
        usize::try_from(written) == Ok(bytes.len())
    }
}
