//! What a step reads and writes of a host, so that `check` says of no step what an earlier one may yet change.
//!
//! Where it is not known for sure, it is everything: a step too many is then called unknown, and none is called wrongly.

use serde_json::Value;
use sortie_protocol::CommandType;

use super::template;

/// A part of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Part {
    everything: bool,
    /// Units and what they are doing.
    services: bool,
    /// Files and directories, with all that is in them.
    paths: Vec<String>,
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
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        // Where `..` leads depends on links, and a template may become anything.
        if !path.starts_with('/') || parts.contains(&"..") || template::is_one(path) {
            self.everything = true;
        } else {
            self.paths.push(format!("/{}", parts.join("/")));
        }
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().map(String::as_str)
    }

    /// Adds where its paths lead. One of which that is not known may be any.
    fn resolve<'r>(&mut self, real: &dyn Fn(&str) -> Option<&'r str>) {
        let led: Vec<Option<&str>> = self.paths.iter().map(|path| real(path)).collect();
        for path in led {
            match path {
                Some(path) => self.add(path),
                None => self.everything = true,
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
            || self.paths.iter().any(|one| other.paths.iter().any(|two| holds(one, two) || holds(two, one)))
    }
}

/// Whether a path is another or in it.
fn holds(outer: &str, inner: &str) -> bool {
    let rest = inner.strip_prefix(outer);
    outer == "/" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The footprint of a command. Its author may know better what it changes at most, and what it depends on.
pub(super) fn of(
    kind: CommandType,
    params: &Value,
    becomes: bool,
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
    if becomes {
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
        CommandType::FileWrite
        | CommandType::LineEnsure
        | CommandType::IniEnsure
        | CommandType::DirEnsure
        | CommandType::LinkEnsure => {
            let mut reads = path();
            if given("owner") || given("group") {
                ACCOUNTS.iter().for_each(|path| reads.add(path));
            }
            let reads = if given("validate") { Part::everything() } else { reads };
            Footprint { reads, writes: path() }
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

    fn write(path: &str) -> Footprint {
        of(CommandType::FileWrite, &json!({"path": path}), false, None, None)
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
        let exec = |changes: Option<&[String]>| of(CommandType::Exec, &json!({}), false, changes, None);
        assert!(exec(None).writes.touches(&write("/x").reads));
        assert!(exec(Some(&[])).writes.is_nothing());
        let some = exec(Some(&["/var/cache/x".to_owned()]));
        assert!(
            some.writes.touches(&write("/var/cache").reads) && !some.writes.touches(&write("/etc").reads)
        );
        // What it would do is known by what it is said to create alone; what it gives, by whatever it reads.
        assert!(!write("/x").writes.touches(&some.reads));
        assert!(write("/x").writes.touches(&exec(Some(&[])).reads));
        let apart = of(CommandType::Exec, &json!({}), false, Some(&[]), Some(&["/y".to_owned()]));
        assert!(!write("/x").writes.touches(&apart.reads) && write("/y").writes.touches(&apart.reads));
        let creates = of(CommandType::Exec, &json!({"creates": "/x/y"}), false, None, None);
        assert!(write("/x").writes.touches(&creates.reads) && !write("/z").writes.touches(&creates.reads));
    }

    #[test]
    fn what_only_looks_writes_nothing_and_what_writes_is_known_by_its_path() {
        for kind in [CommandType::FileRead, CommandType::FileStat, CommandType::Facts] {
            let looks = of(kind, &json!({"path": "/x"}), false, None, None);
            assert!(looks.writes.is_nothing() && looks.reads.touches(&write("/x").writes), "{kind:?}");
        }
        use CommandType::{DirEnsure, FileRemove, FileWrite, IniEnsure, LineEnsure, LinkEnsure};
        for kind in [FileWrite, LineEnsure, IniEnsure, DirEnsure, LinkEnsure, FileRemove] {
            let one = of(kind, &json!({"path": "/x"}), false, None, None);
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
            let checked = of(kind, &json!({"path": "/x", "validate": ["true"]}), false, None, None);
            assert!(checked.reads.touches(&write("/y").writes), "{kind:?}");
        }
    }

    #[test]
    fn an_archive_is_read_and_unpacked_with_its_mark() {
        let params = json!({"archive": "/a.tar", "path": "/srv/app", "marker": "/var/lib/mark"});
        let unpack = of(CommandType::ArchiveUnpack, &params, false, None, None);
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
        let owned = of(CommandType::FileWrite, &json!({"path": "/x", "owner": "web"}), false, None, None);
        assert!(write("/etc/passwd").writes.touches(&owned.reads));
        assert!(!write("/etc/passwd").writes.touches(&write("/x").reads));
        let become_root = of(CommandType::FileWrite, &json!({"path": "/x"}), true, None, None);
        assert!(write("/etc/sudoers.d/x").writes.touches(&become_root.reads));
    }
}
