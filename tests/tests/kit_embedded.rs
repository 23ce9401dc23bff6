//! Proves the embedded SSH server with OpenSSH's own client, so that no mistake of one library about the protocol can
//! hide another.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use russh::client;
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use sortie_tests::access::Access;
use sortie_tests::embedded::Embedded;
use sortie_tests::keys::KeyPair;
use sortie_tests::{require_programs, within};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

async fn ssh(access: &Access, command: &str, input: &[u8]) -> Result<Output> {
    let mut ssh = Command::from(access.ssh());
    ssh.arg(command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = ssh.spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let input = input.to_vec();
    // ssh may end without having read it all.
    let writing = tokio::spawn(async move { stdin.write_all(&input).await });
    let output = within("ssh", child.wait_with_output()).await??;
    drop(writing);
    Ok(output)
}

#[tokio::test]
async fn a_command_gets_its_input_and_gives_both_streams_and_its_status() -> Result<()> {
    require_programs!("ssh");
    let server = Embedded::builder().start().await?;
    let output = ssh(server.access(), "cat; echo problem >&2; exit 3", b"in\0put\xff").await?;
    assert_eq!(output.stdout, b"in\0put\xff");
    assert_eq!(output.stderr, b"problem\n");
    assert_eq!(output.status.code(), Some(3));
    Ok(())
}

#[tokio::test]
async fn the_command_line_reaches_the_shell_unchanged() -> Result<()> {
    require_programs!("ssh");
    let server = Embedded::builder().start().await?;
    let output = ssh(server.access(), "printf '%s|' 'a  b' \"\\$HOME\" '!' \"$USER\" '\n'", b"").await?;
    assert_eq!(String::from_utf8(output.stdout)?, "a  b|$HOME|!|deploy|\n|");
    Ok(())
}

#[tokio::test]
async fn both_directions_at_once_never_deadlock() -> Result<()> {
    require_programs!("ssh");
    let server = Embedded::builder().start().await?;
    // Far more than all windows and pipes together, and ssh reads and writes as it can.
    let input: Vec<u8> = (0..64 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let output = ssh(server.access(), "cat", &input).await?;
    assert!(output.stdout == input, "{} bytes came back, or other ones", output.stdout.len());
    Ok(())
}

#[tokio::test]
async fn input_that_a_child_does_not_read_does_not_hold_up_its_output() -> Result<()> {
    require_programs!("ssh");
    let server = Embedded::builder().start().await?;
    let output =
        ssh(server.access(), "head -c 20000000 /dev/zero | tr '\\0' x; wc -c", &vec![b'y'; 20_000_000])
            .await?;
    ensure!(output.stdout.starts_with(&[b'x'; 100]), "no output");
    assert!(output.stdout.ends_with(b"20000000\n"));
    Ok(())
}

#[tokio::test]
async fn a_command_killed_by_a_signal_is_reported_so() -> Result<()> {
    let mut server = Embedded::builder().start().await?;
    let messages = exec(&mut server, "kill -TERM $$", b"").await?;
    assert!(
        messages
            .iter()
            .any(|m| matches!(m, russh::ChannelMsg::ExitSignal { signal_name: russh::Sig::TERM, .. }))
    );
    Ok(())
}

#[tokio::test]
async fn when_the_connection_drops_the_child_sees_its_pipes_close_and_no_signal() -> Result<()> {
    require_programs!("ssh");
    let server = Embedded::builder().start().await?;
    let script =
        "trap 'echo signal > ended' TERM HUP; echo up; read -r line; echo eof > ended; exec sleep 1000";
    let mut ssh = Command::from(server.access().ssh());
    let mut client = ssh.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut up = [0; 3];
    let stdout = client.stdout.as_mut().context("stdout")?;
    within("the child", tokio::io::AsyncReadExt::read_exact(stdout, &mut up)).await??;
    client.kill().await?;
    let ended = server.home().join("ended");
    sortie_tests::eventually("the child's last word", || {
        let text = std::fs::read_to_string(&ended)?;
        ensure!(text == "eof\n", "{text:?}");
        Ok(())
    })
    .await?;
    // As with sshd, what does not care about its pipes lives on; the kit sees it.
    let left = server.processes();
    assert!(left.iter().any(|process| process.command == "sleep 1000"), "{left:?}");
    let mark = left[0].pid;
    drop(server);
    sortie_tests::eventually("the end of what was left", || {
        let state = sortie_tests::process::Process::read(mark).map(|process| process.state);
        ensure!(state.is_none_or(|state| state == 'Z'), "{state:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn passwords_and_unknown_keys_are_judged() -> Result<()> {
    let mut server = Embedded::builder().password("right").start().await?;
    let mut session = connect(&mut server).await?;
    assert!(!session.authenticate_password("deploy", "wrong").await?.success());
    let stranger = PrivateKeyWithHashAlg::new(Arc::new(KeyPair::generate()?.private().clone()), None);
    assert!(!session.authenticate_publickey("deploy", stranger).await?.success());
    assert!(!session.authenticate_password("other", "right").await?.success());
    assert!(session.authenticate_password("deploy", "right").await?.success());
    Ok(())
}

#[tokio::test]
async fn another_host_key_than_the_known_one_is_what_openssh_refuses() -> Result<()> {
    require_programs!("ssh");
    let server = Embedded::builder().start().await?;
    let known = KeyPair::generate()?.known_hosts_line("127.0.0.1", server.access().port)?;
    std::fs::write(&server.access().known_hosts, known + "\n")?;
    let output = ssh(server.access(), "true", b"").await?;
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8(output.stderr)?.contains("REMOTE HOST IDENTIFICATION HAS CHANGED"));
    Ok(())
}

#[tokio::test]
async fn a_session_beyond_the_limit_is_refused_and_the_first_lives_on() -> Result<()> {
    let mut server = Embedded::builder().max_sessions(1).start().await?;
    let session = login(&mut server).await?;
    let first = session.channel_open_session().await?;
    assert!(session.channel_open_session().await.is_err());
    first.exec(true, "exit 0").await?;
    Ok(())
}

#[tokio::test]
async fn a_refused_exec_is_answered_with_failure() -> Result<()> {
    let mut server = Embedded::builder().refuse_exec().start().await?;
    let session = login(&mut server).await?;
    let mut channel = session.channel_open_session().await?;
    channel.exec(true, "true").await?;
    loop {
        match within("the answer", channel.wait()).await? {
            Some(russh::ChannelMsg::WindowAdjusted { .. }) => {}
            Some(russh::ChannelMsg::Failure) => return Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn noise_comes_first_and_a_delay_changes_nothing_else() -> Result<()> {
    require_programs!("ssh");
    let builder = Embedded::builder()
        .noise("Welcome!\n")
        .banner("secret place\n")
        .delay_exec(Duration::from_millis(20));
    let server = builder.start().await?;
    let output = ssh(server.access(), "cat", b"input").await?;
    assert_eq!(output.stdout, b"Welcome!\ninput");
    Ok(())
}

#[tokio::test]
async fn a_cut_after_input_gives_the_child_exactly_so_many_bytes() -> Result<()> {
    require_programs!("ssh");
    for bytes in [0, 1, 4_095, 100_000] {
        let server = Embedded::builder().cut_after_input(bytes).start().await?;
        let output = ssh(server.access(), "cat > got; mv got done", &[b'z'; 200_000]).await?;
        assert_eq!(output.status.code(), Some(255));
        let done = server.home().join("done");
        let size = sortie_tests::eventually("the file", || Ok(std::fs::metadata(&done)?.len())).await?;
        assert_eq!(size, bytes);
    }
    Ok(())
}

#[tokio::test]
async fn a_cut_after_output_gives_the_client_exactly_so_many_bytes() -> Result<()> {
    // Not by OpenSSH's client: at a disconnect it forgets what it has received and not yet printed.
    for bytes in [1, 5_000, 100_000] {
        let mut server = Embedded::builder().cut_after_output(bytes).start().await?;
        let messages = exec(&mut server, "head -c 200000 /dev/zero", b"").await?;
        let got: usize = messages
            .iter()
            .map(|m| if let russh::ChannelMsg::Data { data } = m { data.len() } else { 0 })
            .sum();
        assert_eq!(got as u64, bytes);
        assert!(!messages.iter().any(|m| matches!(m, russh::ChannelMsg::Close)), "{messages:?}");
    }
    Ok(())
}

#[tokio::test]
async fn its_files_and_processes_are_its_own() -> Result<()> {
    require_programs!("ssh");
    let server = Embedded::builder().start().await?;
    assert!(server.files()?.is_empty());
    let script = "echo x > $TMPDIR/a; mkdir $XDG_RUNTIME_DIR/b; echo y > c; setsid sleep 1000 >/dev/null 2>&1 </dev/null &";
    let output = ssh(server.access(), script, b"").await?;
    ensure!(output.status.success());
    let files: Vec<_> = server.files()?.iter().map(|path| path.display().to_string()).collect();
    assert_eq!(files, ["home/c", "run/b", "tmp/a"]);
    sortie_tests::eventually("the sleeper alone", || {
        let processes = server.processes();
        ensure!(processes.len() == 1 && processes[0].command == "sleep 1000", "{processes:?}");
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn the_private_key_is_readable_by_its_owner_alone() -> Result<()> {
    let server = Embedded::builder().start().await?;
    let mode = std::fs::metadata(&server.access().identity)?.permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    Ok(())
}

#[tokio::test]
async fn an_encrypted_key_file_opens_with_its_passphrase_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let key = KeyPair::generate()?;
    let path = key.write_encrypted(dir.path(), "key", "let me in")?;
    assert!(russh::keys::load_secret_key(&path, None).is_err());
    assert!(russh::keys::load_secret_key(&path, Some("wrong")).is_err());
    let read = russh::keys::load_secret_key(&path, Some("let me in"))?;
    assert_eq!(read.public_key().key_data(), key.public().key_data());
    Ok(())
}

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

async fn connect(server: &mut Embedded) -> Result<client::Handle<Trusting>> {
    Ok(client::connect_stream(Arc::default(), server.connect(), Trusting).await?)
}

async fn login(server: &mut Embedded) -> Result<client::Handle<Trusting>> {
    let mut session = connect(server).await?;
    let key = russh::keys::load_secret_key(&server.access().identity, None)?;
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    ensure!(session.authenticate_publickey("deploy", key).await?.success());
    Ok(session)
}

async fn exec(server: &mut Embedded, command: &str, input: &[u8]) -> Result<Vec<russh::ChannelMsg>> {
    let session = login(server).await?;
    let mut channel = session.channel_open_session().await?;
    channel.exec(true, command).await?;
    channel.data_bytes(input.to_vec()).await?;
    channel.eof().await?;
    let mut messages = Vec::new();
    while let Some(message) = within("the end of the command", channel.wait()).await? {
        messages.push(message);
    }
    Ok(messages)
}
