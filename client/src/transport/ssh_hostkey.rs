//! Whose key it is: the answers to russh's questions while it exchanges keys, and the algorithms that it offers.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russh::client::{self, ChannelOpenHandle, DisconnectReason, Msg, Session};
use russh::keys::ssh_key::{Algorithm, EcdsaCurve};
use russh::keys::{HashAlg, PublicKeyOrCertificate};
use russh::{Channel, Names, Preferred, cipher, kex};

use crate::error::{Error, HostKeyProblem, printable};
use crate::known_hosts::{self, HostKey, HostName, KnownHosts, Verdict};
use crate::pattern;
use crate::ssh_config::HostKeyPolicy;

/// What the library's callbacks learnt.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) refused: Option<Error>,
    pub(super) negotiated: String,
    pub(super) added: Option<String>,
    pub(super) disconnect: Option<String>,
    /// Algorithm and fingerprint of the key that was accepted.
    pub(super) accepted: Option<(String, String)>,
}

/// Answers the library's questions about one connection.
pub(super) struct Handler {
    pub(super) host: String,
    pub(super) name: HostName,
    pub(super) known: KnownHosts,
    pub(super) files: Vec<PathBuf>,
    pub(super) policy: HostKeyPolicy,
    /// The key of this connection; a new key exchange must show the same.
    pub(super) accepted: Option<HostKey>,
    pub(super) seen: Arc<Mutex<Seen>>,
}

impl Handler {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn judge(&mut self, key: &HostKey) -> Result<(), HostKeyProblem> {
        if let Some(accepted) = &self.accepted {
            let unchanged = accepted == key;
            return if unchanged {
                Ok(())
            } else {
                Err(HostKeyProblem::File {
                    file: "this connection".into(),
                    reason: "the host key changed in it".into(),
                })
            };
        }
        match self.known.check(&self.name, key) {
            Verdict::Known => Ok(()),
            Verdict::Changed { file, line } => Err(HostKeyProblem::Changed { file, line }),
            Verdict::Revoked { file, line } => Err(HostKeyProblem::Revoked { file, line }),
            Verdict::Unknown if self.policy == HostKeyPolicy::AcceptNew => self.add(key).await,
            Verdict::Unknown => Err(HostKeyProblem::Unknown { files: self.files.clone() }),
        }
    }

    async fn add(&self, key: &HostKey) -> Result<(), HostKeyProblem> {
        let Some(file) = self.files.first().cloned() else {
            // UserKnownHostsFile none: nothing is remembered, which is what was asked for.
            return Ok(());
        };
        let (name, key, path) = (self.name.clone(), key.clone(), file.clone());
        let entry = name.entry();
        // Waits for a lock that another process may hold.
        let added = tokio::task::spawn_blocking(move || known_hosts::append(&path, &name, &key)).await;
        match added {
            Ok(Ok(())) => {
                self.seen().added = Some(format!("the host key of {entry} was added to {}", file.display()));
                Ok(())
            }
            Ok(Err(error)) => {
                Err(HostKeyProblem::File { file, reason: format!("cannot be added to: {error}") })
            }
            Err(error) => Err(HostKeyProblem::File { file, reason: error.to_string() }),
        }
    }
}

impl client::Handler for Handler {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let public = shown.public_key();
        let key = HostKey { algorithm: public.algorithm().as_str().to_owned(), blob: public.to_bytes()? };
        match self.judge(&key).await {
            Ok(()) => {
                let fingerprint = public.fingerprint(HashAlg::Sha256).to_string();
                self.seen().accepted = Some((key.algorithm.clone(), fingerprint));
                self.accepted = Some(key);
                Ok(true)
            }
            Err(problem) => {
                self.seen().refused = Some(Error::HostKey {
                    host: self.host.clone(),
                    problem,
                    algorithm: key.algorithm,
                    fingerprint: public.fingerprint(HashAlg::Sha256).to_string(),
                });
                Ok(false)
            }
        }
    }

    async fn kex_done(
        &mut self,
        _secret: Option<&[u8]>,
        names: &Names,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let strict = if names.strict_kex() { ", strict" } else { "" };
        self.seen().negotiated =
            format!("{}{strict}, {}, {}", names.kex.as_ref(), names.key.as_str(), names.cipher.as_ref());
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<russh::Error>) -> Result<(), russh::Error> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                let message = printable(info.message.as_bytes(), 300);
                self.seen().disconnect = Some(format!("the server says: {message}"));
                Ok(())
            }
            DisconnectReason::Error(error) => {
                self.seen().disconnect = Some(handshake_reason(&error));
                Err(error)
            }
        }
    }

    // The library accepts channels that the server opens unless told otherwise. We asked for none.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(reply);
        Ok(())
    }
}

pub(super) fn handshake_reason(error: &russh::Error) -> String {
    match error {
        russh::Error::NoCommonAlgo { kind, theirs, .. } => {
            let theirs = printable(theirs.join(", ").as_bytes(), 400);
            format!("no {kind:?} algorithm in common; the server offers {theirs}")
        }
        russh::Error::Disconnect | russh::Error::HUP => {
            "the server closed the connection; it may be busy, or refuse this address".into()
        }
        russh::Error::Version => "what answers is not an SSH server".into(),
        error => error.to_string(),
    }
}

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

/// `KexAlgorithms` of ssh_config(5): a list, or with `+`, `-` or `^` a change of the default.
pub(super) fn kex_algorithms(configured: Option<&str>) -> Result<Vec<kex::Name>, String> {
    let named = |list: &str| -> Vec<kex::Name> {
        let known = |wanted: &str| {
            kex::ALL_KEX_ALGORITHMS.iter().find(|name| {
                name.as_ref() == wanted && **name != &kex::NONE && !KEX_EXTENSIONS.contains(name)
            })
        };
        list.split(',').filter_map(|name| known(name.trim())).map(|name| **name).collect()
    };
    let mut chosen: Vec<kex::Name> = match configured.map(|text| (text, text.as_bytes().first())) {
        None => KEX.to_vec(),
        Some((text, Some(b'+'))) => KEX.iter().copied().chain(named(&text[1..])).collect(),
        Some((text, Some(b'^'))) => named(&text[1..]).into_iter().chain(KEX.iter().copied()).collect(),
        Some((text, Some(b'-'))) => {
            let removed = |name: &kex::Name| pattern::list_matches(text[1..].split(','), name.as_ref());
            KEX.iter().copied().filter(|name| !removed(name)).collect()
        }
        Some((text, _)) => named(text),
    };
    let mut seen = Vec::new();
    chosen.retain(|name| {
        !seen.contains(name) && {
            seen.push(*name);
            true
        }
    });
    if chosen.is_empty() {
        let known: Vec<&str> = KEX.iter().map(AsRef::as_ref).collect();
        return Err(format!("KexAlgorithms leaves none that Sortie knows; it knows {}", known.join(", ")));
    }
    chosen.extend_from_slice(KEX_EXTENSIONS);
    Ok(chosen)
}

/// Host key algorithms, those of keys that are known for the host first; never with SHA-1.
fn host_key_algorithms(known: &[String]) -> Vec<Algorithm> {
    let mut all = vec![
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    let key_type = |algorithm: &Algorithm| match algorithm {
        Algorithm::Rsa { .. } => "ssh-rsa".to_owned(),
        other => other.as_str().to_owned(),
    };
    all.sort_by_key(|algorithm| {
        known.iter().position(|name| *name == key_type(algorithm)).unwrap_or(known.len())
    });
    all
}

pub(super) fn preferred(kex: Vec<kex::Name>, known: &[String]) -> Preferred {
    let aes_first =
        [cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305, cipher::AES_256_CTR];
    let chacha_first =
        [cipher::CHACHA20_POLY1305, cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::AES_256_CTR];
    Preferred {
        kex: Cow::Owned(kex),
        key: Cow::Owned(host_key_algorithms(known)),
        cipher: Cow::Owned(if has_aes() { aes_first } else { chacha_first }.to_vec()),
        compression: Cow::Borrowed(&[russh::compression::NONE]),
        ..Preferred::DEFAULT
    }
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
    fn known_types_of_host_keys_are_asked_for_first_and_sha1_never() {
        let order = host_key_algorithms(&["ssh-rsa".into(), "ecdsa-sha2-nistp384".into()]);
        assert_eq!(order[0], Algorithm::Rsa { hash: Some(HashAlg::Sha512) });
        assert_eq!(order[2], Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 });
        assert!(!order.contains(&Algorithm::Rsa { hash: None }));
        assert_eq!(order.len(), host_key_algorithms(&[]).len());
    }
}
