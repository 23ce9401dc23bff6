//! A lab: one process that holds the namespaces of several hosts, and starts and ends them as the test asks. The test's
//! end of the control socket is all that keeps it alive.
//!
//! Two processes: the first (in the machine's namespaces but that of mounts) waits for the second and removes what no
//! namespace takes along, control groups and the test's directory; the second is pid 1 of a pid namespace, so that the
//! kernel ends every process of every host with it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use sortie_tests::host::spec::{Answer, GATEWAY, HOSTS, LabSpec, PREFIX, Request};
use sortie_tests::sshd::ENDED;

use super::machine::{BRIDGE, Host, ip};
use super::{cgroup, say, say_error};

/// Holds a lab until the test closes the control socket; the lab's own pid 1 returns here too.
pub(super) fn run(mut control: UnixStream) -> Result<()> {
    let mut line = String::new();
    // By bytes: what follows is for the lab's pid 1, so nothing more may be read here.
    read_line(&control, &mut line)?;
    let spec: LabSpec = serde_json::from_str(&line).context("the description of the lab")?;
    let ended = hold(&spec, &mut control);
    if let Ok(None) = ended {
        return Ok(());
    }
    if let Err(error) = &ended {
        say_error(&mut control, error);
    }
    // The test may still use what is in there, or may have gone first.
    let _ = std::io::copy(&mut control, &mut std::io::sink());
    fs::remove_dir_all(&spec.scratch).context("removing the scratch directory")?;
    ended.map(drop)
}

fn read_line(mut control: &UnixStream, line: &mut String) -> Result<()> {
    let mut byte = [0];
    let mut bytes = Vec::new();
    while std::io::Read::read(&mut control, &mut byte).context("the control socket")? == 1 && byte != *b"\n" {
        bytes.push(byte[0]);
    }
    *line = String::from_utf8(bytes).context("the control socket")?;
    Ok(())
}

/// Forks the lab's pid 1 and waits until it has ended; `None` in that process.
fn hold(spec: &LabSpec, control: &mut UnixStream) -> Result<Option<()>> {
    allow_inotify();
    cgroup::mount_own()?;
    cgroup::sweep();
    cgroup::make(&spec.cgroup)?;
    unshare(CloneFlags::CLONE_NEWPID).context("making a pid namespace")?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            // Should the first process be killed from outside, the hosts must not outlive it.
            let ended =
                prctl::set_pdeathsig(Signal::SIGKILL).context("prctl").and_then(|()| run_lab(spec, control));
            if let Err(error) = ended {
                say_error(control, &error);
            }
            Ok(None)
        }
        ForkResult::Parent { child } => {
            say(control, &format!("pid {child}"))?;
            waitpid(child, None).context("waiting for the lab")?;
            cgroup::remove(&spec.cgroup);
            let _ = say(control, ENDED);
            Ok(Some(()))
        }
    }
}

/// A booted systemd takes about five inotify instances, and the kernel's default is 128 for the whole machine: with it
/// some hosts of a larger lab never start their sshd. A machine that does not let us may still do for a few hosts.
fn allow_inotify() {
    const PATH: &str = "/proc/sys/fs/inotify/max_user_instances";
    const WANTED: u32 = 8192;
    let present = fs::read_to_string(PATH).ok().and_then(|text| text.trim().parse::<u32>().ok());
    if present.is_some_and(|present| present < WANTED) {
        let _ = fs::write(PATH, WANTED.to_string());
    }
}

/// Pid 1 of the lab. Returns when the test has closed the control socket; the kernel then ends all that is left.
fn run_lab(spec: &LabSpec, control: &mut UnixStream) -> Result<()> {
    enter().context("making the lab")?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    // Programs started from here get an empty mask again: `std::process` sees to that.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).context("sigprocmask")?;
    let children = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    let mut requests = BufReader::new(control.try_clone()?);
    say(control, "ready 0")?;
    loop {
        let mut fds = [
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result.context("poll")?,
        };
        let asked = fds[0].any() == Some(true);
        if fds[1].any() == Some(true) {
            while children.read_signal()?.is_some() {}
            reap(&mut hosts);
        }
        if asked {
            let mut line = String::new();
            if requests.read_line(&mut line).unwrap_or(0) == 0 {
                return Ok(());
            }
            let request = serde_json::from_str(&line).context("a request")?;
            let answer: Answer = serve(&mut hosts, spec, request).map_err(|error| format!("{error:#}"));
            control.write_all(format!("{}\n", serde_json::to_string(&answer)?).as_bytes())?;
        }
    }
}

/// Everything that ended, orphans too: this process is their pid 1.
fn reap(hosts: &mut BTreeMap<String, Host>) {
    while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
        let Some(pid) = status.pid() else { return };
        let code = if let WaitStatus::Exited(_, code) = status { Some(code) } else { None };
        for host in hosts.values_mut() {
            host.ended(pid, code);
        }
    }
}

fn serve(hosts: &mut BTreeMap<String, Host>, spec: &LabSpec, request: Request) -> Result<()> {
    match request {
        Request::Make(host) => {
            let host = Host::make(&spec.cgroup, *host)?;
            hosts.insert(host.name().to_owned(), host);
            Ok(())
        }
        Request::Start(name) => find(hosts, &name)?.start(),
        Request::Crash(name) => find(hosts, &name)?.crash(),
        Request::Link { name, up } => find(hosts, &name)?.link(up),
        Request::Filter { name, rules } => find(hosts, &name)?.filter(&rules),
    }
}

fn find<'a>(hosts: &'a mut BTreeMap<String, Host>, name: &str) -> Result<&'a mut Host> {
    hosts.get_mut(name).with_context(|| format!("no host {name:?} in this lab"))
}

/// Namespaces of the lab's own, mounts as systemd wants them, and the network.
fn enter() -> Result<()> {
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("making namespaces")?;
    mount_on("none", "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    mount_on("proc", "/proc", Some("proc"), MsFlags::empty(), None)?;
    // That of this network namespace; what was mounted below the machine's is hidden with it.
    mount_on("sysfs", "/sys", Some("sysfs"), MsFlags::empty(), None)?;
    cgroup::mount_below_sys()?;
    // Where systemd-nspawn and ip keep their state: nothing of it is the machine's.
    mount_on("run", "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    fs::create_dir(HOSTS)?;
    ip(
        None,
        &[
            "link set lo up".to_owned(),
            format!("link add {BRIDGE} type bridge"),
            format!("address add {GATEWAY}/{PREFIX} dev {BRIDGE}"),
            format!("link set {BRIDGE} up"),
        ],
    )
}

pub(super) fn mount_on(
    source: impl AsRef<Path>,
    target: impl AsRef<Path>,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    let (source, target) = (source.as_ref(), target.as_ref());
    mount(Some(source), target, kind, flags, options)
        .with_context(|| format!("mounting {} on {}", source.display(), target.display()))
}

/// Unmounts with all that is mounted below; nothing mounted there is no error.
pub(super) fn unmount(target: impl AsRef<Path>) -> Result<()> {
    match umount2(target.as_ref(), MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unmounting {}", target.as_ref().display())),
    }
}
