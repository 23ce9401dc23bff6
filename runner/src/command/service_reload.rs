//! `service_reload`: brings a service where it was asked to be, and says whether it stayed there.

use sortie_protocol::ErrorCode;
use sortie_protocol::command::service_reload::{ServiceReload, ServiceReloadResult};

use super::Context;
use crate::failure::Failure;
use crate::locks::Resource;
use crate::service::{Action, Manager, Unit};
use crate::{job, tool};

/// systemd.unit(5): "the maximum length is 255 characters".
const LONGEST_NAME: usize = 255;

pub(super) fn run(context: &Context) -> Result<ServiceReloadResult, Failure> {
    let raw = context.job.take_params();
    let params: ServiceReload = job::parse(&raw)?;
    let action = Action::parse(&params.action).ok_or_else(|| {
        Failure::params(format!("action: {:?} is none of {}", params.action, Action::NAMES.join(", ")))
    })?;
    check_name("name", &params.name)?;
    let manager = Manager::of_host()?;
    if !manager.can(action) {
        return Err(Failure::unsupported(
            "OpenRC cannot mask services; nothing was changed. Disable it instead",
        ));
    }
    if !context.check() {
        tool::need_root("change services")?;
    }
    // One at a time for each service; others of the session may go on meanwhile.
    let name = format!("service {}", params.name);
    let held = context.locks.acquire(&context.job, Resource::Services.directory(), name.as_ref())?;
    let result = ensure(context, manager, action, &params.name);
    drop(held);
    result
}

fn ensure(
    context: &Context,
    manager: Manager,
    action: Action,
    name: &str,
) -> Result<ServiceReloadResult, Failure> {
    let before = manager.look(context, name)?;
    if let Some(already) = already(action, &before)? {
        return Ok(answer(before, false, already));
    }
    if context.check() {
        return Ok(answer(before, true, action.past()));
    }
    let (after, changed) = manager.change(context, action, &before)?;
    Ok(answer(after, changed, action.past()))
}

fn answer(unit: Unit, changed: bool, action: &str) -> ServiceReloadResult {
    ServiceReloadResult {
        changed,
        action: action.to_owned(),
        status: unit.active,
        enabled: unit.enabled,
        sub_state: unit.sub,
    }
}

/// What it is called when there is nothing to do.
///
/// # Errors
/// `CONFLICT` where the state of the unit stands against the action.
fn already(action: Action, unit: &Unit) -> Result<Option<&'static str>, Failure> {
    let refuse = |why: &str| {
        let message = format!("{} {why}; nothing was changed", unit.id);
        Err(Failure::new(ErrorCode::Conflict, message).detail("status", unit.active.clone()))
    };
    let wants_it_up = matches!(
        action,
        Action::Start | Action::Restart | Action::TryRestart | Action::Reload | Action::Enable
    );
    if unit.is_masked() && wants_it_up {
        return refuse("is masked: unmask it first");
    }
    Ok(match action {
        Action::Start if unit.is_up() => Some("already_started"),
        Action::Stop | Action::TryRestart if unit.is_down() => Some("already_stopped"),
        Action::Reload if unit.is_down() => {
            return refuse("does not run, so it cannot be reloaded: start it");
        }
        Action::Reload if !unit.can_reload => return refuse("cannot be reloaded: restart it"),
        Action::Enable if unit.enabled => Some("already_enabled"),
        Action::Enable if matches!(&*unit.file_state, "static" | "transient") => {
            return refuse("has no [Install] section, so it cannot be enabled: enable what starts it");
        }
        Action::Disable if !unit.can_be_disabled() => Some("already_disabled"),
        Action::Mask if unit.file_state == "masked" => Some("already_masked"),
        Action::Unmask if !unit.is_masked() => Some("already_unmasked"),
        _ => None,
    })
}

/// The names of systemd.unit(5), which those of OpenRC are too. `-.mount` and the like are none here: a dash in front is an option.
pub(super) fn check_name(field: &str, name: &str) -> Result<(), Failure> {
    let refuse = |why| Err(Failure::params(format!("{field}: {name:?} {why}")));
    if name.is_empty() {
        return Err(Failure::params([field, " is required"].concat()));
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\@+".contains(&b))
        || name.starts_with(['-', '.'])
    {
        return refuse("is no name of a unit: letters, digits and : - _ . \\ @ +, no dash or dot first");
    }
    if name.len() > LONGEST_NAME {
        return refuse("is longer than 255 bytes");
    }
    if name.ends_with('@') || name.contains("@.") {
        return refuse("is a template: name an instance, such as getty@tty1");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_units_pass_and_nothing_else() {
        for name in [
            "nginx",
            "nginx.service",
            "getty@tty1",
            "getty@tty1.service",
            "dbus-org.freedesktop.x",
            "a_b",
            "dev-disk-by\\x2did.device",
            "user@1000.service",
            "systemd-fsck@dev-sda1",
            "mysql+x",
            "ssh.socket",
        ] {
            check_name("name", name).unwrap();
        }
        let long = "x".repeat(256);
        for name in [
            "",
            "-",
            "-nginx",
            "--now",
            ".x",
            "a b",
            "a\nb",
            "a\0",
            "a/b",
            "../x",
            "a*",
            "a?",
            "[a]",
            "é",
            "a;b",
            "getty@",
            "getty@.service",
            "$x",
            "a'b",
            "a\tb",
            &long,
        ] {
            let failure = check_name("name", name).unwrap_err();
            assert_eq!(failure.code, ErrorCode::InvalidParams);
            assert!(failure.message.starts_with("name"), "{}", failure.message);
        }
    }

    fn unit(active: &str, file_state: &str) -> Unit {
        Unit {
            id: "x.service".into(),
            active: active.into(),
            enabled: file_state == "enabled",
            file_state: file_state.into(),
            can_reload: true,
            ..Unit::default()
        }
    }

    #[test]
    fn what_is_so_already_is_said_and_not_done() {
        let up = || unit("active", "enabled");
        let down = || unit("inactive", "disabled");
        for (action, unit, expected) in [
            (Action::Start, up(), Some("already_started")),
            (Action::Start, down(), None),
            (Action::Start, unit("failed", "disabled"), None),
            (Action::Start, unit("activating", "disabled"), None),
            (Action::Stop, down(), Some("already_stopped")),
            (Action::Stop, unit("failed", "disabled"), Some("already_stopped")),
            (Action::Stop, up(), None),
            (Action::Stop, unit("activating", "enabled"), None),
            (Action::Restart, up(), None),
            (Action::Restart, down(), None),
            (Action::TryRestart, down(), Some("already_stopped")),
            (Action::TryRestart, up(), None),
            (Action::Reload, up(), None),
            (Action::Enable, up(), Some("already_enabled")),
            (Action::Enable, down(), None),
            (Action::Disable, down(), Some("already_disabled")),
            (Action::Disable, unit("active", "static"), Some("already_disabled")),
            (Action::Disable, up(), None),
            (Action::Mask, unit("inactive", "masked"), Some("already_masked")),
            (Action::Mask, up(), None),
            (Action::Unmask, unit("inactive", "masked"), None),
            (Action::Unmask, up(), Some("already_unmasked")),
        ] {
            assert_eq!(already(action, &unit).unwrap(), expected, "{action:?} {}", unit.active);
        }
    }

    #[test]
    fn what_stands_against_the_action_is_a_conflict() {
        let masked = || unit("inactive", "masked");
        for (action, unit) in [
            (Action::Start, masked()),
            (Action::Restart, masked()),
            (Action::Reload, masked()),
            (Action::Enable, masked()),
            (Action::Reload, unit("inactive", "enabled")),
            (Action::Reload, Unit { can_reload: false, ..unit("active", "enabled") }),
            (Action::Enable, unit("active", "static")),
        ] {
            let failure = already(action, &unit).unwrap_err();
            assert_eq!(failure.code, ErrorCode::Conflict, "{action:?}");
        }
    }

    proptest! {
        #[test]
        fn no_name_that_passes_is_an_option_a_path_or_a_pattern(name in "\\PC{0,12}|[a-z@.\\-/ *\n]{0,12}") {
            if check_name("name", &name).is_ok() {
                prop_assert!(!name.starts_with('-') && !name.contains(['/', ' ', '*', '?', '[', '\n', '\0']));
            }
        }
    }
}
