//! Authorities that follow one another, while machines come and go, change their roles and fall behind: whoever could speak
//! with each other still can.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use controllers::cluster::authority::{Authorities, Known, Rotation};
use controllers::node::identity::{Identities, Identity};
use futures::FutureExt;
use futures::future::BoxFuture;
use reconciler::cache::Snapshot;
use reconciler::controller::Manager;
use reconciler::sim::{Calls, Env, Scene, User};
use reconciler::{ObjectRef, Resource};
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster, ClusterSpec};
use schemas::kinds::node::{Node, NodeIdentity, NodeSpec, Role};
use schemas::quantity::Period;

use super::cast::kinds;
use super::{promises, suite};

const MACHINES: [&str; 4] = ["n1", "n2", "n3", "n4"];
/// The first two manage throughout.
const MANAGERS: [&str; 2] = ["n1", "n2"];

/// The disks of all machines. An authority's certificate is its name.
#[derive(Clone)]
struct Disks(Arc<Mutex<Inside>>);

struct Inside {
    disks: BTreeMap<&'static str, Disk>,
    made: u32,
    /// On which of the managers the cluster's controllers act.
    leads: usize,
    full: bool,
}

#[derive(Clone, Debug, Default)]
struct Disk {
    signed_by: String,
    believes: BTreeSet<String>,
    /// Empty on a worker.
    signs: String,
    next: Option<String>,
    /// Its certificate is wanted before its time.
    hurries: bool,
}

impl Disk {
    fn holds(&self) -> Vec<String> {
        let signs = (!self.signs.is_empty()).then(|| self.signs.clone());
        signs.into_iter().chain(self.next.clone()).collect()
    }
}

impl Disks {
    fn new() -> Self {
        let first = || "A0".to_owned();
        let disk = Disk { signed_by: first(), believes: [first()].into(), signs: first(), ..Disk::default() };
        let disks = MANAGERS.into_iter().map(|name| (name, disk.clone())).collect();
        Self(Arc::new(Mutex::new(Inside { disks, made: 0, leads: 0, full: false })))
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A machine is taken in by a manager, or is no more.
    fn join(&self, name: &'static str, by: &str) {
        let mut inside = self.inside();
        let manager = inside.disks[by].clone();
        inside.disks.insert(name, Disk { signed_by: manager.signs, believes: manager.believes, ..Disk::default() });
    }

    /// Each machine that wants a certificate gets one: a manager of itself, others from one of those.
    fn certify(&self, by: usize) {
        let mut inside = self.inside();
        let managers: Vec<Disk> = MANAGERS.iter().map(|name| inside.disks[name].clone()).collect();
        for (name, disk) in inside.disks.iter_mut().filter(|(_, disk)| disk.hurries) {
            let manages = MANAGERS.contains(name);
            let manager = if manages { disk.clone() } else { managers[by % managers.len()].clone() };
            disk.signed_by = manager.signs;
            disk.believes.extend(manager.believes);
            disk.hurries = false;
        }
    }
}

/// One machine's disk, as its controllers reach it.
struct Reached {
    name: &'static str,
    disks: Disks,
    calls: Calls,
}

impl Reached {
    fn change<T>(&self, change: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut inside = self.disks.inside();
        if std::mem::take(&mut inside.full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        change(inside.disks.get_mut(self.name).ok_or(io::ErrorKind::NotFound)?)
    }
}

impl Identity for Reached {
    fn now(&self) -> io::Result<NodeIdentity> {
        // It has not been answered yet, or is removed.
        let disk = self.disks.inside().disks.get(self.name).cloned().ok_or(io::ErrorKind::NotFound)?;
        let holds = disk.holds();
        Ok(NodeIdentity { signed_by: disk.signed_by, until: None, believes: Vec::from_iter(disk.believes), holds })
    }

    fn believe(&self, certificates: &[&str]) -> io::Result<()> {
        self.change(|disk| {
            disk.believes = certificates.iter().map(|name| (*name).to_owned()).collect();
            disk.believes.insert(disk.signed_by.clone());
            // One that is to be a worker is one that begins anew, and keeps no keys.
            disk.believes.extend(MANAGERS.contains(&self.name).then(|| disk.signs.clone()));
            Ok(())
        })
    }

    fn obtain<'a>(&'a self, fingerprint: &'a str) -> BoxFuture<'a, io::Result<()>> {
        async move {
            let somebody_has_it =
                || self.disks.inside().disks.values().any(|disk| disk.holds().iter().any(|held| held == fingerprint));
            let found = self.calls.look("ask for a key", somebody_has_it).await;
            if !found.map_err(io::Error::other)? {
                return Err(io::ErrorKind::NotFound.into());
            }
            self.change(|disk| {
                disk.next = Some(fingerprint.to_owned());
                Ok(())
            })
        }
        .boxed()
    }

    fn sign_with(&self, fingerprint: &str) -> io::Result<()> {
        self.change(|disk| match disk.next.take_if(|next| next == fingerprint) {
            Some(next) => {
                disk.signs = next;
                Ok(())
            }
            None => Err(io::ErrorKind::NotFound.into()),
        })
    }

    fn renew(&self) {
        if let Some(disk) = self.disks.inside().disks.get_mut(self.name) {
            disk.hurries = true;
        }
    }
}

/// Of the manager that leads.
struct Leading(Disks);

impl Leading {
    fn of(&self, which: impl Fn(&Disk) -> Option<String>) -> Option<Known> {
        let inside = self.0.inside();
        let name = which(&inside.disks[MANAGERS[inside.leads]])?;
        Some(Known { fingerprint: name.clone(), certificate: name })
    }
}

impl Authorities for Leading {
    fn signing(&self) -> Known {
        self.of(|disk| Some(disk.signs.clone())).expect("a manager signs with something")
    }

    fn next(&self) -> Option<Known> {
        self.of(|disk| disk.next.clone())
    }

    fn bridge(&self, next: &str) -> io::Result<String> {
        let both = self.of(|disk| disk.next.clone().filter(|held| held == next));
        both.map(|next| next.certificate).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn make(&self) -> io::Result<Known> {
        let mut inside = self.0.inside();
        if std::mem::take(&mut inside.full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inside.made += 1;
        let (made, leads) = (format!("A{}", inside.made), MANAGERS[inside.leads]);
        inside.disks.get_mut(leads).expect("a manager has a disk").next = Some(made.clone());
        Ok(Known { fingerprint: made.clone(), certificate: made })
    }
}

fn scene(scene: Scene) -> Scene {
    let disks = Disks::new();
    let (leading, certified, joined) = (disks.clone(), disks.clone(), disks.clone());
    let (moves, fills, seen, settled) = (disks.clone(), disks.clone(), disks.clone(), disks.clone());
    let mut scene = kinds(scene).process("leader", move |env: Env| {
        let authorities = Arc::new(Leading(leading.clone()));
        let manager = Manager::builder(env.objects, env.seams).controller(Rotation::controller(authorities)).build();
        async move { manager.run(std::future::pending()).await }
    });
    for name in MACHINES {
        let disks = disks.clone();
        scene = scene.process(name, move |env: Env| {
            let identity = Arc::new(Reached { name, disks: disks.clone(), calls: env.calls.clone() });
            let manager =
                Manager::builder(env.objects, env.seams).controller(Identities::controller(name, identity)).build();
            async move { manager.run(std::future::pending()).await }
        });
    }
    scene
        .process("certificates", move |env: Env| {
            let disks = certified.clone();
            async move {
                for by in 0.. {
                    disks.certify(by);
                    env.seams.sleep(Duration::from_millis(300)).await;
                }
            }
        })
        .drift("another manager leads", move || {
            let mut inside = moves.inside();
            inside.leads = (inside.leads + 1) % MANAGERS.len();
        })
        .drift("a disk is full for a moment", move || fills.inside().full = true)
        .workload(move |user| workload(user, joined))
        .invariant("each machine believes what every other one shows", move |_| {
            let inside = seen.inside();
            for (name, disk) in &inside.disks {
                let blind = inside.disks.iter().find(|(_, other)| !disk.believes.contains(&other.signed_by));
                if let Some((other, shown)) = blind {
                    return Err(format!("{name} has {disk:?}, and {other} shows {}", shown.signed_by));
                }
            }
            Ok(())
        })
        .settles("the authority that was asked for last, alone", move |snapshot| alone(snapshot, &settled))
        .settles_within(Duration::from_secs(1800))
}

async fn workload(user: User, disks: Disks) {
    let cluster = ObjectRef::cluster(CLUSTER_NAME);
    user.create(&Cluster::new(CLUSTER_NAME, ClusterSpec::default())).await;
    for name in MANAGERS {
        user.create(&Node::new(name, NodeSpec { role: Role::Manager, ..NodeSpec::default() })).await;
    }
    let join = async |name: &'static str, by: usize| {
        user.create(&Node::new(name, NodeSpec::default())).await;
        // What it is answered is what its manager knows by then.
        disks.join(name, MANAGERS[by % MANAGERS.len()]);
        user.pause().await;
    };
    join("n3", 0).await;
    for round in 1..=3_u32 {
        user.update::<Cluster>(&cluster, |cluster| {
            cluster.spec.authority.rotation = round;
            cluster.spec.authority.overlap = Period::from_secs(u64::from(round % 2) * 20);
        })
        .await;
        user.pause().await;
        join("n4", round as usize).await;
        user.pause().await;
        let role = if round % 2 == 1 { Role::Manager } else { Role::Worker };
        user.update::<Node>(&ObjectRef::cluster("n3"), |node| node.spec.role = role).await;
        user.pause().await;
        // It is not spoken with any more, and what it has on its disk is nobody's affair.
        user.delete::<Node>(&ObjectRef::cluster("n4")).await;
        disks.inside().disks.remove("n4");
        user.pause().await;
    }
    user.update::<Node>(&ObjectRef::cluster("n3"), |node| node.spec.role = Role::Worker).await;
}

fn alone(snapshot: &Snapshot, disks: &Disks) -> promises::Held {
    let cluster = snapshot.get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME)).ok_or("there is no cluster")?;
    let listed = cluster.status.as_ref().map(|status| status.authorities.clone()).unwrap_or_default();
    let [only] = &listed[..] else { return Err(format!("{listed:?} are believed")) };
    if only.rotation != cluster.spec.authority.rotation {
        return Err(format!("{only:?} was not asked for last"));
    }
    let inside = disks.inside();
    let wrong = inside.disks.iter().find(|(name, disk)| {
        let signs = MANAGERS.contains(name) && disk.signs != only.fingerprint;
        signs || disk.signed_by != only.fingerprint || !disk.believes.iter().eq([&only.fingerprint])
    });
    match wrong {
        Some((name, disk)) => Err(format!("{name} has {disk:?}, and {} is the one", only.fingerprint)),
        None => Ok(()),
    }
}

#[test]
fn authorities_follow_one_another() {
    suite("authority", 20, scene);
}
