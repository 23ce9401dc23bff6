//! The way out: every frame of the session goes through one thread that owns the descriptor of the frames.
//!
//! Knows bytes and frames, never commands. Nothing that is sent here can interleave inside a line, and what a peer does
//! not read is bounded: big senders wait, small ones ([`Output::send`]) are limited by their callers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use sortie_protocol::time::Timestamp;
use sortie_protocol::{Encode, Json, RunnerMessage};

use crate::sys::fd::{self, Wake};
use crate::sys::start;

/// Bytes of events and results that wait for the peer before their senders do.
const MOST_WAITING: usize = 512 * 1024;

pub(crate) struct Output {
    state: Mutex<State>,
    /// Something to write.
    work: Condvar,
    /// Something was written.
    room: Condvar,
    main: Arc<Wake>,
    fd: OwnedFd,
    /// A pipe takes PIPE_BUF bytes at once or not at all, and poll(2) tells: short frames need no other thread.
    is_pipe: bool,
}

#[derive(Default)]
struct State {
    /// Whole small frames; written first, at the next frame boundary.
    control: VecDeque<Vec<u8>>,
    control_bytes: usize,
    /// Chunks, and whether each is the last of its frame.
    bulk: VecDeque<(Vec<u8>, bool)>,
    bulk_bytes: usize,
    /// A frame is being handed over in chunks: no other may begin.
    handing_over: bool,
    /// The writing thread is in a write.
    writing: bool,
    /// The last thing written was not the end of a frame.
    inside_frame: bool,
    broken: bool,
}

impl Output {
    /// Starts the thread that writes to `fd`. `main` is woken when the peer is gone and when all is written.
    pub(crate) fn start(fd: OwnedFd, main: Arc<Wake>) -> io::Result<Arc<Self>> {
        let output = Arc::new(Self {
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            main,
            is_pipe: fd::is_pipe(&fd),
            fd,
        });
        let writer = Arc::clone(&output);
        start::thread(c"output", 64 * 1024, Box::new(move || writer.write()))?;
        Ok(output)
    }

    /// Sends a small frame without ever waiting.
    pub(crate) fn send(&self, message: &RunnerMessage) {
        let (kind, data) = message.parts();
        let line = sortie_protocol::frame(kind, now(), data);
        let mut state = self.lock();
        if self.write_at_once(&mut state, &line) {
            return;
        }
        state.control_bytes += line.len();
        state.control.push_back(line);
        drop(state);
        self.work.notify_one();
    }

    /// Sends a frame, waiting for room as long as `go_on` says so; whether it was sent. Once begun, a frame is sent
    /// whole whatever `go_on` says.
    pub(crate) fn send_bulk(&self, kind: &str, data: &dyn Encode, go_on: &dyn Fn() -> bool) -> bool {
        if !self.begin(go_on) {
            return false;
        }
        let mut take = |piece| {
            self.push(piece, false);
            // The frame has begun, so it is finished: only a lost peer ends the wait.
            self.wait_for_room();
        };
        let mut json = Json::in_pieces(&mut take);
        json.frame(kind, now(), data);
        let rest = json.into_rest();
        self.push(rest, true);
        self.room.notify_all();
        true
    }

    /// As [`Self::send_bulk`], a frame that is a line already.
    pub(crate) fn send_line(&self, line: Vec<u8>, go_on: &dyn Fn() -> bool) {
        if self.begin(go_on) {
            self.push(line, true);
            self.room.notify_all();
        }
    }

    /// Waits until a frame may begin; whether it may.
    fn begin(&self, go_on: &dyn Fn() -> bool) -> bool {
        let mut state = self.lock();
        while (state.handing_over || state.bulk_bytes >= MOST_WAITING) && !state.broken && go_on() {
            state = self.wait(state);
        }
        if state.broken || !go_on() {
            return false;
        }
        state.handing_over = true;
        true
    }

    /// Sends the last frame behind everything else; not at all while another is half handed over to a peer that does not
    /// read, as it would end up inside that one.
    pub(crate) fn send_last(&self, message: &RunnerMessage) {
        if !self.lock().handing_over {
            let (kind, data) = message.parts();
            self.push(sortie_protocol::frame(kind, now(), data), true);
        }
    }

    /// Bytes of small frames that the peer has not read.
    pub(crate) fn control_bytes(&self) -> usize {
        self.lock().control_bytes
    }

    /// Everything is written, or never will be.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.lock();
        let waiting =
            state.writing || state.handing_over || !state.bulk.is_empty() || !state.control.is_empty();
        state.broken || !waiting
    }

    /// The peer does not read any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.lock().broken
    }

    /// Lets everybody who waits for room look at `go_on` again.
    pub(crate) fn look_again(&self) {
        drop(self.lock());
        self.room.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Until the peer has read something.
    fn wait_for_room(&self) {
        let mut state = self.lock();
        while state.bulk_bytes >= MOST_WAITING && !state.broken {
            state = self.wait(state);
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.room.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn push(&self, chunk: Vec<u8>, last: bool) {
        let mut state = self.lock();
        // At once with the end of the frame: whoever is woken by its being written finds everything idle.
        state.handing_over &= !last;
        if last && self.write_at_once(&mut state, &chunk) {
            return;
        }
        state.bulk_bytes += chunk.len();
        state.bulk.push_back((chunk, last));
        drop(state);
        self.work.notify_one();
    }

    /// Writes a short frame here and now if nothing is before it and the pipe has room; whether it did.
    fn write_at_once(&self, state: &mut State, frame: &[u8]) -> bool {
        let idle = !state.writing && !state.inside_frame && state.bulk.is_empty() && state.control.is_empty();
        if !self.is_pipe || !idle || state.broken || frame.len() > libc::PIPE_BUF {
            return false;
        }
        let mut waiting = fd::Waiting::new();
        let slot = waiting.writable(self.fd.as_fd());
        let room = waiting.wait(Some(Duration::ZERO)).is_ok() && waiting.came(slot) && !waiting.hung_up(slot);
        // Whatever goes wrong here goes wrong again for the writing thread, which knows what to do about it.
        room && fd::write(&self.fd, frame).is_ok()
    }

    /// The life of the writing thread.
    fn write(&self) {
        loop {
            let mut state = self.lock();
            state.writing = false;
            let bytes = loop {
                if !state.inside_frame
                    && let Some(line) = state.control.pop_front()
                {
                    state.control_bytes -= line.len();
                    break line;
                }
                if let Some((chunk, last)) = state.bulk.pop_front() {
                    state.bulk_bytes -= chunk.len();
                    state.inside_frame = !last;
                    break chunk;
                }
                self.main.wake();
                state = self.work.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            };
            state.writing = true;
            drop(state);
            self.room.notify_all();
            if fd::write_all(&self.fd, &bytes).is_err() {
                let mut state = self.lock();
                *state = State { broken: true, ..State::default() };
                drop(state);
                self.room.notify_all();
                self.main.wake();
                self.discard();
            }
        }
    }

    /// Nobody reads: takes what still comes, for ever.
    fn discard(&self) -> ! {
        let mut state = self.lock();
        loop {
            *state = State { broken: true, ..State::default() };
            state = self.work.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

/// The present, for the envelope.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

/// A lock whose holder cannot have left anything half done: a panic ends the whole process.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
