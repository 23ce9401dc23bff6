//! The test kit: SSH hosts of several kinds, faults on the link between, and the runner on a pipe.
//! Suites, `cargo xtask demo` and `cargo xtask bench` stand on it; it knows nothing of Sortie's protocol or client,
//! so that a mistake there cannot hide in here too.
//!
//! - [`access`]: how a client gets in, and the files it needs for that.
//! - [`embedded`]: an SSH server in this process, for any machine and user.
//! - [`sshd`]: OpenSSH's `sshd`, or dropbear over busybox, on a host of its own (namespaces; root only).
//! - [`host`]: whole hosts with an init, a network and a disk of their own, of many kinds, and what can befall them.
//! - [`proxy`]: a TCP link that delays, throttles, freezes, cuts and counts.
//! - [`runner`]: a runner binary under test, spoken to over its standard input and output.
//! - [`process`]: who runs on this machine, and what a test left running.

pub mod access;
pub mod busybox;
pub mod embedded;
pub mod host;
pub mod keys;
pub mod process;
pub mod proxy;
pub mod runner;
mod skip;
pub mod sshd;
mod wait;

pub use skip::{Skipped, is_root, skipped, which};
pub use wait::{DEADLINE, eventually, within};
