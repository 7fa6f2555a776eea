use std::path::Path;

use super::*;
use crate::node::containerd::container_spec::{Access, ContainerId, ImageRoot, Mount, MountKind};

const HOST: Host = Host { unified_cgroups: true, accounts_swap: true, arch: "x86_64" };

fn wanted() -> ContainerSpec {
    let mut config = oci_spec::image::Config::default();
    config.set_cmd(Some(vec!["sh".to_owned()]));
    let image = ImageRoot { name: "example/box:1".to_owned(), parent: "sha256:0".to_owned(), config };
    ContainerSpec::new(ContainerId::new("voting-app-vote.1.7").unwrap(), image)
}

fn built(wanted: &ContainerSpec) -> Value {
    let accounts = Accounts::parse(b"root:x:0:0:::\napp:x:1000:1000:::\n", b"");
    build(wanted, &accounts, "/apply/x", &HOST).unwrap_or_else(|refused| panic!("{refused}"))
}

fn refused(wanted: &ContainerSpec) -> String {
    build(wanted, &Accounts::default(), "/apply/x", &HOST).unwrap_err().to_string()
}

fn targets(spec: &Value) -> Vec<&str> {
    spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect()
}

#[test]
fn the_outcome_is_a_runtime_spec() {
    let mut wanted = wanted();
    wanted.process.init = Some("/usr/libexec/init".into());
    wanted.isolation.rlimits = vec![Rlimit { name: "memlock".to_owned(), soft: None, hard: None }];
    wanted.isolation.devices =
        vec![Device { path: "/dev/fuse".into(), kind: DeviceKind::Char, major: 10, minor: 229, access: "rwm".into() }];
    wanted.resources.memory_bytes_max = Some(1 << 26);
    wanted.resources.nano_cpus = Some(500_000_000);
    wanted.mounts.push(Mount::bind("/srv", "/data", Access::ReadOnly));
    let spec: oci_spec::runtime::Spec = serde_json::from_value(built(&wanted)).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["/sbin/docker-init", "--", "sh"]);
    assert_eq!(process.rlimits().as_ref().unwrap()[0].soft(), u64::MAX);
    assert_eq!(process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap().len(), 14);
    assert!(spec.linux().as_ref().unwrap().seccomp().is_some());
    assert_eq!(spec.hostname().as_deref(), Some("voting-app-v"));
}

#[test]
fn an_ordinary_user_has_no_capabilities_but_the_bounding_set() {
    let mut wanted = wanted();
    wanted.image.config.set_user(Some("app".to_owned()));
    let spec = built(&wanted);
    assert_eq!(spec["process"]["user"], json!({"uid": 1000, "gid": 1000, "additionalGids": [1000]}));
    assert_eq!(spec["process"]["capabilities"].get("effective"), None);
    wanted.process.user = Some("0".to_owned());
    assert_eq!(built(&wanted)["process"]["capabilities"]["effective"].as_array().unwrap().len(), 14);
}

#[test]
fn mounts_go_from_the_root_outwards_and_replace_defaults() {
    let mut wanted = wanted();
    let tmpfs = MountKind::Tmpfs { bytes_max: Some(1 << 20), mode: Some(0o1770), exec: false };
    wanted.mounts = vec![
        Mount::bind("/b", "/data/inner/deep", Access::ReadOnlyRecursive),
        Mount::bind("/a", "/data//x/..", Access::ReadWrite),
        Mount { target: "/dev/shm".into(), kind: tmpfs, access: Access::ReadWrite },
    ];
    let spec = built(&wanted);
    let expected =
        ["/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/data", "/dev/shm", "/data/inner/deep"];
    assert_eq!(targets(&spec), expected);
    assert_eq!(spec["mounts"][7]["options"], json!(["nosuid", "nodev", "noexec", "rw", "size=1048576", "mode=1770"]));
    assert_eq!(spec["mounts"][8]["options"], json!(["rbind", "rprivate", "rro"]));
}

#[test]
fn the_network_namespace_is_the_given_one_and_cgroups_are_private_on_v2_alone() {
    let mut wanted = wanted();
    wanted.isolation.network_namespace = Some("/run/netns/x".into());
    let spec = built(&wanted);
    let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.contains(&json!({"type": "network", "path": "/run/netns/x"})));
    assert!(namespaces.contains(&json!({"type": "cgroup"})));
    let v1 = Host { unified_cgroups: false, ..HOST };
    let spec = build(&wanted, &Accounts::default(), "/apply/x", &v1).unwrap();
    assert!(!spec["linux"]["namespaces"].as_array().unwrap().contains(&json!({"type": "cgroup"})));
}

#[test]
fn all_faults_are_named_at_once() {
    let mut wanted = wanted();
    wanted.image.config.set_cmd(None);
    wanted.process.user = Some("ghost".to_owned());
    wanted.process.env = vec!["=x".to_owned()];
    wanted.process.working_dir = Some("tmp".to_owned());
    wanted.isolation.capabilities_add = vec!["FLY".to_owned()];
    wanted.isolation.rlimits = vec![Rlimit { name: "nofile".to_owned(), soft: Some(2), hard: Some(1) }];
    wanted.mounts =
        vec![Mount::bind("a", "/x", Access::ReadWrite), Mount::bind("/b", Path::new("/x/"), Access::ReadWrite)];
    assert_eq!(
        refused(&wanted),
        "no command: neither the image nor the service names one; working directory tmp is not an absolute path; \
         environment variable \"=x\" has no name; no user ghost in the image; no capability FLY; \
         limit nofile: soft 2 is over hard 1; mount source a is not an absolute path; two mounts at /x"
    );
}
