use serde_json::{Value, json};

use super::*;
use crate::kinds::{self, Bundle, Cluster, Network, RegistryLogin, Service, Task};
use crate::shape::Form;

/// Faults of an object of kind `T` that is written in YAML, one a line.
fn faults<T: Resource>(yaml: &str) -> String {
    let value: Value = serde_yaml::from_str(yaml).unwrap();
    match read_object::<T>(value) {
        Ok(_) => String::new(),
        Err(faults) => faults.iter().map(|fault| format!("{fault}\n")).collect(),
    }
}

/// Faults of a service whose spec is written in YAML; an image and a name are given.
fn service(spec: &str) -> String {
    let mut spec: Value = serde_yaml::from_str(spec).unwrap_or_default();
    if spec.is_null() {
        spec = json!({});
    }
    if let Some(spec) = spec.as_object_mut() {
        let template = spec.entry("template").or_insert_with(|| json!({}));
        if let Some(template) = template.as_object_mut() {
            let container = template.entry("container").or_insert_with(|| json!({}));
            if let Some(container) = container.as_object_mut() {
                container.entry("image").or_insert_with(|| json!("example/web:1"));
            }
        }
    }
    faults::<Service>(&json!({"metadata": {"name": "web"}, "spec": spec}).to_string())
}

/// Faults of a service whose container is written in YAML.
fn container(yaml: &str) -> String {
    let container: Value = serde_yaml::from_str(yaml).unwrap();
    let found = service(&json!({"template": {"container": container}}).to_string());
    found.replace("spec.template.container.", "")
}

#[track_caller]
fn same(found: &str, expected: &[&str]) {
    let found: Vec<&str> = found.lines().collect();
    assert_eq!(found, expected);
}

#[test]
fn a_good_service_is_read_with_what_it_says() {
    let value = json!({
        "apiVersion": "apply/v1", "kind": "Service", "metadata": {"name": "web", "labels": {"a": "b"}},
        "spec": {
            "replicas": 3,
            "template": {
                "container": {
                    "image": "example/web:1", "args": ["-v"], "env": [{"name": "A", "value": ""}, {"name": "B"}],
                    "stopGrace": "1m", "health": {"check": {"exec": {"command": ["true"]}, "interval": "500ms"}},
                    "mounts": [{"source": "data", "target": "/data"}, {"type": "tmpfs", "target": "/tmp", "tmpfs": {"size": "64m"}}],
                },
                "resources": {"limits": {"memory": 67_108_864, "cpus": 0.5}},
                "placement": {"constraints": ["node.labels.disk == ssd"]},
                "networks": [{"name": "front", "aliases": ["web_1"]}],
            },
            "endpoint": {"ports": [{"target": 80, "published": 8080}, {"target": 53, "protocol": "udp"}]},
            "update": {"parallelism": 1, "order": "stop-first", "delay": null},
        },
    });
    let service = read_object::<Service>(value).unwrap().into_inner();
    assert_eq!(service.spec.replicas(), 3);
    assert_eq!(service.spec.template.container.stop_grace().as_secs(), 60);
    assert_eq!(service.spec.template.resources.limits.memory.unwrap().to_string(), "64Mi");
    assert_eq!(service.spec.update.delay, None);
}

#[test]
fn every_fault_is_found_at_once_whatever_its_sort() {
    let found = faults::<Service>(
        r#"
        metadata: {name: Web_1}
        spec:
          replicas: -1
          volums: []
          template:
            container:
              image: example/Web
              args: python app.py
              env: [{name: A, value: 1}, {nam: B}]
            resources: {limits: {memory: 64q}}
          endpoint:
            mode: vipp
            ports: [{target: 80, published: 70000}, {target: 0}, {protocol: icmp, target: 1}]
        "#,
    );
    same(
        &found,
        &[
            r#"metadata.name: "Web_1" is not a name (lower case letters, digits and '-', 63 at most, a letter or digit at both ends); did you mean web-1?"#,
            r#"spec.endpoint.mode: "vipp" is not one of vip, dnsrr"#,
            r#"spec.endpoint.ports[0].published: 70000 is not a port (1-65535)"#,
            r#"spec.endpoint.ports[1].target: 0 is not a port (1-65535)"#,
            r#"spec.endpoint.ports[2].protocol: "icmp" is not one of tcp, udp, sctp"#,
            r#"spec.replicas: -1 is less than 0"#,
            r#"spec.template.container.args: expected a list, not the string "python app.py"; write ["python app.py"]"#,
            r#"spec.template.container.env[0].value: expected a string, not 1; put it in quotes"#,
            r#"spec.template.container.env[1].nam: unknown field; did you mean name?"#,
            r#"spec.template.container.env[1].name: is needed"#,
            r#"spec.template.container.image: "example/Web": repository names are lower-case; did you mean example/web?"#,
            r#"spec.template.resources.limits.memory: "64q" is not a size, such as 64Mi, 64m, 1.5g or a number of bytes"#,
            r#"spec.volums: unknown field; known here: drain, endpoint, job, labels, mode, onDisconnect, replicas, rollback, template, update"#,
        ],
    );
}

#[test]
fn names_of_other_formats_are_answered_with_ours() {
    same(
        &service("{ports: [], environment: {}, image: x, template: {volumes: []}}"),
        &[
            "spec.environment: unknown field; did you mean spec.template.container.env?",
            "spec.image: unknown field; did you mean spec.template.container.image?",
            "spec.ports: unknown field; did you mean spec.endpoint.ports?",
            "spec.template.volumes: unknown field; did you mean spec.template.container.mounts?",
        ],
    );
}

#[test]
fn modes_replicas_and_jobs_fit_together() {
    same(&service("{mode: global}"), &[]);
    same(
        &service("{mode: global, replicas: 2}"),
        &["spec.replicas: a global service has one task on each node; leave it out"],
    );
    same(
        &service("{mode: global, template: {placement: {maxReplicasPerNode: 1}}}"),
        &["spec.template.placement.maxReplicasPerNode: a global service has one task on each node"],
    );
    same(&service("{replicas: 100000}"), &["spec.replicas: 100000 is too many, 10000 at most"]);
    same(
        &service("{job: {schedule: daily}}"),
        &["spec.job: not acted on yet; remove it", "spec.job: only for the modes replicated-job and global-job"],
    );
    same(
        &service("{mode: replicated-job, job: {schedule: daily, concurrent: 0}}"),
        &[
            "spec.job: not acted on yet; remove it",
            "spec.job.concurrent: 0 runs at one time never end; at least 1",
            r#"spec.job.schedule: "daily" is not a schedule (minute hour day-of-month month day-of-week, such as "0 3 * * *")"#,
            "spec.mode: replicated-job is not acted on yet; remove it",
        ],
    );
}

#[test]
fn ports_clash_only_where_they_are_one() {
    same(
        &service("{endpoint: {ports: [{target: 80, published: 80}, {target: 80, published: 80, protocol: udp}]}}"),
        &[],
    );
    same(
        &service("{endpoint: {ports: [{target: 80, published: 80}, {target: 81, published: 80}]}}"),
        &["spec.endpoint.ports[1].published: 80/tcp is published by ports[0] already"],
    );
    same(
        &service("{endpoint: {ports: [{target: 80}, {protocol: tcp, target: 80}]}}"),
        &["spec.endpoint.ports[1]: \"tcp\" 80 is given twice; the first is [0]"],
    );
    same(
        &service("{endpoint: {mode: dnsrr, ports: [{target: 80}]}}"),
        &[
            "spec.endpoint.ports[0]: a service of endpoint mode dnsrr has no address to publish; use mode vip, or publish in mode host",
        ],
    );
}

#[test]
fn containers_are_checked_as_the_kernel_would() {
    same(
        &container(
            "{env: [{name: 'A=1'}, {name: ''}, {name: B}, {name: B, value: x}, {name: C, value: '{{.Task.Slot}}'}]}",
        ),
        &[
            r#"env[0].name: "A=1" has a '='; name and value are two fields"#,
            "env[1].name: a variable needs a name",
            r#"env[3]: "B" is given twice; the first is [2]"#,
            "env[4].value: templates such as {{.Task.Slot}} are not acted on yet; write the value",
        ],
    );
    same(
        &container("{dir: app, user: 'a:b:c', hostname: -x, stopSignal: SIGNOPE, stopGrace: 2h, groups: ['']}"),
        &[
            r#"dir: "app" is not an absolute path"#,
            r#"groups[0]: "" is not a group (name or number)"#,
            r#"hostname: "-x" is not a host name (letters, digits, '-' and '.', 64 at most)"#,
            "stopGrace: 2h is too long, 1h at most",
            r#"stopSignal: "SIGNOPE" is not a signal (a name such as SIGTERM, or a number from 1 to 64)"#,
            r#"user: "a:b:c" is not a user (name or number, with :group if need be)"#,
        ],
    );
    same(
        &container(
            "{capabilities: {add: [net_admin, NET_RAW], drop: [CAP_NET_RAW, ALL]}, ulimits: [{name: nofile, soft: 2, hard: 1}, {name: nofiles, soft: -1}],
              sysctls: {net.core.somaxconn: '1', vm.swappiness: '1'}}",
        ),
        &[
            r#"capabilities.add[0]: "net_admin" is not a capability; did you mean NET_ADMIN?"#,
            "capabilities.add[1]: NET_RAW is added and dropped",
            "sysctls.vm.swappiness: is not a parameter of a container's own (net.*, fs.mqueue.*, kernel.shm*, kernel.msg*, kernel.sem)",
            "ulimits[0].soft: 2 is above hard (1)",
            r#"ulimits[1].name: "nofiles" is not a limit; there are as, core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending, stack"#,
        ],
    );
}

#[test]
fn mounts_have_one_target_each_and_a_source_that_fits() {
    same(
        &container(
            "{mounts: [{target: /a}, {target: /a/}, {target: /a}, {target: b}, {target: /}, {target: /c/../d},
              {type: bind, source: x, target: /e}, {type: bind, target: /f}, {source: /x, target: /g}, {type: tmpfs, source: x, target: /h},
              {source: 'A b', target: /i}, {type: bind, source: /x, target: /j, tmpfs: {size: 1m}}, {type: tmpfs, target: /k, tmpfs: {mode: '999'}}]}",
        ),
        &[
            "mounts[10].source: \"A b\" is not a name (lower case letters, digits, '-' and '.', 63 at most, a letter or digit at both ends)",
            "mounts[11].tmpfs: only for type tmpfs; this is bind",
            r#"mounts[12].tmpfs.mode: "999" is not a set of permission bits (octal digits, such as "0444")"#,
            "mounts[1].target: /a/ is the target of mounts[0] already",
            "mounts[2]: \"/a\" is given twice; the first is [0]",
            r#"mounts[3].target: "b" is not an absolute path"#,
            "mounts[4].target: the root itself cannot be mounted over",
            r#"mounts[5].target: "/c/../d" is not an absolute path"#,
            r#"mounts[6].source: "x" is not an absolute path of the host; for a volume of that name write type: volume"#,
            "mounts[7].source: is needed: a path of the host",
            r#"mounts[8].source: "/x" is a path; write type: bind"#,
            "mounts[9].source: memory has no source; leave it out",
        ],
    );
}

#[test]
fn health_checks_are_programs() {
    same(&container("{health: {check: {exec: {command: [pg_isready]}, retries: 5}}}"), &[]);
    same(&container("{health: {disabled: true}}"), &[]);
    same(
        &container("{health: {disabled: true, check: {interval: 0s, exec: {command: [CMD-SHELL, x]}}}}"),
        &[
            "health.check: disabled says that there is no check; leave one of the two out",
            "health.check.exec.command[0]: CMD-SHELL is Docker's word, not a program; write [\"/bin/sh\", \"-c\", …]",
            "health.check.interval: 0s is too short, at least 1ms",
        ],
    );
    same(
        &container("{health: {check: {retries: 0}}}"),
        &[
            "health.check: says how often but not what; it needs one of exec, http, tcp, grpc",
            "health.check.retries: 0 is less than 1",
        ],
    );
}

#[test]
fn placement_and_resources_have_bounds() {
    same(
        &service(
            "{template: {placement: {constraints: ['node.labels.a==b', 'node.roles==manager', 'node.role=worker'], maxReplicasPerNode: 2},
              resources: {limits: {memory: 1m, cpus: 0.0001}, reservations: {memory: 8m}}, restart: {delay: 48h}, networks: [{name: Front}, {name: a, aliases: ['-']}]}}",
        ),
        &[
            r#"spec.template.networks[0].name: "Front" is not a name (lower case letters, digits and '-', 63 at most, a letter or digit at both ends); did you mean front?"#,
            r#"spec.template.networks[1].aliases[0]: "-" is not a name (letters, digits, '-', '_' and '.', 63 at most between dots)"#,
            r#"spec.template.placement.constraints[1]: "node.roles" is not a key of constraints (did you mean node.role?); there are node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, node.labels.X, engine.labels.X"#,
            r#"spec.template.placement.constraints[2]: "node.role=worker" is not a constraint; write KEY == VALUE or KEY != VALUE"#,
            "spec.template.resources.limits.cpus: 0.0001 is too little, at least 0.001",
            "spec.template.resources.limits.memory: 1Mi is too little, at least 4Mi",
            "spec.template.resources.reservations.memory: 8Mi is kept, and limits.memory allows only 1Mi",
            "spec.template.restart.delay: 48h is too long, 24h at most",
        ],
    );
}

#[test]
fn what_nothing_acts_on_is_refused_unless_it_says_what_is_so_anyway() {
    same(
        &service("{update: {parallelism: 1, monitor: 5s, failureAction: pause}, onDisconnect: replace, drain: 5s}"),
        &[],
    );
    same(
        &service(
            "{update: {parallelism: 2, delay: 5s}, drain: 30s, template: {container: {stdin: true, devices: []}}}",
        ),
        &[
            "spec.template.container.stdin: not acted on yet; remove it",
            "spec.update.delay: not acted on yet; remove it",
        ],
    );
    same(
        &service("{endpoint: {ports: [{target: 1}, {target: 2, mode: host}]}}"),
        &["spec.endpoint.ports[1].published: a port of mode host has a number of its own; say which"],
    );
    same(
        &faults::<Bundle>("{metadata: {name: app}, spec: {networks: {n: {mtu: 1400, internal: true}}}}"),
        &["spec.networks.n.mtu: not acted on yet; remove it"],
    );
    same(
        &service("{template: {container: {privileges: {seccomp: {mode: custom, profile: '{}'}, apparmor: default}}}}"),
        &[
            "spec.template.container.privileges.apparmor: default is not acted on yet; remove it",
            "spec.template.container.privileges.seccomp.mode: custom is not acted on yet; remove it",
            "spec.template.container.privileges.seccomp.profile: not acted on yet; remove it",
        ],
    );
}

#[test]
fn a_bundle_is_checked_with_all_its_services() {
    let image = "template: {container: {image: x}}";
    same(
        &faults::<Bundle>(&format!(
            "{{metadata: {{name: app}}, spec: {{services: {{web: {{{image}, replica: 1, endpoint: {{ports: [{{target: 1, published: 80}}]}}}},
              we_b: {{template: {{container: {{image: ''}}}}}}, we.b: {{{image}, drain: 1m}}, b: {{{image}, endpoint: {{ports: [{{target: 1, published: 80}}]}}}}}}}}}}"
        )),
        &[
            "spec.services.we_b: becomes app-we-b, and so does we.b",
            "spec.services.we_b.template.container.image: an image is needed",
            "spec.services.web.endpoint.ports[0].published: 80/tcp is published by services.b already",
            "spec.services.web.replica: unknown field; did you mean replicas?",
        ],
    );
    same(
        &faults::<Bundle>(
            "{metadata: {name: app}, spec: {services: {web: {}}, networks: {n: {subnets: [10.0.0.0/31]}, m: }, reset: [web.replicas, '*', x.y]}}",
        ),
        &[
            "spec.networks.n.subnets[0]: 10.0.0.0/31 has a prefix of 31 bits; 8 to 29 are possible",
            "spec.reset[2]: \"x.y\" begins with no service of the bundle; write NAME, NAME.FIELD or *",
            "spec.services.web.template.container.image: an image is needed",
        ],
    );
}

#[test]
fn other_kinds_are_checked_too() {
    same(
        &faults::<Network>(
            "{metadata: {name: a.b}, spec: {subnets: [10.7.1.0/16, 10.7.0.0/16, 10.7.3.0/24, 127.0.0.0/8], mtu: 100}}",
        ),
        &[
            "metadata.name: \"a.b\" is not a name (lower case letters, digits and '-', 63 at most, a letter or digit at both ends); did you mean a-b?",
            "spec.mtu: 100 is not between 1280 and 65535",
            "spec.subnets[0]: \"10.7.1.0/16\" has bits behind its prefix; the subnet is 10.7.0.0/16",
            "spec.subnets[2]: 10.7.3.0/24 overlaps 10.7.0.0/16",
            "spec.subnets[3]: 127.0.0.0/8 is not for tasks",
        ],
    );
    same(
        &faults::<RegistryLogin>(
            "{metadata: {name: a}, spec: {registry: 'https://index.docker.io/v1/', username: '', password: 12345}}",
        ),
        &[
            "spec.password: expected a string",
            "spec.registry: is a host and port, without a scheme or path; did you mean docker.io?",
            "spec.username: is needed, and has no ':'",
        ],
    );
    same(
        &faults::<RegistryLogin>("{metadata: {name: a}, spec: {registry: 'localhost:5000', username: u, password: p}}"),
        &[],
    );
    same(
        &faults::<Cluster>(
            "{metadata: {name: main, namespace: x}, spec: {addresses: {nodes: 10.192.0.0/24}, periods: {heartbeat: 1ms}}}",
        ),
        &[
            "metadata.name: there is one, and it is called cluster",
            "metadata.namespace: Cluster objects have no namespace",
            "spec.addresses.nodes: 10.192.0.0/24 overlaps tasks (10.192.0.0/10)",
            "spec.periods.heartbeat: 1ms is too short, at least 100ms",
        ],
    );
    same(&faults::<Cluster>("{metadata: {name: cluster}}"), &[]);
    same(
        &faults::<Task>("{metadata: {name: a}, spec: {service: w, revision: r, slot: 1.5}}"),
        &["spec.slot: expected a number or a string, not 1.5"],
    );
}

#[test]
fn objects_of_any_kind_are_found_by_what_they_say_they_are() {
    let read = |yaml: &str| read_any(serde_yaml::from_str(yaml).unwrap());
    let said = |yaml: &str| read(yaml).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>();
    let network = read("{apiVersion: apply/v1, kind: Network, metadata: {name: a}, spec: {internal: null}}").unwrap();
    assert_eq!(network.kind.unwrap().kind, "Network");
    assert_eq!(network.value["spec"], json!({}));
    let foreign = read("{apiVersion: example.dev/v1, kind: Site, metadata: {name: a}, spec: {x: 1}}").unwrap();
    assert!(foreign.kind.is_none());
    assert_eq!(
        said("{apiVersion: apply/v1, kind: Servce}"),
        [r#"kind: "Servce" is not a kind; did you mean Service?"#]
    );
    assert_eq!(said("{metadata: {}}"), ["apiVersion: is needed: apply/v1", "kind: is needed, such as Service"]);
    assert_eq!(said("[]"), ["expected an object, not a list"]);
    assert_eq!(
        said("{apiVersion: v1, kind: Pod}"),
        [r#"apiVersion: "v1" is not a group and version, such as apply/v1"#]
    );
    assert_eq!(
        said("{apiVersion: apply/v2, kind: Network, metadata: {name: a}, spec: {}}"),
        [r#"apiVersion: "apply/v2" is not "apply/v1""#]
    );
}

#[test]
fn a_fault_that_is_stored_already_is_not_held_against_other_changes() {
    let stored =
        json!({"metadata": {"name": "web"}, "spec": {"template": {"container": {"image": "x"}}, "fromTomorrow": 1}});
    let mut changed = stored.clone();
    changed["spec"]["replicas"] = 2.into();
    assert_eq!(check::<Service>(&changed, Some(&stored)), []);
    assert_eq!(check::<Service>(&changed, None).len(), 1);
    changed["spec"]["drain"] = "x".into();
    assert_eq!(check::<Service>(&changed, Some(&stored)).len(), 1);
    changed["spec"]["drain"] = Value::Null;
    assert_eq!(check::<Service>(&changed, Some(&stored)), []);
    let status =
        json!({"metadata": {"name": "web"}, "spec": stored["spec"], "status": {"fromTomorrow": 1, "running": 1}});
    assert_eq!(check::<Service>(&status, Some(&stored)), []);
    let mode =
        json!({"metadata": {"name": "web"}, "spec": {"template": {"container": {"image": "x"}}, "mode": "global"}});
    assert_eq!(
        check::<Service>(&mode, Some(&stored))[0].to_string(),
        "spec.mode: never changes (it is replicated); make another service instead"
    );
}

#[test]
fn a_list_or_map_that_is_null_is_refused_for_the_store_and_nothing_in_a_file() {
    let object = json!({"metadata": {"name": "web"}, "spec": {"template": {"container": {"image": "x", "env": null}}}});
    assert_eq!(
        check::<Service>(&object, None)[0].to_string(),
        "spec.template.container.env: is null; leave the field out instead"
    );
    assert!(read_object::<Service>(object).is_ok());
}

#[test]
fn every_default_of_a_word_is_what_its_absence_means() {
    // An object that states the default of each word has the shortest form of one that says nothing.
    fn state(shape: &Shape, value: &mut Value) {
        let Form::Object(fields) = &shape.form else { return };
        for (name, field) in fields {
            match (&field.shape.form, &field.default) {
                (Form::Word(_), Some(default)) if !field.shape.nullable => value[name] = default.clone(),
                (Form::Object(_), _) if value[name].is_object() => state(&field.shape, &mut value[name]),
                _ => {}
            }
        }
    }
    let port = json!({"target": 1});
    let object = json!({"metadata": {"name": "a"}, "spec": {
        "update": {}, "endpoint": {"ports": [port]}, "job": {}, "template": {"container": {"image": "x"}, "restart": {}}}});
    let mut stated = object.clone();
    let shape = Shape::of::<Service>();
    state(&shape, &mut stated);
    let Some(Form::List(items, _)) = shape
        .field("spec")
        .and_then(|f| f.shape.field("endpoint"))
        .and_then(|f| f.shape.field("ports"))
        .map(|f| &f.shape.form)
    else {
        panic!("ports are a list")
    };
    state(items, &mut stated["spec"]["endpoint"]["ports"][0]);
    assert_ne!(object, stated);
    let canonical = kinds::find("service").unwrap().canonical;
    assert_eq!(canonical(&object).unwrap(), canonical(&stated).unwrap());
    let node = kinds::find("node").unwrap().canonical;
    assert_eq!(
        node(&json!({"metadata": {"name": "a"}, "spec": {}})).unwrap(),
        node(&json!({"metadata": {"name": "a"}, "spec": {"role": "worker", "availability": "active"}})).unwrap()
    );
}

#[test]
fn what_must_not_be_seen_is_declared_to_the_objects_layer() {
    for registered in kinds::ALL {
        let kind = (registered.kind)();
        let declared: Vec<String> =
            kind.sensitive.iter().map(|pointer| pointer.trim_start_matches('/').replace('/', ".")).collect();
        assert_eq!(walk::sensitive_paths(Shape::of_kind(&kind.plural).unwrap()), declared, "{}", kind.kind);
    }
}

mod properties {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    /// Any JSON, with many of the names that our kinds have.
    fn any_json() -> impl Strategy<Value = Value> {
        let names = prop::sample::select(vec![
            "spec",
            "metadata",
            "status",
            "name",
            "template",
            "container",
            "image",
            "env",
            "value",
            "endpoint",
            "ports",
            "target",
            "published",
            "mounts",
            "type",
            "services",
            "networks",
            "mode",
            "update",
            "x",
            "resources",
            "limits",
            "memory",
            "placement",
            "constraints",
            "health",
            "check",
            "exec",
            "command",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z0-9:/=. ]{0,8}|\\PC{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(8, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::vec((names.clone(), inner), 0..6).prop_map(|fields| Value::Object(
                    fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>()
                )),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_json_is_read_or_refused_with_faults(value in any_json(), wrapped: bool) {
            let value = if wrapped { json!({"metadata": {"name": "a"}, "spec": value}) } else { value };
            for registered in kinds::ALL {
                let _ = (registered.check)(&value, None);
                let shape = Shape::of_kind(&(registered.kind)().plural).unwrap();
                let mut work = value.clone();
                let found = walk::walk(shape, &mut work, Strictness::File);
                // What is left after the walk has the shape: a second walk finds nothing (but entries of lists that were
                // at fault are blank now, and so the same), and the type reads it.
                let mut again = walk::walk(shape, &mut work.clone(), Strictness::File);
                again.retain(|fault| !fault.message.contains("is given twice"));
                prop_assert_eq!(again, vec![]);
                prop_assert!((registered.canonical)(&work).is_ok(), "{:?} {}", found, work);
            }
        }
    }
}
