//! `facts`: tells the sets that were asked for. How each is found out is `facts`', `package`'s and `service`'s affair.

use sortie_protocol::command::facts::{CHEAP_SETS, Facts, FactsResult, SETS, UnitState};
use sortie_protocol::message::Strings;

use super::{Context, pkg_ensure};
use crate::facts::{self, Room};
use crate::failure::Failure;
use crate::job;
use crate::service::Manager;

/// Most bytes of JSON in a result, and of the session's memory that it takes until it is sent.
const MOST: usize = 2 * 1024 * 1024;

pub(super) fn run(context: &Context) -> Result<FactsResult, Failure> {
    let raw = context.job.take_params();
    let Facts { sets } = job::parse(&raw)?;
    if let Some(other) = sets.iter().find(|set| *set != "all" && !SETS.contains(&set.as_str())) {
        return Err(Failure::params(format!(
            "sets: {other:?} is neither all nor one of {}",
            SETS.join(", ")
        )));
    }
    let wants = |name: &str| match sets.is_empty() {
        true => SETS[..CHEAP_SETS].contains(&name),
        false => sets.iter().any(|set| set == name || set == "all"),
    };
    context.hold([context.pool.wait_for(MOST, &context.job)?]);
    let mut facts = FactsResult::default();
    let mut room = Room::new(MOST);
    facts.os = wants("os").then(facts::os);
    facts.hardware = wants("hardware").then(facts::hardware);
    facts.host = wants("host").then(facts::names);
    if wants("network") {
        let network = facts::network(&mut room).map_err(|error| Failure::io("netlink", &error));
        facts.network = found(context, "network", network, &mut room, &mut facts.incomplete)?;
    }
    if wants("mounts") {
        let mounts = Ok(facts::mounts(&mut room));
        facts.mounts = found(context, "mounts", mounts, &mut room, &mut facts.incomplete)?;
    }
    if wants("disks") {
        let disks = Ok(facts::disks(&mut room));
        facts.disks = found(context, "disks", disks, &mut room, &mut facts.incomplete)?;
    }
    if wants("users") {
        let users = Ok(facts::users(&mut room));
        facts.users = found(context, "users", users, &mut room, &mut facts.incomplete)?;
    }
    if wants("groups") {
        let groups = Ok(facts::groups(&mut room));
        facts.groups = found(context, "groups", groups, &mut room, &mut facts.incomplete)?;
    }
    if wants("packages") {
        let packages = packages(context, &mut room);
        facts.packages = found(context, "packages", packages, &mut room, &mut facts.incomplete)?;
    }
    if wants("units") {
        let units = units(context, &mut room);
        facts.units = found(context, "units", units, &mut room, &mut facts.incomplete)?;
    }
    Ok(facts)
}

/// A set that cannot be had, or not whole, is no failure of the others.
///
/// # Errors
/// The command is being ended.
fn found<T>(
    context: &Context,
    set: &str,
    result: Result<T, Failure>,
    room: &mut Room,
    incomplete: &mut Strings,
) -> Result<Option<T>, Failure> {
    context.job.go_on()?;
    let why = match &result {
        Err(failure) => &*failure.message,
        Ok(_) if room.is_full() => "the host has more than a result may hold (2 MiB)",
        Ok(_) => return Ok(result.ok()),
    };
    incomplete.insert(set.to_owned(), why.to_owned());
    Ok(result.ok())
}

fn packages(context: &Context, room: &mut Room) -> Result<Strings, Failure> {
    let mut packages = Strings::new();
    for row in pkg_ensure::all_installed(context)? {
        if !row.whole {
            continue;
        }
        if !room.takes(&row.name) || !room.takes(&row.version) {
            break;
        }
        let version = match packages.get(&row.name) {
            Some(known) if known.split(' ').any(|version| version == row.version) => continue,
            Some(known) => [known, " ", &row.version].concat(),
            None => row.version,
        };
        packages.insert(row.name, version);
    }
    Ok(packages)
}

fn units(context: &Context, room: &mut Room) -> Result<Vec<UnitState>, Failure> {
    let mut units = Vec::new();
    for unit in Manager::of_host()?.list(context)? {
        let unit = UnitState {
            name: unit.id,
            status: unit.active,
            sub_state: unit.sub,
            enabled: unit.enabled,
            file_state: unit.file_state,
        };
        if !room.takes(&unit) {
            break;
        }
        units.push(unit);
    }
    Ok(units)
}
