//! The runner by itself: size, start, memory, a warm command beside a persistent shell.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use flate2::Compression;
use flate2::read::GzEncoder;
use sortie_tests::runner;

use crate::Bench;
use crate::measure::{self, Sample};

const TRUE: &str =
    r#"{"type":"CMD","data":{"id":"c","type":"exec","timeout":60,"params":{"argv":["/bin/true"]}}}"#;

/// A program that answers lines with lines.
struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).context("no pipes")?;
        Ok(Self { child, stdin, stdout: BufReader::new(stdout) })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stdout.read_line(&mut line)? > 0, "it ended");
        Ok(line)
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        self.stdin.write_all(format!("{line}\n").as_bytes())?;
        self.line()
    }

    fn end(mut self) -> Result<()> {
        drop(self.stdin);
        self.stdout.read_to_end(&mut Vec::new())?;
        self.child.wait()?;
        Ok(())
    }
}

pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let binary = runner::binary()?;
    let bytes = std::fs::read(&binary)?;
    let mut packed = Vec::new();
    GzEncoder::new(bytes.as_slice(), Compression::best()).read_to_end(&mut packed)?;
    let kib = |n: usize| n as f64 / 1024.0;
    let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
    bench.table.row(
        &format!("{name}: stripped / gzip"),
        &format!("{:.0} / {:.0} KiB", kib(bytes.len()), kib(packed.len())),
        "≤ 704 / ≤ 340 KiB",
    );

    let mut ready = Sample::default();
    let mut resident = Sample::default();
    for _ in 0..bench.runs.max(30) {
        let begun = Instant::now();
        let mut peer = Peer::start(Command::new(&binary).arg("--keep"))?;
        peer.line()?;
        ready.push(begun.elapsed().as_secs_f64());
        let guardian = i32::try_from(peer.child.id())?;
        let children = std::fs::read_to_string(format!("/proc/{guardian}/task/{guardian}/children"))?;
        let server: i32 = children.trim().parse().context("not one child")?;
        resident.push(measure::memory(guardian, "VmRSS")? + measure::memory(server, "VmRSS")?);
        peer.end()?;
    }
    bench.table.row("runner: spawn to READY", &ready.show(1e3, "ms"), "≤ 2 ms median");
    bench.table.row("runner: idle, guardian and server", &resident.show(1.0 / 1024.0, "MiB"), "≤ 1.2 MiB");

    let mut ours = Peer::start(Command::new(&binary).args(["--keep", "--concurrency", "32"]))?;
    ours.line()?;
    let mut shell = Peer::start(&mut Command::new("/bin/sh"))?;
    let (a, b, ratio) = measure::pairs(
        bench.runs * 20,
        || {
            let begun = Instant::now();
            let answer = ours.ask(TRUE)?;
            let took = begun.elapsed();
            ensure!(answer.contains("DONE"), "{answer}");
            Ok(took)
        },
        || {
            let begun = Instant::now();
            shell.ask("/bin/true; echo")?;
            Ok(begun.elapsed())
        },
    )?;
    ours.end()?;
    shell.end()?;
    bench.table.row(
        "warm `exec true` beside a persistent `sh`",
        &format!("{} beside {}: {}", a.show(1e3, "ms"), b.show(1e3, "ms"), ratio.show(1.0, "×")),
        "≤ 1.5 ×",
    );
    Ok(())
}
