//! Reading tar as a stream, with every length bounded.
//!
//! The `tar` crate decodes headers here, but does not walk: it reads a long name into memory whatever length its header
//! claims, and a small compressed archive can claim gigabytes.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::BadArchive;

const BLOCK: u64 = 512;

/// Most entries. An image has about three a layer.
const ENTRIES_MAX: u32 = 20_000;

/// Longest name, in bytes. Real ones have about 150.
const NAME_BYTES_MAX: usize = 1024;

/// Largest extended header.
const EXTENDED_BYTES_MAX: u64 = 64 << 10;

/// An entry; its content follows in [`Tar::read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::node::images) struct Entry {
    /// Without `.` and empty parts: `blobs/sha256/…`.
    pub path: String,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::node::images) enum Kind {
    File {
        bytes: u64,
    },
    /// Another name, or the place of another file; resolved inside the archive.
    Link {
        target: String,
    },
    Other,
}

/// The entries of an archive, one after the other.
pub(in crate::node::images) struct Tar<R> {
    from: R,
    entries: u32,
    /// Of the present entry: content that was not read yet, and what fills its last block.
    content: u64,
    padding: u64,
}

/// What an extended header says about the entry after it.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    bytes: Option<u64>,
}

impl<R: Read> Tar<R> {
    pub fn new(from: R) -> Self {
        Tar { from, entries: 0, content: 0, padding: 0 }
    }

    /// The next entry, none at the end. What was not read of the one before is skipped.
    pub fn next(&mut self) -> Result<Option<Entry>, BadArchive> {
        let mut extended = Extended::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(BadArchive::TooMany(ENTRIES_MAX));
            }
            let damaged = BadArchive::Header(self.entries);
            let kind = header.entry_type();
            self.content = match extended.bytes {
                Some(bytes) if kind.is_file() => bytes,
                _ => header.entry_size().map_err(|_| damaged.clone())?,
            };
            self.padding = (BLOCK - self.content % BLOCK) % BLOCK;
            if self.content.checked_add(self.padding).is_none() {
                return Err(damaged);
            }
            match kind {
                EntryType::GNULongName => extended.path = Some(self.small(NAME_BYTES_MAX as u64 + 1)?),
                EntryType::GNULongLink => extended.link = Some(self.small(NAME_BYTES_MAX as u64 + 1)?),
                EntryType::XHeader => self.small(EXTENDED_BYTES_MAX).map(|pax| extended.read(&pax))?.ok_or(damaged)?,
                EntryType::XGlobalHeader => {}
                _ => return self.entry(&header, extended).map(Some),
            }
        }
    }

    /// Content of the present entry, as [`Read::read`]; zero at its end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, BadArchive> {
        let most = buffer.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.from.read(&mut buffer[..most]).map_err(unreadable)?;
        if read == 0 {
            return Err(BadArchive::Truncated(format!("entry {}", self.entries)));
        }
        self.content -= read as u64;
        Ok(read)
    }

    fn entry(&self, header: &Header, extended: Extended) -> Result<Entry, BadArchive> {
        let bad_name = || BadArchive::Name(self.entries);
        let path = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = inside(&[], &text(&path).ok_or_else(bad_name)?).ok_or_else(bad_name)?;
        let link = || {
            let target = extended.link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
            text(&target.unwrap_or_default())
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => Kind::File { bytes: self.content },
            // A hard link names its target from the root of the archive, a symbolic one from its own place.
            EntryType::Link => {
                Kind::Link { target: link().and_then(|target| inside(&[], &target)).ok_or_else(bad_name)? }
            }
            EntryType::Symlink => {
                let folder: Vec<&str> = path.split('/').collect();
                let folder = &folder[..folder.len() - 1];
                Kind::Link { target: link().and_then(|target| inside(folder, &target)).ok_or_else(bad_name)? }
            }
            _ => Kind::Other,
        };
        Ok(Entry { path, kind })
    }

    /// The next header; none at the mark of the end or where the input ends between entries.
    fn header(&mut self) -> Result<Option<Header>, BadArchive> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.from.read(&mut block[filled..]).map_err(unreadable)? {
                0 if filled == 0 && self.entries > 0 => return Ok(None),
                0 if self.entries == 0 => return Err(BadArchive::NotATar),
                0 => return Err(BadArchive::Truncated("a header".to_owned())),
                read => filled += read,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 =
            block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { *b as u32 }).sum();
        match header.cksum() {
            Ok(stated) if stated == sum => Ok(Some(header)),
            _ if self.entries == 0 => Err(BadArchive::NotATar),
            _ => Err(BadArchive::Header(self.entries + 1)),
        }
    }

    fn skip_rest(&mut self) -> Result<(), BadArchive> {
        self.content += std::mem::take(&mut self.padding);
        let mut waste = [0; 8192];
        while self.content > 0 {
            self.read(&mut waste)?;
        }
        Ok(())
    }

    fn small(&mut self, max: u64) -> Result<Vec<u8>, BadArchive> {
        if self.content > max {
            return Err(BadArchive::Name(self.entries));
        }
        let mut bytes = vec![0; self.content as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.read(&mut bytes[filled..])?;
        }
        Ok(bytes)
    }
}

impl Extended {
    /// Records of the form `length key=value\n`; none if they are not.
    fn read(&mut self, mut pax: &[u8]) -> Option<()> {
        while !pax.is_empty() && pax[0] != 0 {
            let space = pax.iter().position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&pax[..space]).ok()?.parse().ok()?;
            let record = pax.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.bytes = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                // Files with holes have a layout of their own; no image archive has them.
                key if key.starts_with(b"GNU.sparse") => return None,
                _ => {}
            }
            pax = &pax[length..];
        }
        Some(())
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    (!text.is_empty() && text.len() <= NAME_BYTES_MAX).then(|| text.to_owned())
}

/// The path as seen from the root of the archive; none if it leads out of it.
fn inside(folder: &[&str], path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts = folder.to_vec();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn unreadable(error: io::Error) -> BadArchive {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => BadArchive::Truncated("its compressed data".to_owned()),
        _ => BadArchive::Unreadable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(archive: &[u8]) -> Result<Vec<(String, Kind, Vec<u8>)>, BadArchive> {
        let mut tar = Tar::new(archive);
        let mut entries = Vec::new();
        while let Some(entry) = tar.next()? {
            let (mut content, mut buffer) = (Vec::new(), [0; 100]);
            loop {
                match tar.read(&mut buffer)? {
                    0 => break,
                    read => content.extend_from_slice(&buffer[..read]),
                }
            }
            entries.push((entry.path, entry.kind, content));
        }
        Ok(entries)
    }

    fn header(kind: EntryType, path: &str, bytes: u64) -> Header {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(bytes);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    fn raw(kind: EntryType, path: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = header(kind, path, content.len() as u64).as_bytes().to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    #[test]
    fn files_links_and_long_names_are_read() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("{}/layer.tar", "d".repeat(200));
        for (path, content) in [("./a", &b"one"[..]), (&long, &[7; 1000]), ("empty", &[])] {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, content).unwrap();
        }
        let mut link = Header::new_gnu();
        link.set_entry_type(EntryType::Symlink);
        link.set_size(0);
        builder.append_link(&mut link, "x/layer.tar", "../y/layer.tar").unwrap();
        let mut link = Header::new_gnu();
        link.set_entry_type(EntryType::Link);
        link.set_size(0);
        builder.append_link(&mut link, "x/hard", "a").unwrap();
        let archive = builder.into_inner().unwrap();

        let entries = list(&archive).unwrap();
        let paths: Vec<&str> = entries.iter().map(|(path, _, _)| path.as_str()).collect();
        assert_eq!(paths, ["a", &long, "empty", "x/layer.tar", "x/hard"]);
        assert_eq!(entries[1].2, [7; 1000]);
        assert_eq!(entries[3].1, Kind::Link { target: "y/layer.tar".into() });
        assert_eq!(entries[4].1, Kind::Link { target: "a".into() });
    }

    #[test]
    fn extended_headers_say_path_and_size() {
        let mut archive = raw(EntryType::XHeader, "pax", b"13 path=b/c\nX\n10 size=3\n");
        archive[512..512 + 22].copy_from_slice(b"12 path=b/c\n10 size=3\n");
        archive[124..136].copy_from_slice(b"00000000026\0");
        let fixed = {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(&archive[..512]);
            header.set_cksum();
            header
        };
        archive[..512].copy_from_slice(fixed.as_bytes());
        archive.extend(raw(EntryType::Regular, "short", b"abc"));
        assert_eq!(list(&archive).unwrap(), [("b/c".into(), Kind::File { bytes: 3 }, b"abc".to_vec())]);
    }

    #[test]
    fn hostile_archives_are_refused_and_never_held_in_memory() {
        let file = |path: &str| raw(EntryType::Regular, path, b"x");
        let link = |path: &str, target: &str| {
            let mut header = header(EntryType::Symlink, path, 0);
            header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_cksum();
            header.as_bytes().to_vec()
        };
        let mut damaged = [file("a"), file("b")].concat();
        damaged[1024 + 3] ^= 1;
        let many: Vec<u8> = std::iter::repeat_n(file("a"), ENTRIES_MAX as usize + 1).flatten().collect();
        for (archive, refused) in [
            (file("../etc/passwd"), BadArchive::Name(1)),
            (file("/etc/passwd"), BadArchive::Name(1)),
            (file("a/../../b"), BadArchive::Name(1)),
            (link("a/b", "../../etc/shadow"), BadArchive::Name(1)),
            (link("a/b", "/etc/shadow"), BadArchive::Name(1)),
            (header(EntryType::GNULongName, "x", 8 << 30).as_bytes().to_vec(), BadArchive::Name(1)),
            (header(EntryType::XHeader, "x", 8 << 30).as_bytes().to_vec(), BadArchive::Name(1)),
            (raw(EntryType::XHeader, "x", b"99999 path=a\n"), BadArchive::Header(1)),
            (raw(EntryType::XHeader, "x", b"22 GNU.sparse.major=1\n"), BadArchive::Header(1)),
            (header(EntryType::Regular, "x", 100).as_bytes().to_vec(), BadArchive::Truncated("entry 1".into())),
            (header(EntryType::Regular, "x", u64::MAX).as_bytes().to_vec(), BadArchive::Header(1)),
            (damaged, BadArchive::Header(2)),
            (b"GET / HTTP/1.1\r\n".repeat(40), BadArchive::NotATar),
            (Vec::new(), BadArchive::NotATar),
            (many, BadArchive::TooMany(ENTRIES_MAX)),
        ] {
            assert_eq!(list(&archive).unwrap_err(), refused);
        }
    }

    proptest! {
        #[test]
        fn any_damage_ends_in_entries_or_a_refusal(
            at in 0_usize..2048, bit in 0_u8..8, cut in 0_usize..2048,
        ) {
            let mut archive = [raw(EntryType::XHeader, "p", b"12 path=b/c\n"), raw(EntryType::Regular, "a", &[1; 700])].concat();
            archive[at] ^= 1 << bit;
            archive.truncate(cut.max(1));
            let _ = list(&archive);
        }
    }
}
