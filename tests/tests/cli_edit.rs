//! `sortie file line`, `block`, `ini` and `unpack` as a user types them.

mod cli_support;

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use cli_support::{Sortie, sortie};
use sortie_tests::require_programs;

fn file(verb: &str) -> Sortie {
    sortie("file").args([verb, "--local"])
}

#[tokio::test]
async fn lines_blocks_and_options_are_edited_and_shown() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("app.conf");
    let text = path.display().to_string();
    fs::write(&path, "#Port 1\n[a]\nb = 1\n")?;
    let ended = file("line").args(["--diff", "--regexp", "^#?Port ", &text, "Port 22"]).run().await?.fine();
    let diff = format!("--- {text}\n+++ {text}\n@@ -1,3 +1,3 @@\n-#Port 1\n+Port 22\n [a]\n b = 1\n");
    assert_eq!(ended.text(), format!("localhost: {text}: replaced\n{diff}"));
    let ended = file("block").args([&text, "--before", "^\\[", "-"]).run_with(b"x\ny\n").await?.fine();
    assert_eq!(ended.text(), format!("localhost: {text}: inserted\n"));
    let ended = file("ini").args(["--check", &text, "a", "b", "2"]).run().await?.fine();
    assert_eq!(ended.text(), format!("localhost: {text}: would be replaced\n"));
    // What comes by standard input is in no list of processes, and sensitive in no output.
    let secret = file("ini")
        .args(["--diff", "--sensitive", &text, "a", "pw", "-"])
        .run_with(b"hunter2\n")
        .await?
        .fine();
    assert_eq!(secret.text(), format!("localhost: {text}: inserted\n(withheld: the content is sensitive)\n"));
    let block = "# BEGIN SORTIE MANAGED BLOCK\nx\ny\n# END SORTIE MANAGED BLOCK\n";
    assert_eq!(fs::read_to_string(&path)?, format!("Port 22\n{block}[a]\nb = 1\npw = hunter2\n"));
    let ended = file("ini").args(["--json", "--absent", &text, "a", "pw"]).run().await?.fine();
    let event = &ended.events()[0];
    assert_eq!((&event["command"], &event["result"]["action"]), (&"file_edit".into(), &"removed".into()));
    file("block").args(["--absent", &text]).run().await?.fine();
    let ended = file("line").args(["--absent", "--regexp", "Port", &text]).run().await?.fine();
    assert_eq!(ended.text(), format!("localhost: {text}: removed\n"));
    assert_eq!(fs::read_to_string(&path)?, "[a]\nb = 1\n");
    file("ini").args([&text, "a", "b"]).run().await?.ended_with(2).says(&["VALUE is missing"]);
    file("line").arg(&text).run().await?.ended_with(2).says(&["LINE"]);
    file("line").args([&text, "a\nb"]).run().await?.ended_with(1).says(&["INVALID_PARAMS"]);
    Ok(())
}

#[tokio::test]
async fn an_archive_is_unpacked_once() -> Result<()> {
    require_programs!("tar");
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::create_dir_all(at("src/top"))?;
    fs::write(at("src/top/x"), "x")?;
    let made =
        std::process::Command::new("tar").args(["-C", &at("src"), "-cf", &at("t.tar"), "top"]).status()?;
    ensure!(made.success(), "tar");
    let unpack = || file("unpack").args(["--strip", "1", &at("t.tar"), &at("goal")]);
    let ended = unpack().run().await?.fine();
    assert_eq!(ended.text(), format!("localhost: {}: unpacked, 1 members\n", at("goal")));
    assert_eq!(fs::read_to_string(at("goal/x"))?, "x");
    let ended = unpack().run().await?.fine();
    assert_eq!(ended.text(), format!("localhost: {}: already unpacked\n", at("goal")));
    let ended = file("unpack").args([&at("none.tar"), &at("new")]).run().await?.ended_with(1);
    ended.says(&["NOT_FOUND", "none.tar"]);
    assert!(!Path::new(&at("new")).exists());
    Ok(())
}
