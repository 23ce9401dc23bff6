//! A list of a hundred steps by `sortie apply`, beside other programs that do the same on the same host: wall time and the
//! processor time of the controlling side, its children included (OpenSSH's master process, which outlives them, is not).

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use sortie_tests::access::Access;
use sortie_tests::sshd::Sshd;

use crate::Bench;
use crate::connect::config;
use crate::measure::{self, Sample};
use crate::peers::{Peer, Peers, Step};

/// What a pass took, in seconds.
struct Took {
    wall: f64,
    cpu: f64,
}

/// The file in which lines are edited.
const EDITED: &str = "/srv/bench/app.conf";

/// What is there before the first pass.
const BEGIN: &str = "rm -rf /srv/bench && mkdir -p /srv/bench && for i in $(seq 25); do echo \"key$i=old\"; done > /srv/bench/app.conf";
/// What is there after each.
const END: &str = "test $(ls /srv/bench | wc -l) = 51 && test $(grep -c '=new$' /srv/bench/app.conf) = 25 && test \"$(cat /srv/bench/file7)\" = 'content of file 7'";

pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    let Some(directory) = std::env::var_os("SORTIE_BENCH_PEERS") else {
        bench.table.row(
            "100 commands by `apply`",
            "not measured: SORTIE_BENCH_PEERS names no directory",
            "(skipped)",
        );
        return Ok(());
    };
    let peers = match Peers::install(directory.into()) {
        Ok(peers) => peers,
        Err(error) => {
            let text = format!("not measured: {error:#}").replace(['\n', '|'], " ");
            bench.table.row("100 commands by `apply`", &text, "(skipped)");
            return Ok(());
        }
    };
    bench.table.row("peers of `apply`, from PyPI", &peers.versions, "(no budget)");
    let host = Sshd::builder().user("root").start()?;
    let directory = tempfile::tempdir()?;
    let nothing: Vec<Step> = (0..100).map(|_| Step::True).collect();
    for (what, work, mixed) in [
        ("100 × `true`", &nothing, false),
        ("50 small files, 25 edits of lines, 25 × `true`", &mixed(), true),
    ] {
        list(bench, &peers, &host, directory.path(), what, work, mixed)?;
    }
    Ok(())
}

fn mixed() -> Vec<Step> {
    let mut work = Vec::new();
    for number in 1..=25 {
        for number in [number, number + 25] {
            work.push(Step::Write(format!("/srv/bench/file{number}"), format!("content of file {number}\n")));
        }
        let (regexp, line) = (format!("^key{number}="), format!("key{number}=new"));
        work.push(Step::Line { path: EDITED, regexp, line });
        work.push(Step::True);
    }
    work
}

/// One list by everybody in turn, from the same beginning.
fn list(
    bench: &mut Bench,
    peers: &Peers,
    host: &Sshd,
    directory: &Path,
    what: &str,
    work: &[Step],
    mixed: bool,
) -> Result<()> {
    let is = |script: &str| -> Result<()> {
        let ran = host.run(script)?;
        ensure!(!mixed || ran.status.success(), "{what}: the host is not as it should be: {ran:?}");
        Ok(())
    };
    let two_passes = |command: &mut Command| -> Result<[Took; 2]> {
        is(BEGIN)?;
        let first = pass(command)?;
        is(END)?;
        let second = pass(command)?;
        is(END)?;
        Ok([first, second])
    };
    // A place for each pass: ours, then for each peer its own and how many times ours that is.
    let mut ours = [(); 2].map(|()| (Sample::default(), Sample::default()));
    let mut theirs = Peer::ALL.map(|_| [(); 2].map(|()| [(); 4].map(|()| Sample::default())));
    for _ in 0..bench.runs.clamp(1, 3) {
        let own = two_passes(&mut sortie(bench, host.access(), directory, work)?)?;
        for (took, (wall, cpu)) in own.iter().zip(&mut ours) {
            wall.push(took.wall);
            cpu.push(took.cpu);
        }
        for (peer, samples) in Peer::ALL.into_iter().zip(&mut theirs) {
            let passes = two_passes(&mut peers.command(peer, host.access(), directory, work)?)?;
            for ((took, own), [wall, cpu, wall_ratio, cpu_ratio]) in passes.iter().zip(&own).zip(samples) {
                wall.push(took.wall);
                cpu.push(took.cpu);
                wall_ratio.push(took.wall / own.wall);
                cpu_ratio.push(took.cpu / own.cpu);
            }
        }
    }
    for (pass, (wall, cpu)) in ["first pass", "second pass"].into_iter().zip(&ours) {
        let figure = format!("{}, {} of processor time", wall.show(1.0, "s"), cpu.show(1.0, "s"));
        bench.table.row(&format!("{what} by `sortie apply`, {pass}"), &figure, "(below)");
    }
    for (peer, samples) in Peer::ALL.into_iter().zip(&theirs) {
        for (pass, [wall, cpu, wall_ratio, cpu_ratio]) in
            ["first pass", "second pass"].into_iter().zip(samples)
        {
            let figure = format!(
                "{}, {}; processor time {}, {}",
                wall.show(1.0, "s"),
                wall_ratio.show(1.0, "× ours"),
                cpu.show(1.0, "s"),
                cpu_ratio.show(1.0, "× ours")
            );
            let budget = if peer == Peer::Ansible { "≥ 50 × ours" } else { "≥ 15 × ours" };
            bench.table.row(&format!("… by {}, {pass}", peer.name()), &figure, budget);
        }
    }
    Ok(())
}

/// Runs it once; what it says is shown only if it fails.
fn pass(command: &mut Command) -> Result<Took> {
    let before = measure::children_cpu();
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let wall = begun.elapsed().as_secs_f64();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said[said.len().saturating_sub(2000)..]).into_owned();
    ensure!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    Ok(Took { wall, cpu: measure::children_cpu() - before })
}

fn sortie(bench: &Bench, access: &Access, directory: &Path, work: &[Step]) -> Result<Command> {
    let config = config(access, directory, "apply")?;
    let steps: Vec<serde_json::Value> = work
        .iter()
        .enumerate()
        .map(|(at, step)| {
            let (kind, params) = match step {
                Step::True => ("exec", serde_json::json!({"argv": ["true"]})),
                Step::Write(path, content) => {
                    ("file_write", serde_json::json!({"path": path, "content": content, "mode": "0644"}))
                }
                Step::Line { path, regexp, line } => {
                    ("line_ensure", serde_json::json!({"path": path, "regexp": regexp, "line": line}))
                }
            };
            serde_json::json!({"id": format!("s{at}"), "type": kind, "params": params})
        })
        .collect();
    let list = directory.join("list.json");
    std::fs::write(&list, serde_json::Value::from(steps).to_string())?;
    let mut command = Command::new(&bench.sortie);
    command.args(["apply", "-F"]).arg(config).args(["-H", "bench"]).arg(list);
    Ok(command)
}
