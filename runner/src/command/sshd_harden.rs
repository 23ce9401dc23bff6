//! `sshd_harden`: settings of the SSH server that are in force afterwards, or nothing changed.
//!
//! sshd itself is asked what is in force, before and after; a new configuration is first tried as a copy. Only then files
//! change, each with a copy of what it was, and everything goes back if the server does not take it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sortie_protocol::ErrorCode;
use sortie_protocol::command::sshd_harden::{SshdHarden, SshdHardenResult};

use super::Context;
use crate::attributes::Attributes;
use crate::diff;
use crate::failure::Failure;
use crate::job;
use crate::locks::Resource;
use crate::output::now;
use crate::replace::{self, Replacement};
use crate::rollback::Rollback;
use crate::sshd::config::{Config, Setting};
use crate::sshd::daemon::{self, Effective, Sshd, Stage};
use crate::sshd::edit::{self, Home, Wanted};
use crate::sshd::login::{self, Login};
use crate::sshd::service::{self, Service};
use crate::sshd::settings;
use crate::tool;

/// Longest diff, in bytes.
const LONGEST_DIFF: usize = 256 * 1024;

pub(super) fn run(context: &Context) -> Result<SshdHardenResult, Failure> {
    let raw = context.job.take_params();
    let params: SshdHarden = job::parse(&raw)?;
    drop(raw);
    settings::check(&params)?;
    tool::need_root("change the configuration of sshd")?;
    let _held = context.lock(Resource::Sshd)?;
    let (sshd, present) = Sshd::find(context)?;
    let hardening = Hardening { context, params: &params, sshd: &sshd, present: &present };
    let none = SshdHardenResult { service_action: "none".to_owned(), ..SshdHardenResult::default() };
    let plan = hardening.plan()?;
    match plan {
        Some(plan) if context.check() => Ok(plan.into_result(context)),
        Some(plan) => plan.apply(&hardening),
        None => {
            if params.test_connection {
                sshd.test(&sshd.main)?;
                let service = Service::find(context, &sshd)?;
                service.answers(&present)?;
            }
            Ok(SshdHardenResult { diff: context.diff().then(String::new), ..none })
        }
    }
}

struct Hardening<'a> {
    context: &'a Context,
    params: &'a SshdHarden,
    sshd: &'a Sshd<'a>,
    /// What is in force now, for everybody.
    present: &'a Effective,
}

/// A change that sshd takes and that locks nobody out.
struct Plan {
    config: Config,
    /// Files by their number in `config`, with their new texts.
    changed: Vec<(usize, Vec<u8>)>,
    /// Settings with what `sshd -T` says of each once it is in force.
    wanted: Vec<(Wanted, Vec<String>)>,
    new: Effective,
    /// The drop-in of the socket unit, where that has to change.
    socket_file: Option<(PathBuf, String)>,
    rollback_script: String,
    modified: Vec<String>,
    warnings: Vec<String>,
}

impl Hardening<'_> {
    /// What has to change; `None` if everything is as asked.
    fn plan(&self) -> Result<Option<Plan>, Failure> {
        let mut stage = Stage::new()?;
        let wanted = self.wanted(&stage)?;
        if wanted.is_empty() {
            return Ok(None);
        }
        let unmet =
            |(wanted, expected): &&(Wanted, Vec<String>)| self.present.all(&wanted.keywords[0]) != *expected;
        let missing: Vec<Wanted> = wanted.iter().filter(unmet).map(|(wanted, _)| wanted.clone()).collect();
        let (config, drop_in) = daemon::read(&self.sshd.main)?;
        let mut warnings = Vec::new();
        let contrary = self.contrary(&config, &wanted, &stage)?;
        if let Some(first) = contrary.first() {
            let all: Vec<String> = contrary.iter().map(|setting| describe(&config, setting)).collect();
            if self.params.r#match != "keep" {
                let message = format!(
                    "Match blocks say the opposite of what was asked for: {}; nothing was changed. Change them, or leave \
                     them with match: \"keep\"",
                    all.join("; ")
                );
                return Err(Failure::new(ErrorCode::Conflict, message).detail("match", config.place(first)));
            }
            warnings.extend(all.into_iter().map(|place| format!("kept: {place}")));
        }
        if missing.is_empty() {
            return Ok(None);
        }
        let home = drop_in.map_or(Home::Main, Home::DropIn);
        let changed = edit::plan(&config, &missing, home);
        let copy = stage.copy(&config, &changed)?;
        let new = self.sshd.test(&copy).and_then(|()| self.sshd.effective(&copy, None));
        let new = new.map_err(|failure| refused(stage.explain(failure)))?;
        let kept: Vec<&str> = contrary.iter().map(|setting| &*setting.said.keyword).collect();
        self.verify(&wanted, &new, &[])?;
        self.verify_connections(&config, &wanted, &copy, &kept, &mut warnings)?;
        let service = Service::find(self.context, self.sshd)?;
        let socket_file = service.socket_file(self.present, &new);
        Ok(Some(Plan {
            rollback_script: service.rollback(socket_file.is_some()),
            socket_file,
            modified: missing.into_iter().map(|wanted| wanted.name).collect(),
            config,
            changed,
            wanted,
            new,
            warnings,
        }))
    }

    /// The settings, each with what sshd makes of it: what `sshd -T` says of a configuration that has nothing else.
    fn wanted(&self, stage: &Stage) -> Result<Vec<(Wanted, Vec<String>)>, Failure> {
        let mut all = settings::wanted(self.params, self.present, self.sshd);
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let lines: Vec<String> =
            all.iter().map(|wanted| format!("{} {}\n", wanted.name, wanted.value)).collect();
        let alone = self.alone(stage, &lines.concat()).map_err(|failure| {
            let message =
                format!("sshd does not take what was asked for; nothing was changed: {}", failure.message);
            Failure::params(message)
        })?;
        let mut expected = Vec::new();
        for wanted in &mut all {
            wanted.keywords = settings::keywords(&wanted.name, &alone).ok_or_else(|| {
                let message = format!(
                    "settings: this sshd does not tell whether {} is in force (sshd -T); nothing was changed",
                    wanted.name
                );
                Failure::unsupported(message)
            })?;
            expected.push(alone.all(&wanted.keywords[0]).into_iter().map(str::to_owned).collect());
        }
        Ok(all.into_iter().zip(expected).collect())
    }

    /// What is in force where these lines are all there is.
    fn alone(&self, stage: &Stage, lines: &str) -> Result<Effective, Failure> {
        // Without the host's keys sshd would not say anything.
        let keys: String =
            self.present.all("hostkey").into_iter().map(|key| format!("HostKey {key}\n")).collect();
        let file = stage.file("asked", format!("{lines}{keys}").as_bytes())?;
        let effective = self.sshd.effective_alone(&file);
        effective.map_err(|mut failure| {
            failure.message = failure.message.replace(&*file.to_string_lossy(), "what was asked for");
            failure
        })
    }

    /// Lines in Match blocks that say something else than what is wanted.
    fn contrary<'c>(
        &self,
        config: &'c Config,
        wanted: &[(Wanted, Vec<String>)],
        stage: &Stage,
    ) -> Result<Vec<&'c Setting>, Failure> {
        let mut found = Vec::new();
        for setting in config.settings.iter().filter(|setting| setting.block.is_some()) {
            let asked = wanted.iter().find(|(wanted, _)| wanted.keywords.contains(&setting.said.keyword));
            let Some((wanted, expected)) = asked else { continue };
            let line = format!("{} {}\n", setting.said.keyword, setting.said.arguments.join(" "));
            // In other words it may say the same.
            let same =
                self.alone(stage, &line).is_ok_and(|alone| alone.all(&wanted.keywords[0]) == *expected);
            if !same {
                found.push(setting);
            }
        }
        Ok(found)
    }

    /// Whether everything that is wanted is in force, bar `kept` keywords.
    fn verify(
        &self,
        wanted: &[(Wanted, Vec<String>)],
        new: &Effective,
        kept: &[&str],
    ) -> Result<(), Failure> {
        for (wanted, expected) in wanted {
            let keywords = wanted.keywords();
            let found = new.all(keywords[0]);
            if found == *expected || keywords.iter().any(|keyword| kept.contains(keyword)) {
                continue;
            }
            let why = if self.sshd.is_on_command_line(&keywords) {
                "the command line of sshd sets it"
            } else {
                "something else in the configuration decides it"
            };
            let message = format!(
                "{} would be {:?} and not {:?} afterwards: {why}; nothing was changed",
                wanted.name,
                found.join(" "),
                expected.join(" ")
            );
            return Err(Failure::new(ErrorCode::Conflict, message));
        }
        Ok(())
    }

    /// Asks what would be in force for the login and for whomever the Match blocks are about; refuses to lock the login out.
    fn verify_connections(
        &self,
        config: &Config,
        wanted: &[(Wanted, Vec<String>)],
        copy: &Path,
        kept: &[&str],
        warnings: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let login = Login::find(self.context);
        let own = login
            .clone()
            .unwrap_or_else(|| Login { user: "root".to_owned(), ..Login::default() })
            .connection();
        for criteria in &config.blocks {
            if let Some(connection) = connection_of(criteria, &own)
                && let Ok(new) = self.sshd.effective(copy, Some(&connection))
            {
                self.verify(wanted, &new, kept)?;
            }
        }
        let Some(login) = login else { return Ok(()) };
        let new = self.sshd.effective(copy, Some(&own))?;
        self.verify(wanted, &new, kept)?;
        let before = self.sshd.effective(&self.sshd.main, Some(&own))?;
        let Some(why) = login::lockout(&login, &before, &new) else { return Ok(()) };
        if self.params.force {
            warnings.push(format!("locks out the login that this session came by: {why}"));
            return Ok(());
        }
        let message = format!(
            "this would lock out the login that this session came by: {why}; nothing was changed. force insists"
        );
        Err(Failure::new(ErrorCode::Conflict, message).detail("lockout", login.user))
    }
}

/// A line of a Match block, for people.
fn describe(config: &Config, setting: &Setting) -> String {
    let criteria = setting.block.map(|block| config.blocks[block].join(" ")).unwrap_or_default();
    format!(
        "{}: {} {} (Match {criteria})",
        config.place(setting),
        setting.said.keyword,
        setting.said.arguments.join(" ")
    )
}

fn refused(mut failure: Failure) -> Failure {
    failure.message = format!("sshd refuses the new configuration; nothing was changed: {}", failure.message);
    failure
}

/// A connection that the criteria of a Match block mean, for `-C` of sshd(8), the rest as in `own`; `None` if none is known.
fn connection_of(criteria: &[String], own: &str) -> Option<String> {
    let mut fields: Vec<(String, String)> = own
        .split(',')
        .filter_map(|field| field.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect();
    let mut words = criteria.iter().flat_map(|word| word.splitn(2, '='));
    while let Some(criterion) = words.next() {
        let name = match criterion.to_ascii_lowercase().as_str() {
            "all" => continue,
            "address" => "addr",
            "localaddress" => "laddr",
            "localport" => "lport",
            "group" | "user" => "user",
            "host" => "host",
            _ => return None,
        };
        let pattern = words.next()?.split(',').find(|pattern| !pattern.starts_with('!'))?;
        let value = if criterion.eq_ignore_ascii_case("group") {
            login::member_of(pattern)?
        } else {
            pattern.split('/').next().unwrap_or_default().replace(['*', '?'], "1")
        };
        let known = fields.iter_mut().find(|(field, _)| field == name)?;
        known.1 = value;
    }
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Some(fields.join(","))
}

impl Plan {
    /// What would be done, or was.
    fn into_result(self, context: &Context) -> SshdHardenResult {
        let path = |at: usize| self.config.files[at].path.display().to_string();
        let mut files: Vec<String> = self.changed.iter().map(|(at, _)| path(*at)).collect();
        let diff = context.diff().then(|| {
            let mut diff = String::new();
            for (at, text) in &self.changed {
                let (old, name) = (self.config.files[*at].text.as_deref(), path(*at));
                let from = if old.is_some() { &*name } else { "/dev/null" };
                diff += &diff::unified(
                    from,
                    &name,
                    &String::from_utf8_lossy(old.unwrap_or_default()),
                    &String::from_utf8_lossy(text),
                );
            }
            if let Some((path, text)) = &self.socket_file {
                let before = fs::read_to_string(path).unwrap_or_default();
                let path = path.display().to_string();
                diff += &diff::unified(&path, &path, &before, text);
            }
            if diff.len() > LONGEST_DIFF {
                diff = format!("(the diff is longer than {LONGEST_DIFF} bytes)\n");
            }
            diff
        });
        files.extend(self.socket_file.iter().map(|(path, _)| path.display().to_string()));
        SshdHardenResult {
            changed: true,
            modified_keys: self.modified,
            service_action: "none".to_owned(),
            files,
            warnings: self.warnings,
            diff,
            ..SshdHardenResult::default()
        }
    }

    fn apply(self, hardening: &Hardening<'_>) -> Result<SshdHardenResult, Failure> {
        let context = hardening.context;
        let service = Service::find(context, hardening.sshd)?;
        let mut swaps = Vec::new();
        for (at, text) in &self.changed {
            swaps.push(Swap::prepare(&self.config, &self.config.files[*at].path, text, 0o600)?);
        }
        if let Some((path, text)) = &self.socket_file {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)
                    .map_err(|error| Failure::at("cannot make the directory", directory, &error))?;
            }
            swaps.push(Swap::prepare(&self.config, path, text.as_bytes(), 0o644)?);
        }
        let rollback = Rollback {
            files: swaps.iter().map(|swap| (swap.backup.clone(), swap.target.clone())).collect(),
            script: self.rollback_script.clone(),
        };
        context.job.commit()?;
        // Before the first file changes, so that whoever is killed when, somebody is left who knows the way back.
        let armed =
            rollback.arm().map_err(|error| Failure::io("the runner's guardian does not answer", &error))?;
        let done = context.critical(|| {
            for swap in &mut swaps {
                swap.commit()?;
            }
            hardening.sshd.test(&hardening.sshd.main)?;
            let did = service.apply(&self.new, self.socket_file.is_some())?;
            let now = hardening.sshd.effective(&hardening.sshd.main, None)?;
            hardening.verify(&self.wanted, &now, &[])?;
            Ok(did)
        });
        let done = done.map_err(|failure| failure.message.clone()).and_then(|did| {
            hardening.params.confirm.map_or(Ok(()), |seconds| self.wait_confirmed(context, seconds))?;
            Ok(did)
        });
        let did = match done {
            Ok(did) => did,
            Err(why) => {
                let failure = put_back(context, &rollback, &service, hardening.present, &why);
                armed.disarm();
                return Err(failure);
            }
        };
        armed.disarm();
        let backups: Vec<String> = rollback
            .files
            .iter()
            .filter_map(|(backup, _)| Some(backup.as_ref()?.display().to_string()))
            .collect();
        let first = rollback.files.first().and_then(|(backup, _)| backup.as_ref());
        let backup_path = first.map(|path| path.display().to_string()).unwrap_or_default();
        Ok(SshdHardenResult {
            service_action: did.to_owned(),
            backup_path,
            backups,
            ..self.into_result(context)
        })
    }
}

impl Plan {
    /// Tells the controller to come in anew, and waits for its word that it did.
    fn wait_confirmed(&self, context: &Context, seconds: u64) -> Result<(), String> {
        let ports = service::ports(&self.new);
        let text: Vec<String> = ports.iter().map(u16::to_string).collect();
        let mut fields = vec![("seconds", seconds.to_string()), ("ports", text.join(","))];
        // Where the port that the session came by is none any more, the controller has to take another.
        let came_by = Login::find(context).and_then(|login| login.local_port.parse().ok());
        if let (Some(came_by), Some(first)) = (came_by, ports.first())
            && !ports.contains(&came_by)
        {
            fields.push(("port", first.to_string()));
        }
        context.await_confirm(&fields);
        context.job.wait_confirmed(Instant::now() + Duration::from_secs(seconds))
    }
}

/// Puts everything back; the error that says so.
fn put_back(
    context: &Context,
    rollback: &Rollback,
    service: &Service<'_>,
    before: &Effective,
    why: &str,
) -> Failure {
    let done = context.critical(|| {
        rollback.perform().map_err(|error| Failure::io("not everything could be put back", &error))?;
        if service.listens() { service.answers(before) } else { Ok(()) }
    });
    let message = match done {
        Ok(()) => format!("the old configuration was put back and is in force again: {why}"),
        Err(failure) => {
            format!(
                "the old configuration was put back, but {}; the reason for it was: {why}",
                failure.message
            )
        }
    };
    Failure::new(ErrorCode::RolledBack, message)
}

/// One file on its way to its new text. Dropped before it took effect it leaves nothing.
struct Swap {
    target: PathBuf,
    /// The copy of what it was; none for a new file.
    backup: Option<PathBuf>,
    replacement: Option<Replacement>,
}

impl Swap {
    /// Writes the new text beside the file, and a copy of the old one; `mode` is that of a new file.
    fn prepare(config: &Config, path: &Path, text: &[u8], mode: u32) -> Result<Self, Failure> {
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let failed = |error| Failure::at("cannot read", &target, &error);
        let old = match File::open(&target) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            opened => Some(opened.map_err(failed)?),
        };
        let attributes = match &old {
            Some(file) => Attributes::of(&file.metadata().map_err(failed)?),
            None => Attributes { uid: 0, gid: 0, mode },
        };
        let mut replacement = Replacement::begin(&target)?;
        replacement.write(text)?;
        replacement.finish(attributes, old.as_ref())?;
        let mut backup = None;
        if let Some(old) = &old {
            let mut name =
                format!("{}.{}.bak", target.file_name().unwrap_or_default().to_string_lossy(), now());
            if config.would_include(&name) {
                name.insert(0, '.');
            }
            let path = target.with_file_name(name);
            replace::copy(old, &path)?;
            backup = Some(path);
        }
        Ok(Self { target, backup, replacement: Some(replacement) })
    }

    fn commit(&mut self) -> Result<(), Failure> {
        self.replacement.take().map_or(Ok(()), Replacement::commit)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let (Some(_), Some(backup)) = (&self.replacement, &self.backup) {
            let _ = fs::remove_file(backup);
        }
    }
}
