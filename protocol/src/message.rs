//! The frames of version 1 and their envelope.
//!
//! Messages know no transport; `parse` reads them.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::command::CommandType;
use crate::decode::{fields, words};
use crate::encode::{Encode, Json, shown};
use crate::error::{ErrorClass, ErrorCode};
use crate::limits::{ResourceLimits, Usage};
use crate::map::Map;
pub use crate::map::Strings;
use crate::signed::Signed;
use crate::text::{Encoding, Stream};
use crate::time::Timestamp;
use crate::value::{Secret, is_default, null_is_default};

/// READY: the runner's first frame.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ready {
    /// Version of the runner.
    pub version: String,
    /// Always `linux`.
    pub platform: String,
    /// `amd64`, `arm64`, `arm` or `riscv64` (Go's names).
    pub arch: String,
    /// Process id of the guardian: the one to signal.
    pub pid: u32,
    /// Every command type that works, under its dotted and its underscored name.
    #[serde(default, deserialize_with = "null_is_default")]
    pub capabilities: Map<bool>,
    /// `ttl` as Go writes durations (`10m0s`).
    #[serde(default, deserialize_with = "null_is_default")]
    pub metadata: Strings,
    /// Absent from a reference runner, like everything below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ProtocolVersion>,
    /// Random, names this session.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub session: String,
    /// Random, for signed commands: see [`crate::signed`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nonce: String,
    /// SHA-256 of the runner's own executable, as it hashed it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// What this session may ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What is known of the host at no extra cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostFacts>,
}

shown!(Ready: version platform arch pid capabilities metadata [protocol session nonce sha256 limits host]);

/// The version of the protocol that a runner speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProtocolVersion {
    /// Raised when an older peer would misunderstand.
    pub major: u32,
    /// Raised with every addition.
    pub minor: u32,
}

shown!(ProtocolVersion: major minor []);

/// The limits of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Limits {
    /// Longest line in bytes, newline included.
    pub frame_bytes: u64,
    /// Commands that run at once; 1 without `--concurrency`.
    pub concurrency: u32,
    /// Most bytes captured of one stream of one command.
    pub output_bytes: u64,
    /// Bytes of INPUT that a command accepts before the first CREDIT.
    pub stdin_window: u64,
    /// Commands accepted and not yet begun.
    pub queue_commands: u32,
    /// Bytes of commands accepted and not yet ended.
    pub queue_bytes: u64,
    /// Seconds without any frame after which the runner ends; 0 for none.
    pub lease: u64,
}

shown!(Limits: frame_bytes concurrency output_bytes stdin_window queue_commands queue_bytes lease []);

/// Facts of the host. What could not be found out is empty or 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct HostFacts {
    /// `uname -n`.
    pub hostname: String,
    /// `ID` of os-release(5).
    pub os_id: String,
    /// `VERSION_ID` of os-release(5).
    pub os_version: String,
    /// `uname -r`.
    pub kernel: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Effective user id.
    pub uid: u32,
    /// Name of that user by `/etc/passwd`.
    pub user: String,
    /// Processors this process may run on (sched_getaffinity(2)); a quota of time is not counted.
    pub cpus: u32,
    /// Bytes of memory of the machine.
    pub memory_bytes: u64,
    /// `systemd`, `openrc`, `runit`, `sysv` or `none`.
    pub init: String,
    /// `apt`, `dnf`, `yum`, `zypper`, `pacman`, `apk` or empty.
    pub package_manager: String,
    /// Whether a `sudo` is on the PATH.
    pub sudo: bool,
    /// `docker`, `podman`, `lxc`, `systemd-nspawn`, … or empty.
    pub container: String,
}

shown!(HostFacts:
    hostname os_id os_version kernel boot_id uid user cpus memory_bytes init package_manager sudo container []);

/// CMD: one command.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CommandMessage {
    /// Names the command in every frame about it; not empty.
    pub id: String,
    /// Which command.
    #[serde(rename = "type")]
    pub kind: CommandType,
    /// Seconds, at least 1.
    pub timeout: u64,
    /// The command's own parameters.
    #[cfg_attr(feature = "schema", schemars(with = "serde_json::Value"))]
    pub params: Box<RawValue>,
    /// Runs the command at most once a session; see docs/PROTOCOL.md.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub idempotency_key: String,
    /// Accepted and ignored, as the reference does.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub signature: String,
    /// Free for the controller.
    #[serde(default, skip_serializing_if = "Strings::is_empty", deserialize_with = "null_is_default")]
    pub metadata: Strings,
    /// Change nothing, say what would change.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub check: bool,
    /// Add a unified diff to the result.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub diff: bool,
    /// Run as another user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#become: Option<Become>,
    /// Bytes of output that may be sent before CREDIT; absent means no window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// Run after the commands of the same sequence that came before, and only if none of them failed; at most
    /// [`SEQUENCE_LIMIT`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub sequence: String,
    /// Limits of every program that the command runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceLimits>,
    /// Say at the end what the programs took; `limits` ask for that too.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub usage: bool,
}

/// Bytes that the name of a sequence may have.
pub const SEQUENCE_LIMIT: usize = 128;

impl fmt::Debug for CommandMessage {
    /// Params stay out: they may hold passwords and contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandMessage")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("timeout", &self.timeout)
            .field("params", &format_args!("[{} bytes]", self.params.get().len()))
            .field("check", &self.check)
            .field("diff", &self.diff)
            .field("window", &self.window)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

/// Whom to become for a command, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Become {
    /// User to become.
    pub user: String,
    /// By which program.
    pub method: BecomeMethod,
    /// Password that the program may ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
}

fields!(Become { user, method; password });

/// The program that changes the user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum BecomeMethod {
    /// sudo(8), sudo-rs too.
    #[default]
    Sudo,
    /// doas(1).
    Doas,
    /// su(1).
    Su,
}

words!(BecomeMethod { Sudo = "sudo", Doas = "doas", Su = "su" });

/// EVENT: something happened in a command that runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Which command.
    pub command_id: String,
    /// How important.
    #[serde(default, deserialize_with = "null_is_default")]
    pub level: Level,
    /// Text for people, or the output itself where `stream` is set.
    #[serde(default, deserialize_with = "null_is_default")]
    pub message: String,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// More, for programs.
    #[serde(default, skip_serializing_if = "Strings::is_empty", deserialize_with = "null_is_default")]
    pub metadata: Strings,
    /// `message` is output of this stream, byte for byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// Offset of the first byte of `message` in its stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// How `message` is to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
}

shown!(Event: command_id level message [progress metadata stream seq encoding]);

/// Importance of an EVENT.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What a user wants to see.
    #[default]
    Info,
    /// What a user should look at.
    Warn,
    /// What a developer wants to see.
    Debug,
}

/// How far a command is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Progress {
    /// Done so far, in `unit`.
    pub current: i64,
    /// All there is to do, in `unit`; 0 where unknown.
    pub total: i64,
    /// `bytes`, `packages`, …
    #[serde(default, deserialize_with = "null_is_default")]
    pub unit: String,
}

shown!(Progress: current total unit []);

/// DONE: a command ended and this is what it gave. `R` is the command's result type where it is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Done<R = Box<RawValue>> {
    /// Which command.
    pub command_id: String,
    /// The result of its type.
    #[cfg_attr(feature = "schema", schemars(with = "serde_json::Value"))]
    pub result: R,
    /// Seconds it took.
    pub duration: f64,
    /// `idempotent_replay: "true"` where nothing was run.
    #[serde(default, skip_serializing_if = "Strings::is_empty", deserialize_with = "null_is_default")]
    pub metadata: Strings,
    /// What its programs took, where that was asked for by `usage` or `limits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// ERROR: a command failed, or (without `command_id`) a frame was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorFrame {
    /// Which command; empty for the session itself.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub command_id: String,
    /// For programs.
    pub code: ErrorCode,
    /// For people: what failed, on what, why, and what to do.
    pub message: String,
    /// More, for programs.
    #[serde(default, skip_serializing_if = "Strings::is_empty", deserialize_with = "null_is_default")]
    pub details: Strings,
    /// Agrees with `class`.
    #[serde(default)]
    pub retryable: bool,
    /// Seconds to wait before another try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// For retry policy; absent from a reference runner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ErrorClass>,
    /// What its programs took, where that was asked for by `usage` or `limits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

shown!(ErrorFrame: [command_id] code message [details] retryable [retry_after class usage]);

impl ErrorFrame {
    /// An error with the class and retry advice of its code.
    #[must_use]
    pub fn new(command_id: &str, code: ErrorCode, message: String) -> Self {
        Self {
            command_id: command_id.to_owned(),
            retryable: code.retryable(),
            class: Some(code.class()),
            retry_after: None,
            code,
            message,
            details: Strings::new(),
            usage: None,
        }
    }
}

/// EXIT: the runner's last frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Exit {
    /// Why it ends.
    pub reason: ExitReason,
    /// Its exit status.
    pub exit_code: i32,
    /// Whether its own file is gone.
    pub self_deleted: bool,
    /// Commands that were understood, failed ones too.
    pub commands_total: u64,
}

shown!(Exit: reason exit_code self_deleted commands_total []);

/// Why a runner ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// SHUTDOWN was asked for.
    Completed,
    /// Standard input ended and all accepted commands are done.
    StdinClosed,
    /// Nobody reads standard output any more.
    PeerLost,
    /// The time to live passed.
    TtlExpired,
    /// Nothing was heard for a lease.
    LeaseExpired,
    /// SIGTERM, SIGHUP or SIGINT, or the guardian died.
    Signal,
    /// The runner could not go on.
    Error,
    /// A reason that this version does not know.
    #[serde(other)]
    Unknown,
}

impl Encode for ExitReason {
    fn encode(&self, json: &mut Json<'_>) {
        self.name().encode(json);
    }
}

impl ExitReason {
    fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::StdinClosed => "stdin_closed",
            Self::PeerLost => "peer_lost",
            Self::TtlExpired => "ttl_expired",
            Self::LeaseExpired => "lease_expired",
            Self::Signal => "signal",
            Self::Error => "error",
            Self::Unknown => "unknown",
        }
    }

    /// The exit status that goes with the reason.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Completed | Self::StdinClosed | Self::TtlExpired => 0,
            _ => 1,
        }
    }
}

/// INPUT: bytes for a running command that asked for them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Input {
    /// Which command.
    pub command_id: String,
    /// The bytes.
    #[serde(default, deserialize_with = "null_is_default")]
    pub data: String,
    /// How `data` is to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Nothing comes after this.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub eof: bool,
}

fields!(Input { command_id; data, encoding, eof });
shown!(Input: command_id data [encoding eof]);

impl fmt::Debug for Input {
    /// The data stays out: it may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input {{ {}, [{} bytes], eof: {} }}", self.command_id, self.data.len(), self.eof)
    }
}

/// CREDIT: so many more bytes may be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Credit {
    /// Which command.
    pub command_id: String,
    /// Which of its streams.
    pub stream: Stream,
    /// How many bytes more.
    pub bytes: u64,
}

fields!(Credit { command_id, stream, bytes; });
shown!(Credit: command_id stream bytes []);

/// CANCEL: end a command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cancel {
    /// Which command.
    pub command_id: String,
    /// Seconds between SIGTERM and SIGKILL; 5 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<u64>,
}

fields!(Cancel { command_id; grace });
shown!(Cancel: command_id [grace]);

/// PING and PONG.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ping {
    /// Comes back as it was.
    #[serde(default, deserialize_with = "null_is_default")]
    pub token: String,
}

fields!(Ping { ; token });
shown!(Ping: token []);

/// CONFIRM: keep a change that would be rolled back otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Confirm {
    /// Which command.
    pub command_id: String,
}

fields!(Confirm { command_id; });
shown!(Confirm: command_id []);

/// SHUTDOWN: accept no more, finish what was accepted, go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Shutdown {
    /// Seconds after which what still runs is killed; absent means no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<u64>,
}

fields!(Shutdown { ; grace });

macro_rules! messages {
    ($(#[$doc:meta])* $name:ident { $($variant:ident($data:ty) = $wire:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(tag = "type", content = "data"))]
        pub enum $name {
            $(
                #[doc = concat!("The frame `", $wire, "`.")]
                #[cfg_attr(feature = "schema", schemars(rename = $wire))]
                $variant($data),
            )*
        }

        impl $name {
            /// The `type` of the envelope.
            #[must_use]
            pub fn type_name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $wire,)* }
            }

            /// Every `type` of this direction.
            pub const TYPES: &[&str] = &[$($wire,)*];

            /// The frame as a line with its newline.
            #[must_use]
            pub fn to_line(&self, timestamp: Timestamp) -> Vec<u8> {
                match self { $(Self::$variant(data) => line($wire, timestamp, data),)* }
            }
        }
    };
}

messages! {
    /// What a runner sends.
    RunnerMessage {
        Ready(Box<Ready>) = "READY",
        Event(Event) = "EVENT",
        Done(Done) = "DONE",
        Error(ErrorFrame) = "ERROR",
        Exit(Exit) = "EXIT",
        Credit(Credit) = "CREDIT",
        Pong(Ping) = "PONG",
    }
}

messages! {
    /// What a controller sends.
    ControllerMessage {
        Command(Box<CommandMessage>) = "CMD",
        Input(Input) = "INPUT",
        Credit(Credit) = "CREDIT",
        Cancel(Cancel) = "CANCEL",
        Ping(Ping) = "PING",
        Confirm(Confirm) = "CONFIRM",
        Signed(Signed) = "SIGNED",
        Shutdown(Shutdown) = "SHUTDOWN",
    }
}

impl RunnerMessage {
    /// The `type` and the `data` of the envelope.
    #[must_use]
    pub fn parts(&self) -> (&'static str, &dyn Encode) {
        let data: &dyn Encode = match self {
            Self::Ready(data) => &**data,
            Self::Event(data) => data,
            Self::Done(data) => data,
            Self::Error(data) => data,
            Self::Exit(data) => data,
            Self::Credit(data) => data,
            Self::Pong(data) => data,
        };
        (self.type_name(), data)
    }
}

/// A frame with its newline.
fn line(kind: &str, timestamp: Timestamp, data: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Frame<'a, D> {
        #[serde(rename = "type")]
        kind: &'a str,
        timestamp: String,
        data: &'a D,
    }
    let frame = serde_json::to_vec(&Frame { kind, timestamp: timestamp.to_string(), data });
    debug_assert!(frame.is_ok(), "every message can be JSON");
    let mut line = frame.unwrap_or_default();
    line.push(b'\n');
    line
}
