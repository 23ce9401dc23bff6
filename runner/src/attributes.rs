//! Owner, group and mode: what is asked for, what there is, and the difference as people read it.
//!
//! Knows ids and bits, not what any command is for.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use sortie_protocol::{ErrorCode, Mode};

use crate::command::Context;
use crate::diff;
use crate::failure::Failure;
use crate::sys::host;
use crate::tool::{self, Tool};

/// Owner, group and mode that a file is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// 0 to 0o7777.
    pub(crate) mode: u32,
}

impl Attributes {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & 0o7777 }
    }

    /// What something new in the directory `parent` gets: this user's, save that a directory with the set-group-ID bit
    /// hands on its group (inode(7)), and to directories the bit too.
    pub(crate) fn of_new(parent: Option<&Metadata>, directory: bool, mode: u32) -> Self {
        let handed_on = parent.filter(|parent| parent.mode() & libc::S_ISGID != 0);
        let bit = if directory && handed_on.is_some() { libc::S_ISGID } else { 0 };
        let gid = handed_on.map_or_else(|| nix::unistd::getegid().as_raw(), MetadataExt::gid);
        Self { uid: host::uid(), gid, mode: mode | bit }
    }

    /// Four octal digits.
    pub(crate) fn mode_text(&self) -> String {
        format!("{:04o}", self.mode)
    }

    /// Gives them to an open file, touching only what differs.
    pub(crate) fn apply(self, file: &File) -> io::Result<()> {
        let present = Self::of(&file.metadata()?);
        if (present.uid, present.gid) != (self.uid, self.gid) {
            let changed = |new: u32, old: u32| (new != old).then_some(new);
            std::os::unix::fs::fchown(file, changed(self.uid, present.uid), changed(self.gid, present.gid))?;
        }
        // After the owner: chown(2) takes the set-id bits away.
        if Self::of(&file.metadata()?).mode != self.mode {
            file.set_permissions(Permissions::from_mode(self.mode))?;
        }
        Ok(())
    }

    /// One line each, for a diff. `kind` is a word of [`kind`]; `target` that of a symbolic link, which has no mode.
    pub(crate) fn describe(&self, kind: &str, target: Option<&str>) -> String {
        let name = |name: Option<String>, id: u32| name.unwrap_or_else(|| id.to_string());
        let last = match target {
            Some(target) => format!("target {}", one_line(target)),
            None => format!("mode {}", self.mode_text()),
        };
        format!(
            "type {kind}\nowner {}\ngroup {}\n{last}\n",
            name(host::user_name(self.uid), self.uid),
            name(host::group_name(self.gid), self.gid)
        )
    }
}

/// What is asked for; nothing where it is to stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// 0 to 0o7777.
    pub(crate) mode: Option<u32>,
}

impl Wanted {
    /// Owner and group by name or number. Names are looked up, so nothing is changed yet when there is none.
    ///
    /// # Errors
    /// `NOT_FOUND` for a name that the host does not know.
    pub(crate) fn new(
        context: &Context,
        owner: Option<&str>,
        group: Option<&str>,
        mode: Option<Mode>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            uid: owner
                .map(|name| id(context, ["owner", "user", "passwd"], name, host::user_id))
                .transpose()?,
            gid: group
                .map(|name| id(context, ["group", "group", "group"], name, host::group_id))
                .transpose()?,
            mode: mode.map(Mode::bits),
        })
    }

    /// What comes of what there is.
    pub(crate) fn over(self, present: Attributes) -> Attributes {
        Attributes {
            uid: self.uid.unwrap_or(present.uid),
            gid: self.gid.unwrap_or(present.gid),
            mode: self.mode.unwrap_or(present.mode),
        }
    }
}

fn id(
    context: &Context,
    [field, what, database]: [&str; 3],
    name: &str,
    lookup: fn(&str) -> Option<u32>,
) -> Result<u32, Failure> {
    // A name may consist of digits; chown(1) too looks for a name first. The highest id means "unchanged" to chown(2).
    let known = match lookup(name) {
        None if name.bytes().all(|b| b.is_ascii_digit()) => name.parse().ok(),
        None => by_name_service(context, database, name)?,
        known => known,
    };
    known.filter(|id| *id != u32::MAX).ok_or_else(|| {
        Failure::new(ErrorCode::NotFound, format!("{field}: there is no {what} {name:?} on this host"))
    })
}

/// Names that are in no file of the host, such as those of a directory service: a static program knows no NSS.
fn by_name_service(context: &Context, database: &str, name: &str) -> Result<Option<u32>, Failure> {
    if name.starts_with('-') || name.contains('\0') || !tool::exists("getent") {
        return Ok(None);
    }
    let ran = Tool::new("getent").args([database, name]).run(context)?;
    Ok(ran.text().split(':').nth(2).and_then(|id| id.parse().ok()))
}

/// Whether this user may change attributes so, as far as that can be known: chown(2), chmod(2).
///
/// # Errors
/// `PERMISSION_DENIED` naming the path.
pub(crate) fn may_change(path: &Path, present: Attributes, next: Attributes) -> Result<(), Failure> {
    let own = host::uid();
    let in_group = |gid: u32| {
        nix::unistd::getegid().as_raw() == gid
            || nix::unistd::getgroups().is_ok_and(|groups| groups.iter().any(|group| group.as_raw() == gid))
    };
    let group_stays = present.gid == next.gid || in_group(next.gid);
    if own == 0 || present == next || (present.uid == own && next.uid == own && group_stays) {
        return Ok(());
    }
    let message = format!("only root can give {path:?} that owner, group or mode; nothing was changed");
    Err(Failure::new(ErrorCode::PermissionDenied, message))
}

/// What something is, in a word.
pub(crate) fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_file() {
        "file"
    } else if kind.is_dir() {
        "directory"
    } else if kind.is_symlink() {
        "link"
    } else if kind.is_block_device() {
        "block"
    } else if kind.is_char_device() {
        "character"
    } else if kind.is_fifo() {
        "fifo"
    } else {
        "socket"
    }
}

/// The unified diff between two descriptions; an empty one is that of nothing.
pub(crate) fn difference(path: &Path, before: &str, after: &str) -> String {
    let named = format!("{} (attributes)", one_line(&path.to_string_lossy()));
    let name = |text: &str| if text.is_empty() { "/dev/null" } else { named.as_str() };
    diff::unified(name(before), name(after), before, after)
}

/// A name as one line, whatever is in it.
pub(crate) fn one_line(text: &str) -> String {
    if text.contains(char::is_control) { text.escape_debug().to_string() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_differ_line_by_line() {
        let before = Attributes { uid: 0, gid: 0, mode: 0o755 }.describe("directory", None);
        let after = Attributes { uid: 4_000_000_000, gid: 0, mode: 0o2750 }.describe("directory", None);
        assert_eq!(
            difference(Path::new("/a"), &before, &after),
            "--- /a (attributes)\n+++ /a (attributes)\n@@ -1,4 +1,4 @@\n type directory\n-owner root\n+owner 4000000000\n \
             group root\n-mode 0755\n+mode 2750\n"
        );
        assert_eq!(difference(Path::new("/a"), &after, &after), "");
        let link = Attributes { uid: 0, gid: 0, mode: 0o777 }.describe("link", Some("../x\ny"));
        assert!(difference(Path::new("/a"), "", &link).ends_with("\n+target ../x\\ny\n"));
    }

    #[test]
    fn a_directory_with_the_bit_hands_on_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let plain = Attributes::of_new(Some(&dir.path().metadata().unwrap()), true, 0o755);
        assert_eq!(plain.mode, 0o755);
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o2755)).unwrap();
        let parent = dir.path().metadata().unwrap();
        let below = Attributes::of_new(Some(&parent), true, 0o755);
        assert_eq!((below.gid, below.mode), (parent.gid(), 0o2755));
        assert_eq!(Attributes::of_new(Some(&parent), false, 0o644).mode, 0o644);
    }
}
