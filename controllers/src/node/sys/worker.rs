//! A plain thread in one network namespace that does blocking work for async callers, one piece after another.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    thread,
};

use super::netns::Netns;

/// The thread, and what it works with (an open socket, say). Dropping it lets the work in hand end, then the thread.
#[derive(Debug)]
pub struct Worker<S> {
    queue: tokio::sync::mpsc::Sender<Job<S>>,
}

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// Callers wait for their answers, so there are as many jobs as there are callers: this is for bursts of them.
const WAITING_MAX: usize = 64;

impl<S: 'static> Worker<S> {
    /// Starts the thread, moves it into `netns` (`None`: the one of the caller) and makes there what it works with.
    pub fn start(
        name: &str,
        netns: Option<Netns>,
        make: impl FnOnce() -> io::Result<S> + Send + 'static,
    ) -> io::Result<Worker<S>> {
        let (queue, mut jobs) = tokio::sync::mpsc::channel::<Job<S>>(WAITING_MAX);
        let (tell, made) = mpsc::sync_channel(1);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let entered = netns.map_or(Ok(()), |netns| netns.enter());
            let mut state = match entered.and_then(|()| make()) {
                Ok(state) => state,
                Err(error) => {
                    let _ = tell.send(Err(error));
                    return;
                }
            };
            let _ = tell.send(Ok(()));
            while let Some(job) = jobs.blocking_recv() {
                job(&mut state);
            }
        })?;
        made.recv().map_err(|_| ended())??;
        Ok(Worker { queue })
    }

    /// Has `work` done and waits for it. When the caller no longer waits, the work is done all the same.
    ///
    /// An error only when `work` panicked or the thread is gone.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce(&mut S) -> T + Send + 'static) -> io::Result<T> {
        let (tell, answer) = tokio::sync::oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            // The next job finds the socket as a failed request would have left it, which sockets cope with.
            if let Ok(done) = catch_unwind(AssertUnwindSafe(|| work(state))) {
                let _ = tell.send(done);
            }
        });
        self.queue.send(job).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread that does this failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_in_order_and_outlives_a_panic() {
        let worker = Worker::start("test", None, || Ok(Vec::new())).unwrap();
        worker.run(|seen| seen.push(1)).await.unwrap();
        assert!(worker.run(|_: &mut Vec<u8>| panic!("as this test wants it")).await.is_err());
        assert_eq!(worker.run(|seen| seen.clone()).await.unwrap(), [1]);
    }

    #[tokio::test]
    async fn what_could_not_be_made_is_said_at_the_start() {
        let failed = Worker::<()>::start("test", None, || Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
