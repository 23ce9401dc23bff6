//! The part of ssh_config(5) that Sortie obeys, and a strict reading of the rest.
//!
//! A keyword that would change where or how a connection is made is obeyed or refused by name, never ignored; one
//! without bearing on a session is passed over. Nothing here opens a connection or knows russh.

mod file;
mod host_config;
mod keywords;
mod lexer;
mod setting;
mod value;

use std::fmt;
use std::path::{Path, PathBuf};

pub use crate::place::Place;
pub use file::{ConfigFile, ConfigSource};
pub use host_config::{AddressFamily, HostConfig, HostKeyPolicy, Proxy};

use self::keywords::{Met, met};
use self::lexer::Line;
use crate::pattern;
use crate::target::check_host;

/// A line that cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong and what to do.
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}: {}", self.file.display(), self.line, self.reason)
    }
}

impl std::error::Error for ConfigError {}

/// What `files`, in this order, say about `host`. The first value of a keyword wins; `IdentityFile`s and
/// `CertificateFile`s add up. `home` is the directory that `~` in an `Include` stands for.
///
/// # Errors
/// [`ConfigError`] for a line that is malformed or unknown, and for one that applies to `host` and is not supported.
pub fn lookup(files: &[ConfigFile], host: &str, home: Option<&Path>) -> Result<HostConfig, ConfigError> {
    let mut reader = Reader { host, home, found: HostConfig::default(), ignore_unknown: None };
    for file in files {
        reader.read(file, true, 0)?;
    }
    if let Some(name) = &reader.found.host_name {
        let expanded = expand_host_name(name, host);
        let at = reader.found.places.get("hostname").cloned();
        let checked = expanded.and_then(|name| check_host(&name).map(|()| name));
        reader.found.host_name = Some(checked.map_err(|reason| {
            let Place { file, line } = at.unwrap_or_default();
            ConfigError { file, line, reason: format!("HostName: {reason}") }
        })?);
    }
    Ok(reader.found)
}

/// As deep as ssh(1) goes.
const INCLUDE_DEPTH: usize = 16;

struct Reader<'a> {
    host: &'a str,
    home: Option<&'a Path>,
    found: HostConfig,
    /// `IgnoreUnknown`, once it was set.
    ignore_unknown: Option<String>,
}

impl Reader<'_> {
    /// Reads one file. Its first lines apply where `included_where_it_applies`; else no line does.
    fn read(&mut self, file: &ConfigFile, may_apply: bool, depth: usize) -> Result<(), ConfigError> {
        let mut applies = may_apply;
        for (index, line) in file.text.lines().enumerate() {
            let fail = |reason: String| ConfigError { file: file.path.clone(), line: index + 1, reason };
            let Some(line) = Line::parse(line).map_err(fail)? else { continue };
            let lower = line.keyword.to_ascii_lowercase();
            match lower.as_str() {
                "host" => {
                    if line.arguments.is_empty() || line.arguments.iter().any(String::is_empty) {
                        return Err(fail("Host needs at least one pattern".into()));
                    }
                    let patterns = line.arguments.iter().map(String::as_str);
                    applies = may_apply && pattern::list_matches(patterns, self.host);
                }
                "match" => {
                    applies = may_apply && self.match_may_apply(&line.arguments);
                    let always = matches!(&line.arguments[..], [only] if only.eq_ignore_ascii_case("all"));
                    if applies && !always {
                        return Err(fail(
                            "Match is not supported yet, and this one may apply; use Host, or another file (-F)".into(),
                        ));
                    }
                }
                "include" => {
                    if depth == INCLUDE_DEPTH {
                        return Err(fail("Include goes too deep; does a file include itself?".into()));
                    }
                    for included in self.included(&line.arguments, file).map_err(fail)? {
                        self.read(&included, applies, depth + 1)?;
                    }
                }
                lower => {
                    let at = Place { file: file.path.clone(), line: index + 1 };
                    self.keyword(&line, keywords::today(lower), applies, &at).map_err(fail)?;
                }
            }
        }
        Ok(())
    }

    /// The files that an `Include` names. A pattern without a match names none, as in ssh_config(5).
    fn included(&self, patterns: &[String], from: &ConfigFile) -> Result<Vec<ConfigFile>, String> {
        if patterns.is_empty() {
            return Err("Include takes at least one file".into());
        }
        let mut files = Vec::new();
        for pattern in patterns {
            if pattern.contains("${") || pattern.contains('%') {
                return Err(format!("tokens and variables in Include {pattern:?} are not supported"));
            }
            let full = match pattern.strip_prefix("~/") {
                Some(rest) => {
                    let home = self.home.ok_or("Include of a file under ~, and HOME is not set")?;
                    home.join(rest)
                }
                None if pattern.starts_with('~') => {
                    return Err(format!("the home of another user in Include {pattern:?} is not supported"));
                }
                None if pattern.starts_with('/') => pattern.into(),
                None => from
                    .include_base
                    .as_ref()
                    .ok_or_else(|| format!("Include {pattern:?} is relative, and HOME is not set"))?
                    .join(pattern),
            };
            for path in pattern::glob(&full) {
                let bytes =
                    std::fs::read(&path).map_err(|error| format!("Include {}: {error}", path.display()))?;
                let text = String::from_utf8_lossy(&bytes).into_owned();
                files.push(ConfigFile { path, text, include_base: from.include_base.clone() });
            }
        }
        Ok(files)
    }

    /// All criteria of a `Match` must hold, so one on the host's name that fails rules the block out.
    fn match_may_apply(&self, criteria: &[String]) -> bool {
        let mut words = criteria.iter();
        while let Some(criterion) = words.next() {
            let criterion = criterion.to_ascii_lowercase();
            if matches!(criterion.as_str(), "all" | "canonical" | "final") {
                continue;
            }
            let Some(value) = words.next() else { return true };
            let matches = |host: &str| pattern::list_matches(value.split(','), host);
            let ruled_out = match criterion.as_str() {
                "originalhost" => !matches(self.host),
                "host" => !matches(self.host) && !self.found.host_name.as_deref().is_some_and(matches),
                _ => false,
            };
            if ruled_out {
                return false;
            }
        }
        true
    }

    fn keyword(&mut self, line: &Line, keyword: &str, applies: bool, at: &Place) -> Result<(), String> {
        let named = |reason: String| format!("{}: {reason}", line.keyword);
        if setting::set(&mut self.found, keyword, line, applies, at).map_err(named)? {
            return Ok(());
        }
        if keyword == "ignoreunknown" {
            let [names] = &line.arguments[..] else {
                return Err(named("it takes one list of keywords".into()));
            };
            if applies {
                self.ignore_unknown.get_or_insert_with(|| names.to_ascii_lowercase());
            }
            return Ok(());
        }
        match met(keyword) {
            Met::PassedOver => Ok(()),
            Met::Refused { unless, instead } => {
                let harmless = matches!(&line.arguments[..], [value] if unless.contains(&value.to_ascii_lowercase().as_str()));
                if harmless || !applies {
                    return Ok(());
                }
                Err(format!(
                    "{} is not supported and would change where or how it connects to {}; {instead}, take it out for \
                     this host, or use another file (-F)",
                    line.keyword, self.host
                ))
            }
            Met::Unknown => {
                let ignored = self.ignore_unknown.as_deref().unwrap_or_default();
                if pattern::list_matches(ignored.split(','), keyword) {
                    return Ok(());
                }
                Err(format!(
                    "{} is no keyword of ssh_config(5) that Sortie knows; see IgnoreUnknown",
                    line.keyword
                ))
            }
        }
    }
}

fn expand_host_name(name: &str, host: &str) -> Result<String, String> {
    expand_tokens(name, |token| match token {
        'h' => Some(host.to_owned()),
        _ => None,
    })
}

/// Replaces `%%` and the tokens that `value` knows; any other is an error.
pub(crate) fn expand_tokens(text: &str, value: impl Fn(char) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some(token) => {
                out.push_str(
                    &value(token).ok_or_else(|| format!("token %{token} in {text:?} is not supported"))?,
                );
            }
            None => return Err(format!("{text:?} ends in a lone %")),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
