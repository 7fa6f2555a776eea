//! What a service or a bundle was before: a rule that both controllers keep.
//!
//! A Revision is named by the hash of what it holds, so that what was wanted once and is wanted again is kept once. Each
//! time that it becomes the wanted one is noted in it as a use, under a number that counts on over all of the owner's
//! revisions: history and undo go by these numbers. The revisions with the newest uses stay.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use reconciler::controller::{Ctx, Error};
use reconciler::objects::{Precondition, Propagation, Write};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::labels::{AUTHOR, MESSAGE};
use schemas::kinds::revision::{Revision, RevisionSpec, RevisionUse};

/// Of each revision, the last times that it became the wanted one.
const USES_KEPT: usize = 10;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// The content that is wanted gets its name.
    Create {
        name: String,
        spec: Box<RevisionSpec>,
    },
    /// It became the wanted one, for the `number`th time that anything did.
    Use {
        name: String,
        number: u64,
    },
    Forget(Arc<Revision>),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { .. } => f.write_str("create revision"),
            Self::Use { number, .. } => write!(f, "use revision as {number}"),
            Self::Forget(_) => f.write_str("forget revision"),
        }
    }
}

/// The changes, and the number under which `spec`, named `wanted`, is the wanted one. `kept` revisions stay, and those in
/// `named`.
pub(super) fn plan(
    revisions: &[Arc<Revision>],
    wanted: &str,
    spec: RevisionSpec,
    named: &BTreeSet<&str>,
    kept: u32,
) -> (Vec<Change>, u64) {
    let mut changes = Vec::new();
    let last = revisions.iter().filter_map(|revision| last_use(revision)).max();
    let stored = revisions.iter().find(|revision| revision.metadata.name == wanted);
    if stored.is_none() {
        changes.push(Change::Create { name: wanted.to_owned(), spec: Box::new(spec) });
    }
    let number = match stored.and_then(|revision| last_use(revision)) {
        Some(number) if Some(number) == last => number,
        _ => {
            let number = last.unwrap_or(0) + 1;
            changes.push(Change::Use { name: wanted.to_owned(), number });
            number
        }
    };
    let mut old: Vec<_> = revisions.iter().filter(|revision| revision.metadata.name != wanted).collect();
    old.sort_by_key(|revision| (std::cmp::Reverse(last_use(revision)), revision.metadata.name.clone()));
    let surplus = old.into_iter().skip(kept.saturating_sub(1) as usize);
    changes.extend(surplus.filter(|revision| !named.contains(&*revision.metadata.name)).cloned().map(Change::Forget));
    (changes, number)
}

fn last_use(revision: &Revision) -> Option<u64> {
    revision.status.as_ref().and_then(|status| status.uses.iter().map(|used| used.number).max())
}

/// The write of a change; a use is noted by [`note_uses`] once the revision is there.
pub(super) fn write(cx: &Ctx, change: &Change) -> Option<Write> {
    match change {
        Change::Create { name, spec } => Some(Write::create(&cx.own(Revision::new(name.clone(), (**spec).clone())))),
        Change::Use { .. } => None,
        Change::Forget(revision) => {
            Some(Write::delete(&**revision, Precondition::seen(&**revision), Propagation::Background))
        }
    }
}

/// Notes uses, with who wanted them and why as the owner's annotations say. Where two changed the owner before anybody
/// looked, that is the later one: what came between was never the wanted one.
///
/// Each only while the owner is as it was seen: a number that somebody gave a moment ago for what was wanted then is seen
/// by whoever has seen what is wanted now, and none is given twice.
pub(super) async fn note_uses<T: Resource>(
    cx: &Ctx,
    owner: &T,
    changes: impl Iterator<Item = &Change>,
) -> Result<(), Error> {
    for change in changes {
        let Change::Use { name, number } = change else { continue };
        // Past the cache: it may have been made a moment ago.
        let revision: Revision = cx.client().get(&ObjectRef::new(&owner.meta().namespace, name)).await?;
        let mut status = revision.status.clone().unwrap_or_default();
        if status.uses.iter().any(|used| used.number >= *number) {
            continue;
        }
        let said = |annotation: &str| owner.meta().annotations.get(annotation).cloned().unwrap_or_default();
        let (author, message) = (said(AUTHOR), said(MESSAGE));
        status.uses.push(RevisionUse { number: *number, author, time: Some(cx.now()), message });
        let surplus = status.uses.len().saturating_sub(USES_KEPT);
        status.uses.drain(..surplus);
        let mut desired = revision.clone();
        desired.status = Some(status);
        cx.client().commit(vec![Write::unchanged(owner), Write::update_status(&revision, &desired)]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use schemas::kinds::revision::{RevisionContent, RevisionStatus};

    use super::*;

    fn content() -> RevisionContent {
        RevisionContent::Bundle(Box::default())
    }

    /// Names with the numbers of their uses.
    fn check(known: &[(&str, &[u64])], wanted: &str, named: &[&str], expected: &str) {
        let revision = |(name, numbers): &(&str, &[u64])| {
            let mut revision = Revision::new(*name, RevisionSpec::new("shop", content()));
            let uses = numbers.iter().map(|number| RevisionUse { number: *number, ..RevisionUse::default() }).collect();
            revision.status = Some(RevisionStatus { uses });
            Arc::new(revision)
        };
        let mut known: Vec<_> = known.iter().map(revision).collect();
        let named = named.iter().copied().collect();
        let tell = |known: &[Arc<Revision>]| {
            let (changes, number) = plan(known, wanted, RevisionSpec::new("shop", content()), &named, 3);
            let changes = changes.iter().map(|change| match change {
                Change::Forget(revision) => format!("forget {}", revision.metadata.name),
                other => other.to_string(),
            });
            format!("{number}: {}", changes.collect::<Vec<_>>().join("; "))
        };
        assert_eq!(tell(&known), expected);
        known.reverse();
        assert_eq!(tell(&known), expected, "the order of the input does not matter");
    }

    #[test]
    fn what_is_wanted_has_a_number_and_what_was_wanted_before_keeps_its_own() {
        check(&[], "a", &[], "1: create revision; use revision as 1");
        check(&[("a", &[1])], "a", &[], "1: ");
        check(&[("a", &[])], "a", &[], "1: use revision as 1");
        check(&[("a", &[1])], "b", &[], "2: create revision; use revision as 2");
        check(&[("a", &[1]), ("b", &[2])], "a", &[], "3: use revision as 3");
        check(&[("a", &[1, 3]), ("b", &[2])], "a", &[], "3: ");
    }

    #[test]
    fn the_newest_stay_and_so_does_what_is_still_named() {
        let four: [(&str, &[u64]); 4] = [("a", &[1]), ("b", &[2]), ("c", &[3]), ("d", &[4])];
        check(&four, "d", &[], "4: forget a");
        check(&four, "d", &["a"], "4: ");
        check(&four, "e", &[], "5: create revision; use revision as 5; forget b; forget a");
        check(&four, "a", &[], "5: use revision as 5; forget b");
    }
}
