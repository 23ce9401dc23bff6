//! `sortie audit`: what is in a log, and whether it is as it was written. And the log that the other verbs write.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use sortie_client::audit::{self, AuditLog, Record, Verification, Who};

use crate::outcome::usage;
use crate::report::{self, Event, Style, Verified};

/// How long sessions that were given up may take to end, when this program wants to.
const SETTLED: Duration = Duration::from_secs(12);

/// What `--audit` says for no log.
const NONE: &str = "none";

/// The log of this process, once there is one.
static LOG: OnceLock<AuditLog> = OnceLock::new();

/// Opens the log that `--audit` names.
pub(crate) fn log(file: Option<&Path>) -> anyhow::Result<Option<AuditLog>> {
    let Some(file) = file.filter(|file| file.as_os_str() != NONE) else { return Ok(None) };
    // Options come after the verb, so that the first argument is one.
    let verb = std::env::args_os().nth(1).unwrap_or_default();
    let who = Who::this_process(format!("sortie {}", verb.to_string_lossy()));
    let log = AuditLog::open(file, who).map_err(|error| {
        anyhow::anyhow!(
            "{error}; nothing was run, for what cannot be recorded is not (--audit none records nothing)"
        )
    })?;
    Ok(Some(LOG.get_or_init(|| log).clone()))
}

/// Waits until the end of every session is on record.
pub(crate) async fn settled() {
    if let Some(log) = LOG.get() {
        // One that does not end in time is found by `sortie audit verify`.
        let _ = tokio::time::timeout(SETTLED, log.settled()).await;
    }
}

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Find lines that were changed, taken out or moved, and sessions without an end
    Verify(Verify),
    /// Show what a log tells
    Show(Show),
}

#[derive(clap::Args)]
struct Verify {
    /// The log
    #[arg(value_name = "FILE", env = "SORTIE_AUDIT", hide_env_values = true)]
    file: PathBuf,
    /// The head that an earlier verification printed: what stood in the log then must still stand there
    #[arg(long, value_name = "DIGEST", value_parser = digest)]
    head: Option<String>,
    /// Sessions without an end are no failure: some may still go on
    #[arg(long)]
    allow_open: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Show {
    /// The log
    #[arg(value_name = "FILE", env = "SORTIE_AUDIT", hide_env_values = true)]
    file: PathBuf,
    /// Only what concerns this host
    #[arg(short = 'H', long = "host", value_name = "HOST")]
    host: Option<String>,
    /// Only this session, by the beginning of its name
    #[arg(long, value_name = "SESSION")]
    session: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

fn digest(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(digits);
    }
    Err("write the 64 hexadecimal digits that `sortie audit verify` prints".into())
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<i32> {
    match arguments.what {
        What::Verify(arguments) => verify(&arguments),
        What::Show(arguments) => show(&arguments),
    }
}

fn open(file: &Path) -> anyhow::Result<BufReader<File>> {
    let fail = |why: &dyn std::fmt::Display| usage(format!("{}: {why}", file.display()));
    let opened = File::open(file).map_err(|error| fail(&error))?;
    if opened.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(fail(&"it is a directory"));
    }
    Ok(BufReader::with_capacity(1 << 16, opened))
}

fn examine(file: &Path, head: Option<&str>) -> anyhow::Result<Verification> {
    audit::verify(open(file)?, head).with_context(|| format!("reading {}", file.display()))
}

fn verify(arguments: &Verify) -> anyhow::Result<i32> {
    let Verify { file, head, allow_open, json } = arguments;
    let mut found = examine(file, head.as_deref())?;
    if *allow_open {
        let (open, findings) = std::mem::take(&mut found.findings)
            .into_iter()
            .partition(|finding| finding.problem == audit::Problem::NoEnd);
        found.findings = findings;
        found.notes.extend::<Vec<_>>(open);
    }
    let (reporter, printer) = report::start(Style { json: *json, prefix: false });
    for (finding, note) in found
        .findings
        .iter()
        .map(|finding| (finding, false))
        .chain(found.notes.iter().map(|note| (note, true)))
    {
        reporter.show(Event::AuditFinding {
            line: finding.line,
            problem: finding.problem.name(),
            note,
            text: finding.text.clone(),
        });
    }
    let sound = found.is_sound();
    reporter.show(Event::AuditVerified(Verified {
        file: file.display().to_string(),
        sound,
        records: found.records,
        sessions: found.sessions,
        findings: found.findings.len() as u64 + found.more,
        head: found.head,
        head_checked: head.is_some(),
    }));
    printer.finish();
    Ok(i32::from(!sound))
}

fn show(arguments: &Show) -> anyhow::Result<i32> {
    let Show { file, host, session, json } = arguments;
    let found = examine(file, None)?;
    let (reporter, printer) = report::start(Style { json: *json, prefix: false });
    for entry in audit::entries(open(file)?) {
        let entry = entry.with_context(|| format!("reading {}", file.display()))?;
        if wanted(entry.record.as_ref(), host.as_deref(), session.as_deref()) {
            reporter.show(Event::AuditRecord {
                line: entry.line,
                at: entry.time,
                record: entry.record.map(Box::new),
            });
        }
        if reporter.is_broken().is_some() {
            break;
        }
    }
    let damaged = found.findings.iter().any(|finding| finding.problem != audit::Problem::NoEnd);
    printer.finish();
    if damaged {
        report::plain_error(&anyhow::anyhow!(
            "{} is not as it was written; `sortie audit verify` says where",
            file.display()
        ));
    }
    Ok(i32::from(damaged))
}

fn wanted(record: Option<&Record>, host: Option<&str>, session: Option<&str>) -> bool {
    let of = record.and_then(Record::concerns);
    let (of_session, of_host) = of.unzip();
    host.is_none_or(|host| of_host == Some(host))
        && session.is_none_or(|wanted| of_session.is_some_and(|id| id.starts_with(wanted)))
}
