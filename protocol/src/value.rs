//! Values that exist only once checked, and how lenient their JSON may be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a string is not a value of its type: says what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidValue(pub String);

impl fmt::Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidValue {}

/// Permission bits of a file with setuid, setgid and sticky, 0 to 0o7777; on the wire an octal string such as `"0644"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(u32);

impl Mode {
    /// The mode with exactly these bits; bits above 0o7777 are an error.
    ///
    /// # Errors
    /// [`InvalidValue`] when `bits` is over 0o7777.
    pub fn from_bits(bits: u32) -> Result<Self, InvalidValue> {
        if bits > 0o7777 {
            return Err(InvalidValue(format!("mode {bits:#o} has bits above 07777")));
        }
        Ok(Self(bits))
    }

    /// The bits, 0 to 0o7777.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl FromStr for Mode {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let all_octal = !digits.is_empty() && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
        all_octal
            .then(|| u32::from_str_radix(digits, 8).ok())
            .flatten()
            .filter(|&m| m <= 0o7777)
            .map(Self)
            .ok_or_else(|| {
                InvalidValue(format!("mode {text:?} is not an octal number from 0 to 7777, such as \"0644\""))
            })
    }
}

/// A SHA-256 digest: 64 lower-case hexadecimal digits on the wire; upper case and a `sha256:` prefix are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sha256Hex(String);

impl Sha256Hex {
    /// The digest of these 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
        Self(bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]).collect())
    }

    /// The 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Sha256Hex {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Self(digits.to_ascii_lowercase()));
        }
        Err(InvalidValue(format!("{text:?} is not a SHA-256 digest of 64 hexadecimal digits")))
    }
}

/// A password, or content that may hold one: shown by neither `Debug` nor any error.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Secret(String);

impl Serialize for Secret {
    /// JSON has it as a string. A serializer that writes what people may see knows it by [`Secret::NAME`].
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(Self::NAME, &self.0)
    }
}

impl Secret {
    /// What serde is told that this is, so that a secret is found wherever it stands, by its type.
    pub const NAME: &str = "sortie::Secret";

    /// Wraps a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself; never to be written anywhere but where it is asked for.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// As [`Self::expose`], without a copy: it may be as large as a frame.
    #[must_use]
    pub fn into_exposed(self) -> String {
        self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

macro_rules! text_on_the_wire {
    ($type:ty, $pattern:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "pattern": $pattern})
            }
        }
    };
}

text_on_the_wire!(Mode, "^(0o)?[0-7]+$");
text_on_the_wire!(Sha256Hex, "^(sha256:)?[0-9A-Fa-f]{64}$");

/// `null` is the zero value, as Go clients write nil slices and maps.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// `null` and `""` are absent, as Go clients write unset strings.
pub(crate) fn empty_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    match Option::<String>::deserialize(deserializer)? {
        None => Ok(None),
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

/// For `skip_serializing_if`: fields at their zero value stay off the wire.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_up_to_7777() {
        for (text, bits) in [("0644", 0o644), ("4755", 0o4755), ("0", 0), ("07777", 0o7777), ("0o600", 0o600)]
        {
            assert_eq!(text.parse::<Mode>().unwrap().bits(), bits);
        }
        for bad in ["", "0o", "9", "+644", "-1", "10000", "u+x", "0x1", " 644", "77777777777777777777"] {
            let error = bad.parse::<Mode>().unwrap_err().to_string();
            assert!(error.contains("octal"), "{bad}: {error}");
        }
        assert_eq!(Mode::from_bits(0o644).unwrap().to_string(), "0644");
        assert!(Mode::from_bits(0o10000).is_err());
    }

    #[test]
    fn digests_are_normalised() {
        let digest: Sha256Hex = format!("sha256:{}", "AB".repeat(32)).parse().unwrap();
        assert_eq!(digest.as_str(), "ab".repeat(32));
        assert_eq!(Sha256Hex::from_bytes(&[0xab; 32]), digest);
        assert!("ab".repeat(31).parse::<Sha256Hex>().is_err());
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "[secret]");
    }
}
