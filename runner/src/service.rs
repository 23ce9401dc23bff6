//! What service managers say of a unit and do to it, the same for each of them. It decides nothing of what is asked for.

use std::time::{Duration, Instant};

use sortie_protocol::{ErrorCode, Stream};

use crate::command::Context;
use crate::facts;
use crate::failure::Failure;
use crate::tool::{Ran, Tool, last_lines};

mod openrc;
mod systemd;

/// How long a process that was just started, or was just told to reload, is watched: systemd calls a service of
/// `Type=simple` active before it has read its configuration.
const SETTLE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(10);

/// Lines of the log that an error carries.
const LOG_LINES: usize = 10;

macro_rules! actions {
    ($($name:ident $verb:literal $past:literal;)*) => {
        /// What can be asked for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Action { $($name,)* }

        impl Action {
            /// As they are asked for.
            pub(crate) const NAMES: &[&str] = &[$($verb,)*];

            pub(crate) fn parse(text: &str) -> Option<Self> {
                match text { $($verb => Some(Self::$name),)* _ => None }
            }

            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$name => $verb,)* }
            }

            /// What it is called when it is done.
            pub(crate) fn past(self) -> &'static str {
                match self { $(Self::$name => $past,)* }
            }
        }
    };
}

actions! {
    Reload "reload" "reloaded";
    Restart "restart" "restarted";
    TryRestart "try_restart" "try_restarted";
    Start "start" "started";
    Stop "stop" "stopped";
    Enable "enable" "enabled";
    Disable "disable" "disabled";
    Mask "mask" "masked";
    Unmask "unmask" "unmasked";
}

impl Action {
    /// Whether the service is meant to run afterwards.
    fn leaves_it_up(self) -> bool {
        matches!(self, Self::Reload | Self::Restart | Self::TryRestart | Self::Start)
    }
}

/// What the manager says of a unit.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Its own name, whatever alias was asked for.
    pub(crate) id: String,
    /// `active`, `reloading`, `inactive`, `failed`, `activating` or `deactivating`.
    pub(crate) active: String,
    /// The manager's own word, such as `running`.
    pub(crate) sub: String,
    /// Whether it starts with the machine.
    pub(crate) enabled: bool,
    /// systemctl(1), `is-enabled`; empty where there is no such thing.
    pub(crate) file_state: String,
    pub(crate) can_reload: bool,
    /// Why it is not up, where systemd knows: `success`, `exit-code`, …
    pub(crate) result: String,
    /// Another after each start.
    pub(crate) incarnation: String,
    /// When its state last changed.
    pub(crate) since: String,
    /// A condition of the unit was not met when it was last to be started.
    pub(crate) was_passed_over: bool,
    pub(crate) main_pid: u32,
    /// Calls itself started before it can know.
    pub(crate) is_hasty: bool,
    pub(crate) need_daemon_reload: bool,
}

impl Unit {
    pub(crate) fn is_up(&self) -> bool {
        matches!(&*self.active, "active" | "reloading" | "refreshing")
    }

    pub(crate) fn is_down(&self) -> bool {
        matches!(&*self.active, "inactive" | "failed")
    }

    pub(crate) fn is_masked(&self) -> bool {
        self.file_state.starts_with("masked")
    }

    /// Whether there is something to take away that starts it.
    pub(crate) fn can_be_disabled(&self) -> bool {
        self.enabled
            || matches!(&*self.file_state, "enabled-runtime" | "indirect" | "linked" | "linked-runtime")
    }
}

/// Who manages services.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Manager {
    Systemd,
    OpenRc,
}

impl Manager {
    /// Who manages the services of this host.
    ///
    /// # Errors
    /// `UNSUPPORTED` where it is neither.
    pub(crate) fn of_host() -> Result<Self, Failure> {
        match facts::init() {
            "systemd" => Ok(Self::Systemd),
            "openrc" => Ok(Self::OpenRc),
            other => Err(Failure::unsupported(format!(
                "services are managed by systemd and OpenRC only, and this host's init is {other:?}"
            ))),
        }
    }

    /// Every unit that the host has, as far as they are meant to be asked for: name, state, and whether it starts with the machine.
    ///
    /// # Errors
    /// `SERVICE_FAILED` when the manager cannot say.
    pub(crate) fn list(self, context: &Context) -> Result<Vec<Unit>, Failure> {
        match self {
            Self::Systemd => systemd::list(context),
            Self::OpenRc => openrc::list(context),
        }
    }

    pub(crate) fn can(self, action: Action) -> bool {
        matches!(self, Self::Systemd) || !matches!(action, Action::Mask | Action::Unmask)
    }

    /// The unit as it is now.
    ///
    /// # Errors
    /// `NOT_FOUND` when there is none of that name; `SERVICE_FAILED` when the manager cannot say.
    pub(crate) fn look(self, context: &Context, name: &str) -> Result<Unit, Failure> {
        match self {
            Self::Systemd => systemd::look(context, name),
            Self::OpenRc => openrc::look(context, name),
        }
    }

    /// Does it, waits for its end, and looks whether it lasts. The unit afterwards, and whether anything changed.
    ///
    /// # Errors
    /// `SERVICE_FAILED` with the unit's state and last log lines.
    pub(crate) fn change(
        self,
        context: &Context,
        action: Action,
        before: &Unit,
    ) -> Result<(Unit, bool), Failure> {
        let ran = match self {
            Self::Systemd => systemd::change(context, action, before)?,
            Self::OpenRc => openrc::change(context, action, before)?,
        };
        let mut after = self.look(context, &before.id);
        if let (Ok(unit), true, true) = (&after, ran.ok(), action.leaves_it_up()) {
            after = self.settled(context, action, unit.clone());
        }
        let after = match after {
            Ok(after) => after,
            // What was only linked to, or only masked, is gone with its link.
            Err(failure) if ran.ok() && failure.code == ErrorCode::NotFound => {
                Unit { id: before.id.clone(), active: "inactive".to_owned(), ..Unit::default() }
            }
            Err(failure) => return Err(failure),
        };
        let is_lost = match action {
            Action::Reload => !after.is_up(),
            Action::Restart | Action::TryRestart | Action::Start => {
                after.active == "failed"
                    || after.sub == "auto-restart"
                    || after.was_passed_over && after.is_down()
            }
            _ => false,
        };
        if !ran.ok() || is_lost {
            return Err(self.failed(context, action, &after, &ran));
        }
        let said = String::from_utf8_lossy(&ran.stderr);
        let links = ["Created symlink", "Removed ", "Unlinked "].iter().any(|word| said.contains(word));
        let changed = match action {
            Action::Reload => true,
            Action::Enable | Action::Disable | Action::Mask | Action::Unmask => {
                links || (&after.file_state, after.enabled) != (&before.file_state, before.enabled)
            }
            // It ran, and nothing tells this run from the last: systemd forgets a unit that has ended and that nobody wants.
            Action::Restart | Action::TryRestart | Action::Start if matches!(&*after.since, "" | "0") => true,
            _ => {
                (&after.incarnation, &after.since, &after.active)
                    != (&before.incarnation, &before.since, &before.active)
            }
        };
        Ok((after, changed))
    }

    /// Watches the main process of a unit that may yet fail, for [`SETTLE`] at most.
    fn settled(self, context: &Context, action: Action, unit: Unit) -> Result<Unit, Failure> {
        if !unit.is_up() || unit.main_pid == 0 || !(unit.is_hasty || action == Action::Reload) {
            return Ok(unit);
        }
        let process = format!("/proc/{}", unit.main_pid);
        let until = Instant::now() + SETTLE;
        while Instant::now() < until && std::path::Path::new(&process).exists() {
            context.job.pause(LOOK)?;
        }
        let mut now = self.look(context, &unit.id)?;
        if now.incarnation != unit.incarnation {
            // The manager has started it again already.
            "activating".clone_into(&mut now.active);
            now.sub = "auto-restart".to_owned();
        }
        Ok(now)
    }

    fn failed(self, context: &Context, action: Action, unit: &Unit, ran: &Ran) -> Failure {
        let log = match self {
            Self::Systemd if action.leaves_it_up() || action == Action::Stop => {
                systemd::log(context, &unit.id)
            }
            _ => Vec::new(),
        };
        let log = last_lines(&log, LOG_LINES);
        let said = if ran.ok() { String::new() } else { ran.last_lines(LOG_LINES) };
        let verb = action.name().replace('_', "-");
        let mut message = format!("{verb} of {} failed: it is {} ({}", unit.id, unit.active, unit.sub);
        for word in [&unit.result].into_iter().filter(|word| !matches!(&***word, "" | "success")) {
            message = message + ", " + word;
        }
        message.push(')');
        if unit.was_passed_over {
            message += "; a condition of its unit file is not met";
        }
        for (what, words) in [("", &said), ("last log lines: ", &log)] {
            if !words.is_empty() {
                message = message + "; " + what + words;
            }
        }
        Failure::new(ErrorCode::ServiceFailed, message)
            .detail("status", unit.active.clone())
            .detail("sub_state", unit.sub.clone())
            .detail("result", unit.result.clone())
            .detail("log", log)
    }
}

/// Runs the manager's program, telling every few seconds that it is waited for.
fn run(context: &Context, action: Action, unit: &Unit, tool: Tool) -> Result<Ran, Failure> {
    tool.waiting(format!("waiting for the {} of {}", action.name().replace('_', "-"), unit.id)).run(context)
}

/// Runs what lists units, and hands on each line as words.
fn lines(context: &Context, tool: Tool, take: &mut dyn FnMut(&[&str])) -> Result<(), Failure> {
    let ran = tool.run_lines(context, &mut |stream, line| {
        if stream == Stream::Stdout {
            let line = String::from_utf8_lossy(line);
            take(&line.split_whitespace().collect::<Vec<_>>());
        }
    })?;
    if ran.ok() {
        return Ok(());
    }
    let message = ["the service manager cannot list its units: ", &ran.last_lines(3)].concat();
    Err(Failure::new(ErrorCode::ServiceFailed, message))
}

/// What systemctl(1) shows of a unit.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(shown: &str) {
    let unit = systemd::unit(shown);
    assert!(!unit.is_up() || !unit.is_down(), "{unit:?}");
}
