//! What a test tells the helper program about a lab and its hosts: plain data, one line of JSON each way.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the lab keeps its hosts, in its own mount namespace.
pub const HOSTS: &str = "/run/lab";

/// The bridge's own address: that of the test in the lab's network.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);

/// The length of the network's prefix.
pub const PREFIX: u8 = 16;

/// A lab, sent first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabSpec {
    /// The name of its control group, which starts with [`CGROUP_PREFIX`]; no other lab has the same.
    pub cgroup: String,
    /// A directory of this machine to remove when the lab has ended.
    pub scratch: PathBuf,
}

/// What the names of the control groups of all labs start with.
pub const CGROUP_PREFIX: &str = "sortie-lab-";

/// What the test asks for; each is answered by one [`Answer`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Makes a host; it is off.
    Make(Box<HostSpec>),
    /// Turns it on. It answers once the host's first process is on its way.
    Start(String),
    /// A power cut: not one packet more leaves it, and all its processes end. The disk stays.
    Crash(String),
    /// Turns the interface on or off, at the bridge's end.
    Link {
        /// The host.
        name: String,
        /// On or off.
        up: bool,
    },
    /// Replaces all packet filters of the host with these rules of `nft(8)`, run in its network namespace.
    Filter {
        /// The host.
        name: String,
        /// Whole tables; none when empty.
        rules: String,
    },
}

/// The answer to a [`Request`]: done, or why not.
pub type Answer = Result<(), String>;

/// A host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostSpec {
    /// Its name; that of its network namespace and control group too.
    pub name: String,
    /// Its place in the network; no other host of the lab has the same.
    pub index: u16,
    /// The root file system below its disk.
    pub image: PathBuf,
    /// Its first process, where that is not `/sbin/init`.
    pub init: Option<String>,
    /// The size of its disk: all that it may write, in bytes of memory.
    pub disk: u64,
    /// Files to write before its first start; missing parents are made.
    pub files: Vec<File>,
    /// Names of files to remove before its first start; the last part may end in `*`.
    pub removed: Vec<String>,
}

impl HostSpec {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        address(self.index)
    }
}

/// The address of the host with this index.
pub fn address(index: u16) -> Ipv4Addr {
    let [high, low] = index.to_be_bytes();
    // The third part begins at 1, so that none is the gateway's.
    Ipv4Addr::new(10, 213, high + 1, low)
}

/// A file to write.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct File {
    /// Where.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}
