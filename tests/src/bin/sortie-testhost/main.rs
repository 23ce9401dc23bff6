//! The test kit's helper program; only the kit and `cargo xtask` start it. Without arguments it is the first process of a
//! `sortie_tests::sshd` host: makes the host's namespaces and root file system as the test says, starts its SSH server
//! for each connection, and ends with the test. Standard input is the listening socket, standard output the control
//! socket to the test, standard error the host's log.
//!
//! - `lab`: holds a `sortie_tests::host` lab; standard input is the control socket, standard error the lab's log.
//! - `sweep NAME`: removes the control group of a lab whose holder was killed.
//! - `images [--full]`: builds the images of the kinds of hosts, so that no test waits for that.

mod cgroup;
mod images;
mod lab;
mod machine;
mod root;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, fork};
use sortie_tests::sshd::ENDED;
use sortie_tests::sshd::spec::Spec;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = match arguments.as_slice() {
        [] => start(),
        ["lab"] => start_lab(),
        ["sweep", name] => cgroup::mount_own().map(|()| cgroup::remove(name)),
        ["images"] => images::build(false),
        ["images", "--full"] => images::build(true),
        _ => Err(anyhow!("no such task: {arguments:?}")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sortie-testhost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_lab() -> Result<()> {
    // SAFETY: nothing else in this process owns this descriptor; it is used by nothing else from here on.
    let control = unsafe { OwnedFd::from_raw_fd(0) };
    lab::run(UnixStream::from(control))
}

fn start() -> Result<()> {
    // SAFETY: nothing else in this process owns these descriptors; they are used by nothing but these two from here on.
    let (listener, control) = unsafe { (OwnedFd::from_raw_fd(0), OwnedFd::from_raw_fd(1)) };
    let listener = TcpListener::from(listener);
    let mut control = UnixStream::from(control);
    let mut line = String::new();
    BufReader::new(&control).read_line(&mut line).context("the control socket")?;
    let spec: Spec = serde_json::from_str(&line).context("the description of the host")?;

    match hold(&spec, listener, &mut control) {
        // Only in the host does this return; its end is the end of the host.
        Ok(None) => Ok(()),
        ended => {
            if let Err(error) = &ended {
                say_error(&mut control, error);
            }
            // The test may still use what is in there, or may have gone first.
            let _ = std::io::copy(&mut control, &mut std::io::sink());
            std::fs::remove_dir_all(&spec.scratch).context("removing the scratch directory")?;
            ended.map(drop)
        }
    }
}

/// Forks the host's first process and waits until it has ended; `None` in that process.
fn hold(spec: &Spec, listener: TcpListener, control: &mut UnixStream) -> Result<Option<()>> {
    // Of all namespaces this one alone is not entered by the caller but by its children.
    unshare(CloneFlags::CLONE_NEWPID).context("making a pid namespace")?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            // Should this program be killed from outside, the host must not outlive it.
            let ended = prctl::set_pdeathsig(Signal::SIGKILL)
                .context("prctl")
                .and_then(|()| run_host(spec, &listener, control));
            if let Err(error) = ended {
                say_error(control, &error);
            }
            Ok(None)
        }
        ForkResult::Parent { child } => {
            say(control, &format!("pid {child}"))?;
            // From here the host alone holds it: with the host the port closes.
            drop(listener);
            nix::sys::wait::waitpid(child, None).context("waiting for the host")?;
            let _ = say(control, ENDED);
            Ok(Some(()))
        }
    }
}

/// A line in one write: the helper and the host's first process speak at the same time.
fn say(control: &mut UnixStream, line: &str) -> std::io::Result<()> {
    control.write_all(format!("{line}\n").as_bytes())
}

/// Tells the test what went wrong, and the log.
fn say_error(control: &mut UnixStream, error: &anyhow::Error) {
    let _ = say(control, &format!("error {}", format!("{error:#}").replace('\n', " ")));
    eprintln!("sortie-testhost: {error:#}");
}

/// Pid 1 of the host. Returns when the test has closed the control socket; the kernel then ends all that is left.
fn run_host(spec: &Spec, listener: &TcpListener, control: &mut UnixStream) -> Result<()> {
    let network = if spec.own_network { CloneFlags::CLONE_NEWNET } else { CloneFlags::empty() };
    unshare(network | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
        .context("making namespaces")?;
    let layer = root::enter(spec)?;
    // Orphans of the host become children of this process: the kernel reaps them all. A handler, not SIG_IGN, which the
    // server would inherit.
    let reap = SigAction::new(
        SigHandler::Handler(on_child),
        SaFlags::SA_NOCLDWAIT | SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGCHLD, &reap) }.context("sigaction")?;
    say(control, &format!("ready {}", layer.as_raw_fd()))?;
    loop {
        let mut fds = [
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result.context("poll")?,
        };
        // The test sends nothing more: whatever happens on the control socket is its end.
        if fds[0].any() == Some(true) {
            return Ok(());
        }
        if fds[1].any() == Some(true) {
            let (connection, _) = listener.accept().context("accept")?;
            serve(spec, connection.into());
        }
    }
}

extern "C" fn on_child(_: libc::c_int) {}

fn serve(spec: &Spec, connection: OwnedFd) {
    let started = connection.try_clone().and_then(|copy| {
        Command::new(&spec.serve[0])
            .args(&spec.serve[1..])
            .env_clear()
            .env("PATH", PATH)
            .stdin(connection)
            .stdout(copy)
            .stderr(Stdio::inherit())
            .spawn()
    });
    if let Err(error) = started {
        eprintln!("sortie-testhost: starting {}: {error}", spec.serve[0]);
    }
}
