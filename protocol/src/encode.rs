//! JSON written without code of its own for each type: the other half of `decode.rs`.
//!
//! A type brings a table of its fields (`shown!`), and each kind of value is written by one function. What is written
//! is what serde writes; a test of every command holds the two together.

use std::io::Write as _;

use serde_json::value::RawValue;

use crate::error::{ErrorClass, ErrorCode};
use crate::map::Map;
use crate::message::{Done, Level};
use crate::output::escape;
use crate::text::{Encoding, Stream};
use crate::time::Timestamp;

/// Bytes of text escaped at a time.
const PIECE: usize = 64 * 1024;

/// Something that stands in JSON.
pub trait Encode {
    /// Whether it is left out where it may be: the zero value.
    fn is_absent(&self) -> bool {
        false
    }

    /// Writes it.
    fn encode(&self, json: &mut Json<'_>);
}

/// An object by its fields; implemented by `shown!`.
pub trait Object {
    /// Names on the wire, and whether each may be left out.
    fn fields(&self) -> &'static [(&'static str, bool)];
    /// The value of a field, by the order of [`Self::fields`].
    fn field(&self, at: usize) -> Option<&dyn Encode>;
}

/// JSON as it is written, handed over in pieces if it is long.
pub struct Json<'a> {
    bytes: Vec<u8>,
    /// Takes what is there so far.
    take: Option<&'a mut dyn FnMut(Vec<u8>)>,
}

impl<'a> Json<'a> {
    /// Calls `take` with pieces of about 128 KiB at most, but for the last.
    pub fn in_pieces(take: &'a mut dyn FnMut(Vec<u8>)) -> Self {
        Self { bytes: Vec::new(), take: Some(take) }
    }

    /// What was not handed over.
    #[must_use]
    pub fn into_rest(self) -> Vec<u8> {
        self.bytes
    }

    /// JSON that is there already.
    fn raw(&mut self, json: &str) {
        for piece in json.as_bytes().chunks(PIECE) {
            self.make_room();
            self.bytes.extend_from_slice(piece);
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes.push(b'"');
        // Nothing is cut that matters: what is escaped is single bytes.
        for piece in text.as_bytes().chunks(PIECE) {
            self.make_room();
            escape(piece, &mut self.bytes);
        }
        self.bytes.push(b'"');
    }

    fn make_room(&mut self) {
        if let Some(take) = &mut self.take
            && self.bytes.len() >= PIECE
        {
            take(std::mem::take(&mut self.bytes));
        }
    }

    fn display(&mut self, value: &dyn std::fmt::Display) {
        // A Vec takes every write.
        let _ = write!(self.bytes, "{value}");
    }

    fn object(&mut self, object: &dyn Object) {
        self.bytes.push(b'{');
        let mut first = true;
        for (at, (name, may_be_absent)) in object.fields().iter().enumerate() {
            if let Some(value) = object.field(at)
                && !(*may_be_absent && value.is_absent())
            {
                self.member(&mut first, name.strip_prefix("r#").unwrap_or(name), value);
            }
        }
        self.bytes.push(b'}');
    }

    fn member(&mut self, first: &mut bool, name: &str, value: &dyn Encode) {
        if !std::mem::take(first) {
            self.bytes.push(b',');
        }
        self.text(name);
        self.bytes.push(b':');
        value.encode(self);
    }

    /// A frame: the envelope around `data`, and a newline.
    pub fn frame(&mut self, kind: &str, timestamp: Timestamp, data: &dyn Encode) {
        // A Vec takes every write.
        let _ = write!(self.bytes, "{{\"type\":\"{kind}\",\"timestamp\":\"{timestamp}\",\"data\":");
        data.encode(self);
        self.bytes.extend_from_slice(b"}\n");
    }
}

/// The JSON of a value.
#[must_use]
pub fn encode(value: &dyn Encode) -> Vec<u8> {
    let mut json = Json { bytes: Vec::new(), take: None };
    value.encode(&mut json);
    json.bytes
}

/// A frame as a line with its newline.
#[must_use]
pub fn frame(kind: &str, timestamp: Timestamp, data: &dyn Encode) -> Vec<u8> {
    let mut json = Json { bytes: Vec::new(), take: None };
    json.frame(kind, timestamp, data);
    json.bytes
}

/// Implements [`Object`]: `shown!(Type: changed action [diff])`, where those in brackets are left out at their zero value.
/// They stand in this order on the wire. One that is missing here does not compile.
macro_rules! shown {
    ($type:ident $(<$generic:ident>)? $(<$lifetime:lifetime>)?: $($($always:ident)* [$($may:ident)*])*) => {
        impl $(<$generic: $crate::encode::Encode>)? $(<$lifetime>)? $crate::encode::Object
            for $type $(<$generic>)? $(<$lifetime>)?
        {
            fn fields(&self) -> &'static [(&'static str, bool)] {
                &[$($((stringify!($always), false),)* $((stringify!($may), true),)*)*]
            }

            #[allow(unused_assignments, reason = "the field behind the last has a number too")]
            fn field(&self, at: usize) -> Option<&dyn $crate::encode::Encode> {
                let Self { $($($always,)* $($may,)*)* } = self;
                let mut number = 0;
                $(
                    $(
                        if at == number { return Some($always); }
                        number += 1;
                    )*
                    $(
                        if at == number { return Some($may); }
                        number += 1;
                    )*
                )*
                None
            }
        }
    };
}
pub(crate) use shown;

impl<T: Object> Encode for T {
    fn encode(&self, json: &mut Json<'_>) {
        json.object(self);
    }
}

impl Encode for &dyn Encode {
    fn encode(&self, json: &mut Json<'_>) {
        (**self).encode(json);
    }
}

impl<T: Encode> Encode for Option<T> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }

    fn encode(&self, json: &mut Json<'_>) {
        match self {
            Some(value) => value.encode(json),
            None => json.raw("null"),
        }
    }
}

impl Encode for String {
    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn encode(&self, json: &mut Json<'_>) {
        json.text(self);
    }
}

impl Encode for &str {
    fn encode(&self, json: &mut Json<'_>) {
        json.text(self);
    }
}

impl Encode for bool {
    fn is_absent(&self) -> bool {
        !*self
    }

    fn encode(&self, json: &mut Json<'_>) {
        json.raw(if *self { "true" } else { "false" });
    }
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Encode for $type {
            fn is_absent(&self) -> bool {
                *self == 0
            }

            fn encode(&self, json: &mut Json<'_>) {
                json.display(self);
            }
        }
    )*};
}
numbers!(u32, u64, i32, i64);

impl Encode for f64 {
    /// To the ninth decimal place, as all of them are seconds. Another algorithm would bring its tables.
    fn encode(&self, json: &mut Json<'_>) {
        let nanos = (self.abs() * 1e9 + 0.5) as u64;
        let sign = if *self < 0.0 { "-" } else { "" };
        let text = format!("{sign}{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
        let end = text.trim_end_matches('0');
        json.raw(end);
        if end.ends_with('.') {
            json.raw("0");
        }
    }
}

impl Encode for Box<RawValue> {
    fn encode(&self, json: &mut Json<'_>) {
        json.raw(self.get());
    }
}

impl Encode for &RawValue {
    fn encode(&self, json: &mut Json<'_>) {
        json.raw(self.get());
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn encode(&self, json: &mut Json<'_>) {
        json.raw("[");
        for (at, value) in self.iter().enumerate() {
            if at > 0 {
                json.raw(",");
            }
            value.encode(json);
        }
        json.raw("]");
    }
}

impl<T: Encode> Encode for Map<T> {
    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn encode(&self, json: &mut Json<'_>) {
        json.raw("{");
        let mut first = true;
        for (name, value) in self {
            json.member(&mut first, name, value);
        }
        json.raw("}");
    }
}

impl Encode for ErrorCode {
    fn encode(&self, json: &mut Json<'_>) {
        json.text(self.as_str());
    }
}

/// Writes an enumeration by its words.
macro_rules! shown_words {
    ($($type:ident { $($variant:ident = $word:literal),* })*) => {$(
        impl Encode for $type {
            fn encode(&self, json: &mut Json<'_>) {
                json.text(match self { $(Self::$variant => $word),* });
            }
        }
    )*};
}

shown_words! {
    Encoding { Base64 = "base64" }
    Stream { Stdout = "stdout", Stderr = "stderr", Stdin = "stdin" }
    Level { Info = "info", Warn = "warn", Debug = "debug" }
    ErrorClass { Transient = "transient", Throttled = "throttled", Conflict = "conflict", Permanent = "permanent" }
}

shown!(Done<R>: command_id result duration [metadata usage]);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::RunnerMessage;
    use crate::decode::tests::names_by_serde;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    /// Holds [`Encode`] and serde together for a type all of whose fields have defaults.
    pub(crate) fn agrees<T: Object + Default + Serialize + DeserializeOwned>() {
        let mut ours: Vec<_> = T::default().fields().iter().map(|(name, _)| *name).collect();
        let mut by_serde = names_by_serde::<T>();
        ours.sort_unstable();
        by_serde.sort_unstable();
        assert_eq!(ours, by_serde);

        let values =
            ["null", "true", "\"\"", "\"a\\n\\u00e9\\u0001\"", "\"base64\"", "0", "-7", "0.25", "[]"];
        let more = [
            "[\"a\",\"b\"]",
            "{}",
            "{\"a\":\"b\",\"c\":\"\"}",
            "{\"offset\":1,\"bytes\":2}",
            "[{\"name\":\"a\",\"installed_version\":\"1\"}]",
        ];
        for name in by_serde {
            let mut taken = 0;
            for value in values.iter().chain(&more) {
                let json = format!("{{\"{name}\":{value}}}");
                let Ok(object) = serde_json::from_str::<T>(&json) else { continue };
                taken += 1;
                let ours: serde_json::Value = serde_json::from_slice(&encode(&object)).unwrap();
                assert_eq!(ours, serde_json::to_value(&object).unwrap(), "{json}");
            }
            assert!(taken > 0, "no value for {name}");
        }
    }

    #[test]
    fn frames_are_those_that_serde_writes() {
        let timestamp = Timestamp::from_unix(1_704_067_200, 0);
        for line in include_str!("../vectors/runner.ndjson").lines() {
            let message = RunnerMessage::parse(line.as_bytes()).unwrap();
            let (kind, data) = message.parts();
            assert_eq!(String::from_utf8(frame(kind, timestamp, data)).unwrap(), format!("{line}\n"));
        }
    }

    #[test]
    fn long_text_comes_in_pieces() {
        let text = "\u{1}é\"x".repeat(3 * PIECE);
        let mut whole = Vec::new();
        let mut pieces = 0;
        let mut take = |piece: Vec<u8>| {
            assert!(piece.len() <= 7 * PIECE);
            whole.extend(piece);
            pieces += 1;
        };
        let mut json = Json::in_pieces(&mut take);
        text.encode(&mut json);
        let rest = json.into_rest();
        assert!(pieces > 3);
        whole.extend(rest);
        assert_eq!(serde_json::from_slice::<String>(&whole).unwrap(), text);
    }
}
