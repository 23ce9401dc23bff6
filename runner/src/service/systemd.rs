//! systemd, by systemctl(1).

use sortie_protocol::ErrorCode;

use super::{Action, Unit, lines, run};
use crate::command::Context;
use crate::failure::Failure;
use crate::tool::{Ran, Tool};

const PROPERTIES: &str = "--property=Id,LoadState,LoadError,ActiveState,SubState,Result,UnitFileState,Type,MainPID,InvocationID,\
                          StateChangeTimestampMonotonic,CanReload,NeedDaemonReload,ConditionResult,\
                          ConditionTimestampMonotonic,AssertResult,AssertTimestampMonotonic";

fn systemctl(verb: &str) -> Tool {
    Tool::new("systemctl").args([verb, "--no-pager", "--no-ask-password"])
}

pub(super) fn look(context: &Context, name: &str) -> Result<Unit, Failure> {
    let ran = systemctl("show").args([PROPERTIES, "--", name]).run(context)?;
    if !ran.ok() {
        let message = format!("systemctl cannot show {name}: {}", ran.last_lines(3));
        return Err(Failure::new(ErrorCode::ServiceFailed, message));
    }
    let mut unit = unit(&ran.text());
    let value = |key| value(&ran.text(), key).to_owned();
    match &*value("LoadState") {
        "loaded" | "masked" => {}
        "not-found" => {
            let message = format!("the host has no unit {}; nothing was changed", unit.id);
            return Err(Failure::new(ErrorCode::NotFound, message));
        }
        other => {
            let message = format!(
                "systemd cannot load {} ({other}): {}; mend its unit file",
                unit.id,
                value("LoadError")
            );
            return Err(Failure::new(ErrorCode::Conflict, message));
        }
    }
    if unit.file_state == "generated" {
        // Of a SysV script: systemctl asks systemd-sysv-install.
        let asked = systemctl("is-enabled").args(["--", unit.id.as_str()]).run(context)?;
        unit.enabled = asked.text().trim() == "enabled";
    }
    Ok(unit)
}

/// What is listed: other units stand for things that are told of otherwise, or come and go with processes.
const LISTED: &str = "--type=service,socket,timer,path,target";

/// Units of which there is a file, and those that systemd has all the same.
pub(super) fn list(context: &Context) -> Result<Vec<Unit>, Failure> {
    let mut units: Vec<Unit> = Vec::new();
    let files = systemctl("list-unit-files").args(["--no-legend", "--full", LISTED]);
    lines(context, files, &mut |words| {
        let [name, state, ..] = *words else { return };
        // Templates are no units, and the unit that an alias means is listed by its own name.
        if !name.contains("@.") && state != "alias" {
            units.push(Unit { file_state: state.to_owned(), ..down(name) });
        }
    })?;
    let loaded = systemctl("list-units").args(["--no-legend", "--full", "--plain", "--all", LISTED]);
    lines(context, loaded, &mut |words| {
        let [name, load, active, sub, ..] = *words else { return };
        let place = units.iter().position(|unit| unit.id == name);
        let at = match place {
            Some(at) => at,
            // Only named by others.
            None if load == "not-found" => return,
            None => {
                units.push(down(name));
                units.len() - 1
            }
        };
        let unit = &mut units[at];
        (unit.active, unit.sub) = (active.to_owned(), sub.to_owned());
    })?;
    for unit in &mut units {
        unit.enabled = unit.file_state == "enabled";
    }
    // Of SysV scripts systemctl asks systemd-sysv-install, and instances have the file of their template: a word for each.
    let (mut asked, rest): (Vec<Unit>, Vec<Unit>) = units.into_iter().partition(|unit| {
        unit.file_state == "generated" || unit.file_state.is_empty() && unit.id.contains('@')
    });
    if !asked.is_empty() {
        let names = asked.iter().map(|unit| unit.id.as_str());
        let ran = systemctl("is-enabled").args(["--"]).args(names).run(context)?;
        let said = ran.text();
        if said.lines().count() == asked.len() {
            for (unit, word) in asked.iter_mut().zip(said.lines()) {
                unit.enabled = word == "enabled";
                if unit.file_state.is_empty() {
                    word.clone_into(&mut unit.file_state);
                }
            }
        }
    }
    asked.extend(rest);
    Ok(asked)
}

/// A unit that systemd has not loaded.
fn down(name: &str) -> Unit {
    Unit { id: name.to_owned(), active: "inactive".to_owned(), sub: "dead".to_owned(), ..Unit::default() }
}

/// The value of a property among `key=value` lines; empty where there is none.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
}

pub(super) fn unit(shown: &str) -> Unit {
    let text = |key| value(shown, key).to_owned();
    let is = |key, expected: &str| value(shown, key) == expected;
    Unit {
        id: text("Id"),
        active: text("ActiveState"),
        sub: text("SubState"),
        result: text("Result"),
        enabled: is("UnitFileState", "enabled"),
        // A unit that exists as nothing but a mask has no state of a file in some versions.
        file_state: if is("LoadState", "masked") && is("UnitFileState", "") {
            "masked".into()
        } else {
            text("UnitFileState")
        },
        can_reload: is("CanReload", "yes"),
        incarnation: text("InvocationID"),
        since: text("StateChangeTimestampMonotonic"),
        // Both are "no" for a unit that was never to be started, or that systemd has forgotten.
        was_passed_over: is("ConditionResult", "no") && !is("ConditionTimestampMonotonic", "0")
            || is("AssertResult", "no") && !is("AssertTimestampMonotonic", "0"),
        main_pid: value(shown, "MainPID").parse().unwrap_or(0),
        is_hasty: matches!(value(shown, "Type"), "simple" | "exec" | "idle"),
        need_daemon_reload: is("NeedDaemonReload", "yes"),
    }
}

/// Has systemd do it. The job is systemd's: it goes on should this command be ended meanwhile.
pub(super) fn change(context: &Context, action: Action, before: &Unit) -> Result<Ran, Failure> {
    if before.need_daemon_reload {
        let ran = run(context, action, before, systemctl("daemon-reload"))?;
        if !ran.ok() {
            return Ok(ran);
        }
    }
    let verb = action.name().replace('_', "-");
    run(context, action, before, systemctl(&verb).args(["--", before.id.as_str()]))
}

/// The last lines of the unit's log, as far as there is one.
pub(super) fn log(context: &Context, id: &str) -> Vec<u8> {
    // What a process said just before its end may still be on its way.
    let _ = Tool::new("journalctl").args(["--sync"]).run(context);
    let lines = format!("--lines={}", super::LOG_LINES);
    let ran = Tool::new("journalctl")
        .args(["--no-pager", "--quiet", "--output=cat", &lines, &format!("--unit={id}")])
        .run(context);
    ran.map(|ran| ran.stdout).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_read_as_systemctl_prints_them() {
        let shown = "Type=simple\nMainPID=42\nResult=success\nId=ssh.service\nLoadState=loaded\nActiveState=active\n\
                     SubState=running\nUnitFileState=enabled\nNeedDaemonReload=no\nCanReload=yes\nInvocationID=ab=cd\n";
        let unit = unit(shown);
        assert_eq!((&*unit.id, &*unit.active, &*unit.sub), ("ssh.service", "active", "running"));
        assert!(unit.enabled && unit.can_reload && unit.is_hasty && !unit.need_daemon_reload && unit.is_up());
        assert_eq!((unit.main_pid, &*unit.incarnation), (42, "ab=cd"));
    }
}
