//! Commands that change files, whose runner is killed: at each system call, one after the other. What is there afterwards is the
//! old state or the new one, whole, and the next run takes away whatever was left beside it.

mod runner_support;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use runner_support::{Dir, Session, cmd, server_of};
use serde_json::{Value, json};
use sortie_tests::{require_programs, require_root, within};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// System calls of one kind beyond which a runner that still makes more is in a loop.
const MOST: u32 = 200;

/// How the names of what is on its way begin.
const OURS: &str = ".sortie-";

/// What is below a directory, by path: mode, owner, and content or target.
type State = BTreeMap<String, String>;

fn state(top: &Path) -> Result<State> {
    let mut all = State::new();
    for entry in std::fs::read_dir(top)? {
        let path = entry?.path();
        let found = std::fs::symlink_metadata(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let inside = match found.is_dir() && !name.starts_with(OURS) {
            true => state(&path)?,
            false => State::new(),
        };
        let content = match () {
            () if found.is_file() => String::from_utf8_lossy(&std::fs::read(&path)?).into_owned(),
            () if found.is_symlink() => std::fs::read_link(&path)?.to_string_lossy().into_owned(),
            () => String::new(),
        };
        all.insert(name.clone(), format!("{:o} {}:{} {content}", found.mode(), found.uid(), found.gid()));
        all.extend(inside.into_iter().map(|(below, what)| (format!("{name}/{below}"), what)));
    }
    Ok(all)
}

/// Whether it is, or is in, what is on its way.
fn is_ours(path: &str) -> bool {
    path.split('/').any(|name| name.starts_with(OURS))
}

/// The same without what is on its way.
fn named(top: &Path) -> Result<State> {
    Ok(state(top)?.into_iter().filter(|(path, _)| !is_ours(path)).collect())
}

/// strace(1) on the server and its threads; it lets go of what executes another program.
struct Tracer(Child);

impl Tracer {
    async fn attach(server: i32, args: &[&str]) -> Result<Self> {
        let mut child = Command::new("strace")
            .args(["-f", "-b", "execve", "-p", &server.to_string()])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stderr = BufReader::new(child.stderr.take().context("stderr")?);
        let mut line = String::new();
        within("strace", stderr.read_line(&mut line)).await??;
        ensure!(line.contains("attached"), "strace: {line}");
        tokio::spawn(async move {
            let mut rest = Vec::new();
            let _ = stderr.read_to_end(&mut rest).await;
        });
        Ok(Self(child))
    }

    async fn end(mut self) -> Result<()> {
        within("the end of strace", self.0.wait()).await??;
        Ok(())
    }
}

/// A change, and where it begins.
struct Change {
    command: &'static str,
    /// The parameters, for a directory.
    params: fn(&Dir) -> Value,
    /// Makes the old state in an empty directory.
    prepare: fn(&Dir) -> Result<()>,
    /// States that may be seen besides the old one and the new one.
    others: fn(&State) -> bool,
}

impl Change {
    fn fresh(&self) -> Result<Dir> {
        let dir = Dir::new()?;
        (self.prepare)(&dir)?;
        Ok(dir)
    }

    /// Runs it, traced if so wished; its answer, or nothing if the runner was killed before.
    async fn run(&self, dir: &Dir, trace: &[&str]) -> Result<Option<Value>> {
        let mut session = Session::start(&[]).await?;
        let tracer = match trace {
            [] => None,
            trace => Some(Tracer::attach(server_of(&session)?, trace).await?),
        };
        // Fails only if it was killed before.
        let _ = session.send(&cmd("c", self.command, (self.params)(dir))).await;
        session.close_stdin();
        let mut answer = None;
        while let Some(frame) = session.next().await? {
            if frame["type"] == "DONE" || frame["type"] == "ERROR" {
                answer = Some(frame);
            }
        }
        if let Some(tracer) = tracer {
            tracer.end().await?;
        }
        Ok(answer)
    }

    async fn done(&self, dir: &Dir, trace: &[&str]) -> Result<State> {
        let answer = self.run(dir, trace).await?.context("no answer")?;
        ensure!(answer["type"] == "DONE", "{answer}");
        state(dir.path())
    }

    /// Every system call that it makes, by name, and what is there afterwards.
    async fn calls(&self) -> Result<(Vec<String>, State)> {
        let (dir, logs) = (self.fresh()?, Dir::new()?);
        let log = logs.text("strace");
        let after = self.done(&dir, &["-o", &log]).await?;
        let name = |line: &str| {
            let call = line.split_whitespace().nth(1)?.split('(').next()?.to_owned();
            let is_name = !call.is_empty() && call.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            (line.contains('(') && is_name).then_some(call)
        };
        let mut calls: Vec<String> = std::fs::read_to_string(log)?.lines().filter_map(name).collect();
        calls.sort();
        calls.dedup();
        Ok((calls, after))
    }

    /// Kills it at each call; how often.
    async fn killed_at_each_call(&self) -> Result<u32> {
        let before = named(self.fresh()?.path())?;
        let (calls, new) = self.calls().await?;
        ensure!(
            calls.iter().any(|call| call.starts_with("rename") || call.starts_with("unlink")),
            "{calls:?}"
        );
        ensure!(new != before && !new.keys().any(|path| is_ours(path)), "{new:?}");
        let (mut kills, mut seen_old, mut seen_new) = (0, false, false);
        for call in &calls {
            for count in 1.. {
                if count > MOST {
                    bail!("more than {MOST} calls of {call}");
                }
                let dir = self.fresh()?;
                let inject = format!("inject={call}:signal=KILL:when={count}");
                let trace = format!("trace={call}");
                let args = ["-o", "/dev/null", "-e", &trace, "-e", &inject];
                let answer = self.run(&dir, &args).await?;
                let after = named(dir.path())?;
                assert!(
                    after == before || after == new || (self.others)(&after),
                    "killed at {call} {count}: {after:#?}"
                );
                // Where programs are run it may be one of them, or its keeper, that was killed: that is told, and nothing has changed.
                let program = answer.as_ref().is_some_and(|answer| {
                    self.command == "archive_unpack"
                        && (answer["data"]["code"] == "INTERNAL" || answer["data"]["code"] == "EXEC_FAILED")
                });
                if program {
                    assert_eq!(after, before, "a program killed at {call} {count}");
                } else if let Some(answer) = &answer {
                    assert_eq!((&answer["type"], &after), (&json!("DONE"), &new), "{call} {count}: {answer}");
                }
                seen_old |= after == before;
                seen_new |= after == new;
                // Whatever the killed one left, the next run is not hindered by it and takes it away.
                if answer.is_none() || program {
                    assert_eq!(self.done(&dir, &[]).await?, new, "after {call} {count}");
                    kills += 1;
                } else {
                    break;
                }
            }
        }
        // Kills before and after the change were among them.
        assert!(seen_old && seen_new, "old {seen_old}, new {seen_new}");
        Ok(kills)
    }
}

fn neither(_: &State) -> bool {
    false
}

macro_rules! required {
    () => {
        require_root!();
        require_programs!("strace");
    };
}

#[tokio::test]
async fn killed_at_any_system_call_of_file_write_there_is_the_old_file_or_the_new_one() -> Result<()> {
    required!();
    let change = Change {
        command: "file_write",
        params: |dir| json!({"path": dir.text("f"), "content": "new\n", "mode": "0640", "group": "65534", "create": true}),
        prepare: |dir| {
            dir.write("f", "old\n")?;
            Ok(())
        },
        others: neither,
    };
    let kills = change.killed_at_each_call().await?;
    assert!(kills > 30, "{kills}");
    Ok(())
}

#[tokio::test]
async fn killed_at_any_system_call_of_file_remove_a_directory_is_whole_or_gone() -> Result<()> {
    required!();
    let change = Change {
        command: "file_remove",
        params: |dir| json!({"path": dir.text("d"), "recursive": true}),
        prepare: |dir| {
            std::fs::create_dir_all(dir.at("d/sub"))?;
            dir.write("d/f", "x")?;
            dir.write("d/sub/g", "x")?;
            symlink("../kept", dir.at("d/sub/link"))?;
            dir.write("kept", "x")?;
            Ok(())
        },
        others: neither,
    };
    let kills = change.killed_at_each_call().await?;
    assert!(kills > 50, "{kills}");
    Ok(())
}

#[tokio::test]
async fn killed_at_any_system_call_of_file_remove_a_file_is_there_or_gone() -> Result<()> {
    required!();
    let change = Change {
        command: "file_remove",
        params: |dir| json!({"path": dir.text("f")}),
        prepare: |dir| {
            dir.write("f", "x")?;
            Ok(())
        },
        others: neither,
    };
    let kills = change.killed_at_each_call().await?;
    assert!(kills > 20, "{kills}");
    Ok(())
}

#[tokio::test]
async fn killed_at_any_system_call_of_link_ensure_the_link_says_the_old_or_the_new() -> Result<()> {
    required!();
    let change = Change {
        command: "link_ensure",
        params: |dir| json!({"path": dir.text("link"), "target": "new", "group": "65534"}),
        prepare: |dir| Ok(symlink("old", dir.at("link"))?),
        others: neither,
    };
    let kills = change.killed_at_each_call().await?;
    assert!(kills > 20, "{kills}");
    Ok(())
}

#[tokio::test]
async fn killed_at_any_system_call_of_link_ensure_by_force_a_directory_is_there_or_the_link() -> Result<()> {
    required!();
    let change = Change {
        command: "link_ensure",
        params: |dir| json!({"path": dir.text("d"), "target": "new", "force": true}),
        prepare: |dir| Ok(std::fs::create_dir(dir.at("d"))?),
        others: neither,
    };
    let kills = change.killed_at_each_call().await?;
    assert!(kills > 20, "{kills}");
    Ok(())
}

#[tokio::test]
async fn killed_at_any_system_call_of_dir_ensure_a_new_directory_has_everything_or_is_not_there() -> Result<()>
{
    required!();
    let change = Change {
        command: "dir_ensure",
        params: |dir| json!({"path": dir.text("above/d"), "mode": "2750", "owner": "65534", "group": "1"}),
        prepare: |dir| {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
            Ok(())
        },
        // Directories above it are made first, and stay for the next run.
        others: |state| {
            state.len() == 1 && state.get("above").is_some_and(|above| above.starts_with("40755 "))
        },
    };
    let kills = change.killed_at_each_call().await?;
    assert!(kills > 20, "{kills}");
    Ok(())
}

#[tokio::test]
async fn killed_at_any_system_call_of_line_ensure_there_is_the_old_file_or_the_new_one() -> Result<()> {
    required!();
    let change = Change {
        command: "line_ensure",
        params: |dir| json!({"path": dir.text("f"), "line": "Port 22", "regexp": "^#?Port ", "mode": "0600", "group": "65534"}),
        prepare: |dir| {
            dir.write("f", "# first\n#Port 2222\nlast")?;
            Ok(())
        },
        others: neither,
    };
    let kills = change.killed_at_each_call().await?;
    assert!(kills > 30, "{kills}");
    Ok(())
}

#[tokio::test]
async fn killed_at_any_system_call_of_archive_unpack_a_new_directory_is_whole_or_not_there() -> Result<()> {
    required!();
    require_programs!("tar");
    let change = Change {
        command: "archive_unpack",
        params: |dir| json!({"archive": dir.text("t.tar"), "path": dir.text("goal"), "marker": dir.text("mark")}),
        prepare: |dir| {
            std::fs::create_dir_all(dir.at("src/d"))?;
            dir.write("src/x", "1")?;
            dir.write("src/d/y", "2")?;
            let (src, archive) = (dir.text("src"), dir.text("t.tar"));
            let tar = std::process::Command::new("tar")
                .args(["--mtime=@0", "-C", &src, "-cf", &archive, "x", "d"])
                .status()?;
            ensure!(tar.success(), "tar: {tar}");
            Ok(())
        },
        // The marker is noted when all is in its place; without it the next run does it again.
        others: |state| {
            state.get("goal/x").is_some_and(|x| x.ends_with('1'))
                && state.get("goal/d/y").is_some_and(|y| y.ends_with('2'))
                && !state.contains_key("mark")
        },
    };
    let kills = change.killed_at_each_call().await?;
    assert!(kills > 50, "{kills}");
    Ok(())
}
