//! SSH by the ssh(1) program of this machine, for what only it can do: GSSAPI, its own multiplexing, a FIDO key without
//! an agent, whatever its configuration says. The session over it is the same.
//!
//! Host keys are the program's affair, with the same rules: `StrictHostKeyChecking` is `yes` or `accept-new`, whatever
//! its configuration says, so that it neither asks nor passes over a key.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::command::start_program;
use super::{Connection, Ended, ExitStatus, Launch, SshSettings, Starting, Transport};
use crate::error::{Error, printable};
use crate::observe::{Observer, Step};
use crate::ssh_config::{ConfigSource, HostKeyPolicy};
use crate::target::Target;

pub mod askpass;

/// What ssh(1) exits with where it failed itself.
const FAILED: u32 = 255;
/// For `ssh -V` and `ssh -G`, which speak to nobody.
const ASKED: Duration = Duration::from_secs(10);

/// Reaches a host by the ssh program.
pub struct OpenSsh {
    target: Target,
    settings: SshSettings,
    program: OsString,
    options: Vec<String>,
    askpass: Option<PathBuf>,
    asked: Arc<AtomicBool>,
}

impl OpenSsh {
    /// By `ssh` in `PATH`. Of the settings all are obeyed but `login_timeout`, `local_user` and `home`, which are the
    /// program's own affair; configuration files are read by the program.
    #[must_use]
    pub fn new(target: &Target, settings: &SshSettings) -> Self {
        Self {
            target: target.clone(),
            settings: settings.clone(),
            program: "ssh".into(),
            options: Vec::new(),
            askpass: None,
            asked: Arc::default(),
        }
    }

    /// By this program instead.
    #[must_use]
    pub fn program(mut self, program: impl Into<OsString>) -> Self {
        self.program = program.into();
        self
    }

    /// One more option, as after `-o`: `GSSAPIAuthentication=yes`. It does not win over what the settings say.
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Lets ssh ask for passwords and passphrases: it starts `program` for each question (`SSH_ASKPASS`), which must begin
    /// by calling [`askpass::answer`], and the settings' secrets answer. Without it ssh asks nobody (`BatchMode`). Takes
    /// OpenSSH 8.5: an older one shows questions of the server so that they can pass for its own.
    #[must_use]
    pub fn askpass(mut self, program: impl Into<PathBuf>) -> Self {
        self.askpass = Some(program.into());
        self
    }

    /// Everything before the host, as far as it decides where it goes and whom it trusts.
    fn arguments(&self) -> Result<Vec<OsString>, String> {
        let settings = &self.settings;
        let mut all: Vec<OsString> = Vec::new();
        match &settings.config {
            ConfigSource::Default => {}
            ConfigSource::File(file) => all.extend(["-F".into(), file.clone().into()]),
            ConfigSource::None => all.extend(["-F".into(), "none".into()]),
        }
        if let Some(user) = self.target.user().or(settings.user.as_deref()) {
            all.extend(["-l".into(), user.into()]);
        }
        if let Some(port) = self.target.port().or(settings.port) {
            all.extend(["-p".into(), port.to_string().into()]);
        }
        for file in &settings.identities {
            all.extend(["-i".into(), path_text(file)?.into()]);
        }
        let mut option = |text: String| all.extend(["-o".into(), text.into()]);
        let checking =
            if settings.host_key_policy == Some(HostKeyPolicy::AcceptNew) { "accept-new" } else { "yes" };
        option(format!("StrictHostKeyChecking={checking}"));
        for (keyword, files) in [
            ("UserKnownHostsFile", &settings.user_known_hosts),
            ("GlobalKnownHostsFile", &settings.global_known_hosts),
        ] {
            if let Some(files) = files {
                option(format!("{keyword}={}", list(files)?));
            }
        }
        if let Some(limit) = settings.connect_timeout {
            option(format!("ConnectTimeout={}", limit.as_secs().max(1)));
        }
        for fixed in FIXED {
            option((*fixed).to_owned());
        }
        for given in &self.options {
            option(given.clone());
        }
        Ok(all)
    }

    fn command(&self, arguments: &[OsString]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(arguments);
        match &self.settings.agent_socket {
            Some(socket) => command.env("SSH_AUTH_SOCK", socket),
            None => command.env_remove("SSH_AUTH_SOCK"),
        };
        command
    }

    async fn connect(&self, launch: &Launch, observer: &dyn Observer) -> Result<Connection, Error> {
        let config = |reason| Error::Config { host: self.target.host().to_owned(), reason };
        let mut arguments = self.arguments().map_err(config)?;
        let mut desk = None;
        if let Some(helper) = self.askpass.as_ref().filter(|_| !self.settings.secrets.is_empty()) {
            match self.who_may_ask(&arguments).await {
                Ok(login) => {
                    let secrets = Arc::clone(&self.settings.secrets);
                    let opened = askpass::Desk::open(secrets, login, Arc::clone(&self.asked));
                    desk =
                        Some((helper, opened.map_err(|error| config(format!("asking for ssh: {error}")))?));
                }
                Err(why) => observer.warning(&format!("ssh asks nobody: {why}")),
            }
        }
        let batch = if desk.is_some() { "no" } else { "yes" };
        if self.settings.secrets.unattended() {
            // Whoever knows one password has no second one, and ssh would try an empty one.
            arguments.extend(["-o".into(), "NumberOfPasswordPrompts=1".into()]);
        }
        arguments.extend(["-o".into(), format!("BatchMode={batch}").into(), "-T".into(), "--".into()]);
        arguments.extend([self.target.host().into(), (&launch.line).into()]);
        let mut command = self.command(&arguments);
        // Only what is set here counts: a helper of the caller's environment would be asked in our place.
        command.env_remove("SSH_ASKPASS").env_remove("SSH_ASKPASS_REQUIRE");
        let desk = desk.map(|(helper, desk)| {
            command.env("SSH_ASKPASS", helper).env("SSH_ASKPASS_REQUIRE", "force");
            // Older ones look for a display before they ask a program.
            command.env("DISPLAY", std::env::var_os("DISPLAY").unwrap_or_else(|| "none".into()));
            command.env(askpass::SOCKET, desk.socket());
            desk
        });
        start_program(self.target.host(), command, desk, observer)
    }

    /// The login whose questions are answered, as ssh names it in them: `user@host`. A bastion on the way asks by the same
    /// program, and is not to get what is meant for the host.
    async fn who_may_ask(&self, arguments: &[OsString]) -> Result<String, String> {
        let version = self.ask(&["-V".into()]).await?;
        if !asks_by_name(&version) {
            let version = printable(version.as_bytes(), 100);
            return Err(format!(
                "it takes OpenSSH 8.5 to tell its questions from the server's; this is {version}"
            ));
        }
        let wanted = [arguments, &["-G".into(), "--".into(), self.target.host().into()]].concat();
        let said = self.ask(&wanted).await?;
        let value = |keyword: &str| {
            said.lines()
                .find_map(|line| line.split_once(' ').filter(|(name, _)| *name == keyword))
                .map(|(_, v)| v)
        };
        match (value("user"), value("hostname")) {
            (Some(user), Some(host)) => Ok(format!("{user}@{host}")),
            _ => Err("ssh -G does not say where it goes".into()),
        }
    }

    /// What the program prints on both streams.
    async fn ask(&self, arguments: &[OsString]) -> Result<String, String> {
        let name = self.program.to_string_lossy();
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = match tokio::time::timeout(ASKED, command.output()).await {
            Ok(output) => output.map_err(|error| format!("{name} cannot be started: {error}"))?,
            Err(_) => return Err(format!("{name} does not say which ssh it is or where it goes")),
        };
        if !output.status.success() {
            return Err(format!("{name}: {}", printable(&output.stderr, 300)));
        }
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }
}

/// Nothing but the one command comes back or goes along, and nothing of ssh's own is shown but errors.
const FIXED: &[&str] = &[
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "EscapeChar=none",
    "VisualHostKey=no",
    "LogLevel=ERROR",
];

/// `OpenSSH_9.2p1 Debian-2, …`: whether it is 8.5 or newer.
fn asks_by_name(version: &str) -> bool {
    let number =
        |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
    let found = version.split_once("OpenSSH_").and_then(|(_, rest)| rest.split_once('.'));
    found.is_some_and(|(major, rest)| (number(major), number(rest)) >= (8u32, 5u32))
}

/// A path as ssh takes it where it replaces tokens.
fn path_text(path: &Path) -> Result<String, String> {
    let text = path.to_str().filter(|text| !text.contains("${"));
    let text = text.ok_or_else(|| format!("{}: ssh cannot be given this path", path.display()))?;
    Ok(text.replace('%', "%%"))
}

/// Paths as one value of an option.
fn list(paths: &[PathBuf]) -> Result<String, String> {
    if paths.is_empty() {
        return Ok("none".into());
    }
    let quoted = |path: &PathBuf| {
        path_text(path).map(|text| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
    };
    Ok(paths.iter().map(quoted).collect::<Result<Vec<_>, _>>()?.join(" "))
}

impl Transport for OpenSsh {
    fn host(&self) -> &str {
        self.target.host()
    }

    fn start<'a>(&'a self, launch: &'a Launch, observer: &'a dyn Observer) -> Starting<'a> {
        Box::pin(self.connect(launch, observer))
    }

    fn unattended(&self) -> bool {
        !self.asked.load(Ordering::Relaxed)
    }

    fn explain(&self, ended: &Ended, stderr: &[u8]) -> Option<Error> {
        if ended.status != Some(ExitStatus::Code(FAILED)) {
            return None;
        }
        let said = printable(stderr, 1000);
        let host = self.target.host().to_owned();
        let reason = format!("{} says: {said}", Path::new(OsStr::new(&self.program)).display());
        // `user@host: Permission denied (publickey,password).`
        if let Some((before, after)) = said.rsplit_once(": Permission denied (") {
            let allowed = after.split_once(')').map_or(after, |(methods, _)| methods);
            let user = before
                .rsplit([' ', '|'])
                .next()
                .and_then(|login| login.split('@').next())
                .unwrap_or_default();
            return Some(Error::Auth {
                host,
                user: user.to_owned(),
                tried: vec![reason],
                allowed: allowed.split(',').map(str::to_owned).collect(),
            });
        }
        let step =
            if said.contains("Host key verification failed") { Step::KeyExchange } else { Step::Connect };
        Some(Error::Unreachable { host, step, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_the_options_of_ssh_and_no_key_is_passed_over() {
        let settings = SshSettings {
            config: ConfigSource::File("/c".into()),
            user: Some("set".into()),
            identities: vec!["/k%".into()],
            user_known_hosts: Some(vec!["/a b".into(), "/q\"".into()]),
            global_known_hosts: Some(Vec::new()),
            connect_timeout: Some(Duration::from_millis(1)),
            ..SshSettings::default()
        };
        let target = Target::parse("me@web1:2222").unwrap();
        let ssh = OpenSsh::new(&target, &settings).option("StrictHostKeyChecking=no");
        let text: Vec<_> =
            ssh.arguments().unwrap().into_iter().map(|word| word.into_string().unwrap()).collect();
        let text = text.join(" ");
        let start = "-F /c -l me -p 2222 -i /k%% -o StrictHostKeyChecking=yes -o UserKnownHostsFile=\"/a b\" \"/q\\\"\" \
                     -o GlobalKnownHostsFile=none -o ConnectTimeout=1 ";
        assert!(text.starts_with(start), "{text}");
        assert!(text.ends_with("-o StrictHostKeyChecking=no"), "the first value of ssh wins: {text}");
        let odd = SshSettings { identities: vec!["/${x}".into()], ..SshSettings::default() };
        assert!(OpenSsh::new(&target, &odd).arguments().is_err());
    }

    #[test]
    fn an_ssh_whose_questions_can_be_forged_is_not_answered() {
        assert!(asks_by_name("OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.19"));
        assert!(asks_by_name("OpenSSH_10.0p2 Debian-7, OpenSSL 3.5.1"));
        for old in ["OpenSSH_8.4p1", "OpenSSH_7.9p1", "Sun_SSH_1.1", "Dropbear v2022.83", ""] {
            assert!(!asks_by_name(old), "{old}");
        }
    }

    #[test]
    fn what_ssh_says_at_its_end_tells_a_refused_login_from_an_unreachable_host() {
        let ssh = OpenSsh::new(&Target::parse("web1").unwrap(), &SshSettings::default());
        let ended = |code| Ended { status: Some(ExitStatus::Code(code)), closed: true, reason: None };
        let error =
            ssh.explain(&ended(255), b"me@web1: Permission denied (publickey,password).\r\n").unwrap();
        let Error::Auth { user, allowed, .. } = &error else { panic!("{error}") };
        assert_eq!((user.as_str(), allowed.len()), ("me", 2));
        let error = ssh.explain(&ended(255), b"ssh: connect to host web1 port 22: \x1b[31mrefused").unwrap();
        assert!(
            error.to_string().contains("connect to host") && !error.to_string().contains('\x1b'),
            "{error}"
        );
        assert_eq!(
            ssh.explain(&ended(255), b"Host key verification failed.").unwrap().step(),
            Step::KeyExchange
        );
        assert!(ssh.explain(&ended(127), b"").is_none(), "that is the host's own word");
    }
}
