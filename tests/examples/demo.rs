//! `cargo xtask demo`: the main job, against an SSH server of our own on loopback. Every claim it prints is checked.

use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sortie_client::observe::{Observer, Step};
use sortie_client::protocol::ErrorCode;
use sortie_client::protocol::command::exec::Exec;
use sortie_client::protocol::command::file_read::FileRead;
use sortie_client::protocol::command::file_write::FileWrite;
use sortie_client::session::output;
use sortie_client::ssh_config::ConfigSource;
use sortie_client::{Client, CommandOptions, Error, RunnerSet, SshSettings, Target};
use sortie_tests::embedded::Embedded;
use sortie_tests::{access::Access, runner};

/// Prints each step of reaching the host.
struct Narrator;

impl Observer for Narrator {
    fn step_finished(&self, step: Step, took: Duration, round_trips: u32, detail: &str) {
        let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        say(&format!("    {step}: {:.1} ms, {round_trips} round trips{detail}", took.as_secs_f64() * 1e3));
    }
}

fn say(line: &str) {
    // A reader that has gone away is no reason to stop proving things.
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[tokio::main]
async fn main() -> Result<()> {
    say("1. An SSH server of our own on loopback, with a fresh key and an empty home directory.");
    let server = Embedded::builder().start().await?;
    let access = server.access();
    say(&format!("    listening on 127.0.0.1:{}", access.port));

    say("2. One connection, one channel: upload the runner and start it.");
    let session = client(access)?.connect(&target(access)?).await?;
    let ready = session.ready();
    let host = ready.host.clone().context("READY without facts")?;
    say(&format!(
        "    READY: runner {} on {} {} {}, {} processors, as {}, process {}",
        ready.version, host.os_id, host.os_version, ready.arch, host.cpus, host.user, ready.pid
    ));
    ensure!(server.files()?.is_empty(), "the runner left its file: {:?}", server.files()?);
    say("    its file is gone from the disk already");

    say("3. A command, its output streamed as it comes.");
    let begun = Instant::now();
    let line = "for i in 1 2 3; do echo \"line $i\"; sleep 0.2; done; echo careful >&2; exit 7";
    let mut running = session.start(Exec::shell(line).stream_lines(true)).await?;
    while let Some(event) = running.next_event().await {
        if let Some((stream, bytes)) = output(&event) {
            let text = String::from_utf8_lossy(&bytes);
            say(&format!("    {:6.3} s {stream:?}: {}", begun.elapsed().as_secs_f64(), text.trim_end()));
        }
    }
    let done = running.wait().await?;
    ensure!(done.result.exit_code == 7, "exit status {} instead of 7", done.result.exit_code);
    say("    exit status 7, as it should be");

    say("4. A file, written atomically and read back.");
    let path = server.home().join("greeting").to_string_lossy().into_owned();
    let content = "hello from sortie\n";
    let written = session.run(FileWrite::new(&path).content(content).mode(0o640)).await?.result;
    let again = session.run(FileWrite::new(&path).content(content).mode(0o640)).await?.result;
    let read = session.run(FileRead::new(&path)).await?.result;
    ensure!(written.created && written.changed && !again.changed, "{written:?} {again:?}");
    ensure!(read.content == content && read.mode == "0640" && read.checksum == written.checksum, "{read:?}");
    say(&format!("    created, mode 0640, sha256 {}…; the second time: unchanged", &read.checksum[..16]));

    say("5. A timeout that ends a whole process tree, a daemon in a session of its own included.");
    let tree = "setsid sleep 1000 & sleep 1000 & wait";
    let options = CommandOptions { timeout: Duration::from_secs(1), ..CommandOptions::default() };
    let running = session.start_with(&Exec::shell(tree), options).await?;
    match running.wait().await {
        Err(Error::Command { error, .. }) if error.code == ErrorCode::Timeout => {
            say(&format!("    ERROR {}: {}", error.code, error.message));
        }
        other => bail!("no timeout: {other:?}"),
    }
    let sleeping: Vec<_> = server.processes().into_iter().filter(|p| p.command.contains("sleep")).collect();
    ensure!(sleeping.is_empty(), "still running: {sleeping:?}");
    say("    no process of that tree is left");

    say("6. The end of the session, and the proof that nothing is left.");
    let farewell = session.close().await?;
    ensure!(farewell.is_proven(), "{farewell:?}");
    let exit = farewell.exit.context("no EXIT")?;
    say(&format!("    EXIT {:?}, {} commands", exit.reason, exit.commands_total));
    server.quiet().await?;
    fs::remove_file(&path)?;
    let files = server.files()?;
    ensure!(files.is_empty(), "files left: {files:?}");
    say("    no process and no file of Sortie is left on the host");
    Ok(())
}

fn client(access: &Access) -> Result<Client> {
    let directory = runner::directory()?;
    let runners = RunnerSet::from_dir(&directory)?;
    ensure!(!runners.is_empty(), "no runner in {}", directory.display());
    for (machine, runner) in runners.iter() {
        say(&format!(
            "    runner for {}: {} bytes, {} packed",
            machine.target(),
            runner.bytes().len(),
            runner.gzip().len()
        ));
    }
    let ssh = SshSettings {
        config: ConfigSource::None,
        identities: vec![access.identity.clone()],
        user_known_hosts: Some(vec![access.known_hosts.clone()]),
        global_known_hosts: Some(Vec::new()),
        ..SshSettings::default()
    };
    Ok(Client::builder().runners(runners).ssh(ssh).observer(Arc::new(Narrator)).build())
}

fn target(access: &Access) -> Result<Target> {
    Ok(Target::parse(&format!("{}@127.0.0.1:{}", access.user, access.port))?)
}
