//! `cargo xtask fuzz`: builds the targets of `fuzz/` with libFuzzer and runs them, one after the other. What a target does, and
//! the replay of its corpus, is the business of the crate that it is about.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::process;
use crate::target::Target;
use crate::workspace::Workspace;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Keep of what was found in the last runs what reaches more code than fuzz/corpus does, as far as a file has at most so many bytes
    #[arg(long, value_name = "BYTES")]
    keep: Option<u64>,
    /// Only these targets, instead of all
    targets: Vec<String>,
}

const MANIFEST: &str = "fuzz/Cargo.toml";

/// What an input may take before it is a finding: seconds, and MiB of memory.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=1024"];

/// libFuzzer's coverage, as its documentation and that of SanitizerCoverage have it: counters in line, a table of places, and
/// comparisons, whose operands guide it.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let all = targets(workspace)?;
    for wanted in &arguments.targets {
        ensure!(all.contains(wanted), "there is no target {wanted:?}, but {}", all.join(", "));
    }
    let chosen: Vec<&String> =
        all.iter().filter(|name| arguments.targets.is_empty() || arguments.targets.contains(name)).collect();
    let programs = build(workspace)?;
    for name in chosen {
        let target = Place::new(workspace, &programs, name)?;
        match arguments.keep {
            Some(bytes) => target.keep(bytes)?,
            None => target.run(arguments.seconds)?,
        }
    }
    Ok(())
}

/// Every target, as the manifest names them.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        targets: Vec<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
        kind: Vec<String>,
    }
    let mut command = workspace.cargo();
    command.args(["metadata", "--format-version=1", "--no-deps", "--manifest-path", MANIFEST]);
    let metadata: Metadata = serde_json::from_str(&process::output(&mut command)?)?;
    let targets = metadata.packages.into_iter().flat_map(|package| package.targets);
    Ok(targets.filter(|target| target.kind == ["bin"]).map(|target| target.name).collect())
}

/// Builds all of them; where they are.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let host = Target::native()?.triple.replace("-musl", "-gnu");
    let mut flags: Vec<&str> = COVERAGE.to_vec();
    flags.extend(["--cfg=fuzzing", "-Ccodegen-units=1"]);
    let mut command = workspace.cargo();
    if has_address_sanitizer(workspace, &host)? {
        // The flag is not stable, what it does is what every fuzzer of the language has by default.
        flags.push("-Zsanitizer=address");
        command.env("RUSTC_BOOTSTRAP", "1");
    } else {
        eprintln!("this compiler has no AddressSanitizer: faults of memory are found only where they crash");
    }
    // With a target given the flags are not for build scripts, which have no fuzzer to be linked to.
    command.args(["build", "--release", "--locked", "--manifest-path", MANIFEST, "--target", &host]);
    command.env("RUSTFLAGS", flags.join(" ")).env("CARGO_TARGET_DIR", workspace.target_dir.join("fuzz"));
    process::run(&mut command).context(
        "cp Cargo.lock fuzz/ && cargo update --workspace --manifest-path fuzz/Cargo.toml renews its lock file",
    )?;
    Ok(workspace.target_dir.join("fuzz").join(host).join("release"))
}

fn has_address_sanitizer(workspace: &Workspace, host: &str) -> Result<bool> {
    let mut command = process::command(process::env_or("RUSTC", "rustc"));
    command.current_dir(&workspace.root).args(["--print", "target-libdir", "--target", host]);
    let directory = process::output(&mut command)?;
    let files = fs::read_dir(directory.trim()).into_iter().flatten().flatten();
    Ok(files.map(|file| file.file_name()).any(|name| name.to_string_lossy().ends_with("rt.asan.a")))
}

/// A target and its directories.
struct Place<'a> {
    name: &'a str,
    program: PathBuf,
    /// What is kept with the source.
    corpus: PathBuf,
    /// What was found on the way, by this and earlier runs.
    found: PathBuf,
    /// Inputs that broke it.
    broke: PathBuf,
}

impl<'a> Place<'a> {
    fn new(workspace: &Workspace, programs: &Path, name: &'a str) -> Result<Self> {
        let place = Self {
            name,
            program: programs.join(name),
            corpus: workspace.root.join("fuzz/corpus").join(name),
            found: workspace.target_dir.join("fuzz/corpus").join(name),
            broke: workspace.root.join("fuzz/artifacts").join(name),
        };
        ensure!(
            place.corpus.is_dir(),
            "{} is missing: a target begins with some inputs",
            place.corpus.display()
        );
        for directory in [&place.found, &place.broke] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(place)
    }

    fn run(&self, seconds: u32) -> Result<()> {
        eprintln!("== fuzzing {} for {seconds} s", self.name);
        let mut command = process::command(&self.program);
        command
            .args(LIMITS)
            .arg(format!("-max_total_time={seconds}"))
            .args(["-print_final_stats=1", "-verbosity=0"]);
        command.arg(format!("-artifact_prefix={}/", self.broke.display())).args([&self.found, &self.corpus]);
        if process::run(&mut command).is_ok() {
            return Ok(());
        }
        bail!(
            "{} was broken by an input in {}: see it again with {} FILE, mend what it found, and keep the file in {}",
            self.name,
            self.broke.display(),
            self.program.display(),
            self.corpus.display()
        )
    }

    /// Copies what adds to the corpus into it.
    fn keep(&self, most: u64) -> Result<()> {
        let merged = self.found.with_extension("merged");
        let _ = fs::remove_dir_all(&merged);
        fs::create_dir_all(&merged)?;
        let mut command = process::command(&self.program);
        command.args(LIMITS).args(["-merge=1", "-verbosity=0"]).args([&merged, &self.corpus, &self.found]);
        process::run(&mut command)?;
        for entry in fs::read_dir(&merged)? {
            let entry = entry?;
            if entry.metadata()?.len() <= most {
                fs::copy(entry.path(), self.corpus.join(entry.file_name()))?;
            }
        }
        Ok(())
    }
}

/// Every target for a minute, as `cargo xtask test --full` does it.
pub(crate) fn run_all(workspace: &Workspace) -> Result<()> {
    run(workspace, &Arguments { seconds: 60, keep: None, targets: Vec::new() })
}
