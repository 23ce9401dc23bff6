//! What can go wrong, each with the host, the step, why, and what to do about it.
//!
//! Context is kept in fields; the text is made only when shown. No error holds the content of a key, a password or
//! a command's parameters, and what a remote side printed is shown escaped and bounded.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use sortie_protocol::message::ErrorFrame;

use crate::audit::AuditError;
use crate::host_certificate::CertificateProblem;
use crate::observe::Step;
use crate::place::Place;

/// Everything that can go wrong with a session.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something on this machine stands against it: configuration, key files, runners.
    #[error("{host}: {reason}")]
    Config {
        /// The host at hand.
        host: String,
        /// What, where and what to do.
        reason: String,
    },

    /// No connection: no such name, refused, no route, or not an SSH server that we can speak with.
    #[error("{host}: unreachable while {step}: {reason}")]
    Unreachable {
        /// The host at hand.
        host: String,
        /// How far it came.
        step: Step,
        /// Why, with the addresses tried.
        reason: String,
    },

    /// A step did not end within its limit.
    #[error("{host}: gave up {step} after {}: {reason}", seconds(*limit))]
    TimedOut {
        /// The host at hand.
        host: String,
        /// The step that did not end.
        step: Step,
        /// The limit.
        limit: Duration,
        /// What was being waited for, and what to do.
        reason: String,
    },

    /// The host key is not to be trusted.
    #[error("{host}: {problem} ({algorithm} {fingerprint})")]
    HostKey {
        /// The host at hand, as it stands in known_hosts.
        host: String,
        /// What is wrong with the key.
        problem: HostKeyProblem,
        /// Algorithm of the key that the server showed.
        algorithm: String,
        /// SHA-256 fingerprint of that key, as `ssh-keygen -l` prints it.
        fingerprint: String,
    },

    /// The server let nobody in.
    #[error("{host}: login as {user} refused: {}", auth_text(tried, allowed))]
    Auth {
        /// The host at hand.
        host: String,
        /// Who tried to log in.
        user: String,
        /// Each method tried, with what came of it. Names keys by file or comment, never by content.
        tried: Vec<String>,
        /// What the server said it would accept.
        allowed: Vec<String>,
    },

    /// Logged in, but no runner could be started.
    #[error("{host}: {problem}{}", printed_text(printed))]
    Bootstrap {
        /// The host at hand.
        host: String,
        /// What stood against it.
        problem: BootstrapProblem,
        /// What the far side printed meanwhile, escaped, at most 2 KiB; may be empty.
        printed: String,
    },

    /// Something answered as a runner that is not the one we chose.
    #[error(
        "{host}: the runner that answered says its SHA-256 is {found:?}, not {expected}; \
         it was not used. Somebody or something changes files on the way: look at the host before trying again"
    )]
    RunnerMismatch {
        /// The host at hand.
        host: String,
        /// SHA-256 of the runner that was chosen.
        expected: String,
        /// What READY said.
        found: String,
    },

    /// The session ended, or nothing was heard, before the runner said that it was gone.
    #[error("{host}: lost while {step}: {reason}{}", pid_text(*pid))]
    Lost {
        /// The host at hand.
        host: String,
        /// What was being done.
        step: Step,
        /// What is known of why; includes what the far side wrote to standard error.
        reason: String,
        /// The runner's process id, where it may still live.
        pid: Option<u32>,
    },

    /// The audit log cannot be written.
    #[error("{host}: {problem}; {}", recorded_text(*ran))]
    Audit {
        /// The host at hand.
        host: String,
        /// Which log, and what is wrong with it.
        problem: AuditError,
        /// Something may have been done that is not on record.
        ran: bool,
    },

    /// The session was closed by this side, so the command was not run or its answer not awaited.
    #[error("{host}: the session is closed")]
    Closed {
        /// The host at hand.
        host: String,
    },

    /// The runner answered a command with ERROR.
    #[error("{host}: {}: {}", .error.code, .error.message)]
    Command {
        /// The host at hand.
        host: String,
        /// The whole frame.
        error: Box<ErrorFrame>,
    },

    /// The runner's result is not of the type that the command has.
    #[error("{host}: result of command {command_id} is not understood: {reason}")]
    Result {
        /// The host at hand.
        host: String,
        /// Which command.
        command_id: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why a host key was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostKeyProblem {
    /// No known_hosts file has a key for the host.
    Unknown {
        /// Where it would be looked for and written to.
        files: Vec<PathBuf>,
    },
    /// known_hosts has another key for the host.
    Changed {
        /// The file with the other key.
        file: PathBuf,
        /// Its line.
        line: usize,
    },
    /// The key is marked `@revoked`.
    Revoked {
        /// The file that says so.
        file: PathBuf,
        /// Its line.
        line: usize,
    },
    /// The key, or the certificate or authority that should vouch for it, is in a `RevokedHostKeys` file.
    RevokedBy {
        /// The file that says so.
        file: PathBuf,
    },
    /// The certificate proves nothing, and the key by itself is not known.
    Certificate {
        /// Where known_hosts has its authority; `None` where it did not come to that.
        authority: Option<Place>,
        /// What is wrong with the certificate.
        problem: Box<CertificateProblem>,
    },
    /// `HostKeyAlgorithms` leaves this type of key out.
    NotAllowed,
    /// An RSA key is too short to prove anything.
    TooShort {
        /// How many bits it has.
        bits: usize,
        /// How many it has to have, by `RequiredRSASize`.
        least: usize,
    },
    /// The server agreed on one algorithm and used another.
    NotAgreed {
        /// What both sides had agreed on.
        agreed: String,
        /// The type of the key that it showed, and what it signed by.
        used: Box<str>,
    },
    /// A known_hosts file could not be read or written.
    File {
        /// Which one.
        file: PathBuf,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for HostKeyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { files } => {
                let files: Vec<String> = files.iter().map(|p| p.display().to_string()).collect();
                write!(
                    f,
                    "the host key is unknown: none in {}. Check its fingerprint with whoever runs the host, then \
                     connect once with ssh, or allow unknown hosts to be added (accept-new)",
                    if files.is_empty() { "any known_hosts file".into() } else { files.join(", ") }
                )
            }
            Self::Changed { file, line } => write!(
                f,
                "THE HOST KEY HAS CHANGED: {} line {line} has another one. Either the host was installed anew or \
                 somebody is in between. If you know that it is right, remove that line",
                file.display()
            ),
            Self::Revoked { file, line } => {
                write!(f, "the host key is revoked by {} line {line}; it is never accepted", file.display())
            }
            Self::RevokedBy { file } => {
                write!(f, "the host key is revoked by {}; it is never accepted", file.display())
            }
            Self::Certificate { authority: Some(place), problem } => {
                write!(f, "the host's certificate is by the authority in {place}, but {problem}")
            }
            Self::Certificate { authority: None, problem } => {
                write!(f, "the host's certificate is worth nothing: {problem}")
            }
            Self::NotAllowed => write!(
                f,
                "the host showed a key of a type that HostKeyAlgorithms leaves out; its certificate is not trusted"
            ),
            Self::TooShort { bits, least } => write!(
                f,
                "the host key, or that of its authority, is of {bits} bits, and RequiredRSASize asks for {least}; \
                 the host needs a new one"
            ),
            Self::NotAgreed { agreed, used } => write!(
                f,
                "the server agreed on {agreed}, then used {used}; it is broken, or somebody is in between"
            ),
            Self::File { file, reason } => {
                write!(f, "{}: {reason}; host keys cannot be checked", file.display())
            }
        }
    }
}

/// Why no runner could be started on a host that let us in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootstrapProblem {
    /// The login shell, or the server, did not run the script.
    ShellRefused {
        /// What is known of why.
        reason: String,
    },
    /// What was printed before the script's marker has no end.
    TooNoisy {
        /// Bytes that were read without finding it.
        bytes: usize,
    },
    /// No runner is built for this machine.
    UnsupportedMachine {
        /// `uname -s -m` of the host.
        machine: String,
    },
    /// A runner could be built for this machine, but we hold none.
    NoRunner {
        /// The target triple of the runner that is missing.
        machine: String,
        /// The machines that we hold runners for.
        held: Vec<String>,
    },
    /// No directory would hold and run the runner.
    NoDirectory {
        /// Each that was tried, in order.
        tried: Vec<DirectoryTried>,
    },
    /// The host lacks a program that the script cannot do without.
    MissingProgram {
        /// What is missing.
        what: String,
    },
    /// The runner did not arrive whole.
    Damaged {
        /// What the script found.
        reason: String,
    },
    /// The runner was put in place but did not come up.
    NotStarted {
        /// What is known of why.
        reason: String,
    },
    /// READY does not say what it must.
    Incompatible {
        /// What is wrong with it.
        reason: String,
    },
    /// The host starts a runner of its own instead of a shell (sshd's ForceCommand), which was not asked for.
    Installed,
    /// The host starts a shell, and so a runner that would take unsigned commands too.
    NotAnchored,
}

/// A directory that would not do for the runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryTried {
    /// The directory.
    pub directory: String,
    /// What is wrong with it.
    pub problem: DirectoryProblem,
    /// What the host printed, escaped and bounded.
    pub said: String,
}

/// What can be wrong with a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DirectoryProblem {
    /// Programs cannot be run from it (mount option `noexec`, or a security policy).
    NoExec,
    /// ENOSPC.
    NoSpace,
    /// EDQUOT.
    Quota,
    /// EROFS.
    ReadOnly,
    /// EACCES or EPERM.
    Permission,
    /// ENOENT or ENOTDIR.
    Missing,
    /// Anything else.
    Other,
}

impl DirectoryProblem {
    /// From what a tool printed under `LC_ALL=C`.
    pub(crate) fn from_text(text: &str) -> Self {
        let has = |needle: &str| text.contains(needle);
        if has("noexec") {
            Self::NoExec
        } else if has("No space left") {
            Self::NoSpace
        } else if has("uota exceeded") {
            Self::Quota
        } else if has("Read-only file system") {
            Self::ReadOnly
        } else if has("Permission denied")
            || has("not permitted")
            || has("cannot create") && has("Permission")
        {
            Self::Permission
        } else if has("No such file") || has("Not a directory") || has("nonexistent") {
            Self::Missing
        } else {
            Self::Other
        }
    }
}

impl fmt::Display for DirectoryTried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.problem {
            DirectoryProblem::NoExec => "programs cannot be run from it (noexec)",
            DirectoryProblem::NoSpace => "no space left",
            DirectoryProblem::Quota => "disk quota exceeded",
            DirectoryProblem::ReadOnly => "read-only file system",
            DirectoryProblem::Permission => "permission denied",
            DirectoryProblem::Missing => "does not exist",
            DirectoryProblem::Other => &self.said,
        };
        write!(f, "{}: {what}", self.directory)
    }
}

impl fmt::Display for BootstrapProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShellRefused { reason } => write!(
                f,
                "logged in, but the login shell did not run the start script: {reason}. The account needs a shell \
                 that can run `exec sh -c …`; nologin, restricted shells and forced commands cannot"
            ),
            Self::TooNoisy { bytes } => write!(
                f,
                "the login shell printed {bytes} bytes and the start script was still not reached; look at what its \
                 rc files print when there is no terminal"
            ),
            Self::UnsupportedMachine { machine } => {
                write!(f, "no runner exists for this machine ({machine}); Linux on {SUPPORTED} is supported")
            }
            Self::NoRunner { machine, held } => write!(
                f,
                "it needs the runner for {machine}, and we have {}; build it with `cargo xtask dist`, or name a \
                 directory that holds it",
                if held.is_empty() { "none at all".into() } else { format!("only {}", held.join(", ")) }
            ),
            Self::NoDirectory { tried } => {
                f.write_str("no directory on the host can hold and run the runner:")?;
                for (i, directory) in tried.iter().enumerate() {
                    write!(f, "{} {directory}", if i > 0 { ";" } else { "" })?;
                }
                f.write_str(". Free some space, or set TMPDIR on the host to a directory without noexec")
            }
            Self::MissingProgram { what } => write!(f, "the host lacks {what}, which the start script needs"),
            Self::Damaged { reason } => write!(f, "the runner did not arrive whole: {reason}"),
            Self::NotStarted { reason } => write!(f, "the runner did not come up: {reason}"),
            Self::Installed => f.write_str(
                "the host starts a runner of its own instead of a shell (ForceCommand of sshd): it takes signed commands, by \
                 --sign-with, or from `sortie sign` by way of `sortie pipe`",
            ),
            Self::NotAnchored => f.write_str(
                "the commands were to be signed, but this login gets a shell, which asks nobody for a signature; \
                 set the host up as docs/SECURITY.md says, or send a runner with --trust that takes signed ones only",
            ),
            Self::Incompatible { reason } => {
                write!(f, "what answered is no runner that we can use: {reason}")
            }
        }
    }
}

const SUPPORTED: &str = "x86_64, aarch64, armv7 and riscv64";

impl Error {
    /// The host that it concerns.
    #[must_use]
    pub fn host(&self) -> &str {
        match self {
            Self::Config { host, .. }
            | Self::Unreachable { host, .. }
            | Self::TimedOut { host, .. }
            | Self::HostKey { host, .. }
            | Self::Auth { host, .. }
            | Self::Bootstrap { host, .. }
            | Self::RunnerMismatch { host, .. }
            | Self::Lost { host, .. }
            | Self::Audit { host, .. }
            | Self::Closed { host }
            | Self::Command { host, .. }
            | Self::Result { host, .. } => host,
        }
    }

    /// The step that it happened in.
    #[must_use]
    pub fn step(&self) -> Step {
        match self {
            Self::Config { .. } => Step::Configure,
            Self::Unreachable { step, .. } | Self::TimedOut { step, .. } | Self::Lost { step, .. } => *step,
            Self::HostKey { .. } => Step::KeyExchange,
            Self::Auth { .. } => Step::Authenticate,
            Self::Bootstrap { problem, .. } => match problem {
                BootstrapProblem::ShellRefused { .. } | BootstrapProblem::TooNoisy { .. } => Step::StartShell,
                _ => Step::StartRunner,
            },
            Self::RunnerMismatch { .. } => Step::StartRunner,
            Self::Audit { ran: false, .. } => Step::Configure,
            Self::Audit { .. } | Self::Closed { .. } | Self::Command { .. } | Self::Result { .. } => {
                Step::Session
            }
        }
    }

    /// A name for programs, stable: `unreachable`, `host_key`, `auth`, `bootstrap`, `runner_mismatch`, `lost`,
    /// `timed_out`, `config`, `audit`, `closed`, `command`, `result`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Config { .. } => "config",
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::HostKey { .. } => "host_key",
            Self::Auth { .. } => "auth",
            Self::Bootstrap { .. } => "bootstrap",
            Self::RunnerMismatch { .. } => "runner_mismatch",
            Self::Lost { .. } => "lost",
            Self::Audit { .. } => "audit",
            Self::Closed { .. } => "closed",
            Self::Command { .. } => "command",
            Self::Result { .. } => "result",
        }
    }
}

/// Text from the other side, fit to be shown: control characters escaped, cut to `limit` bytes at its end.
#[must_use]
pub fn printable(bytes: &[u8], limit: usize) -> String {
    let cut = bytes.len().saturating_sub(limit);
    let text = String::from_utf8_lossy(&bytes[cut..]);
    let mut out = String::with_capacity(text.len());
    if cut > 0 {
        out.push('…');
    }
    for c in text.trim().chars() {
        match c {
            '\n' => out.push_str(" | "),
            '\r' => {}
            '\t' => out.push(' '),
            // Besides C0 and C1: what reorders or hides text on a terminal.
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}') =>
            {
                out.extend(c.escape_unicode());
            }
            c => out.push(c),
        }
    }
    // What is nothing but control characters becomes many times as long.
    if out.len() > 2 * limit {
        let from = (out.len() - 2 * limit..).find(|at| out.is_char_boundary(*at)).unwrap_or(0);
        out.replace_range(..from, "…");
    }
    out
}

fn seconds(limit: Duration) -> String {
    format!("{} s", (limit.as_millis() as f64 / 1000.0))
}

fn auth_text(tried: &[String], allowed: &[String]) -> String {
    let tried =
        if tried.is_empty() { "nothing to try: no agent, key or password".into() } else { tried.join("; ") };
    let allowed = if allowed.is_empty() {
        String::new()
    } else {
        format!(". The server accepts {}", allowed.join(", "))
    };
    format!("{tried}{allowed}")
}

fn printed_text(printed: &str) -> String {
    if printed.is_empty() { String::new() } else { format!(". It printed: {printed}") }
}

fn recorded_text(ran: bool) -> &'static str {
    if ran {
        "what was done is not all on record, and nothing more is begun"
    } else {
        "what cannot be recorded is not run"
    }
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| {
        format!(". The runner (process {pid}) ends by itself once it notices, at the latest by its lease or time to live")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_far_side_prints_cannot_drive_a_terminal() {
        let shown = printable(b"\x1b]0;owned\x07ok\r\nnext\x9b2J \xe2\x80\xaetxt", 1000);
        assert!(shown.chars().all(|c| !c.is_control()), "{shown:?}");
        assert!(shown.contains("ok | next"));
        assert!(!shown.contains('\u{202e}'));
    }

    #[test]
    fn only_the_end_of_long_output_is_shown() {
        let shown = printable(&[b"x".repeat(5000), b"the end".to_vec()].concat(), 100);
        assert!(shown.starts_with('…') && shown.ends_with("the end"));
        assert!(shown.len() < 110);
    }

    #[test]
    fn problems_of_directories_are_told_apart_by_the_words_of_the_tools() {
        for (text, problem) in [
            ("sh: 1: /dev/shm/.sortie-1/r: Permission denied noexec", DirectoryProblem::NoExec),
            ("mkdir: cannot create directory '/x': No space left on device", DirectoryProblem::NoSpace),
            ("head: error writing 'standard output': Disk quota exceeded", DirectoryProblem::Quota),
            ("mkdir: can't create directory '/x': Read-only file system", DirectoryProblem::ReadOnly),
            ("mkdir: cannot create directory '/x': Permission denied", DirectoryProblem::Permission),
            ("mkdir: cannot create directory '/x/y': No such file or directory", DirectoryProblem::Missing),
            ("mkdir: applet not found", DirectoryProblem::Other),
        ] {
            assert_eq!(DirectoryProblem::from_text(text), problem, "{text}");
        }
    }
}
