//! The bootstrap on real hosts: every login shell, every lack and every fault ends in a session or in one clear error,
//! and nothing is left on the host.

mod client_support;

use std::time::Duration;

use anyhow::{Context as _, Result};
use client_support::{builder, connect, refused, target, transport};
use sortie_client::error::{BootstrapProblem, DirectoryProblem, Error};
use sortie_client::observe::Step;
use sortie_client::protocol::command::exec::Exec;
use sortie_client::{CommandOptions, Session};
use sortie_tests::proxy::{Direction, Proxy};
use sortie_tests::sshd::{Builder, Shell, Sshd};
use sortie_tests::{require_programs, require_root, within};

/// Arguments that some shell on the way would change, if one were on the way.
const AWKWARD: &[&str] = &[
    "",
    " ",
    "a b",
    "'",
    "\"",
    "$HOME",
    "!!",
    "!x",
    "\\",
    "\\n",
    "`id`",
    "new\nline",
    "*",
    "~",
    "é\u{1F600}",
];

async fn prove(session: Session) -> Result<()> {
    let script = "printf '%s\\0' \"$@\"; exit 7";
    let argv = ["sh", "-c", script, "sh"].into_iter().chain(AWKWARD.iter().copied());
    let done = session.run(Exec::argv(argv)).await?;
    let expected: String = AWKWARD.iter().map(|word| format!("{word}\0")).collect();
    // NUL bytes make the text base64 on the wire; what counts is what comes out.
    let stdout = sortie_client::protocol::text::decode(
        done.result.stdout.clone().unwrap_or_default(),
        done.result.stdout_encoding,
    )?;
    assert_eq!(String::from_utf8(stdout)?, expected);
    assert_eq!(done.result.exit_code, 7);
    let farewell = session.close().await?;
    assert!(farewell.is_proven(), "{farewell:?}");
    Ok(())
}

async fn works(host: Builder) -> Result<()> {
    let host = host.start()?;
    let session = connect(host.access()).await.with_context(|| host.log())?;
    prove(session).await?;
    host.quiet().await?;
    let left = host.new_files()?;
    assert!(left.is_empty(), "left {left:?}");
    Ok(())
}

/// The error of a host that no session can be had with; nothing may be left there either.
async fn fails(host: Builder) -> Result<Error> {
    let host = host.start()?;
    let error = within("the refusal", refused(builder(host.access())?, host.access())).await??;
    host.quiet().await?;
    let left = host.new_files()?;
    assert!(left.is_empty(), "{error} left {left:?}");
    Ok(error)
}

fn problem(error: Error) -> Result<(BootstrapProblem, String)> {
    match error {
        Error::Bootstrap { problem, printed, .. } => Ok((problem, printed)),
        other => anyhow::bail!("another error: {other}"),
    }
}

#[tokio::test]
async fn every_login_shell_with_noisy_start_up_files_works() -> Result<()> {
    require_root!();
    require_programs!("sshd", "tcsh", "fish");
    for shell in Shell::ALL {
        let host = Sshd::builder().shell(shell.clone()).rc_noise().max_sessions(1).no_sftp();
        works(host).await.with_context(|| format!("{shell:?}"))?;
    }
    works(Sshd::builder().shell(Shell::Slow(1))).await
}

#[tokio::test]
async fn a_host_of_busybox_and_dropbear_works() -> Result<()> {
    require_root!();
    require_programs!("busybox", "dropbear");
    works(Sshd::busybox()).await
}

#[tokio::test]
async fn missing_tools_are_done_without() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    for missing in [
        &["gzip"][..],
        &["sha256sum", "openssl", "shasum", "mktemp", "base64"],
        &["head"],
        &["timeout", "dd"],
        &["gzip", "sha256sum", "mktemp", "base64", "timeout"],
    ] {
        works(Sshd::builder().path_without(missing)).await.with_context(|| format!("{missing:?}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn the_one_directory_that_programs_can_run_from_is_found() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let candidates = Sshd::builder().candidates();
    for good in &candidates {
        let bad: Vec<&str> = candidates.iter().filter(|c| *c != good).map(String::as_str).collect();
        works(Sshd::builder().noexec(&bad)).await.with_context(|| format!("only {good}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn directories_that_will_not_do_are_named_with_their_reason() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let all = Sshd::builder().candidates();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for (host, expected) in [
        (Sshd::builder().noexec(&all), DirectoryProblem::NoExec),
        (Sshd::builder().full_disk(&all), DirectoryProblem::NoSpace),
        (Sshd::builder().read_only(&all), DirectoryProblem::ReadOnly),
    ] {
        let (problem, _) = problem(fails(host).await?)?;
        let BootstrapProblem::NoDirectory { tried } = &problem else { anyhow::bail!("{problem}") };
        assert!(tried.len() >= all.len(), "{problem}");
        assert!(
            tried.iter().all(|t| t.problem == expected || t.problem == DirectoryProblem::Missing),
            "{problem}"
        );
        assert!(tried.iter().any(|t| t.problem == expected), "{problem}");
    }
    Ok(())
}

#[tokio::test]
async fn a_read_only_root_works_by_what_is_in_memory() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    works(Sshd::builder().read_only_root()).await
}

#[tokio::test]
async fn shells_that_run_nothing_are_named_with_what_they_print() -> Result<()> {
    require_root!();
    require_programs!("sshd", "rbash", "nologin");
    let (nologin, printed) = problem(fails(Sshd::builder().shell(Shell::Nologin)).await?)?;
    assert!(matches!(nologin, BootstrapProblem::ShellRefused { .. }), "{nologin}");
    assert!(printed.contains("not available"), "{printed}");
    let (restricted, printed) = problem(fails(Sshd::builder().shell(Shell::Rbash)).await?)?;
    assert!(matches!(restricted, BootstrapProblem::ShellRefused { .. }), "{restricted}");
    assert!(printed.contains("restricted"), "{printed}");
    Ok(())
}

#[tokio::test]
async fn a_machine_without_a_runner_is_named() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let uname = "#!/bin/sh\necho Linux sparc64\n";
    let (problem, _) = problem(fails(Sshd::builder().file("/usr/bin/uname", 0o755, uname)).await?)?;
    assert_eq!(problem, BootstrapProblem::UnsupportedMachine { machine: "Linux sparc64".into() });
    Ok(())
}

#[tokio::test]
async fn a_login_shell_that_hangs_ends_at_its_limit() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().shell(Shell::Script("#!/bin/sh\nexec cat\n".into())).start()?;
    let client = builder(host.access())?.shell_timeout(Duration::from_secs(1));
    let error = within("the limit", refused(client, host.access())).await??;
    assert!(matches!(&error, Error::TimedOut { step: Step::StartShell, .. }), "{error}");
    host.quiet().await
}

#[tokio::test]
async fn a_link_cut_at_any_byte_leaves_nothing() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let whole = {
        let proxy = Proxy::builder(host.access().addr()).start().await?;
        connect(&host.access().via(proxy.addr().port())?).await?.close().await?;
        proxy.bytes(Direction::ToServer)
    };
    host.quiet().await?;
    // Every stretch of the way up, and most places of the small packets at its beginning and end.
    let cuts = (0..whole)
        .step_by(usize::try_from(whole / 40)?)
        .chain(whole.saturating_sub(600)..whole.saturating_sub(560));
    for cut in cuts {
        let proxy = Proxy::builder(host.access().addr()).cut_after(Direction::ToServer, cut).start().await?;
        let access = host.access().via(proxy.addr().port())?;
        let outcome = within("an end", async {
            let session = connect(&access).await?;
            session.run(Exec::argv(["true"])).await?;
            session.close().await?;
            anyhow::Ok(())
        })
        .await?;
        if let Err(error) = outcome {
            let known = error.downcast_ref::<Error>().with_context(|| format!("at {cut}: {error}"))?;
            assert!(
                matches!(known.kind(), "unreachable" | "lost" | "auth" | "bootstrap"),
                "at {cut}: {known}"
            );
        }
        host.quiet().await.with_context(|| format!("cut at {cut} of {whole}"))?;
        let left = host.new_files()?;
        assert!(left.is_empty(), "cut at {cut} of {whole} left {left:?}");
    }
    Ok(())
}

#[tokio::test]
async fn clients_that_start_at_once_do_not_disturb_each_other() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let access = host.access().clone();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let access = access.clone();
        clients.spawn(async move { prove(connect(&access).await?).await });
    }
    for outcome in clients.join_all().await {
        outcome?;
    }
    host.quiet().await?;
    assert!(host.new_files()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_cached_runner_is_used_the_second_time_and_saves_the_upload() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let mut sent = Vec::new();
    for _ in 0..2 {
        let proxy = Proxy::builder(host.access().addr()).start().await?;
        let access = host.access().via(proxy.addr().port())?;
        let session = builder(&access)?.cache(true).connect(&target(&access)?).await?;
        prove(session).await?;
        sent.push(proxy.bytes(Direction::ToServer));
    }
    assert!(sent[1] < 40_000 && sent[0] > sent[1] + 60_000, "{sent:?}");
    let left: Vec<_> = host.new_files()?.into_iter().map(|entry| entry.path.display().to_string()).collect();
    assert!(left.iter().all(|path| path.starts_with("/home/deploy/.cache")), "{left:?}");
    Ok(())
}

#[tokio::test]
async fn the_first_result_of_a_one_shot_takes_nine_round_trips() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let proxy = Proxy::builder(host.access().addr()).delay(Duration::from_millis(40)).start().await?;
    let access = host.access().via(proxy.addr().port())?;
    let client = builder(&access)?.build();
    let mut opening = client.open(transport(&access).await?);
    let child = opening.start(&Exec::argv(["true"]), CommandOptions::default())?;
    opening.shutdown();
    let session = opening.connect().await?;
    child.wait().await?;
    let round_trips = proxy.round_trips();
    assert!(session.ended().await?.is_proven());
    assert!(round_trips <= 9, "{round_trips} round trips");
    Ok(())
}
