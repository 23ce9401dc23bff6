//! Names in open directories: what happens to the path of a directory meanwhile does not matter to these.
//!
//! Descriptors may have been opened with O_PATH alone; nothing here follows a symbolic link.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, Gid, Uid, UnlinkatFlags};

/// The object behind a descriptor by its name in /proc (proc_pid_fd(5)): what is refused for a descriptor that was opened with
/// O_PATH is done for this, and a symbolic link that is the object itself is not followed.
pub(crate) fn behind(place: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// A name of a directory's entry.
///
/// # Errors
/// For one with a NUL in it, which none has.
pub(crate) fn name(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// What a path names, as far as naming goes: nothing is opened for reading, and no device or FIFO is touched.
pub(crate) fn place(path: &Path, follow: bool) -> io::Result<File> {
    named(path, if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW })
}

/// The same of a directory.
pub(crate) fn directory_place(path: &Path) -> io::Result<File> {
    named(path, OFlag::O_DIRECTORY)
}

fn named(path: &Path, flags: OFlag) -> io::Result<File> {
    // Not by File::options(), which takes O_PATH out again: in musl it is one of the bits of O_ACCMODE.
    Ok(nix::fcntl::open(path, flags | OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// The same of a name in a directory.
pub(crate) fn place_in(directory: &File, name: &CStr) -> io::Result<File> {
    open(directory, name, OFlag::O_PATH)
}

/// A directory in a directory, for its entries.
pub(crate) fn directory_in(directory: &File, name: &CStr) -> io::Result<File> {
    open(directory, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

fn open(directory: &File, name: &CStr, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::openat(directory, name, flags, Mode::empty())?.into())
}

/// The entries of an open directory, each with whether it is a directory, as far as the file system says so at once.
pub(crate) fn entries(directory: &File) -> io::Result<std::fs::ReadDir> {
    std::fs::read_dir(behind(directory))
}

/// What is there under this name; none if nothing is.
pub(crate) fn look(directory: &File, name: &CStr) -> io::Result<Option<Metadata>> {
    match place_in(directory, name).and_then(|place| place.metadata()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

pub(crate) fn unlink(directory: &File, name: &CStr) -> io::Result<()> {
    Ok(nix::unistd::unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?)
}

pub(crate) fn rmdir(directory: &File, name: &CStr) -> io::Result<()> {
    Ok(nix::unistd::unlinkat(directory, name, UnlinkatFlags::RemoveDir)?)
}

pub(crate) fn rename(directory: &File, from: &CStr, to: &CStr) -> io::Result<()> {
    Ok(nix::fcntl::renameat(directory, from, directory, to)?)
}

/// Makes a directory for nobody but this user.
pub(crate) fn mkdir(directory: &File, name: &CStr) -> io::Result<()> {
    Ok(nix::sys::stat::mkdirat(directory, name, Mode::S_IRWXU)?)
}

/// Makes a symbolic link that says `target`.
pub(crate) fn symlink(target: &CStr, directory: &File, name: &CStr) -> io::Result<()> {
    Ok(nix::unistd::symlinkat(target, directory, name)?)
}

/// Has two names change places at once: renameat2(2), RENAME_EXCHANGE.
///
/// # Errors
/// `EINVAL` or `ENOSYS` where the file system or the kernel cannot.
pub(crate) fn exchange(directory: &File, one: &CStr, other: &CStr) -> io::Result<()> {
    let fd = directory.as_raw_fd();
    // SAFETY: an open descriptor and two NUL-terminated names that live through the call.
    let result = unsafe {
        libc::syscall(libc::SYS_renameat2, fd, one.as_ptr(), fd, other.as_ptr(), libc::RENAME_EXCHANGE)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// That the file system is not read-only.
///
/// # Errors
/// `EROFS` alone.
pub(crate) fn on_writable_file_system(place: &File) -> io::Result<()> {
    let known = nix::sys::statvfs::fstatvfs(place)?;
    if known.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY) {
        return Err(io::Error::from_raw_os_error(libc::EROFS));
    }
    Ok(())
}

/// Whether this user may make and remove names in the directory, as far as its permissions and file system say.
pub(crate) fn writable(directory: &File) -> io::Result<()> {
    let wanted = AccessFlags::W_OK | AccessFlags::X_OK;
    Ok(nix::unistd::faccessat(directory, c".", wanted, AtFlags::empty())?)
}

/// Gives owner and group to the object itself; none stays as it is.
pub(crate) fn set_owner(place: &File, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    Ok(nix::unistd::fchownat(place, c"", uid, gid, AtFlags::AT_EMPTY_PATH)?)
}

/// Sets the permission bits of what is no symbolic link.
pub(crate) fn set_mode(place: &File, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(behind(place), Permissions::from_mode(mode))
}

/// The mount that an open file is on, by its number: proc_pid_fdinfo(5).
pub(crate) fn mount_of(place: &File) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", place.as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Writes the names in a directory to the disk; file systems that cannot are passed over.
pub(crate) fn sync(directory: &File) -> io::Result<()> {
    match directory_in(directory, c".").and_then(|directory| directory.sync_all()) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EINVAL)) => Ok(()),
        result => result,
    }
}
