//! Numbers and their spread; processes and their cost.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Measurements of one thing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    pub(crate) fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Median, lowest and highest, each times `scale`.
    pub(crate) fn show(&self, scale: f64, unit: &str) -> String {
        let (low, high) = (self.0.first().unwrap_or(&f64::NAN), self.0.last().unwrap_or(&f64::NAN));
        format!("{:.2} {unit} ({:.2} to {:.2})", self.median() * scale, low * scale, high * scale)
    }
}

/// Two things in turn, A B A B …, and the ratio pair by pair, which a drifting machine does not change.
pub(crate) fn pairs(
    runs: usize,
    mut ours: impl FnMut() -> Result<Duration>,
    mut peer: impl FnMut() -> Result<Duration>,
) -> Result<(Sample, Sample, Sample)> {
    ours()?;
    peer()?;
    let (mut a, mut b, mut ratio) = (Sample::default(), Sample::default(), Sample::default());
    for _ in 0..runs {
        let (x, y) = (ours()?.as_secs_f64(), peer()?.as_secs_f64());
        a.push(x);
        b.push(y);
        ratio.push(x / y);
    }
    Ok((a, b, ratio))
}

/// Wall time of a program that must succeed, from its start to its end, its output thrown away.
pub(crate) fn wall(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    let took = begun.elapsed();
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(took)
}

/// A line of /proc/PID/status in KiB.
pub(crate) fn memory(pid: i32, line: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    Ok(value.and_then(|v| v.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(f64::NAN))
}

/// Seconds of processor time that all ended children of this process used.
pub(crate) fn children_cpu() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    usage.map_or(f64::NAN, |u| seconds(u.user_time()) + seconds(u.system_time()))
}
