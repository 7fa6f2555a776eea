//! `secret` and `config`: what tasks see as files.

use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reconciler::objects::Error;
use reconciler::{ObjectRef, Resource};
use schemas::Sensitive;
use schemas::defaults::{CONFIG_BYTES_MAX, SECRET_BYTES_MAX};
use schemas::kinds::config::{Config, ConfigSpec};
use schemas::kinds::secret::{Secret, SecretSpec};
use schemas::kinds::service::Service;
use schemas::kinds::template::FileKind;

use super::args::{Config as OfConfig, DataCreate, DataUpdate, Rm, Secret as OfSecret};
use super::failure::{Exit, Failure};
use super::session::Session;
use super::{delete, describe, find, get, service};

pub async fn secret(session: &mut Session, command: &OfSecret) -> Result<(), Failure> {
    match command {
        OfSecret::Create(create) => {
            let mut spec =
                SecretSpec { data: Sensitive::new(read(&create.file, FileKind::Secret)?), ..Default::default() };
            spec.labels = service::labels(&create.label)?;
            self::create(session, create, Secret::new(create.name.clone(), spec)).await
        }
        OfSecret::Update(update) => {
            let data = Sensitive::new(read(&update.file, FileKind::Secret)?);
            self::update(session, update, FileKind::Secret, |secret: &mut Secret| secret.spec.data = data).await
        }
        OfSecret::Ls(ls) => get::list(session, "secret", &ls.which).await,
        OfSecret::Inspect(inspect) => describe::inspect(session, &find::kind("secret")?, &inspect.names).await,
        OfSecret::Rm(rm) => remove(session, FileKind::Secret, rm).await,
    }
}

pub async fn config(session: &mut Session, command: &OfConfig) -> Result<(), Failure> {
    match command {
        OfConfig::Create(create) => {
            let mut spec = ConfigSpec { data: read(&create.file, FileKind::Config)?, ..Default::default() };
            spec.labels = service::labels(&create.label)?;
            self::create(session, create, Config::new(create.name.clone(), spec)).await
        }
        OfConfig::Update(update) => {
            let data = read(&update.file, FileKind::Config)?;
            self::update(session, update, FileKind::Config, |config: &mut Config| config.spec.data = data).await
        }
        OfConfig::Ls(ls) => get::list(session, "config", &ls.which).await,
        OfConfig::Inspect(inspect) => describe::inspect(session, &find::kind("config")?, &inspect.names).await,
        OfConfig::Rm(rm) => remove(session, FileKind::Config, rm).await,
    }
}

/// The data of a file or of the standard input, as an object has it.
fn read(path: &Path, kind: FileKind) -> Result<String, Failure> {
    let most = match kind {
        FileKind::Secret => SECRET_BYTES_MAX.value,
        FileKind::Config => CONFIG_BYTES_MAX.value,
    };
    let unread = |error| Failure::new(Exit::Failed, format!("cannot read {}: {error}", path.display()));
    let source: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(std::fs::File::open(path).map_err(unread)?),
    };
    let mut data = Vec::new();
    source.take(most as u64 + 1).read_to_end(&mut data).map_err(unread)?;
    let (word, refused) = (kind.words().0, |why: String| Failure::new(Exit::Refused, why));
    match data.len() {
        0 => Err(refused(format!("{} is empty, and a {word} is not", path.display()))),
        length if length > most => {
            Err(refused(format!("{} has more than the {most} bytes of a {word}", path.display())))
        }
        _ => Ok(STANDARD.encode(data)),
    }
}

async fn create<R: Resource>(session: &mut Session, create: &DataCreate, mut object: R) -> Result<(), Failure> {
    object.meta_mut().namespace.clone_from(&session.namespace);
    service::check(&object)?;
    let word = &R::kind().singular;
    match session.client.create(&object).await {
        Ok(_) => Ok(session.screen.say(&format!("{word}/{} created", create.name))?),
        Err(error @ Error::AlreadyExists { .. }) => {
            let advice =
                format!("give it other data: applyctl {word} update {} {}", create.name, create.file.display());
            Err(Failure::from(error).advise(advice))
        }
        Err(error) => Err(error.into()),
    }
}

async fn update<R: Resource>(
    session: &mut Session,
    update: &DataUpdate,
    kind: FileKind,
    change: impl FnOnce(&mut R),
) -> Result<(), Failure> {
    let (word, name) = (kind.words().0, &update.name);
    let stored: R = find::exact(session, &find::kind(word)?, name).await?.decode()?;
    let mut desired = stored.clone();
    change(&mut desired);
    service::check(&desired)?;
    let written = session.client.update(&stored, &desired).await?;
    if written.meta().resource_version == stored.meta().resource_version {
        return Ok(session.screen.say(&format!("{word}/{name} has this data already; nothing was changed"))?);
    }
    let users = users(session, kind, name).await?;
    let what = if users.is_empty() { "no service sees it".to_owned() } else { format!("updates {}", users.join(", ")) };
    Ok(session.screen.say(&format!("{word}/{name} has other data now; {what}"))?)
}

/// Names of the services whose tasks see it.
async fn users(session: &Session, kind: FileKind, name: &str) -> Result<Vec<String>, Failure> {
    let services = session.client.list::<Service>(Some(&session.namespace)).await?;
    let sees = |service: &&Service| {
        service.spec.template.container.files().any(|(of, file)| of == kind && file.source == name)
    };
    Ok(services.iter().filter(sees).map(|service| service.metadata.name.clone()).collect())
}

/// Its tasks could not be started again anywhere else.
async fn remove(session: &mut Session, kind: FileKind, rm: &Rm) -> Result<(), Failure> {
    let word = kind.words().0;
    for name in &rm.names {
        let users = users(session, kind, name).await?;
        if !users.is_empty() {
            let failure = Failure::new(Exit::Conflict, format!("{word} {name} is seen by {}", users.join(", ")));
            return Err(
                failure.advise(format!("take it away first: applyctl service update --{word}-rm {name} {}", users[0]))
            );
        }
    }
    delete::rm(session, word, rm).await
}

/// That all of what a service's tasks shall see is there.
///
/// # Errors
/// What to type first.
pub(super) async fn are_there(session: &Session, service: &Service) -> Result<(), Failure> {
    for (kind, file) in service.spec.template.container.files() {
        let (word, of) = (kind.words().0, ObjectRef::new(&session.namespace, &file.source));
        let there = match kind {
            FileKind::Secret => session.client.find::<Secret>(&of).await?.is_some(),
            FileKind::Config => session.client.find::<Config>(&of).await?.is_some(),
        };
        if !there {
            let failure = Failure::new(Exit::NotFound, format!("there is no {word} {}", file.source));
            return Err(failure.advise(format!("make it first: applyctl {word} create {} FILE", file.source)));
        }
    }
    Ok(())
}
