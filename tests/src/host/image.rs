//! Images of hosts: root file systems that hosts use as the layer below their own disk, so none is ever changed. One is
//! built once, at the first wish or by `sortie-testhost images`, under a name that has the digest of its recipe. Those of
//! older recipes stay, as another checkout may use them: the whole directory may be removed when no test runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

use super::kinds::{Debian, Recipe};
use super::{Kind, Missing};

/// To be raised when images are built in another way from the same recipes.
const VERSION: u32 = 1;

/// In every image of Debian's packages.
const PACKAGES: [&str; 3] = ["openssh-server", "sudo", "iproute2"];

/// The image of a kind, built now if it is not there. Only one process builds an image; the others wait for it.
///
/// # Errors
/// [`Missing`] says whether this machine lacks something, what runs hosts included, or building failed.
pub fn ensure(kind: Kind) -> Result<PathBuf, Missing> {
    if !crate::is_root() {
        return Err(Missing::NotHere("needs root".to_owned()));
    }
    let recipe = kind.recipe();
    require(&recipe)?;
    made(kind.name(), &digest(&recipe)?, &|scratch, root, cache| match &recipe {
        Recipe::Busybox => Ok(build_busybox(root)?),
        Recipe::Debian(debian) => build_debian(debian, scratch, root, cache),
    })
}

/// Builds an image: given a scratch directory, where the image is to be, and the cache.
pub(super) type Build<'a> = &'a dyn Fn(&Path, &Path, &Path) -> Result<(), Missing>;

/// The image of this name and digest, built where it is not there.
pub(super) fn made(name: &str, digest: &str, build: Build<'_>) -> Result<PathBuf, Missing> {
    let cache = cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    let path = cache.join(format!("{name}-{digest}"));
    if path.exists() {
        return Ok(path);
    }
    let lock = cache.join(format!("{name}.lock"));
    let file = File::create(&lock).with_context(|| format!("making {}", lock.display()))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| anyhow!("locking {}: {error}", lock.display()))?;
    if path.exists() {
        return Ok(path);
    }
    let building = format!(".building-{name}-");
    for entry in fs::read_dir(&cache)?.filter_map(Result::ok) {
        // Of a build that was killed: under the lock there is no other. Its mounts went with its namespace.
        if entry.file_name().to_string_lossy().starts_with(&building) {
            fs::remove_dir_all(entry.path()).context("removing what a killed build has left")?;
        }
    }
    let scratch = tempfile::Builder::new().prefix(&building).tempdir_in(&cache)?;
    let root = scratch.path().join("root");
    eprintln!("building the image {}", path.display());
    build(scratch.path(), &root, &cache)?;
    fs::rename(&root, &path).with_context(|| format!("moving the image to {}", path.display()))?;
    Ok(path)
}

/// `${XDG_CACHE_HOME:-~/.cache}/sortie-testhosts`.
fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(path) if Path::new(&path).is_absolute() => PathBuf::from(path),
        _ => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    Ok(base.join("sortie-testhosts"))
}

pub(super) fn digest(recipe: &Recipe) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(format!("{VERSION} {PACKAGES:?} {COMMON} {recipe:?}"));
    if let Recipe::Busybox = recipe {
        hash.update(format!("{BUSYBOX_FILES:?}"));
        for name in ["busybox", "dropbear"] {
            let path = crate::which(name).with_context(|| format!("{name} is not installed"))?;
            hash.update(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
        }
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// What every lab needs, and Debian's packages of it.
const PROGRAMS: [(&str, &str); 3] =
    [("systemd-nspawn", "systemd-container"), ("ip", "iproute2"), ("nft", "nftables")];

fn require(recipe: &Recipe) -> Result<(), Missing> {
    let programs: &[(&str, &str)] = match recipe {
        Recipe::Busybox => &[("busybox", "busybox"), ("dropbear", "dropbear-bin")],
        Recipe::Debian(_) => &[("mmdebstrap", "mmdebstrap")],
    };
    for (program, package) in PROGRAMS.iter().chain(programs) {
        if crate::which(program).is_none() {
            return Err(Missing::NotHere(format!("{program} is not installed: apt-get install {package}")));
        }
    }
    match recipe {
        Recipe::Debian(Debian { machine: Some("arm64"), .. }) if std::env::consts::ARCH != "aarch64" => {
            require_emulator("aarch64")
        }
        _ => Ok(()),
    }
}

/// The kernel must start programs of the other machine by itself, and with the interpreter it opened when that was set
/// up, as there is none in the image: flag F; for set-user-id programs flag C too (binfmt-misc.rst).
fn require_emulator(machine: &str) -> Result<(), Missing> {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().filter_map(Result::ok);
    let fits = |text: String| {
        let value = |key| text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        let flags = value("flags: ");
        text.starts_with("enabled")
            && value("interpreter ").contains(machine)
            && ['F', 'C'].iter().all(|flag| flags.contains(*flag))
    };
    if entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()).any(fits) {
        return Ok(());
    }
    Err(Missing::NotHere(format!(
        "the kernel starts no programs of {machine} (binfmt_misc, flags F and C): cargo xtask setup"
    )))
}

const BUSYBOX_FILES: [(&str, u32, &str); 6] = [
    ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", 0o644, "root:x:0:\n"),
    ("etc/shadow", 0o600, "root:*:19000:0:99999:7:::\n"),
    // dropbear lets nobody in whose shell is not listed.
    ("etc/shells", 0o644, "/bin/sh\n"),
    ("etc/inittab", 0o644, "::respawn:/usr/sbin/dropbear -F -E\n::ctrlaltdel:/sbin/reboot\n"),
    ("etc/os-release", 0o644, "ID=busybox\nPRETTY_NAME=\"busybox and dropbear\"\n"),
];

fn build_busybox(root: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let directories = [("", 0o755), ("root", 0o700), ("home", 0o755), ("tmp", 0o1777), ("run", 0o755)];
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    for (path, mode) in directories.into_iter().chain([("proc", 0o555), ("sys", 0o555), ("dev", 0o755)]) {
        let path = root.join(path);
        fs::create_dir_all(&path)?;
        set_mode(&path, mode)?;
    }
    crate::busybox::install(root)?;
    fs::create_dir_all(root.join("var/log"))?;
    for (path, mode, text) in BUSYBOX_FILES {
        let path = root.join(path);
        fs::write(&path, text)?;
        set_mode(&path, mode)?;
    }
    // Debian builds in applets of other systems' package managers; a system with dropbear alone has none.
    for name in ["rpm", "rpm2cpio", "dpkg", "dpkg-deb"] {
        for dir in ["bin", "sbin", "usr/bin", "usr/sbin"] {
            let _ = fs::remove_file(root.join(dir).join(name));
        }
    }
    Ok(())
}

/// Run in every image of Debian's packages at last.
const COMMON: &str = include_str!("recipe/common.sh");

pub(super) fn build_debian(
    recipe: &Debian,
    scratch: &Path,
    root: &Path,
    cache: &Path,
) -> Result<(), Missing> {
    let script = scratch.join("script");
    fs::write(&script, [recipe.scripts, &[COMMON]].concat().join("\n"))?;
    // Packages are kept, as several images have the same.
    let machine = recipe.machine.unwrap_or(std::env::consts::ARCH);
    let debs = cache.join("debs").join(format!("{}-{machine}", recipe.suite));
    fs::create_dir_all(&debs)?;
    let (script, debs) = (quoted(&script), quoted(&debs));
    let include: Vec<&str> = PACKAGES.iter().chain(recipe.include).copied().collect();
    // Its mounts are in a namespace of their own, its processes too, and all end with this one. Else a killed build would
    // leave the machine's /dev mounted in a directory that the next one removes.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]);
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "mmdebstrap", "--quiet"]);
    command.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    command.arg(format!("--include={}", include.join(",")));
    command.args(recipe.machine.map(|machine| format!("--architectures={machine}")));
    command.args([
        "--aptopt=Acquire::Check-Valid-Until \"false\"",
        "--aptopt=APT::Install-Recommends \"false\"",
        "--aptopt=APT::Sandbox::User \"root\"",
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--skip=essential/unlink",
        "--skip=cleanup/apt/cache",
        // That is seen to in `require`, and mmdebstrap knows only some ways of having an emulator.
        "--skip=check/qemu",
        "--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives",
    ]);
    command.arg(format!(
        "--setup-hook=find {debs} -name '*.deb' -exec cp -t \"$1\"/var/cache/apt/archives {{}} +"
    ));
    command.arg(format!("--customize-hook=cp -n \"$1\"/var/cache/apt/archives/*.deb {debs}/"));
    command.arg("--customize-hook=rm -f \"$1\"/var/cache/apt/archives/*.deb");
    command.arg(format!("--customize-hook=chroot \"$1\" /bin/sh -eu < {script}"));
    command.arg(recipe.suite).arg(root).args(mirror());
    command.stdin(Stdio::null()).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
    let output = command.output().context("starting setpriv")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if let Some(line) = said.lines().find(|line| OUT_OF_REACH.iter().any(|words| line.contains(words))) {
        return Err(Missing::NotHere(format!("Debian's packages of {}: {}", recipe.suite, line.trim())));
    }
    let lines: Vec<&str> = said.lines().collect();
    let end = lines[lines.len().saturating_sub(30)..].join("\n");
    Err(anyhow!("building from {}: {}\n{end}", recipe.suite, output.status).into())
}

/// How apt says that the network, the mirror or its keyring is not as a build needs them.
const OUT_OF_REACH: [&str; 6] = [
    "Temporary failure resolving",
    "Could not resolve",
    "Unable to connect",
    "Could not connect",
    "does not have a Release file",
    "NO_PUBKEY",
];

/// Where this machine itself gets Debian's packages, if it is a Debian; mmdebstrap knows another place else.
fn mirror() -> Option<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"]);
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Debian|Debian|")).map(str::to_owned)
}

/// For `sh`.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
