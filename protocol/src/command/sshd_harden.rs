//! `sshd_harden`: settings of the SSH server that are in force afterwards.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::map::Strings;
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
    /// AllowUsers: `user` or `user@host`, with the patterns of ssh_config(5). The whole list.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub allow_users: Vec<String>,
    /// The one port, 1 to 65535; 0 leaves it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub port: u16,
    /// Other settings: keywords of sshd_config(5) and their arguments as they would be written.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub settings: Strings,
    /// A set of settings: `ssh-baseline`, as far as this sshd has them. What else is asked for comes before it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub profile: String,
    /// `sshd -t`, and the SSH banner read on the configured ports; done after every change anyway.
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
    disable_password_auth, disable_root_login, allow_users, port, settings, profile, test_connection, confirm,
    r#match = "match", force
});

/// Result of `sshd_harden`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SshdHardenResult {
    /// Whether anything changed.
    pub changed: bool,
    /// Copy of the first changed file as it was before; empty where that file is new.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backup_path: String,
    /// Keywords that are in force now and were not before.
    pub modified_keys: Vec<String>,
    /// `reloaded`, `restarted` (an ssh.socket whose port changed) or `none`.
    pub service_action: String,
    /// Files that were changed or made (with `check`: would be).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// Copies of the changed files as they were before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backups: Vec<String>,
    /// What should be known and stopped nothing, such as Match blocks that were kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Unified diff of the files, where `diff` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

shown!(SshdHardenResult:
    changed [backup_path] modified_keys service_action [files backups warnings diff]);
