//! The JSON Schema of the protocol: written from the types, or checked to be what the types say.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

const PATH: &str = "docs/schema/protocol-v1.json";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write nothing; fail where the file is not current
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    if arguments.check {
        return check(workspace);
    }
    let path = workspace.root.join(PATH);
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    fs::write(&path, text()?).with_context(|| format!("cannot write {PATH}"))?;
    println!("{PATH}");
    Ok(())
}

/// Fails where the committed schema is not what the types say.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let present = fs::read_to_string(workspace.root.join(PATH)).unwrap_or_default();
    if present != text()? {
        bail!("{PATH} is not what the protocol's types say\n  cargo xtask schema");
    }
    Ok(())
}

fn text() -> Result<String> {
    Ok(serde_json::to_string_pretty(&sortie_protocol::schema())? + "\n")
}
