//! Runs typed commands on hosts that have nothing but an SSH server and a POSIX `sh`.
//!
//! A [`Client`] reaches a host by a [`Transport`], starts a runner there over one channel, and gives a [`Session`]:
//! many commands at once, an event stream for each, and nothing left on the host afterwards.
//!
//! ```no_run
//! use std::time::Duration;
//! use sortie_client::{Client, RunnerSet, Target};
//! use sortie_client::protocol::command::{exec::Exec, file_write::FileWrite};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let host = Target::parse("deploy@web1:2222")?;
//! let runners = RunnerSet::from_dir("target/dist".as_ref())?;
//! let session = Client::builder().ttl(Duration::from_secs(600)).runners(runners).connect(&host).await?;
//! let report = session.run(FileWrite::new("/etc/motd").content("hello\n").mode(0o644)).await?;
//! println!("changed: {}", report.result.changed);
//! let mut child = session.start(Exec::shell("apt-get update").stream_lines(true)).await?;
//! while let Some(event) = child.next_event().await {
//!     print!("{}", event.message);
//! }
//! let done = child.wait().await?;
//! println!("exit status {}", done.result.exit_code);
//! session.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A whole small tool that stands on this crate is in `examples/embed` of the repository, outside its workspace: it checks,
//! changes, streams, and takes errors apart.
//!
//! Nothing in this crate prints, reads a terminal or exits. Passwords come from a [`Secrets`](secret::Secrets); what
//! happens on the way can be watched by an [`Observer`](observe::Observer).
#![forbid(unsafe_code)]

mod aftermath;
mod agent;
mod algorithms;
pub mod allowed_signers;
#[cfg(feature = "apply")]
pub mod apply;
pub mod audit;
pub mod bootstrap;
mod client;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod host_certificate;
mod host_trust;
pub mod known_hosts;
pub mod manifest;
pub mod observe;
mod pattern;
mod place;
pub mod redact;
pub mod revoked_keys;
pub mod runners;
pub mod secret;
pub mod session;
pub mod signing;
pub mod ssh_config;
pub mod target;
#[cfg(feature = "tracing")]
mod trace;
pub mod transport;

pub use allowed_signers::AllowedSigners;
pub use client::{Client, ClientBuilder, Pipe};
pub use error::Error;
pub use manifest::SignedListing;
pub use place::Place;
pub use runners::{Machine, Runner, RunnerSet};
pub use session::{CommandOptions, Farewell, Opening, Running, Session};
pub use sortie_protocol as protocol;
pub use target::Target;
pub use transport::{Command, Local, OpenSsh, Ssh, SshSettings, Transport};
