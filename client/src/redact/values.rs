//! From parameters to JSON without their secrets: a serde serializer that knows a secret when it is told of one.

use std::fmt;

use serde::ser::{
    Error as _, Impossible, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeTuple,
    Serializer,
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use sortie_protocol::{Secret, Sha256Hex};

use super::{LONGEST, REDACTED};

/// How much is told of a string that is cut, in bytes.
const HEAD: usize = 1024;

/// Gives a [`Value`] in which each [`Secret`], and each value of an environment, is [`REDACTED`].
#[derive(Clone, Copy)]
pub(super) struct Redacting;

/// Parameters are made of what JSON has; anything else is an error, and then nothing is told.
#[derive(Debug)]
pub(super) struct Unsupported;

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a parameter")
    }
}

impl std::error::Error for Unsupported {}

impl serde::ser::Error for Unsupported {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

fn bounded(text: &str) -> Value {
    if text.len() <= LONGEST {
        return text.into();
    }
    let digest = Sha256Hex::from_bytes(&Sha256::digest(text).into());
    let end = (0..=HEAD).rev().find(|&end| text.is_char_boundary(end)).unwrap_or_default();
    let head = &text[..end];
    format!("{head}… [{} bytes in all, SHA-256 {digest}]", text.len()).into()
}

macro_rules! plain {
    ($($method:ident($type:ty);)*) => {
        $(fn $method(self, value: $type) -> Result<Value, Unsupported> {
            Ok(value.into())
        })*
    };
}

impl Serializer for Redacting {
    type Ok = Value;
    type Error = Unsupported;
    type SerializeSeq = Items;
    type SerializeTuple = Items;
    type SerializeTupleStruct = Impossible<Value, Unsupported>;
    type SerializeTupleVariant = Impossible<Value, Unsupported>;
    type SerializeMap = Members;
    type SerializeStruct = Members;
    type SerializeStructVariant = Impossible<Value, Unsupported>;

    plain! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_f32(f32);
        serialize_f64(f64);
    }

    fn serialize_char(self, value: char) -> Result<Value, Unsupported> {
        Ok(value.to_string().into())
    }

    fn serialize_str(self, value: &str) -> Result<Value, Unsupported> {
        Ok(bounded(value))
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<Value, Unsupported> {
        Err(Unsupported)
    }

    fn serialize_none(self) -> Result<Value, Unsupported> {
        Ok(Value::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, Unsupported> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<Value, Unsupported> {
        Ok(Value::Null)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Value, Unsupported> {
        Ok(Value::Null)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<Value, Unsupported> {
        Ok(variant.into())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<Value, Unsupported> {
        if name == Secret::NAME { Ok(REDACTED.into()) } else { value.serialize(self) }
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Value, Unsupported> {
        Ok(Value::Object(Map::from_iter([(variant.to_owned(), value.serialize(self)?)])))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Items, Unsupported> {
        Ok(Items(Vec::new()))
    }

    fn serialize_tuple(self, _: usize) -> Result<Items, Unsupported> {
        Ok(Items(Vec::new()))
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, Unsupported> {
        Err(Unsupported)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Unsupported> {
        Err(Unsupported)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Members, Unsupported> {
        Ok(Members::default())
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Members, Unsupported> {
        Ok(Members::default())
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Unsupported> {
        Err(Unsupported)
    }
}

/// A list that is being made.
pub(super) struct Items(Vec<Value>);

impl SerializeSeq for Items {
    type Ok = Value;
    type Error = Unsupported;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unsupported> {
        self.0.push(value.serialize(Redacting)?);
        Ok(())
    }

    fn end(self) -> Result<Value, Unsupported> {
        Ok(Value::Array(self.0))
    }
}

impl SerializeTuple for Items {
    type Ok = Value;
    type Error = Unsupported;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unsupported> {
        SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Result<Value, Unsupported> {
        SerializeSeq::end(self)
    }
}

/// An object that is being made.
#[derive(Default)]
pub(super) struct Members {
    members: Map<String, Value>,
    key: Option<String>,
}

impl SerializeMap for Members {
    type Ok = Value;
    type Error = Unsupported;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unsupported> {
        let Value::String(key) = key.serialize(Redacting)? else {
            return Err(Unsupported::custom("a key that is no text"));
        };
        self.key = Some(key);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unsupported> {
        let key = self.key.take().ok_or(Unsupported)?;
        self.members.insert(key, value.serialize(Redacting)?);
        Ok(())
    }

    fn end(self) -> Result<Value, Unsupported> {
        Ok(Value::Object(self.members))
    }
}

impl SerializeStruct for Members {
    type Ok = Value;
    type Error = Unsupported;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), Unsupported> {
        let mut shown = value.serialize(Redacting)?;
        // What programs are given in their environment is often a password, and never what they do.
        if key == "env"
            && let Some(variables) = shown.as_object_mut()
        {
            variables.values_mut().for_each(|value| *value = REDACTED.into());
        }
        if shown != Value::Null {
            self.members.insert(key.to_owned(), shown);
        }
        Ok(())
    }

    fn end(self) -> Result<Value, Unsupported> {
        Ok(Value::Object(self.members))
    }
}
