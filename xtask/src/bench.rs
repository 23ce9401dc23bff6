//! `cargo xtask bench`: builds what ships and measures it. What is measured is known by the example `bench` of the
//! tests' crate.

use anyhow::Result;

use crate::target::Target;
use crate::toolchain::Ways;
use crate::workspace::Workspace;
use crate::{build_cli, dist, process, setup};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How often each short thing is run [default: the bench's own]
    runs: Option<u32>,
    /// Only this part
    #[arg(value_parser = ["runner", "connect", "stream", "become", "apply"])]
    part: Option<String>,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    setup::native_way(workspace)?;
    // As it ships where the standard library can be rebuilt: the budgets are for that.
    let small = Ways::look(workspace)?.has_source();
    dist::run(workspace, &dist::Arguments::only(Target::native()?, small))?;
    let runners = workspace.dist_dir();
    let sortie = build_cli::build(workspace, &runners)?;
    let build = ["build", "--locked", "--release", "--package", "sortie-tests"];
    process::run(workspace.cargo().args(build).args(["--bins", "--example", "bench"]))?;
    let release = workspace.target_dir.join("release");
    let mut bench = process::command(release.join("examples/bench"));
    bench.args(arguments.runs.map(|runs| runs.to_string())).args(&arguments.part);
    bench.env("SORTIE_BIN", sortie).env("SORTIE_TESTHOST", release.join("sortie-testhost"));
    bench.env("SORTIE_BENCH_PEERS", workspace.target_dir.join("bench-peers"));
    process::run(bench.env("SORTIE_TEST_RUNNERS", runners))
}
