//! The processes of this machine as `/proc` shows them (`proc(5)`), and which of them a test started. It reads only;
//! ending a process is the caller's decision.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};

const MARK: &str = "SORTIE_TEST_MARK";

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid, as this process sees it.
    pub pid: i32,
    /// Its parent's pid, as this process sees it.
    pub ppid: i32,
    /// The state letter: `R`, `S`, `D`, `Z`, `T`, …
    pub state: char,
    /// The short name, at most 15 bytes.
    pub name: String,
    /// The arguments, separated by spaces; the short name in brackets where there are none (a zombie).
    pub command: String,
}

impl Process {
    /// Reads one process; `None` when there is none of that pid.
    pub fn read(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        // The name may hold anything, parentheses and spaces too: it ends at the last one.
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let mut fields = tail.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let ppid = fields.next()?.parse().ok()?;
        let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let raw = raw.strip_suffix(b"\0").unwrap_or(&raw);
        let command = String::from_utf8_lossy(raw).replace('\0', " ");
        let command = if command.is_empty() { format!("[{name}]") } else { command };
        Some(Self { pid, ppid, state, name, command })
    }

    /// Whether it has ended and waits only for its parent to take note.
    pub fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }
}

/// Every process that `/proc` shows. Those that end while it is read may be missing.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Process::read)
        .collect()
}

/// Every descendant of `pid`, zombies too, without `pid` itself. A process whose parent has ended belongs to another
/// parent by then; see [`Mark`].
pub fn descendants(pid: i32) -> Vec<Process> {
    descend(&all(), [pid].into())
}

fn descend(processes: &[Process], roots: HashSet<i32>) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
    for process in processes {
        children.entry(process.ppid).or_default().push(process);
    }
    let mut seen = roots.clone();
    let mut queue: Vec<i32> = roots.into_iter().collect();
    let mut found = Vec::new();
    while let Some(pid) = queue.pop() {
        for process in children.get(&pid).into_iter().flatten() {
            if seen.insert(process.pid) {
                found.push((*process).clone());
                queue.push(process.pid);
            }
        }
    }
    found
}

/// A value put into the environment of what a test starts, by which every descendant is found again, wherever it was
/// reparented to. Only one started with a cleared environment after its ancestors ended escapes; hosts with a pid
/// namespace of their own ([`crate::sshd`]) have no such gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark(String);

impl Mark {
    /// A mark that nothing else has.
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(format!("{}-{}-{}", process::id(), now.as_nanos(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Marks a command about to be started, so also all that it starts.
    pub fn apply(&self, command: &mut Command) {
        command.env(MARK, &self.0);
    }

    /// The variable's name and value, for other ways to start programs.
    pub fn variable(&self) -> (&'static str, &str) {
        (MARK, &self.0)
    }

    /// Every living process that carries the mark or descends from one that does.
    pub fn processes(&self) -> Vec<Process> {
        let entry = format!("{MARK}={}", self.0);
        let processes = all();
        let marked: Vec<_> =
            processes.iter().filter(|process| carries(process.pid, &entry)).cloned().collect();
        let roots = marked.iter().map(|process| process.pid).collect();
        let mut found = marked;
        found.extend(descend(&processes, roots));
        found.retain(|process| !process.is_zombie());
        found
    }

    /// Waits until no process of the mark is left.
    ///
    /// # Errors
    /// When one is left at the deadline; the error lists them.
    pub async fn gone(&self) -> Result<()> {
        crate::eventually("every process gone", || {
            let left = self.processes();
            ensure!(left.is_empty(), "left: {left:?}");
            Ok(())
        })
        .await
    }
}

impl Default for Mark {
    fn default() -> Self {
        Self::new()
    }
}

fn carries(pid: i32, entry: &str) -> bool {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ.split(|byte| *byte == 0).any(|variable| variable == std::ffi::OsStr::new(entry).as_bytes())
}

/// Sends `signal` to `pid`.
///
/// # Errors
/// When there is no such process or it may not be signalled.
pub fn kill(pid: i32, signal: nix::sys::signal::Signal) -> Result<()> {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)
        .with_context(|| format!("{signal} to {pid}"))
}
