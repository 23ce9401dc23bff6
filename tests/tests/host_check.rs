//! `check` of every command on real hosts: it says what would change, and the whole file system is afterwards as it was.

mod client_support;

use anyhow::{Context as _, Result, ensure};
use client_support::connect;
use serde_json::{Value, json};
use sortie_client::Session;
use sortie_client::protocol::CommandType;
use sortie_client::protocol::command::pkg_ensure::PkgEnsure;
use sortie_client::protocol::message::CommandMessage;
use sortie_tests::for_each_kind;
use sortie_tests::host::{Kind, Lab};

/// The result of a command that is only looked at.
async fn check(session: &Session, kind: CommandType, params: &Value) -> Result<Value> {
    let frame = json!({
        "id": session.next_id(), "type": kind.name(), "timeout": 60, "params": params, "check": true, "diff": true,
    });
    let message: CommandMessage = serde_json::from_str(&frame.to_string())?;
    let done = session.start_raw(&message).await?.wait().await.with_context(|| frame.to_string())?;
    Ok(serde_json::from_str(done.result.get())?)
}

/// What to ask of a command, and what its result has then.
fn questions(kind: Kind, command: CommandType) -> Vec<(Value, Value)> {
    let changed = |params| (params, json!({"changed": true}));
    match command {
        CommandType::Exec => vec![(json!({"command": "touch /srv/x"}), json!({"skipped": true}))],
        CommandType::FileStat => vec![(json!({"path": "/etc/motd"}), json!({"size": 4}))],
        CommandType::FileRead => vec![(json!({"path": "/etc/motd"}), json!({"size": 4}))],
        CommandType::FileWrite => vec![
            changed(
                json!({"path": "/etc/motd", "content": "new\n", "mode": "0600", "owner": "1", "backup": true}),
            ),
            changed(json!({"path": "/srv/a/b/c", "content": "new\n", "create": true})),
        ],
        CommandType::FileRemove => vec![
            changed(json!({"path": "/etc/motd"})),
            changed(json!({"path": "/etc/kit", "recursive": true})),
        ],
        CommandType::DirEnsure => vec![
            changed(json!({"path": "/srv/a/b", "mode": "2750", "owner": "1"})),
            changed(json!({"path": "/etc/kit", "recursive": true, "group": "1", "file_mode": "0600"})),
        ],
        CommandType::LinkEnsure => vec![
            changed(json!({"path": "/etc/link", "target": "x"})),
            changed(json!({"path": "/etc/motd", "target": "x", "force": true})),
        ],
        CommandType::LineEnsure => vec![
            changed(json!({"path": "/etc/motd", "line": "new", "backup": true})),
            changed(json!({"path": "/srv/lines", "block": "new", "create": true})),
        ],
        CommandType::IniEnsure => vec![changed(json!({
            "path": "/etc/systemd/system/kit.service", "section": "Service", "option": "Nice", "value": "1",
        }))],
        CommandType::ArchiveUnpack => vec![changed(json!({"archive": "/root/kit.tar", "path": "/srv/kit"}))],
        CommandType::Facts => vec![(json!({"sets": ["all"]}), json!({}))],
        CommandType::WaitFor => vec![
            (json!({"path": "/etc/motd"}), json!({"waited": false})),
            (json!({"path": "/never"}), json!({"waited": true})),
        ],
        CommandType::PkgEnsure | CommandType::SudoersEnsure | CommandType::SshdHarden
            if kind == Kind::Busybox =>
        {
            vec![]
        }
        CommandType::PkgEnsure => vec![
            changed(json!({"name": "th-hello", "state": "present"})),
            changed(json!({"name": "th-lib", "state": "absent"})),
        ],
        CommandType::ServiceReload if !kind.has_systemd() => vec![],
        CommandType::ServiceReload => ["enable", "start", "restart", "mask"]
            .map(|action| changed(json!({"name": "kit", "action": action})))
            .into(),
        CommandType::SudoersEnsure => {
            vec![changed(json!({"user": "root", "commands": ["/bin/true"], "state": "present"}))]
        }
        CommandType::SshdHarden => vec![changed(json!({"disable_password_auth": true}))],
        other => panic!("{other:?} is not tried"),
    }
}

/// What a package manager writes when it is only asked something.
fn bookkeeping(kind: Kind) -> &'static [(&'static str, &'static str)] {
    match kind {
        Kind::Dnf4 | Kind::Dnf5 | Kind::Zypper => &[
            ("/var/cache", "lists of sources in the manager's own form"),
            ("/var/log", "the manager notes questions too"),
            ("/var/lib/rpm/rpmdb.sqlite-shm", "memory that readers of the database share"),
            ("/var/lib/rpm/rpmdb.sqlite-wal", "is touched by readers of the database"),
            ("/var/lib/dnf", "dnf opens its history for writing"),
            ("/var/lib/zypp", "zypper remembers which packages nobody asked for"),
            ("/srv/repo", "dnf notes digests in attributes of packages that lie in local sources"),
            ("/tmp", "libdnf makes a directory for a moment"),
            ("/var/tmp", "zypper makes a directory for a moment"),
        ],
        _ => &[],
    }
}

for_each_kind!(a_check_changes_nothing_of_the_whole_file_system: Debian11, Debian12, Debian13, OpenRc, Busybox, Dnf4, Dnf5, Zypper, Pacman);
async fn a_check_changes_nothing_of_the_whole_file_system(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let unit = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n";
    let host = lab
        .host(kind)
        .file("/etc/motd", "old\n", 0o644)
        .file("/etc/kit/sub/conf", "x\n", 0o644)
        .file("/etc/systemd/system/kit.service", unit, 0o644)
        .start()
        .await?;
    host.sh("tar -C /etc -cf /root/kit.tar motd hostname").await?.fine()?;
    let session = connect(&host.access("root")).await?;
    if kind != Kind::Busybox {
        session.run(PkgEnsure { update_cache: true, ..PkgEnsure::present(["th-lib"]) }).await?;
    }
    let allowed = bookkeeping(kind);
    let before = host.snapshot()?.without(allowed);
    for command in CommandType::ALL {
        for (params, expected) in questions(kind, *command) {
            let result = check(&session, *command, &params).await?;
            for (field, value) in expected.as_object().into_iter().flatten() {
                ensure!(result[field] == *value, "{field} of {command:?} {params}: {result}");
            }
        }
    }
    let difference = before.difference(&host.snapshot()?.without(allowed));
    assert_eq!(difference, "", "besides {allowed:?}");
    Ok(())
}
