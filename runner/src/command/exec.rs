//! `exec`: runs a program, or a line of shell, streams or captures what it says and tells how it ended.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sortie_protocol::command::exec::{Exec, ExecResult};
use sortie_protocol::message::Strings;
use sortie_protocol::{FRAME_LIMIT, ResourceLimits, Stream, text};

use super::Context;
use crate::failure::Failure;
use crate::job;
use crate::limits;
use crate::pool::{Capture, Captured, MOST_CAPTURED, Pool, incomplete_end};
use crate::process::{self, Consumer, Input, c_string};
use crate::sys::keeper::Leader;

/// Most bytes of output in one EVENT.
const MOST_IN_EVENT: usize = 64 * 1024;

/// How long an unfinished line waits for its end before it is sent as it is.
const LINE_PATIENCE: Duration = Duration::from_millis(100);

/// Bytes of a frame that are left to what was captured.
const ROOM_IN_FRAME: usize = FRAME_LIMIT - 64 * 1024;

/// Where a program is looked for when there is no PATH, as execvp(3) does.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

pub(super) fn run(context: &Context) -> Result<ExecResult, Failure> {
    let mut params: Exec = job::parse(&context.job.take_params())?;
    let leader = leader(context, &mut params)?;
    let input = input(&mut params)?;
    let wanted = wanted(&params)?;
    if context.check() || !wanted {
        return Ok(ExecResult { skipped: true, would_run: wanted, ..ExecResult::default() });
    }
    let limit = params.output_bytes.unwrap_or(MOST_CAPTURED);
    let mut sink = Sink {
        context,
        streaming: params.stream_lines,
        stdout: Side::new(params.capture_out, limit, &context.pool),
        stderr: Side::new(params.capture_err, limit, &context.pool),
        last_output: None,
    };
    let outcome = process::run(&context.job, &leader, input, params.kill_leftovers, &mut sink);
    sink.flush();
    let (out, err) = (sink.stdout.captured(), sink.stderr.captured());
    let text = Text::new(context, out, err);
    match outcome {
        Ok(ended) => {
            context.job.settle(ended.exit_code == 0);
            Ok(ExecResult {
                exit_code: ended.exit_code,
                stdout: text.stdout.0,
                stdout_encoding: text.stdout.1,
                stdout_gap: text.stdout_gap,
                stderr: text.stderr.0,
                stderr_encoding: text.stderr.1,
                stderr_gap: text.stderr_gap,
                duration: ended.duration.as_secs_f64(),
                signal: ended.signal,
                stdout_open: ended.stdout_open,
                left_running: ended.left_running,
                skipped: false,
                would_run: false,
                containment: ended.containment.to_owned(),
            })
        }
        Err(mut failure) => {
            failure.details.append(text.details());
            Err(failure)
        }
    }
}

/// Checks every parameter and prepares what the keeper starts.
fn leader(context: &Context, params: &mut Exec) -> Result<Leader, Failure> {
    let own = std::mem::take(&mut params.limits);
    let own = Some(own).filter(|own| *own != ResourceLimits::default());
    if own.is_some() && context.job.command.limits.is_some() {
        return Err(Failure::params("limits: of the command or among its params, not both"));
    }
    let mut bounds = limits::bounds(&context.job, own.as_ref(), false)?;
    bounds.no_new_privs |= params.no_new_privs;
    let params = &*params;
    let argv = argv(params)?;
    let env = environment(params)?;
    let program = argv.first().map(CString::as_bytes).unwrap_or_default();
    let path = match &env {
        Some(env) => env.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.clone()),
        None => std::env::var_os("PATH"),
    };
    let candidates = process::candidates(program, path.as_deref().unwrap_or(OsStr::new(DEFAULT_PATH)))?;
    if let Some(mask) = params.umask
        && mask.bits() > 0o777
    {
        return Err(Failure::params("umask: at most 0777"));
    }
    Ok(Leader {
        candidates,
        argv,
        env: env.map(strings).transpose()?,
        work_dir: params
            .work_dir
            .as_ref()
            .map(|d| c_string("work_dir", d.as_bytes().to_vec()))
            .transpose()?,
        umask: params.umask.map(sortie_protocol::Mode::bits),
        bounds,
        terminal: None,
        critical: false,
    })
}

fn argv(params: &Exec) -> Result<Vec<CString>, Failure> {
    let strings: Vec<Vec<u8>> = match &params.argv {
        Some(argv) => {
            if !params.command.is_empty() || !params.args.is_empty() {
                return Err(Failure::params("argv: not together with command or args"));
            }
            if argv.first().is_none_or(String::is_empty) {
                return Err(Failure::params("argv: the program is missing"));
            }
            let decode = |s: &String| text::decode(s.clone(), params.argv_encoding);
            argv.iter()
                .map(decode)
                .collect::<Result<_, _>>()
                .map_err(|e| Failure::params(format!("argv: {e}")))?
        }
        None if params.command.is_empty() => return Err(Failure::params("command is required")),
        None if params.args.is_empty() => {
            let shell = params.shell.as_deref().unwrap_or("/bin/sh");
            [shell, "-c", &params.command].map(|s| s.as_bytes().to_vec()).to_vec()
        }
        None => std::iter::once(&params.command).chain(&params.args).map(|s| s.as_bytes().to_vec()).collect(),
    };
    strings.into_iter().map(|s| c_string("argument", s)).collect()
}

/// Names and values.
type Variables = Vec<(OsString, OsString)>;

/// The environment, unless it is the runner's own.
fn environment(params: &Exec) -> Result<Option<Variables>, Failure> {
    if params.env.is_empty() && !params.clear_env {
        return Ok(None);
    }
    let mut env = Variables::new();
    if !params.clear_env {
        env.extend(std::env::vars_os());
        env.retain(|(name, _)| name.to_str().is_none_or(|name| !params.env.contains_key(name)));
    }
    for (name, value) in &params.env {
        if name.is_empty() || name.contains('=') {
            return Err(Failure::params(format!("env: {name:?} cannot be the name of a variable")));
        }
        env.push((name.into(), value.into()));
    }
    Ok(Some(env))
}

/// An environment as programs take it.
fn strings(env: Variables) -> Result<Vec<CString>, Failure> {
    let string = |(name, value): (OsString, OsString)| {
        c_string("env", [name.as_bytes(), b"=", value.as_bytes()].concat())
    };
    env.into_iter().map(string).collect()
}

/// Takes inline input out of the parameters: it may be as large as a frame.
fn input(params: &mut Exec) -> Result<Input, Failure> {
    match (params.stdin.take(), params.stdin_from) {
        (Some(_), Some(_)) => Err(Failure::params("stdin: not together with stdin_from")),
        (None, Some(_)) => Ok(Input::Frames),
        (None, None) => Ok(Input::Null),
        (Some(stdin), None) => text::decode(stdin.into_exposed(), params.stdin_encoding)
            .map(Input::Inline)
            .map_err(|error| Failure::params(format!("stdin: {error}"))),
    }
}

/// Whether `creates` and `removes` ask for a run.
fn wanted(params: &Exec) -> Result<bool, Failure> {
    let directory = params.work_dir.as_deref().unwrap_or("");
    let exists = |field: &str, path: &String| {
        let path = std::path::Path::new(directory).join(path);
        std::fs::symlink_metadata(&path).map(|_| true).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Ok(false),
            _ => Err(Failure::io(format!("{field}: cannot look at {path:?}"), &error)),
        })
    };
    let created = params.creates.as_ref().map(|path| exists("creates", path)).transpose()?;
    let removed = params.removes.as_ref().map(|path| exists("removes", path)).transpose()?;
    Ok(created != Some(true) && removed != Some(false))
}

/// Sends and captures output.
struct Sink<'a> {
    context: &'a Context,
    streaming: bool,
    stdout: Side,
    stderr: Side,
    last_output: Option<Instant>,
}

/// One of the two streams.
struct Side {
    capture: Option<Capture>,
    /// Output that is not sent yet: an unfinished line.
    pending: Vec<u8>,
    /// Bytes that were sent.
    sent: u64,
}

impl Side {
    fn new(capture: bool, limit: u64, pool: &Arc<Pool>) -> Self {
        Self { capture: capture.then(|| Capture::new(limit, pool)), pending: Vec::new(), sent: 0 }
    }

    fn captured(self) -> Option<Captured> {
        self.capture.map(Capture::finish)
    }
}

impl Sink<'_> {
    fn side(&mut self, stream: Stream) -> &mut Side {
        if stream == Stream::Stderr { &mut self.stderr } else { &mut self.stdout }
    }

    /// Bytes that may still be read before CREDIT has to come.
    fn credit(&self) -> u64 {
        let pending = (self.stdout.pending.len() + self.stderr.pending.len()) as u64;
        self.context.job.output_credit().saturating_sub(pending)
    }

    /// Sends the first `count` bytes of what is pending.
    fn send(&mut self, stream: Stream, count: usize) {
        let context = self.context;
        let side = self.side(stream);
        let seq = side.sent;
        side.sent += count as u64;
        context.job.use_output_credit(count as u64);
        context.output(stream, seq, &side.pending[..count]);
        side.pending.drain(..count);
    }

    /// Sends whatever is pending, lines or not.
    fn flush(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let count = self.side(stream).pending.len();
            if count > 0 {
                self.send(stream, count);
            }
        }
    }
}

impl Consumer for Sink<'_> {
    fn room(&mut self, stream: Stream) -> usize {
        if !self.streaming {
            return MOST_IN_EVENT;
        }
        let pending = self.side(stream).pending.len();
        usize::try_from(self.credit()).unwrap_or(usize::MAX).min(MOST_IN_EVENT.saturating_sub(pending))
    }

    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let streaming = self.streaming;
        let side = self.side(stream);
        if let Some(capture) = &mut side.capture {
            capture.push(bytes);
        }
        if !streaming {
            return;
        }
        side.pending.extend_from_slice(bytes);
        // What the room allows after the end of the command may be more than an event takes.
        let full = side.pending.len() >= MOST_IN_EVENT;
        let whole_lines = memchr::memrchr(b'\n', &side.pending).map_or(0, |at| at + 1);
        let count = match whole_lines {
            0 if full => side.pending.len() - incomplete_end(&side.pending),
            lines => lines,
        };
        if count > 0 {
            self.send(stream, count);
        }
        // Without credit the rest of the line cannot be read: its beginning goes out.
        if self.credit() == 0 {
            self.flush();
        }
        self.last_output = Some(Instant::now());
    }

    fn patience(&self) -> Option<Instant> {
        let pending = !self.stdout.pending.is_empty() || !self.stderr.pending.is_empty();
        self.last_output.filter(|_| pending).map(|at| at + LINE_PATIENCE)
    }

    fn quiet(&mut self) {
        self.flush();
    }

    fn input_used(&mut self, bytes: u64) {
        self.context.grant_input(bytes);
    }
}

/// What was captured, as it goes into a frame that it must fit in.
#[derive(Default)]
struct Text {
    stdout: (Option<String>, Option<text::Encoding>),
    stdout_gap: Option<sortie_protocol::command::exec::Gap>,
    stderr: (Option<String>, Option<text::Encoding>),
    stderr_gap: Option<sortie_protocol::command::exec::Gap>,
}

impl Text {
    fn new(context: &Context, out: Option<Captured>, err: Option<Captured>) -> Self {
        let mut text = Self::default();
        let others = err.as_ref().map_or(0, |err| err.bytes.len().div_ceil(3) * 4);
        let mut used = 0;
        if let Some(out) = out {
            context.hold(out.shares);
            text.stdout_gap = out.gap;
            let (content, encoding) = text::encode_within(out.bytes, ROOM_IN_FRAME - others);
            used = text::escaped_len(content.as_bytes());
            text.stdout = (Some(content), encoding);
        }
        if let Some(err) = err {
            context.hold(err.shares);
            text.stderr_gap = err.gap;
            let (content, encoding) = text::encode_within(err.bytes, ROOM_IN_FRAME - used);
            text.stderr = (Some(content), encoding);
        }
        text
    }

    /// For ERROR, whose details are strings.
    fn details(self) -> Strings {
        let mut details = Strings::new();
        for (name, (content, encoding), gap) in
            [("stdout", self.stdout, self.stdout_gap), ("stderr", self.stderr, self.stderr_gap)]
        {
            let Some(content) = content.filter(|c| !c.is_empty()) else { continue };
            details.insert(name.to_owned(), content);
            if encoding.is_some() {
                details.insert(format!("{name}_encoding"), "base64".to_owned());
            }
            if let Some(gap) = gap {
                details.insert(format!("{name}_gap_offset"), gap.offset.to_string());
                details.insert(format!("{name}_gap_bytes"), gap.bytes.to_string());
            }
        }
        details
    }
}
