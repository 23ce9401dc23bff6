//! Hosts whose login starts a runner with an anchor in place of a shell (ForceCommand of sshd_config(5)): what a trusted key
//! signed is run there, and nothing else, whoever carries it.

#[path = "client_support/agent.rs"]
mod agent;
mod cli_support;

use std::path::{Path, PathBuf};

use agent::Agent;
use anyhow::{Context as _, Result, ensure};
use cli_support::{Ended, Sortie, Started, name, on, sortie};
use serde_json::{Value, json};
use sortie_tests::keys::KeyPair;
use sortie_tests::sshd::{Builder, Sshd};
use sortie_tests::{require_programs, require_root, runner};
use tokio::io::AsyncWriteExt as _;

const RUNNER: &str = "/opt/sortie/sortie-runner";
const ANCHORS: &str = "/etc/sortie/anchors";

/// A key that signs commands, in a file of its own.
struct Desk {
    directory: tempfile::TempDir,
    key: KeyPair,
    file: PathBuf,
}

impl Desk {
    fn new() -> Result<Self> {
        let (directory, key) = (tempfile::tempdir()?, KeyPair::generate()?);
        let file = directory.path().join("signing");
        write_private(&file, &key.private_openssh()?)?;
        std::fs::write(directory.path().join("signing.pub"), key.public_openssh()? + "\n")?;
        Ok(Self { directory, key, file })
    }

    fn public_file(&self) -> PathBuf {
        self.directory.path().join("signing.pub")
    }
}

fn write_private(file: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut created = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    Ok(created.write_all(text.as_bytes())?)
}

/// A host that is set up as docs/SECURITY.md says, with this anchor.
fn anchored(anchors: &str, mode: u32) -> Result<Builder> {
    let force = format!("ForceCommand {RUNNER} --anchor {ANCHORS} --lease 60 --concurrency 8");
    let program = std::fs::read(runner::binary()?)?;
    Ok(Sshd::builder().file(RUNNER, 0o755, program).file(ANCHORS, mode, anchors).config_line(&force))
}

fn host(desk: &Desk) -> Result<Sshd> {
    anchored(&format!("# who may command\n{} operator\n", desk.key.public_openssh()?), 0o644)?.start()
}

/// `sortie VERB --sign-with KEY -H HOST`.
fn signed(host: &Sshd, verb: &str, key: &Path) -> Sortie {
    on(host.access(), verb).arg("--sign-with").arg(key)
}

/// Whether anything was run: each command here makes a file.
async fn is_untouched(host: &Sshd, desk: &Desk) -> Result<()> {
    let looked = signed(host, "exec", &desk.file).args(["--", "test", "-e", "/tmp/ran"]).run().await?;
    ensure!(looked.status == 1, "{looked:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_trusted_key_signs_is_run_by_the_host_s_own_runner() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let desk = Desk::new()?;
    let host = host(&desk)?;
    let said = signed(&host, "exec", &desk.file).args(["--", "echo", "a b", "$HOME"]).run().await?;
    assert_eq!(said.fine().text(), "a b $HOME\n");
    let failed = signed(&host, "sh", &desk.file).arg("echo out; exit 7").run().await?.ended_with(7);
    assert_eq!(failed.text(), "out\n");
    // Input is read to its end, signed with the command, and checked before it begins.
    let input = "line\n".repeat(100_000);
    let fed = signed(&host, "exec", &desk.file).args(["--", "wc", "-c"]).run_with(input.as_bytes()).await?;
    assert_eq!(fed.fine().text().trim(), input.len().to_string());
    let put = signed(&host, "put", &desk.file).args(["-", "/tmp/put"]).run_with(input.as_bytes()).await?;
    put.ended_with(0);
    let back = signed(&host, "get", &desk.file).args(["/tmp/put", "-"]).run().await?;
    assert!(back.ended_with(0).text() == input, "it comes back as it went");
    Ok(())
}

#[tokio::test]
async fn more_input_than_can_be_signed_is_refused_before_anything_is_sent() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let desk = Desk::new()?;
    let host = host(&desk)?;
    let large = vec![b'x'; 6 * 1024 * 1024 + 1];
    let refused = signed(&host, "sh", &desk.file).arg("cat > /tmp/ran").run_with(&large).await?;
    refused.ended_with(255).says(&["at most 6291456 bytes"]);
    is_untouched(&host, &desk).await
}

#[tokio::test]
async fn an_agent_signs_too() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-agent", "ssh-add");
    let desk = Desk::new()?;
    let host = host(&desk)?;
    let agent = Agent::with(&desk.file).await?;
    std::fs::remove_file(&desk.file)?;
    let by_agent = |socket: &Path| signed(&host, "exec", &desk.public_file()).env("SSH_AUTH_SOCK", socket);
    let said = by_agent(&agent.socket).args(["--", "echo", "hi"]).run().await?;
    assert_eq!(said.fine().text(), "hi\n");
    let empty = Agent::start(|_| ()).await?;
    let refused = by_agent(&empty.socket).args(["--", "touch", "/tmp/ran"]).run().await?;
    refused.ended_with(255).says(&["the agent refused, or does not hold it"]);
    Ok(())
}

#[tokio::test]
async fn whoever_does_not_sign_or_signs_with_another_key_gets_nothing_run() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let (desk, stranger) = (Desk::new()?, Desk::new()?);
    let host = host(&desk)?;
    let unsigned = on(host.access(), "exec").args(["--", "touch", "/tmp/ran"]).run().await?;
    unsigned.ended_with(255).says(&["starts a runner of its own", "--sign-with"]);
    let other = signed(&host, "exec", &stranger.file).args(["--", "touch", "/tmp/ran"]).run().await?;
    other.ended_with(255).says(&["SIGNATURE", "none of those that this runner trusts"]);
    is_untouched(&host, &desk).await
}

#[tokio::test]
async fn a_login_with_a_shell_is_not_taken_for_an_anchor() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let (desk, stranger) = (Desk::new()?, Desk::new()?);
    let host = Sshd::builder().start()?;
    let refused = signed(&host, "exec", &desk.file).args(["--", "touch", "/tmp/ran"]).run().await?;
    refused.ended_with(255).says(&["asks nobody for a signature"]);
    // A runner that is sent can be told whom to trust, by whoever sends it.
    let trusting = |verb, key: &Path| signed(&host, verb, key).arg("--trust").arg(desk.public_file());
    let said = trusting("exec", &desk.file).args(["--", "echo", "hi"]).run().await?;
    assert_eq!(said.fine().text(), "hi\n");
    let other = trusting("exec", &stranger.file).args(["--", "touch", "/tmp/ran"]).run().await?;
    other.ended_with(255).says(&["SIGNATURE"]);
    let looked = on(host.access(), "exec").args(["--", "test", "-e", "/tmp/ran"]).run().await?;
    looked.ended_with(1);
    Ok(())
}

#[tokio::test]
async fn an_anchor_that_others_can_change_is_none() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let desk = Desk::new()?;
    // Whatever else can be wrong with it is shown beside the code that looks, `runner/src/anchor.rs`.
    let host = anchored(&desk.key.public_openssh()?, 0o664)?.start()?;
    let refused = signed(&host, "exec", &desk.file).args(["--", "touch", "/tmp/ran"]).run().await?;
    refused.ended_with(255).says(&[ANCHORS, "can be written by others than root"]);
    Ok(())
}

#[tokio::test]
async fn a_login_that_is_trusted_with_nothing_gets_root_s_runner_by_sudo() -> Result<()> {
    require_root!();
    require_programs!("sshd", "sudo");
    let desk = Desk::new()?;
    let line = format!("{RUNNER} --anchor {ANCHORS} --lease 60 --concurrency 8");
    let host = Sshd::builder()
        .file(RUNNER, 0o755, std::fs::read(runner::binary()?)?)
        .file(ANCHORS, 0o644, desk.key.public_openssh()?)
        .file("/etc/sudoers.d/sortie-anchor", 0o440, format!("ALL ALL=(root) NOPASSWD: {line}\n"))
        .config_line(&format!("ForceCommand sudo -n {line}"))
        .start()?;
    let said = signed(&host, "exec", &desk.file).args(["--", "id", "-u"]).run().await?;
    assert_eq!(said.fine().text(), "0\n");
    let unsigned = on(host.access(), "exec").args(["--", "id", "-u"]).run().await?;
    unsigned.ended_with(255).says(&["starts a runner of its own"]);
    Ok(())
}

#[tokio::test]
async fn only_a_runner_that_is_vouched_for_will_do_where_that_is_asked_for() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh-keygen");
    let desk = Desk::new()?;
    let host = host(&desk)?;
    // Runners of this machine's kind with a signed listing; the host's own is none of them.
    let runners = desk.directory.path().join("runners");
    std::fs::create_dir(&runners)?;
    let machine = std::env::consts::ARCH;
    std::fs::write(runners.join(format!("sortie-runner-{machine}-unknown-linux-musl")), "another")?;
    let signed_with = signed(&host, "exec", &desk.file).arg("--runners").arg(&runners);
    let missing = signed_with.arg("--require-signed-runners").arg(desk.public_file());
    // No listing vouches for what is there, so nothing is tried at all.
    let refused = missing.args(["--", "touch", "/tmp/ran"]).run().await?;
    ensure!(refused.status != 0, "{refused:?}");
    is_untouched(&host, &desk).await
}

/// Frames on their way to a host, carried by somebody who holds no key.
struct Carrier(Started);

impl Carrier {
    /// Connects; the READY.
    async fn start(host: &Sshd) -> Result<(Self, String)> {
        let mut pipe = sortie("pipe").login(host.access()).arg(name(host.access())).piped().start()?;
        let ready = pipe.line().await?;
        ensure!(ready.contains("\"READY\""), "{ready}");
        Ok((Self(pipe), ready))
    }

    async fn send(&mut self, lines: &str) -> Result<()> {
        let stdin = self.0.stdin.as_mut().context("no standard input")?;
        stdin.write_all(lines.as_bytes()).await?;
        Ok(stdin.flush().await?)
    }

    async fn answer(&mut self) -> Result<Value> {
        Ok(serde_json::from_str(&self.0.line().await?)?)
    }

    async fn finish(mut self) -> Result<Ended> {
        self.0.stdin = None;
        self.0.end().await
    }
}

fn exec(id: &str, line: &str, more: Value) -> String {
    let mut params = json!({"command": line, "capture_out": true});
    if let (Some(params), Value::Object(more)) = (params.as_object_mut(), more) {
        params.extend(more);
    }
    json!({"type": "CMD", "data": {"id": id, "type": "exec", "timeout": 30, "params": params}}).to_string()
        + "\n"
}

/// `sortie sign` with a READY and frames.
async fn sign(desk: &Desk, more: &[&str], ready: &str, frames: &str) -> Result<Ended> {
    let input = format!("{ready}{frames}");
    sortie("sign")
        .arg("--sign-with")
        .arg(&desk.file)
        .arg("--batch")
        .args(more)
        .run_with(input.as_bytes())
        .await
}

#[tokio::test]
async fn one_party_signs_and_another_carries() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let desk = Desk::new()?;
    let host = host(&desk)?;
    let (mut carrier, ready) = Carrier::start(&host).await?;
    let frames = exec("a", "echo first", json!({}))
        + &exec("b", "cat", json!({"stdin_from": "input"}))
        + "{\"type\":\"INPUT\",\"data\":{\"command_id\":\"b\",\"data\":\"some \"}}\n"
        + "{\"type\":\"INPUT\",\"data\":{\"command_id\":\"b\",\"data\":\"input\",\"eof\":true}}\n";
    let lines = sign(&desk, &[], &ready, &frames).await?.fine();
    carrier.send(lines.text()).await?;
    let mut outputs = Vec::new();
    while outputs.len() < 2 {
        let frame = carrier.answer().await?;
        match frame["type"].as_str() {
            Some("DONE") => {
                outputs.push(frame["data"]["result"]["stdout"].as_str().unwrap_or_default().to_owned());
            }
            Some("CREDIT") => {}
            _ => anyhow::bail!("{frame}"),
        }
    }
    outputs.sort();
    assert_eq!(outputs, ["first\n", "some input"]);
    // A second call signs on for the same session; what was signed before is of no use again.
    let more = sign(&desk, &[], &ready, &exec("c", "echo second", json!({}))).await?.fine();
    carrier.send(more.text()).await?;
    assert_eq!(carrier.answer().await?["data"]["result"]["stdout"], "second\n");
    carrier.send(more.text()).await?;
    let replayed = carrier.answer().await?;
    assert_eq!(replayed["data"]["details"]["reason"], "replayed", "{replayed}");
    // The carrier's own words count for nothing.
    carrier.send(&exec("d", "touch /tmp/ran", json!({}))).await?;
    let own = carrier.answer().await?;
    assert_eq!(own["data"]["details"]["reason"], "unsigned", "{own}");
    // Nor does what was signed for this session in another.
    let (mut other, _) = Carrier::start(&host).await?;
    other.send(lines.text()).await?;
    let elsewhere = other.answer().await?;
    assert_eq!(elsewhere["data"]["details"]["reason"], "other_session", "{elsewhere}");
    other.finish().await?;
    carrier.finish().await?.ended_with(0);
    is_untouched(&host, &desk).await
}

#[tokio::test]
async fn nothing_is_signed_for_whom_it_is_not_meant() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let desk = Desk::new()?;
    let host = host(&desk)?;
    let (carrier, ready) = Carrier::start(&host).await?;
    let command = exec("a", "touch /tmp/ran", json!({}));
    let (plain, signed) = ("\"signed\":false", "\"signed\":true");
    for (flags, ready, frames, part) in [
        (&["--host", "elsewhere"][..], ready.as_str(), command.as_str(), "was not asked for"),
        (&["--user", "somebody"], &ready, &command, "was not asked for"),
        (&[], &ready.replace(signed, plain), &command, "takes unsigned commands too"),
        (&[], "", &command, "expected the READY"),
        (&[], &ready, "nonsense\n", "frame 2 of standard input"),
        (
            &[],
            &ready,
            &exec("a", "cat", json!({"stdin_from": "input"})),
            "ended before the input of a command",
        ),
    ] {
        let refused = sign(&desk, flags, ready, frames).await?.ended_with(255).says(&[part]);
        assert!(refused.stdout.is_empty(), "{refused:?}");
    }
    let hostname: Value = serde_json::from_str(&ready)?;
    let facts = &hostname["data"]["host"];
    let (host_name, user) =
        (facts["hostname"].as_str().unwrap_or_default(), facts["user"].as_str().unwrap_or_default());
    sign(&desk, &["--host", host_name, "--user", user], &ready, &command).await?.fine();
    carrier.finish().await?;
    is_untouched(&host, &desk).await
}
