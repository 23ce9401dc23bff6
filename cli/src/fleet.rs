//! The same work on one host or many: at most so many at once, one outcome each, one exit status for all. What the work
//! is it does not know.

use std::future::Future;
use std::io::ErrorKind;
use std::sync::Arc;

use sortie_client::{Client, Error, Transport};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::options::Run;
use crate::outcome::{Outcome, status_of};
use crate::place::{Base, Host};
use crate::report::{self, Event, Failure, Reporter, Style};
use crate::signals::Interrupts;

/// SIGPIPE, which stands for a standard output that nobody reads any more.
const BROKEN_PIPE: i32 = 13;

/// What the work on one host is done with.
#[derive(Clone)]
pub(crate) struct Task {
    pub(crate) host: Arc<str>,
    pub(crate) client: Client,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) reporter: Reporter,
    pub(crate) stop: Stop,
}

/// Why work should end early.
#[derive(Clone)]
pub(crate) struct Stop {
    interrupts: Interrupts,
    reporter: Reporter,
}

impl Stop {
    /// Returns a signal's number once work should end: the user's, or SIGPIPE's when nobody reads the results.
    pub(crate) async fn wanted(&self) -> i32 {
        tokio::select! {
            number = self.interrupts.first() => number,
            _ = self.reporter.broken() => BROKEN_PIPE,
        }
    }

    /// The same, if it has been so already.
    pub(crate) fn seen(&self) -> Option<i32> {
        self.interrupts.seen().or_else(|| self.reporter.is_broken().map(|_| BROKEN_PIPE))
    }
}

impl Task {
    /// Shows why there is no result.
    pub(crate) fn failed(&self, error: &Error) {
        self.reporter.show(Event::Error(Failure::new(&self.host, error)));
    }

    /// Shows something that stops nothing.
    pub(crate) fn warn(&self, message: impl Into<String>) {
        self.reporter.show(Event::Warning { host: Arc::clone(&self.host), message: message.into() });
    }

    /// Waits for `work`, unless it should end early: then it is dropped, with its connection.
    pub(crate) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, Outcome> {
        tokio::select! {
            biased;
            signal = self.stop.wanted() => {
                if signal != BROKEN_PIPE {
                    self.reporter.show(Event::Error(Failure::interrupted(&self.host)));
                }
                Err(Outcome::Interrupted(signal))
            }
            result = work => Ok(result),
        }
    }
}

/// Does `work` on every host and gives the exit status.
pub(crate) async fn run<F>(
    base: &Base,
    hosts: &[Host],
    options: &Run,
    work: impl Fn(Task) -> F,
) -> anyhow::Result<i32>
where
    F: Future<Output = Outcome> + Send + 'static,
{
    let several = hosts.len() > 1;
    let interrupts = Interrupts::watch()?;
    let (reporter, printer) = report::start(Style { json: options.json, prefix: several });
    let stop = Stop { interrupts, reporter: reporter.clone() };
    let forks = Arc::new(Semaphore::new(options.forks));
    let mut tasks = JoinSet::new();
    let mut outcomes = Vec::new();
    for host in hosts {
        let client = base.client(host, &reporter);
        let transport = match base.transport(&client, host).await {
            Ok(transport) => transport,
            Err(error) => {
                reporter.show(Event::Error(Failure::new(&host.label, &error)));
                outcomes.push(Outcome::Unreachable);
                continue;
            }
        };
        let task = Task {
            host: Arc::clone(&host.label),
            client,
            transport,
            reporter: reporter.clone(),
            stop: stop.clone(),
        };
        let (forks, stop) = (Arc::clone(&forks), stop.clone());
        let work = work(task);
        tasks.spawn(async move {
            // Never closed, so a permit always comes.
            let _permit = forks.acquire_owned().await;
            match stop.seen() {
                Some(signal) => Outcome::Interrupted(signal),
                None => work.await,
            }
        });
    }
    while let Some(joined) = tasks.join_next().await {
        // A task that panicked has said so on standard error.
        outcomes.push(joined.unwrap_or(Outcome::Unreachable));
    }
    let status = status_of(&outcomes);
    if several {
        let count = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count();
        reporter.show(Event::Summary {
            hosts: hosts.len(),
            fine: count(|outcome| *outcome == Outcome::Ended(0)),
            failed: count(|outcome| matches!(outcome, Outcome::Ended(status) if *status != 0)),
            unreachable: count(|outcome| *outcome == Outcome::Unreachable),
            interrupted: count(|outcome| matches!(outcome, Outcome::Interrupted(_))),
            exit_status: status,
        });
    }
    printer.finish();
    match reporter.is_broken() {
        Some(kind) if kind != ErrorKind::BrokenPipe => {
            Err(anyhow::anyhow!("cannot write to standard output: {kind}"))
        }
        _ => Ok(status),
    }
}
