//! `sortie file`: what paths of a host are, and what they should be. Each sub-verb is one command of the protocol, done for
//! every path in the order in which they are named.

use sortie_client::protocol::command::file_remove::FileRemove;
use sortie_client::protocol::command::file_stat::FileStat;

use crate::edit;
use crate::ensure::{self, Where};
use crate::report::Done;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Say what paths are; that nothing is there is an answer, and no failure
    Stat(Stat),
    /// Have one line in a file, or none like it
    Line(edit::Line),
    /// Have a block of lines in a file, between two marker lines
    Block(edit::Block),
    /// Have an option in a section of a file as php, git, systemd and others have them
    Ini(edit::Ini),
    /// Remove files, links, and with -r directories
    Remove(Remove),
}

#[derive(clap::Args)]
struct Stat {
    #[command(flatten)]
    place: Where,
    /// Tell of what a symbolic link leads to, and not of the link itself
    #[arg(short = 'L', long)]
    follow: bool,
    /// Read regular files, and tell their SHA-256
    #[arg(long)]
    checksum: bool,
    /// Absolute paths
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<String>,
}

#[derive(clap::Args)]
struct Remove {
    #[command(flatten)]
    place: Where,
    /// Remove directories too, with all that is in them
    #[arg(short = 'r', long)]
    recursive: bool,
    /// Keep contents and names out of differences
    #[arg(long)]
    sensitive: bool,
    /// Absolute paths; a symbolic link is removed itself
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    match arguments.verb {
        Verb::Stat(arguments) => stat(arguments).await,
        Verb::Line(arguments) => edit::line(arguments).await,
        Verb::Block(arguments) => edit::block(arguments).await,
        Verb::Ini(arguments) => edit::ini(arguments).await,
        Verb::Remove(arguments) => remove(arguments).await,
    }
}

async fn stat(Stat { place, follow, checksum, paths }: Stat) -> anyhow::Result<i32> {
    let stat = |path| FileStat::new(path).follow(follow).checksum(checksum);
    let commands = paths.into_iter().map(stat).collect();
    ensure::run(&place, commands, |command: &FileStat, _, result| Done::FileStat {
        path: command.path.clone(),
        result: Box::new(result),
    })
    .await
}

async fn remove(Remove { place, recursive, sensitive, paths }: Remove) -> anyhow::Result<i32> {
    let remove = |path| FileRemove::new(path).recursive(recursive).sensitive(sensitive);
    let commands = paths.into_iter().map(remove).collect();
    ensure::run(&place, commands, |command: &FileRemove, check, result| Done::FileRemove {
        path: command.path.clone(),
        check,
        result,
    })
    .await
}
