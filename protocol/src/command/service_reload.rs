//! `service_reload`: the state of a service.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
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

shown!(ServiceReloadResult: changed action status enabled sub_state []);

impl ServiceReload {
    fn new(name: impl Into<String>, action: &str) -> Self {
        Self { name: name.into(), action: action.to_owned() }
    }

    /// Has it read its configuration again.
    #[must_use]
    pub fn reload(name: impl Into<String>) -> Self {
        Self::new(name, "reload")
    }

    /// Stops it if it runs, and starts it.
    #[must_use]
    pub fn restart(name: impl Into<String>) -> Self {
        Self::new(name, "restart")
    }

    /// Restarts it if it runs.
    #[must_use]
    pub fn try_restart(name: impl Into<String>) -> Self {
        Self::new(name, "try_restart")
    }

    /// Starts it unless it runs.
    #[must_use]
    pub fn start(name: impl Into<String>) -> Self {
        Self::new(name, "start")
    }

    /// Stops it if it runs.
    #[must_use]
    pub fn stop(name: impl Into<String>) -> Self {
        Self::new(name, "stop")
    }

    /// Has it start with the machine.
    #[must_use]
    pub fn enable(name: impl Into<String>) -> Self {
        Self::new(name, "enable")
    }

    /// Has it not start with the machine.
    #[must_use]
    pub fn disable(name: impl Into<String>) -> Self {
        Self::new(name, "disable")
    }

    /// Makes it impossible to start; systemd only.
    #[must_use]
    pub fn mask(name: impl Into<String>) -> Self {
        Self::new(name, "mask")
    }

    /// Takes that back.
    #[must_use]
    pub fn unmask(name: impl Into<String>) -> Self {
        Self::new(name, "unmask")
    }
}
