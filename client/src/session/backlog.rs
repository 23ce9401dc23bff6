//! What of a command's events waits for its consumer, within bounds that hold whatever a runner sends.
//!
//! Knows no commands and no connection.

use std::collections::VecDeque;

use sortie_protocol::message::{Event, Strings};
use sortie_protocol::{Encoding, text};

use super::running::output;

/// Events without output that may wait; more are dropped and counted.
const MESSAGES: usize = 1024;
/// The same in bytes, of everything that an event holds.
const MESSAGE_BYTES: usize = 1024 * 1024;
/// Pieces of output that may wait one by one. Later ones are joined with what waits of the same stream: the window bounds bytes,
/// and a piece of one byte takes some hundred.
const PIECES: usize = 1024;
/// Most bytes of text that joined pieces come to.
const JOINED: usize = 64 * 1024;

/// The events of one command.
#[derive(Default)]
pub(super) struct Backlog {
    events: VecDeque<Event>,
    /// Output bytes that were sent and not yet acknowledged, and the most that may be.
    unacknowledged: u64,
    window: u64,
    pieces: usize,
    messages: usize,
    message_bytes: usize,
    /// Events without output that nobody will see.
    pub(super) dropped: u64,
}

impl Backlog {
    /// With so many bytes of output that may be sent before any is taken.
    pub(super) fn new(window: u64) -> Self {
        Self { window, ..Self::default() }
    }

    /// Takes in an event. An error is a peer that does not keep to the window.
    pub(super) fn push(&mut self, event: Event) -> Result<(), String> {
        if event.stream.is_some() {
            return self.push_output(event);
        }
        let bytes = weight(&event);
        if self.messages >= MESSAGES || self.message_bytes + bytes > MESSAGE_BYTES {
            self.dropped += 1;
            return Ok(());
        }
        self.messages += 1;
        self.message_bytes += bytes;
        self.events.push_back(event);
        Ok(())
    }

    fn push_output(&mut self, mut event: Event) -> Result<(), String> {
        self.unacknowledged = self.unacknowledged.saturating_add(output_len(&event));
        if self.unacknowledged > self.window {
            return Err(format!(
                "it sent {} bytes of output of command {} where {} were allowed",
                self.unacknowledged, event.command_id, self.window
            ));
        }
        // Output is bytes and nothing else.
        (event.metadata, event.progress) = (Strings::new(), None);
        if event.message.is_empty() {
            return Ok(());
        }
        if self.pieces >= PIECES {
            let of_stream = self.events.iter_mut().rev().find(|waiting| waiting.stream == event.stream);
            if of_stream.is_some_and(|waiting| join(waiting, &event)) {
                return Ok(());
            }
        }
        self.pieces += 1;
        self.events.push_back(event);
        Ok(())
    }

    /// The next event for the consumer.
    pub(super) fn pop(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if event.stream.is_some() {
            self.pieces -= 1;
        } else {
            self.messages -= 1;
            self.message_bytes -= weight(&event);
        }
        Some(event)
    }

    /// Output was taken by its consumer.
    pub(super) fn acknowledge(&mut self, bytes: u64) {
        self.unacknowledged = self.unacknowledged.saturating_sub(bytes);
    }
}

/// Bytes that an event holds.
fn weight(event: &Event) -> usize {
    let metadata: usize = event.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    event.message.len() + metadata + event.progress.as_ref().map_or(0, |progress| progress.unit.len())
}

/// Adds a piece of output to one that waits, unless that becomes too large.
fn join(waiting: &mut Event, event: &Event) -> bool {
    if waiting.message.len() + event.message.len() > JOINED {
        return false;
    }
    if waiting.encoding.is_none() && event.encoding.is_none() {
        waiting.message.push_str(&event.message);
        return true;
    }
    let bytes = [&*waiting, event]
        .map(|piece| output(piece).map(|(_, bytes)| bytes.into_owned()).unwrap_or_default());
    (waiting.message, waiting.encoding) = text::encode(bytes.concat());
    true
}

/// Bytes of output in an event, without decoding them.
pub(crate) fn output_len(event: &Event) -> u64 {
    let text = event.message.as_bytes();
    let len = match event.encoding {
        Some(Encoding::Base64) if text.len().is_multiple_of(4) => {
            let padding = text.iter().rev().take(2).take_while(|&&b| b == b'=').count();
            (text.len() / 4 * 3).saturating_sub(padding)
        }
        // What is no base64 is given as it came.
        _ => text.len(),
    };
    len as u64
}

#[cfg(test)]
mod tests {
    use sortie_protocol::Stream;

    use super::*;

    fn piece(stream: Stream, message: &str, encoding: Option<Encoding>) -> Event {
        Event { stream: Some(stream), message: message.into(), encoding, ..Event::default() }
    }

    fn taken(backlog: &mut Backlog) -> [Vec<u8>; 2] {
        let mut streams = [Vec::new(), Vec::new()];
        while let Some(event) = backlog.pop() {
            let (stream, bytes) = output(&event).unwrap();
            streams[usize::from(stream == Stream::Stderr)].extend_from_slice(&bytes);
        }
        streams
    }

    #[test]
    fn output_in_tiny_pieces_is_whole_and_takes_few_events() {
        let mut backlog = Backlog::new(1 << 20);
        for n in 0..50_000 {
            backlog.push(piece(Stream::Stdout, if n % 2 == 0 { "a" } else { "b" }, None)).unwrap();
            backlog.push(piece(Stream::Stderr, "/w==", Some(Encoding::Base64))).unwrap();
        }
        assert!(backlog.events.len() <= PIECES + 8, "{}", backlog.events.len());
        assert_eq!(taken(&mut backlog), [b"ab".repeat(25_000), vec![0xff; 50_000]]);
        assert_eq!(backlog.pieces, 0);
    }

    #[test]
    fn output_that_is_none_takes_nothing_and_is_no_way_around_the_window() {
        let mut backlog = Backlog::new(100);
        let heavy: Strings = [("key".to_owned(), "x".repeat(1000))].into_iter().collect();
        for _ in 0..10_000 {
            backlog.push(Event { metadata: heavy.clone(), ..piece(Stream::Stdout, "", None) }).unwrap();
        }
        assert!(backlog.pop().is_none());
        // Not base64, and so all of it is output.
        let refused =
            (0..100).find_map(|_| backlog.push(piece(Stream::Stdout, "abc", Some(Encoding::Base64))).err());
        assert!(refused.is_some_and(|why| why.contains("102 bytes")));
    }

    #[test]
    fn messages_are_bounded_by_all_that_they_hold() {
        let mut backlog = Backlog::new(0);
        let heavy: Strings = [("key".to_owned(), "x".repeat(MESSAGE_BYTES / 4))].into_iter().collect();
        for _ in 0..100 {
            backlog.push(Event { metadata: heavy.clone(), ..Event::default() }).unwrap();
        }
        assert_eq!((backlog.events.len(), backlog.dropped), (3, 97));
        while backlog.pop().is_some() {}
        assert_eq!((backlog.messages, backlog.message_bytes), (0, 0));
    }
}
