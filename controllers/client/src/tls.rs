//! Connections to the managers of a cluster, by mutual TLS 1.3.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use reconciler::objects::remote::{Connect, Io};
use reconciler::seams::Seams;
use rustix::net::sockopt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::credentials::Credentials;

/// Which one of the managers it is does not matter: their certificates all have this name.
const MANAGER: &str = "manager.apply.internal";
/// For one manager to be connected to, before the next is tried.
const PATIENCE: Duration = Duration::from_secs(2);
/// A machine that acknowledges nothing for so long is taken to be gone, and its connections with it.
const GONE: Duration = Duration::from_secs(5);

/// The way to the managers: the one that answered last, or else the next that does.
#[derive(Debug)]
pub(crate) struct Managers {
    file: PathBuf,
    seams: Seams,
    /// Which of them answered last.
    preferred: AtomicUsize,
}

impl Managers {
    pub fn new(file: PathBuf, seams: Seams) -> Self {
        Self { file, seams, preferred: AtomicUsize::new(0) }
    }
}

impl Connect for Managers {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            // A page of a local file: no slower than the handshake's arithmetic.
            let credentials = Credentials::read(&self.file).map_err(io::Error::other)?;
            let config = Arc::new(config(&credentials, &self.seams).map_err(io::Error::other)?);
            let managers = &credentials.managers;
            let first = self.preferred.load(Ordering::Relaxed);
            let mut failures = Vec::new();
            for index in (0..managers.len()).map(|step| (first + step) % managers.len()) {
                let tried = tokio::select! {
                    biased;
                    tried = shake(managers[index], config.clone()) => tried,
                    () = self.seams.sleep(PATIENCE) => Err(io::ErrorKind::TimedOut.into()),
                };
                match tried {
                    Ok(stream) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok(Box::new(stream) as Box<dyn Io>);
                    }
                    Err(error) => failures.push(format!("{}: {error}", managers[index])),
                }
            }
            Err(io::Error::new(io::ErrorKind::NotConnected, failures.join("; ")))
        })
    }

    fn place(&self) -> String {
        format!("the cluster of {}", self.file.display())
    }
}

async fn shake(address: SocketAddr, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // After a power cut or on a cut wire nobody says that it is over, and who only listens would do it for ever.
    sockopt::set_tcp_keepidle(&stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(&stream, 3)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_user_timeout(&stream, u32::try_from(GONE.as_millis()).unwrap_or(u32::MAX))?;
    let name = ServerName::try_from(MANAGER).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, stream).await
}

/// The wall clock of the seams, as rustls asks for it.
#[derive(Debug)]
struct SeamTime(Seams);

impl TimeProvider for SeamTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_seconds()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// The provider is brought along: which one the program's other connections use is not decided here.
pub(crate) fn config(credentials: &Credentials, seams: &Seams) -> Result<ClientConfig, rustls::Error> {
    let bad = |what: &str| rustls::Error::General(format!("the {what} in it cannot be read"));
    let chain = |pem: &str, what: &str| {
        let read = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        read.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| bad(what))
    };
    let mut roots = RootCertStore::empty();
    for authority in chain(&credentials.authorities, "authority")? {
        roots.add(authority)?;
    }
    let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes()).map_err(|_| bad("key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(SeamTime(seams.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain(&credentials.chain, "certificate")?, key)?;
    // A session that is resumed would go on with a certificate that was exchanged.
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
