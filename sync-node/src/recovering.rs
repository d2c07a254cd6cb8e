//! The time after a recognised restore in which the node takes nothing new, so that clients bring back what it lost before
//! anybody writes over it.
//!
//! The file `recovering` in the data directory stands for it. `restore` makes it; the first start writes into it when the time
//! is over; it goes when it is over. An operator ends it earlier by removing the file. A node without a directory
//! ([`crate::Node::start_on`]) is handed it by whoever starts it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sync_core::session::Moment;
use sync_host::Host;
use tracing::{info, warn};

use crate::metrics;
use crate::shutdown::Tasks;

/// In the data directory while a restored node takes nothing new.
pub const RECOVERING_FILE: &str = "recovering";

/// How often the node looks whether its operator has ended it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whether a node takes nothing new at present; by default it does take it. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Recovering(Option<Arc<Window>>);

#[derive(Debug)]
struct Window {
    /// None where whoever started the node keeps it.
    file: Option<PathBuf>,
    /// The wall clock counts between two processes only: one that is set while this one runs neither ends it nor makes it longer.
    until: Moment,
    is_over: AtomicBool,
}

impl Recovering {
    /// From now on for so long. For a node that [`crate::Node::start_on`] starts, and starts again.
    #[must_use]
    pub fn lasting(host: &Host, length: Duration) -> Self {
        Self::until(None, host.now().plus(length))
    }

    /// Ends it now, as an operator does who removes the file.
    pub fn end(&self) {
        if let Some(window) = &self.0 {
            window.is_over.store(true, Ordering::Release);
        }
    }

    fn until(file: Option<PathBuf>, until: Moment) -> Self {
        Self(Some(Arc::new(Window { file, until, is_over: AtomicBool::new(false) })))
    }

    /// Goes on with what a restore or an earlier start left in `data`, if anything.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub(crate) fn begin(host: &Host, data: &Path, length: Duration) -> io::Result<Self> {
        let file = data.join(RECOVERING_FILE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let until_ms = match text.trim().parse() {
            Ok(until_ms) => until_ms,
            // As the restore left it: this is the first start.
            Err(_) => {
                let until_ms = host.wall_ms().saturating_add(millis(length));
                fs::write(&file, format!("{until_ms}\n"))?;
                until_ms
            }
        };
        // A clock that was set back does not make it longer.
        let left = Duration::from_millis(until_ms.saturating_sub(host.wall_ms())).min(length);
        Ok(Self::until(Some(file), host.now().plus(left)))
    }

    /// Has the next start begin it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn order(data: &Path) -> io::Result<()> {
        fs::write(data.join(RECOVERING_FILE), "")?;
        fs::File::open(data)?.sync_all()
    }

    /// What is left of it; `None` if the node takes what is new.
    pub(crate) fn left(&self, host: &Host) -> Option<Duration> {
        let window = self.0.as_deref().filter(|window| !window.is_over.load(Ordering::Acquire))?;
        let left = window.until.0.saturating_sub(host.now().0);
        (!left.is_zero()).then_some(left)
    }

    /// Watches for its end, and cleans up after it.
    pub(crate) fn watch(&self, host: &Host, tasks: &Tasks) {
        let Some(window) = self.0.clone() else { return };
        let (recovering, host, stop) = (self.clone(), host.clone(), tasks.clone());
        metrics::recovery_began();
        info!(left = ?self.left(&host), "restored from a backup: nothing new is taken for a while");
        let watching = async move {
            let ended = || window.file.as_ref().is_some_and(|file| !file.exists());
            while recovering.left(&host).is_some() && !ended() {
                if stop.unless_stopped(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                    return;
                }
            }
            window.is_over.store(true, Ordering::Release);
            metrics::recovery_over();
            let Some(file) = &window.file else { return };
            match fs::remove_file(file) {
                Ok(()) => info!("the time after the restore is over"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    info!("the operator has ended the time after the restore");
                }
                Err(error) => warn!(%error, "the mark of the restore could not be removed"),
            }
        };
        tasks.spawn(watching);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(600);

    #[test]
    fn without_a_restore_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::real();
        assert!(Recovering::begin(&host, dir.path(), LENGTH).unwrap().left(&host).is_none());
        assert!(!dir.path().join(RECOVERING_FILE).exists());
    }

    #[test]
    fn it_begins_with_the_first_start_and_later_starts_go_on_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::real();
        Recovering::order(dir.path()).unwrap();
        let first = Recovering::begin(&host, dir.path(), LENGTH).unwrap();
        assert!(first.left(&host).unwrap() > LENGTH - Duration::from_secs(60));
        let again = Recovering::begin(&host, dir.path(), LENGTH * 9).unwrap();
        assert!(again.left(&host).unwrap() <= LENGTH, "a restart does not make it longer");
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_make_it_longer() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::real();
        let far = host.wall_ms() + millis(LENGTH * 1000);
        fs::write(dir.path().join(RECOVERING_FILE), format!("{far}\n")).unwrap();
        let left = Recovering::begin(&host, dir.path(), LENGTH).unwrap().left(&host);
        assert!(left.is_some_and(|left| left <= LENGTH && left > LENGTH - Duration::from_secs(60)), "{left:?}");
    }

    #[test]
    fn it_is_over_when_its_time_is() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::real();
        fs::write(dir.path().join(RECOVERING_FILE), "1000\n").unwrap();
        assert_eq!(Recovering::begin(&host, dir.path(), LENGTH).unwrap().left(&host), None);
    }
}
