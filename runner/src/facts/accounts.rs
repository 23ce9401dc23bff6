//! Users and groups of this host alone, by passwd(5) and group(5).

use sortie_protocol::command::facts::{Group, User};

use super::{Room, text};

pub(crate) fn users(room: &mut Room) -> Vec<User> {
    let mut users = Vec::new();
    for line in text("/etc/passwd").lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, comment, home, shell] = fields[..] else { continue };
        let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else { continue };
        let [name, comment, home, shell] = [name, comment, home, shell].map(str::to_owned);
        let user = User { name, uid, gid, comment, home, shell };
        if !room.takes(&user) {
            break;
        }
        users.push(user);
    }
    users
}

pub(crate) fn groups(room: &mut Room) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in text("/etc/group").lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members] = fields[..] else { continue };
        let Ok(gid) = gid.parse() else { continue };
        let members = members.split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect();
        let group = Group { name: name.to_owned(), gid, members };
        if !room.takes(&group) {
            break;
        }
        groups.push(group);
    }
    groups
}
