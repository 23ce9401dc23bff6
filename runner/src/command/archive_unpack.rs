//! `archive_unpack`: what is in an archive of the host, in a directory, by the host's own tar or unzip.
//!
//! They unpack into a directory of their own. What came of it is looked at, and only then moved to where it was asked for.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sortie_protocol::command::archive_unpack::{ArchiveUnpack, ArchiveUnpackResult};
use sortie_protocol::{ErrorCode, Sha256Hex, Stream};

use super::{Context, content};
use crate::archive::{Kind, Listing, MOST_NAMES, components, link_leaves};
use crate::attributes::{Attributes, Wanted};
use crate::failure::Failure;
use crate::locks::Held;
use crate::path::{self, Parents};
use crate::replace::{self, Replacement, sync_directory_of};
use crate::sys::at;
use crate::tool::{self, Ran, Tool};
use crate::{diff, job};

/// The marker's name where no other is asked for.
const MARKER: &str = ".sortie-unpacked";

/// How the names of directories begin that are unpacked to.
const TEMPORARY: &str = ".sortie-unpack-";

/// Most directories taken off names.
const MOST_STRIPPED: u32 = 100;

pub(super) fn run(context: &Context) -> Result<ArchiveUnpackResult, Failure> {
    let params: ArchiveUnpack = job::parse(&context.job.take_params())?;
    check_path("path", &params.path)?;
    check_path("archive", &params.archive)?;
    params.creates.iter().try_for_each(|path| check_path("creates", path))?;
    params.marker.iter().try_for_each(|path| check_path("marker", path))?;
    if params.strip > MOST_STRIPPED {
        return Err(Failure::params("strip: more than 100"));
    }
    if params.creates.is_some() && params.marker.is_some() {
        return Err(Failure::params("creates: not together with marker, which tells the same"));
    }
    let wanted = Wanted::new(context, params.owner.as_deref(), params.group.as_deref(), None)?;
    let result = ArchiveUnpackResult {
        action: "already_unpacked".to_owned(),
        diff: context.diff().then(String::new),
        ..ArchiveUnpackResult::default()
    };
    if params.creates.as_ref().is_some_and(|path| fs::symlink_metadata(path).is_ok()) {
        return Ok(result);
    }
    let goal = path::resolve(Path::new(&params.path), false)?;
    if goal.file_name().is_none() {
        return Err(Failure::params("path: has no name; unpack into a directory below the root"));
    }
    let archive = Archive::open(context, Path::new(&params.archive))?;
    let marker = params.marker.as_ref().map_or_else(|| goal.join(MARKER), PathBuf::from);
    let mark = format!("sha256 {}\nstrip {}\n", archive.checksum, params.strip);
    let unpack = Unpack { context, archive, goal, strip: params.strip as usize, wanted, mark };
    let result = ArchiveUnpackResult { checksum: unpack.archive.checksum.to_string(), ..result };
    let marker = params.creates.is_none().then_some(marker);
    let old = marker.as_ref().map(|marker| read_marker(marker)).transpose()?.unwrap_or_default();
    if marker.is_some() && old == unpack.mark {
        return Ok(result);
    }
    let members = if context.check() { unpack.look()?.0 } else { unpack.unpack(marker.as_deref())? };
    let name = marker.unwrap_or_else(|| unpack.goal.join(MARKER));
    let name = name.to_string_lossy();
    let from = if old.is_empty() { "/dev/null" } else { &*name };
    Ok(ArchiveUnpackResult {
        changed: true,
        action: "unpacked".to_owned(),
        members,
        diff: context.diff().then(|| diff::unified(from, &name, &old, &unpack.mark)),
        ..result
    })
}

fn check_path(field: &str, path: &str) -> Result<(), Failure> {
    let why = match path {
        "" => " is required",
        _ if path.contains('\0') => ": contains a NUL byte",
        _ if path.len() > path::LONGEST => ": longer than 4095 bytes",
        _ if !path.starts_with('/') => ": is not absolute",
        _ => return Ok(()),
    };
    Err(Failure::params([field, why].concat()))
}

/// What an earlier run has noted; nothing where there is no note.
fn read_marker(marker: &Path) -> Result<String, Failure> {
    let failed = |error: &io::Error| Failure::io(format!("cannot read the marker {marker:?}"), error);
    match fs::symlink_metadata(marker) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(String::new());
        }
        Err(error) => return Err(failed(&error)),
        Ok(found) if !found.is_file() => {
            return Err(Failure::new(
                ErrorCode::Conflict,
                format!("the marker {marker:?} is no regular file"),
            ));
        }
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    File::open(marker).and_then(|file| file.take(1024).read_to_end(&mut bytes)).map_err(|e| failed(&e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An archive that was opened.
struct Archive<'a> {
    context: &'a Context,
    path: &'a Path,
    kind: Kind,
    checksum: Sha256Hex,
}

impl<'a> Archive<'a> {
    fn open(context: &'a Context, path: &'a Path) -> Result<Self, Failure> {
        let failed = |error: &io::Error| Failure::io(format!("cannot read the archive {path:?}"), error);
        // Without O_NONBLOCK a FIFO without a writer would be waited for.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        let file = file.map_err(|error| failed(&error))?;
        if !file.metadata().map_err(|error| failed(&error))?.is_file() {
            return Err(Failure::new(
                ErrorCode::Conflict,
                format!("the archive {path:?} is no regular file"),
            ));
        }
        let mut first = Vec::new();
        (&file).take(512).read_to_end(&mut first).map_err(|error| failed(&error))?;
        let kind = Kind::of(&first).ok_or_else(|| {
            Failure::unsupported(format!(
                "{path:?} is no archive that is known: tar, plain or by gzip, bzip2, xz or zstd, or zip"
            ))
        })?;
        let checksum = digest(context, path)?;
        Ok(Self { context, path, kind, checksum })
    }

    /// Runs tar or unzip over it.
    fn run(&self, list: bool, words: &[&str], take: tool::TakeLine<'_>) -> Result<Ran, Failure> {
        let path = self.path.to_string_lossy();
        let (tool, most) = match self.kind {
            Kind::Tar(flag, _) => {
                let flags =
                    [if list { "-t" } else { "-x" }, flag].into_iter().filter(|flag| !flag.is_empty());
                let tool = Tool::new("tar").args(flags).args(words).args(["-f", &path]);
                // GNU would escape what is no ASCII, and take the first / off when it lists what hard links lead to.
                let gnu = if list { "--quoting-style=literal --absolute-names" } else { "" };
                (tool.env("TAR_OPTIONS", gnu), 0)
            }
            // Its status 1 is a warning. In the C locale it would spell what is no ASCII in its own way.
            Kind::Zip => {
                (Tool::new("unzip").args(words).args([&*path]).env("LC_ALL", "C.UTF-8").env("UNZIP", ""), 1)
            }
        };
        let ran = tool.waiting(format!("reading {path}")).run_lines(self.context, take)?;
        if ran.exit_code > most {
            let missing = match self.kind {
                Kind::Tar(_, program) if !program.is_empty() && !tool::exists(program) => Some(program),
                _ => None,
            };
            let why =
                missing.map_or_else(String::new, |program| format!(", for which this host has no {program}"));
            let code = if missing.is_some() { ErrorCode::NotFound } else { ErrorCode::ExecFailed };
            let message = format!(
                "the archive {path:?} cannot be read{why}; nothing was unpacked: {}",
                ran.last_lines(5)
            );
            return Err(Failure::new(code, message));
        }
        Ok(ran)
    }

    /// What is in it, and that all of it may be unpacked.
    fn list(&self) -> Result<Listing, Failure> {
        let mut listing = Listing::default();
        let share = self.context.pool.wait_for(MOST_NAMES, &self.context.job)?;
        let mut run = |words: &[&str], take: fn(&mut Listing, &[u8])| {
            self.run(true, words, &mut |stream, line| match stream {
                Stream::Stdout => take(&mut listing, line),
                _ => listing.complaint(line),
            })
        };
        if self.kind == Kind::Zip {
            run(&["-l", "-qq"], Listing::zip_line)?;
        } else {
            run(&[], |listing, line| listing.name(line, false))?;
            run(&["-v"], Listing::tar_line)?;
        }
        listing.check(&|| self.context.job.go_on())?;
        drop(share);
        Ok(listing)
    }
}

fn digest(context: &Context, path: &Path) -> Result<Sha256Hex, Failure> {
    let file = File::open(path);
    let file = file.map_err(|error| Failure::io(format!("cannot read the archive {path:?}"), &error))?;
    content::digest(context, &file, path)
}

struct Unpack<'a> {
    context: &'a Context,
    archive: Archive<'a>,
    goal: PathBuf,
    strip: usize,
    wanted: Wanted,
    /// What the marker says afterwards.
    mark: String,
}

fn conflict(path: &Path, what: &str) -> Failure {
    Failure::new(ErrorCode::Conflict, format!("{path:?} {what}; nothing was unpacked"))
}

/// What is there, without following; none if nothing is.
fn found(path: &Path) -> Result<Option<Metadata>, Failure> {
    match fs::symlink_metadata(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        found => found.map(Some).map_err(|error| Failure::io(format!("cannot look at {path:?}"), &error)),
    }
}

impl Unpack<'_> {
    /// Everything that can be known before: how many members there are, below which directories, and that nothing stands in their
    /// way.
    fn look(&self) -> Result<(u64, PathBuf), Failure> {
        let listing = self.archive.list()?;
        let goal = found(&self.goal)?;
        if goal.as_ref().is_some_and(|goal| !goal.is_dir()) {
            return Err(conflict(&self.goal, "is no directory"));
        }
        let mut members = 0;
        let mut above = None;
        for (name, is_directory) in listing.members() {
            self.context.job.go_on()?;
            let mut parts = components(name);
            let taken: PathBuf = parts.by_ref().take(self.strip).map(OsStr::from_bytes).collect();
            let rest: Vec<&[u8]> = parts.collect();
            if rest.is_empty() {
                continue;
            }
            if above.get_or_insert_with(|| taken.clone()) != &taken {
                let what =
                    format!("strip: the members are not all below one directory that is {} deep", self.strip);
                return Err(Failure::new(ErrorCode::Conflict, format!("{what}; nothing was unpacked")));
            }
            members += 1;
            if let Some(goal) = &goal {
                self.look_at(goal.dev(), &rest, is_directory)?;
            }
        }
        match above {
            None if self.strip > 0 => {
                let message =
                    format!("strip: no name has more than {} directories; nothing was unpacked", self.strip);
                Err(Failure::new(ErrorCode::Conflict, message))
            }
            above => Ok((members, above.unwrap_or_default())),
        }
    }

    /// What stands where a member goes.
    fn look_at(&self, device: u64, parts: &[&[u8]], is_directory: bool) -> Result<(), Failure> {
        let mut path = self.goal.clone();
        for (at, part) in parts.iter().enumerate() {
            path.push(OsStr::from_bytes(part));
            let Some(found) = found(&path)? else { break };
            let to_be_directory = is_directory || at + 1 < parts.len();
            if to_be_directory != found.is_dir() {
                let what = if to_be_directory {
                    "is no directory, and would have to be one"
                } else {
                    "is a directory, and would become something else"
                };
                return Err(conflict(&path, what));
            }
            if found.is_dir() && found.dev() != device {
                return Err(conflict(&path, "is another file system"));
            }
        }
        Ok(())
    }

    fn unpack(&self, marker: Option<&Path>) -> Result<u64, Failure> {
        let mut parents = Parents::default();
        parents.make(&self.goal)?;
        let name = self.goal.file_name().unwrap_or_default();
        let held = self.context.locks.acquire(&self.context.job, above(&self.goal), name)?;
        let (members, stripped) = self.look()?;
        let is_new = found(&self.goal)?.is_none();
        // A marker in a new directory comes with it; any other is a file of its own.
        let inside = marker.filter(|marker| is_new && marker.parent() == Some(&self.goal));
        let beside = marker.filter(|_| inside.is_none());
        let marker_held = match beside {
            Some(marker) => {
                parents.make(marker)?;
                let name = marker.file_name().unwrap_or_default();
                Some(self.context.locks.acquire(&self.context.job, above(marker), name)?)
            }
            None => None,
        };
        self.clear(&held);
        // Where a rename is all that moving takes.
        let temporary = Temporary::make(if is_new { above(&self.goal) } else { &self.goal }, name, &held)?;
        self.extract(&temporary.0)?;
        let top = if self.strip > 0 { temporary.0.join(stripped) } else { temporary.0.clone() };
        self.settle(&top, 0)?;
        if is_new {
            let whole = Attributes::of_new(Parents::nearest(&self.goal).as_ref(), true, 0o755);
            self.give(&top, self.wanted.over(whole))?;
        }
        if let Some(name) = inside.and_then(Path::file_name) {
            self.write_marker(&top.join(name), None)?;
        }
        let written = File::open(&top).and_then(|top| Ok(nix::unistd::syncfs(&top)?));
        written.map_err(|error| Failure::io(format!("cannot write {:?} to the disk", self.goal), &error))?;
        self.context.job.commit()?;
        if is_new {
            fs::rename(&top, &self.goal)
                .map_err(|error| Failure::io(format!("cannot put {:?} in its place", self.goal), &error))?;
            sync_directory_of(&self.goal)?;
        } else {
            // From here to its end the marker says nothing: a run that is killed meanwhile is done again.
            if let Some(marker) = marker
                && let Err(error) = fs::remove_file(marker)
                && error.kind() != ErrorKind::NotFound
            {
                return Err(Failure::io(format!("cannot remove the marker {marker:?}"), &error));
            }
            let goal = File::open(&self.goal).map_err(|error| self.half(&self.goal, &error))?;
            self.merge(&top, &goal)?;
            at::sync(&goal).map_err(|error| self.half(&self.goal, &error))?;
        }
        parents.keep();
        if let Some(marker) = beside {
            self.write_marker(marker, marker_held.as_ref())?;
        }
        Ok(members)
    }

    /// Removes what a run that was killed has left, on either side of the directory.
    fn clear(&self, held: &Held) {
        if held.is_alone() {
            for directory in [above(&self.goal), &self.goal] {
                let name = self.goal.file_name().unwrap_or_default();
                if let Ok(temporary) = path::temporary(name, held, TEMPORARY) {
                    let _ = fs::remove_dir_all(directory.join(temporary));
                }
            }
        }
    }

    fn extract(&self, to: &Path) -> Result<(), Failure> {
        let to = to.to_string_lossy();
        let words: &[&str] = match self.archive.kind {
            // Owners are this user's, modes are looked at afterwards.
            Kind::Tar(..) => &["-o", "-p", "-C", &to],
            Kind::Zip => &["-o", "-qq", "-d", &to],
        };
        self.archive.run(false, words, &mut |_, _| ())?;
        if digest(self.context, self.archive.path)? != self.archive.checksum {
            return Err(conflict(self.archive.path, "was changed while it was unpacked"));
        }
        Ok(())
    }

    /// Looks at what was unpacked, and gives it its owner and a mode without special bits.
    fn settle(&self, directory: &Path, depth: usize) -> Result<(), Failure> {
        let failed = |path: &Path, error: &io::Error| Failure::io(format!("cannot look at {path:?}"), error);
        for entry in fs::read_dir(directory).map_err(|error| failed(directory, &error))? {
            self.context.job.go_on()?;
            let path = entry.map_err(|error| failed(directory, &error))?.path();
            let found = fs::symlink_metadata(&path).map_err(|error| failed(&path, &error))?;
            if found.is_symlink() {
                let target = fs::read_link(&path).map_err(|error| failed(&path, &error))?;
                if link_leaves(depth, target.as_os_str().as_bytes()) {
                    let message = format!(
                        "the archive has a symbolic link out of the directory: {:?}; nothing was unpacked",
                        path.file_name().unwrap_or_default()
                    );
                    return Err(Failure::new(ErrorCode::ValidationFailed, message));
                }
            } else if found.is_dir() {
                self.settle(&path, depth + 1)?;
            } else if !found.is_file() {
                return Err(conflict(&path, "is no file, directory or link"));
            }
            let attributes = Attributes { mode: found.mode() & 0o777, ..Attributes::of(&found) };
            self.give(&path, self.wanted.over(attributes))?;
        }
        Ok(())
    }

    /// Owner, group and mode of something in the directory that nobody else has to do with.
    fn give(&self, path: &Path, wanted: Attributes) -> Result<(), Failure> {
        let give = || {
            let found = fs::symlink_metadata(path)?;
            let present = Attributes::of(&found);
            if (present.uid, present.gid) != (wanted.uid, wanted.gid) {
                std::os::unix::fs::lchown(path, Some(wanted.uid), Some(wanted.gid))?;
            }
            if !found.is_symlink() && present.mode != wanted.mode {
                fs::set_permissions(path, Permissions::from_mode(wanted.mode))?;
            }
            Ok(())
        };
        give().map_err(|error: io::Error| {
            Failure::io(format!("cannot set owner, group and mode of {path:?}"), &error)
        })
    }

    /// Moves all that is in a directory into another, which is held open: whatever becomes of its path, it is this one.
    fn merge(&self, from: &Path, to: &File) -> Result<(), Failure> {
        for entry in fs::read_dir(from).map_err(|error| self.half(from, &error))? {
            let entry = entry.map_err(|error| self.half(from, &error))?;
            let (path, name) = (entry.path(), entry.file_name());
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let below = at::name(&name).and_then(|name| at::directory_in(to, &name));
            match below {
                Ok(below) if is_directory => self.merge(&path, &below)?,
                _ => {
                    let target = at::behind(to).join(&name);
                    fs::rename(&path, target).map_err(|error| self.half(&path, &error))?;
                }
            }
        }
        Ok(())
    }

    fn half(&self, path: &Path, error: &io::Error) -> Failure {
        let what = format!(
            "{:?} is unpacked in part, and another run will do it again: cannot move {path:?}",
            self.goal
        );
        Failure::io(what, error)
    }

    fn write_marker(&self, marker: &Path, held: Option<&Held>) -> Result<(), Failure> {
        let mut new = match held {
            Some(held) => {
                replace::clear(marker, held)?;
                Replacement::begin_held(marker, held)?
            }
            None => Replacement::begin(marker)?,
        };
        new.write(self.mark.as_bytes())?;
        new.finish(Attributes::of_new(Parents::nearest(marker).as_ref(), false, 0o644), None)?;
        new.commit()
    }
}

fn above(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// A directory for nobody but this user; gone with all that is in it when it is dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn make(directory: &Path, name: &OsStr, held: &Held) -> Result<Self, Failure> {
        let path = directory.join(path::temporary(name, held, TEMPORARY)?);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Failure::io(format!("cannot make a directory in {directory:?}"), &error))?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
