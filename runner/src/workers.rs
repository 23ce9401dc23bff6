//! Threads for commands: a few that are done wait for the next, as starting one costs more than a short command.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::output::lock;
use crate::sys::start;

/// Stack of a command's thread; handlers keep large things elsewhere.
const STACK: usize = 256 * 1024;

/// Threads that wait at the most.
const MOST_IDLE: usize = 4;

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(crate) struct Workers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Something waits to be done.
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// Threads that wait.
    idle: usize,
    /// Never more than `idle`: each is as good as begun.
    waiting: VecDeque<Work>,
}

impl Workers {
    /// Does `work` in a thread of its own, at once.
    pub(crate) fn run(&self, work: Work) -> io::Result<()> {
        let mut state = lock(&self.0.state);
        if state.idle > state.waiting.len() {
            state.waiting.push_back(work);
            self.0.work.notify_one();
            return Ok(());
        }
        drop(state);
        let shared = Arc::clone(&self.0);
        start::thread(c"command", STACK, Box::new(move || shared.live(work)))
    }
}

impl Shared {
    /// The life of a thread, until there are enough others.
    fn live(&self, mut work: Work) {
        loop {
            work();
            let mut state = lock(&self.state);
            if state.idle >= MOST_IDLE {
                return;
            }
            state.idle += 1;
            work = loop {
                if let Some(work) = state.waiting.pop_front() {
                    break work;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            state.idle -= 1;
        }
    }
}
