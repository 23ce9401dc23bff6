//! Why a line is not obeyed, and whether ssh(1) itself may know better.

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is malformed, or asks for something that is not supported.
    Wrong(String),
    /// It may well mean something, but not to this parser: what it is that it does not know.
    CannotTell(String),
}

pub(crate) type Checked<T> = Result<T, Trouble>;

impl Trouble {
    /// With words before it.
    pub(super) fn in_front(self, words: &str) -> Self {
        match self {
            Self::Wrong(reason) => Self::Wrong(format!("{words}: {reason}")),
            Self::CannotTell(what) => Self::CannotTell(format!("{words}: {what}")),
        }
    }

    /// The reason, for a user.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Wrong(reason) => reason.clone(),
            Self::CannotTell(what) => {
                format!("{what} is not understood; take it out for this host, or use another file (-F)")
            }
        }
    }
}

impl From<String> for Trouble {
    fn from(reason: String) -> Self {
        Self::Wrong(reason)
    }
}

impl From<&str> for Trouble {
    fn from(reason: &str) -> Self {
        Self::Wrong(reason.to_owned())
    }
}
