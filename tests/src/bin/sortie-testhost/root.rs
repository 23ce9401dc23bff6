//! The root file system of a test host, made inside its own mount namespace: mounts, accounts, files, and what is wrong
//! with them on purpose. It starts no server.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::pivot_root;
use sortie_tests::sshd::spec::{Account, Dir, File, Spec, System};

use super::PATH;

/// Any directory that is there on every machine will do: only this namespace sees what is mounted on it.
const STAGE: &str = "/tmp";

/// Makes the root file system and moves this process into it. Returns the directory with all changes to it, opened
/// without the mounts inside: it has no name in the host.
pub(super) fn enter(spec: &Spec) -> Result<OwnedFd> {
    mount_at("none", Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    mount_at("stage", Path::new(STAGE), Some("tmpfs"), MsFlags::empty(), Some("mode=700"))?;
    let stage = Path::new(STAGE);
    let (layer, work, root) = (stage.join("layer"), stage.join("work"), stage.join("root"));
    for dir in [&layer, &work, &root] {
        fs::create_dir(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    }
    match spec.system {
        System::Machine => {
            let options = format!("lowerdir=/,upperdir={},workdir={}", layer.display(), work.display());
            mount_at("overlay", &root, Some("overlay"), MsFlags::empty(), Some(&options))?;
        }
        System::Busybox => {
            sortie_tests::busybox::install(&layer)?;
            mount_at(&layer, &root, None, MsFlags::MS_BIND, None)?;
        }
    }
    let opened = open(&layer, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    mount_system(&root)?;
    for dir in &spec.dirs {
        mount_dir(&root, dir, spec.account.uid)?;
    }
    write_accounts(&root, &spec.account, spec.system)?;
    for file in &spec.files {
        write_file(&root, file, &spec.account)?;
    }
    fs::create_dir_all(root.join("run/sshd"))?;
    for name in &spec.missing {
        remove_program(&root, name)?;
    }

    std::env::set_current_dir(&root)?;
    // The old root goes on top of the new one and is taken off from there: pivot_root(2), "pivot_root(".", ".")".
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leaving the machine's root")?;
    std::env::set_current_dir("/")?;
    nix::unistd::sethostname(&spec.hostname)?;
    loopback_up().context("the loopback interface")?;
    if let Some(password) = &spec.account.password {
        set_password(&spec.account.name, password, spec.system)?;
    }
    if let Some((program, args)) = spec.warm_up.split_first() {
        warm_up(&spec.account, program, args)?;
    }
    for dir in &spec.dirs {
        spoil(dir)?;
    }
    if spec.read_only_root {
        remount_read_only("/")?;
    }
    Ok(opened)
}

fn mount_at(
    source: impl AsRef<Path>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    mount(Some(source.as_ref()), target, kind, flags, options)
        .with_context(|| format!("mounting {} on {}", source.as_ref().display(), target.display()))
}

/// What the kernel gives: `/proc` of the new pid namespace, `/sys`, and the few devices that every program expects.
fn mount_system(root: &Path) -> Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for name in ["proc", "sys", "dev"] {
        fs::create_dir_all(root.join(name))?;
    }
    mount_at("proc", &root.join("proc"), Some("proc"), safe, None)?;
    // Kernel settings belong to the machine.
    let settings = root.join("proc/sys");
    mount_at(&settings, &settings, None, MsFlags::MS_BIND, None)?;
    mount_at("none", &settings, None, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None)?;
    mount_at("sysfs", &root.join("sys"), Some("sysfs"), safe | MsFlags::MS_RDONLY, None)?;
    let dev = root.join("dev");
    mount_at("dev", &dev, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some("mode=755"))?;
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        fs::write(dev.join(name), "")?;
        mount_at(Path::new("/dev").join(name), &dev.join(name), None, MsFlags::MS_BIND, None)?;
    }
    fs::create_dir(dev.join("pts"))?;
    let pts = Some("newinstance,ptmxmode=0666,mode=620");
    mount_at("devpts", &dev.join("pts"), Some("devpts"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, pts)?;
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("fd/0", "stdin"),
        ("fd/1", "stdout"),
        ("fd/2", "stderr"),
    ];
    for (target, name) in links {
        symlink(target, dev.join(name))?;
    }
    Ok(())
}

fn mount_dir(root: &Path, dir: &Dir, uid: u32) -> Result<()> {
    let target = inside(root, &dir.path);
    fs::create_dir_all(&target)?;
    let owner = if dir.of_account { uid } else { 0 };
    // The smallest file system there is, where it is to be full: one block, for the fill, and the account's few files.
    let size = if dir.full { ",size=64k" } else { "" };
    let options = format!("mode={:o},uid={owner},gid={owner}{size}", dir.mode);
    let noexec = if dir.noexec { MsFlags::MS_NOEXEC } else { MsFlags::empty() };
    mount_at("kit", &target, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | noexec, Some(&options))
}

/// The last touches, which would have been in the way of the others.
fn spoil(dir: &Dir) -> Result<()> {
    if dir.full {
        let mut fill =
            OpenOptions::new().create(true).append(true).open(Path::new(&dir.path).join(".full"))?;
        let error = loop {
            if let Err(error) = fill.write_all(&[0; 4096]) {
                break error;
            }
        };
        ensure!(error.kind() == ErrorKind::StorageFull, "filling {}: {error}", dir.path);
    }
    if dir.read_only { remount_read_only(&dir.path) } else { Ok(()) }
}

fn remount_read_only(path: &str) -> Result<()> {
    // The flags that the mount has already must be given again, else they are lost (mount(2)); which those are only
    // matters for noexec, and a directory that is both must stay both.
    let flags = nix::sys::statvfs::statvfs(path)?.flags();
    let noexec = flags.contains(nix::sys::statvfs::FsFlags::ST_NOEXEC);
    let noexec = if noexec { MsFlags::MS_NOEXEC } else { MsFlags::empty() };
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | noexec;
    mount_at("none", Path::new(path), None, flags, None)
}

fn write_accounts(root: &Path, account: &Account, system: System) -> Result<()> {
    let Account { name, uid, home, shell, .. } = account;
    let root_line = "root:x:0:0:root:/root:/bin/sh";
    let tables = [
        ("passwd", 0o644, root_line, format!("{name}:x:{uid}:{uid}::{home}:{shell}")),
        ("group", 0o644, "root:x:0:", format!("{name}:x:{uid}:")),
        // Neither locked nor with a password.
        ("shadow", 0o600, "root:*:19000:0:99999:7:::", format!("{name}:*:19000:0:99999:7:::")),
    ];
    for (table, mode, root_line, line) in tables {
        let path = root.join("etc").join(table);
        let present = match system {
            System::Machine => fs::read_to_string(&path).with_context(|| format!("reading /etc/{table}"))?,
            System::Busybox => format!("{root_line}\n"),
        };
        let own = format!("{name}:");
        let mut lines: Vec<_> = present.lines().filter(|line| !line.starts_with(&own)).collect();
        lines.push(&line);
        fs::write(&path, lines.join("\n") + "\n")?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    // dropbear lets nobody in whose shell is not listed; a script of the kit's own is not.
    fs::write(root.join("etc/shells"), format!("/bin/sh\n{shell}\n"))?;
    Ok(())
}

fn write_file(root: &Path, file: &File, account: &Account) -> Result<()> {
    let path = inside(root, &file.path);
    let owner = if file.of_account { account.uid } else { 0 };
    let mut missing = Vec::new();
    for parent in path.ancestors().skip(1).take_while(|parent| !parent.exists()) {
        missing.push(parent);
    }
    for parent in missing.into_iter().rev() {
        fs::create_dir(parent)?;
        chown(parent, Some(owner), Some(owner))?;
    }
    fs::write(&path, &file.content).with_context(|| format!("writing {}", file.path))?;
    fs::set_permissions(&path, Permissions::from_mode(file.mode))?;
    Ok(chown(&path, Some(owner), Some(owner))?)
}

fn remove_program(root: &Path, name: &str) -> Result<()> {
    let dirs = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin", "usr/lib/openssh"];
    for dir in dirs {
        match fs::remove_file(root.join(dir).join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound && error.kind() != ErrorKind::NotADirectory => {
                return Err(error).with_context(|| format!("removing {name}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn inside(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn set_password(name: &str, password: &str, system: System) -> Result<()> {
    // The method is named so that neither PAM nor login.defs chooses it.
    let method = if system == System::Busybox { "sha512" } else { "SHA512" };
    let mut child = Command::new("chpasswd")
        .args(["-c", method])
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting chpasswd")?;
    let mut stdin = child.stdin.take().context("chpasswd")?;
    writeln!(stdin, "{name}:{password}")?;
    drop(stdin);
    ensure!(child.wait()?.success(), "chpasswd failed");
    Ok(())
}

fn warm_up(account: &Account, program: &str, args: &[String]) -> Result<()> {
    // How it ends is not of interest.
    Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", &account.home)
        .current_dir(&account.home)
        .uid(account.uid)
        .gid(account.uid)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("starting {program}"))?;
    Ok(())
}

fn loopback_up() -> Result<()> {
    // SAFETY: a zeroed ifreq is valid; the name fits and stays NUL-terminated; the socket is closed on every way out.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        nix::errno::Errno::result(socket)?;
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let result = nix::errno::Errno::result(libc::ioctl(socket, libc::SIOCSIFFLAGS, &request));
        libc::close(socket);
        result?;
    }
    Ok(())
}
