//! Join tokens: `APPLY-1-<authority>-<secret>`, for people to copy.
//!
//! The first part is the fingerprint of the authority, which the joining machine holds the answering one to; the second is
//! the secret with three bytes that tell a mistyped one from a wrong one before anybody is asked. Both are written in base32
//! (RFC 4648 section 7, lower case, no padding), which survives being read aloud and a wrong case.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_DNSSEC;
use sha2::{Digest, Sha256};

const PREFIX: &str = "APPLY-1-";
const SECRET_BYTES: usize = 16;
const CHECK_BYTES: usize = 3;
/// Of 32 and of 19 bytes, five bits a character.
const FINGERPRINT_CHARS: usize = 52;
const SECRET_CHARS: usize = 31;
const TOKEN_CHARS: usize = PREFIX.len() + FINGERPRINT_CHARS + 1 + SECRET_CHARS;

/// SHA-256 of an authority's public key (its SubjectPublicKeyInfo): the same after its certificate was renewed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// What a machine proves once. 128 bits; never printed but in a [`Token`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

/// What is typed on a machine that joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose cluster it is.
    pub authority: Fingerprint,
    /// What is proved to it.
    pub secret: Secret,
}

/// Why a text is no token. The text itself is not repeated: it may be a whole secret but for a letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("this is no join token: they begin with {PREFIX}; `applyctl token create` on a manager prints one")]
    Foreign,
    #[error("this is a token of Docker Swarm; `applyctl token create` on a manager prints one of ours")]
    Swarm,
    #[error("this token was made by a later version of apply ({0}); upgrade this machine first")]
    Later(String),
    #[error("the join token is cut short: {0} of {TOKEN_CHARS} characters; copy all of it")]
    Short(usize),
    #[error("the join token is too long: {0} characters instead of {TOKEN_CHARS}; copy it alone")]
    Long(usize),
    #[error("the join token has a letter wrong; copy it instead of typing it")]
    Mistyped,
}

impl Fingerprint {
    /// Of a public key in DER (SubjectPublicKeyInfo).
    pub fn of(public_key: &[u8]) -> Self {
        Self(Sha256::digest(public_key).into())
    }

    /// As it is displayed.
    pub fn parse(text: &str) -> Option<Self> {
        BASE32_DNSSEC.decode(text.as_bytes()).ok()?.try_into().ok().map(Self)
    }
}

impl Secret {
    /// Of random bytes that are good enough for keys.
    pub fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// As it goes over the wire, to the one that the token names.
    pub fn reveal(&self) -> String {
        BASE32_DNSSEC.encode(&self.0)
    }

    /// What [`Secret::reveal`] has given.
    pub fn parse(text: &str) -> Option<Self> {
        BASE32_DNSSEC.decode(text.as_bytes()).ok()?.try_into().ok().map(Self)
    }

    /// What is kept of it: SHA-256 in hexadecimal digits.
    pub fn digest(&self) -> String {
        data_encoding::HEXLOWER.encode(&Sha256::digest(self.0))
    }
}

fn check(authority: &Fingerprint, secret: &Secret) -> [u8; CHECK_BYTES] {
    let sum = Sha256::new().chain_update(PREFIX).chain_update(authority.0).chain_update(secret.0).finalize();
    [sum[0], sum[1], sum[2]]
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_DNSSEC.encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The whole token, secret included.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut secret = self.secret.0.to_vec();
        secret.extend(check(&self.authority, &self.secret));
        write!(f, "{PREFIX}{}-{}", self.authority, BASE32_DNSSEC.encode(&secret))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let upper = text.to_ascii_uppercase();
        if upper.starts_with("SWMTKN-") {
            return Err(TokenError::Swarm);
        }
        let Some(rest) = upper.strip_prefix(PREFIX) else {
            let version = upper.strip_prefix("APPLY-").and_then(|rest| rest.split('-').next());
            return Err(match version.and_then(|version| version.parse::<u32>().ok()) {
                Some(version) if version > 1 => TokenError::Later(format!("APPLY-{version}")),
                // `APPLY-1` alone, and what is shorter.
                _ if !upper.is_empty() && PREFIX.starts_with(&*upper) => TokenError::Short(upper.len()),
                _ => TokenError::Foreign,
            });
        };
        match upper.chars().count() {
            count if count < TOKEN_CHARS => return Err(TokenError::Short(count)),
            count if count > TOKEN_CHARS => return Err(TokenError::Long(count)),
            _ => {}
        }
        let (authority, secret) = rest.split_once('-').ok_or(TokenError::Mistyped)?;
        let decoded = |text: &str| BASE32_DNSSEC.decode(text.as_bytes()).map_err(|_| TokenError::Mistyped);
        let authority: [u8; 32] = decoded(authority)?.try_into().map_err(|_| TokenError::Mistyped)?;
        let checked: [u8; SECRET_BYTES + CHECK_BYTES] =
            decoded(secret)?.try_into().map_err(|_| TokenError::Mistyped)?;
        let mut secret = [0; SECRET_BYTES];
        secret.copy_from_slice(&checked[..SECRET_BYTES]);
        let token = Token { authority: Fingerprint(authority), secret: Secret(secret) };
        match checked[SECRET_BYTES..] == check(&token.authority, &token.secret) {
            true => Ok(token),
            false => Err(TokenError::Mistyped),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> Token {
        Token { authority: Fingerprint::of(b"a key"), secret: Secret::new(*b"0123456789abcdef") }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(key: Vec<u8>, secret: [u8; 16]) {
            let token = Token { authority: Fingerprint::of(&key), secret: Secret::new(secret) };
            let text = token.to_string();
            prop_assert_eq!(text.len(), TOKEN_CHARS);
            prop_assert_eq!(text.parse(), Ok(token));
            prop_assert_eq!(format!(" {}\n", text.to_ascii_lowercase()).parse(), Ok(token));
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = text.parse::<Token>();
        }

        #[test]
        fn a_letter_that_was_changed_is_noticed(at in PREFIX.len()..TOKEN_CHARS, to in "[0-9a-v]") {
            let text = token().to_string();
            let mut changed = text.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != text);
            // Three bytes: one in 17 million is not.
            prop_assert_eq!(changed.parse::<Token>(), Err(TokenError::Mistyped));
        }
    }

    #[test]
    fn each_wrong_one_is_told_what_is_wrong_with_it() {
        let text = token().to_string();
        let told = |text: &str| text.parse::<Token>().unwrap_err();
        for length in 1..text.len() {
            let said = told(&text[..length]);
            assert_eq!(said, TokenError::Short(length), "{}", &text[..length]);
        }
        assert_eq!(told(&format!("{text}x")), TokenError::Long(TOKEN_CHARS + 1));
        assert_eq!(told("SWMTKN-1-abc-def"), TokenError::Swarm);
        assert_eq!(told("APPLY-2-abc"), TokenError::Later("APPLY-2".to_owned()));
        assert_eq!(told("hello"), TokenError::Foreign);
        assert_eq!(told(""), TokenError::Foreign);
    }

    #[test]
    fn a_secret_is_not_shown_by_the_way() {
        let shown = format!("{:?}", token());
        assert!(!shown.contains("30313233") && shown.contains("Secret"), "{shown}");
        assert_eq!(token().secret.digest().len(), 64);
    }
}
