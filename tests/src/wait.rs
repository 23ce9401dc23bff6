//! Waiting with an end: what should happen soon is waited for generously and then reported by name, so that a test
//! fails with a sentence and never hangs. Nothing here measures time.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// How long the kit waits for what should come at once. Generous: the machine may be busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Awaits `future`, for at most [`DEADLINE`].
///
/// # Errors
/// When the deadline passes; the error names `what`.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(DEADLINE, future)
        .await
        .with_context(|| format!("{what}: nothing within {} s", DEADLINE.as_secs()))
}

/// Looks again and again until `probe` gives `Ok`, for at most [`DEADLINE`]: for states of the system that cannot be
/// waited on, such as "no process is left".
///
/// # Errors
/// The last error of `probe`, once the deadline has passed.
pub async fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() >= end => bail!("{what}: still not so: {error:#}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
