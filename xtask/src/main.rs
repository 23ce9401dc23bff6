//! `cargo xtask`: everything that is done to the project rather than by it. Argument parsing only; one file per task.
#![forbid(unsafe_code)]

mod bench;
mod build_cli;
mod checks;
mod demo;
mod dist;
mod elf;
mod example;
mod fuzz;
mod listing;
mod matrix;
mod process;
mod reproduce;
mod sbom;
mod schema;
mod setup;
mod target;
mod test;
mod toolchain;
mod workspace;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Development tasks of Sortie.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the other tasks need, as far as this machine and this user allow, and name the rest
    Setup(setup::Arguments),
    /// Build and check the static runners; writes target/dist/sortie-runner-TARGET and target/dist/runners.json
    Dist(dist::Arguments),
    /// Build the sortie command with the runners of target/dist inside; writes target/dist/sortie
    Build,
    /// Show the main job against an SSH server of our own on loopback; needs neither root nor sshd
    Demo,
    /// Measure the budgets as ratios against peers in the same run
    Bench(bench::Arguments),
    /// Run every check and every test
    Test(test::Arguments),
    /// Run what reads foreign input on inputs made up by libFuzzer, each target for a minute
    Fuzz(fuzz::Arguments),
    /// Write docs/schema/protocol-v1.json from the protocol's types
    Schema(schema::Arguments),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let workspace = Workspace::find()?;
    match arguments.task {
        Task::Setup(arguments) => setup::run(&workspace, &arguments),
        Task::Dist(arguments) => dist::run(&workspace, &arguments),
        Task::Build => build_cli::run(&workspace),
        Task::Demo => demo::run(&workspace),
        Task::Bench(arguments) => bench::run(&workspace, &arguments),
        Task::Test(arguments) => test::run(&workspace, &arguments),
        Task::Fuzz(arguments) => fuzz::run(&workspace, &arguments),
        Task::Schema(arguments) => schema::run(&workspace, &arguments),
    }
}
