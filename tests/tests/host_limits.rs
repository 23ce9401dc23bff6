//! Limits and usage on hosts: by rlimits and rusage where the kernel has no controllers of cgroup v2, as on hosts that share
//! this machine's, and by cgroup on a machine with a kernel of its own.

mod cli_support;
mod client_support;

use anyhow::{Context as _, Result, bail};
use cli_support::on;
use client_support::connect;
use sortie_client::protocol::command::exec::{Exec, ExecResult};
use sortie_client::protocol::command::pkg_ensure::PkgEnsure;
use sortie_client::protocol::message::{Become, Done, ErrorFrame};
use sortie_client::protocol::{CommandSpec, ErrorCode, ResourceLimits, Usage};
use sortie_client::{CommandOptions, Error, Session};
use sortie_tests::for_each_kind;
use sortie_tests::host::{Kind, Lab, matrix};

fn limited(limits: ResourceLimits) -> CommandOptions {
    CommandOptions { limits: Some(limits), ..CommandOptions::default() }
}

async fn run(session: &Session, line: &str, options: CommandOptions) -> Result<Done<ExecResult>, Error> {
    session.start_with(&Exec::shell(line), options).await?.wait().await
}

/// The ERROR of a command that has to fail.
async fn refused<C: CommandSpec>(
    session: &Session,
    command: &C,
    options: CommandOptions,
) -> Result<ErrorFrame> {
    match session.start_with(command, options).await?.wait().await {
        Err(Error::Command { error, .. }) => Ok(*error),
        Err(other) => Err(other.into()),
        Ok(done) => bail!("it did not fail: {:?}", done.usage),
    }
}

fn usage<R>(done: &Done<R>) -> Result<&Usage> {
    done.usage.as_ref().context("no usage")
}

fn by<'a>(usage: &'a Usage, limit: &str) -> &'a str {
    usage.limited_by.get(limit).map_or("nothing", String::as_str)
}

/// Starts programs without end that each take a little of a processor: none of them ever reaches a second.
const MANY_SHORT: &str = "while :; do sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; done";

for_each_kind!(limits_hold_by_what_a_host_has: Debian11, Debian12, Debian13, Busybox, Dnf4);
async fn limits_hold_by_what_a_host_has(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let session = connect(&host.access("root")).await?;
    let note = |case: &str, outcome: &str| matrix::record("limits", kind, case, outcome);

    // A busy systemd may be later with the scope than commands wait for it.
    let in_scope = async {
        loop {
            let done = run(&session, "true", CommandOptions::default()).await?;
            if (done.result.containment == "cgroup") == kind.has_systemd() {
                return Ok::<_, Error>(());
            }
        }
    };
    sortie_tests::within("a command in a scope", in_scope).await??;

    let limits = ResourceLimits {
        open_files: Some(40),
        file_bytes: Some(1 << 20),
        nice: Some(2),
        no_new_privs: true,
        ..ResourceLimits::default()
    };
    let shows = "ulimit -n; ulimit -f; cut -d ' ' -f 19 /proc/self/stat; grep NoNewPrivs /proc/self/status | cut -f 2";
    for case in ["first run", "second run"] {
        let done = run(&session, shows, limited(limits.clone())).await?;
        assert_eq!(done.result.stdout.as_deref(), Some("40\n2048\n2\n1\n"), "{:?}", done.result);
        let usage = usage(&done)?;
        for (limit, means) in [("open_files", "rlimit"), ("file_bytes", "rlimit"), ("nice", "process")] {
            assert_eq!(by(usage, limit), means, "{usage:?}");
        }
        let cpu = if kind.has_systemd() { "cgroup" } else { "rusage" };
        assert_eq!(usage.measured_by.get("cpu").map(String::as_str), Some(cpu), "{usage:?}");
        note(case, "as documented")?;
    }

    // Nothing is said where nothing was asked for.
    assert_eq!(run(&session, "true", CommandOptions::default()).await?.usage, None);

    let touch = Exec::shell("touch /root/ran");
    let mut unsupported = vec![
        ResourceLimits { io_weight: Some(50), ..ResourceLimits::default() },
        ResourceLimits { cpu_percent: Some(50), ..ResourceLimits::default() },
        ResourceLimits { memory_bytes: Some(64 << 20), ..ResourceLimits::default() },
    ];
    // Where this machine's kernel has a controller, so have they: what it does then is shown on a machine of its own.
    let here = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if ["io", "cpu", "memory"].iter().any(|name| here.split_whitespace().any(|on| on == *name)) {
        unsupported.clear();
    }
    for limits in unsupported {
        for check in [true, false] {
            let options = CommandOptions { check, ..limited(limits.clone()) };
            let error = refused(&session, &touch, options).await?;
            assert_eq!(error.code, ErrorCode::Unsupported, "{error:?}");
            assert!(error.message.contains("cgroup"), "{error:?}");
        }
        note("check", "UNSUPPORTED where the kernel has no controller")?;
    }
    assert_eq!(host.sh("ls /root/ran 2>&1 || true").await?.stdout.matches("No such file").count(), 1);
    let wrong = ResourceLimits { processes: Some(0), ..ResourceLimits::default() };
    let error = refused(&session, &touch, limited(wrong)).await?;
    assert_eq!(error.code, ErrorCode::InvalidParams, "{error:?}");
    note("wrong input", "as documented")?;

    if kind.has_systemd() {
        // A leaf counts for the whole tree.
        let limits = ResourceLimits { cpu_seconds: Some(1), ..ResourceLimits::default() };
        let done = run(&session, MANY_SHORT, limited(limits)).await?;
        assert_eq!(usage(&done)?.limit.as_deref(), Some("cpu_seconds"), "{:?}", done.usage);
        assert!(done.result.signal.is_some(), "{:?}", done.result);
        note("cpu_seconds of a tree", "ended")?;
    }
    session.close().await?;
    Ok(())
}

for_each_kind!(an_ordinary_user_gets_no_more_processes_than_allowed: Debian12, Busybox);
async fn an_ordinary_user_gets_no_more_processes_than_allowed(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let session = connect(&host.add_user("deploy", None).await?).await?;
    let limits = ResourceLimits { processes: Some(25), ..ResourceLimits::default() };
    let line = "i=0; while [ $i -lt 60 ]; do sleep 600 & i=$((i+1)); done; echo all";
    let started = Exec { kill_leftovers: true, ..Exec::shell(line) };
    let done = session.start_with(&started, limited(limits)).await?.wait().await?;
    assert!(
        done.result.exit_code != 0 && done.result.stdout.as_deref() != Some("all\n"),
        "{:?}",
        done.result
    );
    assert_eq!(by(usage(&done)?, "processes"), "rlimit");
    session.close().await?;
    Ok(())
}

for_each_kind!(limits_hold_for_who_one_becomes: Debian12, Debian13);
async fn limits_hold_for_who_one_becomes(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let access = host.add_user("deploy", None).await?;
    host.write("/etc/sudoers.d/deploy", "deploy ALL=(ALL) NOPASSWD: ALL\n", 0o440).await?;
    let session = connect(&access).await?;
    let limits = ResourceLimits { open_files: Some(41), ..ResourceLimits::default() };
    let root = Become { user: "root".to_owned(), ..Become::default() };
    let options = CommandOptions { r#become: Some(root), ..limited(limits) };
    let done = run(&session, "id -u; ulimit -n", options).await?;
    assert_eq!(done.result.stdout.as_deref(), Some("0\n41\n"));
    assert_eq!(by(usage(&done)?, "open_files"), "rlimit");
    session.close().await?;
    Ok(())
}

for_each_kind!(a_package_transaction_is_slowed_down_and_never_ended: Debian11, Debian12, Debian13, Dnf4);
async fn a_package_transaction_is_slowed_down_and_never_ended(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let session = connect(&host.access("root")).await?;
    let options = || {
        limited(ResourceLimits {
            nice: Some(3),
            open_files: Some(1000),
            cpu_seconds: Some(600),
            ..ResourceLimits::default()
        })
    };
    let install = PkgEnsure::present(["th-hello"]).update_cache(true);
    let done = session.start_with(&install, options()).await?.wait().await?;
    assert!(done.result.changed);
    let told = usage(&done)?;
    assert_eq!((by(told, "nice"), by(told, "open_files")), ("process", "rlimit"), "{told:?}");
    assert_eq!(told.exempt, ["cpu_seconds", "open_files"], "{told:?}");
    assert!(told.cpu_user_seconds > 0.0 && told.memory_peak_bytes > 1 << 20, "{told:?}");
    // No transaction, nothing that went without.
    let done = session.start_with(&PkgEnsure::present(["th-hello"]), options()).await?.wait().await?;
    assert!(!done.result.changed && usage(&done)?.exempt.is_empty(), "{:?}", done.usage);
    session.close().await?;
    Ok(())
}

for_each_kind!(the_command_shows_limits_and_usage: Debian12);
async fn the_command_shows_limits_and_usage(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let access = host.access("root");
    let limits = ["--limit", "open_files=42", "--limit", "nice=1", "--", "sh", "-c", "ulimit -n"];
    let ended = on(&access, "exec").args(limits).run().await?.ended_with(0);
    let ended = ended.says(&["of memory at most", "nice by process, open_files by rlimit"]);
    assert_eq!(ended.text(), "42\n");
    let limits = ["--json", "--limit", "cpu_seconds=1", "while :; do :; done"];
    let events = on(&access, "sh").args(limits).run().await?.events();
    let told = events.iter().find(|event| event["event"] == "usage").context("no usage")?;
    assert_eq!(told["limit"], "cpu_seconds", "{told}");
    let wrong: [(&[&str], &str); 2] =
        [(&["--limit", "memory=lots"], "512M"), (&["--limit", "nice=1", "--limit", "nice=2"], "once")];
    for (limits, says) in wrong {
        on(&access, "sh").args(limits).arg("true").run().await?.ended_with(2).says(&[says]);
    }
    Ok(())
}

#[cfg(feature = "every-kind")]
mod machine {
    use anyhow::ensure;
    use sortie_client::protocol::command::file_write::FileWrite;
    use sortie_tests::host::Machine;
    use sortie_tests::require_machine;

    use super::*;

    /// One machine for all of it: it takes half a minute to come up.
    #[tokio::test]
    async fn a_cgroup_holds_a_tree_to_memory_processor_and_processes() -> Result<()> {
        require_machine!();
        let lab = Lab::start().await?;
        let machine = Machine::start(&lab).await?;
        let session = connect(&machine.access("root")).await?;
        memory_ends_a_tree_whole(&session).await?;
        a_validator_without_memory_leaves_the_file_alone(&session, &machine).await?;
        a_share_of_a_processor_is_not_exceeded(&session).await?;
        a_tree_is_ended_by_its_processor_time(&session).await?;
        a_fork_bomb_is_contained(&session, &machine).await?;
        what_is_left_running_does_not_get_away(&session, &machine).await?;
        writes_are_counted(&session).await?;
        packages_are_whole_or_untouched(&session, &machine).await?;
        // And what has no limits is as it was.
        let done = run(&session, "true", CommandOptions::default()).await?;
        assert_eq!((done.result.containment.as_str(), done.usage), ("cgroup", None));
        session.close().await?;
        Ok(())
    }

    fn memory(mebibytes: u64) -> CommandOptions {
        limited(ResourceLimits { memory_bytes: Some(mebibytes << 20), ..ResourceLimits::default() })
    }

    async fn memory_ends_a_tree_whole(session: &Session) -> Result<()> {
        let line = "(dd if=/dev/zero of=/dev/null bs=300M count=1); echo the shell lives on";
        let done = run(session, line, memory(64)).await?;
        assert_eq!(
            (done.result.exit_code, done.result.stdout.as_deref()),
            (137, Some("")),
            "{:?}",
            done.result
        );
        let told = usage(&done)?;
        assert_eq!(
            (told.limit.as_deref(), by(told, "memory_bytes")),
            (Some("memory_bytes"), "cgroup"),
            "{told:?}"
        );
        assert!((32 << 20..=64 << 20).contains(&told.memory_peak_bytes), "{told:?}");
        assert_eq!(told.measured_by.get("memory").map(String::as_str), Some("cgroup"));
        // The same in less than it is allowed.
        let done = run(session, &line.replace("300M", "16M"), memory(64)).await?;
        assert_eq!(done.result.stdout.as_deref(), Some("the shell lives on\n"), "{:?}", done.usage);
        assert_eq!(usage(&done)?.limit, None);
        Ok(())
    }

    async fn a_validator_without_memory_leaves_the_file_alone(
        session: &Session,
        machine: &Machine,
    ) -> Result<()> {
        machine.sh("mkdir /srv/own && echo old > /srv/own/file").await?;
        let hungry = ["sh", "-c", "dd if=/dev/zero of=/dev/null bs=300M count=1", "sh", "%s"];
        let write = FileWrite {
            validate: hungry.map(str::to_owned).to_vec(),
            ..FileWrite::new("/srv/own/file").content("new\n")
        };
        let error = refused(session, &write, memory(64)).await?;
        assert_eq!(error.code, ErrorCode::ValidationFailed, "{error:?}");
        assert!(error.message.contains("limits.memory_bytes"), "{error:?}");
        ensure!(machine.sh("cat /srv/own/file; ls -A /srv/own").await? == "old\nfile\n");
        Ok(())
    }

    /// Two that want a processor each. What they get is read from cpu.stat, beside the time by the machine's own clock.
    async fn a_share_of_a_processor_is_not_exceeded(session: &Session) -> Result<()> {
        let line = "(while :; do :; done) & while :; do :; done";
        let share = async |cpu_percent| -> Result<f64> {
            let limits = ResourceLimits { cpu_percent, cpu_seconds: Some(3), ..ResourceLimits::default() };
            let done = run(session, line, limited(limits)).await?;
            let told = usage(&done)?;
            ensure!(told.limit.as_deref() == Some("cpu_seconds"), "{told:?}");
            Ok((told.cpu_user_seconds + told.cpu_system_seconds) / done.result.duration)
        };
        let (whole, limited) = (share(None).await?, share(Some(30)).await?);
        assert!(limited < 0.4, "{limited} of a processor, where 0.3 is allowed");
        assert!(whole > 2.0 * limited, "{whole} without a limit, {limited} with one");
        Ok(())
    }

    async fn a_tree_is_ended_by_its_processor_time(session: &Session) -> Result<()> {
        let limits = ResourceLimits { cpu_seconds: Some(2), ..ResourceLimits::default() };
        let done = run(session, MANY_SHORT, limited(limits)).await?;
        let told = usage(&done)?;
        assert_eq!(told.limit.as_deref(), Some("cpu_seconds"), "{told:?}");
        assert!(told.cpu_user_seconds + told.cpu_system_seconds >= 2.0, "{told:?}");
        Ok(())
    }

    async fn a_fork_bomb_is_contained(session: &Session, machine: &Machine) -> Result<()> {
        // Its leader waits, so that it can be looked at.
        let bomb = Exec::shell("b() { b | b & }; b 2>/dev/null; exec sleep 600");
        let limits =
            ResourceLimits { processes: Some(30), cpu_percent: Some(100), ..ResourceLimits::default() };
        let running = session.start_with(&bomb, limited(limits)).await?;
        let full = async {
            let leaf = "/sys/fs/cgroup/system.slice/sortie-*.scope/command-*";
            let script = format!("grep -l -x 30 {leaf}/pids.max | head -n 1 | xargs dirname");
            let leaf = loop {
                // There once it has begun.
                if let Ok(leaf) = machine.sh(&script).await {
                    break leaf.trim().to_owned();
                }
            };
            while machine.sh(&format!("grep -x 'max 0' {leaf}/pids.events || true")).await? == "max 0\n" {}
            let now = machine.sh(&format!("cat {leaf}/pids.current")).await?;
            ensure!(now.trim().parse::<u32>()? <= 30, "{now} processes");
            Ok(())
        };
        sortie_tests::within("a fork that was refused", full).await??;
        // Others have all the processes that they want.
        let others = run(
            session,
            "seq 60 | xargs -P 60 -I{} sh -c 'sleep 0.1; echo {}' | wc -l",
            CommandOptions::default(),
        );
        assert_eq!(others.await?.result.stdout.as_deref(), Some("60\n"));
        running.cancel(Some(0));
        match running.wait().await {
            Err(Error::Command { error, .. }) => {
                let told = error.usage.as_ref().context("no usage")?;
                assert_eq!(
                    (told.limit.as_deref(), by(told, "processes")),
                    (Some("processes"), "cgroup"),
                    "{told:?}"
                );
            }
            other => bail!("it was not cancelled: {:?}", other.map(|done| done.result)),
        }
        Ok(())
    }

    /// The leader of a bomb exits at once: what it leaves behind would not be held by anything if it were released.
    async fn what_is_left_running_does_not_get_away(session: &Session, machine: &Machine) -> Result<()> {
        let limits = ResourceLimits { processes: Some(30), ..ResourceLimits::default() };
        let bomb = "b() { b | b & }; b 2>/dev/null; sleep 600 & sleep 1";
        let done = run(session, bomb, limited(limits)).await?;
        assert_eq!(done.result.left_running, 0, "{:?}", done.result);
        assert_eq!(machine.sh("cat /proc/[0-9]*/comm | grep -c -x sleep || true").await?, "0\n");
        Ok(())
    }

    async fn writes_are_counted(session: &Session) -> Result<()> {
        let options = CommandOptions { usage: true, ..CommandOptions::default() };
        let line = "dd if=/dev/zero of=/root/new bs=1M count=8 conv=fsync";
        let done = run(session, line, options).await?;
        let told = usage(&done)?;
        assert!(
            told.written_bytes >= 8 << 20
                && told.measured_by.get("io").is_some_and(|means| means == "cgroup"),
            "{told:?}"
        );
        assert!(told.limited_by.is_empty() && told.limit.is_none());
        Ok(())
    }

    async fn packages_are_whole_or_untouched(session: &Session, machine: &Machine) -> Result<()> {
        let install = PkgEnsure::present(["th-hello"]).update_cache(true);
        let hook = "APT::Update::Pre-Invoke { \"dd if=/dev/zero of=/dev/null bs=300M count=1\"; };";
        machine.sh(&format!("echo '{hook}' > /etc/apt/apt.conf.d/hungry")).await?;
        let error = refused(session, &install, memory(64)).await?;
        assert!(error.message.contains("limits.memory_bytes"), "{error:?}");
        assert_eq!(machine.sh("dpkg-query -W -f '${Status}' th-hello 2>/dev/null || true").await?, "");
        machine.sh("rm /etc/apt/apt.conf.d/hungry").await?;
        let done = session.start_with(&install, memory(256)).await?.wait().await?;
        assert!(done.result.changed);
        let told = usage(&done)?;
        assert_eq!(
            (told.exempt.as_slice(), by(told, "memory_bytes")),
            (["memory_bytes".to_owned()].as_slice(), "cgroup"),
            "{told:?}"
        );
        Ok(())
    }
}
