//! What a client says and does when the other end goes away, and what is left on the host then: nothing.

mod client_support;

use std::time::Duration;

use anyhow::{Context as _, Result};
use client_support::{builder, connect, target};
use nix::sys::signal::Signal;
use sortie_client::Error;
use sortie_client::protocol::command::exec::Exec;
use sortie_tests::proxy::Proxy;
use sortie_tests::sshd::Sshd;
use sortie_tests::{require_programs, require_root, within};

#[tokio::test]
async fn a_cut_link_is_a_loss_and_a_second_login_says_what_is_left() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let proxy = Proxy::builder(host.access().addr()).start().await?;
    let session = connect(&host.access().via(proxy.addr().port())?).await?;
    let child = session.start(Exec::shell("sleep 1000 & sleep 1000")).await?;
    proxy.cut();
    let error = within("the loss", child.wait()).await?.expect_err("nobody answers any more");
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    let error = within("the second login", session.close()).await?.expect_err("the link was cut");
    assert!(error.to_string().contains("a second login found"), "{error}");
    host.quiet().await?;
    assert!(host.new_files()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_link_that_falls_silent_is_lost_after_a_lease_and_so_is_its_runner() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let proxy = Proxy::builder(host.access().addr()).start().await?;
    let access = host.access().via(proxy.addr().port())?;
    let session = builder(&access)?.lease(Some(Duration::from_secs(2))).connect(&target(&access)?).await?;
    let child = session.start(Exec::shell("sleep 1000")).await?;
    // A link that works keeps both for longer than a lease.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        session.run(Exec::argv(["true"])).await?;
    }
    proxy.freeze();
    let error = within("the loss", child.wait()).await?.expect_err("nobody answers any more");
    assert!(error.to_string().contains("nothing was heard for 2 s"), "{error}");
    host.quiet().await?;
    assert!(host.new_files()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_runner_that_is_killed_is_lost_and_leaves_nothing() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let session = connect(host.access()).await?;
    let child = session.start(Exec::shell("sleep 1000 & sleep 1000")).await?;
    host.kill(i32::try_from(session.ready().pid)?, Signal::SIGKILL).context("the guardian")?;
    let error = within("the loss", child.wait()).await?.expect_err("the runner is gone");
    assert!(!matches!(error, Error::Result { .. }), "{error}");
    // Whether the serving process still said goodbye is a race; that nothing is left is not.
    let _ = within("the end", session.close()).await?;
    host.quiet().await?;
    assert!(host.new_files()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_dropped_session_leaves_nothing() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let session = connect(host.access()).await?;
    let child = session.start(Exec::shell("trap '' TERM; sleep 1000 & sleep 1000")).await?;
    drop(session);
    let ended = within("the end of the command", child.wait()).await?;
    assert!(ended.is_err());
    host.quiet().await?;
    assert!(host.new_files()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_consumer_that_does_not_read_holds_up_nobody_else() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let session = connect(host.access()).await?;
    let mut stalled = session.start(Exec::shell("yes | head -c 1073741824").stream_lines(true)).await?;
    assert!(stalled.next_event().await.is_some());
    for _ in 0..20 {
        let done = within("an answer beside it", session.run(Exec::argv(["echo", "hi"]))).await??;
        assert_eq!(done.result.stdout.as_deref(), Some("hi\n"));
    }
    drop(stalled);
    assert!(session.close().await?.is_proven());
    host.quiet().await
}
