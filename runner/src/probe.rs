//! Looking whether a port takes connections and what a file has in it, as often as somebody waits for it. When to look it does not know.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use crate::command::Context;
use crate::facts;
use crate::failure::{Failure, reason};
use crate::sys::fd::Waiting;
use crate::sys::net::begin_connect;
use crate::tool::Tool;

/// How long a host may take to accept a connection or to refuse it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// RFC 1035 §2.3.4.
const LONGEST_NAME: usize = 255;

/// Bytes of a file that are read at a time.
const CHUNK: usize = 64 * 1024;

/// Smaller files are read at every look, in bytes.
const SMALL: u64 = 1024 * 1024;

/// A port that is to be open, or closed.
pub(crate) struct Port<'a> {
    host: &'a str,
    port: u16,
    open: bool,
}

impl<'a> Port<'a> {
    /// # Errors
    /// `INVALID_PARAMS` for a host that is neither a name nor an address.
    pub(crate) fn new(host: &'a str, port: u16, open: bool) -> Result<Self, Failure> {
        let of_name = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        if !host.bytes().all(of_name) || host.starts_with('-') || host.len() > LONGEST_NAME {
            return Err(Failure::params(format!("host: {host:?} is neither a name nor an address")));
        }
        Ok(Self { host, port, open })
    }

    /// Open is what accepts a connection at any address, closed what accepts none. A name without any address is neither.
    pub(crate) fn look(
        &self,
        context: &Context,
        until: Option<Instant>,
        seen: &mut String,
    ) -> Result<bool, Failure> {
        let addresses = self.addresses(context)?;
        *seen = ["no address is known of ", self.host].concat();
        if addresses.is_empty() {
            return Ok(false);
        }
        for address in addresses {
            let address = SocketAddr::new(address, self.port);
            let answer = accepts(context, &address, until)?;
            let is_open = answer.is_none();
            *seen = [&address.to_string(), ": ", answer.as_deref().unwrap_or("connections are accepted")]
                .concat();
            if is_open {
                return Ok(self.open);
            }
        }
        Ok(!self.open)
    }

    /// hosts(5) first, then whatever else the host asks, by getent(1): static programs know no NSS.
    fn addresses(&self, context: &Context) -> Result<Vec<IpAddr>, Failure> {
        if self.host.is_empty() {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        if let Ok(address) = self.host.parse() {
            return Ok(vec![address]);
        }
        let mut addresses = facts::addresses_of(self.host);
        if addresses.is_empty() {
            let ran = Tool::new("getent").args(["ahosts", self.host]).run(context)?;
            for line in ran.text().lines() {
                let address = line.split_whitespace().next().and_then(|word| word.parse().ok());
                // One line for each kind of socket.
                addresses.extend(address.filter(|address| !addresses.contains(address)));
            }
        }
        Ok(addresses)
    }
}

/// Nothing if a connection is accepted, else why not.
fn accepts(
    context: &Context,
    address: &SocketAddr,
    until: Option<Instant>,
) -> Result<Option<String>, Failure> {
    let socket = match begin_connect(address) {
        Ok(socket) => socket,
        Err(error) => return Ok(Some(reason(&error))),
    };
    let give_up = Instant::now() + ANSWERS_WITHIN;
    let give_up = until.map_or(give_up, |until| give_up.min(until));
    loop {
        let mut waiting = Waiting::new();
        let came = waiting.writable(socket.as_fd());
        let wake = waiting.readable(context.job.wake.fd());
        let left = give_up.saturating_duration_since(Instant::now());
        waiting.wait(Some(left)).map_err(|error| Failure::io("poll", &error))?;
        if waiting.came(wake) {
            context.job.wake.clear();
        }
        context.job.go_on()?;
        if waiting.came(came) {
            return Ok(match socket.take_error() {
                Ok(None) => None,
                Ok(Some(error)) | Err(error) => Some(reason(&error)),
            });
        }
        if left.is_zero() {
            return Ok(Some("no answer".to_owned()));
        }
    }
}

/// A path at which something is to be, with some text in it or not, or nothing.
pub(crate) struct File<'a> {
    pub(crate) path: &'a str,
    contains: &'a str,
    present: bool,
    /// The file that was read last: device, inode, size, time of change.
    read: Option<(u64, u64, u64, i64, i64)>,
}

impl<'a> File<'a> {
    pub(crate) fn new(path: &'a str, contains: &'a str, present: bool) -> Self {
        Self { path, contains, present, read: None }
    }

    pub(crate) fn look(&mut self, context: &Context, seen: &mut String) -> Result<bool, Failure> {
        let failed = |error: &std::io::Error| Failure::io(format!("cannot look at {:?}", self.path), error);
        let is_absent =
            |error: &std::io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        let mut say = |what: &str| *seen = [self.path, what].concat();
        let metadata = match fs::metadata(self.path) {
            Err(error) if is_absent(&error) => {
                say(" is not there");
                return Ok(!self.present);
            }
            result => result.map_err(|error| failed(&error))?,
        };
        if self.contains.is_empty() {
            say(" is there");
            return Ok(self.present);
        }
        if !metadata.is_file() {
            say(" is there, and no regular file");
            return Ok(!self.present);
        }
        let stamp =
            (metadata.dev(), metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec());
        // What may have changed within the grain of the clock is read again where that costs nothing to speak of.
        if self.read != Some(stamp) || metadata.size() < SMALL {
            // Without O_NONBLOCK a FIFO that came in its place would be waited for.
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
            let has = match fs::File::options().read(true).custom_flags(flags).open(self.path) {
                Err(error) if is_absent(&error) => false,
                Err(error) => return Err(failed(&error)),
                Ok(mut file) => {
                    let mut read = |buffer: &mut [u8]| {
                        context.job.go_on()?;
                        file.read(buffer).map_err(|error| failed(&error))
                    };
                    has_text(&mut read, self.contains.as_bytes())?
                }
            };
            if has {
                say(" has the text");
                return Ok(self.present);
            }
        }
        self.read = Some(stamp);
        say(" does not have the text");
        Ok(!self.present)
    }
}

/// Whether the text is in what is read, in whatever pieces that comes.
fn has_text(read: &mut dyn FnMut(&mut [u8]) -> Result<usize, Failure>, text: &[u8]) -> Result<bool, Failure> {
    let mut buffer = vec![0; CHUNK + text.len()];
    // What is kept of the piece before: the text may have begun there.
    let mut kept = 0;
    loop {
        let count = read(&mut buffer[kept..])?;
        if count == 0 {
            return Ok(false);
        }
        let end = kept + count;
        if buffer[..end].windows(text.len()).any(|window| window == text) {
            return Ok(true);
        }
        kept = end.min(text.len() - 1);
        buffer.copy_within(end - kept..end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_text_is_found_wherever_the_pieces_cut_it(
            content in "[ab]{0,40}", text in "[ab]{1,5}", pieces in proptest::collection::vec(1usize..7, 40),
        ) {
            let mut rest = content.as_bytes();
            let mut pieces = pieces.into_iter();
            let mut read = |buffer: &mut [u8]| {
                let count = pieces.next().unwrap_or(1).min(rest.len()).min(buffer.len());
                buffer[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                Ok(count)
            };
            prop_assert_eq!(has_text(&mut read, text.as_bytes()).unwrap(), content.contains(&text));
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for good in ["", "localhost", "a-b.example", "192.0.2.1", "2001:db8::1"] {
            assert!(Port::new(good, 1, true).is_ok(), "{good}");
        }
        for bad in ["-x", "a b", "a\n", "[::1]", "é"] {
            assert!(Port::new(bad, 1, true).is_err(), "{bad}");
        }
    }
}
