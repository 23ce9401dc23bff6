//! `file_stat`, `dir_ensure`, `link_ensure` and `file_remove` on real hosts: what the host's own programs say of it afterwards, as
//! root and as a user who may not.

mod cli_support;
mod client_support;

use anyhow::{Context as _, Result, bail, ensure};
use cli_support::{name, sortie};
use client_support::connect;
use sortie_client::protocol::command::dir_ensure::DirEnsure;
use sortie_client::protocol::command::file_remove::FileRemove;
use sortie_client::protocol::command::file_stat::{FileStat, FileStatResult};
use sortie_client::protocol::command::link_ensure::LinkEnsure;
use sortie_client::protocol::message::ErrorFrame;
use sortie_client::protocol::{CommandSpec, ErrorCode};
use sortie_client::{CommandOptions, Error, Session};
use sortie_tests::access::Access;
use sortie_tests::for_each_kind;
use sortie_tests::host::{Host, Kind, Lab, matrix};

async fn run<C: CommandSpec>(session: &Session, command: &C, check: bool) -> Result<C::Result, Error> {
    let options = CommandOptions { check, diff: true, ..CommandOptions::default() };
    Ok(session.start_with(command, options).await?.wait().await?.result)
}

/// Both when it is only checked and when it is run: the error.
async fn refused<C: CommandSpec>(session: &Session, code: &ErrorCode, command: &C) -> Result<ErrorFrame> {
    let mut last = None;
    for check in [true, false] {
        match run(session, command, check).await {
            Err(Error::Command { error, .. }) if error.code == *code => last = Some(*error),
            Err(other) => bail!("not {code}, check {check}: {other:?}"),
            Ok(_) => bail!("not refused, check {check}"),
        }
    }
    last.context("no error")
}

/// Everything below /srv with all that a change would change, as the host's own programs tell it.
async fn everything(host: &Host) -> Result<String> {
    host.sh("find /srv | sort | while read -r f; do stat -c '%n %F %a %u:%g %i %h %Y %Z' \"$f\"; readlink \"$f\" || true; done").await?.fine()
}

/// Checks it, which must change nothing; runs it, which must come to the same; runs it again, which must change nothing. What
/// the run came to.
async fn three_times<C>(host: &Host, session: &Session, command: &C) -> Result<C::Result>
where
    C: CommandSpec,
    C::Result: PartialEq + std::fmt::Debug,
{
    let before = everything(host).await?;
    let checked = run(session, command, true).await?;
    ensure!(everything(host).await? == before, "{:?}: the check changed something", C::TYPE);
    let result = run(session, command, false).await?;
    assert_eq!(result, checked, "{:?}: the run is not what the check said", C::TYPE);
    let after = everything(host).await?;
    ensure!(after != before, "{:?}: nothing has changed", C::TYPE);
    let again = serde_json::to_value(run(session, command, false).await?)?;
    assert_eq!((&again["changed"], &again["diff"]), (&false.into(), &"".into()), "{:?}", C::TYPE);
    ensure!(everything(host).await? == after, "{:?}: the second run changed something", C::TYPE);
    Ok(result)
}

fn done(command: &str, kind: Kind) -> Result<()> {
    ["first run", "second run", "check"]
        .iter()
        .try_for_each(|case| matrix::record(command, kind, case, "as documented"))
}

/// In the manner of stat(1), to be compared with it.
fn line(found: &FileStatResult) -> String {
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "UNKNOWN".to_owned());
    format!(
        "{:?} {} {}:{} {}:{} {}",
        found.size.unwrap_or_default(),
        found.mode.trim_start_matches('0'),
        found.owner,
        found.group,
        name(&found.owner_name),
        name(&found.group_name),
        found.links
    )
}

async fn stat(kind: Kind, host: &Host, session: &Session) -> Result<()> {
    for path in ["/srv/tree/f", "/srv/tree", "/srv/tree/link", "/dev/null", "/etc/passwd"] {
        let said = host.sh(&format!("stat -c '%s %a %u:%g %U:%G %h' {path}")).await?.fine()?;
        for check in [true, false] {
            let found = run(session, &FileStat::new(path), check).await?;
            assert_eq!(line(&found), said.trim_end(), "{path}");
        }
    }
    let digest = host.sh("sha256sum < /srv/tree/f").await?.fine()?;
    let found = run(session, &FileStat::new("/srv/tree/link").follow(true).checksum(true), false).await?;
    assert_eq!(found.checksum.as_deref(), digest.split_whitespace().next());
    let again = run(session, &FileStat::new("/srv/tree/link").follow(true).checksum(true), false).await?;
    assert_eq!(found, again);
    assert_eq!(run(session, &FileStat::new("/srv/absent"), false).await?, FileStatResult::default());
    done("file_stat", kind)?;
    for path in ["", "srv", "/a\0b"] {
        refused(session, &ErrorCode::InvalidParams, &FileStat::new(path)).await?;
    }
    matrix::record("file_stat", kind, "wrong input", "as documented")
}

async fn directories(kind: Kind, host: &Host, session: &Session) -> Result<()> {
    let made = DirEnsure::new("/srv/new/a/b").owner("ops").group("ops").mode(0o2750);
    let result = three_times(host, session, &made).await?;
    assert!(result.changed && result.created, "{result:?}");
    let said = host.sh("stat -c '%a %U:%G' /srv/new/a /srv/new/a/b").await?.fine()?;
    assert_eq!(said, "755 root:root\n2750 ops:ops\n");

    let all = DirEnsure::new("/srv/tree").owner("ops").mode(0o750).file_mode(0o640).recursive(true);
    let result = three_times(host, session, &all).await?;
    assert_eq!((result.created, result.changed_below), (false, 5), "{result:?}");
    let said = host.sh("stat -c '%a %U' /srv/tree /srv/tree/sub /srv/tree/f /srv/tree/sub/g; stat -c %U /srv/tree/link; stat -L -c %U /srv/tree/sub/out").await?;
    assert_eq!(said.fine()?, "750 ops\n750 ops\n640 ops\n640 ops\nops\nroot\n");
    done("dir_ensure", kind)?;
    let before = everything(host).await?;
    for (code, command) in [
        (ErrorCode::InvalidParams, DirEnsure::new("srv")),
        (ErrorCode::InvalidParams, DirEnsure::new("/srv/x").file_mode(0o600)),
        (ErrorCode::NotFound, DirEnsure::new("/srv/x/y").owner("nobody.such")),
        (ErrorCode::Conflict, DirEnsure::new("/srv/tree/f")),
        (ErrorCode::Conflict, DirEnsure::new("/").owner("ops").recursive(true)),
    ] {
        refused(session, &code, &command).await?;
    }
    ensure!(everything(host).await? == before);
    matrix::record("dir_ensure", kind, "wrong input", "as documented")
}

async fn links(kind: Kind, host: &Host, session: &Session) -> Result<()> {
    let result = three_times(host, session, &LinkEnsure::new("/srv/current", "releases/1")).await?;
    assert!(result.created && result.dangling, "{result:?}");
    let result =
        three_times(host, session, &LinkEnsure::new("/srv/current", "tree/sub").owner("ops")).await?;
    assert!(!result.created && !result.dangling, "{result:?}");
    assert_eq!(host.sh("readlink /srv/current; stat -c %U /srv/current").await?.fine()?, "tree/sub\nops\n");
    host.sh("echo x > /srv/file; mkdir /srv/empty").await?.fine()?;
    for path in ["/srv/file", "/srv/empty"] {
        refused(session, &ErrorCode::Conflict, &LinkEnsure::new(path, "tree")).await?;
        three_times(host, session, &LinkEnsure::new(path, "tree").force(true)).await?;
    }
    done("link_ensure", kind)?;
    let before = everything(host).await?;
    for (code, command) in [
        (ErrorCode::InvalidParams, LinkEnsure::new("current", "x")),
        (ErrorCode::InvalidParams, LinkEnsure::new("/srv/x", "")),
        (ErrorCode::NotFound, LinkEnsure::new("/srv/absent/x", "y")),
        (ErrorCode::Conflict, LinkEnsure::new("/srv/tree", "x").force(true)),
    ] {
        refused(session, &code, &command).await?;
    }
    ensure!(everything(host).await? == before);
    matrix::record("link_ensure", kind, "wrong input", "as documented")
}

async fn removals(kind: Kind, host: &Host, session: &Session) -> Result<()> {
    let before = everything(host).await?;
    for (code, command) in [
        (ErrorCode::InvalidParams, FileRemove::new("/").recursive(true)),
        (ErrorCode::InvalidParams, FileRemove::new("srv").recursive(true)),
        (ErrorCode::Conflict, FileRemove::new("/srv/tree")),
        // The host's own.
        (ErrorCode::Conflict, FileRemove::new("/proc").recursive(true)),
    ] {
        refused(session, &code, &command).await?;
    }
    ensure!(everything(host).await? == before);
    matrix::record("file_remove", kind, "wrong input", "as documented")?;
    let result = three_times(host, session, &FileRemove::new("/srv/tree/f")).await?;
    assert_eq!((&*result.kind, result.removed), ("file", 1));
    let result = three_times(host, session, &FileRemove::new("/srv/current").recursive(true)).await?;
    assert_eq!((&*result.kind, result.removed), ("link", 1));
    let result = three_times(host, session, &FileRemove::new("/srv/tree").recursive(true)).await?;
    assert_eq!((&*result.kind, result.removed), ("directory", 5));
    if kind != Kind::Busybox {
        // It came with the image, and a directory in the lower layer of an overlay cannot be renamed.
        host.sh("test -e /etc/skel/.profile").await?.fine()?;
        let result = run(session, &FileRemove::new("/etc/skel").recursive(true), false).await?;
        assert!(result.changed && result.removed > 1, "{result:?}");
        host.sh("test ! -e /etc/skel").await?.fine()?;
    }
    assert_eq!(host.sh("ls -A /srv /etc | grep sortie || true").await?.fine()?, "");
    done("file_remove", kind)
}

/// Who may not is told so by a check as by a run, and what he may he can.
async fn as_somebody(host: &Host, session: &Session) -> Result<()> {
    host.sh(
        "mkdir -p /srv/his /srv/roots/sub; echo x > /srv/roots/f; chown ops /srv/his; chmod 755 /srv/roots",
    )
    .await?
    .fine()?;
    let before = everything(host).await?;
    let denied = ErrorCode::PermissionDenied;
    refused(session, &denied, &FileRemove::new("/srv/roots/f")).await?;
    refused(session, &denied, &FileRemove::new("/srv/roots").recursive(true)).await?;
    refused(session, &denied, &DirEnsure::new("/srv/roots/new/x")).await?;
    refused(session, &denied, &DirEnsure::new("/srv/roots").mode(0o700)).await?;
    refused(session, &denied, &DirEnsure::new("/srv/his").owner("root")).await?;
    refused(session, &denied, &LinkEnsure::new("/srv/roots/link", "x")).await?;
    refused(session, &denied, &LinkEnsure::new("/srv/his/link", "x").owner("root")).await?;
    ensure!(everything(host).await? == before, "something was changed");
    three_times(host, session, &DirEnsure::new("/srv/his/a/b").mode(0o700)).await?;
    three_times(host, session, &LinkEnsure::new("/srv/his/a/link", "b")).await?;
    three_times(host, session, &FileRemove::new("/srv/his/a").recursive(true)).await?;
    Ok(())
}

/// The same by the command line.
async fn by_command(access: &Access) -> Result<()> {
    let file = |verb: &str| sortie("file").arg(verb).login(access).args(["-H", &name(access)]);
    let host = name(access);
    let ended = file("dir").args(["-m", "0750", "/srv/his/d", "/srv/his/d/e"]).run().await?.fine();
    assert_eq!(ended.text(), format!("{host}: /srv/his/d: created\n{host}: /srv/his/d/e: created\n"));
    let ended = file("link").args(["--diff", "d", "/srv/his/link"]).run().await?.fine();
    let expected = format!(
        "{host}: /srv/his/link: created\n--- /dev/null\n+++ /srv/his/link (attributes)\n@@ -0,0 +1,4 @@\n+type link\n+owner ops\n\
         +group ops\n+target d\n"
    );
    assert_eq!(ended.text(), expected);
    let ended = file("stat").args(["/srv/his/link", "/srv/absent"]).run().await?.fine();
    assert!(
        ended.text().starts_with(&format!("{host}: /srv/his/link: link -> d, 0777 ops:ops, ")),
        "{ended:?}"
    );
    assert!(ended.text().ends_with(&format!("\n{host}: /srv/absent: nothing is there\n")), "{ended:?}");
    let ended = file("stat").args(["--json", "-L", "/srv/his/link"]).run().await?.fine();
    let done = ended.events().pop().context("no event")?;
    assert_eq!((&done["command"], &done["result"]["mode"]), (&"file_stat".into(), &"0750".into()));
    let ended = file("remove").args(["--check", "-r", "/srv/his/d", "/srv/his/none"]).run().await?.fine();
    let expected = format!(
        "{host}: /srv/his/d: would be removed: directory with all 1 in it\n{host}: /srv/his/none: unchanged: nothing is there\n"
    );
    assert_eq!(ended.text(), expected);
    file("remove").args(["/srv/his/d"]).run().await?.ended_with(1).says(&["recursive", "CONFLICT"]);
    file("remove").args(["-r", "/srv/his/d", "/srv/his/link"]).run().await?.fine();
    file("dir").args(["--file-mode", "0600", "/srv/his"]).run().await?.ended_with(2).says(&["--recursive"]);
    Ok(())
}

for_each_kind!(files_are_what_was_asked_for: Debian11, Debian12, Debian13, Busybox, Dnf4);
async fn files_are_what_was_asked_for(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).name("web1").start().await?;
    let ops = host.add_user("ops", None).await?;
    host.sh(
        "mkdir -p /srv/tree/sub; echo hello > /srv/tree/f; echo x > /srv/tree/sub/g; ln -s f /srv/tree/link; ln -s /etc/passwd /srv/tree/sub/out; \
         chmod 755 /srv/tree /srv/tree/sub; chmod 644 /srv/tree/f /srv/tree/sub/g",
    )
    .await?
    .fine()?;
    let session = connect(&host.access("root")).await?;
    stat(kind, &host, &session).await.context("file_stat")?;
    directories(kind, &host, &session).await.context("dir_ensure")?;
    links(kind, &host, &session).await.context("link_ensure")?;
    removals(kind, &host, &session).await.context("file_remove")?;
    session.close().await?;
    let session = connect(&ops).await?;
    as_somebody(&host, &session).await.context("as a user")?;
    session.close().await?;
    by_command(&ops).await.context("by the command line")?;
    host.quiet_of("sortie").await
}
