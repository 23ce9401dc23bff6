//! What `sshd_harden` is made of: the configuration as sshd reads it, edits of it, and whatever asks, judges and reloads sshd.

pub(crate) mod config;
pub(crate) mod daemon;
pub(crate) mod edit;
pub(crate) mod login;
pub(crate) mod service;
pub(crate) mod settings;
