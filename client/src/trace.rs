//! Spans of the `tracing` crate for each session, its steps and its commands, for whatever subscriber there is. Only with the feature
//! `tracing`; without a subscriber they cost next to nothing.
//!
//! They hold what [`crate::redact`] lets out: hosts, types of commands, whom they become, exit statuses and codes; no
//! parameters, no output, no words of a host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::Span;
use tracing::field::Empty;

use crate::error::Error;
use crate::observe::{CommandEnded, CommandStarted, FrameTrace, HostKeyShown, Observer, Step};

/// Makes spans of what it sees of one session, and passes it on.
struct Traced {
    inner: Arc<dyn Observer>,
    spans: Mutex<Spans>,
}

struct Spans {
    session: Option<Span>,
    steps: Vec<(Step, Span)>,
    commands: HashMap<String, Span>,
}

/// The same observer, with spans for a session with `host` made of what it sees.
pub(crate) fn traced(inner: Arc<dyn Observer>, host: &str) -> Arc<dyn Observer> {
    let session = tracing::info_span!(
        "session",
        otel.kind = "client",
        otel.status_code = Empty,
        error.type = Empty,
        server.address = host,
        sortie.host_key = Empty,
    );
    let spans = Spans { session: Some(session), steps: Vec::new(), commands: HashMap::new() };
    Arc::new(Traced { inner, spans: Mutex::new(spans) })
}

impl Traced {
    fn spans(&self) -> MutexGuard<'_, Spans> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fail(span: &Span, kind: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", kind);
}

impl Observer for Traced {
    fn step_started(&self, step: Step) {
        let mut spans = self.spans();
        let span = tracing::info_span!(
            parent: spans.session.as_ref().and_then(Span::id),
            "step",
            otel.name = step.describe(),
            otel.status_code = Empty,
            error.type = Empty,
            sortie.round_trips = Empty,
        );
        spans.steps.push((step, span));
        drop(spans);
        self.inner.step_started(step);
    }

    fn step_finished(&self, step: Step, took: Duration, round_trips: u32, detail: &str) {
        let mut spans = self.spans();
        // Of two hosts on the way the nearer one's step of the same name began last.
        if let Some(at) = spans.steps.iter().rposition(|(begun, _)| *begun == step) {
            let (_, span) = spans.steps.remove(at);
            span.record("sortie.round_trips", round_trips);
        }
        drop(spans);
        self.inner.step_finished(step, took, round_trips, detail);
    }

    fn host_key(&self, host: &str, key: &HostKeyShown) {
        if let Some(session) = &self.spans().session {
            session.record("sortie.host_key", key.fingerprint.as_str());
        }
        self.inner.host_key(host, key);
    }

    fn command_started(&self, command: &CommandStarted<'_>) {
        let mut spans = self.spans();
        let span = tracing::info_span!(
            parent: spans.session.as_ref().and_then(Span::id),
            "command",
            otel.name = command.kind.name(),
            otel.status_code = Empty,
            error.type = Empty,
            sortie.command.id = command.id,
            sortie.command.check = command.check,
            sortie.command.become = command.becoming,
            process.exit.code = Empty,
        );
        spans.commands.insert(command.id.to_owned(), span);
        drop(spans);
        self.inner.command_started(command);
    }

    fn command_ended(&self, command: &CommandEnded<'_>) {
        let span = self.spans().commands.remove(command.id);
        if let Some(span) = span {
            if let Some(status) = command.exit_code {
                span.record("process.exit.code", status);
            }
            if let Some(error) = command.error {
                fail(&span, error);
            }
        }
        self.inner.command_ended(command);
    }

    fn wants_commands(&self) -> bool {
        true
    }

    fn session_ended(&self, error: Option<&Error>) {
        {
            let mut spans = self.spans();
            let session = spans.session.take();
            // What had begun did not come to its end; but for the step that sees an end in order.
            if let Some(error) = error {
                spans.steps.drain(..).for_each(|(_, span)| fail(&span, error.kind()));
                session.iter().for_each(|session| fail(session, error.kind()));
            }
            spans.commands.drain().for_each(|(_, span)| fail(&span, error.map_or("closed", Error::kind)));
        }
        self.inner.session_ended(error);
    }

    fn warning(&self, text: &str) {
        self.inner.warning(text);
    }

    fn frame(&self, frame: &FrameTrace<'_>) {
        self.inner.frame(frame);
    }

    fn wants_frames(&self) -> bool {
        self.inner.wants_frames()
    }
}
