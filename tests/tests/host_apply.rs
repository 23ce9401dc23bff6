//! `sortie apply` of sixty steps on real hosts: `--check --diff` changes nothing of the whole file system, the run does
//! exactly what it said, and a second run changes nothing.

mod cli_support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use cli_support::on;
use serde_json::Value;
use sortie_client::protocol::CommandType;
use sortie_tests::for_each_kind;
use sortie_tests::host::{Host, Kind, Lab, Snapshot};

/// What became of a step: its status, and for one that is unknown the steps that it waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    command: String,
    status: String,
    depends_on: Vec<String>,
}

/// Applies the list, and gives what became of its steps by their ids, and all that was shown.
async fn apply(host: &Host, flags: &[&str]) -> Result<(BTreeMap<String, Step>, String)> {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apply/site.yaml");
    let ended = on(&host.access("root"), "apply").arg("--json").args(flags).arg(list).run().await?;
    ensure!(ended.status == 0 && ended.stderr.is_empty(), "{}\n{}", ended.text(), ended.stderr);
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let steps = ended.events().into_iter().filter(|event| event["event"] == "step").map(|event| {
        let depends_on = event["depends_on"].as_array().into_iter().flatten();
        let step = Step {
            command: text(&event, "command"),
            status: text(&event, "status"),
            depends_on: depends_on.filter_map(Value::as_str).map(str::to_owned).collect(),
        };
        (text(&event, "step"), step)
    });
    let steps: BTreeMap<String, Step> = steps.collect();
    ensure!(steps.len() >= 60, "{} steps", steps.len());
    Ok((steps, ended.text().to_owned()))
}

/// The ids of the steps of a status.
fn of<'s>(steps: &'s BTreeMap<String, Step>, status: &str) -> BTreeSet<&'s str> {
    steps.iter().filter(|(_, step)| step.status == status).map(|(id, _)| id.as_str()).collect()
}

/// Steps of which nobody can say what they would do while others are yet to be done.
const DEPENDENT: &[&str] = &[
    "conf_line",
    "conf_stat",
    "hosts_again",
    "ini_again",
    "new_read",
    "copied",
    "through_link",
    "by_target",
    "emptied",
    "unpack_made",
    "after_once",
    "facts_after",
];

/// A host on which some of it is as the list wants it already, and some is to go.
async fn prepared(lab: &Lab, kind: Kind) -> Result<Host> {
    let host = lab
        .host(kind)
        .name("web1")
        .file("/etc/motd", "old\n", 0o644)
        .file("/etc/kit/profile", "# as it came\n", 0o644)
        .file("/etc/kit/same", "same\n", 0o644)
        .file("/etc/kit/lines", "one\ntwo\n", 0o644)
        .file("/etc/kit/doomed", "kept\ndoomed line\n", 0o644)
        .file("/etc/kit/doomed-file", "x\n", 0o644)
        .file("/etc/kit/doomed-tree/a/b", "x\n", 0o644)
        .file("/etc/kit/tree/a/b", "x\n", 0o644)
        .file("/etc/kit/settings.ini", "[server]\nport = 1\n", 0o600)
        .file("/etc/kit/same.ini", "[server]\nport = 80\n", 0o644)
        .file("/etc/kit/old.ini", "[old]\na = b\n\n[new]\nc = d\n", 0o644)
        .start()
        .await?;
    let script = "ln -s same /etc/kit/link; mkdir -p /srv; cd /etc/kit && tar -czf kit.tar.gz same lines";
    host.sh(script).await?.fine()?;
    if matches!(kind, Kind::Debian11 | Kind::Debian12 | Kind::Debian13 | Kind::OpenRc) {
        host.sh("apt-get -qq update && apt-get -qq check").await?.fine()?;
    }
    if kind.has_systemd() {
        // Whatever the first boot has to write is written.
        host.sh("systemctl is-system-running --wait; true").await?.fine()?;
    }
    Ok(host)
}

/// All of it, but for where the runner lies for a moment on hosts that let nothing run from memory.
fn snapshot(host: &Host) -> Result<Snapshot> {
    let snapshot = host.snapshot()?;
    Ok(if host.kind() == Kind::OpenRc { snapshot.without(&[("/tmp", "the runner's")]) } else { snapshot })
}

#[track_caller]
fn assert_same(before: &Snapshot, after: &Snapshot, what: &str) {
    assert_eq!(before.difference(after), "", "{what}");
}

for_each_kind!(a_check_of_sixty_steps_says_exactly_what_the_run_then_does: Debian11, Debian12, Debian13, OpenRc, Busybox, Dnf4);
async fn a_check_of_sixty_steps_says_exactly_what_the_run_then_does(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = prepared(&lab, kind).await?;
    let fresh = snapshot(&host)?;
    let (said_of, shown) = apply(&host, &["--check", "--diff"]).await?;
    assert_same(&fresh, &snapshot(&host)?, "a check changed something");
    assert!(shown.contains("+++ /etc/motd"), "{shown}");
    assert!(!shown.contains("withheld"), "the check shows what is sensitive: {shown}");
    let every: BTreeSet<&str> = CommandType::ALL.iter().map(|command| command.name()).collect();
    let used: BTreeSet<&str> = said_of.values().map(|step| step.command.as_str()).collect();
    assert_eq!(used, every, "commands that the list lacks");

    let (done, shown) = apply(&host, &["--diff"]).await?;
    assert!(!shown.contains("withheld"), "the run shows what is sensitive: {shown}");
    for (id, step) in &done {
        let said = said_of.get(id).context("a step that the check did not name")?;
        assert!(
            said.status == step.status || said.status == "unknown",
            "{id}: the check said {said:?}, the run {step:?}"
        );
        for other in &said.depends_on {
            assert!(
                matches!(&*said_of[other].status, "changed" | "unknown"),
                "{id} waits for {other}: {said_of:?}"
            );
        }
    }
    let unknown = of(&said_of, "unknown");
    for id in DEPENDENT {
        assert!(unknown.contains(id), "{id} depends on what comes of another step: {:?}", said_of[*id]);
    }
    assert!(unknown.len() < 30, "so much is not known that a check is of no use: {unknown:?}");
    let changed = snapshot(&host)?;

    let (again, _) = apply(&host, &["--diff"]).await?;
    assert_eq!(of(&again, "changed"), BTreeSet::new(), "a second run changes");
    assert_same(&changed, &snapshot(&host)?, "a second run changed something");
    let (check, _) = apply(&host, &["--check", "--diff"]).await?;
    assert_eq!(check, again, "a check where all is done differs from a run");
    assert_same(&changed, &snapshot(&host)?, "a second check changed something");
    Ok(())
}
