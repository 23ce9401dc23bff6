//! Reading a line: which message it is, or precisely why it is none, so that the runner can answer and live on.

use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::command::CommandType;
use crate::decode::{Invalid, Slot, decode, fields, read};
use crate::describe::describe;
use crate::error::ErrorCode;
use crate::limits::ResourceLimits;
use crate::map::Strings;
use crate::message::{Become, CommandMessage, ControllerMessage, RunnerMessage};
use crate::time::is_rfc3339;

#[derive(Default)]
struct Envelope<'a> {
    kind: String,
    timestamp: Option<String>,
    data: Option<&'a RawValue>,
}

fields!(Envelope<'a> { kind = "type"; timestamp, data });

/// Why a line is no message, as the ERROR that answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// `INVALID_CMD` or `UNSUPPORTED`.
    pub code: ErrorCode,
    /// The command it belongs to, where that could be read.
    pub command_id: String,
    /// The sequence it belongs to, where that could be read: it has failed.
    pub sequence: String,
    /// For people.
    pub message: String,
}

impl Rejected {
    fn invalid(message: String) -> Self {
        let (command_id, sequence) = (String::new(), String::new());
        Self { code: ErrorCode::InvalidCmd, command_id, sequence, message }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Rejected {}

fn envelope(line: &[u8]) -> Result<Envelope<'_>, Rejected> {
    let not_a_frame = |error: &dyn fmt::Display| Rejected::invalid(format!("not a frame: {error}"));
    let line = std::str::from_utf8(line).map_err(|error| not_a_frame(&error))?;
    let envelope: Envelope<'_> = decode(line).map_err(|error| not_a_frame(&error))?;
    if let Some(timestamp) = &envelope.timestamp
        && !is_rfc3339(timestamp)
    {
        return Err(Rejected::invalid("timestamp is not an RFC 3339 date-time".into()));
    }
    Ok(envelope)
}

impl RunnerMessage {
    /// Reads one line of a runner.
    ///
    /// # Errors
    /// [`Rejected`] when the line is no message of a runner.
    pub fn parse(line: &[u8]) -> Result<Self, Rejected> {
        fn read<'a, T: Deserialize<'a>>(data: &'a str) -> Result<T, String> {
            serde_json::from_str(data).map_err(|error| describe(data, &error))
        }
        let envelope = envelope(line)?;
        let data = envelope.data.map_or("null", RawValue::get);
        let message = match envelope.kind.as_str() {
            "READY" => read(data).map(Self::Ready),
            "EVENT" => read(data).map(Self::Event),
            "DONE" => read(data).map(Self::Done),
            "ERROR" => read(data).map(Self::Error),
            "EXIT" => read(data).map(Self::Exit),
            "CREDIT" => read(data).map(Self::Credit),
            "PONG" => read(data).map(Self::Pong),
            other => return Err(unknown_type(other, ControllerMessage::TYPES)),
        };
        message.map_err(|error| refused(&envelope.kind, &error))
    }
}

impl ControllerMessage {
    /// Reads one line of a controller, with the reference's order of checks: id, command type, timeout, params.
    ///
    /// # Errors
    /// [`Rejected`] with what to answer when the line is no message of a controller.
    pub fn parse(line: &[u8]) -> Result<Self, Rejected> {
        let envelope = envelope(line)?;
        // PING and SHUTDOWN have no field that must be there.
        let data = envelope.data.map_or("{}", RawValue::get);
        let message = match envelope.kind.as_str() {
            "CMD" if envelope.data.is_none() => return Err(Rejected::invalid("CMD without data".into())),
            "CMD" => return parse_command(data).map(|command| Self::Command(Box::new(command))),
            "INPUT" => decode(data).map(Self::Input),
            "CREDIT" => decode(data).map(Self::Credit),
            "CANCEL" => decode(data).map(Self::Cancel),
            "PING" => decode(data).map(Self::Ping),
            "CONFIRM" => decode(data).map(Self::Confirm),
            "SIGNED" => decode(data).map(Self::Signed),
            "SHUTDOWN" => decode(data).map(Self::Shutdown),
            other => return Err(unknown_type(other, RunnerMessage::TYPES)),
        };
        message.map_err(|error| refused(&envelope.kind, &error))
    }
}

fn refused(kind: &str, error: &dyn fmt::Display) -> Rejected {
    Rejected::invalid(format!("{kind} frame: {error}"))
}

fn unknown_type(kind: &str, other_direction: &[&str]) -> Rejected {
    let shown: String = kind.chars().take(40).collect();
    if other_direction.contains(&kind) {
        return Rejected::invalid(format!("{shown} frames go the other way"));
    }
    Rejected { code: ErrorCode::Unsupported, ..Rejected::invalid(format!("unknown frame type {shown:?}")) }
}

/// A CMD as it is read. What it must have is optional here, so that the first thing missing can be named.
#[derive(Default)]
pub(crate) struct CommandDraft<'a> {
    id: String,
    kind: String,
    timeout: i64,
    params: Params<'a>,
    idempotency_key: String,
    signature: String,
    metadata: Strings,
    check: bool,
    diff: bool,
    r#become: Option<Become>,
    window: Option<u64>,
    sequence: String,
    limits: Option<ResourceLimits>,
    usage: bool,
}

fields!(CommandDraft<'a> {
    ;
    id, kind = "type", timeout, params, idempotency_key, signature, metadata, check, diff, r#become = "become", window,
    sequence, limits, usage
});

/// Parameters as they stand in the frame; null, which the reference accepts, is not absent.
#[derive(Default)]
struct Params<'a>(Option<&'a RawValue>);

impl<'a> Slot<'a> for Params<'a> {
    fn put(&mut self, json: &'a RawValue) -> Result<(), Invalid> {
        self.0 = Some(json);
        Ok(())
    }
}

pub(crate) fn parse_command(data: &str) -> Result<CommandMessage, Rejected> {
    let mut draft = CommandDraft::default();
    let read = read(&mut draft, data);
    // With its id, so that whoever waits for the answer to that id gets it.
    let rejected = |message| {
        let (command_id, sequence) = (draft.id.clone(), draft.sequence.clone());
        Rejected { command_id, sequence, ..Rejected::invalid(message) }
    };
    if let Err(error) = read {
        return Err(rejected(format!("CMD frame: {error}")));
    }
    if draft.id.is_empty() {
        return Err(rejected("command id is required".into()));
    }
    let Some(kind) = CommandType::from_name(&draft.kind) else {
        let shown: String = draft.kind.chars().take(40).collect();
        return Err(rejected(format!("unknown command type {shown:?}")));
    };
    let Some(timeout) = u64::try_from(draft.timeout).ok().filter(|seconds| *seconds > 0) else {
        return Err(rejected("timeout must be a whole number of seconds above 0".into()));
    };
    let Some(params) = draft.params.0 else { return Err(rejected("params are required".into())) };
    Ok(CommandMessage {
        id: draft.id,
        kind,
        timeout,
        params: params.to_owned(),
        idempotency_key: draft.idempotency_key,
        signature: draft.signature,
        metadata: draft.metadata,
        check: draft.check,
        diff: draft.diff,
        r#become: draft.r#become,
        window: draft.window,
        sequence: draft.sequence,
        limits: draft.limits,
        usage: draft.usage,
    })
}
