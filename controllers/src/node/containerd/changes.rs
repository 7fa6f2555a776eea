//! Which containers may have changed: containerd's events, reduced to names.
//!
//! containerd answers a subscription only with its first event, so that it is not known when the subscription begins
//! to hear. Hence a signal of our own is published, again and again, until it comes back: from then on nothing is
//! missed, and `Change::All` says so, after which whoever lists sees all that happened before.

use std::time::Duration;

use containerd_client::events::{
    ContainerCreate, ContainerDelete, ContainerUpdate, TaskCreate, TaskDelete, TaskExit, TaskOom, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use prost_types::Any;
use tonic::{Status, Streaming};

use super::connection::Connection;
use super::container_spec::ContainerId;
use super::runtime::Change;

/// Nobody else publishes it, and it changes nothing.
const SENTINEL: &str = "/apply/listening";
/// How long after one sentinel the next goes out, while none has come back.
const SENTINEL_PERIOD: Duration = Duration::from_millis(50);
/// How long after a stream broke, or could not be had, before it is asked for again.
const RETRY: Duration = Duration::from_millis(200);

enum Listening {
    /// Ask for a stream; the flag: wait first.
    Not {
        pause: bool,
    },
    To(Box<Streaming<Envelope>>),
}

pub(super) fn changes(connection: Connection) -> BoxStream<'static, Change> {
    stream::unfold((connection, Listening::Not { pause: false }), |(connection, mut listening)| async move {
        loop {
            match listening {
                Listening::Not { pause } => {
                    if pause {
                        sleep(RETRY).await;
                    }
                    match listen(&connection).await {
                        Ok(events) => {
                            let to = Listening::To(Box::new(events));
                            return Some((Change::All, (connection, to)));
                        }
                        Err(status) => {
                            tracing::debug!(%status, "no events from containerd yet");
                            listening = Listening::Not { pause: true };
                        }
                    }
                }
                Listening::To(mut events) => match events.message().await {
                    Ok(Some(envelope)) => {
                        let changed = changed(&envelope);
                        listening = Listening::To(events);
                        if let Some(id) = changed {
                            return Some((Change::One(id), (connection, listening)));
                        }
                    }
                    Ok(None) | Err(_) => listening = Listening::Not { pause: true },
                },
            }
        }
    })
    .boxed()
}

/// A stream of events that is known to hear.
async fn listen(connection: &Connection) -> Result<Streaming<Envelope>, Status> {
    let namespace = connection.namespace();
    let filters = ["^/tasks/", "^/containers/", SENTINEL]
        .map(|topic| format!("topic~=\"{topic}\",namespace==\"{namespace}\""))
        .to_vec();
    let mut client = connection.events();
    let subscribing = client.subscribe(SubscribeRequest { filters });
    let calling = async {
        loop {
            let event = Some(Any { type_url: "apply.Listening".to_owned(), value: Vec::new() });
            let request = PublishRequest { topic: SENTINEL.to_owned(), event };
            if let Err(status) = connection.within(super::QUICK).events().publish(request).await {
                return status;
            }
            sleep(SENTINEL_PERIOD).await;
        }
    };
    tokio::select! {
        answer = subscribing => answer.map(tonic::Response::into_inner),
        failed = calling => Err(failed),
    }
}

/// The container that an event is about; `None` for what changes no container (execs, the sentinel).
fn changed(envelope: &Envelope) -> Option<ContainerId> {
    let event = envelope.event.as_ref()?;
    let kind = event.type_url.rsplit('/').next()?.strip_prefix("containerd.events.")?;
    fn of<M: Message + Default>(event: &Any, id: impl FnOnce(M) -> String) -> Option<String> {
        M::decode(&*event.value).ok().map(id)
    }
    let id = match kind {
        "ContainerCreate" => of(event, |e: ContainerCreate| e.id),
        "ContainerUpdate" => of(event, |e: ContainerUpdate| e.id),
        "ContainerDelete" => of(event, |e: ContainerDelete| e.id),
        "TaskCreate" => of(event, |e: TaskCreate| e.container_id),
        "TaskStart" => of(event, |e: TaskStart| e.container_id),
        "TaskOOM" => of(event, |e: TaskOom| e.container_id),
        "TaskPaused" => of(event, |e: TaskPaused| e.container_id),
        "TaskResumed" => of(event, |e: TaskResumed| e.container_id),
        // An exec's exit carries the exec's id; health checks would wake everybody every few seconds.
        "TaskExit" => TaskExit::decode(&*event.value).ok().filter(|e| e.id == e.container_id).map(|e| e.container_id),
        "TaskDelete" => {
            let own = |e: &TaskDelete| e.id.is_empty() || e.id == e.container_id;
            TaskDelete::decode(&*event.value).ok().filter(own).map(|e| e.container_id)
        }
        _ => None,
    };
    ContainerId::new(id?).ok()
}

#[expect(clippy::disallowed_methods, reason = "the real containerd's edge; the simulator has a Runtime of its own")]
pub(super) async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(kind: &str, event: &impl Message) -> Envelope {
        let event = Some(Any { type_url: format!("containerd.events.{kind}"), value: event.encode_to_vec() });
        Envelope { event, ..Envelope::default() }
    }

    #[test]
    fn the_exit_of_an_exec_changes_no_container() {
        let exit = |id: &str| TaskExit { container_id: "a.1".into(), id: id.into(), ..TaskExit::default() };
        assert_eq!(changed(&envelope("TaskExit", &exit("a.1"))), ContainerId::new("a.1").ok());
        assert_eq!(changed(&envelope("TaskExit", &exit("x1"))), None);
        let create = ContainerCreate { id: "b".into(), ..ContainerCreate::default() };
        assert_eq!(changed(&envelope("ContainerCreate", &create)), ContainerId::new("b").ok());
        assert_eq!(changed(&envelope("ImageCreate", &create)), None);
        assert_eq!(changed(&Envelope::default()), None);
    }
}
