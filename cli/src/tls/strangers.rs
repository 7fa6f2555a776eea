//! Connections of who has shown no certificate: in their handshake, or after it as one that joins. They cost whoever opens
//! them nothing, so that there is room for so many and no more, of one place and of all; who comes takes the place of who has
//! been there for longest where there are most. One address keeps nobody else out then, however many it opens, and who has
//! something to say is quicker than who waits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Of one place. A hundred machines behind one address that all come back at once are done within a second.
const OF_PLACE_MAX: usize = 64;
/// Of all.
const MAX: usize = 512;
/// How long one may stay: joining is one request.
pub const STAY: Duration = Duration::from_secs(60);

/// An IPv4 address; or the network of an IPv6 one, of which whoever has one has all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(IpAddr);

impl Place {
    fn of(address: SocketAddr) -> Self {
        Self(match address.ip().to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            v4 => v4,
        })
    }
}

/// All of them. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Strangers(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    count: u64,
    /// By when they came.
    here: BTreeMap<u64, Stranger>,
    places: BTreeMap<Place, Crowd>,
}

#[derive(Debug)]
struct Stranger {
    from: SocketAddr,
    cut: CancellationToken,
}

#[derive(Debug, Default)]
struct Crowd {
    numbers: BTreeSet<u64>,
    /// That room was made there, since there was last nobody.
    is_told: bool,
}

/// One that is there until this is dropped, or cut.
#[derive(Debug)]
pub struct Stay {
    strangers: Strangers,
    number: u64,
    cut: CancellationToken,
}

/// One whose place another has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub from: SocketAddr,
    /// The first of its place, since there was last nobody.
    pub is_first: bool,
}

impl Strangers {
    /// One more; and who went for it.
    pub fn enter(&self, from: SocketAddr) -> (Stay, Option<Cut>) {
        let mut known = self.lock();
        let goes = known.in_the_way(Place::of(from));
        let gone = goes.and_then(|number| known.make_room(number));
        let (number, cut) = (known.count, CancellationToken::new());
        known.count += 1;
        known.here.insert(number, Stranger { from, cut: cut.clone() });
        known.places.entry(Place::of(from)).or_default().numbers.insert(number);
        (Stay { strangers: self.clone(), number, cut }, gone)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Who goes when one more comes from this place.
    fn in_the_way(&self, place: Place) -> Option<u64> {
        let oldest = |crowd: &Crowd| crowd.numbers.first().copied();
        let own = self.places.get(&place).filter(|crowd| crowd.numbers.len() >= OF_PLACE_MAX);
        match own {
            Some(crowd) => oldest(crowd),
            None if self.here.len() >= MAX => {
                let most =
                    self.places.values().max_by_key(|crowd| (crowd.numbers.len(), std::cmp::Reverse(oldest(crowd))));
                most.and_then(oldest)
            }
            None => None,
        }
    }

    fn make_room(&mut self, number: u64) -> Option<Cut> {
        let crowd = self.places.get_mut(&Place::of(self.here.get(&number)?.from))?;
        let is_first = !std::mem::replace(&mut crowd.is_told, true);
        let stranger = self.remove(number)?;
        stranger.cut.cancel();
        Some(Cut { from: stranger.from, is_first })
    }

    fn remove(&mut self, number: u64) -> Option<Stranger> {
        let stranger = self.here.remove(&number)?;
        let place = Place::of(stranger.from);
        if let Some(crowd) = self.places.get_mut(&place) {
            crowd.numbers.remove(&number);
            if crowd.numbers.is_empty() {
                self.places.remove(&place);
            }
        }
        Some(stranger)
    }
}

impl Stay {
    /// Until another has taken its place.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.strangers.lock().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str, port: usize) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), u16::try_from(port).unwrap())
    }

    #[test]
    fn one_place_has_so_many_and_makes_room_for_itself() {
        let strangers = Strangers::default();
        let (honest, _) = strangers.enter(at("192.0.2.2", 1));
        let mut held = Vec::new();
        for port in 0..10_000 {
            let (stay, cut) = strangers.enter(at("192.0.2.1", port));
            let gone = port.checked_sub(OF_PLACE_MAX);
            let first = port == OF_PLACE_MAX;
            assert_eq!(cut, gone.map(|port| Cut { from: at("192.0.2.1", port), is_first: first }));
            held.push(stay);
        }
        assert_eq!(strangers.lock().here.len(), OF_PLACE_MAX + 1);
        assert_eq!(held.iter().filter(|stay| !stay.cut.is_cancelled()).count(), OF_PLACE_MAX);
        assert!(!honest.cut.is_cancelled());
        drop((held, honest));
        assert!(strangers.lock().here.is_empty() && strangers.lock().places.is_empty());
    }

    #[test]
    fn when_all_is_full_the_oldest_goes_where_there_are_most() {
        let strangers = Strangers::default();
        let (honest, _) = strangers.enter(at("198.51.100.1", 1));
        let mut held = Vec::new();
        for place in 0..40 {
            for port in 0..40 {
                held.push(strangers.enter(at(&format!("192.0.2.{place}"), port)).0);
            }
        }
        assert_eq!(strangers.lock().here.len(), MAX);
        assert!(!honest.cut.is_cancelled(), "there is one of it, and of the others there are more");
        let most = strangers.lock().places.values().map(|crowd| crowd.numbers.len()).max();
        assert!(most <= Some(40));
    }

    #[test]
    fn whoever_has_one_address_of_a_network_has_all() {
        let strangers = Strangers::default();
        let held: Vec<_> = (0..100).map(|n| strangers.enter(at(&format!("2001:db8::{n:x}"), 1)).0).collect();
        assert_eq!(held.iter().filter(|stay| !stay.cut.is_cancelled()).count(), OF_PLACE_MAX);
        let (mapped, other) = (at("::ffff:192.0.2.1", 1), at("192.0.2.1", 2));
        assert_eq!(Place::of(mapped), Place::of(other));
        assert_ne!(Place::of(at("2001:db8:0:1::1", 1)), Place::of(at("2001:db8::1", 1)));
    }
}
