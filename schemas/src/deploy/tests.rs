use proptest::prelude::*;

use super::*;

const DAB: &str = r#"{"Version": "0.1", "Services": {
  "vote": {"Image": "example/vote:1", "Ports": [{"Port": 80}, {"Port": 53, "Protocol": "udp"}], "Networks": ["front_tier"]},
  "db": {"Image": "example/db:1", "Env": ["A=1"]}
}}"#;

struct Given<'a> {
    dab: &'a str,
    overlays: &'a [&'a str],
    replicas: &'a [&'a str],
    publish: &'a [&'a str],
    reset: &'a [&'a str],
}

const NOTHING: Given<'static> = Given { dab: DAB, overlays: &[], replicas: &[], publish: &[], reset: &[] };

impl Given<'_> {
    fn read(&self) -> Result<Valid<Bundle>, Vec<String>> {
        let names = ["a.yaml", "b.yaml"];
        let overlays: Vec<Text<'_>> =
            self.overlays.iter().zip(names).map(|(text, name)| Text { name, bytes: text.as_bytes() }).collect();
        let replicas: Vec<Replicas> = self.replicas.iter().map(|flag| flag.parse().unwrap()).collect();
        let publish: Vec<Publish> = self.publish.iter().map(|flag| flag.parse().unwrap()).collect();
        let reset: Vec<String> = self.reset.iter().map(ToString::to_string).collect();
        let deployment = Deployment {
            name: "app",
            bundle: Text { name: "app.dab", bytes: self.dab.as_bytes() },
            overlays: &overlays,
            replicas: &replicas,
            publish: &publish,
            keep_dropped: false,
            reset: &reset,
        };
        read(&deployment).map_err(|refusals| refusals.iter().map(ToString::to_string).collect())
    }

    #[track_caller]
    fn service(&self, name: &str) -> Value {
        Value::Object(self.read().unwrap().spec.services[name].0.clone())
    }

    #[track_caller]
    fn refused(&self, expected: &[&str]) {
        assert_eq!(self.read().unwrap_err(), expected);
    }
}

#[test]
fn an_overlay_says_what_the_format_cannot() {
    let overlay = "
services:
  vote:
    replicas: 2
    endpoint: {ports: [{target: 80, published: 5000}, {target: 443}]}
  db:
    template:
      container:
        env: [{name: A, value: '2'}, {name: B, value: '3'}]
        mounts: [{type: volume, source: data, target: /data}]
      networks: [{name: front_tier, aliases: [store]}]
networks:
  front_tier: {subnets: [10.7.0.0/24]}
";
    let given = Given { overlays: &[overlay], ..NOTHING };
    assert_eq!(
        given.service("vote"),
        json!({
            "replicas": 2,
            "template": {"container": {"image": "example/vote:1"}, "networks": [{"name": "front-tier"}]},
            "endpoint": {"ports": [{"protocol": "udp", "target": 53}, {"target": 80, "published": 5000}, {"target": 443}]},
        })
    );
    assert_eq!(
        given.service("db")["template"],
        json!({
            "container": {
                "image": "example/db:1", "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}],
                "mounts": [{"type": "volume", "source": "data", "target": "/data"}],
            },
            "networks": [{"name": "front-tier", "aliases": ["store"]}],
        })
    );
    let bundle = given.read().unwrap();
    assert_eq!(bundle.spec.networks.keys().collect::<Vec<_>>(), ["front-tier"]);
    assert_eq!(bundle.spec.networks["front-tier"].subnets.len(), 1);
}

#[test]
fn later_overlays_and_then_flags_win() {
    let given = Given {
        overlays: &[
            "services: {vote: {replicas: 2, labels: {a: x}, endpoint: {ports: [{target: 80, published: 1}]}}}",
            "services: {vote: {replicas: 3, labels: {a: null}}}",
        ],
        replicas: &["vote=4"],
        publish: &["vote:5000:80", "vote:5001:80", "db:5432"],
        ..NOTHING
    };
    let vote = given.service("vote");
    assert_eq!((&vote["replicas"], &vote["labels"]), (&json!(4), &json!({})));
    assert_eq!(
        vote["endpoint"]["ports"],
        json!([{"protocol": "udp", "target": 53}, {"target": 80, "published": 5001}]),
        "the last word about one port of the container"
    );
    assert_eq!(given.service("db")["endpoint"], json!({"ports": [{"target": 5432}]}));
    let reset = Given { reset: &["vote.replicas", "*"], ..NOTHING };
    assert_eq!(reset.read().unwrap().spec.reset, ["vote.replicas", "*"]);
}

#[test]
fn nothing_more_than_the_bundle_is_the_bundle() {
    assert_eq!(NOTHING.read().unwrap(), dab::read("app", DAB.as_bytes()).unwrap());
    assert_eq!(Given { overlays: &["", "# nothing"], ..NOTHING }.read(), NOTHING.read());
    assert_eq!(Given { overlays: &["services: {vote: null}"], ..NOTHING }.read().unwrap().spec.services.len(), 1);
}

#[test]
fn every_fault_of_every_file_and_flag_is_told_with_its_place() {
    let given = Given {
        dab: r#"{"Services": {"vote": {"Image": ""}}}"#,
        overlays: &["services:\n  vote:\n    replica: 2\n    image: x\n    update: {delay: 5s}\nvolumes: {}\n"],
        ..NOTHING
    };
    given.refused(&[
        "a.yaml:3:5  services.vote.replica: unknown field; did you mean replicas?",
        "a.yaml:4:5  services.vote.image: unknown field; did you mean template.container.image?",
        "a.yaml:5:14  services.vote.update.delay: not acted on yet; remove it",
        "a.yaml:6:1  volumes: unknown field; known here: keepDropped, networks, reset, services",
        "app.dab:1:33  Services.vote.Image: an image is needed",
    ]);
    let given = Given {
        overlays: &["services:\n  vot: {replicas: 2}\n  db:\n    replicas: 3\n"],
        replicas: &["x=1"],
        reset: &["vote", "nope.replicas"],
        ..NOTHING
    };
    given.refused(&[
        "a.yaml:2:3  services.vot: is no service of app.dab; did you mean vote?",
        "--replicas x=1: is no service of app.dab; there are db, vote",
        "--reset=nope.replicas: \"nope.replicas\" begins with no service of the bundle; write NAME, NAME.FIELD or *",
    ]);
}

#[test]
fn what_is_wrong_only_together_is_told_where_it_was_said_last() {
    let given = Given {
        overlays: &[
            "services:\n  vote:\n    endpoint:\n      ports:\n        - {target: 81, published: 5000}\n",
            "services:\n  db:\n    endpoint:\n      ports:\n        - {target: 1}\n        - target: 2\n          published: 5000\n",
        ],
        ..NOTHING
    };
    given.refused(
        &["b.yaml:7:22  services.vote.endpoint.ports[2].published: 5000/tcp is published by services.db already"]
            .map(|text| text.replace("b.yaml:7:22", "a.yaml:5:35"))
            .each_ref()
            .map(String::as_str),
    );
    let given = Given { publish: &["vote:5000:80", "db:5000:80"], ..NOTHING };
    given.refused(&["--publish vote:5000:80: 5000/tcp is published by services.db already"]);
    let given = Given { overlays: &["services:\n  vote:\n    mode: global\n"], replicas: &["vote=2"], ..NOTHING };
    given.refused(&["--replicas vote=2: a global service has one task on each node; leave it out"]);
    let given = Given {
        overlays: &[
            "services:\n  db:\n    template:\n      container:\n        env:\n          - {name: B, value: x}\n          - {name: 'C=', value: x}\n",
        ],
        ..NOTHING
    };
    let found = given.read().unwrap_err();
    assert!(
        found.len() == 1 && found[0].starts_with("a.yaml:7:20  services.db.template.container.env[2]"),
        "{found:?}"
    );
}

#[test]
fn a_file_that_is_no_overlay_is_refused() {
    Given { overlays: &["services: {}\n---\nservices: {}\n"], ..NOTHING }
        .refused(&["a.yaml:3:1  an overlay is one document; give another file with another --with"]);
    Given { overlays: &["- a\n"], ..NOTHING }.refused(&["a.yaml:1:1  expected an object, not a list"]);
    Given { overlays: &["services:\n  vote: [1]\n"], ..NOTHING }
        .refused(&["a.yaml:2:9  services.vote: expected an object, not a list"]);
    assert_eq!(Given { overlays: &["a: b: c\n"], ..NOTHING }.read().unwrap_err().len(), 1);
}

#[test]
fn flags_are_read_and_written_alike() {
    for text in ["vote:80", "vote:5000:80", "dns:53:53/udp"] {
        assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
    }
    assert_eq!("vote:1:2/tcp".parse::<Publish>().unwrap().to_string(), "vote:1:2");
    for text in ["", "vote", "vote:", ":80", "vote:0", "vote:70000", "vote:1:2:3", "vote:80/sctp", "vote:80/"] {
        assert!(text.parse::<Publish>().is_err(), "{text}");
    }
    assert_eq!("vote=2".parse::<Replicas>().unwrap().to_string(), "vote=2");
    for text in ["", "vote", "vote=", "=2", "vote=-1", "vote=x"] {
        assert!(text.parse::<Replicas>().is_err(), "{text}");
    }
}

#[test]
fn the_voting_app_is_deployed_as_its_page_says() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/voting-app/");
    let file = |name: &str| std::fs::read(format!("{folder}{name}")).unwrap();
    let (dab, overlay) = (file("voting-app.dab"), file("voting-app.yaml"));
    let deployment = Deployment {
        name: "voting-app",
        bundle: Text { name: "voting-app.dab", bytes: &dab },
        overlays: &[Text { name: "voting-app.yaml", bytes: &overlay }],
        ..Deployment::default()
    };
    let bundle = read(&deployment).unwrap_or_else(|refusals| panic!("{refusals:?}"));
    let ports: Vec<_> = bundle
        .spec
        .services
        .iter()
        .flat_map(|(name, service)| {
            let spec = service.to_spec().unwrap();
            spec.endpoint.ports.into_iter().map(move |port| (name.clone(), port.target, port.published))
        })
        .collect();
    assert_eq!(ports, [("result".into(), 80, Some(5001)), ("vote".into(), 80, Some(5000))]);
}

proptest! {
    /// An overlay of any content is laid over or refused, and every refusal names a file or flag that was given.
    #[test]
    fn any_overlay_is_read_or_refused(text in "(services:\n  (vote|db|x):\n    (replicas: [0-9]{1,3}\n|endpoint: \\{ports: \\[\\{target: [0-9]{1,5}\\}\\]\\}\n|labels: \\{a: (null|b|1)\\}\n|[a-z]{1,5}: [a-z\\[\\]{}:, ]{0,9}\n))?[-a-c:{}\\[\\] \n]{0,12}", count in any::<u32>()) {
        let flag = format!("vote={count}");
        let given = Given { overlays: &[&text], replicas: &[&flag], ..NOTHING };
        if let Err(refusals) = given.read() {
            for refusal in refusals {
                prop_assert!(refusal.starts_with("a.yaml:") || refusal.starts_with("--replicas vote="), "{}", refusal);
            }
        }
    }
}
