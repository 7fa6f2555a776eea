//! Whoever dies, at whatever moment: us, containerd, its shims.

use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_client::services::v1::DeleteContainerRequest;
use controllers::node::containerd::runtime::Recipients;
use controllers::node::containerd::{Error, Runtime, State};
use controllers::node::spec::Signal;
use futures::future::join_all;
use rustix::process::{Pid, Signal as Sent, kill_process};

use crate::scene::{Scene, create, id, insist};

/// Dropping a call is what containerd sees when the caller is killed. Every millisecond or so of a creation and of a
/// removal is tried; whoever comes next knows nothing and finishes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_cut_off_anywhere_is_finished_by_a_successor() {
    let scene = Scene::start("cut").await;
    // How long they take here and now, so that the cuts fall inside.
    let spec = scene.spec("cut.0", "sleep 1000");
    let before = Instant::now();
    scene.runtime.create(&spec).await.unwrap();
    let mut creation = before.elapsed();
    scene.runtime.start(&spec.id).await.unwrap();
    let before = Instant::now();
    scene.runtime.remove(&spec.id).await.unwrap();
    let mut removal = before.elapsed();

    const CUTS: u32 = 40;
    let mut cut = 0;
    for step in 0..CUTS {
        let spec = scene.spec(&format!("cut.{}", step + 1), "sleep 1000");
        let dies = scene.successor();
        cut += cut_off(&mut creation, step, CUTS, dies.create(&spec)).await;
        drop(dies);

        let next = scene.successor();
        create(&next, &spec).await;
        insist("start", || next.start(&spec.id)).await;
        let listed = scene.listed().await;
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert!(matches!(listed[0].state, State::Running { .. }), "{listed:?}");
        scene.runs(&spec.id, &["sleep 1000"]).await;

        let dies = scene.successor();
        cut += cut_off(&mut removal, step, CUTS, dies.remove(&spec.id)).await;
        drop(dies);
        insist("remove", || next.remove(&spec.id)).await;
        assert_eq!(scene.processes(&spec.id), Vec::<String>::new());
    }
    assert!(cut > CUTS, "only {cut} of {} calls were cut off", 2 * CUTS);
    scene.assert_clean().await;
}

/// Drops `call` at `step / steps` of the time that it takes, and returns how many were cut off: 1 or 0. A call that
/// was faster than that says how long they take now.
async fn cut_off<T>(takes: &mut Duration, step: u32, steps: u32, call: impl Future<Output = T>) -> u32 {
    let before = Instant::now();
    let cut = tokio::time::timeout(*takes * step / steps, call).await.is_err();
    if !cut {
        *takes = before.elapsed().min(*takes);
    }
    u32::from(cut)
}

/// What a crash can leave is told apart, so that nothing is started twice and no layer is used twice.
#[tokio::test]
async fn an_attempt_that_has_run_is_never_run_again() {
    let mut scene = Scene::start("spent").await;
    let spec = scene.spec("s.1", "echo dirty > /layer; sleep 1000");
    scene.run(&spec).await;
    let State::Running { pid } = scene.state(&spec.id).await.unwrap() else { panic!("it runs") };

    // The whole machine goes down: daemon, shim, processes.
    scene.containerd.kill();
    for shim in scene.containerd.shims("s.1") {
        kill(shim);
    }
    kill(pid);
    scene.containerd.restart().unwrap();
    scene.until(&spec.id, "gone", |state| *state == Some(State::Gone)).await;
    let refused = scene.runtime.create(&spec).await.unwrap_err();
    assert!(matches!(refused, Error::Spent { .. }), "{refused:?}");
    scene.runtime.remove(&spec.id).await.unwrap();

    // The same name, removed in between, has a fresh layer.
    let again = scene.spec("s.1", "test -e /layer && exit 1; exit 0");
    scene.run(&again).await;
    assert_eq!(scene.exit_code(&again.id).await, 0);
    scene.runtime.remove(&again.id).await.unwrap();
    scene.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_outlive_containerd_and_are_known_again() {
    let mut scene = Scene::start("daemon").await;
    let lives = scene.spec("d.1", "sleep 1000");
    let ends = scene.spec("d.2", "trap 'exit 6' TERM; while :; do sleep 0.01; done");
    let waits = scene.spec("d.3", "sleep 1000");
    scene.run(&lives).await;
    scene.run(&ends).await;
    scene.runtime.create(&waits).await.unwrap();
    let before = scene.state(&lives.id).await;
    let Some(State::Running { pid: ending }) = scene.state(&ends.id).await else { panic!("it runs") };
    scene.answers_to_term(ending).await;

    scene.containerd.kill();
    let away = scene.runtime.list().await.unwrap_err();
    assert!(matches!(away, Error::Unavailable { .. }), "{away:?}");
    scene.runs(&lives.id, &["sleep 1000"]).await;
    // It ends while nobody looks.
    kill_process(Pid::from_raw(ending.try_into().unwrap()).unwrap(), Sent::TERM).unwrap();
    scene.containerd.restart().unwrap();

    assert_eq!(scene.state(&lives.id).await, before);
    // From 1.7 on, containerd lets go of a task that it finds dead when it starts, and of how it ended.
    let over = |state: &Option<State>| matches!(state, Some(State::Stopped { exit_code: 6, .. } | State::Gone));
    scene.until(&ends.id, "over", over).await;
    assert_eq!(scene.state(&waits.id).await, Some(State::Created));
    scene.runtime.start(&waits.id).await.unwrap();
    assert!(matches!(scene.state(&waits.id).await, Some(State::Running { .. })));
    for spec in [&lives, &ends, &waits] {
        scene.runtime.remove(&spec.id).await.unwrap();
    }
    scene.assert_clean().await;
}

/// containerd is killed in the middle of many creations and removals; afterwards all is as if it had not been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_killed_at_work_loses_and_leaves_nothing() {
    let mut scene = Scene::start("work").await;
    for round in 0..4_u32 {
        let names: Vec<String> = (0..6).map(|n| format!("w.{round}.{n}")).collect();
        let specs: Vec<_> = names.iter().map(|name| scene.spec(name, "sleep 1000")).collect();
        let runtime = Arc::new(scene.successor());
        let creations = {
            let (runtime, specs) = (Arc::clone(&runtime), specs.clone());
            tokio::spawn(async move { join_all(specs.iter().map(|spec| runtime.create(spec))).await })
        };
        tokio::time::sleep(Duration::from_millis(30 + 60 * u64::from(round))).await;
        scene.containerd.kill();
        for outcome in creations.await.unwrap() {
            assert!(matches!(outcome, Ok(()) | Err(Error::Unavailable { .. })), "{outcome:?}");
        }
        scene.containerd.restart().unwrap();

        for spec in &specs {
            // One whose task was made but whose record does not say so, or the reverse, is made anew.
            if let Some(State::Gone) = scene.state(&spec.id).await {
                insist("remove", || scene.runtime.remove(&spec.id)).await;
            }
            create(&scene.runtime, spec).await;
            insist("start", || scene.runtime.start(&spec.id)).await;
        }
        let listed = scene.listed().await;
        assert_eq!(listed.len(), 6, "{listed:?}");
        for container in &listed {
            assert!(matches!(container.state, State::Running { .. }), "{container:?}");
            scene.runs(&container.id, &["sleep 1000"]).await;
        }

        let remove = {
            let (runtime, specs) = (Arc::clone(&runtime), specs.clone());
            tokio::spawn(async move { join_all(specs.iter().map(|spec| runtime.remove(&spec.id))).await })
        };
        tokio::time::sleep(Duration::from_millis(20 + 40 * u64::from(round))).await;
        scene.containerd.kill();
        _ = remove.await.unwrap();
        scene.containerd.restart().unwrap();
        for spec in &specs {
            insist("remove", || scene.runtime.remove(&spec.id)).await;
            assert_eq!(scene.processes(&spec.id), Vec::<String>::new());
        }
        scene.assert_clean().await;
    }
}

/// The shim is the only one that knows how a container ends. Without it nothing may be called running that is not (C108).
#[tokio::test]
async fn a_container_without_its_shim_is_gone_and_nothing_of_it_stays() {
    let scene = Scene::start("shim").await;
    let spec = scene.spec("m.1", "sleep 1000 & sleep 1000");
    scene.run(&spec).await;
    scene.runs(&spec.id, &["sleep 1000", "sleep 1000"]).await;
    let shims = scene.containerd.shims("m.1");
    assert_eq!(shims.len(), 1);
    kill(shims[0]);
    let seen = scene.until(&spec.id, "gone", |state| !matches!(state, Some(State::Running { .. }))).await;
    assert_eq!(seen, Some(State::Gone));
    insist("remove", || scene.runtime.remove(&spec.id)).await;
    assert_eq!(scene.processes(&spec.id), Vec::<String>::new());
    scene.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_creations_of_one_container_make_one() {
    let scene = Scene::start("two").await;
    for round in 0..5 {
        let spec = scene.spec(&format!("two.{round}"), "sleep 1000");
        let (one, other) = (scene.successor(), scene.successor());
        let (first, second) = tokio::join!(async { insist("create", || one.create(&spec)).await }, async {
            insist("create", || other.create(&spec)).await
        });
        assert_eq!((first, second), ((), ()));
        assert_eq!(scene.state(&spec.id).await, Some(State::Created));
        let (first, second) = tokio::join!(one.start(&spec.id), other.start(&spec.id));
        assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
        scene.runs(&spec.id, &["sleep 1000"]).await;
        let (first, second) = tokio::join!(async { insist("remove", || one.remove(&spec.id)).await }, async {
            insist("remove", || other.remove(&spec.id)).await
        });
        assert_eq!((first, second), ((), ()));
    }
    scene.assert_clean().await;
}

/// Somebody else deletes the record of a running container: it is still seen, and can still be removed.
#[tokio::test]
async fn a_task_without_a_record_is_an_orphan_and_can_be_removed() {
    let scene = Scene::start("orphan").await;
    let spec = scene.spec("o.1", "sleep 1000");
    scene.run(&spec).await;
    let request = DeleteContainerRequest { id: "o.1".to_owned() };
    scene.runtime.connection().containers().delete(request).await.unwrap();
    let listed = scene.listed().await;
    assert!(listed.len() == 1 && listed[0].orphan && listed[0].id == id("o.1"), "{listed:?}");
    // Whoever hears that the record is gone and looks must not be told that nothing runs.
    let inspected = scene.runtime.inspect(&spec.id).await.unwrap().unwrap();
    assert!(inspected.orphan && matches!(inspected.state, State::Running { .. }), "{inspected:?}");
    scene.runtime.remove(&spec.id).await.unwrap();
    assert_eq!(scene.listed().await, []);
    scene.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_containers_come_and_go_at_once() {
    let scene = Scene::start("thirty").await;
    let specs: Vec<_> = (0..30).map(|n| scene.spec(&format!("n.{n}"), "exec sleep 1000")).collect();
    let before = Instant::now();
    let up = join_all(specs.iter().map(|spec| async {
        scene.runtime.create(spec).await?;
        scene.runtime.start(&spec.id).await
    }));
    for outcome in up.await {
        outcome.unwrap();
    }
    let up = before.elapsed();
    let before = Instant::now();
    let listed = scene.listed().await;
    let list = before.elapsed();
    assert_eq!(listed.iter().filter(|c| matches!(c.state, State::Running { .. })).count(), 30);
    let before = Instant::now();
    let down = join_all(specs.iter().map(|spec| async {
        scene.runtime.signal(&spec.id, Signal::KILL, Recipients::EveryProcess).await?;
        scene.runtime.remove(&spec.id).await
    }));
    for outcome in down.await {
        outcome.unwrap();
    }
    println!("30 containers: up in {up:?}, listed in {list:?}, gone in {:?}", before.elapsed());
    scene.assert_clean().await;
}

fn kill(pid: u32) {
    _ = kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Sent::KILL);
}
