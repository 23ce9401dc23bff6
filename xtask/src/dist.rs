//! Builds static runners, checks what came out, and records it. How a runner can be built is `toolchain`'s affair.

use std::fs;
use std::io::Read;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::listing::{self, Made, Sbom, hex_digest};
use crate::target::{SHIPPED, Target};
use crate::toolchain::{Way, WayKind, Ways};
use crate::workspace::Workspace;
use crate::{elf, process, reproduce, sbom};

const PACKAGE: &str = "sortie-runner";
const PROFILE: &str = "runner";
const KIB: u64 = 1024;
/// Five, as in the command's build script.
const PACKING_ROUNDS: NonZeroU64 = NonZeroU64::MIN.saturating_add(4);
/// A runner that has printed nothing for so long never will; emulation included.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

#[derive(Default, clap::Args)]
pub(crate) struct Arguments {
    /// Build for this target alone; may be repeated
    #[arg(long = "target", value_name = "TARGET", value_parser = Target::parse)]
    targets: Vec<Target>,
    /// Make no runner where the standard library cannot be rebuilt for size, instead of a larger one (needs rust-src)
    #[arg(long)]
    small: bool,
    /// Take the ordinary standard library, which is half as large again
    #[arg(long, conflicts_with = "small")]
    ordinary: bool,
    /// Take this way of building only, instead of the first that works
    #[arg(long, value_enum)]
    way: Option<WayKind>,
    /// Build each runner twice, the second time in another directory, and fail unless both have the same bytes
    #[arg(long)]
    twice: bool,
    /// Sign the listing with this key: a private key, or a public key whose private half an ssh-agent holds
    #[arg(long, value_name = "KEY")]
    sign_with: Option<PathBuf>,
}

impl Arguments {
    /// Every target, each built twice.
    pub(crate) fn twice() -> Self {
        Self { twice: true, ..Self::default() }
    }

    /// This target alone, the first way that works.
    pub(crate) fn only(target: Target, small: bool) -> Self {
        Self { targets: vec![target], small, ordinary: !small, ..Self::default() }
    }
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let targets = if arguments.targets.is_empty() { &SHIPPED[..] } else { &arguments.targets };
    let directory = workspace.dist_dir();
    let ways = Ways::look(workspace)?;
    let small = arguments.small || !arguments.ordinary && ways.has_source();
    let mut made = Vec::new();
    let mut failed = 0;
    for target in targets {
        let runner = ways.find(*target, small, arguments.way).and_then(|way| {
            let mut made = make(workspace, &way, &directory)?;
            if arguments.twice {
                let first = fs::read(directory.join(&made.file))?;
                reproduce::compare(workspace, &way, PACKAGE, PROFILE, &first)?;
                eprintln!("{}: the same bytes when built again elsewhere", target.triple);
            }
            made.sbom = Some(describe(workspace, &way, &directory.join(&made.file))?);
            Ok(made)
        });
        match runner {
            Ok(runner) => made.push(runner),
            Err(error) => {
                failed += 1;
                eprintln!("{}: {error:#}", target.triple);
            }
        }
    }
    listing::write(workspace, &directory, &made)?;
    print_table(&made);
    ensure!(failed == 0, "{failed} of {} runners could not be made", targets.len());
    if let Some(key) = &arguments.sign_with {
        listing::sign(&directory, key)?;
    }
    Ok(())
}

/// A runner for tests on this machine: as shipped where there is a way, else static with glibc, which it says.
pub(crate) fn make_for_tests(workspace: &Workspace) -> Result<Made> {
    let native = Target::native()?;
    let ways = Ways::look(workspace)?;
    // As it ships where that can be built, so that what is tested, its size too, is what users get.
    let way = match ways.find(native, ways.has_source(), None) {
        Ok(way) => way,
        Err(error) => {
            eprintln!(
                "{error:#}\nTaking static glibc instead, which is good enough here and never for dist."
            );
            Way::glibc()?
        }
    };
    let directory = workspace.test_runners_dir();
    // What is left of another way must not be what the tests find.
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot empty {}", directory.display()))?;
    }
    make(workspace, &way, &directory)
}

/// Puts the runners of [`run`] for other machines beside the one of [`make_for_tests`], for hosts that are such.
pub(crate) fn add_foreign_for_tests(workspace: &Workspace) -> Result<()> {
    let native = Target::native()?;
    for target in SHIPPED.iter().filter(|target| target.machine != native.machine) {
        let (from, to) = (workspace.dist_dir(), workspace.test_runners_dir());
        let (from, to) = (from.join(target.file_name()), to.join(target.file_name()));
        fs::copy(&from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

/// Builds, checks and puts in place one runner.
fn make(workspace: &Workspace, way: &Way, directory: &Path) -> Result<Made> {
    let target = way.target;
    eprintln!("{}: {way}", target.triple);
    let begun = Instant::now();
    process::run(&mut way.build_command(workspace, PACKAGE, PROFILE)?)?;
    let built = way.built(workspace, PACKAGE, PROFILE);
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    elf::check_static(&bytes, target.elf_machine).with_context(|| format!("{}", built.display()))?;

    fs::create_dir_all(directory)?;
    let file = directory.join(target.file_name());
    // A new file each time: the old one may be running.
    let fresh = directory.join(format!(".{}.new", target.file_name()));
    fs::copy(&built, &fresh).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, &file)?;

    let mut made = Made {
        target: target.triple.into(),
        file: target.file_name(),
        sha256: hex_digest(&bytes),
        size: bytes.len() as u64,
        gzip_size: gzip_size(&bytes)?,
        built: way.to_string(),
        rustc: way.toolchain.version.clone(),
        answered: None,
        sbom: None,
    };
    check_size(way, &made)?;
    made.answered = check_answer(target, &file, &made.sha256)?;
    eprintln!("{}: made in {:.0} s", target.triple, begun.elapsed().as_secs_f64());
    Ok(made)
}

/// Writes what the runner is made of beside it.
fn describe(workspace: &Workspace, way: &Way, file: &Path) -> Result<Sbom> {
    let target = Some(way.target.triple);
    let program = sbom::Program { package: PACKAGE, target, file, parts: way.parts()? };
    let written = sbom::write(workspace, &program)?;
    let name = written.file_name().context("a description without a name")?;
    Ok(Sbom { file: name.to_string_lossy().into_owned(), sha256: hex_digest(&fs::read(&written)?) })
}

/// Holds a runner to its budget of size; static glibc has none.
fn check_size(way: &Way, made: &Made) -> Result<()> {
    if !way.target.triple.contains("musl") {
        return Ok(());
    }
    let (size, gzip_size) = if way.std_rebuilt { (704 * KIB, Some(340 * KIB)) } else { (1152 * KIB, None) };
    let scaled = |limit: u64| if way.target.machine == "x86_64" { limit } else { limit * 135 / 100 };
    let within = |what, is: u64, limit: u64| {
        ensure!(is <= limit, "its {what} is {:.1} KiB, over the budget of {:.1} KiB", kib(is), kib(limit));
        Ok(())
    };
    within("size", made.size, scaled(size))?;
    gzip_size.map_or(Ok(()), |limit| within("gzip size", made.gzip_size, scaled(limit)))
}

/// Starts the runner with an empty standard input: it must say READY with its own hash, then EXIT, and stay on disk
/// with --keep. Returns what ran it.
fn check_answer(target: Target, file: &Path, sha256: &str) -> Result<Option<String>> {
    let (mut command, by) = if target.is_native() {
        (process::command(file), "natively".to_owned())
    } else {
        let emulator = ["arm", "aarch64", "riscv64", "x86_64"]
            .iter()
            .filter(|machine| **machine == target.machine)
            .find_map(|machine| process::which(&format!("qemu-{machine}-static")));
        let Some(emulator) = emulator else {
            eprintln!(
                "{}: NOT RUN, as qemu-{}-static is not installed\n  apt-get install -y --no-install-recommends qemu-user-static",
                target.triple, target.machine
            );
            return Ok(None);
        };
        let mut command = process::command(&emulator);
        command.arg(file);
        (command, format!("by qemu-{}-static", target.machine))
    };
    let printed = printed_by(command.arg("--keep"))?;
    let frames = printed
        .lines()
        .map(serde_json::from_str::<serde_json::Value>)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("the runner printed other than frames: {printed:?}"))?;
    let of_type = |frame: Option<&serde_json::Value>, name: &str| frame.is_some_and(|f| f["type"] == name);
    ensure!(of_type(frames.first(), "READY"), "the runner did not begin with READY: {printed:?}");
    ensure!(of_type(frames.last(), "EXIT"), "the runner did not end with EXIT: {printed:?}");
    let said = &frames[0]["data"]["sha256"];
    ensure!(said == sha256, "the runner says that its sha256 is {said}, which is {sha256}");
    ensure!(file.exists(), "the runner deleted itself in spite of --keep");
    Ok(Some(by))
}

/// What a program prints until it closes its output, which it must within the limit.
fn printed_by(command: &mut Command) -> Result<String> {
    struct Ended(Child);
    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let mut child = Ended(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", process::shown(command)))?,
    );
    let mut stdout = child.0.stdout.take().context("no pipe from the runner")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut printed = String::new();
        let result = stdout.read_to_string(&mut printed).map(|_| printed);
        let _ = sender.send(result);
    });
    match receiver.recv_timeout(ANSWER_LIMIT) {
        Ok(printed) => {
            let printed = printed?;
            let status = child.0.wait()?;
            ensure!(status.success(), "{status}: {} after printing {printed:?}", process::shown(command));
            Ok(printed)
        }
        Err(_) => bail!("{} did not end within {} s", process::shown(command), ANSWER_LIMIT.as_secs()),
    }
}

fn print_table(made: &[Made]) {
    for runner in made {
        println!(
            "{:32} {:>7.1} KiB {:>7.1} KiB gzip  sha256 {}…  answers {}; {}",
            runner.target,
            kib(runner.size),
            kib(runner.gzip_size),
            &runner.sha256[..12],
            runner.answered.as_deref().unwrap_or("NOT RUN"),
            runner.built,
        );
    }
}

fn gzip_size(bytes: &[u8]) -> Result<u64> {
    let mut packed = Vec::new();
    let options = zopfli::Options { iteration_count: PACKING_ROUNDS, ..zopfli::Options::default() };
    zopfli::compress(options, zopfli::Format::Gzip, bytes, &mut packed)?;
    Ok(packed.len() as u64)
}

fn kib(bytes: u64) -> f64 {
    bytes as f64 / KIB as f64
}
