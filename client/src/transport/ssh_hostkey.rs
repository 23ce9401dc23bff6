//! Whose key it is: the answers to russh's questions while it exchanges keys, and the algorithms that it offers.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use russh::client::{self, ChannelOpenHandle, DisconnectReason, Msg, Session};
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::{Algorithm, Certificate};
use russh::keys::{HashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, Names, Preferred};

use super::ssh_algorithms;
use super::ssh_options::SshOptions;
use crate::error::{Error, HostKeyProblem, printable};
use crate::host_certificate::{CertificateProblem, HostCertificate};
use crate::host_trust::{Shown, Trust, Trusted, key_type};
use crate::known_hosts::{self, HostKey, take_string};
use crate::observe::HostKeyShown;

/// What the library's callbacks learnt.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) refused: Option<Error>,
    pub(super) negotiated: String,
    /// The algorithm that the host key had to sign by.
    agreed: String,
    pub(super) key: Option<HostKeyShown>,
    pub(super) disconnect: Option<String>,
}

/// Answers the library's questions about one connection.
pub(super) struct Handler {
    pub(super) host: String,
    pub(super) trust: Trust,
    /// Where the connection ended up, unless that is this machine or unknown.
    pub(super) address: Option<IpAddr>,
    pub(super) hash_names: bool,
    pub(super) seen: Arc<Mutex<Seen>>,
}

impl Handler {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn judge(
        &self,
        key: &HostKey,
        certificate: Option<&HostCertificate>,
    ) -> Result<HostKeyShown, HostKeyProblem> {
        let shown = Shown { key, certificate, address: self.address };
        // A clock before 1970 is the first second of it: no certificate is valid yet.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut accepted = HostKeyShown {
            algorithm: key.algorithm.clone(),
            fingerprint: key.fingerprint(),
            authority: None,
            known_at: None,
            added_to: None,
        };
        match self.trust.judge(shown, now)? {
            Trusted::Known(place) => accepted.known_at = Some(place),
            Trusted::Authority(place) => {
                accepted.authority = certificate.map(|certificate| certificate.authority.fingerprint());
                accepted.known_at = Some(place);
            }
            Trusted::New(file) => {
                self.add(file.clone(), key).await?;
                accepted.added_to = Some(file);
            }
        }
        Ok(accepted)
    }

    async fn add(&self, file: PathBuf, key: &HostKey) -> Result<(), HostKeyProblem> {
        let (name, key, path, hashed) = (self.trust.name.clone(), key.clone(), file.clone(), self.hash_names);
        // Waits for a lock that another process may hold.
        let added =
            tokio::task::spawn_blocking(move || known_hosts::append(&path, &name, &key, hashed)).await;
        let reason = match added {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("cannot be added to: {error}"),
            Err(error) => error.to_string(),
        };
        Err(HostKeyProblem::File { file, reason })
    }

    fn refuse(&self, problem: HostKeyProblem, key: &HostKey) {
        self.seen().refused = Some(Error::HostKey {
            host: self.host.clone(),
            problem,
            algorithm: key.algorithm.clone(),
            fingerprint: key.fingerprint(),
        });
    }
}

fn plain_key(key: &PublicKey) -> Result<HostKey, russh::Error> {
    HostKey::from_blob(key.to_bytes()?).ok_or(russh::Error::CouldNotReadKey)
}

/// What a certificate says, if its signature is right.
fn read_certificate(
    certificate: &Certificate,
) -> Result<Result<HostCertificate, CertificateProblem>, russh::Error> {
    let authority = PublicKey::new(certificate.signature_key().clone(), "");
    // The library compares times too; they are judged later, with a word about what is wrong. Here it is the signature
    // that counts, so it is asked about a time that is right if any is.
    let (time, trusted) = (certificate.valid_after(), authority.fingerprint(HashAlg::Sha256));
    if certificate.validate_at(time, [&trusted]).is_err() {
        return Ok(Err(CertificateProblem::Forged));
    }
    Ok(Ok(HostCertificate {
        key: plain_key(&PublicKey::new(certificate.public_key().clone(), ""))?,
        authority: plain_key(&authority)?,
        signed_with: certificate.signature().algorithm().as_str().to_owned(),
        for_host: certificate.cert_type() == CertType::Host,
        principals: certificate.valid_principals().to_vec(),
        valid_after: certificate.valid_after(),
        valid_before: certificate.valid_before(),
        critical_options: certificate.critical_options().keys().cloned().collect(),
        serial: certificate.serial(),
        key_id: certificate.key_id().to_owned(),
    }))
}

/// Whether the server did what was agreed: the library takes a key of any type, and a signature by any algorithm of
/// that key, be it one with SHA-1 that we never offered.
fn as_agreed(agreed: &str, shown: &str, signature: &[u8]) -> Result<(), HostKeyProblem> {
    let signed = take_string(&mut &signature[..]).unwrap_or_default();
    if key_type(agreed) == shown && signed == agreed.as_bytes() {
        return Ok(());
    }
    let used = format!("a key of type {shown} that signed by {:?}", printable(signed, 60));
    Err(HostKeyProblem::NotAgreed { agreed: agreed.to_owned(), used: used.into() })
}

/// The host key of a connection whose keys have been exchanged.
///
/// A later exchange of keys in the same connection is not asked about by the library. It comes inside of what this key
/// protects, so nobody but the same server can begin it.
pub(super) fn accepted(
    host: &str,
    seen: &mut Seen,
    handle: &client::Handle<Handler>,
) -> Result<HostKeyShown, Error> {
    let key = seen.key.take().unwrap_or_default();
    let signature = handle.agent_session_binding().map_or(&[][..], |binding| binding.signature());
    match as_agreed(&seen.agreed, &key.algorithm, signature) {
        Ok(()) => Ok(key),
        Err(problem) => Err(Error::HostKey {
            host: host.to_owned(),
            problem,
            algorithm: key.algorithm,
            fingerprint: key.fingerprint,
        }),
    }
}

impl client::Handler for Handler {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let key = plain_key(&shown.public_key())?;
        let certificate = match shown.certificate().map(read_certificate).transpose()? {
            None => None,
            Some(Ok(certificate)) => Some(certificate),
            Some(Err(problem)) => {
                self.refuse(
                    HostKeyProblem::Certificate { authority: None, problem: Box::new(problem) },
                    &key,
                );
                return Ok(false);
            }
        };
        match self.judge(&key, certificate.as_ref()).await {
            Ok(accepted) => {
                self.seen().key = Some(accepted);
                Ok(true)
            }
            Err(problem) => {
                self.refuse(problem, &key);
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
        let mut seen = self.seen();
        names.key.as_str().clone_into(&mut seen.agreed);
        seen.negotiated =
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

/// What is offered to a host.
///
/// # Errors
/// A list of the configuration that leaves nothing.
pub(super) fn preferred(options: &SshOptions, trust: &Trust) -> Result<Preferred, String> {
    let (certificates, plain) = trust.algorithms();
    Ok(Preferred {
        kex: Cow::Owned(ssh_algorithms::kex_algorithms(options.kex_algorithms.as_deref())?),
        key: Cow::Owned(plain.iter().filter_map(|name| Algorithm::new(name).ok()).collect()),
        host_key_certificates: Cow::Owned(
            certificates.iter().filter_map(|name| certificate_algorithm(name)).collect(),
        ),
        cipher: Cow::Owned(ssh_algorithms::ciphers(options.ciphers.as_deref())?),
        mac: Cow::Owned(ssh_algorithms::macs(options.macs.as_deref())?),
        compression: Cow::Borrowed(&[russh::compression::NONE]),
    })
}

/// The library takes the algorithm inside, and makes the name of the certificate's of it.
fn certificate_algorithm(name: &str) -> Option<Algorithm> {
    Algorithm::new(name.strip_suffix("-cert-v01@openssh.com")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_key_algorithm_is_one_that_the_library_offers_by_the_same_name() {
        use russh::keys::ssh_key::Algorithm;
        for name in crate::algorithms::HOST_KEYS {
            match certificate_algorithm(name) {
                Some(inner) => assert!(name.starts_with(inner.as_str()), "{name}"),
                None => assert_eq!(Algorithm::new(name).unwrap().as_str(), *name),
            }
        }
    }

    #[test]
    fn what_the_server_signs_by_must_be_what_was_agreed() {
        let signature = |algorithm: &str| {
            let mut blob = (algorithm.len() as u32).to_be_bytes().to_vec();
            blob.extend(algorithm.as_bytes());
            blob.extend(b"\0\0\0\x01x");
            blob
        };
        assert_eq!(as_agreed("rsa-sha2-512", "ssh-rsa", &signature("rsa-sha2-512")), Ok(()));
        assert_eq!(as_agreed("ssh-ed25519", "ssh-ed25519", &signature("ssh-ed25519")), Ok(()));
        for (agreed, shown, signed) in [
            ("rsa-sha2-512", "ssh-rsa", "ssh-rsa"),
            ("rsa-sha2-512", "ssh-rsa", "rsa-sha2-256"),
            ("ssh-ed25519", "ssh-rsa", "ssh-rsa"),
            ("ssh-ed25519", "ssh-rsa", "ssh-ed25519"),
            ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384"),
        ] {
            let problem = as_agreed(agreed, shown, &signature(signed)).unwrap_err();
            assert!(matches!(problem, HostKeyProblem::NotAgreed { .. }), "{problem}");
        }
        assert!(as_agreed("ssh-ed25519", "ssh-ed25519", b"").is_err(), "no signature is none");
    }

    /// A host's certificate for "web1" that ssh-keygen made.
    const CERTIFICATE: &str = "AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29tAAAAID8xpMBS/74FUQYYlp+R22VTR8ZBE2wCxXoorL\
         AqWdH5AAAAINWriJdAaZc47UFALq8ez557EDrHe2XezipmkXSsFxZZAAAAAAAAAAAAAAACAAAACXdlYjEtMjAyNgAA\
         AAgAAAAEd2ViMQAAAAAAAAAA//////////8AAAAAAAAAAAAAAAAAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIECGx8kL3/\
         CElc6HR78v1jyay7WVAXiuPwHDQzppc3cPAAAAUwAAAAtzc2gtZWQyNTUxOQAAAEBs6nAvAJCFShXcDJ9Knxfr0Vr5\
         5CG/AWgSxCgoaSbcAz6OZeJwX8YIi5eYhR+c+EnCQpsZlf5fWjq1IWio2ZQC";

    #[test]
    fn a_certificate_that_was_changed_anywhere_is_not_believed() {
        use base64::Engine as _;
        let good = base64::engine::general_purpose::STANDARD.decode(CERTIFICATE).unwrap();
        let read = |blob: &[u8]| read_certificate(&Certificate::from_bytes(blob).ok()?).ok();
        assert_eq!(read(&good).unwrap().unwrap().principals, ["web1"]);
        let mut forged = 0;
        for at in 0..good.len() {
            let mut changed = good.clone();
            changed[at] ^= 1;
            // Some changes leave nothing that could be read as a certificate at all.
            if let Some(told) = read(&changed) {
                assert_eq!(told, Err(CertificateProblem::Forged), "byte {at}");
                forged += 1;
            }
        }
        assert!(forged > 100, "{forged}");
    }
}
