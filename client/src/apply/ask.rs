//! What a host is asked before the first step: facts that steps name, and for a check where paths lead.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::Value as Data;
use minijinja::value::Serde;
use serde_json::value::RawValue;
use sortie_protocol::CommandType;
use sortie_protocol::command::exec::Exec;
use sortie_protocol::command::facts::{Facts, SETS};
use sortie_protocol::message::{Become, CommandMessage};

use super::footprint::Part;
use super::outcome::StepFailure;
use super::prepare::{Host, command, seconds};

/// Paths of one question.
const MOST_PATHS: usize = 500;
/// Says of every path where it leads once links are followed; of what is not there, where its directory leads; `?` where that cannot be
/// said.
const LOOK: &str = r#"for p do rest=
while :; do
  if r=$(readlink -f -- "$p" 2>/dev/null) && [ -n "$r" ]; then break; fi
  r=
  if [ -L "$p" ] || [ "$p" = / ]; then break; fi
  rest=/${p##*/}$rest p=${p%/*}
  [ -n "$p" ] || p=/
done
if [ -n "$r" ]; then printf '%s%s\n' "$r" "$rest"; else echo '?'; fi
done"#;

/// A question where paths lead.
pub(super) struct Look {
    user: Option<String>,
    paths: Vec<String>,
    pub(super) message: CommandMessage,
}

impl Host<'_> {
    /// The question for facts that steps name and READY does not tell.
    pub(super) fn wanted_facts(&self) -> Option<CommandMessage> {
        let named = |set: &&&str| {
            let set: &str = set;
            // `facts` as a whole may be any of them, but for what takes long to tell.
            let whole = |facts: &BTreeSet<String>| facts.contains("") && !matches!(set, "packages" | "units");
            self.list.steps.iter().any(|step| step.facts.contains(set) || whole(&step.facts))
        };
        let sets: Vec<String> = SETS.iter().filter(named).map(|set| (*set).to_owned()).collect();
        let params = serde_json::value::to_raw_value(&Facts { sets: sets.clone() }).ok()?;
        let timeout = seconds(self.options.timeout);
        let mut message = command("apply:facts".to_owned(), &Exec::default(), None, timeout).ok()?;
        (message.kind, message.params) = (CommandType::Facts, params);
        Some(message).filter(|_| !sets.is_empty())
    }

    /// Takes the answer to [`Self::wanted_facts`].
    pub(super) fn take_facts(&mut self, told: Result<Box<RawValue>, StepFailure>) {
        match told {
            Ok(told) => {
                let sets: BTreeMap<String, serde_json::Value> =
                    serde_json::from_str(told.get()).unwrap_or_default();
                self.facts.extend(sets.into_iter().map(|(name, value)| (name, Data::from(Serde(value)))));
            }
            Err(failure) => self.no_facts = Some(failure),
        }
    }

    /// Questions where the paths lead that steps are about, for those whom they become: with links two of them may be the same.
    pub(super) fn where_paths_lead(&self) -> Vec<Look> {
        if !self.options.check && !self.list.steps.iter().any(|step| step.check) {
            return Vec::new();
        }
        let mut looks: BTreeMap<Option<String>, (Option<Become>, BTreeSet<String>)> = BTreeMap::new();
        let mut footprints: Vec<_> =
            self.list.steps.iter().map(|step| (step, self.rough_footprint(step))).collect();
        let links: Vec<Part> = footprints
            .iter()
            .map(|(_, each)| &each.writes)
            .filter(|part| part.makes_links())
            .cloned()
            .collect();
        for (step, footprint) in &mut footprints {
            links.iter().for_each(|link| footprint.follow(link));
            let r#become = self.becoming(step);
            let user = r#become.as_ref().map(|r#become| r#become.user.clone());
            let (_, paths) = looks.entry(user).or_insert_with(|| (r#become, BTreeSet::new()));
            paths.extend(footprint.reads.paths().chain(footprint.writes.paths()).map(str::to_owned));
        }
        let mut questions = Vec::new();
        for (user, (r#become, paths)) in looks {
            let paths: Vec<String> = paths.into_iter().collect();
            for (number, paths) in paths.chunks(MOST_PATHS).enumerate() {
                let words = ["sh", "-c", LOOK, "sh"].into_iter().map(str::to_owned);
                let exec = Exec::argv(words.chain(paths.iter().cloned()));
                let id = format!("apply:paths-{}-{number}", questions.len() + 1);
                if let Ok(message) = command(id, &exec, r#become.clone(), seconds(self.options.timeout)) {
                    questions.push(Look { user: user.clone(), paths: paths.to_vec(), message });
                }
            }
        }
        questions
    }

    /// Takes the answer to a question of [`Self::where_paths_lead`]; without it those paths may be any.
    pub(super) fn paths_lead(&mut self, look: Look, said: &str) {
        self.became.insert(look.user.clone());
        let lines: Vec<&str> = said.lines().collect();
        // A name with a line break in it would shift all others.
        if lines.len() == look.paths.len() {
            let led = look.paths.into_iter().zip(lines).filter(|(_, real)| real.starts_with('/'));
            self.places.extend(led.map(|(path, real)| ((look.user.clone(), path), real.to_owned())));
        }
    }
}
