//! Which configuration files count, and reading them.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The longest configuration file that is read, in bytes.
const LONGEST: u64 = 16 * 1024 * 1024;

/// One configuration file, read.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// Its path, for errors.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// A user's file, not the system's: a relative `Include` in it is looked for in `~/.ssh`, not `/etc/ssh`.
    pub of_user: bool,
}

impl ConfigFile {
    /// Reads a file. With `guarded` nobody but `root` and the user with the number `user_id` may be able to write it,
    /// which ssh(1) demands of `~/.ssh/config` and of every file that is included.
    pub(super) fn read(path: PathBuf, of_user: bool, guarded: Option<u32>) -> io::Result<Self> {
        let mut file = File::open(&path)?;
        if let Some(user_id) = guarded {
            let metadata = file.metadata()?;
            if (metadata.uid() != 0 && metadata.uid() != user_id) || metadata.mode() & 0o022 != 0 {
                return Err(io::Error::other(
                    "others may write it, so it is not obeyed; own it and chmod go-w it, as ssh demands too",
                ));
            }
        }
        let mut bytes = Vec::new();
        file.by_ref().take(LONGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LONGEST {
            return Err(io::Error::other(format!("it is longer than {} MiB", LONGEST >> 20)));
        }
        Ok(Self { path, text: String::from_utf8_lossy(&bytes).into_owned(), of_user })
    }
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
    /// Reads the files. `user_id` is the number of the user whose configuration it is.
    ///
    /// # Errors
    /// The path and why it cannot be read.
    pub fn read(
        &self,
        home: Option<&Path>,
        user_id: u32,
    ) -> Result<Vec<ConfigFile>, (PathBuf, std::io::Error)> {
        let (wanted, must_exist) = match self {
            Self::Default => {
                let user = home.map(|home| (home.join(".ssh/config"), true, Some(user_id)));
                let system = (PathBuf::from("/etc/ssh/ssh_config"), false, None);
                (user.into_iter().chain([system]).collect(), false)
            }
            Self::File(path) => (vec![(path.clone(), true, None)], true),
            Self::None => (Vec::new(), false),
        };
        let mut files = Vec::new();
        for (path, of_user, guarded) in wanted {
            match ConfigFile::read(path.clone(), of_user, guarded) {
                Ok(file) => files.push(file),
                Err(error) if !must_exist && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err((path, error)),
            }
        }
        Ok(files)
    }
}
