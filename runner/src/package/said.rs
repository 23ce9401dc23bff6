//! Why a manager failed, by what it printed. What is not known stays `PKG_FAILED` with its last lines.

use sortie_protocol::ErrorCode;

use super::Manager;
use crate::failure::Failure;
use crate::tool::Ran;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    NoSpace,
    ReadOnly,
    Locked,
    Source,
    Script,
    NotFound,
    Conflict,
}

/// What is looked for, the surer causes first: a script may complain of locks and networks of its own, and a source that did not
/// answer also makes packages unknown.
const CAUSES: &[(Cause, &[&str])] = &[
    (
        Cause::NoSpace,
        &[
            "No space left on device",
            "enough free space",
            "more space needed",
            "Disk quota exceeded",
            "not enough free disk space",
        ],
    ),
    (Cause::ReadOnly, &["Read-only file system"]),
    (
        Cause::Script,
        &[
            "script subprocess returned error",
            "maintainer script",
            "scriptlet failed",
            "failed in buffer",
            "script: exited with error",
            "command failed to execute correctly",
        ],
    ),
    (
        Cause::Locked,
        &[
            "Could not get lock",
            "Unable to lock directory",
            "Unable to acquire the dpkg frontend lock",
            "locked by another process",
            "unable to lock database",
            "Unable to lock database",
            "System management is locked",
            "Failed to obtain the transaction lock",
        ],
    ),
    (
        Cause::Source,
        &[
            "Failed to fetch",
            "Temporary failure resolving",
            "Could not resolve",
            "Could not connect",
            "Some index files failed to download",
            "Hash Sum mismatch",
            "Failed to download metadata",
            "Curl error",
            "Cannot download",
            "failed retrieving file",
            "failed to synchronize",
            "Download (curl) error",
            "Valid metadata not found",
            "File not found on medium",
            "Can't provide file",
            "temporary error (try again later)",
            "Cannot retrieve",
            "Error downloading packages",
            "network error",
        ],
    ),
    (
        Cause::NotFound,
        &[
            "Unable to locate package",
            "has no installation candidate",
            "was not found",
            "is not installed",
            "database file for",
            "No matching",
            "No match for argument",
            "Unable to find a match",
            "No package ",
            "No provider of",
            "target not found",
            "no such package",
            "unable to select packages",
        ],
    ),
    (
        Cause::Conflict,
        &[
            "Held packages were changed",
            "Essential packages",
            "essential packages",
            "protected packages",
            "breaks dependency",
            "held broken packages",
        ],
    ),
];

fn cause(ran: &Ran) -> Option<Cause> {
    let said = [String::from_utf8_lossy(&ran.stderr), String::from_utf8_lossy(&ran.stdout)];
    let found = |needles: &[&str]| needles.iter().any(|needle| said.iter().any(|text| text.contains(needle)));
    CAUSES.iter().find(|(_, needles)| found(needles)).map(|(cause, _)| *cause)
}

/// Whether somebody else had the manager's lock: nothing was done.
pub(crate) fn is_locked(ran: &Ran) -> bool {
    cause(ran) == Some(Cause::Locked)
}

/// Whether it knows no such package.
pub(crate) fn is_not_found(ran: &Ran) -> bool {
    cause(ran) == Some(Cause::NotFound)
}

/// Whether a source could not be read, which some managers take lightly.
pub(crate) fn is_source(ran: &Ran) -> bool {
    cause(ran) == Some(Cause::Source)
}

/// The manager could not do `what`.
pub(crate) fn failure(manager: &Manager, what: &str, ran: &Ran) -> Failure {
    let cause = cause(ran);
    let (code, advice) = match cause {
        Some(Cause::NoSpace) => (ErrorCode::NoSpace, "there is no space left"),
        Some(Cause::ReadOnly) => (ErrorCode::ReadOnly, "the file system is read-only"),
        Some(Cause::Locked) => (ErrorCode::Locked, "somebody else works with it"),
        Some(Cause::Source) => (ErrorCode::PkgFailed, "a source did not deliver; try again later"),
        Some(Cause::Script) => (ErrorCode::PkgFailed, "a script of a package failed"),
        Some(Cause::NotFound) => (ErrorCode::NotFound, "not to be had; update_cache refreshes the lists"),
        Some(Cause::Conflict) => (ErrorCode::Conflict, "other packages stand against it"),
        None => (ErrorCode::PkgFailed, "it failed"),
    };
    let message =
        format!("{} cannot {what}: {advice} (exit status {}): {}", manager.name, ran.exit_code, lines(ran));
    let failure = Failure::new(code, message).detail("exit_code", ran.exit_code.to_string());
    if cause == Some(Cause::Source) { failure.transient() } else { failure }
}

/// The last lines that are no progress.
fn lines(ran: &Ran) -> String {
    let keep = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let kept: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("pmstatus:") && !line.starts_with("dlstatus:"))
            .collect();
        kept.join("\n")
    };
    // The reason may stand in the one, the consequence in the other.
    crate::tool::last_lines(format!("{}\n{}", keep(&ran.stdout), keep(&ran.stderr)).as_bytes(), 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_known_by_what_was_printed() {
        let of = |stderr: &str| {
            let ran = Ran { exit_code: 1, stdout: Vec::new(), stderr: stderr.into(), left_running: 0 };
            cause(&ran)
        };
        for (said, expected) in [
            ("E: You don't have enough free space in /var/cache/apt/archives/.", Cause::NoSpace),
            (
                " cannot copy extracted data for './usr/share/th-big': failed to write (No space left on device)",
                Cause::NoSpace,
            ),
            ("dpkg: error: unable to create lock: Read-only file system", Cause::ReadOnly),
            (
                "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt-get)",
                Cause::Locked,
            ),
            ("System management is locked by the application with pid 105 (zypper).", Cause::Locked),
            ("ERROR: Unable to lock database: Resource temporarily unavailable", Cause::Locked),
            (
                "W: Failed to fetch http://127.0.0.1:9/x/./Packages  Could not connect to 127.0.0.1:9",
                Cause::Source,
            ),
            (
                "Error: Failed to download metadata for repo 'th': Cannot download repomd.xml\nNo match for argument: x",
                Cause::Source,
            ),
            ("error: failed retrieving file 'th.db' from 127.0.0.1:9 : Failed to connect", Cause::Source),
            ("WARNING: fetching http://x/APKINDEX.tar.gz: temporary error (try again later)", Cause::Source),
            (
                "dpkg: error processing package th-bad (--configure):\n installed th-bad package post-installation script subprocess returned error exit status 7",
                Cause::Script,
            ),
            // What a script says of locks and networks is its own affair.
            (
                "script subprocess returned error exit status 1\nE: Could not get lock /x\ncurl: Could not resolve host",
                Cause::Script,
            ),
            ("E: Unable to locate package nonex", Cause::NotFound),
            ("Error: Unable to find a match: nonex", Cause::NotFound),
            ("No provider of 'nonex' found.", Cause::NotFound),
            ("error: target not found: nonex", Cause::NotFound),
            ("ERROR: unable to select packages:\n  nonex (no such package):", Cause::NotFound),
            (
                "E: Held packages were changed and -y was used without --allow-change-held-packages.",
                Cause::Conflict,
            ),
            (":: removing th-lib breaks dependency 'th-lib' required by th-hello", Cause::Conflict),
        ] {
            assert_eq!(of(said), Some(expected), "{said}");
        }
        assert_eq!(of("Segmentation fault"), None);
    }
}
