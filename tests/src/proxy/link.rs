//! One connection through the proxy: two ways, each a reader that stamps what comes and a writer that hands it on when
//! its time has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::{Builder, Counts, Direction, State};

/// How much one way holds: far more than any window, so that a delay never becomes a throttle.
const IN_FLIGHT: usize = 64 * 1024 * 1024;
const CHUNK: usize = 64 * 1024;

/// The connection is to end here and now.
struct Cut;

/// Bytes on their way; none mean the end of the stream.
struct Parcel {
    due: Instant,
    /// In which round trip of the connection they were sent; see [`super::Proxy::round_trips`].
    depth: u64,
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// The depth of what each side has received.
#[derive(Default)]
struct Depths {
    client: AtomicU64,
    server: AtomicU64,
}

/// Carries one connection until both sides have closed it or it is cut.
pub(super) async fn run(
    mut client: TcpStream,
    builder: Arc<Builder>,
    mut state: watch::Receiver<State>,
    counts: Arc<Counts>,
) {
    let before = state.borrow().cuts;
    let mut cuts = state.clone();
    let opened = async {
        state.wait_for(|state| !state.frozen).await.ok()?;
        TcpStream::connect(builder.upstream).await.ok()
    };
    // `wait_for` fails when the proxy itself is gone, and its links with it.
    let server = tokio::select! {
        server = opened => server,
        _ = cuts.wait_for(|state| state.cuts != before) => None,
    };
    let Some(mut server) = server else { return };
    for socket in [&client, &server] {
        let _ = socket.set_nodelay(true);
    }
    let depths = Depths::default();
    let way = |direction| Way {
        direction,
        builder: &builder,
        counts: &counts,
        depths: &depths,
        state: state.clone(),
    };
    let cut = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = way(Direction::ToServer).run(from_client, to_server);
        let down = way(Direction::ToClient).run(from_server, to_client);
        tokio::select! {
            ended = async { tokio::try_join!(up, down) } => ended.is_err(),
            _ = cuts.wait_for(|state| state.cuts != before) => true,
        }
    };
    if cut && builder.reset {
        for socket in [&client, &server] {
            let _ = socket.set_zero_linger();
        }
    }
}

struct Way<'a> {
    direction: Direction,
    builder: &'a Builder,
    counts: &'a Counts,
    depths: &'a Depths,
    state: watch::Receiver<State>,
}

impl Way<'_> {
    async fn run(self, reader: ReadHalf<'_>, writer: WriteHalf<'_>) -> Result<(), Cut> {
        let (parcels, queue) = mpsc::unbounded_channel();
        tokio::try_join!(self.collect(reader, parcels), self.deliver(writer, queue))?;
        Ok(())
    }

    async fn thawed(&self) -> Result<(), Cut> {
        let mut state = self.state.clone();
        state.wait_for(|state| !state.frozen).await.map(drop).map_err(|_| Cut)
    }

    async fn collect(
        &self,
        mut reader: ReadHalf<'_>,
        parcels: mpsc::UnboundedSender<Parcel>,
    ) -> Result<(), Cut> {
        let room = Arc::new(Semaphore::new(IN_FLIGHT));
        let mut buffer = BytesMut::new();
        loop {
            self.thawed().await?;
            buffer.reserve(CHUNK);
            // A reset by one side ends the stream like a close: the other side hears of it in its turn.
            let count = reader.read_buf(&mut buffer).await.unwrap_or(0);
            let due = Instant::now() + self.builder.delay;
            let depth = match self.direction {
                Direction::ToServer => self.depths.client.load(Ordering::SeqCst) + 1,
                Direction::ToClient => self.depths.server.load(Ordering::SeqCst),
            };
            let weight = u32::try_from(count).unwrap_or(u32::MAX);
            let room = Arc::clone(&room).acquire_many_owned(weight).await.map_err(|_| Cut)?;
            let parcel = Parcel { due, depth, bytes: buffer.split().freeze(), _room: room };
            if parcels.send(parcel).is_err() || count == 0 {
                return Ok(());
            }
        }
    }

    async fn deliver(
        &self,
        mut writer: WriteHalf<'_>,
        mut queue: mpsc::UnboundedReceiver<Parcel>,
    ) -> Result<(), Cut> {
        let mut left = self.builder.cut[self.direction as usize];
        if left == Some(0) {
            return Err(Cut);
        }
        let mut pace = Pace::new(self.builder.rate[self.direction as usize]);
        while let Some(mut parcel) = queue.recv().await {
            tokio::time::sleep_until(parcel.due).await;
            if parcel.bytes.is_empty() {
                self.thawed().await?;
                // It fails when the receiver has gone already.
                let _ = writer.shutdown().await;
                return Ok(());
            }
            if let Some(left) = left {
                parcel.bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            }
            while parcel.bytes.has_remaining() {
                let share = parcel.bytes.split_to(pace.share(parcel.bytes.len()));
                pace.wait(share.len()).await;
                self.thawed().await?;
                // Before the write: whoever gets the bytes may answer before this task runs again.
                self.arrives(parcel.depth);
                writer.write_all(&share).await.map_err(|_| Cut)?;
                self.counts.bytes[self.direction as usize].fetch_add(share.len() as u64, Ordering::SeqCst);
                if let Some(left) = &mut left {
                    *left -= share.len() as u64;
                    if *left == 0 {
                        let _ = if self.builder.reset { Ok(()) } else { writer.shutdown().await };
                        return Err(Cut);
                    }
                }
            }
        }
        Ok(())
    }

    fn arrives(&self, depth: u64) {
        match self.direction {
            Direction::ToServer => {
                self.depths.server.fetch_max(depth, Ordering::SeqCst);
            }
            Direction::ToClient => {
                self.depths.client.fetch_max(depth, Ordering::SeqCst);
                self.counts.round_trips.fetch_max(depth, Ordering::SeqCst);
            }
        }
    }
}

/// Spreads bytes over time.
struct Pace {
    bytes_per_second: Option<u64>,
    free_at: Instant,
}

impl Pace {
    fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free_at: Instant::now() }
    }

    /// How much of `available` bytes to send at once: about 20 ms worth, so that a slow link trickles.
    fn share(&self, available: usize) -> usize {
        let at_once = self.bytes_per_second.map_or(u64::MAX, |rate| (rate / 50).max(1));
        available.min(usize::try_from(at_once).unwrap_or(usize::MAX))
    }

    async fn wait(&mut self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        tokio::time::sleep_until(self.free_at).await;
        self.free_at = self.free_at.max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
    }
}
