//! Which lines count: Match, Include, and the second reading after a host's name became canonical.

use super::*;

#[test]
fn match_holds_every_criterion_against_what_is_known_so_far() {
    for (line, expected) in [
        ("all", true),
        ("!all", false),
        ("host web*", true),
        ("host WEB1", true),
        ("host db*,web1", true),
        ("host *,!web1", false),
        ("!host db*", true),
        ("host=web1", true),
        ("originalhost web1", true),
        ("user me", true),
        ("user root", false),
        ("localuser m?", true),
        ("localuser me user root", false),
        ("localuser me !user root", true),
        ("tagged \"\"", true),
        ("tagged x", false),
        ("sessiontype exec", true),
        ("sessiontype shell", false),
        ("localnetwork 192.0.2.0/24", true),
        ("localnetwork 10.0.0.0/8,198.51.100.0/24", false),
        ("canonical", false),
        ("!canonical all", true),
        ("host web1 # user root", true),
        ("HOST web1 User \"me\"", true),
    ] {
        let found = user(&format!("Match {line}\n  User x\n"), "web1");
        assert_eq!(found.is_some(), expected, "Match {line}");
    }
}

#[test]
fn match_sees_the_name_user_and_tag_that_were_set_before_it() {
    assert_eq!(user("HostName db7\nMatch host db*\n  User x\n", "web1").as_deref(), Some("x"));
    assert_eq!(user("HostName %h.lan\nMatch host *.lan\n  User x\n", "web1").as_deref(), Some("x"));
    assert_eq!(user("Match host db*\n  User x\nMatch all\n  HostName db7\n", "web1"), None);
    assert_eq!(user("HostName db7\nMatch originalhost db*\n  User x\n", "web1"), None);
    let port = |text: &str| read(text, "web1").unwrap().port;
    assert_eq!(port("User root\nMatch user root\n  Port 1\n"), Some(1));
    assert_eq!(port("Tag a\nMatch tagged a,b\n  Port 1\n"), Some(1));
    let given = Query { user: Some("root"), ..query("web1") };
    let config = read_on(&Desk::default(), "User x\nMatch user root\n  Port 1\n", &given).unwrap();
    assert_eq!(
        (config.port, config.user.as_deref()),
        (Some(1), Some("root")),
        "the caller's word comes first"
    );
}

#[test]
fn exec_runs_a_command_with_tokens_and_only_while_all_else_holds() {
    let text = "Match host web* exec \"test %h = web1 && id -u %u\"\n  User x\n\
                Match host db* exec \"never\"\n  User y\nMatch !exec \"false %% %p %n\"\n  Port 1\n";
    let desk = Desk { succeeding: vec!["test web1 = web1 && id -u me"], ..Desk::default() };
    let config = read_on(&desk, text, &query("web1")).unwrap();
    assert_eq!((config.user.as_deref(), config.port), (Some("x"), Some(1)));
    assert_eq!(desk.ran.into_inner(), ["test web1 = web1 && id -u me", "false % 22 web1"]);
}

#[test]
fn a_match_that_cannot_be_judged_is_refused_by_its_line() {
    for (line, not_understood) in [
        ("", false),
        ("host", false),
        ("host \"\"", false),
        ("all host web1", false),
        ("host web1 user me all", false),
        ("localnetwork 10.0.0.1/8", false),
        ("exec \"%\"", false),
        ("command id", false),
        ("exec \"%Q\"", true),
        ("version OpenSSH_9*", true),
        ("weather fine", true),
    ] {
        let error = read(&format!("\nMatch {line}\n  User x\n"), "web1").unwrap_err();
        assert_eq!((error.line, error.not_understood), (2, not_understood), "{line:?}: {error}");
        assert!(error.reason.contains("Match"), "{error}");
    }
}

#[test]
fn a_final_match_is_obeyed_in_a_second_reading_that_overrules_nothing() {
    let text = "Match final\n  User last\n  Port 9\nHost web1\n  User first\n  IdentityFile k\n";
    let config = read(text, "web1").unwrap();
    assert_eq!((config.user.as_deref(), config.port), (Some("first"), Some(9)));
    assert_eq!(config.identity_files, ["k"], "what is read twice does not add up twice");
    assert_eq!(user("Match !final\n  User x\n", "web1").as_deref(), Some("x"));
    assert_eq!(user("Match canonical\n  User x\n", "web1"), None, "nothing asks for a second reading");
    let renamed = "HostName db1\nHost db1\n  Port 7\nMatch final host db1\n  User last\n";
    let config = read(renamed, "web1").unwrap();
    assert_eq!(
        (config.port, config.user.as_deref()),
        (Some(7), Some("last")),
        "Host is held against the new name"
    );
}

#[test]
fn names_become_canonical_in_the_first_domain_that_knows_them() {
    let text = "CanonicalizeHostname yes\nCanonicalDomains a.example B.example\nHost *.b.example\n  User x\n";
    let desk = Desk { names: vec!["web1.b.example.", "web1.c.b.example."], ..Desk::default() };
    let config = read_on(&desk, text, &query("WEB1")).unwrap();
    assert_eq!((config.host_name.as_deref(), config.user.as_deref()), (Some("web1.b.example"), Some("x")));
    assert_eq!(desk.looked_up.into_inner(), ["web1.a.example.", "web1.b.example."]);

    let desk = Desk { names: vec!["web1.c.b.example."], ..Desk::default() };
    let config = read_on(&desk, text, &query("web1.c")).unwrap();
    assert_eq!(config.host_name.as_deref(), Some("web1.c.b.example"), "one dot is still looked up");
    let config = read_on(&desk, text, &query("web1.c.b")).unwrap();
    assert_eq!(config.host_name, None, "two dots are not");
    let config = read_on(&desk, &format!("CanonicalizeMaxDots 2\n{text}"), &query("web1.c.b")).unwrap();
    assert_eq!(config.host_name, None, "no domain knows it");
    let error = read_on(&desk, &format!("CanonicalizeFallbackLocal no\n{text}"), &query("web9")).unwrap_err();
    assert_eq!(error.line, 2, "{error}");
    assert_eq!(
        read_on(&desk, text, &query("web1.c.b.example.")).unwrap().user.as_deref(),
        Some("x"),
        "anchored"
    );
}

#[test]
fn names_behind_a_proxy_become_canonical_only_if_always() {
    let domains = "CanonicalDomains a.example\nProxyJump b\n";
    let desk = Desk { names: vec!["web1.a.example."], ..Desk::default() };
    let name = |text: String| read_on(&desk, &text, &query("web1")).unwrap().host_name;
    assert_eq!(name(format!("CanonicalizeHostname yes\n{domains}")), None);
    assert_eq!(name(format!("CanonicalizeHostname always\n{domains}")).as_deref(), Some("web1.a.example"));
    assert_eq!(name(domains.into()), None, "off by default");
}

#[test]
fn aliases_of_names_are_left_to_ssh() {
    let text = "CanonicalizeHostname yes\nCanonicalDomains a\nCanonicalizePermittedCNAMEs *.a:*.b\n";
    let error = read(text, "web1").unwrap_err();
    assert_eq!((error.line, error.not_understood), (3, true), "{error}");
    assert!(read(&text.replace("*.a:*.b", "none"), "web1").is_ok());
}

#[test]
fn addresses_are_written_as_the_system_writes_them() {
    let name = |host: &str| read("", host).unwrap().host_name;
    assert_eq!(name("2001:DB8::0:1").as_deref(), Some("2001:db8::1"));
    assert_eq!(name("fe80::0:1%eth0").as_deref(), Some("fe80::1%eth0"));
    assert_eq!(name("192.0.2.1"), None);
    assert_eq!(name("Web1").as_deref(), Some("web1"));
}

#[test]
fn included_files_are_read_where_they_stand() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    let base = home.join(".ssh");
    std::fs::create_dir_all(base.join("config.d/directory.conf")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(base.join(name), text).unwrap();
    write("config.d/10-a.conf", "Host web*\n  Port 2\nHost other\n  RemoteCommand b\n");
    write("config.d/20-b.conf", "Port 3\nUser b\n");
    write("config.d/.hidden.conf", "User hidden\n");
    write("web1-berlin", "User tokens\n");
    write("bad", "\nRemoteCommand b\n");
    write("worse", "\nRemoteComand b\n");
    write("loop", "Include loop\n");
    let with = |text: &str| {
        let query = Query { home: Some(home), ..query("web1") };
        lookup(&[file("/main", text)], &query, &Desk::default())
    };
    let config = with("Include config.d/*.conf\nUser main\n").unwrap();
    assert_eq!((config.port, config.user.as_deref()), (Some(2), Some("b")));
    assert_eq!(with("Include none.d/*.conf ~/.ssh/config.d/2*\n").unwrap().port, Some(3));
    assert_eq!(with("Include %h-${SITE}\n").unwrap().user.as_deref(), Some("tokens"));
    assert_eq!(with("Host other\n  Include bad\n"), Ok(HostConfig::default()), "the block does not apply");
    let error = with("Host other\n  Include worse\n").unwrap_err();
    assert_eq!((error.file, error.line), (base.join("worse"), 2), "but its lines are checked");
    let error = with("Include bad\n").unwrap_err();
    assert_eq!((error.file, error.line), (base.join("bad"), 2));
    assert!(with("Include loop\n").unwrap_err().reason.contains("too deep"));
    assert!(with("Host x\n  Port 1\nHost *\n  Include config.d/*\n  User main\n").unwrap().port == Some(2));
    assert!(with("Include config.d/[12]*\n").unwrap_err().not_understood);
    assert!(with("Include ${NO_SUCH_VARIABLE}\n").unwrap_err().reason.contains("NO_SUCH_VARIABLE"));
}

#[test]
fn a_host_block_of_an_included_file_ends_with_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("inner");
    std::fs::write(&path, "Host other\n  Port 1\n").unwrap();
    let config = read(&format!("Include {}\nUser outer\n", path.display()), "web1").unwrap();
    assert_eq!((config.user.as_deref(), config.port), (Some("outer"), None));
}

#[test]
fn an_included_file_that_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("inner");
    std::fs::write(&path, "User x\n").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o664)).unwrap();
    let error = read(&format!("Include {}\n", path.display()), "web1").unwrap_err();
    assert!(error.line == 1 && error.reason.contains("chmod"), "{error}");
}

#[test]
fn a_file_of_the_system_includes_nothing_from_a_home() {
    let system = ConfigFile { of_user: false, ..file("/etc/ssh/ssh_config", "Include ~/x\n") };
    assert!(lookup(&[system], &query("web1"), &Desk::default()).unwrap_err().reason.contains('~'));
}
