//! Builds images ahead of the tests. One that cannot be had is said and left: its tests will say so too, each in its way.

use anyhow::Result;
use sortie_tests::host::{Kind, Missing, image};

pub(super) fn build(full: bool) -> Result<()> {
    for kind in Kind::ALL.into_iter().filter(|kind| full || kind.is_always_tested()) {
        match image::ensure(kind) {
            Ok(path) => println!("{kind}: {}", path.display()),
            Err(Missing::NotHere(reason)) => println!("{kind}: cannot be had here: {reason}"),
            Err(Missing::Failed(error)) => println!("{kind}: {error:#}"),
        }
    }
    Ok(())
}
