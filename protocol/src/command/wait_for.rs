//! `wait_for`: a port, a path or a unit is as it should be, or it is said what it was last.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::value::{is_default, null_is_default};

/// Parameters of `wait_for`: exactly one of `port`, `path` and `unit`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct WaitFor {
    /// A TCP port, 1 to 65535.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub port: u16,
    /// Of which host, as the managed host reaches it: a name or an address; empty for itself. With `port` only.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub host: String,
    /// An absolute path; symbolic links are followed.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub path: String,
    /// Text that must be in the file, as it stands here; with `path` only.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub contains: String,
    /// A unit of systemd or a service of OpenRC.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub unit: String,
    /// `open` or `closed` of a port, `present` or `absent` of a path, `active`, `inactive` or `failed` of a unit; empty for the first
    /// of them.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub state: String,
    /// Seconds after which it is given up; 0 for the timeout of the command, which counts in any case.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub deadline: u64,
    /// Milliseconds between two looks, 10 to 60000; 0 for 250.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub interval_ms: u32,
}

fields!(WaitFor { ; port, host, path, contains, unit, state, deadline, interval_ms });

/// Result of `wait_for`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct WaitForResult {
    /// Whether it was otherwise at first; with `check`: whether it is otherwise now, and would have to be waited for.
    pub waited: bool,
    /// What was seen last, in words.
    pub seen: String,
}

shown!(WaitForResult: waited seen []);

impl WaitFor {
    /// Until the managed host itself accepts connections at this port.
    #[must_use]
    pub fn port(port: u16) -> Self {
        Self { port, ..Self::default() }
    }

    /// Until there is something at this path.
    #[must_use]
    pub fn path(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// Until this unit is active.
    #[must_use]
    pub fn unit(unit: impl Into<String>) -> Self {
        Self { unit: unit.into(), ..Self::default() }
    }

    /// Of another host, as the managed host reaches it.
    #[must_use]
    pub fn of_host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self
    }

    /// Until the file has this text in it.
    #[must_use]
    pub fn contains(mut self, text: impl Into<String>) -> Self {
        self.contains = text.into();
        self
    }

    /// Another state than open, present or active.
    #[must_use]
    pub fn state(mut self, state: impl Into<String>) -> Self {
        self.state = state.into();
        self
    }

    /// Give up after so many seconds, at least 1.
    #[must_use]
    pub fn deadline(mut self, seconds: u64) -> Self {
        self.deadline = seconds;
        self
    }

    /// Look so often, in milliseconds, 10 to 60000.
    #[must_use]
    pub fn interval_ms(mut self, milliseconds: u32) -> Self {
        self.interval_ms = milliseconds;
        self
    }
}
