//! `file_write` and `file_read` with the real binary: what is on the disk afterwards, after success and after every
//! kind of failure.

mod runner_support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use runner_support::{Dir, Session, cmd, pids, runs, with};
use serde_json::{Value, json};
use sortie_tests::runner::RunnerProcess;
use sortie_tests::{require_programs, require_root};

fn mode(path: impl AsRef<Path>) -> Result<u32> {
    Ok(std::fs::symlink_metadata(path)?.mode() & 0o7777)
}

fn chmod(path: impl AsRef<Path>, mode: u32) -> Result<()> {
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

fn inode(path: impl AsRef<Path>) -> Result<u64> {
    Ok(std::fs::metadata(path)?.ino())
}

fn text(path: impl AsRef<Path>) -> Result<String> {
    Ok(std::fs::read_to_string(path)?)
}

/// What a program of the machine says.
fn output(program: &str, args: &[&str]) -> Result<String> {
    let output = std::process::Command::new(program).args(args).output()?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Parameters of a write, with more of them.
fn to(path: &str, content: &str, more: Value) -> Value {
    let params = json!({"data": {"path": path, "content": content, "create": true}});
    with(params, more)["data"].take()
}

#[tokio::test]
async fn a_write_replaces_the_file_and_an_unchanged_one_is_not_touched() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "old")?;
    let before = std::fs::metadata(&path)?;
    let result = session.done("file_write", to(&path, "old", json!({}))).await?;
    assert_eq!((&result["changed"], &result["bytes_written"]), (&json!(false), &json!(0)));
    assert_eq!(result["created"], false);
    let same = std::fs::metadata(&path)?;
    assert_eq!(
        (before.ino(), before.mtime_nsec(), before.ctime_nsec()),
        (same.ino(), same.mtime_nsec(), same.ctime_nsec())
    );
    let held = std::fs::File::open(&path)?;
    let result = session.done("file_write", to(&path, "new", json!({}))).await?;
    assert_eq!((&result["changed"], &result["bytes_written"]), (&json!(true), &json!(3)));
    assert_ne!(inode(&path)?, before.ino(), "written in place");
    // Who has the old file open goes on reading the old one.
    assert_eq!(std::io::read_to_string(held)?, "old");
    assert_eq!((text(&path)?.as_str(), dir.names()?), ("new", vec!["f".to_owned()]));
    let result = session.done("file_write", to(&path, "", json!({}))).await?;
    assert_eq!(result["checksum"], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    session.finish().await
}

#[tokio::test]
async fn attributes_alone_are_changed_in_place() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "same")?;
    let before = inode(&path)?;
    for (more, expected) in [
        (json!({"mode": "0600"}), (0o600, 0, 0)),
        (json!({"mode": "6755"}), (0o6755, 0, 0)),
        (json!({"owner": "65534"}), (0o6755, 65534, 0)),
        (json!({"group": "nogroup"}), (0o6755, 65534, 65534)),
        (json!({"owner": "root", "group": "root", "mode": "0o1644"}), (0o1644, 0, 0)),
    ] {
        for changed in [true, false] {
            let result = session.done("file_write", to(&path, "same", more.clone())).await?;
            assert_eq!(
                (&result["changed"], &result["bytes_written"]),
                (&json!(changed), &json!(0)),
                "{more}"
            );
        }
        let now = std::fs::metadata(&path)?;
        assert_eq!((mode(&path)?, now.uid(), now.gid()), expected, "{more}");
        assert_eq!(now.ino(), before, "{more}");
    }
    session.finish().await
}

#[tokio::test]
async fn names_that_only_the_name_service_knows_are_names() -> Result<()> {
    require_root!();
    let dir = Dir::new()?;
    let getent = dir.write("getent", "#!/bin/sh\ncase $* in \"passwd jane.doe@corp\") echo \"$2:*:4242:4343::/:\";; \"group staff@corp\") echo \"$2:*:4343:\";; *) exit 2;; esac\n")?;
    chmod(&getent, 0o755)?;
    let path = format!("{}:{}", dir.text(""), std::env::var("PATH")?);
    let mut session = Session::of(RunnerProcess::builder().env("PATH", &path).start()?).await?;
    let file = dir.text("f");
    session
        .done("file_write", to(&file, "x", json!({"owner": "jane.doe@corp", "group": "staff@corp"})))
        .await?;
    let metadata = std::fs::metadata(&file)?;
    assert_eq!((metadata.uid(), metadata.gid()), (4242, 4343));
    session.error("NOT_FOUND", "file_write", to(&file, "y", json!({"owner": "nobody.else"}))).await?;
    assert_eq!(text(&file)?, "x");
    session.finish().await
}

#[tokio::test]
async fn mode_owner_and_group_of_the_old_file_are_kept() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "old")?;
    std::os::unix::fs::chown(&path, Some(65534), Some(1))?;
    chmod(&path, 0o4751)?;
    session.done("file_write", to(&path, "new", json!({}))).await?;
    let now = std::fs::metadata(&path)?;
    assert_eq!((mode(&path)?, now.uid(), now.gid()), (0o4751, 65534, 1));
    session
        .done("file_write", to(&path, "newer", json!({"group": "daemon", "owner": "nobody", "mode": "2711"})))
        .await?;
    let now = std::fs::metadata(&path)?;
    assert_eq!((mode(&path)?, now.uid(), now.gid()), (0o2711, 65534, 1));
    session.finish().await
}

#[tokio::test]
async fn a_new_file_gets_the_group_that_its_directory_hands_on() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    std::os::unix::fs::chown(dir.path(), None, Some(65534))?;
    chmod(dir.path(), 0o2755)?;
    session.done("file_write", to(&dir.text("made/f"), "x", json!({}))).await?;
    session.done("file_write", to(&dir.text("g"), "x", json!({"group": "daemon"}))).await?;
    let gid = |name: &str| anyhow::Ok(std::fs::metadata(dir.at(name))?.gid());
    assert_eq!((gid("made")?, gid("made/f")?, gid("g")?), (65534, 65534, 1));
    session.finish().await
}

#[tokio::test]
async fn acl_and_extended_attributes_of_the_old_file_are_kept() -> Result<()> {
    require_root!();
    require_programs!("setfacl", "getfacl", "setfattr", "getfattr");
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "old")?;
    output("setfacl", &["-m", "u:65534:rw-,g:1:r--,m::rw-", &path])?;
    output("setfattr", &["-n", "user.note", "-v", "kept", &path])?;
    let attributes = || output("getfattr", &["-d", "-m", "-", "--absolute-names", &path]);
    let acl = || output("getfacl", &["-cn", "--absolute-names", &path]);
    let (attributes_before, acl_before) = (attributes()?, acl()?);
    assert!(attributes_before.contains("user.note") && acl_before.contains("user:65534:rw-"));
    session.done("file_write", to(&path, "new", json!({"backup": true}))).await?;
    assert_eq!((text(&path)?.as_str(), attributes()?, acl()?), ("new", attributes_before, acl_before));
    session.finish().await
}

#[tokio::test]
async fn links_are_followed_to_the_file_they_mean() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    std::fs::create_dir(dir.at("sub"))?;
    dir.write("sub/real", "old")?;
    symlink("sub/real", dir.at("relative"))?;
    symlink(dir.at("relative"), dir.at("twice"))?;
    symlink("sub/made", dir.at("dangling"))?;
    symlink("loop", dir.at("loop"))?;
    symlink("/dev/null", dir.at("device"))?;
    session.done("file_write", to(&dir.text("twice"), "new", json!({}))).await?;
    assert_eq!(text(dir.at("sub/real"))?, "new");
    session.done("file_write", to(&dir.text("dangling"), "made", json!({}))).await?;
    assert_eq!(text(dir.at("sub/made"))?, "made");
    for name in ["relative", "twice", "dangling"] {
        assert!(std::fs::symlink_metadata(dir.at(name))?.is_symlink(), "{name}");
        let params = to(&dir.text(name), "other", json!({"no_follow": true}));
        session.error("CONFLICT", "file_write", params).await?;
    }
    let looped = session.ask(&cmd("l", "file_write", to(&dir.text("loop"), "x", json!({})))).await?;
    assert_eq!(looped["type"], "ERROR");
    session.error("CONFLICT", "file_write", to(&dir.text("device"), "x", json!({}))).await?;
    assert_eq!(text(dir.at("sub/real"))?, "new");
    assert_eq!(std::fs::read_dir(dir.at("sub"))?.count(), 2);
    session.finish().await
}

#[tokio::test]
async fn what_cannot_be_a_file_is_refused_before_anything_is_touched() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    dir.write("plain", "")?;
    output("mkfifo", &[&dir.text("fifo")])?;
    let names = dir.names()?;
    for (path, code) in [
        (String::new(), "INVALID_PARAMS"),
        (dir.text("a\u{0}b"), "INVALID_PARAMS"),
        (dir.text("sub/"), "INVALID_PARAMS"),
        (dir.text("sub/.."), "INVALID_PARAMS"),
        (dir.text("fifo"), "CONFLICT"),
        ("/dev/null".to_owned(), "CONFLICT"),
    ] {
        session.error(code, "file_write", to(&path, "x", json!({}))).await?;
        let answer = session.ask(&cmd("r", "file_read", json!({"path": path}))).await?;
        assert!(answer["type"] == "ERROR", "read of {path:?}: {answer}");
    }
    for path in [dir.text("plain/below"), dir.text("plain/deeper/below"), dir.text(&"n".repeat(300))] {
        let answer = session.ask(&cmd("w", "file_write", to(&path, "x", json!({})))).await?;
        assert_eq!(answer["type"], "ERROR", "{answer}");
    }
    for more in [
        json!({"mode": "10000"}),
        json!({"mode": "-1"}),
        json!({"mode": 420}),
        json!({"if_sha256": "abc"}),
        json!({"content": 5}),
        json!({"content": "x", "content_from": "input"}),
        json!({"content": "no base64", "encoding": "base64"}),
        json!({"content": "QQ", "encoding": "base64"}),
        json!({"encoding": "rot13"}),
        json!({"validate": ["true"]}),
    ] {
        session.error("INVALID_PARAMS", "file_write", to(&dir.text("f"), "x", more)).await?;
    }
    for more in [json!({"owner": "no such"}), json!({"group": "4294967295"}), json!({"owner": "4294967296"})]
    {
        session.error("NOT_FOUND", "file_write", to(&dir.text("f"), "x", more)).await?;
    }
    assert_eq!(dir.names()?, names);
    session.finish().await
}

#[tokio::test]
async fn if_sha256_guards_the_present_content() -> Result<()> {
    const OLD: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "other")?;
    session.error("CONFLICT", "file_write", to(&path, "new", json!({"if_sha256": OLD}))).await?;
    session
        .error("CONFLICT", "file_write", to(&dir.text("absent"), "new", json!({"if_sha256": OLD})))
        .await?;
    assert_eq!((text(&path)?.as_str(), dir.names()?.len()), ("other", 1));
    for given in [OLD.to_owned(), format!("sha256:{}", OLD.to_uppercase())] {
        dir.write("f", "hello")?;
        session.done("file_write", to(&path, "new", json!({"if_sha256": given}))).await?;
        assert_eq!(text(&path)?, "new");
    }
    session.finish().await
}

#[tokio::test]
async fn a_validation_sees_the_new_file_as_it_will_be_and_can_refuse_it() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "good old\n")?;
    let seen = dir.text("seen");
    let look = format!("cp -p \"$1\" {seen} && grep good \"$1\"");
    let validate = |line: &str| json!({"mode": "0640", "validate": ["sh", "-c", line, "sh", "%s"]});
    session.done("file_write", to(&path, "good new\n", validate(&look))).await?;
    assert_eq!((text(&path)?, text(&seen)?), ("good new\n".to_owned(), "good new\n".to_owned()));
    assert_eq!((mode(&path)?, mode(&seen)?), (0o640, 0o640));
    let names = dir.names()?;
    let refuse = "echo line 7 is wrong >&2; exit 3";
    let error =
        session.error("VALIDATION_FAILED", "file_write", to(&path, "bad\n", validate(refuse))).await?;
    assert!(error["message"].as_str().is_some_and(|text| text.contains("line 7 is wrong")), "{error}");
    assert_eq!(error["details"]["exit_code"], "3");
    let more =
        with(json!({"data": validate("cat \"$1\"; exit 3")}), json!({"sensitive": true}))["data"].take();
    let error = session.error("VALIDATION_FAILED", "file_write", to(&path, "hunter2", more)).await?;
    assert!(!error.to_string().contains("hunter2"), "{error}");
    session.error("NOT_FOUND", "file_write", to(&path, "x", json!({"validate": ["/no/such", "%s"]}))).await?;
    let slow = format!("echo $$ > {}; sleep 1000", dir.text("pid"));
    let frame = with(cmd("t", "file_write", to(&path, "bad\n", validate(&slow))), json!({"timeout": 1}));
    session.failed("TIMEOUT", &frame).await?;
    let pid = pids(&dir.at("pid"), 1).await?[0];
    assert!(!runs(pid));
    std::fs::remove_file(dir.at("pid"))?;
    assert_eq!((text(&path)?.as_str(), dir.names()?), ("good new\n", names), "something was left or changed");
    session.finish().await
}

#[tokio::test]
async fn every_backup_has_a_name_of_its_own_and_all_attributes() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "0")?;
    chmod(&path, 0o604)?;
    let mut backups = std::collections::BTreeSet::new();
    for n in 1..=5 {
        let result = session.done("file_write", to(&path, &n.to_string(), json!({"backup": true}))).await?;
        let backup = result["backup_path"].as_str().context("no backup")?.to_owned();
        assert_eq!((text(&backup)?, mode(&backup)?), ((n - 1).to_string(), 0o604));
        assert!(backup.starts_with(&path) && Path::new(&backup).extension().is_some_and(|e| e == "bak"));
        backups.insert(backup);
    }
    assert_eq!((backups.len(), dir.names()?.len()), (5, 6));
    // No change, no backup; nothing there before, no backup.
    for params in [to(&path, "5", json!({"backup": true})), to(&dir.text("new"), "", json!({"backup": true}))]
    {
        assert!(session.done("file_write", params).await?.get("backup_path").is_none());
    }
    assert_eq!(dir.names()?.len(), 7);
    // An error leaves no backup behind.
    let more = json!({"backup": true, "validate": ["false", "%s"]});
    session.error("VALIDATION_FAILED", "file_write", to(&path, "x", more)).await?;
    assert_eq!(dir.names()?.len(), 7);
    session.finish().await
}

#[tokio::test]
async fn parents_are_made_0755_and_taken_away_again_when_the_write_fails() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.text("a/b/c/f");
    session
        .error("VALIDATION_FAILED", "file_write", to(&path, "x", json!({"validate": ["false", "%s"]})))
        .await?;
    assert!(dir.names()?.is_empty(), "parents were left");
    let frame = with(cmd("c", "file_write", to(&path, "x", json!({}))), json!({"check": true}));
    let answer = session.ask(&frame).await?;
    assert_eq!(answer["data"]["result"]["created"], true);
    assert!(dir.names()?.is_empty(), "a check made parents");
    session.done("file_write", to(&path, "x", json!({"mode": "0600"}))).await?;
    for made in ["a", "a/b", "a/b/c"] {
        assert_eq!(mode(dir.at(made))?, 0o755, "{made}");
    }
    session.finish().await
}

#[tokio::test]
async fn a_check_changes_nothing_and_a_diff_says_what_would() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "one\ntwo\n")?;
    let before = std::fs::metadata(&path)?;
    let mut count = 0;
    let mut frame = |params: Value, check: bool| {
        count += 1;
        with(cmd(&format!("d{count}"), "file_write", params), json!({"check": check, "diff": true}))
    };
    let diff = format!("--- {path}\n+++ {path}\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n");
    let answer = session.ask(&frame(to(&path, "one\nthree\n", json!({})), true)).await?;
    assert_eq!(answer["data"]["result"]["diff"], diff, "{answer}");
    assert_eq!(answer["data"]["result"]["changed"], true);
    let answer = session.ask(&frame(to(&path, "one\ntwo\n", json!({"mode": "0600"})), true)).await?;
    assert_eq!(answer["data"]["result"]["changed"], true);
    let attributes = answer["data"]["result"]["diff"].as_str().context("a diff")?;
    assert!(attributes.starts_with(&format!(
        "--- {path} (attributes)\n+++ {path} (attributes)\n@@ -1,4 +1,4 @@\n type file\n"
    )));
    assert!(attributes.ends_with("\n-mode 0644\n+mode 0600\n"), "{attributes}");
    let withheld = to(&path, "one\ntwo\n", json!({"mode": "0600", "sensitive": true}));
    let answer = session.ask(&frame(withheld, true)).await?;
    assert_eq!(answer["data"]["result"]["diff"], "(withheld: the content is sensitive)\n");
    let answer = session.ask(&frame(to(&path, "one\ntwo\n", json!({})), true)).await?;
    assert_eq!(answer["data"]["result"]["changed"], false);
    assert_eq!(answer["data"]["result"]["diff"], "");
    session.failed("NOT_FOUND", &frame(json!({"path": dir.text("absent")}), true)).await?;
    let now = std::fs::metadata(&path)?;
    assert_eq!((now.ino(), now.ctime_nsec(), dir.names()?.len()), (before.ino(), before.ctime_nsec(), 1));
    let secret = to(&path, "hunter2\n", json!({"sensitive": true}));
    let answer = session.ask(&frame(secret, true)).await?;
    assert!(!answer.to_string().contains("hunter2") && !answer.to_string().contains("two"), "{answer}");
    let answer = session.ask(&frame(to(&path, "one\nthree\n", json!({})), false)).await?;
    assert_eq!(answer["data"]["result"]["diff"], diff);
    let answer = session.ask(&frame(to(&dir.text("new"), "x\n", json!({})), false)).await?;
    assert!(
        answer["data"]["result"]["diff"]
            .as_str()
            .is_some_and(|diff| diff.starts_with("--- /dev/null\n") && diff.ends_with("\n+mode 0644\n")),
        "{answer}"
    );
    let binary = to(&path, "AAECAw==", json!({"encoding": "base64"}));
    assert_eq!(session.ask(&frame(binary, false)).await?["type"], "DONE");
    assert_eq!(std::fs::read(&path)?, [0, 1, 2, 3]);
    let large = to(&dir.text("large"), &"line\n".repeat(1_000_000), json!({}));
    let answer = session.ask(&frame(large, false)).await?;
    assert!(answer["data"]["result"]["diff"].as_str().is_some_and(|diff| diff.len() < 300_000));
    session.finish().await
}

/// A tmpfs of 1 MiB at `at`, unmounted again at the end.
struct Small(String);

impl Small {
    fn mount(at: &Path, options: &str) -> Result<Self> {
        std::fs::create_dir(at)?;
        let at = at.to_string_lossy().into_owned();
        output("mount", &["-t", "tmpfs", "-o", options, "sortie-suite", &at])?;
        Ok(Self(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = output("umount", &["-l", &self.0]);
    }
}

#[tokio::test]
async fn a_full_or_read_only_disk_is_named_and_leaves_the_old_file() -> Result<()> {
    require_root!();
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let dir = Dir::new()?;
    let small = Small::mount(&dir.at("small"), "size=1m")?;
    let path = dir.write("small/f", "old")?;
    let large = "x".repeat(2_000_000);
    let error = session.error("NO_SPACE", "file_write", to(&path, &large, json!({}))).await?;
    assert!(error["message"].as_str().is_some_and(|text| text.contains(&path)), "{error}");
    session.error("NO_SPACE", "file_write", to(&dir.text("small/a/b/new"), &large, json!({}))).await?;
    // By INPUT it is known only while it comes.
    let params = json!({"path": path, "content_from": "input"});
    session.send(&cmd("i", "file_write", params)).await?;
    loop {
        session
            .send(&json!({"type": "INPUT", "data": {"command_id": "i", "data": &large[..100_000]}}))
            .await?;
        // Never more than the window.
        let frame = session.next().await?.context("ended")?;
        if frame["type"] == "ERROR" {
            assert_eq!(frame["data"]["code"], "NO_SPACE");
            break;
        }
        ensure!(frame["type"] == "CREDIT", "{frame}");
    }
    session.is_in_step().await?;
    // There is no room for a second file, so no backup and no write.
    std::fs::write(dir.at("small/most"), &large[..700_000])?;
    let grown = to(&dir.text("small/most"), &large[..800_000], json!({"backup": true}));
    session.error("NO_SPACE", "file_write", grown).await?;
    assert_eq!((text(&path)?.as_str(), text(dir.at("small/most"))?.len()), ("old", 700_000));
    assert_eq!(std::fs::read_dir(dir.at("small"))?.count(), 2, "something was left");
    output("mount", &["-o", "remount,ro", &small.0])?;
    session.error("READ_ONLY", "file_write", to(&path, "new", json!({}))).await?;
    session.error("READ_ONLY", "file_write", to(&dir.text("small/new"), "new", json!({}))).await?;
    session.error("READ_ONLY", "file_write", to(&path, "old", json!({"mode": "0600"}))).await?;
    assert_eq!(session.done("file_write", to(&path, "old", json!({}))).await?["changed"], false);
    session.finish().await
}

#[tokio::test]
async fn a_mount_point_cannot_be_replaced_and_says_so() -> Result<()> {
    require_root!();
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let (source, path) = (dir.write("source", "old")?, dir.write("f", "")?);
    output("mount", &["--bind", &source, &path])?;
    let error = session.ask(&cmd("w", "file_write", to(&path, "new", json!({"backup": true})))).await;
    output("umount", &[&path])?;
    let error = error?;
    assert!(error["data"]["message"].as_str().is_some_and(|text| text.contains("mount point")), "{error}");
    assert_eq!((text(&source)?.as_str(), dir.names()?.len()), ("old", 2));
    session.finish().await
}
