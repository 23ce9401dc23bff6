//! `file_remove`: removes a file, or a directory with all that is in it. A directory is gone from its place at once, by one
//! rename; what was in it goes afterwards.

use std::ffi::CStr;
use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

use sortie_protocol::ErrorCode;
use sortie_protocol::command::file_remove::{FileRemove, FileRemoveResult};

use super::{Context, content};
use crate::attributes::{self, Attributes, kind, one_line};
use crate::diff;
use crate::failure::Failure;
use crate::job;
use crate::path::{self, Place};
use crate::sys::{at, file, host};
use crate::walk::{Visitor, walk};

/// How a directory is named from when it is gone from its place until it is gone.
const GONE: &str = ".sortie-gone-";

/// Bytes of names that a diff tells.
const MOST_NAMES: usize = 256 * 1024;

pub(super) fn run(context: &Context) -> Result<FileRemoveResult, Failure> {
    let params: FileRemove = job::parse(&context.job.take_params())?;
    path::check_absolute(&params.path)?;
    let path = Path::new(&params.path);
    if path.file_name().is_none() {
        return Err(Failure::params(format!(
            "path: {path:?} cannot be removed: it has no name in a directory"
        )));
    }
    let Some(place) = Place::find(path)? else { return Ok(result(&params, context, None)) };
    let remove = Remove { context, params: &params, place: &place };
    let found = remove.look()?;
    if context.check() {
        return Ok(result(&params, context, found));
    }
    let held = place.lock(context)?;
    let gone = place.temporary(&held, GONE)?;
    clear(&place, &gone);
    // Again, now that nobody else of ours changes it.
    let found = remove.look()?;
    if let Some(found) = &found {
        remove.remove(found, &gone)?;
    }
    Ok(result(&params, context, found))
}

fn result(params: &FileRemove, context: &Context, found: Option<Found>) -> FileRemoveResult {
    let Some(found) = found else {
        return FileRemoveResult { diff: context.diff().then(String::new), ..FileRemoveResult::default() };
    };
    let diff = if params.sensitive { content::WITHHELD.to_owned() } else { found.diff };
    FileRemoveResult {
        changed: true,
        kind: kind(&found.metadata).to_owned(),
        removed: found.count,
        diff: context.diff().then_some(diff),
    }
}

/// What is there to be removed.
struct Found {
    metadata: Metadata,
    count: u64,
    diff: String,
}

struct Remove<'a> {
    context: &'a Context,
    params: &'a FileRemove,
    place: &'a Place,
}

impl Remove<'_> {
    /// What is there, and whether it may be removed: all of it is looked at before anything is.
    fn look(&self) -> Result<Option<Found>, Failure> {
        let Place { directory, name, path } = self.place;
        let failed = |error: io::Error| Failure::at("cannot look at", path, &error);
        let object = match at::place_in(directory, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            object => object.map_err(failed)?,
        };
        let metadata = object.metadata().map_err(failed)?;
        let conflict = |what: &str| {
            Err(Failure::new(ErrorCode::Conflict, format!("{path:?} {what}; nothing was removed")))
        };
        if !metadata.is_dir() && path::means_directory(&self.params.path) {
            return conflict("is no directory, as the / at its end says");
        }
        if metadata.is_dir() && !self.params.recursive {
            return conflict("is a directory, which only recursive removes, with all that is in it");
        }
        if let Some(mounted) = file::mounted_within(&object) {
            return conflict(&format!("is or holds the mount point {mounted:?}"));
        }
        at::writable(directory).map_err(|error| {
            Failure::io(format!("cannot remove {path:?}: names in its directory cannot be changed"), &error)
        })?;
        let wants_diff = self.context.diff() && !self.params.sensitive;
        let mut looking = Looking { context: self.context, top: path, count: 1, names: Vec::new(), room: 0 };
        let mut diff = String::new();
        if metadata.is_dir() {
            looking.room = if wants_diff { MOST_NAMES } else { 0 };
            let top = at::directory_in(directory, name).map_err(failed)?;
            walk(top, &mut path.clone(), &mut looking)?;
        }
        if wants_diff {
            if metadata.is_file() {
                let old = File::open(at::behind(&object)).map_err(failed)?;
                diff = content::difference(path, Some(&old), None)?;
            } else if metadata.is_dir() {
                looking.names.sort_unstable();
                let named = format!("{} (names)", one_line(&path.to_string_lossy()));
                diff = diff::bounded(diff::unified(&named, "/dev/null", &looking.names.concat(), ""));
            }
            let target =
                metadata.is_symlink().then(|| file::link_behind(&object).map_err(failed)).transpose()?;
            let target = target.as_ref().map(|target| target.to_string_lossy());
            let before = Attributes::of(&metadata).describe(kind(&metadata), target.as_deref());
            diff += &attributes::difference(path, &before, "");
        }
        Ok(Some(Found { metadata, count: looking.count, diff }))
    }

    fn remove(&self, found: &Found, gone: &CStr) -> Result<(), Failure> {
        let Place { directory, name, path } = self.place;
        let failed = |error: io::Error| Failure::at("cannot remove", path, &error);
        self.context.job.commit()?;
        if !found.metadata.is_dir() {
            at::unlink(directory, name).map_err(failed)?;
            return at::sync(directory).map_err(failed);
        }
        let now = match at::rename(directory, name, gone) {
            Ok(()) => gone,
            // Overlays cannot rename what is in their lower layer: there it goes from its place last.
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => name,
            Err(error) => return Err(failed(error)),
        };
        let top = at::directory_in(directory, now).map_err(failed);
        let emptied = top.and_then(|top| walk(top, &mut path.clone(), &mut Removing));
        let removed = emptied.and_then(|()| at::rmdir(directory, now).map_err(failed));
        removed.map_err(|mut failure| {
            // What is left goes back to where it was, for whoever has to see to it.
            let back = now == name.as_c_str()
                || at::look(directory, name).is_ok_and(|there| there.is_none())
                    && at::rename(directory, now, name).is_ok();
            let place =
                if back { "in its place" } else { "beside it, under a name that begins with .sortie-gone-" };
            failure.message += &format!("; a part of {path:?} is removed, and what is left is {place}");
            failure
        })?;
        at::sync(directory).map_err(failed)
    }
}

/// Removes what a run that was killed left of a directory. What cannot be removed is left once more.
fn clear(place: &Place, gone: &CStr) {
    if let Ok(left) = at::directory_in(&place.directory, gone)
        && walk(left, &mut place.path.clone(), &mut Removing).is_ok()
    {
        let _ = at::rmdir(&place.directory, gone);
    }
}

/// Looks, and says no before anything is removed.
struct Looking<'a> {
    context: &'a Context,
    top: &'a Path,
    count: u64,
    names: Vec<String>,
    /// Bytes of names that still have room.
    room: usize,
}

impl Looking<'_> {
    fn count(&mut self, parent: &File, path: &Path, end: &str) -> Result<(), Failure> {
        self.count += 1;
        // To root only the file system can say no, and the whole tree is on one.
        if host::uid() != 0 {
            at::writable(parent).map_err(|error| Failure::at("cannot remove", path, &error))?;
        }
        if self.room > 0 {
            let name = path.strip_prefix(self.top).unwrap_or(path).to_string_lossy();
            let line = one_line(&name) + end;
            self.room = self.room.saturating_sub(line.len());
            self.names.push(line);
        }
        Ok(())
    }
}

impl Visitor for Looking<'_> {
    fn enter(&mut self, _: &File, _: &Path) -> Result<(), Failure> {
        self.context.job.go_on()
    }

    fn leaf(&mut self, parent: &File, _: &CStr, path: &Path) -> Result<(), Failure> {
        self.count(parent, path, "\n")
    }

    fn leave(&mut self, parent: &File, _: &CStr, _: &File, path: &Path) -> Result<bool, Failure> {
        self.count(parent, path, "/\n")?;
        Ok(true)
    }

    fn mount_point(&mut self, path: &Path) -> Result<(), Failure> {
        Removing.mount_point(path)
    }
}

struct Removing;

impl Visitor for Removing {
    fn enter(&mut self, _: &File, _: &Path) -> Result<(), Failure> {
        Ok(())
    }

    fn leaf(&mut self, parent: &File, name: &CStr, path: &Path) -> Result<(), Failure> {
        gone(at::unlink(parent, name)).map_err(|error| Failure::at("cannot remove", path, &error))
    }

    fn leave(&mut self, parent: &File, name: &CStr, _: &File, path: &Path) -> Result<bool, Failure> {
        match gone(at::rmdir(parent, name)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) => Ok(false),
            removed => removed.map(|()| true).map_err(|error| Failure::at("cannot remove", path, &error)),
        }
    }

    fn mount_point(&mut self, path: &Path) -> Result<(), Failure> {
        Err(Failure::new(ErrorCode::Conflict, format!("{path:?} is a mount point; nothing in it is removed")))
    }
}

/// That it is gone already is as good.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
