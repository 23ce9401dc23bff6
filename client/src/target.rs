//! Where a session goes: `[user@]host[:port]`, as a user types it.
//!
//! A target knows nothing of ssh_config(5), which may still map its host to another name, user or port.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// A host as named by the user, with the user and port given with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

/// Why a string is no target: what is wrong with it and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a host: {reason}; write [user@]host[:port], with an IPv6 address and port as [2001:db8::1]:22"
)]
pub struct InvalidTarget {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Target {
    /// Reads `[user@]host[:port]` or `ssh://[user@]host[:port]`.
    ///
    /// The user ends at the last `@`. An IPv6 address needs brackets only when a port follows it.
    ///
    /// # Errors
    /// [`InvalidTarget`], which says what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidTarget> {
        Self::parse_inner(text).map_err(|reason| InvalidTarget { text: text.to_owned(), reason })
    }

    fn parse_inner(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("ssh://").map_or(text, |url| url.strip_suffix('/').unwrap_or(url));
        let (user, rest) = match rest.rsplit_once('@') {
            Some(("", _)) => return Err("the user before the @ is empty".into()),
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        if let Some(user) = user {
            check_user(user)?;
        }
        let (host, port) = split_port(rest)?;
        check_host(host)?;
        Ok(Self {
            user: user.map(Into::into),
            host: host.to_owned(),
            port: port.map(parse_port).transpose()?,
        })
    }

    /// A host without user and port.
    ///
    /// # Errors
    /// [`InvalidTarget`] when `host` cannot be the name or address of a host.
    pub fn new(host: &str) -> Result<Self, InvalidTarget> {
        match check_host(host) {
            Ok(()) => Ok(Self { user: None, host: host.to_owned(), port: None }),
            Err(reason) => Err(InvalidTarget { text: host.to_owned(), reason }),
        }
    }

    /// The user, where one was given.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The name or address as given, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, where one was given.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        Self::parse(text)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

fn split_port(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (host, after) = bracketed.split_once(']').ok_or("the [ is never closed")?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(format!("{after:?} follows the ]")),
        };
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((host, port)) if !port.contains(':') => Ok((host, Some(port))),
        Some(_) if is_ipv6(text) => Ok((text, None)),
        Some(_) => Err("it has several colons but is no IPv6 address".into()),
    }
}

fn is_ipv6(text: &str) -> bool {
    text.split('%').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

/// 1 to 65535 in decimal.
pub(crate) fn parse_port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(format!("port {text:?} is not a number from 1 to 65535")),
    }
}

/// What no name of a host may hold; also keeps it from being taken for an option.
pub(crate) fn check_host(host: &str) -> Result<(), String> {
    if host.is_empty() {
        return Err("the host is empty".into());
    }
    if host.starts_with('-') {
        return Err("a host cannot begin with -".into());
    }
    match host
        .chars()
        .find(|c| c.is_whitespace() || c.is_control() || "/\\\"'`$,;|&<>(){}[]*?!@#".contains(*c))
    {
        Some(bad) => Err(format!("a host cannot contain {bad:?}")),
        None if host.contains(':') && !is_ipv6(host) => Err(format!("{host:?} is no IPv6 address")),
        None => Ok(()),
    }
}

pub(crate) fn check_user(user: &str) -> Result<(), String> {
    if user.is_empty() || user.starts_with('-') {
        return Err("a user cannot be empty or begin with -".into());
    }
    match user.chars().find(|c| c.is_whitespace() || c.is_control()) {
        Some(bad) => Err(format!("a user cannot contain {bad:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (Option<String>, String, Option<u16>) {
        let t = Target::parse(text).unwrap();
        (t.user, t.host, t.port)
    }

    #[test]
    fn user_host_and_port_are_taken_apart() {
        assert_eq!(parts("web1"), (None, "web1".into(), None));
        assert_eq!(parts("deploy@web1:2222"), (Some("deploy".into()), "web1".into(), Some(2222)));
        assert_eq!(parts("a@corp.example@web1"), (Some("a@corp.example".into()), "web1".into(), None));
        assert_eq!(parts("ssh://deploy@web1:2222/"), (Some("deploy".into()), "web1".into(), Some(2222)));
    }

    #[test]
    fn ipv6_needs_brackets_only_with_a_port() {
        assert_eq!(parts("::1"), (None, "::1".into(), None));
        assert_eq!(parts("[::1]"), (None, "::1".into(), None));
        assert_eq!(parts("root@[fe80::1%eth0]:22"), (Some("root".into()), "fe80::1%eth0".into(), Some(22)));
        assert_eq!(Target::parse("root@[::1]:22").unwrap().to_string(), "root@[::1]:22");
    }

    #[test]
    fn what_is_no_target_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("@web1", "user before the @ is empty"),
            ("-oProxyCommand=x", "begin with -"),
            ("-l@web1", "begin with -"),
            ("web1:", "port"),
            ("web1:0", "port"),
            ("web1:65536", "port"),
            ("web1:+22", "port"),
            ("web1:ssh", "port"),
            ("a:b:c", "several colons"),
            ("[::1", "never closed"),
            ("[::1]22", "follows the ]"),
            ("[web:1]", "no IPv6 address"),
            ("web 1", "' '"),
            ("web1/etc", "'/'"),
            ("web1\n", "'\\n'"),
            ("de ploy@web1", "user"),
        ] {
            let error = Target::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?} gave {error}");
            assert!(error.contains("[user@]host[:port]"));
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_reads_back_the_same(text in "([a-z@]{1,6}@)?([a-z0-9.-]{1,12}|\\[[0-9a-f:]{2,9}\\])(:[0-9]{1,6})?") {
            if let Ok(target) = Target::parse(&text) {
                proptest::prop_assert_eq!(Target::parse(&target.to_string()), Ok(target));
            }
        }
    }
}
