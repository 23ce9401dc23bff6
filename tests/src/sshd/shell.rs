//! Login shells of test hosts, the files they read at their start, and the formats of files that servers read.

use anyhow::{Result, bail, ensure};
use russh::keys::ssh_key::private::KeypairData;

use super::spec::{File, System};
use crate::keys::KeyPair;

/// A login shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shell {
    /// `/bin/sh`, whatever it is.
    Sh,
    /// GNU bash.
    Bash,
    /// dash.
    Dash,
    /// tcsh.
    Tcsh,
    /// fish.
    Fish,
    /// zsh.
    Zsh,
    /// ksh.
    Ksh,
    /// bash as a restricted shell.
    Rbash,
    /// `nologin(8)`: says so and ends.
    Nologin,
    /// Prints to both streams, takes so many seconds, then is `/bin/sh`.
    Slow(u32),
    /// A script of the test's own, with its `#!` line.
    Script(String),
}

const SCRIPT_PATH: &str = "/usr/local/bin/kit-shell";

impl Shell {
    /// The shells that a command of the bootstrap has to pass through unchanged.
    pub const ALL: [Shell; 5] = [Shell::Sh, Shell::Bash, Shell::Dash, Shell::Tcsh, Shell::Fish];

    /// The program's name; tests use it to see whether it is installed.
    pub fn program(&self) -> &'static str {
        match self {
            Shell::Sh | Shell::Slow(_) | Shell::Script(_) => "sh",
            Shell::Bash => "bash",
            Shell::Dash => "dash",
            Shell::Tcsh => "tcsh",
            Shell::Fish => "fish",
            Shell::Zsh => "zsh",
            Shell::Ksh => "ksh",
            Shell::Rbash => "rbash",
            Shell::Nologin => "nologin",
        }
    }

    pub(super) fn path(&self, system: System) -> Result<String> {
        if self.script().is_some() {
            return Ok(SCRIPT_PATH.to_owned());
        }
        if system == System::Busybox {
            ensure!(*self == Shell::Sh, "a busybox host has no shell but sh, not {self:?}");
        }
        if *self == Shell::Sh {
            return Ok("/bin/sh".to_owned());
        }
        match crate::which(self.program()).and_then(|path| path.to_str().map(str::to_owned)) {
            Some(path) => Ok(path),
            None => bail!("the shell {} is not installed", self.program()),
        }
    }

    pub(super) fn script(&self) -> Option<String> {
        match self {
            Shell::Script(text) => Some(text.clone()),
            Shell::Slow(seconds) => Some(format!(
                "#!/bin/sh\necho 'Welcome. Be patient.'\necho 'patience' >&2\nsleep {seconds}\nexec /bin/sh \"$@\"\n"
            )),
            _ => None,
        }
    }

    /// fish makes directories and files of its own the first time it runs.
    pub(super) fn warm_up(&self, path: &str) -> Vec<String> {
        match self {
            Shell::Fish => vec![path.to_owned(), "-c".to_owned(), "true".to_owned()],
            _ => Vec::new(),
        }
    }
}

/// The start-up files that shells read when sshd runs a command through them, each noisy. bash reads `.bashrc` when
/// it finds itself under sshd, tcsh `.tcshrc` or `.cshrc`, fish `config.fish`, zsh `.zshenv`; sh and dash read none.
pub(super) fn noise(home: &str) -> Vec<File> {
    let names =
        [".bashrc", ".tcshrc", ".cshrc", ".zshenv", ".config/fish/config.fish", ".profile", ".bash_profile"];
    let mut files: Vec<_> = names
        .iter()
        .map(|name| {
            // One line that every one of these shells understands; csh has no way to write to stderr alone.
            let text = format!(
                "echo 'noise from {name}: $x \"y\" {{\"type\":\"READY\"}}'\nsh -c 'echo noise >&2'\n"
            );
            File { path: format!("{home}/{name}"), content: text.into_bytes(), mode: 0o644, of_account: true }
        })
        .collect();
    files.push(File {
        path: format!("{home}/.ssh/rc"),
        content: b"printf 'noise from rc without a newline'\necho noise from rc >&2\n".to_vec(),
        mode: 0o644,
        of_account: true,
    });
    files
}

/// The key in dropbear's own format: the type, then seed and public key as one string, lengths as in RFC 4251 §5.
pub(crate) fn dropbear_key(key: &KeyPair) -> Result<Vec<u8>> {
    let KeypairData::Ed25519(pair) = key.private().key_data() else { bail!("not an Ed25519 key") };
    let mut out = Vec::new();
    for field in [b"ssh-ed25519".as_slice(), &pair.to_bytes()] {
        out.extend(u32::try_from(field.len())?.to_be_bytes());
        out.extend(field);
    }
    Ok(out)
}
