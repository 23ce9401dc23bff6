//! Facts as a person reads them: a line for each set, or for each thing in it, in which what is empty is left out.

use sortie_client::protocol::command::facts::{FactsResult, Hardware, Host, Network, Os};

use super::human::size;

pub(super) fn lines(facts: &FactsResult) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(facts.os.as_ref().map(os));
    lines.extend(facts.hardware.as_ref().map(hardware));
    lines.extend(facts.host.as_ref().map(host));
    lines.extend(facts.network.iter().flat_map(network));
    for mount in facts.mounts.iter().flatten() {
        let room = if mount.size_bytes == 0 {
            String::new()
        } else {
            format!("{} of {}", size(mount.available_bytes), size(mount.size_bytes))
        };
        let words = [&*mount.target, &mount.source, &mount.fstype, &mount.options];
        lines.push(line("mount", &words.join(" "), &[("available", &room)]));
    }
    for disk in facts.disks.iter().flatten() {
        let name = format!("{} {}", disk.name, size(disk.size_bytes));
        let words = [
            ("part of", &*disk.parent),
            ("model", &disk.model),
            ("", if disk.rotational { "rotational" } else { "" }),
            ("", if disk.removable { "removable" } else { "" }),
            ("", if disk.read_only { "read-only" } else { "" }),
        ];
        lines.push(line("disk", &name, &words));
    }
    for user in facts.users.iter().flatten() {
        let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
        let words = [
            ("uid", &*uid),
            ("gid", &gid),
            ("home", &user.home),
            ("shell", &user.shell),
            ("", &user.comment),
        ];
        lines.push(line("user", &user.name, &words));
    }
    for group in facts.groups.iter().flatten() {
        let gid = group.gid.to_string();
        lines.push(line("group", &group.name, &[("gid", &gid), ("members", &group.members.join(" "))]));
    }
    for (name, version) in facts.packages.iter().flatten() {
        lines.push(line("package", name, &[("", version)]));
    }
    for unit in facts.units.iter().flatten() {
        let state = format!("{} ({})", unit.status, unit.sub_state);
        let file = if unit.file_state.is_empty() && unit.enabled { "enabled" } else { &unit.file_state };
        lines.push(line("unit", &unit.name, &[("", &*state), ("", file)]));
    }
    for (set, why) in &facts.incomplete {
        lines.push(line("incomplete", set, &[("", why)]));
    }
    lines
}

/// What a thing is called, then labels and words.
fn line(set: &str, name: &str, words: &[(&str, &str)]) -> String {
    let mut text = format!("{set}: {}", name.trim());
    for (label, word) in words.iter().filter(|(_, word)| !word.is_empty()) {
        let between = if text.ends_with(": ") { "" } else { ", " };
        let label = if label.is_empty() { String::new() } else { format!("{label} ") };
        text.extend([between, &label, word]);
    }
    // A name with a line's end in it is not to look like two facts.
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn os(os: &Os) -> String {
    let name = if os.pretty_name.is_empty() { &os.id } else { &os.pretty_name };
    let release = [&*os.id, &os.version, &os.codename].join(" ");
    let kernel = format!("{} {}", os.kernel, os.machine);
    let words = [
        ("", release.trim()),
        ("like", &os.id_like.join(" ")),
        ("kernel", kernel.trim()),
        ("init", &os.init),
        ("packages by", &os.package_manager),
        ("LANG", &os.lang),
        ("time zone", &os.timezone),
        ("SELinux", if os.selinux == "disabled" { "" } else { &os.selinux }),
        ("", if os.apparmor { "AppArmor" } else { "" }),
    ];
    line("os", name, &words)
}

fn hardware(hardware: &Hardware) -> String {
    let cpus = format!("{} × {}", hardware.cpus, hardware.cpu_model);
    let memory = format!("{} of {}", size(hardware.memory_available_bytes), size(hardware.memory_bytes));
    let swap = format!("{} of {}", size(hardware.swap_free_bytes), size(hardware.swap_bytes));
    let words = [
        ("", cpus.trim_end_matches(" × ")),
        ("memory available", &memory),
        ("swap free", if hardware.swap_bytes == 0 { "" } else { &swap }),
        ("virtual machine:", &hardware.virtualization),
        ("in", &hardware.container),
    ];
    line("hardware", &[&*hardware.vendor, &hardware.product].join(" "), &words)
}

fn host(host: &Host) -> String {
    let uptime = format!("{} s", host.uptime);
    let fqdn = if host.fqdn == host.hostname { "" } else { &*host.fqdn };
    let words = [("", fqdn), ("up for", &uptime), ("time", &host.time), ("boot id", &host.boot_id)];
    line("host", &host.hostname, &words)
}

fn network(network: &Network) -> Vec<String> {
    let mut lines = Vec::new();
    for interface in &network.interfaces {
        let mtu = interface.mtu.to_string();
        let state = if interface.up { &interface.state } else { "not set up" };
        let addresses = [&interface.ipv4[..], &interface.ipv6[..]].concat().join(" ");
        let words = [("", state), ("", &*addresses), ("MAC", &interface.mac), ("MTU", &mtu)];
        lines.push(line("interface", &interface.name, &words));
    }
    for gateway in &network.gateways {
        let metric = gateway.metric.to_string();
        let words = [("by", &*gateway.interface), ("from", &gateway.source), ("metric", &metric)];
        lines.push(line("gateway", &gateway.address, &words));
    }
    let (servers, search) = (network.nameservers.join(" "), network.search.join(" "));
    if !servers.is_empty() || !search.is_empty() {
        lines.push(line("resolver", &servers, &[("search", &search)]));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use sortie_client::protocol::command::facts::{Mount, UnitState, User};

    #[test]
    fn what_is_empty_is_left_out_and_what_is_not_stands_in_one_line() {
        let os = Os { id: "debian".into(), init: "none".into(), ..Os::default() };
        let hardware = Hardware {
            cpus: 2,
            memory_bytes: 1 << 31,
            memory_available_bytes: 1 << 30,
            ..Hardware::default()
        };
        let mount =
            Mount { target: "/a\nb".into(), source: "x".into(), fstype: "proc".into(), ..Mount::default() };
        let user = User { name: "root".into(), home: "/root".into(), ..User::default() };
        let unit = UnitState {
            name: "a".into(),
            status: "active".into(),
            sub_state: "started".into(),
            enabled: true,
            ..UnitState::default()
        };
        let facts = FactsResult {
            os: Some(os),
            hardware: Some(hardware),
            mounts: Some(vec![mount]),
            users: Some(vec![user]),
            units: Some(vec![unit]),
            ..FactsResult::default()
        };
        assert_eq!(
            lines(&facts),
            [
                "os: debian, debian, init none",
                "hardware: 2, memory available 1.0 GiB of 2.0 GiB",
                "mount: /a?b x proc",
                "user: root, uid 0, gid 0, home /root",
                "unit: a, active (started), enabled",
            ]
        );
    }
}
