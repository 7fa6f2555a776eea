//! Carries a plan out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use reconciler::ObjectRef;
use reconciler::api::{Resource, Uid};
use reconciler::causes::chain;
use reconciler::controller::{Action, Ctx, Error};
use reconciler::events::Level;
use reconciler::objects::{self, Committed, Write};
use schemas::image::ImageRef;
use schemas::kinds::service::Service;
use schemas::kinds::task::{DesiredState, NODE_FINALIZER, Task, TaskState, TaskStatus, WAITING_FOR_VOLUME};
use schemas::kinds::volume::Volume;

use super::containers::InHand;
use super::observe::{ImageFailure, ImageHere, ImageOutcome, Seen, Volumes};
use super::plan::{self, Plan, Step};
use super::surroundings::{PrepareError, Prepared};
use super::{Made, Tasks, container_id, translate};
use crate::node::containerd::runtime::Recipients;
use crate::node::containerd::{self, ContainerId, State};
use crate::node::images::Wanted;
use crate::node::spec::Signal;

/// How long another creation of a container may be at it; measured 0.1 s, 3 s with a hundred at once on two cores. Cut
/// off earlier than it would have ended, it has to begin anew, which is all the harm.
const BUSY_MAX: Duration = Duration::from_millis(700);
const BUSY_LOOK: Duration = Duration::from_millis(100);
/// The kernel does not tell when a connection ends.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// Why the rest of a plan is not carried out.
enum Stop {
    /// The attempt has failed at its start.
    Failed {
        attempt: u32,
        message: String,
    },
    /// Nothing can be started of this task.
    Rejected {
        reason: &'static str,
        message: String,
    },
    /// The image has gone from here.
    NoImage,
    /// Something is at the container of the attempt, or has died while it was.
    Busy(u32),
    /// Somebody is connected to it.
    Draining,
    /// It may go well later; until then people see why it does not.
    Again {
        message: String,
    },
    Error(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Error(error.into())
    }
}

/// For the store to take a status of a task that can go on without it: who manages may be gone.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
/// The same of one that cannot: it waits, but not so long that those that go on would wait for a turn.
const BEGUN_WITHIN: Duration = Duration::from_secs(5);
/// How long nobody is told anything once the store did not answer, and when it is tried again.
const SILENT_FOR: Duration = Duration::from_secs(1);

/// How far the plan was carried out.
struct Acting {
    /// As it is now, whether the store knows it or not.
    task: Option<Arc<Task>>,
    /// As the store was last told.
    stored: Option<Arc<Task>>,
    prepared: Prepared,
    /// At once, as nothing will happen by itself.
    again: bool,
}

impl Tasks {
    pub(super) async fn act(&self, seen: &Seen, plan: Plan, cx: &Ctx) -> Result<Action, Error> {
        let (task, stored) = (seen.task.clone(), seen.stored.clone());
        let mut acting = Acting { task, stored, prepared: Prepared::default(), again: false };
        let _in_hand = self.in_hand(seen, &plan);
        if acting.is_ahead() {
            let status = status_of(&acting);
            self.write(&mut acting, status, cx).await?;
        }
        if acting.is_untold_end() {
            return Ok(Action::Requeue(SILENT_FOR));
        }
        for step in &plan.steps {
            match self.step(seen, step, &mut acting, cx).await {
                // What is left of it is the only witness until somebody knows.
                Ok(()) if acting.is_untold_end() => break,
                Ok(()) => {}
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::NoImage) => {
                    self.images.world().forget(&seen.uid);
                    break;
                }
                Err(Stop::Busy(attempt)) => return self.bear_with(seen, attempt).await,
                Err(Stop::Draining) => {
                    let (before, after) = (status_of(&acting), plan::draining(seen, &status_of(&acting)));
                    if before != after {
                        self.write(&mut acting, after, cx).await?;
                    }
                    return Ok(Action::Requeue(DRAIN_LOOK));
                }
                Err(Stop::Again { message }) => {
                    let (before, after) = (status_of(&acting), plan::tried_again(seen, &status_of(&acting), &message));
                    if before != after {
                        self.write(&mut acting, after, cx).await?;
                    }
                    return Err(Error::retry(message));
                }
                Err(Stop::Failed { attempt, message }) => {
                    let status = status_of(&acting);
                    self.write(&mut acting, plan::could_not_start(seen, &status, attempt, &message), cx).await?;
                    break;
                }
                Err(Stop::Rejected { reason, message }) => {
                    let status = status_of(&acting);
                    self.write(&mut acting, plan::rejected(seen, &status, reason, &message), cx).await?;
                    break;
                }
            }
        }
        if acting.again {
            return Ok(Action::Requeue(Duration::ZERO));
        }
        let due = plan.look_again.into_iter().chain(acting.is_ahead().then_some(SILENT_FOR)).min();
        Ok(due.map_or(Action::Await, Action::Requeue))
    }

    async fn write(&self, acting: &mut Acting, status: TaskStatus, cx: &Ctx) -> Result<(), Error> {
        self.write_if(acting, status, &[], cx).await
    }

    /// Only while these volumes are as they were seen. A task that has run here goes on when the store does not answer: it
    /// is told later, and knows no more of it than this process does until then.
    async fn write_if(
        &self,
        acting: &mut Acting,
        status: TaskStatus,
        volumes: &[Arc<Volume>],
        cx: &Ctx,
    ) -> Result<(), Error> {
        let Some(stored) = &acting.stored else { return Ok(()) };
        let mut desired = (**stored).clone();
        desired.status = Some(status.clone());
        let mut writes = vec![Write::update_status(&**stored, &desired)];
        writes.extend(volumes.iter().map(|volume| Write::unchanged(&**volume)));
        let has_run = stored.status.as_ref().is_some_and(|status| !status.attempts.is_empty());
        let goes_on = has_run && volumes.is_empty();
        let within = if goes_on { TOLD_WITHIN } else { BEGUN_WITHIN };
        let Some(committed) = self.told(cx.client().commit(writes), within).await? else {
            if !goes_on {
                return Err(Error::after(SILENT_FOR, "the store does not answer"));
            }
            tracing::debug!(task = %desired.object_ref(), state = ?status.state, "the store does not answer; told later");
            self.memory().unsaid.insert(desired.metadata.uid.clone(), status);
            acting.task = Some(Arc::new(desired));
            return Ok(());
        };
        let written = committed.outcomes.into_iter().next().and_then(|outcome| outcome.object);
        let written: Task = written.ok_or_else(|| Error::retry("the answer names no object"))?.decode()?;
        tracing::debug!(task = %written.object_ref(), state = ?written.status.as_ref().map(|status| status.state), "status");
        tell(stored, &written, cx);
        self.memory().unsaid.remove(&written.metadata.uid);
        acting.task = Some(Arc::new(written));
        acting.stored.clone_from(&acting.task);
        Ok(())
    }

    /// What the store answers; nothing if it does not, soon enough, or did not a moment ago.
    async fn told(
        &self,
        commit: impl Future<Output = Result<Committed, objects::Error>>,
        within: Duration,
    ) -> Result<Option<Committed>, Error> {
        let now = self.seams.monotonic();
        if self.memory().silent.is_some_and(|since| now.since(since) < SILENT_FOR) {
            return Ok(None);
        }
        let answered = tokio::select! {
            biased;
            answered = commit => Some(answered),
            () = self.seams.sleep(within) => None,
        };
        let (committed, silent) = match answered {
            Some(Err(objects::Error::Unavailable { .. } | objects::Error::UnknownOutcome { .. })) | None => {
                (None, Some(self.seams.monotonic()))
            }
            Some(answered) => (Some(answered?), None),
        };
        self.memory().silent = silent;
        Ok(committed)
    }

    async fn step(&self, seen: &Seen, step: &Step, acting: &mut Acting, cx: &Ctx) -> Result<(), Stop> {
        let runtime = &self.parts.runtime;
        match step {
            Step::Status(status) => {
                let held = taken_hold_of(seen, status);
                self.write_if(acting, (**status).clone(), held, cx).await?;
            }
            Step::HaveImage => self.have_image(seen)?,
            Step::ForgetImage => self.images.world().forget(&seen.uid),
            Step::Prepare(attempt) => {
                let (task, image) = (needed(&seen.task)?, needed_ref(seen.image_here())?);
                let template = needed_ref(seen.template())?;
                let place = translate::place(seen, task, template, image, self.id(seen, *attempt)?);
                self.memory().prepared.insert(seen.uid.clone());
                let prepared = self.parts.surroundings.prepare(&place, &*self.parts.files).await;
                acting.prepared = prepared.map_err(|error| prepare_failed(&error))?;
            }
            Step::Create(attempt) => {
                let (task, image) = (needed(&seen.task)?, needed_ref(seen.image_here())?);
                let template = needed_ref(seen.template())?;
                let id = self.id(seen, *attempt)?;
                let spec = translate::container(task, template, image, &id, *attempt, &acting.prepared)
                    .map_err(|message| Stop::Rejected { reason: "BadSpec", message })?;
                self.made(&seen.uid, *attempt, Some(State::Unknown));
                let created = runtime.create(&spec).await;
                // However it went: something of it may be there.
                let reached = if created.is_ok() { State::Created } else { State::Unknown };
                self.made(&seen.uid, *attempt, Some(reached));
                created.map_err(|error| start_failed(error, *attempt))?;
                self.memory().busy.remove(&(seen.uid.clone(), *attempt));
            }
            Step::Start(attempt) => {
                let id = self.id(seen, *attempt)?;
                let state = runtime.start(&id).await.map_err(|error| start_failed(error, *attempt))?;
                self.made(&seen.uid, *attempt, Some(state));
                // To say so: nobody need be asked how it is.
                acting.again = true;
            }
            Step::Check { attempt, check, was_healthy } => {
                let id = self.id(seen, *attempt)?;
                self.checks.world().begin(&self.seams, runtime, &id, check, *was_healthy);
            }
            Step::Drain => match self.parts.surroundings.connections(&seen.uid).await {
                Ok(0) => {}
                Ok(_) => return Err(Stop::Draining),
                // Nobody is kept waiting for what cannot be known.
                Err(error) => tracing::debug!(task = %seen.uid, error = %chain(&error), "not drained"),
            },
            Step::AskToEnd(attempt) => {
                let signal = self.stop_signal(seen);
                runtime.signal(&self.id(seen, *attempt)?, signal, Recipients::FirstProcess).await.map_err(retry)?;
                let now = self.seams.monotonic();
                self.memory().signalled.insert((seen.uid.clone(), *attempt), now);
            }
            Step::Remove(attempt) => {
                self.remove(&seen.uid, *attempt, &self.id(seen, *attempt)?).await.map_err(retry)?;
                // It is known to be gone: nothing is waited for.
                acting.again = true;
                self.checks.world().retain(&seen.uid, |other| other > *attempt);
            }
            Step::Release => {
                self.parts.surroundings.release(&seen.uid).await.map_err(retry)?;
                self.memory().addresses.let_go(&seen.uid);
                // Nobody will hear that something is gone which no look has seen.
                acting.again |= self.memory().prepared.remove(&seen.uid);
                self.around.world().released(&seen.uid);
            }
            Step::ForgetLogs => self.parts.surroundings.forget_logs(&seen.uid).await.map_err(retry)?,
            Step::LetGo => {
                let Some(task) = &acting.task else { return Ok(()) };
                let mut desired = (**task).clone();
                desired.metadata.finalizers.retain(|name| name != NODE_FINALIZER);
                cx.client().update(&**task, &desired).await?;
            }
        }
        Ok(())
    }

    /// What the plan is going to change.
    fn in_hand(&self, seen: &Seen, plan: &Plan) -> Vec<InHand> {
        let attempts: BTreeSet<u32> = plan.steps.iter().filter_map(Step::changes).collect();
        let ids = attempts.into_iter().filter_map(|attempt| container_id(&seen.uid, attempt));
        ids.map(|id| self.containers.world().take_in_hand(&id)).collect()
    }

    async fn remove(&self, uid: &Uid, attempt: u32, id: &ContainerId) -> Result<(), containerd::Error> {
        self.parts.runtime.remove(id).await?;
        self.made(uid, attempt, None);
        let mut memory = self.memory();
        memory.signalled.remove(&(uid.clone(), attempt));
        memory.busy.remove(&(uid.clone(), attempt));
        Ok(())
    }

    /// From now on, no look that has begun already says that the attempt is not there, or not so far, or still there.
    fn made(&self, uid: &Uid, attempt: u32, reached: Option<State>) {
        let made = Made { moment: self.containers.moment(), at: self.seams.monotonic(), reached };
        self.memory().made.insert((uid.clone(), attempt), made);
    }

    /// A creation that is in the way ends by itself, unless containerd died in the middle of it: then what it left stays
    /// in the way for ever, and goes. It never ran: one that is started is complete first.
    async fn bear_with(&self, seen: &Seen, attempt: u32) -> Result<Action, Error> {
        let now = self.seams.monotonic();
        let since = *self.memory().busy.entry((seen.uid.clone(), attempt)).or_insert(now);
        if now.since(since) >= BUSY_MAX
            && let Some(id) = container_id(&seen.uid, attempt)
        {
            tracing::warn!(container = %id, "removing what is in the way of its creation");
            self.remove(&seen.uid, attempt, &id).await.map_err(Error::retry)?;
            return Ok(Action::Requeue(Duration::ZERO));
        }
        Ok(Action::Requeue(BUSY_LOOK))
    }

    fn id(&self, seen: &Seen, attempt: u32) -> Result<ContainerId, Stop> {
        container_id(&seen.uid, attempt)
            .ok_or_else(|| Stop::Error(Error::terminal(format!("no container can be named after uid {}", seen.uid))))
    }

    fn have_image(&self, seen: &Seen) -> Result<(), Stop> {
        let template = needed_ref(seen.template())?;
        let image: ImageRef = template
            .container
            .image
            .parse()
            .map_err(|error| Stop::Rejected { reason: "BadImage", message: format!("{error}") })?;
        let (images, logins, login) = (self.parts.images.clone(), self.parts.logins.clone(), seen.login.clone());
        let work = async move {
            let credentials = match &login {
                Some(login) => match logins.open(login).await {
                    Ok(credentials) => credentials,
                    // Asked without, the registry would say what is not true: that nobody logged in.
                    Err(message) => return ImageOutcome::Failed { failure: ImageFailure::Registry, message },
                },
                None => None,
            };
            ImageOutcome::of(images.ensure(&Wanted { credentials, ..Wanted::new(image) }).await)
        };
        self.images.world().begin(&self.seams, &seen.uid, work);
        Ok(())
    }

    /// What the service says, else the image, else SIGTERM.
    fn stop_signal(&self, seen: &Seen) -> Signal {
        let stated = seen.template().and_then(|template| template.container.stop_signal.clone());
        let of_image = || seen.image_here()?.config.config().as_ref()?.stop_signal().clone();
        stated.or_else(of_image).and_then(|signal| signal.parse().ok()).unwrap_or(Signal::TERM)
    }
}

impl Acting {
    /// Whether it is further than the store knows.
    fn is_ahead(&self) -> bool {
        let status = |task: &Option<Arc<Task>>| task.as_ref().and_then(|task| task.status.clone());
        status(&self.task) != status(&self.stored)
    }

    /// Whether it has ended for good, and the store does not know.
    fn is_untold_end(&self) -> bool {
        self.is_ahead() && status_of(self).state.is_terminal()
    }
}

fn status_of(acting: &Acting) -> TaskStatus {
    acting.task.as_ref().and_then(|task| task.status.clone()).unwrap_or_default()
}

/// What ended that nobody had asked to, and what cannot be started at all: people look for it at the service.
fn tell(before: &Task, after: &Task, cx: &Ctx) {
    let service = ObjectRef::new(&after.metadata.namespace, &after.spec.service);
    let Some(service) = cx.snapshot().get::<Service>(&service) else { return };
    if after.spec.desired > DesiredState::Running || after.metadata.deletion_timestamp.is_some() {
        return;
    }
    let of = |task: &Task| task.status.clone().unwrap_or_default();
    let (before, after, slot) = (of(before), of(after), &after.spec.slot);
    let knew =
        |number: u32| before.attempts.iter().any(|attempt| attempt.number == number && attempt.finished_at.is_some());
    for attempt in after.attempts.iter().filter(|attempt| attempt.finished_at.is_some() && !knew(attempt.number)) {
        let level = if attempt.exit_code == Some(0) { Level::Normal } else { Level::Warning };
        let next = if after.state.is_terminal() { "" } else { "; it is started again" };
        cx.event_about(&**service, level, &attempt.reason, format!("slot {slot}: {}{next}", attempt.message));
    }
    if after.state == TaskState::Rejected && before.state != TaskState::Rejected {
        cx.event_about(&**service, Level::Warning, &after.reason, format!("slot {slot}: {}", after.message));
    }
}

/// What a task takes hold of that waited for it: from this write on its volumes are not removed, so they must be there
/// when it is made.
fn taken_hold_of<'a>(seen: &'a Seen, next: &TaskStatus) -> &'a [Arc<Volume>] {
    let waited = seen.task.as_ref().and_then(|task| task.status.as_ref()).is_some_and(|status| {
        status.reason == WAITING_FOR_VOLUME && next.reason != WAITING_FOR_VOLUME && !next.state.is_terminal()
    });
    match &seen.volumes {
        Volumes::There(volumes) if waited => volumes,
        _ => &[],
    }
}

/// A plan asks for nothing without what it needs; if one did, the next would not.
fn needed<T>(what: &Option<T>) -> Result<&T, Stop> {
    needed_ref(what.as_ref())
}

fn needed_ref<T>(what: Option<T>) -> Result<T, Stop> {
    what.ok_or_else(|| Stop::Error(Error::retry("the plan asks for more than was seen")))
}

fn retry(error: impl std::error::Error + Send + Sync + 'static) -> Stop {
    Stop::Error(Error::retry(error))
}

fn prepare_failed(error: &PrepareError) -> Stop {
    match error {
        PrepareError::Refused(message) => Stop::Rejected { reason: "CannotPrepare", message: message.clone() },
        other => Stop::Again { message: chain(other) },
    }
}

fn start_failed(error: containerd::Error, attempt: u32) -> Stop {
    match error {
        containerd::Error::Refused(refused) => Stop::Rejected { reason: "BadSpec", message: refused.to_string() },
        containerd::Error::Failed { message, .. } => Stop::Failed { attempt, message: plain(&message) },
        containerd::Error::NoImage { .. } => Stop::NoImage,
        containerd::Error::Busy { .. } => Stop::Busy(attempt),
        containerd::Error::Foreign { .. } => Stop::Rejected { reason: "NameTaken", message: chain(&error) },
        other => retry(other),
    }
}

/// What runc and its shim say, without their own names before it.
fn plain(message: &str) -> String {
    let prefixes = [
        "failed to create shim task: ",
        "OCI runtime create failed: ",
        "runc create failed: ",
        "unable to start container process: ",
    ];
    let mut rest = message;
    for prefix in prefixes {
        rest = rest.strip_prefix(prefix).unwrap_or(rest);
    }
    rest.trim_end_matches(": unknown").to_owned()
}

impl ImageHere {
    /// What is called the image in containerd's records.
    pub(super) fn name(&self) -> String {
        self.image.to_string()
    }
}
