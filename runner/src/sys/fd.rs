//! File descriptors: pipes, wake-ups, polling and the standard streams.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// A pipe (read end, write end); neither end survives an exec.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// Makes reads and writes on this open file return instead of waiting.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Asks for a pipe that holds `bytes`; a refusal (the user's quota) leaves it as it is.
pub(crate) fn widen_pipe(fd: impl AsFd, bytes: i32) {
    let _ = fcntl(fd, FcntlArg::F_SETPIPE_SZ(bytes));
}

/// `/dev/null`, for reading and writing.
pub(crate) fn null_device() -> io::Result<OwnedFd> {
    Ok(std::fs::File::options().read(true).write(true).open("/dev/null")?.into())
}

/// A copy of standard stream `number`, above the standard ones and closed on exec.
pub(crate) fn duplicate_stdio(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the number is only looked up in this call; if it is not open the call fails with EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let copy = fcntl(borrowed, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: F_DUPFD_CLOEXEC returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Makes standard stream `number` (0, 1 or 2) another open file.
pub(crate) fn replace_stdio(number: RawFd, with: &OwnedFd) -> io::Result<()> {
    debug_assert!((0..=2).contains(&number));
    // SAFETY: dup2 on valid numbers; 0 to 2 are owned by nobody in this program, which uses copies of them.
    if unsafe { libc::dup2(with.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes sure that 0, 1 and 2 are open, so that no later file takes such a number.
pub(crate) fn ensure_stdio_open() -> io::Result<()> {
    loop {
        let fd = null_device()?;
        if fd.as_raw_fd() > 2 {
            return Ok(());
        }
        std::mem::forget(fd);
    }
}

/// Closes on exec whatever this process was started with besides the standard streams.
pub(crate) fn close_inherited_on_exec() {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: close_range only sets a flag on this process's descriptors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if result == 0 {
        return;
    }
    // Before Linux 5.11: one at a time.
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    for number in open.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok()) {
        if number > 2 {
            // SAFETY: borrowed for this call only; a number that is closed by now gives EBADF.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
    }
}

/// Whether this is a pipe or a FIFO.
pub(crate) fn is_pipe(fd: impl AsFd) -> bool {
    let kind = nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_mode & libc::S_IFMT);
    kind == libc::S_IFIFO
}

/// Bytes that can be read at once.
pub(crate) fn readable_bytes(fd: impl AsFd) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the place given.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD as _, &raw mut count) };
    if result < 0 { 0 } else { u64::try_from(count).unwrap_or(0) }
}

/// Reads into `buffer`, trying again when a signal interrupts.
pub(crate) fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::read(fd.as_fd(), buffer) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Writes some of `bytes`, trying again when a signal interrupts.
pub(crate) fn write(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::write(fd.as_fd(), bytes) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Writes all of `bytes`, waiting for the other end as long as it takes.
pub(crate) fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            // The other end may have made the open file non-blocking (OpenSSH does so with sockets).
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut waiting = Waiting::new();
                waiting.writable(fd.as_fd());
                waiting.wait(None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What to wait for, and what came.
pub(crate) struct Waiting<'a> {
    fds: Vec<PollFd<'a>>,
}

/// The place of one descriptor in a [`Waiting`].
#[derive(Clone, Copy)]
pub(crate) struct Slot(usize);

impl<'a> Waiting<'a> {
    pub(crate) fn new() -> Self {
        Self { fds: Vec::with_capacity(8) }
    }

    pub(crate) fn readable(&mut self, fd: BorrowedFd<'a>) -> Slot {
        self.add(fd, PollFlags::POLLIN)
    }

    pub(crate) fn writable(&mut self, fd: BorrowedFd<'a>) -> Slot {
        self.add(fd, PollFlags::POLLOUT)
    }

    /// Only that the other end is gone.
    pub(crate) fn hangup(&mut self, fd: BorrowedFd<'a>) -> Slot {
        self.add(fd, PollFlags::empty())
    }

    fn add(&mut self, fd: BorrowedFd<'a>, flags: PollFlags) -> Slot {
        self.fds.push(PollFd::new(fd, flags));
        Slot(self.fds.len() - 1)
    }

    /// Waits until something came or `timeout` passed; none waits for ever. A signal counts as nothing.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        // Rounded up, or a wait of less than a millisecond would spin.
        let milliseconds =
            timeout.map(|t| i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
        let timeout = milliseconds
            .map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX));
        match nix::poll::poll(&mut self.fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether anything came for this descriptor, the end of the other side included.
    pub(crate) fn came(&self, slot: Slot) -> bool {
        self.fds[slot.0].any().unwrap_or(false)
    }

    /// Whether the other end is gone.
    pub(crate) fn hung_up(&self, slot: Slot) -> bool {
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        self.fds[slot.0].revents().is_some_and(|flags| flags.intersects(gone))
    }
}

/// Wakes a thread out of [`Waiting::wait`].
#[derive(Debug)]
pub(crate) struct Wake(EventFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, and then the sleeper is awake.
        let _ = self.0.write(1);
    }

    pub(crate) fn clear(&self) {
        let _ = self.0.read();
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Signals as something to read, blocked everywhere else.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Call before any thread exists: threads inherit the mask.
    pub(crate) fn block(signals: &[Signal]) -> io::Result<Self> {
        let set = SigSet::from_iter(signals.iter().copied());
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next signal that came, if any.
    pub(crate) fn take(&mut self) -> Option<Signal> {
        let info = self.0.read_signal().ok()??;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
