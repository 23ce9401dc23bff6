//! rtnetlink(7), as much as listing what the kernel knows of the network takes. What messages mean it does not know.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What one read takes: more than the kernel puts into one answer (netlink(7)).
const BUFFER: usize = 64 * 1024;

/// Bytes of a message's header: length, type, flags, sequence number, port.
const HEADER: usize = 16;

/// Asks for everything of a kind (`RTM_GETLINK`, …) and calls `each` with type and content of every message of the answer.
///
/// # Errors
/// The kernel's: netlink is not to be had, or it refuses.
pub(crate) fn dump(kind: u16, each: &mut dyn FnMut(u16, &[u8])) -> io::Result<()> {
    // SAFETY: socket(2) takes numbers alone.
    let number =
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    // Header, and a `struct rtgenmsg` of any family with what aligns it.
    let mut request = [0u8; HEADER + 4];
    request[..4].copy_from_slice(&(HEADER as u32 + 1).to_ne_bytes());
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: reads as many bytes as the array has. A socket without a peer sends to the kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut buffer = vec![0u8; BUFFER];
    loop {
        let count = super::fd::read(&socket, &mut buffer)?;
        let mut rest = &buffer[..count];
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some((kind, content, after)) = message(rest) {
            rest = after;
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    let errno = number_at(content, 0).cast_signed();
                    return Err(io::Error::from_raw_os_error(-errno));
                }
                _ => each(kind, content),
            }
        }
    }
}

/// Type and content of the first message, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = number_at(bytes, 0) as usize;
    let content = bytes.get(HEADER..length)?;
    let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
    Some((kind, content, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The 32-bit number at this place; 0 behind the end.
pub(crate) fn number_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The value of an attribute among those that begin at `at`; empty where there is none.
pub(crate) fn attribute(content: &[u8], at: usize, wanted: u16) -> &[u8] {
    let mut rest = content.get(at..).unwrap_or_default();
    while let [a, b, c, d, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = rest.get(4..length) else { break };
        // The two highest bits say how the kernel's own parser is to read it.
        if u16::from_ne_bytes([c, d]) & 0x3fff == wanted {
            return value;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_loopback_is_among_the_links() {
        let mut names = Vec::new();
        dump(libc::RTM_GETLINK, &mut |kind, content| {
            assert_eq!(kind, libc::RTM_NEWLINK);
            names.push(attribute(content, 16, libc::IFLA_IFNAME).to_vec());
        })
        .unwrap();
        assert!(names.contains(&b"lo\0".to_vec()), "{names:?}");
    }

    #[test]
    fn what_the_kernel_refuses_is_its_error() {
        let error = dump(u16::MAX, &mut |_, _| ()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0usize..20) {
            if let Some((_, content, after)) = message(&bytes) {
                prop_assert!(content.len() + after.len() + HEADER <= bytes.len());
            }
            prop_assert!(attribute(&bytes, at, 1).len() <= bytes.len());
        }
    }
}
