//! `line_ensure` and `ini_ensure` with the real binary: what is on the disk afterwards, after success and after every kind of
//! failure. What becomes of which bytes is tested beside the code.

mod runner_support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use anyhow::{Context as _, Result, ensure};
use runner_support::{Dir, Session, cmd, with};
use serde_json::{Value, json};
use sortie_tests::{require_programs, require_root};

fn output(program: &str, args: &[&str]) -> Result<String> {
    let output = std::process::Command::new(program).args(args).output()?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Params with a path and more of them.
fn at(path: &str, more: Value) -> Value {
    with(json!({"data": {"path": path}}), more)["data"].take()
}

/// Checks that `check` says what the run then does, with the same diff, and that a second run does nothing.
async fn thrice(session: &mut Session, kind: &str, params: Value) -> Result<Value> {
    let path = params["path"].as_str().context("a path")?.to_owned();
    let look = || std::fs::metadata(&path).map(|m| (m.ino(), m.mtime_nsec(), m.ctime_nsec())).ok();
    let mut run = async |check: bool| -> Result<Value> {
        let id = session.next_id();
        let frame = with(cmd(&id, kind, params.clone()), json!({"check": check, "diff": true}));
        let mut answer = session.ask(&frame).await?;
        ensure!(answer["type"] == "DONE", "{answer}");
        Ok(answer["data"]["result"].take())
    };
    let before = look();
    let would = run(true).await?;
    assert_eq!(look(), before, "check touched the file");
    let mut did = run(false).await?;
    if let Some(did) = did.as_object_mut() {
        did.remove("backup_path");
    }
    assert_eq!(would, did);
    let between = look();
    let again = run(false).await?;
    assert_eq!((&again["changed"], &again["diff"]), (&json!(false), &json!("")), "{again}");
    assert_eq!(again["checksum"], did["checksum"]);
    assert_eq!(look(), between, "a second run touched the file");
    Ok(did)
}

#[tokio::test]
async fn a_line_is_put_in_replaced_and_taken_out() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "#Port 22\r\nlast")?;
    let done =
        thrice(&mut session, "line_ensure", at(&path, json!({"line": "Port 2222", "regexp": "^#?Port "})))
            .await?;
    assert_eq!((&done["action"], &done["created"]), (&json!("replaced"), &json!(false)));
    assert_eq!(std::fs::read(&path)?, b"Port 2222\r\nlast");
    let diff = done["diff"].as_str().unwrap_or_default();
    assert!(diff.contains("-#Port 22\r\n+Port 2222\r\n"), "{diff}");
    let done = thrice(&mut session, "line_ensure", at(&path, json!({"line": "new"}))).await?;
    assert_eq!(
        (&done["action"], std::fs::read(&path)?),
        (&json!("inserted"), b"Port 2222\r\nlast\r\nnew\r\n".to_vec())
    );
    let params = json!({"line": "\\1=\\2", "regexp": "^(Port) (\\d+)$", "backrefs": true});
    thrice(&mut session, "line_ensure", at(&path, params)).await?;
    assert_eq!(std::fs::read(&path)?, b"Port=2222\r\nlast\r\nnew\r\n");
    let done =
        thrice(&mut session, "line.ensure", at(&path, json!({"state": "absent", "regexp": "^(last|new)$"})))
            .await?;
    assert_eq!((&done["action"], std::fs::read(&path)?), (&json!("removed"), b"Port=2222\r\n".to_vec()));
    session.finish().await
}

#[tokio::test]
async fn a_block_is_put_in_replaced_and_taken_out() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.text("made/here");
    let block = |more| with(json!({"data": {"path": path, "block": "a\nb\n"}}), more)["data"].take();
    session.error("NOT_FOUND", "line_ensure", block(json!({}))).await?;
    assert!(dir.names()?.is_empty());
    let done = thrice(&mut session, "line_ensure", block(json!({"create": true, "mode": "0640"}))).await?;
    assert_eq!((&done["action"], &done["created"]), (&json!("inserted"), &json!(true)));
    assert_eq!(std::fs::metadata(&path)?.mode() & 0o7777, 0o640);
    assert!(done["diff"].as_str().unwrap_or_default().starts_with("--- /dev/null\n"), "{done}");
    thrice(&mut session, "line_ensure", block(json!({"block": "c"}))).await?;
    let marked = "# BEGIN SORTIE MANAGED BLOCK\nc\n# END SORTIE MANAGED BLOCK\n";
    assert_eq!(std::fs::read_to_string(&path)?, marked);
    let other = json!({"block": "x", "marker": "; {mark} other", "insert_before": "BOF"});
    thrice(&mut session, "line_ensure", block(other)).await?;
    assert_eq!(std::fs::read_to_string(&path)?, format!("; BEGIN other\nx\n; END other\n{marked}"));
    thrice(&mut session, "line_ensure", at(&path, json!({"state": "absent", "marker": "; {mark} other"})))
        .await?;
    assert_eq!(std::fs::read_to_string(&path)?, marked);
    std::fs::write(&path, "# BEGIN SORTIE MANAGED BLOCK\n")?;
    let error = session.error("CONFLICT", "line_ensure", block(json!({}))).await?;
    assert!(error["message"].as_str().unwrap_or_default().starts_with("line 1: "), "{error}");
    session.finish().await
}

#[tokio::test]
async fn an_option_is_set_and_taken_out() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f.ini", "; first\n[PHP]\n;memory_limit = 128M\n")?;
    let set = |more| {
        with(json!({"data": {"path": path, "section": "PHP", "option": "memory_limit"}}), more)["data"].take()
    };
    let done = thrice(&mut session, "ini_ensure", set(json!({"value": "1G", "backup": true}))).await?;
    assert_eq!(done["action"], "inserted");
    assert_eq!(std::fs::read_to_string(&path)?, "; first\n[PHP]\n;memory_limit = 128M\nmemory_limit=1G\n");
    assert_eq!(dir.names()?.len(), 2, "a backup");
    thrice(&mut session, "ini_ensure", set(json!({"value": ""}))).await?;
    thrice(&mut session, "ini_ensure", set(json!({"values": ["a", "b"]}))).await?;
    thrice(&mut session, "ini_ensure", set(json!({"no_value": true}))).await?;
    assert_eq!(std::fs::read_to_string(&path)?, "; first\n[PHP]\n;memory_limit = 128M\nmemory_limit\n");
    thrice(&mut session, "ini_ensure", set(json!({"state": "absent"}))).await?;
    thrice(&mut session, "ini_ensure", at(&path, json!({"section": "New"}))).await?;
    let done =
        thrice(&mut session, "ini.ensure", at(&path, json!({"section": "PHP", "state": "absent"}))).await?;
    assert_eq!(
        (&done["action"], std::fs::read_to_string(&path)?),
        (&json!("removed"), "; first\n[New]\n".to_owned())
    );
    session.finish().await
}

#[tokio::test]
async fn what_is_not_there_is_absent_already() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.text("nowhere/f");
    for (kind, params) in [
        ("line_ensure", json!({"line": "x"})),
        ("line_ensure", json!({"marker": "{mark}"})),
        ("ini_ensure", json!({"section": "s"})),
    ] {
        let params = with(json!({"data": at(&path, params)}), json!({}))["data"].take();
        let params = with(json!({"data": params}), json!({"state": "absent", "create": true}))["data"].take();
        let done = thrice(&mut session, kind, params).await?;
        assert_eq!((&done["changed"], &done["action"]), (&json!(false), &json!("already_absent")));
    }
    assert!(dir.names()?.is_empty());
    session.finish().await
}

#[tokio::test]
async fn attributes_are_kept_or_set_as_file_write_does() -> Result<()> {
    require_root!();
    require_programs!("setfacl", "getfacl", "setfattr", "getfattr");
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "a\n")?;
    symlink("f", dir.at("link"))?;
    std::os::unix::fs::chown(&path, Some(65534), Some(1))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640))?;
    output("setfacl", &["-m", "u:65534:rw-,g:1:r--,m::rw-", &path])?;
    output("setfattr", &["-n", "user.note", "-v", "kept", &path])?;
    let state = || -> Result<(u32, u32, u32, String, String)> {
        let now = std::fs::metadata(&path)?;
        let attributes = output("getfattr", &["-d", "-m", "-", "--absolute-names", &path])?;
        let acl = output("getfacl", &["-cn", "--absolute-names", &path])?;
        Ok((now.mode(), now.uid(), now.gid(), attributes, acl))
    };
    let before = state()?;
    thrice(&mut session, "line_ensure", at(&dir.text("link"), json!({"line": "b"}))).await?;
    assert_eq!((std::fs::read_to_string(&path)?.as_str(), state()?), ("a\nb\n", before));
    assert!(std::fs::symlink_metadata(dir.at("link"))?.is_symlink());
    // Nothing but the owner is to change.
    let done = thrice(&mut session, "line_ensure", at(&path, json!({"line": "b", "owner": "root"}))).await?;
    assert_eq!((&done["changed"], &done["action"]), (&json!(true), &json!("already_present")));
    assert_eq!(std::fs::metadata(&path)?.uid(), 0);
    let refused = at(&dir.text("link"), json!({"line": "c", "no_follow": true}));
    session.error("CONFLICT", "line_ensure", refused).await?;
    session.finish().await
}

#[tokio::test]
async fn what_is_refused_by_validate_or_sensitive_stays_so() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let path = dir.write("f", "[s]\nkey = old-hunter1\n")?;
    let validated = json!({"section": "s", "option": "key", "value": "hunter2", "sensitive": true,
        "validate": ["sh", "-c", "cat %s >&2; exit 3"]});
    let error = session.error("VALIDATION_FAILED", "ini_ensure", at(&path, validated)).await?;
    assert_eq!(error["details"]["exit_code"], "3");
    assert!(!error.to_string().contains("hunter"), "{error}");
    assert_eq!(
        (std::fs::read_to_string(&path)?.as_str(), dir.names()?.len()),
        ("[s]\nkey = old-hunter1\n", 1)
    );
    let params = json!({"section": "s", "option": "key", "value": "hunter2", "sensitive": true, "validate": ["grep", "-q", "hunter2", "%s"]});
    let done = session.ask(&with(cmd("d", "ini_ensure", at(&path, params)), json!({"diff": true}))).await?;
    assert!(!done.to_string().contains("hunter") && done["data"]["result"]["changed"] == true, "{done}");
    // Nor are they told where they are wrong.
    for (kind, params) in [
        ("ini_ensure", json!({"section": "s", "option": "key", "value": "hunter2\n"})),
        ("ini_ensure", json!({"section": "s", "option": "key", "value": "hunter2\\"})),
        ("line_ensure", json!({"line": "hunter2\nhunter3"})),
        ("line_ensure", json!({"line": "hunter2\\x", "regexp": "a", "backrefs": true})),
        ("line_ensure", json!({"block": "hunter2\0"})),
    ] {
        let error = session.error("INVALID_PARAMS", kind, at(&path, params)).await?;
        assert!(!error.to_string().contains("hunter"), "{error}");
    }
    session.finish().await
}

#[tokio::test]
async fn wrong_input_is_told_before_anything_is_looked_at() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    for (field, kind, params) in [
        ("path", "line_ensure", json!({"line": "x", "path": "etc/hosts"})),
        ("path", "line_ensure", json!({"line": "x", "path": "/nowhere/"})),
        ("path", "ini_ensure", json!({"section": "x", "path": ""})),
        ("line", "line_ensure", json!({})),
        ("line", "line_ensure", json!({"regexp": "x"})),
        ("line", "line_ensure", json!({"state": "absent"})),
        ("line", "line_ensure", json!({"line": "\\2", "regexp": "(a)", "backrefs": true})),
        ("line", "line_ensure", json!({"line": 5})),
        ("state", "line_ensure", json!({"line": "x", "state": "gone"})),
        ("regexp", "line_ensure", json!({"line": "x", "regexp": "a{"})),
        ("insert_after", "line_ensure", json!({"line": "x", "insert_after": "("})),
        ("insert_after", "line_ensure", json!({"line": "x", "insert_after": "a", "insert_before": "b"})),
        ("insert_before", "line_ensure", json!({"block": "x", "insert_before": "[a"})),
        ("backrefs", "line_ensure", json!({"line": "x", "backrefs": true})),
        ("backrefs", "line_ensure", json!({"line": "x", "regexp": "x", "state": "absent", "backrefs": true})),
        ("block", "line_ensure", json!({"block": "x", "line": "y"})),
        ("block", "line_ensure", json!({"block": ""})),
        ("block", "line_ensure", json!({"block": "a\n# END SORTIE MANAGED BLOCK"})),
        ("marker", "line_ensure", json!({"block": "x", "marker": "# mark"})),
        ("marker", "line_ensure", json!({"block": "x", "marker": "{mark}\n"})),
        ("validate", "line_ensure", json!({"line": "x", "validate": ["true"]})),
        ("mode", "line_ensure", json!({"line": "x", "mode": "9"})),
        ("option", "ini_ensure", json!({})),
        ("option", "ini_ensure", json!({"value": "x"})),
        ("option", "ini_ensure", json!({"section": "s", "value": "x"})),
        ("option", "ini_ensure", json!({"section": "s", "option": "a=b", "value": "x"})),
        ("option", "ini_ensure", json!({"section": "s", "option": "#a", "value": "x"})),
        ("option", "ini_ensure", json!({"section": "s", "option": " a", "value": "x"})),
        ("section", "ini_ensure", json!({"section": "s\n[t]", "option": "a", "value": "x"})),
        ("value", "ini_ensure", json!({"section": "s", "option": "a"})),
        ("value", "ini_ensure", json!({"section": "s", "option": "a", "value": "x", "no_value": true})),
        ("value", "ini_ensure", json!({"section": "s", "option": "a", "value": "x", "values": ["y"]})),
        ("value", "ini_ensure", json!({"section": "s", "option": "a", "values": ["y", " z"]})),
        (
            "continued",
            "ini_ensure",
            json!({"section": "s", "option": "a", "value": "x", "continued": "maybe"}),
        ),
    ] {
        let params = with(json!({"data": {"path": "/nowhere/f"}}), params)["data"].take();
        let error = session.error("INVALID_PARAMS", kind, params.clone()).await?;
        assert!(error["message"].as_str().unwrap_or_default().starts_with(field), "{params}: {error}");
    }
    session.finish().await
}

#[tokio::test]
async fn what_no_second_run_would_leave_alone_is_refused_by_the_first() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let content = "a1\na2\n[s]\n";
    let path = dir.write("f", content)?;
    for (kind, params) in [
        ("line_ensure", json!({"line": "\\0a", "regexp": "^a.*", "backrefs": true})),
        ("line_ensure", json!({"line": "b\\1", "regexp": "^a(.)", "backrefs": true})),
        ("ini_ensure", json!({"section": "t] ; x", "option": "a", "value": "b"})),
        ("ini_ensure", json!({"section": "s", "option": "a", "value": "b ; c", "inline_comments": true})),
    ] {
        for check in [true, false] {
            let id = session.next_id();
            let frame = with(cmd(&id, kind, at(&path, params.clone())), json!({"check": check}));
            let error = session.failed("CONFLICT", &frame).await?;
            assert!(error["message"].as_str().unwrap_or_default().contains("every run"), "{error}");
        }
        assert_eq!((std::fs::read_to_string(&path)?.as_str(), dir.names()?.len()), (content, 1));
    }
    session.finish().await
}

#[tokio::test]
async fn only_files_of_moderate_size_are_edited_and_other_things_not_at_all() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let large = dir.write("large", "x\n".repeat(2 * 1024 * 1024 + 1))?;
    let error = session.error("UNSUPPORTED", "line_ensure", at(&large, json!({"line": "y"}))).await?;
    assert!(error["message"].as_str().unwrap_or_default().contains("4 MiB"), "{error}");
    let fits = dir.write("fits", "x\n".repeat(2 * 1024 * 1024))?;
    session.done("line_ensure", at(&fits, json!({"line": "y"}))).await?;
    std::fs::create_dir(dir.at("d"))?;
    session.error("CONFLICT", "line_ensure", at(&dir.text("d"), json!({"line": "y"}))).await?;
    session.error("CONFLICT", "line_ensure", at("/dev/null", json!({"line": "y"}))).await?;
    session.finish().await
}
