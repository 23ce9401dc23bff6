//! Builds a runner once more where nothing is as it was the first time but the sources and the tools, and compares: another directory
//! of sources, of results and of cargo's own, another user's name, language and time zone. Whoever has the sources can so see what a
//! runner was made of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process;
use crate::toolchain::Way;
use crate::workspace::Workspace;

/// A directory of this process, removed at the end.
struct Elsewhere(PathBuf);

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Builds `package` again by the same way, and fails unless the result is `first`, byte for byte.
pub(crate) fn compare(
    workspace: &Workspace,
    way: &Way,
    package: &str,
    profile: &str,
    first: &[u8],
) -> Result<()> {
    let name = format!("sortie elsewhere {}", std::process::id());
    let elsewhere = Elsewhere(std::env::temp_dir().join(name));
    let root = elsewhere.0.join("the sources");
    copy(&workspace.root, &root, &[&workspace.target_dir, &workspace.root.join(".git")])
        .with_context(|| format!("cannot copy the sources to {}", root.display()))?;
    let home = elsewhere.0.join("cargo");
    fs::create_dir_all(&home)?;
    // The downloaded crates are the same, found by another path.
    let registry = cargo_home()?.join("registry");
    std::os::unix::fs::symlink(&registry, home.join("registry"))
        .with_context(|| format!("no link to {}", registry.display()))?;
    let copied = Workspace { target_dir: elsewhere.0.join("results"), root, packages: Vec::new() };
    let mut build = way.build_command(&copied, package, profile)?;
    build.arg("--offline").env("CARGO_HOME", &home);
    build.env("USER", "somebody").env("LC_ALL", "C").env("TZ", "UTC-14");
    process::run(&mut build).context("the second build")?;
    let built = way.built(&copied, package, profile);
    let second = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    if let Some(difference) = difference(first, &second) {
        bail!("a second build in another directory gave other bytes: {difference}");
    }
    Ok(())
}

/// Where the two differ first; none where they are the same.
fn difference(first: &[u8], second: &[u8]) -> Option<String> {
    if first == second {
        return None;
    }
    let at = first.iter().zip(second).take_while(|(a, b)| a == b).count();
    Some(format!("{} and {} of them, different from byte {at} on", first.len(), second.len()))
}

/// Copies a directory with all that is in it but `except`.
fn copy(from: &Path, to: &Path, except: &[&Path]) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if except.contains(&path.as_path()) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&path, &target, except)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&path)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

/// As cargo finds it: The Cargo Book, "Cargo Home".
fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME").filter(|home| !home.is_empty()) {
        return Ok(home.into());
    }
    Ok(PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_by_its_place() {
        assert_eq!(difference(b"abc", b"abc"), None);
        assert!(difference(b"abc", b"abd").unwrap().contains("from byte 2"));
        assert!(difference(b"abc", b"ab").unwrap().contains("3 and 2"));
    }

    #[test]
    fn a_copy_has_everything_but_what_is_left_out() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| from.path().join(name);
        fs::create_dir_all(at("target/deep")).unwrap();
        fs::create_dir_all(at("src/target")).unwrap();
        fs::write(at("src/target/mod.rs"), "kept").unwrap();
        fs::write(at("target/deep/file"), "left out").unwrap();
        std::os::unix::fs::symlink("src", at("link")).unwrap();
        let copied = to.path().join("copy");
        copy(from.path(), &copied, &[&at("target")]).unwrap();
        assert_eq!(fs::read_to_string(copied.join("link/target/mod.rs")).unwrap(), "kept");
        assert!(!copied.join("target").exists());
    }
}
