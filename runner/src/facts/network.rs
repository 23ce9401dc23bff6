//! What the kernel says of interfaces, addresses and default routes (rtnetlink(7)), and resolv.conf(5) of names.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use sortie_protocol::command::facts::{Gateway, Interface, Network};

use super::Room;
use crate::sys::netlink::{attribute, dump, number_at};

/// `ifOperStatus` by the kernel's numbers.
const STATES: [&str; 7] = ["unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up"];

/// Lengths of `struct ifinfomsg`, `ifaddrmsg`, `rtmsg` and `rtnexthop`: attributes follow them.
const LINK: usize = 16;
const ADDRESS: usize = 8;
const ROUTE: usize = 12;
const NEXT_HOP: usize = 8;

pub(crate) fn network(room: &mut Room) -> io::Result<Network> {
    let mut network = Network::default();
    // The number that the kernel gave each interface, in the same order.
    let mut numbers = Vec::new();
    dump(libc::RTM_GETLINK, &mut |_, link| {
        let interface = interface(link);
        if room.takes(&interface) {
            numbers.push(number_at(link, 4));
            network.interfaces.push(interface);
        }
    })?;
    let place = |number| numbers.iter().position(|known| *known == number);
    dump(libc::RTM_GETADDR, &mut |_, message| {
        let [family, prefix, ..] = *message else { return };
        // Of a link between two the address is the peer's.
        let own = attribute(message, ADDRESS, libc::IFA_LOCAL);
        let own = if own.is_empty() { attribute(message, ADDRESS, libc::IFA_ADDRESS) } else { own };
        let text = address(own) + "/" + &prefix.to_string();
        if let Some(at) = place(number_at(message, 4))
            && room.takes(&text)
        {
            let interface = &mut network.interfaces[at];
            let is_4 = i32::from(family) == libc::AF_INET;
            let list = if is_4 { &mut interface.ipv4 } else { &mut interface.ipv6 };
            list.push(text);
        }
    })?;
    let (interfaces, gateways) = (&network.interfaces, &mut network.gateways);
    dump(libc::RTM_GETROUTE, &mut |_, route| {
        let [family, length, _, _, table, _, _, kind, ..] = *route else { return };
        if length != 0 || table != libc::RT_TABLE_MAIN || kind != libc::RTN_UNICAST {
            return;
        }
        let metric = number_at(attribute(route, ROUTE, libc::RTA_PRIORITY), 0);
        let source = attribute(route, ROUTE, libc::RTA_PREFSRC);
        let mut add = |hop: &[u8], at: usize, number: u32| {
            let Some(interface) = place(number).map(|at| &interfaces[at]) else { return };
            let is_4 = i32::from(family) == libc::AF_INET;
            let own = if is_4 { &interface.ipv4 } else { &interface.ipv6 };
            let first = || own.first().and_then(|own| own.split('/').next()).unwrap_or_default().to_owned();
            let gateway = Gateway {
                address: address(attribute(hop, at, libc::RTA_GATEWAY)),
                interface: interface.name.clone(),
                source: if source.is_empty() { first() } else { address(source) },
                metric,
            };
            if room.takes(&gateway) {
                gateways.push(gateway);
            }
        };
        // Several ways at once are a list of their own.
        let mut hops = attribute(route, ROUTE, libc::RTA_MULTIPATH);
        if hops.is_empty() {
            add(route, ROUTE, number_at(attribute(route, ROUTE, libc::RTA_OIF), 0));
        }
        while let [a, b, ..] = *hops {
            let length = usize::from(u16::from_ne_bytes([a, b]));
            let Some(hop) = hops.get(..length).filter(|hop| hop.len() >= NEXT_HOP) else { break };
            add(hop, NEXT_HOP, number_at(hop, 4));
            hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    })?;
    resolver(&super::text("/etc/resolv.conf"), &mut network);
    Ok(network)
}

fn interface(link: &[u8]) -> Interface {
    let get = |wanted| attribute(link, LINK, wanted);
    let name = get(libc::IFLA_IFNAME);
    let state = get(libc::IFLA_OPERSTATE).first().and_then(|&state| STATES.get(usize::from(state)));
    Interface {
        name: String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned(),
        mac: mac(get(libc::IFLA_ADDRESS)),
        mtu: number_at(get(libc::IFLA_MTU), 0),
        up: number_at(link, 8) & libc::IFF_UP as u32 != 0,
        state: state.copied().unwrap_or("unknown").to_owned(),
        ..Interface::default()
    }
}

/// Tunnels have addresses of other lengths.
fn mac(bytes: &[u8]) -> String {
    if bytes.len() != 6 {
        return String::new();
    }
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(":")
}

fn address(bytes: &[u8]) -> String {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Ipv4Addr::from(bytes).to_string();
    }
    <[u8; 16]>::try_from(bytes).map_or_else(|_| String::new(), |bytes| Ipv6Addr::from(bytes).to_string())
}

/// Of `search` and `domain` the last one counts.
fn resolver(text: &str, network: &mut Network) {
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => network.nameservers.extend(words.next()),
            Some("search" | "domain") => network.search = words.collect(),
            _ => {}
        }
    }
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    resolver(text, &mut Network::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_usual() {
        assert_eq!(mac(&[2, 0, 0x5e, 0x10, 0, 0xff]), "02:00:5e:10:00:ff");
        assert_eq!(mac(&[10, 0, 0, 1]), "");
        assert_eq!(address(&[192, 0, 2, 7]), "192.0.2.7");
        assert_eq!(address(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]), "2001:db8::7");
        assert_eq!(address(&[]), "");
    }

    #[test]
    fn the_loopback_has_its_address() {
        let network = network(&mut Room::new(1 << 20)).unwrap();
        let loopback = network.interfaces.iter().find(|interface| interface.name == "lo").unwrap();
        assert!(loopback.up && loopback.ipv4.contains(&"127.0.0.1/8".to_owned()), "{loopback:?}");
        assert_eq!((&*loopback.mac, &*loopback.state), ("00:00:00:00:00:00", "unknown"));
    }

    #[test]
    fn the_last_search_list_counts() {
        let mut network = Network::default();
        resolver(
            "# x\nsearch a.example b.example\nnameserver 192.0.2.1 \nnameserver 2001:db8::1\ndomain c.example\n",
            &mut network,
        );
        assert_eq!(network.nameservers, ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(network.search, ["c.example"]);
    }
}
