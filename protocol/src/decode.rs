//! Objects read member by member to where they belong, by one loop and one parser for all of them.
//!
//! What serde derives is written anew for every type and was a quarter of the whole runner. Here a type brings the table
//! of its fields (`fields!`), and each kind of value is read by one function. What is accepted is what serde accepts,
//! save objects written as arrays; a test of every command holds the two together. Errors never echo a value: it may be
//! a password.

use std::fmt;
use std::str::FromStr;

use serde_json::value::RawValue;

use crate::map::Strings;
use crate::text::unescape;
use crate::value::{InvalidValue, Mode, Secret, Sha256Hex};

/// Why a piece of JSON is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Names of the fields around it, joined by dots; empty for the whole.
    field: String,
    reason: String,
}

impl Invalid {
    #[cold]
    fn new(reason: impl Into<String>) -> Self {
        Self { field: String::new(), reason: reason.into() }
    }

    #[cold]
    pub(crate) fn expected(what: &str) -> Self {
        Self::new(format!("expected {what}"))
    }

    #[cold]
    fn syntax(error: &serde_json::Error) -> Self {
        let full = error.to_string();
        Self::new(full.rfind(" at line ").map_or(full.as_str(), |at| &full[..at]))
    }

    #[cold]
    fn inside(mut self, name: &str) -> Self {
        let name: String = name.chars().take(40).collect();
        self.field = if self.field.is_empty() { name } else { format!("{name}.{}", self.field) };
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Invalid {}

/// The fields of an object by their names on the wire.
#[derive(Debug, Clone, Copy)]
pub struct Fields {
    /// Those that must be there come first.
    pub(crate) names: &'static [&'static str],
    pub(crate) required: usize,
}

/// An object whose fields are known; implemented by `fields!`.
pub trait Decode<'a> {
    /// Its fields, in the order of [`Self::slot`].
    fn fields(&self) -> Fields;
    /// Where the value of a field goes.
    fn slot(&mut self, at: usize) -> Option<&mut dyn Slot<'a>>;
}

/// The place of one field.
pub trait Slot<'a> {
    /// Reads the value into it; `null` is the value it has by default, as Go clients write nil slices and maps.
    ///
    /// # Errors
    /// [`Invalid`] where the value is of another type or outside its range.
    fn put(&mut self, json: &'a RawValue) -> Result<(), Invalid>;
}

/// What can be the value of a field, optional or not.
pub(crate) trait Value<'a>: Sized {
    /// The value; none where nothing is meant: `null`, and `""` where that means unset.
    fn read(json: &'a RawValue) -> Result<Option<Self>, Invalid>;
}

impl<'a, T: Value<'a> + Default> Slot<'a> for T {
    fn put(&mut self, json: &'a RawValue) -> Result<(), Invalid> {
        *self = T::read(json)?.unwrap_or_default();
        Ok(())
    }
}

impl<'a, T: Value<'a>> Slot<'a> for Option<T> {
    fn put(&mut self, json: &'a RawValue) -> Result<(), Invalid> {
        *self = T::read(json)?;
        Ok(())
    }
}

/// Implements [`Decode`] for a type with a `Default`: `fields!(Type { fields that must be there; fields that may })`.
/// A field whose name on the wire is another is written `field = "name"`. One that is left out does not compile.
macro_rules! fields {
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $wire:literal) => { $wire };
    ($type:ty $(where $generic:ident: $bound:path)? {
        $($required:ident $(= $required_wire:literal)?),*;
        $($optional:ident $(= $optional_wire:literal)?),* $(,)?
    }) => {
        impl<'a $(, $generic: $bound)?> $crate::decode::Decode<'a> for $type {
            fn fields(&self) -> $crate::decode::Fields {
                const REQUIRED: &[&str] = &[$($crate::decode::fields!(@name $required $($required_wire)?)),*];
                const NAMES: &[&str] = &[
                    $($crate::decode::fields!(@name $required $($required_wire)?),)*
                    $($crate::decode::fields!(@name $optional $($optional_wire)?),)*
                ];
                // One bit each says whether it was there.
                const { assert!(NAMES.len() <= 64) };
                $crate::decode::Fields { names: NAMES, required: REQUIRED.len() }
            }

            #[allow(unused_assignments, reason = "the field behind the last has a number too")]
            fn slot(&mut self, at: usize) -> Option<&mut dyn $crate::decode::Slot<'a>> {
                let Self { $($required,)* $($optional,)* } = self;
                let mut number = 0;
                $(
                    if at == number { return Some($required); }
                    number += 1;
                )*
                $(
                    if at == number { return Some($optional); }
                    number += 1;
                )*
                None
            }
        }

        impl<'a $(, $generic: $bound + Default)?> $crate::decode::Value<'a> for $type {
            fn read(json: &'a serde_json::value::RawValue) -> Result<Option<Self>, $crate::decode::Invalid> {
                if json.get() == "null" { Ok(None) } else { $crate::decode::decode(json.get()).map(Some) }
            }
        }
    };
}
pub(crate) use fields;

/// Makes an enumeration of words a value: `words!(Type { Variant = "word", … })`.
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),* }) => {
        impl<'a> $crate::decode::Value<'a> for $type {
            fn read(json: &'a serde_json::value::RawValue) -> Result<Option<Self>, $crate::decode::Invalid> {
                let word = $crate::decode::word(json, &[$($word),*])?;
                Ok(word.map(|at| [$(Self::$variant),*][at]))
            }
        }
    };
}
pub(crate) use words;

/// Reads an object. Members that it has no field for are passed over.
///
/// # Errors
/// [`Invalid`] with the first field that is wrong, given twice or missing.
pub fn decode<'a, T: Decode<'a> + Default>(json: &'a str) -> Result<T, Invalid> {
    let mut object = T::default();
    read(&mut object, json)?;
    Ok(object)
}

/// As [`decode`], into an object that is there: what can be read of it is there also after an error.
pub(crate) fn read<'a>(object: &mut dyn Decode<'a>, json: &'a str) -> Result<(), Invalid> {
    let Fields { names, required } = object.fields();
    let mut seen = 0_u64;
    let mut problem = Ok(());
    members(json, &mut |name, value| {
        let Some(at) = names.iter().position(|known| *known == name) else { return };
        let twice = seen & (1 << at) != 0;
        seen |= 1 << at;
        let result = match object.slot(at) {
            _ if at < required && value.get() == "null" => Err(Invalid::new("must not be null")),
            Some(slot) if !twice => slot.put(value),
            _ => Err(Invalid::new("given twice")),
        };
        if let (Ok(()), Err(error)) = (&problem, result) {
            problem = Err(error.inside(name));
        }
    })?;
    problem?;
    match names[..required].iter().enumerate().find(|(at, _)| seen & (1 << at) == 0) {
        Some((_, name)) => Err(Invalid::new(format!("missing field `{name}`"))),
        None => Ok(()),
    }
}

/// Calls `each` with name and value of every member of an object.
pub(crate) fn members<'a>(json: &'a str, each: &mut dyn FnMut(&str, &'a RawValue)) -> Result<(), Invalid> {
    parts(json, ["{", "}"], "an object", &mut |part| {
        let (name, value) = part.split_at(outer(part, b':'));
        let name = some_text(raw(name)?)?;
        each(&name, raw(value.get(1..).unwrap_or_default())?);
        Ok(())
    })
}

/// Calls `each` with every element of an array, until the first error.
fn elements<'a>(
    json: &'a str,
    each: &mut dyn FnMut(&'a RawValue) -> Result<(), Invalid>,
) -> Result<(), Invalid> {
    parts(json, ["[", "]"], "an array", &mut |part| each(raw(part)?))
}

/// Calls `each` with what stands between the commas of an object or an array. It has to see to it that each part is JSON,
/// and then the whole is.
fn parts<'a>(
    json: &'a str,
    brackets: [&str; 2],
    what: &str,
    each: &mut dyn FnMut(&'a str) -> Result<(), Invalid>,
) -> Result<(), Invalid> {
    let json = json.trim_matches(BLANK);
    let inside = json.strip_prefix(brackets[0]).and_then(|json| json.strip_suffix(brackets[1]));
    let Some(mut rest) = inside else {
        if json.starts_with(brackets[0]) {
            // It was cut short: the parser says it best.
            raw(json)?;
        }
        return Err(Invalid::expected(what));
    };
    if rest.trim_matches(BLANK).is_empty() {
        return Ok(());
    }
    loop {
        let (part, later) = rest.split_at(outer(rest, b','));
        each(part)?;
        match later.get(1..) {
            Some(later) => rest = later,
            None => return Ok(()),
        }
    }
}

/// Blanks of JSON (RFC 8259 §2).
const BLANK: [char; 4] = [' ', '\t', '\n', '\r'];

/// Where `mark` stands first, outside of strings and brackets; the end if it does nowhere.
fn outer(json: &str, mark: u8) -> usize {
    let bytes = json.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = string_end(bytes, at),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            byte if *byte == mark && depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

/// Where the string ends that begins at `begin`: its last quote.
fn string_end(json: &[u8], begin: usize) -> usize {
    let mut at = begin + 1;
    while let Some(plain) = memchr::memchr(b'"', &json[at..]) {
        at += plain;
        let escapes = json[begin + 1..at].iter().rev().take_while(|byte| **byte == b'\\').count();
        if escapes % 2 == 0 {
            return at;
        }
        at += 1;
    }
    json.len()
}

/// One value, if it is JSON.
fn raw(json: &str) -> Result<&RawValue, Invalid> {
    serde_json::from_str(json).map_err(|error| Invalid::syntax(&error))
}

/// A string, none for `null`.
fn text(json: &RawValue) -> Result<Option<String>, Invalid> {
    match json.get() {
        "null" => Ok(None),
        json if json.starts_with('"') => match unescape(json) {
            Some(text) => Ok(Some(text)),
            None => Err(Invalid::new("a \\u escape that is no character")),
        },
        _ => Err(Invalid::expected("a string")),
    }
}

/// A string that must be there.
fn some_text(json: &RawValue) -> Result<String, Invalid> {
    text(json)?.ok_or_else(|| Invalid::expected("a string"))
}

/// One of some words by its number, none for `null`; for `words!`.
pub(crate) fn word(json: &RawValue, words: &[&str]) -> Result<Option<usize>, Invalid> {
    let Some(text) = text(json)? else { return Ok(None) };
    let found = words.iter().position(|word| *word == text);
    found.map(Some).ok_or_else(|| Invalid::expected(&words.join(" or ")))
}

/// A string of its own grammar, none for `null` and, as Go clients write unset strings, for `""`.
fn parsed<T: FromStr<Err = InvalidValue>>(json: &RawValue) -> Result<Option<T>, Invalid> {
    match text(json)? {
        Some(text) if !text.is_empty() => {
            text.parse().map(Some).map_err(|InvalidValue(reason)| Invalid::new(reason))
        }
        _ => Ok(None),
    }
}

/// As serde_json, which takes `-0` for a floating-point number.
fn whole_number(json: &RawValue, least: i64, most: u64) -> Result<Option<i128>, Invalid> {
    let text = json.get();
    if text == "null" {
        return Ok(None);
    }
    let number = match text.strip_prefix('-') {
        Some("0") => None,
        Some(_) => text.parse::<i64>().ok().map(i128::from),
        None => text.parse::<u64>().ok().map(i128::from),
    };
    let number = number.filter(|n| (i128::from(least)..=i128::from(most)).contains(n));
    number.map(Some).ok_or_else(|| Invalid::expected(&format!("a whole number from {least} to {most}")))
}

macro_rules! whole_numbers {
    ($($type:ty),*) => {$(
        impl<'a> Value<'a> for $type {
            fn read(json: &'a RawValue) -> Result<Option<Self>, Invalid> {
                Ok(whole_number(json, <$type>::MIN as i64, <$type>::MAX as u64)?.map(|n| n as $type))
            }
        }
    )*};
}
whole_numbers!(u16, u32, u64, i32, i64);

impl<'a> Value<'a> for bool {
    fn read(json: &'a RawValue) -> Result<Option<Self>, Invalid> {
        match json.get() {
            "null" => Ok(None),
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => Err(Invalid::expected("a boolean")),
        }
    }
}

impl<'a> Value<'a> for String {
    fn read(json: &'a RawValue) -> Result<Option<Self>, Invalid> {
        Ok(text(json)?.filter(|text| !text.is_empty()))
    }
}

impl<'a> Value<'a> for Secret {
    fn read(json: &'a RawValue) -> Result<Option<Self>, Invalid> {
        Ok(text(json)?.map(Self::new))
    }
}

impl<'a> Value<'a> for Mode {
    fn read(json: &'a RawValue) -> Result<Option<Self>, Invalid> {
        parsed(json)
    }
}

impl<'a> Value<'a> for Sha256Hex {
    fn read(json: &'a RawValue) -> Result<Option<Self>, Invalid> {
        parsed(json)
    }
}

impl<'a> Value<'a> for Vec<String> {
    fn read(json: &'a RawValue) -> Result<Option<Self>, Invalid> {
        if json.get() == "null" {
            return Ok(None);
        }
        let mut list = Vec::new();
        elements(json.get(), &mut |element| {
            list.push(some_text(element)?);
            Ok(())
        })?;
        Ok(Some(list))
    }
}

impl<'a> Value<'a> for Strings {
    fn read(json: &'a RawValue) -> Result<Option<Self>, Invalid> {
        if json.get() == "null" {
            return Ok(None);
        }
        let mut entries = Vec::new();
        let mut problem = Ok(());
        members(json.get(), &mut |name, value| match some_text(value) {
            Ok(text) => entries.push((name.to_owned(), text)),
            Err(error) => problem = Err(error.inside(name)),
        })?;
        problem.map(|()| Some(entries.into_iter().collect()))
    }
}

/// The JSON itself, where it stands.
impl<'a> Slot<'a> for Option<&'a RawValue> {
    fn put(&mut self, json: &'a RawValue) -> Result<(), Invalid> {
        *self = (json.get() != "null").then_some(json);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;
    use serde::de::Visitor;
    use serde::{Deserialize, Serialize, forward_to_deserialize_any};
    use std::cell::Cell;

    use crate::command::exec::Exec;
    use crate::message::{Become, Cancel, CommandMessage, Confirm, Credit, Input, Ping, Shutdown};
    use crate::parse::CommandDraft;

    /// The names of the fields that serde knows of a type.
    pub(crate) fn names_by_serde<'de, T: Deserialize<'de>>() -> Vec<&'static str> {
        struct Asked<'a>(&'a Cell<&'static [&'static str]>);
        impl<'de> serde::Deserializer<'de> for Asked<'_> {
            type Error = serde::de::value::Error;

            fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
                Err(serde::de::Error::custom("only asked for names"))
            }

            fn deserialize_struct<V: Visitor<'de>>(
                self,
                _: &'static str,
                fields: &'static [&'static str],
                visitor: V,
            ) -> Result<V::Value, Self::Error> {
                self.0.set(fields);
                self.deserialize_any(visitor)
            }

            forward_to_deserialize_any! {
                bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
                unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
            }
        }
        let names = Cell::new(&[][..]);
        let _ = T::deserialize(Asked(&names));
        names.get().to_vec()
    }

    /// Values that some field takes, and values that none does.
    fn value() -> impl Strategy<Value = String> {
        let scalar = prop_oneof![
            Just("null"),
            Just("true"),
            Just("false"),
            Just("\"\""),
            Just("\"0644\""),
            Just("\"9\""),
            Just("\"a\\n\\u00e9\\ud83d\\ude00\""),
            Just("\"\\ud800\""),
            Just("\"input\""),
            Just("\"base64\""),
            Just("\"stdin\""),
            Just("\"sudo\""),
            Just("0"),
            Just("-0"),
            Just("-1"),
            Just("1.0"),
            Just("1e2"),
            Just("65535"),
            Just("65536"),
            Just("4294967296"),
            Just("9223372036854775808"),
            Just("18446744073709551615"),
            Just("18446744073709551616"),
            Just("-9223372036854775808"),
        ];
        let scalar = scalar.prop_map(str::to_owned).boxed();
        let digest = Just(format!("\"{}\"", "aB".repeat(32)));
        let list =
            proptest::collection::vec(scalar.clone(), 0..3).prop_map(|v| format!("[{}]", v.join(" , ")));
        let name = prop_oneof![Just("A"), Just("nice"), Just("open_files"), Just("user"), Just("method")];
        let member = (name, scalar.clone()).prop_map(|(name, value)| format!("\"{name}\":{value}"));
        let map = proptest::collection::vec(member, 0..3).prop_map(|v| format!("{{ {} }}", v.join(",")));
        let strings =
            prop_oneof![Just("[\"a\",\"\"]".to_owned()), Just("{\"A\":\"\",\"A\":\"b\"}".to_owned())];
        prop_oneof![8 => scalar, 1 => digest, 2 => list, 2 => map, 2 => strings]
    }

    /// Holds [`Decode`] and serde together for a type: the same fields, and the same of any object.
    pub(crate) fn agrees<T>()
    where
        T: for<'a> Decode<'a> + Default + Serialize + DeserializeOwned,
    {
        let fields = T::default().fields();
        let mut ours = fields.names.to_vec();
        let mut by_serde = names_by_serde::<T>();
        ours.sort_unstable();
        by_serde.sort_unstable();
        assert_eq!(ours, by_serde);

        let names: Vec<String> =
            fields.names.iter().map(ToString::to_string).chain(["other".into()]).collect();
        let member = (proptest::sample::select(names), value());
        let object = proptest::collection::vec(member, 0..5);
        proptest!(ProptestConfig::with_cases(2000), |(members in object)| {
            let members: Vec<_> = members.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
            let json = format!("{{{}}}", members.join(","));
            // An object as an array is what serde alone takes.
            prop_assume!(!json.contains("\"limits\": ["));
            let by_serde = serde_json::from_str::<T>(&json).ok().map(|v| serde_json::to_string(&v).unwrap());
            let ours = decode::<T>(&json).ok().map(|v| serde_json::to_string(&v).unwrap());
            prop_assert_eq!(ours, by_serde, "{}", json);
        });
    }

    #[test]
    fn messages_agree_with_serde() {
        let mut command = names_by_serde::<CommandMessage>();
        let mut draft = CommandDraft::default().fields().names.to_vec();
        command.sort_unstable();
        draft.sort_unstable();
        assert_eq!(draft, command);
        agrees::<Become>();
        agrees::<Input>();
        agrees::<Credit>();
        agrees::<Cancel>();
        agrees::<Ping>();
        agrees::<Confirm>();
        agrees::<crate::signed::Signed>();
        agrees::<Shutdown>();
    }

    fn error(params: &str) -> String {
        decode::<Exec>(params).unwrap_err().to_string()
    }

    #[test]
    fn the_field_is_named_and_the_value_is_not() {
        assert_eq!(error(r#"{"command":"x","capture_out":"hunter2"}"#), "capture_out: expected a boolean");
        assert_eq!(error(r#"{"command":"x","sudo_password":12345}"#), "sudo_password: expected a string");
        assert_eq!(error(r#"{"args":["a",5],"command":"x"}"#), "args: expected a string");
        assert_eq!(error(r#"{"env":{"A":5}}"#), "env.A: expected a string");
        assert_eq!(
            error(r#"{"limits":{"nice":"x"}}"#),
            "limits.nice: expected a whole number from -2147483648 to 2147483647"
        );
        assert_eq!(error(r#"{"stdin_encoding":"hunter2"}"#), "stdin_encoding: expected base64");
        assert_eq!(error(r#"{"shell":"a","shell":"b"}"#), "shell: given twice");
        assert!(error(r#"{"umask":"9"}"#).starts_with("umask: mode \"9\" is not"));
        assert_eq!(error("[1]"), "expected an object");
        assert!(error(r#"{"command":"#).contains("EOF"));
    }
}
