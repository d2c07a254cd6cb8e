//! This machine.

use std::num::NonZero;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use rand::Rng as _;
use sync_core::session::Moment;
use tokio::net::TcpStream;

use crate::{Connecting, Machine, Stream, Workers};

pub(crate) struct Real;

impl Machine for Real {
    fn now(&self) -> Moment {
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME exists on every Linux since 2.6.39");
        Moment(boot.into())
    }

    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        rand::rng().fill_bytes(bytes);
    }

    fn connect(&self, endpoint: &str) -> Connecting {
        let endpoint = endpoint.to_owned();
        Box::pin(async move {
            let tcp = TcpStream::connect(endpoint).await?;
            tcp.set_nodelay(true)?;
            Ok(Box::new(tcp) as Stream)
        })
    }

    fn workers(&self) -> Workers {
        Workers::Threads(std::thread::available_parallelism().map_or(1, NonZero::get))
    }
}
