//! `sudoers_ensure`: one rule in a file of its own in sudoers.d, there or not there. At every moment the old rule or the
//! new one is in force, and never a policy that visudo(8) refuses.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sortie_protocol::ErrorCode;
use sortie_protocol::command::sudoers_ensure::{SudoersEnsure, SudoersEnsureResult};

use super::Context;
use crate::attributes::Attributes;
use crate::failure::Failure;
use crate::locks::Resource;
use crate::replace::{Replacement, sync_directory_of};
use crate::tool::{self, Tool};
use crate::{diff, job, sudoers};

/// Where rules are, each in a file.
const DIRECTORY: &str = "/etc/sudoers.d";

/// Where a new rule waits until it is in force: sudo passes over names with a dot (sudoers(5), "Including other files").
/// There is one, as the lock is held, so that what a killed runner left is found again.
const TEMPORARY: &str = "/etc/sudoers.d/.sortie-sudoers.tmp";

/// The policy itself; in the second place on systems that keep /etc for changes.
const POLICIES: [&str; 2] = ["/etc/sudoers", "/usr/etc/sudoers"];

/// Files that include files that include files: sudo gives up at 128.
const DEEPEST_INCLUDE: usize = 16;

/// What sudo insists on.
const ATTRIBUTES: Attributes = Attributes { uid: 0, gid: 0, mode: 0o440 };

pub(super) fn run(context: &Context) -> Result<SudoersEnsureResult, Failure> {
    let raw = context.job.take_params();
    let params: SudoersEnsure = job::parse(&raw)?;
    let text = sudoers::text(&params)?;
    let wanted = match params.state.as_str() {
        "present" => Some(text.as_str()),
        "absent" => None,
        other => return Err(Failure::params(format!("state: {other:?} is neither present nor absent"))),
    };
    tool::need_root("look at the rules of sudo and change them")?;
    if wanted.is_some() {
        if !tool::exists("visudo") {
            let message = "the host has no visudo, so no sudo; nothing was changed. Install sudo first";
            return Err(Failure::new(ErrorCode::NotFound, message));
        }
        need_include()?;
        make_directory(context)?;
    }
    let held = context.lock(Resource::Sudoers)?;
    let mut result = Files::look(&params.user)?.make(context, wanted)?;
    drop(held);
    if wanted.is_some() {
        result.note = note_on(context, &params.user);
    }
    Ok(result)
}

/// A file as it is now, if it is.
struct Present {
    text: Vec<u8>,
    attributes: Attributes,
}

/// Our file of the rule, and the reference's, which gives way to ours.
struct Files {
    ours: PathBuf,
    reference: PathBuf,
    old: Option<Present>,
    old_reference: Option<Present>,
}

impl Files {
    fn look(user: &str) -> Result<Self, Failure> {
        let path = |name: String| Path::new(DIRECTORY).join(name);
        // A user's name has passed its grammar: there is no slash in it.
        let (ours, reference) = (path(sudoers::file_name(user)), path(format!("froyo-{user}")));
        let (old, old_reference) = (look_at(&ours)?, look_at(&reference)?);
        Ok(Self { ours, reference, old, old_reference })
    }

    fn make(&self, context: &Context, wanted: Option<&str>) -> Result<SudoersEnsureResult, Failure> {
        let there = self.old.is_some() || self.old_reference.is_some();
        let (changed, action) = match wanted {
            Some(text) => match &self.old {
                Some(old) if old.text == text.as_bytes() && old.attributes == ATTRIBUTES => {
                    let alone = self.old_reference.is_none();
                    (!alone, if alone { "already_present" } else { "updated" })
                }
                _ => (true, if there { "updated" } else { "created" }),
            },
            None => (there, if there { "removed" } else { "already_absent" }),
        };
        if !context.check() {
            // Whatever a killed runner left.
            remove(Path::new(TEMPORARY))?;
            match wanted {
                Some(text) if changed => self.put(context, text)?,
                None if changed => context.critical(|| self.take_away())?,
                _ => {}
            }
        }
        Ok(SudoersEnsureResult {
            changed,
            file_path: self.ours.to_string_lossy().into_owned(),
            action: action.to_owned(),
            diff: context.diff().then(|| self.diff(wanted)),
            note: None,
        })
    }

    /// Puts the rule in force, or leaves everything as it was.
    fn put(&self, context: &Context, text: &str) -> Result<(), Failure> {
        // A file of the reference alone is first replaced under its own name and then renamed: two steps, and the old rule or
        // the new one at each.
        let rename = self.old.is_none() && self.old_reference.is_some();
        let target = if rename { &self.reference } else { &self.ours };
        let new = begin(target, text.as_bytes(), ATTRIBUTES)?;
        let checked = Tool::new("visudo").args(["-c", "-f", TEMPORARY]).run(context)?;
        if !checked.ok() {
            return Err(Failure::new(
                ErrorCode::ValidationFailed,
                format!(
                    "visudo refuses the rule for {:?}; nothing was changed: {}",
                    self.ours,
                    checked.last_lines(4)
                ),
            ));
        }
        context.critical(|| {
            new.commit()?;
            self.give_way(rename)
                .and_then(|()| whole_policy(context))
                .map_err(|failure| self.restore(context, failure))
        })
    }

    /// The reference's file goes, whose place the new rule has taken.
    fn give_way(&self, rename: bool) -> Result<(), Failure> {
        if rename {
            fs::rename(&self.reference, &self.ours)
                .map_err(|error| Failure::at("cannot rename", &self.reference, &error))?;
        } else {
            remove(&self.reference)?;
        }
        sync_directory_of(&self.ours)
    }

    fn take_away(&self) -> Result<(), Failure> {
        // The later name decides where both are (sudoers(5): the last match), so it stays longer.
        remove(&self.reference)?;
        remove(&self.ours)?;
        sync_directory_of(&self.ours)
    }

    /// Puts the old files back after a failure, and says so.
    fn restore(&self, context: &Context, mut failure: Failure) -> Failure {
        let result = put_back(&self.ours, self.old.as_ref())
            .and_then(|()| put_back(&self.reference, self.old_reference.as_ref()));
        failure.message += match result {
            Err(_) => "; and the old rule could not be put back: look at /etc/sudoers.d, and run visudo -c",
            Ok(()) if whole_policy(context).is_ok() => "; the old rule is in force again",
            Ok(()) => "; the old rule is back, and visudo refuses the policy with it too: mend that first",
        };
        failure
    }

    fn diff(&self, wanted: Option<&str>) -> String {
        let (from, old) = match (&self.old, &self.old_reference) {
            (Some(old), _) => (self.ours.to_string_lossy(), String::from_utf8_lossy(&old.text)),
            (None, Some(old)) => (self.reference.to_string_lossy(), String::from_utf8_lossy(&old.text)),
            (None, None) => ("/dev/null".into(), "".into()),
        };
        let to = wanted.map_or("/dev/null".into(), |_| self.ours.to_string_lossy());
        diff::unified(&from, &to, &old, wanted.unwrap_or_default())
    }
}

/// Has visudo read the rule together with all others.
fn whole_policy(context: &Context) -> Result<(), Failure> {
    let checked = Tool::new("visudo").args(["-c"]).run(context)?;
    if checked.ok() {
        return Ok(());
    }
    let message = format!("with the new rule visudo refuses the policy: {}", checked.last_lines(4));
    Err(Failure::new(ErrorCode::RolledBack, message))
}

/// A file for `target` with its content, on the disk, not yet in force.
fn begin(target: &Path, text: &[u8], attributes: Attributes) -> Result<Replacement, Failure> {
    let mut new = Replacement::begin_as(target, PathBuf::from(TEMPORARY))?;
    new.write(text)?;
    new.finish(attributes, None)?;
    Ok(new)
}

fn put_back(path: &Path, old: Option<&Present>) -> Result<(), Failure> {
    match old {
        Some(old) => begin(path, &old.text, old.attributes)?.commit(),
        None => remove(path).and_then(|()| sync_directory_of(path)),
    }
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::at("cannot remove", path, &error)),
        _ => Ok(()),
    }
}

fn look_at(path: &Path) -> Result<Option<Present>, Failure> {
    let failed = |error| Failure::at("cannot look at", path, &error);
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            Ok(Some(Present { text: fs::read(path).map_err(failed)?, attributes: Attributes::of(&metadata) }))
        }
        Ok(_) => Err(Failure::new(
            ErrorCode::Conflict,
            format!("{path:?} is no regular file; nothing was changed"),
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Refuses where sudo would never read the rule.
fn need_include() -> Result<(), Failure> {
    let policy = POLICIES.into_iter().find(|path| Path::new(path).exists()).unwrap_or(POLICIES[0]);
    if includes(Path::new(policy), 0)? {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::Conflict,
        format!(
            "{policy} does not include {DIRECTORY}, so a rule there has no effect; nothing was changed. Add the line: @includedir {DIRECTORY}"
        ),
    ))
}

/// Whether a policy file includes the directory, itself or by what it includes (sudoers(5), "Including other files").
fn includes(path: &Path, depth: usize) -> Result<bool, Failure> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if depth > 0 && error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Failure::at("cannot read", path, &error)),
    };
    for line in String::from_utf8_lossy(&text).lines() {
        let Some(line) = line.trim().strip_prefix(['@', '#']) else { continue };
        let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        // Relative paths are looked for beside the file that names them.
        let named = path.with_file_name(rest.trim().trim_matches('"'));
        let found = match word {
            "includedir" => named == Path::new(DIRECTORY),
            "include" if depth < DEEPEST_INCLUDE => includes(&named, depth + 1)?,
            _ => false,
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// sudo does not mind that the directory is not there, so it may be so.
fn make_directory(context: &Context) -> Result<(), Failure> {
    if context.check() || Path::new(DIRECTORY).exists() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .mode(0o750)
        .create(DIRECTORY)
        .map_err(|error| Failure::io(format!("cannot make {DIRECTORY}"), &error))
}

/// A rule may come before its user; whether it did is worth a word.
fn note_on(context: &Context, user: &str) -> Option<String> {
    let (kind, database, name) = match user.strip_prefix('%') {
        Some(group) => ("group", "group", group),
        None => ("user", "passwd", user),
    };
    let key = name.strip_prefix('#').unwrap_or(name);
    // The rule is in force: nothing that goes wrong here, or ends the command, changes that.
    let asked = Tool::new("getent").args([database, key]).run(context).ok()?;
    (!asked.ok()).then(|| format!("the host has no {kind} {name:?} yet"))
}
