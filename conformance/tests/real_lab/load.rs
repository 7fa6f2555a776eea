//! Every machine's port asked all the time, a connection for each request, while something happens.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use conformance::lab::Lab;

use crate::reaching::{SILENCE, address};

/// What came of the requests to one machine.
#[derive(Default)]
pub(crate) struct Asked {
    pub answers: Vec<String>,
    /// When each was begun that was not answered, and why it was not.
    pub failed: Vec<(Instant, String)>,
}

/// How far the load is, while it goes on.
pub(crate) struct Load {
    done: AtomicBool,
    /// Of each machine, when the last request was begun that was answered.
    answered: Mutex<[Option<Instant>; 3]>,
}

impl Load {
    /// Each machine has answered a request that was begun later than this.
    pub fn has_answered_after(&self, moment: Instant) -> bool {
        self.answered.lock().unwrap().iter().all(|begun| begun.is_some_and(|begun| begun > moment))
    }
}

/// Ends the load.
struct Done<'a>(&'a Load);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Relaxed);
    }
}

/// Port 8080 of each of three machines is asked while `work` is done.
pub(crate) fn under_load(lab: &Lab, work: impl FnOnce(&Load)) -> Vec<Asked> {
    let load = Load { done: AtomicBool::new(false), answered: Mutex::default() };
    std::thread::scope(|scope| {
        let load = &load;
        let ask = |machine| scope.spawn(move || lab.outside(|| ask_until_done(load, machine)).unwrap());
        let askers: Vec<_> = (1..=3).map(ask).collect();
        {
            // Also when the work panics: whoever waits for the askers would wait for ever.
            let _done = Done(load);
            work(load);
        }
        askers.into_iter().map(|asker| asker.join().unwrap()).collect()
    })
}

fn ask_until_done(load: &Load, machine: u8) -> Asked {
    let (mut asked, port) = (Asked::default(), address(machine, 8080));
    while !load.done.load(Ordering::Relaxed) {
        let begun = Instant::now();
        match ask(port) {
            Ok(answer) => {
                asked.answers.push(answer);
                load.answered.lock().unwrap()[usize::from(machine) - 1] = Some(begun);
            }
            Err(error) => asked.failed.push((begun, format!("{port}: {error}"))),
        }
        // The rate of the load; nothing is waited for.
        std::thread::sleep(Duration::from_millis(5));
    }
    asked
}

/// The body of one answer.
fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.trim().to_owned()),
        _ => Err(std::io::Error::other(format!("not an answer: {answer:?}"))),
    }
}
