//! Tests of what counts when several files say something about a key. That ssh(1) sees it the same way is shown by
//! the trust table of the integration tests.

use std::fs;

use super::*;

const NOW: u64 = 1_800_000_000;

fn key(algorithm: &str, seed: u8) -> HostKey {
    let mut blob = Vec::new();
    for string in [algorithm.as_bytes(), &[seed; 8], &[seed | 0x80; 256]] {
        blob.extend((string.len() as u32).to_be_bytes());
        blob.extend(string);
    }
    HostKey::from_blob(blob).unwrap()
}

fn ed(seed: u8) -> HostKey {
    key("ssh-ed25519", seed)
}

fn line(names: &str, key: &HostKey) -> String {
    format!("{names} {} {}\n", key.algorithm, key.base64())
}

fn certificate(key: &HostKey, authority: &HostKey) -> HostCertificate {
    HostCertificate {
        key: key.clone(),
        authority: authority.clone(),
        signed_with: "ssh-ed25519".into(),
        for_host: true,
        principals: vec!["web1".into()],
        valid_after: 0,
        valid_before: u64::MAX,
        critical_options: Vec::new(),
        serial: 1,
        key_id: "web1".into(),
    }
}

/// What is decided with `known` as the user's known_hosts, and with other settings changed by `change`.
struct Case {
    directory: tempfile::TempDir,
    settings: TrustSettings,
}

impl Case {
    fn new(known: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("known_hosts");
        fs::write(&file, known).unwrap();
        let settings = TrustSettings {
            address: "web1".into(),
            port: 22,
            user_files: vec![file],
            rsa_bits: 1024,
            ..TrustSettings::default()
        };
        Self { directory, settings }
    }

    fn with(mut self, change: impl FnOnce(&mut TrustSettings)) -> Self {
        change(&mut self.settings);
        self
    }

    fn revoking(self, list: &str) -> Self {
        let file = self.directory.path().join("revoked");
        fs::write(&file, list).unwrap();
        self.with(|settings| settings.revoked_files = vec![file])
    }

    fn trust(&self) -> Trust {
        Trust::load(self.settings.clone()).unwrap()
    }

    fn plain(&self, key: &HostKey) -> Result<Trusted, HostKeyProblem> {
        self.trust().judge(Shown { key, certificate: None, address: None }, NOW)
    }

    fn certified(&self, certificate: &HostCertificate) -> Result<Trusted, HostKeyProblem> {
        let shown = Shown { key: &certificate.key, certificate: Some(certificate), address: None };
        self.trust().judge(shown, NOW)
    }
}

fn accepting(settings: &mut TrustSettings) {
    settings.policy = HostKeyPolicy::AcceptNew;
}

#[test]
fn a_certificate_of_a_known_authority_is_enough() {
    let case = Case::new(&format!("@cert-authority {}", line("web*", &ed(9))));
    assert!(
        matches!(case.certified(&certificate(&ed(1), &ed(9))), Ok(Trusted::Authority(place)) if place.line == 1)
    );
    let other = case.certified(&certificate(&ed(1), &ed(8)));
    assert!(matches!(other, Err(HostKeyProblem::Unknown { .. })), "{other:?}");
    assert!(case.plain(&ed(1)).is_err(), "the key without its certificate");
    assert!(case.plain(&ed(9)).is_err(), "the authority's own key is no host's");
}

#[test]
fn a_certificate_that_proves_nothing_leaves_the_key_as_it_is_known() {
    let authority = format!("@cert-authority {}", line("web1", &ed(9)));
    let mut expired = certificate(&ed(1), &ed(9));
    expired.valid_before = NOW;
    let known = Case::new(&(authority.clone() + &line("web1", &ed(1))));
    assert!(matches!(known.certified(&expired), Ok(Trusted::Known(place)) if place.line == 2));
    let changed = Case::new(&(authority.clone() + &line("web1", &ed(2)))).certified(&expired);
    assert!(matches!(changed, Err(HostKeyProblem::Changed { line: 2, .. })), "{changed:?}");
    for case in [Case::new(&authority), Case::new(&authority).with(accepting)] {
        let unknown = case.certified(&expired);
        let Err(HostKeyProblem::Certificate { problem, .. }) = unknown else { panic!("{unknown:?}") };
        assert_eq!(*problem, CertificateProblem::Expired(NOW));
    }
}

#[test]
fn a_certificate_of_nobody_known_is_a_plain_key() {
    let mut strange = certificate(&ed(1), &ed(9));
    strange.for_host = false;
    assert!(matches!(Case::new(&line("web1", &ed(1))).certified(&strange), Ok(Trusted::Known(_))));
    assert!(matches!(Case::new("").with(accepting).certified(&strange), Ok(Trusted::New(_))));
}

#[test]
fn what_is_revoked_is_refused_before_anything_else_is_looked_at() {
    let good = format!("@cert-authority {}{}", line("web1", &ed(9)), line("web1", &ed(1)));
    let shown = certificate(&ed(1), &ed(9));
    for revoked in [ed(1), ed(9)] {
        let marked = Case::new(&format!("{good}@revoked {}", line("web1", &revoked))).with(accepting);
        let found = marked.certified(&shown);
        assert!(matches!(found, Err(HostKeyProblem::Revoked { line: 3, .. })), "{found:?}");
        let listed = Case::new(&good).revoking(line("", &revoked).trim_start()).with(accepting);
        let found = listed.certified(&shown);
        assert!(matches!(found, Err(HostKeyProblem::RevokedBy { .. })), "{found:?}");
    }
    let other = Case::new(&format!("{good}@revoked {}", line("web2", &ed(1))));
    assert!(other.certified(&shown).is_ok(), "revoked for another host");
}

#[test]
fn a_revocation_file_that_is_missing_lets_nobody_in() {
    let case = Case::new("").with(|settings| settings.revoked_files = vec!["/no/such/file".into()]);
    assert!(Trust::load(case.settings).unwrap_err().contains("/no/such/file"));
}

#[test]
fn new_keys_go_to_the_first_file_of_the_user_and_nowhere_else() {
    let case = Case::new("").with(accepting);
    let file = case.settings.user_files[0].clone();
    assert_eq!(case.plain(&ed(1)), Ok(Trusted::New(file.clone())));
    let global = Case::new("").with(accepting).with(|s| s.global_files = std::mem::take(&mut s.user_files));
    assert!(
        matches!(global.plain(&ed(1)), Err(HostKeyProblem::Unknown { .. })),
        "the system's file is not ours"
    );
    let strange = Case::new("").with(accepting).with(|s| s.alias = Some("*".into()));
    assert!(strange.plain(&ed(1)).is_err(), "a name that would be read as a pattern");
}

#[test]
fn short_rsa_keys_are_refused_even_when_known() {
    let rsa = key("ssh-rsa", 1);
    let case = Case::new(&(line("web1", &rsa) + "@cert-authority " + &line("web1", &rsa)));
    assert!(case.plain(&rsa).is_ok());
    let case = case.with(|settings| settings.rsa_bits = 3072);
    let least = Err(HostKeyProblem::TooShort { bits: 2048, least: 3072 });
    assert_eq!(case.plain(&rsa), least);
    assert_eq!(case.certified(&certificate(&ed(1), &rsa)), least, "nor do they vouch for others");
}

#[test]
fn a_type_that_is_left_out_is_refused_even_when_known() {
    let case = Case::new(&line("web1", &ed(1))).with(|s| s.key_algorithms = Some("-ssh-ed25519".into()));
    assert_eq!(case.plain(&ed(1)), Err(HostKeyProblem::NotAllowed));
    let rsa = key("ssh-rsa", 1);
    let case = Case::new(&line("web1", &rsa)).with(|s| s.key_algorithms = Some("rsa-sha2-256".into()));
    assert!(case.plain(&rsa).is_ok());
}

#[test]
fn certificates_are_asked_for_where_somebody_may_vouch_for_the_host() {
    let none = Case::new(&line("web1", &ed(1))).trust().algorithms();
    assert!(none.0.is_empty(), "{none:?}");
    let some = Case::new(&format!("@cert-authority {}", line("*", &ed(9)))).trust().algorithms();
    assert_eq!(some.0[0], "ssh-ed25519-cert-v01@openssh.com");
    let list = "ssh-ed25519-cert-v01@openssh.com".to_owned();
    let only = Case::new("").with(|s| s.key_algorithms = Some(list)).trust().algorithms();
    assert_eq!((only.0.len(), only.1.len()), (1, 0), "nothing else is allowed");
}

#[test]
fn known_types_of_host_keys_are_asked_for_first() {
    let rsa = line("web1", &key("ssh-rsa", 1)) + &line("web1", &key("ecdsa-sha2-nistp384", 1));
    let order = Case::new(&rsa).trust().algorithms().1;
    assert_eq!(order[..3], ["ecdsa-sha2-nistp384", "rsa-sha2-512", "rsa-sha2-256"]);
    assert_eq!(order.len(), Case::new("").trust().algorithms().1.len(), "and no other is left out");
    let own = Case::new(&rsa).with(|s| s.key_algorithms = Some("ssh-ed25519,rsa-sha2-512".into()));
    assert_eq!(own.trust().algorithms().1, ["ssh-ed25519", "rsa-sha2-512"], "a list stays as it is");
    let changed = Case::new(&rsa).with(|s| s.key_algorithms = Some("-rsa-sha2-512".into()));
    assert_eq!(changed.trust().algorithms().1[..2], ["ecdsa-sha2-nistp384", "rsa-sha2-256"]);
}

#[test]
fn an_address_known_by_another_key_is_refused_where_that_is_checked() {
    let text = line("web1", &ed(1)) + &line("192.0.2.1", &ed(2));
    let judge = |check_address, address: &str| {
        let case = Case::new(&text).with(|settings| settings.check_address = check_address);
        let address = address.parse().ok();
        case.trust().judge(Shown { key: &ed(1), certificate: None, address }, NOW)
    };
    assert!(judge(false, "192.0.2.1").is_ok());
    assert!(matches!(judge(true, "192.0.2.1"), Err(HostKeyProblem::Changed { line: 2, .. })));
    assert!(judge(true, "192.0.2.2").is_ok());
    assert!(judge(true, "").is_ok(), "an address that is not known cannot be compared");
}
