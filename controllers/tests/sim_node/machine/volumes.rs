//! Named volumes: directories, which a container has mounted from the moment that its task is made.

use std::path::{Path, PathBuf};

use controllers::node::volumes::{Error, Missing, Usage, VolumeId, Volumes, Wanted};
use futures::future::{BoxFuture, FutureExt};
use reconciler::api::Uid;
use reconciler::sim::CallError;

use super::containers::uid_of;
use super::{Hand, State};

impl State {
    /// Has the volume here, for a task that is going to mount it.
    pub(super) fn mount(&mut self, uid: &Uid, volume: &VolumeId) {
        self.made += 1;
        self.volumes.entry(volume.clone()).or_insert(self.made);
        self.at(uid, |place| place.mounts.insert(volume.clone()));
    }

    /// Who has it mounted, by the kernel's own word.
    fn holders(&self, volume: &VolumeId) -> Vec<String> {
        let mounting = self.containers.iter().filter(|(id, container)| {
            let mounts = self.places.get(&uid_of(id).0).is_some_and(|place| place.mounts.contains(volume));
            mounts && container.runs()
        });
        mounting.map(|(id, _)| id.to_string()).collect()
    }

    fn remove_volume(&mut self, volume: &VolumeId) -> Result<bool, Error> {
        let by = self.holders(volume);
        if !by.is_empty() {
            return Err(Error::InUse { volume: volume.clone(), by });
        }
        let was_there = self.volumes.remove(volume).is_some();
        if was_there {
            self.removed.push(volume.clone());
        }
        Ok(was_there)
    }
}

fn failed(volume: &VolumeId, doing: &'static str) -> impl FnOnce(CallError) -> Error {
    let volume = volume.clone();
    move |error| Error::Volume { volume, doing, source: std::io::Error::other(error) }
}

impl Volumes for Hand {
    fn ensure<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<PathBuf, Error>> {
        unreachable!("tasks have {} made by their surroundings", wanted.id)
    }

    fn inside<'a>(&'a self, id: &'a VolumeId, _: &'a Path) -> BoxFuture<'a, Result<PathBuf, Error>> {
        unreachable!("no task here mounts a part of {id}")
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<VolumeId>, Error>> {
        async { Ok(self.machine.lock().volumes.keys().cloned().collect()) }.boxed()
    }

    fn directory(&self, id: &VolumeId) -> PathBuf {
        format!("/volumes/{id}").into()
    }

    fn measure<'a>(&'a self, id: &'a VolumeId) -> BoxFuture<'a, Result<Option<Usage>, Error>> {
        async move {
            let looked = self.env.calls.look("measure a volume", || self.machine.lock().volumes.contains_key(id)).await;
            let is_here = looked.map_err(failed(id, "measured"))?;
            Ok(is_here.then_some(Usage { bytes: 4096, entries: 1 }))
        }
        .boxed()
    }

    fn remove<'a>(&'a self, id: &'a VolumeId) -> BoxFuture<'a, Result<bool, Error>> {
        async move {
            let remove = self.step(format!("removes volume {id}"), |state| state.remove_volume(id)).await;
            remove.map_err(failed(id, "removed"))?
        }
        .boxed()
    }

    fn bind<'a>(&'a self, source: &'a Path, _: Missing) -> BoxFuture<'a, Result<(), Error>> {
        unreachable!("no task here mounts {}", source.display())
    }
}
