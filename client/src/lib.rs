//! Work in progress.
#![forbid(unsafe_code)]
pub mod bootstrap;
mod pattern;
pub mod error;
pub mod known_hosts;
pub mod observe;
pub mod secret;
pub mod ssh_config;
pub mod target;
pub mod transport;
