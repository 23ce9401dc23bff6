//! `file_remove`: nothing is there afterwards.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::value::{is_default, null_is_default};

/// Parameters of `file_remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct FileRemove {
    /// Absolute path; required. A symbolic link is removed itself; `/` at the end means a directory.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    /// Remove a directory too, with all that is in it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub recursive: bool,
    /// Tell no differences.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub sensitive: bool,
}

fields!(FileRemove { ; path, recursive, sensitive });

/// Result of `file_remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct FileRemoveResult {
    /// Something was there (with `check`: is there).
    pub changed: bool,
    /// What it was: `file`, `directory`, `link`, …
    #[serde(skip_serializing_if = "is_default")]
    pub kind: String,
    /// How much was removed: 1, and all that was in a directory.
    #[serde(skip_serializing_if = "is_default")]
    pub removed: u64,
    /// Unified diff of content (of a directory: the names in it) and attributes, where `diff` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

shown!(FileRemoveResult: changed [kind removed diff]);

impl FileRemove {
    /// Removes what `path` itself is, unless that is a directory.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// A directory too, with all that is in it.
    #[must_use]
    pub fn recursive(mut self, recursive: bool) -> Self {
        self.recursive = recursive;
        self
    }

    /// Whether its diff is withheld.
    #[must_use]
    pub fn sensitive(mut self, sensitive: bool) -> Self {
        self.sensitive = sensitive;
        self
    }
}
