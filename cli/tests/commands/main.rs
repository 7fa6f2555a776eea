//! Whole commands, as they are typed, against the real controllers over a store in memory.

mod cluster;
mod socket;

use cluster::{File, Scene, scene};

/// A `.dab` with one service of this image.
fn dab(name: &str, services: &[(&str, &str)]) -> File {
    let services: Vec<String> = services
        .iter()
        .map(|(service, image)| {
            format!(
                "\"{service}\": {{\"Image\": \"{image}\", \"Ports\": [{{\"Protocol\": \"tcp\", \"Port\": 80}}], \"Networks\": [\"front\"]}}"
            )
        })
        .collect();
    File::new(name, &format!("{{\"Version\": \"0.1\",\n \"Services\": {{{}}}}}\n", services.join(",\n  ")))
}

/// Ages and names that differ from run to run become `#`.
fn plain(text: &str) -> String {
    let mut words = Vec::new();
    for line in text.lines() {
        let line: Vec<String> = line
            .split_whitespace()
            .map(|word| match word.rsplit_once('-') {
                Some((start, end)) if end.len() == 6 && end.bytes().all(|b| b.is_ascii_hexdigit()) => {
                    format!("{start}-#")
                }
                _ if word.bytes().all(|b| b.is_ascii_digit()) && word.len() < 4 => "#".into(),
                _ => word.to_owned(),
            })
            .collect();
        words.push(line.join(" "));
    }
    words.join("\n")
}

#[tokio::test]
async fn an_application_is_deployed_looked_at_scaled_and_deployed_again() {
    let scene = scene().await;
    let file = dab("whole.dab", &[("web", "example/web:1"), ("db", "example/db:1")]);
    let overlay =
        File::new("whole.yaml", "services:\n  web:\n    endpoint: {ports: [{target: 80, published: 5000}]}\n");
    let line = format!("deploy shop {} --with {} --replicas web=2", file.path(), overlay.path());
    let said = scene.run(&line).await;
    assert!(said.talk.contains("shop is up: 2 services, 3 tasks,"), "{said:?}");
    assert!(said.well().contains("web  http://192.0.2.7:5000\n"));

    assert_eq!(
        plain(&scene.run("get bundles").await.well()),
        "NAME SERVICES STATE REVISION WHY AGE\nshop 2/2 up # # s"
    );
    let services = plain(&scene.run("service ls").await.well());
    assert_eq!(
        services,
        "NAME MODE RUNNING IMAGE PORTS WHY AGE\nshop-db replicated 1/1 example/db:1 30000→80 # s\nshop-web replicated 2/2 example/web:1 5000→80 # s"
    );
    let tasks = plain(&scene.run("ps shop").await.well());
    assert_eq!(tasks.lines().filter(|line| line.contains(" n1 running ")).count(), 3, "{tasks}");
    assert_eq!(scene.run("get services -o name").await.well(), "service/shop-db\nservice/shop-web\n");
    let json: serde_json::Value =
        serde_json::from_str(&scene.run("get service shop-web -o json").await.well()).unwrap();
    assert_eq!(json["spec"]["replicas"], 2);
    assert!(scene.run("get service shop-web -o yaml").await.well().contains("kind: Service\n"));
    // The beginning of a name is enough to look.
    assert!(scene.run("get svc shop-w").await.well().contains("shop-web"));

    let said = scene.run("scale shop-web=3 shop-db=0").await;
    assert!(said.talk.contains("shop-db, shop-web are up: 2 services, 3 tasks"), "{said:?}");
    let page = scene.run("describe bundle shop").await.well();
    assert!(page.contains("Set by hand"), "{page}");
    let page = scene.run("describe service shop-web").await.well();
    assert!(page.contains("Belongs to:   bundle shop\n") && page.contains("Running:      3/3\n"), "{page}");

    let before = versions(&scene).await;
    let said = scene.run(&line).await;
    assert!(said.talk.contains("shop is up"), "{said:?}");
    assert_eq!(versions(&scene).await, before, "the same file again writes nothing");
    let said = scene.run(&format!("{line} --dry-run")).await;
    assert!(said.talk == "nothing would change\n" && said.out.lines().all(|line| line.starts_with('=')), "{said:?}");
    let fewer = dab("fewer.dab", &[("web", "example/web:2")]);
    let said = scene.run(&format!("diff shop {}", fewer.path())).await;
    assert_eq!(said.code(), 1, "a difference is told by the exit code, as diff(1) does: {said:?}");
    let said = said.out;
    assert!(said.contains("    image  example/web:1 → example/web:2"), "{said}");
    assert!(said.contains("replaces 3 tasks, 1 at a time\n"), "what runs is what is replaced: {said}");
    assert!(said.contains("- service shop-db "), "{said}");
    assert_eq!(versions(&scene).await, before, "--dry-run writes nothing");
}

async fn versions(scene: &Scene) -> Vec<String> {
    let text = scene.run("get bundles,services,tasks,revisions -o json").await.well();
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["metadata"]["resourceVersion"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn whatever_cannot_come_up_is_told_in_plain_words_within_seconds() {
    let scene = scene().await;
    for (name, image, why) in [
        (
            "a",
            "example/missing:1",
            "web: image example/missing:1: the registry at docker.io has no such tag; it has 2, 3",
        ),
        ("b", "example/crash:1", "web: ended with exit code 2; it has failed 3 times"),
        ("c", "example/sick:1", "web: its health check failed 3 times in a row: no answer"),
    ] {
        let file = dab(&format!("{name}.dab"), &[("web", image)]);
        let failure = scene.run(&format!("deploy {name} {}", file.path())).await.failed(4);
        assert!(failure.starts_with("not up after "), "{failure}");
        assert!(failure.contains(why), "{failure}");
        assert!(failure.ends_with(&format!("see: applyctl describe service {name}-web")), "{failure}");
    }
    let file = dab("big.dab", &[("web", "example/web:1")]);
    let overlay = File::new("big.yaml", "services: {web: {template: {resources: {reservations: {memory: 8Gi}}}}}\n");
    let line = format!("deploy big {} --with {}", file.path(), overlay.path());
    let failure = scene.run(&line).await.failed(4);
    assert!(failure.contains("web: no node fits (1): memory 8Gi asked, most free is 4Gi (n1)"), "{failure}");
    let page = scene.run("describe service big-web").await.well();
    assert!(page.contains("memory 8Gi asked, most free is 4Gi"), "described later as it was told then: {page}");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_every_fault_has_its_place() {
    let scene = scene().await;
    let file = File::new(
        "bad.dab",
        "{\"Services\": {\"web\": {\"Image\": \"example/web:1\",\n  \"Ports\": [{\"Port\": 70000}], \"Imge\": 1}}}",
    );
    let said = scene.run(&format!("deploy bad {}", file.path())).await;
    assert_eq!(said.talk.lines().count(), 2, "{said:?}");
    assert!(said.talk.contains("bad.dab:2:22  Services.web.Ports[0].Port: 70000 is not a port (1-65535)"), "{said:?}");
    assert_eq!(said.failed(5), "nothing was changed");
    let said = scene.run(&format!("deploy bad {}.not", file.path())).await;
    assert!(said.failed(3).starts_with("cannot read "));
    assert_eq!(scene.run("get bundles").await.talk, "there are no bundles in namespace default\n");
}

#[tokio::test]
async fn several_documents_are_applied_all_or_none() {
    let scene = scene().await;
    let service = |image: &str| {
        format!(
            "apiVersion: apply/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  labels: {{a: b}}\n  template: {{container: {{image: {image}}}}}\n"
        )
    };
    let network = "---\napiVersion: apply/v1\nkind: Network\nmetadata: {name: back}\n";
    let file = File::new("two.yaml", &format!("{}{network}", service("example/web:1")));
    let line = format!("apply -f {}", file.path());
    assert_eq!(scene.run(&line).await.well(), "service/web created\nnetwork/back created\n");
    assert_eq!(scene.run(&line).await.well(), "service/web unchanged\nnetwork/back unchanged\n");
    let changed = File::new("changed.yaml", &service("example/web:2").replace("  labels: {a: b}\n", ""));
    let dry = scene.run(&format!("apply --dry-run -f {}", changed.path())).await.well();
    assert_eq!(dry, "service/web changed (nothing was changed: --dry-run)\n");
    assert_eq!(scene.run(&format!("apply -f {}", changed.path())).await.well(), "service/web changed\n");
    let json: serde_json::Value = serde_json::from_str(&scene.run("get service/web -o json").await.well()).unwrap();
    assert_eq!(json["spec"]["template"]["container"]["image"], "example/web:2");
    assert!(
        json["spec"]["labels"].as_object().is_none_or(|labels| labels.is_empty()),
        "what is no longer said goes: {json}"
    );

    let bad = File::new(
        "bad.yaml",
        &format!("{}---\napiVersion: apply/v1\nkind: Servce\nmetadata: {{name: x}}\n", service("example/web:3")),
    );
    let said = scene.run(&format!("apply -f {}", bad.path())).await;
    assert!(said.talk.contains("kind: \"Servce\" is not a kind; did you mean Service?"), "{said:?}");
    assert_eq!(said.failed(5), "nothing was changed");
    assert!(scene.run("get service/web -o json").await.well().contains("example/web:2"));
}

#[tokio::test]
async fn a_service_is_created_updated_and_removed_by_hand() {
    let scene = scene().await;
    let said = scene.run("service create --name web -p 8080:80 -e A=1 --replicas 2 example/web:1 serve --all").await;
    assert!(said.talk.contains("web is up: 1 service, 2 tasks"), "{said:?}");
    said.well();
    let failure = scene.run("service create --name web example/web:1").await.failed(6);
    assert_eq!(failure, "service web exists already\n  change it: applyctl service update web");
    let failure =
        scene.run("service create --name Bad_Name -p 8080:80 --limit-memory 1Ki example/web:1").await.failed(5);
    assert!(failure.contains("metadata.name: "), "{failure}");
    scene.run("service update --image example/web:2 --env-rm A -p 9090:80 web").await.well();
    let text = scene.run("service inspect web").await.well();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["spec"]["endpoint"]["ports"][0]["published"], 9090);
    assert_eq!(json["spec"]["template"]["container"]["args"], serde_json::json!(["serve", "--all"]));
    assert!(json["spec"]["template"]["container"]["env"].is_null(), "{text}");
    assert_eq!(scene.run("scale wbe=1").await.failed(3), "there is no service wbe\n  did you mean web?");
    assert_eq!(scene.run("service rm web").await.talk, "service/web is gone\n");
    assert_eq!(scene.run("get service web").await.failed(3), "there is no service web\n  there are no services at all");
}

#[tokio::test]
async fn nothing_is_destroyed_without_a_word() {
    let scene = scene().await;
    let volume = File::new("volume.yaml", "apiVersion: apply/v1\nkind: Volume\nmetadata: {name: data}\n");
    scene.run(&format!("apply -f {}", volume.path())).await.well();
    let failure = scene.run("volume rm data").await.failed(2);
    assert_eq!(failure, "this would delete 1 volume: data\n  say --yes if it shall");
    assert_eq!(scene.run("delete volume data --dry-run").await.well(), "volume/data would be deleted\n");
    assert_eq!(scene.run("system prune --volumes --yes").await.talk, "volume/data is gone\n");
    assert_eq!(scene.run("delete volumes").await.code(), 2);
    assert_eq!(scene.run("delete volume data").await.code(), 3);
}

#[tokio::test]
async fn what_a_bundle_would_make_again_is_not_removed() {
    let scene = scene().await;
    let file = dab("belongs.dab", &[("web", "example/web:1"), ("db", "example/db:1")]);
    scene.run(&format!("deploy shop {}", file.path())).await.well();
    scene.run("service create --name free example/web:1").await.well();
    let advice = "take it out of the bundle's file and deploy that, or remove the bundle: applyctl bundle rm shop";
    let told = |what: &str| format!("{what} belongs to bundle shop, which would make it again\n  {advice}");
    for (line, what) in [
        ("service rm shop-web", "service/shop-web"),
        ("service rm free shop-web --yes", "service/shop-web"),
        ("delete service shop-web --dry-run", "service/shop-web"),
        ("network rm shop-front", "network/shop-front"),
    ] {
        assert_eq!(scene.run(line).await.failed(5), told(what), "{line}");
    }
    assert!(scene.run("get service free").await.well().contains("example/web:1"), "nothing is half done");

    // What the file no longer has and was kept all the same can go; and whatever goes with its bundle.
    let fewer = dab("belongs-fewer.dab", &[("web", "example/web:1")]);
    scene.run(&format!("deploy shop {} --no-prune", fewer.path())).await.well();
    assert_eq!(scene.run("service rm shop-db").await.talk, "service/shop-db is gone\n");
    let both = "apiVersion: apply/v1\nkind: Bundle\nmetadata: {name: shop}\n---\napiVersion: apply/v1\nkind: Service\n\
        metadata: {name: shop-web}\nspec: {template: {container: {image: example/web:1}}}\n";
    let both = File::new("belongs-both.yaml", both);
    scene.run(&format!("delete -f {} --yes", both.path())).await.well();
    assert_eq!(scene.run("get service shop-web").await.code(), 3);
}

#[tokio::test]
async fn the_object_of_the_whole_cluster_stays() {
    let scene = scene().await;
    let file = File::new(
        "cluster.yaml",
        "apiVersion: apply/v1\nkind: Cluster\nmetadata: {name: cluster}\nspec: {title: otter}\n",
    );
    scene.run(&format!("apply -f {}", file.path())).await.well();
    let told = scene.run("delete cluster cluster --yes").await.failed(5);
    assert!(told.starts_with("cluster/cluster says what holds for all machines, and stays"), "{told}");
    assert!(scene.run("get cluster cluster").await.well().contains("otter"));
}

#[tokio::test]
async fn a_watch_shows_what_stands_and_then_what_changes() {
    let scene = scene().await;
    scene.run("service create --name web --detach example/web:1").await.well();
    let watching = scene.run("wait service/web");
    let said = watching.await;
    assert!(said.talk.contains("web is up"), "{said:?}");
    let status = scene.run("system status").await.well();
    assert_eq!(plain(&status), "● nodes ready 1/1\n● bundles up 0/0\n● services full 1/1\n● tasks running 1/1");
    let json: serde_json::Value = serde_json::from_str(&scene.run("system df -o json").await.well()).unwrap();
    assert!(json.as_array().unwrap().iter().any(|row| row["kind"] == "services" && row["count"] == 1), "{json}");
    scene.run("node update n1 --availability drain --label-add disk=ssd").await.well();
    assert!(scene.run("node ls").await.well().contains("ready, drained"));
    assert_eq!(scene.run("wait --gone service/none").await.talk, "it is gone\n");
    assert_eq!(scene.run("wait node/n1").await.code(), 2);
    assert!(scene.run("explain service.spec.replicas").await.well().contains("default: 1"));
}

#[tokio::test]
async fn a_service_has_a_history_and_a_way_back() {
    let scene = scene().await;
    scene.run("service create --name web example/web:1").await.well();
    scene.run("service update --image example/web:2 web").await.well();
    let image = async || {
        let text = scene.run("get service web -o json").await.well();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["spec"]["template"]["container"]["image"].as_str().unwrap().to_owned()
    };
    let history = async || plain(&scene.run("rollout history service/web").await.well()).replace("# s", "#");
    assert_eq!(history().await, "NUMBER AGO WHAT BY WHY\n# # example/web:1 test\n# (now) # example/web:2 test");
    assert!(scene.run("rollout history web --revision 1").await.well().contains("image: example/web:1"));
    let said = scene.run("rollout undo service/web").await;
    assert!(said.talk.contains("web is up"), "{said:?}");
    assert_eq!(image().await, "example/web:1");
    let lines = history().await;
    assert_eq!(lines.lines().count(), 4, "the way back is a step of its own: {lines}");
    scene.run("rollout undo web --to 2").await.well();
    assert_eq!(image().await, "example/web:2");
    let failure = scene.run("rollout undo web --to 9").await.failed(3);
    assert_eq!(failure, "service/web has no number 9 in its history\n  there is 1, 2, 3, 4");
    scene.run("rollout status service/web").await.well();
    scene.run("service create --name new example/web:1").await.well();
    let failure = scene.run("rollout undo new").await.failed(3);
    assert_eq!(failure, "service/new was never anything else than it is");
    assert_eq!(scene.run("rollout undo node/n1").await.code(), 2);
}

#[tokio::test]
async fn an_application_can_be_what_it_was_before() {
    let scene = scene().await;
    let first = dab("first.dab", &[("web", "example/web:1"), ("db", "example/db:1")]);
    let second = dab("second.dab", &[("web", "example/web:2"), ("db", "example/db:1")]);
    scene.run(&format!("deploy shop {} -m begin", first.path())).await.well();
    scene.run("scale shop-web=2 --message more").await.well();
    scene.run(&format!("deploy shop {} -m spring", second.path())).await.well();
    let history = async |of: &str| {
        let text = scene.run(&format!("rollout history {of}")).await.well();
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        // Without how long ago that was.
        lines.map(|line| line.replace(" 0 s ", " ").replace(" 1 s ", " ")).collect::<Vec<_>>().join("\n")
    };
    let told = history("bundle/shop").await;
    assert!(told.contains("\n1 ") && told.contains(" 2 services test begin\n2 (now) "), "{told}");
    assert!(told.ends_with(" web example/web:2 test spring"), "{told}");
    assert!(scene.run("rollout history shop --revision 1").await.well().contains("image: example/web:1"));
    assert!(scene.run("describe bundle shop").await.well().contains("\nRevision:     2, by test: spring\n"));

    let said = scene.run("rollout undo bundle/shop").await;
    assert!(said.talk.contains("shop is up: 2 services, 3 tasks"), "what was scaled by hand stays so: {said:?}");
    let services = scene.run("service ls").await.well();
    assert!(services.contains("example/web:1"), "{services}");
    let told = history("bundle/shop").await;
    assert!(told.ends_with(" web example/web:1 test back to 1"), "{told}");
    let told = history("service/shop-web").await;
    let why: Vec<&str> = told.lines().skip(1).filter_map(|line| Some(line.split_once(" test ")?.1)).collect();
    assert_eq!(why, ["begin", "spring", "back to 1"], "whoever changes a bundle changes its services: {told}");
    scene.run("rollout undo bundle/shop --to 2 -m again").await.well();
    assert!(history("bundle/shop").await.ends_with(" test again"));
    assert!(scene.run("rollout undo bundle/shop --to 9").await.failed(3).contains("there is 1, 2, 3, 4"));
}

#[tokio::test]
async fn whatever_is_said_of_an_object_can_be_waited_for() {
    let scene = scene().await;
    scene.run("service create --name web example/web:1").await.well();
    let said = scene.run("wait service/web --for jsonpath={.status.running}=1").await;
    assert_eq!(said.talk, "service/web: .status.running is 1\n");
    scene.run("wait service/web --for condition=ready").await.well();
    let failure = scene.run("wait service/web --for jsonpath={.status.running}=7 --timeout 0").await.failed(4);
    assert!(failure.starts_with("waited 0.0 s in vain for service/web: .status.running to be 7; "), "{failure}");
    assert_eq!(scene.run("wait service/wbe --for condition=Ready").await.code(), 3);
    let both = async {
        let waiting = scene.run("wait service/web --for jsonpath={.status.running}=2");
        let scaling = scene.run("scale web=2");
        tokio::join!(waiting, scaling)
    };
    let (waited, scaled) = both.await;
    waited.well();
    scaled.well();
    let both = async { tokio::join!(scene.run("wait service/web --for delete"), scene.run("service rm web")) };
    let (waited, removed) = both.await;
    waited.well();
    removed.well();
}

#[tokio::test]
async fn a_bundle_answers_to_the_name_that_it_was_given() {
    let scene = scene().await;
    let file = dab("named.dab", &[("web", "example/web:1")]);
    let said = scene.run(&format!("deploy Two_Words {}", file.path())).await;
    assert!(said.talk.starts_with("Two_Words is called two-words here\n"), "{said:?}");
    said.well();
    for line in ["bundle ps Two_Words", "ps Two_Words", "describe bundle/Two_Words", "get bundle TWO_words"] {
        assert!(scene.run(line).await.well().contains("two-words"), "{line}");
    }
    scene.run("bundle services Two_Words").await.well();
    scene.run("rollout history bundle/Two_Words").await.well();
    let said = scene.run("bundle rm Two_Words --detach").await;
    assert_eq!(said.talk, "Two_Words is called two-words here\nbundle/two-words is going\n");

    // The name is at fault, not the file, which is not even there.
    let failure = scene.run("deploy two: nowhere.dab").await.failed(2);
    assert!(failure.starts_with("\"two:\" cannot become a name ("), "{failure}");
}

#[tokio::test]
async fn tables_of_endpoints_count_and_namespaces_need_not_be_made() {
    let scene = scene().await;
    let file = dab("ends.dab", &[("web", "example/web:1")]);
    scene.run(&format!("deploy shop {} --replicas web=2", file.path())).await.well();
    let table = scene.run("get endpoints").await.well();
    assert!(table.starts_with("NAME      BACKENDS  VIP"), "{table}");
    let said = scene.run("get namespaces").await;
    assert!(said.talk.contains("none has to be made"), "{said:?}");
}
