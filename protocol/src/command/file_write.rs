//! `file_write`: replace a whole file, atomically.

use serde::{Deserialize, Serialize};

use crate::command::exec::From;
use crate::decode::{Slot, fields};
use crate::encode::shown;
use crate::text::Encoding;
use crate::value::{Mode, Secret, Sha256Hex, empty_is_none, is_default, null_is_default};

/// Parameters of `file_write`. `C` is how content is held; the runner takes it where it stands in the frame.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "FileWrite", bound = "C: schemars::JsonSchema + Default"))]
#[serde(default, bound(deserialize = "C: Deserialize<'de> + Default"))]
pub struct FileWrite<C = Option<Secret>> {
    /// Absolute path; missing parents are made, 0755.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    /// The whole content; absent means empty.
    pub content: C,
    /// How `content` is to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// The content comes by INPUT frames; not together with `content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_from: Option<From>,
    /// Permission bits, special ones too; absent keeps those of the old file, 0644 for a new one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub mode: Option<Mode>,
    /// User name or number; absent keeps the owner of the old file.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub owner: Option<String>,
    /// Group name or number; absent keeps the group of the old file.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub group: Option<String>,
    /// Keep a copy of the old file beside it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub backup: bool,
    /// Make the file if it is not there; otherwise that is an error.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub create: bool,
    /// Refuse a symbolic link instead of following it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub no_follow: bool,
    /// Refuse unless the present content has this digest.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub if_sha256: Option<Sha256Hex>,
    /// Program and arguments that must exit 0 before the new file takes effect; `%s` in an argument is its path.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub validate: Vec<String>,
    /// Keep the content out of diffs, events and logs.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub sensitive: bool,
    /// The reference's way to become root.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub use_sudo: bool,
    /// Password for `use_sudo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sudo_password: Option<Secret>,
}

fields!(FileWrite<C> where C: Slot<'a> {
    ;
    path, content, encoding, content_from, mode, owner, group, backup, create, no_follow, if_sha256, validate,
    sensitive, use_sudo, sudo_password
});

/// Result of `file_write`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct FileWriteResult {
    /// Bytes of content written; 0 when it was there already.
    pub bytes_written: u64,
    /// The file was not there before.
    pub created: bool,
    /// Where the old file was copied to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_path: Option<String>,
    /// SHA-256 of the content, 64 hexadecimal digits.
    pub checksum: String,
    /// Content, mode, owner or group changed (with `check`: would change).
    pub changed: bool,
    /// Unified diff of the content, where `diff` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

shown!(FileWriteResult: bytes_written created [backup_path] checksum changed [diff]);

impl FileWrite {
    /// A write to `path` that makes the file if need be.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), create: true, ..Self::default() }
    }

    /// The whole content, any bytes.
    #[must_use]
    pub fn content(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        let (text, encoding) = crate::text::encode(bytes.into());
        self.content = Some(Secret::new(text));
        self.encoding = encoding;
        self
    }

    /// Permission bits.
    ///
    /// Bits above 0o7777 are cut off.
    #[must_use]
    pub fn mode(mut self, bits: u32) -> Self {
        self.mode = Mode::from_bits(bits & 0o7777).ok();
        self
    }

    /// User name or number.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Group name or number.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }
}
