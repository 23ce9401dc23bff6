//! Hosts that are reached through others (`ProxyJump`) or through a program (`ProxyCommand`), against OpenSSH's sshd.

mod cli_support;
mod client_support;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use cli_support::sortie;
use client_support::builder;
use sortie_client::error::Error;
use sortie_client::observe::Step;
use sortie_client::protocol::command::exec::Exec;
use sortie_client::secret::{FixedSecrets, Secret};
use sortie_client::ssh_config::ConfigSource;
use sortie_client::{Session, SshSettings, Target};
use sortie_tests::sshd::{Builder, Sshd};
use sortie_tests::{require_programs, require_root, within};
use tempfile::TempDir;

/// A target behind two hops, and the ssh_config(5) that knows all three by name.
struct Chain {
    one: Sshd,
    two: Sshd,
    target: Sshd,
    directory: TempDir,
}

impl Chain {
    fn start() -> Result<Self> {
        Self::of(Sshd::builder(), Sshd::builder(), Sshd::builder())
    }

    fn of(one: Builder, two: Builder, target: Builder) -> Result<Self> {
        let (one, two) = (one.passes_on(), two.passes_on());
        Ok(Self { one: one.start()?, two: two.start()?, target: target.start()?, directory: TempDir::new()? })
    }

    /// Writes the file; `lines` go before everything else.
    fn config(&self, lines: &str) -> Result<PathBuf> {
        let path = self.directory.path().join("config");
        let hosts = [("one", &self.one), ("two", &self.two), ("target", &self.target)];
        let hosts: Vec<_> = hosts.iter().map(|(name, host)| host.access().ssh_config(name)).collect();
        fs::write(&path, format!("{lines}{}", hosts.concat()))?;
        Ok(path)
    }

    fn settings(&self, lines: &str) -> Result<SshSettings> {
        Ok(SshSettings { config: ConfigSource::File(self.config(lines)?), ..SshSettings::default() })
    }

    async fn connect(&self, settings: SshSettings) -> Result<Result<Session, Error>> {
        let client = builder(self.target.access())?.ssh(settings);
        within("a session or a refusal", client.connect(&Target::parse("target")?)).await
    }

    /// Runs something that says more than fits in any buffer on the way, and ends the session.
    async fn works(&self, settings: SshSettings) -> Result<()> {
        let session = self.connect(settings).await?.with_context(|| self.logs())?;
        let report = session.run(Exec::shell("yes 0123456789abcde | head -c 900000")).await?;
        let expected = "0123456789abcde\n".repeat(900_000 / 16);
        assert!(report.result.stdout.as_deref() == Some(expected.as_str()), "not what the host printed");
        assert!(session.close().await?.is_proven());
        Ok(())
    }

    async fn fails(&self, settings: SshSettings) -> Result<Error> {
        self.connect(settings).await?.err().context("a session where there should be none")
    }

    fn logs(&self) -> String {
        format!("one:\n{}\ntwo:\n{}\ntarget:\n{}", self.one.log(), self.two.log(), self.target.log())
    }
}

fn logins(host: &Sshd) -> usize {
    host.log().matches("Accepted publickey").count()
}

#[tokio::test]
async fn two_hops_are_passed_one_after_the_other_each_with_a_login_of_its_own() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let chain = Chain::start()?;
    chain.works(chain.settings("Host target\n  ProxyJump one,two\n")?).await?;
    assert_eq!([&chain.one, &chain.two, &chain.target].map(logins), [1, 1, 1], "{}", chain.logs());
    Ok(())
}

#[tokio::test]
async fn a_hop_is_reached_through_another_where_its_own_configuration_says_so() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let chain = Chain::start()?;
    chain.works(chain.settings("Host target\n  ProxyJump two\nHost two\n  ProxyJump one\n")?).await?;
    assert_eq!([&chain.one, &chain.two, &chain.target].map(logins), [1, 1, 1], "{}", chain.logs());
    Ok(())
}

#[tokio::test]
async fn the_host_key_of_every_hop_is_checked() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let chain = Chain::start()?;
    let jump = "Host target\n  ProxyJump one,two\n";
    for (name, host) in [("one", &chain.one), ("two", &chain.two), ("target", &chain.target)] {
        let lines = format!("Host {name}\n  UserKnownHostsFile none\n{jump}");
        let error = chain.fails(chain.settings(&lines)?).await?;
        let Error::HostKey { host: blamed, .. } = &error else { anyhow::bail!("{error}") };
        assert_eq!(blamed, name, "{error}");
        assert_eq!(logins(host), 0, "nobody logs in at a host that is not known");
    }
    Ok(())
}

#[tokio::test]
async fn a_hop_that_does_not_go_on_is_named() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let strict = Sshd::builder().config_line("AllowTcpForwarding no");
    let chain = Chain::of(strict, Sshd::builder(), Sshd::builder())?;
    let error = chain.fails(chain.settings("Host target\n  ProxyJump one\n")?).await?;
    let Error::Unreachable { host, step: Step::Connect, reason } = &error else { anyhow::bail!("{error}") };
    assert_eq!(host, "target");
    assert!(reason.contains("one") && reason.contains(&chain.target.access().port.to_string()), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_password_for_the_target_is_never_tried_at_a_hop() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let hop = Sshd::builder().password("correct horse").config_line("PubkeyAuthentication no");
    let target = Sshd::builder().password("correct horse").config_line("PubkeyAuthentication no");
    let chain = Chain::of(hop, Sshd::builder(), target)?;
    let with = |lines: &str| -> Result<SshSettings> {
        let password = Some(Secret::new("correct horse".into()));
        let secrets = Arc::new(FixedSecrets { password, passphrase: None });
        Ok(SshSettings { secrets, ..chain.settings(lines)? })
    };
    let error = chain.fails(with("Host target\n  ProxyJump one\n")?).await?;
    let Error::Auth { host, .. } = &error else { anyhow::bail!("{error}") };
    assert_eq!(host, "one", "the hop would have taken it");
    assert!(!chain.one.log().contains("Failed password"), "{}", chain.one.log());
    chain.works(with("Host target\n  ProxyJump two\n")?).await?;
    Ok(())
}

#[tokio::test]
async fn a_program_can_be_the_way_to_a_host() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let chain = Chain::start()?;
    let config = chain.directory.path().join("config");
    let command = format!("ssh -F {} -o BatchMode=yes -W [%h]:%p one", config.display());
    chain.works(chain.settings(&format!("Host target\n  ProxyCommand {command}\n"))?).await?;
    assert_eq!([&chain.one, &chain.target].map(logins), [1, 1], "{}", chain.logs());
    Ok(())
}

#[tokio::test]
async fn a_program_that_fails_is_quoted() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let chain = Chain::start()?;
    let lines = "Host target\n  ProxyCommand sh -c 'echo no way to %n as %r >&2; exit 1'\n";
    let error = chain.fails(chain.settings(lines)?).await?;
    let Error::Unreachable { host, step: Step::KeyExchange, reason } = &error else {
        anyhow::bail!("{error}")
    };
    assert_eq!(host, "target");
    assert!(reason.contains("no way to target as deploy"), "{error}");
    Ok(())
}

#[tokio::test]
async fn the_command_takes_hops_like_ssh_does() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let chain = Chain::start()?;
    let config = chain.config("Host target\n  ProxyJump nowhere.invalid\n")?;
    let call = |jump: &str| {
        let command = sortie("exec");
        command.arg("-F").arg(&config).args(["--batch", "-J", jump, "-H", "target", "--", "echo", "through"])
    };
    let ended = call("one,two").run().await?.fine();
    assert_eq!(ended.text(), "through\n");
    assert_eq!([&chain.one, &chain.two, &chain.target].map(logins), [1, 1, 1], "{}", chain.logs());
    call("none").run().await?.fine();
    assert_eq!([&chain.one, &chain.two, &chain.target].map(logins), [1, 1, 2], "{}", chain.logs());
    call("a b").run().await?.ended_with(2).says(&["--jump"]);
    Ok(())
}
