//! Builds the `sortie` command with the runners of `target/dist` inside. Which those are is `dist`'s affair.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::listing::hex_digest;
use crate::process;
use crate::sbom::{self, Part, Program};
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let directory = workspace.dist_dir();
    fs::create_dir_all(&directory)?;
    let mut runners: Vec<String> = fs::read_dir(&directory)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.ends_with(sbom::SUFFIX))
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
    let described = describe(workspace, &finished, &runners)?;
    eprintln!("What it is made of: {}", described.display());
    println!("{}", finished.display());
    Ok(())
}

/// Writes what the command is made of beside it: its crates, and the runners inside, each of which has a description of its own.
fn describe(workspace: &Workspace, finished: &Path, runners: &[String]) -> Result<PathBuf> {
    let runner = |target: &String| {
        let name = format!("sortie-runner-{target}");
        let bytes = fs::read(finished.with_file_name(&name))?;
        Ok(Part {
            kind: "application",
            name,
            version: workspace.version()?.to_owned(),
            license: "MIT OR Apache-2.0",
            sha256: Some(hex_digest(&bytes)),
        })
    };
    let parts = runners.iter().map(runner).collect::<Result<_>>()?;
    sbom::write(workspace, &Program { package: "sortie-cli", target: None, file: finished, parts })
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
