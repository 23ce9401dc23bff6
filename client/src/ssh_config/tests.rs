//! Tests of ssh_config reading: OpenSSH's rules, and what is refused.

use std::time::Duration;

use super::*;

fn file(path: &str, text: &str) -> ConfigFile {
    ConfigFile { path: path.into(), text: text.into(), include_base: None }
}

fn read(text: &str, host: &str) -> Result<HostConfig, ConfigError> {
    lookup(&[file("/home/u/.ssh/config", text)], host, None)
}

#[test]
fn the_first_value_wins_and_identity_files_add_up() {
    let config = read(
        "User first\nIdentityFile ~/.ssh/a\nHost web*\n  User second\n  Port 2222\n  IdentityFile ~/.ssh/b\nHost *\n  Port 1\n",
        "web1",
    )
    .unwrap();
    assert_eq!(config.user.as_deref(), Some("first"));
    assert_eq!(config.port, Some(2222));
    assert_eq!(config.identity_files, ["~/.ssh/a", "~/.ssh/b"]);
}

#[test]
fn an_earlier_file_wins_over_a_later_one() {
    let files = [file("/a", "Host *\nPort 2"), file("/b", "Port 3\nUser u")];
    let config = lookup(&files, "h", None).unwrap();
    assert_eq!((config.port, config.user.as_deref()), (Some(2), Some("u")));
}

#[test]
fn keywords_are_read_in_any_case_with_equals_signs_and_quotes() {
    let config = read(
        "HOST=web1\r\n\tuser = \"de ploy\"x\n  PORT\t=\t22\n IdentityFile \"/k/with space\" # comment\n  hostname='10.0.0.1'\n",
        "web1",
    );
    assert!(config.unwrap_err().reason.contains("' '"), "a user with a space is refused");
    let config = read(
        "HOST=web1\r\n PORT\t=\t22\n IdentityFile \"/k/with space\" # comment\n hostname='10.0.0.1'\n",
        "web1",
    )
    .unwrap();
    assert_eq!(config.port, Some(22));
    assert_eq!(config.identity_files, ["/k/with space"]);
    assert_eq!(config.host_name.as_deref(), Some("10.0.0.1"));
}

#[test]
fn host_blocks_take_globs_and_negation() {
    let text = "Host *.prod !db.prod\n  User deploy\n";
    assert_eq!(read(text, "web.prod").unwrap().user.as_deref(), Some("deploy"));
    assert_eq!(read(text, "db.prod").unwrap().user, None);
    assert_eq!(read(text, "web.test").unwrap().user, None);
}

#[test]
fn tokens_in_host_names_are_expanded_or_refused() {
    assert_eq!(
        read("HostName %h.example.org\n", "web1").unwrap().host_name.as_deref(),
        Some("web1.example.org")
    );
    assert!(read("HostName %%h\n", "web1").is_ok_and(|c| c.host_name.as_deref() == Some("%h")));
    let error = read("Host web1\n  HostName %L.x\n", "web1").unwrap_err();
    assert_eq!(error.line, 2);
    assert!(error.reason.contains("%L"), "{error}");
    assert!(read("HostName -oProxyCommand=x\n", "web1").is_err());
}

#[test]
fn keywords_without_bearing_are_passed_over() {
    let text = "LogLevel DEBUG\nControlMaster auto\nControlPath ~/.ssh/%C\nForwardX11 yes\nSendEnv LANG LC_*\nHashKnownHosts yes\nGSSAPIAuthentication yes\nUser u\n";
    assert_eq!(read(text, "web1").unwrap().user.as_deref(), Some("u"));
}

#[test]
fn what_cannot_be_obeyed_is_refused_by_name_file_and_line() {
    for line in [
        "CanonicalizeHostname yes",
        "HostbasedAuthentication yes",
        "KbdInteractiveDevices pam",
        "KnownHostsCommand /bin/true",
        "PKCS11Provider p",
        "ProxyUseFdpass yes",
        "RefuseConnection \"not this one\"",
        "RemoteCommand id",
        "SessionType none",
    ] {
        let error = read(&format!("\nHost web1\n  {line}\n"), "web1").unwrap_err();
        let keyword = line.split(' ').next().unwrap();
        assert_eq!((error.file.as_path(), error.line), (Path::new("/home/u/.ssh/config"), 3), "{line}");
        assert!(error.reason.starts_with(keyword), "{error}");
        assert!(read(&format!("Host other\n  {line}\n"), "web1").is_ok(), "{line} for another host");
    }
}

#[test]
fn values_that_change_nothing_are_not_refused() {
    let text = "CanonicalizeHostname no\nKnownHostsCommand none\nRemoteCommand none\nSessionType default\n";
    assert_eq!(read(text, "web1"), Ok(HostConfig::default()));
}

#[test]
fn everything_that_is_obeyed_is_read() {
    let text = "AddressFamily inet6\nBindAddress ::1\nBindInterface lo\nConnectTimeout 1m\nConnectionAttempts 3\n\
                ServerAliveInterval 5\nServerAliveCountMax 2\nProxyJump a,b@c:2222\nProxyCommand nc %h %p\n\
                CertificateFile ~/c\nIdentityAgent $AGENT\nPreferredAuthentications publickey,password\n\
                PubkeyAuthentication unbound\nPasswordAuthentication no\nChallengeResponseAuthentication no\n\
                NumberOfPasswordPrompts 1\nBatchMode yes\nHostKeyAlias Web\nHashKnownHosts yes\nRevokedHostKeys /r /s\n\
                Ciphers aes128-gcm@openssh.com\nMACs -hmac*\nHostKeyAlgorithms +ssh-rsa\nCASignatureAlgorithms ^a\n\
                PubkeyAcceptedKeyTypes x\nRequiredRSASize 3072\nRekeyLimit 1G 30m\nTag t\n";
    let config = read(text, "web1").unwrap();
    let expected = HostConfig {
        address_family: Some(AddressFamily::Inet6),
        bind_address: Some("::1".into()),
        bind_interface: Some("lo".into()),
        connect_timeout: Some(Some(Duration::from_secs(60))),
        connection_attempts: Some(3),
        server_alive_interval: Some(Duration::from_secs(5)),
        server_alive_count_max: Some(2),
        proxy: Some(Proxy::Jump(vec!["a".parse().unwrap(), "b@c:2222".parse().unwrap()])),
        certificate_files: vec!["~/c".into()],
        identity_agent: Some("$AGENT".into()),
        preferred_authentications: Some(vec!["publickey".into(), "password".into()]),
        pubkey_authentication: Some(true),
        password_authentication: Some(false),
        kbd_interactive_authentication: Some(false),
        number_of_password_prompts: Some(1),
        batch_mode: Some(true),
        host_key_alias: Some("web".into()),
        hash_known_hosts: Some(true),
        revoked_host_keys: Some(vec!["/r".into(), "/s".into()]),
        ciphers: Some("aes128-gcm@openssh.com".into()),
        macs: Some("-hmac*".into()),
        host_key_algorithms: Some("+ssh-rsa".into()),
        ca_signature_algorithms: Some("^a".into()),
        pubkey_accepted_algorithms: Some("x".into()),
        required_rsa_size: Some(3072),
        rekey_limit: Some((1 << 30, Some(Duration::from_secs(1800)))),
        tag: Some("t".into()),
        places: config.places.clone(),
        ..HostConfig::default()
    };
    assert_eq!(config, expected);
    assert_eq!(config.places["proxy"].line, 8, "the first of both counts");
}

#[test]
fn a_match_block_that_cannot_apply_is_skipped_and_any_other_refused() {
    let body = "  User other\n  RemoteCommand b\n";
    assert_eq!(read(&format!("Match host db*\n{body}"), "web1"), Ok(HostConfig::default()));
    assert_eq!(
        read(&format!("Match originalhost db1,db2 user x\n{body}"), "web1"),
        Ok(HostConfig::default())
    );
    for line in ["Match exec true", "Match host web*", "Match user x", "Match final"] {
        assert!(read(&format!("{line}\n{body}"), "web1").unwrap_err().reason.contains("Match"), "{line}");
    }
    let renamed = "HostName db7\nMatch host db*\n  User x\n";
    assert!(read(renamed, "web1").is_err(), "the block may apply to the host's other name");
}

#[test]
fn match_all_always_applies() {
    assert_eq!(read("Host other\nMatch all\n  User u\n", "web1").unwrap().user.as_deref(), Some("u"));
}

#[test]
fn included_files_are_read_where_they_stand() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path();
    std::fs::create_dir(base.join("config.d")).unwrap();
    std::fs::write(base.join("config.d/10-a.conf"), "Host web*\n  Port 2\nHost other\n  RemoteCommand b\n")
        .unwrap();
    std::fs::write(base.join("config.d/20-b.conf"), "Port 3\nUser b\n").unwrap();
    std::fs::write(base.join("config.d/.hidden.conf"), "User hidden\n").unwrap();
    std::fs::write(base.join("bad"), "\nRemoteCommand b\n").unwrap();
    std::fs::write(base.join("loop"), "Include loop\n").unwrap();
    let with = |text: &str| {
        let main = ConfigFile { include_base: Some(base.to_owned()), ..file("/main", text) };
        lookup(&[main], "web1", Some(base))
    };
    let config = with("Include config.d/*.conf\nUser main\n").unwrap();
    assert_eq!((config.port, config.user.as_deref()), (Some(2), Some("b")));
    assert_eq!(with("Include none.d/*.conf ~/config.d/2*\n").unwrap().port, Some(3));
    assert_eq!(with("Host other\n  Include bad\n"), Ok(HostConfig::default()), "the block does not apply");
    let error = with("Include bad\n").unwrap_err();
    assert_eq!((error.file, error.line), (base.join("bad"), 2));
    assert!(with("Include loop\n").unwrap_err().reason.contains("too deep"));
    assert!(with("Host x\n  Port 1\nHost *\n  Include config.d/*\n  User main\n").unwrap().port == Some(2));
}

#[test]
fn unknown_keywords_are_refused_unless_told_otherwise() {
    assert!(read("UseKeychain yes\n", "web1").unwrap_err().reason.contains("UseKeychain"));
    assert!(read("IgnoreUnknown Use*\nUseKeychain yes\n", "web1").is_ok());
    assert!(
        read("Host other\nUseKeychain yes\n", "web1").is_err(),
        "in a block for others as well, as in ssh"
    );
    assert!(read("UseKeychain yes\nIgnoreUnknown Use*\n", "web1").is_err(), "too late");
}

#[test]
fn no_host_key_check_is_read_as_accept_new_with_a_warning() {
    let config = read("StrictHostKeyChecking no\n", "web1").unwrap();
    assert_eq!(config.host_key_policy, Some(HostKeyPolicy::AcceptNew));
    assert!(config.warnings[0].contains("line 1") && config.warnings[0].contains("accept-new"));
    for (value, policy) in [
        ("yes", HostKeyPolicy::Strict),
        ("ask", HostKeyPolicy::Strict),
        ("accept-new", HostKeyPolicy::AcceptNew),
    ] {
        let config = read(&format!("StrictHostKeyChecking {value}\n"), "web1").unwrap();
        assert_eq!((config.host_key_policy, config.warnings), (Some(policy), vec![]));
    }
}

#[test]
fn known_hosts_files_may_be_several_or_none() {
    let config = read("UserKnownHostsFile /a ~/b\nGlobalKnownHostsFile none\n", "web1").unwrap();
    assert_eq!(config.user_known_hosts, Some(vec!["/a".into(), "~/b".into()]));
    assert_eq!(config.global_known_hosts, Some(vec![]));
}

#[test]
fn malformed_lines_are_errors() {
    for text in [
        "Port\n",
        "Port x\n",
        "Port 0\n",
        "User \"a\n",
        "IdentitiesOnly maybe\n",
        "Host\n",
        "=x\n",
        "Port 1 2\n",
    ] {
        assert!(read(text, "web1").is_err(), "{text:?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,200}") {
        let _ = read(&text, "web1");
    }
}
