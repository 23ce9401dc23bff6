//! Key exchange methods, ciphers and MACs: ours, and what ssh_config(5) makes of them.

use russh::{cipher, kex, mac};

use crate::pattern;

/// Cheap and safe first. Both ends pay for a key exchange; a hybrid costs little more and is taken where it is all
/// that a server offers.
const KEX: &[kex::Name] = &[
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::MLKEM768X25519_SHA256,
    kex::DH_GEX_SHA256,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::DH_G14_SHA256,
];

/// Without these names among the key exchange methods the library leaves strict key exchange off (CVE-2023-48795).
const KEX_EXTENSIONS: &[kex::Name] =
    &[kex::EXTENSION_SUPPORT_AS_CLIENT, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT];

const MACS: &[mac::Name] = &[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM, mac::HMAC_SHA512, mac::HMAC_SHA256];

/// `KexAlgorithms`. Whatever it says, strict key exchange is asked for.
pub(super) fn kex_algorithms(configured: Option<&str>) -> Result<Vec<kex::Name>, String> {
    let all: Vec<kex::Name> = kex::ALL_KEX_ALGORITHMS
        .iter()
        .map(|name| **name)
        .filter(|name| *name != kex::NONE && !KEX_EXTENSIONS.contains(name))
        .collect();
    let mut chosen = chosen("KexAlgorithms", configured, KEX, &all)?;
    chosen.extend_from_slice(KEX_EXTENSIONS);
    Ok(chosen)
}

/// `Ciphers`; by default those that authenticate by themselves, the one that is fast on this machine first.
pub(super) fn ciphers(configured: Option<&str>) -> Result<Vec<cipher::Name>, String> {
    let aes_first =
        [cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305, cipher::AES_256_CTR];
    let chacha_first =
        [cipher::CHACHA20_POLY1305, cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::AES_256_CTR];
    let usable = |name: &cipher::Name| ![cipher::NONE, cipher::CLEAR].contains(name);
    let all: Vec<_> = cipher::ALL_CIPHERS.iter().map(|name| **name).filter(usable).collect();
    chosen("Ciphers", configured, if has_aes() { &aes_first } else { &chacha_first }, &all)
}

/// `MACs`, for ciphers that do not authenticate by themselves.
pub(super) fn macs(configured: Option<&str>) -> Result<Vec<mac::Name>, String> {
    let usable = |name: &mac::Name| *name != mac::NONE;
    let all: Vec<_> = mac::ALL_MAC_ALGORITHMS.iter().map(|name| **name).filter(usable).collect();
    chosen("MACs", configured, MACS, &all)
}

/// A list of ssh_config(5): whole, or with `+`, `-` or `^` a change of `default`. Names that only ssh(1) knows are left
/// out, which takes nothing away from the rest.
fn chosen<N: Copy + PartialEq + AsRef<str>>(
    keyword: &str,
    configured: Option<&str>,
    default: &[N],
    all: &[N],
) -> Result<Vec<N>, String> {
    let named = |list: &str| -> Vec<N> {
        let known = |wanted: &str| all.iter().find(|name| name.as_ref() == wanted).copied();
        list.split(',').filter_map(known).collect()
    };
    let default = || default.iter().copied();
    let list: Vec<N> = match configured.map(|text| (text, text.as_bytes().first())) {
        None => default().collect(),
        Some((text, Some(b'+'))) => default().chain(named(&text[1..])).collect(),
        Some((text, Some(b'^'))) => named(&text[1..]).into_iter().chain(default()).collect(),
        Some((text, Some(b'-'))) => {
            default().filter(|name| !pattern::list_matches(text[1..].split(','), name.as_ref())).collect()
        }
        Some((text, _)) => named(text),
    };
    let mut chosen: Vec<N> = Vec::new();
    for name in list {
        if !chosen.contains(&name) {
            chosen.push(name);
        }
    }
    if chosen.is_empty() {
        let known: Vec<&str> = all.iter().map(AsRef::as_ref).collect();
        return Err(format!("{keyword} leaves none that Sortie knows; it knows {}", known.join(", ")));
    }
    Ok(chosen)
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_key_exchange_is_asked_for_whatever_the_configuration_says() {
        for configured in [
            None,
            Some("curve25519-sha256"),
            Some("+ecdh-sha2-nistp256"),
            Some("-curve*"),
            Some("^diffie-hellman-group16-sha512"),
        ] {
            let kex = kex_algorithms(configured).unwrap();
            assert!(kex.contains(&kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT), "{configured:?}");
            assert!(kex.contains(&kex::EXTENSION_SUPPORT_AS_CLIENT), "{configured:?}");
        }
    }

    #[test]
    fn key_exchange_methods_follow_the_configuration() {
        let names = |configured| -> Vec<&'static str> {
            kex_algorithms(Some(configured))
                .unwrap()
                .iter()
                .map(|n: &kex::Name| match *n {
                    kex::CURVE25519 => "curve25519",
                    kex::DH_G16_SHA512 => "g16",
                    kex::ECDH_SHA2_NISTP256 => "p256",
                    _ => "other",
                })
                .collect()
        };
        assert_eq!(
            names("diffie-hellman-group16-sha512,no-such,curve25519-sha256")[..2],
            ["g16", "curve25519"]
        );
        assert_eq!(names("^diffie-hellman-group16-sha512")[..2], ["g16", "curve25519"]);
        assert!(names("+ecdh-sha2-nistp256").contains(&"p256"));
        assert!(!names("-curve25519*").contains(&"curve25519"));
        assert!(kex_algorithms(Some("sntrup761x25519-sha512")).unwrap_err().contains("curve25519-sha256"));
        assert!(kex_algorithms(Some("none")).is_err(), "no key exchange is no choice");
    }

    #[test]
    fn ciphers_and_macs_follow_the_configuration() {
        let names = |configured| -> Vec<String> {
            ciphers(Some(configured)).unwrap().iter().map(|name| name.as_ref().to_owned()).collect()
        };
        assert_eq!(names("aes256-ctr,3des-cbc,aes128-ctr"), ["aes256-ctr", "aes128-ctr"]);
        assert_eq!(names("^aes256-ctr")[0], "aes256-ctr");
        assert!(!names("-aes*").iter().any(|name| name.starts_with("aes")));
        assert!(
            !names("aes256-ctr,none").contains(&"none".to_owned()),
            "there is no connection without a cipher"
        );
        assert!(ciphers(Some("3des-cbc")).unwrap_err().contains("Ciphers leaves none"));
        let names = |configured| -> Vec<String> {
            macs(configured).unwrap().iter().map(|name| name.as_ref().to_owned()).collect()
        };
        assert_eq!(names(Some("hmac-sha2-256,umac-128@openssh.com")), ["hmac-sha2-256"]);
        assert!(!names(None).iter().any(|name| name.contains("sha1")), "nor with SHA-1 unless asked for");
        assert!(macs(Some("none")).is_err());
    }
}
