//! The one writer: jobs into transactions, and what memory and callers learn of them.
//!
//! Each job runs in a savepoint of one transaction. After the commit memory follows, watchers and callers are told. When the
//! commits become durable is the matter of whoever owns the writer: the storage thread, or a disk in memory.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use sync_core::ids::Seq;
use sync_core::limits;

use crate::cache::{Batch, Effects, Live, Recent, Staging};
use crate::db::{Db, Session};
use crate::error::{Severity, StoreError};
use crate::job::{Job, Ran, Verdict};
use crate::store::{CommitNo, Shared};
use crate::write::{WriteTx, update_head};

/// Appended bytes after which a transaction takes no further job.
const BATCH_BYTES_MAX: usize = 4 << 20;

type Result<T, E = StoreError> = std::result::Result<T, E>;

pub(crate) struct Writer {
    pub(crate) session: Session,
    pub(crate) shared: Arc<Shared>,
    spaces: Recent<Live>,
    commit: CommitNo,
}

/// What stands around a transaction.
pub(crate) trait Medium {
    /// Another job for the present transaction.
    fn next_job(&mut self) -> Option<Box<dyn Job>>;

    /// The last moment at which the transaction can fail.
    fn before_commit(&mut self, wrote: Wrote) -> Result<()>;

    /// It is in the file, and nobody knows yet.
    fn after_commit(&mut self, wrote: Wrote) -> Result<()>;
}

/// A job of the present transaction.
struct InBatch {
    job: Box<dyn Job>,
    effects: Effects,
}

/// What a transaction did to the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrote {
    Something,
    Nothing,
}

impl Writer {
    pub(crate) fn new(session: Session, shared: Arc<Shared>) -> Self {
        Self { session, shared, spaces: Recent::default(), commit: CommitNo::default() }
    }

    /// Runs a job, and what else is at hand, in one transaction; then memory follows, and callers are told.
    ///
    /// # Errors
    /// What ends the store.
    pub(crate) fn transact(&mut self, first: Box<dyn Job>, medium: &mut impl Medium) -> Result<Wrote> {
        let mut jobs = vec![InBatch { job: first, effects: Effects::default() }];
        let mut batch = Batch::default();
        match self.try_transact(&mut jobs, &mut batch, medium) {
            Ok(wrote) => {
                self.publish(batch, wrote);
                self.answer(jobs);
                Ok(wrote)
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
                stop.map_or(Ok(Wrote::Nothing), Err)
            }
        }
    }

    fn try_transact(&mut self, jobs: &mut Vec<InBatch>, batch: &mut Batch, medium: &mut impl Medium) -> Result<Wrote> {
        let changes = self.session.conn.total_changes();
        self.run_sql("BEGIN IMMEDIATE")?;
        while let Some(current) = jobs.last_mut() {
            self.run_job(current, batch)?;
            if jobs.len() >= limits::GROUP_COMMIT_MAX || batch.bytes >= BATCH_BYTES_MAX {
                break;
            }
            match medium.next_job() {
                Some(job) => jobs.push(InBatch { job, effects: Effects::default() }),
                None => break,
            }
        }
        let db = Db::new(&self.session);
        for space in &batch.forgotten {
            self.shared.marks.announce_anew(*space);
        }
        for (space, to) in &batch.rewound {
            self.shared.marks.announce_rewound(*space, *to);
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
        let wrote = self.session.conn.total_changes() != changes;
        let wrote = if wrote { Wrote::Something } else { Wrote::Nothing };
        medium.before_commit(wrote)?;
        self.run_sql("COMMIT")?;
        medium.after_commit(wrote)?;
        Ok(wrote)
    }

    fn run_job(&mut self, current: &mut InBatch, batch: &mut Batch) -> Result<()> {
        self.run_sql("SAVEPOINT job")?;
        let staging = Staging {
            committed: &mut self.spaces,
            batch,
            marks: &self.shared.marks,
            feeds: &self.shared.feeds,
            job: Default::default(),
        };
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

    pub(crate) fn roll_back(&self) -> Result<()> {
        // SQLite ends the transaction itself after some errors.
        if self.session.conn.is_autocommit() { Ok(()) } else { self.run_sql("ROLLBACK") }
    }

    /// Memory follows the disk.
    fn publish(&mut self, batch: Batch, wrote: Wrote) {
        if wrote == Wrote::Nothing {
            return;
        }
        self.commit = CommitNo(self.commit.0 + 1);
        for space in &batch.forgotten {
            self.spaces.forget(space);
            self.shared.acls.forget(space);
            self.shared.marks.forget(space);
            self.shared.feeds.forget(space);
        }
        for (space, to) in &batch.rewound {
            self.shared.acls.forget(space);
            self.shared.marks.rewind(space, *to);
            self.shared.feeds.forget(space);
        }
        self.shared.feeds.publish(batch.moves);
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

    /// Everything committed so far is on the disk.
    pub(crate) fn became_durable(&self) {
        self.shared.marks.publish_durable();
        self.shared.durable.send_replace(self.commit);
    }

    fn run_sql(&self, sql: &'static str) -> Result<()> {
        Db::new(&self.session).execute(sql, []).map(|_| ())
    }
}

pub(crate) fn panicked(panic: &(dyn Any + Send)) -> StoreError {
    let message = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(no message)".into());
    StoreError::Panicked { message }
}
