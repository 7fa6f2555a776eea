//! The level of a cluster: what the machine with the oldest version can do. Nothing above it is written, so that no machine
//! ignores what somebody counts on.

use std::sync::{Arc, OnceLock};

use reconciler::Kind;
use reconciler::api::Fault;
use reconciler::cache::{Cache, Snapshot};
use reconciler::objects::{Refusal, Writer};
use schemas::kinds::Node;
use schemas::level::{Level, VERSION, says_anew};
use serde_json::Value;

/// What the first version runs, which did not say so when it joined.
const FIRST: &str = "0.1.0";
/// More of them would not be read.
const NAMED: usize = 3;

/// The machines, for whoever looks before a write.
#[derive(Clone, Debug, Default)]
pub struct Machines(Arc<OnceLock<Cache>>);

impl Machines {
    /// Looks there from now on; the first one counts. `cache` keeps Nodes.
    pub fn follow(&self, cache: Cache) {
        let _ = self.0.set(cache);
    }

    /// Refuses what came with this build's version while a machine runs an older one.
    ///
    /// # Errors
    /// Each place, with whom to upgrade.
    pub fn review(
        &self,
        writer: &Writer,
        kind: &Kind,
        current: Option<&Value>,
        desired: Option<&Value>,
    ) -> Result<(), Refusal> {
        // A controller passes on what was admitted before.
        let Some(desired) = desired.filter(|_| !writer.identity.starts_with("controller:")) else { return Ok(()) };
        let places = says_anew(kind, current, desired);
        if places.is_empty() {
            return Ok(());
        }
        let why = match self.0.get().and_then(Cache::snapshot) {
            Some(snapshot) => still_older(&snapshot, Level::own()),
            None => Some("which versions the machines run is not known yet; try again".to_owned()),
        };
        let Some(why) = why else { return Ok(()) };
        let came = format!("came with {}, and {why}", Level::own());
        Err(Refusal::Invalid(places.into_iter().map(|place| Fault::new(place, came.clone())).collect()))
    }
}

/// Every machine whose version is known, by name.
fn versions(snapshot: &Snapshot) -> impl Iterator<Item = (&str, &str, Level)> {
    snapshot
        .all::<Node>()
        .filter_map(|node| node.version().map(|(version, level)| (&*node.metadata.name, version, level)))
}

fn still_older(snapshot: &Snapshot, level: Level) -> Option<String> {
    let mut older: Vec<_> = versions(snapshot).filter(|(_, _, of)| *of < level).collect();
    older.sort_unstable();
    let names: Vec<String> =
        older.iter().take(NAMED).map(|(name, version, _)| format!("{name} runs {version}")).collect();
    let more = older.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more are behind") };
    (!older.is_empty()).then(|| format!("{}{more}: upgrade first", names.join(", ")))
}

/// Whether a machine of this version fits the others.
///
/// # Errors
/// What is to be installed where.
pub fn fits(snapshot: &Snapshot, version: Option<&str>) -> Result<(), String> {
    let version = version.unwrap_or(FIRST);
    let known = versions(snapshot).min_by_key(|(_, _, level)| *level);
    let (name, oldest, lowest) = known.unwrap_or(("this manager", VERSION, Level::own()));
    match Level::of(version) {
        None => Err(format!("{version:?} is no version of applyd, such as {VERSION}")),
        Some(level) if level < lowest => Err(format!(
            "applyd there is {version}, and every machine of the cluster runs {oldest} or newer: install {lowest} first"
        )),
        Some(level) if !level.is_beside(lowest) => Err(format!(
            "applyd there is {version}, and {name} runs {oldest}: versions of one cluster differ by one; install one in between, or \
             upgrade {name} first"
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use reconciler::Resource;
    use reconciler::cache::Declarations;
    use schemas::kinds::Service;
    use schemas::kinds::node::{NodeSpec, NodeStatus};
    use serde_json::json;

    use super::*;

    fn machines(versions: &[&str]) -> Snapshot {
        let declarations = Declarations::new().kind::<Node>();
        versions.iter().enumerate().fold(Snapshot::empty(&declarations), |snapshot, (index, version)| {
            let mut node = Node::new(format!("n{}", index + 1), NodeSpec::default());
            let mut status = NodeStatus::default();
            status.machine.get_or_insert_default().versions.apply = (*version).to_owned();
            node.status = Some(status);
            snapshot.with(node)
        })
    }

    #[test]
    fn the_machines_to_upgrade_are_named() {
        let level = Level::of("0.2.0").unwrap();
        let told = |versions: &[&str]| still_older(&machines(versions), level);
        assert_eq!(told(&[]), None);
        // One that has just joined has not said yet what it runs; it would not have been taken in.
        assert_eq!(told(&["0.2.0", "0.2.3", "0.3.0", ""]), None);
        assert_eq!(told(&["0.2.0", "0.1.9"]).unwrap(), "n2 runs 0.1.9: upgrade first");
        let many = told(&["0.1.0", "0.1.0", "0.2.0", "0.1.0", "0.1.0", "0.1.0"]).unwrap();
        assert_eq!(many, "n1 runs 0.1.0, n2 runs 0.1.0, n4 runs 0.1.0 and 2 more are behind: upgrade first");
    }

    #[test]
    fn nothing_new_is_written_while_versions_are_not_known_but_by_controllers() {
        let (machines, kind) = (Machines::default(), Service::kind());
        let (old, new) = (json!({"spec": {"replicas": 2}}), json!({"spec": {"onDisconnect": "keep"}}));
        let ann = Writer::new("user:ann", "applyctl");
        let review = |writer: &Writer, desired: &Value| machines.review(writer, kind, None, Some(desired));
        assert!(review(&ann, &old).is_ok());
        let Err(Refusal::Invalid(faults)) = review(&ann, &new) else { panic!("it is refused") };
        assert_eq!(faults[0].path, "spec.onDisconnect");
        assert!(faults[0].message.contains("not known yet"), "{faults:?}");
        assert!(review(&Writer::controller("bundle"), &new).is_ok());
        assert!(machines.review(&ann, kind, Some(&new), None).is_ok(), "an end");
    }

    #[test]
    fn who_joins_is_neither_older_than_all_nor_two_versions_ahead() {
        let two = machines(&["0.2.1", "0.3.0"]);
        for (version, fit) in [("0.2.0", true), ("0.3.1", true), ("0.1.0", false), ("0.4.0", false), ("x", false)] {
            assert_eq!(fits(&two, Some(version)).is_ok(), fit, "{version}");
        }
        assert!(fits(&two, None).unwrap_err().contains("0.1.0"), "the first version says nothing");
        assert!(fits(&two, Some("0.4.0")).unwrap_err().contains("upgrade n1 first"));
        assert!(fits(&machines(&[]), Some(VERSION)).is_ok());
    }
}
