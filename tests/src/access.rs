//! How a client gets into a test host: address, user, and the files a client reads. Every kind of host hands out the
//! same, so that one suite runs over all. It knows no transport.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::keys::KeyPair;

/// What a client needs to log in.
#[derive(Clone, Debug)]
pub struct Access {
    /// The address: 127.0.0.1, unless the host is one of a lab.
    pub address: Ipv4Addr,
    /// The port there.
    pub port: u16,
    /// The user to log in as.
    pub user: String,
    /// The user's private key file, unencrypted; its public key is beside it with `.pub`.
    pub identity: PathBuf,
    /// A `known_hosts` file with the host's key for this port, and nothing else.
    pub known_hosts: PathBuf,
    host_key: KeyPair,
}

impl Access {
    /// Writes the files into `dir`.
    pub(crate) fn write(
        dir: &Path,
        (address, port): (Ipv4Addr, u16),
        user: &str,
        key: &KeyPair,
        host_key: &KeyPair,
    ) -> Result<Self> {
        let identity = key.write(dir, "identity")?;
        let known_hosts = dir.join("known_hosts");
        let access =
            Self { address, port, user: user.to_owned(), identity, known_hosts, host_key: host_key.clone() };
        access.write_known_hosts()?;
        Ok(access)
    }

    fn write_known_hosts(&self) -> Result<()> {
        let line = self.host_key.known_hosts_line(&self.address.to_string(), self.port)?;
        Ok(fs::write(&self.known_hosts, line + "\n")?)
    }

    /// The address to connect to.
    pub fn addr(&self) -> SocketAddr {
        (self.address, self.port).into()
    }

    /// The key pair the host shows.
    pub fn host_key(&self) -> &KeyPair {
        &self.host_key
    }

    /// The same host by another port of 127.0.0.1, a proxy's. The `known_hosts` file is the new port's own, beside the
    /// old one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn via(&self, port: u16) -> Result<Self> {
        let known_hosts = self.known_hosts.with_extension(port.to_string());
        let access = Self { address: Ipv4Addr::LOCALHOST, port, known_hosts, ..self.clone() };
        access.write_known_hosts()?;
        Ok(access)
    }

    /// The same host, key and files for another user.
    pub fn for_user(&self, user: &str) -> Self {
        Self { user: user.to_owned(), ..self.clone() }
    }

    /// The lines of an `ssh_config(5)` that say all this for the host alias `alias`.
    pub fn ssh_config(&self, alias: &str) -> String {
        format!(
            "Host {alias}\n  HostName {}\n  Port {}\n  User {}\n  IdentityFile {}\n  IdentitiesOnly yes\n  \
             UserKnownHostsFile {}\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n",
            self.address,
            self.port,
            self.user,
            self.identity.display(),
            self.known_hosts.display(),
        )
    }

    /// OpenSSH's own client, about to log in here without asking anything and without reading the user's own
    /// configuration; add the remote command as its last argument.
    pub fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]);
        command.args([
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "GlobalKnownHostsFile=none",
            "-o",
            "LogLevel=ERROR",
        ]);
        command.arg("-o").arg(format!("UserKnownHostsFile={}", self.known_hosts.display()));
        command.arg("-i").arg(&self.identity).args(["-p", &self.port.to_string()]);
        command.arg(format!("{}@{}", self.user, self.address));
        command.env_remove("SSH_AUTH_SOCK");
        command
    }
}
