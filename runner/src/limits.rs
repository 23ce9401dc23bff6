//! Limits of the programs that a command runs: which means holds each of them here, and what the programs took.
//!
//! Knows the files of a leaf (the kernel's "Control Group v2") and rlimits by name; system calls are `sys/bounds.rs`'s affair.

use sortie_protocol::{ResourceLimits, Usage};

use crate::failure::Failure;
use crate::job::Job;
use crate::sys::bounds::{Bounds, Limit, PEAK, READ, Rusage, SYSTEM, USER, WRITTEN};
use crate::sys::cgroup;
use crate::sys::keeper::Keeper;

/// Less than this no program can start in.
const LEAST_MEMORY: u64 = 1024 * 1024;

/// Microseconds in which the kernel shares out cpu.max, its own default.
const PERIOD: u64 = 100_000;

/// What a shell reports, and this runner, of a program that this signal ended.
const BY_CPU_SECONDS: i32 = 128 + libc::SIGXCPU;
const BY_FILE_BYTES: i32 = 128 + libc::SIGXFSZ;
const BY_SIGKILL: i32 = 128 + libc::SIGKILL;

/// What a program of the job is held to: `own` if it has limits beside those of the command. One that must not be ended half
/// way is only slowed down.
///
/// # Errors
/// `INVALID_PARAMS` for what cannot be meant; `UNSUPPORTED` for what cannot be held here.
pub(crate) fn bounds(job: &Job, own: Option<&ResourceLimits>, critical: bool) -> Result<Bounds, Failure> {
    let Some(limits) = own.or(job.command.limits.as_ref()) else {
        return Ok(Bounds { measured: job.command.usage, ..Bounds::default() });
    };
    check(limits)?;
    let mut plan = Plan { job, critical: critical || job.is_critical(), bounds: Bounds::default() };
    plan.bounds.measured = true;
    // Two of them: the tree's memory is not to go on in swap, and the tree ends whole rather than one process of it.
    let alone = limits.memory_bytes.is_some();
    plan.by_cgroup("memory_bytes", "memory.max", limits.memory_bytes.map(|bytes| bytes.to_string()))?;
    if alone && !plan.critical {
        plan.bounds.cgroup.push(("memory.swap.max", "0".to_owned()));
        plan.bounds.cgroup.push(("memory.oom.group", "1".to_owned()));
    }
    let quota = limits.cpu_percent.map(|percent| format!("{} {PERIOD}", u64::from(percent) * (PERIOD / 100)));
    plan.by_cgroup("cpu_percent", "cpu.max", quota)?;
    plan.by_cgroup("io_weight", "io.weight", limits.io_weight.map(|weight| weight.to_string()))?;
    match limits.processes {
        Some(count) if wait_for(job, "pids.max")? => {
            plan.by_cgroup("processes", "pids.max", Some(count.to_string()))?;
        }
        count => plan.by_rlimit("processes", Limit::Processes, count),
    }
    plan.by_rlimit("cpu_seconds", Limit::Cpu, limits.cpu_seconds);
    plan.by_rlimit("open_files", Limit::OpenFiles, limits.open_files);
    plan.by_rlimit("file_bytes", Limit::FileSize, limits.file_bytes);
    plan.by_rlimit("address_space_bytes", Limit::AddressSpace, limits.address_space_bytes);
    if let Some(nice) = limits.nice {
        plan.bounds.nice = Some(nice);
        plan.note("nice", "process");
    }
    if limits.no_new_privs && plan.may_hold("no_new_privs") {
        plan.bounds.no_new_privs = true;
        plan.note("no_new_privs", "process");
    }
    if !plan.critical {
        plan.bounds.cpu_seconds = limits.cpu_seconds;
    }
    Ok(plan.bounds)
}

/// What no program could be held to.
fn check(limits: &ResourceLimits) -> Result<(), Failure> {
    let ranges = [
        ("memory_bytes: at least 1 MiB", limits.memory_bytes, LEAST_MEMORY, u64::MAX),
        ("address_space_bytes: at least 1 MiB", limits.address_space_bytes, LEAST_MEMORY, u64::MAX),
        ("cpu_percent: 1 to 100000", limits.cpu_percent.map(u64::from), 1, 100_000),
        ("cpu_seconds: at least 1", limits.cpu_seconds, 1, u64::MAX),
        ("processes: at least 1", limits.processes, 1, u64::MAX),
        ("open_files: at least 3", limits.open_files, 3, u64::MAX),
        ("io_weight: 1 to 10000", limits.io_weight.map(u64::from), 1, 10_000),
        ("nice: -20 to 19", limits.nice.map(|nice| (i64::from(nice) + 20) as u64), 0, 39),
    ];
    match ranges.iter().find(|(_, value, least, most)| value.is_some_and(|v| !(*least..=*most).contains(&v)))
    {
        Some((range, ..)) => Err(Failure::params(format!("limits.{range}"))),
        None => Ok(()),
    }
}

/// Whether leaves have the file; waits for the scope that the session may have soon.
fn wait_for(job: &Job, file: &str) -> Result<bool, Failure> {
    loop {
        if let Some(has) = cgroup::has(file) {
            return Ok(has);
        }
        job.go_on()?;
    }
}

struct Plan<'a> {
    job: &'a Job,
    critical: bool,
    bounds: Bounds,
}

impl Plan<'_> {
    fn by_cgroup(
        &mut self,
        name: &'static str,
        file: &'static str,
        value: Option<String>,
    ) -> Result<(), Failure> {
        let Some(value) = value else { return Ok(()) };
        if !wait_for(self.job, file)? {
            return Err(Failure::unsupported(format!(
                "limits.{name} takes a cgroup with {file}: root, systemd, cgroup v2 with that controller and Linux 5.14; nothing was run"
            )));
        }
        if matches!(name, "cpu_percent" | "io_weight") || self.may_hold(name) {
            self.bounds.cgroup.push((file, value));
            self.note(name, "cgroup");
        }
        Ok(())
    }

    fn by_rlimit(&mut self, name: &'static str, limit: Limit, value: Option<u64>) {
        if let Some(value) = value
            && self.may_hold(name)
        {
            self.bounds.rlimits.push((limit, value));
            self.note(name, "rlimit");
        }
    }

    /// Whether a limit that may end a program half way, or make it fail, is to hold for this one.
    fn may_hold(&self, name: &str) -> bool {
        if self.critical {
            self.job.account(&|usage| {
                if !usage.exempt.iter().any(|exempt| exempt == name) {
                    usage.exempt.push(name.to_owned());
                }
            });
        }
        !self.critical
    }

    fn note(&self, name: &str, means: &str) {
        self.job.account(&|usage| _ = usage.limited_by.insert(name.to_owned(), means.to_owned()));
    }
}

/// The number behind `name` and a blank, or behind `name` and `=` in all lines together.
fn number(text: &str, name: &str) -> u64 {
    let words = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let pairs = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    words.chain(pairs).filter_map(|number| number.parse::<u64>().ok()).sum()
}

/// Microseconds of processor time that the keeper's tree took so far; none without a leaf.
pub(crate) fn cpu_so_far(keeper: &Keeper) -> Option<u64> {
    Some(number(&keeper.leaf_file("cpu.stat")?, "usage_usec"))
}

/// Adds what the tree of a program took, which ended with this code. `overrun`: for its time as a tree.
pub(crate) fn account(
    job: &Job,
    keeper: &Keeper,
    bounds: &Bounds,
    took: &Rusage,
    exit_code: i32,
    overrun: bool,
) {
    if !bounds.measured {
        return;
    }
    let file = |name| keeper.leaf_file(name);
    let (cpu, peak, io) = (file("cpu.stat"), file("memory.peak"), file("io.stat"));
    let (memory, pids) = (file("memory.events").unwrap_or_default(), file("pids.events").unwrap_or_default());
    let means = |file: &Option<String>| if file.is_some() { "cgroup" } else { "rusage" };
    let measured = [("cpu", means(&cpu)), ("memory", means(&peak)), ("io", means(&io))];
    let micros = match &cpu {
        Some(text) => [number(text, "user_usec"), number(text, "system_usec")],
        None => [took[USER], took[SYSTEM]],
    };
    let peak = peak.map_or(took[PEAK], |text| text.trim_ascii().parse().unwrap_or(0));
    let [read, written] = match &io {
        Some(text) => [number(text, "rbytes"), number(text, "wbytes")],
        None => [took[READ], took[WRITTEN]],
    };
    let seconds = (micros[0] + micros[1]) / 1_000_000;
    let too_long = bounds.cpu_seconds.is_some_and(|limit| {
        overrun || exit_code == BY_CPU_SECONDS || exit_code == BY_SIGKILL && seconds >= limit
    });
    let is_limited = |limit| bounds.rlimits.iter().any(|(resource, _)| *resource == limit);
    let reached = [
        ("memory_bytes", number(&memory, "oom_kill") > 0 && number(&memory, "oom") > 0),
        ("cpu_seconds", too_long),
        ("file_bytes", exit_code == BY_FILE_BYTES && is_limited(Limit::FileSize)),
        ("processes", number(&pids, "max") > 0),
    ];
    job.account(&|usage: &mut Usage| {
        usage.cpu_user_seconds += micros[0] as f64 / 1e6;
        usage.cpu_system_seconds += micros[1] as f64 / 1e6;
        usage.memory_peak_bytes = usage.memory_peak_bytes.max(peak);
        usage.read_bytes += read;
        usage.written_bytes += written;
        for (what, means) in measured {
            usage.measured_by.insert(what.to_owned(), means.to_owned());
        }
        if let Some((name, _)) = reached.iter().find(|(_, reached)| *reached) {
            usage.limit.get_or_insert_with(|| (*name).to_owned());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_both_forms_of_a_leafs_files() {
        assert_eq!(number("usage_usec 12\nuser_usec 7\nsystem_usec 5\n", "user_usec"), 7);
        let text = "254:0 rbytes=4096 wbytes=1 rios=1\n254:16 rbytes=10 wbytes=2 rios=7\n";
        assert_eq!((number(text, "rbytes"), number(text, "wbytes")), (4106, 3));
        assert_eq!((number("oom 1\noom_kill 2\n", "oom"), number("max x\n", "max")), (1, 0));
    }
}
