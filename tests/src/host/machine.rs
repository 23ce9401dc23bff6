//! A machine with a kernel of its own, in an emulator: for what the kernel of this one does not have, such as the
//! controllers of cgroup v2. Slow, as KVM is not asked for: about half a minute until its SSH server answers.
//!
//! It is Debian 12 with systemd, one disk that nothing is kept of, and a network card behind which is nothing but its SSH
//! server, found at the lab's own address: two labs have two machines, one lab has one.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::kinds::{APT, Debian, Recipe};
use super::{Lab, Missing, image};
use crate::access::Access;
use crate::keys::KeyPair;

const RECIPE: Debian = Debian {
    suite: "bookworm",
    machine: None,
    include: &["systemd", "systemd-sysv", "dbus", "udev", "linux-image-cloud-amd64"],
    scripts: &[APT, include_str!("recipe/machine.sh")],
};

/// The image's files.
const DISK: &str = "disk.ext4";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.img";

/// Bytes of the disk. It is sparse.
const DISK_SIZE: &str = "1500M";

/// How long it may take to come up, beside other tests and without KVM.
const PATIENCE: Duration = Duration::from_secs(200);

/// Programs that run it, and Debian's packages of them.
const PROGRAMS: [(&str, &str); 3] =
    [("qemu-system-x86_64", "qemu-system-x86"), ("mke2fs", "e2fsprogs"), ("mmdebstrap", "mmdebstrap")];

/// The directory with the image, built now if it is not there.
///
/// # Errors
/// As [`image::ensure`].
pub fn image() -> Result<PathBuf, Missing> {
    if !crate::is_root() || std::env::consts::ARCH != "x86_64" {
        return Err(Missing::NotHere("needs root on x86_64".to_owned()));
    }
    for (program, package) in PROGRAMS {
        if crate::which(program).is_none() {
            return Err(Missing::NotHere(format!("{program} is not installed: apt-get install {package}")));
        }
    }
    let digest = image::digest(&Recipe::Debian(RECIPE))?;
    image::made("machine", &digest, &|scratch, image, cache| {
        let root = scratch.join("system");
        image::build_debian(&RECIPE, scratch, &root, cache)?;
        fs::create_dir(image)?;
        for (link, file) in [("vmlinuz", KERNEL), ("initrd.img", INITRD)] {
            let path = root.join(link);
            fs::copy(&path, image.join(file)).with_context(|| format!("copying {}", path.display()))?;
        }
        let mut command = Command::new("mke2fs");
        // Its journal would be for a disk that is kept.
        command.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&root).arg(image.join(DISK));
        let output = command.arg(DISK_SIZE).output().context("starting mke2fs")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(anyhow::anyhow!("mke2fs: {said}").into());
        }
        Ok(())
    })
}

/// Leaves the calling test unless such a machine can be had here; its image is built where it is not yet.
#[macro_export]
macro_rules! require_machine {
    () => {
        match $crate::host::machine::image() {
            Ok(_) => {}
            Err($crate::host::Missing::NotHere(reason)) => $crate::skip!("a machine: {reason}"),
            Err($crate::host::Missing::Failed(error)) => return Err(error.context("a machine")),
        }
    };
}

/// A machine that runs. It ends when this is dropped, or with the test.
#[derive(Debug)]
pub struct Machine {
    emulator: tokio::process::Child,
    directory: TempDir,
    address: Ipv4Addr,
    access: Access,
}

impl Machine {
    /// Turns one on and waits until its SSH server answers. The image has to be there: see [`crate::require_machine!`].
    ///
    /// # Errors
    /// When it does not come up; the error has the end of its console.
    pub async fn start(lab: &Lab) -> Result<Self> {
        let image = image().map_err(anyhow::Error::from)?;
        let directory = tempfile::Builder::new().prefix("sortie-machine-").tempdir()?;
        let (key, host_key) = (KeyPair::generate()?, KeyPair::generate()?);
        let address = lab.address();
        let access = Access::write(directory.path(), (address, 22), "root", &key, &host_key)?;
        let seed = seed(directory.path(), &key, &host_key)?;
        let emulator = emulator(&image, &seed, directory.path(), address)?;
        let mut machine = Self { emulator, directory, address, access };
        let up = tokio::time::timeout(PATIENCE, async {
            loop {
                if machine.greets().await {
                    return Ok(());
                }
                if let Some(status) = machine.emulator.try_wait()? {
                    bail!("the emulator has ended: {status}");
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        let up = up.await.unwrap_or_else(|_| bail!("no SSH server within {} s", PATIENCE.as_secs()));
        up.with_context(|| format!("a machine; the end of its console:\n{}", machine.console_end()))?;
        Ok(machine)
    }

    /// How to log in as `user` with its key; only root has it authorised.
    pub fn access(&self, user: &str) -> Access {
        self.access.for_user(user)
    }

    /// Runs a line of `sh` on it as root, by SSH; what it prints.
    ///
    /// # Errors
    /// When it fails; the error has all that it said.
    pub async fn sh(&self, script: &str) -> Result<String> {
        let mut command = tokio::process::Command::from(self.access.ssh());
        let ended = command.arg(script).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = crate::within("the end of a program on the machine", ended).await??;
        ensure!(output.status.success(), "{script}: {output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether its SSH server answers a connection with a banner (RFC 4253 §4.2).
    async fn greets(&self) -> bool {
        let greeting = async {
            let mut stream = TcpStream::connect((self.address, 22)).await.ok()?;
            let mut banner = [0; 4];
            stream.read_exact(&mut banner).await.ok()?;
            Some(banner)
        };
        // The emulator accepts at once, whether anybody listens in there or not.
        let patience = Duration::from_secs(5);
        tokio::time::timeout(patience, greeting).await.is_ok_and(|banner| banner == Some(*b"SSH-"))
    }

    fn console_end(&self) -> String {
        let read = |name| fs::read(self.directory.path().join(name)).unwrap_or_default();
        let text = [read("console"), read("emulator")].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// The second disk: an archive of what this machine has for itself.
fn seed(directory: &Path, key: &KeyPair, host_key: &KeyPair) -> Result<PathBuf> {
    let root = directory.join("seed");
    let files = [
        ("etc/ssh/ssh_host_ed25519_key", host_key.private_openssh()?),
        ("etc/ssh/ssh_host_ed25519_key.pub", host_key.public_openssh()? + "\n"),
        ("root/.ssh/authorized_keys", key.public_openssh()? + "\n"),
    ];
    let archive = directory.join("seed.tar");
    let mut command = Command::new("tar");
    command.args(["--owner=0", "--group=0", "-cf"]).arg(&archive).arg("-C").arg(&root);
    for (name, content) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().context("a file without a directory")?)?;
        File::create(&path)?.write_all(content.as_bytes())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        command.arg(name);
    }
    let output = command.output().context("starting tar")?;
    ensure!(output.status.success(), "tar: {output:?}");
    Ok(archive)
}

fn emulator(image: &Path, seed: &Path, directory: &Path, address: Ipv4Addr) -> Result<tokio::process::Child> {
    let said = File::create(directory.join("emulator"))?;
    let mut command = tokio::process::Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "768"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(image.join(KERNEL)).arg("-initrd").arg(image.join(INITRD));
    command.args(["-append", "root=/dev/vda rw console=ttyS0 quiet mitigations=off"]);
    let drive = |file: &Path, more: &str| format!("file={},format=raw,if=virtio,{more}", file.display());
    // What is written goes to a file without a name.
    command.arg("-drive").arg(drive(&image.join(DISK), "snapshot=on"));
    command.arg("-drive").arg(drive(seed, "readonly=on"));
    let forward = format!("user,id=net,restrict=on,hostfwd=tcp:{address}:22-:22");
    command.args(["-netdev", &forward, "-device", "virtio-net-pci,netdev=net,romfile="]);
    command.args(["-device", "virtio-rng-pci", "-serial"]);
    command.arg(format!("file:{}", directory.join("console").display()));
    command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).kill_on_drop(true);
    command.spawn().context("starting qemu-system-x86_64")
}
