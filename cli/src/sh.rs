//! `sortie sh`: a line of shell, which is `exec` of `/bin/sh -c LINE`.

use std::ffi::OsString;

use crate::exec;
use crate::options::{Becoming, Connection, Hosts, Run};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    how: exec::How,
    #[command(flatten)]
    run: Run,
    #[command(flatten)]
    becoming: Becoming,
    #[command(flatten)]
    connection: Connection,
    /// The line, in quotes
    #[arg(value_name = "LINE")]
    line: OsString,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let Arguments { hosts, how, run, becoming, connection, line } = arguments;
    exec::run_argv(&hosts, how, &run, &becoming, &connection, vec!["/bin/sh".into(), "-c".into(), line]).await
}
