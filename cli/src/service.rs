//! `sortie service`: services of systemd or OpenRC, in the order in which they are named.

use sortie_client::protocol::command::service_reload::ServiceReload;

use crate::ensure::{self, Where};
use crate::report::Done;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Where,
    /// What to do; try-restart restarts what runs
    #[arg(value_name = "ACTION")]
    action: Action,
    /// Services, such as nginx, getty@tty1 or ssh.socket
    #[arg(value_name = "UNIT", required = true)]
    units: Vec<String>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum Action {
    Reload,
    Restart,
    TryRestart,
    Start,
    Stop,
    Enable,
    Disable,
    Mask,
    Unmask,
}

impl Action {
    fn on(self, unit: String) -> ServiceReload {
        let command = match self {
            Self::Reload => ServiceReload::reload,
            Self::Restart => ServiceReload::restart,
            Self::TryRestart => ServiceReload::try_restart,
            Self::Start => ServiceReload::start,
            Self::Stop => ServiceReload::stop,
            Self::Enable => ServiceReload::enable,
            Self::Disable => ServiceReload::disable,
            Self::Mask => ServiceReload::mask,
            Self::Unmask => ServiceReload::unmask,
        };
        command(unit)
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let Arguments { place, action, units } = arguments;
    let commands = units.into_iter().map(|unit| action.on(unit)).collect();
    ensure::run(&place, commands, |command: &ServiceReload, check, result| Done::Service {
        name: command.name.clone(),
        check,
        result,
    })
    .await
}
