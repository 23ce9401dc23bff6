//! `sortie file unpack`: an archive of the host, in a directory of it.

use sortie_client::protocol::command::archive_unpack::ArchiveUnpack;

use crate::ensure::{self, Where};
use crate::report::Done;

#[derive(clap::Args)]
pub(crate) struct Unpack {
    #[command(flatten)]
    place: Where,
    /// Take this many directories off the beginning of every name
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    strip: u32,
    /// Unpack nothing if this is there, whatever the archive
    #[arg(long, value_name = "PATH", conflicts_with = "marker")]
    creates: Option<String>,
    /// Note here what was unpacked [default: .sortie-unpacked in DIRECTORY]
    #[arg(long, value_name = "PATH")]
    marker: Option<String>,
    /// User name or number of all that is unpacked
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Group name or number of all that is unpacked
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Absolute path of the archive on the host: tar, plain or by gzip, bzip2, xz or zstd, or zip
    #[arg(value_name = "ARCHIVE")]
    archive: String,
    /// Absolute path; it is made if it is not there
    #[arg(value_name = "DIRECTORY")]
    path: String,
}

pub(crate) async fn run(arguments: Unpack) -> anyhow::Result<i32> {
    let command = ArchiveUnpack {
        archive: arguments.archive,
        path: arguments.path,
        strip: arguments.strip,
        creates: arguments.creates,
        marker: arguments.marker,
        owner: arguments.owner,
        group: arguments.group,
    };
    ensure::run(&arguments.place, vec![command], |command: &ArchiveUnpack, check, result| Done::FileUnpack {
        path: command.path.clone(),
        check,
        result,
    })
    .await
}
