//! Keeps a service on a host: its unit file, that it runs, and a line about it in the message of the day. It says what it
//! would change, changes it where it is told `--yes`, shows the service, and proves that nothing of it is left behind.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use sortie_client::protocol::command::exec::Exec;
use sortie_client::protocol::command::file_write::{FileWrite, FileWriteResult};
use sortie_client::protocol::command::service_reload::{ServiceReload, ServiceReloadResult};
use sortie_client::protocol::message::{Become, BecomeMethod, HostFacts};
use sortie_client::protocol::{CommandSpec, ErrorCode};
use sortie_client::session::output;
use sortie_client::{Client, CommandOptions, Error, RunnerSet, Session, Target};

const USAGE: &str = "usage: embed [--yes] [USER@]HOST[:PORT] DIRECTORY-OF-RUNNERS";

const UNIT: &str = "\
[Unit]
Description=Says every minute that this host is alive

[Service]
ExecStart=/bin/sh -c 'while :; do echo alive; sleep 60; done'
DynamicUser=yes

[Install]
WantedBy=multi-user.target
";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (yes, arguments) = match arguments.split_first() {
        Some((first, rest)) if first == "--yes" => (true, rest),
        _ => (false, &arguments[..]),
    };
    let [host, runners] = arguments else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match manage(host, runners, yes).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("embed: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn manage(host: &str, runners: &str, yes: bool) -> Result<(), Problem> {
    // What is wrong here is found before a host is bothered.
    let target = Target::parse(host).map_err(|error| Problem::Here(format!("{host}: {error}")))?;
    let runners = RunnerSet::from_dir(runners.as_ref()).map_err(|error| Problem::Here(error.to_string()))?;
    let client = Client::builder().ttl(Duration::from_secs(300)).runners(runners).build();

    let session = client.connect(&target).await?;
    // These facts come with the session and cost nothing.
    let facts = session.ready().host.clone().unwrap_or_default();
    let host = Host { session, facts, yes };
    let managed = bring_about(&host).await;
    // Also after an error: only this tells whether anything of us is left on the host.
    let farewell = host.session.close().await?;
    managed?;
    if !farewell.is_proven() {
        return Err(Problem::Host("the runner was not seen to end".to_owned()));
    }
    println!("nothing is left behind");
    Ok(())
}

/// All that this tool knows of how a host should be.
async fn bring_about(host: &Host) -> Result<(), Problem> {
    let facts = &host.facts;
    println!("{}: {} {}, {} CPUs", facts.hostname, facts.os_id, facts.os_version, facts.cpus);
    if facts.init != "systemd" {
        return Err(Problem::Host(format!("{} is run by {}, not by systemd", facts.hostname, facts.init)));
    }

    // Neither waits for the other: both are on their way at once.
    let motd = format!("{} is watched over by alive.service\n", facts.hostname);
    let (_, unit_changed) = tokio::try_join!(
        host.ensure("motd", FileWrite::new("/etc/motd").content(motd).mode(0o644)),
        host.ensure("unit", FileWrite::new("/etc/systemd/system/alive.service").content(UNIT).mode(0o644)),
    )?;
    if unit_changed && !host.yes {
        println!("service: would be enabled and restarted then");
        return Ok(());
    }
    host.ensure("enabled", ServiceReload::enable("alive")).await?;
    if unit_changed {
        host.ensure("service", ServiceReload::restart("alive")).await?;
    } else {
        host.ensure("service", ServiceReload::start("alive")).await?;
    }
    // Not every host has it, and where it is not there is nothing to disable.
    match host.ensure("cron", ServiceReload::disable("cron")).await {
        Err(Error::Command { error, .. }) if error.code == ErrorCode::NotFound => println!("cron: not there"),
        other => drop(other?),
    }
    host.stream(Exec::argv(["systemctl", "show", "--property=Id,ActiveState,UnitFileState", "alive"])).await
}

/// A host with a session on it.
struct Host {
    session: Session,
    facts: HostFacts,
    yes: bool,
}

impl Host {
    /// Brings something about, unless it is so already. Tells whether it was changed, or without `--yes` whether it would be.
    async fn ensure<C>(&self, what: &str, command: C) -> Result<bool, Error>
    where
        C: CommandSpec,
        C::Result: Outcome,
    {
        let would = self.run(&command, true).await?;
        if !would.changed() {
            println!("{what}: as it should be");
            return Ok(false);
        }
        if !self.yes {
            println!("{what}: would be changed");
            would.diff().lines().for_each(|line| println!("    {}", shown(line)));
            return Ok(true);
        }
        let changed = self.run(&command, false).await?.changed();
        println!("{what}: {}", if changed { "changed" } else { "as it should be" });
        Ok(changed)
    }

    /// Runs a command to its end, as root, and twice more where the host says that trying again may help.
    async fn run<C: CommandSpec>(&self, command: &C, check: bool) -> Result<C::Result, Error> {
        for _ in 0..2 {
            match self.session.start_with(command, self.options(check)).await?.wait().await {
                Err(Error::Command { error, .. }) if error.retryable => {
                    tokio::time::sleep(Duration::from_secs(error.retry_after.unwrap_or(1))).await;
                }
                done => return Ok(done?.result),
            }
        }
        Ok(self.session.start_with(command, self.options(check)).await?.wait().await?.result)
    }

    /// Runs a program and shows its output while it comes.
    async fn stream(&self, program: Exec) -> Result<(), Problem> {
        let program = program.stream_lines(true);
        let mut running = self.session.start_with(&program, self.options(false)).await?;
        while let Some(event) = running.next_event().await {
            if let Some((_stream, bytes)) = output(&event) {
                String::from_utf8_lossy(&bytes).lines().for_each(|line| println!("    {}", shown(line)));
            }
        }
        // A program that ran is no error to the session, whatever its exit status.
        match running.wait().await?.result.exit_code {
            0 => Ok(()),
            status => Err(Problem::Host(format!("the program ended with status {status}"))),
        }
    }

    fn options(&self, check: bool) -> CommandOptions {
        let root = Become { user: "root".to_owned(), method: BecomeMethod::Sudo, password: None };
        CommandOptions {
            timeout: Duration::from_secs(60),
            check,
            diff: true,
            // One sudo serves the whole session.
            r#become: (self.facts.uid != 0).then_some(root),
            ..CommandOptions::default()
        }
    }
}

/// What this tool wants to know of a result.
trait Outcome {
    fn changed(&self) -> bool;
    fn diff(&self) -> &str;
}

impl Outcome for FileWriteResult {
    fn changed(&self) -> bool {
        self.changed
    }

    fn diff(&self) -> &str {
        self.diff.as_deref().unwrap_or_default()
    }
}

impl Outcome for ServiceReloadResult {
    fn changed(&self) -> bool {
        self.changed
    }

    fn diff(&self) -> &str {
        ""
    }
}

/// What a host sends must not drive our terminal.
fn shown(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Why the tool has failed.
enum Problem {
    /// On this machine, before any host was reached.
    Here(String),
    /// The host is not as this tool needs it.
    Host(String),
    /// A command, or the session.
    Session(Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Session(error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(reason) | Self::Host(reason) => f.write_str(reason),
            // An error names host, step, reason and remedy by itself; what a tool may add is what its own user can do.
            Self::Session(error) => match error {
                Error::HostKey { .. } => write!(f, "{error}\nThis tool never accepts a key by itself."),
                Error::Command { error: refused, .. } if refused.code == ErrorCode::BecomeFailed => {
                    write!(f, "{error}\nLog in as root, or allow the login to use sudo without a password.")
                }
                error => write!(f, "{error}"),
            },
        }
    }
}
