//! `sortie put` and `sortie get`: whole files there and back.

mod cli_support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::Path;

use anyhow::Result;
use cli_support::{name, on, sortie};
use nix::sys::resource::{UsageWho, getrusage};
use sortie_tests::embedded::Embedded;
use sortie_tests::keys::KeyPair;
use tempfile::TempDir;

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.mode() & 0o7777)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[tokio::test]
async fn a_file_is_put_and_a_second_time_nothing_changes() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let local = TempDir::new()?;
    let file = local.path().join("file");
    fs::write(&file, b"bytes \xff\0\n")?;
    let put = || on(host.access(), "put").args(["-m", "0640"]).arg(&file).arg("etc/new/file");
    let ended = put().run().await?.fine();
    assert_eq!(ended.text(), format!("{}: etc/new/file: created, 9 bytes\n", name(host.access())));
    let remote = host.home().join("etc/new/file");
    assert_eq!(fs::read(&remote)?, b"bytes \xff\0\n");
    assert_eq!(mode(&remote)?, 0o640);
    let ended = put().run().await?.fine();
    assert!(ended.text().ends_with(": unchanged\n"));
    let ended = put().args(["--json"]).run().await?.fine();
    assert_eq!(ended.events()[0]["result"]["changed"], false);
    host.quiet().await?;
    assert_eq!(names(&host.home().join("etc/new"))?, ["file"]);
    Ok(())
}

#[tokio::test]
async fn modes_are_those_of_the_old_file_unless_asked_for() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let local = TempDir::new()?;
    let script = local.path().join("script");
    fs::write(&script, "#!/bin/sh\n")?;
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
    let put = |args: &[&str]| on(host.access(), "put").args(args).arg(&script).arg("./").run();
    let remote = host.home().join("script");
    put(&[]).await?.fine();
    assert_eq!(mode(&remote)?, 0o644);
    put(&["--mode", "keep"]).await?.fine();
    assert_eq!(mode(&remote)?, 0o755);
    fs::write(&script, "#!/bin/sh\nexit\n")?;
    put(&[]).await?.fine();
    assert_eq!(mode(&remote)?, 0o755);
    Ok(())
}

#[tokio::test]
async fn check_and_diff_show_what_would_change_and_change_nothing() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let remote = host.home().join("file");
    fs::write(&remote, "one\ntwo\n")?;
    let put = |args: &[&str]| on(host.access(), "put").args(args).args(["-", "file"]);
    let ended = put(&["--check", "--diff"]).run_with(b"one\nthree\n").await?.fine();
    assert!(
        ended.text().contains("would be changed") && ended.text().contains("-two\n+three\n"),
        "{ended:?}"
    );
    assert_eq!(fs::read_to_string(&remote)?, "one\ntwo\n");
    let ended = put(&["--diff", "--sensitive"]).run_with(b"one\nsecret\n").await?.fine();
    assert!(!ended.text().contains("secret"), "{ended:?}");
    assert_eq!(fs::read_to_string(&remote)?, "one\nsecret\n");
    Ok(())
}

#[tokio::test]
async fn what_the_user_forbids_does_not_happen() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let remote = host.home().join("file");
    let put = |args: &[&str]| on(host.access(), "put").args(args).args(["-", "file"]).run_with(b"new\n");
    put(&["--no-create"]).await?.ended_with(1).says(&["does not exist", "NOT_FOUND"]);
    fs::write(&remote, "old\n")?;
    put(&["--if-sha256", &"0".repeat(64)]).await?.ended_with(1).says(&["CONFLICT"]);
    put(&["--validate", "grep -q old %s"]).await?.ended_with(1).says(&["VALIDATION_FAILED"]);
    put(&["--owner", "no-such-user"]).await?.ended_with(1).says(&["no-such-user"]);
    assert_eq!(fs::read_to_string(&remote)?, "old\n");
    let ended = put(&["--backup", "--validate", "grep -q new %s"]).await?.fine();
    assert_eq!(fs::read_to_string(&remote)?, "new\n");
    let kept: Vec<_> = names(&host.home())?.into_iter().filter(|name| name.ends_with(".bak")).collect();
    assert!(kept.len() == 1 && ended.text().contains(&kept[0]), "{ended:?} {kept:?}");
    Ok(())
}

#[tokio::test]
async fn a_file_is_fetched_whole_and_replaces_the_local_one_in_one_step() -> Result<()> {
    let host = Embedded::builder().start().await?;
    fs::write(host.home().join("file"), b"bytes \xff\0\n")?;
    let local = TempDir::new()?;
    let goal = local.path().join("copy");
    let get = |to: &Path| on(host.access(), "get").arg("file").arg(to).run();
    get(&goal).await?.ended_with(0);
    assert_eq!(fs::read(&goal)?, b"bytes \xff\0\n");
    fs::set_permissions(&goal, PermissionsExt::from_mode(0o600))?;
    fs::write(host.home().join("file"), "new")?;
    get(&goal).await?.ended_with(0);
    assert_eq!((fs::read_to_string(&goal)?, mode(&goal)?), ("new".to_owned(), 0o600));
    get(local.path()).await?.ended_with(0);
    assert_eq!(names(local.path())?, ["copy", "file"]);

    let ended = on(host.access(), "get").args(["file", "-"]).run().await?.ended_with(0);
    assert_eq!(ended.text(), "new");
    let empty = host.home().join("empty");
    fs::write(&empty, "")?;
    on(host.access(), "get").args(["empty"]).arg(&goal).run().await?.ended_with(0);
    assert_eq!(fs::read(&goal)?, b"");
    host.quiet().await
}

#[tokio::test]
async fn a_file_that_cannot_be_read_leaves_the_local_one_alone() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let local = TempDir::new()?;
    let goal = local.path().join("copy");
    fs::write(&goal, "old")?;
    for (remote, word) in [("absent", "NOT_FOUND"), (".", "directory")] {
        on(host.access(), "get").arg(remote).arg(&goal).run().await?.ended_with(1).says(&[word]);
    }
    assert_eq!(fs::read_to_string(&goal)?, "old");
    assert_eq!(names(local.path())?, ["copy"]);
    Ok(())
}

/// 100 MiB that no compression and no repetition helps with.
fn large(path: &Path) -> Result<u64> {
    let mut state = 1u64;
    let mut piece = Vec::with_capacity(1 << 20);
    let mut file = fs::File::create(path)?;
    for _ in 0..100 {
        piece.clear();
        while piece.len() < 1 << 20 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            piece.extend_from_slice(&state.to_le_bytes());
        }
        std::io::Write::write_all(&mut file, &piece)?;
    }
    Ok(fs::metadata(path)?.len())
}

#[tokio::test]
async fn a_large_file_goes_there_and_back_in_little_memory() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let local = TempDir::new()?;
    let (file, back) = (local.path().join("large"), local.path().join("back"));
    let size = large(&file)?;
    let ended = on(host.access(), "put").args(["--json"]).arg(&file).arg("large").run().await?.ended_with(0);
    assert_eq!(ended.events().last().unwrap()["result"]["bytes_written"], size);
    on(host.access(), "get").arg("large").arg(&back).run().await?.ended_with(0);
    assert!(fs::read(&file)? == fs::read(&back)?);
    // Of the largest child: the program, or the runner.
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    assert!(peak < 80 * 1024, "{peak} KiB for a file of 100 MiB");
    host.quiet().await
}

#[tokio::test]
async fn several_hosts_each_give_a_file_of_their_own() -> Result<()> {
    let key = KeyPair::generate()?;
    let one = Embedded::builder().host_key(key.clone()).start().await?;
    let two = Embedded::builder()
        .host_key(key)
        .authorized_key(russh::keys::load_public_key(one.access().identity.with_extension("pub"))?)
        .start()
        .await?;
    let local = TempDir::new()?;
    let known = local.path().join("known");
    let lines = [one.access(), two.access()].map(|access| fs::read_to_string(&access.known_hosts).unwrap());
    fs::write(&known, lines.concat())?;
    let (first, second) = (name(one.access()), name(two.access()));
    let both = |verb: &str| {
        let call = sortie(verb).arg("-i").arg(&one.access().identity).arg("--known-hosts").arg(&known);
        call.args(["-F", "none", "--batch", "-H", &first, "-H", &second])
    };
    both("put").args(["-", "both"]).run_with(b"same\n").await?.ended_with(0);
    for host in [&one, &two] {
        assert_eq!(fs::read_to_string(host.home().join("both"))?, "same\n");
    }
    fs::write(two.home().join("both"), "other\n")?;
    let files = local.path().join("files");
    fs::create_dir(&files)?;
    both("get").arg("both").arg(&files).run().await?.ended_with(0);
    assert_eq!(fs::read_to_string(files.join(&first))?, "same\n");
    assert_eq!(fs::read_to_string(files.join(&second))?, "other\n");
    fs::remove_file(two.home().join("both"))?;
    both("get").arg("both").arg(&files).run().await?.ended_with(1).says(&["1 fine, 1 failed"]);
    Ok(())
}
