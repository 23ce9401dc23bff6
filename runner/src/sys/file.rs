//! Files: extended attributes (which hold ACLs and security labels) and advisory locks.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::at;

/// Every extended attribute of `from` that `to` may have: attr(5), acl(5). File systems without them have none to copy.
///
/// # Errors
/// An attribute that is there cannot be read or set.
pub(crate) fn copy_attributes(from: &File, to: &File) -> io::Result<()> {
    for name in attribute_names(from)? {
        let Some(value) = attribute(from, &name)? else { continue };
        // SAFETY: name and value live through the call and their lengths are given.
        let result =
            unsafe { libc::fsetxattr(to.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        if result < 0 {
            let error = io::Error::last_os_error();
            // Only the superuser may set these, and the kernel or the policy gives new files their own.
            let by_policy =
                name.as_bytes().starts_with(b"security.") || name.as_bytes().starts_with(b"trusted.");
            if !by_policy && error.raw_os_error() != Some(libc::ENOTSUP) {
                return Err(error);
            }
        }
    }
    Ok(())
}

/// The first mount point that is the object behind `place` or something below it: proc_pid_mountinfo(5).
pub(crate) fn mounted_within(place: &File) -> Option<PathBuf> {
    let top = std::fs::read_link(at::behind(place)).ok()?;
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut points = mounts.split(|&b| b == b'\n').filter_map(|line| line.split(|&b| b == b' ').nth(4));
    points.find_map(|point| {
        let point = PathBuf::from(std::ffi::OsString::from_vec(unescaped(point)));
        point.starts_with(&top).then_some(point)
    })
}

/// Whether only who may write to a file can make hard links to it: proc_sys_fs(5).
pub(crate) fn hard_links_are_protected() -> bool {
    std::fs::read_to_string("/proc/sys/fs/protected_hardlinks").is_ok_and(|value| value.trim() != "0")
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let digits = after.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(u8::is_ascii_digit));
        let code = digits
            .map(|digits| digits.iter().fold(0_u8, |n, digit| n.wrapping_mul(8).wrapping_add(digit - b'0')));
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    plain
}

/// Every extended attribute of what is behind `place`, which may have been opened with O_PATH alone; those that this user
/// cannot read are left out.
pub(crate) fn attributes_behind(place: &File) -> Vec<(String, Vec<u8>)> {
    let value = |name: CString| Some((name.to_string_lossy().into_owned(), attribute(place, &name).ok()??));
    attribute_names(place).unwrap_or_default().into_iter().filter_map(value).collect()
}

/// What a symbolic link that was opened with O_PATH says: readlinkat(2), of an empty name.
pub(crate) fn link_behind(place: &File) -> io::Result<std::ffi::OsString> {
    Ok(nix::fcntl::readlinkat(place, c"")?)
}

/// See [`at::behind`].
fn behind(place: &File) -> CString {
    // Digits and letters: there is no NUL.
    at::name(at::behind(place).as_os_str()).unwrap_or_default()
}

fn attribute_names(file: &File) -> io::Result<Vec<CString>> {
    let path = behind(file);
    let list = sized(&|buffer: &mut [u8]| {
        // SAFETY: a NUL-terminated path; at most the given length is written; length 0 only asks for the size.
        unsafe { libc::listxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })?;
    let names = list.unwrap_or_default();
    Ok(names.split(|&b| b == 0).filter(|n| !n.is_empty()).filter_map(|n| CString::new(n).ok()).collect())
}

/// None when it is gone by now.
fn attribute(file: &File, name: &CString) -> io::Result<Option<Vec<u8>>> {
    let path = behind(file);
    sized(&|buffer: &mut [u8]| {
        // SAFETY: as above, and the name is NUL-terminated too.
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })
}

/// Asks for the size, then for the bytes, again if they grew in between.
fn sized(call: &dyn Fn(&mut [u8]) -> isize) -> io::Result<Option<Vec<u8>>> {
    loop {
        let Ok(size) = usize::try_from(call(&mut [])) else { return none_or_error() };
        let mut buffer = vec![0; size];
        if size == 0 {
            return Ok(Some(buffer));
        }
        if let Ok(filled) = usize::try_from(call(&mut buffer)) {
            buffer.truncate(filled);
            return Ok(Some(buffer));
        }
        if io::Error::last_os_error().raw_os_error() != Some(libc::ERANGE) {
            return none_or_error();
        }
    }
}

fn none_or_error() -> io::Result<Option<Vec<u8>>> {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOTSUP | libc::ENODATA) => Ok(None),
        _ => Err(error),
    }
}

/// A file without a name, gone with its last descriptor: on a disk where that is possible, else in memory. What is
/// written to it is always appended.
pub(crate) fn unnamed() -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    for directory in ["/var/tmp", "/tmp"] {
        let mut options = File::options();
        options.read(true).append(true).mode(0o600).custom_flags(libc::O_TMPFILE | libc::O_EXCL);
        if let Ok(file) = options.open(directory) {
            return Ok(file);
        }
    }
    Ok(nix::sys::memfd::memfd_create(c"output", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?.into())
}

/// Tries to take flock(2) exclusively; false when somebody else has it. Closing the file gives it back.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(std::fs::TryLockError::WouldBlock) => Ok(false),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_read() {
        assert_eq!(unescaped(br"/a\040b\134c\"), br"/a b\c\");
        assert_eq!(unescaped(br"/plain\04"), br"/plain\04");
    }
}
