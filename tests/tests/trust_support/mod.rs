//! A small world of its own for the trust table: names, addresses and port 22 that nobody else has, OpenSSH's sshd showing
//! whatever keys a case asks for, and two clients that are asked the same thing with the same files.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sortie_client::error::HostKeyProblem;
use sortie_client::host_certificate::CertificateProblem;
use sortie_client::observe::Unobserved;
use sortie_client::ssh_config::ConfigSource;
use sortie_client::transport::{Launch, Ssh, Transport as _};
use sortie_client::{Error, SshSettings, Target};

/// Names that cases connect to. The last one has an address that is not this machine's own loopback.
const HOSTS: &str = "127.0.0.1 localhost web1 web1.example.org db.example.org\n::1 six\n192.0.2.7 far\n";
const PORTS: [u16; 2] = [22, 2222];

/// Runs `work` in a thread with a network and mounts of its own.
pub(crate) fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .context("leaving the machine's network")?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("keeping mounts to ourselves")?;
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("mounting /run")?;
            // sshd insists on it.
            fs::create_dir("/run/sshd")?;
            fs::write("/run/hosts", HOSTS)?;
            mount(Some("/run/hosts"), "/etc/hosts", none, MsFlags::MS_BIND, none)
                .context("mounting /etc/hosts")?;
            run("ip", &["link", "set", "lo", "up"])?;
            run("ip", &["address", "add", "192.0.2.7/32", "dev", "lo"])?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the thread panicked"))?
    })
}

/// Runs a program that has to succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A client's decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It would log in.
    Accepts,
    /// It would not: why in a word or two, and what it says.
    Refuses(&'static str, String),
}

/// What to ask both clients.
pub(crate) struct Question<'a> {
    /// Name and port to connect to.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    /// Key files and certificates of the server, by their names in the directory of keys.
    pub(crate) server: &'a [&'a str],
    /// Lines of ssh_config(5).
    pub(crate) options: String,
    /// Files beside the configuration, with their content; always a `known_hosts`.
    pub(crate) files: Vec<(String, String)>,
}

/// What they answered.
pub(crate) struct Answers {
    pub(crate) ssh: Decision,
    pub(crate) sortie: Decision,
    /// known_hosts after each; `None` where there is no such file.
    pub(crate) after_ssh: Option<String>,
    pub(crate) after_sortie: Option<String>,
}

/// The server, and the directories that cases are made in.
pub(crate) struct World {
    directory: tempfile::TempDir,
    config: Arc<Mutex<PathBuf>>,
    stop: Arc<AtomicBool>,
    listening: Vec<JoinHandle<()>>,
}

impl World {
    /// Starts listening; keys are to be made in [`World::keys`].
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::create_dir(directory.path().join("keys"))?;
        fs::create_dir(directory.path().join("case"))?;
        let sshd = sortie_tests::which("sshd").context("no sshd")?;
        let config = Arc::new(Mutex::new(PathBuf::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut listening = Vec::new();
        for port in PORTS {
            // One socket for both families.
            let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
            let (config, stop, sshd) = (Arc::clone(&config), Arc::clone(&stop), sshd.clone());
            listening.push(std::thread::spawn(move || serve(&listener, &sshd, &config, &stop)));
        }
        Ok(Self { directory, config, stop, listening })
    }

    /// Where keys, certificates and revocation lists are.
    pub(crate) fn keys(&self) -> PathBuf {
        self.directory.path().join("keys")
    }

    /// Where the files of a case are.
    pub(crate) fn case(&self) -> PathBuf {
        self.directory.path().join("case")
    }

    /// Asks both clients, each with the files anew.
    pub(crate) fn ask(&self, question: &Question<'_>) -> Result<Answers> {
        let mut lines = String::from(
            "UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nAuthorizedKeysFile none\n\
             LoginGraceTime 20\nUseDNS no\nHostKeyAlgorithms +ssh-rsa\n",
        );
        for name in question.server {
            let file = self.keys().join(name);
            let (keyword, end) =
                if name.starts_with("cert-") { ("HostCertificate", "") } else { ("HostKey", "") };
            lines += &format!("{keyword} {}{end}\n", file.display());
        }
        let config = self.directory.path().join("sshd_config");
        fs::write(&config, lines)?;
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        let known_hosts = self.case().join("known_hosts");
        let after = || fs::read_to_string(&known_hosts).ok();

        self.lay_out(question)?;
        let ssh = judged(&self.ssh(question, &[])?)?;
        let after_ssh = after();
        self.lay_out(question)?;
        let sortie = self.sortie(question)?;
        let after_sortie = after();
        if after_sortie.as_ref().is_some_and(|now| !question.files.iter().any(|(_, text)| text == now)) {
            let again = judged(&self.ssh(question, &["-o", "StrictHostKeyChecking=yes"])?)?;
            ensure!(
                again == Decision::Accepts,
                "what Sortie wrote is nothing to ssh: {again:?} {after_sortie:?}"
            );
        }
        Ok(Answers { ssh, sortie, after_ssh, after_sortie })
    }

    fn lay_out(&self, question: &Question<'_>) -> Result<()> {
        let case = self.case();
        fs::remove_dir_all(&case)?;
        fs::create_dir(&case)?;
        for (name, text) in &question.files {
            fs::write(case.join(name), text)?;
        }
        let config = format!(
            "Host *\n{}\nUserKnownHostsFile {}\nGlobalKnownHostsFile none\nStrictHostKeyChecking yes\nUser nobody\n\
             IdentityFile none\nIdentitiesOnly yes\nIdentityAgent none\nBatchMode yes\n",
            question.options,
            case.join("known_hosts").display()
        );
        Ok(fs::write(case.join("config"), config)?)
    }

    fn ssh(&self, question: &Question<'_>, options: &[&str]) -> Result<Output> {
        let mut command = Command::new("ssh");
        command.arg("-F").arg(self.case().join("config")).args(options);
        command.args(["-p", &question.port.to_string(), question.host, "true"]);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").stdin(Stdio::null());
        Ok(command.output()?)
    }

    fn sortie(&self, question: &Question<'_>) -> Result<Decision> {
        let settings = SshSettings {
            config: ConfigSource::File(self.case().join("config")),
            port: Some(question.port),
            ..SshSettings::default()
        };
        let launch = Launch { line: "true".into(), argv: Vec::new() };
        let target = Target::parse(question.host)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tried = Ssh::new(&target, &settings)
            .and_then(|transport| runtime.block_on(transport.start(&launch, &Unobserved)).map(drop));
        Ok(match tried {
            // There is no way to log in, so to be told that is to have come past the host key.
            Ok(()) | Err(Error::Auth { .. }) => Decision::Accepts,
            Err(error @ Error::Config { .. }) => Decision::Refuses("by name", error.to_string()),
            Err(Error::HostKey { problem, .. }) => {
                Decision::Refuses(in_short(&problem)?, problem.to_string())
            }
            Err(error) if error.to_string().contains("algorithm in common") => {
                Decision::Refuses("nothing in common", error.to_string())
            }
            Err(error) => bail!("Sortie: {error}"),
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (port, thread) in PORTS.iter().zip(self.listening.drain(..)) {
            let woken = TcpStream::connect((Ipv6Addr::LOCALHOST, *port)).is_ok();
            if woken {
                let _ = thread.join();
            }
        }
    }
}

fn serve(listener: &TcpListener, sshd: &Path, config: &Mutex<PathBuf>, stop: &AtomicBool) {
    for stream in listener.incoming() {
        let (Ok(stream), false) = (stream, stop.load(Ordering::Relaxed)) else { return };
        let Ok(output) = stream.try_clone() else { return };
        let config = config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let started = Command::new(sshd)
            .args(["-i", "-f"])
            .arg(config)
            .stdin(OwnedFd::from(stream))
            .stdout(OwnedFd::from(output))
            .stderr(Stdio::null())
            .spawn();
        // It ends with its connection, which the client ends.
        let _ = started.and_then(|mut sshd| sshd.wait());
    }
}

fn in_short(problem: &HostKeyProblem) -> Result<&'static str> {
    Ok(match problem {
        HostKeyProblem::Unknown { .. } => "unknown",
        HostKeyProblem::Changed { .. } => "changed",
        HostKeyProblem::Revoked { .. } | HostKeyProblem::RevokedBy { .. } => "revoked",
        HostKeyProblem::NotAllowed => "type not allowed",
        HostKeyProblem::TooShort { .. } => "too short",
        HostKeyProblem::Certificate { problem, .. } => match **problem {
            CertificateProblem::NotForHosts => "a user's",
            CertificateProblem::NotYetValid(_) => "not valid yet",
            CertificateProblem::Expired(_) => "expired",
            CertificateProblem::NoPrincipals => "for nobody",
            CertificateProblem::OtherHosts { .. } => "for others",
            CertificateProblem::CriticalOption(_) => "critical option",
            CertificateProblem::Signature(_) => "signature not allowed",
            _ => bail!("{problem}"),
        },
        problem => bail!("{problem}"),
    })
}

/// What ssh decided, by what it says: it exits with 255 either way.
fn judged(output: &Output) -> Result<Decision> {
    const REFUSALS: [&str; 4] =
        ["Host key verification failed", "no matching host key type", "Bad server host key", "revoked"];
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("Permission denied") {
        return Ok(Decision::Accepts);
    }
    if REFUSALS.iter().any(|words| said.contains(words)) {
        return Ok(Decision::Refuses("", said));
    }
    bail!("ssh says neither: {said}")
}
