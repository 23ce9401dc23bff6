//! What was tried with which command on which kind of host, and what came of it: lines for the table in
//! `docs/COMMANDS.md`, which `cargo xtask test --full` writes.

use std::fs::OpenOptions;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::Kind;

/// The environment variable that names the file to add lines to.
pub const MATRIX: &str = "SORTIE_MATRIX";

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The command's name on the wire.
    pub command: String,
    /// The kind's name.
    pub kind: String,
    /// What was tried, in a few words.
    pub case: String,
    /// What came of it, in a few words.
    pub outcome: String,
}

/// Notes what came of one case of a command on a kind. A test notes it when it has seen it, so a case that is missing
/// from the table was not tried or did not hold.
///
/// # Errors
/// When the file named by [`MATRIX`] cannot be written. Without the variable nothing happens.
pub fn record(command: &str, kind: Kind, case: &str, outcome: &str) -> Result<()> {
    let Some(path) = std::env::var_os(MATRIX) else { return Ok(()) };
    let line = Line {
        command: command.to_owned(),
        kind: kind.name().to_owned(),
        case: case.to_owned(),
        outcome: outcome.to_owned(),
    };
    let text = serde_json::to_string(&line)? + "\n";
    // One write of one line, so that tests running beside each other do not mix theirs.
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}
