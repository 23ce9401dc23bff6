//! `cargo xtask test`: every check and every test, in an order that lets the tests' own summary come last. What each
//! check means is known by `checks` and `schema`; this file knows order, time and what counts as failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::matrix::Matrix;
use crate::workspace::Workspace;
use crate::{checks, dist, example, fuzz, process, schema, setup};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Also every kind of host, the runners of all four machines, each built twice, and a minute of fuzzing for each target
    #[arg(long)]
    full: bool,
    /// Run only tests whose names contain one of these, and no other checks
    filters: Vec<String>,
}

/// With the tests of every kind of host.
const EVERY_KIND: [&str; 2] = ["--features", "sortie-tests/every-kind"];

/// Steps with the time each took.
#[derive(Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn step<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("== {name}");
        let begun = Instant::now();
        let result = step().with_context(|| format!("step {name:?}"))?;
        self.0.push((name, begun.elapsed()));
        Ok(result)
    }
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let mut steps = Steps::default();
    let cargo = |command: &[&str]| process::run(workspace.cargo().args(command));
    let missing = steps.step("setup", || setup::for_tests(workspace))?;
    for thing in &missing {
        eprintln!("{thing}");
    }
    if arguments.filters.is_empty() {
        steps.step("format", || cargo(&["fmt", "--all", "--check"]))?;
        steps.step("schema", || schema::check(workspace))?;
        steps.step("rust-version", || checks::minimum_rust(workspace))?;
        steps.step("deny", || checks::deny(workspace))?;
        steps.step("example", || example::check(workspace))?;
        steps.step("clippy", || {
            cargo(&[
                "clippy",
                "--quiet",
                "--locked",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])?;
            // What nothing else is built with.
            let otel = ["-p", "sortie-cli", "--features", "otel", "--", "-D", "warnings"];
            cargo(&[&["clippy", "--quiet", "--locked"][..], &otel].concat())
        })?;
        steps.step("documentation", || {
            let mut command = workspace.cargo();
            command.args([
                "doc",
                "--quiet",
                "--locked",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ]);
            process::run(command.env("RUSTDOCFLAGS", "-D warnings"))
        })?;
    }
    steps.step("runner", || dist::make_for_tests(workspace))?;
    if arguments.full {
        for thing in setup::for_hosts() {
            eprintln!("{thing}");
        }
        steps.step("setup for dist", || setup::for_dist(workspace))?;
        steps.step("runners of all machines", || {
            dist::run(workspace, &dist::Arguments::twice())?;
            dist::add_foreign_for_tests(workspace)
        })?;
    }
    if arguments.filters.is_empty() {
        steps.step("documentation's examples", || {
            cargo(&["test", "--quiet", "--locked", "--workspace", "--doc"])
        })?;
    }
    // Programs too: tests start them, and the runner of tests builds only those of a package with tests of its own.
    steps.step("building tests", || {
        let mut command = workspace.cargo();
        command.args(["build", "--locked", "--workspace", "--all-targets"]);
        process::run(command.args(arguments.full.then_some(EVERY_KIND).into_iter().flatten()))
    })?;
    steps.step("building the example", || example::build(workspace))?;
    // Else the first test of each kind of host would wait for minutes.
    steps.step("images of hosts", || {
        let mut command = process::command(workspace.target_dir.join("debug/sortie-testhost"));
        command.arg("images").args(arguments.full.then_some("--full"));
        process::run(&mut command)
    })?;
    if arguments.full && arguments.filters.is_empty() {
        steps.step("fuzzing", || fuzz::run_all(workspace))?;
    }
    let times: Vec<String> =
        steps.0.iter().map(|(name, time)| format!("{name} {:.0} s", time.as_secs_f64())).collect();
    println!("passed: {}", times.join(", "));
    tests(workspace, arguments)
}

fn nextest(workspace: &Workspace) -> Result<std::process::Command> {
    let tool = setup::NEXTEST.ensure(workspace)?;
    let mut command = process::command(tool);
    command.current_dir(&workspace.root).env("CARGO_TARGET_DIR", &workspace.target_dir).arg("nextest");
    Ok(command)
}

fn tests(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let log = SkipLog::create(&workspace.target_dir.join("skipped-tests.log"))?;
    let mut command = nextest(workspace)?;
    command.args(["run", "--locked", "--workspace"]).args(&arguments.filters);
    command.env("SORTIE_TEST_RUNNERS", workspace.test_runners_dir()).env("SORTIE_SKIP_LOG", &log.0);
    // Of an error the text counts: the backtrace through the async runtime hides it.
    command.env("RUST_LIB_BACKTRACE", "0");
    let matrix = Matrix::create(&workspace.target_dir.join("matrix.jsonl"))?;
    if arguments.full {
        command.args(EVERY_KIND).env("SORTIE_MATRIX", matrix.path());
    }
    process::run(&mut command)?;
    // Only a run of everything has the whole of it.
    if arguments.full && arguments.filters.is_empty() {
        matrix.write_document(workspace)?;
    }
    log.judge(std::env::var("CI").is_ok_and(|value| value == "true"))
}

/// The file in which tests say that they could not run here.
struct SkipLog(PathBuf);

impl SkipLog {
    fn create(path: &Path) -> Result<Self> {
        fs::write(path, "").with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    /// Says what was skipped, if anything was; an error where nothing may be.
    fn judge(&self, none_allowed: bool) -> Result<()> {
        let text =
            fs::read_to_string(&self.0).with_context(|| format!("cannot read {}", self.0.display()))?;
        let count = text.lines().count();
        if count == 0 {
            return Ok(());
        }
        println!("{text}{count} tests SKIPPED");
        if none_allowed {
            bail!("{count} tests were skipped, which CI=true forbids");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_with(name: &str, text: &str) -> SkipLog {
        let path = std::env::temp_dir().join(format!("sortie-xtask-{name}-{}", std::process::id()));
        let log = SkipLog::create(&path).unwrap();
        fs::write(&log.0, text).unwrap();
        log
    }

    #[test]
    fn a_skipped_test_fails_only_where_none_may_be_skipped() {
        let some = log_with("some", "SKIPPED a: needs root\nSKIPPED b: needs fish\n");
        some.judge(false).unwrap();
        assert!(some.judge(true).unwrap_err().to_string().contains("2 tests"));
        let none = log_with("none", "");
        none.judge(true).unwrap();
        for log in [some, none] {
            fs::remove_file(log.0).unwrap();
        }
    }
}
