//! Keys that no file holds: of FIDO security keys and PKCS#11 tokens, by way of a real ssh-agent(1), against OpenSSH's sshd.
//! Both are software here: the security key that OpenSSH tests itself with, and SoftHSM.

mod client_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use client_support::agent::Agent;
use client_support::{builder, refused, settings, target};
use sortie_client::SshSettings;
use sortie_client::error::Error;
use sortie_client::secret::{FixedSecrets, Secret};
use sortie_client::ssh_config::ConfigSource;
use sortie_tests::access::Access;
use sortie_tests::sshd::Sshd;
use sortie_tests::{require_files, require_programs, require_root, within};
use tempfile::TempDir;

/// A security key that needs no touch, of Debian's package openssh-tests.
const SECURITY_KEY: &str = "/usr/lib/openssh/regress/misc/sk-dummy/sk-dummy.so";
/// Of Debian's package libsofthsm2.
const SOFT_HSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "4711";

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

/// A host that lets in who has this key, and nobody else.
fn host_of(public: &str) -> Result<Sshd> {
    Sshd::builder()
        .file("/home/deploy/.ssh/the_key", 0o644, public)
        .config_line("AuthorizedKeysFile .ssh/the_key")
        .start()
}

fn by_agent(access: &Access, agent: &Agent) -> SshSettings {
    SshSettings { identities: Vec::new(), agent_socket: Some(agent.socket.clone()), ..settings(access) }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(())
}

fn public_of(key: &Path) -> Result<String> {
    Ok(fs::read_to_string(format!("{}.pub", key.display()))?)
}

/// A new key on the security key: its file tells which it is there, and is of no use without it.
fn enrol(directory: &TempDir, kind: &str, passphrase: &str) -> Result<PathBuf> {
    let key = directory.path().join(format!("id_{kind}"));
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-w", SECURITY_KEY, "-t", kind, "-N", passphrase, "-f"]).arg(&key);
    run(&mut command)?;
    Ok(key)
}

#[tokio::test]
async fn a_fido_security_key_logs_in_through_the_agent() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-keygen", "ssh-agent", "ssh-add");
    require_files!(SECURITY_KEY);
    let directory = tempfile::tempdir()?;
    for (kind, name) in
        [("ed25519-sk", "sk-ssh-ed25519@openssh.com"), ("ecdsa-sk", "sk-ecdsa-sha2-nistp256@openssh.com")]
    {
        let key = enrol(&directory, kind, "")?;
        let public = public_of(&key)?;
        assert!(public.starts_with(name), "{public}");
        let host = host_of(&public)?;
        let agent = Agent::start(|_| ()).await?;
        let ssh = by_agent(host.access(), &agent);
        kept_out(host.access(), ssh.clone()).await.context("before the agent has the key")?;

        agent.add(|ssh_add| ssh_add.args(["-q", "-S", SECURITY_KEY]).arg(&key))?;
        log_in(host.access(), ssh.clone()).await.with_context(|| host.log())?;

        // Its file, named alone, stands for the agent's key.
        let config = directory.path().join("config");
        fs::write(&config, format!("IdentitiesOnly yes\nIdentityFile {}\n", key.display()))?;
        let named = SshSettings { config: ConfigSource::File(config), ..ssh };
        log_in(host.access(), named).await.with_context(|| host.log())?;
    }
    Ok(())
}

#[tokio::test]
async fn the_file_of_a_security_key_without_an_agent_says_that_it_takes_one() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-keygen", "ssh-agent", "ssh-add");
    require_files!(SECURITY_KEY);
    let directory = tempfile::tempdir()?;
    for (kind, passphrase) in [("ed25519-sk", ""), ("ecdsa-sk", "open sesame")] {
        let key = enrol(&directory, kind, passphrase)?;
        let host = host_of(&public_of(&key)?)?;
        let agent = Agent::start(|_| ()).await?;
        let ssh = SshSettings {
            identities: vec![key.clone()],
            secrets: Arc::new(FixedSecrets {
                passphrase: Some(Secret::new("open sesame".to_owned())),
                password: None,
            }),
            ..by_agent(host.access(), &agent)
        };
        let error = kept_out(host.access(), ssh).await?;
        let reason = format!("{}: a security key's, which only an agent can use: ssh-add it", key.display());
        assert!(error.contains(&reason), "{error}");
    }
    Ok(())
}

/// A PKCS#11 token of a test's own.
struct Token {
    directory: TempDir,
    configuration: PathBuf,
}

impl Token {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let configuration = directory.path().join("softhsm2.conf");
        let objects = directory.path().join("tokens");
        fs::create_dir(&objects)?;
        let text = format!("directories.tokendir = {}\nobjectstore.backend = file\n", objects.display());
        fs::write(&configuration, text)?;
        let token = Self { directory, configuration };
        run(token.util().args(["--init-token", "--free", "--label", "sortie", "--so-pin", PIN]))?;
        Ok(token)
    }

    fn util(&self) -> Command {
        let mut command = Command::new("softhsm2-util");
        command.env("SOFTHSM2_CONF", &self.configuration).args(["--pin", PIN]);
        command
    }

    /// Puts a new key on it, of which nothing else is left than the public half that is returned.
    fn make_key(&self, kind: &str) -> Result<String> {
        let key = self.directory.path().join(kind);
        // The format that is imported is PKCS#8.
        run(Command::new("ssh-keygen").args(["-q", "-m", "PKCS8", "-N", "", "-t", kind, "-f"]).arg(&key))?;
        run(self.util().args(["--token", "sortie", "--label", kind, "--id", "01", "--import"]).arg(&key))?;
        fs::remove_file(&key)?;
        public_of(&key)
    }

    /// A program that gives the PIN to whoever asks for it.
    fn askpass(&self) -> Result<PathBuf> {
        let program = self.directory.path().join("askpass");
        fs::write(&program, format!("#!/bin/sh\necho {PIN}\n"))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700))?;
        Ok(program)
    }
}

#[tokio::test]
async fn a_pkcs11_token_logs_in_through_the_agent_until_it_is_taken_away() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-keygen", "ssh-agent", "ssh-add", "softhsm2-util");
    require_files!(SOFT_HSM);
    for kind in ["rsa", "ecdsa"] {
        let token = Token::new()?;
        let host = host_of(&token.make_key(kind)?)?;
        let agent = Agent::start(|command| {
            command.env("SOFTHSM2_CONF", &token.configuration);
        })
        .await?;
        let askpass = token.askpass()?;
        agent.add(|ssh_add| {
            ssh_add.env("SSH_ASKPASS", askpass).env("SSH_ASKPASS_REQUIRE", "force").args(["-s", SOFT_HSM])
        })?;
        let ssh = by_agent(host.access(), &agent);
        log_in(host.access(), ssh.clone()).await.with_context(|| format!("{kind}: {}", host.log()))?;

        agent.add(|ssh_add| ssh_add.args(["-q", "-e", SOFT_HSM]))?;
        let error = kept_out(host.access(), ssh).await?;
        assert!(error.contains("agent: it holds no key"), "{error}");
    }
    Ok(())
}
