//! `sortie sudoers`: one rule of sudo for a user or a group, there or not there.

use sortie_client::protocol::command::sudoers_ensure::SudoersEnsure;

use crate::ensure::{self, Where};
use crate::outcome::usage;
use crate::report::Done;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    rule: Rule,
    #[command(flatten)]
    place: Where,
    #[arg(value_name = "STATE")]
    state: State,
    /// A user, or %GROUP; #UID and %#GID work too
    #[arg(value_name = "USER")]
    whom: String,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum State {
    /// Let them run commands by sudo: everything as everybody without a password, or what the options say
    Present,
    /// Take their rule away
    Absent,
}

/// What `present` lets them do.
#[derive(clap::Args)]
#[command(next_help_heading = "With present")]
struct Rule {
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
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let Arguments { rule, place, state, whom } = arguments;
    let command = match (state, present(rule, whom.clone())) {
        (State::Present, command) => command,
        (State::Absent, command) if command == SudoersEnsure::present(&whom) => SudoersEnsure::absent(whom),
        (State::Absent, _) => {
            return Err(usage(
                "absent takes the whole rule away: leave out the options that go with present",
            ));
        }
    };
    ensure::run(&place, vec![command], |command: &SudoersEnsure, check, result| Done::Sudoers {
        user: command.user.clone(),
        check,
        result,
    })
    .await
}

fn present(rule: Rule, whom: String) -> SudoersEnsure {
    let runas = rule.runas.unwrap_or_default();
    let (user, group) = runas.split_once(':').unwrap_or((&runas, ""));
    SudoersEnsure {
        commands: rule.commands,
        no_passwd: !rule.passwd,
        runas_user: user.to_owned(),
        runas_group: group.to_owned(),
        host: rule.on.unwrap_or_default(),
        setenv: rule.setenv,
        noexec: rule.noexec,
        wildcards: rule.wildcards,
        ..SudoersEnsure::present(whom)
    }
}
