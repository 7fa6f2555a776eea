//! A layer: a tree of files, and its one possible form as a tar archive.
//!
//! Entries are sorted by path, with owner, mode and contents but no times and no names of users, so that the same tree
//! is the same bytes on every machine and in every build.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};
use tar::{EntryType, Header};

/// A tree of files by their path: relative, without a leading `./`.
#[derive(Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

struct Node {
    kind: Kind,
    mode: u32,
    uid: u64,
    gid: u64,
}

enum Kind {
    Dir,
    File(Vec<u8>),
    /// To another path, as the program that follows it sees it.
    Symlink(String),
    /// The same file as the one at this path of the same layer.
    Hardlink(String),
}

impl Tree {
    pub fn dir(&mut self, path: &str, mode: u32) -> &mut Self {
        self.put(path, Kind::Dir, mode)
    }

    pub fn file(&mut self, path: &str, mode: u32, contents: impl Into<Vec<u8>>) -> &mut Self {
        self.put(path, Kind::File(contents.into()), mode)
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.put(path, Kind::Symlink(target.to_owned()), 0o777)
    }

    pub fn hardlink(&mut self, path: &str, to: &str) -> &mut Self {
        self.put(path, Kind::Hardlink(to.to_owned()), 0o644)
    }

    /// Gives what is at `path` to another owner.
    pub fn owner(&mut self, path: &str, uid: u64, gid: u64) -> &mut Self {
        let node = self.nodes.get_mut(path).expect("the recipe names a path that it has put there");
        (node.uid, node.gid) = (uid, gid);
        self
    }

    fn put(&mut self, path: &str, kind: Kind, mode: u32) -> &mut Self {
        self.nodes.insert(path.to_owned(), Node { kind, mode, uid: 0, gid: 0 });
        self
    }

    /// Adds what is in a tar archive and wanted. `place` says where a path goes, or `None` to leave it out.
    pub fn add_tar(&mut self, tar: impl Read, place: impl Fn(&str) -> Option<String>) -> Result<()> {
        for entry in tar::Archive::new(tar).entries()? {
            let mut entry = entry?;
            let name = String::from_utf8(entry.path_bytes().into_owned()).context("a path is not UTF-8")?;
            let clean = |path: &str| path.trim_start_matches("./").trim_end_matches('/').to_owned();
            let Some(path) = place(&clean(&name)).filter(|path| !path.is_empty()) else { continue };
            let link = || -> Result<String> {
                let bytes = entry.link_name_bytes().with_context(|| format!("{name} is a link to nothing"))?;
                String::from_utf8(bytes.into_owned()).context("a link is not UTF-8")
            };
            let kind = match entry.header().entry_type() {
                EntryType::Directory => Kind::Dir,
                EntryType::Symlink => Kind::Symlink(link()?),
                EntryType::Link => match place(&clean(&link()?)) {
                    Some(target) => Kind::Hardlink(target),
                    None => bail!("{name} is a hard link to something that is left out"),
                },
                EntryType::Regular => {
                    let mut contents = Vec::new();
                    entry.read_to_end(&mut contents)?;
                    Kind::File(contents)
                }
                other => bail!("{name} is of a kind that no package has ({other:?})"),
            };
            let header = entry.header();
            let node = Node { kind, mode: header.mode()? & 0o7777, uid: header.uid()?, gid: header.gid()? };
            self.nodes.insert(path, node);
        }
        Ok(())
    }

    /// The tree as an uncompressed tar archive.
    pub fn write(&self, to: impl Write) -> Result<()> {
        let mut tar = tar::Builder::new(to);
        // A hard link comes after what it links to, wherever that sorts.
        let (links, rest): (Vec<_>, Vec<_>) =
            self.nodes.iter().partition(|(_, node)| matches!(node.kind, Kind::Hardlink(_)));
        for (path, node) in rest.into_iter().chain(links) {
            let mut header = Header::new_gnu();
            header.set_mode(node.mode);
            header.set_uid(node.uid);
            header.set_gid(node.gid);
            header.set_mtime(0);
            header.set_size(0);
            match &node.kind {
                Kind::Dir => {
                    header.set_entry_type(EntryType::Directory);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                }
                Kind::File(contents) => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_size(contents.len() as u64);
                    tar.append_data(&mut header, path, &contents[..])?;
                }
                Kind::Symlink(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    tar.append_link(&mut header, path, target)?;
                }
                Kind::Hardlink(target) => {
                    ensure!(self.nodes.contains_key(target), "{path} is a hard link to {target}, which is not there");
                    header.set_entry_type(EntryType::Link);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(tree: &Tree) -> Vec<u8> {
        let mut bytes = Vec::new();
        tree.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_order_of_making_does_not_matter() {
        let (mut one, mut two) = (Tree::default(), Tree::default());
        one.dir("a", 0o755).file("a/b", 0o644, "hello").symlink("z", "a/b").hardlink("a/a", "a/b");
        two.hardlink("a/a", "a/b").symlink("z", "a/b").file("a/b", 0o644, "hello").dir("a", 0o755);
        assert_eq!(bytes(&one), bytes(&two));
    }

    #[test]
    fn what_was_written_is_read_again() {
        let mut tree = Tree::default();
        tree.dir("usr", 0o755).file("usr/su", 0o4755, "x").owner("usr/su", 7, 8).hardlink("usr/alias", "usr/su");
        tree.file(&format!("usr/{}", "long/".repeat(40)), 0o644, "y").dir("skipped", 0o755);
        let mut again = Tree::default();
        again.add_tar(&bytes(&tree)[..], |path| (path != "skipped").then(|| path.to_owned())).unwrap();
        tree.nodes.remove("skipped");
        // A path of a file loses the slash that it should not have had.
        let odd = tree.nodes.remove(&format!("usr/{}", "long/".repeat(40))).unwrap();
        tree.nodes.insert(format!("usr/{}", "long/".repeat(40)).trim_end_matches('/').to_owned(), odd);
        assert_eq!(bytes(&tree), bytes(&again));
    }

    #[test]
    fn a_dangling_hard_link_is_refused() {
        let mut tree = Tree::default();
        tree.hardlink("a", "b");
        assert!(tree.write(Vec::new()).is_err());
    }
}
