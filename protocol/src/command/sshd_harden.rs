//! `sshd_harden`: settings of the SSH server that are in force afterwards.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::value::{is_default, null_is_default};

/// Parameters of `sshd_harden`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SshdHarden {
    /// PasswordAuthentication and KbdInteractiveAuthentication off.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub disable_password_auth: bool,
    /// PermitRootLogin no.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub disable_root_login: bool,
    /// AllowUsers.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub allow_users: Vec<String>,
    /// Port, 1 to 65535; 0 leaves it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub port: u16,
    /// `sshd -t`, and the SSH banner read on the configured ports.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub test_connection: bool,
    /// Seconds to wait for CONFIRM before everything is put back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm: Option<u64>,
    /// `keep` leaves Match blocks that say the opposite.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub r#match: String,
    /// Do it although it locks out the user it came in as.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub force: bool,
}

fields!(SshdHarden {
    ;
    disable_password_auth, disable_root_login, allow_users, port, test_connection, confirm, r#match = "match", force
});

/// Result of `sshd_harden`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SshdHardenResult {
    /// Whether anything changed.
    pub changed: bool,
    /// Copy of the main file before the change.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backup_path: String,
    /// Keys that were changed.
    pub modified_keys: Vec<String>,
    /// `reloaded` or `none`.
    pub service_action: String,
}
