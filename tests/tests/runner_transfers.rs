//! Content on its way with the real binary: `file_write` by INPUT, reads of any size, and several commands at the same
//! file at once.

mod runner_support;

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result, ensure};
use runner_support::{Dir, Session, cmd, server_of, shell, status_kib, with};
use serde_json::{Value, json};
use sortie_tests::require_programs;

fn input(id: &str, data: &str, eof: bool) -> Value {
    json!({"type": "INPUT", "data": {"command_id": id, "data": data, "eof": eof}})
}

/// A write whose content comes by INPUT.
fn upload(id: &str, path: &str) -> Value {
    cmd(id, "file_write", json!({"path": path, "create": true, "mode": "0600", "content_from": "input"}))
}

#[tokio::test]
async fn content_by_input_may_be_larger_than_any_frame() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    let server = server_of(&session)?;
    let dir = Dir::new()?;
    let (path, piece) = (dir.text("f"), "0123456789abcde\n".repeat(4096));
    let mut window = session.ready["data"]["limits"]["stdin_window"].as_u64().context("no window")?;
    session.send(&upload("u", &path)).await?;
    for n in 1..=256 {
        while window < piece.len() as u64 {
            let frame = session.frame("CREDIT").await?;
            window += frame["data"]["bytes"].as_u64().context("no bytes")?;
        }
        window -= piece.len() as u64;
        session.send(&input("u", &piece, n == 256)).await?;
        assert!(!dir.at("f").exists(), "it is there before it is whole");
    }
    let done = session.answer("u").await?;
    let result = &done["data"]["result"];
    assert_eq!((&result["bytes_written"], &result["created"]), (&json!(16 << 20), &json!(true)), "{done}");
    let content = std::fs::read(dir.at("f"))?;
    assert!(content.len() == 16 << 20 && content.chunks(piece.len()).all(|chunk| chunk == piece.as_bytes()));
    assert_eq!((std::fs::metadata(dir.at("f"))?.mode() & 0o7777, dir.names()?.len()), (0o600, 1));
    let peak = status_kib(server, "VmHWM")?;
    assert!(peak <= 24 * 1024, "{peak} KiB");
    session.finish().await
}

#[tokio::test]
async fn the_same_content_by_input_does_not_touch_the_file() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "same")?;
    let before = std::fs::metadata(&path)?;
    session.send(&cmd("u", "file_write", json!({"path": path, "content_from": "input"}))).await?;
    session.send(&input("u", "sa", false)).await?;
    session.send(&input("u", "me", true)).await?;
    let done = session.answer("u").await?;
    assert_eq!(done["data"]["result"]["changed"], false, "{done}");
    let after = std::fs::metadata(&path)?;
    assert_eq!((before.ino(), before.ctime_nsec()), (after.ino(), after.ctime_nsec()));
    assert_eq!(dir.names()?, ["f"]);
    session.finish().await
}

#[tokio::test]
async fn content_that_was_cut_short_changes_nothing() -> Result<()> {
    let dir = Dir::new()?;
    let path = dir.write("f", "old")?;
    for end in ["cancel", "timeout", "end of input", "death", "bad base64"] {
        let mut session = Session::start(&["--concurrency", "2"]).await?;
        let timeout = if end == "timeout" { 1 } else { 60 };
        session.send(&with(upload("u", &path), json!({"timeout": timeout}))).await?;
        session.send(&input("u", "half", false)).await?;
        session.frame("CREDIT").await?;
        assert_eq!(dir.names()?.len(), 2, "the half is in no file of its own");
        let code = match end {
            "cancel" => {
                session.send(&json!({"type": "CANCEL", "data": {"command_id": "u"}})).await?;
                "CANCELLED"
            }
            "end of input" => {
                session.close_stdin();
                "CANCELLED"
            }
            "bad base64" => {
                let bad = json!({"command_id": "u", "data": "?", "encoding": "base64", "eof": true});
                session.send(&json!({"type": "INPUT", "data": bad})).await?;
                "INVALID_CMD"
            }
            "death" => {
                session.kill(nix::sys::signal::Signal::SIGTERM)?;
                "CANCELLED"
            }
            _ => "TIMEOUT",
        };
        let answer = session.answer("u").await?;
        assert_eq!(answer["data"]["code"], code, "{end}: {answer}");
        assert_eq!(
            (std::fs::read_to_string(&path)?.as_str(), dir.names()?),
            ("old", vec!["f".to_owned()]),
            "{end}"
        );
        session.close_stdin();
        session.expect("EXIT").await?;
    }
    Ok(())
}

#[tokio::test]
async fn base64_content_of_any_length_is_exact() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    for (content, bytes) in [
        ("", &b""[..]),
        ("/w==", b"\xff"),
        ("AP8=", b"\x00\xff"),
        ("AP9/", b"\x00\xff\x7f"),
        ("AP9/QQ==", b"\x00\xff\x7fA"),
    ] {
        let params = json!({"path": dir.text("f"), "create": true, "content": content, "encoding": "base64"});
        session.done("file_write", params).await?;
        assert_eq!(std::fs::read(dir.at("f"))?, bytes, "{content}");
    }
    let params =
        json!({"path": dir.text("f"), "content": "AAECAwQFBgcICQoL".repeat(500_000), "encoding": "base64"});
    assert_eq!(session.done("file_write", params).await?["bytes_written"], 6_000_000);
    let content = std::fs::read(dir.at("f"))?;
    assert!(
        content.len() == 6_000_000 && content.chunks(12).all(|c| c == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    );
    // Text is exact too, whatever has to be escaped in it.
    let text = "\u{0}\u{1}\"\\/\n\r\t\u{7f}żółw\u{1f600}\u{2028}";
    session.done("file_write", json!({"path": dir.text("f"), "content": text})).await?;
    assert_eq!(std::fs::read_to_string(dir.at("f"))?, text);
    session.finish().await
}

#[tokio::test]
async fn a_lock_of_another_process_is_waited_for_and_its_holder_named() -> Result<()> {
    require_programs!("flock");
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let dir = Dir::new()?;
    std::fs::create_dir(dir.at("d"))?;
    let path = dir.text("d/f");
    let hold = ["-x", &dir.text("d"), "sh", "-c", "echo held; read line"];
    let mut holder = std::process::Command::new("flock")
        .args(hold)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut held = [0; 5];
    std::io::Read::read_exact(holder.stdout.as_mut().context("no output")?, &mut held)?;
    let write = |id: &str, timeout: u32| {
        let params = json!({"path": path, "content": id, "create": true});
        with(cmd(id, "file_write", params), json!({"timeout": timeout}))
    };
    session.send(&write("late", 60)).await?;
    let error = session.failed("LOCKED", &write("soon", 1)).await?;
    let name = format!("process {} (flock)", holder.id());
    assert_eq!((&error["details"]["holder"], &error["retryable"]), (&json!(name), &json!(true)), "{error}");
    // A read and a check need no lock.
    let frame = with(write("check", 60), json!({"check": true}));
    assert_eq!(session.ask(&frame).await?["type"], "DONE");
    assert!(!dir.at("d/f").exists());
    drop(holder.stdin.take());
    holder.wait()?;
    assert_eq!(session.answer("late").await?["type"], "DONE");
    assert_eq!(
        (std::fs::read_to_string(&path)?.as_str(), std::fs::read_dir(dir.at("d"))?.count()),
        ("late", 1)
    );
    session.finish().await
}

#[tokio::test]
async fn writes_to_one_file_at_once_leave_one_of_them_whole() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "16"]).await?;
    let dir = Dir::new()?;
    std::os::unix::fs::symlink("f", dir.at("link"))?;
    let contents: Vec<String> = (0..40).map(|n| format!("{n}\n").repeat(1000)).collect();
    for (n, content) in contents.iter().enumerate() {
        // By two names that mean the same file.
        let name = if n % 2 == 0 { "f" } else { "link" };
        let params = json!({"path": dir.text(name), "content": content, "create": true, "backup": true});
        session.send(&cmd(&n.to_string(), "file_write", params)).await?;
    }
    let (mut created, mut backups) = (0, 0);
    for _ in 0..40 {
        let done = session.frame("DONE").await?;
        created += i32::from(done["data"]["result"]["created"] == true);
        backups += usize::from(done["data"]["result"]["backup_path"].is_string());
    }
    // Each of them saw the one before it, whole: one made the file, all others backed up what they replaced.
    assert_eq!((created, backups), (1, 39));
    for name in dir.names()? {
        let text = std::fs::read_to_string(dir.at(&name))?;
        assert!(contents.contains(&text), "{name} is a mix");
    }
    assert_eq!(dir.names()?.len(), 41, "something was left");
    session.finish().await
}

#[tokio::test]
async fn two_sessions_do_not_write_one_file_at_the_same_time() -> Result<()> {
    let mut one = Session::start(&[]).await?;
    let mut other = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "old")?;
    let line = format!("echo begun > {}; read x < {}", dir.text("begun"), dir.text("go"));
    ensure!(std::process::Command::new("mkfifo").arg(dir.at("go")).status()?.success());
    let slow = json!({"path": path, "content": "one", "validate": ["sh", "-c", line, "%s"]});
    one.send(&cmd("one", "file_write", slow)).await?;
    sortie_tests::eventually("the first at work", || Ok(std::fs::metadata(dir.at("begun"))?)).await?;
    let guarded = json!({"path": path, "content": "other", "if_sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"});
    other.send(&cmd("other", "file_write", guarded)).await?;
    std::fs::write(dir.at("go"), "\n")?;
    assert_eq!(one.answer("one").await?["type"], "DONE");
    // It looked at the content only after the first had written it.
    assert_eq!(other.answer("other").await?["type"], "DONE");
    assert_eq!(std::fs::read_to_string(&path)?, "other");
    one.finish().await?;
    other.finish().await
}

#[tokio::test]
async fn a_read_takes_any_part_and_says_whether_the_file_goes_on() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "0123456789")?;
    for (offset, most, content, truncated) in [
        (0, 0, "0123456789", false),
        (0, 10, "0123456789", false),
        (0, 9, "012345678", true),
        (3, 4, "3456", true),
        (3, 7, "3456789", false),
        (3, 100, "3456789", false),
        (10, 5, "", false),
        (1_u64 << 40, 5, "", false),
    ] {
        let result =
            session.done("file_read", json!({"path": path, "offset": offset, "max_bytes": most})).await?;
        assert_eq!(
            (&result["content"], &result["truncated"]),
            (&json!(content), &json!(truncated)),
            "{offset} {most}"
        );
        assert_eq!(result["size"], 10);
    }
    let result = session.done("file_read", json!({"path": path})).await?;
    assert_eq!(result["checksum"], "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882");
    assert_eq!((&result["owner_name"], &result["group_name"]), (&json!("root"), &json!("root")));
    std::os::unix::fs::symlink("f", dir.at("link"))?;
    assert_eq!(session.done("file_read", json!({"path": dir.text("link")})).await?["content"], "0123456789");
    session.finish().await
}

#[tokio::test]
async fn if_version_refuses_parts_of_two_different_files() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "first version")?;
    let version = session.done("file_read", json!({"path": path, "max_bytes": 5})).await?["version"].take();
    let rest = json!({"path": path, "offset": 5, "if_version": version});
    assert_eq!(session.done("file_read", rest.clone()).await?["content"], " version");
    session.done("file_write", json!({"path": path, "content": "other version"})).await?;
    session.error("CONFLICT", "file_read", rest.clone()).await?;
    std::fs::remove_file(&path)?;
    session.error("NOT_FOUND", "file_read", rest).await?;
    session.finish().await
}

#[tokio::test]
async fn files_that_are_not_what_they_say_are_read_or_refused_but_never_waited_for() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    ensure!(std::process::Command::new("mkfifo").arg(dir.at("fifo")).status()?.success());
    for (path, code) in [
        (dir.text("fifo"), "CONFLICT"),
        (dir.text(""), "CONFLICT"),
        ("/dev/zero".to_owned(), "CONFLICT"),
        ("/dev/tty".to_owned(), "EXEC_FAILED"),
        ("/no/such".to_owned(), "NOT_FOUND"),
        ("/etc/passwd/x".to_owned(), "EXEC_FAILED"),
        (String::new(), "INVALID_PARAMS"),
    ] {
        session.error(code, "file_read", json!({"path": path})).await?;
    }
    // The size of a file in /proc is 0 whatever is in it.
    let result = session.done("file_read", json!({"path": "/proc/mounts"})).await?;
    assert_eq!((&result["size"], &result["truncated"]), (&json!(0), &json!(false)));
    assert!(result["content"].as_str().is_some_and(|text| text.contains(" / ")), "{result}");
    let result = session.done("file_read", json!({"path": "/proc/mounts", "max_bytes": 7})).await?;
    assert_eq!((&result["content"].as_str().map(str::len), &result["truncated"]), (&Some(7), &json!(true)));
    dir.write("utf8", "aż")?;
    let result = session.done("file_read", json!({"path": dir.text("utf8"), "max_bytes": 2})).await?;
    assert_eq!((&result["content"], &result["encoding"]), (&json!("YcU="), &json!("base64")));
    session.finish().await
}

#[tokio::test]
async fn the_largest_read_fits_a_frame_whatever_is_in_it() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    for byte in [b'\n', b'x', b'"', 0x01, 0xff] {
        let path = dir.write("f", vec![byte; 7_000_000])?;
        let id = session.next_id();
        session.send(&cmd(&id, "file_read", json!({"path": path}))).await?;
        let line = session.next_line().await?.context("ended")?;
        assert!(line.len() < 10_485_760, "{byte}: {}", line.len());
        let frame: Value = serde_json::from_str(&line)?;
        let result = &frame["data"]["result"];
        let text = result["content"].as_str().context("no content")?;
        let coded = result.get("encoding").is_some();
        let length = if coded { text.trim_end_matches('=').len() * 3 / 4 } else { text.len() };
        assert_eq!((length, &result["truncated"]), (6 << 20, &json!(true)), "{byte}");
        assert!(coded || byte != 0xff);
    }
    session.finish().await
}

#[tokio::test]
async fn many_large_reads_at_once_share_a_bounded_memory() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "16"]).await?;
    let server = server_of(&session)?;
    let dir = Dir::new()?;
    let text = dir.write("text", vec![b'\n'; 6 << 20])?;
    let binary = dir.write("binary", vec![0xff; 6 << 20])?;
    for n in 0..12 {
        let path = if n % 2 == 0 { &text } else { &binary };
        session.send(&cmd(&n.to_string(), "file_read", json!({"path": path}))).await?;
    }
    // Small commands are not held up by those that wait for memory.
    session.send(&shell("small", "echo x")).await?;
    for _ in 0..13 {
        let line = session.next_line().await?.context("ended")?;
        ensure!(line.starts_with("{\"type\":\"DONE\""), "{}", &line[..200]);
    }
    let peak = status_kib(server, "VmHWM")?;
    assert!(peak <= 40 * 1024, "{peak} KiB");
    session.is_in_step().await?;
    session.finish().await
}
