//! A command under way, as its caller holds it: its events, its input, its end.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sortie_protocol::message::{Cancel, Credit, Done, Event, Input};
use sortie_protocol::{ControllerMessage, Stream, text};

use super::backlog::output_len;
use super::signed::Collected;
use super::state::{News, Outcome, Shared};
use crate::error::Error;
use crate::signing::Said;

/// Most bytes of input in one frame.
const INPUT_CHUNK: usize = 64 * 1024;

/// A command under way. Dropping it cancels the command, if it is still running.
///
/// `R` is the type of its result; [`RawValue`] for a command that was handed in as JSON.
pub struct Running<R = Box<RawValue>> {
    id: String,
    shared: Arc<Shared>,
    window: Option<u64>,
    /// Output that was handed out and not yet acknowledged, for standard output and standard error.
    owed: [u64; 2],
    outcome: Option<Outcome>,
    ended: bool,
    result: PhantomData<fn() -> R>,
}

impl<R> std::fmt::Debug for Running<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("id", &self.id).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl<R> Running<R> {
    pub(super) fn new(id: String, shared: Arc<Shared>, window: Option<u64>) -> Self {
        Self { id, shared, window, owed: [0; 2], outcome: None, ended: false, result: PhantomData }
    }

    /// The command's id, as it stands in its frames.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The next event, in the order the runner sent them; `None` once the command has ended and all are taken.
    ///
    /// To take output events is to allow more: a command whose events are not taken is held by its window, and
    /// nothing else is. Cancel safe.
    pub async fn next_event(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        match self.shared.next_news(&self.id).await {
            News::Event(event) => {
                self.account(&event);
                Some(event)
            }
            News::Outcome(outcome) => {
                self.outcome = Some(outcome);
                self.ended = true;
                None
            }
        }
    }

    /// Sends CREDIT for what was taken once it is half the window: until then the other half is left to send from.
    fn account(&mut self, event: &Event) {
        let (Some(window), Some(stream)) = (self.window, event.stream) else { return };
        self.owed[usize::from(stream == Stream::Stderr)] += output_len(event);
        if self.owed.iter().sum::<u64>() < window / 2 {
            return;
        }
        for (owed, stream) in self.owed.iter_mut().zip([Stream::Stdout, Stream::Stderr]) {
            let bytes = std::mem::take(owed);
            if bytes > 0 {
                self.shared.acknowledge(&self.id, bytes);
                let credit = Credit { command_id: self.id.clone(), stream, bytes };
                self.shared.send_small(&ControllerMessage::Credit(credit));
            }
        }
    }

    /// Ends the command: SIGTERM to its tree, and after `grace` seconds (5 if `None`) SIGKILL. It still answers.
    pub fn cancel(&self, grace: Option<u64>) {
        self.canceller().cancel(grace);
    }

    /// A handle that can cancel the command from elsewhere.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        Canceller { id: self.id.clone(), shared: Arc::clone(&self.shared) }
    }

    /// A handle to feed the command's input, for commands that take it by INPUT; usable beside [`Self::next_event`].
    #[must_use]
    pub fn input(&self) -> InputWriter {
        InputWriter { id: self.id.clone(), shared: Arc::clone(&self.shared) }
    }

    async fn outcome(&mut self) -> Outcome {
        while self.next_event().await.is_some() {}
        self.outcome.take().unwrap_or_else(|| Err(Error::Closed { host: self.shared.host.clone() }))
    }
}

impl Running<Box<RawValue>> {
    /// Waits for the end; events that were not taken are passed over.
    ///
    /// # Errors
    /// [`Error::Command`] with the runner's ERROR, or why there is none.
    pub async fn wait(mut self) -> Result<Done, Error> {
        self.outcome().await.map(|done| *done)
    }
}

/// A typed command under way.
impl<R: DeserializeOwned> Running<Typed<R>> {
    /// Waits for the end; events that were not taken are passed over.
    ///
    /// # Errors
    /// [`Error::Command`] with the runner's ERROR, [`Error::Result`], or why there is no answer.
    pub async fn wait(mut self) -> Result<Done<R>, Error> {
        let done = self.outcome().await?;
        let result = serde_json::from_str(done.result.get()).map_err(|error| Error::Result {
            host: self.shared.host.clone(),
            command_id: self.id.clone(),
            reason: error.to_string(),
        })?;
        let Done { command_id, duration, metadata, usage, .. } = *done;
        Ok(Done { command_id, result, duration, metadata, usage })
    }
}

/// Marks a [`Running`] whose result has the type `R`.
#[derive(Debug)]
pub struct Typed<R>(PhantomData<fn() -> R>);

impl<R> Drop for Running<R> {
    fn drop(&mut self) {
        if !self.ended && self.shared.forget(&self.id) {
            let cancel = Cancel { command_id: self.id.clone(), grace: None };
            self.shared.send_small(&ControllerMessage::Cancel(cancel));
        }
    }
}

/// Cancels one command.
#[derive(Clone)]
pub struct Canceller {
    id: String,
    shared: Arc<Shared>,
}

impl Canceller {
    /// See [`Running::cancel`]. Does nothing once the command has ended.
    pub fn cancel(&self, grace: Option<u64>) {
        if self.shared.cancel_collected(&self.id) {
            return;
        }
        let cancel = Cancel { command_id: self.id.clone(), grace };
        self.shared.send_small(&ControllerMessage::Cancel(cancel));
    }
}

/// Feeds the input of one command.
#[derive(Clone)]
pub struct InputWriter {
    id: String,
    shared: Arc<Shared>,
}

impl InputWriter {
    /// Sends all of `data`, as the command takes it. Returns `false` when the command has ended before that.
    ///
    /// Not cancel safe: a part may have been sent. In a session of signed commands it is only collected, up to 6 MiB.
    ///
    /// # Errors
    /// Why the session is over, or that it is more than can be signed.
    pub async fn write(&self, data: &[u8]) -> Result<bool, Error> {
        if let Some(collected) = self.shared.collect_input(&self.id, data) {
            return collected.map(|()| true);
        }
        let mut rest = data;
        while !rest.is_empty() {
            let taken = self.shared.take_input_credit(&self.id, rest.len().min(INPUT_CHUNK)).await?;
            if taken == 0 {
                return Ok(false);
            }
            let (chunk, later) = rest.split_at(taken);
            rest = later;
            self.send(chunk, false).await?;
        }
        Ok(true)
    }

    /// Ends the input. In a session of signed commands this is when the command and all of its input are signed and sent.
    ///
    /// # Errors
    /// Why the session is over, or nothing was signed.
    pub async fn finish(self) -> Result<(), Error> {
        if let Some(Collected { message, input }) = self.shared.take_collected(&self.id) {
            let sent = self.shared.send_signed(Said::Command(&message, Some(&input))).await;
            self.shared.collected_is_sent();
            if let Err(error) = sent {
                self.shared.fail_command(&self.id, error.clone());
                return Err(error);
            }
            self.write(&input).await?;
        }
        self.send(&[], true).await
    }

    async fn send(&self, chunk: &[u8], eof: bool) -> Result<(), Error> {
        let (data, encoding) = text::encode(chunk.to_vec());
        let input = Input { command_id: self.id.clone(), data, encoding, eof };
        let line = self.shared.encode(&ControllerMessage::Input(input));
        self.shared.send_bulk(line).await
    }
}

/// The bytes of output that an event carries, and the stream they came from; `None` for any other event.
///
/// Text that is not marked as base64 is not copied. Output marked as base64 that is not is given as it came.
#[must_use]
pub fn output(event: &Event) -> Option<(Stream, Cow<'_, [u8]>)> {
    let stream = event.stream?;
    let bytes = match event.encoding {
        None => Cow::Borrowed(event.message.as_bytes()),
        Some(_) => match text::decode(event.message.clone(), event.encoding) {
            Ok(bytes) => Cow::Owned(bytes),
            Err(_) => Cow::Borrowed(event.message.as_bytes()),
        },
    };
    Some((stream, bytes))
}
