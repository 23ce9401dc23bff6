//! From a name to a TCP connection: every address of the host, tried in turns, within one time limit.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ssh_options::SshOptions;
use crate::error::{Error, printable};
use crate::observe::{Observer, Step, StepTimer};
use crate::ssh_config::{AddressFamily, interface_addresses};

/// How long an address is waited for before the next one is tried as well (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to the first address that answers. `port` may be another than that of the options: the host's own by now.
pub(super) async fn connect(
    options: &SshOptions,
    port: u16,
    observer: &dyn Observer,
) -> Result<Prompt, Error> {
    let (host, address) = (&options.name, options.address.as_str());
    let unreachable = |step, reason| Error::Unreachable { host: host.clone(), step, reason };
    let no_address = |name: &str, error: &dyn std::fmt::Display| {
        unreachable(Step::Resolve, format!("no address for {name:?}: {error}"))
    };
    let timer = StepTimer::start(observer, Step::Resolve);
    let found =
        tokio::net::lookup_host((address, port)).await.map_err(|error| no_address(address, &error))?;
    let wanted = |address: &SocketAddr| match options.address_family {
        AddressFamily::Any => true,
        AddressFamily::Inet => address.is_ipv4(),
        AddressFamily::Inet6 => address.is_ipv6(),
    };
    let addresses = alternate(found.filter(wanted).collect());
    if addresses.is_empty() {
        return Err(no_address(address, &"none of the family that AddressFamily asks for"));
    }
    // As in ssh(1), an address that is named comes before an interface.
    let from: Vec<IpAddr> = match (&options.bind_address, &options.bind_interface) {
        (None, None) => Vec::new(),
        (None, Some(interface)) => {
            let found = interface_addresses(interface).map_err(|error| no_address(interface, &error))?;
            if found.is_empty() {
                return Err(no_address(
                    interface,
                    &"BindInterface names no interface that is up and has one",
                ));
            }
            found
        }
        (Some(name), _) => {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            found.map_err(|error| no_address(name, &error))?.map(|address| address.ip()).collect()
        }
    };
    timer.done(0, &list(&addresses));

    let timer = StepTimer::start(observer, Step::Connect);
    let stream = race(&addresses, &from).await.map_err(|reason| unreachable(Step::Connect, reason))?;
    // Without it every small frame waits for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().map_or_else(|_| String::new(), |peer| peer.to_string());
    timer.done(1, &peer);
    Ok(Prompt { stream, greeting: Greeting::default(), greeted: false })
}

/// The first bytes that came, for whoever wants to know how far a failed connection got.
#[derive(Debug, Clone, Default)]
pub(super) struct Greeting(Arc<Mutex<Vec<u8>>>);

impl Greeting {
    /// Why the server dropped the connection before it said its version, where another try may do better: it takes so
    /// many logins at a time and from one address (`MaxStartups`, `PerSourcePenalties` of sshd_config(5)). Some say so,
    /// some just close. Nothing can have been run by then.
    pub(super) fn dropped(&self) -> Option<String> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_empty() {
            return Some("the server closed the connection before it said anything".into());
        }
        let said = printable(&seen, 100);
        ["Exceeded MaxStartups", "Not allowed at this time"]
            .iter()
            .any(|words| said.starts_with(words))
            .then(|| format!("the server said {said:?} and closed the connection"))
    }
}

/// Most bytes that are kept of a greeting.
const GREETING: usize = 256;

/// A TCP connection that acknowledges at once what it receives.
///
/// sshd leaves Nagle's algorithm on for sessions without a terminal: its second small packet waits until the first is
/// acknowledged, which a kernel that hopes for data to send along puts off by 40 ms. Measured: opening a channel took
/// 45 ms on loopback without this, under 2 ms with it.
#[derive(Debug)]
pub(super) struct Prompt {
    stream: TcpStream,
    greeting: Greeting,
    /// Enough of the greeting is known.
    greeted: bool,
}

impl Prompt {
    /// What comes first, still to be known when the stream is somebody else's.
    pub(super) fn greeting(&self) -> Greeting {
        self.greeting.clone()
    }

    /// Where the connection ended up, unless that is this machine.
    pub(super) fn remote_address(&self) -> Option<IpAddr> {
        let peer = self.stream.peer_addr().ok()?.ip();
        (!peer.is_loopback()).then_some(peer)
    }

    /// The kernel falls back by itself after a while (tcp(7), `TCP_QUICKACK`), so this is said again after each read.
    fn acknowledge_at_once(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = socket2::SockRef::from(&self.stream).set_tcp_quickack(true);
    }
}

impl AsyncRead for Prompt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if !self.greeted {
            let mut seen = self.greeting.0.lock().unwrap_or_else(PoisonError::into_inner);
            let room = GREETING - seen.len();
            seen.extend(buf.filled()[before..].iter().take(room));
            let enough = seen.len() == GREETING || seen.starts_with(b"SSH-");
            drop(seen);
            self.greeted = enough;
        }
        if polled.is_ready() {
            self.acknowledge_at_once();
        }
        polled
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A connection that did not come about.
pub(super) struct Failed {
    pub(super) error: Error,
    /// See [`Greeting::dropped`].
    pub(super) dropped: Option<String>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, dropped: None }
    }
}

/// Whether and when a failed connection is tried again, within one limit for all of it.
pub(super) struct Retries {
    until: Instant,
    /// Tries that are left for addresses that do not answer (`ConnectionAttempts`).
    attempts: u32,
    drops: u32,
}

/// The first wait after a dropped connection; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Between two tries of addresses that do not answer (ssh_config(5), `ConnectionAttempts`).
const EVERY: Duration = Duration::from_secs(1);

impl Retries {
    pub(super) fn new(limit: Duration, attempts: u32) -> Self {
        Self { until: Instant::now() + limit, attempts: attempts.saturating_sub(1), drops: 0 }
    }

    /// How long to wait, or the error where it is no use or there is no time.
    pub(super) fn after(&mut self, failed: Failed, random: u32) -> Result<(Duration, String), Error> {
        let Failed { error, dropped } = failed;
        let (wait, reason) = match (dropped, &error) {
            (Some(reason), _) => {
                // Many who were dropped together must not come back together: half to all of the wait.
                let whole = FIRST_WAIT * 2u32.saturating_pow(self.drops.min(8));
                self.drops += 1;
                (whole.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0), reason)
            }
            (None, Error::Unreachable { step: Step::Connect, reason, .. }) if self.attempts > 0 => {
                self.attempts -= 1;
                (EVERY, reason.clone())
            }
            _ => return Err(error),
        };
        if Instant::now() + wait >= self.until {
            return Err(if self.drops > 1 { told_how_often(error, self.drops) } else { error });
        }
        Ok((wait, reason))
    }
}

fn told_how_often(error: Error, drops: u32) -> Error {
    match error {
        Error::Unreachable { host, step, reason } => {
            Error::Unreachable { host, step, reason: format!("{reason}; so it did {drops} times") }
        }
        other => other,
    }
}

/// Both families by turns, in the order of the resolver (RFC 8305 §4), each address once.
fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut order = Vec::new();
    first.reverse();
    second.reverse();
    while let Some(address) = first.pop().or_else(|| second.pop()) {
        order.push(address);
        order.extend(second.pop());
    }
    let mut seen = std::collections::HashSet::new();
    order.retain(|address| seen.insert(*address));
    order
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// From one of the addresses of `from`, if there are any.
async fn open(address: SocketAddr, from: &[IpAddr]) -> io::Result<TcpStream> {
    if from.is_empty() {
        return TcpStream::connect(address).await;
    }
    let own = from.iter().find(|own| own.is_ipv4() == address.is_ipv4());
    let own = own.ok_or_else(|| io::Error::other("BindAddress has no address of its family"))?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let from_there =
        |error: io::Error| io::Error::new(error.kind(), format!("from {own} (BindAddress): {error}"));
    socket.bind(SocketAddr::new(*own, 0)).map_err(from_there)?;
    socket.connect(address).await
}

async fn race(addresses: &[SocketAddr], from: &[IpAddr]) -> Result<TcpStream, String> {
    let mut attempts: JoinSet<Result<TcpStream, (SocketAddr, std::io::Error)>> = JoinSet::new();
    let mut waiting = addresses.iter().copied();
    let mut failures = Vec::new();
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            let from = from.to_vec();
            attempts.spawn(async move { open(address, &from).await.map_err(|error| (address, error)) });
        }
        // The next address gets its turn when one has failed or the wait is over.
        let finished = match next {
            Some(_) if waiting.len() > 0 => match tokio::time::timeout(STAGGER, attempts.join_next()).await {
                Ok(finished) => finished,
                Err(_) => continue,
            },
            _ => attempts.join_next().await,
        };
        match finished {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err((address, error)))) => failures.push(format!("{address}: {error}")),
            Some(Err(error)) => failures.push(error.to_string()),
            None => return Err(failures.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Unobserved;
    use crate::target::Target;
    use crate::transport::SshSettings;
    use tokio::net::TcpListener;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_take_turns_and_no_address_comes_twice() {
        let given = ["[::1]:1", "[::2]:1", "[::1]:1", "1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1"].map(addr);
        let expected = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "3.3.3.3:1"].map(addr);
        assert_eq!(alternate(given.to_vec()), expected);
        assert!(alternate(Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn a_refusing_address_does_not_keep_the_next_from_being_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let stream = race(&[closed, good], &[]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
    }

    fn options(address: &str, change: impl FnOnce(&mut SshOptions)) -> SshOptions {
        let settings = SshSettings { local_user: Some("me".into()), ..SshSettings::default() };
        let mut options = SshOptions::resolve(&Target::parse(address).unwrap(), &settings).unwrap();
        change(&mut options);
        options
    }

    async fn refused(options: &SshOptions, port: u16) -> Error {
        connect(options, port, &Unobserved).await.unwrap_err()
    }

    #[tokio::test]
    async fn every_failed_address_is_named() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = refused(&options("127.0.0.1", |_| ()), closed.port()).await;
        assert!(error.to_string().contains(&closed.to_string()), "{error}");
        assert_eq!(error.step(), Step::Connect);
    }

    #[tokio::test]
    async fn a_name_without_address_is_unreachable() {
        let error = refused(&options("no-such-host.invalid", |_| ()), 22).await;
        assert_eq!(error.step(), Step::Resolve);
    }

    #[tokio::test]
    async fn only_addresses_of_the_wanted_family_are_tried() {
        let error = refused(&options("127.0.0.1", |o| o.address_family = AddressFamily::Inet6), 22).await;
        assert!(error.to_string().contains("AddressFamily") && error.step() == Step::Resolve, "{error}");
    }

    #[tokio::test]
    async fn a_connection_comes_from_the_interface_it_is_bound_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let loopback = if cfg!(target_os = "linux") { "lo" } else { "lo0" };
        let bound = options("127.0.0.1", |o| o.bind_interface = Some(loopback.into()));
        let _stream = connect(&bound, port, &Unobserved).await.unwrap();
        assert!(listener.accept().await.unwrap().1.ip().is_loopback());
        let missing = options("127.0.0.1", |o| o.bind_interface = Some("no-such-interface".into()));
        let error = refused(&missing, port).await;
        assert!(error.to_string().contains("no-such-interface"), "{error}");
    }

    #[tokio::test]
    async fn a_connection_comes_from_the_address_it_is_bound_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let bound = options("127.0.0.1", |o| o.bind_address = Some("127.0.0.9".into()));
        let _stream = connect(&bound, port, &Unobserved).await.unwrap();
        assert_eq!(listener.accept().await.unwrap().1.ip(), IpAddr::from([127, 0, 0, 9]));
        let error = refused(&options("127.0.0.1", |o| o.bind_address = Some("192.0.2.1".into())), port).await;
        assert!(error.to_string().contains("192.0.2.1 (BindAddress)"), "{error}");
        let error = refused(&options("127.0.0.1", |o| o.bind_address = Some("::1".into())), port).await;
        assert!(error.to_string().contains("no address of its family"), "{error}");
    }

    fn failed(step: Step, dropped: bool) -> Failed {
        let error = Error::Unreachable { host: "h".into(), step, reason: "why".into() };
        Failed { error, dropped: dropped.then(|| "dropped".into()) }
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_connections_are_tried_again_ever_later_and_never_past_the_limit() {
        let mut retries = Retries::new(Duration::from_secs(15), 1);
        let mut waits = Vec::new();
        let error = loop {
            match retries.after(failed(Step::KeyExchange, true), u32::MAX) {
                Ok((wait, _)) => {
                    waits.push(wait.as_secs_f64());
                    tokio::time::sleep(wait).await;
                }
                Err(error) => break error,
            }
        };
        assert_eq!(waits, [0.5, 1.0, 2.0, 4.0]);
        assert!(error.to_string().contains("so it did 5 times"), "{error}");
        let (least, _) = Retries::new(EVERY, 1).after(failed(Step::KeyExchange, true), 0).unwrap();
        assert_eq!(least, FIRST_WAIT / 2);
    }

    #[test]
    fn only_drops_and_addresses_that_do_not_answer_are_tried_again() {
        let mut retries = Retries::new(Duration::from_secs(60), 3);
        for expected in [true, true, false] {
            assert_eq!(retries.after(failed(Step::Connect, false), 0).is_ok(), expected);
        }
        for step in [Step::KeyExchange, Step::Resolve] {
            assert!(Retries::new(Duration::from_secs(60), 9).after(failed(step, false), 0).is_err());
        }
    }

    #[test]
    fn what_a_server_says_before_its_version_tells_a_drop_from_a_wrong_port() {
        let greeting = |text: &[u8]| Greeting(Arc::new(Mutex::new(text.to_vec()))).dropped();
        assert!(greeting(b"").is_some());
        assert!(greeting(b"Exceeded MaxStartups\r\n").is_some_and(|reason| reason.contains("MaxStartups")));
        assert!(greeting(b"Not allowed at this time\r\n").is_some());
        for other in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"HTTP/1.1 400 Bad Request", b"220 mail"] {
            assert!(greeting(other).is_none());
        }
    }
}
