//! Mounted file systems by `/proc/self/mountinfo` (proc(5)) and block devices by `/sys/block`.

use std::fs;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use sortie_protocol::command::facts::{Disk, Mount};

use super::{Room, first_line, text};

/// Of `size` below `/sys/block`, whatever the device's own sectors are.
const SECTOR: u64 = 512;

pub(crate) fn mounts(room: &mut Room) -> Vec<Mount> {
    let mut mounts = Vec::new();
    for line in text("/proc/self/mountinfo").lines() {
        let Some(mut mount) = mount(line) else { continue };
        if has_size(&mount.fstype, &mount.source)
            && let Ok(size) = statvfs(mount.target.as_str())
        {
            // These have other widths on other machines.
            #[allow(clippy::useless_conversion, reason = "32 bits on 32-bit machines")]
            let bytes = |blocks| u64::from(blocks) * u64::from(size.fragment_size());
            mount.size_bytes = bytes(size.blocks());
            mount.available_bytes = bytes(size.blocks_available());
        }
        if !room.takes(&mount) {
            break;
        }
        mounts.push(mount);
    }
    mounts
}

/// `36 35 98:0 /root /target rw,noatime shared:1 - ext4 /dev/root rw,errors=continue`
pub(super) fn mount(line: &str) -> Option<Mount> {
    let (own, of_system) = line.split_once(" - ")?;
    let mut own = own.split(' ').skip(4);
    let mut of_system = of_system.split(' ');
    Some(Mount {
        target: plain(own.next()?),
        options: own.next()?.to_owned(),
        fstype: of_system.next()?.to_owned(),
        source: plain(of_system.next()?),
        ..Mount::default()
    })
}

/// What would have to be asked of a server or of another program may never answer, and the process that asks cannot be ended.
fn has_size(fstype: &str, source: &str) -> bool {
    matches!(fstype, "tmpfs" | "overlay" | "btrfs" | "zfs" | "bcachefs")
        || source.starts_with("/dev/") && !fstype.starts_with("fuse")
}

/// Spaces, tabs, newlines and backslashes stand there as `\040`.
fn plain(text: &str) -> String {
    let mut plain = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let octal =
            after.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => plain.push(byte),
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

pub(crate) fn disks(room: &mut Room) -> Vec<Disk> {
    let mut disks = Vec::new();
    for path in entries(Path::new("/sys/block")) {
        let mut whole = disk(&path);
        if whole.size_bytes == 0 {
            continue;
        }
        whole.model = value(&path, "device/model");
        whole.rotational = value(&path, "queue/rotational") == "1";
        whole.removable = value(&path, "removable") == "1";
        let parent = whole.name.clone();
        let mut add = |disk: Disk| {
            if room.takes(&disk) {
                disks.push(disk);
            }
        };
        add(whole);
        for part in entries(&path).into_iter().filter(|part| part.join("partition").exists()) {
            add(Disk { parent: parent.clone(), ..disk(&part) });
        }
    }
    disks
}

fn disk(path: &Path) -> Disk {
    // A slash in the name of a device is `!` there.
    let name = path.file_name().unwrap_or_default().to_string_lossy().replace('!', "/");
    Disk {
        name,
        size_bytes: value(path, "size").parse().unwrap_or(0) * SECTOR,
        read_only: value(path, "ro") == "1",
        ..Disk::default()
    }
}

fn value(device: &Path, name: &str) -> String {
    first_line(&device.join(name).to_string_lossy())
}

/// By name.
fn entries(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_what_is_escaped_in_them() {
        let line = r"36 35 98:0 /mnt1 /a\040b\134 rw,noatime master:1 shared:2 - ext3 /dev/r\011x rw,errors=continue";
        let mount = mount(line).unwrap();
        assert_eq!((&*mount.target, &*mount.source), ("/a b\\", "/dev/r\tx"));
        assert_eq!((&*mount.fstype, &*mount.options), ("ext3", "rw,noatime"));
        assert!(super::mount("36 35 98:0 / /x rw").is_none());
        assert_eq!(plain(r"\04\"), r"\04\");
    }

    #[test]
    fn nobody_who_may_not_answer_is_asked_for_a_size() {
        for (fstype, source) in [
            ("nfs4", "srv:/x"),
            ("fuseblk", "/dev/sda1"),
            ("fuse.sshfs", "a:/"),
            ("autofs", "x"),
            ("proc", "proc"),
        ] {
            assert!(!has_size(fstype, source), "{fstype}");
        }
        assert!(has_size("ext4", "/dev/sda1") && has_size("tmpfs", "tmpfs"));
    }

    #[test]
    fn this_machine_has_mounts() {
        let mounts = mounts(&mut Room::new(1 << 20));
        assert!(mounts.iter().any(|mount| mount.target == "/"));
        let mut room = Room::new(100);
        assert!(super::mounts(&mut room).len() <= 1 && room.is_full());
    }
}
