//! The API through Kubernetes' own command, over a loopback port as `kubectl proxy` would offer it.
//!
//! Needs a `kubectl` of 1.27 or later on the machine, or at the path in `KUBECTL`; Debian's own (1.20) is too old for some
//! of what is asked here.

#[allow(dead_code, reason = "the suite's directory is used here, its promises in tests/objects.rs")]
mod objects_suite;

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinHandle;

use reconciler::api::Resource;
use reconciler::objects::{Kinds, StoreObjects};
use reconciler::seams::Seams;
use reconciler::server::{Loopback, Peer, Server};
use reconciler::store::memory::Memory;

use objects_suite::Directory;

/// Of a group without a dot, as `apply` is.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(
    group = "apply", version = "v1", kind = "Crate", short("cr"), crate = reconciler::api,
    column("BOTTLES", "/spec/bottles"), column("STATE", "/status/state"), status = CrateStatus
)]
#[serde(default)]
pub struct CrateSpec {
    /// How many there are.
    pub bottles: u32,
    /// What is in them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct CrateStatus {
    pub state: String,
}

/// Where kubectl looks for namespaces, whoever else has a kind of that name.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[resource(group = "apply", version = "v1", kind = "Namespace", short("ns"), scope = "Cluster", crate = reconciler::api)]
pub struct NamespaceSpec {}

const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    address: String,
    home: Directory,
    serving: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn start() -> World {
    let kinds = Kinds::new().with::<Crate>().with::<Namespace>();
    let objects = StoreObjects::open(Arc::new(Memory::new()), "/apply", kinds.clone(), Seams::real()).await.unwrap();
    let version = json!({"major": "1", "minor": "32", "gitVersion": "v1.32.0-apply"});
    let server = Server::new(Arc::new(objects), kinds, Seams::real()).version(version).core(Namespace::kind());
    let door = Loopback::bind(0, Peer::trusted("user:ann")).await.unwrap();
    let address = format!("http://{}", door.address().unwrap());
    let serving = tokio::spawn(async move { server.serve(door).await });
    World { address, home: Directory::new(), serving }
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl World {
    fn command(&self, arguments: &[&str]) -> Command {
        let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".into());
        let mut command = Command::new(program);
        // Its cache of what there is lies in its home.
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", self.home.path());
        command.args(["--server", &self.address, "--namespace", "default"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn said(&self, arguments: &[&str], input: &str) -> Said {
        let mut child = self.command(arguments).spawn().expect("kubectl is on the machine");
        let mut stdin = child.stdin.take().unwrap();
        let (_, output) = tokio::time::timeout(PATIENCE, async {
            tokio::join!(
                async {
                    let _ = stdin.write_all(input.as_bytes()).await;
                    drop(stdin);
                },
                child.wait_with_output()
            )
        })
        .await
        .unwrap_or_else(|_| panic!("kubectl {arguments:?} does not end"));
        let output = output.unwrap();
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    async fn run(&self, arguments: &[&str], input: &str) -> String {
        let said = self.said(arguments, input).await;
        assert_eq!(said.code, Some(0), "kubectl {arguments:?}: {}{}", said.out, said.err);
        said.out
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments, "").await).unwrap()
    }
}

fn crate_of(name: &str, bottles: u32) -> String {
    json!({"apiVersion": "apply/v1", "kind": "Crate", "metadata": {"name": name}, "spec": {"bottles": bottles}})
        .to_string()
}

#[tokio::test]
async fn kubectl_finds_what_there_is_and_explains_it() {
    let world = start().await;
    let resources = world.run(&["api-resources", "--api-group=apply"], "").await;
    let line = resources.lines().find(|line| line.starts_with("crates ")).unwrap_or_else(|| panic!("{resources}"));
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["crates", "cr", "apply/v1", "true", "Crate"]);
    assert!(world.run(&["api-versions"], "").await.lines().any(|line| line == "apply/v1"));
    let explained = world.run(&["explain", "crates.spec"], "").await;
    assert!(explained.contains("bottles") && explained.contains("How many there are."), "{explained}");
    let cellar =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cellar"}, "spec": {}}).to_string();
    assert_eq!(world.run(&["create", "-f", "-"], &cellar).await, "namespace/cellar created\n");
    assert!(world.run(&["get", "namespaces"], "").await.contains("cellar"));
    assert!(world.run(&["version"], "").await.contains("v1.32.0-apply"));
}

#[tokio::test]
async fn kubectl_makes_reads_changes_and_deletes() {
    let world = start().await;
    assert_eq!(world.run(&["create", "-f", "-"], &crate_of("red", 6)).await, "crate.apply/red created\n");
    let table = world.run(&["get", "crates.apply"], "").await;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "BOTTLES", "STATE", "AGE"]);
    assert_eq!(rows[1][..3], ["red", "6", "<none>"]);
    assert!(world.run(&["get", "cr", "-A"], "").await.starts_with("NAMESPACE"));
    let yaml = world.run(&["get", "crate", "red", "-o", "yaml"], "").await;
    assert!(yaml.contains("bottles: 6") && yaml.contains("resourceVersion:"), "{yaml}");
    assert_eq!(world.run(&["get", "cr", "-o", "name"], "").await, "crate.apply/red\n");
    let patch = r#"{"spec":{"bottles":7}}"#;
    world.run(&["patch", "crate", "red", "--type=merge", "-p", patch], "").await;
    let patch = r#"[{"op":"replace","path":"/spec/bottles","value":8}]"#;
    world.run(&["patch", "crate", "red", "--type=json", "-p", patch], "").await;
    world.run(&["label", "crate", "red", "colour=red"], "").await;
    world.run(&["annotate", "crate", "red", "note=heavy"], "").await;
    let status = r#"{"status":{"state":"Full"}}"#;
    world.run(&["patch", "crate", "red", "--subresource=status", "--type=merge", "-p", status], "").await;
    let red = world.json(&["get", "crate", "-l", "colour=red", "-o", "json"]).await;
    let red = &red["items"][0];
    assert_eq!((&red["spec"]["bottles"], &red["status"]["state"]), (&json!(8), &json!("Full")));
    assert_eq!(red["metadata"]["annotations"]["note"], "heavy");
    world.run(&["replace", "-f", "-"], &crate_of("red", 9)).await;
    assert_eq!(world.json(&["get", "crate", "red", "-o", "json"]).await["spec"]["bottles"], 9);
    assert!(world.run(&["describe", "crate", "red"], "").await.contains("Bottles:  9"));
    // It waits until the object is gone, by a watch.
    assert_eq!(world.run(&["delete", "crate", "red"], "").await, "crate.apply \"red\" deleted\n");
    let missing = world.said(&["get", "crate", "red"], "").await;
    assert!(missing.code == Some(1) && missing.err.contains("NotFound"), "{}", missing.err);
}

#[tokio::test]
async fn kubectl_applies_and_is_told_every_fault() {
    let world = start().await;
    let both = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{},{}]}}",
        crate_of("red", 6),
        crate_of("green", 2)
    );
    assert_eq!(world.run(&["apply", "-f", "-"], &both).await, "crate.apply/red created\ncrate.apply/green created\n");
    assert_eq!(world.run(&["apply", "-f", "-"], &crate_of("red", 6)).await, "crate.apply/red unchanged\n");
    assert_eq!(world.run(&["apply", "-f", "-"], &crate_of("red", 12)).await, "crate.apply/red configured\n");
    let tried = world.run(&["apply", "--dry-run=server", "-f", "-"], &crate_of("red", 99)).await;
    assert_eq!(tried, "crate.apply/red configured (server dry run)\n");
    assert_eq!(world.json(&["get", "crate", "red", "-o", "json"]).await["spec"]["bottles"], 12);
    let refused = world.said(&["create", "-f", "-"], &crate_of("Bad_", 1)).await;
    assert!(refused.code == Some(1) && refused.err.contains("metadata.name"), "{}", refused.err);
    world.run(&["delete", "crates", "--all"], "").await;
    assert_eq!(world.json(&["get", "crates", "-o", "json"]).await["items"], json!([]));
}

#[tokio::test]
async fn kubectl_watches() {
    let world = start().await;
    world.run(&["create", "-f", "-"], &crate_of("red", 6)).await;
    let mut watch = world.command(&["get", "crates.apply", "-w", "--no-headers"]).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("a line in time").unwrap().unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(next().await, ["red", "6"]);
    world.run(&["create", "-f", "-"], &crate_of("green", 1)).await;
    assert_eq!(next().await, ["green", "1"]);
    world.run(&["patch", "crate", "red", "--type=merge", "-p", r#"{"spec":{"bottles":7}}"#], "").await;
    assert_eq!(next().await, ["red", "7"]);
    let wait = ["wait", "crate/green", "--for=jsonpath={.spec.bottles}=2", "--timeout=30s"];
    let (waited, _) = tokio::join!(
        world.run(&wait, ""),
        world.run(&["patch", "crate", "green", "--type=merge", "-p", r#"{"spec":{"bottles":2}}"#], "")
    );
    assert!(waited.contains("condition met"), "{waited}");
    watch.kill().await.unwrap();
}
