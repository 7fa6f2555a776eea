//! The cluster's authority: makes certificates for machines and people.
//!
//! ECDSA on P-256. Of what is asked for only the public key is taken: names, usages and lifetimes are the authority's to say.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use reconciler_api::Timestamp;
use schemas::kinds::node::Role;
use time::OffsetDateTime;
use x509_parser::x509::AttributeTypeAndValue;

use super::{Certified, Fingerprint, MANAGER_NAME, Subject, Who};

/// As Swarm's; longer than machines live.
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Of its fingerprint, in an authority's name.
const NAME_CHARS: usize = 12;
/// Clocks of machines differ: a certificate is valid from so long before it was made.
const BACKDATED: Duration = Duration::from_secs(3600);
/// For so long after its end a certificate still proves who asks for a new one, and nothing else: a machine that was off
/// for a holiday comes back without a person.
pub const MAY_RENEW_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is wrong with a certificate, a request for one, or a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate cannot be read: {why}")]
    Unreadable { why: String },
    #[error("the request for a certificate is refused: {why}")]
    BadRequest { why: String },
    #[error("no certificate could be made: {why}")]
    NotMade { why: String },
}

/// What signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    fingerprint: Fingerprint,
}

/// A key of one's own and the request that has its public half signed.
pub struct Request {
    /// PKCS#8 in PEM. Stays where it was made.
    pub key: String,
    /// PKCS#10 in PEM.
    pub request: String,
}

/// A certificate, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// In PEM.
    pub pem: String,
    /// The same, and that of who signed it.
    pub chain: String,
    /// What it says.
    pub says: Certified,
}

fn not_made(error: &rcgen::Error) -> IdentityError {
    IdentityError::NotMade { why: error.to_string() }
}

fn date(at: Timestamp) -> Result<OffsetDateTime, IdentityError> {
    OffsetDateTime::from_unix_timestamp(at.as_seconds())
        .map_err(|error| IdentityError::NotMade { why: format!("the clock says {at}: {error}") })
}

fn named(name: &str, cluster: &str) -> DistinguishedName {
    let mut whole = DistinguishedName::new();
    whole.push(DnType::CommonName, name);
    whole.push(DnType::OrganizationName, cluster);
    whole
}

/// Of an authority below which there are so many more.
fn of_authority(name: DistinguishedName, below: u8, now: Timestamp) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = date(now - BACKDATED)?;
    params.not_after = date(now + AUTHORITY_LIFE)?;
    Ok(params)
}

/// Of the public key that a request (PKCS#10 in PEM) asks a certificate for.
///
/// # Errors
/// [`IdentityError::BadRequest`] when it is none, or was not signed by that key.
pub fn key_of_request(request: &str) -> Result<Fingerprint, IdentityError> {
    let asked = CertificateSigningRequestParams::from_pem(request);
    let asked = asked.map_err(|error| IdentityError::BadRequest { why: error.to_string() })?;
    Ok(Fingerprint::of(&asked.public_key.subject_public_key_info()))
}

impl Request {
    /// A new key pair.
    pub fn make() -> Result<Self, IdentityError> {
        Self::by(&KeyPair::generate().map_err(|error| not_made(&error))?)
    }

    /// Of a key that was made before: PKCS#8 in PEM.
    pub fn of(key: String) -> Result<Self, IdentityError> {
        Self::by(&KeyPair::from_pem(&key).map_err(|error| IdentityError::Unreadable { why: error.to_string() })?)
    }

    fn by(key: &KeyPair) -> Result<Self, IdentityError> {
        let request = CertificateParams::default().serialize_request(key).map_err(|error| not_made(&error))?;
        let request = request.pem().map_err(|error| not_made(&error))?;
        Ok(Self { key: key.serialize_pem(), request })
    }
}

impl Authority {
    /// A new authority of a new key.
    pub fn make(cluster: &str, now: Timestamp) -> Result<Self, IdentityError> {
        Self::made("apply authority", cluster, now)
    }

    /// A new authority for the members of the store alone: etcd lets in whoever shows a certificate of its authority, so
    /// that workers must not have one of that.
    pub fn make_for_store(cluster: &str, now: Timestamp) -> Result<Self, IdentityError> {
        Self::made("apply store authority", cluster, now)
    }

    fn made(name: &str, cluster: &str, now: Timestamp) -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(|error| not_made(&error))?;
        let fingerprint = Fingerprint::of(&key.subject_public_key_info());
        // Each has a name of its own: by its name one looks for who signed what.
        let name = format!("{name} {}", &fingerprint.to_string()[..NAME_CHARS]);
        // It signs members, and at most the one that comes after it.
        let params = of_authority(named(&name, cluster), 1, now)?;
        let pem = params.self_signed(&key).map_err(|error| not_made(&error))?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem, fingerprint })
    }

    /// A certificate in PEM by which whoever believes this authority believes what `next` signs.
    pub fn vouch(&self, next: &Authority, now: Timestamp) -> Result<String, IdentityError> {
        let unreadable = |why: String| IdentityError::Unreadable { why };
        let (_, read) =
            x509_parser::pem::parse_x509_pem(next.pem.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
        let read = read.parse_x509().map_err(|error| unreadable(error.to_string()))?;
        let mut name = DistinguishedName::new();
        let text = |found: &AttributeTypeAndValue<'_>| found.as_str().map(str::to_owned);
        for (kind, found) in [
            (DnType::CommonName, read.subject().iter_common_name().next()),
            (DnType::OrganizationName, read.subject().iter_organization().next()),
        ] {
            if let Some(found) = found {
                name.push(kind, text(found).map_err(|error| unreadable(error.to_string()))?);
            }
        }
        let vouched = of_authority(name, 0, now)?.signed_by(next.issuer.key(), &self.issuer);
        Ok(vouched.map_err(|error| not_made(&error))?.pem())
    }

    /// One that was made before, of its certificate and its key in PEM.
    pub fn open(pem: &str, key: &str) -> Result<Self, IdentityError> {
        let unreadable = |error: rcgen::Error| IdentityError::Unreadable { why: error.to_string() };
        let key = KeyPair::from_pem(key).map_err(unreadable)?;
        let fingerprint = Fingerprint::of(&key.subject_public_key_info());
        let issuer = Issuer::from_ca_cert_pem(pem, key).map_err(unreadable)?;
        Ok(Self { issuer, pem: pem.to_owned(), fingerprint })
    }

    /// Its certificate in PEM, for whoever shall believe it.
    pub fn certificate(&self) -> &str {
        &self.pem
    }

    /// Its key: PKCS#8 in PEM. To be sealed before it is written anywhere.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// What join tokens carry.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// A certificate for `subject` and the public key of `request` (PKCS#10 in PEM), for `life` from `now` on.
    ///
    /// # Errors
    /// [`IdentityError::BadRequest`] when the request is none, or was not signed by the key that it is for.
    pub fn issue(
        &self,
        subject: &Subject,
        request: &str,
        now: Timestamp,
        life: Duration,
    ) -> Result<Issued, IdentityError> {
        let mut params = CertificateParams::default();
        let (name, usages) = match &subject.who {
            Who::Node { name, role: Role::Manager, .. } => {
                let name_of_managers = MANAGER_NAME.try_into().map_err(|error| not_made(&error))?;
                params.subject_alt_names.push(SanType::DnsName(name_of_managers));
                (name, vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
            }
            Who::Node { name, .. } | Who::User { name, .. } => (name, vec![ExtendedKeyUsagePurpose::ClientAuth]),
        };
        let uri = subject.to_string().try_into().map_err(|error: rcgen::Error| not_made(&error))?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name = named(name, &subject.cluster);
        params.extended_key_usages = usages;
        let certificate = self.sign(params, request, now, life)?;
        let pem = certificate.pem();
        Ok(Issued { says: Certified::read(certificate.der())?, chain: format!("{pem}{}", self.pem), pem })
    }

    /// A certificate in PEM for a member of the store, and for whoever speaks to it: `name` is the member's, `addresses`
    /// are those that others reach it at. Otherwise as [`Authority::issue`].
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue_to_store(
        &self,
        name: &str,
        addresses: &[IpAddr],
        request: &str,
        now: Timestamp,
        life: Duration,
    ) -> Result<String, IdentityError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = addresses.iter().map(|address| SanType::IpAddress(*address)).collect();
        params.distinguished_name = named(name, "apply store");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(self.sign(params, request, now, life)?.pem())
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        request: &str,
        now: Timestamp,
        life: Duration,
    ) -> Result<Certificate, IdentityError> {
        let refused = |error: rcgen::Error| IdentityError::BadRequest { why: error.to_string() };
        let asked = CertificateSigningRequestParams::from_pem(request).map_err(refused)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_before = date(now - BACKDATED)?;
        params.not_after = date(now + life)?;
        params.signed_by(&asked.public_key, &self.issuer).map_err(|error| not_made(&error))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Request")
    }
}

#[cfg(test)]
mod tests {
    use reconciler_api::Uid;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_764_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn worker(name: &str) -> Subject {
        let who = Who::Node { name: name.into(), uid: Uid::new("u-1"), role: Role::Worker };
        Subject { cluster: "c1".into(), who }
    }

    #[test]
    fn a_certificate_says_what_the_authority_says_and_has_the_asked_key() {
        let authority = Authority::make("c1", NOW).unwrap();
        let request = Request::make().unwrap();
        let issued = authority.issue(&worker("n2"), &request.request, NOW, DAY).unwrap();
        assert_eq!(issued.says.subject, worker("n2"));
        assert_eq!(issued.says.from, NOW - BACKDATED);
        assert_eq!(issued.says.until, NOW + DAY);
        let key = KeyPair::from_pem(&request.key).unwrap();
        assert_eq!(issued.says.key, Fingerprint::of(&key.subject_public_key_info()));
        // It is the same authority after it was put away and taken out again.
        let again = Authority::open(authority.certificate(), &authority.key()).unwrap();
        assert_eq!(again.fingerprint(), authority.fingerprint());
        let renewed = again.issue(&worker("n2"), &request.request, NOW + DAY, DAY).unwrap();
        assert_eq!(renewed.says.key, issued.says.key);
    }

    #[test]
    fn whatever_a_request_asks_for_beside_a_key_is_not_given() {
        let authority = Authority::make("c1", NOW).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut greedy = CertificateParams::new(vec![MANAGER_NAME.to_owned()]).unwrap();
        greedy.distinguished_name = named("n1", "c2");
        greedy.subject_alt_names.push(SanType::URI("apply://c1/manager/n1/u".try_into().unwrap()));
        let request = greedy.serialize_request(&key).unwrap().pem().unwrap();
        let issued = authority.issue(&worker("n2"), &request, NOW, DAY).unwrap();
        assert_eq!(issued.says.subject, worker("n2"));
        let text = issued.pem;
        let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len();
        assert_eq!(names, 1);
        let usages = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usages.client_auth && !usages.server_auth);
        assert!(!certificate.is_ca());
    }

    #[test]
    fn who_believes_one_believes_what_the_next_signs_by_its_word() {
        let (before, next) = (Authority::make("c1", NOW).unwrap(), Authority::make("c1", NOW).unwrap());
        let bridge = before.vouch(&next, NOW).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(bridge.as_bytes()).unwrap();
        let bridge = pem.parse_x509().unwrap();
        let name_of = |authority: &Authority| {
            let (_, pem) = x509_parser::pem::parse_x509_pem(authority.certificate().as_bytes()).unwrap();
            pem.parse_x509().unwrap().subject().to_string()
        };
        assert_eq!(bridge.subject().to_string(), name_of(&next));
        assert_eq!(bridge.issuer().to_string(), name_of(&before));
        assert!(name_of(&next) != name_of(&before));
        assert_eq!(Fingerprint::of(bridge.public_key().raw), next.fingerprint());
        assert!(bridge.is_ca() && bridge.basic_constraints().unwrap().unwrap().value.path_len_constraint == Some(0));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let authority = Authority::make("c1", NOW).unwrap();
        let honest = Request::make().unwrap().request;
        let mut lines: Vec<String> = honest.lines().map(str::to_owned).collect();
        // Another letter in the signature, which is at the end.
        let last = lines.len() - 2;
        let letter = if lines[last].as_bytes()[2] == b'A' { "B" } else { "A" };
        lines[last].replace_range(2..3, letter);
        for wrong in ["", "hello", &lines.join("\n")] {
            let told = authority.issue(&worker("n2"), wrong, NOW, DAY).unwrap_err();
            assert!(matches!(told, IdentityError::BadRequest { .. }), "{told:?}");
        }
    }
}
