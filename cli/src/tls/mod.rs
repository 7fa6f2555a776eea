//! Mutual TLS 1.3 between machines: who listens, who connects, and how each knows the other.
//!
//! Certificates and authorities are looked up for each handshake, so that what is renewed holds from the next connection on
//! and no connection drops for it. The time that certificates are held to is the seam's.
//!
//! Who shows no certificate is let in as [`ANONYMOUS`]: a machine that joins has none yet. Who shows one of another
//! authority is turned away in the handshake; who shows one whose time is over, but not for long, comes in as one that may
//! ask for a new one and nothing else.

mod pinned;
mod strangers;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use controllers::identity::{Certified, IdentityError, MANAGER_NAME, MAY_RENEW_FOR};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use reconciler::api::Timestamp;
use reconciler::objects::remote::{Connect, Io};
use reconciler::seams::Seams;
use reconciler::server::{Listener, Peer};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::sync::CancellationToken;

pub use pinned::{ANOTHER_CLUSTER, Pinned};
use strangers::{Cut, STAY, Stay, Strangers};

/// Who shows no certificate.
pub const ANONYMOUS: &str = "anonymous";
/// What the identity of one begins with whose certificate's time is over.
pub const RENEWING: &str = "renewing:";

/// For the handshake of one connection.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For one address to be connected to, before the next is tried, or the same again: a machine that has just begun to listen
/// is not waited for until the kernel asks it a second time, and a third.
const CONNECT: Duration = Duration::from_secs(1);
/// A machine that acknowledges nothing for so long is taken to be gone, and its connections with it.
const GONE: Duration = Duration::from_secs(5);

/// What one shows, and whom one believes. All in PEM.
#[derive(Clone)]
pub struct Credentials {
    /// Own certificate, then that of who signed it.
    pub chain: String,
    /// The key of the first: PKCS#8.
    pub key: String,
    /// Authorities, one or (while they change) more.
    pub authorities: String,
}

/// Why credentials are of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the {what} cannot be read: {why}")]
    Unreadable { what: &'static str, why: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Credentials that are in use and can be exchanged for newer ones. Clones share them.
#[derive(Clone)]
pub struct Keyring {
    held: Arc<RwLock<Arc<Held>>>,
    provider: Arc<CryptoProvider>,
    seams: Seams,
}

struct Held {
    credentials: Credentials,
    says: Certified,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    members: Arc<dyn ClientCertVerifier>,
}

impl Held {
    fn new(credentials: Credentials, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let unreadable =
            |what| move |error: rustls::pki_types::pem::Error| TlsError::Unreadable { what, why: error.to_string() };
        let chain = read_chain(&credentials.chain)?;
        let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes()).map_err(unreadable("key"))?;
        let first =
            chain.first().ok_or_else(|| TlsError::Unreadable { what: "certificate", why: "there is none".into() })?;
        let says = Certified::read(first)?;
        let key = Arc::new(CertifiedKey::from_der(chain, key, provider)?);
        let mut roots = RootCertStore::empty();
        for authority in read_chain(&credentials.authorities)? {
            roots.add(authority)?;
        }
        let roots = Arc::new(roots);
        let members = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let members = members.map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self { credentials, says, key, roots, members })
    }
}

fn read_chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Unreadable { what: "certificate", why: error.to_string() })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Keyring {
    /// # Errors
    /// The credentials are none, or the key is not that of the certificate.
    pub fn new(credentials: Credentials, seams: &Seams) -> Result<Self, TlsError> {
        let provider = provider();
        let held = Held::new(credentials, &provider)?;
        Ok(Self { held: Arc::new(RwLock::new(Arc::new(held))), provider, seams: seams.clone() })
    }

    /// Whether they are of use.
    ///
    /// # Errors
    /// As [`Keyring::new`].
    pub fn check(&self, credentials: &Credentials) -> Result<(), TlsError> {
        Held::new(credentials.clone(), &self.provider).map(drop)
    }

    /// From the next handshake on. Connections that are open stay.
    ///
    /// # Errors
    /// As [`Keyring::new`]; then nothing has changed.
    pub fn exchange(&self, credentials: Credentials) -> Result<(), TlsError> {
        let held = Arc::new(Held::new(credentials, &self.provider)?);
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
        Ok(())
    }

    /// What is in use now.
    pub fn credentials(&self) -> Credentials {
        self.held().credentials.clone()
    }

    /// What the own certificate says.
    pub fn says(&self) -> Certified {
        self.held().says.clone()
    }

    fn held(&self) -> Arc<Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let verifier = Arc::new(Members { ring: self.clone() });
        let mut config =
            ServerConfig::builder_with_details(self.provider.clone(), Arc::new(SeamTime(self.seams.clone())))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(Arc::new(Own { ring: self.clone() }));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A resumed session would skip the look at the certificate's time.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(config)
    }

    fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let held = self.held();
        let mut config =
            ClientConfig::builder_with_details(self.provider.clone(), Arc::new(SeamTime(self.seams.clone())))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(held.roots.clone())
                .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from((*held.key).clone())));
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("says", &self.held().says).finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// The wall clock of the seams, as rustls asks for it.
#[derive(Debug)]
struct SeamTime(Seams);

impl TimeProvider for SeamTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix(self.0.now()))
    }
}

fn unix(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(at.as_seconds()).unwrap_or(0)))
}

/// The own certificate, as it is at this moment.
#[derive(Debug)]
struct Own {
    ring: Keyring,
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.ring.held().key.clone())
    }
}

/// Whom a manager lets in: members of the cluster, those whose certificate ended not long ago, and who has none.
#[derive(Debug)]
struct Members {
    ring: Keyring,
}

impl ClientCertVerifier for Members {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verifier = self.ring.held().members.clone();
        let verified = verifier.verify_client_cert(end_entity, intermediates, now);
        let is_over = matches!(
            &verified,
            Err(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }))
        );
        if !is_over {
            return verified;
        }
        // All else about it must be right, at the end of its time.
        let until = Certified::read(end_entity).map_err(|_| CertificateError::BadEncoding)?.until;
        if now.as_secs() > unix(until + MAY_RENEW_FOR).as_secs() {
            return verified;
        }
        verifier.verify_client_cert(end_entity, intermediates, unix(until))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.ring.held().members.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.ring.held().members.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.ring.held().members.supported_verify_schemes()
    }
}

/// A port that other machines connect to.
pub struct TlsPort {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    ring: Keyring,
    strangers: Strangers,
    shaking: FuturesUnordered<BoxFuture<'static, Shaken>>,
    refusals: Box<dyn Fn(&TurnedAway) + Send>,
}

/// What has become of a handshake. `None`: another has taken its place.
type Shaken = Option<Result<(Severable<server::TlsStream<TcpStream>>, Peer), TurnedAway>>;

/// Somebody who never came so far as to ask.
#[derive(Debug)]
pub struct TurnedAway {
    pub from: SocketAddr,
    /// `certificate`, `no_tls`, `slow_handshake`, `broken_off` or `crowded`.
    pub counted_as: &'static str,
    /// For people.
    pub why: String,
    /// It is one more of many that were told of.
    pub is_again: bool,
}

impl TurnedAway {
    fn new(from: SocketAddr, error: &io::Error) -> Self {
        let counted_as = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => "certificate",
            Some(rustls::Error::AlertReceived(_)) => "broken_off",
            Some(_) => "no_tls",
            None if error.kind() == io::ErrorKind::PermissionDenied => "certificate",
            None if error.kind() == io::ErrorKind::TimedOut => "slow_handshake",
            None => "broken_off",
        };
        Self { from, counted_as, why: error.to_string(), is_again: false }
    }

    fn crowded(cut: &Cut) -> Self {
        let why =
            "it has shown no certificate, and others came: of who shows none so many are let in and no more".into();
        Self { from: cut.from, counted_as: "crowded", why, is_again: !cut.is_first }
    }
}

/// Connections that the kernel holds until they are accepted: as many as it does (net.core.somaxconn), as what finds no room among
/// them waits a second before it is tried again.
const BACKLOG: u32 = 4_096;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn is_unknown_family(error: &io::Error) -> bool {
    let known = Errno::from_io_error(error);
    known.is_some_and(|errno| [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].contains(&errno))
}

/// Has a connection end when the other machine is gone without a word: after a power cut or on a cut wire nobody says so, and
/// whoever only listens would do it for ever.
fn mind(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Asked after two seconds of silence, and then each second: as long as for what is not acknowledged.
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(GONE.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

impl TlsPort {
    /// # Errors
    /// The address is taken, or the credentials are of no use.
    pub async fn bind(address: SocketAddr, ring: Keyring) -> io::Result<Self> {
        let config = ring.server_config().map_err(io::Error::other)?;
        let tcp = match listen(address) {
            // A kernel without IPv6.
            Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && is_unknown_family(&error) => {
                listen((Ipv4Addr::UNSPECIFIED, address.port()).into())?
            }
            bound => bound?,
        };
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (strangers, shaking) = (Strangers::default(), FuturesUnordered::new());
        Ok(Self { tcp, acceptor, ring, strangers, shaking, refusals: Box::new(|_| {}) })
    }

    /// Is told who was turned away. Default: nobody is told.
    pub fn refusals(self, told: impl Fn(&TurnedAway) + Send + 'static) -> Self {
        Self { refusals: Box::new(told), ..self }
    }

    /// Which one it is, when any was asked for.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    fn begin(&self, stream: TcpStream, from: SocketAddr) {
        let (stay, cut) = self.strangers.enter(from);
        if let Some(cut) = cut {
            (self.refusals)(&TurnedAway::crowded(&cut));
        }
        let (acceptor, ring) = (self.acceptor.clone(), self.ring.clone());
        self.shaking.push(Box::pin(async move {
            let shake = async {
                mind(&stream)?;
                // Nothing is made for who says nothing.
                stream.readable().await?;
                let shaken = acceptor.accept(stream).await?;
                let shown = shaken.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let peer = shown.map(|certificate| member(certificate, &ring)).transpose()?;
                Ok((shaken, peer))
            };
            let shaken = tokio::select! {
                shaken = shake => shaken,
                () = ring.seams.sleep(HANDSHAKE) => Err(io::ErrorKind::TimedOut.into()),
                () = stay.cut() => return None,
            };
            Some(match shaken {
                Ok((stream, Some(peer))) => Ok((Severable::new(stream, std::future::pending()), peer.at(from))),
                Ok((stream, None)) => {
                    Ok((Severable::new(stream, over(stay, ring.seams)), Peer::nobody(ANONYMOUS).at(from)))
                }
                Err(error) => Err(TurnedAway::new(from, &error)),
            })
        }));
    }
}

/// Until who shows no certificate has to go.
async fn over(stay: Stay, seams: Seams) -> io::Error {
    tokio::select! {
        () = stay.cut() => io::Error::new(io::ErrorKind::ConnectionAborted, "another has taken its place"),
        () = seams.sleep(STAY) => io::ErrorKind::TimedOut.into(),
    }
}

/// Who it is that showed a certificate that was verified.
fn member(certificate: &CertificateDer<'_>, ring: &Keyring) -> io::Result<Peer> {
    let refused = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, why);
    let says = Certified::read(certificate).map_err(|error| refused(error.to_string()))?;
    let own = ring.says().subject.cluster;
    if says.subject.cluster != own {
        return Err(refused(format!("it is of cluster {}, this one is {own}", says.subject.cluster)));
    }
    let identity = says.subject.who.identity();
    let peer =
        if ring.seams.now() > says.until { Peer::new(format!("{RENEWING}{identity}")) } else { Peer::new(identity) };
    Ok(peer.of(says.subject.who.uid().as_str()))
}

impl Listener for TlsPort {
    type Io = Severable<server::TlsStream<TcpStream>>;

    async fn accept(&mut self) -> io::Result<(Self::Io, Peer)> {
        loop {
            tokio::select! {
                Some(shaken) = self.shaking.next() => match shaken {
                    Some(Ok(connection)) => return Ok(connection),
                    // Whoever it was, others wait.
                    Some(Err(turned_away)) => {
                        tracing::debug!(from = %turned_away.from, error = turned_away.why, "a handshake failed");
                        (self.refusals)(&turned_away);
                    }
                    None => {}
                },
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, from)) => self.begin(stream, SocketAddr::new(from.ip().to_canonical(), from.port())),
                    // It hung up before it was looked at, and nobody waits for that.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

impl fmt::Debug for TlsPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsPort").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

/// The way to the managers of a cluster: the first that answers. Clones share it.
#[derive(Clone, Debug)]
pub struct Managers {
    known: Arc<RwLock<Known>>,
    ring: Keyring,
}

#[derive(Debug, Default)]
struct Known {
    /// The preferred one first.
    addresses: Vec<SocketAddr>,
    /// Cuts what is connected to a manager.
    cuts: BTreeMap<SocketAddr, CancellationToken>,
}

impl Managers {
    pub fn new(addresses: Vec<SocketAddr>, ring: Keyring) -> Self {
        Self { known: Arc::new(RwLock::new(Known { addresses, ..Known::default() })), ring }
    }

    /// From the next connection on.
    pub fn are_now(&self, addresses: Vec<SocketAddr>) {
        self.change().addresses = addresses;
    }

    /// A manager does not answer any more: what is connected to it is cut now, rather than when the kernel gives it up
    /// seconds later, and others are preferred.
    pub fn is_silent(&self, manager: &[SocketAddr]) {
        let mut known = self.change();
        for address in manager {
            if let Some(cut) = known.cuts.remove(address) {
                cut.cancel();
            }
        }
        known.addresses.sort_by_key(|address| manager.contains(address));
    }

    /// Where they are, the preferred one first.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).addresses.clone()
    }

    fn change(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connect for Managers {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let config = Arc::new(self.ring.client_config().map_err(io::Error::other)?);
            let mut last = io::Error::new(io::ErrorKind::NotConnected, "no manager is known");
            for address in self.addresses() {
                let tried = tokio::select! {
                    tried = shake(address, config.clone()) => tried,
                    () = self.ring.seams.sleep(CONNECT) => Err(io::ErrorKind::TimedOut.into()),
                };
                match tried {
                    Ok(stream) => {
                        let cut = self.change().cuts.entry(address).or_default().clone();
                        let silent = cut.cancelled_owned().map(|()| {
                            io::Error::new(io::ErrorKind::ConnectionAborted, "the manager does not answer any more")
                        });
                        return Ok(Box::new(Severable::new(stream, silent)) as Box<dyn Io>);
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        })
    }

    fn place(&self) -> String {
        let addresses: Vec<String> = self.addresses().iter().map(|address| format!("https://{address}")).collect();
        addresses.join(", ")
    }
}

/// A connection that can be cut from afar.
pub struct Severable<S> {
    stream: S,
    /// Says why it is cut.
    cut: BoxFuture<'static, io::Error>,
}

impl<S> Severable<S> {
    fn new(stream: S, cut: impl Future<Output = io::Error> + Send + 'static) -> Self {
        Self { stream, cut: Box::pin(cut) }
    }

    fn is_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(why) => {
                let (kind, said) = (why.kind(), why.to_string());
                // It may be asked again.
                self.cut = Box::pin(std::future::ready(why));
                Err(io::Error::new(kind, said))
            }
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Severable<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Severable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn shake(address: SocketAddr, config: Arc<ClientConfig>) -> io::Result<client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    mind(&stream)?;
    let name = ServerName::try_from(MANAGER_NAME).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, stream).await
}

#[cfg(test)]
mod tests;
