//! What `ssh -G` says, and the same words for what Sortie's parser found.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use sortie_client::Target;
use sortie_client::ssh_config::{AddressFamily, HostConfig, HostKeyPolicy, Proxy};
use sortie_client::transport::SshOptions;

/// The values of each keyword, in order.
pub(crate) type Answer = BTreeMap<String, Vec<String>>;

/// Asks ssh; the inner error is its own refusal.
pub(crate) fn ssh_g(config: &Path, target: &Target) -> Result<Result<Answer, String>> {
    let mut command = Command::new("ssh");
    command.arg("-G").arg("-F").arg(config);
    if let Some(user) = target.user() {
        command.args(["-l", user]);
    }
    let output = command.args(["--", target.host()]).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let text = String::from_utf8(output.stdout)?;
    let mut answer = Answer::new();
    for (keyword, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        answer.entry(keyword.to_owned()).or_default().push(value.to_owned());
    }
    Ok(Ok(answer))
}

/// What was found, in the words of `ssh -G`. Where nothing was found it is ssh's default.
pub(crate) fn effective(
    found: &HostConfig,
    options: &SshOptions,
    target: &Target,
    local_user: &str,
    defaults: &Answer,
) -> Answer {
    let mut told = Answer::new();
    let default = |keyword: &str| defaults.get(keyword).cloned().unwrap_or_default();
    let mut tell = |keyword: &str, value: Option<String>| {
        told.insert(keyword.into(), value.map_or_else(|| default(keyword), |value| vec![value]));
    };
    let yes_or_no = |flag: Option<bool>| flag.map(|flag| if flag { "yes" } else { "no" }.to_owned());
    let seconds = |time: Duration| time.as_secs().to_string();
    let text = |number: Option<u32>| number.map(|number| number.to_string());

    tell("hostname", Some(found.host_name.clone().unwrap_or_else(|| target.host().to_owned())));
    tell("user", Some(found.user.clone().unwrap_or_else(|| local_user.to_owned())));
    tell("port", found.port.map(|port| port.to_string()));
    let family = found.address_family.map(|family| match family {
        AddressFamily::Any => "any",
        AddressFamily::Inet => "inet",
        AddressFamily::Inet6 => "inet6",
    });
    tell("addressfamily", family.map(str::to_owned));
    tell("bindaddress", found.bind_address.clone());
    tell("bindinterface", found.bind_interface.clone());
    tell("connecttimeout", found.connect_timeout.map(|limit| limit.map_or("none".into(), seconds)));
    tell("connectionattempts", text(found.connection_attempts));
    // Debian's ssh has a default of its own where BatchMode is set.
    if found.batch_mode != Some(true) || found.server_alive_interval.is_some() {
        tell("serveraliveinterval", found.server_alive_interval.map(seconds));
    }
    tell("serveralivecountmax", text(found.server_alive_count_max));
    tell("identitiesonly", yes_or_no(found.identities_only));
    tell("preferredauthentications", found.preferred_authentications.as_ref().map(|list| list.join(",")));
    tell("passwordauthentication", yes_or_no(found.password_authentication));
    tell("kbdinteractiveauthentication", yes_or_no(found.kbd_interactive_authentication));
    tell("numberofpasswordprompts", text(found.number_of_password_prompts));
    tell("batchmode", yes_or_no(found.batch_mode));
    tell("hostkeyalias", found.host_key_alias.clone());
    tell("hashknownhosts", yes_or_no(found.hash_known_hosts));
    tell("requiredrsasize", text(found.required_rsa_size));
    tell(
        "rekeylimit",
        found.rekey_limit.map(|(bytes, time)| format!("{bytes} {}", time.map_or("0".into(), seconds))),
    );
    tell("proxyjump", None);
    tell("proxycommand", None);
    match &found.proxy {
        Some(Proxy::Jump(hops)) => tell("proxyjump", Some(jump(hops))),
        Some(Proxy::Command(command)) => tell("proxycommand", Some(command.clone())),
        _ => {}
    }
    for (keyword, list) in [
        ("ciphers", &found.ciphers),
        ("macs", &found.macs),
        ("kexalgorithms", &found.kex_algorithms),
        ("hostkeyalgorithms", &found.host_key_algorithms),
        ("casignaturealgorithms", &found.ca_signature_algorithms),
        ("pubkeyacceptedalgorithms", &found.pubkey_accepted_algorithms),
    ] {
        let of_ssh = default(keyword).concat();
        tell(keyword, list.as_ref().map(|written| assemble(written, &of_ssh)));
    }
    // ssh has words here for which there is one and the same answer: nobody can be asked, and there is no "off".
    let policy = match found.host_key_policy {
        None => None,
        Some(HostKeyPolicy::AcceptNew) if found.warnings.is_empty() => Some("accept-new"),
        Some(HostKeyPolicy::AcceptNew) => Some("false"),
        Some(HostKeyPolicy::Strict) if target.host() == "strict" => Some("true"),
        Some(HostKeyPolicy::Strict) => Some("ask"),
    };
    tell("stricthostkeychecking", policy.map(str::to_owned));
    let keys = found.pubkey_authentication.map(|wanted| match (wanted, target.host()) {
        (true, "batch") => "unbound",
        (true, _) => "true",
        (false, _) => "false",
    });
    tell("pubkeyauthentication", keys.map(str::to_owned));

    let several =
        |list: &[String], keyword: &str| if list.is_empty() { default(keyword) } else { list.to_vec() };
    told.insert("identityfile".into(), several(&found.identity_files, "identityfile"));
    told.insert("certificatefile".into(), several(&found.certificate_files, "certificatefile"));
    told.extend(expanded(found, options, defaults));
    told
}

/// Paths, which are compared as they are after `~`, tokens and variables were put in.
fn expanded(found: &HostConfig, options: &SshOptions, defaults: &Answer) -> Answer {
    let mut told = Answer::new();
    let mut tell = |keyword: &str, configured: bool, files: &[std::path::PathBuf]| {
        let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        let none_is_told = keyword.ends_with("knownhostsfile") && files.is_empty();
        let value = if configured && none_is_told {
            vec!["none".to_owned()]
        } else if configured {
            vec![files.join(" ")]
        } else {
            defaults.get(keyword).cloned().unwrap_or_default()
        };
        told.insert(keyword.into(), value.into_iter().filter(|value| !value.is_empty()).collect());
    };
    tell("userknownhostsfile", found.user_known_hosts.is_some(), &options.user_known_hosts);
    tell("globalknownhostsfile", found.global_known_hosts.is_some(), &options.global_known_hosts);
    tell("revokedhostkeys", found.revoked_host_keys.is_some(), &options.revoked_host_keys);
    let agent: Vec<_> = options.agent_socket.iter().cloned().collect();
    match found.identity_agent.as_deref() {
        Some("none") => assert!(agent.is_empty(), "an agent although there is to be none"),
        Some("SSH_AUTH_SOCK") => {}
        agent_of => tell("identityagent", agent_of.is_some(), &agent),
    }
    told
}

/// As `ssh -G` writes a chain.
fn jump(hops: &[Target]) -> String {
    hops.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A list of algorithms in full: `+`, `-` and `^` change ssh's default.
fn assemble(written: &str, default: &str) -> String {
    let (sign, list) = match written.as_bytes()[0] {
        sign @ (b'+' | b'-' | b'^') => (sign, &written[1..]),
        _ => return written.to_owned(),
    };
    let default: Vec<&str> = default.split(',').collect();
    let named: Vec<&str> = list.split(',').collect();
    let matches = |name: &str, pattern: &str| match pattern.split_once('*') {
        Some((before, after)) => name.starts_with(before) && name.ends_with(after),
        None => name == pattern,
    };
    let left = |names: &[&str], out: &[&str]| -> Vec<String> {
        let out = |name: &&&str| !out.iter().any(|pattern| matches(name, pattern));
        names.iter().filter(out).map(|name| (*name).to_owned()).collect()
    };
    let all: Vec<String> = match sign {
        b'+' => default.iter().map(|name| (*name).to_owned()).chain(left(&named, &default)).collect(),
        b'-' => left(&default, &named),
        _ => named.iter().map(|name| (*name).to_owned()).chain(left(&default, &named)).collect(),
    };
    all.join(",")
}
