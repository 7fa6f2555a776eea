//! Surroundings as the tasks controller calls them, in the steps of `node/surroundings`.

use std::path::PathBuf;

use controllers::node::tasks::{Files, Place as Wanted, PrepareError, Prepared, Surroundings};
use controllers::node::volumes::VolumeId;
use futures::future::{BoxFuture, FutureExt};
use reconciler::api::Uid;
use reconciler::sim::CallError;

use super::Hand;
use super::containers::uid_of;

fn failed(doing: &'static str) -> impl FnOnce(CallError) -> PrepareError {
    move |error| PrepareError::failed(doing, error)
}

impl Hand {
    async fn make_place(&self, wanted: &Wanted) -> Result<Prepared, PrepareError> {
        let uid = &wanted.uid;
        let folder =
            self.step(format!("makes the folder of {uid}"), |state| state.at(uid, |place| place.folder = true));
        folder.await.map_err(failed("make the task's folder"))?;
        let addresses = wanted.addresses.iter().copied().collect();
        let link = self.step(format!("makes the namespace of {uid}"), |state| state.link(uid, addresses));
        link.await.map_err(failed("attach the task"))?;
        let volumes = self.step(format!("makes the volumes of {uid}"), |state| {
            state.at(uid, |place| place.volumes = true);
        });
        volumes.await.map_err(failed("make the volumes ready"))?;
        for name in wanted.volumes.iter().filter_map(|mount| mount.name.as_ref()) {
            let volume = VolumeId::new(&wanted.namespace, name).expect("a name that was accepted");
            let make = self.step(format!("makes volume {volume} for {uid}"), |state| state.mount(uid, &volume));
            make.await.map_err(failed("make a volume"))?;
        }
        let id = &wanted.container;
        let pipes = self.step(format!("makes the pipes of {id}"), |state| {
            state.at(uid, |place| {
                let attempt = uid_of(id).1;
                place.pipes.iter_mut().for_each(|(other, done)| *done |= uid_of(other).1 < attempt);
                place.pipes.entry(id.clone()).or_default();
                place.logs = true;
            });
        });
        pipes.await.map_err(failed("make the pipes"))?;
        Ok(Prepared {
            network_namespace: Some(PathBuf::from(format!("/run/netns/{uid}"))),
            mounts: Vec::new(),
            stdout: Some(PathBuf::from(format!("/run/pipes/{id}.out"))),
            stderr: Some(PathBuf::from(format!("/run/pipes/{id}.err"))),
        })
    }

    async fn leave_place(&self, uid: &Uid) -> Result<(), PrepareError> {
        let link =
            self.step(format!("removes the namespace of {uid}"), |state| state.at(uid, |place| place.link = None));
        link.await.map_err(failed("detach the task"))?;
        let volumes = self.step(format!("removes the own volumes of {uid}"), |state| {
            state.at(uid, |place| {
                place.volumes = false;
                place.mounts.clear();
            });
        });
        volumes.await.map_err(failed("remove the volumes"))?;
        let pipes = self.step(format!("ends the pipes of {uid}"), |state| {
            state.at(uid, |place| place.pipes.values_mut().for_each(|done| *done = true));
        });
        pipes.await.map_err(failed("end the pipes"))?;
        let folder = self.step(format!("removes the folder of {uid}"), |state| {
            state.at(uid, |place| place.folder = false);
        });
        folder.await.map_err(failed("remove the folder"))
    }
}

impl Surroundings for Hand {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Uid>, PrepareError>> {
        async move {
            let looked = self.env.calls.look("list surroundings", || {
                let state = self.machine.lock();
                let here = state.places.iter().filter(|(_, place)| place.folder || place.link.is_some());
                here.map(|(uid, _)| uid.clone()).collect()
            });
            looked.await.map_err(failed("list the tasks' folders"))
        }
        .boxed()
    }

    fn prepare<'a>(&'a self, place: &'a Wanted, _: &'a dyn Files) -> BoxFuture<'a, Result<Prepared, PrepareError>> {
        self.make_place(place).boxed()
    }

    fn release<'a>(&'a self, uid: &'a Uid) -> BoxFuture<'a, Result<(), PrepareError>> {
        self.leave_place(uid).boxed()
    }

    fn forget_logs<'a>(&'a self, uid: &'a Uid) -> BoxFuture<'a, Result<(), PrepareError>> {
        async move {
            let pipes = self.step(format!("removes the pipes of {uid}"), |state| {
                state.at(uid, |place| place.pipes.clear());
            });
            pipes.await.map_err(failed("remove the pipes"))?;
            let logs = self.step(format!("removes the logs of {uid}"), |state| {
                state.at(uid, |place| place.logs = false);
            });
            logs.await.map_err(failed("remove the logs"))
        }
        .boxed()
    }
}
