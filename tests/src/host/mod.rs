//! Hosts as an administrator meets them: each with a root file system, an init, an SSH server, a network interface and
//! a disk of its own, run by systemd-nspawn, up in about a second, and gone with the test however it ends. It needs
//! root.
//!
//! A [`Lab`] is a network of such hosts without any way out; a test stands in the middle of it: the calling thread
//! enters the lab's network namespace, so all that it connects and starts is in there. That is why tests here use a
//! runtime of one thread (`#[tokio::test]` as it is), and why a lab's addresses are the same in all labs.
//!
//! Images are built once for each [`Kind`] and kept in `${XDG_CACHE_HOME:-~/.cache}/sortie-testhosts`; see [`image`].

mod fault;
pub mod image;
mod inside;
mod kinds;
mod lab;
pub mod machine;
pub mod matrix;
pub mod snapshot;
pub mod spec;

pub use fault::Cut;
pub use inside::Ran;
pub use kinds::Kind;
pub use lab::{Builder, Host, Lab};
pub use machine::Machine;
pub use snapshot::Snapshot;

/// Why a kind of host cannot be had.
#[derive(Debug)]
pub enum Missing {
    /// This machine lacks something: the test that wants the host is to be skipped for this reason.
    NotHere(String),
    /// Something that should work did not.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Missing {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<std::io::Error> for Missing {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Missing> for anyhow::Error {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::NotHere(reason) => anyhow::anyhow!("cannot be had here: {reason}"),
            Missing::Failed(error) => error,
        }
    }
}
