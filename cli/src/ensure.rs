//! What verbs have in common that bring something of a host where it should be: typed commands, one after the other in
//! one session. What they are it does not know.

use std::sync::Arc;

use sortie_client::protocol::CommandSpec;
use sortie_client::session::{Running, Typed, awaits_confirmation};
use sortie_client::{CommandOptions, Error, Session};

use crate::exec::{Helper, cancel_when_stopped, said_goodbye, show};
use crate::fleet::{self, Task};
use crate::limits::{self, Limiting};
use crate::options::{Becoming, Connection, Hosts, Preview, Run, command_options};
use crate::outcome::Outcome;
use crate::place::{Base, Host};
use crate::report::{Done, Event};

/// Which hosts, how they are reached, and how commands are run there.
#[derive(clap::Args)]
pub(crate) struct Where {
    #[command(flatten)]
    pub(crate) hosts: Hosts,
    #[command(flatten)]
    pub(crate) preview: Preview,
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(flatten)]
    pub(crate) becoming: Becoming,
    #[command(flatten)]
    pub(crate) limiting: Limiting,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

struct Plan<C: CommandSpec> {
    /// At least one.
    commands: Vec<C>,
    options: CommandOptions,
    /// Whether they are started only when the session is there.
    connected: bool,
    shown: fn(&C, bool, C::Result) -> Done,
}

/// Runs the commands on every host, in order, and on each up to the first that fails. `shown` gets the command, whether it was
/// only checked, and its result.
pub(crate) async fn run<C>(
    place: &Where,
    commands: Vec<C>,
    shown: fn(&C, bool, C::Result) -> Done,
) -> anyhow::Result<i32>
where
    C: CommandSpec + Send + Sync + 'static,
    C::Result: Send,
{
    run_when(place, false, commands, shown).await
}

/// As [`run`]; with `connected` nothing is sent before the session is there, for commands that the client has to confirm.
pub(crate) async fn run_when<C>(
    place: &Where,
    connected: bool,
    commands: Vec<C>,
    shown: fn(&C, bool, C::Result) -> Done,
) -> anyhow::Result<i32>
where
    C: CommandSpec + Send + Sync + 'static,
    C::Result: Send,
{
    let hosts = Host::all(&place.hosts)?;
    let base = Base::new(&place.connection, place.run.ttl())?;
    let mut options = command_options(&place.run, &place.preview, &place.becoming)?;
    place.limiting.add_to(&mut options)?;
    let plan = Arc::new(Plan { commands, options, connected, shown });
    fleet::run(&base, &hosts, &place.run, |task| on_host(task, Arc::clone(&plan))).await
}

async fn on_host<C>(task: Task, plan: Arc<Plan<C>>) -> Outcome
where
    C: CommandSpec + Send + Sync + 'static,
    C::Result: Send,
{
    let mut commands = &plan.commands[..];
    let mut opening = task.client.open(Arc::clone(&task.transport));
    let mut early = None;
    // The first travels with the runner, if it may.
    if let ([first, others @ ..], false) = (commands, plan.connected) {
        match opening.start(first, plan.options.clone()) {
            Ok(running) => early = Some((first, running)),
            Err(error) => return fail(&task, &error),
        }
        commands = others;
    }
    if commands.is_empty() {
        opening.shutdown();
    }
    let session = match task.unless_stopped(opening.connect()).await {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => return fail(&task, &error),
        Err(interrupted) => return interrupted,
    };
    let mut result = match early {
        Some((first, running)) => follow(&task, &plan, &session, first, running).await,
        None => Ok(()),
    };
    for command in commands {
        if result.is_err() || task.stop.seen().is_some() {
            break;
        }
        result = match session.start_with(command, plan.options.clone()).await {
            Ok(running) => follow(&task, &plan, &session, command, running).await,
            Err(error) => Err(error),
        };
    }
    let ended = if commands.is_empty() { session.ended().await } else { session.shutdown(None).await };
    said_goodbye(&task, ended, result.as_ref().err());
    match (result, task.stop.seen()) {
        (Err(error), stopped) => Outcome::of_error(&error, stopped),
        // Broken off between two commands.
        (Ok(()), Some(signal)) if !commands.is_empty() => Outcome::Interrupted(signal),
        (Ok(()), _) => Outcome::Ended(0),
    }
}

/// Shows what a command says, and its result.
async fn follow<C: CommandSpec>(
    task: &Task,
    plan: &Plan<C>,
    session: &Session,
    command: &C,
    mut running: Running<Typed<C::Result>>,
) -> Result<(), Error> {
    let _watcher = Helper::spawn(cancel_when_stopped(task.clone(), running.canceller()));
    while let Some(event) = running.next_event().await {
        if !awaits_confirmation(&event) {
            show(task, event).await;
        } else if let Err(error) = session.confirm(&event).await {
            task.warn(format!("a new login failed, so the host takes the change back: {error}"));
        }
    }
    let done = running.wait().await?;
    limits::show(task, done.usage);
    let result = (plan.shown)(command, plan.options.check, done.result);
    task.reporter.show(Event::Done { host: Arc::clone(&task.host), seconds: done.duration, result });
    Ok(())
}

fn fail(task: &Task, error: &Error) -> Outcome {
    task.failed(error);
    Outcome::of_error(error, task.stop.seen())
}
