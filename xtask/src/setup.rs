//! Installs what the other tasks need as far as machine and user allow, and names the rest with the command that would
//! help. Quick where all is there. It never decides what a task does without something.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;

use crate::process::{self, which};
use crate::target::{SHIPPED, Target};
use crate::toolchain::{self, DEBIAN_TOOLCHAIN, Ways, ZIG_PACKAGE};
use crate::workspace::Workspace;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only what this task needs, instead of everything
    #[arg(long, value_enum)]
    only: Option<For>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum For {
    Test,
    Dist,
}

/// A program that tests start, or the absolute path of a library that they have loaded, and Debian's package of it.
struct Program {
    name: &'static str,
    package: &'static str,
}

impl Program {
    fn is_there(&self) -> bool {
        if self.name.starts_with('/') { Path::new(self.name).is_file() } else { which(self.name).is_some() }
    }
}

const fn program(name: &'static str, package: &'static str) -> Program {
    Program { name, package }
}

const TEST_PROGRAMS: [Program; 25] = [
    program("sshd", "openssh-server"),
    program("ssh", "openssh-client"),
    program("ssh-keygen", "openssh-client"),
    program("ssh-agent", "openssh-client"),
    program("ssh-add", "openssh-client"),
    program("sudo", "sudo"),
    program("bash", "bash"),
    program("dash", "dash"),
    program("tcsh", "tcsh"),
    program("fish", "fish"),
    program("busybox", "busybox"),
    program("dropbear", "dropbear-bin"),
    program("strace", "strace"),
    program("ip", "iproute2"),
    program("unshare", "util-linux"),
    program("gzip", "gzip"),
    program("setfacl", "acl"),
    program("setfattr", "attr"),
    program("ps", "procps"),
    program("systemd-nspawn", "systemd-container"),
    program("mmdebstrap", "mmdebstrap"),
    program("nft", "nftables"),
    program("softhsm2-util", "softhsm2"),
    program("/usr/lib/softhsm/libsofthsm2.so", "libsofthsm2"),
    program("/usr/lib/openssh/regress/misc/sk-dummy/sk-dummy.so", "openssh-tests"),
];

const EMULATORS: [Program; 3] = [
    program("qemu-aarch64-static", "qemu-user-static"),
    program("qemu-arm-static", "qemu-user-static"),
    program("qemu-riscv64-static", "qemu-user-static"),
];

const MACHINE_PROGRAMS: [Program; 2] =
    [program("qemu-system-x86_64", "qemu-system-x86"), program("mke2fs", "e2fsprogs")];

/// A cargo subcommand that is built where it is not found, without optimisation: it runs once.
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
}

pub(crate) const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2" };
pub(crate) const NEXTEST: Tool = Tool { name: "cargo-nextest", version: "0.9.143" };

/// What could not be had: a sentence, with the command that would help on lines of its own.
pub(crate) type Missing = Vec<String>;

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let mut missing = Missing::new();
    if arguments.only != Some(For::Dist) {
        missing.extend(for_tests(workspace)?);
    }
    if arguments.only != Some(For::Test) {
        missing.extend(for_dist(workspace)?);
    }
    if arguments.only.is_none() {
        missing.extend(for_hosts());
    }
    if missing.is_empty() {
        println!("Everything is there.");
        return Ok(());
    }
    bail!("{} things are missing:\n{}", missing.len(), missing.join("\n"))
}

/// What `cargo xtask test` needs, a way of building this machine's runner among it.
pub(crate) fn for_tests(workspace: &Workspace) -> Result<Missing> {
    let mut apt = Apt::default();
    let mut missing = apt.ensure(&TEST_PROGRAMS);
    missing.extend(ensure_component(workspace, "rustfmt", "fmt"));
    missing.extend(ensure_component(workspace, "clippy", "clippy"));
    for tool in [&DENY, &NEXTEST] {
        if let Err(error) = tool.ensure(workspace) {
            missing.push(format!("{error:#}"));
        }
    }
    missing.extend(ensure_ways(workspace, &[Target::native()?], &mut apt)?);
    add_library_source(workspace)?;
    Ok(missing)
}

/// Tries to have the source of the standard library, which makes runners as small as they ship.
fn add_library_source(workspace: &Workspace) -> Result<bool> {
    Ok(Ways::look(workspace)?.has_source() || rustup(&["component", "add", "rust-src"]).is_ok())
}

/// Tries to give this machine's own target a way of being built; says what is missing and leaves it at that.
pub(crate) fn native_way(workspace: &Workspace) -> Result<()> {
    for thing in ensure_ways(workspace, &[Target::native()?], &mut Apt::default())? {
        eprintln!("{thing}");
    }
    Ok(())
}

/// What `cargo xtask dist` needs.
pub(crate) fn for_dist(workspace: &Workspace) -> Result<Missing> {
    let mut apt = Apt::default();
    let mut missing = apt.ensure(&EMULATORS);
    missing.extend(ensure_ways(workspace, &SHIPPED, &mut apt)?);
    if !add_library_source(workspace)? {
        missing.push(
            "without the source of the standard library dist makes larger runners\n  rustup component add rust-src".into(),
        );
    }
    Ok(missing)
}

/// What `cargo xtask test --full` needs beside [`for_tests`] and [`for_dist`]: a kernel that runs programs of another
/// machine, for the host that is one, and an emulator for the machine with a kernel of its own.
pub(crate) fn for_hosts() -> Missing {
    if std::env::consts::ARCH == "aarch64" {
        return Missing::new();
    }
    let mut apt = Apt::default();
    let mut missing = apt.ensure(&EMULATORS[..1]);
    missing.extend(apt.ensure(&MACHINE_PROGRAMS));
    if let Err(error) = register_emulator() {
        missing.push(format!("hosts of aarch64 cannot be run: {error:#}"));
    }
    missing
}

/// Tells the kernel how to run programs of aarch64 (binfmt-misc.rst), until it is booted again. Debian's own entry, if
/// there is one, has no flag C, without which sudo is no use; of two entries the kernel takes the newer.
fn register_emulator() -> Result<()> {
    const DIRECTORY: &str = "/proc/sys/fs/binfmt_misc";
    const NAME: &str = "sortie-aarch64";
    // An ELF header of class 64, little-endian, an executable or a shared object, machine 183.
    const MAGIC: &str = r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00";
    const MASK: &str = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";
    let directory = Path::new(DIRECTORY);
    if directory.join(NAME).exists() {
        return Ok(());
    }
    if !directory.join("register").exists() {
        process::output(process::command("mount").args(["-t", "binfmt_misc", "binfmt_misc", DIRECTORY]))?;
    }
    let emulator = which("qemu-aarch64-static").ok_or_else(|| anyhow!("qemu-aarch64-static is missing"))?;
    let entry = format!(":{NAME}:M::{MAGIC}:{MASK}:{}:OCF", emulator.display());
    std::fs::write(directory.join("register"), entry)
        .map_err(|error| anyhow!("writing {DIRECTORY}/register: {error}"))
}

/// Gives every target a way of being built: rustup's library for it, else a library source with zig or musl-tools.
fn ensure_ways(workspace: &Workspace, targets: &[Target], apt: &mut Apt) -> Result<Missing> {
    let look = || -> Result<(Ways<'_>, Vec<Target>)> {
        let ways = Ways::look(workspace)?;
        let lacking = targets.iter().copied().filter(|t| ways.find(*t, false, None).is_err()).collect();
        Ok((ways, lacking))
    };
    // Failures are printed; what counts is which targets still lack a way after each attempt.
    let (_, lacking) = look()?;
    if lacking.is_empty() {
        return Ok(Missing::new());
    }
    for target in lacking {
        say_failure(rustup(&["target", "add", target.triple]));
    }
    let (ways, lacking) = look()?;
    if !lacking.is_empty() && !ways.has_source() && rustup(&["component", "add", "rust-src"]).is_err() {
        say_failure(apt.install(&DEBIAN_TOOLCHAIN));
    }
    if !lacking.is_empty() && !ways.has_zig() {
        say_failure(install_zig(workspace, apt));
    }
    let (_, lacking) = look()?;
    if lacking.iter().any(|target| target.machine == "x86_64") {
        say_failure(apt.install(&["musl-tools"]));
    }
    let (ways, lacking) = look()?;
    let why = |target: Target| ways.find(target, false, None).err().map(|error| format!("{error:#}"));
    Ok(lacking.into_iter().filter_map(why).collect())
}

fn say_failure(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("{error:#}");
    }
}

fn install_zig(workspace: &Workspace, apt: &mut Apt) -> Result<()> {
    let venv = toolchain::zig_venv(workspace);
    let make = || process::output(process::command("python3").args(["-m", "venv"]).arg(&venv));
    if make().is_err() {
        apt.install(&["python3-venv"])?;
        make()?;
    }
    eprintln!("installing {ZIG_PACKAGE} into {}", venv.display());
    process::output(process::command(venv.join("bin/pip")).args(["install", "--quiet", ZIG_PACKAGE]))?;
    Ok(())
}

/// A component of the toolchain, seen by its cargo subcommand.
fn ensure_component(workspace: &Workspace, component: &str, subcommand: &str) -> Option<String> {
    let is_there = || process::output(workspace.cargo().args([subcommand, "--version"])).is_ok();
    if is_there() || (rustup(&["component", "add", component]).is_ok() && is_there()) {
        return None;
    }
    Some(format!("cargo {subcommand} is missing\n  rustup component add {component}"))
}

/// Runs rustup on the toolchain that runs us; an error is one line.
fn rustup(arguments: &[&str]) -> Result<()> {
    let mut command = process::command("rustup");
    // A backtrace of rustup's own failure helps nobody here.
    command.args(arguments).env("RUST_BACKTRACE", "0");
    let shown = process::shown(&command);
    eprintln!("{shown}");
    process::output(&mut command).map(drop).map_err(|error| {
        let text = format!("{error:#}");
        let reason = text.lines().find(|line| line.starts_with("error:"));
        anyhow!("{shown}: {}", reason.unwrap_or("there is no rustup"))
    })
}

impl Tool {
    /// Its path, after building it where it was not found.
    pub(crate) fn ensure(&self, workspace: &Workspace) -> Result<PathBuf> {
        if let Some(found) = self.find(workspace) {
            return Ok(found);
        }
        let root = workspace.tools_dir();
        let build = root.join("build");
        eprintln!("building {} {}, which is not on PATH", self.name, self.version);
        let mut command: Command = workspace.cargo();
        command
            .args([
                "install",
                "--quiet",
                "--locked",
                "--debug",
                self.name,
                "--version",
                self.version,
                "--root",
            ])
            .arg(&root)
            .arg("--target-dir")
            .arg(&build)
            // Neither is looked at, and both take time.
            .envs([("CARGO_PROFILE_DEV_DEBUG", "0"), ("CARGO_INCREMENTAL", "0")]);
        process::run(&mut command)?;
        let _ = std::fs::remove_dir_all(&build);
        self.find(workspace).ok_or_else(|| anyhow!("{} was built but is not there", self.name))
    }

    fn find(&self, workspace: &Workspace) -> Option<PathBuf> {
        which(self.name)
            .or_else(|| Some(workspace.tools_dir().join("bin").join(self.name)).filter(|p| p.exists()))
    }
}

/// Debian's package manager, its lists updated at most once.
#[derive(Default)]
struct Apt {
    updated: bool,
}

impl Apt {
    /// Installs the packages of those programs that are not there, and says which still are not.
    fn ensure(&mut self, programs: &[Program]) -> Missing {
        let absent = || programs.iter().filter(|p| !p.is_there()).collect::<Vec<_>>();
        let mut packages: Vec<&str> = absent().iter().map(|p| p.package).collect();
        packages.dedup();
        if packages.is_empty() {
            return Missing::new();
        }
        say_failure(self.install(&packages));
        let still = absent();
        let help = |p: &&Program| format!("{} is missing\n  {}", p.name, install_command(&[p.package]));
        still.iter().map(help).collect()
    }

    /// Installs packages together or, where one of them cannot be had, each by itself.
    fn install(&mut self, packages: &[&str]) -> Result<()> {
        if which("apt-get").is_none() || !is_root() {
            bail!("only root on a Debian-like system can\n  {}", install_command(packages));
        }
        if !self.updated {
            // Old lists may do; if not, installing fails and says so.
            let _ = process::output(&mut apt_get(&["update"]));
            self.updated = true;
        }
        eprintln!("{}", install_command(packages));
        let install = |packages: &[&str]| {
            process::output(apt_get(&["install", "-y", "--no-install-recommends"]).args(packages)).map(drop)
        };
        install(packages).or_else(|error| {
            if packages.len() == 1 {
                return Err(error);
            }
            packages.iter().map(|package| install(&[package])).fold(Ok(()), Result::and)
        })
    }
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = process::command("apt-get");
    // Another apt may be at work, as it often is on a machine that has just booted.
    command
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn install_command(packages: &[&str]) -> String {
    format!("apt-get install -y --no-install-recommends {}", packages.join(" "))
}

fn is_root() -> bool {
    let id: Option<OsString> = which("id").map(PathBuf::into_os_string);
    id.is_some_and(|id| process::output(process::command(id).arg("-u")).is_ok_and(|uid| uid.trim() == "0"))
}
