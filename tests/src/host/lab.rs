//! A lab and its hosts as a test holds them: making, turning on and off, and finding them. What runs them is the helper
//! program `sortie-testhost`; this end only asks.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::spec::{self, Answer, CGROUP_PREFIX, HostSpec, LabSpec, Request};
use super::{Kind, Missing, image};
use crate::access::Access;
use crate::keys::KeyPair;

/// A network of hosts. Dropping it, and every [`Host`] of it, ends them with all their processes and files, and puts the
/// thread back into the network namespace it came from.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
    /// Left before the rest goes.
    _entered: Entered,
}

impl Lab {
    /// An empty lab. The calling thread, and what it starts from now on, is in its network.
    ///
    /// # Errors
    /// When this process is not root, a program that labs need is not installed ([`crate::require_kind!`] asks for
    /// them), or the kernel refuses.
    #[allow(clippy::unused_async, reason = "a runtime is to be there, and a later lab may need to wait")]
    pub async fn start() -> Result<Self> {
        ensure!(crate::is_root(), "a lab needs root");
        let shared = Arc::new(Shared::start()?);
        let entered = Entered::enter(shared.init)?;
        Ok(Self { shared, _entered: entered })
    }

    /// A host about to be made.
    pub fn host(&self, kind: Kind) -> Builder {
        Builder { shared: Arc::clone(&self.shared), kind, name: None, disk: 1 << 30, files: Vec::new() }
    }

    /// The test's own address in the lab's network.
    pub fn address(&self) -> Ipv4Addr {
        spec::GATEWAY
    }

    /// The process that all others of the lab descend from, as this machine sees it: its end is theirs.
    pub fn init(&self) -> i32 {
        self.shared.init
    }

    /// The name of the lab's control group.
    pub fn cgroup(&self) -> &str {
        &self.shared.cgroup
    }

    /// What the helper has logged so far.
    pub fn log(&self) -> String {
        self.shared.log()
    }
}

/// What a lab's hosts share.
#[derive(Debug)]
pub(super) struct Shared {
    control: Mutex<UnixStream>,
    helper: Mutex<Child>,
    log: File,
    pub(super) init: i32,
    pub(super) cgroup: String,
    scratch: PathBuf,
    key: KeyPair,
    hosts: AtomicU16,
    /// The network namespace of the machine, from which images are built.
    outside: File,
}

impl Shared {
    fn start() -> Result<Self> {
        // From here on the helper removes it, so that it goes even if this process is killed.
        let scratch = tempfile::Builder::new().prefix("sortie-lab-").tempdir()?;
        let random =
            scratch.path().file_name().and_then(|name| name.to_str()).context("the scratch directory")?;
        let random = random.trim_start_matches(CGROUP_PREFIX);
        let cgroup = format!("{CGROUP_PREFIX}{}-{random}", std::process::id());
        let log = tempfile::tempfile()?;
        let (control, theirs) = UnixStream::pair()?;
        let helper = crate::sshd::helper_command(&log)?
            .arg("lab")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .context("starting sortie-testhost")?;
        control.set_read_timeout(Some(crate::DEADLINE))?;
        let mut shared = Self {
            control: Mutex::new(control),
            helper: Mutex::new(helper),
            log,
            init: 0,
            cgroup,
            scratch: scratch.keep(),
            key: KeyPair::generate()?,
            hosts: AtomicU16::new(0),
            outside: File::open("/proc/thread-self/ns/net")?,
        };
        shared.init = shared.wait_ready()?;
        Ok(shared)
    }

    /// Returns the pid of the lab's first process.
    fn wait_ready(&self) -> Result<i32> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_writer(
            &*control,
            &LabSpec { cgroup: self.cgroup.clone(), scratch: self.scratch.clone() },
        )?;
        control.write_all(b"\n")?;
        let mut lines = BufReader::new(control.try_clone()?).lines();
        // Two processes speak, in any order.
        let (mut init, mut ready) = (None, false);
        loop {
            if let Some(init) = init
                && ready
            {
                return Ok(init);
            }
            let line = lines.next().transpose().context("waiting for the lab")?;
            let line = line.with_context(|| format!("the lab ended at once: {}", self.log()))?;
            match line.split_once(' ') {
                Some(("pid", pid)) => init = Some(pid.parse()?),
                Some(("ready", _)) => ready = true,
                Some(("error", message)) => bail!("making the lab: {message}"),
                _ => bail!("sortie-testhost said {line:?}"),
            }
        }
    }

    /// Asks the helper, and waits until it has done so.
    pub(super) fn ask(&self, request: &Request) -> Result<()> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        control
            .write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())
            .context("asking the lab")?;
        let mut line = String::new();
        BufReader::new(&*control).read_line(&mut line).context("the lab's answer")?;
        let answer: Answer = serde_json::from_str(&line)
            .with_context(|| format!("the lab has ended: {line:?}; its log: {}", self.log()))?;
        answer.map_err(|error| anyhow!("{error}"))
    }

    /// Where a path of the lab's own mount namespace is found from here.
    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        Path::new("/proc")
            .join(self.init.to_string())
            .join("root")
            .join(path.strip_prefix("/").unwrap_or(path))
    }

    fn log(&self) -> String {
        let mut text = Vec::new();
        let read =
            self.log.try_clone().and_then(|mut log| log.rewind().and_then(|()| log.read_to_end(&mut text)));
        read.map_or_else(|error| error.to_string(), |_| String::from_utf8_lossy(&text).into_owned())
    }

    /// The image of a kind, built from outside the lab, which has no way to any mirror.
    fn image(&self, kind: Kind) -> Result<PathBuf, Missing> {
        std::thread::scope(|scope| {
            let build = scope.spawn(|| {
                setns(&self.outside, CloneFlags::CLONE_NEWNET).context("leaving the lab's network")?;
                image::ensure(kind)
            });
            build.join().unwrap_or_else(|_| Err(anyhow!("building the image panicked").into()))
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = control.shutdown(Shutdown::Both);
        // Returns when the last process is gone, and the control groups and the scratch directory are removed.
        let ended = self.helper.lock().unwrap_or_else(PoisonError::into_inner).wait();
        if !ended.is_ok_and(|status| status.success()) {
            // It was killed: the kernel took the rest along, but not these.
            let _ = fs::remove_dir_all(&self.scratch);
            if let Ok(helper) = crate::sshd::helper() {
                let _ = Command::new(helper).arg("sweep").arg(&self.cgroup).status();
            }
        }
    }
}

/// A thread's stay in the network namespace of another process.
#[derive(Debug)]
struct Entered {
    from: File,
    thread: std::thread::ThreadId,
}

impl Entered {
    fn enter(pid: i32) -> Result<Self> {
        let from = File::open("/proc/thread-self/ns/net")?;
        let to = File::open(format!("/proc/{pid}/ns/net"))?;
        setns(to, CloneFlags::CLONE_NEWNET).context("entering the lab's network")?;
        Ok(Self { from, thread: std::thread::current().id() })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Another thread has never been in there.
        if std::thread::current().id() == self.thread {
            let _ = setns(&self.from, CloneFlags::CLONE_NEWNET);
        }
    }
}

/// What a host is to be like; see [`Lab::host`].
#[derive(Debug)]
pub struct Builder {
    shared: Arc<Shared>,
    kind: Kind,
    name: Option<String>,
    disk: u64,
    files: Vec<spec::File>,
}

impl Builder {
    /// The host's name: letters, digits and hyphens. Else it is made of the kind's name and a number.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The size of its disk: how much it may write beyond what the image has, in bytes of memory; 1 GiB by default.
    #[must_use]
    pub fn disk(mut self, bytes: u64) -> Self {
        self.disk = bytes;
        self
    }

    /// A file to be there at its first start, owned by root.
    #[must_use]
    pub fn file(mut self, path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.files.push(spec::File { path: path.to_owned(), content: content.into(), mode });
        self
    }

    /// Makes the host, turns it on, and waits until its SSH server answers.
    ///
    /// # Errors
    /// When its image cannot be had, the kernel refuses, or the host does not come up; the error has the end of its
    /// console then.
    pub async fn start(self) -> Result<Host> {
        let host = self.make()?;
        host.start().await?;
        Ok(host)
    }

    /// Makes the host and leaves it off.
    ///
    /// # Errors
    /// When its image cannot be had, or the kernel refuses.
    pub fn make(mut self) -> Result<Host> {
        let image = self
            .shared
            .image(self.kind)
            .map_err(anyhow::Error::from)
            .with_context(|| self.kind.to_string())?;
        let index = self.shared.hosts.fetch_add(1, Ordering::Relaxed) + 1;
        let name = self.name.take().unwrap_or_else(|| format!("{}-{index}", self.kind));
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        ensure!(!name.is_empty() && name.bytes().all(fits), "not a name for a host: {name:?}");
        let host_key = KeyPair::generate()?;
        let dir = self.shared.scratch.join(&name);
        fs::create_dir(&dir).with_context(|| format!("is there a host {name} in this lab already?"))?;
        let address = spec::address(index);
        let access = Access::write(&dir, (address, 22), "root", &self.shared.key, &host_key)?;
        let (mut files, removed) = self.kind.files(&name, &host_key)?;
        let key = self.shared.key.public_openssh()? + "\n";
        files.push(spec::File {
            path: "/root/.ssh/authorized_keys".to_owned(),
            content: key.into(),
            mode: 0o600,
        });
        files.append(&mut self.files);
        let init = self.kind.init().map(str::to_owned);
        let spec = HostSpec { name, index, image, init, disk: self.disk, files, removed };
        let host = Host {
            shared: self.shared,
            kind: self.kind,
            name: spec.name.clone(),
            address,
            access,
            leader: Mutex::new(None),
        };
        host.shared.ask(&Request::Make(Box::new(spec)))?;
        Ok(host)
    }
}

/// A host of a lab.
#[derive(Debug)]
pub struct Host {
    pub(super) shared: Arc<Shared>,
    kind: Kind,
    pub(super) name: String,
    address: Ipv4Addr,
    access: Access,
    /// Its first process as this machine sees it, as last found.
    pub(super) leader: Mutex<Option<i32>>,
}

impl Host {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its address in the lab's network.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// How to log in as `user` with the lab's key. Only root has it authorised from the beginning; see
    /// [`Host::add_user`].
    pub fn access(&self, user: &str) -> Access {
        self.access.for_user(user)
    }

    /// The public key of the lab, the one in [`Access::identity`], as a line of `authorized_keys` without a newline.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn authorized_key(&self) -> Result<String> {
        self.shared.key.public_openssh()
    }

    /// What it has written to its console so far, at all its starts.
    pub fn console(&self) -> String {
        let path = self.shared.path(Path::new(spec::HOSTS).join(&self.name).join("console"));
        fs::read(path)
            .map_or_else(|error| error.to_string(), |text| String::from_utf8_lossy(&text).into_owned())
    }

    /// Turns it on and waits until its SSH server answers.
    ///
    /// # Errors
    /// When it is on already, or does not come up; the error has the end of its console then.
    pub async fn start(&self) -> Result<()> {
        self.shared.ask(&Request::Start(self.name.clone()))?;
        let events = self.cgroup().join("cgroup.events");
        let ended = async {
            while fs::read_to_string(&events).is_ok_and(|events| events.contains("populated 1")) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            up = self.wait_ssh() => up,
            () = ended => bail!("{} has ended before it was up; {}", self.name, self.console_end()),
        }
    }

    fn console_end(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        format!("the end of its console:\n{}\n", lines[lines.len().saturating_sub(30)..].join("\n"))
    }

    /// Waits until its SSH server sends its banner.
    ///
    /// # Errors
    /// When none comes; the error has the end of the console.
    pub async fn wait_ssh(&self) -> Result<()> {
        let come = async {
            while !self.greets().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        crate::within("the banner of its SSH server", come)
            .await
            .with_context(|| format!("{} is not up; {}", self.name, self.console_end()))
    }

    /// Whether its SSH server answers a connection with a banner (RFC 4253 §4.2) at once.
    async fn greets(&self) -> bool {
        let greeting = async {
            let mut stream = TcpStream::connect((self.address, 22)).await.ok()?;
            let mut banner = [0; 4];
            stream.read_exact(&mut banner).await.ok()?;
            Some(banner)
        };
        tokio::time::timeout(Duration::from_secs(1), greeting)
            .await
            .is_ok_and(|banner| banner == Some(*b"SSH-"))
    }
}
