//! The kinds of hosts: what each is made of, and what of it differs from host to host. It builds nothing.

use std::fmt;

use anyhow::Result;

use super::spec::File;
use crate::keys::KeyPair;

/// A kind of host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Debian 11 with systemd: OpenSSH 8.4, sudo 1.9.5.
    Debian11,
    /// Debian 12 with systemd: OpenSSH 9.2, sudo 1.9.13, doas.
    Debian12,
    /// Debian 13 with systemd: OpenSSH 10.0, sudo 1.9.16, sudo-rs beside it, doas.
    Debian13,
    /// Debian 13 with OpenRC instead of systemd.
    OpenRc,
    /// busybox and dropbear alone: no bash, no python, no sudo, no sftp, no GNU tools, no package manager.
    Busybox,
    /// dnf 4 in the place of apt, with systemd.
    Dnf4,
    /// dnf 5 in the place of apt, with systemd.
    Dnf5,
    /// zypper in the place of apt, with systemd.
    Zypper,
    /// pacman in the place of apt, with systemd.
    Pacman,
    /// Debian 12 with systemd for aarch64, by an emulator where this machine is another.
    Arm64,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 10] = [
        Kind::Debian11,
        Kind::Debian12,
        Kind::Debian13,
        Kind::OpenRc,
        Kind::Busybox,
        Kind::Dnf4,
        Kind::Dnf5,
        Kind::Zypper,
        Kind::Pacman,
        Kind::Arm64,
    ];

    /// Its name: lower case letters and digits.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Debian11 => "debian11",
            Kind::Debian12 => "debian12",
            Kind::Debian13 => "debian13",
            Kind::OpenRc => "openrc",
            Kind::Busybox => "busybox",
            Kind::Dnf4 => "dnf4",
            Kind::Dnf5 => "dnf5",
            Kind::Zypper => "zypper",
            Kind::Pacman => "pacman",
            Kind::Arm64 => "arm64",
        }
    }

    /// Whether every run of the tests has it, and not only `cargo xtask test --full`.
    pub fn is_always_tested(self) -> bool {
        matches!(self, Kind::Debian12 | Kind::Busybox)
    }

    /// Whether systemd is its init.
    pub fn has_systemd(self) -> bool {
        !matches!(self, Kind::OpenRc | Kind::Busybox)
    }

    /// Its first process, where that is not `/sbin/init`.
    pub(super) fn init(self) -> Option<&'static str> {
        match self {
            Kind::Busybox => Some("/sbin/init"),
            _ => None,
        }
    }

    /// What it is made of.
    pub(super) fn recipe(self) -> Recipe {
        let debian = |suite, include: &'static [&'static str], scripts: &'static [&'static str]| {
            Recipe::Debian(Debian { suite, machine: None, include, scripts })
        };
        const SYSTEMD: &[&str] = &["systemd", "systemd-sysv", "dbus"];
        match self {
            Kind::Debian11 => debian("bullseye", SYSTEMD, &[APT]),
            Kind::Debian12 => {
                const DOAS: &[&str] = &["systemd", "systemd-sysv", "dbus", "opendoas"];
                debian("bookworm", DOAS, &[APT])
            }
            Kind::Debian13 => {
                const SUDO_RS: &[&str] = &["systemd", "systemd-sysv", "dbus", "opendoas", "sudo-rs"];
                debian("trixie", SUDO_RS, &[APT])
            }
            Kind::OpenRc => {
                const OPENRC: &[&str] = &[
                    "openrc",
                    "sysvinit-core",
                    // Else these come from systemd itself.
                    "systemd-standalone-sysusers",
                    "systemd-standalone-tmpfiles",
                ];
                debian("trixie", OPENRC, &[APT])
            }
            Kind::Busybox => Recipe::Busybox,
            Kind::Dnf4 => {
                const DNF: &[&str] = &["systemd", "systemd-sysv", "dbus", "dnf", "rpm", "createrepo-c"];
                debian("trixie", DNF, &[RPM, NO_APT])
            }
            Kind::Dnf5 => {
                const DNF5: &[&str] = &["systemd", "systemd-sysv", "dbus", "dnf5", "rpm", "createrepo-c"];
                debian("forky", DNF5, &[RPM, NO_APT])
            }
            Kind::Zypper => {
                const ZYPPER: &[&str] = &["systemd", "systemd-sysv", "dbus", "zypper", "rpm", "createrepo-c"];
                debian("trixie", ZYPPER, &[RPM, NO_APT])
            }
            Kind::Pacman => {
                const PACMAN: &[&str] = &[
                    "systemd",
                    "systemd-sysv",
                    "dbus",
                    "pacman-package-manager",
                    // For repo-add.
                    "makepkg",
                    "libarchive-tools",
                    "zstd",
                ];
                debian("trixie", PACMAN, &[PACMAN_REPOSITORY, NO_APT])
            }
            Kind::Arm64 => Recipe::Debian(Debian {
                suite: "bookworm",
                machine: Some("arm64"),
                include: SYSTEMD,
                scripts: &[APT, EMULATED],
            }),
        }
    }

    /// What makes one host of the image: files to write, and files to remove before.
    pub(super) fn files(self, name: &str, host_key: &KeyPair) -> Result<(Vec<File>, Vec<String>)> {
        let file = |path: &str, mode, content: Vec<u8>| File { path: path.to_owned(), content, mode };
        let mut files = vec![
            file("/etc/hostname", 0o644, format!("{name}\n").into()),
            file("/etc/hosts", 0o644, format!("127.0.0.1 localhost\n127.0.1.1 {name}\n").into()),
        ];
        if self == Kind::Busybox {
            let key = crate::sshd::shell::dropbear_key(host_key)?;
            files.push(file("/etc/dropbear/dropbear_ed25519_host_key", 0o600, key));
            return Ok((files, Vec::new()));
        }
        files.extend([
            // Empty, it is filled at the first boot: machine-id(5).
            file("/etc/machine-id", 0o444, Vec::new()),
            file("/etc/ssh/ssh_host_ed25519_key", 0o600, host_key.private_openssh()?.into()),
            file("/etc/ssh/ssh_host_ed25519_key.pub", 0o644, (host_key.public_openssh()? + "\n").into()),
        ]);
        Ok((files, vec!["/etc/ssh/ssh_host_*".to_owned()]))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an image is made of. Its `Debug` form is part of what names the image: two recipes that differ must differ there.
#[derive(Clone, Debug)]
pub(super) enum Recipe {
    /// This machine's own busybox and dropbear.
    Busybox,
    /// Debian's packages.
    Debian(Debian),
}

#[derive(Clone, Debug)]
pub(super) struct Debian {
    /// The code name of a release.
    pub(super) suite: &'static str,
    /// Debian's name of the machine, where it is not this one.
    pub(super) machine: Option<&'static str>,
    /// Packages beside those that every such image has.
    pub(super) include: &'static [&'static str],
    /// For `sh -e`, run in the image in this order when all packages are there.
    pub(super) scripts: &'static [&'static str],
}

pub(super) const APT: &str = include_str!("recipe/apt.sh");
const RPM: &str = include_str!("recipe/rpm.sh");
const PACMAN_REPOSITORY: &str = include_str!("recipe/pacman.sh");
const EMULATED: &str = include_str!("recipe/emulated.sh");
const NO_APT: &str = include_str!("recipe/no-apt.sh");

/// Makes a module of tests from one function that takes a [`Kind`]: one test for each kind that is
/// named, `debian12` and `busybox` in every run, the others only in that of `cargo xtask test --full`.
/// What cannot be had on this machine is skipped, with the reason.
///
/// ```text
/// for_each_kind!(it_has_a_name: Debian12, Busybox, OpenRc);
/// async fn it_has_a_name(kind: Kind) -> Result<()> { … }
/// ```
#[macro_export]
macro_rules! for_each_kind {
    ($test:ident: $($kind:ident),+ $(,)?) => {
        mod $test {
            // Used also where only other runs have its kinds.
            const _: () = {
                let _ = super::$test;
            };
            $($crate::for_each_kind!(@test $test $kind);)+
        }
    };
    (@test $test:ident Debian11) => { $crate::for_each_kind!(@test #[cfg(feature = "every-kind")] $test Debian11 debian11); };
    (@test $test:ident Debian12) => { $crate::for_each_kind!(@test $test Debian12 debian12); };
    (@test $test:ident Debian13) => { $crate::for_each_kind!(@test #[cfg(feature = "every-kind")] $test Debian13 debian13); };
    (@test $test:ident OpenRc) => { $crate::for_each_kind!(@test #[cfg(feature = "every-kind")] $test OpenRc openrc); };
    (@test $test:ident Busybox) => { $crate::for_each_kind!(@test $test Busybox busybox); };
    (@test $test:ident Dnf4) => { $crate::for_each_kind!(@test #[cfg(feature = "every-kind")] $test Dnf4 dnf4); };
    (@test $test:ident Dnf5) => { $crate::for_each_kind!(@test #[cfg(feature = "every-kind")] $test Dnf5 dnf5); };
    (@test $test:ident Zypper) => { $crate::for_each_kind!(@test #[cfg(feature = "every-kind")] $test Zypper zypper); };
    (@test $test:ident Pacman) => { $crate::for_each_kind!(@test #[cfg(feature = "every-kind")] $test Pacman pacman); };
    (@test $test:ident Arm64) => { $crate::for_each_kind!(@test #[cfg(feature = "every-kind")] $test Arm64 arm64); };
    (@test $(#[$when:meta])? $test:ident $kind:ident $name:ident) => {
        $(#[$when])?
        #[tokio::test]
        async fn $name() -> anyhow::Result<()> {
            $crate::require_kind!($crate::host::Kind::$kind);
            super::$test($crate::host::Kind::$kind).await
        }
    };
}

/// Leaves the calling test unless hosts of these kinds can be had here; their images are built where they are not yet.
#[macro_export]
macro_rules! require_kind {
    ($($kind:expr),+ $(,)?) => {
        $(
            match $crate::host::image::ensure($kind) {
                Ok(_) => {}
                Err($crate::host::Missing::NotHere(reason)) => $crate::skip!("{}: {reason}", $kind),
                Err($crate::host::Missing::Failed(error)) => return Err(error.context($kind.name())),
            }
        )+
    };
}
