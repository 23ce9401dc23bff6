//! Whether a key is that of the host: known_hosts, certificates and revocations put together, in the order that ssh(1)
//! has them, and never more lenient than it.
//!
//! Reads files when it is made and judges without touching anything; nothing here knows russh or the network.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::algorithms;
use crate::error::HostKeyProblem;
use crate::host_certificate::{CertificateProblem, HostCertificate};
use crate::known_hosts::{HostKey, HostName, KnownHosts, Verdict};
use crate::place::Place;
use crate::revoked_keys::RevokedKeys;
use crate::ssh_config::HostKeyPolicy;

/// No RSA key shorter than this counts, whatever is configured; OpenSSH has the same.
const RSA_LEAST_BITS: usize = 1024;

/// What decides about the keys of one host.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrustSettings {
    /// What was connected to, and the port that the host is known by.
    pub(crate) address: String,
    pub(crate) port: u16,
    /// `HostKeyAlias`.
    pub(crate) alias: Option<String>,
    /// `UserKnownHostsFile`; the first one is written to.
    pub(crate) user_files: Vec<PathBuf>,
    /// `GlobalKnownHostsFile`.
    pub(crate) global_files: Vec<PathBuf>,
    /// `RevokedHostKeys`.
    pub(crate) revoked_files: Vec<PathBuf>,
    /// `StrictHostKeyChecking`.
    pub(crate) policy: HostKeyPolicy,
    /// `HostKeyAlgorithms` as written.
    pub(crate) key_algorithms: Option<String>,
    /// `CASignatureAlgorithms` as written.
    pub(crate) ca_algorithms: Option<String>,
    /// `RequiredRSASize`, in bits.
    pub(crate) rsa_bits: usize,
    /// `CheckHostIP`.
    pub(crate) check_address: bool,
}

/// The same with all files read.
#[derive(Debug)]
pub(crate) struct Trust {
    pub(crate) name: HostName,
    settings: TrustSettings,
    known: KnownHosts,
    revoked: RevokedKeys,
    key_algorithms: Vec<&'static str>,
    ca_algorithms: Vec<&'static str>,
}

/// What a server showed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    /// The plain key: its own, or that of its certificate.
    pub(crate) key: &'a HostKey,
    pub(crate) certificate: Option<&'a HostCertificate>,
    /// Where the connection ended up, unless that is this machine or unknown.
    pub(crate) address: Option<IpAddr>,
}

/// By what a key is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trusted {
    /// known_hosts has it there.
    Known(Place),
    /// known_hosts has the authority of its certificate there.
    Authority(Place),
    /// Nothing speaks against it, and new keys are to be added to the first file of the user.
    New(PathBuf),
}

impl Trust {
    /// Reads the files.
    ///
    /// # Errors
    /// Which file or keyword cannot be obeyed, and why.
    pub(crate) fn load(settings: TrustSettings) -> Result<Self, String> {
        let files = settings.user_files.iter().chain(&settings.global_files);
        let known = KnownHosts::load(files).map_err(|(file, error)| {
            format!("{} cannot be read, so host keys cannot be checked: {error}", file.display())
        })?;
        let revoked = RevokedKeys::load(&settings.revoked_files).map_err(|(file, reason)| {
            format!("RevokedHostKeys {}: {reason}; without it no host key is accepted", file.display())
        })?;
        let key_algorithms = algorithms::chosen(
            "HostKeyAlgorithms",
            settings.key_algorithms.as_deref(),
            algorithms::HOST_KEYS,
        )?;
        let ca_algorithms = algorithms::chosen(
            "CASignatureAlgorithms",
            settings.ca_algorithms.as_deref(),
            algorithms::CA_SIGNATURES,
        )?;
        let name = match &settings.alias {
            Some(alias) => HostName::alias(alias),
            None => HostName::new(&settings.address, settings.port),
        };
        Ok(Self { name, settings, known, revoked, key_algorithms, ca_algorithms })
    }

    /// What to ask the server for: algorithms of certificates, then of plain keys, best first.
    ///
    /// Certificates are asked for where some authority may vouch for the host, or nothing else is allowed. Types that
    /// the host is known by come first, or it would look changed by another; a list that was configured stays as it is.
    pub(crate) fn algorithms(&self) -> (Vec<&'static str>, Vec<&'static str>) {
        let (mut certificates, mut plain): (Vec<_>, Vec<_>) =
            self.key_algorithms.iter().copied().partition(|name| name.ends_with("-cert-v01@openssh.com"));
        if !plain.is_empty() && !self.known.has_authority(&self.name) {
            certificates.clear();
        }
        let ordered = self.settings.key_algorithms.as_deref().is_none_or(|text| text.starts_with(['+', '-']));
        if ordered {
            let known = self.known.algorithms(&self.name);
            plain.sort_by_key(|name| !known.iter().any(|known| known == key_type(name)));
        }
        (certificates, plain)
    }

    /// Judges what the server showed at `now`, in seconds since 1970.
    pub(crate) fn judge(&self, shown: Shown<'_>, now: u64) -> Result<Trusted, HostKeyProblem> {
        self.not_revoked(shown)?;
        let mut problem = None;
        if let Some(certificate) = shown.certificate
            && let Some(place) = self.known.authority(&self.name, &certificate.authority)
        {
            match self.judge_certificate(certificate, now) {
                Ok(()) => return Ok(Trusted::Authority(place)),
                Err(found) => problem = Some((place, Box::new(found))),
            }
        }
        let problem =
            problem.map(|(place, problem)| HostKeyProblem::Certificate { authority: Some(place), problem });
        // A certificate that proves nothing takes nothing from its key, which may be known by itself.
        if !self.key_algorithms.iter().any(|name| key_type(name) == shown.key.algorithm) {
            return Err(problem.unwrap_or(HostKeyProblem::NotAllowed));
        }
        match self.known.check(&self.name, shown.key) {
            Verdict::Known(place) => self.judge_address(shown).map(|()| Trusted::Known(place)),
            Verdict::Changed(Place { file, line }) => Err(HostKeyProblem::Changed { file, line }),
            Verdict::Revoked(Place { file, line }) => Err(HostKeyProblem::Revoked { file, line }),
            Verdict::Unknown => match problem {
                Some(problem) => Err(problem),
                None => self.judge_address(shown).and_then(|()| self.new_key()),
            },
        }
    }

    fn not_revoked(&self, shown: Shown<'_>) -> Result<(), HostKeyProblem> {
        let least = self.settings.rsa_bits.max(RSA_LEAST_BITS);
        for key in
            std::iter::once(shown.key).chain(shown.certificate.map(|certificate| &certificate.authority))
        {
            if let Some(bits) = key.rsa_bits().filter(|bits| *bits < least) {
                return Err(HostKeyProblem::TooShort { bits, least });
            }
            if let Some(Place { file, line }) = self.known.revoked(&self.name, key) {
                return Err(HostKeyProblem::Revoked { file, line });
            }
        }
        match self.revoked.find(shown.key, shown.certificate) {
            Some(file) => Err(HostKeyProblem::RevokedBy { file: file.to_owned() }),
            None => Ok(()),
        }
    }

    fn judge_certificate(&self, certificate: &HostCertificate, now: u64) -> Result<(), CertificateProblem> {
        certificate.check(self.name.principal(), now, &self.ca_algorithms)
    }

    /// `CheckHostIP`: the address must not be known by another key. It is never added to a file.
    fn judge_address(&self, shown: Shown<'_>) -> Result<(), HostKeyProblem> {
        let Some(address) = shown.address.filter(|_| self.settings.check_address) else { return Ok(()) };
        match self.known.check(&HostName::new(&address.to_string(), self.settings.port), shown.key) {
            Verdict::Changed(Place { file, line }) => Err(HostKeyProblem::Changed { file, line }),
            Verdict::Revoked(Place { file, line }) => Err(HostKeyProblem::Revoked { file, line }),
            Verdict::Known(_) | Verdict::Unknown => Ok(()),
        }
    }

    fn new_key(&self) -> Result<Trusted, HostKeyProblem> {
        match self.settings.user_files.first() {
            Some(file) if self.settings.policy == HostKeyPolicy::AcceptNew && self.name.can_be_recorded() => {
                Ok(Trusted::New(file.clone()))
            }
            _ => {
                let files =
                    self.settings.user_files.iter().chain(&self.settings.global_files).cloned().collect();
                Err(HostKeyProblem::Unknown { files })
            }
        }
    }
}

/// The type of key that an algorithm for plain keys goes with; the same for other names.
pub(crate) fn key_type(algorithm: &str) -> &str {
    if algorithm.starts_with("rsa-sha2-") && !algorithm.contains("-cert-") { "ssh-rsa" } else { algorithm }
}

#[cfg(test)]
#[path = "host_trust_tests.rs"]
mod tests;
