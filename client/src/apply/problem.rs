//! What is wrong with a file, and where. Never says what stands there: it may be a password.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::error::printable;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The file, as it was named.
    pub file: Arc<Path>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// A file cannot be read.
    File,
    /// It is not YAML, or YAML of a kind that is not taken.
    Syntax,
    /// A name is given twice.
    Twice,
    /// There is no such field.
    UnknownField,
    /// There is no such command.
    UnknownType,
    /// No earlier step has that id.
    UnknownId,
    /// There is no such variable.
    UnknownVariable,
    /// A field that must be there is not.
    Missing,
    /// The value is of another type, or outside its grammar.
    Value,
    /// A template or expression cannot be read, or fails.
    Template,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; `None` for what stands in no file, such as a variable of the caller's.
    pub at: Option<Position>,
    /// For programs.
    pub kind: ProblemKind,
    /// For people.
    pub message: String,
}

impl Problem {
    pub(super) fn new(at: &Position, kind: ProblemKind, message: impl Into<String>) -> Self {
        Self { at: Some(at.clone()), kind, message: message.into() }
    }

    pub(super) fn nowhere(kind: ProblemKind, message: impl Into<String>) -> Self {
        Self { at: None, kind, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Some(at) => write!(f, "{}: {}", shown(&at.to_string()), shown(&self.message)),
            None => f.write_str(&shown(&self.message)),
        }
    }
}

impl std::error::Error for Problem {}

/// Names of fields and files are shown as they stand there; they must not drive a terminal.
fn shown(text: &str) -> String {
    printable(text.as_bytes(), 16 * 1024)
}

/// Most problems that are shown.
const MOST_SHOWN: usize = 50;

/// Everything that is wrong with a file and what it includes: at least one, in the order in which they were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    /// One line each, as many as anybody reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.0.iter().take(MOST_SHOWN).enumerate() {
            write!(f, "{}{problem}", if number > 0 { "\n" } else { "" })?;
        }
        match self.0.len().saturating_sub(MOST_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for Problems {}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// `; did you mean X?` where one of the names is close to `name`, else nothing.
pub(super) fn meant<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let allowed = (name.chars().count() / 3).clamp(1, 3);
    let near = known.into_iter().map(|known| (distance(name, known), known));
    match near.filter(|(distance, _)| *distance <= allowed).min() {
        Some((_, known)) => format!("; did you mean {known}?"),
        None => String::new(),
    }
}

/// Letters to add, drop, replace or swap with their neighbour to get from one to the other.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut rows = vec![(0..=other.len()).collect::<Vec<usize>>()];
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(a != b);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_is_recognised_and_another_word_is_not() {
        let known = ["content", "mode", "owner", "when_changed"];
        for (name, meant_name) in
            [("contnet", "content"), ("mod", "mode"), ("ower", "owner"), ("when_change", "when_changed")]
        {
            assert_eq!(meant(name, known), format!("; did you mean {meant_name}?"));
        }
        for name in ["colour", "x", "", "group"] {
            assert_eq!(meant(name, known), "", "{name}");
        }
    }
}
