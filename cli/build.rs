//! Packs the runners of the directory `SORTIE_EMBED_RUNNERS`, if it is set, so that the command carries them, with what signs them.
//! Which machines there are is known by `sortie_client::Machine`; here only names of files are.

use std::fmt::Write as _;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::{env, fs};

use sha2::{Digest, Sha256};

/// Five; more rounds gain some tens of bytes.
const PACKING_ROUNDS: NonZeroU64 = NonZeroU64::MIN.saturating_add(4);

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-env-changed=SORTIE_EMBED_RUNNERS");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets no OUT_DIR"))?);
    let mut table = String::from("&[\n");
    if let Some(directory) = env::var_os("SORTIE_EMBED_RUNNERS").map(PathBuf::from) {
        println!("cargo:rerun-if-changed={}", directory.display());
        for (target, path) in runners(&directory)? {
            println!("cargo:rerun-if-changed={}", path.display());
            let packed = out.join(format!("{target}.gz"));
            let runner = fs::read(&path)?;
            pack(&runner, &packed)?;
            let (len, sha256) = (runner.len(), <[u8; 32]>::from(Sha256::digest(&runner)));
            writeln!(table, "({target:?}, {len}, {sha256:?}, include_bytes!({packed:?})),")
                .map_err(io::Error::other)?;
        }
    }
    table.push(']');
    fs::write(out.join("runners.rs"), table)?;
    fs::write(out.join("listing.rs"), listing()?)
}

/// The listing of the runners and its signature, where both lie beside them.
fn listing() -> io::Result<String> {
    let Some(directory) = env::var_os("SORTIE_EMBED_RUNNERS").map(PathBuf::from) else {
        return Ok("None".into());
    };
    let files = ["runners.json", "runners.json.sig"].map(|name| directory.join(name));
    if !files.iter().all(|file| file.exists()) {
        return Ok("None".into());
    }
    let [listing, signature] = files.map(|file| fs::read(&file));
    Ok(format!("Some((&{:?}, &{:?}))", listing?, signature?))
}

/// Files named `sortie-runner-TARGET`, in order of the target.
fn runners(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", directory.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(named)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(target) = name.strip_prefix("sortie-runner-")
            && !target.contains('.')
        {
            found.push((target.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

/// Without a time or a name in it, so that the same runner always gives the same bytes.
fn pack(runner: &[u8], to: &Path) -> io::Result<()> {
    let options = zopfli::Options { iteration_count: PACKING_ROUNDS, ..zopfli::Options::default() };
    zopfli::compress(options, zopfli::Format::Gzip, runner, fs::File::create(to)?)
}
