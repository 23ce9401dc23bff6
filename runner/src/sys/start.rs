//! The start of the program and of its threads.
//!
//! By hand, as what the standard library does besides (names kept for panics, a handler for stack overflows, the parts
//! of the C library that format a thread's name) is a sixteenth of the whole runner.

use std::ffi::CStr;
use std::io;

use libc::c_void;
use nix::errno::Errno;

use super::process;

/// Where the C library begins.
#[cfg(not(any(test, fuzzing)))]
#[unsafe(no_mangle)]
extern "C" fn main(count: libc::c_int, arguments: *const *const libc::c_char) -> libc::c_int {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    // A peer that is gone is an error of write(2), not the end of the program.
    // SAFETY: no thread exists, and ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let arguments = (1..usize::try_from(count).unwrap_or(0))
        .map(|at| {
            // SAFETY: the C library hands over `count` strings, each ended by a NUL, that live as long as the program.
            let text = unsafe { CStr::from_ptr(*arguments.add(at)) };
            OsString::from_vec(text.to_bytes().to_vec())
        })
        .collect();
    crate::run(arguments).into()
}

type Work = Box<dyn FnOnce() + Send>;

/// Does `work` in a thread of its own with this name (at most 15 bytes) and a stack of so many bytes.
pub(crate) fn thread(name: &'static CStr, stack: usize, work: Work) -> io::Result<()> {
    extern "C" fn begin(start: *mut c_void) -> *mut c_void {
        // SAFETY: the pointer comes from Box::into_raw below and is given to this thread alone.
        let (name, work) = *unsafe { Box::from_raw(start.cast::<(&'static CStr, Work)>()) };
        process::set_name(name);
        work();
        std::ptr::null_mut()
    }
    let start = Box::into_raw(Box::new((name, work)));
    // SAFETY: the attributes are initialised before they are used and destroyed after; all zeros is valid before that.
    // `begin` takes what `start` points to, or it is taken back where there is no thread.
    unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        let mut id: libc::pthread_t = std::mem::zeroed();
        let mut result = libc::pthread_attr_init(&raw mut attributes);
        if result == 0 {
            libc::pthread_attr_setdetachstate(&raw mut attributes, libc::PTHREAD_CREATE_DETACHED);
            // Refused only where the C library needs more itself; its own size is larger.
            libc::pthread_attr_setstacksize(&raw mut attributes, stack);
            result = libc::pthread_create(&raw mut id, &raw const attributes, begin, start.cast());
            libc::pthread_attr_destroy(&raw mut attributes);
        }
        if result != 0 {
            drop(Box::from_raw(start));
            return Err(Errno::from_raw(result).into());
        }
    }
    Ok(())
}
