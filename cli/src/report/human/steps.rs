//! Steps of a list as a person reads them.

use std::sync::Arc;

use sortie_client::protocol::Stream;

use super::Page;
use crate::report::{Applied, Planned, Step};
use crate::terminal::harmless;

/// One step, and what it changed.
pub(super) fn step(step: Step, page: &mut Page<'_>) {
    let Step { host, step: id, status, check, reason, depends_on, error, result, .. } = step;
    if let Some(error) = error {
        let code = error.code.map_or_else(String::new, |code| format!(" ({code})"));
        let ignored = if error.ignored { "; ignored" } else { "" };
        let message = harmless(error.message.as_bytes());
        let message = String::from_utf8_lossy(&message);
        return page.tell("31", &host, &format!("{id}: {message}{code}{ignored}"));
    }
    let text = match (status, check) {
        // Told all at once when the list ends.
        ("not_run", _) => return,
        ("changed", true) => page.painted(Stream::Stdout, "33", "would change"),
        ("changed", false) => page.painted(Stream::Stdout, "33", "changed"),
        ("unknown", _) => format!("unknown: depends on {}", names(&depends_on)),
        ("skipped", _) => format!("skipped: {}", reason.unwrap_or_default()),
        (status, _) => status.to_owned(),
    };
    page.result(&format!("{host}: {id}: {text}"));
    let result: Option<serde_json::Value> = result.and_then(|result| serde_json::from_str(result.get()).ok());
    let diff = result.as_ref().and_then(|result| result.get("diff")?.as_str());
    if let Some(diff) = diff.filter(|diff| !diff.is_empty()) {
        page.result(diff.trim_end_matches('\n'));
    }
}

/// What would run.
pub(super) fn plan(hosts: &[Arc<str>], steps: &[Planned], page: &mut Page<'_>) {
    let flights = steps.iter().filter_map(|step| step.flight).max().unwrap_or(0);
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let on = names(hosts);
    page.result(&format!("{} in {}, on {on}", count(steps.len(), "step"), count(flights, "flight")));
    let width =
        |text: fn(&Planned) -> &str| steps.iter().map(|step| text(step).chars().count()).max().unwrap_or(0);
    let (ids, commands) = (width(|step| &step.step), width(|step| step.command));
    for step in steps {
        let flight = step.flight.map_or_else(|| "-".to_owned(), |flight| flight.to_string());
        let mut line =
            format!("{flight:>4}  {:<ids$}  {:<commands$}  {}", step.step, step.command, step.about);
        if let Some(user) = &step.r#become {
            line.push_str(&format!("  as {user}"));
        }
        if !step.when_changed.is_empty() {
            line.push_str(&format!("  when changed: {}", names(&step.when_changed)));
        }
        for condition in &step.conditions {
            line.push_str(&format!("  {condition}"));
        }
        let waits: Vec<Arc<str>> =
            step.waits_for.iter().filter(|id| !step.when_changed.contains(id)).map(Arc::clone).collect();
        if !waits.is_empty() {
            line.push_str(&format!("  needs results of: {}", names(&waits)));
        }
        page.result(line.trim_end());
    }
}

/// What became of a list.
pub(super) fn applied(applied: &Applied, page: &mut Page<'_>) {
    let host = &applied.host;
    if !applied.left_undone.is_empty() {
        let what = applied.failed.as_ref().map_or_else(String::new, |id| format!("stopped at {id}; "));
        page.tell("31", host, &format!("{what}left undone: {}", names(&applied.left_undone)));
    }
    let changed = if applied.check { "would change" } else { "changed" };
    let counts = [
        (applied.changed, changed),
        (applied.unchanged, "unchanged"),
        (applied.skipped, "skipped"),
        (applied.unknown, "unknown"),
        (applied.ignored, "failed and ignored"),
        (usize::from(applied.failed.is_some()), "failed"),
        (applied.left_undone.len(), "left undone"),
    ];
    let counts: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    page.result(&format!("{host}: {}", counts.join(", ")));
}

fn names(ids: &[Arc<str>]) -> String {
    ids.join(", ")
}
