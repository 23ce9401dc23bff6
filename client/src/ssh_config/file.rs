//! Which configuration files count, and reading them.

use std::path::{Path, PathBuf};

/// One configuration file, read.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// Its path, for errors.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// Where a relative `Include` is looked for: `~/.ssh` for a user's file, `/etc/ssh` for the system's.
    pub include_base: Option<PathBuf>,
}

/// Which configuration files count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ConfigSource {
    /// `~/.ssh/config`, then `/etc/ssh/ssh_config`; each may be missing.
    #[default]
    Default,
    /// This file alone (`-F`); it must be there.
    File(PathBuf),
    /// No file at all (`-F none`).
    None,
}

impl ConfigSource {
    /// Reads the files.
    ///
    /// # Errors
    /// The path and why it cannot be read.
    pub fn read(&self, home: Option<&Path>) -> Result<Vec<ConfigFile>, (PathBuf, std::io::Error)> {
        let of_user = home.map(|home| home.join(".ssh"));
        let (paths, must_exist) = match self {
            Self::Default => {
                let user = of_user.clone().map(|directory| (directory.join("config"), Some(directory)));
                let system = ("/etc/ssh/ssh_config".into(), Some("/etc/ssh".into()));
                (user.into_iter().chain([system]).collect(), false)
            }
            Self::File(path) => (vec![(path.clone(), of_user)], true),
            Self::None => (Vec::new(), false),
        };
        let mut files = Vec::new();
        for (path, include_base) in paths {
            match std::fs::read(&path) {
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    files.push(ConfigFile { path, text, include_base });
                }
                Err(error) if !must_exist && error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err((path, error)),
            }
        }
        Ok(files)
    }
}
