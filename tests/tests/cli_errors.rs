//! What a user gets for wrong flags and paths, and for hosts that cannot be trusted, reached or logged in to: one
//! sentence that helps, and never the content of a secret.

mod cli_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;
use cli_support::{Sortie, name, on, sortie};
use sortie_tests::embedded::Embedded;
use sortie_tests::keys::KeyPair;
use tempfile::TempDir;

fn exec_true(call: Sortie) -> Sortie {
    call.args(["--", "true"])
}

fn secret_file(directory: &Path, name: &str, content: &str) -> Result<std::path::PathBuf> {
    let path = directory.join(name);
    fs::write(&path, content)?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
    Ok(path)
}

#[tokio::test]
async fn wrong_usage_is_told_in_a_sentence_and_ends_with_2() -> Result<()> {
    let cases: &[(&[&str], &[&str])] = &[
        (&["exec"], &["--host"]),
        (&["exec", "-H", "web1"], &["PROGRAM"]),
        (&["exec", "-H", "a b", "true"], &["a b", "[user@]host[:port]"]),
        (&["exec", "-H", "web1:99999", "true"], &["1 to 65535"]),
        (&["exec", "-H", "-oProxyCommand=x", "true"], &["-o"]),
        (&["exec", "-H", ",", "true"], &["no host"]),
        (&["exec", "-H", "h", "--timeout", "0", "true"], &["--timeout", "at least 1"]),
        (&["exec", "-H", "h", "--timeout", "soon", "true"], &["90, 5m or 2h"]),
        (&["exec", "-H", "h", "-p", "0", "true"], &["--port", "0"]),
        (&["exec", "-H", "h", "--env", "A", "true"], &["NAME=VALUE"]),
        (&["exec", "-H", "h", "--frobnicate", "true"], &["--frobnicate"]),
        (&["exec", "-H", "h", "-i", "/no/such/key", "true"], &["-i /no/such/key", "No such file"]),
        (&["exec", "-H", "h", "-i", "/etc", "true"], &["directory"]),
        (&["exec", "-H", "h", "-F", "/no/such/config", "true"], &["-F /no/such/config"]),
        (&["exec", "-H", "h", "--runners", "/no/such", "true"], &["--runners", "/no/such"]),
        (&["exec", "-H", "h", "--runners", "/etc/ssh", "true"], &["sortie-runner-TARGET"]),
        (&["exec", "-H", "h", "--password-file", "/no/such", "true"], &["/no/such"]),
        (&["exec", "-H", "h", "--local", "true"], &["--local"]),
        (&["exec", "--via", "docker 'exec", "true"], &["quote"]),
        (&["put", "-H", "h", "/no/such/file", "/tmp/x"], &["/no/such/file"]),
        (&["put", "-H", "h", "/etc", "/tmp/x"], &["directory"]),
        (&["put", "-H", "h", "-m", "9", "/etc/passwd", "/tmp/x"], &["octal"]),
        (&["put", "-H", "h", "-", "/tmp/"], &["whole path"]),
        (&["get", "-H", "h", "f", "/no/such/dir/f"], &["/no/such/dir/f"]),
        (&["get", "-H", "h,i", "f", "f"], &["several hosts", "directory"]),
        (&["get", "-H", "h", "f", "/dev/null"], &["neither"]),
        (&["pipe"], &["HOST"]),
        (&["frobnicate"], &["frobnicate"]),
    ];
    for (args, words) in cases {
        let ended = sortie(args[0]).args(&args[1..]).run().await?.ended_with(2).says(words);
        assert!(ended.stdout.is_empty(), "{args:?}: {ended:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_host_key_is_refused_unless_new_ones_are_accepted() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let access = host.access();
    let directory = TempDir::new()?;
    let known = directory.path().join("known_hosts");
    let call = || {
        exec_true(sortie("exec").arg("-i").arg(&access.identity).arg("--known-hosts").arg(&known).args([
            "-F",
            "none",
            "--batch",
            "-H",
            &name(access),
        ]))
    };
    let fingerprint = access.host_key().public().fingerprint(russh::keys::HashAlg::Sha256).to_string();
    let ended = call().run().await?.ended_with(255);
    ended.says(&["host key is unknown", known.to_str().unwrap(), &fingerprint, "accept-new"]);
    assert!(!known.exists());

    let accepting = |call: Sortie| call;
    let accept =
        sortie("exec").arg("--accept-new").arg("-i").arg(&access.identity).arg("--known-hosts").arg(&known);
    let ended =
        exec_true(accepting(accept).args(["-F", "none", "--batch", "-H", &name(access)])).run().await?;
    ended.ended_with(0).says(&["was added to", known.to_str().unwrap()]);
    call().run().await?.fine();
    Ok(())
}

#[tokio::test]
async fn a_changed_host_key_is_refused_whatever_is_accepted() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let access = host.access();
    let other = KeyPair::generate()?.known_hosts_line("127.0.0.1", access.port)?;
    fs::write(&access.known_hosts, format!("# a comment\n{other}\n"))?;
    for more in [&[][..], &["--accept-new"]] {
        let ended = exec_true(on(access, "exec").args(more)).run().await?.ended_with(255);
        ended.says(&["HAS CHANGED", "line 2", access.known_hosts.to_str().unwrap()]);
    }
    let doctor = sortie("doctor").login(access).arg(name(access)).run().await?.ended_with(255);
    assert!(doctor.text().contains("FAIL exchanging keys") && doctor.text().contains("ssh-keygen -R"));
    Ok(())
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_unreachable_and_named() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let mut access = host.access().clone();
    access.port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let ended = exec_true(on(&access, "exec")).run().await?.ended_with(255);
    let ended = ended.says(&["unreachable", &format!("127.0.0.1:{}", access.port), "refused"]);
    assert_eq!(ended.stderr.lines().count(), 1);
    let doctor = sortie("doctor").login(&access).arg(name(&access)).run().await?.ended_with(255);
    assert!(doctor.text().contains("FAIL connecting") && doctor.text().contains("What to do"), "{doctor:?}");
    assert!(doctor.text().contains("NOT fit"));
    Ok(())
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_within_the_limit() -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let host = Embedded::builder().start().await?;
    let mut access = host.access().clone();
    access.port = listener.local_addr()?.port();
    let ended = exec_true(on(&access, "exec").args(["--connect-timeout", "1"])).run().await?.ended_with(255);
    ended.says(&["after 1 s"]);
    Ok(())
}

#[tokio::test]
async fn a_name_without_an_address_is_told() -> Result<()> {
    let call = sortie("exec").args(["-F", "none", "--batch", "-H", "no-such-host.invalid", "-l", "me"]);
    exec_true(call).run().await?.ended_with(255).says(&["no-such-host.invalid", "no address"]);
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_not_accepted_is_named_and_not_shown() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let access = host.access();
    let directory = TempDir::new()?;
    let wrong = KeyPair::generate()?.write(directory.path(), "wrong")?;
    let content = fs::read_to_string(&wrong)?;
    let call = |key: &Path| {
        let call = sortie("exec").arg("-i").arg(key).arg("--known-hosts").arg(&access.known_hosts);
        exec_true(call.args(["-F", "none", "--batch", "-H", &name(access)]))
    };
    let ended = call(&wrong).run().await?.ended_with(255);
    let ended = ended.says(&["login as deploy refused", wrong.to_str().unwrap(), "accepts publickey"]);
    assert!(content.lines().all(|line| !ended.stderr.contains(line)), "{ended:?}");

    fs::set_permissions(&wrong, PermissionsExt::from_mode(0o644))?;
    call(&wrong).run().await?.ended_with(255).says(&["chmod 600"]);
    let no_key = secret_file(directory.path(), "no-key", "hunter2 is no key\n")?;
    let ended = call(&no_key).run().await?.ended_with(255).says(&["not a private key"]);
    assert!(!ended.stderr.contains("hunter2"));
    Ok(())
}

#[tokio::test]
async fn passwords_and_passphrases_come_from_files_and_are_never_shown() -> Result<()> {
    let host = Embedded::builder().password("hunter2").start().await?;
    let access = host.access();
    let directory = TempDir::new()?;
    let call = || {
        sortie("exec").arg("--known-hosts").arg(&access.known_hosts).args([
            "-F",
            "none",
            "--batch",
            "-H",
            &name(access),
        ])
    };
    let right = secret_file(directory.path(), "right", "hunter2\n")?;
    let wrong = secret_file(directory.path(), "wrong", "swordfish\n")?;
    exec_true(call().arg("--password-file").arg(&right)).run().await?.fine();
    let ended = exec_true(call().arg("--password-file").arg(&wrong)).run().await?.ended_with(255);
    let ended = ended.says(&["password: not accepted"]);
    assert!(!ended.stderr.contains("swordfish"));
    let open = directory.path().join("open");
    fs::write(&open, "hunter2")?;
    fs::set_permissions(&open, PermissionsExt::from_mode(0o640))?;
    let ended =
        exec_true(call().arg("--password-file").arg(&open)).run().await?.ended_with(2).says(&["chmod 600"]);
    assert!(!ended.stderr.contains("hunter2"));

    let key = KeyPair::generate()?;
    let host = Embedded::builder().authorized_key(key.public().clone()).start().await?;
    let access = host.access();
    let locked = key.write_encrypted(directory.path(), "locked", "open sesame")?;
    let call = || {
        let call = sortie("exec").arg("--known-hosts").arg(&access.known_hosts).arg("-i").arg(&locked);
        call.args(["-F", "none", "--batch", "-H", &name(access)])
    };
    let phrase = secret_file(directory.path(), "phrase", "open sesame\n")?;
    exec_true(call().arg("--passphrase-file").arg(&phrase)).run().await?.fine();
    exec_true(call()).run().await?.ended_with(255).says(&["needs a passphrase"]);
    let ended = exec_true(call().arg("--passphrase-file").arg(&wrong)).run().await?.ended_with(255);
    let ended = ended.says(&["passphrase is wrong"]);
    assert!(!ended.stderr.contains("swordfish"));
    Ok(())
}

#[tokio::test]
async fn a_configuration_file_is_obeyed_and_its_mistakes_are_named() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let directory = TempDir::new()?;
    let config = directory.path().join("config");
    fs::write(&config, host.access().ssh_config("web"))?;
    let call = || exec_true(sortie("exec").arg("-F").arg(&config).args(["--batch", "-H", "web"]));
    call().run().await?.fine();
    fs::write(&config, format!("{}  RemoteCommand id\n", host.access().ssh_config("web")))?;
    call().run().await?.ended_with(255).says(&["RemoteCommand", "line 10", config.to_str().unwrap()]);
    Ok(())
}

#[tokio::test]
async fn a_server_that_refuses_to_run_anything_is_a_clear_error() -> Result<()> {
    let host = Embedded::builder().refuse_exec().start().await?;
    exec_true(on(host.access(), "exec")).run().await?.ended_with(255).says(&["refused"]);
    Ok(())
}

#[tokio::test]
async fn without_any_runner_it_says_how_to_get_one() -> Result<()> {
    let call = exec_true(sortie("exec").args(["--local"]).env_remove("SORTIE_RUNNERS"));
    let ended = call.run().await?;
    // A program that was built with runners inside needs none.
    if ended.status != 0 {
        ended.ended_with(255).says(&["carries no runner", "cargo xtask build", "--runners"]);
    }
    Ok(())
}

#[tokio::test]
async fn secrets_are_asked_for_at_the_terminal_and_not_shown() -> Result<()> {
    sortie_tests::require_programs!("script");
    let key = KeyPair::generate()?;
    let host = Embedded::builder().password("hunter2").authorized_key(key.public().clone()).start().await?;
    let access = host.access();
    let directory = TempDir::new()?;
    let locked = key.write_encrypted(directory.path(), "locked", "open sesame")?;
    let program = cli_support::program();
    let (program, locked) = (program.display(), locked.display());
    let to = format!("--known-hosts {} -F none -H {} -- cat", access.known_hosts.display(), name(access));
    let phrase = format!("Passphrase of {locked}: ");
    for (line, prompt, answers) in [
        (format!("echo input | {program} exec {to}"), "Password of deploy@127.0.0.1: ", &["hunter2"][..]),
        (format!("echo input | {program} exec --ask-pass {to}"), "Password: ", &["hunter2"]),
        (format!("echo input | {program} exec -i {locked} {to}"), &*phrase, &["wrong one", "open sesame"]),
    ] {
        let seen = cli_support::at_a_terminal(&line, prompt, answers).await?;
        assert_eq!(seen.matches(prompt).count(), answers.len(), "{seen}");
        assert!(seen.contains("input"), "{seen}");
        assert!(answers.iter().all(|answer| !seen.contains(answer)), "{seen}");
    }
    Ok(())
}
