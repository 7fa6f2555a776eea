//! A machine's next certificate, in time.

use std::time::Duration;

use reconciler::api::Timestamp;
use reconciler::seams::{Purpose, Seams};

use super::authorities::Own;
use crate::tls::Credentials;

/// Between two looks whether it is time: a wall clock may jump.
const LOOK: Duration = Duration::from_secs(30);

/// Why there is no next certificate, and when to ask again.
pub struct Later {
    pub why: anyhow::Error,
    pub again: Duration,
}

/// For whatever may be better in a moment.
pub const SOON: Duration = Duration::from_secs(5);

impl<E: Into<anyhow::Error>> From<E> for Later {
    fn from(why: E) -> Self {
        Self { why: why.into(), again: SOON }
    }
}

/// Has the `next` certificate on the disk and in use before the present one ends, for ever; after its end, at once, and sooner
/// where that is wanted.
pub async fn keep(own: &Own, seams: &Seams, next: impl AsyncFn() -> Result<Credentials, Later>) {
    loop {
        let says = own.ring().says();
        let at = due(says.from, says.until, fraction(seams));
        let is_due = async {
            while seams.now() < at {
                seams.sleep(at.since(seams.now()).min(LOOK)).await;
            }
        };
        tokio::select! {
            () = is_due => {}
            () = own.hurried() => {}
        }
        let renewed = async { Ok::<(), Later>(own.show(next().await?)?) };
        match renewed.await {
            Ok(()) => tracing::info!(until = %own.ring().says().until, "this machine's certificate is renewed"),
            Err(Later { why, again }) => {
                tracing::warn!(why = format!("{why:#}"), "this machine's certificate is not renewed");
                seams.sleep(again).await;
            }
        }
    }
}

/// When a certificate of this span is renewed: at a point between half and 80 % of its life that `fraction` (0 to 1) says,
/// so that machines that joined together do not ask together. As Swarm's.
fn due(from: Timestamp, until: Timestamp, fraction: f64) -> Timestamp {
    from + until.since(from).mul_f64(0.5 + 0.3 * fraction)
}

fn fraction(seams: &Seams) -> f64 {
    // 53 bits are what a f64 holds exactly.
    (seams.random.next(Purpose::Jitter) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_between_half_and_four_fifths_of_its_life() {
        let (from, until) = (Timestamp::from_seconds(1_000), Timestamp::from_seconds(2_000));
        assert_eq!(due(from, until, 0.0), Timestamp::from_seconds(1_500));
        assert_eq!(due(from, until, 1.0), Timestamp::from_seconds(1_800));
        let seams = Seams::real();
        assert!((0..1_000).map(|_| fraction(&seams)).all(|point| (0.0..1.0).contains(&point)));
    }
}
