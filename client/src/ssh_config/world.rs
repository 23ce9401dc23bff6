//! What a configuration may ask of this machine: variables, names, users, and commands of `Match exec`.
//!
//! Behind a trait, so that reading a configuration can be tested, or done without touching anything.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};

use super::host_config::AddressFamily;

/// This machine, as far as a configuration can see it.
pub trait World {
    /// An environment variable.
    fn variable(&self, name: &str) -> Option<OsString>;
    /// The name of this machine, as `gethostname` gives it.
    fn host_name(&self) -> Option<String>;
    /// The number of the user.
    fn user_id(&self) -> u32;
    /// The home directory of a user of this machine.
    fn home_of(&self, user: &str) -> Option<PathBuf>;
    /// Whether a shell command ends with status 0.
    ///
    /// # Errors
    /// It could not be started, was ended by a signal, or did not end in time.
    fn succeeds(&self, command: &str) -> io::Result<bool>;
    /// Whether a name has an address.
    fn resolves(&self, name: &str, family: AddressFamily) -> bool;
    /// The addresses of the interfaces that are up.
    ///
    /// # Errors
    /// They cannot be listed.
    fn addresses(&self) -> io::Result<Vec<IpAddr>>;
}

/// How long a command of `Match exec`, or `ssh -G`, may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Who runs this program, by passwd(5).
pub(crate) fn own_user() -> Option<User> {
    User::from_uid(Uid::current()).ok().flatten()
}

/// The interfaces that are up, each with one of its addresses.
fn up() -> io::Result<impl Iterator<Item = (String, IpAddr)>> {
    let up = nix::net::if_::InterfaceFlags::IFF_UP;
    let interfaces = nix::ifaddrs::getifaddrs()?.filter(move |interface| interface.flags.contains(up));
    Ok(interfaces.filter_map(|interface| {
        let address = interface.address?;
        let four = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let any = four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))?;
        Some((interface.interface_name, any))
    }))
}

/// The addresses of an interface that connections can come from: those of the link alone would need its number.
pub(crate) fn interface_addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    let of_link = |address: &IpAddr| matches!(address, IpAddr::V6(six) if six.is_unicast_link_local());
    let own = up()?.filter(|(interface, _)| interface == name).map(|(_, address)| address);
    Ok(own.filter(|address| !of_link(address)).collect())
}

/// Waits for a program, and ends it after [`COMMAND_LIMIT`]. It looks again and again: the standard library waits without
/// a limit only, and what could do better differs from system to system.
pub(super) fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if began.elapsed() > COMMAND_LIMIT {
            child.kill()?;
            child.wait()?;
            let limit = COMMAND_LIMIT.as_secs();
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {limit} s")));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The machine that this program runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThisMachine;

impl World for ThisMachine {
    fn variable(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn host_name(&self) -> Option<String> {
        nix::unistd::gethostname().ok()?.into_string().ok()
    }

    fn user_id(&self) -> u32 {
        Uid::current().as_raw()
    }

    fn home_of(&self, user: &str) -> Option<PathBuf> {
        Some(User::from_name(user).ok()??.dir)
    }

    fn succeeds(&self, command: &str) -> io::Result<bool> {
        let shell = self.variable("SHELL").filter(|shell| !shell.is_empty()).unwrap_or("/bin/sh".into());
        let mut child = Command::new(shell)
            .args(["-c", command])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        match wait(&mut child)?.code() {
            Some(code) => Ok(code == 0),
            None => Err(io::Error::other("a signal ended it")),
        }
    }

    fn resolves(&self, name: &str, family: AddressFamily) -> bool {
        let Ok(mut addresses) = (name, 22).to_socket_addrs() else { return false };
        addresses.any(|address| match family {
            AddressFamily::Any => true,
            AddressFamily::Inet => address.is_ipv4(),
            AddressFamily::Inet6 => address.is_ipv6(),
        })
    }

    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(up()?.map(|(_, address)| address).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_judged_by_its_status() {
        assert!(ThisMachine.succeeds("true").unwrap());
        assert!(!ThisMachine.succeeds("exit 3").unwrap());
        assert!(ThisMachine.succeeds("kill -9 $$").is_err());
    }

    #[test]
    fn this_machine_has_a_name_and_its_own_address() {
        assert!(ThisMachine.host_name().is_some_and(|name| !name.is_empty()));
        assert!(ThisMachine.addresses().unwrap().iter().any(IpAddr::is_loopback));
        assert!(ThisMachine.resolves("127.0.0.1", AddressFamily::Inet));
        assert!(!ThisMachine.resolves("127.0.0.1", AddressFamily::Inet6));
    }
}
