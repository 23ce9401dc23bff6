//! The guardian: the parent of the server, which only waits.
//!
//! It is the reaper of everything the session started, so that what a command released has a parent; it passes signals
//! on, and it goes only when the server and every keeper are gone. It never reads a frame and holds no stream.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::Signal;

use crate::rollback::{self, Orders};
use crate::sys::fd::{self, Signals, Waiting};
use crate::sys::{cgroup, keeper, process};

/// Signals that end a session.
const STOP: [Signal; 3] = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT];

/// What the server reads and writes.
pub(crate) struct Streams {
    pub(crate) input: OwnedFd,
    pub(crate) output: OwnedFd,
    pub(crate) signals: Signals,
    /// The process to signal: READY.pid.
    pub(crate) guardian: i32,
}

pub(crate) enum Half {
    /// The exit status, after everything.
    Guardian(u8),
    Server(Streams),
}

/// Forks. Both halves return, the guardian's at the very end.
pub(crate) fn split() -> io::Result<Half> {
    fd::ensure_stdio_open()?;
    fd::close_inherited_on_exec();
    let signals = Signals::block(&[&STOP[..], &[Signal::SIGCHLD]].concat())?;
    // Held open by the guardian alone: its end is the end of the session.
    let (guardian_read, guardian_write) = fd::pipe()?;
    // Held open by the server and the keepers: its end is the guardian's.
    let (alive_read, alive_write) = fd::pipe()?;
    // What the guardian is to put back should the server die half way.
    let (orders_read, orders_write) = fd::pipe()?;
    let guardian = process::id();
    process::become_subreaper()?;
    match process::fork_before_threads()? {
        process::Side::Parent { child } => {
            drop((guardian_read, alive_write, orders_write));
            fd::set_nonblocking(&orders_read)?;
            let status = guard(child, signals, &alive_read, &orders_read)?;
            drop(guardian_write);
            Ok(Half::Guardian(status))
        }
        process::Side::Child => {
            drop((guardian_write, alive_read, orders_read, signals));
            if !process::die_with_parent(guardian)? {
                return Err(io::Error::other("the guardian is gone"));
            }
            process::set_name(c"sortie-server");
            keeper::set_lifelines(guardian_read, alive_write);
            rollback::set_guardian(orders_write);
            let (input, output) = (fd::duplicate_stdio(0)?, fd::duplicate_stdio(1)?);
            // Whatever else writes to standard output, or reads standard input, meets nothing.
            let null = fd::null_device()?;
            fd::replace_stdio(0, &null)?;
            fd::replace_stdio(1, &null)?;
            let signals = Signals::block(&STOP)?;
            Ok(Half::Server(Streams { input, output, signals, guardian }))
        }
    }
}

fn guard(server: i32, mut signals: Signals, alive: &OwnedFd, pipe: &OwnedFd) -> io::Result<u8> {
    process::set_name(c"sortie-guardian");
    let null = fd::null_device()?;
    for number in 0..3 {
        fd::replace_stdio(number, &null)?;
    }
    drop(null);
    process::give_back_code();
    let mut status = None;
    let mut all_gone = false;
    let mut orders = Orders::default();
    let mut listening = true;
    while !all_gone || status.is_none() {
        let mut waiting = Waiting::new();
        waiting.readable(signals.fd());
        if listening {
            waiting.readable(pipe.as_fd());
        }
        let alive_slot = (!all_gone).then(|| waiting.hangup(alive.as_fd()));
        waiting.wait(None)?;
        all_gone |= alive_slot.is_some_and(|slot| waiting.hung_up(slot));
        while let Some(signal) = signals.take() {
            if STOP.contains(&signal) && status.is_none() {
                process::signal(server, signal);
            }
        }
        let mut server_gone = false;
        while let Some(reaped) = process::reap_one() {
            if reaped.pid == server {
                status = Some(reaped.status);
                server_gone = true;
            }
        }
        if listening || server_gone {
            // Whatever a dead server said is in the pipe.
            listening = orders.read(pipe);
        }
        if server_gone {
            orders.fire();
        }
    }
    // Of keepers that were killed.
    cgroup::end_leaves();
    // A server that was killed did not end well, whatever number its death has.
    Ok(status.and_then(|s| u8::try_from(s).ok()).map_or(1, |s| if s > 128 { 1 } else { s }))
}
