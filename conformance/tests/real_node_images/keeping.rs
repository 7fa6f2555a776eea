//! What stays and what goes.

use std::collections::BTreeSet;

use crate::scene::{File, Scene, image_of, layer};
use conformance::parts::registry::{Door, Packing, Pushed, Registry};
use conformance::parts::stub_registry::{Reply, Request, StubRegistry};
use controllers::node::images::{Error, Images, Platform, Prune, PruneImported};
use serde_json::json;

use crate::{begin_and_drop, example, wanted};

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
