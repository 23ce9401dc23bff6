//! Logging in: host keys first, then keys, agents and passwords, against OpenSSH's sshd.

mod client_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use client_support::agent::Agent;
use client_support::{builder, refused, settings, target};
use sortie_client::error::{Error, HostKeyProblem};
use sortie_client::observe::{Observer, Step};
use sortie_client::secret::{FixedSecrets, Secret};
use sortie_client::ssh_config::{ConfigSource, HostKeyPolicy};
use sortie_client::{SshSettings, Target};
use sortie_tests::access::Access;
use sortie_tests::keys::KeyPair;
use sortie_tests::sshd::{Builder, Sshd};
use sortie_tests::{require_programs, require_root, within};

/// Logs in and out with these settings.
async fn log_in(access: &Access, ssh: SshSettings) -> Result<()> {
    let session = builder(access)?.ssh(ssh).connect(&target(access)?).await?;
    assert!(session.close().await?.is_proven());
    Ok(())
}

/// Why these settings do not get in.
async fn kept_out(access: &Access, ssh: SshSettings) -> Result<Error> {
    within("a refusal", refused(builder(access)?.ssh(ssh), access)).await?
}

fn host() -> Builder {
    Sshd::builder()
}

#[tokio::test]
async fn an_unknown_host_key_is_refused_and_its_fingerprint_shown() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-keygen");
    let host = host().start()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("known_hosts");
    let unknown = SshSettings { user_known_hosts: Some(vec![file.clone()]), ..settings(host.access()) };
    let error = kept_out(host.access(), unknown.clone()).await?;
    let Error::HostKey { problem: HostKeyProblem::Unknown { .. }, fingerprint, .. } = &error else {
        anyhow::bail!("{error}")
    };
    fs::write(directory.path().join("key.pub"), host.access().host_key().public_openssh()?)?;
    let keygen = Command::new("ssh-keygen").arg("-lf").arg(directory.path().join("key.pub")).output()?;
    assert!(String::from_utf8(keygen.stdout)?.contains(fingerprint.as_str()), "{fingerprint}");
    assert!(!file.exists(), "nothing is added");

    let accepting = SshSettings { host_key_policy: Some(HostKeyPolicy::AcceptNew), ..unknown.clone() };
    log_in(host.access(), accepting).await?;
    log_in(host.access(), unknown).await.context("strict, now that it is known")?;
    Ok(())
}

#[tokio::test]
async fn a_changed_host_key_is_refused_whatever_the_policy() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = host().start()?;
    let other = KeyPair::generate()?.known_hosts_line("127.0.0.1", host.access().port)?;
    let file = host.access().known_hosts.clone();
    fs::write(&file, format!("# comment\n{other}\n"))?;
    for policy in [HostKeyPolicy::Strict, HostKeyPolicy::AcceptNew] {
        let ssh = SshSettings { host_key_policy: Some(policy), ..settings(host.access()) };
        let error = kept_out(host.access(), ssh).await?;
        let Error::HostKey { problem, .. } = &error else { anyhow::bail!("{error}") };
        assert_eq!(*problem, HostKeyProblem::Changed { file: file.clone(), line: 2 });
    }
    Ok(())
}

#[tokio::test]
async fn a_revoked_host_key_is_refused_although_it_is_known() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = host().start()?;
    let line = host.access().host_key().known_hosts_line("127.0.0.1", host.access().port)?;
    fs::write(&host.access().known_hosts, format!("{line}\n@revoked {line}\n"))?;
    let error = kept_out(host.access(), settings(host.access())).await?;
    assert!(
        matches!(&error, Error::HostKey { problem: HostKeyProblem::Revoked { line: 2, .. }, .. }),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn an_encrypted_key_takes_its_passphrase_and_shows_it_nowhere() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let key = KeyPair::generate()?;
    let host = host().file("/home/deploy/.ssh/more_keys", 0o644, key.public_openssh()? + "\n");
    let host = host.config_line("AuthorizedKeysFile .ssh/more_keys").start()?;
    let directory = tempfile::tempdir()?;
    let file = key.write_encrypted(directory.path(), "id", "open sesame")?;
    let with = |passphrase: Option<&str>| SshSettings {
        identities: vec![file.clone()],
        secrets: Arc::new(FixedSecrets {
            passphrase: passphrase.map(|text| Secret::new(text.to_owned())),
            password: None,
        }),
        ..settings(host.access())
    };
    log_in(host.access(), with(Some("open sesame"))).await.with_context(|| host.log())?;
    for passphrase in [None, Some("open barley")] {
        let error = kept_out(host.access(), with(passphrase)).await?;
        let text = format!("{error} {error:?}");
        assert!(matches!(error, Error::Auth { .. }), "{text}");
        assert!(text.contains("passphrase") && text.contains("publickey"), "{text}");
        assert!(!text.contains("barley"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_password_gets_in_and_a_wrong_one_is_not_echoed() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = host().password("correct horse").config_line("PubkeyAuthentication no").start()?;
    let with = |password: &str| SshSettings {
        identities: Vec::new(),
        secrets: Arc::new(FixedSecrets {
            password: Some(Secret::new(password.to_owned())),
            passphrase: None,
        }),
        ..settings(host.access())
    };
    log_in(host.access(), with("correct horse")).await.with_context(|| host.log())?;
    let error = kept_out(host.access(), with("wrong horse")).await?;
    let text = format!("{error} {error:?}");
    assert!(matches!(error, Error::Auth { .. }), "{text}");
    assert!(text.contains("password: not accepted") && !text.contains("wrong horse"), "{text}");
    Ok(())
}

#[tokio::test]
async fn an_agent_logs_in_with_the_keys_it_holds() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-agent", "ssh-add");
    let host = host().start()?;
    let agent = Agent::with(&host.access().identity).await?;
    let by_agent = SshSettings {
        identities: Vec::new(),
        agent_socket: Some(agent.socket.clone()),
        ..settings(host.access())
    };
    log_in(host.access(), by_agent.clone()).await.with_context(|| host.log())?;

    let nobody = SshSettings { agent_socket: Some("/no/such/agent".into()), ..by_agent.clone() };
    let error = kept_out(host.access(), nobody).await?.to_string();
    assert!(error.contains("/no/such/agent"), "{error}");

    // With IdentitiesOnly the agent's key counts only where its public key is named.
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("config");
    let public = host.access().identity.with_extension("pub");
    fs::write(&config, "IdentitiesOnly yes\n")?;
    let only = |identities| SshSettings {
        config: ConfigSource::File(config.clone()),
        identities,
        ..by_agent.clone()
    };
    assert!(matches!(kept_out(host.access(), only(Vec::new())).await?, Error::Auth { .. }));
    log_in(host.access(), only(vec![public])).await
}

#[tokio::test]
async fn an_ssh_config_says_it_all() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = host().start()?;
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("config");
    let algorithms =
        "  KexAlgorithms diffie-hellman-group16-sha512\n  Ciphers aes192-ctr\n  MACs hmac-sha2-256\n";
    fs::write(&config, host.access().ssh_config("web1") + algorithms)?;
    let ssh = SshSettings { config: ConfigSource::File(config), ..SshSettings::default() };
    let seen = Arc::new(Seen::default());
    let session = builder(host.access())?
        .ssh(ssh)
        .observer(seen.clone())
        .connect(&Target::parse("web1")?)
        .await
        .with_context(|| host.log())?;
    session.close().await?;
    let negotiated = seen.detail.get().context("no key exchange was seen")?;
    assert!(negotiated.starts_with("diffie-hellman-group16-sha512, strict"), "{negotiated}");
    assert!(negotiated.ends_with("aes192-ctr"), "{negotiated}");
    Ok(())
}

#[derive(Default)]
struct Seen {
    detail: std::sync::OnceLock<String>,
}

impl Observer for Seen {
    fn step_finished(&self, step: Step, _: Duration, _: u32, detail: &str) {
        if step == Step::KeyExchange {
            let _ = self.detail.set(detail.to_owned());
        }
    }
}

#[tokio::test]
async fn key_exchange_is_strict_by_default() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = host().start()?;
    let seen = Arc::new(Seen::default());
    builder(host.access())?.observer(seen.clone()).connect(&target(host.access())?).await?.close().await?;
    let negotiated = seen.detail.get().context("no key exchange was seen")?;
    assert!(negotiated.starts_with("curve25519-sha256, strict"), "{negotiated}");
    Ok(())
}

#[tokio::test]
async fn key_files_that_cannot_be_used_are_named_without_their_content() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = host().start()?;
    let directory = tempfile::tempdir()?;
    let open = directory.path().join("open");
    fs::copy(&host.access().identity, &open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644))?;
    let broken = directory.path().join("broken");
    fs::write(&broken, "-----BEGIN OPENSSH PRIVATE KEY-----\nsecretsecret\n")?;
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o600))?;
    let ssh = SshSettings {
        identities: vec![open, broken, directory.path().join("missing")],
        ..settings(host.access())
    };
    let error = kept_out(host.access(), ssh).await?;
    let text = format!("{error} {error:?}");
    for part in
        ["open: not used, because others may read it", "broken: not a private key", "missing: No such file"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("secretsecret"), "{text}");
    Ok(())
}

#[tokio::test]
async fn what_is_no_ssh_server_is_unreachable() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let silent = tokio::spawn(async move {
        let mut kept = Vec::new();
        // The first caller gets an answer of another protocol, the second none at all.
        let (mut first, _) = listener.accept().await?;
        tokio::io::AsyncWriteExt::write_all(&mut first, b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
        drop(first);
        loop {
            kept.push(listener.accept().await?);
        }
        #[allow(unreachable_code, reason = "names the error type")]
        std::io::Result::Ok(())
    });
    let target = Target::parse(&format!("nobody@127.0.0.1:{port}"))?;
    let client = |limit| {
        let ssh = SshSettings { connect_timeout: Some(limit), ..SshSettings::default() };
        sortie_client::Client::builder().ssh(ssh).build()
    };
    let connect = |limit| {
        let (client, target) = (client(limit), target.clone());
        async move { client.connect(&target).await.map(|_| ()) }
    };
    let wrong = within("a refusal", connect(Duration::from_secs(20))).await?.expect_err("no SSH server");
    assert!(matches!(&wrong, Error::Unreachable { step: Step::KeyExchange, .. }), "{wrong}");
    let silence = within("the limit", connect(Duration::from_secs(1))).await?.expect_err("no answer");
    assert!(matches!(&silence, Error::TimedOut { .. }), "{silence}");
    silent.abort();
    Ok(())
}
