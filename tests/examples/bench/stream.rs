//! Output in bulk: throughput beside `ssh host cat`, and memory with a reader of 1 MB/s.

use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use sortie_tests::sshd::Sshd;

use crate::Bench;
use crate::connect::{config, sortie, ssh};
use crate::measure;

/// A file of 64 MiB of text, which is read sixteen times.
const MAKE: &str = "yes 'a line of text such as programs write into their logs, neither short nor long' | head -c 67108864 > /tmp/big";
const CAT: &str = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do cat /tmp/big; done";

/// How long the slow reader reads.
const SLOWLY: Duration = Duration::from_secs(8);

pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let host = Sshd::builder().user("root").start()?;
    let made = host.run(MAKE)?;
    anyhow::ensure!(made.status.success(), "cannot make the file");
    let directory = tempfile::tempdir()?;
    let config = config(host.access(), directory.path(), "stream")?;
    let (a, b, ratio) = measure::pairs(
        (bench.runs / 3).max(3),
        || measure::wall(sortie(bench, &config).args(["--", "sh", "-c", CAT])),
        || measure::wall(ssh(&config).arg(CAT)),
    )?;
    // Speed, not time: the other way round.
    bench.table.row(
        "1 GiB of output beside `ssh host cat`, speed",
        &format!("{} beside {}: {:.2} × its speed", a.show(1.0, "s"), b.show(1.0, "s"), 1.0 / ratio.median()),
        "≥ 0.6 ×",
    );
    slow_reader(bench, &host, &config)
}

fn slow_reader(bench: &mut Bench, host: &Sshd, config: &Path) -> Result<()> {
    let mut child = sortie(bench, config)
        .args(["--", "sh", "-c", CAT])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = child.stdout.take().context("no pipe")?;
    let begun = Instant::now();
    let mut buffer = vec![0; 100_000];
    while begun.elapsed() < SLOWLY {
        stdout.read_exact(&mut buffer)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let client = measure::memory(i32::try_from(child.id())?, "VmHWM")?;
    let mut runner = f64::NAN;
    for process in host.processes()? {
        if process.name.starts_with("sortie-server") {
            runner = measure::memory(process.machine_pid, "VmHWM")?;
        }
    }
    // Its reader goes away, as a user's would; the session ends with it.
    drop(stdout);
    child.wait()?;
    bench.table.row(
        "most memory with a reader of 1 MB/s: runner / client",
        &format!("{:.1} / {:.1} MiB", runner / 1024.0, client / 1024.0),
        "≤ 24 / ≤ 32 MiB",
    );
    Ok(())
}
