//! Messages of SSH before anything is encrypted (RFC 4253 §6).

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Reads one line of the version exchange, with its end.
pub(crate) async fn read_line(from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(from.read_u8().await?);
        ensure!(line.len() < 256, "no version: {line:?}");
    }
    Ok(line)
}

/// Reads one message.
pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let length = from.read_u32().await?;
    ensure!((5..=40_000).contains(&length), "a packet of {length} bytes");
    let mut packet = vec![0; length as usize];
    from.read_exact(&mut packet).await?;
    let padding = usize::from(packet.remove(0));
    packet.truncate(packet.len().checked_sub(padding).context("more padding than packet")?);
    Ok(packet)
}

/// Writes one message.
pub(crate) async fn write(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> Result<()> {
    // Length, padding and message together in blocks of eight, with four bytes of padding at least.
    let padding = 12 - (5 + 4 + message.len()) % 8;
    let mut packet = u32::try_from(1 + message.len() + padding)?.to_be_bytes().to_vec();
    packet.push(u8::try_from(padding)?);
    packet.extend(message);
    packet.resize(packet.len() + padding, 0);
    Ok(to.write_all(&packet).await?)
}

/// The names of a list in a message, from `at`, and where it ends (RFC 4251 §5).
pub(crate) fn names(message: &[u8], at: usize) -> Option<(Vec<String>, usize)> {
    let length = u32::from_be_bytes(*message.get(at..)?.first_chunk()?) as usize;
    let text = message.get(at + 4..at + 4 + length)?;
    Some((String::from_utf8_lossy(text).split(',').map(str::to_owned).collect(), at + 4 + length))
}

/// Where the lists of a KEXINIT begin: behind its number and sixteen random bytes.
pub(crate) const LISTS: usize = 17;
