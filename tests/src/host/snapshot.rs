//! The whole file system of a host at one moment, and what has become of it at another. It is read from outside, by way of
//! `/proc/PID/root`, so that no program of the host has to run for it; it knows nothing of who changes what.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fmt::{self, Write as _};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::Host;

/// What a running system writes by itself, whatever is done to it: not looked at.
pub const VOLATILE: &[(&str, &str)] = &[
    ("/proc", "the kernel's"),
    ("/sys", "the kernel's"),
    ("/dev", "made anew at each start; logins come and go in its pts"),
    ("/run", "in memory: process ids, sockets, sessions"),
    ("/var/log/journal", "what services have said"),
    ("/var/log/wtmp", "every login is noted there"),
    ("/var/log/btmp", "every refused login is noted there"),
    ("/var/log/lastlog", "every login is noted there"),
];

/// Every path of a host, [`VOLATILE`] ones left out.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(BTreeMap<PathBuf, Entry>);

/// What is known of one path. The time of last access is not: reading is no change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    kind: &'static str,
    mode: u32,
    owner: u32,
    group: u32,
    /// Nanoseconds since 1970. That of the inode too: it betrays whoever sets the other back.
    modified: i128,
    inode_changed: i128,
    /// Extended attributes; ACLs and file capabilities are among them.
    attributes: BTreeMap<OsString, Vec<u8>>,
    /// Size and digest of a file, target of a link, numbers of a device.
    content: String,
}

/// A path that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The path, as the host knows it.
    pub path: PathBuf,
    /// In words: what of it is different, as `WAS -> IS`.
    pub what: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl Host {
    /// Its file system now.
    ///
    /// # Errors
    /// When it is off, or something in it cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let root = self.path("")?;
        let mut entries = BTreeMap::new();
        let mut left = vec![PathBuf::from("/")];
        while let Some(path) = left.pop() {
            if VOLATILE.iter().any(|(volatile, _)| path == Path::new(volatile)) {
                continue;
            }
            let outside = root.join(path.strip_prefix("/").unwrap_or(&path));
            match look(&outside) {
                Ok((entry, children)) => {
                    left.extend(children.into_iter().map(|name| path.join(name)));
                    entries.insert(path, entry);
                }
                // The host lives: something may be gone since its name was read.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("looking at {} of {}", path.display(), self.name));
                }
            }
        }
        Ok(Snapshot(entries))
    }
}

impl Snapshot {
    /// Every path that is not the same in `later`, in order.
    pub fn changes(&self, later: &Snapshot) -> Vec<Change> {
        let mut changes = Vec::new();
        for (path, was) in &self.0 {
            let what = match later.0.get(path) {
                Some(is) if is == was => continue,
                Some(is) => was.difference(is),
                None => format!("{was} -> nothing"),
            };
            changes.push(Change { path: path.clone(), what });
        }
        let added = later.0.iter().filter(|(path, _)| !self.0.contains_key(*path));
        changes
            .extend(added.map(|(path, is)| Change { path: path.clone(), what: format!("nothing -> {is}") }));
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        changes
    }

    /// Every path that is not the same in `later`, a line each: empty if nothing has changed.
    pub fn difference(&self, later: &Snapshot) -> String {
        self.changes(later).iter().fold(String::new(), |mut text, change| {
            let _ = writeln!(text, "{change}");
            text
        })
    }

    /// Without these paths and what is in them, each with the reason.
    #[must_use]
    pub fn without(mut self, paths: &[(&str, &str)]) -> Self {
        self.0.retain(|path, _| !paths.iter().any(|(prefix, _)| path.starts_with(prefix)));
        self
    }

    /// Whether there is anything at `path`.
    pub fn contains(&self, path: impl AsRef<Path>) -> bool {
        self.0.contains_key(path.as_ref())
    }

    /// How many paths it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none, which no host's has.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Entry {
    fn difference(&self, is: &Self) -> String {
        let mut words = Vec::new();
        let mut differ = |name: &str, was: String, now: String| {
            if was != now {
                words.push(format!("{name} {was} -> {now}"));
            }
        };
        differ("type", self.kind.to_owned(), is.kind.to_owned());
        differ("mode", format!("{:04o}", self.mode), format!("{:04o}", is.mode));
        differ("owner", self.owner.to_string(), is.owner.to_string());
        differ("group", self.group.to_string(), is.group.to_string());
        differ("content", self.content.clone(), is.content.clone());
        differ("modified", seconds(self.modified), seconds(is.modified));
        differ("inode changed", seconds(self.inode_changed), seconds(is.inode_changed));
        let names = self
            .attributes
            .keys()
            .chain(is.attributes.keys().filter(|name| !self.attributes.contains_key(*name)));
        for name in names {
            let shown = |value: Option<&Vec<u8>>| {
                value.map_or("nothing".to_owned(), |value| format!("\"{}\"", value.escape_ascii()))
            };
            let name_shown = format!("attribute {}", name.display());
            differ(&name_shown, shown(self.attributes.get(name)), shown(is.attributes.get(name)));
        }
        words.join("; ")
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, mode, owner, group, content, .. } = self;
        write!(f, "{kind} {mode:04o} {owner}:{group} {content}")
    }
}

fn seconds(nanoseconds: i128) -> String {
    format!("{}.{:09}", nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000))
}

/// What is at a path, without following a link, and the names in it if it is a directory.
fn look(path: &Path) -> io::Result<(Entry, Vec<OsString>)> {
    let metadata = fs::symlink_metadata(path)?;
    let (kind, content, children) = content(path, &metadata)?;
    let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let entry = Entry {
        kind,
        mode: metadata.mode() & 0o7777,
        owner: metadata.uid(),
        group: metadata.gid(),
        modified: time(metadata.mtime(), metadata.mtime_nsec()),
        inode_changed: time(metadata.ctime(), metadata.ctime_nsec()),
        attributes: attributes(path)?,
        content,
    };
    Ok((entry, children))
}

fn content(path: &Path, metadata: &Metadata) -> io::Result<(&'static str, String, Vec<OsString>)> {
    let kind = metadata.file_type();
    let device = || format!("{}:{}", libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    Ok(if kind.is_dir() {
        let names = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name()));
        ("directory", String::new(), names.collect::<io::Result<_>>()?)
    } else if kind.is_file() {
        let (mut file, mut hash, mut bytes) = (fs::File::open(path)?, Sha256::new(), 0);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            bytes += read;
        }
        let digest = hash.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        ("file", format!("{bytes} bytes {digest}"), Vec::new())
    } else if kind.is_symlink() {
        ("link", fs::read_link(path)?.display().to_string(), Vec::new())
    } else if kind.is_fifo() {
        ("fifo", String::new(), Vec::new())
    } else if kind.is_socket() {
        ("socket", String::new(), Vec::new())
    } else if kind.is_block_device() {
        ("block device", device(), Vec::new())
    } else {
        ("character device", device(), Vec::new())
    })
}

/// The extended attributes of what is at a path, without following a link (xattr(7)).
fn attributes(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with NUL, and no more is written than the buffer has.
    let names = filled(|buffer| unsafe {
        libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    })?;
    let mut found = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let with_end = CString::new(name)?;
        // SAFETY: path and name end with NUL, and no more is written than the buffer has.
        let value = filled(|buffer| unsafe {
            libc::lgetxattr(path.as_ptr(), with_end.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        })?;
        found.insert(OsStr::from_bytes(name).to_owned(), value);
    }
    Ok(found)
}

/// What a system call writes that says how much it has written: 64 KiB is the most that Linux allows (xattr(7)).
fn filled(call: impl Fn(&mut [u8]) -> isize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 * 1024];
    let Ok(length) = usize::try_from(call(&mut buffer)) else {
        let error = io::Error::last_os_error();
        // Not every file system has them.
        return if error.raw_os_error() == Some(libc::ENOTSUP) { Ok(Vec::new()) } else { Err(error) };
    };
    buffer.truncate(length);
    Ok(buffer)
}
