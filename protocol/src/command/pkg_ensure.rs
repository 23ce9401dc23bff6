//! `pkg_ensure`: packages present, absent, at a version or at the latest.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::value::{is_default, null_is_default};

/// Parameters of `pkg_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct PkgEnsure {
    /// Name of the package; required unless `names` is given.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub name: String,
    /// Several packages in one transaction; not together with `name` or `version`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub names: Vec<String>,
    /// Exact version; empty for any.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub version: String,
    /// `present`, `absent` or `latest`; required.
    #[serde(deserialize_with = "null_is_default")]
    pub state: String,
    /// `apt`, `dnf`, `yum`, `zypper`, `pacman` or `apk`; empty for the one that is there.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub manager: String,
    /// Options for the manager, before the names.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub options: Vec<String>,
    /// Refresh the lists first.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub update_cache: bool,
}

fields!(PkgEnsure { ; name, names, version, state, manager, options, update_cache });

/// Result of `pkg_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct PkgEnsureResult {
    /// Whether anything changed.
    pub changed: bool,
    /// Version before; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_version: Option<String>,
    /// Version now; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installed_version: Option<String>,
    /// `installed`, `removed`, `upgraded`, `downgraded`, `already_present` or `already_absent`.
    pub action: String,
}
