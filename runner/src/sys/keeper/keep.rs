//! The keeper's own life, in a process of its own: it waits for what it keeps, and for orders.
//!
//! All of it runs after a fork of a process with threads: no allocation, no lock, no panic.

use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use libc::{c_int, pid_t};
use nix::errno::Errno;

use super::leader::{Plan, StartStep, exit, start_leader, tell, tell_start_failed, tell_took};
use super::{DEFAULT_GRACE, ORDER_RELEASE, RECORD, TELL_ENDED, TELL_EXITED, TELL_RELEASED};
use crate::sys::tree::Tree;

/// How long SIGKILL is repeated before the keeper says that something cannot be ended.
const KILL_MILLISECONDS: u64 = 10_000;

/// The whole life of a keeper.
pub(super) fn keep(plan: &Plan<'_>) -> ! {
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
            tell_took(plan);
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
                tell_took(plan);
                tell(plan.status, TELL_RELEASED, c_int::try_from(count).unwrap_or(c_int::MAX), 0);
                exit(0);
            }
            Order::End(grace) => {
                let left = keep.end_tree(grace);
                tell_took(plan);
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
            // Once is enough: however many children end, one SIGCHLD waits to be read, see signal(7).
            libc::read(self.signals, sink.as_mut_ptr().cast(), sink.len());
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

/// The server's descriptors are not the keeper's, least of all the frames' own and other commands' pipes.
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
