//! The runner: one static binary that reads frames on standard input, runs commands and answers on standard output.
//!
//! Start reads from here: arguments, self-deletion, the fork into guardian and server. Nothing here runs a command.

#![cfg_attr(not(any(test, fuzzing)), no_main)]
#![cfg_attr(any(test, fuzzing), allow(dead_code, reason = "nothing starts the program in its unit tests"))]

mod anchor;
mod archive;
mod attributes;
mod command;
mod diff;
mod facts;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guardian;
mod hop;
mod idempotency;
mod ini;
mod job;
mod limits;
mod lines;
mod locks;
mod options;
mod output;
mod package;
mod path;
mod pool;
mod probe;
mod process;
mod regex;
mod replace;
mod rollback;
mod scope;
mod sequence;
mod server;
mod service;
mod signed;
mod sshd;
mod sudoers;
mod sys;
mod syslog;
mod tool;
mod walk;
mod workers;

use std::ffi::OsString;
use std::path::Path;

use anchor::Anchor;
use options::Request;
use sys::fd::{duplicate_stdio, write_all};

/// The whole program after its name; its exit status.
fn run(arguments: Vec<OsString>) -> u8 {
    match options::parse(arguments) {
        Ok(Request::Run(options)) => start(options),
        Ok(Request::Version) => print(concat!("sortie-runner ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Request::Help) => print(options::HELP),
        Err(error) => {
            complain(&format!("{error}; --help lists the flags"));
            2
        }
    }
}

fn print(text: &str) -> u8 {
    let printed = duplicate_stdio(1).and_then(|stdout| write_all(&stdout, text.as_bytes()));
    u8::from(printed.is_err())
}

/// Says what is wrong on standard error, if there is one.
fn complain(problem: &str) {
    let text = format!("sortie-runner: {problem}\n");
    let _ = duplicate_stdio(2).and_then(|stderr| write_all(&stderr, text.as_bytes()));
}

fn start(options: options::Options) -> u8 {
    let anchors = match trusted(&options) {
        Ok(anchors) => anchors,
        Err(error) => {
            complain(&error);
            return 2;
        }
    };
    facts::hold_own_file();
    sys::process::keep_memory_to_ourselves();
    let self_deleted = !options.keep && delete_self(options.directory.as_deref());
    let served = match guardian::split() {
        Ok(guardian::Half::Guardian(status)) => Ok(status),
        Ok(guardian::Half::Server(streams)) => server::serve(options, anchors, streams, self_deleted),
        Err(error) => Err(error),
    };
    served.unwrap_or_else(|error| {
        complain(&format!("cannot start: {error}"));
        1
    })
}

/// The keys that commands must be signed by; none where everybody may command who can write to the runner.
fn trusted(options: &options::Options) -> Result<Vec<Anchor>, String> {
    let mut anchors = Vec::new();
    for path in &options.anchors {
        anchors.extend(anchor::read(path)?);
    }
    for key in &options.trust {
        anchors.push(Anchor::from_hex(key).map_err(|wrong| format!("--trust {key:?} {wrong}"))?);
    }
    Ok(anchors)
}

/// Removes the runner's own file, and the directory it was put in; whether the file is gone. The running program does
/// not need it: the kernel keeps it until the last process of it ends.
fn delete_self(directory: Option<&Path>) -> bool {
    let Ok(own) = std::fs::read_link("/proc/self/exe") else { return false };
    let deleted = std::fs::remove_file(own).is_ok();
    if let Some(directory) = directory {
        // Only ever an empty directory: whatever else may be in it is not ours.
        let _ = std::fs::remove_dir(directory);
    }
    deleted
}
