//! From a transport to a READY: starts the script, answers it, and checks what came up.
//!
//! Knows no sessions and no transports' insides. Whatever the far side sends is bounded and believed only after the
//! marker, which it cannot know before the script runs: login shells print things.
//!
//! Round trips: the exec request and the script's first line 1; the runner and its READY 1, with the first command's
//! result in the same one where the host reads exactly.

use std::time::Duration;

use bytes::Bytes;
use sortie_protocol::message::Ready;
use sortie_protocol::{FRAME_LIMIT, FrameDecoder, Line, PROTOCOL_MAJOR, RunnerMessage};
use tokio::time::Instant;

use crate::error::{BootstrapProblem, DirectoryProblem, DirectoryTried, Error, printable};
use crate::observe::{Observer, Step, StepTimer};
use crate::runners::{Machine, Runner, RunnerSet};
use crate::transport::{Connection, Launch, Transport};

pub mod script;

/// Bytes of noise that are read before the marker, and again before READY.
const NOISE: usize = 1024 * 1024;
/// Longest line that the script prints.
const SCRIPT_LINE: usize = 4096;
/// Longest READY that is looked for before the marker.
const READY_LINE: usize = 16 * 1024;
/// How much of what was printed gets into an error, in bytes.
const SHOWN: usize = 2048;
/// How long the transport may take to tell how a program ended.
const ENDING: Duration = Duration::from_secs(2);

/// How the runner is started.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// The runner's flags, such as `--ttl 600`; letters, digits and `-./:` only.
    pub flags: Vec<String>,
    /// Keep the runner in `~/.cache/sortie` and look for it there.
    pub cache: bool,
    /// For the login shell, up to the script's first line.
    pub shell_timeout: Duration,
    /// For the upload and the start, up to READY.
    pub start_timeout: Duration,
    /// Whether one that the host starts by itself will do.
    pub installed: Installed,
    /// Such a one must be one of ours too, byte for byte.
    pub known_only: bool,
}

/// What is thought of a runner that the host starts by itself, under ForceCommand of sshd_config(5), in place of a shell. It
/// is taken only if it takes nothing but signed commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// It is refused.
    Refused,
    /// It will do as well as one that is sent.
    Taken,
    /// Nothing else will do.
    Required,
}

/// A runner that is up.
#[derive(Debug)]
pub struct Started {
    /// What it said of itself, checked.
    pub ready: Ready,
    /// The same as it came, without its newline.
    pub ready_line: Vec<u8>,
    /// Holds what came after READY.
    pub decoder: FrameDecoder,
    /// The runner's streams.
    pub connection: Connection,
    /// Names the runner's directory, `.sortie-<token>`; empty for one that the host started by itself.
    pub token: String,
}

/// Starts a runner. `early` is sent as soon as nothing can take it but the runner.
///
/// # Errors
/// Those of the transport, [`Error::Bootstrap`], [`Error::RunnerMismatch`] and [`Error::TimedOut`].
pub async fn start(
    transport: &dyn Transport,
    runners: &RunnerSet,
    options: &StartOptions,
    early: Bytes,
    observer: &dyn Observer,
) -> Result<Started, Error> {
    let host = transport.host();
    let secret = random_hex(host)?;
    let token = random_hex(host)?;
    let digests: Vec<&str> = runners.iter().map(|(_, runner)| runner.sha256()).collect();
    let mut arguments = vec![
        secret[..16].to_owned(),
        secret[16..].to_owned(),
        token.clone(),
        options.start_timeout.as_secs().max(1).to_string(),
        if options.cache && !digests.is_empty() { digests.join(" ") } else { "-".into() },
    ];
    arguments.extend(options.flags.iter().cloned());
    let launch = Launch { line: script::line(&arguments), argv: script::argv(&arguments) };

    // Most hosts are of the same kind as this machine: compress that runner while the connection is made.
    if let Some(runner) = Machine::local().and_then(|machine| runners.get(machine)).cloned() {
        tokio::task::spawn_blocking(move || drop(runner.gzip().clone()));
    }
    let connection = transport.start(&launch, observer).await?;
    let talk = Talk {
        host,
        transport,
        marker: secret.into_bytes(),
        token: &token,
        connection,
        decoder: FrameDecoder::new(),
        noise: Vec::new(),
        tried: Vec::new(),
    };
    talk.run(runners, options, early, observer).await
}

fn random_hex(host: &str) -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::Config {
        host: host.to_owned(),
        reason: format!("no random numbers: {error}"),
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The talk with one script.
struct Talk<'a> {
    host: &'a str,
    transport: &'a dyn Transport,
    marker: Vec<u8>,
    token: &'a str,
    connection: Connection,
    decoder: FrameDecoder,
    /// What came before the marker, or between it and READY; its end.
    noise: Vec<u8>,
    tried: Vec<DirectoryTried>,
}

/// What comes first.
enum Found {
    Probe(Probe),
    /// A runner that the host started instead of the script, and its line.
    Ready(Box<Ready>, Vec<u8>),
}

/// A whole line that is a READY: it, its text, and where the rest begins.
fn find_ready(seen: &[u8]) -> Option<(Box<Ready>, Vec<u8>, usize)> {
    let mut begin = 0;
    while let Some(length) = seen[begin..].iter().position(|&byte| byte == b'\n') {
        let line = &seen[begin..begin + length];
        begin += length + 1;
        if line.starts_with(b"{")
            && let Ok(RunnerMessage::Ready(ready)) = RunnerMessage::parse(line)
        {
            return Some((ready, line.to_vec(), begin));
        }
    }
    None
}

/// The script's first line.
#[derive(Debug, PartialEq, Eq)]
struct Probe {
    machine: String,
    exact: bool,
    gzip: bool,
    cached: Option<String>,
}

impl Probe {
    /// The machine is whatever words come first: where `uname` is missing there is none.
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (machine, [exact, packing, cached]) = words.split_last_chunk::<3>()?;
        Some(Self {
            machine: machine.join(" "),
            exact: *exact == "1",
            gzip: *packing == "gzip",
            cached: (*cached != "-").then(|| (*cached).to_owned()),
        })
    }
}

impl Talk<'_> {
    async fn run(
        mut self,
        runners: &RunnerSet,
        options: &StartOptions,
        early: Bytes,
        observer: &dyn Observer,
    ) -> Result<Started, Error> {
        let timer = StepTimer::start(observer, Step::StartShell);
        let deadline = Instant::now() + options.shell_timeout;
        let probe = match tokio::time::timeout_at(deadline, self.find_marker()).await {
            Ok(probe) => probe,
            Err(_) => Err(Error::TimedOut {
                host: self.host.to_owned(),
                step: Step::StartShell,
                limit: options.shell_timeout,
                reason: format!(
                    "logged in, but the login shell did not come to run the start script; look at what its rc files \
                     wait for{}",
                    self.printed_so_far()
                ),
            }),
        };
        let probe = match self.or_abort(probe)? {
            Found::Probe(_) if options.installed == Installed::Required => {
                return self.or_abort(Err(self.bootstrap(BootstrapProblem::NotAnchored)));
            }
            Found::Probe(probe) => probe,
            Found::Ready(ready, ready_line) => {
                self.or_abort(self.check_installed(&ready, runners, options))?;
                timer.done(1, "the host's own runner");
                let Self { decoder, connection, .. } = self;
                return Ok(Started { ready: *ready, ready_line, decoder, connection, token: String::new() });
            }
        };
        let chosen = self.or_abort(self.choose(runners, &probe))?;
        timer.done(1, &probe.machine);

        let timer = StepTimer::start(observer, Step::StartRunner);
        let deadline = Instant::now() + options.start_timeout;
        let result = match tokio::time::timeout_at(deadline, self.start_runner(&chosen, &probe, early)).await
        {
            Ok(result) => result,
            Err(_) => Err(Error::TimedOut {
                host: self.host.to_owned(),
                step: Step::StartRunner,
                limit: options.start_timeout,
                reason: format!("the runner was sent but did not come up{}", self.printed_so_far()),
            }),
        };
        let (ready, ready_line) = self.or_abort(result)?;
        for directory in &self.tried {
            observer.warning(&format!("{}: passed over {directory}", self.host));
        }
        let how =
            if probe.cached.as_deref() == Some(chosen.sha256()) { "from the cache" } else { "uploaded" };
        timer.done(if probe.exact { 1 } else { 2 }, how);
        Ok(Started {
            ready,
            ready_line,
            decoder: self.decoder,
            connection: self.connection,
            token: self.token.to_owned(),
        })
    }

    fn or_abort<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if result.is_err() {
            self.connection.ending.abort();
        }
        result
    }

    /// Reads up to the end of the line that begins with the marker, wherever in a line it stands, or of one that is a READY.
    async fn find_marker(&mut self) -> Result<Found, Error> {
        let mut seen: Vec<u8> = Vec::new();
        let mut total = 0;
        loop {
            let Some(chunk) = self.connection.output.recv().await else {
                self.noise = seen;
                return Err(self.shell_refused().await);
            };
            total += chunk.len();
            seen.extend_from_slice(&chunk);
            if let Some(at) = find(&seen, &self.marker) {
                let line = &seen[at + self.marker.len()..];
                if let Some(end) = line.iter().position(|&b| b == b'\n') {
                    let text = String::from_utf8_lossy(&line[..end]).into_owned();
                    self.decoder.push(&line[end + 1..]);
                    return Probe::parse(&text).map(Found::Probe).ok_or_else(|| {
                        let reason = format!("it printed {:?}", printable(text.as_bytes(), 200));
                        self.bootstrap(BootstrapProblem::ShellRefused { reason })
                    });
                }
                if line.len() <= SCRIPT_LINE {
                    seen.drain(..at);
                    continue;
                }
            } else if let Some((ready, line, end)) = find_ready(&seen) {
                self.decoder.push(&seen[end..]);
                return Ok(Found::Ready(ready, line));
            } else {
                // Only the end can still begin a marker or a READY; some more is kept for the error.
                let excess = seen.len().saturating_sub(READY_LINE + self.marker.len());
                seen.drain(..excess);
            }
            if total > NOISE {
                self.noise = seen;
                return Err(self.bootstrap(BootstrapProblem::TooNoisy { bytes: total }));
            }
        }
    }

    fn choose(&self, runners: &RunnerSet, probe: &Probe) -> Result<std::sync::Arc<Runner>, Error> {
        let (system, name) = probe.machine.split_once(' ').unwrap_or(("", ""));
        let machine = Machine::from_uname(system, name).ok_or_else(|| {
            let machine = printable(probe.machine.as_bytes(), 80);
            let machine = if machine.is_empty() { "uname told nothing".into() } else { machine };
            self.bootstrap(BootstrapProblem::UnsupportedMachine { machine })
        })?;
        runners.get(machine).cloned().ok_or_else(|| {
            let held = runners.iter().map(|(machine, _)| machine.target().to_owned()).collect();
            self.bootstrap(BootstrapProblem::NoRunner { machine: machine.target().to_owned(), held })
        })
    }

    async fn start_runner(
        &mut self,
        runner: &Runner,
        probe: &Probe,
        early: Bytes,
    ) -> Result<(Ready, Vec<u8>), Error> {
        let digest = runner.sha256();
        let mut held_back = None;
        if probe.cached.as_deref() == Some(digest) {
            self.send(format!("cached 0 0 {digest}\n").into()).await?;
            self.send(early).await?;
        } else {
            let (packing, payload) =
                if probe.gzip { ("gzip", runner.gzip()) } else { ("raw", runner.bytes()) };
            let header = format!("{packing} {} {} {digest}\n", payload.len(), runner.len());
            self.send(header.into()).await?;
            self.send(payload.clone()).await?;
            let rest = Bytes::from([self.token.as_bytes(), b"\n", &early].concat());
            if probe.exact {
                self.send(rest).await?;
            } else {
                held_back = Some(rest);
            }
        }
        self.await_ready(digest, held_back).await
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), Error> {
        if bytes.is_empty() || self.connection.input.send(bytes).await.is_ok() {
            return Ok(());
        }
        Err(self.not_started().await)
    }

    async fn await_ready(
        &mut self,
        digest: &str,
        mut held_back: Option<Bytes>,
    ) -> Result<(Ready, Vec<u8>), Error> {
        let mut noise = 0;
        loop {
            while let Some(line) = self.decoder.next_line() {
                let line = match line {
                    Line::Frame(line) => line.to_vec(),
                    Line::TooLong => {
                        return Err(self.bootstrap(BootstrapProblem::TooNoisy { bytes: FRAME_LIMIT }));
                    }
                };
                if let Some(at) = find(&line, &self.marker) {
                    let said = String::from_utf8_lossy(&line[at + self.marker.len()..]).trim().to_owned();
                    if said == "got"
                        && let Some(rest) = held_back.take()
                    {
                        self.send(rest).await?;
                    } else {
                        self.script_said(&said)?;
                    }
                } else if let Ok(RunnerMessage::Ready(ready)) = RunnerMessage::parse(&line) {
                    self.check(&ready, digest)?;
                    return Ok((*ready, line));
                } else {
                    noise += line.len();
                    self.keep_noise(&line);
                }
            }
            if self.decoder.is_over_limit() {
                return Err(self.bootstrap(BootstrapProblem::TooNoisy { bytes: FRAME_LIMIT }));
            }
            if noise > NOISE {
                return Err(self.bootstrap(BootstrapProblem::TooNoisy { bytes: noise }));
            }
            match self.connection.output.recv().await {
                Some(chunk) => self.decoder.push(&chunk),
                None => return Err(self.not_started().await),
            }
        }
    }

    /// One line of the script after its first.
    fn script_said(&mut self, said: &str) -> Result<(), Error> {
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        let shown = |text: &str| printable(text.as_bytes(), 300);
        match word {
            "no" => {
                let (directory, why) = rest.split_once(": ").unwrap_or((rest, ""));
                if self.tried.len() < 16 {
                    self.tried.push(DirectoryTried {
                        directory: shown(directory),
                        problem: DirectoryProblem::from_text(why),
                        said: shown(why),
                    });
                }
                Ok(())
            }
            "none" => {
                let tried = std::mem::take(&mut self.tried);
                Err(self.bootstrap(BootstrapProblem::NoDirectory { tried }))
            }
            "damaged" => Err(self.bootstrap(BootstrapProblem::Damaged { reason: shown(rest) })),
            "broken" => {
                let reason = format!("it was put in place but does not run there: {}", shown(rest));
                Err(self.bootstrap(BootstrapProblem::NotStarted { reason }))
            }
            _ => Ok(()),
        }
    }

    fn check(&self, ready: &Ready, digest: &str) -> Result<(), Error> {
        if ready.sha256 != digest {
            return Err(Error::RunnerMismatch {
                host: self.host.to_owned(),
                expected: digest.to_owned(),
                found: printable(ready.sha256.as_bytes(), 100),
            });
        }
        self.check_protocol(ready)
    }

    /// One that the host started by itself: which program it is, is the host's affair, unless only known ones will do; that
    /// it takes nothing unsigned is what it was put there for.
    fn check_installed(
        &self,
        ready: &Ready,
        runners: &RunnerSet,
        options: &StartOptions,
    ) -> Result<(), Error> {
        if options.installed == Installed::Refused {
            return Err(self.bootstrap(BootstrapProblem::Installed));
        }
        let incompatible =
            |reason: &str| Err(self.bootstrap(BootstrapProblem::Incompatible { reason: reason.into() }));
        if ready.capabilities.get("signed") != Some(&true) {
            return incompatible(
                "the host starts it by itself, but without an anchor, so that it would take unsigned commands too",
            );
        }
        let is_id = |text: &str| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_id(&ready.session) || !is_id(&ready.nonce) {
            return incompatible("its READY has no session and nonce that a signature could be bound to");
        }
        if options.known_only && !runners.iter().any(|(_, runner)| runner.sha256() == ready.sha256) {
            return Err(Error::RunnerMismatch {
                host: self.host.to_owned(),
                expected: "one of the runners that are vouched for".into(),
                found: printable(ready.sha256.as_bytes(), 100),
            });
        }
        self.check_protocol(ready)
    }

    fn check_protocol(&self, ready: &Ready) -> Result<(), Error> {
        let incompatible = |reason| Err(self.bootstrap(BootstrapProblem::Incompatible { reason }));
        match ready.protocol {
            Some(version) if version.major == PROTOCOL_MAJOR => Ok(()),
            Some(version) => incompatible(format!(
                "it speaks version {}.{} of the protocol, we speak {PROTOCOL_MAJOR}",
                version.major, version.minor
            )),
            None => incompatible("it does not say which version of the protocol it speaks".into()),
        }
    }

    fn keep_noise(&mut self, line: &[u8]) {
        self.noise.extend_from_slice(line);
        self.noise.push(b'\n');
        let excess = self.noise.len().saturating_sub(SHOWN);
        self.noise.drain(..excess);
    }

    /// The program ended before the script's first line.
    async fn shell_refused(&self) -> Error {
        let ended = tokio::time::timeout(ENDING, self.connection.ending.wait()).await.unwrap_or_default();
        let explained = || self.transport.explain(&ended, &self.connection.ending.stderr());
        if let Some(error) = self.noise.is_empty().then(explained).flatten() {
            return error;
        }
        match (ended.reason, ended.status) {
            // Not refused but cut off: nothing was printed and nobody said how it ended.
            (Some(reason), None) if !ended.closed && !reason.contains("refused") => Error::Lost {
                host: self.host.to_owned(),
                step: Step::StartShell,
                reason: format!("{reason}{}", self.printed_so_far()),
                pid: None,
            },
            (Some(reason), _) => self.bootstrap(BootstrapProblem::ShellRefused { reason }),
            (None, status) => {
                let status = status.map_or_else(|| "no exit status".into(), |status| status.to_string());
                self.bootstrap(BootstrapProblem::ShellRefused { reason: format!("it ended with {status}") })
            }
        }
    }

    /// The program ended between the script's first line and READY.
    async fn not_started(&self) -> Error {
        let ended = tokio::time::timeout(ENDING, self.connection.ending.wait()).await.unwrap_or_default();
        match (ended.reason, ended.status) {
            (Some(reason), None) => Error::Lost {
                host: self.host.to_owned(),
                step: Step::StartRunner,
                reason: format!("{reason}{}", self.printed_so_far()),
                pid: None,
            },
            (reason, status) => {
                let status = status.map_or_else(|| "no exit status".into(), |status| status.to_string());
                let reason = reason.unwrap_or_else(|| format!("the shell ended with {status}"));
                self.bootstrap(BootstrapProblem::NotStarted { reason })
            }
        }
    }

    fn bootstrap(&self, problem: BootstrapProblem) -> Error {
        Error::Bootstrap { host: self.host.to_owned(), problem, printed: self.printed() }
    }

    /// What came on both streams, its end, fit to be shown.
    fn printed(&self) -> String {
        let mut all = self.noise.clone();
        if !all.is_empty() && !all.ends_with(b"\n") {
            all.push(b'\n');
        }
        all.extend(self.connection.ending.stderr());
        printable(&all, SHOWN)
    }

    fn printed_so_far(&self) -> String {
        let printed = self.printed();
        if printed.is_empty() { String::new() } else { format!(". It printed: {printed}") }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
#[path = "bootstrap_tests.rs"]
mod tests;
