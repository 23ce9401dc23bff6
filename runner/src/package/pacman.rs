//! pacman(8). Its sources have one version of each package; older ones are looked for in its cache.

use super::locks::Lock;
use super::{Manager, Row, Step};

pub(super) static PACMAN: Manager = Manager {
    name: "pacman",
    programs: &["pacman"],
    env: &[],
    installed: "pacman -Q",
    installed_by_name: true,
    read_installed: installed,
    available: "pacman -Si",
    read_available: information,
    newest: None,
    simulate_install: "pacman -Sp --needed --print-format %n|%v",
    simulate_remove: "pacman -Rp --print-format %n|%v",
    read_plan: plan,
    download: Some("pacman -Sw --noconfirm --noprogressbar"),
    install: "pacman -S --needed --noconfirm --noprogressbar",
    remove: "pacman -R --noconfirm --noprogressbar",
    upgrade: None,
    refresh: "pacman -Sy --noconfirm --noprogressbar",
    older_option: "",
    older_verb: "",
    is_older: "vercmp {A} {B}",
    version_sign: '=',
    release_optional: true,
    fine: &[],
    locks: &[Lock::File("/var/lib/pacman/db.lck")],
    roots: "--root --sysroot --dbpath -r -b",
    progress: step,
};

/// Where packages that were downloaded are kept.
const CACHE: &str = "/var/cache/pacman/pkg";

/// Installs packages from files.
pub(crate) const INSTALL_FILE: &str = "pacman -U --noconfirm --noprogressbar";

/// Says what that would do.
pub(crate) const SIMULATE_FILE: &str = "pacman -Up --print-format %n|%v";

/// The file of a version that was downloaded before, for versions that the sources no longer have.
pub(crate) fn cached(manager: &Manager, name: &str, asked: &str) -> Option<(Row, String)> {
    std::fs::read_dir(CACHE).ok()?.flatten().find_map(|entry| {
        let file = entry.file_name().into_string().ok()?;
        let version = version_of(&file, name)?;
        let row = Row::new(name, "", version);
        manager.is_version(asked, version).then(|| (row, format!("{CACHE}/{file}")))
    })
}

/// `NAME-VERSION-RELEASE-ARCH.pkg.tar.zst`, not its signature.
fn version_of<'a>(file: &'a str, name: &str) -> Option<&'a str> {
    let (stem, kind) = file.split_once(".pkg.tar")?;
    let (version, _arch) = stem.strip_prefix(name)?.strip_prefix('-')?.rsplit_once('-')?;
    (!kind.ends_with(".sig") && version.matches('-').count() == 1).then_some(version)
}

/// `th-hello 1.0-1`
fn installed(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let (name, version) = line.split_once(' ')?;
        (!version.contains(' ')).then(|| Row::new(name, "", version))
    };
    text.lines().filter_map(row).collect()
}

/// `Name            : th-hello` and then `Version         : 1.0-1`.
fn information(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut name = "";
    for (key, value) in text.lines().filter_map(|line| line.split_once(" : ")) {
        match key.trim() {
            "Name" => name = value.trim(),
            "Version" => rows.push(Row::new(name, "", value.trim())),
            _ => {}
        }
    }
    rows
}

/// `th-hello|1.0-1`
fn plan(text: &str, removing: bool) -> Vec<Row> {
    let row = |line: &str| {
        let (name, version) = line.split_once('|')?;
        Some(Row::new(name, "", if removing { "" } else { version }))
    };
    text.lines().filter_map(row).collect()
}

/// `installing th-lib...`: it does not say how many are to come.
fn step(line: &str) -> Option<Step> {
    let verbs = ["installing ", "upgrading ", "downgrading ", "reinstalling ", "removing "];
    let message =
        line.trim().strip_suffix("...").filter(|line| verbs.iter().any(|verb| line.starts_with(verb)))?;
    Some(Step { message: message.to_owned(), current: 0, total: 0, unit: "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read() {
        assert_eq!(
            installed("th-hello 1.0-1\nerror: package 'nonex' was not found\n"),
            [Row::new("th-hello", "", "1.0-1")]
        );
        let text = "Repository      : th\nName            : th-hello\nVersion         : 1:1.0-1\nDescription     : Name : x\n";
        assert_eq!(information(text), [Row::new("th-hello", "", "1:1.0-1")]);
        assert_eq!(plan("th-lib|1.0-1\n", false), [Row::new("th-lib", "", "1.0-1")]);
        assert_eq!(plan("th-lib|1.0-1\n", true), [Row::new("th-lib", "", "")]);
        assert_eq!(
            step("installing th-lib...").map(|step| step.message).as_deref(),
            Some("installing th-lib")
        );
        assert_eq!(step("checking keyring..."), None);
    }

    #[test]
    fn files_of_the_cache_are_told_apart() {
        assert_eq!(version_of("th-hello-1.0-1-any.pkg.tar.zst", "th-hello"), Some("1.0-1"));
        for other in
            ["th-hello-1.0-1-any.pkg.tar.zst.sig", "th-hello-extra-1.0-1-any.pkg.tar.zst", "th-hello"]
        {
            assert_eq!(version_of(other, "th-hello"), None, "{other}");
        }
        assert!(PACMAN.is_version("1.0", "1.0-1") && PACMAN.is_version("1.0-1", "2:1.0-1"));
    }
}
