//! Lists of algorithms as ssh_config(5) writes them: a whole list, or with `+`, `-` or `^` a change of the default.
//!
//! Names and patterns only; whether an algorithm can be used is the business of whoever uses it.

use crate::pattern;

/// Key types of servers that can be asked for, in OpenSSH's order; never with SHA-1.
pub(crate) const HOST_KEYS: &[&str] = &[
    "ssh-ed25519-cert-v01@openssh.com",
    "ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com",
    "rsa-sha2-512-cert-v01@openssh.com",
    "rsa-sha2-256-cert-v01@openssh.com",
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

/// Signatures of certificate authorities that count, as `CASignatureAlgorithms` has it by default.
pub(crate) const CA_SIGNATURES: &[&str] = &[
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

/// What ssh(1) knows besides and Sortie has no use for: hosts have no security keys, and SHA-1 and DSA prove nothing
/// any more. Naming them is no mistake, and takes nothing away from the rest of the list.
const UNUSED: &[&str] = &[
    "ssh-rsa",
    "ssh-dss",
    "ssh-rsa-cert-v01@openssh.com",
    "ssh-dss-cert-v01@openssh.com",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "webauthn-sk-ecdsa-sha2-nistp256@openssh.com",
    "sk-ssh-ed25519-cert-v01@openssh.com",
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "webauthn-sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
];

/// The names that `configured` leaves of `usable`, each once, in its order. `None` is the default, which is all of them.
///
/// # Errors
/// A name that matches nothing that ssh(1) knows, or a list that leaves nothing.
pub(crate) fn chosen(
    keyword: &str,
    configured: Option<&str>,
    usable: &'static [&'static str],
) -> Result<Vec<&'static str>, String> {
    let Some(text) = configured else { return Ok(usable.to_vec()) };
    let (change, list) = match text.as_bytes().first() {
        Some(b'+' | b'-' | b'^') => text.split_at(1),
        _ => ("", text),
    };
    let mut named = Vec::new();
    for item in list.split(',').map(str::trim) {
        let found: Vec<&'static str> =
            usable.iter().copied().filter(|name| pattern::matches(item, name)).collect();
        if found.is_empty() && !UNUSED.iter().any(|name| pattern::matches(item, name)) {
            return Err(format!("{keyword} names {item:?}, which is no algorithm of its kind"));
        }
        named.extend(found);
    }
    let mut chosen: Vec<&'static str> = match change {
        "+" => usable.iter().copied().chain(named).collect(),
        "^" => named.into_iter().chain(usable.iter().copied()).collect(),
        "-" => usable.iter().copied().filter(|name| !named.contains(name)).collect(),
        _ => named,
    };
    let mut seen = Vec::new();
    chosen.retain(|name| {
        let new = !seen.contains(name);
        seen.push(*name);
        new
    });
    if chosen.is_empty() {
        return Err(format!("{keyword} leaves no algorithm that Sortie uses; it uses {}", usable.join(", ")));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_keys(configured: &str) -> Result<Vec<&'static str>, String> {
        chosen("HostKeyAlgorithms", Some(configured), HOST_KEYS)
    }

    #[test]
    fn a_list_replaces_the_default_and_a_sign_changes_it() {
        assert_eq!(host_keys("rsa-sha2-256,ssh-ed25519").unwrap(), ["rsa-sha2-256", "ssh-ed25519"]);
        assert_eq!(host_keys("^rsa-sha2-256").unwrap()[..2], ["rsa-sha2-256", HOST_KEYS[0]]);
        assert_eq!(host_keys("+rsa-sha2-256").unwrap(), HOST_KEYS);
        assert_eq!(
            host_keys("-*-cert-v01@openssh.com,ecdsa*").unwrap(),
            ["ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256"]
        );
        assert_eq!(chosen("X", None, HOST_KEYS).unwrap(), HOST_KEYS);
    }

    #[test]
    fn names_may_be_patterns_and_come_once() {
        assert_eq!(host_keys("rsa-sha2-512,rsa-sha2-???").unwrap(), ["rsa-sha2-512", "rsa-sha2-256"]);
    }

    #[test]
    fn sha1_is_never_chosen_and_an_unknown_name_is_an_error() {
        assert_eq!(host_keys("+ssh-rsa").unwrap(), HOST_KEYS);
        assert!(host_keys("ssh-rsa").unwrap_err().contains("rsa-sha2-512"));
        assert!(host_keys("ssh-ed25519,ssh-ed448").unwrap_err().contains("ssh-ed448"));
        assert!(host_keys("").is_err());
    }
}
