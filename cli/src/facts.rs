//! `sortie facts`: what the hosts say of themselves.

use sortie_client::protocol::command::facts::{Facts, SETS};

use crate::ensure::{self, Where};
use crate::limits::Limiting;
use crate::options::{Becoming, Connection, Hosts, Preview, Run};
use crate::report::Done;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    run: Run,
    #[command(flatten)]
    becoming: Becoming,
    #[command(flatten)]
    limiting: Limiting,
    #[command(flatten)]
    connection: Connection,
    /// What to tell of, or all [default: all but packages and units]
    #[arg(value_name = "SET", value_parser = clap::builder::PossibleValuesParser::new(SETS.iter().copied().chain(["all"])))]
    sets: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let Arguments { hosts, run, becoming, limiting, connection, sets } = arguments;
    let place = Where { hosts, run, becoming, limiting, connection, preview: Preview::none() };
    let show = |_: &Facts, _, result| Done::Facts(Box::new(result));
    ensure::run(&place, vec![Facts { sets }], show).await
}
