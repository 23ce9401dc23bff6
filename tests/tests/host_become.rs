//! Becoming another user on real hosts: every way there, every way of being refused, what it costs, how it ends, and what
//! must never be seen.

mod become_support;
mod cli_support;
mod client_support;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use become_support::{
    Doas, PASSWORD, Su, Sudo, WRONG, failed, host, lab_pid, options, root, said, sh, shell, whom,
};
use cli_support::on;
use client_support::{builder, connect, target};
use nix::sys::signal::Signal;
use serde_json::json;
use sortie_client::protocol::command::exec::Exec;
use sortie_client::protocol::command::file_write::FileWrite;
use sortie_client::protocol::command::pkg_ensure::PkgEnsure;
use sortie_client::protocol::command::service_reload::ServiceReload;
use sortie_client::protocol::command::sshd_harden::SshdHarden;
use sortie_client::protocol::command::sudoers_ensure::SudoersEnsure;
use sortie_client::protocol::message::Become;
use sortie_client::protocol::{CommandSpec, ErrorCode};
use sortie_client::{CommandOptions, Error, Session};
use sortie_tests::host::matrix::record;
use sortie_tests::host::{Host, Kind, Lab};
use sortie_tests::{eventually, for_each_kind};

/// A way to another user, and what is to come of it: the user's name, or why not.
struct Case {
    name: &'static str,
    login: &'static str,
    /// Lines of sudoers(5), or of doas.conf(5) for doas.
    rules: &'static str,
    whom: Become,
    outcome: Result<(), &'static str>,
}

fn cases(kind: Kind) -> Vec<Case> {
    let case = |name, rules, whom, outcome| Case { name, login: "deploy", rules, whom, outcome };
    let sudo = |user, password| whom(user, Sudo, password);
    let right = Some(PASSWORD);
    const ALL: &str = "deploy ALL=(ALL) ALL";
    const FREE: &str = "deploy ALL=(ALL) NOPASSWD: ALL";
    let mut cases = vec![
        case("sudo, no password wanted", FREE, sudo("root", None), Ok(())),
        case("sudo, a password nobody wants", FREE, sudo("root", Some(WRONG)), Ok(())),
        case("sudo, password", ALL, sudo("root", right), Ok(())),
        case("sudo to postgres, password", ALL, sudo("postgres", right), Ok(())),
        case("sudo, requiretty", "Defaults requiretty\ndeploy ALL=(ALL) ALL", sudo("root", right), Ok(())),
        case(
            "sudo, requiretty, no password",
            "Defaults requiretty\ndeploy ALL=(ALL) NOPASSWD: ALL",
            sudo("root", None),
            Ok(()),
        ),
        case("sudo, use_pty", "Defaults use_pty\ndeploy ALL=(ALL) ALL", sudo("root", right), Ok(())),
        case(
            "sudo, log_input and log_output",
            "Defaults log_input, log_output\ndeploy ALL=(ALL) ALL",
            sudo("root", right),
            Ok(()),
        ),
        case(
            "sudo, requiretty, use_pty, log_input",
            "Defaults requiretty, use_pty, log_input, log_output\ndeploy ALL=(ALL) ALL",
            sudo("root", right),
            Ok(()),
        ),
        case("sudo, wrong password", ALL, sudo("root", Some(WRONG)), Err("wrong_password")),
        case("sudo, no password given", ALL, sudo("root", None), Err("password_required")),
        case("sudo, not in sudoers", "# nobody", sudo("root", right), Err("not_in_sudoers")),
        case(
            "sudo, listed programs only",
            "deploy ALL=(ALL) NOPASSWD: /usr/bin/id",
            sudo("root", right),
            Err("not_allowed"),
        ),
        case(
            "sudo, another user than allowed",
            "deploy ALL=(postgres) NOPASSWD: ALL",
            sudo("root", right),
            Err("not_allowed"),
        ),
        case("sudo, /bin/sh allowed", "deploy ALL=(root) NOPASSWD: /bin/sh", sudo("root", None), Ok(())),
        case("sudo, unknown user", ALL, sudo("ghost", right), Err("unknown_user")),
        case("su, password", "", whom("root", Su, right), Ok(())),
        case("su to postgres, password", "", whom("postgres", Su, right), Ok(())),
        case("su, wrong password", "", whom("root", Su, Some(WRONG)), Err("wrong_password")),
        case("su, no password given", "", whom("root", Su, None), Err("password_required")),
        case("su, account expired", "", whom("gone", Su, right), Err("account_expired")),
        case("su, no shell", "", whom("shut", Su, right), Err("no_shell")),
        case("su, unknown user", "", whom("ghost", Su, right), Err("unknown_user")),
        Case { login: "root", ..case("root to postgres by sudo", "", sudo("postgres", None), Ok(())) },
        Case { login: "root", ..case("root to postgres by su", "", whom("postgres", Su, None), Ok(())) },
        Case { login: "root", ..case("root to one without shell by su", "", whom("shut", Su, None), Ok(())) },
    ];
    if matches!(kind, Kind::Debian12 | Kind::Debian13) {
        cases.extend([
            case("doas, no password wanted", "permit nopass deploy", whom("root", Doas, None), Ok(())),
            case("doas, password", "permit deploy", whom("root", Doas, right), Ok(())),
            case("doas to postgres, password", "permit deploy", whom("postgres", Doas, right), Ok(())),
            case(
                "doas, wrong password",
                "permit deploy",
                whom("root", Doas, Some(WRONG)),
                Err("wrong_password"),
            ),
            case(
                "doas, no password given",
                "permit deploy",
                whom("root", Doas, None),
                Err("password_required"),
            ),
            case("doas, not allowed", "permit postgres", whom("root", Doas, right), Err("not_allowed")),
            case("doas, unknown user", "permit deploy", whom("ghost", Doas, right), Err("unknown_user")),
        ]);
    } else {
        cases.push(case("doas, not installed", "", whom("root", Doas, None), Err("missing_program")));
    }
    cases
}

/// Tries each; says how each ended, all of them before any is complained of.
async fn try_all(host: &Host, kind: Kind, cases: &[Case]) -> Result<()> {
    let mut wrong = Vec::new();
    println!("\n{:<40} {:<12} {:<10} outcome", kind.name(), "login", "becomes");
    for Case { name, login, rules, whom, outcome } in cases {
        if whom.method == Doas {
            host.write("/etc/doas.conf", format!("{rules}\n"), 0o400).await?;
        } else {
            host.write("/etc/sudoers.d/kit", format!("{rules}\n"), 0o440).await?;
        }
        let session = connect(&host.access(login)).await?;
        let result = sh(&session, "id -un", options(whom.clone())).await;
        let (came, right) = match result {
            Ok(result) => {
                let right = outcome.is_ok() && result.stdout.as_deref() == Some(&format!("{}\n", whom.user));
                ("became".to_owned(), right)
            }
            Err(Error::Command { error, .. }) => {
                let reason = error.details.get("reason").cloned().unwrap_or_default();
                let secret = error.message.contains(PASSWORD) || error.message.contains(WRONG);
                let right =
                    error.code == ErrorCode::BecomeFailed && Err(reason.as_str()) == *outcome && !secret;
                println!("    {}", error.message);
                (reason, right)
            }
            Err(other) => (other.to_string(), false),
        };
        println!("{name:<40} {login:<12} {:<10} {came}{}", whom.user, if right { "" } else { "   WRONG" });
        if right {
            record("become", kind, name, &came)?;
        } else {
            wrong.push(format!("{name}: {came}"));
        }
        session.close().await?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    host.quiet_of("sortie").await
}

for_each_kind!(every_way_to_another_user: Debian11, Debian12, Debian13, OpenRc, Dnf4, Dnf5, Zypper, Pacman);
async fn every_way_to_another_user(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host(&lab, kind, "").await?;
    try_all(&host, kind, &cases(kind)).await
}

for_each_kind!(sudo_rs_is_sudo: Debian13);
async fn sudo_rs_is_sudo(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host(&lab, kind, "").await?;
    let script = "for way in /usr/lib/cargo/bin/sudo /usr/bin/sudo-rs; do [ -x $way ] && ln -sf $way /usr/local/bin/sudo; done; \
                  [ -e /usr/local/bin/sudo ] && cp /etc/sudoers /etc/sudoers-rs";
    host.sh(script).await?.fine()?;
    let cases: Vec<Case> = cases(kind)
        .into_iter()
        .filter(|case| case.whom.method == Sudo && !case.rules.contains("Defaults") && case.login == "deploy")
        // It says the same of every user that may not.
        .map(|case| match case.outcome {
            Err("not_allowed") => Case { outcome: Err("not_in_sudoers"), ..case },
            _ => case,
        })
        .collect();
    try_all(&host, kind, &cases).await
}

for_each_kind!(surroundings_are_the_other_users_own: Debian12, Debian13);
async fn surroundings_are_the_other_users_own(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host(&lab, kind, "deploy ALL=(ALL) NOPASSWD: ALL\n").await?;
    host.write("/etc/doas.conf", "permit nopass deploy\n", 0o400).await?;
    host.sh("echo 'umask 077' >> /home/deploy/.bashrc; sed -i '1i umask 077' /home/deploy/.bashrc")
        .await?
        .fine()?;
    let session = connect(&host.access("deploy")).await?;
    let line = "id -un; echo $HOME $USER $LOGNAME; pwd; umask; echo ${LC_ALL-unset}; echo $PATH";
    for (user, home) in [("root", "/root"), ("postgres", "/var/lib/postgresql")] {
        for (method, password) in [(Sudo, None), (Doas, None), (Su, Some(PASSWORD))] {
            let said = said(&session, line, options(whom(user, method, password))).await?;
            let (path, rest) = said.trim_end().rsplit_once('\n').unwrap_or_default();
            ensure!(rest.split(':').any(|directory| directory == "/usr/bin"), "{method:?}: {said}");
            // Not the login's 077; PAM gives 002 to users with a group of their own on newer hosts.
            let path = path.replace("\n0002\n", "\n0022\n");
            assert_eq!(path, format!("{user}\n{home} {user} {user}\n{home}\n0022\nunset"), "{method:?}");
        }
    }
    // One whom the session is already needs nobody's leave.
    host.write("/etc/sudoers.d/kit", "\n", 0o440).await?;
    assert_eq!(said(&session, "id -un", options(whom("deploy", Sudo, None))).await?, "deploy\n");
    session.close().await?;
    host.quiet_of("sortie").await
}

for_each_kind!(an_account_that_expired_meanwhile_is_named: Debian12);
async fn an_account_that_expired_meanwhile_is_named(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host(&lab, kind, "deploy ALL=(ALL) NOPASSWD: ALL\n").await?;
    let session = connect(&host.access("deploy")).await?;
    host.sh("chage -E 1 deploy").await?.fine()?;
    let error = failed(sh(&session, "id", options(whom("root", Sudo, None))).await)?;
    assert_eq!(error.details["reason"], "account_expired", "{error:?}");
    session.close().await?;
    Ok(())
}

for_each_kind!(a_root_that_may_not_look_into_processes_gets_the_runner_sent: Debian12);
async fn a_root_that_may_not_look_into_processes_gets_the_runner_sent(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host(&lab, kind, "deploy ALL=(ALL) ALL\n").await?;
    host.sh(
        "mkdir -p /etc/systemd/system/ssh.service.d
         printf '[Service]\\nCapabilityBoundingSet=~CAP_SYS_PTRACE\\n' > /etc/systemd/system/ssh.service.d/kit.conf
         systemctl daemon-reload; systemctl restart ssh",
    )
    .await?
    .fine()?;
    let session = connect(&host.access("deploy")).await?;
    // Bit 19 of the capabilities is CAP_SYS_PTRACE.
    let line = "id -un; test $((0x$(sed -n 's/^CapEff:\t*//p' /proc/self/status) >> 19 & 1)) = 0; ls -A /dev/shm /tmp | grep -c sortie";
    let result = sh(&session, line, root()).await?;
    assert_eq!(result.stdout.as_deref(), Some("root\n0\n"), "{result:?}");
    session.close().await?;
    host.quiet_of("sortie").await
}

for_each_kind!(the_password_is_nowhere_to_be_seen: Debian12);
async fn the_password_is_nowhere_to_be_seen(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let rules = "Defaults requiretty, use_pty, log_input, log_output, !compress_io\ndeploy ALL=(ALL) ALL\n";
    let host = host(&lab, kind, rules).await?;
    host.write("/etc/doas.conf", "permit deploy\n", 0o400).await?;
    // Every argument and environment on the host, over and over, while it runs.
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(&lab_pid(&host)?.to_string());
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let watcher = std::thread::spawn(move || {
        let mut looks = 0;
        loop {
            let last = stopped.load(std::sync::atomic::Ordering::SeqCst);
            for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
                if process.file_name().to_str().and_then(namespace) != own {
                    continue;
                }
                for file in ["cmdline", "environ"] {
                    let content = std::fs::read(process.path().join(file)).unwrap_or_default();
                    if content.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes()) {
                        return Err(format!("{:?}: {}", process.path(), String::from_utf8_lossy(&content)));
                    }
                }
            }
            looks += 1;
            if last {
                return Ok(looks);
            }
        }
    });
    let mut frames = String::new();
    for method in ["sudo", "doas", "su"] {
        let command = |id: &str, data: &str| {
            format!("{{\"type\":\"CMD\",\"data\":{{\"id\":\"{id}\",\"timeout\":60,{data}}}}}\n")
        };
        let whom =
            format!("\"become\":{{\"user\":\"root\",\"method\":\"{method}\",\"password\":\"{PASSWORD}\"}}");
        let run = "\"type\":\"exec\",\"params\":{\"command\":\"id -un; env; ps axeww\",\"capture_out\":true,\"stream_lines\":true}";
        let asked = command("a", &format!("{run},{whom}"))
            + &command(
                "b",
                &format!(
                    "\"type\":\"exec\",\"params\":{{\"command\":\"id -un\",\"capture_out\":true,\"use_sudo\":true,\"sudo_password\":\"{PASSWORD}\"}}"
                ),
            )
            + &command(
                "c",
                &format!(
                    "\"type\":\"file.write\",\"params\":{{\"path\":\"/root/{method}\",\"content\":\"x\",\"create\":true,\"use_sudo\":true,\"sudo_password\":\"{PASSWORD}\"}}"
                ),
            );
        let access = host.access("deploy");
        let ended = cli_support::sortie("pipe").login(&access).arg(cli_support::name(&access));
        let ended = ended.run_with(asked.as_bytes()).await?.ended_with(0);
        assert_eq!(ended.text().matches("\"type\":\"DONE\"").count(), 3, "{}", ended.text());
        frames += ended.text();
        frames += &ended.stderr;
    }
    ensure!(!frames.contains(PASSWORD), "a frame has it");
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let looks =
        watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?.map_err(anyhow::Error::msg)?;
    ensure!(looks > 3, "looked {looks} times only");
    // What sudo recorded is there, and what was typed for sudo is not in it.
    let recorded = host.sh("grep -rlaF '\"id\":\"a\"' /var/log/sudo-io | wc -l").await?.fine()?;
    ensure!(recorded.trim() != "0", "sudo recorded no input, so this shows nothing");
    let files = host
        .sh(&format!(
            "journalctl --flush --sync; grep -rlaF {PASSWORD} / --exclude-dir=proc --exclude-dir=sys; true"
        ))
        .await?
        .fine()?;
    assert_eq!(files, "");
    let journal = host.sh("journalctl -a -o export").await?.fine()?;
    ensure!(!journal.contains(PASSWORD), "the journal has it");
    ensure!(journal.contains("deploy runs exec as uid 0"), "no line of the other user's runner");
    host.quiet_of("sortie").await
}

for_each_kind!(a_hundred_commands_start_sudo_once: Debian12);
async fn a_hundred_commands_start_sudo_once(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host(&lab, kind, "deploy ALL=(ALL) ALL\n").await?;
    let session = connect(&host.access("deploy")).await?;
    let begun = std::time::Instant::now();
    let mut running = Vec::new();
    for _ in 0..50 {
        running.push(session.start_with(&shell("id -u"), root()).await?);
    }
    for running in running {
        assert_eq!(running.wait().await?.result.stdout.as_deref(), Some("0\n"));
    }
    for _ in 0..50 {
        assert_eq!(said(&session, "id -u", root()).await?, "0\n");
    }
    let ours = begun.elapsed();
    session.close().await?;
    let count = |what: &str| format!("journalctl --sync; journalctl -q -o cat | grep -c '{what}'");
    assert_eq!(host.sh(&count("deploy : .*COMMAND=")).await?.fine()?, "1\n");
    assert_eq!(host.sh(&count("deploy runs exec as uid 0")).await?.fine()?, "100\n");

    // A hundred `sudo true` over one warm connection of ssh, for the ratio: it is printed, as no test asserts a time.
    host.write("/etc/sudoers.d/kit", "deploy ALL=(ALL) NOPASSWD: ALL\n", 0o440).await?;
    let access = host.access("deploy");
    let place = tempfile::tempdir()?;
    let control = format!("ControlPath={}/c", place.path().display());
    let ssh = |arguments: &[&str]| {
        let mut ssh = access.ssh();
        // The master outlives its first command, and must not hold this test's streams.
        ssh.args(["-o", &control])
            .args(arguments)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        ssh.status().context("ssh")
    };
    ensure!(ssh(&["-o", "ControlMaster=yes", "-o", "ControlPersist=60", "true"])?.success(), "no master");
    let begun = std::time::Instant::now();
    for _ in 0..100 {
        ensure!(ssh(&["sudo", "true"])?.success(), "sudo over ssh failed");
    }
    let theirs = begun.elapsed();
    ssh(&["-O", "exit"])?;
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!(
        "100 root commands in one session: {ours:?}; 100 sudo true over a warm ssh: {theirs:?}; ratio {ratio:.3}"
    );
    record("become", kind, "100 root commands beside 100 sudo over warm ssh", "sudo started once")?;
    Ok(())
}

for_each_kind!(streams_of_any_size_pass_in_both_directions: Debian12);
async fn streams_of_any_size_pass_in_both_directions(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host(&lab, kind, "Defaults use_pty, log_output\ndeploy ALL=(ALL) ALL\n").await?;
    let access = host.access("deploy");
    let content: Vec<u8> = (0..20_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let directory = tempfile::tempdir()?;
    let (file, back, secret) =
        (directory.path().join("f"), directory.path().join("b"), directory.path().join("s"));
    std::fs::write(&file, &content)?;
    std::fs::write(&secret, format!("{PASSWORD}\n"))?;
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let become_root = ["--become".into(), "--become-pass-file".into(), secret.into_os_string()];
    on(&access, "put").args(&become_root).arg(&file).arg("/root/large").run().await?.ended_with(0);
    ensure!(host.read("/root/large").await? == content, "what arrived is something else");
    on(&access, "get").args(&become_root).arg("/root/large").arg(&back).run().await?.ended_with(0);
    ensure!(std::fs::read(&back)? == content, "what came back is something else");
    let ended =
        on(&access, "exec").args(&become_root).args(["--", "cat"]).run_with(&content).await?.ended_with(0);
    ensure!(ended.stdout == content, "what cat gave is something else");
    let ended = on(&access, "exec").args(&become_root).args(["--", "sh", "-c", "exit 7"]).run().await?;
    ended.ended_with(7);
    let ended = on(&access, "exec").args(["--become=ghost", "--", "true"]).run().await?.ended_with(255);
    ended.says(&["ghost", "sudo"]);
    host.quiet_of("sortie").await
}

for_each_kind!(commands_of_another_user_end_as_all_others_do: Debian12);
async fn commands_of_another_user_end_as_all_others_do(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host(&lab, kind, "deploy ALL=(ALL) ALL\n").await?;
    let session = connect(&host.access("deploy")).await?;
    assert_eq!(said(&session, "id -un", root()).await?, "root\n");
    // Timeout, with what was said until then; it is the other runner that knows it.
    let brief = CommandOptions { timeout: Duration::from_secs(1), ..root() };
    let error = failed(sh(&session, "echo begun; sleep 1000", brief).await)?;
    assert_eq!(error.code, ErrorCode::Timeout);
    assert_eq!(error.details["stdout"], "begun\n");
    // Cancel, whatever the descendants did.
    let mut running = session
        .start_with(&Exec { stream_lines: true, ..shell("setsid sleep 1000 & echo begun; wait") }, root())
        .await?;
    running.next_event().await.context("no event")?;
    running.cancel(Some(1));
    assert_eq!(failed(running.wait().await)?.code, ErrorCode::Cancelled);
    host.quiet_of("sleep 1000").await?;
    // Once for each key.
    let once = || CommandOptions { idempotency_key: "k".into(), ..root() };
    for _ in 0..2 {
        assert_eq!(said(&session, "echo x >> /root/log; wc -l < /root/log", once()).await?, "1\n");
    }
    // check goes there too.
    let write = FileWrite { create: true, ..FileWrite::new("/root/new").content("x") };
    let check = CommandOptions { check: true, ..root() };
    ensure!(session.start_with(&write, check).await?.wait().await?.result.changed, "nothing to change");
    ensure!(host.read("/root/new").await.is_err(), "check wrote");

    // Its runner dies: what ran is answered, and the next command gets another one.
    let running =
        session.start_with(&Exec { stream_lines: true, ..shell("echo begun; sleep 2000") }, root()).await?;
    let mut running = running;
    running.next_event().await.context("no event")?;
    let server_of_root = || -> Result<i32> {
        let all = host.processes()?;
        let sudo = all.iter().find(|process| process.name == "sudo").context("no sudo")?.pid;
        let guardian = all.iter().find(|process| process.ppid == sudo && process.name.starts_with("sortie"));
        let guardian = guardian.context("no guardian of root")?.pid;
        Ok(all.iter().find(|process| process.ppid == guardian).context("no server of root")?.pid)
    };
    host.kill(server_of_root()?, Signal::SIGKILL)?;
    let error = failed(running.wait().await)?;
    assert_eq!((error.code, error.details["reason"].as_str()), (ErrorCode::Internal, "become_lost"));
    host.quiet_of("sleep 2000").await?;
    assert_eq!(said(&session, "id -un", root()).await?, "root\n");

    // The login's own server is killed: nothing of root's lives on.
    let mut running = session
        .start_with(&Exec { stream_lines: true, ..shell("echo begun; setsid sleep 3000") }, root())
        .await?;
    running.next_event().await.context("no event")?;
    let all = host.processes()?;
    let keeper = all.iter().find(|process| process.name == "sudo").context("no sudo")?.ppid;
    let server = all.iter().find(|process| process.pid == keeper).context("no keeper")?.ppid;
    host.kill(server, Signal::SIGKILL)?;
    ensure!(running.wait().await.is_err(), "it was answered");
    host.quiet_of("sleep 3000").await?;
    host.quiet_of("sortie").await
}

for_each_kind!(time_to_live_and_lease_hold_for_another_user_too: Debian12);
async fn time_to_live_and_lease_hold_for_another_user_too(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host(&lab, kind, "deploy ALL=(ALL) ALL\n").await?;
    let access = host.access("deploy");
    // Idle for longer than a lease: pings keep all of them alive.
    let session = builder(&access)?.lease(Some(Duration::from_secs(2))).connect(&target(&access)?).await?;
    assert_eq!(said(&session, "sleep 7; id -un", root()).await?, "root\n");
    assert_eq!(said(&session, "id -un", root()).await?, "root\n");
    session.close().await?;
    assert_eq!(
        host.sh("journalctl --sync; journalctl -q -o cat | grep -c 'deploy : .*COMMAND='").await?.fine()?,
        "1\n"
    );
    let session = builder(&access)?.ttl(Duration::from_secs(5)).connect(&target(&access)?).await?;
    let error = failed(sh(&session, "sleep 1000", root()).await)?;
    assert_eq!(error.code, ErrorCode::TtlExpired, "{error:?}");
    drop(session);
    // A controller that goes away takes all with it.
    let session = connect(&access).await?;
    let endless = Exec { stream_lines: true, ..shell("echo begun; sleep 1000") };
    let mut running = session.start_with(&endless, root()).await?;
    running.next_event().await.context("no event")?;
    drop((running, session));
    host.quiet_of("sleep 1000").await?;
    host.quiet_of("sortie").await
}

for_each_kind!(two_runners_of_a_session_exclude_each_other: Debian12);
async fn two_runners_of_a_session_exclude_each_other(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host(&lab, kind, "deploy ALL=(ALL) ALL\n").await?;
    let session = connect(&host.access("deploy")).await?;
    host.sh("install -d -o deploy /srv/shared").await?.fine()?;
    // The login's runner holds the file while its content is still on the way.
    let slow = FileWrite {
        create: true,
        content_from: Some(sortie_client::protocol::command::exec::From::Input),
        ..FileWrite::new("/srv/shared/f")
    };
    let running = session.start_with(&slow, CommandOptions::default()).await?;
    let input = running.input();
    ensure!(input.write(b"from deploy").await?, "no input taken");
    eventually("the lock of the login's runner", || {
        let locks = std::fs::read_to_string("/proc/locks")?;
        let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(format!(
            "/proc/{}/root/srv/shared",
            lab_pid(&host)?
        ))?);
        Ok(locks
            .lines()
            .any(|line| line.contains("FLOCK") && line.contains(&format!(":{inode} ")))
            .then_some(()))
    })
    .await?;
    let quick = FileWrite { create: true, ..FileWrite::new("/srv/shared/f").content("from root") };
    let brief = CommandOptions { timeout: Duration::from_secs(2), ..root() };
    let error = failed(session.start_with(&quick, brief).await?.wait().await)?;
    assert_eq!(error.code, ErrorCode::Locked, "{error:?}");
    input.finish().await?;
    running.wait().await?;
    session.start_with(&quick, root()).await?.wait().await?;
    assert_eq!(host.read("/srv/shared/f").await?, b"from root");
    session.close().await?;
    Ok(())
}

for_each_kind!(one_password_that_is_typed_once_is_for_all_hosts: Debian12);
async fn one_password_that_is_typed_once_is_for_all_hosts(kind: Kind) -> Result<()> {
    sortie_tests::require_programs!("script");
    let lab = Lab::start().await?;
    let rules = "deploy ALL=(ALL) ALL\n";
    let hosts = [host(&lab, kind, rules).await?, host(&lab, kind, rules).await?];
    let place = tempfile::tempdir()?;
    let known_hosts = place.path().join("known_hosts");
    let accesses = [hosts[0].access("deploy"), hosts[1].access("deploy")];
    let known = accesses.iter().map(|access| std::fs::read_to_string(&access.known_hosts));
    std::fs::write(&known_hosts, known.collect::<std::io::Result<Vec<_>>>()?.concat())?;
    let line = format!(
        "{} exec --become --ask-become-pass -F none -i {} --known-hosts {} -H {},{} -- id -un",
        cli_support::program().display(),
        accesses[0].identity.display(),
        known_hosts.display(),
        cli_support::name(&accesses[0]),
        cli_support::name(&accesses[1]),
    );
    let prompt = "Become password: ";
    let seen = cli_support::at_a_terminal(&line, prompt, &[PASSWORD]).await?;
    assert_eq!(seen.matches(prompt).count(), 1, "{seen}");
    ensure!(seen.contains("2 fine") && seen.matches("root").count() == 2, "{seen}");
    ensure!(!seen.contains(PASSWORD), "{seen}");
    Ok(())
}

for_each_kind!(a_host_without_any_such_program_says_so: Busybox);
async fn a_host_without_any_such_program_says_so(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    host.add_user("deploy", None).await?;
    let session = connect(&host.access("deploy")).await?;
    for method in [Sudo, Doas, Su] {
        let error = failed(sh(&session, "id", options(whom("root", method, Some(PASSWORD)))).await)?;
        assert_eq!(error.details["reason"], "missing_program", "{error:?}");
        record("become", kind, &format!("{method:?}, not installed").to_lowercase(), "missing_program")?;
    }
    session.close().await?;
    host.quiet_of("sortie").await
}

for_each_kind!(every_configuration_command_works_from_an_unprivileged_login: Debian11, Debian12, Debian13);
async fn every_configuration_command_works_from_an_unprivileged_login(kind: Kind) -> Result<()> {
    async fn twice<C>(session: &Session, kind: Kind, params: serde_json::Value) -> Result<()>
    where
        C: CommandSpec + serde::de::DeserializeOwned,
    {
        let command: C = serde_json::from_value(params)?;
        let name = C::TYPE.name();
        for expected in [true, false] {
            let result = session.start_with(&command, root()).await?.wait().await;
            let result = serde_json::to_value(result.with_context(|| name.to_owned())?.result)?;
            // What is false may be left out.
            let changed = result["changed"] == true;
            ensure!(changed == expected, "{name}: {result}");
        }
        record("become", kind, &format!("deploy to root by sudo: {name}"), "changed, then not")
    }
    let lab = Lab::start().await?;
    let host = host(&lab, kind, "deploy ALL=(ALL) ALL\n").await?;
    let session = connect(&host.access("deploy")).await?;
    twice::<PkgEnsure>(&session, kind, json!({"name": "th-svc", "state": "present", "update_cache": true}))
        .await?;
    twice::<ServiceReload>(&session, kind, json!({"name": "th-svc", "action": "stop"})).await?;
    twice::<SudoersEnsure>(
        &session,
        kind,
        json!({"user": "postgres", "state": "present", "commands": ["/usr/bin/id"], "no_passwd": true}),
    )
    .await?;
    twice::<SshdHarden>(&session, kind, json!({"disable_root_login": true})).await?;
    let effective =
        host.sh("sshd -T | grep -i permitrootlogin; sudo -l -U postgres | tail -1").await?.fine()?;
    assert_eq!(effective, "permitrootlogin no\n    (ALL : ALL) NOPASSWD: /usr/bin/id\n");
    session.close().await?;
    host.quiet_of("sortie").await
}
