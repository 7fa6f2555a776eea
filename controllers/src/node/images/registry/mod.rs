//! Speaking with registries: manifests, blobs, tags. Read-only, by the distribution protocol that every registry has.
//!
//! reqwest is used directly: oci-client neither shows `Retry-After` nor takes a TLS configuration, and would choose the
//! process's crypto provider. TLS 1.3 is preferred and 1.2 accepted: many registries sit behind proxies that have no
//! more, and every digest is checked anyway. Without TLS only a registry on this machine is spoken to, or one that the
//! configuration names.
//!
//! Credentials go to the registry that they are for and to the token service that it names, never along a redirect to
//! another host, port or scheme (object stores refuse a second authorisation, and it would be theirs to keep).

pub(super) mod auth;
pub(super) mod login;
pub(super) mod retry;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, DATE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use schemas::image::{Algorithm, DEFAULT_REGISTRY, Digest, ImageRef};
use serde::Deserialize;

use super::error::{Elsewhere, Error, Tags, sort_tags};
use super::manifest::{ACCEPTED, DOCUMENT_BYTES_MAX, NotAnImage, digest_of};
use auth::{Challenge, Credentials};
use retry::{Patience, Setback};

/// Docker Hub's registry has another name than its images.
const HUB_HOST: &str = "registry-1.docker.io";

/// How long a connection may take to come about; a second try follows.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Longest silence inside an answer before it counts as broken.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Most redirects on the way to a blob. Real ones have one or two.
const REDIRECTS_MAX: usize = 5;

/// Largest token answer and error page that are read, in bytes.
const SMALL_ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Most tags that are asked for when a tag was not found.
const TAGS_ASKED: &str = "1000";

/// How to treat registries.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Registries (`host` or `host:port`, as in image references) that may be spoken to without TLS. Those on this
    /// machine always may. Default none.
    pub insecure: BTreeSet<String>,
    /// Authorities that may vouch for registries and token services beside the machine's own. Default none.
    pub authorities: Vec<CertificateDer<'static>>,
    /// The first pause after a registry stumbled; each further one is twice as long. Default 500 ms.
    pub first_pause: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        RegistryOptions { insecure: BTreeSet::new(), authorities: Vec::new(), first_pause: Duration::from_millis(500) }
    }
}

/// All registries, over connections that are kept for the next request.
pub(super) struct Registries {
    options: RegistryOptions,
    /// With TLS. Made when first needed: the machine's root certificates take some milliseconds and a megabyte.
    secure: Mutex<Option<Client>>,
    /// Without, and without a proxy, as it is for this machine.
    plain: Mutex<Option<Client>>,
    /// What was last accepted. Used until it is refused, so no clock is needed for its expiry.
    authorizations: Mutex<BTreeMap<Asker, HeaderValue>>,
    /// Whether a registry that may be plain is.
    plain_ones: Mutex<BTreeMap<String, bool>>,
}

/// Who an authorization is for: registry, repository, credentials.
type Asker = (String, String, Option<Credentials>);

/// A manifest or index as it came, its digest checked or computed.
pub(super) struct Fetched {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
}

/// One request, before it is known how to be authorised for it.
struct Ask<'a> {
    method: Method,
    image: &'a ImageRef,
    credentials: Option<&'a Credentials>,
    /// Below `/v2/<repository>/`.
    path: String,
    accept: bool,
    /// First byte that is wanted.
    from: u64,
}

impl Registries {
    pub fn new(options: RegistryOptions) -> Self {
        Registries {
            options,
            secure: Mutex::default(),
            plain: Mutex::default(),
            authorizations: Mutex::default(),
            plain_ones: Mutex::default(),
        }
    }

    pub fn patience(&self) -> Patience {
        Patience::new(self.options.first_pause)
    }

    /// What a tag, or a digest, names. At most [`DOCUMENT_BYTES_MAX`].
    pub async fn manifest(&self, image: &ImageRef, credentials: Option<&Credentials>) -> Result<Fetched, Error> {
        let mut patience = self.patience();
        loop {
            let ask = Ask { accept: true, ..Ask::get(image, credentials, manifest_path(image)) };
            let response = self.send(ask).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Err(self.explain_not_found(image, credentials).await);
            }
            let (stated, media_type) = (stated_digest(&response), content_type(&response));
            let bytes = match read_at_most(response, DOCUMENT_BYTES_MAX).await {
                Ok(bytes) => bytes,
                Err(ReadError::TooLarge { bytes }) => {
                    let why = NotAnImage::TooLarge { what: "manifest", bytes, max: DOCUMENT_BYTES_MAX };
                    return Err(Error::NotAnImage { image: image.clone().into(), why });
                }
                Err(ReadError::Broken(why)) => {
                    bear(&mut patience, Setback::Broken).await.ok_or_else(|| unreachable(image, &why))?;
                    continue;
                }
            };
            let wanted = image.digest().or(stated.as_ref());
            let found = digest_of(wanted.map_or(Algorithm::Sha256, Digest::algorithm), &bytes);
            return match wanted.filter(|wanted| **wanted != found) {
                Some(wanted) => Err(Error::Corrupt {
                    image: image.clone().into(),
                    what: "manifest",
                    wanted: wanted.clone(),
                    found: found.to_string(),
                }),
                None => Ok(Fetched { digest: found, media_type, bytes }),
            };
        }
    }

    /// The digest that a tag names, without fetching what it names. None if the registry does not say.
    pub async fn digest(&self, image: &ImageRef, credentials: Option<&Credentials>) -> Result<Option<Digest>, Error> {
        let ask = Ask { method: Method::HEAD, accept: true, ..Ask::get(image, credentials, manifest_path(image)) };
        let response = self.send(ask).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Err(self.explain_not_found(image, credentials).await),
            _ => Ok(stated_digest(&response)),
        }
    }

    /// The bytes of a blob, beginning with number `from` if the registry can do that: the answer's status says whether
    /// it did (206). Nothing of the content is checked here.
    pub async fn blob(
        &self,
        image: &ImageRef,
        credentials: Option<&Credentials>,
        digest: &Digest,
        from: u64,
    ) -> Result<Response, Error> {
        let ask = Ask { from, ..Ask::get(image, credentials, format!("blobs/{digest}")) };
        self.send(ask).await
    }

    /// A small blob whole, its digest checked.
    pub async fn small_blob(
        &self,
        image: &ImageRef,
        credentials: Option<&Credentials>,
        digest: &Digest,
        size: u64,
    ) -> Result<Bytes, Error> {
        let what = "configuration";
        let corrupt =
            |found: String| Error::Corrupt { image: image.clone().into(), what, wanted: digest.clone(), found };
        let mut patience = self.patience();
        loop {
            let response = self.blob(image, credentials, digest, 0).await?;
            if !response.status().is_success() {
                let (status, message) = (response.status().as_u16(), format!("it has no {what} {digest}"));
                return Err(Error::Strange { image: image.clone().into(), status, message });
            }
            match read_at_most(response, size.min(DOCUMENT_BYTES_MAX)).await {
                Ok(bytes) => {
                    let found = digest_of(digest.algorithm(), &bytes);
                    return if found == *digest { Ok(bytes) } else { Err(corrupt(found.to_string())) };
                }
                Err(ReadError::TooLarge { bytes }) => return Err(corrupt(format!("{bytes} bytes instead of {size}"))),
                Err(ReadError::Broken(why)) => {
                    bear(&mut patience, Setback::Broken).await.ok_or_else(|| unreachable(image, &why))?;
                }
            }
        }
    }

    /// Why there is no manifest: is it the tag, or the repository?
    async fn explain_not_found(&self, image: &ImageRef, credentials: Option<&Credentials>) -> Error {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let ask = Ask::get(image, credentials, format!("tags/list?n={TAGS_ASKED}"));
        let tags = match self.send(ask).await {
            Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                return Error::NoSuchRepository { image: image.clone().into(), elsewhere: Elsewhere::default() };
            }
            Ok(response) => match read_at_most(response, DOCUMENT_BYTES_MAX).await {
                Ok(body) => serde_json::from_slice::<List>(&body).ok().and_then(|list| list.tags),
                Err(_) => None,
            },
            Err(_) => None,
        };
        if image.digest().is_some() {
            return Error::NoSuchDigest { image: image.clone().into() };
        }
        let mut tags = tags.unwrap_or_default();
        sort_tags(&mut tags);
        Error::NoSuchTag { image: image.clone().into(), tags: Tags(tags) }
    }

    /// Asks, proves who we are if that is wanted, and bears with setbacks. Answers 200, 206, 404 and 416 come back.
    async fn send(&self, ask: Ask<'_>) -> Result<Response, Error> {
        let base = self.base(ask.image).await?;
        let url = format!("{base}/v2/{}/{}", ask.image.repository(), ask.path);
        let url = Url::parse(&url).expect("checked references make URLs");
        let asker: Asker =
            (ask.image.registry().to_owned(), ask.image.repository().to_owned(), ask.credentials.cloned());
        let mut authorization = self.lock_authorizations().get(&asker).cloned();
        let mut is_fresh = false;
        loop {
            let response = self.exchange(ask.image, &url, |client| ask.build(client, &url, &authorization)).await?;
            let status = response.status();
            match status {
                StatusCode::OK
                | StatusCode::PARTIAL_CONTENT
                | StatusCode::NOT_FOUND
                | StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(response);
                }
                // Once: a new token that is refused at once will be refused again.
                StatusCode::UNAUTHORIZED if !is_fresh => {
                    let Some(challenge) = auth::challenge(response.headers()) else { return Err(ask.refused()) };
                    let answer = self.answer(&ask, challenge).await?;
                    self.lock_authorizations().insert(asker.clone(), answer.clone());
                    (authorization, is_fresh) = (Some(answer), true);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    self.lock_authorizations().remove(&asker);
                    return Err(ask.refused());
                }
                _ => return Err(strange(ask.image, response).await),
            }
        }
    }

    fn lock_authorizations(&self) -> std::sync::MutexGuard<'_, BTreeMap<Asker, HeaderValue>> {
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, ask: &Ask<'_>, challenge: Challenge) -> Result<HeaderValue, Error> {
        let basic = ask.credentials.map(Credentials::basic);
        let Challenge::Bearer { realm, service, scope } = challenge else {
            return basic.ok_or_else(|| ask.refused());
        };
        let said = |message: String| Error::Strange { image: ask.image.clone().into(), status: 401, message };
        let url = auth::token_url(&realm, service.as_deref(), scope.as_deref(), ask.image.repository())
            .ok_or_else(|| said(format!("with {realm:?} to fetch a token from")))?;
        self.may_be_told(ask.image, &url)?;
        let mut patience = self.patience();
        loop {
            let response = self
                .exchange(ask.image, &url, |client| match &basic {
                    Some(basic) => client.get(url.clone()).header(AUTHORIZATION, basic.clone()),
                    None => client.get(url.clone()),
                })
                .await?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => return Err(ask.refused()),
                _ => return Err(strange(ask.image, response).await),
            }
            return match read_at_most(response, SMALL_ANSWER_BYTES_MAX).await {
                Ok(body) => auth::bearer(&body).ok_or_else(|| said(format!("and {realm:?} gave no token"))),
                Err(ReadError::TooLarge { .. }) => Err(said(format!("and {realm:?} gave no token"))),
                Err(ReadError::Broken(why)) => {
                    bear(&mut patience, Setback::Broken).await.ok_or_else(|| unreachable(ask.image, &why))?;
                    continue;
                }
            };
        }
    }

    /// A password is not sent in the clear because somebody on the way changed the challenge.
    fn may_be_told(&self, image: &ImageRef, place: &Url) -> Result<(), Error> {
        let is_plain = place.scheme() == "http";
        if is_plain && !is_loopback(place.host_str().unwrap_or_default()) && !self.may_be_plain(image.registry()) {
            let message = format!("with {:?} to fetch a token from, which has no TLS", place.as_str());
            return Err(Error::Strange { image: image.clone().into(), status: 401, message });
        }
        Ok(())
    }

    /// Where somebody proves who they are without asking for anything yet.
    fn token_place(&self, image: &ImageRef, realm: &str, service: Option<&str>) -> Result<Url, Error> {
        let found = Url::parse(realm).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(mut place) = found else {
            let message = format!("with {realm:?} to fetch a token from");
            return Err(Error::Strange { image: image.clone().into(), status: 401, message });
        };
        if let Some(service) = service {
            place.query_pairs_mut().append_pair("service", service);
        }
        self.may_be_told(image, &place)?;
        Ok(place)
    }

    /// One request until it is answered by something else than a setback.
    async fn exchange(
        &self,
        image: &ImageRef,
        url: &Url,
        build: impl Fn(&Client) -> reqwest::RequestBuilder,
    ) -> Result<Response, Error> {
        let client = self.client(url)?;
        let mut patience = self.patience();
        loop {
            let (setback, error) = match build(&client).send().await {
                Ok(response) if is_busy(response.status()) => {
                    let header =
                        |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
                    let retry_after = retry::retry_after(header(RETRY_AFTER), header(DATE));
                    let status = response.status().as_u16();
                    (
                        Setback::Busy { retry_after },
                        Error::Overloaded { image: image.clone().into(), status, retry_after },
                    )
                }
                Ok(response) => return Ok(response),
                Err(failed) if failed.is_connect() => (Setback::Unconnected, unreachable(image, &root_cause(&failed))),
                Err(failed) if failed.is_redirect() => return Err(unreachable(image, &root_cause(&failed))),
                Err(failed) => (Setback::Broken, unreachable(image, &root_cause(&failed))),
            };
            bear(&mut patience, setback).await.ok_or(error)?;
        }
    }

    /// `https://host:port` of an image's registry, or `http://` where that is allowed and so.
    async fn base(&self, image: &ImageRef) -> Result<String, Error> {
        let registry = image.registry();
        let host = if registry == DEFAULT_REGISTRY { HUB_HOST } else { registry };
        if !self.may_be_plain(registry) {
            return Ok(format!("https://{host}"));
        }
        let known = self.plain_ones.lock().unwrap_or_else(PoisonError::into_inner).get(registry).copied();
        let is_plain = match known {
            Some(is_plain) => is_plain,
            None => {
                let url = Url::parse(&format!("http://{host}/v2/")).expect("checked references make URLs");
                let response = self.exchange(image, &url, |client| client.get(url.clone())).await?;
                // What a server with TLS says to a request without; nothing secret was in it.
                let is_plain = response.status() != StatusCode::BAD_REQUEST;
                let mut plain_ones = self.plain_ones.lock().unwrap_or_else(PoisonError::into_inner);
                plain_ones.insert(registry.to_owned(), is_plain);
                is_plain
            }
        };
        Ok(format!("{}://{host}", if is_plain { "http" } else { "https" }))
    }

    fn may_be_plain(&self, registry: &str) -> bool {
        let host = match registry.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => registry,
        };
        is_loopback(host) || self.options.insecure.contains(registry) || self.options.insecure.contains(host)
    }

    fn client(&self, url: &Url) -> Result<Client, Error> {
        let is_plain = url.scheme() == "http";
        let slot = if is_plain { &self.plain } else { &self.secure };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(client) => Ok(client.clone()),
            None => {
                let client = build_client(is_plain, &self.options.authorities);
                *slot = Some(client.clone());
                Ok(client)
            }
        }
    }
}

impl<'a> Ask<'a> {
    fn get(image: &'a ImageRef, credentials: Option<&'a Credentials>, path: String) -> Self {
        Ask { method: Method::GET, image, credentials, path, accept: false, from: 0 }
    }

    fn build(&self, client: &Client, url: &Url, authorization: &Option<HeaderValue>) -> reqwest::RequestBuilder {
        let mut headers = HeaderMap::new();
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if self.accept {
            headers.insert(ACCEPT, HeaderValue::from_str(&ACCEPTED.join(", ")).expect("media types are ASCII"));
        }
        if self.from > 0 {
            headers.insert(RANGE, HeaderValue::from_str(&format!("bytes={}-", self.from)).expect("digits are ASCII"));
        }
        client.request(self.method.clone(), url.clone()).headers(headers)
    }

    fn refused(&self) -> Error {
        Error::Refused {
            image: self.image.clone().into(),
            registry: self.image.registry().to_owned(),
            anonymous: self.credentials.is_none(),
            elsewhere: Elsewhere::default(),
        }
    }
}

fn build_client(is_plain: bool, authorities: &[CertificateDer<'static>]) -> Client {
    let redirects = redirect::Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS_MAX {
            return attempt.error("too many redirects");
        }
        // What began with TLS goes on with it.
        if !is_plain && attempt.url().scheme() != "https" {
            return attempt.error("it redirects to a place without TLS");
        }
        attempt.follow()
    });
    let builder = Client::builder()
        .user_agent(concat!("apply/", env!("CARGO_PKG_VERSION")))
        .redirect(redirects)
        .connect_timeout(CONNECT_WITHIN)
        .read_timeout(SILENCE_MAX)
        // An idle machine keeps no connections.
        .pool_idle_timeout(Duration::from_secs(20))
        // Three layers at once over one HTTP/2 connection share one window; over HTTP/1.1 each has its own.
        .http1_only()
        .tls_backend_preconfigured(tls(authorities));
    let builder = if is_plain { builder.no_proxy() } else { builder };
    builder.build().expect("these options are valid together")
}

/// The machine's root certificates and these, TLS 1.3 or 1.2, by ring whatever the process has chosen.
fn tls(authorities: &[CertificateDer<'static>]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned());
    // One certificate in the store that cannot be read must not take the others with it.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("ring has suites for 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn manifest_path(image: &ImageRef) -> String {
    match (image.digest(), image.tag()) {
        (Some(digest), _) => format!("manifests/{digest}"),
        (None, tag) => format!("manifests/{}", tag.expect("a reference has a tag or a digest")),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn stated_digest(response: &Response) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

fn content_type(response: &Response) -> String {
    let stated = response.headers().get(reqwest::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    stated.and_then(|stated| stated.split(';').next()).unwrap_or_default().trim().to_owned()
}

enum ReadError {
    TooLarge { bytes: u64 },
    Broken(String),
}

async fn read_at_most(mut response: Response, max: u64) -> Result<Bytes, ReadError> {
    let stated = response.content_length().unwrap_or(0);
    if stated > max {
        return Err(ReadError::TooLarge { bytes: stated });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|failed| ReadError::Broken(root_cause(&failed)))? {
        let bytes = body.len() as u64 + chunk.len() as u64;
        if bytes > max {
            return Err(ReadError::TooLarge { bytes });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

/// An answer that means nothing to us, with what the registry says about it.
async fn strange(image: &ImageRef, response: Response) -> Error {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Fault>,
    }
    #[derive(Deserialize)]
    struct Fault {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = response.status().as_u16();
    let body = read_at_most(response, SMALL_ANSWER_BYTES_MAX).await.unwrap_or_default();
    let message = match serde_json::from_slice::<Body>(&body).ok().and_then(|body| body.errors.into_iter().next()) {
        Some(fault) if fault.message.is_empty() => fault.code,
        Some(fault) => fault.message,
        None => String::from_utf8_lossy(&body).trim().to_owned(),
    };
    Error::Strange { image: image.clone().into(), status, message: message.chars().take(200).collect() }
}

pub(super) fn unreachable(image: &ImageRef, why: &str) -> Error {
    Error::Unreachable { image: image.clone().into(), why: why.to_owned(), elsewhere: Elsewhere::default() }
}

/// The last of the chain of reasons: "connection refused" rather than "error sending request for url".
pub(super) fn root_cause(failed: &reqwest::Error) -> String {
    if failed.is_timeout() && failed.is_connect() {
        return format!("no answer within {} s", CONNECT_WITHIN.as_secs());
    }
    if failed.is_timeout() {
        return format!("silent for {} s", SILENCE_MAX.as_secs());
    }
    let mut deepest = failed.source();
    while let Some(deeper) = deepest.and_then(std::error::Error::source) {
        deepest = Some(deeper);
    }
    deepest.map_or_else(|| failed.to_string(), ToString::to_string)
}

/// Pauses after a setback; none when patience has ended.
#[expect(clippy::disallowed_methods, reason = "the outer edge: the pause that a real registry asks for")]
pub(super) async fn bear(patience: &mut Patience, setback: Setback) -> Option<()> {
    tokio::time::sleep(patience.after(setback)?).await;
    Some(())
}
