//! `pkg_ensure`: packages present, absent, at a version or at the latest. What to run and how to read it is `package`'s affair.

use sortie_protocol::ErrorCode;
use sortie_protocol::command::pkg_ensure::{PackageVersions, PkgEnsure, PkgEnsureResult};
use sortie_protocol::message::Progress;

use super::Context;
use crate::failure::Failure;
use crate::job;
use crate::locks::Resource;
use crate::package::changes::{applied, changes, diff, in_words, list};
use crate::package::request::{Request, State};
use crate::package::{Read, Row, apt, locks, pacman, request, said};
use crate::tool::{self, Ran, Tool};

/// Most text that is read of a list, in bytes: twenty times what a large system has.
const LONGEST_LIST: usize = 8 * 1024 * 1024;

pub(super) fn run(context: &Context) -> Result<PkgEnsureResult, Failure> {
    let params: PkgEnsure = job::parse(&context.job.take_params())?;
    let mut ensure = Ensure { context, request: Request::new(params)? };
    let before = ensure.installed(&ensure.request.names)?;
    ensure.forget_native_arch(&before);
    if ensure.unmet(&before).is_empty() && !ensure.request.update_cache {
        return Ok(ensure.report(&before, &before, 0));
    }
    tool::need_root("change packages")?;
    if context.check() {
        let before = ensure.installed(&[])?;
        let (_, plan) = ensure.plan(&before)?;
        return Ok(ensure.report(&before, &applied(&before, plan), 0));
    }
    let _held = context.lock(Resource::Packages)?;
    let begin = ensure.mend()?;
    if ensure.request.update_cache {
        ensure.refresh()?;
    }
    ensure.change(begin.as_deref())
}

/// Every package that is installed, by the first manager that the host has.
pub(super) fn all_installed(context: &Context) -> Result<Vec<Row>, Failure> {
    Ensure { context, request: Request::nothing()? }.installed(&[])
}

struct Ensure<'a> {
    context: &'a Context,
    request: Request,
}

/// What a transaction did.
struct Acted<'a> {
    /// The call that failed, if one did.
    failed: Option<(Ran, &'a Action)>,
    after: Vec<Row>,
    left_running: u32,
}

/// One call of the manager that changes something.
struct Action {
    simulate: &'static str,
    download: Option<&'static str>,
    act: &'static str,
    /// Names, and how the manager is told of them.
    targets: Vec<(String, String)>,
    removing: bool,
    /// To a version that is older than the present one.
    older: bool,
}

impl Action {
    fn specs(&self) -> Vec<&str> {
        self.targets.iter().map(|(_, spec)| spec.as_str()).collect()
    }
}

impl Ensure<'_> {
    /// What is asked for and not so yet; with `latest` that is not known before the manager is asked.
    fn unmet(&self, rows: &[Row]) -> Vec<&String> {
        let met = |name: &String| {
            let mut found = rows.iter().filter(|row| row.is(name));
            match self.request.state {
                State::Present => found.any(|row| row.whole && self.is_asked_version(row)),
                State::Absent => found.next().is_none(),
                State::Latest => false,
            }
        };
        self.request.names.iter().filter(|name| !met(name)).collect()
    }

    fn is_asked_version(&self, row: &Row) -> bool {
        let asked = self.request.version.as_ref();
        asked.is_none_or(|asked| self.request.manager.is_version(asked, &row.version))
    }

    /// Does it, and tells what came of it; `begin` is what was there if something was done before.
    fn change(&self, begin: Option<&[Row]>) -> Result<PkgEnsureResult, Failure> {
        let before = self.installed(&[])?;
        let begin = begin.unwrap_or(&before);
        if self.unmet(&before).is_empty() {
            return Ok(self.report(begin, &before, 0));
        }
        let mut actions = self.actions(&before)?;
        if self.request.state == State::Latest {
            (actions, _) = self.plan_of(actions, &before)?;
        }
        if actions.is_empty() {
            return Ok(self.report(begin, &before, 0));
        }
        for action in &actions {
            if let Some(download) = action.download {
                locks::wait(self.context, self.request.manager)?;
                let ran = self.patiently(&mut || {
                    self.call(download, action).run_lines(self.context, &mut self.teller())
                })?;
                self.expect(&ran, "download for", &action.specs())?;
            }
        }
        loop {
            locks::wait(self.context, self.request.manager)?;
            // All or nothing as far as the manager can: from here to the end nothing interrupts it.
            let Acted { failed, after, left_running } = self.context.critical(|| self.act(&actions))?;
            if let Some((ran, action)) = failed {
                if said::is_locked(&ran) && after == before {
                    // Somebody was faster.
                    locks::lost(self.context, self.request.manager)?;
                    continue;
                }
                let verb = if action.removing { "remove" } else { "install" };
                return Err(self.failed(self.failure(&ran, verb, &action.specs()), begin, &after));
            }
            let unmet = if self.request.state == State::Latest { Vec::new() } else { self.unmet(&after) };
            if !unmet.is_empty() {
                let message = format!(
                    "{} ended well, and yet this is not as asked for: {}",
                    self.request.manager.name,
                    list(&unmet.iter().map(|name| name.as_str()).collect::<Vec<_>>())
                );
                return Err(self.failed(Failure::new(ErrorCode::PkgFailed, message), begin, &after));
            }
            return Ok(self.report(begin, &after, left_running));
        }
    }

    /// The transaction, up to the first call that fails.
    fn act<'a>(&self, actions: &'a [Action]) -> Result<Acted<'a>, Failure> {
        let (mut failed, mut left_running) = (None, 0);
        for action in actions {
            let ran = self.call(action.act, action).critical(self.context, &mut self.teller())?;
            left_running += ran.left_running;
            if !self.is_fine(&ran) {
                failed = Some((ran, action));
                break;
            }
        }
        Ok(Acted { failed, after: self.installed(&[])?, left_running })
    }

    fn plan(&self, before: &[Row]) -> Result<(Vec<Action>, Vec<Row>), Failure> {
        if self.unmet(before).is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        self.plan_of(self.actions(before)?, before)
    }

    /// What the actions would do; those that do nothing to what was asked for are dropped.
    fn plan_of(&self, mut actions: Vec<Action>, before: &[Row]) -> Result<(Vec<Action>, Vec<Row>), Failure> {
        let mut plan = Vec::new();
        for action in &mut actions {
            let ran = self.patiently(&mut || self.call(action.simulate, action).run(self.context))?;
            let rows = (self.request.manager.read_plan)(&ran.text(), action.removing);
            // dnf --assumeno ends as if it had failed.
            if rows.is_empty() {
                self.expect(&ran, "plan for", &action.specs())?;
            }
            if self.request.state == State::Latest {
                let mut kept = Vec::new();
                for (name, spec) in action.targets.drain(..) {
                    let Some(planned) = rows.iter().find(|row| row.is(&name)) else { continue };
                    let older = match self.found(before, &name) {
                        Some(present) => self.is_older(&planned.version, &present.version)?,
                        None => false,
                    };
                    if !older {
                        kept.push((name, spec));
                    }
                }
                action.targets = kept;
            }
            if !action.targets.is_empty() {
                plan.extend(rows);
            }
        }
        actions.retain(|action| !action.targets.is_empty());
        Ok((actions, plan))
    }

    /// The calls that bring about what is not so yet.
    ///
    /// # Errors
    /// `NOT_FOUND` for a package or version that the sources do not have.
    fn actions(&self, before: &[Row]) -> Result<Vec<Action>, Failure> {
        let manager = self.request.manager;
        let unmet = self.unmet(before);
        let mut install = Action {
            simulate: manager.simulate_install,
            download: manager.download,
            act: manager.install,
            targets: Vec::new(),
            removing: false,
            older: false,
        };
        if self.request.state == State::Absent {
            install.simulate = manager.simulate_remove;
            install.download = None;
            install.act = manager.remove;
            install.removing = true;
            add(&mut install.targets, &unmet);
            return Ok(vec![install]);
        }
        if let (Some(version), [name]) = (&self.request.version, &unmet[..]) {
            self.exact(before, name, version, &mut install)?;
            return Ok(vec![install]);
        }
        let (present, missing): (Vec<&String>, Vec<&String>) =
            unmet.into_iter().partition(|name| before.iter().any(|row| row.is(name)));
        let mut actions = Vec::new();
        let newest = manager.newest.filter(|_| self.request.state == State::Latest);
        let asked: Vec<&str> =
            present.iter().filter(|_| newest.is_some()).chain(&missing).map(|name| name.as_str()).collect();
        let available = self.available(newest.unwrap_or(manager.available), &asked)?;
        for name in &missing {
            if !available.0.iter().any(|row| row.is(name)) {
                return Err(self.unknown(name, "", &available));
            }
        }
        if newest.is_some() {
            for name in missing.iter().chain(&present) {
                let newest = available.0.iter().rfind(|row| row.is(name));
                let is_new =
                    |row: &&Row| !before.iter().any(|old| old.is(name) && old.version == row.version);
                if let Some(row) = newest.filter(is_new) {
                    install.targets.push(((*name).clone(), manager.exact(name, row)));
                }
            }
        } else {
            add(&mut install.targets, &missing);
            match manager.upgrade {
                // Empty unless the latest is asked for: what is present is present already.
                Some((simulate, act)) => {
                    let mut upgrade =
                        Action { simulate, act, download: None, targets: Vec::new(), ..install };
                    add(&mut upgrade.targets, &present);
                    actions.push(upgrade);
                }
                None => add(&mut install.targets, &present),
            }
        }
        actions.push(install);
        actions.retain(|action| !action.targets.is_empty());
        Ok(actions)
    }

    /// Exactly this version, which may be older than the present one.
    fn exact(&self, before: &[Row], name: &str, version: &str, install: &mut Action) -> Result<(), Failure> {
        let manager = self.request.manager;
        let available = self.available(manager.available, &[name])?;
        let mut rows = available.0.iter();
        let found = rows.rfind(|row| row.is(name) && manager.is_version(version, &row.version));
        let (row, spec) = if let Some(row) = found {
            (row.clone(), manager.exact(name, row))
        } else if manager.name == "pacman"
            && let Some(cached) = pacman::cached(manager, name, version)
        {
            install.download = None;
            install.act = pacman::INSTALL_FILE;
            install.simulate = pacman::SIMULATE_FILE;
            cached
        } else {
            return Err(self.unknown(name, version, &available));
        };
        install.targets.push((name.to_owned(), spec));
        if let Some(present) = self.found(before, name) {
            install.older = self.is_older(&row.version, &present.version)?;
        }
        Ok(())
    }

    /// The versions that the sources have, and what was said about it.
    fn available(&self, template: &str, names: &[&str]) -> Result<(Vec<Row>, Option<Ran>), Failure> {
        if names.is_empty() {
            return Ok((Vec::new(), None));
        }
        let (rows, ran) = self.rows(template, names, self.request.manager.read_available)?;
        Ok((rows, Some(ran)))
    }

    fn unknown(&self, name: &str, version: &str, (rows, ran): &(Vec<Row>, Option<Ran>)) -> Failure {
        let manager = self.request.manager;
        if let Some(ran) = ran.as_ref().filter(|ran| said::is_source(ran)) {
            return said::failure(manager, &["look for ", name].concat(), ran);
        }
        let versions: Vec<&str> =
            rows.iter().filter(|row| row.is(name)).map(|row| row.version.as_str()).collect();
        let there = list(&versions);
        if versions.is_empty() {
            let advice = "; nothing was changed. update_cache refreshes the lists of the sources";
            let message = ["name: ", manager.name, " knows no package ", name, advice].concat();
            return Failure::new(ErrorCode::NotFound, message);
        }
        let message = ["version: ", manager.name, " has no ", name, " ", version, ", but ", &there];
        Failure::new(ErrorCode::NotFound, message.concat() + "; nothing was changed")
            .detail("available", there)
    }

    /// What is installed of these, or at all.
    fn installed(&self, names: &[String]) -> Result<Vec<Row>, Failure> {
        let manager = self.request.manager;
        let mut template = manager.installed.to_owned();
        if names.is_empty() && manager.installed_by_name && template.starts_with("rpm") {
            template.push_str(" -a");
        }
        let names: Vec<&str> =
            names.iter().filter(|_| manager.installed_by_name).map(String::as_str).collect();
        Ok(self.rows(&template, &names, manager.read_installed)?.0)
    }

    /// Runs what lists packages.
    fn rows(&self, template: &str, names: &[&str], read: Read) -> Result<(Vec<Row>, Ran), Failure> {
        let mut text = String::new();
        let ran = self.patiently(&mut || {
            text.clear();
            let tool = self.tool(template, names, false);
            tool.run_lines(self.context, &mut |stream, line| {
                if stream == sortie_protocol::Stream::Stdout && text.len() < LONGEST_LIST {
                    text.push_str(&String::from_utf8_lossy(line));
                    text.push('\n');
                }
            })
        })?;
        // To know no such package is an answer, and so is to have none at all; to be unable to look is none.
        let said_nothing = ran.stdout.is_empty() && ran.stderr.is_empty();
        if !ran.ok() && !said_nothing && !said::is_not_found(&ran) {
            return Err(said::failure(self.request.manager, "look at its packages", &ran));
        }
        Ok((read(&text), ran))
    }

    /// What is said of packages of the machine's own architecture says nothing of the architecture.
    fn forget_native_arch(&mut self, rows: &[Row]) {
        if let Some(dpkg) =
            rows.iter().find(|row| row.name == "dpkg").filter(|_| self.request.manager.name == "apt")
        {
            for name in &mut self.request.names {
                if let Some((bare, arch)) = name.split_once(':')
                    && arch == dpkg.arch
                {
                    *name = bare.to_owned();
                }
            }
        }
    }

    /// A dpkg that was killed leaves its database to be mended; apt refuses to work before. What was there before that.
    fn mend(&self) -> Result<Option<Vec<Row>>, Failure> {
        if self.request.manager.name != "apt" || !apt::was_interrupted() {
            return Ok(None);
        }
        locks::wait(self.context, self.request.manager)?;
        let begin = self.installed(&[])?;
        self.context.progress("dpkg was interrupted before; mending that with dpkg --configure -a", None);
        let ran = self.tool(apt::MEND, &[], false).critical(self.context, &mut |_, _| ())?;
        self.expect(&ran, "mend what was interrupted before", &[])?;
        Ok(Some(begin))
    }

    fn refresh(&self) -> Result<(), Failure> {
        let manager = self.request.manager;
        locks::wait(self.context, manager)?;
        let ran = self.patiently(&mut || {
            self.tool(manager.refresh, &[], false).run_lines(self.context, &mut self.teller())
        })?;
        // Some call it a success when they kept the old lists.
        if said::is_source(&ran) {
            return Err(said::failure(manager, "refresh its lists", &ran));
        }
        self.expect(&ran, "refresh its lists", &[])
    }

    /// Runs it, again as long as it says that somebody else has the manager's lock.
    fn patiently(&self, run: &mut dyn FnMut() -> Result<Ran, Failure>) -> Result<Ran, Failure> {
        loop {
            let ran = run()?;
            if self.is_fine(&ran) || !said::is_locked(&ran) {
                return Ok(ran);
            }
            locks::wait(self.context, self.request.manager)?;
            // It may be somebody whose lock cannot be seen.
            locks::lost(self.context, self.request.manager)?;
        }
    }

    /// A call of the manager for an action.
    fn call(&self, template: &str, action: &Action) -> Tool {
        let manager = self.request.manager;
        let mut template = template.to_owned();
        if action.older {
            if !manager.older_verb.is_empty() {
                template = template.replace(" install", manager.older_verb);
            }
            template.push_str(manager.older_option);
        }
        self.tool(&template, &action.specs(), true)
    }

    fn tool(&self, template: &str, names: &[&str], options: bool) -> Tool {
        let mut words = template.split_ascii_whitespace();
        let program = words.next().filter(|word| *word != "@").unwrap_or(self.request.program);
        let options = self.request.options.iter().filter(|_| options);
        let mut tool = Tool::new(program).args(words).args(options).args(names);
        for (name, value) in self.request.manager.env {
            tool = tool.env(name, *value);
        }
        tool
    }

    /// Tells how far the manager is.
    fn teller(&self) -> impl FnMut(sortie_protocol::Stream, &[u8]) {
        let mut told = String::new();
        move |_, line| {
            let Some(step) = (self.request.manager.progress)(&String::from_utf8_lossy(line)) else { return };
            let message: String = step.message.chars().filter(|c| !c.is_control()).take(200).collect();
            if message != told {
                let progress = (step.total > 0).then(|| Progress {
                    current: step.current,
                    total: step.total,
                    unit: step.unit.to_owned(),
                });
                self.context.progress(message.clone(), progress);
                told = message;
            }
        }
    }

    fn is_fine(&self, ran: &Ran) -> bool {
        ran.ok() || self.request.manager.fine.contains(&ran.exit_code)
    }

    fn expect(&self, ran: &Ran, verb: &str, specs: &[&str]) -> Result<(), Failure> {
        if self.is_fine(ran) { Ok(()) } else { Err(self.failure(ran, verb, specs)) }
    }

    fn failure(&self, ran: &Ran, verb: &str, specs: &[&str]) -> Failure {
        said::failure(self.request.manager, format!("{verb} {}", list(specs)).trim_end(), ran)
    }

    /// A failure after something may have been changed says what.
    fn failed(&self, mut failure: Failure, before: &[Row], after: &[Row]) -> Failure {
        let changes = changes(before, after);
        failure.message.push_str(". Versions before and after: ");
        failure.message.push_str(&in_words(&changes));
        failure.detail("changed", (!changes.is_empty()).to_string())
    }

    /// Whether version `a` is older than `b`, by the manager's own rules.
    fn is_older(&self, a: &str, b: &str) -> Result<bool, Failure> {
        if !request::is_version(a) || !request::is_version(b) {
            return Ok(false);
        }
        let line = self.request.manager.is_older.replace("{A}", a).replace("{B}", b);
        let mut words = line.split(' ');
        let ran = Tool::new(words.next().unwrap_or_default()).args(words).run(self.context)?;
        Ok(match ran.stdout.first() {
            None => ran.ok(),
            Some(first) => matches!(first, b'<' | b'-'),
        })
    }

    /// The installed package that a name means: in the asked version if there are several.
    fn found<'r>(&self, rows: &'r [Row], name: &str) -> Option<&'r Row> {
        let mut found: Vec<&Row> = rows.iter().filter(|row| row.is(name)).collect();
        found.sort_by_key(|row| self.request.version.is_some() && self.is_asked_version(row));
        found.pop()
    }

    /// The result, by comparing what was with what is.
    fn report(&self, before: &[Row], after: &[Row], left_running: u32) -> PkgEnsureResult {
        let mut result = PkgEnsureResult { left_running, ..PkgEnsureResult::default() };
        let names = &self.request.names;
        for name in names {
            let (old, new) = (self.found(before, name), self.found(after, name));
            let action = match (old, new) {
                (None, None) => "already_absent",
                (Some(_), None) => "removed",
                (Some(old), Some(new)) if old == new => "already_present",
                (Some(old), Some(new)) if old.version != new.version => {
                    // Not to know the direction is no reason to lose what was done.
                    if self.is_older(&new.version, &old.version).unwrap_or(false) {
                        "downgraded"
                    } else {
                        "upgraded"
                    }
                }
                _ => "installed",
            };
            let changed = !action.starts_with("already");
            if result.action.is_empty() || (changed && !result.changed) {
                action.clone_into(&mut result.action);
            }
            result.changed |= changed;
            let version = |row: Option<&Row>| row.map(|row| row.version.clone());
            result.packages.push(PackageVersions {
                name: name.clone(),
                previous_version: version(old),
                installed_version: version(new),
            });
        }
        result.also_changed = changes(before, after);
        let is_named = |change: &PackageVersions| {
            let row = |row: &Row| row.name == change.name && names.iter().any(|name| row.is(name));
            before.iter().chain(after).any(row)
        };
        result.also_changed.retain(|change| !is_named(change));
        result.changed |= !result.also_changed.is_empty();
        if self.context.diff() {
            result.diff = Some(diff(result.packages.iter().chain(&result.also_changed)));
        }
        if let [only] = &mut result.packages[..] {
            result.previous_version = only.previous_version.take();
            result.installed_version = only.installed_version.take();
            result.packages.clear();
        }
        result
    }
}

/// Adds packages that the manager knows by their names alone.
fn add(targets: &mut Vec<(String, String)>, names: &[&String]) {
    targets.extend(names.iter().map(|name| ((*name).clone(), (*name).clone())));
}
