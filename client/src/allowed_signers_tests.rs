//! Lines of allowed signers files, and one signature that ssh-keygen made. tests/tests/client_signed_runners.rs holds the same against
//! ssh-keygen itself.

use std::time::Duration;

use super::*;
use crate::fuzz::{SIGNATURE, SIGNER as KEY};

const ANOTHER_KEY: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBIIPqAb2CWUYAlsUcMdO0fYBQVIsFvH7UG1LBrmpVLk8WYJyE8OD892l3tOpTgwDH4qpq32ZAV+KMWrw3zJfm+8=";
const SMALL_KEY: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQCjUMzvJUmhJHsKJ9sT/S8bB9thsreoRvl4i7qU7o/1F8npoPw/Dh+iwMREuiAjyGefjwJ9jEvPAmnNQCx98LPflRHjqaU69++XVtZ2CrusVb9VHKChV1jDRG2fRIpu2xvyrgEiyltgphr6Sl4UA3ZFFNfxJTqJxwudGpO8zLhWYQ==";
const FINGERPRINT: &str = "SHA256:q5zaI6YdXzi9ATi3va7NkXCFgg0H8iF3eqAgOHObsdE";

/// 2026-11-21T19:00:00Z.
const NOW: Duration = Duration::from_secs(1_795_287_600);

fn signers(text: &str) -> AllowedSigners {
    AllowedSigners::parse(Path::new("signers"), text)
}

fn verified(line: &str) -> Result<Signer, SignatureProblem> {
    signers(line).verify("sortie-runners", b"hello\n", SIGNATURE.as_bytes(), UNIX_EPOCH + NOW)
}

#[test]
fn a_signature_of_an_allowed_key_names_its_signer() {
    let text = format!(
        "# those who make releases\n\nother@example.org {ANOTHER_KEY}\nrelease@example.org {KEY} a comment\n"
    );
    let signer = verified(&text).unwrap();
    let expected =
        Signer { principals: "release@example.org".into(), fingerprint: FINGERPRINT.into(), line: 4 };
    assert_eq!(signer, expected);
}

#[test]
fn options_are_obeyed_as_ssh_keygen_obeys_them() {
    for options in [
        "",
        "namespaces=\"sortie-runners\" ",
        "namespaces=\"file,sortie-*\" ",
        "NAMESPACES=\"sortie-runners\" ",
        "valid-after=\"20261121Z\",valid-before=\"20261122Z\" ",
        "valid-after=\"202611211900Z\" ",
        "valid-before=\"20261121190000Z\" ",
        "namespaces=\"a b,sortie-runners\",valid-after=\"20200101Z\" ",
    ] {
        verified(&format!("me {options}{KEY}")).unwrap_or_else(|error| panic!("{options}: {error}"));
    }
    for (options, why) in [
        ("namespaces=\"file\" ", "namespaces"),
        ("namespaces=\"*,!sortie-runners\" ", "namespaces"),
        ("valid-after=\"20261121190001Z\" ", "valid-after"),
        ("valid-before=\"20261121Z\" ", "valid-before"),
        ("valid-before=\"20271121\" ", "time zone"),
        ("valid-before=\"2027Z\" ", "YYYYMMDD"),
        ("valid-before=\"20270230Z\" ", "exists"),
        ("valid-before=\"20270é1Z\" ", "YYYYMMDD"),
        ("cert-authority ", "certificates"),
        ("no-touch-required ", "not known"),
        ("namespaces= ", "quotes"),
        ("valid-before=20270101Z ", "quotes"),
        ("namespaces=\"\" ", "quotes"),
        ("valid-after=\"20200101Z\",valid-after=\"20200102Z\" ", "twice"),
        ("namespaces=\"sortie-runners ", "quote"),
    ] {
        let error = verified(&format!("me {options}{KEY}")).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains(why), "{options}: {error}");
    }
}

#[test]
fn a_line_that_is_refused_spoils_no_other() {
    let text = format!("me namespaces=\"file\" {KEY}\nme frobnicate {KEY}\nme\n\"me\nyou {KEY}\n");
    assert_eq!(verified(&text).unwrap().line, 5);
}

#[test]
fn another_key_and_none_at_all_are_not_allowed() {
    for text in [format!("me {ANOTHER_KEY}"), String::new(), format!("me {}", &KEY[..40]), KEY.to_owned()] {
        let error = verified(&text).unwrap_err();
        assert!(matches!(error, SignatureProblem::NotAllowed { .. }), "{text}: {error}");
        assert!(error.to_string().contains(FINGERPRINT), "{error}");
    }
}

#[test]
fn a_refusal_names_a_few_lines_and_not_all() {
    let text = format!("me namespaces=\"file\" {KEY}\nme frobnicate {KEY}\n").repeat(1000);
    let error = verified(&text).unwrap_err().to_string();
    assert!(error.contains("line 1:") && error.contains("line 2 was passed over"), "{error}");
    assert!(error.len() < 1000, "{} bytes", error.len());
}

#[test]
fn a_small_rsa_key_vouches_for_nothing() {
    assert!(signers(&format!("me {SMALL_KEY}")).lines_passed_over()[0].contains("2048"));
}

#[test]
fn a_signature_for_another_use_or_of_other_content_is_refused() {
    let signers = signers(&format!("me {KEY}"));
    let verify = |namespace, content: &[u8]| {
        signers.verify(namespace, content, SIGNATURE.as_bytes(), UNIX_EPOCH + NOW).unwrap_err()
    };
    assert!(matches!(verify("file", b"hello\n"), SignatureProblem::Namespace { .. }));
    assert_eq!(verify("sortie-runners", b"hello"), SignatureProblem::Wrong);
    assert_eq!(verify("sortie-runners", b""), SignatureProblem::Wrong);
}

#[test]
fn a_signature_with_any_character_changed_is_refused() {
    let signers = signers(&format!("me {KEY}"));
    let body = SIGNATURE.find('\n').unwrap() + 1..SIGNATURE.rfind("\n-----END").unwrap();
    for at in body {
        let mut changed = SIGNATURE.as_bytes().to_vec();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        assert!(
            signers.verify("sortie-runners", b"hello\n", &changed, UNIX_EPOCH + NOW).is_err(),
            "the change of byte {at} passed"
        );
    }
    for cut in [0, 1, SIGNATURE.len() / 2, SIGNATURE.len() - 2] {
        let cut = &SIGNATURE.as_bytes()[..cut];
        assert!(signers.verify("sortie-runners", b"hello\n", cut, UNIX_EPOCH + NOW).is_err());
    }
    let endless = vec![b'A'; LARGEST_SIGNATURE + 1];
    let error = signers.verify("sortie-runners", b"", &endless, UNIX_EPOCH).unwrap_err();
    assert!(error.to_string().contains("too long"));
}
