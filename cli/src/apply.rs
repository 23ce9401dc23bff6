//! `sortie apply`: a list of steps on every host. What steps are and in which order they run is the client's affair.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sortie_client::apply::{
    self, Applying, Ended, Options, Report, Status, StepFailure, StepList, Variables,
};
use sortie_client::protocol::ErrorCode;
use sortie_client::{CommandOptions, Error};

use crate::ensure::Where;
use crate::exec::{Helper, show_of};
use crate::fleet::{self, Task};
use crate::options::{Run, command_options};
use crate::outcome::{self, Outcome, TIMEOUT};
use crate::place::{Base, Host};
use crate::report::{self, Applied, Event, Failure, Planned, Step, StepError, Style};
use crate::words;

/// Longest time to live that is chosen for a list, in seconds.
const LONGEST: u64 = 7 * 24 * 3600;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Where,
    /// Say what would run, in which order, and speak with no host
    #[arg(long)]
    plan: bool,
    /// Set a variable, as text; counts more than any file; may be repeated
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = words::variable)]
    vars: Vec<(String, String)>,
    /// Take variables from this YAML or JSON file; a later one counts more; may be repeated
    #[arg(long, value_name = "FILE")]
    vars_file: Vec<PathBuf>,
    /// The list of steps, in YAML or JSON
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let Arguments { place, plan, vars, vars_file, file } = arguments;
    let mut variables = Variables::new();
    for file in vars_file {
        variables = variables.file(&file).map_err(|problems| outcome::usage(problems.to_string()))?;
    }
    for (name, value) in vars {
        variables =
            variables.set(&name, value).map_err(|problem| outcome::usage(format!("--var: {problem}")))?;
    }
    let list = StepList::load(&file, &variables).map_err(|problems| outcome::usage(problems.to_string()))?;
    let hosts = Host::all(&place.hosts)?;
    if plan {
        return show_plan(&list, &hosts, place.run.json);
    }
    let base = Base::new(&place.connection, ttl(&place.run, &list))?;
    let mut asked = command_options(&place.run, &place.preview, &place.becoming)?;
    place.limiting.add_to(&mut asked)?;
    let CommandOptions { timeout, check, diff, r#become, limits, usage, .. } = asked;
    let options = Options { timeout, check, diff, r#become, limits, usage };
    let list = Arc::new(list);
    fleet::run(&base, &hosts, &place.run, |task| on_host(task, Arc::clone(&list), options.clone())).await
}

/// The plan is the same for all hosts.
fn show_plan(list: &StepList, hosts: &[Host], json: bool) -> anyhow::Result<i32> {
    let (reporter, printer) = report::start(Style { json, prefix: false });
    let hosts: Vec<Arc<str>> = hosts.iter().map(|host| Arc::clone(&host.label)).collect();
    reporter.show(Event::Plan { hosts, steps: list.plan().into_iter().map(planned).collect() });
    printer.finish();
    match reporter.is_broken() {
        Some(kind) if kind != ErrorKind::BrokenPipe => {
            anyhow::bail!("cannot write to standard output: {kind}")
        }
        _ => Ok(0),
    }
}

fn planned(step: apply::Planned) -> Planned {
    let apply::Planned { id, kind, about, flight, waits_for, when_changed, conditions, r#become, .. } = step;
    Planned { step: id, command: kind.name(), about, flight, waits_for, when_changed, conditions, r#become }
}

/// Long enough for every step to take all of its time.
fn ttl(run: &Run, list: &StepList) -> Duration {
    run.ttl.unwrap_or_else(|| {
        let seconds = list.longest(run.timeout).as_secs().saturating_add(60);
        Duration::from_secs(seconds.clamp(600, LONGEST))
    })
}

async fn on_host(task: Task, list: Arc<StepList>, options: Options) -> Outcome {
    let check = options.check;
    let mut applying = list.apply(task.client.open(Arc::clone(&task.transport)), options);
    let stopper = applying.stopper();
    let watching = task.clone();
    let _watcher = Helper::spawn(async move {
        let signal = watching.stop.wanted().await;
        stopper.stop();
        if signal == 2 {
            watching.warn(
                "ending the step that runs, and no other is begun; press Ctrl-C again to leave at once",
            );
        }
    });
    show(&task, &mut applying).await;
    let report = applying.wait().await;
    tell(&task, &report, check)
}

async fn show(task: &Task, applying: &mut Applying) {
    while let Some(event) = applying.next_event().await {
        match event {
            apply::Event::Said { id, event } => show_of(task, Some(id), event).await,
            apply::Event::Ended(ended) => task.reporter.show(Event::Step(Box::new(step(task, ended)))),
            _ => {}
        }
    }
}

fn step(task: &Task, ended: Ended) -> Step {
    let Ended { id, kind, status, check, seconds, result, usage } = ended;
    let name = status.name();
    let (mut reason, mut depends_on, mut error) = (None, Vec::new(), None);
    match status {
        Status::Skipped { reason: why } => reason = Some(why),
        Status::Unknown { depends_on: ids } => depends_on = ids,
        Status::Failed { failure, ignored } => error = Some(step_error(task, &failure, ignored)),
        _ => {}
    }
    let host = Arc::clone(&task.host);
    Step {
        host,
        step: id,
        command: kind.name(),
        status: name,
        check,
        seconds,
        reason,
        depends_on,
        error,
        usage,
        result,
    }
}

fn step_error(task: &Task, failure: &StepFailure, ignored: bool) -> StepError {
    let (class, message) = match failure {
        StepFailure::Command(error) => (error.class, failure.to_string()),
        StepFailure::Session(error) => (None, Failure::new(&task.host, error).message),
        _ => (None, failure.to_string()),
    };
    StepError { code: failure.code().map(ToString::to_string), class, message, ignored }
}

/// Shows what became of the host, and says it in a status.
fn tell(task: &Task, report: &Report, check: bool) -> Outcome {
    let host = Arc::clone(&task.host);
    if report.stopped {
        task.reporter.show(Event::Error(Failure::interrupted(&host)));
    } else if let Some(error) = &report.error {
        task.failed(error);
    }
    task.reporter.show(Event::Applied(Applied {
        host,
        check,
        changed: report.changed,
        unchanged: report.unchanged,
        skipped: report.skipped,
        unknown: report.unknown,
        ignored: report.ignored,
        failed: report.failed.as_ref().map(|(id, _)| Arc::clone(id)),
        left_undone: report.left_undone.clone(),
    }));
    if let Some(lost) = &report.goodbye {
        let Failure { message, .. } = Failure::new(&task.host, lost);
        task.warn(format!("all steps are through, but the runner was not seen to go: {message}"));
    }
    outcome_of(report, task.stop.seen())
}

fn outcome_of(report: &Report, signal: Option<i32>) -> Outcome {
    match (&report.error, &report.failed) {
        _ if report.stopped => Outcome::Interrupted(signal.unwrap_or(2)),
        (Some(error @ Error::Command { .. }), _) => Outcome::of_error(error, signal),
        (Some(_), _) => Outcome::Unreachable,
        (None, Some((_, failure))) => match failure.code() {
            Some(ErrorCode::Timeout | ErrorCode::TtlExpired) => Outcome::Ended(TIMEOUT),
            _ => Outcome::Ended(1),
        },
        (None, None) => Outcome::Ended(0),
    }
}
