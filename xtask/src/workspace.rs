//! Where things lie: the workspace, its target directory and what tasks put there, as cargo itself sees them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;
use crate::toolchain::minor_version;

/// The workspace this `cargo xtask` was called in.
pub(crate) struct Workspace {
    /// The directory of the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// cargo's target directory, absolute, whichever way it was configured.
    pub(crate) target_dir: PathBuf,
    /// Every package in the dependency graph, for all platforms and features.
    pub(crate) packages: Vec<Package>,
}

/// What `cargo metadata` says of a package.
#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) rust_version: Option<String>,
    /// `None` for our own packages.
    pub(crate) source: Option<String>,
}

impl Workspace {
    /// Asks cargo; the lock file must be current.
    pub(crate) fn find() -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            workspace_root: PathBuf,
            target_directory: PathBuf,
            packages: Vec<Package>,
        }
        // Set by `cargo run`; a fallback lets the binary be started by hand from anywhere inside the workspace.
        let here = process::env_or("CARGO_MANIFEST_DIR", ".");
        let text = process::output(
            process::command(process::env_or("CARGO", "cargo"))
                .args(["metadata", "--format-version=1", "--all-features", "--locked"])
                .current_dir(here),
        )?;
        let metadata: Metadata =
            serde_json::from_str(&text).context("cargo metadata printed other than expected")?;
        Ok(Self {
            root: metadata.workspace_root,
            target_dir: metadata.target_directory,
            packages: metadata.packages,
        })
    }

    /// The `y` of the `rust-version` 1.y that our packages declare.
    pub(crate) fn minimum_minor(&self) -> Result<u32> {
        let own = self.packages.iter().filter(|p| p.source.is_none()).find_map(|p| p.rust_version.as_deref());
        own.and_then(minor_version).context("no package of the workspace declares a rust-version")
    }

    /// The version of our own packages.
    pub(crate) fn version(&self) -> Result<&str> {
        let own = self.packages.iter().find(|package| package.source.is_none());
        Ok(&own.context("cargo metadata names no package of the workspace")?.version)
    }

    /// Where finished runners and the command with them inside go.
    pub(crate) fn dist_dir(&self) -> PathBuf {
        self.target_dir.join("dist")
    }

    /// Where the runner goes that tests use, apart from `dist` so that no old foreign one lies beside it.
    pub(crate) fn test_runners_dir(&self) -> PathBuf {
        self.target_dir.join("test-runners")
    }

    /// Tools that were installed for this workspace alone.
    pub(crate) fn tools_dir(&self) -> PathBuf {
        self.target_dir.join("tools")
    }

    /// The cargo that runs us, in the root and with our target directory.
    pub(crate) fn cargo(&self) -> Command {
        self.cargo_at(&process::env_or("CARGO", "cargo"))
    }

    /// Another cargo in the same place.
    pub(crate) fn cargo_at(&self, cargo: &std::ffi::OsStr) -> Command {
        let mut command = process::command(cargo);
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target_dir);
        command
    }
}
