//! Error codes for programs and classes for retry policy.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a caller may do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ErrorClass {
    /// May go away by itself: the same command may be tried again.
    Transient,
    /// Too much at once: try again later, with less.
    Throttled,
    /// Somebody else's doing stands against it: look, then decide.
    Conflict,
    /// Will be the same next time.
    Permanent,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $wire:literal, $class:ident;)*) => {
        /// `ERROR.code`. A code of a newer peer is kept as [`ErrorCode::Other`].
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A code that this version does not know.
            Other(String),
        }

        impl ErrorCode {
            /// Every code of this version, in the order of the documents.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code as it stands on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(ErrorCode::$name => $wire,)*
                    ErrorCode::Other(code) => code,
                }
            }

            /// The class that goes with the code; an unknown code is permanent.
            #[must_use]
            pub fn class(&self) -> ErrorClass {
                match self {
                    $(ErrorCode::$name => ErrorClass::$class,)*
                    ErrorCode::Other(_) => ErrorClass::Permanent,
                }
            }
        }

        impl From<&str> for ErrorCode {
            fn from(code: &str) -> Self {
                match code {
                    $($wire => ErrorCode::$name,)*
                    other => ErrorCode::Other(other.to_owned()),
                }
            }
        }
    };
}

error_codes! {
    /// The frame is not JSON, not a CMD, or lacks what every CMD must have.
    InvalidCmd = "INVALID_CMD", Permanent;
    /// Known to the protocol, but not to this runner; nothing was run.
    Unsupported = "UNSUPPORTED", Permanent;
    /// A line over the frame limit; it was dropped.
    FrameTooLarge = "FRAME_TOO_LARGE", Permanent;
    /// A parameter is missing, of the wrong type, or outside its grammar; nothing was touched.
    InvalidParams = "INVALID_PARAMS", Permanent;
    /// A file, user, group, package or unit that does not exist.
    NotFound = "NOT_FOUND", Permanent;
    /// The operating system refused for lack of rights.
    PermissionDenied = "PERMISSION_DENIED", Permanent;
    /// Something else is there than was expected.
    Conflict = "CONFLICT", Conflict;
    /// A queue, a window or a table is full.
    Busy = "BUSY", Throttled;
    /// The program could not be started, or the operation failed.
    ExecFailed = "EXEC_FAILED", Permanent;
    /// The command's own time limit passed; its processes were ended.
    Timeout = "TIMEOUT", Transient;
    /// Ended by CANCEL or by the end of the session.
    Cancelled = "CANCELLED", Permanent;
    /// The runner's time to live passed; its processes were ended.
    TtlExpired = "TTL_EXPIRED", Transient;
    /// Another user could not be become.
    BecomeFailed = "BECOME_FAILED", Permanent;
    /// A check of the new state refused it; the old one is in force.
    ValidationFailed = "VALIDATION_FAILED", Permanent;
    /// Changed, failed afterwards, and the old state was restored.
    RolledBack = "ROLLED_BACK", Permanent;
    /// No space or quota left.
    NoSpace = "NO_SPACE", Permanent;
    /// The file system is read-only.
    ReadOnly = "READ_ONLY", Permanent;
    /// A lock was not had within the time limit.
    Locked = "LOCKED", Transient;
    /// The package manager failed.
    PkgFailed = "PKG_FAILED", Permanent;
    /// The service manager or the service failed.
    ServiceFailed = "SERVICE_FAILED", Permanent;
    /// A signed command whose signature is wrong or missing.
    Signature = "SIGNATURE", Permanent;
    /// A defect of the runner.
    Internal = "INTERNAL", Permanent;
}

impl ErrorCode {
    /// Whether trying the same command again may help by itself.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self.class(), ErrorClass::Transient | ErrorClass::Throttled)
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(ErrorCode::from(String::deserialize(deserializer)?.as_str()))
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for ErrorCode {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ErrorCode".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let known: Vec<&str> = ErrorCode::ALL.iter().map(ErrorCode::as_str).collect();
        schemars::json_schema!({
            "type": "string",
            "description": "A peer of another version may send codes that are not listed.",
            "examples": known,
        })
    }
}
