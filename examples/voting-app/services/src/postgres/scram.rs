//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the client's half: each side proves to the other that it knows the password,
//! and it never crosses the network.

use std::fs::File;
use std::io::{self, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

pub const MECHANISM: &str = "SCRAM-SHA-256";

/// One login.
pub struct Exchange {
    password: String,
    nonce: String,
    server_proof: Vec<u8>,
}

impl Exchange {
    pub fn new(password: &str) -> io::Result<Exchange> {
        let mut random = [0; 18];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        Ok(Exchange { password: password.to_owned(), nonce: BASE64.encode(random), server_proof: Vec::new() })
    }

    /// The client's first message: no channel binding, the name comes from the startup message.
    pub fn first(&self) -> String {
        format!("n,,{}", self.first_bare())
    }

    /// The client's proof, for the server's first message.
    pub fn answer(&mut self, server_first: &[u8]) -> Result<String, &'static str> {
        let server_first = std::str::from_utf8(server_first).map_err(|_| "the login challenge is not text")?;
        let field = |name| server_first.split(',').find_map(|field| field.strip_prefix(name));
        let nonce = field("r=").filter(|nonce| nonce.starts_with(&self.nonce)).ok_or("the login nonce is not ours")?;
        let salt = field("s=").and_then(|salt| BASE64.decode(salt).ok()).ok_or("the login salt is missing")?;
        let iterations =
            field("i=").and_then(|count| count.parse().ok()).filter(|count| (1..=1_000_000).contains(count));

        let salted = stretch(self.password.as_bytes(), &salt, iterations.ok_or("the iteration count is missing")?);
        let without_proof = format!("c=biws,r={nonce}");
        let transcript = format!("{},{server_first},{without_proof}", self.first_bare());
        let client_key = hmac(&salted, b"Client Key");
        let signature = hmac(&Sha256::digest(client_key), transcript.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
        self.server_proof = hmac(&hmac(&salted, b"Server Key"), transcript.as_bytes()).to_vec();
        Ok(format!("{without_proof},p={}", BASE64.encode(proof)))
    }

    /// Checks that the server knew the password as well.
    pub fn verify(&self, server_last: &[u8]) -> Result<(), &'static str> {
        let proof = server_last.strip_prefix(b"v=").and_then(|proof| BASE64.decode(proof).ok());
        match proof {
            Some(proof) if proof == self.server_proof && !proof.is_empty() => Ok(()),
            _ => Err("the server does not know the password"),
        }
    }

    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }
}

/// PBKDF2 with one block.
fn stretch(password: &[u8], salt: &[u8], iterations: u32) -> [u8; 32] {
    let mut last = hmac(password, &[salt, &1_u32.to_be_bytes()].concat());
    let mut sum = last;
    for _ in 1..iterations {
        last = hmac(password, &last);
        sum.iter_mut().zip(last).for_each(|(sum, last)| *sum ^= last);
    }
    sum
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    match key.len() {
        0..=64 => block[..key.len()].copy_from_slice(key),
        _ => block[..32].copy_from_slice(&Sha256::digest(key)),
    }
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange printed in RFC 7677, section 3, but for the user name, which PostgreSQL takes from elsewhere: so the
    /// proofs differ from the printed ones and were computed apart, with Python's hashlib.
    #[test]
    fn a_whole_exchange() {
        let mut exchange =
            Exchange { password: "pencil".into(), nonce: "rOprNGfwEbeRWgbNEkqO".into(), server_proof: Vec::new() };
        assert_eq!(exchange.first(), "n,,n=,r=rOprNGfwEbeRWgbNEkqO");
        let challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert_eq!(
            exchange.answer(challenge).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=qvT2SWdEH5Q06albL+hjSYuUhCG7VndFyzIb7CK4n9k="
        );
        exchange.verify(b"v=3HO6Qt1M4MKJrmlKaoOqLAI0/0TV0HZe7J9H3MBtSOg=").unwrap();
        assert!(exchange.verify(b"v=AAAA").is_err());
    }

    #[test]
    fn a_foreign_nonce_is_refused() {
        let mut exchange = Exchange::new("pencil").unwrap();
        assert!(exchange.answer(b"r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096").is_err());
        assert!(exchange.verify(b"v=").is_err());
    }
}
