//! Tests of what an SSH connection is decided to be.

use std::path::Path;

use super::*;

fn settings(directory: &Path, config: &str) -> SshSettings {
    std::fs::create_dir_all(directory.join(".ssh")).unwrap();
    std::fs::write(directory.join("config"), config).unwrap();
    SshSettings {
        config: ConfigSource::File(directory.join("config")),
        home: Some(directory.to_owned()),
        local_user: Some("me".into()),
        ..SshSettings::default()
    }
}

fn resolve(target: &str, config: &str, change: impl FnOnce(&mut SshSettings)) -> Result<SshOptions, Error> {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = settings(directory.path(), config);
    change(&mut settings);
    SshOptions::resolve(&Target::parse(target).unwrap(), &settings)
}

#[test]
fn target_comes_before_settings_before_configuration_before_defaults() {
    let config = "User conf\nPort 3\n";
    let both = |s: &mut SshSettings| (s.user, s.port) = (Some("set".into()), Some(2));
    let who = |o: SshOptions| (o.user, o.port);
    assert_eq!(who(resolve("u@h:1", config, both).unwrap()), ("u".into(), 1));
    assert_eq!(who(resolve("h", config, both).unwrap()), ("set".into(), 2));
    assert_eq!(who(resolve("h", config, |_| ()).unwrap()), ("conf".into(), 3));
    assert_eq!(who(resolve("h", "", |_| ()).unwrap()), ("me".into(), 22));
    assert!(resolve("h", "", |s| s.local_user = None).is_err_and(|e| e.to_string().contains("user@host")));
}

#[test]
fn key_files_are_expanded_and_replace_the_defaults() {
    let options = resolve("web1", "HostName %h.lan\nIdentityFile ~/.ssh/%r-%h\nIdentityFile /k%%\n", |s| {
        s.identities.push("given".into());
        s.home = Some("/home/me".into());
    })
    .unwrap();
    let files: Vec<_> = options.identities.iter().map(|i| i.file.to_str().unwrap()).collect();
    assert_eq!(files, ["given", "/home/me/.ssh/me-web1.lan", "/k%"]);
    assert!(options.identities.iter().all(|i| i.explicit));
    let defaults = resolve("web1", "", |_| ()).unwrap().identities;
    assert!(defaults[0].file.ends_with(".ssh/id_ed25519") && !defaults[0].explicit);
    assert!(resolve("web1", "IdentityFile none\n", |_| ()).unwrap().identities.is_empty());
}

#[test]
fn paths_that_cannot_be_expanded_are_refused() {
    for line in [
        "IdentityFile ~no-such-user/k",
        "IdentityFile ${SORTIE_NO_SUCH_VARIABLE}/k",
        "IdentityFile %Q",
        "UserKnownHostsFile %",
    ] {
        assert!(resolve("h", line, |_| ()).is_err(), "{line}");
    }
}

fn hop(options: &SshOptions) -> &SshOptions {
    match &options.route {
        Route::Through(hop) => hop,
        Route::Direct => panic!("{} is reached directly", options.name),
        Route::Program(command) => panic!("{} is reached by {command}", options.name),
    }
}

#[test]
fn every_hop_is_reached_as_the_configuration_says_of_it() {
    let config = "IdentityFile /k/%h\nHost web1\n  ProxyJump one,deploy@two:2202\n\
                  Host one\n  HostName one.lan\n  User jumper\n  Port 2200\n";
    let options = resolve("root@web1:22", config, |s| s.identities.push("/given".into())).unwrap();
    let two = hop(&options);
    let one = hop(two);
    assert_eq!((options.user.as_str(), options.port), ("root", 22));
    assert_eq!((two.address.as_str(), two.user.as_str(), two.port), ("two", "deploy", 2202));
    assert_eq!((one.address.as_str(), one.user.as_str(), one.port), ("one.lan", "jumper", 2200));
    assert!(matches!(one.route, Route::Direct));
    let files =
        |options: &SshOptions| -> Vec<_> { options.identities.iter().map(|i| i.file.clone()).collect() };
    assert_eq!(files(&options), [Path::new("/given"), Path::new("/k/web1")]);
    assert_eq!(files(two), [Path::new("/k/two")], "keys of the command line are the target's alone");
}

#[test]
fn a_hop_may_have_a_proxy_of_its_own() {
    let config =
        "Host web1\n  ProxyJump one\nHost one\n  ProxyJump two\nHost two\n  ProxyCommand nc %h %p # %n %r\n";
    let options = resolve("web1", config, |_| ()).unwrap();
    let Route::Program(command) = &hop(hop(&options)).route else { panic!("two is reached by a program") };
    assert_eq!(command, "nc two 22 # two me");
    let given =
        resolve("web1", config, |s| s.proxy = Some(Proxy::Jump(vec!["two".parse().unwrap()]))).unwrap();
    assert_eq!(hop(&given).name, "two");
    let none = resolve("web1", config, |s| s.proxy = Some(Proxy::None)).unwrap();
    assert!(matches!(none.route, Route::Direct));
}

#[test]
fn ways_that_lead_to_themselves_are_refused() {
    for config in [
        "ProxyJump web1",
        "Host web1\n  ProxyJump b\nHost b\n  HostName web1\n",
        "Host web1\n  ProxyJump a\nHost a\n  ProxyJump b\nHost b\n  ProxyJump a\n",
    ] {
        let error = resolve("web1", config, |_| ()).err().unwrap().to_string();
        assert!(error.contains("itself"), "{error}");
    }
}

#[tokio::test]
async fn what_was_given_for_the_target_is_not_shown_to_a_hop() {
    use crate::secret::{FixedSecrets, Question, Secret};
    let secret = |text: &str| Some(Secret::new(text.into()));
    let secrets = FixedSecrets { password: secret("p"), passphrase: secret("q") };
    let options = resolve("web1", "Host web1\n  ProxyJump b\n", |s| s.secrets = Arc::new(secrets)).unwrap();
    let password = Question::Password { user: "u", host: "b", attempt: 1 };
    let passphrase = Question::Passphrase { file: Path::new("/k"), attempt: 1 };
    assert!(hop(&options).secrets.ask(password).await.is_none());
    assert_eq!(hop(&options).secrets.ask(passphrase).await.unwrap().expose(), "q");
    assert_eq!(options.secrets.ask(password).await.unwrap().expose(), "p");
}

#[test]
fn the_connection_follows_the_configuration() {
    let none = resolve("h", "", |_| ()).unwrap();
    assert_eq!((none.connect_timeout, none.server_alive_interval), (CONNECT_TIMEOUT, SERVER_ALIVE.0));
    let config = "ConnectTimeout 5\nServerAliveInterval 0\nServerAliveCountMax 9\nConnectionAttempts 2\n";
    let set = resolve("h", config, |_| ()).unwrap();
    assert_eq!((set.connect_timeout, set.connection_attempts), (Duration::from_secs(5), 2));
    assert_eq!((set.server_alive_interval, set.server_alive_count_max), (Duration::ZERO, 9));
    let given = resolve("h", config, |s| s.connect_timeout = Some(Duration::from_secs(1))).unwrap();
    assert_eq!(given.connect_timeout, Duration::from_secs(1), "the caller's word comes first");
    assert_eq!(resolve("h", "ConnectTimeout none", |_| ()).unwrap().connect_timeout, NO_CONNECT_TIMEOUT);
}

#[test]
fn an_agent_is_named_by_path_by_variable_or_not_at_all() {
    let agent = |config: &str| {
        let config = format!("IdentityAgent {config}");
        resolve("h", &config, |s| {
            (s.agent_socket, s.home) = (Some("/given".into()), Some("/home/me".into()));
        })
        .unwrap()
        .agent_socket
    };
    assert_eq!(agent("SSH_AUTH_SOCK"), Some("/given".into()));
    assert_eq!(agent("none"), None);
    assert_eq!(agent("~/.agent/%h"), Some("/home/me/.agent/h".into()));
    assert_eq!(agent("$SORTIE_NO_SUCH_VARIABLE"), None);
}

#[test]
fn batch_mode_asks_nobody() {
    let options = resolve("h", "BatchMode yes", |_| ()).unwrap();
    assert!(!options.password_authentication && !options.kbd_interactive_authentication);
    assert!(options.secrets.unattended());
}

#[test]
fn a_named_configuration_file_must_be_there() {
    let error = resolve("h", "", |s| s.config = ConfigSource::File("/no/such".into())).err().unwrap();
    assert!(error.to_string().contains("/no/such"), "{error}");
}
