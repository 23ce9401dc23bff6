//! Names of machine, users and groups; randomness.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `uname`.
pub(crate) struct Name {
    pub(crate) host: String,
    pub(crate) kernel: String,
    pub(crate) version: String,
    pub(crate) machine: String,
}

pub(crate) fn name() -> Name {
    // SAFETY: uname fills the structure it is given; all zeros is valid before.
    let name = unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        libc::uname(&raw mut name);
        name
    };
    let text = |field: &[libc::c_char]| -> String {
        let bytes: Vec<u8> = field.iter().map(|c| *c as u8).take_while(|b| *b != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Name {
        host: text(&name.nodename),
        kernel: text(&name.release),
        version: text(&name.version),
        machine: text(&name.machine),
    }
}

/// What the hypervisor below this machine calls itself; meaningless where there is none. Empty but on x86.
pub(crate) fn hypervisor() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        #[allow(unused_unsafe, reason = "newer versions of Rust call it safe")]
        // SAFETY: every x86-64 processor has CPUID. Leaves that it does not know hold something else.
        let leaf = unsafe { core::arch::x86_64::__cpuid(0x4000_0000) };
        let bytes = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat();
        String::from_utf8_lossy(&bytes).into_owned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    String::new()
}

pub(crate) fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Processors this process may run on, as nproc(1) counts them; 0 where the kernel does not say.
pub(crate) fn cpus() -> u32 {
    // SAFETY: the kernel writes at most as much as the set has; all zeros is an empty one.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        match libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) {
            0 => u32::try_from(libc::CPU_COUNT(&set)).unwrap_or(0),
            _ => 0,
        }
    }
}

/// Whether this user may execute the file.
pub(crate) fn is_executable(path: &Path) -> bool {
    let Ok(c_path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: a NUL-terminated path that lives through the call.
    path.is_file() && unsafe { libc::access(c_path.as_ptr(), libc::X_OK) } == 0
}

/// 128 random bits as 32 hexadecimal digits.
pub(crate) fn random_id() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    // SAFETY: fills at most the length of the buffer; requests up to 256 bytes are never cut short.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if filled != 16 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// passwd(5) and group(5): the name is the first field, the id the third. Static programs know no NSS.
fn lookup<T>(file: &str, mut field: impl FnMut(&str, &str) -> Option<T>) -> Option<T> {
    let text = std::fs::read(file).ok()?;
    String::from_utf8_lossy(&text).lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        field(name, id)
    })
}

fn name_of(file: &str, id: u32) -> Option<String> {
    let id = id.to_string();
    lookup(file, |name, found| (found == id).then(|| name.to_owned()))
}

fn id_of(file: &str, wanted: &str) -> Option<u32> {
    lookup(file, |name, id| if name == wanted { id.parse().ok() } else { None })
}

pub(crate) fn user_name(uid: u32) -> Option<String> {
    name_of(USERS, uid)
}

pub(crate) fn group_name(gid: u32) -> Option<String> {
    name_of(GROUPS, gid)
}

pub(crate) fn user_id(name: &str) -> Option<u32> {
    id_of(USERS, name)
}

pub(crate) fn group_id(name: &str) -> Option<u32> {
    id_of(GROUPS, name)
}
