//! `cargo xtask bench`: the budgets, measured as ratios against a peer in the same run. Nothing here passes or fails:
//! it prints figures, their spread and the budget beside them.

mod apply;
mod becoming;
mod connect;
mod measure;
mod peers;
mod runner;
mod stream;
mod table;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use table::Table;

/// What is measured, and how often.
struct Bench {
    /// Runs of each short thing.
    runs: usize,
    /// The `sortie` command.
    sortie: PathBuf,
    table: Table,
}

#[tokio::main]
async fn main() -> Result<()> {
    let sortie = std::env::var_os("SORTIE_BIN")
        .context("SORTIE_BIN names no sortie command: use cargo xtask bench")?;
    let runs = std::env::args().nth(1).map_or(Ok(15), |n| n.parse()).context("how many runs?")?;
    let mut bench = Bench { runs, sortie: sortie.into(), table: Table::default() };
    println!("{} runs of each; median (lowest to highest)\n", bench.runs);
    let part = std::env::args().nth(2);
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if wanted("runner") {
        runner::measure(&mut bench).await?;
    }
    if wanted("connect") {
        connect::measure(&mut bench).await?;
    }
    if wanted("stream") {
        stream::measure(&mut bench).await?;
    }
    if wanted("become") {
        becoming::measure(&mut bench.table, bench.runs)?;
    }
    if wanted("apply") {
        apply::measure(&mut bench)?;
    }
    Ok(())
}
