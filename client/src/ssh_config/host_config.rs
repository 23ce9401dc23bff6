//! What the configuration says about one host, keyword by keyword.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::place::Place;
use crate::target::Target;

/// How host keys without an entry in known_hosts are met. There is no "off".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostKeyPolicy {
    /// Refuse.
    #[default]
    Strict,
    /// Add to known_hosts and go on. A changed or revoked key is refused all the same.
    AcceptNew,
}

/// Which addresses are connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddressFamily {
    /// Both families.
    #[default]
    Any,
    /// IPv4 alone.
    Inet,
    /// IPv6 alone.
    Inet6,
}

/// What is in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proxy {
    /// Nothing: `ProxyJump none` or `ProxyCommand none`.
    None,
    /// `ProxyJump`: the hosts that are passed, the first one first; at least one.
    Jump(Vec<Target>),
    /// `ProxyCommand` as written, tokens not expanded.
    Command(String),
}

/// As many hops as anybody has; a longer chain is a mistake.
const MAX_JUMPS: usize = 16;

impl Proxy {
    /// The value of `ProxyJump`, and of ssh's `-J`: `[user@]host[:port],…`, or `ssh://…` in place of each, or `none`.
    ///
    /// # Errors
    /// Which of them is no host, or that there are more than 16.
    pub fn jump(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(Self::None);
        }
        let text = text.split('#').next().unwrap_or_default().trim_end();
        let hops: Result<Vec<_>, _> = text.split(',').map(Target::parse).collect();
        let hops = hops.map_err(|error| error.to_string())?;
        if hops.len() > MAX_JUMPS {
            return Err(format!("{} hosts are passed; at most {MAX_JUMPS} are", hops.len()));
        }
        Ok(Self::Jump(hops))
    }
}

/// What the configuration says about one host. `None` and empty mean: nothing. Paths are as written: `~`, tokens and
/// `${…}` not yet expanded. An empty list in `Some` stands for `none`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// The host's name to connect to, where it is not the one that was asked about: after `HostName` and
    /// `CanonicalizeHostname`, names in lower case.
    pub host_name: Option<String>,
    /// `User`.
    pub user: Option<String>,
    /// `Port`.
    pub port: Option<u16>,
    /// `AddressFamily`.
    pub address_family: Option<AddressFamily>,
    /// `BindAddress`.
    pub bind_address: Option<String>,
    /// `BindInterface`.
    pub bind_interface: Option<String>,
    /// `ConnectTimeout`; `Some(None)` for `none`.
    pub connect_timeout: Option<Option<Duration>>,
    /// `ConnectionAttempts`, at least 1.
    pub connection_attempts: Option<u32>,
    /// `ServerAliveInterval`; zero for never.
    pub server_alive_interval: Option<Duration>,
    /// `ServerAliveCountMax`.
    pub server_alive_count_max: Option<u32>,
    /// `ProxyJump` or `ProxyCommand`, whichever stands first.
    pub proxy: Option<Proxy>,
    /// `ProxyJump none` stands before any other proxy.
    pub(super) jump_ruled_out: Option<()>,
    /// `IdentityFile`, all of them in order. `none` stands for itself.
    pub identity_files: Vec<String>,
    /// `IdentitiesOnly`.
    pub identities_only: Option<bool>,
    /// `CertificateFile`, all of them in order. `none` stands for itself.
    pub certificate_files: Vec<String>,
    /// `IdentityAgent`: a path, `none`, `SSH_AUTH_SOCK` or `$NAME`.
    pub identity_agent: Option<String>,
    /// `PreferredAuthentications`, best first.
    pub preferred_authentications: Option<Vec<String>>,
    /// `PubkeyAuthentication`; `unbound` and `host-bound` are a yes.
    pub pubkey_authentication: Option<bool>,
    /// `PasswordAuthentication`.
    pub password_authentication: Option<bool>,
    /// `KbdInteractiveAuthentication`.
    pub kbd_interactive_authentication: Option<bool>,
    /// `NumberOfPasswordPrompts`.
    pub number_of_password_prompts: Option<u32>,
    /// `BatchMode`.
    pub batch_mode: Option<bool>,
    /// `StrictHostKeyChecking`.
    pub host_key_policy: Option<HostKeyPolicy>,
    /// `HostKeyAlias`, in lower case.
    pub host_key_alias: Option<String>,
    /// `HashKnownHosts`.
    pub hash_known_hosts: Option<bool>,
    /// `CheckHostIP`.
    pub check_host_ip: Option<bool>,
    /// `UserKnownHostsFile`.
    pub user_known_hosts: Option<Vec<String>>,
    /// `GlobalKnownHostsFile`.
    pub global_known_hosts: Option<Vec<String>>,
    /// `RevokedHostKeys`.
    pub revoked_host_keys: Option<Vec<String>>,
    /// `KexAlgorithms` as written, with a leading `+`, `-` or `^` where there is one; so all lists of algorithms.
    pub kex_algorithms: Option<String>,
    /// `Ciphers`.
    pub ciphers: Option<String>,
    /// `MACs`.
    pub macs: Option<String>,
    /// `HostKeyAlgorithms`.
    pub host_key_algorithms: Option<String>,
    /// `CASignatureAlgorithms`.
    pub ca_signature_algorithms: Option<String>,
    /// `PubkeyAcceptedAlgorithms`.
    pub pubkey_accepted_algorithms: Option<String>,
    /// `RequiredRSASize`, in bits.
    pub required_rsa_size: Option<u32>,
    /// `RekeyLimit`: bytes, zero for the cipher's own limit, and the longest time.
    pub rekey_limit: Option<(u64, Option<Duration>)>,
    /// `Tag`.
    pub tag: Option<String>,
    /// Where each value stands, by keyword in lower case; of a list its first line.
    pub places: BTreeMap<&'static str, Place>,
    /// What a user should know, such as a weaker setting than we are ready to use.
    pub warnings: Vec<String>,
}
