//! How a test that cannot run here says so: one line on stderr and in the file named by `SORTIE_SKIP_LOG`, which the
//! runner of the tests reads to decide whether "nothing skipped" is true. It must never pass for a success in silence.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Leaves the calling test, recording why it cannot run here. The test must return `()` or a `Result<(), _>`.
///
/// ```no_run
/// # fn test() {
/// if !sortie_tests::is_root() {
///     sortie_tests::skip!("needs root");
/// }
/// # }
/// ```
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::skipped(&format!($($reason)*));
        return $crate::Skipped::skipped();
    }};
}

/// Leaves the calling test unless it runs as root: namespaces, mounts and users of a test's own need it.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::is_root() {
            $crate::skip!("needs root");
        }
    };
}

/// Leaves the calling test unless every named program is on this machine.
#[macro_export]
macro_rules! require_programs {
    ($($name:expr),+ $(,)?) => {
        $(
            if $crate::which($name).is_none() {
                $crate::skip!("needs the program {}", $name);
            }
        )+
    };
}

/// Leaves the calling test unless every named file is on this machine: what is no program, such as a library to be loaded.
#[macro_export]
macro_rules! require_files {
    ($($path:expr),+ $(,)?) => {
        $(
            if !std::path::Path::new($path).is_file() {
                $crate::skip!("needs the file {}", $path);
            }
        )+
    };
}

/// What a skipped test returns.
pub trait Skipped {
    /// The value that ends the test without failing it.
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() {}
}

impl<E> Skipped for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Records that the calling test was skipped. Use [`skip!`](crate::skip!), which also returns.
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("?"));
    eprint!("{line}");
    let Some(log) = std::env::var_os("SORTIE_SKIP_LOG") else { return };
    // One write of one line, so that tests running beside each other do not mix theirs.
    let written = OpenOptions::new().create(true).append(true).open(&log);
    if let Err(error) = written.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("cannot write the skip log {}: {error}", Path::new(&log).display());
    }
}

/// Whether this process has uid 0.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Where `name` is on `PATH` or in the directories for system programs, which a user's `PATH` may lack.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| nix::unistd::access(candidate, nix::unistd::AccessFlags::X_OK).is_ok())
}
