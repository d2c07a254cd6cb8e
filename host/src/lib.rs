//! What a shell asks of the machine that it runs on: the time, randomness, the network, threads for long work.
//!
//! A shell is given a [`Host`] and asks nobody else. [`Host::real`] is this machine. A simulated world is another
//! [`Machine`], and then a whole client or node is a function of its seed.
//!
//! # Never here
//!
//! Rules, storage, the wire. No registry and no global: a host is passed to whoever needs one.

mod real;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use rand_core::{TryCryptoRng, TryRng};
use sync_core::session::Moment;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection, as bytes in both directions.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A connection that somebody made: a TCP stream, or a simulated one.
pub type Stream = Box<dyn Socket>;

/// A connection on its way.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

/// Where work runs that takes long or blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// On threads of their own, so many beside each other.
    Threads(usize),
    /// At once, on the caller's thread: threads run in no order that could be repeated.
    Inline,
}

/// What a machine can do. [`Host`] is the handle by which it is used.
pub trait Machine: Send + Sync + 'static {
    /// Now, on a clock that a suspended machine does not stop. Never goes back.
    fn now(&self) -> Moment;

    /// Milliseconds since 1970, as this machine believes: shown, and never judged.
    fn wall_ms(&self) -> u64;

    /// Fills `bytes` so that nobody can guess them.
    fn fill_random(&self, bytes: &mut [u8]);

    /// Opens a connection to a host and port.
    fn connect(&self, endpoint: &str) -> Connecting;

    /// Where long work runs.
    fn workers(&self) -> Workers;
}

/// A machine, as a cheap handle.
///
/// ```
/// let host = sync_host::Host::real();
/// let nonce: [u8; 16] = host.random();
/// assert!(host.wall_ms() > 1_700_000_000_000);
/// assert_ne!(nonce, host.random());
/// ```
#[derive(Clone)]
pub struct Host(Arc<dyn Machine>);

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("workers", &self.workers()).finish_non_exhaustive()
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::real()
    }
}

/// Long work ended without a result, because it panicked.
#[derive(Debug, thiserror::Error)]
#[error("work on another thread panicked: {0}")]
pub struct Panicked(#[source] tokio::task::JoinError);

impl Host {
    /// This machine.
    #[must_use]
    pub fn real() -> Self {
        Self::new(real::Real)
    }

    /// A machine of the caller's own.
    pub fn new(machine: impl Machine) -> Self {
        Self(Arc::new(machine))
    }

    /// Now, on a clock that a suspended machine does not stop.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.0.now()
    }

    /// Milliseconds since 1970, as this machine believes.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        self.0.wall_ms()
    }

    /// Fresh random bytes.
    #[must_use]
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill_random(&mut bytes);
        bytes
    }

    /// The machine's randomness, as the rules and the encryption take it.
    #[must_use]
    pub fn rng(&self) -> HostRng {
        HostRng(self.clone())
    }

    /// Opens a connection to a host and port.
    ///
    /// # Errors
    /// What the network says.
    pub async fn connect(&self, endpoint: &str) -> io::Result<Stream> {
        self.0.connect(endpoint).await
    }

    /// Where long work runs.
    #[must_use]
    pub fn workers(&self) -> Workers {
        self.0.workers()
    }

    /// Runs work that takes long or blocks, out of the way of other tasks.
    ///
    /// # Errors
    /// [`Panicked`], where it ran on another thread.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Panicked> {
        match self.workers() {
            Workers::Threads(_) => tokio::task::spawn_blocking(work).await.map_err(Panicked),
            Workers::Inline => Ok(work()),
        }
    }
}

/// See [`Host::rng`].
#[derive(Debug, Clone)]
pub struct HostRng(Host);

impl TryRng for HostRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_le_bytes(self.0.random()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_le_bytes(self.0.random()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.0.fill_random(bytes);
        Ok(())
    }
}

/// [`Machine::fill_random`] promises it.
impl TryCryptoRng for HostRng {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_of_ones_own_is_asked_for_everything() {
        struct Still;
        impl Machine for Still {
            fn now(&self) -> Moment {
                Moment(std::time::Duration::from_secs(7))
            }
            fn wall_ms(&self) -> u64 {
                7000
            }
            fn fill_random(&self, bytes: &mut [u8]) {
                bytes.fill(7);
            }
            fn connect(&self, _: &str) -> Connecting {
                Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
            }
            fn workers(&self) -> Workers {
                Workers::Inline
            }
        }
        let host = Host::new(Still);
        assert_eq!(host.now(), Moment(std::time::Duration::from_secs(7)));
        assert_eq!(host.wall_ms(), 7000);
        assert_eq!(host.random(), [7; 3]);
        let mut bytes = [0; 5];
        rand_core::Rng::fill_bytes(&mut host.rng(), &mut bytes);
        assert_eq!(bytes, [7; 5]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (caller, refused) = (std::thread::current().id(), runtime.block_on(host.connect("anywhere:1")));
        assert_eq!(refused.err().map(|e| e.kind()), Some(io::ErrorKind::ConnectionRefused));
        let ran_on = runtime.block_on(host.blocking(|| std::thread::current().id()));
        assert_eq!(ran_on.expect("inline"), caller);
    }

    #[test]
    fn this_machine_runs_long_work_elsewhere() {
        let host = Host::real();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let ran_on = runtime.block_on(host.blocking(|| std::thread::current().id()));
        assert_ne!(ran_on.expect("ran"), std::thread::current().id());
        let panicked = runtime.block_on(host.blocking(|| -> u8 { panic!("planned") }));
        assert!(panicked.is_err());
    }
}
