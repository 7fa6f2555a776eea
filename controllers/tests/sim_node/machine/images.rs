//! Images: pulled under a lease, in steps, from a registry that has most of them.

use std::time::Duration;

use controllers::node::images::{
    Archive, Credentials, Elsewhere, Error, ImageInfo, Images, Platform, Prune, Pulls, Record, Resolved, Tags, Wanted,
};
use futures::future::{BoxFuture, FutureExt};
use reconciler::sim::CallError;
use schemas::image::{Algorithm, Digest, ImageRef};
use tokio::sync::watch;

use super::{Hand, Nature, State};

/// How long the bytes take.
const PULL: Duration = Duration::from_millis(300);
/// How long the lease of a pull outlives who died in it. (A day, in the real one.)
const LEASE: Duration = Duration::from_secs(60);
/// Until then the registry of `late` cannot be reached.
const REGISTRY_UP: Duration = Duration::from_secs(3);

/// An image that is here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pulled {
    /// Its name is recorded: it stays.
    recorded: bool,
}

/// The key of an image's topmost layer.
pub fn layers_of(image: &str) -> Digest {
    let hash: Vec<u8> = image.bytes().cycle().take(32).collect();
    Digest::new(Algorithm::Sha256, &hash)
}

impl State {
    pub(super) fn has_layers(&self, parent: &str) -> bool {
        self.images.keys().any(|image| layers_of(image).as_str() == parent)
    }

    fn lease(&mut self, image: &str) {
        self.leases.insert(image.to_owned());
        let image = image.to_owned();
        self.after(LEASE, Nature::Sure, move |state| state.end_lease(&image));
    }

    fn end_lease(&mut self, image: &str) {
        self.leases.remove(image);
        // Unpacked, and nothing holds it.
        if self.images.get(image).is_some_and(|pulled| !pulled.recorded) {
            self.images.remove(image);
        }
    }
}

impl Hand {
    async fn pull(&self, image: &ImageRef) -> Result<(), Error> {
        let name = image.to_string();
        let failed = |doing| {
            let image = image.clone();
            move |error: CallError| Error::Unreachable {
                image: image.into(),
                why: format!("could not {doing}: {error}"),
                elsewhere: Elsewhere::default(),
            }
        };
        let here = self.ask("look for the image", |state| state.images.get(&name).is_some_and(|it| it.recorded)).await;
        if here.map_err(failed("look for it"))? {
            return Ok(());
        }
        if name.contains("missing") {
            return Err(Error::NoSuchTag { image: image.clone().into(), tags: Tags(vec!["2".to_owned()]) });
        }
        let of = name.clone();
        self.request(format!("a lease for {name}"), move |state| state.lease(&of)).await.map_err(failed("lease"))?;
        if name.contains("late") && self.machine.lock().now < REGISTRY_UP {
            return Err(failed("reach the registry")(CallError::Refused));
        }
        self.env.seams.sleep(PULL).await;
        let of = name.clone();
        let unpack = self.request(format!("unpacks {name}"), move |state| {
            if state.leases.contains(&of) {
                state.images.entry(of).or_default();
            }
        });
        unpack.await.map_err(failed("unpack it"))?;
        let of = name.clone();
        let record = self.request(format!("records {name}"), move |state| match state.images.get_mut(&of) {
            Some(pulled) => {
                pulled.recorded = true;
                true
            }
            None => false,
        });
        if !record.await.map_err(failed("record it"))? {
            return Err(failed("record it")(CallError::Refused));
        }
        let of = name.clone();
        let end = self.request(format!("ends the lease for {name}"), move |state| state.end_lease(&of));
        end.await.map_err(failed("end the lease"))
    }
}

impl Images for Hand {
    fn resolve<'a>(
        &'a self,
        image: &'a ImageRef,
        _: Option<&'a Credentials>,
    ) -> BoxFuture<'a, Result<Resolved, Error>> {
        async move {
            let digest = layers_of(&image.to_string());
            Ok(Resolved { digest, platforms: vec![Platform::of_this_machine()], stale_because: None })
        }
        .boxed()
    }

    fn ensure<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<ImageInfo, Error>> {
        async move {
            self.pull(&wanted.image).await?;
            let digest = layers_of(&wanted.image.to_string());
            Ok(ImageInfo {
                image: wanted.image.clone(),
                digest: digest.clone(),
                manifest: digest.clone(),
                config: Default::default(),
                healthcheck: None,
                chain_id: Some(digest),
                size_bytes: 1,
                stale_because: None,
            })
        }
        .boxed()
    }

    fn progress(&self) -> watch::Receiver<Pulls> {
        watch::channel(Pulls::default()).1
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Record>, Error>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn remove<'a>(&'a self, _: &'a ImageRef) -> BoxFuture<'a, Result<bool, Error>> {
        async { Ok(false) }.boxed()
    }

    fn prune<'a>(&'a self, _: &'a Prune) -> BoxFuture<'a, Result<Vec<Record>, Error>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn import<'a>(&'a self, _: Archive, _: Option<&'a ImageRef>) -> BoxFuture<'a, Result<Vec<Record>, Error>> {
        async { Ok(Vec::new()) }.boxed()
    }
}
