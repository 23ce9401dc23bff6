//! The listing that comes with runners, and what its signature vouches for.
//!
//! `cargo xtask dist` writes it as `runners.json` and, where it is given a key, `runners.json.sig` beside it. Whose signatures
//! are believed is `allowed_signers`'s affair.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use sortie_protocol::Sha256Hex;

use crate::allowed_signers::{AllowedSigners, SignatureProblem, Signer};
use crate::error::printable;
use crate::runners::{Machine, RunnerSet};

/// The use that listings are signed for: the namespace of `ssh-keygen -Y sign`, so that a signature made for anything else is none.
pub const NAMESPACE: &str = "sortie-runners";

/// Names of the two files beside the runners.
pub const LISTING: &str = "runners.json";
/// The listing's signature, as `ssh-keygen -Y sign` names it.
pub const SIGNATURE: &str = "runners.json.sig";

/// Bytes of each of the two, at most.
const LARGEST: u64 = 1024 * 1024;

/// A listing of runners with the signature that came with it, neither of them checked yet.
#[derive(Debug, Clone)]
pub struct SignedListing {
    listing: Vec<u8>,
    signature: Vec<u8>,
}

/// What a checked listing vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// Who signed.
    pub signer: Signer,
    /// The version of Sortie that the runners are of.
    pub version: String,
}

/// Why runners are not vouched for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListingProblem {
    /// One of the two files is not there or cannot be read.
    #[error("{}: {error}; `cargo xtask dist --sign-with KEY` writes it beside the runners", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The signature is not believed.
    #[error("the signature of {LISTING} is not believed: {0}")]
    Signature(SignatureProblem),
    /// Signed, but no listing of runners.
    #[error("{LISTING} is signed, and yet no listing of runners: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// An old listing, signed while it was new: what it lists may have faults that are known by now.
    #[error("{LISTING} is signed for the runners of version {found}, older than {own}, which this client is")]
    Older {
        /// The version that it says, escaped.
        found: String,
        /// The client's.
        own: String,
    },
    /// A runner is there that the listing does not know, or knows otherwise.
    #[error("the runner for {machine} (SHA-256 {sha256}) is not one that {LISTING} lists")]
    NotListed {
        /// Its machine.
        machine: Machine,
        /// The digest of the runner that is there.
        sha256: String,
    },
}

#[derive(Deserialize)]
struct Listing {
    version: String,
    runners: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    target: String,
    sha256: String,
    size: u64,
}

impl SignedListing {
    /// A listing and its signature from elsewhere, such as the inside of a program.
    #[must_use]
    pub fn new(listing: impl Into<Vec<u8>>, signature: impl Into<Vec<u8>>) -> Self {
        Self { listing: listing.into(), signature: signature.into() }
    }

    /// Those that lie in a directory of runners.
    ///
    /// # Errors
    /// [`ListingProblem::Missing`], also for one of more than 1 MiB.
    pub fn from_dir(directory: &Path) -> Result<Self, ListingProblem> {
        let read = |name| {
            let file = directory.join(name);
            read(&file).map_err(|error| ListingProblem::Missing { file, error })
        };
        Ok(Self { listing: read(LISTING)?, signature: read(SIGNATURE)? })
    }

    /// Checks the signature at the moment `at`, that the listing is not of an older version than this client, and that each runner of
    /// `set` is listed for its machine with its very bytes.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn vouch(
        &self,
        set: &RunnerSet,
        signers: &AllowedSigners,
        at: SystemTime,
    ) -> Result<Vouched, ListingProblem> {
        // Nothing is read in the listing before its signature is believed.
        let signer = signers.verify(NAMESPACE, &self.listing, &self.signature, at);
        let signer = signer.map_err(ListingProblem::Signature)?;
        let listing: Listing = serde_json::from_slice(&self.listing)
            .map_err(|error| ListingProblem::Malformed { reason: error.to_string() })?;
        let own = env!("CARGO_PKG_VERSION");
        if !is_as_new(&listing.version, own) {
            let found = printable(listing.version.as_bytes(), 64);
            return Err(ListingProblem::Older { found, own: own.to_owned() });
        }
        for (machine, runner) in set.iter() {
            // The digest of one that was packed beforehand is only what its build script noted.
            let sha256 = Sha256Hex::from_bytes(&Sha256::digest(runner.bytes()).into());
            let listed = listing.runners.iter().any(|listed| {
                machine.targets().contains(&listed.target.as_str())
                    && listed.sha256 == sha256.as_str()
                    && listed.sha256 == runner.sha256()
                    && listed.size == runner.bytes().len() as u64
            });
            if !listed {
                return Err(ListingProblem::NotListed { machine, sha256: sha256.as_str().to_owned() });
            }
        }
        Ok(Vouched { signer, version: printable(listing.version.as_bytes(), 64) })
    }
}

/// Whether version `found` is `own` or comes after it. Of versions with more than three numbers none but the same is.
fn is_as_new(found: &str, own: &str) -> bool {
    let numbers = |text: &str| {
        let parts: Option<Vec<u64>> = text.split('.').map(|part| part.parse().ok()).collect();
        parts.filter(|parts| parts.len() == 3)
    };
    found == own || numbers(found).zip(numbers(own)).is_some_and(|(found, own)| found > own)
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("more than {LARGEST} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
