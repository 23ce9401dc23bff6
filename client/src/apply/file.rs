//! From files to a list of steps, with everything that can be wrong told before any of them runs. Knows no hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Number;
use sortie_protocol::CommandType;

use super::content::{self, Content};
use super::params;
use super::problem::{Position, Problem, ProblemKind, Problems, meant};
use super::source::{self, Name, Node, Value};
use super::step::{Step, Test};
use super::template::{self, References, Templates};
use super::typed::{self, Mode, unknown_field};
use super::vars::{Scope, Variables};

/// Most steps of a list, with those of included files.
const MOST_STEPS: usize = 10_000;
/// Deepest inclusion.
const DEEPEST: usize = 16;

const STEP_FIELDS: &[&str] = &[
    "id",
    "type",
    "params",
    "timeout",
    "check",
    "diff",
    "become",
    "limits",
    "usage",
    "sensitive",
    "when_changed",
    "only_if",
    "unless",
    "changed_if",
    "failed_if",
    "ignore_failure",
    "changes",
    "reads",
    "depends_on",
    "template",
    "content_file",
];
const INCLUDE_FIELDS: &[&str] = &["include", "vars"];
const FILE_FIELDS: &[&str] = &["vars", "steps"];

/// A list of steps that was read and checked: what runs on hosts.
pub struct StepList {
    pub(super) steps: Vec<Step>,
    pub(super) templates: Templates,
    /// Steps whose results others refer to.
    pub(super) referred: BTreeSet<usize>,
}

impl StepList {
    /// Reads a file and all that it includes.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(path: &Path, variables: &Variables) -> Result<Self, Problems> {
        let node = source::read(path)?;
        Self::of(&node, path, variables)
    }

    /// Reads text, as if it stood in the file `path`: what it includes is looked for beside that.
    ///
    /// # Errors
    /// As [`StepList::load`].
    pub fn parse(text: &str, path: &Path, variables: &Variables) -> Result<Self, Problems> {
        let node = source::parse(text, &Arc::from(path))?;
        Self::of(&node, path, variables)
    }

    fn of(node: &Node, path: &Path, variables: &Variables) -> Result<Self, Problems> {
        let mut loader = Loader {
            variables,
            steps: Vec::new(),
            ids: BTreeMap::new(),
            templates: Templates::new(),
            problems: Vec::new(),
            known: BTreeSet::new(),
            including: vec![real(path)],
        };
        loader.file(node, &Scope::of(variables), None);
        loader.unused_variables();
        let Loader { steps, templates, mut problems, .. } = loader;
        if steps.is_empty() && problems.is_empty() {
            problems.push(node.problem(ProblemKind::Missing, "there are no steps in it"));
        }
        let referred = steps.iter().flat_map(|step| step.refers.iter().copied()).collect();
        if problems.is_empty() { Ok(Self { steps, templates, referred }) } else { Err(Problems(problems)) }
    }

    /// How long it takes at most on a host, when each step takes all of its time; `timeout` is for those that say nothing.
    #[must_use]
    pub fn longest(&self, timeout: Duration) -> Duration {
        let step = |step: &Step| {
            // The commands of its conditions have as much each.
            let commands = 1 + step
                .conditions
                .iter()
                .filter(|condition| matches!(condition.test, Test::Command(_)))
                .count();
            let one = step.timeout.map_or(timeout, Duration::from_secs);
            one.saturating_mul(u32::try_from(commands).unwrap_or(u32::MAX))
        };
        self.steps.iter().map(step).fold(Duration::ZERO, Duration::saturating_add)
    }

    /// The steps, in the order in which they run.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

pub(super) struct Loader<'v> {
    variables: &'v Variables,
    steps: Vec<Step>,
    /// Steps by id; none where the step is wrong, which was told already.
    ids: BTreeMap<String, Option<usize>>,
    pub(super) templates: Templates,
    pub(super) problems: Vec<Problem>,
    /// Variables that files define or steps refer to.
    known: BTreeSet<String>,
    /// The files that are being read, without links in their paths.
    including: Vec<PathBuf>,
}

/// The fields of a mapping.
pub(super) struct Fields<'n> {
    members: &'n [(Name, Node)],
}

impl<'n> Fields<'n> {
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        let found = self.members.iter().find(|(known, _)| known.text == name);
        found.map(|(_, node)| node).filter(|node| !matches!(node.value, Value::Null))
    }
}

impl Loader<'_> {
    pub(super) fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// The value of what may be wrong, which is kept then.
    fn noted<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.problem(problem)).ok()
    }

    /// A value of a simple type, where it is given.
    pub(super) fn typed<T: serde::de::DeserializeOwned>(&mut self, node: Option<&Node>) -> Option<T> {
        let node = node?;
        if let Value::Text(text) = &node.value
            && template::is_one(text)
        {
            self.problem(node.problem(ProblemKind::Template, "only params can be templates"));
            return None;
        }
        match typed::read(node, Mode::Written) {
            Ok(value) => Some(value),
            Err(problems) => {
                self.problems.extend(problems);
                None
            }
        }
    }

    pub(super) fn fields<'n>(&mut self, node: &'n Node, known: &[&str]) -> Option<Fields<'n>> {
        let members = self.noted(node.map())?;
        for (name, _) in members {
            if !known.contains(&name.text.as_str()) {
                self.problem(unknown_field(name, known.iter().copied()));
            }
        }
        Some(Fields { members })
    }

    /// What a file says of its variables counts less than what is `given` where it is included.
    fn file(&mut self, node: &Node, scope: &Scope, given: Option<&Node>) {
        match &node.value {
            Value::List(_) => {
                let scope = self.scope(given, scope);
                self.steps(node, &scope);
            }
            Value::Map(members) => {
                if members.iter().any(|(name, _)| name.text == "id" || name.text == "type") {
                    let message = "this is a step: a list of them begins each with `- `";
                    return self.problem(node.problem(ProblemKind::Value, message));
                }
                let Some(fields) = self.fields(node, FILE_FIELDS) else { return };
                let scope = self.scope(fields.get("vars"), scope);
                let scope = self.scope(given, &scope);
                match fields.get("steps") {
                    Some(steps) => self.steps(steps, &scope),
                    None => self.problem(node.problem(ProblemKind::Missing, "steps are missing")),
                }
            }
            _ => self.problem(node.expected("a list of steps, or a mapping with vars and steps")),
        }
    }

    fn scope(&mut self, vars: Option<&Node>, scope: &Scope) -> Scope {
        let Some(vars) = vars else { return scope.clone() };
        if let Value::Map(members) = &vars.value {
            self.known.extend(members.iter().map(|(name, _)| name.text.clone()));
        }
        scope.with(vars, self.variables).unwrap_or_else(|problems| {
            self.problems.extend(problems);
            scope.clone()
        })
    }

    fn steps(&mut self, node: &Node, scope: &Scope) {
        let Value::List(list) = &node.value else {
            return self.problem(node.expected("a list of steps"));
        };
        for node in list {
            let include =
                node.map().is_ok_and(|members| members.iter().any(|(name, _)| name.text == "include"));
            if include {
                self.include(node, scope);
            } else {
                self.step(node, scope);
            }
            if self.steps.len() > MOST_STEPS {
                return self.problem(node.problem(ProblemKind::Value, "more than 10000 steps"));
            }
        }
    }

    fn include(&mut self, node: &Node, scope: &Scope) {
        let Some(fields) = self.fields(node, INCLUDE_FIELDS) else { return };
        let Some(named) = fields.get("include") else {
            return self
                .problem(node.problem(ProblemKind::Missing, "include: the name of a file is missing"));
        };
        let Some(name) = self.noted(named.text()) else { return };
        if template::is_one(name) {
            return self.problem(named.problem(ProblemKind::Template, "only params can be templates"));
        }
        let path = directory(&node.at).join(name);
        let real = real(&path);
        if self.including.contains(&real) {
            let message = format!("{}: this file is part of what it would include", path.display());
            return self.problem(named.problem(ProblemKind::File, message));
        }
        if self.including.len() > DEEPEST {
            return self.problem(named.problem(ProblemKind::File, "files include each other too deeply"));
        }
        let read = source::read(&path).map_err(|problem| Problem {
            at: Some(problem.at.unwrap_or_else(|| named.at.clone())),
            ..problem
        });
        let Some(included) = self.noted(read) else { return };
        self.including.push(real);
        self.file(&included, scope, fields.get("vars"));
        self.including.pop();
    }

    fn step(&mut self, node: &Node, scope: &Scope) {
        let Some(fields) = self.fields(node, STEP_FIELDS) else { return };
        let id = self.id(node, fields.get("id"));
        let kind = self.kind(node, fields.get("type"));
        let (Some(id), Some(kind)) = (id.clone(), kind) else {
            self.ids.extend(id.map(|id| (id, None)));
            return;
        };
        let mut params =
            fields.get("params").cloned().unwrap_or(Node { at: node.at.clone(), value: Value::Map(vec![]) });
        let mut references = References::default();
        let content = self.content(&fields, kind, &params, &mut references);
        self.params(&mut params, kind, content.is_some(), &mut references);
        let timeout = self.typed::<u64>(fields.get("timeout"));
        if timeout == Some(0) {
            let at = fields.get("timeout").map_or(&node.at, |node| &node.at);
            self.problem(Problem::new(at, ProblemKind::Value, "a timeout is at least 1 second"));
        }
        let mut conditions = Vec::new();
        self.conditions(fields.get("only_if"), false, &mut conditions, &mut references);
        self.conditions(fields.get("unless"), true, &mut conditions, &mut references);
        let changed_if = self.expression(fields.get("changed_if"), &mut references);
        let failed_if = self.expression(fields.get("failed_if"), &mut references);
        let (changes, reads) = (fields.get("changes").cloned(), fields.get("reads").cloned());
        for paths in changes.iter().chain(&reads) {
            self.paths(paths, &mut references);
        }
        let mut step = Step {
            id: id.as_str().into(),
            at: node.at.clone(),
            kind,
            params,
            content,
            timeout,
            check: self.typed(fields.get("check")).unwrap_or_default(),
            diff: self.typed(fields.get("diff")).unwrap_or_default(),
            r#become: self.becoming(fields.get("become")),
            limits: self.typed(fields.get("limits")),
            usage: self.typed(fields.get("usage")).unwrap_or_default(),
            sensitive: self.typed(fields.get("sensitive")).unwrap_or_default(),
            when_changed: self.earlier(fields.get("when_changed"), &id),
            conditions,
            changed_if,
            failed_if,
            ignore_failure: self.typed(fields.get("ignore_failure")).unwrap_or_default(),
            changes,
            reads,
            needs: BTreeSet::new(),
            refers: BTreeSet::new(),
            depends_on: self.earlier(fields.get("depends_on"), &id),
            facts: references.facts.clone(),
            scope: scope.clone(),
        };
        step.refers = self.needs(node, &references, scope, &id);
        step.needs.extend(step.refers.iter().chain(&step.when_changed));
        self.ids.insert(id, Some(self.steps.len()));
        self.steps.push(step);
    }

    fn id(&mut self, step: &Node, node: Option<&Node>) -> Option<String> {
        let Some(node) = node else {
            self.problem(step.problem(ProblemKind::Missing, "id is missing: a name for this step"));
            return None;
        };
        let id = self.noted(node.text())?.to_owned();
        let good = id.len() <= 100
            && id.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        if !good {
            let message = "an id is a letter or _, then letters, digits, _ and -; at most 100 of them";
            self.problem(node.problem(ProblemKind::Value, message));
            return None;
        }
        if let Some(first) = self.ids.get(&id) {
            let first = first.and_then(|at| self.steps.get(at));
            let by = first.map_or_else(String::new, |first| format!(", by {}", first.at));
            let message = format!("the id {id} is taken{by}");
            self.problem(node.problem(ProblemKind::Twice, message));
            return None;
        }
        Some(id)
    }

    fn kind(&mut self, step: &Node, node: Option<&Node>) -> Option<CommandType> {
        let Some(node) = node else {
            self.problem(
                step.problem(ProblemKind::Missing, "type is missing: the command that this step is"),
            );
            return None;
        };
        let name = self.noted(node.text())?;
        let kind = CommandType::from_name(name);
        if kind.is_none() {
            let shown: String = name.chars().take(40).collect();
            let known = || CommandType::ALL.iter().map(|kind| kind.name());
            let hint = match meant(name, known()) {
                hint if hint.is_empty() => format!("; there are {}", known().collect::<Vec<_>>().join(", ")),
                hint => hint,
            };
            self.problem(
                node.problem(ProblemKind::UnknownType, format!("there is no command {shown}{hint}")),
            );
        }
        kind
    }

    fn params(&mut self, params: &mut Node, kind: CommandType, content: bool, references: &mut References) {
        let at = params.at.clone();
        let mut problems = match &mut params.value {
            Value::Map(members) => {
                for (name, value) in params::defaults(kind, members) {
                    let value = Node { at: at.clone(), value };
                    members.push((Name { at: at.clone(), text: name.to_owned() }, value));
                }
                params::check(kind, params, content)
            }
            _ => vec![params.expected("a mapping")],
        };
        params.each_text(&mut |node, text| {
            if template::is_one(text) {
                match self.templates.add(text) {
                    Ok(found) => references.merge(found),
                    Err(why) => problems.push(node.problem(ProblemKind::Template, why)),
                }
            }
        });
        self.problems.append(&mut problems);
    }

    fn content(
        &mut self,
        fields: &Fields<'_>,
        kind: CommandType,
        params: &Node,
        references: &mut References,
    ) -> Option<Content> {
        let (named, is_template) = match (fields.get("template"), fields.get("content_file")) {
            (None, None) => return None,
            (Some(node), None) => (node, true),
            (None, Some(node)) => (node, false),
            (Some(_), Some(node)) => {
                self.problem(
                    node.problem(ProblemKind::Value, "content_file and template do not go together"),
                );
                return None;
            }
        };
        if kind != CommandType::FileWrite {
            self.problem(named.problem(ProblemKind::Value, "only file_write takes its content from a file"));
            return None;
        }
        let given = |field: &str| {
            params.map().is_ok_and(|members| members.iter().any(|(name, _)| name.text == field))
        };
        if given("content") || given("content_from") || given("encoding") {
            let message =
                "the content comes from this file, so params cannot have content, content_from or encoding";
            self.problem(named.problem(ProblemKind::Value, message));
            return None;
        }
        if matches!(&named.value, Value::Text(text) if template::is_one(text)) {
            self.problem(named.problem(ProblemKind::Template, "only params can be templates"));
            return None;
        }
        let directory = directory(&named.at);
        if !is_template {
            return self.noted(content::file(named, &directory)).map(Content::File);
        }
        let (file, text) = self.noted(content::template(named, &directory))?;
        match self.templates.add_file(&text) {
            Ok(found) => references.merge(found),
            Err(why) => {
                let at = Position { file: Arc::clone(&file), line: 1, column: 1 };
                self.problem(Problem::new(&at, ProblemKind::Template, why));
            }
        }
        Some(Content::Template { file, text })
    }

    /// The steps that a list of ids names, all of which come before.
    fn earlier(&mut self, node: Option<&Node>, id: &str) -> Vec<usize> {
        let Some(node) = node else { return Vec::new() };
        let Value::List(list) = &node.value else {
            self.problem(node.expected("a list of ids"));
            return Vec::new();
        };
        let mut found = Vec::new();
        for node in list {
            let Some(name) = self.noted(node.text()) else { continue };
            match self.ids.get(name) {
                Some(at) => found.extend(*at),
                None => {
                    let message = self.no_step(name, id);
                    self.problem(node.problem(ProblemKind::UnknownId, message));
                }
            }
        }
        found
    }

    fn no_step(&self, name: &str, id: &str) -> String {
        let shown: String = name.chars().take(40).collect();
        if name == id {
            return format!("{shown} is this step itself");
        }
        let cut = self.ids.keys().find(|id| id.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')));
        let hint = match cut {
            Some(id) => format!("; an id with - in it is written results['{id}']"),
            None => meant(name, self.ids.keys().map(String::as_str)),
        };
        format!("no step before this one has the id {shown}{hint}")
    }

    /// Checks what a step refers to, and gives the steps before it that it needs.
    fn needs(&mut self, node: &Node, references: &References, scope: &Scope, id: &str) -> BTreeSet<usize> {
        let mut needs = BTreeSet::new();
        for name in &references.variables {
            if !scope.has(name) {
                let hint = meant(name, scope.names().chain(["facts", "host", "results"]));
                let message = format!("step {id}: there is no variable {name}{hint}");
                self.problem(node.problem(ProblemKind::UnknownVariable, message));
            }
        }
        self.known.extend(references.variables.iter().cloned());
        for name in references.facts.iter().filter(|name| !name.is_empty()) {
            if !params::facts().any(|known| known == name) {
                let hint = match meant(name, params::facts()) {
                    hint if hint.is_empty() => {
                        format!("; there are {}", params::facts().collect::<Vec<_>>().join(", "))
                    }
                    hint => hint,
                };
                let message = format!("step {id}: there is no fact {name}{hint}");
                self.problem(node.problem(ProblemKind::UnknownVariable, message));
            }
        }
        for (name, fields) in &references.results {
            let Some(at) = self.ids.get(name).copied() else {
                let message = format!("step {id}: results.{name}: {}", self.no_step(name, id));
                self.problem(node.problem(ProblemKind::UnknownId, message));
                continue;
            };
            let Some(step) = at.and_then(|at| self.steps.get(at)) else { continue };
            needs.extend(at);
            let (kind, known) = (step.kind, params::result_fields(step.kind));
            for field in fields.iter().filter(|field| !known.contains(&field.as_str())) {
                let hint = match meant(field, known.iter().copied()) {
                    hint if hint.is_empty() => format!("; there are {}", known.join(", ")),
                    hint => hint,
                };
                let message = format!(
                    "step {id}: results.{name}: a result of {} has no field {field}{hint}",
                    kind.name()
                );
                self.problem(node.problem(ProblemKind::UnknownField, message));
            }
        }
        if references.any_result {
            needs.extend(0..self.steps.len());
        }
        needs
    }

    /// A variable that was set by name and that nothing knows is a misspelt one.
    fn unused_variables(&mut self) {
        let unused: Vec<&str> = self.variables.named().filter(|name| !self.known.contains(*name)).collect();
        for name in unused {
            let hint = meant(name, self.known.iter().map(String::as_str));
            let message = format!("the variable {name} was given, and no step knows it{hint}");
            self.problems.push(Problem::nowhere(ProblemKind::UnknownVariable, message));
        }
    }
}

/// Where the files are looked for that are named at a place.
fn directory(at: &Position) -> PathBuf {
    at.file.parent().map(Path::to_owned).unwrap_or_default()
}

/// The path of a file by which it is known again.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// A number of a file.
pub(super) fn number(value: u64) -> Value {
    Value::Number(Number::from(value))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
