//! `line_ensure`: one line, or one marked block, in a file whose other lines stay as they are.

use serde::{Deserialize, Serialize};

use crate::decode::{fields, words};
use crate::encode::shown;
use crate::value::{Mode, Secret, empty_is_none, is_default, null_is_default};

/// Whether something is to be there or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It is to be there.
    #[default]
    Present,
    /// It is not to be there.
    Absent,
}

words!(Presence { Present = "present", Absent = "absent" });

/// Parameters of `line_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct LineEnsure {
    /// Absolute path of the file.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    /// `present` where it is absent.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub state: Presence,
    /// The whole line, without its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<Secret>,
    /// Which line is replaced, or which lines are removed; absent: the line that is `line`.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub regexp: Option<String>,
    /// `\1` to `\9` in `line` stand for what the groups of `regexp` matched, `\0` for all of it, `\\` for a backslash.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub backrefs: bool,
    /// Of several lines that match the first counts, not the last.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub first_match: bool,
    /// The lines of a block; instead of `line` and what belongs to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<Secret>,
    /// The lines around the block, `{mark}` standing for `BEGIN` and `END`; absent: `# {mark} SORTIE MANAGED BLOCK`.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub marker: Option<String>,
    /// A new line or block comes after the line that matches this, or at the end of the file (`EOF`, also where none matches).
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub insert_after: Option<String>,
    /// A new line or block comes before the line that matches this, or at the beginning of the file (`BOF`).
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub insert_before: Option<String>,
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

fields!(LineEnsure {
    ;
    path, state, line, regexp, backrefs, first_match, block, marker, insert_after, insert_before, create, mode, owner,
    group, backup, no_follow, validate, sensitive
});

/// Result of `line_ensure` and `ini_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct LineEnsureResult {
    /// Content, mode, owner or group changed (with `check`: would change).
    pub changed: bool,
    /// `inserted`, `replaced`, `removed`, `already_present`, `already_absent`; with `backrefs` also `no_match`.
    pub action: String,
    /// The file was not there before.
    pub created: bool,
    /// SHA-256 of the whole file, 64 hexadecimal digits; empty if there is none.
    pub checksum: String,
    /// Where the old file was copied to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_path: Option<String>,
    /// Unified diff of content and attributes, where `diff` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

shown!(LineEnsureResult: changed action created checksum [backup_path] [diff]);

impl LineEnsure {
    /// `line` in the file at `path`, at its end unless it is there.
    #[must_use]
    pub fn new(path: impl Into<String>, line: impl Into<String>) -> Self {
        Self { path: path.into(), line: Some(Secret::new(line.into())), ..Self::default() }
    }

    /// No line that `regexp` matches.
    #[must_use]
    pub fn absent(path: impl Into<String>, regexp: impl Into<String>) -> Self {
        Self { path: path.into(), state: Presence::Absent, regexp: Some(regexp.into()), ..Self::default() }
    }

    /// These lines, between two marker lines.
    #[must_use]
    pub fn block(path: impl Into<String>, lines: impl Into<String>) -> Self {
        Self { path: path.into(), block: Some(Secret::new(lines.into())), ..Self::default() }
    }

    /// The line that is replaced.
    #[must_use]
    pub fn regexp(mut self, regexp: impl Into<String>) -> Self {
        self.regexp = Some(regexp.into());
        self
    }

    /// What marks the block, with `{mark}` in it.
    #[must_use]
    pub fn marker(mut self, marker: impl Into<String>) -> Self {
        self.marker = Some(marker.into());
        self
    }

    /// Where a new line or block goes: after the line that this matches.
    #[must_use]
    pub fn insert_after(mut self, regexp: impl Into<String>) -> Self {
        self.insert_after = Some(regexp.into());
        self
    }

    /// Where a new line or block goes: before the line that this matches.
    #[must_use]
    pub fn insert_before(mut self, regexp: impl Into<String>) -> Self {
        self.insert_before = Some(regexp.into());
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
