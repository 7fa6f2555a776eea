//! Who a container runs as: `user[:group]` looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! The rules are Docker's: a name must be in the file, a number need not be; without a group the user's own group and
//! all groups that list the user apply; with a group only that one does.

use super::Fault;

/// The image's users and groups, as far as containers need them. The default is an image without either file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    users: Vec<User>,
    groups: Vec<Group>,
}

/// The numbers that the process gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Begins with `gid`, as the kernel would have it after a login (and Docker since CVE-2022-36109).
    pub groups: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Largest id that is accepted: the file format has signed 32 bit numbers (Docker's limit too).
const ID_MAX: u32 = i32::MAX as u32;

impl Accounts {
    /// Reads the two files; a line that makes no sense is passed over, as every reader of these files does.
    pub fn parse(passwd: &[u8], group: &[u8]) -> Self {
        let users = lines(passwd)
            .filter_map(|line| {
                let mut fields = line.split(':');
                let (name, _password) = (fields.next()?, fields.next()?);
                let (uid, gid) = (number(fields.next()?)?, number(fields.next()?)?);
                Some(User { name: name.to_owned(), uid, gid })
            })
            .collect();
        let groups = lines(group)
            .filter_map(|line| {
                let mut fields = line.split(':');
                let (name, _password, gid) = (fields.next()?, fields.next()?, number(fields.next()?)?);
                let members = fields.next().unwrap_or_default().split(',').filter(|m| !m.is_empty());
                Some(Group { name: name.to_owned(), gid, members: members.map(str::to_owned).collect() })
            })
            .collect();
        Accounts { users, groups }
    }

    /// `user` is `""` (root), `name`, `uid`, `name:group`, `uid:gid`, …; `extra` are further groups.
    pub(super) fn identity(&self, user: &str, extra: &[String]) -> Result<Identity, Vec<Fault>> {
        let (user, group) = user.split_once(':').unwrap_or((user, ""));
        let mut faults = Vec::new();

        let wanted_uid = if user.is_empty() { Some(0) } else { number(user) };
        let found = self.users.iter().find(|u| u.name == user || Some(u.uid) == wanted_uid);
        let (uid, mut gid) = match (found, wanted_uid) {
            (Some(found), _) => (found.uid, found.gid),
            (None, Some(uid)) => (uid, 0),
            (None, None) => {
                faults.push(Fault::NoUser { user: user.to_owned() });
                (0, 0)
            }
        };

        let mut groups = Vec::new();
        if !group.is_empty() {
            self.gid(group).map(|found| gid = found).unwrap_or_else(|fault| faults.push(fault));
        } else if let Some(found) = found {
            groups.extend(self.groups.iter().filter(|g| g.members.contains(&found.name)).map(|g| g.gid));
        }
        for name in extra {
            self.gid(name).map(|found| groups.push(found)).unwrap_or_else(|fault| faults.push(fault));
        }
        groups.retain(|g| *g != gid);
        groups.insert(0, gid);
        let mut seen = std::collections::BTreeSet::new();
        groups.retain(|g| seen.insert(*g));
        if faults.is_empty() { Ok(Identity { uid, gid, groups }) } else { Err(faults) }
    }

    fn gid(&self, group: &str) -> Result<u32, Fault> {
        let wanted = number(group);
        let found = self.groups.iter().find(|g| g.name == group || Some(g.gid) == wanted).map(|g| g.gid);
        found.or(wanted).ok_or_else(|| Fault::NoGroup { group: group.to_owned() })
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    file.split(|b| *b == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= ID_MAX && text.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# a comment\n\nbroken\nnobody:x:65534:65533::/:/bin/false\n\
        app:x:1000:1000::/home/app:\n";
    const GROUP: &[u8] = b"root:x:0:root\nbin:x:1:root,daemon\naudio:x:29:app\nvideo:x:44:app,nobody\n1234:x:77:\n";

    #[track_caller]
    fn check(user: &str, extra: &[&str], expected: &str) {
        let extra: Vec<String> = extra.iter().map(|g| (*g).to_owned()).collect();
        let shown = match Accounts::parse(PASSWD, GROUP).identity(user, &extra) {
            Ok(id) => format!("{}:{} {:?}", id.uid, id.gid, id.groups),
            Err(faults) => faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        };
        assert_eq!(shown, expected, "user {user:?}, extra {extra:?}");
    }

    #[test]
    fn users_and_groups_are_found_by_docker_s_rules() {
        check("", &[], "0:0 [0, 1]");
        check("root", &[], "0:0 [0, 1]");
        check("0", &[], "0:0 [0, 1]");
        check("nobody", &[], "65534:65533 [65533, 44]");
        check("app", &[], "1000:1000 [1000, 29, 44]");
        check("1000", &[], "1000:1000 [1000, 29, 44]");
        check("1234", &[], "1234:0 [0]");
        check("1234:1234", &[], "1234:77 [77]");
        check("1234:5678", &[], "1234:5678 [5678]");
        check("nobody:audio", &[], "65534:29 [29]");
        check(":audio", &[], "0:29 [29]");
        check("nobody", &["audio", "99"], "65534:65533 [65533, 44, 29, 99]");
        check("ghost", &[], "no user ghost in the image");
        check(
            "ghost:ghosts",
            &["spooks"],
            "no user ghost in the image; no group ghosts in the image; no group spooks in the image",
        );
        check("4294967295", &[], "no user 4294967295 in the image");
        check("-1", &[], "no user -1 in the image");
    }

    #[test]
    fn an_image_without_the_files_knows_numbers_only() {
        let none = Accounts::parse(b"", b"");
        assert_eq!(none.identity("", &[]).unwrap(), Identity { uid: 0, gid: 0, groups: vec![0] });
        assert_eq!(none.identity("7:8", &[]).unwrap(), Identity { uid: 7, gid: 8, groups: vec![8] });
        assert!(none.identity("root", &[]).is_err());
    }
}
