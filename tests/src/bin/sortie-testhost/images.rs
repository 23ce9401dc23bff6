//! Builds images ahead of the tests. One that cannot be had is said and left: its tests will say so too.

use anyhow::{Result, bail};
use sortie_tests::host::{Kind, Missing, image};

pub(super) fn build(full: bool) -> Result<()> {
    let mut failed = 0;
    for kind in Kind::ALL.into_iter().filter(|kind| full || kind.is_always_tested()) {
        match image::ensure(kind) {
            Ok(path) => println!("{kind}: {}", path.display()),
            Err(Missing::NotHere(reason)) => println!("{kind}: not here: {reason}"),
            Err(Missing::Failed(error)) => {
                println!("{kind}: {error:#}");
                failed += 1;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} images could not be built");
    }
    Ok(())
}
