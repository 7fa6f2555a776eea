//! Files of the format of 2016, as people have them.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::Stage;

fn published(stage: &Stage, service: &str) -> Vec<u64> {
    let found = stage.machine.json(&["get", "service", service]).unwrap();
    let service = found["items"].get(0).cloned().unwrap_or(found);
    let ports = service["status"]["ports"].as_array().or(service["spec"]["endpoint"]["ports"].as_array()).cloned();
    ports.unwrap_or_default().iter().filter_map(|port| port["published"].as_u64()).collect()
}

/// moby/moby#27208: several unpublished ports were one published port twice, and half of the bundle was left behind.
#[test]
fn ports_that_two_services_have_are_published_apart() {
    let stage = Stage::open("ports");
    let file = stage.file(
        "two.dab",
        r#"{"Version":"0.1","Services":{
            "a":{"Image":"test/box:1","Ports":[{"Protocol":"tcp","Port":80},{"Protocol":"tcp","Port":443}]},
            "b":{"Image":"test/box:1","Ports":[{"Protocol":"tcp","Port":80}]}}}"#,
    );
    stage.machine.ctl(&["deploy", "two", &file]).unwrap();
    let all: Vec<u64> = [published(&stage, "two-a"), published(&stage, "two-b")].concat();
    let apart: BTreeSet<&u64> = all.iter().collect();
    assert_eq!((all.len(), apart.len()), (3, 3), "{all:?}");
    for port in published(&stage, "two-b") {
        let answer = stage.machine.fetch(&[&format!("http://127.0.0.1:{port}/")]).unwrap();
        assert!(answer.contains(" 1 "), "{answer}");
    }
    // One that can't be is refused before anything of it is there.
    let clash = stage.file(
        "clash.dab",
        r#"{"Version":"0.1","Services":{"c":{"Image":"test/box:1","Networks":["n"],"Ports":[{"Protocol":"tcp","Port":80}]},
            "d":{"Image":"test/box:1","Networks":["n"],"Ports":[{"Protocol":"tcp","Port":80}]}}}"#,
    );
    let refusal = stage.refused(&["deploy", "clash", &clash, "-p", "c:8080:80", "-p", "d:8080:80"]);
    assert_eq!(refusal.code, Some(5), "{}", refusal.said);
    assert!(refusal.said.contains("8080"), "{}", refusal.said);
    let names = |kind: &str| -> Vec<String> {
        let found = stage.machine.person().list(kind).unwrap();
        found.iter().filter_map(|object| object["metadata"]["name"].as_str().map(str::to_owned)).collect()
    };
    for kind in ["bundle", "service", "network"] {
        assert!(!names(kind).iter().any(|name| name.starts_with("clash")), "{kind}: {:?}", names(kind));
    }
}

/// glennc/MusicStore: services find each other by the names that `stack deploy` gave them, and `X=` is a value.
#[test]
fn a_service_is_found_by_the_name_that_old_files_use() {
    let stage = Stage::open("names");
    let file = stage.file(
        "store.dab",
        r#"{"Version":"0.1","Services":{
            "albums":{"Image":"test/box:1","Networks":["back"],"Ports":[{"Protocol":"tcp","Port":80}]},
            "web":{"Image":"test/shell:1","Command":["sleep"],"Args":["1000000"],"Networks":["back"],
                   "Env":["EMPTY=","ALBUMS=http://musicstore_albums:80"]}}}"#,
    );
    stage.machine.ctl(&["deploy", "musicstore", &file]).unwrap();
    let resolved = |name: &str| stage.exec("musicstore-web", &["/testbox", "resolve", name]);
    let address = resolved("albums");
    assert!(!address.trim().is_empty());
    for name in ["musicstore_albums", "musicstore-albums"] {
        assert_eq!(resolved(name), address, "{name}");
    }
    let got = stage.exec("musicstore-web", &["sh", "-c", "/testbox get $ALBUMS/ && echo \"empty: ${EMPTY-unset}.\""]);
    assert!(got.contains("empty: ."), "{got}");
}

/// moby/moby#24265, mantika/whaleprint: release candidates wrote `.dsb` files, and keys in lower case.
#[test]
fn a_file_is_what_it_holds_whatever_it_is_called() {
    let stage = Stage::open("dsb");
    let lower = r#"{"version":"0.1","services":{"web":{"image":"test/box:1","ports":[{"protocol":"tcp","port":80}]}}}"#;
    let file = stage.file("app.dsb", lower);
    stage.machine.ctl(&["deploy", "app", &file]).unwrap();
    assert_eq!(published(&stage, "app-web").len(), 1);
    let other = stage.file("other.dab", "services:\n  web: {image: 'test/box:1'}\n");
    let refusal = stage.refused(&["deploy", "other", &other]);
    assert_eq!(refusal.code, Some(5), "{}", refusal.said);
    assert!(refusal.said.contains("other.dab:1:1"), "{}", refusal.said);
}

/// moby/moby#26748, moby/moby#26327: one file everywhere, with what differs at each site; what was said by hand stays.
#[test]
fn what_a_site_says_survives_the_next_release() {
    let stage = Stage::open("site");
    let release = |image: &str| {
        let text = format!(
            r#"{{"Version":"0.1","Services":{{"web":{{"Image":"{image}","Env":["A=1"],"Ports":[{{"Protocol":"tcp","Port":80}}]}}}}}}"#
        );
        stage.file("app.dab", &text)
    };
    let site = stage.file(
        "site.yaml",
        "services:\n  web:\n    replicas: 2\n    endpoint: {ports: [{target: 80, published: 8080}]}\n",
    );
    let file = release("test/box:1");
    stage.machine.ctl(&["deploy", "app", &file, "--with", &site]).unwrap();
    stage.machine.ctl(&["service", "update", "app-web", "--env", "BY=hand"]).unwrap();
    stage.machine.ctl(&["scale", "app-web=3"]).unwrap();
    let spec = || {
        let found = stage.machine.json(&["get", "service", "app-web"]).unwrap();
        found["items"].get(0).cloned().unwrap_or(found)["spec"].clone()
    };
    // The next release, with what the site says: scaled by hand it stays, and so does the variable.
    let file = release("test/box:2");
    stage.machine.ctl(&["deploy", "app", &file, "--with", &site]).unwrap();
    let now = spec();
    assert_eq!(now["template"]["container"]["image"], "test/box:2", "{now}");
    assert_eq!(now["replicas"], 3, "{now}");
    let env: Vec<&Value> = now["template"]["container"]["env"].as_array().unwrap().iter().map(|e| &e["name"]).collect();
    assert_eq!(env, ["A", "BY"], "{now}");
    assert_eq!(published(&stage, "app-web"), [8080]);
    // Without what the site says, the port that only the site named is shown to go before it goes.
    let shown = stage.machine.person().applyctl(&["diff", "app", &file]).unwrap().output().unwrap();
    let said = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(shown.status.code(), Some(1), "{said}");
    assert!(said.contains("8080"), "{said}");
}

/// docker/cli's bundlefile tests, docker/cli#2215: errors were offsets in bytes, and one at a time.
#[test]
fn every_fault_of_a_file_is_told_at_once_with_its_place() {
    let stage = Stage::open("faults");
    let file = stage.file(
        "bad.dab",
        "{\n \"Version\": \"0.2\",\n \"Services\": {\n  \"web\": {\n   \"Image\": \"test/box:1\",\n   \"Networks\": \"front\",\n   \"Ports\": [{\"Port\": 70000, \"Protocol\": \"sctpx\"}]\n  }\n }\n}\n",
    );
    let refusal = stage.refused(&["deploy", "bad", &file]);
    assert_eq!(refusal.code, Some(5), "{}", refusal.said);
    for place in [
        "bad.dab:2:13",
        "bad.dab:6:16",
        "Services.web.Networks",
        "bad.dab:7:23",
        "Services.web.Ports[0].Port: 70000",
        "Services.web.Ports[0].Protocol",
    ] {
        assert!(refusal.said.contains(place), "{place} is not in {}", refusal.said);
    }
    for (name, text) in [
        ("number.dab", "{\"Version\": 0.1, \"Services\": {}}"),
        ("short.dab", "{\"Version\": \"0.1\", \"Services\": {\"web\": {\"Image\": \"test/b"),
        ("two.dab", "{\"Version\": \"0.1\", \"Services\": {\"web\": {\"Image\": \"test/box:1\"}}} {}"),
    ] {
        let file = stage.file(name, text);
        let refusal = stage.refused(&["deploy", "bad", &file]);
        assert_eq!(refusal.code, Some(5), "{name}: {}", refusal.said);
        assert!(refusal.said.contains(&format!("{name}:1:")), "{name}: {}", refusal.said);
    }
    for kind in ["bundle", "service", "network", "task"] {
        assert_eq!(stage.machine.person().list(kind).unwrap(), Vec::<Value>::new(), "{kind}");
    }
}
