//! `sortie get`: one file, whole and verified, to a local path that only the user chooses: nothing that a host says
//! becomes part of a name here.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use sortie_client::protocol::command::file_read::{FileRead, FileReadResult};
use sortie_client::protocol::{Sha256Hex, Stream, text};
use sortie_client::{CommandOptions, Error, Session};
use tempfile::NamedTempFile;

use crate::fleet::{self, Task};
use crate::options::{Becoming, Connection, Hosts, Run};
use crate::outcome::{Outcome, usage};
use crate::place::{Base, Host};
use crate::report::{Done, Event, Failure};

/// Bytes that are asked for at a time.
const PIECE: u64 = 1024 * 1024;
/// Pieces that are under way at a time, so that a long way costs its round trips only once.
const AHEAD: usize = 4;
/// How often progress is told.
const TOLD: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    run: Run,
    #[command(flatten)]
    becoming: Becoming,
    #[command(flatten)]
    connection: Connection,
    /// The file to fetch. Relative paths begin at the login's directory
    #[arg(value_name = "REMOTE")]
    file: String,
    /// Where to; a directory takes REMOTE's name, and with several hosts a file named after each; - for standard output
    #[arg(value_name = "LOCAL")]
    goal: PathBuf,
}

/// Where a file goes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goal {
    Stdout,
    File(PathBuf),
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let Arguments { hosts, run, becoming, connection, file: remote, goal: local } = arguments;
    let hosts = Host::all(&hosts)?;
    let base = Base::new(&connection, run.ttl())?;
    let labels: Vec<&str> = hosts.iter().map(|host| &*host.label).collect();
    let goals = goals(&labels, &remote, &local)?;
    let options =
        CommandOptions { timeout: run.timeout, r#become: becoming.whom()?, ..CommandOptions::default() };
    fleet::run(&base, &hosts, &run, |task| {
        let at = labels.iter().position(|label| *label == &*task.host);
        let goal = at.and_then(|at| goals.get(at)).cloned().unwrap_or(Goal::Stdout);
        on_host(task, remote.clone(), goal, options.clone())
    })
    .await
}

/// One goal for each host, decided before any is spoken with.
fn goals(hosts: &[&str], remote: &str, local: &Path) -> anyhow::Result<Vec<Goal>> {
    let named = |name: &str| {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(usage(format!("{name:?} cannot be the name of a file; write the whole local path")));
        }
        Ok(local.join(name))
    };
    let Ok(metadata) = fs::metadata(local) else {
        return match (hosts, local.as_os_str() == "-") {
            ([_], true) => Ok(vec![Goal::Stdout]),
            ([_], false) => {
                let parent = local.parent().filter(|parent| !parent.as_os_str().is_empty());
                if parent.is_some_and(|parent| !parent.is_dir()) || local.as_os_str().is_empty() {
                    return Err(usage(format!(
                        "{}: there is no such directory to write into",
                        local.display()
                    )));
                }
                Ok(vec![Goal::File(local.to_owned())])
            }
            (_, _) => Err(usage(format!(
                "{}: with several hosts LOCAL must be a directory that is there; each host gets a file in it",
                local.display()
            ))),
        };
    };
    match hosts {
        [_] if metadata.is_dir() => {
            let name = remote.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            Ok(vec![Goal::File(named(name)?)])
        }
        // Through a symbolic link: what it points to is replaced, not the link.
        [_] if metadata.is_file() => {
            let path =
                local.canonicalize().map_err(|error| usage(format!("{}: {error}", local.display())))?;
            Ok(vec![Goal::File(path)])
        }
        [_] => Err(usage(format!(
            "{}: it is neither a file nor a directory; use - for standard output",
            local.display()
        ))),
        _ if metadata.is_dir() => hosts.iter().map(|host| named(host).map(Goal::File)).collect(),
        _ => Err(usage(format!("{}: with several hosts LOCAL must be a directory", local.display()))),
    }
}

async fn on_host(task: Task, remote: String, goal: Goal, options: CommandOptions) -> Outcome {
    let fetched = match task.unless_stopped(fetch(&task, &remote, &goal, options)).await {
        Ok(fetched) => fetched,
        Err(interrupted) => return interrupted,
    };
    match fetched {
        Ok(()) => Outcome::Ended(0),
        Err(Failed::Session(error)) => {
            task.failed(&error);
            Outcome::of_error(&error, task.stop.seen())
        }
        Err(Failed::Here(text)) => {
            task.reporter.show(Event::Error(Failure::local(&task.host, text)));
            Outcome::Ended(1)
        }
    }
}

enum Failed {
    Session(Error),
    /// On this machine, or found out here.
    Here(String),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Session(error)
    }
}

async fn fetch(task: &Task, remote: &str, goal: &Goal, options: CommandOptions) -> Result<(), Failed> {
    let mut opening = task.client.open(Arc::clone(&task.transport));
    let ask = FileRead { max_bytes: PIECE.cast_signed(), ..FileRead::new(remote) };
    let first = opening.start(&ask, options.clone())?;
    let session = opening.connect().await?;
    let begun = Instant::now();
    let mut piece = first.wait().await?.result;
    let (size, mode, version) = (piece.size, piece.mode.clone(), piece.version.clone());
    let mut copy = Copy::begin(task, goal, size)?;
    let mut ahead = VecDeque::new();
    let mut asked = PIECE;
    loop {
        let more = piece.truncated;
        copy.take(piece).await?;
        if !more {
            break;
        }
        // Beyond the size only where the file says that it goes on.
        while ahead.len() < AHEAD && (asked < size || ahead.is_empty()) {
            let ask = FileRead { offset: asked, if_version: version.clone(), ..ask.clone() };
            ahead.push_back(session.start_with(&ask, options.clone()).await?);
            asked += PIECE;
        }
        let Some(next) = ahead.pop_front() else { break };
        piece = next.wait().await?.result;
    }
    let (bytes, sha256) = copy.finish(goal)?;
    end(task, session).await;
    let path = match goal {
        Goal::Stdout => "-".to_owned(),
        Goal::File(path) => path.display().to_string(),
    };
    let result = Done::Get { path, bytes, sha256, mode };
    let seconds = begun.elapsed().as_secs_f64();
    task.reporter.show(Event::Done { host: Arc::clone(&task.host), seconds, result });
    Ok(())
}

async fn end(task: &Task, session: Session) {
    if let Err(lost) = session.close().await {
        let Failure { message, .. } = Failure::new(&task.host, &lost);
        task.warn(format!("the file is complete, but the runner was not seen to go: {message}"));
    }
}

/// A copy that is being made.
struct Copy<'a> {
    task: &'a Task,
    /// Beside its goal, so that it can take its place in one step.
    file: Option<NamedTempFile>,
    hash: Sha256,
    bytes: u64,
    size: u64,
    told: Instant,
}

impl<'a> Copy<'a> {
    fn begin(task: &'a Task, goal: &Goal, size: u64) -> Result<Self, Failed> {
        let file = match goal {
            Goal::Stdout => None,
            Goal::File(path) => Some(temporary(path).map_err(|error| cannot_write(path, &error))?),
        };
        Ok(Self { task, file, hash: Sha256::new(), bytes: 0, size, told: Instant::now() })
    }

    async fn take(&mut self, piece: FileReadResult) -> Result<(), Failed> {
        let FileReadResult { content, encoding, checksum, .. } = piece;
        let length = content.len();
        let damaged = || Failed::Here("what came is not what the host read; it was thrown away".into());
        let shown = self.file.is_none().then(|| content.clone());
        let bytes = text::decode(content, encoding).map_err(|_| damaged())?;
        if Sha256Hex::from_bytes(&Sha256::digest(&bytes).into()).as_str() != checksum {
            return Err(damaged());
        }
        self.hash.update(&bytes);
        self.bytes += bytes.len() as u64;
        if let Some(file) = &mut self.file {
            let path = file.path().to_owned();
            file.write_all(&bytes).map_err(|error| cannot_write(&path, &error))?;
        }
        let host = Arc::clone(&self.task.host);
        if let Some(data) = shown {
            self.task
                .reporter
                .output(Event::Output { host, stream: Stream::Stdout, data, encoding, step: None }, length)
                .await;
        } else if self.told.elapsed() >= TOLD {
            self.told = Instant::now();
            let (current, total) = (self.bytes, self.size.max(self.bytes));
            self.task.reporter.show(Event::Progress { host, current, total });
        }
        Ok(())
    }

    /// Puts the file in its place; gives its size and SHA-256.
    fn finish(self, goal: &Goal) -> Result<(u64, String), Failed> {
        if let (Some(file), Goal::File(path)) = (self.file, goal) {
            file.as_file().sync_all().map_err(|error| cannot_write(path, &error))?;
            file.persist(path).map_err(|error| cannot_write(path, &error.error))?;
        }
        Ok((self.bytes, Sha256Hex::from_bytes(&self.hash.finalize().into()).to_string()))
    }
}

/// With the mode of the file that it will replace, or that of any new file.
fn temporary(path: &Path) -> std::io::Result<NamedTempFile> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mode = PermissionsExt::from_mode(0o666);
    let file = tempfile::Builder::new().prefix(".sortie-get-").permissions(mode).tempfile_in(directory)?;
    if let Ok(old) = File::open(path).and_then(|old| old.metadata()) {
        file.as_file().set_permissions(old.permissions())?;
    }
    Ok(file)
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failed {
    Failed::Here(format!("{} cannot be written: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_takes_the_name_that_the_user_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let goal = |remote: &str| goals(&["web1"], remote, path).map(|goals| goals[0].clone());
        assert_eq!(goal("/etc/motd").unwrap(), Goal::File(path.join("motd")));
        assert_eq!(goal("motd").unwrap(), Goal::File(path.join("motd")));
        assert!(goal("..").is_err() && goal("/").is_err());
    }

    #[test]
    fn several_hosts_need_a_directory_and_get_a_file_each() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let both = goals(&["web1", "me@web2:22"], "/etc/motd", path).unwrap();
        assert_eq!(both, [Goal::File(path.join("web1")), Goal::File(path.join("me@web2:22"))]);
        assert!(goals(&["a", "b"], "f", Path::new("-")).is_err());
        assert!(goals(&["a", "b"], "f", &path.join("absent")).is_err());
    }

    #[test]
    fn devices_are_not_replaced_and_links_are_followed() {
        assert!(goals(&["a"], "f", Path::new("/dev/null")).is_err());
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(goals(&["a"], "f", &link).unwrap(), [Goal::File(file.canonicalize().unwrap())]);
        assert!(goals(&["a"], "f", Path::new("/no/such/f")).is_err());
    }
}
