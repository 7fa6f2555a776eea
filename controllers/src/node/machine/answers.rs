//! Whether the container runtime answers, as a world that is asked now and then.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use reconciler::controller::Singleton;
use reconciler::external::{Announced, Announcements, World};
use reconciler::seams::Seams;

use super::Describe;

/// Between two questions while it answers. A call over a unix socket; what it costs is not to be seen.
const ASK: Duration = Duration::from_secs(5);
/// While it does not: whoever waits for it waits for us too.
const ASK_THE_SILENT: Duration = Duration::from_millis(500);

pub(super) struct Answers {
    describe: Arc<dyn Describe>,
    seams: Seams,
}

impl Answers {
    pub fn new(describe: Arc<dyn Describe>, seams: &Seams) -> Self {
        Self { describe, seams: seams.clone() }
    }
}

impl World for Answers {
    type Key = Singleton;
    /// Its version, or why it does not answer.
    type Item = Result<String, String>;
    type Error = Infallible;

    async fn list(&self) -> Result<Vec<(Singleton, Self::Item)>, Infallible> {
        Ok(vec![(Singleton, self.describe.runtime().await)])
    }

    fn changes(&self) -> Option<Announcements<Self>> {
        let asking = (self.describe.clone(), self.seams.clone(), ASK_THE_SILENT);
        let answers = stream::unfold(asking, |(describe, seams, pause)| async move {
            seams.sleep(pause).await;
            let answer = describe.runtime().await;
            let pause = if answer.is_ok() { ASK } else { ASK_THE_SILENT };
            Some((Ok(Announced::Put(Singleton, answer)), (describe, seams, pause)))
        });
        Some(answers.boxed())
    }
}
