//! The part of ssh_config(5) that Sortie obeys, and a strict reading of the rest.
//!
//! A keyword that would change where or how a connection is made is obeyed or refused by name, never ignored; one
//! without bearing on a session is passed over. Nothing here opens a connection or knows russh.

mod canonical;
mod file;
mod host_config;
mod keywords;
mod lexer;
mod matching;
mod openssh;
mod reader;
mod setting;
mod tokens;
mod trouble;
mod value;
mod world;

use std::fmt;
use std::path::{Path, PathBuf};

pub use crate::place::Place;
pub use file::{ConfigFile, ConfigSource};
pub use host_config::{AddressFamily, HostConfig, HostKeyPolicy, Proxy};
pub(crate) use tokens::{Expand, Tokens};
pub use world::{ThisMachine, World};
pub(crate) use world::{interface_addresses, own_user};

use self::reader::Reader;
use self::trouble::Trouble;
use crate::target::check_host;

/// A line that cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong and what to do.
    pub reason: String,
    /// The line may well be right, and ssh(1) know what it means.
    pub not_understood: bool,
}

impl ConfigError {
    fn new(at: &Place, trouble: &Trouble) -> Self {
        Self {
            file: at.file.clone(),
            line: at.line,
            reason: trouble.reason(),
            not_understood: matches!(trouble, Trouble::CannotTell(_)),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}: {}", self.file.display(), self.line, self.reason)
    }
}

impl std::error::Error for ConfigError {}

/// What is asked of the configuration: a host, and what the caller says of it, which comes before any file.
#[derive(Debug, Clone, Default)]
pub struct Query<'a> {
    /// The host as its user named it.
    pub host: &'a str,
    /// The user to log in as.
    pub user: Option<&'a str>,
    /// The port.
    pub port: Option<u16>,
    /// What is in between.
    pub proxy: Option<Proxy>,
    /// The home directory.
    pub home: Option<&'a Path>,
    /// The name of the user of this machine.
    pub local_user: Option<&'a str>,
}

/// What `files`, in this order, say about a host. The first value of a keyword wins, and before all of them that of the
/// query; `IdentityFile`s and `CertificateFile`s add up.
///
/// Blocks: it may run the commands of `Match exec` and look up names for `CanonicalizeHostname`, by way of `world`.
///
/// # Errors
/// [`ConfigError`] for a line that is malformed or not understood, and for one that applies and is not supported.
pub fn lookup(files: &[ConfigFile], query: &Query<'_>, world: &dyn World) -> Result<HostConfig, ConfigError> {
    let mut reader = Reader::new(query, world);
    for file in files {
        reader.read(file, true, 0)?;
    }
    let named = named_host(&reader)?;
    let direct = !matches!(reader.found.proxy, Some(Proxy::Jump(_) | Proxy::Command(_)));
    let family = reader.found.address_family.unwrap_or_default();
    let canonical = reader.canonicalization.canonical(&named, direct, family, world);
    reader.host = canonical.map_err(|(at, trouble)| ConfigError::new(&at, &trouble))?;
    if reader.wants_last || reader.canonicalization.is_on() {
        reader.last = true;
        for file in files {
            reader.read(file, true, 0)?;
        }
    }
    let Reader { mut found, host, .. } = reader;
    found.host_name = (host != query.host).then_some(host);
    Ok(found)
}

/// What the files of `source` say about a host; what this parser does not understand in them `ssh`, a program, is asked
/// for (`ssh -G`).
///
/// Blocks, as [`lookup`] does.
///
/// # Errors
/// What cannot be read, understood or obeyed, with its place.
pub fn evaluate(
    source: &ConfigSource,
    query: &Query<'_>,
    world: &dyn World,
    ssh: Option<&Path>,
) -> Result<HostConfig, String> {
    let files = source
        .read(query.home, world.user_id())
        .map_err(|(path, error)| format!("{} cannot be read: {error}", path.display()))?;
    match (lookup(&files, query, world), ssh) {
        (Ok(found), _) => Ok(found),
        (Err(error), Some(ssh)) if error.not_understood => {
            let asked = openssh::effective(ssh, source, query);
            asked.map_err(|why| format!("{error}; {} -G was asked: {why}", ssh.display()))
        }
        (Err(error), _) => Err(error.to_string()),
    }
}

/// What `HostName` makes of the host.
fn named_host(reader: &Reader<'_>) -> Result<String, ConfigError> {
    let Some(name) = &reader.found.host_name else { return Ok(reader.query.host.to_owned()) };
    let named = tokens::host_name(name, reader.query.host).and_then(|name| {
        check_host(&name)?;
        Ok(name)
    });
    let at = reader.found.places.get("hostname").cloned().unwrap_or_default();
    named.map_err(|trouble| ConfigError::new(&at, &trouble.in_front("HostName")))
}

#[cfg(test)]
mod tests;
