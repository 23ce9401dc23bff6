//! `sortie pipe`: standard input and output connected to a runner, for programs that speak the protocol themselves. No
//! frame is read or changed on the way.

use std::io::{self, ErrorKind};
use std::time::Duration;

use anyhow::anyhow;
use sortie_client::transport::{Connection as Streams, ExitStatus};
use sortie_client::{Error, Pipe};
use tokio::sync::mpsc;

use crate::options::{self, Connection};
use crate::outcome::{FAILED, usage};
use crate::place::{Base, Host};
use crate::report::{self, Event, Failure, Style};
use crate::source;
use crate::terminal::{Harmless, Sink};
use crate::words;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    host: options::Host,
    /// End the runner, whatever happens, after this long [default: 600]
    #[arg(long, value_name = "TIME", value_parser = words::duration)]
    ttl: Option<Duration>,
    /// End the runner when it has read nothing for this long
    #[arg(long, value_name = "TIME", value_parser = words::duration)]
    lease: Option<Duration>,
    /// Run so many commands at once, instead of one after the other
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    if arguments.connection.sign_with.is_some() {
        return Err(usage("--sign-with: pipe carries frames as they are; sign them by `sortie sign` before"));
    }
    let host = Host::one(&arguments.host)?;
    let base = Base::new(&arguments.connection, arguments.ttl.unwrap_or(Duration::from_secs(600)))?;
    let mut flags = Vec::new();
    for (flag, value) in [
        ("--ttl", arguments.ttl.map(|ttl| ttl.as_secs())),
        ("--lease", arguments.lease.map(|lease| lease.as_secs())),
        ("--concurrency", arguments.concurrency.map(u64::from)),
    ] {
        if let Some(value) = value {
            flags.extend([flag.to_owned(), value.to_string()]);
        }
    }
    // Standard output is for frames alone; what there is to tell goes to standard error as text.
    let (reporter, printer) = report::start(Style { json: false, prefix: false });
    let client = base.client(&host, &reporter);
    let connected = match base.transport(&client, &host).await {
        Ok(transport) => client.pipe(&*transport, flags).await,
        Err(error) => Err(error),
    };
    let result = match connected {
        Ok(pipe) => carry(pipe, &host).await,
        Err(error) => Err(error.into()),
    };
    let status = match result {
        Ok(status) => status,
        Err(error) => {
            let failure = match error.downcast_ref::<Error>() {
                Some(error) => Failure::new(&host.label, error),
                None => Failure::local(&host.label, format!("{error:#}")),
            };
            reporter.show(Event::Error(failure));
            FAILED
        }
    };
    printer.finish();
    Ok(status)
}

/// Carries bytes both ways until the runner's output ends, and gives its exit status.
async fn carry(pipe: Pipe, host: &Host) -> anyhow::Result<i32> {
    let Pipe { first, connection: Streams { mut output, input, ending }, .. } = pipe;
    let (sender, receiver) = mpsc::channel::<Vec<u8>>(4);
    // Standard output may block for as long as it likes without keeping anything else from its turn.
    let writer = std::thread::spawn(move || write(receiver));
    tokio::spawn(async move {
        let mut pieces = source::stdin_pieces();
        while let Some(Ok(piece)) = pieces.recv().await {
            if input.send(piece.into()).await.is_err() {
                return;
            }
        }
        // Dropping `input` is the end of the runner's input; its answers still come.
    });
    let mut open = sender.send(first).await.is_ok();
    while open {
        let bytes = tokio::select! {
            // The writer is gone, and there may never be anything more to notice it by.
            () = sender.closed() => None,
            bytes = output.recv() => bytes,
        };
        let Some(bytes) = bytes else { break };
        open = sender.send(bytes.to_vec()).await.is_ok();
    }
    open &= !sender.is_closed();
    drop(sender);
    if !open {
        // Nobody reads any more: the runner is told by losing its reader.
        ending.abort();
    }
    let written = tokio::task::spawn_blocking(move || writer.join()).await;
    match written {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) if error.kind() == ErrorKind::BrokenPipe => return Ok(128 + 13),
        Ok(Ok(Err(error))) => return Err(anyhow!("cannot write to standard output: {error}")),
        _ => return Err(anyhow!("cannot write to standard output")),
    }
    let ended = ending.wait().await;
    match (ended.status, ended.reason) {
        (Some(ExitStatus::Code(code)), _) => Ok(i32::try_from(code).unwrap_or(FAILED)),
        (Some(ExitStatus::Signal(name)), _) => Err(anyhow!("the runner was ended by signal {name}")),
        (None, Some(reason)) => Err(anyhow!("the connection to {} was lost: {reason}", host.label)),
        (None, None) => Err(anyhow!("the runner ended, and nobody says how")),
    }
}

fn write(mut pieces: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    let mut out = Sink::new(&io::stdout());
    // Somebody looks at what is meant for programs: a host could send that person's terminal anything.
    let mut filter = out.is_terminal.then(Harmless::default);
    while let Some(piece) = pieces.blocking_recv() {
        match &mut filter {
            Some(filter) => {
                let mut shown = Vec::new();
                filter.push(&piece, &mut shown);
                out.write_all(&shown)?;
            }
            None => out.write_all(&piece)?,
        }
    }
    Ok(())
}
