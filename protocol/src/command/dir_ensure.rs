//! `dir_ensure`: a directory is there, with this owner, group and mode; where asked for, all that is in it too.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::value::{Mode, empty_is_none, is_default, null_is_default};

/// Parameters of `dir_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct DirEnsure {
    /// Absolute path; required. Missing parents are made, 0755. A symbolic link to a directory is one.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    /// Permission bits, special ones too; absent keeps those that are there, 0755 for a new one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub mode: Option<Mode>,
    /// User name or number; absent keeps the owner.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub owner: Option<String>,
    /// Group name or number; absent keeps the group.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub group: Option<String>,
    /// Give owner and group to all that is in it too, and `mode` to directories.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub recursive: bool,
    /// With `recursive`: permission bits of regular files; absent keeps them.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub file_mode: Option<Mode>,
    /// Refuse a symbolic link instead of following it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub no_follow: bool,
    /// Tell no differences.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub sensitive: bool,
}

fields!(DirEnsure { ; path, mode, owner, group, recursive, file_mode, no_follow, sensitive });

/// Result of `dir_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct DirEnsureResult {
    /// Whether anything changed (with `check`: would change).
    pub changed: bool,
    /// The directory was not there before.
    pub created: bool,
    /// How many entries below it changed.
    #[serde(skip_serializing_if = "is_default")]
    pub changed_below: u64,
    /// Unified diff of the attributes of each, where `diff` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

shown!(DirEnsureResult: changed created [changed_below diff]);

impl DirEnsure {
    /// A directory, whoever owns it.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
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

    /// All that is in it too: owner and group, and the mode of directories.
    #[must_use]
    pub fn recursive(mut self, recursive: bool) -> Self {
        self.recursive = recursive;
        self
    }

    /// With [`Self::recursive`]: permission bits of regular files.
    ///
    /// Bits above 0o7777 are cut off.
    #[must_use]
    pub fn file_mode(mut self, bits: u32) -> Self {
        self.file_mode = Mode::from_bits(bits & 0o7777).ok();
        self
    }
}
