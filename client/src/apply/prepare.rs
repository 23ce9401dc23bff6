//! What a step is on a host: whether it is to run, with which params, and what its end means. Sends nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use minijinja::Value as Data;
use minijinja::value::Serde;
use serde_json::value::RawValue;
use sortie_protocol::command::exec::{Exec, ExecResult};
use sortie_protocol::command::facts::SETS;
use sortie_protocol::message::{Become, BecomeMethod, CommandMessage, Ready, Strings};
use sortie_protocol::{CommandType, text};

use super::content::{Content, INLINE, LocalFile};
use super::file::StepList;
use super::footprint::{self, By, Footprint, Part};
use super::outcome::{Status, StepFailure};
use super::params;
use super::problem::{Problem, ProblemKind};
use super::run::{Options, Values, last_words};
use super::source::{Name, Node, Value};
use super::step::{Becoming, Expression, Step, Test};
use super::template;
use crate::error::Error;

/// Bytes of output of a step that its consumer may be behind.
const WINDOW: u64 = 1024 * 1024;

/// What is to be done with a step now.
pub(super) enum Decision {
    /// Nothing before an earlier one has ended.
    Wait,
    /// The command of a condition must be run first.
    Ask(Box<CommandMessage>),
    /// It is to be sent.
    Run(Box<Prepared>),
    /// It is through, without being sent; if that is not known for sure, this is what it may change.
    Settle(Status, Part),
}

/// A step that can be sent.
pub(super) struct Prepared {
    pub(super) message: CommandMessage,
    pub(super) writes: Part,
    /// Content that is to be sent as input.
    pub(super) input: Option<LocalFile>,
    /// It is done for real, also with `check`, for it changes nothing.
    pub(super) exact: bool,
}

/// What is known of a step that has ended.
pub(super) struct Known {
    /// It changed something, or would.
    changed: bool,
    /// It was not done for real and would change something, or that is not known: what it gives is not what a run gives.
    uncertain: bool,
    unknown: bool,
    writes: Part,
}

impl Known {
    pub(super) fn of(status: &Status, writes: Part) -> Self {
        Self {
            changed: matches!(status, Status::Changed),
            uncertain: false,
            unknown: matches!(status, Status::Unknown { .. }),
            writes,
        }
    }
}

/// What is known of a host while a list is applied to it.
pub(super) struct Host<'l> {
    pub(super) list: &'l StepList,
    pub(super) options: Options,
    name: String,
    host: Data,
    pub(super) facts: Values,
    /// Why facts could not be had.
    pub(super) no_facts: Option<StepFailure>,
    /// Of the steps that have ended, in order.
    known: Vec<Known>,
    results: Values,
    /// Where paths lead, by the user who looked.
    pub(super) places: BTreeMap<(Option<String>, String), String>,
    /// Users that this session has become already.
    pub(super) became: BTreeSet<Option<String>>,
    /// Answers to the commands of the next step's conditions.
    answers: Vec<bool>,
    /// Whether the last ones were only looked at, by step.
    looked: BTreeMap<usize, bool>,
}

impl<'l> Host<'l> {
    pub(super) fn new(list: &'l StepList, name: &str, options: &Options) -> Self {
        Self {
            list,
            options: options.clone(),
            name: name.to_owned(),
            host: Data::from(Serde(serde_json::json!({"name": name}))),
            facts: Values::new(),
            no_facts: None,
            known: Vec::new(),
            results: Values::new(),
            places: BTreeMap::new(),
            became: BTreeSet::new(),
            answers: Vec::new(),
            looked: BTreeMap::new(),
        }
    }

    pub(super) fn connected(&mut self, ready: &Ready) {
        let facts = serde_json::to_value(&ready.host).unwrap_or_default();
        let mut facts: BTreeMap<String, serde_json::Value> =
            serde_json::from_value(facts).unwrap_or_default();
        facts.insert("arch".to_owned(), ready.arch.clone().into());
        facts.insert("platform".to_owned(), ready.platform.clone().into());
        self.facts = facts.into_iter().map(|(name, value)| (name, Data::from(Serde(value)))).collect();
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether everything is only looked at.
    pub(super) fn checks(&self) -> bool {
        self.options.check
    }

    /// Whether a check failed for lists of packages that a run refreshes first.
    pub(super) fn may_be_stale(&self, at: usize, error: &Error) -> bool {
        matches!(error, Error::Command { .. }) && self.is_check(at) && self.list.steps[at].refreshes()
    }

    /// The number of steps that have ended.
    pub(super) fn settled(&self) -> usize {
        self.known.len()
    }

    pub(super) fn settle(&mut self, at: usize, mut known: Known, result: Data) {
        debug_assert_eq!(at, self.known.len());
        known.uncertain = known.unknown || known.changed && self.is_check(at);
        self.known.push(known);
        if self.list.referred.contains(&at) {
            self.results.insert(self.list.steps[at].id.to_string(), result);
        }
    }

    pub(super) fn answer(&mut self, _: usize, answer: bool) {
        self.answers.push(answer);
    }

    /// Whether a step was, or will be, only looked at.
    pub(super) fn is_check(&self, at: usize) -> bool {
        self.looked.get(&at).copied().unwrap_or(self.options.check || self.list.steps[at].check)
    }

    /// What a failure means for the list.
    pub(super) fn failed(&self, at: usize, failure: StepFailure) -> Status {
        let lost = matches!(failure, StepFailure::Session(_));
        Status::Failed { failure, ignored: self.list.steps[at].ignore_failure && !lost }
    }

    /// What to do with the first step.
    pub(super) fn decide(&mut self, at: usize) -> Decision {
        self.decide_after(at, &[])
    }

    /// What to do with a step, while those in `flying` have not ended; their writes are given.
    pub(super) fn decide_after(&mut self, at: usize, flying: &[(usize, &Part)]) -> Decision {
        let decision = self.decided(at, flying);
        if matches!(decision, Decision::Run(_) | Decision::Settle(..)) {
            self.answers.clear();
        }
        decision
    }

    fn decided(&mut self, at: usize, flying: &[(usize, &Part)]) -> Decision {
        let step = &self.list.steps[at];
        if let Some(failure) = &self.no_facts
            && step.facts.iter().any(|fact| fact.is_empty() || SETS.contains(&fact.as_str()))
        {
            return Decision::Settle(self.failed(at, failure.clone()), Part::default());
        }
        let waits_for = |other: &usize| *other >= self.known.len();
        if step.needs.iter().chain(&step.depends_on).any(waits_for) {
            return Decision::Wait;
        }
        let uncertain: Vec<usize> = step
            .depends_on
            .iter()
            .chain(&step.needs)
            .copied()
            .filter(|at| self.known[*at].uncertain)
            .collect();
        // Of those that it only waits for to change, it is enough to know that they would.
        let plain = |at: &usize| {
            step.when_changed.contains(at) && !step.depends_on.contains(at) && !step.refers.contains(at)
        };
        let mut unknown: Vec<usize> = uncertain.iter().copied().filter(|at| !plain(at)).collect();
        if !step.when_changed.is_empty() && !step.when_changed.iter().any(|at| self.known[*at].changed) {
            let open: Vec<usize> =
                step.when_changed.iter().copied().filter(|at| self.known[*at].unknown).collect();
            if open.is_empty() {
                let ids: Vec<&str> = step.when_changed.iter().map(|at| self.list.steps[*at].id()).collect();
                return skipped(format!("nothing changed in {}", ids.join(", ")));
            }
            unknown.extend(open);
        }
        if !unknown.is_empty() {
            return self.unknown(at, unknown);
        }
        let mut answers = self.answers.iter();
        for condition in &step.conditions {
            let holds = match &condition.test {
                Test::Expression(expression) => match self.truth(step, expression, None) {
                    Ok(holds) => holds,
                    Err(problem) => return self.wrong(at, vec![problem]),
                },
                Test::Command(argv) => match answers.next() {
                    Some(holds) => *holds,
                    None if !flying.is_empty() => return Decision::Wait,
                    None => {
                        let open = self.changing(|_| true);
                        if !open.is_empty() {
                            return self.unknown(at, open);
                        }
                        return match self.question(step, argv) {
                            Ok(message) => Decision::Ask(Box::new(message)),
                            Err(problems) => self.wrong(at, problems),
                        };
                    }
                },
            };
            if holds == condition.negated {
                return skipped(condition.in_words());
            }
        }
        match self.prepare(at) {
            Ok((prepared, reads)) => {
                if self.is_check(at) || self.options.check {
                    if flying.iter().any(|(_, writes)| reads.touches(writes)) {
                        return Decision::Wait;
                    }
                    let open = self.changing(|writes| reads.touches(writes));
                    if !open.is_empty() {
                        return self.unknown(at, open);
                    }
                }
                self.looked.insert(at, prepared.message.check);
                self.became.insert(prepared.message.r#become.as_ref().map(|r#become| r#become.user.clone()));
                Decision::Run(Box::new(prepared))
            }
            Err(failure) => Decision::Settle(self.failed(at, failure), Part::default()),
        }
    }

    /// Earlier steps that were only looked at, and may change such a part of the host.
    fn changing(&self, part: impl Fn(&Part) -> bool) -> Vec<usize> {
        let open = |(_, known): &(usize, &Known)| {
            known.uncertain && !known.writes.is_nothing() && part(&known.writes)
        };
        self.known.iter().enumerate().filter(open).map(|(at, _)| at).collect()
    }

    fn unknown(&self, at: usize, mut depends_on: Vec<usize>) -> Decision {
        depends_on.sort_unstable();
        depends_on.dedup();
        let depends_on = depends_on.into_iter().map(|at| Arc::clone(&self.list.steps[at].id)).collect();
        let writes = self.rough_footprint(&self.list.steps[at]).writes;
        Decision::Settle(Status::Unknown { depends_on }, writes)
    }

    /// What a step reads and writes, also where its paths lead.
    fn footprint(
        &self,
        step: &Step,
        params: &serde_json::Value,
        changes: Option<&[String]>,
        reads: Option<&[String]>,
    ) -> Footprint {
        let user = self.becoming(step).map(|becoming| becoming.user);
        let by = By {
            becomes: user.is_some() && !self.became.contains(&user),
            root: match &user {
                Some(user) => user == "root",
                None => self.facts.get("uid").is_some_and(|uid| *uid == Data::from(0)),
            },
        };
        let mut footprint = footprint::of(step.kind, params, by, changes, reads);
        for known in &self.known {
            footprint.follow(&known.writes);
        }
        footprint.resolve(&|path| self.places.get(&(user.clone(), path.to_owned())).map(String::as_str));
        footprint
    }

    /// The same of a step that cannot be rendered yet. Results of earlier steps are no help, for they may be other ones when
    /// it runs: what is a template then may be anything.
    pub(super) fn rough_footprint(&self, step: &Step) -> Footprint {
        let context = self.context(step, None);
        let rough = |node: &Node| {
            let mut refers = false;
            node.each_text(&mut |_, text| refers |= template::is_one(text) && text.contains("results"));
            let rendered = if refers { None } else { self.rendered(node, &context).ok() };
            rendered.unwrap_or_else(|| node.clone())
        };
        let texts = |node: &Option<Node>| {
            node.as_ref().map(|node| {
                let mut texts = Vec::new();
                rough(node).each_text(&mut |_, text| texts.push(text.to_owned()));
                texts
            })
        };
        let (changes, reads) = (texts(&step.changes), texts(&step.reads));
        let members = step.params.map().unwrap_or_default().iter();
        let params = members.map(|(name, node)| (name.text.clone(), rough(node).to_json())).collect();
        self.footprint(step, &serde_json::Value::Object(params), changes.as_deref(), reads.as_deref())
    }

    fn wrong(&self, at: usize, problems: Vec<Problem>) -> Decision {
        Decision::Settle(self.failed(at, StepFailure::Problems(problems)), Part::default())
    }

    /// What a step's templates may refer to.
    fn context(&self, step: &Step, result: Option<Data>) -> Data {
        let mut values: BTreeMap<String, Data> =
            step.scope.values().map(|(name, value)| (name.clone(), value.clone())).collect();
        if !step.facts.is_empty() {
            values.insert("facts".to_owned(), Data::from_pairs(self.facts.clone()));
        }
        values.insert("host".to_owned(), self.host.clone());
        if !step.needs.is_empty() {
            values.insert("results".to_owned(), Data::from_pairs(self.results.clone()));
        }
        if let Some(result) = result {
            values.insert("result".to_owned(), result);
        }
        Data::from_pairs(values)
    }

    fn truth(&self, step: &Step, expression: &Expression, result: Option<Data>) -> Result<bool, Problem> {
        let wrong = |why: String| Problem::new(&expression.at, ProblemKind::Template, why);
        let value =
            self.list.templates.evaluate(&expression.text, &self.context(step, result)).map_err(wrong)?;
        match value.kind() {
            minijinja::value::ValueKind::Bool => Ok(value.is_true()),
            kind => {
                Err(wrong(format!("it gives {kind}, and must be true or false: compare it with something")))
            }
        }
    }

    /// A tree without templates.
    fn rendered(&self, node: &Node, context: &Data) -> Result<Node, Problem> {
        let value = match &node.value {
            Value::Text(text) if template::is_one(text) => {
                let wrong = |why| node.problem(ProblemKind::Template, why);
                let json = self.list.templates.render(text, context).map_err(wrong)?;
                return Ok(Node::from_json(json, &node.at));
            }
            Value::List(list) => {
                Value::List(list.iter().map(|node| self.rendered(node, context)).collect::<Result<_, _>>()?)
            }
            Value::Map(members) => Value::Map(
                members
                    .iter()
                    .map(|(name, node)| Ok((name.clone(), self.rendered(node, context)?)))
                    .collect::<Result<_, _>>()?,
            ),
            value => value.clone(),
        };
        Ok(Node { at: node.at.clone(), value })
    }

    fn texts(&self, node: &Node, context: &Data) -> Result<Vec<String>, Vec<Problem>> {
        let node = self.rendered(node, context).map_err(|problem| vec![problem])?;
        super::typed::read(&node, super::typed::Mode::Rendered)
    }

    pub(super) fn prepare(&self, at: usize) -> Result<(Prepared, Part), StepFailure> {
        let step = &self.list.steps[at];
        let problems = StepFailure::Problems;
        let context = self.context(step, None);
        let mut node = self.rendered(&step.params, &context).map_err(|problem| problems(vec![problem]))?;
        let input = self.add_content(step, &mut node, &context)?;
        let params = params::encode(step.kind, &node).map_err(problems)?;
        let paths = |node: &Option<Node>| node.as_ref().map(|node| self.texts(node, &context)).transpose();
        let changes = paths(&step.changes).map_err(problems)?;
        let only_reads = paths(&step.reads).map_err(problems)?;
        let becoming = self.becoming(step);
        // Only a check has to know, and contents may be large.
        let Footprint { reads, writes } = if self.options.check || step.check {
            let json = serde_json::from_str(params.get()).unwrap_or_default();
            self.footprint(step, &json, changes.as_deref(), only_reads.as_deref())
        } else {
            Footprint::default()
        };
        // What changes nothing, a program by its author's word, is done also by a check: later steps may need what it gives.
        use CommandType::{Exec, Facts, FileRead, FileStat};
        let looks = matches!(step.kind, Exec | FileRead | FileStat | Facts);
        let exact = looks && writes.is_nothing() && !step.check;
        let message = CommandMessage {
            id: step.id.to_string(),
            kind: step.kind,
            timeout: step.timeout.unwrap_or_else(|| seconds(self.options.timeout)),
            params,
            idempotency_key: String::new(),
            signature: String::new(),
            metadata: Strings::new(),
            check: (self.options.check || step.check) && !exact,
            diff: (self.options.diff || step.diff) && !step.sensitive,
            r#become: becoming,
            window: Some(WINDOW),
            limits: step.limits.clone().or_else(|| self.options.limits.clone()),
            usage: step.usage || self.options.usage,
            sequence: if !step.is_alone(self.options.check) {
                super::run::SEQUENCE.to_owned()
            } else {
                String::new()
            },
        };
        Ok((Prepared { message, writes, input, exact }, reads))
    }

    /// Content that stands in a file of its own: in the params, or as input where it is large.
    fn add_content(
        &self,
        step: &Step,
        params: &mut Node,
        context: &Data,
    ) -> Result<Option<LocalFile>, StepFailure> {
        let bytes = match &step.content {
            None => return Ok(None),
            Some(Content::Template { file, text }) => {
                let rendered = self.list.templates.render_text(text, context).map_err(|why| {
                    let message = format!("{}: {why}", file.display());
                    StepFailure::Problems(vec![Problem::new(&step.at, ProblemKind::Template, message)])
                })?;
                rendered.into_bytes()
            }
            Some(Content::File(file)) if file.len > INLINE as u64 => {
                set(params, "content_from", "input".to_owned());
                return Ok(Some(file.clone()));
            }
            Some(Content::File(file)) => file.piece(0, INLINE).map_err(|error| StepFailure::Local {
                reason: format!("{}: {error}", file.path.display()),
            })?,
        };
        let (content, encoding) = text::encode(bytes);
        set(params, "content", content);
        if encoding.is_some() {
            set(params, "encoding", "base64".to_owned());
        }
        Ok(None)
    }

    fn question(&self, step: &Step, argv: &Node) -> Result<CommandMessage, Vec<Problem>> {
        let argv = self.texts(argv, &self.context(step, None))?;
        let exec = Exec { argv: Some(argv), ..Exec::default() };
        let id = format!("{}:condition-{}", step.id, self.answers.len() + 1);
        let timeout = step.timeout.unwrap_or_else(|| seconds(self.options.timeout));
        let mut message = command(id, &exec, self.becoming(step), timeout)
            .map_err(|why| vec![Problem::new(&step.at, ProblemKind::Value, why)])?;
        message.limits = step.limits.clone().or_else(|| self.options.limits.clone());
        Ok(message)
    }

    pub(super) fn becoming(&self, step: &Step) -> Option<Become> {
        let called = self.options.r#become.as_ref();
        match &step.r#become {
            Becoming::AsCalled => called.cloned(),
            Becoming::Nobody => None,
            Becoming::Somebody(somebody) => {
                let mut somebody = somebody.clone();
                let same = |called: &&Become| {
                    called.method == somebody.method
                        && (called.method != BecomeMethod::Su || called.user == somebody.user)
                };
                if somebody.password.is_none() {
                    somebody.password = called.filter(same).and_then(|called| called.password.clone());
                }
                Some(somebody)
            }
        }
    }

    /// What the result of a step means. `exact`: it was done for real.
    pub(super) fn judge(&self, at: usize, result: &RawValue, exact: bool) -> Status {
        let step = &self.list.steps[at];
        let json: serde_json::Value = serde_json::from_str(result.get()).unwrap_or_default();
        let looked = self.is_check(at) && !exact;
        let mut changed = json.get("changed") == Some(&true.into());
        let mut failure = None;
        if step.kind == CommandType::Exec {
            let result: ExecResult = serde_json::from_str(result.get()).unwrap_or_default();
            changed = if looked { result.would_run } else { !result.skipped };
            changed &=
                !matches!(&step.changes, Some(Node { value: Value::List(list), .. }) if list.is_empty());
            if result.exit_code != 0 {
                failure = Some(StepFailure::Exit { status: result.exit_code, said: last_words(&result) });
            }
        }
        // Refreshed lists may have a newer one.
        let newest = json.get("action").is_some_and(|action| action == "already_present") && step.refreshes();
        if looked && newest && !params::is(&step.params, "state", "present") {
            return Status::Unknown { depends_on: vec![Arc::clone(&step.id)] };
        }
        // How long it would have to wait, and whether in vain, nobody knows.
        if looked && step.kind == CommandType::WaitFor && json.get("waited") == Some(&true.into()) {
            return Status::Unknown { depends_on: vec![Arc::clone(&step.id)] };
        }
        if looked && changed && (step.changed_if.is_some() || step.failed_if.is_some()) {
            return Status::Unknown { depends_on: vec![Arc::clone(&step.id)] };
        }
        let context = Data::from(Serde(json));
        if let Some(expression) = &step.failed_if {
            failure = match self.truth(step, expression, Some(context.clone())) {
                Ok(true) => {
                    failure.or_else(|| Some(StepFailure::Condition { expression: expression.text.clone() }))
                }
                Ok(false) => None,
                Err(problem) => Some(StepFailure::Problems(vec![problem])),
            };
        }
        if let Some(failure) = failure {
            return self.failed(at, failure);
        }
        if let Some(expression) = &step.changed_if {
            match self.truth(step, expression, Some(context)) {
                Ok(truth) => changed = truth,
                Err(problem) => return self.failed(at, StepFailure::Problems(vec![problem])),
            }
        }
        if changed { Status::Changed } else { Status::Unchanged }
    }
}

/// A program of the list's own.
pub(super) fn command(
    id: String,
    exec: &Exec,
    r#become: Option<Become>,
    timeout: u64,
) -> Result<CommandMessage, String> {
    Ok(CommandMessage {
        id,
        kind: CommandType::Exec,
        timeout,
        params: serde_json::value::to_raw_value(exec).map_err(|error| error.to_string())?,
        idempotency_key: String::new(),
        signature: String::new(),
        metadata: Strings::new(),
        check: false,
        diff: false,
        r#become,
        window: Some(WINDOW),
        sequence: String::new(),
        limits: None,
        usage: false,
    })
}

fn skipped(reason: String) -> Decision {
    Decision::Settle(Status::Skipped { reason }, Part::default())
}

fn set(params: &mut Node, name: &str, text: String) {
    let at = params.at.clone();
    if let Value::Map(members) = &mut params.value {
        members.push((Name { at: at.clone(), text: name.to_owned() }, Node { at, value: Value::Text(text) }));
    }
}

/// Rounded up: a step may not get less time than was asked for.
pub(super) fn seconds(duration: std::time::Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}
