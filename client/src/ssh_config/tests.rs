//! Tests of ssh_config reading: OpenSSH's rules, and what is refused.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::*;

/// A machine called `desk.example.org`, where `me` with the number 1000 sits.
#[derive(Default)]
struct Desk {
    /// Commands that succeed; every other fails.
    succeeding: Vec<&'static str>,
    /// Names that have an address.
    names: Vec<&'static str>,
    ran: RefCell<Vec<String>>,
    looked_up: RefCell<Vec<String>>,
}

impl World for Desk {
    fn variable(&self, name: &str) -> Option<OsString> {
        (name == "SITE").then(|| "berlin".into())
    }

    fn host_name(&self) -> Option<String> {
        Some("desk.example.org".into())
    }

    fn user_id(&self) -> u32 {
        ThisMachine.user_id()
    }

    fn home_of(&self, user: &str) -> Option<PathBuf> {
        (user == "other").then(|| "/home/other".into())
    }

    fn succeeds(&self, command: &str) -> io::Result<bool> {
        self.ran.borrow_mut().push(command.to_owned());
        Ok(self.succeeding.contains(&command))
    }

    fn resolves(&self, name: &str, _: AddressFamily) -> bool {
        self.looked_up.borrow_mut().push(name.to_owned());
        self.names.contains(&name)
    }

    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([192, 0, 2, 7])])
    }
}

fn file(path: &str, text: &str) -> ConfigFile {
    ConfigFile { path: path.into(), text: text.into(), of_user: true }
}

fn query(host: &str) -> Query<'_> {
    Query { host, local_user: Some("me"), home: Some(Path::new("/home/me")), ..Query::default() }
}

fn read_on(world: &Desk, text: &str, query: &Query<'_>) -> Result<HostConfig, ConfigError> {
    lookup(&[file("/home/u/.ssh/config", text)], query, world)
}

fn read(text: &str, host: &str) -> Result<HostConfig, ConfigError> {
    read_on(&Desk::default(), text, &query(host))
}

/// The user that `text` gives `host`, where the test is about which lines count.
fn user(text: &str, host: &str) -> Option<String> {
    read(text, host).unwrap().user
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
    let config = lookup(&files, &query("h"), &Desk::default()).unwrap();
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
    assert!(error.reason.contains("%L") && error.not_understood, "{error}");
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
    let text = "KnownHostsCommand none\nRemoteCommand none\nSessionType default\n";
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
fn proxies_rule_each_other_out_as_in_ssh() {
    let proxy = |text: &str| read(text, "web1").unwrap().proxy;
    let jump = |hosts: &[&str]| Proxy::Jump(hosts.iter().map(|host| host.parse().unwrap()).collect());
    assert_eq!(proxy("ProxyJump a\nProxyCommand c\n"), Some(jump(&["a"])));
    assert_eq!(proxy("ProxyCommand c %h\nProxyJump a\n"), Some(Proxy::Command("c %h".into())));
    assert_eq!(proxy("ProxyCommand none\nProxyJump a\n"), Some(Proxy::None));
    assert_eq!(proxy("ProxyJump none\nProxyJump a\n"), None);
    assert_eq!(proxy("ProxyJump none\nProxyCommand c\n"), Some(Proxy::Command("c".into())));
    assert_eq!(proxy("ProxyJump = u@a:22,ssh://b:3 # and on\n"), Some(jump(&["u@a:22", "b:3"])));
    let given = Query { proxy: Some(jump(&["mine"])), ..query("web1") };
    assert_eq!(read_on(&Desk::default(), "ProxyCommand c\n", &given).unwrap().proxy, Some(jump(&["mine"])));
    for line in ["ProxyJump a,,b", "ProxyJump -a", "ProxyJump a b", "ProxyJump x/y", "ProxyCommand \"a"] {
        assert_eq!(read(line, "web1").unwrap_err().line, 1, "{line}");
    }
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

mod blocks;

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,200}") {
        let _ = read(&text, "web1");
    }
}
