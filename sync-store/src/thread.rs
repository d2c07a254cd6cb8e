//! The storage thread: owns the one writer of a store in a directory.
//!
//! It hands what is queued to the [`Writer`], which commits once with `synchronous = NORMAL`: the write-ahead log is written,
//! not synced. So far the work survives a killed process.
//!
//! # The durability barrier
//!
//! After that it commits a tiny transaction with `synchronous = FULL`. That appends one frame to the write-ahead log and
//! syncs the file. A sync covers the whole file, so every earlier frame is on disk with it; and recovery replays a log up to
//! its last whole commit, in order, so when the barrier's commit is found, all earlier ones are. Commits that a checkpoint has
//! moved from the log in the meantime are no exception: a checkpoint syncs the log before it copies and the database before the
//! log may be reused. If the sync fails, nothing is known of any of them, and the store fails; it never tries a second time,
//! because the kernel drops the failed pages and the second sync would succeed (Rebello et al., ATC 2020).
//!
//! A node's barrier follows every commit. A client's waits a few milliseconds unless somebody asks with
//! [`crate::Store::durable`], so that writes one after the other do not cost a sync each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use rusqlite::wal::CheckpointMode;

use crate::error::{Severity, StoreError};
use crate::job::{Job, Message};
use crate::open::{Checkpointed, DirLock, Opened, checkpoint};
use crate::store::{Phase, Shared};
use crate::writer::{Medium, Writer, Wrote, panicked};

/// Silence after which the write-ahead log is checkpointed.
const IDLE: Duration = Duration::from_millis(250);
/// After a barrier that found no room.
const BARRIER_RETRY: Duration = Duration::from_millis(250);

type Result<T, E = StoreError> = std::result::Result<T, E>;

pub(crate) struct Storage {
    writer: Writer,
    /// Held until the connection is closed.
    lock: DirLock,
    queue: Queue,
    owed: Option<OwedBarrier>,
    /// Pages in the write-ahead log after the last commit.
    wal_pages: Arc<AtomicU32>,
    wal: Wal,
}

/// There are commits that no barrier has covered.
#[derive(Clone, Copy)]
struct OwedBarrier {
    since: Instant,
    not_before: Instant,
}

/// What was done about the write-ahead log.
struct Wal {
    /// Pages by which it may grow before it is checkpointed although there is work.
    step: u32,
    /// Its pages at the last checkpoint, if it was not begun anew since.
    copied: u32,
    state: WalState,
}

impl Wal {
    const fn new(step: u32) -> Self {
        Self { step, copied: 0, state: WalState::Copied }
    }

    /// Whether a log of so many pages is checkpointed at once. If a reader keeps it from being begun anew it goes on growing:
    /// not every commit should pay for that.
    fn is_due(&mut self, pages: u32) -> bool {
        if pages < self.copied {
            self.copied = 0;
        }
        pages >= self.copied.saturating_add(self.step)
    }

    const fn copied(&mut self, pages: u32) {
        self.copied = pages;
        self.state = WalState::Copied;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WalState {
    Copied,
    /// Commits since the last checkpoint.
    Growing,
}

/// The other jobs of a transaction are those that wait already.
struct Queue(Receiver<Message>);

impl Medium for Queue {
    fn next_job(&mut self) -> Option<Box<dyn Job>> {
        loop {
            match self.0.try_recv() {
                Ok(Message::Job(job)) => return Some(job),
                // What is wanted is looked at after the commit.
                Ok(Message::Wake) => {}
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
            }
        }
    }

    fn before_commit(&mut self, _: Wrote) -> Result<()> {
        Ok(())
    }

    fn after_commit(&mut self, _: Wrote) -> Result<()> {
        Ok(())
    }
}

impl Storage {
    pub(crate) fn new(opened: Opened, shared: Arc<Shared>, queue: Receiver<Message>) -> Result<Self> {
        let Opened { mut writer, lock, database: _ } = opened;
        let wal_pages = Arc::new(AtomicU32::new(0));
        let pages = Arc::clone(&wal_pages);
        writer
            .conn
            .wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, now: std::ffi::c_int| {
                pages.store(now.unsigned_abs(), Ordering::Relaxed);
                Ok(())
            }))
            .map_err(StoreError::of_sqlite)?;
        let wal = Wal::new(writer.tuning.checkpoint_pages);
        Ok(Self { writer: Writer::new(writer, shared), lock, queue: Queue(queue), owed: None, wal_pages, wal })
    }

    /// Serves until there are no handles left, the store is closed, or it fails.
    pub(crate) fn run(mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve().and_then(|()| self.finish())));
        let outcome = served.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        let phase = match outcome {
            Ok(()) => Phase::Closed,
            Err(error) => {
                tracing::error!(error = %error, cause = ?error, "the store has failed");
                Phase::Failed(error)
            }
        };
        let Self { writer, lock, queue, .. } = self;
        let Writer { session, shared, .. } = writer;
        if let Phase::Failed(_) = phase {
            // First, so that whoever finds the queue gone finds the reason.
            shared.phase.send_replace(phase);
            drop((queue, session, lock));
        } else {
            drop((queue, session, lock));
            shared.phase.send_replace(phase);
        }
    }

    fn serve(&mut self) -> Result<()> {
        while let Some(job) = self.next()? {
            if self.writer.transact(job, &mut self.queue)? == Wrote::Something {
                self.committed();
            }
            if self.barrier_due() {
                self.barrier()?;
            }
            if self.wal.is_due(self.wal_pages.load(Ordering::Relaxed)) {
                self.checkpoint()?;
            }
        }
        Ok(())
    }

    fn committed(&mut self) {
        self.wal.state = WalState::Growing;
        let now = Instant::now();
        self.owed.get_or_insert(OwedBarrier { since: now, not_before: now });
    }

    /// The next job. Does what is due while there is none.
    fn next(&mut self) -> Result<Option<Box<dyn Job>>> {
        loop {
            match self.queue.0.try_recv() {
                Ok(Message::Job(job)) => return Ok(Some(job)),
                Ok(Message::Wake) => continue,
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) => {}
            }
            if self.barrier_due() {
                self.barrier()?;
                continue;
            }
            if self.writer.shared.is_closing() {
                return Ok(None);
            }
            let message = match self.nap() {
                Some(nap) => self.queue.0.recv_timeout(nap),
                None => self.queue.0.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Job(job)) => return Ok(Some(job)),
                Ok(Message::Wake) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if self.owed.is_none() => self.checkpoint()?,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// How long to wait for work before there is something else to do; `None` for as long as it takes.
    fn nap(&self) -> Option<Duration> {
        match (&self.owed, self.wal.state) {
            (Some(owed), _) => {
                let due = owed.not_before.max(owed.since + self.writer.session.tuning.barrier_delay);
                Some(due.saturating_duration_since(Instant::now()))
            }
            (None, WalState::Growing) => Some(IDLE),
            (None, WalState::Copied) => None,
        }
    }

    // ---- durability -------------------------------------------------------------------------------------------------

    fn barrier_due(&self) -> bool {
        let Some(owed) = &self.owed else { return false };
        let now = Instant::now();
        let wanted = self.writer.shared.durable_wanted.load(Ordering::SeqCst) > self.writer.shared.durable.borrow().0;
        now >= owed.not_before && (wanted || now >= owed.since + self.writer.session.tuning.barrier_delay)
    }

    fn barrier(&mut self) -> Result<()> {
        // These two run when they are prepared, so they cannot be cached statements.
        self.batch_sql("PRAGMA synchronous = FULL")?;
        let synced = self.batch_sql("BEGIN IMMEDIATE; UPDATE barrier SET count = count + 1; COMMIT");
        match synced {
            Ok(()) => {
                self.owed = None;
                self.writer.became_durable();
            }
            Err(error) if error.severity() == Severity::Transaction => {
                self.writer.roll_back()?;
                if let Some(owed) = &mut self.owed {
                    owed.not_before = Instant::now() + BARRIER_RETRY;
                }
                // Copying the log makes room in it.
                self.checkpoint()?;
            }
            Err(error) => return Err(error),
        }
        self.batch_sql("PRAGMA synchronous = NORMAL")
    }

    fn checkpoint(&mut self) -> Result<()> {
        let done = checkpoint(&self.writer.session.conn, CheckpointMode::PASSIVE).map_err(StoreError::of_sqlite)?;
        match done {
            Checkpointed::Done | Checkpointed::NotNow => self.wal.copied(self.wal_pages.load(Ordering::Relaxed)),
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        if self.owed.is_some() {
            self.barrier()?;
        }
        checkpoint(&self.writer.session.conn, CheckpointMode::TRUNCATE).map_err(StoreError::of_sqlite)?;
        Ok(())
    }

    fn batch_sql(&self, sql: &str) -> Result<()> {
        self.writer.session.conn.execute_batch(sql).map_err(StoreError::of_sqlite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_was_begun_anew_is_measured_from_its_beginning() {
        let mut wal = Wal::new(10);
        assert!(!wal.is_due(9));
        assert!(wal.is_due(10));
        wal.copied(10);
        // A reader keeps it.
        assert!(!wal.is_due(19));
        assert!(wal.is_due(20));
        wal.copied(20);
        // Begun anew.
        assert!(!wal.is_due(1));
        assert!(!wal.is_due(9));
        assert!(wal.is_due(10));
    }
}
