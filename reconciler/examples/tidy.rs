//! An ordinary tool with the library inside: it keeps a folder's files as they were declared, whoever edits, deletes or adds
//! what. No daemon, no cluster: `tidy STORE FOLDER`, where STORE is one file; then, a line each:
//!
//! ```text
//! put NAME TEXT     a file that is to be there
//! rm NAME           one that is not
//! ```
//!
//! Give it a folder of its own: **it removes every file in it that was not declared**. What lies in folders below stays.
//!
//! What was declared outlives the tool, also when it is killed: its next start brings about what is missing.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reconciler::api::Resource;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Manager, Signal, Singleton};
use reconciler::external::{External, World};
use reconciler::objects::{Client, Kinds, Propagation, StoreObjects, Writer};
use reconciler::store::Embedded;
use reconciler::{ObjectRef, seams::Seams};
use serde::{Deserialize, Serialize};

/// A file that is to be there.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "tidy.example", version = "v1", kind = "File", crate = reconciler::api)]
struct FileSpec {
    text: String,
}

/// The folder as it is.
struct Folder(PathBuf);

impl World for Folder {
    type Key = String;
    type Item = String;
    type Error = io::Error;

    async fn list(&self) -> io::Result<Vec<(String, String)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            // Folders and links are somebody else's.
            if entry.file_type()?.is_file() {
                let text = String::from_utf8_lossy(&fs::read(entry.path())?).into_owned();
                files.push((entry.file_name().to_string_lossy().into_owned(), text));
            }
        }
        Ok(files)
    }
}

/// Makes the folder what was declared.
struct Tidy(External<Folder>);

impl KeyReconciler for Tidy {
    type Key = Singleton;

    async fn reconcile(&self, _all: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let wanted = cx.snapshot();
        let found = self.0.known().await;
        let at = |name: &str| self.0.world().0.join(name);
        let mut changed = false;
        for file in wanted.all::<File>() {
            if found.get(&file.name().to_owned()).is_none_or(|text| **text != file.spec.text) {
                // Whole or not at all, and safe to repeat: the name that is written first is no declared one.
                let half = at(".half");
                fs::write(&half, &file.spec.text)
                    .and_then(|()| fs::rename(&half, at(file.name())))
                    .map_err(Error::retry)?;
                println!("wrote {}", file.name());
                changed = true;
            }
        }
        for (name, _) in found.iter() {
            if wanted.get::<File>(&ObjectRef::new("default", name)).is_none() {
                match fs::remove_file(at(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::retry(error)),
                    _ => println!("removed {name}"),
                }
                changed = true;
            }
        }
        if changed {
            self.0.look_again();
        }
        Ok(Action::Await)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(store), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: tidy STORE FOLDER   (it removes every file in FOLDER that was not declared)".into());
    };
    fs::create_dir_all(&folder)?;

    let seams = Seams::real();
    let store = Arc::new(Embedded::open(store, &*seams.random, &Default::default())?);
    let objects = Arc::new(StoreObjects::open(store, "/tidy", Kinds::new().with::<File>(), seams.clone()).await?);
    // A folder that could tell of its changes would not have to be looked at so often.
    let folder = External::with_resync("folder", Folder(folder.into()), seams.clone(), Duration::from_millis(200));
    let tidy = Controller::singleton("tidy", Tidy(folder.clone()))
        .watches_all::<File>()
        .watches_external(&folder, |_, _| [Singleton]);
    let manager = Manager::builder(objects.clone(), seams).controller(tidy).build();

    let stop = Signal::new();
    let (reading, until) = (stop.clone(), stop);
    let user = Client::new(objects, Writer::new("user:me", "tidy"));
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if let Err(error) = runtime.block_on(obey(&user, &line)) {
                eprintln!("{line}: {error}");
            }
        }
        reading.raise();
    });
    manager.run(until.raised()).await;
    Ok(())
}

async fn obey(user: &Client, line: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut words = line.splitn(3, ' ');
    let (verb, name, text) = (words.next(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let known = user.find::<File>(&ObjectRef::new("default", name)).await?;
    match (verb, known) {
        (Some("put"), Some(known)) => {
            let mut wanted = known.clone();
            wanted.spec.text = text.into();
            user.update(&known, &wanted).await?;
        }
        (Some("put"), None) => {
            let mut file = File::new(name, FileSpec { text: text.into() });
            file.metadata.namespace = "default".into();
            user.create(&file).await?;
        }
        (Some("rm"), Some(known)) => user.delete(&known, Propagation::Background).await?,
        (Some("rm"), None) => return Err("no such file was declared".into()),
        _ => return Err("put NAME TEXT, or rm NAME".into()),
    }
    Ok(())
}
