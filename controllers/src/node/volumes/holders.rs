//! Who has a directory mounted, by the kernel's own word: the mount tables of all processes.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of a mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mounted {
    /// `major:minor` of the file system.
    device: String,
    /// The directory of that file system that is shown.
    root: PathBuf,
    point: PathBuf,
}

/// A directory as its file system knows it, wherever that is mounted.
struct Place {
    device: String,
    path: PathBuf,
}

/// The processes (`name (pid)`, one for each mount namespace) that have the directory, or one below it, mounted
/// anywhere, and `mount at …` for what is mounted inside of it here. Costs a look at every process.
pub(super) fn holders(directory: &Path) -> io::Result<Vec<String>> {
    let ours = table(&fs::read_to_string("/proc/self/mountinfo")?);
    let Some(place) = place(directory, &ours) else { return Ok(Vec::new()) };
    let mut holders: Vec<String> = ours
        .iter()
        .filter(|mounted| mounted.point.starts_with(directory) || shows(mounted, &place))
        .map(|mounted| format!("mount at {}", mounted.point.display()))
        .collect();
    let mut seen: HashSet<PathBuf> = fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        let is_process = process.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        // One that has ended meanwhile has nothing mounted.
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else { continue };
        if !is_process || !seen.insert(namespace) {
            continue;
        }
        let Ok(text) = fs::read_to_string(process.join("mountinfo")) else { continue };
        if table(&text).iter().any(|mounted| shows(mounted, &place)) {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            let pid = process.file_name().unwrap_or_default().to_string_lossy().into_owned();
            holders.push(format!("{} ({pid})", name.trim()));
        }
    }
    Ok(holders)
}

fn shows(mounted: &Mounted, place: &Place) -> bool {
    mounted.device == place.device && mounted.root.starts_with(&place.path)
}

/// Where a directory lies in its file system: the mount that covers it says so. The last one of equal points counts,
/// as it hides the others.
fn place(directory: &Path, table: &[Mounted]) -> Option<Place> {
    let covers = table.iter().filter(|mounted| directory.starts_with(&mounted.point));
    let covering = covers.max_by_key(|mounted| mounted.point.components().count())?;
    let path = covering.root.join(directory.strip_prefix(&covering.point).ok()?);
    Some(Place { device: covering.device.clone(), path })
}

fn table(text: &str) -> Vec<Mounted> {
    let line = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let device = fields.next()?.to_owned();
        Some(Mounted { device, root: unescape(fields.next()?), point: unescape(fields.next()?) })
    };
    text.lines().filter_map(line).collect()
}

/// The kernel writes space, tab, newline and backslash as `\040` and so on.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 8:2 / /var/lib rw - ext4 /dev/sda2 rw
31 30 8:2 /apply /srv/my\\040apply rw - ext4 /dev/sda2 rw
";

    #[test]
    fn a_volume_is_found_in_any_table_by_its_place_on_the_disk() {
        let ours = table(OURS);
        let place = place(Path::new("/var/lib/apply/volumes/a/b/_data"), &ours).unwrap();
        assert_eq!((place.device.as_str(), place.path.as_path()), ("8:2", Path::new("/apply/volumes/a/b/_data")));
        for (line, holds) in [
            ("50 49 8:2 /apply/volumes/a/b/_data /data rw - ext4 /dev/sda2 rw", true),
            ("50 49 8:2 /apply/volumes/a/b/_data/sub /data rw - ext4 /dev/sda2 rw", true),
            ("50 49 8:2 /apply/volumes/a/bb/_data /data rw - ext4 /dev/sda2 rw", false),
            ("50 49 8:1 /apply/volumes/a/b/_data /data rw - ext4 /dev/sda1 rw", false),
            ("50 49 8:2 / /host rw - ext4 /dev/sda2 rw", false),
        ] {
            assert_eq!(table(line).iter().any(|mounted| shows(mounted, &place)), holds, "{line}");
        }
        assert!(ours.iter().all(|mounted| !shows(mounted, &place)));
    }

    #[test]
    fn names_are_read_as_the_kernel_writes_them() {
        assert_eq!(table(OURS)[2].point, Path::new("/srv/my apply"));
        assert_eq!(unescape("a\\134b\\"), Path::new("a\\b\\"));
        assert!(table("garbage").is_empty());
    }
}
