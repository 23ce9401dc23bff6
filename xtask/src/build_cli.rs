//! Builds the `sortie` command with the runners of `target/dist` inside. Which those are is `dist`'s affair.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let directory = workspace.dist_dir();
    fs::create_dir_all(&directory)?;
    let mut runners: Vec<String> = fs::read_dir(&directory)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_prefix("sortie-runner-").map(String::from))
        .collect();
    runners.sort();
    if runners.is_empty() {
        eprintln!(
            "No runner lies in {}: the command will need --runners. First: cargo xtask dist",
            directory.display()
        );
    } else {
        eprintln!("Runners inside: {}", runners.join(", "));
    }
    let built = build(workspace, &directory)?;
    let finished = directory.join("sortie");
    let fresh = directory.join(".sortie.new");
    fs::copy(&built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
    fs::rename(&fresh, &finished)?;
    println!("{}", finished.display());
    Ok(())
}

/// Builds the command with the runners of this directory inside; returns where cargo put it.
pub(crate) fn build(workspace: &Workspace, runners: &Path) -> Result<PathBuf> {
    process::run(
        workspace
            .cargo()
            .args(["build", "--locked", "--release", "--package", "sortie-cli"])
            .env("SORTIE_EMBED_RUNNERS", runners),
    )?;
    Ok(workspace.target_dir.join("release/sortie"))
}
