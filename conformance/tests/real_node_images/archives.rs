//! Images that come in files.

use crate::scene::{File, Scene, layer};
use conformance::parts::registry::{self};
use controllers::node::images::{Images, Platform};
use serde_json::json;

use crate::{example, wanted};

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
