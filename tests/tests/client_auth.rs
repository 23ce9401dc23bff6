//! Ways of logging in beyond a key in a file: certificates, several methods one after the other, the server's questions,
//! against OpenSSH's sshd and, for what no sshd asks, a server of the kit.

mod client_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use client_support::agent::Agent;
use client_support::{builder, refused, settings, target};
use sortie_client::SshSettings;
use sortie_client::error::Error;
use sortie_client::secret::{Answer, FixedSecrets, NoSecrets, Question, Secret, Secrets};
use sortie_client::ssh_config::ConfigSource;
use sortie_tests::access::Access;
use sortie_tests::embedded::Embedded;
use sortie_tests::keys::KeyPair;
use sortie_tests::sshd::{Builder, Sshd};
use sortie_tests::{require_programs, require_root, within};
use tempfile::TempDir;

async fn log_in(access: &Access, ssh: SshSettings) -> Result<()> {
    let session = within("a login", builder(access)?.ssh(ssh).connect(&target(access)?)).await??;
    ensure!(session.close().await?.is_proven());
    Ok(())
}

/// Why these settings do not get in.
async fn kept_out(access: &Access, ssh: SshSettings) -> Result<String> {
    let error = within("a refusal", refused(builder(access)?.ssh(ssh), access)).await??;
    ensure!(matches!(error, Error::Auth { .. }), "{error}");
    Ok(error.to_string())
}

/// No keys but what the lines of an ssh_config(5) name.
fn configured(access: &Access, directory: &TempDir, lines: &str) -> Result<SshSettings> {
    let file = directory.path().join("config");
    fs::write(&file, lines)?;
    Ok(SshSettings { config: ConfigSource::File(file), identities: Vec::new(), ..settings(access) })
}

/// An authority that signs users' keys, and the files it leaves.
struct Authority {
    directory: TempDir,
    key: PathBuf,
}

impl Authority {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let key = KeyPair::generate()?.write(directory.path(), "authority")?;
        Ok(Self { directory, key })
    }

    fn public(&self) -> Result<String> {
        Ok(fs::read_to_string(self.key.with_extension("pub"))?)
    }

    /// A new key in `name`, and its certificate for `principal` in `name-cert.pub`; `more` are arguments of ssh-keygen(1).
    fn user(&self, name: &str, principal: &str, more: &[&str]) -> Result<PathBuf> {
        let key = KeyPair::generate()?.write(self.directory.path(), name)?;
        self.sign(&key, principal, more)?;
        Ok(key)
    }

    fn sign(&self, key: &Path, principal: &str, more: &[&str]) -> Result<()> {
        let public = PathBuf::from(format!("{}.pub", key.display()));
        let mut command = Command::new("ssh-keygen");
        command.arg("-q").arg("-s").arg(&self.key).args(["-I", "somebody", "-n", principal]).args(more);
        let signed = command.arg(public).output()?;
        ensure!(signed.status.success(), "{signed:?}");
        Ok(())
    }

    /// A host that lets in whom this authority vouches for, and nobody else.
    fn host(&self) -> Result<Builder> {
        Ok(Sshd::builder()
            .config_line("TrustedUserCAKeys /etc/ssh/authority.pub")
            .config_line("AuthorizedKeysFile none")
            .file("/etc/ssh/authority.pub", 0o644, self.public()?))
    }
}

#[tokio::test]
async fn a_certificate_beside_the_key_logs_in_where_the_key_alone_does_not() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-keygen");
    let authority = Authority::new()?;
    let host = authority.host()?.start()?;
    let key = authority.user("id", "deploy", &[])?;
    let with = |key: &Path| SshSettings { identities: vec![key.to_owned()], ..settings(host.access()) };
    log_in(host.access(), with(&key)).await.with_context(|| host.log())?;

    let bare = authority.directory.path().join("bare");
    fs::copy(&key, &bare)?;
    kept_out(host.access(), with(&bare)).await?;
    Ok(())
}

#[tokio::test]
async fn a_refused_certificate_is_named_with_what_is_wrong_with_it() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-keygen");
    let authority = Authority::new()?;
    let host = authority.host()?.start()?;
    for (name, principal, more, flaw) in [
        ("other", "somebody-else", &[][..], "it is for somebody-else"),
        ("old", "deploy", &["-V", "20200101:20200102"], "it has expired"),
        ("early", "deploy", &["-V", "20900101:20900102"], "it is not valid yet"),
        ("host", "deploy", &["-h"], "it is a host's certificate"),
    ] {
        let key = authority.user(name, principal, more)?;
        let ssh = SshSettings { identities: vec![key], ..settings(host.access()) };
        let error = kept_out(host.access(), ssh).await?;
        assert!(error.contains(flaw), "{name}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_named_certificate_is_signed_for_by_the_agent_or_the_key_file() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-keygen", "ssh-agent", "ssh-add");
    let authority = Authority::new()?;
    let host = authority.host()?.start()?;
    let key = authority.user("id", "deploy", &[])?;
    let away = tempfile::tempdir()?;
    let certificate = away.path().join("certificate");
    fs::rename(authority.directory.path().join("id-cert.pub"), &certificate)?;
    let lines = format!("CertificateFile {}\n", certificate.display());

    let by_file = format!("{lines}IdentityFile {}\n", key.display());
    log_in(host.access(), configured(host.access(), &away, &by_file)?).await.with_context(|| host.log())?;

    let agent = Agent::with(&key).await?;
    let by_agent = format!("{lines}IdentityAgent {}\nIdentitiesOnly yes\n", agent.socket.display());
    log_in(host.access(), configured(host.access(), &away, &by_agent)?).await.with_context(|| host.log())?;

    let error = kept_out(host.access(), configured(host.access(), &away, &lines)?).await?;
    assert!(error.contains("neither the agent nor a key file has its key"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_certificate_of_the_agent_logs_in() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-keygen", "ssh-agent", "ssh-add");
    let authority = Authority::new()?;
    let host = authority.host()?.start()?;
    // ssh-add takes the certificate along.
    let agent = Agent::with(&authority.user("id", "deploy", &[])?).await?;
    let ssh = SshSettings {
        identities: Vec::new(),
        agent_socket: Some(agent.socket.clone()),
        ..settings(host.access())
    };
    log_in(host.access(), ssh).await.with_context(|| host.log())
}

#[tokio::test]
async fn an_rsa_certificate_is_signed_for_without_sha1() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-keygen");
    let authority = Authority::new()?;
    let host = authority.host()?.start()?;
    let key = authority.directory.path().join("rsa");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"])
        .arg(&key)
        .status()?;
    ensure!(made.success());
    authority.sign(&key, "deploy", &[])?;
    for algorithms in ["rsa-sha2-512-cert-v01@openssh.com", "rsa-sha2-256-cert-v01@openssh.com"] {
        let lines = format!("IdentityFile {}\nPubkeyAcceptedAlgorithms {algorithms}\n", key.display());
        log_in(host.access(), configured(host.access(), &authority.directory, &lines)?)
            .await
            .with_context(|| host.log())?;
    }
    let lines = format!("IdentityFile {}\nPubkeyAcceptedAlgorithms ssh-rsa*,ssh-ed25519\n", key.display());
    let error = kept_out(host.access(), configured(host.access(), &authority.directory, &lines)?).await?;
    assert!(error.contains("PubkeyAcceptedAlgorithms"), "{error}");
    Ok(())
}

#[tokio::test]
async fn an_agent_that_refuses_to_sign_does_not_end_the_login() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-agent", "ssh-add");
    let host = Sshd::builder().password("correct horse").start()?;
    // Asks before it signs; whom it asks says no.
    let agent = Agent::start(|command| {
        command.env("SSH_ASKPASS", "/bin/false").env("DISPLAY", "none");
    })
    .await?;
    agent.add(|ssh_add| ssh_add.args(["-q", "-c"]).arg(&host.access().identity))?;
    let ssh = |secrets: Arc<dyn Secrets>| SshSettings {
        identities: Vec::new(),
        agent_socket: Some(agent.socket.clone()),
        secrets,
        ..settings(host.access())
    };
    let error = kept_out(host.access(), ssh(Arc::new(NoSecrets))).await?;
    assert!(error.contains("the agent refused to sign with it"), "{error}");
    log_in(host.access(), ssh(password("correct horse"))).await.with_context(|| host.log())
}

fn password(text: &str) -> Arc<dyn Secrets> {
    Arc::new(FixedSecrets { password: Some(Secret::new(text.to_owned())), passphrase: None })
}

/// PAM with these lines in place of the machine's own.
fn with_pam(host: Builder, auth: &str) -> Builder {
    let stack = format!("{auth}account required pam_permit.so\nsession required pam_permit.so\n");
    host.config_line("UsePAM yes")
        .config_line("KbdInteractiveAuthentication yes")
        .config_line("PasswordAuthentication no")
        .password("correct horse")
        .file("/etc/pam.d/sshd", 0o644, stack)
}

#[tokio::test]
async fn a_server_that_wants_several_methods_gets_them_in_its_order() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    for methods in ["publickey,password", "password,publickey", "publickey,keyboard-interactive"] {
        let host = Sshd::builder().password("correct horse");
        let host =
            if methods.contains("keyboard") { with_pam(host, "auth required pam_unix.so\n") } else { host };
        let host = host.config_line(&format!("AuthenticationMethods {methods}")).start()?;
        let ssh = SshSettings { secrets: password("correct horse"), ..settings(host.access()) };
        log_in(host.access(), ssh).await.with_context(|| format!("{methods}: {}", host.log()))?;
        let error = kept_out(host.access(), settings(host.access())).await?;
        assert!(
            methods.starts_with("password") || error.contains("accepted, but more is asked for"),
            "{error}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_known_password_answers_the_first_question_and_is_not_tried_again() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = with_pam(Sshd::builder(), "auth required pam_unix.so\n")
        .config_line("PubkeyAuthentication no")
        .start()?;
    let with =
        |text| SshSettings { identities: Vec::new(), secrets: password(text), ..settings(host.access()) };
    log_in(host.access(), with("correct horse")).await.with_context(|| host.log())?;
    let error = kept_out(host.access(), with("battery staple")).await?;
    assert!(error.contains("keyboard-interactive: not accepted"), "{error}");
    assert!(!error.contains("battery"), "{error}");
    let log = host.log();
    assert_eq!(log.matches("Authentication failure").count(), 1, "{log}");
    Ok(())
}

/// Answers in turn, and notes what was asked.
#[derive(Default)]
struct Script {
    answers: Mutex<Vec<&'static str>>,
    asked: Mutex<Vec<String>>,
}

impl Script {
    fn new(answers: &[&'static str]) -> Arc<Self> {
        let answers = Mutex::new(answers.iter().rev().copied().collect());
        Arc::new(Self { answers, asked: Mutex::default() })
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().map(|asked| asked.clone()).unwrap_or_default()
    }
}

impl Secrets for Script {
    fn ask<'a>(&'a self, question: Question<'a>) -> Answer<'a> {
        let text = match question {
            Question::Prompt { instructions, prompt, echo, attempt, .. } => {
                format!("{instructions}|{prompt}|{echo}|{attempt}")
            }
            Question::Password { attempt, .. } => format!("password {attempt}"),
            _ => "something else".into(),
        };
        if let Ok(mut asked) = self.asked.lock() {
            asked.push(text);
        }
        let answer = self.answers.lock().ok().and_then(|mut answers| answers.pop());
        Box::pin(async move { answer.map(|text| Secret::new(text.to_owned())) })
    }

    fn unattended(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn every_round_of_the_servers_questions_is_answered_in_order() -> Result<()> {
    let rounds: &[&[(&str, bool, &str)]] = &[
        &[("Password: ", false, "correct horse"), ("Your name: ", true, "")],
        &[],
        &[("Code: ", false, "123 456")],
    ];
    let host = Embedded::builder().dialogue(rounds).start().await?;
    let with = |secrets: &Arc<Script>| SshSettings {
        identities: Vec::new(),
        secrets: secrets.clone(),
        ..settings(host.access())
    };
    let right = Script::new(&["correct horse", "", "123 456"]);
    log_in(host.access(), with(&right)).await?;
    assert_eq!(
        right.asked(),
        ["round 1|Password: |false|1", "|Your name: |true|1", "round 3|Code: |false|2"]
    );

    let wrong = Script::new(&["correct horse", "", "000 000", "correct horse", "", "123 456"]);
    log_in(host.access(), with(&wrong)).await.context("the second try is right")?;

    let silent = Script::new(&["correct horse"]);
    let error = kept_out(host.access(), with(&silent)).await?;
    assert!(error.contains("nobody answered the server's question \"Your name:\""), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_never_stops_asking_is_given_up() -> Result<()> {
    let endless: Vec<&[(&str, bool, &str)]> = vec![&[]; 1000];
    let host = Embedded::builder().dialogue(&endless).start().await?;
    let secrets = Script::new(&[]);
    let ssh = SshSettings { identities: Vec::new(), secrets, ..settings(host.access()) };
    let error = kept_out(host.access(), ssh).await?;
    assert!(error.contains("no end after 16 rounds"), "{error}");
    Ok(())
}

#[tokio::test]
async fn unanswered_questions_do_not_keep_a_password_from_being_tried() -> Result<()> {
    let host =
        Embedded::builder().dialogue(&[&[("Code: ", false, "1")]]).password("correct horse").start().await?;
    struct Passwords;
    impl Secrets for Passwords {
        fn ask<'a>(&'a self, question: Question<'a>) -> Answer<'a> {
            let known = matches!(question, Question::Password { .. });
            Box::pin(async move { known.then(|| Secret::new("correct horse".into())) })
        }
        fn unattended(&self) -> bool {
            true
        }
    }
    let ssh = SshSettings { identities: Vec::new(), secrets: Arc::new(Passwords), ..settings(host.access()) };
    log_in(host.access(), ssh).await
}

#[tokio::test]
async fn the_configuration_says_which_methods_are_tried_and_in_which_order() -> Result<()> {
    let host = Embedded::builder().dialogue(&[&[("Code: ", false, "1")]]).password("x").start().await?;
    let directory = tempfile::tempdir()?;
    for (lines, asked) in [
        ("", &["round 1|Code: |false|1", "password 1"][..]),
        ("PreferredAuthentications password,keyboard-interactive", &["password 1", "round 1|Code: |false|1"]),
        ("PreferredAuthentications gssapi-with-mic,password", &["password 1"]),
        ("KbdInteractiveAuthentication no", &["password 1"]),
        ("PasswordAuthentication no", &["round 1|Code: |false|1"]),
        ("BatchMode yes", &[]),
    ] {
        let script = Script::new(&[]);
        let ssh = SshSettings { secrets: script.clone(), ..configured(host.access(), &directory, lines)? };
        kept_out(host.access(), ssh).await?;
        assert_eq!(script.asked(), asked, "{lines}");
    }
    let one = format!("NumberOfPasswordPrompts 1\nIdentityFile {}\n", host.access().identity.display());
    let no_keys = one.clone() + "PubkeyAuthentication no\nKbdInteractiveAuthentication no\n";
    let script = Script::new(&["wrong", "wrong", "wrong"]);
    let ssh = SshSettings { secrets: script.clone(), ..configured(host.access(), &directory, &no_keys)? };
    kept_out(host.access(), ssh).await?;
    assert_eq!(script.asked(), ["password 1"]);
    log_in(host.access(), configured(host.access(), &directory, &one)?).await
}

#[tokio::test]
async fn a_public_key_alone_is_told_what_it_lacks() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let directory = tempfile::tempdir()?;
    fs::copy(host.access().identity.with_extension("pub"), directory.path().join("id.pub"))?;
    let identities = vec![directory.path().join("id")];
    let error = kept_out(host.access(), SshSettings { identities, ..settings(host.access()) }).await?;
    assert!(error.contains("id: only its public half is here"), "{error}");
    Ok(())
}
