//! Finding all descendants of a process in /proc.
//!
//! Runs in a keeper, which was forked from a process with threads: no allocation, no lock, nothing but system calls.

use libc::{c_int, c_void, pid_t};

/// Most processes of the machine that are looked at, and most descendants that are found, in one pass.
const CAPACITY: usize = 16_384;

#[derive(Clone, Copy)]
struct Process {
    pid: pid_t,
    parent: pid_t,
    found: bool,
}

/// Scratch memory for the walk, taken once from the kernel and touched only as far as needed.
pub(super) struct Tree {
    processes: &'static mut [Process],
}

impl Tree {
    /// None when the kernel has no memory.
    pub(super) fn new() -> Option<Self> {
        let bytes = CAPACITY * size_of::<Process>();
        // SAFETY: a private anonymous mapping touches nothing that exists.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the mapping is large enough, page aligned, never unmapped and used by nobody else; all zeros
        // is a valid Process.
        Some(Self { processes: unsafe { std::slice::from_raw_parts_mut(memory.cast(), CAPACITY) } })
    }

    /// Calls `each` with every descendant of `root`, parents before children; returns how many there were.
    pub(super) fn descendants(&mut self, root: pid_t, each: &mut dyn FnMut(pid_t)) -> usize {
        let count = self.read_processes();
        let processes = &mut self.processes[..count];
        // /proc lists by rising pid; a child mostly has a higher pid than its parent, so few passes are needed.
        loop {
            let mut news = false;
            for at in 0..processes.len() {
                if processes[at].found {
                    continue;
                }
                let parent = processes[at].parent;
                let belongs = parent == root
                    || processes.binary_search_by_key(&parent, |p| p.pid).is_ok_and(|p| processes[p].found);
                if belongs && processes[at].pid != root {
                    processes[at].found = true;
                    news = true;
                }
            }
            if !news {
                break;
            }
        }
        let mut total = 0;
        for process in processes.iter().filter(|p| p.found) {
            each(process.pid);
            total += 1;
        }
        total
    }

    fn read_processes(&mut self) -> usize {
        // SAFETY: a constant path; the descriptor is closed below.
        let proc =
            unsafe { libc::open(c"/proc".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) };
        if proc < 0 {
            return 0;
        }
        let mut count = 0;
        let mut buffer = Entries([0; 4096]);
        loop {
            // SAFETY: getdents64 writes at most the given length into the buffer.
            let filled =
                unsafe { libc::syscall(libc::SYS_getdents64, proc, buffer.0.as_mut_ptr(), buffer.0.len()) };
            let Ok(filled @ 1..) = usize::try_from(filled) else { break };
            let mut at = 0;
            while at + 19 < filled {
                // linux_dirent64: inode 8, offset 8, record length 2, type 1, then the name and a NUL.
                let length = usize::from(u16::from_ne_bytes([buffer.0[at + 16], buffer.0[at + 17]]));
                if length == 0 || at + length > filled {
                    break;
                }
                let pid = number(&buffer.0[at + 19..at + length]);
                at += length;
                let Some(pid) = pid else { continue };
                let Some(parent) = parent_of(proc, pid) else { continue };
                if count < CAPACITY {
                    self.processes[count] = Process { pid, parent, found: false };
                    count += 1;
                }
            }
        }
        // SAFETY: opened above and not used any more.
        unsafe { libc::close(proc) };
        count
    }
}

#[repr(align(8))]
struct Entries([u8; 4096]);

/// The number that a name is, up to its NUL.
fn number(name: &[u8]) -> Option<pid_t> {
    let end = name.iter().position(|&b| b == 0)?;
    number_in(&name[..end])
}

/// The number that these digits are.
pub(super) fn number_in(digits: &[u8]) -> Option<pid_t> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    decimal(digits)
}

/// The digits of a number above 0.
pub(super) fn digits(number: pid_t, text: &mut [u8; 10]) -> &[u8] {
    let mut at = text.len();
    let mut rest = number;
    while rest > 0 && at > 0 {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    &text[at..]
}

/// The parent of `pid` by `/proc/PID/stat`; none for a process that is gone or already dead.
fn parent_of(proc: c_int, pid: pid_t) -> Option<pid_t> {
    let mut path = [0u8; 24];
    let mut text = [0u8; 10];
    let pid = digits(pid, &mut text);
    path[..pid.len()].copy_from_slice(pid);
    path[pid.len()..pid.len() + 5].copy_from_slice(b"/stat");
    // SAFETY: the path ends in a NUL, as the array was zeroed.
    let file = unsafe { libc::openat(proc, path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return None;
    }
    let mut stat = [0u8; 512];
    // SAFETY: reads at most the length of the buffer; the descriptor is ours and closed after.
    let filled = unsafe {
        let filled = libc::read(file, stat.as_mut_ptr().cast::<c_void>(), stat.len());
        libc::close(file);
        filled
    };
    let text = &stat[..usize::try_from(filled).ok()?];
    // "pid (name) state parent …": the name may hold anything, the last parenthesis ends it.
    let after_name = text.iter().rposition(|&b| b == b')')?;
    let mut fields = text[after_name + 1..].split(|&b| b == b' ').filter(|f| !f.is_empty());
    let dead = matches!(fields.next()?, b"Z" | b"X");
    let parent = decimal(fields.next()?)?;
    // proc_pid_stat(5): the number of threads is field 20, the parent is 4. A main thread that has ended makes a process
    // look dead while its other threads live on.
    let threads = fields.nth(15).and_then(decimal).unwrap_or(1);
    if dead && threads <= 1 {
        return None;
    }
    Some(parent)
}

fn decimal(digits: &[u8]) -> Option<pid_t> {
    digits.iter().try_fold(0, |n: pid_t, b| b.is_ascii_digit().then(|| n * 10 + pid_t::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn grandchildren_in_other_sessions_are_found() {
        // The shell starts a grandchild by setsid and says its pid, then waits for its standard input.
        let mut shell = Command::new("sh")
            .args(["-c", "setsid sh -c 'echo $$; exec sleep 1000' & read line; kill $!"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.take().unwrap()), &mut said)
            .unwrap();
        let grandchild: pid_t = said.trim().parse().unwrap();
        let mut found = Vec::new();
        let mut tree = Tree::new().unwrap();
        let count =
            tree.descendants(pid_t::try_from(std::process::id()).unwrap(), &mut |pid| found.push(pid));
        drop(shell.stdin.take());
        // SAFETY: a process this test started and has not waited for.
        unsafe { libc::kill(grandchild, libc::SIGKILL) };
        shell.wait().unwrap();
        assert!(found.contains(&grandchild), "{found:?}");
        assert!(found.contains(&pid_t::try_from(shell.id()).unwrap()));
        assert_eq!(count, found.len());
    }

    #[test]
    fn only_numbers_are_processes() {
        assert_eq!(number(b"123\0"), Some(123));
        for name in [&b"self\0"[..], b"\0", b"12a\0", b"1234567890\0", b"12"] {
            assert_eq!(number(name), None);
        }
    }
}
