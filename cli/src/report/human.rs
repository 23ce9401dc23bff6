//! Events as a person reads them. Knows no JSON; what a host sent is made harmless wherever it may reach a terminal.

use std::io::Write as _;
use std::sync::Arc;

use sortie_client::error::printable;
use sortie_client::protocol::command::file_stat::FileStatResult;
use sortie_client::protocol::command::pkg_ensure::PackageVersions;
use sortie_client::protocol::message::{Level, Progress, Strings};
use sortie_client::protocol::{Stream, Usage};

mod steps;

use super::{Begun, Check, Done, Event, Failure, audit, output_bytes};
use crate::terminal::{Harmless, harmless};

/// Longest line that is put together before it is shown with its host before it.
const LINE: usize = 64 * 1024;

/// What is remembered between events.
#[derive(Default)]
pub(super) struct Human {
    lines: Begun<Vec<u8>>,
    filters: Begun<Harmless>,
    /// A progress line stands on the terminal.
    progress: bool,
}

/// Where text goes and what it may hold.
pub(super) struct Page<'a> {
    pub(super) out: &'a mut Vec<u8>,
    pub(super) err: &'a mut Vec<u8>,
    pub(super) out_terminal: bool,
    pub(super) err_terminal: bool,
    pub(super) prefix: bool,
}

impl Page<'_> {
    fn colours(&self, stream: Stream) -> bool {
        let terminal = if stream == Stream::Stderr { self.err_terminal } else { self.out_terminal };
        terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }

    fn painted(&self, stream: Stream, colour: &str, text: &str) -> String {
        if self.colours(stream) { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// One line of our own on standard error; what a host said in it is made harmless, wherever that goes.
    fn tell(&mut self, colour: &str, host: &str, text: &str) {
        let name = self.painted(Stream::Stderr, colour, "sortie:");
        let host = if host.is_empty() { String::new() } else { format!("{host}: ") };
        self.err.extend(format!("{name} {host}").bytes());
        self.err.extend(harmless(text.as_bytes()));
        self.err.push(b'\n');
    }

    /// One line of a result.
    fn result(&mut self, text: &str) {
        if self.out_terminal {
            self.out.extend(harmless(text.as_bytes()));
        } else {
            self.out.extend(text.bytes());
        }
        self.out.push(b'\n');
    }
}

impl Human {
    pub(super) fn render(&mut self, event: Event, page: &mut Page<'_>) {
        let is_progress = matches!(event, Event::Progress { .. } | Event::Message { progress: Some(_), .. });
        if self.progress && !is_progress {
            self.progress = false;
            page.err.extend(b"\r\x1b[K");
        }
        match event {
            Event::Output { host, stream, data, encoding, .. } => {
                self.output((host, stream), &output_bytes(data, encoding), page);
            }
            // How far a command is, is for who watches.
            Event::Message { host, message, progress: Some(progress), .. } => {
                if page.err_terminal {
                    self.progress = true;
                    let message = harmless(message.as_bytes());
                    let message = String::from_utf8_lossy(&message);
                    let Progress { current, total, unit } = progress;
                    let far = if unit == "percent" {
                        format!("{current} %")
                    } else {
                        format!("{current} of {total}")
                    };
                    page.err.extend(format!("\r{host}: {message} ({far})\x1b[K").bytes());
                }
            }
            Event::Message { host, step, level, message, .. } => {
                let colour = if level == Level::Warn { "33" } else { "0" };
                let step = step.map_or_else(String::new, |step| format!("{step}: "));
                page.tell(colour, &host, &format!("{step}{message}"));
            }
            Event::Progress { host, current, total } if page.err_terminal => {
                self.progress = true;
                let share = current.saturating_mul(100).checked_div(total).unwrap_or(100);
                page.err.extend(
                    format!("\r{host}: {} of {} ({share} %)\x1b[K", size(current), size(total)).bytes(),
                );
            }
            Event::Progress { .. } => {}
            Event::Warning { host, message } => page.tell("33", &host, &message),
            Event::Frame { host, direction, kind, command_id, bytes, summary } => {
                let arrow = if direction == "sent" { '>' } else { '<' };
                let (command_id, summary) =
                    (printable(command_id.as_bytes(), 100), printable(summary.as_bytes(), 500));
                page.err.extend(
                    format!("{host} {arrow} {kind:<8} {command_id:<4} {bytes:>8} B  {summary}\n").bytes(),
                );
            }
            Event::Check(check) => self.check(&check, page),
            Event::Done { host, result, .. } => self.done(&host, result, page),
            Event::Usage { host, usage } => {
                self.end_lines(&host, page);
                took(&host, &usage, page);
            }
            Event::AuditRecord { line, at, record } => {
                page.result(&audit::record(line, &at, record.as_deref()));
            }
            Event::AuditFinding { line, note, text, .. } => {
                page.tell(if note { "33" } else { "31" }, "", &format!("line {line}: {text}"));
            }
            Event::AuditVerified(verified) => page.result(&audit::verified(&verified)),
            Event::Step(step) => {
                self.end_lines(&step.host, page);
                if let Some(usage) = &step.usage {
                    took(&step.host, usage, page);
                }
                steps::step(*step, page);
            }
            Event::Plan { hosts, steps } => steps::plan(&hosts, &steps, page),
            Event::Applied(applied) => steps::applied(&applied, page),
            Event::Error(failure) => {
                self.end_lines(&failure.host, page);
                failed(&failure, page);
            }
            Event::Summary { hosts, fine, failed, unreachable, interrupted, .. } => {
                let mut parts = Vec::new();
                for (count, what) in [
                    (fine, "fine"),
                    (failed, "failed"),
                    (unreachable, "unreachable"),
                    (interrupted, "interrupted"),
                ] {
                    if count > 0 {
                        parts.push(format!("{count} {what}"));
                    }
                }
                let colour = if fine == hosts { "32" } else { "31" };
                page.tell(colour, "", &format!("{hosts} hosts: {}", parts.join(", ")));
            }
            Event::Runner { target, bytes, gzip_bytes, sha256 } => {
                page.result(&format!("{target:<32} {bytes:>9} {gzip_bytes:>9}  {sha256}"));
            }
            Event::RunnersSigned { version, signer, key } => {
                page.result(&format!("version {version}, signed by {signer} ({key})"));
            }
        }
    }

    fn output(&mut self, key: (Arc<str>, Stream), bytes: &[u8], page: &mut Page<'_>) {
        if page.prefix {
            let line = self.lines.entry(key.clone()).or_default();
            for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(piece);
                if line.ends_with(b"\n") || line.len() >= LINE {
                    prefixed(&key, line, page);
                    line.clear();
                }
            }
            return;
        }
        let terminal = if key.1 == Stream::Stderr { page.err_terminal } else { page.out_terminal };
        let target = if key.1 == Stream::Stderr { &mut *page.err } else { &mut *page.out };
        if terminal {
            self.filters.entry(key).or_default().push(bytes, target);
        } else {
            target.extend_from_slice(bytes);
        }
    }

    /// Shows what a host's streams ended with, where that was no whole line.
    fn end_lines(&mut self, host: &Arc<str>, page: &mut Page<'_>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let key = (Arc::clone(host), stream);
            if let Some(line) = self.lines.remove(&key)
                && !line.is_empty()
            {
                prefixed(&key, &line, page);
            }
            if let Some(mut filter) = self.filters.remove(&key) {
                filter.finish(if stream == Stream::Stderr { page.err } else { page.out });
            }
        }
    }

    fn done(&mut self, host: &Arc<str>, result: Done, page: &mut Page<'_>) {
        self.end_lines(host, page);
        match result {
            Done::Exec(result) => {
                if result.skipped {
                    page.tell("33", host, "nothing was run");
                } else if let Some(signal) = &result.signal {
                    page.tell("31", host, &format!("ended by {signal}"));
                } else if page.prefix && result.exit_code != 0 {
                    page.tell("31", host, &format!("exit status {}", result.exit_code));
                }
                if result.stdout_open && result.left_running > 0 {
                    let text = "a process that it left running still holds its output; what that prints is not shown";
                    page.tell("33", host, text);
                }
            }
            Done::Put { path, check, result } => {
                let what = match (result.changed, result.created, check) {
                    (false, ..) => "unchanged".to_owned(),
                    (true, true, true) => "would be created".to_owned(),
                    (true, false, true) => "would be changed".to_owned(),
                    (true, true, false) => format!("created, {}", size(result.bytes_written)),
                    (true, false, false) => format!("changed, {}", size(result.bytes_written)),
                };
                let backup =
                    result.backup_path.map_or_else(String::new, |path| format!("; old file kept as {path}"));
                page.result(&format!("{host}: {path}: {what}{backup}"));
                differences(result.diff, page);
            }
            Done::FileStat { path, result } => {
                page.result(&format!("{host}: {path}: {}", described(*result)));
            }
            Done::FileEdit { path, check, result } => {
                // What is there already may still get another owner or mode.
                let already = result.action.starts_with("already_") || result.action == "no_match";
                let what = match (result.changed && already, check) {
                    (true, true) => "would get other attributes".to_owned(),
                    (true, false) => "got other attributes".to_owned(),
                    (false, _) => done_to(&result.action, result.changed, check),
                };
                let new = if result.created { ", a new file" } else { "" };
                let backup =
                    result.backup_path.map_or_else(String::new, |path| format!("; old file kept as {path}"));
                page.result(&format!("{host}: {path}: {what}{new}{backup}"));
                differences(result.diff, page);
            }
            Done::DirEnsure { path, check, result } => {
                let below = match result.changed_below {
                    0 => String::new(),
                    count => format!(", {count} below it"),
                };
                let what = brought(result.changed, result.created, check);
                page.result(&format!("{host}: {path}: {what}{below}"));
                differences(result.diff, page);
            }
            Done::LinkEnsure { path, check, result } => {
                let nowhere = if result.dangling { "; it leads nowhere" } else { "" };
                let what = brought(result.changed, result.created, check);
                page.result(&format!("{host}: {path}: {what}{nowhere}"));
                differences(result.diff, page);
            }
            Done::FileRemove { path, check, result } => {
                let below = match result.removed {
                    0 | 1 => String::new(),
                    all => format!(" with all {} in it", all - 1),
                };
                let what = match (result.changed, check) {
                    (false, _) => "unchanged: nothing is there".to_owned(),
                    (true, true) => format!("would be removed: {}{below}", result.kind),
                    (true, false) => format!("removed: {}{below}", result.kind),
                };
                page.result(&format!("{host}: {path}: {what}"));
                differences(result.diff, page);
            }
            Done::FileUnpack { path, check, result } => {
                let what = done_to(&result.action, result.changed, check);
                let members =
                    if result.changed { format!(", {} members", result.members) } else { String::new() };
                page.result(&format!("{host}: {path}: {what}{members}"));
                if let Some(diff) = result.diff.filter(|diff| !diff.is_empty()) {
                    page.result(diff.trim_end_matches('\n'));
                }
            }
            Done::Pkg { name, check, result } => {
                let what = done_to(&result.action, result.changed, check);
                let only = PackageVersions {
                    name,
                    previous_version: result.previous_version,
                    installed_version: result.installed_version,
                };
                if result.packages.is_empty() {
                    page.result(&format!("{host}: {}: {what}: {}", only.name, versions(&only)));
                } else {
                    page.result(&format!("{host}: {what}"));
                }
                for package in result.packages {
                    page.result(&format!("{host}: {}: {}", package.name, versions(&package)));
                }
                for package in result.also_changed {
                    page.result(&format!("{host}: {}, with it: {}", package.name, versions(&package)));
                }
                differences(result.diff, page);
            }
            Done::Service { name, check, result } => {
                let what = done_to(&result.action, result.changed, check);
                let boot = if result.enabled { ", enabled" } else { "" };
                page.result(&format!(
                    "{host}: {name}: {what}: {} ({}){boot}",
                    result.status, result.sub_state
                ));
            }
            Done::Sudoers { user, check, result } => {
                let what = done_to(&result.action, result.changed, check);
                page.result(&format!("{host}: {user}: {what}: {}", result.file_path));
                if let Some(note) = result.note {
                    let text = harmless(note.as_bytes());
                    page.tell("33", host, &String::from_utf8_lossy(&text));
                }
                differences(result.diff, page);
            }
            Done::Harden { check, result } => {
                let what = match (result.changed, check) {
                    (false, _) => "unchanged".to_owned(),
                    (true, true) => format!("would be changed: {}", result.modified_keys.join(", ")),
                    (true, false) => {
                        format!("changed: {}; {}", result.modified_keys.join(", "), result.service_action)
                    }
                };
                page.result(&format!("{host}: sshd: {what}"));
                for warning in &result.warnings {
                    let text = harmless(warning.as_bytes());
                    page.tell("33", host, &String::from_utf8_lossy(&text));
                }
                differences(result.diff, page);
            }
            Done::Facts(facts) => {
                for line in super::facts::lines(&facts) {
                    page.result(&format!("{host}: {line}"));
                }
            }
            Done::Wait { check, result } => {
                let what = match (result.waited, check) {
                    (true, true) => "would be waited for",
                    (true, false) => "waited for",
                    (false, _) => "so already",
                };
                page.result(&format!("{host}: {}: {what}", result.seen));
            }
            Done::Get { path, bytes, .. } => page.tell("32", host, &format!("{path}: {}", size(bytes))),
            Done::Doctor { fit, round_trips } => {
                let verdict = if fit {
                    page.painted(Stream::Stdout, "32", "fit for Sortie")
                } else {
                    page.painted(Stream::Stdout, "31", "NOT fit for Sortie")
                };
                let trips =
                    if round_trips > 0 { format!(" ({round_trips} round trips)") } else { String::new() };
                page.out.extend(format!("{host} is {verdict}{trips}\n").bytes());
            }
        }
    }

    fn check(&mut self, check: &Check, page: &mut Page<'_>) {
        let mark = if check.ok {
            page.painted(Stream::Stdout, "32", "ok  ")
        } else {
            page.painted(Stream::Stdout, "31", "FAIL")
        };
        let time = check.milliseconds.map_or_else(String::new, |time| format!("{time:.1} ms"));
        let trips = match check.round_trips {
            None | Some(0) => String::new(),
            Some(trips) => format!("{trips} rt"),
        };
        let detail = String::from_utf8_lossy(&harmless(check.detail.as_bytes())).into_owned();
        let step = &check.step;
        page.out.extend(format!("{mark} {step:<28} {time:>10} {trips:>5}  {detail}\n").bytes());
        if let Some(advice) = &check.advice {
            page.out.extend(format!("     What to do: {advice}\n").bytes());
        }
    }

    /// Nothing more comes.
    pub(super) fn finish(&mut self, terminal: bool, out: &mut Vec<u8>, err: &mut Vec<u8>) {
        if std::mem::take(&mut self.progress) {
            err.extend(b"\r\x1b[K");
        }
        let hosts: Vec<Arc<str>> =
            self.lines.keys().chain(self.filters.keys()).map(|key| Arc::clone(&key.0)).collect();
        let mut page = Page { out, err, out_terminal: terminal, err_terminal: terminal, prefix: true };
        for host in hosts {
            self.end_lines(&host, &mut page);
        }
    }
}

fn prefixed(key: &(Arc<str>, Stream), line: &[u8], page: &mut Page<'_>) {
    let (host, stream) = key;
    let name = page.painted(*stream, "36", &format!("{host}:"));
    let terminal = if *stream == Stream::Stderr { page.err_terminal } else { page.out_terminal };
    let target = if *stream == Stream::Stderr { &mut *page.err } else { &mut *page.out };
    // Into a Vec, which takes everything.
    let _ = write!(target, "{name} ");
    if terminal {
        target.extend(harmless(line));
    } else {
        target.extend_from_slice(line);
    }
    if !line.ends_with(b"\n") {
        target.push(b'\n');
    }
}

fn failed(failure: &Failure, page: &mut Page<'_>) {
    let code = failure.code.as_ref().map_or_else(String::new, |code| format!(" ({code})"));
    let advice = match failure.code.as_deref() {
        Some("TIMEOUT") => "; --timeout allows it more",
        Some("TTL_EXPIRED") => "; --ttl lets the runner live longer",
        _ => "",
    };
    page.tell("31", &failure.host, &format!("{}{advice}{code}", failure.message));
}

fn brought(changed: bool, created: bool, check: bool) -> &'static str {
    match (changed, created, check) {
        (false, ..) => "unchanged",
        (true, true, true) => "would be created",
        (true, false, true) => "would be changed",
        (true, true, false) => "created",
        (true, false, false) => "changed",
    }
}

fn differences(diff: Option<String>, page: &mut Page<'_>) {
    if let Some(diff) = diff.filter(|diff| !diff.is_empty()) {
        page.result(diff.trim_end_matches('\n'));
    }
}

/// What a path is, in a line.
fn described(found: FileStatResult) -> String {
    if !found.exists {
        return "nothing is there".to_owned();
    }
    let owner = found.owner_name.unwrap_or(found.owner);
    let group = found.group_name.unwrap_or(found.group);
    let size =
        if found.kind == "file" { format!(", {}", size(found.size.unwrap_or(0))) } else { String::new() };
    let target =
        found.target.map_or_else(String::new, |target| format!(" -> {}", printable(target.as_bytes(), 4096)));
    let checksum = found.checksum.map_or_else(String::new, |digest| format!(", sha256 {digest}"));
    format!("{}{target}{size}, {} {owner}:{group}, {}{checksum}", found.kind, found.mode, found.mtime)
}

/// What programs took, and what limits had to do with it. Names and means are words of the runner's own.
fn took(host: &str, usage: &Usage, page: &mut Page<'_>) {
    let word = |text: &str| {
        let text = text.trim_end_matches("_bytes").trim_end_matches("_percent");
        String::from_utf8_lossy(&harmless(text.as_bytes())).into_owned()
    };
    let list = |means: &Strings| -> String {
        let pairs: Vec<_> =
            means.iter().map(|(what, means)| format!("{} by {}", word(what), word(means))).collect();
        pairs.join(", ")
    };
    if !usage.measured_by.is_empty() {
        let (user, system) = (usage.cpu_user_seconds, usage.cpu_system_seconds);
        let text = format!(
            "took {:.3} s of cpu ({user:.3} user, {system:.3} system), {} of memory at most, {} read, {} written ({})",
            user + system,
            size(usage.memory_peak_bytes),
            size(usage.read_bytes),
            size(usage.written_bytes),
            list(&usage.measured_by)
        );
        page.tell("0", host, &text);
    }
    if !usage.limited_by.is_empty() {
        page.tell("0", host, &format!("limited: {}", list(&usage.limited_by)));
    }
    if !usage.exempt.is_empty() {
        let names: Vec<_> = usage.exempt.iter().map(|name| word(name)).collect();
        let text = format!("what must not end half way ran without its limits of {}", names.join(", "));
        page.tell("33", host, &text);
    }
    if let Some(limit) = &usage.limit {
        page.tell("31", host, &format!("it ran into its limit of {}", word(limit)));
    }
}

/// Bytes in words.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// The runner's word for what was done or was so before, as a person says it.
fn done_to(action: &str, changed: bool, check: bool) -> String {
    let words = action.replace('_', " ");
    if changed && check { format!("would be {words}") } else { words }
}

/// A package before and after.
fn versions(package: &PackageVersions) -> String {
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
    let (old, new) = (version(&package.previous_version), version(&package.installed_version));
    if old == new { new } else { format!("{old} -> {new}") }
}
