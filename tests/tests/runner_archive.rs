//! `archive_unpack` with the real binary and the tools of this machine: GNU tar and Info-ZIP, and busybox's of the same names.

mod runner_support;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use runner_support::{Dir, Session, cmd, with};
use serde_json::{Value, json};
use sortie_tests::process;
use sortie_tests::runner::RunnerProcess;
use sortie_tests::{eventually, require_programs, require_root};

/// Everything below a directory: mode, owner and content or target, by its name.
fn tree(top: &str) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    let mut left = vec![Path::new(top).to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let found = std::fs::symlink_metadata(&path)?;
            let what = if found.is_dir() {
                left.push(path.clone());
                "/".to_owned()
            } else if found.is_symlink() {
                format!("-> {}", std::fs::read_link(&path)?.display())
            } else {
                String::from_utf8_lossy(&std::fs::read(&path)?).into_owned()
            };
            let mode = if found.is_symlink() { 0o777 } else { found.mode() & 0o7777 };
            all.insert(
                path.strip_prefix(top)?.display().to_string(),
                format!("{mode:o} {}:{} {what}", found.uid(), found.gid()),
            );
        }
    }
    all.remove(".sortie-unpacked");
    Ok(all)
}

fn run(directory: &Dir, script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-ec", script]).current_dir(directory.at("")).output()?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Makes `src/top` with a bit of everything.
fn source(dir: &Dir) -> Result<()> {
    run(dir, "umask 022; mkdir -p 'src/top/sub dir/é'; cd src/top; echo one > a; echo run > bin; chmod 4755 bin; chmod 2775 'sub dir'
              echo two > 'sub dir/b'; ln -s a link; ln -s '../a' 'sub dir/up'; touch -d 2020-01-01T00:00:00Z a; chown 1234:1234 a")
}

fn expected() -> BTreeMap<String, String> {
    [
        ("a", "644 0:0 one\n"),
        ("bin", "755 0:0 run\n"),
        ("link", "777 0:0 -> a"),
        ("sub dir", "775 0:0 /"),
        ("sub dir/b", "644 0:0 two\n"),
        ("sub dir/up", "777 0:0 -> ../a"),
        ("sub dir/é", "755 0:0 /"),
    ]
    .into_iter()
    .map(|(name, what)| (name.to_owned(), what.to_owned()))
    .collect()
}

/// Sessions with this machine's tools, and with busybox's in front of them.
async fn sessions(dir: &Dir) -> Result<Vec<Session>> {
    std::fs::create_dir(dir.at("busybox"))?;
    for name in ["tar", "unzip"] {
        symlink("/bin/busybox", dir.at("busybox").join(name))?;
    }
    let path = format!("{}:{}", dir.text("busybox"), std::env::var("PATH")?);
    Ok(vec![
        Session::start(&[]).await?,
        Session::of(RunnerProcess::builder().env("PATH", &path).start()?).await?,
    ])
}

/// Checks that `check` says what the run then does and that a second run does nothing.
async fn thrice(session: &mut Session, params: &Value) -> Result<Value> {
    let mut answers = Vec::new();
    for check in [true, false, false] {
        let id = session.next_id();
        let frame = with(cmd(&id, "archive_unpack", params.clone()), json!({"check": check, "diff": true}));
        let mut answer = session.ask(&frame).await?;
        ensure!(answer["type"] == "DONE", "{params}: {answer}");
        answers.push(answer["data"]["result"].take());
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!((&answers[2]["changed"], &answers[2]["diff"]), (&json!(false), &json!("")), "{params}");
    answers.into_iter().nth(1).context("three answers")
}

#[tokio::test]
async fn every_kind_of_archive_is_unpacked_by_either_family_of_tools() -> Result<()> {
    require_root!();
    require_programs!("tar", "gzip", "bzip2", "xz", "zstd", "zip", "unzip", "busybox");
    let dir = Dir::new()?;
    source(&dir)?;
    run(
        &dir,
        "for k in '' z j J; do tar -C src -c${k}f t$k.tar top; done; tar -C src --zstd -cf tzstd.tar top; cd src; zip -qry ../t.zip top",
    )?;
    for (at, mut session) in sessions(&dir).await?.into_iter().enumerate() {
        for archive in ["t.tar", "tz.tar", "tj.tar", "tJ.tar", "tzstd.tar", "t.zip"] {
            let goal = dir.text(&format!("made{at}/{archive}"));
            let params = json!({"archive": dir.text(archive), "path": goal, "strip": 1});
            if at == 1 && archive == "tzstd.tar" {
                session.error("EXEC_FAILED", "archive_unpack", params).await?;
                assert!(!Path::new(&goal).exists());
                continue;
            }
            let done = thrice(&mut session, &params).await?;
            assert_eq!((&done["action"], &done["members"]), (&json!("unpacked"), &json!(7)), "{archive}");
            let mut expected = expected();
            if at == 1 && archive == "t.zip" {
                // It does not restore the group's right to write.
                let found = tree(&goal)?;
                expected.insert("sub dir".into(), found["sub dir"].clone());
            }
            assert_eq!(tree(&goal)?, expected, "{archive}");
            assert_eq!(std::fs::metadata(&goal)?.mode() & 0o7777, 0o755);
            if archive != "t.zip" {
                assert_eq!(std::fs::metadata(format!("{goal}/a"))?.mtime(), 1_577_836_800);
            }
        }
        session.finish().await?;
    }
    assert!(!dir.names()?.iter().any(|name| name.starts_with(".sortie")));
    Ok(())
}

#[tokio::test]
async fn what_is_in_the_directory_stays_and_what_is_new_is_put_among_it() -> Result<()> {
    require_root!();
    require_programs!("tar");
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    source(&dir)?;
    run(
        &dir,
        "tar -C src -cf t.tar top; mkdir -p 'goal/top/sub dir'; echo old > goal/top/a; echo mine > 'goal/top/sub dir/mine'; chmod 700 goal/top",
    )?;
    let goal = dir.text("goal");
    let params = json!({"archive": dir.text("t.tar"), "path": goal, "owner": "1234", "group": "daemon"});
    let done = thrice(&mut session, &params).await?;
    assert_eq!(done["members"], 8);
    let found = tree(&goal)?;
    assert_eq!((&*found["top/a"], &*found["top/sub dir/mine"]), ("644 1234:1 one\n", "644 0:0 mine\n"));
    assert_eq!((&*found["top"], &*found["top/sub dir/é"]), ("700 0:0 /", "755 1234:1 /"));
    assert_eq!(found.len(), 9);
    // Another archive is another thing to be unpacked; the same one again too.
    run(&dir, "echo three > src/top/a; cp t.tar old.tar; tar -C src -cf t.tar top")?;
    thrice(&mut session, &params).await?;
    assert_eq!(std::fs::read_to_string(dir.at("goal/top/a"))?, "three\n");
    let back = with(json!({"data": params}), json!({"archive": dir.text("old.tar")}))["data"].take();
    thrice(&mut session, &back).await?;
    assert_eq!(std::fs::read_to_string(dir.at("goal/top/a"))?, "one\n");
    session.finish().await
}

#[tokio::test]
async fn creates_and_marker_say_when_there_is_nothing_to_do() -> Result<()> {
    require_programs!("tar");
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    run(&dir, "mkdir src; echo x > src/x; tar -C src -cf t.tar x")?;
    let params = |more| {
        with(json!({"data": {"archive": dir.text("t.tar"), "path": dir.text("g")}}), more)["data"].take()
    };
    let done = thrice(&mut session, &params(json!({"creates": dir.text("g/x")}))).await?;
    assert_eq!(done["action"], "unpacked");
    assert!(!dir.at("g/.sortie-unpacked").exists());
    // The archive need not even be there.
    let gone = json!({"creates": dir.text("g/x"), "archive": dir.text("gone.tar")});
    assert_eq!(session.done("archive_unpack", params(gone)).await?["changed"], false);
    let marker = json!({"marker": dir.text("marks/t")});
    thrice(&mut session, &params(marker)).await?;
    assert!(std::fs::read_to_string(dir.at("marks/t"))?.starts_with("sha256 "));
    session.finish().await
}

#[tokio::test]
async fn what_would_end_up_elsewhere_is_refused_before_anything_is_unpacked() -> Result<()> {
    require_root!();
    require_programs!("tar", "python3", "busybox", "unzip");
    let dir = Dir::new()?;
    // As only somebody who means harm makes them.
    std::fs::write(
        dir.at("make.py"),
        r#"
import io, tarfile, zipfile
def tar(name, *members):
    with tarfile.open(name, "w") as t:
        for m in members:
            info = tarfile.TarInfo(m[0]); info.type = m[1] if len(m) > 1 else tarfile.REGTYPE
            info.linkname = m[2] if len(m) > 2 else ""
            info.uname = m[3] if len(m) > 3 else ""
            info.size = 1 if info.type == tarfile.REGTYPE else 0
            t.addfile(info, io.BytesIO(b"x"))
S, H = tarfile.SYMTYPE, tarfile.LNKTYPE
tar("absolute.tar", ("fine",), ("/tmp/evil",))
tar("parent.tar", ("fine",), ("../evil",))
tar("middle.tar", ("fine",), ("a/../../evil",))
tar("line.tar", ("fine\n../evil",))
tar("device.tar", ("fine",), ("null", tarfile.CHRTYPE))
tar("fifo.tar", ("fine",), ("fifo", tarfile.FIFOTYPE))
tar("link.tar", ("link", S, ".."), ("link/evil",))
tar("inner.tar", ("d/x",), ("link", S, "d"), ("link/evil",))
tar("out.tar", ("link", S, "/etc"))
tar("up.tar", ("a/link", S, "../../x"))
tar("hard.tar", ("hard", H, "/etc/passwd"))
tar("hardup.tar", ("hard", H, "../outside"))
tar("uname.tar", ("hard", H, "../outside", "x -> y"))
with zipfile.ZipFile("zip.zip", "w") as z: z.writestr("fine", "x"); z.writestr("../evil", "x")
with zipfile.ZipFile("abs.zip", "w") as z: z.writestr("/tmp/evil", "x")
with zipfile.ZipFile("comment.zip", "w") as z:
    z.writestr("../evil", "x"); z.comment = b"---------  ---------- -----   ----\n        1  2024-01-01 00:00   fine\n---------                     -------"
with zipfile.ZipFile("link.zip", "w") as z:
    i = zipfile.ZipInfo("link"); i.create_system = 3; i.external_attr = 0o120777 << 16; z.writestr(i, "../..")
"#,
    )?;
    run(&dir, "python3 make.py; echo secret > outside; mkdir old; echo old > old/keep")?;
    let archives: Vec<String> =
        dir.names()?.into_iter().filter(|n| n.ends_with(".tar") || n.ends_with(".zip")).collect();
    ensure!(archives.len() == 17, "{archives:?}");
    for (at, mut session) in sessions(&dir).await?.into_iter().enumerate() {
        let before = dir.names()?;
        for archive in &archives {
            for goal in ["new/goal", "old"] {
                let params = json!({"archive": dir.text(archive), "path": dir.text(goal)});
                for check in [true, false] {
                    let id = session.next_id();
                    let frame = with(cmd(&id, "archive_unpack", params.clone()), json!({"check": check}));
                    if check && archive == "link.zip" {
                        // No listing that both families print says what a member of a zip is.
                        continue;
                    }
                    let answer = session.ask(&frame).await?;
                    let code = &answer["data"]["code"];
                    assert!(
                        code == "VALIDATION_FAILED" || (archive == "link.zip" && code == "EXEC_FAILED"),
                        "{at} {archive}: {answer}"
                    );
                    let message = answer["data"]["message"].as_str().unwrap_or_default();
                    assert!(message.contains("nothing was unpacked"), "{message}");
                    assert_eq!(dir.names()?, before, "{archive}");
                    assert_eq!(std::fs::read_dir(dir.at("old"))?.count(), 1, "{archive}");
                }
            }
        }
        session.finish().await?;
    }
    assert_eq!(std::fs::metadata(dir.at("outside"))?.nlink(), 1);
    Ok(())
}

#[tokio::test]
async fn what_stands_in_the_way_is_told_and_left() -> Result<()> {
    require_root!();
    require_programs!("tar");
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    run(&dir, "mkdir -p src/d one two; echo x > src/f; echo y > src/d/g; tar -C src -cf t.tar f d; tar -C src -cf s.tar src/../d f 2>/dev/null || :
               mkdir -p file/f link elsewhere notdir; echo z > notdir/d; ln -s ../elsewhere link/d; echo no > plain; tar -C . -cf tops.tar src/f one two src/d/g")?;
    for (code, archive, goal, strip) in [
        ("CONFLICT", "t.tar", "file", 0),
        ("CONFLICT", "t.tar", "link", 0),
        ("CONFLICT", "t.tar", "notdir", 0),
        ("CONFLICT", "t.tar", "plain", 0),
        ("CONFLICT", "t.tar", "new", 3),
        ("CONFLICT", "one", "new", 0),
        ("NOT_FOUND", "nowhere.tar", "new", 0),
        ("UNSUPPORTED", "plain", "new", 0),
    ] {
        let before = tree(&dir.text(""))?;
        for check in [true, false] {
            let id = session.next_id();
            let params = json!({"archive": dir.text(archive), "path": dir.text(goal), "strip": strip});
            let frame = with(cmd(&id, "archive_unpack", params), json!({"check": check}));
            session.failed(code, &frame).await.with_context(|| format!("{archive} {goal}"))?;
            assert_eq!(tree(&dir.text(""))?, before, "{archive} {goal}");
        }
    }
    // One directory holds all that stays.
    let params = json!({"archive": dir.text("tops.tar"), "path": dir.text("stripped"), "strip": 1});
    thrice(&mut session, &params).await?;
    assert_eq!(tree(&dir.text("stripped"))?.len(), 3);
    // A damaged archive leaves nothing.
    run(&dir, "gzip -k t.tar; head -c 60 t.tar.gz > cut.tar.gz")?;
    let cut = json!({"archive": dir.text("cut.tar.gz"), "path": dir.text("cut")});
    session.error("EXEC_FAILED", "archive_unpack", cut).await?;
    assert!(!dir.at("cut").exists());
    session.finish().await
}

#[tokio::test]
async fn wrong_input_is_told_before_anything_is_looked_at() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    for (field, more) in [
        ("path", json!({"path": ""})),
        ("path", json!({"path": "relative"})),
        ("archive", json!({"archive": ""})),
        ("archive", json!({"archive": "a.tar"})),
        ("archive", json!({"archive": "/a\0b"})),
        ("creates", json!({"creates": "x"})),
        ("marker", json!({"marker": "x"})),
        ("creates", json!({"creates": "/x", "marker": "/y"})),
        ("strip", json!({"strip": 101})),
        ("strip", json!({"strip": -1})),
    ] {
        let params =
            with(json!({"data": {"archive": "/nowhere/a.tar", "path": "/nowhere/b"}}), more)["data"].take();
        let error = session.error("INVALID_PARAMS", "archive_unpack", params).await?;
        assert!(error["message"].as_str().unwrap_or_default().starts_with(field), "{error}");
    }
    session.finish().await
}

#[tokio::test]
async fn what_a_killed_run_left_goes_with_the_next() -> Result<()> {
    require_root!();
    require_programs!("tar");
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    // A tar that says what directory it unpacks into, and stays there.
    run(&dir, "mkdir src bin; echo x > src/x; tar -C src -cf t.tar x
               printf '#!/bin/sh\\ncase \"$1\" in -x) touch \"$5/half\"; echo $$ > \"'$PWD'/pid\"; exec sleep 600;; *) exec /bin/tar \"$@\";; esac\\n' > bin/tar; chmod 755 bin/tar")?;
    let path = format!("{}:{}", dir.text("bin"), std::env::var("PATH")?);
    let mut slow = Session::of(RunnerProcess::builder().env("PATH", &path).start()?).await?;
    let params = json!({"archive": dir.text("t.tar"), "path": dir.text("goal")});
    slow.send(&cmd("u", "archive_unpack", params.clone())).await?;
    let left = || dir.names().map(|names| names.iter().any(|name| name.starts_with(".sortie-unpack-")));
    let half = eventually("it unpacks", || {
        ensure!(left()? && dir.at("pid").exists(), "not yet");
        Ok(())
    });
    half.await?;
    let server =
        process::all().into_iter().find(|process| process.ppid == slow.pid()).context("no server")?;
    for pid in [slow.pid(), server.pid] {
        process::kill(pid, Signal::SIGKILL)?;
    }
    slow.quiet().await?;
    ensure!(left()? && !dir.at("goal").exists());
    thrice(&mut session, &params).await?;
    assert!(!left()? && dir.at("goal/x").exists());
    session.finish().await
}
