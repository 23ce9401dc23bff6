//! The fields of a step that are neither simple values nor params: whom it becomes, its conditions, what it changes.

use sortie_protocol::message::Become;

use super::file::Loader;
use super::problem::ProblemKind;
use super::source::{Node, Value};
use super::step::{Becoming, Condition, Expression, Test, WrittenBecome};
use super::template::{self, References};

impl Loader<'_> {
    pub(super) fn becoming(&mut self, node: Option<&Node>) -> Becoming {
        let Some(node) = node else { return Becoming::AsCalled };
        let user = match &node.value {
            Value::Bool(false) => return Becoming::Nobody,
            Value::Bool(true) => "root".to_owned(),
            Value::Text(user) => user.clone(),
            _ => {
                let Some(WrittenBecome { user, method, password }) = self.typed(Some(node)) else {
                    return Becoming::AsCalled;
                };
                return Becoming::Somebody(Become { user, method, password });
            }
        };
        if template::is_one(&user) {
            self.problem(node.problem(ProblemKind::Template, "only params can be templates"));
        }
        Becoming::Somebody(Become { user, ..Become::default() })
    }

    pub(super) fn expression(
        &mut self,
        node: Option<&Node>,
        references: &mut References,
    ) -> Option<Expression> {
        let node = node?;
        let text = match &node.value {
            Value::Text(text) => text.clone(),
            Value::Bool(value) => value.to_string(),
            _ => {
                self.problem(node.expected("an expression"));
                return None;
            }
        };
        if template::is_one(&text) {
            let message = "this is an expression already: write it without {{ }}";
            self.problem(node.problem(ProblemKind::Template, message));
            return None;
        }
        let mut fixed = false;
        match self.templates.check(&text) {
            Ok(found) => {
                fixed = found.is_fixed();
                references.merge(found);
            }
            Err(why) => self.problem(node.problem(ProblemKind::Template, why)),
        }
        Some(Expression { at: node.at.clone(), text, fixed })
    }

    pub(super) fn conditions(
        &mut self,
        node: Option<&Node>,
        negated: bool,
        conditions: &mut Vec<Condition>,
        references: &mut References,
    ) {
        let Some(node) = node else { return };
        let nodes = match &node.value {
            Value::List(list) => &list[..],
            _ => std::slice::from_ref(node),
        };
        for node in nodes {
            let test = match &node.value {
                Value::Map(_) => {
                    let Some(fields) = self.fields(node, &["command"]) else { continue };
                    match fields.get("command") {
                        Some(argv) if self.argv(argv, references) => Test::Command(argv.clone()),
                        Some(_) => continue,
                        None => {
                            self.problem(node.problem(ProblemKind::Missing, "command is missing"));
                            continue;
                        }
                    }
                }
                _ => match self.expression(Some(node), references) {
                    Some(expression) => Test::Expression(expression),
                    None => continue,
                },
            };
            conditions.push(Condition { negated, test });
        }
    }

    pub(super) fn argv(&mut self, argv: &Node, references: &mut References) -> bool {
        let Value::List(words) = &argv.value else {
            self.problem(argv.expected("a list: a program and its arguments"));
            return false;
        };
        if words.is_empty() {
            self.problem(argv.problem(ProblemKind::Value, "a command without a program"));
        }
        self.texts(words, references)
    }

    pub(super) fn paths(&mut self, node: &Node, references: &mut References) {
        let Value::List(paths) = &node.value else {
            return self.problem(node.expected("a list of paths, empty for nothing"));
        };
        if self.texts(paths, references) {
            for path in paths {
                if !matches!(&path.value, Value::Text(text) if text.starts_with('/') || template::is_one(text))
                {
                    self.problem(path.problem(ProblemKind::Value, "expected an absolute path"));
                }
            }
        }
    }

    pub(super) fn texts(&mut self, list: &[Node], references: &mut References) -> bool {
        let before = self.problems.len();
        for node in list {
            match node.text() {
                Ok(text) if template::is_one(text) => match self.templates.add(text) {
                    Ok(found) => references.merge(found),
                    Err(why) => self.problem(node.problem(ProblemKind::Template, why)),
                },
                Ok(_) => {}
                Err(problem) => self.problem(problem),
            }
        }
        self.problems.len() == before
    }
}
