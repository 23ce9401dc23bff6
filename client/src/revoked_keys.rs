//! `RevokedHostKeys` of ssh_config(5): keys that are never accepted, as a list of public keys or as an OpenSSH key
//! revocation list (KRL). A file that cannot be read or understood is an error, for it would hide what it revokes.

mod krl;

use std::path::{Path, PathBuf};

use crate::host_certificate::HostCertificate;
use crate::known_hosts::HostKey;
use krl::Krl;

/// What the files revoke, read once.
#[derive(Debug, Default)]
pub struct RevokedKeys {
    files: Vec<(PathBuf, Content)>,
}

#[derive(Debug)]
enum Content {
    List(Vec<HostKey>),
    Krl(Krl),
}

impl RevokedKeys {
    /// Reads `files`.
    ///
    /// # Errors
    /// The file that is not there, or cannot be read or understood, and why: no key is accepted without it.
    pub fn load<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Result<Self, (PathBuf, String)> {
        let mut loaded = Vec::new();
        for file in files {
            let path = file.as_ref();
            let content =
                std::fs::read(path).map_err(|error| error.to_string()).and_then(|bytes| parse(&bytes));
            loaded.push((path.to_owned(), content.map_err(|reason| (path.to_owned(), reason))?));
        }
        Ok(Self { files: loaded })
    }

    /// What one file holds.
    ///
    /// # Errors
    /// Why it is not understood.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_bytes(bytes: &[u8]) -> Result<Self, String> {
        Ok(Self { files: vec![("/revoked".into(), parse(bytes)?)] })
    }

    /// The file that revokes this plain key, or the certificate that it was shown with, or that one's authority.
    #[must_use]
    pub fn find(&self, key: &HostKey, certificate: Option<&HostCertificate>) -> Option<&Path> {
        let keys = || std::iter::once(key).chain(certificate.map(|certificate| &certificate.authority));
        let revokes = |content: &Content| match content {
            Content::List(list) => keys().any(|key| list.contains(key)),
            Content::Krl(krl) => {
                keys().any(|key| krl.revokes_key(key))
                    || certificate.is_some_and(|c| krl.revokes_certificate(c))
            }
        };
        self.files.iter().find(|(_, content)| revokes(content)).map(|(file, _)| file.as_path())
    }
}

fn parse(bytes: &[u8]) -> Result<Content, String> {
    if bytes.starts_with(krl::MAGIC) {
        return Krl::parse(bytes).map(Content::Krl);
    }
    let mut keys = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let text = String::from_utf8_lossy(line);
        let mut fields = text.split_ascii_whitespace();
        let Some(algorithm) = fields.next().filter(|first| !first.starts_with('#')) else { continue };
        let key = fields.next().and_then(|base64| HostKey::parse(algorithm, base64));
        let key = key.ok_or_else(|| format!("line {} is no public key", index + 1))?;
        // A certificate in the list takes its key with it.
        keys.push(key.plain().unwrap_or(key));
    }
    Ok(Content::List(keys))
}

#[cfg(test)]
#[path = "revoked_keys_tests.rs"]
mod tests;
