//! How the SSH server of this host takes a new configuration: by its service manager, its socket unit, or SIGHUP.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sortie_protocol::ErrorCode;

use super::daemon::{Effective, Sshd};
use crate::command::Context;
use crate::failure::Failure;
use crate::tool::{Ran, Tool};

/// How long a server that was told to may take to listen with its new configuration.
const LISTENS_WITHIN: Duration = Duration::from_secs(15);
/// How long one connection may take to show who answers.
const BANNER_WITHIN: Duration = Duration::from_secs(5);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// What has to be told of a new configuration.
pub(crate) struct Service<'a> {
    context: &'a Context,
    listener: Option<i32>,
    /// The running unit, under systemd.
    unit: Option<&'static str>,
    /// The socket unit that listens instead of sshd.
    socket: Option<&'static str>,
}

impl<'a> Service<'a> {
    pub(crate) fn find(context: &'a Context, sshd: &Sshd<'_>) -> Result<Self, Failure> {
        let mut service = Self { context, listener: sshd.listener, unit: None, socket: None };
        if Path::new("/run/systemd/system").is_dir() {
            let active = |unit: &str| -> Result<bool, Failure> {
                Ok(Tool::new("systemctl").args(["is-active", "--quiet", unit]).run(context)?.ok())
            };
            for (unit, socket) in [("ssh.service", "ssh.socket"), ("sshd.service", "sshd.socket")] {
                if service.unit.is_none() && active(unit)? {
                    service.unit = Some(unit);
                }
                if service.socket.is_none() && active(socket)? {
                    service.socket = Some(socket);
                }
            }
        }
        Ok(service)
    }

    /// Whether anybody listens who could be asked for a banner afterwards.
    pub(crate) fn listens(&self) -> bool {
        self.listener.is_some() || self.unit.is_some() || self.socket.is_some()
    }

    /// The file that makes the socket unit listen where the configuration says, with its text; `None` where there is none to tell, or
    /// nothing new.
    pub(crate) fn socket_file(&self, before: &Effective, after: &Effective) -> Option<(PathBuf, String)> {
        let socket = self.socket.filter(|_| before.all("listenaddress") != after.all("listenaddress"))?;
        // An empty value takes back what stood there before (systemd.socket(5)).
        let mut text = "# Written by sortie harden.\n[Socket]\nListenStream=\n".to_owned();
        for (host, port) in addresses(after) {
            let _ = match host {
                None => writeln!(text, "ListenStream={port}"),
                Some(host) => writeln!(text, "ListenStream={}", SocketAddr::new(host, port)),
            };
        }
        Some((format!("/etc/systemd/system/{socket}.d/sortie.conf").into(), text))
    }

    /// Has the new configuration take effect; what was done.
    ///
    /// # Errors
    /// `SERVICE_FAILED` with the manager's words, or when nobody listens afterwards.
    pub(crate) fn apply(&self, new: &Effective, socket_changed: bool) -> Result<&'static str, Failure> {
        let before = self.listener.map(sockets);
        let mut did = "reloaded";
        match (self.unit, self.socket) {
            (unit, Some(socket)) if socket_changed => {
                // A socket cannot be restarted under its running service. Sessions are not its main process, and live on.
                self.systemctl(&["daemon-reload"])?;
                if let Some(unit) = unit {
                    self.systemctl(&["stop", unit])?;
                }
                self.systemctl(&["restart", socket])?;
                did = "restarted";
            }
            // On SIGHUP sshd (10.0 of Debian 13) loses the socket that it was handed, and ends.
            (Some(unit), Some(_)) => {
                self.systemctl(&["restart", unit])?;
                did = "restarted";
            }
            (Some(unit), None) => self.systemctl(&["reload", unit])?,
            // Each connection, or the next one, starts an sshd that reads the files.
            (None, Some(_)) => did = "none",
            (None, None) => match self.listener {
                Some(pid) => {
                    crate::sys::process::signal(pid, nix::sys::signal::Signal::SIGHUP);
                }
                None => return Ok("none"),
            },
        }
        if let (Some(pid), Some(before)) = (self.listener.filter(|_| self.socket.is_none()), before) {
            // Until it has let go of its old sockets the one that answers is the old configuration.
            let until = Instant::now() + LISTENS_WITHIN;
            while sockets(pid) == before && Instant::now() < until {
                thread::sleep(LOOK);
            }
        }
        self.answers(new)?;
        Ok(did)
    }

    /// Waits for the banner of an SSH server (RFC 4253 §4.2) on every configured port.
    ///
    /// # Errors
    /// `SERVICE_FAILED` naming the port where none comes.
    pub(crate) fn answers(&self, configured: &Effective) -> Result<(), Failure> {
        let until = Instant::now() + LISTENS_WITHIN;
        let addresses = addresses(configured);
        for port in ports(configured) {
            let hosts: Vec<IpAddr> = addresses
                .iter()
                .filter(|(_, at)| *at == port)
                .flat_map(|(host, _)| match host {
                    Some(host) => vec![*host],
                    None => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
                })
                .collect();
            // As for sshd itself, one address that works is enough: the other family may not be there.
            while !hosts.iter().any(|host| has_banner(SocketAddr::new(*host, port))) {
                if Instant::now() > until {
                    let message =
                        format!("no SSH server answers on port {port} of this host{}", self.last_words());
                    return Err(Failure::new(ErrorCode::ServiceFailed, message));
                }
                thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// The last errors that the journal has of the unit, for messages: what systemd says of its end would hide why.
    fn last_words(&self) -> String {
        let Some(unit) = self.unit else { return String::new() };
        let args = ["-u", unit, "-p", "err", "-n", "4", "--no-pager", "-o", "cat"];
        match Tool::new("journalctl").args(args).run(self.context) {
            Ok(ran) if ran.ok() => format!("; its journal ends with: {}", ran.last_lines(4)),
            _ => String::new(),
        }
    }

    fn systemctl(&self, args: &[&str]) -> Result<(), Failure> {
        let ran: Ran = Tool::new("systemctl").args(args).critical(self.context, &mut |_, _| ())?;
        if ran.ok() {
            return Ok(());
        }
        let message =
            format!("systemctl {} failed: {}{}", args.join(" "), ran.last_lines(3), self.last_words());
        Err(Failure::new(ErrorCode::ServiceFailed, message))
    }

    /// A line of shell that has the old configuration take effect again, whatever became of the server meanwhile: for whoever is
    /// left to run it.
    pub(crate) fn rollback(&self, socket_changes: bool) -> String {
        match (self.unit, self.socket) {
            (unit, Some(socket)) if socket_changes => {
                let stop = unit.map_or_else(String::new, |unit| format!("systemctl stop {unit}; "));
                format!(
                    "systemctl daemon-reload; {stop}systemctl reset-failed {socket}; systemctl restart {socket}"
                )
            }
            (Some(unit), Some(_)) => format!("systemctl reset-failed {unit}; systemctl restart {unit}"),
            (Some(unit), None) => format!(
                "systemctl reset-failed {unit}; systemctl reload-or-restart {unit}; sleep 1; \
                 systemctl is-active --quiet {unit} || systemctl restart {unit}"
            ),
            (None, Some(_)) => ":".to_owned(),
            (None, None) => match self.listener {
                Some(pid) => format!("kill -HUP {pid} && sleep 1 && kill -0 {pid} || {}", self.start()),
                None => ":".to_owned(),
            },
        }
    }

    /// Starts a server that is gone, where no systemd does.
    fn start(&self) -> &'static str {
        for (script, line) in
            [("/etc/init.d/sshd", "/etc/init.d/sshd restart"), ("/etc/init.d/ssh", "/etc/init.d/ssh restart")]
        {
            if Path::new(script).exists() {
                return line;
            }
        }
        "\"$(command -v sshd)\""
    }
}

/// Where the server listens: the address, unless it is every one, and the port.
fn addresses(configured: &Effective) -> Vec<(Option<IpAddr>, u16)> {
    let mut found: Vec<(Option<IpAddr>, u16)> = Vec::new();
    for value in configured.all("listenaddress") {
        // 0.0.0.0:22, [::]:22, [fe80::1%eth0]:22 rdomain x
        let Some((host, port)) = value.split(' ').next().unwrap_or_default().rsplit_once(':') else {
            continue;
        };
        let host = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let Ok(port) = port.parse() else { continue };
        let place = (host.filter(|host| !host.is_unspecified()), port);
        if !found.contains(&place) {
            found.push(place);
        }
    }
    found
}

/// The ports on which the server listens, each once.
pub(crate) fn ports(configured: &Effective) -> Vec<u16> {
    let mut ports: Vec<u16> = addresses(configured).into_iter().map(|(_, port)| port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn has_banner(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, BANNER_WITHIN) else { return false };
    let mut banner = [0; 4];
    stream.set_read_timeout(Some(BANNER_WITHIN)).is_ok()
        && stream.read_exact(&mut banner).is_ok()
        && &banner == b"SSH-"
}

/// The sockets that a process holds, by inode.
fn sockets(pid: i32) -> Vec<PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut sockets: Vec<PathBuf> = open
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .collect();
    sockets.sort();
    sockets
}
