//! The control groups of labs (`cgroups(7)`, version 2): unlike namespaces they do not go with their processes, so they
//! are named after the process that is to remove them, and every lab removes what dead ones left.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use sortie_tests::host::spec::CGROUP_PREFIX;

use super::lab::{mount_on, unmount};

const ROOT: &str = "/sys/fs/cgroup";

/// Gives this process a mount namespace with version 2 alone: the machine may have version 1 there, or both.
pub(super) fn mount_own() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
    mount_on("none", "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    unmount(ROOT)?;
    mount_below_sys()
}

pub(super) fn mount_below_sys() -> Result<()> {
    mount_on("cgroup2", ROOT, Some("cgroup2"), MsFlags::empty(), None)
}

pub(super) fn path(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

pub(super) fn make(name: &str) -> Result<()> {
    let path = path(name);
    fs::create_dir(&path).with_context(|| format!("making {}", path.display()))
}

/// Kills all that is in there and returns when it has ended.
pub(super) fn kill(name: &str) -> Result<()> {
    let path = path(name);
    if !path.exists() {
        return Ok(());
    }
    fs::write(path.join("cgroup.kill"), "1").with_context(|| format!("killing {}", path.display()))?;
    // The file says when its content changes: cgroup-v2.rst, "Populated notification".
    let events = path.join("cgroup.events");
    let file = File::open(&events)?;
    while fs::read_to_string(&events)?.contains("populated 1") {
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        // With an end, because a change between reading and polling is not told again.
        poll(&mut fds, PollTimeout::from(20u8))?;
    }
    Ok(())
}

/// Removes a group with all below it. What cannot be removed is left to the next [`sweep`].
pub(super) fn remove(name: &str) {
    if kill(name).is_ok() {
        remove_tree(&path(name));
    }
}

fn remove_tree(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            eprintln!("sortie-testhost: removing {}: {error}", path.display());
        }
        _ => {}
    }
}

/// Removes the groups of labs whose first process was killed.
pub(super) fn sweep() {
    let Ok(entries) = fs::read_dir(ROOT) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        // NAME-PID-RANDOM, the test's pid: a lab outlives its test only for the moment it takes to end.
        let owner = name.strip_prefix(CGROUP_PREFIX).and_then(|rest| rest.split('-').next());
        let Some(owner) = owner else { continue };
        let empty = fs::read_to_string(entry.path().join("cgroup.events"))
            .is_ok_and(|events| events.contains("populated 0"));
        if empty && !Path::new("/proc").join(owner).exists() {
            remove_tree(&entry.path());
        }
    }
}
