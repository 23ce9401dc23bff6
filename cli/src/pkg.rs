//! `sortie pkg`: packages, present, absent or at their latest.

use sortie_client::protocol::command::pkg_ensure::PkgEnsure;

use crate::ensure::{self, Where};
use crate::report::Done;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Where,
    /// Exactly this version of one package, with `present`; an older one than the present is installed too
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Use this manager: apt, dnf, yum, zypper, pacman or apk [default: the first of them that the host has]
    #[arg(long, value_name = "MANAGER")]
    manager: Option<String>,
    /// Refresh the lists of the host's sources first
    #[arg(short = 'u', long)]
    update_cache: bool,
    /// Hand this option to the manager, value included, as in --option=--no-install-recommends; may be repeated
    #[arg(short = 'o', long = "option", value_name = "OPTION", allow_hyphen_values = true)]
    options: Vec<String>,
    /// What the packages are to be
    #[arg(value_name = "STATE")]
    state: State,
    /// The packages, all in one transaction
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum State {
    /// Installed, in whatever version
    Present,
    /// Not installed
    Absent,
    /// Installed in the newest version that the host's sources have
    Latest,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let Arguments { place, version, manager, update_cache, options, state, names } = arguments;
    let command = match state {
        State::Present => PkgEnsure::present(names),
        State::Absent => PkgEnsure::absent(names),
        State::Latest => PkgEnsure::latest(names),
    };
    let command = PkgEnsure {
        version: version.unwrap_or_default(),
        manager: manager.unwrap_or_default(),
        update_cache,
        options,
        ..command
    };
    ensure::run(&place, vec![command], |command: &PkgEnsure, check, result| Done::Pkg {
        name: command.name.clone(),
        check,
        result: Box::new(result),
    })
    .await
}
