//! The Sortie wire protocol, version 1: newline-delimited JSON between a controller and a runner.
//!
//! This crate knows messages, framing and errors. It must never know sockets, processes, clocks or async
//! runtimes: its only I/O is [`std::io::Read`] and [`std::io::Write`], and it makes no calls to the operating system.
//!
//! `docs/PROTOCOL.md` is the normative text; `protocol/vectors/` holds frames that both sides are tested against.
#![forbid(unsafe_code)]

pub mod command;
mod decode;
mod describe;
mod encode;
pub mod error;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod limits;
pub mod map;
pub mod message;
pub mod output;
mod parse;
pub mod passing;
#[cfg(feature = "schema")]
mod schema;
pub mod signed;
pub mod text;
pub mod time;
mod value;

pub use command::{CommandSpec, CommandType};
pub use decode::{Decode, Invalid, decode};
pub use encode::{Encode, Json, Object, encode, frame};
pub use error::{ErrorClass, ErrorCode};
pub use frame::{FRAME_LIMIT, FrameDecoder, Line};
pub use limits::{ResourceLimits, Usage};
pub use message::{ControllerMessage, RunnerMessage};
pub use parse::Rejected;
#[cfg(feature = "schema")]
pub use schema::schema;
pub use text::{Encoding, Stream};
pub use value::{InvalidValue, Mode, Secret, Sha256Hex};

/// The `protocol` object of READY: what this crate speaks.
pub const PROTOCOL_MAJOR: u32 = 1;
/// Raised with every addition that a peer may want to know of.
pub const PROTOCOL_MINOR: u32 = 2;
