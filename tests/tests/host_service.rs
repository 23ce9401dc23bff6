//! `service_reload` on real hosts: what a service manager did, what is said of it, and what becomes of services that fail.

mod cli_support;
mod client_support;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use cli_support::on;
use client_support::connect;
use serde_json::json;
use sortie_client::protocol::ErrorCode;
use sortie_client::protocol::command::service_reload::{ServiceReload, ServiceReloadResult};
use sortie_client::protocol::message::ErrorFrame;
use sortie_client::{CommandOptions, Error, Session};
use sortie_tests::host::{Host, Kind, Lab, matrix};
use sortie_tests::{eventually, for_each_kind};

async fn put(session: &Session, command: ServiceReload) -> Result<ServiceReloadResult> {
    Ok(session.run(command).await?.result)
}

async fn refused(session: &Session, code: &ErrorCode, command: ServiceReload) -> Result<ErrorFrame> {
    match session.run(command.clone()).await {
        Err(Error::Command { error, .. }) if error.code == *code => Ok(*error),
        other => bail!("{command:?} is not refused as {code}: {other:?}"),
    }
}

/// An action on a unit.
type Make = fn(&'static str) -> ServiceReload;

/// What the result says, in short.
fn said(result: &ServiceReloadResult) -> (bool, &str, &str, bool) {
    (result.changed, &result.action, &result.status, result.enabled)
}

/// Units that live, and units that fail in their own ways.
const UNITS: &[(&str, &str)] = &[
    (
        "good",
        "[Service]\nExecStart=/bin/sleep infinity\nExecReload=/bin/sh -c 'echo >> /run/reloads'\n[Install]\nWantedBy=multi-user.target\n",
    ),
    ("inst@", "[Service]\nExecStart=/bin/sh -c 'echo %i > /run/inst; exec sleep infinity'\n"),
    ("once", "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo >> /run/once'\n"),
    ("slow", "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sleep 7\n"),
    ("dies", "[Service]\nExecStart=/bin/sh -c 'echo cannot read my configuration; sleep 0.1; exit 3'\n"),
    ("refuses", "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo no such port; exit 4'\n"),
    (
        "flaps",
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/sh -c 'sleep 0.1; exit 3'\nRestart=always\nRestartSec=0\n",
    ),
    (
        "hup",
        "[Service]\nExecStart=/bin/sh -c 'trap \"echo bad configuration; exit 5\" HUP; while :; do sleep 0.05; done'\n\
         ExecReload=/bin/kill -HUP $MAINPID\n",
    ),
    (
        "passed",
        "[Unit]\nConditionPathExists=/nowhere\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
    ),
    ("bad", "[Service]\nNothing=at all\n"),
];

async fn host_with_units(lab: &Lab, kind: Kind) -> Result<Host> {
    let host = UNITS.iter().fold(lab.host(kind).name("web1"), |host, (name, text)| {
        host.file(&format!("/usr/lib/systemd/system/{name}.service"), *text, 0o644)
    });
    host.start().await
}

async fn property(host: &Host, unit: &str, name: &str) -> Result<String> {
    let said = host.exec(["systemctl", "show", "--value", "-p", name, "--", unit]).await?.fine()?;
    Ok(said.trim().to_owned())
}

for_each_kind!(systemd_is_brought_where_it_was_asked_to_be: Debian11, Debian12, Debian13, Dnf4, Dnf5, Zypper, Pacman, Arm64);
async fn systemd_is_brought_where_it_was_asked_to_be(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_units(&lab, kind).await?;
    let session = connect(&host.access("root")).await?;
    let steps: [(Make, _, _); 9] = [
        (ServiceReload::start, (true, "started", "active", false), "already_started"),
        (ServiceReload::enable, (true, "enabled", "active", true), "already_enabled"),
        (ServiceReload::reload, (true, "reloaded", "active", true), "reloaded"),
        (ServiceReload::restart, (true, "restarted", "active", true), "restarted"),
        (ServiceReload::try_restart, (true, "try_restarted", "active", true), "try_restarted"),
        (ServiceReload::stop, (true, "stopped", "inactive", true), "already_stopped"),
        (ServiceReload::disable, (true, "disabled", "inactive", false), "already_disabled"),
        (ServiceReload::mask, (true, "masked", "inactive", false), "already_masked"),
        (ServiceReload::unmask, (true, "unmasked", "inactive", false), "already_unmasked"),
    ];
    for (action, first, second) in steps {
        let command = action("good");
        let about = "--property=ActiveState,MainPID,UnitFileState,InvocationID,StateChangeTimestampMonotonic";
        let state = async || host.exec(["systemctl", "show", about, "good"]).await?.fine();
        let before = state().await?;
        let options = CommandOptions { check: true, ..CommandOptions::default() };
        let would = session.start_with(&command, options).await?.wait().await?.result;
        assert_eq!((would.changed, would.action.as_str()), (true, first.1), "check of {command:?}");
        assert_eq!(state().await?, before, "{command:?}");
        let result = put(&session, command.clone()).await.with_context(|| format!("{command:?}"))?;
        assert_eq!(said(&result), first, "{command:?}");
        let between = state().await?;
        assert_ne!(between, before, "{command:?}");
        let result = put(&session, command.clone()).await?;
        let again = result.action == first.1;
        assert_eq!((result.action.as_str(), result.changed), (second, again), "{command:?}");
        if !again {
            assert_eq!(state().await?, between, "{command:?}");
        }
        for case in ["first run", "second run", "check"] {
            matrix::record("service_reload", kind, &format!("{}, {case}", command.action), "as documented")?;
        }
    }
    assert_eq!(host.read("/run/reloads").await?, b"\n\n");
    assert_eq!(put(&session, ServiceReload::try_restart("good")).await?.action, "already_stopped");
    session.close().await?;
    Ok(())
}

for_each_kind!(names_aliases_and_kinds_of_units: Debian11, Debian12, Debian13);
async fn names_aliases_and_kinds_of_units(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_units(&lab, kind).await?;
    let session = connect(&host.access("root")).await?;
    assert!(put(&session, ServiceReload::start("inst@a-b.service")).await?.changed);
    assert_eq!(host.read("/run/inst").await?, b"a-b\n");
    // sshd is an alias on Debian; the session survives its reload and its restart.
    for command in [ServiceReload::reload("sshd"), ServiceReload::restart("sshd")] {
        assert_eq!(
            said(&put(&session, command.clone()).await?),
            (true, &*(command.action + "ed"), "active", true)
        );
    }
    assert_eq!(put(&session, ServiceReload::enable("sshd.service")).await?.action, "already_enabled");
    assert_eq!(put(&session, ServiceReload::start("multi-user.target")).await?.action, "already_started");
    assert_eq!(put(&session, ServiceReload::start("dbus.socket")).await?.action, "already_started");
    // It runs once more each time, and is not up afterwards.
    for command in
        [ServiceReload::start("once"), ServiceReload::start("once"), ServiceReload::restart("once")]
    {
        let result = put(&session, command).await?;
        assert_eq!((result.changed, result.status.as_str()), (true, "inactive"));
    }
    assert_eq!(host.read("/run/once").await?, b"\n\n\n");
    // A file that changed since systemd read it.
    put(&session, ServiceReload::start("good")).await?;
    host.sh("sed -i 's/sleep infinity/sleep 1000000/' /usr/lib/systemd/system/good.service").await?.fine()?;
    put(&session, ServiceReload::restart("good")).await?;
    let pid = property(&host, "good", "MainPID").await?;
    assert_eq!(host.read(&format!("/proc/{pid}/cmdline")).await?, b"/bin/sleep\x001000000\0");
    session.close().await?;
    Ok(())
}

for_each_kind!(a_service_that_fails_is_an_error_with_its_last_words: Debian11, Debian12, Debian13, Arm64);
async fn a_service_that_fails_is_an_error_with_its_last_words(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_units(&lab, kind).await?;
    let session = connect(&host.access("root")).await?;
    put(&session, ServiceReload::start("hup")).await?;
    host.sh("systemctl enable passed").await?.fine()?;
    for (command, status, words) in [
        (ServiceReload::start("dies"), "failed", "cannot read my configuration"),
        (ServiceReload::restart("dies"), "failed", "cannot read my configuration"),
        (ServiceReload::start("refuses"), "failed", "no such port"),
        (ServiceReload::start("flaps"), "activating", "status=3"),
        (ServiceReload::reload("hup"), "failed", "bad configuration"),
        (ServiceReload::start("passed"), "inactive", "condition"),
    ] {
        let error = refused(&session, &ErrorCode::ServiceFailed, command.clone()).await?;
        let detail = |name: &str| error.details.get(name).cloned().unwrap_or_default();
        assert!(error.message.contains(&command.name) && error.message.contains(words), "{error:?}");
        assert_eq!(detail("status"), status, "{error:?}");
        assert!(!error.message.contains('\n') && error.message.len() < 8 * 1024, "{error:?}");
        assert!(words == "condition" || detail("log").contains(words), "{error:?}");
        matrix::record(
            "service_reload",
            kind,
            &format!("{} of a unit that fails", command.action),
            "SERVICE_FAILED",
        )?;
    }
    assert_eq!(put(&session, ServiceReload::stop("flaps")).await?.action, "stopped");
    session.close().await?;
    Ok(())
}

for_each_kind!(
    wrong_input_is_refused_and_touches_nothing: Debian11, Debian12, Debian13, OpenRc, Dnf4, Dnf5, Zypper, Pacman, Arm64
);
async fn wrong_input_is_refused_and_touches_nothing(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_units(&lab, kind).await?;
    let session = connect(&host.access("root")).await?;
    for name in ["", "-x", "--now", "a b", "a\nb", "a\0", "../x", "/etc/x", "*", "a;b", "getty@", "é"] {
        let error = refused(&session, &ErrorCode::InvalidParams, ServiceReload::restart(name)).await?;
        assert!(error.message.starts_with("name"), "{error:?}");
    }
    let kick = ServiceReload { name: "ssh".into(), action: "kick".into() };
    let error = refused(&session, &ErrorCode::InvalidParams, kick).await?;
    assert!(error.message.starts_with("action"), "{error:?}");
    for command in
        [ServiceReload::start("no-such"), ServiceReload::disable("no-such"), ServiceReload::stop("no-such")]
    {
        let error = refused(&session, &ErrorCode::NotFound, command).await?;
        assert!(error.message.contains("no-such"), "{error:?}");
    }
    if kind == Kind::OpenRc {
        let error = refused(&session, &ErrorCode::Unsupported, ServiceReload::mask("ssh")).await?;
        assert!(error.message.contains("OpenRC"), "{error:?}");
    } else {
        put(&session, ServiceReload::mask("good")).await?;
        for (command, words) in [
            (ServiceReload::start("good"), "unmask"),
            (ServiceReload::enable("good"), "unmask"),
            (ServiceReload::reload("slow"), "start it"),
            (ServiceReload::enable("once"), "[Install]"),
            (ServiceReload::start("bad"), "cannot load"),
        ] {
            let error = refused(&session, &ErrorCode::Conflict, command).await?;
            assert!(error.message.contains(words), "{error:?}");
        }
        put(&session, ServiceReload::start("inst@x")).await?;
        let error = refused(&session, &ErrorCode::Conflict, ServiceReload::reload("inst@x")).await?;
        assert!(error.message.contains("restart it"), "{error:?}");
        assert_eq!(property(&host, "good", "UnitFileState").await?, "masked");
    }
    matrix::record("service_reload", kind, "wrong input, unknown unit", "refused by name")?;
    session.close().await?;
    Ok(())
}

for_each_kind!(a_long_job_is_told_of_and_outlives_the_command: Debian12);
async fn a_long_job_is_told_of_and_outlives_the_command(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_units(&lab, kind).await?;
    let session = connect(&host.access("root")).await?;
    let mut running = session.start(ServiceReload::start("slow")).await?;
    let event = running.next_event().await.context("no event")?;
    assert_eq!(event.message, "waiting for the start of slow.service");
    let result = running.wait().await?.result;
    assert_eq!(said(&result), (true, "started", "active", false));
    host.sh("systemctl stop slow").await?.fine()?;
    let options = CommandOptions { timeout: Duration::from_secs(1), ..CommandOptions::default() };
    match session.start_with(&ServiceReload::start("slow"), options).await?.wait().await {
        Err(Error::Command { error, .. }) if error.code == ErrorCode::Timeout => {}
        other => bail!("no timeout: {other:?}"),
    }
    eventually("systemd ends its own job", || {
        let state = std::process::Command::new("nsenter")
            .args(["-t", &host.leader()?.to_string(), "-a", "systemctl", "is-active", "slow"])
            .output()?;
        anyhow::ensure!(state.stdout == b"active\n", "{state:?}");
        Ok(())
    })
    .await?;
    session.close().await?;
    Ok(())
}

for_each_kind!(an_unprivileged_login_needs_become: Debian12);
async fn an_unprivileged_login_needs_become(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_units(&lab, kind).await?;
    let access = host.add_user("ops", None).await?;
    host.write("/etc/sudoers.d/ops", "ops ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440).await?;
    let ended = on(&access, "service").args(["start", "good"]).run().await?;
    ended.ended_with(1).says(&["PERMISSION_DENIED", "become"]);
    let ended = on(&access, "service").args(["start", "good", "--check"]).run().await?.fine();
    assert!(ended.text().ends_with("good: would be started: inactive (dead)\n"), "{ended:?}");
    // In order, and no further than the first that fails.
    let ended = on(&access, "service").args(["--become", "start", "good", "dies", "once"]).run().await?;
    let ended = ended.ended_with(1).says(&["SERVICE_FAILED", "cannot read my configuration"]);
    assert!(ended.text().ends_with("good: started: active (running)\n"), "{ended:?}");
    assert_eq!(host.sh("test -e /run/once").await?.status, 1);
    let ended =
        on(&access, "service").args(["--become", "--json", "restart", "good", "once"]).run().await?.fine();
    let done: Vec<_> = ended.events().into_iter().filter(|event| event["event"] == "done").collect();
    assert_eq!(done.len(), 2, "{ended:?}");
    assert_eq!((&done[0]["command"], &done[0]["result"]["name"]), (&json!("service"), &json!("good")));
    assert_eq!(
        (&done[1]["result"]["action"], &done[1]["result"]["changed"]),
        (&json!("restarted"), &json!(true))
    );
    host.quiet_of("sortie").await
}

for_each_kind!(without_a_service_manager_nothing_is_tried: Busybox);
async fn without_a_service_manager_nothing_is_tried(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let session = connect(&host.access("root")).await?;
    let error = refused(&session, &ErrorCode::Unsupported, ServiceReload::restart("dropbear")).await?;
    assert!(error.message.contains("systemd and OpenRC only"), "{error:?}");
    matrix::record("service_reload", kind, "any action", "UNSUPPORTED: no service manager")?;
    session.close().await?;
    Ok(())
}

const SCRIPT: &str = "#!/sbin/openrc-run\ncommand=/bin/sleep\ncommand_args=1000000\ncommand_background=yes\npidfile=/run/$RC_SVCNAME.pid\n\
                      extra_started_commands=reload\nreload() { echo >> /run/reloads; }\n";
const BROKEN: &str = "#!/sbin/openrc-run\nstart() { eerror no such port; return 1; }\n";

for_each_kind!(openrc_is_brought_where_it_was_asked_to_be: OpenRc);
async fn openrc_is_brought_where_it_was_asked_to_be(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab
        .host(kind)
        .file("/etc/init.d/good", SCRIPT, 0o755)
        .file("/etc/init.d/broken", BROKEN, 0o755)
        .start()
        .await?;
    let session = connect(&host.access("root")).await?;
    let steps: [(Make, _, _); 7] = [
        (ServiceReload::start, (true, "started", "active", false), "already_started"),
        (ServiceReload::enable, (true, "enabled", "active", true), "already_enabled"),
        (ServiceReload::reload, (true, "reloaded", "active", true), "reloaded"),
        (ServiceReload::restart, (true, "restarted", "active", true), "restarted"),
        (ServiceReload::try_restart, (true, "try_restarted", "active", true), "try_restarted"),
        (ServiceReload::disable, (true, "disabled", "active", false), "already_disabled"),
        (ServiceReload::stop, (true, "stopped", "inactive", false), "already_stopped"),
    ];
    for (action, first, second) in steps {
        let command = action("good");
        let options = CommandOptions { check: true, ..CommandOptions::default() };
        let would = session.start_with(&command, options).await?.wait().await?.result;
        assert_eq!((would.changed, would.action.as_str()), (true, first.1), "check of {command:?}");
        let pid = host.sh("cat /run/good.pid").await?.stdout;
        let result = put(&session, command.clone()).await.with_context(|| format!("{command:?}"))?;
        assert_eq!(said(&result), first, "{command:?}");
        let same = host.sh("cat /run/good.pid").await?.stdout == pid;
        assert_eq!(
            same,
            !matches!(first.1, "started" | "restarted" | "try_restarted" | "stopped"),
            "{command:?}"
        );
        let result = put(&session, command.clone()).await?;
        assert_eq!(
            (result.action.as_str(), result.changed),
            (second, result.action == first.1),
            "{command:?}"
        );
        for case in ["first run", "second run", "check"] {
            matrix::record("service_reload", kind, &format!("{}, {case}", command.action), "as documented")?;
        }
    }
    let error = refused(&session, &ErrorCode::ServiceFailed, ServiceReload::start("broken")).await?;
    assert!(error.message.contains("no such port"), "{error:?}");
    refused(&session, &ErrorCode::ServiceFailed, ServiceReload::restart("broken")).await?;
    matrix::record("service_reload", kind, "start of a unit that fails", "SERVICE_FAILED")?;
    // What was started belongs to the host, not to the session.
    put(&session, ServiceReload::start("good")).await?;
    session.close().await?;
    host.quiet_of("sortie").await?;
    assert_eq!(host.sh("kill -0 $(cat /run/good.pid) && rc-service good status").await?.status, 0);
    Ok(())
}
