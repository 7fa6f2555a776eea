//! Being asked to stop.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Whether SIGTERM or SIGINT has come. Cheap to clone; all clones see the same signal.
///
/// The first process of a container gets no default signal handlers from the kernel: without this, a program would
/// ignore SIGTERM and be killed when its grace period ends.
#[derive(Clone)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Begins to listen for the signals.
    pub fn on_signal() -> io::Result<Stop> {
        let stop = Stop(Arc::default());
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let told = stop.clone();
        thread::spawn(move || {
            for _ in signals.forever() {
                told.ask();
            }
        });
        Ok(stop)
    }

    /// One that no signal reaches, for tests.
    pub fn by_hand() -> Stop {
        Stop(Arc::default())
    }

    pub fn ask(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    pub fn asked(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until asked.
    pub fn wait(&self) {
        let asked = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(asked, |asked| !*asked));
    }

    /// Waits at most this long; true if asked by then.
    pub fn wait_for(&self, time: Duration) -> bool {
        let asked = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match self.0.1.wait_timeout_while(asked, time, |asked| !*asked) {
            Ok((asked, _)) => *asked,
            Err(poisoned) => *poisoned.into_inner().0,
        }
    }
}
