//! Names of links, derived from ids: whoever starts again after a crash finds what the dead one made.

use std::fmt;

use sha2::{Digest, Sha256};

/// The name of a network interface: 1 to 15 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(String);

impl LinkName {
    /// A name read from the kernel, which made sure of its length.
    pub(in crate::node) fn seen(name: String) -> LinkName {
        LinkName(name)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// What all links of one installation begin with, so that two on one machine (a demo beside the real one) never meet.
///
/// 1 to 3 lower-case letters. Behind it stands one letter for the kind of link, so that no pattern of one kind matches
/// a link of another (`v*` would also match `vx0`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkPrefix(String);

impl LinkPrefix {
    /// `None` for anything but 1 to 3 letters `a` to `z`.
    pub fn new(letters: &str) -> Option<LinkPrefix> {
        let fits = (1..=3).contains(&letters.len()) && letters.bytes().all(|byte| byte.is_ascii_lowercase());
        fits.then(|| LinkPrefix(letters.to_owned()))
    }

    /// The machine's end of a task's veth pair.
    pub fn task(&self, id: &str) -> LinkName {
        let digest = Sha256::digest(id.as_bytes());
        let room = 15 - self.tasks().len();
        let hash: String = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(hex).take(room).collect();
        LinkName(self.tasks() + &hash)
    }

    /// What the names of all tasks' links begin with.
    pub fn tasks(&self) -> String {
        format!("{}t", self.0)
    }

    /// The link that holds the machine's overlay address, and its other end.
    pub fn machine(&self) -> (LinkName, LinkName) {
        (LinkName(format!("{}s0", self.0)), LinkName(format!("{}s1", self.0)))
    }

    /// The link to the other machines (VXLAN). On one machine there is none.
    pub fn overlay(&self) -> LinkName {
        LinkName(format!("{}x0", self.0))
    }

    /// The link below that one, whose packets are encrypted (TUN). Where they go in the clear there is none.
    pub fn wireguard(&self) -> LinkName {
        LinkName(format!("{}w0", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LinkPrefix {
    fn default() -> LinkPrefix {
        LinkPrefix("apl".into())
    }
}

fn hex(nibble: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(nibble & 15)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_and_differs_by_id_and_prefix() {
        let prefix = LinkPrefix::default();
        let name = prefix.task("2b3c4d5e-0000-4000-8000-000000000001");
        assert_eq!(name.as_str().len(), 15);
        assert!(name.as_str().starts_with("aplt"));
        assert_ne!(name, prefix.task("2b3c4d5e-0000-4000-8000-000000000002"));
        assert_ne!(name, LinkPrefix::new("zz").unwrap().task("2b3c4d5e-0000-4000-8000-000000000001"));
    }

    #[test]
    fn a_prefix_is_one_to_three_letters() {
        for refused in ["", "abcd", "a1", "A", "a-b"] {
            assert!(LinkPrefix::new(refused).is_none(), "{refused:?}");
        }
    }
}
