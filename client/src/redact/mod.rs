//! The one place that decides what of commands, frames and answers may leave the client: in the audit log, in traces, in
//! events and in errors. Knows no files, no terminals and no sessions.
//!
//! What is secret is known by its type, [`sortie_protocol::Secret`], and not by a list of names that somebody has to
//! keep: passwords, standard input, the content of files. Besides those, values of environment variables stay out
//! (their names do not), and all but the program of a command that its caller calls sensitive.

use serde_json::value::RawValue;
use serde_json::{Value, json};
use sortie_protocol::command::CommandVisitor;
use sortie_protocol::message::{ErrorFrame, Strings};
use sortie_protocol::signed::Statement;
use sortie_protocol::{CommandSpec, CommandType, ControllerMessage, RunnerMessage};

use crate::error::printable;
use crate::session::output_len;

mod values;

use values::Redacting;

/// Stands for what is not told.
pub const REDACTED: &str = "[redacted]";

/// Strings of parameters that are longer than this, in bytes, are cut.
pub const LONGEST: usize = 4096;

/// The parameters of a command, fit to be written down: without secrets, long strings cut.
///
/// Fields that the command does not have are left out: they mean nothing to a runner. Parameters that are none of this
/// command are not told at all; a runner refuses them. With `sensitive` the arguments of a program are left out too.
#[must_use]
pub fn params(kind: CommandType, params: &RawValue, sensitive: bool) -> Value {
    struct Visitor<'a>(&'a RawValue);
    impl CommandVisitor for Visitor<'_> {
        type Output = Option<Value>;
        fn visit<C: CommandSpec + Default>(self) -> Self::Output {
            let typed: C = match self.0.get() {
                "null" => C::default(),
                text => serde_json::from_str(text).ok()?,
            };
            typed.serialize(Redacting).ok()
        }
    }
    let Some(mut shown) = kind.visit(Visitor(params)) else {
        return json!(format!("[{} bytes that are no parameters of {}]", params.get().len(), kind.name()));
    };
    if sensitive && kind == CommandType::Exec {
        withhold_arguments(&mut shown);
    }
    shown
}

/// Arguments may be secrets; the program is not.
fn withhold_arguments(exec: &mut Value) {
    let Some(fields) = exec.as_object_mut() else { return };
    if let Some(argv) = fields.get_mut("argv").and_then(Value::as_array_mut) {
        argv.iter_mut().skip(1).for_each(|argument| *argument = json!(REDACTED));
    }
    match fields.get_mut("args").and_then(Value::as_array_mut) {
        Some(args) if !args.is_empty() => args.iter_mut().for_each(|argument| *argument = json!(REDACTED)),
        // A line of shell has its arguments in it.
        _ => {
            if let Some(command) = fields.get_mut("command") {
                *command = json!(REDACTED);
            }
        }
    }
}

/// An ERROR about a command that its caller calls sensitive: its code and class stay.
pub fn withhold(error: &mut ErrorFrame) {
    error.message = "it failed; more is not told, for it is sensitive".to_owned();
    error.details = Strings::new();
}

/// A frame of ours in a few words: its kind's own numbers, and nothing that a user put in.
#[must_use]
pub fn sent(message: &ControllerMessage) -> String {
    match message {
        ControllerMessage::Command(c) => {
            format!("{}, timeout {} s, params of {} bytes", c.kind.name(), c.timeout, c.params.get().len())
        }
        ControllerMessage::Input(i) => {
            format!("{} bytes{}", i.data.len(), if i.eof { ", the last" } else { "" })
        }
        ControllerMessage::Credit(c) => format!("{:?}, {} bytes", c.stream, c.bytes),
        ControllerMessage::Cancel(_) | ControllerMessage::Confirm(_) | ControllerMessage::Ping(_) => {
            String::new()
        }
        ControllerMessage::Signed(s) => match Statement::parse(&s.text) {
            Ok(Statement { command: Some(c), .. }) => sent(&ControllerMessage::Command(c)),
            _ => String::new(),
        },
        ControllerMessage::Shutdown(s) => {
            s.grace.map_or_else(String::new, |grace| format!("grace {grace} s"))
        }
    }
}

/// A frame of the runner in a few words: no output, no results, and its own words escaped.
#[must_use]
pub fn received(message: &RunnerMessage) -> String {
    match message {
        RunnerMessage::Ready(ready) => {
            let word = |text: &str| printable(text.as_bytes(), 100);
            format!("{} {} pid {}", word(&ready.version), word(&ready.arch), ready.pid)
        }
        RunnerMessage::Event(event) => match event.stream {
            Some(stream) => format!("{stream:?}, {} bytes", output_len(event)),
            None => format!("{:?}", event.level),
        },
        RunnerMessage::Done(done) => format!("{:.3} s", done.duration),
        RunnerMessage::Error(error) => printable(error.code.to_string().as_bytes(), 100),
        RunnerMessage::Exit(exit) => format!("{:?}, status {}", exit.reason, exit.exit_code),
        RunnerMessage::Credit(credit) => format!("{:?}, {} bytes", credit.stream, credit.bytes),
        RunnerMessage::Pong(_) => String::new(),
    }
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
