//! `file_stat`, `file_remove`, `dir_ensure` and `link_ensure` with the real binary: what is on the disk afterwards, after success
//! and after every kind of failure.

mod runner_support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::Result;
use runner_support::{Dir, Session};
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
        let status = std::process::Command::new("setfattr").args(args).arg(path).status();
        anyhow::Ok(assert!(status?.success(), "setfattr {name}"))
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
