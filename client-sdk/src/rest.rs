//! The rest after a long look: whoever looks whenever something moved leaves the processor to what moves.

use std::time::Duration;

use sync_core::limits;
use sync_core::session::Moment;
use sync_host::Host;

/// When to look again. Kept by who looks, so that a look that is given up and begun again does not put it off.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Rest(Moment);

impl Rest {
    /// After a look that began then, and is over.
    pub(crate) fn after(begun: Moment, host: &Host) -> Self {
        let now = host.now();
        Self(now.plus(rest_after(now.0.saturating_sub(begun.0))))
    }

    /// Waits until it is over.
    pub(crate) async fn over(self, host: &Host) {
        let left = self.0.0.saturating_sub(host.now().0);
        if !left.is_zero() {
            tokio::time::sleep(left).await;
        }
    }
}

/// None after a short look; not for ever after one that the whole process was stopped in.
fn rest_after(looked: Duration) -> Duration {
    if looked > limits::LOOK_LONG {
        looked.saturating_mul(limits::LOOK_REST).min(limits::LOOK_REST_MAX)
    } else {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_look_is_followed_by_a_rest_and_a_short_one_by_the_next() {
        assert_eq!(rest_after(Duration::ZERO), Duration::ZERO);
        assert_eq!(rest_after(limits::LOOK_LONG), Duration::ZERO);
        assert_eq!(rest_after(limits::LOOK_LONG * 10), limits::LOOK_LONG * 10 * limits::LOOK_REST);
        assert_eq!(rest_after(Duration::from_secs(3_600)), limits::LOOK_REST_MAX);
    }
}
