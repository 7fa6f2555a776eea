//! `controller`: controllers of other authors, each a User of its own with no more rights than its work takes.
//!
//! All of its own kinds, with their status; what it makes and reads beside them; Events; and the Lease by which one of several
//! copies acts, in a namespace of the controller's own, so that no other controller's is in reach.

use reconciler::api::{Kind, Scope};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::grant::{Grant, GrantSpec, Subject, SubjectKind};
use schemas::kinds::user::{User, UserSpec};
use schemas::kinds::{Event, GROUP, Lease};
use schemas::names;

use super::args::{Controller as Command, ControllerGrant, Rm};
use super::failure::{Exit, Failure};
use super::session::Session;
use super::table::Table;
use super::{delete, find, user};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["get", "list", "watch", "create", "update", "patch", "delete"];
/// One that was written before is counted up.
const NOTE: &[&str] = &["get", "create", "patch"];
const LEAD: &[&str] = &["get", "create", "patch"];
/// What the User of a controller is known by.
const LABEL: &str = "apply/controller";

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Grant(grant) => self::grant(session, grant).await,
        Command::Ls => list(session).await,
        Command::Revoke(rm) => revoke(session, rm).await,
    }
}

async fn grant(session: &mut Session, grant: &ControllerGrant) -> Result<(), Failure> {
    let namespace = session.said_namespace.clone();
    if let Some(message) = names::label_fault(&lease_namespace(&grant.name)) {
        return Err(Failure::new(Exit::Refused, format!("the namespace of its Lease would be no name: {message}")));
    }
    let mut needs = Needs::default();
    for word in &grant.kinds {
        let need = need(session, word).await?;
        if need.is_ours {
            let failure =
                Failure::new(Exit::Refused, format!("{} are apply's own, with controllers of apply's", need.name));
            return Err(failure.advise("say what it looks at with --read, and what it makes with --write"));
        }
        if namespace.is_some() && need.scope == Some(Scope::Cluster) {
            let failure = Failure::new(Exit::Usage, format!("{} have no namespace", need.name));
            return Err(failure.advise("leave --namespace out"));
        }
        needs.own.push(need);
    }
    for (words, needs) in [(&grant.write, &mut needs.written), (&grant.read, &mut needs.read)] {
        for word in words {
            needs.push(need(session, word).await?);
        }
    }
    let missing: Vec<String> =
        needs.own.iter().filter(|need| need.scope.is_none()).map(|need| need.name.clone()).collect();
    let mut user = User::new(&grant.name, UserSpec { title: "controller".into(), ..UserSpec::default() });
    user.metadata.labels.insert(LABEL.into(), "yes".into());
    let grants = needs.grants(&grant.name, namespace.as_deref());
    let shown = user::let_in(session, &user, grants, &grant.file).await?;
    if !missing.is_empty() {
        let missing = missing.join(", ");
        session
            .screen
            .say(&format!("{missing}: not served yet; it may as soon as it is (applyctl apply -f DEFINITION)"))?;
    }
    if let Some(shown) = shown {
        session.screen.say(&format!("  in its program:   Cluster::open(\"{shown}\", &seams)"))?;
    }
    Ok(())
}

/// A kind that a controller has to do with.
pub(crate) struct Need {
    /// As Grants name it.
    pub name: String,
    /// Absent where the cluster does not serve it yet.
    pub scope: Option<Scope>,
    pub is_ours: bool,
}

async fn need(session: &Session, word: &str) -> Result<Need, Failure> {
    let of = |kind: &Kind| Need {
        name: if kind.group == GROUP { kind.plural.to_string() } else { kind.qualified() },
        scope: Some(kind.scope),
        is_ours: kind.group == GROUP,
    };
    match find::any_kind(session, word).await {
        Ok(kind) => Ok(of(&kind)),
        // A whole name may be granted before there is anything of it.
        Err(failure)
            if failure.exit == Exit::NotFound && word.contains('.') && names::object_name_fault(word).is_none() =>
        {
            Ok(Need { name: word.to_owned(), scope: None, is_ours: false })
        }
        Err(failure) => Err(failure),
    }
}

/// All kinds that a controller has to do with.
#[derive(Default)]
pub(crate) struct Needs {
    pub own: Vec<Need>,
    pub written: Vec<Need>,
    pub read: Vec<Need>,
}

impl Needs {
    /// What it may, and nothing else.
    pub fn grants(&self, name: &str, namespace: Option<&str>) -> Vec<Grant> {
        let grant = |what: &str, verbs: &[&str], kinds: Vec<String>, namespace: Option<&str>| {
            let subjects = vec![Subject { kind: SubjectKind::User, name: name.to_owned() }];
            let verbs = verbs.iter().map(|verb| (*verb).to_owned()).collect();
            let namespace = namespace.map(str::to_owned);
            Grant::new(format!("{name}.{what}"), GrantSpec { subjects, verbs, kinds, namespace })
        };
        let own = self.own.iter().flat_map(|need| [need.name.clone(), format!("{}/status", need.name)]).collect();
        let mut grants = vec![
            grant("kinds", WRITE, own, namespace),
            grant("events", NOTE, vec![Event::kind().plural.to_string()], namespace),
            grant("lease", LEAD, vec![Lease::kind().plural.to_string()], Some(&lease_namespace(name))),
        ];
        for (what, verbs, needs) in [("write", WRITE, &self.written), ("read", READ, &self.read)] {
            // What has no namespace is granted without one.
            for (suffix, cluster, namespace) in [("", false, namespace), ("-around", true, None)] {
                let of_scope = needs.iter().filter(|need| (need.scope == Some(Scope::Cluster)) == cluster);
                let kinds: Vec<String> = of_scope.map(|need| need.name.clone()).collect();
                if !kinds.is_empty() {
                    grants.push(grant(&format!("{what}{suffix}"), verbs, kinds, namespace));
                }
            }
        }
        grants
    }
}

/// As `client` has it: `Cluster::lease`.
fn lease_namespace(name: &str) -> String {
    format!("controller-{name}")
}

fn is_controller(user: &User) -> bool {
    user.metadata.labels.contains_key(LABEL)
}

async fn list(session: &mut Session) -> Result<(), Failure> {
    let users = session.client.list::<User>(None).await?;
    let grants = session.client.list::<Grant>(None).await?;
    let mut table = Table::new(["NAME", "KINDS", "WRITES", "READS", "NAMESPACE"]);
    for user in users.iter().filter(|user| is_controller(user)) {
        let of = |what: &str| {
            let named = |suffix: &str| format!("{}.{what}{suffix}", user.name());
            let those = grants.iter().filter(|grant| [named(""), named("-around")].contains(&grant.metadata.name));
            let kinds = those.flat_map(|grant| &grant.spec.kinds).filter(|kind| !kind.ends_with("/status"));
            kinds.cloned().collect::<Vec<_>>().join(",")
        };
        let own = grants.iter().find(|grant| grant.metadata.name == format!("{}.kinds", user.name()));
        let namespace = own.and_then(|grant| grant.spec.namespace.clone());
        table.row(vec![
            user.name().into(),
            of("kinds").into(),
            of("write").into(),
            of("read").into(),
            namespace.unwrap_or_else(|| "all".to_owned()).into(),
        ]);
    }
    if table.is_empty() {
        return Ok(session.screen.say("there are no controllers of other authors")?);
    }
    let text = table.print(session.screen.look());
    Ok(session.screen.data(&text)?)
}

async fn revoke(session: &mut Session, rm: &Rm) -> Result<(), Failure> {
    for name in &rm.names {
        let found = session.client.find::<User>(&ObjectRef::cluster(name)).await?;
        if found.is_some_and(|user| !is_controller(&user)) {
            let failure = Failure::new(Exit::Refused, format!("{name} is no controller"));
            return Err(failure.advise(format!("applyctl user rm {name}")));
        }
    }
    delete::rm(session, "user", rm).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_granted_its_kinds_and_what_it_names() {
        let need = |name: &str, scope| Need { name: name.into(), scope, is_ours: false };
        let needs = Needs {
            own: vec![need("widgets.example.com", None)],
            written: vec![],
            read: vec![need("services", Some(Scope::Namespaced)), need("nodes", Some(Scope::Cluster))],
        };
        let said: Vec<String> = needs
            .grants("w", Some("shop"))
            .into_iter()
            .map(|grant| {
                super::super::service::check(&grant).unwrap();
                let namespace = grant.spec.namespace.unwrap_or_default();
                format!("{} {} {} {namespace}", grant.metadata.name, grant.spec.verbs.len(), grant.spec.kinds.join(","))
            })
            .collect();
        assert_eq!(
            said,
            [
                "w.kinds 7 widgets.example.com,widgets.example.com/status shop",
                "w.events 3 events shop",
                "w.lease 3 leases controller-w",
                "w.read 3 services shop",
                "w.read-around 3 nodes ",
            ]
        );
    }
}
