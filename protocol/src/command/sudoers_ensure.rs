//! `sudoers_ensure`: one rule in a file of its own below `/etc/sudoers.d`.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::value::{Secret, is_default, null_is_default};

/// Parameters of `sudoers_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SudoersEnsure {
    /// `NAME`, `#UID`, `%GROUP` or `%#GID`; required.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// Absolute paths, each with the exact arguments if any (`""` alone: none); empty means ALL.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub commands: Vec<String>,
    /// No password is asked for.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub no_passwd: bool,
    /// `present` or `absent`; required.
    #[serde(deserialize_with = "null_is_default")]
    pub state: String,
    /// User to run as: name, `#UID` or `ALL`. With no `runas_group` the groups of that user are allowed; with neither, all
    /// users and all groups.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub runas_user: String,
    /// Group to run as: name, `#GID` or `ALL`; with no `runas_user`, as the user itself.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub runas_group: String,
    /// Host name, IPv4 address or network that the rule is for; empty means ALL.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub host: String,
    /// The SETENV tag of sudoers(5).
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub setenv: bool,
    /// The NOEXEC tag of sudoers(5).
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub noexec: bool,
    /// `*`, `?` and `[…]` in commands are patterns of sudoers(5); without this they are refused.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub wildcards: bool,
    /// The reference's way to become root.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub use_sudo: bool,
    /// Password for `use_sudo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sudo_password: Option<Secret>,
}

fields!(SudoersEnsure {
    ;
    user, commands, no_passwd, state, runas_user, runas_group, host, setenv, noexec, wildcards, use_sudo, sudo_password
});

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
    /// Unified diff of the file, where `diff` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
    /// Something to know, such as that the host has no such user yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

shown!(SudoersEnsureResult: changed file_path action [diff note]);

impl SudoersEnsure {
    /// Lets a user (`NAME`, `#UID`), or a group (`%GROUP`, `%#GID`), run every command as everybody without a password.
    #[must_use]
    pub fn present(user: impl Into<String>) -> Self {
        Self { user: user.into(), state: "present".to_owned(), no_passwd: true, ..Self::default() }
    }

    /// Takes the rule of that user or group away.
    #[must_use]
    pub fn absent(user: impl Into<String>) -> Self {
        Self { user: user.into(), state: "absent".to_owned(), ..Self::default() }
    }

    /// Only this command and those added before and after it: an absolute path, with the exact arguments if any.
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }

    /// Whether the user is asked for a password.
    #[must_use]
    pub fn password(mut self, asked: bool) -> Self {
        self.no_passwd = !asked;
        self
    }

    /// Only as this user, with the groups of that user.
    #[must_use]
    pub fn runas_user(mut self, user: impl Into<String>) -> Self {
        self.runas_user = user.into();
        self
    }

    /// Only as this group.
    #[must_use]
    pub fn runas_group(mut self, group: impl Into<String>) -> Self {
        self.runas_group = group.into();
        self
    }

    /// Only on this host: a name, an IPv4 address or a network.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self
    }
}
