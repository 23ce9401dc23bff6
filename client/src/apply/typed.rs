//! From the tree to the typed parameters of a command, by what serde derives for them: so a field that the command does
//! not have, and a value of another type, are told at their place, also deep inside, with no list of fields to keep.

use std::cell::RefCell;
use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use serde::forward_to_deserialize_any;

use super::problem::{Position, Problem, ProblemKind, meant};
use super::source::{Node, Value};
use super::template;

/// How values are to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// As they stand in the file. Texts that are templates are passed over: what they will be is not known.
    Written,
    /// As they were rendered: where text is wanted, a number or a truth value is what a template writes for it.
    Rendered,
}

/// Reads a value of type `T`, or says all that is wrong.
pub(super) fn read<T: DeserializeOwned>(node: &Node, mode: Mode) -> Result<T, Vec<Problem>> {
    let notes = RefCell::new(Notes::default());
    let read = T::deserialize(Typed { node, mode, notes: &notes });
    let mut problems = notes.into_inner().problems;
    match read {
        Ok(value) if problems.is_empty() => return Ok(value),
        Ok(_) => {}
        Err(wrong) => problems.push(wrong.at(node)),
    }
    Err(problems)
}

/// What is wrong with a value that is read of it as written. Fields that must be there and are templates count as there.
pub(super) fn check<T: DeserializeOwned>(node: &Node) -> Vec<Problem> {
    let notes = RefCell::new(Notes::default());
    let read = T::deserialize(Typed { node, mode: Mode::Written, notes: &notes });
    let Notes { mut problems, passed_over } = notes.into_inner();
    if let Err(wrong) = read
        && !(wrong.missing && passed_over)
    {
        problems.push(wrong.at(node));
    }
    problems
}

#[derive(Default)]
struct Notes {
    problems: Vec<Problem>,
    passed_over: bool,
}

#[derive(Clone, Copy)]
struct Typed<'n> {
    node: &'n Node,
    mode: Mode,
    notes: &'n RefCell<Notes>,
}

/// Why a value cannot be taken; its place is added by whoever knows it.
#[derive(Debug)]
struct Wrong {
    at: Option<Position>,
    message: String,
    missing: bool,
}

impl Wrong {
    fn new(message: String) -> Self {
        Self { at: None, message, missing: false }
    }

    fn at(self, node: &Node) -> Problem {
        let kind = if self.missing { ProblemKind::Missing } else { ProblemKind::Value };
        Problem::new(self.at.as_ref().unwrap_or(&node.at), kind, self.message)
    }

    fn placed(mut self, at: &Position) -> Self {
        self.at.get_or_insert_with(|| at.clone());
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Wrong {}

/// What serde's words for a type are to a person.
fn in_words(expected: &dyn Expected) -> String {
    let said = expected.to_string();
    let whole = |least: i64, most: u64| format!("a whole number from {least} to {most}");
    match said.as_str() {
        "a string" => "text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a mapping".to_owned(),
        "u8" => whole(0, u8::MAX.into()),
        "u16" => whole(0, u16::MAX.into()),
        "u32" => whole(0, u32::MAX.into()),
        "u64" => whole(0, u64::MAX),
        "i32" => whole(i32::MIN.into(), i32::MAX as u64),
        "i64" => whole(i64::MIN, i64::MAX as u64),
        said if said.starts_with("struct ") => "a mapping".to_owned(),
        said => said.to_owned(),
    }
}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    /// Says no value: it may be a password.
    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let wanted = in_words(expected);
        let (found, advice) = match unexpected {
            Unexpected::Bool(_) => ("true or false", "; put it in quotes"),
            Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => {
                ("a number", "; put it in quotes")
            }
            Unexpected::Str(_) => ("text", ""),
            Unexpected::Unit | Unexpected::Option => ("nothing", ""),
            Unexpected::Seq => ("a list", ""),
            Unexpected::Map | Unexpected::NewtypeStruct => ("a mapping", ""),
            _ => ("something else", ""),
        };
        let advice = if wanted == "text" { advice } else { "" };
        Self::new(format!("expected {wanted}, found {found}{advice}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {}", in_words(expected)))
    }

    fn invalid_length(_: usize, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {}", in_words(expected)))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("expected {}{}", expected.join(" or "), meant(variant, expected.iter().copied())))
    }

    fn missing_field(field: &'static str) -> Self {
        Self { missing: true, ..Self::new(format!("{field} is missing")) }
    }
}

impl<'n> Typed<'n> {
    fn inside(self, node: &'n Node) -> Self {
        Self { node, ..self }
    }

    /// Whether it is passed over, for what it will be is not known yet.
    fn is_template(&self, node: &Node) -> bool {
        let Value::Text(text) = &node.value else { return false };
        let passed = self.mode == Mode::Written && template::is_one(text);
        self.notes.borrow_mut().passed_over |= passed;
        passed
    }

    fn list<'de, V: Visitor<'de>>(self, visitor: V, list: &'n [Node]) -> Result<V::Value, Wrong> {
        visitor.visit_seq(Members { typed: self, rest: list.iter() })
    }

    fn text<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match &self.node.value {
            Value::Number(number) if self.mode == Mode::Rendered => visitor.visit_string(number.to_string()),
            Value::Bool(value) if self.mode == Mode::Rendered => {
                visitor.visit_str(if *value { "True" } else { "False" })
            }
            _ => de::Deserializer::deserialize_any(self, visitor),
        }
    }
}

impl<'de> de::Deserializer<'de> for Typed<'_> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let node = self.node;
        let read = match &node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(number), ..) => visitor.visit_u64(number),
                (_, Some(number), _) => visitor.visit_i64(number),
                (.., number) => visitor.visit_f64(number.unwrap_or(f64::NAN)),
            },
            Value::Text(text) => visitor.visit_str(text),
            Value::List(list) => self.list(visitor, list),
            Value::Map(members) => {
                visitor.visit_map(Fields { typed: self, known: None, rest: members.iter(), value: None })
            }
        };
        read.map_err(|wrong| wrong.placed(&node.at))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let node = self.node;
        self.text(visitor).map_err(|wrong| wrong.placed(&node.at))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.deserialize_str(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        let node = self.node;
        let Value::Text(word) = &node.value else {
            return Err(Wrong::new(format!("expected {}", words.join(" or "))).placed(&node.at));
        };
        visitor.visit_enum(word.as_str().into_deserializer()).map_err(|wrong: Wrong| wrong.placed(&node.at))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        let node = self.node;
        let Value::Map(members) = &node.value else {
            return Err(
                Wrong::new(format!("expected a mapping, found {}", node.value.kind())).placed(&node.at)
            );
        };
        let fields = Fields { typed: self, known: Some(known), rest: members.iter(), value: None };
        visitor.visit_map(fields).map_err(|wrong| wrong.placed(&node.at))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

struct Members<'n> {
    typed: Typed<'n>,
    rest: std::slice::Iter<'n, Node>,
}

impl<'de> SeqAccess<'de> for Members<'_> {
    type Error = Wrong;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Wrong> {
        for node in self.rest.by_ref() {
            if !self.typed.is_template(node) {
                return seed
                    .deserialize(self.typed.inside(node))
                    .map(Some)
                    .map_err(|wrong| wrong.placed(&node.at));
            }
        }
        Ok(None)
    }
}

struct Fields<'n> {
    typed: Typed<'n>,
    /// Those there are; `None` where any name will do.
    known: Option<&'static [&'static str]>,
    rest: std::slice::Iter<'n, (super::source::Name, Node)>,
    value: Option<&'n Node>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Wrong> {
        for (name, node) in self.rest.by_ref() {
            if let Some(known) = self.known
                && !known.contains(&name.text.as_str())
            {
                let problem = unknown_field(name, known.iter().copied());
                self.typed.notes.borrow_mut().problems.push(problem);
            } else if !self.typed.is_template(node) {
                self.value = Some(node);
                return seed.deserialize(name.text.as_str().into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Wrong> {
        let Some(node) = self.value.take() else {
            return Err(Wrong::new("a value without a name".to_owned()));
        };
        seed.deserialize(self.typed.inside(node)).map_err(|wrong| wrong.placed(&node.at))
    }
}

/// Names a field that does not exist, and those that do.
pub(super) fn unknown_field<'a>(
    name: &super::source::Name,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> Problem {
    let text: String = name.text.chars().take(40).collect();
    let meant = meant(&text, known.clone());
    let hint = match meant.is_empty() {
        false => meant,
        true => format!("; there are {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    };
    Problem::new(&name.at, ProblemKind::UnknownField, format!("there is no field {text}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sortie_protocol::command::exec::Exec;
    use std::sync::Arc;

    fn rendered(json: serde_json::Value) -> Result<Exec, String> {
        let at = Position { file: Arc::from(std::path::Path::new("f")), line: 1, column: 1 };
        read(&Node::from_json(json, &at), Mode::Rendered).map_err(|problems| problems[0].to_string())
    }

    #[test]
    fn where_text_is_wanted_a_rendered_number_is_text_and_nothing_else_changes_its_type() {
        let exec =
            rendered(serde_json::json!({"argv": ["a", 5, true, 1.5], "env": {"A": 1}, "umask": 22})).unwrap();
        assert_eq!(exec.argv.unwrap(), ["a", "5", "True", "1.5"]);
        assert_eq!(exec.umask.unwrap().to_string(), "0022");
        for (json, said) in [
            (serde_json::json!({"argv": [["a"]]}), "expected text, found a list"),
            (serde_json::json!({"argv": [null]}), "expected text, found nothing"),
            (
                serde_json::json!({"output_bytes": "5"}),
                "expected a whole number from 0 to 18446744073709551615, found text",
            ),
            (serde_json::json!({"capture_out": "true"}), "expected true or false, found text"),
            (
                serde_json::json!({"output_bytes": -1}),
                "expected a whole number from 0 to 18446744073709551615",
            ),
            (serde_json::json!({"nonsense": 1}), "there is no field nonsense"),
        ] {
            let error = rendered(json).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
