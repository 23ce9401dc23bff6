//! The part of ssh_config(5) that Sortie obeys, and a strict reading of the rest.
//!
//! A keyword that would change where or how a connection is made is obeyed or refused by name, never ignored; one
//! without bearing on a session is passed over. Nothing here opens a connection or knows russh.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::pattern;
use crate::target::{check_host, check_user, parse_port};

/// How host keys without an entry in known_hosts are met. There is no "off".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostKeyPolicy {
    /// Refuse.
    #[default]
    Strict,
    /// Add to known_hosts and go on. A changed or revoked key is refused all the same.
    AcceptNew,
}

/// What the configuration says about one host. `None` and empty mean: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// `HostName`, tokens expanded.
    pub host_name: Option<String>,
    /// `User`.
    pub user: Option<String>,
    /// `Port`.
    pub port: Option<u16>,
    /// `IdentityFile`, all of them in order, `~` and tokens not yet expanded. `none` stands for itself.
    pub identity_files: Vec<String>,
    /// `IdentitiesOnly`.
    pub identities_only: Option<bool>,
    /// `UserKnownHostsFile`, not yet expanded; empty for `none`.
    pub user_known_hosts: Option<Vec<String>>,
    /// `GlobalKnownHostsFile`; empty for `none`.
    pub global_known_hosts: Option<Vec<String>>,
    /// `StrictHostKeyChecking`.
    pub host_key_policy: Option<HostKeyPolicy>,
    /// `KexAlgorithms` as written, with a leading `+`, `-` or `^` where there is one.
    pub kex_algorithms: Option<String>,
    /// What a user should know, such as a weaker setting than we are ready to use.
    pub warnings: Vec<String>,
}

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

/// One configuration file, read.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// Its path, for errors.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// Where a relative `Include` is looked for: `~/.ssh` for a user's file, `/etc/ssh` for the system's.
    pub include_base: Option<PathBuf>,
}

/// Which configuration files count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ConfigSource {
    /// `~/.ssh/config`, then `/etc/ssh/ssh_config`; each may be missing.
    #[default]
    Default,
    /// This file alone (`-F`); it must be there.
    File(PathBuf),
    /// No file at all (`-F none`).
    None,
}

impl ConfigSource {
    /// Reads the files.
    ///
    /// # Errors
    /// The path and why it cannot be read.
    pub fn read(&self, home: Option<&Path>) -> Result<Vec<ConfigFile>, (PathBuf, std::io::Error)> {
        let of_user = home.map(|home| home.join(".ssh"));
        let (paths, must_exist) = match self {
            Self::Default => {
                let user = of_user.clone().map(|directory| (directory.join("config"), Some(directory)));
                let system = ("/etc/ssh/ssh_config".into(), Some("/etc/ssh".into()));
                (user.into_iter().chain([system]).collect(), false)
            }
            Self::File(path) => (vec![(path.clone(), of_user)], true),
            Self::None => (Vec::new(), false),
        };
        let mut files = Vec::new();
        for (path, include_base) in paths {
            match std::fs::read(&path) {
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    files.push(ConfigFile { path, text, include_base });
                }
                Err(error) if !must_exist && error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err((path, error)),
            }
        }
        Ok(files)
    }
}

/// What `files`, in this order, say about `host`. The first value of a keyword wins; `IdentityFile`s add up. `home` is
/// the directory that `~` in an `Include` stands for.
///
/// # Errors
/// [`ConfigError`] for a line that applies to `host` and is malformed, unknown, or not supported.
pub fn lookup(files: &[ConfigFile], host: &str, home: Option<&Path>) -> Result<HostConfig, ConfigError> {
    let mut reader =
        Reader { host, home, found: HostConfig::default(), ignore_unknown: Vec::new(), seen: HashMap::new() };
    for file in files {
        reader.read(file, 0)?;
    }
    if let Some(name) = &reader.found.host_name {
        let expanded = expand_host_name(name, host);
        let at = reader.seen.get("hostname").cloned();
        let checked = expanded.and_then(|name| check_host(&name).map(|()| name));
        reader.found.host_name = Some(checked.map_err(|reason| {
            let (file, line) = at.unwrap_or_default();
            ConfigError { file, line, reason: format!("HostName: {reason}") }
        })?);
    }
    Ok(reader.found)
}

/// How a keyword is met that is not obeyed.
enum Met {
    /// It has no bearing on a session.
    PassedOver,
    /// It changes where or how a connection is made. With one of these values it does not.
    Refused { unless: &'static [&'static str] },
    /// Nobody knows it.
    Unknown,
}

/// Keywords of ssh_config(5) that have no bearing on a session of ours: logging, multiplexing, forwarding, terminals,
/// prompts, and checks that we make more strictly anyway.
const PASSED_OVER: &[&str] = &[
    "addkeystoagent",
    "batchmode",
    "canonicaldomains",
    "canonicalizefallbacklocal",
    "canonicalizemaxdots",
    "canonicalizepermittedcnames",
    "channeltimeout",
    "checkhostip",
    "clearallforwardings",
    "compression",
    "compressionlevel",
    "connectionattempts",
    "connecttimeout",
    "controlmaster",
    "controlpath",
    "controlpersist",
    "dynamicforward",
    "enableescapecommandline",
    "enablesshkeysign",
    "escapechar",
    "exitonforwardfailure",
    "fingerprinthash",
    "forkafterauthentication",
    "forwardagent",
    "forwardx11",
    "forwardx11timeout",
    "forwardx11trusted",
    "gatewayports",
    "gssapiauthentication",
    "gssapiclientidentity",
    "gssapidelegatecredentials",
    "gssapikexalgorithms",
    "gssapikeyexchange",
    "gssapirenewalforcesrekey",
    "gssapiserveridentity",
    "gssapitrustdns",
    "hashknownhosts",
    "hostbasedacceptedalgorithms",
    "hostbasedkeytypes",
    "ipqos",
    "localcommand",
    "localforward",
    "loglevel",
    "logverbose",
    "nohostauthenticationforlocalhost",
    "numberofpasswordprompts",
    "obscurekeystroketiming",
    "permitlocalcommand",
    "permitremoteopen",
    "protocol",
    "rekeylimit",
    "remoteforward",
    "requesttty",
    "securitykeyprovider",
    "sendenv",
    "serveralivecountmax",
    "serveraliveinterval",
    "setenv",
    "stdinnull",
    "streamlocalbindmask",
    "streamlocalbindunlink",
    "syslogfacility",
    "tcpkeepalive",
    "tunnel",
    "tunneldevice",
    "updatehostkeys",
    "useprivilegedport",
    "verifyhostkeydns",
    "versionaddendum",
    "visualhostkey",
    "warnweakcrypto",
    "xauthlocation",
];

/// Keywords that change where or how a connection is made, with the values that leave it as it is.
const REFUSED: &[(&str, &[&str])] = &[
    ("addressfamily", &["any"]),
    ("bindaddress", &[]),
    ("bindinterface", &[]),
    ("canonicalizehostname", &["no"]),
    ("casignaturealgorithms", &[]),
    ("certificatefile", &["none"]),
    ("challengeresponseauthentication", &["yes"]),
    ("ciphers", &[]),
    ("hostbasedauthentication", &["no"]),
    ("hostkeyalgorithms", &[]),
    ("hostkeyalias", &[]),
    ("identityagent", &["ssh_auth_sock"]),
    ("kbdinteractiveauthentication", &["yes"]),
    ("kbdinteractivedevices", &[]),
    ("knownhostscommand", &["none"]),
    ("macs", &[]),
    ("match", &[]),
    ("passwordauthentication", &["yes"]),
    ("pkcs11provider", &["none"]),
    ("preferredauthentications", &[]),
    ("proxycommand", &["none"]),
    ("proxyjump", &["none"]),
    ("proxyusefdpass", &["no"]),
    ("pubkeyacceptedalgorithms", &[]),
    ("pubkeyacceptedkeytypes", &[]),
    ("pubkeyauthentication", &["yes"]),
    ("refuseconnection", &[]),
    ("remotecommand", &["none"]),
    ("requiredrsasize", &[]),
    ("revokedhostkeys", &["none"]),
    ("sessiontype", &["default"]),
    ("smartcarddevice", &[]),
    ("tag", &[]),
];

fn how_met(keyword: &str) -> Met {
    if PASSED_OVER.contains(&keyword) {
        return Met::PassedOver;
    }
    match REFUSED.iter().find(|(name, _)| *name == keyword) {
        Some((_, unless)) => Met::Refused { unless },
        None => Met::Unknown,
    }
}

/// As deep as ssh(1) goes.
const INCLUDE_DEPTH: usize = 16;

struct Reader<'a> {
    host: &'a str,
    home: Option<&'a Path>,
    found: HostConfig,
    ignore_unknown: Vec<String>,
    /// Where each keyword that was obeyed stands.
    seen: HashMap<&'static str, (PathBuf, usize)>,
}

impl Reader<'_> {
    /// Reads one file whose first lines apply.
    fn read(&mut self, file: &ConfigFile, depth: usize) -> Result<(), ConfigError> {
        let mut applies = true;
        for (index, line) in file.text.lines().enumerate() {
            let fail = |reason: String| ConfigError { file: file.path.clone(), line: index + 1, reason };
            let Some((keyword, arguments)) = split_line(line).map_err(fail)? else { continue };
            let lower = keyword.to_ascii_lowercase();
            match lower.as_str() {
                "host" => {
                    if arguments.is_empty() {
                        return Err(fail("Host needs at least one pattern".into()));
                    }
                    applies = pattern::list_matches(arguments.iter().map(String::as_str), self.host);
                }
                "match" => {
                    applies = self.match_may_apply(&arguments);
                    let always = matches!(&arguments[..], [only] if only.eq_ignore_ascii_case("all"));
                    if applies && !always {
                        return Err(fail(
                            "Match is not supported yet, and this one may apply; use Host, or another file (-F)".into(),
                        ));
                    }
                }
                _ if !applies => {}
                "include" => {
                    if depth == INCLUDE_DEPTH {
                        return Err(fail("Include goes too deep; does a file include itself?".into()));
                    }
                    for included in self.included(&arguments, file).map_err(fail)? {
                        self.read(&included, depth + 1)?;
                    }
                }
                _ => self.keyword(&keyword, &lower, &arguments, (&file.path, index + 1)).map_err(fail)?,
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

    fn keyword(
        &mut self,
        keyword: &str,
        lower: &str,
        arguments: &[String],
        at: (&Path, usize),
    ) -> Result<(), String> {
        let one = || match arguments {
            [value] if !value.is_empty() => Ok(value.as_str()),
            _ => Err(format!("{keyword} takes one value")),
        };
        let files = || match arguments {
            [] => Err(format!("{keyword} takes at least one file")),
            [none] if none.eq_ignore_ascii_case("none") => Ok(Vec::new()),
            files => Ok(files.to_vec()),
        };
        let found = &mut self.found;
        match lower {
            "hostname" => {
                let value = one()?;
                if found.host_name.is_none() {
                    found.host_name = Some(value.to_owned());
                    self.seen.insert("hostname", (at.0.to_owned(), at.1));
                }
            }
            "user" => {
                let value = one()?;
                check_user(value)?;
                if value.contains('%') {
                    return Err("tokens in User are not supported; write the name".into());
                }
                found.user.get_or_insert_with(|| value.to_owned());
            }
            "port" => {
                let port = parse_port(one()?)?;
                found.port.get_or_insert(port);
            }
            "identityfile" => found.identity_files.push(one()?.to_owned()),
            "identitiesonly" => {
                let value = yes_or_no(keyword, one()?)?;
                found.identities_only.get_or_insert(value);
            }
            "userknownhostsfile" => {
                let value = files()?;
                found.user_known_hosts.get_or_insert(value);
            }
            "globalknownhostsfile" => {
                let value = files()?;
                found.global_known_hosts.get_or_insert(value);
            }
            "stricthostkeychecking" => {
                let value = one()?.to_ascii_lowercase();
                let policy = match value.as_str() {
                    // Nobody can be asked here, so "ask" is a no.
                    "yes" | "ask" => HostKeyPolicy::Strict,
                    "accept-new" | "no" | "off" => HostKeyPolicy::AcceptNew,
                    other => return Err(format!("StrictHostKeyChecking cannot be {other:?}")),
                };
                if found.host_key_policy.is_none() && matches!(value.as_str(), "no" | "off") {
                    found.warnings.push(format!(
                        "{} line {}: StrictHostKeyChecking {value} is read as accept-new: unknown host keys are \
                         added, changed ones refused",
                        at.0.display(),
                        at.1
                    ));
                }
                found.host_key_policy.get_or_insert(policy);
            }
            "kexalgorithms" => {
                let value = one()?;
                found.kex_algorithms.get_or_insert_with(|| value.to_owned());
            }
            "ignoreunknown" => self.ignore_unknown.extend(one()?.split(',').map(str::to_ascii_lowercase)),
            _ => return self.not_obeyed(keyword, lower, arguments),
        }
        Ok(())
    }

    fn not_obeyed(&self, keyword: &str, lower: &str, arguments: &[String]) -> Result<(), String> {
        match how_met(lower) {
            Met::PassedOver => Ok(()),
            Met::Refused { unless } => {
                let harmless =
                    matches!(arguments, [value] if unless.contains(&value.to_ascii_lowercase().as_str()));
                if harmless {
                    return Ok(());
                }
                Err(format!(
                    "{keyword} is not supported yet and would change where or how it connects to {}; \
                     take it out for this host, or use another file (-F)",
                    self.host
                ))
            }
            Met::Unknown => {
                if pattern::list_matches(self.ignore_unknown.iter().map(String::as_str), lower) {
                    return Ok(());
                }
                Err(format!("{keyword} is no keyword of ssh_config(5) that Sortie knows; see IgnoreUnknown"))
            }
        }
    }
}

fn yes_or_no(keyword: &str, value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err(format!("{keyword} is yes or no, not {value:?}")),
    }
}

/// Keyword and arguments of a line; `None` for a blank or comment line. Quoting is that of ssh_config(5): double or
/// single quotes around an argument, backslash before a quote, a backslash, or (outside quotes) a space.
fn split_line(line: &str) -> Result<Option<(String, Vec<String>)>, String> {
    let line = line.trim_matches([' ', '\t', '\r', '\x0c']);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line.find([' ', '\t', '=', '"']).unwrap_or(line.len());
    let (keyword, rest) = line.split_at(end);
    if keyword.is_empty() {
        return Err("no keyword at the beginning of the line".into());
    }
    let rest = rest.trim_start_matches([' ', '\t']);
    let rest = rest.strip_prefix('=').unwrap_or(rest);
    Ok(Some((keyword.to_owned(), split_arguments(rest)?)))
}

fn split_arguments(text: &str) -> Result<Vec<String>, String> {
    let mut arguments = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
        match chars.peek() {
            None | Some('#') => return Ok(arguments),
            Some(_) => {}
        }
        let mut argument = String::new();
        let mut quote = None;
        while let Some(c) = chars.peek().copied() {
            if quote.is_none() && matches!(c, ' ' | '\t') {
                break;
            }
            chars.next();
            match c {
                '\\' => match chars.peek() {
                    Some('"' | '\'' | '\\') => argument.extend(chars.next()),
                    Some(' ') if quote.is_none() => argument.extend(chars.next()),
                    _ => argument.push('\\'),
                },
                '"' | '\'' if quote == Some(c) => quote = None,
                '"' | '\'' if quote.is_none() => quote = Some(c),
                c => argument.push(c),
            }
        }
        if quote.is_some() {
            return Err("a quote is never closed".into());
        }
        arguments.push(argument);
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
#[path = "ssh_config_tests.rs"]
mod tests;
