//! A flag that is raised once and can be waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Signal {
    shared: Arc<(AtomicBool, Notify)>,
}

impl Signal {
    /// Not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises it for good and wakes everybody who waits.
    pub fn raise(&self) {
        self.shared.0.store(true, Ordering::Release);
        self.shared.1.notify_waiters();
    }

    /// Whether it was raised. Does not wait.
    pub fn is_raised(&self) -> bool {
        self.shared.0.load(Ordering::Acquire)
    }

    /// Cancel-safe.
    pub async fn raised(&self) {
        loop {
            let told = self.shared.1.notified();
            let mut told = std::pin::pin!(told);
            told.as_mut().enable();
            if self.is_raised() {
                return;
            }
            told.await;
        }
    }
}
