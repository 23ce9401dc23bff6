//! Programs of the host that commands use: found where administration programs are, spoken to in the C locale, their
//! output kept within bounds.
//!
//! Knows processes and text, not what any program does.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use sortie_protocol::{ErrorCode, Stream};

use crate::command::Context;
use crate::failure::Failure;
use crate::limits;
use crate::pool::Capture;
use crate::process::{self, Consumer, Ended, Input};
use crate::sys::host;
use crate::sys::keeper::Leader;

/// Where such programs are, besides PATH.
const ADMIN_PATH: &str = ":/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// Bytes kept of each stream: head and tail.
const KEPT: u64 = 256 * 1024;

/// How often the peer is told that a program is waited for.
const TELL: Duration = Duration::from_secs(5);

/// Longest line that is handed on, in bytes; the rest of a longer one is dropped.
const LONGEST_LINE: usize = 4096;

/// A program to run.
pub(crate) struct Tool {
    program: String,
    args: Vec<String>,
    env: Vec<(&'static str, String)>,
    waiting: Option<String>,
}

/// What a program did.
pub(crate) struct Ran {
    /// 0 to 255, or 128 + n when signal n ended it.
    pub(crate) exit_code: i32,
    /// At most 256 KiB of each stream; of more, head and tail.
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Processes that it left running.
    pub(crate) left_running: u32,
}

/// Takes lines as they come, without their ends.
pub(crate) type TakeLine<'a> = &'a mut dyn FnMut(Stream, &[u8]);

impl Tool {
    pub(crate) fn new(program: impl Into<String>) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new(), waiting: None }
    }

    pub(crate) fn args<S: AsRef<str>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// What the peer is told every few seconds while the program says nothing. Not for [`Self::critical`].
    pub(crate) fn waiting(mut self, message: impl Into<String>) -> Self {
        self.waiting = Some(message.into());
        self
    }

    /// Runs it to its end. What it leaves running lives on.
    ///
    /// # Errors
    /// `NOT_FOUND` when the host has no such program; why the command was ended. Its exit status is no error here.
    pub(crate) fn run(self, context: &Context) -> Result<Ran, Failure> {
        self.run_lines(context, &mut |_, _| ())
    }

    /// As [`Self::run`]; `take` gets each line as it comes.
    pub(crate) fn run_lines(mut self, context: &Context, take: TakeLine<'_>) -> Result<Ran, Failure> {
        let mut said = Said::new(context, take);
        said.waiting = self.waiting.take().map(|message| (message, Instant::now() + TELL));
        let ended = process::run(&context.job, &self.leader(context, false)?, Input::Null, false, &mut said)?;
        Ok(said.ran(&ended))
    }

    /// As [`Self::run_lines`], in a critical section: once it runs, it is not ended half way by cancel, timeout, time to live,
    /// loss of the peer or death of the runner; what was asked for meanwhile takes effect afterwards.
    pub(crate) fn critical(self, context: &Context, take: TakeLine<'_>) -> Result<Ran, Failure> {
        let mut said = Said::new(context, take);
        let ended =
            process::run_critical(&context.job, &self.leader(context, true)?, &mut |stream, bytes| {
                said.take(stream, bytes);
            })?;
        Ok(said.ran(&ended))
    }

    fn leader(&self, context: &Context, critical: bool) -> Result<Leader, Failure> {
        let path = search_path();
        let candidates = process::candidates(self.program.as_bytes(), &path)?;
        let text = |text: &str| process::c_string("argument", text.as_bytes().to_vec());
        let argv =
            std::iter::once(&self.program).chain(&self.args).map(|a| text(a)).collect::<Result<_, _>>()?;
        let mut env = process::inherited(&|name| {
            let ours = self.env.iter().any(|(own, _)| name == own.as_bytes());
            !ours && !name.starts_with(b"LC_") && ![&b"PATH"[..], b"LANG", b"LANGUAGE"].contains(&name)
        });
        env.push(process::c_string("PATH", [b"PATH=", path.as_bytes()].concat())?);
        if self.env.iter().all(|(own, _)| *own != "LC_ALL") {
            env.push(c"LC_ALL=C".to_owned());
        }
        for (name, value) in &self.env {
            env.push(text(&format!("{name}={value}"))?);
        }
        let bounds = limits::bounds(&context.job, None, critical)?;
        Ok(Leader { candidates, argv, env: Some(env), bounds, critical, ..Leader::default() })
    }
}

impl Ran {
    pub(crate) fn ok(&self) -> bool {
        self.exit_code == 0
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// The last lines that it printed, errors preferred: for messages, at most 2 KiB, without control characters.
    pub(crate) fn last_lines(&self, count: usize) -> String {
        let said = if self.stderr.trim_ascii().is_empty() { &self.stdout } else { &self.stderr };
        last_lines(said, count)
    }
}

/// The last `count` lines that are not blank, at most 2 KiB, without control characters, joined by `; `.
pub(crate) fn last_lines(said: &[u8], count: usize) -> String {
    let text = String::from_utf8_lossy(&said[said.len().saturating_sub(2048)..]);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(count)..].join("; ");
    last.chars().filter(|c| !c.is_control()).collect()
}

/// PATH, and where administration programs are besides.
pub(crate) fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(ADMIN_PATH);
    path
}

/// Whether the host has this program.
pub(crate) fn exists(program: &str) -> bool {
    std::env::split_paths(&search_path())
        .any(|directory| host::is_executable(&directory.join(Path::new(program))))
}

/// Keeps what is said, and cuts it into lines.
struct Said<'a> {
    context: &'a Context,
    /// What to say, and when the next time.
    waiting: Option<(String, Instant)>,
    kept: [Capture; 2],
    line: [Vec<u8>; 2],
    take: TakeLine<'a>,
}

impl<'a> Said<'a> {
    fn new(context: &'a Context, take: TakeLine<'a>) -> Self {
        let capture = || Capture::new(KEPT, &context.pool);
        Self { context, waiting: None, kept: [capture(), capture()], line: Default::default(), take }
    }

    fn ran(self, ended: &Ended) -> Ran {
        for (at, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            if !self.line[at].is_empty() {
                (self.take)(stream, &self.line[at]);
            }
        }
        let [stdout, stderr] = self.kept.map(|capture| capture.finish().bytes);
        Ran { exit_code: ended.exit_code, stdout, stderr, left_running: ended.left_running }
    }
}

impl Consumer for Said<'_> {
    fn room(&mut self, _: Stream) -> usize {
        usize::MAX
    }

    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let at = usize::from(stream == Stream::Stderr);
        self.kept[at].push(bytes);
        for part in bytes.split_inclusive(|&b| b == b'\n') {
            let (text, ended) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            let room = LONGEST_LINE.saturating_sub(self.line[at].len());
            self.line[at].extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                (self.take)(stream, &self.line[at]);
                self.line[at].clear();
            }
        }
    }

    fn patience(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|(_, at)| *at)
    }

    fn quiet(&mut self) {
        if let Some((message, at)) = &mut self.waiting {
            *at = Instant::now() + TELL;
            self.context.progress(message.clone(), None);
        }
    }

    fn input_used(&mut self, _: u64) {}
}

/// What cannot be done without being root; `what` completes the sentence.
///
/// # Errors
/// `PERMISSION_DENIED` for everybody else.
pub(crate) fn need_root(what: &str) -> Result<(), Failure> {
    if host::uid() == 0 {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::PermissionDenied,
        format!("only root can {what}; nothing was changed. Run the command with become"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_clean_and_few() {
        assert_eq!(last_lines(b"a\n\n  b \x1b[31mred\n", 2), "a; b [31mred");
        assert_eq!(last_lines(b"one\ntwo\nthree", 1), "three");
        assert_eq!(last_lines(b"", 3), "");
        assert!(last_lines(&vec![b'x'; 100_000], 3).len() <= 2048);
    }
}
