//! What ssh(1) itself makes of a configuration that this parser does not understand: `ssh -G`.
//!
//! It connects to nothing. Its answer goes through the same table of keywords, so that what is not supported is refused
//! all the same.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::file::ConfigSource;
use super::host_config::{HostConfig, Proxy};
use super::keywords::{self, Met, met};
use super::lexer::Line;
use super::{Query, setting, world};
use crate::error::printable;
use crate::place::Place;
use crate::target::check_host;

/// The longest answer that is read, in bytes.
const LONGEST: u64 = 1024 * 1024;

/// Keywords that `ssh -G` has acted upon already, or that say nothing of a connection of ours.
const SPENT: &[&str] = &[
    "host",
    "canonicaldomains",
    "canonicalizefallbacklocal",
    "canonicalizehostname",
    "canonicalizemaxdots",
    "canonicalizepermittedcnames",
    // Apple's: where its ssh keeps passphrases.
    "usekeychain",
];

/// Keywords whose values are several words.
const SEVERAL: &[&str] = &["userknownhostsfile", "globalknownhostsfile", "revokedhostkeys", "rekeylimit"];

/// What `program -G` says about a host.
///
/// # Errors
/// Why it says nothing, or which of its words cannot be obeyed.
pub(super) fn effective(
    program: &Path,
    source: &ConfigSource,
    query: &Query<'_>,
) -> Result<HostConfig, String> {
    let own_home = world::own_user().map(|user| user.dir);
    if *source == ConfigSource::Default && query.home != own_home.as_deref() {
        return Err("it would read the configuration of another home directory than HOME".into());
    }
    let answer = ask(program, source, query)?;
    // It tells the values of all keywords: what it says of an empty configuration too was not configured.
    let defaults = ask(program, &ConfigSource::None, query)?;
    let mut found = HostConfig::default();
    for (keyword, (number, values)) in &answer {
        if SPENT.contains(&keyword.as_str())
            || (keyword != "hostname" && defaults.get(keyword).is_some_and(|(_, default)| default == values))
        {
            continue;
        }
        for value in values {
            let at = Place { file: "(ssh -G)".into(), line: *number };
            set(&mut found, keyword, value, &at)
                .map_err(|reason| format!("{keyword} {value:?}: {reason}"))?;
        }
    }
    if let Some(name) = &found.host_name {
        check_host(name)?;
    }
    found.host_name = found.host_name.filter(|name| name != query.host);
    Ok(found)
}

fn set(found: &mut HostConfig, keyword: &str, value: &str, at: &Place) -> Result<(), String> {
    let arguments = if SEVERAL.contains(&keyword) {
        value.split(' ').map(str::to_owned).collect()
    } else {
        vec![value.to_owned()]
    };
    let line = Line { keyword: keyword.to_owned(), rest: value.to_owned(), arguments };
    let today = keywords::today(keyword);
    if setting::set(found, today, &line, true, at)? {
        return Ok(());
    }
    match met(today) {
        Met::PassedOver => Ok(()),
        Met::Refused { unless, .. } if unless.contains(&value.to_ascii_lowercase().as_str()) => Ok(()),
        Met::Refused { instead, .. } => Err(format!("not supported; {instead}")),
        Met::Unknown => Err("no keyword that Sortie knows".into()),
    }
}

/// The values of each keyword, in order, and the line of the first.
type Answer = BTreeMap<String, (usize, Vec<String>)>;

fn ask(program: &Path, source: &ConfigSource, query: &Query<'_>) -> Result<Answer, String> {
    let mut command = Command::new(program);
    command.arg("-G");
    match source {
        ConfigSource::Default => {}
        ConfigSource::File(file) => {
            command.arg("-F").arg(file);
        }
        ConfigSource::None => {
            command.args(["-F", "none"]);
        }
    }
    if let Some(user) = query.user {
        command.args(["-l", user]);
    }
    if let Some(port) = query.port {
        command.args(["-p", &port.to_string()]);
    }
    if let Some(Proxy::Jump(hops)) = &query.proxy {
        let hops: Vec<_> = hops.iter().map(ToString::to_string).collect();
        command.args(["-J", &hops.join(",")]);
    }
    command.args(["--", query.host]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let (status, output, errors) = child.and_then(finish).map_err(|error| error.to_string())?;
    if !status {
        return Err(format!("it says {:?}", printable(errors.trim_ascii(), 300)));
    }
    let text = String::from_utf8(output).map_err(|_| "its answer is not UTF-8")?;
    let mut answer = Answer::new();
    for (index, line) in text.lines().enumerate() {
        if let Some((keyword, value)) = line.split_once(' ') {
            let entry = answer.entry(keyword.to_ascii_lowercase()).or_insert((index + 1, Vec::new()));
            entry.1.push(value.to_owned());
        }
    }
    if answer.contains_key("hostname") { Ok(answer) } else { Err("its answer names no host".into()) }
}

/// Whether it ended with status 0, what it printed, and what it complained of.
fn finish(mut child: Child) -> std::io::Result<(bool, Vec<u8>, Vec<u8>)> {
    let reader = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = stream.map(|stream| stream.take(LONGEST).read_to_end(&mut bytes));
            read.transpose().map(|_| bytes)
        })
    };
    let output = reader(child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>));
    let errors = reader(child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>));
    let status = world::wait(&mut child)?;
    let gathered = |thread: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| {
        thread.join().map_err(|_| std::io::Error::other("its output could not be read"))?
    };
    Ok((status.success(), gathered(output)?, gathered(errors)?))
}
