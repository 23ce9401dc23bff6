//! From options to hosts that can be reached: targets, the settings of SSH, the runners. Opens no connection.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use sortie_client::manifest::Vouched;
use sortie_client::signing::{self, Signer};
use sortie_client::ssh_config::{ConfigSource, HostKeyPolicy};
use sortie_client::{
    AllowedSigners, Client, ClientBuilder, Command, Error, Local, OpenSsh, RunnerSet, SignedListing,
    SshSettings, Target, Transport,
};

use crate::audit;
use crate::options::{self, Connection, Via};
use crate::outcome::usage;
use crate::report::Reporter;
use crate::runners;
use crate::secrets::Keyring;
use crate::watch::Watch;

/// A host as the user named it.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// What it is called in everything that is shown.
    pub(crate) label: Arc<str>,
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    Ssh(Target),
    Local,
    Via(Vec<String>),
}

impl Host {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let target = Target::parse(text.trim()).map_err(|error| usage(error.to_string()))?;
        Ok(Self { label: target.to_string().into(), way: Way::Ssh(target) })
    }

    fn local() -> Self {
        Self { label: "localhost".into(), way: Way::Local }
    }

    fn via(via: &Via) -> Self {
        Self { label: via.text.as_str().into(), way: Way::Via(via.argv.clone()) }
    }

    /// Every host once, in the order in which they were named.
    pub(crate) fn all(options: &options::Hosts) -> anyhow::Result<Vec<Self>> {
        if options.local {
            return Ok(vec![Self::local()]);
        }
        if let Some(via) = &options.via {
            return Ok(vec![Self::via(via)]);
        }
        let mut seen = HashSet::new();
        let mut hosts = Vec::new();
        for text in options.host.iter().filter(|text| !text.trim().is_empty()) {
            let host = Self::parse(text)?;
            if seen.insert(Arc::clone(&host.label)) {
                hosts.push(host);
            }
        }
        if hosts.is_empty() {
            return Err(usage("-H names no host"));
        }
        Ok(hosts)
    }

    /// The only one.
    pub(crate) fn one(options: &options::Host) -> anyhow::Result<Self> {
        match (&options.host, &options.via) {
            (Some(text), _) => Self::parse(text),
            (None, Some(via)) => Ok(Self::via(via)),
            (None, None) => Ok(Self::local()),
        }
    }

    /// What the client calls it.
    pub(crate) fn name(&self) -> &str {
        self.target().map_or(&self.label, Target::host)
    }

    /// The target, where it is reached over SSH.
    pub(crate) fn target(&self) -> Option<&Target> {
        match &self.way {
            Way::Ssh(target) => Some(target),
            Way::Local | Way::Via(_) => None,
        }
    }
}

/// What is needed to reach hosts.
pub(crate) struct Base {
    pub(crate) ssh: SshSettings,
    builder: ClientBuilder,
    trace: bool,
    program: Option<Program>,
}

/// An ssh program to go by.
struct Program {
    path: PathBuf,
    options: Vec<String>,
    /// This program itself, which ssh starts to ask.
    askpass: PathBuf,
}

impl Program {
    fn new(path: &Path, options: &[String]) -> anyhow::Result<Self> {
        let askpass =
            std::env::current_exe().context("--ssh: finding this program, which answers ssh's questions")?;
        Ok(Self { path: path.to_owned(), options: options.to_vec(), askpass })
    }

    fn way_to(&self, target: &Target, settings: &SshSettings) -> OpenSsh {
        let ssh = OpenSsh::new(target, settings).program(&self.path).askpass(&self.askpass);
        self.options.iter().fold(ssh, OpenSsh::option)
    }
}

impl Base {
    /// Reads what the options name on this machine; `ttl` is the runner's time to live.
    pub(crate) fn new(options: &Connection, ttl: Duration) -> anyhow::Result<Self> {
        let ssh = ssh_settings(options)?;
        let signers = options.require_signed_runners.as_deref();
        let (runners, _) = runner_set(options.runners.as_deref(), signers)?;
        let mut builder = Client::builder()
            .ttl(ttl)
            .cache(options.cache)
            .runners(runners)
            .known_runners_only(signers.is_some())
            .ssh(ssh.clone());
        if let Some(key) = &options.sign_with {
            let signer = Signer::new(key, ssh.agent_socket.as_deref(), Arc::clone(&ssh.secrets));
            builder =
                builder.signer(Arc::new(signer.map_err(|error| usage(format!("--sign-with: {error}")))?));
        }
        if let Some(file) = &options.trust {
            let keys = signing::trusted_keys(file);
            let keys = keys.map_err(|error| usage(format!("--trust {}: {error}", file.display())))?;
            builder = builder.trust(keys);
        }
        if let Some(log) = audit::log(options.audit.as_deref())? {
            builder = builder.audit(log);
        }
        let program = options.ssh.as_ref().map(|path| Program::new(path, &options.ssh_option)).transpose()?;
        Ok(Self { ssh, builder, trace: options.trace, program })
    }

    /// A client that tells `reporter` of one host.
    pub(crate) fn client(&self, host: &Host, reporter: &Reporter) -> Client {
        self.watched(Arc::new(Watch::new(host, reporter, self.trace, false)))
    }

    /// A client with an observer of the caller's.
    pub(crate) fn watched(&self, watch: Arc<Watch>) -> Client {
        self.builder.clone().observer(watch).build()
    }

    /// Whether hosts are reached by an ssh program (`--ssh`).
    pub(crate) fn goes_by_program(&self) -> bool {
        self.program.is_some()
    }

    /// The way to a host.
    pub(crate) async fn transport(&self, client: &Client, host: &Host) -> Result<Arc<dyn Transport>, Error> {
        Ok(match (&host.way, &self.program) {
            (Way::Ssh(target), Some(program)) => Arc::new(program.way_to(target, &self.ssh)),
            (Way::Ssh(target), None) => client.ssh(target).await?,
            (Way::Local, _) => Arc::new(Local),
            (Way::Via(argv), _) => Arc::new(Command::new(&*host.label, argv.iter().cloned())),
        })
    }
}

fn ssh_settings(options: &Connection) -> anyhow::Result<SshSettings> {
    let mut ssh = SshSettings::from_env();
    match &options.config {
        Some(file) if file.as_os_str() == "none" => ssh.config = ConfigSource::None,
        Some(file) => {
            must_be_there("-F", file)?;
            ssh.config = ConfigSource::File(file.clone());
        }
        None => {}
    }
    for file in &options.identities {
        must_be_there("-i", file)?;
    }
    ssh.user.clone_from(&options.user);
    ssh.port = options.port;
    ssh.proxy.clone_from(&options.jump);
    ssh.identities.clone_from(&options.identities);
    if options.accept_new {
        ssh.host_key_policy = Some(HostKeyPolicy::AcceptNew);
    }
    if let Some(file) = &options.known_hosts {
        ssh.user_known_hosts = Some(vec![file.clone()]);
        ssh.global_known_hosts = Some(Vec::new());
    }
    ssh.connect_timeout = options.connect_timeout;
    ssh.secrets = Arc::new(Keyring::new(options)?);
    Ok(ssh)
}

fn must_be_there(flag: &str, file: &Path) -> anyhow::Result<()> {
    match std::fs::metadata(file) {
        Ok(metadata) if metadata.is_dir() => {
            Err(usage(format!("{flag} {}: it is a directory, not a file", file.display())))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(usage(format!("{flag} {}: {error}", file.display()))),
    }
}

/// Runners, and where the listing is that came with them.
struct Found {
    set: RunnerSet,
    /// None for those inside of this program.
    directory: Option<PathBuf>,
}

/// Those of a directory that was named, else those inside of this program, else those beside it; and who vouches for them, if
/// one of `signers` (a file) has to.
pub(crate) fn runner_set(
    directory: Option<&Path>,
    signers: Option<&Path>,
) -> anyhow::Result<(RunnerSet, Option<Vouched>)> {
    let Found { set, directory: found_in } = match directory {
        Some(directory) => {
            let set = RunnerSet::from_dir(directory).map_err(|error| usage(format!("--runners: {error}")))?;
            Found { set, directory: Some(directory.to_owned()) }
        }
        None => match runners::embedded() {
            set if !set.is_empty() => Found { set, directory: None },
            _ => beside_executable()?,
        },
    };
    if set.is_empty() {
        return Err(match directory {
            Some(directory) => usage(format!(
                "--runners {}: no file in it is named sortie-runner-TARGET",
                directory.display()
            )),
            None => anyhow::anyhow!(
                "this command carries no runner to send to hosts; build it by `cargo xtask build`, or name a directory of \
                 runners with --runners or SORTIE_RUNNERS"
            ),
        });
    }
    let vouched = signers.map(|signers| vouch(&set, found_in.as_deref(), signers)).transpose()?;
    Ok((set, vouched))
}

fn vouch(set: &RunnerSet, directory: Option<&Path>, signers: &Path) -> anyhow::Result<Vouched> {
    let signers = AllowedSigners::load(signers)
        .map_err(|error| usage(format!("--require-signed-runners {}: {error}", signers.display())))?;
    let listing = match directory {
        Some(directory) => SignedListing::from_dir(directory)?,
        None => runners::embedded_listing().context(
            "the runners inside of this command are not signed: build it by `cargo xtask dist --sign-with KEY` and `cargo xtask \
             build`, or name a directory of signed ones with --runners",
        )?,
    };
    listing.vouch(set, &signers, SystemTime::now()).context("--require-signed-runners: no runner was sent")
}

fn beside_executable() -> anyhow::Result<Found> {
    let Some(directory) = std::env::current_exe().ok().and_then(|path| path.parent().map(PathBuf::from))
    else {
        return Ok(Found { set: RunnerSet::new(), directory: None });
    };
    let set = RunnerSet::from_dir(&directory).context("looking for runners beside this program")?;
    Ok(Found { set, directory: Some(directory) })
}
