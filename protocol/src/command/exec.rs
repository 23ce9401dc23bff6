//! `exec`: run a program, or a line of shell.

use serde::{Deserialize, Serialize};

use crate::decode::{fields, words};
use crate::encode::shown;
use crate::limits::ResourceLimits;
use crate::map::Strings;
use crate::text::Encoding;
use crate::value::{Mode, Secret, empty_is_none, is_default, null_is_default};

/// Parameters of `exec`.
///
/// What is run: `argv` if given, never by a shell. Otherwise `command` with `args` as its arguments if there are any,
/// and otherwise `command` as a line for `shell -c`, as in the reference.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Exec {
    /// Program, or line for the shell when there are no `args`. Required unless `argv` is given.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub command: String,
    /// Arguments of `command`; absent, null and empty mean: by the shell.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub args: Vec<String>,
    /// Program and arguments, never by a shell; not empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// How every string of `argv` is to be read, for arguments that are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv_encoding: Option<Encoding>,
    /// Directory to run in; absent means the login's own.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub work_dir: Option<String>,
    /// Added to the environment of the login.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub env: Strings,
    /// `env` is the whole environment.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub clear_env: bool,
    /// Absolute path of the shell; absent means `/bin/sh`.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub shell: Option<String>,
    /// Return standard output in the result.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub capture_out: bool,
    /// Return standard error in the result.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub capture_err: bool,
    /// Most bytes captured of each stream; at most and by default `limits.output_bytes` of READY. Head and tail are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Send output as EVENTs while it comes.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub stream_lines: bool,
    /// Standard input; absent means `/dev/null`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Secret>,
    /// How `stdin` is to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin_encoding: Option<Encoding>,
    /// Standard input comes by INPUT frames; not together with `stdin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin_from: Option<From>,
    /// File mode creation mask; absent means the login's own.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub umask: Option<Mode>,
    /// Run nothing if this path exists.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub creates: Option<String>,
    /// Run nothing unless this path exists.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub removes: Option<String>,
    /// End what is left of the process tree once the program has exited, instead of releasing it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub kill_leftovers: bool,
    /// Limits of the program and its descendants; means the same as `limits` of CMD, and not together with it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub limits: ResourceLimits,
    /// PR_SET_NO_NEW_PRIVS of prctl(2): setuid programs give no rights.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub no_new_privs: bool,
    /// The reference's way to become root.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub use_sudo: bool,
    /// Password for `use_sudo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sudo_password: Option<Secret>,
}

fields!(Exec {
    ;
    command, args, argv, argv_encoding, work_dir, env, clear_env, shell, capture_out, capture_err, output_bytes,
    stream_lines, stdin, stdin_encoding, stdin_from, umask, creates, removes, kill_leftovers, limits, no_new_privs,
    use_sudo, sudo_password
});

/// Where data that is not inline comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// INPUT frames.
    Input,
}

words!(From { Input = "input" });

/// Result of `exec`. A program that ran is DONE, whatever its exit code.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ExecResult {
    /// Exit status, or 128 + n when signal n ended the program.
    pub exit_code: i32,
    /// Standard output where it was captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// How `stdout` is to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_encoding: Option<Encoding>,
    /// What is missing of standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_gap: Option<Gap>,
    /// Standard error where it was captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// How `stderr` is to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_encoding: Option<Encoding>,
    /// What is missing of standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_gap: Option<Gap>,
    /// Seconds from start to exit.
    pub duration: f64,
    /// Name of the signal that ended the program, such as `SIGKILL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// A descendant still held standard output or error open; what it wrote later is not in the result.
    #[serde(skip_serializing_if = "is_default")]
    pub stdout_open: bool,
    /// Processes that the program started and that live on.
    #[serde(skip_serializing_if = "is_default")]
    pub left_running: u32,
    /// Nothing was run, because of `check`, `creates` or `removes`.
    #[serde(skip_serializing_if = "is_default")]
    pub skipped: bool,
    /// With `check`: without it the program would be run.
    #[serde(skip_serializing_if = "is_default")]
    pub would_run: bool,
    /// How the process tree was kept together: `cgroup`, in a leaf of the session's systemd scope, or `subreaper`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub containment: String,
}

shown!(ExecResult:
    exit_code
    [stdout stdout_encoding stdout_gap stderr stderr_encoding stderr_gap]
    duration
    [signal stdout_open left_running skipped would_run containment]);

/// A hole in captured output: head and tail were kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Gap {
    /// Where in the returned bytes the hole is.
    pub offset: u64,
    /// How many bytes are missing there.
    pub bytes: u64,
}

shown!(Gap: offset bytes []);

impl Exec {
    /// A program with its arguments, run without any shell.
    #[must_use]
    pub fn argv<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: Some(argv.into_iter().map(Into::into).collect()), ..Self::captured() }
    }

    /// A line for `/bin/sh -c`.
    #[must_use]
    pub fn shell(line: impl Into<String>) -> Self {
        Self { command: line.into(), ..Self::captured() }
    }

    /// Both streams in the result, 1 MiB each.
    fn captured() -> Self {
        Self { capture_out: true, capture_err: true, output_bytes: Some(1024 * 1024), ..Self::default() }
    }

    /// Send output as events while it comes, instead of returning it in the result.
    #[must_use]
    pub fn stream_lines(mut self, stream: bool) -> Self {
        self.stream_lines = stream;
        self.capture_out = !stream;
        self.capture_err = !stream;
        self
    }

    /// Runs in this directory.
    #[must_use]
    pub fn work_dir(mut self, directory: impl Into<String>) -> Self {
        self.work_dir = Some(directory.into());
        self
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Standard input comes by INPUT frames.
    #[must_use]
    pub fn stdin_from_input(mut self) -> Self {
        self.stdin_from = Some(From::Input);
        self
    }
}
