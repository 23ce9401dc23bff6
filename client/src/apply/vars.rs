//! Variables: where they come from, and whose value counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::Serde;

use super::problem::{Position, Problem, ProblemKind, Problems};
use super::source::{self, Name, Node};
use super::template;

/// Variables of the caller: they count more than those of files. A later one replaces an earlier one of its name.
#[derive(Clone, Default)]
pub struct Variables {
    given: BTreeMap<String, Value>,
    /// Those that were set by name, which some step should use.
    named: BTreeSet<String>,
}

impl fmt::Debug for Variables {
    /// Only the names: a value may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.given.keys()).finish()
    }
}

impl Variables {
    /// None at all.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one: a letter or `_`, then letters, digits and `_`. A list that does not know it is refused.
    ///
    /// # Errors
    /// A name that is no name, or that means something else in templates.
    pub fn set(mut self, name: &str, value: impl Into<serde_json::Value>) -> Result<Self, Problem> {
        if let Some(why) = bad_name(name) {
            return Err(Problem::nowhere(ProblemKind::Value, why));
        }
        self.named.insert(name.to_owned());
        self.given.insert(name.to_owned(), Value::from(Serde(value.into())));
        Ok(self)
    }

    /// Adds all of a file, which is a mapping in YAML or JSON. What a list does not know of it is passed over.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn file(mut self, path: &Path) -> Result<Self, Problems> {
        let node = source::read(path)?;
        let members = node.map()?;
        let problems: Vec<Problem> = members.iter().filter_map(|(name, _)| checked(name).err()).collect();
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        for (name, node) in members {
            self.given.insert(name.text.clone(), value_of(node));
        }
        Ok(self)
    }

    pub(super) fn named(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(String::as_str)
    }
}

/// The variables that hold for the steps of one file.
#[derive(Clone)]
pub(super) struct Scope {
    values: Arc<BTreeMap<String, Value>>,
}

impl Scope {
    pub(super) fn of(variables: &Variables) -> Self {
        Self { values: Arc::new(variables.given.clone()) }
    }

    /// The same with those of a file. Those of the caller stay.
    pub(super) fn with(&self, node: &Node, variables: &Variables) -> Result<Self, Vec<Problem>> {
        let members = node.map().map_err(|problem| vec![problem])?;
        let mut problems = Vec::new();
        let mut values = BTreeMap::clone(&self.values);
        for (name, node) in members {
            if let Err(problem) = checked(name) {
                problems.push(problem);
            }
            node.each_text(&mut |node, text| {
                if template::is_one(text) {
                    let message = "variables are no templates: write it where it is used, in a step. Text with such \
                                   braces can come from --var or --vars-file";
                    problems.push(node.problem(ProblemKind::Template, message));
                }
            });
            if !variables.given.contains_key(&name.text) {
                values.insert(name.text.clone(), value_of(node));
            }
        }
        if problems.is_empty() { Ok(Self { values: Arc::new(values) }) } else { Err(problems) }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.values.iter()
    }
}

fn value_of(node: &Node) -> Value {
    Value::from(Serde(node.to_json()))
}

fn checked(name: &Name) -> Result<(), Problem> {
    let at: &Position = &name.at;
    bad_name(&name.text).map_or(Ok(()), |why| Err(Problem::new(at, ProblemKind::Value, why)))
}

fn bad_name(name: &str) -> Option<String> {
    let shown: String = name.chars().take(40).collect();
    let mut chars = name.chars();
    let good = chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !good {
        return Some(format!(
            "{shown:?} is no name of a variable: a letter or _, then letters, digits and _"
        ));
    }
    template::RESERVED
        .contains(&name)
        .then(|| format!("{shown} means something else in templates; choose another name for the variable"))
}
