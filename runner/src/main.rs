//! The runner: one static binary that reads frames on standard input, runs commands and answers on standard output.
//!
//! Start reads from here: arguments, self-deletion, the fork into guardian and server. Nothing here runs a command.

// Until every command of the registry is there.
#![allow(dead_code)]

mod command;
mod diff;
mod facts;
mod failure;
mod guardian;
mod idempotency;
mod job;
mod locks;
mod options;
mod output;
mod pool;
mod process;
mod replace;
mod rollback;
mod server;
mod sshd;
mod sudoers;
mod sys;
mod tool;
mod workers;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use options::Request;

fn main() -> ExitCode {
    match options::parse(std::env::args_os().skip(1)) {
        Ok(Request::Run(options)) => run(options),
        Ok(Request::Version) => print(&format!("sortie-runner {}\n", env!("CARGO_PKG_VERSION"))),
        Ok(Request::Help) => print(options::HELP),
        Err(error) => {
            eprintln!("sortie-runner: {error}; --help lists the flags");
            ExitCode::from(2)
        }
    }
}

fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(options: options::Options) -> ExitCode {
    let self_deleted = !options.keep && delete_self(options.directory.as_deref());
    match guardian::split() {
        Ok(guardian::Half::Guardian(status)) => ExitCode::from(status),
        Ok(guardian::Half::Server(streams)) => ExitCode::from(server::serve(options, streams, self_deleted)),
        Err(error) => {
            eprintln!("sortie-runner: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
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
