//! Worlds that are not the store: a container runtime, a kernel, a folder of files, a cloud.
//!
//! [`External`] is to such a world what [`Cache`](crate::cache::Cache) is to the objects: snapshots that reading never
//! waits for, "not yet known" apart from "nothing there", word of every change. What is listed again is compared, so a
//! change that nobody announced is noticed at the next look, at the latest after the resync period.
//!
//! Effects do not go through here. They are calls on the world itself, safe to repeat; whoever has made one asks to
//! [`External::look_again`].

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, Stream};
use imbl::OrdMap;
use tokio::sync::Notify;

use crate::backoff::Backoff;
use crate::causes::chain;
use crate::seams::{Purpose, Seams};

/// Something that can be looked at.
pub trait World: Send + Sync + 'static {
    /// What one thing of the world is called.
    type Key: Ord + Clone + fmt::Debug + fmt::Display + Send + Sync + 'static;
    /// What is known of it. Two that are equal are no change.
    type Item: PartialEq + fmt::Debug + Send + Sync + 'static;
    /// Why a look did not succeed; people read it in [`Health::last_error`].
    type Error: std::error::Error + Send + Sync + 'static;

    /// Everything that is there: all of it or an error. Called again after every failure and every resync period.
    fn list(&self) -> impl Future<Output = Result<Vec<(Self::Key, Self::Item)>, Self::Error>> + Send;

    /// What changes, from before the next [`World::list`] is called. When it ends, everything is listed anew. A world
    /// that cannot tell is looked at periodically only.
    fn changes(&self) -> Option<Announcements<Self>>
    where
        Self: Sized,
    {
        None
    }
}

/// A stream of what changes in a world; see [`World::changes`].
pub type Announcements<W> =
    BoxStream<'static, Result<Announced<<W as World>::Key, <W as World>::Item>, <W as World>::Error>>;

/// One announced change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announced<K, I> {
    /// This is how it stands now. Only for worlds whose announcements are never older than a listing begun after they
    /// were subscribed to; the others announce [`Announced::LookAgain`].
    Put(K, I),
    /// It is not there any more; the same condition holds as for [`Announced::Put`].
    Gone(K),
    /// Something changed.
    LookAgain,
}

/// What one thing became.
#[derive(Debug)]
pub struct Difference<'a, K, I> {
    /// Which thing.
    pub key: &'a K,
    /// What it was; `None`: it was not there.
    pub old: Option<&'a Arc<I>>,
    /// What it is; `None`: it is gone.
    pub new: Option<&'a Arc<I>>,
}

/// A cached world. Clones share it.
pub struct External<W: World> {
    shared: Arc<Shared<W>>,
}

struct Shared<W: World> {
    name: &'static str,
    world: W,
    seams: Seams,
    resync: Duration,
    state: Mutex<State<W>>,
    wanted: Notify,
    advanced: Notify,
}

struct State<W: World> {
    current: Option<Known<W>>,
    listings_begun: u64,
    failures: u32,
    last_error: Option<String>,
    subscribers: Vec<Weak<Subscriber<W>>>,
    /// Called when a world can be looked at again that could not be.
    recoveries: Vec<Weak<Recovery>>,
}

type Recovery = dyn Fn() + Send + Sync;
type Subscriber<W> = dyn Fn(&Known<W>, &[Difference<'_, <W as World>::Key, <W as World>::Item>]) + Send + Sync;

/// What is known of a world: complete as of one listing. Immutable, cheap to clone.
pub struct Known<W: World> {
    items: OrdMap<W::Key, Arc<W::Item>>,
    listing: u64,
}

/// What everybody finds from now on, and has not been told yet.
struct Published<W: World> {
    known: Known<W>,
    /// Whether the look before had failed.
    recovered: bool,
}

/// A moment in the life of an [`External`]: see [`External::moment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// How it goes with looking at a world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether anything is known at all: one look has succeeded.
    pub known: bool,
    /// Looks in a row that failed.
    pub failures: u32,
    /// Why the last look failed, with all its causes; `None` after one that succeeded.
    pub last_error: Option<String>,
}

/// A world that failed is looked at again after this, 100 ms, doubled, up to 10 s; sooner when it says something.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// A world is looked at so often when nothing asks for it sooner.
const RESYNC: Duration = Duration::from_secs(30);

impl<W: World> External<W> {
    /// `name` is for logs and health.
    pub fn new(name: &'static str, world: W, seams: Seams) -> Self {
        Self::with_resync(name, world, seams, RESYNC)
    }

    /// As [`External::new`], looked at anew after `resync` when nothing asks for it sooner; default 30 s.
    pub fn with_resync(name: &'static str, world: W, seams: Seams, resync: Duration) -> Self {
        let state = State {
            current: None,
            listings_begun: 0,
            failures: 0,
            last_error: None,
            subscribers: Vec::new(),
            recoveries: Vec::new(),
        };
        let shared = Shared {
            name,
            world,
            seams,
            resync,
            state: Mutex::new(state),
            wanted: Notify::new(),
            advanced: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The name it was given, for logs and health.
    pub fn name(&self) -> &'static str {
        self.shared.name
    }

    /// The world itself, for effects.
    pub fn world(&self) -> &W {
        &self.shared.world
    }

    /// What is known now; `None` while nothing is known yet.
    pub fn snapshot(&self) -> Option<Known<W>> {
        self.lock().current.clone()
    }

    /// Waits until something is known.
    pub async fn known(&self) -> Known<W> {
        self.listed(0).await
    }

    /// Asks for a look soon.
    pub fn look_again(&self) {
        self.shared.wanted.notify_one();
    }

    /// What a look that begins after this call sees: one's own effects included.
    pub async fn refreshed(&self) -> Known<W> {
        let wanted = self.lock().listings_begun + 1;
        self.look_again();
        self.listed(wanted).await
    }

    /// Now. What was done to the world before is in every look that begins after: see [`Known::is_later_than`].
    pub fn moment(&self) -> Moment {
        Moment(self.lock().listings_begun)
    }

    /// How it goes with looking at the world.
    pub fn health(&self) -> Health {
        let state = self.lock();
        Health { known: state.current.is_some(), failures: state.failures, last_error: state.last_error.clone() }
    }

    /// Looks for ever. Dropping the future stops it. One at a time.
    pub async fn run(&self) {
        loop {
            let mut announcements = self.shared.world.changes();
            let failed = match self.look().await {
                Ok(()) => self.follow(announcements.as_mut()).await.err(),
                Err(error) => Some(chain(&error)),
            };
            if let Some(error) = failed {
                self.rest(error, announcements).await;
            }
        }
    }

    pub(crate) fn subscribe(&self, subscriber: &Arc<Subscriber<W>>) -> Option<Known<W>> {
        let mut state = self.lock();
        state.subscribers.push(Arc::downgrade(subscriber));
        state.current.clone()
    }

    pub(crate) fn on_recovery(&self, recovery: &Arc<Recovery>) {
        self.lock().recoveries.push(Arc::downgrade(recovery));
    }

    async fn listed(&self, listing: u64) -> Known<W> {
        loop {
            let advanced = self.shared.advanced.notified();
            let mut advanced = std::pin::pin!(advanced);
            advanced.as_mut().enable();
            if let Some(known) = self.snapshot().filter(|known| known.listing >= listing) {
                return known;
            }
            advanced.await;
        }
    }

    async fn look(&self) -> Result<(), W::Error> {
        let listing = {
            let mut state = self.lock();
            state.listings_begun += 1;
            state.listings_begun
        };
        let listed = self.shared.world.list().await?;
        let old = self.lock().current.as_ref().map(|known| known.items.clone()).unwrap_or_default();
        let mut items = OrdMap::new();
        for (key, item) in listed {
            // What did not change keeps its memory, and whoever compares pointers sees that.
            let kept = old.get(&key).filter(|old| ***old == item).cloned();
            items.insert(key, kept.unwrap_or_else(|| Arc::new(item)));
        }
        let published = self.publish(items, Some(listing));
        let differences = differences(&old, &published.known.items);
        self.tell(&published, &differences);
        Ok(())
    }

    /// Applies what is announced until it is time to list again; an error: not at once.
    async fn follow(&self, mut announcements: Option<&mut Announcements<W>>) -> Result<(), String> {
        let mut resync = self.shared.seams.sleep(self.shared.resync);
        loop {
            tokio::select! {
                biased;
                announced = next::<W>(announcements.as_deref_mut()) => match announced {
                    Some(Ok(Announced::Put(key, item))) => self.change(key, Some(item)),
                    Some(Ok(Announced::Gone(key))) => self.change(key, None),
                    Some(Ok(Announced::LookAgain)) => return Ok(()),
                    Some(Err(error)) => return Err(chain(&error)),
                    None => return Err("the announcements ended".to_owned()),
                },
                () = self.shared.wanted.notified() => return Ok(()),
                () = &mut resync => return Ok(()),
            }
        }
    }

    /// At no more cost than that of the one thing, however many there are.
    fn change(&self, key: W::Key, item: Option<W::Item>) {
        let mut items = self.lock().current.as_ref().map(|known| known.items.clone()).unwrap_or_default();
        let old = items.get(&key).cloned();
        match item {
            Some(item) if old.as_ref().is_some_and(|old| **old == item) => return,
            Some(item) => drop(items.insert(key.clone(), Arc::new(item))),
            None if old.is_none() => return,
            None => drop(items.remove(&key)),
        }
        let published = self.publish(items, None);
        let difference = Difference { key: &key, old: old.as_ref(), new: published.known.items.get(&key) };
        self.tell(&published, &[difference]);
    }

    fn publish(&self, items: OrdMap<W::Key, Arc<W::Item>>, listing: Option<u64>) -> Published<W> {
        let mut state = self.lock();
        let listing = listing.or_else(|| state.current.as_ref().map(|known| known.listing)).unwrap_or_default();
        let known = Known { items, listing };
        state.current = Some(known.clone());
        state.last_error = None;
        Published { known, recovered: std::mem::take(&mut state.failures) > 0 }
    }

    fn tell(&self, published: &Published<W>, differences: &[Difference<'_, W::Key, W::Item>]) {
        let subscribers: Vec<_> = {
            let mut state = self.lock();
            state.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
            state.subscribers.iter().filter_map(Weak::upgrade).collect()
        };
        for subscriber in subscribers {
            subscriber(&published.known, differences);
        }
        if published.recovered {
            let mut recoveries = std::mem::take(&mut self.lock().recoveries);
            recoveries.retain(|recovery| recovery.upgrade().inspect(|recovery| recovery()).is_some());
            self.lock().recoveries.append(&mut recoveries);
        }
        self.shared.advanced.notify_waiters();
    }

    /// Until it is worth another look. A world that is heard again, as one that was away and is back, need not be waited
    /// for any longer; what it says is not taken, as everything is listed next.
    async fn rest(&self, error: String, mut announcements: Option<Announcements<W>>) {
        tracing::debug!(world = self.shared.name, error, "cannot look at the world");
        let failures = {
            let mut state = self.lock();
            state.failures = state.failures.saturating_add(1);
            state.last_error = Some(error);
            state.failures
        };
        let seams = &self.shared.seams;
        let mut rested = seams.sleep(RETRY.delay(failures, seams.random.next(Purpose::Jitter)));
        loop {
            // One that errs again at once, or says again and again what a listing then denies, keeps nobody busy.
            tokio::select! {
                biased;
                () = &mut rested => return,
                () = seams.sleep(RETRY.base) => {}
            }
            tokio::select! {
                biased;
                () = &mut rested => return,
                announced = next::<W>(announcements.as_mut()) => match announced {
                    Some(Ok(_)) => return,
                    Some(Err(_)) => {}
                    None => announcements = None,
                },
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Never, of a world that announces nothing.
async fn next<W: World>(announcements: Option<&mut Announcements<W>>) -> Option<<Announcements<W> as Stream>::Item> {
    match announcements {
        Some(announcements) => announcements.next().await,
        None => std::future::pending().await,
    }
}

fn differences<'a, K: Ord + Clone, I: PartialEq>(
    old: &'a OrdMap<K, Arc<I>>,
    new: &'a OrdMap<K, Arc<I>>,
) -> Vec<Difference<'a, K, I>> {
    let gone = old.iter().filter(|(key, _)| !new.contains_key(*key)).map(|(key, item)| Difference {
        key,
        old: Some(item),
        new: None,
    });
    let changed = new.iter().filter_map(|(key, item)| {
        let before = old.get(key);
        let same = before.is_some_and(|before| Arc::ptr_eq(before, item) || **before == **item);
        (!same).then_some(Difference { key, old: before, new: Some(item) })
    });
    gone.chain(changed).collect()
}

impl<W: World> Known<W> {
    /// One thing; `None`: it was not there when the world was looked at.
    pub fn get(&self, key: &W::Key) -> Option<&Arc<W::Item>> {
        self.items.get(key)
    }

    /// Whether everything was looked at after `moment`: what is missing here was not there then.
    pub fn is_later_than(&self, moment: Moment) -> bool {
        self.listing > moment.0
    }

    /// In the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&W::Key, &Arc<W::Item>)> {
        self.items.iter()
    }

    /// How many things there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether the world is empty, which is not the same as unknown.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// A world whose type only its readers know.
pub(crate) trait AnyExternal: Send + Sync {
    fn name(&self) -> &'static str;
    fn identity(&self) -> *const ();
    fn health(&self) -> Health;
    fn look(&self) -> BoxFuture<'_, ()>;
    fn known(&self) -> BoxFuture<'_, ()>;
}

impl<W: World> AnyExternal for External<W> {
    fn name(&self) -> &'static str {
        self.shared.name
    }

    fn identity(&self) -> *const () {
        Arc::as_ptr(&self.shared).cast()
    }

    fn health(&self) -> Health {
        Self::health(self)
    }

    fn look(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.run())
    }

    fn known(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { drop(Self::known(self).await) })
    }
}

impl<W: World> Clone for External<W> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<W: World> Clone for Known<W> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), listing: self.listing }
    }
}

impl<W: World> fmt::Debug for External<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "External {}", self.shared.name)
    }
}

impl<W: World> fmt::Debug for Known<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.items.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::stream;

    use super::*;
    use crate::seams::{Clock, Monotonic};
    use reconciler_api::Timestamp;

    /// Short waits are over at once, longer ones never.
    #[derive(Debug)]
    struct Impatient;

    impl Clock for Impatient {
        fn wall(&self) -> Timestamp {
            Timestamp::default()
        }

        fn monotonic(&self) -> Monotonic {
            Monotonic::default()
        }

        fn sleep_until(&self, at: Monotonic) -> BoxFuture<'static, ()> {
            match at.0 <= RETRY.base {
                true => Box::pin(std::future::ready(())),
                false => Box::pin(std::future::pending()),
            }
        }
    }

    #[derive(Default)]
    struct Away {
        back: AtomicBool,
        heard: Notify,
    }

    impl World for Arc<Away> {
        type Key = u32;
        type Item = ();
        type Error = io::Error;

        async fn list(&self) -> io::Result<Vec<(u32, ())>> {
            if self.back.load(Ordering::SeqCst) { Ok(vec![(7, ())]) } else { Err(io::ErrorKind::NotConnected.into()) }
        }

        fn changes(&self) -> Option<Announcements<Self>> {
            let announced = stream::unfold(self.clone(), |world| async move {
                world.heard.notified().await;
                Some((Ok(Announced::LookAgain), world))
            });
            Some(announced.boxed())
        }
    }

    #[tokio::test]
    async fn a_world_that_is_heard_again_is_looked_at_at_once() {
        let world = Arc::<Away>::default();
        let seams = Seams { clock: Arc::new(Impatient), ..Seams::real() };
        let external = External::new("away", world.clone(), seams);
        let told = Arc::new(AtomicBool::new(false));
        let tells = told.clone();
        let recovery: Arc<Recovery> = Arc::new(move || tells.store(true, Ordering::SeqCst));
        external.on_recovery(&recovery);
        let looking = external.clone();
        let looking = tokio::spawn(async move { looking.run().await });
        // The second failure is followed by a wait that has no end here.
        while external.health().failures < 2 {
            tokio::task::yield_now().await;
        }
        world.heard.notify_one();
        while external.health().failures < 3 {
            tokio::task::yield_now().await;
        }
        assert!(!told.load(Ordering::SeqCst), "it was heard and could not be looked at");
        world.back.store(true, Ordering::SeqCst);
        world.heard.notify_one();
        assert_eq!(external.known().await.len(), 1);
        assert!(told.load(Ordering::SeqCst));
        assert_eq!(external.health(), Health { known: true, ..Health::default() });
        looking.abort();
    }
}
