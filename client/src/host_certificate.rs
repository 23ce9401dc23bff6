//! Host certificates (PROTOCOL.certkeys), as ssh(1) judges them: whether one proves that a key is that of a host.
//!
//! Plain data and the rules on it. Whether its authority may speak for the host is said by [`crate::known_hosts`],
//! whether its signature is right by whoever parsed it; nothing here knows russh or the network.

use std::fmt;

use sortie_protocol::time::Timestamp;

use crate::error::printable;
use crate::known_hosts::HostKey;

/// What a certificate says, with its signature already found to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCertificate {
    /// The plain key that it is for.
    pub key: HostKey,
    /// The plain key of the authority that signed it.
    pub authority: HostKey,
    /// The algorithm of that signature, such as `rsa-sha2-512`.
    pub signed_with: String,
    /// It is for a host, not for a user.
    pub for_host: bool,
    /// The names that it is for. OpenSSH takes `*` and `?` in them for wildcards since version 10.3, and for nothing
    /// before; so they are nothing here.
    pub principals: Vec<String>,
    /// The first second of its validity, since 1970.
    pub valid_after: u64,
    /// The second before which it ends; the highest number is "never".
    pub valid_before: u64,
    /// Names of its critical options. None is defined for hosts.
    pub critical_options: Vec<String>,
    /// What the authority counts it by; 0 if it does not.
    pub serial: u64,
    /// What the authority calls it.
    pub key_id: String,
}

/// Why a certificate of an authority that is known proves nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// It is a user's.
    NotForHosts,
    /// Its time has not come yet; seconds since 1970.
    NotYetValid(u64),
    /// Its time is over; seconds since 1970.
    Expired(u64),
    /// It is for nobody. OpenSSH took this for everybody up to version 10.2.
    NoPrincipals,
    /// It is for other hosts.
    OtherHosts {
        /// The name that it should be for.
        name: String,
        /// The names that it is for.
        principals: Vec<String>,
    },
    /// It has an option that must be understood, and none is defined for hosts.
    CriticalOption(String),
    /// It is signed by an algorithm that `CASignatureAlgorithms` leaves out, such as one with SHA-1.
    Signature(String),
    /// Its signature is not its authority's.
    Forged,
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All that a certificate says comes from the other side.
        let shown = |text: &str| printable(text.as_bytes(), 100);
        match self {
            Self::NotForHosts => write!(f, "it is a user's certificate, not a host's"),
            Self::NotYetValid(from) => {
                write!(f, "it is not valid before {}; is this machine's clock right?", date(*from))
            }
            Self::Expired(end) => {
                write!(
                    f,
                    "it expired at {}; the host needs a new one, or this machine's clock is wrong",
                    date(*end)
                )
            }
            Self::NoPrincipals => write!(f, "it names no host that it is for"),
            Self::OtherHosts { name, principals } => {
                let principals: Vec<String> = principals.iter().take(8).map(|name| shown(name)).collect();
                write!(f, "it is for {}, not for {name}", principals.join(", "))?;
                let wildcard = principals.iter().any(|name| name.contains(['*', '?']));
                if wildcard { f.write_str(" (wildcards do not count)") } else { Ok(()) }
            }
            Self::CriticalOption(name) => {
                write!(f, "it has the critical option {}, unknown for hosts", shown(name))
            }
            Self::Signature(algorithm) => {
                write!(f, "it is signed by {}, which CASignatureAlgorithms does not allow", shown(algorithm))
            }
            Self::Forged => write!(f, "its signature is not that of its authority"),
        }
    }
}

impl HostCertificate {
    /// Whether this certificate is one for the host `name` at `now` (seconds since 1970), signed by one of `signatures`.
    /// The name is compared as it is, as ssh(1) does, which has host names in lower case by then.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self, name: &str, now: u64, signatures: &[&str]) -> Result<(), CertificateProblem> {
        if !self.for_host {
            return Err(CertificateProblem::NotForHosts);
        }
        if now < self.valid_after {
            return Err(CertificateProblem::NotYetValid(self.valid_after));
        }
        if now >= self.valid_before {
            return Err(CertificateProblem::Expired(self.valid_before));
        }
        if self.principals.is_empty() {
            return Err(CertificateProblem::NoPrincipals);
        }
        if !self.principals.iter().any(|principal| principal == name) {
            let principals = self.principals.clone();
            return Err(CertificateProblem::OtherHosts { name: name.to_owned(), principals });
        }
        if let Some(option) = self.critical_options.first() {
            return Err(CertificateProblem::CriticalOption(option.clone()));
        }
        if !signatures.contains(&self.signed_with.as_str()) {
            return Err(CertificateProblem::Signature(self.signed_with.clone()));
        }
        Ok(())
    }
}

/// Seconds since 1970 as a date.
fn date(seconds: u64) -> Timestamp {
    Timestamp::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithms::CA_SIGNATURES;

    const NOW: u64 = 1_800_000_000;

    fn certificate() -> HostCertificate {
        let key = |name: &str| HostKey { algorithm: name.into(), blob: name.into() };
        HostCertificate {
            key: key("host"),
            authority: key("authority"),
            signed_with: "ssh-ed25519".into(),
            for_host: true,
            principals: vec!["web1".into(), "web1.example.org".into()],
            valid_after: NOW,
            valid_before: NOW + 1,
            critical_options: Vec::new(),
            serial: 0,
            key_id: "id".into(),
        }
    }

    fn check(
        change: impl FnOnce(&mut HostCertificate),
        name: &str,
        now: u64,
    ) -> Result<(), CertificateProblem> {
        let mut certificate = certificate();
        change(&mut certificate);
        certificate.check(name, now, CA_SIGNATURES)
    }

    #[test]
    fn a_certificate_is_good_for_its_names_in_its_time() {
        assert_eq!(check(|_| (), "web1", NOW), Ok(()));
        assert_eq!(check(|_| (), "web1.example.org", NOW), Ok(()));
        assert_eq!(check(|_| (), "web1", NOW - 1), Err(CertificateProblem::NotYetValid(NOW)));
        assert_eq!(check(|_| (), "web1", NOW + 1), Err(CertificateProblem::Expired(NOW + 1)));
        for name in ["web2", "example.org", "WEB1", ""] {
            assert!(matches!(check(|_| (), name, NOW), Err(CertificateProblem::OtherHosts { .. })), "{name}");
        }
    }

    #[test]
    fn whatever_else_is_not_a_hosts_plain_certificate_is_refused() {
        assert_eq!(check(|c| c.for_host = false, "web1", NOW), Err(CertificateProblem::NotForHosts));
        assert_eq!(check(|c| c.principals.clear(), "web1", NOW), Err(CertificateProblem::NoPrincipals));
        let option = check(|c| c.critical_options.push("force-command".into()), "web1", NOW);
        assert_eq!(option, Err(CertificateProblem::CriticalOption("force-command".into())));
        let sha1 = check(|c| c.signed_with = "ssh-rsa".into(), "web1", NOW);
        assert_eq!(sha1, Err(CertificateProblem::Signature("ssh-rsa".into())));
    }

    #[test]
    fn a_wildcard_is_no_name() {
        for principal in ["*", "web?", "!web2"] {
            let problem = check(|c| c.principals = vec![principal.into()], "web1", NOW).unwrap_err();
            assert_eq!(
                problem.to_string().contains("wildcards do not count"),
                principal != "!web2",
                "{problem}"
            );
        }
    }

    #[test]
    fn a_problem_says_when_the_certificate_was_good() {
        let problem = CertificateProblem::Expired(951_782_400).to_string();
        assert!(problem.contains("2000-02-29T00:00:00Z"), "{problem}");
        assert!(CertificateProblem::NotYetValid(u64::MAX).to_string().contains("9999-12-31"));
    }

    #[test]
    fn what_a_certificate_says_is_shown_without_control_characters() {
        let problem =
            CertificateProblem::OtherHosts { name: "web1".into(), principals: vec!["\x1b[2Jx".into()] };
        assert!(!problem.to_string().contains('\x1b'), "{problem}");
    }
}
