//! How a registry wants to be told who asks: reading its challenge, and what to answer.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

/// A name and a password or access token for one registry. Never printed; two are compared to tell pulls apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn basic(&self) -> HeaderValue {
        secret(format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password))))
    }
}

/// What a registry asks for in a 401.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// The credentials themselves.
    Basic,
    /// A token that is to be fetched from `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenge that we can answer, the better one if there are two: a token is worth less than a password.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()) {
        for offered in http_auth::parse_challenges(value).unwrap_or_default() {
            let field = |name: &str| {
                let found = offered.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if offered.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = field("realm")
            {
                return Some(Challenge::Bearer { realm, service: field("service"), scope: field("scope") });
            }
            if offered.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// Where the token for pulling from `repository` is to be had. None if the realm is no http(s) URL.
pub(super) fn token_url(realm: &str, service: Option<&str>, scope: Option<&str>, repository: &str) -> Option<Url> {
    let mut url = Url::parse(realm).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())?;
    let pull = format!("repository:{repository}:pull");
    url.query_pairs_mut()
        .extend_pairs(service.map(|service| ("service", service)))
        .append_pair("scope", scope.unwrap_or(&pull));
    Some(url)
}

/// The header for a token answer (`token`, or `access_token` as OAuth 2 has it).
pub(super) fn bearer(answer: &[u8]) -> Option<HeaderValue> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token)?;
    let printable = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    printable.then(|| secret(format!("Bearer {token}")))
}

fn secret(text: String) -> HeaderValue {
    let mut value = HeaderValue::from_str(&text).expect("base64 and printable ASCII are header text");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge_of(lines: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(line).unwrap());
        }
        challenge(&headers)
    }

    fn bearer_of(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let (service, scope) = (service.map(String::from), scope.map(String::from));
        Some(Challenge::Bearer { realm: realm.into(), service, scope })
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let hub = r#"Bearer realm="https://auth.example.com/token",service="registry.example.com",scope="repository:library/redis:pull,push""#;
        let read = bearer_of(
            "https://auth.example.com/token",
            Some("registry.example.com"),
            Some("repository:library/redis:pull,push"),
        );
        assert_eq!(challenge_of(&[hub]), read);
        assert_eq!(
            challenge_of(&[r#"Basic realm="x", Bearer realm="https://a/t""#]),
            bearer_of("https://a/t", None, None)
        );
        assert_eq!(
            challenge_of(&["Basic realm=\"a\"", "bearer Realm=\"https://a/t\""]),
            bearer_of("https://a/t", None, None)
        );
        assert_eq!(challenge_of(&["basic realm=\"Registry Realm\""]), Some(Challenge::Basic));
        assert_eq!(challenge_of(&["Negotiate"]), None);
        assert_eq!(challenge_of(&["Bearer"]), None);
        assert_eq!(challenge_of(&[]), None);
    }

    #[test]
    fn a_token_is_asked_for_with_the_scope_of_the_repository() {
        let url = |realm, scope| token_url(realm, Some("s p"), scope, "a/b").map(String::from);
        assert_eq!(
            url("https://h/t?x=1", None).as_deref(),
            Some("https://h/t?x=1&service=s+p&scope=repository%3Aa%2Fb%3Apull")
        );
        assert_eq!(url("https://h/t", Some("q")).as_deref(), Some("https://h/t?service=s+p&scope=q"));
        assert_eq!(url("file:///etc/passwd", None), None);
        assert_eq!(url("not a url", None), None);
    }

    #[test]
    fn tokens_come_under_either_name_and_are_never_printed() {
        let header = bearer(br#"{"token":"","access_token":"abc","expires_in":300}"#).unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer abc");
        assert!(!format!("{header:?}").contains("abc"));
        assert_eq!(bearer(br#"{"token":"a b"}"#), None);
        assert_eq!(bearer(b"{}"), None);
        assert_eq!(bearer(b"<html>"), None);
        let credentials = Credentials { username: "anna".into(), password: "secret".into() };
        assert!(!format!("{credentials:?}{:?}", credentials.basic()).contains("secret"));
        assert_eq!(credentials.basic().to_str().unwrap(), "Basic YW5uYTpzZWNyZXQ=");
    }
}
