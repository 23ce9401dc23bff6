//! Passwords and passphrases, and who is asked for them.
//!
//! The client never reads a terminal: whoever embeds it hands in a [`Secrets`].

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use zeroize::Zeroizing;

/// A password or passphrase: not shown by `Debug`, wiped from memory when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Question<'a> {
    /// The passphrase of a key file.
    Passphrase {
        /// The file.
        file: &'a Path,
        /// 1 the first time, more after a wrong answer.
        attempt: u32,
    },
    /// The password of a login.
    Password {
        /// The user.
        user: &'a str,
        /// The host, as its user named it.
        host: &'a str,
        /// 1 the first time, more after a wrong answer.
        attempt: u32,
    },
    /// A prompt of the server (keyboard-interactive, RFC 4256).
    Prompt {
        /// The user.
        user: &'a str,
        /// The host, as its user named it.
        host: &'a str,
        /// What the server says before the first question of a round; may be empty or of several lines. Not to be trusted
        /// either.
        instructions: &'a str,
        /// The server's own words: not to be trusted, escape them before showing them.
        prompt: &'a str,
        /// The answer may be seen while it is typed.
        echo: bool,
        /// How many questions with hidden answers this login had so far, this one included; at least 1. The first is mostly
        /// for the password, the second for something else, or the same again because it was wrong.
        attempt: u32,
    },
}

/// An answer that may take a while to come.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Option<Secret>> + Send + 'a>>;

/// Who knows the secrets. `None` means: there is none, go on without.
pub trait Secrets: Send + Sync {
    /// Answers one question.
    fn ask<'a>(&'a self, question: Question<'a>) -> Answer<'a>;

    /// Answers a question on the way to another host, at one that is only passed (`ProxyJump`). What was given for the
    /// target must not be shown to that one, so without a word to the contrary nothing but passphrases is answered.
    fn ask_on_the_way<'a>(&'a self, question: Question<'a>) -> Answer<'a> {
        match question {
            Question::Passphrase { .. } => self.ask(question),
            _ => Box::pin(async { None }),
        }
    }

    /// Whether answers come without a person being bothered, so that a login can be repeated at any time.
    fn unattended(&self) -> bool;

    /// Whether every answer would be `None`: then a server is not even asked what it wants to know.
    fn is_empty(&self) -> bool {
        false
    }
}

/// Knows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn ask<'a>(&'a self, _question: Question<'a>) -> Answer<'a> {
        Box::pin(async { None })
    }

    fn unattended(&self) -> bool {
        true
    }

    fn is_empty(&self) -> bool {
        true
    }
}

/// Somebody's secrets, as a host that is only passed may have them.
pub(crate) struct OnTheWay(pub(crate) Arc<dyn Secrets>);

impl Secrets for OnTheWay {
    fn ask<'a>(&'a self, question: Question<'a>) -> Answer<'a> {
        self.0.ask_on_the_way(question)
    }

    fn ask_on_the_way<'a>(&'a self, question: Question<'a>) -> Answer<'a> {
        self.0.ask_on_the_way(question)
    }

    fn unattended(&self) -> bool {
        self.0.unattended()
    }
}

/// One password for logins, and one passphrase for key files, each where known.
#[derive(Debug, Clone, Default)]
pub struct FixedSecrets {
    /// Answers [`Question::Password`], and the first prompt of a login whose answer must not be seen.
    pub password: Option<Secret>,
    /// Answers [`Question::Passphrase`].
    pub passphrase: Option<Secret>,
}

impl Secrets for FixedSecrets {
    fn ask<'a>(&'a self, question: Question<'a>) -> Answer<'a> {
        // The same answer twice would only count as another failed try.
        let answer = match question {
            Question::Passphrase { attempt: 1, .. } => self.passphrase.clone(),
            Question::Password { attempt: 1, .. } | Question::Prompt { echo: false, attempt: 1, .. } => {
                self.password.clone()
            }
            _ => None,
        };
        Box::pin(async move { answer })
    }

    fn unattended(&self) -> bool {
        true
    }

    fn is_empty(&self) -> bool {
        self.password.is_none() && self.passphrase.is_none()
    }
}
