//! From a manager to a machine. A machine is behind whatever it is behind, so it is not called: it is asked, over the stream
//! that it keeps open, to call back, and that connection is then used the other way round.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::Response;
use hyper::upgrade::Upgraded;
use reconciler::seams::Seams;
use tokio::sync::{mpsc, oneshot};

use super::answer::{Refusal, WhileAllowed};

/// How long a machine may take to call back (one round trip, and a handshake of TLS), and again to begin its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whoever asked may hang up meanwhile, which drops everything.
struct Asked<'a> {
    calls: &'a Calls,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.calls.lock().awaited.remove(&self.number);
    }
}

/// The machines that can be asked. Clones share it.
#[derive(Clone, Default)]
pub struct Calls {
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    /// Whom the number of a call is said to.
    lines: BTreeMap<String, mpsc::Sender<u64>>,
    awaited: BTreeMap<u64, Awaited>,
    count: u64,
}

struct Awaited {
    node: String,
    caller: oneshot::Sender<Upgraded>,
}

impl Calls {
    /// From now on this machine is asked over this line.
    pub fn connect(&self, node: &str, line: mpsc::Sender<u64>) {
        self.lock().lines.insert(node.to_owned(), line);
    }

    /// This line is no more. Another may have taken its place.
    pub fn disconnect(&self, node: &str, line: &mpsc::Sender<u64>) {
        let mut known = self.lock();
        if known.lines.get(node).is_some_and(|known| known.same_channel(line)) {
            known.lines.remove(node);
        }
    }

    /// A machine calls back. Says whether it was asked to.
    pub fn answered(&self, node: &str, number: u64) -> Option<impl FnOnce(Upgraded) + Send + use<>> {
        let mut known = self.lock();
        let asked = known.awaited.get(&number).is_some_and(|awaited| awaited.node == node);
        let awaited = asked.then(|| known.awaited.remove(&number)).flatten()?;
        // Who asked may have given up.
        Some(move |connection| drop(awaited.caller.send(connection)))
    }

    async fn call(&self, node: &str, seams: &Seams) -> Option<Upgraded> {
        let (caller, connection) = oneshot::channel();
        let (number, line) = {
            let mut known = self.lock();
            let line = known.lines.get(node)?.clone();
            known.count += 1;
            let number = known.count;
            known.awaited.insert(number, Awaited { node: node.to_owned(), caller });
            (number, line)
        };
        let _asked = Asked { calls: self, number };
        let called = async {
            line.send(number).await.ok()?;
            connection.await.ok()
        };
        tokio::select! {
            connection = called => connection,
            () = seams.sleep(PATIENCE) => None,
        }
    }

    /// Has a machine answer a request, and passes on what it says; what the request asks to be upgraded to as well.
    pub async fn forward(&self, node: &str, mut request: Request, seams: &Seams) -> Result<Response, Refusal> {
        let gone = |why: &str| Refusal(StatusCode::SERVICE_UNAVAILABLE, format!("{node} does not answer{why}"));
        let connection = self.call(node, seams).await.ok_or_else(|| gone(": it is not heard of"))?;
        let (mut sender, driver) =
            hyper::client::conn::http1::handshake(connection).await.map_err(|error| gone(&format!(": {error}")))?;
        tokio::spawn(driver.with_upgrades());
        let allowed = request.extensions().get::<WhileAllowed>().cloned();
        let here = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        *request.uri_mut() = path.parse().map_err(|_| gone(": it cannot be asked this"))?;
        let answered = tokio::select! {
            answered = sender.send_request(request) => answered,
            () = seams.sleep(PATIENCE) => return Err(gone(" in time")),
        };
        let mut response = answered.map_err(|error| gone(&format!(": {error}")))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (here, there) = (here.ok_or_else(|| gone(" as it was asked"))?, hyper::upgrade::on(&mut response));
            tokio::spawn(async move {
                let Ok((here, there)) = tokio::try_join!(here, there) else { return };
                let (mut here, mut there) = (hyper_util::rt::TokioIo::new(here), hyper_util::rt::TokioIo::new(there));
                // Either end may hang up.
                let _ = WhileAllowed::of(allowed, tokio::io::copy_bidirectional(&mut here, &mut there)).await;
            });
        }
        // It is passed on piece by piece, however long it says that it will be.
        Ok(response.map(|body| Body::from_stream(Body::new(body).into_data_stream())))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_answers_for_a_machine_that_was_not_asked_and_only_once() {
        let calls = Calls::default();
        let seams = Seams::real();
        assert!(calls.call("n2", &seams).await.is_none(), "not connected");
        let (line, mut asked) = mpsc::channel(1);
        calls.connect("n2", line.clone());
        let asking = {
            let (calls, seams) = (calls.clone(), seams.clone());
            tokio::spawn(async move { calls.call("n2", &seams).await.is_some() })
        };
        let number = asked.recv().await.unwrap();
        assert!(calls.answered("n3", number).is_none(), "another machine");
        assert!(calls.answered("n2", number + 1).is_none(), "never asked");
        // It hangs up instead of handing over a connection.
        drop(calls.answered("n2", number).unwrap());
        assert!(calls.answered("n2", number).is_none(), "only once");
        assert!(!asking.await.unwrap());
        // Who asked hangs up.
        let mut hung_up = Box::pin(calls.call("n2", &seams));
        assert!(futures::poll!(&mut hung_up).is_pending());
        drop(hung_up);
        let (other, _) = mpsc::channel(1);
        calls.connect("n2", other);
        calls.disconnect("n2", &line);
        assert_eq!(calls.lock().lines.len(), 1, "the newer line stays");
        assert!(calls.lock().awaited.is_empty());
    }
}
