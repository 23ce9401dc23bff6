//! `archive_unpack`: what is in an archive of the host, in a directory.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::value::{empty_is_none, is_default, null_is_default};

/// Parameters of `archive_unpack`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ArchiveUnpack {
    /// Absolute path of the archive on the host: tar, plain or by gzip, bzip2, xz or zstd, or zip.
    #[serde(deserialize_with = "null_is_default")]
    pub archive: String,
    /// Absolute path of the directory; it and those above it are made, 0755.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    /// How many directories are taken off the beginning of every name, 0 to 100; names without more than these are left out.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub strip: u32,
    /// Absolute path: if something is there, nothing is unpacked, whatever the archive.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub creates: Option<String>,
    /// Absolute path of the file that tells a later run what was unpacked; absent: `.sortie-unpacked` in the directory.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub marker: Option<String>,
    /// User name or number of all that is unpacked; absent: whoever unpacks it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub owner: Option<String>,
    /// Group name or number of all that is unpacked; absent: that of whoever unpacks it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub group: Option<String>,
}

fields!(ArchiveUnpack { ; archive, path, strip, creates, marker, owner, group });

/// Result of `archive_unpack`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ArchiveUnpackResult {
    /// It was unpacked (with `check`: would be).
    pub changed: bool,
    /// `unpacked` or `already_unpacked`.
    pub action: String,
    /// How many names of the archive were unpacked; 0 where nothing had to be.
    pub members: u64,
    /// SHA-256 of the archive, 64 hexadecimal digits; empty where `creates` made it superfluous to read it.
    pub checksum: String,
    /// Unified diff of what the marker says, where `diff` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

shown!(ArchiveUnpackResult: changed action members checksum [diff]);

impl ArchiveUnpack {
    /// What is in `archive`, in the directory `path`.
    #[must_use]
    pub fn new(archive: impl Into<String>, path: impl Into<String>) -> Self {
        Self { archive: archive.into(), path: path.into(), ..Self::default() }
    }

    /// Takes this many directories off the beginning of every name.
    #[must_use]
    pub fn strip(mut self, count: u32) -> Self {
        self.strip = count;
        self
    }

    /// Unpacks nothing if this is there.
    #[must_use]
    pub fn creates(mut self, path: impl Into<String>) -> Self {
        self.creates = Some(path.into());
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
