//! `--limit` and `--usage`: what the programs of a command may take on hosts, and what they took.

use std::sync::Arc;

use sortie_client::protocol::{ResourceLimits, Usage};
use sortie_client::{CommandOptions, Error};

use crate::fleet::Task;
use crate::outcome::usage;
use crate::report::Event;
use crate::words;

/// What programs may take. For verbs whose commands run programs on hosts.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct Limiting {
    /// Limit each program with all that it starts: memory=512M, cpu=50%, cpu_seconds=1m, processes=100, open_files=64,
    /// file_size=1G, address_space=2G, nice=10, io_weight=50, no_new_privs; may be repeated
    #[arg(long = "limit", value_name = "NAME=VALUE", value_parser = limit)]
    limits: Vec<ResourceLimits>,
    /// Say what the programs took; --limit does so too
    #[arg(long)]
    usage: bool,
}

impl Limiting {
    /// Has commands run within these limits.
    ///
    /// # Errors
    /// For a limit that is given twice.
    pub(crate) fn add_to(&self, options: &mut CommandOptions) -> anyhow::Result<()> {
        let mut all = ResourceLimits::default();
        for one in &self.limits {
            if !merge(&mut all, one) {
                return Err(usage("--limit: each limit once"));
            }
        }
        options.limits = (all != ResourceLimits::default()).then_some(all);
        options.usage = self.usage;
        Ok(())
    }
}

/// Adds what the other has; whether nothing of it was there.
fn merge(all: &mut ResourceLimits, one: &ResourceLimits) -> bool {
    fn take<T: Clone>(all: &mut Option<T>, one: &Option<T>) -> bool {
        one.as_ref().is_none_or(|one| all.replace(one.clone()).is_none())
    }
    let fresh = !(all.no_new_privs && one.no_new_privs);
    all.no_new_privs |= one.no_new_privs;
    fresh
        & take(&mut all.memory_bytes, &one.memory_bytes)
        & take(&mut all.address_space_bytes, &one.address_space_bytes)
        & take(&mut all.cpu_percent, &one.cpu_percent)
        & take(&mut all.cpu_seconds, &one.cpu_seconds)
        & take(&mut all.processes, &one.processes)
        & take(&mut all.open_files, &one.open_files)
        & take(&mut all.file_bytes, &one.file_bytes)
        & take(&mut all.nice, &one.nice)
        & take(&mut all.io_weight, &one.io_weight)
}

/// One `NAME=VALUE`.
fn limit(text: &str) -> Result<ResourceLimits, String> {
    let mut limits = ResourceLimits::default();
    if text == "no_new_privs" {
        limits.no_new_privs = true;
        return Ok(limits);
    }
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, or no_new_privs")?;
    let whole = || value.parse::<u64>().map_err(|_| format!("{name}: a whole number"));
    let in_range = |number: Option<u64>, least, most, what: &str| {
        number.filter(|number| (least..=most).contains(number)).ok_or_else(|| format!("{name}: {what}"))
    };
    let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    match name {
        "memory" => limits.memory_bytes = Some(bytes(value)?),
        "address_space" => limits.address_space_bytes = Some(bytes(value)?),
        "file_size" => limits.file_bytes = Some(bytes(value)?),
        "cpu" => {
            let percent = value.strip_suffix('%').unwrap_or(value).parse().ok();
            let percent = in_range(percent, 1, 100_000, "percent of one processor, such as 50%")?;
            limits.cpu_percent = Some(narrow(percent));
        }
        "cpu_seconds" => limits.cpu_seconds = Some(words::duration(value)?.as_secs()),
        "processes" => limits.processes = Some(whole()?),
        "open_files" => limits.open_files = Some(whole()?),
        "io_weight" => {
            limits.io_weight = Some(narrow(in_range(value.parse().ok(), 1, 10_000, "1 to 10000")?));
        }
        "nice" => {
            let nice = value.parse().ok().filter(|nice| (-20..20).contains(nice));
            limits.nice = Some(nice.ok_or("nice: -20 to 19")?);
        }
        _ => {
            return Err(
                "there are memory, cpu, cpu_seconds, processes, open_files, file_size, address_space, nice, \
                 io_weight and no_new_privs"
                    .into(),
            );
        }
    }
    Ok(limits)
}

/// `4096`, `512K`, `512M`, `2G`, `1T`: powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G', 'T', 'k', 'm', 'g', 't']) {
        Some(digits) => (digits, 10 * ("kmgt".find(&text[digits.len()..].to_lowercase()).unwrap_or(0) + 1)),
        None => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.ok_or_else(|| "write bytes, or a number with K, M, G or T, such as 512M".into())
}

/// Shows what a command's programs took, if that was asked for.
pub(crate) fn show(task: &Task, usage: Option<Usage>) {
    if let Some(usage) = usage {
        task.reporter.show(Event::Usage { host: Arc::clone(&task.host), usage });
    }
}

/// The same of a command that failed.
pub(crate) fn show_of_error(task: &Task, error: &Error) {
    if let Error::Command { error, .. } = error {
        show(task, error.usage.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_its_word_and_its_unit() {
        let is = |text: &str, check: fn(&ResourceLimits) -> bool| check(&limit(text).unwrap());
        assert!(is("memory=512M", |limits| limits.memory_bytes == Some(512 << 20)));
        assert!(is("address_space=2g", |limits| limits.address_space_bytes == Some(2 << 30)));
        assert!(is("file_size=100", |limits| limits.file_bytes == Some(100)));
        assert!(is("cpu=50%", |limits| limits.cpu_percent == Some(50)));
        assert!(is("cpu=250", |limits| limits.cpu_percent == Some(250)));
        assert!(is("cpu_seconds=2m", |limits| limits.cpu_seconds == Some(120)));
        assert!(is("nice=-5", |limits| limits.nice == Some(-5)));
        assert!(is("no_new_privs", |limits| limits.no_new_privs));
        for wrong in
            ["memory", "memory=", "memory=1X", "memory=99999999T", "cpu=0", "cpu=x%", "nice=20", "disk=1"]
        {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_limit_is_given_once() {
        let limits = |texts: &[&str]| {
            let limits = texts.iter().map(|text| limit(text).unwrap()).collect();
            let mut options = CommandOptions::default();
            Limiting { limits, usage: false }.add_to(&mut options).map(|()| options.limits)
        };
        assert_eq!(limits(&[]).unwrap(), None);
        let both = limits(&["memory=1M", "nice=1"]).unwrap().unwrap();
        assert_eq!((both.memory_bytes, both.nice), (Some(1 << 20), Some(1)));
        assert!(limits(&["nice=1", "nice=2"]).is_err() && limits(&["no_new_privs", "no_new_privs"]).is_err());
    }
}
