//! A real SSH server on a host of its own: OpenSSH's `sshd` over a private copy of this machine, or dropbear over
//! busybox alone. The host has its own mount, pid, network, UTS and IPC namespaces, so nothing of the machine is
//! touched, every process of the host is known, and all that it ever wrote can be listed. It needs root.
//!
//! The port is the machine's, bound to 127.0.0.1 by the test; the server is started for each connection (`sshd -i`),
//! so `MaxStartups` has no meaning here. The first process of the host, `sortie-testhost`, ends when the test does,
//! however it ends, and the kernel ends the rest with it.

pub(crate) mod inspect;
pub(crate) mod shell;
pub mod spec;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::access::Access;
use crate::keys::KeyPair;
pub use inspect::{Entry, HostProcess};
pub use shell::Shell;
use spec::{Account, Dir, Spec, System};

/// What the helper says when the host has ended and the test has not.
pub const ENDED: &str = "error the host has ended";

/// The uid of the account on a host, unless it is root's.
pub const UID: u32 = 4242;

/// What the host is to be like; see [`Sshd::builder`] and [`Sshd::busybox`].
#[derive(Clone, Debug)]
pub struct Builder {
    system: System,
    user: String,
    shell: Shell,
    password: Option<String>,
    host_key: Option<KeyPair>,
    noise: bool,
    max_sessions: Option<u32>,
    sftp: bool,
    runtime_dir: bool,
    env: BTreeMap<String, String>,
    config: Vec<String>,
    dirs: BTreeMap<String, Dir>,
    files: Vec<spec::File>,
    missing: Vec<String>,
    read_only_root: bool,
    passes_on: bool,
}

impl Builder {
    /// The host shares this machine's network: it can pass connections on to others.
    #[must_use]
    pub fn passes_on(mut self) -> Self {
        self.passes_on = true;
        self
    }

    /// The account: `root`, or any other name; `deploy` by default.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// The account's login shell; `/bin/sh` by default.
    #[must_use]
    pub fn shell(mut self, shell: Shell) -> Self {
        self.shell = shell;
        self
    }

    /// Lets the account in with this password too.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// The host key to show; a new one by default.
    #[must_use]
    pub fn host_key(mut self, key: KeyPair) -> Self {
        self.host_key = Some(key);
        self
    }

    /// Makes every start-up file that a shell may read at an `ssh` command print a line to each of its streams, and
    /// `~/.ssh/rc` (`sshd(8)`) besides, which every login runs whatever its shell (dropbear knows no such file).
    #[must_use]
    pub fn rc_noise(mut self) -> Self {
        self.noise = true;
        self
    }

    /// `MaxSessions` of `sshd_config(5)`.
    #[must_use]
    pub fn max_sessions(mut self, sessions: u32) -> Self {
        self.max_sessions = Some(sessions);
        self
    }

    /// Leaves out the sftp subsystem, and the programs for sftp and scp too.
    #[must_use]
    pub fn no_sftp(mut self) -> Self {
        self.sftp = false;
        self
    }

    /// Makes `/run/user/UID` and names it in `XDG_RUNTIME_DIR`, as a login through PAM and systemd does.
    #[must_use]
    pub fn runtime_dir(mut self) -> Self {
        self.runtime_dir = true;
        self
    }

    /// Sets a variable in the environment of logins (`SetEnv`; OpenSSH only).
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A further line of `sshd_config(5)`; it comes first, so it wins over the kit's own.
    #[must_use]
    pub fn config_line(mut self, line: &str) -> Self {
        self.config.push(line.to_owned());
        self
    }

    /// Nothing in these directories can be executed.
    #[must_use]
    pub fn noexec(mut self, dirs: &[&str]) -> Self {
        for path in dirs {
            self.dir(path).noexec = true;
        }
        self
    }

    /// Nothing in these directories can be changed.
    #[must_use]
    pub fn read_only(mut self, dirs: &[&str]) -> Self {
        for path in dirs {
            self.dir(path).read_only = true;
        }
        self
    }

    /// Nothing outside the directories with a file system of their own can be changed. These are `/tmp`, `/var/tmp`,
    /// `/dev/shm`, `/run`, `/root`, the account's home and what [`Builder::noexec`] and the like name.
    #[must_use]
    pub fn read_only_root(mut self) -> Self {
        self.read_only_root = true;
        self
    }

    /// The disks of these directories are full: names can be made, content cannot (`ENOSPC`).
    #[must_use]
    pub fn full_disk(mut self, dirs: &[&str]) -> Self {
        for path in dirs {
            self.dir(path).full = true;
        }
        self
    }

    /// Removes these programs from the host.
    #[must_use]
    pub fn path_without(mut self, programs: &[&str]) -> Self {
        self.missing.extend(programs.iter().map(|&name| name.to_owned()));
        self
    }

    /// Writes a file of the account's, or root's if the path is not in the account's home.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        let of_account = path.starts_with(&(self.home() + "/"));
        self.files.push(spec::File { path: path.to_owned(), content: content.into(), mode, of_account });
        self
    }

    /// The directories a runner may be put into, in the order in which a login on this host offers them: useful for
    /// [`Builder::noexec`] and [`Builder::full_disk`] of all but one.
    pub fn candidates(&self) -> Vec<String> {
        let mut all = vec!["/dev/shm".to_owned(), "/tmp".to_owned(), "/var/tmp".to_owned(), self.home()];
        if self.runtime_dir {
            all.insert(0, self.runtime_path());
        }
        all
    }

    fn uid(&self) -> u32 {
        if self.user == "root" { 0 } else { UID }
    }

    fn home(&self) -> String {
        if self.user == "root" { "/root".to_owned() } else { format!("/home/{}", self.user) }
    }

    fn runtime_path(&self) -> String {
        format!("/run/user/{}", self.uid())
    }

    fn dir(&mut self, path: &str) -> &mut Dir {
        let of_account = path == self.home() || path == self.runtime_path();
        let mode = match path {
            "/tmp" | "/var/tmp" | "/dev/shm" => 0o1777,
            _ if of_account || path == "/root" => 0o700,
            _ => 0o755,
        };
        self.dirs.entry(path.to_owned()).or_insert_with(|| Dir {
            path: path.to_owned(),
            mode,
            of_account,
            noexec: false,
            read_only: false,
            full: false,
        })
    }

    /// Makes the host and waits until it takes connections.
    ///
    /// # Errors
    /// When this process is not root, a program that the host needs is not installed, or the kernel refuses.
    pub fn start(mut self) -> Result<Sshd> {
        ensure!(crate::is_root(), "a host with namespaces of its own needs root");
        let listener = TcpListener::bind("127.0.0.1:0").context("binding a port of 127.0.0.1")?;
        let port = listener.local_addr()?.port();
        let key = KeyPair::generate()?;
        let host_key = match self.host_key.take() {
            Some(key) => key,
            None => KeyPair::generate()?,
        };
        // From here on the helper removes it, so that it goes even if this process is killed.
        let scratch = tempfile::Builder::new().prefix("sortie-host-").tempdir()?;
        let access = Access::write(scratch.path(), (Ipv4Addr::LOCALHOST, port), &self.user, &key, &host_key)?;
        let spec = self.spec(scratch.path().to_owned(), &key, &host_key)?;
        let dirs = spec.dirs.iter().map(|dir| dir.path.clone()).collect();
        let system = spec.system;
        let log = tempfile::tempfile()?;
        let (control, theirs) = UnixStream::pair()?;
        let helper = helper_command(&log)?
            .stdin(OwnedFd::from(listener))
            .stdout(OwnedFd::from(theirs))
            .spawn()
            .context("starting sortie-testhost")?;
        let mut host =
            Sshd { access, control, helper, log, init: 0, layer: 0, system, dirs, baseline: Vec::new() };
        let _ = scratch.keep();
        host.wait_ready(&spec)?;
        host.rebase()?;
        Ok(host)
    }

    fn spec(&mut self, scratch: PathBuf, key: &KeyPair, host_key: &KeyPair) -> Result<Spec> {
        let home = self.home();
        for path in ["/tmp", "/var/tmp", "/dev/shm", "/run", "/root"] {
            self.dir(path);
        }
        self.dir(&home);
        if self.runtime_dir {
            let path = self.runtime_path();
            self.dir(&path);
            self.env.insert("XDG_RUNTIME_DIR".to_owned(), path);
        }
        if !self.sftp {
            self.missing.extend(["sftp-server", "scp", "sftp"].map(str::to_owned));
        }
        let shell = self.shell.path(self.system)?;
        let mut files = vec![
            file("/etc/ssh/kit_host_key", 0o600, host_key.private_openssh()?),
            file("/etc/ssh/kit_sshd_config", 0o644, self.sshd_config()),
            file("/etc/dropbear/kit_host_key", 0o600, shell::dropbear_key(host_key)?),
            spec::File {
                of_account: true,
                ..file(&format!("{home}/.ssh/authorized_keys"), 0o600, key.public_openssh()? + "\n")
            },
        ];
        files.extend(self.shell.script().map(|script| file(&shell, 0o755, script)));
        if self.noise {
            files.extend(shell::noise(&home));
        }
        files.append(&mut self.files);
        let serve = match self.system {
            System::Machine => &["/usr/sbin/sshd", "-i", "-e", "-f", "/etc/ssh/kit_sshd_config"][..],
            System::Busybox => &["/usr/sbin/dropbear", "-i", "-r", "/etc/dropbear/kit_host_key"][..],
        };
        let account =
            Account { name: self.user.clone(), uid: self.uid(), home, shell, password: self.password.take() };
        Ok(Spec {
            system: self.system,
            hostname: "testhost".to_owned(),
            warm_up: self.shell.warm_up(&account.shell),
            account,
            dirs: self.dirs.values().cloned().collect(),
            files,
            missing: std::mem::take(&mut self.missing),
            read_only_root: self.read_only_root,
            own_network: !self.passes_on,
            serve: serve.iter().map(|&arg| arg.to_owned()).collect(),
            scratch,
        })
    }

    fn sshd_config(&self) -> String {
        let mut lines = self.config.clone();
        lines.push("HostKey /etc/ssh/kit_host_key".to_owned());
        lines.push("AuthorizedKeysFile .ssh/authorized_keys".to_owned());
        lines.push(format!("PasswordAuthentication {}", if self.password.is_some() { "yes" } else { "no" }));
        lines.push("KbdInteractiveAuthentication no".to_owned());
        lines.push("PermitRootLogin yes".to_owned());
        lines.push("UsePAM no".to_owned());
        lines.push("UseDNS no".to_owned());
        lines.push("PrintMotd no".to_owned());
        lines.extend(self.max_sessions.map(|sessions| format!("MaxSessions {sessions}")));
        if self.sftp {
            lines.push("Subsystem sftp internal-sftp".to_owned());
        }
        if !self.env.is_empty() {
            let env = self.env.iter().map(|(name, value)| format!(" {name}=\"{value}\""));
            lines.push(format!("SetEnv{}", env.collect::<String>()));
        }
        lines.join("\n") + "\n"
    }
}

fn file(path: &str, mode: u32, content: impl Into<Vec<u8>>) -> spec::File {
    spec::File { path: path.to_owned(), content: content.into(), mode, of_account: false }
}

/// A running host. Dropping it ends it with all its processes and files.
#[derive(Debug)]
pub struct Sshd {
    access: Access,
    /// Its other end is the first process of the host, which ends when this one closes.
    control: UnixStream,
    helper: Child,
    log: File,
    init: i32,
    layer: i32,
    system: System,
    dirs: Vec<String>,
    baseline: Vec<PathBuf>,
}

impl Sshd {
    /// OpenSSH's `sshd` over a private copy of this machine.
    pub fn builder() -> Builder {
        Builder {
            system: System::Machine,
            user: "deploy".to_owned(),
            shell: Shell::Sh,
            password: None,
            host_key: None,
            noise: false,
            max_sessions: None,
            sftp: true,
            runtime_dir: false,
            env: BTreeMap::new(),
            config: Vec::new(),
            dirs: BTreeMap::new(),
            files: Vec::new(),
            missing: Vec::new(),
            read_only_root: false,
            passes_on: false,
        }
    }

    /// Dropbear over busybox, and nothing else: no GNU tools, no sftp, no scp, no bash.
    pub fn busybox() -> Builder {
        Builder { system: System::Busybox, ..Self::builder() }
    }

    fn wait_ready(&mut self, spec: &Spec) -> Result<()> {
        self.control.set_read_timeout(Some(crate::DEADLINE))?;
        serde_json::to_writer(&self.control, spec)?;
        self.control.write_all(b"\n")?;
        let mut lines = BufReader::new(self.control.try_clone()?).lines();
        // Two processes speak, in any order.
        let (mut pid_known, mut ready) = (false, false);
        while !(pid_known && ready) {
            let line = lines.next().transpose().context("waiting for the host")?;
            let line = line.with_context(|| format!("the host ended at once: {}", self.log()))?;
            match line.split_once(' ') {
                Some(("pid", pid)) => (self.init, pid_known) = (pid.parse()?, true),
                Some(("ready", layer)) => (self.layer, ready) = (layer.parse()?, true),
                Some(("error", message)) => bail!("making the host: {message}"),
                _ => bail!("sortie-testhost said {line:?}"),
            }
        }
        Ok(())
    }

    /// How to log in.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// What the server has logged so far. Dropbear's log goes to a syslog that the host does not have.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        let read =
            self.log.try_clone().and_then(|mut log| log.rewind().and_then(|()| log.read_to_end(&mut text)));
        read.map_or_else(|error| error.to_string(), |_| String::from_utf8_lossy(&text).into_owned())
    }

    /// Ends the host at once, as a power cut does. Returns when the last process is gone; by then the kernel has closed
    /// its connections, without a word from the server, and nobody listens on the port any more.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn crash(&mut self) -> Result<()> {
        crate::process::kill(self.init, Signal::SIGKILL)?;
        // The helper says so once it has waited for the host.
        let ended = BufReader::new(&self.control).lines().next().transpose()?;
        ensure!(ended.as_deref() == Some(ENDED), "sortie-testhost said {ended:?}");
        Ok(())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.control.shutdown(Shutdown::Both);
        // Returns when the last process is gone and the scratch directory removed.
        let _ = self.helper.wait();
    }
}

/// The helper program with an environment and a process group of its own; what it says goes to `log`.
pub(crate) fn helper_command(log: &File) -> Result<Command> {
    let mut command = Command::new(helper()?);
    command
        .stderr(Stdio::from(log.try_clone()?))
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .process_group(0);
    Ok(command)
}

/// Where the helper program is: `SORTIE_TESTHOST`, or beside this executable or in the directory above, where cargo
/// puts it for tests and for other programs of the workspace.
pub(crate) fn helper() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SORTIE_TESTHOST") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("sortie-testhost"))
        .find(|path| path.exists())
        .context("sortie-testhost is not built: cargo build -p sortie-tests --bin sortie-testhost")
}
