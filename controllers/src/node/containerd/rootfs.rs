//! Reading a file of an image without mounting it: through the layers of its snapshot, topmost first.
//!
//! Only what the start of a container needs (`/etc/passwd`, `/etc/group`), so no mount that a crash could leave behind.
//! The rules are overlayfs's: a character device 0/0 hides what lies below, and so does a directory marked opaque.
//! Symbolic links are followed inside the image and cannot leave it.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use containerd_client::types::Mount;

/// An image's file system as a stack of directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layers {
    /// Topmost first.
    directories: Vec<PathBuf>,
}

/// Largest file that is read; `/etc/passwd` of a large site has some thousand lines.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The kernel's own limit for symbolic links in one path.
const LINKS_MAX: usize = 40;
/// overlayfs's mark of a directory that hides the ones below (`user.` when mounted without privileges).
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

impl Layers {
    /// The layers that a snapshot's mounts consist of; `None` for a snapshotter whose mounts are not directories.
    pub(super) fn of(mounts: &[Mount]) -> Option<Self> {
        let [mount] = mounts else { return None };
        let directories = match mount.r#type.as_str() {
            "bind" => vec![PathBuf::from(&mount.source)],
            "overlay" => {
                let option = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
                let lower = option("lowerdir=").unwrap_or_default().split(':').filter(|dir| !dir.is_empty());
                option("upperdir=").into_iter().chain(lower).map(PathBuf::from).collect()
            }
            _ => return None,
        };
        Some(Layers { directories })
    }

    /// The whole file; `None` if the image has no regular file there. `path` counts from the image's root.
    pub(super) fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let mut left: Vec<OsString> = names(path).rev().collect();
        let mut at: Vec<OsString> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(name);
            let Some((place, found)) = self.look(&at)? else { return Ok(None) };
            if found.is_symlink() {
                links += 1;
                if links > LINKS_MAX {
                    return Ok(None);
                }
                let target = fs::read_link(&place)?;
                at.pop();
                if target.is_absolute() {
                    at.clear();
                }
                left.extend(names(&target).rev());
            } else if left.is_empty() {
                return if found.is_file() { read_bounded(&place).map(Some) } else { Ok(None) };
            }
        }
        Ok(None)
    }

    /// What the overlay shows at this path, no component of which is a link.
    fn look(&self, path: &[OsString]) -> io::Result<Option<(PathBuf, Metadata)>> {
        for layer in &self.directories {
            let mut place = layer.clone();
            let mut hides_below = false;
            let mut found = None;
            for (depth, name) in path.iter().enumerate() {
                place.push(name);
                let metadata = match fs::symlink_metadata(&place) {
                    Ok(metadata) => metadata,
                    Err(error) if is_absent(&error) => break,
                    Err(error) => return Err(error),
                };
                if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
                    hides_below = true;
                    break;
                }
                hides_below |= !metadata.is_dir() || is_opaque(&place);
                if depth + 1 == path.len() {
                    found = Some((place.clone(), metadata));
                }
            }
            if found.is_some() || hides_below {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_opaque(directory: &Path) -> bool {
    let mut value = [0; 8];
    OPAQUE.iter().any(|name| rustix::fs::lgetxattr(directory, *name, &mut value).is_ok_and(|n| value[..n] == *b"y"))
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("{} is larger than {FILE_BYTES_MAX} bytes", path.display())));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Layers below a temporary directory, topmost first, removed with the value.
    struct Scene {
        root: PathBuf,
        layers: Layers,
    }

    impl Scene {
        fn new(name: &str, count: usize) -> Self {
            let root = std::env::temp_dir().join(format!("apply-rootfs-{name}-{}", std::process::id()));
            _ = fs::remove_dir_all(&root);
            let directories: Vec<PathBuf> = (0..count).map(|layer| root.join(layer.to_string())).collect();
            directories.iter().for_each(|layer| fs::create_dir_all(layer).unwrap());
            Scene { root, layers: Layers { directories } }
        }

        fn write(&self, layer: usize, path: &str, content: &str) {
            let place = self.layers.directories[layer].join(path);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, content).unwrap();
        }

        fn link(&self, layer: usize, path: &str, target: &str) {
            symlink(target, self.layers.directories[layer].join(path)).unwrap();
        }

        fn read(&self, path: &str) -> Option<String> {
            self.layers.read(Path::new(path)).unwrap().map(|content| String::from_utf8(content).unwrap())
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.root);
        }
    }

    #[test]
    fn the_topmost_layer_wins_and_lower_ones_show_through() {
        let scene = Scene::new("stack", 3);
        scene.write(2, "etc/passwd", "bottom");
        scene.write(2, "etc/group", "group");
        scene.write(1, "etc/passwd", "middle");
        scene.write(0, "srv/x", "top");
        assert_eq!(scene.read("/etc/passwd").as_deref(), Some("middle"));
        assert_eq!(scene.read("/etc/group").as_deref(), Some("group"));
        assert_eq!(scene.read("/etc/shadow"), None);
        assert_eq!(scene.read("/etc"), None);
        assert_eq!(scene.read("/etc/passwd/x"), None);
    }

    #[test]
    fn links_are_followed_inside_the_image_only() {
        let scene = Scene::new("links", 2);
        scene.write(1, "usr/share/passwd", "shared");
        scene.write(1, "etc/keep", "");
        scene.link(0, "conf", "/etc");
        scene.link(1, "etc/passwd", "../../../../usr/share/passwd");
        scene.link(1, "etc/host", "/etc/passwd");
        scene.link(1, "etc/loop", "loop");
        assert_eq!(scene.read("/conf/passwd").as_deref(), Some("shared"));
        assert_eq!(scene.read("/etc/host").as_deref(), Some("shared"));
        assert_eq!(scene.read("/etc/loop"), None);
    }

    #[test]
    fn a_file_over_a_directory_hides_it() {
        let scene = Scene::new("hide", 2);
        scene.write(1, "etc/passwd", "below");
        scene.write(0, "etc", "a file now");
        assert_eq!(scene.read("/etc/passwd"), None);
        assert_eq!(scene.read("/etc").as_deref(), Some("a file now"));
    }

    #[test]
    fn mounts_of_other_kinds_are_not_layers() {
        let mount = |kind: &str, options: &[&str]| Mount {
            r#type: kind.to_owned(),
            source: "/snapshots/1/fs".to_owned(),
            target: String::new(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        };
        let overlay = mount("overlay", &["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/b:/a"]);
        let expected: Vec<PathBuf> = ["/u", "/b", "/a"].iter().map(PathBuf::from).collect();
        assert_eq!(Layers::of(&[overlay]), Some(Layers { directories: expected }));
        assert!(Layers::of(&[mount("bind", &["rbind"])]).is_some());
        assert_eq!(Layers::of(&[mount("ext4", &[])]), None);
        assert_eq!(Layers::of(&[]), None);
    }
}
