//! One host of a lab as seen by the lab's pid 1: its disk, its network, and the systemd-nspawn that runs it.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::MsFlags;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use sortie_tests::host::spec::{HOSTS, HostSpec, PREFIX};

use super::lab::mount_on;
use super::{PATH, cgroup};

pub(super) const BRIDGE: &str = "br0";

/// What systemd-nspawn exits with when the host has asked for a reboot (systemd-nspawn(1), "Exit status").
const REBOOT: i32 = 133;

/// A host that was made.
pub(super) struct Host {
    spec: HostSpec,
    cgroup: String,
    dir: PathBuf,
    /// systemd-nspawn, while the host is on.
    container: Option<Pid>,
}

impl Host {
    /// Makes the disk.
    pub(super) fn make(lab: &str, spec: HostSpec) -> Result<Self> {
        let dir = Path::new(HOSTS).join(&spec.name);
        fs::create_dir(&dir).with_context(|| format!("is there a host {} already?", spec.name))?;
        let cgroup = format!("{lab}/{}", spec.name);
        cgroup::make(&cgroup)?;
        let (disk, root) = (dir.join("disk"), dir.join("root"));
        fs::create_dir(&disk)?;
        fs::create_dir(&root)?;
        let size = format!("mode=755,size={}", spec.disk);
        mount_on("disk", &disk, Some("tmpfs"), MsFlags::empty(), Some(&size))?;
        for name in ["upper", "work"] {
            fs::create_dir(disk.join(name))?;
        }
        ensure!(
            !spec.image.to_string_lossy().contains([':', ',', '\\']),
            "overlayfs cannot take {} for a lower layer because of its characters",
            spec.image.display()
        );
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            spec.image.display(),
            disk.join("upper").display(),
            disk.join("work").display()
        );
        mount_on("overlay", &root, Some("overlay"), MsFlags::empty(), Some(&layers))?;
        let host = Self { spec, cgroup, dir, container: None };
        host.write_files()?;
        Ok(host)
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    fn write_files(&self) -> Result<()> {
        for pattern in &self.spec.removed {
            let pattern = self.inside(pattern);
            let (Some(parent), Some(name)) = (pattern.parent(), pattern.file_name()) else { continue };
            let name = name.to_string_lossy();
            let entries = match fs::read_dir(parent) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                let present = entry.file_name();
                let matches = match name.strip_suffix('*') {
                    Some(start) => present.to_string_lossy().starts_with(start),
                    None => present.to_string_lossy() == name,
                };
                if matches {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        for file in &self.spec.files {
            let path = self.inside(&file.path);
            let parent = path.parent().context("a file without a directory")?;
            if !parent.exists() {
                fs::create_dir_all(parent)?;
                fs::set_permissions(parent, Permissions::from_mode(0o755))?;
            }
            fs::write(&path, &file.content).with_context(|| format!("writing {}", file.path))?;
            fs::set_permissions(&path, Permissions::from_mode(file.mode))?;
        }
        Ok(())
    }

    /// Turns the host on.
    pub(super) fn start(&mut self) -> Result<()> {
        ensure!(self.container.is_none(), "{} is on already", self.spec.name);
        self.plug_in().with_context(|| format!("the network of {}", self.spec.name))?;
        self.run()
    }

    fn interface(&self) -> String {
        format!("host{}", self.spec.index)
    }

    /// A network namespace with one interface, that hangs on the bridge by a cable.
    fn plug_in(&self) -> Result<()> {
        let name = &self.spec.name;
        let [_, _, high, low] = self.spec.address().octets();
        // Always the same, or else neighbours that know the host from before its crash send into the void.
        let mac = format!("02:00:0a:d5:{high:02x}:{low:02x}");
        let interface = self.interface();
        run(Command::new("ip").args(["netns", "add", name]), "")?;
        ip(
            None,
            &[
                format!("link add {interface} type veth peer name eth0 address {mac} netns {name}"),
                format!("link set {interface} master {BRIDGE} up"),
            ],
        )?;
        ip(
            Some(name),
            &[
                "link set lo up".to_owned(),
                format!("address add {}/{PREFIX} dev eth0", self.spec.address()),
                "link set eth0 up".to_owned(),
            ],
        )
    }

    fn run(&mut self) -> Result<()> {
        let console = OpenOptions::new().create(true).append(true).open(self.dir.join("console"))?;
        let group = OpenOptions::new().write(true).open(cgroup::path(&self.cgroup).join("cgroup.procs"))?;
        let mut command = Command::new("systemd-nspawn");
        command
            .args(["--quiet", "--register=no", "--keep-unit", "--link-journal=no", "--console=pipe"])
            .args(["--resolv-conf=off", "--timezone=off", "--capability=CAP_NET_ADMIN,CAP_NET_RAW"])
            .arg(format!("--machine={}", self.spec.name))
            .arg(format!("--network-namespace-path=/run/netns/{}", self.spec.name))
            .arg(format!("--directory={}", self.root().display()));
        match &self.spec.init {
            Some(init) => command.arg(init),
            None => command.arg("--boot"),
        };
        command
            .env_clear()
            .env("PATH", PATH)
            // A host may have network settings of its own; every other setting is the machine's.
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console);
        // SAFETY: between fork and exec it makes one system call on a descriptor that is open, and allocates nothing.
        unsafe {
            command.pre_exec(move || nix::unistd::write(&group, b"0").map(drop).map_err(Into::into));
        }
        let child = command.spawn().context("starting systemd-nspawn")?;
        // Waited for with all other children.
        self.container = Some(Pid::from_raw(child.id().try_into()?));
        Ok(())
    }

    /// Takes note of the end of a process, which may be none of this host's.
    pub(super) fn ended(&mut self, pid: Pid, code: Option<i32>) {
        if self.container != Some(pid) {
            return;
        }
        self.container = None;
        let off = self.unplug();
        let ended = if code == Some(REBOOT) { off.and_then(|()| self.start()) } else { off };
        if let Err(error) = ended {
            self.note(&format!("after its end: {error:#}"));
        }
    }

    /// A line on the host's console.
    fn note(&self, text: &str) {
        let console = OpenOptions::new().append(true).open(self.dir.join("console"));
        let _ = console.and_then(|mut console| writeln!(console, "sortie-testhost: {text}"));
    }

    /// The power goes.
    pub(super) fn crash(&mut self) -> Result<()> {
        ensure!(self.container.is_some(), "{} is off", self.spec.name);
        // First the cable: closing their sockets, dying processes would say good-bye.
        self.link(false)?;
        cgroup::kill(&self.cgroup)?;
        if let Some(container) = self.container.take() {
            let _ = waitpid(container, None);
        }
        for entry in fs::read_dir(cgroup::path(&self.cgroup))?.filter_map(Result::ok) {
            if entry.file_type()?.is_dir() {
                cgroup::remove(&format!("{}/{}", self.cgroup, entry.file_name().to_string_lossy()));
            }
        }
        self.unplug()
    }

    /// With the network namespace goes what the kernel remembers of connections, and what the host has done to its
    /// interface: some turn it off at a reboot.
    fn unplug(&self) -> Result<()> {
        run(Command::new("ip").args(["netns", "delete", &self.spec.name]), "")?;
        // Gone with its other end, in a moment of the kernel's choosing, or here.
        let _ = run(Command::new("ip").args(["link", "delete", &self.interface()]), "");
        Ok(())
    }

    /// Takes the cable out, or puts it in.
    pub(super) fn link(&self, up: bool) -> Result<()> {
        ip(None, &[format!("link set {} {}", self.interface(), if up { "up" } else { "down" })])
    }

    /// Replaces the packet filters.
    pub(super) fn filter(&self, rules: &str) -> Result<()> {
        let script = format!("flush ruleset\n{rules}\n");
        run(Command::new("ip").args(["netns", "exec", &self.spec.name, "nft", "--file", "-"]), &script)
    }
}

/// Lines of `ip -batch`, in the lab's network namespace or that of a host.
pub(super) fn ip(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-netns", namespace]);
    }
    run(command.args(["-batch", "-"]), &(lines.join("\n") + "\n"))
}

fn run(command: &mut Command, input: &str) -> Result<()> {
    let shown = format!("{command:?}").replace('"', "");
    command.env_clear().env("PATH", PATH).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
    // Short enough for the pipe.
    child.stdin.take().context("standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        bail!("{shown} <<< {input:?}: {}: {said}", output.status);
    }
    Ok(())
}
