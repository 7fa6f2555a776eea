//! What an update costs beside 10,000 other services. Prints figures (`--nocapture`); fails only when it is no longer
//! independent of their number.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use controllers::node::links::Links;
use controllers::node::mesh::{COUNTERS_MAX, Changed, Frontend, Protocol};

use crate::lab::{Lab, ask};

const SERVICES: u16 = 10_000;

fn vip(number: u16) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + u32::from(number)).into()
}

fn backend(number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 200, 0, 0)) + number).into()
}

#[expect(clippy::disallowed_methods, reason = "measures")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

#[test]
fn attaching_a_task() {
    let mut lab = Lab::new("attach");
    let mut times: Vec<Duration> = (0..50u8)
        .map(|number| {
            let (v4, v6) = (format!("10.192.1.{}", number + 2), format!("fd0a:2:1::{:x}", number + 2));
            timed(|| lab.attach(&format!("task-{number}"), &[&v4, &v6])).1
        })
        .collect();
    times.sort_unstable();
    println!("a task attached: fastest {:?}, median {:?}, slowest {:?}", times[0], times[25], times[49]);
    let again = timed(|| lab.attach("task-7", &["10.192.1.9", "fd0a:2:1::9"])).1;
    println!("nothing to do: {again:?}");
    let listed = lab.block_on(lab.links.list()).unwrap();
    assert_eq!(listed.len(), 50);
    assert!(listed.iter().all(|it| it.addresses.len() == 2));
}

#[test]
fn one_backend_among_ten_thousand_services() {
    let mut lab = Lab::new("scale");
    lab.task("a", &["10.192.1.2"]);
    for number in 0..SERVICES {
        let backends = (0..3).map(|it| backend(u32::from(number) * 3 + it)).collect();
        lab.state.vips.insert(vip(number), backends);
    }
    let (_, all) = timed(|| lab.converge());
    println!("{SERVICES} services of 3 tasks, from nothing: {all:?}");
    let (again, whole) = timed(|| lab.converge());
    assert_eq!(again.changes, 0);
    println!("all compared with what was wanted before, nothing to do: {whole:?}");
    lab.forget_everything();
    let (again, restart) = timed(|| lab.converge());
    assert_eq!(again.changes, 0, "a start with nothing changed changes nothing");
    println!("a start: all listed, compared, nothing to do: {restart:?}");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let measure = |lab: &mut Lab, what: &str, change: &dyn Fn(u32, &mut BTreeSet<IpAddr>)| {
        let mut times: Vec<Duration> = (0..40u16)
            .map(|round| {
                let service = vip(round * 37 % SERVICES);
                change(u32::from(round), lab.state.vips.get_mut(&service).unwrap());
                let changed = BTreeSet::from([Frontend::Vip(service)]);
                let (done, time) =
                    timed(|| runtime.block_on(lab.converger.converge(&lab.state, Changed::Frontends(&changed))));
                assert!(done.unwrap().changes > 0);
                time
            })
            .collect();
        times.sort_unstable();
        println!("{what}: fastest {:?}, median {:?}, slowest {:?}", times[0], times[20], times[39]);
        times[0]
    };
    let replaced = measure(&mut lab, "one backend replaced", &|round, backends| {
        backends.pop_first();
        backends.insert(backend(100_000 + round));
    });
    // The chains of this shape are made once, at the first services of four tasks.
    for number in 5_000..5_000 + COUNTERS_MAX as u16 + 1 {
        lab.state.vips.get_mut(&vip(number)).unwrap().insert(backend(300_000));
    }
    lab.converge();
    measure(&mut lab, "one backend more", &|round, backends| {
        backends.insert(backend(200_000 + round));
    });
    measure(&mut lab, "one backend less, with the pause before its slot goes", &|_, backends| {
        backends.pop_first();
    });
    // Unoptimised, on a machine that does other things: far below what a look at all services takes.
    assert!(replaced * 20 < restart, "{replaced:?} against {restart:?}");

    lab.vip("10.96.200.1", &["10.192.1.2"]);
    lab.converge();
    let answer = ask(&lab.machine, Protocol::Tcp, "10.96.200.1:80".parse().unwrap());
    assert_eq!(answer.unwrap().server, "a");
    // One of those that take turns by chance: both tasks answer, and in the end about equally often.
    lab.task("b", &["10.192.1.3"]);
    let by_chance = vip(SERVICES - 1);
    lab.vip(&by_chance.to_string(), &["10.192.1.2", "10.192.1.3", "10.192.1.4"]);
    lab.task("c", &["10.192.1.4"]);
    lab.converge();
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..120 {
        let answer = ask(&lab.machine, Protocol::Udp, (by_chance, 80).into()).unwrap();
        *counts.entry(answer.server).or_default() += 1;
    }
    // 40 each are expected; less than 15 of one is a chance of one in a million.
    assert!(counts.len() == 3 && counts.values().all(|it| *it >= 15), "{counts:?}");
}
