//! `sortie exec`: a program with exactly the arguments that were given, its streams apart, its own exit status.

use std::ffi::OsString;
use std::future::Future;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use sortie_client::protocol::command::exec::Exec;
use sortie_client::protocol::message::Event as RunnerEvent;
use sortie_client::protocol::{Encoding, text};
use sortie_client::session::{Canceller, Farewell, InputWriter};
use sortie_client::{CommandOptions, Error, Session};

use crate::fleet::{self, Task};
use crate::limits::{self, Limiting};
use crate::options::{Becoming, Connection, Hosts, Run};
use crate::outcome::Outcome;
use crate::place::{Base, Host};
use crate::report::{Done, Event, Failure};
use crate::source::{self, Whole};
use crate::words;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    run: Run,
    #[command(flatten)]
    becoming: Becoming,
    #[command(flatten)]
    connection: Connection,
    /// The program and its arguments
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true)]
    argv: Vec<OsString>,
}

/// How a program is to be run.
#[derive(clap::Args)]
pub(crate) struct How {
    /// Run it in this directory of the host
    #[arg(long = "cd", value_name = "DIR")]
    directory: Option<String>,
    /// Add a variable to its environment; may be repeated
    #[arg(short = 'e', long, value_name = "NAME=VALUE", value_parser = words::variable)]
    env: Vec<(String, String)>,
    /// Give it our standard input also where that is a terminal, or goes to several hosts
    #[arg(long, conflicts_with = "no_stdin")]
    stdin: bool,
    /// Give it an empty standard input
    #[arg(short = 'n', long)]
    no_stdin: bool,
    /// Reach the hosts, but run nothing
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    limiting: Limiting,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let Arguments { hosts, how, run, becoming, connection, argv } = arguments;
    run_argv(&hosts, how, &run, &becoming, &connection, argv).await
}

/// What is to be done on every host.
struct Plan {
    exec: Exec,
    options: CommandOptions,
    input: Input,
}

/// Where standard input comes from.
enum Input {
    Nothing,
    /// As it comes, for the only host.
    Stream,
    /// The same for every host.
    Whole(Whole),
}

/// Runs `argv` on the hosts.
pub(crate) async fn run_argv(
    hosts: &Hosts,
    how: How,
    run: &Run,
    becoming: &Becoming,
    connection: &Connection,
    argv: Vec<OsString>,
) -> anyhow::Result<i32> {
    let hosts = Host::all(hosts)?;
    let base = Base::new(connection, run.ttl())?;
    let terminal = io::stdin().is_terminal();
    let input = match (how.stdin, hosts.len()) {
        _ if how.no_stdin || how.check => Input::Nothing,
        (true, 2..) => Input::Whole(Whole::of_stdin()?),
        (true, _) => Input::Stream,
        (false, 1) if !terminal && !source::stdin_is_null() => Input::Stream,
        (false, _) => Input::Nothing,
    };
    let (argv, argv_encoding) = encode(argv);
    let mut exec =
        Exec { argv_encoding, env: how.env.into_iter().collect(), ..Exec::argv(argv).stream_lines(true) };
    exec.work_dir = how.directory;
    if !matches!(input, Input::Nothing) {
        exec = exec.stdin_from_input();
    }
    let mut options = CommandOptions {
        timeout: run.timeout,
        check: how.check,
        r#become: becoming.whom()?,
        ..CommandOptions::default()
    };
    how.limiting.add_to(&mut options)?;
    let plan = Arc::new(Plan { exec, options, input });
    fleet::run(&base, &hosts, run, |task| on_host(task, Arc::clone(&plan))).await
}

/// Arguments as text, or all of them as base64 where one is not UTF-8.
fn encode(argv: Vec<OsString>) -> (Vec<String>, Option<Encoding>) {
    let bytes: Vec<Vec<u8>> = argv.into_iter().map(OsStringExt::into_vec).collect();
    let texts: Result<Vec<String>, _> = bytes.iter().map(|bytes| String::from_utf8(bytes.clone())).collect();
    match texts {
        Ok(texts) => (texts, None),
        // Within no bytes at all nothing stays text; of the empty argument both forms are the same.
        Err(_) => {
            let encoded = bytes.into_iter().map(|bytes| text::encode_within(bytes, 0).0).collect();
            (encoded, Some(Encoding::Base64))
        }
    }
}

async fn on_host(task: Task, plan: Arc<Plan>) -> Outcome {
    let mut opening = task.client.open(Arc::clone(&task.transport));
    let mut running = match opening.start(&plan.exec, plan.options.clone()) {
        Ok(running) => running,
        Err(error) => return fail(&task, &error),
    };
    // Nothing more will be asked, so the runner leaves by itself: no round trip is spent on a goodbye.
    opening.shutdown();
    let session = match task.unless_stopped(opening.connect()).await {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => return fail(&task, &error),
        Err(interrupted) => return interrupted,
    };
    let _feeder = match &plan.input {
        Input::Nothing => None,
        Input::Stream => Some(Helper::spawn(feed_stream(task.clone(), running.input(), running.canceller()))),
        Input::Whole(whole) => {
            Some(Helper::spawn(feed_whole(task.clone(), whole.clone(), running.input(), running.canceller())))
        }
    };
    let _watcher = Helper::spawn(cancel_when_stopped(task.clone(), running.canceller()));
    while let Some(event) = running.next_event().await {
        show(&task, event).await;
    }
    let result = running.wait().await;
    finish(&task, session, result.as_ref().err()).await;
    match result {
        Ok(done) => {
            let status = done.result.exit_code;
            limits::show(&task, done.usage);
            let result = Done::Exec(done.result);
            task.reporter.show(Event::Done { host: Arc::clone(&task.host), seconds: done.duration, result });
            Outcome::Ended(status)
        }
        Err(error) => Outcome::of_exec_error(&error, task.stop.seen()),
    }
}

fn fail(task: &Task, error: &Error) -> Outcome {
    task.failed(error);
    Outcome::of_exec_error(error, task.stop.seen())
}

/// A task that ends with whom it helps.
pub(crate) struct Helper(tokio::task::AbortHandle);

impl Helper {
    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work).abort_handle())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Cancels a command once, when the user or standard output wants it.
pub(crate) async fn cancel_when_stopped(task: Task, canceller: Canceller) {
    let signal = task.stop.wanted().await;
    canceller.cancel(None);
    if signal == 2 {
        task.warn("ending the command and all that it started; press Ctrl-C again to leave at once");
    }
}

/// Sees the runner gone, and shows `error` of the command with all that is known of it by then.
pub(crate) async fn finish(task: &Task, session: Session, error: Option<&Error>) {
    said_goodbye(task, session.ended().await, error);
}

/// The same, where it is known how the session ended.
pub(crate) fn said_goodbye(task: &Task, ended: Result<Farewell, Error>, error: Option<&Error>) {
    if let Some(error) = error {
        limits::show_of_error(task, error);
    }
    match (error, ended) {
        // A command's own error says what happened; any other is the session's, which knows more at its end.
        (Some(error @ Error::Command { .. }), Ok(_)) => task.failed(error),
        (Some(error @ Error::Command { .. }), Err(lost)) => {
            task.failed(error);
            task.warn(lost_after(task, &lost));
        }
        (Some(_), Err(lost)) => task.failed(&lost),
        (Some(error), Ok(_)) => task.failed(error),
        (None, Err(lost)) => task.warn(lost_after(task, &lost)),
        (None, Ok(_)) => {}
    }
}

fn lost_after(task: &Task, lost: &Error) -> String {
    let Failure { message, .. } = Failure::new(&task.host, lost);
    format!("the command has ended, but its runner was not seen to go: {message}")
}

/// Shows what a command says before its end.
pub(crate) async fn show(task: &Task, event: RunnerEvent) {
    show_of(task, None, event).await;
}

/// The same of a step of a list.
pub(crate) async fn show_of(task: &Task, step: Option<Arc<str>>, event: RunnerEvent) {
    let host = Arc::clone(&task.host);
    match event.stream {
        Some(stream) => {
            let RunnerEvent { message, encoding, .. } = event;
            let bytes = message.len();
            task.reporter.output(Event::Output { host, stream, data: message, encoding, step }, bytes).await;
        }
        None => {
            let RunnerEvent { level, message, progress, .. } = event;
            let bytes = message.len() + progress.as_ref().map_or(0, |progress| progress.unit.len());
            task.reporter.output(Event::Message { host, step, level, message, progress }, bytes).await;
        }
    }
}

async fn feed_stream(task: Task, input: InputWriter, canceller: Canceller) {
    let mut pieces = source::stdin_pieces();
    while let Some(piece) = pieces.recv().await {
        match piece {
            // A command that has ended takes no more, which is its own business.
            Ok(piece) => match input.write(&piece).await {
                Ok(true) => {}
                _ => return,
            },
            Err(error) => return broken_input(&task, &error, &canceller),
        }
    }
    // Fails only with the session, which says so itself.
    let _ = input.finish().await;
}

async fn feed_whole(task: Task, whole: Whole, input: InputWriter, canceller: Canceller) {
    let mut offset = 0;
    loop {
        match whole.piece(offset).await {
            Ok(piece) if piece.is_empty() => break,
            Ok(piece) => match input.write(&piece).await {
                Ok(true) => offset += piece.len() as u64,
                _ => return,
            },
            Err(error) => return broken_input(&task, &error, &canceller),
        }
    }
    let _ = input.finish().await;
}

/// A half-read input must not be taken for a whole one.
fn broken_input(task: &Task, error: &io::Error, canceller: &Canceller) {
    task.warn(format!("standard input cannot be read, so the command is ended: {error}"));
    canceller.cancel(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_are_no_text_travel_as_base64_all_of_them() {
        let argv =
            |words: &[&[u8]]| encode(words.iter().map(|word| OsString::from_vec(word.to_vec())).collect());
        assert_eq!(
            argv(&[b"printf", b"a\nb", b""]),
            (vec!["printf".into(), "a\nb".into(), String::new()], None)
        );
        let (words, encoding) = argv(&[b"ls", b"\xff", b""]);
        assert_eq!(
            (words, encoding),
            (vec!["bHM=".into(), "/w==".into(), String::new()], Some(Encoding::Base64))
        );
    }
}
