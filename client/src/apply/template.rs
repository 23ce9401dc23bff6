//! Templates and expressions of minijinja: what they refer to, and what they give. What is undefined is an error, and
//! what comes from a host is never taken for a template itself.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};

/// Names that variables cannot have: they mean something of their own.
pub(super) const RESERVED: &[&str] =
    &["facts", "host", "results", "result", "loop", "self", "true", "false", "none", "True", "False", "None"];

/// Most instructions of a template: loops in loops may else run for days. It takes about a second.
const MOST_INSTRUCTIONS: u64 = 10_000_000;

/// Whether text is a template.
pub(super) fn is_one(text: &str) -> bool {
    ["{{", "{%", "{#"].iter().any(|mark| text.contains(mark))
}

/// What a template or expression refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct References {
    /// Variables that must be defined. Empty where the template itself asks whether they are.
    pub(super) variables: BTreeSet<String>,
    /// Ids of steps, each with the fields of its result.
    pub(super) results: BTreeMap<String, BTreeSet<String>>,
    /// Results are looked up by what is known only then: all before it are needed.
    pub(super) any_result: bool,
    /// Names of facts; empty text for all of them.
    pub(super) facts: BTreeSet<String>,
    /// The host itself, or a result, is referred to.
    pub(super) host: bool,
}

impl References {
    /// Whether it is known before any host is spoken with.
    pub(super) fn is_fixed(&self) -> bool {
        self.results.is_empty() && !self.any_result && self.facts.is_empty() && !self.host
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.variables.extend(other.variables);
        for (id, fields) in other.results {
            self.results.entry(id).or_default().extend(fields);
        }
        self.any_result |= other.any_result;
        self.facts.extend(other.facts);
        self.host |= other.host;
    }

    fn of(env: &Environment<'_>, source: &str, names: impl IntoIterator<Item = String>) -> Self {
        let mut references = Self::default();
        let lenient = asks_what_is_defined(source);
        for name in names {
            let mut parts = name.split('.');
            match (parts.next().unwrap_or_default(), parts.next()) {
                ("results", Some(id)) => {
                    let fields = references.results.entry(id.to_owned()).or_default();
                    fields.extend(parts.next().filter(|_| !lenient).map(str::to_owned));
                }
                ("results", None) => references.any_result = true,
                ("facts", fact) => {
                    references.facts.insert(fact.unwrap_or_default().to_owned());
                }
                ("host" | "result", _) => references.host = true,
                (name, _) if lenient || env.globals().any(|(global, _)| global == name) => {}
                (name, _) => {
                    references.variables.insert(name.to_owned());
                }
            }
        }
        if references.any_result {
            for id in quoted_ids(source) {
                references.results.entry(id.to_owned()).or_default();
            }
        }
        references
    }
}

/// The templates of a list, compiled.
#[derive(Debug)]
pub(super) struct Templates {
    env: Environment<'static>,
}

impl Templates {
    pub(super) fn new() -> Self {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        // As Ansible has it: the newline after a block is the block's, the last one of a file is the file's.
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).keep_trailing_newline(true).build() {
            env.set_syntax(syntax);
        }
        // So that errors name what is undefined. They hold values of variables too, which `said` leaves out.
        env.set_debug(true);
        env.set_fuel(Some(MOST_INSTRUCTIONS));
        Self { env }
    }

    /// Compiles a template, and gives what it refers to.
    pub(super) fn add(&mut self, text: &str) -> Result<References, String> {
        if let Some(expression) = self.expression_in(text) {
            return self.check(expression);
        }
        self.add_file(text)
    }

    /// Looks at an expression without braces, and gives what it refers to.
    pub(super) fn check(&self, expression: &str) -> Result<References, String> {
        not_too_deep([expression])?;
        let compiled =
            self.env.compile_expression_owned(expression.to_owned()).map_err(|error| said(&error))?;
        Ok(References::of(&self.env, expression, compiled.undeclared_variables(true)))
    }

    /// The expression that a text consists of, if it is one: its value keeps its type.
    fn expression_in<'t>(&self, text: &'t str) -> Option<&'t str> {
        not_too_deep([text]).ok()?;
        let inner = text.strip_prefix("{{")?.strip_suffix("}}")?;
        let inner = inner.strip_prefix('-').unwrap_or(inner);
        let inner = inner.strip_suffix('-').unwrap_or(inner);
        self.env.compile_expression_owned(inner.to_owned()).is_ok().then_some(inner)
    }

    /// What a template gives; [`Templates::add`] must have seen it.
    pub(super) fn render(&self, text: &str, context: &Value) -> Result<serde_json::Value, String> {
        match self.expression_in(text) {
            Some(expression) => {
                let value = self.evaluate(expression, context)?;
                serde_json::to_value(&value)
                    .map_err(|_| "what it gives is no value that can be written".to_owned())
            }
            None => self.render_text(text, context).map(Into::into),
        }
    }

    /// What a template gives, as text in any case.
    pub(super) fn render_text(&self, text: &str, context: &Value) -> Result<String, String> {
        let template = self.env.get_template(text).map_err(|error| said(&error))?;
        template.render(context.clone()).map_err(|error| said(&error))
    }

    /// The value of an expression.
    pub(super) fn evaluate(&self, expression: &str, context: &Value) -> Result<Value, String> {
        let compiled =
            self.env.compile_expression_owned(expression.to_owned()).map_err(|error| said(&error))?;
        let value = compiled.eval(context.clone()).map_err(|error| said(&error))?;
        if value.is_undefined() {
            return Err(format!("{} is undefined", expression.trim()));
        }
        Ok(value)
    }

    /// Compiles a template of a file of its own.
    pub(super) fn add_file(&mut self, text: &str) -> Result<References, String> {
        if let Some(tag) = refers_to_another(text) {
            return Err(format!("{tag}: a template cannot refer to others"));
        }
        not_too_deep(tags(text))?;
        self.env.add_template_owned(text.to_owned(), text.to_owned()).map_err(|error| said(&error))?;
        let template = self.env.get_template(text).map_err(|error| said(&error))?;
        Ok(References::of(&self.env, text, template.undeclared_variables(true)))
    }
}

/// What stands in the braces of a template.
fn tags(text: &str) -> impl Iterator<Item = &str> {
    let openings = text.match_indices(['{']).filter(|(at, _)| text[at + 1..].starts_with(['{', '%']));
    openings.map(|(at, _)| {
        let rest = &text[at + 2..];
        &rest[..rest.find(['}', '%']).unwrap_or(rest.len())]
    })
}

/// Most signs in a row before a value. The parser calls itself for each, without a limit of its own.
const MOST_SIGNS: usize = 100;

fn not_too_deep<'t>(expressions: impl IntoIterator<Item = &'t str>) -> Result<(), String> {
    for expression in expressions {
        let mut signs = 0;
        for word in expression.split_inclusive(|c: char| c == '-' || c.is_whitespace()).map(str::trim) {
            signs = if matches!(word, "" | "-" | "not") { signs + usize::from(!word.is_empty()) } else { 0 };
            if signs > MOST_SIGNS {
                return Err(format!("more than {MOST_SIGNS} signs before a value"));
            }
        }
    }
    Ok(())
}

/// Whether a template may use names that are nowhere defined.
fn asks_what_is_defined(source: &str) -> bool {
    let parts = if is_one(source) { tags(source).collect() } else { vec![source] };
    parts.into_iter().any(|part| {
        ["is defined", "is not defined", "is undefined"].iter().any(|test| part.contains(test))
            || ["default", "d"].iter().any(|filter| {
                let filters = part.split('|').skip(1);
                filters
                    .filter_map(|rest| rest.trim_start().strip_prefix(filter))
                    .any(|rest| rest.trim_start().starts_with('('))
            })
    })
}

/// Ids by which results are looked up in brackets, where they are written out.
fn quoted_ids(source: &str) -> impl Iterator<Item = &str> {
    source.split("results[").skip(1).filter_map(|rest| {
        let rest = rest.trim_start();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (id, rest) = rest[1..].split_once(quote)?;
        rest.trim_start().starts_with(']').then_some(id)
    })
}

/// The tag by which a template refers to another one. Each stands alone here, so that all that it needs is known before
/// it is rendered; minijinja itself has these tags wherever it has its limit of instructions.
fn refers_to_another(text: &str) -> Option<&'static str> {
    if text.contains("raw") {
        // It may only look like one.
        return None;
    }
    let mut tags = text.split("{%").skip(1).map(|rest| rest.trim_start_matches(['-', '+']).trim_start());
    tags.find_map(|tag| {
        ["include", "import", "from", "extends", "block"].into_iter().find(|name| tag.starts_with(name))
    })
}

/// An error without the values that led to it.
fn said(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("it does not come to an end: stopped after {MOST_INSTRUCTIONS} instructions");
    }
    let line = match error.line() {
        Some(line) if line > 1 => format!(" (line {line} of it)"),
        _ => String::new(),
    };
    match error.detail() {
        Some(detail) => format!("{}: {detail}{line}", error.kind()),
        None => format!("{}{line}", error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(text: &str) -> Result<serde_json::Value, String> {
        let mut templates = Templates::new();
        templates.add(text)?;
        let vars = json!({
            "port": 80, "on": true, "name": "web", "list": [1, 2], "map": {"a": "b"}, "braces": "{{ name }}",
        });
        templates.render(text, &Value::from(minijinja::value::Serde(vars)))
    }

    #[test]
    fn one_expression_keeps_its_type_and_anything_else_is_text() {
        for (text, value) in [
            ("{{ port }}", json!(80)),
            ("{{- on -}}", json!(true)),
            ("{{ list }}", json!([1, 2])),
            ("{{ map }}", json!({"a": "b"})),
            ("{{ {'a': {'b': port}} }}", json!({"a": {"b": 80}})),
            ("{{ port }} ", json!("80 ")),
            ("{{ name }}{{ port }}", json!("web80")),
            ("{{ '}}' }}{{ '{{' }}", json!("}}{{")),
            ("{% if on %}\nyes\n{% endif %}\n", json!("yes\n")),
            ("{% raw %}{{ name }}{% endraw %}", json!("{{ name }}")),
            ("{{ name | upper }}-{{ list | join(',') }}", json!("WEB-1,2")),
            ("{# nothing #}", json!("")),
        ] {
            assert_eq!(render(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn what_a_variable_holds_is_no_template() {
        assert_eq!(render("{{ braces }}").unwrap(), json!("{{ name }}"));
        assert_eq!(render("<{{ braces }}>").unwrap(), json!("<{{ name }}>"));
    }

    #[test]
    fn what_is_undefined_is_an_error_that_names_it_and_no_value() {
        for (text, word) in [
            ("{{ nmae }}", "nmae"),
            ("x {{ nmae }}", "nmae"),
            ("{{ map.c }}", "map.c"),
            ("x{{ map.c }}", "map.c"),
            ("{% if nmae %}{% endif %}", "nmae"),
        ] {
            let error = render(text).unwrap_err();
            assert!(error.contains("undefined") && error.contains(word), "{text}: {error}");
        }
        assert_eq!(render("{{ nmae | default('x') }}").unwrap(), json!("x"));
        let error = render("{{ name | int }}").unwrap_err();
        assert!(!error.contains("web"), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        for text in [
            "{% extends 'x' %}",
            "{%- import 'x' as y %}",
            "{{ name",
            "{% if %}",
            "{{ name | nosuch }}",
            "{% include 'x' %}",
            "{{ }}",
        ] {
            assert!(render(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_template_comes_to_an_end() {
        let loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
        let all = [loops, "{{ 'x' * 99999999999 }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"];
        for (text, word) in all.into_iter().zip(["come to an end", "too large", "recursion"]) {
            let error = render(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn an_expression_is_no_deeper_than_its_parser_can_bear() {
        let mut templates = Templates::new();
        for sign in ["not ", "-", "- "] {
            let deep = sign.repeat(100_000);
            for error in [
                templates.check(&format!("{deep}x")).unwrap_err(),
                templates.add(&format!("{{{{ {deep}x }}}}")).unwrap_err(),
                templates.add(&format!("a {{% if {deep}x %}}{{% endif %}}")).unwrap_err(),
            ] {
                assert!(error.contains("signs"), "{error}");
            }
        }
        assert!(templates.check(&format!("{}(x)", "(".repeat(100_000))).is_err());
        assert!(templates.add(&format!("{} {{{{ 1 }}}}", "-".repeat(1000))).is_ok());
    }

    #[test]
    fn only_what_asks_may_use_what_is_not_defined() {
        let mut templates = Templates::new();
        for (text, strict) in [
            ("{{ x | default(1) }}", false),
            ("{{ x|d ('y') }}", false),
            ("{% if x is not defined %}{% endif %}", false),
            ("see find(1) or add(2): {{ x }}", true),
            ("{{ x | upper }} | d(", true),
        ] {
            assert_eq!(templates.add(text).unwrap().variables.contains("x"), strict, "{text}");
        }
    }

    #[test]
    fn references_are_told_apart() {
        let mut templates = Templates::new();
        let text = "{{ a }} {{ results.x.stdout }} {{ results.y }} {{ facts.os_id }} {{ host.name }} \
                    {% for i in range(3) %}{{ i }}{{ loop.index }}{% endfor %}";
        let found = templates.add(text).unwrap();
        assert_eq!(found.variables, ["a".to_owned()].into());
        assert_eq!(found.results["x"], ["stdout".to_owned()].into());
        assert!(found.results["y"].is_empty() && !found.any_result);
        assert_eq!(found.facts, ["os_id".to_owned()].into());
        assert!(templates.add("{{ results[a] }}").unwrap().any_result);
        let quoted = templates.add("{{ results['my-id'].stdout }}{{ results[ \"b\" ] }}").unwrap();
        assert_eq!(quoted.results.keys().collect::<Vec<_>>(), ["b", "my-id"]);
        assert!(templates.add("{{ b | default(1) }}").unwrap().variables.is_empty());
    }
}
