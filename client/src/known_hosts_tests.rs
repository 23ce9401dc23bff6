//! Tests of known_hosts against the grammar of sshd(8), and against files that `ssh-keygen` made.

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

fn changed(line: usize) -> Verdict {
    Verdict::Changed { file: "/kh".into(), line }
}

#[test]
fn plain_names_wildcards_and_negation_are_matched() {
    let text = line("web1,10.0.0.*,*.example.org,!db.example.org", &ed(1));
    for host in ["web1", "WEB1", "10.0.0.7", "a.example.org"] {
        assert_eq!(check(&text, host, 22, &ed(1)), Verdict::Known, "{host}");
    }
    for host in ["web2", "db.example.org", "example.org"] {
        assert_eq!(check(&text, host, 22, &ed(1)), Verdict::Unknown, "{host}");
    }
    assert_eq!(
        check(&line("Web1", &ed(1)), "web1", 22, &ed(1)),
        Verdict::Known,
        "names are read in any case"
    );
}

#[test]
fn tabs_comments_and_broken_lines_do_not_disturb() {
    let text = format!(
        "# c\n\nweb1 ssh-ed25519 !!!\nweb1 ssh-ed25519\n@unknown web1 x y\nweb1\tssh-ed25519\t{} comment # more\n",
        STANDARD.encode(&ed(1).blob)
    );
    assert_eq!(check(&text, "web1", 22, &ed(1)), Verdict::Known);
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
    assert_eq!(check(&text, "web1", 22, &ed(2)), Verdict::Known);
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
    assert_eq!(check(&text, "web1", 22, &ed(1)), Verdict::Revoked { file: "/kh".into(), line: 2 });
    assert_eq!(check(&text, "web1", 22, &ed(2)), changed(1), "another key is not revoked by it");
}

#[test]
fn a_cert_authority_does_not_vouch_for_a_plain_key() {
    let text = "@cert-authority ".to_owned() + &line("web1", &ed(1));
    assert_eq!(check(&text, "web1", 22, &ed(1)), Verdict::Unknown);
}

#[test]
fn other_ports_have_entries_of_their_own() {
    let text = line("[web1]:2222", &ed(1)) + &line("web1", &ed(2));
    assert_eq!(check(&text, "web1", 2222, &ed(1)), Verdict::Known);
    assert_eq!(check(&text, "web1", 2222, &ed(2)), changed(1));
    assert_eq!(check(&text, "web1", 22, &ed(1)), changed(2));
    assert_eq!(
        check(&text, "web1", 2200, &ed(2)),
        Verdict::Known,
        "a key of the standard port is good elsewhere"
    );
    assert_eq!(check(&text, "web1", 2200, &ed(3)), Verdict::Unknown, "another server may listen there");
    assert_eq!(check(&line("[*.lan]:2222", &ed(1)), "a.lan", 2222, &ed(1)), Verdict::Known);
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
    assert_eq!(check(&text, "web1", 22, &ed(1)), Verdict::Known);
    assert_eq!(check(&text, "web1", 2222, &ed(2)), Verdict::Known);
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
    assert_eq!(known(&text).algorithms(&HostName::new("web1", 99)), ["ssh-rsa", "ssh-ed25519"]);
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
    append(&file, &host, &ed(1)).unwrap();
    append(&file, &host, &ed(1)).unwrap();
    append(&file, &HostName::new("web2", 22), &ed(2)).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, line("[web1]:2222", &ed(1)) + &line("web2", &ed(2)));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    assert!(append(&file, &host, &ed(7)).is_err(), "a key that changed meanwhile is not added");
}

#[test]
fn a_last_line_without_newline_is_not_spoilt_by_an_append() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("known_hosts");
    std::fs::write(&file, line("web1", &ed(1)).trim_end()).unwrap();
    append(&file, &HostName::new("web2", 22), &ed(2)).unwrap();
    let hosts = KnownHosts::load([&file]).unwrap();
    assert_eq!(hosts.check(&HostName::new("web1", 22), &ed(1)), Verdict::Known);
    assert_eq!(hosts.check(&HostName::new("web2", 22), &ed(2)), Verdict::Known);
}

#[test]
fn concurrent_appends_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("known_hosts");
    std::thread::scope(|scope| {
        for n in 0..16u8 {
            let file = &file;
            scope.spawn(move || append(file, &HostName::new(&format!("h{n}"), 22), &ed(n)).unwrap());
        }
    });
    let hosts = KnownHosts::load([&file]).unwrap();
    for n in 0..16u8 {
        assert_eq!(hosts.check(&HostName::new(&format!("h{n}"), 22), &ed(n)), Verdict::Known);
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_matcher_panic(text in "(?s)(@revoked |\\|1\\|){0,1}.{0,120}", host in ".{0,20}") {
        let _ = check(&text, &host, 22, &ed(1));
    }
}
