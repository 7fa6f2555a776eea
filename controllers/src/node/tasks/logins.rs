//! Who this machine is for a registry: the RegistryLogin of the task's namespace, opened at the moment of the pull.
//!
//! Caches hold digests in the place of passwords, so a cached login says only that there is one. The password is read
//! for one pull and goes with it.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use reconciler::api::{ObjectRef, Resource};
use reconciler::cache::{Index, Snapshot};
use reconciler::objects::{Error, StoreObjects};
use schemas::image::ImageRef;
use schemas::kinds::registry_login::{RegistryLogin, RegistryLoginSpec};
use schemas::kinds::revision::Revision;
use serde::Deserialize;

use super::live_on;
use crate::mounted::revision_of;
use crate::node::images::Credentials;

/// Opens sealed logins.
pub trait Logins: Send + Sync + 'static {
    /// What `login` holds; `None` when there is no such login any more. An error is temporary, and its words hold
    /// nothing of the password.
    fn open<'a>(&'a self, login: &'a ObjectRef) -> BoxFuture<'a, Result<Option<Credentials>, String>>;
}

/// Every registry is asked as nobody.
pub struct NoLogins;

impl Logins for NoLogins {
    fn open<'a>(&'a self, _login: &'a ObjectRef) -> BoxFuture<'a, Result<Option<Credentials>, String>> {
        async { Ok(None) }.boxed()
    }
}

impl Logins for StoreObjects {
    fn open<'a>(&'a self, login: &'a ObjectRef) -> BoxFuture<'a, Result<Option<Credentials>, String>> {
        async move {
            let opened = match self.reveal(RegistryLogin::kind(), login).await {
                Ok(opened) => opened,
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(format!("the login {login} cannot be read: {error}")),
            };
            // Its own words are left out: serde quotes what it cannot read.
            let spec = RegistryLoginSpec::deserialize(&opened["spec"]).map_err(|_| {
                format!("the login {login} cannot be read: it has another shape than this version knows")
            })?;
            Ok(Some(Credentials { username: spec.username, password: spec.password.expose().to_owned() }))
        }
        .boxed()
    }
}

/// Logins by namespace and registry.
pub(super) struct AtRegistry;

impl Index for AtRegistry {
    type Of = RegistryLogin;
    type Key = (String, String);

    fn keys(login: &RegistryLogin) -> Vec<(String, String)> {
        vec![(login.metadata.namespace.clone(), login.spec.registry.clone())]
    }
}

/// The login for the registry that the revision's image comes from; of several, the first by name.
pub(super) fn of_revision(snapshot: &Snapshot, revision: &Arc<Revision>) -> Option<ObjectRef> {
    let image: ImageRef = revision.spec.content.template()?.container.image.parse().ok()?;
    let at = (revision.metadata.namespace.clone(), image.registry().to_owned());
    let logins = snapshot.by::<AtRegistry>(&at).filter(|login| login.metadata.deletion_timestamp.is_none());
    logins.map(|login| login.object_ref()).min_by(|a, b| a.name.cmp(&b.name))
}

/// Whether a machine has a live task whose image is pulled with this login.
pub fn pulls_with(snapshot: &Snapshot, node: &str, login: &ObjectRef) -> bool {
    let mut tasks = live_on(snapshot, &node.to_owned()).filter(|task| task.metadata.namespace == login.namespace);
    tasks.any(|task| {
        let revision = snapshot.get::<Revision>(&revision_of(task));
        revision.and_then(|revision| of_revision(snapshot, revision)).as_ref() == Some(login)
    })
}

#[cfg(test)]
mod tests {
    use reconciler::cache::Declarations;
    use reconciler::objects::{Client, Kinds, Writer};
    use reconciler::seams::Seams;
    use reconciler::store::memory::Memory;
    use schemas::Sensitive;
    use schemas::kinds::revision::{RevisionContent, RevisionSpec};
    use schemas::kinds::task::{DesiredState, Task};
    use schemas::kinds::template::TaskTemplate;

    use super::*;
    use crate::node::tasks::OnNode;

    fn login(name: &str, namespace: &str, registry: &str) -> RegistryLogin {
        let spec = RegistryLoginSpec {
            registry: registry.into(),
            username: "anna".into(),
            password: Sensitive::new("correct horse"),
        };
        let mut login = RegistryLogin::new(name, spec);
        login.metadata.namespace = namespace.into();
        login
    }

    fn revision(namespace: &str, image: &str) -> Arc<Revision> {
        let mut template = TaskTemplate::default();
        template.container.image = image.into();
        let content = RevisionContent::Template(Box::new(template));
        let mut revision = Revision::new("web-1", RevisionSpec::new("web", content));
        revision.metadata.namespace = namespace.into();
        Arc::new(revision)
    }

    #[test]
    fn an_image_is_asked_for_with_the_login_of_its_registry_and_namespace() {
        let known = Snapshot::empty(&Declarations::new().kind::<RegistryLogin>().index::<AtRegistry>())
            .with(login("b", "default", "registry.example.com:5000"))
            .with(login("a", "default", "registry.example.com:5000"))
            .with(login("hub", "default", "docker.io"))
            .with(login("other", "shop", "registry.example.com"));
        let of =
            |namespace: &str, image: &str| of_revision(&known, &revision(namespace, image)).map(|login| login.name);
        assert_eq!(of("default", "registry.example.com:5000/app:1").as_deref(), Some("a"));
        assert_eq!(of("default", "redis").as_deref(), Some("hub"));
        assert_eq!(of("default", "registry.example.com/app:1"), None);
        assert_eq!(of("shop", "registry.example.com/app:1").as_deref(), Some("other"));
        assert_eq!(of("shop", "redis"), None);
    }
    #[tokio::test]
    async fn a_login_is_opened_from_the_store_and_missed_without_an_error() {
        let kinds = Kinds::new().with::<RegistryLogin>();
        let objects = StoreObjects::open(Arc::new(Memory::new()), "/apply", kinds, Seams::real()).await.unwrap();
        let objects = Arc::new(objects);
        let client = Client::new(objects.clone(), Writer::new("person", "test"));
        let stored = client.create(&login("hub", "default", "docker.io")).await.unwrap();
        assert_ne!(stored.spec.password.expose(), "correct horse", "readers get a digest");
        let opened = objects.open(&stored.object_ref()).await.unwrap().unwrap();
        assert_eq!((opened.username.as_str(), opened.password.as_str()), ("anna", "correct horse"));
        assert_eq!(objects.open(&ObjectRef::new("default", "gone")).await.unwrap(), None);
    }

    #[test]
    fn a_login_is_for_machines_with_a_live_task_that_is_pulled_with_it() {
        use schemas::kinds::task::{Slot, TaskSpec, TaskState, TaskStatus};
        let task = |node: &str, state| {
            let spec = TaskSpec {
                service: "web".into(),
                revision: "web-1".into(),
                slot: Slot::Number(1),
                node_name: Some(node.into()),
                desired: DesiredState::Running,
                networks: vec![],
                in_place_of: None,
            };
            let mut task = Task::new(format!("web-{node}"), spec);
            task.metadata.namespace = "default".into();
            task.status = Some(TaskStatus { state, ..TaskStatus::default() });
            task
        };
        let declared = Declarations::new().kind::<RegistryLogin>().kind::<Revision>().kind::<Task>();
        let known = Snapshot::empty(&declared.index::<AtRegistry>().index::<OnNode>())
            .with(login("a", "default", "registry.example.com"))
            .with(login("b", "default", "registry.example.com"))
            .with(login("a", "other", "registry.example.com"))
            .with((*revision("default", "registry.example.com/app:1")).clone())
            .with(task("n1", TaskState::Preparing))
            .with(task("n2", TaskState::Failed));
        let pulls = |node, namespace, name| pulls_with(&known, node, &ObjectRef::new(namespace, name));
        assert!(pulls("n1", "default", "a"));
        assert!(!pulls("n1", "default", "b"), "another is taken for it");
        assert!(!pulls("n1", "other", "a") && !pulls("n1", "default", "none"));
        assert!(!pulls("n2", "default", "a"), "it has ended");
        assert!(!pulls("n3", "default", "a"), "it has none");
    }
}
