//! `cargo xtask demo`: builds a runner for this machine and shows the main job with it. What is shown, and checked, is
//! known by the example `demo` of the tests' crate.

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{dist, process, setup};

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    // Without a way of building for musl the demo still works, with static glibc.
    setup::native_way(workspace)?;
    dist::make_for_tests(workspace)?;
    // With the whole workspace's features, so that `cargo xtask test` builds nothing of this again.
    process::run(workspace.cargo().args(["build", "--locked", "--workspace", "--example", "demo"]))?;
    let demo = workspace.target_dir.join("debug/examples/demo");
    process::run(process::command(demo).env("SORTIE_TEST_RUNNERS", workspace.test_runners_dir()))
}
