//! What containers print.

use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::Stage;

/// moby/moby#37646, moby/moby#23913, moby/moby#39235: a follower stopped when the file was rotated.
#[test]
fn a_follower_goes_on_through_rotations() {
    let stage = Stage::open("rotation");
    for (service, files) in [("one", 1), ("three", 3)] {
        stage.service_with(
            service,
            "image: 'test/shell:1', command: [sh, -c, 'i=0; while true; do i=$((i+1)); echo $i; done']",
            &format!(", log: {{options: {{max-size: 64Ki, max-file: {files}}}}}"),
        );
    }
    for service in ["one", "three"] {
        stage.running(service);
        let mut command = stage.machine.person().applyctl(&["logs", "-f", service]).unwrap();
        let (out, into) = std::io::pipe().unwrap();
        // What is lost is said beside the lines, in its place among them.
        let mut follower = command.stdout(into.try_clone().unwrap()).stderr(into).spawn().unwrap();
        drop(command);
        let (tell, told) = mpsc::sync_channel(1000);
        let reader = thread::spawn(move || {
            for line in BufReader::new(out).lines() {
                if line.is_ok_and(|line| tell.send(line).is_err()) {
                    return;
                }
            }
        });
        let (mut last, mut seen, mut gaps) = (0_u64, 0_u64, 0_u64);
        // The newest number, and whether something was said to be lost before it.
        let (mut newest, mut said) = (None, false);
        // Some twenty rotations: 64 KiB are about ten thousand such lines.
        while seen < 200_000 {
            let line = told.recv_timeout(Duration::from_secs(30)).expect("the follower stalled");
            let text = line.rsplit('|').next().unwrap().trim();
            let Ok(number) = text.parse::<u64>() else {
                assert!(text.contains("removed by rotation"), "{line}");
                // The end of the line before it may be lost.
                (newest, said, gaps) = (None, true, gaps + 1);
                continue;
            };
            if let Some((number, after_gap)) = newest.replace((number, said)) {
                assert!(number > last, "{number} after {last}");
                assert!(number == last + 1 || last == 0 || after_gap, "from {last} to {number} without a word");
                last = number;
                seen += 1;
            }
            said = false;
        }
        follower.kill().unwrap();
        follower.wait().unwrap();
        drop(told);
        reader.join().unwrap();
        println!("{service}: {seen} lines, up to {last}, {gaps} gaps said");
    }
}

/// moby/moby#34855: long lines were cut into pieces of 16 KB.
#[test]
fn lines_come_out_as_they_were_printed() {
    let stage = Stage::open("lines");
    let print = "head -c 100000 /dev/zero | tr \"\\\\0\" a; echo; \
                 printf \"one\\rtwo\\rthree\\n\"; printf \"\\377\\376bad\\n\"; \
                 head -c 5000000 /dev/zero | tr \"\\\\0\" b; echo; echo {\\\"json\\\":1}; printf unfinished; sleep 1000000";
    stage.service("long", &format!("image: 'test/shell:1', command: [sh, -c, '{print}']"));
    stage.running("long");
    let wanted: Vec<u8> = [
        vec![b'a'; 100_000],
        b"\none\rtwo\rthree\n\xff\xfebad\n".to_vec(),
        vec![b'b'; 5_000_000],
        b"\n{\"json\":1}\nunfinished".to_vec(),
    ]
    .concat();
    let printed = || {
        let task = stage.running("long")["metadata"]["name"].as_str().unwrap().to_owned();
        let output = stage.machine.person().applyctl(&["logs", &task]).unwrap().output().unwrap();
        output.stdout
    };
    let mut got = Vec::new();
    stage.until("all to be printed", || {
        got = printed();
        got.len() >= wanted.len()
    });
    let end = got.strip_suffix(b"\n").filter(|_| got.len() > wanted.len()).unwrap_or(&got);
    let differs = end.iter().zip(&wanted).position(|(got, wanted)| got != wanted);
    assert!(end == wanted, "{} bytes of {}; the first that differs: {differs:?}", end.len(), wanted.len());
}
