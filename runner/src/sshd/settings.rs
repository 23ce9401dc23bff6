//! From what is asked for to settings of sshd_config(5): the grammar of each field, and the profile.

use sortie_protocol::command::sshd_harden::SshdHarden;

use super::daemon::{Effective, Sshd};
use super::edit::Wanted;
use crate::failure::Failure;

/// Longest value, in bytes.
const LONGEST: usize = 4096;

/// Longest time to wait for a confirmation, in seconds.
const LONGEST_CONFIRM: u64 = 3600;

/// Of these every line says something of its own, which one value cannot replace.
const NOT_SETTABLE: [&str; 6] = ["include", "match", "hostkey", "hostcertificate", "subsystem", "setenv"];

/// Old and new names of one setting. An sshd that shows both has two.
const SAME: [(&str, &str); 6] = [
    ("challengeresponseauthentication", "kbdinteractiveauthentication"),
    ("skeyauthentication", "kbdinteractiveauthentication"),
    ("pubkeyacceptedkeytypes", "pubkeyacceptedalgorithms"),
    ("hostbasedacceptedkeytypes", "hostbasedacceptedalgorithms"),
    ("dsaauthentication", "pubkeyauthentication"),
    ("keepalive", "tcpkeepalive"),
];

/// The settings of the dev-sec SSH baseline (DevSec Hardening Framework, ssh-baseline, controls sshd-01 to sshd-47) that one
/// value says. Of the lists an sshd gets what it has; all of them have in common with Sortie's own client what it prefers.
const BASELINE: [(&str, &str); 39] = [
    (
        "Ciphers",
        "chacha20-poly1305@openssh.com,aes256-gcm@openssh.com,aes128-gcm@openssh.com,aes256-ctr,aes192-ctr,aes128-ctr",
    ),
    (
        "KexAlgorithms",
        "mlkem768x25519-sha256,sntrup761x25519-sha512,sntrup761x25519-sha512@openssh.com,curve25519-sha256,\
         curve25519-sha256@libssh.org,diffie-hellman-group-exchange-sha256",
    ),
    (
        "MACs",
        "hmac-sha2-512-etm@openssh.com,hmac-sha2-256-etm@openssh.com,umac-128-etm@openssh.com,hmac-sha2-512,hmac-sha2-256",
    ),
    ("PermitRootLogin", "prohibit-password"),
    ("StrictModes", "yes"),
    ("SyslogFacility", "AUTH"),
    ("LogLevel", "VERBOSE"),
    ("UseLogin", "no"),
    ("PermitUserEnvironment", "no"),
    ("LoginGraceTime", "30s"),
    ("MaxAuthTries", "2"),
    ("MaxSessions", "10"),
    ("MaxStartups", "10:30:100"),
    ("PubkeyAuthentication", "yes"),
    ("IgnoreRhosts", "yes"),
    ("IgnoreUserKnownHosts", "yes"),
    ("HostbasedAuthentication", "no"),
    ("PasswordAuthentication", "no"),
    ("PermitEmptyPasswords", "no"),
    ("KbdInteractiveAuthentication", "no"),
    ("ChallengeResponseAuthentication", "no"),
    ("KerberosAuthentication", "no"),
    ("KerberosOrLocalPasswd", "no"),
    ("KerberosTicketCleanup", "yes"),
    ("GSSAPIAuthentication", "no"),
    ("GSSAPICleanupCredentials", "yes"),
    ("TCPKeepAlive", "no"),
    ("ClientAliveInterval", "300"),
    ("ClientAliveCountMax", "3"),
    ("PermitTunnel", "no"),
    ("AllowTcpForwarding", "no"),
    ("AllowAgentForwarding", "no"),
    ("GatewayPorts", "no"),
    ("X11Forwarding", "no"),
    ("X11UseLocalhost", "yes"),
    ("PrintMotd", "no"),
    ("PrintLastLog", "no"),
    ("Banner", "none"),
    ("DebianBanner", "no"),
];

/// Every check that needs no look at the host.
pub(crate) fn check(params: &SshdHarden) -> Result<(), Failure> {
    let bad = |field: &str, value: &str, why: &str| Err(Failure::params(format!("{field}: {value:?} {why}")));
    for user in &params.allow_users {
        if !is_user_pattern(user) {
            return bad("allow_users", user, "is neither user nor user@host, with * and ? as patterns");
        }
    }
    for (name, value) in &params.settings {
        let keyword = name.to_ascii_lowercase();
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return bad("settings", name, "is no keyword of sshd_config(5): letters and digits only");
        }
        if NOT_SETTABLE.contains(&&*keyword) {
            return bad(
                "settings",
                name,
                "cannot be set: a configuration has several lines of it, each of its own",
            );
        }
        if keyword == "port" {
            return bad("settings", name, "is set by the field port");
        }
        if value.trim().is_empty() || value.len() > LONGEST || value.chars().any(char::is_control) {
            return bad(
                "settings",
                name,
                "needs a value of one line, without control characters, of at most 4096 bytes",
            );
        }
        // Between keyword and arguments one = is allowed, so it would not be part of the value.
        if value.trim().starts_with('=') {
            return bad("settings", name, "has a value that begins with =");
        }
        if value.split(' ').any(|word| word.starts_with('#')) {
            return bad("settings", name, "has a value in which a comment begins");
        }
        let asked = match keyword.as_str() {
            "passwordauthentication" | "kbdinteractiveauthentication" | "challengeresponseauthentication" => {
                params.disable_password_auth
            }
            "permitrootlogin" => params.disable_root_login,
            _ => false,
        };
        if (asked && !value.trim().eq_ignore_ascii_case("no"))
            || (keyword == "allowusers" && !params.allow_users.is_empty())
            || params.settings.keys().any(|other| other != name && other.eq_ignore_ascii_case(name))
        {
            return bad("settings", name, "is asked for twice");
        }
    }
    if !matches!(params.r#match.as_str(), "" | "keep") {
        return bad("match", &params.r#match, "is not keep");
    }
    if !matches!(params.profile.as_str(), "" | "ssh-baseline") {
        return bad("profile", &params.profile, "is not known; there is ssh-baseline");
    }
    if params.confirm.is_some_and(|seconds| !(1..=LONGEST_CONFIRM).contains(&seconds)) {
        return Err(Failure::params("confirm: must be from 1 to 3600 seconds"));
    }
    Ok(())
}

/// AllowUsers of sshd_config(5), without what the shell or the file would read otherwise.
fn is_user_pattern(pattern: &str) -> bool {
    let (user, host) = pattern.split_once('@').unwrap_or((pattern, "*"));
    let allowed = |text: &str, more: &str| {
        !text.is_empty()
            && text.len() <= 255
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.as_bytes().contains(&b))
    };
    allowed(user, "_.*?+$-") && allowed(host, "_.*?:/-")
}

/// The settings that are asked for, the explicit ones before those of a profile, each once.
pub(crate) fn wanted(params: &SshdHarden, present: &Effective, sshd: &Sshd<'_>) -> Vec<Wanted> {
    let mut all: Vec<Wanted> = Vec::new();
    let mut add = |name: &str, value: String| {
        if !all.iter().any(|wanted| wanted.name.eq_ignore_ascii_case(name)) {
            all.push(Wanted { name: name.to_owned(), value, keywords: vec![name.to_ascii_lowercase()] });
        }
    };
    if params.disable_password_auth {
        add("PasswordAuthentication", "no".into());
        add("KbdInteractiveAuthentication", "no".into());
        if present.has("challengeresponseauthentication") {
            add("ChallengeResponseAuthentication", "no".into());
        }
    }
    if params.disable_root_login {
        add("PermitRootLogin", "no".into());
    }
    if !params.allow_users.is_empty() {
        add("AllowUsers", params.allow_users.join(" "));
    }
    if params.port != 0 {
        add("Port", params.port.to_string());
    }
    for (name, value) in &params.settings {
        add(name, value.trim().to_owned());
    }
    if params.profile.is_empty() {
        return all;
    }
    for (name, value) in BASELINE {
        // What this sshd does not show it does not have, or no longer.
        let keyword = name.to_ascii_lowercase();
        // The baseline takes `no` for root too, which is less and must not become more.
        let stricter = name == "PermitRootLogin" && present.one(&keyword) == "no";
        if present.has(&keyword) && !stricter {
            let kind = match name {
                "Ciphers" => "cipher",
                "KexAlgorithms" => "kex",
                "MACs" => "mac",
                _ => "",
            };
            add(
                name,
                if kind.is_empty() { value.into() } else { supported(value, kind, &keyword, present, sshd) },
            );
        }
    }
    all
}

/// Of a list of algorithms those that this OpenSSH has.
fn supported(list: &str, kind: &str, keyword: &str, present: &Effective, sshd: &Sshd<'_>) -> String {
    let in_force = || present.one(keyword).split(',').map(str::to_owned).collect();
    let known: Vec<String> = sshd.algorithms(kind).unwrap_or_else(in_force);
    let kept: Vec<&str> = list.split(',').filter(|name| known.iter().any(|known| known == name)).collect();
    kept.join(",")
}

/// Under which keywords a setting stands in files; first the one under which this sshd shows it. `None` if it does not.
pub(crate) fn keywords(name: &str, shown: &Effective) -> Option<Vec<String>> {
    let keyword = name.to_ascii_lowercase();
    let others = |of: &str| -> Vec<&str> {
        let pairs = SAME.iter().flat_map(|&(old, new)| [(old, new), (new, old)]);
        pairs.filter(|(one, _)| *one == of).map(|(_, other)| other).collect()
    };
    let main = if shown.has(&keyword) {
        keyword
    } else {
        others(&keyword).into_iter().find(|other| shown.has(other))?.to_owned()
    };
    let mut all = vec![main];
    all.extend(others(&all[0]).into_iter().filter(|other| !shown.has(other)).map(str::to_owned));
    Some(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn params(json: &str) -> SshdHarden {
        serde_json::from_str(json).unwrap()
    }

    fn refused(json: &str) -> String {
        check(&params(json)).unwrap_err().message.clone()
    }

    #[test]
    fn each_field_has_its_grammar() {
        for fine in [
            r#"{"allow_users":["deploy","www-data","a.b@10.0.0.*","x?@fe80::/10"]}"#,
            r#"{"settings":{"X11Forwarding":"no","IPQoS":"af21 cs1"}}"#,
            r#"{"disable_root_login":true,"settings":{"PermitRootLogin":"no"}}"#,
            r#"{"profile":"ssh-baseline","match":"keep","confirm":30,"port":65535}"#,
        ] {
            assert!(check(&params(fine)).is_ok(), "{fine}");
        }
        for (bad, says) in [
            (r#"{"allow_users":["-x"]}"#, "allow_users"),
            (r#"{"allow_users":["a b"]}"#, "allow_users"),
            (r#"{"allow_users":["a\nPermitRootLogin yes"]}"#, "allow_users"),
            (r#"{"allow_users":[""]}"#, "allow_users"),
            (r#"{"settings":{"Permit Root":"no"}}"#, "letters and digits"),
            (r#"{"settings":{"Banner":"x\nMatch all"}}"#, "one line"),
            (r#"{"settings":{"Banner":" "}}"#, "one line"),
            (r#"{"settings":{"Banner":"x #y"}}"#, "comment"),
            (r#"{"settings":{"Include":"/x"}}"#, "several lines"),
            (r#"{"settings":{"HostKey":"/x"}}"#, "several lines"),
            (r#"{"settings":{"port":"22"}}"#, "field port"),
            (r#"{"settings":{"Banner":"x","banner":"y"}}"#, "twice"),
            (r#"{"disable_root_login":true,"settings":{"permitrootlogin":"yes"}}"#, "twice"),
            (r#"{"match":"drop"}"#, "match"),
            (r#"{"profile":"cis"}"#, "ssh-baseline"),
            (r#"{"confirm":0}"#, "3600"),
        ] {
            let message = refused(bad);
            assert!(message.contains(says), "{bad}: {message}");
        }
        assert!(serde_json::from_str::<SshdHarden>(r#"{"port":70000}"#).is_err());
    }

    #[test]
    fn an_old_name_is_the_same_setting_only_where_sshd_shows_one() {
        let shows = Effective::parse;
        let new = shows("kbdinteractiveauthentication no\n");
        let both = ["kbdinteractiveauthentication", "challengeresponseauthentication", "skeyauthentication"];
        assert_eq!(keywords("KbdInteractiveAuthentication", &new).unwrap(), both);
        assert_eq!(keywords("ChallengeResponseAuthentication", &new).unwrap(), both);
        let old = shows("kbdinteractiveauthentication no\nchallengeresponseauthentication no\n");
        assert_eq!(
            keywords("ChallengeResponseAuthentication", &old).unwrap(),
            ["challengeresponseauthentication"]
        );
        assert_eq!(keywords("UseLogin", &new), None);
    }

    proptest! {
        #[test]
        fn what_passes_is_one_line_of_one_setting(name in "\\PC{0,12}", value in "(\\PC|\n|\t| #){0,20}", user in "\\PC{0,10}") {
            let params = SshdHarden {
                settings: [(name.clone(), value.clone())].into_iter().collect(),
                ..SshdHarden::default()
            };
            if check(&params).is_ok() {
                let said = super::super::config::directive(&format!("{name} {}", value.trim())).unwrap();
                prop_assert_eq!(said.keyword, name.to_ascii_lowercase());
                prop_assert!(!said.arguments.is_empty());
            }
            if is_user_pattern(&user) {
                let said = super::super::config::directive(&format!("AllowUsers {user}")).unwrap();
                prop_assert_eq!(said.arguments, [user]);
            }
        }
    }
}
