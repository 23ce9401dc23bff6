//! `examples/embed`: that what it shows to authors of tools is so. Built by `cargo xtask test`, run as its README says.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use sortie_tests::access::Access;
use sortie_tests::host::{Host, Kind, Lab};
use sortie_tests::{require_kind, runner};

/// Where cargo puts it: beside the tests' directory.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().with_file_name("embed");
    assert!(
        path.exists(),
        "{} is not built: cargo build --manifest-path examples/embed/Cargo.toml --target-dir {}",
        path.display(),
        path.parent().and_then(|debug| debug.parent()).unwrap().display()
    );
    path
}

/// A user's home whose ssh_config(5) knows the host as `web1`.
struct Home(tempfile::TempDir);

impl Home {
    fn knowing(access: &Access) -> Result<Self> {
        let home = tempfile::tempdir()?;
        std::fs::create_dir(home.path().join(".ssh"))?;
        std::fs::write(home.path().join(".ssh/config"), access.ssh_config("web1"))?;
        Ok(Self(home))
    }

    fn embed(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(program());
        command.args(arguments).env("HOME", self.0.path()).env_remove("SSH_AUTH_SOCK");
        command.output().context("starting the example")
    }

    /// Its output where all went well.
    fn manages(&self, arguments: &[&str]) -> Result<String> {
        let runners = runner::directory()?;
        let runners = runners.to_str().context("the directory of runners")?;
        let output = self.embed(&[arguments, &["web1", runners]].concat())?;
        ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }
}

async fn debian(lab: &Lab, sudoers: &str) -> Result<(Host, Home)> {
    let host = lab.host(Kind::Debian12).name("web1").start().await?;
    let access = host.add_user("deploy", None).await?;
    host.write("/etc/sudoers.d/kit", sudoers, 0o440).await?;
    Ok((host, Home::knowing(&access)?))
}

const UNIT: &str = "/etc/systemd/system/alive.service";

#[tokio::test]
async fn the_example_checks_changes_and_leaves_alone_what_is_right() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let (host, home) = debian(&lab, "deploy ALL=(ALL) NOPASSWD: ALL\n").await?;
    let state =
        async || host.sh("systemctl is-active alive; systemctl is-enabled alive; cat /etc/motd").await;
    let before = state().await?;

    let checked = home.manages(&[])?;
    for line in [
        "web1: debian 12, ",
        "\nmotd: would be changed\n",
        "    +web1 is watched over by alive.service\n",
        "\nunit: would be changed\n",
        "\nservice: would be enabled and restarted then\n",
        "\nnothing is left behind\n",
    ] {
        assert!(checked.contains(line), "{line:?} is missing: {checked}");
    }
    assert_eq!(state().await?, before, "a check changed something");
    assert!(host.read(UNIT).await.is_err(), "a check wrote the unit");

    let changed = home.manages(&["--yes"])?;
    for line in [
        "\nmotd: changed\n",
        "\nunit: changed\n",
        "\nenabled: changed\n",
        "\nservice: changed\n",
        "\ncron: not there\n",
        "    ActiveState=active\n",
    ] {
        assert!(changed.contains(line), "{line:?} is missing: {changed}");
    }
    let after = state().await?;
    assert_eq!(after.stdout, "active\nenabled\nweb1 is watched over by alive.service\n");
    assert!(String::from_utf8(host.read(UNIT).await?)?.contains("echo alive"));

    for arguments in [&[][..], &["--yes"]] {
        let again = home.manages(arguments)?;
        for what in ["motd", "unit", "enabled", "service"] {
            assert!(again.contains(&format!("\n{what}: as it should be\n")), "{again}");
        }
    }
    assert_eq!(state().await?, after);
    host.quiet_of("sortie").await?;
    // Whoever turned it off finds it turned on again, and nothing else done.
    host.exec(["systemctl", "disable", "--now", "alive"]).await?.fine()?;
    let mended = home.manages(&["--yes"])?;
    assert!(mended.contains("\nunit: as it should be\n"), "{mended}");
    assert!(mended.contains("\nenabled: changed\nservice: changed\n"), "{mended}");
    Ok(())
}

#[tokio::test]
async fn the_examples_errors_say_what_to_do() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let (host, home) = debian(&lab, "# nobody may\n").await?;
    let runners = runner::directory()?;
    let runners = runners.to_str().context("the directory of runners")?;
    let fails = |arguments: &[&str], status: i32, words: &[&str]| -> Result<()> {
        let output = home.embed(arguments)?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is missing: {said}");
        }
        Ok(())
    };
    fails(&[], 2, &["usage: embed [--yes]"])?;
    fails(&["web1", "/nowhere"], 1, &["/nowhere"])?;
    fails(&["we b1:x", runners], 1, &["we b1:x"])?;
    fails(&["--yes", "web1", runners], 1, &["web1", "BECOME_FAILED", "Log in as root, or allow the login"])?;
    assert!(host.read(UNIT).await.is_err(), "changed although it failed");
    // Nobody has told this machine the host's key.
    let known = host.access("deploy").known_hosts;
    std::fs::write(&known, "")?;
    fails(&["web1", runners], 1, &["the host key is unknown", "This tool never accepts a key by itself"])?;
    host.quiet_of("sortie").await
}
