//! The commands: one file each, one line each in the registry below.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::decode::{Decode, decode, fields};
use crate::encode::Object;

pub mod archive_unpack;
pub mod dir_ensure;
pub mod exec;
pub mod facts;
pub mod file_read;
pub mod file_remove;
pub mod file_stat;
pub mod file_write;
pub mod ini_ensure;
pub mod line_ensure;
pub mod link_ensure;
pub mod pkg_ensure;
pub mod service_reload;
pub mod sshd_harden;
pub mod sudoers_ensure;
pub mod wait_for;

/// Ties the parameters of a command to its type and result.
pub trait CommandSpec: Serialize + DeserializeOwned + for<'a> Decode<'a> {
    /// The type of the command.
    const TYPE: CommandType;
    /// What DONE carries.
    type Result: Serialize + DeserializeOwned + Object;
}

/// Something to be done with the types of a command that is known by name; see [`CommandType::visit`].
pub trait CommandVisitor {
    /// What it gives.
    type Output;
    /// Is called with the parameters of the command.
    fn visit<C: CommandSpec + Default>(self) -> Self::Output;
}

macro_rules! commands {
    ($($variant:ident, $module:ident :: $params:ident -> $result:ident, $name:literal, $dotted:literal;)*) => {
        /// The type of a command. Both spellings are read; the underscored one is written.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum CommandType {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl CommandType {
            /// Every command of this version.
            pub const ALL: &[CommandType] = &[$(CommandType::$variant,)*];

            /// The name on the wire.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The reference's spelling.
            #[must_use]
            pub fn dotted_name(self) -> &'static str {
                match self { $(Self::$variant => $dotted,)* }
            }

            /// The command of this name in either spelling.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Some(match name {
                    $($dotted => Self::$variant,)*
                    _ => return Self::ALL.iter().copied().find(|command| command.name() == name),
                })
            }
        }

        impl CommandType {
            /// Calls `visitor` with the types of this command.
            pub fn visit<V: CommandVisitor>(self, visitor: V) -> V::Output {
                match self { $(Self::$variant => visitor.visit::<$module::$params>(),)* }
            }
        }

        $(impl CommandSpec for $module::$params {
            const TYPE: CommandType = CommandType::$variant;
            type Result = $module::$result;
        })*

        #[cfg(test)]
        mod agreement_with_serde {
            $(
                #[test]
                fn $module() {
                    crate::decode::tests::agrees::<super::$module::$params>();
                    crate::encode::tests::agrees::<super::$module::$result>();
                }
            )*
        }

        /// Schemas of params and result of every command, by name.
        #[cfg(feature = "schema")]
        pub(crate) fn schemas(
            generator: &mut schemars::SchemaGenerator,
        ) -> Vec<(&'static str, schemars::Schema, schemars::Schema)> {
            vec![$((
                $name,
                generator.subschema_for::<$module::$params>(),
                generator.subschema_for::<$module::$result>(),
            ),)*]
        }
    };
}

commands! {
    Exec, exec::Exec -> ExecResult, "exec", "exec";
    FileWrite, file_write::FileWrite -> FileWriteResult, "file_write", "file.write";
    FileRead, file_read::FileRead -> FileReadResult, "file_read", "file.read";
    PkgEnsure, pkg_ensure::PkgEnsure -> PkgEnsureResult, "pkg_ensure", "pkg.ensure";
    ServiceReload, service_reload::ServiceReload -> ServiceReloadResult, "service_reload", "service.reload";
    SudoersEnsure, sudoers_ensure::SudoersEnsure -> SudoersEnsureResult, "sudoers_ensure", "sudoers.ensure";
    SshdHarden, sshd_harden::SshdHarden -> SshdHardenResult, "sshd_harden", "sshd.harden";
    FileStat, file_stat::FileStat -> FileStatResult, "file_stat", "file.stat";
    LineEnsure, line_ensure::LineEnsure -> LineEnsureResult, "line_ensure", "line.ensure";
    IniEnsure, ini_ensure::IniEnsure -> IniEnsureResult, "ini_ensure", "ini.ensure";
    Facts, facts::Facts -> FactsResult, "facts", "facts";
    ArchiveUnpack, archive_unpack::ArchiveUnpack -> ArchiveUnpackResult, "archive_unpack", "archive.unpack";
    FileRemove, file_remove::FileRemove -> FileRemoveResult, "file_remove", "file.remove";
    DirEnsure, dir_ensure::DirEnsure -> DirEnsureResult, "dir_ensure", "dir.ensure";
    LinkEnsure, link_ensure::LinkEnsure -> LinkEnsureResult, "link_ensure", "link.ensure";
    WaitFor, wait_for::WaitFor -> WaitForResult, "wait_for", "wait.for";
}

/// The part of any params that announces INPUT.
#[derive(Default)]
struct Announcement<'a> {
    stdin_from: Option<&'a RawValue>,
    content_from: Option<&'a RawValue>,
}

fields!(Announcement<'a> { ; stdin_from, content_from });

/// Whether params, of whatever command, announce INPUT.
#[must_use]
pub fn announces_input(params: &RawValue) -> bool {
    decode(params.get())
        .is_ok_and(|found: Announcement<'_>| found.stdin_from.is_some() || found.content_from.is_some())
}

impl Serialize for CommandType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for CommandType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| serde::de::Error::custom("unknown command type"))
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for CommandType {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CommandType".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut names: Vec<&str> = Self::ALL.iter().flat_map(|c| [c.name(), c.dotted_name()]).collect();
        names.dedup();
        schemars::json_schema!({"type": "string", "enum": names})
    }
}
