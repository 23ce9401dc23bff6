//! The static checks that no other tool makes: what dependencies demand and what they are. Run by `test`.

use anyhow::{Context, Result, bail};

use crate::process;
use crate::setup;
use crate::toolchain::minor_version;
use crate::workspace::Workspace;

/// The declared `rust-version` is true: no dependency asks for a newer compiler. (What our own code uses is held to it
/// by clippy's `incompatible_msrv`.)
pub(crate) fn minimum_rust(workspace: &Workspace) -> Result<()> {
    let declared = workspace.minimum_minor()?;
    let newer: Vec<String> = workspace
        .packages
        .iter()
        .filter_map(|package| {
            let wanted = package.rust_version.as_deref()?;
            // What cannot be read is reported, not passed over.
            minor_version(wanted)
                .is_none_or(|minor| minor > declared)
                .then(|| format!("{} {} wants {wanted}", package.name, package.version))
        })
        .collect();
    if !newer.is_empty() {
        bail!("rust-version is declared as 1.{declared}, but {}", newer.join(", "));
    }
    let foreign = workspace.packages.iter().filter(|p| p.source.is_some()).count();
    eprintln!("rust-version 1.{declared} holds for all {foreign} dependencies");
    Ok(())
}

/// Licences, bans and sources by `deny.toml`; advisories where the database can be reached, else said to be unchecked.
pub(crate) fn deny(workspace: &Workspace) -> Result<()> {
    let tool = setup::DENY.ensure(workspace)?;
    let deny = || {
        let mut command = process::command(&tool);
        command.current_dir(&workspace.root).args(["--workspace", "--all-features", "--locked"]);
        command
    };
    process::run(deny().args(["--offline", "check", "bans", "licenses", "sources"]))?;
    match process::output(deny().args(["fetch", "db"])) {
        Ok(_) => process::run(deny().args(["check", "--disable-fetch", "advisories"])).context("advisories"),
        Err(error) => {
            let text = format!("{error:#}");
            let reason = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("");
            println!("advisories NOT CHECKED: the database cannot be reached ({})", reason.trim());
            Ok(())
        }
    }
}
