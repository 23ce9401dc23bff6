//! `file_stat`: what a path is, if it is anything.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::map::Strings;
use crate::text::Encoding;
use crate::value::{is_default, null_is_default};

/// Parameters of `file_stat`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct FileStat {
    /// Absolute path; required.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    /// Tell of what a symbolic link leads to, and not of the link itself.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub follow: bool,
    /// Tell the SHA-256 of a regular file's content, which has to be read for it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub checksum: bool,
}

fields!(FileStat { ; path, follow, checksum });

/// Result of `file_stat`. Where nothing is there, `exists` is all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct FileStatResult {
    /// Something is there.
    pub exists: bool,
    /// `file`, `directory`, `link`, `block`, `character`, `fifo` or `socket`.
    #[serde(skip_serializing_if = "is_default")]
    pub kind: String,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Permission bits with the special ones, four octal digits.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: String,
    /// Number of the owner.
    #[serde(skip_serializing_if = "is_default")]
    pub owner: String,
    /// Number of the group.
    #[serde(skip_serializing_if = "is_default")]
    pub group: String,
    /// Name of the owner, where `/etc/passwd` has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_name: Option<String>,
    /// Name of the group, where `/etc/group` has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_name: Option<String>,
    /// When its content was last changed, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "is_default")]
    pub mtime: String,
    /// How many names it has (hard links).
    #[serde(skip_serializing_if = "is_default")]
    pub links: u64,
    /// What a symbolic link says, whether that exists or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// How `target` is to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_encoding: Option<Encoding>,
    /// SHA-256 of a regular file's content, 64 hexadecimal digits, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// The label of SELinux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selinux: Option<String>,
    /// The other extended attributes (xattr(7)), ACLs too: values in base64, 64 KiB of them at most. Those beyond are left out.
    #[serde(skip_serializing_if = "is_default")]
    pub xattrs: Strings,
}

shown!(FileStatResult: exists [kind size mode owner group owner_name group_name mtime links target target_encoding
    checksum selinux xattrs]);

impl FileStat {
    /// What `path` itself is.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// What a symbolic link leads to instead.
    #[must_use]
    pub fn follow(mut self, follow: bool) -> Self {
        self.follow = follow;
        self
    }

    /// With the SHA-256 of a regular file's content.
    #[must_use]
    pub fn checksum(mut self, checksum: bool) -> Self {
        self.checksum = checksum;
        self
    }
}
