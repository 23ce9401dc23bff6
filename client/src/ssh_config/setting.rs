//! One line that sets a value. Every line is checked; it counts where its block applies and nothing was set before.

use std::time::Duration;

use super::host_config::{AddressFamily, HostConfig, HostKeyPolicy, Proxy};
use super::lexer::Line;
use super::value;
use crate::place::Place;
use crate::target::{check_user, parse_port};

/// Sets what `line` says, `keyword` being its keyword in lower case. Nothing is set unless `applies`.
///
/// Returns whether the keyword is one that is obeyed.
///
/// # Errors
/// What is wrong with the value.
pub(super) fn set(
    found: &mut HostConfig,
    keyword: &str,
    line: &Line,
    applies: bool,
    at: &Place,
) -> Result<bool, String> {
    let mut unused = HostConfig::default();
    let config = if applies { &mut *found } else { &mut unused };
    let set = match keyword {
        "hostname" => first("hostname", &mut config.host_name, one(line)?.to_owned()),
        "user" => first("user", &mut config.user, user(one(line)?)?),
        "port" => first("port", &mut config.port, parse_port(one(line)?)?),
        "addressfamily" => {
            let family = match one(line)?.to_ascii_lowercase().as_str() {
                "any" => AddressFamily::Any,
                "inet" => AddressFamily::Inet,
                "inet6" => AddressFamily::Inet6,
                other => return Err(format!("it is any, inet or inet6, not {other:?}")),
            };
            first("addressfamily", &mut config.address_family, family)
        }
        "bindaddress" => first("bindaddress", &mut config.bind_address, one(line)?.to_owned()),
        "bindinterface" => first("bindinterface", &mut config.bind_interface, one(line)?.to_owned()),
        "connecttimeout" => first("connecttimeout", &mut config.connect_timeout, value::time(one(line)?)?),
        "connectionattempts" => {
            let attempts = value::number(one(line)?)?;
            if attempts == 0 {
                return Err("at least one attempt is needed".into());
            }
            first("connectionattempts", &mut config.connection_attempts, attempts)
        }
        "serveraliveinterval" => {
            let interval = value::time(one(line)?)?.unwrap_or(Duration::ZERO);
            first("serveraliveinterval", &mut config.server_alive_interval, interval)
        }
        "serveralivecountmax" => {
            first("serveralivecountmax", &mut config.server_alive_count_max, value::number(one(line)?)?)
        }
        // Whichever of the two stands first counts, so that one slot does for both.
        "proxyjump" => match Proxy::jump(command(line)?)? {
            // As in ssh(1): it rules out a later ProxyJump, but not a later ProxyCommand.
            Proxy::None => first("proxyjump", &mut config.jump_ruled_out, ()),
            _ if config.jump_ruled_out.is_some() => None,
            jump => first("proxy", &mut config.proxy, jump),
        },
        "proxycommand" => {
            let command = command(line)?;
            let none = command.eq_ignore_ascii_case("none");
            first("proxy", &mut config.proxy, if none { Proxy::None } else { Proxy::Command(command.into()) })
        }
        "identityfile" => add("identityfile", &mut config.identity_files, one(line)?),
        "certificatefile" => add("certificatefile", &mut config.certificate_files, one(line)?),
        "identityagent" => {
            let agent = one(line)?;
            if let Some(name) = agent.strip_prefix('$').filter(|name| !name.starts_with('{'))
                && !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            {
                return Err(format!("{agent:?} is no name of an environment variable"));
            }
            first("identityagent", &mut config.identity_agent, agent.to_owned())
        }
        "preferredauthentications" => {
            let methods = one(line)?.split(',').map(str::to_owned).collect();
            first("preferredauthentications", &mut config.preferred_authentications, methods)
        }
        "pubkeyauthentication" => {
            let value = one(line)?;
            let bound = ["unbound", "host-bound"].iter().any(|word| value.eq_ignore_ascii_case(word));
            let wanted = bound || value::yes_or_no(value)?;
            first("pubkeyauthentication", &mut config.pubkey_authentication, wanted)
        }
        "identitiesonly" => flag("identitiesonly", &mut config.identities_only, line)?,
        "passwordauthentication" => {
            flag("passwordauthentication", &mut config.password_authentication, line)?
        }
        "kbdinteractiveauthentication" => {
            flag("kbdinteractiveauthentication", &mut config.kbd_interactive_authentication, line)?
        }
        "batchmode" => flag("batchmode", &mut config.batch_mode, line)?,
        "checkhostip" => flag("checkhostip", &mut config.check_host_ip, line)?,
        "hashknownhosts" => flag("hashknownhosts", &mut config.hash_known_hosts, line)?,
        "numberofpasswordprompts" => first(
            "numberofpasswordprompts",
            &mut config.number_of_password_prompts,
            value::number(one(line)?)?,
        ),
        "stricthostkeychecking" => host_key_policy(config, line, at)?,
        "hostkeyalias" => first("hostkeyalias", &mut config.host_key_alias, one(line)?.to_ascii_lowercase()),
        "userknownhostsfile" => first("userknownhostsfile", &mut config.user_known_hosts, files(line)?),
        "globalknownhostsfile" => first("globalknownhostsfile", &mut config.global_known_hosts, files(line)?),
        "revokedhostkeys" => first("revokedhostkeys", &mut config.revoked_host_keys, files(line)?),
        "kexalgorithms" => list("kexalgorithms", &mut config.kex_algorithms, line)?,
        "ciphers" => list("ciphers", &mut config.ciphers, line)?,
        "macs" => list("macs", &mut config.macs, line)?,
        "hostkeyalgorithms" => list("hostkeyalgorithms", &mut config.host_key_algorithms, line)?,
        "casignaturealgorithms" => list("casignaturealgorithms", &mut config.ca_signature_algorithms, line)?,
        "pubkeyacceptedalgorithms" => {
            list("pubkeyacceptedalgorithms", &mut config.pubkey_accepted_algorithms, line)?
        }
        "requiredrsasize" => {
            first("requiredrsasize", &mut config.required_rsa_size, value::number(one(line)?)?)
        }
        "rekeylimit" => first("rekeylimit", &mut config.rekey_limit, rekey_limit(&line.arguments)?),
        "tag" => first("tag", &mut config.tag, one(line)?.to_owned()),
        _ => return Ok(false),
    };
    if let (Some(name), true) = (set, applies) {
        found.places.entry(name).or_insert_with(|| at.clone());
    }
    Ok(true)
}

/// The name of what was set; `None` where an earlier line had set it.
type Set = Option<&'static str>;

fn first<T>(name: &'static str, slot: &mut Option<T>, value: T) -> Set {
    let empty = slot.is_none();
    slot.get_or_insert(value);
    empty.then_some(name)
}

/// The files are read twice where a second reading is wanted, so what is there already is not added again.
fn add(name: &'static str, list: &mut Vec<String>, value: &str) -> Set {
    if !list.iter().any(|present| present == value) {
        list.push(value.to_owned());
    }
    Some(name)
}

fn flag(name: &'static str, slot: &mut Option<bool>, line: &Line) -> Result<Set, String> {
    Ok(first(name, slot, value::yes_or_no(one(line)?)?))
}

fn list(name: &'static str, slot: &mut Option<String>, line: &Line) -> Result<Set, String> {
    Ok(first(name, slot, value::algorithms(one(line)?)?.to_owned()))
}

fn one(line: &Line) -> Result<&str, String> {
    match &line.arguments[..] {
        [value] if !value.is_empty() => Ok(value),
        _ => Err("it takes one value".into()),
    }
}

/// The rest of the line as it stands: what follows is a shell's affair.
fn command(line: &Line) -> Result<&str, String> {
    match line.rest.trim_start_matches([' ', '\t', '=']) {
        "" => Err("it takes a value".into()),
        command => Ok(command),
    }
}

/// One or more files; empty for `none`, which stands alone.
fn files(line: &Line) -> Result<Vec<String>, String> {
    let none = |text: &String| text.eq_ignore_ascii_case("none");
    match &line.arguments[..] {
        [] => Err("it takes at least one file".into()),
        [only] if none(only) => Ok(Vec::new()),
        files if files.iter().any(none) => Err("none stands alone".into()),
        files if files.iter().any(String::is_empty) => Err("one of its files has no name".into()),
        files => Ok(files.to_vec()),
    }
}

fn user(value: &str) -> Result<String, String> {
    check_user(value)?;
    Ok(value.to_owned())
}

fn host_key_policy(config: &mut HostConfig, line: &Line, at: &Place) -> Result<Set, String> {
    let value = one(line)?.to_ascii_lowercase();
    let (policy, off) = match value.as_str() {
        // Nobody can be asked here, so "ask" is a no.
        "yes" | "true" | "ask" => (HostKeyPolicy::Strict, false),
        "accept-new" => (HostKeyPolicy::AcceptNew, false),
        "no" | "false" | "off" => (HostKeyPolicy::AcceptNew, true),
        other => return Err(format!("it cannot be {other:?}")),
    };
    let set = first("stricthostkeychecking", &mut config.host_key_policy, policy);
    if off && set.is_some() {
        config.warnings.push(format!(
            "{at}: StrictHostKeyChecking {value} is read as accept-new: unknown host keys are added, changed ones refused"
        ));
    }
    Ok(set)
}

fn rekey_limit(arguments: &[String]) -> Result<(u64, Option<Duration>), String> {
    let bytes = |text: &str| match text {
        "default" => Ok(0),
        text => match value::size(text)? {
            bytes @ 1..16 => Err(format!("{bytes} bytes are too few")),
            bytes => Ok(bytes),
        },
    };
    match arguments {
        [size] => Ok((bytes(size)?, None)),
        [size, time] => Ok((bytes(size)?, value::time(time)?.filter(|time| !time.is_zero()))),
        _ => Err("it takes a number of bytes and perhaps a time".into()),
    }
}
