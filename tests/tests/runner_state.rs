//! `file_stat`, `file_remove`, `dir_ensure` and `link_ensure` with the real binary: what is on the disk afterwards, after success
//! and after every kind of failure.

mod runner_support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use runner_support::{Dir, Session, cmd, with};
use serde_json::{Value, json};
use sortie_tests::require_root;

fn chmod(path: impl AsRef<Path>, mode: u32) -> Result<()> {
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

/// What every command of paths refuses before it looks at anything.
async fn refuses_wrong_paths(session: &mut Session, command: &str, params: &Value) -> Result<()> {
    for path in ["", "etc/motd", "a\0b", "/a\0b", &"/a".repeat(2048)] {
        let mut params = params.clone();
        params["path"] = json!(path);
        let error = session.error("INVALID_PARAMS", command, params).await?;
        assert!(error["message"].as_str().unwrap_or_default().starts_with("path"), "{error}");
    }
    Ok(())
}

/// Asks first what would be done, then has it done, and both have to say the same. The result.
async fn as_checked(session: &mut Session, command: &str, params: &Value) -> Result<Value> {
    let mut said = Vec::new();
    for check in [true, false] {
        let id = session.next_id();
        let frame = with(cmd(&id, command, params.clone()), json!({"check": check, "diff": true}));
        let mut answer = session.ask(&frame).await?;
        ensure!(answer["type"] == "DONE", "check {check}: {answer}");
        said.push(answer["data"]["result"].take());
    }
    assert_eq!(said[0], said[1], "{command} {params}");
    said.pop().context("an answer")
}

/// Everything below a directory with what a change would change, in a form that can be compared.
fn snapshot(top: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(top)? {
        let path = entry?.path();
        let found = std::fs::symlink_metadata(&path)?;
        all.push(format!(
            "{path:?} {:o} {}:{} {} {}.{} {}.{}",
            found.mode(),
            found.uid(),
            found.gid(),
            found.ino(),
            found.mtime(),
            found.mtime_nsec(),
            found.ctime(),
            found.ctime_nsec()
        ));
        if found.is_dir() {
            all.extend(snapshot(&path)?);
        }
    }
    all.sort();
    Ok(all)
}

/// A mount, gone at the end.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(args: &[&str], at: &Path) -> Result<Self> {
        let status = std::process::Command::new("mount").args(args).arg(at).status()?;
        ensure!(status.success(), "mount {args:?} {at:?}");
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn stat_tells_what_is_there_of_every_kind() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let file = dir.write("f", "hello\n")?;
    chmod(&file, 0o4710)?;
    std::os::unix::fs::chown(&file, Some(4_000_000_000), Some(0))?;
    chmod(&file, 0o4710)?;
    std::fs::hard_link(&file, dir.at("g"))?;
    let stat = session.done("file_stat", json!({"path": file})).await?;
    assert_eq!(
        stat,
        json!({"exists": true, "kind": "file", "size": 6, "mode": "4710", "owner": "4000000000", "group": "0",
            "group_name": "root", "links": 2, "mtime": stat["mtime"]})
    );
    let metadata = std::fs::metadata(&file)?;
    let time = stat["mtime"].as_str().unwrap_or_default();
    assert!(sortie_client::protocol::time::is_rfc3339(time), "{time}");
    let fraction = format!("{:09}", metadata.mtime_nsec());
    assert!(time.trim_end_matches('Z').ends_with(fraction.trim_end_matches('0')), "{time} {fraction}");

    let stat = session.done("file_stat", json!({"path": file, "checksum": true})).await?;
    assert_eq!(stat["checksum"], "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
    assert_eq!(session.done("file_stat", json!({"path": dir.text("")})).await?["kind"], "directory");
    assert_eq!(session.done("file_stat", json!({"path": "/dev/null"})).await?["kind"], "character");
    let _socket = std::os::unix::net::UnixListener::bind(dir.at("s"))?;
    assert_eq!(session.done("file_stat", json!({"path": dir.text("s")})).await?["kind"], "socket");
    nix::unistd::mkfifo(&dir.at("p"), nix::sys::stat::Mode::S_IRWXU)?;
    // Nobody writes to it: opening it would be for ever.
    let stat = session.done("file_stat", json!({"path": dir.text("p"), "checksum": true})).await?;
    assert_eq!((&stat["kind"], &stat["checksum"]), (&json!("fifo"), &Value::Null));
    session.finish().await
}

#[tokio::test]
async fn stat_follows_a_link_only_when_told_and_what_is_not_there_is_a_result() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    dir.write("f", "x")?;
    symlink("f", dir.at("link"))?;
    symlink("nowhere", dir.at("dangling"))?;
    symlink("loop", dir.at("loop"))?;
    symlink(std::str::from_utf8(b"f")?, dir.at("up"))?;
    let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"odd\xff");
    symlink(odd, dir.at("odd"))?;
    let stat = session.done("file_stat", json!({"path": dir.text("link")})).await?;
    assert_eq!((&stat["kind"], &stat["target"]), (&json!("link"), &json!("f")));
    let stat = session.done("file_stat", json!({"path": dir.text("link"), "follow": true})).await?;
    assert_eq!((&stat["kind"], &stat["size"], &stat["target"]), (&json!("file"), &json!(1), &Value::Null));
    let stat = session.done("file_stat", json!({"path": dir.text("odd")})).await?;
    assert_eq!((&stat["target"], &stat["target_encoding"]), (&json!("b2Rk/w=="), &json!("base64")));
    assert_eq!(session.done("file_stat", json!({"path": dir.text("dangling")})).await?["target"], "nowhere");
    for params in [
        json!({"path": dir.text("absent")}),
        json!({"path": dir.text("absent/below")}),
        json!({"path": dir.text("f/below")}),
        json!({"path": dir.text("dangling"), "follow": true, "checksum": true}),
    ] {
        assert_eq!(session.done("file_stat", params).await?, json!({"exists": false}));
    }
    let error =
        session.error("EXEC_FAILED", "file_stat", json!({"path": dir.text("loop"), "follow": true})).await?;
    assert!(error["message"].as_str().unwrap_or_default().contains("/loop"), "{error}");
    refuses_wrong_paths(&mut session, "file_stat", &json!({})).await?;
    session.finish().await
}

#[tokio::test]
async fn stat_tells_extended_attributes_of_files_and_of_links_themselves() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let file = dir.write("f", "")?;
    symlink("f", dir.at("link"))?;
    let set = |path: &Path, name: &str, value: &str| {
        let args = ["-h", "-n", name, "-v", value];
        let status = std::process::Command::new("setfattr").args(args).arg(path).status()?;
        anyhow::ensure!(status.success(), "setfattr {name}");
        Ok(())
    };
    sortie_tests::require_programs!("setfattr");
    set(Path::new(&file), "user.a", "0x00ff")?;
    set(Path::new(&file), "trusted.b", "plain")?;
    set(&dir.at("link"), "trusted.of-link", "plain")?;
    let stat = session.done("file_stat", json!({"path": file})).await?;
    assert_eq!(stat["xattrs"], json!({"user.a": "AP8=", "trusted.b": "cGxhaW4="}));
    let stat = session.done("file_stat", json!({"path": dir.text("link")})).await?;
    assert_eq!(stat["xattrs"], json!({"trusted.of-link": "cGxhaW4="}));
    session.finish().await
}

#[tokio::test]
async fn what_is_removed_is_gone_and_a_second_time_nothing_changes() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    dir.write("kept", "x")?;
    dir.write("f", "hello\n")?;
    symlink("kept", dir.at("link"))?;
    symlink("nowhere", dir.at("dangling"))?;
    nix::unistd::mkfifo(&dir.at("fifo"), Mode::S_IRWXU)?;
    for (name, kind) in [("f", "file"), ("link", "link"), ("dangling", "link"), ("fifo", "fifo")] {
        let params = json!({"path": dir.text(name)});
        let result = as_checked(&mut session, "file_remove", &params).await?;
        assert_eq!(
            (&result["changed"], &result["kind"], &result["removed"]),
            (&json!(true), &json!(kind), &json!(1))
        );
        let again = session.done("file_remove", params).await?;
        assert_eq!(again, json!({"changed": false}));
    }
    assert_eq!(dir.names()?, ["kept"]);
    for absent in ["absent", "absent/below", "kept/below"] {
        let result = as_checked(&mut session, "file_remove", &json!({"path": dir.text(absent)})).await?;
        assert_eq!(result, json!({"changed": false, "diff": ""}));
    }
    session.finish().await
}

#[tokio::test]
async fn a_check_of_removal_changes_nothing_and_the_diff_shows_what_goes() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let file = dir.write("f", "one\ntwo\n")?;
    chmod(&file, 0o640)?;
    std::fs::create_dir_all(dir.at("d/sub"))?;
    chmod(dir.at("d"), 0o2750)?;
    dir.write("d/a\nb", "")?;
    symlink("../f", dir.at("d/sub/link"))?;
    let before = snapshot(dir.path())?;
    let checked = async |session: &mut Session, params: Value| -> Result<Value> {
        let id = session.next_id();
        let frame = with(cmd(&id, "file_remove", params), json!({"check": true, "diff": true}));
        Ok(session.ask(&frame).await?["data"]["result"].take())
    };
    let result = checked(&mut session, json!({"path": file})).await?;
    assert_eq!(
        result["diff"],
        format!(
            "--- {file}\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-one\n-two\n--- {file} (attributes)\n+++ /dev/null\n@@ -1,4 +0,0 @@\n\
             -type file\n-owner root\n-group root\n-mode 0640\n"
        )
    );
    let path = dir.text("d");
    let result = checked(&mut session, json!({"path": path, "recursive": true})).await?;
    assert_eq!(result["removed"], 4);
    assert_eq!(
        result["diff"],
        format!(
            "--- {path} (names)\n+++ /dev/null\n@@ -1,3 +0,0 @@\n-a\\nb\n-sub/\n-sub/link\n\
             --- {path} (attributes)\n+++ /dev/null\n@@ -1,4 +0,0 @@\n-type directory\n-owner root\n-group root\n-mode 2750\n"
        )
    );
    let result = checked(&mut session, json!({"path": file, "sensitive": true})).await?;
    assert_eq!(result["diff"], "(withheld: the content is sensitive)\n");
    assert_eq!(snapshot(dir.path())?, before);
    session.finish().await
}

#[tokio::test]
async fn a_directory_goes_only_when_asked_for_and_then_with_everything_in_it() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let outside = dir.write("outside", "stays")?;
    std::fs::create_dir_all(dir.at("d/a/b/c"))?;
    std::fs::create_dir_all(dir.at("target/in"))?;
    dir.write("target/in/f", "stays")?;
    for number in 0..300 {
        dir.write(&format!("d/a/{number}"), "x")?;
    }
    symlink(dir.at("target"), dir.at("d/a/b/to-directory"))?;
    symlink(&outside, dir.at("d/a/b/to-file"))?;
    symlink(dir.at("target"), dir.at("link"))?;
    let path = dir.text("d");
    for params in [json!({"path": path}), json!({"path": dir.text("d/")})] {
        for check in [true, false] {
            let frame = with(cmd(&session.next_id(), "file_remove", params.clone()), json!({"check": check}));
            let error = session.failed("CONFLICT", &frame).await?;
            assert!(error["message"].as_str().unwrap_or_default().contains("recursive"), "{error}");
        }
    }
    // A slash at the end means a directory, and a link to one is none.
    session.error("CONFLICT", "file_remove", json!({"path": dir.text("link/"), "recursive": true})).await?;
    let result = as_checked(&mut session, "file_remove", &json!({"path": path, "recursive": true})).await?;
    assert_eq!((&result["kind"], &result["removed"]), (&json!("directory"), &json!(306)));
    assert_eq!(dir.names()?, ["link", "outside", "target"]);
    assert!(dir.at("target/in/f").exists());
    session.done("file_remove", json!({"path": dir.text("link"), "recursive": true})).await?;
    assert_eq!(dir.names()?, ["outside", "target"]);
    session.finish().await
}

#[tokio::test]
async fn a_tree_deeper_than_any_path_is_removed() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    std::fs::create_dir(dir.at("d"))?;
    let mut deep: std::os::fd::OwnedFd = std::fs::File::open(dir.at("d"))?.into();
    for _ in 0..3_000 {
        mkdirat(&deep, "below", Mode::S_IRWXU)?;
        deep = openat(&deep, "below", OFlag::O_DIRECTORY, Mode::empty())?;
    }
    drop(deep);
    let result = session.done("file_remove", json!({"path": dir.text("d"), "recursive": true})).await?;
    assert_eq!(result["removed"], 3_001);
    assert_eq!(dir.names()?, [""; 0]);
    session.finish().await
}

#[tokio::test]
async fn roots_and_mount_points_are_never_removed() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    refuses_wrong_paths(&mut session, "file_remove", &json!({"recursive": true})).await?;
    for path in ["/", "//", "/.", "/..", "/tmp/..", &dir.text("..")] {
        let error =
            session.error("INVALID_PARAMS", "file_remove", json!({"path": path, "recursive": true})).await?;
        assert!(error["message"].as_str().unwrap_or_default().starts_with("path"), "{error}");
    }
    std::fs::create_dir_all(dir.at("d/tmpfs"))?;
    std::fs::create_dir_all(dir.at("d/bound dir"))?;
    std::fs::create_dir_all(dir.at("other"))?;
    dir.write("d/before", "x")?;
    let file = dir.write("d/bound-file", "x")?;
    let other = dir.write("other/f", "stays")?;
    for (args, at) in [
        (vec!["-t", "tmpfs", "sortie-suite"], dir.at("d/tmpfs")),
        (vec!["--bind", &dir.text("other")], dir.at("d/bound dir")),
        (vec!["--bind", &other], Path::new(&file).to_owned()),
    ] {
        let mounted = Mounted::new(&args, &at)?;
        for path in [&dir.at("d"), &at] {
            let params = json!({"path": path, "recursive": true});
            for check in [true, false] {
                let frame =
                    with(cmd(&session.next_id(), "file_remove", params.clone()), json!({"check": check}));
                let error = session.failed("CONFLICT", &frame).await?;
                let said = error["message"].as_str().unwrap_or_default();
                assert!(said.contains("mount point") && said.contains(&*at.to_string_lossy()), "{error}");
            }
        }
        assert!(dir.at("d/before").exists() && dir.at("other/f").exists());
        drop(mounted);
    }
    session.done("file_remove", json!({"path": dir.text("d"), "recursive": true})).await?;
    assert_eq!(dir.names()?, ["other"]);
    session.finish().await
}

#[tokio::test]
async fn who_swaps_directories_for_links_meanwhile_loses_nothing_else() -> Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    std::fs::create_dir(dir.at("precious"))?;
    for number in 0..20 {
        dir.write(&format!("precious/{number}"), "stays")?;
    }
    std::fs::create_dir(dir.at("top"))?;
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let swapping = {
        let (top, precious, stop) = (dir.at("top"), dir.at("precious"), stop.clone());
        std::thread::spawn(move || {
            // Whatever of this fails, because it was removed meanwhile, is tried again.
            while !stop.load(Relaxed) {
                let (place, aside) = (top.join("sub"), top.join("aside"));
                let _ = std::fs::create_dir_all(&place);
                let _ = std::fs::write(place.join("f"), "x");
                let _ = std::fs::rename(&place, &aside);
                let _ = symlink(&precious, &place);
                let _ = std::fs::remove_file(&place);
                let _ = std::fs::rename(&aside, &place);
            }
        })
    };
    for _ in 0..300 {
        let params = json!({"path": dir.text("top"), "recursive": true});
        let id = session.next_id();
        let answer = session.ask(&cmd(&id, "file_remove", params)).await?;
        ensure!(answer["type"] == "DONE" || answer["type"] == "ERROR", "{answer}");
    }
    stop.store(true, Relaxed);
    ensure!(swapping.join().is_ok(), "the thread panicked");
    assert_eq!(std::fs::read_dir(dir.at("precious"))?.count(), 20);
    session.done("file_remove", json!({"path": dir.text("top"), "recursive": true})).await?;
    assert_eq!(dir.names()?, ["precious"]);
    session.finish().await
}

#[tokio::test]
async fn what_cannot_be_removed_is_named_and_what_is_left_is_in_its_place() -> Result<()> {
    require_root!();
    sortie_tests::require_programs!("chattr");
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let small = dir.at("small");
    std::fs::create_dir(&small)?;
    let mounted = Mounted::new(&["-t", "tmpfs", "sortie-suite"], &small)?;
    std::fs::create_dir_all(dir.at("small/d/sub"))?;
    let held = dir.write("small/d/sub/immutable", "x")?;
    let set = |flag: &str| std::process::Command::new("chattr").args([flag, &held]).output();
    if !set("+i")?.status.success() {
        sortie_tests::skip!("this kernel's tmpfs knows no immutable files");
    }
    let params = json!({"path": dir.text("small/d"), "recursive": true});
    let error = session.error("PERMISSION_DENIED", "file_remove", params.clone()).await?;
    let said = error["message"].as_str().unwrap_or_default();
    assert!(said.contains("immutable") && said.contains("is in its place"), "{error}");
    assert!(Path::new(&held).exists());
    set("-i")?;
    session.done("file_remove", params).await?;
    assert_eq!(std::fs::read_dir(&small)?.count(), 0);
    let status = std::process::Command::new("mount").args(["-o", "remount,ro"]).arg(&small).status()?;
    ensure!(status.success(), "remount");
    let absent = session.done("file_remove", json!({"path": dir.text("small/absent")})).await?;
    assert_eq!(absent["changed"], false);
    drop(mounted);
    session.finish().await
}

fn owner(path: impl AsRef<Path>) -> Result<(u32, u32, u32)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.uid(), found.gid(), found.mode() & 0o7777))
}

#[tokio::test]
async fn a_directory_is_made_with_all_that_it_is_to_have_and_then_left_alone() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let params = json!({"path": dir.text("a/b/c/"), "mode": "2711", "owner": "65534", "group": "daemon"});
    let result = as_checked(&mut session, "dir_ensure", &params).await?;
    assert_eq!((&result["changed"], &result["created"]), (&json!(true), &json!(true)));
    assert!(result["diff"].as_str().unwrap_or_default().ends_with("+group daemon\n+mode 2711\n"), "{result}");
    assert_eq!((owner(dir.at("a/b"))?, owner(dir.at("a/b/c"))?), ((0, 0, 0o755), (65534, 1, 0o2711)));
    let before = snapshot(dir.path())?;
    let result = as_checked(&mut session, "dir_ensure", &params).await?;
    assert_eq!(result, json!({"changed": false, "created": false, "diff": ""}));
    assert_eq!(snapshot(dir.path())?, before);

    // What is there keeps what is not asked for.
    as_checked(&mut session, "dir_ensure", &json!({"path": dir.text("a/b/c"), "mode": "0700"})).await?;
    assert_eq!(owner(dir.at("a/b/c"))?, (65534, 1, 0o700));
    // A group that is handed on is that of what is made below too.
    std::os::unix::fs::chown(dir.at("a"), None, Some(65534))?;
    chmod(dir.at("a"), 0o2755)?;
    session.done("dir_ensure", json!({"path": dir.text("a/x/y")})).await?;
    assert_eq!((owner(dir.at("a/x"))?, owner(dir.at("a/x/y"))?), ((0, 65534, 0o2755), (0, 65534, 0o2755)));
    session.finish().await
}

#[tokio::test]
async fn what_is_no_directory_is_never_made_one() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    dir.write("f", "x")?;
    std::fs::create_dir(dir.at("d"))?;
    symlink("d", dir.at("to-d"))?;
    symlink("nowhere", dir.at("dangling"))?;
    refuses_wrong_paths(&mut session, "dir_ensure", &json!({})).await?;
    let before = snapshot(dir.path())?;
    for (code, path, more) in [
        ("CONFLICT", "f", json!({})),
        ("CONFLICT", "f/below", json!({})),
        ("CONFLICT", "to-d", json!({"no_follow": true})),
        ("NOT_FOUND", "new", json!({"owner": "nobody.such"})),
        ("INVALID_PARAMS", "new", json!({"file_mode": "0644"})),
        ("INVALID_PARAMS", "new", json!({"mode": "u+x"})),
    ] {
        let mut params = json!({"path": dir.text(path)});
        for (name, value) in more.as_object().context("an object")? {
            params[name] = value.clone();
        }
        for check in [true, false] {
            let frame = with(cmd(&session.next_id(), "dir_ensure", params.clone()), json!({"check": check}));
            session.failed(code, &frame).await.with_context(|| format!("{path} check {check}"))?;
        }
    }
    session.error("CONFLICT", "dir_ensure", json!({"path": "/tmp/..", "recursive": true})).await?;
    assert_eq!(snapshot(dir.path())?, before);
    session.done("dir_ensure", json!({"path": dir.text("to-d"), "mode": "0711"})).await?;
    assert_eq!(owner(dir.at("d"))?.2, 0o711);
    // Where a link leads to nothing, the directory is made.
    session.done("dir_ensure", json!({"path": dir.text("dangling")})).await?;
    assert!(dir.at("nowhere").is_dir());
    session.finish().await
}

#[tokio::test]
async fn recursion_reaches_everything_below_and_nothing_else() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let outside = dir.write("outside", "x")?;
    chmod(&outside, 0o644)?;
    std::fs::create_dir_all(dir.at("d/sub/deep"))?;
    std::fs::create_dir_all(dir.at("elsewhere/in"))?;
    dir.write("d/sub/f", "x")?;
    dir.write("d/sub/tool", "x")?;
    nix::unistd::mkfifo(&dir.at("d/sub/fifo"), Mode::S_IRWXU)?;
    symlink(&outside, dir.at("d/sub/deep/link"))?;
    symlink(dir.at("elsewhere"), dir.at("d/to-elsewhere"))?;
    chmod(dir.at("d/sub/tool"), 0o6755)?;
    std::fs::create_dir(dir.at("d/mounted"))?;
    let mounted = Mounted::new(&["-t", "tmpfs", "-o", "mode=0700", "sortie-suite"], &dir.at("d/mounted"))?;
    let untouched = (owner(&outside)?, owner(dir.at("elsewhere"))?, owner(dir.at("elsewhere/in"))?);
    let params =
        json!({"path": dir.text("d"), "owner": "65534", "group": "1", "mode": "0750", "recursive": true});
    let before = snapshot(dir.path())?;
    let frame = with(cmd("c", "dir_ensure", params.clone()), json!({"check": true, "diff": true}));
    session.send(&frame).await?;
    let event = session.frame("EVENT").await?;
    assert!(event["data"]["message"].as_str().unwrap_or_default().contains("d/mounted"), "{event}");
    let checked = session.frame("DONE").await?["data"]["result"].take();
    assert_eq!(snapshot(dir.path())?, before, "a check changed something");
    let frame = with(cmd("r", "dir_ensure", params.clone()), json!({"diff": true}));
    let result = session.ask(&frame).await?["data"]["result"].take();
    assert_eq!(result, checked);
    assert_eq!(result["changed_below"], 7);
    assert_eq!(result["diff"].as_str().unwrap_or_default().matches(" (attributes)\n@@").count(), 8);
    for (path, expected) in [
        ("d", (65534, 1, 0o750)),
        ("d/sub", (65534, 1, 0o750)),
        ("d/sub/deep", (65534, 1, 0o750)),
        ("d/sub/f", (65534, 1, 0o644)),
        // The bits that made it run as root are gone with root.
        ("d/sub/tool", (65534, 1, 0o755)),
        ("d/sub/fifo", (65534, 1, 0o700)),
        ("d/sub/deep/link", (65534, 1, 0o777)),
        ("d/to-elsewhere", (65534, 1, 0o777)),
        ("d/mounted", (0, 0, 0o700)),
    ] {
        assert_eq!(owner(dir.at(path))?, expected, "{path}");
    }
    assert_eq!((owner(&outside)?, owner(dir.at("elsewhere"))?, owner(dir.at("elsewhere/in"))?), untouched);
    let before = snapshot(dir.path())?;
    assert_eq!(session.done("dir_ensure", params).await?, json!({"changed": false, "created": false}));
    assert_eq!(snapshot(dir.path())?, before, "a second run changed something");
    let files = json!({"path": dir.text("d"), "recursive": true, "file_mode": "0640"});
    assert_eq!(session.done("dir_ensure", files).await?["changed_below"], 2);
    assert_eq!((owner(dir.at("d/sub/f"))?.2, owner(dir.at("d/sub"))?.2), (0o640, 0o750));
    drop(mounted);
    session.finish().await
}

#[tokio::test]
async fn who_swaps_directories_for_links_meanwhile_is_given_nothing_else() -> Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    std::fs::create_dir(dir.at("precious"))?;
    let file = dir.write("precious/f", "x")?;
    std::fs::create_dir_all(dir.at("top/sub"))?;
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let swapping = {
        let (top, precious, stop) = (dir.at("top"), dir.at("precious"), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Relaxed) {
                let (place, aside) = (top.join("sub"), top.join("aside"));
                let _ = std::fs::rename(&place, &aside);
                let _ = symlink(&precious, &place);
                let _ = std::fs::remove_file(&place);
                let _ = std::fs::rename(&aside, &place);
            }
        })
    };
    for round in 0..300 {
        let params =
            json!({"path": dir.text("top"), "recursive": true, "owner": (round % 2 + 65533).to_string()});
        let id = session.next_id();
        let answer = session.ask(&cmd(&id, "dir_ensure", params)).await?;
        ensure!(answer["type"] == "DONE" || answer["type"] == "ERROR", "{answer}");
    }
    stop.store(true, Relaxed);
    ensure!(swapping.join().is_ok(), "the thread panicked");
    assert_eq!((owner(dir.at("precious"))?.0, owner(&file)?.0), (0, 0));
    session.finish().await
}

#[tokio::test]
async fn a_link_says_what_was_asked_for_and_replaces_links_alone() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.text("link");
    let to = |target: &str| json!({"path": path, "target": target});
    let result = as_checked(&mut session, "link_ensure", &to("nowhere/at all")).await?;
    assert_eq!((&result["created"], &result["dangling"]), (&json!(true), &json!(true)));
    assert_eq!(std::fs::read_link(&path)?, Path::new("nowhere/at all"));
    let again = session.done("link_ensure", to("nowhere/at all")).await?;
    assert_eq!(again, json!({"changed": false, "created": false, "dangling": true}));
    std::os::unix::fs::lchown(&path, Some(65534), Some(1))?;
    let before = snapshot(dir.path())?;
    let frame = with(cmd("c", "link_ensure", to(".")), json!({"check": true, "diff": true}));
    let checked = session.ask(&frame).await?["data"]["result"].take();
    assert_eq!(snapshot(dir.path())?, before);
    let result =
        session.ask(&with(cmd("r", "link_ensure", to(".")), json!({"diff": true}))).await?["data"]["result"]
            .take();
    assert_eq!(result, checked);
    let diff = result["diff"].as_str().context("a diff")?;
    assert!(diff.ends_with(" group daemon\n-target nowhere/at all\n+target .\n"), "{diff}");
    assert_eq!((result["created"].as_bool(), result.get("dangling")), (Some(false), None));
    // The owner of the old link stays, and what it leads to is not touched.
    assert_eq!((owner(&path)?, owner(dir.path())?.0), ((65534, 1, 0o777), 0));
    let owned = json!({"path": path, "target": ".", "owner": "root", "group": "0"});
    assert_eq!(session.done("link_ensure", owned).await?["changed"], true);
    assert_eq!(owner(&path)?, (0, 0, 0o777));
    assert_eq!(dir.names()?, ["link"]);
    session.finish().await
}

#[tokio::test]
async fn a_link_replaces_a_file_or_an_empty_directory_only_by_force() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    dir.write("f", "old\n")?;
    std::fs::create_dir_all(dir.at("empty"))?;
    std::fs::create_dir_all(dir.at("full"))?;
    dir.write("full/f", "stays")?;
    std::fs::create_dir(dir.at("mounted"))?;
    let mounted = Mounted::new(&["-t", "tmpfs", "sortie-suite"], &dir.at("mounted"))?;
    refuses_wrong_paths(&mut session, "link_ensure", &json!({"target": "x"})).await?;
    let before = snapshot(dir.path())?;
    for (code, path, target, force) in [
        ("CONFLICT", "f", "x", false),
        ("CONFLICT", "empty", "x", false),
        ("CONFLICT", "full", "x", true),
        ("CONFLICT", "mounted", "x", true),
        ("NOT_FOUND", "absent/link", "x", true),
        ("INVALID_PARAMS", "new/", "x", true),
        ("INVALID_PARAMS", "new", "", true),
        ("INVALID_PARAMS", "new", "a\0b", true),
        ("INVALID_PARAMS", "new", &"x".repeat(4096), true),
    ] {
        let params = json!({"path": dir.text(path), "target": target, "force": force});
        for check in [true, false] {
            let frame = with(cmd(&session.next_id(), "link_ensure", params.clone()), json!({"check": check}));
            session.failed(code, &frame).await.with_context(|| format!("{path} {target} check {check}"))?;
        }
    }
    assert_eq!(snapshot(dir.path())?, before);
    drop(mounted);
    for (path, gone) in [("f", "-old\n"), ("empty", "-type directory\n")] {
        let params = json!({"path": dir.text(path), "target": "full", "force": true});
        let frame = |id: &str, check| {
            with(cmd(id, "link_ensure", params.clone()), json!({"check": check, "diff": true}))
        };
        let checked = session.ask(&frame(&format!("c{path}"), true)).await?["data"]["result"].take();
        let result = session.ask(&frame(&format!("r{path}"), false)).await?["data"]["result"].take();
        assert_eq!(result, checked);
        assert!(result["diff"].as_str().unwrap_or_default().contains(gone), "{result}");
        assert_eq!((&result["changed"], &result["created"]), (&json!(true), &json!(false)));
        assert_eq!(std::fs::read_link(dir.at(path))?, Path::new("full"));
    }
    assert_eq!(dir.names()?, ["empty", "f", "full", "mounted"]);
    session.finish().await
}
