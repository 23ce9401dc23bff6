//! Package managers: a table each of what to run and how to read what it says. Knows no commands of the protocol and runs
//! nothing itself; reading is done by pure functions from text to rows.

use crate::failure::Failure;
use crate::tool;
use sortie_protocol::ErrorCode;

mod apk;
mod rpm;
mod zypper;

pub(crate) mod apt;
pub(crate) mod changes;
pub(crate) mod locks;
pub(crate) mod pacman;
pub(crate) mod request;
pub(crate) mod said;

use locks::Lock;

/// A manager of packages. Templates are words apart by spaces, `@` is the manager's program; options and packages follow.
pub(crate) struct Manager {
    /// As `manager` names it.
    pub(crate) name: &'static str,
    /// Its program: the first that the host has.
    programs: &'static [&'static str],
    /// Variables that keep it from asking.
    pub(crate) env: &'static [(&'static str, &'static str)],
    /// Lists what is installed: of the packages that follow, or all.
    pub(crate) installed: &'static str,
    /// Whether it is asked for the packages of the request alone, which is quicker.
    pub(crate) installed_by_name: bool,
    pub(crate) read_installed: Read,
    /// Lists the versions that the sources have of the packages that follow.
    pub(crate) available: &'static str,
    pub(crate) read_available: Read,
    /// As `available`, the newest alone, where it takes exact versions to bring packages to it.
    pub(crate) newest: Option<&'static str>,
    /// Says what an installation or a removal would do.
    pub(crate) simulate_install: &'static str,
    pub(crate) simulate_remove: &'static str,
    pub(crate) read_plan: fn(&str, removing: bool) -> Vec<Row>,
    /// Fetches what an installation needs; none where the manager cannot do that by itself.
    pub(crate) download: Option<&'static str>,
    pub(crate) install: &'static str,
    pub(crate) remove: &'static str,
    /// Brings installed packages to their newest version, where `install` does not: for simulation and for good.
    pub(crate) upgrade: Option<(&'static str, &'static str)>,
    /// Fetches the lists of the sources.
    pub(crate) refresh: &'static str,
    /// An option that allows an older version.
    pub(crate) older_option: &'static str,
    /// A verb in the place of `install` for an older version.
    pub(crate) older_verb: &'static str,
    /// Says whether version `{A}` is older than `{B}`: by `<` or `-` as the first character, or by exit status 0 where it says nothing.
    pub(crate) is_older: &'static str,
    /// Between a package and its exact version.
    pub(crate) version_sign: char,
    /// Whether the release may be left out of a version.
    pub(crate) release_optional: bool,
    /// Exit statuses that are success besides 0.
    pub(crate) fine: &'static [i32],
    pub(crate) locks: &'static [Lock],
    /// Beginnings of options that lead to another root or database.
    roots: &'static str,
    pub(crate) progress: fn(&str) -> Option<Step>,
}

/// Reads packages from what was printed.
pub(crate) type Read = fn(&str) -> Vec<Row>;

/// A package in a version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Empty where the manager does not say.
    pub(crate) arch: String,
    /// In a plan, empty for a package that goes away.
    pub(crate) version: String,
    /// Neither half installed nor half configured.
    pub(crate) whole: bool,
}

impl Row {
    fn new(name: &str, arch: &str, version: &str) -> Self {
        Self { name: name.to_owned(), arch: arch.to_owned(), version: version.to_owned(), whole: true }
    }

    /// Whether a user who writes `wanted` means this package: by its name alone or with its architecture.
    pub(crate) fn is(&self, wanted: &str) -> bool {
        let Some(arch) = wanted.strip_prefix(self.name.as_str()) else { return false };
        arch.is_empty() || arch.strip_prefix([':', '.']).is_some_and(|arch| arch == self.arch)
    }

    /// Whether it is the same package, in whatever version.
    pub(crate) fn is_other_version_of(&self, other: &Self) -> bool {
        self.name == other.name && (self.arch == other.arch || self.arch.is_empty() || other.arch.is_empty())
    }
}

/// How far a manager is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) message: String,
    pub(crate) current: i64,
    pub(crate) total: i64,
    pub(crate) unit: &'static str,
}

/// In the order in which the first one that the host has is taken.
pub(crate) const MANAGERS: &[&Manager] =
    &[&apt::APT, &rpm::DNF, &rpm::YUM, &zypper::ZYPPER, &pacman::PACMAN, &apk::APK];

impl Manager {
    /// Whether an installed version is the asked one.
    pub(crate) fn is_version(&self, asked: &str, found: &str) -> bool {
        // Who writes no epoch means any (rpm-version(7), vercmp(8)).
        let bare = match found.split_once(':') {
            Some((_, bare)) if self.release_optional && !asked.contains(':') => bare,
            _ => found,
        };
        let release = bare.strip_prefix(asked).and_then(|rest| rest.strip_prefix('-'));
        bare == asked || (self.release_optional && release.is_some_and(|release| !release.contains('-')))
    }

    /// How to ask for exactly this version.
    pub(crate) fn exact(&self, wanted: &str, row: &Row) -> String {
        let arch = if wanted.len() > row.name.len() { &wanted[row.name.len()..] } else { "" };
        if self.version_sign == '-' {
            // rpm's NAME-VERSION-RELEASE.ARCH
            format!("{}-{}{arch}", row.name, row.version)
        } else {
            format!("{wanted}{}{}", self.version_sign, row.version)
        }
    }

    fn program(&self) -> Option<&'static str> {
        self.programs.iter().copied().find(|program| tool::exists(program))
    }
}

/// The manager of this name, or the first that the host has.
fn find(wanted: &str) -> Result<(&'static Manager, &'static str), Failure> {
    let candidates = MANAGERS.iter().filter(|manager| wanted.is_empty() || manager.name == wanted);
    let found = candidates.filter_map(|manager| Some((*manager, manager.program()?))).next();
    found.ok_or_else(|| {
        let what = if wanted.is_empty() { "no package manager that Sortie knows" } else { "no such manager" };
        let message =
            format!("manager: this host has {what} (apt-get, dnf, yum, zypper, pacman or apk): {wanted}");
        Failure::new(ErrorCode::NotFound, message.trim_end_matches([':', ' ']))
    })
}

/// Lines `NAME|ARCH|VERSION`, as dpkg-query, rpm and dnf are asked for.
fn piped(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let mut fields = line.split('|');
        Some(Row::new(fields.next()?, fields.next()?, fields.next()?))
    };
    text.lines().filter_map(row).collect()
}

/// Lines that count: `(1/2) Installing …`, `[1/2] …`, `… 1/2`.
fn counted(line: &str) -> Option<Step> {
    let line = line.trim();
    let begin = line.strip_prefix(['(', '[']).and_then(|rest| rest.split_once([')', ']']));
    let (count, rest) = begin.or_else(|| line.rsplit_once(' ').map(|(rest, count)| (count, rest)))?;
    let (current, total) = count.trim().split_once('/')?;
    let step = |message: String| {
        Some(Step {
            message,
            current: current.trim().parse().ok()?,
            total: total.parse().ok()?,
            unit: "steps",
        })
    };
    // What is drawn behind the name is no news: percentages, dots.
    let words: Vec<&str> = rest
        .split_whitespace()
        .take_while(|word| !word.starts_with("100%") && !word.starts_with("[."))
        .collect();
    step(words.join(" "))
}

#[cfg(test)]
mod tests;
