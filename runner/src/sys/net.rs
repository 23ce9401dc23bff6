//! Connections that are waited for together with other things.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Begins a connection and returns at once. It can be written to when it is there, or when it is refused: `take_error` says which.
///
/// # Errors
/// The kernel's, where it knows at once that there is no way.
pub(crate) fn begin_connect(address: &SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) takes numbers alone.
    let number = unsafe { libc::socket(family, kind, 0) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    let socket = TcpStream::from(unsafe { OwnedFd::from_raw_fd(number) });
    let port = address.port().to_be();
    let result = match address {
        SocketAddr::V4(address) => {
            // SAFETY: all zeros is a valid sockaddr_in.
            let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            to.sin_family = libc::AF_INET as libc::sa_family_t;
            to.sin_port = port;
            to.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
            // SAFETY: reads as many bytes of the structure as it has.
            unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), size_of_val(&to) as _) }
        }
        SocketAddr::V6(address) => {
            // SAFETY: all zeros is a valid sockaddr_in6.
            let mut to: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            to.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            to.sin6_port = port;
            to.sin6_addr.s6_addr = address.ip().octets();
            // SAFETY: reads as many bytes of the structure as it has.
            unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), size_of_val(&to) as _) }
        }
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
    }
    Ok(socket)
}
