//! dnf(8) in its versions 4 and 5, yum(8), and the rpm database under them and zypper.

use super::locks::Lock;
use super::{Manager, Row, counted, piped};

/// The rpm database, whoever works on it: rpm's own lock, at both of its places.
pub(super) const RPM_LOCKS: [Lock; 2] =
    [Lock::Posix("/usr/lib/sysimage/rpm/.rpm.lock"), Lock::Posix("/var/lib/rpm/.rpm.lock")];

pub(super) const INSTALLED: &str =
    "rpm -q --queryformat %{NAME}|%{ARCH}|%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\\n";

pub(super) const IS_OLDER: &str = "rpm --eval %{lua:print(rpm.vercmp(\"{A}\",\"{B}\"))}";

pub(super) static DNF: Manager = Manager {
    name: "dnf",
    programs: &["dnf", "dnf5", "dnf-3"],
    env: &[],
    installed: INSTALLED,
    installed_by_name: true,
    read_installed: installed,
    available: "@ -q repoquery --qf %{name}|%{arch}|%{evr}\\n",
    read_available: piped,
    // `install NAME` leaves an older version as it is, `install NAME-VERSION` does not.
    newest: Some("@ -q repoquery --latest-limit=1 --qf %{name}|%{arch}|%{evr}\\n"),
    simulate_install: "@ -y install --assumeno",
    simulate_remove: "@ -y remove --assumeno --setopt=clean_requirements_on_remove=False",
    read_plan: plan,
    download: Some("@ -y install --downloadonly"),
    // From what the download left: no network while the transaction runs.
    install: "@ -y -C install",
    // Only what was named, and what cannot be without it.
    remove: "@ -y -C remove --setopt=clean_requirements_on_remove=False",
    upgrade: None,
    refresh: "@ -y --refresh makecache",
    older_option: "",
    older_verb: "",
    is_older: IS_OLDER,
    version_sign: '-',
    release_optional: true,
    fine: &[],
    locks: &[
        Lock::Pid("/var/lib/dnf/rpmdb_lock.pid"),
        Lock::Pid("/var/cache/dnf/metadata_lock.pid"),
        Lock::Pid("/var/cache/dnf/download_lock.pid"),
        Lock::Pid("/run/yum.pid"),
        RPM_LOCKS[0],
        RPM_LOCKS[1],
    ],
    roots: "--installroot --setopt=installroot -c --config --setopt=persistdir",
    progress: counted,
};

/// yum 3, and dnf under that name.
pub(super) static YUM: Manager = Manager {
    name: "yum",
    programs: &["yum"],
    available: "@ -q --showduplicates list available",
    read_available: list,
    newest: None,
    upgrade: Some(("@ -y upgrade --assumeno", "@ -y -C upgrade")),
    refresh: "@ -y makecache",
    older_verb: " downgrade",
    ..DNF
};

/// rpm -q says `package NAME is not installed` among the rest.
pub(super) fn installed(text: &str) -> Vec<Row> {
    // Keys of the vendors are kept as packages of that name.
    piped(text).into_iter().filter(|row| row.name != "gpg-pubkey").collect()
}

/// `bash.x86_64    4.2.46-34.el7    base`
fn list(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, arch) = words.next()?.rsplit_once('.')?;
        let version = words.next()?;
        words.next()?;
        Some(Row::new(name, arch, version))
    };
    text.lines().filter_map(row).collect()
}

/// The table that is shown before a transaction; long names stand in a line of their own.
fn plan(text: &str, _: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    let (mut inside, mut removing, mut alone) = (false, false, None);
    for line in text.lines() {
        if !line.starts_with(' ') {
            let begins = |words: &[&str]| words.iter().any(|word| line.starts_with(word));
            removing = begins(&["Removing"]);
            // dnf 5 begins with "Updating and loading repositories:".
            inside = line.ends_with(':')
                && !begins(&["Updating and"])
                && (removing
                    || begins(&["Installing", "Upgrading", "Updating", "Downgrading", "Reinstalling"]));
            alone = None;
            continue;
        }
        let mut words = line.split_whitespace();
        let first = words.next().filter(|_| inside);
        let (Some(name), rest) = (alone.take().or(first), words) else { continue };
        let mut rest: Vec<&str> = rest.collect();
        if first != Some(name) {
            rest.insert(0, first.unwrap_or_default());
        }
        match rest[..] {
            // dnf 5 names what goes away under what comes.
            _ if name == "replacing" => {}
            [] => alone = Some(name),
            [arch, version, ..] => {
                let version = version.strip_prefix("0:").unwrap_or(version);
                rows.push(Row::new(name, arch, if removing { "" } else { version }));
            }
            [_] => {}
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_packages_have_their_epoch_where_there_is_one() {
        let text = "th-hello|noarch|1.0-1\npackage nonex is not installed\nbind|x86_64|32:9.16-1.el9\ngpg-pubkey|(none)|1-2\n";
        assert_eq!(
            installed(text),
            [Row::new("th-hello", "noarch", "1.0-1"), Row::new("bind", "x86_64", "32:9.16-1.el9")]
        );
    }

    #[test]
    fn versions_may_be_asked_for_without_epoch_and_release() {
        for asked in ["9.16", "9.16-1.el9", "32:9.16", "32:9.16-1.el9"] {
            assert!(DNF.is_version(asked, "32:9.16-1.el9"), "{asked}");
        }
        for asked in ["9.1", "32:9", "0:9.16", "9.16-1", "9.16-1.el"] {
            assert!(!DNF.is_version(asked, "32:9.16-1.el9"), "{asked}");
        }
    }

    #[test]
    fn an_exact_version_keeps_the_architecture_that_was_named() {
        let row = Row::new("glibc", "i686", "2.34-1");
        assert_eq!(DNF.exact("glibc", &row), "glibc-2.34-1");
        assert_eq!(DNF.exact("glibc.i686", &row), "glibc-2.34-1.i686");
    }

    /// dnf 4.23.
    const DNF4: &str = "Dependencies resolved.
================================================================================
 Package              Architecture       Version           Repository      Size
================================================================================
Installing:
 th-alone             noarch             2.0-1             th             6.2 k
 th-a-name-that-is-too-long-for-its-column
                      noarch             7-1               th             6.2 k
Upgrading:
 th-hello             noarch             1.1-1             th             6.2 k
Installing dependencies:
 th-lib               noarch             1.0-1             th             6.2 k

Transaction Summary
================================================================================
Install  3 Packages
Upgrade  1 Package

Total size: 12 k
Operation aborted.
";

    /// dnf 5.4.
    const DNF5: &str = "Updating and loading repositories:
 th                                     100% |   0.0   B/s |   1.5 KiB |  00m00s
Repositories loaded.
Package               Arch   Version Repository      Size
Downgrading:
 th-hello             noarch 0:1.0-1 th          13.0   B
   replacing th-hello noarch 0:1.1-1 <unknown>   13.0   B
Changing reason:
 th-lib               noarch 0:1.0-1 @System     13.0   B
   External User -> User

Transaction Summary:
 Replacing:          1 package
 Downgrading:        1 package

Total size of inbound packages is 7 KiB. Need to download 7 KiB.
Operation aborted by the user.
";

    #[test]
    fn the_table_of_dnf_4_and_5_is_read() {
        assert_eq!(
            plan(DNF4, false),
            [
                Row::new("th-alone", "noarch", "2.0-1"),
                Row::new("th-a-name-that-is-too-long-for-its-column", "noarch", "7-1"),
                Row::new("th-hello", "noarch", "1.1-1"),
                Row::new("th-lib", "noarch", "1.0-1")
            ]
        );
        assert_eq!(plan(DNF5, false), [Row::new("th-hello", "noarch", "1.0-1")]);
        let removal = "Removing:\n th-lib   noarch  1.0-1  @th  11\nRemoving dependent packages:\n th-hello noarch 1.0-1 @th 13\n\nTransaction Summary\n";
        assert_eq!(
            plan(removal, true),
            [Row::new("th-lib", "noarch", ""), Row::new("th-hello", "noarch", "")]
        );
    }

    #[test]
    fn yums_lists_are_read() {
        let text = "Available Packages\nbash.x86_64        4.2.46-34.el7        base\npython3.11.noarch  3.11.4-1  extras\n";
        assert_eq!(
            list(text),
            [Row::new("bash", "x86_64", "4.2.46-34.el7"), Row::new("python3.11", "noarch", "3.11.4-1")]
        );
    }
}
