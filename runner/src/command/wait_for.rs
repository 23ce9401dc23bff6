//! `wait_for`: looks at a port, a path or a unit until it is as asked for, and says what it saw last.

use std::time::{Duration, Instant};

use sortie_protocol::ErrorCode;
use sortie_protocol::command::wait_for::{WaitFor, WaitForResult};

use super::{Context, service_reload};
use crate::failure::Failure;
use crate::probe::{File, Port};
use crate::service::Manager;
use crate::{job, path};

/// Between two looks, where nothing else is asked for, and what may be asked for.
const INTERVAL: u32 = 250;
const INTERVALS: std::ops::RangeInclusive<u32> = 10..=60_000;

/// How often the peer is told what is waited for.
const TELL: Duration = Duration::from_secs(5);

pub(super) fn run(context: &Context) -> Result<WaitForResult, Failure> {
    let params: WaitFor = job::parse(&context.job.take_params())?;
    let mut goal = Goal::new(&params)?;
    let begun = Instant::now();
    let until = (params.deadline > 0).then(|| begun + Duration::from_secs(params.deadline));
    let interval = if params.interval_ms == 0 { INTERVAL } else { params.interval_ms };
    let interval = Duration::from_millis(interval.into());
    let mut tell = begun + TELL;
    let mut seen = "nothing yet".to_owned();
    let mut waited = false;
    loop {
        let looked = goal.look(context, until, &mut seen);
        match looked {
            Ok(met) if met || context.check() => {
                return Ok(WaitForResult { waited: waited || !met, seen });
            }
            Ok(_) => waited = true,
            Err(_) if context.job.timed_out() => return Err(late(context, begun, &goal, seen)),
            Err(failure) => return Err(failure),
        }
        let now = Instant::now();
        let left = until.map_or(interval, |until| until.saturating_duration_since(now));
        if left.is_zero() {
            return Err(late(context, begun, &goal, seen));
        }
        if now >= tell {
            tell = now + TELL;
            context.progress(["waiting: ", &seen].concat(), None);
        }
        if let Err(failure) = context.job.pause(interval.min(left)) {
            return Err(if context.job.timed_out() { late(context, begun, &goal, seen) } else { failure });
        }
    }
}

/// It took too long; what was seen last says more than that.
fn late(context: &Context, begun: Instant, goal: &Goal<'_>, seen: String) -> Failure {
    // Rounded: the timeout began a moment before.
    let seconds = (begun.elapsed() + Duration::from_millis(500)).as_secs().to_string();
    let what = match goal {
        Goal::Unit { name, .. } => *name,
        Goal::File(file) => file.path,
        Goal::Port(_) => "the port",
    };
    let limit = if context.job.timed_out() { " (timeout)" } else { " (deadline)" };
    let message =
        ["gave up after ", &seconds, " s", limit, " waiting for ", what, "; last seen: ", &seen].concat();
    Failure::new(ErrorCode::Timeout, message).detail("seen", seen)
}

/// What is waited for.
enum Goal<'a> {
    Port(Port<'a>),
    File(File<'a>),
    Unit { name: &'a str, state: &'a str, manager: Manager },
}

impl<'a> Goal<'a> {
    /// # Errors
    /// `INVALID_PARAMS` naming the field; `UNSUPPORTED` for a unit where nobody manages units.
    fn new(params: &'a WaitFor) -> Result<Self, Failure> {
        let WaitFor { port, host, path, contains, unit, state, interval_ms, .. } = params;
        let refuse = |why: &str| Err(Failure::params(why));
        if u8::from(*port != 0) + u8::from(!path.is_empty()) + u8::from(!unit.is_empty()) != 1 {
            return refuse("exactly one of port, path and unit is required");
        }
        if !host.is_empty() && *port == 0 {
            return refuse("host: with port only");
        }
        if !contains.is_empty() && path.is_empty() {
            return refuse("contains: with path only");
        }
        if *interval_ms != 0 && !INTERVALS.contains(interval_ms) {
            return refuse("interval_ms: 10 to 60000");
        }
        let states: &[&str] = match (port, path.is_empty()) {
            (1.., _) => &["open", "closed"],
            (0, false) => &["present", "absent"],
            (0, true) => &["active", "inactive", "failed"],
        };
        let state = match states.iter().find(|known| *known == state) {
            Some(state) => state,
            None if state.is_empty() => states[0],
            None => {
                return Err(Failure::params(format!("state: {state:?} is none of {}", states.join(", "))));
            }
        };
        if *port != 0 {
            return Port::new(host, *port, state == "open").map(Self::Port);
        }
        if !path.is_empty() {
            path::check_absolute(path)?;
            return Ok(Self::File(File::new(path, contains, state == "present")));
        }
        service_reload::check_name("unit", unit)?;
        Ok(Self::Unit { name: unit, state, manager: Manager::of_host()? })
    }

    /// Whether it is as asked for; `seen` is what it is.
    fn look(
        &mut self,
        context: &Context,
        until: Option<Instant>,
        seen: &mut String,
    ) -> Result<bool, Failure> {
        match self {
            Self::Port(port) => port.look(context, until, seen),
            Self::File(file) => file.look(context, seen),
            Self::Unit { name, state, manager } => match manager.look(context, name) {
                Ok(unit) => {
                    *seen = [&*unit.id, " is ", &unit.active, " (", &unit.sub, ")"].concat();
                    Ok(unit.active == *state || *state == "active" && unit.is_up())
                }
                // One that is not there does not run; and it may come.
                Err(failure) if failure.code == ErrorCode::NotFound => {
                    *seen = ["the host has no unit ", name].concat();
                    Ok(*state == "inactive")
                }
                Err(failure) => Err(failure),
            },
        }
    }
}
