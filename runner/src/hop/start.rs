//! Starting a runner as another user: the program that changes users, its prompts, the runner's bytes, and READY.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use sortie_protocol::message::{Become, BecomeMethod};
use sortie_protocol::passing::Passing;
use sortie_protocol::{FrameDecoder, Line};

use super::Settings;
use super::refusal::{self, Reason};
use super::script::SCRIPT;
use crate::facts;
use crate::failure::{Failure, reason};
use crate::process::{c_string, candidates, inherited};
use crate::sys::fd::{self, Slot, Waiting};
use crate::sys::keeper::{Keeper, Leader, Report, StartStep, Stdio};
use crate::sys::{host, process, tty};
use crate::tool;

/// How long it may all take; a program that asks something nobody answers is given up then.
const LIMIT: Duration = Duration::from_secs(60);

/// Bytes kept of what programs say.
const KEPT: usize = 4096;

/// Bytes of the runner that are sent at a time.
const CHUNK: usize = 64 * 1024;

/// PATH of the other user, where the program that changes users does not set one: never the login's.
const PATH: &CStr = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A runner as another user, or what is on the way to become one.
pub(super) struct Child {
    keeper: Keeper,
    pub(super) stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    /// Both ends: ours would be at its end while nobody has the other open.
    terminal: Option<(OwnedFd, OwnedFd)>,
    pub(super) decoder: FrameDecoder,
    /// The end of what was said outside of frames, since the last answer to a prompt.
    said: Vec<u8>,
    /// The beginning of what was said on standard output.
    heard: Vec<u8>,
    /// The last of `said` came from the terminal.
    at_terminal: bool,
    /// The program that changes users has ended.
    gone: bool,
    missing: bool,
}

/// What came.
pub(super) struct Came {
    /// Frames, or their end.
    pub(super) frames: Option<usize>,
    pub(super) anything: bool,
    writable: bool,
}

/// Starts one, and waits until it says READY.
pub(super) fn start(whom: &Become, settings: &Settings) -> (Result<(), Failure>, Option<Child>) {
    // Only where it is needed: sudo with a terminal may put a relay of its own between the pipes.
    let prompts_there = whom.method != BecomeMethod::Sudo && whom.password.is_some();
    let (result, child) = try_start(whom, settings, prompts_there);
    match result {
        Err((reason, _)) if reason == refusal::NEEDS_TERMINAL && !prompts_there => {
            if let Some(child) = child {
                child.bury();
            }
            let (result, child) = try_start(whom, settings, true);
            (result.map_err(|(reason, said)| refusal::failure(whom, reason, &said)), child)
        }
        result => (result.map_err(|(reason, said)| refusal::failure(whom, reason, &said)), child),
    }
}

type Refused = (Reason, Vec<u8>);

fn try_start(whom: &Become, settings: &Settings, terminal: bool) -> (Result<(), Refused>, Option<Child>) {
    let broken = |error: &dyn ToString| (refusal::NOT_STARTED, error.to_string().into_bytes());
    let marker = match host::random_id() {
        Ok(marker) => marker,
        Err(error) => return (Err(broken(&error)), None),
    };
    // The marker says that the other user's shell runs; the prompt must not look like it.
    let (prompt, marker) = marker.split_at(16);
    match Child::spawn(whom, settings, prompt, marker, terminal) {
        Err(failure) => (Err(broken(&failure.message)), None),
        Ok(mut child) => {
            let result = child.greet(whom, prompt, marker);
            (result.map_err(|reason| (reason, std::mem::take(&mut child.said))), Some(child))
        }
    }
}

/// The program and its arguments.
fn argv(whom: &Become, settings: &Settings, prompt: &str, marker: &str) -> io::Result<Vec<String>> {
    let own = facts::own_file()?.metadata()?.len();
    let login = host::user_name(host::uid()).unwrap_or_else(|| host::uid().to_string());
    let login: String = login.chars().map(|c| if super::is_user_char(c) { c } else { '_' }).collect();
    let seconds = |time: Duration| (time.as_millis() as u64).div_ceil(1000).max(1);
    let user = whom.user.as_str();
    // None of these words has a blank in it, and none of those before the script.
    let mut words = format!(
        "sh {marker} {} {own} {user} /proc/{}/exe --hop={login} --ttl={} --concurrency={}",
        host::random_id()?,
        process::id(),
        seconds(settings.ends.saturating_duration_since(Instant::now())),
        settings.concurrency
    );
    if let Some(lease) = settings.lease {
        words += &format!(" --lease={}", seconds(lease));
    }
    let front = match (whom.method, &whom.password) {
        // -k: the password is asked for and checked whatever sudo remembers, and nothing is remembered.
        (BecomeMethod::Sudo, Some(_)) => format!("sudo -H -k -S -p {prompt} -u {user} -- /bin/sh -c"),
        (BecomeMethod::Sudo, None) => format!("sudo -H -n -u {user} -- /bin/sh -c"),
        (BecomeMethod::Doas, Some(_)) => format!("doas -u {user} -- /bin/sh -c"),
        (BecomeMethod::Doas, None) => format!("doas -n -u {user} -- /bin/sh -c"),
        (BecomeMethod::Su, _) => {
            // Read by the user's own shell where su does not take another: one that is told nothing but this.
            let line = format!("exec /bin/sh -c '{SCRIPT}' {words}");
            return Ok(["su", "-s", "/bin/sh", "-c", &line, user].map(str::to_owned).into());
        }
    };
    Ok(front.split(' ').chain([SCRIPT]).chain(words.split(' ')).map(str::to_owned).collect())
}

/// su has no rules about the environment, so it gets next to none.
fn environment(method: BecomeMethod) -> Vec<CString> {
    let passed = |name: &[u8]| {
        let common = name.starts_with(b"LC_") || [&b"LANG"[..], b"TZ", b"TERM"].contains(&name);
        (method != BecomeMethod::Su || common) && name != b"PATH" && name != b"LC_ALL"
    };
    let mut environment = inherited(&passed);
    environment.extend([PATH.to_owned(), c"LC_ALL=C".to_owned()]);
    environment
}

impl Child {
    fn spawn(
        whom: &Become,
        settings: &Settings,
        prompt: &str,
        marker: &str,
        terminal: bool,
    ) -> Result<Self, Failure> {
        let setup = |error: io::Error| Failure::io("cannot prepare it", &error);
        let argv = argv(whom, settings, prompt, marker).map_err(setup)?;
        let argv = argv.into_iter().map(|word| c_string("become", word.into_bytes()));
        let argv = argv.collect::<Result<Vec<_>, _>>()?;
        let terminal = if terminal { Some(tty::open().map_err(setup)?) } else { None };
        let leaders = terminal.as_ref().map(|(_, theirs)| theirs.try_clone()).transpose().map_err(setup)?;
        let (stdin_read, stdin) = fd::pipe().map_err(setup)?;
        let (stdout, stdout_write) = fd::pipe().map_err(setup)?;
        let (stderr, stderr_write) = fd::pipe().map_err(setup)?;
        for end in [&stdin, &stdout, &stderr].into_iter().chain(terminal.as_ref().map(|(ours, _)| ours)) {
            fd::set_nonblocking(end).map_err(setup)?;
        }
        let leader = Leader {
            candidates: candidates(refusal::program(whom.method).as_bytes(), &tool::search_path())?,
            argv,
            env: Some(environment(whom.method)),
            terminal: leaders,
            // Not the login's own: what is right for that user is added by PAM or sudoers.
            umask: Some(0o022),
            // It ends by the end of its input: it supervises itself, and mostly may not be signalled.
            critical: true,
            ..Leader::default()
        };
        let stdio = Stdio { stdin: stdin_read, stdout: stdout_write, stderr: stderr_write };
        let keeper = Keeper::start(&leader, stdio).map_err(setup)?;
        Ok(Self {
            keeper,
            stdin: Some(stdin),
            stdout,
            stderr: Some(stderr),
            terminal,
            decoder: FrameDecoder::new(),
            said: Vec::new(),
            heard: Vec::new(),
            at_terminal: false,
            gone: false,
            missing: false,
        })
    }

    /// Answers prompts, sends the runner, waits for its READY.
    fn greet(&mut self, whom: &Become, prompt: &str, marker: &str) -> Result<(), Reason> {
        let deadline = Instant::now() + LIMIT;
        let mut answers = whom.password.iter();
        let mut payload: Option<File> = None;
        let mut pending = Vec::new();
        let mut privileged = false;
        loop {
            if pending.is_empty()
                && let Some(file) = &mut payload
            {
                pending.resize(CHUNK, 0);
                let count = file.read(&mut pending).map_err(|_| refusal::NOT_STARTED)?;
                pending.truncate(count);
                if count == 0 {
                    payload = None;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(refusal::TIMED_OUT);
            }
            let (before, over) = (self.said.len(), self.gone);
            let patience = if over { Duration::ZERO } else { left };
            let came = self.wait(!pending.is_empty(), Some(patience)).map_err(|_| refusal::NOT_STARTED)?;
            while let Some(Line::Frame(line)) = self.decoder.next_line() {
                match line.strip_prefix(marker.as_bytes()).map(<[u8]>::trim_ascii) {
                    Some(b"kept") => privileged = true,
                    Some(b"send") => {
                        privileged = true;
                        payload = facts::own_file().ok();
                    }
                    Some(why) => {
                        privileged = true;
                        self.said.extend_from_slice(why);
                        self.said.push(b'\n');
                    }
                    None if privileged && is_ready(line) => return Ok(()),
                    // nologin(8) says it here.
                    None => {
                        self.said.extend_from_slice(line);
                        self.said.push(b'\n');
                    }
                }
            }
            if came.frames == Some(0) || (over && !came.anything) {
                return Err(match (self.missing, privileged) {
                    (true, _) => refusal::MISSING_PROGRAM,
                    (_, true) => refusal::NOT_STARTED,
                    _ => refusal::read(&self.said),
                });
            }
            if let Some(stdin) = self.stdin.as_ref().filter(|_| came.writable) {
                match fd::write(stdin, &pending) {
                    Ok(count) => drop(pending.drain(..count)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // Whoever reads no more says why, or ends.
                    Err(_) => (payload, pending) = (None, Vec::new()),
                }
            }
            let asked = self.said.len() > before && is_prompt(&self.said, whom.method, prompt);
            // busybox asks on standard output.
            let asked_plainly = whom.method == BecomeMethod::Su && self.heard.trim_ascii() == b"Password:";
            if privileged || !(asked || asked_plainly) {
                continue;
            }
            let Some(password) = answers.next() else {
                self.said.clear();
                // A second prompt is a refusal; asking again would only lock the account.
                let given = whom.password.is_some();
                return Err(if given { refusal::WRONG_PASSWORD } else { refusal::PASSWORD_REQUIRED });
            };
            // Where it is asked for it is read: sudo and su take their input, doas the terminal.
            let terminal = self.terminal.as_ref().map(|(ours, _)| ours).filter(|_| self.at_terminal);
            let Some(place) = terminal.or(self.stdin.as_ref()) else { return Err(refusal::NOT_STARTED) };
            let answer = [password.expose().as_bytes(), b"\n"].concat();
            fd::write(place, &answer).map_err(|_| refusal::NOT_STARTED)?;
            self.said.clear();
            self.heard.push(b'\n');
            self.heard.push(b'.');
        }
    }

    /// Waits for something to come, and takes it in.
    pub(super) fn wait(&mut self, write: bool, timeout: Option<Duration>) -> io::Result<Came> {
        let mut waiting = Waiting::new();
        let stdout = waiting.readable(self.stdout.as_fd());
        let stderr = self.stderr.as_ref().map(|fd| waiting.readable(fd.as_fd()));
        let terminal = self.terminal.as_ref().map(|(ours, _)| waiting.readable(ours.as_fd()));
        let keeper = (!self.gone).then(|| waiting.readable(self.keeper.fd()));
        let stdin = self.stdin.as_ref().filter(|_| write).map(|fd| waiting.writable(fd.as_fd()));
        waiting.wait(timeout)?;
        let came = |slot: Option<Slot>| slot.is_some_and(|slot| waiting.came(slot));
        let (stdout, stderr, terminal) = (waiting.came(stdout), came(stderr), came(terminal));
        let (keeper, writable) = (came(keeper), came(stdin));
        drop(waiting);
        if stderr {
            let ended = self.stderr.as_ref().is_some_and(|fd| listen(fd, &mut self.said));
            self.at_terminal = false;
            if ended {
                self.stderr = None;
            }
        }
        if terminal && let Some((ours, _)) = &self.terminal {
            listen(ours, &mut self.said);
            self.at_terminal = true;
        }
        if keeper {
            match self.keeper.report() {
                Some(Report::StartFailed { step, errno }) => {
                    self.missing = step == StartStep::Exec;
                    self.said.extend_from_slice(reason(&errno.into()).as_bytes());
                }
                Some(Report::Exited { .. }) | None => {}
                Some(_) => return Ok(Came { frames: None, anything: true, writable }),
            }
            self.gone = true;
        }
        let frames = if stdout { self.read_frames()? } else { None };
        Ok(Came { frames, anything: stdout || stderr || terminal || keeper, writable })
    }

    fn read_frames(&mut self) -> io::Result<Option<usize>> {
        let mut reader = Heard { stdout: &self.stdout, heard: &mut self.heard };
        match self.decoder.read_from(&mut reader) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Closes everything, and waits for the end that follows.
    pub(super) fn bury(self) {
        let Self { keeper, stdin, stdout, stderr, terminal, gone, .. } = self;
        drop((stdin, stdout, stderr, terminal));
        while !gone
            && !matches!(keeper.report(), None | Some(Report::Exited { .. } | Report::StartFailed { .. }))
        {
        }
        // What the other runner released lives on.
        keeper.release();
        keeper.reap();
    }
}

/// Reads standard output and keeps its very beginning.
struct Heard<'a> {
    stdout: &'a OwnedFd,
    heard: &'a mut Vec<u8>,
}

impl Read for Heard<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = fd::read(self.stdout, buffer)?;
        let room = 32usize.saturating_sub(self.heard.len());
        self.heard.extend_from_slice(&buffer[..count.min(room)]);
        Ok(count)
    }
}

/// Adds what can be read to `said`, of which the end is kept; whether that was all.
fn listen(from: &OwnedFd, said: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match fd::read(from, &mut buffer) {
            Ok(0) => return true,
            Ok(count) => said.extend_from_slice(&buffer[..count]),
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
        said.drain(..said.len().saturating_sub(KEPT));
    }
}

/// Whether somebody waits for an answer. sudo says our own token (sudo-rs with more around it); the others say what their
/// authors or PAM liked, and stop within a line.
fn is_prompt(said: &[u8], method: BecomeMethod, token: &str) -> bool {
    match method {
        BecomeMethod::Sudo => String::from_utf8_lossy(said).contains(token),
        _ => {
            let line = said.rsplit(|&b| b == b'\n').next().unwrap_or_default().trim_ascii();
            // The beginning of a message, which may come in pieces, is none.
            line.ends_with(b":") && line != [refusal::program(method).as_bytes(), b":"].concat()
        }
    }
}

/// READY of this very runner.
fn is_ready(line: &[u8]) -> bool {
    let Some(frame) = Passing::parse(line) else { return false };
    frame.kind == "READY" && facts::own_sha256().is_ok_and(|own| own.as_str() == frame.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_told_from_what_is_only_said() {
        let sudo = |said: &str| is_prompt(said.as_bytes(), BecomeMethod::Sudo, "5eed");
        assert!(sudo("We trust you have received the usual lecture\n5eed"));
        assert!(sudo("[sudo: 5eed] Password: "), "sudo-rs wraps it");
        assert!(!sudo("[sudo] password for deploy: "), "somebody else's prompt is not answered");
        let other = |said: &str| is_prompt(said.as_bytes(), BecomeMethod::Doas, "");
        assert!(other("\rdoas (deploy@web1) password: "));
        assert!(other("Password:"));
        assert!(!other("Last failed login:\n") && !other("") && !other("doas: Authentication failed\n"));
        assert!(!other("\ndoas: "));
    }
}
