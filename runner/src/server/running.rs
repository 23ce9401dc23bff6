//! Commands from the queue to their ends.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sortie_protocol::passing::tells_of_failure;

use super::{Running, Server};
use crate::command::Context;
use crate::failure::Failure;
use crate::idempotency::{Outcome, Verdict};
use crate::job::Job;
use crate::output::lock;
use crate::syslog;

impl Server {
    pub(super) fn start_queued(&mut self) {
        let at_once = self.options.concurrency.unwrap_or(1) as usize;
        let mut at = 0;
        while self.running.len() < at_once && at < self.queue.len() {
            let job = Arc::clone(&self.queue[at]);
            let sequence = &job.command.sequence;
            if let Some(failure) = self.sequences.stopped(sequence, job.serial) {
                self.refuse(&job.command.id, failure);
                self.queue.remove(at);
                continue;
            }
            if job.is_held() {
                if let Some(ended) = job.noted_end() {
                    self.end_job(&job, ended.why, ended.grace);
                    continue;
                }
                // One after the other, in order, also where the first still waits for its input.
                if self.options.concurrency.is_none() {
                    break;
                }
                at += 1;
                continue;
            }
            let before = self.running.iter().map(|running| &running.job).chain(self.queue.iter().take(at));
            if !sequence.is_empty() && before.into_iter().any(|other| other.command.sequence == *sequence) {
                at += 1;
                continue;
            }
            let verdict = match &job.identity {
                None => Verdict::Run,
                Some(identity) => self.idempotency.begin(&job.command.id, identity),
            };
            match verdict {
                Verdict::Wait => {
                    at += 1;
                    continue;
                }
                Verdict::Run => self.start_command(&job),
                Verdict::Refuse(failure) => {
                    self.sequences.failed(sequence, &job.command.id, job.serial);
                    self.refuse(&job.command.id, failure);
                }
                Verdict::Replay(done) => {
                    let output = Arc::clone(&self.output);
                    job.settle(!tells_of_failure(&done.result));
                    // It may be large and then waits for the peer: not here.
                    let replay = move || {
                        output.send_bulk("DONE", &done, &|| true);
                        Outcome::Replayed
                    };
                    self.begin(&job, Box::new(replay));
                }
            }
            self.queue.remove(at);
        }
    }

    fn start_command(&mut self, job: &Arc<Job>) {
        let context = Context {
            job: Arc::clone(job),
            output: Arc::clone(&self.output),
            pool: Arc::clone(&self.pool),
            locks: Arc::clone(&self.locks),
            started: Instant::now(),
            held: Mutex::default(),
        };
        if let Some(login) = &self.options.hop {
            syslog::command(login, &job.command);
        }
        let hops = Arc::clone(&self.hops);
        self.begin(job, Box::new(move || hops.run(&context)));
    }

    /// Does `work` in a thread of its own, as the job.
    fn begin(&mut self, job: &Arc<Job>, work: Box<dyn FnOnce() -> Outcome + Send>) {
        let (endings, done) = (Arc::clone(&self.endings), Arc::clone(job));
        let whole = move || {
            endings.tell(done.serial, work());
            done.reap_keepers();
        };
        if let Err(error) = self.workers.run(Box::new(whole)) {
            self.refuse(&job.command.id, Failure::io("no thread for another command", &error));
            self.endings.tell(job.serial, Outcome::Failed);
        }
        // Held to what time can express; the time to live is what ends a session.
        let deadline = Instant::now() + Duration::from_secs(job.command.timeout).min(self.options.ttl * 2);
        self.running.push(Running { job: Arc::clone(job), deadline });
    }

    pub(super) fn collect_finished(&mut self) {
        let told = std::mem::take(&mut *lock(&self.endings.told));
        for (serial, outcome) in told {
            let Some(at) = self.running.iter().position(|running| running.job.serial == serial) else {
                continue;
            };
            let running = self.running.swap_remove(at);
            let job = &running.job;
            if !job.ended_well() {
                self.sequences.failed(&job.command.sequence, &job.command.id, job.serial);
            }
            if let Some(identity) = &running.job.identity {
                self.idempotency.ended(identity, outcome);
            }
        }
    }
}
