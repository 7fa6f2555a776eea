//! Netlink messages as bytes: a writer for requests and a reader for attributes.
//!
//! An attribute is a length, a type and a value, padded to four bytes; a value may be a list of attributes. That is all
//! of the format, and why there is no generated binding here: the few messages of `links` and `mesh` write their own
//! attributes, several set elements a message, which the bindings that were tried cannot say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A message body under construction: a fixed header, then attributes.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts with the family's fixed header (`ifinfomsg`, `nfgenmsg`, ...), already in its wire form.
    pub fn with_header(header: &[u8]) -> Writer {
        Writer { bytes: header.to_vec() }
    }

    /// Appends bytes that are not an attribute.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let length =
            u16::try_from(value.len() + 4).expect("one attribute is far below 64 KiB: lists are cut by callers");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value);
    }

    pub fn put_u8(&mut self, kind: u16, value: u8) {
        self.put(kind, &[value]);
    }

    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Big-endian, as everything of netfilter is.
    pub fn put_be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A string with its terminating zero.
    pub fn put_text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Writer)) {
        /// `NLA_F_NESTED`: newer kernels refuse lists that do not say that they are one.
        const NESTED: u16 = 1 << 15;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("lists are cut by callers before 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The attributes of one list, in order. Ends at the first one that does not fit: the kernel sends none such.
pub fn attributes(list: &[u8]) -> Attributes<'_> {
    Attributes { rest: list }
}

#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this type.
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        /// Without the "is a list" and "is big-endian" bits.
        const TYPE: u16 = 0x3fff;
        let length = usize::from(read_u16(self.rest)?);
        let kind = read_u16(self.rest.get(2..)?)?;
        let value = self.rest.get(4..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE, value))
    }
}

pub fn read_u16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.first_chunk()?))
}

pub fn read_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

pub fn read_be16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.first_chunk()?))
}

pub fn read_be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?))
}

/// A string without its terminating zeros. Names in the kernel are bytes; ours are ASCII.
pub fn read_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An address by its length: 4 or 16 bytes.
pub fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back_as_they_were_written() {
        let mut writer = Writer::with_header(&[1, 2, 3, 4]);
        writer.put_text(1, "eth0");
        writer.nest(2, |list| {
            list.put_u8(3, 7);
            list.put_be32(4, 0x0a05_0107);
        });
        let mut read = attributes(&writer.bytes()[4..]);
        assert_eq!(read.next(), Some((1, &b"eth0\0"[..])));
        let (kind, list) = read.next().expect("the list is there");
        assert_eq!((kind, attributes(list).find(3)), (2, Some(&[7][..])));
        assert_eq!(attributes(list).find(4).and_then(read_address), Some("10.5.1.7".parse().unwrap()));
        assert_eq!(read.next(), None);
    }

    #[test]
    fn a_cut_attribute_ends_the_list() {
        assert_eq!(attributes(&[12, 0, 1, 0, 9, 9]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1]).count(), 0);
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
    }
}
