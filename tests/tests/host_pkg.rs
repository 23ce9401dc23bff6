//! Packages on real hosts, by the managers that they have: what changes, what does not, and that nothing stays half done.

mod cli_support;
mod client_support;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cli_support::on;
use client_support::{builder, connect, target};
use sortie_client::protocol::ErrorCode;
use sortie_client::protocol::command::exec::Exec;
use sortie_client::protocol::command::pkg_ensure::{PackageVersions, PkgEnsure, PkgEnsureResult};
use sortie_client::protocol::message::{ErrorFrame, Event};
use sortie_client::{CommandOptions, Error, Session};
use sortie_tests::host::{Cut, Host, Kind, Lab, matrix};
use sortie_tests::{for_each_kind, within};

use nix::sys::signal::Signal;

/// Versions as the manager of the kind writes them.
fn version(kind: Kind, version: &str) -> String {
    if is_apt(kind) { version.to_owned() } else { format!("{version}-1") }
}

fn is_apt(kind: Kind) -> bool {
    !matches!(kind, Kind::Dnf4 | Kind::Dnf5 | Kind::Zypper | Kind::Pacman)
}

async fn ensured(session: &Session, ensure: &PkgEnsure) -> Result<PkgEnsureResult, Error> {
    ensured_with(session, ensure, CommandOptions::default()).await
}

async fn ensured_with(
    session: &Session,
    ensure: &PkgEnsure,
    options: CommandOptions,
) -> Result<PkgEnsureResult, Error> {
    Ok(session.start_with(ensure, options).await?.wait().await?.result)
}

fn check() -> CommandOptions {
    CommandOptions { check: true, diff: true, ..CommandOptions::default() }
}

async fn refused(session: &Session, ensure: &PkgEnsure, code: ErrorCode) -> Result<ErrorFrame> {
    refused_with(session, ensure, CommandOptions::default(), code).await
}

async fn refused_with(
    session: &Session,
    ensure: &PkgEnsure,
    options: CommandOptions,
    code: ErrorCode,
) -> Result<ErrorFrame> {
    match ensured_with(session, ensure, options).await {
        Err(Error::Command { error, .. }) if error.code == code => Ok(*error),
        other => bail!("not {code}: {other:?}"),
    }
}

/// What the host's manager says is installed, a package and its version a line.
async fn installed(host: &Host) -> Result<String> {
    let list = match host.kind() {
        Kind::Dnf4 | Kind::Dnf5 | Kind::Zypper => "rpm -qa --qf '%{NAME} %{VERSION}-%{RELEASE}\\n' | sort",
        Kind::Pacman => "pacman -Q || true",
        _ => {
            "dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n' | grep ' installed$' | cut -d' ' -f1,2"
        }
    };
    host.sh(list).await?.fine()
}

/// The lines of `after` that are not in `before`, and the other way round: `+a 2`, `-a 1`.
fn changes(before: &str, after: &str) -> Vec<String> {
    let of = |sign: &str, these: &str, those: &str| -> Vec<String> {
        these
            .lines()
            .filter(|line| !those.lines().any(|other| other == *line))
            .map(|line| format!("{sign}{line}"))
            .collect()
    };
    [of("-", before, after), of("+", after, before)].concat()
}

fn row(name: &str, old: Option<&str>, new: Option<&str>) -> PackageVersions {
    PackageVersions {
        name: name.to_owned(),
        previous_version: old.map(str::to_owned),
        installed_version: new.map(str::to_owned),
    }
}

/// `apt-get update` and its like, as a host that is in use has seen it.
async fn refreshed(session: &Session) -> Result<()> {
    let absent = PkgEnsure::absent(["th-hello"]).update_cache(true);
    ensure!(!ensured(session, &absent).await?.changed, "th-hello is there before anything is done");
    Ok(())
}

for_each_kind!(
    packages_come_change_and_go: Debian11, Debian12, Debian13, OpenRc, Dnf4, Dnf5, Zypper, Pacman, Arm64
);
async fn packages_come_change_and_go(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let session = connect(&host.access("root")).await?;
    refreshed(&session).await?;
    let clean = installed(&host).await?;
    let note = |case: &str, outcome: &str| matrix::record("pkg_ensure", kind, case, outcome);
    let (old, new) = (version(kind, "1.0"), version(kind, "1.1"));

    // pacman's sources have one version alone; older ones have to be in its cache.
    if kind == Kind::Pacman {
        host.sh("cp $(find /srv -name 'th-hello-1.0-*.zst') /var/cache/pacman/pkg/").await?.fine()?;
    }
    let one = PkgEnsure::present(["th-hello"]).version("1.0");
    let would = ensured_with(&session, &one, check()).await?;
    assert_eq!((would.changed, would.action.as_str()), (true, "installed"));
    assert_eq!((would.previous_version.as_ref(), would.installed_version.as_ref()), (None, Some(&old)));
    let diff = would.diff.context("no diff")?;
    assert!(diff.contains(&format!("\n+th-hello {old}\n")), "{diff}");
    assert_eq!(installed(&host).await?, clean, "check changed something");
    note("check", "says what would change, changes nothing")?;

    let first = ensured(&session, &one).await?;
    assert_eq!((first.changed, first.action.as_str()), (true, "installed"));
    assert_eq!(first.also_changed, [row("th-lib", None, Some(&version(kind, "1.0")))]);
    let again = ensured(&session, &one).await?;
    assert_eq!((again.changed, again.action.as_str()), (false, "already_present"));
    assert_eq!((again.previous_version.as_ref(), again.installed_version.as_ref()), (Some(&old), Some(&old)));
    assert!(again.also_changed.is_empty() && again.packages.is_empty());
    note("first run, second run", "installed with what it needs, `changed: false`")?;

    let before = installed(&host).await?;
    let latest = PkgEnsure::latest(["th-hello"]);
    let would = ensured_with(&session, &latest, check()).await?;
    assert_eq!((would.changed, would.action.as_str()), (true, "upgraded"));
    let upgraded = ensured(&session, &latest).await?;
    assert_eq!((upgraded.changed, upgraded.action.as_str()), (true, "upgraded"));
    assert_eq!(
        (upgraded.previous_version.as_ref(), upgraded.installed_version.as_ref()),
        (Some(&old), Some(&new))
    );
    assert_eq!(
        changes(&before, &installed(&host).await?),
        [format!("-th-hello {old}"), format!("+th-hello {new}")]
    );
    let again = ensured(&session, &latest).await?;
    assert_eq!((again.changed, again.action.as_str()), (false, "already_present"));
    note("latest", "upgraded, everything else as it was")?;

    let down = ensured(&session, &one).await?;
    assert_eq!((down.changed, down.action.as_str()), (true, "downgraded"));
    assert_eq!((down.previous_version.as_ref(), down.installed_version.as_ref()), (Some(&new), Some(&old)));
    assert_eq!(installed(&host).await?, before);
    note("exact older version", "downgraded")?;

    let error = refused(&session, &PkgEnsure::present(["th-none"]), ErrorCode::NotFound).await?;
    assert!(error.message.contains("th-none"), "{error:?}");
    // A pattern for apt-get, and no package.
    refused(&session, &PkgEnsure::present(["th-hell."]), ErrorCode::NotFound).await?;
    let error =
        refused(&session, &PkgEnsure::present(["th-hello"]).version("9.9"), ErrorCode::NotFound).await?;
    assert!(error.details["available"].contains(&new), "{error:?}");
    for wrong in ["-y", "a b", "../a", "a\nb", "th-*"] {
        let error = refused(&session, &PkgEnsure::present([wrong]), ErrorCode::InvalidParams).await?;
        assert!(error.message.starts_with("name: "), "{error:?}");
    }
    assert_eq!(installed(&host).await?, before);
    note("wrong input", "named, nothing touched")?;

    // pacman refuses to take away what something needs; the others take that along.
    let gone = if kind == Kind::Pacman {
        refused(&session, &PkgEnsure::absent(["th-lib"]), ErrorCode::Conflict).await?;
        ensured(&session, &PkgEnsure::absent(["th-hello", "th-lib"])).await?
    } else {
        let gone = ensured(&session, &PkgEnsure::absent(["th-lib"])).await?;
        assert_eq!(gone.also_changed, [row("th-hello", Some(&old), None)]);
        gone
    };
    assert_eq!((gone.changed, gone.action.as_str()), (true, "removed"));
    assert_eq!(installed(&host).await?, clean);
    let again = ensured(&session, &PkgEnsure::absent(["th-lib"])).await?;
    assert_eq!((again.changed, again.action.as_str()), (false, "already_absent"));
    assert_eq!((again.previous_version, again.installed_version), (None, None));
    note("absent", "removed, `changed: false`")?;
    session.close().await?;
    host.quiet_of("sortie").await
}

for_each_kind!(several_packages_are_one_transaction: Debian12, Dnf4, Dnf5, Zypper, Pacman);
async fn several_packages_are_one_transaction(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let session = connect(&host.access("root")).await?;
    refreshed(&session).await?;
    let third = match kind {
        Kind::Pacman => None,
        kind if is_apt(kind) => Some("th-svc"),
        _ => Some("th-alone"),
    };
    let names: Vec<&str> = ["th-hello", "th-lib"].into_iter().chain(third).collect();
    let result = ensured(&session, &PkgEnsure::present(names.clone())).await?;
    assert_eq!((result.changed, result.action.as_str()), (true, "installed"));
    let seen: Vec<&str> = result.packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(seen, names);
    assert!(result.packages.iter().all(|p| p.previous_version.is_none() && p.installed_version.is_some()));
    assert!(result.also_changed.is_empty() && result.installed_version.is_none());
    let transactions = match kind {
        Kind::Dnf4 => "dnf-3 -q history list | grep -c '^ *[0-9]'",
        Kind::Dnf5 => "dnf5 -q history list | grep -c '^ *[0-9]'",
        Kind::Zypper => "grep -c '|command|' /var/log/zypp/history",
        Kind::Pacman => "grep -c 'transaction completed' /var/log/pacman.log",
        _ => "grep -c '^Start-Date' /var/log/apt/history.log",
    };
    let count = host.sh(transactions).await?.stdout;
    assert_eq!(count.trim(), "1");
    // One that does not exist, and none of them is touched.
    let before = installed(&host).await?;
    ensured(&session, &PkgEnsure::absent(["th-hello"])).await?;
    let after = installed(&host).await?;
    assert_eq!(changes(&before, &after).len(), 1);
    let error = refused(&session, &PkgEnsure::present(["th-hello", "th-none"]), ErrorCode::NotFound).await?;
    assert!(error.message.contains("th-none"), "{error:?}");
    assert_eq!(installed(&host).await?, after);
    matrix::record("pkg_ensure", kind, "several packages", "one transaction, all or none")?;
    session.close().await?;
    Ok(())
}

/// A package whose script says that it has begun, and goes on when it is told to.
const SLOW: &str =
    "#!/bin/sh\nset -e\ntouch /run/th-slow.begun\nwhile [ ! -e /run/th-slow.go ]; do sleep 0.05; done\n";

/// Adds packages of one's own to the host's repository, each with such a script after its installation.
async fn with_package(host: &Host, name: &str, postinst: &str) -> Result<()> {
    host.sh(&format!("mkdir -p /tmp/{name}/DEBIAN")).await?.fine()?;
    host.write(&format!("/tmp/{name}/DEBIAN/postinst"), postinst, 0o755).await?;
    let control = format!(
        "Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: Test Kit <root@localhost>\nDescription: test package\n"
    );
    host.write(&format!("/tmp/{name}/DEBIAN/control"), control, 0o644).await?;
    host.sh(&format!(
        "set -e; cd /srv/repo; dpkg-deb --root-owner-group -Zgzip -b /tmp/{name} {name}_1.0_all.deb; \
         {{ dpkg-deb -f {name}_1.0_all.deb; echo Filename: ./{name}_1.0_all.deb; echo Size: $(stat -c %s {name}_1.0_all.deb); \
         echo SHA256: $(sha256sum {name}_1.0_all.deb | cut -c1-64); echo; }} >> Packages; apt-get -q update"
    ))
    .await?
    .fine()?;
    Ok(())
}

/// A host where `th-slow` can be installed, and what it is like in the middle of that.
async fn slow_host(lab: &Lab) -> Result<Host> {
    let host = lab.host(Kind::Debian12).start().await?;
    with_package(&host, "th-slow", SLOW).await?;
    Ok(host)
}

/// How many processes of this name the host has.
fn running_on(host: &Host, name: &str) -> Result<usize> {
    Ok(host.processes()?.iter().filter(|process| process.name == name).count())
}

/// Waits until the transaction is in its middle.
async fn begun(host: &Host) -> Result<()> {
    within("the middle of the transaction", async {
        while host.sh("test -e /run/th-slow.begun").await?.status != 0 {}
        Ok(())
    })
    .await?
}

/// Lets the transaction go on, and waits until it is through and the database whole.
async fn through(host: &Host) -> Result<()> {
    host.write("/run/th-slow.go", "", 0o644).await?;
    within("the end of the transaction", async {
        while running_on(host, "apt-get")? + running_on(host, "dpkg")? > 0 {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    })
    .await??;
    let status = host.sh("dpkg-query -W -f '${db:Status-Status}' th-slow").await?.fine()?;
    assert_eq!(status, "installed");
    assert_eq!(host.sh("dpkg --audit; ls /var/lib/dpkg/updates").await?.fine()?, "");
    host.quiet_of("sortie").await
}

fn slow() -> PkgEnsure {
    PkgEnsure::present(["th-slow"])
}

#[tokio::test]
async fn cancel_in_the_middle_of_a_transaction_leaves_the_database_whole_and_tells_the_result() -> Result<()>
{
    sortie_tests::require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = slow_host(&lab).await?;
    let session = connect(&host.access("root")).await?;
    let running = session.start(slow()).await?;
    begun(&host).await?;
    running.cancel(Some(0));
    // Frames are read in order: with its answer the CANCEL has been read too.
    session.run(Exec::shell("true")).await?;
    assert_eq!(running_on(&host, "apt-get")?, 1);
    host.write("/run/th-slow.go", "", 0o644).await?;
    let result = running.wait().await?.result;
    assert_eq!((result.changed, result.action.as_str()), (true, "installed"));
    session.close().await?;
    through(&host).await
}

#[tokio::test]
async fn a_cut_link_in_the_middle_of_a_transaction_leaves_the_database_whole() -> Result<()> {
    sortie_tests::require_kind!(Kind::Debian12);
    for cut in [Cut::Reset, Cut::Drop] {
        let lab = Lab::start().await?;
        let host = slow_host(&lab).await?;
        let client = builder(&host.access("root"))?.lease(Some(Duration::from_secs(2)));
        let session = client.connect(&target(&host.access("root"))?).await?;
        let running = session.start(slow()).await?;
        begun(&host).await?;
        host.cut(cut).await?;
        let lost = within("the loss", running.wait()).await?;
        assert!(lost.is_err(), "{lost:?}");
        assert_eq!(running_on(&host, "apt-get")?, 1);
        through(&host).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_time_to_live_does_not_end_a_transaction_in_its_middle() -> Result<()> {
    sortie_tests::require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = slow_host(&lab).await?;
    let client = builder(&host.access("root"))?.ttl(Duration::from_secs(5));
    let session = client.connect(&target(&host.access("root"))?).await?;
    let running = session.start(slow()).await?;
    begun(&host).await?;
    // The client gives up a while after the runner's time: then that is over for certain.
    let lost = within("the end of its time", running.wait()).await?;
    assert!(lost.is_err(), "{lost:?}");
    assert_eq!(running_on(&host, "apt-get")?, 1);
    through(&host).await
}

#[tokio::test]
async fn the_runners_death_in_the_middle_of_a_transaction_leaves_the_database_whole() -> Result<()> {
    sortie_tests::require_kind!(Kind::Debian12);
    for victim in ["sortie-server", "sortie-guardian"] {
        let lab = Lab::start().await?;
        let host = slow_host(&lab).await?;
        let client = builder(&host.access("root"))?.lease(Some(Duration::from_secs(2)));
        let session = client.connect(&target(&host.access("root"))?).await?;
        let running = session.start(slow()).await?;
        begun(&host).await?;
        let processes = host.processes()?;
        let found = processes.iter().find(|process| process.name == victim);
        let pid = found.with_context(|| format!("no {victim} in {processes:?}"))?.pid;
        host.kill(pid, Signal::SIGKILL)?;
        let lost = within("the loss", running.wait()).await?;
        assert!(lost.is_err(), "{lost:?}");
        assert_eq!(running_on(&host, "apt-get")?, 1);
        through(&host).await?;
    }
    Ok(())
}

for_each_kind!(a_daemon_that_a_package_starts_lives_on: Debian12, OpenRc);
async fn a_daemon_that_a_package_starts_lives_on(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    // Without systemd a package's script starts the daemon itself.
    let script = "#!/bin/sh\nset -e\ncp /bin/sleep /usr/bin/th-daemon\nsetsid th-daemon 86400 </dev/null >/dev/null 2>&1 &\n";
    with_package(&host, "th-daemon", script).await?;
    let session = connect(&host.access("root")).await?;
    let result = ensured(&session, &PkgEnsure::present(["th-daemon", "th-svc"])).await?;
    assert_eq!((result.changed, result.left_running), (true, 1));
    session.close().await?;
    host.quiet_of("sortie").await?;
    assert_eq!(running_on(&host, "th-daemon")?, 1);
    if kind.has_systemd() {
        assert_eq!(host.sh("systemctl is-active th-svc").await?.fine()?, "active\n");
    }
    matrix::record("pkg_ensure", kind, "a daemon of the package", "lives on after EXIT")?;
    Ok(())
}

#[tokio::test]
async fn removed_but_not_purged_is_not_present_and_half_configured_is_mended() -> Result<()> {
    sortie_tests::require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let session = connect(&host.access("root")).await?;
    refreshed(&session).await?;
    let svc = || PkgEnsure::present(["th-svc"]);
    ensured(&session, &svc()).await?;
    host.write("/etc/th-svc/conf", "level=9\n", 0o644).await?;
    let result = ensured(&session, &PkgEnsure::absent(["th-svc"])).await?;
    assert_eq!((result.action.as_str(), result.previous_version.as_deref()), ("removed", Some("1.0")));
    assert_eq!(host.sh("dpkg-query -W -f '${db:Status-Status}' th-svc").await?.fine()?, "config-files");
    assert_eq!(ensured(&session, &PkgEnsure::absent(["th-svc"])).await?.action, "already_absent");
    let result = ensured(&session, &svc()).await?;
    assert_eq!((result.action.as_str(), result.previous_version), ("installed", None));
    assert_eq!(host.read("/etc/th-svc/conf").await?, b"level=9\n", "a changed configuration file is kept");

    // A script that fails leaves it half configured: an error that says so, and not present.
    with_package(
        &host,
        "th-bad",
        "#!/bin/sh\n[ -e /run/th-bad.fine ] || { echo out of luck >&2; exit 7; }\n",
    )
    .await?;
    let bad = || PkgEnsure::present(["th-bad"]);
    let error = refused(&session, &bad(), ErrorCode::PkgFailed).await?;
    assert!(error.message.contains("a script of a package failed"), "{error:?}");
    assert_eq!((error.retryable, error.details["changed"].as_str()), (false, "true"), "{error:?}");
    assert_eq!(host.sh("dpkg-query -W -f '${db:Status-Status}' th-bad").await?.fine()?, "half-configured");
    refused(&session, &bad(), ErrorCode::PkgFailed).await?;
    host.write("/run/th-bad.fine", "", 0o644).await?;
    let result = ensured(&session, &bad()).await?;
    assert_eq!((result.changed, result.action.as_str()), (true, "installed"));
    session.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_dpkg_that_was_interrupted_is_mended_and_that_is_said() -> Result<()> {
    sortie_tests::require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = slow_host(&lab).await?;
    // As a power cut does: dpkg ends in the middle, its journal stays.
    host.sh("setsid apt-get -qy install th-slow </dev/null >/dev/null 2>&1 & until [ -e /run/th-slow.begun ]; do :; done")
        .await?
        .fine()?;
    for process in host.processes()?.iter().filter(|p| matches!(p.name.as_str(), "apt-get" | "dpkg")) {
        host.kill(process.pid, Signal::SIGKILL)?;
    }
    host.sh("test -e /var/lib/dpkg/updates/0001 || : > /var/lib/dpkg/updates/0001; touch /run/th-slow.go")
        .await?
        .fine()?;
    assert_ne!(host.sh("apt-get -qqy install th-lib").await?.status, 0, "apt does not mind");
    let session = connect(&host.access("root")).await?;
    let mut running = session.start(PkgEnsure::present(["th-lib"])).await?;
    let mut said = Vec::new();
    while let Some(event) = running.next_event().await {
        said.push(event.message);
    }
    assert_eq!(running.wait().await?.result.action, "installed");
    assert!(said.iter().any(|message| message.contains("dpkg was interrupted")), "{said:?}");
    assert_eq!(host.sh("dpkg --audit; ls /var/lib/dpkg/updates").await?.fine()?, "");
    session.close().await?;
    Ok(())
}

/// In perl, the record lock of fcntl(2) on the whole file.
const RECORD_LOCK: &str =
    "my $lock = pack 's s x![q] q q i', F_WRLCK, 0, 0, 0, 0; fcntl F, F_SETLK, $lock or die;";

for_each_kind!(a_lock_that_is_held_is_waited_for_and_its_holder_named: Debian12, Dnf4, Dnf5, Zypper, Pacman);
async fn a_lock_that_is_held_is_waited_for_and_its_holder_named(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let session = connect(&host.access("root")).await?;
    refreshed(&session).await?;
    // Another manager that works until it is told to end: by its lock it cannot be told from a real one.
    let (file, take) = match kind {
        Kind::Debian12 => ("/var/lib/dpkg/lock-frontend", RECORD_LOCK),
        Kind::Pacman => ("/var/lib/pacman/db.lck", ""),
        Kind::Zypper => ("/run/zypp.pid", "syswrite F, $$;"),
        _ => ("/var/lib/rpm/.rpm.lock", RECORD_LOCK),
    };
    let script = format!(
        "use Fcntl; open F, '>>', '{file}' or die; {take} open T, '>/run/held'; \
         select undef, undef, undef, 0.05 until -e '/run/release'; unlink '{file}';"
    );
    host.write("/tmp/hold", script, 0o644).await?;
    host.sh("setsid perl /tmp/hold </dev/null >/dev/null 2>&1 & until [ -e /run/held ]; do :; done")
        .await?
        .fine()?;
    let options = CommandOptions { timeout: Duration::from_secs(2), ..CommandOptions::default() };
    let error = refused_with(&session, &PkgEnsure::present(["th-lib"]), options, ErrorCode::Locked).await?;
    let name = "(perl)";
    assert!(error.message.contains(name) && error.message.contains("process "), "{error:?}");
    assert!(error.retryable && error.details["holder"].contains(name), "{error:?}");

    let mut running = session.start(PkgEnsure::present(["th-lib"])).await?;
    let waiting = within("word of the wait", running.next_event()).await?.context("no event")?;
    assert!(
        waiting.message.starts_with("waiting for process ") && waiting.message.contains(name),
        "{waiting:?}"
    );
    host.write("/run/release", "", 0o644).await?;
    assert_eq!(running.wait().await?.result.action, "installed");
    if kind == Kind::Pacman {
        // What is left of one that was killed is nobody's to wait for.
        host.write("/var/lib/pacman/db.lck", "", 0o644).await?;
        let error = refused(&session, &PkgEnsure::absent(["th-lib"]), ErrorCode::Locked).await?;
        assert!(error.message.contains("no process has it open") && !error.retryable, "{error:?}");
    }
    matrix::record(
        "pkg_ensure",
        kind,
        "the manager's lock is held",
        "waits, then LOCKED naming the process",
    )?;
    session.close().await?;
    Ok(())
}

for_each_kind!(a_source_that_does_not_deliver_is_worth_another_try: Debian12, Dnf4, Dnf5, Zypper, Pacman);
async fn a_source_that_does_not_deliver_is_worth_another_try(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let session = connect(&host.access("root")).await?;
    refreshed(&session).await?;
    host.sh("sed -i 's,file:/*srv/[a-z]*,http://127.0.0.1:9/x,' $(ls /etc/apt/sources.list /etc/yum.repos.d/* /etc/zypp/repos.d/* /etc/pacman.conf 2>/dev/null)")
        .await?
        .fine()?;
    let before = installed(&host).await?;
    let error =
        refused(&session, &PkgEnsure::present(["th-lib"]).update_cache(true), ErrorCode::PkgFailed).await?;
    assert!(error.retryable && error.message.contains("a source did not deliver"), "{error:?}");
    assert_eq!(installed(&host).await?, before);
    // Nothing of that is in the way of what needs no source.
    assert_eq!(ensured(&session, &PkgEnsure::absent(["th-none"])).await?.action, "already_absent");
    matrix::record("pkg_ensure", kind, "a broken mirror", "PKG_FAILED, retryable")?;
    session.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_login_that_is_not_root_is_told_so_before_anything_happens() -> Result<()> {
    sortie_tests::require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let access = host.add_user("deploy", None).await?;
    let session = connect(&access).await?;
    let before = installed(&host).await?;
    let error = refused(&session, &PkgEnsure::present(["th-lib"]), ErrorCode::PermissionDenied).await?;
    assert!(error.message.contains("become"), "{error:?}");
    assert_eq!(installed(&host).await?, before);
    // What is so already needs nobody's leave.
    assert_eq!(ensured(&session, &PkgEnsure::present(["dpkg"])).await?.action, "already_present");
    session.close().await?;
    Ok(())
}

#[tokio::test]
async fn progress_is_told_as_it_is_made() -> Result<()> {
    sortie_tests::require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let session = connect(&host.access("root")).await?;
    refreshed(&session).await?;
    let mut running = session.start(PkgEnsure::present(["th-hello"])).await?;
    let mut events: Vec<Event> = Vec::new();
    while let Some(event) = running.next_event().await {
        events.push(event);
    }
    running.wait().await?;
    let told =
        |text: &str| events.iter().any(|event| event.message.starts_with(text) && event.progress.is_some());
    assert!(told("Unpacking th-hello") && told("Installed th-hello"), "{events:?}");
    let units = events.iter().filter_map(|event| event.progress.as_ref());
    assert!(units.clone().all(|p| p.total == 100 && (0..=100).contains(&p.current) && p.unit == "percent"));
    session.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_full_disk_is_named_and_nothing_stays_half_done() -> Result<()> {
    sortie_tests::require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).disk(64 * 1024 * 1024).start().await?;
    // A hole takes no place until dpkg fills it with zeros.
    host.sh("mkdir -p /tmp/th-big/usr/share && truncate -s 200M /tmp/th-big/usr/share/th-big")
        .await?
        .fine()?;
    with_package(&host, "th-big", "#!/bin/sh\n").await?;
    let session = connect(&host.access("root")).await?;
    let before = installed(&host).await?;
    let error = refused(&session, &PkgEnsure::present(["th-big"]), ErrorCode::NoSpace).await?;
    assert!(error.message.contains("no space"), "{error:?}");
    assert_eq!(installed(&host).await?, before);
    assert_eq!(host.sh("dpkg --audit; ls /var/lib/dpkg/updates").await?.fine()?, "");
    session.close().await?;
    Ok(())
}

#[tokio::test]
async fn two_sessions_that_change_packages_take_turns() -> Result<()> {
    sortie_tests::require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = slow_host(&lab).await?;
    let one = connect(&host.access("root")).await?;
    let two = connect(&host.access("root")).await?;
    let first = one.start(slow()).await?;
    begun(&host).await?;
    let second = two.start(PkgEnsure::present(["th-svc"])).await?;
    let third = one.start(PkgEnsure::present(["th-hello"])).await?;
    let options = CommandOptions { timeout: Duration::from_secs(1), ..CommandOptions::default() };
    let error = refused_with(&two, &PkgEnsure::present(["th-lib"]), options, ErrorCode::Locked).await?;
    assert!(error.message.contains("process "), "{error:?}");
    host.write("/run/th-slow.go", "", 0o644).await?;
    for (running, name) in [(first, "th-slow"), (second, "th-svc"), (third, "th-hello")] {
        assert_eq!(running.wait().await?.result.action, "installed", "{name}");
    }
    one.close().await?;
    two.close().await?;
    through(&host).await
}

#[tokio::test]
async fn from_the_command_line_and_an_unprivileged_login() -> Result<()> {
    sortie_tests::require_kind!(Kind::Debian12);
    let lab = Lab::start().await?;
    let host = lab.host(Kind::Debian12).start().await?;
    let access = host.add_user("deploy", None).await?;
    host.write("/etc/sudoers.d/deploy", "deploy ALL=(ALL) NOPASSWD: ALL\n", 0o440).await?;
    let name = cli_support::name(&access);
    let pkg = |words: &'static [&'static str]| on(&access, "pkg").arg("--become").args(words).run();
    let ended = pkg(&["-u", "--version", "1.0", "present", "th-hello"]).await?.fine();
    let with = "th-lib, with it: none -> 1.0";
    assert_eq!(ended.text(), format!("{name}: th-hello: installed: none -> 1.0\n{name}: {with}\n"));
    let ended = pkg(&["--check", "--diff", "latest", "th-hello"]).await?.fine();
    let diff = "--- packages\n+++ packages\n@@ -1 +1 @@\n-th-hello 1.0\n+th-hello 1.1\n";
    assert_eq!(ended.text(), format!("{name}: th-hello: would be upgraded: 1.0 -> 1.1\n{diff}"));
    let ended = pkg(&["-o", "--no-install-recommends", "latest", "th-hello", "th-lib"]).await?.fine();
    assert_eq!(
        ended.text(),
        format!("{name}: upgraded\n{name}: th-hello: 1.0 -> 1.1\n{name}: th-lib: 1.0\n")
    );
    let ended = pkg(&["--json", "absent", "th-hello"]).await?.fine();
    let done = ended.events().into_iter().find(|event| event["event"] == "done").context("no done")?;
    assert_eq!((&done["command"], &done["result"]["action"]), (&"pkg".into(), &"removed".into()));
    assert_eq!(
        (&done["result"]["name"], &done["result"]["previous_version"]),
        (&"th-hello".into(), &"1.1".into())
    );
    let ended = pkg(&["present", "th-none"]).await?.ended_with(1).says(&["th-none", "NOT_FOUND"]);
    assert_eq!(ended.text(), "");
    let ended = on(&access, "pkg").args(["present", "th-hello"]).run().await?.ended_with(1);
    ended.says(&["only root", "become", "PERMISSION_DENIED"]);
    host.quiet_of("sortie").await
}
