//! `pkg_ensure`: packages present, absent, at a version or at the latest.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::value::{is_default, null_is_default};

/// Parameters of `pkg_ensure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct PkgEnsure {
    /// Name of the package; required unless `names` is given.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub name: String,
    /// Several packages in one transaction, at most 1 000; not together with `name` or `version`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub names: Vec<String>,
    /// Exact version, with `present` only; an older one is a downgrade. Empty for any.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub version: String,
    /// `present`, `absent` or `latest`; required.
    #[serde(deserialize_with = "null_is_default")]
    pub state: String,
    /// `apt`, `dnf`, `yum`, `zypper`, `pacman` or `apk`; empty for the first of them that the host has.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub manager: String,
    /// Options for the manager, each one word that begins with `-`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub options: Vec<String>,
    /// Refresh the manager's lists first; not with `check`, which changes nothing.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub update_cache: bool,
}

fields!(PkgEnsure { ; name, names, version, state, manager, options, update_cache });

/// Result of `pkg_ensure`; with `check`, what it would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct PkgEnsureResult {
    /// Whether any package changed: versions before and after are compared.
    pub changed: bool,
    /// Version before, of a single package; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_version: Option<String>,
    /// Version now, of a single package; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installed_version: Option<String>,
    /// `installed`, `removed`, `upgraded`, `downgraded`, `already_present` or `already_absent`; of several packages that of the first
    /// that changed.
    pub action: String,
    /// Each package that was asked for, where that is more than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<PackageVersions>,
    /// Other packages that the manager had to change for it: dependencies, and on removal what needs the removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also_changed: Vec<PackageVersions>,
    /// Processes that the packages' scripts left running, such as a daemon; under systemd they are not the runner's to count.
    #[serde(skip_serializing_if = "is_default")]
    pub left_running: u32,
    /// Unified diff of lines `NAME VERSION`, where `diff` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

shown!(PkgEnsureResult:
    changed [previous_version installed_version] action [packages also_changed left_running diff]);

/// A package before and after.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct PackageVersions {
    /// Its name.
    pub name: String,
    /// Version before; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_version: Option<String>,
    /// Version now; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installed_version: Option<String>,
}

shown!(PackageVersions: name [previous_version installed_version]);

impl PkgEnsure {
    fn of(state: &str, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
        let name = if names.len() == 1 { names.remove(0) } else { String::new() };
        Self { name, names, state: state.to_owned(), ..Self::default() }
    }

    /// These packages, installed: `PkgEnsure::present(["curl"])`.
    #[must_use]
    pub fn present(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::of("present", names)
    }

    /// These packages, not installed.
    #[must_use]
    pub fn absent(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::of("absent", names)
    }

    /// These packages, installed in the newest version that the host's sources have.
    #[must_use]
    pub fn latest(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::of("latest", names)
    }

    /// Exactly this version, of a single package.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// By this manager instead of the first that the host has.
    #[must_use]
    pub fn manager(mut self, manager: impl Into<String>) -> Self {
        self.manager = manager.into();
        self
    }

    /// One more option for the manager.
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Refresh the manager's lists first.
    #[must_use]
    pub fn update_cache(mut self, update: bool) -> Self {
        self.update_cache = update;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_travels_as_the_reference_has_it_and_several_as_names() {
        let json = |ensure: &PkgEnsure| serde_json::to_string(ensure).unwrap();
        assert_eq!(json(&PkgEnsure::present(["g++"])), r#"{"name":"g++","state":"present"}"#);
        assert_eq!(json(&PkgEnsure::latest(["a", "b"])), r#"{"names":["a","b"],"state":"latest"}"#);
    }
}
