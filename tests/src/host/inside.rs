//! Looking into a host and working in it out of band, without its SSH server: programs, files, accounts, processes.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::PoisonError;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::Host;
use crate::access::Access;
use crate::process::{self, Process};
use crate::sshd::HostProcess;
use crate::sshd::inspect::inner_pids;

/// How a program in a host ended, and what it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its exit status; 128 + n after signal n.
    pub status: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Its standard output.
    ///
    /// # Errors
    /// When the status is not 0; the error has all of it.
    pub fn fine(self) -> Result<String> {
        ensure!(self.status == 0, "it failed: {self:?}");
        Ok(self.stdout)
    }
}

impl Host {
    /// Runs a program in the host as root, with no standard input, for at most [`crate::DEADLINE`].
    ///
    /// # Errors
    /// When the host is off, or the program cannot be started or does not end.
    pub async fn exec<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Ran> {
        self.exec_with(argv, b"").await
    }

    /// As [`Host::exec`], with this on its standard input.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub async fn exec_with<S: AsRef<OsStr>>(
        &self,
        argv: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> Result<Ran> {
        let (out, stdout, stderr) = self.raw(argv, input).await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ran { status: out, stdout: text(stdout), stderr: text(stderr) })
    }

    async fn raw<S: AsRef<OsStr>>(
        &self,
        argv: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> Result<(i32, Vec<u8>, Vec<u8>)> {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.leader()?.to_string(), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--"])
            .args(argv);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("starting nsenter")?;
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read its input to the end has its reasons.
                let _ = stdin.write_all(input).await;
            }
        };
        let ended = async { tokio::join!(feed, child.wait_with_output()).1 };
        let output = crate::within("the end of a program in the host", ended).await??;
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        let status = output.status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0));
        Ok((status, output.stdout, output.stderr))
    }

    /// Runs a line of `sh` in the host as root.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub async fn sh(&self, script: &str) -> Result<Ran> {
        self.exec(["/bin/sh", "-c", script]).await
    }

    /// Writes a file, owned by root; one that is there is replaced. Parents must be there.
    ///
    /// # Errors
    /// When the host is off or the file cannot be written.
    pub async fn write(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        let mode = format!("{mode:o}");
        // Readable by nobody else at any time.
        let script = "umask 077 && cat > \"$1\" && chmod \"$2\" \"$1\" && chown 0:0 \"$1\"";
        let argv = ["/bin/sh", "-c", script, "sh", path, &mode];
        self.exec_with(argv, content.as_ref()).await?.fine().with_context(|| format!("writing {path}"))?;
        Ok(())
    }

    /// The content of a file.
    ///
    /// # Errors
    /// When the host is off or the file cannot be read.
    pub async fn read(&self, path: &str) -> Result<Vec<u8>> {
        let (status, content, stderr) = self.raw(["cat", "--", path], b"").await?;
        ensure!(status == 0, "reading {path}: {}", String::from_utf8_lossy(&stderr));
        Ok(content)
    }

    /// Adds an account with a home directory and a group of the same name. The lab's key lets it in, and so does the
    /// password, if the server takes any.
    ///
    /// # Errors
    /// When the host is off or the account cannot be made.
    pub async fn add_user(&self, name: &str, password: Option<&str>) -> Result<Access> {
        let key = self.authorized_key()?;
        let input = format!("{key}\n{}\n", password.unwrap_or_default());
        self.exec_with(["/bin/sh", "-c", ADD_USER, "sh", name], input.as_bytes())
            .await?
            .fine()
            .with_context(|| format!("adding the user {name}"))?;
        Ok(self.access(name))
    }

    /// All processes of the host, with those of services and of containers in it; the host's first has the pid 1.
    ///
    /// # Errors
    /// When the host is off.
    pub fn processes(&self) -> Result<Vec<HostProcess>> {
        let leader = self.leader()?;
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(leader).context("the host has just ended")?;
        let inner =
            |pid: i32| if pid == 0 { None } else { inner_pids(pid).and_then(|pids| pids.last().copied()) };
        let found =
            process::all().into_iter().filter(|process| namespace(process.pid).as_ref() == Some(&own));
        let shown = |Process { pid, ppid, state, name, command }: Process| {
            let parent = if namespace(ppid).as_ref() == Some(&own) { inner(ppid) } else { None };
            Some(HostProcess {
                pid: inner(pid)?,
                ppid: parent.unwrap_or(0),
                machine_pid: pid,
                state,
                name,
                command,
            })
        };
        Ok(found.filter_map(shown).collect())
    }

    /// Signals a process by its pid in the host.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&self, pid: i32, signal: Signal) -> Result<()> {
        let processes = self.processes()?;
        let process = processes.iter().find(|process| process.pid == pid);
        let process = process.with_context(|| format!("no process {pid} on {}", self.name))?;
        process::kill(process.machine_pid, signal)
    }

    /// Waits until no process of the host has `word` in its name or arguments.
    ///
    /// # Errors
    /// When one has it at the deadline, or the host is off.
    pub async fn quiet_of(&self, word: &str) -> Result<()> {
        crate::eventually(&format!("no process of {word:?} left on {}", self.name), || {
            let mut left = self.processes()?;
            left.retain(|process| {
                (process.name.contains(word) || process.command.contains(word)) && process.state != 'Z'
            });
            ensure!(left.is_empty(), "left: {left:?}");
            Ok(())
        })
        .await
    }

    /// Where a path of the host is found from this machine. An absolute symbolic link on the way leads astray.
    ///
    /// # Errors
    /// When the host is off.
    pub fn path(&self, path: &str) -> Result<std::path::PathBuf> {
        Ok(format!("/proc/{}/root{path}", self.leader()?).into())
    }

    /// The host's first process as this machine sees it.
    ///
    /// # Errors
    /// When the host is off.
    pub fn leader(&self) -> Result<i32> {
        let depth = inner_pids(self.shared.init).context("the lab has ended")?.len() + 1;
        let is_leader = |pid: i32| {
            inner_pids(pid).is_some_and(|pids| pids.len() == depth && pids.last() == Some(&1))
                && fs::read_to_string(format!("/proc/{pid}/cgroup"))
                    .is_ok_and(|text| text.contains(&format!("/{}/{}", self.shared.cgroup, self.name)))
                && Process::read(pid).is_some_and(|process| !process.is_zombie())
        };
        let mut known = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = *known
            && is_leader(pid)
        {
            return Ok(pid);
        }
        let group = self.cgroup();
        let mut pids = Vec::new();
        collect_pids(&group, &mut pids);
        *known = pids.into_iter().find(|pid| is_leader(*pid));
        match *known {
            Some(pid) => Ok(pid),
            None => bail!("{} is off", self.name),
        }
    }

    /// Where its control group is found from this machine; the host's own is somewhere below.
    pub(super) fn cgroup(&self) -> std::path::PathBuf {
        self.shared.path(Path::new("/sys/fs/cgroup").join(&self.shared.cgroup).join(&self.name))
    }
}

/// Every process of a control group and those below it.
fn collect_pids(group: &Path, pids: &mut Vec<i32>) {
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
    let Ok(entries) = fs::read_dir(group) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_pids(&entry.path(), pids);
        }
    }
}

/// For `sh`: the name is its argument, its input the key and the password, which is not for anybody's eyes in argv.
/// busybox has neither `useradd` nor `adduser` on Debian.
const ADD_USER: &str = r#"set -e
name=$1; IFS= read -r key; IFS= read -r password || :
if command -v useradd >/dev/null; then
    useradd --create-home --user-group --shell /bin/bash "$name"
    [ -z "$password" ] || printf '%s:%s\n' "$name" "$password" | chpasswd
else
    id=$(( $(cut -d: -f3 /etc/passwd | sort -n | tail -n 1) + 1 )); [ "$id" -ge 1000 ] || id=1000
    hash='*'
    [ -z "$password" ] || hash=$(printf '%s\n' "$password" | mkpasswd -m sha512 -P 0)
    echo "$name:x:$id:$id::/home/$name:/bin/sh" >> /etc/passwd
    echo "$name:x:$id:" >> /etc/group
    echo "$name:$hash:19000:0:99999:7:::" >> /etc/shadow
    mkdir -p "/home/$name"; chmod 755 "/home/$name"; chown "$id:$id" "/home/$name"
fi
home=$(grep "^$name:" /etc/passwd | cut -d: -f6)
mkdir -p "$home/.ssh"; printf '%s\n' "$key" > "$home/.ssh/authorized_keys"
chmod 700 "$home/.ssh"; chmod 600 "$home/.ssh/authorized_keys"; chown -R "$name:$name" "$home/.ssh"
"#;
