//! What the messages of nftables have in common, whoever's table they speak of.

mod expression;

use super::netlink::{Writer, read_text};

pub use expression::*;

/// Message types of nftables (linux/netfilter/nf_tables.h), with the subsystem in the upper byte.
pub mod message {
    const fn nft(number: u16) -> u16 {
        (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | number
    }

    pub const NEW_TABLE: u16 = nft(0);
    pub const GET_TABLE: u16 = nft(1);
    pub const DELETE_TABLE: u16 = nft(2);
    pub const NEW_CHAIN: u16 = nft(3);
    pub const GET_CHAIN: u16 = nft(4);
    pub const DELETE_CHAIN: u16 = nft(5);
    pub const NEW_RULE: u16 = nft(6);
    pub const GET_RULE: u16 = nft(7);
    pub const DELETE_RULE: u16 = nft(8);
    pub const NEW_SET: u16 = nft(9);
    pub const GET_SET: u16 = nft(10);
    pub const NEW_ELEMENTS: u16 = nft(12);
    pub const GET_ELEMENTS: u16 = nft(13);
    pub const DELETE_ELEMENTS: u16 = nft(14);
    pub const GET_GENERATION: u16 = nft(16);
}

/// Opens a message about a table of that family (`NFPROTO_INET`, ...).
pub fn header(family: u8) -> Writer {
    Writer::with_header(&[family, 0, 0, 0])
}

/// The instructions of a rule, for a message that makes it.
pub fn put_expressions(body: &mut Writer, rule: &Rule) {
    // The list is in its final form already: an attribute of type 4, with the bit that says "a list".
    body.put(4 | 1 << 15, &rule.expressions);
}

pub fn put_comment(body: &mut Writer, rule: &Rule) {
    body.put(7, &comment(&rule.comment));
}

/// As `nft` writes and shows comments: type 0, length, text with its zero.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).expect("comments of rules are short sentences of this module");
    let mut bytes = vec![0, length];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

pub fn read_comment(bytes: &[u8]) -> String {
    match bytes {
        [0, _, text @ ..] => read_text(text),
        _ => String::new(),
    }
}
