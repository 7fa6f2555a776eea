//! Who may do what at the API. What is not said here is refused.
//!
//! Decided anew for each request, by the objects as they are at that moment: who was removed, or lost a role, is refused
//! with its next request, on whatever connection.

use std::sync::Arc;

use reconciler::api::Kind;
use reconciler::cache::{Cache, Snapshot};
use reconciler::seams::Seams;
use reconciler::server::{Access, Ask, Peer};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::grant::{Grant, GrantSpec, Subject, SubjectKind};
use schemas::kinds::node::{Node, Role};
use schemas::kinds::task::Task;
use schemas::kinds::{Cluster, Endpoints, Event, Network, RegistryLogin, Revision, Service, User, Volume};
use serde_json::Value;

/// The rights of machines and people; the administrators of this machine may do everything.
#[derive(Clone)]
pub struct Rights {
    cache: Cache,
    seams: Seams,
}

impl Rights {
    /// `cache` keeps Nodes, Tasks, Revisions, Users and Grants.
    pub fn new(cache: Cache, seams: &Seams) -> Self {
        Self { cache, seams: seams.clone() }
    }

    /// By which time passes for who asks again.
    pub fn seams(&self) -> &Seams {
        &self.seams
    }

    /// Whether a peer may do what no object's verb stands for: images, copies, credentials of people.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn is_administrator(&self, peer: &Peer) -> Result<(), String> {
        if peer.trusted {
            return Ok(());
        }
        let known = self.known()?;
        let user = user(peer, &known)?;
        match grants(user, &known).any(is_everything) {
            true => Ok(()),
            false => Err(format!("{} is no administrator of the cluster", peer.identity)),
        }
    }

    /// Whether a writer may have an object take of machines what containers do not get. Controllers pass on what others were
    /// let, and machines write no such thing.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn may_take(&self, writer: &str, kind: &Kind, current: Option<&Value>, desired: &Value) -> Result<(), String> {
        let Some(name) = writer.strip_prefix("user:") else { return Ok(()) };
        let Some((at, taken)) = schemas::host::taken_anew(kind, current, desired) else { return Ok(()) };
        let known = self.known()?;
        let namespace = desired["metadata"]["namespace"].as_str().unwrap_or_default();
        match known.get::<User>(&ObjectRef::cluster(name)) {
            Some(user) if may_take(user, kind, namespace, &known) => Ok(()),
            _ => Err(format!("{at} takes {} of machines, and {AS_ROOT}", taken.join(", "))),
        }
    }

    fn known(&self) -> Result<Snapshot, String> {
        self.cache.snapshot().ok_or_else(|| "this manager has only begun and knows nobody yet; try again".to_owned())
    }
}

impl Access for Rights {
    fn allow(&self, peer: &Peer, ask: &Ask<'_>) -> Result<(), String> {
        if peer.trusted {
            return Ok(());
        }
        allowed(peer, ask, &self.known()?)
    }

    /// Who has not joined yet, or no longer has a valid certificate, is told nothing.
    fn allow_around(&self, peer: &Peer) -> Result<(), String> {
        match peer.trusted || peer.identity.starts_with("node:") {
            true => Ok(()),
            false => user(peer, &self.known()?).map(drop),
        }
    }
}

/// The machine that asks.
///
/// # Errors
/// Why it is none, for people.
pub(super) fn member<'a>(peer: &Peer, known: &'a Snapshot) -> Result<&'a Arc<Node>, String> {
    let name = peer.identity.strip_prefix("node:").ok_or("only members of the cluster may")?;
    let node = known.get::<Node>(&ObjectRef::cluster(name));
    let node = node.filter(|node| node.metadata.uid.as_str() == &*peer.uid);
    node.ok_or_else(|| format!("{name} is not, or no longer, a machine of the cluster"))
}

/// The person or program that asks.
fn user<'a>(peer: &Peer, known: &'a Snapshot) -> Result<&'a Arc<User>, String> {
    let name = peer.identity.strip_prefix("user:").ok_or("only members of the cluster may")?;
    let user = known.get::<User>(&ObjectRef::cluster(name)).filter(|user| !user.is_deleting());
    let user = user.filter(|user| user.metadata.uid.as_str() == &*peer.uid);
    user.ok_or_else(|| format!("{name} is not, or no longer, a user of the cluster"))
}

fn grants<'a>(user: &'a User, known: &'a Snapshot) -> impl Iterator<Item = &'a GrantSpec> {
    let meant = |subject: &Subject| match subject.kind {
        SubjectKind::User => subject.name == user.metadata.name,
        SubjectKind::Group => user.spec.groups.contains(&subject.name),
    };
    // Those of one who had the name before are about to go.
    let anothers = |grant: &Grant| {
        let owners = grant.metadata.owner_references.iter().filter(|owner| owner.kind == User::kind().kind);
        owners.into_iter().any(|owner| owner.uid != user.metadata.uid)
    };
    let live = known.all::<Grant>().filter(move |grant| !grant.is_deleting() && !anothers(grant));
    live.map(|grant| &grant.spec).filter(move |grant| grant.subjects.iter().any(meant))
}

fn is_everything(grant: &GrantSpec) -> bool {
    grant.namespace.is_none() && all(&grant.verbs) && all(&grant.kinds)
}

/// Whether a user may have objects of a kind in a namespace take of machines what containers do not get.
fn may_take(user: &User, kind: &Kind, namespace: &str, known: &Snapshot) -> bool {
    grants(user, known).any(|grant| {
        let there = grant.namespace.as_deref().is_none_or(|of| of == namespace);
        let kind = all(&grant.kinds) || grant.kinds.iter().any(|of| *of == *kind.plural || *of == kind.qualified());
        is_everything(grant) || there && kind && grant.verbs.iter().any(|verb| verb == "host")
    })
}

const AS_ROOT: &str = "who decides what runs with that is as good as root there, which takes a grant of the verb host";

/// Whether somebody may run commands in a task: with what it takes of its machine they are as good as root there.
fn may_enter(user: &User, task: &ObjectRef, known: &Snapshot) -> Result<(), String> {
    if may_take(user, Service::kind(), &task.namespace, known) {
        return Ok(());
    }
    let revision = known.get::<Task>(task).map(|found| ObjectRef::new(&*task.namespace, &*found.spec.revision));
    let revision = revision.and_then(|revision| known.get::<Revision>(&revision));
    // One that was made a moment ago may be in the store, and not here yet.
    let Some(template) = revision.and_then(|revision| revision.spec.content.template()) else {
        return Err("what it runs is not known here; try again".to_owned());
    };
    let template = serde_json::to_value(template).map_err(|error| error.to_string())?;
    match &schemas::host::taken(&template)[..] {
        [] => Ok(()),
        taken => Err(format!("it has {} of its machine, and {AS_ROOT}", taken.join(", "))),
    }
}

fn all(words: &[String]) -> bool {
    words.iter().any(|word| word == "*")
}

fn granted(grant: &GrantSpec, ask: &Ask<'_>) -> bool {
    let says = |words: &[String], meant: &str| words.iter().any(|word| word == meant);
    // What controllers say of an object is theirs to say.
    let part = if ask.subresource == "status" && ask.verb != "get" { "/status" } else { "" };
    let kind = all(&grant.kinds)
        || says(&grant.kinds, &format!("{}{part}", ask.kind.qualified()))
        || ask.kind.group == schemas::kinds::GROUP && says(&grant.kinds, &format!("{}{part}", ask.kind.plural));
    let there = grant.namespace.as_ref().is_none_or(|namespace| *namespace == ask.reference.namespace);
    kind && there && (all(&grant.verbs) || says(&grant.verbs, ask.verb))
}

fn allowed(peer: &Peer, ask: &Ask<'_>, known: &Snapshot) -> Result<(), String> {
    if peer.identity.starts_with("user:") {
        let user = user(peer, known)?;
        return match grants(user, known).any(|grant| granted(grant, ask)) {
            true if ask.verb == "exec" && ask.kind == Task::kind() => may_enter(user, ask.reference, known),
            true => Ok(()),
            false => Err("no grant says so (applyctl get grants)".to_owned()),
        };
    }
    let node = member(peer, known)?;
    let name = node.name();
    if node.spec.role == Role::Manager || worker_may(name, ask, known) {
        return Ok(());
    }
    Err(format!("{name} is a worker, which may not"))
}

/// The kinds whose objects tell a worker what concerns it.
fn is_read(kind: &Kind) -> bool {
    let kinds = [
        Cluster::kind(),
        Node::kind(),
        Task::kind(),
        Revision::kind(),
        Service::kind(),
        Volume::kind(),
        Endpoints::kind(),
        Network::kind(),
        // What is secret in it leaves as a digest.
        RegistryLogin::kind(),
    ];
    kinds.contains(&kind)
}

/// As the design says: a worker reads what concerns it, writes the status of its Node, Tasks and Volumes, takes its own
/// finalizer off, and makes Events.
fn worker_may(name: &str, ask: &Ask<'_>, known: &Snapshot) -> bool {
    let is = |kind: &Kind| ask.kind == kind;
    match ask.verb {
        "get" | "list" | "watch" => is_read(ask.kind) && ask.subresource != "log",
        "create" => is(Event::kind()),
        "update" | "patch" if is(Event::kind()) => true,
        "update" | "patch" if is(Node::kind()) => ask.subresource == "status" && ask.reference.name == name,
        "update" | "patch" if is(Task::kind()) => {
            let task: Option<&Arc<Task>> = known.get(ask.reference);
            task.is_some_and(|task| task.spec.node_name.as_deref() == Some(name))
        }
        "update" | "patch" if is(Volume::kind()) => {
            let volume: Option<&Arc<Volume>> = known.get(ask.reference);
            volume.is_some_and(|volume| volume.spec.node.as_deref() == Some(name))
        }
        _ => false,
    }
}

impl std::fmt::Debug for Rights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rights")
    }
}

#[cfg(test)]
mod tests {
    use reconciler::cache::Declarations;
    use schemas::kinds::node::NodeSpec;
    use schemas::kinds::task::{Slot, TaskSpec};

    use super::*;

    /// n1 manages, n2 works and has the task `own`; `other` is n3's.
    fn known() -> Snapshot {
        let declared = Declarations::new()
            .kind::<Node>()
            .kind::<Task>()
            .kind::<Revision>()
            .kind::<Volume>()
            .kind::<User>()
            .kind::<Grant>();
        let mut snapshot = Snapshot::empty(&declared);
        for (name, role) in [("n1", Role::Manager), ("n2", Role::Worker), ("n3", Role::Worker)] {
            let mut node = Node::new(name, NodeSpec { role, ..NodeSpec::default() });
            node.metadata.uid = reconciler::api::Uid::new(format!("uid-{name}"));
            snapshot = snapshot.with(node);
        }
        for (name, node) in [("own", "n2"), ("other", "n3")] {
            let spec = TaskSpec {
                service: "web".into(),
                revision: "web-r".into(),
                slot: Slot::Number(1),
                node_name: Some(node.into()),
                desired: Default::default(),
                networks: vec![],
                in_place_of: None,
            };
            let mut task = Task::new(name, spec);
            task.metadata.namespace = "default".into();
            snapshot = snapshot.with(task);
        }
        snapshot
    }

    fn peer(node: &str, uid: &str) -> Peer {
        Peer::new(format!("node:{node}")).of(uid)
    }

    fn may(node: &str, verb: &str, kind: &Kind, name: &str, subresource: &str) -> bool {
        let reference = match kind.scope {
            reconciler::api::Scope::Cluster => ObjectRef::cluster(name),
            reconciler::api::Scope::Namespaced => ObjectRef::new("default", name),
        };
        let ask = Ask { verb, kind, reference: &reference, subresource };
        allowed(&peer(node, &format!("uid-{node}")), &ask, &known()).is_ok()
    }

    #[test]
    fn a_worker_reads_what_concerns_tasks_and_writes_what_is_its_own() {
        use schemas::kinds::{Bundle, Grant, JoinToken, Lease, Secret, User};
        for kind in schemas::kinds::ALL.iter().map(|registered| (registered.kind)()) {
            let hidden =
                [Secret::kind(), JoinToken::kind(), User::kind(), Grant::kind(), Lease::kind(), Bundle::kind()];
            if hidden.contains(&kind) {
                assert!(!may("n2", "list", kind, "", ""), "{}", kind.kind);
            }
            for verb in ["create", "delete"] {
                assert_eq!(
                    may("n2", verb, kind, "x", ""),
                    verb == "create" && kind == Event::kind(),
                    "{verb} {}",
                    kind.kind
                );
            }
            assert!(may("n1", "delete", kind, "x", ""), "a manager: {}", kind.kind);
        }
        assert!(may("n2", "get", Task::kind(), "own", "") && !may("n2", "get", Task::kind(), "own", "log"));
        assert!(!may("n2", "exec", Task::kind(), "own", "exec"));
        assert!(may("n2", "patch", Node::kind(), "n2", "status"));
        assert!(!may("n2", "patch", Node::kind(), "n2", "") && !may("n2", "patch", Node::kind(), "n3", "status"));
        assert!(may("n2", "patch", Task::kind(), "own", "status"));
        assert!(!may("n2", "patch", Task::kind(), "other", "status"));
        assert!(
            !may("n2", "patch", Service::kind(), "web", "") && !may("n2", "update", Cluster::kind(), "cluster", "")
        );
    }

    fn person(name: &str, groups: &[&str]) -> User {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        let mut user = User::new(name, schemas::kinds::user::UserSpec { groups, ..Default::default() });
        user.metadata.uid = reconciler::api::Uid::new(format!("uid-{name}"));
        user
    }

    fn grant(name: &str, subject: Subject, verbs: &[&str], kinds: &[&str], namespace: Option<&str>) -> Grant {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let (verbs, kinds) = (words(verbs), words(kinds));
        let namespace = namespace.map(str::to_owned);
        Grant::new(name, GrantSpec { subjects: vec![subject], verbs, kinds, namespace })
    }

    #[test]
    fn people_may_what_grants_say_cell_by_cell_and_nothing_else() {
        let of = |kind, name: &str| Subject { kind, name: name.into() };
        let known = known()
            .with(person("ann", &[]))
            .with(person("bob", &["ops"]))
            .with(person("eve", &[]))
            .with(grant("ann", of(SubjectKind::User, "ann"), &["*"], &["*"], None))
            .with(grant("bob", of(SubjectKind::Group, "ops"), &["get", "update"], &["services"], Some("shop")));
        let verbs = ["get", "list", "watch", "create", "update", "patch", "delete", "exec"];
        for kind in schemas::kinds::ALL.iter().map(|registered| (registered.kind)()) {
            for verb in verbs {
                for (namespace, subresource) in [("shop", ""), ("shop", "status"), ("default", ""), ("", "")] {
                    let reference = ObjectRef::new(namespace, "x");
                    let ask = Ask { verb, kind, reference: &reference, subresource };
                    let may = |name: &str, uid: &str| {
                        allowed(&Peer::new(format!("user:{name}")).of(uid), &ask, &known).is_ok()
                    };
                    let case = format!("{verb} {}/{subresource} in {namespace:?}", kind.kind);
                    assert!(may("ann", "uid-ann"), "{case}");
                    let bobs = kind == Service::kind()
                        && namespace == "shop"
                        && (verb == "get" || verb == "update" && subresource.is_empty());
                    assert_eq!(may("bob", "uid-bob"), bobs, "{case}");
                    assert!(!may("eve", "uid-eve"), "{case}: nobody granted her anything");
                    assert!(
                        !may("ann", "uid-before") && !may("dan", "uid-dan"),
                        "{case}: not the one that was granted"
                    );
                }
            }
        }
    }

    #[test]
    fn folders_of_machines_are_for_who_was_granted_them_by_name() {
        use schemas::kinds::revision::{RevisionContent, RevisionSpec};
        use schemas::kinds::template::{Mount, MountType, TaskTemplate};
        let of = |name: &str| Subject { kind: SubjectKind::User, name: name.into() };
        let mut template = TaskTemplate::default();
        template.container.mounts = vec![Mount { kind: MountType::Bind, ..Mount::default() }];
        let mut known = known();
        for (name, template) in [("web-r", template.clone()), ("plain-r", TaskTemplate::default())] {
            let content = RevisionContent::Template(Box::new(template));
            let mut revision = Revision::new(name, RevisionSpec { owner: "web".into(), content, files: vec![] });
            revision.metadata.namespace = "default".into();
            known = known.with(revision);
        }
        let mut plain = (**known.get::<Task>(&ObjectRef::new("default", "own")).unwrap()).clone();
        (plain.metadata.name, plain.spec.revision) = ("plain".into(), "plain-r".into());
        let people = [
            ("root", &["*"][..], &["*"][..], None, true),
            ("editor", &["*"], &["services", "bundles", "tasks"], None, false),
            ("owner", &["*"], &["*"], Some("default"), false),
            ("trusted", &["*", "host"], &["services", "tasks"], Some("default"), true),
            ("elsewhere", &["*", "host"], &["*"], Some("shop"), false),
        ];
        let known = known.with(plain);
        let known = people.iter().fold(known, |known, (name, verbs, kinds, namespace, _)| {
            known.with(person(name, &[])).with(grant(name, of(name), verbs, kinds, *namespace))
        });
        for (name, .., may) in people {
            let user = known.get::<User>(&ObjectRef::cluster(name)).unwrap();
            assert_eq!(may_take(user, Service::kind(), "default", &known), may, "{name}");
            let enters = |task: &str| {
                let reference = ObjectRef::new("default", task);
                let ask = Ask { verb: "exec", kind: Task::kind(), reference: &reference, subresource: "exec" };
                allowed(&Peer::new(format!("user:{name}")).of(format!("uid-{name}")), &ask, &known)
            };
            let in_namespace = name != "elsewhere";
            assert_eq!((enters("own").is_ok(), enters("plain").is_ok()), (may, in_namespace), "{name}");
            assert_eq!(enters("unknown").is_ok(), may, "{name}: it may be one that takes everything");
            if in_namespace && !may {
                assert!(enters("own").unwrap_err().contains("grant of the verb host"), "{name}");
            }
        }
    }

    fn foreign(plural: &str, group: &str) -> Kind {
        Kind {
            group: group.to_owned().into(),
            version: "v1".into(),
            kind: "Widget".into(),
            plural: plural.to_owned().into(),
            singular: "widget".into(),
            short_names: vec![],
            scope: reconciler::api::Scope::Namespaced,
            managed_fields: true,
            sensitive: vec![],
            columns: vec![],
        }
    }

    #[test]
    fn a_controller_may_what_it_was_granted_cell_by_cell_and_nothing_else() {
        use crate::applyctl::controller::{Need, Needs};
        use reconciler::api::Scope;
        use schemas::kinds::Lease;
        let need = |name: &str, scope| Need { name: name.into(), scope: Some(scope), is_ours: false };
        let needs = Needs {
            own: vec![need("widgets.example.com", Scope::Namespaced)],
            written: vec![need("networks", Scope::Namespaced)],
            read: vec![need("services", Scope::Namespaced), need("nodes", Scope::Cluster)],
        };
        let granted = needs.grants("w", Some("shop"));
        let known = granted.into_iter().fold(known().with(person("w", &[])), |known, grant| known.with(grant));
        let own = foreign("widgets", "example.com");
        let others = [foreign("gadgets", "example.com"), foreign("widgets", "example.org"), foreign("services", "a.b")];
        let all = schemas::kinds::ALL.iter().map(|registered| (registered.kind)());
        for kind in all.chain([&own]).chain(&others) {
            for verb in ["get", "list", "watch", "create", "update", "patch", "delete", "exec"] {
                for namespace in ["shop", "default", "controller-w", ""] {
                    for subresource in ["", "status", "scale"] {
                        let reference = ObjectRef::new(namespace, "x");
                        let ask = Ask { verb, kind, reference: &reference, subresource };
                        let reads = ["get", "list", "watch"].contains(&verb);
                        // A status is looked at as its object is, and written by who was granted that.
                        let main = subresource != "status" || verb == "get";
                        let notes = ["get", "create", "patch"].contains(&verb) && main;
                        let may = match namespace {
                            "shop" if kind == &own => verb != "exec",
                            "shop" if kind == Network::kind() => verb != "exec" && main,
                            "shop" if kind == Service::kind() => reads && main,
                            "shop" if kind == Event::kind() => notes,
                            "controller-w" if kind == Lease::kind() => notes,
                            _ => kind == Node::kind() && reads && main,
                        };
                        let allowed = allowed(&Peer::new("user:w").of("uid-w"), &ask, &known).is_ok();
                        assert_eq!(allowed, may, "{verb} {}/{subresource} in {namespace:?}", kind.qualified());
                    }
                }
            }
        }
    }

    #[test]
    fn what_was_granted_to_one_of_before_is_not_their_successors() {
        let subject = Subject { kind: SubjectKind::User, name: "ann".into() };
        let mut before = grant("ann.admin", subject, &["*"], &["*"], None);
        let owner = reconciler::controller::Subject::of(&person("ann", &[])).owner_reference();
        before.metadata.owner_references = vec![owner];
        let mut successor = person("ann", &[]);
        successor.metadata.uid = reconciler::api::Uid::new("uid-next");
        let known = known().with(before).with(successor);
        let ask = Ask { verb: "list", kind: Node::kind(), reference: &ObjectRef::cluster(""), subresource: "" };
        assert!(allowed(&Peer::new("user:ann").of("uid-next"), &ask, &known).is_err());
    }

    #[test]
    fn who_was_removed_or_is_somebody_elses_successor_may_nothing() {
        let ask = Ask { verb: "list", kind: Node::kind(), reference: &ObjectRef::cluster(""), subresource: "" };
        assert!(allowed(&peer("n2", "uid-n2"), &ask, &known()).is_ok());
        assert!(allowed(&peer("n2", "uid-of-before"), &ask, &known()).is_err());
        assert!(allowed(&peer("n9", "uid-n9"), &ask, &known()).is_err());
    }
}
