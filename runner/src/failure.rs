//! Why a command failed, on its way to an ERROR frame.

use std::io;
use std::path::Path;

use sortie_protocol::message::{ErrorFrame, Strings};
use sortie_protocol::{ErrorClass, ErrorCode};

/// Boxed: every fallible function returns it, and moving its parts about is a thirtieth of the whole runner.
#[derive(Debug, Clone)]
pub(crate) struct Failure(Box<Parts>);

#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) details: Strings,
    /// Where it differs from what the code says.
    pub(crate) retryable: Option<bool>,
}

impl Failure {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Box::new(Parts { code, message: message.into(), details: Strings::new(), retryable: None }))
    }

    pub(crate) fn params(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidParams, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unsupported, message)
    }

    /// A system call failed: `what` says what was tried on what.
    pub(crate) fn io(what: impl Into<String>, error: &io::Error) -> Self {
        Self::system(what.into(), error)
    }

    /// A system call failed: `what` says what was tried, as in "cannot read", on `path`.
    pub(crate) fn at(what: &str, path: impl AsRef<Path>, error: &io::Error) -> Self {
        Self::on(what, path.as_ref(), error)
    }

    fn on(what: &str, path: &Path, error: &io::Error) -> Self {
        Self::system(format!("{what} {path:?}"), error)
    }

    fn system(mut what: String, error: &io::Error) -> Self {
        let code = match error.raw_os_error().unwrap_or(0) {
            libc::ENOENT => ErrorCode::NotFound,
            libc::EACCES | libc::EPERM => ErrorCode::PermissionDenied,
            libc::ENOSPC | libc::EDQUOT => ErrorCode::NoSpace,
            libc::EROFS => ErrorCode::ReadOnly,
            _ => ErrorCode::ExecFailed,
        };
        what.push_str(": ");
        what.push_str(&reason(error));
        Self::new(code, what)
    }

    pub(crate) fn detail(mut self, key: &str, value: impl Into<String>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    pub(crate) fn not_retryable(mut self) -> Self {
        self.retryable = Some(false);
        self
    }

    /// May go away by itself, whatever the code says.
    pub(crate) fn transient(mut self) -> Self {
        self.retryable = Some(true);
        self
    }

    pub(crate) fn frame(self, command_id: &str) -> ErrorFrame {
        let mut frame = ErrorFrame::new(command_id, self.0.code, self.0.message);
        frame.details = self.0.details;
        if let Some(retryable) = self.0.retryable {
            frame.retryable = retryable;
            frame.class = Some(if retryable { ErrorClass::Transient } else { ErrorClass::Permanent });
        }
        frame
    }
}

/// Why a system call failed, in words alone.
pub(crate) fn reason(error: &io::Error) -> String {
    let mut text = error.to_string();
    // The number that the standard library adds says nothing more.
    if let Some(number) = text.find(" (os error ") {
        text.truncate(number);
    }
    text
}

impl std::ops::Deref for Failure {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}
impl std::ops::DerefMut for Failure {
    fn deref_mut(&mut self) -> &mut Parts {
        &mut self.0
    }
}
