//! One piece of work for everyone who wants the same thing at the same time.
//!
//! A flight is driven by whoever waits for it; when the last one stops waiting it is dropped where it stands, like any
//! future. So no task is spawned, nothing outlives its callers, and work must be such that a successor can begin again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

pub(super) struct Flights<K, V: Clone> {
    flying: Mutex<BTreeMap<K, WeakShared<BoxFuture<'static, V>>>>,
}

impl<K: Ord, V: Clone> Default for Flights<K, V> {
    fn default() -> Self {
        Flights { flying: Mutex::default() }
    }
}

impl<K: Ord + Clone, V: Clone> Flights<K, V> {
    /// The outcome of the work on `key` that is under way, or of the one that `begin` makes.
    ///
    /// Work that has ended is not remembered: the next caller begins anew.
    pub fn join<F>(&self, key: &K, begin: impl FnOnce() -> F) -> Shared<BoxFuture<'static, V>>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        let live = flying.get(key).and_then(WeakShared::upgrade).filter(|flight| flight.peek().is_none());
        if let Some(flight) = live {
            return flight;
        }
        // What ended or was dropped is swept here, so the map is never longer than what is under way plus one sweep.
        flying.retain(|_, weak| weak.upgrade().is_some_and(|flight| flight.peek().is_none()));
        let flight = begin().boxed().shared();
        if let Some(weak) = flight.downgrade() {
            flying.insert(key.clone(), weak);
        }
        flight
    }

    /// What is under way.
    pub fn keys(&self) -> Vec<K> {
        let flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        (flying.iter())
            .filter(|(_, weak)| weak.upgrade().is_some_and(|flight| flight.peek().is_none()))
            .map(|(key, _)| key.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn callers_at_one_time_share_and_later_ones_begin_anew() {
        let flights = Flights::<&str, u32>::default();
        let (begun, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let work = || {
            let (begun, go) = (begun.clone(), go.clone());
            async move {
                let number = begun.fetch_add(1, Ordering::SeqCst);
                go.notified().await;
                number
            }
        };
        let (first, second, other) = (flights.join(&"a", work), flights.join(&"a", work), flights.join(&"b", work));
        assert_eq!(flights.keys(), ["a", "b"]);
        go.notify_one();
        assert_eq!(futures::join!(first.clone(), second), (0, 0));
        drop(other);
        go.notify_one();
        assert_eq!(flights.join(&"a", work).await, 1, "an outcome is not remembered, even while somebody holds it");
        assert_eq!(first.await, 0);
        assert!(flights.keys().is_empty());
    }

    #[tokio::test]
    async fn one_caller_that_leaves_does_not_end_the_work_of_the_others() {
        let flights = Flights::<u8, u8>::default();
        let go = Arc::new(Notify::new());
        let work = || {
            let go = go.clone();
            async move {
                go.notified().await;
                7
            }
        };
        let mut leaving = flights.join(&1, work);
        assert!(futures::poll!(&mut leaving).is_pending());
        let staying = flights.join(&1, || async { unreachable!("the first is still under way") });
        drop(leaving);
        go.notify_one();
        assert_eq!(staying.await, 7);
    }
}
