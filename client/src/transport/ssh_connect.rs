//! From a name to a TCP connection: every address of the host, tried in turns, within one time limit.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::error::Error;
use crate::observe::{Observer, Step, StepTimer};

/// How long an address is waited for before the next one is tried as well (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to the first address that answers.
pub(super) async fn connect(
    host: &str,
    address: &str,
    port: u16,
    observer: &dyn Observer,
) -> Result<Prompt, Error> {
    let timer = StepTimer::start(observer, Step::Resolve);
    let found = tokio::net::lookup_host((address, port)).await;
    let addresses: Vec<SocketAddr> = found
        .map_err(|error| Error::Unreachable {
            host: host.to_owned(),
            step: Step::Resolve,
            reason: format!("no address for {address:?}: {error}"),
        })?
        .collect();
    let addresses = alternate(addresses);
    timer.done(0, &list(&addresses));

    let timer = StepTimer::start(observer, Step::Connect);
    let stream = race(&addresses).await.map_err(|reason| Error::Unreachable {
        host: host.to_owned(),
        step: Step::Connect,
        reason: if addresses.is_empty() { format!("no address for {address:?}") } else { reason },
    })?;
    // Without it every small frame waits for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().map_or_else(|_| String::new(), |peer| peer.to_string());
    timer.done(1, &peer);
    Ok(Prompt(stream))
}

/// A TCP connection that acknowledges at once what it receives.
///
/// sshd leaves Nagle's algorithm on for sessions without a terminal: its second small packet waits until the first is
/// acknowledged, which a kernel that hopes for data to send along puts off by 40 ms. Measured: opening a channel took
/// 45 ms on loopback without this, under 2 ms with it.
#[derive(Debug)]
pub(super) struct Prompt(TcpStream);

impl Prompt {
    /// Where the connection ended up, unless that is this machine.
    pub(super) fn remote_address(&self) -> Option<IpAddr> {
        let peer = self.0.peer_addr().ok()?.ip();
        (!peer.is_loopback()).then_some(peer)
    }

    /// The kernel falls back by itself after a while (tcp(7), `TCP_QUICKACK`), so this is said again after each read.
    fn acknowledge_at_once(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = socket2::SockRef::from(&self.0).set_tcp_quickack(true);
    }
}

impl AsyncRead for Prompt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.0).poll_read(cx, buf);
        if polled.is_ready() {
            self.acknowledge_at_once();
        }
        polled
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
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

async fn race(addresses: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut attempts: JoinSet<Result<TcpStream, (SocketAddr, std::io::Error)>> = JoinSet::new();
    let mut waiting = addresses.iter().copied();
    let mut failures = Vec::new();
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            attempts
                .spawn(async move { TcpStream::connect(address).await.map_err(|error| (address, error)) });
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
        let stream = race(&[closed, good]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
    }

    #[tokio::test]
    async fn every_failed_address_is_named() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = connect("web1", "127.0.0.1", closed.port(), &Unobserved).await.unwrap_err();
        assert!(error.to_string().contains(&closed.to_string()), "{error}");
        assert_eq!(error.step(), Step::Connect);
    }

    #[tokio::test]
    async fn a_name_without_address_is_unreachable() {
        let error = connect("web1", "no-such-host.invalid", 22, &Unobserved).await.unwrap_err();
        assert_eq!(error.step(), Step::Resolve);
    }
}
