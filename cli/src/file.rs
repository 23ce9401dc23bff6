//! `sortie file`: what paths of a host are, and what they should be. Each sub-verb is one command of the protocol, done for
//! every path in the order in which they are named.

use sortie_client::protocol::Mode;
use sortie_client::protocol::command::dir_ensure::DirEnsure;
use sortie_client::protocol::command::file_remove::FileRemove;
use sortie_client::protocol::command::file_stat::FileStat;
use sortie_client::protocol::command::link_ensure::LinkEnsure;

use crate::ensure::{self, Where};
use crate::report::Done;
use crate::{edit, unpack};

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
    /// Unpack an archive of the host into a directory of it
    Unpack(unpack::Unpack),
    /// Remove files, links, and with -r directories
    Remove(Remove),
    /// Have directories, with this owner, group and mode
    Dir(Dir),
    /// Have a symbolic link that leads to TARGET
    Link(Link),
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

#[derive(clap::Args)]
struct Dir {
    #[command(flatten)]
    place: Where,
    /// Permission bits in octal [default: those that are there; 0755 for a new one]
    #[arg(short = 'm', long, value_name = "MODE")]
    mode: Option<Mode>,
    /// User name or number of the owner [default: as it is]
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Group name or number [default: as it is]
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// All that is in them too: owner and group, and the mode of directories
    #[arg(short = 'R', long)]
    recursive: bool,
    /// With -R, permission bits of regular files in octal [default: as they are]
    #[arg(long, value_name = "MODE", requires = "recursive")]
    file_mode: Option<Mode>,
    /// Refuse a symbolic link instead of following it
    #[arg(long)]
    no_follow: bool,
    /// Show no differences
    #[arg(long)]
    sensitive: bool,
    /// Absolute paths; what is missing above them is made
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<String>,
}

#[derive(clap::Args)]
struct Link {
    #[command(flatten)]
    place: Where,
    /// User name or number that the link itself belongs to
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Group name or number of the link itself
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Replace a file or an empty directory too
    #[arg(long)]
    force: bool,
    /// Show no differences
    #[arg(long)]
    sensitive: bool,
    /// What the link says: absolute, or seen from its directory
    #[arg(value_name = "TARGET")]
    target: String,
    /// Absolute path of the link
    #[arg(value_name = "PATH")]
    path: String,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    match arguments.verb {
        Verb::Stat(arguments) => stat(arguments).await,
        Verb::Line(arguments) => edit::line(arguments).await,
        Verb::Block(arguments) => edit::block(arguments).await,
        Verb::Ini(arguments) => edit::ini(arguments).await,
        Verb::Unpack(arguments) => unpack::run(arguments).await,
        Verb::Remove(arguments) => remove(arguments).await,
        Verb::Dir(arguments) => dir(arguments).await,
        Verb::Link(arguments) => link(arguments).await,
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

async fn dir(arguments: Dir) -> anyhow::Result<i32> {
    let ensure = |path| DirEnsure {
        path,
        mode: arguments.mode,
        owner: arguments.owner.clone(),
        group: arguments.group.clone(),
        recursive: arguments.recursive,
        file_mode: arguments.file_mode,
        no_follow: arguments.no_follow,
        sensitive: arguments.sensitive,
    };
    let commands = arguments.paths.into_iter().map(ensure).collect();
    ensure::run(&arguments.place, commands, |command: &DirEnsure, check, result| Done::DirEnsure {
        path: command.path.clone(),
        check,
        result,
    })
    .await
}

async fn link(Link { place, owner, group, force, sensitive, target, path }: Link) -> anyhow::Result<i32> {
    let command = LinkEnsure { path, target, owner, group, force, sensitive };
    ensure::run(&place, vec![command], |command: &LinkEnsure, check, result| Done::LinkEnsure {
        path: command.path.clone(),
        check,
        result,
    })
    .await
}
