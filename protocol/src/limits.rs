//! Limits of the programs that a command runs, and what those programs took.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::map::Strings;
use crate::value::{is_default, null_is_default};

/// Limits of every program that a command runs, each with all that it starts. What is absent is not limited further than the
/// login is.
///
/// docs/PROTOCOL.md §11 says by which means each is held; what cannot be held is `UNSUPPORTED`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ResourceLimits {
    /// Bytes of memory of the whole tree, at least 1 MiB, swap not used; by cgroup only. What needs more is ended whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Bytes of address space of each process (RLIMIT_AS): a poor stand-in for `memory_bytes` where there is no cgroup, as
    /// many programs reserve far more than they use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address_space_bytes: Option<u64>,
    /// Percent of one processor for the whole tree, 1 to 100000; by cgroup only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// Seconds of processor time, at least 1: of each process (RLIMIT_CPU), in a cgroup also of the whole tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<u64>,
    /// Processes and threads of the tree by cgroup; elsewhere all of the user's (RLIMIT_NPROC), which does not bind root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Open files of each process (RLIMIT_NOFILE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// Bytes of the largest file that a process may write (RLIMIT_FSIZE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Added to the nice value, -20 to 19; below 0 needs privilege.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
    /// Share of a contended disk, 1 to 10000, where 100 is what others have; by cgroup only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<u32>,
    /// PR_SET_NO_NEW_PRIVS of prctl(2): setuid programs give no rights.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub no_new_privs: bool,
}

fields!(ResourceLimits {
    ;
    memory_bytes, address_space_bytes, cpu_percent, cpu_seconds, processes, open_files, file_bytes, nice, io_weight,
    no_new_privs
});

shown!(ResourceLimits:
    [memory_bytes address_space_bytes cpu_percent cpu_seconds processes open_files file_bytes nice io_weight no_new_privs]);

/// What the programs of a command took; of several, sums and the highest peak.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Usage {
    /// Seconds of processor time in programs.
    pub cpu_user_seconds: f64,
    /// Seconds of processor time in the kernel for them.
    pub cpu_system_seconds: f64,
    /// By cgroup the most that the tree held at once, caches of files included; else the most that one process held.
    pub memory_peak_bytes: u64,
    /// Bytes read from storage.
    pub read_bytes: u64,
    /// Bytes written to storage.
    pub written_bytes: u64,
    /// `cgroup` or `rusage` for each of `cpu`, `memory` and `io`; empty where no program was run.
    #[serde(skip_serializing_if = "Strings::is_empty", deserialize_with = "null_is_default")]
    pub measured_by: Strings,
    /// By which means each limit was held, by the name of its field: `cgroup`, `rlimit`, or `process` for what is an attribute of
    /// processes, such as `nice`.
    #[serde(skip_serializing_if = "Strings::is_empty", deserialize_with = "null_is_default")]
    pub limited_by: Strings,
    /// Limits that a program ran without because it must not be ended half way, by the names of their fields.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub exempt: Vec<String>,
    /// The limit that was run into, by the name of its field: `memory_bytes`, `cpu_seconds` or `file_bytes`, which end a program, or
    /// `processes`, which refuses it more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}

shown!(Usage:
    cpu_user_seconds cpu_system_seconds memory_peak_bytes read_bytes written_bytes
    [measured_by limited_by exempt limit]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_usage_agree_with_serde() {
        crate::decode::tests::agrees::<ResourceLimits>();
        crate::encode::tests::agrees::<ResourceLimits>();
        crate::encode::tests::agrees::<Usage>();
    }
}
