//! Root commands of an unprivileged login, beside `sudo` over a warm connection of OpenSSH. On a whole host: sudo writes its
//! log there as it does anywhere.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sortie_client::protocol::command::exec::Exec;
use sortie_client::protocol::message::Become;
use sortie_client::{CommandOptions, Session};
use sortie_tests::access::Access;
use sortie_tests::host::{Kind, Lab};

use crate::connect::{config, connect};
use crate::measure::{self, Sample};
use crate::table::Table;

/// Commands in a row.
const COMMANDS: usize = 100;

/// A lab takes its thread into another network, so it gets one of its own.
pub(crate) fn measure(table: &mut Table, runs: usize) -> Result<()> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| runtime()?.block_on(in_lab(table, runs)));
        measuring.join().map_err(|_| anyhow::anyhow!("the measuring thread panicked"))?
    })
}

async fn in_lab(table: &mut Table, runs: usize) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let access = host.add_user("deploy", None).await?;
    host.write("/etc/sudoers.d/bench", b"deploy ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440).await?;
    let session = connect(&access).await?;
    let directory = tempfile::tempdir()?;
    let master = Master::start(&access, directory.path())?;
    let (mut ours, mut together, mut peer) = (Sample::default(), Sample::default(), Sample::default());
    let (mut ratio, mut ratio_together) = (Sample::default(), Sample::default());
    for _ in 0..runs.min(5) {
        let begun = Instant::now();
        for _ in 0..COMMANDS {
            let done = session.start_with(&Exec::argv(["true"]), as_root()).await?.wait().await?;
            ensure!(done.result.exit_code == 0, "true is not true");
        }
        let one_by_one = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        hundred_together(&session).await?;
        let at_once = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        for _ in 0..COMMANDS {
            measure::wall(master.ssh().args(["sudo", "true"]))?;
        }
        let theirs = begun.elapsed().as_secs_f64();
        ours.push(one_by_one);
        together.push(at_once);
        peer.push(theirs);
        ratio.push(one_by_one / theirs);
        ratio_together.push(at_once / theirs);
    }
    session.close().await?;
    for (what, sample, ratio) in [
        ("100 root commands, one after the other, beside `sudo true` over a warm ControlMaster", ours, ratio),
        ("100 root commands sent together, beside the same", together, ratio_together),
    ] {
        let figure =
            format!("{} beside {}: {}", sample.show(1e3, "ms"), peer.show(1e3, "ms"), ratio.show(1.0, "×"));
        table.row(what, &figure, "(no budget)");
    }
    Ok(())
}

fn as_root() -> CommandOptions {
    let whom = Become { user: "root".to_owned(), ..Become::default() };
    CommandOptions { r#become: Some(whom), ..CommandOptions::default() }
}

async fn hundred_together(session: &Session) -> Result<()> {
    let mut running = Vec::new();
    for _ in 0..COMMANDS {
        running.push(session.start_with(&Exec::argv(["true"]), as_root()).await?);
    }
    for command in running {
        ensure!(command.wait().await?.result.exit_code == 0, "true is not true");
    }
    Ok(())
}

/// OpenSSH's connection that stays open and is shared.
struct Master {
    config: std::path::PathBuf,
    socket: std::path::PathBuf,
}

impl Master {
    fn start(access: &Access, directory: &Path) -> Result<Self> {
        let master = Self { config: config(access, directory, "master")?, socket: directory.join("socket") };
        measure::wall(master.ssh_with(&["-M", "-N", "-f", "-o", "ControlPersist=yes"]).arg("bench"))?;
        Ok(master)
    }

    fn ssh_with(&self, options: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command
            .arg("-F")
            .arg(&self.config)
            .args(["-o", "BatchMode=yes", "-S"])
            .arg(&self.socket)
            .args(options);
        command
    }

    fn ssh(&self) -> Command {
        let mut command = self.ssh_with(&[]);
        command.arg("bench");
        command
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let left = self.ssh_with(&["-O", "exit"]).arg("bench").output().context("ssh -O exit");
        if let Err(error) = left {
            eprintln!("{error:#}");
        }
    }
}
