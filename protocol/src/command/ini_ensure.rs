//! `ini_ensure`: an option in a section of a file of options, everything else in it kept as it is.

use serde::{Deserialize, Serialize};

use crate::command::line_ensure::{LineEnsureResult, Presence};
use crate::decode::{fields, words};
use crate::value::{Mode, Secret, empty_is_none, is_default, null_is_default};

/// How a value goes on in the next line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Continued {
    /// After a backslash at the end of the line: systemd.syntax(7), git-config(1).
    Backslash,
    /// Where the next line is indented further: Python's configparser.
    Indent,
    /// Never.
    None,
}

words!(Continued { Backslash = "backslash", Indent = "indent", None = "none" });

/// Parameters of `ini_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct IniEnsure {
    /// Absolute path of the file.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    /// `present` where it is absent.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub state: Presence,
    /// What stands in the brackets; absent: the options before the first section.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub section: Option<String>,
    /// The name of the option; absent: the section itself.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub option: Option<String>,
    /// The value that it has, once; it may be empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Secret>,
    /// The values that it has, one line each, in this order.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub values: Vec<String>,
    /// The option stands for itself, without `=` and a value.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub no_value: bool,
    /// What begins with ` #` or ` ;` behind a value is a comment, and stays; without it, it is part of the value.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub inline_comments: bool,
    /// How a value goes on in the next line; absent: where that matters it is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continued: Option<Continued>,
    /// Make the file, and the directories above it, if it is not there; otherwise that is an error.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub create: bool,
    /// Permission bits, special ones too; absent keeps those of the file, 0644 for a new one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub mode: Option<Mode>,
    /// User name or number; absent keeps the owner.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub owner: Option<String>,
    /// Group name or number; absent keeps the group.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub group: Option<String>,
    /// Keep a copy of the old file beside it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub backup: bool,
    /// Refuse a symbolic link instead of following it.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub no_follow: bool,
    /// Program and arguments that must exit 0 before the new file takes effect; `%s` in an argument is its path.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub validate: Vec<String>,
    /// Keep the content out of diffs and messages.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub sensitive: bool,
}

fields!(IniEnsure {
    ;
    path, state, section, option, value, values, no_value, inline_comments, continued, create, mode, owner, group, backup,
    no_follow, validate, sensitive
});

/// Result of `ini_ensure`: that of `line_ensure`.
pub type IniEnsureResult = LineEnsureResult;

impl IniEnsure {
    /// The option of this section with this value; an empty section stands for what is before the first.
    #[must_use]
    pub fn new(
        path: impl Into<String>,
        section: impl Into<String>,
        option: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        Self { value: Some(Secret::new(value.into())), ..Self::absent(path, section, option) }.present()
    }

    /// No such option in this section; with an empty option no such section.
    #[must_use]
    pub fn absent(path: impl Into<String>, section: impl Into<String>, option: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            state: Presence::Absent,
            section: Some(section.into()).filter(|section| !section.is_empty()),
            option: Some(option.into()).filter(|option| !option.is_empty()),
            ..Self::default()
        }
    }

    fn present(mut self) -> Self {
        self.state = Presence::Present;
        self
    }

    /// Makes the file if it is not there.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// What has to accept the new file first; `%s` is its path.
    #[must_use]
    pub fn validate<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.validate = command.into_iter().map(Into::into).collect();
        self
    }
}
