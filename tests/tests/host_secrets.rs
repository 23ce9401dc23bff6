//! Planted secrets, looked for everywhere while they are used and afterwards: the arguments and environment of every
//! process of the host and of this machine, files, the journal, output, events, errors, diffs, traces and the audit log.

mod become_support;
mod cli_support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use become_support::PASSWORD;
use cli_support::{Sortie, name, sortie};
use sortie_tests::for_each_kind;
use sortie_tests::host::{Host, Kind, Lab};
use sortie_tests::keys::KeyPair;
use tempfile::TempDir;

/// Nothing else looks like these.
const BECOME: &str = "B3c0me-of-n0body-else";
const PASSPHRASE: &str = "Pa55phrase-f0r-one-key";
const WRONG: &str = "Wr0ng-but-still-secret";
const CONTENT: &str = "S3nsitive-c0ntent-of-a-file";
const SECRETS: [&str; 5] = [PASSWORD, BECOME, PASSPHRASE, WRONG, CONTENT];

fn found_in(content: &[u8]) -> Option<&'static str> {
    SECRETS.into_iter().find(|secret| content.windows(secret.len()).any(|window| window == secret.as_bytes()))
}

/// Looks at every process of this machine, those of its hosts among them, over and over.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u32, String>>,
}

impl Watcher {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut looks = 0;
            loop {
                let last = stopped.load(Ordering::SeqCst);
                for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
                    if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
                        continue;
                    }
                    for file in ["cmdline", "environ"] {
                        let content = fs::read(process.path().join(file)).unwrap_or_default();
                        if let Some(secret) = found_in(&content) {
                            return Err(format!("{secret} in {file} of {:?}", process.path()));
                        }
                    }
                }
                looks += 1;
                if last {
                    return Ok(looks);
                }
            }
        });
        Self { stop, thread }
    }

    /// How often it looked at all of them.
    fn end(self) -> Result<u32> {
        self.stop.store(true, Ordering::SeqCst);
        let looks = self.thread.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
        looks.map_err(anyhow::Error::msg)
    }
}

/// The controller's side: the files with secrets that a user has, and everything that comes of them.
struct Desk {
    secrets: TempDir,
    /// `HOME`, `TMPDIR` and the audit log.
    traces: TempDir,
    said: Vec<u8>,
}

impl Desk {
    fn new() -> Result<Self> {
        Ok(Self { secrets: tempfile::tempdir()?, traces: tempfile::tempdir()?, said: Vec::new() })
    }

    fn secret(&self, secret: &str) -> Result<PathBuf> {
        let number = SECRETS.iter().position(|one| *one == secret).context("no secret of these")?;
        let path = self.secrets.path().join(format!("secret-{number}"));
        fs::write(&path, format!("{secret}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    /// `sortie VERB` on the host, with all that tells what happens, and by this way of logging in.
    fn sortie(&self, host: &Host, verb: &str, login: &[&Path]) -> Sortie {
        let access = host.access("deploy");
        let known = access.known_hosts.clone();
        let call = sortie(verb).args(["-H", &name(&access), "-F", "none", "--batch", "--trace", "--json"]);
        let call = call.arg("--known-hosts").arg(known).arg("--audit").arg(self.traces.path().join("audit"));
        call.env("TMPDIR", self.traces.path()).env("HOME", self.traces.path()).args(login)
    }

    async fn run(&mut self, call: Sortie, input: &str, status: i32) -> Result<()> {
        let ended = call.run_with(input.as_bytes()).await?.ended_with(status);
        self.said.extend(&ended.stdout);
        self.said.extend(ended.stderr.as_bytes());
        Ok(())
    }
}

for_each_kind!(no_secret_is_anywhere: Debian12);
async fn no_secret_is_anywhere(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = become_support::host(&lab, kind, "deploy ALL=(ALL) ALL\n").await?;
    host.exec_with(["chpasswd"], format!("root:{BECOME}\n").as_bytes()).await?.fine()?;
    let mut desk = Desk::new()?;
    let key = KeyPair::generate()?;
    let encrypted = key.write_encrypted(desk.secrets.path(), "id", PASSPHRASE)?;
    let authorized = "install -d -m 700 -o deploy /home/deploy/.ssh && cat >> /home/deploy/.ssh/authorized_keys \
                      && chown deploy /home/deploy/.ssh/authorized_keys";
    let public = key.public_openssh()? + "\n";
    host.exec_with(["/bin/sh", "-c", authorized], public.as_bytes()).await?.fine()?;

    let password = desk.secret(PASSWORD)?;
    let by_password = [Path::new("--password-file"), &password];
    let phrase = desk.secret(PASSPHRASE)?;
    let by_key = [Path::new("-i"), &encrypted, Path::new("--passphrase-file"), &phrase];
    let wrong = desk.secret(WRONG)?;
    let by_wrong = [Path::new("--password-file"), &wrong];
    let (right, wrong_become) = (desk.secret(BECOME)?, wrong.clone());
    let su = |file: &Path| {
        let words = ["--become", "--become-method", "su", "--become-pass-file"].map(PathBuf::from);
        words.into_iter().chain([file.to_owned()]).collect::<Vec<_>>()
    };

    let watcher = Watcher::start();
    let look = "id -un; env; ps axeww";
    let call = desk.sortie(&host, "sh", &by_password).args(su(&right)).arg(look);
    desk.run(call, "", 0).await?;
    let call = desk.sortie(&host, "sh", &by_password).arg("--ssh").args(su(&right)).arg(look);
    desk.run(call, "", 0).await?;
    let call = desk.sortie(&host, "sh", &by_key).arg(look);
    desk.run(call, "", 0).await?;
    let call = desk.sortie(&host, "sh", &by_wrong).arg("true");
    desk.run(call, "", 255).await?;
    let call = desk.sortie(&host, "sh", &by_wrong).arg("--ssh").arg("true");
    desk.run(call, "", 255).await?;
    let call = desk.sortie(&host, "sh", &by_key).args(su(&wrong_become)).arg("true");
    desk.run(call, "", 255).await?;
    for (check, extra) in [(true, "old"), (false, "old"), (false, "new")] {
        let call = desk.sortie(&host, "put", &by_key).args(su(&right)).args(["--sensitive", "--diff"]);
        let call = if check { call.arg("--check") } else { call };
        let content = format!("{CONTENT} {extra}\n");
        desk.run(call.args(["-", "/root/kept"]), &content, 0).await?;
    }
    let looks = watcher.end()?;
    ensure!(looks > 3, "looked {looks} times only");

    let said = String::from_utf8_lossy(&desk.said).into_owned();
    ensure!(said.contains("root") && said.contains("refused"), "it did not happen: {said}");
    ensure!(found_in(&desk.said).is_none(), "{:?} was said: {said}", found_in(&desk.said));
    let left = files(desk.traces.path())?;
    ensure!(left.iter().any(|path| path.ends_with("audit")), "no audit log: {left:?}");
    for path in left {
        ensure!(found_in(&fs::read(&path)?).is_none(), "{} has one", path.display());
    }

    // The patterns come by a pipe, so that looking for them leaves none.
    let patterns = SECRETS.join("\n") + "\n";
    let everywhere =
        "grep -rlaF -f - --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev / 2>/dev/null; true";
    let found = host.exec_with(["/bin/sh", "-c", everywhere], patterns.as_bytes()).await?.fine()?;
    assert_eq!(found.lines().collect::<Vec<_>>(), ["/root/kept"]);
    let journal = host.sh("journalctl --no-pager -o export").await?.fine()?;
    ensure!(journal.contains("sshd"), "the journal is not there");
    ensure!(found_in(journal.as_bytes()).is_none(), "the journal has one");
    host.quiet_of("sortie").await
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

for_each_kind!(nobody_else_of_the_login_looks_into_the_runner: Debian12);
async fn nobody_else_of_the_login_looks_into_the_runner(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = become_support::host(&lab, kind, "# nobody\n").await?;
    // Its own environment, then those of the keeper, the server and the guardian above it. They have no core dumps by the
    // same rule (core(5)).
    let line = "cat /proc/$$/environ >/dev/null && echo own; p=$$
        for which in keeper server guardian; do
            p=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$p/status)
            cat /proc/$p/environ >/dev/null 2>&1 && echo $which is open; echo $(cat /proc/$p/comm)
        done";
    let done = cli_support::on(&host.access("deploy"), "sh").arg(line).run().await?.fine();
    assert_eq!(done.text().lines().filter(|line| *line == "own").count(), 1, "{done:?}");
    assert_eq!(done.text().matches("sortie").count(), 3, "{done:?}");
    assert!(!done.text().contains("is open"), "{done:?}");
    Ok(())
}

#[tokio::test]
async fn the_command_leaves_no_core_dump_of_its_memory() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let dumping = |line: String| {
        let mut command = tokio::process::Command::new("sh");
        let line = format!("ulimit -c unlimited; cd {}; {line}", directory.path().display());
        command.args(["-c", &line]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        command.kill_on_drop(true);
        command
    };
    let control = dumping("kill -QUIT $$".into()).status().await?;
    ensure!(
        control.core_dumped(),
        "this machine writes no core dumps at all, so nothing is shown: {control:?}"
    );
    let program = cli_support::program();
    let runners = sortie_tests::runner::directory()?;
    let line = format!(
        "exec {} sh --local --runners {} 'echo up; exec sleep 1000'",
        program.display(),
        runners.display()
    );
    let mut child = dumping(line).spawn()?;
    let mut lines = tokio::io::BufReader::new(child.stdout.take().context("no standard output")?);
    let mut up = String::new();
    let read = tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut up);
    sortie_tests::within("the command", read).await??;
    assert_eq!(up, "up\n");
    let pid = i32::try_from(child.id().context("it has ended")?)?;
    sortie_tests::process::kill(pid, nix::sys::signal::Signal::SIGQUIT)?;
    let ended = sortie_tests::within("its end", child.wait()).await??;
    assert!(ended.signal() == Some(3) && !ended.core_dumped(), "{ended:?}");
    Ok(())
}
