//! Threads for commands: a few that are done wait for the next, as starting one costs more than a short command.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use crate::output::lock;

/// Stack of a command's thread; handlers keep large things elsewhere.
const STACK: usize = 256 * 1024;

/// Threads that wait at the most.
const MOST_IDLE: usize = 4;

type Work = Box<dyn FnOnce() + Send>;

#[derive(Clone, Default)]
pub(crate) struct Workers {
    idle: Arc<Mutex<Vec<Sender<Work>>>>,
}

impl Workers {
    /// Does `work` in a thread of its own, at once.
    pub(crate) fn run(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let work: Work = Box::new(work);
        let idle = lock(&self.idle).pop();
        match idle {
            // A thread that waits cannot be gone: it ends with the process.
            Some(worker) => worker.send(work).map_err(|_| io::Error::other("a waiting thread is gone")),
            None => {
                let (sender, receiver) = channel();
                let workers = self.clone();
                let live = move || workers.live(work, &sender, &receiver);
                std::thread::Builder::new().name("command".into()).stack_size(STACK).spawn(live)?;
                Ok(())
            }
        }
    }

    fn live(&self, first: Work, own: &Sender<Work>, next: &Receiver<Work>) {
        first();
        loop {
            {
                let mut idle = lock(&self.idle);
                if idle.len() >= MOST_IDLE {
                    return;
                }
                idle.push(own.clone());
            }
            match next.recv() {
                Ok(work) => work(),
                Err(_) => return,
            }
        }
    }
}
