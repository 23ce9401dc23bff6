//! What a listing vouches for. Signatures are made here by a key of this test alone.

use russh::keys::ssh_key::{HashAlg, LineEnding, PrivateKey, private::Ed25519Keypair};

use super::*;
use crate::runners::Runner;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn key() -> PrivateKey {
    Ed25519Keypair::from_seed(&[7; 32]).into()
}

fn signers() -> AllowedSigners {
    let key = key().public_key().to_openssh().unwrap();
    AllowedSigners::parse(Path::new("signers"), &format!("release@example.org {key}\n"))
}

fn signed(listing: &str) -> SignedListing {
    let signature = key().sign(NAMESPACE, HashAlg::Sha512, listing.as_bytes()).unwrap();
    SignedListing::new(listing, signature.to_pem(LineEnding::LF).unwrap())
}

fn set() -> RunnerSet {
    let mut set = RunnerSet::new();
    set.insert(Machine::X86_64, Runner::new(&b"hello"[..]));
    set
}

fn listing(version: &str, target: &str, size: usize, sha256: &str) -> String {
    format!(
        r#"{{"version":"{version}","runners":[{{"target":"{target}","sha256":"{sha256}","size":{size},"file":"x"}}]}}"#
    )
}

const OWN: &str = env!("CARGO_PKG_VERSION");
const TARGET: &str = "x86_64-unknown-linux-musl";
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

#[test]
fn a_signed_listing_vouches_for_the_runners_in_it() {
    let vouched = signed(&listing(OWN, TARGET, 5, HELLO)).vouch(&set(), &signers(), NOW).unwrap();
    assert_eq!((vouched.version.as_str(), vouched.signer.principals.as_str()), (OWN, "release@example.org"));
    // One of two runners for a machine may be static with glibc.
    signed(&listing(OWN, "x86_64-unknown-linux-gnu", 5, HELLO)).vouch(&set(), &signers(), NOW).unwrap();
    signed(&listing("99.0.0", TARGET, 5, HELLO)).vouch(&set(), &signers(), NOW).unwrap();
}

#[test]
fn a_runner_that_is_not_listed_as_it_is_is_refused() {
    for listing in [
        listing(OWN, "aarch64-unknown-linux-musl", 5, HELLO),
        listing(OWN, TARGET, 6, HELLO),
        listing(OWN, TARGET, 5, &HELLO.replace('2', "3")),
        format!(r#"{{"version":"{OWN}","runners":[]}}"#),
    ] {
        let error = signed(&listing).vouch(&set(), &signers(), NOW).unwrap_err();
        assert!(matches!(error, ListingProblem::NotListed { .. }), "{listing}: {error}");
    }
}

#[test]
fn one_runner_too_many_spoils_the_set() {
    let mut set = set();
    set.insert(Machine::Riscv64, Runner::new(&b"from elsewhere"[..]));
    let error = signed(&listing(OWN, TARGET, 5, HELLO)).vouch(&set, &signers(), NOW).unwrap_err();
    assert!(error.to_string().contains("riscv64"), "{error}");
}

#[test]
fn what_was_packed_beforehand_is_looked_at_itself() {
    let other = Runner::new(&b"other"[..]);
    let claimed = Sha256Hex::from_bytes(&Sha256::digest(b"hello").into());
    let mut set = RunnerSet::new();
    set.insert(Machine::X86_64, Runner::packed(other.gzip().clone(), 5, claimed));
    let error = signed(&listing(OWN, TARGET, 5, HELLO)).vouch(&set, &signers(), NOW).unwrap_err();
    assert!(matches!(error, ListingProblem::NotListed { .. }), "{error}");
}

#[test]
fn an_older_listing_is_refused_although_it_is_signed() {
    for version in ["0.0.9", "0.0.99", "", "0.1", "0.1.0-rc.1", "one", "99", "99.0.0.0", "\u{1b}[2J"] {
        let error = signed(&listing(version, TARGET, 5, HELLO).replace('\u{1b}', "\\u001b"))
            .vouch(&set(), &signers(), NOW)
            .unwrap_err();
        assert!(matches!(error, ListingProblem::Older { .. }), "{version}: {error}");
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
    }
}

#[test]
fn versions_are_compared_by_number() {
    assert!(is_as_new("0.10.0", "0.9.9") && is_as_new("1.0.0-rc.1", "1.0.0-rc.1"));
    assert!(!is_as_new("0.9.9", "0.10.0") && !is_as_new("1.0.0-rc.1", "1.0.0"));
}

#[test]
fn a_changed_listing_is_refused_before_it_is_read() {
    let mut changed = signed(&listing(OWN, TARGET, 5, HELLO));
    changed.listing = b"no json".to_vec();
    let error = changed.vouch(&set(), &signers(), NOW).unwrap_err();
    assert!(matches!(error, ListingProblem::Signature(SignatureProblem::Wrong)), "{error}");
    let error = signed("no json").vouch(&set(), &signers(), NOW).unwrap_err();
    assert!(matches!(error, ListingProblem::Malformed { .. }), "{error}");
}

#[test]
fn a_directory_without_a_signature_is_named() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(LISTING), "{}").unwrap();
    let error = SignedListing::from_dir(directory.path()).unwrap_err().to_string();
    assert!(error.contains(SIGNATURE) && error.contains("--sign-with"), "{error}");
    std::fs::write(directory.path().join(SIGNATURE), vec![b'x'; 1 << 20 | 1]).unwrap();
    assert!(SignedListing::from_dir(directory.path()).unwrap_err().to_string().contains("more than"));
}
