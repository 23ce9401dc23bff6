//! What is known of the host without starting a program: READY tells some of it, the command `facts` the rest.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};
use sortie_protocol::Sha256Hex;
use sortie_protocol::message::HostFacts;
use sortie_protocol::{Encode, encode};

use crate::sys::host;
use crate::tool;

mod accounts;
mod machine;
mod network;
mod storage;

pub(crate) use accounts::{groups, users};
pub(crate) use machine::{addresses_of, hardware, host as names, os};
pub(crate) use network::network;
pub(crate) use storage::{disks, mounts};

/// Most bytes that are read of one file.
const LONGEST_FILE: u64 = 4 * 1024 * 1024;

/// What a result may still take, in bytes of JSON: a host may have more of everything than fits a frame.
pub(crate) struct Room {
    left: usize,
    full: bool,
}

impl Room {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { left: bytes, full: false }
    }

    /// Whether the entry fits; once one did not, none does.
    pub(crate) fn takes(&mut self, entry: &dyn Encode) -> bool {
        let bytes = encode(entry).len();
        self.full |= bytes > self.left;
        self.left = self.left.saturating_sub(bytes);
        !self.full
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full
    }
}

/// Facts that could not be found out are empty.
pub(crate) fn host() -> HostFacts {
    let name = host::name();
    let release = os_release();
    let uid = host::uid();
    HostFacts {
        hostname: name.host,
        os_id: release_value(&release, "ID"),
        os_version: release_value(&release, "VERSION_ID"),
        kernel: name.kernel,
        boot_id: first_line("/proc/sys/kernel/random/boot_id"),
        uid,
        user: host::user_name(uid).unwrap_or_default(),
        cpus: host::cpus(),
        memory_bytes: kibibytes(&text("/proc/meminfo"), "MemTotal:"),
        init: init().to_owned(),
        package_manager: package_manager().to_owned(),
        sudo: tool::exists("sudo"),
        container: container(),
    }
}

/// Go's name for this machine, as the reference reports it.
pub(crate) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

static OWN: OnceLock<fs::File> = OnceLock::new();

/// Opens the running executable while its file is there. The kernel would open it later too, but an emulator of this
/// machine (qemu-user) looks for the name and finds nothing.
pub(crate) fn hold_own_file() {
    if let Ok(file) = fs::File::open("/proc/self/exe")
        // Else a standard stream is missing, and must be seen to be.
        && file.as_raw_fd() > 2
    {
        let _ = OWN.set(file);
    }
}

/// The running executable, from its beginning; its file may be gone.
pub(crate) fn own_file() -> std::io::Result<fs::File> {
    match OWN.get() {
        Some(file) => fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())),
        None => fs::File::open("/proc/self/exe"),
    }
}

/// SHA-256 of the running executable.
pub(crate) fn own_sha256() -> std::io::Result<Sha256Hex> {
    let mut file = own_file()?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Sha256Hex::from_bytes(&hash.finalize().into())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// A file of the system as text; empty where it cannot be read.
fn text(path: &str) -> String {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(LONGEST_FILE).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

fn first_line(path: &str) -> String {
    text(path).lines().next().unwrap_or_default().trim().to_owned()
}

fn os_release() -> String {
    let own = text("/etc/os-release");
    if own.is_empty() { text("/usr/lib/os-release") } else { own }
}

/// A value of os-release(5), its quotes taken off.
fn release_value(text: &str, key: &str) -> String {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
}

/// A value of `/proc/meminfo` in bytes.
fn kibibytes(text: &str, key: &str) -> u64 {
    let kibibytes = text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next());
    kibibytes.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The program that manages services: `systemd`, `openrc`, `runit`, `sysv` or `none`.
pub(crate) fn init() -> &'static str {
    // sd_booted(3) looks for this very directory.
    if Path::new("/run/systemd/system").is_dir() {
        return "systemd";
    }
    if Path::new("/run/openrc").is_dir() {
        return "openrc";
    }
    if Path::new("/run/runit").is_dir() || Path::new("/run/runit.stopit").exists() {
        return "runit";
    }
    let first_process = first_line("/proc/1/comm");
    if first_process == "init" && Path::new("/etc/inittab").exists() { "sysv" } else { "none" }
}

fn package_manager() -> &'static str {
    // Each by its own program; busybox's dpkg and rpm applets are no package managers.
    [
        ("apt-get", "apt"),
        ("dnf", "dnf"),
        ("dnf5", "dnf"),
        ("yum", "yum"),
        ("zypper", "zypper"),
        ("pacman", "pacman"),
        ("apk", "apk"),
    ]
    .into_iter()
    .find(|(program, _)| tool::exists(program))
    .map_or("", |(_, name)| name)
}

fn container() -> String {
    if Path::new("/run/.containerenv").exists() {
        return "podman".to_owned();
    }
    if Path::new("/.dockerenv").exists() {
        return "docker".to_owned();
    }
    // Written by systemd for what runs in it, and readable by all where it exists.
    let by_systemd = first_line("/run/systemd/container");
    if !by_systemd.is_empty() {
        return by_systemd;
    }
    std::env::var("container").unwrap_or_default()
}

/// Files that tell of the host.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    release_value(text, "NAME");
    kibibytes(text, "MemTotal:");
    machine::fuzz(text);
    network::fuzz(text);
    for mount in text.lines().filter_map(storage::mount) {
        assert!(mount.target.len() + mount.source.len() <= text.len() * 3, "{mount:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values_lose_their_quotes() {
        let text = "PRETTY_NAME=\"X\"\nVERSION_ID=\"12\"\nID=debian\nID_LIKE='a b'\n";
        assert_eq!(release_value(text, "ID"), "debian");
        assert_eq!(release_value(text, "VERSION_ID"), "12");
        assert_eq!(release_value(text, "ID_LIKE"), "a b");
        assert_eq!(release_value(text, "BUILD_ID"), "");
    }

    #[test]
    fn the_machine_is_described() {
        let facts = host();
        assert!(!facts.hostname.is_empty() && !facts.kernel.is_empty());
        assert!(facts.cpus >= 1 && facts.memory_bytes > 1024 * 1024);
    }
}
