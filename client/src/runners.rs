//! The runner binaries that we hold: which machine each is for, its SHA-256, and how it is packed for the way.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use sortie_protocol::Sha256Hex;

/// Largest runner that is taken, in bytes; anything above is no runner of ours.
const LARGEST: u64 = 64 * 1024 * 1024;

/// A kind of machine that a runner exists for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Machine {
    /// `uname -m`: `x86_64` (also `amd64`).
    X86_64,
    /// `aarch64` (also `arm64`).
    Aarch64,
    /// `armv7l`, and `armv8l`: a 64-bit processor that shows 32 bits.
    Armv7,
    /// `riscv64`.
    Riscv64,
}

impl Machine {
    /// Every machine, in the order of the documents.
    pub const ALL: &[Machine] = &[Self::X86_64, Self::Aarch64, Self::Armv7, Self::Riscv64];

    /// From the two words of `uname -s -m`; `None` where no runner can be.
    #[must_use]
    pub fn from_uname(system: &str, machine: &str) -> Option<Self> {
        if system != "Linux" {
            return None;
        }
        Some(match machine {
            "x86_64" | "amd64" => Self::X86_64,
            "aarch64" | "arm64" => Self::Aarch64,
            "armv7l" | "armv7hl" | "armv8l" => Self::Armv7,
            "riscv64" => Self::Riscv64,
            _ => return None,
        })
    }

    /// The machine of a target triple such as `x86_64-unknown-linux-musl`.
    #[must_use]
    pub fn from_target(target: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|machine| machine.targets().contains(&target))
    }

    /// The machine that this program runs on, where a runner for it exists.
    #[must_use]
    pub fn local() -> Option<Self> {
        Some(match std::env::consts::ARCH {
            "x86_64" => Self::X86_64,
            "aarch64" => Self::Aarch64,
            "arm" => Self::Armv7,
            "riscv64" => Self::Riscv64,
            _ => return None,
        })
    }

    /// The target triple that its runners are built for.
    #[must_use]
    pub fn target(self) -> &'static str {
        self.targets()[0]
    }

    /// Target triples of its runners, best first. Those for glibc must be static.
    #[must_use]
    pub fn targets(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["x86_64-unknown-linux-musl", "x86_64-unknown-linux-gnu"],
            Self::Aarch64 => &["aarch64-unknown-linux-musl", "aarch64-unknown-linux-gnu"],
            Self::Armv7 => &["armv7-unknown-linux-musleabihf", "armv7-unknown-linux-gnueabihf"],
            Self::Riscv64 => &["riscv64gc-unknown-linux-musl", "riscv64gc-unknown-linux-gnu"],
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.target())
    }
}

/// One runner binary.
pub struct Runner {
    /// Of one that was packed beforehand, only once it is wanted.
    bytes: OnceLock<Bytes>,
    len: usize,
    sha256: Sha256Hex,
    gzip: OnceLock<Bytes>,
}

impl Runner {
    /// A runner as it will lie on the host.
    #[must_use]
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let sha256 = Sha256Hex::from_bytes(&Sha256::digest(&bytes).into());
        Self { len: bytes.len(), bytes: bytes.into(), sha256, gzip: OnceLock::new() }
    }

    /// A runner that a build script packed, and of which it noted length and digest: it is unpacked only for a host without
    /// gzip. Neither is looked at again here; the host compares the digest, and the session refuses a runner that says another.
    #[must_use]
    pub fn packed(gzip: impl Into<Bytes>, len: usize, sha256: Sha256Hex) -> Self {
        Self { bytes: OnceLock::new(), len, sha256, gzip: gzip.into().into() }
    }

    /// A runner that was compressed beforehand: nothing is left to compress while a host waits.
    ///
    /// # Errors
    /// `gzip` is not gzip, or too large.
    pub fn from_gzip(gzip: impl Into<Bytes>) -> io::Result<Self> {
        let gzip = gzip.into();
        let bytes = unpacked(&gzip)?;
        let runner = Self::new(bytes);
        // Empty until now, so this takes it.
        let _ = runner.gzip.set(gzip);
        Ok(runner)
    }

    /// Its SHA-256, as READY must say it.
    #[must_use]
    pub fn sha256(&self) -> &str {
        self.sha256.as_str()
    }

    /// Bytes of the binary.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it, and so no runner.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The binary.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        // Were it damaged it would be empty, which no host takes for what its digest says.
        self.bytes
            .get_or_init(|| self.gzip.get().and_then(|gzip| unpacked(gzip).ok()).unwrap_or_default().into())
    }

    /// The binary in gzip format; compressed the first time, which takes some tens of milliseconds.
    #[must_use]
    pub fn gzip(&self) -> &Bytes {
        self.gzip.get_or_init(|| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            // Writing to a Vec cannot fail; were it to, the payload would be empty and the host would say so.
            let written = encoder.write_all(self.bytes());
            debug_assert!(written.is_ok());
            encoder.finish().unwrap_or_default().into()
        })
    }
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Runner {{ {} bytes, {} }}", self.len, self.sha256)
    }
}

/// The runners that we hold, at most one a machine. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RunnerSet {
    runners: BTreeMap<Machine, Arc<Runner>>,
}

impl RunnerSet {
    /// Holds none.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads `sortie-runner-<target>` (or the same with `.gz`) for every target; other files are passed over. Where
    /// both are there, musl comes before glibc.
    ///
    /// # Errors
    /// The directory or one of those files cannot be read; the error names it.
    pub fn from_dir(directory: &Path) -> io::Result<Self> {
        let named = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        std::fs::read_dir(directory).map_err(|error| named(directory, error))?;
        let mut set = Self::new();
        for &machine in Machine::ALL {
            for target in machine.targets() {
                let path = directory.join(format!("sortie-runner-{target}"));
                let packed = directory.join(format!("sortie-runner-{target}.gz"));
                let runner = match read(&path).map_err(|error| named(&path, error))? {
                    Some(bytes) => Runner::new(bytes),
                    None => match read(&packed).map_err(|error| named(&packed, error))? {
                        Some(bytes) => Runner::from_gzip(bytes).map_err(|error| named(&packed, error))?,
                        None => continue,
                    },
                };
                set.insert(machine, runner);
                break;
            }
        }
        Ok(set)
    }

    /// Holds `runner` for `machine`, instead of any it held before.
    pub fn insert(&mut self, machine: Machine, runner: Runner) {
        self.runners.insert(machine, Arc::new(runner));
    }

    /// The runner for `machine`.
    #[must_use]
    pub fn get(&self, machine: Machine) -> Option<&Arc<Runner>> {
        self.runners.get(&machine)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Machine, &Arc<Runner>)> {
        self.runners.iter().map(|(machine, runner)| (*machine, runner))
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runners.is_empty()
    }
}

fn unpacked(gzip: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    GzDecoder::new(gzip).take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("more than {LARGEST} bytes are no runner")));
    }
    Ok(bytes)
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if metadata.len() > LARGEST {
        return Err(io::Error::other(format!("{} bytes are no runner", metadata.len())));
    }
    std::fs::read(path).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_told_by_uname() {
        for (machine, expected) in [
            ("x86_64", Some(Machine::X86_64)),
            ("arm64", Some(Machine::Aarch64)),
            ("armv8l", Some(Machine::Armv7)),
            ("armv7l", Some(Machine::Armv7)),
            ("riscv64", Some(Machine::Riscv64)),
            ("armv6l", None),
            ("i686", None),
            ("ppc64le", None),
        ] {
            assert_eq!(Machine::from_uname("Linux", machine), expected, "{machine}");
        }
        assert_eq!(Machine::from_uname("Darwin", "x86_64"), None);
        assert_eq!(Machine::from_target("armv7-unknown-linux-musleabihf"), Some(Machine::Armv7));
    }

    #[test]
    fn a_directory_is_read_and_musl_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
        write("sortie-runner-x86_64-unknown-linux-gnu", b"glibc");
        write("sortie-runner-x86_64-unknown-linux-musl", b"musl");
        write("sortie-runner-riscv64gc-unknown-linux-musl.gz", Runner::new(&b"risc"[..]).gzip());
        write("runners.json", b"{}");
        let set = RunnerSet::from_dir(directory.path()).unwrap();
        assert_eq!(set.iter().map(|(m, _)| m).collect::<Vec<_>>(), [Machine::X86_64, Machine::Riscv64]);
        assert_eq!(set.get(Machine::X86_64).unwrap().bytes(), "musl");
        assert_eq!(set.get(Machine::Riscv64).unwrap().bytes(), "risc");
        write("sortie-runner-riscv64gc-unknown-linux-musl.gz", b"no gzip");
        assert!(RunnerSet::from_dir(directory.path()).unwrap_err().to_string().contains("riscv64gc"));
        assert!(RunnerSet::from_dir(Path::new("/no/such")).unwrap_err().to_string().contains("/no/such"));
    }

    #[test]
    fn digest_and_packing_are_those_of_the_binary() {
        let runner = Runner::new(&b"hello"[..]);
        assert_eq!(runner.sha256(), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        let again = Runner::from_gzip(runner.gzip().clone()).unwrap();
        assert_eq!((again.bytes(), again.sha256()), (runner.bytes(), runner.sha256()));
        let packed =
            Runner::packed(runner.gzip().clone(), 5, Sha256Hex::from_bytes(&Sha256::digest(b"hello").into()));
        assert_eq!((packed.len(), packed.sha256()), (5, runner.sha256()));
        assert!(packed.bytes.get().is_none(), "not before it is wanted");
        assert_eq!(packed.bytes(), runner.bytes());
    }
}
