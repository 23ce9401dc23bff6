//! A root file system of busybox and dropbear alone, made of this machine's own programs. It knows no accounts.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

/// busybox under all its names, dropbear, and the libraries that the two need.
///
/// # Errors
/// When a program is not installed or a file cannot be written.
pub fn install(root: &Path) -> Result<()> {
    for dir in ["bin", "sbin", "usr/bin", "usr/sbin", "etc", "mnt", "var"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let find = |name: &str| crate::which(name).with_context(|| format!("{name} is not installed"));
    let (busybox, dropbear) = (find("busybox")?, find("dropbear")?);
    let applets = Command::new(&busybox).arg("--list-full").output().context("busybox --list-full")?;
    for applet in String::from_utf8(applets.stdout)?.lines() {
        let path = root.join(applet);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match symlink("/bin/busybox", &path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
    }
    for (program, place) in [(&busybox, "bin/busybox"), (&dropbear, "usr/sbin/dropbear")] {
        let place = root.join(place);
        // The list of applets has a link of this name.
        let _ = fs::remove_file(&place);
        fs::copy(program, place)?;
        // Of a static program ldd says that it is none of its business, and fails.
        let libraries = Command::new("ldd").arg(program).stderr(Stdio::null()).output().context("ldd")?;
        for library in String::from_utf8(libraries.stdout)?.split_ascii_whitespace() {
            if !library.starts_with('/') || !library.contains(".so") {
                continue;
            }
            let place = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(place.parent().unwrap_or(root))?;
            fs::copy(library, place)?;
        }
    }
    fs::write(root.join("etc/nsswitch.conf"), "passwd: files\ngroup: files\nshadow: files\n")?;
    Ok(())
}
