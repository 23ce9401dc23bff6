//! A server that agrees on one algorithm for its host key and uses another. It speaks no further than that.

use anyhow::{Context as _, Result};
use curve25519_dalek::montgomery::MontgomeryPoint;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::{HashAlg, Signature};
use russh::keys::{PrivateKey, signature};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::packet;

const KEXINIT: u8 = 20;
const NEWKEYS: u8 = 21;
const KEX_REPLY: u8 = 31;

/// What it does.
pub(crate) struct Lie {
    /// The algorithm that it offers for its host key.
    pub(crate) offered: &'static str,
    /// The key that it shows.
    pub(crate) key: PrivateKey,
    /// What an RSA key signs with; `None` for SHA-1.
    pub(crate) hash: Option<HashAlg>,
}

/// Listens on 127.0.0.1 until it is dropped; serves one client.
pub(crate) struct Liar {
    port: u16,
    task: AbortHandle,
}

impl Liar {
    pub(crate) async fn start(lie: Lie) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let task = tokio::spawn(async move {
            let (client, _) = listener.accept().await?;
            serve(client, &lie).await
        });
        Ok(Self { port, task: task.abort_handle() })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// RFC 8731 with RFC 5656 §4, up to and including NEWKEYS.
async fn serve(mut client: TcpStream, lie: &Lie) -> Result<()> {
    const VERSION: &str = "SSH-2.0-liar";
    client.write_all(format!("{VERSION}\r\n").as_bytes()).await?;
    let line = packet::read_line(&mut client).await?;
    let client_version = line.trim_ascii_end();

    let mut own_init = vec![KEXINIT];
    own_init.extend([0; 16]);
    let cipher = "aes128-gcm@openssh.com";
    for list in [
        "curve25519-sha256",
        lie.offered,
        cipher,
        cipher,
        "hmac-sha2-256",
        "hmac-sha2-256",
        "none",
        "none",
        "",
        "",
    ] {
        put(&mut own_init, list.as_bytes())?;
    }
    own_init.extend([0; 5]);
    packet::write(&mut client, &own_init).await?;
    let client_init = packet::read(&mut client).await?;
    let question = packet::read(&mut client).await?;
    let client_point: [u8; 32] = question.get(5..37).context("no point of the curve")?.try_into()?;

    let secret = [7; 32];
    let own_point = MontgomeryPoint::mul_base_clamped(secret).to_bytes();
    let shared = MontgomeryPoint(client_point).mul_clamped(secret).to_bytes();
    let shown = lie.key.public_key().to_bytes()?;
    let mut hashed = Vec::new();
    for part in
        [client_version, VERSION.as_bytes(), &client_init, &own_init, &shown, &client_point, &own_point]
    {
        put(&mut hashed, part)?;
    }
    put(&mut hashed, &positive(&shared))?;
    let signature = sign(lie, &Sha256::digest(&hashed))?;
    let mut signed = Vec::new();
    put(&mut signed, signature.algorithm().as_str().as_bytes())?;
    put(&mut signed, signature.as_bytes())?;

    let mut reply = vec![KEX_REPLY];
    for part in [&shown, own_point.as_slice(), &signed] {
        put(&mut reply, part)?;
    }
    packet::write(&mut client, &reply).await?;
    packet::write(&mut client, &[NEWKEYS]).await?;
    // Its own NEWKEYS, and then it goes, or begins to log in, which ends here.
    packet::read(&mut client).await?;
    let _ = client.read_u8().await;
    Ok(())
}

fn sign(lie: &Lie, message: &[u8]) -> Result<Signature, signature::Error> {
    match lie.key.key_data() {
        KeypairData::Rsa(pair) => (pair, lie.hash).try_sign(message),
        _ => lie.key.try_sign(message),
    }
}

/// A number as RFC 4251 §5 has it: no needless zeros, and one where the first bit would be a sign.
fn positive(bytes: &[u8]) -> Vec<u8> {
    let first = bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len());
    let mut number = bytes[first..].to_vec();
    if number.first().is_some_and(|byte| byte & 0x80 != 0) {
        number.insert(0, 0);
    }
    number
}

fn put(out: &mut Vec<u8>, string: &[u8]) -> Result<()> {
    out.extend(u32::try_from(string.len())?.to_be_bytes());
    out.extend(string);
    Ok(())
}
