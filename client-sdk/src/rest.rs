//! The rest after a long look: whoever looks whenever something moved leaves the processor to what moves.

use sync_core::limits;
use tokio::time::Instant;

/// Between one look and the next. Kept by who looks, so that a look that is given up and begun again does not start it anew.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Rest(Option<Instant>);

impl Rest {
    /// After a look that began then, and is over: none, if it was short.
    pub(crate) fn after(begun: Instant) -> Self {
        let looked = begun.elapsed();
        Self((looked > limits::LOOK_LONG).then(|| Instant::now() + looked * limits::LOOK_REST))
    }

    /// Waits until it is over.
    pub(crate) async fn over(self) {
        if let Self(Some(until)) = self {
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_long_look_is_followed_by_a_rest_and_a_short_one_by_the_next() {
        for (looked, rests) in [(Duration::ZERO, Duration::ZERO), (limits::LOOK_LONG, Duration::ZERO)] {
            assert_eq!(rest_after(looked).await, rests);
        }
        let long = limits::LOOK_LONG * 10;
        assert_eq!(rest_after(long).await, long * limits::LOOK_REST);
    }

    async fn rest_after(looked: Duration) -> Duration {
        let begun = Instant::now();
        tokio::time::advance(looked).await;
        let rest = Rest::after(begun);
        let begun = Instant::now();
        rest.over().await;
        begun.elapsed()
    }
}
