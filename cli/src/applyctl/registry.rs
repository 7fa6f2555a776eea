//! `registry`: who you are for a registry. The password goes into a sealed object, and only nodes that pull get it.

use hyper::Method;
use reconciler::{ObjectRef, Resource};
use schemas::Sensitive;
use schemas::kinds::registry_login::{RegistryLogin, RegistryLoginSpec};
use serde_json::{Value, json};

use super::args::{Login, Logout, Registry as Command};
use super::failure::{Exit, Failure};
use super::get;
use super::session::Session;
use super::unseen;

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Login(login) => self::login(session, login).await,
        Command::Logout(logout) => self::logout(session, logout).await,
        Command::Ls(ls) => get::list(session, "registrylogin", &ls.which).await,
    }
}

/// One login for a registry and namespace: its name is made of the registry's.
fn name(registry: &str) -> String {
    let name: String =
        registry.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    name.trim_matches('-').to_owned()
}

/// `login`, and `registry login`.
pub async fn login(session: &mut Session, login: &Login) -> Result<(), Failure> {
    let question = format!("Password of {} for {}:", login.username, login.registry);
    let password = unseen::read(session, "password", &question, login.password_stdin)?;
    if !login.no_check {
        check(session, login, &password).await?;
    }
    let spec = RegistryLoginSpec {
        registry: login.registry.clone(),
        username: login.username.clone(),
        password: Sensitive::new(password),
    };
    let mut wanted = RegistryLogin::new(name(&login.registry), spec);
    wanted.metadata.namespace.clone_from(&session.namespace);
    match session.client.find::<RegistryLogin>(&wanted.object_ref()).await? {
        None => drop(session.client.create(&wanted).await?),
        Some(stored) => {
            let mut desired = stored.clone();
            desired.spec = wanted.spec.clone();
            session.client.update(&stored, &desired).await?;
        }
    }
    let line = format!("nodes pull from {} as {} in namespace {}", login.registry, login.username, session.namespace);
    Ok(session.screen.say(&line)?)
}

/// The daemon asks, as it is the one that will pull.
async fn check(session: &mut Session, login: &Login, password: &str) -> Result<(), Failure> {
    let asked = json!({"registry": login.registry, "username": login.username, "password": password});
    let body = bytes::Bytes::from(asked.to_string());
    let answer = session.remote()?.call(Method::POST, "/apis/apply/v1/logins/check", body).await;
    let answer = answer.map_err(|error| {
        let failure = Failure::beside_objects(error);
        match failure.exit {
            Exit::Failed => failure.advise("nothing was stored; --no-check stores it without asking"),
            Exit::Refused => failure.advise("nothing was stored"),
            _ => failure,
        }
    })?;
    let bytes = answer.bytes().await?;
    if serde_json::from_slice::<Value>(&bytes).is_ok_and(|answer| answer["open"] == true) {
        session.screen.say(&format!("{} lets everybody in; nobody was asked for a password", login.registry))?;
    }
    Ok(())
}

/// `logout`, and `registry logout`.
pub async fn logout(session: &mut Session, logout: &Logout) -> Result<(), Failure> {
    let registry = logout.registry.as_str();
    let reference = ObjectRef::new(&session.namespace, name(registry));
    match session.client.find::<RegistryLogin>(&reference).await? {
        Some(login) => {
            session.client.delete(&login, reconciler::objects::Propagation::Background).await?;
            Ok(session.screen.say(&format!("the login for {registry} is forgotten"))?)
        }
        None => {
            let known = session.client.list::<RegistryLogin>(Some(&session.namespace)).await?;
            let failure = Failure::new(Exit::NotFound, format!("there is no login for {registry}"));
            let names: Vec<&str> = known.iter().map(|login| login.spec.registry.as_str()).collect();
            Err(match schemas::advice::nearest(registry, names) {
                Some(near) => failure.advise(format!("did you mean {near}?")),
                None => failure.advise("see them all: applyctl registry ls"),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_has_a_name_that_any_registry_can_have() {
        assert_eq!(name("registry.example.com:5000"), "registry-example-com-5000");
        assert_eq!(name("docker.io"), "docker-io");
        assert_eq!(name("[::1]:5000"), "1--5000");
    }
}
