//! One line of a known_hosts file (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT): its marker, the names, the key.

use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use super::HostKey;
use crate::pattern;
use crate::place::Place;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    None,
    Revoked,
    CertAuthority,
}

/// A line that is about a host.
pub(super) struct Entry<'a> {
    file: &'a Path,
    line: usize,
    pub(super) key: HostKey,
}

impl Entry<'_> {
    pub(super) fn place(&self) -> Place {
        Place { file: self.file.to_owned(), line: self.line }
    }
}

/// What `text`, the line `line` of `file`, says about `host` under `marker`; nothing if it is about others.
///
/// A line that is malformed vouches for nothing and spoils no other. Files may have ten thousand lines, so a key is not
/// looked at before the names are found to be right.
pub(super) fn about<'a>(
    file: &'a Path,
    line: usize,
    text: &str,
    marker: Marker,
    host: &str,
) -> Option<Entry<'a>> {
    let mut fields = text.split_ascii_whitespace();
    let first = fields.next()?;
    let (found, names) = match first {
        "@revoked" => (Marker::Revoked, fields.next()?),
        "@cert-authority" => (Marker::CertAuthority, fields.next()?),
        _ if first.starts_with(['#', '@']) => return None,
        names => (Marker::None, names),
    };
    if found != marker || !names_match(names, host) {
        return None;
    }
    let key = HostKey::parse(fields.next()?, fields.next()?)?;
    // A certificate that is revoked takes its key with it.
    let key = if marker == Marker::Revoked { key.plain().unwrap_or(key) } else { key };
    Some(Entry { file, line, key })
}

/// Whether the names of a line are about `host`, which is in lower case.
fn names_match(names: &str, host: &str) -> bool {
    if let Some(hashed) = names.strip_prefix("|1|") {
        return hashed_name_matches(hashed, host).unwrap_or(false);
    }
    let lower = names.to_lowercase();
    pattern::list_matches(lower.split(','), host)
}

/// `salt|hash`, both base64: HMAC-SHA1 of the name, keyed by the salt.
pub(super) fn hashed_name_matches(hashed: &str, host: &str) -> Option<bool> {
    let (salt, hash) = hashed.split_once('|')?;
    let mac = keyed_hash(&STANDARD.decode(salt).ok()?, host)?;
    Some(mac.verify_slice(&STANDARD.decode(hash).ok()?).is_ok())
}

/// The name as `HashKnownHosts` has it written.
pub(super) fn hashed_name(host: &str, salt: [u8; 20]) -> io::Result<String> {
    // A key of any length will do for HMAC, so this is no error that can be met.
    let mac = keyed_hash(&salt, host).ok_or_else(|| io::Error::other("no HMAC"))?;
    Ok(format!("|1|{}|{}", STANDARD.encode(salt), STANDARD.encode(mac.finalize().into_bytes())))
}

fn keyed_hash(salt: &[u8], host: &str) -> Option<Hmac<Sha1>> {
    let mut mac = Hmac::<Sha1>::new_from_slice(salt).ok()?;
    mac.update(host.as_bytes());
    Some(mac)
}
