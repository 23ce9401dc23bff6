//! The criteria of a `Match` line (ssh_config(5)).

use std::net::IpAddr;

use super::tokens::{Expand, Tokens};
use super::trouble::{Checked, Trouble};
use crate::pattern;

/// What a `Match` line is held against.
pub(super) struct Circumstances<'a> {
    /// The host as it is known so far: after `HostName`, or as it became canonical.
    pub(super) host: &'a str,
    /// The user to log in as, as far as that is known.
    pub(super) user: Option<&'a str>,
    /// `Tag`, or empty.
    pub(super) tag: &'a str,
    /// The last reading of the files, once host names are canonical.
    pub(super) last: bool,
    /// For `exec`.
    pub(super) tokens: Tokens<'a>,
}

/// Whether the block applies, and whether the line asks for a last reading.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Matched {
    pub(super) applies: bool,
    pub(super) wants_last: bool,
}

/// Criteria that have a value.
const VALUED: &[&str] = &[
    "host",
    "originalhost",
    "user",
    "localuser",
    "localnetwork",
    "version",
    "tagged",
    "command",
    "sessiontype",
    "exec",
];

/// Judges a line. Every criterion is checked; commands run only while all before them hold and the block `may_apply`.
///
/// # Errors
/// A criterion that is malformed, cannot be judged here, or whose command fails to run.
pub(super) fn judge(arguments: &[String], now: &Circumstances<'_>, may_apply: bool) -> Checked<Matched> {
    let mut matched = Matched { applies: may_apply, wants_last: false };
    let mut count = 0;
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let (negated, criterion) = match word.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, word),
        };
        if criterion.eq_ignore_ascii_case("all") {
            if count > 1 || words.next().is_some() {
                return Err("all stands alone, or behind canonical or final".into());
            }
            matched.applies &= !negated;
            return Ok(matched);
        }
        count += 1;
        let (name, value) = match criterion.split_once('=') {
            Some((name, value)) if VALUED.contains(&name.to_ascii_lowercase().as_str()) => {
                (name, Some(value))
            }
            _ => (criterion, None),
        };
        let name = name.to_ascii_lowercase();
        let holds = if matches!(name.as_str(), "canonical" | "final") {
            matched.wants_last |= name == "final" && !negated;
            now.last
        } else if VALUED.contains(&name.as_str()) {
            let value = value.or_else(|| words.next()).ok_or_else(|| format!("{name} needs a value"))?;
            if value.is_empty() && !matches!(name.as_str(), "tagged" | "command") {
                return Err(format!("{name} needs a value").into());
            }
            holds(&name, value, now, matched.applies)?
        } else {
            return Err(Trouble::CannotTell(format!("the criterion {criterion:?}")));
        };
        matched.applies &= holds != negated;
    }
    if count == 0 {
        return Err("it needs a criterion".into());
    }
    Ok(matched)
}

fn holds(name: &str, value: &str, now: &Circumstances<'_>, so_far: bool) -> Checked<bool> {
    let listed = |text: &str| pattern::list_matches(value.split(','), text);
    let host = |name: &str| {
        let patterns = value.to_lowercase();
        pattern::list_matches(patterns.split(','), &name.to_lowercase())
    };
    Ok(match name {
        "host" => host(now.host),
        "originalhost" => host(now.tokens.original),
        "user" => listed(now.user.ok_or("nobody says as which user to log in")?),
        "localuser" => listed(now.tokens.local_user.ok_or("this user has no name")?),
        "tagged" if now.tag.is_empty() => value.is_empty(),
        "tagged" => listed(now.tag),
        // A program runs on the host, and a runner is one.
        "sessiontype" => listed("exec"),
        "localnetwork" => {
            let networks = value.split(',').map(Network::parse).collect::<Result<Vec<_>, _>>()?;
            let addresses = now.tokens.world.addresses();
            let addresses = addresses.map_err(|error| format!("localnetwork: no addresses: {error}"))?;
            addresses.iter().any(|address| networks.iter().any(|network| network.contains(*address)))
        }
        "exec" => {
            let command = now.tokens.expand(value, Expand::Command)?;
            if !so_far {
                return Ok(false);
            }
            let status = now.tokens.world.succeeds(&command);
            status.map_err(|error| format!("exec {command:?}: {error}"))?
        }
        "command" => return Err("command cannot be judged: it is not one command that runs there".into()),
        other => return Err(Trouble::CannotTell(format!("the criterion {other}"))),
    })
}

/// An address, or a network as address and length of prefix.
#[derive(Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    length: u32,
}

fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(four) => (u32::from(four).into(), 32),
        IpAddr::V6(six) => (six.into(), 128),
    }
}

impl Network {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("localnetwork {text:?} is no network such as 10.0.0.0/8: {why}");
        let (address, length) = text.split_once('/').map_or((text, None), |(a, length)| (a, Some(length)));
        let address: IpAddr = address.parse().map_err(|_| wrong("it has no address"))?;
        let (value, most) = bits(address);
        let length = match length {
            None => most,
            Some(length) => length.parse().ok().filter(|n| *n <= most).ok_or_else(|| wrong("the length"))?,
        };
        if length < most && value.trailing_zeros() < most - length {
            return Err(wrong("bits behind the prefix are set"));
        }
        Ok(Self { address, length })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let (mine, most) = bits(self.address);
        let (other, others) = bits(address);
        let shift = most - self.length;
        most == others && (shift == 128 || mine >> shift == other >> shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_the_addresses_of_their_family() {
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.9.8.7", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ] {
            let network = Network::parse(network).unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), expected, "{network:?} {address}");
        }
        for wrong in ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.*", "::1/127", "x/8", "!10.0.0.0/8"] {
            assert!(Network::parse(wrong).is_err(), "{wrong}");
        }
    }
}
