//! Ed25519 key pairs for hosts and users, and the files that SSH clients read them from. They are for tests alone:
//! made anew each time, never read from a user's own files.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{Cipher, Kdf, LineEnding};
use russh::keys::{PrivateKey, PublicKey};

/// An Ed25519 key pair.
#[derive(Clone, Debug)]
pub struct KeyPair {
    private: PrivateKey,
}

impl KeyPair {
    /// A new pair.
    ///
    /// # Errors
    /// When the system's random source cannot be read.
    pub fn generate() -> Result<Self> {
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&random()?));
        Ok(Self { private: PrivateKey::new(pair, "sortie-test")? })
    }

    /// The private key.
    pub fn private(&self) -> &PrivateKey {
        &self.private
    }

    /// The public key.
    pub fn public(&self) -> &PublicKey {
        self.private.public_key()
    }

    /// The private key in OpenSSH's format, unencrypted.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn private_openssh(&self) -> Result<String> {
        Ok(self.private.to_openssh(LineEnding::LF)?.to_string())
    }

    /// The public key as one line of an `authorized_keys` file, without a newline.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn public_openssh(&self) -> Result<String> {
        Ok(self.public().to_openssh()?)
    }

    /// The same pair in a file (mode 0600) that needs `passphrase` to be read.
    ///
    /// # Errors
    /// When the key cannot be encrypted or the file not be written.
    pub fn write_encrypted(&self, dir: &Path, name: &str, passphrase: &str) -> Result<PathBuf> {
        let kdf = Kdf::Bcrypt { salt: random::<16>()?.to_vec(), rounds: 4 };
        let checkint = u32::from_ne_bytes(random()?);
        let encrypted = self.private.encrypt_with(Cipher::Aes256Ctr, kdf, checkint, passphrase)?;
        let path = dir.join(name);
        write_private(&path, encrypted.to_openssh(LineEnding::LF)?.as_bytes())?;
        Ok(path)
    }

    /// The line of a `known_hosts` file that says that `host` at `port` has this key (`sshd(8)`), without a newline.
    ///
    /// # Errors
    /// When the key cannot be encoded.
    pub fn known_hosts_line(&self, host: &str, port: u16) -> Result<String> {
        let name = if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") };
        Ok(format!("{name} {}", self.public_openssh()?))
    }

    /// Writes `name` (mode 0600) and `name.pub` into `dir`; returns the path of the private one.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let path = dir.join(name);
        write_private(&path, self.private_openssh()?.as_bytes())?;
        fs::write(dir.join(format!("{name}.pub")), self.public_openssh()? + "\n")?;
        Ok(path)
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes).context("reading /dev/urandom")?;
    Ok(bytes)
}

/// Writes a file that only its owner may read; OpenSSH refuses a private key with any other mode.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .with_context(|| format!("writing {}", path.display()))
}
