//! apk(8) of apk-tools 2 and 3. It downloads while it installs; it has no way to do that beforehand without a cache.

use super::locks::Lock;
use super::{Manager, Row, counted};

pub(super) static APK: Manager = Manager {
    name: "apk",
    programs: &["apk"],
    env: &[],
    installed: "apk list -I",
    installed_by_name: true,
    read_installed: list,
    available: "apk list -a",
    read_available: list,
    newest: None,
    simulate_install: "apk add --no-progress --simulate",
    simulate_remove: "apk del --no-progress --simulate",
    read_plan: |text, _| plan(text),
    download: None,
    install: "apk add --no-progress",
    remove: "apk del --no-progress",
    // `add -u` would upgrade what the package needs as well; `fix -u` does not.
    upgrade: Some(("apk fix -u --no-progress --simulate", "apk fix -u --no-progress")),
    refresh: "apk update --no-progress",
    older_option: "",
    older_verb: "",
    is_older: "apk version -t {A} {B}",
    version_sign: '=',
    release_optional: false,
    fine: &[],
    locks: &[Lock::Flock("/lib/apk/db/lock"), Lock::Flock("/usr/lib/apk/db/lock")],
    roots: "--root -p",
    progress: counted,
};

/// `busybox-1.36.1-r5 x86_64 {busybox} (GPL-2.0-only) [installed]`
fn list(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let mut words = line.split(' ');
        let (name, version) = words.next().and_then(split)?;
        let arch = words.next()?;
        words.next().filter(|origin| origin.starts_with('{'))?;
        Some(Row::new(name, arch, version))
    };
    text.lines().filter_map(row).collect()
}

/// NAME-VERSION-rRELEASE; names may hold hyphens, versions none.
fn split(package: &str) -> Option<(&str, &str)> {
    let (rest, release) = package.rsplit_once('-')?;
    release.strip_prefix('r')?;
    let (name, _version) = rest.rsplit_once('-')?;
    Some((name, &package[name.len() + 1..]))
}

/// `(1/2) Installing th-lib (1.0-r0)`, `(2/2) Upgrading th-hello (1.0-r0 -> 1.1-r0)`, `(1/1) Purging th-hello (1.1-r0)`.
fn plan(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let (count, rest) = line.strip_prefix('(')?.split_once(") ")?;
        count.split_once('/')?;
        let mut words = rest.split(' ');
        let (verb, name) = (words.next()?, words.next()?);
        let version = rest.rsplit(['(', ' ']).next()?.strip_suffix(')')?;
        match verb {
            "Purging" => Some(Row::new(name, "", "")),
            "Installing" | "Upgrading" | "Downgrading" => Some(Row::new(name, "", version)),
            // Reinstalling, Replacing: the same version.
            _ => None,
        }
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        // apk-tools 2.14 and 3.0 print the same; warnings come on standard error.
        let text = "busybox-1.36.1-r5 x86_64 {busybox} (GPL-2.0-only) [installed]\n\
                    ca-certificates-bundle-20240226-r0 x86_64 {ca-certificates} (MPL-2.0 AND MIT) [installed]\n\
                    py3-foo_bar-1.0_rc2-r10 noarch {py3-foo_bar} (MIT) [upgradable from: py3-foo_bar-1.0_rc1-r0]\n\
                    WARNING: opening /x: No such file or directory\n";
        assert_eq!(
            list(text),
            [
                Row::new("busybox", "x86_64", "1.36.1-r5"),
                Row::new("ca-certificates-bundle", "x86_64", "20240226-r0"),
                Row::new("py3-foo_bar", "noarch", "1.0_rc2-r10")
            ]
        );
    }

    #[test]
    fn a_simulation_is_read() {
        // apk-tools 2: `OK: 8 MiB in 15 packages`; apk-tools 3 puts the size of the download and a summary before it.
        for end in [
            "OK: 8 MiB in 15 packages\n",
            "Executing busybox-1.36.1-r5.trigger\nOK: 8344 KiB in 15 packages\n",
        ] {
            let text = format!(
                "(1/5) Installing libcurl (8.5.0-r0)\n(2/5) Upgrading curl (8.4.0-r0 -> 8.5.0-r0)\n\
                 (3/5) Downgrading a (2-r0 -> 1-r0)\n(4/5) Purging nano (7.2-r1)\n(5/5) Reinstalling b (1-r0)\n{end}"
            );
            assert_eq!(
                plan(&text),
                [
                    Row::new("libcurl", "", "8.5.0-r0"),
                    Row::new("curl", "", "8.5.0-r0"),
                    Row::new("a", "", "1-r0"),
                    Row::new("nano", "", "")
                ]
            );
        }
    }
}
