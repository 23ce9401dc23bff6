//! `sortie sudoers`: one rule of sudo for a user or a group, there or not there.

use sortie_client::protocol::command::sudoers_ensure::SudoersEnsure;

use crate::ensure::{self, Where};
use crate::report::Done;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    state: State,
}

#[derive(clap::Subcommand)]
enum State {
    /// Let a user or group run commands by sudo: everything as everybody without a password, or what the options say
    Present(Present),
    /// Take the rule of a user or group away
    Absent(Absent),
}

#[derive(clap::Args)]
struct Present {
    /// Only this command, an absolute path with the exact arguments if any; may be repeated
    #[arg(short = 'c', long = "command", value_name = "COMMAND")]
    commands: Vec<String>,
    /// Take *, ? and […] in commands as patterns of sudoers(5) instead of refusing them
    #[arg(long)]
    wildcards: bool,
    /// Have sudo ask for a password
    #[arg(long)]
    passwd: bool,
    /// Only as this user (with that user's groups) or group; ALL may stand for either [default: ALL:ALL]
    #[arg(long, value_name = "USER[:GROUP]")]
    runas: Option<String>,
    /// Only on the host of this name, address or network, where the rule is shared
    #[arg(long, value_name = "HOST")]
    on: Option<String>,
    /// Let the user choose the command's environment (SETENV)
    #[arg(long)]
    setenv: bool,
    /// Keep the command from running others (NOEXEC)
    #[arg(long)]
    noexec: bool,
    #[command(flatten)]
    place: Where,
    /// A user, or %GROUP; #UID and %#GID work too
    #[arg(value_name = "USER")]
    whom: String,
}

#[derive(clap::Args)]
struct Absent {
    #[command(flatten)]
    place: Where,
    /// The user, or %GROUP
    #[arg(value_name = "USER")]
    whom: String,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let (place, command) = match arguments.state {
        State::Present(present) => rule(present),
        State::Absent(Absent { place, whom }) => (place, SudoersEnsure::absent(whom)),
    };
    ensure::run(&place, vec![command], |command: &SudoersEnsure, check, result| Done::Sudoers {
        user: command.user.clone(),
        check,
        result,
    })
    .await
}

fn rule(present: Present) -> (Where, SudoersEnsure) {
    let runas = present.runas.unwrap_or_default();
    let (user, group) = runas.split_once(':').unwrap_or((&runas, ""));
    let command = SudoersEnsure {
        commands: present.commands,
        no_passwd: !present.passwd,
        runas_user: user.to_owned(),
        runas_group: group.to_owned(),
        host: present.on.unwrap_or_default(),
        setenv: present.setenv,
        noexec: present.noexec,
        wildcards: present.wildcards,
        ..SudoersEnsure::present(present.whom)
    };
    (present.place, command)
}
