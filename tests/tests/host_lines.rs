//! `line_ensure`, `ini_ensure` and `archive_unpack` on real hosts, with the tools that these have.

mod client_support;

use anyhow::{Context as _, Result, bail, ensure};
use client_support::connect;
use serde_json::Value;
use sortie_client::protocol::command::archive_unpack::ArchiveUnpack;
use sortie_client::protocol::command::ini_ensure::IniEnsure;
use sortie_client::protocol::command::line_ensure::LineEnsure;
use sortie_client::protocol::{CommandSpec, ErrorCode};
use sortie_client::{CommandOptions, Error, Session};
use sortie_tests::for_each_kind;
use sortie_tests::host::{Host, Kind, Lab, matrix};

/// A result as it stands on the wire.
async fn put<C: CommandSpec>(session: &Session, command: &C, check: bool) -> Result<Value> {
    let options = CommandOptions { check, diff: true, ..CommandOptions::default() };
    let done = session.start_with(command, options).await?.wait().await?;
    Ok(serde_json::to_value(done.result)?)
}

/// `check`, a run and a second run; notes each for the matrix. `look` is what must stay as it is in the first and the last.
async fn thrice<C: CommandSpec>(host: &Host, session: &Session, command: &C, look: &str) -> Result<Value> {
    let state = async || host.sh(look).await?.fine();
    let before = state().await?;
    let would = put(session, command, true).await?;
    assert_eq!(state().await?, before, "check of {}", C::TYPE.name());
    let did = put(session, command, false).await?;
    assert_eq!(would, did);
    assert_eq!(did["changed"], true, "{did}");
    let between = state().await?;
    let again = put(session, command, false).await?;
    assert_eq!((&again["changed"], &again["diff"]), (&false.into(), &"".into()), "{again}");
    assert_eq!(state().await?, between, "second run of {}", C::TYPE.name());
    for case in ["first run", "second run", "check"] {
        matrix::record(C::TYPE.name(), host.kind(), case, "as documented")?;
    }
    Ok(did)
}

async fn refused<C: CommandSpec>(
    host: &Host,
    session: &Session,
    code: &ErrorCode,
    command: &C,
) -> Result<String> {
    match put(session, command, false).await {
        Err(error) => match error.downcast::<Error>()? {
            Error::Command { error, .. } if error.code == *code => {
                matrix::record(C::TYPE.name(), host.kind(), "wrong input", "as documented")?;
                Ok(error.message)
            }
            other => bail!("not {code}: {other:?}"),
        },
        Ok(result) => bail!("not refused as {code}: {result}"),
    }
}

for_each_kind!(files_are_edited_and_archives_unpacked: Debian11, Debian12, Debian13, Busybox, Dnf4);
async fn files_are_edited_and_archives_unpacked(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab
        .host(kind)
        .name("web1")
        .file("/etc/app.conf", "# Port 1\r\n[a]\r\nx = 1\r\n", 0o640)
        .start()
        .await?;
    let session = connect(&host.access("root")).await?;
    let look = "cat /etc/app.conf; ls -l /etc/app.conf; stat -c '%i %Y %Z' /etc/app.conf; ls -A /etc | grep sortie || :";

    let line = LineEnsure::new("/etc/app.conf", "Port 22")
        .regexp("^#? *Port ")
        .validate(["grep", "-q", "Port 22", "%s"]);
    thrice(&host, &session, &line, look).await?;
    thrice(&host, &session, &LineEnsure::block("/etc/app.conf", "y = 2\nz = 3"), look).await?;
    let expected = "Port 22\r\n[a]\r\nx = 1\r\n# BEGIN SORTIE MANAGED BLOCK\r\ny = 2\r\nz = 3\r\n# END SORTIE MANAGED BLOCK\r\n";
    assert_eq!(host.read("/etc/app.conf").await?, expected.as_bytes());
    let message =
        refused(&host, &session, &ErrorCode::InvalidParams, &LineEnsure::absent("/etc/app.conf", "("))
            .await?;
    assert!(message.starts_with("regexp"), "{message}");

    thrice(&host, &session, &IniEnsure::new("/etc/app.conf", "a", "x", "5"), look).await?;
    assert_eq!(host.read("/etc/app.conf").await?, expected.replace("x = 1", "x = 5").as_bytes());
    thrice(&host, &session, &IniEnsure::absent("/etc/app.conf", "a", "x"), look).await?;
    assert!(host.sh("stat -c %a /etc/app.conf").await?.fine()?.trim() == "640");
    let wrong = IniEnsure::new("/etc/app.conf", "a", "b=c", "5");
    let message = refused(&host, &session, &ErrorCode::InvalidParams, &wrong).await?;
    assert!(message.starts_with("option"), "{message}");

    // What every host can make by itself.
    let make = "mkdir -p /root/src/top/d; cd /root/src; echo one > top/a; echo two > top/d/b; ln -s ../a top/d/l; tar -czf /root/t.tgz top; tar -cf /root/t.tar top";
    host.sh(make).await?.fine()?;
    let look = "ls -lAR /opt /srv 2>/dev/null; cat /opt/app/a /opt/app/d/b 2>/dev/null || :";
    for (archive, goal) in [("/root/t.tgz", "/opt/app"), ("/root/t.tar", "/srv/app/below")] {
        let unpack = ArchiveUnpack::new(archive, goal).strip(1).owner("65534");
        let did = thrice(&host, &session, &unpack, look).await?;
        assert_eq!((&did["action"], &did["members"]), (&"unpacked".into(), &4.into()));
        assert_eq!(host.read(&format!("{goal}/d/l")).await?, b"one\n");
        assert_eq!(
            host.sh(&format!("stat -c %u:%a {goal}/d/b {goal}")).await?.fine()?,
            "65534:644\n65534:755\n"
        );
    }
    let message =
        refused(&host, &session, &ErrorCode::InvalidParams, &ArchiveUnpack::new("t.tgz", "/opt/app")).await?;
    assert!(message.starts_with("archive"), "{message}");
    host.sh("cd /root; ln -s /etc src/evil; tar -C src -cf evil.tar evil").await?.fine()?;
    let evil = ArchiveUnpack::new("/root/evil.tar", "/opt/evil");
    refused(&host, &session, &ErrorCode::ValidationFailed, &evil).await?;
    ensure!(host.sh("ls -A /opt").await?.fine()?.trim() == "app", "something is left");
    host.sh("head -c 60 /root/t.tgz > /root/cut.tgz").await?.fine()?;
    refused(&host, &session, &ErrorCode::ExecFailed, &ArchiveUnpack::new("/root/cut.tgz", "/opt/cut"))
        .await?;
    zip(&host, &session).await.context("zip")?;
    session.close().await?;
    Ok(())
}

/// A zip with one member, stored: of the kinds only busybox has an unzip.
async fn zip(host: &Host, session: &Session) -> Result<()> {
    const ZIP: &[u8] = b"PK\x03\x04\x0a\0\0\0\0\0\0\0!X\x83\x16\xdc\x8c\x01\0\0\0\x01\0\0\0\x01\0\0\0axPK\x01\x02\x1e\x03\x0a\0\0\0\0\0\0\0!X\
        \x83\x16\xdc\x8c\x01\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\xa4\x81\0\0\0\0aPK\x05\x06\0\0\0\0\x01\0\x01\0/\0\0\0\x20\0\0\0\0\0";
    host.write("/root/t.zip", ZIP, 0o644).await?;
    let unpack = ArchiveUnpack::new("/root/t.zip", "/opt/zip");
    if host.kind() == Kind::Busybox {
        thrice(host, session, &unpack, "ls -lAR /opt").await?;
        assert_eq!(host.read("/opt/zip/a").await?, b"x");
        return Ok(());
    }
    refused(host, session, &ErrorCode::NotFound, &unpack).await?;
    Ok(())
}
