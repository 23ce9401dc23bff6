//! `facts` and `wait_for` on real hosts: what is told is what the host's own programs say.

mod cli_support;
mod client_support;

use anyhow::{Context as _, Result, bail};
use cli_support::on;
use client_support::connect;
use sortie_client::protocol::ErrorCode;
use sortie_client::protocol::command::facts::{Facts, FactsResult, UnitState};
use sortie_client::protocol::command::wait_for::WaitFor;
use sortie_client::protocol::message::ErrorFrame;
use sortie_client::{CommandOptions, Error, Session};
use sortie_tests::for_each_kind;
use sortie_tests::host::{Host, Kind, Lab, matrix};

fn check() -> CommandOptions {
    CommandOptions { check: true, diff: true, ..CommandOptions::default() }
}

async fn facts(session: &Session, sets: &[&str]) -> Result<FactsResult> {
    Ok(session.run(Facts::of(sets.iter().copied())).await?.result)
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>, code: &ErrorCode) -> Result<ErrorFrame> {
    match result {
        Err(Error::Command { error, .. }) if error.code == *code => Ok(*error),
        other => bail!("not {code}: {other:?}"),
    }
}

/// What a line of shell prints in the host.
async fn says(host: &Host, script: &str) -> Result<String> {
    Ok(host.sh(script).await?.fine()?.trim_end().to_owned())
}

/// Lines in an order of their own.
fn sorted(lines: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    let mut lines: Vec<String> = lines.into_iter().map(Into::into).collect();
    lines.sort_unstable();
    lines
}

fn has_systemd(kind: Kind) -> bool {
    !matches!(kind, Kind::Busybox | Kind::OpenRc)
}

async fn the_system(kind: Kind, host: &Host, session: &Session) -> Result<()> {
    let told = facts(session, &["os", "hardware", "host"]).await?;
    let (os, hardware, names) =
        (told.os.context("os")?, told.hardware.context("hardware")?, told.host.context("host")?);
    let release =
        says(host, ". /etc/os-release; echo \"$ID|$VERSION_ID|$VERSION_CODENAME|$PRETTY_NAME|$ID_LIKE\"")
            .await?;
    let like = os.id_like.join(" ");
    assert_eq!([&*os.id, &os.version, &os.codename, &os.pretty_name, &like].join("|"), release);
    assert_eq!([&*os.kernel, &os.kernel_version, &os.machine].join(" "), says(host, "uname -r -v -m").await?);
    assert_eq!(os.timezone, "Europe/Warsaw");
    assert_eq!(os.lang, "C.UTF-8");
    assert_eq!((&*os.selinux, os.init == "systemd"), ("disabled", has_systemd(kind)));
    assert_eq!(hardware.cpus.to_string(), says(host, "nproc").await?);
    let total = says(host, "set -- $(grep ^MemTotal: /proc/meminfo); echo $(($2 * 1024))").await?;
    assert_eq!(hardware.memory_bytes.to_string(), total);
    assert!(hardware.memory_available_bytes > 0 && hardware.memory_available_bytes < hardware.memory_bytes);
    if has_systemd(kind) {
        // It ends with 1 to say none.
        let detected = async |what: &str| says(host, &format!("systemd-detect-virt {what} || true")).await;
        let or_none = |word: &str| if word.is_empty() { "none".to_owned() } else { word.to_owned() };
        assert_eq!(or_none(&hardware.virtualization), detected("--vm").await?);
        assert_eq!(or_none(&hardware.container), detected("--container").await?);
    }
    assert_eq!(names.hostname, says(host, "uname -n").await?);
    assert_eq!((&*names.fqdn, &*names.domain), ("web1.example.org", "example.org"));
    assert_eq!(names.fqdn, says(host, "hostname -f").await?);
    assert_eq!(names.boot_id, says(host, "cat /proc/sys/kernel/random/boot_id").await?);
    let uptime = says(host, "cut -d. -f1 /proc/uptime").await?.parse::<u64>()?;
    assert!(names.uptime > 0 && names.uptime <= uptime);
    assert_eq!(names.time[..10], says(host, "date -u +%Y-%m-%d").await?);
    Ok(())
}

async fn the_network(host: &Host, session: &Session) -> Result<()> {
    host.sh(
        "i=$(ls /sys/class/net | grep -v '^lo$' | head -n 1); ip addr add 192.0.2.77/28 dev $i; ip addr add 2001:db8::7/64 dev $i; \
         ip route add default via 192.0.2.65 dev $i; ip -6 route add default via 2001:db8::1 dev $i",
    )
    .await?
    .fine()?;
    let network = facts(session, &["network"]).await?.network.context("network")?;
    // `2: host0    inet 10.77.0.2/24 brd … scope global host0\ …`
    let theirs = says(host, "ip -o addr show").await?;
    let addresses = theirs.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(words[2], "inet" | "inet6").then(|| format!("{} {}", words[1], words[3]))
    });
    let ours = network.interfaces.iter().flat_map(|interface| {
        interface.ipv4.iter().chain(&interface.ipv6).map(|address| format!("{} {address}", interface.name))
    });
    assert_eq!(sorted(ours), sorted(addresses));
    let theirs = says(
        host,
        "cd /sys/class/net; for i in *; do echo $i $(cat $i/address) $(cat $i/mtu) $(cat $i/operstate); done",
    )
    .await?;
    let ours = network.interfaces.iter().map(|interface| {
        format!("{} {} {} {}", interface.name, interface.mac, interface.mtu, interface.state)
    });
    assert_eq!(sorted(ours), sorted(theirs.lines()));
    // `default via 192.0.2.65 dev host0 …`
    let routes = says(host, "ip route; ip -6 route").await?;
    let routes = routes.lines().filter(|line| line.starts_with("default "));
    let theirs = routes.map(|line| line.split_whitespace().skip(1).take(4).collect::<Vec<_>>().join(" "));
    let ours = network.gateways.iter().map(|route| format!("via {} dev {}", route.address, route.interface));
    assert_eq!(sorted(ours), sorted(theirs));
    let ways: Vec<_> = network.gateways.iter().map(|route| (&*route.address, &*route.source)).collect();
    assert_eq!(ways.len(), 2, "{ways:?}");
    assert_eq!(ways[0].0, "192.0.2.65");
    assert!(
        network.interfaces.iter().any(|interface| interface.ipv4[0].starts_with(&format!("{}/", ways[0].1)))
    );
    assert_eq!(network.nameservers, ["192.0.2.53", "2001:db8::53"]);
    assert_eq!(network.search, ["example.org", "example.net"]);
    Ok(())
}

async fn the_storage(kind: Kind, host: &Host, session: &Session) -> Result<()> {
    host.sh("mkdir -p '/mnt/a b' && mount -t tmpfs -o size=1m,nosuid odd '/mnt/a b'").await?.fine()?;
    let told = facts(session, &["mounts", "disks"]).await?;
    let mounts = told.mounts.context("mounts")?;
    let odd = mounts.iter().find(|mount| mount.target == "/mnt/a b").context("the odd one is missing")?;
    assert_eq!((&*odd.source, &*odd.fstype, odd.size_bytes), ("odd", "tmpfs", 1024 * 1024), "{odd:?}");
    assert!(odd.options.contains("nosuid") && odd.available_bytes <= odd.size_bytes, "{odd:?}");
    let ours = mounts.iter().map(|mount| format!("{} {}", mount.target.replace(' ', "\\040"), mount.fstype));
    let theirs = if kind == Kind::Busybox {
        says(host, "cut -d' ' -f2,3 /proc/mounts").await?
    } else {
        says(host, "findmnt --raw --noheadings --output TARGET,FSTYPE").await?.replace("\\x20", "\\040")
    };
    assert_eq!(sorted(ours), sorted(theirs.lines()));
    let theirs = "cd /sys/block; for d in *; do s=$(cat $d/size); [ $s = 0 ] || echo $d $((s * 512)) $(cat $d/removable); done";
    let theirs = says(host, theirs).await?;
    let disks = told.disks.context("disks")?;
    let whole = disks.iter().filter(|disk| disk.parent.is_empty());
    let ours = whole.map(|disk| format!("{} {} {}", disk.name, disk.size_bytes, u8::from(disk.removable)));
    assert_eq!(sorted(ours), sorted(theirs.lines()));
    Ok(())
}

async fn the_accounts(kind: Kind, host: &Host, session: &Session) -> Result<()> {
    let told = facts(session, &["users", "groups"]).await?;
    let (users, groups) = (told.users.context("users")?, told.groups.context("groups")?);
    let database = |name: &str| {
        if kind == Kind::Busybox { format!("cat /etc/{name}") } else { format!("getent {name}") }
    };
    let theirs = says(host, &database("passwd")).await?;
    let ours = users.iter().map(|user| {
        format!("{}:x:{}:{}:{}:{}:{}", user.name, user.uid, user.gid, user.comment, user.home, user.shell)
    });
    let no_password = |line: &str| {
        let mut fields: Vec<&str> = line.split(':').collect();
        fields[1] = "x";
        fields.join(":")
    };
    assert_eq!(sorted(ours), sorted(theirs.lines().map(no_password)));
    let theirs = says(host, &database("group")).await?;
    let ours =
        groups.iter().map(|group| format!("{}:x:{}:{}", group.name, group.gid, group.members.join(",")));
    assert_eq!(sorted(ours), sorted(theirs.lines().map(no_password)));
    Ok(())
}

async fn the_packages(kind: Kind, host: &Host, session: &Session) -> Result<()> {
    let told = facts(session, &["packages"]).await?;
    let list = match kind {
        Kind::Busybox => {
            assert!(
                told.packages.is_none() && told.incomplete["packages"].contains("package manager"),
                "{told:?}"
            );
            return Ok(());
        }
        Kind::Dnf4 | Kind::Dnf5 | Kind::Zypper => {
            "rpm -qa --qf '%{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\\n' | grep -v ^gpg-pubkey"
        }
        // None of these hosts has one, and then it ends with 1.
        Kind::Pacman => "pacman -Q || true",
        _ => "dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n' | sed -n 's/ installed$//p'",
    };
    let theirs = says(host, list).await?;
    let packages = told.packages.context("packages")?;
    assert!(kind == Kind::Pacman || !packages.is_empty());
    assert_eq!(
        sorted(packages.iter().map(|(name, version)| format!("{name} {version}"))),
        sorted(theirs.lines())
    );
    Ok(())
}

async fn the_units(kind: Kind, host: &Host, session: &Session) -> Result<()> {
    let told = facts(session, &["units"]).await?;
    if kind == Kind::Busybox {
        assert!(told.units.is_none() && told.incomplete["units"].contains("systemd and OpenRC"), "{told:?}");
        return Ok(());
    }
    let units = told.units.context("units")?;
    if kind == Kind::OpenRc {
        let named = |wanted: &dyn Fn(&UnitState) -> bool| {
            sorted(units.iter().filter(|unit| wanted(unit)).map(|unit| unit.name.as_str()))
        };
        let started = says(host, "ls /run/openrc/started").await?;
        assert_eq!(named(&|unit| unit.status == "active"), sorted(started.lines()));
        let enabled = says(host, "ls /etc/runlevels/* | grep -v : | sort -u | grep .").await?;
        // What cannot be in a container is not listed, though a runlevel has it.
        let theirs = sorted(enabled.lines());
        assert!(named(&|unit| unit.enabled).iter().all(|name| theirs.contains(name)), "{theirs:?}");
        assert!(units.iter().any(|unit| unit.name == "agetty" && !unit.enabled), "{units:?}");
        let sshd = units.iter().find(|unit| unit.name.starts_with("ssh")).context("no sshd")?;
        assert_eq!((&*sshd.status, sshd.enabled), ("active", true), "{sshd:?}");
        return Ok(());
    }
    // One word for each, in their order; it ends with another status when one is not active.
    let names: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
    let words = async |verb: &str| -> Result<Vec<String>> {
        let argv = ["systemctl", verb, "--"].into_iter().chain(names.iter().copied());
        Ok(host.exec(argv).await?.stdout.lines().map(str::to_owned).collect())
    };
    assert_eq!(units.iter().map(|unit| unit.status.clone()).collect::<Vec<_>>(), words("is-active").await?);
    let is_enabled = "for u in $(cat); do echo $u $(systemctl is-enabled -- $u 2>/dev/null); done";
    let theirs = host.exec_with(["/bin/sh", "-c", is_enabled], names.join("\n").as_bytes()).await?.fine()?;
    for (unit, line) in units.iter().zip(theirs.lines()) {
        let state = line.split_once(' ').map_or("", |(_, state)| state);
        // systemctl answers for SysV scripts by what systemd-sysv-install says.
        let told = if unit.file_state == "generated" { "" } else { &*unit.file_state };
        assert!(told == state || told.is_empty(), "{unit:?}: {line}");
        assert_eq!(unit.enabled, state == "enabled", "{unit:?}: {line}");
    }
    let sshd = units.iter().find(|unit| unit.name == "ssh.service").context("no ssh.service")?;
    assert_eq!((&*sshd.status, &*sshd.sub_state, sshd.enabled), ("active", "running", true));
    Ok(())
}

for_each_kind!(
    facts_are_what_the_hosts_own_programs_say: Debian11, Debian12, Debian13, OpenRc, Busybox, Dnf4, Dnf5, Zypper, Pacman
);
async fn facts_are_what_the_hosts_own_programs_say(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).name("web1").start().await?;
    let session = connect(&host.access("root")).await?;
    host.sh(
        "ln -sfn /usr/share/zoneinfo/Europe/Warsaw /etc/localtime; printf 'nameserver 192.0.2.53\\nnameserver 2001:db8::53\\nsearch example.org example.net\\n' > /etc/resolv.conf; \
         printf '127.0.0.1 localhost\\n192.0.2.9 web1.example.org web1\\n' > /etc/hosts; rm -f /etc/locale.conf /etc/default/locale; f=/etc/locale.conf; [ ! -d /etc/default ] || f=/etc/default/locale; echo 'LANG=C.UTF-8' > $f",
    )
    .await?
    .fine()?;
    the_system(kind, &host, &session).await.context("system")?;
    the_network(&host, &session).await.context("network")?;
    the_storage(kind, &host, &session).await.context("storage")?;
    the_accounts(kind, &host, &session).await.context("accounts")?;
    the_packages(kind, &host, &session).await.context("packages")?;
    the_units(kind, &host, &session).await.context("units")?;

    let first = session.run(Facts::new()).await?.result;
    assert!(
        first.packages.is_none()
            && first.units.is_none()
            && first.users.is_some()
            && first.incomplete.is_empty()
    );
    matrix::record("facts", kind, "first run", "as documented")?;
    let again = session.run(Facts::new()).await?.result;
    assert_eq!((&again.os, &again.users, &again.groups), (&first.os, &first.users, &first.groups));
    matrix::record("facts", kind, "second run", "as documented")?;
    let checked = session.start_with(&Facts::all(), check()).await?.wait().await?.result;
    assert_eq!((&checked.os, checked.disks.is_some()), (&first.os, true));
    matrix::record("facts", kind, "check", "as documented")?;
    for sets in [&["os", "nonsense"][..], &[""], &["OS"]] {
        let error = refused(session.run(Facts::of(sets.iter().copied())).await, &ErrorCode::InvalidParams)?;
        assert!(error.message.starts_with("sets: "), "{error:?}");
    }
    matrix::record("facts", kind, "wrong input", "as documented")?;
    session.close().await?;
    host.quiet_of("sortie").await
}

for_each_kind!(facts_need_no_root_and_never_more_than_a_frame: Debian12);
async fn facts_need_no_root_and_never_more_than_a_frame(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).name("web1").start().await?;
    let access = host.add_user("ops", None).await?;
    let all = on(&access, "facts").args(["--json", "all"]).run().await?.fine();
    let done = all.events().pop().context("no event")?;
    assert_eq!((&done["event"], &done["command"]), (&"done".into(), &"facts".into()));
    let result = &done["result"];
    assert!(result["incomplete"].is_null() && result["units"].is_array(), "{result}");
    assert_eq!(result["os"]["id"], "debian");

    // What a host says of itself is no order to a terminal, nor a second line.
    host.sh("printf 'evil:x:5000:5000:\\033]0;x\\a\\033[31mred:/home/evil:/bin/sh\\n' >> /etc/passwd")
        .await?
        .fine()?;
    let shown = on(&access, "facts").args(["users", "os"]).run().await?.fine();
    assert!(
        shown
            .text()
            .contains("user: evil, uid 5000, gid 5000, home /home/evil, shell /bin/sh, ?]0;x??[31mred\n"),
        "{shown:?}"
    );
    assert!(
        shown.text().contains(": os: Debian GNU/Linux 12") && !shown.text().contains("group: "),
        "{shown:?}"
    );
    on(&access, "facts").arg("nonsense").run().await?.ended_with(2).says(&["nonsense", "packages"]);

    host.sh("awk 'BEGIN { for (i = 0; i < 40000; i++) printf \"u%d:x:%d:1:a comment that takes some room:/home/u%d:/bin/sh\\n\", i, i + 10000, i }' >> /etc/passwd")
        .await?
        .fine()?;
    let session = connect(&access).await?;
    let told = facts(&session, &["os", "users", "groups"]).await?;
    let users = told.users.context("users")?;
    assert!(users.len() > 10_000 && users.len() < 40_000, "{}", users.len());
    assert!(told.incomplete["users"].contains("2 MiB") && told.os.is_some(), "{:?}", told.incomplete);
    // Others wait for the memory that one takes, and get theirs.
    let mut running = Vec::new();
    for _ in 0..20 {
        running.push(session.start(Facts::of(["users"])).await?);
    }
    for command in running {
        assert!(command.wait().await?.result.users.is_some_and(|list| list.len() == users.len()));
    }
    session.close().await?;
    Ok(())
}

/// What it says after a second of waiting in vain.
async fn in_vain(session: &Session, wait: &WaitFor) -> Result<String> {
    let error = refused(session.run(wait.clone().deadline(1)).await, &ErrorCode::Timeout)?;
    assert!(
        error.message.contains("(deadline)") && error.message.contains(&error.details["seen"]),
        "{error:?}"
    );
    assert!(error.retryable, "{error:?}");
    Ok(error.details["seen"].clone())
}

async fn would_wait(session: &Session, wait: &WaitFor) -> Result<bool> {
    Ok(session.start_with(wait, check()).await?.wait().await?.result.waited)
}

/// It is not so yet, `script` makes it so, and then it is seen.
async fn comes(host: &Host, session: &Session, wait: &WaitFor, script: &str) -> Result<String> {
    assert!(would_wait(session, wait).await?, "{wait:?}");
    let running = session.start(wait.clone().interval_ms(20)).await?;
    host.sh(script).await?.fine()?;
    let result = running.wait().await?.result;
    assert!(!would_wait(session, wait).await?, "{wait:?}");
    let again = session.run(wait.clone()).await?.result;
    assert_eq!((again.waited, &again.seen), (false, &result.seen), "{wait:?}");
    Ok(result.seen)
}

for_each_kind!(it_is_waited_until_things_are_as_they_should_be: Debian11, Debian12, Debian13, OpenRc, Busybox, Dnf4);
async fn it_is_waited_until_things_are_as_they_should_be(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).name("web1").start().await?;
    let session = connect(&host.access("root")).await?;

    let file = WaitFor::path("/run/ready");
    assert_eq!(in_vain(&session, &file).await?, "/run/ready is not there");
    assert_eq!(comes(&host, &session, &file, ": > /run/ready").await?, "/run/ready is there");
    let text = file.clone().contains("all $(up)");
    assert_eq!(in_vain(&session, &text).await?, "/run/ready does not have the text");
    // At the end of a file that is longer than what is read at once.
    let script = "head -c 2000000 /dev/zero > /run/ready; printf 'all $(up)' >> /run/ready";
    assert_eq!(comes(&host, &session, &text, script).await?, "/run/ready has the text");
    comes(&host, &session, &text.state("absent"), "echo > /run/ready").await?;
    comes(&host, &session, &file.state("absent"), "rm /run/ready").await?;

    let ssh = WaitFor::port(22);
    assert!(!would_wait(&session, &ssh).await?);
    assert!(session.run(ssh.clone()).await?.result.seen.ends_with(":22: connections are accepted"));
    assert!(!would_wait(&session, &ssh.clone().of_host("localhost")).await?);
    assert!(in_vain(&session, &ssh.state("closed")).await?.contains("accepted"));
    let nobody = WaitFor::port(9);
    assert!(in_vain(&session, &nobody).await?.ends_with(":9: Connection refused"));
    assert!(!would_wait(&session, &nobody.state("closed")).await?);
    if kind != Kind::Busybox {
        assert_eq!(
            in_vain(&session, &WaitFor::port(1).of_host("nowhere.invalid")).await?,
            "no address is known of nowhere.invalid"
        );
    }

    if has_systemd(kind) {
        host.write("/etc/systemd/system/late.service", "[Service]\nExecStart=/bin/sleep infinity\n", 0o644)
            .await?;
        let late = WaitFor::unit("late");
        assert_eq!(in_vain(&session, &late).await?, "late.service is inactive (dead)");
        let seen = comes(&host, &session, &late, "systemctl start late").await?;
        assert_eq!(seen, "late.service is active (running)");
        comes(
            &host,
            &session,
            &late.clone().state("failed"),
            "systemctl kill -s ABRT late; while systemctl is-active -q late; do :; done",
        )
        .await?;
        comes(&host, &session, &late.state("inactive"), "systemctl reset-failed late").await?;
        assert!(
            in_vain(&session, &WaitFor::unit("none-such")).await?.contains("the host has no unit none-such")
        );
        assert!(!would_wait(&session, &WaitFor::unit("none-such").state("inactive")).await?);
    } else if kind == Kind::OpenRc {
        let seen =
            comes(&host, &session, &WaitFor::unit("ssh").state("inactive"), "rc-service ssh stop").await?;
        assert_eq!(seen, "ssh is inactive (stopped)");
        comes(&host, &session, &WaitFor::unit("ssh"), "rc-service ssh start").await?;
    } else {
        refused(session.run(WaitFor::unit("x")).await, &ErrorCode::Unsupported)?;
    }
    for case in ["first run", "second run", "check"] {
        matrix::record("wait_for", kind, case, "as documented")?;
    }

    for (wrong, field) in [
        (WaitFor::default(), "exactly one"),
        (WaitFor { port: 22, ..WaitFor::path("/x") }, "exactly one"),
        (WaitFor::path("x"), "path: "),
        (WaitFor::path("/x").state("open"), "state: "),
        (WaitFor::path("/x").of_host("y"), "host: "),
        (WaitFor::port(22).contains("y"), "contains: "),
        (WaitFor::port(22).of_host("-x"), "host: "),
        (WaitFor::port(22).of_host("a b"), "host: "),
        (WaitFor::unit("--now"), "unit: "),
        (WaitFor::path("/x").interval_ms(9), "interval_ms: "),
    ] {
        let error = refused(session.run(wrong.clone()).await, &ErrorCode::InvalidParams)?;
        assert!(error.message.starts_with(field), "{wrong:?}: {error:?}");
    }
    matrix::record("wait_for", kind, "wrong input", "as documented")?;
    session.close().await?;
    host.quiet_of("sortie").await
}

for_each_kind!(waiting_ends_at_once_when_it_is_to_and_says_what_it_saw: Debian12);
async fn waiting_ends_at_once_when_it_is_to_and_says_what_it_saw(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).name("web1").start().await?;
    let access = host.add_user("ops", None).await?;
    let session = connect(&access).await?;
    // Nobody answers at an address of the link that nobody has: without the cancel it would take its five seconds, and an hour.
    host.sh("ip route add 198.51.100.0/24 dev $(ls /sys/class/net | grep -v '^lo$'); ip neigh replace 198.51.100.1 lladdr 02:00:5e:10:00:01 dev $(ls /sys/class/net | grep -v '^lo$')")
        .await?
        .fine()?;
    for wait in [WaitFor::port(9).of_host("198.51.100.1"), WaitFor::path("/nowhere").interval_ms(60_000)] {
        let options =
            CommandOptions { timeout: std::time::Duration::from_secs(3600), ..CommandOptions::default() };
        let running = session.start_with(&wait, options).await?;
        running.canceller().cancel(None);
        refused(running.wait().await.map(|done| done.result), &ErrorCode::Cancelled)?;
    }
    // Its own timeout says no less than a deadline.
    let options = CommandOptions { timeout: std::time::Duration::from_secs(1), ..CommandOptions::default() };
    let silent = WaitFor::port(9).of_host("198.51.100.1");
    let error = refused(session.start_with(&silent, options).await?.wait().await, &ErrorCode::Timeout)?;
    assert!(error.message.contains("(timeout)") && error.details.contains_key("seen"), "{error:?}");
    let error = refused(session.run(WaitFor::path("/root/x")).await, &ErrorCode::PermissionDenied)?;
    assert!(error.message.contains("/root/x"), "{error:?}");
    // However often it looks, it takes no more of the host than the first time.
    let mut often = session.start(WaitFor::unit("none-such").interval_ms(10)).await?;
    often.next_event().await.context("a word while it waits")?;
    let zombies = host.sh("grep -l '^State:.Z' /proc/[0-9]*/status | wc -l").await?.fine()?;
    assert!(zombies.trim().parse::<u32>()? <= 3, "{zombies}");
    often.canceller().cancel(None);
    refused(often.wait().await.map(|done| done.result), &ErrorCode::Cancelled)?;
    session.close().await?;

    let ended = on(&access, "wait").args(["path", "/nowhere", "--timeout", "1"]).run().await?.ended_with(124);
    ended.says(&["TIMEOUT", "/nowhere is not there"]);
    let ended = on(&access, "wait").args(["port", "localhost:22"]).run().await?.fine();
    assert!(ended.text().ends_with(":22: connections are accepted: so already\n"), "{ended:?}");
    let ended = on(&access, "wait").args(["unit", "nothing", "--check", "--json"]).run().await?.fine();
    let done = ended.events().pop().context("no event")?;
    assert_eq!((&done["command"], &done["result"]["waited"]), (&"wait".into(), &true.into()), "{done}");
    on(&access, "wait").run().await?.ended_with(2).says(&["KIND"]);
    on(&access, "wait").args(["port", "0"]).run().await?.ended_with(2).says(&["65535"]);
    // Root may look where the login may not.
    host.write("/etc/sudoers.d/ops", "ops ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440).await?;
    host.sh("echo done > /root/x").await?.fine()?;
    let args = ["path", "/root/x", "present", "--become", "--contains", "done", "--interval", "0.05"];
    let ended = on(&access, "wait").args(args).run().await?.fine();
    assert!(ended.text().ends_with("/root/x has the text: so already\n"), "{ended:?}");
    host.quiet_of("sortie").await
}
