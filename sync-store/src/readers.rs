//! Readers: connections of their own, lent to one caller at a time.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::cache::AclCache;
use crate::db::{Db, Session, Tuning};
use crate::error::StoreError;
use crate::open::open_reader;
use crate::read::ReadTx;

/// Connections that read at the same time; more callers wait for one.
pub const READERS_MAX: usize = 8;

pub(crate) struct Readers {
    database: PathBuf,
    tuning: Tuning,
    pool: Mutex<Pool>,
    returned: Condvar,
    acls: Arc<AclCache>,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Session>,
    lent: usize,
    state: PoolState,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum PoolState {
    #[default]
    Open,
    Closed,
}

impl Readers {
    pub(crate) fn new(database: PathBuf, tuning: Tuning, acls: Arc<AclCache>) -> Self {
        Self { database, tuning, pool: Mutex::default(), returned: Condvar::new(), acls }
    }

    pub(crate) fn read<T, E: From<StoreError>>(&self, read: impl FnOnce(&ReadTx<'_>) -> Result<T, E>) -> Result<T, E> {
        let lent = self.lend()?;
        let begin = || lent.session()?.conn.execute_batch("BEGIN").map_err(StoreError::of_sqlite);
        begin()?;
        let result = read(&ReadTx::of_snapshot(Db::new(lent.session()?), &self.acls));
        lent.give_back();
        result
    }

    fn lend(&self) -> Result<Lent<'_>, StoreError> {
        let mut pool = self.lock();
        loop {
            if pool.state == PoolState::Closed {
                return Err(StoreError::Closed);
            }
            if let Some(session) = pool.idle.pop() {
                pool.lent += 1;
                return Ok(Lent { readers: self, session: Some(session) });
            }
            if pool.lent < READERS_MAX {
                pool.lent += 1;
                break;
            }
            pool = self.returned.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
        drop(pool);
        // Counted as lent already; dropping this takes it back if the open fails.
        let mut lent = Lent { readers: self, session: None };
        lent.session = Some(open_reader(&self.database, self.tuning)?);
        Ok(lent)
    }

    /// Later reads are refused; the connections close as they come back.
    pub(crate) fn close(&self) {
        let idle = {
            let mut pool = self.lock();
            pool.state = PoolState::Closed;
            std::mem::take(&mut pool.idle)
        };
        drop(idle);
        self.returned.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection on loan. Dropped without [`Lent::give_back`] (a panic, a failure) it is closed.
struct Lent<'a> {
    readers: &'a Readers,
    session: Option<Session>,
}

impl Lent<'_> {
    fn session(&self) -> Result<&Session, StoreError> {
        self.session.as_ref().ok_or(StoreError::Closed)
    }

    fn give_back(mut self) {
        let Some(session) = self.session.take() else { return };
        // A connection that cannot end its transaction is of no more use.
        if session.conn.execute_batch("ROLLBACK").is_err() {
            return;
        }
        let mut pool = self.readers.lock();
        if pool.state == PoolState::Open {
            pool.idle.push(session);
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.session = None;
        self.readers.lock().lent -= 1;
        self.readers.returned.notify_one();
    }
}
