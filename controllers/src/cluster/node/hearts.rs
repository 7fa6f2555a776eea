//! Heartbeats as they come, as a world that is watched; none of it is stored.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use reconciler::external::{Announced, Announcements, World};
use reconciler::seams::{Monotonic, Seams};
use schemas::kinds::cluster::ClusterPeriods;
use tokio::sync::broadcast;

/// One machine's last sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// When, by this manager's clock.
    pub at: Monotonic,
    /// Another one after each boot of the machine.
    pub boot_id: String,
}

/// Who was heard of last when. Clones share it.
#[derive(Clone, Debug)]
pub struct Hearts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    heard: Mutex<BTreeMap<String, Heard>>,
    changes: broadcast::Sender<String>,
    stalls: Mutex<VecDeque<Stall>>,
}

/// This process stood still: it was stopped, or had no processor.
#[derive(Clone, Copy, Debug)]
struct Stall {
    from: Monotonic,
    until: Monotonic,
}

/// Heartbeats that may wait to be told of; with more, everything is looked at.
const WAITING: usize = 4096;
/// Between two looks at the own clock, and how late one may be before the process is taken to have stood still.
const PULSE: Duration = Duration::from_millis(100);
/// Stalls that are remembered: silence is never counted from further back.
const STALLS: usize = 256;

/// Between two heartbeats of a machine: the cluster's, or so much longer that a manager of many machines hears at most 2,000
/// a second.
pub fn period(periods: &ClusterPeriods, nodes: usize) -> Duration {
    periods.heartbeat.get().max(Duration::from_micros(500) * u32::try_from(nodes).unwrap_or(u32::MAX))
}

impl Default for Hearts {
    fn default() -> Self {
        let (changes, _) = broadcast::channel(WAITING);
        Self { shared: Arc::new(Shared { heard: Mutex::default(), changes, stalls: Mutex::default() }) }
    }
}

impl Hearts {
    /// A machine gave a sign of life.
    pub fn heard(&self, node: &str, boot_id: &str, now: Monotonic) {
        let heard = Heard { at: now, boot_id: boot_id.to_owned() };
        lock(&self.shared.heard).insert(node.to_owned(), heard);
        // Nobody may be looking yet.
        let _ = self.shared.changes.send(node.to_owned());
    }

    /// It is no machine of the cluster any more.
    pub fn forget(&self, node: &str) {
        if lock(&self.shared.heard).remove(node).is_some() {
            let _ = self.shared.changes.send(node.to_owned());
        }
    }

    /// How long nothing was heard since `at`, without the time in which this process stood still.
    pub fn silence(&self, at: Monotonic, now: Monotonic) -> Duration {
        let stalls = lock(&self.shared.stalls);
        let stood_still: Duration = stalls.iter().map(|stall| stall.until.min(now).since(stall.from.max(at))).sum();
        now.since(at).saturating_sub(stood_still)
    }

    /// Notes when this process stands still, for ever.
    pub async fn mind_itself(&self, seams: &Seams) {
        let mut before = seams.monotonic();
        loop {
            seams.sleep(PULSE).await;
            let now = seams.monotonic();
            if now.since(before) > 2 * PULSE {
                let mut stalls = lock(&self.shared.stalls);
                stalls.push_back(Stall { from: before + PULSE, until: now });
                if stalls.len() > STALLS {
                    stalls.pop_front();
                }
            }
            before = now;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World for Hearts {
    type Key = String;
    type Item = Heard;
    type Error = Infallible;

    async fn list(&self) -> Result<Vec<(String, Heard)>, Infallible> {
        Ok(lock(&self.shared.heard).iter().map(|(node, heard)| (node.clone(), heard.clone())).collect())
    }

    fn changes(&self) -> Option<Announcements<Self>> {
        let told = (self.shared.clone(), self.shared.changes.subscribe());
        let announced = stream::unfold(told, |(shared, mut changes)| async move {
            let announced = match changes.recv().await {
                Ok(node) => {
                    let heard = lock(&shared.heard).get(&node).cloned();
                    heard.map_or(Announced::Gone(node.clone()), |heard| Announced::Put(node, heard))
                }
                Err(broadcast::error::RecvError::Lagged(_)) => Announced::LookAgain,
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            Some((Ok(announced), (shared, changes)))
        });
        Some(announced.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(Duration::from_millis(ms))
    }

    #[test]
    fn time_in_which_the_manager_stood_still_is_nobodys_silence() {
        let hearts = Hearts::default();
        lock(&hearts.shared.stalls).push_back(Stall { from: at(1_000), until: at(4_000) });
        let silence = |from, now| hearts.silence(at(from), at(now)).as_millis();
        assert_eq!(silence(900, 4_100), 200);
        assert_eq!(silence(2_000, 4_500), 500);
        assert_eq!(silence(4_200, 4_500), 300);
        assert_eq!(silence(900, 2_000), 100);
    }

    #[test]
    fn many_machines_beat_less_often() {
        let periods = ClusterPeriods::default();
        assert_eq!(period(&periods, 3).as_millis(), 500);
        assert_eq!(period(&periods, 1_000).as_millis(), 500);
        assert_eq!(period(&periods, 5_000).as_millis(), 2_500);
    }
}
