//! known_hosts as sshd(8) describes it: plain, hashed, wildcard and negated names, `[host]:port`, several keys a host,
//! `@cert-authority` and `@revoked`.
//!
//! Keys are compared as the bytes they have on the wire; nothing here knows russh or the network.

mod append;
mod key;
mod line;

use std::io;
use std::path::{Path, PathBuf};

pub use append::append;
pub use key::HostKey;
pub(crate) use key::take_string;
use line::{Entry, Marker};

pub use crate::place::Place;

/// What known_hosts says about a key that a host showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This key is known for the host, and that is where.
    Known(Place),
    /// No key is known for the host.
    Unknown,
    /// Other keys are known for the host, this one is not. The place is that of another key, of the same type where
    /// there is one.
    Changed(Place),
    /// The key is marked `@revoked` for the host.
    Revoked(Place),
}

/// The name of a host as known_hosts has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    entry: String,
    /// The name without its port, if what is known for the standard port counts too.
    bare: Option<String>,
    principal: String,
}

impl HostName {
    /// `host` is what was connected to: after `HostName` of ssh_config, before any address lookup.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        let host = host.to_lowercase();
        if port == 22 {
            return Self { entry: host.clone(), bare: None, principal: host };
        }
        Self { entry: format!("[{host}]:{port}"), bare: Some(host.clone()), principal: host }
    }

    /// `HostKeyAlias` of ssh_config(5): the name that known_hosts and certificates have, whatever host and port are.
    #[must_use]
    pub fn alias(alias: &str) -> Self {
        let alias = alias.to_lowercase();
        Self { entry: alias.clone(), bare: None, principal: alias }
    }

    /// `host`, or `[host]:port` where the port is not 22.
    #[must_use]
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// What a certificate of the host has to be for: the name without a port.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// Whether a line with this name would be about this host alone. A name with a `*` in it would be about others.
    #[must_use]
    pub fn can_be_recorded(&self) -> bool {
        let special = |c: char| c.is_whitespace() || c.is_control() || "@?*#[]|!,'\"\\".contains(c);
        !self.principal.is_empty() && !self.principal.contains(special)
    }

    /// The names that lines may have for this host, the most particular first.
    fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.entry.as_str()).chain(self.bare.as_deref())
    }
}

/// One or more known_hosts files, read once.
#[derive(Debug, Clone, Default)]
pub struct KnownHosts {
    files: Vec<(PathBuf, String)>,
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

    /// Judges the plain key that `host` showed.
    #[must_use]
    pub fn check(&self, host: &HostName, key: &HostKey) -> Verdict {
        if let Some(place) = self.revoked(host, key) {
            return Verdict::Revoked(place);
        }
        let verdict = self.check_name(&host.entry, key);
        let Some(bare) = host.bare.as_deref().filter(|_| verdict == Verdict::Unknown) else { return verdict };
        // As OpenSSH does: a key known for the host on the standard port is good on every port; another key proves
        // nothing, for another server may listen there.
        match self.check_name(bare, key) {
            Verdict::Changed(_) => Verdict::Unknown,
            verdict => verdict,
        }
    }

    fn check_name(&self, name: &str, key: &HostKey) -> Verdict {
        let mut other: Option<Entry<'_>> = None;
        for entry in self.about(name, Marker::None) {
            if entry.key == *key {
                return Verdict::Known(entry.place());
            }
            // The line with a key of the same type is the one the user has to look at.
            let same_type = |entry: &Entry<'_>| entry.key.algorithm == key.algorithm;
            if other.as_ref().is_none_or(|found| !same_type(found) && same_type(&entry)) {
                other = Some(entry);
            }
        }
        other.map_or(Verdict::Unknown, |entry| Verdict::Changed(entry.place()))
    }

    /// The `@cert-authority` line by which this authority may vouch for `host`. The certificate itself is not looked
    /// at: see [`crate::host_certificate`].
    #[must_use]
    pub fn authority(&self, host: &HostName, authority: &HostKey) -> Option<Place> {
        host.names()
            .flat_map(|name| self.about(name, Marker::CertAuthority))
            .find(|entry| entry.key == *authority)
            .map(|entry| entry.place())
    }

    /// The `@revoked` line that has this key. OpenSSH looks among the lines of one name; here those of the host without
    /// its port count always, for a key that is no good on one port is no good on another.
    #[must_use]
    pub fn revoked(&self, host: &HostName, key: &HostKey) -> Option<Place> {
        host.names()
            .flat_map(|name| self.about(name, Marker::Revoked))
            .find(|entry| entry.key == *key)
            .map(|entry| entry.place())
    }

    /// Whether any authority may vouch for `host`, so that certificates are worth asking for.
    #[must_use]
    pub fn has_authority(&self, host: &HostName) -> bool {
        host.names().any(|name| self.about(name, Marker::CertAuthority).next().is_some())
    }

    /// Types of the keys known for `host`, in the order of the files: the server should be asked for these first, or a
    /// host known by one key looks unknown by another. As ssh(1) has it, those of its port alone.
    #[must_use]
    pub fn algorithms(&self, host: &HostName) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for entry in self.about(&host.entry, Marker::None) {
            if !found.contains(&entry.key.algorithm) {
                found.push(entry.key.algorithm);
            }
        }
        found
    }

    /// The lines with this marker that have a name for `name`.
    fn about<'a>(&'a self, name: &'a str, marker: Marker) -> impl Iterator<Item = Entry<'a>> {
        self.files.iter().flat_map(move |(file, text)| {
            let numbered = text.lines().enumerate();
            numbered.filter_map(move |(index, line)| line::about(file, index + 1, line, marker, name))
        })
    }
}

#[cfg(test)]
#[path = "known_hosts_tests.rs"]
mod tests;
