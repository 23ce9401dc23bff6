//! What a step reads and writes of a host, so that `check` says of no step what an earlier one may yet change.
//!
//! Where it is not known for sure, it is everything: a step too many is then called unknown, and none is called wrongly.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use sortie_protocol::CommandType;

use super::template;

/// A part of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Part {
    everything: bool,
    /// Units and what they are doing.
    services: bool,
    paths: Vec<Place>,
    /// Links that are made, as path and target: what is below the one is below the other.
    links: Vec<(String, String)>,
}

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    path: String,
    /// With all that is in it. Otherwise it is its attributes, and that it is there.
    whole: bool,
}

/// What a step reads, and what it writes if it changes something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    pub(super) reads: Part,
    pub(super) writes: Part,
}

impl Footprint {
    /// Adds where its paths lead, once links are followed.
    pub(super) fn resolve<'r>(&mut self, real: &dyn Fn(&str) -> Option<&'r str>) {
        self.reads.resolve(real);
        self.writes.resolve(real);
    }

    /// Adds where its paths lead by the links that a step before it makes.
    pub(super) fn follow(&mut self, other: &Part) {
        self.reads.follow(other);
        self.writes.follow(other);
    }
}

/// Where names of users and groups come from.
const ACCOUNTS: &[&str] = &["/etc/passwd", "/etc/group", "/etc/nsswitch.conf"];
/// What decides whether one may become another user.
const BECOMING: &[&str] = &[
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/doas.conf",
    "/etc/pam.d",
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
];
/// Databases, sources and settings of package managers.
const PACKAGES: &[&str] = &[
    "/etc/apt",
    "/etc/dpkg",
    "/etc/dnf",
    "/etc/yum.conf",
    "/etc/yum",
    "/etc/yum.repos.d",
    "/etc/rpm",
    "/etc/pki",
    "/etc/zypp",
    "/etc/pacman.conf",
    "/etc/pacman.d",
    "/etc/apk",
    "/etc/os-release",
    "/usr",
    "/var",
    "/lib",
    "/bin",
    "/sbin",
    "/opt",
];
/// Where units and their links are.
const UNITS: &[&str] = &[
    "/etc/systemd",
    "/run/systemd",
    "/usr",
    "/lib/systemd",
    "/etc/init.d",
    "/etc/conf.d",
    "/etc/runlevels",
    "/etc/rc.conf",
    "/etc/default",
];
/// What decides who may log in.
const LOGINS: &[&str] = &["/etc", "/usr", "/root", "/home", "/var"];

impl Part {
    fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    fn of(paths: &[&str]) -> Self {
        let mut part = Self::default();
        paths.iter().for_each(|path| part.add(path));
        part
    }

    fn with_services(mut self) -> Self {
        self.services = true;
        self
    }

    fn add(&mut self, path: &str) {
        self.add_place(path, true);
    }

    fn add_place(&mut self, path: &str, whole: bool) {
        match clean(path) {
            Some(path) => self.paths.push(Place { path, whole }),
            None => self.everything = true,
        }
    }

    /// The directories above, as far as it matters whether they may be passed.
    fn add_ways(&mut self) {
        let above = |place: &Place| -> Vec<String> {
            Path::new(&place.path).ancestors().skip(1).map(|path| path.display().to_string()).collect()
        };
        let ways: BTreeSet<String> = self.paths.iter().flat_map(above).collect();
        self.paths.extend(ways.into_iter().map(|path| Place { path, whole: false }));
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().map(|place| &*place.path)
    }

    /// Adds where its paths lead. One of which that is not known may be any.
    fn resolve<'r>(&mut self, real: &dyn Fn(&str) -> Option<&'r str>) {
        for Place { path, whole } in self.paths.clone() {
            match real(&path) {
                Some(real) => self.add_place(real, whole),
                None => self.everything = true,
            }
        }
    }

    pub(super) fn makes_links(&self) -> bool {
        !self.links.is_empty()
    }

    /// Adds where its paths lead by the links that `other` makes.
    fn follow(&mut self, other: &Self) {
        for (link, target) in &other.links {
            for Place { path, whole } in self.paths.clone() {
                if holds(link, &path) {
                    self.add_place(&format!("{target}{}", &path[link.len()..]), whole);
                }
            }
        }
    }

    pub(super) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the two have something in common.
    pub(super) fn touches(&self, other: &Self) -> bool {
        if self.is_nothing() || other.is_nothing() {
            return false;
        }
        self.everything
            || other.everything
            || self.services && other.services
            || self.paths.iter().any(|one| other.paths.iter().any(|two| meet(one, two)))
    }
}

/// A path in the one form in which it is compared; none where it cannot be told what it names.
fn clean(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    // Where `..` leads depends on links, and a template may become anything.
    let known = path.starts_with('/') && !parts.contains(&"..") && !template::is_one(path);
    known.then(|| format!("/{}", parts.join("/")))
}

/// Where a link in the directory `above` leads; `..` is taken as it stands, so that no link must be on the way there.
fn led(above: &str, target: &str) -> Option<String> {
    let whole = if target.starts_with('/') { target.to_owned() } else { format!("{above}/{target}") };
    if template::is_one(&whole) {
        return None;
    }
    let mut parts = Vec::new();
    for part in whole.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

fn meet(one: &Place, two: &Place) -> bool {
    one.path == two.path
        || one.whole && holds(&one.path, &two.path)
        || two.whole && holds(&two.path, &one.path)
}

/// Whether a path is another or in it.
fn holds(outer: &str, inner: &str) -> bool {
    let rest = inner.strip_prefix(outer);
    outer == "/" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Who does it.
#[derive(Debug, Clone, Copy)]
pub(super) struct By {
    /// The login becomes somebody else for it, for the first time.
    pub(super) becomes: bool,
    /// Root, who may pass every directory.
    pub(super) root: bool,
}

/// The footprint of a command. Its author may know better what it changes at most, and what it depends on.
pub(super) fn of(
    kind: CommandType,
    params: &Value,
    by: By,
    changes: Option<&[String]>,
    depends_on: Option<&[String]>,
) -> Footprint {
    let part = |paths: &[String]| {
        let mut part = Part::default();
        paths.iter().for_each(|path| part.add(path));
        part
    };
    let mut footprint = of_command(kind, params);
    if let Some(changes) = changes {
        footprint.writes = part(changes);
        // It is run also to be looked at, and what it gives depends on whatever it reads.
        if kind == CommandType::Exec && changes.is_empty() {
            footprint.reads = Part::everything();
        }
    }
    if let Some(paths) = depends_on {
        footprint.reads = part(paths);
    }
    if !by.root {
        footprint.reads.add_ways();
    }
    if by.becomes {
        BECOMING.iter().for_each(|path| footprint.reads.add(path));
    }
    footprint
}

fn of_command(kind: CommandType, params: &Value) -> Footprint {
    let text = |field: &str| params.get(field).and_then(Value::as_str).unwrap_or_default();
    let given = |field: &str| params.get(field).is_some_and(|value| !value.is_null());
    let path = || Part::of(&[text("path")]);
    match kind {
        CommandType::FileRead => Footprint { reads: path(), writes: Part::default() },
        CommandType::FileStat => {
            let mut reads = path();
            ACCOUNTS.iter().for_each(|path| reads.add(path));
            Footprint { reads, writes: Part::default() }
        }
        CommandType::FileRemove => Footprint { reads: path(), writes: path() },
        CommandType::WaitFor => Footprint { reads: Part::everything(), writes: Part::default() },
        CommandType::FileWrite | CommandType::LineEnsure | CommandType::IniEnsure => {
            let mut reads = path();
            if given("owner") || given("group") {
                ACCOUNTS.iter().for_each(|path| reads.add(path));
            }
            let reads = if given("validate") { Part::everything() } else { reads };
            Footprint { reads, writes: path() }
        }
        CommandType::DirEnsure => {
            let mut footprint = of_command(CommandType::FileWrite, params);
            // What is in it stays as it is; new files may take their group from it (S_ISGID of inode(7)).
            let mode = u32::from_str_radix(text("mode"), 8);
            if !given("recursive") && !mode.map_or(given("mode"), |mode| mode & 0o2000 != 0) {
                footprint.writes = Part::default();
                footprint.writes.add_place(text("path"), false);
            }
            footprint
        }
        CommandType::LinkEnsure => {
            let mut footprint = of_command(CommandType::FileWrite, params);
            let (path, target) = (text("path").trim_end_matches('/'), text("target"));
            let above = path.rsplit_once('/').map_or("", |(above, _)| above);
            // It must be there, and a file in it may bring it along.
            if !above.is_empty() {
                footprint.reads.add(above);
            }
            match (clean(path), led(above, target)) {
                (Some(path), Some(target)) => footprint.writes.links.push((path, target)),
                _ => footprint.writes = Part::everything(),
            }
            footprint
        }
        CommandType::ArchiveUnpack => {
            let mut writes = path();
            if !text("marker").is_empty() {
                writes.add(text("marker"));
            }
            let mut reads = writes.clone();
            for path in ["archive", "creates"].map(text).into_iter().filter(|path| !path.is_empty()) {
                reads.add(path);
            }
            ACCOUNTS.iter().for_each(|path| reads.add(path));
            Footprint { reads, writes }
        }
        // Scripts of packages do whatever they like.
        CommandType::PkgEnsure => {
            let reads = if given("update_cache") { Part::everything() } else { Part::of(PACKAGES) };
            Footprint { reads, writes: Part::everything() }
        }
        CommandType::ServiceReload => {
            let reads = Part::of(UNITS).with_services();
            let writes = match text("action") {
                "enable" | "disable" | "mask" | "unmask" => reads.clone(),
                // A service does whatever it likes.
                _ => Part::everything(),
            };
            Footprint { reads, writes }
        }
        CommandType::SudoersEnsure => {
            let mut reads = Part::of(&["/etc/sudoers", "/etc/sudoers.d"]);
            ACCOUNTS.iter().for_each(|path| reads.add(path));
            Footprint { reads, writes: Part::of(&["/etc/sudoers.d"]) }
        }
        CommandType::SshdHarden => Footprint {
            reads: Part::of(LOGINS).with_services(),
            writes: Part::of(&["/etc/ssh"]).with_services(),
        },
        CommandType::Facts => Footprint { reads: Part::everything(), writes: Part::default() },
        // What it would do is known by these alone: otherwise it is run.
        CommandType::Exec => {
            let mut reads = Part::default();
            for path in ["creates", "removes"].map(text).into_iter().filter(|path| !path.is_empty()) {
                let inside = format!("{}/{path}", text("work_dir"));
                reads.add(if path.starts_with('/') || text("work_dir").is_empty() { path } else { &inside });
            }
            Footprint { reads, writes: Part::everything() }
        }
        _ => Footprint { reads: Part::everything(), writes: Part::everything() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ROOT: By = By { becomes: false, root: true };

    fn write(path: &str) -> Footprint {
        of(CommandType::FileWrite, &json!({"path": path}), ROOT, None, None)
    }

    #[test]
    fn a_path_touches_itself_and_what_is_in_it_and_above_it() {
        for (one, two, touches) in [
            ("/a/b", "/a/b", true),
            ("/a", "/a/b/c", true),
            ("/a//b/", "/a/./b", true),
            ("/", "/x", true),
            ("/a/b", "/a/bc", false),
            ("/a/b", "/a/c", false),
            ("/a/../b", "/c", true),
        ] {
            assert_eq!(write(one).reads.touches(&write(two).writes), touches, "{one} {two}");
            assert_eq!(write(two).reads.touches(&write(one).writes), touches, "{two} {one}");
        }
    }

    #[test]
    fn a_program_may_do_everything_unless_its_author_says_what() {
        let exec = |changes: Option<&[String]>| of(CommandType::Exec, &json!({}), ROOT, changes, None);
        assert!(exec(None).writes.touches(&write("/x").reads));
        assert!(exec(Some(&[])).writes.is_nothing());
        let some = exec(Some(&["/var/cache/x".to_owned()]));
        assert!(
            some.writes.touches(&write("/var/cache").reads) && !some.writes.touches(&write("/etc").reads)
        );
        // What it would do is known by what it is said to create alone; what it gives, by whatever it reads.
        assert!(!write("/x").writes.touches(&some.reads));
        assert!(write("/x").writes.touches(&exec(Some(&[])).reads));
        let apart = of(CommandType::Exec, &json!({}), ROOT, Some(&[]), Some(&["/y".to_owned()]));
        assert!(!write("/x").writes.touches(&apart.reads) && write("/y").writes.touches(&apart.reads));
        let creates = of(CommandType::Exec, &json!({"creates": "/x/y"}), ROOT, None, None);
        assert!(write("/x").writes.touches(&creates.reads) && !write("/z").writes.touches(&creates.reads));
    }

    #[test]
    fn what_only_looks_writes_nothing_and_what_writes_is_known_by_its_path() {
        for kind in [CommandType::FileRead, CommandType::FileStat, CommandType::Facts, CommandType::WaitFor] {
            let looks = of(kind, &json!({"path": "/x"}), ROOT, None, None);
            assert!(looks.writes.is_nothing() && looks.reads.touches(&write("/x").writes), "{kind:?}");
        }
        use CommandType::{FileRemove, FileWrite, IniEnsure, LineEnsure};
        for kind in [FileWrite, LineEnsure, IniEnsure, FileRemove] {
            let one = of(kind, &json!({"path": "/x"}), ROOT, None, None);
            assert!(
                one.reads.touches(&write("/x").writes) && one.writes.touches(&write("/x").reads),
                "{kind:?}"
            );
            assert!(
                !one.reads.touches(&write("/y").writes) && !one.writes.touches(&write("/y").reads),
                "{kind:?}"
            );
        }
        for kind in [FileWrite, LineEnsure, IniEnsure] {
            let checked = of(kind, &json!({"path": "/x", "validate": ["true"]}), ROOT, None, None);
            assert!(checked.reads.touches(&write("/y").writes), "{kind:?}");
        }
    }

    #[test]
    fn an_archive_is_read_and_unpacked_with_its_mark() {
        let params = json!({"archive": "/a.tar", "path": "/srv/app", "marker": "/var/lib/mark"});
        let unpack = of(CommandType::ArchiveUnpack, &params, ROOT, None, None);
        for (path, reads, writes) in [
            ("/a.tar", true, false),
            ("/srv/app/x", true, true),
            ("/var/lib/mark", true, true),
            ("/y", false, false),
        ] {
            assert_eq!(unpack.reads.touches(&write(path).writes), reads, "{path}");
            assert_eq!(unpack.writes.touches(&write(path).reads), writes, "{path}");
        }
    }

    #[test]
    fn owners_depend_on_accounts_and_becoming_on_its_rules() {
        let owned = of(CommandType::FileWrite, &json!({"path": "/x", "owner": "web"}), ROOT, None, None);
        assert!(write("/etc/passwd").writes.touches(&owned.reads));
        assert!(!write("/etc/passwd").writes.touches(&write("/x").reads));
        let become_root =
            of(CommandType::FileWrite, &json!({"path": "/x"}), By { becomes: true, root: true }, None, None);
        assert!(write("/etc/sudoers.d/x").writes.touches(&become_root.reads));
    }

    #[test]
    fn whoever_is_not_root_depends_on_the_directories_above() {
        let attributes = |path: &str| Part {
            paths: vec![Place { path: path.to_owned(), whole: false }],
            ..Part::default()
        };
        let by = By { becomes: false, root: false };
        let reads = |by| of(CommandType::FileWrite, &json!({"path": "/a/b/c"}), by, None, None).reads;
        assert!(reads(by).touches(&attributes("/a")) && !reads(ROOT).touches(&attributes("/a")));
        assert!(reads(ROOT).touches(&attributes("/a/b/c")));
        assert!(!reads(by).touches(&write("/a/x").writes), "its neighbours do not matter");
    }

    #[test]
    fn a_directory_is_not_what_is_in_it_unless_all_of_that_is_meant() {
        let dir = |params: Value| of(CommandType::DirEnsure, &params, ROOT, None, None);
        let plain = dir(json!({"path": "/a", "mode": "0750"}));
        assert!(!plain.writes.touches(&write("/a/x").reads) && plain.writes.touches(&write("/a").reads));
        assert!(plain.reads.touches(&write("/a/x").writes), "a file may bring its directory along");
        for more in [json!({"path": "/a", "recursive": true}), json!({"path": "/a", "mode": "2770"})] {
            assert!(dir(more.clone()).writes.touches(&write("/a/x").reads), "{more}");
        }
        let link =
            |path: &str| of(CommandType::LinkEnsure, &json!({"path": path, "target": "x"}), ROOT, None, None);
        assert!(plain.writes.touches(&link("/a/l").reads), "a link needs its directory");
        assert!(!plain.writes.touches(&link("/b").reads));
    }

    #[test]
    fn where_a_link_of_the_list_leads_is_known() {
        for (path, target, leads) in [
            ("/srv/now", "/srv/v1", Some("/srv/v1")),
            ("/srv/now", "v1/./x", Some("/srv/v1/x")),
            ("/srv/a/now", "../v1/", Some("/srv/v1")),
            ("/now", "../../v1", None),
        ] {
            let writes =
                of(CommandType::LinkEnsure, &json!({"path": path, "target": target}), ROOT, None, None)
                    .writes;
            let links = leads.map(|leads| (path.to_owned(), leads.to_owned()));
            assert_eq!(writes.links, Vec::from_iter(links), "{path} {target}");
            assert_eq!(writes.everything, leads.is_none(), "{path} {target}");
        }
    }

    #[test]
    fn what_is_below_a_link_of_the_list_is_below_its_target() {
        let link =
            Part { links: vec![("/srv/now".to_owned(), "/srv/v1".to_owned())], ..Part::of(&["/srv/now"]) };
        let mut below = write("/srv/now/x");
        below.follow(&link);
        assert!(
            below.writes.touches(&write("/srv/v1/x").reads)
                && below.reads.touches(&write("/srv/now/x").writes)
        );
        assert!(!below.writes.touches(&write("/srv/v2/x").reads));
    }
}
