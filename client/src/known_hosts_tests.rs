//! Tests of known_hosts against the grammar of sshd(8), and against files that `ssh-keygen` made.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use super::line::hashed_name_matches;
use super::*;

fn key(algorithm: &str, seed: u8) -> HostKey {
    let mut blob = (algorithm.len() as u32).to_be_bytes().to_vec();
    blob.extend_from_slice(algorithm.as_bytes());
    blob.extend_from_slice(&[0, 0, 0, 4, seed, seed, seed, seed]);
    HostKey { algorithm: algorithm.into(), blob }
}

fn ed(seed: u8) -> HostKey {
    key("ssh-ed25519", seed)
}

fn line(names: &str, key: &HostKey) -> String {
    format!("{names} {} {}\n", key.algorithm, STANDARD.encode(&key.blob))
}

fn known(text: &str) -> KnownHosts {
    KnownHosts::of_text(text)
}

fn check(text: &str, host: &str, port: u16, key: &HostKey) -> Verdict {
    known(text).check(&HostName::new(host, port), key)
}

fn at(line: usize) -> Place {
    Place { file: "/kh".into(), line }
}

fn changed(line: usize) -> Verdict {
    Verdict::Changed(at(line))
}

fn known_at(line: usize) -> Verdict {
    Verdict::Known(at(line))
}

#[test]
fn plain_names_wildcards_and_negation_are_matched() {
    let text = line("web1,10.0.0.*,*.example.org,!db.example.org", &ed(1));
    for host in ["web1", "WEB1", "10.0.0.7", "a.example.org"] {
        assert_eq!(check(&text, host, 22, &ed(1)), known_at(1), "{host}");
    }
    for host in ["web2", "db.example.org", "example.org"] {
        assert_eq!(check(&text, host, 22, &ed(1)), Verdict::Unknown, "{host}");
    }
    assert_eq!(check(&line("Web1", &ed(1)), "web1", 22, &ed(1)), known_at(1), "names are read in any case");
}

#[test]
fn tabs_comments_and_broken_lines_do_not_disturb() {
    let text = format!(
        "# c\n\nweb1 ssh-ed25519 !!!\nweb1 ssh-ed25519\n@unknown web1 x y\nweb1\tssh-ed25519\t{} comment # more\n",
        STANDARD.encode(&ed(1).blob)
    );
    assert_eq!(check(&text, "web1", 22, &ed(1)), known_at(6));
    assert_eq!(check(&text, "web1", 22, &ed(2)), changed(6), "lines are counted with comments");
}

#[test]
fn a_line_whose_type_is_not_that_of_its_key_vouches_for_nothing() {
    let text = format!("web1 ssh-rsa {}\n", STANDARD.encode(&ed(1).blob));
    assert_eq!(check(&text, "web1", 22, &ed(1)), Verdict::Unknown);
}

#[test]
fn any_of_several_keys_of_a_host_will_do() {
    let text = line("web1", &ed(1)) + &line("web1", &ed(2)) + &line("web1", &key("ssh-rsa", 3));
    assert_eq!(check(&text, "web1", 22, &ed(2)), known_at(2));
    assert_eq!(check(&text, "web1", 22, &ed(9)), changed(1));
    assert_eq!(
        check(&text, "web1", 22, &key("ssh-rsa", 9)),
        changed(3),
        "the line with the same type is named"
    );
}

#[test]
fn a_host_known_by_another_type_of_key_only_is_not_unknown() {
    // Otherwise accept-new would let anybody in who shows a key of a type not seen before.
    assert_eq!(check(&line("web1", &key("ssh-rsa", 1)), "web1", 22, &ed(1)), changed(1));
}

#[test]
fn a_revoked_key_is_refused_even_when_it_is_also_known() {
    let text = line("web1", &ed(1)) + "@revoked " + &line("*", &ed(1));
    assert_eq!(check(&text, "web1", 22, &ed(1)), Verdict::Revoked(at(2)));
    assert_eq!(check(&text, "web1", 22, &ed(2)), changed(1), "another key is not revoked by it");
}

#[test]
fn a_key_revoked_for_a_host_is_revoked_on_all_its_ports() {
    let text = line("[web1]:2222", &ed(1)) + "@revoked " + &line("web1", &ed(1));
    assert_eq!(check(&text, "web1", 2222, &ed(1)), Verdict::Revoked(at(2)));
    let text = line("web1", &ed(1)) + "@revoked " + &line("[web1]:2222", &ed(1));
    assert_eq!(
        check(&text, "web1", 22, &ed(1)),
        known_at(1),
        "but one revoked for a port is so on that alone"
    );
}

#[test]
fn a_revoked_certificate_revokes_the_key_inside() {
    let certificate = {
        let mut blob = Vec::new();
        let own = &ed(1).blob[19..];
        for string in [b"ssh-ed25519-cert-v01@openssh.com".as_slice(), b"nonce", own, b"the rest"] {
            blob.extend((string.len() as u32).to_be_bytes());
            blob.extend(string);
        }
        HostKey::from_blob(blob).unwrap()
    };
    let text = line("web1", &ed(1)) + "@revoked " + &line("*", &certificate);
    assert_eq!(check(&text, "web1", 22, &ed(1)), Verdict::Revoked(at(2)));
}

#[test]
fn an_authority_vouches_for_the_names_of_its_line_alone() {
    let text = line("web1", &ed(1)) + "@cert-authority " + &line("*.example.org,!db.example.org", &ed(2));
    let authority = |host, port, key| known(&text).authority(&HostName::new(host, port), &key);
    assert_eq!(authority("a.example.org", 22, ed(2)), Some(at(2)));
    assert_eq!(
        authority("A.Example.ORG", 2222, ed(2)),
        Some(at(2)),
        "as a plain key, it is good on every port"
    );
    assert_eq!(authority("db.example.org", 22, ed(2)), None);
    assert_eq!(authority("a.example.org", 22, ed(1)), None);
    assert_eq!(authority("web1", 22, ed(1)), None, "a host's own key is no authority");
    assert!(known(&text).has_authority(&HostName::new("a.example.org", 22)));
    assert!(!known(&text).has_authority(&HostName::new("web1", 22)));
}

#[test]
fn an_alias_stands_for_host_and_port() {
    let text =
        line("Web1-Key", &ed(1)) + &line("web1", &ed(2)) + "@cert-authority " + &line("web1-key", &ed(3));
    let alias = HostName::alias("web1-KEY");
    assert_eq!(known(&text).check(&alias, &ed(1)), known_at(1));
    assert_eq!(known(&text).check(&alias, &ed(2)), changed(1));
    assert_eq!(known(&text).authority(&alias, &ed(3)), Some(at(3)));
    assert_eq!((alias.entry(), alias.principal()), ("web1-key", "web1-key"));
}

#[test]
fn an_ipv6_address_has_brackets_with_a_port_only() {
    let text = line("fe80::1", &ed(1)) + &line("[fe80::1]:2222", &ed(2));
    assert_eq!(check(&text, "FE80::1", 22, &ed(1)), known_at(1));
    assert_eq!(check(&text, "fe80::1", 2222, &ed(2)), known_at(2));
}

#[test]
fn a_cert_authority_does_not_vouch_for_a_plain_key() {
    let text = "@cert-authority ".to_owned() + &line("web1", &ed(1));
    assert_eq!(check(&text, "web1", 22, &ed(1)), Verdict::Unknown);
}

#[test]
fn other_ports_have_entries_of_their_own() {
    let text = line("[web1]:2222", &ed(1)) + &line("web1", &ed(2));
    assert_eq!(check(&text, "web1", 2222, &ed(1)), known_at(1));
    assert_eq!(check(&text, "web1", 2222, &ed(2)), changed(1));
    assert_eq!(check(&text, "web1", 22, &ed(1)), changed(2));
    assert_eq!(
        check(&text, "web1", 2200, &ed(2)),
        known_at(2),
        "a key of the standard port is good elsewhere"
    );
    assert_eq!(check(&text, "web1", 2200, &ed(3)), Verdict::Unknown, "another server may listen there");
    assert_eq!(check(&line("[*.lan]:2222", &ed(1)), "a.lan", 2222, &ed(1)), known_at(1));
}

#[test]
fn hashed_names_are_found() {
    // HMAC-SHA1 of the entry as it would stand in plain, keyed by the salt.
    let hash = |name: &str| {
        let mut mac = Hmac::<Sha1>::new_from_slice(b"salt salt salt salt!").unwrap();
        mac.update(name.as_bytes());
        format!(
            "|1|{}|{}",
            STANDARD.encode(b"salt salt salt salt!"),
            STANDARD.encode(mac.finalize().into_bytes())
        )
    };
    let text = line(&hash("web1"), &ed(1)) + &line(&hash("[web1]:2222"), &ed(2)) + &line("|1|broken", &ed(3));
    assert_eq!(check(&text, "web1", 22, &ed(1)), known_at(1));
    assert_eq!(check(&text, "web1", 2222, &ed(2)), known_at(2));
    assert_eq!(check(&text, "web2", 22, &ed(1)), Verdict::Unknown);
}

#[test]
fn a_name_hashed_by_ssh_keygen_is_found() {
    // `ssh-keygen -H` of a file with "web1.example.org ssh-ed25519 …"; salt and hash as it wrote them.
    assert_eq!(
        hashed_name_matches("F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg=", "192.168.1.61"),
        Some(true)
    );
    assert_eq!(
        hashed_name_matches("F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg=", "192.168.1.62"),
        Some(false)
    );
}

#[test]
fn the_types_of_the_known_keys_come_in_order() {
    let text = line("web1", &key("ssh-rsa", 1)) + &line("web1", &ed(1)) + &line("web1", &key("ssh-rsa", 2));
    assert_eq!(known(&text).algorithms(&HostName::new("web1", 22)), ["ssh-rsa", "ssh-ed25519"]);
    assert!(known(&text).algorithms(&HostName::new("web1", 99)).is_empty());
    assert!(known(&text).algorithms(&HostName::new("web2", 22)).is_empty());
}

#[test]
fn a_missing_file_holds_nothing_and_an_unreadable_one_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    assert!(KnownHosts::load([directory.path().join("none")]).is_ok());
    assert_eq!(KnownHosts::load([directory.path()]).unwrap_err().0, directory.path());
}

#[test]
fn new_keys_are_appended_once_with_strict_modes() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(".ssh/known_hosts");
    let host = HostName::new("web1", 2222);
    append(&file, &host, &ed(1), false).unwrap();
    append(&file, &host, &ed(1), false).unwrap();
    append(&file, &HostName::new("web2", 22), &ed(2), false).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, line("[web1]:2222", &ed(1)) + &line("web2", &ed(2)));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    assert!(append(&file, &host, &ed(7), false).is_err(), "a key that changed meanwhile is not added");
}

#[test]
fn a_name_is_hashed_where_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("known_hosts");
    for (host, key) in [(HostName::new("web1", 22), ed(1)), (HostName::new("web1", 2222), ed(2))] {
        append(&file, &host, &key, true).unwrap();
        append(&file, &host, &key, true).unwrap();
    }
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("|1|")).count(), 2, "{text}");
    assert!(!text.contains("web1"), "{text}");
    let hosts = KnownHosts::load([&file]).unwrap();
    assert!(matches!(hosts.check(&HostName::new("web1", 2222), &ed(2)), Verdict::Known(_)));
    assert_eq!(hosts.check(&HostName::new("web2", 22), &ed(2)), Verdict::Unknown);
}

#[test]
fn a_name_that_is_a_pattern_is_never_written() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("known_hosts");
    for alias in ["*", "web?", "a,b", "!web1", "a b", "#x", "@revoked", "[x]", "|1|x|y", ""] {
        assert!(append(&file, &HostName::alias(alias), &ed(1), false).is_err(), "{alias}");
    }
    assert!(!file.exists());
}

#[test]
fn nothing_is_remembered_where_nothing_can_be() {
    append("/dev/null".as_ref(), &HostName::new("web1", 22), &ed(1), false).unwrap();
}

#[test]
fn a_last_line_without_newline_is_not_spoilt_by_an_append() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("known_hosts");
    std::fs::write(&file, line("web1", &ed(1)).trim_end()).unwrap();
    append(&file, &HostName::new("web2", 22), &ed(2), false).unwrap();
    let hosts = KnownHosts::load([&file]).unwrap();
    assert!(matches!(hosts.check(&HostName::new("web1", 22), &ed(1)), Verdict::Known(_)));
    assert!(matches!(hosts.check(&HostName::new("web2", 22), &ed(2)), Verdict::Known(_)));
}

#[test]
fn concurrent_appends_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("known_hosts");
    std::thread::scope(|scope| {
        for n in 0..16u8 {
            let file = &file;
            scope.spawn(move || {
                append(file, &HostName::new(&format!("h{n}"), 22), &ed(n), n % 2 == 0).unwrap();
            });
        }
    });
    let hosts = KnownHosts::load([&file]).unwrap();
    for n in 0..16u8 {
        assert!(matches!(hosts.check(&HostName::new(&format!("h{n}"), 22), &ed(n)), Verdict::Known(_)));
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_matcher_panic(text in "(?s)(@revoked |\\|1\\|){0,1}.{0,120}", host in ".{0,20}") {
        let _ = check(&text, &host, 22, &ed(1));
    }
}
