//! Whoever comes to a manager's port: by bytes, by TLS with a certificate of any kind or none, by HTTP/1.1 and by frames of
//! HTTP/2. It checks nothing of the manager.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use controllers::identity::{Request, Token};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use schemas::level::VERSION;
use serde_json::{Value, json};

pub const PORT: u16 = 7677;
/// For whatever is waited for from the manager.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// What somebody shows, in PEM.
#[derive(Clone)]
pub struct Shown {
    pub chain: String,
    pub key: String,
}

/// A TCP connection from one address of this machine to a port of it.
pub fn tcp(from: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let connection = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&connection, &SocketAddrV4::new(from, 0))?;
    connect(&connection, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    let stream = TcpStream::from(connection);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// A connection whose handshake is done, as far as this side knows: who is turned away hears of it when it reads.
pub fn tls(from: Ipv4Addr, port: u16, shown: Option<&Shown>, protocol: &str) -> io::Result<Tls> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believing(provider.clone())));
    let mut config: ClientConfig = match shown {
        None => config.with_no_client_auth(),
        Some(Shown { chain, key }) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(io::Error::other)?;
            let key = provider.key_provider.load_private_key(key).map_err(io::Error::other)?;
            // Whether they fit is for the other side to find out.
            let pair = CertifiedKey::new(chain.map_err(io::Error::other)?, key);
            config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    let name = ServerName::try_from(controllers::identity::MANAGER_NAME).map_err(io::Error::other)?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut stream = tcp(from, port)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// Whoever answers is believed to be who it says.
#[derive(Debug)]
struct Believing(Arc<CryptoProvider>);

impl ServerCertVerifier for Believing {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What an answer is: its code, and its body where that has a length.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub body: String,
}

/// Reads one answer.
pub fn answer(io: &mut impl Read) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        more(io, &mut bytes)?;
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text.clone()))?;
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    while bytes.len() < head + length.unwrap_or(0) {
        more(io, &mut bytes)?;
    }
    Ok(Answer { code, body: String::from_utf8_lossy(&bytes[head..]).into_owned() })
}

fn more(io: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = [0; 16 << 10];
    match io.read(&mut piece)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        read => {
            bytes.extend_from_slice(&piece[..read]);
            Ok(())
        }
    }
}

/// Asks, and reads the answer, though whoever answers may have heard enough before all was said.
pub fn ask(io: &mut Tls, request: &[u8]) -> io::Result<Answer> {
    let said = io.write_all(request).and_then(|()| io.flush());
    match answer(io) {
        Ok(answer) => Ok(answer),
        Err(error) => Err(said.err().unwrap_or(error)),
    }
}

pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: apply\r\n\r\n").into_bytes()
}

pub fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: apply\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// A connection of its own, one question and how long the answer took.
pub fn timed(from: Ipv4Addr, shown: Option<&Shown>, path: &str) -> io::Result<(Answer, Duration)> {
    let begun = Instant::now();
    let answer = ask(&mut tls(from, PORT, shown, "http/1.1")?, &get(path))?;
    Ok((answer, begun.elapsed()))
}

/// Until the other side has closed.
pub fn is_closed(io: &mut impl Read) -> bool {
    let mut piece = [0; 16 << 10];
    loop {
        match io.read(&mut piece) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }
}

/// Joins as `node` with what was made before, as a machine does.
pub fn join(from: Ipv4Addr, token: &Token, node: &str, request: &Request) -> io::Result<Answer> {
    let body = json!({"secret": token.secret.reveal(), "node": node, "request": request.request, "version": VERSION})
        .to_string();
    ask(&mut tls(from, PORT, None, "http/1.1")?, &post("/apis/apply/v1/join", &body))
}

/// What a machine that has joined shows.
pub fn shown(answer: &Answer, request: &Request) -> Shown {
    assert_eq!(answer.code, 200, "{}", answer.body);
    let said: Value = serde_json::from_str(&answer.body).unwrap();
    Shown { chain: said["chain"].as_str().unwrap().to_owned(), key: request.key.clone() }
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// What an HTTP/2 connection begins with.
pub fn preface() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat()
}

/// `GET /healthz`, as HPACK has it: three names that everybody knows, and a path that is told.
pub fn get_healthz() -> Vec<u8> {
    [&[0x82, 0x87, 0x04, 8][..], b"/healthz", &[0x41, 1, b'x']].concat()
}
