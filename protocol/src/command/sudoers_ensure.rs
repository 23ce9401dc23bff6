//! `sudoers_ensure`: one rule in a file of its own below `/etc/sudoers.d`.

use serde::{Deserialize, Serialize};

use crate::value::{Secret, is_default, null_is_default};

/// Parameters of `sudoers_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SudoersEnsure {
    /// User, or `%group`; required.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// Absolute commands with arguments; empty means ALL.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub commands: Vec<String>,
    /// No password is asked for.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub no_passwd: bool,
    /// `present` or `absent`; required.
    #[serde(deserialize_with = "null_is_default")]
    pub state: String,
    /// User to run as; empty means ALL.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub runas_user: String,
    /// Group to run as; empty means ALL.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub runas_group: String,
    /// Host the rule is for; empty means ALL.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub host: String,
    /// The SETENV tag of sudoers(5).
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub setenv: bool,
    /// The reference's way to become root.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub use_sudo: bool,
    /// Password for `use_sudo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sudo_password: Option<Secret>,
}

/// Result of `sudoers_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SudoersEnsureResult {
    /// Whether anything changed.
    pub changed: bool,
    /// The file of the rule.
    pub file_path: String,
    /// `created`, `updated`, `removed`, `already_present` or `already_absent`.
    pub action: String,
}
