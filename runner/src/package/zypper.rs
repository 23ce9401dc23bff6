//! zypper(8).

use super::locks::Lock;
use super::{Manager, Row, counted, rpm};

pub(super) static ZYPPER: Manager = Manager {
    name: "zypper",
    programs: &["zypper"],
    env: &[],
    installed: rpm::INSTALLED,
    installed_by_name: true,
    read_installed: rpm::installed,
    available: "zypper -n -q search -s --match-exact -t package",
    read_available: search,
    newest: None,
    simulate_install: "zypper -n -x install -l --dry-run",
    simulate_remove: "zypper -n -x remove --no-clean-deps --dry-run",
    read_plan: plan,
    download: Some("zypper -n install -l --download-only"),
    install: "zypper -n --no-refresh install -l",
    remove: "zypper -n --no-refresh remove --no-clean-deps",
    upgrade: None,
    refresh: "zypper -n refresh",
    older_option: " --oldpackage",
    older_verb: "",
    is_older: rpm::IS_OLDER,
    version_sign: '=',
    release_optional: true,
    // A reboot or a restart of zypper is recommended.
    fine: &[102, 103],
    locks: &[Lock::Pid("/run/zypp.pid"), rpm::RPM_LOCKS[0], rpm::RPM_LOCKS[1]],
    roots: "--root --installroot -R",
    progress: counted,
};

/// `i+ | th-hello | package | 1.1-1 | noarch | th`
fn search(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        match fields[..] {
            [_, name, "package", version, arch, _] => Some(Row::new(name, arch, version)),
            _ => None,
        }
    };
    text.lines().filter_map(row).collect()
}

/// `<solvable type="package" name="th-hello" edition="1.1-1" arch="noarch" …>` inside `<to-install>`, `<to-upgrade>` and so on.
fn plan(text: &str, _: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut removing = false;
    for tag in text.split('<') {
        if let Some(list) = tag.strip_prefix("to-") {
            removing = list.starts_with("remove");
        }
        let attribute = |name: &str| tag.split_once(&format!(" {name}=\""))?.1.split('"').next();
        if tag.starts_with("solvable ")
            && attribute("type") == Some("package")
            && let (Some(name), Some(version), Some(arch)) =
                (attribute("name"), attribute("edition"), attribute("arch"))
        {
            rows.push(Row::new(name, arch, if removing { "" } else { version }));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_sources_have_is_read_from_the_table() {
        let text = "\nS  | Name     | Type    | Version | Arch   | Repository\n---+----------+---------+---------+--------+-----------\n\
                    \x20  | th-hello | package | 1.1-1   | noarch | th\ni+ | th-hello | package | 1.0-1   | noarch | th\n";
        assert_eq!(
            search(text),
            [Row::new("th-hello", "noarch", "1.1-1"), Row::new("th-hello", "noarch", "1.0-1")]
        );
    }

    #[test]
    fn the_summary_is_read_from_its_xml() {
        let text = "<install-summary download-size=\"6384\" packages-to-change=\"3\">\n<to-upgrade>\n\
            <solvable type=\"package\" name=\"th-hello\" edition=\"1.1-1\" arch=\"noarch\" repository=\"th\" edition-old=\"1.0-1\" arch-old=\"noarch\" summary=\"test package th-hello\">\n\
            <description>test package</description></solvable>\n</to-upgrade>\n<to-install>\n\
            <solvable type=\"package\" name=\"th-lib\" edition=\"1.0-1\" arch=\"noarch\" repository=\"th\" summary=\"x\">\n</solvable>\n</to-install>\n<to-remove>\n\
            <solvable type=\"package\" name=\"th-old\" edition=\"3-1\" arch=\"noarch\" repository=\"@System\"/></to-remove>\n</install-summary>";
        assert_eq!(
            plan(text, false),
            [
                Row::new("th-hello", "noarch", "1.1-1"),
                Row::new("th-lib", "noarch", "1.0-1"),
                Row::new("th-old", "noarch", "")
            ]
        );
    }
}
