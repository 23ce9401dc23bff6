//! The `sortie` command: arguments in, events out. How hosts are reached and what is done there is the client's; each
//! verb has a file of its own, and only `report` writes to standard output and standard error.
#![forbid(unsafe_code)]

mod apply;
mod audit;
mod completions;
mod doctor;
mod edit;
mod ensure;
mod exec;
mod facts;
mod file;
mod fleet;
mod get;
mod harden;
mod limits;
mod options;
mod outcome;
mod pipe;
mod pkg;
mod place;
mod put;
mod report;
mod runners;
mod secrets;
mod service;
mod sh;
mod sign;
mod signals;
mod source;
mod sudoers;
mod terminal;
mod unpack;
mod wait;
mod watch;
mod words;

use std::io::{self, Write as _};

use clap::{Parser, Subcommand};
use sortie_client::secret::Secret;

/// Runs commands on hosts that have nothing but an SSH server and a POSIX sh, and leaves nothing behind.
#[derive(Parser)]
#[command(name = "sortie", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const AFTER_HELP: &str = "\
Exit status
  one host:       the command's own; 124 after a timeout; 128+n after signal n;
                  126 or 127 where the program could not be started;
                  255 where Sortie itself failed
  several hosts:  0 all fine; 1 some failed; 3 some could not be reached
  wrong usage:    2";

#[derive(Subcommand)]
enum Verb {
    /// Run a program with exactly these arguments; no shell takes part
    Exec(exec::Arguments),
    /// Run a line of shell (/bin/sh -c)
    Sh(sh::Arguments),
    /// Write one file on the hosts, atomically
    Put(put::Arguments),
    /// Fetch one file, whole and verified
    Get(get::Arguments),
    /// Look at files, directories and links, and bring them where they should be
    File(file::Arguments),
    /// Install, upgrade, downgrade or remove packages
    Pkg(pkg::Arguments),
    /// Reload, restart, start, stop, enable, disable, mask or unmask services
    Service(service::Arguments),
    /// Give a user or group a rule of sudo, or take it away
    Sudoers(sudoers::Arguments),
    /// Tell what the hosts are: system, hardware, network, mounts, disks, accounts, packages, units
    Facts(facts::Arguments),
    /// Wait until a port, a path or a unit is as it should be
    Wait(wait::Arguments),
    /// Settings of the SSH server, in force afterwards or not at all
    Harden(harden::Arguments),
    /// Apply a list of steps in YAML or JSON: files, packages, services, programs, in order
    Apply(apply::Arguments),
    /// Connect standard input and output to a runner: the protocol, for any language
    Pipe(pipe::Arguments),
    /// Sign commands for a runner that takes no others, to be carried there by somebody else
    Sign(sign::Arguments),
    /// Go through every step of reaching a host, and say what is wrong and what to do
    Doctor(doctor::Arguments),
    /// Show what an audit log tells, or find out whether it is as it was written
    Audit(audit::Arguments),
    /// Show the runners that this command carries
    Runners(runners::Arguments),
    /// Print a script that completes this command's arguments in a shell
    Completions(completions::Arguments),
}

impl Verb {
    async fn run(self) -> anyhow::Result<i32> {
        match self {
            Self::Exec(arguments) => exec::run(arguments).await,
            Self::Sh(arguments) => sh::run(arguments).await,
            Self::Put(arguments) => put::run(arguments).await,
            Self::Get(arguments) => get::run(arguments).await,
            Self::File(arguments) => file::run(arguments).await,
            Self::Pkg(arguments) => pkg::run(arguments).await,
            Self::Service(arguments) => service::run(arguments).await,
            Self::Sudoers(arguments) => sudoers::run(arguments).await,
            Self::Facts(arguments) => facts::run(arguments).await,
            Self::Wait(arguments) => wait::run(arguments).await,
            Self::Harden(arguments) => harden::run(arguments).await,
            Self::Apply(arguments) => apply::run(arguments).await,
            Self::Pipe(arguments) => pipe::run(arguments).await,
            Self::Sign(arguments) => sign::run(arguments).await,
            Self::Doctor(arguments) => doctor::run(arguments).await,
            Self::Audit(arguments) => audit::run(arguments),
            Self::Runners(arguments) => runners::run(&arguments),
            Self::Completions(arguments) => completions::run(&arguments),
        }
    }
}

fn main() {
    keep_memory_to_ourselves();
    if let Some(answer) = sortie_client::transport::openssh::askpass::answer() {
        std::process::exit(answer_ssh(answer));
    }
    let verb = Arguments::parse().verb;
    #[cfg(feature = "otel")]
    let export = spans_to_collector();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let result = runtime.block_on(async {
                let result = verb.run().await;
                audit::settled().await;
                result
            });
            // A thread may still wait for standard input.
            runtime.shutdown_background();
            result
        });
    #[cfg(feature = "otel")]
    if let Some(Err(error)) = export.map(sortie_otel::Export::finish) {
        report::plain_error(&error.into());
    }
    let status = result.unwrap_or_else(|error| {
        report::plain_error(&error);
        if error.is::<outcome::Usage>() { outcome::USAGE } else { outcome::FAILED }
    });
    std::process::exit(status)
}

/// No core dump, and no other process of this user that looks into this one's memory: it holds passwords. Programs that
/// are started from here are not bound by it (prctl(2), PR_SET_DUMPABLE).
fn keep_memory_to_ourselves() {
    // Where the kernel will not, nothing is lost but this.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_dumpable(false);
}

/// This process was started by ssh to ask for something (`--ssh`): the answer is for its standard output.
fn answer_ssh(answer: io::Result<Secret>) -> i32 {
    let written = answer.and_then(|secret| {
        let mut out = io::stdout().lock();
        out.write_all(secret.expose().as_bytes())?;
        out.write_all(b"\n")?;
        out.flush()
    });
    i32::from(written.is_err())
}

/// Where the environment names a collector. What cannot be sent there is said, and stops nothing.
#[cfg(feature = "otel")]
fn spans_to_collector() -> Option<sortie_otel::Export> {
    let export = sortie_otel::Export::from_env("sortie").and_then(|export| {
        export.as_ref().map_or(Ok(()), sortie_otel::Export::install)?;
        Ok(export)
    });
    export.unwrap_or_else(|error| {
        report::plain_error(&error.into());
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Arguments::command().debug_assert();
    }
}
