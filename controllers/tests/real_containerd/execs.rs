//! Programs in running containers.

use std::time::{Duration, Instant};

use controllers::node::containerd::runtime::{Exec, ExecBounds, ExecEnd, Session};
use controllers::node::containerd::{Error, Runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::scene::Scene;

async fn a_program_is_run_to_its_end_or_its_deadline(runtime: &str) {
    let scene = Scene::start_with(&format!("exec-{runtime}"), runtime).await;
    let spec = scene.spec("e.1", "exec sleep 100000");
    let id = &spec.id;
    scene.run(&spec).await;
    scene.runs(id, &["sleep 100000"]).await;

    let (code, said) = scene.exec(id, "echo out; echo err >&2; exit 7").await;
    assert!(code == Some(7) && ["out\nerr", "err\nout"].contains(&said.as_str()), "{code:?} {said}");
    assert_eq!(scene.exec(id, "echo $A; pwd; id -u").await, (Some(0), "1\n/\n0".to_owned()));
    let soon = Duration::from_secs(20);
    assert_eq!(scene.exec_as(id, "id -u; id -G", Some("app"), soon).await, (Some(0), "1000\n1000 29".to_owned()));
    let ghost = Exec { args: vec!["true".to_owned()], user: Some("ghost".to_owned()), ..Exec::default() };
    let bounds = ExecBounds { deadline: soon, output_bytes_max: 10 };
    let refused = scene.runtime.exec(id, &ghost, bounds).await.unwrap_err();
    assert_eq!(refused.to_string(), "no user ghost in the image");
    let missing = Exec { args: vec!["nope".to_owned()], ..Exec::default() };
    let failed = scene.runtime.exec(id, &missing, bounds).await.unwrap_err();
    assert!(failed.to_string().contains("nope"), "{failed}");

    // Much output is cut, and blocks nothing.
    let loud =
        Exec { args: ["sh", "-c", "yes | head -c 1000000; exit 4"].map(str::to_owned).to_vec(), ..Exec::default() };
    let outcome = scene.runtime.exec(id, &loud, bounds).await.unwrap();
    assert_eq!((outcome.end, outcome.truncated), (ExecEnd::Exited { code: 4 }, true));
    assert_eq!(outcome.output, b"y\ny\ny\ny\ny\n");

    // At the deadline everything of the program goes: background, own session, and what ignores SIGTERM (C120).
    for script in [
        "sleep 1000",
        "sleep 1000 & sleep 1000",
        "trap '' TERM; sleep 1000",
        "setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000",
        "setsid env -i sleep 1000 >/dev/null & (sleep 1000 &) ; sleep 1000 & echo said; sleep 1000",
    ] {
        let before = Instant::now();
        let (code, said) = scene.exec_as(id, script, None, Duration::from_secs(2)).await;
        assert_eq!(code, None, "{script}: {said}");
        assert!(before.elapsed() < Duration::from_secs(10), "{script}: {:?}", before.elapsed());
        if script.contains("env -i") {
            // Without a mark of ours and in a session of its own: it has left the program for good, like a daemon.
            assert_eq!(said, "said");
            scene.runs(id, &["sleep 100000", "sleep 1000"]).await;
        } else {
            assert_eq!(scene.processes(id), ["sleep 100000"], "{script}");
        }
    }
    // What a program that has ended by itself leaves in the background is meant to stay, as with Docker.
    let before = Instant::now();
    assert_eq!(scene.exec(id, "sleep 2000 & echo started").await, (Some(0), "started".to_owned()));
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    scene.runs(id, &["sleep 100000", "sleep 1000", "sleep 2000"]).await;

    scene.runtime.remove(id).await.unwrap();
    let absent = scene.runtime.exec(id, &loud, bounds).await.unwrap_err();
    assert!(matches!(absent, Error::Absent { .. }), "{absent:?}");
    scene.runtime.drain().await;
    scene.assert_clean().await;
}

#[tokio::test]
async fn a_program_under_runc_is_run_to_its_end_or_its_deadline() {
    a_program_is_run_to_its_end_or_its_deadline("runc").await;
}

#[tokio::test]
async fn a_program_under_crun_is_run_to_its_end_or_its_deadline() {
    a_program_is_run_to_its_end_or_its_deadline("crun").await;
}

fn shell_on_tty() -> Exec {
    Exec { args: vec!["sh".to_owned()], tty: true, ..Exec::default() }
}

async fn all(stream: &mut (dyn tokio::io::AsyncRead + Send + Unpin)) -> String {
    let mut said = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut said)).await.unwrap().unwrap();
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn a_person_types_into_a_program() {
    let scene = Scene::start("person").await;
    let spec = scene.spec("e.1", "exec sleep 100000");
    let id = &spec.id;
    scene.run(&spec).await;

    // Through pipes: three streams, and the end of the input ends the shell.
    let script = "read x; echo got $x; echo to stderr >&2; read y; exit 9";
    let exec = Exec { args: ["sh", "-c", script].map(str::to_owned).to_vec(), ..Exec::default() };
    let Session { stdin, mut stdout, mut stderr, control } = scene.runtime.attach_exec(id, &exec).await.unwrap();
    let mut stdin = stdin.unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    drop(stdin);
    control.close_stdin().await.unwrap();
    assert_eq!(control.wait().await.unwrap(), 9);
    assert_eq!(all(&mut stdout).await, "got hello\n");
    assert_eq!(all(stderr.as_mut().unwrap()).await, "to stderr\n");
    drop(control);

    let Session { stdin, mut stdout, control, .. } =
        scene.runtime.attach_exec(id, &Exec { args: vec!["cat".to_owned()], ..Exec::default() }).await.unwrap();
    let mut stdin = stdin.unwrap();
    stdin.write_all(b"to the end").await.unwrap();
    drop(stdin);
    control.close_stdin().await.unwrap();
    assert_eq!(all(&mut stdout).await, "to the end");
    assert_eq!(control.wait().await.unwrap(), 0);
    drop(control);

    // On a terminal, which has a size.
    let Session { stdin, mut stdout, stderr, control } = scene.runtime.attach_exec(id, &shell_on_tty()).await.unwrap();
    assert!(stderr.is_none());
    let mut stdin = stdin.unwrap();
    control.resize(123, 45).await.unwrap();
    stdin.write_all(b"stty size; test -t 0 && exit 3\n").await.unwrap();
    assert_eq!(control.wait().await.unwrap(), 3);
    let said = all(&mut stdout).await;
    assert!(said.contains("45 123"), "{said}");
    drop((stdin, control));

    // A session that is dropped takes its program along.
    let session = scene.runtime.attach_exec(id, &shell_on_tty()).await.unwrap();
    scene.runs(id, &["sleep 100000", "sh"]).await;
    drop(session);
    scene.runtime.drain().await;
    assert_eq!(scene.processes(id), ["sleep 100000"]);

    scene.runtime.remove(id).await.unwrap();
    scene.assert_clean().await;
}

#[tokio::test]
async fn the_programs_of_a_dead_predecessor_are_ended() {
    let scene = Scene::start("dead").await;
    let spec = scene.spec("e.1", "exec sleep 100000");
    let id = &spec.id;
    scene.run(&spec).await;
    // A predecessor that died with the runtime: neither its futures nor their clean-ups ever ran on.
    let exec = Exec { args: ["sh", "-c", "sleep 1000 & sleep 1000"].map(str::to_owned).to_vec(), ..Exec::default() };
    let predecessor = scene.successor();
    let session = predecessor.attach_exec(id, &exec).await.unwrap();
    std::mem::forget(session);
    scene.runs(id, &["sleep 100000", "sleep 1000", "sleep 1000"]).await;
    scene.runtime.sweep().await.unwrap();
    assert_eq!(scene.processes(id), ["sleep 100000"]);
    scene.runtime.remove(id).await.unwrap();
    scene.assert_clean().await;
}
