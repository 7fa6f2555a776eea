//! What a registry has, as it should be.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::time::Duration;

use crate::scene::{File, Scene, image_of, layer, noise};
use conformance::parts::registry::{self, Door, OCI_MANIFEST, Packing, Pushed, Registry};
use controllers::node::images::{Credentials, Error, Images, Platform, Pull, Wanted};
use serde_json::json;

use crate::{example, wanted};

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
    assert!(
        nobody.starts_with(
            "image localhost:1/shop:1: it is not on this machine, and could not reach the registry at localhost:1"
        ),
        "{nobody}"
    );
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
