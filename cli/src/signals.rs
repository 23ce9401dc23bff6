//! Ctrl-C and its like: the first asks for an end in order, the second ends this program at once. What an end in order
//! is, is up to whoever watches.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::secrets;

/// Tells of the first signal.
#[derive(Clone)]
pub(crate) struct Interrupts {
    first: watch::Receiver<Option<i32>>,
}

impl Interrupts {
    /// Watches SIGINT and SIGTERM from here on. SIGHUP is left as it is: nohup(1) has it ignored, and otherwise it ends
    /// this program, which the runners notice.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let (sender, first) = watch::channel(None);
        let mut interrupt = signal(SignalKind::interrupt()).context("watching SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("watching SIGTERM")?;
        tokio::spawn(async move {
            loop {
                let number = tokio::select! {
                    _ = interrupt.recv() => 2,
                    _ = terminate.recv() => 15,
                };
                if sender.send_replace(Some(number)).is_some() {
                    secrets::restore_terminal();
                    std::process::exit(128 + number);
                }
            }
        });
        Ok(Self { first })
    }

    /// The first signal, once there is one.
    pub(crate) async fn first(&self) -> i32 {
        let mut first = self.first.clone();
        loop {
            match first.wait_for(Option::is_some).await.map(|number| *number) {
                Ok(Some(number)) => return number,
                // The watcher lives as long as this program.
                _ => tokio::time::sleep(Duration::MAX).await,
            }
        }
    }

    /// The first signal, if there was one.
    pub(crate) fn seen(&self) -> Option<i32> {
        *self.first.borrow()
    }
}
