//! Layers of Debian packages, taken from the mirror that apt is set up for.
//!
//! Packages are chosen by what a *program* needs: the ones asked for, and from there every library that they depend on.
//! The rest of a package's dependencies (adduser, debconf, perl, …) serves its maintainer scripts, and these are not run.
//! Nothing is installed and nothing unpacked: the files go from the package straight into the layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::layer::Tree;
use super::layout::hex;

/// What to take.
#[derive(Debug, Clone, Copy)]
pub struct Selection {
    /// Packages to begin with.
    pub packages: &'static [&'static str],
    /// Libraries to do without, with everything that only they need.
    pub without: &'static [&'static str],
    /// Where the paths begin that go into the layer; empty for all.
    pub only: &'static [&'static str],
    /// Where the paths begin that do not, or after a `*` what they contain. Licences are kept in any case.
    pub not: &'static [&'static [&'static str]],
}

impl Selection {
    fn keeps(&self, path: &str) -> bool {
        if path.starts_with("usr/share/doc/") && path.ends_with("/copyright") {
            return true;
        }
        let meant = |pattern: &&str| match pattern.strip_prefix('*') {
            Some(part) => path.contains(part),
            None => path.starts_with(pattern),
        };
        (self.only.is_empty() || self.only.iter().any(meant)) && !self.not.iter().copied().flatten().any(meant)
    }
}

/// One version of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    sha256: String,
    file: String,
    section: String,
    /// For each dependency, the names that would do.
    needs: Vec<Vec<String>>,
}

/// What apt knows, and the packages that were downloaded before.
pub struct Packages {
    cache: PathBuf,
    index: Option<BTreeMap<String, Package>>,
}

impl Packages {
    pub fn new(out: &Path) -> Packages {
        Packages { cache: out.join("debian"), index: None }
    }

    /// The packages of a selection at the versions that apt would install, sorted by name.
    pub fn resolve(&mut self, selection: &Selection) -> Result<Vec<Package>> {
        // Asking apt takes seconds. Its answer can only change when its lists do.
        let question = format!("{RULE} {:?} {:?} {}", selection.packages, selection.without, fingerprint_of_lists()?);
        let note = self.cache.join(format!("resolved-{}", hex(&Sha256::digest(question))));
        if let Some(known) = fs::read(&note).ok().and_then(|note| serde_json::from_slice(&note).ok()) {
            return Ok(known);
        }
        let index = match &mut self.index {
            Some(index) => index,
            none => none.insert(read_index()?),
        };
        if let Some(missing) = selection.packages.iter().find(|name| !index.contains_key(**name)) {
            bail!("apt knows no package {missing}: run apt-get update, or add Debian's mirror to its sources");
        }
        let resolved = closure(index, selection);
        fs::create_dir_all(&self.cache).context("could not create the folder for packages")?;
        fs::write(&note, serde_json::to_vec(&resolved)?).context("could not note the packages")?;
        Ok(resolved)
    }

    /// The files of these packages that the selection keeps.
    pub fn tree(&self, selection: &Selection, packages: &[Package]) -> Result<Tree> {
        self.download(packages)?;
        let mut tree = Tree::default();
        for package in packages {
            let mut unpack = Command::new("dpkg-deb")
                .arg("--fsys-tarfile")
                .arg(self.path(package))
                .stdout(Stdio::piped())
                .spawn()
                .context("could not run dpkg-deb")?;
            let tar = unpack.stdout.take().expect("its output is piped");
            let added = tree.add_tar(tar, |path| selection.keeps(path).then(|| merged(path)));
            let status = unpack.wait()?;
            added.with_context(|| format!("could not read {}", package.file))?;
            ensure!(status.success(), "dpkg-deb could not read {}", package.file);
        }
        Ok(tree)
    }

    fn download(&self, packages: &[Package]) -> Result<()> {
        let missing = |packages: &[Package]| -> Vec<Package> {
            packages.iter().filter(|package| !self.is_here(package)).cloned().collect()
        };
        let wanted = missing(packages);
        if wanted.is_empty() {
            return Ok(());
        }
        fs::create_dir_all(&self.cache).context("could not create the folder for packages")?;
        let status = Command::new("apt-get")
            .current_dir(&self.cache)
            // As root apt would hand the download to a user that cannot write here, and warn that it does not.
            .args(["-q", "-q", "-o", "Acquire::Retries=5", "-o", "APT::Sandbox::User=root", "download"])
            .args(wanted.iter().map(|package| format!("{}={}", package.name, package.version)))
            .stdout(Stdio::null())
            .status()
            .context("could not run apt-get")?;
        let still = missing(&wanted);
        if let Some(first) = still.first() {
            bail!(
                "apt-get download ({status}) left {} of {} packages missing, {} {} among them; if the mirror no longer \
                 has that version, run apt-get update",
                still.len(),
                wanted.len(),
                first.name,
                first.version
            );
        }
        Ok(())
    }

    fn path(&self, package: &Package) -> PathBuf {
        self.cache.join(&package.file)
    }

    fn is_here(&self, package: &Package) -> bool {
        let digest = || -> std::io::Result<String> {
            let (mut file, mut hash, mut piece) = (File::open(self.path(package))?, Sha256::new(), vec![0; 1 << 16]);
            loop {
                match file.read(&mut piece)? {
                    0 => return Ok(hex(&hash.finalize())),
                    count => hash.update(&piece[..count]),
                }
            }
        };
        digest().is_ok_and(|digest| digest == package.sha256)
    }
}

/// Everything that a selection comes to. A dependency with alternatives takes the first that there is.
fn closure(index: &BTreeMap<String, Package>, selection: &Selection) -> Vec<Package> {
    let mut chosen: BTreeSet<&str> = BTreeSet::new();
    let mut todo: Vec<&str> = selection.packages.to_vec();
    while let Some(name) = todo.pop() {
        let Some(package) = index.get(name).filter(|_| chosen.insert(name)) else { continue };
        for alternatives in &package.needs {
            let known = alternatives.iter().find_map(|name| index.get(name));
            // By section, as a name tells less: zlib1g is a library, too.
            let wanted = |package: &&Package| package.section == "libs" && !selection.without.contains(&&*package.name);
            todo.extend(known.filter(wanted).map(|package| package.name.as_str()));
        }
    }
    chosen.into_iter().filter_map(|name| index.get(name)).cloned().collect()
}

/// All packages at their candidate versions, from one call to apt.
fn read_index() -> Result<BTreeMap<String, Package>> {
    let dump = || -> Result<BTreeMap<String, Package>> {
        let output = Command::new("apt-cache").arg("dumpavail").output().context("could not run apt-cache")?;
        ensure!(output.status.success(), "apt-cache dumpavail: {}", String::from_utf8_lossy(&output.stderr));
        Ok(parse_index(&String::from_utf8_lossy(&output.stdout)))
    };
    let index = dump()?;
    if index.len() > LOOKS_EMPTY {
        return Ok(index);
    }
    // A fresh machine has no lists yet.
    let update = Command::new("apt-get").args(["-q", "-q", "update"]).status().context("could not run apt-get")?;
    ensure!(update.success(), "apt-get update: {update}");
    dump()
}

fn parse_index(dump: &str) -> BTreeMap<String, Package> {
    dump.split("\n\n").filter_map(parse_package).map(|package| (package.name.clone(), package)).collect()
}

fn parse_package(record: &str) -> Option<Package> {
    let field = |name: &str| record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let needs = [field("Pre-Depends"), field("Depends")].into_iter().flatten().flat_map(|list| list.split(','));
    // "libc6 (>= 2.34) | libc6.1:any" is two names.
    let names = |alternatives: &str| {
        let name = |text: &str| text.trim().split([' ', ':', '(']).next().unwrap_or_default().to_owned();
        alternatives.split('|').map(name).collect()
    };
    Some(Package {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        sha256: field("SHA256")?.to_owned(),
        // apt-get download names the file itself, with the version as it is and its colon escaped.
        file: format!("{}_{}_{}.deb", field("Package")?, field("Version")?.replace(':', "%3a"), field("Architecture")?),
        section: field("Section")?.to_owned(),
        needs: needs.map(names).collect(),
    })
}

/// Where a path is in an image with merged `/usr`, as Debian has it since 12: a layer that had `bin/` as a folder would
/// hide the link of that name below it.
fn merged(path: &str) -> String {
    let top = path.split('/').next().unwrap_or_default();
    match top {
        "bin" | "sbin" | "lib" | "lib64" => format!("usr/{path}"),
        _ => path.to_owned(),
    }
}

/// Changes whenever apt's lists do.
fn fingerprint_of_lists() -> Result<String> {
    let mut lists = BTreeSet::new();
    for entry in fs::read_dir(LISTS).with_context(|| format!("could not read {LISTS}"))? {
        let (name, about) = entry.and_then(|entry| Ok((entry.file_name(), entry.metadata()?)))?;
        if about.is_file() {
            lists.insert(format!("{name:?} {} {}", about.len(), about.mtime()));
        }
    }
    Ok(hex(&Sha256::digest(lists.into_iter().collect::<Vec<_>>().join("\n"))))
}

/// Changed with the rule by which dependencies are followed, so that an answer by the old one is not taken.
const RULE: u32 = 2;
const LISTS: &str = "/var/lib/apt/lists";
/// A machine without lists still knows the few hundred packages that are installed.
const LOOKS_EMPTY: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "\
Package: server\nVersion: 5:7.0-1\nArchitecture: amd64\nPre-Depends: init-helpers (>= 1.54~)\n\
Depends: libold (>= 3) | libnew:any, server-tools (= 5:7.0-1), libjit14\nSection: net\nSHA256: aa\nDescription: a\n server\n\n\
Package: libnew\nVersion: 1\nArchitecture: amd64\nDepends: libdeep\nSection: libs\nSHA256: bb\n\n\
Package: libdeep\nVersion: 1\nArchitecture: all\nDepends: libnew\nSection: libs\nSHA256: cc\n\n\
Package: libjit14\nVersion: 1\nArchitecture: amd64\nDepends: libhuge\nSection: libs\nSHA256: dd\n\n\
Package: libhuge\nVersion: 1\nArchitecture: amd64\nSection: libs\nSHA256: ee\n\n\
Package: server-tools\nVersion: 1\nArchitecture: amd64\nSection: net\nSHA256: ff\n";

    #[test]
    fn libraries_are_followed_and_the_rest_is_not() {
        let index = parse_index(DUMP);
        let selection = Selection { packages: &["server"], without: &["libjit14"], only: &[], not: &[] };
        let names: Vec<_> = closure(&index, &selection).into_iter().map(|package| package.name).collect();
        assert_eq!(names, ["libdeep", "libnew", "server"]);
        assert_eq!(index["server"].file, "server_5%3a7.0-1_amd64.deb");
    }

    #[test]
    fn a_selection_keeps_what_it_says() {
        let selection =
            Selection { packages: &[], without: &[], only: &[], not: &[&["var/", "usr/share/doc"], &["*/gconv/"]] };
        let kept = ["usr/bin/x", "usr/share/doc/x/copyright", "lib/gconvert"];
        let dropped = ["var/lib/x", "usr/share/doc/x/README", "usr/lib/gconv/X.so"];
        assert!(kept.iter().all(|path| selection.keeps(path)) && !dropped.iter().any(|path| selection.keeps(path)));
        let one = Selection { only: &["bin/one"], ..selection };
        assert!(one.keeps("bin/one") && !one.keeps("bin/two") && one.keeps("usr/share/doc/x/copyright"));
    }

    #[test]
    fn paths_follow_the_merged_usr() {
        let merge = |path| merged(path);
        assert_eq!(merge("bin/sh"), "usr/bin/sh");
        assert_eq!(merge("lib"), "usr/lib");
        assert_eq!(merge("library/x"), "library/x");
    }
}
