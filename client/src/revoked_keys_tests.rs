//! Tests against lists that are written by hand here, and against revocation lists that `ssh-keygen -k` made.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

/// `serial: 7`, `serial: 100-200`, every second number from 1000 to 1100, `id: stolen`, of the authority CA.
const CERTIFICATES: &str = "U1NIS1JMCgAAAAABAAAAAAAAAAMAAAAAawHqlgAAAAAAAAAAAAAAAAAAAAABAAAAigAAADMAAAALc3NoLWVkMjU1MTkAAAAg802t\
    V6xtdkI3w1+LR4i9vfYTyeg08g/Izah5AoYAw2gAAAAAIAAAAAgAAAAAAAAAByEAAAAQAAAAAAAAAGQAAAAAAAAAyCIAAAAZAAAA\
    AAAAA+gAAAANFVVVVVVVVVVVVVVVVSMAAAAKAAAABnN0b2xlbg==";
/// The first key by its SHA-1, the second by its SHA-256, the third as it is.
const KEYS: &str = "U1NIS1JMCgAAAAABAAAAAAAAAAAAAAAAawHqlgAAAAAAAAAAAAAAAAAAAAACAAAANwAAADMAAAALc3NoLWVkMjU1MTkAAAAg8I2x\
    I1S2LX64i2vOm7jk8Is+HVh4RcXBu7/Kxul4ESQDAAAAGAAAABRRvRI3HoXzwU3zhMJsl3najmJufQUAAAAkAAAAIDSudGEWHGoI\
    jwR9xuxqNPBM8ZKY4kw2ps1PelLESYyO";
/// `id: everywhere`, of whatever authority.
const ANY_AUTHORITY: &str = "U1NIS1JMCgAAAAABAAAAAAAAAAAAAAAAawHqlgAAAAAAAAAAAAAAAAAAAAABAAAAGwAAAAAAAAAAIwAAAA4AAAAKZXZlcnl3aGVy\
    ZQ==";
/// The authority of `CERTIFICATES`.
const CA: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIPNNrVesbXZCN8Nfi0eIvb32E8noNPIPyM2oeQKGAMNo";
/// The keys of `KEYS`, and one more.
const HOSTS: [&str; 4] = [
    "AAAAC3NzaC1lZDI1NTE5AAAAID9pZsjWq+KunvBwtkOysOEeIpwcvbYPCpFSACbA/SJC",
    "AAAAC3NzaC1lZDI1NTE5AAAAIBUE0Kbh5PeWmFLuL5s3t9VUJ1/yXBOprEKssJWPgnDk",
    "AAAAC3NzaC1lZDI1NTE5AAAAIPCNsSNUti1+uItrzpu45PCLPh1YeEXFwbu/ysbpeBEk",
    "AAAAC3NzaC1lZDI1NTE5AAAAIGzDdQb2JOqXa47EqdhU1AWblumyFbaCWRlhuC4LSVIk",
];

fn key(base64: &str) -> HostKey {
    HostKey::parse("ssh-ed25519", base64).unwrap()
}

fn certificate(authority: &str, serial: u64, key_id: &str) -> HostCertificate {
    HostCertificate {
        key: key(HOSTS[3]),
        authority: key(authority),
        signed_with: "ssh-ed25519".into(),
        for_host: true,
        principals: vec!["web1".into()],
        valid_after: 0,
        valid_before: u64::MAX,
        critical_options: Vec::new(),
        serial,
        key_id: key_id.into(),
    }
}

fn revoked(content: &[u8], key: &HostKey, certificate: Option<&HostCertificate>) -> bool {
    let keys = RevokedKeys::of_bytes(content).unwrap();
    let found = keys.find(key, certificate);
    assert!(found.is_none_or(|file| file == Path::new("/revoked")));
    found.is_some()
}

#[test]
fn a_list_revokes_keys_authorities_and_the_keys_of_certificates() {
    let list = format!("# stolen\n\n  ssh-ed25519 {} comment\nssh-ed25519 {CA}\n", HOSTS[0]);
    assert!(revoked(list.as_bytes(), &key(HOSTS[0]), None));
    assert!(!revoked(list.as_bytes(), &key(HOSTS[1]), None));
    assert!(revoked(list.as_bytes(), &key(HOSTS[3]), Some(&certificate(CA, 1, "x"))));
    assert!(!revoked(list.as_bytes(), &key(HOSTS[3]), Some(&certificate(HOSTS[1], 1, "x"))));
}

#[test]
fn a_list_with_a_line_that_is_no_key_is_refused_with_the_line() {
    for bad in ["ssh-ed25519", "ssh-ed25519 !!!", "from=\"*\" ssh-ed25519 AAAA", &format!("ssh-rsa {CA}")] {
        let list = format!("ssh-ed25519 {CA}\n{bad}\n");
        assert!(parse(list.as_bytes()).unwrap_err().contains("line 2"), "{bad}");
    }
    assert!(matches!(parse(b""), Ok(Content::List(keys)) if keys.is_empty()), "an empty list is one");
}

#[test]
fn a_revocation_list_revokes_keys_by_themselves_and_by_their_hashes() {
    let krl = STANDARD.decode(KEYS).unwrap();
    for (host, expected) in HOSTS.iter().zip([true, true, true, false]) {
        assert_eq!(revoked(&krl, &key(host), None), expected, "{host}");
    }
}

#[test]
fn a_revocation_list_revokes_certificates_of_its_authority_by_number_and_name() {
    let krl = STANDARD.decode(CERTIFICATES).unwrap();
    for (serial, id, expected) in [
        (7, "x", true),
        (8, "x", false),
        (99, "x", false),
        (100, "x", true),
        (150, "x", true),
        (200, "x", true),
        (201, "x", false),
        (999, "x", false),
        (1000, "x", true),
        (1001, "x", false),
        (1008, "x", true),
        (1100, "x", true),
        (1102, "x", false),
        (u64::MAX, "x", false),
        (0, "x", false),
        (0, "stolen", true),
        (8, "stolen", true),
    ] {
        let shown = certificate(CA, serial, id);
        assert_eq!(revoked(&krl, &shown.key, Some(&shown)), expected, "{serial} {id}");
        let of_another = certificate(HOSTS[1], serial, id);
        assert!(!revoked(&krl, &of_another.key, Some(&of_another)), "{serial} {id} of another authority");
    }
    let any = STANDARD.decode(ANY_AUTHORITY).unwrap();
    for authority in [CA, HOSTS[1]] {
        let shown = certificate(authority, 1, "everywhere");
        assert!(revoked(&any, &shown.key, Some(&shown)));
    }
}

#[test]
fn a_revocation_list_that_is_not_understood_is_an_error() {
    let whole = STANDARD.decode(CERTIFICATES).unwrap();
    let header = 8 + 4 + 24 + 4 + 4;
    for end in (krl::MAGIC.len()..whole.len()).filter(|end| *end != header) {
        assert!(parse(&whole[..end]).is_err(), "cut after {end} bytes");
    }
    let section = |kind: u8, content: &[u8]| {
        let mut krl = whole[..header].to_vec();
        krl.push(kind);
        krl.extend((content.len() as u32).to_be_bytes());
        krl.extend(content);
        parse(&krl).map(|_| ())
    };
    let error = |kind, content| section(kind, content).unwrap_err();
    assert!(error(9, b"").contains("section 9"), "a section of a kind that is not known");
    assert!(error(4, b"").contains("signed"), "a signature that nobody checks");
    assert!(error(3, b"\0\0\0\x02ab").contains("20 bytes"));
    assert!(error(255, b"\0\0\0\x01x\x01\0\0\0\0").contains("extension"), "one that must be understood");
    assert_eq!(section(255, b"\0\0\0\x01x\0\0\0\0\0"), Ok(()), "one that need not be");
    let backwards =
        [b"\0\0\0\0\0\0\0\0\x21\0\0\0\x10".as_slice(), &[0, 0, 0, 0, 0, 0, 0, 2], &[0; 8]].concat();
    assert!(error(1, &backwards).contains("range"));
    let mut newer = whole.clone();
    newer[11] = 2;
    assert!(parse(&newer).unwrap_err().contains("format 2"));
}

#[test]
fn a_file_that_is_not_there_or_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none");
    assert_eq!(RevokedKeys::load([&missing]).unwrap_err().0, missing);
    assert_eq!(RevokedKeys::load([directory.path()]).unwrap_err().0, directory.path());
    assert!(RevokedKeys::load(Vec::<PathBuf>::new()).unwrap().find(&key(CA), None).is_none());
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let header = STANDARD.decode(CERTIFICATES).unwrap();
        let _ = parse(&[&header[..44], tail.as_slice()].concat());
        let _ = parse(&tail);
    }
}
