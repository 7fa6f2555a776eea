//! References to images, in Docker's grammar: `[registry/]repository[:tag][@digest]`.
//!
//! What people type is short (`redis`, `example/vote:1`); what is compared, stored and pulled is whole
//! (`docker.io/library/redis:latest`). Parsing makes it whole once, by Docker's rules, so that two spellings of one
//! image are equal afterwards. Nothing here asks a registry.
//!
//! The grammar and its limits are those of `distribution/reference`, which every registry accepts: names of at most
//! 255 characters, tags of at most 128.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The registry that a name without one means.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// The tag that a reference without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";

/// Longest `registry/repository`, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;

/// A whole reference to an image: which registry and repository, and which tag, which content, or both.
///
/// In JSON a string in any spelling that Docker takes; written back in the whole one. With both a tag and a digest
/// the digest decides and the tag is there for people. At least one of the two is always set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The hash that names some content: `sha256:` or `sha512:` and lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// How a digest was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// 32 bytes; what registries use.
    Sha256,
    /// 64 bytes; allowed, and rare.
    Sha512,
}

/// Why a text is not a reference. Reads after the text: `Redis: repository names are lower-case; did you mean redis?`
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadImageRef {
    /// Nothing was written.
    #[error("an image is needed")]
    Empty,
    /// A blank, a control character or one that is not ASCII.
    #[error("{0:?} is not allowed in an image reference")]
    Character(char),
    /// Upper case where registries have none; holds the name in lower case.
    #[error("repository names are lower-case; did you mean {0}?")]
    UpperCase(String),
    /// It begins with `http://` or the like; holds what is behind it.
    #[error("an image reference does not begin with a scheme; did you mean {0}?")]
    Scheme(String),
    /// What is before the first slash cannot be a host.
    #[error("{0:?} is not a registry (a host name or address, with :port if need be)")]
    Registry(String),
    /// What is behind the registry is no repository.
    #[error("{0:?} is not a repository (lower-case letters and digits, joined by one of . _ __ - and /)")]
    Repository(String),
    /// 64 hexadecimal digits, which Docker takes for the id of an image on the machine.
    #[error("64 hexadecimal digits are taken for an image id; a repository needs another name")]
    ImageId,
    /// What is behind the colon is no tag.
    #[error("{0:?} is not a tag (up to 128 of letters, digits, _ . -, beginning with none of . -)")]
    Tag(String),
    /// What is behind the `@` is no digest.
    #[error(transparent)]
    Digest(#[from] BadDigest),
    /// Registry and repository together have so many bytes.
    #[error("the name has {0} characters, 255 at most")]
    TooLong(usize),
}

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest (sha256: and 64, or sha512: and 128, lower-case hexadecimal digits)")]
pub struct BadDigest(pub String);

impl ImageRef {
    /// The registry's host and port as people write it: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository inside the registry: `library/redis`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and repository: `docker.io/library/redis`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag; absent only if there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that the content is held to; absent where only a tag says what is meant.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The part of the repository after its last slash: `redis`. What people remember of an image.
    pub fn last_part(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or(&self.repository)
    }

    /// The same image, held to this content; a tag stays, for people.
    pub fn pinned(&self, digest: Digest) -> ImageRef {
        ImageRef { digest: Some(digest), ..self.clone() }
    }

    /// `repository@digest` without the tag, if there is a digest.
    pub fn by_digest(&self) -> Option<ImageRef> {
        self.digest.as_ref()?;
        Some(ImageRef { tag: None, ..self.clone() })
    }

    /// `repository:tag` without the digest, if there is a tag.
    pub fn by_tag(&self) -> Option<ImageRef> {
        self.tag.as_ref()?;
        Some(ImageRef { digest: None, ..self.clone() })
    }

    /// As short as Docker shows it: `redis:7` for `docker.io/library/redis:7`. Parses back to the same reference.
    pub fn familiar(&self) -> String {
        let mut name = match self.registry.as_str() {
            DEFAULT_REGISTRY => match self.repository.strip_prefix("library/") {
                Some(official) if !official.contains('/') => official.to_owned(),
                // `docker.io/localhost/x` would read back as an image of a registry on this machine.
                _ if split_registry(&self.repository).1 != self.repository => self.name(),
                _ => self.repository.clone(),
            },
            registry => format!("{registry}/{}", self.repository),
        };
        self.push_tag_and_digest(&mut name);
        name
    }

    fn push_tag_and_digest(&self, name: &mut String) {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.0);
        }
    }
}

impl FromStr for ImageRef {
    type Err = BadImageRef;

    fn from_str(text: &str) -> Result<Self, BadImageRef> {
        if text.is_empty() {
            return Err(BadImageRef::Empty);
        }
        if let Some(strange) = text.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(BadImageRef::Character(strange));
        }
        if let Some((_, rest)) = text.split_once("://") {
            return Err(BadImageRef::Scheme(rest.to_owned()));
        }

        let (name_and_tag, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let path_start = name_and_tag.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name_and_tag[path_start..].split_once(':') {
            Some((last, tag)) => (&name_and_tag[..path_start + last.len()], Some(tag)),
            None => (name_and_tag, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(BadImageRef::Tag(tag.to_owned()));
        }

        let (registry, repository) = split_registry(name);
        if !is_registry(registry) {
            return Err(BadImageRef::Registry(registry.to_owned()));
        }
        check_repository(name, registry, repository)?;
        let repository = match registry == DEFAULT_REGISTRY && !repository.contains('/') {
            true => format!("library/{repository}"),
            false => repository.to_owned(),
        };
        let length = registry.len() + 1 + repository.len();
        if length > NAME_BYTES_MAX {
            return Err(BadImageRef::TooLong(length));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(ImageRef { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// Docker's rule: what is before the first slash is a registry if it could not be a part of a repository, or says
/// `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            let registry = if first == "index.docker.io" { DEFAULT_REGISTRY } else { first };
            (registry, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn check_repository(name: &str, registry: &str, repository: &str) -> Result<(), BadImageRef> {
    if repository.split('/').all(is_path_component) {
        let looks_like_id = registry == DEFAULT_REGISTRY && repository.len() == 64 && is_hex(repository);
        return if looks_like_id { Err(BadImageRef::ImageId) } else { Ok(()) };
    }
    let lower = repository.to_ascii_lowercase();
    if lower != repository && lower.split('/').all(is_path_component) {
        // A registry by Docker's rule only, for a letter that somebody wrote too large: that one goes too.
        let shown = name.strip_suffix(repository).unwrap_or_default();
        let is_meant = shown.contains(['.', ':', '[']) || shown.starts_with("localhost");
        let shown = if is_meant { shown.to_owned() } else { shown.to_ascii_lowercase() };
        return Err(BadImageRef::UpperCase(format!("{shown}{lower}")));
    }
    Err(BadImageRef::Repository(repository.to_owned()))
}

/// A host name, IPv4 address or bracketed IPv6 address, and maybe a port.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((address, "")) => return is_ipv6(address),
            Some((address, rest)) if is_ipv6(address) => return rest.strip_prefix(':').is_some_and(is_port),
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    port.is_none_or(is_port) && host.split('.').all(is_domain_component)
}

fn is_ipv6(text: &str) -> bool {
    text.parse::<std::net::Ipv6Addr>().is_ok()
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_domain_component(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Runs of lower-case letters and digits, with one separator between two runs: `.`, `_`, `__` or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |s: &str| matches!(s, "." | "_" | "__") || s.chars().all(|c| c == '-');
    let (Some(first), Some(last)) = (text.chars().next(), text.chars().next_back()) else { return false };
    is_alphanumeric(first) && is_alphanumeric(last) && text.split(is_alphanumeric).all(is_separator)
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= TAG_BYTES_MAX
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Digest {
    /// The digest whose digits are these bytes.
    ///
    /// # Panics
    /// If there are not as many bytes as the algorithm makes; that is a mistake of the caller, never of an input.
    pub fn new(algorithm: Algorithm, hash: &[u8]) -> Digest {
        assert_eq!(hash.len() * 2, algorithm.hex_length(), "a {} hash has another length", algorithm.as_str());
        let mut text = format!("{}:", algorithm.as_str());
        for byte in hash {
            text.push_str(&format!("{byte:02x}"));
        }
        Digest(text)
    }

    /// The whole text: `sha256:5a1c…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What made it: the part before the colon.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha512:") { Algorithm::Sha512 } else { Algorithm::Sha256 }
    }

    /// The digits, without the algorithm.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// Algorithm and the first 12 digits, for screens: `sha256:5a1c0e7f4b6d`.
    pub fn short(&self) -> &str {
        &self.0[..self.0.len().min("sha256:".len() + 12)]
    }
}

impl Algorithm {
    /// As digests begin: `sha256`.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let known = [Algorithm::Sha256, Algorithm::Sha512].into_iter().any(|algorithm| {
            text.strip_prefix(algorithm.as_str())
                .and_then(|rest| rest.strip_prefix(':'))
                .is_some_and(|hex| hex.len() == algorithm.hex_length() && is_hex(hex))
        });
        if known { Ok(Digest(text.to_owned())) } else { Err(BadDigest(text.chars().take(150).collect())) }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.name();
        self.push_tag_and_digest(&mut text);
        f.write_str(&text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ImageRef {
    type Error = BadImageRef;
    fn try_from(text: String) -> Result<Self, BadImageRef> {
        text.parse()
    }
}

impl TryFrom<String> for Digest {
    type Error = BadDigest;
    fn try_from(text: String) -> Result<Self, BadDigest> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> String {
        image.to_string()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl JsonSchema for ImageRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ImageRef".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A reference to an image: [registry/]repository[:tag][@digest], as Docker takes it."
        })
    }
}

impl JsonSchema for Digest {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Digest".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHA256: &str = "sha256:5a1c0e7f4b6d92833e5f70c1a2b4d6e8f90123456789abcdef0123456789abcd";

    fn whole(text: &str) -> String {
        match text.parse::<ImageRef>() {
            Ok(image) => image.to_string(),
            Err(why) => format!("refused: {why}"),
        }
    }

    #[test]
    fn short_names_become_whole_ones_by_dockers_rules() {
        for (typed, meant) in [
            ("redis", "docker.io/library/redis:latest"),
            ("redis:7", "docker.io/library/redis:7"),
            ("example/vote:1", "docker.io/example/vote:1"),
            ("docker.io/redis", "docker.io/library/redis:latest"),
            ("index.docker.io/library/redis", "docker.io/library/redis:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            ("registry.example.com/x", "registry.example.com/x:latest"),
            ("REGISTRY/x", "REGISTRY/x:latest"),
            ("10.0.0.1:5000/x:1.2-a_b", "10.0.0.1:5000/x:1.2-a_b"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("[fd00::1]/x", "[fd00::1]/x:latest"),
            ("a/b/c/d", "docker.io/a/b/c/d:latest"),
            ("a_b/c__d/e---f.g", "docker.io/a_b/c__d/e---f.g:latest"),
            ("x:5000", "docker.io/library/x:5000"),
        ] {
            assert_eq!(whole(typed), meant, "{typed}");
        }
    }

    #[test]
    fn a_digest_takes_the_place_of_the_default_tag_and_goes_beside_a_given_one() {
        assert_eq!(whole(&format!("redis@{SHA256}")), format!("docker.io/library/redis@{SHA256}"));
        let both: ImageRef = format!("localhost:5000/redis:7@{SHA256}").parse().unwrap();
        assert_eq!((both.tag(), both.digest().map(Digest::as_str)), (Some("7"), Some(SHA256)));
        assert_eq!(both.by_tag().unwrap().to_string(), "localhost:5000/redis:7");
        assert_eq!(both.by_digest().unwrap().to_string(), format!("localhost:5000/redis@{SHA256}"));
        let tagged: ImageRef = "redis:7".parse().unwrap();
        assert_eq!(tagged.by_digest(), None);
        assert_eq!(tagged.pinned(SHA256.parse().unwrap()).familiar(), format!("redis:7@{SHA256}"));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        for (typed, said) in [
            ("", "an image is needed"),
            ("red is", "' ' is not allowed"),
            ("rédis", "'é' is not allowed"),
            ("https://example.com/x:1", "did you mean example.com/x:1?"),
            ("Redis", "did you mean redis?"),
            ("Test/Box:1", "did you mean test/box?"),
            ("localhost:5000/My/App", "did you mean localhost:5000/my/app?"),
            ("redis:", "\"\" is not a tag"),
            ("redis:-x", "\"-x\" is not a tag"),
            ("a:b:c", "\"b:c\" is not a tag"),
            ("-x.example/y", "\"-x.example\" is not a registry"),
            ("localhost:0/y", "\"localhost:0\" is not a registry"),
            ("localhost:99999/y", "\"localhost:99999\" is not a registry"),
            ("localhost:/y", "\"localhost:\" is not a registry"),
            ("[zz]/y", "\"[zz]\" is not a registry"),
            ("a//b", "\"a//b\" is not a repository"),
            ("/b", "\"/b\" is not a repository"),
            ("a/", "\"a/\" is not a repository"),
            ("a..b/c", "\"a..b\" is not a registry"),
            ("c/a___b", "\"c/a___b\" is not a repository"),
            ("redis@sha256:abc", "\"sha256:abc\" is not a digest"),
            ("redis@md5:d41d8cd98f00b204e9800998ecf8427e", "is not a digest"),
            (&SHA256["sha256:".len()..], "image id"),
        ] {
            let answer = whole(typed);
            assert!(answer.starts_with("refused: ") && answer.contains(said), "{typed}: {answer}");
        }
        assert!(whole(&SHA256.to_uppercase().replacen("SHA256", "x@sha256", 1)).contains("is not a digest"));
        assert!(whole(&"a".repeat(300)).contains("255 at most"));
        assert!(whole(&format!("x:{}", "t".repeat(129))).contains("is not a tag"));
    }

    #[test]
    fn a_made_digest_parses_and_names_its_algorithm() {
        let made = Digest::new(Algorithm::Sha512, &[0xab; 64]);
        assert_eq!(made.as_str().parse::<Digest>().unwrap(), made);
        assert_eq!(made.algorithm(), Algorithm::Sha512);
        assert_eq!(made.hex(), "ab".repeat(64));
        assert_eq!(Digest::new(Algorithm::Sha256, &[1; 32]).short(), "sha256:010101010101");
    }

    #[test]
    fn in_json_it_is_a_string_in_any_spelling() {
        let image: ImageRef = serde_json::from_str("\"redis\"").unwrap();
        assert_eq!(serde_json::to_string(&image).unwrap(), "\"docker.io/library/redis:latest\"");
        let refused = serde_json::from_str::<ImageRef>("\"Redis\"").unwrap_err().to_string();
        assert!(refused.contains("did you mean redis?"), "{refused}");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_what_was_parsed_reads_back_the_same(text in "\\PC{0,80}") {
            if let Ok(image) = text.parse::<ImageRef>() {
                prop_assert_eq!(&image.to_string().parse::<ImageRef>().unwrap(), &image);
                prop_assert_eq!(&image.familiar().parse::<ImageRef>().unwrap(), &image);
            }
        }

        #[test]
        fn made_references_parse_and_read_back_the_same(
            registry in "(docker\\.io|localhost|[a-z][a-z0-9-]{0,8}[a-z0-9]\\.[a-z]{2,4}|\\[fd00::[1-9a-f]{1,4}\\])(:[1-9][0-9]{0,3})?/",
            repository in "[a-z0-9]{1,9}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,9}){0,3}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
            digest in "(@sha256:[0-9a-f]{64})?",
        ) {
            let text = format!("{registry}{repository}{tag}{digest}");
            let image = text.parse::<ImageRef>();
            prop_assert!(image.is_ok(), "{}: {:?}", text, image);
            let image = image.unwrap();
            prop_assert_eq!(&image.to_string().parse::<ImageRef>().unwrap(), &image);
            prop_assert_eq!(&image.familiar().parse::<ImageRef>().unwrap(), &image);
        }
    }
}
