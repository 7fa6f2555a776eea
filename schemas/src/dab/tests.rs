use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn faults(text: &str) -> Vec<String> {
    match read("app", text.as_bytes()) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(ToString::to_string).collect(),
    }
}

/// Faults of a bundle with one service, whose fields are written here on line 3.
fn service(fields: &str) -> Vec<String> {
    let image = if fields.contains("mage\"") { "" } else { ", \"Image\": \"x\"" };
    faults(&format!("{{\"Version\": \"0.1\", \"Services\": {{\"web\": {{\n\n{fields}{image}}}}}}}"))
}

#[track_caller]
fn same(found: &[String], expected: &[&str]) {
    assert_eq!(found, expected);
}

const VOTING_APP: &str = r#"{"Version": "0.1", "Services": {
  "vote": {"Image": "example/vote@sha256:5a1c0e7f4b6d92833e5f70c1a2b4d6e8f90123456789abcdef0123456789abcd",
    "Command": ["/entry"], "Args": ["gunicorn", "app:app"], "WorkingDir": "/app", "User": "1000:1000",
    "Env": ["OPTION_A=Cats", "EMPTY=", "GONE", "EQ=a=b"], "Labels": {"tier": "front"},
    "Ports": [{"Protocol": "tcp", "Port": 80}, {"Port": 53, "Protocol": "UDP"}, {"Port": 443}],
    "Networks": ["front_tier", "Back.Tier"]},
  "redis": {"Image": "redis:7"}
}}"#;

#[test]
fn every_field_goes_where_it_belongs() {
    let bundle = read("voting_app", VOTING_APP.as_bytes()).unwrap();
    assert_eq!(bundle.name(), "voting-app");
    assert_eq!(bundle.spec.networks.keys().collect::<Vec<_>>(), ["back-tier", "front-tier"]);
    assert_eq!(
        Value::Object(bundle.spec.services["vote"].0.clone()),
        json!({
            "labels": {"tier": "front"},
            "template": {
                "container": {
                    "image": "example/vote@sha256:5a1c0e7f4b6d92833e5f70c1a2b4d6e8f90123456789abcdef0123456789abcd",
                    "command": ["/entry"], "args": ["gunicorn", "app:app"], "dir": "/app", "user": "1000:1000",
                    "env": [{"name": "OPTION_A", "value": "Cats"}, {"name": "EMPTY", "value": ""}, {"name": "GONE"}, {"name": "EQ", "value": "a=b"}],
                },
                "networks": [{"name": "front-tier"}, {"name": "back-tier"}],
            },
            "endpoint": {"ports": [{"target": 80}, {"protocol": "udp", "target": 53}, {"target": 443}]},
        })
    );
    assert_eq!(
        Value::Object(bundle.spec.services["redis"].0.clone()),
        json!({"template": {"container": {"image": "redis:7"}}})
    );
}

#[test]
fn what_is_no_json_at_all_is_one_fault() {
    for text in
        ["services:\n  web: {image: x}\n", "# Compose\nservices: {}\n", "---\na: 1\n", "<html>", "FROM x\nRUN y"]
    {
        let found = faults(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].starts_with("1:1  a bundle file is JSON and begins with {"), "{found:?}");
    }
}

#[test]
fn old_files_with_their_quirks_are_read() {
    for text in [
        r#"{"services": {"web": {"image": "x", "ports": [{"port": 80, "protocol": ""}], "env": null, "workingdir": "", "labels": {}}}, "version": "0.1"}"#,
        "\u{feff}{\"Services\": {\"web\": {\"Image\": \"x\"}}}\r\n",
        r#"{"Version": "0.1", "Services": {}}"#,
        r#"{"Version": null, "Services": null}"#,
    ] {
        same(&faults(text), &[]);
    }
    let lower = read("a", br#"{"services": {"web": {"image": "x", "env": ["X="]}}}"#).unwrap();
    assert_eq!(lower.spec.services["web"].0["template"]["container"]["env"], json!([{"name": "X", "value": ""}]));
}

#[test]
fn every_fault_has_its_line_and_says_what_would_be_right() {
    same(
        &faults(
            r#"{
  "Version": "0.2",
  "Services": {
    "web": {
      "Image": "redis@sha256:abc",
      "Networks": "front",
      "Ports": [{"Port": 70000, "Protocol": "sctpx"}, {"Port": "80"}, {}, 80],
      "Command": "python app.py",
      "Env": {"A": "b"},
      "Volumes": [],
      "Label": {}
    },
    "Web": {"Image": ""},
    "_": {"Args": [1, true, null], "Env": ["=x", "A=1", "A=2"], "Labels": {"a": 1}, "User": 1000, "WorkingDir": "app"}
  },
  "Networks": {}
}"#,
        ),
        &[
            r#"2:14  Version: "0.2" is not a version that exists; it is "0.1""#,
            r#"5:16  Services.web.Image: "redis@sha256:abc": "sha256:abc" is not a digest (sha256: and 64, or sha512: and 128, lower-case hexadecimal digits)"#,
            r#"6:19  Services.web.Networks: expected a list of strings, not the string "front""#,
            "7:26  Services.web.Ports[0].Port: 70000 is not a port (1-65535)",
            r#"7:45  Services.web.Ports[0].Protocol: "sctpx" is not one of tcp, udp"#,
            r#"7:64  Services.web.Ports[1].Port: expected a number, not the string "80"; take the quotes away"#,
            "7:71  Services.web.Ports[2].Port: is needed",
            "7:75  Services.web.Ports[3]: expected an object, not 80",
            r#"8:18  Services.web.Command: expected a list of strings, not the string "python app.py""#,
            "9:14  Services.web.Env: expected a list of strings, not an object",
            "10:7  Services.web.Volumes: unknown key; a version 0.1 bundle has Image, Command, Args, Env, Labels, Ports, WorkingDir, User, Networks here; what it cannot say goes into an overlay (deploy --with FILE)",
            "11:7  Services.web.Label: unknown key; did you mean Labels?",
            "13:5  Services.Web: becomes app-web, and so does web",
            "13:22  Services.Web.Image: an image is needed",
            r#"14:5  Services._: "_" cannot become a name (letters, digits, '-', '_' and '.', 63 at most, a letter or digit at both ends)"#,
            "14:10  Services._.Image: is needed",
            "14:20  Services._.Args[0]: expected a string, not 1; put it in quotes",
            "14:23  Services._.Args[1]: expected a string, not true; put it in quotes",
            "14:29  Services._.Args[2]: expected a string, not null",
            "14:44  Services._.Env[0]: a variable needs a name",
            r#"14:57  Services._.Env[2]: "A" is given twice; the first is at 14:50"#,
            "14:81  Services._.Labels.a: expected a string, not 1; put it in quotes",
            "14:93  Services._.User: expected a string, not 1000; put it in quotes",
            r#"14:113  Services._.WorkingDir: "app" is not an absolute path"#,
            "16:3  Networks: unknown key; a version 0.1 bundle has Version, Services here",
        ],
    );
}

#[test]
fn versions_are_looked_at() {
    same(
        &faults(r#"{"Version": 0.1, "Services": {}}"#),
        &[r#"1:13  Version: expected the string "0.1", not the number 0.1; put it in quotes"#],
    );
    same(&faults(r#"{"Version": [], "Services": {}}"#), &[r#"1:13  Version: expected the string "0.1", not a list"#]);
    same(&faults("{}"), &["1:1  Services: is needed"]);
    same(&faults("[]"), &["1:1  expected an object, not a list"]);
    same(
        &faults(r#"{"Services": []}"#),
        &["1:14  Services: expected an object with the services by their names, not a list"],
    );
}

#[test]
fn two_spellings_of_one_key_are_one_key() {
    same(
        &service(r#""Image": "x", "image": "y""#),
        &["3:15  Services.web.image: is given twice; the first is Image at 3:1"],
    );
    same(
        &service(r#""Args": ["a"], "Args": ["b"]"#),
        &["3:16  Services.web.Args: is given twice; the first is at 3:1"],
    );
}

#[test]
fn ports_of_two_services_may_be_the_same_but_not_of_one() {
    same(
        &faults(
            r#"{"Services": {"a": {"Image": "x", "Ports": [{"Protocol": "tcp", "Port": 80}, {"Protocol": "tcp", "Port": 443}]},
                              "b": {"Image": "x", "Ports": [{"Protocol": "tcp", "Port": 80}]}}}"#,
        ),
        &[],
    );
    same(
        &service(r#""Ports": [{"Port": 80}, {"Port": 80, "Protocol": "tcp"}]"#),
        &["3:25  Services.web.Ports[1]: 80/tcp is given twice; the first is at 3:11"],
    );
}

#[test]
fn broken_json_is_told_once_and_the_rest_is_still_checked() {
    same(
        &faults("{\n\t\t\"Version\": \"0.1\",\n\t\t\"Services\": unquoted string\n\t}"),
        &["3:15  Services: expected a value, found unquoted; strings stand in double quotes"],
    );
    same(
        &service("\"Image\": nginx, \"Ports\": [{\"Port\": x}, {\"Port\": 0}"),
        &[
            "3:10  Services.web.Image: expected a value, found nginx; strings stand in double quotes",
            "3:36  Services.web.Ports[0].Port: expected a value, found x; strings stand in double quotes",
            "3:49  Services.web.Ports[1].Port: 0 is not a port (1-65535)",
            "3:51  Services.web.Ports: expected ] for the [ at 3:26, found }",
            "3:54  the file ends here, and } is still to come; what it is in opened at 1:1",
        ],
    );
    let whole = VOTING_APP.len();
    for end in 1..whole {
        let found = faults(&VOTING_APP[..end]);
        assert!(!found.is_empty() && found.len() <= 3, "cut at {end}: {found:?}");
    }
    same(&faults(&format!("{VOTING_APP} x")), &["8:4  nothing may follow the end of the object"]);
}

#[test]
fn hostile_files_are_refused_in_bounded_time_and_space() {
    let hundred = vec![b' '; 100_000_000];
    same(
        &read("app", &hundred).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>(),
        &["1:1  the file has 100000000 bytes, 4194304 at most"],
    );
    let deep = format!("{{\"Services\": {}", "{\"a\":".repeat(100_000));
    assert!(faults(&deep).iter().any(|fault| fault.ends_with("is nested more than 64 deep")));
    let services: String = (0..50_000).map(|n| format!("\"s{n}\": 1,")).collect();
    let found = faults(&format!("{{\"Services\": {{{services} \"x\": 1}}}}"));
    assert_eq!(found.len(), 101);
    let networks = "\"-\",".repeat(50_000);
    assert_eq!(service(&format!("\"Networks\": [{networks} \"x\"]")).len(), 101);
    assert!(found[100].ends_with("and more faults"));
}

#[test]
fn files_of_the_wild_are_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/corpus/dab");
    let Ok(files) = std::fs::read_dir(folder) else {
        println!("NOT RUN: there is no {folder}, whose files belong to others and are not part of the project");
        return;
    };
    let mut read_files = 0;
    for file in files.map(|file| file.unwrap().path()) {
        let found = read("app", &std::fs::read(&file).unwrap());
        match file.file_name().and_then(|name| name.to_str()).unwrap() {
            name if name.starts_with("11-") => {
                let said: Vec<String> = found.unwrap_err().iter().map(ToString::to_string).collect();
                same(&said, &["3:15  Services: expected a value, found unquoted; strings stand in double quotes"]);
            }
            name => assert!(found.is_ok(), "{name}: {found:?}"),
        }
        read_files += 1;
    }
    assert!(read_files > 0, "{folder} is empty");
}

/// Bundles as the format has them, and now and then not.
fn any_bundle() -> impl Strategy<Value = Value> {
    let text = || prop_oneof![8 => "[a-z][a-z0-9_.-]{0,10}", 1 => "\\PC{0,6}"];
    let strings = || prop::collection::vec(text(), 0..3);
    let service = (
        prop_oneof![8 => Just("example/web:1".to_owned()), 1 => text()],
        prop::option::of(strings()),
        prop::option::of(strings()),
        prop::option::of(prop::collection::vec(prop_oneof!["[A-Z]{1,3}=\\PC{0,4}", "[A-Z=]{0,2}"], 0..4)),
        prop::option::of(prop::collection::vec((prop_oneof![Just("tcp"), Just("udp"), Just("")], 0..70_000u32), 0..3)),
        prop::option::of(strings()),
        prop::option::of(prop_oneof!["/[a-z]{0,3}", text()]),
    )
        .prop_map(|(image, command, args, env, ports, networks, dir)| {
            let ports = ports.map(|ports| ports.into_iter().map(|(protocol, port)| json!({"Protocol": protocol, "Port": port})).collect::<Vec<_>>());
            json!({"Image": image, "Command": command, "Args": args, "Env": env, "Ports": ports, "Networks": networks, "WorkingDir": dir})
        });
    prop::collection::btree_map(text(), service, 0..4)
        .prop_map(|services| json!({"Version": "0.1", "Services": services}))
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read("app", &bytes);
    }

    /// Every fault has a place in the file: none is found only after the file is left behind.
    #[test]
    fn a_bundle_is_read_or_refused_in_its_own_words(bundle in any_bundle()) {
        let text = serde_json::to_string_pretty(&bundle).unwrap();
        match read("app", text.as_bytes()) {
            Ok(read) => prop_assert_eq!(read.spec.services.len(), bundle["Services"].as_object().unwrap().len()),
            Err(faults) => for fault in faults {
                prop_assert!(fault.fault.path.starts_with("Services."), "{}", fault);
            },
        }
    }
}
