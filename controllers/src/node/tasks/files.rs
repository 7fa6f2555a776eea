//! What Secrets and Configs hold, read at the moment when a task is prepared that sees them.
//!
//! Caches hold digests in the place of a Secret's data. The data goes from whoever can open it into the memory of one
//! machine, and nowhere else.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::future::BoxFuture;
use reconciler::api::ObjectRef;
use reconciler::objects::{Error, StoreObjects};
use schemas::kinds::template::FileKind;

/// Opens Secrets and Configs.
pub trait Files: Send + Sync + 'static {
    /// The data of it; `None` where there is no such object any more. An error is temporary, and its words hold nothing of
    /// the data.
    fn open<'a>(&'a self, kind: FileKind, of: &'a ObjectRef) -> BoxFuture<'a, Result<Option<Vec<u8>>, String>>;
}

/// There are none.
pub struct NoFiles;

impl Files for NoFiles {
    fn open<'a>(&'a self, _: FileKind, _: &'a ObjectRef) -> BoxFuture<'a, Result<Option<Vec<u8>>, String>> {
        async { Ok(None) }.boxed()
    }
}

impl Files for StoreObjects {
    fn open<'a>(&'a self, kind: FileKind, of: &'a ObjectRef) -> BoxFuture<'a, Result<Option<Vec<u8>>, String>> {
        async move {
            let (word, _) = kind.words();
            let opened = match self.reveal(kind.kind(), of).await {
                Ok(opened) => opened,
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(format!("the {word} {of} cannot be read: {error}")),
            };
            let data = opened.pointer("/spec/data").and_then(|data| data.as_str());
            // What it is instead is left out: it may be the data.
            let data = data.and_then(|data| STANDARD.decode(data).ok());
            data.map(Some).ok_or_else(|| format!("the {word} {of} cannot be read: its data is not base64"))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use reconciler::api::Resource;
    use reconciler::objects::{Client, Kinds, Writer};
    use reconciler::seams::Seams;
    use reconciler::store::memory::Memory;
    use schemas::Sensitive;
    use schemas::kinds::config::{Config, ConfigSpec};
    use schemas::kinds::secret::{Secret, SecretSpec};

    use super::*;

    #[tokio::test]
    async fn data_is_opened_from_the_store_and_missed_without_an_error() {
        let kinds = Kinds::new().with::<Secret>().with::<Config>();
        let objects = StoreObjects::open(Arc::new(Memory::new()), "/apply", kinds, Seams::real()).await.unwrap();
        let objects = Arc::new(objects);
        let client = Client::new(objects.clone(), Writer::new("person", "test"));
        let data = STANDARD.encode("hunter2");
        let mut secret = Secret::new("key", SecretSpec { data: Sensitive::new(data.clone()), ..SecretSpec::default() });
        secret.metadata.namespace = "default".into();
        let stored = client.create(&secret).await.unwrap();
        assert_ne!(stored.spec.data.expose(), data, "readers get a digest");
        let mut config = Config::new("nginx", ConfigSpec { data, ..ConfigSpec::default() });
        config.metadata.namespace = "default".into();
        client.create(&config).await.unwrap();
        let open = async |kind, name| objects.open(kind, &ObjectRef::new("default", name)).await.unwrap();
        assert_eq!(open(FileKind::Secret, "key").await.as_deref(), Some(&b"hunter2"[..]));
        assert_eq!(open(FileKind::Config, "nginx").await.as_deref(), Some(&b"hunter2"[..]));
        assert_eq!(open(FileKind::Secret, "nginx").await, None);
    }
}
