//! `user`: people and programs that the cluster knows, what they may do, and their credentials.
//!
//! A role is a few Grants of the user's own, which go with it. Who needs other rights writes a Grant.

use std::path::PathBuf;

use bytes::Bytes;
use controllers::identity::Request;
use hyper::Method;
use reconciler::objects::{Error, Propagation, Write};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::grant::{Grant, GrantSpec, Subject, SubjectKind};
use schemas::kinds::user::{User, UserSpec};

use super::args::{CredentialsFile, User as Command, UserCreate, UserCredentials, UserRole};
use super::failure::{Exit, Failure};
use super::kubeconfig::Kubeconfig;
use super::session::Session;
use super::words::rough;
use super::{delete, get, service};
use crate::daemon::people;
use crate::tls::Credentials;

const READ: &[&str] = &["get", "list", "watch"];
const ALL: &[&str] = &["*"];
/// What applications are made of.
const APPLICATIONS: &[&str] = &["bundles", "services", "networks", "secrets", "configs", "registrylogins", "volumes"];
/// What becomes of them.
const RESULTS: &[&str] = &["tasks", "revisions", "endpoints", "events"];
/// What everybody has to know to find anything.
const AROUND: &[&str] = &["nodes", "clusters", "namespaces"];

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Create(create) => self::create(session, create).await,
        Command::Credentials(credentials) => renew(session, credentials).await,
        Command::Ls(ls) => get::list(session, "user", &ls.which).await,
        Command::Rm(rm) => delete::rm(session, "user", rm).await,
    }
}

/// The Grants of a role, in one namespace or in all.
fn grants(user: &str, role: UserRole, namespace: Option<&str>) -> Vec<Grant> {
    let grant = |what: &str, verbs: &[&str], kinds, namespace| granted(user, what, verbs, kinds, namespace);
    let around = grant("around", READ, words(AROUND), None);
    match role {
        UserRole::Admin if namespace.is_none() => vec![grant("admin", ALL, words(ALL), None)],
        UserRole::Admin => vec![grant("admin", ALL, words(ALL), namespace), around],
        UserRole::Edit => vec![
            grant("edit", ALL, words(APPLICATIONS), namespace),
            grant("tasks", &["delete", "exec"], words(&["tasks"]), namespace),
            grant("view", READ, words(RESULTS), namespace),
            around,
        ],
        UserRole::View => vec![grant("view", READ, words(&[APPLICATIONS, RESULTS].concat()), namespace), around],
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn granted(user: &str, what: &str, verbs: &[&str], kinds: Vec<String>, namespace: Option<&str>) -> Grant {
    let subjects = vec![Subject { kind: SubjectKind::User, name: user.to_owned() }];
    let namespace = namespace.map(str::to_owned);
    Grant::new(format!("{user}.{what}"), GrantSpec { subjects, verbs: words(verbs), kinds, namespace })
}

async fn create(session: &mut Session, create: &UserCreate) -> Result<(), Failure> {
    let user = User::new(&create.name, UserSpec::default());
    let namespace = session.said_namespace.as_deref();
    let mut grants = grants(&create.name, create.role, namespace);
    grants.extend(
        create
            .host_access
            .then(|| granted(&create.name, "host", &["host"], words(&["services", "bundles"]), namespace)),
    );
    let path = let_in(session, &user, grants, &create.file).await?;
    let Some(shown) = path else { return Ok(()) };
    Ok(session.screen.say(&format!(
        "  on another machine:   applyctl context add {shown}     or   kubectl --kubeconfig {shown} get services.apply"
    ))?)
}

/// Makes a user with these grants, which go with it, and its credentials; answers with where they are, if that is a file.
pub(super) async fn let_in(
    session: &mut Session,
    user: &User,
    grants: Vec<Grant>,
    file: &CredentialsFile,
) -> Result<Option<String>, Failure> {
    let name = user.name();
    let path = path(name, file)?;
    service::check(user)?;
    let made = match session.client.create(user).await {
        Ok(made) => made,
        Err(error @ Error::AlreadyExists { .. }) => {
            let advice = format!("new credentials: applyctl user credentials {name}");
            return Err(Failure::from(error).advise(advice));
        }
        Err(error) => return Err(error.into()),
    };
    let granted = async {
        let owner = reconciler::controller::Subject::of(&made).owner_reference();
        let writes = grants.into_iter().map(|mut grant| {
            grant.metadata.owner_references = vec![owner.clone()];
            Write::create(&grant)
        });
        session.client.commit(writes.collect()).await?;
        credentials(session, name, file, &path).await
    };
    match granted.await {
        Ok(shown) => Ok(shown),
        Err(failure) => {
            // Somebody who is known, may something, and has no credentials was not meant.
            session.client.delete(&made, Propagation::Background).await?;
            Err(failure)
        }
    }
}

async fn renew(session: &mut Session, renew: &UserCredentials) -> Result<(), Failure> {
    session.client.get::<User>(&ObjectRef::cluster(&renew.name)).await?;
    let path = path(&renew.name, &renew.file)?;
    credentials(session, &renew.name, &renew.file, &path).await.map(drop)
}

/// Looked at first: nothing is made for a file that cannot be written.
fn path(name: &str, file: &CredentialsFile) -> Result<PathBuf, Failure> {
    let path = file.file.clone().unwrap_or_else(|| format!("{name}.yaml").into());
    match path.as_os_str() != "-" && path.exists() {
        true => {
            Err(Failure::new(Exit::Usage, format!("{} is there already", path.display())).advise("name another file"))
        }
        false => Ok(path),
    }
}

/// The key is made here and stays in the file.
async fn credentials(
    session: &mut Session,
    name: &str,
    file: &CredentialsFile,
    path: &std::path::Path,
) -> Result<Option<String>, Failure> {
    let request = Request::make().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let ask = people::Ask { request: request.request, seconds: file.valid.as_secs() };
    let body = serde_json::to_vec(&ask).unwrap_or_default();
    let answered = session.remote()?.call(Method::POST, &people::path(name), Bytes::from(body)).await;
    let bytes = answered.map_err(Failure::beside_objects)?.bytes().await?;
    let answer: people::Answer = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(Exit::Failed, format!("the manager answers strangely: {error}")))?;
    if answer.addresses.is_empty() {
        let failure = Failure::new(Exit::Failed, "the manager has no address that others could reach it at");
        return Err(failure.advise("say it: applyd --advertise ADDRESS"));
    }
    let credentials = Credentials { chain: answer.certificate, key: request.key, authorities: answer.authorities };
    let servers: Vec<String> = answer.addresses.iter().map(|address| format!("https://{address}")).collect();
    let namespace = session.said_namespace.clone();
    // Nobody has called it anything.
    let cluster = if answer.cluster.is_empty() { "apply" } else { &answer.cluster };
    let config = Kubeconfig::of(cluster, name, &servers, &credentials, namespace.as_deref());
    if let Some(text) = config.write(path)? {
        session.screen.data(&text)?;
        return Ok(None);
    }
    let shown = path.display().to_string();
    session.screen.say(&format!(
        "credentials of {name}, good for {}, are in {shown}; who has that file is {name}",
        rough(file.valid)
    ))?;
    Ok(Some(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_grants_of_kinds_that_there_are() {
        for role in [UserRole::Admin, UserRole::Edit, UserRole::View] {
            for namespace in [None, Some("shop")] {
                for grant in grants("ann", role, namespace) {
                    service::check(&grant).unwrap();
                    for kind in grant.spec.kinds.iter().filter(|kind| *kind != "*") {
                        let known = schemas::kinds::find(kind).expect(kind);
                        let scoped = (known.kind)().scope == reconciler::api::Scope::Namespaced;
                        assert_eq!(scoped, grant.spec.kinds != AROUND, "{kind}");
                    }
                    let writes = grant.spec.verbs.iter().any(|verb| !READ.contains(&verb.as_str()));
                    assert!(role != UserRole::View || !writes);
                    let wide = grant.spec.namespace.is_none();
                    assert_eq!(wide, namespace.is_none() || grant.spec.kinds == AROUND, "{}", grant.metadata.name);
                }
            }
        }
    }
}
