//! Somebody in between, who reads and changes what the server sends before it is protected.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::packet;

const NEWKEYS: u8 = 21;

/// What is done to the server's messages.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Nothing,
    /// `message` comes before the first one of this number.
    Insert {
        before: u8,
        message: Vec<u8>,
    },
    /// A name is taken out of the first list of the first message of this number.
    Hide {
        in_message: u8,
        name: String,
    },
}

/// Listens on 127.0.0.1 until it is dropped.
#[derive(Debug)]
pub(crate) struct Middle {
    port: u16,
    offered: Arc<OnceLock<Vec<String>>>,
    task: AbortHandle,
}

impl Middle {
    pub(crate) async fn start(server: SocketAddr, change: Change) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let offered = Arc::new(OnceLock::new());
        let kept = Arc::clone(&offered);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (change, offered) = (change.clone(), Arc::clone(&kept));
                tokio::spawn(async move {
                    let upstream = TcpStream::connect(server).await?;
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = upstream.into_split();
                    let up = tokio::spawn(listen(from_client, to_server, offered));
                    meddle(from_server, to_client, &change).await?;
                    up.await?
                });
            }
        });
        Ok(Self { port, offered, task: task.abort_handle() })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The methods of key exchange that the first client offered.
    pub(crate) fn offered(&self) -> Option<&Vec<String>> {
        self.offered.get()
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes on what the client says, and notes what it offers.
async fn listen(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    offered: Arc<OnceLock<Vec<String>>>,
) -> Result<()> {
    to.write_all(&packet::read_line(&mut from).await?).await?;
    let first = packet::read(&mut from).await?;
    let (names, _) =
        packet::names(&first, packet::LISTS).context("the client's first message is no KEXINIT")?;
    let _ = offered.set(names);
    packet::write(&mut to, &first).await?;
    tokio::io::copy(&mut from, &mut to).await?;
    Ok(to.shutdown().await?)
}

/// Passes on what the server says, changed, and as it is once it is protected.
async fn meddle(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, change: &Change) -> Result<()> {
    to.write_all(&packet::read_line(&mut from).await?).await?;
    let mut done = false;
    loop {
        let mut message = packet::read(&mut from).await?;
        let number = message.first().copied().context("an empty message")?;
        match change {
            Change::Insert { before, message } if *before == number && !done => {
                done = true;
                packet::write(&mut to, message).await?;
            }
            Change::Hide { in_message, name } if *in_message == number && !done => {
                done = true;
                let (names, end) = packet::names(&message, packet::LISTS).context("no list of names")?;
                let left = names.into_iter().filter(|offer| offer != name).collect::<Vec<_>>().join(",");
                let list = [&u32::try_from(left.len())?.to_be_bytes(), left.as_bytes()].concat();
                message.splice(packet::LISTS..end, list);
            }
            _ => {}
        }
        packet::write(&mut to, &message).await?;
        if number == NEWKEYS {
            break;
        }
    }
    tokio::io::copy(&mut from, &mut to).await?;
    Ok(to.shutdown().await?)
}
