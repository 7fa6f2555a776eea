//! Images on a machine, against a real containerd and a real registry: pulling, importing, letting go, and what is left
//! after each of them fails or is killed.

mod scene;
mod volumes;

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::time::Duration;

use conformance::parts::registry::{self, Door, OCI_MANIFEST, Packing, Pushed, Registry};
use conformance::parts::stub_registry::{Reply, Request, StubRegistry};
use controllers::node::images::{
    Archive, Credentials, Error, Images, Phase, Platform, Prune, PruneImported, Pull, Wanted,
};
use scene::{File, Scene, ensure_in_the_end, image_of, layer, noise};
use serde_json::json;

fn wanted(image: &str) -> Wanted {
    Wanted::new(image.parse().expect("test references are right"))
}

/// Wants an image from a registry that stalls after two megabytes, and wants it no more once they have come.
async fn begin_and_drop(scene: &Scene, name: &Wanted) {
    let mut progress = scene.images.progress();
    let two_megabytes = async {
        // What is borrowed from the board must be given back before the pull ends, which writes on it.
        drop(progress.wait_for(|pulls| pulls.values().any(|pull| pull.done_bytes > 2 << 20)).await.unwrap());
    };
    tokio::select! {
        pulled = scene.images.ensure(name) => panic!("the registry stalls: {pulled:?}"),
        () = two_megabytes => {}
    }
}

/// Three layers, one of each packing, the last with a file that is only in it.
fn example() -> Pushed {
    let layers = [
        (Packing::Gzip, layer(&[File::text("etc/name", "one"), File::text("gone", "x"), File::dir("data", 0o1777)])),
        (Packing::Zstd, layer(&[File::text("etc/name", "two"), File::text(".wh.gone", "")])),
        (Packing::Plain, layer(&[File::text("bin/app", "#!").mode(0o4755).owner(7, 8)])),
    ];
    let config = json!({"Entrypoint": ["/bin/app"], "Env": ["A=1"], "User": "7", "Volumes": {"/data": {}},
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 2_000_000_000_u64}});
    Pushed::image(&Platform::of_this_machine().to_string(), &layers, config).unwrap()
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest_and_is_what_its_layers_say() {
    let scene = Scene::start("pull").unwrap();
    let registry = Registry::start("pull", Door::Open).unwrap();
    let image = example();
    registry.push("some/app", "1", &image).await.unwrap();
    let tag = format!("{}/some/app:1", registry.name());

    let by_tag = scene.images.ensure(&wanted(&tag)).await.unwrap();
    assert_eq!(by_tag.digest.as_str(), image.digest());
    assert_eq!(by_tag.manifest, by_tag.digest);
    let config = by_tag.config.config().clone().unwrap();
    assert_eq!(config.entrypoint().clone().unwrap(), ["/bin/app"]);
    assert_eq!(config.volumes().clone().unwrap(), ["/data"]);
    assert_eq!(by_tag.healthcheck.clone().unwrap().interval, Some(Duration::from_secs(2)));
    scene.look_inside(&by_tag, |root| {
        assert_eq!(std::fs::read_to_string(root.join("etc/name")).unwrap(), "two");
        assert!(!root.join("gone").exists(), "a file that a later layer removes stays removed");
        let app = std::fs::metadata(root.join("bin/app")).unwrap();
        assert_eq!((app.uid(), app.gid(), app.permissions().mode() & 0o7777), (7, 8, 0o4755));
        assert_eq!(std::fs::metadata(root.join("data")).unwrap().permissions().mode() & 0o7777, 0o1777);
    });

    let pinned = wanted(&format!("{tag}@{}", image.digest()));
    let by_digest = scene.images.ensure(&pinned).await.unwrap();
    assert_eq!(by_digest.chain_id, by_tag.chain_id);
    let names: Vec<String> = scene.images.list().await.unwrap().iter().map(|record| record.image.to_string()).collect();
    assert_eq!(names, [tag.clone(), format!("{}/some/app@{}", registry.name(), image.digest())]);

    // By now nothing but the records is needed.
    drop(registry);
    assert_eq!(scene.images.ensure(&wanted(&tag)).await.unwrap().digest, by_tag.digest);
    scene.nothing_is_left_over(&[&image]).unwrap();
}

#[tokio::test]
async fn of_an_index_the_build_for_this_machine_is_taken_and_attestations_are_no_builds() {
    let scene = Scene::start("index").unwrap();
    let registry = Registry::start("index", Door::Open).unwrap();
    let ours = example();
    let build = |platform: &str| {
        let config = json!({"Env": [platform]});
        Pushed::image(platform, &[(Packing::Gzip, layer(&[File::text("is", platform)]))], config).unwrap()
    };
    let platform = |architecture: &str| json!({"platform": {"os": "linux", "architecture": architecture}});
    let attestation = {
        let mut entry = platform("unknown");
        entry["platform"]["os"] = json!("unknown");
        entry["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        (build("unknown/unknown"), entry)
    };
    let whole = Pushed::index(vec![
        (build("linux/s390x"), platform("s390x")),
        attestation.clone(),
        (ours.clone(), platform(&Platform::of_this_machine().architecture)),
    ]);
    let whole = whole.unwrap();
    let foreign = Pushed::index(vec![
        (build("linux/s390x"), platform("s390x")),
        attestation,
        (build("linux/riscv64"), platform("riscv64")),
    ]);
    registry.push("app", "1", &whole).await.unwrap();
    registry.push("app", "foreign", &foreign.unwrap()).await.unwrap();
    registry.push("app", "single", &build("linux/s390x")).await.unwrap();
    let name = |tag: &str| wanted(&format!("{}/app:{tag}", registry.name()));

    let resolved = scene.images.resolve(&name("1").image, None).await.unwrap();
    let platforms: Vec<String> = resolved.platforms.iter().map(Platform::to_string).collect();
    assert_eq!(platforms, ["linux/s390x".to_owned(), Platform::of_this_machine().to_string()]);
    let info = scene.images.ensure(&name("1")).await.unwrap();
    assert_eq!((info.digest.as_str(), info.manifest.as_str()), (&*whole.digest(), &*ours.digest()));
    assert_eq!(resolved.digest, info.digest);

    let refused = scene.images.ensure(&name("foreign")).await.unwrap_err().to_string();
    assert!(refused.ends_with("there is linux/s390x, linux/riscv64"), "{refused}");
    let refused = scene.images.ensure(&name("single")).await.unwrap_err().to_string();
    assert!(refused.ends_with("there is linux/s390x"), "{refused}");
    let single = scene.images.resolve(&name("single").image, None).await.unwrap();
    assert_eq!(single.platforms, [Platform::new("linux", "s390x", "")]);
    // Of the index only what runs here was fetched, and of what was refused nothing is kept.
    let mut kept = ours.clone();
    kept.documents.extend(whole.documents.last().cloned());
    scene.nothing_is_left_over(&[&kept]).unwrap();
}

#[tokio::test]
async fn a_registry_with_a_password_is_asked_with_the_right_one_only() {
    let scene = Scene::start("password").unwrap();
    let registry = Registry::start("password", Door::Password).unwrap();
    registry.push("app", "1", &example()).await.unwrap();
    let with = |credentials: Option<(&str, &str)>| Wanted {
        credentials: credentials.map(|(user, word)| Credentials { username: user.into(), password: word.into() }),
        ..wanted(&format!("{}/app:1", registry.name()))
    };

    let nobody = scene.images.ensure(&with(None)).await.unwrap_err();
    assert!(matches!(nobody, Error::Refused { anonymous: true, .. }), "{nobody}");
    assert!(nobody.to_string().contains(&format!("applyctl login {}", registry.name())), "{nobody}");
    let wrong = scene.images.ensure(&with(Some((registry::USER, "guess")))).await.unwrap_err();
    assert!(wrong.to_string().ends_with("refused the credentials given for it"), "{wrong}");
    assert!(!format!("{wrong:?}").contains("guess"));
    assert!(!wrong.is_temporary());
    scene.images.ensure(&with(Some((registry::USER, registry::PASSWORD)))).await.unwrap();
}

#[tokio::test]
async fn a_registry_behind_tls_is_spoken_to_when_somebody_trusted_vouches_for_it() {
    let scene = Scene::start("tls").unwrap();
    let registry = Registry::start("tls", Door::Tls).unwrap();
    let image = example();
    registry.push("app", "1", &image).await.unwrap();
    let credentials = Credentials { username: registry::USER.into(), password: registry::PASSWORD.into() };
    let name = Wanted { credentials: Some(credentials), ..wanted(&format!("{}/app:1", registry.name())) };

    let stranger = scene.images.ensure(&name).await.unwrap_err();
    assert!(matches!(stranger, Error::Unreachable { .. }), "{stranger}");
    assert!(stranger.to_string().contains("certificate"), "{stranger}");
    let trusting = scene.trusting(registry.authority().unwrap());
    assert_eq!(trusting.ensure(&name).await.unwrap().digest.as_str(), image.digest());
    scene.nothing_is_left_over(&[&image]).unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_said_with_what_is() {
    let scene = Scene::start("absent").unwrap();
    let registry = Registry::start("absent", Door::Open).unwrap();
    let image = example();
    for tag in ["1.3", "1.10", "latest", "1.4"] {
        registry.push("shop", tag, &image).await.unwrap();
    }
    let name = registry.name();
    let ensure = async |image: &str| scene.images.ensure(&wanted(image)).await.unwrap_err().to_string();

    let no_tag = ensure(&format!("{name}/shop:latst")).await;
    assert_eq!(
        no_tag,
        format!("image {name}/shop:latst: the registry at {name} has no such tag; it has latest, 1.10, 1.4, 1.3")
    );
    let digest = format!("sha256:{}", "0".repeat(64));
    let no_digest = ensure(&format!("{name}/shop@{digest}")).await;
    assert!(no_digest.contains("nothing with this digest"), "{no_digest}");

    // The same last part under another name is what somebody may have meant.
    scene.images.ensure(&wanted(&format!("{name}/shop:1.3"))).await.unwrap();
    let no_repository = ensure(&format!("{name}/my/shop")).await;
    assert_eq!(
        no_repository,
        format!(
            "image {name}/my/shop:latest: the registry at {name} has no such repository; here there is {name}/shop:1.3"
        )
    );
    let never = Wanted { pull: Pull::Never, ..wanted("shop") };
    let never = scene.images.ensure(&never).await.unwrap_err().to_string();
    assert!(never.contains("may not be pulled; here there is"), "{never}");

    let nobody = ensure("localhost:1/shop:1").await;
    assert!(nobody.starts_with("image localhost:1/shop:1: could not reach the registry at localhost:1"), "{nobody}");
    assert!(nobody.contains("refused"), "{nobody}");
}

#[tokio::test]
async fn the_newest_is_asked_for_only_when_wanted_and_the_old_one_is_good_enough_without_a_registry() {
    let scene = Scene::start("newest").unwrap();
    let mut registry = Registry::start("newest", Door::Open).unwrap();
    let (old, new) = (example(), image_of(&[File::text("v", "2")]));
    registry.push("app", "1", &old).await.unwrap();
    let missing = wanted(&format!("{}/app:1", registry.name()));
    let newest = Wanted { pull: Pull::Newest, ..missing.clone() };
    assert_eq!(scene.images.ensure(&missing).await.unwrap().digest.as_str(), old.digest());

    registry.push("app", "1", &new).await.unwrap();
    assert_eq!(scene.images.ensure(&missing).await.unwrap().digest.as_str(), old.digest());
    let pulled = scene.images.ensure(&newest).await.unwrap();
    assert_eq!(pulled.digest.as_str(), new.digest());
    assert!(pulled.stale_because.is_none());

    registry.kill().unwrap();
    let stale = scene.images.ensure(&newest).await.unwrap();
    assert_eq!(stale.digest.as_str(), new.digest());
    assert!(matches!(stale.stale_because, Some(Error::Unreachable { .. })), "{:?}", stale.stale_because);
    assert!(scene.images.resolve(&newest.image, None).await.unwrap().stale_because.is_some());
    // The tag has moved on, so what it stood for before is gone.
    scene.nothing_is_left_over(&[&new]).unwrap();
}

#[tokio::test]
async fn archives_of_both_kinds_are_taken_in_however_they_are_compressed() {
    let scene = Scene::start("import").unwrap();
    let image = example();
    let oci = image.oci_archive("localhost:5000/oci:1").unwrap();
    let packed: [(&str, Vec<u8>); 3] = [
        ("plain", oci.clone()),
        ("gzip", registry::gzip(&oci).unwrap()),
        ("zstd", zstd::encode_all(&oci[..], 1).unwrap()),
    ];
    for (packing, archive) in packed {
        let records = scene.import(archive, None).await.unwrap_or_else(|error| panic!("{packing}: {error:#}"));
        assert_eq!(records.len(), 1, "{packing}");
        assert_eq!(records[0].image.to_string(), "localhost:5000/oci:1");
        assert_eq!(records[0].digest.as_str(), image.digest());
        assert!(records[0].imported && records[0].size_bytes > 0);
    }

    // As `docker save` wrote it until version 25: two images, a layer that is a link to another's, one without a name.
    let (one, two) = (layer(&[File::text("a", "1")]), layer(&[File::text("b", "2")]));
    let config = |layers: &[&[u8]]| {
        let diff_ids: Vec<String> = layers.iter().map(|layer| registry::digest_of(layer)).collect();
        let platform = Platform::of_this_machine();
        json!({"os": "linux", "architecture": platform.architecture, "config": {"Cmd": ["/a"]},
               "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
    };
    let manifest = json!([
        {"Config": "c1.json", "RepoTags": ["saved/one:1", "saved/one:2"], "Layers": ["l1/layer.tar"]},
        {"Config": "c2.json", "RepoTags": ["saved/two:1"], "Layers": ["l2/layer.tar", "l3/layer.tar"]},
    ]);
    let mut saved = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        saved.append_data(&mut header, path, content).unwrap();
    };
    add("l1/VERSION", b"1.0");
    add("l1/json", b"{}");
    add("l1/layer.tar", &one);
    add("l3/layer.tar", &two);
    add("c1.json", &config(&[&one]));
    add("c2.json", &config(&[&one, &two]));
    add("manifest.json", manifest.to_string().as_bytes());
    add("repositories", b"{}");
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    saved.append_link(&mut link, "l2/layer.tar", "../l1/layer.tar").unwrap();
    let records = scene.import(saved.into_inner().unwrap(), None).await.unwrap();
    let names: Vec<String> = records.iter().map(|record| record.image.familiar()).collect();
    assert_eq!(names, ["saved/one:1", "saved/one:2", "saved/two:1"]);
    let two = scene.images.ensure(&wanted("saved/two:1")).await.unwrap();
    scene.look_inside(&two, |root| {
        assert_eq!(std::fs::read_to_string(root.join("a")).unwrap(), "1");
        assert_eq!(std::fs::read_to_string(root.join("b")).unwrap(), "2");
    });
    // An imported image is what its name means; no registry is asked.
    assert_eq!(scene.images.resolve(&"saved/two:1".parse().unwrap(), None).await.unwrap().digest, two.digest);
    let pinned = wanted(&format!("elsewhere/two@{}", two.digest));
    assert_eq!(scene.images.ensure(&pinned).await.unwrap().chain_id, two.chain_id);
    assert_eq!(scene.leases(), "");
}

#[tokio::test]
async fn broken_and_hostile_archives_are_refused_and_leave_nothing() {
    let scene = Scene::start("hostile").unwrap();
    let image = example();
    let good = image.oci_archive("app:1").unwrap();
    let without = |part: &str| {
        let mut less = image.clone();
        let layers = less.layers();
        less.blobs.retain(|digest, _| !(part == "layer" && *digest == layers[1]));
        less.oci_archive("app:1").unwrap()
    };
    let swapped = {
        let mut swapped = image.clone();
        let layer = swapped.layers()[0].clone();
        swapped.blobs.insert(layer, b"something else".to_vec());
        swapped.oci_archive("app:1").unwrap()
    };
    let escaping = {
        let mut files = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..13].copy_from_slice(b"../../escaped");
        header.set_size(1);
        header.set_cksum();
        files.append(&header, &b"x"[..]).unwrap();
        files.into_inner().unwrap()
    };
    let bomb = {
        // A long name of a gigabyte, a megabyte compressed: it must be refused at its header.
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 30);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(1 << 20, b'a');
        registry::gzip(&bytes).unwrap()
    };
    for (archive, said) in [
        (without("layer"), "layer sha256"),
        (swapped, "came as sha256"),
        (escaping, "the name of entry 1"),
        (bomb, "the name of entry 1"),
        (good[..good.len() / 2].to_vec(), "in the middle of"),
        (registry::gzip(&good).unwrap()[..300].to_vec(), "in the middle of"),
        (b"PK\x03\x04 a zip archive, which is long enough".repeat(30), "not a tar archive"),
        (Vec::new(), "not a tar archive"),
    ] {
        let error = scene.import(archive, None).await.unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains(said), "{text:?} does not say {said:?}");
    }
    scene.nothing_is_left_over(&[]).unwrap();
    scene.import(good, None).await.unwrap();
}

#[tokio::test]
async fn nothing_in_use_is_collected_and_nothing_is_left_behind() {
    let scene = Scene::start("collect").unwrap();
    let registry = Registry::start("collect", Door::Open).unwrap();
    let shared = (Packing::Gzip, layer(&[File::text("base", "b")]));
    let own = |text: &str| {
        let layers = [shared.clone(), (Packing::Gzip, layer(&[File::text("own", text)]))];
        Pushed::image(&Platform::of_this_machine().to_string(), &layers, json!({})).unwrap()
    };
    let (first, second) = (own("1"), own("2"));
    registry.push("first", "1", &first).await.unwrap();
    registry.push("second", "1", &second).await.unwrap();
    let name = |repository: &str| wanted(&format!("{}/{repository}:1", registry.name()));
    for repository in ["first", "second"] {
        scene.images.ensure(&name(repository)).await.unwrap();
    }
    scene.import(example().oci_archive("kept:1").unwrap(), None).await.unwrap();
    scene.nothing_is_left_over(&[&first, &second, &example()]).unwrap();

    let prune = Prune { in_use: BTreeSet::from([name("second").image]), imported: PruneImported::Keep };
    let gone = scene.images.prune(&prune).await.unwrap();
    assert_eq!(gone.iter().map(|record| &record.image).collect::<Vec<_>>(), [&name("first").image]);
    scene.nothing_is_left_over(&[&second, &example()]).unwrap();
    let whole = scene.images.ensure(&name("second")).await.unwrap();
    scene.look_inside(&whole, |root| assert!(root.join("base").exists() && root.join("own").exists()));

    // In use by its content, whatever its name.
    let by_content = name("second").image.pinned(second.digest().parse().unwrap());
    let prune = Prune { in_use: BTreeSet::from([by_content]), imported: PruneImported::Take };
    assert_eq!(scene.images.prune(&prune).await.unwrap().len(), 1);
    assert!(scene.images.remove(&name("second").image).await.unwrap());
    assert!(!scene.images.remove(&name("second").image).await.unwrap());
    scene.nothing_is_left_over(&[]).unwrap();
}

#[tokio::test]
async fn removed_files_and_unnamed_parents_come_out_right_every_time() {
    let scene = Scene::start("layers").unwrap();
    let layers = [
        // No entry for x/, x/y/, x/y/z/; a hard link into them.
        (
            Packing::Gzip,
            layer(&[File::text("bin/app", "app"), File::link("x/y/z/app", "bin/app"), File::text("gone", "")]),
        ),
        (Packing::Gzip, layer(&[File::text("usr/bin/foo", "1"), File::symlink("sbin", "usr/bin")])),
        (Packing::Zstd, layer(&[File::text(".wh.gone", ""), File::text("sbin/bar", "2")])),
        (Packing::Gzip, layer(&[File::text("opaque/old", ""), File::text("opaque/older", "")])),
        (Packing::Gzip, layer(&[File::text("opaque/.wh..wh..opq", ""), File::text("opaque/new", "")])),
    ];
    let image = Pushed::image(&Platform::of_this_machine().to_string(), &layers, json!({})).unwrap();
    let registry = Registry::start("layers", Door::Open).unwrap();
    registry.push("app", "1", &image).await.unwrap();
    let name = wanted(&format!("{}/app:1", registry.name()));
    for round in 0..20 {
        let info = scene.images.ensure(&name).await.unwrap();
        scene.look_inside(&info, |root| {
            assert!(!root.join("gone").exists(), "round {round}: a removed file came back");
            let app = std::fs::metadata(root.join("bin/app")).unwrap();
            assert_eq!(app.nlink(), 2);
            for parent in ["x", "x/y", "x/y/z"] {
                let parent = std::fs::metadata(root.join(parent)).unwrap();
                assert_eq!((parent.uid(), parent.permissions().mode() & 0o7777), (0, 0o755));
            }
            assert!(root.join("usr/bin/foo").exists());
            assert!(root.join("sbin/bar").exists());
            let opaque: Vec<_> =
                std::fs::read_dir(root.join("opaque")).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(opaque, ["new"]);
            let devices =
                std::fs::read_dir(root).unwrap().filter(|e| e.as_ref().unwrap().file_type().unwrap().is_char_device());
            assert_eq!(devices.count(), 0, "whiteouts are not seen");
        });
        assert!(scene.images.remove(&name.image).await.unwrap());
    }
    scene.nothing_is_left_over(&[]).unwrap();
}

#[tokio::test]
async fn everyone_who_wants_an_image_at_once_shares_one_pull() {
    let scene = Scene::start("shared").unwrap();
    let image = example();
    let stub = StubRegistry::start(image.clone(), |_, _| None).await.unwrap();
    let tag = wanted(&format!("{}/app:1", stub.name()));
    let pinned = wanted(&format!("{}/app@{}", stub.name(), image.digest()));
    let others = wanted(&format!("{}/app:1@{}", stub.name(), image.digest()));
    let many = (0..60).map(|at| scene.images.ensure([&tag, &pinned, &others][at % 3]));
    for info in futures::future::try_join_all(many).await.unwrap() {
        assert_eq!(info.digest.as_str(), image.digest());
    }
    for layer in image.layers() {
        assert_eq!(stub.count(&layer), 1, "{:#?}", stub.log());
    }
    scene.nothing_is_left_over(&[&image]).unwrap();
}

#[tokio::test]
async fn a_registry_that_stumbles_is_borne_with() {
    let scene = Scene::start("stumble").unwrap();
    let image = image_of(&[File::noise("big", 3 << 20)]);
    let layer = image.layers()[0].clone();
    let cut_layer = layer.clone();
    let stub = StubRegistry::start(image.clone(), move |request: &Request, before| {
        let is_layer = request.path.contains(&cut_layer);
        match before {
            0 if request.path.contains("manifests") => Some(Reply::new(429, "").with("retry-after", "1")),
            1 if request.path.contains("manifests") => Some(Reply::new(503, "")),
            2 if request.path.contains("manifests") => Some(Reply::new(200, "{\"schemaVersion\"").cut_after(5)),
            0 if is_layer => Some(Reply::new(500, "")),
            _ => None,
        }
    });
    let stub = stub.await.unwrap();
    let begun = tokio::time::Instant::now();
    let info = scene.images.ensure(&wanted(&format!("{}/app:1", stub.name()))).await.unwrap();
    assert_eq!(info.digest.as_str(), image.digest());
    assert!(begun.elapsed() >= Duration::from_secs(1), "the pause that was asked for was kept");
    assert_eq!(stub.count(&layer), 2);

    // One that asks for a long pause gets none: the reason is worth more.
    let stub = StubRegistry::start(example(), |request: &Request, _| {
        request.path.contains("manifests").then(|| Reply::new(429, "").with("retry-after", "3600"))
    });
    let stub = stub.await.unwrap();
    let error = scene.images.ensure(&wanted(&format!("{}/app:1", stub.name()))).await.unwrap_err();
    assert!(error.to_string().ends_with("answered 429 and wants to be left alone for 3600 s"), "{error}");
    assert!(error.is_temporary());
    assert_eq!(stub.count("manifests"), 1);
}

#[tokio::test]
async fn broken_connections_are_gone_on_from_where_they_broke() {
    let scene = Scene::start("broken").unwrap();
    let image = image_of(&[File::noise("big", 9 << 20)]);
    let layer = image.layers()[0].clone();
    let bytes = image.blobs[&layer].clone();
    let whole = bytes.len();
    // Each answer is cut after three megabytes; the third ignores the range, as some proxies do.
    let stub = StubRegistry::start(image.clone(), move |request: &Request, before| {
        if !request.path.contains("blobs") || !request.path.contains(&layer) {
            return None;
        }
        let range = request.headers.get("range");
        let from: usize = range.map_or(0, |range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap());
        let reply = match before {
            2 => Reply::new(200, bytes.clone()).cut_after(from + (3 << 20)),
            _ if from == 0 => Reply::new(200, bytes.clone()).cut_after(3 << 20),
            _ => Reply::new(206, &bytes[from..])
                .with("content-range", format!("bytes {from}-{}/{whole}", whole - 1))
                .cut_after(3 << 20),
        };
        Some(reply)
    });
    let stub = stub.await.unwrap();
    let watch = scene.images.progress();
    let name = wanted(&format!("{}/app:1", stub.name()));
    let pull = scene.images.ensure(&name);
    let mut seen = Vec::new();
    let mut changes = watch.clone();
    let info = tokio::select! {
        biased;
        info = pull => info.unwrap(),
        () = async { loop {
            changes.changed().await.unwrap();
            seen.extend(changes.borrow_and_update().get(&name.image).copied());
        } } => unreachable!(),
    };
    assert_eq!(info.size_bytes, image.blobs.values().map(|blob| blob.len() as u64).sum::<u64>());
    let asked: Vec<String> = stub.log().iter().filter_map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(asked, ["bytes=3145728-", "bytes=6291456-", "bytes=9437184-"]);
    let done: Vec<u64> = seen.iter().filter(|at| at.phase != Phase::Resolving).map(|at| at.done_bytes).collect();
    assert!(done.is_sorted() && done.last() == Some(&info.size_bytes), "{done:?}");
    assert!(watch.borrow().is_empty());
}

#[tokio::test]
async fn what_is_not_what_was_promised_is_refused_and_not_kept() {
    let scene = Scene::start("lies").unwrap();
    let image = image_of(&[File::noise("big", 2 << 20)]);
    let layer = image.layers()[0].clone();
    let blob = image.blobs[&layer].clone();
    let other = {
        let mut other = blob.clone();
        other[100] ^= 1;
        other
    };
    let longer = [blob.clone(), b"more".to_vec()].concat();
    type Lie = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;
    let of_layer = |reply: Reply| -> Lie {
        let layer = layer.clone();
        Box::new(move |request: &Request| request.path.contains(&layer).then(|| reply.clone()))
    };
    let of_manifest = |reply: Reply| -> Lie {
        Box::new(move |request: &Request| request.path.contains("manifests/").then(|| reply.clone()))
    };
    let document = image.documents[0].1.clone();
    let lies: Vec<(Lie, &str)> = vec![
        (of_layer(Reply::new(200, other)), "layer sha256"),
        (of_layer(Reply::new(200, longer)), "came as more than"),
        (of_layer(Reply::new(404, "")), "it has no layer sha256"),
        (
            of_manifest(Reply::new(200, document.clone()).with("docker-content-digest", layer.clone())),
            "manifest sha256",
        ),
        (of_manifest(Reply::new(200, "<html>please log in</html>")), "is not understood"),
        (of_manifest(Reply::new(200, r#"{"schemaVersion":1}"#)), "schema 1"),
        (of_manifest(Reply::new(200, vec![b' '; 5 << 20])), "5242880 bytes long, 4194304 at most"),
        (
            of_manifest(Reply::new(418, r#"{"errors":[{"code":"X","message":"I am a teapot"}]}"#)),
            "answered 418 \"I am a teapot\"",
        ),
        (of_manifest(Reply::new(302, "").with("location", "http://localhost:1/")), "refused"),
    ];
    for (lie, said) in lies {
        let stub = StubRegistry::start(image.clone(), move |request, _| lie(request)).await.unwrap();
        let error = scene.images.ensure(&wanted(&format!("{}/app:1", stub.name()))).await.unwrap_err();
        let error = format!("{:#}", anyhow::Error::from(error));
        assert!(error.contains(said), "{error:?} does not say {said:?}");
    }
    scene.nothing_is_left_over(&[]).unwrap();

    // By digest the manifest itself is held to it.
    let stub = StubRegistry::start(image.clone(), {
        let document = [document, b" ".to_vec()].concat();
        move |request: &Request, _| request.path.contains("manifests/").then(|| Reply::new(200, document.clone()))
    });
    let stub = stub.await.unwrap();
    let pinned = wanted(&format!("{}/app@{}", stub.name(), image.digest()));
    let error = scene.images.ensure(&pinned).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { what: "manifest", .. }), "{error}");
}

#[tokio::test]
async fn credentials_become_a_token_and_never_go_to_another_host() {
    let scene = Scene::start("token").unwrap();
    let image = example();
    // The store of the blobs refuses whoever brings an authorization, as object stores do.
    let blobs = image.clone();
    let storage = StubRegistry::start(Pushed::default(), move |request: &Request, _| {
        let digest = request.path.rsplit('/').next().unwrap_or_default();
        Some(match (request.headers.contains_key("authorization"), blobs.blobs.get(digest)) {
            (true, _) => Reply::new(400, "Only one auth mechanism allowed"),
            (false, Some(blob)) => Reply::new(200, blob.clone()),
            (false, None) => Reply::new(404, ""),
        })
    });
    let storage = storage.await.unwrap();
    let tokens = StubRegistry::start(Pushed::default(), |request: &Request, _| {
        // anna:correct horse
        let is_anna =
            request.headers.get("authorization").is_some_and(|basic| basic == "Basic YW5uYTpjb3JyZWN0IGhvcnNl");
        Some(if is_anna { Reply::new(200, r#"{"token":"opened"}"#) } else { Reply::new(401, "") })
    });
    let tokens = tokens.await.unwrap();
    // Same machine, other port: that counts as another host.
    let (storage_at, tokens_at) = (storage.address(), tokens.address());
    let stub = StubRegistry::start(image.clone(), move |request: &Request, before| {
        let authorization = request.headers.get("authorization").map(String::as_str);
        let challenge =
            format!(r#"Bearer realm="http://{tokens_at}/token",service="stub",scope="repository:app:pull""#);
        match authorization {
            _ if request.path == "/v2/" => None,
            // The first token ends in the middle: it must be fetched anew without a word.
            Some("Bearer opened") if request.path.contains("blobs") && before == 0 => {
                Some(Reply::new(401, "").with("www-authenticate", challenge))
            }
            Some("Bearer opened") if request.path.contains("blobs") => {
                Some(Reply::new(307, "").with("location", format!("http://{storage_at}{}", request.path)))
            }
            Some("Bearer opened") => None,
            _ => Some(Reply::new(401, "").with("www-authenticate", challenge)),
        }
    });
    let stub = stub.await.unwrap();
    let credentials = Credentials { username: "anna".into(), password: "correct horse".into() };
    let name = wanted(&format!("{}/app:1", stub.name()));
    let refused = scene.images.ensure(&name).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { anonymous: true, .. }), "{refused}");
    let info = scene.images.ensure(&Wanted { credentials: Some(credentials), ..name }).await.unwrap();
    assert_eq!(info.digest.as_str(), image.digest());

    assert!(!storage.log().is_empty());
    for request in storage.log() {
        assert!(!request.headers.contains_key("authorization"), "{request:?}");
    }
    assert!(tokens.log().iter().all(|request| request.path == "/token?service=stub&scope=repository%3Aapp%3Apull"));
    for request in stub.log() {
        let sent = request.headers.get("authorization");
        assert!(
            sent.is_none_or(|sent| sent == "Bearer opened"),
            "the password goes to the token service only: {sent:?}"
        );
    }
}

#[tokio::test]
async fn a_pull_that_was_dropped_or_lost_its_containerd_goes_on_where_it_was() {
    let mut scene = Scene::start("resume").unwrap();
    let image = image_of(&[File::noise("big", 6 << 20)]);
    let layer = image.layers()[0].clone();
    let (bytes, slow) = (image.blobs[&layer].clone(), layer.clone());
    let stub = StubRegistry::start(image.clone(), move |request: &Request, before| {
        let is_first = request.path.contains(&slow) && before == 0;
        is_first.then(|| Reply::new(200, bytes.clone()).stall_after(2 << 20))
    });
    let stub = stub.await.unwrap();
    let name = wanted(&format!("{}/app:1", stub.name()));
    begin_and_drop(&scene, &name).await;
    // Nobody wants it any more; then containerd dies; then somebody who knows nothing wants it.
    scene.restart_containerd().unwrap();
    let info = ensure_in_the_end(&scene.images, &name).await;
    assert_eq!(info.digest.as_str(), image.digest());
    let ranges: Vec<Option<String>> = (stub.log().iter())
        .filter(|request| request.path.contains(&layer))
        .map(|request| request.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges, [None, Some("bytes=2097152-".to_owned())]);
    scene.nothing_is_left_over(&[&image]).unwrap();
}

/// Dropping a call is what containerd sees when its caller is killed. Cuts fall all over the time that a call takes, and
/// whoever comes next knows nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_and_an_import_cut_off_anywhere_are_finished_by_a_successor() {
    const CUTS: u32 = 25;
    let scene = Scene::start("cut").unwrap();
    let (pulled, imported) = (example(), image_of(&[File::noise("big", 3 << 20), File::text("b", "2")]));
    let stub = StubRegistry::start(pulled.clone(), |_, _| None).await.unwrap();
    let name = wanted(&format!("{}/app:1", stub.name()));
    let archive = imported.oci_archive("cut:1").unwrap();
    let read = |archive: &Vec<u8>| -> Archive { Box::new(std::io::Cursor::new(archive.clone())) };
    let begun = tokio::time::Instant::now();
    futures::join!(scene.images.ensure(&name), scene.import(archive.clone(), None)).1.unwrap();
    let mut takes = begun.elapsed();
    let mut cut = 0;
    for step in 0..CUTS {
        for record in scene.images.list().await.unwrap() {
            scene.images.remove(&record.image).await.unwrap();
        }
        let dies = scene.successor();
        let begun = tokio::time::Instant::now();
        let both = async { futures::join!(dies.ensure(&name), dies.import(read(&archive), None)) };
        match tokio::time::timeout(takes * step / CUTS, both).await {
            Err(_) => cut += 1,
            // How long they take now.
            Ok(_) => takes = begun.elapsed(),
        }
        drop(dies);
        let next = scene.successor();
        let info = ensure_in_the_end(&next, &name).await;
        assert_eq!(info.digest.as_str(), pulled.digest());
        next.import(read(&archive), None).await.unwrap();
        scene.look_inside(&info, |root| assert_eq!(std::fs::read_to_string(root.join("etc/name")).unwrap(), "two"));
    }
    assert!(cut > CUTS / 2, "only {cut} of {CUTS} were cut off");
    // What a dead one was at when it died may be held by its lease for a while, and not after a prune.
    let prune = Prune { in_use: BTreeSet::from([name.image]), ..Prune::default() };
    assert!(scene.successor().prune(&prune).await.unwrap().is_empty());
    scene.nothing_is_left_over(&[&pulled, &imported]).unwrap();
}

#[tokio::test]
async fn what_an_abandoned_pull_left_is_pruned() {
    let scene = Scene::start("abandoned").unwrap();
    let image = image_of(&[File::noise("big", 6 << 20)]);
    let layer = image.layers()[0].clone();
    let (bytes, slow) = (image.blobs[&layer].clone(), layer.clone());
    let stub = StubRegistry::start(image, move |request: &Request, _| {
        request.path.contains(&slow).then(|| Reply::new(200, bytes.clone()).stall_after(2 << 20))
    });
    let stub = stub.await.unwrap();
    let name = wanted(&format!("{}/app:1", stub.name()));
    begin_and_drop(&scene, &name).await;
    assert_ne!(scene.leases(), "");
    assert!(scene.images.prune(&Prune::default()).await.unwrap().is_empty());
    scene.nothing_is_left_over(&[]).unwrap();
}

#[tokio::test]
async fn a_full_disk_is_called_a_full_disk() {
    let scene = Scene::start_on_small_disk("full", 24 << 20).unwrap();
    let image = image_of(&[File::noise("big", 40 << 20)]);
    let stub = StubRegistry::start(image.clone(), |_, _| None).await.unwrap();
    let name = wanted(&format!("{}/app:1", stub.name()));
    let error = scene.images.ensure(&name).await.unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}: {error:?}");
    let error = scene.import(image.oci_archive("app:1").unwrap(), None).await.unwrap_err();
    assert!(format!("{:#}", anyhow::Error::from(error)).contains("the disk is full"));
    // And a smaller image still fits: what did not was let go of.
    let small = image_of(&[File::noise("small", 4 << 20)]);
    scene.import(small.oci_archive("small:1").unwrap(), None).await.unwrap();
}

#[tokio::test]
async fn a_manifest_that_a_registry_has_under_dockers_names_is_pulled_too() {
    let scene = Scene::start("docker-names").unwrap();
    let mut image = Pushed::default();
    let tar = layer(&[File::text("a", "1")]);
    let config = json!({"os": "linux", "architecture": Platform::of_this_machine().architecture, "config": null,
                        "rootfs": {"type": "layers", "diff_ids": [registry::digest_of(&tar)]}});
    let layer = image.blob("application/vnd.docker.image.rootfs.diff.tar.gzip", registry::gzip(&tar).unwrap());
    let config = image.blob("application/vnd.docker.container.image.v1+json", config.to_string().into_bytes());
    let media_type = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]});
    image.documents.push((media_type.to_owned(), manifest.to_string().into_bytes()));
    let registry = Registry::start("docker-names", Door::Open).unwrap();
    registry.push("app", "1", &image).await.unwrap();
    let info = scene.images.ensure(&wanted(&format!("{}/app:1", registry.name()))).await.unwrap();
    assert_eq!(info.digest.as_str(), image.digest());

    // An image without any layer is an image.
    let empty = Pushed::image(&Platform::of_this_machine().to_string(), &[], json!({})).unwrap();
    registry.push("empty", "1", &empty).await.unwrap();
    let info = scene.images.ensure(&wanted(&format!("{}/empty:1", registry.name()))).await.unwrap();
    assert_eq!(info.chain_id, None);

    // A chart is not.
    let mut chart = Pushed::default();
    let config = chart.blob("application/vnd.cncf.helm.config.v1+json", b"{}".to_vec());
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []});
    chart.documents.push((OCI_MANIFEST.to_owned(), manifest.to_string().into_bytes()));
    registry.push("chart", "1", &chart).await.unwrap();
    let error = scene.images.ensure(&wanted(&format!("{}/chart:1", registry.name()))).await.unwrap_err().to_string();
    assert!(error.contains("it holds application/vnd.cncf.helm.config.v1+json"), "{error}");
}

#[tokio::test]
#[ignore = "a measurement, of an image of 100 MB; run with --ignored --nocapture"]
async fn measure_import_and_pull_of_100_mb() {
    let scene = Scene::start("measure").unwrap();
    let registry = Registry::start("measure", Door::Open).unwrap();
    let layers: Vec<(Packing, Vec<u8>)> = (0..4)
        .map(|at| (Packing::Gzip, layer(&[File { content: noise(25 << 20, at), ..File::text("big", "") }])))
        .collect();
    let image = Pushed::image(&Platform::of_this_machine().to_string(), &layers, json!({})).unwrap();
    registry.push("app", "1", &image).await.unwrap();
    let archive = image.oci_archive("localhost:5000/app:1").unwrap();

    // The same by containerd's own client, beside which ours is to be seen.
    let file = scene.containerd.directory().join("app.tar");
    std::fs::write(&file, &archive).unwrap();
    let begun = tokio::time::Instant::now();
    scene.ctr_in("other", &["images", "import", file.to_str().unwrap()]).unwrap();
    println!("ctr images import of 4 x 25 MiB: {:.2} s", begun.elapsed().as_secs_f64());
    let name = format!("{}/app:1", registry.name());
    scene.ctr_in("other", &["images", "rm", "--sync", "localhost:5000/app:1"]).unwrap();
    scene.nothing_is_left_over(&[]).unwrap();
    let begun = tokio::time::Instant::now();
    scene.ctr_in("third", &["images", "pull", "--plain-http", &name]).unwrap();
    println!("ctr images pull of 4 x 25 MiB: {:.2} s", begun.elapsed().as_secs_f64());
    scene.ctr_in("third", &["images", "rm", "--sync", &name]).unwrap();

    let begun = tokio::time::Instant::now();
    scene.import(archive, None).await.unwrap();
    println!("import and unpack of 4 x 25 MiB: {:.2} s", begun.elapsed().as_secs_f64());
    scene.images.remove(&"localhost:5000/app:1".parse().unwrap()).await.unwrap();
    scene.nothing_is_left_over(&[]).unwrap();

    let name = wanted(&format!("{}/app:1", registry.name()));
    let begun = tokio::time::Instant::now();
    scene.images.ensure(&name).await.unwrap();
    println!("pull and unpack of 4 x 25 MiB: {:.2} s", begun.elapsed().as_secs_f64());
    let begun = tokio::time::Instant::now();
    for _ in 0..100 {
        scene.images.ensure(&name).await.unwrap();
    }
    println!("ensure of what is here: {:.2} ms", begun.elapsed().as_secs_f64() * 10.0);
}
