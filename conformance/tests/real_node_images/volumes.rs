//! Volumes on a machine: filled from real images, in use by real mounts, and gone without a trace.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use conformance::parts::registry::{Packing, Pushed};
use controllers::node::containerd::ContainerId;
use controllers::node::containerd::container_spec::{Access, MountKind};
use controllers::node::images::{ImageInfo, Images, Platform, Wanted as WantedImage};
use controllers::node::tasks::{Place, PrepareError, VolumeMount};
use controllers::node::volumes::{DirectoryVolumes, Error, Fill, Missing, VolumeId, Volumes, Wanted, of_task};
use reconciler_api::Uid;
use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;

use crate::scene::{File, Scene, layer};

struct Machine {
    scene: Scene,
    volumes: DirectoryVolumes,
}

impl Machine {
    fn start(name: &str) -> Machine {
        let scene = Scene::start(name).unwrap();
        let root = scene.containerd.directory().join("machine");
        let volumes = DirectoryVolumes::new(&root, scene.connection.clone(), "overlayfs").unwrap();
        Machine { scene, volumes }
    }

    async fn image(&self, name: &str, layers: &[Vec<File>]) -> ImageInfo {
        let layers: Vec<_> = layers.iter().map(|files| (Packing::Gzip, layer(files))).collect();
        let image = Pushed::image(&Platform::of_this_machine().to_string(), &layers, json!({})).unwrap();
        self.scene.import(image.oci_archive(name).unwrap(), None).await.unwrap();
        self.scene.images.ensure(&WantedImage::new(name.parse().unwrap())).await.unwrap()
    }

    async fn ensure(&self, name: &str, from: Option<(&ImageInfo, &str)>) -> Result<PathBuf, Error> {
        self.volumes.ensure(&wanted(name, from)).await
    }

    /// Nothing of ours is mounted, viewed or half removed.
    fn assert_clean(&self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let machine = self.scene.containerd.directory().join("machine");
        assert!(!table.contains(machine.to_str().unwrap()), "{table}");
        let snapshots = self.scene.ctr(&["snapshots", "ls"]).unwrap();
        assert!(!snapshots.contains("apply-volume"), "{snapshots}");
        assert_eq!(names(&machine.join("volumes/.removed")), Vec::<String>::new());
    }
}

fn id(name: &str) -> VolumeId {
    VolumeId::new("default", name).unwrap()
}

fn wanted(name: &str, from: Option<(&ImageInfo, &str)>) -> Wanted {
    let fill = from.map(|(image, path)| Fill { chain_id: image.chain_id.clone().unwrap(), path: path.into() });
    Wanted { id: id(name), fill }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> (u32, u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid(), stat.mode() & 0o7777)
}

/// A directory as images have them: an owner, odd modes, links, and a file that a later layer removes.
fn git() -> Vec<Vec<File>> {
    let mut pipe = File::text("data/git/pipe", "").mode(0o622);
    pipe.kind = tar::EntryType::Fifo;
    vec![
        vec![
            File::dir("data/git", 0o2750).owner(1000, 1000),
            File::text("data/git/HEAD", "ref").owner(1000, 1000).mode(0o640),
            File::link("data/git/HEAD2", "data/git/HEAD").owner(1000, 1000).mode(0o640),
            File::text("data/git/tool", "#!").mode(0o4755).owner(7, 8),
            File::text("data/git/gone", "x"),
            File::dir("data/git/old", 0o755),
            File::text("data/git/old/x", "x"),
            pipe,
        ],
        vec![
            File::text("data/git/.wh.gone", ""),
            File::text("data/git/.wh.old", ""),
            File::symlink("data/git/sym", "/etc/passwd").owner(1000, 1000),
            File::dir("data/git/empty", 0o700).owner(1000, 1000),
        ],
    ]
}

#[tokio::test]
async fn an_empty_volume_takes_content_owner_and_mode_of_the_images_directory() {
    let machine = Machine::start("fill");
    let image = machine.image("git:1", &git()).await;
    let data = machine.ensure("repo", Some((&image, "/data/git"))).await.unwrap();
    assert!(data.ends_with("machine/volumes/default/repo/_data"));
    assert_eq!(names(&data), ["HEAD", "HEAD2", "empty", "pipe", "sym", "tool"]);
    assert_eq!(mode(&data), (1000, 1000, 0o2750));
    assert_eq!(mode(&data.join("HEAD")), (1000, 1000, 0o640));
    assert_eq!(mode(&data.join("tool")), (7, 8, 0o4755));
    assert_eq!(mode(&data.join("empty")), (1000, 1000, 0o700));
    assert_eq!(fs::read_to_string(data.join("HEAD")).unwrap(), "ref");
    assert_eq!(fs::read_link(data.join("sym")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::symlink_metadata(data.join("sym")).unwrap().uid(), 1000);
    assert!(fs::symlink_metadata(data.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(mode(&data.join("pipe")).2, 0o622);
    let (one, two) = (fs::metadata(data.join("HEAD")).unwrap(), fs::metadata(data.join("HEAD2")).unwrap());
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
    // tar gave every file the beginning of time.
    assert_eq!(one.mtime(), 0);

    // With content it is its users': nothing is changed, whatever is given.
    fs::remove_file(data.join("HEAD2")).unwrap();
    chown(&data, Some(33), Some(33)).unwrap();
    let other = machine.image("other:1", &[vec![File::text("data/git/new", "")]]).await;
    assert_eq!(machine.ensure("repo", Some((&other, "/data/git"))).await.unwrap(), data);
    assert_eq!(names(&data), ["HEAD", "empty", "pipe", "sym", "tool"]);
    assert_eq!(mode(&data), (33, 33, 0o2750));

    // Without a wish, or without such a directory, it stays empty; later it may be filled.
    let plain = machine.ensure("plain", None).await.unwrap();
    machine.ensure("plain", Some((&image, "/nothing"))).await.unwrap();
    assert_eq!((names(&plain), mode(&plain)), (Vec::new(), (0, 0, 0o755)));
    // An owner that was given by hand stays.
    chown(&plain, Some(5), Some(6)).unwrap();
    machine.ensure("plain", Some((&other, "/data/git"))).await.unwrap();
    assert_eq!((names(&plain), mode(&plain)), (vec!["new".to_owned()], (5, 6, 0o755)));
    machine.assert_clean();
}

#[tokio::test]
async fn attributes_and_a_hundred_layers_come_over() {
    let machine = Machine::start("layers");
    let mut layers: Vec<Vec<File>> = (0..100).map(|at| vec![File::text(&format!("d/{at}"), "x")]).collect();
    layers.push(vec![File::text("d/0", "top")]);
    let image = machine.image("many:1", &layers).await;
    let data = machine.ensure("many", Some((&image, "/d"))).await.unwrap();
    assert_eq!(names(&data).len(), 100);
    assert_eq!(fs::read_to_string(data.join("0")).unwrap(), "top");

    // Of one layer, which is shown as it is: an attribute is set where containerd keeps it.
    let image = machine.image("cap:1", &[vec![File::text("c/f", "x")]]).await;
    let snapshots = machine.scene.containerd.directory().join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    let file = names(&snapshots).iter().map(|name| snapshots.join(name).join("fs/c/f")).find(|f| f.exists()).unwrap();
    lsetxattr(&file, "trusted.note", b"kept", XattrFlags::empty()).unwrap();
    let data = machine.ensure("cap", Some((&image, "/c"))).await.unwrap();
    let mut value = [0; 16];
    let length = lgetxattr(data.join("f"), "trusted.note", &mut value).unwrap();
    assert_eq!(&value[..length], b"kept");
    machine.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyone_who_wants_a_volume_at_once_gets_it_filled_once() {
    let machine = Machine::start("crowd");
    let image = machine.image("git:1", &git()).await;
    let other = machine.image("other:1", &[vec![File::text("data/git/new", "")]]).await;
    let (one, two) = (wanted("repo", Some((&image, "/data/git"))), wanted("repo", Some((&other, "/data/git"))));
    let many = (0..40).map(|at| machine.volumes.ensure(if at % 2 == 0 { &one } else { &two }));
    let places = futures::future::try_join_all(many).await.unwrap();
    let filled = names(&places[0]);
    assert!(filled == ["new"] || filled.len() == 6, "{filled:?}");
    // And removed by as many as want to.
    let id = id("repo");
    let removed = futures::future::try_join_all((0..10).map(|_| machine.volumes.remove(&id))).await.unwrap();
    assert_eq!(removed.iter().filter(|was_there| **was_there).count(), 1);
    machine.assert_clean();
}

#[tokio::test]
async fn a_volume_in_use_is_not_removed_and_a_removed_one_is_gone() {
    let machine = Machine::start("remove");
    let data = machine.ensure("db", None).await.unwrap();
    machine.ensure("other", None).await.unwrap();
    fs::create_dir_all(data.join("a/b")).unwrap();
    fs::write(data.join("a/b/c"), vec![7; 10_000]).unwrap();
    fs::hard_link(data.join("a/b/c"), data.join("again")).unwrap();
    let outside = machine.scene.containerd.directory().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    symlink(&outside, data.join("a/out")).unwrap();

    let usage = machine.volumes.measure(&id("db")).await.unwrap().unwrap();
    assert_eq!(usage.entries, 5);
    let du = Command::new("du").args(["-s", "-B1"]).arg(&data).output().unwrap().stdout;
    let du: u64 = String::from_utf8(du).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    let own = fs::metadata(&data).unwrap().blocks() * 512;
    assert_eq!(usage.bytes + own, du);
    assert_eq!(machine.volumes.measure(&id("nothing")).await.unwrap(), None);
    assert_eq!(machine.volumes.list().await.unwrap(), [id("db"), id("other")]);

    // Another mount namespace has a part of it, as a container would.
    let script = format!("mount --bind {} /mnt && echo up && read line", data.join("a").display());
    let mut holder = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let refused = machine.volumes.remove(&id("db")).await.unwrap_err();
    assert_eq!(refused.to_string(), format!("volume default/db is in use: sh ({})", holder.id()));
    assert!(refused.is_temporary() && data.join("again").exists());
    drop(holder.stdin.take());
    holder.wait().unwrap();

    // And one that is mounted on it here, by hand.
    mount("tmpfs", data.join("a/b"), "tmpfs", MountFlags::empty(), None).unwrap();
    let refused = machine.volumes.remove(&id("db")).await.unwrap_err().to_string();
    unmount(data.join("a/b"), UnmountFlags::empty()).unwrap();
    assert!(refused.ends_with(&format!("in use: mount at {}", data.join("a/b").display())), "{refused}");

    assert!(machine.volumes.remove(&id("db")).await.unwrap());
    assert!(!machine.volumes.remove(&id("db")).await.unwrap());
    assert_eq!(machine.volumes.list().await.unwrap(), [id("other")]);
    assert!(outside.join("precious").exists());
    assert!(machine.volumes.remove(&id("other")).await.unwrap());
    assert_eq!(names(&machine.scene.containerd.directory().join("machine/volumes")), [".removed", ".view"]);

    // What a dead predecessor was removing is gone with the next start.
    let root = machine.scene.containerd.directory().join("machine");
    fs::create_dir_all(root.join("volumes/.removed/default.x.0/_data/deep")).unwrap();
    DirectoryVolumes::new(&root, machine.scene.connection.clone(), "overlayfs").unwrap();
    machine.assert_clean();
}

#[tokio::test]
async fn a_volume_that_does_not_fit_says_so_and_keeps_nothing() {
    let machine = Machine::start("full");
    let image = machine.image("big:1", &[vec![File::noise("d/big", 4 << 20)], vec![File::text("e", "")]]).await;
    let root = machine.scene.containerd.directory().join("small");
    fs::create_dir_all(&root).unwrap();
    mount("tmpfs", &root, "tmpfs", MountFlags::empty(), Some(c"size=2m")).unwrap();
    let volumes = DirectoryVolumes::new(&root, machine.scene.connection.clone(), "overlayfs").unwrap();
    let refused = volumes.ensure(&wanted("big", Some((&image, "/d")))).await.unwrap_err();
    assert_eq!(refused.to_string(), "volume default/big: the disk is full");
    assert_eq!(names(&root.join("volumes/default/big")), Vec::<String>::new());
    assert!(volumes.ensure(&wanted("big", None)).await.unwrap().exists());
}

#[tokio::test]
async fn places_for_mounts_are_looked_at_without_leaving_the_volume() {
    let machine = Machine::start("places");
    let data = machine.ensure("v", None).await.unwrap();
    fs::create_dir_all(data.join("a/b")).unwrap();
    fs::write(data.join("file"), "").unwrap();
    symlink("/etc", data.join("out")).unwrap();
    symlink("a", data.join("in")).unwrap();
    let inside = async |path: &str| machine.volumes.inside(&id("v"), Path::new(path)).await;
    assert_eq!(inside("a/b").await.unwrap(), data.join("a/b"));
    for path in ["nothing", "file", "out", "in", "in/b", "..", "a/../../w", "/etc"] {
        let refused = inside(path).await.unwrap_err();
        assert_eq!(refused.to_string(), format!("volume default/v has no directory {path}"));
    }

    let bind = async |path: &Path, missing| machine.volumes.bind(path, missing).await;
    let absent = data.join("x/y");
    bind(&data, Missing::Refuse).await.unwrap();
    let refused = bind(&absent, Missing::Refuse).await.unwrap_err().to_string();
    assert_eq!(refused, format!("this machine has no {}; make it, or say bind.create", absent.display()));
    assert!(!absent.exists());
    bind(&absent, Missing::Make).await.unwrap();
    assert!(absent.is_dir());
    assert!(matches!(bind(Path::new("a"), Missing::Make).await, Err(Error::NotAbsolute { .. })));
    fs::set_permissions(&absent, fs::Permissions::from_mode(0o700)).unwrap();
    bind(&absent, Missing::Make).await.unwrap();
    assert_eq!(mode(&absent).2, 0o700);
}

#[tokio::test]
async fn a_tasks_volumes_become_mounts_and_its_own_go_with_it() {
    let machine = Machine::start("task");
    let image = machine.image("git:1", &git()).await;
    let uid = Uid::new("0b2f5c1e-7a51-4d0e-9d35-0f3c8a6f1a77");
    let volume = |name: Option<&str>, target: &str, subpath: Option<&str>| VolumeMount {
        name: name.map(str::to_owned),
        target: target.to_owned(),
        read_only: subpath.is_some(),
        copy: name != Some("bare"),
        subpath: subpath.map(str::to_owned),
    };
    let mut place = Place {
        uid: uid.clone(),
        namespace: "default".to_owned(),
        container: "web.1".parse::<ContainerId>().unwrap(),
        addresses: Vec::new(),
        mtu: None,
        hostname: String::new(),
        hosts: Vec::new(),
        dns: Default::default(),
        files: vec![],
        volumes: vec![
            volume(Some("repo"), "/data/git", None),
            volume(Some("bare"), "/data/git", None),
            volume(None, "/data/git", None),
            volume(Some("repo"), "/part", Some("empty")),
        ],
        image_layers: image.chain_id.unwrap().to_string(),
    };
    let mounts = of_task::mounts(&machine.volumes, &place).await.unwrap();
    let sources: Vec<&Path> = (mounts.iter())
        .map(|mount| match &mount.kind {
            MountKind::Bind { source, .. } => source.as_path(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sources.iter().map(|source| names(source).len()).collect::<Vec<_>>(), [6, 0, 6, 0]);
    assert!(sources[3].ends_with("default/repo/_data/empty"));
    assert_eq!((mounts[0].access, mounts[3].access), (Access::ReadWrite, Access::ReadOnly));
    // The next attempt finds what it wrote.
    fs::write(sources[2].join("mine"), "").unwrap();
    assert_eq!(of_task::mounts(&machine.volumes, &place).await.unwrap(), mounts);
    assert_eq!(machine.volumes.list().await.unwrap().len(), 3);

    place.volumes = vec![volume(Some("repo"), "/x", Some("nowhere"))];
    let refused = of_task::mounts(&machine.volumes, &place).await.unwrap_err();
    assert!(matches!(&refused, PrepareError::Refused(why) if why.contains("no directory nowhere")), "{refused}");
    place.volumes = vec![volume(Some("a/b"), "/x", None)];
    let refused = of_task::mounts(&machine.volumes, &place).await.unwrap_err();
    assert!(matches!(&refused, PrepareError::Refused(why) if why.starts_with("mount /x: ")), "{refused}");

    of_task::remove_own(&machine.volumes, &uid).await.unwrap();
    of_task::remove_own(&machine.volumes, &uid).await.unwrap();
    assert_eq!(machine.volumes.list().await.unwrap(), [id("bare"), id("repo")]);
    machine.assert_clean();
}
