//! The API through Kubernetes' own command, against a real applyd, through `applyctl proxy`. Needs root.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

use conformance::parts::debian;
use conformance::parts::machine::{Machine, Options, PATIENCE, Part};
use serde_json::{Value, json};

/// A machine without containers, and kubectl before its door.
struct World {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    server: String,
    proxy: Child,
    machine: Machine,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

fn start(name: &str) -> World {
    let kubectl = debian::kubectl().unwrap();
    let mut machine = Machine::new(name, &Options::default()).unwrap();
    machine.boot().unwrap();
    // It has no other address.
    machine.tell_applyd(&["--advertise", "127.0.0.1"]);
    machine.start_containerd().unwrap();
    machine.start_applyd().unwrap();
    let kubeconfig = machine.folder().join("kubeconfig");
    let mut proxy = machine.person().applyctl(&["proxy", "--kubeconfig"]).unwrap();
    let mut proxy = proxy.arg(&kubeconfig).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    // It says so once it listens.
    BufReader::new(proxy.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("export KUBECONFIG={}\n", kubeconfig.display()));
    let text = fs::read_to_string(&kubeconfig).unwrap();
    let server = text.split_whitespace().find(|word| word.starts_with("https://")).unwrap().to_owned();
    World { kubectl, kubeconfig, server, proxy, machine }
}

impl World {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.machine.folder());
        command.env("KUBECONFIG", &self.kubeconfig).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn said(&self, words: &[&str], input: &str) -> Output {
        let mut child = self.command(words).spawn().unwrap();
        // Whoever does not read it is told nothing by it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn run(&self, words: &[&str], input: &str) -> String {
        let output = self.said(words, input);
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "kubectl {words:?}: {out}{err}");
        out
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[words, &["-o", "json"]].concat(), "")).unwrap()
    }
}

fn service(name: &str, replicas: u32) -> String {
    json!({"apiVersion": "apply/v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"replicas": replicas, "template": {"container": {"image": "example/web:1"}}}})
    .to_string()
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn kubectl_finds_makes_shows_changes_explains_and_deletes() {
    let world = start("kubectl");
    let resources = world.run(&["api-resources", "--api-group=apply"], "");
    let line = resources.lines().find(|line| line.starts_with("services ")).unwrap_or_else(|| panic!("{resources}"));
    assert_eq!(words(line), ["services", "svc", "apply/v1", "true", "Service"]);
    let explained = world.run(&["explain", "services.apply.spec.template.container"], "");
    assert!(explained.contains("image\t<string>"), "{explained}");

    assert_eq!(world.run(&["create", "-f", "-"], &service("web", 2)), "service.apply/web created\n");
    let table = world.run(&["get", "services.apply", "-o", "wide"], "");
    assert!(words(table.lines().next().unwrap()).starts_with(&["NAME"]), "{table}");
    assert!(words(table.lines().nth(1).unwrap()).starts_with(&["web"]), "{table}");
    let yaml = world.run(&["get", "services.apply", "web", "-o", "yaml"], "");
    assert!(yaml.contains("replicas: 2") && yaml.contains("resourceVersion:"), "{yaml}");
    assert_eq!(world.run(&["get", "services.apply", "-o", "name"], ""), "service.apply/web\n");

    world.run(&["patch", "services.apply", "web", "--type=merge", "-p", r#"{"spec":{"replicas":1}}"#], "");
    let patch = r#"[{"op":"replace","path":"/spec/replicas","value":3}]"#;
    world.run(&["patch", "services.apply", "web", "--type=json", "-p", patch], "");
    assert_eq!(world.json(&["get", "services.apply", "web"])["spec"]["replicas"], 3);
    world.run(&["replace", "-f", "-"], &service("web", 1));
    world.run(&["label", "services.apply", "web", "tier=front"], "");
    world.run(&["annotate", "services.apply", "web", "note=heavy"], "");
    let found = world.json(&["get", "services.apply", "-l", "tier=front"]);
    assert_eq!(found["items"][0]["spec"]["replicas"], 1, "{found}");
    let described = world.run(&["describe", "services.apply", "web"], "");
    assert!(described.contains("example/web:1") && described.contains("note: heavy"), "{described}");
    let node = world.json(&["get", "nodes.apply", "n1"]);
    assert_eq!(node["status"]["state"], "Ready", "{node}");

    let refused = world.said(&["create", "-f", "-"], &service("Bad_", 1));
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && why.contains("metadata.name"), "{why}");
    let missing = world.said(&["get", "services.apply", "none"], "");
    let why = String::from_utf8(missing.stderr).unwrap();
    assert!(missing.status.code() == Some(1) && why.contains("NotFound"), "{why}");

    // It waits by a watch until the object is gone, and all that it owned.
    assert_eq!(world.run(&["delete", "services.apply", "web"], ""), "service.apply \"web\" deleted\n");
    assert_eq!(world.json(&["get", "services.apply"])["items"], json!([]));
}

#[test]
fn kubectl_applies_and_watches() {
    let world = start("kubewatch");
    let apply = ["apply", "-f", "-"];
    assert_eq!(world.run(&apply, &service("web", 1)), "service.apply/web created\n");
    assert_eq!(world.run(&apply, &service("web", 1)), "service.apply/web unchanged\n");
    let tried = world.run(&["apply", "--dry-run=server", "-f", "-"], &service("web", 9));
    assert_eq!(tried, "service.apply/web configured (server dry run)\n");
    assert_eq!(world.run(&apply, &service("web", 2)), "service.apply/web configured\n");
    let both =
        format!("{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{},{}]}}", service("a", 1), service("b", 1));
    assert_eq!(world.run(&apply, &both), "service.apply/a created\nservice.apply/b created\n");
    let waited = world.run(&["wait", "services.apply/web", "--for=jsonpath={.spec.replicas}=2", "--timeout=30s"], "");
    assert!(waited.contains("condition met"), "{waited}");
    let mut watch = world.command(&["get", "networks.apply", "-w", "-o", "name"]).spawn().unwrap();
    let (tell, told) = mpsc::channel();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
    for name in ["one", "two"] {
        let network = json!({"apiVersion": "apply/v1", "kind": "Network", "metadata": {"name": name}, "spec": {}});
        world.run(&["create", "-f", "-"], &network.to_string());
        let wanted = format!("network.apply/{name}");
        while told.recv_timeout(PATIENCE).expect("the watch tells of it") != wanted {}
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn the_proxy_lets_in_whoever_has_its_certificate_and_nobody_else() {
    let mut world = start("kubedoor");
    let mode = fs::metadata(&world.kubeconfig).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let curl = |more: &[&str]| {
        let url = format!("{}/version", world.server);
        Command::new("curl").args(["-sk", "-m", "20"]).args(more).arg(url).output().unwrap()
    };
    let none = curl(&[]);
    assert!(!none.status.success() && none.stdout.is_empty(), "{}", String::from_utf8_lossy(&none.stdout));
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (world.machine.folder().join("other.pem"), world.machine.folder().join("other.key"));
    fs::write(&certificate, other.cert.pem()).unwrap();
    fs::write(&key, other.signing_key.serialize_pem()).unwrap();
    let strange = curl(&["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()]);
    assert!(!strange.status.success() && strange.stdout.is_empty());
    assert!(world.run(&["version"], "").contains("Server Version"));

    let pid = rustix::process::Pid::from_child(&world.proxy);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(world.proxy.wait().unwrap().success());
    assert!(!world.kubeconfig.exists(), "the key is of no use any more, and stays for nobody");
    let gone = world.said(&["version"], "");
    assert!(!gone.status.success());
}

#[test]
fn kubectl_takes_the_credentials_of_a_user_as_they_are() {
    let world = start("kubectl-user");
    let file = world.machine.folder().join("ann.yaml");
    world.machine.ctl(&["user", "create", "ann", "--role", "edit", "-n", "shop", &file.to_string_lossy()]).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let kubectl = |words: &[&str]| {
        let mut command = world.machine.inside(&world.kubectl.to_string_lossy());
        command.env("HOME", world.machine.folder()).env("KUBECONFIG", &file).args(words);
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let manifest = world.machine.folder().join("web.json");
    fs::write(&manifest, service("web", 1)).unwrap();
    let (made, said) = kubectl(&["create", "-f", &manifest.to_string_lossy()]);
    assert!(made && said.contains("service.apply/web created"), "{said}");
    assert!(world.machine.ctl(&["get", "services", "-n", "shop"]).unwrap().contains("web"));
    let (seen, said) = kubectl(&["get", "services.apply", "-n", "default"]);
    assert!(!seen && said.contains("no grant says so"), "{said}");
}

#[test]
fn a_kind_of_another_author_is_served_to_kubectl_too_and_after_a_restart() {
    let world = start("kubectl-kinds");
    let definition = json!({
        "apiVersion": "apply/v1", "kind": "ResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "version": "v1", "kind": "Widget", "plural": "widgets", "shortNames": ["wi"],
            "schema": {"type": "object", "properties": {
                "spec": {"type": "object", "required": ["color"], "properties": {
                    "color": {"enum": ["red", "blue"], "description": "What it looks like."},
                    "replicas": {"type": "integer", "minimum": 0, "maximum": 9, "default": 1},
                }},
                "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
            }},
            "subresources": {"scale": {"specReplicas": "/spec/replicas", "statusReplicas": "/status/replicas"}},
            "columns": [
                {"name": "COLOR", "pointer": "/spec/color"}, {"name": "WANTED", "pointer": "/spec/replicas", "type": "integer"},
            ],
        },
    });
    let widget = |name: &str, color: &str| {
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"color": color}})
            .to_string()
    };
    world.run(&["create", "-f", "-"], &definition.to_string());
    assert_eq!(world.run(&["create", "-f", "-"], &widget("a", "red")), "widget.example.com/a created\n");
    let wrong = world.said(&["create", "-f", "-"], &widget("b", "green"));
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert!(!wrong.status.success() && said.contains("spec.color"), "{said}");
    let table = |word: &str| {
        let text = world.run(&["get", word], "");
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    for word in ["widgets", "widget", "wi", "widgets.example.com"] {
        let table = table(word);
        assert_eq!(table[0], ["NAME", "COLOR", "WANTED", "AGE"], "{table:?}");
        assert_eq!(table[1][..3], ["a", "red", "1"], "{table:?}");
    }
    assert!(world.run(&["explain", "widgets.spec.color"], "").contains("What it looks like."));
    assert!(world.run(&["api-resources", "--api-group=example.com"], "").contains("wi"));
    assert!(world.run(&["scale", "widget/a", "--replicas=4"], "").contains("scaled"));
    assert_eq!(world.json(&["get", "widget", "a"])["spec"]["replicas"], 4);
    world.run(&["patch", "wi", "a", "--subresource=status", "--type=merge", "-p", r#"{"status":{"replicas":2}}"#], "");
    assert_eq!(world.json(&["get", "widget", "a"])["status"]["replicas"], 2);

    world.machine.kill(Part::Applyd).unwrap();
    world.machine.start_applyd().unwrap();
    assert_eq!(world.machine.json(&["get", "widget/a"]).unwrap()["spec"]["replicas"], 4);
    assert_eq!(table("wi")[1][..3], ["a", "red", "4"]);
    let kept = world.said(&["delete", "resourcedefinition", "widgets.example.com"], "");
    assert!(String::from_utf8(kept.stderr).unwrap().contains("an object of its kind exists"));
    world.run(&["delete", "widget", "a"], "");
    world.run(&["delete", "resourcedefinition", "widgets.example.com"], "");
    assert!(!world.said(&["get", "widgets"], "").status.success());
}
