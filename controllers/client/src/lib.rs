//! What a program of another author meets a cluster with: a file of credentials becomes [`Objects`] that controllers of the
//! `reconciler` crate run on, with an election among its copies and Events for people.
//!
//! ```no_run
//! # async fn run(controller: reconciler::controller::Controller) -> Result<(), client::Error> {
//! use client::{Cluster, Events};
//! use reconciler::{controller::Manager, objects::Writer, seams::Seams};
//!
//! let seams = Seams::real();
//! let cluster = Cluster::open("widgets.yaml", &seams)?; // written by `applyctl controller grant widgets …`
//! let manager = Manager::builder(cluster.objects(), seams)
//!     .controller(controller)
//!     .events::<Events>(Writer::controller("widgets"))
//!     .build();
//! manager.run_elected(&cluster.election("widgets"), std::future::pending()).await;
//! # Ok(())
//! # }
//! ```
//!
//! A crate of its own: the library knows nothing of apply and brings no TLS, and apply's own controllers bring what acts on
//! containerd and the kernel. Nothing here decides anything, and nothing is kept but connections.
//!
//! Reading order: `lib` (a cluster), [`credentials`] (the file), `tls` (connections), `definition` (from a type to a served
//! kind), [`kinds`] (apply's Lease and Event as the library asks for them).

#![warn(missing_docs)]

pub mod credentials;
mod definition;
pub mod kinds;
mod tls;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use reconciler::ObjectRef;
use reconciler::leadership::Election;
use reconciler::objects::{Objects, Remote};
use reconciler::seams::Seams;
use schemas::defaults::LEASE_TTL;

pub use credentials::{Credentials, Error};
pub use definition::definition;
pub use kinds::{Events, Leases};

use tls::Managers;

/// A cluster, as one of its users meets it.
#[derive(Clone)]
pub struct Cluster {
    remote: Remote,
    user: String,
    namespace: Option<String>,
    seams: Seams,
}

impl Cluster {
    /// By the current context of a credentials file, as `applyctl controller grant` and `applyctl user create` write them.
    /// Nothing is connected before the first call; then the first manager that answers is taken, and after a failure the
    /// next. The file is read anew for each connection, so credentials are exchanged by writing over it.
    ///
    /// # Errors
    /// The file cannot be read, or is none.
    pub fn open(path: impl Into<PathBuf>, seams: &Seams) -> Result<Self, Error> {
        let path = path.into();
        let credentials = Credentials::read(&path)?;
        // Whatever is wrong with them shows now, and not with each connection.
        tls::config(&credentials, seams).map_err(|why| Error::none(&path, why.to_string()))?;
        let (user, namespace) = (credentials.user.clone(), credentials.namespace.clone());
        let remote = Remote::new(Arc::new(Managers::new(path, seams.clone())), seams.clone());
        Ok(Self { remote, user, namespace, seams: seams.clone() })
    }

    /// What controllers read and write.
    pub fn objects(&self) -> Arc<dyn Objects> {
        Arc::new(self.remote.clone())
    }

    /// The same, for calls beside objects.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// The User that the credentials name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The namespace that the credentials are for, if they are for one.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Candidacy for one of the program's own Leases, by which one of several copies acts: `name`, in the namespace
    /// `controller-USER`, where nobody else is let. A copy that died is succeeded after 3 s.
    pub fn election(&self, name: &'static str) -> Election<Leases> {
        let lease = ObjectRef::new(format!("controller-{}", self.user), name);
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let identity = format!("{}-{}", machine.trim(), std::process::id());
        let (objects, seams) = (self.objects(), self.seams.clone());
        Election::new(objects, seams, name, lease, identity, LEASE_TTL.value.get())
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("user", &self.user).finish_non_exhaustive()
    }
}
