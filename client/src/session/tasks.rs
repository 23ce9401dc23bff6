//! The two tasks of a session: one reads and never waits for a consumer, one writes and is never cancelled in a write.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sortie_protocol::message::{ExitReason, Ping, Shutdown};
use sortie_protocol::{ControllerMessage, FrameDecoder, Line, RunnerMessage};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::state::{Finish, Outgoing, Shared};
use crate::error::{Error, printable};
use crate::observe::Step;
use crate::transport::{Connection, Ended, Ending};

/// How long the transport may take to tell how the runner ended, once its output has.
const ENDING: Duration = Duration::from_secs(5);

/// The times that a session lives by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Silence after which a host is lost; the runner ends after as much. `None`: no lease.
    pub(super) lease: Option<Duration>,
    /// When this side ends the session, whatever the runner does.
    pub(super) deadline: Option<Instant>,
    /// How long a session may take to end once it was dropped.
    pub(super) close_limit: Duration,
}

/// What the user's handle tells the reader.
#[derive(Debug)]
pub(super) enum Order {
    /// Nobody holds the session any more, or waits no longer: be done within the limit.
    EndWithin(Duration),
}

/// Starts both tasks.
pub(super) fn spawn(
    shared: &Arc<Shared>,
    outgoing: mpsc::UnboundedReceiver<Outgoing>,
    connection: Connection,
    decoder: FrameDecoder,
    times: Times,
) -> mpsc::UnboundedSender<Order> {
    let (orders, receiver) = mpsc::unbounded_channel();
    let Connection { output, input, ending } = connection;
    tokio::spawn(write(outgoing, input));
    let reader = Reader {
        shared: Arc::clone(shared),
        output,
        ending,
        decoder,
        times,
        orders: receiver,
        end_by: None,
        heard: Instant::now(),
        pings: 0,
    };
    tokio::spawn(reader.run());
    orders
}

async fn write(mut outgoing: mpsc::UnboundedReceiver<Outgoing>, input: mpsc::Sender<Bytes>) {
    while let Some(Outgoing::Frame(line, _share)) = outgoing.recv().await {
        // Into a queue: the write itself is the transport's, which does not give one up half done either.
        if input.send(line).await.is_err() {
            return;
        }
    }
}

struct Reader {
    shared: Arc<Shared>,
    output: mpsc::Receiver<Bytes>,
    ending: Ending,
    decoder: FrameDecoder,
    times: Times,
    orders: mpsc::UnboundedReceiver<Order>,
    /// The session is being closed and must be done by then.
    end_by: Option<Instant>,
    heard: Instant,
    pings: u64,
}

/// Why reading stopped.
enum Stop {
    /// The runner's output ended.
    Output,
    /// The peer does not keep to the protocol.
    Violation(String),
    /// Nothing was heard for a lease.
    Silence(Duration),
    /// The time to live, with its grace, is over.
    Deadline,
    /// Closing took longer than it may.
    CloseLimit,
}

impl Reader {
    async fn run(mut self) {
        let stop = self.read().await;
        let mut finish = self.finish(stop).await;
        if let Some(audit) = &self.shared.audit {
            // All answers that came are on record and told when this is.
            let unrecorded = audit.end(finish.error.as_ref()).await;
            finish.error = finish.error.or(unrecorded);
        }
        self.shared.observer.session_ended(finish.error.as_ref());
        let error = match (&finish.error, &finish.exit) {
            (Some(error), _) => error.clone(),
            // It is known to be gone, but its commands were not answered because of that.
            (None, Some(exit)) if exit.reason != ExitReason::Completed => self.shared.lost(
                Step::Session,
                format!("the runner ended by itself: {:?}", exit.reason),
                false,
            ),
            (None, _) => Error::Closed { host: self.shared.host.clone() },
        };
        self.shared.fail(&error);
        self.shared.end_output();
        self.shared.finish.send_replace(Some(finish));
    }

    async fn read(&mut self) -> Stop {
        // What came together with READY.
        if let Err(violation) = self.take_lines() {
            return Stop::Violation(violation);
        }
        let mut ping = self.times.lease.map(|lease| {
            let mut interval = tokio::time::interval_at(Instant::now() + lease / 3, lease / 3);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            interval
        });
        let mut dropped = false;
        loop {
            tokio::select! {
                // What is seldom comes first: a stream of output must not keep a ping or the end from its turn.
                biased;
                () = sleep_until(self.end_by) => return Stop::CloseLimit,
                () = sleep_until(self.times.deadline) => return Stop::Deadline,
                () = tick(&mut ping) => {
                    if let Some(lease) = self.times.lease {
                        if self.heard.elapsed() >= lease {
                            return Stop::Silence(lease);
                        }
                        self.pings += 1;
                        let token = self.pings.to_string();
                        self.shared.send_small(&ControllerMessage::Ping(Ping { token }));
                    }
                }
                order = self.orders.recv(), if !dropped => match order {
                    Some(Order::EndWithin(limit)) => self.end_within(limit),
                    // Nobody holds the session any more.
                    None => {
                        dropped = true;
                        if self.shared.set_closing() {
                            self.shared.send_small(&ControllerMessage::Shutdown(Shutdown { grace: Some(0) }));
                        }
                        self.end_within(self.times.close_limit);
                    }
                },
                chunk = self.output.recv() => {
                    let Some(chunk) = chunk else { return Stop::Output };
                    // Any byte shows that it lives: a long frame on a slow link takes longer than a lease.
                    self.heard = Instant::now();
                    self.decoder.push(&chunk);
                    if let Err(violation) = self.take_lines() {
                        return Stop::Violation(violation);
                    }
                }
            }
        }
    }

    fn end_within(&mut self, limit: Duration) {
        let by = Instant::now() + limit;
        self.end_by = Some(self.end_by.map_or(by, |earlier| earlier.min(by)));
    }

    fn take_lines(&mut self) -> Result<(), String> {
        while let Some(line) = self.decoder.next_line() {
            let Line::Frame(line) = line else {
                return Err("it sent a line over the frame limit".into());
            };
            let message = RunnerMessage::parse(line).map_err(|rejected| {
                format!(
                    "something that is no frame came between its frames ({}): {}",
                    printable(rejected.message.as_bytes(), 200),
                    printable(&line[..line.len().min(200)], 200)
                )
            })?;
            let last = matches!(message, RunnerMessage::Exit(_));
            self.shared.receive(message, line.len() + 1)?;
            if last {
                // The channel closes with it, unless something else holds it open.
                let by = Instant::now() + ENDING;
                self.end_by = Some(self.end_by.map_or(by, |earlier| earlier.min(by)));
            }
        }
        if self.decoder.is_over_limit() {
            return Err("it sends a line over the frame limit, without an end".into());
        }
        Ok(())
    }

    async fn finish(&mut self, stop: Stop) -> Finish {
        let step = if self.end_by.is_some() { Step::Close } else { Step::Session };
        let exit = self.shared.exit();
        let lost = |reason: String, alive| Some(self.shared.lost(step, reason, alive));
        let error = match stop {
            Stop::Output => {
                let ended = match tokio::time::timeout(ENDING, self.ending.wait()).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        self.ending.abort();
                        Ended::default()
                    }
                };
                let stderr = printable(&self.ending.stderr(), 500);
                let error = match (&exit, &ended) {
                    (Some(_), _) => None,
                    (None, Ended { reason: Some(reason), .. }) => lost(with_stderr(reason, &stderr), true),
                    (None, Ended { status, closed, .. }) => {
                        let status =
                            status.as_ref().map_or_else(|| "no exit status".into(), ToString::to_string);
                        let reason = format!("the runner ended without saying why ({status})");
                        lost(with_stderr(&reason, &stderr), !closed)
                    }
                };
                return Finish { exit, ended, error };
            }
            Stop::Violation(reason) => {
                lost(format!("the runner does not keep to the protocol: {reason}"), true)
            }
            Stop::Silence(lease) => lost(format!("nothing was heard for {} s", lease.as_secs()), true),
            Stop::Deadline => lost("the session outlived its time to live".into(), true),
            Stop::CloseLimit if exit.is_some() => None,
            Stop::CloseLimit => lost("it did not end in time".into(), true),
        };
        self.ending.abort();
        Finish { exit, ended: self.ending.get().unwrap_or_default(), error }
    }
}

fn with_stderr(reason: &str, stderr: &str) -> String {
    if stderr.is_empty() {
        reason.to_owned()
    } else {
        format!("{reason}; it wrote to standard error: {stderr}")
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
