//! One reading of the files, line by line: which blocks apply, and what they set.
//!
//! ssh(1) reads them a second time once a host's name is canonical, or where a `Match final` asks for it.

use std::path::PathBuf;

use super::canonical::Canonicalization;
use super::file::ConfigFile;
use super::host_config::{HostConfig, Proxy};
use super::keywords::{self, Met, met};
use super::lexer::Line;
use super::matching::{self, Circumstances};
use super::tokens::{Expand, Tokens};
use super::trouble::{Checked, Trouble};
use super::world::World;
use super::{ConfigError, Query, setting, tokens};
use crate::pattern;
use crate::place::Place;

/// As deep as ssh(1) goes.
const INCLUDE_DEPTH: usize = 16;
/// What all files that are included may come to, counted each time: a few that include each other grow without end.
const INCLUDED_FILES: usize = 4096;

/// What is known so far; kept from one reading to the next.
pub(super) struct Reader<'a> {
    pub(super) query: &'a Query<'a>,
    pub(super) world: &'a dyn World,
    pub(super) found: HostConfig,
    pub(super) canonicalization: Canonicalization,
    /// The host that patterns are held against: as given, then as it became canonical.
    pub(super) host: String,
    /// This is the second reading.
    pub(super) last: bool,
    /// A `Match final` was seen.
    pub(super) wants_last: bool,
    ignore_unknown: Option<String>,
    included: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(query: &'a Query<'a>, world: &'a dyn World) -> Self {
        let found = HostConfig {
            user: query.user.map(str::to_owned),
            port: query.port,
            proxy: query.proxy.clone(),
            ..HostConfig::default()
        };
        Self {
            query,
            world,
            found,
            canonicalization: Canonicalization::default(),
            host: query.host.to_owned(),
            last: false,
            wants_last: false,
            ignore_unknown: None,
            included: 0,
        }
    }

    /// Reads one file. Where it does not `apply`, because it is included in a block that does not, none of its lines
    /// does.
    pub(super) fn read(
        &mut self,
        file: &ConfigFile,
        may_apply: bool,
        depth: usize,
    ) -> Result<(), ConfigError> {
        let mut applies = may_apply;
        for (index, text) in file.text.lines().enumerate() {
            let at = Place { file: file.path.clone(), line: index + 1 };
            let line = Line::parse(text).map_err(|reason| ConfigError::new(&at, &reason.into()))?;
            let Some(line) = line else { continue };
            let lower = line.keyword.to_ascii_lowercase();
            let fail = |trouble: Trouble| ConfigError::new(&at, &trouble.in_front(&line.keyword));
            match keywords::today(&lower) {
                "host" => {
                    if line.arguments.iter().any(String::is_empty) || line.arguments.is_empty() {
                        return Err(fail("it needs patterns".into()));
                    }
                    let patterns = line.arguments.iter().map(String::as_str);
                    applies = may_apply && pattern::list_matches(patterns, &self.host);
                }
                "match" => applies = self.judge(&line, may_apply).map_err(fail)?,
                "include" => {
                    if depth == INCLUDE_DEPTH {
                        return Err(fail("it goes too deep; does a file include itself?".into()));
                    }
                    for path in self.included(&line.arguments, file.of_user).map_err(fail)? {
                        self.included += 1;
                        if self.included > INCLUDED_FILES {
                            return Err(fail(format!("more than {INCLUDED_FILES} files").into()));
                        }
                        let guarded = Some(self.world.user_id());
                        let file = ConfigFile::read(path.clone(), file.of_user, guarded)
                            .map_err(|error| fail(format!("{}: {error}", path.display()).into()))?;
                        self.read(&file, applies, depth + 1)?;
                    }
                }
                keyword => self.keyword(&line, keyword, applies, &at).map_err(fail)?,
            }
        }
        Ok(())
    }

    /// The host's name as far as it is known, for `Match` and `Include`.
    fn host_so_far(&self) -> Checked<String> {
        match &self.found.host_name {
            Some(name) if !self.last => tokens::host_name(name, self.query.host),
            _ => Ok(self.host.clone()),
        }
    }

    /// `host` is that of [`Reader::host_so_far`].
    fn tokens<'t>(&'t self, host: &'t str) -> Tokens<'t> {
        let jump = match &self.found.proxy {
            Some(Proxy::Jump(hops)) => hops.last().map(crate::target::Target::host),
            _ => None,
        };
        Tokens {
            host,
            original: self.query.host,
            alias: self.found.host_key_alias.as_deref().unwrap_or(host),
            port: self.found.port.unwrap_or(22),
            user: self.found.user.as_deref().or(self.query.local_user),
            local_user: self.query.local_user,
            home: self.query.home,
            jump,
            world: self.world,
        }
    }

    fn judge(&mut self, line: &Line, may_apply: bool) -> Checked<bool> {
        let host = self.host_so_far()?;
        let now = Circumstances {
            host: &host,
            user: self.found.user.as_deref().or(self.query.local_user),
            tag: self.found.tag.as_deref().unwrap_or_default(),
            last: self.last,
            tokens: self.tokens(&host),
        };
        let matched = matching::judge(&line.arguments, &now, may_apply)?;
        self.wants_last |= matched.wants_last;
        Ok(matched.applies)
    }

    /// The files that an `Include` names. A pattern without a match names none, as in ssh_config(5).
    fn included(&self, patterns: &[String], of_user: bool) -> Checked<Vec<PathBuf>> {
        if patterns.is_empty() || patterns.iter().any(String::is_empty) {
            return Err("it takes at least one file".into());
        }
        let host = self.host_so_far()?;
        let tokens = self.tokens(&host);
        let mut files = Vec::new();
        for pattern in patterns {
            let text = tokens.expand(pattern, Expand::TokensAndVariables)?;
            let path = if text.starts_with('~') {
                if !of_user {
                    return Err(format!("{text:?} in a file of the system names a user's directory").into());
                }
                tokens.home_path(&text)?
            } else if text.starts_with('/') {
                text.into()
            } else if of_user {
                let home =
                    self.query.home.ok_or_else(|| format!("{text:?} is relative, and HOME is not set"))?;
                home.join(".ssh").join(text)
            } else {
                PathBuf::from("/etc/ssh").join(text)
            };
            if path.to_str().is_none_or(|path| path.contains(['[', '{', '\\'])) {
                return Err(Trouble::CannotTell(format!("the pattern {:?}", path.display())));
            }
            files.extend(pattern::glob(&path).into_iter().filter(|path| !path.is_dir()));
        }
        Ok(files)
    }

    fn keyword(&mut self, line: &Line, keyword: &str, applies: bool, at: &Place) -> Checked<()> {
        if keyword == "user" && line.arguments.iter().any(|user| user.contains('%') || user.contains("${")) {
            // Releases of ssh(1) differ in whether these are tokens.
            return Err(Trouble::CannotTell(format!("{:?}", line.arguments.concat())));
        }
        if setting::set(&mut self.found, keyword, line, applies, at)?
            || self.canonicalization.set(keyword, line, applies, at)?
        {
            return Ok(());
        }
        if keyword == "ignoreunknown" {
            let [names] = &line.arguments[..] else { return Err("it takes one list of keywords".into()) };
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
                    "it is not supported and would change where or how it connects to {}; {instead}, take it out for \
                     this host, or use another file (-F)",
                    self.query.host
                )
                .into())
            }
            Met::Unknown => {
                let ignored = self.ignore_unknown.as_deref().unwrap_or_default();
                if pattern::list_matches(ignored.split(','), keyword) {
                    return Ok(());
                }
                Err(Trouble::CannotTell("it is no keyword that Sortie knows (see IgnoreUnknown), and".into()))
            }
        }
    }
}
