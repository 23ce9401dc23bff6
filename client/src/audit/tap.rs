//! Between a program that speaks the protocol itself and its runner: bytes go by as they are, and the commands among them
//! are recorded before they go on.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use sortie_protocol::message::CommandMessage;
use sortie_protocol::signed::Statement;
use sortie_protocol::{ControllerMessage, FRAME_LIMIT, RunnerMessage};
use tokio::sync::mpsc;

use super::SessionAudit;
use crate::error::{Error, printable};
use crate::observe::{Observer, Step};
use crate::transport::{Connection, Ended, Ending};

/// Pieces that may wait on either side.
const PIECES: usize = 16;
/// How long the transport may take to tell how the runner ended, once its output has.
const ENDING: Duration = Duration::from_secs(5);

/// Bytes cut into lines without losing one.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
    /// In a line that is too long to be a frame.
    overlong: bool,
}

/// A part of what went by.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    /// A whole line, its newline included where it has one.
    Line(Vec<u8>),
    /// A part of a line that is no frame.
    Part(Vec<u8>),
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Option<Piece> {
        match self.buffer.iter().position(|&byte| byte == b'\n') {
            Some(end) => {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                let part = std::mem::take(&mut self.overlong) || line.len() > FRAME_LIMIT;
                Some(if part { Piece::Part(line) } else { Piece::Line(line) })
            }
            None if self.buffer.len() > FRAME_LIMIT || (self.overlong && !self.buffer.is_empty()) => {
                self.overlong = true;
                Some(Piece::Part(std::mem::take(&mut self.buffer)))
            }
            None => None,
        }
    }

    /// What is left once no more comes. A frame may do without its newline there.
    fn last(self) -> Option<Piece> {
        match self {
            Self { buffer, .. } if buffer.is_empty() => None,
            Self { buffer, overlong: true } => Some(Piece::Part(buffer)),
            Self { buffer, overlong: false } => Some(Piece::Line(buffer)),
        }
    }
}

/// The same streams, with everything on them recorded. `first` is what came of the runner's output so far.
pub(crate) fn tap(
    connection: Connection,
    first: &[u8],
    audit: Arc<SessionAudit>,
    observer: Arc<dyn Observer>,
) -> Connection {
    let Connection { output, input, ending } = connection;
    let (output_sender, tapped_output) = mpsc::channel(PIECES);
    let (tapped_input, input_receiver) = mpsc::channel(PIECES);
    let inward =
        Inward { audit: Arc::clone(&audit), observer: Arc::clone(&observer), ending: ending.clone(), input };
    tokio::spawn(inward.run(input_receiver));
    let mut lines = Lines::default();
    lines.push(first);
    while lines.next().is_some() {}
    let outward = Outward { audit, observer, ending: ending.clone(), lines, said_goodbye: false };
    tokio::spawn(outward.run(output, output_sender));
    Connection { output: tapped_output, input: tapped_input, ending }
}

/// To the runner.
struct Inward {
    audit: Arc<SessionAudit>,
    observer: Arc<dyn Observer>,
    ending: Ending,
    input: mpsc::Sender<Bytes>,
}

impl Inward {
    async fn run(self, mut from: mpsc::Receiver<Bytes>) {
        let mut lines = Lines::default();
        while let Some(bytes) = from.recv().await {
            lines.push(&bytes);
            while let Some(piece) = lines.next() {
                if !self.pass(piece).await {
                    return;
                }
            }
        }
        if let Some(piece) = lines.last() {
            self.pass(piece).await;
        }
    }

    /// Says whether to go on.
    async fn pass(&self, piece: Piece) -> bool {
        let bytes = match piece {
            Piece::Part(bytes) => bytes,
            Piece::Line(line) => {
                // By the runner's own parser: what it takes for a command is one here, and nothing else.
                if let Some((command, signer)) = command_in(&line)
                    && let Err(error) = self.audit.signed_command(&command, signer, false).await
                {
                    self.observer.warning(&error.to_string());
                    self.ending.abort();
                    return false;
                }
                line
            }
        };
        self.input.send(bytes.into()).await.is_ok()
    }
}

/// From the runner.
struct Outward {
    audit: Arc<SessionAudit>,
    observer: Arc<dyn Observer>,
    ending: Ending,
    lines: Lines,
    /// EXIT came.
    said_goodbye: bool,
}

impl Outward {
    async fn run(mut self, mut from: mpsc::Receiver<Bytes>, to: mpsc::Sender<Bytes>) {
        'all: loop {
            let bytes = tokio::select! {
                bytes = from.recv() => bytes,
                // Nobody reads any more, and the runner may have nothing to say that would show it.
                () = to.closed() => None,
            };
            let Some(bytes) = bytes else { break };
            self.lines.push(&bytes);
            while let Some(piece) = self.lines.next() {
                if !self.pass(piece, &to).await {
                    break 'all;
                }
            }
        }
        if let Some(piece) = std::mem::take(&mut self.lines).last() {
            self.pass(piece, &to).await;
        }
        let ended = tokio::time::timeout(ENDING, self.ending.wait()).await.unwrap_or_default();
        let error = (!self.said_goodbye).then(|| self.lost(ended));
        if let Some(error) = self.audit.end(error.as_ref()).await {
            self.observer.warning(&error.to_string());
        }
        // Only now the reader sees the end: by then it is on record.
        drop(to);
    }

    async fn pass(&mut self, piece: Piece, to: &mpsc::Sender<Bytes>) -> bool {
        let bytes = match piece {
            Piece::Part(bytes) => bytes,
            Piece::Line(line) => {
                self.note(&line).await;
                line
            }
        };
        to.send(bytes.into()).await.is_ok()
    }

    async fn note(&mut self, line: &[u8]) {
        let (id, answer) = match RunnerMessage::parse(frame(line)) {
            Ok(RunnerMessage::Event(event)) => return self.audit.output(&event),
            Ok(RunnerMessage::Exit(_)) => {
                self.said_goodbye = true;
                return;
            }
            Ok(RunnerMessage::Done(done)) => (done.command_id.clone(), Ok(done)),
            Ok(RunnerMessage::Error(error)) => (error.command_id.clone(), Err(error)),
            _ => return,
        };
        let Some(record) = self.audit.answer(&id, answer.as_ref()) else { return };
        let (sender, told) = tokio::sync::oneshot::channel();
        self.audit.answered(Some(record), move |unrecorded| {
            // The receiver is waiting below.
            let _ = sender.send(unrecorded);
        });
        if let Ok(Some(error)) = told.await {
            self.observer.warning(&error.to_string());
        }
    }

    fn lost(&self, ended: Ended) -> Error {
        let reason = ended.reason.unwrap_or_else(|| "the runner ended without saying why".to_owned());
        let reason = printable(reason.as_bytes(), 500);
        Error::Lost { host: self.audit.host().to_owned(), step: Step::Session, reason, pid: None }
    }
}

/// The command that a line asks for, and whose signature it carries, if any: that is for the runner to check.
fn command_in(line: &[u8]) -> Option<(Box<CommandMessage>, Option<String>)> {
    match ControllerMessage::parse(frame(line)).ok()? {
        ControllerMessage::Command(command) => Some((command, None)),
        ControllerMessage::Signed(signed) => {
            let command = Statement::parse(&signed.text).ok()?.command?;
            Some((command, Some(fingerprint(&signed.key))))
        }
        _ => None,
    }
}

/// Of a key in base64, as `ssh-keygen -l` prints it.
fn fingerprint(key: &str) -> String {
    match STANDARD.decode(key) {
        Ok(blob) => format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(blob))),
        Err(_) => "none that is a key".to_owned(),
    }
}

/// A line as the framing gives it: without its newline, and without a carriage return before that.
fn frame(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_command_is_a_command() {
        let vectors = include_str!("../../../protocol/vectors/controller.ndjson");
        let ids: Vec<_> = vectors
            .lines()
            .filter(|line| {
                line.starts_with("{\"type\":\"SIGNED\"") || line.starts_with("{\"type\":\"CANCEL\"")
            })
            .map(|line| command_in(line.as_bytes()).map(|(command, signer)| (command.id, signer.is_some())))
            .collect();
        assert_eq!(ids, [None, None, Some(("cmd-1".to_owned(), true))]);
    }

    #[test]
    fn no_byte_is_lost_or_moved_however_they_come() {
        let long = vec![b'x'; FRAME_LIMIT + 10];
        let all = [b"one\n\r\ntwo\r\n", &long[..], b"\nthree\nlast"].concat();
        for size in [1 << 16, 4_000_003, usize::MAX] {
            let mut lines = Lines::default();
            let (mut passed, mut whole) = (Vec::new(), Vec::new());
            let mut take = |piece: Piece| match piece {
                Piece::Line(line) => {
                    passed.extend_from_slice(&line);
                    whole.push(line);
                }
                Piece::Part(part) => passed.extend_from_slice(&part),
            };
            for bytes in all.chunks(size) {
                lines.push(bytes);
                while let Some(piece) = lines.next() {
                    take(piece);
                }
            }
            lines.last().into_iter().for_each(&mut take);
            assert!(passed == all, "pieces of {size}");
            assert_eq!(whole, [&b"one\n"[..], b"\r\n", b"two\r\n", b"three\n", b"last"]);
        }
    }
}
