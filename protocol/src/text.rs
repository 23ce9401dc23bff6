//! How bytes travel in JSON: as text where they are UTF-8, as base64 where they are not or where escaping would more
//! than double them. Nothing is ever replaced.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::decode::words;

/// How a string field is to be read; absent means plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// RFC 4648 §4, with padding.
    Base64,
}

words!(Encoding { Base64 = "base64" });

/// A stream of a command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
    /// Standard input, or the content of a running `file_write`.
    Stdin,
}

words!(Stream { Stdout = "stdout", Stderr = "stderr", Stdin = "stdin" });

/// Text as it is, or base64, by the rule of this module.
#[must_use]
pub fn encode(bytes: Vec<u8>) -> (String, Option<Encoding>) {
    match String::from_utf8(bytes) {
        Ok(text) if escaped_len(text.as_bytes()) <= 2 * text.len() => (text, None),
        Ok(text) => (STANDARD.encode(text), Some(Encoding::Base64)),
        Err(error) => (STANDARD.encode(error.as_bytes()), Some(Encoding::Base64)),
    }
}

/// As [`encode`], and base64 too where the escaped text would take more than `most` bytes of the frame.
#[must_use]
pub fn encode_within(bytes: Vec<u8>, most: usize) -> (String, Option<Encoding>) {
    if bytes.len() > most / 2 && escaped_len(&bytes) > most {
        return (encode_base64(&bytes), Some(Encoding::Base64));
    }
    encode(bytes)
}

/// The bytes that a string field stands for.
///
/// # Errors
/// [`InvalidBase64`] when the field says base64 and is not.
pub fn decode(text: String, encoding: Option<Encoding>) -> Result<Vec<u8>, InvalidBase64> {
    match encoding {
        None => Ok(text.into_bytes()),
        Some(Encoding::Base64) => STANDARD.decode(text).map_err(|_| InvalidBase64),
    }
}

/// A field marked `base64` whose text is not (RFC 4648 §4, padding required).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidBase64;

impl std::fmt::Display for InvalidBase64 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("marked as base64 but is not valid base64 (RFC 4648 §4, with padding)")
    }
}

impl std::error::Error for InvalidBase64 {}

/// Always base64.
pub(crate) fn encode_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// What a JSON string says, quotes included, that a parser has accepted; none where half a surrogate pair is in it.
pub(crate) fn unescape(json: &str) -> Option<String> {
    let mut rest = &json[1..json.len() - 1];
    let mut text = String::with_capacity(rest.len());
    while let Some(plain) = memchr::memchr(b'\\', rest.as_bytes()) {
        text.push_str(&rest[..plain]);
        let (character, after) = unescape_one(&rest[plain..])?;
        text.push(character);
        rest = after;
    }
    text.push_str(rest);
    Some(text)
}

/// The character that `text` begins with, escaped, and what follows it; none where it is half a surrogate pair. `text` is
/// from a JSON string that a parser has accepted (RFC 8259 §7).
#[must_use]
pub fn unescape_one(text: &str) -> Option<(char, &str)> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 4)?;
        u32::from_str_radix(digits, 16).ok()
    };
    let simple = match text.as_bytes().get(1) {
        Some(b'n') => '\n',
        Some(b't') => '\t',
        Some(b'r') => '\r',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'u') => {
            let first = unit(2)?;
            if let Some(character) = char::from_u32(first) {
                return Some((character, &text[6..]));
            }
            // A surrogate: the other half has to follow.
            let second = unit(8).filter(|_| text.get(6..8) == Some("\\u"))?;
            let code = 0x10000 + ((first & 0x3ff) << 10) + (second & 0x3ff);
            let pair = (0xd800..0xdc00).contains(&first) && (0xdc00..0xe000).contains(&second);
            let character = char::from_u32(code).filter(|_| pair)?;
            return Some((character, &text[12..]));
        }
        Some(other) => char::from(*other),
        None => return None,
    };
    Some((simple, &text[2..]))
}

/// Bytes that `text` takes inside a JSON string as `serde_json` writes it, quotes not counted.
#[must_use]
pub fn escaped_len(text: &[u8]) -> usize {
    let (mut length, mut rest) = (0, text);
    loop {
        let plain = plain_prefix(rest);
        length += plain;
        let Some((byte, later)) = rest[plain..].split_first() else { return length };
        rest = later;
        length += match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
            0..=0x1f => 6,
            _ => 1,
        };
    }
}

/// Length of the beginning that is ASCII and stands in a JSON string as it is. Eight bytes at a time: output of every
/// command goes through here, also in a build for size, which vectorises nothing.
pub(crate) fn plain_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let mut length = 0;
    let words = bytes.chunks_exact(8);
    let rest = words.remainder();
    for word in words {
        let word = u64::from_le_bytes(<[u8; 8]>::try_from(word).unwrap_or_default());
        // The high bit of a byte is set where the byte is below n: exact for the lowest such byte, which is the first.
        let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word & HIGH;
        let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
        let special = below(word, 0x20) | is(b'"') | is(b'\\') | (word & HIGH);
        if special != 0 {
            return length + (special.trailing_zeros() / 8) as usize;
        }
        length += 8;
    }
    length + rest.iter().take_while(|b| (0x20..0x80).contains(*b) && **b != b'"' && **b != b'\\').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_bytes_that_need_it_become_base64() {
        assert_eq!(encode(b"plain \"text\"\n".to_vec()), ("plain \"text\"\n".into(), None));
        assert_eq!(encode("żółw".as_bytes().to_vec()), ("żółw".into(), None));
        assert_eq!(encode(b"\n\n\n".to_vec()).1, None, "newlines at most double");
        assert_eq!(encode(b"\x00\x01".to_vec()).1, Some(Encoding::Base64));
        assert_eq!(encode(b"\xff".to_vec()), ("/w==".into(), Some(Encoding::Base64)));
    }

    proptest! {
        #[test]
        fn every_byte_string_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (text, encoding) = encode(bytes.clone());
            prop_assert_eq!(decode(text, encoding), Ok(bytes));
        }

        #[test]
        fn escaped_text_comes_back(text in any::<String>()) {
            prop_assert_eq!(unescape(&serde_json::to_string(&text).unwrap()), Some(text));
        }

        #[test]
        fn the_length_of_escaped_text_is_exact(text in any::<String>()) {
            prop_assert_eq!(serde_json::to_string(&text).unwrap().len(), escaped_len(text.as_bytes()) + 2);
        }
    }
}
