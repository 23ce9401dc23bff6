//! Finds the ways this machine offers of building a static runner, and says what would help where there is none.
//! It builds nothing and installs nothing.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::listing::hex_digest;
use crate::process;
use crate::sbom::Part;
use crate::target::Target;
use crate::workspace::Workspace;

/// The zig that is installed where none is on `PATH`: its musl and libunwind end up in the runner.
pub(crate) const ZIG_PACKAGE: &str = "ziglang==0.14.1";
/// Debian 12's newest compiler with the source of its library.
pub(crate) const DEBIAN_TOOLCHAIN: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// The first minor version whose compiler knows `-Cpanic=immediate-abort`.
const IMMEDIATE_ABORT_SINCE: u32 = 92;
/// The first minor version whose musl (1.2.5) relocates itself by packed relocations.
const PACKED_RELOCATIONS_SINCE: u32 = 93;

/// Leaves the tables for unwinding out of what is linked. From the root of the workspace, where the linker runs: a whole path
/// would end up in the names of symbols, whose order it changes.
const NO_UNWINDING: &str = "xtask/src/no-unwinding.ld";

/// A cargo and a rustc that belong together.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    cargo: OsString,
    /// `None` is the one that runs us.
    rustc: Option<PathBuf>,
    /// As in `1.95.0`.
    pub(crate) version: String,
    minor: u32,
    sysroot: PathBuf,
    host: String,
}

/// How the last step is done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Linker {
    /// The linker inside the toolchain, with the C library that comes with rustup's target.
    RustLld,
    /// `cc`, which rustc calls by itself.
    Cc,
    Zig(PathBuf),
    MuslGcc,
}

/// Kinds of ways, in the order they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WayKind {
    /// The standard library that rustup brings for the target
    Rustup,
    /// A rustc with its library's source, zig as linker and C library
    Zig,
    /// A rustc with its library's source, Debian's musl-tools as linker and C library; x86_64 only
    MuslGcc,
}

/// A way of building a static runner for one target.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) target: Target,
    pub(crate) toolchain: Toolchain,
    linker: Linker,
    /// The standard library is built anew, for size: no backtraces, and a panic ends the process without a message.
    pub(crate) std_rebuilt: bool,
}

/// What this machine has to build with, as seen once.
pub(crate) struct Ways<'w> {
    workspace: &'w Workspace,
    toolchains: Vec<Toolchain>,
    zig: Option<PathBuf>,
}

impl<'w> Ways<'w> {
    /// Looks around.
    pub(crate) fn look(workspace: &'w Workspace) -> Result<Self> {
        Ok(Self { workspace, toolchains: toolchains(workspace)?, zig: find_zig(workspace) })
    }

    /// The first way that this machine offers, or an error that says which commands would help.
    pub(crate) fn find(&self, target: Target, small: bool, only: Option<WayKind>) -> Result<Way> {
        let wanted = |kind| only.is_none_or(|o| o == kind);
        let way = |toolchain: &Toolchain, linker: Linker, std_rebuilt: bool| {
            Ok(Way { target, toolchain: toolchain.clone(), linker, std_rebuilt })
        };
        let with_target = self.toolchains.iter().find(|t| t.has_musl(target));
        if let Some(toolchain) = with_target.filter(|_| wanted(WayKind::Rustup)) {
            if small && !toolchain.has_source() {
                bail!(
                    "--small rebuilds the standard library, whose source is missing\n  rustup component add rust-src"
                );
            }
            if toolchain.has_rust_lld() {
                return way(toolchain, Linker::RustLld, small);
            }
            if target.is_native() {
                return way(toolchain, Linker::Cc, small);
            }
        }
        if let Some(toolchain) = self.toolchains.iter().find(|t| t.has_source()) {
            if let Some(zig) = self.zig.clone().filter(|_| wanted(WayKind::Zig)) {
                return way(toolchain, Linker::Zig(zig), true);
            }
            let gcc_fits = target.machine == "x86_64" && process::which("musl-gcc").is_some();
            if wanted(WayKind::MuslGcc) && gcc_fits {
                return way(toolchain, Linker::MuslGcc, true);
            }
        }
        bail!("{}", self.advice(target))
    }

    /// Whether the standard library can be rebuilt.
    pub(crate) fn has_source(&self) -> bool {
        self.toolchains.iter().any(Toolchain::has_source)
    }

    /// Whether there is a zig.
    pub(crate) fn has_zig(&self) -> bool {
        self.zig.is_some()
    }

    fn advice(&self, target: Target) -> String {
        let venv = zig_venv(self.workspace);
        let zig = format!("python3 -m venv {0} && {0}/bin/pip install {ZIG_PACKAGE}", venv.display());
        let zig = (!self.has_zig()).then_some(zig);
        let debian = format!("apt-get install -y --no-install-recommends {}", DEBIAN_TOOLCHAIN.join(" "));
        let sources: Vec<Option<String>> = if self.has_source() {
            vec![None]
        } else {
            vec![Some("rustup component add rust-src".into()), Some(debian)]
        };
        let mut text = format!(
            "no way found to build a static runner for {0}. Any one of these lines helps, and `cargo xtask setup` tries them:\n  rustup target add {0}",
            target.triple
        );
        for source in sources {
            let line: Vec<String> = source.into_iter().chain(zig.clone()).collect();
            if !line.is_empty() {
                text.push_str("\n  ");
                text.push_str(&line.join(" && "));
            }
        }
        text
    }
}

impl Way {
    /// Static with glibc for this machine: never shipped, enough for a demo or a test.
    pub(crate) fn glibc() -> Result<Self> {
        let toolchain = Toolchain::current()?;
        Ok(Self { target: Target::native_glibc()?, toolchain, linker: Linker::Cc, std_rebuilt: false })
    }

    /// The cargo command that builds `package` with `profile`; the program is at [`Self::built`] afterwards.
    pub(crate) fn build_command(
        &self,
        workspace: &Workspace,
        package: &str,
        profile: &str,
    ) -> Result<Command> {
        let mut command = workspace.cargo_at(&self.toolchain.cargo);
        command.args(["build", "--locked", "--package", package, "--profile", profile]);
        command.args(["--target", self.target.triple]);
        if let Some(rustc) = &self.toolchain.rustc {
            command.env("RUSTC", rustc).env_remove("RUSTUP_TOOLCHAIN").env_remove("LD_LIBRARY_PATH");
        }
        // A program that aborts never unwinds: its tables would be a tenth of it.
        let mut flags = vec!["-Cforce-unwind-tables=no".to_owned()];
        // What has a stack of its own stays out of line: in one large frame every access takes a longer instruction.
        flags.push("-Cllvm-args=-inline-max-stacksize=192".to_owned());
        // Where the processor knows no SHA-256 its 64 rounds are a loop: 10 KiB less for a quarter of the speed there.
        flags.extend(["--cfg", "sha2_backend_soft=\"compact\""].map(String::from));
        // One signature a command is checked in less than a millisecond without vectors too, for half the bytes.
        flags.extend(["--cfg", "curve25519_dalek_backend=\"serial\""].map(String::from));
        if self.std_rebuilt {
            command.env("RUSTC_BOOTSTRAP", "1");
            command.args(["-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"]);
            if self.toolchain.minor >= IMMEDIATE_ABORT_SINCE {
                flags.extend(["-Zunstable-options", "-Cpanic=immediate-abort"].map(String::from));
            }
        }
        let linker = match &self.linker {
            Linker::Cc => {
                flags.push("-Ctarget-feature=+crt-static".into());
                None
            }
            Linker::RustLld => {
                flags.extend(["-Clinker-flavor=ld.lld", "-Clink-self-contained=yes"].map(String::from));
                // Nothing here compares functions by address.
                flags.push("-Clink-arg=--icf=all".into());
                // What is alike stands together, which gzip likes.
                flags.push("-Clink-arg=--bp-compression-sort=both".into());
                if self.toolchain.minor >= PACKED_RELOCATIONS_SINCE {
                    flags.push("-Clink-arg=--pack-dyn-relocs=relr".into());
                }
                if !self.std_rebuilt {
                    // rustup's library brings its tables for unwinding, which an aborting program never does: a sixth of
                    // it. Without them a panic says where it was, and shows no backtrace.
                    flags.push("-Clink-arg=--no-eh-frame-hdr".into());
                    flags.push(format!("-Clink-arg={NO_UNWINDING}"));
                }
                Some("rust-lld".into())
            }
            Linker::Zig(zig) => {
                flags.push("-Clink-self-contained=no".into());
                Some(zig_wrapper(workspace, zig, self.target)?)
            }
            Linker::MuslGcc => {
                // musl-tools brings no libunwind, which an aborting program never calls, and no start file for a PIE.
                let stubs = workspace.tools_dir().join("musl-gcc");
                write_if_changed(&stubs.join("libunwind.a"), b"!<arch>\n")?;
                flags.extend(["-Ctarget-feature=+crt-static", "-Clink-self-contained=no"].map(String::from));
                flags.push("-Crelocation-model=static".into());
                flags.push(format!("-Lnative={}", stubs.display()));
                Some("musl-gcc".into())
            }
        };
        if let Some(linker) = linker {
            let name = self.target.triple.to_uppercase().replace('-', "_");
            command.env(format!("CARGO_TARGET_{name}_LINKER"), linker);
        }
        // With --target these reach the runner alone and no build script, so nothing of the host is built again.
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        Ok(command)
    }

    /// What is linked into the program besides crates: the standard library and the C library.
    pub(crate) fn parts(&self) -> Result<Vec<Part>> {
        let toolchain = &self.toolchain;
        let of_rust = toolchain.library(self.target.triple).join("lib/self-contained/libc.a");
        let (name, version, from) = match &self.linker {
            Linker::RustLld | Linker::Cc if of_rust.exists() => {
                ("musl", format!("of rustc {}", toolchain.version), Some(of_rust))
            }
            Linker::RustLld | Linker::Cc => ("glibc", "of this machine".to_owned(), None),
            Linker::Zig(zig) => {
                let version = process::output(process::command(zig).arg("version"))?;
                ("musl", format!("of zig {}", version.trim()), None)
            }
            Linker::MuslGcc => ("musl", "of musl-tools".to_owned(), None),
        };
        let sha256 = from.map(|file| fs::read(&file).map(|bytes| hex_digest(&bytes))).transpose()?;
        let library = |name: &str, version, license, sha256| Part {
            kind: "library",
            name: name.to_owned(),
            version,
            license,
            sha256,
        };
        let license = if name == "musl" { "MIT" } else { "LGPL-2.1-or-later" };
        Ok(vec![
            library("std", toolchain.version.clone(), "MIT OR Apache-2.0", None),
            library(name, version, license, sha256),
        ])
    }

    /// Where the program is after the build command.
    pub(crate) fn built(&self, workspace: &Workspace, program: &str, profile: &str) -> PathBuf {
        workspace.target_dir.join(self.target.triple).join(profile).join(program)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let linker = match &self.linker {
            Linker::RustLld => "rust-lld",
            Linker::Cc => "cc",
            Linker::Zig(_) => "zig",
            Linker::MuslGcc => "musl-gcc",
        };
        let library = match (self.std_rebuilt, self.target.triple.contains("musl")) {
            (true, _) => "standard library rebuilt small",
            (false, true) => "rustup's standard library",
            (false, false) => "static glibc, not for shipping",
        };
        write!(f, "rustc {}, {library}, linked by {linker}", self.toolchain.version)
    }
}

/// The toolchain that runs us and, where it is another, the distribution's own.
fn toolchains(workspace: &Workspace) -> Result<Vec<Toolchain>> {
    let mut found = vec![Toolchain::current()?];
    let (cargo, rustc) = (Path::new("/usr/bin/cargo"), Path::new("/usr/bin/rustc"));
    if cargo.exists() && rustc.exists() {
        let packaged = Toolchain::ask(cargo.into(), Some(rustc.to_owned()))?;
        if packaged.sysroot != found[0].sysroot && packaged.minor >= workspace.minimum_minor()? {
            found.push(packaged);
        }
    }
    Ok(found)
}

impl Toolchain {
    fn current() -> Result<Self> {
        Self::ask(process::env_or("CARGO", "cargo"), None)
    }

    fn ask(cargo: OsString, rustc: Option<PathBuf>) -> Result<Self> {
        let ask = |arguments: &[&str]| {
            let mut command = match &rustc {
                Some(rustc) => {
                    let mut command = process::command(rustc);
                    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("LD_LIBRARY_PATH");
                    command
                }
                None => process::command(process::env_or("RUSTC", "rustc")),
            };
            process::output(command.args(arguments))
        };
        let verbose = ask(&["-vV"])?;
        let field = |name: &str| {
            let line = verbose.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned()).with_context(|| format!("rustc -vV printed no {name}"))
        };
        let version = field("release:")?;
        let minor = minor_version(&version).with_context(|| format!("rustc has the version {version:?}"))?;
        let sysroot = PathBuf::from(ask(&["--print=sysroot"])?.trim_end());
        Ok(Self { cargo, rustc, host: field("host:")?, version, minor, sysroot })
    }

    fn library(&self, target: &str) -> PathBuf {
        self.sysroot.join("lib/rustlib").join(target)
    }

    /// Whether the target's library is there with a C library of its own.
    fn has_musl(&self, target: Target) -> bool {
        self.library(target.triple).join("lib/self-contained/libc.a").exists()
    }

    fn has_source(&self) -> bool {
        self.library("src").join("rust/library/std/Cargo.toml").exists()
    }

    fn has_rust_lld(&self) -> bool {
        self.library(&self.host).join("bin/rust-lld").exists()
    }
}

/// The `y` of `1.y` or `1.y.z`.
pub(crate) fn minor_version(version: &str) -> Option<u32> {
    let rest = version.strip_prefix("1.")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// zig on `PATH`, or the one that setup installed below the target directory.
fn find_zig(workspace: &Workspace) -> Option<PathBuf> {
    process::which("zig").or_else(|| {
        let lib = fs::read_dir(zig_venv(workspace).join("lib")).ok()?;
        lib.filter_map(Result::ok)
            .map(|python| python.path().join("site-packages/ziglang/zig"))
            .find(|zig| zig.exists())
    })
}

/// Where setup puts zig when it is not on `PATH`.
pub(crate) fn zig_venv(workspace: &Workspace) -> PathBuf {
    workspace.tools_dir().join("zig")
}

/// A program that rustc can call as its linker: zig's is a subcommand and needs to be told the target.
fn zig_wrapper(workspace: &Workspace, zig: &Path, target: Target) -> Result<OsString> {
    use std::os::unix::fs::PermissionsExt;
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    let cache = workspace.tools_dir().join("zig-cache");
    let script = format!(
        "#!/bin/sh\nZIG_GLOBAL_CACHE_DIR={} exec {} cc -target {} \"$@\"\n",
        quoted(&cache),
        quoted(zig),
        target.zig
    );
    let path = workspace.tools_dir().join(format!("zig-cc-{}", target.zig));
    write_if_changed(&path, script.as_bytes())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path.into_os_string())
}

fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
