//! What became of steps: for whoever watches a list being applied, and for the steps after them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::value::RawValue;
use sortie_protocol::limits::Usage;
use sortie_protocol::message::{ErrorFrame, Event as RunnerEvent};
use sortie_protocol::{CommandType, ErrorCode};

use super::problem::Problem;
use crate::error::{Error, printable};

/// Fields of every `results.ID`, beside those of the command's own result.
pub(super) const FIELDS: &[&str] = &["changed", "failed", "skipped", "error"];

/// What happens while a list is applied to a host, in the order of its steps.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A step is next: it runs, or waits for its turn on the host.
    Started {
        /// The step.
        id: Arc<str>,
        /// Its command.
        kind: CommandType,
    },
    /// Output of a step's program, or something that the command says of itself.
    Said {
        /// The step.
        id: Arc<str>,
        /// As the runner sent it.
        event: RunnerEvent,
    },
    /// A step is through, one way or another. There is one for every step, also for those that were left undone.
    Ended(Ended),
}

/// What became of a step.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The step.
    pub id: Arc<str>,
    /// Its command.
    pub kind: CommandType,
    /// What became of it.
    pub status: Status,
    /// It was only looked at; `Changed` means that it would change.
    pub check: bool,
    /// Seconds that the command took on the host; 0 where it was not run.
    pub seconds: f64,
    /// The result of the command, where there is one; not of a step that is `sensitive`.
    pub result: Option<Box<RawValue>>,
    /// What its programs took, where that was asked for.
    pub usage: Option<Usage>,
}

/// What became of a step.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Status {
    /// Something changed; with `check`: would change.
    Changed,
    /// All was as it should be.
    Unchanged,
    /// By its own conditions it was not to be run.
    Skipped {
        /// Which of them, in words.
        reason: String,
    },
    /// It failed.
    Failed {
        /// Why.
        failure: StepFailure,
        /// `ignore_failure`: the list went on.
        ignored: bool,
    },
    /// With `check`: what it would do cannot be known before earlier steps are done.
    Unknown {
        /// Those steps.
        depends_on: Vec<Arc<str>>,
    },
    /// It was left undone, because a step before it failed or the caller stopped.
    NotRun,
}

impl Status {
    /// A name for programs, stable: `changed`, `unchanged`, `skipped`, `failed`, `unknown`, `not_run`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Skipped { .. } => "skipped",
            Self::Failed { .. } => "failed",
            Self::Unknown { .. } => "unknown",
            Self::NotRun => "not_run",
        }
    }

    /// Whether the list ends here.
    pub(super) fn ends_the_list(&self) -> bool {
        matches!(self, Self::Failed { ignored: false, .. } | Self::NotRun)
    }
}

/// Why a step failed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum StepFailure {
    /// The runner refused it or could not do it.
    Command(Box<ErrorFrame>),
    /// Its program ended with another exit status than 0.
    Exit {
        /// The exit status, 128 + n for signal n.
        status: i32,
        /// The end of what the program wrote to standard error, or else to standard output; harmless for a terminal.
        said: String,
    },
    /// `failed_if` holds.
    Condition {
        /// The expression.
        expression: String,
    },
    /// A template or expression of the step fails, or gives what the command does not take. Nothing was run.
    Problems(Vec<Problem>),
    /// A file of this machine could not be read.
    Local {
        /// Which one, and why.
        reason: String,
    },
    /// The session ended: what the step did is not known.
    Session(Error),
}

impl StepFailure {
    /// The runner's code, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<&ErrorCode> {
        match self {
            Self::Command(error) => Some(&error.code),
            _ => None,
        }
    }
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(error) => f.write_str(&printable(error.message.as_bytes(), 4096)),
            Self::Exit { status, said } if said.is_empty() => write!(f, "exit status {status}"),
            Self::Exit { status, said } => write!(f, "exit status {status}: {said}"),
            Self::Condition { expression } => write!(f, "failed_if holds: {expression}"),
            Self::Problems(problems) => {
                for (number, problem) in problems.iter().enumerate() {
                    write!(f, "{}{problem}", if number > 0 { "; " } else { "" })?;
                }
                Ok(())
            }
            Self::Local { reason } => f.write_str(reason),
            Self::Session(error) => error.fmt(f),
        }
    }
}

/// What became of a host.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Steps that changed something (with `check`: would).
    pub changed: usize,
    /// Steps that found all as it should be.
    pub unchanged: usize,
    /// Steps that were not to be run.
    pub skipped: usize,
    /// Steps whose failure was ignored.
    pub ignored: usize,
    /// Steps of which `check` cannot tell what they would do.
    pub unknown: usize,
    /// The step that failed, and why, where the list ended early.
    pub failed: Option<(Arc<str>, StepFailure)>,
    /// Steps that were left undone, in order.
    pub left_undone: Vec<Arc<str>>,
    /// Why there is no session, or none any longer before all was done.
    pub error: Option<Error>,
    /// All that was to be done was done, but the runner was not seen to go.
    pub goodbye: Option<Error>,
    /// The caller stopped it.
    pub stopped: bool,
}

impl Report {
    pub(super) fn count(&mut self, ended: &Ended) {
        match &ended.status {
            Status::Changed => self.changed += 1,
            Status::Unchanged => self.unchanged += 1,
            Status::Skipped { .. } => self.skipped += 1,
            Status::Failed { ignored: true, .. } => self.ignored += 1,
            Status::Failed { failure, ignored: false } => {
                self.failed.get_or_insert_with(|| (Arc::clone(&ended.id), failure.clone()));
            }
            Status::Unknown { .. } => self.unknown += 1,
            Status::NotRun => self.left_undone.push(Arc::clone(&ended.id)),
        }
    }

    /// Whether every step did what it should.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.failed.is_none() && self.error.is_none() && self.left_undone.is_empty() && !self.stopped
    }
}

/// What later steps see of a step as `results.ID`.
pub(super) fn as_result(status: &Status, result: Option<&RawValue>) -> Value {
    let mut fields: BTreeMap<String, serde_json::Value> =
        result.and_then(|result| serde_json::from_str(result.get()).ok()).unwrap_or_default();
    let failed = match status {
        Status::Failed { failure, .. } => {
            let code = failure.code().map_or("", ErrorCode::as_str);
            let error = serde_json::json!({"code": code, "message": failure.to_string()});
            fields.insert("error".to_owned(), error);
            true
        }
        _ => false,
    };
    fields.insert("changed".to_owned(), matches!(status, Status::Changed).into());
    fields.insert("failed".to_owned(), failed.into());
    if !matches!(fields.get("skipped"), Some(serde_json::Value::Bool(true))) {
        fields.insert("skipped".to_owned(), matches!(status, Status::Skipped { .. }).into());
    }
    Value::from(Serde(fields))
}
