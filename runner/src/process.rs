//! The one way to run a program: a keeper, three streams, and a loop that pumps until the program and its output are
//! at an end, or the command is ended.
//!
//! Knows a job and byte streams; what is done with the bytes is the [`Consumer`]'s business.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use sortie_protocol::{ErrorCode, Stream};

use crate::failure::Failure;
use crate::job::Job;
use crate::limits;
use crate::sys::bounds::Rusage;
use crate::sys::fd::{self, Waiting};
use crate::sys::file;
use crate::sys::keeper::{DEFAULT_GRACE, Keeper, Leader, Report, StartStep, Stdio};

/// How long output is waited for after the program exited, while a descendant holds it open.
const LEAK_TIMEOUT: Duration = Duration::from_millis(250);

/// Bytes read at a time, once a program turns out to print that much.
const CHUNK: usize = 64 * 1024;
/// And before: so few that no page has to be mapped for them, as most commands are short and print little.
const FIRST_CHUNK: usize = 1000;

/// What a pipe is asked to hold, so that the program and this loop take turns less often.
const PIPE_BYTES: i32 = 256 * 1024;

/// Takes the output of a program.
pub(crate) trait Consumer {
    /// Bytes of this stream that are welcome now; 0 holds the program by its pipe.
    fn room(&mut self, stream: Stream) -> usize;
    /// Output, never more than there was room for.
    fn take(&mut self, stream: Stream, bytes: &[u8]);
    /// When to call [`Self::quiet`] if no output comes before.
    fn patience(&self) -> Option<Instant>;
    /// No output came for that long.
    fn quiet(&mut self);
    /// The program took so many bytes of INPUT.
    fn input_used(&mut self, bytes: u64);
}

/// Where standard input comes from.
pub(crate) enum Input {
    Null,
    Inline(Vec<u8>),
    /// INPUT frames of the job.
    Frames,
}

/// How a program ended.
pub(crate) struct Ended {
    /// 0 to 255, or 128 + n when signal n ended it.
    pub(crate) exit_code: i32,
    pub(crate) signal: Option<String>,
    /// From start to exit of the program itself.
    pub(crate) duration: Duration,
    pub(crate) stdout_open: bool,
    pub(crate) left_running: u32,
    /// How the tree was kept together.
    pub(crate) containment: &'static str,
}

impl Ended {
    /// From a status of wait(2).
    fn new(keeper: &Keeper, status: i32, duration: Duration, left_running: u32) -> Self {
        let (exit_code, signal) = how_it_ended(status);
        Self {
            exit_code,
            signal: signal.map(signal_name),
            duration,
            stdout_open: false,
            left_running,
            containment: keeper.containment(),
        }
    }
}

/// Exit code, 128 + n after signal n, and that signal, of a status of wait(2).
fn how_it_ended(status: i32) -> (i32, Option<i32>) {
    let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
    (signal.map_or_else(|| libc::WEXITSTATUS(status), |number| 128 + number), signal)
}

fn start(leader: &Leader, stdio: Stdio) -> Result<Arc<Keeper>, Failure> {
    let keeper = Keeper::start(leader, stdio);
    let what = "cannot fork, or limit what is forked";
    keeper.map(Arc::new).map_err(|error| Failure::io(what, &error))
}

/// A string as programs take it; `field` is named in the error.
pub(crate) fn c_string(field: &str, bytes: Vec<u8>) -> Result<CString, Failure> {
    CString::new(bytes)
        .map_err(|_| Failure::params(format!("{field}: a NUL byte cannot be passed to a program")))
}

/// The environment of this process, as programs take it, as far as its names are to be kept.
pub(crate) fn inherited(keep: &dyn Fn(&[u8]) -> bool) -> Vec<CString> {
    std::env::vars_os()
        .filter(|(name, _)| keep(name.as_bytes()))
        .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
        .collect()
}

/// Where the program may be: itself if it has a slash, else in each directory of `path`.
pub(crate) fn candidates(program: &[u8], path: &OsStr) -> Result<Vec<CString>, Failure> {
    if program.contains(&b'/') {
        return Ok(vec![c_string("program", program.to_vec())?]);
    }
    let directories = path.as_bytes().split(|&b| b == b':').map(|directory| {
        // An empty entry is the current directory (POSIX.1-2024, 8.3).
        let directory = if directory.is_empty() { b"." } else { directory };
        c_string("PATH", [directory, b"/", program].concat())
    });
    directories.collect()
}

/// Runs a program to its end. `kill_leftovers` ends what it started instead of letting it live on.
///
/// # Errors
/// The program could not be started, or the job was ended; what `consumer` took until then stands.
pub(crate) fn run(
    job: &Job,
    leader: &Leader,
    input: Input,
    kill_leftovers: bool,
    consumer: &mut dyn Consumer,
) -> Result<Ended, Failure> {
    job.go_on()?;
    let setup = |error: io::Error| Failure::io("cannot make the pipes of the command", &error);
    let (stdin, inline, frames) = match input {
        Input::Null => (None, Vec::new(), false),
        Input::Inline(bytes) => (Some(fd::pipe().map_err(setup)?), bytes, false),
        Input::Frames => (Some(fd::pipe().map_err(setup)?), Vec::new(), true),
    };
    let (stdout, stdout_write) = fd::pipe().map_err(setup)?;
    let (stderr, stderr_write) = fd::pipe().map_err(setup)?;
    for read_end in [&stdout, &stderr] {
        fd::set_nonblocking(read_end).map_err(setup)?;
    }
    let (stdin_read, stdin_write) = match stdin {
        None => (fd::null_device().map_err(setup)?, None),
        Some((read, write)) => {
            fd::set_nonblocking(&write).map_err(setup)?;
            (read, Some(write))
        }
    };
    let stdio = Stdio { stdin: stdin_read, stdout: stdout_write, stderr: stderr_write };
    let started = Instant::now();
    let keeper = start(leader, stdio)?;
    job.set_keeper(&keeper);
    let mut pump = Pump {
        job,
        keeper: &keeper,
        consumer,
        stdin: stdin_write,
        inline,
        inline_written: 0,
        frames,
        outputs: [(Stream::Stdout, Some(stdout)), (Stream::Stderr, Some(stderr))],
        buffer: vec![0; FIRST_CHUNK],
        exit: None,
        drain: None,
        released: false,
        left_running: 0,
        keeper_gone: false,
        // Nothing would hold them to what their leaf does once they are outside of it: a fork bomb's leader exits first.
        kill_leftovers: kill_leftovers || !leader.bounds.cgroup.is_empty(),
        ended: false,
        took: Rusage::default(),
        cpu: leader.bounds.cpu_seconds.map(|seconds| CpuWatch { seconds, look: started, over: false }),
    };
    let result = pump.run(leader);
    let (exit, stdout_open, left_running) =
        (pump.exit, pump.outputs.iter().any(|o| o.1.is_some()), pump.left_running);
    let (took, overrun) = (pump.took, pump.cpu.is_some_and(|watch| watch.over));
    let exit_code = exit.map_or(0, |(status, _)| how_it_ended(status).0);
    limits::account(job, &keeper, &leader.bounds, &took, exit_code, overrun);
    job.keeper_done();
    result?;
    job.go_on()?;
    let Some((status, at)) = exit else {
        return Err(Failure::new(
            ErrorCode::Internal,
            "the keeper of the command was killed; its processes were ended",
        ));
    };
    Ok(Ended { stdout_open, ..Ended::new(&keeper, status, at - started, left_running) })
}

/// How often a critical program's output, or the processor time of a limited one, is looked at, at the most.
const LOOK: Duration = Duration::from_millis(100);

/// How long the latter is not looked at, at the most: many processors may work at once.
const MOST_CPU_LOOK: Duration = Duration::from_secs(1);

/// How long a critical section is protected from an ending that was asked for.
const CRITICAL_CAP: Duration = Duration::from_secs(30 * 60);

/// Runs a program that must not be ended half way, and hands on what it prints. Nobody ends it for [`CRITICAL_CAP`]; its output goes
/// to files without a name instead of pipes, so that it ends well whoever dies.
///
/// # Errors
/// The job was ended before, or the program could not be started.
pub(crate) fn run_critical(
    job: &Job,
    leader: &Leader,
    take: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Ended, Failure> {
    let _critical = job.enter_critical()?;
    let setup = |error: io::Error| Failure::io("cannot make the files for the output of the command", &error);
    let files = [file::unnamed().map_err(setup)?, file::unnamed().map_err(setup)?];
    let copy = |file: &File| file.try_clone().map(OwnedFd::from).map_err(setup);
    let stdio = Stdio {
        stdin: fd::null_device().map_err(setup)?,
        stdout: copy(&files[0])?,
        stderr: copy(&files[1])?,
    };
    let started = Instant::now();
    let keeper = start(leader, stdio)?;
    job.set_keeper(&keeper);
    let mut took = Rusage::default();
    let mut read = [0; 2];
    let mut read_all = |take: &mut dyn FnMut(Stream, &[u8])| {
        let mut buffer = vec![0; CHUNK];
        for (at, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            while let Ok(count @ 1..) = files[at].read_at(&mut buffer, read[at]) {
                take(stream, &buffer[..count]);
                read[at] += count as u64;
            }
        }
    };
    let mut told_to_end = false;
    let result = loop {
        let mut waiting = Waiting::new();
        let heard = waiting.readable(keeper.fd());
        if let Err(error) = waiting.wait(Some(LOOK)) {
            break Err(Failure::io("poll", &error));
        }
        let heard = waiting.came(heard);
        drop(waiting);
        read_all(take);
        if !heard {
            if !told_to_end && started.elapsed() > CRITICAL_CAP && job.noted_end().is_some() {
                told_to_end = true;
                keeper.end(DEFAULT_GRACE);
            }
            continue;
        }
        match keeper.report() {
            Some(Report::StartFailed { step, errno }) => break Err(start_failure(leader, step, errno)),
            Some(Report::Exited { status, alone }) => {
                let duration = started.elapsed();
                read_all(take);
                let mut left_running = 0;
                if !alone {
                    keeper.release();
                    while let Some(report) = keeper.report() {
                        match report {
                            Report::Released { count } => left_running = count,
                            Report::Took { which, amount } => note(&mut took, which, amount),
                            _ => {}
                        }
                    }
                }
                limits::account(job, &keeper, &leader.bounds, &took, how_it_ended(status).0, false);
                break Ok(Ended::new(&keeper, status, duration, left_running));
            }
            Some(Report::Took { which, amount }) => note(&mut took, which, amount),
            Some(_) => {}
            None => {
                break Err(Failure::new(
                    ErrorCode::Internal,
                    "the keeper of the command was killed; the command itself was left to end by itself",
                ));
            }
        }
    };
    job.keeper_done();
    result
}

fn note(took: &mut Rusage, which: usize, amount: u64) {
    if let Some(place) = took.get_mut(which) {
        *place = amount;
    }
}

/// The name of a signal as signal(7) has it; real-time ones have only a number.
fn signal_name(number: i32) -> String {
    nix::sys::signal::Signal::try_from(number)
        .map_or_else(|_| format!("SIG{number}"), |s| s.as_str().to_owned())
}

struct Pump<'a> {
    job: &'a Job,
    keeper: &'a Keeper,
    consumer: &'a mut dyn Consumer,
    stdin: Option<OwnedFd>,
    /// Bytes for standard input, and how many of them are written.
    inline: Vec<u8>,
    inline_written: usize,
    /// More of them come by INPUT frames.
    frames: bool,
    outputs: [(Stream, Option<OwnedFd>); 2],
    buffer: Vec<u8>,
    /// Status of the program, and when it exited.
    exit: Option<(i32, Instant)>,
    drain: Option<Drain>,
    /// The keeper was told to release or end what is left.
    released: bool,
    left_running: u32,
    keeper_gone: bool,
    kill_leftovers: bool,
    /// The keeper said what became of the tree.
    ended: bool,
    took: Rusage,
    cpu: Option<CpuWatch>,
}

/// Sees to it that a tree does not take more processor time than it may, where its leaf tells.
struct CpuWatch {
    seconds: u64,
    /// When to look again.
    look: Instant,
    over: bool,
}

/// What is still read after the program exited.
struct Drain {
    /// Bytes of each output that were there already: these are read however long it takes.
    owed: [u64; 2],
    /// When to give up on what is not there yet.
    until: Instant,
}

impl Pump<'_> {
    fn run(&mut self, leader: &Leader) -> Result<(), Failure> {
        loop {
            self.watch_cpu();
            self.refill_stdin();
            if self.is_over() {
                return Ok(());
            }
            let came = self.wait()?;
            if came.wake {
                self.job.wake.clear();
            }
            if came.keeper {
                self.hear_keeper(leader)?;
            }
            for (at, ready) in came.outputs.into_iter().enumerate() {
                if ready {
                    self.read_output(at);
                }
            }
            if came.stdin {
                self.write_stdin();
            }
            if self.consumer.patience().is_some_and(|at| at <= Instant::now()) {
                self.consumer.quiet();
            }
        }
    }

    /// Ends a tree that took all of its processor time.
    fn watch_cpu(&mut self) {
        let Some(watch) = &mut self.cpu else { return };
        let now = Instant::now();
        if now < watch.look || watch.over {
            return;
        }
        let Some(micros) = limits::cpu_so_far(self.keeper) else { return self.cpu = None };
        let left = watch.seconds.saturating_mul(1_000_000).saturating_sub(micros);
        watch.look = now + Duration::from_micros(left).clamp(LOOK, MOST_CPU_LOOK);
        if left == 0 {
            watch.over = true;
            self.keeper.end(Duration::ZERO);
        }
    }

    /// Whether there is nothing more to wait for; sets the end in motion once only leftovers are left.
    fn is_over(&mut self) -> bool {
        if self.keeper_gone {
            // A killed tree, or one that is gone: what is in the pipes is all there will be, bar a descendant that
            // got away or was released.
            for at in 0..2 {
                while self.outputs[at].1.is_some() && self.room(at) > 0 && self.read_output(at) {}
            }
            let stuck = self.job.ended().is_none() && self.owes_output();
            return !stuck && self.drained();
        }
        if self.exit.is_some() && !self.released && self.job.ended().is_none() && self.drained() {
            self.released = true;
            if self.kill_leftovers {
                self.keeper.end(DEFAULT_GRACE);
            } else {
                self.keeper.release();
            }
        }
        false
    }

    /// Whether output that was there when the program exited is still unread.
    fn owes_output(&self) -> bool {
        let owed = self.drain.as_ref().map_or([0; 2], |drain| drain.owed);
        owed.iter().zip(&self.outputs).any(|(owed, (_, fd))| *owed > 0 && fd.is_some())
    }

    /// Whether the output of an exited program is read as far as it will be.
    fn drained(&self) -> bool {
        if self.outputs.iter().all(|(_, fd)| fd.is_none()) || self.job.ended().is_some() {
            return true;
        }
        match &self.drain {
            Some(drain) => !self.owes_output() && Instant::now() >= drain.until,
            // The keeper is gone without a word of the program: nothing to wait for.
            None => self.keeper_gone,
        }
    }

    fn room(&mut self, at: usize) -> usize {
        // What an ended command still says is read and kept as far as it is captured, whatever the windows say.
        if self.job.ended().is_some() { CHUNK } else { self.consumer.room(self.outputs[at].0) }
    }

    fn wait(&mut self) -> Result<Came, Failure> {
        let rooms = [self.room(0), self.room(1)];
        let mut waiting = Waiting::new();
        let wake = waiting.readable(self.job.wake.fd());
        let keeper = (!self.keeper_gone).then(|| waiting.readable(self.keeper.fd()));
        let mut outputs = [None, None];
        for at in 0..2 {
            if let Some(fd) = &self.outputs[at].1
                && rooms[at] > 0
            {
                outputs[at] = Some(waiting.readable(fd.as_fd()));
            }
        }
        let pending = self.inline_written < self.inline.len();
        let stdin = self
            .stdin
            .as_ref()
            .map(|fd| if pending { waiting.writable(fd.as_fd()) } else { waiting.hangup(fd.as_fd()) });
        let look = self.cpu.as_ref().filter(|watch| !watch.over).map(|watch| watch.look);
        let deadlines = [
            look,
            self.consumer.patience(),
            self.drain.as_ref().filter(|_| !self.owes_output()).map(|d| d.until),
        ];
        // Past the drain's end only the keeper is waited for.
        let now = Instant::now();
        let next = deadlines.into_iter().flatten().filter(|at| *at > now || !self.released).min();
        let timeout = next.map(|at| at.saturating_duration_since(now));
        waiting.wait(timeout).map_err(|error| Failure::io("poll", &error))?;
        let came = |slot: Option<fd::Slot>| slot.is_some_and(|slot| waiting.came(slot));
        Ok(Came {
            wake: waiting.came(wake),
            keeper: came(keeper),
            outputs: outputs.map(came),
            stdin: came(stdin),
        })
    }

    fn hear_keeper(&mut self, leader: &Leader) -> Result<(), Failure> {
        match self.keeper.report() {
            Some(Report::StartFailed { step, errno }) => Err(start_failure(leader, step, errno)),
            Some(Report::Exited { status, alone }) => {
                // Nothing of the tree is left, and the keeper goes by itself.
                self.keeper_gone = alone;
                self.ended = alone;
                let now = Instant::now();
                self.exit = Some((status, now));
                let readable = |fd: &Option<OwnedFd>| fd.as_ref().map_or(0, fd::readable_bytes);
                let owed = [readable(&self.outputs[0].1), readable(&self.outputs[1].1)];
                self.drain = Some(Drain { owed, until: now + LEAK_TIMEOUT });
                // Nobody is left to read it for certain.
                self.stdin = None;
                Ok(())
            }
            Some(Report::Took { which, amount }) => {
                note(&mut self.took, which, amount);
                Ok(())
            }
            Some(Report::Ended { left }) => {
                self.ended = true;
                self.left_running = left;
                Ok(())
            }
            Some(Report::Released { count }) => {
                self.ended = true;
                self.left_running = count;
                Ok(())
            }
            None => {
                self.keeper_gone = true;
                if !self.ended {
                    self.keeper.kill_orphans(self.exit.is_some());
                }
                Ok(())
            }
        }
    }

    /// Reads once; whether anything came.
    fn read_output(&mut self, at: usize) -> bool {
        let room = self.room(at).min(self.buffer.len());
        if room == 0 {
            // The other stream has used up the window since it was asked; a read of nothing would look like the end.
            return false;
        }
        let (stream, slot) = &mut self.outputs[at];
        let Some(fd) = slot else { return false };
        match fd::read(&*fd, &mut self.buffer[..room]) {
            Ok(0) => {
                *slot = None;
                false
            }
            Ok(count) => {
                if let Some(drain) = &mut self.drain {
                    drain.owed[at] = drain.owed[at].saturating_sub(count as u64);
                }
                self.consumer.take(*stream, &self.buffer[..count]);
                if count == self.buffer.len() && count < CHUNK {
                    // More than a little: worth larger pieces on both ends.
                    fd::widen_pipe(&*fd, PIPE_BYTES);
                    self.buffer.resize(CHUNK, 0);
                }
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => {
                *slot = None;
                false
            }
        }
    }

    /// Takes the next INPUT when the last is written, and closes standard input after the very last.
    fn refill_stdin(&mut self) {
        while self.inline_written == self.inline.len() {
            let next = if self.frames { self.job.take_input() } else { Some(Vec::new()) };
            match next {
                None => return,
                Some(bytes) if bytes.is_empty() => {
                    self.stdin = None;
                    self.frames = false;
                    return;
                }
                // The program closed its standard input: what still comes is used up unread.
                Some(bytes) if self.stdin.is_none() => self.consumer.input_used(bytes.len() as u64),
                Some(bytes) => {
                    self.inline = bytes;
                    self.inline_written = 0;
                }
            }
        }
    }

    fn write_stdin(&mut self) {
        let Some(fd) = &self.stdin else { return };
        let rest = &self.inline[self.inline_written..];
        let written = if rest.is_empty() { Err(Errno::EPIPE.into()) } else { fd::write(fd, rest) };
        match written {
            Ok(count) => {
                self.inline_written += count;
                if self.frames {
                    self.consumer.input_used(count as u64);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The program does not read any more; that is its right.
            Err(_) => {
                let unread = self.inline.len() - self.inline_written;
                if self.frames && unread > 0 {
                    self.consumer.input_used(unread as u64);
                }
                self.inline_written = self.inline.len();
                self.stdin = None;
            }
        }
    }
}

struct Came {
    wake: bool,
    keeper: bool,
    outputs: [bool; 2],
    stdin: bool,
}

fn start_failure(leader: &Leader, step: StartStep, errno: Errno) -> Failure {
    let program = leader.argv.first().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let error = io::Error::from(errno);
    match step {
        StartStep::Fork => Failure::io("cannot fork", &error),
        StartStep::WorkDir => {
            let directory =
                leader.work_dir.as_ref().map_or_else(String::new, |d| d.to_string_lossy().into_owned());
            Failure::at("cannot enter work_dir", &directory, &error)
        }
        StartStep::Limits => Failure::at("cannot set the limits of", &program, &error),
        StartStep::Exec if errno == Errno::ENOEXEC => Failure::new(
            ErrorCode::ExecFailed,
            format!("cannot start {program:?}: not a program of this machine, and no script with a #! line"),
        ),
        StartStep::Exec if matches!(errno, Errno::ENOENT | Errno::ENOTDIR) && leader.candidates.len() > 1 => {
            Failure::new(ErrorCode::NotFound, format!("cannot start {program:?}: not found in PATH"))
        }
        StartStep::Exec => Failure::at("cannot start", &program, &error),
    }
}
