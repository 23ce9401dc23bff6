//! The login that the session came by, and whether a configuration would still let it in.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::config::pattern_matches;
use super::daemon::Effective;
use crate::command::Context;
use crate::sys::host;
use crate::tool::Tool;

/// Most of a file of keys that is looked at, in bytes.
const MOST_KEYS: u64 = 1024 * 1024;

/// Most processes between this one and sshd.
const MOST_ANCESTORS: usize = 64;

/// Who came in, and from where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
    /// The client's address; empty where it is not known.
    pub(crate) address: String,
    pub(crate) local_address: String,
    pub(crate) local_port: String,
}

impl Login {
    /// The login of this session: the user of the process right below sshd, whoever it became since. Where sshd is not
    /// to be seen among the ancestors, whom sudo(8) or doas(1) were started by, or the own user if SSH_CONNECTION is set. `None`
    /// where nobody came by SSH.
    pub(crate) fn find(context: &Context) -> Option<Self> {
        let (below_sshd, mut connection) = ancestors();
        if let Ok(own) = std::env::var("SSH_CONNECTION") {
            connection = own;
        }
        let by_name = ["SUDO_USER", "DOAS_USER"].iter().find_map(|name| std::env::var(name).ok());
        let who = match (below_sshd, by_name) {
            (Some(uid), _) => uid.to_string(),
            (None, Some(name)) => name,
            (None, None) if !connection.is_empty() => host::uid().to_string(),
            _ => return None,
        };
        let mut login = account(context, &who)?;
        let mut fields = connection.split(' ').map(str::to_owned);
        login.address = fields.next().unwrap_or_default();
        login.local_address = fields.nth(1).unwrap_or_default();
        login.local_port = fields.next().unwrap_or_default();
        Some(login)
    }

    /// For `-C` of sshd(8).
    pub(crate) fn connection(&self) -> String {
        let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
        let address = or(&self.address, "127.0.0.1");
        format!(
            "user={},host={address},addr={address},laddr={},lport={}",
            self.user,
            or(&self.local_address, "127.0.0.1"),
            or(&self.local_port, "22"),
        )
    }
}

/// The user right below sshd, and the nearest SSH_CONNECTION that can be seen.
fn ancestors() -> (Option<u32>, String) {
    let mut pid = crate::sys::process::id();
    let mut connection = String::new();
    for _ in 0..MOST_ANCESTORS {
        let Some((uid, parent)) = status(pid) else { break };
        if connection.is_empty() {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let value = environment.split(|&b| b == 0).find_map(|v| v.strip_prefix(b"SSH_CONNECTION="));
            connection = String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        }
        let name = fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
        if name.starts_with("sshd") {
            return (Some(uid), connection);
        }
        pid = parent;
    }
    (None, connection)
}

/// Real user and parent of a process, by proc_pid_status(5).
fn status(pid: i32) -> Option<(u32, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    Some((field("Uid:")?.parse().ok()?, field("PPid:")?.parse().ok().filter(|parent| *parent > 0)?))
}

/// An account by name or number: passwd(5), then getent(1), as a static program knows no NSS.
fn account(context: &Context, who: &str) -> Option<Login> {
    let find = |text: &str| {
        text.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let &[user, _, uid, gid, _, home, ..] = &fields[..] else { return None };
            (user == who || uid == who).then(|| Login {
                user: user.to_owned(),
                uid: uid.parse().unwrap_or(u32::MAX),
                gid: gid.parse().unwrap_or(u32::MAX),
                home: home.to_owned(),
                ..Login::default()
            })
        })
    };
    let local = fs::read("/etc/passwd").unwrap_or_default();
    find(&String::from_utf8_lossy(&local)).or_else(|| {
        let ran = Tool::new("getent").args(["passwd", who]).run(context).ok()?;
        find(&ran.text())
    })
}

/// The groups of an account, by name.
fn groups(login: &Login) -> Vec<String> {
    let text = fs::read("/etc/group").unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let member = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let &[name, _, gid, users] = &fields[..] else { return None };
        let is_member = users.split(',').any(|user| user == login.user) || gid.parse() == Ok(login.gid);
        is_member.then(|| name.to_owned())
    };
    text.lines().filter_map(member).collect()
}

/// Some account of a group, for asking about a Match block.
pub(crate) fn member_of(group: &str) -> Option<String> {
    let text = fs::read_to_string("/etc/group").ok()?;
    let fields: Vec<&str> =
        text.lines().find(|line| line.split(':').next() == Some(group))?.split(':').collect();
    let member = fields.get(3).and_then(|users| users.split(',').find(|user| !user.is_empty()));
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let primary =
        || users.lines().find(|line| line.split(':').nth(3) == fields.get(2).copied())?.split(':').next();
    member.or_else(primary).map(str::to_owned)
}

/// Why this login, which `before` lets in, would not come in with `after`; both as they are for its connection.
///
/// Says nothing about what stays as it is: how it came in under that is not known here.
pub(crate) fn lockout(login: &Login, before: &Effective, after: &Effective) -> Option<String> {
    let user = &login.user;
    let changed =
        |keywords: &[&str]| keywords.iter().any(|keyword| before.all(keyword) != after.all(keyword));
    let users = |keyword: &str| after.all(keyword).iter().any(|pattern| user_matches(pattern, login));
    let own_groups = groups(login);
    let in_group = |keyword: &str| {
        after
            .all(keyword)
            .iter()
            .any(|pattern| own_groups.iter().any(|group| pattern_matches(pattern, group)))
    };
    if changed(&["denyusers"]) && users("denyusers") {
        return Some(format!("DenyUsers would name {user}"));
    }
    if changed(&["allowusers"]) && after.has("allowusers") && !users("allowusers") {
        return Some(format!("AllowUsers would not name {user}"));
    }
    if changed(&["denygroups"]) && in_group("denygroups") {
        return Some(format!("DenyGroups would name a group of {user}"));
    }
    if changed(&["allowgroups"]) && after.has("allowgroups") && !in_group("allowgroups") {
        return Some(format!("AllowGroups would name no group of {user}"));
    }
    let methods = [
        "permitrootlogin",
        "passwordauthentication",
        "kbdinteractiveauthentication",
        "challengeresponseauthentication",
        "pubkeyauthentication",
        "usepam",
        "authorizedkeysfile",
        "authorizedkeyscommand",
        "trustedusercakeys",
    ];
    if !changed(&methods) {
        return None;
    }
    let root = login.uid == 0;
    let root_may = after.one("permitrootlogin");
    if root && matches!(root_may, "no" | "forced-commands-only") {
        return Some(format!("root logs in here, and PermitRootLogin would be {root_may}"));
    }
    let yes = |keyword: &str| after.one(keyword) == "yes";
    let typed = yes("passwordauthentication")
        || yes("kbdinteractiveauthentication")
        || yes("challengeresponseauthentication");
    if typed && (!root || root_may == "yes") {
        return None;
    }
    if !yes("pubkeyauthentication") {
        return Some(format!("neither passwords nor keys would let {user} in"));
    }
    let set = |keyword: &str| !matches!(after.one(keyword), "" | "none");
    let files: Vec<String> =
        after.one("authorizedkeysfile").split(' ').map(|file| key_file(file, login)).collect();
    if set("authorizedkeyscommand") || set("trustedusercakeys") || files.iter().any(|file| has_key(file)) {
        return None;
    }
    Some(format!("only a key would let {user} in, and there is none in {}", files.join(" or ")))
}

/// AllowUsers and DenyUsers of sshd_config(5): `user`, or `user@host` with a name, an address or address/bits.
fn user_matches(pattern: &str, login: &Login) -> bool {
    match pattern.rsplit_once('@') {
        None => pattern_matches(pattern, &login.user),
        Some((user, host)) => {
            pattern_matches(user, &login.user)
                && (login.address.is_empty()
                    || pattern_matches(host, &login.address)
                    || network_has(host, &login.address))
        }
    }
}

/// Whether `address/bits` has the address.
fn network_has(network: &str, address: &str) -> bool {
    let bytes = |text: &str| match text.parse() {
        Ok(IpAddr::V4(address)) => Some(address.octets().to_vec()),
        Ok(IpAddr::V6(address)) => Some(address.octets().to_vec()),
        Err(_) => None,
    };
    let Some((network, bits)) = network.split_once('/') else { return false };
    let (Some(network), Some(address), Ok(bits)) = (bytes(network), bytes(address), bits.parse::<usize>())
    else {
        return false;
    };
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    network.len() == address.len()
        && bits <= 8 * network.len()
        && (0..bits).all(|at| bit(&network, at) == bit(&address, at))
}

/// AuthorizedKeysFile's tokens (TOKENS of sshd_config(5)); relative paths begin at home.
fn key_file(pattern: &str, login: &Login) -> String {
    let mut path = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (_, true) => match chars.next() {
                Some('h') => path += &login.home,
                Some('u') => path += &login.user,
                Some('U') => path += &login.uid.to_string(),
                other => path.extend(other),
            },
            (c, false) => path.push(c),
        }
    }
    Path::new(&login.home).join(path).to_string_lossy().into_owned()
}

/// Whether the file has a line that is neither empty nor a comment.
fn has_key(path: &str) -> bool {
    use std::io::Read;
    let mut text = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MOST_KEYS).read_to_end(&mut text));
    read.is_ok()
        && text.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).any(|line| !line.is_empty() && line[0] != b'#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str) -> Login {
        Login {
            user: user.into(),
            uid: if user == "root" { 0 } else { 1000 },
            gid: 4_000_000,
            home: "/nonexistent".into(),
            address: "10.0.0.7".into(),
            ..Login::default()
        }
    }

    const OPEN: &str = "permitrootlogin yes\npasswordauthentication yes\nkbdinteractiveauthentication no\n\
                        pubkeyauthentication yes\nauthorizedkeysfile .ssh/authorized_keys /etc/keys/%u\n";

    fn reason(user: &str, after: &str) -> Option<String> {
        lockout(&login(user), &Effective::parse(OPEN), &Effective::parse(after))
    }

    #[test]
    fn what_stays_as_it_is_locks_nobody_out() {
        assert_eq!(reason("root", OPEN), None);
        let closed = OPEN.replace("passwordauthentication yes", "passwordauthentication no");
        assert_eq!(lockout(&login("a"), &Effective::parse(&closed), &Effective::parse(&closed)), None);
    }

    #[test]
    fn a_list_must_name_the_user_who_came_in() {
        let with = |line: &str| format!("{OPEN}{line}\n");
        assert!(reason("deploy", &with("allowusers www")).unwrap().contains("AllowUsers"));
        for fine in ["allowusers de*", "allowusers deploy@10.0.0.*", "allowusers deploy@10.0.0.0/24"] {
            assert_eq!(reason("deploy", &with(fine)), None, "{fine}");
        }
        assert!(reason("deploy", &with("allowusers deploy@10.0.1.0/24")).is_some());
        assert!(reason("deploy", &with("denyusers d?ploy")).unwrap().contains("DenyUsers"));
        assert!(reason("deploy", &with("allowgroups nobody-has-this")).unwrap().contains("AllowGroups"));
    }

    #[test]
    fn without_passwords_there_must_be_a_key() {
        let closed = OPEN.replace("passwordauthentication yes", "passwordauthentication no");
        let why = reason("deploy", &closed).unwrap();
        assert!(why.contains("/nonexistent/.ssh/authorized_keys or /etc/keys/deploy"), "{why}");
        assert_eq!(reason("deploy", &format!("{closed}authorizedkeyscommand /usr/bin/keys\n")), None);
        let no_keys = closed.replace("pubkeyauthentication yes", "pubkeyauthentication no");
        assert!(reason("deploy", &no_keys).unwrap().contains("neither"));
    }

    #[test]
    fn root_must_stay_allowed_where_root_logs_in() {
        let with = |value: &str| OPEN.replace("permitrootlogin yes", &format!("permitrootlogin {value}"));
        assert!(reason("root", &with("no")).unwrap().contains("PermitRootLogin"));
        assert!(reason("root", &with("without-password")).unwrap().contains("there is none in"));
        assert_eq!(reason("deploy", &with("no")), None);
    }

    #[test]
    fn networks_have_their_addresses() {
        assert!(network_has("10.0.0.0/8", "10.255.1.2") && !network_has("10.0.0.0/9", "10.255.1.2"));
        assert!(network_has("fe80::/10", "fe80::1") && network_has("0.0.0.0/0", "1.2.3.4"));
        assert!(!network_has("10.0.0.0/99", "10.0.0.1") && !network_has("fe80::/10", "10.0.0.1"));
        assert!(!network_has("10.0.0.0", "10.0.0.0"));
    }
}
