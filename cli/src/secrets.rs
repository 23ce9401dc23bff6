//! Passwords and passphrases: from files that nobody else may read, or typed at the terminal. Never from arguments or
//! the environment, which others can see; no error says anything of their content.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use sortie_client::error::printable;
use sortie_client::secret::{Answer, Question, Secret, Secrets};

use crate::options::Connection;
use crate::outcome::usage;

/// Longest password that is taken, in bytes.
const LONGEST: u64 = 64 * 1024;

/// Answers from files first, then asks at the terminal, one question at a time.
pub(crate) struct Keyring {
    password: Option<Secret>,
    passphrase: Option<Secret>,
    /// Somebody sits at the terminal and may be asked.
    attended: bool,
    /// Passphrases that were typed, by key file: with many hosts each is asked for once. Also keeps two questions from
    /// being asked at once.
    typed: Arc<tokio::sync::Mutex<HashMap<PathBuf, Secret>>>,
}

impl Keyring {
    /// By the options of the command line; asks right away with `--ask-pass`.
    pub(crate) fn new(options: &Connection) -> anyhow::Result<Self> {
        let from_file = |file: &Option<PathBuf>| file.as_deref().map(read_file).transpose();
        let mut password = from_file(&options.password_file)?;
        if options.ask_pass {
            password = Some(ask_once("--ask-pass", "Password: ")?);
        }
        Ok(Self {
            password,
            passphrase: from_file(&options.passphrase_file)?,
            attended: !options.batch && open_terminal().is_some(),
            typed: Arc::default(),
        })
    }

    /// For key files alone.
    pub(crate) fn for_keys(passphrase_file: Option<&Path>, batch: bool) -> anyhow::Result<Self> {
        Ok(Self {
            password: None,
            passphrase: passphrase_file.map(read_file).transpose()?,
            attended: !batch && open_terminal().is_some(),
            typed: Arc::default(),
        })
    }
}

impl Keyring {
    /// With the password that was given, where it may be used for this; else only what is typed.
    fn answer<'a>(&'a self, question: Question<'a>, password: &'a Option<Secret>) -> Answer<'a> {
        Box::pin(async move {
            // The same answer twice would only count as another failed try.
            let (known, first) = match question {
                Question::Passphrase { attempt, .. } => (&self.passphrase, attempt == 1),
                Question::Password { attempt, .. } => (password, attempt == 1),
                Question::Prompt { echo, attempt, .. } => (password, !echo && attempt == 1),
                _ => return None,
            };
            if known.is_some() && first {
                return known.clone();
            }
            // A password that was wrong is not made up for by asking; another question of the server's is another matter.
            let another = matches!(question, Question::Prompt { .. });
            if !self.attended || known.is_some() && !another {
                return None;
            }
            let mut typed = self.typed.lock().await;
            let (text, echo) = match question {
                Question::Passphrase { file, attempt } => {
                    if attempt == 1
                        && let Some(secret) = typed.get(file)
                    {
                        return Some(secret.clone());
                    }
                    (format!("Passphrase of {}: ", file.display()), false)
                }
                Question::Password { user, host, .. } => (format!("Password of {user}@{host}: "), false),
                Question::Prompt { user, host, instructions, prompt, echo, .. } => {
                    let said = printable(instructions.as_bytes(), 1000);
                    let said = if said.is_empty() { said } else { format!("{user}@{host} says: {said}\n") };
                    (format!("{said}{user}@{host} asks: {} ", printable(prompt.as_bytes(), 200)), echo)
                }
                _ => return None,
            };
            let answer = tokio::task::spawn_blocking(move || ask(&text, echo)).await.ok().flatten()?;
            if let Question::Passphrase { file, .. } = question {
                typed.insert(file.to_owned(), answer.clone());
            }
            Some(answer)
        })
    }
}

impl Secrets for Keyring {
    fn ask<'a>(&'a self, question: Question<'a>) -> Answer<'a> {
        self.answer(question, &self.password)
    }

    fn ask_on_the_way<'a>(&'a self, question: Question<'a>) -> Answer<'a> {
        self.answer(question, &None)
    }

    fn unattended(&self) -> bool {
        !self.attended
    }

    fn is_empty(&self) -> bool {
        !self.attended && self.password.is_none() && self.passphrase.is_none()
    }
}

/// Asks at the terminal because `flag` says so.
pub(crate) fn ask_once(flag: &str, text: &str) -> anyhow::Result<Secret> {
    ask(text, false)
        .ok_or_else(|| usage(format!("{flag}: there is no terminal to ask at, or nothing was typed")))
}

/// The first line of a file.
pub(crate) fn read_file(path: &Path) -> anyhow::Result<Secret> {
    let fail = |why: String| usage(format!("{}: {why}", path.display()));
    let file = File::open(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let metadata = file.metadata().map_err(|error| fail(error.to_string()))?;
    if metadata.is_file() && metadata.mode() & 0o077 != 0 {
        return Err(fail(format!(
            "others may read this secret (mode {:04o}); chmod 600 it",
            metadata.mode() & 0o7777
        )));
    }
    let line = first_line(file).map_err(|why| fail(why.to_owned()))?;
    if line.is_empty() { Err(fail("its first line is empty".into())) } else { Ok(Secret::new(line)) }
}

fn first_line(file: impl Read) -> Result<String, &'static str> {
    // Large enough that it is not copied about in memory while it grows.
    let mut line = Vec::with_capacity(4096);
    let read = BufReader::new(file.take(LONGEST)).read_until(b'\n', &mut line);
    read.map_err(|_| "cannot be read")?;
    while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| "it is not UTF-8 text")
}

fn open_terminal() -> Option<File> {
    File::options().read(true).write(true).open("/dev/tty").ok()
}

/// The terminal's own settings while its echo is off.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Turns the echo on again, should it be off. For ends in the middle of a question.
pub(crate) fn restore_terminal() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Some(settings), Some(terminal)) = (saved, open_terminal()) {
        let _ = tcsetattr(&terminal, SetArg::TCSANOW, &settings);
    }
}

/// Asks at the terminal, whatever standard input is.
fn ask(text: &str, echo: bool) -> Option<Secret> {
    let mut terminal = open_terminal()?;
    if !echo {
        let settings = tcgetattr(&terminal).ok()?;
        let mut silent = settings.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        silent.local_flags.insert(LocalFlags::ECHONL);
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
        // What was typed ahead was not meant for this.
        tcsetattr(&terminal, SetArg::TCSAFLUSH, &silent).ok()?;
    }
    let asked = terminal.write_all(text.as_bytes());
    let answer = asked.ok().and_then(|()| first_line(&terminal).ok());
    restore_terminal();
    answer.filter(|answer| !answer.is_empty()).map(Secret::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_others_may_read_is_refused_and_its_content_not_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "hunter2\nmore\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let error = read_file(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && !error.contains("hunter2"), "{error}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(read_file(&path).unwrap().expose(), "hunter2");
    }

    #[test]
    fn only_the_first_line_counts_and_it_must_be_text() {
        assert_eq!(first_line(&b"a b \r\nc"[..]).unwrap(), "a b ");
        assert_eq!(first_line(&b""[..]).unwrap(), "");
        assert!(first_line(&b"\xff\n"[..]).is_err());
    }
}
