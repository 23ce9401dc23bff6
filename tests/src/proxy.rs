//! A TCP link on 127.0.0.1 that can be bad: it delays, throttles, freezes, cuts, and counts what passes, bytes and round
//! trips. It never reorders, and without a fault it changes nothing. It knows no protocol above TCP.

mod link;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// A direction of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// What the link is to be like; see [`Proxy::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    upstream: SocketAddr,
    delay: Duration,
    rate: [Option<u64>; 2],
    cut: [Option<u64>; 2],
    reset: bool,
}

impl Builder {
    /// Holds every byte back for so long, each way: a round trip takes twice as long. The opening of the connection
    /// itself is not delayed.
    #[must_use]
    pub fn delay(mut self, one_way: Duration) -> Self {
        self.delay = one_way;
        self
    }

    /// Lets at most so many bytes a second pass in one direction.
    #[must_use]
    pub fn throttle(mut self, direction: Direction, bytes_per_second: u64) -> Self {
        self.rate[direction as usize] = Some(bytes_per_second.max(1));
        self
    }

    /// Cuts a connection when exactly so many bytes have passed in one direction; the next one starts anew. With 0 the
    /// connection is cut as soon as it opens.
    #[must_use]
    pub fn cut_after(mut self, direction: Direction, bytes: u64) -> Self {
        self.cut[direction as usize] = Some(bytes);
        self
    }

    /// Cuts with a reset instead of an orderly close. Bytes that the other side has not read yet may be lost then.
    #[must_use]
    pub fn reset(mut self) -> Self {
        self.reset = true;
        self
    }

    /// Starts the proxy on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(self) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("binding a port of 127.0.0.1")?;
        let addr = listener.local_addr()?;
        let (control, state) = watch::channel(State { frozen: false, cuts: 0 });
        let counts = Arc::new(Counts::default());
        let accepting = tokio::spawn(accept(listener, self, state, Arc::clone(&counts))).abort_handle();
        Ok(Proxy { addr, control, counts, accepting })
    }
}

/// What the test says while connections are up.
#[derive(Clone, Copy, Debug)]
struct State {
    frozen: bool,
    /// How often [`Proxy::cut`] was called.
    cuts: u64,
}

#[derive(Debug, Default)]
struct Counts {
    bytes: [AtomicU64; 2],
    connections: AtomicU64,
    round_trips: AtomicU64,
}

/// A running proxy. Dropping it cuts its connections.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    control: watch::Sender<State>,
    counts: Arc<Counts>,
    accepting: AbortHandle,
}

impl Proxy {
    /// A link to `upstream` with no fault.
    pub fn builder(upstream: SocketAddr) -> Builder {
        Builder { upstream, delay: Duration::ZERO, rate: [None; 2], cut: [None; 2], reset: false }
    }

    /// Where clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Cuts all present connections now; what is on its way is lost. New ones may come.
    pub fn cut(&self) {
        self.control.send_modify(|state| state.cuts += 1);
    }

    /// Lets nothing pass any more, in silence: connections stay open. New ones are accepted and frozen too.
    pub fn freeze(&self) {
        self.control.send_modify(|state| state.frozen = true);
    }

    /// Ends a freeze; what was held back goes on its way.
    pub fn thaw(&self) {
        self.control.send_modify(|state| state.frozen = false);
    }

    /// How many bytes have been delivered in one direction, over all connections.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.counts.bytes[direction as usize].load(Ordering::Relaxed)
    }

    /// How many connections have been opened.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// The round trips of the longest chain so far: a client's bytes, then a server's bytes sent after those had
    /// arrived, then a client's sent after these had, and so on; counted when the server's bytes reach the client, so
    /// a greeting that the server sends by itself counts none.
    ///
    /// It is counted by what had been delivered when something was sent, not by the clock. Yet give the proxy a delay
    /// (20 ms and more): without one, what two sides send independently looks like question and answer.
    pub fn round_trips(&self) -> u64 {
        self.counts.round_trips.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, builder: Builder, state: watch::Receiver<State>, counts: Arc<Counts>) {
    let builder = Arc::new(builder);
    let mut links = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        counts.connections.fetch_add(1, Ordering::Relaxed);
        links.spawn(link::run(client, Arc::clone(&builder), state.clone(), Arc::clone(&counts)));
        while links.try_join_next().is_some() {}
    }
}
