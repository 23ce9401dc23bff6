//! Proves the proxy: what it delays, cuts, freezes and counts is exact.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use sortie_tests::proxy::{Direction, Proxy};
use sortie_tests::within;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A server for one connection: reads to the end and returns what came, while it sends `greeting`.
async fn sink(greeting: Vec<u8>) -> Result<(SocketAddr, JoinHandle<Vec<u8>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let server = tokio::spawn(async move {
        let mut got = Vec::new();
        if let Ok((stream, _)) = listener.accept().await {
            let (mut reader, mut writer) = stream.into_split();
            let sending = tokio::spawn(async move {
                let _ = writer.write_all(&greeting).await;
                writer
            });
            let _ = reader.read_to_end(&mut got).await;
            sending.abort();
        }
        got
    });
    Ok((addr, server))
}

/// A server that sends back what comes, over any number of connections.
async fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.into_split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    Ok(addr)
}

async fn read_all(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut got = Vec::new();
    // A reset ends the stream too.
    let _ = stream.read_to_end(&mut got).await;
    got
}

#[tokio::test]
async fn without_a_fault_it_changes_nothing() -> Result<()> {
    let proxy = Proxy::builder(echo().await?).start().await?;
    let sent: Vec<u8> = (0..8 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut reader, mut writer) = TcpStream::connect(proxy.addr()).await?.into_split();
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&copy).await?;
        writer.shutdown().await
    });
    let got = within("the echo", read_all(&mut reader)).await?;
    writing.await??;
    assert!(got == sent, "{} bytes", got.len());
    assert_eq!(proxy.bytes(Direction::ToServer), sent.len() as u64);
    assert_eq!(proxy.bytes(Direction::ToClient), sent.len() as u64);
    assert_eq!(proxy.connections(), 1);
    Ok(())
}

#[tokio::test]
async fn a_cut_from_the_client_is_exact() -> Result<()> {
    for bytes in [0, 1, 77, 70_000, 1_000_000] {
        let (addr, server) = sink(Vec::new()).await?;
        let proxy = Proxy::builder(addr).cut_after(Direction::ToServer, bytes).start().await?;
        let stream = TcpStream::connect(proxy.addr()).await?;
        let (mut reader, mut writer) = stream.into_split();
        let writing = tokio::spawn(async move { writer.write_all(&vec![7; 2_000_000]).await });
        assert!(within("the end", read_all(&mut reader)).await?.is_empty());
        assert_eq!(within("the server", server).await??.len() as u64, bytes);
        assert_eq!(proxy.bytes(Direction::ToServer), bytes);
        let _ = writing.await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_cut_from_the_server_is_exact() -> Result<()> {
    for bytes in [0, 1, 77, 70_000, 1_000_000] {
        let (addr, server) = sink(vec![9; 2_000_000]).await?;
        let proxy = Proxy::builder(addr).cut_after(Direction::ToClient, bytes).start().await?;
        let mut stream = TcpStream::connect(proxy.addr()).await?;
        assert_eq!(within("the end", read_all(&mut stream)).await?.len() as u64, bytes);
        assert!(within("the server", server).await??.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn a_cut_on_demand_ends_present_connections_and_not_later_ones() -> Result<()> {
    for reset in [false, true] {
        let builder = Proxy::builder(echo().await?);
        let proxy = if reset { builder.reset().start().await? } else { builder.start().await? };
        let mut stream = TcpStream::connect(proxy.addr()).await?;
        stream.write_all(b"one").await?;
        let mut got = [0; 3];
        within("the echo", stream.read_exact(&mut got)).await??;
        proxy.cut();
        let ended = within("the end", stream.read(&mut got)).await?;
        assert_eq!(ended.is_err(), reset, "{ended:?}");
        let mut stream = TcpStream::connect(proxy.addr()).await?;
        stream.write_all(b"two").await?;
        within("the echo", stream.read_exact(&mut got)).await??;
        assert_eq!(&got, b"two");
    }
    Ok(())
}

#[tokio::test]
async fn a_frozen_link_lets_nothing_pass_until_it_thaws() -> Result<()> {
    let proxy = Proxy::builder(echo().await?).start().await?;
    let mut stream = TcpStream::connect(proxy.addr()).await?;
    stream.write_all(b"a").await?;
    let mut got = [0; 1];
    within("the echo", stream.read_exact(&mut got)).await??;
    proxy.freeze();
    stream.write_all(b"b").await?;
    // Whatever a proxy that leaked would take for it, this is ample; nothing is asserted if it is not.
    let early = tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut got)).await;
    ensure!(early.is_err(), "it came through");
    assert_eq!(proxy.bytes(Direction::ToServer), 1);
    proxy.thaw();
    within("the echo", stream.read_exact(&mut got)).await??;
    assert_eq!(&got, b"b");
    Ok(())
}

#[tokio::test]
async fn round_trips_are_counted_by_cause_and_not_by_the_clock() -> Result<()> {
    let proxy = Proxy::builder(echo().await?).delay(Duration::from_millis(20)).start().await?;
    let mut stream = TcpStream::connect(proxy.addr()).await?;
    assert_eq!(proxy.round_trips(), 0);
    let mut got = [0; 10];
    for trip in 1..=3 {
        // However many pieces, sent together they are one flight.
        for piece in [&b"01234"[..], b"56789"] {
            stream.write_all(piece).await?;
        }
        within("the echo", stream.read_exact(&mut got)).await??;
        assert_eq!(proxy.round_trips(), trip);
        // A pause of the client is none.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test]
async fn what_the_server_says_by_itself_is_no_round_trip() -> Result<()> {
    let (addr, server) = sink(b"220 hello".to_vec()).await?;
    let proxy = Proxy::builder(addr).delay(Duration::from_millis(20)).start().await?;
    let mut stream = TcpStream::connect(proxy.addr()).await?;
    let mut got = [0; 9];
    within("the greeting", stream.read_exact(&mut got)).await??;
    assert_eq!(proxy.round_trips(), 0);
    drop(stream);
    within("the server", server).await??;
    Ok(())
}

#[tokio::test]
async fn a_throttled_link_delivers_everything() -> Result<()> {
    let (addr, server) = sink(Vec::new()).await?;
    let proxy = Proxy::builder(addr).throttle(Direction::ToServer, 2_000_000).start().await?;
    let mut stream = TcpStream::connect(proxy.addr()).await?;
    stream.write_all(&[1; 300_000]).await?;
    stream.shutdown().await?;
    assert_eq!(within("the server", server).await??.len(), 300_000);
    Ok(())
}
