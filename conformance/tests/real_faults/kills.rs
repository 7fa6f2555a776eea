//! Random kills of containers, applyd, its companion and containerd: after each, exactly what is wanted is there again,
//! and nothing else.
//!
//! `FAULTS` says how many (20), `FAULTS_SEED` which.

use std::time::{Duration, Instant};

use conformance::observer::{Census, Observer, alive, difference, inventory};
use conformance::parts::chance::Chance;
use conformance::parts::machine::{Machine, Options, PATIENCE, Part, kill};
use conformance::parts::process::wait_until;

const WEB: usize = 4;
const SIDE: usize = 2;
/// What takes longer is printed with what was missing meanwhile.
const PROMISED: Duration = Duration::from_secs(2);
const PORT: &str = "http://127.0.0.1:8080/";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Container,
    Part(Part),
    /// Several at the same moment.
    Containers,
    AllParts,
}

const FAULTS: [Fault; 8] = [
    Fault::Container,
    Fault::Container,
    Fault::Containers,
    Fault::Part(Part::Applyd),
    Fault::Part(Part::Keep),
    Fault::Part(Part::Containerd),
    Fault::Part(Part::Containerd),
    Fault::AllParts,
];

#[test]
fn killed_at_random_it_is_again_as_it_should_be() {
    let count = std::env::var("FAULTS").ok().and_then(|count| count.parse().ok()).unwrap_or(20);
    killed("faults", &Options::default(), count);
}

#[test]
fn killed_at_random_with_the_containerd_of_debian_13() {
    let machine = killed("faults-trixie", &Options { containerd: Some("trixie".to_owned()), ..Options::default() }, 8);
    assert!(containerd_of(&machine).starts_with("1.7."), "{}", containerd_of(&machine));
}

/// Between a companion's first moment and the one at which whoever watches knows of it.
#[test]
fn a_companion_that_is_killed_again_at_once_is_back_all_the_same() {
    let machine = Machine::start("faults-keep").unwrap();
    for pause_ms in (0..240).step_by(15) {
        machine.kill(Part::Keep).unwrap();
        wait_until("another companion", PATIENCE, || !machine.pids(Part::Keep).is_empty()).unwrap();
        pause(pause_ms);
        machine.kill(Part::Keep).unwrap();
        // It is looked for every five seconds in any case.
        wait_until("another companion before anybody looks", Duration::from_secs(3), || {
            !machine.pids(Part::Keep).is_empty()
        })
        .unwrap_or_else(|error| panic!("killed again after {pause_ms} ms: {error}"));
    }
}

#[test]
fn killed_at_random_with_containerd_2() {
    let machine = killed("faults-forky", &Options { containerd: Some("forky".to_owned()), ..Options::default() }, 8);
    assert!(containerd_of(&machine).starts_with("2."), "{}", containerd_of(&machine));
}

/// The version that the node tells of.
fn containerd_of(machine: &Machine) -> String {
    let nodes = machine.person().list("node").unwrap();
    nodes[0]["status"]["machine"]["versions"]["containerd"].as_str().unwrap_or_default().to_owned()
}

fn killed(name: &str, options: &Options, count: usize) -> Machine {
    let (mut chance, seed) = Chance::new();
    println!("FAULTS={count} FAULTS_SEED={seed}");
    let machine = Machine::start_with(name, options).unwrap();
    machine.load("test").unwrap();
    let file = machine.folder().join("services.yaml");
    std::fs::write(&file, services()).unwrap();
    let file = file.to_string_lossy().into_owned();
    // Once up and away, so that what stays is there: images, links of the machine, the firewall's chains.
    up_and_away(&machine, &file);
    let before = inventory(&machine).unwrap();

    machine.ctl(&["apply", "-f", &file]).unwrap();
    wait_until("the services to be up", PATIENCE, || why_not(&machine).is_none()).unwrap();
    let group = machine.groups().first().cloned().expect("containers have a control group");
    let observer = Observer::watch(group);
    let mut times: Vec<(Duration, Fault)> = Vec::new();
    let mut done = 0;
    while done < count {
        let fault = FAULTS[chance.below(FAULTS.len())];
        let struck = strike(&machine, fault, &mut chance);
        done += 1;
        // One in four comes before the machine has mended the last.
        if chance.below(4) == 0 && done < count {
            pause(chance.below(700));
            continue;
        }
        // Each reason once, with when it was first seen.
        let mut missing: Vec<(Duration, String)> = Vec::new();
        let mended = wait_until("everything to be as wanted", PATIENCE, || {
            let Some(why) = why_not(&machine) else { return true };
            if missing.last().is_none_or(|(_, last)| *last != why) {
                missing.push((struck.elapsed(), why));
            }
            false
        });
        let took = struck.elapsed();
        if let Err(error) = mended {
            panic!("FAULTS_SEED={seed}, fault {done} ({fault:?}): {error}: {missing:?}\n{}", machine.log_end("applyd"));
        }
        println!("{done:>4} {fault:?}: {:.2} s", took.as_secs_f64());
        if took > PROMISED {
            missing.iter().for_each(|(since, why)| println!("     from {:.2} s: {why}", since.as_secs_f64()));
            println!("{}", machine.log_end("applyd"));
        }
        times.push((took, fault));
        let seen = observer.seen();
        assert!(seen.violations.is_empty(), "FAULTS_SEED={seed}: {:#?}", seen.violations);
    }
    let seen = observer.seen();
    drop(observer);
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].0.as_secs_f64();
    println!(
        "as wanted again after: middle {:.2} s, nine in ten {:.2} s, longest {:.2} s ({:?}), {} of {} later than {} s; {} \
         looks, {} containers, longest gap between looks {:.0} ms",
        at(50),
        at(90),
        at(100),
        times.last().map(|(_, fault)| fault),
        times.iter().filter(|(took, _)| *took > PROMISED).count(),
        times.len(),
        PROMISED.as_secs(),
        seen.looks,
        seen.ever.len(),
        seen.longest_gap.as_secs_f64() * 1e3
    );
    assert!(seen.most.values().all(|most| *most <= WEB), "too many at once: {:?}", seen.most);

    away(&machine, &file);
    let mut left = Vec::new();
    let gone = wait_until("nothing to be left", PATIENCE, || {
        left = difference(&before, &inventory(&machine).unwrap_or_default());
        left.is_empty()
    });
    assert!(gone.is_ok(), "FAULTS_SEED={seed}: {left:#?}");
    machine
}

fn services() -> String {
    let service = |name: &str, replicas: usize, more: &str| {
        format!(
            "apiVersion: apply/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n{more}  \
             template:\n    restart: {{delay: 0s}}\n    container: {{image: \"test/box:1\"}}\n"
        )
    };
    let ports = "  endpoint: {ports: [{target: 80, published: 8080}]}\n";
    format!("{}---\n{}", service("web", WEB, ports), service("side", SIDE, ""))
}

fn up_and_away(machine: &Machine, file: &str) {
    machine.ctl(&["apply", "-f", file]).unwrap();
    let mut why = None;
    let up = wait_until("the services to be up", PATIENCE, || {
        why = why_not(machine);
        why.is_none()
    });
    assert!(up.is_ok(), "{why:?}\n{}", machine.log_end("applyd"));
    away(machine, file);
}

fn away(machine: &Machine, file: &str) {
    machine.ctl(&["delete", "-f", file, "--yes"]).unwrap();
    let mut left = Vec::new();
    let gone = wait_until("all of it to be gone", PATIENCE, || {
        left = Census::take(machine).map_or_else(|error| vec![error.to_string()], |census| census.other_than(0));
        left.is_empty()
    });
    assert!(gone.is_ok(), "{left:?}");
}

/// Kills, and starts again what a service manager would. Returns when the last was killed.
fn strike(machine: &Machine, fault: Fault, chance: &mut Chance) -> Instant {
    match fault {
        Fault::Container => kill_containers(machine, 1, chance),
        Fault::Containers => kill_containers(machine, 2 + chance.below(WEB + SIDE - 1), chance),
        Fault::Part(part) => {
            machine.kill(part).unwrap();
            // Sometimes a container dies while nobody watches.
            if chance.below(3) == 0 {
                kill_containers(machine, 1, chance);
            }
            let struck = now();
            pause(chance.below(300));
            again(machine, part);
            return struck;
        }
        Fault::AllParts => {
            for part in [Part::Applyd, Part::Keep, Part::Containerd] {
                machine.kill(part).unwrap();
            }
            kill_containers(machine, 1 + chance.below(2), chance);
            let struck = now();
            again(machine, Part::Containerd);
            again(machine, Part::Applyd);
            return struck;
        }
    }
    now()
}

fn again(machine: &Machine, part: Part) {
    match part {
        Part::Applyd => machine.begin_applyd().unwrap(),
        Part::Containerd => machine.start_containerd().unwrap(),
        // applyd's business.
        Part::Keep | Part::Etcd => {}
    }
}

fn kill_containers(machine: &Machine, count: usize, chance: &mut Chance) {
    let Some(group) = machine.groups().into_iter().next() else { return };
    let mut living: Vec<u32> = alive(&group).containers().map(|container| container.pid).collect();
    for _ in 0..count.min(living.len()) {
        let victim = living.swap_remove(chance.below(living.len()));
        kill(victim).unwrap();
    }
}

/// What is not as it is wanted; `None`: all is well.
fn why_not(machine: &Machine) -> Option<String> {
    let groups = machine.groups();
    let services = groups.first().map(|group| alive(group).services()).unwrap_or_default();
    let count = |service: &str| services.get(service).copied().unwrap_or_default();
    if (count("web"), count("side")) != (WEB, SIDE) {
        return Some(format!("alive: {services:?}"));
    }
    let slots = alive(&groups[0]).slots;
    let wanted = (1..=WEB).map(|slot| format!("web-{slot}")).chain((1..=SIDE).map(|slot| format!("side-{slot}")));
    if let Some(missing) = wanted.into_iter().find(|slot| slots.get(slot).map(Vec::len) != Some(1)) {
        return Some(format!("slot {missing} has not one container: {slots:?}"));
    }
    if machine.pids(Part::Keep).len() != 1 {
        return Some("not one companion process".to_owned());
    }
    match Census::take(machine) {
        Err(error) => return Some(format!("{error:#}")),
        Ok(census) => {
            let other = census.other_than(WEB + SIDE);
            if !other.is_empty() {
                return Some(format!("not {} times there: {}", WEB + SIDE, other.join(", ")));
            }
        }
    }
    match machine.person().list("task") {
        Err(error) => return Some(format!("{error:#}")),
        Ok(tasks) => {
            let running = tasks.iter().filter(|task| task["status"]["state"] == "Running").count();
            if running != WEB + SIDE || tasks.len() != running {
                return Some(format!("{running} of {} tasks are said to run", tasks.len()));
            }
        }
    }
    machine.fetch(&["-m", "2", PORT]).err().map(|error| format!("the published port: {error}"))
}

#[expect(clippy::disallowed_methods, reason = "the time is reported")]
fn now() -> Instant {
    Instant::now()
}

/// Not to wait for something: to be early or late.
#[expect(clippy::disallowed_methods, reason = "a fault strikes at a chosen moment")]
fn pause(milliseconds: usize) {
    std::thread::sleep(Duration::from_millis(milliseconds as u64));
}
