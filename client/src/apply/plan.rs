//! What a list would run, told without speaking with any host.

use std::sync::Arc;

use minijinja::Value as Data;
use sortie_protocol::CommandType;

use super::file::StepList;
use super::source::Value;
use super::step::{Becoming, Condition, Step, Test};

/// A step as it is planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The step.
    pub id: Arc<str>,
    /// Its command.
    pub kind: CommandType,
    /// What it is about, as it stands in the file: a path, or the name of a package or service; of a program its name alone.
    pub about: String,
    /// Its number in the list of flights, from 1: the steps of a flight are sent together, and run one after the other. `None` where
    /// its variables say that it does not run.
    pub flight: Option<usize>,
    /// Earlier steps that it waits for, as it needs to know what came of them.
    pub waits_for: Vec<Arc<str>>,
    /// It runs only if one of these changes something; empty for always.
    pub when_changed: Vec<Arc<str>>,
    /// The other conditions, as they stand in the file.
    pub conditions: Vec<String>,
    /// Whom it becomes, where it says so itself.
    pub r#become: Option<String>,
}

impl StepList {
    /// What would run, in which order, and what travels together. With facts of a host or results of steps conditions may still
    /// turn out either way; those that are about variables alone are settled.
    #[must_use]
    pub fn plan(&self) -> Vec<Planned> {
        let mut planned: Vec<Planned> = Vec::with_capacity(self.steps.len());
        let (mut flight, mut first, mut alone) = (1, 0, true);
        for (at, step) in self.steps.iter().enumerate() {
            let ids = |steps: &mut dyn Iterator<Item = &usize>| -> Vec<Arc<str>> {
                steps.filter_map(|at| self.steps.get(*at)).map(|step| Arc::clone(&step.id)).collect()
            };
            let runs = self.may_run(step);
            let needs = step.needs.range(first..).any(|at| planned[*at].flight == Some(flight));
            let begun = planned[first..].iter().any(|planned| planned.flight == Some(flight));
            if runs && begun && (alone || needs || step.asks() || step.is_alone(false)) {
                flight += 1;
                first = at;
            }
            if runs {
                alone = step.is_alone(false);
            }
            planned.push(Planned {
                id: Arc::clone(&step.id),
                kind: step.kind,
                about: about(step),
                flight: runs.then_some(flight),
                waits_for: ids(&mut step.needs.iter()),
                when_changed: ids(&mut step.when_changed.iter()),
                conditions: step.conditions.iter().map(Condition::in_words).collect(),
                r#become: match &step.r#become {
                    Becoming::Somebody(somebody) => Some(somebody.user.clone()),
                    Becoming::AsCalled | Becoming::Nobody => None,
                },
            });
        }
        planned
    }

    /// Whether its variables do not say that it does not run.
    fn may_run(&self, step: &Step) -> bool {
        step.conditions.iter().all(|condition| match &condition.test {
            Test::Expression(expression) if expression.fixed => {
                let variables =
                    Data::from_pairs(step.scope.values().map(|(name, value)| (name.clone(), value.clone())));
                let value = self.templates.evaluate(&expression.text, &variables);
                value.map_or(true, |value| value.is_true() != condition.negated)
            }
            _ => true,
        })
    }
}

fn about(step: &Step) -> String {
    let members = step.params.map().unwrap_or_default();
    let member =
        |field: &str| members.iter().find(|(name, _)| name.text == field).map(|(_, node)| &node.value);
    let text = |field: &str| match member(field) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let list = |field: &str| match member(field) {
        Some(Value::List(list)) => {
            list.iter().filter_map(|node| node.text().ok()).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    if step.kind == CommandType::Exec {
        // Arguments may be secrets; the program is not.
        let program = list("argv").into_iter().next().or_else(|| text("command"));
        return program
            .and_then(|line| line.split_whitespace().next().map(str::to_owned))
            .unwrap_or_default();
    }
    let name = text("path")
        .or_else(|| text("name"))
        .or_else(|| text("user"))
        .unwrap_or_else(|| list("names").join(" "));
    let what = text("state").or_else(|| text("action")).filter(|_| text("path").is_none());
    what.map_or_else(|| name.clone(), |what| format!("{name} {what}"))
}

#[cfg(test)]
mod tests {
    use super::super::Variables;
    use super::*;
    use std::path::Path;

    fn flights(text: &str) -> Vec<(String, Option<usize>)> {
        let list = StepList::parse(text, Path::new("f"), &Variables::new()).unwrap();
        list.plan().into_iter().map(|planned| (planned.id.to_string(), planned.flight)).collect()
    }

    #[test]
    fn a_flight_ends_where_a_step_needs_what_another_gave() {
        let step =
            |id: &str, more: &str| format!("- {{id: {id}, type: exec, params: {{argv: [a]}}{more}}}\n");
        let text = [
            "vars: {on: false}\nsteps:\n".to_owned(),
            step("a", ""),
            step("b", ""),
            step("c", ", when_changed: [a]"),
            step("d", ", when_changed: [a]"),
            step("e", ", only_if: on"),
            step("f", ", only_if: \"facts.os_id == 'x'\""),
            step("g", ", ignore_failure: true"),
            step("h", ""),
            step("i", ", unless: {command: [x]}"),
        ];
        let expected =
            [("a", 1), ("b", 1), ("c", 2), ("d", 2), ("e", 0), ("f", 2), ("g", 3), ("h", 4), ("i", 5)];
        let expected: Vec<(String, Option<usize>)> = expected
            .iter()
            .map(|(id, flight)| ((*id).to_owned(), Some(*flight).filter(|flight| *flight > 0)))
            .collect();
        assert_eq!(flights(&text.concat()), expected);
    }

    #[test]
    fn a_plan_shows_no_arguments_of_programs() {
        let text = "- {id: a, type: exec, params: {command: 'login --password hunter2'}}\n\
                    - {id: b, type: exec, params: {argv: [login, hunter2]}}\n\
                    - {id: c, type: service_reload, params: {name: nginx, action: reload}}\n";
        let list = StepList::parse(text, Path::new("f"), &Variables::new()).unwrap();
        let about: Vec<String> = list.plan().into_iter().map(|planned| planned.about).collect();
        assert_eq!(about, ["login", "login", "nginx reload"]);
    }
}
