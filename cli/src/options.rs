//! The options that verbs share, named as in ssh(1) where ssh has them. What they mean for a session is `place`'s affair.

use std::path::PathBuf;
use std::time::Duration;

use sortie_client::CommandOptions;
use sortie_client::protocol::message::{Become, BecomeMethod};
use sortie_client::ssh_config::Proxy;

use crate::{secrets, words};

/// Which hosts.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Hosts {
    /// As a user writes them.
    #[arg(short = 'H', long = "host", value_name = "HOST,…", value_delimiter = ',')]
    #[arg(help = "Hosts, as [user@]host[:port]; may be repeated")]
    pub(crate) host: Vec<String>,
    /// This machine itself, without SSH
    #[arg(long)]
    pub(crate) local: bool,
    /// Whatever this program runs `sh` in, such as 'docker exec -i web' or 'kubectl exec -i pod --'
    #[arg(long, value_name = "PROGRAM", value_parser = via)]
    pub(crate) via: Option<Via>,
}

/// Which one host.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Host {
    /// As a user writes it.
    #[arg(value_name = "HOST", help = "The host, as [user@]host[:port]")]
    pub(crate) host: Option<String>,
    /// This machine itself, without SSH
    #[arg(long)]
    pub(crate) local: bool,
    /// Whatever this program runs `sh` in, such as 'docker exec -i web' or 'kubectl exec -i pod --'
    #[arg(long, value_name = "PROGRAM", value_parser = via)]
    pub(crate) via: Option<Via>,
}

/// A program that runs `sh` somewhere, with its arguments.
#[derive(Debug, Clone)]
pub(crate) struct Via {
    pub(crate) text: String,
    pub(crate) argv: Vec<String>,
}

fn via(text: &str) -> Result<Via, String> {
    Ok(Via { text: text.to_owned(), argv: words::split(text)? })
}

/// How hosts are reached.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Log in with this private key; may be repeated
    #[arg(short = 'i', long = "identity", value_name = "FILE")]
    pub(crate) identities: Vec<PathBuf>,
    /// Read this instead of ~/.ssh/config and /etc/ssh/ssh_config; `none` for neither
    #[arg(short = 'F', long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Log in as this user, where the host does not name one
    #[arg(short = 'l', long = "login", value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Connect to this port, where the host does not name one
    #[arg(short = 'p', long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Log in at these hosts first and go on from the last, as with ProxyJump; `none` for none on the way
    #[arg(short = 'J', long = "jump", value_name = "HOST,…", value_parser = Proxy::jump)]
    pub(crate) jump: Option<Proxy>,
    /// Believe the host keys in this file, and no others
    #[arg(long, value_name = "FILE")]
    pub(crate) known_hosts: Option<PathBuf>,
    /// Add the keys of unknown hosts to known_hosts; a changed key is refused all the same
    #[arg(long)]
    pub(crate) accept_new: bool,
    /// Log in with the password in the first line of this file, which nobody else may read; <(…) works
    #[arg(long, value_name = "FILE", conflicts_with = "ask_pass")]
    pub(crate) password_file: Option<PathBuf>,
    /// Open encrypted keys with the passphrase in the first line of this file; <(…) works
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Ask once for a password, and log in to every host with it
    #[arg(long, conflicts_with = "batch")]
    pub(crate) ask_pass: bool,
    /// Never ask for anything
    #[arg(long)]
    pub(crate) batch: bool,
    /// Go by this ssh program instead of our own SSH; `ssh` where none is named
    #[arg(long, value_name = "PROGRAM", num_args = 0..=1, require_equals = true, default_missing_value = "ssh")]
    pub(crate) ssh: Option<PathBuf>,
    /// An option of that program, as behind its -o; may be repeated
    #[arg(long, value_name = "OPTION", requires = "ssh")]
    pub(crate) ssh_option: Vec<String>,
    /// Give up connecting to a host after this long
    #[arg(long, value_name = "TIME", value_parser = words::duration)]
    pub(crate) connect_timeout: Option<Duration>,
    /// Take runners from this directory of sortie-runner-TARGET files instead of those that this command carries
    #[arg(long, value_name = "DIR", env = "SORTIE_RUNNERS", hide_env_values = true)]
    pub(crate) runners: Option<PathBuf>,
    /// Send only runners whose listing (runners.json) is signed by a key of this file: ssh-keygen(1), ALLOWED SIGNERS
    #[arg(long, value_name = "FILE", env = "SORTIE_REQUIRE_SIGNED_RUNNERS", hide_env_values = true)]
    pub(crate) require_signed_runners: Option<PathBuf>,
    /// Sign every command with this ed25519 key (of an agent, where only its public half is there), for hosts that start a runner
    /// which takes no others
    #[arg(long, value_name = "KEY")]
    pub(crate) sign_with: Option<PathBuf>,
    /// Have a runner that is sent take only what keys of this file signed (public keys, a line each); that protects against nobody
    /// who can log in
    #[arg(long, value_name = "FILE")]
    pub(crate) trust: Option<PathBuf>,
    /// Keep the runner in ~/.cache/sortie of the host, and use the one that is there
    #[arg(long)]
    pub(crate) cache: bool,
    /// Record what is done in this log, and run nothing that cannot be recorded; `none` for no log
    #[arg(long, value_name = "FILE", env = "SORTIE_AUDIT", hide_env_values = true)]
    pub(crate) audit: Option<PathBuf>,
    /// Show every frame on standard error, without its contents
    #[arg(long)]
    pub(crate) trace: bool,
}

/// How long things may take and how they are shown.
#[derive(clap::Args, Debug)]
pub(crate) struct Run {
    /// End the command, with all that it started, after this long
    #[arg(long, value_name = "TIME", default_value = "300", value_parser = words::duration)]
    pub(crate) timeout: Duration,
    /// End the runner, whatever happens, after this long [default: the greater of 600 and timeout + 60]
    #[arg(long, value_name = "TIME", value_parser = words::duration)]
    pub(crate) ttl: Option<Duration>,
    /// At most so many hosts at once
    #[arg(short = 'f', long, value_name = "N", default_value = "32", value_parser = forks)]
    pub(crate) forks: usize,
    /// One JSON object a line for everything that happens
    #[arg(long)]
    pub(crate) json: bool,
}

fn forks(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(forks @ 1..=10_000) => Ok(forks),
        _ => Err("write a number from 1 to 10000".into()),
    }
}

impl Run {
    /// How long the runner may live.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl.unwrap_or_else(|| Duration::from_secs(600).max(self.timeout + Duration::from_secs(60)))
    }
}

/// Whether really. For verbs that change things.
#[derive(clap::Args, Debug)]
pub(crate) struct Preview {
    /// Change nothing, say what would change
    #[arg(long)]
    pub(crate) check: bool,
    /// Show how contents differ
    #[arg(long)]
    pub(crate) diff: bool,
}

impl Preview {
    /// For verbs that change nothing anyway.
    pub(crate) fn none() -> Self {
        Self { check: false, diff: false }
    }
}

/// As whom. For verbs that run commands on hosts.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Becoming another user")]
pub(crate) struct Becoming {
    /// Do it as this user; --become alone means root
    #[arg(long, value_name = "USER", num_args = 0..=1, require_equals = true, default_missing_value = "root")]
    r#become: Option<String>,
    /// Become it by this program
    #[arg(long, value_name = "PROGRAM", default_value = "sudo", requires = "become")]
    become_method: Method,
    /// Ask once for the password that the program wants, and use it on every host
    #[arg(long, requires = "become", conflicts_with_all = ["batch", "become_pass_file"])]
    ask_become_pass: bool,
    /// Take that password from the first line of this file, which nobody else may read; <(…) works
    #[arg(long, value_name = "FILE", requires = "become")]
    become_pass_file: Option<PathBuf>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum Method {
    Sudo,
    Doas,
    Su,
}

impl Becoming {
    /// Whom to become, if anybody; asks for the password right away, so call it once for all hosts.
    pub(crate) fn whom(&self) -> anyhow::Result<Option<Become>> {
        let Some(user) = self.r#become.clone() else { return Ok(None) };
        let method = match self.become_method {
            Method::Sudo => BecomeMethod::Sudo,
            Method::Doas => BecomeMethod::Doas,
            Method::Su => BecomeMethod::Su,
        };
        let password = match &self.become_pass_file {
            Some(file) => Some(secrets::read_file(file)?),
            None if self.ask_become_pass => {
                Some(secrets::ask_once("--ask-become-pass", "Become password: ")?)
            }
            None => None,
        };
        let password =
            password.map(|secret| sortie_client::protocol::Secret::new(secret.expose().to_owned()));
        Ok(Some(Become { user, method, password }))
    }
}

/// What every command of a verb that changes things is run with. Asks for the password of `--ask-become-pass`.
pub(crate) fn command_options(
    run: &Run,
    preview: &Preview,
    becoming: &Becoming,
) -> anyhow::Result<CommandOptions> {
    Ok(CommandOptions {
        timeout: run.timeout,
        check: preview.check,
        diff: preview.diff,
        r#become: becoming.whom()?,
        ..CommandOptions::default()
    })
}
