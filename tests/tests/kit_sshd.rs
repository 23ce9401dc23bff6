//! Proves the test hosts with OpenSSH's own client: that they are what the builder says, and that nothing of them is
//! ever left on the machine.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use sortie_tests::keys::KeyPair;
use sortie_tests::sshd::{Builder, Shell, Sshd};
use sortie_tests::{require_programs, require_root, which};

fn ssh(host: &Sshd, command: &str) -> Result<Output> {
    Ok(host.access().ssh().arg(command).stdin(Stdio::null()).output()?)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What every host of the kit is expected to do.
fn assert_serves(host: &Sshd) -> Result<()> {
    let output = ssh(host, "echo out; echo err >&2; exit 7")?;
    assert_eq!(stdout(&output), "out\n", "{output:?} {}", host.log());
    assert!(String::from_utf8_lossy(&output.stderr).contains("err\n"), "{output:?}");
    assert_eq!(output.status.code(), Some(7));
    Ok(())
}

#[test]
fn every_login_shell_runs_commands_as_the_account() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh", "tcsh", "fish");
    for shell in Shell::ALL {
        let host = Sshd::builder().shell(shell.clone()).start()?;
        let output = ssh(&host, "id -un; pwd; echo $0")?;
        let text = stdout(&output);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["deploy", "/home/deploy"], "{shell:?}: {output:?} {}", host.log());
        // fish has no $0.
        assert!(shell == Shell::Fish || lines[2].ends_with(shell.program()), "{shell:?}: {text}");
        let entry = host.run("getent passwd deploy")?;
        assert!(stdout(&entry).trim_end().ends_with(shell.program()));
        let left = host.new_files()?;
        assert!(left.is_empty(), "{shell:?} left {left:?}");
    }
    Ok(())
}

#[test]
fn noisy_start_up_files_are_heard_in_every_shell() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh", "tcsh", "fish");
    for shell in Shell::ALL {
        let host = Sshd::builder().shell(shell.clone()).rc_noise().start()?;
        let output = ssh(&host, "echo the end")?;
        let text = stdout(&output);
        assert!(text.contains("noise from rc without a newline"), "{shell:?}: {output:?} {}", host.log());
        assert!(text.ends_with("the end\n"), "{shell:?}: {text}");
        let own = match shell {
            Shell::Bash => ".bashrc",
            Shell::Tcsh => ".tcshrc",
            Shell::Fish => "config.fish",
            _ => "rc",
        };
        assert!(
            text.contains(&format!("noise from {own}")) || text.contains(&format!("fish/{own}")),
            "{text}"
        );
        assert!(String::from_utf8_lossy(&output.stderr).contains("noise"));
    }
    Ok(())
}

#[test]
fn shells_that_refuse_or_dawdle_do_so() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh", "rbash", "nologin");
    let host = Sshd::builder().shell(Shell::Nologin).start()?;
    let output = ssh(&host, "true")?;
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("not available"));
    let host = Sshd::builder().shell(Shell::Rbash).start()?;
    let output = ssh(&host, "exec sh -c true")?;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("restricted"), "{output:?}");
    let host = Sshd::builder().shell(Shell::Slow(0)).start()?;
    assert_eq!(stdout(&ssh(&host, "echo done")?), "Welcome. Be patient.\ndone\n");
    Ok(())
}

#[test]
fn the_machine_sees_nothing_of_what_the_host_does() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let host = Sshd::builder().user("root").start()?;
    let script = "touch /kit-probe /etc/kit-probe /tmp/kit-probe /root/kit-probe /dev/shm/kit-probe /usr/bin/kit-probe; \
                  rm /usr/bin/env; hostname; ip -o link 2>/dev/null | grep -vc ' lo:'";
    let output = ssh(&host, script)?;
    assert!(stdout(&output).starts_with("testhost\n"), "{output:?}");
    for path in ["/", "/etc/", "/tmp/", "/root/", "/dev/shm/", "/usr/bin/"] {
        assert!(!std::path::Path::new(path).join("kit-probe").exists(), "{path}");
    }
    assert!(which("env").is_some());
    let names: Vec<_> = host.new_files()?.iter().map(|entry| entry.path.display().to_string()).collect();
    let expected = [
        "/dev/shm/kit-probe",
        "/etc/kit-probe",
        "/kit-probe",
        "/root/kit-probe",
        "/tmp/kit-probe",
        "/usr/bin/env",
        "/usr/bin/kit-probe",
    ];
    assert_eq!(names, expected);
    Ok(())
}

#[tokio::test]
async fn its_processes_are_listed_signalled_and_gone() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let host = Sshd::builder().start()?;
    assert!(host.processes()?.is_empty());
    // A grandchild that has left its session, as a daemon does, with an environment of its own.
    let output = ssh(&host, "setsid env -i sleep 4242 >/dev/null 2>&1 </dev/null & echo $!")?;
    ensure!(output.status.success(), "{output:?}");
    let processes = sortie_tests::eventually("the daemon", || {
        let processes = host.processes()?;
        ensure!(processes.len() == 1 && processes[0].command == "sleep 4242", "{processes:?}");
        Ok(processes)
    })
    .await?;
    assert!(processes[0].pid < 200, "pids are the host's: {processes:?}");
    host.kill(processes[0].pid, Signal::SIGTERM)?;
    host.quiet().await
}

#[test]
fn directories_are_noexec_read_only_or_full_as_asked() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let host = Sshd::builder().noexec(&["/tmp"]).read_only(&["/dev/shm"]).full_disk(&["/var/tmp"]).start()?;
    let probe = |dir: &str| -> Result<String> {
        let script = format!(
            "export LC_ALL=C; cd {dir} && mkdir d && echo '#!/bin/sh' > d/x && chmod +x d/x && ./d/x && echo fine"
        );
        let output =
            host.access().ssh().arg(format!("sh -c '{}'", script.replace('\'', "\"")) + " 2>&1").output()?;
        Ok(stdout(&output))
    };
    assert_eq!(probe("/home/deploy")?, "fine\n", "{}", host.log());
    assert!(probe("/tmp")?.contains("Permission denied"));
    assert!(probe("/dev/shm")?.contains("Read-only file system"));
    let full = probe("/var/tmp")?;
    assert!(full.contains("No space left on device") || full.contains("I/O error"), "{full}");
    // Only now: the probe above made what it could.
    let names: Vec<_> = host.new_files()?.iter().map(|entry| entry.path.display().to_string()).collect();
    assert!(
        names.contains(&"/tmp/d/x".to_owned()) && names.contains(&"/home/deploy/d/x".to_owned()),
        "{names:?}"
    );
    Ok(())
}

#[test]
fn a_read_only_root_leaves_the_directories_of_their_own_writable() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let host = Sshd::builder().user("root").read_only_root().start()?;
    let output = ssh(&host, "export LC_ALL=C; touch /tmp/a /root/b && touch /etc/c 2>&1")?;
    assert!(stdout(&output).contains("Read-only file system"), "{output:?}");
    Ok(())
}

#[test]
fn removed_programs_are_nowhere_on_the_path() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let host = Sshd::builder().path_without(&["gzip", "sha256sum", "mktemp"]).no_sftp().start()?;
    let output = ssh(&host, "for p in gzip sha256sum mktemp scp cat; do command -v $p || echo no $p; done")?;
    assert_eq!(stdout(&output), "no gzip\nno sha256sum\nno mktemp\nno scp\n/usr/bin/cat\n");
    let sftp = host.access().ssh().args(["-s", "sftp"]).stdin(Stdio::null()).output()?;
    assert!(!sftp.status.success());
    Ok(())
}

#[test]
fn max_sessions_holds_on_one_connection() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let host = Sshd::builder().max_sessions(1).start()?;
    let dir = tempfile::tempdir()?;
    let control = dir.path().join("control");
    let mut master = host.access().ssh();
    master.args(["-M", "-S"]).arg(&control).arg("echo up; read -r line; echo bye");
    let mut master = master.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let mut reader = std::io::BufReader::new(master.stdout.take().context("stdout")?);
    std::io::BufRead::read_line(&mut reader, &mut line)?;
    assert_eq!(line, "up\n", "{}", host.log());
    let second = Command::new("ssh")
        .arg("-S")
        .arg(&control)
        .args(["-o", "BatchMode=yes", "deploy@127.0.0.1", "-p", "1", "true"])
        .output()?;
    assert!(!second.status.success());
    assert!(host.log().contains("no more sessions"), "{}", host.log());
    drop(master.stdin.take());
    ensure!(master.wait()?.success());
    Ok(())
}

#[test]
fn environment_and_runtime_directory_are_the_logins() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let host = Sshd::builder().runtime_dir().env("KIT_PROBE", "a b").start()?;
    let output = ssh(&host, "echo $KIT_PROBE $XDG_RUNTIME_DIR; stat -c '%a %U' $XDG_RUNTIME_DIR; umask")?;
    assert_eq!(stdout(&output), "a b /run/user/4242\n700 deploy\n0022\n", "{output:?}");
    Ok(())
}

#[test]
fn a_password_and_a_given_host_key_are_taken() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let key = KeyPair::generate()?;
    let host = Sshd::builder().password("open sesame").host_key(key.clone()).start()?;
    assert_eq!(host.access().host_key().public_openssh()?, key.public_openssh()?);
    let dir = tempfile::tempdir()?;
    let (config, askpass) = (dir.path().join("config"), dir.path().join("askpass"));
    std::fs::write(&config, host.access().ssh_config("kit") + "  PreferredAuthentications password\n")?;
    std::fs::write(&askpass, "#!/bin/sh\necho 'open sesame'\n")?;
    std::fs::set_permissions(&askpass, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(&config).args(["kit", "echo in"]);
    let output = ssh.env("SSH_ASKPASS", &askpass).env("SSH_ASKPASS_REQUIRE", "force").output()?;
    assert_eq!(stdout(&output), "in\n", "{output:?} {}", host.log());
    Ok(())
}

#[test]
fn a_busybox_host_has_busybox_and_dropbear_alone() -> Result<()> {
    require_root!();
    require_programs!("busybox", "dropbear", "ssh");
    let host = Sshd::busybox().start()?;
    assert_serves(&host)?;
    let output = ssh(
        &host,
        "readlink -f /bin/sh; ls /usr/bin/python3 /bin/bash /usr/bin/scp; id -un; head -c 3 /dev/zero | wc -c",
    )?;
    assert_eq!(stdout(&output), "/bin/busybox\ndeploy\n3\n", "{output:?}");
    let left = host.new_files()?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn a_crashed_host_ends_its_connections() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let mut host = Sshd::builder().start()?;
    let mut client = host.access().ssh().arg("echo up; sleep 1000").stdout(Stdio::piped()).spawn()?;
    let mut up = [0; 3];
    std::io::Read::read_exact(client.stdout.as_mut().context("stdout")?, &mut up)?;
    host.crash()?;
    assert_eq!(client.wait()?.code(), Some(255));
    assert!(host.processes().is_err());
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_when_a_host_is_dropped() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let host = Sshd::builder().start()?;
    let scratch = host.access().identity.parent().context("scratch")?.to_owned();
    ssh(&host, "setsid sleep 98765 >/dev/null 2>&1 </dev/null &")?;
    let pids: Vec<_> = host.processes()?.iter().map(|process| process.machine_pid).collect();
    ensure!(!pids.is_empty(), "the host has no processes");
    drop(host);
    assert!(!scratch.exists());
    assert!(pids.into_iter().all(|pid| sortie_tests::process::Process::read(pid).is_none()));
    Ok(())
}

/// Not a claim of its own: the process that the next test kills. Alone it does nothing.
#[test]
fn helper_of_the_killed_test() -> Result<()> {
    let Some(report) = std::env::var_os("KIT_REPORT") else { return Ok(()) };
    let host = Sshd::builder().start()?;
    ssh(&host, "setsid sleep 98764 >/dev/null 2>&1 </dev/null &")?;
    let process = host.processes()?.pop().context("no process")?;
    let text = format!("{} {}", process.machine_pid, host.access().identity.display());
    std::fs::write(&report, text)?;
    nix::sys::signal::raise(Signal::SIGKILL)?;
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_when_the_test_is_killed() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let report = tempfile::NamedTempFile::new()?;
    let status = Command::new(std::env::current_exe()?)
        .args(["--exact", "helper_of_the_killed_test"])
        .env("KIT_REPORT", report.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    assert!(!status.success());
    let text = std::fs::read_to_string(report.path())?;
    let (pid, identity) = text.split_once(' ').with_context(|| format!("the helper failed: {text:?}"))?;
    let pid: i32 = pid.parse()?;
    sortie_tests::eventually("the end of the host", || {
        ensure!(sortie_tests::process::Process::read(pid).is_none(), "the process is still there");
        let scratch = std::path::Path::new(identity).parent().context("scratch")?;
        ensure!(!scratch.exists(), "{} is still there", scratch.display());
        Ok(())
    })
    .await
}

#[test]
fn a_host_that_cannot_be_made_is_an_error_and_leaves_nothing() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let scratch = || -> Result<usize> {
        let names = std::fs::read_dir(std::env::temp_dir())?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter(|name| name.starts_with("sortie-host-")).count())
    };
    let dir = tempfile::tempdir()?;
    // Only the child sees this as its place for temporary files, so no other test's are counted.
    if std::env::var_os("KIT_ALONE").is_none() {
        let status = Command::new(std::env::current_exe()?)
            .args(["--exact", "a_host_that_cannot_be_made_is_an_error_and_leaves_nothing"])
            .env("KIT_ALONE", "1")
            .env("TMPDIR", dir.path())
            .output()?;
        ensure!(status.status.success(), "{status:?}");
        return Ok(());
    }
    let error = Sshd::builder()
        .file("/etc/passwd/x", 0o644, "")
        .start()
        .map(drop)
        .expect_err("a file is no directory");
    assert!(format!("{error:#}").contains("making the host"), "{error:#}");
    assert_eq!(scratch()?, 0);
    Ok(())
}

#[test]
fn many_hosts_run_beside_each_other() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh");
    let hosts: Vec<_> =
        std::iter::repeat_with(Sshd::builder).take(8).map(Builder::start).collect::<Result<_>>()?;
    let ports: std::collections::BTreeSet<_> = hosts.iter().map(|host| host.access().port).collect();
    assert_eq!(ports.len(), hosts.len());
    for (number, host) in hosts.iter().enumerate() {
        assert_eq!(stdout(&ssh(host, &format!("echo {number} > here; cat here"))?), format!("{number}\n"));
    }
    for host in &hosts {
        let names: Vec<_> = host.new_files()?.into_iter().map(|entry| entry.path).collect();
        assert_eq!(names, [std::path::Path::new("/home/deploy/here")]);
    }
    Ok(())
}
