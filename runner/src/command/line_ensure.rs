//! `line_ensure`: one line, or one marked block, in a file whose other lines stay as they are.

use sortie_protocol::Secret;
use sortie_protocol::command::file_write::FileWrite;
use sortie_protocol::command::line_ensure::{LineEnsure, LineEnsureResult, Presence};

use super::Context;
use super::file_write::edit;
use crate::failure::Failure;
use crate::job;
use crate::lines::{Block, OneLine, Place};
use crate::regex::Regex;

/// What stands around a block where nothing else is asked for.
const MARKER: &str = "# {mark} SORTIE MANAGED BLOCK";

pub(super) fn run(context: &Context) -> Result<LineEnsureResult, Failure> {
    let params: LineEnsure = job::parse(&context.job.take_params())?;
    let place = Place::new(params.insert_after.as_deref(), params.insert_before.as_deref())?;
    let go_on = || context.job.go_on();
    let absent = params.state == Presence::Absent;
    let whole = FileWrite {
        path: params.path,
        mode: params.mode,
        owner: params.owner,
        group: params.group,
        backup: params.backup,
        create: params.create,
        no_follow: params.no_follow,
        validate: params.validate,
        sensitive: params.sensitive,
        ..FileWrite::default()
    };
    let first = params.first_match;
    let text =
        |secret: &'_ Option<Secret>| secret.as_ref().map(|s| s.expose().to_owned()).unwrap_or_default();
    let (line, lines) = (text(&params.line), text(&params.block));
    // The expressions and texts first: what is outside the grammar is told before anything is looked at.
    if params.block.is_some() || params.marker.is_some() {
        if params.line.is_some() || params.regexp.is_some() || params.backrefs {
            return Err(Failure::params("block: not together with line, regexp or backrefs"));
        }
        if !absent && lines.is_empty() {
            return Err(Failure::params(
                "block: is required, of at least one line; to remove a block use state absent",
            ));
        }
        let markers = markers(params.marker.as_deref().unwrap_or(MARKER))?;
        if lines.lines().any(|line| markers.iter().any(|marker| line == marker)) {
            return Err(Failure::params("block: has a line that is one of its markers"));
        }
        check_text("block", &lines, &['\0'])?;
        let block = Block { markers, lines: &lines, first, place };
        return edit(context, &whole, absent, &|content| match absent {
            true => block.absent(content, &go_on),
            false => block.present(content, &go_on),
        });
    }
    let regexp = params.regexp.map(|regexp| Regex::new("regexp", &regexp)).transpose()?;
    if params.line.is_none() && (!absent || regexp.is_none()) {
        return Err(Failure::params("line: is required, or block; with state absent regexp will do"));
    }
    check_text("line", &line, &['\0', '\n', '\r'])?;
    if params.backrefs {
        check_backrefs(&line, regexp.as_ref(), absent)?;
    }
    let one = OneLine { regexp, line: &line, backrefs: params.backrefs, first, place };
    edit(context, &whole, absent, &|content| match absent {
        true => one.absent(content, &go_on),
        false => one.present(content, &go_on),
    })
}

fn markers(marker: &str) -> Result<[String; 2], Failure> {
    check_text("marker", marker, &['\0', '\n', '\r'])?;
    if !marker.contains("{mark}") {
        return Err(Failure::params("marker: has no {mark}, which stands for BEGIN and END"));
    }
    Ok(["BEGIN", "END"].map(|mark| marker.replace("{mark}", mark)))
}

/// Content is never echoed: it may be sensitive.
fn check_text(field: &str, text: &str, never: &[char]) -> Result<(), Failure> {
    if text.contains(never) {
        let what =
            if never.len() == 1 { "contains a NUL byte" } else { "is no one line; for several use block" };
        return Err(Failure::params([field, ": ", what].concat()));
    }
    Ok(())
}

fn check_backrefs(line: &str, regexp: Option<&Regex>, absent: bool) -> Result<(), Failure> {
    let Some(regexp) = regexp.filter(|_| !absent) else {
        return Err(Failure::params("backrefs: only with regexp and state present"));
    };
    let mut rest = line.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            continue;
        }
        match rest.next() {
            Some(digit @ b'0'..=b'9') if usize::from(digit - b'0') <= regexp.groups() => {}
            Some(b'\\') => {}
            _ => {
                return Err(Failure::params(
                    "line: with backrefs a \\ stands before the number of a group of regexp, or twice for a backslash",
                ));
            }
        }
    }
    Ok(())
}
