//! The power of a machine: when it is cut, whoever runs there dies at whatever it was.

use std::sync::Arc;

use tokio::sync::Notify;

/// Clones share it.
#[derive(Clone, Default)]
pub struct Power(Arc<Notify>);

impl Power {
    pub fn cut(&self) {
        self.0.notify_waiters();
    }

    /// Resolves when it is cut after this was first polled.
    pub async fn lost(&self) {
        self.0.notified().await;
    }
}
