//! For tests and fuzzing: a transport whose far side is the test itself.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]
#![cfg_attr(not(test), allow(dead_code, reason = "fuzzing needs less than the tests"))]

use std::sync::Mutex;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Connection, Ended, Ending, ExitStatus, Launch, Pipes, Starting, Transport, connection};
use crate::error::Error;
use crate::observe::{Observer, Step};

/// Gives out one prepared connection; a second start is refused.
pub(crate) struct Fake {
    prepared: Mutex<Option<Connection>>,
    launches: mpsc::UnboundedSender<Launch>,
}

/// The far side.
pub(crate) struct Far {
    pub(crate) launches: mpsc::UnboundedReceiver<Launch>,
    input: mpsc::Receiver<Bytes>,
    output: Option<mpsc::Sender<Bytes>>,
    pub(crate) ending: Ending,
    buffer: Vec<u8>,
}

pub(crate) fn fake() -> (Fake, Far) {
    let (connection, pipes) = connection();
    let (sender, launches) = mpsc::unbounded_channel();
    let Pipes { output, input, ending } = pipes;
    (
        Fake { prepared: Mutex::new(Some(connection)), launches: sender },
        Far { launches, input, output: Some(output), ending, buffer: Vec::new() },
    )
}

impl Transport for Fake {
    fn host(&self) -> &str {
        "web1"
    }

    fn start<'a>(&'a self, launch: &'a Launch, _observer: &'a dyn Observer) -> Starting<'a> {
        Box::pin(async move {
            let _ = self.launches.send(launch.clone());
            let prepared = self.prepared.lock().unwrap().take();
            prepared.ok_or_else(|| Error::Unreachable {
                host: "web1".into(),
                step: Step::Connect,
                reason: "only once".into(),
            })
        })
    }

    fn unattended(&self) -> bool {
        false
    }
}

impl Far {
    /// The next line that was sent, without its newline; `None` at the end of input.
    pub(crate) async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return Some(String::from_utf8(line).unwrap().trim_end().to_owned());
            }
            self.buffer.extend_from_slice(&self.input.recv().await?);
        }
    }

    /// The next bytes that were sent, exactly so many.
    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            self.buffer.extend_from_slice(&self.input.recv().await.unwrap());
        }
        let rest = self.buffer.split_off(count);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Whether something more was sent that has not been taken.
    pub(crate) fn has_more(&mut self) -> bool {
        while let Ok(bytes) = self.input.try_recv() {
            self.buffer.extend_from_slice(&bytes);
        }
        !self.buffer.is_empty()
    }

    pub(crate) async fn say(&mut self, bytes: impl Into<Bytes>) {
        self.output.as_ref().unwrap().send(bytes.into()).await.unwrap();
    }

    /// What was written to standard error.
    pub(crate) fn complain(&self, text: &str) {
        self.ending.push_stderr(text.as_bytes());
    }

    /// The program exits.
    pub(crate) fn exit(&mut self, code: u32) {
        self.output = None;
        self.ending.set(Ended { status: Some(ExitStatus::Code(code)), closed: true, reason: None });
    }

    /// The link breaks.
    pub(crate) fn cut(&mut self, reason: &str) {
        self.output = None;
        self.ending.set(Ended { reason: Some(reason.into()), ..Ended::default() });
    }

    /// Waits until the near side breaks the connection off.
    pub(crate) async fn aborted(&self) {
        self.ending.aborted().await;
    }

    /// Says all of it in pieces of this size, takes whatever is sent, and exits.
    pub(crate) async fn recite(&mut self, bytes: Bytes, size: usize) {
        let Some(output) = self.output.take() else { return };
        let say = async move {
            let mut rest = bytes;
            while !rest.is_empty() {
                let piece = rest.split_to(size.min(rest.len()));
                if output.send(piece).await.is_err() {
                    return;
                }
            }
        };
        let take = async { while self.input.recv().await.is_some() {} };
        let ending = self.ending.clone();
        let end = async {
            say.await;
            ending.set(Ended { status: Some(ExitStatus::Code(0)), closed: true, reason: None });
        };
        tokio::join!(end, take);
    }
}
