//! `file_write`: replaces a whole file atomically, or leaves it alone when it is as asked already.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::path::Path;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use sortie_protocol::command::file_write::{FileWrite, FileWriteResult};
use sortie_protocol::command::line_ensure::LineEnsureResult;
use sortie_protocol::{ErrorCode, Sha256Hex};

use super::Context;
use super::content::{self, Content, Take};
use crate::attributes::{self, Attributes, Wanted};
use crate::failure::Failure;
use crate::job;
use crate::lines::Edited;
use crate::locks::Held;
use crate::output::now;
use crate::path::{self, Parents, present_file};
use crate::replace::{self, Replacement, directory_of};
use crate::tool::Tool;

/// Largest file that is edited, in bytes.
const MOST_EDITED: u64 = 4 * 1024 * 1024;

type Params<'a> = FileWrite<Option<&'a RawValue>>;

/// Makes the new content of the present one, which is empty where there is no file.
pub(super) type Edit<'a> = &'a dyn Fn(&[u8]) -> Result<Edited, Failure>;

type Make<'a> = &'a dyn Fn(Vec<u8>) -> Result<Vec<u8>, Failure>;

pub(super) fn run(context: &Context) -> Result<FileWriteResult, Failure> {
    let raw = context.job.take_params();
    let params: Params<'_> = job::parse(&raw)?;
    check_file(&params)?;
    let content = match (params.content, params.content_from) {
        (Some(_), Some(_)) => return Err(Failure::params("content: not together with content_from")),
        (None, Some(_)) => Content::Frames,
        (content, None) => Content::inline(content, params.encoding)?,
    };
    put(context, &params, content, None)
}

/// Changes a file as `edit` says, in all else as `file_write` does. `params` has no content; with `absent` a file that is not
/// there is as it should be.
///
/// # Errors
/// Besides those of `file_write`: `UNSUPPORTED` for a file of more than 4 MiB, `CONFLICT` where a second run would change it again.
pub(super) fn edit(
    context: &Context,
    params: &Params<'_>,
    absent: bool,
    edit: Edit<'_>,
) -> Result<LineEnsureResult, Failure> {
    path::check_absolute(&params.path)?;
    check_file(params)?;
    let path = path::resolve(Path::new(&params.path), params.no_follow)?;
    if absent && present_file(&path)?.is_none() {
        return Ok(LineEnsureResult {
            action: "already_absent".to_owned(),
            diff: context.diff().then(String::new),
            ..LineEnsureResult::default()
        });
    }
    let action = Cell::new("");
    let make = |old: Vec<u8>| {
        let edited = edit(&old)?;
        action.set(edited.action);
        let Some(new) = edited.content else { return Ok(old) };
        drop(old);
        match edit(&new)?.content {
            None => Ok(new),
            Some(_) => Err(Failure::new(ErrorCode::Conflict, UNSTABLE)),
        }
    };
    let result = put(context, params, Content::Made(Vec::new()), Some(&make))?;
    Ok(LineEnsureResult {
        changed: result.changed,
        action: action.get().to_owned(),
        created: result.created,
        checksum: result.checksum,
        backup_path: result.backup_path,
        diff: result.diff,
    })
}

const UNSTABLE: &str = "every run would change the file again, so nothing was changed: make regexp match one line, and no more \
    once that is as it should be; a value or a name may need quotes";

fn put(
    context: &Context,
    params: &Params<'_>,
    mut content: Content<'_>,
    make: Option<Make<'_>>,
) -> Result<FileWriteResult, Failure> {
    let wanted = Wanted::new(context, params.owner.as_deref(), params.group.as_deref(), params.mode)?;
    let path = path::resolve(Path::new(&params.path), params.no_follow)?;
    let mut old = present_file(&path)?;
    if old.is_none() && !params.create {
        let message = format!("file does not exist and create=false: {}", params.path);
        return Err(Failure::new(ErrorCode::NotFound, message));
    }
    let mut parents = Parents::default();
    let mut held = None;
    if !context.check() {
        if old.is_none() {
            parents.make(&path)?;
        }
        let right = context.locks.acquire(
            &context.job,
            directory_of(&path).unwrap_or(Path::new("/")),
            path.file_name().unwrap_or(OsStr::new("")),
        )?;
        replace::clear(&path, &right)?;
        held = Some(right);
        // Again, now that nobody else of ours changes it.
        old = present_file(&path)?;
    }
    if let Some(make) = make {
        content = Content::Made(make(read(context, &path, old.as_ref())?)?);
    }
    let write = Write { context, params, content: &content, wanted, path: &path };
    let Some(held) = held else { return write.check(old.as_ref()) };
    let result = write.write(old.as_ref(), &held)?;
    drop(held);
    parents.keep();
    Ok(result)
}

/// The whole of a file that is to be edited.
fn read(context: &Context, path: &Path, old: Option<&Metadata>) -> Result<Vec<u8>, Failure> {
    let Some(old) = old else { return Ok(Vec::new()) };
    // It is in memory as it was and as it will be.
    let most = MOST_EDITED.min(old.len() + 64 * 1024);
    context.hold([context.pool.wait_for(2 * most as usize, &context.job)?]);
    let mut content = Vec::with_capacity(most as usize);
    File::open(path)
        .and_then(|file| file.take(most + 1).read_to_end(&mut content))
        .map_err(|error| Failure::at("cannot read the present", path, &error))?;
    if content.len() as u64 > most {
        return Err(Failure::unsupported(format!(
            "{path:?} is larger than 4 MiB or grows; nothing was changed. Only smaller files are edited"
        )));
    }
    Ok(content)
}

/// Every check that needs no look at the file system.
fn check_file(params: &Params<'_>) -> Result<(), Failure> {
    path::check(&params.path)?;
    if params.path.ends_with('/') || Path::new(&params.path).file_name().is_none() {
        return Err(Failure::params(format!("path: {:?} names a directory, not a file", params.path)));
    }
    if !params.validate.is_empty() && !params.validate.iter().any(|argument| argument.contains("%s")) {
        return Err(Failure::params("validate: no argument contains %s, which stands for the new file"));
    }
    Ok(())
}

struct Write<'a> {
    context: &'a Context,
    params: &'a Params<'a>,
    content: &'a Content<'a>,
    wanted: Wanted,
    path: &'a Path,
}

/// What there is now, and what there will be.
struct Plan {
    old: Option<File>,
    old_checksum: Option<Sha256Hex>,
    present: Option<Attributes>,
    attributes: Attributes,
}

impl Plan {
    fn attributes_differ(&self) -> bool {
        self.present.is_some_and(|present| present != self.attributes)
    }
}

impl Write<'_> {
    /// Says what would change, and changes nothing.
    fn check(&self, old: Option<&Metadata>) -> Result<FileWriteResult, Failure> {
        let plan = self.plan(old)?;
        let mut kept = Kept::new(self.wants_diff());
        let (checksum, _) = self.digest(&mut |bytes| {
            kept.push(bytes);
            Ok(())
        })?;
        let content_differs = plan.old_checksum.as_ref() != Some(&checksum);
        Ok(FileWriteResult {
            created: old.is_none(),
            changed: content_differs || plan.attributes_differ(),
            diff: self.diff(&plan, content_differs.then_some(kept))?,
            checksum: checksum.to_string(),
            ..FileWriteResult::default()
        })
    }

    fn write(&self, old: Option<&Metadata>, held: &Held) -> Result<FileWriteResult, Failure> {
        let plan = self.plan(old)?;
        let mut kept = Kept::new(self.wants_diff());
        // Inline content is compared before anything is written; what comes by INPUT has to be written to be known.
        if self.content.is_inline() {
            let (checksum, _) = self.digest(&mut |_| Ok(()))?;
            if plan.old_checksum.as_ref() == Some(&checksum) {
                return self.only_attributes(&plan, &checksum);
            }
        }
        let mut replacement = Replacement::begin_held(self.path, held)?;
        let (checksum, length) = self.digest(&mut |bytes| {
            kept.push(bytes);
            replacement.write(bytes)
        })?;
        if plan.old_checksum.as_ref() == Some(&checksum) {
            drop(replacement);
            return self.only_attributes(&plan, &checksum);
        }
        replacement.finish(plan.attributes, plan.old.as_ref())?;
        self.validate(replacement.path())?;
        let diff = self.diff(&plan, Some(kept))?;
        let backup_path = match &plan.old {
            Some(old) if self.params.backup => Some(self.back_up(old, held)?),
            _ => None,
        };
        let result = self.context.job.commit().and_then(|()| replacement.commit());
        if let (Err(_), Some(backup)) = (&result, &backup_path) {
            let _ = fs::remove_file(backup);
        }
        result?;
        Ok(FileWriteResult {
            bytes_written: length,
            created: old.is_none(),
            backup_path,
            checksum: checksum.to_string(),
            changed: true,
            diff,
        })
    }

    fn plan(&self, old: Option<&Metadata>) -> Result<Plan, Failure> {
        let present = old.map(Attributes::of);
        let new = || Attributes::of_new(Parents::nearest(self.path).as_ref(), false, 0o644);
        let attributes = self.wanted.over(present.unwrap_or_else(new));
        let open = |_: &Metadata| {
            File::open(self.path).map_err(|error| Failure::at("cannot read the present", self.path, &error))
        };
        let old_file = old.map(open).transpose()?;
        let old_checksum =
            old_file.as_ref().map(|file| content::digest(self.context, file, self.path)).transpose()?;
        if let Some(expected) = &self.params.if_sha256
            && old_checksum.as_ref() != Some(expected)
        {
            let found = old_checksum.map_or_else(|| "there is no file".to_owned(), |c| format!("it is {c}"));
            let message = format!("{:?} has not the content that if_sha256 expects: {found}", self.path);
            return Err(Failure::new(ErrorCode::Conflict, message));
        }
        Ok(Plan { old: old_file, old_checksum, present, attributes })
    }

    /// Content stays: owner, group and mode alone are set, in place.
    fn only_attributes(&self, plan: &Plan, checksum: &Sha256Hex) -> Result<FileWriteResult, Failure> {
        if plan.attributes_differ()
            && let Some(old) = &plan.old
        {
            self.context.job.commit()?;
            plan.attributes
                .apply(old)
                .and_then(|()| old.sync_all())
                .map_err(|error| Failure::at("cannot set owner, group and mode of", self.path, &error))?;
        }
        Ok(FileWriteResult {
            checksum: checksum.to_string(),
            changed: plan.attributes_differ(),
            diff: self.diff(plan, None)?,
            ..FileWriteResult::default()
        })
    }

    /// Hands all content to `take`; its digest and length.
    fn digest(&self, take: Take<'_>) -> Result<(Sha256Hex, u64), Failure> {
        let mut hash = Sha256::new();
        let mut length = 0;
        self.content.for_each(self.context, &mut |bytes| {
            hash.update(bytes);
            length += bytes.len() as u64;
            take(bytes)
        })?;
        Ok((Sha256Hex::from_bytes(&hash.finalize().into()), length))
    }

    fn validate(&self, new: &Path) -> Result<(), Failure> {
        let Some(program) = self.params.validate.first() else { return Ok(()) };
        let new = new.to_string_lossy();
        let arguments = self.params.validate[1..].iter().map(|argument| argument.replace("%s", &new));
        let ran = Tool::new(program.replace("%s", &new)).args(arguments).run(self.context)?;
        if ran.ok() {
            return Ok(());
        }
        let output = if self.params.sensitive { String::new() } else { ran.last_lines(20) };
        let message = format!(
            "{program} refused the new {:?} with exit status {}; the old one stays: {}",
            self.path, ran.exit_code, output
        );
        Err(Failure::new(ErrorCode::ValidationFailed, message).detail("exit_code", ran.exit_code.to_string()))
    }

    fn back_up(&self, mut old: &File, held: &Held) -> Result<String, Failure> {
        use std::io::Seek;
        old.rewind().map_err(|error| Failure::at("cannot read the present", self.path, &error))?;
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.bak", now()));
        let backup = self.path.with_file_name(name);
        replace::back_up(old, self.path, held, &backup)?;
        Ok(backup.to_string_lossy().into_owned())
    }

    fn wants_diff(&self) -> bool {
        self.context.job.command.diff && !self.params.sensitive
    }

    /// What differs, where a diff is wanted: content, unless it is the same, and attributes.
    fn diff(&self, plan: &Plan, new: Option<Kept>) -> Result<Option<String>, Failure> {
        if !self.context.job.command.diff {
            return Ok(None);
        }
        if self.params.sensitive && (new.is_some() || plan.attributes_differ()) {
            return Ok(Some(content::WITHHELD.to_owned()));
        }
        let mut diff = match new {
            Some(new) => self.content_diff(plan.old.as_ref(), new)?,
            None => String::new(),
        };
        let before = plan.present.map_or_else(String::new, |present| present.describe("file", None));
        diff += &attributes::difference(self.path, &before, &plan.attributes.describe("file", None));
        Ok(Some(diff))
    }

    fn content_diff(&self, old: Option<&File>, new: Kept) -> Result<String, Failure> {
        let Some(new) = new.bytes else {
            return Ok("(the new content is too large for a diff)\n".to_owned());
        };
        content::difference(self.path, old, Some(new))
    }
}

/// New content kept for a diff, up to the largest that is diffed.
struct Kept {
    bytes: Option<Vec<u8>>,
    wanted: bool,
}

impl Kept {
    fn new(wanted: bool) -> Self {
        Self { bytes: Some(Vec::new()), wanted }
    }

    fn push(&mut self, bytes: &[u8]) {
        if let (true, Some(kept)) = (self.wanted, &mut self.bytes) {
            if (kept.len() + bytes.len()) as u64 > content::MOST_DIFFED {
                self.bytes = None;
            } else {
                kept.extend_from_slice(bytes);
            }
        }
    }
}
