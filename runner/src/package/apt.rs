//! apt and dpkg: apt-get(8), dpkg-query(1), apt-cache(8).

use super::locks::Lock;
use super::{Manager, Row, Step, piped};

/// Waiting for the lock is done here, not there: `-qq` leaves what is read here and errors. Configuration files that the
/// administrator changed are kept, new ones take the package's (dpkg(1), --force-confdef, --force-confold).
macro_rules! apt_get {
    ($rest:literal) => {
        concat!(
            "apt-get -qq -y -oAPT::Status-Fd=1 -oDpkg::Use-Pty=0 -oDpkg::Options::=--force-confdef -oDpkg::Options::=--force-confold ",
            $rest
        )
    };
}

pub(super) static APT: Manager = Manager {
    name: "apt",
    programs: &["apt-get"],
    env: &[
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
        ("APT_LISTCHANGES_FRONTEND", "none"),
        ("APT_LISTBUGS_FRONTEND", "none"),
    ],
    installed: "dpkg-query -W -f=${Package}|${Architecture}|${Version}|${db:Status-Status}\\n",
    // It reads its whole database anyway, and dpkg's own row says what the machine's architecture is.
    installed_by_name: false,
    read_installed: installed,
    // It says whether a package of exactly that name exists: apt-get would take the name for a pattern.
    available: "apt-cache madison",
    read_available: madison,
    newest: None,
    // Even a simulation would write down what its planner was asked, in /var/log/apt.
    simulate_install: "apt-get -qq -s -oDir::Log::Planner= install",
    simulate_remove: "apt-get -qq -s -oDir::Log::Planner= remove",
    read_plan: |text, _| plan(text),
    download: Some(apt_get!("-d install")),
    install: apt_get!("install"),
    remove: apt_get!("remove"),
    upgrade: None,
    refresh: "apt-get -qq -oAPT::Status-Fd=1 update",
    older_option: " --allow-downgrades",
    older_verb: "",
    is_older: "dpkg --compare-versions {A} lt {B}",
    version_sign: '=',
    release_optional: false,
    fine: &[],
    locks: &[
        Lock::Posix("/var/lib/dpkg/lock-frontend"),
        Lock::Posix("/var/lib/dpkg/lock"),
        Lock::Posix("/var/cache/apt/archives/lock"),
        Lock::Posix("/var/lib/apt/lists/lock"),
    ],
    roots: "-oDir -oRootDir --option=Dir --option=RootDir -c --config-file --admindir --root --instdir",
    progress: status,
};

/// Packages by dpkg-query: those of another architecture than the machine's are named with it, as apt does.
fn installed(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut native = String::new();
    for line in text.lines() {
        let (Some(mut row), Some(status)) = (piped(line).pop(), line.rsplit('|').next()) else { continue };
        if row.name == "dpkg" {
            native.clone_from(&row.arch);
        }
        // Removed but not purged, or only known by name: not there. A pending trigger is another package's business.
        if matches!(status, "config-files" | "not-installed") {
            continue;
        }
        row.whole = status == "installed" || status.starts_with("triggers-");
        rows.push(row);
    }
    for row in &mut rows {
        if row.arch != native && row.arch != "all" {
            row.name = format!("{}:{}", row.name, row.arch);
        }
    }
    rows.dedup();
    rows
}

/// `  th-hello |        1.1 | file:/srv/repo ./ Packages`; sources have it as well (`… Sources`).
fn madison(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let mut fields = line.split('|').map(str::trim);
        let (name, version, source) = (fields.next()?, fields.next()?, fields.next()?);
        source.ends_with("Packages").then(|| Row::new(name, "", version))
    };
    text.lines().filter_map(row).collect()
}

/// `Inst th-hello [1.0] (1.1 localhost [all])`, `Remv th-hello [1.0]`.
fn plan(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let (verb, rest) = line.split_once(' ')?;
        let name = rest.split(' ').next()?;
        match verb {
            "Inst" => Some(Row::new(name, "", rest.split_once('(')?.1.split([' ', ')']).next()?)),
            "Remv" | "Purg" => Some(Row::new(name, "", "")),
            _ => None,
        }
    };
    text.lines().filter_map(row).collect()
}

/// `pmstatus:th-hello:33.3333:Unpacking th-hello (amd64)`, `dlstatus:1:49.5652:Retrieving file 1 of 2`
/// (README.progress-reporting of apt).
fn status(line: &str) -> Option<Step> {
    let rest = line.strip_prefix("pmstatus:").or_else(|| line.strip_prefix("dlstatus:"))?;
    // The name of a package may have an architecture behind a colon: the number is what is found first.
    let (number, message) = rest.match_indices(':').find_map(|(at, _)| {
        let (number, message) = rest[at + 1..].split_once(':')?;
        Some((number.split('.').next()?.parse().ok()?, message))
    })?;
    Some(Step { message: message.to_owned(), current: number, total: 100, unit: "percent" })
}

/// Whether dpkg was killed in the middle of writing its database (`dpkg --configure -a` mends that): numbered files are left.
pub(crate) fn was_interrupted() -> bool {
    let updates = std::fs::read_dir("/var/lib/dpkg/updates");
    updates
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

/// Mends that.
pub(crate) const MEND: &str = "dpkg --force-confdef --force-confold --configure -a";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_but_not_purged_is_not_there_and_what_is_half_configured_is_not_whole() {
        let text = "dpkg|amd64|1.21.23|installed\nlibc6|amd64|2.36-9+deb12u14|installed\nlibc6|i386|2.36|installed\n\
                    th-svc|all|1.0|config-files\nth-half|all|1.0|half-configured\nth-new||1|not-installed\n\
                    th-trig|all|2:1.0~rc1|triggers-pending\n";
        let rows = installed(text);
        let seen: Vec<_> =
            rows.iter().map(|row| (row.name.as_str(), row.version.as_str(), row.whole)).collect();
        assert_eq!(
            seen,
            [
                ("dpkg", "1.21.23", true),
                ("libc6", "2.36-9+deb12u14", true),
                ("libc6:i386", "2.36", true),
                ("th-half", "1.0", false),
                ("th-trig", "2:1.0~rc1", true)
            ]
        );
        assert!(rows[1].is("libc6") && rows[1].is("libc6:amd64") && !rows[1].is("libc6:i386"));
        assert!(rows[2].is("libc6:i386") && !rows[2].is("libc6"));
    }

    #[test]
    fn available_versions_are_read_from_madison() {
        let text = "  th-hello |        1.1 | file:/srv/repo ./ Packages\n  th-hello |        1.0 | file:/srv/repo ./ Packages\n\
                    \x20    bash | 5.2.15-2 | http://mirror.example/debian bookworm/main Sources\n";
        assert_eq!(madison(text), [Row::new("th-hello", "", "1.1"), Row::new("th-hello", "", "1.0")]);
    }

    #[test]
    fn a_simulation_says_what_would_be() {
        let text = "Inst th-lib (1.0 localhost [all])\nInst th-hello [1.0] (1.1 localhost [all]) []\nRemv th-old [0.9]\n\
                    Conf th-lib (1.0 localhost [all])\nInst libc6:i386 (2.36-9 Debian:12 [i386])\n";
        assert_eq!(
            plan(text),
            [
                Row::new("th-lib", "", "1.0"),
                Row::new("th-hello", "", "1.1"),
                Row::new("th-old", "", ""),
                Row::new("libc6:i386", "", "2.36-9")
            ]
        );
    }

    #[test]
    fn progress_is_read_from_the_status_lines() {
        let step = |message: &str, current| {
            Some(Step { message: message.to_owned(), current, total: 100, unit: "percent" })
        };
        assert_eq!(
            status("pmstatus:th-lib:11.1111:Unpacking th-lib (amd64)"),
            step("Unpacking th-lib (amd64)", 11)
        );
        assert_eq!(status("pmstatus:libc6:i386:50.0:Installed libc6:i386"), step("Installed libc6:i386", 50));
        assert_eq!(status("dlstatus:2:49.5652:Retrieving file 2 of 2"), step("Retrieving file 2 of 2", 49));
        assert_eq!(status("Setting up th-lib (1.0) ..."), None);
        assert_eq!(status("pmstatus:"), None);
    }
}
