//! OpenRC, by rc-service(8) and rc-update(8).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sortie_protocol::ErrorCode;

use super::{Action, Unit, lines, run};
use crate::command::Context;
use crate::failure::Failure;
use crate::tool::{Ran, Tool};

/// Each runlevel is a directory of links to scripts.
const RUNLEVELS: &str = "/etc/runlevels";
/// A link for each service that was started.
const STARTED: &str = "/run/openrc/started";

pub(super) fn look(context: &Context, name: &str) -> Result<Unit, Failure> {
    if !Tool::new("rc-service").args(["--exists", name]).run(context)?.ok() {
        let message = format!("the host has no service {name}; nothing was changed");
        return Err(Failure::new(ErrorCode::NotFound, message));
    }
    let sub = match Tool::new("rc-service").args([name, "status"]).run(context)?.exit_code {
        0 => "started",
        4 => "stopping",
        8 => "starting",
        16 => "inactive",
        32 => "crashed",
        _ => "stopped",
    };
    let started = fs::symlink_metadata(Path::new(STARTED).join(name));
    Ok(Unit {
        id: name.to_owned(),
        active: active(sub).to_owned(),
        sub: sub.to_owned(),
        enabled: !levels(name).is_empty(),
        // Whether a script can reload it says when it is asked to.
        can_reload: true,
        since: started.map_or_else(|_| String::new(), |link| format!("{} {}", link.ino(), link.ctime_nsec())),
        ..Unit::default()
    })
}

/// systemd's word for the same.
fn active(sub: &str) -> &'static str {
    match sub {
        "started" => "active",
        "stopping" => "deactivating",
        "starting" | "inactive" => "activating",
        "crashed" | "failed" => "failed",
        _ => "inactive",
    }
}

/// ` sshd                 [  started  ]`
pub(super) fn list(context: &Context) -> Result<Vec<Unit>, Failure> {
    let mut units = Vec::new();
    lines(context, Tool::new("rc-status").args(["--servicelist", "--nocolor"]), &mut |words| {
        let [name, "[", sub, ..] = *words else { return };
        units.push(Unit {
            id: name.to_owned(),
            active: active(sub).to_owned(),
            sub: sub.to_owned(),
            enabled: !levels(name).is_empty(),
            ..Unit::default()
        });
    })?;
    Ok(units)
}

pub(super) fn change(context: &Context, action: Action, before: &Unit) -> Result<Ran, Failure> {
    let name = before.id.as_str();
    let service = |verb| Tool::new("rc-service").args([name, verb]);
    match action {
        Action::Enable => Tool::new("rc-update").args(["add", name, "default"]).run(context),
        Action::Disable => Tool::new("rc-update").args(["del", name]).args(levels(name)).run(context),
        // Nobody but this program would start what it has stopped.
        Action::Restart | Action::TryRestart => service("restart").critical(context, &mut |_, _| ()),
        _ => run(context, action, before, service(action.name())),
    }
}

/// The runlevels that the service is in.
fn levels(name: &str) -> Vec<String> {
    let levels = fs::read_dir(RUNLEVELS).into_iter().flatten().flatten();
    let has = levels.filter(|level| fs::symlink_metadata(level.path().join(name)).is_ok());
    has.map(|level| level.file_name().to_string_lossy().into_owned()).collect()
}
