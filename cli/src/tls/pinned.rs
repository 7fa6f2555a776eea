//! The way in for a machine that joins: it knows the authority by a fingerprint and nothing else.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use controllers::identity::Fingerprint;
use futures::future::BoxFuture;
use reconciler::objects::remote::{Connect, Io};
use reconciler::seams::Seams;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{CONNECT, SeamTime, provider, shake};

/// The way to a manager for who has no certificate yet and knows the authority by its fingerprint alone.
#[derive(Clone, Debug)]
pub struct Pinned {
    address: SocketAddr,
    verifier: Arc<PinnedVerifier>,
    seams: Seams,
}

impl Pinned {
    pub fn new(address: SocketAddr, authority: Fingerprint, seams: &Seams) -> Self {
        Self { address, verifier: Arc::new(PinnedVerifier { authority, provider: provider() }), seams: seams.clone() }
    }
}

impl Connect for Pinned {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let mut config = ClientConfig::builder_with_details(
                self.verifier.provider.clone(),
                Arc::new(SeamTime(self.seams.clone())),
            )
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier.clone())
            .with_no_client_auth();
            config.resumption = rustls::client::Resumption::disabled();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            tokio::select! {
                shaken = shake(self.address, Arc::new(config)) => Ok(Box::new(shaken?) as Box<dyn Io>),
                () = self.seams.sleep(CONNECT) => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }

    fn place(&self) -> String {
        format!("https://{}", self.address)
    }
}

/// Believes the one authority whose key has this fingerprint, which who answers must show beside its own certificate.
#[derive(Debug)]
struct PinnedVerifier {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
}

/// Who answers is of another cluster than the token: an error of TLS that says so.
pub const ANOTHER_CLUSTER: &str = "who answers there is of another cluster than the token";

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_pinned = |der: &&CertificateDer<'_>| {
            controllers::identity::key_of(der).is_ok_and(|fingerprint| fingerprint == self.authority)
        };
        let Some(authority) = intermediates.iter().find(is_pinned) else {
            return Err(rustls::Error::General(ANOTHER_CLUSTER.into()));
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
