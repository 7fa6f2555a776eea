//! The way to containerd: one lazy channel over its unix socket, and what every call must carry.
//!
//! The channel connects when it is first used and again after containerd went away, so a `Connection` is made once,
//! before containerd is even there, and cloned freely (clones share the channel). A call while nobody listens on the
//! socket fails at once with `Unavailable`; it does not wait.
//!
//! Every call carries the namespace; without it containerd answers `FailedPrecondition`. Two more headers are
//! optional and belong to a clone: a lease (what the call makes is kept from the garbage collector for as long as
//! the lease lives) and a deadline. Without a deadline a stopped containerd keeps a caller waiting for ever, so
//! everything but streams should have one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::failure;

/// The containerd namespace that holds everything of ours, unless another is asked for.
pub const DEFAULT_NAMESPACE: &str = "apply";

/// Largest message in either direction. containerd's own limit; tonic's default of 4 MiB is too small for a list of
/// a few thousand containers with their specs.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A channel on which every call carries the headers of its [`Connection`].
pub type Wire = InterceptedService<Channel, Headers>;

/// A lazy, self-healing connection to one containerd, in one of its namespaces. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    socket: Arc<Path>,
    channel: Channel,
    headers: Headers,
}

/// What each call carries: namespace, lease, deadline.
#[derive(Clone, Debug)]
pub struct Headers {
    namespace: AsciiMetadataValue,
    lease: Option<AsciiMetadataValue>,
    deadline: Option<Duration>,
}

/// The namespace or lease name cannot be sent as a header.
#[derive(Debug, thiserror::Error)]
#[error("{name:?} is not a containerd identifier")]
pub struct BadIdentifier {
    pub name: String,
}

impl Connection {
    /// A connection to the containerd that listens, or will listen, on `socket`. Nothing is opened yet.
    ///
    /// Must be called inside a tokio runtime, which carries the channel.
    pub fn new(socket: impl Into<PathBuf>, namespace: &str) -> Result<Self, BadIdentifier> {
        let socket: Arc<Path> = socket.into().into();
        let path = Arc::clone(&socket);
        // The URI is never resolved: the connector below ignores it.
        let channel = Endpoint::from_static("http://containerd.invalid").connect_with_connector_lazy(
            tower::service_fn(move |_| {
                let path = Arc::clone(&path);
                async move {
                    let stream = UnixStream::connect(&path).await.map_err(|error| failure::silent(&path, &error))?;
                    Ok::<_, io::Error>(TokioIo::new(stream))
                }
            }),
        );
        let headers = Headers { namespace: identifier(namespace)?, lease: None, deadline: None };
        Ok(Connection { socket, channel, headers })
    }

    /// The same channel, in another namespace.
    pub fn in_namespace(&self, namespace: &str) -> Result<Self, BadIdentifier> {
        let headers = Headers { namespace: identifier(namespace)?, ..self.headers.clone() };
        Ok(Connection { headers, ..self.clone() })
    }

    /// The same channel; what its calls make belongs to the lease, which must exist.
    pub fn under_lease(&self, lease: &str) -> Result<Self, BadIdentifier> {
        let headers = Headers { lease: Some(identifier(lease)?), ..self.headers.clone() };
        Ok(Connection { headers, ..self.clone() })
    }

    /// The same channel; each call ends after `deadline`, at containerd and here (`DeadlineExceeded`, or `Cancelled`
    /// from our own end). Counted per call until the answer begins; an answer that is a stream may then go on.
    pub fn within(&self, deadline: Duration) -> Self {
        let headers = Headers { deadline: Some(deadline), ..self.headers.clone() };
        Connection { headers, ..self.clone() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn namespace(&self) -> &str {
        self.headers.namespace.to_str().unwrap_or_default()
    }

    fn wire(&self) -> Wire {
        InterceptedService::new(self.channel.clone(), self.headers.clone())
    }
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        Ok(request)
    }
}

/// One accessor for each service, with the message limits raised.
macro_rules! services {
    ($($name:ident: $client:ident),* $(,)?) => {
        impl Connection {
            $(pub fn $name(&self) -> $client<Wire> {
                $client::new(self.wire())
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX)
            })*
        }
    };
}

services! {
    containers: ContainersClient,
    content: ContentClient,
    diff: DiffClient,
    events: EventsClient,
    images: ImagesClient,
    introspection: IntrospectionClient,
    leases: LeasesClient,
    namespaces: NamespacesClient,
    snapshots: SnapshotsClient,
    tasks: TasksClient,
    version: VersionClient,
}

fn identifier(name: &str) -> Result<AsciiMetadataValue, BadIdentifier> {
    let fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    name.parse().ok().filter(|_| fits).ok_or_else(|| BadIdentifier { name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_while_nobody_listens_fails_at_once_and_says_unavailable() {
        let connection = Connection::new("/nonexistent/containerd.sock", DEFAULT_NAMESPACE).unwrap();
        let refused = connection.version().version(()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_a_header_is_refused() {
        for name in ["", "a b", "ä", "a\nb"] {
            assert!(Connection::new("/x", name).is_err(), "{name:?}");
        }
    }
}
