//! known_hosts as sshd(8) describes it: plain, hashed, wildcard and negated names, `[host]:port`, `@revoked`.
//!
//! Keys are compared as the bytes they have on the wire; nothing here knows russh or the network. Host certificates
//! are not offered to servers yet, so `@cert-authority` lines vouch for nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use crate::pattern;

/// What known_hosts says about a key that a host showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This key is known for the host.
    Known,
    /// No key is known for the host.
    Unknown,
    /// Other keys are known for the host, this one is not.
    Changed {
        /// The file with another key.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// The key is marked `@revoked` for the host.
    Revoked {
        /// The file that says so.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
}

/// A public key as SSH transmits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey {
    /// The key type, such as `ssh-ed25519`.
    pub algorithm: String,
    /// The encoded key (RFC 4253 §6.6).
    pub blob: Vec<u8>,
}

/// The name of a host as known_hosts has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    host: String,
    port: u16,
}

impl HostName {
    /// `host` is what was connected to: after `HostName` of ssh_config, before any address lookup.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.to_lowercase(), port }
    }

    /// `host`, or `[host]:port` where the port is not 22.
    #[must_use]
    pub fn entry(&self) -> String {
        if self.port == 22 { self.host.clone() } else { format!("[{}]:{}", self.host, self.port) }
    }
}

/// One or more known_hosts files, read once.
#[derive(Debug, Clone, Default)]
pub struct KnownHosts {
    files: Vec<(PathBuf, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    None,
    Revoked,
    CertAuthority,
}

struct Entry<'a> {
    file: &'a Path,
    line: usize,
    marker: Marker,
    names: &'a str,
    algorithm: &'a str,
    blob: Vec<u8>,
}

impl KnownHosts {
    /// Reads `files`; one that does not exist holds nothing.
    ///
    /// # Errors
    /// The file that is there and cannot be read: silently doing without it would hide revoked keys.
    pub fn load<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Result<Self, (PathBuf, io::Error)> {
        let mut loaded = Vec::new();
        for file in files {
            let path = file.as_ref();
            match std::fs::read(path) {
                Ok(bytes) => loaded.push((path.to_owned(), String::from_utf8_lossy(&bytes).into_owned())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err((path.to_owned(), error)),
            }
        }
        Ok(Self { files: loaded })
    }

    /// What one file holds.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_text(text: &str) -> Self {
        Self { files: vec![("/kh".into(), text.into())] }
    }

    /// Judges the key that `host` showed.
    #[must_use]
    pub fn check(&self, host: &HostName, key: &HostKey) -> Verdict {
        let verdict = self.check_entry(&host.entry(), key);
        if verdict != Verdict::Unknown || host.port == 22 {
            return verdict;
        }
        // As OpenSSH does: a key known for the host on the standard port is good on every port; another key proves
        // nothing, for another server may listen there.
        match self.check_entry(&host.host, key) {
            Verdict::Changed { .. } => Verdict::Unknown,
            verdict => verdict,
        }
    }

    fn check_entry(&self, name: &str, key: &HostKey) -> Verdict {
        let mut known = false;
        let mut other: Option<Entry<'_>> = None;
        for entry in self.entries().filter(|entry| names_match(entry.names, name)) {
            let same = entry.blob == key.blob;
            match entry.marker {
                Marker::Revoked if same => {
                    return Verdict::Revoked { file: entry.file.to_owned(), line: entry.line };
                }
                Marker::None if same => known = true,
                Marker::None => {
                    // The line with a key of the same type is the one the user has to look at.
                    let better = other.as_ref().is_none_or(|found| {
                        found.algorithm != key.algorithm && entry.algorithm == key.algorithm
                    });
                    if better {
                        other = Some(entry);
                    }
                }
                Marker::Revoked | Marker::CertAuthority => {}
            }
        }
        match other {
            _ if known => Verdict::Known,
            Some(entry) => Verdict::Changed { file: entry.file.to_owned(), line: entry.line },
            None => Verdict::Unknown,
        }
    }

    /// Types of the keys known for `host`, in the order of the files: the server should be asked for these first, or a
    /// host known by one key looks unknown by another.
    #[must_use]
    pub fn algorithms(&self, host: &HostName) -> Vec<String> {
        let mut found = Vec::new();
        for name in [host.entry(), host.host.clone()] {
            let entries = self.entries().filter(|e| e.marker == Marker::None && names_match(e.names, &name));
            for entry in entries {
                if !found.iter().any(|f| f == entry.algorithm) {
                    found.push(entry.algorithm.to_owned());
                }
            }
            if !found.is_empty() {
                break;
            }
        }
        found
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.files.iter().flat_map(|(file, text)| {
            text.lines().enumerate().filter_map(|(index, line)| parse_line(file, index + 1, line))
        })
    }
}

/// A line that is malformed vouches for nothing and spoils no other.
fn parse_line<'a>(file: &'a Path, line: usize, text: &'a str) -> Option<Entry<'a>> {
    let mut fields = text.split_ascii_whitespace();
    let mut names = fields.next()?;
    if names.starts_with('#') {
        return None;
    }
    let marker = match names {
        "@revoked" => Marker::Revoked,
        "@cert-authority" => Marker::CertAuthority,
        _ if names.starts_with('@') => return None,
        _ => Marker::None,
    };
    if marker != Marker::None {
        names = fields.next()?;
    }
    let algorithm = fields.next()?;
    let blob = STANDARD.decode(fields.next()?).ok()?;
    // The type stands once more inside the key; a line where the two differ is not what it says.
    let inner = blob.get(4..4 + u32::from_be_bytes(*blob.first_chunk()?) as usize)?;
    (inner == algorithm.as_bytes()).then_some(Entry { file, line, marker, names, algorithm, blob })
}

fn names_match(names: &str, host: &str) -> bool {
    if let Some(hashed) = names.strip_prefix("|1|") {
        return hashed_name_matches(hashed, host).unwrap_or(false);
    }
    let lower = names.to_lowercase();
    pattern::list_matches(lower.split(','), host)
}

/// `salt|hash`, both base64: HMAC-SHA1 of the name, keyed by the salt.
fn hashed_name_matches(hashed: &str, host: &str) -> Option<bool> {
    let (salt, hash) = hashed.split_once('|')?;
    let mut mac = Hmac::<Sha1>::new_from_slice(&STANDARD.decode(salt).ok()?).ok()?;
    mac.update(host.as_bytes());
    Some(mac.verify_slice(&STANDARD.decode(hash).ok()?).is_ok())
}

/// Adds a key for `host` to `file`, unless it came to stand there meanwhile. Blocks while another process writes.
///
/// The directory is made with mode 0700 and the file with 0600 where they are missing. Each key is one append.
///
/// # Errors
/// The file cannot be opened, locked or written.
pub fn append(file: &Path, host: &HostName, key: &HostKey) -> io::Result<()> {
    if let Some(directory) = file.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let mut handle: File = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(file)?;
    handle.lock()?;
    let mut text = Vec::new();
    handle.read_to_end(&mut text)?;
    let present = KnownHosts { files: vec![(file.to_owned(), String::from_utf8_lossy(&text).into_owned())] };
    match present.check_entry(&host.entry(), key) {
        Verdict::Unknown => {}
        Verdict::Known => return Ok(()),
        Verdict::Changed { line, .. } | Verdict::Revoked { line, .. } => {
            return Err(io::Error::other(format!(
                "line {line}, written meanwhile, has another key for the host"
            )));
        }
    }
    let newline = if text.last().is_some_and(|&b| b != b'\n') { "\n" } else { "" };
    let line = format!("{newline}{} {} {}\n", host.entry(), key.algorithm, STANDARD.encode(&key.blob));
    handle.write_all(line.as_bytes())?;
    handle.sync_all()
}

#[cfg(test)]
#[path = "known_hosts_tests.rs"]
mod tests;
