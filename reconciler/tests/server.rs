//! The API as others see it: bytes over a socket, in Kubernetes' shapes. What the objects themselves promise is
//! `tests/objects.rs`, which runs over the same server.

#[allow(dead_code, reason = "the suite's kinds are used here, its promises in tests/objects.rs")]
mod objects_suite;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Extension;
use axum::routing::get;
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use reconciler::api::{ObjectRef, Resource};
use reconciler::objects::remote::{Remote, Unix};
use reconciler::objects::{
    Client, Error, Event, Kinds, Objects, PageRequest, Selection, Start, StoreObjects, Write, Writer,
};
use reconciler::seams::Seams;
use reconciler::server::{Access, Ask, Limits, Loopback, Peer, Server, UnixSocket};
use reconciler::store::Store;
use reconciler::store::memory::Memory;

use objects_suite::{Directory, Page, Shelf, Site, TestSealer};

const PATIENCE: Duration = Duration::from_secs(10);
const SITES: &str = "/apis/example.dev/v1/namespaces/default/sites";

fn kinds() -> Kinds {
    Kinds::new().with::<Site>().with::<Page>().with::<Shelf>()
}

struct World {
    server: Server,
    store: Arc<Memory>,
    path: PathBuf,
    serving: JoinHandle<()>,
    _directory: Directory,
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn start(adjust: impl FnOnce(Server) -> Server) -> World {
    let store = Arc::new(Memory::new());
    let objects = StoreObjects::open(store.clone(), "/apply", kinds(), Seams::real()).await.unwrap();
    let server = adjust(Server::new(Arc::new(objects.sealed_by(Arc::new(TestSealer))), kinds(), Seams::real()));
    let directory = Directory::new();
    let path = directory.path().join("apply.sock");
    let socket = UnixSocket::bind(&path).await.unwrap();
    let running = server.clone();
    let serving = tokio::spawn(async move { running.serve(socket).await });
    World { server, store, path, serving, _directory: directory }
}

struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}\n{}", self.head, self.body))
    }
}

fn request(method: &str, path: &str, headers: &[&str], body: &str) -> String {
    let mut text =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for header in headers {
        text += &format!("{header}\r\n");
    }
    format!("{text}\r\n{body}")
}

async fn exchange(mut io: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> Answer {
    let mut raw = Vec::new();
    let talk = async {
        // A server that refuses early closes while we still send, and what it said comes before the reset.
        let _ = io.write_all(request.as_bytes()).await;
        let _ = io.read_to_end(&mut raw).await;
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("an answer within ten seconds");
    let text = String::from_utf8(raw).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_owned() };
    Answer { code, head: head.to_owned(), body }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole += &rest[..length];
        body = &rest[(length + 2).min(rest.len())..];
    }
    whole
}

impl World {
    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    async fn call(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        exchange(self.connect().await, &request(method, path, headers, body)).await
    }

    async fn read(&self, path: &str) -> Value {
        let answer = self.call("GET", path, &[], "").await;
        assert_eq!(answer.code, 200, "{path}: {}", answer.body);
        answer.json()
    }

    async fn create(&self, name: &str) -> Value {
        let answer = self.call("POST", SITES, &[], &site(name).to_string()).await;
        assert_eq!(answer.code, 201, "{}", answer.body);
        answer.json()
    }

    fn remote(&self) -> Remote {
        Remote::unix(&self.path, Seams::real())
    }

    fn client(&self) -> Client {
        Client::new(Arc::new(self.remote()), Writer::new("user:ann", "tests"))
    }

    /// Lines of a watch as they come.
    async fn watch(&self, path: &str, headers: &[&str]) -> Lines {
        let mut io = BufReader::new(self.connect().await);
        io.write_all(request("GET", path, headers, "").as_bytes()).await.unwrap();
        Lines(io)
    }
}

struct Lines(BufReader<UnixStream>);

impl Lines {
    /// The next line that is JSON; `None` at the end. Chunk sizes and the head are skipped.
    async fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            let read =
                tokio::time::timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("a line in time").unwrap();
            if read == 0 {
                return None;
            }
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).unwrap());
            }
        }
    }

    async fn told(&mut self) -> String {
        let event = self.next().await.expect("one more line");
        format!("{} {}", event["type"].as_str().unwrap(), event["object"]["metadata"]["name"].as_str().unwrap_or("-"))
    }
}

fn site(name: &str) -> Value {
    json!({
        "apiVersion": "example.dev/v1", "kind": "Site", "metadata": {"name": name}, "spec": {"host": "a.dev", "pages": 1},
    })
}

#[tokio::test]
async fn what_there_is_can_be_discovered() {
    let world = start(|server| server.version(json!({"gitVersion": "v0.1.0"}))).await;
    assert_eq!(world.read("/api").await["versions"], json!([]));
    assert_eq!(world.call("GET", "/api/v1", &[], "").await.code, 404);
    let groups = world.read("/apis").await;
    assert_eq!(groups["groups"][0]["name"], "example.dev");
    assert_eq!(groups["groups"][0]["preferredVersion"]["groupVersion"], "example.dev/v1");
    assert_eq!(world.read("/apis/example.dev").await["kind"], "APIGroup");
    let resources = world.read("/apis/example.dev/v1").await;
    let named = |name: &str| {
        let all = resources["resources"].as_array().unwrap();
        all.iter().find(|resource| resource["name"] == name).unwrap_or_else(|| panic!("{name}: {resources}")).clone()
    };
    assert_eq!((&named("sites")["namespaced"], &named("shelves")["namespaced"]), (&json!(true), &json!(false)));
    assert!(named("sites")["verbs"].as_array().unwrap().contains(&json!("watch")));
    assert_eq!(named("sites/status")["kind"], "Site");
    assert_eq!(world.read("/version").await["gitVersion"], "v0.1.0");
    assert_eq!(world.call("GET", "/apis/nobody.dev/v1", &[], "").await.code, 404);
    let health = world.call("GET", "/healthz", &[], "").await;
    assert_eq!((health.code, health.body.as_str()), (200, "ok"));
}

#[tokio::test]
async fn schemas_are_served_and_whole() {
    let world = start(|server| server).await;
    let index = world.read("/openapi/v3").await;
    let path = index["paths"]["apis/example.dev/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = world.read(path).await;
    let schemas = &document["components"]["schemas"];
    let of_site = &schemas["dev.example.v1.Site"];
    assert_eq!(of_site["x-kubernetes-group-version-kind"][0]["kind"], "Site");
    // kubectl looks for this before it sends anything unchecked.
    let patch = &document["paths"]["/apis/example.dev/v1/namespaces/{namespace}/sites/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Site");
    assert!(patch["parameters"].as_array().unwrap().iter().any(|parameter| parameter["name"] == "fieldValidation"));
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas[name].is_object(), "{name} is referred to and not there");
    }
    assert!(!text.contains("$defs"));
}

#[tokio::test]
async fn objects_go_through_their_verbs() {
    let world = start(|server| server).await;
    let made = world.create("blog").await;
    assert_eq!(made["metadata"]["namespace"], "default");
    let at = format!("{SITES}/blog");
    assert_eq!(world.read(&at).await, made);
    let again = world.call("POST", SITES, &[], &site("blog").to_string()).await;
    assert_eq!((again.code, &again.json()["reason"]), (409, &json!("AlreadyExists")));
    let merge = ["content-type: application/merge-patch+json"];
    let patched = world.call("PATCH", &at, &merge, r#"{"spec":{"pages":2}}"#).await.json();
    assert_eq!((&patched["spec"]["pages"], &patched["metadata"]["generation"]), (&json!(2), &json!(2)));
    let json_patch = ["content-type: application/json-patch+json"];
    let tested = r#"[{"op":"test","path":"/spec/pages","value":7},{"op":"remove","path":"/spec/pages"}]"#;
    assert_eq!(world.call("PATCH", &at, &json_patch, tested).await.code, 422);
    let replaced = r#"[{"op":"replace","path":"/spec/pages","value":3}]"#;
    assert_eq!(world.call("PATCH", &at, &json_patch, replaced).await.json()["spec"]["pages"], 3);
    // The version that was read first is not the one that stands.
    let stale = world.call("PUT", &at, &[], &made.to_string()).await;
    assert_eq!((stale.code, &stale.json()["reason"]), (409, &json!("Conflict")));
    let mut unversioned = made.clone();
    unversioned["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(world.call("PUT", &at, &[], &unversioned.to_string()).await.json()["spec"]["pages"], 1);
    let status =
        world.call("PATCH", &format!("{at}/status"), &merge, r#"{"status":{"ready":4},"spec":{"pages":9}}"#).await;
    let status = status.json();
    assert_eq!((&status["status"]["ready"], &status["spec"]["pages"]), (&json!(4), &json!(1)));
    assert_eq!(world.read(&format!("{at}/status")).await, status);
    let deleted = world.call("DELETE", &at, &[], "").await.json();
    assert_eq!((&deleted["status"], &deleted["details"]["uid"]), (&json!("Success"), &made["metadata"]["uid"]));
    let missing = world.call("GET", &at, &[], "").await;
    assert_eq!((missing.code, &missing.json()["reason"]), (404, &json!("NotFound")));
    let shelf = json!({"metadata": {"name": "top"}, "spec": {"place": 1}});
    assert_eq!(world.call("POST", "/apis/example.dev/v1/shelves", &[], &shelf.to_string()).await.code, 201);
    assert_eq!(world.read("/apis/example.dev/v1/shelves/top").await["spec"]["place"], 1);
}

#[tokio::test]
async fn deletions_say_how_and_what() {
    let world = start(|server| server).await;
    let made = world.create("blog").await;
    let at = format!("{SITES}/blog");
    let other = json!({"preconditions": {"uid": "another"}}).to_string();
    assert_eq!(world.call("DELETE", &at, &[], &other).await.code, 409);
    let tried = world.call("DELETE", &at, &[], r#"{"dryRun":["All"]}"#).await;
    assert_eq!(tried.code, 200);
    let options = json!({
        "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground",
        "preconditions": {"uid": made["metadata"]["uid"]},
    });
    let waiting = world.call("DELETE", &at, &[], &options.to_string()).await.json();
    assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    assert!(waiting["metadata"]["deletionTimestamp"].is_string());
}

#[tokio::test]
async fn a_name_can_be_asked_for() {
    let world = start(|server| server).await;
    let unnamed = json!({"metadata": {"generateName": "blog-"}, "spec": {"host": "a.dev"}}).to_string();
    let [one, two] =
        [world.call("POST", SITES, &[], &unnamed).await.json(), world.call("POST", SITES, &[], &unnamed).await.json()];
    let names = [&one, &two].map(|object| object["metadata"]["name"].as_str().unwrap());
    assert!(
        names.iter().all(|name| name.starts_with("blog-") && name.len() == 10) && names[0] != names[1],
        "{names:?}"
    );
}

#[tokio::test]
async fn lists_come_in_pages_and_as_tables() {
    let world = start(|server| server).await;
    for name in ["a", "b", "c"] {
        world.create(name).await;
    }
    let first = world.read(&format!("{SITES}?limit=2")).await;
    assert_eq!((&first["kind"], &first["apiVersion"]), (&json!("SiteList"), &json!("example.dev/v1")));
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    let next = first["metadata"]["continue"].as_str().unwrap();
    let second = world.read(&format!("{SITES}?limit=2&continue={next}")).await;
    assert_eq!((&second["items"][0]["metadata"]["name"], &second["metadata"]["continue"]), (&json!("c"), &Value::Null));
    let as_table = ["accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json"];
    let table = world.call("GET", SITES, &as_table, "").await.json();
    let columns: Vec<_> = table["columnDefinitions"].as_array().unwrap().iter().map(|column| &column["name"]).collect();
    assert_eq!(columns, ["Name", "HOST", "Age"]);
    let row = &table["rows"][0];
    assert_eq!((&row["cells"][0], &row["cells"][1]), (&json!("a"), &json!("a.dev")));
    assert!(row["cells"][2].as_str().unwrap().ends_with('s'));
    assert_eq!(row["object"]["metadata"]["namespace"], "default");
    let one = world.call("GET", &format!("{SITES}/a"), &as_table, "").await.json();
    assert_eq!((&one["kind"], one["rows"].as_array().unwrap().len()), (&json!("Table"), 1));
    let chosen = world.read("/apis/example.dev/v1/sites?fieldSelector=metadata.name%3Db").await;
    assert_eq!(chosen["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_watch_tells_what_kubernetes_tells() {
    let world = start(|server| server).await;
    world.create("old").await;
    let list = world.read(SITES).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut anew = world.watch(&format!("{SITES}?watch=1&allowWatchBookmarks=true&sendInitialEvents=true"), &[]).await;
    let mut after = world.watch(&format!("{SITES}?watch=true&resourceVersion={version}"), &[]).await;
    let mut labelled = world.watch(&format!("{SITES}?watch=true&labelSelector=a%3Db"), &[]).await;
    let as_table = ["accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json"];
    let mut table = world.watch(&format!("{SITES}?watch=true&resourceVersion={version}"), &as_table).await;
    assert_eq!(anew.told().await, "ADDED old");
    let bookmark = anew.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"], json!({"k8s.io/initial-events-end": "true"}));
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], version);
    world.create("new").await;
    let merge = ["content-type: application/merge-patch+json"];
    world.call("PATCH", &format!("{SITES}/new"), &merge, r#"{"metadata":{"labels":{"a":"b"}}}"#).await;
    world.call("PATCH", &format!("{SITES}/new"), &merge, r#"{"metadata":{"labels":{"a":"c"}}}"#).await;
    world.call("DELETE", &format!("{SITES}/new"), &[], "").await;
    for watch in [&mut anew, &mut after] {
        let mut told = Vec::new();
        for _ in 0..4 {
            told.push(watch.told().await);
        }
        assert_eq!(told, ["ADDED new", "MODIFIED new", "MODIFIED new", "DELETED new"]);
    }
    assert_eq!(labelled.told().await, "ADDED new");
    assert_eq!(labelled.told().await, "DELETED new");
    let event = table.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["rows"][0]["cells"][0]), (&json!("ADDED"), &json!("new")));
}

#[tokio::test]
async fn a_watch_of_forgotten_history_says_so() {
    let world = start(|server| server).await;
    world.create("a").await;
    world.create("b").await;
    let version = world.read(SITES).await["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    world.store.compact(reconciler::store::Revision(version)).await.unwrap();
    for stale in ["1".to_owned(), (version + 1_000).to_string(), ((1_u64 << 32) + 1).to_string()] {
        let watch = format!("{SITES}?watch=1&resourceVersion={stale}&timeoutSeconds=5");
        let answer = world.call("GET", &watch, &[], "").await;
        let status = match answer.code {
            410 => answer.json(),
            200 => serde_json::from_str::<Value>(&answer.body).unwrap()["object"].clone(),
            _ => panic!("{}", answer.body),
        };
        assert_eq!((&status["code"], &status["reason"]), (&json!(410), &json!("Expired")), "{stale}");
    }
}

#[tokio::test]
async fn a_watch_ends_when_it_said_it_would() {
    let world = start(|server| server).await;
    let mut watch = world.watch(&format!("{SITES}?watch=1&timeoutSeconds=1"), &[]).await;
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let world = start(|server| server).await;
    world.create("blog").await;
    let faulty = json!({"metadata": {"name": "Bad_"}, "spec": {"pages": 101}}).to_string();
    let at = format!("{SITES}/blog");
    let strategic = ["content-type: application/strategic-merge-patch+json"];
    for (method, path, headers, body, code, word) in [
        ("GET", "/nowhere", &[] as &[&str], "", 404, "/nowhere"),
        ("GET", "/apis/example.dev/v2/sites", &[], "", 404, "v2"),
        ("GET", "/apis/example.dev/v1/cows", &[], "", 404, "cows"),
        ("GET", "/apis/example.dev/v1/namespaces/x/shelves", &[], "", 404, "no namespace"),
        ("GET", "/apis/example.dev/v1/sites/blog", &[], "", 404, "belong to a namespace"),
        ("GET", &format!("{at}/log"), &[], "", 404, "log"),
        ("GET", &format!("{SITES}?labelSelector=%3D"), &[], "", 400, "selector"),
        ("GET", &format!("{SITES}?limit=many"), &[], "", 400, "limit"),
        ("POST", SITES, &[], "{", 400, "JSON"),
        ("POST", SITES, &[], "[]", 400, "JSON object"),
        ("POST", SITES, &["content-type: application/yaml"], "a: b", 415, "application/json"),
        ("POST", SITES, &[], r#"{"metadata":{"name":"x","namespace":"other"}}"#, 400, "other"),
        ("POST", SITES, &[], &faulty, 422, "metadata.name"),
        ("PUT", &at, &[], r#"{"metadata":{"name":"other"}}"#, 400, "other"),
        ("PATCH", &at, &strategic, "{}", 415, "merge-patch"),
        ("PATCH", &at, &["content-type: application/json-patch+json"], "{}", 400, "JSON patch"),
        ("DELETE", SITES, &[], "", 405, "DELETE"),
        ("POST", &at, &[], "{}", 405, "POST"),
        ("DELETE", &at, &[], r#"{"propagationPolicy":"Sideways"}"#, 400, "Sideways"),
        ("POST", "/apis/apply/v1/commits", &[], r#"{"writes":1}"#, 400, "writes"),
        ("GET", "/apis/apply/v1/stream?selections=x", &[], "", 400, "selections"),
        ("GET", "/apis/apply/v1/stream?selections=[]&resourceVersion=1", &[], "", 400, "epoch"),
    ] {
        let answer = world.call(method, path, headers, body).await;
        let status = answer.json();
        assert_eq!(
            (answer.code, &status["kind"], &status["code"]),
            (code, &json!("Status"), &json!(code)),
            "{method} {path}: {status}"
        );
        assert!(status["message"].as_str().unwrap().contains(word), "{method} {path}: {status}");
    }
    let status = world
        .call("POST", SITES, &[], &json!({"metadata": {"name": "x"}, "spec": {"pages": 101}}).to_string())
        .await
        .json();
    let fields: Vec<_> = status["details"]["causes"].as_array().unwrap().iter().map(|cause| &cause["field"]).collect();
    assert_eq!(fields, ["spec.host", "spec.pages"], "all at once");
}

#[tokio::test]
async fn what_a_peer_can_take_is_bounded() {
    let limits = Limits {
        body_bytes: 2_000,
        head_bytes: 8_192,
        watches_per_peer: 2,
        connections_per_peer: 4,
        head_time: Duration::from_millis(300),
        body_time: Duration::from_millis(300),
        ..Limits::default()
    };
    let world = start(|server| server.limits(limits)).await;
    let large = world.call("POST", SITES, &[], &format!("{{\"x\":\"{}\"}}", "y".repeat(3_000))).await;
    assert_eq!((large.code, &large.json()["reason"]), (413, &json!("RequestEntityTooLarge")));
    assert_eq!(world.call("GET", SITES, &[&format!("x-long: {}", "y".repeat(9_000))], "").await.code, 431);
    // A head that does not come, a body that does not come.
    let mut silent = world.connect().await;
    silent.write_all(b"GET / HT").await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, silent.read_to_end(&mut rest)).await.expect("it is closed").unwrap();
    let mut slow = world.connect().await;
    slow.write_all(b"POST /apis/example.dev/v1/namespaces/default/sites HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 10\r\n\r\n{").await.unwrap();
    let mut rest = String::new();
    tokio::time::timeout(PATIENCE, slow.read_to_string(&mut rest)).await.expect("it is answered").unwrap();
    assert!(rest.starts_with("HTTP/1.1 408"), "{rest}");
    world.create("a").await;
    let mut watches = Vec::new();
    for _ in 0..2 {
        let mut watch = world.watch(&format!("{SITES}?watch=1"), &[]).await;
        assert_eq!(watch.told().await, "ADDED a");
        watches.push(watch);
    }
    let one_more = world.call("GET", &format!("{SITES}?watch=1"), &[], "").await;
    assert_eq!((one_more.code, &one_more.json()["reason"]), (429, &json!("TooManyRequests")));
    watches.clear();
    // What was given back can be had again, as soon as the server has noticed.
    let again =
        async { while world.call("GET", &format!("{SITES}?watch=1&timeoutSeconds=1"), &[], "").await.code == 429 {} };
    tokio::time::timeout(PATIENCE, again).await.expect("room for a watch again");
}

/// It ends as little by itself as any other.
#[tokio::test]
async fn a_connection_that_became_something_else_is_its_peers_still() {
    async fn hold(request: axum::extract::Request) -> axum::response::Response {
        let upgrade = hyper::upgrade::on(request);
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            let _ = io.read(&mut [0]).await;
        });
        let builder = axum::response::Response::builder().status(101);
        builder.header("connection", "upgrade").header("upgrade", "hold/1").body(axum::body::Body::empty()).unwrap()
    }
    let limits = Limits { connections_per_peer: 2, ..Limits::default() };
    let routes = axum::Router::new().route("/hold", axum::routing::post(hold));
    let world = start(|server| server.limits(limits).merge(routes)).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut io = BufReader::new(world.connect().await);
        io.write_all(b"POST /hold HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: hold/1\r\n\r\n")
            .await
            .unwrap();
        let mut line = String::new();
        io.read_line(&mut line).await.unwrap();
        assert!(line.starts_with("HTTP/1.1 101"), "{line}");
        held.push(io);
    }
    let mut third = world.connect().await;
    let read = tokio::time::timeout(PATIENCE, third.read(&mut [0])).await.expect("it is closed");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    held.clear();
    let again = async {
        loop {
            let mut io = world.connect().await;
            let _ = io.write_all(request("GET", "/healthz", &[], "").as_bytes()).await;
            let mut rest = Vec::new();
            if io.read_to_end(&mut rest).await.is_ok() && rest.starts_with(b"HTTP/1.1 200") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("room again");
}

/// Answers that are not read, and bodies that are not done, are counted together.
#[tokio::test]
async fn what_is_under_way_for_a_peer_is_bounded_in_bytes() {
    let limits = Limits { bytes_per_peer: 250_000, ..Limits::default() };
    let world = start(|server| server.limits(limits)).await;
    let large = "x".repeat(200_000);
    let object = json!({"metadata": {"name": "large", "annotations": {"large": large}}, "spec": {"host": "a"}});
    assert_eq!(world.call("POST", SITES, &[], &object.to_string()).await.code, 201);
    let half = || async {
        let mut slow = world.connect().await;
        let text = request("POST", SITES, &["content-type: application/json"], &object.to_string());
        slow.write_all(&text.as_bytes()[..190_000]).await.unwrap();
        slow
    };
    let first = half().await;
    // It is heard in its own time; until then there is room.
    let refused = async { while world.call("GET", SITES, &[], "").await.code != 429 {} };
    tokio::time::timeout(PATIENCE, refused).await.expect("an answer beside it is too much");
    let metrics = world.call("GET", "/metrics", &[], "").await.body;
    assert!(metrics.contains("reconciler_refused_total{reason=\"bytes\"}"), "{metrics}");
    drop(first);
    let again = async { while world.call("GET", SITES, &[], "").await.code != 200 {} };
    tokio::time::timeout(PATIENCE, again).await.expect("room again");
}

/// A watch that does not read: nothing is kept for it, and its connection goes.
#[tokio::test]
async fn a_watch_that_does_not_read_is_ended() {
    let limits = Limits { write_time: Duration::from_millis(300), ..Limits::default() };
    let world = start(|server| server.limits(limits)).await;
    let large = "x".repeat(60_000);
    for n in 0..20 {
        let object =
            json!({"metadata": {"name": format!("s{n}"), "annotations": {"large": large}}, "spec": {"host": "a"}});
        assert_eq!(world.call("POST", SITES, &[], &object.to_string()).await.code, 201);
    }
    let mut stuck = world.connect().await;
    stuck.write_all(request("GET", &format!("{SITES}?watch=1"), &[], "").as_bytes()).await.unwrap();
    let closed = async {
        // What lies in the socket's own buffer is all that is still to be had.
        Seams::real().sleep(Duration::from_millis(1_000)).await;
        let mut rest = Vec::new();
        let _ = stuck.read_to_end(&mut rest).await;
        rest.len()
    };
    let read = tokio::time::timeout(PATIENCE, closed).await.expect("it is closed");
    assert!(read < 20 * large.len(), "{read} bytes came all the same");
}

#[derive(Debug)]
struct SitesOnly;

impl Access for SitesOnly {
    fn allow(&self, peer: &Peer, ask: &Ask<'_>) -> Result<(), String> {
        match (peer.trusted, &*ask.kind.kind, ask.verb, ask.subresource) {
            (true, ..) => Ok(()),
            (_, "Site", "get" | "list" | "watch" | "create" | "patch", "") => Ok(()),
            _ => Err("sites only".into()),
        }
    }
}

#[tokio::test]
async fn who_may_not_does_not() {
    let world = start(|server| server.access(Arc::new(SitesOnly))).await;
    let door = Loopback::bind(0, Peer::new("user:bob")).await.unwrap();
    let address = door.address().unwrap();
    let serving = world.server.clone();
    let task = tokio::spawn(async move { serving.serve(door).await });
    let call = async |method: &str, path: &str, body: &str| {
        exchange(TcpStream::connect(address).await.unwrap(), &request(method, path, &[], body)).await
    };
    assert_eq!(call("POST", SITES, &site("blog").to_string()).await.code, 201);
    assert_eq!(call("GET", "/apis/example.dev/v1/sites", "").await.code, 200);
    let shelves = call("GET", "/apis/example.dev/v1/shelves", "").await;
    assert_eq!((shelves.code, &shelves.json()["reason"]), (403, &json!("Forbidden")));
    assert!(shelves.json()["message"].as_str().unwrap().contains("user:bob"), "{}", shelves.body);
    assert_eq!(call("PUT", &format!("{SITES}/blog/status"), "{}").await.code, 403);
    assert_eq!(call("DELETE", &format!("{SITES}/blog"), "").await.code, 403);
    // One write of a commit that is not allowed, and none of it happens; nor does it help to say another name.
    let commit = json!({
        "identity": "user:root", "manager": "m", "writes": [
            {"create": {"kind": "sites.example.dev", "object": {"metadata": {"name": "s", "namespace": "default"}, "spec": {"host": "h"}}}},
            {"delete": {"kind": "sites.example.dev", "namespace": "default", "name": "blog"}},
        ],
    });
    assert_eq!(call("POST", "/apis/apply/v1/commits", &commit.to_string()).await.code, 403);
    let selections = "%5B%7B%22kind%22%3A%22shelves.example.dev%22%7D%5D";
    assert_eq!(call("GET", &format!("/apis/apply/v1/stream?selections={selections}"), "").await.code, 403);
    let sites = world.read(SITES).await;
    assert_eq!(sites["items"].as_array().unwrap().len(), 1);
    task.abort();
}

/// Watching can be taken back.
#[derive(Debug, Default)]
struct Revocable(AtomicBool);

impl Access for Revocable {
    fn allow(&self, _: &Peer, ask: &Ask<'_>) -> Result<(), String> {
        if ask.verb == "watch" && self.0.load(Ordering::SeqCst) { Err("no more".into()) } else { Ok(()) }
    }
}

#[tokio::test]
async fn a_watch_ends_with_the_right_to_it() {
    let access = Arc::new(Revocable::default());
    let world = start(|server| server.access(access.clone())).await;
    world.create("a").await;
    let mut watch = world.watch(&format!("{SITES}?watch=1"), &[]).await;
    assert_eq!(watch.told().await, "ADDED a");
    let mut stream = world.remote().stream(vec![Selection::of::<Site>()], Start::Now).await.unwrap();
    assert!(matches!(futures::StreamExt::next(&mut stream).await, Some(Ok(Event::Initial(_)))));
    world.create("b").await;
    assert_eq!(watch.told().await, "ADDED b");
    access.0.store(true, Ordering::SeqCst);
    world.create("c").await;
    assert_eq!(watch.next().await, None, "nothing of c, and the end");
    let rest: Vec<_> = futures::StreamExt::collect(stream).await;
    let told = format!("{rest:?}");
    assert!(told.contains("default/b") && !told.contains("default/c"), "{told}");
}

#[tokio::test]
async fn a_stop_ends_watches_and_answers_what_was_asked() {
    let world = start(|server| {
        let slow = get(|| async {
            Seams::real().sleep(Duration::from_millis(300)).await;
            "slow and whole"
        });
        server.merge(axum::Router::new().route("/slow", slow))
    })
    .await;
    world.create("a").await;
    let mut watch = world.watch(&format!("{SITES}?watch=1"), &[]).await;
    assert_eq!(watch.told().await, "ADDED a");
    let remote = world.remote();
    let mut stream = remote.stream(vec![Selection::of::<Site>()], Start::Now).await.unwrap();
    let idle = world.connect().await;
    let mut slow = world.connect().await;
    slow.write_all(request("GET", "/slow", &[], "").as_bytes()).await.unwrap();
    // The request is being answered once the server has taken it off the socket.
    Seams::real().sleep(Duration::from_millis(100)).await;
    world.server.stop().raise();
    assert_eq!(watch.next().await, None);
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("slow and whole"), "{answer}");
    let ended = async {
        while let Some(event) = futures::StreamExt::next(&mut stream).await {
            if let Err(error) = event {
                return error;
            }
        }
        panic!("a stream ends with an error");
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert!(matches!(ended, Error::Unavailable { .. }), "{ended:?}");
    let over = async {
        while !world.serving.is_finished() {
            Seams::real().sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, over).await.expect("it returns");
    drop(idle);
    assert!(UnixStream::connect(&world.path).await.is_err());
}

#[tokio::test]
async fn a_socket_is_its_owners_alone_and_replaces_only_the_dead() {
    let world = start(|server| server).await;
    assert_eq!(std::fs::metadata(&world.path).unwrap().permissions().mode() & 0o777, 0o600);
    let taken = UnixSocket::bind(&world.path).await.unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse, "{taken}");
    world.read("/apis").await;
    let directory = Directory::new();
    let path = directory.path().join("s");
    std::fs::write(&path, "precious").unwrap();
    let no_socket = UnixSocket::bind(&path).await.unwrap_err();
    assert!(no_socket.to_string().contains("no socket"), "{no_socket}");
    std::fs::remove_file(&path).unwrap();
    drop(UnixSocket::bind(&path).await.unwrap());
    let again = UnixSocket::bind(&path).await.unwrap();
    assert_eq!(again.path(), path);
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["s"]);
}

#[tokio::test]
async fn nobody_there_is_said_with_the_place_and_what_to_do() {
    let directory = Directory::new();
    let path = directory.path().join("nobody.sock");
    let way = Unix::new(&path).advice("start it with `applyctl init`");
    let remote = Remote::new(Arc::new(way), Seams::real());
    let Err(error) = remote.list(&Selection::of::<Site>(), PageRequest::default()).await else { panic!() };
    let text = error.to_string();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(text.contains(path.to_str().unwrap()) && text.contains("applyctl init"), "{text}");
    // Nothing was sent, so it is known that nothing happened.
    let client = Client::new(Arc::new(remote), Writer::new("user:ann", "tests"));
    let refused = client.commit(vec![Write::create(&Shelf::new("x", Default::default()))]).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
}

/// Takes a request and dies.
#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_not_known() {
    let directory = Directory::new();
    let path = directory.path().join("s");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let mut some = [0; 16];
            io.read_exact(&mut some).await.unwrap();
        }
    });
    let remote = Remote::unix(&path, Seams::real());
    let read = remote.get(Shelf::kind(), &ObjectRef::cluster("x")).await;
    assert!(matches!(read, Err(Error::Unavailable { .. })), "{read:?}");
    let client = Client::new(Arc::new(remote), Writer::new("user:ann", "tests"));
    let lost = client.commit(vec![Write::create(&Shelf::new("x", Default::default()))]).await;
    assert!(matches!(lost, Err(Error::UnknownOutcome { .. })), "{lost:?}");
    task.abort();
}

/// A server that was restarted: the connections of before are dead, and nobody notices.
#[tokio::test]
async fn a_restart_goes_unnoticed_between_calls() {
    let world = start(|server| server).await;
    let client = world.client();
    client.create(&Shelf::new("a", Default::default())).await.unwrap();
    world.server.stop().raise();
    let over = async {
        while !world.serving.is_finished() {
            Seams::real().sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, over).await.unwrap();
    let objects = StoreObjects::open(world.store.clone(), "/apply", kinds(), Seams::real()).await.unwrap();
    let server = Server::new(Arc::new(objects), kinds(), Seams::real());
    let socket = UnixSocket::bind(&world.path).await.unwrap();
    let task = tokio::spawn(async move { server.serve(socket).await });
    client.create(&Shelf::new("b", Default::default())).await.unwrap();
    assert_eq!(client.list::<Shelf>(None).await.unwrap().len(), 2);
    task.abort();
}

#[tokio::test]
async fn a_host_adds_routes_that_know_the_peer() {
    async fn log(Extension(peer): Extension<Peer>) -> String {
        format!("line for {}\n", peer.identity)
    }
    async fn echo(request: axum::extract::Request) -> axum::response::Response {
        let (tell, told) = tokio::sync::oneshot::channel();
        let upgrade = hyper::upgrade::on(request);
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            let mut line = [0; 5];
            io.read_exact(&mut line).await.unwrap();
            io.write_all(&line).await.unwrap();
            let _ = tell.send(());
        });
        drop(told);
        let builder = axum::response::Response::builder().status(101);
        builder.header("connection", "upgrade").header("upgrade", "echo/1").body(axum::body::Body::empty()).unwrap()
    }
    let routes = axum::Router::new()
        .route("/apis/example.dev/v1/namespaces/{namespace}/sites/{name}/log", get(log))
        .route("/apis/example.dev/v1/namespaces/{namespace}/sites/{name}/echo", axum::routing::post(echo));
    let world = start(|server| server.merge(routes)).await;
    let remote = world.remote();
    let mut lines = remote.call(Method::GET, &format!("{SITES}/blog/log"), Bytes::new()).await.unwrap().lines();
    let line = lines.next().await.unwrap().unwrap();
    assert!(line.starts_with(b"line for user:"), "{line:?}");
    assert_eq!(lines.next().await.unwrap(), None);
    let mut io =
        remote.upgrade(Method::POST, &format!("{SITES}/blog/echo"), "echo/1").await.unwrap().upgraded().await.unwrap();
    io.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    tokio::time::timeout(PATIENCE, io.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"hello");
    // The server's own routes are as they were.
    world.create("blog").await;
}

#[tokio::test]
async fn it_says_whether_it_is_ready_and_counts() {
    let good = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let check = good.clone();
    let world = start(|server| {
        server.ready("store", move || match check.load(std::sync::atomic::Ordering::SeqCst) {
            true => Ok(()),
            false => Err("not open yet".into()),
        })
    })
    .await;
    let ready = world.call("GET", "/readyz", &[], "").await;
    assert_eq!(ready.code, 503);
    assert!(ready.body.contains("[-]store failed: not open yet"), "{}", ready.body);
    good.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(world.call("GET", "/readyz", &[], "").await.code, 200);
    world.create("a").await;
    world.call("GET", "/apis/example.dev/v1/made-up", &[], "").await;
    let metrics = world.call("GET", "/metrics", &[], "").await.body;
    let line = r#"apiserver_request_total{verb="create",resource="sites.example.dev",code="201"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    assert!(!metrics.contains("made-up"), "what a peer says does not become a label");
}

/// For clients that look for a kind in the group without a name, as they do for namespaces.
#[tokio::test]
async fn a_kind_may_be_served_a_second_time() {
    let world = start(|server| server.core(Shelf::kind())).await;
    assert_eq!(world.read("/api").await["versions"], json!(["v1"]));
    assert_eq!(world.read("/api/v1").await["resources"][0]["name"], "shelves");
    let mut watch = world.watch("/api/v1/shelves?watch=1", &[]).await;
    let shelf = json!({"apiVersion": "v1", "kind": "Shelf", "metadata": {"name": "top"}, "spec": {"place": 1}});
    let made = world.call("POST", "/api/v1/shelves", &[], &shelf.to_string()).await;
    assert_eq!((made.code, &made.json()["apiVersion"]), (201, &json!("v1")));
    assert_eq!(watch.next().await.unwrap()["object"]["apiVersion"], "v1");
    let mut whole = world.read("/api/v1/shelves/top").await;
    whole["spec"]["place"] = json!(2);
    assert_eq!(world.call("PUT", "/api/v1/shelves/top", &[], &whole.to_string()).await.json()["apiVersion"], "v1");
    let list = world.read("/api/v1/shelves").await;
    assert_eq!((&list["apiVersion"], &list["items"][0]["apiVersion"]), (&json!("v1"), &json!("v1")));
    let stored = world.read("/apis/example.dev/v1/shelves/top").await;
    assert_eq!((&stored["apiVersion"], &stored["spec"]["place"]), (&json!("example.dev/v1"), &json!(2)));
    assert_eq!(world.call("GET", "/api/v1/namespaces/default/sites", &[], "").await.code, 404);
}

#[tokio::test]
async fn a_dry_run_over_http_writes_nothing() {
    let world = start(|server| server).await;
    let answer = world.call("POST", &format!("{SITES}?dryRun=All"), &[], &site("blog").to_string()).await;
    assert_eq!((answer.code, &answer.json()["metadata"]["generation"]), (201, &json!(1)));
    assert_eq!(world.read(SITES).await["items"], json!([]));
}
