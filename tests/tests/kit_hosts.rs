//! The hosts of the kit themselves: that they are what they say, that faults are what they say, and that nothing of them
//! outlives the test.

mod cli_support;

use anyhow::{Result, ensure};
use cli_support::on;
use sortie_tests::for_each_kind;
use sortie_tests::host::{Host, Kind, Lab};

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
    let ended = on(&access, "exec").args(["--", "id", "-un"]).run().await?.fine();
    assert_eq!(ended.text(), "deploy\n");
    host.quiet_of("sortie").await
}
