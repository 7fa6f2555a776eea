//! What goes with its owner. A controller for whoever owns the store; one at a time acts with effect, like any other.
//!
//! **Owns**: the finalizers [`FOREGROUND`] and [`ORPHAN`]; owner references to what is gone.
//! **Relies on**: UIDs that are never used twice, and owner references that carry them.
//! **Promises**: what only has owners that are gone is deleted; a deletion in the foreground waits for the dependents
//! that block it; one with [`ORPHAN`] leaves the dependents without their reference; a namesake of a deleted owner owns
//! nothing; where an owner's kind is not served here, nothing is concluded from not finding it.
//! **Woken by**: every change of who owns whom, and of what is being deleted, among all kinds.
//!
//! The picture is an [`External`] over the metadata of all objects: who owns whom is no single kind's matter. It may lag
//! behind; so every step reads the one object that it writes, sees whether the picture was right about it, and writes on
//! the condition that it still is. Of owners it concludes only that they are gone, which stays true.

mod plan;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use serde::Deserialize;
use serde_json::json;

use reconciler_api::{Kind, ObjectMeta, ObjectRef, OwnerReference, ResourceVersion, Uid};

use crate::controller::{Action, Controller, Ctx, Error, KeyReconciler};
use crate::external::{Announced, Announcements, External, Known, World};
use crate::objects::write::{FOREGROUND, ORPHAN};
use crate::objects::{
    self, Change, Epoch, Event, Kinds, Objects, Part, Patch, Precondition, Propagation, Selection, Start, Stored, Write,
};
use crate::seams::Seams;

use plan::{Graph, Step, plan};

/// Changes are followed; this only bounds how long a lost one could hurt.
const RESYNC: Duration = Duration::from_secs(600);
/// Steps of one plan at once: they are independent of each other.
const STEPS_AT_ONCE: usize = 8;

/// The controller, over all of `kinds`, those that objects define too: its key is the UID of an owner, or of something
/// owned.
pub fn controller(objects: Arc<dyn Objects>, kinds: &Kinds, seams: Seams) -> Controller<Uid> {
    let owners = Owners { objects, kinds: kinds.clone(), listed: Arc::default() };
    let owners = External::with_resync("owners", owners, seams, RESYNC);
    Controller::keyed("cascade", Cascade { owners: owners.clone() }).watches_external(&owners, |uid, object| {
        let owners = object.owners.iter().map(|owner| owner.uid.clone());
        owners.chain([uid.clone()]).collect::<Vec<_>>()
    })
}

/// What matters here of one object. Neither its spec nor its version: most changes change nothing of this.
#[derive(Clone, Debug, PartialEq)]
struct Owned {
    kind: Arc<Kind>,
    reference: ObjectRef,
    owners: Vec<OwnerReference>,
    deleting: bool,
    finalizers: Vec<String>,
}

/// All objects of all kinds as a world of [`Owned`]s, and the kinds among them, each under a key of its own: a picture says
/// by itself of which kinds it shows every object. Of no other is it concluded that something is gone.
struct Owners {
    objects: Arc<dyn Objects>,
    kinds: Kinds,
    /// As of when they were listed: changes are told from there on.
    listed: Arc<Mutex<Option<Listed>>>,
}

/// What a listing told of.
#[derive(Clone)]
struct Listed {
    selections: Vec<Selection>,
    epoch: Epoch,
    resource_version: ResourceVersion,
}

/// Where a picture has a kind. No UID is like it.
fn key_of(kind: &Kind) -> Uid {
    Uid::new(format!("kind:{}", kind.qualified()))
}

/// A kind, of which a picture shows every object.
fn shown(kind: &Arc<Kind>) -> (Uid, Owned) {
    let (kind, reference) = (kind.clone(), ObjectRef::default());
    (key_of(&kind), Owned { kind, reference, owners: Vec::new(), deleting: false, finalizers: Vec::new() })
}

impl World for Owners {
    type Key = Uid;
    type Item = Owned;
    type Error = objects::Error;

    async fn list(&self) -> Result<Vec<(Uid, Owned)>, objects::Error> {
        let kinds: Vec<Arc<Kind>> = self.kinds.all().into_iter().map(|entry| entry.kind).collect();
        let selections: Vec<Selection> = kinds.iter().cloned().map(Selection::all_of).collect();
        let mut stream = self.objects.stream(selections.clone(), Start::Now).await?;
        let mut found: Vec<_> = kinds.iter().map(shown).collect();
        while let Some(event) = stream.next().await {
            match event? {
                Event::Initial(objects) => {
                    for object in &objects {
                        found.push(read(object)?);
                    }
                }
                Event::InitialDone { epoch, resource_version } => {
                    let listed = Listed { selections, epoch, resource_version };
                    *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = Some(listed);
                    return Ok(found);
                }
                Event::Batch { .. } => {}
            }
        }
        Err(objects::Error::Unavailable { detail: "the listing ended early".into() })
    }

    fn changes(&self) -> Option<Announcements<Self>> {
        let (objects, listed) = (self.objects.clone(), self.listed.clone());
        let mut changes = self.kinds.changes();
        // First polled after the listing that it goes on from.
        let follow = async move {
            let listed = listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(Listed { selections, epoch, resource_version }) = listed else {
                return Ok(stream::empty().boxed());
            };
            objects.stream(selections, Start::After { epoch, resource_version }).await
        };
        let events = stream::once(follow).flat_map(|opened| match opened {
            Ok(events) => events,
            Err(error) => stream::iter([Err(error)]).boxed(),
        });
        let over = stream::once(async { Err(objects::Error::Unavailable { detail: "the stream ended".into() }) });
        let announced = events.flat_map(|event| stream::iter(announce(event))).chain(over);
        // Of other kinds than before: a picture with all of them is another listing.
        let other_kinds = stream::once(async move {
            match changes.changed().await {
                Ok(()) => Ok(Announced::LookAgain),
                Err(_) => std::future::pending().await,
            }
        });
        Some(stream::select(announced, other_kinds).boxed())
    }
}

type Announcement = Result<Announced<Uid, Owned>, objects::Error>;

fn announce(event: Result<Event, objects::Error>) -> Vec<Announcement> {
    let changes = match event {
        Ok(Event::Batch { changes, .. }) => changes,
        Ok(_) => return Vec::new(),
        // History is gone: not a failure, but a reason to list.
        Err(objects::Error::Expired { .. }) => return vec![Ok(Announced::LookAgain)],
        Err(error) => return vec![Err(error)],
    };
    let mut announced = Vec::new();
    for change in changes {
        match change {
            Change::Put { object, previous } => {
                // Deleted and made again in one commit: two objects of one name.
                let before = previous.as_ref().and_then(|previous| read(previous).ok()).map(|(uid, _)| uid);
                announced.push(read(&object).map(|(uid, item)| Announced::Put(uid, item)));
                if let (Some(before), Some(Ok(Announced::Put(now, _)))) = (before, announced.last())
                    && before != *now
                {
                    announced.push(Ok(Announced::Gone(before)));
                }
            }
            Change::Gone { last: Some(last), .. } => announced.push(read(&last).map(|(uid, _)| Announced::Gone(uid))),
            // Which one it was cannot be told any more.
            Change::Gone { last: None, .. } => announced.push(Ok(Announced::LookAgain)),
        }
    }
    announced
}

fn read(stored: &Stored) -> Result<(Uid, Owned), objects::Error> {
    #[derive(Deserialize)]
    struct Envelope {
        metadata: ObjectMeta,
    }
    let Envelope { metadata } = serde_json::from_slice(&stored.json).map_err(|source| objects::Error::Unreadable {
        kind: stored.kind.kind.to_string(),
        reference: stored.reference.clone(),
        source,
    })?;
    let object = Owned {
        kind: stored.kind.clone(),
        reference: stored.reference.clone(),
        owners: metadata.owner_references,
        deleting: metadata.deletion_timestamp.is_some(),
        finalizers: metadata.finalizers,
    };
    Ok((metadata.uid, object))
}

struct Picture {
    known: Known<Owners>,
    /// At least those that it shows.
    kinds: Vec<Arc<Kind>>,
}

impl Graph for Picture {
    fn get(&self, uid: &Uid) -> Option<&Owned> {
        self.known.get(uid).map(|object| &**object)
    }

    fn all(&self) -> Box<dyn Iterator<Item = (&Uid, &Owned)> + '_> {
        Box::new(self.known.iter().map(|(uid, object)| (uid, &**object)))
    }

    fn is_served(&self, api_version: &str, kind: &str) -> bool {
        let group = api_version.split('/').next();
        let mut named = self.kinds.iter().filter(|served| served.kind == kind && Some(&*served.group) == group);
        named.any(|served| self.known.get(&key_of(served)).is_some())
    }
}

struct Cascade {
    owners: External<Owners>,
}

impl KeyReconciler for Cascade {
    type Key = Uid;

    async fn reconcile(&self, uid: &Uid, cx: &Ctx) -> Result<Action, Error> {
        let Some(known) = self.owners.snapshot() else { return Ok(Action::Await) };
        let kinds = self.owners.world().kinds.all().into_iter().map(|entry| entry.kind).collect();
        let picture = Picture { known, kinds };
        let steps = plan(&picture, uid);
        let acts: Vec<_> = steps.iter().map(|step| act(cx, &picture, step)).collect();
        let results: Vec<Result<(), Error>> = stream::iter(acts).buffer_unordered(STEPS_AT_ONCE).collect().await;
        results.into_iter().collect::<Result<(), Error>>()?;
        Ok(Action::Await)
    }
}

/// Carries out one step, if its object is still as the picture has it; if not, what changed it wakes us.
async fn act(cx: &Ctx, picture: &Picture, step: &Step) -> Result<(), Error> {
    let Some(expected) = picture.get(step.uid()) else { return Ok(()) };
    let stored = match cx.client().objects().get(&expected.kind, &expected.reference).await {
        Ok(stored) => stored,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let (uid, found) = read(&stored)?;
    if uid != *step.uid() || found != *expected {
        return Ok(());
    }
    let precondition = Precondition { uid: Some(uid), resource_version: Some(stored.resource_version) };
    let (kind, reference) = (expected.kind.clone(), expected.reference.clone());
    let change = |metadata| Patch::Merge(json!({"metadata": metadata}));
    let write = match step {
        Step::Delete { propagation, .. } => Write::Delete { kind, reference, precondition, propagation: *propagation },
        Step::Disown { of, .. } => {
            let kept: Vec<_> = found.owners.iter().filter(|owner| !of.contains(&owner.uid)).collect();
            let patch = change(json!({"ownerReferences": kept}));
            Write::Update { kind, reference, part: Part::Main, patch, precondition }
        }
        Step::Finish { finalizer, .. } => {
            let kept: Vec<_> = found.finalizers.iter().filter(|name| name != finalizer).collect();
            let patch = change(json!({"finalizers": kept}));
            Write::Update { kind, reference, part: Part::Main, patch, precondition }
        }
    };
    tracing::debug!(object = %expected.reference, kind = &*expected.kind.kind, step = step.because(), "cascade");
    match cx.client().commit(vec![write]).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
