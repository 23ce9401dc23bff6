//! The SSH server of this host: its files, what it says is in force, and a place where a new configuration is tried before it is one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sortie_protocol::ErrorCode;

use super::config::{self, Config, Source};
use crate::command::Context;
use crate::failure::Failure;
use crate::sys::host;
use crate::tool::Tool;

/// Where relative paths of Include begin: sshd's SSHDIR.
const DIRECTORY: &str = "/etc/ssh";

/// Where distributions keep the main file.
const MAIN_FILES: [&str; 2] = ["/etc/ssh/sshd_config", "/usr/etc/ssh/sshd_config"];

/// The name of our own drop-in: read before those that distributions and cloud images bring.
pub(crate) const DROP_IN: &str = "00-sortie.conf";

/// sshd makes it when it is started by a service manager, and without it not even tests itself.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";

/// What `sshd -T` says: keywords in lower case with their values, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effective(Vec<(String, String)>);

impl Effective {
    pub(crate) fn parse(text: &str) -> Self {
        let pair = |line: &str| {
            let (keyword, value) = line.split_once(' ').unwrap_or((line, ""));
            (keyword.to_ascii_lowercase(), value.trim().to_owned())
        };
        Self(text.lines().map(pair).collect())
    }

    /// Every value of a keyword, in a fixed order.
    pub(crate) fn all(&self, keyword: &str) -> Vec<&str> {
        let mut values: Vec<&str> =
            self.0.iter().filter(|(known, _)| known == keyword).map(|(_, value)| &**value).collect();
        values.sort_unstable();
        values
    }

    pub(crate) fn one(&self, keyword: &str) -> &str {
        self.0.iter().find(|(known, _)| known == keyword).map_or("", |(_, value)| value)
    }

    pub(crate) fn has(&self, keyword: &str) -> bool {
        self.0.iter().any(|(known, _)| known == keyword)
    }
}

/// The SSH server.
pub(crate) struct Sshd<'a> {
    context: &'a Context,
    /// Its main file.
    pub(crate) main: PathBuf,
    /// Options of its command line, which come before every file.
    options: Vec<String>,
    /// The process that listens, if there is one that is known.
    pub(crate) listener: Option<i32>,
}

impl<'a> Sshd<'a> {
    /// Looks for the server and its main file.
    ///
    /// # Errors
    /// `NOT_FOUND` where there is none; `VALIDATION_FAILED` when it refuses the configuration that it has.
    pub(crate) fn find(context: &'a Context) -> Result<(Self, Effective), Failure> {
        let main = MAIN_FILES.iter().map(Path::new).find(|file| file.exists()).ok_or_else(|| {
            Failure::new(ErrorCode::NotFound, format!("there is no {}; is sshd installed?", MAIN_FILES[0]))
        })?;
        let mut sshd = Self { context, main: main.to_owned(), options: Vec::new(), listener: None };
        let present = sshd.present()?;
        let pid = fs::read_to_string(present.one("pidfile")).ok().and_then(|pid| pid.trim().parse().ok());
        sshd.listener = pid.filter(|pid| is_sshd(*pid));
        let Some(pid) = sshd.listener else { return Ok((sshd, present)) };
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let (options, file) = listener_options(&String::from_utf8_lossy(&command));
        sshd.options = options;
        if let Some(file) = file {
            sshd.main = file.into();
        }
        let present = sshd.present()?;
        Ok((sshd, present))
    }

    fn present(&self) -> Result<Effective, Failure> {
        self.effective(&self.main, None).map_err(|mut failure| {
            failure.message = format!(
                "sshd refuses the configuration that it has; nothing was changed: {}",
                failure.message
            );
            failure
        })
    }

    /// What is in force with this main file: for everybody, or for the connection that `-C` of sshd(8) describes.
    ///
    /// # Errors
    /// `VALIDATION_FAILED` with sshd's words when it refuses the configuration.
    pub(crate) fn effective(&self, main: &Path, connection: Option<&str>) -> Result<Effective, Failure> {
        let connection = connection.into_iter().flat_map(|connection| ["-C", connection]);
        let more: Vec<&str> = self.options.iter().map(String::as_str).chain(connection).collect();
        self.ask("-T", main, &more).map(|said| Effective::parse(&said))
    }

    /// What would be in force if there were this file and no command line.
    pub(crate) fn effective_alone(&self, file: &Path) -> Result<Effective, Failure> {
        self.ask("-T", file, &[]).map(|said| Effective::parse(&said))
    }

    /// `sshd -t`: also what only a look at keys and directories shows.
    pub(crate) fn test(&self, main: &Path) -> Result<(), Failure> {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        self.ask("-t", main, &options).map(drop)
    }

    fn ask(&self, question: &str, file: &Path, more: &[&str]) -> Result<String, Failure> {
        if !Path::new(PRIVILEGE_SEPARATION).exists() {
            // Below /run it goes with the next boot; where it is not used, it hurts nobody.
            let _ = fs::DirBuilder::new().mode(0o755).create(PRIVILEGE_SEPARATION);
        }
        let file = file.to_string_lossy();
        let ran = Tool::new("sshd").args([question, "-f", &file]).args(more).run(self.context)?;
        if ran.ok() {
            return Ok(ran.text().into_owned());
        }
        Err(Failure::new(ErrorCode::ValidationFailed, ran.last_lines(4)))
    }

    /// The algorithms of a kind that this host's OpenSSH has, by `ssh -Q`; `None` where that cannot be asked.
    pub(crate) fn algorithms(&self, kind: &str) -> Option<Vec<String>> {
        let ran = Tool::new("ssh").args(["-Q", kind]).run(self.context).ok()?;
        ran.ok().then(|| ran.text().lines().map(str::to_owned).collect())
    }

    /// Whether the option is given on the command line, where no file can overrule it.
    pub(crate) fn is_on_command_line(&self, keywords: &[&str]) -> bool {
        self.options.iter().any(|option| match option.strip_prefix("-o") {
            Some(line) => config::directive(line).is_some_and(|said| keywords.contains(&&*said.keyword)),
            None => keywords.contains(&"port"),
        })
    }
}

/// Whether a process is an sshd.
fn is_sshd(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sshd")
}

/// Of a listening sshd's command line, or of the title it made of it, the options that count for its configuration, and `-f`.
fn listener_options(command: &str) -> (Vec<String>, Option<String>) {
    let mut words =
        command.split(['\0', ' ']).filter(|word| !word.is_empty()).take_while(|word| *word != "[listener]");
    let (mut options, mut file) = (Vec::new(), None);
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix('-').and_then(|rest| rest.chars().next()) else { continue };
        if !matches!(flag, 'o' | 'p' | 'f') {
            continue;
        }
        let value = if word.len() > 2 { Some(&word[2..]) } else { words.next() };
        match (flag, value) {
            ('f', value) => file = value.map(str::to_owned),
            (_, Some(value)) => options.push(format!("-{flag}{value}")),
            _ => {}
        }
    }
    (options, file)
}

/// The files as they are, and our own drop-in wherever an Include would read it.
#[derive(Default)]
pub(crate) struct Disk {
    drop_in: Option<PathBuf>,
}

impl Source for Disk {
    type Error = Failure;

    fn read(&mut self, path: &Path) -> Result<Option<Vec<u8>>, Failure> {
        match fs::read(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::at("cannot read", path, &error)),
        }
    }

    fn expand(&mut self, pattern: &str) -> Vec<PathBuf> {
        let pattern = Path::new(DIRECTORY).join(pattern);
        let (Some(directory), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|n| n.to_str()))
        else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for directory in directories(directory) {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_name().to_str().is_some_and(|entry| config::glob_matches(name, entry)) {
                    found.push(entry.path());
                }
            }
            if self.drop_in.is_none() && name.contains('*') && config::glob_matches(name, DROP_IN) {
                let drop_in = directory.join(DROP_IN);
                if !found.contains(&drop_in) {
                    found.push(drop_in.clone());
                }
                self.drop_in = Some(drop_in);
            }
        }
        found.sort();
        found
    }
}

/// The directories that exist under a path whose parts may be patterns.
fn directories(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in path.iter().skip(1) {
        let part = part.to_string_lossy();
        let literal = !part.contains(['*', '?', '[']);
        found = found
            .into_iter()
            .flat_map(|parent| {
                if literal {
                    return vec![parent.join(&*part)];
                }
                let entries = fs::read_dir(&parent).into_iter().flatten().flatten();
                let names = entries
                    .filter(|e| e.file_name().to_str().is_some_and(|n| config::glob_matches(&part, n)));
                names.map(|entry| entry.path()).collect()
            })
            .filter(|directory| directory.is_dir())
            .collect();
    }
    found
}

/// Reads the configuration; which of its files is our drop-in, if one would be read outside of Match blocks.
pub(crate) fn read(main: &Path) -> Result<(Config, Option<usize>), Failure> {
    let mut disk = Disk::default();
    let config = Config::read(main, &mut disk)?;
    let drop_in =
        config.files.iter().position(|file| Some(&file.path) == disk.drop_in.as_ref()).filter(|drop_in| {
            // Where only a Match block includes it, it would count for that block alone.
            config.includes.iter().any(|(file, line, files)| {
                let outside = |s: &config::Setting| (s.file, s.line) == (*file, *line) && s.block.is_none();
                files.contains(drop_in) && config.settings.iter().any(outside)
            })
        });
    Ok((config, drop_in))
}

/// A copy of the configuration in a directory of its own, for sshd to judge before anything is changed. Gone when dropped.
pub(crate) struct Stage {
    directory: PathBuf,
    /// The real names of the numbered files.
    names: Vec<String>,
}

impl Stage {
    pub(crate) fn new() -> Result<Self, Failure> {
        let random = host::random_id().map_err(|error| Failure::io("no random number", &error))?;
        let base = ["/run", "/tmp"].into_iter().find(|base| Path::new(base).is_dir()).unwrap_or("/etc/ssh");
        let directory = Path::new(base).join(format!(".sortie-sshd-{random}"));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| Failure::at("cannot make the directory", &directory, &error))?;
        Ok(Self { directory, names: Vec::new() })
    }

    /// A file with this text.
    pub(crate) fn file(&self, name: &str, text: &[u8]) -> Result<PathBuf, Failure> {
        let path = self.directory.join(name);
        let written = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        written
            .and_then(|mut file| file.write_all(text))
            .map_err(|error| Failure::at("cannot write", &path, &error))?;
        Ok(path)
    }

    /// The whole configuration with `changed` files; its main file. Line numbers stay, and Includes name the copies.
    pub(crate) fn copy(&mut self, config: &Config, changed: &[(usize, Vec<u8>)]) -> Result<PathBuf, Failure> {
        self.names = config.files.iter().map(|file| file.path.display().to_string()).collect();
        for (at, file) in config.files.iter().enumerate() {
            let new = changed.iter().find(|(file, _)| *file == at).map(|(_, text)| text);
            // Edited texts have lost or gained lines, so their Includes are looked for again, in order.
            let mut includes =
                config.includes.iter().filter(|(file, ..)| *file == at).map(|(.., files)| files);
            let mut text = Vec::new();
            let source = new.or(file.text.as_ref()).map(Vec::as_slice).unwrap_or_default();
            for line in source.split_inclusive(|&b| b == b'\n') {
                let said = config::directive(&String::from_utf8_lossy(line));
                if said.is_none_or(|said| said.keyword != "include") {
                    text.extend_from_slice(line);
                    continue;
                }
                let files = includes.next().map(Vec::as_slice).unwrap_or_default();
                if !files.is_empty() {
                    text.extend_from_slice(b"Include");
                }
                for file in files {
                    text.extend_from_slice(format!(" {}/{file:04}", self.directory.display()).as_bytes());
                }
                text.push(b'\n');
            }
            self.file(&format!("{at:04}"), &text)?;
        }
        Ok(self.directory.join("0000"))
    }

    /// A message of sshd about copies, with the real names.
    pub(crate) fn explain(&self, mut failure: Failure) -> Failure {
        for (at, name) in self.names.iter().enumerate() {
            let copy = format!("{}/{at:04}", self.directory.display());
            failure.message = failure.message.replace(&copy, name);
        }
        failure
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The command line of a server that runs, and what `sshd -T` says.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let (options, _) = listener_options(text);
    assert!(options.iter().all(|option| option.starts_with("-o") || option.starts_with("-p")), "{options:?}");
    super::service::ports(&Effective::parse(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_listener_are_read_from_its_title_and_from_its_command_line() {
        let options = |command| listener_options(command);
        let none: (Vec<String>, Option<String>) = (Vec::new(), None);
        assert_eq!(options("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups"), none);
        assert_eq!(
            options("/usr/sbin/sshd\0-D\0-o\0Port=23\0-p2222\0-f\0/x\0"),
            (vec!["-oPort=23".to_owned(), "-p2222".to_owned()], Some("/x".to_owned()))
        );
    }

    #[test]
    fn what_sshd_says_is_read_by_keyword() {
        let effective =
            Effective::parse("port 22\nallowusers b\nallowusers a\nsubsystem sftp /x -f\nbanner none\n");
        assert_eq!(effective.all("allowusers"), ["a", "b"]);
        assert_eq!(effective.one("subsystem"), "sftp /x -f");
        assert!(
            effective.has("banner") && !effective.has("denyusers") && effective.one("denyusers").is_empty()
        );
    }
}
