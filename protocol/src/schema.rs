//! The JSON Schema of the whole protocol, made from the types.

use serde_json::{Value, json};

use crate::command;
use crate::message::{ControllerMessage, RunnerMessage};
use crate::signed::Statement;
use crate::{PROTOCOL_MAJOR, PROTOCOL_MINOR};

/// A JSON Schema (draft 2020-12) of a line in either direction, with params and result of every command under `$defs`.
#[must_use]
pub fn schema() -> Value {
    let mut generator = schemars::SchemaGenerator::default();
    let directions =
        [generator.subschema_for::<ControllerMessage>(), generator.subschema_for::<RunnerMessage>()];
    let statement = generator.subschema_for::<Statement>();
    let commands: serde_json::Map<String, Value> = command::schemas(&mut generator)
        .into_iter()
        .map(|(name, params, result)| (name.to_owned(), json!({"params": params, "result": result})))
        .collect();
    let mut definitions = generator.take_definitions(true);
    // The envelope's timestamp stands outside the tagged types.
    for direction in ["ControllerMessage", "RunnerMessage"] {
        let frames =
            definitions.get_mut(direction).and_then(|d| d.get_mut("oneOf")).and_then(Value::as_array_mut);
        for frame in frames.into_iter().flatten() {
            frame["properties"]["timestamp"] = json!({"type": "string", "format": "date-time"});
        }
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("Sortie wire protocol {PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"),
        "description": "One line in either direction. Params and results of each command are under \"commands\", what `text` of SIGNED holds under \"statement\".",
        "anyOf": directions,
        "commands": commands,
        "statement": statement,
        "$defs": definitions,
    })
}
