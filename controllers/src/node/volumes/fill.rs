//! What an empty volume takes over from an image, as with Docker: content, owner, mode.
//!
//! The files of a volume's folder say how far it is:
//!
//! | there is | it means |
//! | --- | --- |
//! | `_data` | the volume; with content it is nobody's but its users' |
//! | `_copy` | a copy under way, or a dead one's: worth nothing |
//! | `_whole` | a whole copy whose parts are on their way into an empty `_data` that containers may have mounted |
//!
//! A new volume is one rename: `_copy` becomes `_data`. An empty `_data` cannot be replaced like that (a container that
//! has it mounted would go on writing into a removed directory), so its content is moved in, part by part; that too is
//! finished by whoever comes next. A container that writes into an empty volume in the milliseconds between the look and
//! the move keeps what it wrote, and gets the image's files beside it; Docker has the same race.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, Stat, flock, fstat, fsync, open, openat2,
    renameat_with, stat, syncfs,
};
use rustix::io::Errno;

use super::copy::{copy_owner_and_mode, copy_tree, remove_tree};

pub(super) const DATA: &str = "_data";
const COPY: &str = "_copy";
const WHOLE: &str = "_whole";

/// Mode of a new volume, as Docker's, and of the folders above it.
const DATA_MODE: Mode = Mode::from_raw_mode(0o755);
const FOLDER_MODE: u32 = 0o711;

/// How often a folder may be removed under our hands before that is called a failure.
const REMOVED_MAX: usize = 10;

/// The folder of one volume, held by one caller at a time, of this process or another.
pub(super) struct Folder {
    path: PathBuf,
    lock: OwnedFd,
}

impl Folder {
    /// Makes the folder if it is not there, and waits for whoever holds it.
    pub fn make(path: &Path) -> io::Result<Folder> {
        for _ in 0..REMOVED_MAX {
            make_folder(path)?;
            if let Some(folder) = Folder::hold(path)? {
                return Ok(folder);
            }
        }
        Err(io::Error::other("it is removed again and again"))
    }

    /// None if there is no such folder.
    pub fn hold(path: &Path) -> io::Result<Option<Folder>> {
        for _ in 0..REMOVED_MAX {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let lock = match open(path, flags, Mode::empty()) {
                Ok(lock) => lock,
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            flock(&lock, FlockOperation::LockExclusive)?;
            // Whoever held it may have removed it.
            if stat(path).is_ok_and(|now| fstat(&lock).is_ok_and(|held| same_file(&now, &held))) {
                return Ok(Some(Folder { path: path.to_owned(), lock }));
            }
        }
        Ok(None)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    /// Finishes what a dead predecessor began. Afterwards a missing or empty `_data` is as it should be.
    pub fn finish(&self) -> io::Result<()> {
        remove_tree(&self.path.join(COPY))?;
        let whole = self.path.join(WHOLE);
        let Some(from) = open_directory(&whole)? else { return Ok(()) };
        let to = open_directory(&self.data())?.ok_or(Errno::NOENT)?;
        for entry in fs::read_dir(&whole)? {
            let name = entry?.file_name();
            match renameat_with(&from, &name, &to, &name, RenameFlags::NOREPLACE) {
                // Somebody else made one of that name meanwhile: theirs stays.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        copy_owner_and_mode(&fstat(&from)?, to.as_fd())?;
        fsync(&to)?;
        remove_tree(&whole)
    }

    /// Whether there is nothing in it, or no volume at all.
    pub fn is_empty(&self) -> io::Result<bool> {
        match fs::read_dir(self.data()) {
            Ok(mut entries) => Ok(entries.next().is_none()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Has the volume, empty if it is new.
    pub fn make_data(&self) -> io::Result<()> {
        match open_directory(&self.data())? {
            Some(_) => Ok(()),
            None => {
                self.make_copy()?;
                self.copy_becomes(DATA)
            }
        }
    }

    /// Fills the volume, which is missing or empty, with what is in `path` of the image's tree `root`; false, and
    /// nothing done, if there is no directory.
    pub fn fill(&self, root: BorrowedFd<'_>, path: &Path) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let below_root = path.strip_prefix("/").unwrap_or(path);
        let below_root = if below_root.as_os_str().is_empty() { Path::new(".") } else { below_root };
        let from = match openat2(root, below_root, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(from) => from,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let copy = self.make_copy()?;
        copy_tree(from.as_fd(), copy.as_fd())?;
        let data = open_directory(&self.data())?;
        if let Some(data) = &data {
            let stat = fstat(data)?;
            let is_as_made = stat.st_uid == 0 && stat.st_gid == 0 && Mode::from_raw_mode(stat.st_mode) == DATA_MODE;
            // An owner or mode that somebody gave it by hand is not the image's to change.
            if !is_as_made {
                copy_owner_and_mode(&stat, copy.as_fd())?;
            }
        }
        // The rename must not reach the disk before what it names: after a power cut that would be a volume with
        // content, of which half is missing.
        syncfs(&copy)?;
        match data {
            None => self.copy_becomes(DATA)?,
            Some(_) => {
                self.copy_becomes(WHOLE)?;
                self.finish()?;
            }
        }
        Ok(true)
    }

    fn make_copy(&self) -> io::Result<OwnedFd> {
        let path = self.path.join(COPY);
        remove_tree(&path)?;
        fs::create_dir(&path)?;
        let copy = open_directory(&path)?.ok_or(Errno::NOENT)?;
        rustix::fs::fchmod(&copy, DATA_MODE)?;
        Ok(copy)
    }

    fn copy_becomes(&self, name: &str) -> io::Result<()> {
        renameat_with(CWD, self.path.join(COPY), CWD, self.path.join(name), RenameFlags::NOREPLACE)?;
        Ok(fsync(&self.lock)?)
    }
}

/// Makes a folder and those above it, through which everyone may go and nobody look.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    for _ in 0..REMOVED_MAX {
        // A namespace's folder goes with its last volume, maybe this moment.
        match fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => return outcome,
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// None if there is nothing; a link is not followed and not a directory.
pub(super) fn open_directory(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn same_file(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    struct Scene {
        base: PathBuf,
    }

    impl Scene {
        fn new(name: &str) -> Scene {
            let base = std::env::temp_dir().join(format!("apply-fill-{name}-{}", std::process::id()));
            remove_tree(&base).unwrap();
            let scene = Scene { base };
            scene.image("srv/data/a", "1");
            scene.image("srv/data/sub/b", "2");
            fs::set_permissions(scene.base.join("image/srv/data"), fs::Permissions::from_mode(0o1770)).unwrap();
            scene
        }

        fn image(&self, path: &str, content: &str) {
            let path = self.base.join("image").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn folder(&self) -> Folder {
            Folder::make(&self.base.join("v/default/db")).unwrap()
        }

        fn ensure(&self, path: &str) -> bool {
            let folder = self.folder();
            folder.finish().unwrap();
            let root = open_directory(&self.base.join("image")).unwrap().unwrap();
            let filled = folder.is_empty().unwrap() && folder.fill(root.as_fd(), Path::new(path)).unwrap();
            folder.make_data().unwrap();
            filled
        }

        /// Everything in the volume's folder, with the contents of files.
        fn seen(&self) -> Vec<String> {
            fn walk(folder: &Path, base: &Path, into: &mut Vec<String>) {
                let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
                entries.sort();
                for path in entries {
                    let name = path.strip_prefix(base).unwrap().display().to_string();
                    if path.is_dir() {
                        into.push(format!("{name}/"));
                        walk(&path, base, into);
                    } else {
                        into.push(format!("{name}={}", fs::read_to_string(&path).unwrap()));
                    }
                }
            }
            let (mut seen, base) = (Vec::new(), self.base.join("v/default/db"));
            walk(&base, &base, &mut seen);
            seen
        }

        fn mode(&self) -> u32 {
            fs::metadata(self.folder().data()).unwrap().mode() & 0o7777
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            _ = remove_tree(&self.base);
        }
    }

    const FILLED: [&str; 4] = ["_data/", "_data/a=1", "_data/sub/", "_data/sub/b=2"];

    #[test]
    fn a_new_volume_and_an_empty_one_take_the_images_content_and_mode() {
        let scene = Scene::new("new");
        assert!(scene.ensure("/srv/data"));
        assert_eq!(scene.seen(), FILLED);
        assert_eq!(scene.mode(), 0o1770);
        // With content it is left alone, whatever the image has now.
        scene.image("srv/data/c", "3");
        assert!(!scene.ensure("/srv/data"));
        assert_eq!(scene.seen(), FILLED);

        let scene = Scene::new("empty");
        scene.folder().make_data().unwrap();
        assert_eq!(scene.mode(), 0o755);
        let before = fs::metadata(scene.folder().data()).unwrap().ino();
        assert!(scene.ensure("/srv/data"));
        assert_eq!(scene.seen(), FILLED);
        assert_eq!((scene.mode(), fs::metadata(scene.folder().data()).unwrap().ino()), (0o1770, before));
    }

    #[test]
    fn a_mode_given_by_hand_stays() {
        let scene = Scene::new("hand");
        scene.folder().make_data().unwrap();
        fs::set_permissions(scene.folder().data(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(scene.ensure("/srv/data"));
        assert_eq!((scene.mode(), scene.seen().len()), (0o700, 4));
    }

    #[test]
    fn what_the_image_does_not_have_leaves_the_volume_empty() {
        let scene = Scene::new("none");
        symlink("/etc", scene.base.join("image/out")).unwrap();
        symlink("loop", scene.base.join("image/loop")).unwrap();
        for path in ["/nothing", "/srv/data/a", "/out", "/loop", "/../../../etc"] {
            assert!(!scene.ensure(path), "{path}");
            assert_eq!(scene.seen(), ["_data/"], "{path}");
        }
        // A link inside the image is followed, also one that is absolute.
        symlink("/srv/data", scene.base.join("image/in")).unwrap();
        assert!(scene.ensure("/in"));
        assert_eq!(scene.seen(), FILLED);
    }

    #[test]
    fn whoever_comes_after_a_crash_finishes_it() {
        // In the middle of the copy, with and without a volume.
        for has_data in [false, true] {
            let scene = Scene::new("copying");
            let folder = scene.folder();
            if has_data {
                folder.make_data().unwrap();
            }
            fs::create_dir_all(folder.path().join("_copy/half")).unwrap();
            drop(folder);
            assert!(scene.ensure("/srv/data"));
            assert_eq!(scene.seen(), FILLED);
        }
        // In the middle of the move: one part is over, and somebody wrote a file of a name that is yet to come.
        let scene = Scene::new("moving");
        let folder = scene.folder();
        folder.make_data().unwrap();
        fs::create_dir_all(folder.path().join("_whole/sub")).unwrap();
        fs::write(folder.path().join("_whole/sub/b"), "2").unwrap();
        fs::write(folder.path().join("_whole/mine"), "image's").unwrap();
        fs::write(folder.path().join("_data/a"), "1").unwrap();
        fs::write(folder.path().join("_data/mine"), "mine").unwrap();
        drop(folder);
        assert!(!scene.ensure("/srv/data"));
        assert_eq!(scene.seen(), ["_data/", "_data/a=1", "_data/mine=mine", "_data/sub/", "_data/sub/b=2"]);
    }

    #[test]
    fn a_volume_that_is_a_link_is_refused() {
        let scene = Scene::new("link");
        symlink("/etc", scene.folder().data()).unwrap();
        assert!(scene.folder().make_data().is_err());
    }
}
