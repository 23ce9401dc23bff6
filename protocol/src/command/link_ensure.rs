//! `link_ensure`: a symbolic link is there, and says this.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::value::{empty_is_none, is_default, null_is_default};

/// Parameters of `link_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct LinkEnsure {
    /// Absolute path of the link; required. The directory above it must be there.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    /// What the link says, as it stands: absolute, or seen from the link's directory; required. It need not exist.
    #[serde(deserialize_with = "null_is_default")]
    pub target: String,
    /// User name or number that the link itself belongs to; absent keeps that of an old link.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub owner: Option<String>,
    /// Group name or number of the link itself; absent keeps that of an old link.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub group: Option<String>,
    /// Replace what is no link too: a file, or a directory that is empty.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub force: bool,
    /// Tell no differences.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub sensitive: bool,
}

fields!(LinkEnsure { ; path, target, owner, group, force, sensitive });

/// Result of `link_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct LinkEnsureResult {
    /// Whether anything changed (with `check`: would change).
    pub changed: bool,
    /// Nothing was there before.
    pub created: bool,
    /// The link leads nowhere.
    #[serde(skip_serializing_if = "is_default")]
    pub dangling: bool,
    /// Unified diff of the attributes, and of the content of a file that was replaced, where `diff` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

shown!(LinkEnsureResult: changed created [dangling diff]);

impl LinkEnsure {
    /// A link at `path` that says `target`.
    #[must_use]
    pub fn new(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self { path: path.into(), target: target.into(), ..Self::default() }
    }

    /// User name or number that the link itself belongs to.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Group name or number of the link itself.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Whether a file or an empty directory is replaced too.
    #[must_use]
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }
}
