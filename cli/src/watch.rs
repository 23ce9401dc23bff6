//! Watches a session for the user: warnings, the frames of `--trace`, and for `doctor` the steps with their times.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sortie_client::observe::{Direction, FrameTrace, Observer, Step};

use crate::place::Host;
use crate::report::{Check, Event, Reporter};

/// One host's observer.
pub(crate) struct Watch {
    host: Arc<str>,
    /// How the client begins what it has to say of this host.
    said: String,
    reporter: Reporter,
    trace: bool,
    /// Steps are shown as they end.
    steps: bool,
    round_trips: Mutex<u32>,
}

impl Watch {
    pub(crate) fn new(host: &Host, reporter: &Reporter, trace: bool, steps: bool) -> Self {
        Self {
            host: Arc::clone(&host.label),
            said: format!("{}: ", host.name()),
            reporter: reporter.clone(),
            trace,
            steps,
            round_trips: Mutex::new(0),
        }
    }

    /// Adds to the round trips, and gives their sum so far.
    pub(crate) fn count(&self, more: u32) -> u32 {
        let mut round_trips = self.round_trips.lock().unwrap_or_else(PoisonError::into_inner);
        *round_trips += more;
        *round_trips
    }
}

impl Observer for Watch {
    fn step_finished(&self, step: Step, took: Duration, round_trips: u32, detail: &str) {
        self.count(round_trips);
        if self.steps {
            self.reporter.show(Event::Check(Check {
                host: Arc::clone(&self.host),
                step: step.describe().to_owned(),
                ok: true,
                milliseconds: Some(took.as_secs_f64() * 1000.0),
                round_trips: Some(round_trips),
                detail: detail.to_owned(),
                advice: None,
            }));
        }
    }

    fn warning(&self, text: &str) {
        let message = text.strip_prefix(&self.said).unwrap_or(text).to_owned();
        let bytes = message.len();
        self.reporter.show_if_room(Event::Warning { host: Arc::clone(&self.host), message }, bytes);
    }

    fn frame(&self, frame: &FrameTrace<'_>) {
        let event = Event::Frame {
            host: Arc::clone(&self.host),
            direction: if frame.direction == Direction::Sent { "sent" } else { "received" },
            kind: frame.kind,
            command_id: frame.command_id.to_owned(),
            bytes: frame.bytes,
            summary: frame.summary.clone(),
        };
        self.reporter.show_if_room(event, frame.command_id.len() + frame.summary.len());
    }

    fn wants_frames(&self) -> bool {
        self.trace
    }
}
