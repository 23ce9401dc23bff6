//! Reaching a host: round trips and wall time beside OpenSSH's own client, on a real sshd.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sortie_client::protocol::command::exec::Exec;
use sortie_client::ssh_config::ConfigSource;
use sortie_client::{Client, RunnerSet, Session, SshSettings, Target};
use sortie_tests::access::Access;
use sortie_tests::proxy::Proxy;
use sortie_tests::runner;
use sortie_tests::sshd::Sshd;

use crate::Bench;
use crate::measure::{self, Sample};

/// One way, for counting round trips.
const DELAY: Duration = Duration::from_millis(50);

pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let host = Sshd::builder().user("root").start()?;
    let directory = tempfile::tempdir()?;
    round_trips(bench, host.access(), directory.path()).await?;
    wall(bench, host.access(), directory.path())?;
    many_commands(bench, host.access()).await
}

/// The same configuration for both programs.
pub(crate) fn config(access: &Access, directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    std::fs::write(&path, access.ssh_config("bench"))?;
    Ok(path)
}

pub(crate) fn sortie(bench: &Bench, config: &Path) -> Command {
    let mut command = Command::new(&bench.sortie);
    command.args(["exec", "-F"]).arg(config).args(["-H", "bench"]);
    command
}

pub(crate) fn ssh(config: &Path) -> Command {
    let mut command = Command::new("ssh");
    command.arg("-F").arg(config).args(["-o", "BatchMode=yes", "bench"]);
    command
}

/// A session of the client crate.
pub(crate) async fn connect(access: &Access) -> Result<Session> {
    let ssh = SshSettings {
        config: ConfigSource::None,
        identities: vec![access.identity.clone()],
        user_known_hosts: Some(vec![access.known_hosts.clone()]),
        global_known_hosts: Some(Vec::new()),
        ..SshSettings::default()
    };
    let runners = RunnerSet::from_dir(&runner::directory()?)?;
    let target = Target::parse(&format!("{}@{}", access.user, access.addr()))?;
    Ok(Client::builder().runners(runners).ssh(ssh).build().connect(&target).await?)
}

async fn round_trips(bench: &mut Bench, access: &Access, directory: &Path) -> Result<()> {
    let count = async |command: &dyn Fn(&Path) -> Command| -> Result<Sample> {
        let mut counted = Sample::default();
        for run in 0..5 {
            let proxy = Proxy::builder(access.addr()).delay(DELAY).start().await?;
            let config = config(&access.via(proxy.addr().port())?, directory, &format!("proxied-{run}"))?;
            let mut command = command(&config);
            tokio::task::spawn_blocking(move || measure::wall(&mut command)).await??;
            counted.push(proxy.round_trips() as f64);
        }
        Ok(counted)
    };
    let bench_ref = &*bench;
    let cold = count(&|config| {
        let mut command = sortie(bench_ref, config);
        command.args(["--", "true"]);
        command
    })
    .await?;
    let cached = count(&|config| {
        let mut command = sortie(bench_ref, config);
        command.args(["--cache", "--", "true"]);
        command
    })
    .await?;
    let peer = count(&|config| {
        let mut command = ssh(config);
        command.arg("true");
        command
    })
    .await?;
    bench.table.row("round trips, cold: connect, upload, first result", &cold.show(1.0, ""), "≤ 9");
    bench.table.row("round trips, cached runner", &cached.show(1.0, ""), "≤ 9");
    bench.table.row("round trips, `ssh host true`", &peer.show(1.0, ""), "(8.3 to 8.8)");
    Ok(())
}

fn wall(bench: &mut Bench, access: &Access, directory: &Path) -> Result<()> {
    let config = config(access, directory, "direct")?;
    for (what, cache, kex, budget) in [
        ("`sortie exec host true` beside `ssh host true`, wall", false, None, "≤ 0.5 ×"),
        ("the same with a cached runner", true, None, "≤ 0.5 ×"),
        (
            "the same beside `ssh -o KexAlgorithms=curve25519-sha256`",
            false,
            Some("curve25519-sha256"),
            "(no budget)",
        ),
    ] {
        let (mut our_cpu, mut peer_cpu) = (Sample::default(), Sample::default());
        let (a, b, ratio) = measure::pairs(
            bench.runs,
            || {
                let before = measure::children_cpu();
                let mut command = sortie(bench, &config);
                if cache {
                    command.arg("--cache");
                }
                let took = measure::wall(command.args(["--", "true"]))?;
                our_cpu.push(measure::children_cpu() - before);
                Ok(took)
            },
            || {
                let before = measure::children_cpu();
                let mut command = ssh(&config);
                if let Some(kex) = kex {
                    command.arg("-o").arg(format!("KexAlgorithms={kex}"));
                }
                let took = measure::wall(command.arg("true"))?;
                peer_cpu.push(measure::children_cpu() - before);
                Ok(took)
            },
        )?;
        bench.table.row(
            what,
            &format!("{} beside {}: {}", a.show(1e3, "ms"), b.show(1e3, "ms"), ratio.show(1.0, "×")),
            budget,
        );
        let cpu = format!("{} beside {}", our_cpu.show(1e3, "ms"), peer_cpu.show(1e3, "ms"));
        bench.table.row("… processor time of the client", &cpu, "≤ 15 ms");
    }
    Ok(())
}

/// A hundred independent commands over a link of 100 ms, sent together.
async fn many_commands(bench: &mut Bench, access: &Access) -> Result<()> {
    let proxy = Proxy::builder(access.addr()).delay(DELAY).start().await?;
    let session = connect(&access.via(proxy.addr().port())?).await?;
    let (mut one, mut hundred) = (Sample::default(), Sample::default());
    for _ in 0..bench.runs {
        let begun = Instant::now();
        session.run(Exec::argv(["true"])).await?;
        one.push(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        let mut running = Vec::new();
        for _ in 0..100 {
            running.push(session.start(Exec::argv(["true"])).await?);
        }
        for command in running {
            ensure!(command.wait().await?.result.exit_code == 0, "true is not true");
        }
        hundred.push(begun.elapsed().as_secs_f64());
    }
    session.close().await?;
    let extra = (hundred.median() - one.median()) / (2.0 * DELAY.as_secs_f64());
    bench.table.row(
        "100 commands at once over 100 ms, beyond one command",
        &format!("{} beside {}: {extra:.2} round trips more", hundred.show(1e3, "ms"), one.show(1e3, "ms")),
        "≤ 2 round trips",
    );
    Ok(())
}
