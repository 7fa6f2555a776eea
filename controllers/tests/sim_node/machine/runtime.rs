//! containerd as the tasks controller calls it: in the steps, and in their order, of `node/containerd`.

use controllers::node::containerd::container_spec::Resources;
use controllers::node::containerd::runtime::{Exec, ExecBounds, ExecEnd, ExecOutcome, Recipients, Session, Stats};
use controllers::node::containerd::{Change, Container, ContainerId, ContainerSpec, Error, Runtime, State as Seen};
use controllers::node::spec::Signal;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use reconciler::sim::CallError;

use super::Hand;
use super::containers::{Met, Record};

fn unavailable(doing: &str) -> impl FnOnce(CallError) -> Error + use<> {
    let doing = doing.to_owned();
    move |error| Error::Unavailable { doing, source: Box::new(error) }
}

fn met(met: Met, doing: &str, spec: Option<&ContainerSpec>, id: &ContainerId) -> Result<(), Error> {
    let doing = doing.to_owned();
    match met {
        Met::Done | Met::Complete => Ok(()),
        Met::Spent => Err(Error::Spent { id: id.clone() }),
        Met::Busy => Err(Error::Busy { doing }),
        Met::NoLayers => Err(Error::NoImage { image: spec.map(|spec| spec.image.name.clone()).unwrap_or_default() }),
        Met::Fails(message) => Err(Error::Failed { doing, message: message.to_owned() }),
    }
}

impl Hand {
    fn serial(&self, id: &ContainerId) -> u64 {
        self.machine.lock().serial(id)
    }

    async fn make(&self, spec: &ContainerSpec) -> Result<(), Error> {
        let id = &spec.id;
        let doing = format!("create container {id}");
        let record = Record { labels: spec.labels.clone(), image: spec.image.name.clone(), complete: false };
        let of = id.clone();
        let step = self.request(format!("the record of {id}"), move |state| state.make_record(&of, record));
        let outcome = step.await.map_err(unavailable(&doing))?;
        met(outcome, &doing, Some(spec), id)?;
        if outcome == Met::Complete {
            return Ok(());
        }
        let serial = self.serial(id);
        let (of, parent) = (id.clone(), spec.image.parent.clone());
        let step = self.request(format!("the layer of {id}"), move |state| state.make_layer(&of, &parent));
        met(step.await.map_err(unavailable(&doing))?, &doing, Some(spec), id)?;
        // Two steps: containerd can die between them, and whoever asked too.
        let (of, pipes) = (id.clone(), spec.stdio.stdout.is_some());
        let step = self.request(format!("containerd begins the task of {id}"), move |state| {
            let begun = state.begin_task(&of, pipes);
            if begun == Met::Done {
                state.make_task_later(&of, serial);
            }
            begun
        });
        met(step.await.map_err(unavailable(&doing))?, &doing, Some(spec), id)?;
        let of = id.clone();
        let step = self.request(format!("the task of {id}"), move |state| state.make_task(&of, serial));
        step.await.map_err(unavailable(&doing))?;
        let of = id.clone();
        let step = self.request(format!("{id} is complete"), move |state| state.mark_complete(&of, serial));
        step.await.map_err(unavailable(&doing))
    }

    async fn take_away(&self, id: &ContainerId) -> Result<(), Error> {
        let doing = format!("remove container {id}");
        let serial = self.serial(id);
        let of = id.clone();
        let step = self.request(format!("removes the task of {id}"), move |state| state.remove_task(&of, serial));
        step.await.map_err(unavailable(&doing))?;
        let of = id.clone();
        let step =
            self.request(format!("removes the record of {id}"), move |state| state.remove_record_of(&of, serial));
        let record = step.await;
        let of = id.clone();
        let step = self.request(format!("removes the layer of {id}"), move |state| state.remove_layer(&of, serial));
        record.and(step.await).map_err(unavailable(&doing))
    }

    async fn all(&self) -> Result<Vec<Container>, Error> {
        let looked = self.ask("list containers", |state| {
            let ids: Vec<ContainerId> = state.containers.keys().cloned().collect();
            let seen = ids.into_iter().filter_map(|id| {
                let (labels, state, orphan) = state.seen(&id)?;
                Some(Container { id, labels, state, orphan })
            });
            seen.collect()
        });
        looked.await.map_err(unavailable("list containers"))
    }

    async fn one(&self, id: &ContainerId) -> Result<Option<Container>, Error> {
        let doing = format!("look at container {id}");
        let looked = self.ask(&doing, |state| {
            let (labels, state, orphan) = state.seen(id)?;
            Some(Container { id: id.clone(), labels, state, orphan })
        });
        looked.await.map_err(unavailable(&doing))
    }

    /// `All` whenever containerd is another one than before, then name by name. `at`: which one, and what is next of it.
    async fn next_change(&self, at: Option<(u64, usize)>) -> (Change, (u64, usize)) {
        loop {
            let changed = self.machine.shared.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            let idle = {
                let state = self.machine.lock();
                let (run, told) = state.events_told();
                match at {
                    _ if state.away => {}
                    Some((seen, next)) if seen == run => {
                        if let Some(id) = state.events_from(next) {
                            return (Change::One(id), (run, next + 1));
                        }
                    }
                    _ => return (Change::All, (run, told)),
                }
                state.idle()
            };
            match idle {
                Some(wait) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = self.env.seams.sleep(wait) => {}
                },
                None => changed.await,
            }
        }
    }

    async fn check(&self, id: &ContainerId) -> Result<ExecOutcome, Error> {
        let doing = format!("run a program in container {id}");
        let looked = self.ask(&doing, |state| {
            let task = state.containers.get(id)?.task.as_ref().filter(|task| task.runs())?;
            let code = u32::from(!task.is_healthy());
            Some(ExecOutcome { end: ExecEnd::Exited { code }, output: Vec::new(), truncated: false })
        });
        looked.await.map_err(unavailable(&doing))?.ok_or(Error::Absent { doing })
    }
}

impl Runtime for Hand {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, Error>> {
        self.all().boxed()
    }

    fn inspect<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<Option<Container>, Error>> {
        self.one(id).boxed()
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        stream::unfold((self.clone(), None), |(hand, at)| async move {
            let (change, at) = hand.next_change(at).await;
            Some((change, (hand, Some(at))))
        })
        .boxed()
    }

    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> BoxFuture<'a, Result<(), Error>> {
        self.make(spec).boxed()
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<Seen, Error>> {
        async move {
            let doing = format!("start container {id}");
            let (of, serial) = (id.clone(), self.serial(id));
            let step = self.request(format!("starts {id}"), move |state| {
                let met = state.start_task(&of, serial);
                (met, state.seen(&of).map_or(Seen::Unknown, |(_, seen, _)| seen))
            });
            let (outcome, seen) = step.await.map_err(unavailable(&doing))?;
            met(outcome, &doing, None, id).map(|()| seen)
        }
        .boxed()
    }

    fn signal<'a>(&'a self, id: &'a ContainerId, _: Signal, _: Recipients) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let (of, serial) = (id.clone(), self.serial(id));
            let step = self.request(format!("asks {id} to end"), move |state| state.ask_to_end(&of, serial));
            step.await.map_err(unavailable(&format!("signal container {id}")))
        }
        .boxed()
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), Error>> {
        self.take_away(id).boxed()
    }

    fn exec<'a>(
        &'a self,
        id: &'a ContainerId,
        _: &'a Exec,
        _: ExecBounds,
    ) -> BoxFuture<'a, Result<ExecOutcome, Error>> {
        self.check(id).boxed()
    }

    fn attach_exec<'a>(&'a self, id: &'a ContainerId, _: &'a Exec) -> BoxFuture<'a, Result<Session, Error>> {
        async move { Err(Error::Absent { doing: format!("attach to container {id}") }) }.boxed()
    }

    fn stats<'a>(&'a self, _: &'a ContainerId) -> BoxFuture<'a, Result<Option<Stats>, Error>> {
        async { Ok(None) }.boxed()
    }

    fn update<'a>(&'a self, _: &'a ContainerId, _: &'a Resources) -> BoxFuture<'a, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }
}
