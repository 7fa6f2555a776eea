//! Random faults on three managers while services grow, shrink and are written: whatever was acknowledged is there, and every
//! service is exactly what was last asked for.
//!
//! `FAULTS` says how many (8), `FAULTS_SEED` which.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use conformance::lab::Lab;
use conformance::observer::alive;
use conformance::parts::chance::Chance;
use conformance::parts::machine::{Machine, PATIENCE, Part, Way};
use conformance::parts::process::wait_until;

use crate::{running, state_of};

const MACHINES: u8 = 3;

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The power goes, and is back after a while.
    Power,
    /// The plug of the network is pulled, and put in again.
    Cut,
    /// Nothing passes one way.
    OneWay(Way),
    /// Its network is narrow.
    Slow,
    /// Its clock is set forward, and back again.
    Clock,
    Kill(Part),
    /// It stands still for longer than anybody waits for it.
    Freeze(Part),
}

const FAULTS: [Fault; 12] = [
    Fault::Power,
    Fault::Cut,
    Fault::OneWay(Way::From),
    Fault::OneWay(Way::To),
    Fault::Slow,
    Fault::Clock,
    Fault::Kill(Part::Applyd),
    Fault::Kill(Part::Etcd),
    Fault::Kill(Part::Keep),
    Fault::Kill(Part::Containerd),
    Fault::Freeze(Part::Applyd),
    Fault::Freeze(Part::Etcd),
];

/// What was acknowledged so far.
#[derive(Default)]
struct Acknowledged {
    networks: BTreeSet<String>,
    replicas: usize,
    count: usize,
}

#[test]
fn random_faults_lose_nothing_and_leave_every_service_exact() {
    let count = std::env::var("FAULTS").ok().and_then(|count| count.parse().ok()).unwrap_or(8);
    let (mut chance, seed) = Chance::new();
    println!("FAULTS={count} FAULTS_SEED={seed}");
    let mut lab = Lab::start("random", MACHINES).unwrap();
    let first = lab.machine(1).unwrap();
    first.ctl(&["init"]).unwrap();
    let token = first.ctl(&["token", "create", "--role", "manager", "-q"]).unwrap();
    for machine in &lab.machines()[1..] {
        machine.ctl(&["join", "10.99.0.1", token.trim()]).unwrap();
    }
    for machine in lab.machines() {
        machine.load("test").unwrap();
    }
    let first = lab.machine(1).unwrap();
    first.ctl(&["service", "create", "--name", "web", "--replicas", "4", "test/box:1", "sleep"]).unwrap();
    let mut acknowledged = Acknowledged { replicas: 4, ..Acknowledged::default() };
    for done in 1..=count {
        let fault = FAULTS[chance.below(FAULTS.len())];
        let number = u8::try_from(chance.below(usize::from(MACHINES))).unwrap() + 1;
        let lasts = Duration::from_millis(500 + chance.below(4_000) as u64);
        println!("{done:>4} {fault:?} on n{number}, for {:.1} s", lasts.as_secs_f64());
        strike(&mut lab, fault, number);
        writes(&lab, number, &mut acknowledged, &mut chance);
        pause(lasts);
        mend(&mut lab, fault, number);
        let mut why = String::new();
        let exact = wait_until("everything to be as it was asked for", PATIENCE, || {
            why = why_not(&lab, &acknowledged).unwrap_or_default();
            why.is_empty()
        });
        let logs = || lab.machines().iter().map(|machine| machine.log_end("applyd")).collect::<Vec<_>>().join("\n\n");
        assert!(exact.is_ok(), "FAULTS_SEED={seed}, fault {done} ({fault:?} on n{number}): {why}\n{}", logs());
    }
    println!("{} writes were acknowledged, and are there", acknowledged.count);
    assert!(acknowledged.count > count, "hardly anything was written: {}", acknowledged.count);
}

fn strike(lab: &mut Lab, fault: Fault, number: u8) {
    match fault {
        Fault::Power => lab.power_off(number).unwrap(),
        Fault::Cut => lab.connect(number, false).unwrap(),
        Fault::OneWay(way) => lab.pass(number, way, false).unwrap(),
        Fault::Slow => lab.narrow(number, Some("1mbit")).unwrap(),
        Fault::Clock => begin_at(lab, number, &["--clock-offset", "3000"]),
        Fault::Kill(part) => drop(lab.machine(number).unwrap().kill(part).unwrap()),
        Fault::Freeze(part) => lab.machine(number).unwrap().freeze(part).unwrap(),
    }
}

/// What a service manager would start again is started again.
fn mend(lab: &mut Lab, fault: Fault, number: u8) {
    match fault {
        Fault::Power => lab.power_on(number).unwrap(),
        Fault::Cut | Fault::OneWay(_) | Fault::Slow => lab.heal(number).unwrap(),
        Fault::Clock => begin_at(lab, number, &[]),
        Fault::Kill(Part::Applyd) => lab.machine(number).unwrap().begin_applyd().unwrap(),
        Fault::Kill(Part::Containerd) => lab.machine(number).unwrap().start_containerd().unwrap(),
        // applyd's business.
        Fault::Kill(Part::Keep | Part::Etcd) => {}
        Fault::Freeze(part) => lab.machine(number).unwrap().thaw(part),
    }
}

/// A clock is set while applyd is dead, as by a boot.
fn begin_at(lab: &mut Lab, number: u8, words: &[&str]) {
    let machine = lab.machine_mut(number).unwrap();
    machine.kill(Part::Applyd).unwrap();
    machine.tell_applyd(words);
    machine.begin_applyd().unwrap();
}

/// Writes to a manager that is not struck, some of which may be refused meanwhile.
fn writes(lab: &Lab, struck: u8, acknowledged: &mut Acknowledged, chance: &mut Chance) {
    for _ in 0..4 {
        let number = struck % MACHINES + 1;
        let machine = lab.machine(number).unwrap();
        let name = format!("w{}", acknowledged.networks.len() + chance.below(1_000_000));
        if machine.ctl(&["network", "create", &name]).is_ok() {
            acknowledged.networks.insert(name);
            acknowledged.count += 1;
        }
        let replicas = 2 + chance.below(6);
        // One that was not acknowledged may be done all the same: it is asked for until it is.
        let scaled = wait_until("a new size to be taken", PATIENCE, || {
            machine.ctl(&["scale", &format!("web={replicas}"), "--detach"]).is_ok()
        });
        scaled.unwrap_or_else(|error| panic!("{error}: {}", machine.log_end("applyd")));
        acknowledged.replicas = replicas;
        acknowledged.count += 1;
    }
}

/// What is not as it was asked for, as every manager says and as the kernel shows.
fn why_not(lab: &Lab, acknowledged: &Acknowledged) -> Option<String> {
    for machine in lab.machines() {
        let asked = &machine.installation().node;
        for number in 1..=MACHINES {
            let node = format!("n{number}");
            let state = state_of(machine, &node);
            if state != "Ready" {
                return Some(format!("{node} is {state:?} as {asked} says"));
            }
        }
        let runs = running(machine, "web").len();
        if runs != acknowledged.replicas {
            return Some(format!("{runs} of {} run as {asked} says", acknowledged.replicas));
        }
        let Some(known) = networks(machine) else {
            return Some(format!("{asked} does not say which networks there are"));
        };
        if let Some(lost) = acknowledged.networks.iter().find(|name| !known.contains(*name)) {
            return Some(format!("network {lost} was acknowledged, and is not there as {asked} says"));
        }
    }
    let mut slots: BTreeMap<String, usize> = BTreeMap::new();
    for group in lab.machines().iter().filter_map(|machine| machine.groups().into_iter().next()) {
        for (slot, containers) in alive(&group).slots {
            *slots.entry(slot).or_default() += containers.len();
        }
    }
    let exact = slots.len() == acknowledged.replicas && slots.values().all(|count| *count == 1);
    (!exact).then(|| format!("{} are asked for, alive are {slots:?}", acknowledged.replicas))
}

fn networks(manager: &Machine) -> Option<BTreeSet<String>> {
    let listed = manager.person().list("network").ok()?;
    Some(listed.iter().map(|network| network["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Not to wait for something: a fault lasts.
fn pause(time: Duration) {
    std::thread::sleep(time);
}
