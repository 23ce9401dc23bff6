//! `examples/embed`, the tool of somebody else: that it builds by itself, and what it needs. It stands outside the
//! workspace, so that nothing of the workspace's own tells it what to depend on.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::process;
use crate::workspace::Workspace;

const MANIFEST: &str = "examples/embed/Cargo.toml";

/// How to mend its lock file, as a sentence.
const RENEW: &str = "cp Cargo.lock examples/embed/ && cargo update --workspace --manifest-path examples/embed/Cargo.toml \
                     takes over the versions of the workspace";

/// Builds it, into the target directory that has most of what it needs already.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    process::run(workspace.cargo().args(["build", "--locked", "--manifest-path", MANIFEST])).context(RENEW)
}

/// It is formatted, locked to the very versions that the workspace is tested with, and needs nothing that only the
/// command line of Sortie needs.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    process::run(workspace.cargo().args(["fmt", "--check", "--manifest-path", MANIFEST]))?;
    same_versions(workspace).context(RENEW)?;
    let tree = |arguments: &[&str]| -> Result<BTreeSet<String>> {
        let mut command = workspace.cargo();
        command.args([
            "tree",
            "--quiet",
            "--locked",
            "--prefix=none",
            "--format={p}",
            "--edges=normal,build",
        ]);
        let text = process::output(command.args(arguments))?;
        Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    };
    let (cli, client) = (tree(&["--package=sortie-cli"])?, tree(&["--package=sortie-client"])?);
    let only_cli: BTreeSet<&String> = cli.difference(&client).collect();
    for known in ["clap", "anyhow"] {
        ensure!(
            only_cli.contains(&known.to_owned()),
            "{known} is not among what only the command needs: {only_cli:?}"
        );
    }
    let example = tree(&["--manifest-path", MANIFEST])?;
    ensure!(example.contains("sortie-client"), "the example does not embed the client: {example:?}");
    let pulled: Vec<&String> = example.iter().filter(|name| only_cli.contains(name)).collect();
    ensure!(pulled.is_empty(), "who embeds sortie-client gets what only the command needs: {pulled:?}");
    eprintln!(
        "{} packages for who embeds the client, without {} of the command",
        example.len(),
        only_cli.len()
    );
    Ok(())
}

fn same_versions(workspace: &Workspace) -> Result<()> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    let arguments = ["metadata", "--format-version=1", "--locked", "--manifest-path", MANIFEST];
    let metadata: Metadata = serde_json::from_str(&process::output(workspace.cargo().args(arguments))?)?;
    let ours: BTreeSet<(&str, &str)> =
        workspace.packages.iter().map(|package| (&*package.name, &*package.version)).collect();
    let other: Vec<String> = metadata
        .packages
        .iter()
        .filter(|package| package.name != "embed" && !ours.contains(&(&*package.name, &*package.version)))
        .map(|package| format!("{} {}", package.name, package.version))
        .collect();
    ensure!(other.is_empty(), "the example is locked to what the workspace has not: {}", other.join(", "));
    Ok(())
}
