//! `sortie put`: one file to one path of every host, whole or not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use sha2::{Digest, Sha256};
use sortie_client::protocol::command::exec::From;
use sortie_client::protocol::command::file_write::FileWrite;
use sortie_client::protocol::{Mode, Sha256Hex};
use sortie_client::session::{Canceller, InputWriter};
use sortie_client::{CommandOptions, Error};
use tokio::sync::oneshot;

use crate::exec::{Helper, cancel_when_stopped, finish};
use crate::fleet::{self, Task};
use crate::limits::{self, Limiting};
use crate::options::{Becoming, Connection, Hosts, Preview, Run, command_options};
use crate::outcome::{Outcome, usage};
use crate::place::{Base, Host};
use crate::report::{Done, Event, Failure};
use crate::source::Whole;
use crate::words;

/// Content up to here travels inside the command, in the same flight as the runner; more comes after it in pieces.
const INLINE: u64 = 1024 * 1024;
/// How often progress is told.
const TOLD: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    hosts: Hosts,
    /// Permission bits in octal, or `keep` for those of LOCAL [default: those of the old file; 0644 for a new one]
    #[arg(short = 'm', long, value_name = "MODE", value_parser = wanted_mode)]
    mode: Option<WantedMode>,
    /// User name or number of the owner [default: that of the old file]
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Group name or number [default: that of the old file]
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Keep a copy of the old file beside it
    #[arg(long)]
    backup: bool,
    /// Refuse if the file is not there; by default it and the directories above it are made
    #[arg(long)]
    no_create: bool,
    /// Refuse a symbolic link instead of following it
    #[arg(long)]
    no_follow: bool,
    /// Refuse unless the present content has this SHA-256
    #[arg(long, value_name = "SHA256")]
    if_sha256: Option<Sha256Hex>,
    /// A program on the host that must accept the new file first; %s is its path, as in 'visudo -cf %s'
    #[arg(long, value_name = "COMMAND", value_parser = validator)]
    validate: Option<Validator>,
    #[command(flatten)]
    preview: Preview,
    /// Keep the content out of differences and messages
    #[arg(long)]
    sensitive: bool,
    #[command(flatten)]
    run: Run,
    #[command(flatten)]
    becoming: Becoming,
    #[command(flatten)]
    limiting: Limiting,
    #[command(flatten)]
    connection: Connection,
    /// The file to send; - for standard input
    #[arg(value_name = "LOCAL")]
    file: PathBuf,
    /// Where to; with a / at its end, LOCAL's name is added. Relative paths begin at the login's directory
    #[arg(value_name = "REMOTE")]
    goal: String,
}

#[derive(Debug, Clone, Copy)]
enum WantedMode {
    Bits(Mode),
    Keep,
}

fn wanted_mode(text: &str) -> Result<WantedMode, String> {
    if text == "keep" {
        return Ok(WantedMode::Keep);
    }
    text.parse()
        .map(WantedMode::Bits)
        .map_err(|error: sortie_client::protocol::InvalidValue| error.to_string())
}

#[derive(Debug, Clone)]
struct Validator(Vec<String>);

fn validator(text: &str) -> Result<Validator, String> {
    words::split(text).map(Validator)
}

struct Plan {
    write: FileWrite,
    options: CommandOptions,
    /// Where the content does not travel inside the command.
    content: Option<Whole>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let hosts = Host::all(&arguments.hosts)?;
    let base = Base::new(&arguments.connection, arguments.run.ttl())?;
    let from_stdin = arguments.file.as_os_str() == "-";
    let content = if from_stdin { Whole::of_stdin()? } else { Whole::of_file(&arguments.file)? };
    let mode = match arguments.mode {
        None => None,
        Some(WantedMode::Bits(mode)) => Some(mode),
        Some(WantedMode::Keep) => {
            let bits =
                content.mode.ok_or_else(|| usage("--mode keep: what is sent is no file that has a mode"))?;
            Some(Mode::from_bits(bits).context("--mode keep")?)
        }
    };
    let mut write = FileWrite {
        mode,
        owner: arguments.owner,
        group: arguments.group,
        backup: arguments.backup,
        create: !arguments.no_create,
        no_follow: arguments.no_follow,
        if_sha256: arguments.if_sha256,
        validate: arguments.validate.map_or_else(Vec::new, |validator| validator.0),
        sensitive: arguments.sensitive,
        ..FileWrite::new(remote_path(&arguments.goal, &arguments.file, from_stdin)?)
    };
    let content = if content.len <= INLINE {
        let bytes =
            content.all().await.with_context(|| format!("cannot read {}", arguments.file.display()))?;
        write = write.content(bytes);
        None
    } else {
        write.content_from = Some(From::Input);
        Some(content)
    };
    let mut options = command_options(&arguments.run, &arguments.preview, &arguments.becoming)?;
    arguments.limiting.add_to(&mut options)?;
    let plan = Arc::new(Plan { write, options, content });
    fleet::run(&base, &hosts, &arguments.run, |task| on_host(task, Arc::clone(&plan))).await
}

fn remote_path(remote: &str, local: &Path, from_stdin: bool) -> anyhow::Result<String> {
    if remote.is_empty() {
        return Err(usage("REMOTE is empty"));
    }
    if !remote.ends_with('/') {
        return Ok(remote.to_owned());
    }
    match local.file_name().and_then(|name| name.to_str()) {
        Some(name) if !from_stdin => Ok(format!("{remote}{name}")),
        _ => {
            Err(usage(format!("{remote} is a directory, and what is sent has no name; write the whole path")))
        }
    }
}

async fn on_host(task: Task, plan: Arc<Plan>) -> Outcome {
    let mut opening = task.client.open(Arc::clone(&task.transport));
    let running = match opening.start(&plan.write, plan.options.clone()) {
        Ok(running) => running,
        Err(error) => return fail(&task, &error),
    };
    opening.shutdown();
    let session = match task.unless_stopped(opening.connect()).await {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => return fail(&task, &error),
        Err(interrupted) => return interrupted,
    };
    let (digest, sent) = oneshot::channel();
    let _feeder = plan
        .content
        .clone()
        .map(|whole| Helper::spawn(feed(task.clone(), whole, running.input(), running.canceller(), digest)));
    let _watcher = Helper::spawn(cancel_when_stopped(task.clone(), running.canceller()));
    let result = running.wait().await;
    finish(&task, session, result.as_ref().err()).await;
    match result {
        Ok(done) => {
            if let Ok(sent) = sent.await
                && sent != done.result.checksum
            {
                let text = "the host says that it wrote something else than was sent; look at the file before using it";
                task.reporter.show(Event::Error(Failure::local(&task.host, text)));
                return Outcome::Ended(1);
            }
            let (path, check) = (plan.write.path.clone(), plan.options.check);
            limits::show(&task, done.usage);
            let result = Done::Put { path, check, result: done.result };
            task.reporter.show(Event::Done { host: Arc::clone(&task.host), seconds: done.duration, result });
            Outcome::Ended(0)
        }
        Err(error) => Outcome::of_error(&error, task.stop.seen()),
    }
}

fn fail(task: &Task, error: &Error) -> Outcome {
    task.failed(error);
    Outcome::of_error(error, task.stop.seen())
}

/// Sends the content, and tells the SHA-256 of what was sent. A content that cannot be read to its end is never taken for
/// a whole one.
async fn feed(
    task: Task,
    whole: Whole,
    input: InputWriter,
    canceller: Canceller,
    digest: oneshot::Sender<String>,
) {
    let mut offset = 0;
    let mut hash = Sha256::new();
    let mut told = Instant::now();
    loop {
        match whole.piece(offset).await {
            Ok(piece) if piece.is_empty() => break,
            Ok(piece) => {
                if !matches!(input.write(&piece).await, Ok(true)) {
                    return;
                }
                offset += piece.len() as u64;
                hash.update(&piece);
                if told.elapsed() >= TOLD {
                    told = Instant::now();
                    let host = Arc::clone(&task.host);
                    task.reporter.show(Event::Progress {
                        host,
                        current: offset,
                        total: whole.len.max(offset),
                    });
                }
            }
            Err(error) => {
                task.warn(format!("the content cannot be read, so the file is left as it was: {error}"));
                canceller.cancel(None);
                return;
            }
        }
    }
    let _ = digest.send(Sha256Hex::from_bytes(&hash.finalize().into()).to_string());
    // Fails only with the session, which says so itself.
    let _ = input.finish().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_at_the_end_takes_the_local_name() {
        let path = |remote: &str, local: &str| remote_path(remote, Path::new(local), local == "-").ok();
        assert_eq!(path("/etc/motd", "x").as_deref(), Some("/etc/motd"));
        assert_eq!(path("/etc/", "a/motd").as_deref(), Some("/etc/motd"));
        assert_eq!(path("/etc/", "-"), None);
        assert_eq!(path("", "x"), None);
    }
}
