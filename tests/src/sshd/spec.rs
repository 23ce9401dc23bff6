//! What a test tells the helper program about the host it is to make: plain data, one line of JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A whole host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// What its root file system is made of.
    pub system: System,
    /// Its own name.
    pub hostname: String,
    /// The account that tests log in to.
    pub account: Account,
    /// Directories with a file system of their own, parents first.
    pub dirs: Vec<Dir>,
    /// Files to write, after `dirs` are there.
    pub files: Vec<File>,
    /// Names of programs to remove from every directory of programs.
    pub missing: Vec<String>,
    /// Mounts the root read-only in the end; `dirs` stay as they are.
    pub read_only_root: bool,
    /// Nothing can be reached from it.
    pub own_network: bool,
    /// Run once in the account, so that files a shell makes at its first start are there before any test looks.
    pub warm_up: Vec<String>,
    /// The server, started for each connection with the socket as its standard input and output.
    pub serve: Vec<String>,
    /// A directory of this machine to remove when the host has ended.
    pub scratch: PathBuf,
}

/// What a root file system is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum System {
    /// This machine's own, under a layer that takes all changes.
    Machine,
    /// busybox and dropbear alone.
    Busybox,
}

/// A line of `passwd(5)`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    /// The name.
    pub name: String,
    /// The user's id, and that of a group of the same name.
    pub uid: u32,
    /// The home directory.
    pub home: String,
    /// The login shell.
    pub shell: String,
    /// A password in the clear; none can be used without.
    pub password: Option<String>,
}

/// A directory with a file system of its own, in memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dir {
    /// Where.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// Owned by the account, else by root.
    pub of_account: bool,
    /// Nothing in it can be executed.
    pub noexec: bool,
    /// Nothing in it can be changed.
    pub read_only: bool,
    /// Not one byte fits in any more, though names do.
    pub full: bool,
}

/// A file to write.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct File {
    /// Where; missing parents are made, with mode 0755.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
    /// Owned by the account, parents made for it too; else by root.
    pub of_account: bool,
}
