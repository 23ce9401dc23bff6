//! Everything that decides how an SSH connection is made: settings of the caller, ssh_config, and the defaults.
//!
//! Command line before configuration file before default, as in ssh(1). Knows no sockets and no russh.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::secret::{NoSecrets, OnTheWay, Secrets};
use crate::ssh_config::{
    self, AddressFamily, ConfigSource, Expand, HostConfig, HostKeyPolicy, Proxy, Query, ThisMachine, Tokens,
    World, own_user,
};
use crate::target::Target;

/// What the caller sets, as in the options of ssh(1).
#[derive(Clone)]
pub struct SshSettings {
    /// Which configuration files count (`-F`).
    pub config: ConfigSource,
    /// User (`-l`); a user in the target comes first.
    pub user: Option<String>,
    /// Port (`-p`); a port in the target comes first.
    pub port: Option<u16>,
    /// Key files (`-i`), before those of the configuration.
    pub identities: Vec<PathBuf>,
    /// Overrides `StrictHostKeyChecking`.
    pub host_key_policy: Option<HostKeyPolicy>,
    /// Overrides `UserKnownHostsFile`; the first one is written to.
    pub user_known_hosts: Option<Vec<PathBuf>>,
    /// Overrides `GlobalKnownHostsFile`.
    pub global_known_hosts: Option<Vec<PathBuf>>,
    /// For address lookup, TCP and key exchange together. Overrides `ConnectTimeout`; without either it is 15 seconds.
    pub connect_timeout: Option<Duration>,
    /// For logging in and opening the channel, each; at least ten minutes for logging in where a person may be asked.
    pub login_timeout: Duration,
    /// The agent's socket, as in `SSH_AUTH_SOCK`.
    pub agent_socket: Option<PathBuf>,
    /// The home directory, where `~/.ssh` is looked for.
    pub home: Option<PathBuf>,
    /// The name of the user of this machine, who logs in where no other is named.
    pub local_user: Option<String>,
    /// Overrides `ProxyJump` and `ProxyCommand` (`-J`).
    pub proxy: Option<Proxy>,
    /// The ssh program, asked (`ssh -G`) for what our parser does not understand in a configuration; `None`: never.
    pub ssh_program: Option<PathBuf>,
    /// Who knows passwords and passphrases.
    pub secrets: Arc<dyn Secrets>,
}

impl Default for SshSettings {
    /// No configuration files, no agent, no home directory and no secrets.
    fn default() -> Self {
        Self {
            config: ConfigSource::None,
            user: None,
            port: None,
            identities: Vec::new(),
            host_key_policy: None,
            user_known_hosts: None,
            global_known_hosts: None,
            connect_timeout: None,
            login_timeout: Duration::from_secs(30),
            agent_socket: None,
            home: None,
            local_user: None,
            proxy: None,
            ssh_program: None,
            secrets: Arc::new(NoSecrets),
        }
    }
}

impl SshSettings {
    /// What ssh(1) would start from: the user's and the system's configuration, the user's name by passwd(5), and
    /// `SSH_AUTH_SOCK`. The home directory is `HOME`, and the ssh program the one in `PATH`.
    #[must_use]
    pub fn from_env() -> Self {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let name = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            config: ConfigSource::Default,
            agent_socket: path("SSH_AUTH_SOCK"),
            home: path("HOME"),
            local_user: own_user().map(|user| user.name).or_else(|| name("USER")).or_else(|| name("LOGNAME")),
            ssh_program: Some("ssh".into()),
            ..Self::default()
        }
    }
}

/// What is between this machine and a host.
#[derive(Clone)]
pub enum Route {
    /// A TCP connection.
    Direct,
    /// A TCP connection from another host, at which we log in first (`ProxyJump`).
    Through(Arc<SshOptions>),
    /// The standard streams of a shell command (`ProxyCommand`), tokens expanded.
    Program(String),
}

/// A key file that may be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The file.
    pub file: PathBuf,
    /// Somebody named it, so that its absence is worth telling.
    pub explicit: bool,
}

/// How one host is reached, all decided.
#[derive(Clone)]
pub struct SshOptions {
    /// The host as the user named it; errors carry it.
    pub name: String,
    /// What is looked up and connected to, and the name in known_hosts.
    pub address: String,
    /// The port.
    pub port: u16,
    /// Who logs in.
    pub user: String,
    /// Key files, in the order they are tried.
    pub identities: Vec<Identity>,
    /// Of the agent's keys only those that are also in `identities`.
    pub identities_only: bool,
    /// known_hosts files of the user; the first one is written to.
    pub user_known_hosts: Vec<PathBuf>,
    /// known_hosts files of the system.
    pub global_known_hosts: Vec<PathBuf>,
    /// What to do about unknown host keys.
    pub host_key_policy: HostKeyPolicy,
    /// `HostKeyAlias`: the name in known_hosts and in host certificates, in place of `address` and port.
    pub host_key_alias: Option<String>,
    /// `HashKnownHosts`: names are added to known_hosts hashed.
    pub hash_known_hosts: bool,
    /// `CheckHostIP`: the address must not be known by another key. Nothing is added for addresses.
    pub check_host_ip: bool,
    /// `RevokedHostKeys`: files of keys, or key revocation lists, that are never accepted.
    pub revoked_host_keys: Vec<PathBuf>,
    /// `HostKeyAlgorithms` as written; so all lists of algorithms.
    pub host_key_algorithms: Option<String>,
    /// `CASignatureAlgorithms`.
    pub ca_signature_algorithms: Option<String>,
    /// `KexAlgorithms`.
    pub kex_algorithms: Option<String>,
    /// `Ciphers`.
    pub ciphers: Option<String>,
    /// `MACs`.
    pub macs: Option<String>,
    /// `RekeyLimit`: bytes, zero for the cipher's own limit, and the longest time.
    pub rekey_limit: Option<(u64, Option<Duration>)>,
    /// `RequiredRSASize`: the shortest RSA key that is used or accepted, in bits.
    pub required_rsa_size: u32,
    /// `CertificateFile`, in order. When empty, the certificates that lie beside the identities count.
    pub certificate_files: Vec<PathBuf>,
    /// `PreferredAuthentications`, best first; `None` for the usual order.
    pub preferred_authentications: Option<Vec<String>>,
    /// `PubkeyAuthentication`.
    pub pubkey_authentication: bool,
    /// `PubkeyAcceptedAlgorithms`.
    pub pubkey_accepted_algorithms: Option<String>,
    /// `PasswordAuthentication`; also false with `BatchMode`.
    pub password_authentication: bool,
    /// `KbdInteractiveAuthentication`; also false with `BatchMode`.
    pub kbd_interactive_authentication: bool,
    /// `NumberOfPasswordPrompts`: how often one thing is asked for.
    pub password_prompts: u32,
    /// `AddressFamily`.
    pub address_family: AddressFamily,
    /// `BindAddress`: the address or name of this machine to connect from.
    pub bind_address: Option<String>,
    /// `BindInterface`: the interface whose address is connected from.
    pub bind_interface: Option<String>,
    /// `ConnectionAttempts`, at least 1.
    pub connection_attempts: u32,
    /// See [`SshSettings::connect_timeout`].
    pub connect_timeout: Duration,
    /// `ServerAliveInterval`; zero for never.
    pub server_alive_interval: Duration,
    /// `ServerAliveCountMax`.
    pub server_alive_count_max: u32,
    /// What is in between: `ProxyJump` or `ProxyCommand`.
    pub route: Route,
    /// See [`SshSettings::login_timeout`].
    pub login_timeout: Duration,
    /// The agent's socket: `IdentityAgent`, or [`SshSettings::agent_socket`].
    pub agent_socket: Option<PathBuf>,
    /// See [`SshSettings::secrets`].
    pub secrets: Arc<dyn Secrets>,
    /// What a user should know.
    pub warnings: Vec<String>,
}

/// As many hosts are passed at most, those that come from the configuration of others included.
const MAX_HOPS: usize = 16;
/// Where neither the caller nor the configuration says so.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// What `ConnectTimeout none` comes to: longer than a kernel tries to open a TCP connection.
const NO_CONNECT_TIMEOUT: Duration = Duration::from_secs(180);
/// A silent peer is asked whether it lives; after three unanswered questions the connection is given up. Together that
/// is longer than a lease, so that it is the session that decides when a host is lost.
const SERVER_ALIVE: (Duration, u32) = (Duration::from_secs(30), 3);
/// The least that ssh(1) accepts by itself.
const REQUIRED_RSA_SIZE: u32 = 1024;

/// Tried where nobody names a key file, best first.
const DEFAULT_IDENTITIES: &[&str] = &["id_ed25519", "id_ecdsa", "id_ed25519_sk", "id_ecdsa_sk", "id_rsa"];

impl SshOptions {
    /// Decides how `target` is reached. Reads the configuration files.
    ///
    /// Blocks: a configuration may run commands (`Match exec`) and look names up (`CanonicalizeHostname`).
    ///
    /// # Errors
    /// [`Error::Config`] for a configuration that cannot be read or obeyed, with file and line.
    pub fn resolve(target: &Target, settings: &SshSettings) -> Result<Self, Error> {
        let fail = |reason: String| Error::Config { host: target.to_string(), reason };
        Self::resolve_behind(target, settings, 0).map_err(fail)
    }

    /// `passed` is how many hosts there are already between us and where this one leads.
    fn resolve_behind(target: &Target, settings: &SshSettings, passed: usize) -> Result<Self, String> {
        let world = ThisMachine;
        let query = Query {
            host: target.host(),
            user: target.user().or(settings.user.as_deref()),
            port: target.port().or(settings.port),
            proxy: settings.proxy.clone(),
            home: settings.home.as_deref(),
            local_user: settings.local_user.as_deref(),
        };
        let ssh = settings.ssh_program.as_deref();
        let config = ssh_config::evaluate(&settings.config, &query, &world, ssh)?;
        let (mut options, proxy) = Self::combine(target, settings, config, &world)?;
        if let Proxy::Jump(hops) = proxy {
            options.route = options.through(&hops, settings, passed)?;
        }
        Ok(options)
    }

    /// The way through `hops`, of which the last connects to this host, and the one before to it.
    fn through(&self, hops: &[Target], settings: &SshSettings, passed: usize) -> Result<Route, String> {
        let Some((last, before)) = hops.split_last() else { return Ok(Route::Direct) };
        if passed + hops.len() > MAX_HOPS {
            return Err(format!(
                "{}: more than {MAX_HOPS} hosts are passed on the way; does one lead to itself?",
                self.name
            ));
        }
        // As with ssh(1), user, port and key files of the command line are those of the target alone, and the
        // configuration says them for each host that is passed. What was said of trust and time goes for all.
        let settings = SshSettings {
            user: None,
            port: None,
            identities: Vec::new(),
            proxy: (!before.is_empty()).then(|| Proxy::Jump(before.to_vec())),
            secrets: Arc::new(OnTheWay(Arc::clone(&settings.secrets))),
            ..settings.clone()
        };
        let hop = Self::resolve_behind(last, &settings, passed + 1)
            // Whose configuration is wrong is said once, not for all that lie before it.
            .map_err(
                |reason| if passed == 0 { format!("{last}, passed on the way: {reason}") } else { reason },
            )?;
        if (&hop.address, hop.port, &hop.user) == (&self.address, self.port, &self.user) {
            return Err(format!("{last} is to be reached through itself (ProxyJump)"));
        }
        Ok(Route::Through(Arc::new(hop)))
    }

    fn combine(
        target: &Target,
        settings: &SshSettings,
        config: HostConfig,
        world: &dyn World,
    ) -> Result<(Self, Proxy), String> {
        let address = config.host_name.unwrap_or_else(|| target.host().to_owned());
        let port = config.port.unwrap_or(22);
        let user = config
            .user
            .or_else(|| settings.local_user.clone())
            .ok_or("nobody says as which user to log in; write user@host")?;
        let batch_mode = config.batch_mode.unwrap_or(false);
        let home = settings.home.as_deref();
        let tokens = Tokens {
            host: &address,
            original: target.host(),
            alias: config.host_key_alias.as_deref().unwrap_or(target.host()),
            port,
            user: Some(&user),
            local_user: settings.local_user.as_deref(),
            home,
            jump: match &config.proxy {
                Some(Proxy::Jump(hops)) => hops.last().map(Target::host),
                _ => None,
            },
            world,
        };
        let in_place = |name: &str, reason: String| match config.places.get(name) {
            Some(place) => format!("{place}: {reason}"),
            None => reason,
        };
        let expand = |name: &str, text: &str| {
            tokens.path(text).map_err(|trouble| in_place(name, format!("{text:?}: {}", trouble.reason())))
        };
        let expand_all = |name: &str, texts: &[String]| {
            texts.iter().map(|text| expand(name, text)).collect::<Result<Vec<_>, _>>()
        };

        let named = |text: &&String| !text.eq_ignore_ascii_case("none");
        let agent_socket = match config.identity_agent.as_deref() {
            None | Some("SSH_AUTH_SOCK") => settings.agent_socket.clone(),
            Some(none) if none.eq_ignore_ascii_case("none") => None,
            Some(variable) if variable.starts_with('$') && !variable.starts_with("${") => {
                std::env::var_os(&variable[1..]).filter(|value| !value.is_empty()).map(PathBuf::from)
            }
            Some(path) => Some(expand("identityagent", path)?),
        };
        let mut certificate_files = Vec::new();
        for text in config.certificate_files.iter().filter(named) {
            certificate_files.push(expand("certificatefile", text)?);
        }
        let mut identities: Vec<Identity> =
            settings.identities.iter().map(|file| Identity { file: file.clone(), explicit: true }).collect();
        for text in config.identity_files.iter().filter(named) {
            identities.push(Identity { file: expand("identityfile", text)?, explicit: true });
        }
        if identities.is_empty() && config.identity_files.is_empty() {
            let defaults = home
                .into_iter()
                .flat_map(|home| DEFAULT_IDENTITIES.iter().map(move |n| home.join(".ssh").join(n)));
            identities.extend(defaults.map(|file| Identity { file, explicit: false }));
        }

        let user_known_hosts = match (&settings.user_known_hosts, &config.user_known_hosts) {
            (Some(files), _) => files.clone(),
            (None, Some(files)) => expand_all("userknownhostsfile", files)?,
            (None, None) => home
                .map(|home| ["known_hosts", "known_hosts2"].map(|name| home.join(".ssh").join(name)).to_vec())
                .unwrap_or_default(),
        };
        let global_known_hosts = match (&settings.global_known_hosts, &config.global_known_hosts) {
            (Some(files), _) => files.clone(),
            // These take no tokens.
            (None, Some(files)) => {
                let expanded: Result<_, _> = files.iter().map(|text| tokens.home_path(text)).collect();
                expanded.map_err(|trouble| in_place("globalknownhostsfile", trouble.reason()))?
            }
            (None, None) => {
                ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"].map(PathBuf::from).to_vec()
            }
        };
        let revoked_host_keys =
            expand_all("revokedhostkeys", config.revoked_host_keys.as_deref().unwrap_or_default())?;
        let proxy = config.proxy.clone().unwrap_or(Proxy::None);
        let route = match &proxy {
            Proxy::Command(command) => {
                let expanded = tokens.expand(command, Expand::Proxy);
                Route::Program(expanded.map_err(|trouble| {
                    in_place("proxy", format!("ProxyCommand {command:?}: {}", trouble.reason()))
                })?)
            }
            Proxy::None | Proxy::Jump(_) => Route::Direct,
        };
        let options = Self {
            name: target.host().to_owned(),
            port,
            user,
            identities,
            identities_only: config.identities_only.unwrap_or(false),
            user_known_hosts,
            global_known_hosts,
            host_key_policy: settings.host_key_policy.or(config.host_key_policy).unwrap_or_default(),
            host_key_alias: config.host_key_alias,
            hash_known_hosts: config.hash_known_hosts.unwrap_or(false),
            check_host_ip: config.check_host_ip.unwrap_or(false),
            revoked_host_keys,
            host_key_algorithms: config.host_key_algorithms,
            ca_signature_algorithms: config.ca_signature_algorithms,
            kex_algorithms: config.kex_algorithms,
            ciphers: config.ciphers,
            macs: config.macs,
            rekey_limit: config.rekey_limit,
            required_rsa_size: config.required_rsa_size.unwrap_or(REQUIRED_RSA_SIZE),
            certificate_files,
            preferred_authentications: config.preferred_authentications,
            pubkey_authentication: config.pubkey_authentication.unwrap_or(true),
            pubkey_accepted_algorithms: config.pubkey_accepted_algorithms,
            password_authentication: !batch_mode && config.password_authentication.unwrap_or(true),
            kbd_interactive_authentication: !batch_mode
                && config.kbd_interactive_authentication.unwrap_or(true),
            password_prompts: config.number_of_password_prompts.unwrap_or(3),
            address_family: config.address_family.unwrap_or_default(),
            bind_address: config.bind_address,
            bind_interface: config.bind_interface,
            connection_attempts: config.connection_attempts.unwrap_or(1),
            connect_timeout: settings.connect_timeout.unwrap_or(match config.connect_timeout {
                None => CONNECT_TIMEOUT,
                Some(limit) => limit.filter(|limit| !limit.is_zero()).unwrap_or(NO_CONNECT_TIMEOUT),
            }),
            server_alive_interval: config.server_alive_interval.unwrap_or(SERVER_ALIVE.0),
            server_alive_count_max: config.server_alive_count_max.unwrap_or(SERVER_ALIVE.1),
            route,
            login_timeout: settings.login_timeout,
            agent_socket,
            // With BatchMode nobody is asked for anything.
            secrets: if batch_mode { Arc::new(NoSecrets) } else { Arc::clone(&settings.secrets) },
            warnings: config.warnings,
            address,
        };
        Ok((options, proxy))
    }
}

#[cfg(test)]
#[path = "ssh_options_tests.rs"]
mod tests;
