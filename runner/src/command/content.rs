//! The content of a `file_write`: decoded where it stands in the frame, or taken from INPUT as it comes, never a
//! second time in memory. And the digest of the content that a file has.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use sortie_protocol::text::unescape_one;
use sortie_protocol::{Encoding, Sha256Hex};

use super::Context;
use crate::failure::Failure;
use crate::sys::fd::Waiting;

/// Bytes decoded at a time; a multiple of 4, as base64 goes.
const PIECE: usize = 16 * 1024;

/// Takes bytes, piece by piece.
pub(super) type Take<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), Failure>;

pub(super) enum Content<'a> {
    /// A JSON string, quotes included.
    Inline(&'a RawValue, Option<Encoding>),
    Frames,
    /// What was made of the present content.
    Made(Vec<u8>),
}

impl<'a> Content<'a> {
    pub(super) fn inline(content: Option<&'a RawValue>, encoding: Option<Encoding>) -> Result<Self, Failure> {
        let empty = serde_json::from_str::<&RawValue>("\"\"").map_err(|e| Failure::params(e.to_string()))?;
        let content = content.unwrap_or(empty);
        if !content.get().starts_with('"') {
            return Err(Failure::params("content: expected a string"));
        }
        Ok(Self::Inline(content, encoding))
    }

    pub(super) fn is_inline(&self) -> bool {
        !matches!(self, Self::Frames)
    }

    /// Hands over all bytes, piece by piece. INPUT can be read once, inline content as often as needed.
    pub(super) fn for_each(&self, context: &Context, take: Take<'_>) -> Result<(), Failure> {
        match self {
            Self::Inline(json, None) => unescape(json.get(), &mut |bytes| {
                context.job.go_on()?;
                take(bytes)
            }),
            Self::Inline(json, Some(Encoding::Base64)) => {
                let mut decoder = Base64 { rest: Vec::with_capacity(PIECE) };
                unescape(json.get(), &mut |bytes| {
                    context.job.go_on()?;
                    decoder.push(bytes, take)
                })?;
                decoder.finish(take)
            }
            Self::Made(bytes) => take(bytes),
            Self::Frames => loop {
                context.job.go_on()?;
                match context.job.take_input() {
                    Some(bytes) if bytes.is_empty() => return Ok(()),
                    Some(bytes) => {
                        take(&bytes)?;
                        context.grant_input(bytes.len() as u64);
                    }
                    None => {
                        let mut waiting = Waiting::new();
                        waiting.readable(context.job.wake.fd());
                        waiting.wait(None).map_err(|error| Failure::io("poll", &error))?;
                        context.job.wake.clear();
                    }
                }
            },
        }
    }
}

/// The bytes of a JSON string that a parser has accepted (RFC 8259 §7).
fn unescape(json: &str, take: Take<'_>) -> Result<(), Failure> {
    let mut rest = &json[1..json.len() - 1];
    let mut piece: Vec<u8> = Vec::with_capacity(PIECE);
    while !rest.is_empty() {
        let plain = memchr::memchr(b'\\', rest.as_bytes()).unwrap_or(rest.len());
        let (text, escaped) = rest.split_at(plain);
        if piece.len() + text.len() > PIECE {
            take(&piece)?;
            piece.clear();
        }
        if text.len() > PIECE {
            text.as_bytes().chunks(PIECE).try_for_each(&mut *take)?;
        } else {
            piece.extend_from_slice(text.as_bytes());
        }
        rest = escaped;
        if !escaped.is_empty() {
            let Some((character, after)) = unescape_one(escaped) else {
                return Err(Failure::params("content: a \\u escape that is no character"));
            };
            piece.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            rest = after;
        }
    }
    if piece.is_empty() { Ok(()) } else { take(&piece) }
}

/// Decodes base64 that comes in pieces.
struct Base64 {
    /// Text not decoded yet, less than four characters after each push.
    rest: Vec<u8>,
}

impl Base64 {
    fn push(&mut self, text: &[u8], take: Take<'_>) -> Result<(), Failure> {
        self.rest.extend_from_slice(text);
        // The last four stay: only they may have padding.
        let whole = self.rest.len().saturating_sub(1) / 4 * 4;
        let bytes = STANDARD.decode(&self.rest[..whole]).map_err(|_| invalid_base64())?;
        if self.rest[..whole].contains(&b'=') {
            return Err(invalid_base64());
        }
        self.rest.drain(..whole);
        take(&bytes)
    }

    fn finish(self, take: Take<'_>) -> Result<(), Failure> {
        take(&STANDARD.decode(&self.rest).map_err(|_| invalid_base64())?)
    }
}

/// The digest of a file's content, from where it is read next.
pub(super) fn digest(context: &Context, mut file: &File, path: &Path) -> Result<Sha256Hex, Failure> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        context.job.go_on()?;
        let count =
            file.read(&mut buffer).map_err(|error| Failure::at("cannot read the present", path, &error))?;
        if count == 0 {
            return Ok(Sha256Hex::from_bytes(&hash.finalize().into()));
        }
        hash.update(&buffer[..count]);
    }
}

/// Largest content that a diff is made of, in bytes.
pub(super) const MOST_DIFFED: u64 = 1024 * 1024;

/// What stands in the place of a diff of something sensitive.
pub(super) const WITHHELD: &str = "(withheld: the content is sensitive)\n";

/// The diff between the content of a file, if there is one, and the new one, if there is to be one.
pub(super) fn difference(path: &Path, old: Option<&File>, new: Option<Vec<u8>>) -> Result<String, Failure> {
    let mut before = Vec::new();
    if let Some(mut old) = old {
        let read = old.rewind().and_then(|()| old.take(MOST_DIFFED + 1).read_to_end(&mut before));
        read.map_err(|error| Failure::at("cannot read the present", path, &error))?;
    }
    if before.len() as u64 > MOST_DIFFED {
        return Ok("(the present content is too large for a diff)\n".to_owned());
    }
    let name = |is_there| if is_there { path.to_string_lossy() } else { "/dev/null".into() };
    let (from, to) = (name(old.is_some()), name(new.is_some()));
    let (Ok(before), Ok(after)) = (String::from_utf8(before), String::from_utf8(new.unwrap_or_default()))
    else {
        return Ok("(binary content differs)\n".to_owned());
    };
    Ok(crate::diff::bounded(crate::diff::unified(&from, &to, &before, &after)))
}

fn invalid_base64() -> Failure {
    Failure::params(format!("content: {}", sortie_protocol::text::InvalidBase64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unescaped(json: &str) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        unescape(json, &mut |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn half_a_surrogate_pair_is_refused() {
        for json in [r#""\ud800""#, r#""\ud800x""#, r#""\udc00\ud800""#, r#""\ud800\u0041""#] {
            assert!(unescaped(json).is_err(), "{json}");
        }
        assert_eq!(unescaped(r#""\ud83d\ude00\/""#).unwrap(), "😀/".as_bytes());
    }

    proptest! {
        #[test]
        fn text_is_decoded_as_the_json_parser_does(text in any::<String>(), long in 0usize..3) {
            let text = format!("{text}{}", "x\n".repeat(long * PIECE));
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(unescaped(&json).unwrap(), text.as_bytes());
        }

        #[test]
        fn base64_in_any_pieces_gives_the_same_bytes(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            sizes in proptest::collection::vec(1usize..9, 1..9),
        ) {
            let text = STANDARD.encode(&bytes);
            let mut decoder = Base64 { rest: Vec::new() };
            let mut all = Vec::new();
            let mut take = |piece: &[u8]| { all.extend_from_slice(piece); Ok(()) };
            let mut rest = text.as_bytes();
            for size in sizes.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, later) = rest.split_at((*size).min(rest.len()));
                decoder.push(piece, &mut take).unwrap();
                rest = later;
            }
            decoder.finish(&mut take).unwrap();
            prop_assert_eq!(all, bytes);
        }
    }
}
