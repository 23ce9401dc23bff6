//! `facts`: what a configuration tool branches on, set by set, only as much as is asked for.

use serde::{Deserialize, Serialize};

use crate::decode::fields;
use crate::encode::shown;
use crate::message::Strings;
use crate::value::{is_default, null_is_default};

/// Every set, in the order of the result. The last two run programs of the host and are told only on request.
pub const SETS: &[&str] =
    &["os", "hardware", "host", "network", "mounts", "disks", "users", "groups", "packages", "units"];

/// So many of [`SETS`] are meant where none is named.
pub const CHEAP_SETS: usize = 8;

/// Parameters of `facts`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Facts {
    /// Names of [`SETS`], or `all`; empty for all but `packages` and `units`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub sets: Vec<String>,
}

fields!(Facts { ; sets });

impl Facts {
    /// The sets that cost next to nothing: all but `packages` and `units`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// These of [`SETS`] and no others.
    #[must_use]
    pub fn of(sets: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { sets: sets.into_iter().map(Into::into).collect() }
    }

    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self::of(["all"])
    }
}

/// Result of `facts`: the sets that were asked for. What the host does not say is empty, 0 or false.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct FactsResult {
    /// The operating system and how it is set up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<Os>,
    /// The machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// Its names, and when it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
    /// The network as the runner's network namespace has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// File systems in the order in which they were mounted; of several at one place the last is the one that is seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Vec<Mount>>,
    /// Block devices that have a size, each before its partitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<Disk>>,
    /// Accounts of `/etc/passwd`; those of directory services are not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<User>>,
    /// Groups of `/etc/group`; those of directory services are not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<Group>>,
    /// Installed packages: name to version. Of several versions of a package all, with a space between; one of another
    /// architecture of apt's is named `NAME:ARCHITECTURE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packages: Option<Strings>,
    /// Services, sockets, timers, paths and targets of systemd, or services of OpenRC. Templates and aliases are no units.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<Vec<UnitState>>,
    /// Sets that were asked for and are missing or not whole, and why.
    #[serde(skip_serializing_if = "Strings::is_empty", deserialize_with = "null_is_default")]
    pub incomplete: Strings,
}

shown!(FactsResult: [os hardware host network mounts disks users groups packages units incomplete]);

/// What os-release(5), uname(2) and the files below `/etc` say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Os {
    /// `ID` of os-release(5), such as `debian`.
    pub id: String,
    /// `ID_LIKE`: what it descends from, the nearest first.
    pub id_like: Vec<String>,
    /// `VERSION_ID`; empty where it has none.
    pub version: String,
    /// `VERSION_CODENAME`, such as `bookworm`.
    pub codename: String,
    /// `PRETTY_NAME`.
    pub pretty_name: String,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -v`.
    pub kernel_version: String,
    /// `uname -m`, such as `x86_64`.
    pub machine: String,
    /// `amd64`, `arm64`, `arm` or `riscv64`, as READY has it.
    pub arch: String,
    /// `systemd`, `openrc`, `runit`, `sysv` or `none`.
    pub init: String,
    /// `apt`, `dnf`, `yum`, `zypper`, `pacman`, `apk` or empty.
    pub package_manager: String,
    /// `LANG` of locale.conf(5) or `/etc/default/locale`.
    pub lang: String,
    /// Name of the time zone, such as `Europe/Warsaw`; empty where none is set, which is UTC.
    pub timezone: String,
    /// `enforcing`, `permissive` or `disabled`.
    pub selinux: String,
    /// Whether the kernel has AppArmor turned on.
    pub apparmor: bool,
}

shown!(Os:
    id id_like version codename pretty_name kernel kernel_version machine arch init package_manager lang timezone selinux
    apparmor []);

/// Processors, memory, and what it runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Hardware {
    /// Processors that the runner may use.
    pub cpus: u32,
    /// The name that the first processor gives itself.
    pub cpu_model: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of it that programs could have (`MemAvailable` of proc(5)).
    pub memory_available_bytes: u64,
    /// Bytes of swap.
    pub swap_bytes: u64,
    /// Bytes of it that are free.
    pub swap_free_bytes: u64,
    /// Who made it (DMI `sys_vendor`, else the device tree's model).
    pub vendor: String,
    /// What they call it (DMI `product_name`).
    pub product: String,
    /// `kvm`, `qemu`, `vmware`, `microsoft`, `xen`, `amazon`, … as systemd-detect-virt(1) names them; `vm-other`; empty on bare
    /// metal.
    pub virtualization: String,
    /// `docker`, `podman`, `lxc`, `systemd-nspawn`, … or empty.
    pub container: String,
}

shown!(Hardware:
    cpus cpu_model memory_bytes memory_available_bytes swap_bytes swap_free_bytes vendor product virtualization container []);

/// Names and times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Host {
    /// `uname -n`.
    pub hostname: String,
    /// Its full name by hosts(5); DNS is not asked. The hostname where there is none.
    pub fqdn: String,
    /// What follows the first dot of `fqdn`; empty where it has none.
    pub domain: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Seconds since it was started.
    pub uptime: u64,
    /// Its time, RFC 3339 in UTC.
    pub time: String,
}

shown!(Host: hostname fqdn domain boot_id uptime time []);

/// Interfaces, ways out, and who is asked for names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Network {
    /// All of them, the loopback too.
    pub interfaces: Vec<Interface>,
    /// Default routes of the main table, IPv4 before IPv6.
    pub gateways: Vec<Gateway>,
    /// `nameserver` of resolv.conf(5).
    pub nameservers: Vec<String>,
    /// `search` or `domain` of resolv.conf(5).
    pub search: Vec<String>,
}

shown!(Network: interfaces gateways nameservers search []);

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Hardware address, `02:00:5e:10:00:00`; empty where it has none of six bytes.
    pub mac: String,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether it was set up (`ip link set up`).
    pub up: bool,
    /// RFC 2863 `ifOperStatus` in the kernel's words: `up`, `down`, `unknown` (loopback), `lowerlayerdown`, `dormant`, …
    pub state: String,
    /// `192.0.2.7/24`.
    pub ipv4: Vec<String>,
    /// `2001:db8::7/64`.
    pub ipv6: Vec<String>,
}

shown!(Interface: name mac mtu up state ipv4 ipv6 []);

/// A default route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Gateway {
    /// Address of the next hop; empty on a link that needs none.
    pub address: String,
    /// By which interface.
    pub interface: String,
    /// The host's own address on this way; empty where the kernel would have to choose and the interface has none.
    pub source: String,
    /// The lowest is taken.
    pub metric: u32,
}

shown!(Gateway: address interface source metric []);

/// A mounted file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Mount {
    /// Where.
    pub target: String,
    /// What: a device, a server's path, or a word.
    pub source: String,
    /// Its type, such as `ext4`.
    pub fstype: String,
    /// Options of this mount, `rw,nosuid,…`.
    pub options: String,
    /// Bytes of it; 0 where it has none, and of file systems that another machine or program serves: asking those may never end.
    pub size_bytes: u64,
    /// Bytes of it that users may still fill.
    pub available_bytes: u64,
}

shown!(Mount: target source fstype options size_bytes available_bytes []);

/// A block device or a partition of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Disk {
    /// Its name below `/dev`.
    pub name: String,
    /// The device that it is a partition of; empty for whole devices.
    pub parent: String,
    /// Bytes.
    pub size_bytes: u64,
    /// The name that it gives itself; of whole devices.
    pub model: String,
    /// It spins, or says so; of whole devices.
    pub rotational: bool,
    /// Its medium can be taken out; of whole devices.
    pub removable: bool,
    /// It takes no writes.
    pub read_only: bool,
}

shown!(Disk: name parent size_bytes model rotational removable read_only []);

/// An account, passwd(5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
    /// The comment, GECOS.
    pub comment: String,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

shown!(User: name uid gid comment home shell []);

/// A group, group(5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Group id.
    pub gid: u32,
    /// Who is in it besides those whose primary group it is.
    pub members: Vec<String>,
}

shown!(Group: name gid members []);

/// A unit, in the words of `service_reload`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct UnitState {
    /// With its suffix under systemd.
    pub name: String,
    /// `active`, `inactive`, `failed`, `activating`, `deactivating` or `reloading`.
    pub status: String,
    /// The manager's finer word, such as `running`.
    pub sub_state: String,
    /// Whether it starts with the machine.
    pub enabled: bool,
    /// systemctl(1), `is-enabled`: `enabled`, `disabled`, `static`, `masked`, …; empty under OpenRC.
    pub file_state: String,
}

shown!(UnitState: name status sub_state enabled file_state []);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Object as _, encode};

    #[test]
    fn the_sets_are_the_fields_of_the_result() {
        let fields: Vec<&str> = FactsResult::default().fields().iter().map(|(name, _)| *name).collect();
        assert_eq!(fields, [SETS, &["incomplete"]].concat());
        assert_eq!(SETS[CHEAP_SETS..], ["packages", "units"]);
    }

    #[test]
    fn a_set_that_is_empty_is_not_one_that_is_missing() {
        let result = FactsResult { disks: Some(Vec::new()), ..FactsResult::default() };
        assert_eq!(encode(&result), br#"{"disks":[]}"#);
        assert_eq!(serde_json::from_slice::<FactsResult>(&encode(&result)).unwrap(), result);
    }

    #[test]
    fn parts_of_the_result_are_written_as_serde_writes_them() {
        use crate::encode::tests::agrees;
        agrees::<Os>();
        agrees::<Hardware>();
        agrees::<Host>();
        agrees::<Network>();
        agrees::<Interface>();
        agrees::<Gateway>();
        agrees::<Mount>();
        agrees::<Disk>();
        agrees::<User>();
        agrees::<Group>();
        agrees::<UnitState>();
    }
}
