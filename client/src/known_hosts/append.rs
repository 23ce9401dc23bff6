//! Adding a key to a known_hosts file that other processes read and write too.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::{HostKey, HostName, KnownHosts, Verdict, line};

/// Adds a key for `host` to `file`, unless it came to stand there meanwhile. Blocks while another process writes.
///
/// With `hashed` the name is written as `HashKnownHosts` of ssh_config(5) has it. The directory is made with mode 0700
/// and the file with 0600 where they are missing. Each key is one append.
///
/// # Errors
/// The file cannot be opened, locked or written; the name would be read as a pattern; or the file came to have another
/// key for the host.
pub fn append(file: &Path, host: &HostName, key: &HostKey, hashed: bool) -> io::Result<()> {
    if !host.can_be_recorded() {
        return Err(io::Error::other(format!("{:?} would be read as a pattern there", host.entry())));
    }
    if let Some(directory) = file.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let mut handle: File = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(file)?;
    handle.lock()?;
    let mut text = Vec::new();
    handle.read_to_end(&mut text)?;
    let present = KnownHosts { files: vec![(file.to_owned(), String::from_utf8_lossy(&text).into_owned())] };
    match present.check(host, key) {
        Verdict::Unknown => {}
        Verdict::Known(_) => return Ok(()),
        Verdict::Changed(place) | Verdict::Revoked(place) => {
            return Err(io::Error::other(format!(
                "line {}, written meanwhile, has another key for the host",
                place.line
            )));
        }
    }
    let name = if hashed {
        let mut salt = [0; 20];
        getrandom::fill(&mut salt).map_err(|error| io::Error::other(error.to_string()))?;
        line::hashed_name(host.entry(), salt)?
    } else {
        host.entry().to_owned()
    };
    let newline = if text.last().is_some_and(|&b| b != b'\n') { "\n" } else { "" };
    let line = format!("{newline}{name} {} {}\n", key.algorithm, key.base64());
    handle.write_all(line.as_bytes())?;
    // `UserKnownHostsFile /dev/null` is how people say that nothing is to be remembered.
    if handle.metadata()?.is_file() { handle.sync_all() } else { Ok(()) }
}
