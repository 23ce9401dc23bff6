//! `sortie runners`: which runners this command carries, and a way to get them out.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sortie_client::{Machine, Runner, RunnerSet, SignedListing};
use sortie_protocol::Sha256Hex;

use crate::place;
use crate::report::{self, Event, Style};

/// Targets, bytes, digests and gzip files, from the build script.
const EMBEDDED: &[(&str, usize, [u8; 32], &[u8])] = include!(concat!(env!("OUT_DIR"), "/runners.rs"));

/// The listing of those and its signature, where they were built in.
const LISTING: Option<(&[u8], &[u8])> = include!(concat!(env!("OUT_DIR"), "/listing.rs"));

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Show those of this directory instead
    #[arg(long, value_name = "DIR", env = "SORTIE_RUNNERS", hide_env_values = true)]
    runners: Option<PathBuf>,
    /// Only if their listing (runners.json) is signed by a key of this file: ssh-keygen(1), ALLOWED SIGNERS; and show who signed
    #[arg(long, value_name = "FILE", env = "SORTIE_REQUIRE_SIGNED_RUNNERS", hide_env_values = true)]
    require_signed_runners: Option<PathBuf>,
    /// Write them into this directory, as sortie-runner-TARGET
    #[arg(long, value_name = "DIR")]
    extract: Option<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<i32> {
    let (set, vouched) =
        place::runner_set(arguments.runners.as_deref(), arguments.require_signed_runners.as_deref())?;
    if let Some(directory) = &arguments.extract {
        extract(&set, directory).with_context(|| format!("writing into {}", directory.display()))?;
    }
    let (reporter, printer) = report::start(Style { json: arguments.json, prefix: false });
    for (machine, runner) in set.iter() {
        reporter.show(Event::Runner {
            target: machine.target().to_owned(),
            bytes: runner.len(),
            gzip_bytes: runner.gzip().len(),
            sha256: runner.sha256().to_owned(),
        });
    }
    if let Some(vouched) = vouched {
        reporter.show(Event::RunnersSigned {
            version: vouched.version,
            signer: vouched.signer.principals,
            key: vouched.signer.fingerprint,
        });
    }
    printer.finish();
    Ok(0)
}

/// The listing that was built into this program, with its signature.
pub(crate) fn embedded_listing() -> Option<SignedListing> {
    LISTING.map(|(listing, signature)| SignedListing::new(listing, signature))
}

/// Those that were built into this program.
pub(crate) fn embedded() -> RunnerSet {
    let mut set = RunnerSet::new();
    for &machine in Machine::ALL {
        // Best first: of two for the same machine the first is taken.
        let found =
            machine.targets().iter().find_map(|target| EMBEDDED.iter().find(|(name, ..)| name == target));
        if let Some(&(_, len, sha256, gzip)) = found {
            set.insert(machine, Runner::packed(gzip, len, Sha256Hex::from_bytes(&sha256)));
        }
    }
    set
}

fn extract(set: &RunnerSet, directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(directory)?;
    for (machine, runner) in set.iter() {
        let mut file =
            tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempfile_in(directory)?;
        io::Write::write_all(&mut file, runner.bytes())?;
        file.persist(directory.join(format!("sortie-runner-{}", machine.target())))?;
    }
    Ok(())
}
