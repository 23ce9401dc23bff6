//! What the suite of becoming another user tries and looks at: hosts with accounts, and commands as somebody else.

#![allow(dead_code, unused_imports, reason = "each suite uses its own part of this")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sortie_client::protocol::Secret;
use sortie_client::protocol::command::exec::{Exec, ExecResult};
use sortie_client::protocol::message::{Become, ErrorFrame};
use sortie_client::{CommandOptions, Error, Session};
use sortie_tests::host::{Host, Kind, Lab};

pub(crate) use sortie_client::protocol::message::BecomeMethod::{self, Doas, Su, Sudo};

/// Nothing else on the host looks like it.
pub(crate) const PASSWORD: &str = "Tr0ub4dor-und-3";
pub(crate) const WRONG: &str = "c0rrect-h0rse";

pub(crate) fn whom(user: &str, method: BecomeMethod, password: Option<&str>) -> Become {
    Become { user: user.into(), method, password: password.map(|text| Secret::new(text.into())) }
}

/// As root by sudo, which asks for the password.
pub(crate) fn root() -> CommandOptions {
    options(whom("root", Sudo, Some(PASSWORD)))
}

pub(crate) fn options(whom: Become) -> CommandOptions {
    CommandOptions { r#become: Some(whom), timeout: Duration::from_secs(90), ..CommandOptions::default() }
}

pub(crate) fn shell(line: &str) -> Exec {
    Exec { command: line.into(), capture_out: true, capture_err: true, ..Exec::default() }
}

pub(crate) async fn sh(session: &Session, line: &str, options: CommandOptions) -> Result<ExecResult, Error> {
    Ok(session.start_with(&shell(line), options).await?.wait().await?.result)
}

pub(crate) async fn said(session: &Session, line: &str, options: CommandOptions) -> Result<String> {
    let result = sh(session, line, options).await?;
    ensure!(result.exit_code == 0, "{result:?}");
    Ok(result.stdout.unwrap_or_default())
}

pub(crate) fn failed<T: std::fmt::Debug>(result: Result<T, Error>) -> Result<ErrorFrame> {
    match result {
        Err(Error::Command { error, .. }) => Ok(*error),
        other => anyhow::bail!("it did not fail in the runner: {other:?}"),
    }
}

/// A host with `deploy`, to log in to, and others to become, all with the same password.
pub(crate) async fn host(lab: &Lab, kind: Kind, sudoers: &str) -> Result<Host> {
    let host = lab.host(kind).file("/etc/sudoers.d/kit", sudoers, 0o440).start().await?;
    host.add_user("deploy", Some(PASSWORD)).await?;
    let accounts = "useradd -r -m -d /var/lib/postgresql -s /bin/sh postgres; useradd -m -s /bin/sh gone
        useradd -s /usr/sbin/nologin shut; read password
        for name in root postgres gone shut; do echo $name:$password; done | chpasswd; chage -E 1 gone";
    host.exec_with(["/bin/sh", "-c", accounts], format!("{PASSWORD}\n").as_bytes()).await?.fine()?;
    Ok(host)
}

/// A process of the host, as this machine knows it.
pub(crate) fn lab_pid(host: &Host) -> Result<i32> {
    let all = host.processes()?;
    Ok(all.iter().find(|process| process.pid == 1).context("no first process")?.machine_pid)
}
