//! The scheduler by itself: nodes that are ready, tasks that wait, the store in memory.
//!
//! Timed is everything from the first look at what waits to the last task that has its node: the list into the cache, the
//! decisions, the commits, and the cache again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use controllers::cluster::scheduler::Scheduler;
use controllers::kinds::kinds;
use futures::StreamExt;
use reconciler::Resource;
use reconciler::controller::Manager;
use reconciler::objects::{Change, Client, Event, Objects, Selection, Start, StoreObjects, Write, Writer};
use reconciler::seams::Seams;
use reconciler::store::Memory;
use schemas::kinds::node::{Machine, MachineResources, Node, NodeSpec, NodeState, NodeStatus};
use schemas::kinds::revision::{Revision, RevisionContent, RevisionSpec};
use schemas::kinds::service::TaskTemplate;
use schemas::kinds::task::{Slot, Task, TaskSpec};
use schemas::{Cpus, Size};

use super::usage::resident;
use super::{Row, report};

/// Nodes and tasks, as published figures of others have them.
const SIZES: [(usize, usize); 2] = [(1_000, 10_000), (5_000, 100_000)];
const TASKS_A_SERVICE: usize = 100;
/// Objects in one commit.
const TOGETHER: usize = 50;
/// More tasks, one by one, once all others have a node.
const ONE_MORE: usize = 20;
/// What has not happened by then never will.
const OVERDUE: Duration = Duration::from_secs(600);

/// Measures, prints and writes `target/bench/scheduler.json`.
pub fn run() -> Result<()> {
    let mut rows = Vec::new();
    for (nodes, tasks) in SIZES {
        rows.extend(measured(nodes, tasks)?);
    }
    report("scheduler", &rows)?;
    Ok(())
}

fn measured(nodes: usize, tasks: usize) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(placed(nodes, tasks))
}

fn node(number: usize) -> Node {
    let mut node = Node::new(format!("n{number:05}"), NodeSpec::default());
    node.spec.labels.insert("zone".into(), format!("z{}", number % 3));
    let resources =
        MachineResources { cpus: Cpus::from_milli(16_000), memory: Size::from_mib(65_536), ..Default::default() };
    let machine = Some(Machine { resources, ..Machine::default() });
    node.status = Some(NodeStatus { state: NodeState::Ready, machine, ..NodeStatus::default() });
    node
}

/// Each third service has a constraint, all reserve something.
fn revision(service: usize) -> Revision {
    let mut template = TaskTemplate::default();
    template.container.image = "test/box:1".into();
    template.resources.reservations.memory = Some(Size::from_mib(64));
    template.resources.reservations.cpus = Some(Cpus::from_milli(50));
    if service.is_multiple_of(3) {
        template.placement.constraints = vec!["node.labels.zone == z1".into()];
    }
    let content = RevisionContent::Template(Box::new(template));
    let mut revision = Revision::new(format!("s{service}-r"), RevisionSpec::new(format!("s{service}"), content));
    revision.metadata.namespace = "bench".into();
    revision
}

fn task(number: usize) -> Task {
    let service = number / TASKS_A_SERVICE;
    let slot = u32::try_from(number % TASKS_A_SERVICE).unwrap_or_default() + 1;
    let spec = TaskSpec {
        service: format!("s{service}"),
        revision: format!("s{service}-r"),
        slot: Slot::Number(slot),
        node_name: None,
        desired: Default::default(),
        networks: vec![],
        in_place_of: None,
    };
    let mut task = Task::new(format!("s{service}-{slot}"), spec);
    task.metadata.namespace = "bench".into();
    task
}

async fn fill<T: Resource>(client: &Client, count: usize, make: impl Fn(usize) -> T) -> Result<()> {
    for first in (0..count).step_by(TOGETHER) {
        let made = (first..count.min(first + TOGETHER)).map(|number| Write::create(&make(number)));
        client.commit(made.collect()).await?;
    }
    Ok(())
}

async fn placed(nodes: usize, tasks: usize) -> Result<Vec<Row>> {
    let before = resident()?;
    let store = StoreObjects::open(Arc::new(Memory::new()), "/bench", kinds(), Seams::real()).await?;
    let objects: Arc<dyn Objects> = Arc::new(store);
    let client = Client::new(objects.clone(), Writer::new("user:bench", "bench"));
    for first in 0..nodes {
        let described = node(first);
        let made = client.create(&described).await?;
        let mut said = made.clone();
        said.status = described.status;
        client.update_status(&made, &said).await?;
    }
    fill(&client, tasks.div_ceil(TASKS_A_SERVICE) + 1, revision).await?;
    fill(&client, tasks, task).await?;
    let mut follow = objects.stream(vec![Selection::of::<Task>()], Start::Now).await?;
    let left = Arc::new(AtomicUsize::new(0));
    let manager = Manager::builder(objects.clone(), Seams::real()).controller(Scheduler::controller()).build();
    let measure = async {
        let begun = Instant::now();
        follow_until_placed(&mut follow, &left, tasks).await?;
        let took = begun.elapsed();
        let mut latencies = Vec::new();
        for number in tasks..tasks + ONE_MORE {
            let begun = Instant::now();
            client.create(&task(number)).await?;
            follow_until_placed(&mut follow, &left, number + 1).await?;
            latencies.push(begun.elapsed());
        }
        latencies.sort_unstable();
        anyhow::Ok((took, latencies[latencies.len() / 2]))
    };
    let (took, one) = tokio::select! {
        measured = tokio::time::timeout(OVERDUE, measure) => measured.context("not all tasks have a node")??,
        () = manager.run(std::future::pending()) => anyhow::bail!("the manager ended"),
    };
    let of = format!("{tasks} tasks on {nodes} nodes");
    let bytes = resident()?.saturating_sub(before) as f64 / tasks as f64;
    Ok(vec![
        Row::new(format!("{of}: placed"), tasks as f64 / took.as_secs_f64(), "1/s"),
        Row::new(format!("{of}: one more, p50 of {ONE_MORE}"), one.as_secs_f64() * 1e3, "ms"),
        Row::new(format!("{of}: resident memory a task, store and cache"), bytes, "B"),
    ])
}

async fn follow_until_placed(
    follow: &mut reconciler::objects::Stream,
    placed: &AtomicUsize,
    wanted: usize,
) -> Result<()> {
    while placed.load(Ordering::Relaxed) < wanted {
        let event = follow.next().await.context("the stream ended")??;
        let Event::Batch { changes, .. } = event else { continue };
        for change in changes {
            let Change::Put { object, .. } = change else { continue };
            let task: Task = object.decode()?;
            let is_first = task.spec.node_name.is_some() && task.metadata.generation == 2;
            ensure!(task.metadata.generation <= 2, "{} was placed twice", task.metadata.name);
            placed.fetch_add(usize::from(is_first), Ordering::Relaxed);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The benchmark itself, small.
    #[test]
    fn every_row_comes_about() {
        let rows = measured(10, 300).unwrap();
        assert_eq!(rows.len(), 3, "{rows:#?}");
        assert!(rows.iter().filter(|row| row.unit != "B").all(|row| row.value > 0.0), "{rows:#?}");
    }
}
