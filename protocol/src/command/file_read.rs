//! `file_read`: read a file, or a part of it.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::text::Encoding;
use crate::value::{is_default, null_is_default};

/// Most bytes of content in one `file_read`: with base64 and envelope it fits a frame.
pub const MAX_READ: u64 = 6 * 1024 * 1024;

/// Parameters of `file_read`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct FileRead {
    /// Absolute path; symbolic links are followed.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    /// Most bytes to return, 0 (absent) to [`MAX_READ`]; 0 and more mean [`MAX_READ`].
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub max_bytes: i64,
    /// Where to begin, in bytes.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub offset: u64,
    /// Refuse with CONFLICT unless the file still has the `version` of an earlier result.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub if_version: String,
}

fields!(FileRead { ; path, max_bytes, offset, if_version });

/// Result of `file_read`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct FileReadResult {
    /// The bytes that were asked for.
    pub content: String,
    /// How `content` is to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Size of the whole file by stat(2), in bytes.
    pub size: u64,
    /// Permission bits, four octal digits or more.
    pub mode: String,
    /// User id in decimal.
    pub owner: String,
    /// Group id in decimal.
    pub group: String,
    /// User name; absent where the id has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_name: Option<String>,
    /// Group name; absent where the id has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_name: Option<String>,
    /// SHA-256 of the returned bytes, 64 hexadecimal digits.
    pub checksum: String,
    /// The file goes on after the returned bytes.
    pub truncated: bool,
    /// Changes when the file is replaced or written to; for `if_version`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
}

shown!(FileReadResult:
    content [encoding] size mode owner group [owner_name group_name] checksum truncated [version]);

impl FileRead {
    /// A read from the beginning of `path`.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }
}
