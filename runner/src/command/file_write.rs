//! `file_write`: replaces a whole file atomically, or leaves it alone when it is as asked already.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use sortie_protocol::command::file_write::{FileWrite, FileWriteResult};
use sortie_protocol::{ErrorCode, Sha256Hex};

use super::Context;
use super::content::{Content, Take};
use crate::failure::Failure;
use crate::job;
use crate::output::now;
use crate::replace::{self, Attributes, Replacement, directory_of};
use crate::sys::host;
use crate::tool::{self, Tool};

/// Largest content that a diff is made of, in bytes.
const MOST_DIFFED: u64 = 1024 * 1024;

/// Symbolic links followed before it must be a loop (path_resolution(7)).
const MOST_LINKS: usize = 40;

type Params<'a> = FileWrite<Option<&'a RawValue>>;

pub(super) fn run(context: &Context) -> Result<FileWriteResult, Failure> {
    let raw = context.job.take_params();
    let params: Params<'_> = job::parse(&raw)?;
    let content = check(&params)?;
    let wanted_ids = (owner(context, params.owner.as_deref())?, group(context, params.group.as_deref())?);
    let path = resolve(Path::new(&params.path), params.no_follow)?;
    let old = look_at(&path)?;
    if old.is_none() && !params.create {
        let message = format!("file does not exist and create=false: {}", params.path);
        return Err(Failure::new(ErrorCode::NotFound, message));
    }
    let write = Write { context, params: &params, content: &content, wanted_ids, path: &path };
    if context.job.command.check {
        return write.check(old.as_ref());
    }
    let mut parents = Parents::default();
    if old.is_none() {
        parents.make(&path)?;
    }
    let (directory, name) = (directory_of(&path), path.file_name());
    let held = context.locks.acquire(
        &context.job,
        directory.unwrap_or(Path::new("/")),
        name.unwrap_or(OsStr::new("")),
    )?;
    // Again, now that nobody else of ours changes it.
    let result = write.write(look_at(&path)?.as_ref())?;
    drop(held);
    parents.keep();
    Ok(result)
}

/// Every check that needs no look at the file system.
fn check<'a>(params: &Params<'a>) -> Result<Content<'a>, Failure> {
    if params.path.is_empty() {
        return Err(Failure::params("path is required"));
    }
    if params.path.contains('\0') {
        return Err(Failure::params("path: contains a NUL byte"));
    }
    if params.path.ends_with('/') || Path::new(&params.path).file_name().is_none() {
        return Err(Failure::params(format!("path: {:?} names a directory, not a file", params.path)));
    }
    if !params.validate.is_empty() && !params.validate.iter().any(|argument| argument.contains("%s")) {
        return Err(Failure::params("validate: no argument contains %s, which stands for the new file"));
    }
    match (params.content, params.content_from) {
        (Some(_), Some(_)) => Err(Failure::params("content: not together with content_from")),
        (None, Some(_)) => Ok(Content::Frames),
        (content, None) => Content::inline(content, params.encoding),
    }
}

/// A user id by number or by name.
fn owner(context: &Context, owner: Option<&str>) -> Result<Option<u32>, Failure> {
    owner.map(|name| id(context, ["owner", "user", "passwd"], name, host::user_id)).transpose()
}

fn group(context: &Context, group: Option<&str>) -> Result<Option<u32>, Failure> {
    group.map(|name| id(context, ["group", "group", "group"], name, host::group_id)).transpose()
}

fn id(
    context: &Context,
    [field, what, database]: [&str; 3],
    name: &str,
    lookup: impl Fn(&str) -> Option<u32>,
) -> Result<u32, Failure> {
    // A name may consist of digits; chown(1) too looks for a name first. The highest id means "unchanged" to chown(2).
    let known = match lookup(name) {
        None if name.bytes().all(|b| b.is_ascii_digit()) => name.parse().ok(),
        None => by_name_service(context, database, name)?,
        known => known,
    };
    known.filter(|id| *id != u32::MAX).ok_or_else(|| {
        Failure::new(ErrorCode::NotFound, format!("{field}: there is no {what} {name:?} on this host"))
    })
}

/// Names that are in no file of the host, such as those of a directory service: a static program knows no NSS.
fn by_name_service(context: &Context, database: &str, name: &str) -> Result<Option<u32>, Failure> {
    if name.starts_with('-') || name.contains('\0') || !tool::exists("getent") {
        return Ok(None);
    }
    let ran = Tool::new("getent").args([database, name]).run(context)?;
    Ok(ran.text().split(':').nth(2).and_then(|id| id.parse().ok()))
}

/// The file itself, behind all symbolic links; it need not exist.
fn resolve(path: &Path, no_follow: bool) -> Result<PathBuf, Failure> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(_) if no_follow => {
                let message = format!("{path:?} is a symbolic link and no_follow is set");
                return Err(Failure::new(ErrorCode::Conflict, message));
            }
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            // Not a link, or not there: that is looked at next.
            Err(_) => return Ok(path),
        }
    }
    Err(Failure::new(ErrorCode::ExecFailed, format!("{path:?}: too many levels of symbolic links")))
}

/// The present file; none if there is none.
fn look_at(path: &Path) -> Result<Option<Metadata>, Failure> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata)),
        Ok(metadata) => {
            let what = if metadata.is_dir() { "a directory" } else { "not a regular file" };
            Err(Failure::new(ErrorCode::Conflict, format!("{path:?} is {what}")))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io(format!("cannot look at {path:?}"), &error)),
    }
}

/// Directories that were made for the file, taken away again unless it was written.
#[derive(Default)]
struct Parents(Vec<PathBuf>);

impl Parents {
    fn make(&mut self, path: &Path) -> Result<(), Failure> {
        let mut missing: Vec<&Path> =
            path.ancestors().skip(1).take_while(|d| !d.as_os_str().is_empty() && !d.exists()).collect();
        while let Some(directory) = missing.pop() {
            match fs::create_dir(directory) {
                Ok(()) => {
                    self.0.push(directory.to_owned());
                    // Whatever the umask: the reference makes them 0755.
                    let _ =
                        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755));
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(Failure::io(format!("cannot make the directory {directory:?}"), &error));
                }
            }
        }
        Ok(())
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for directory in self.0.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    }
}

struct Write<'a> {
    context: &'a Context,
    params: &'a Params<'a>,
    content: &'a Content<'a>,
    wanted_ids: (Option<u32>, Option<u32>),
    path: &'a Path,
}

/// What there is now, and what there will be.
struct Plan {
    old: Option<File>,
    old_checksum: Option<Sha256Hex>,
    attributes: Attributes,
    attributes_differ: bool,
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
            changed: content_differs || plan.attributes_differ,
            diff: if content_differs { self.diff(plan.old.as_ref(), kept)? } else { self.no_diff() },
            checksum: checksum.to_string(),
            ..FileWriteResult::default()
        })
    }

    fn write(&self, old: Option<&Metadata>) -> Result<FileWriteResult, Failure> {
        let plan = self.plan(old)?;
        let mut kept = Kept::new(self.wants_diff());
        // Inline content is compared before anything is written; what comes by INPUT has to be written to be known.
        if self.content.is_inline() {
            let (checksum, _) = self.digest(&mut |_| Ok(()))?;
            if plan.old_checksum.as_ref() == Some(&checksum) {
                return self.only_attributes(&plan, &checksum);
            }
        }
        let mut replacement = Replacement::begin(self.path)?;
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
        let diff = self.diff(plan.old.as_ref(), kept)?;
        let backup_path = match &plan.old {
            Some(old) if self.params.backup => Some(self.back_up(old)?),
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
        let (uid, gid) = self.wanted_ids;
        let present = old.map(Attributes::of);
        let default = Attributes { uid: host::uid(), gid: nix::unistd::getegid().as_raw(), mode: 0o644 };
        let base = present.unwrap_or(default);
        let attributes = Attributes {
            uid: uid.unwrap_or(base.uid),
            gid: gid.unwrap_or(base.gid),
            mode: self.params.mode.map_or(base.mode, sortie_protocol::Mode::bits),
        };
        let open = |_: &Metadata| {
            File::open(self.path)
                .map_err(|error| Failure::io(format!("cannot read the present {:?}", self.path), &error))
        };
        let old_file = old.map(open).transpose()?;
        let old_checksum = old_file.as_ref().map(|file| self.digest_file(file)).transpose()?;
        if let Some(expected) = &self.params.if_sha256
            && old_checksum.as_ref() != Some(expected)
        {
            let found = old_checksum.map_or_else(|| "there is no file".to_owned(), |c| format!("it is {c}"));
            let message = format!("{:?} has not the content that if_sha256 expects: {found}", self.path);
            return Err(Failure::new(ErrorCode::Conflict, message));
        }
        let attributes_differ = present.is_some_and(|present| present != attributes);
        Ok(Plan { old: old_file, old_checksum, attributes, attributes_differ })
    }

    /// Content stays: owner, group and mode alone are set, in place.
    fn only_attributes(&self, plan: &Plan, checksum: &Sha256Hex) -> Result<FileWriteResult, Failure> {
        if plan.attributes_differ
            && let Some(old) = &plan.old
        {
            self.context.job.commit()?;
            plan.attributes.apply(old).and_then(|()| old.sync_all()).map_err(|error| {
                Failure::io(format!("cannot set owner, group and mode of {:?}", self.path), &error)
            })?;
        }
        Ok(FileWriteResult {
            checksum: checksum.to_string(),
            changed: plan.attributes_differ,
            diff: self.no_diff(),
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

    fn digest_file(&self, mut file: &File) -> Result<Sha256Hex, Failure> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            self.context.job.go_on()?;
            let count = file
                .read(&mut buffer)
                .map_err(|error| Failure::io(format!("cannot read the present {:?}", self.path), &error))?;
            if count == 0 {
                return Ok(Sha256Hex::from_bytes(&hash.finalize().into()));
            }
            hash.update(&buffer[..count]);
        }
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

    fn back_up(&self, mut old: &File) -> Result<String, Failure> {
        use std::io::Seek;
        old.rewind()
            .map_err(|error| Failure::io(format!("cannot read the present {:?}", self.path), &error))?;
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.bak", now()));
        let backup = self.path.with_file_name(name);
        replace::copy(old, &backup)?;
        Ok(backup.to_string_lossy().into_owned())
    }

    fn wants_diff(&self) -> bool {
        self.context.job.command.diff && !self.params.sensitive
    }

    /// The diff of content that is the same.
    fn no_diff(&self) -> Option<String> {
        self.context.job.command.diff.then(String::new)
    }

    fn diff(&self, old: Option<&File>, new: Kept) -> Result<Option<String>, Failure> {
        if !self.context.job.command.diff {
            return Ok(None);
        }
        if self.params.sensitive {
            return Ok(Some("(withheld: the content is sensitive)\n".to_owned()));
        }
        let Some(new) = new.bytes else {
            return Ok(Some("(the new content is too large for a diff)\n".to_owned()));
        };
        let mut before = Vec::new();
        if let Some(mut old) = old {
            use std::io::Seek;
            let read = old.rewind().and_then(|()| old.take(MOST_DIFFED + 1).read_to_end(&mut before));
            read.map_err(|error| Failure::io(format!("cannot read the present {:?}", self.path), &error))?;
        }
        if before.len() as u64 > MOST_DIFFED {
            return Ok(Some("(the present content is too large for a diff)\n".to_owned()));
        }
        let (Ok(before), Ok(after)) = (String::from_utf8(before), String::from_utf8(new)) else {
            return Ok(Some("(binary content differs)\n".to_owned()));
        };
        let from = if old.is_some() { self.path.to_string_lossy() } else { "/dev/null".into() };
        let diff = crate::diff::unified(&from, &self.path.to_string_lossy(), &before, &after);
        Ok(Some(crate::diff::bounded(diff)))
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
            if (kept.len() + bytes.len()) as u64 > MOST_DIFFED {
                self.bytes = None;
            } else {
                kept.extend_from_slice(bytes);
            }
        }
    }
}
