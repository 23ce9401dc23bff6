//! Asks systemd for a transient scope to hold the session: just as much of D-Bus as one method call takes.
//!
//! Knows bytes and sockets. What is done with the scope, and what without one, is `sys/cgroup.rs`'s affair. Nothing here
//! is ever waited for by the main thread, and no failure here is an error: a session without a scope is one all the same.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::sys::keeper::DEFAULT_GRACE;
use crate::sys::{cgroup, host, start};

/// systemd's own socket, which root alone may use and where no bus is needed, and the system bus.
const SOCKETS: [(&str, bool); 2] = [("/run/systemd/private", false), ("/run/dbus/system_bus_socket", true)];

/// How long the first command waits for the scope; from then on commands do without until there is one.
const COMMANDS_WAIT: Duration = Duration::from_millis(500);

/// How long a busy systemd has.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the scope has beyond time to live and grace: the cap of a critical section, which nothing may end half way.
const SLACK: Duration = Duration::from_secs(30 * 60);

/// Bytes that the fields, or the body, of a message have at the most.
const MOST_IN_MESSAGE: usize = 1024 * 1024;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

/// Begins to move the session into a scope of its own, where that is possible: root, and systemd on cgroup v2.
pub(crate) fn ask_for_one(session: &str, guardian: i32, ttl: Duration) {
    if host::uid() != 0 || !cgroup::is_usable() {
        return;
    }
    cgroup::asked_for(Instant::now() + COMMANDS_WAIT);
    let unit = format!("sortie-{session}.scope");
    let call = start_transient_unit(&unit, ttl + DEFAULT_GRACE + SLACK);
    let work = move || {
        let until = Instant::now() + PATIENCE;
        match SOCKETS.iter().find_map(|(path, is_bus)| ask(path, *is_bus, &call, until).ok()) {
            Some(stream) => wait_for_scope(stream, &unit, guardian, until),
            None => cgroup::refused(),
        }
    };
    if start::thread(c"scope", 64 * 1024, Box::new(work)).is_err() {
        cgroup::refused();
    }
}

/// Calls, and reads the answer; fails unless it is that the job is queued.
fn ask(path: &str, is_bus: bool, call: &[u8], until: Instant) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))?;
    converse(&mut stream, is_bus, call)?;
    Ok(stream)
}

fn converse(stream: &mut (impl Read + Write), is_bus: bool, call: &[u8]) -> io::Result<()> {
    // D-Bus specification, "Authentication Protocol": who we are (uid 0, in hexadecimal) is known by the socket. All in one
    // flight: what follows BEGIN is messages.
    let mut flight = b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n".to_vec();
    if is_bus {
        flight.append(&mut message("org.freedesktop.DBus", "/org/freedesktop/DBus", "Hello", "", &[]));
    }
    flight.extend_from_slice(call);
    stream.write_all(&flight)?;
    let mut said = [0u8; 3];
    stream.read_exact(&mut said)?;
    let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
    if &said != b"OK " {
        return Err(refused());
    }
    while said[0] != b'\n' {
        stream.read_exact(&mut said[..1])?;
    }
    let mut answers = if is_bus { 2 } else { 1 };
    while answers > 0 {
        match read_message(stream)? {
            METHOD_RETURN => answers -= 1,
            ERROR => return Err(refused()),
            // A signal.
            _ => {}
        }
    }
    Ok(())
}

/// The kind of the next message; the rest of it is passed over.
fn read_message(stream: &mut impl Read) -> io::Result<u8> {
    let mut head = [0u8; 16];
    stream.read_exact(&mut head)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
    let (body, fields) = (word(4), word(12));
    // Every machine that we run on has this byte order, and so has its systemd.
    if head[0] != b'l' || body.max(fields) > MOST_IN_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut rest = fields.next_multiple_of(8) + body;
    let mut sink = [0u8; 512];
    while rest > 0 {
        let part = rest.min(sink.len());
        stream.read_exact(&mut sink[..part])?;
        rest -= part;
    }
    Ok(head[1])
}

/// Waits until systemd has moved this process. It says when by signals, but not on every socket: so any word of it, or a
/// short while, is a reason to look.
fn wait_for_scope(mut stream: UnixStream, unit: &str, guardian: i32, until: Instant) {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
    let mut sink = [0u8; 4096];
    while !cgroup::adopt(unit, guardian) {
        // What is said does not matter, unless it is that there is no systemd any more.
        if Instant::now() > until || matches!(stream.read(&mut sink), Ok(0)) {
            return cgroup::refused();
        }
    }
}

/// The call that makes the scope: org.freedesktop.systemd1(5), StartTransientUnit; its properties: systemd.scope(5),
/// systemd.resource-control(5), systemd.unit(5).
fn start_transient_unit(unit: &str, lifetime: Duration) -> Vec<u8> {
    let mut body = Bytes::default();
    body.string(unit);
    body.string("fail");
    let properties = body.begin_array(8);
    body.property("Description", "s");
    body.string("Sortie session");
    body.property("PIDs", "au");
    let array = body.begin_array(4);
    // Whoever calls, and so nobody else's number should this be another namespace than systemd's.
    body.word(0);
    body.end_array(array);
    body.property("Delegate", "b");
    body.word(1);
    body.property("RuntimeMaxUSec", "t");
    body.long(u64::try_from(lifetime.as_micros()).unwrap_or(u64::MAX));
    body.property("CollectMode", "s");
    body.string("inactive-or-failed");
    body.end_array(properties);
    // Further units: none.
    let units = body.begin_array(8);
    body.end_array(units);
    let (name, path) = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1");
    message(name, path, "StartTransientUnit", "ssa(sv)a(sa(sv))", &body.0)
}

/// A method call: D-Bus specification, "Message Format". For systemd the interface is the destination's name with
/// `.Manager`, for the bus the name itself.
fn message(destination: &str, path: &str, member: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut message = Bytes(vec![b'l', METHOD_CALL, 0, 1]);
    message.word(u32::try_from(body.len()).unwrap_or(u32::MAX));
    // A number to answer to; a bus wants each used once.
    message.word(if body.is_empty() { 1 } else { 2 });
    let interface = if body.is_empty() { destination } else { "org.freedesktop.systemd1.Manager" };
    let fields = message.begin_array(8);
    for (code, kind, value) in
        [(1, "o", path), (3, "s", member), (2, "s", interface), (6, "s", destination), (8, "g", signature)]
    {
        if value.is_empty() {
            continue;
        }
        message.pad(8);
        message.0.push(code);
        message.signature(kind);
        if kind == "g" { message.signature(value) } else { message.string(value) }
    }
    message.end_array(fields);
    message.pad(8);
    message.0.extend_from_slice(body);
    message.0
}

/// Values as D-Bus writes them, little-endian: its specification, "Marshaling".
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn pad(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn word(&mut self, value: u32) {
        self.pad(4);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn long(&mut self, value: u64) {
        self.pad(8);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn string(&mut self, value: &str) {
        self.word(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, value: &str) {
        self.0.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
    }

    /// Begins an array of elements that begin at multiples of `alignment`; where its length and its elements are.
    fn begin_array(&mut self, alignment: usize) -> (usize, usize) {
        self.word(0);
        let at = self.0.len() - 4;
        self.pad(alignment);
        (at, self.0.len())
    }

    /// The length does not count the padding before the first element.
    fn end_array(&mut self, (at, begin): (usize, usize)) {
        let length = u32::try_from(self.0.len() - begin).unwrap_or(u32::MAX);
        self.0[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Begins one `(sv)`: its value comes next.
    fn property(&mut self, name: &str, signature: &str) {
        self.pad(8);
        self.string(name);
        self.signature(signature);
    }
}

/// What whoever listens on the socket of systemd says.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(said: &[u8]) {
    struct Socket<'a>(&'a [u8]);
    impl Read for Socket<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for Socket<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for is_bus in [false, true] {
        let consent = converse(&mut Socket(said), is_bus, b"call");
        assert!(consent.is_err() || said.starts_with(b"OK "), "{consent:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What systemd 252's own busctl(1) sends for the same call, but for the flag that lets it ask for a password.
    const CALL: &[u8] = b"l\x01\0\x01\xd0\0\0\0\x02\0\0\0\xb6\0\0\0\
        \x01\x01o\0\x19\0\0\0/org/freedesktop/systemd1\0\0\0\0\0\0\0\
        \x03\x01s\0\x12\0\0\0StartTransientUnit\0\0\0\0\0\0\
        \x02\x01s\0\x20\0\0\0org.freedesktop.systemd1.Manager\0\0\0\0\0\0\0\0\
        \x06\x01s\0\x18\0\0\0org.freedesktop.systemd1\0\0\0\0\0\0\0\0\
        \x08\x01g\0\x10ssa(sv)a(sa(sv))\0\0\0\
        \x0e\0\0\0sortie-0.scope\0\0\x04\0\0\0fail\0\0\0\0\xa3\0\0\0\0\0\0\0\
        \x0b\0\0\0Description\0\x01s\0\0\x0e\0\0\0Sortie session\0\0\
        \x04\0\0\0PIDs\0\x02au\0\0\0\0\x04\0\0\0\0\0\0\0\
        \x08\0\0\0Delegate\0\x01b\0\x01\0\0\0\0\0\0\0\
        \x0e\0\0\0RuntimeMaxUSec\0\x01t\0\0\0@cY\x8f\0\0\0\0\
        \x0b\0\0\0CollectMode\0\x01s\0\0\x12\0\0\0inactive-or-failed\0\0\0\0\0\0";

    const HELLO: &[u8] = b"l\x01\0\x01\0\0\0\0\x01\0\0\0\x6d\0\0\0\
        \x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0\
        \x03\x01s\0\x05\0\0\0Hello\0\0\0\
        \x02\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\
        \x06\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0";

    /// Whoever answers: what it says, and what it was told.
    struct Peer<'a>(&'a [u8], Vec<u8>);

    impl Read for Peer<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Peer<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A message of this kind with fields and a body that mean nothing.
    fn said(kind: u8, fields: u8, body: u8) -> Vec<u8> {
        let mut bytes = vec![b'l', kind, 0, 1, body, 0, 0, 0, 9, 0, 0, 0, fields, 0, 0, 0];
        bytes.resize(16 + usize::from(fields).next_multiple_of(8) + usize::from(body), b'x');
        bytes
    }

    fn answered(is_bus: bool, parts: &[&[u8]]) -> (io::Result<()>, Vec<u8>) {
        let all = parts.concat();
        let mut peer = Peer(&all, Vec::new());
        (converse(&mut peer, is_bus, b"call"), peer.1)
    }

    #[test]
    fn the_call_is_what_systemd_itself_would_send() {
        let call = start_transient_unit("sortie-0.scope", Duration::from_secs(2405));
        assert_eq!(call.escape_ascii().to_string(), CALL.escape_ascii().to_string());
    }

    #[test]
    fn a_bus_is_greeted_before_the_call() {
        let ok: &[u8] = b"OK 0123456789abcdef0123456789abcdef\r\n";
        let (result, told) = answered(true, &[ok, &said(METHOD_RETURN, 5, 9), &said(METHOD_RETURN, 8, 0)]);
        result.unwrap();
        let expected = [b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n", HELLO, b"call"].concat();
        assert_eq!(told.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    #[test]
    fn signals_before_the_answer_are_passed_over() {
        let (result, told) =
            answered(false, &[b"OK 0\r\n", &said(4, 13, 200), &said(4, 0, 0), &said(2, 3, 4)]);
        result.unwrap();
        assert!(told.ends_with(b"BEGIN\r\ncall"));
    }

    #[test]
    fn whatever_is_no_consent_is_a_refusal() {
        let ok: &[u8] = b"OK 0\r\n";
        let huge = [&said(2, 0, 0)[..12], &[0xff; 4]].concat();
        let big_endian = [b"B", &said(2, 0, 0)[1..]].concat();
        for parts in [
            &[&b"REJECTED EXTERNAL\r\n"[..]][..],
            &[],
            &[ok],
            &[ok, &said(ERROR, 3, 4)],
            &[ok, &said(METHOD_RETURN, 3, 4)[..20]],
            &[ok, &huge],
            &[ok, &big_endian],
        ] {
            assert!(answered(false, parts).0.is_err(), "{parts:?}");
        }
        assert!(
            answered(true, &[ok, &said(METHOD_RETURN, 0, 0)]).0.is_err(),
            "only the greeting was answered"
        );
    }
}
