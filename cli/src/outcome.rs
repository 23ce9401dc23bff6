//! What became of a host, and the exit status that says so. Knows no output and no sessions.

use std::fmt;

use sortie_client::Error;
use sortie_protocol::ErrorCode;

/// Wrong usage.
pub(crate) const USAGE: i32 = 2;
/// A time limit passed.
pub(crate) const TIMEOUT: i32 = 124;
/// A program that is there could not be started, as env(1) says it.
pub(crate) const NOT_STARTED: i32 = 126;
/// No such program.
pub(crate) const NOT_FOUND: i32 = 127;
/// Sortie itself failed.
pub(crate) const FAILED: i32 = 255;

/// What became of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// What was asked for was done, with this status; 0 is success.
    Ended(i32),
    /// It was not reached, or lost.
    Unreachable,
    /// The user broke it off by this signal.
    Interrupted(i32),
}

impl Outcome {
    /// The exit status where this is the only host.
    pub(crate) fn status(self) -> i32 {
        match self {
            Self::Ended(status) => status,
            Self::Unreachable => FAILED,
            Self::Interrupted(signal) => 128 + signal,
        }
    }

    /// What an error of a file command says. `interrupted` is the signal that the user sent, if any.
    pub(crate) fn of_error(error: &Error, interrupted: Option<i32>) -> Self {
        match error {
            Error::Command { error, .. } => match (&error.code, interrupted) {
                (ErrorCode::Cancelled, Some(signal)) => Self::Interrupted(signal),
                (ErrorCode::Timeout | ErrorCode::TtlExpired, _) => Self::Ended(TIMEOUT),
                _ => Self::Ended(1),
            },
            _ => interrupted.map_or(Self::Unreachable, Self::Interrupted),
        }
    }

    /// What an error of `exec` says, with the statuses of env(1) for programs that could not be started.
    pub(crate) fn of_exec_error(error: &Error, interrupted: Option<i32>) -> Self {
        let Error::Command { error: frame, .. } = error else { return Self::of_error(error, interrupted) };
        match frame.code {
            ErrorCode::NotFound => Self::Ended(NOT_FOUND),
            ErrorCode::PermissionDenied | ErrorCode::ExecFailed => Self::Ended(NOT_STARTED),
            ErrorCode::Timeout | ErrorCode::TtlExpired => Self::Ended(TIMEOUT),
            ErrorCode::Cancelled => interrupted.map_or(Self::Ended(FAILED), Self::Interrupted),
            _ => Self::Ended(FAILED),
        }
    }
}

/// The exit status for all hosts together.
pub(crate) fn status_of(outcomes: &[Outcome]) -> i32 {
    if let [only] = outcomes {
        return only.status();
    }
    if let Some(interrupted) = outcomes.iter().find(|outcome| matches!(outcome, Outcome::Interrupted(_))) {
        return interrupted.status();
    }
    if outcomes.contains(&Outcome::Unreachable) {
        return 3;
    }
    i32::from(outcomes.iter().any(|outcome| *outcome != Outcome::Ended(0)))
}

/// The user asked for something that cannot be meant.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An error for [`USAGE`].
pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
    Usage(text.into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sortie_protocol::message::ErrorFrame;

    fn command_error(code: ErrorCode) -> Error {
        Error::Command { host: "h".into(), error: Box::new(ErrorFrame::new("c1", code, String::new())) }
    }

    #[test]
    fn one_host_gives_its_own_status_and_several_a_summary() {
        assert_eq!(status_of(&[Outcome::Ended(7)]), 7);
        assert_eq!(status_of(&[Outcome::Unreachable]), 255);
        assert_eq!(status_of(&[Outcome::Ended(0), Outcome::Ended(0)]), 0);
        assert_eq!(status_of(&[Outcome::Ended(0), Outcome::Ended(7)]), 1);
        assert_eq!(status_of(&[Outcome::Ended(7), Outcome::Unreachable]), 3);
        assert_eq!(status_of(&[Outcome::Unreachable, Outcome::Interrupted(2)]), 130);
    }

    #[test]
    fn a_timeout_is_never_a_success_whoever_named_it() {
        for code in [ErrorCode::Timeout, ErrorCode::TtlExpired] {
            assert_eq!(Outcome::of_error(&command_error(code.clone()), None).status(), 124);
            assert_eq!(Outcome::of_exec_error(&command_error(code), Some(2)).status(), 124);
        }
    }

    #[test]
    fn a_cancelled_command_is_interrupted_only_if_the_user_did_it() {
        let cancelled = command_error(ErrorCode::Cancelled);
        assert_eq!(Outcome::of_exec_error(&cancelled, Some(15)).status(), 143);
        assert_eq!(Outcome::of_exec_error(&cancelled, None), Outcome::Ended(FAILED));
    }
}
