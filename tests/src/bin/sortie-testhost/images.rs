//! Builds images ahead of the tests. One that cannot be had is said and left: its tests will say so too, each in its way.

use std::path::PathBuf;

use anyhow::Result;
use sortie_tests::host::{Kind, Missing, image, machine};

pub(super) fn build(full: bool) -> Result<()> {
    for kind in Kind::ALL.into_iter().filter(|kind| full || kind.is_always_tested()) {
        say(kind.name(), image::ensure(kind));
    }
    if full {
        say("machine", machine::image());
    }
    Ok(())
}

fn say(name: &str, image: Result<PathBuf, Missing>) {
    match image {
        Ok(path) => println!("{name}: {}", path.display()),
        Err(Missing::NotHere(reason)) => println!("{name}: cannot be had here: {reason}"),
        Err(Missing::Failed(error)) => println!("{name}: {error:#}"),
    }
}
