//! Which containers have a living process, and of which slot each is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A container with at least one living process of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Of its control group: `<uid of the task>.<attempt>`.
    pub name: String,
    /// The oldest of its processes that were seen, by its number in our process namespace.
    pub pid: u32,
    /// When that one began, as the kernel counts: with `pid` it names one process for ever.
    began: u64,
}

/// Who is alive, by slot (`web-3`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alive {
    pub slots: BTreeMap<String, Vec<Container>>,
}

impl Alive {
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.slots.values().flatten()
    }

    /// How many containers each service has.
    pub fn services(&self) -> BTreeMap<String, usize> {
        let mut services = BTreeMap::new();
        for (slot, containers) in &self.slots {
            let service = slot.rsplit_once('-').map_or(slot.as_str(), |(service, _)| service);
            *services.entry(service.to_owned()).or_default() += containers.len();
        }
        services
    }

    /// Slots with two containers alive at one moment, in words. They were looked at one after the other, so each is
    /// looked at again: both were alive when the last of them was first seen, if the first still is.
    pub fn doubles(&self) -> Vec<String> {
        let double = |(slot, containers): (&String, &Vec<Container>)| {
            let living: Vec<&Container> = containers.iter().filter(|one| began(one.pid) == Some(one.began)).collect();
            (living.len() > 1).then(|| format!("slot {slot} has {living:?} alive at once"))
        };
        self.slots.iter().filter_map(double).collect()
    }
}

/// Looks at the groups below `group`. A process counts once it is the container's own program: its environment says
/// whose task it is; before that it is the runtime's, after its end it has none.
pub fn alive(group: &Path) -> Alive {
    alive_of(group, |_| true)
}

/// The same of those with a name that is asked for, for whoever looks often.
pub fn alive_of(group: &Path, is_asked_for: impl Fn(&str) -> bool) -> Alive {
    let mut alive = Alive::default();
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().into_string().ok().filter(|name| is_asked_for(name)) else { continue };
        let listed = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
        for pid in listed.lines().filter_map(|pid| pid.parse::<u32>().ok()) {
            if let (Some(slot), Some(began)) = (slot(pid), began(pid)) {
                alive.slots.entry(slot).or_default().push(Container { name, pid, began });
                break;
            }
        }
    }
    alive
}

/// A task is named `<service>-<slot>-<suffix>`, and its container has that as its host name.
fn slot(pid: u32) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let host = environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(b"HOSTNAME="))?;
    let (slot, _) = std::str::from_utf8(host).ok()?.rsplit_once('-')?;
    Some(slot.to_owned())
}

/// The start of a process that lives: the 22nd field of its `stat`.
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_had_a_beginning() {
        let own = std::process::id();
        assert!(began(own).is_some_and(|at| at > 0));
        assert_eq!(began(own), began(own));
        assert_eq!(began(u32::MAX), None);
    }

    #[test]
    fn only_two_that_live_are_two() {
        let own = Container { name: "a.1".into(), pid: std::process::id(), began: began(std::process::id()).unwrap() };
        let init = Container { name: "a.2".into(), pid: 1, began: began(1).unwrap() };
        let dead = Container { name: "a.3".into(), pid: 1, began: u64::MAX };
        let of = |containers: Vec<Container>| Alive { slots: BTreeMap::from([("web-1".to_owned(), containers)]) };
        assert_eq!(of(vec![own.clone(), dead]).doubles(), Vec::<String>::new());
        assert_eq!(of(vec![own, init]).doubles().len(), 1);
    }
}
