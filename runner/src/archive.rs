//! Archives as tar(1) and unzip(1) list them: what kind one is, what is in it, and whether any of that would end up elsewhere.
//!
//! Pure. Names come from whoever made the archive, and are taken for hostile.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use sortie_protocol::ErrorCode;

use crate::attributes::one_line;
use crate::failure::Failure;

/// Most bytes of names.
pub(crate) const MOST_NAMES: usize = 6 * 1024 * 1024;

/// Longest line of a listing, in bytes: paths are shorter, and longer lines are cut by who reads them.
const LONGEST_LINE: usize = 4096;

/// Most directories above a member.
const DEEPEST: usize = 100;

/// What an archive is, by its first bytes: file(1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With the flag that tar wants, and the program that it may need.
    Tar(&'static str, &'static str),
    Zip,
}

impl Kind {
    pub(crate) fn of(first: &[u8]) -> Option<Self> {
        const KINDS: &[(&[u8], Kind)] = &[
            (&[0x1f, 0x8b], Kind::Tar("-z", "gzip")),
            (b"BZh", Kind::Tar("-j", "bzip2")),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Kind::Tar("-J", "xz")),
            (&[0x28, 0xb5, 0x2f, 0xfd], Kind::Tar("--zstd", "zstd")),
            (b"PK\x03\x04", Kind::Zip),
            (b"PK\x05\x06", Kind::Zip),
        ];
        let known = KINDS.iter().find(|(magic, _)| first.starts_with(magic)).map(|(_, kind)| *kind);
        // tar(5): at 257 stands `ustar`; only archives older than POSIX have none.
        known.or_else(|| (first.get(257..262) == Some(b"ustar")).then_some(Self::Tar("", "")))
    }
}

/// Most symbolic links: each name is looked for below each of them.
const MOST_LINKS: usize = 10_000;

/// What is in an archive.
#[derive(Default)]
pub(crate) struct Listing {
    /// Names as they stand there, each with a `\n` behind it.
    names: Vec<u8>,
    /// First characters of the long listing.
    kinds: Vec<u8>,
    /// Where the name of the next line of the long listing is.
    next: usize,
    /// Names of symbolic links.
    links: Vec<Vec<u8>>,
    /// What hard links lead to.
    targets: Vec<Vec<u8>>,
    problem: Option<Failure>,
}

fn refused(what: &str, line: &[u8]) -> Failure {
    let name: String = one_line(&String::from_utf8_lossy(line)).chars().take(200).collect();
    let message = format!("the archive has a member that {what}: {name}; nothing was unpacked");
    Failure::new(ErrorCode::ValidationFailed, message)
}

/// The names of the directories and of the thing itself; `.` and empty ones do not count.
pub(crate) fn components(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// Why a name does not stay below the directory that it is unpacked to.
fn leaves(name: &[u8]) -> Option<&'static str> {
    if name.starts_with(b"/") {
        return Some("has an absolute name");
    }
    if components(name).any(|part| part == b"..") {
        return Some("would leave the directory");
    }
    (components(name).count() > DEEPEST).then_some("is more than 100 directories deep")
}

impl Listing {
    /// Takes a line of the short listing: a name.
    pub(crate) fn name(&mut self, line: &[u8], backslashes: bool) {
        // DOS wrote backslashes, and unzip takes them for slashes.
        let name: Vec<u8> = line.iter().map(|b| if backslashes && *b == b'\\' { b'/' } else { *b }).collect();
        let why = if line.is_empty() || line.len() >= LONGEST_LINE {
            Some("has a name that cannot be read")
        } else if self.names.len() + line.len() >= MOST_NAMES {
            Some("is one too many: there are more than 6 MiB of names")
        } else {
            leaves(&name)
        };
        match why {
            Some(why) => self.refuse(why, line),
            None => self.names.extend([&name, &b"\n"[..]].concat()),
        }
    }

    /// Takes what busybox says where it would put a member elsewhere than the archive does.
    pub(crate) fn complaint(&mut self, line: &[u8]) {
        if !after_each(line, b"removing leading").is_empty() {
            self.refuse("would leave the directory", line);
        }
    }

    /// Takes a line of unzip's listing: size, date, time, and behind three blanks the name.
    pub(crate) fn zip_line(&mut self, line: &[u8]) {
        let mut rest = line.trim_ascii_start();
        for _ in 0..2 {
            let blank = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
            rest = rest[blank..].trim_ascii_start();
        }
        let time = rest.iter().take_while(|b| **b != b' ').count();
        match rest[time..].strip_prefix(b"   ") {
            Some(name) if line.trim_ascii_start().first().is_some_and(u8::is_ascii_digit) => {
                self.kinds.push(if name.ends_with(b"/") { b'd' } else { b'-' });
                self.name(name, true);
            }
            _ => self.refuse("cannot be read", line),
        }
    }

    /// Takes a line of tar's long listing; the names must be there.
    pub(crate) fn tar_line(&mut self, line: &[u8]) {
        let kind = line.first().copied().unwrap_or_default();
        self.kinds.push(kind);
        let Some(length) = self.names[self.next..].iter().position(|b| *b == b'\n') else { return };
        let name = self.names[self.next..self.next + length].to_vec();
        self.next += length + 1;
        // Of GNU and of busybox.
        let mut targets = after_each(line, b" -> ");
        targets.extend(after_each(line, b" link to "));
        match (kind, &targets[..]) {
            _ if line.len() >= LONGEST_LINE => self.refuse("has a name that cannot be read", line),
            (b'd', _) | (b'-', []) => {}
            (b'-' | b'h', [target]) => match leaves(target) {
                Some(_) => self.refuse("is a hard link out of the directory", line),
                None => self.targets.push(joined(components(target))),
            },
            (b'l', [_, ..]) => {
                let depth = components(&name).count().saturating_sub(1);
                let target = after_each(line, &[b" ", &name[..], b" -> "].concat());
                if target.first().is_none_or(|target| link_leaves(depth, target)) {
                    self.refuse("is a symbolic link out of the directory", line);
                }
                self.links.push(joined(components(&name)));
            }
            _ => self.refuse("is no file, directory or link", line),
        }
    }

    /// Whether all of it may be unpacked.
    ///
    /// # Errors
    /// `VALIDATION_FAILED` with the first member that may not.
    pub(crate) fn check(&mut self, go_on: &dyn Fn() -> Result<(), Failure>) -> Result<(), Failure> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        let count = self.names.iter().filter(|b| **b == b'\n').count();
        if count != self.kinds.len() || self.links.len() > MOST_LINKS {
            let what = "the archive's names cannot be read, or there are too many symbolic links; nothing was unpacked";
            return Err(Failure::new(ErrorCode::ValidationFailed, what));
        }
        let targets = self.targets.iter().map(|target| &target[..]);
        for name in self.names.split(|b| *b == b'\n').chain(targets) {
            go_on()?;
            let parts: Vec<&[u8]> = components(name).collect();
            for above in 1..parts.len() {
                if !self.links.is_empty() && self.links.contains(&parts[..above].join(&b'/')) {
                    return Err(refused("is below a symbolic link", name));
                }
            }
        }
        Ok(())
    }

    /// The names, each with whether it is a directory's.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&[u8], bool)> {
        let names = self.names.split(|b| *b == b'\n');
        names.zip(&self.kinds).map(|(name, kind)| (name, *kind == b'd'))
    }

    fn refuse(&mut self, what: &str, line: &[u8]) {
        if self.problem.is_none() {
            self.problem = Some(refused(what, line));
        }
    }
}

fn joined<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    parts.collect::<Vec<_>>().join(&b'/')
}

/// What stands behind each occurrence of the mark.
fn after_each<'a>(line: &'a [u8], mark: &[u8]) -> Vec<&'a [u8]> {
    let places = (0..line.len()).filter(|at| line[*at..].starts_with(mark));
    places.map(|at| &line[at + mark.len()..]).collect()
}

/// Whether a symbolic link leads out of the directory, below which it is in `depth` others. After a name no `..` is taken: the name may
/// be a symbolic link itself.
pub(crate) fn link_leaves(depth: usize, target: &[u8]) -> bool {
    let mut up = 0;
    for part in Path::new(OsStr::from_bytes(target)).components() {
        match part {
            Component::ParentDir if up < depth && up != usize::MAX => up += 1,
            Component::Normal(_) => up = usize::MAX,
            Component::CurDir => {}
            _ => return true,
        }
    }
    target.is_empty()
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
