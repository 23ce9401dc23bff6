//! `sortie file line`, `block` and `ini`: one place in a file of a host, all else in it as it was.

use std::io::Read as _;

use anyhow::Context as _;
use sortie_client::protocol::command::ini_ensure::{Continued, IniEnsure};
use sortie_client::protocol::command::line_ensure::{LineEnsure, Presence};
use sortie_client::protocol::{Mode, Secret};

use crate::ensure::{self, Where};
use crate::report::Done;
use crate::{outcome::usage, words};

/// What becomes of the file besides.
#[derive(clap::Args)]
#[command(next_help_heading = "The file")]
struct Keeping {
    /// Make the file, and the directories above it, if it is not there
    #[arg(long)]
    create: bool,
    /// Permission bits in octal [default: those of the file, 0644 for a new one]
    #[arg(long, value_name = "MODE")]
    mode: Option<Mode>,
    /// User name or number [default: that of the file]
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Group name or number [default: that of the file]
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Keep a copy of the old file beside it
    #[arg(long)]
    backup: bool,
    /// Refuse a symbolic link instead of following it
    #[arg(long)]
    no_follow: bool,
    /// A program on the host that must accept the new file first; %s is its path, as in 'nginx -t -c %s'
    #[arg(long, value_name = "COMMAND", value_parser = validator)]
    validate: Option<Validator>,
    /// Keep the content out of differences and messages
    #[arg(long)]
    sensitive: bool,
}

#[derive(Debug, Clone)]
struct Validator(Vec<String>);

fn validator(text: &str) -> Result<Validator, String> {
    words::split(text).map(Validator)
}

/// Where something new goes.
#[derive(clap::Args)]
struct Place {
    /// Put it after the last line that matches, or at the end (EOF, the default)
    #[arg(long, value_name = "REGEXP", conflicts_with = "before", allow_hyphen_values = true)]
    after: Option<String>,
    /// Put it before the last line that matches, or at the beginning (BOF)
    #[arg(long, value_name = "REGEXP", allow_hyphen_values = true)]
    before: Option<String>,
    /// Of several lines that match take the first
    #[arg(long)]
    first: bool,
}

#[derive(clap::Args)]
pub(crate) struct Line {
    #[command(flatten)]
    place: Where,
    /// Replace the last line that matches, or with --absent remove all that do
    #[arg(long, value_name = "REGEXP", allow_hyphen_values = true)]
    regexp: Option<String>,
    /// \1 to \9 in LINE stand for what the groups of REGEXP matched
    #[arg(long, requires = "regexp", conflicts_with = "absent")]
    backrefs: bool,
    /// Remove it
    #[arg(long)]
    absent: bool,
    #[command(flatten)]
    at: Place,
    #[command(flatten)]
    keeping: Keeping,
    /// Absolute path
    #[arg(value_name = "PATH")]
    path: String,
    /// The whole line; - for the first line of standard input
    #[arg(value_name = "LINE", allow_hyphen_values = true, required_unless_present = "absent")]
    line: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct Block {
    #[command(flatten)]
    place: Where,
    /// The lines around it; {mark} is BEGIN and END [default: '# {mark} SORTIE MANAGED BLOCK']
    #[arg(long, value_name = "LINE")]
    marker: Option<String>,
    /// Remove it
    #[arg(long)]
    absent: bool,
    #[command(flatten)]
    at: Place,
    #[command(flatten)]
    keeping: Keeping,
    /// Absolute path
    #[arg(value_name = "PATH")]
    path: String,
    /// The lines; - for standard input
    #[arg(value_name = "LINES", allow_hyphen_values = true, required_unless_present = "absent")]
    lines: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct Ini {
    #[command(flatten)]
    place: Where,
    /// Remove the option, or without one the section
    #[arg(long, conflicts_with = "values")]
    absent: bool,
    /// The option stands for itself, without a value
    #[arg(long, conflicts_with_all = ["values", "absent"])]
    no_value: bool,
    /// What begins with ' #' or ' ;' behind a value is a comment, and stays
    #[arg(long)]
    inline_comments: bool,
    /// How a value goes on in the next line: after a backslash, by indentation, never
    #[arg(long, value_name = "HOW")]
    continued: Option<How>,
    #[command(flatten)]
    keeping: Keeping,
    /// Absolute path
    #[arg(value_name = "PATH")]
    path: String,
    /// What stands in the brackets; '' for the options before the first section
    #[arg(value_name = "SECTION")]
    section: String,
    /// The option; without it the section itself
    #[arg(value_name = "OPTION")]
    option: Option<String>,
    /// Its value, or its values, one line each; - for one from the first line of standard input
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    values: Vec<String>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum How {
    Backslash,
    Indent,
    None,
}

fn state(absent: bool) -> Presence {
    if absent { Presence::Absent } else { Presence::Present }
}

/// What the argument stands for. The whole of standard input, or its first line, is read before any host is spoken with.
fn text(argument: String, whole: bool) -> anyhow::Result<Secret> {
    if argument != "-" {
        return Ok(Secret::new(argument));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    if !whole {
        text.truncate(text.lines().next().unwrap_or_default().len());
    }
    Ok(Secret::new(text))
}

async fn run_line(place: &Where, command: LineEnsure) -> anyhow::Result<i32> {
    ensure::run(place, vec![command], |command: &LineEnsure, check, result| Done::FileEdit {
        path: command.path.clone(),
        check,
        result,
    })
    .await
}

fn whole(path: String, at: Place, keeping: Keeping) -> LineEnsure {
    LineEnsure {
        path,
        insert_after: at.after,
        insert_before: at.before,
        first_match: at.first,
        create: keeping.create,
        mode: keeping.mode,
        owner: keeping.owner,
        group: keeping.group,
        backup: keeping.backup,
        no_follow: keeping.no_follow,
        validate: keeping.validate.map_or_else(Vec::new, |validator| validator.0),
        sensitive: keeping.sensitive,
        ..LineEnsure::default()
    }
}

pub(crate) async fn line(arguments: Line) -> anyhow::Result<i32> {
    let command = LineEnsure {
        state: state(arguments.absent),
        line: arguments.line.map(|line| text(line, false)).transpose()?,
        regexp: arguments.regexp,
        backrefs: arguments.backrefs,
        ..whole(arguments.path, arguments.at, arguments.keeping)
    };
    run_line(&arguments.place, command).await
}

pub(crate) async fn block(arguments: Block) -> anyhow::Result<i32> {
    let lines = arguments.lines.map_or_else(|| Ok(Secret::new(String::new())), |lines| text(lines, true))?;
    let command = LineEnsure {
        state: state(arguments.absent),
        block: Some(lines),
        marker: arguments.marker,
        ..whole(arguments.path, arguments.at, arguments.keeping)
    };
    run_line(&arguments.place, command).await
}

pub(crate) async fn ini(arguments: Ini) -> anyhow::Result<i32> {
    let Ini { absent, no_value, keeping, option, mut values, .. } = arguments;
    if option.is_some() && values.is_empty() && !no_value && !absent {
        return Err(usage("VALUE is missing; --no-value for an option without one, --absent to remove it"));
    }
    let value =
        if values.len() == 1 { values.pop().map(|value| text(value, false)).transpose()? } else { None };
    let command = IniEnsure {
        path: arguments.path,
        state: state(absent),
        section: Some(arguments.section).filter(|section| !section.is_empty()),
        option,
        value,
        values,
        no_value,
        inline_comments: arguments.inline_comments,
        continued: arguments.continued.map(|how| match how {
            How::Backslash => Continued::Backslash,
            How::Indent => Continued::Indent,
            How::None => Continued::None,
        }),
        create: keeping.create,
        mode: keeping.mode,
        owner: keeping.owner,
        group: keeping.group,
        backup: keeping.backup,
        no_follow: keeping.no_follow,
        validate: keeping.validate.map_or_else(Vec::new, |validator| validator.0),
        sensitive: keeping.sensitive,
    };
    ensure::run(&arguments.place, vec![command], |command: &IniEnsure, check, result| Done::FileEdit {
        path: command.path.clone(),
        check,
        result,
    })
    .await
}
