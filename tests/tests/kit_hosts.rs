//! The hosts of the kit themselves: that they are what they say, that faults are what they say, and that nothing of them
//! outlives the test.

mod cli_support;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cli_support::on;
use nix::sys::signal::Signal;
use sortie_tests::host::{Cut, Host, Kind, Lab};
use sortie_tests::process::{self, Process};
use sortie_tests::{eventually, for_each_kind, require_kind, within};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

/// What `ssh` prints for a command, and how it ended.
async fn ssh(host: &Host, user: &str, command: &str) -> Result<(Option<i32>, String)> {
    let mut ssh = tokio::process::Command::from(host.access(user).ssh());
    let output = ssh.arg(command).output().await?;
    ensure!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code(), String::from_utf8(output.stdout)?))
}

for_each_kind!(
    it_boots_and_lets_in: Debian11, Debian12, Debian13, OpenRc, Busybox, Dnf4, Dnf5, Zypper, Pacman, Arm64
);
async fn it_boots_and_lets_in(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).name("web1").file("/etc/kit/note", "written before", 0o640).start().await?;
    if kind.has_systemd() {
        let state = host.exec(["systemctl", "is-system-running", "--wait"]).await?;
        let failed = host.sh("systemctl --failed --no-legend").await?.fine()?;
        assert_eq!((state.stdout.trim(), failed.as_str()), ("running", ""));
    }
    assert_eq!(
        ssh(&host, "root", "hostname; cat /etc/kit/note").await?,
        (Some(0), "web1\nwritten before".into())
    );
    assert_eq!(
        host.sh("cat /proc/1/comm").await?.fine()?,
        if kind.has_systemd() { "systemd\n" } else { "init\n" }
    );
    assert_eq!(host.processes()?.iter().filter(|process| process.pid == 1).count(), 1);

    let access = host.add_user("deploy", Some("a password")).await?;
    assert_eq!(ssh(&host, "deploy", "id -un; pwd").await?, (Some(0), "deploy\n/home/deploy\n".into()));
    host.write("/root/some file", b"\0\xff\n", 0o600).await?;
    assert_eq!(host.read("/root/some file").await?, b"\0\xff\n");
    assert_eq!(host.sh("exit 7").await?.status, 7);
    let ended = on(&access, "exec").args(["--", "id", "-un"]).run().await?.ended_with(0);
    assert_eq!(ended.text(), "deploy\n");
    host.quiet_of("sortie").await
}

for_each_kind!(it_reboots: Debian11, Debian12, Debian13, OpenRc, Busybox, Dnf4, Dnf5, Zypper, Pacman, Arm64);
async fn it_reboots(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let boot = host.read("/proc/sys/kernel/random/boot_id").await?;
    host.write("/root/kept", "kept", 0o600).await?;
    host.reboot().await?;
    assert_ne!(host.read("/proc/sys/kernel/random/boot_id").await?, boot);
    assert_eq!(ssh(&host, "root", "cat /root/kept").await?, (Some(0), "kept".into()));
    Ok(())
}

for_each_kind!(apt_installs_from_the_hosts_own_repository: Debian11, Debian12, Debian13, OpenRc, Arm64);
async fn apt_installs_from_the_hosts_own_repository(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    host.sh("apt-get -q update").await?.fine()?;
    let install = async |packages: &str| -> Result<String> {
        host.sh(&format!("DEBIAN_FRONTEND=noninteractive apt-get -qy install {packages}")).await?.fine()
    };
    install("th-hello=1.0").await?;
    assert_eq!(host.read("/usr/share/th-hello/version").await?, b"th-hello 1.0\n");
    install("th-hello th-svc").await?;
    assert_eq!(host.read("/usr/share/th-hello/version").await?, b"th-hello 1.1\n");
    if kind.has_systemd() {
        assert_eq!(host.sh("systemctl is-active th-svc").await?.fine()?, "active\n");
        host.sh("systemctl reload th-svc").await?.fine()?;
        assert_eq!(host.read("/run/th-svc.starts").await?, b"level=1\nreload\n");
    }
    Ok(())
}

for_each_kind!(another_package_manager_is_the_hosts_own: Dnf4, Dnf5, Zypper, Pacman);
async fn another_package_manager_is_the_hosts_own(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let (install, query) = match kind {
        Kind::Dnf4 => ("dnf-3 -qy install", "rpm -q"),
        Kind::Dnf5 => ("dnf5 -qy install", "rpm -q"),
        Kind::Zypper => ("zypper --quiet --non-interactive install", "rpm -q"),
        _ => ("pacman --noconfirm -Sy", "pacman -Q"),
    };
    assert_eq!(host.sh("command -v apt-get apt dpkg").await?.stdout, "");
    host.sh(&format!("{install} th-hello")).await?.fine()?;
    assert!(host.read("/usr/share/th-hello/version").await?.starts_with(b"th-hello 1.1"));
    // It came with what it needs, and its scripts have run.
    host.sh(&format!("{query} th-lib && test -s /var/log/th-hello.log")).await?.fine()?;
    Ok(())
}

#[tokio::test]
async fn hosts_of_a_lab_reach_each_other_and_nothing_else() -> Result<()> {
    require_kind!(Kind::Debian12, Kind::Busybox);
    let lab = Lab::start().await?;
    let (one, two) = (lab.host(Kind::Debian12).start().await?, lab.host(Kind::Busybox).start().await?);
    let banner = format!("exec 3<>/dev/tcp/{}/22 && head -c 4 <&3", two.address());
    assert_eq!(one.exec(["bash", "-c", &banner]).await?.fine()?, "SSH-");
    let banner = format!("nc {} 22 </dev/null | head -c 4", one.address());
    assert_eq!(two.sh(&banner).await?.fine()?, "SSH-");
    assert_eq!(one.sh("ip route show default; ip -6 route show default").await?.fine()?, "");
    Ok(())
}

#[tokio::test]
async fn labs_beside_each_other_do_not_meet() -> Result<()> {
    require_kind!(Kind::Busybox);
    let one = Lab::start().await?;
    let first = one.host(Kind::Busybox).name("twin").start().await?;
    let two = Lab::start().await?;
    let second = two.host(Kind::Busybox).name("twin").start().await?;
    assert_eq!(first.address(), second.address());
    first.write("/root/mark", "first", 0o600).await?;
    assert_eq!(second.sh("test -e /root/mark").await?.status, 1);
    // The lab that was entered last is the one that this thread is in, until it is dropped.
    assert_eq!(ssh(&second, "root", "test -e /root/mark").await?.0, Some(1));
    drop((second, two));
    assert_eq!(ssh(&first, "root", "cat /root/mark").await?, (Some(0), "first".into()));
    Ok(())
}

/// A program at the other end of an SSH connection that sends back each line.
async fn echo(host: &Host) -> Result<Echo> {
    let mut ssh = tokio::process::Command::from(host.access("root").ssh());
    ssh.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = ssh.spawn()?;
    let stdin = child.stdin.take().context("stdin")?;
    let stdout = BufReader::new(child.stdout.take().context("stdout")?);
    let mut echo = Echo { child, stdin, stdout };
    echo.send("begin\n").await?;
    assert_eq!(echo.receive().await?, "begin\n");
    Ok(echo)
}

struct Echo {
    child: tokio::process::Child,
    stdin: tokio::process::ChildStdin,
    stdout: BufReader<tokio::process::ChildStdout>,
}

impl Echo {
    async fn send(&mut self, line: &str) -> Result<()> {
        self.stdin.write_all(line.as_bytes()).await?;
        Ok(self.stdin.flush().await?)
    }

    async fn receive(&mut self) -> Result<String> {
        let mut line = String::new();
        within("a line", self.stdout.read_line(&mut line)).await??;
        Ok(line)
    }
}

for_each_kind!(a_connection_outlives_a_cut_that_heals: Debian12, Busybox);
async fn a_connection_outlives_a_cut_that_heals(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let mut connection = echo(&host).await?;
    for cut in [Cut::Drop, Cut::Link] {
        host.cut(cut).await?;
        let line = format!("{cut:?}\n");
        connection.send(&line).await?;
        let attempt = tokio::net::TcpStream::connect((host.address(), 22));
        let attempt = tokio::time::timeout(Duration::from_millis(300), attempt).await;
        assert!(!attempt.is_ok_and(|ended| ended.is_ok()), "{cut:?} lets a connection through");
        host.heal().await?;
        assert_eq!(connection.receive().await?, line);
    }
    host.cut(Cut::Reset).await?;
    let refused = tokio::net::TcpStream::connect((host.address(), 22)).await;
    assert_eq!(refused.map_err(|error| error.kind()).err(), Some(ErrorKind::ConnectionRefused));
    // It may have learnt of the reset already, by acknowledging something.
    let _ = connection.send("reset\n").await;
    assert_eq!(connection.receive().await?, "");
    host.heal().await?;
    host.wait_ssh().await
}

for_each_kind!(a_power_cut_says_no_word_and_keeps_the_disk: Debian12, Busybox);
async fn a_power_cut_says_no_word_and_keeps_the_disk(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    host.write("/root/kept", "kept", 0o600).await?;
    let pids: Vec<i32> = host.processes()?.into_iter().map(|process| process.machine_pid).collect();
    let mut connection = echo(&host).await?;
    host.crash().await?;
    assert!(host.leader().is_err());
    assert!(pids.into_iter().all(|pid| Process::read(pid).is_none_or(|process| process.is_zombie())));
    assert_eq!(connection.child.try_wait()?, None);
    host.start().await?;
    assert_eq!(ssh(&host, "root", "cat /root/kept").await?, (Some(0), "kept".into()));
    // Now there is somebody who says that he knows nothing of it, and may have been asked already.
    let _ = connection.send("anybody?\n").await;
    assert_eq!(connection.receive().await?, "");
    Ok(())
}

for_each_kind!(a_frozen_host_answers_when_it_is_thawed: Debian12, Busybox);
async fn a_frozen_host_answers_when_it_is_thawed(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    host.freeze().await?;
    let mut stream = tokio::net::TcpStream::connect((host.address(), 22)).await?;
    assert_eq!(stream.try_read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    host.thaw().await?;
    let mut banner = [0; 4];
    within("the banner", stream.read_exact(&mut banner)).await??;
    assert_eq!(&banner, b"SSH-");
    // Frozen it can lose its power too.
    host.freeze().await?;
    host.crash().await
}

#[tokio::test]
async fn a_disk_is_as_large_as_it_is_said_to_be() -> Result<()> {
    require_kind!(Kind::Busybox);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Busybox).disk(1 << 20).start().await?;
    let full = host.sh("dd if=/dev/zero of=/root/fill bs=4096 count=1000").await?;
    assert!(full.status != 0 && full.stderr.contains("No space left"), "{full:?}");
    Ok(())
}

#[tokio::test]
async fn a_process_is_ended_by_its_pid_in_the_host() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let pid =
        host.sh("systemd-run --quiet --unit=kit sleep 98765; systemctl show -P MainPID kit").await?.fine()?;
    host.kill(pid.trim().parse()?, Signal::SIGKILL)?;
    host.quiet_of("sleep 98765").await?;
    host.sh("until systemctl is-failed --quiet kit; do sleep 0.05; done").await?.fine()?;
    Ok(())
}

#[tokio::test]
async fn a_host_that_cannot_be_made_is_an_error_that_says_why() -> Result<()> {
    require_kind!(Kind::Busybox);
    let lab = Lab::start().await?;
    let twin = lab.host(Kind::Busybox).name("twin").make()?;
    let error = |made: Result<Host>| made.err().map(|error| format!("{error:#}")).unwrap_or_default();
    assert!(error(lab.host(Kind::Busybox).name("a b").make()).contains("not a name"));
    assert!(twin.leader().is_err());
    assert!(error(lab.host(Kind::Busybox).name("twin").make()).contains("twin"));
    // It is off before its SSH server is up.
    let inittab = "::sysinit:/bin/echo no power\n::sysinit:/sbin/poweroff -f\n";
    let started = lab.host(Kind::Busybox).file("/etc/inittab", inittab, 0o644).start().await;
    let error = error(started);
    assert!(error.contains("has ended") && error.contains("no power"), "{error}");
    Ok(())
}

/// Everything of a lab that could stay behind.
#[derive(serde::Serialize, serde::Deserialize)]
struct Traces {
    init: i32,
    cgroup: String,
    scratch: PathBuf,
    namespaces: Vec<PathBuf>,
}

impl Traces {
    fn of(lab: &Lab, host: &Host) -> Result<Self> {
        let scratch = host.access("root").identity;
        let scratch = scratch.ancestors().nth(2).context("the scratch directory")?.to_owned();
        let mut namespaces = Vec::new();
        for pid in [lab.init(), host.leader()?] {
            for kind in ["net", "pid", "mnt"] {
                namespaces.push(std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))?);
            }
        }
        // The test itself stands in the lab's network.
        Ok(Self { init: lab.init(), cgroup: lab.cgroup().to_owned(), scratch, namespaces })
    }

    async fn gone(&self) -> Result<()> {
        eventually("nothing left of the lab", || {
            for process in process::all() {
                for kind in ["net", "pid", "mnt"] {
                    let link =
                        std::fs::read_link(format!("/proc/{}/ns/{kind}", process.pid)).unwrap_or_default();
                    ensure!(!self.namespaces.contains(&link), "{process:?} is still in {}", link.display());
                }
            }
            ensure!(!self.scratch.exists(), "{} is still there", self.scratch.display());
            let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
            ensure!(!mounts.contains(&self.cgroup) && !mounts.contains("/run/lab"), "mounts: {mounts}");
            for namespace in &self.namespaces {
                // As a mount of a namespace shows there.
                ensure!(!mounts.contains(&namespace.display().to_string()), "mounts: {mounts}");
            }
            let groups = Command::new("unshare")
                .args(["--mount", "sh", "-c", "mount -t cgroup2 cgroup2 /mnt && ls /mnt"])
                .output()?;
            ensure!(groups.status.success(), "{groups:?}");
            let groups = String::from_utf8_lossy(&groups.stdout).into_owned();
            ensure!(!groups.lines().any(|name| name == self.cgroup), "groups: {groups}");
            Ok(())
        })
        .await
    }
}

#[tokio::test]
async fn nothing_of_a_lab_is_left_when_it_is_dropped() -> Result<()> {
    require_kind!(Kind::Debian12);
    let outside = std::fs::read_link("/proc/thread-self/ns/net")?;
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let traces = Traces::of(&lab, &host)?;
    assert!(traces.namespaces.contains(&std::fs::read_link("/proc/thread-self/ns/net")?));
    drop((host, lab));
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net")?, outside);
    assert!(!traces.scratch.exists());
    traces.gone().await
}

#[tokio::test]
async fn nothing_of_a_lab_is_left_when_its_processes_are_killed() -> Result<()> {
    require_kind!(Kind::Busybox);
    // The lab's pid 1, and then the process that would clean up after it.
    for holder in [false, true] {
        let lab = Lab::start().await?;
        let host = lab.host(Kind::Busybox).start().await?;
        let traces = Traces::of(&lab, &host)?;
        let init = Process::read(lab.init()).context("the lab's pid 1")?;
        process::kill(if holder { init.ppid } else { init.pid }, Signal::SIGKILL)?;
        eventually("the end of the host", || {
            ensure!(host.leader().is_err(), "it still runs");
            Ok(())
        })
        .await?;
        assert!(host.sh("true").await.is_err());
        drop((host, lab));
        traces.gone().await?;
    }
    Ok(())
}

/// Not a claim of its own: the process that the next test kills. Alone it does nothing.
#[tokio::test]
async fn helper_of_the_killed_test() -> Result<()> {
    let Some(report) = std::env::var_os("KIT_REPORT") else { return Ok(()) };
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    std::fs::write(&report, serde_json::to_vec(&Traces::of(&lab, &host)?)?)?;
    nix::sys::signal::raise(Signal::SIGKILL)?;
    Ok(())
}

#[tokio::test]
async fn nothing_of_a_lab_is_left_when_the_test_is_killed() -> Result<()> {
    require_kind!(Kind::Debian12);
    let report = tempfile::NamedTempFile::new()?;
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "helper_of_the_killed_test", "--nocapture"])
        .env("KIT_REPORT", report.path())
        .output()?;
    assert!(!output.status.success());
    let traces: Traces =
        serde_json::from_slice(&std::fs::read(report.path())?).with_context(|| format!("{output:?}"))?;
    traces.gone().await
}
