//! One step of a list, as far as it is known before anything runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;
use sortie_protocol::CommandType;
use sortie_protocol::limits::ResourceLimits;
use sortie_protocol::message::{Become, BecomeMethod};

use super::content::Content;
use super::problem::Position;
use super::source::{Node, Value};
use super::vars::Scope;

/// One step: a command with its conditions.
pub struct Step {
    pub(super) id: Arc<str>,
    pub(super) at: Position,
    pub(super) kind: CommandType,
    /// A mapping; checked, but for what is template.
    pub(super) params: Node,
    pub(super) content: Option<Content>,
    /// Seconds.
    pub(super) timeout: Option<u64>,
    pub(super) check: bool,
    pub(super) diff: bool,
    pub(super) r#become: Becoming,
    /// Of every program that it runs.
    pub(super) limits: Option<ResourceLimits>,
    pub(super) usage: bool,
    pub(super) sensitive: bool,
    /// Runs only if one of these changed; empty for always.
    pub(super) when_changed: Vec<usize>,
    pub(super) conditions: Vec<Condition>,
    pub(super) changed_if: Option<Expression>,
    pub(super) failed_if: Option<Expression>,
    pub(super) ignore_failure: bool,
    /// All that it changes, by its author's word.
    pub(super) changes: Option<Node>,
    /// All that it depends on, by its author's word.
    pub(super) reads: Option<Node>,
    /// Earlier steps that must have ended before it is known what this one is.
    pub(super) needs: BTreeSet<usize>,
    /// Earlier steps whose results it refers to.
    pub(super) refers: BTreeSet<usize>,
    /// Earlier steps that it depends on by its author's word.
    pub(super) depends_on: Vec<usize>,
    /// Facts that it refers to.
    pub(super) facts: BTreeSet<String>,
    pub(super) scope: Scope,
}

impl Step {
    /// Its name in the list.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Which command it is.
    #[must_use]
    pub fn kind(&self) -> CommandType {
        self.kind
    }

    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.at
    }

    /// Whether the next ones can be sent before it has ended: whether it failed is told by the host alone.
    pub(super) fn in_sequence(&self) -> bool {
        self.failed_if.is_none() && !self.ignore_failure
    }

    /// Whether nothing else may be on its way with it.
    pub(super) fn is_alone(&self, check: bool) -> bool {
        // A check of packages whose lists are to be refreshed first may fail for the old lists alone, which stops nothing. Settings
        // of the SSH server may take a login of their own.
        let stale = (check || self.check) && self.refreshes();
        !self.in_sequence() || stale || self.kind == CommandType::SshdHarden
    }

    /// Whether it begins with refreshing the lists of packages, which a check does not.
    pub(super) fn refreshes(&self) -> bool {
        let members = self.params.map().unwrap_or_default();
        self.kind == CommandType::PkgEnsure
            && members.iter().any(|(name, node)| {
                name.text == "update_cache" && !matches!(node.value, Value::Bool(false) | Value::Null)
            })
    }

    /// Whether it has conditions that take a command of their own.
    pub(super) fn asks(&self) -> bool {
        self.conditions.iter().any(|condition| matches!(condition.test, Test::Command(_)))
    }
}

/// An expression and its place.
#[derive(Debug, Clone)]
pub(super) struct Expression {
    pub(super) at: Position,
    pub(super) text: String,
    /// It refers to variables alone.
    pub(super) fixed: bool,
}

/// When a step is run.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    /// `unless`: it must not hold.
    pub(super) negated: bool,
    pub(super) test: Test,
}

impl Condition {
    /// As a person reads it. Arguments of its program are left out: they may be secrets.
    pub(super) fn in_words(&self) -> String {
        let name = if self.negated { "unless" } else { "only_if" };
        match &self.test {
            Test::Expression(expression) => format!("{name}: {}", expression.text),
            Test::Command(argv) => {
                let program = match &argv.value {
                    Value::List(words) => words.first().and_then(|word| word.text().ok()),
                    _ => None,
                };
                format!("{name}: {} exits with 0", program.unwrap_or("a program"))
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Test {
    /// True or false.
    Expression(Expression),
    /// A program and its arguments: exit status 0.
    Command(Node),
}

/// Whom a step becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Becoming {
    /// Whom the caller says.
    AsCalled,
    /// Nobody, whatever the caller says.
    Nobody,
    Somebody(Become),
}

/// As it stands in a file: `method` may be left out.
#[derive(Deserialize)]
pub(super) struct WrittenBecome {
    pub(super) user: String,
    #[serde(default)]
    pub(super) method: BecomeMethod,
    #[serde(default)]
    pub(super) password: Option<sortie_protocol::Secret>,
}
