//! `proxy`: a port of this machine alone, for as long as the command runs, through which `kubectl` and its like reach
//! applyd.
//!
//! Whoever connects must show the certificate that was made for this one run, and gets to see one that the same
//! throw-away authority signed; its key is gone when the certificates are made. Bytes are passed on as they are, each
//! connection to one of its own at applyd's socket: applyd sees the user who runs the proxy.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::stream::{FuturesUnordered, StreamExt};
use hyper::Method;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use reconciler::objects::Remote;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;

use super::args::Proxy;
use super::failure::{Exit, Failure};
use super::session::Session;

/// For the handshake of one connection.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections at once; more wait.
const CONNECTIONS: usize = 256;
/// After an accept failed, for want of descriptors most of the time.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

pub async fn run(session: &mut Session, proxy: &Proxy) -> Result<(), Failure> {
    let remote = session.remote()?;
    // Whether anybody is there is better known now than from kubectl.
    remote.call(Method::GET, "/version", bytes::Bytes::new()).await?.bytes().await?;
    let listener = TcpListener::bind(("127.0.0.1", proxy.port)).await.map_err(|error| {
        let failure = Failure::new(Exit::Failed, format!("cannot listen at 127.0.0.1:{}: {error}", proxy.port));
        failure.advise("leave out --port for one that is free")
    })?;
    let failed = |error: io::Error| Failure::new(Exit::Failed, format!("cannot listen: {error}"));
    let address = listener.local_addr().map_err(failed)?;
    let identity = Identity::make().map_err(|error| Failure::new(Exit::Failed, error))?;
    let text = identity.kubeconfig(address, &session.namespace)?;
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    // Removed when it is dropped, so not before the end.
    let _written = match &proxy.kubeconfig {
        Some(path) if path.as_os_str() == "-" => {
            session.screen.data(&text)?;
            None
        }
        path => {
            let written = Written::write(path.as_deref(), &text)?;
            session.screen.data(&format!("export KUBECONFIG={}\n", written.path.display()))?;
            Some(written)
        }
    };
    session.screen.say(&format!("applyd is at https://{address} until ^C, for who has the kubeconfig"))?;
    let acceptor = TlsAcceptor::from(Arc::new(identity.config));
    tokio::select! {
        () = serve(&listener, &acceptor, &remote, session) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// Passes on whoever comes, for ever. All of it is one task: dropping this ends every connection.
async fn serve(listener: &TcpListener, acceptor: &TlsAcceptor, remote: &Remote, session: &Session) {
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = connections.next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => connections.push(pass_on(stream, acceptor, remote, session)),
                Err(_) => session.seams.sleep(ACCEPT_AGAIN).await,
            },
        }
    }
}

/// One connection. What goes wrong concerns whoever connected, who sees it end.
async fn pass_on(stream: TcpStream, acceptor: &TlsAcceptor, remote: &Remote, session: &Session) {
    let _ = stream.set_nodelay(true);
    let shaken = tokio::select! {
        shaken = acceptor.accept(stream) => shaken,
        () = session.seams.sleep(HANDSHAKE) => return,
    };
    let Ok(mut stream) = shaken else { return };
    let Ok(mut daemon) = remote.dial().await else { return };
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut daemon).await;
}

/// The certificates of one run.
struct Identity {
    config: ServerConfig,
    authority: String,
    certificate: String,
    key: String,
}

impl Identity {
    fn make() -> Result<Self, String> {
        let failed = |error: rcgen::Error| format!("cannot make a certificate: {error}");
        let mut params = CertificateParams::default();
        params.distinguished_name = named("applyctl proxy");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(failed)?).map_err(failed)?;
        let signed = |names: &[&str], name: &str, usage: ExtendedKeyUsagePurpose| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name = named(name);
            params.extended_key_usages = vec![usage];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            let key = KeyPair::generate()?;
            Ok((params.signed_by(&key, &authority)?, key))
        };
        let (server, server_key) =
            signed(&["localhost", "127.0.0.1"], "applyd", ExtendedKeyUsagePurpose::ServerAuth).map_err(failed)?;
        let (client, client_key) =
            signed(&[], "applyctl proxy user", ExtendedKeyUsagePurpose::ClientAuth).map_err(failed)?;

        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).map_err(|error| error.to_string())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let verifier = verifier.map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder.with_client_cert_verifier(verifier).with_single_cert(vec![server.der().clone()], key)
            })
            .map_err(|error| error.to_string())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config, authority: authority.pem(), certificate: client.pem(), key: client_key.serialize_pem() })
    }

    fn kubeconfig(&self, address: SocketAddr, namespace: &str) -> Result<String, Failure> {
        let data = |pem: &str| STANDARD.encode(pem);
        let value = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "apply",
            "clusters": [{"name": "apply", "cluster": {
                "server": format!("https://{address}"), "certificate-authority-data": data(&self.authority),
            }}],
            "users": [{"name": "apply", "user": {
                "client-certificate-data": data(&self.certificate), "client-key-data": data(&self.key),
            }}],
            "contexts": [{"name": "apply", "context": {"cluster": "apply", "user": "apply", "namespace": namespace}}],
        });
        schemas::source::yaml::to_string(&value)
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot be written as YAML: {error}")))
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut whole = DistinguishedName::new();
    whole.push(DnType::CommonName, name);
    whole
}

/// The kubeconfig, for as long as it is of use.
struct Written {
    path: PathBuf,
    /// Made for it.
    folder: Option<PathBuf>,
}

impl Written {
    /// To `path`, or to a new file in a folder of this user's own. It holds a key: 0600.
    fn write(path: Option<&Path>, text: &str) -> Result<Self, Failure> {
        let written = match path {
            Some(path) => Self { path: path.to_owned(), folder: None },
            None => {
                let above = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
                let folder = above.join(format!("applyctl-proxy-{}", std::process::id()));
                // Of a process of this number that was killed; somebody else's cannot be removed, and is then refused.
                let _ = fs::remove_dir_all(&folder);
                let made = fs::DirBuilder::new().mode(0o700).create(&folder);
                made.map_err(|error| unwritten(&folder, &error))?;
                Self { path: folder.join("config"), folder: Some(folder) }
            }
        };
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(&written.path).and_then(|mut file| file.write_all(text.as_bytes()));
        match file {
            Ok(()) => Ok(written),
            Err(error) => {
                let failure = unwritten(&written.path, &error);
                // What is there is not ours to remove.
                if error.kind() == io::ErrorKind::AlreadyExists {
                    std::mem::forget(written);
                }
                Err(failure)
            }
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        if let Some(folder) = &self.folder {
            let _ = fs::remove_dir(folder);
        }
    }
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
}
