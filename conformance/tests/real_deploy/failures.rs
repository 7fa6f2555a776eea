//! Deployments that cannot come up. Each waits with a patience far beyond the runner's: a deployment that is not given
//! up for its reason but for the time never ends here.

use std::time::Instant;

use conformance::parts::machine::{Machine, PATIENCE};
use conformance::parts::process::wait_until;
use conformance::parts::registry::{Door, Packing, Pushed, Registry, archive};
use serde_json::json;

use super::{Said, file, run};

/// Longer than the runner lets a test live.
const FOR_EVER: &str = "2h";

struct Case {
    name: &'static str,
    image: String,
    overlay: &'static str,
    /// What is said at once and by `describe` later.
    why: String,
}

fn case(name: &'static str, image: &str, overlay: &'static str, why: &str) -> Case {
    Case { name, image: image.to_owned(), overlay, why: why.to_owned() }
}

fn deploy(machine: &Machine, case: &Case) -> Said {
    let dab = format!("{{\"Version\": \"0.1\", \"Services\": {{\"web\": {{\"Image\": \"{}\"}}}}}}", case.image);
    let dab = file(machine, &format!("{}.dab", case.name), &dab);
    let overlay = file(machine, &format!("{}.yaml", case.name), &format!("services: {{web: {{{}}}}}\n", case.overlay));
    let (dab, overlay) = (dab.to_str().unwrap(), overlay.to_str().unwrap());
    run(machine, &["deploy", case.name, dab, "--with", overlay, "--timeout", FOR_EVER])
}

/// Everything about one failed deployment that is not as promised.
#[expect(clippy::disallowed_methods, reason = "how long each took is printed")]
fn faults(machine: &Machine, case: &Case) -> Vec<String> {
    let mut faults = Vec::new();
    let begun = Instant::now();
    let said = deploy(machine, case);
    println!("{}: {:.1} s", case.name, begun.elapsed().as_secs_f64());
    let mut check = |holds: bool, what: &str, seen: &str| {
        if !holds {
            faults.push(format!("{}: {what}; seen:\n{seen}", case.name));
        }
    };
    check(said.code == Some(4), "it ends with 4", &format!("{:?} {}", said.code, said.talk));
    check(said.talk.contains(&format!("  web: {}", case.why)), &format!("it says {:?}", case.why), &said.talk);
    let service = format!("service/{}-web", case.name);
    let advice = format!("see: applyctl describe service {}-web", case.name);
    check(said.talk.contains(&advice), "it says where to look", &said.talk);
    for object in [&service, &format!("bundle/{}", case.name)] {
        let mut page = String::new();
        // Between two attempts of it, and while it is tried again, all the same.
        let same = wait_until("the page to say the same", PATIENCE, || {
            page = machine.ctl(&["describe", object]).unwrap_or_else(|error| format!("{error:#}"));
            page.contains(&case.why)
        });
        check(same.is_ok(), &format!("describe {object} says {:?} later", case.why), &page);
    }
    let gone = run(machine, &["bundle", "rm", case.name, "--yes"]);
    check(gone.code == Some(0), "it can be removed", &gone.talk);
    faults
}

#[test]
fn whatever_cannot_come_up_says_why_and_says_it_again_later() {
    let machine = Machine::start("fails").unwrap();
    machine.load("test").unwrap();
    let image = Pushed::image(
        &controllers::node::images::Platform::of_this_machine().to_string(),
        &[(Packing::Gzip, archive(&[("etc/name".to_owned(), b"x".to_vec())]).unwrap())],
        json!({}),
    )
    .unwrap();
    let (_registry, registry) = machine
        .on_network(|| {
            let registry = Registry::start("fails", Door::Open).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(registry.push("some/app", "1", &image)).unwrap();
            let name = registry.name();
            (registry, name)
        })
        .unwrap();
    let never_healthy = "template: {container: {health: {check: {exec: {command: [/testbox, exit, '1']}, interval: 300ms, timeout: 5s, retries: 2}}}}";
    let cases = [
        case(
            "tagless",
            &format!("{registry}/some/app:2"),
            "",
            &format!("image {registry}/some/app:2: the registry at {registry} has no such tag; it has 1"),
        ),
        case(
            "nameless",
            &format!("{registry}/some/ap:1"),
            "",
            &format!("image {registry}/some/ap:1: the registry at {registry} has no such repository"),
        ),
        // The machine has no way out.
        case(
            "faraway",
            "registry.invalid/app:1",
            "",
            "image registry.invalid/app:1: it is not on this machine, and could not reach the registry at registry.invalid",
        ),
        case("exits", "test/exit:3", "", "ended with exit code 3; it has failed "),
        case("aborts", "test/crash:1", "", "ended by signal "),
        case(
            "welldone",
            "test/box:1",
            "template: {container: {args: [exit, '0']}}",
            "ended with exit code 0; it has ended ",
        ),
        case(
            "programless",
            "test/box:1",
            "template: {container: {command: [/no/such/program]}}",
            "exec: \"/no/such/program\": stat /no/such/program: no such file or directory",
        ),
        case("sick", "test/box:1", never_healthy, "its health check failed 2 times in a row"),
        case(
            "ported",
            "test/box:1",
            "endpoint: {ports: [{target: 80, published: 8080}]}",
            "port 8080/tcp is taken on n1: ",
        ),
        case(
            "big",
            "test/box:1",
            "template: {resources: {reservations: {memory: 8000Gi}}}",
            "no node fits (1): memory 8000Gi asked, most free is ",
        ),
    ];
    let _listener = machine.on_network(|| std::net::TcpListener::bind("0.0.0.0:8080")).unwrap().unwrap();
    let faults: Vec<String> = cases.iter().flat_map(|case| faults(&machine, case)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_broken_file_is_refused_whole_with_every_fault_in_its_place() {
    let machine = Machine::start("broken").unwrap();
    let cases = [
        (
            "{\"Services\": {\"web\": {\"Image\": \"test/box:1\",\n  \"Ports\": [{\"Port\": 70000}], \"Imge\": 1}}}",
            vec!["dab:2:22  Services.web.Ports[0].Port: 70000 is not a port (1-65535)", "did you mean Image?"],
        ),
        ("{\"Services\": {\"web\": {\"Image\"", vec!["dab:1:30  Services.web: the file ends here"]),
        ("", vec!["dab:1:1  "]),
        ("\0\u{1}", vec!["dab:1:1  "]),
    ];
    for (text, says) in cases {
        let dab = file(&machine, "broken.dab", text);
        let said = run(&machine, &["deploy", "broken", dab.to_str().unwrap()]);
        assert_eq!(said.code, Some(5), "{text:?}: {}", said.talk);
        for part in says {
            assert!(said.talk.contains(part), "{text:?} says {part:?}: {}", said.talk);
        }
        assert!(said.talk.ends_with("nothing was changed\n"), "{}", said.talk);
    }
    assert_eq!(machine.person().list("bundle").unwrap().len(), 0);
    assert_eq!(run(&machine, &["describe", "bundle", "broken"]).code, Some(3));
}
