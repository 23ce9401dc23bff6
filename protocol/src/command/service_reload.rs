//! `service_reload`: the state of a service.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::value::null_is_default;

/// Parameters of `service_reload`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ServiceReload {
    /// Name of the service or unit; required.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// `reload`, `restart`, `try_restart`, `start`, `stop`, `enable`, `disable`, `mask` or `unmask`; required.
    #[serde(deserialize_with = "null_is_default")]
    pub action: String,
}

fields!(ServiceReload { ; name, action });

/// Result of `service_reload`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ServiceReloadResult {
    /// Whether anything changed.
    pub changed: bool,
    /// What was done: `reloaded`, `already_started`, …
    pub action: String,
    /// `active`, `inactive`, `failed`, …
    pub status: String,
    /// Whether it starts with the machine.
    pub enabled: bool,
    /// The manager's finer word, such as `running`.
    pub sub_state: String,
}
