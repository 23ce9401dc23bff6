//! The machines a runner is built for: their names in every tool's language. It knows nothing of how one is built.

use anyhow::{Result, bail};

/// A kind of host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    /// rustc's name of it.
    pub(crate) triple: &'static str,
    /// zig's name of it.
    pub(crate) zig: &'static str,
    /// `uname -m` and the suffix of `qemu-*-static`.
    pub(crate) machine: &'static str,
    /// `e_machine` of its ELF files (elf(5)).
    pub(crate) elf_machine: u16,
}

/// What the runner ships for.
pub(crate) const SHIPPED: [Target; 4] = [
    Target {
        triple: "x86_64-unknown-linux-musl",
        zig: "x86_64-linux-musl",
        machine: "x86_64",
        elf_machine: 62,
    },
    Target {
        triple: "aarch64-unknown-linux-musl",
        zig: "aarch64-linux-musl",
        machine: "aarch64",
        elf_machine: 183,
    },
    Target {
        triple: "armv7-unknown-linux-musleabihf",
        zig: "arm-linux-musleabihf",
        machine: "arm",
        elf_machine: 40,
    },
    Target {
        triple: "riscv64gc-unknown-linux-musl",
        zig: "riscv64-linux-musl",
        machine: "riscv64",
        elf_machine: 243,
    },
];

/// Static with glibc, for this machine alone: what a demo or a test can use where no musl is to be had.
const GLIBC: [Target; 3] = [
    Target {
        triple: "x86_64-unknown-linux-gnu",
        zig: "x86_64-linux-gnu",
        machine: "x86_64",
        elf_machine: 62,
    },
    Target {
        triple: "aarch64-unknown-linux-gnu",
        zig: "aarch64-linux-gnu",
        machine: "aarch64",
        elf_machine: 183,
    },
    Target {
        triple: "riscv64gc-unknown-linux-gnu",
        zig: "riscv64-linux-gnu",
        machine: "riscv64",
        elf_machine: 243,
    },
];

impl Target {
    /// The shipped target with this triple.
    pub(crate) fn parse(triple: &str) -> Result<Self, String> {
        SHIPPED
            .into_iter()
            .find(|t| t.triple == triple)
            .ok_or_else(|| format!("the runner ships for {}", SHIPPED.map(|t| t.triple).join(", ")))
    }

    /// The shipped target of this machine.
    pub(crate) fn native() -> Result<Self> {
        native(&SHIPPED)
    }

    /// Static glibc on this machine.
    pub(crate) fn native_glibc() -> Result<Self> {
        native(&GLIBC)
    }

    /// Whether this machine runs its programs itself.
    pub(crate) fn is_native(&self) -> bool {
        cfg!(target_os = "linux") && self.machine == std::env::consts::ARCH
    }

    /// The name of its runner's file.
    pub(crate) fn file_name(&self) -> String {
        format!("sortie-runner-{}", self.triple)
    }
}

fn native(targets: &[Target]) -> Result<Target> {
    match targets.iter().find(|t| t.is_native()) {
        Some(target) => Ok(*target),
        None => bail!(
            "no runner is built for {} on {}; this task needs one for the machine it runs on",
            std::env::consts::OS,
            std::env::consts::ARCH
        ),
    }
}
