//! Looking into a host from outside, without its server's help: its processes, its files, and commands run in it out of
//! band. All by `/proc`, so nothing in the host can hide or is disturbed.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::Sshd;
use super::spec::System;
use crate::process;

/// A process of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostProcess {
    /// Its pid in the host.
    pub pid: i32,
    /// Its parent's pid in the host; 0 for one outside.
    pub ppid: i32,
    /// Its pid on this machine.
    pub machine_pid: i32,
    /// The state letter.
    pub state: char,
    /// The short name.
    pub name: String,
    /// The arguments, separated by spaces.
    pub command: String,
}

/// A file, directory or other thing in a host's writable layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path in the host.
    pub path: PathBuf,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Whether it stands for something of the lower layer that was removed.
    pub is_whiteout: bool,
    /// Bytes.
    pub size: u64,
    /// The permission bits, special ones included.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
}

impl Sshd {
    /// All processes of the host except its first, the SSH server's own, and ended ones that those have yet to reap.
    ///
    /// # Errors
    /// When the host has ended.
    pub fn processes(&self) -> Result<Vec<HostProcess>> {
        let own = namespace(self.init).context("the host has ended")?;
        let depth = inner_pids(self.init).context("the host has ended")?.len();
        let mut found = Vec::new();
        let mut pids = HashMap::new();
        for process in process::all() {
            if namespace(process.pid).is_none_or(|namespace| namespace != own) {
                continue;
            }
            let Some(pid) = inner_pids(process.pid).and_then(|pids| pids.get(depth - 1).copied()) else {
                continue;
            };
            pids.insert(process.pid, (pid, is_server(&process.name)));
            found.push((pid, process));
        }
        let processes = found.into_iter().filter_map(|(pid, process)| {
            let (ppid, of_server) = pids.get(&process.ppid).copied().unwrap_or((0, false));
            let reaped_soon = process.is_zombie() && (of_server || ppid <= 1);
            let shown = pid != 1 && !is_server(&process.name) && !reaped_soon;
            shown.then_some(HostProcess {
                pid,
                ppid,
                machine_pid: process.pid,
                state: process.state,
                name: process.name,
                command: process.command,
            })
        });
        Ok(processes.collect())
    }

    /// Waits until [`Sshd::processes`] is empty.
    ///
    /// # Errors
    /// When a process is left at the deadline, or the host has ended.
    pub async fn quiet(&self) -> Result<()> {
        crate::eventually("no process left on the host", || {
            let left = self.processes()?;
            ensure!(left.is_empty(), "left: {left:?}");
            Ok(())
        })
        .await
    }

    /// Signals a process by its pid in the host.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&self, pid: i32, signal: Signal) -> Result<()> {
        let processes = self.processes()?;
        let process = processes.iter().find(|process| process.pid == pid);
        let process = process.with_context(|| format!("no process {pid} on the host"))?;
        process::kill(process.machine_pid, signal)
    }

    /// A command line for `sh`, run as root in the host and out of band, with no standard input.
    ///
    /// # Errors
    /// When it cannot be started. Its status is in the output.
    pub fn run(&self, script: &str) -> Result<Output> {
        Command::new("nsenter")
            .args(["-t", &self.init.to_string(), "-m", "-u", "-i", "-n", "-p", "--", "/bin/sh", "-c", script])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .output()
            .context("starting nsenter")
    }

    /// Where a path of the host is found from this machine. An absolute symbolic link on the way leads astray.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// All that the host has in its writable layers: every file that was ever made or changed there, by whomever and
    /// wherever (except in `/proc` and `/dev`), sorted by path.
    ///
    /// # Errors
    /// When the host has ended.
    pub fn files(&self) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        walk(Path::new(&format!("/proc/{}/fd/{}", self.init, self.layer)), Path::new("/"), &mut found)?;
        if self.system == System::Machine {
            // To change what is in a directory of the lower layer, the kernel makes it in the upper one too.
            found.retain(|entry| !(entry.is_dir && entry.path.is_dir()));
        }
        for dir in &self.dirs {
            walk(&self.path(dir), Path::new(dir), &mut found)?;
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found.dedup_by(|a, b| a.path == b.path);
        Ok(found)
    }

    /// What [`Sshd::files`] has that was not there when the host started, or at the last [`Sshd::rebase`].
    ///
    /// # Errors
    /// When the host has ended.
    pub fn new_files(&self) -> Result<Vec<Entry>> {
        let mut files = self.files()?;
        files.retain(|entry| self.baseline.binary_search(&entry.path).is_err());
        Ok(files)
    }

    /// Takes the present files for given.
    ///
    /// # Errors
    /// When the host has ended.
    pub fn rebase(&mut self) -> Result<()> {
        self.baseline = self.files()?.into_iter().map(|entry| entry.path).collect();
        Ok(())
    }
}

fn is_server(name: &str) -> bool {
    matches!(name, "sshd" | "sshd-session" | "sshd-auth" | "dropbear")
}

fn namespace(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// The pids of a process in all the namespaces it is seen in, outermost first.
pub(crate) fn inner_pids(pid: i32) -> Option<Vec<i32>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().map(|pid| pid.parse().ok()).collect()
}

fn walk(real: &Path, shown: &Path, found: &mut Vec<Entry>) -> Result<()> {
    let entries = match fs::read_dir(real) {
        Ok(entries) => entries,
        // It went away since its parent was read; the roots of the walk always exist.
        Err(error) if error.kind() == ErrorKind::NotFound && shown.parent().is_some() => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", shown.display())),
    };
    for entry in entries.filter_map(Result::ok) {
        let path = shown.join(entry.file_name());
        // What goes away meanwhile is not there.
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        let is_whiteout = metadata.file_type().is_char_device() && metadata.rdev() == 0;
        if metadata.is_dir() {
            walk(&entry.path(), &path, found)?;
        }
        found.push(Entry {
            path,
            is_dir: metadata.is_dir(),
            is_whiteout,
            size: metadata.len(),
            mode: metadata.permissions().mode() & 0o7777,
            uid: metadata.uid(),
        });
    }
    Ok(())
}
