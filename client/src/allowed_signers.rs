//! Who may sign: the allowed signers file of ssh-keygen(1), and signatures in OpenSSH's format (PROTOCOL.sshsig) over bytes.
//!
//! Knows nothing of what is signed. A line that is not understood in full vouches for nothing; the refusal names it.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use russh::keys::ssh_key::{Algorithm, HashAlg, PublicKey, SshSig};
use sortie_protocol::time::{Timestamp, is_rfc3339};

use crate::error::printable;
use crate::pattern;

/// Bytes of an allowed signers file, at most.
const LARGEST_FILE: u64 = 1024 * 1024;

/// Bytes of a signature, at most.
const LARGEST_SIGNATURE: usize = 64 * 1024;

/// Lines of each kind that an error names.
const MOST_REASONS: usize = 3;

/// Bits that an RSA key has at least: OpenSSH takes 1024 here, which has not been enough for long.
const SMALLEST_RSA: u32 = 2048;

/// Keys whose signatures are believed.
#[derive(Debug, Clone)]
pub struct AllowedSigners {
    file: PathBuf,
    signers: Vec<Line>,
    /// Lines that vouch for nothing, and why.
    passed_over: Vec<(usize, &'static str)>,
}

#[derive(Debug, Clone)]
struct Line {
    number: usize,
    principals: String,
    key: PublicKey,
    namespaces: Option<String>,
    /// As in `20261121190000`, which sorts as the time does.
    after: Option<String>,
    before: Option<String>,
}

/// Whose signature it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The first field of the line, as it stands in the file.
    pub principals: String,
    /// SHA-256 fingerprint of the key, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The line of the file, from 1.
    pub line: usize,
}

/// Why a signature is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureProblem {
    /// Not a signature of `ssh-keygen -Y sign`, or by an algorithm that proves nothing.
    #[error(
        "it is no signature in OpenSSH's format that can be checked ({reason}); `ssh-keygen -Y sign` makes them"
    )]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// Made for another use.
    #[error("it was made for the use {found:?}, not {wanted:?} (`ssh-keygen -Y sign -n {wanted}`)")]
    Namespace {
        /// What the signature says it is for, escaped.
        found: String,
        /// What it has to be for.
        wanted: String,
    },
    /// No line of the file vouches for the key.
    #[error("no line of {} lets its key {fingerprint} sign this{}", file.display(), because(.reasons))]
    NotAllowed {
        /// The allowed signers file.
        file: PathBuf,
        /// SHA-256 fingerprint of the key.
        fingerprint: String,
        /// Lines that came near, and why they do not.
        reasons: Vec<String>,
    },
    /// The key is allowed, the content is not what it signed.
    #[error("it does not fit the content: one of the two was changed after signing")]
    Wrong,
}

fn because(reasons: &[String]) -> String {
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}

impl AllowedSigners {
    /// Reads an allowed signers file: ssh-keygen(1), ALLOWED SIGNERS.
    ///
    /// # Errors
    /// It cannot be read, is larger than 1 MiB, or no line of it vouches for a key.
    pub fn load(file: &Path) -> io::Result<Self> {
        let mut text = String::new();
        std::fs::File::open(file)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
        if text.len() as u64 > LARGEST_FILE {
            return Err(io::Error::other(format!("more than {LARGEST_FILE} bytes are no list of signers")));
        }
        let signers = Self::parse(file, &text);
        if signers.signers.is_empty() {
            let near = because(&signers.lines_passed_over());
            return Err(io::Error::other(format!("no line of it is a signer with a key{near}")));
        }
        Ok(signers)
    }

    /// The same from text; `file` is what it is called in errors. Never fails: lines that are not understood vouch for nothing.
    #[must_use]
    pub fn parse(file: &Path, text: &str) -> Self {
        let mut found = Self { file: file.to_owned(), signers: Vec::new(), passed_over: Vec::new() };
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match Line::parse(index + 1, line) {
                Ok(signer) => found.signers.push(signer),
                Err(why) => found.passed_over.push((index + 1, why)),
            }
        }
        found
    }

    /// Who signed `message` for the use `namespace`, as `ssh-keygen -Y verify` would find with any identity of the file, at the moment `at`.
    ///
    /// # Errors
    /// What keeps the signature from being believed.
    pub fn verify(
        &self,
        namespace: &str,
        message: &[u8],
        signature: &[u8],
        at: SystemTime,
    ) -> Result<Signer, SignatureProblem> {
        let signature = parse_signature(signature)?;
        if signature.namespace() != namespace {
            let found = printable(signature.namespace().as_bytes(), 64);
            return Err(SignatureProblem::Namespace { found, wanted: namespace.to_owned() });
        }
        let at = sortable(at);
        let fingerprint = signature.public_key().fingerprint(HashAlg::Sha256).to_string();
        let mut reasons = Vec::new();
        for line in self.signers.iter().filter(|line| line.key.key_data() == signature.public_key()) {
            if let Some(why) = line.stands_against(namespace, &at) {
                if reasons.len() < MOST_REASONS {
                    reasons.push(format!("line {}: {why}", line.number));
                }
                continue;
            }
            line.key.verify(namespace, message, &signature).map_err(|_| SignatureProblem::Wrong)?;
            return Ok(Signer { principals: line.principals.clone(), fingerprint, line: line.number });
        }
        reasons.extend(self.lines_passed_over());
        Err(SignatureProblem::NotAllowed { file: self.file.clone(), fingerprint, reasons })
    }

    /// A few of them, for an error.
    fn lines_passed_over(&self) -> Vec<String> {
        self.passed_over
            .iter()
            .take(MOST_REASONS)
            .map(|(number, why)| format!("line {number} was passed over: {why}"))
            .collect()
    }
}

impl Line {
    fn parse(number: usize, text: &str) -> Result<Self, &'static str> {
        let (principals, rest) = word(text).ok_or("a quote is not closed")?;
        let principals = principals.trim_matches('"');
        if principals.is_empty() {
            return Err("it names nobody");
        }
        let (options, key) = match public_key(rest) {
            Some(key) => ("", key),
            None => {
                let (options, key) = word(rest).ok_or("a quote is not closed")?;
                (options, public_key(key).ok_or("its key cannot be read")?)
            }
        };
        let principals = printable(principals.as_bytes(), 256);
        let mut line = Self { number, principals, key, namespaces: None, after: None, before: None };
        line.take_options(options)?;
        if line.key.key_data().rsa().is_some_and(|key| key.key_size() < SMALLEST_RSA) {
            return Err("its RSA key has fewer than 2048 bits");
        }
        Ok(line)
    }

    fn take_options(&mut self, mut options: &str) -> Result<(), &'static str> {
        while !options.is_empty() {
            let (option, rest) = until(options, |c| c == ',').ok_or("a quote is not closed")?;
            options = rest.strip_prefix(',').unwrap_or(rest);
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            let value =
                value.filter(|value| !value.is_empty()).ok_or("the value of its option is not in quotes");
            let (place, value) = match name.to_ascii_lowercase().as_str() {
                "namespaces" => (&mut self.namespaces, value?.to_owned()),
                "valid-after" => (&mut self.after, moment(value?)?),
                "valid-before" => (&mut self.before, moment(value?)?),
                "cert-authority" => return Err("signatures by certificates are not checked here"),
                _ => return Err("it has an option that is not known"),
            };
            if place.replace(value).is_some() {
                return Err("it has an option twice");
            }
        }
        Ok(())
    }

    /// What keeps this line from vouching for its key.
    fn stands_against(&self, namespace: &str, at: &str) -> Option<&'static str> {
        let elsewhere = |list: &String| !pattern::list_matches(list.split(','), namespace);
        if self.namespaces.as_ref().is_some_and(elsewhere) {
            Some("its namespaces are others")
        } else if self.after.as_ref().is_some_and(|after| at < after.as_str()) {
            Some("its valid-after is still to come")
        } else if self.before.as_ref().is_some_and(|before| at > before.as_str()) {
            Some("its valid-before is past")
        } else {
            None
        }
    }
}

/// Up to where `ends` says so outside of quotes, and the rest; none where a quote is not closed.
fn until(text: &str, ends: impl Fn(char) -> bool) -> Option<(&str, &str)> {
    let mut quoted = false;
    let end = text.char_indices().find(|&(_, c)| {
        quoted ^= c == '"';
        !quoted && ends(c)
    });
    match end {
        Some((at, _)) => Some(text.split_at(at)),
        None => (!quoted).then_some((text, "")),
    }
}

/// The first word, in which quotes may hold blanks, and what comes after the blanks behind it.
fn word(text: &str) -> Option<(&str, &str)> {
    until(text, char::is_whitespace).map(|(word, rest)| (word, rest.trim_start()))
}

/// The key that a text begins with; what comes after it is a comment.
fn public_key(text: &str) -> Option<PublicKey> {
    let mut fields = text.split_ascii_whitespace();
    PublicKey::from_openssh(&format!("{} {}", fields.next()?, fields.next()?)).ok()
}

/// `YYYYMMDD[HHMM[SS]]Z` as fourteen digits.
fn moment(text: &str) -> Result<String, &'static str> {
    let digits =
        text.strip_suffix('Z').ok_or("its time has no Z, and this machine's time zone is not asked for")?;
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("its time is not YYYYMMDD[HHMM[SS]]Z");
    }
    let all = format!("{digits:0<14}");
    let part = |from: usize, to: usize| &all[from..to];
    let written = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4),
        part(4, 6),
        part(6, 8),
        part(8, 10),
        part(10, 12),
        part(12, 14)
    );
    if is_rfc3339(&written) { Ok(all) } else { Err("its time is none that exists") }
}

/// The moment in the same fourteen digits.
fn sortable(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let text = Timestamp::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX), 0).to_string();
    text.chars().filter(char::is_ascii_digit).collect()
}

fn parse_signature(bytes: &[u8]) -> Result<SshSig, SignatureProblem> {
    let malformed = |reason: &str| SignatureProblem::Malformed { reason: reason.to_owned() };
    if bytes.len() > LARGEST_SIGNATURE {
        return Err(malformed("it is too long"));
    }
    let signature = SshSig::from_pem(bytes).map_err(|_| malformed("it cannot be read"))?;
    if signature.version() != SshSig::VERSION {
        return Err(malformed("it is of another version"));
    }
    // As ssh-keygen does: SHA-1 proves nothing. A key is believed by its own kind of signature only, which verifying sees to.
    match signature.algorithm() {
        Algorithm::Ed25519
        | Algorithm::SkEd25519
        | Algorithm::Ecdsa { .. }
        | Algorithm::SkEcdsaSha2NistP256
        | Algorithm::Rsa { hash: Some(_) } => Ok(signature),
        other => Err(malformed(&format!("{} is not accepted", other.as_str()))),
    }
}

#[cfg(test)]
#[path = "allowed_signers_tests.rs"]
mod tests;
