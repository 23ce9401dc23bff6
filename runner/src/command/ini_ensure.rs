//! `ini_ensure`: an option in a section of a file of options, everything else in it kept as it is.

use sortie_protocol::command::file_write::FileWrite;
use sortie_protocol::command::ini_ensure::{Continued, IniEnsure, IniEnsureResult};
use sortie_protocol::command::line_ensure::Presence;

use super::Context;
use super::file_write::edit;
use crate::failure::Failure;
use crate::ini::Ini;
use crate::job;

pub(super) fn run(context: &Context) -> Result<IniEnsureResult, Failure> {
    let params: IniEnsure = job::parse(&context.job.take_params())?;
    let absent = params.state == Presence::Absent;
    check_name("section", params.section.as_deref(), &[])?;
    check_name("option", params.option.as_deref(), &['=', '[', '#', ';'])?;
    let mut values: Vec<&str> = params.values.iter().map(String::as_str).collect();
    if let Some(value) = &params.value {
        values.push(value.expose());
    }
    if params.option.is_none() && (params.section.is_none() || params.no_value || !values.is_empty()) {
        return Err(Failure::params("option: is required; without it section alone, for the section itself"));
    }
    let given = [params.value.is_some(), !params.values.is_empty(), params.no_value];
    let given = given.iter().filter(|given| **given).count();
    if given > 1 || (given == 0 && !absent && params.option.is_some()) {
        return Err(Failure::params("value: one of value, values and no_value is required"));
    }
    values.iter().try_for_each(|value| check_value(&params, value))?;
    let ini = Ini {
        section: params.section.as_deref(),
        option: params.option.as_deref().unwrap_or_default(),
        inline_comments: params.inline_comments,
        continued: params.continued,
    };
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
    let values = (!params.no_value).then_some(&values[..]);
    let go_on = || context.job.go_on();
    edit(context, &whole, absent, &|content| match (ini.option.is_empty(), absent) {
        (false, false) => ini.present(content, values, &go_on),
        (false, true) => ini.absent(content, &go_on),
        (true, false) => ini.section_present(content, &go_on),
        (true, true) => ini.section_absent(content, &go_on),
    })
}

/// The name of a section or an option.
fn check_name(field: &str, name: Option<&str>, never_first: &[char]) -> Result<(), Failure> {
    let Some(name) = name else { return Ok(()) };
    let mut why = "";
    if is_no_line(name) || name.starts_with(never_first) {
        why = ": is no name: one line without control characters, no blank at either end";
    } else if !never_first.is_empty() && name.contains('=') {
        why = ": has a = in it";
    }
    if why.is_empty() { Ok(()) } else { Err(Failure::params([field, why].concat())) }
}

/// Values are never echoed: they may be sensitive.
fn check_value(params: &IniEnsure, value: &str) -> Result<(), Failure> {
    let slashes = value.bytes().rev().take_while(|b| *b == b'\\').count();
    let goes_on = !matches!(params.continued, Some(Continued::None | Continued::Indent));
    let why = if is_no_line(value) {
        "value: is no one line without control characters and without blanks at either end; blanks need the quotes that the program takes"
    } else if slashes % 2 == 1 && goes_on {
        "value: ends with a backslash, so that the next line would be part of it; say with continued if that is not so"
    } else {
        return Ok(());
    };
    Err(Failure::params(why))
}

fn is_no_line(text: &str) -> bool {
    text.trim_matches([' ', '\t']) != text || text.contains(|c: char| c.is_control() && c != '\t')
}
