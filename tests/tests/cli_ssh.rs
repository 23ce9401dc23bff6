//! `--ssh`: the same session over the ssh program; and hosts whose server takes only so many logins at a time.

mod cli_support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result};
use cli_support::{name, on, sortie};
use sortie_tests::sshd::Sshd;
use sortie_tests::{require_programs, require_root};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

#[tokio::test]
async fn a_session_over_the_ssh_program_is_the_same_session() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let host = Sshd::builder().rc_noise().start()?;
    let done = on(host.access(), "sh").arg("--ssh").arg("cat; echo to stderr >&2; exit 3");
    let done = done.run_with(b"from here\n").await?.ended_with(3).says(&["to stderr"]);
    assert_eq!(done.text(), "from here\n", "{}", host.log());
    let copy = tempfile::tempdir()?.path().join("passwd");
    fs::create_dir(copy.parent().context("no parent")?)?;
    on(host.access(), "get").arg("--ssh").arg("/etc/passwd").arg(&copy).run().await?.ended_with(0);
    assert!(fs::read_to_string(&copy)?.contains("deploy"));
    Ok(fs::remove_dir_all(copy.parent().context("no parent")?)?)
}

#[tokio::test]
async fn the_ssh_program_gets_a_password_by_a_question_alone() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let host = Sshd::builder().password("correct horse").config_line("PubkeyAuthentication no").start()?;
    let directory = tempfile::tempdir()?;
    let with = |password: &str| -> Result<_> {
        let file = directory.path().join("password");
        fs::write(&file, password)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        Ok(on(host.access(), "exec").arg("--ssh").arg("--password-file").arg(&file).args(["--", "id", "-un"]))
    };
    let done = with("correct horse\n")?.run().await?;
    assert_eq!(done.fine().text(), "deploy\n", "{}", host.log());
    let refused = with("battery staple\n")?.run().await?.ended_with(255);
    assert!(refused.stderr.contains("login as deploy refused"), "{refused:?}");
    assert!(!refused.stderr.contains("battery"), "{refused:?}");
    assert_eq!(host.log().matches("Failed password").count(), 1, "{}", host.log());
    Ok(())
}

#[tokio::test]
async fn the_ssh_program_passes_over_no_host_key_whatever_its_options_say() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let host = Sshd::builder().start()?;
    fs::write(&host.access().known_hosts, "")?;
    let refused = on(host.access(), "exec")
        .args(["--ssh", "--ssh-option", "StrictHostKeyChecking=no", "--", "touch", "/tmp/reached"])
        .run()
        .await?
        .ended_with(255)
        .says(&["Host key verification failed"]);
    assert!(!refused.stderr.contains("reached"), "{refused:?}");
    assert_eq!(fs::read_to_string(&host.access().known_hosts)?, "", "nothing is added");
    on(host.access(), "exec").args(["--ssh", "--accept-new", "--", "true"]).run().await?.ended_with(0);
    assert!(!fs::read_to_string(&host.access().known_hosts)?.is_empty());
    Ok(())
}

#[tokio::test]
async fn an_ssh_program_that_is_not_there_or_of_no_use_is_named() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("ssh");
    fs::write(
        &file,
        "#!/bin/sh\n[ \"$1\" != -V ] || { echo OpenSSH_7.4p1 >&2; exit; }\necho \"$*\" | grep -o 'BatchMode=[a-z]*\\|-l me' >&2; exit 255\n",
    )?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    let missing = sortie("exec").args(["--ssh=/no/such/ssh", "-H", "web1", "--", "true"]).run().await?;
    missing.ended_with(255).says(&["/no/such/ssh cannot be started"]);
    let password = directory.path().join("password");
    fs::write(&password, "x\n")?;
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
    let old = sortie("exec").arg(format!("--ssh={}", file.display())).arg("--password-file").arg(&password);
    old.args(["-H", "me@web1", "--", "true"]).run().await?.ended_with(255).says(&[
        "OpenSSH 8.5",
        "BatchMode=yes",
        "-l me",
        "unreachable",
    ]);
    Ok(())
}

/// In front of `port`: says `words` to the first `drops` connections and closes them, and passes the others on.
async fn reluctant(port: u16, drops: usize, words: &'static [u8]) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let own = listener.local_addr()?.port();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((mut client, _)) = listener.accept().await else { return };
            if number < drops {
                let _ = client.write_all(words).await;
                continue;
            }
            tokio::spawn(async move {
                if let Ok(mut server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    Ok(own)
}

#[tokio::test]
async fn connections_dropped_for_too_many_logins_are_tried_again_and_told() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    for words in [&b"Exceeded MaxStartups\r\n"[..], b"Not allowed at this time\r\n", b""] {
        let access = host.access().via(reluctant(host.access().port, 2, words).await?)?;
        let done = on(&access, "exec").args(["--", "echo", "in"]).run().await?.ended_with(0);
        assert_eq!(done.text(), "in\n");
        assert_eq!(done.stderr.matches("trying again in").count(), 2, "{done:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_always_drops_is_given_up_within_the_limit_and_another_protocol_at_once() -> Result<()>
{
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let access = host.access().via(reluctant(host.access().port, 1000, b"").await?)?;
    let limited =
        on(&access, "exec").args(["--connect-timeout", "2", "--", "true"]).run().await?.ended_with(255);
    assert!(limited.stderr.contains("closed the connection before it said anything"), "{limited:?}");
    assert!(limited.stderr.contains("trying again in"), "{limited:?}");
    let access = host.access().via(reluctant(host.access().port, 1000, b"220 mail\r\n").await?)?;
    let other = on(&access, "exec").args(["--", "true"]).run().await?.ended_with(255);
    assert!(!other.stderr.contains("trying again"), "{other:?}");
    Ok(())
}

#[tokio::test]
async fn nothing_is_tried_again_once_the_server_has_said_its_version() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let access = host.access().via(reluctant(host.access().port, 1000, b"SSH-2.0-x\r\n").await?)?;
    let done = on(&access, "exec").args(["--", "true"]).run().await?.ended_with(255);
    assert!(!done.stderr.contains("trying again"), "{done:?}");
    assert!(done.stderr.contains(&name(&access)) || done.stderr.contains("127.0.0.1"), "{done:?}");
    Ok(())
}
