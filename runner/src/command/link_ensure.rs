//! `link_ensure`: makes a symbolic link beside its place, and renames it there.

use std::ffi::{CStr, CString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sortie_protocol::ErrorCode;
use sortie_protocol::command::link_ensure::{LinkEnsure, LinkEnsureResult};

use super::{Context, content};
use crate::attributes::{self, Attributes, Wanted, kind};
use crate::failure::Failure;
use crate::job;
use crate::path::{self, Place};
use crate::replace::TEMPORARY;
use crate::sys::{at, file};

pub(super) fn run(context: &Context) -> Result<LinkEnsureResult, Failure> {
    let params: LinkEnsure = job::parse(&context.job.take_params())?;
    path::check_absolute(&params.path)?;
    let path = Path::new(&params.path);
    if path::means_directory(&params.path) || path.file_name().is_none() {
        return Err(Failure::params(format!("path: {path:?} names a directory, not a link")));
    }
    if params.target.is_empty() || params.target.len() > path::LONGEST {
        return Err(Failure::params("target: is required, and at most 4095 bytes"));
    }
    let target =
        CString::new(params.target.as_str()).map_err(|_| Failure::params("target: contains a NUL byte"))?;
    let wanted = Wanted::new(context, params.owner.as_deref(), params.group.as_deref(), None)?;
    let Some(place) = Place::find(path)? else {
        let message = format!("the directory of {path:?} is not there; nothing was changed");
        return Err(Failure::new(ErrorCode::NotFound, message));
    };
    let ensure = Ensure { context, params: &params, target: &target, wanted, place: &place };
    if context.check() {
        return Ok(ensure.plan()?.result(&ensure));
    }
    let held = place.lock(context)?;
    let temporary = place.temporary(&held, TEMPORARY)?;
    // Left by a run that was killed.
    if at::unlink(&place.directory, &temporary).is_err() {
        let _ = at::rmdir(&place.directory, &temporary);
    }
    let plan = ensure.plan()?;
    ensure.carry_out(&plan, &temporary)?;
    Ok(plan.result(&ensure))
}

struct Ensure<'a> {
    context: &'a Context,
    params: &'a LinkEnsure,
    target: &'a CStr,
    wanted: Wanted,
    place: &'a Place,
}

/// What there is now, and what there will be.
struct Plan {
    old: Option<(File, Metadata)>,
    attributes: Attributes,
    /// The link that is there says what it should.
    same: bool,
    changed: bool,
    dangling: bool,
    diff: String,
}

impl Plan {
    fn result(self, ensure: &Ensure<'_>) -> LinkEnsureResult {
        let withheld = ensure.params.sensitive && self.changed;
        let diff = if withheld { content::WITHHELD.to_owned() } else { self.diff };
        LinkEnsureResult {
            changed: self.changed,
            created: self.old.is_none(),
            dangling: self.dangling,
            diff: ensure.context.diff().then_some(diff),
        }
    }
}

impl Ensure<'_> {
    fn plan(&self) -> Result<Plan, Failure> {
        let Place { directory, name, path } = self.place;
        let failed = |error: io::Error| Failure::io(format!("cannot look at {path:?}"), &error);
        let old = match at::place_in(directory, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            old => {
                let old = old.map_err(failed)?;
                let metadata = old.metadata().map_err(failed)?;
                Some((old, metadata))
            }
        };
        let above = directory.metadata().map_err(failed)?;
        let mut base = Attributes::of_new(Some(&above), false, 0o777);
        let mut said = None;
        let mut diff = String::new();
        let mut before = String::new();
        if let Some((object, metadata)) = &old {
            let present = Attributes::of(metadata);
            if metadata.is_symlink() {
                base = present;
                said = Some(file::link_behind(object).map_err(failed)?);
            } else {
                self.may_replace(object, metadata)?;
                if metadata.is_file() && self.context.diff() && !self.params.sensitive {
                    let content = File::open(at::behind(object)).map_err(failed)?;
                    diff = content::difference(path, Some(&content), None)?;
                }
            }
            let target = said.as_ref().map(|said| said.to_string_lossy());
            before = present.describe(kind(metadata), target.as_deref());
        }
        let attributes = self.wanted.over(base);
        diff +=
            &attributes::difference(path, &before, &attributes.describe("link", Some(&self.params.target)));
        let same = said.is_some_and(|said| said.as_bytes() == self.target.to_bytes());
        let changed = !same || base != attributes;
        if changed {
            attributes::may_change(path, base, attributes)?;
            at::writable(directory).map_err(|error| {
                Failure::io(
                    format!("cannot make the link {path:?}: names in its directory cannot be changed"),
                    &error,
                )
            })?;
        }
        let dangling = fs::metadata(at::behind(directory).join(&self.params.target)).is_err();
        Ok(Plan { old, attributes, same, changed, dangling, diff })
    }

    /// Whether what is there, and is no link, may make room for one.
    fn may_replace(&self, object: &File, found: &Metadata) -> Result<(), Failure> {
        let Place { directory, name, path } = self.place;
        let what = kind(found);
        let conflict = |why: &str| {
            let message =
                format!("{path:?} is there and is no link (kind: {what}){why}; nothing was changed");
            Err(Failure::new(ErrorCode::Conflict, message))
        };
        if !self.params.force {
            return conflict(", which only force replaces");
        }
        if file::mounted_within(object).is_some() {
            return conflict(", and a mount point");
        }
        if found.is_dir() {
            let empty =
                at::directory_in(directory, name).and_then(|top| Ok(at::entries(&top)?.next().is_none()));
            let failed = |error: io::Error| Failure::io(format!("cannot look at {path:?}"), &error);
            if !empty.map_err(failed)? {
                return conflict(" that is not empty; file_remove removes it with all that is in it");
            }
        }
        Ok(())
    }

    fn carry_out(&self, plan: &Plan, temporary: &CStr) -> Result<(), Failure> {
        let Place { directory, name, path } = self.place;
        let failed = |error: io::Error| Failure::io(format!("cannot make the link {path:?}"), &error);
        if !plan.changed {
            return Ok(());
        }
        let Attributes { uid, gid, .. } = plan.attributes;
        if let (true, Some((link, _))) = (plan.same, &plan.old) {
            self.context.job.commit()?;
            return at::set_owner(link, Some(uid), Some(gid)).map_err(failed);
        }
        at::symlink(self.target, directory, temporary).map_err(failed)?;
        let done = (|| {
            let link = at::place_in(directory, temporary).map_err(failed)?;
            let made = Attributes::of(&link.metadata().map_err(failed)?);
            if (made.uid, made.gid) != (uid, gid) {
                at::set_owner(&link, Some(uid), Some(gid)).map_err(failed)?;
            }
            self.context.job.commit()?;
            match &plan.old {
                Some((_, old)) if old.is_dir() => self.exchange(temporary),
                _ => at::rename(directory, temporary, name).map_err(failed),
            }
        })();
        done.inspect_err(|_| {
            let _ = at::unlink(directory, temporary);
        })?;
        at::sync(directory).map_err(failed)
    }

    /// A link cannot be renamed over a directory, but the two can change places at once.
    fn exchange(&self, temporary: &CStr) -> Result<(), Failure> {
        let Place { directory, name, path } = self.place;
        at::exchange(directory, temporary, name).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS) => Failure::unsupported(format!(
                "this file system cannot replace the directory {path:?} at once; nothing was changed. Remove it by file_remove first"
            )),
            _ => Failure::io(format!("cannot make the link {path:?}"), &error),
        })?;
        at::rmdir(directory, temporary).map_err(|error| {
            // Something came into it meanwhile: it goes back.
            let _ = at::exchange(directory, temporary, name);
            Failure::new(
                ErrorCode::Conflict,
                format!("{path:?} is no longer empty: {}", crate::failure::reason(&error)),
            )
        })
    }
}
