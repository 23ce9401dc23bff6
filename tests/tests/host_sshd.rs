//! `sortie harden` on whole hosts: what was asked for is in force and nothing else has changed, or everything is as it was and a
//! login works.

mod cli_support;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cli_support::{Ended, Sortie, Started, on};
use nix::sys::signal::Signal;
use serde_json::Value;
use sortie_tests::access::Access;
use sortie_tests::host::{Cut, Host, Kind, Lab, matrix};
use sortie_tests::{for_each_kind, require_kind};

const OURS: &str = "/etc/ssh/sshd_config.d/00-sortie.conf";

fn harden(access: &Access) -> Sortie {
    on(access, "harden").arg("--json")
}

/// The result of a call that went well.
fn result(ended: Ended) -> Result<Value> {
    let ended = ended.ended_with(0);
    let done = ended.events().into_iter().find(|event| event["event"] == "done");
    Ok(done.with_context(|| format!("no result: {ended:?}"))?["result"].clone())
}

/// The error of a call that was refused by the runner.
fn refusal(ended: Ended, code: &str) -> Result<String> {
    let ended = ended.ended_with(1);
    let error = ended.events().into_iter().find(|event| event["event"] == "error");
    let error = error.with_context(|| format!("no error: {ended:?}"))?;
    ensure!(error["code"] == code, "{error}");
    Ok(error["message"].as_str().unwrap_or_default().to_owned())
}

/// Everything that `sshd -T` says of a keyword.
async fn effective(host: &Host, keyword: &str) -> Result<String> {
    host.sh(&format!("sshd -T | sed -n 's/^{keyword} //Ip' | sort | paste -sd, -"))
        .await?
        .fine()
        .map(|said| said.trim().to_owned())
}

/// The whole configuration, to see that it is as it was.
async fn files(host: &Host) -> Result<String> {
    host.sh("cd /etc/ssh && find . -type f ! -name '*_key*' ! -name moduli | sort | xargs sha256sum")
        .await?
        .fine()
}

async fn log_in(access: &Access) -> Result<()> {
    let output = tokio::process::Command::from(access.ssh()).arg("echo in").output().await?;
    ensure!(output.stdout == b"in\n", "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn at_port(access: &Access, port: u16) -> Access {
    let mut access = access.clone();
    access.port = port;
    access
}

/// An account that may become root by sudo.
async fn deploy(host: &Host) -> Result<Access> {
    host.write("/etc/sudoers.d/kit", "deploy ALL=(ALL) NOPASSWD: ALL\n", 0o440).await?;
    host.add_user("deploy", Some("a password")).await
}

for_each_kind!(
    what_was_asked_for_is_in_force_and_a_second_time_nothing_changes: Debian11, Debian12, Debian13, OpenRc, Dnf4, Dnf5,
    Zypper, Pacman, Arm64
);
async fn what_was_asked_for_is_in_force_and_a_second_time_nothing_changes(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let deploy = deploy(&host).await?;
    let before = files(&host).await?;
    let call = || {
        harden(&deploy).args(["--become", "--disable-password-auth", "--disable-root-login"]).args([
            "--allow-user",
            "deploy,*@192.0.2.0/24",
            "--set",
            "LoginGraceTime=30s",
        ])
    };
    let checked = result(call().args(["--check", "--diff"]).run().await?)?;
    assert_eq!(checked["changed"], true, "{checked}");
    assert!(
        checked["diff"].as_str().is_some_and(|diff| diff.contains("\n+AllowUsers deploy *@192.0.2.0/24\n"))
    );
    assert_eq!(files(&host).await?, before, "--check changes nothing");
    matrix::record("sshd_harden", kind, "check", "changed, nothing touched")?;

    let done = result(call().run().await?)?;
    assert_eq!((&done["changed"], &done["service_action"]), (&true.into(), &"reloaded".into()), "{done}");
    for (keyword, value) in [
        ("passwordauthentication", "no"),
        ("kbdinteractiveauthentication", "no"),
        ("permitrootlogin", "no"),
        ("allowusers", "*@192.0.2.0/24,deploy"),
        ("logingracetime", "30"),
    ] {
        assert_eq!(effective(&host, keyword).await?, value, "{keyword}");
    }
    assert!(effective(&host, "challengeresponseauthentication").await? != "yes");
    log_in(&deploy).await?;
    assert!(log_in(&host.access("root")).await.is_err(), "root logs in");
    matrix::record("sshd_harden", kind, "first run", "changed, reloaded, in force")?;

    let after = files(&host).await?;
    let again = result(call().run().await?)?;
    assert_eq!((&again["changed"], &again["service_action"]), (&false.into(), &"none".into()), "{again}");
    assert_eq!(files(&host).await?, after, "no backup of nothing");
    matrix::record("sshd_harden", kind, "second run", "unchanged")?;

    let tested = result(harden(&deploy).args(["--become", "--test-connection"]).run().await?)?;
    assert_eq!(tested["changed"], false);
    refusal(harden(&deploy).args(["--become", "--set", "NoSuchKey=1"]).run().await?, "INVALID_PARAMS")?;
    refusal(harden(&deploy).args(["--become", "--set", "MaxAuthTries=many"]).run().await?, "INVALID_PARAMS")?;
    refusal(harden(&deploy).args(["--disable-root-login"]).run().await?, "PERMISSION_DENIED")?;
    matrix::record("sshd_harden", kind, "wrong input", "INVALID_PARAMS, nothing touched")?;
    assert_eq!(files(&host).await?, after);
    host.quiet_of("sortie").await
}

for_each_kind!(drop_ins_and_lines_in_several_files_come_to_what_was_asked_for: Debian11, Debian12, Debian13);
async fn drop_ins_and_lines_in_several_files_come_to_what_was_asked_for(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let key = "HostKey /etc/ssh/ssh_host_ed25519_key\n";
    let cloud = "# Written by the image\nPasswordAuthentication yes\nKbdInteractiveAuthentication yes\n";
    let early = format!("# first\n\tpermitrootlogin = yes\n{key}{key}Port 22\n");
    let late = "AllowUsers\troot nobody\nPort=2222\n# AllowUsers x\n  AllowUsers deploy\nAcceptEnv X Y\n";
    let host = lab
        .host(kind)
        .file("/etc/ssh/sshd_config.d/00-early.conf", early.clone(), 0o644)
        .file("/etc/ssh/sshd_config.d/50-cloud-init.conf", cloud, 0o600)
        .file("/etc/ssh/sshd_config.d/60-late.conf", late, 0o644)
        .start()
        .await?;
    let main = host.read("/etc/ssh/sshd_config").await?;
    let call = || {
        harden(&host.access("root")).args([
            "--disable-password-auth",
            "--listen-port",
            "22",
            "--allow-user",
            "root,www",
            "--set",
            "PermitRootLogin=prohibit-password",
        ])
    };
    let done = result(call().run().await?)?;
    for (keyword, value) in [
        ("passwordauthentication", "no"),
        ("kbdinteractiveauthentication", "no"),
        ("port", "22"),
        ("allowusers", "root,www"),
        ("permitrootlogin", "without-password"),
    ] {
        assert_eq!(effective(&host, keyword).await?, value, "{keyword}");
    }
    let text = |name: &str| {
        let path = format!("/etc/ssh/sshd_config.d/{name}");
        let host = &host;
        async move { anyhow::Ok(String::from_utf8(host.read(&path).await?)?) }
    };
    assert_eq!(text("00-early.conf").await?, early.replace("= yes", "= prohibit-password"));
    assert_eq!(text("50-cloud-init.conf").await?, cloud);
    assert_eq!(text("60-late.conf").await?, "AllowUsers\troot www\n# AllowUsers x\nAcceptEnv X Y\n");
    assert_eq!(host.read("/etc/ssh/sshd_config").await?, main);
    let backups = done["backups"].as_array().context("no backups")?;
    assert_eq!(backups.len(), 2, "{done}");
    for backup in backups.iter().filter_map(Value::as_str) {
        let old = if backup.contains("early") { &*early } else { late };
        assert_eq!(host.read(backup).await?, old.as_bytes());
    }
    log_in(&host.access("root")).await?;
    assert_eq!(result(call().run().await?)?["changed"], false);
    Ok(())
}

for_each_kind!(a_match_block_that_says_the_opposite_is_a_conflict: Debian11, Debian12, Debian13);
async fn a_match_block_that_says_the_opposite_is_a_conflict(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab
        .host(kind)
        .file(
            "/etc/ssh/sshd_config.d/70-match.conf",
            "# x\nMatch User backup\n  PasswordAuthentication yes\n",
            0o644,
        )
        .start()
        .await?;
    let before = files(&host).await?;
    let call = || harden(&host.access("root")).arg("--disable-password-auth");
    let message = refusal(call().run().await?, "CONFLICT")?;
    assert!(message.contains("/etc/ssh/sshd_config.d/70-match.conf:3"), "{message}");
    assert!(message.contains("Match User backup"), "{message}");
    assert_eq!(files(&host).await?, before);
    matrix::record("sshd_harden", kind, "a contrary Match block", "CONFLICT with file and line")?;

    let done = result(call().args(["--match", "keep"]).run().await?)?;
    assert!(done["warnings"].to_string().contains("70-match.conf:3"), "{done}");
    assert_eq!(effective(&host, "passwordauthentication").await?, "no");
    let kept = host.sh("sshd -T -C user=backup,host=x,addr=192.0.2.1 | grep ^passwordauth").await?.fine()?;
    assert_eq!(kept, "passwordauthentication yes\n");
    Ok(())
}

#[tokio::test]
async fn the_login_that_it_came_by_is_not_locked_out_unless_force_insists() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let deploy = deploy(&host).await?;
    let root = host.access("root");
    let before = files(&host).await?;
    for (access, args, says) in [
        (&root, &["--disable-root-login"][..], "PermitRootLogin would be no"),
        (&root, &["--allow-user", "deploy"], "AllowUsers would not name root"),
        (&deploy, &["--become", "--allow-user", "root"], "AllowUsers would not name deploy"),
        (&deploy, &["--become", "--allow-user", "deploy@192.0.2.1"], "AllowUsers would not name deploy"),
        (&deploy, &["--become", "--set", "DenyGroups=dep*"], "DenyGroups would name a group of deploy"),
        (
            &deploy,
            &["--become", "--disable-password-auth", "--set", "AuthorizedKeysFile=.ssh/none /etc/none/%u"],
            "there is none in /home/deploy/.ssh/none or /etc/none/deploy",
        ),
        (&deploy, &["--become", "--disable-password-auth", "--set", "PubkeyAuthentication=no"], "neither"),
    ] {
        let message = refusal(harden(access).args(args).run().await?, "CONFLICT")?;
        assert!(message.contains(says) && message.contains("force"), "{args:?}: {message}");
    }
    assert_eq!(files(&host).await?, before);
    let forced = result(harden(&root).args(["--allow-user", "deploy", "--force"]).run().await?)?;
    assert!(forced["warnings"].to_string().contains("AllowUsers would not name root"), "{forced}");
    log_in(&deploy).await?;
    assert!(log_in(&root).await.is_err());
    Ok(())
}

for_each_kind!(sortie_still_connects_after_the_profile: Debian11, Debian12, Debian13);
async fn sortie_still_connects_after_the_profile(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let call = || harden(&host.access("root")).args(["--profile", "ssh-baseline"]);
    let done = result(call().args(["--confirm", "60"]).run().await?)?;
    assert_eq!(done["changed"], true);
    for (keyword, value) in [
        ("maxauthtries", "2"),
        ("loglevel", "VERBOSE"),
        ("x11forwarding", "no"),
        ("allowtcpforwarding", "no"),
        ("passwordauthentication", "no"),
        ("permitrootlogin", "without-password"),
        ("clientaliveinterval", "300"),
    ] {
        assert_eq!(effective(&host, keyword).await?, value, "{keyword}");
    }
    let weak = effective(&host, "\\(ciphers\\|macs\\|kexalgorithms\\)").await?;
    for algorithm in ["cbc", "sha1", "md5", "nistp", "umac-64"] {
        assert!(!weak.contains(algorithm), "{algorithm}: {weak}");
    }
    let said = on(&host.access("root"), "exec").args(["--", "echo", "in"]).run().await?.fine();
    assert_eq!(said.text(), "in\n");
    assert_eq!(result(call().run().await?)?["changed"], false);
    matrix::record("sshd_harden", kind, "profile ssh-baseline", "in force, Sortie connects")?;
    Ok(())
}

for_each_kind!(a_new_port_is_confirmed_by_a_login_on_it: Debian11, Debian12, Debian13);
async fn a_new_port_is_confirmed_by_a_login_on_it(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let root = host.access("root");
    let done = result(harden(&root).args(["--listen-port", "2222", "--confirm", "60"]).run().await?)?;
    assert_eq!((&done["changed"], &done["service_action"]), (&true.into(), &"reloaded".into()), "{done}");
    assert_eq!(effective(&host, "port").await?, "2222");
    assert!(log_in(&root).await.is_err(), "the old port still answers");
    // The key is known for the host; OpenSSH too takes it on every port then.
    log_in(&at_port(&root, 2222)).await?;
    matrix::record("sshd_harden", kind, "a new port, confirmed", "in force")?;
    Ok(())
}

for_each_kind!(a_socket_unit_listens_on_the_new_port: Debian12, Debian13);
async fn a_socket_unit_listens_on_the_new_port(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    host.sh("systemctl disable -q --now ssh.service && systemctl enable -q --now ssh.socket")
        .await?
        .fine()?;
    let root = host.access("root");
    let done = result(harden(&root).args(["--listen-port", "2222", "--confirm", "60"]).run().await?)?;
    assert_eq!(done["service_action"], "restarted", "{done}");
    assert!(done["files"].to_string().contains("/etc/systemd/system/ssh.socket.d/sortie.conf"), "{done}");
    assert!(log_in(&root).await.is_err(), "the old port still answers");
    let moved = at_port(&root, 2222);
    log_in(&moved).await?;
    // Another setting leaves the socket alone.
    let done = result(harden(&moved).args(["--set", "MaxAuthTries=3"]).run().await?)?;
    assert_eq!(done["files"], serde_json::json!([OURS]), "{done}");
    log_in(&moved).await?;
    matrix::record("sshd_harden", kind, "ssh.socket, a new port", "in force")?;
    Ok(())
}

#[tokio::test]
async fn a_port_that_somebody_else_has_is_taken_back() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let listen = "use Socket; socket(S,PF_INET6,SOCK_STREAM,0); bind(S,sockaddr_in6(2222,Socket::IN6ADDR_ANY)); \
                  listen(S,5); sleep 1000";
    host.exec(["systemd-run", "-q", "perl", "-e", listen]).await?.fine()?;
    until(&host, "somebody has the port", "grep -q ':08AE .* 0A ' /proc/net/tcp6").await?;
    let before = files(&host).await?;
    let root = host.access("root");
    let message = refusal(harden(&root).args(["--listen-port", "2222"]).run().await?, "ROLLED_BACK")?;
    assert!(message.contains("port 2222"), "{message}");
    as_before(&host, &before, "22").await?;

    // The files are new, and nothing is in force yet: whoever dies now, the old ones come back.
    let started = harden(&root).args(["--listen-port", "2222"]).start()?;
    // Not by `sshd -T`: once the service is down its /run/sshd is gone, and it says nothing.
    until(&host, "the files are new", "grep -rqx 'Port 2222' /etc/ssh").await?;
    kill(&host, "sortie-server")?;
    until(&host, "the change is taken back", TAKEN_BACK).await?;
    let ended = started.end().await?;
    assert!(ended.status != 0, "{ended:?}");
    as_before(&host, &before, "22").await
}

/// Kills the process of this name, of which there is one.
fn kill(host: &Host, name: &str) -> Result<()> {
    let processes = host.processes()?;
    let Some(victim) = processes.iter().find(|process| process.name == name) else {
        bail!("no {name} in {processes:?}");
    };
    host.kill(victim.pid, Signal::SIGKILL)
}

/// Everything is as it was, and a login works.
async fn as_before(host: &Host, before: &str, port: &str) -> Result<()> {
    assert_eq!(files(host).await?, before);
    assert_eq!(effective(host, "port").await?, port);
    // The files are back before the server is told, and while it takes them it does not listen.
    host.quiet_of("sortie").await?;
    let mut login = log_in(&host.access("root")).await;
    for _ in 0..5 {
        if login.is_ok() {
            break;
        }
        host.wait_ssh().await?;
        login = log_in(&host.access("root")).await;
    }
    login?;
    let said = on(&host.access("root"), "exec").args(["--", "echo", "in"]).run().await?.fine();
    assert_eq!(said.text(), "in\n");
    host.quiet_of("sortie").await
}

/// Nobody outside the host gets through to port 2222.
fn close_port() -> Result<()> {
    let rules = "table inet test {\n chain out {\n  type filter hook output priority 0;\n  tcp dport 2222 drop\n }\n}\n";
    // The calling thread is in the lab's network.
    let status = std::process::Command::new("nft").arg(rules).status()?;
    ensure!(status.success(), "nft: {status}");
    Ok(())
}

async fn until(host: &Host, what: &str, script: &str) -> Result<()> {
    let come = async {
        while host.sh(script).await?.status != 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    sortie_tests::within(what, come).await?
}

const IN_FORCE: &str = "sshd -T | grep -qx 'port 2222' && grep -q ':08AE ' /proc/net/tcp";
const TAKEN_BACK: &str = "sshd -T | grep -qx 'port 22' && grep -q ':0016 ' /proc/net/tcp && ! test -e /etc/ssh/sshd_config.d/00-sortie.conf";

/// A call that waits for a login that does not come about, once its change is in force.
async fn unconfirmed(host: &Host, seconds: &str) -> Result<Started> {
    close_port()?;
    let started = harden(&host.access("root"))
        .args(["--listen-port", "2222", "--confirm", seconds, "--connect-timeout", "100"])
        .start()?;
    until(host, "the change is in force", IN_FORCE).await?;
    Ok(started)
}

#[tokio::test]
async fn a_port_that_cannot_be_reached_and_a_key_that_is_missing_are_taken_back() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let before = files(&host).await?;
    close_port()?;
    let root = host.access("root");
    let ended = harden(&root)
        .args(["--listen-port", "2222", "--confirm", "60", "--connect-timeout", "2"])
        .run()
        .await?;
    assert!(ended.text().contains("a new login failed"), "{ended:?}");
    refusal(ended, "ROLLED_BACK")?;
    as_before(&host, &before, "22").await?;
    // Nothing else can be wrong with this one.
    let ended = harden(&root)
        .args([
            "--disable-password-auth",
            "--set",
            "AuthorizedKeysFile=/etc/none/%u",
            "--force",
            "--confirm",
            "60",
        ])
        .run()
        .await?;
    assert!(ended.text().contains("a new login failed"), "{ended:?}");
    refusal(ended, "ROLLED_BACK")?;
    as_before(&host, &before, "22").await
}

#[tokio::test]
async fn without_a_confirmation_in_time_everything_is_taken_back_although_the_link_is_cut() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let before = files(&host).await?;
    let started = unconfirmed(&host, "8").await?;
    host.cut(Cut::Drop).await?;
    until(&host, "the change is taken back", TAKEN_BACK).await?;
    host.heal().await?;
    let ended = started.end().await?;
    assert!(ended.status != 0, "{ended:?}");
    as_before(&host, &before, "22").await
}

#[tokio::test]
async fn a_killed_client_a_killed_server_and_a_killed_guardian_take_everything_back() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let before = files(&host).await?;
    for whom in ["client", "sortie-server", "sortie-guardian"] {
        let started = unconfirmed(&host, "600").await?;
        if whom == "client" {
            started.signal(Signal::SIGKILL)?;
        } else {
            kill(&host, whom)?;
        }
        until(&host, &format!("{whom}: the change is taken back"), TAKEN_BACK).await?;
        started
            .signal(Signal::SIGKILL)
            .or_else(|error| if whom == "client" { Ok(()) } else { Err(error) })?;
        let ended = started.end().await?;
        assert!(ended.status != 0, "{whom}: {ended:?}");
        as_before(&host, &before, "22").await.with_context(|| whom)?;
        let _ = std::process::Command::new("nft").args(["delete", "table", "inet", "test"]).status();
    }
    Ok(())
}

#[tokio::test]
async fn a_change_by_way_of_sudo_is_confirmed_and_taken_back_too() -> Result<()> {
    require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let deploy = deploy(&host).await?;
    let call = || harden(&deploy).args(["--become", "--confirm", "60"]);
    let done = result(call().args(["--set", "MaxAuthTries=3"]).run().await?)?;
    assert_eq!(done["changed"], true);
    assert_eq!(effective(&host, "maxauthtries").await?, "3");
    let before = files(&host).await?;
    close_port()?;
    let ended = call().args(["--listen-port", "2222", "--connect-timeout", "2"]).run().await?;
    refusal(ended, "ROLLED_BACK")?;
    as_before(&host, &before, "22").await?;
    assert!(host.read(OURS).await?.ends_with(b"MaxAuthTries 3\n"));
    Ok(())
}
