//! The storage thread: the one writer.
//!
//! It takes what is queued, runs each job in a savepoint of one transaction, and commits once with `synchronous = NORMAL`:
//! the write-ahead log is written, not synced. Then memory follows, watchers and callers are told. So far the work survives a
//! killed process.
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

use std::any::Any;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use rusqlite::wal::CheckpointMode;
use sync_core::ids::Seq;
use sync_core::limits;

use crate::cache::{Batch, Effects, Live, Recent, Staging};
use crate::db::{Db, Session};
use crate::error::{Severity, StoreError};
use crate::job::{Job, Message, Ran, Verdict};
use crate::open::{Checkpointed, Opened, checkpoint};
use crate::store::{CommitNo, Phase, Shared};
use crate::write::{WriteTx, update_head};

/// Appended bytes after which a transaction takes no further job.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Silence after which the write-ahead log is checkpointed.
const IDLE: Duration = Duration::from_millis(250);
/// After a barrier that found no room.
const BARRIER_RETRY: Duration = Duration::from_millis(250);

type Result<T, E = StoreError> = std::result::Result<T, E>;

pub(crate) struct Storage {
    session: Session,
    /// Held until the connection is closed.
    lock: File,
    shared: Arc<Shared>,
    queue: Receiver<Message>,
    spaces: Recent<Live>,
    commit: CommitNo,
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

/// A job of the present transaction.
struct InBatch {
    job: Box<dyn Job>,
    effects: Effects,
}

/// What a transaction did to the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrote {
    Something,
    Nothing,
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
        let (spaces, commit) = (Recent::default(), CommitNo::default());
        Ok(Self { session: writer, lock, shared, queue, spaces, commit, owed: None, wal_pages, wal })
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
        let Self { session, lock, shared, queue, .. } = self;
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
            self.transact(job)?;
            if self.barrier_due() {
                self.barrier()?;
            }
            if self.wal.is_due(self.wal_pages.load(Ordering::Relaxed)) {
                self.checkpoint()?;
            }
        }
        Ok(())
    }

    /// The next job. Does what is due while there is none.
    fn next(&mut self) -> Result<Option<Box<dyn Job>>> {
        loop {
            match self.queue.try_recv() {
                Ok(Message::Job(job)) => return Ok(Some(job)),
                Ok(Message::Wake) => continue,
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) => {}
            }
            if self.barrier_due() {
                self.barrier()?;
                continue;
            }
            if self.shared.is_closing() {
                return Ok(None);
            }
            let message = match self.nap() {
                Some(nap) => self.queue.recv_timeout(nap),
                None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
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
                let due = owed.not_before.max(owed.since + self.session.tuning.barrier_delay);
                Some(due.saturating_duration_since(Instant::now()))
            }
            (None, WalState::Growing) => Some(IDLE),
            (None, WalState::Copied) => None,
        }
    }

    // ---- one transaction --------------------------------------------------------------------------------------------

    fn transact(&mut self, first: Box<dyn Job>) -> Result<()> {
        let mut jobs = vec![InBatch { job: first, effects: Effects::default() }];
        let mut batch = Batch::default();
        match self.try_transact(&mut jobs, &mut batch) {
            Ok(wrote) => {
                self.publish(batch, wrote);
                self.answer(jobs);
                Ok(())
            }
            Err(error) => {
                let rolled_back = self.roll_back();
                let stop = match (error.severity(), rolled_back) {
                    (Severity::Transaction, Ok(())) => None,
                    (Severity::Transaction, Err(worse)) => Some(worse),
                    (Severity::Call | Severity::Store, _) => Some(error),
                };
                for InBatch { job, .. } in jobs {
                    job.answer(match &stop {
                        None => Verdict::Full,
                        Some(error) => Verdict::OutcomeUnknown(error.clone()),
                    });
                }
                stop.map_or(Ok(()), Err)
            }
        }
    }

    fn try_transact(&mut self, jobs: &mut Vec<InBatch>, batch: &mut Batch) -> Result<Wrote> {
        let changes = self.session.conn.total_changes();
        self.run_sql("BEGIN IMMEDIATE")?;
        while let Some(current) = jobs.last_mut() {
            self.run_job(current, batch)?;
            if jobs.len() >= limits::GROUP_COMMIT_MAX || batch.bytes >= BATCH_BYTES_MAX {
                break;
            }
            match self.next_queued() {
                Some(job) => jobs.push(InBatch { job, effects: Effects::default() }),
                None => break,
            }
        }
        let db = Db::new(&self.session);
        for space in &batch.forgotten {
            self.shared.marks.announce_anew(*space);
        }
        for (space, live) in &batch.spaces {
            update_head(&db, &live.head)?;
            // A space that is new, or was forgotten here, stays on the safe side until the next barrier.
            let durable = match batch.forgotten.contains(space) {
                true => Seq::ZERO,
                false => self.spaces.get(space).map(|l| l.head.position.seq).unwrap_or_default(),
            };
            self.shared.marks.announce(*space, durable);
        }
        self.run_sql("COMMIT")?;
        let wrote = self.session.conn.total_changes() != changes;
        Ok(if wrote { Wrote::Something } else { Wrote::Nothing })
    }

    fn next_queued(&self) -> Option<Box<dyn Job>> {
        loop {
            match self.queue.try_recv() {
                Ok(Message::Job(job)) => return Some(job),
                // What is wanted is looked at after the commit.
                Ok(Message::Wake) => {}
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
            }
        }
    }

    fn run_job(&mut self, current: &mut InBatch, batch: &mut Batch) -> Result<()> {
        self.run_sql("SAVEPOINT job")?;
        let staging =
            Staging { committed: &mut self.spaces, batch, marks: &self.shared.marks, job: Default::default() };
        let mut tx = WriteTx::new(Db::new(&self.session), &self.shared.acls, staging);
        let ran = catch_unwind(AssertUnwindSafe(|| current.job.run(&mut tx)));
        let mut ran = ran.map_err(|panic| panicked(panic.as_ref()))?;
        let (effects, trouble) = tx.into_effects();
        if let Some(error) = trouble {
            match error.severity() {
                Severity::Store | Severity::Transaction => return Err(error),
                // Half of what the job meant to write may stand: nothing of it is kept.
                Severity::Call => {
                    current.job.fail(error);
                    ran = Ran::RollBack;
                }
            }
        }
        match ran {
            Ran::Keep => {
                self.run_sql("RELEASE job")?;
                current.effects = batch.absorb(effects);
            }
            Ran::RollBack => {
                self.run_sql("ROLLBACK TO job")?;
                self.run_sql("RELEASE job")?;
            }
        }
        Ok(())
    }

    fn roll_back(&self) -> Result<()> {
        // SQLite ends the transaction itself after some errors.
        if self.session.conn.is_autocommit() { Ok(()) } else { self.run_sql("ROLLBACK") }
    }

    /// Memory follows the disk.
    fn publish(&mut self, batch: Batch, wrote: Wrote) {
        if wrote == Wrote::Nothing {
            return;
        }
        self.commit = CommitNo(self.commit.0 + 1);
        self.wal.state = WalState::Growing;
        let now = Instant::now();
        self.owed.get_or_insert(OwedBarrier { since: now, not_before: now });
        for space in &batch.forgotten {
            self.spaces.forget(space);
            self.shared.acls.forget(space);
            self.shared.marks.forget(space);
        }
        self.shared.marks.publish(batch.spaces.iter().map(|(space, live)| (*space, live.head.position.seq)));
        for (space, live) in batch.spaces {
            self.shared.acls.offer(space, live.head.space_no, &live.acl);
            self.spaces.put(space, live);
        }
        self.shared.commits.send_replace(self.commit);
        if batch.spaces_created > 0 {
            self.shared.spaces.send_modify(|created| *created += batch.spaces_created);
        }
    }

    fn answer(&self, jobs: Vec<InBatch>) {
        for InBatch { job, effects } in jobs {
            job.answer(Verdict::Committed { commit: self.commit, committed: effects.into_committed() });
        }
    }

    // ---- durability -------------------------------------------------------------------------------------------------

    fn barrier_due(&self) -> bool {
        let Some(owed) = &self.owed else { return false };
        let now = Instant::now();
        let wanted = self.shared.durable_wanted.load(Ordering::SeqCst) > self.shared.durable.borrow().0;
        now >= owed.not_before && (wanted || now >= owed.since + self.session.tuning.barrier_delay)
    }

    fn barrier(&mut self) -> Result<()> {
        // These two run when they are prepared, so they cannot be cached statements.
        self.batch_sql("PRAGMA synchronous = FULL")?;
        let synced = self.batch_sql("BEGIN IMMEDIATE; UPDATE barrier SET count = count + 1; COMMIT");
        match synced {
            Ok(()) => {
                self.owed = None;
                self.shared.marks.publish_durable();
                self.shared.durable.send_replace(self.commit);
            }
            Err(error) if error.severity() == Severity::Transaction => {
                self.roll_back()?;
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
        let done = checkpoint(&self.session.conn, CheckpointMode::PASSIVE).map_err(StoreError::of_sqlite)?;
        match done {
            Checkpointed::Done | Checkpointed::NotNow => self.wal.copied(self.wal_pages.load(Ordering::Relaxed)),
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        if self.owed.is_some() {
            self.barrier()?;
        }
        checkpoint(&self.session.conn, CheckpointMode::TRUNCATE).map_err(StoreError::of_sqlite)?;
        Ok(())
    }

    fn run_sql(&self, sql: &'static str) -> Result<()> {
        Db::new(&self.session).execute(sql, []).map(|_| ())
    }

    fn batch_sql(&self, sql: &str) -> Result<()> {
        self.session.conn.execute_batch(sql).map_err(StoreError::of_sqlite)
    }
}

fn panicked(panic: &(dyn Any + Send)) -> StoreError {
    let message = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(no message)".into());
    StoreError::Panicked { message }
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
