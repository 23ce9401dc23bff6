//! The one place of the runner that touches the operating system: safe, typed values go up from here.
//!
//! All `unsafe` of the runner lives below this module, each with the reason why it holds.

pub(crate) mod at;
pub(crate) mod bounds;
pub(crate) mod cgroup;
pub(crate) mod fd;
pub(crate) mod file;
pub(crate) mod host;
pub(crate) mod keeper;
pub(crate) mod net;
pub(crate) mod netlink;
pub(crate) mod process;
pub(crate) mod start;
mod tree;
pub(crate) mod tty;
