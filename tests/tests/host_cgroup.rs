//! The scope that a session of root has where systemd gives one: what it is, that nothing of a command gets away from it,
//! and that what is released is outside of it. Spoken to by hand: a client would look for what a lost runner left.

use std::fs;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sortie_tests::host::{Host, Kind, Lab};
use sortie_tests::{eventually, for_each_kind, require_kind, runner, within};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// Starts a process that leaves by a double fork and two sessions of its own, and prints its pid.
const ESCAPE: &str =
    r#"p=$(setsid sh -c 'setsid sh -c "echo \$\$; exec sleep 3210 >/dev/null 2>&1" &'); echo $p; "#;

/// A runner on a host, at the other end of ssh.
struct Runner {
    ssh: Child,
    input: Option<ChildStdin>,
    frames: Lines<BufReader<ChildStdout>>,
    /// The unit that it asks for.
    unit: String,
    commands: u32,
}

impl Runner {
    async fn start(host: &Host, user: &str, flags: &str) -> Result<Self> {
        host.sh("mkdir -p /opt").await?.fine()?;
        host.write("/opt/runner", fs::read(runner::binary()?)?, 0o755).await?;
        let mut ssh = tokio::process::Command::from(host.access(user).ssh());
        ssh.arg(format!("exec /opt/runner --keep --concurrency 8 {flags}"));
        let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let frames = BufReader::new(ssh.stdout.take().context("no output")?).lines();
        let input = ssh.stdin.take();
        let mut runner = Self { ssh, input, frames, unit: String::new(), commands: 0 };
        let ready = runner.next().await?;
        let session = ready["data"]["session"].as_str().context("a READY without a session")?;
        runner.unit = format!("sortie-{session}.scope");
        Ok(runner)
    }

    async fn next(&mut self) -> Result<Value> {
        let line = within("a frame", self.frames.next_line()).await??;
        Ok(serde_json::from_str(&line.context("the runner is gone")?)?)
    }

    async fn send(&mut self, kind: &str, data: Value) -> Result<()> {
        let frame = format!("{}\n", json!({"type": kind, "data": data}));
        Ok(self.input.as_mut().context("no input")?.write_all(frame.as_bytes()).await?)
    }

    /// Begins a line of shell.
    async fn begin(&mut self, line: &str, timeout: u32) -> Result<()> {
        let params = json!({"command": line, "capture_out": true, "stream_lines": true});
        self.begin_any(json!({"type": "exec", "timeout": timeout, "params": params})).await
    }

    async fn begin_any(&mut self, mut command: Value) -> Result<()> {
        self.commands += 1;
        command["id"] = self.commands.to_string().into();
        self.send("CMD", command).await
    }

    /// The pid that a command printed first.
    async fn pid(&mut self) -> Result<i32> {
        let event = self.next().await?;
        let text = event["data"]["message"].as_str().with_context(|| format!("no output: {event}"))?;
        Ok(text.trim().parse()?)
    }

    /// The DONE or ERROR of the command that runs.
    async fn end(&mut self) -> Result<Value> {
        loop {
            let frame = self.next().await?;
            if frame["type"] != "EVENT" {
                return Ok(frame);
            }
        }
    }

    async fn run(&mut self, line: &str) -> Result<Value> {
        self.begin(line, 60).await?;
        let done = self.end().await?;
        ensure!(done["type"] == "DONE", "{done}");
        Ok(done["data"]["result"].clone())
    }

    /// A runner of root whose scope is there: a busy systemd may be later than commands wait.
    async fn start_in_scope(host: &Host, flags: &str) -> Result<Self> {
        let mut runner = Self::start(host, "root", flags).await?;
        runner.wait_for_scope(&Value::Null).await?;
        Ok(runner)
    }

    /// Waits until commands of that user have leaves.
    async fn wait_for_scope(&mut self, whom: &Value) -> Result<()> {
        let wait = async {
            loop {
                let params = json!({"command": "true"});
                self.begin_any(json!({"type": "exec", "timeout": 60, "params": params, "become": whom}))
                    .await?;
                let done = self.end().await?;
                ensure!(done["type"] == "DONE", "{done}");
                if done["data"]["result"]["containment"] == "cgroup" {
                    return Ok(());
                }
            }
        };
        within("a command with a leaf", wait).await?
    }

    async fn leave(mut self) -> Result<()> {
        self.input = None;
        let exit = self.next().await?;
        assert_eq!(exit["type"], "EXIT", "{exit}");
        within("the end of ssh", self.ssh.wait()).await??;
        Ok(())
    }
}

fn is_alive(host: &Host, pid: i32) -> Result<bool> {
    Ok(host.processes()?.iter().any(|process| process.pid == pid && process.state != 'Z'))
}

async fn ends(host: &Host, pid: i32) -> Result<()> {
    let what = format!("process {pid} ended");
    let probe = || {
        ensure!(!is_alive(host, pid)?);
        Ok(())
    };
    eventually(&what, probe).await
}

async fn cgroup_of(host: &Host, pid: i32) -> Result<String> {
    host.sh(&format!("grep ^0:: /proc/{pid}/cgroup")).await?.fine()
}

/// Waits until systemd knows nothing of the unit any more and its cgroup is gone.
async fn scope_goes(host: &Host, unit: &str) -> Result<()> {
    let script = format!(
        "systemctl list-units --all --no-legend {unit}; ls -d /sys/fs/cgroup/system.slice/{unit} 2>/dev/null"
    );
    let goes = async {
        while !host.sh(&script).await?.stdout.is_empty() {}
        Ok(())
    };
    within(&format!("the end of {unit}"), goes).await?
}

/// Kills the runner's processes of these names, all stopped before the first dies.
fn kill(host: &Host, names: &[&str]) -> Result<()> {
    let mut processes = host.processes()?;
    processes.retain(|process| names.contains(&process.name.as_str()) && process.state != 'Z');
    ensure!(processes.len() >= names.len(), "only {processes:?}");
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for process in &processes {
            host.kill(process.pid, signal)?;
        }
    }
    Ok(())
}

for_each_kind!(a_session_of_root_is_a_scope_with_a_leaf_for_each_command: Debian11, Debian12, Debian13);
async fn a_session_of_root_is_a_scope_with_a_leaf_for_each_command(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let mut runner = Runner::start_in_scope(&host, "--ttl 600").await?;
    let unit = runner.unit.clone();
    runner.begin("grep ^0:: /proc/self/cgroup; exec sleep 3211", 60).await?;
    let first_id = runner.commands.to_string();
    let first = runner.next().await?;
    let second = runner.run("grep ^0:: /proc/self/cgroup").await?;
    let leaf = format!("/{unit}/command-");
    let text = |value: &Value| value.as_str().unwrap_or_default().trim().to_owned();
    let leaves = [text(&first["data"]["message"]), text(&second["stdout"])];
    assert!(leaves.iter().all(|of| of.contains(&leaf)) && leaves[0] != leaves[1], "{leaves:?}");
    assert_eq!(second["containment"], "cgroup");
    let properties = ["Delegate", "RuntimeMaxUSec", "CollectMode"];
    let shown = host.sh(&format!("systemctl show {unit} -p {}", properties.join(" -p "))).await?.fine()?;
    for line in ["Delegate=yes", "RuntimeMaxUSec=40min 5s", "CollectMode=inactive-or-failed"] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    // They move there while commands run already.
    let script = format!(
        "cat $(cat /sys/fs/cgroup/system.slice/{unit}/runner/cgroup.procs | sed 's,.*,/proc/&/comm,')"
    );
    let both = async {
        while host.sh(&script).await?.stdout.lines().count() < 2 {}
        host.sh(&script).await?.fine()
    };
    assert_eq!(
        within("both processes in the runner's leaf", both).await??,
        "sortie-guardian\nsortie-server\n"
    );
    runner.send("CANCEL", json!({"command_id": first_id, "grace": 0})).await?;
    assert_eq!(runner.end().await?["data"]["code"], "CANCELLED");
    runner.leave().await?;
    scope_goes(&host, &unit).await
}

#[tokio::test]
async fn what_left_its_session_ends_with_its_command_and_its_keeper_and_its_runner() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let mut runner = Runner::start_in_scope(&host, "").await?;
    let unit = runner.unit.clone();

    // The command's own end, by force: what runs ignores SIGTERM.
    runner.begin(&format!("trap '' TERM; {ESCAPE} while :; do sleep 1; done"), 1).await?;
    let escaped = runner.pid().await?;
    assert!(cgroup_of(&host, escaped).await?.contains(&unit));
    assert_eq!(runner.end().await?["data"]["code"], "TIMEOUT");
    ends(&host, escaped).await?;
    // A leaf that was killed is not what the next command gets.
    assert_eq!(runner.run("echo fine").await?["stdout"], "fine\n");

    runner.begin(&format!("{ESCAPE} exec sleep 3211"), 60).await?;
    let escaped = runner.pid().await?;
    kill(&host, &["sortie-keeper"])?;
    let error = runner.end().await?;
    assert_eq!(error["data"]["code"], "INTERNAL", "{error}");
    ends(&host, escaped).await?;
    assert_eq!(runner.run("echo fine").await?["containment"], "cgroup");

    // The guardian is left.
    runner.begin(&format!("{ESCAPE} exec sleep 3211"), 60).await?;
    let escaped = runner.pid().await?;
    kill(&host, &["sortie-keeper", "sortie-server"])?;
    ends(&host, escaped).await?;
    scope_goes(&host, &unit).await?;
    host.quiet_of("sleep 321").await
}

#[tokio::test]
async fn what_a_command_leaves_running_is_outside_of_the_scope_and_lives_on() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let mut runner = Runner::start_in_scope(&host, "").await?;
    let unit = runner.unit.clone();
    let result = runner.run("nohup sleep 3210 >/dev/null 2>&1 & echo $!").await?;
    assert_eq!((&result["left_running"], &result["containment"]), (&json!(1), &json!("cgroup")));
    let plain: i32 = result["stdout"].as_str().context("no output")?.trim().parse()?;
    runner.begin(ESCAPE, 60).await?;
    let escaped = runner.pid().await?;
    assert_eq!(runner.end().await?["data"]["result"]["left_running"], 1);
    let login =
        tokio::process::Command::from(host.access("root").ssh()).arg("grep ^0:: /proc/self/cgroup").output();
    let login = String::from_utf8(login.await?.stdout)?;
    // Each login may have a scope of its own; they all stand in one place.
    let place = login.trim_start_matches("0::").rsplit_once('/').context("no cgroup")?.0;
    for pid in [plain, escaped] {
        let cgroup = cgroup_of(&host, pid).await?;
        assert!(cgroup.rsplit_once('/').is_some_and(|(of, _)| of.ends_with(place)), "{cgroup} {login}");
        assert!(!cgroup.contains(&unit));
    }
    runner.leave().await?;
    scope_goes(&host, &unit).await?;
    assert!(is_alive(&host, plain)? && is_alive(&host, escaped)?);
    Ok(())
}

#[tokio::test]
async fn systemd_ends_what_is_left_of_a_session_that_was_killed_whole() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let mut runner = Runner::start_in_scope(&host, "--ttl 60").await?;
    let unit = runner.unit.clone();
    runner.begin(&format!("{ESCAPE} exec sleep 3211"), 60).await?;
    let escaped = runner.pid().await?;
    kill(&host, &["sortie-keeper", "sortie-server", "sortie-guardian"])?;
    host.quiet_of("sortie").await?;
    assert!(is_alive(&host, escaped)?);
    let shown = host.sh(&format!("systemctl show {unit} -p RuntimeMaxUSec")).await?.fine()?;
    assert_eq!(shown, "RuntimeMaxUSec=31min 5s\n");
    // So long no test waits. systemd counts from the start of the scope whenever it reads the value.
    let directory = format!("/run/systemd/system/{unit}.d");
    host.sh(&format!("mkdir -p {directory}")).await?.fine()?;
    host.write(&format!("{directory}/sooner.conf"), "[Scope]\nRuntimeMaxSec=1\n", 0o644).await?;
    host.sh("systemctl daemon-reload").await?.fine()?;
    ends(&host, escaped).await?;
    scope_goes(&host, &unit).await
}

#[tokio::test]
async fn while_systemd_does_not_answer_commands_run_without_and_then_with_a_leaf() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    host.kill(1, Signal::SIGSTOP)?;
    let mut runner = Runner::start(&host, "root", "").await?;
    let unit = runner.unit.clone();
    runner.begin(ESCAPE, 60).await?;
    let escaped = runner.pid().await?;
    let done = runner.end().await?;
    assert_eq!(done["data"]["result"]["containment"], "subreaper", "{done}");
    host.kill(1, Signal::SIGCONT)?;
    runner.wait_for_scope(&Value::Null).await?;
    assert!(!cgroup_of(&host, escaped).await?.contains(&unit));
    runner.leave().await?;
    scope_goes(&host, &unit).await?;
    assert!(is_alive(&host, escaped)?);
    Ok(())
}

#[tokio::test]
async fn the_system_bus_will_do_and_without_it_there_is_no_scope() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    for (socket, containment) in
        [("/run/systemd/private", "cgroup"), ("/run/dbus/system_bus_socket", "subreaper")]
    {
        host.sh(&format!("mv {socket} {socket}.away")).await?.fine()?;
        let mut runner = Runner::start(&host, "root", "").await?;
        let unit = runner.unit.clone();
        if containment == "cgroup" {
            runner.wait_for_scope(&Value::Null).await?;
        } else {
            assert_eq!(runner.run("true").await?["containment"], containment);
        }
        runner.leave().await?;
        // systemctl(1) needs one of them itself.
        host.sh("mv /run/systemd/private.away /run/systemd/private").await?.fine()?;
        scope_goes(&host, &unit).await?;
        host.sh("mv /run/systemd/private /run/systemd/private.away").await?.fine()?;
    }
    Ok(())
}

for_each_kind!(who_cannot_have_a_scope_is_told_so: Debian12, OpenRc, Busybox);
async fn who_cannot_have_a_scope_is_told_so(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let user = if kind.has_systemd() { "deploy" } else { "root" };
    if user != "root" {
        host.add_user(user, None).await?;
    }
    let mut runner = Runner::start(&host, user, "").await?;
    assert_eq!(runner.run("true").await?["containment"], "subreaper");
    runner.leave().await
}

/// A host with a package whose script starts a daemon and then waits for a word.
async fn host_with_slow_package(lab: &Lab) -> Result<Host> {
    let host = lab.host(Kind::Debian12).start().await?;
    let script = "#!/bin/sh\nset -e\ncp /bin/sleep /usr/bin/th-daemon\nsetsid th-daemon 86400 </dev/null >/dev/null 2>&1 &\n\
                  touch /run/begun\nwhile [ ! -e /run/go ]; do sleep 0.05; done\n";
    host.sh("mkdir -p /tmp/slow/DEBIAN").await?.fine()?;
    host.write("/tmp/slow/DEBIAN/postinst", script, 0o755).await?;
    let control = "Package: th-slow\nVersion: 1.0\nArchitecture: all\nMaintainer: Test Kit <root@localhost>\n\
                   Description: test package\n";
    host.write("/tmp/slow/DEBIAN/control", control, 0o644).await?;
    let script = "set -e; cd /srv/repo; f=th-slow_1.0_all.deb; dpkg-deb --root-owner-group -Zgzip -b /tmp/slow $f; \
                  { dpkg-deb -f $f; echo Filename: ./$f; echo Size: $(stat -c %s $f); \
                  echo SHA256: $(sha256sum $f | cut -c1-64); echo; } >> Packages; apt-get -q update";
    host.sh(script).await?.fine()?;
    Ok(host)
}

#[tokio::test]
async fn nobody_ends_a_critical_program_and_its_daemon_lives_on_outside_of_the_scope() -> Result<()> {
    require_kind!(Kind::Debian12);
    for victims in [&["sortie-server"][..], &["sortie-server", "sortie-keeper"]] {
        let lab = Lab::start().await?;
        let host = host_with_slow_package(&lab).await?;
        let mut runner = Runner::start_in_scope(&host, "").await?;
        let unit = runner.unit.clone();
        let params = json!({"name": "th-slow", "state": "present"});
        runner.begin_any(json!({"type": "pkg_ensure", "timeout": 60, "params": params})).await?;
        let script = "while [ ! -e /run/begun ]; do sleep 0.01; done; pidof apt-get th-daemon";
        let pids = within("the middle of the transaction", host.sh(script)).await??.fine()?;
        let pids: Vec<i32> = pids.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        for &pid in &pids {
            assert!(cgroup_of(&host, pid).await?.contains(&format!("{unit}/critical-")));
        }
        kill(&host, victims)?;
        if victims.len() == 2 {
            // The guardian has no more to wait for.
            host.quiet_of("sortie-guardian").await?;
        }
        assert_eq!(host.sh("pidof apt-get").await?.stdout.split_whitespace().count(), 1);
        host.write("/run/go", "", 0o644).await?;
        let state = "while pidof apt-get dpkg >/dev/null; do sleep 0.01; done; dpkg-query -W -f '${db:Status-Status}' th-slow; dpkg --audit";
        assert_eq!(within("the end of the transaction", host.sh(state)).await??.fine()?, "installed");
        if victims.len() == 1 {
            scope_goes(&host, &unit).await?;
        }
        host.sh("pidof th-daemon").await?.fine()?;
    }
    Ok(())
}

#[tokio::test]
async fn whoever_becomes_root_gets_a_scope_and_whoever_root_becomes_stays_in_its() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    host.add_user("deploy", None).await?;
    host.write("/etc/sudoers.d/deploy", "deploy ALL=(ALL) NOPASSWD: ALL\n", 0o440).await?;
    let exec = |user: &str| {
        let params = json!({"command": "grep ^0:: /proc/self/cgroup; setsid sleep 3210 >/dev/null 2>&1 &", "capture_out": true});
        json!({"type": "exec", "timeout": 60, "params": params, "become": {"user": user, "method": "sudo"}})
    };
    for (login, user, containment) in [("deploy", "root", "cgroup"), ("root", "deploy", "subreaper")] {
        let mut runner = Runner::start(&host, login, "").await?;
        let root = if login == "root" { Value::Null } else { json!({"user": "root", "method": "sudo"}) };
        runner.wait_for_scope(&root).await?;
        runner.begin_any(exec(user)).await?;
        let done = runner.end().await?;
        let result = &done["data"]["result"];
        assert_eq!(result["containment"], containment, "{done}");
        assert_eq!(result["left_running"], 1, "{done}");
        let inside = result["stdout"].as_str().context("no output")?;
        assert!(inside.contains("/sortie-"), "{inside}");
        let unit = inside.split('/').find(|part| part.starts_with("sortie-") && part.ends_with(".scope"));
        let unit = unit.context("no scope")?.to_owned();
        runner.leave().await?;
        host.quiet_of("sortie-").await?;
        scope_goes(&host, &unit).await?;
        // What it left running was released twice over.
        let left = host.sh("pkill -c -x sleep").await?;
        assert_eq!(left.stdout, "1\n", "{left:?}");
    }
    Ok(())
}
