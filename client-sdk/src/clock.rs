//! The two clocks: the wall, which is shown and never judged, and one that runs through suspend.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use sync_core::session::Moment;

/// Milliseconds since 1970, as this machine believes.
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Now, on a clock that a suspended machine does not stop.
pub(crate) fn now() -> Moment {
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME exists on every Linux since 2.6.39");
    Moment(boot.into())
}
