//! A machine of the world: its clock, its dice, its way to the network.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use sync_core::session::Moment;
use sync_host::{Connecting, Host, Machine, Workers};
use tokio::time::Instant;

use crate::net::Net;

/// Every world begins at this time, as far as its wall clocks are right: 2026-01-01.
const BEGIN_MS: u64 = 1_767_225_600_000;
/// How long a machine has run when the world begins.
const UPTIME: Duration = Duration::from_secs(3600);

/// One process on a machine, from its start to its end.
pub(crate) struct Process {
    pub(crate) machine: String,
    pub(crate) net: Net,
    pub(crate) began: Instant,
    /// What its wall clock is ahead, or behind.
    pub(crate) skew_ms: i64,
    pub(crate) rng: Mutex<ChaCha8Rng>,
    pub(crate) alive: Arc<AtomicBool>,
}

impl Process {
    /// `life` counts the processes of a machine: two never throw the same dice.
    pub(crate) fn host(world: &Ground, machine: &str, skew_ms: i64, life: u64) -> (Host, Arc<AtomicBool>) {
        let alive = Arc::new(AtomicBool::new(true));
        let rng = Mutex::new(dice(world.seed, &format!("{machine} {life}")));
        let process = Self {
            machine: machine.to_owned(),
            net: world.net.clone(),
            began: world.began,
            skew_ms,
            rng,
            alive: alive.clone(),
        };
        (Host::new(process), alive)
    }
}

/// What all machines of a world stand on.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) seed: u64,
    pub(crate) began: Instant,
    pub(crate) net: Net,
}

/// Dice of one purpose, from the seed of the world.
pub(crate) fn dice(seed: u64, purpose: &str) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new_derive_key("headwater simulated world dice 1");
    hasher.update(&seed.to_be_bytes()).update(purpose.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

impl Machine for Process {
    fn now(&self) -> Moment {
        Moment(UPTIME + self.began.elapsed())
    }

    fn wall_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        (BEGIN_MS + elapsed).saturating_add_signed(self.skew_ms)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }

    fn connect(&self, endpoint: &str) -> Connecting {
        let (net, machine, endpoint) = (self.net.clone(), self.machine.clone(), endpoint.to_owned());
        let alive = self.alive.clone();
        Box::pin(async move {
            if !alive.load(Ordering::Relaxed) {
                // What is left of a dead process reaches nobody.
                return std::future::pending().await;
            }
            net.connect(machine, endpoint).await
        })
    }

    fn workers(&self) -> Workers {
        Workers::Inline
    }
}
