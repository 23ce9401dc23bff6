//! What was asked for, once it is known to be harmless: no name, version or option of a request can be taken for something
//! else by any manager. Knows no manager but by its table.

use sortie_protocol::command::pkg_ensure::PkgEnsure;

use super::{MANAGERS, Manager, find};
use crate::failure::Failure;

/// Most packages in one command.
const MOST_NAMES: usize = 1000;

/// Longest name, version or option, in bytes.
const LONGEST: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Present,
    Absent,
    Latest,
}

pub(crate) struct Request {
    pub(crate) manager: &'static Manager,
    /// The program of the manager: it may have several names.
    pub(crate) program: &'static str,
    pub(crate) state: State,
    /// At least one, each once.
    pub(crate) names: Vec<String>,
    pub(crate) version: Option<String>,
    pub(crate) options: Vec<String>,
    pub(crate) update_cache: bool,
}

impl Request {
    /// Nothing at all: for looking at what is installed.
    ///
    /// # Errors
    /// `NOT_FOUND` where the host has no package manager.
    pub(crate) fn nothing() -> Result<Self, Failure> {
        let (manager, program) = find("")?;
        Ok(Self {
            manager,
            program,
            state: State::Present,
            names: Vec::new(),
            version: None,
            options: Vec::new(),
            update_cache: false,
        })
    }

    /// # Errors
    /// `INVALID_PARAMS` naming the field; `NOT_FOUND` where the host has no such manager.
    pub(crate) fn new(params: PkgEnsure) -> Result<Self, Failure> {
        let PkgEnsure { name, names, version, state, manager: wanted, options, update_cache } = params;
        let state = match state.as_str() {
            "present" => State::Present,
            "absent" => State::Absent,
            "latest" => State::Latest,
            other => {
                return Err(refuse(
                    "state",
                    &format!("invalid state: {other:?}; it is present, absent or latest"),
                ));
            }
        };
        let several = !names.is_empty();
        let field = if several { "names" } else { "name" };
        let asked = match (name.is_empty(), several) {
            (true, false) => return Err(refuse("name", "is required (or names)")),
            (false, true) => return Err(refuse("names", "not together with name")),
            (false, false) => vec![name],
            (true, true) => names,
        };
        if asked.len() > MOST_NAMES {
            return Err(refuse("names", "at most 1000 in one command"));
        }
        if !wanted.is_empty() && !MANAGERS.iter().any(|manager| manager.name == wanted) {
            let known = "apt, dnf, yum, zypper, pacman or apk";
            return Err(refuse("manager", &format!("{wanted:?} is not one of {known}")));
        }
        let mut names = Vec::with_capacity(asked.len());
        for name in asked {
            if !is_name(&name) {
                let rule = "letters, digits and + . _ - after a letter or digit";
                return Err(refuse(
                    field,
                    &format!("{name:?} is no name of a package: {rule}, with apt also :ARCHITECTURE"),
                ));
            }
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let version = Some(version).filter(|version| !version.is_empty());
        if let Some(version) = &version {
            if several {
                return Err(refuse("version", "not together with names"));
            }
            if state != State::Present {
                return Err(refuse("version", "only with state present"));
            }
            if !is_version(version) {
                let rule = "letters, digits and . + ~ : ^ _ - after a letter or digit";
                return Err(refuse("version", &format!("{version:?} is no version: {rule}")));
            }
        }
        for option in &options {
            if !is_option(option) {
                let rule = "one word that begins with - and has no control characters";
                return Err(refuse("options", &format!("{option:?} is no option: {rule}")));
            }
        }
        let (manager, program) = find(&wanted)?;
        if manager.name != "apt" && names.iter().any(|name| name.contains(':')) {
            return Err(refuse(field, &format!("{} takes no : in a name", manager.name)));
        }
        if let Some(option) = options.iter().find(|option| moves_root(option, manager)) {
            return Err(refuse(
                "options",
                &format!("{option:?} would make it work on another system than this one"),
            ));
        }
        Ok(Self { manager, program, state, names, version, options, update_cache })
    }
}

fn refuse(field: &str, why: &str) -> Failure {
    Failure::params(format!("{field}: {why}"))
}

/// Debian policy 5.6.1, rpm, pacman and apk together, without what a shell glob, a path, a comparison or an option could begin
/// with; for apt an architecture may follow (`libc6:i386`).
fn is_name(name: &str) -> bool {
    let (name, arch) = name.split_once(':').unwrap_or((name, "any"));
    is_word(name, b"+._-") && is_word(arch, b"-")
}

/// deb-version(7), rpm-version(7), vercmp(8) and apk-package(5) together, with the same omissions.
pub(crate) fn is_version(version: &str) -> bool {
    is_word(version, b".+~:^_-")
}

/// Begins with a letter or digit, and goes on with those and `others`.
fn is_word(word: &str, others: &[u8]) -> bool {
    let bytes = word.as_bytes();
    bytes.len() <= LONGEST
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || others.contains(byte))
}

/// `--` alone would end the options.
fn is_option(option: &str) -> bool {
    option.starts_with('-')
        && !option.trim_start_matches('-').is_empty()
        && option.len() <= LONGEST
        && !option.contains(char::is_control)
}

/// Whether an option names another root or database. Long options may be abbreviated (getopt_long(3)), the names of apt's
/// configuration are the same in capitals (apt.conf(5)).
pub(super) fn moves_root(option: &str, manager: &Manager) -> bool {
    let name = option.split('=').next().unwrap_or(option);
    manager.roots.split(' ').any(|root| {
        let begins = option.get(..root.len()).is_some_and(|start| match manager.name {
            "apt" => start.eq_ignore_ascii_case(root),
            _ => start == root,
        });
        begins || (name.len() > 4 && name.starts_with("--") && !root.contains('=') && root.starts_with(name))
    })
}
