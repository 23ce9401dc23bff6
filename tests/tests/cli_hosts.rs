//! The command against real OpenSSH servers: five login shells with noisy rc files, one session, no sftp.

mod cli_support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::Result;
use cli_support::{NASTY, NO_TEXT, on};
use sortie_tests::require_root;
use sortie_tests::sshd::{Shell, Sshd};

/// Exact bytes there, exact bytes and status back, nothing left.
async fn every_byte_passes(shell: Shell) -> Result<()> {
    require_root!();
    sortie_tests::require_programs!(shell.program());
    let host = Sshd::builder().shell(shell).max_sessions(1).no_sftp().rc_noise().start()?;
    let ended = on(host.access(), "exec")
        .args(["--", "sh", "-c", "printf '%s\\000' \"$@\"; cat >&2; exit 42", "sh"])
        .args(NASTY)
        .arg(OsStr::from_bytes(NO_TEXT))
        .run_with(b"input\n")
        .await?
        .ended_with(42);
    let words = NASTY.iter().map(|word| word.as_bytes()).chain([NO_TEXT]);
    assert_eq!(ended.stdout, words.flat_map(|word| [word, b"\0"].concat()).collect::<Vec<_>>());
    assert_eq!(ended.stderr, "input\n", "noise of rc files came through");
    host.quiet().await?;
    assert_eq!(host.new_files()?, []);
    Ok(())
}

#[tokio::test]
async fn every_byte_passes_sh() -> Result<()> {
    every_byte_passes(Shell::Sh).await
}

#[tokio::test]
async fn every_byte_passes_bash() -> Result<()> {
    every_byte_passes(Shell::Bash).await
}

#[tokio::test]
async fn every_byte_passes_dash() -> Result<()> {
    every_byte_passes(Shell::Dash).await
}

#[tokio::test]
async fn every_byte_passes_tcsh() -> Result<()> {
    every_byte_passes(Shell::Tcsh).await
}

#[tokio::test]
async fn every_byte_passes_fish() -> Result<()> {
    every_byte_passes(Shell::Fish).await
}

#[tokio::test]
async fn a_shell_that_runs_nothing_is_a_clear_error() -> Result<()> {
    require_root!();
    for (shell, words) in
        [(Shell::Nologin, &["login shell", "nologin"][..]), (Shell::Rbash, &["login shell", "restricted"])]
    {
        let host = Sshd::builder().shell(shell).start()?;
        on(host.access(), "exec").args(["--", "true"]).run().await?.ended_with(255).says(words);
        let ended = cli_support::sortie("doctor").login(host.access()).arg(cli_support::name(host.access()));
        let ended = ended.run().await?.ended_with(255);
        assert!(ended.text().contains("chsh"), "{}", ended.text());
    }
    Ok(())
}

#[tokio::test]
async fn directories_that_will_not_do_are_named() -> Result<()> {
    require_root!();
    let builder = Sshd::builder();
    let all = builder.candidates();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let (last, others) = all.split_last().unwrap();
    let host = Sshd::builder().noexec(others).start()?;
    let ended = on(host.access(), "exec").args(["--", "echo", "ran"]).run().await?.ended_with(0);
    assert_eq!(ended.text(), "ran\n");
    drop(host);
    let host = Sshd::builder().noexec(others).full_disk(&[last]).start()?;
    let ended = on(host.access(), "exec").args(["--", "true"]).run().await?.ended_with(255);
    let ended = ended.says(&all).says(&["noexec", "no space left"]);
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert_eq!(host.new_files()?, []);
    Ok(())
}

#[tokio::test]
async fn a_host_that_dies_under_a_command_is_an_error_and_not_a_hang() -> Result<()> {
    require_root!();
    let mut host = Sshd::builder().start()?;
    let mut started = on(host.access(), "sh").arg("echo begun; sleep 1000").start()?;
    assert_eq!(started.line().await?, "begun\n");
    host.crash()?;
    started.end().await?.ended_with(255).says(&["lost"]);
    Ok(())
}

#[tokio::test]
async fn the_doctor_finds_a_good_host_fit() -> Result<()> {
    require_root!();
    let host = Sshd::builder().rc_noise().max_sessions(1).start()?;
    let doctor = || cli_support::sortie("doctor").login(host.access());
    let ended = doctor().arg(cli_support::name(host.access())).run().await?.fine();
    let text = ended.text();
    let steps = [
        "reading the configuration",
        "looking up the address",
        "connecting",
        "exchanging keys",
        "logging in",
        "opening a channel",
        "starting a shell",
        "starting the runner",
        "the host",
        "running a program (true)",
        "writing a file",
        "reading it back",
        "removing it",
        "ending the session",
        "nothing left behind",
    ];
    for step in steps {
        assert!(text.lines().any(|line| line.starts_with(&format!("ok   {step} "))), "{step}: {text}");
    }
    assert!(text.lines().last().unwrap().contains("is fit for Sortie ("), "{text}");
    host.quiet().await?;
    assert_eq!(host.new_files()?, []);
    let ended = doctor().arg("--json").arg(cli_support::name(host.access())).run().await?.fine();
    let events = ended.events();
    let shown: Vec<&str> = events.iter().filter_map(|event| event["step"].as_str()).collect();
    assert_eq!(shown, steps);
    assert!(events.iter().filter(|event| event["event"] == "check").all(|event| event["ok"] == true));
    let done = events.last().unwrap();
    assert_eq!((&done["command"], &done["result"]["fit"]), (&"doctor".into(), &true.into()));
    assert!(done["result"]["round_trips"].as_u64().unwrap() >= 8, "{done}");
    Ok(())
}
