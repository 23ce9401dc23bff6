//! A terminal for programs that insist on one: a pair of pty(7) descriptors.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Our end and the program's, which does not echo what it is given.
pub(crate) fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let open = |path: &str| {
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path);
        file.map(OwnedFd::from)
    };
    let ours = open("/dev/ptmx")?;
    let (mut number, unlocked): (libc::c_uint, libc::c_int) = (0, 0);
    // SAFETY: both take the address of an int that lives through the call, and change this terminal only.
    let failed = unsafe {
        libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlocked) < 0
            || libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTN as _, &raw mut number) < 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    let theirs = open(&format!("/dev/pts/{number}"))?;
    // SAFETY: tcgetattr fills the structure it is given, all zeros is valid before; tcsetattr reads it.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        libc::tcgetattr(theirs.as_raw_fd(), &raw mut settings);
        settings.c_lflag &= !libc::ECHO;
        libc::tcsetattr(theirs.as_raw_fd(), libc::TCSANOW, &raw const settings);
    }
    Ok((ours, theirs))
}
