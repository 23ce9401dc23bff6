//! Becoming another user on a real host: every way of getting there, every way of being refused, and what must never be seen.

mod client_support;

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use client_support::connect;
use sortie_client::protocol::command::exec::{Exec, ExecResult};
use sortie_client::protocol::message::{Become, BecomeMethod, ErrorFrame};
use sortie_client::protocol::{ErrorCode, Secret};
use sortie_client::{CommandOptions, Error, Session};
use sortie_tests::require_root;
use sortie_tests::sshd::Sshd;

/// Nothing else on the machine looks like it.
const PASSWORD: &str = "Tr0ub4dor-und-3";

fn whom(user: &str, method: BecomeMethod, password: Option<&str>) -> Become {
    Become { user: user.into(), method, password: password.map(|text| Secret::new(text.into())) }
}

fn options(whom: Become) -> CommandOptions {
    CommandOptions { r#become: Some(whom), timeout: Duration::from_secs(90), ..CommandOptions::default() }
}

async fn sh(session: &Session, line: &str, whom: Become) -> Result<ExecResult, Error> {
    let exec = Exec { command: line.into(), capture_out: true, capture_err: true, ..Exec::default() };
    Ok(session.start_with(&exec, options(whom)).await?.wait().await?.result)
}

async fn said(session: &Session, line: &str, whom: Become) -> Result<String> {
    let result = sh(session, line, whom).await?;
    ensure!(result.exit_code == 0, "{result:?}");
    Ok(result.stdout.unwrap_or_default())
}

async fn refused(session: &Session, whom: Become) -> Result<ErrorFrame> {
    match sh(session, "id", whom).await {
        Err(Error::Command { error, .. }) if error.code == ErrorCode::BecomeFailed => Ok(*error),
        other => bail!("not refused: {other:?}"),
    }
}

/// A host with these lines of sudoers, accounts `deploy` (that is logged in to) and `postgres`, and a password for each.
fn host(sudoers: &str) -> Result<Sshd> {
    let mut host = Sshd::builder().file("/etc/sudoers.d/kit", 0o440, sudoers).start()?;
    root(
        &host,
        &format!(
            "useradd -r -m -d /var/lib/postgresql -s /bin/sh postgres; \
             printf '%s:{PASSWORD}\\n' deploy root postgres | chpasswd"
        ),
    )?;
    host.rebase()?;
    Ok(host)
}

fn root(host: &Sshd, script: &str) -> Result<String> {
    let output = host.run(script)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{script}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

#[tokio::test]
async fn sudo_without_a_password_gives_the_other_users_own_surroundings() -> Result<()> {
    require_root!();
    let host = host("deploy ALL=(ALL) NOPASSWD: ALL\n")?;
    let session = connect(host.access()).await?;
    let line = "id -un; echo $HOME $USER $LOGNAME; pwd; umask; echo ${LC_ALL-unset}";
    let become_root = whom("root", BecomeMethod::Sudo, None);
    assert_eq!(said(&session, line, become_root).await?, "root\n/root root root\n/root\n0022\nunset\n");
    let postgres = whom("postgres", BecomeMethod::Sudo, None);
    let home = "/var/lib/postgresql";
    let expected = format!("postgres\n{home} postgres postgres\n{home}\n0022\nunset\n");
    assert_eq!(said(&session, line, postgres).await?, expected);
    session.close().await?;
    host.quiet().await?;
    assert_eq!(host.new_files()?, []);
    Ok(())
}

#[tokio::test]
async fn a_password_is_given_where_it_is_asked_for_and_one_refusal_is_the_end() -> Result<()> {
    require_root!();
    let host = host("deploy ALL=(ALL) ALL\n")?;
    let session = connect(host.access()).await?;
    let with = |password| whom("root", BecomeMethod::Sudo, password);
    let error = refused(&session, with(None)).await?;
    assert_eq!(error.details["reason"], "password_required", "{error:?}");
    let error = refused(&session, with(Some("wrong horse"))).await?;
    assert_eq!(error.details["reason"], "wrong_password", "{error:?}");
    assert!(error.message.contains("the password is wrong") && !error.message.contains("wrong horse"));
    assert_eq!(said(&session, "id -un", with(Some(PASSWORD))).await?, "root\n");
    // It is there now, and asks nobody.
    assert_eq!(said(&session, "id -un", with(Some("wrong horse"))).await?, "root\n");
    session.close().await?;
    host.quiet().await
}

#[tokio::test]
async fn requiretty_use_pty_and_log_input_do_not_stand_in_the_way() -> Result<()> {
    require_root!();
    for defaults in
        ["requiretty", "use_pty", "log_input,log_output", "requiretty,use_pty,log_input,log_output"]
    {
        let host = host(&format!("Defaults {defaults}\ndeploy ALL=(ALL) ALL\n"))?;
        let session = connect(host.access()).await?;
        let root = || whom("root", BecomeMethod::Sudo, Some(PASSWORD));
        assert_eq!(said(&session, "id -un", root()).await?, "root\n", "{defaults}");
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let write = sortie_client::protocol::command::file_write::FileWrite {
            create: true,
            ..sortie_client::protocol::command::file_write::FileWrite::new("/root/large")
                .content(bytes.clone())
        };
        session.start_with(&write, options(root())).await?.wait().await?;
        assert_eq!(std::fs::read(host.path("/root/large"))?, bytes, "{defaults}");
        session.close().await?;
        host.quiet().await?;
    }
    Ok(())
}
