//! Registries and connections that fail, and pulls that are cut off.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::scene::{File, Scene, ensure_in_the_end, image_of};
use conformance::parts::registry::Pushed;
use conformance::parts::stub_registry::{Reply, Request, StubRegistry};
use controllers::node::images::{Archive, Credentials, Error, Images, Phase, Prune, Wanted};

use crate::{begin_and_drop, example, wanted};

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
