//! `dir_ensure`: makes a directory, or gives one that is there its owner, group and mode, and if asked all that is in it.

use std::ffi::CStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sortie_protocol::command::dir_ensure::{DirEnsure, DirEnsureResult};
use sortie_protocol::{ErrorCode, Mode};

use super::{Context, content};
use crate::attributes::{self, Attributes, Wanted, kind};
use crate::diff;
use crate::failure::Failure;
use crate::job;
use crate::path::{self, Parents, Place};
use crate::replace::TEMPORARY;
use crate::sys::{at, file};
use crate::walk::{Visitor, walk};

/// Bytes of differences that are told.
const MOST_DIFFERENCES: usize = 256 * 1024;

pub(super) fn run(context: &Context) -> Result<DirEnsureResult, Failure> {
    let params: DirEnsure = job::parse(&context.job.take_params())?;
    path::check_absolute(&params.path)?;
    if params.file_mode.is_some() && !params.recursive {
        return Err(Failure::params("file_mode: only with recursive"));
    }
    let wanted = Wanted::new(context, params.owner.as_deref(), params.group.as_deref(), params.mode)?;
    let path = path::resolve(Path::new(&params.path), params.no_follow)?;
    let ensure = Ensure { context, params: &params, wanted, path: &path };
    let mut parents = Parents::default();
    let mut held = None;
    if look(&path)?.is_none() {
        if context.check() {
            return ensure.check_new();
        }
        parents.make(&path)?;
    }
    let place = Place::find(&path)?;
    if let (Some(place), false) = (&place, context.check()) {
        held = Some(place.lock(context)?);
    }
    let result = match (&place, &held) {
        (Some(place), Some(held)) => {
            let temporary = place.temporary(held, TEMPORARY)?;
            // Left by a run that was killed.
            let _ = at::rmdir(&place.directory, &temporary);
            match look(&path)? {
                None => ensure.make(place, &temporary)?,
                Some(there) => ensure.settle(&there)?,
            }
        }
        _ => match look(&path)? {
            None => ensure.check_new()?,
            Some(there) => ensure.settle(&there)?,
        },
    };
    parents.keep();
    Ok(result)
}

/// The directory that is there; none if there is nothing.
fn look(path: &Path) -> Result<Option<File>, Failure> {
    let failed = |error: io::Error| Failure::io(format!("cannot look at {path:?}"), &error);
    let there = match at::place(path, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(Failure::new(
                ErrorCode::Conflict,
                format!("something above {path:?} is no directory"),
            ));
        }
        there => there.map_err(failed)?,
    };
    let found = there.metadata().map_err(failed)?;
    if found.is_dir() {
        return Ok(Some(there));
    }
    Err(Failure::new(
        ErrorCode::Conflict,
        format!("{path:?} is there and is no directory (kind: {})", kind(&found)),
    ))
}

struct Ensure<'a> {
    context: &'a Context,
    params: &'a DirEnsure,
    wanted: Wanted,
    path: &'a Path,
}

impl Ensure<'_> {
    /// What a new one gets by itself.
    fn base(&self) -> Attributes {
        Attributes::of_new(Parents::nearest(self.path).as_ref(), true, 0o755)
    }

    /// What a new one is to be, and what is told of it.
    fn made(&self) -> (Attributes, DirEnsureResult) {
        let attributes = self.wanted.over(self.base());
        let diff = match self.params.sensitive {
            true => content::WITHHELD.to_owned(),
            false => attributes::difference(self.path, "", &attributes.describe("directory", None)),
        };
        let diff = self.context.diff().then_some(diff);
        (attributes, DirEnsureResult { changed: true, created: true, diff, ..DirEnsureResult::default() })
    }

    fn check_new(&self) -> Result<DirEnsureResult, Failure> {
        let failed =
            |error: io::Error| Failure::io(format!("cannot make the directory {:?}", self.path), &error);
        let above = self.path.ancestors().skip(1).find(|above| fs::symlink_metadata(above).is_ok());
        let above = at::place(above.unwrap_or(Path::new("/")), true).map_err(failed)?;
        at::writable(&above).map_err(failed)?;
        let (attributes, result) = self.made();
        attributes::may_change(self.path, self.base(), attributes)?;
        Ok(result)
    }

    /// Makes it under another name, so that it is there with all that it is to have.
    fn make(&self, place: &Place, temporary: &CStr) -> Result<DirEnsureResult, Failure> {
        let Place { directory, name, path } = place;
        let failed = |error: io::Error| Failure::io(format!("cannot make the directory {path:?}"), &error);
        let (attributes, result) = self.made();
        at::mkdir(directory, temporary).map_err(failed)?;
        let made = (|| {
            let made = at::directory_in(directory, temporary).map_err(failed)?;
            attributes.apply(&made).map_err(failed)?;
            self.context.job.commit()?;
            at::rename(directory, temporary, name).map_err(failed)
        })();
        made.inspect_err(|_| {
            let _ = at::rmdir(directory, temporary);
        })?;
        at::sync(directory).map_err(failed)?;
        Ok(result)
    }

    /// Gives what is there what it is to have: first it is gone through to see what would change, then it is done.
    fn settle(&self, there: &File) -> Result<DirEnsureResult, Failure> {
        let failed = |error: io::Error| Failure::io(format!("cannot look at {:?}", self.path), &error);
        let root = fs::metadata("/").map_err(failed)?;
        let found = there.metadata().map_err(failed)?;
        if self.params.recursive && (root.dev(), root.ino()) == (found.dev(), found.ino()) {
            let message =
                format!("{:?} is the root directory, which is not changed with all that is in it", self.path);
            return Err(Failure::new(ErrorCode::Conflict, message));
        }
        let mut result = DirEnsureResult::default();
        for doing in [false, true] {
            let mut settling = Settling {
                context: self.context,
                wanted: self.wanted,
                file_mode: self.params.file_mode.map(Mode::bits),
                hard_links: file::hard_links_are_protected(),
                tells: self.context.diff() && !self.params.sensitive,
                doing,
                changed: 0,
                differences: String::new(),
            };
            if self.params.recursive {
                let top = at::directory_in(there, c".").map_err(failed)?;
                walk(top, &mut PathBuf::from(self.path), &mut settling)?;
            }
            let below = settling.changed;
            settling.object(there, self.path)?;
            let changed = settling.changed > 0;
            result.changed = changed;
            result.changed_below = below;
            let withheld = self.params.sensitive && changed;
            let differences = if withheld { content::WITHHELD.to_owned() } else { settling.differences };
            result.diff = self.context.diff().then(|| diff::bounded(differences));
            if !changed || self.context.check() {
                break;
            }
            if !doing {
                self.context.job.commit()?;
            }
        }
        Ok(result)
    }
}

/// Sees to one thing after the other, or only says what would be done.
struct Settling<'a> {
    context: &'a Context,
    wanted: Wanted,
    file_mode: Option<u32>,
    hard_links: bool,
    tells: bool,
    doing: bool,
    changed: u64,
    differences: String,
}

impl Settling<'_> {
    fn object(&mut self, place: &File, path: &Path) -> Result<(), Failure> {
        let failed =
            |error: io::Error| Failure::io(format!("cannot set owner, group and mode of {path:?}"), &error);
        let found = place.metadata().map_err(failed)?;
        let (present, next) = (Attributes::of(&found), self.next(&found));
        if present == next {
            return Ok(());
        }
        if !self.hard_links && found.is_file() && found.nlink() > 1 {
            // Whoever may write here could have put it here: proc_sys_fs(5), protected_hardlinks.
            let message =
                format!("{path:?} has other names, maybe elsewhere, and fs.protected_hardlinks is off");
            return Err(Failure::new(ErrorCode::Conflict, message));
        }
        attributes::may_change(path, present, next)?;
        if self.doing {
            let changed = |new: u32, old: u32| (new != old).then_some(new);
            let (uid, gid) = (changed(next.uid, present.uid), changed(next.gid, present.gid));
            if uid.is_some() || gid.is_some() {
                at::set_owner(place, uid, gid).map_err(failed)?;
            }
            let now = place.metadata().map_err(failed)?;
            if !now.is_symlink() && Attributes::of(&now).mode != next.mode {
                at::set_mode(place, next.mode).map_err(failed)?;
            }
        } else if let Err(error) = at::on_writable_file_system(place) {
            return Err(failed(error));
        }
        self.changed += 1;
        if self.tells && self.differences.len() < MOST_DIFFERENCES {
            let target =
                if found.is_symlink() { Some(file::link_behind(place).map_err(failed)?) } else { None };
            let target = target.as_ref().map(|target| target.to_string_lossy());
            let describe = |attributes: Attributes| attributes.describe(kind(&found), target.as_deref());
            self.differences += &attributes::difference(path, &describe(present), &describe(next));
        }
        Ok(())
    }

    fn next(&self, found: &Metadata) -> Attributes {
        let present = Attributes::of(found);
        let mut next = self.wanted.over(present);
        if !found.is_dir() {
            next.mode = present.mode;
            if (next.uid, next.gid) != (present.uid, present.gid) {
                // chown(2) takes these bits, and they are not given back: who put them there may be somebody else.
                next.mode &= !libc::S_ISUID;
                if next.mode & libc::S_IXGRP != 0 {
                    next.mode &= !libc::S_ISGID;
                }
            }
        }
        match self.file_mode {
            Some(mode) if found.is_file() => next.mode = mode,
            _ if found.is_symlink() => next.mode = present.mode,
            _ => {}
        }
        next
    }
}

impl Visitor for Settling<'_> {
    fn enter(&mut self, _: &File, _: &Path) -> Result<(), Failure> {
        // Once something is done, all of it is.
        if self.doing { Ok(()) } else { self.context.job.go_on() }
    }

    fn leaf(&mut self, parent: &File, name: &CStr, path: &Path) -> Result<(), Failure> {
        match at::place_in(parent, name) {
            Ok(place) => self.object(&place, path),
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Failure::io(format!("cannot look at {path:?}"), &error)),
        }
    }

    fn leave(&mut self, _: &File, _: &CStr, directory: &File, path: &Path) -> Result<bool, Failure> {
        self.object(directory, path)?;
        Ok(true)
    }

    fn mount_point(&mut self, path: &Path) -> Result<(), Failure> {
        if !self.doing {
            self.context.progress(format!("{path:?} is a mount point, and is left as it is"), None);
        }
        Ok(())
    }
}
