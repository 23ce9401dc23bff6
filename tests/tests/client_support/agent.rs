//! An ssh-agent(1) of a test's own, ended with it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};
use sortie_tests::eventually;

pub(crate) struct Agent {
    child: Child,
    pub(crate) socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Agent {
    /// One that holds no key. `settings` are further options and environment.
    pub(crate) async fn start(settings: impl FnOnce(&mut Command)) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("agent");
        let mut command = Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(&socket).stdin(Stdio::null()).stdout(Stdio::null());
        settings(&mut command);
        let agent = Self { child: command.spawn()?, socket, _directory: directory };
        eventually("the agent", || {
            // 1: it answers and holds no key.
            let listed = agent.command().arg("-l").output()?;
            ensure!(listed.status.code() == Some(1), "{listed:?}");
            Ok(())
        })
        .await?;
        Ok(agent)
    }

    /// One that holds the key of a file.
    pub(crate) async fn with(key: &Path) -> Result<Self> {
        let agent = Self::start(|_| ()).await?;
        agent.add(|ssh_add| ssh_add.arg(key))?;
        Ok(agent)
    }

    /// ssh-add(1) with these arguments.
    pub(crate) fn add(&self, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
        let mut command = self.command();
        let added = arguments(command.stdin(Stdio::null())).output()?;
        ensure!(added.status.success(), "{added:?}");
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new("ssh-add");
        command.env("SSH_AUTH_SOCK", &self.socket).env_remove("DISPLAY");
        command
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
