//! `sortie doctor`: every step of reaching one host, each with its time and round trips, and in plain words what is wrong
//! and what to do. It changes nothing on the host but a file of its own in /tmp, which it removes again.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sortie_client::error::{BootstrapProblem, HostKeyProblem};
use sortie_client::observe::Step;
use sortie_client::protocol::command::exec::Exec;
use sortie_client::protocol::command::file_read::FileRead;
use sortie_client::protocol::command::file_write::FileWrite;
use sortie_client::protocol::text;
use sortie_client::{Error, Session, Ssh};

use crate::options::{self, Connection};
use crate::outcome::FAILED;
use crate::place::{Base, Host};
use crate::report::{self, Check, Done, Event, Failure, Reporter, Style};
use crate::watch::Watch;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    host: options::Host,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// What is written to the host's /tmp and read back: text, a NUL and a byte that is no text.
const PROBE: &[u8] = b"sortie doctor\n\0\xff\n";

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let host = Host::one(&arguments.host)?;
    let base = Base::new(&arguments.connection, Duration::from_secs(600))?;
    let (reporter, printer) = report::start(Style { json: arguments.json, prefix: false });
    let watch = Arc::new(Watch::new(&host, &reporter, arguments.connection.trace, true));
    let doctor =
        Doctor { host: Arc::clone(&host.label), reporter: reporter.clone(), watch: Arc::clone(&watch) };
    let begun = Instant::now();
    let status = doctor.examine(&base, &host).await;
    reporter.show(Event::Done {
        host: Arc::clone(&host.label),
        seconds: begun.elapsed().as_secs_f64(),
        result: Done::Doctor { fit: status == 0, round_trips: watch.count(0) },
    });
    printer.finish();
    Ok(status)
}

struct Doctor {
    host: Arc<str>,
    reporter: Reporter,
    watch: Arc<Watch>,
}

impl Doctor {
    /// Gives the exit status: 0, 1 where the host was reached but something does not work, 255 where it was not.
    async fn examine(&self, base: &Base, host: &Host) -> i32 {
        // What an ssh program makes of the configuration is its own affair.
        if let Some(target) = host.target().filter(|_| !base.goes_by_program()) {
            let begun = Instant::now();
            match Ssh::find(target, &base.ssh).await {
                Ok(ssh) => self.check(Step::Configure.describe(), begun, 0, Ok(configuration(&ssh))),
                Err(error) => return self.not_reached(&error),
            };
        }
        let client = base.watched(Arc::clone(&self.watch) as Arc<_>);
        let connected = match base.transport(&client, host).await {
            Ok(transport) => client.connect_by(transport).await,
            Err(error) => Err(error),
        };
        let session = match connected {
            Ok(session) => session,
            Err(error) => return self.not_reached(&error),
        };
        self.facts(&session);
        let mut well = self.exec(&session).await;
        well &= self.files(&session).await;
        well &= self.close(session).await;
        i32::from(!well)
    }

    /// Shows one step; whether it went well.
    fn check(&self, step: &str, begun: Instant, round_trips: u32, result: Result<String, Error>) -> bool {
        self.watch.count(round_trips);
        let (ok, detail, advice) = match result {
            Ok(detail) => (true, detail, None),
            Err(error) => (false, Failure::new(&self.host, &error).message, advice(&error)),
        };
        self.reporter.show(Event::Check(Check {
            host: Arc::clone(&self.host),
            step: step.to_owned(),
            ok,
            milliseconds: Some(begun.elapsed().as_secs_f64() * 1000.0),
            round_trips: Some(round_trips),
            detail,
            advice,
        }));
        ok
    }

    fn not_reached(&self, error: &Error) -> i32 {
        self.reporter.show(Event::Check(Check {
            host: Arc::clone(&self.host),
            step: error.step().describe().to_owned(),
            ok: false,
            milliseconds: None,
            round_trips: None,
            detail: Failure::new(&self.host, error).message,
            advice: advice(error),
        }));
        FAILED
    }

    /// What the runner says of itself and its host.
    fn facts(&self, session: &Session) {
        let ready = session.ready();
        let facts = ready.host.clone().unwrap_or_default();
        let named = |name: &str, value: &str| {
            if value.is_empty() { String::new() } else { format!(", {name} {value}") }
        };
        let detail = format!(
            "{} {} on {}, kernel {}, {} CPUs, {} MiB; user {} ({}){}{}{}; runner {}",
            facts.os_id,
            facts.os_version,
            ready.arch,
            facts.kernel,
            facts.cpus,
            facts.memory_bytes / 1_048_576,
            facts.user,
            facts.uid,
            named("init", &facts.init),
            named("packages by", &facts.package_manager),
            named("in", &facts.container),
            ready.version,
        );
        self.reporter.show(Event::Check(Check {
            host: Arc::clone(&self.host),
            step: "the host".into(),
            ok: true,
            milliseconds: None,
            round_trips: None,
            detail,
            advice: None,
        }));
    }

    async fn exec(&self, session: &Session) -> bool {
        let begun = Instant::now();
        let result = session.run(Exec::argv(["true"])).await;
        self.check(
            "running a program (true)",
            begun,
            1,
            result.map(|done| format!("exit status {}", done.result.exit_code)),
        )
    }

    /// A file is written, read back and removed.
    async fn files(&self, session: &Session) -> bool {
        // A name that nobody else uses: the session's own.
        let path = format!("/tmp/.sortie-doctor-{}", session.ready().session);
        let begun = Instant::now();
        let written = session.run(FileWrite::new(&path).content(PROBE).mode(0o600)).await;
        let well = self.check("writing a file", begun, 1, written.map(|_| path.clone()));
        if !well {
            return false;
        }
        let begun = Instant::now();
        let read = session.run(FileRead::new(&path)).await.and_then(|done| {
            match text::decode(done.result.content, done.result.encoding) {
                Ok(bytes) if bytes == PROBE => Ok(format!("the same {} bytes", bytes.len())),
                _ => Err(Error::Result {
                    host: self.host.to_string(),
                    command_id: done.command_id,
                    reason: "other bytes came back than were written".into(),
                }),
            }
        });
        let mut well = self.check("reading it back", begun, 1, read);
        let begun = Instant::now();
        let removed = session.run(Exec::argv(["rm", "-f", &path])).await;
        well &= self.check(
            "removing it",
            begun,
            1,
            removed.map(|done| format!("exit status {}", done.result.exit_code)),
        );
        well
    }

    async fn close(&self, session: Session) -> bool {
        let begun = Instant::now();
        match session.close().await {
            Ok(farewell) if farewell.is_proven() => {
                let deleted = farewell.exit.is_some_and(|exit| exit.self_deleted);
                let detail = if deleted {
                    "the runner said goodbye, had deleted itself, and its channel is closed"
                } else {
                    "the runner said goodbye and its channel is closed; its file stays in the cache"
                };
                self.check("nothing left behind", begun, 0, Ok(detail.into()))
            }
            Ok(_) => self.check(
                "nothing left behind",
                begun,
                0,
                Ok("the runner ended; there is no proof beyond that".into()),
            ),
            Err(error) => self.check("nothing left behind", begun, 0, Err(error)),
        }
    }
}

fn configuration(ssh: &Ssh) -> String {
    let options = ssh.options();
    let list = |files: Vec<&Path>| {
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        if files.is_empty() { "none".to_owned() } else { files.join(" ") }
    };
    let keys = list(options.identities.iter().map(|key| &*key.file).filter(|file| file.exists()).collect());
    let known = options.user_known_hosts.iter().chain(&options.global_known_hosts);
    let known = list(known.map(|file| &**file).filter(|file| file.exists()).collect());
    let agent = if options.agent_socket.is_some() { ", agent" } else { "" };
    format!(
        "{}@{} port {}; keys: {keys}{agent}; known hosts: {known}",
        options.user, options.address, options.port
    )
}

/// In plain words what to do, where the error itself does not say it.
fn advice(error: &Error) -> Option<String> {
    let text = match error {
        Error::Config { .. } => {
            "change what is named here, or use another configuration file (-F FILE, or -F none)"
        }
        Error::Unreachable { step: Step::Resolve, .. } => {
            "check how the host is written; `getent hosts NAME` shows whether this machine knows it. A HostName in \
             ssh_config can give its address"
        }
        Error::Unreachable { step: Step::Connect, reason, .. } if reason.contains("refused") => {
            "the machine answers but nothing listens on that port: check that sshd runs there and which port it uses (-p)"
        }
        Error::Unreachable { step: Step::Connect, .. } => {
            "check the address and the port, whether the machine is up, and firewalls and routes on the way"
        }
        Error::TimedOut { step: Step::Connect | Step::Resolve | Step::KeyExchange, .. } => {
            "nothing answered in time: check the address, firewalls on the way, and whether the machine is up; \
             --connect-timeout waits longer"
        }
        Error::Unreachable { step: Step::KeyExchange, .. } => {
            "something listens there, but no SSH connection came about: check that it is an SSH server, and its log"
        }
        Error::TimedOut { step: Step::StartShell, .. } => {
            "run `ssh HOST true`: it will hang as well. Look at the rc files of the login shell"
        }
        Error::HostKey { problem: HostKeyProblem::Unknown { .. }, .. } => {
            "compare the fingerprint with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on the host, \
             then connect once with --accept-new"
        }
        Error::HostKey { problem: HostKeyProblem::Changed { .. }, .. } => {
            "find out why before anything else; if the host was installed anew, `ssh-keygen -R HOST` removes the old key"
        }
        Error::HostKey { problem: HostKeyProblem::Certificate { .. }, .. } => {
            "have the host's certificate made anew by its authority (`ssh-keygen -s CA -h -n NAMES`), for the name that \
             the host is reached by; HostKeyAlias in ssh_config gives another"
        }
        Error::HostKey {
            problem:
                HostKeyProblem::NotAllowed | HostKeyProblem::TooShort { .. } | HostKeyProblem::NotAgreed { .. },
            ..
        } => "give the host another key (`ssh-keygen -A` makes one of each type), and tell known_hosts of it",
        Error::HostKey { .. } => {
            "the key must not be used; find out who revoked it and why, or mend the file that is named"
        }
        Error::Auth { .. } => {
            "name the right user (-l) and key (-i), load the key into the agent, or use --password-file; `ssh -v HOST` and \
             the server's log tell more. On the host ~/.ssh must be writable by its owner alone"
        }
        Error::Bootstrap { problem, .. } => match problem {
            BootstrapProblem::ShellRefused { .. } => {
                "give the account a login shell such as /bin/sh (chsh), and take out ForceCommand or command= for this key"
            }
            BootstrapProblem::TooNoisy { .. } => "make the rc files print only where there is a terminal",
            BootstrapProblem::UnsupportedMachine { .. } => "this machine cannot be managed by Sortie",
            BootstrapProblem::NoRunner { .. } => {
                "build the runners by `cargo xtask dist`, or name them with --runners"
            }
            BootstrapProblem::NoDirectory { .. } => {
                "free some space in one of the directories, mount one without noexec, or set TMPDIR for the account"
            }
            BootstrapProblem::MissingProgram { .. } => "install it on the host",
            BootstrapProblem::Damaged { .. } => {
                "try again; if it stays so, something on the way changes bytes"
            }
            _ => "try the runner by hand: copy it to the host and run it with --version",
        },
        Error::RunnerMismatch { .. } => "do not use this host before it is known what changes files on it",
        Error::Lost { .. } => "try again; if it stays so, look at the server's log and at the network",
        Error::Command { .. } => "see the message: the host itself refused it",
        _ => return None,
    };
    Some(text.to_owned())
}
