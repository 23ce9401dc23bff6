//! The parameters of commands whose type is known by name alone: what is wrong with them, what is added to them, and
//! how they become a frame.

use serde::de::{self, Deserialize, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::value::RawValue;
use sortie_protocol::command::CommandVisitor;
use sortie_protocol::command::facts::SETS;
use sortie_protocol::{CommandSpec, CommandType};

use super::file::number;
use super::problem::{Problem, ProblemKind};
use super::source::{Name, Node, Value};
use super::typed::{self, Mode};

/// What READY tells of a host, by the names of the protocol.
const FACTS: &[&str] = &[
    "hostname",
    "os_id",
    "os_version",
    "kernel",
    "boot_id",
    "uid",
    "user",
    "cpus",
    "memory_bytes",
    "init",
    "package_manager",
    "sudo",
    "container",
    "arch",
    "platform",
];

/// Every name of a fact: what READY tells, and the sets of the command `facts`, which are asked for only where a step names them.
pub(super) fn facts() -> impl Iterator<Item = &'static str> + Clone {
    FACTS.iter().chain(SETS).copied()
}

/// What is said for people who do not say it: as the typed client has it, programs are captured and files are made.
pub(super) fn defaults(kind: CommandType, members: &[(Name, Node)]) -> Vec<(&'static str, Value)> {
    let has = |field: &str| members.iter().any(|(name, _)| name.text == field);
    let mut added = Vec::new();
    match kind {
        CommandType::Exec if !has("stream_lines") => {
            added.extend([("capture_out", Value::Bool(true)), ("capture_err", Value::Bool(true))]);
            added.push(("output_bytes", number(1024 * 1024)));
        }
        CommandType::FileWrite => added.push(("create", Value::Bool(true))),
        _ => {}
    }
    added.retain(|(name, _)| !has(name));
    added
}

/// What is wrong with params as they are written. `content` says that content comes from elsewhere.
pub(super) fn check(kind: CommandType, params: &Node, content: bool) -> Vec<Problem> {
    let mut problems = kind.visit(Check(params));
    let members = params.map().unwrap_or_default();
    let given = |field: &str| {
        members
            .iter()
            .find(|(name, _)| name.text == field)
            .filter(|(_, node)| !matches!(node.value, Value::Null))
    };
    for field in kind.visit(Required) {
        if given(&field).is_none() {
            problems
                .push(params.problem(ProblemKind::Missing, format!("{}: {field} is missing", kind.name())));
        }
    }
    if kind == CommandType::Exec && given("command").is_none() && given("argv").is_none() {
        problems.push(params.problem(ProblemKind::Missing, "exec: command or argv is missing"));
    }
    // There is nobody who would send it.
    for field in ["stdin_from", "content_from"] {
        if let Some((name, _)) = given(field).filter(|_| !content) {
            let message =
                format!("{field}: a step has no input of its own; give stdin, content or content_file");
            problems.push(Problem::new(&name.at, ProblemKind::Value, message));
        }
    }
    problems
}

/// Whether a field is this text.
pub(super) fn is(params: &Node, field: &str, text: &str) -> bool {
    let members = params.map().unwrap_or_default();
    members
        .iter()
        .any(|(name, node)| name.text == field && matches!(&node.value, Value::Text(value) if value == text))
}

/// The params of a CMD, from a tree that has no templates any more.
pub(super) fn encode(kind: CommandType, params: &Node) -> Result<Box<RawValue>, Vec<Problem>> {
    kind.visit(Encode(params))
}

/// The fields that a result of the command may have, with those that every result has here.
pub(super) fn result_fields(kind: CommandType) -> Vec<&'static str> {
    let mut fields = kind.visit(ResultFields);
    for field in super::outcome::FIELDS {
        if !fields.contains(field) {
            fields.push(field);
        }
    }
    fields
}

struct Check<'n>(&'n Node);

impl CommandVisitor for Check<'_> {
    type Output = Vec<Problem>;

    fn visit<C: CommandSpec + Default>(self) -> Self::Output {
        typed::check::<C>(self.0)
    }
}

struct Encode<'n>(&'n Node);

impl CommandVisitor for Encode<'_> {
    type Output = Result<Box<RawValue>, Vec<Problem>>;

    fn visit<C: CommandSpec + Default>(self) -> Self::Output {
        let params: C = typed::read(self.0, Mode::Rendered)?;
        serde_json::value::to_raw_value(&params)
            .map_err(|error| vec![self.0.problem(ProblemKind::Value, error.to_string())])
    }
}

/// The texts that are always sent: what must be given stands in the frame also where it is empty, the rest does not.
struct Required;

impl CommandVisitor for Required {
    type Output = Vec<String>;

    fn visit<C: CommandSpec + Default>(self) -> Self::Output {
        let Ok(serde_json::Value::Object(sent)) = serde_json::to_value(C::default()) else {
            return Vec::new();
        };
        sent.into_iter().filter(|(_, value)| value == "").map(|(name, _)| name).collect()
    }
}

struct ResultFields;

impl CommandVisitor for ResultFields {
    type Output = Vec<&'static str>;

    fn visit<C: CommandSpec + Default>(self) -> Self::Output {
        let mut names: &'static [&'static str] = &[];
        let _ = C::Result::deserialize(Names(&mut names));
        names.to_vec()
    }
}

/// Asks serde for the fields of a type.
struct Names<'a>(&'a mut &'static [&'static str]);

impl<'de> de::Deserializer<'de> for Names<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("only asked for names"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = names;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
