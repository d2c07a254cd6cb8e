//! One connection and how it is spoken to: cached statements, one error translation, checked numbers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::types::Type;
use rusqlite::{Connection, Params, Row};
use sync_core::ids::{AccountId, Seq};

use crate::error::{Severity, StoreError};

/// Decoded account keys that a connection remembers.
const ACCOUNTS_MAX: usize = 4096;

/// What is fixed per store; tests choose other values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// Which bits of an id's first eight bytes the indexes see. Tests blind most of them to get equal prefixes.
    pub(crate) prefix_mask: i64,
    /// How long a commit may wait for its durability barrier while nobody asks for it.
    pub(crate) barrier_delay: Duration,
    /// Pages that the write-ahead log may grow by before it is checkpointed although there is work.
    pub(crate) checkpoint_pages: u32,
}

/// A connection with what belongs to it.
pub(crate) struct Session {
    pub(crate) conn: Connection,
    pub(crate) tuning: Tuning,
    /// A key costs a point decompression to check, and few authors write most rows. A pure function's results: never stale.
    accounts: RefCell<BTreeMap<[u8; 32], AccountId>>,
}

impl Session {
    pub(crate) fn new(conn: Connection, tuning: Tuning) -> Self {
        conn.set_prepared_statement_cache_capacity(128);
        Self { conn, tuning, accounts: RefCell::default() }
    }
}

/// A session inside one transaction. Remembers the first failed statement, so that a job cannot swallow it.
pub(crate) struct Db<'c> {
    pub(crate) session: &'c Session,
    trouble: RefCell<Option<StoreError>>,
}

impl<'c> Db<'c> {
    pub(crate) fn new(session: &'c Session) -> Self {
        Self { session, trouble: RefCell::default() }
    }

    pub(crate) fn take_trouble(&self) -> Option<StoreError> {
        self.trouble.borrow_mut().take()
    }

    /// The first row, if there is one.
    pub(crate) fn one<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        self.check(self.session.conn.prepare_cached(sql).and_then(|mut statement| {
            let mut rows = statement.query(params)?;
            rows.next()?.map(map).transpose()
        }))
    }

    /// Rows until `visit` breaks.
    pub(crate) fn each(
        &self,
        sql: &'static str,
        params: impl Params,
        mut visit: impl FnMut(&Row<'_>) -> rusqlite::Result<ControlFlow<()>>,
    ) -> Result<(), StoreError> {
        self.check(self.session.conn.prepare_cached(sql).and_then(|mut statement| {
            let mut rows = statement.query(params)?;
            while let Some(row) = rows.next()? {
                if visit(row)?.is_break() {
                    break;
                }
            }
            Ok(())
        }))
    }

    /// All rows.
    pub(crate) fn all<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        mut map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut found = Vec::new();
        self.each(sql, params, |row| {
            found.push(map(row)?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// Runs a statement; the number of rows it changed.
    pub(crate) fn execute(&self, sql: &'static str, params: impl Params) -> Result<usize, StoreError> {
        self.check(self.session.conn.prepare_cached(sql).and_then(|mut statement| statement.execute(params)))
    }

    /// Inserts a row; its number.
    pub(crate) fn insert(&self, sql: &'static str, params: impl Params) -> Result<i64, StoreError> {
        self.execute(sql, params)?;
        Ok(self.session.conn.last_insert_rowid())
    }

    /// Our own finding that stored rows do not fit together.
    pub(crate) fn damaged<T>(&self, what: impl Into<String>) -> Result<T, StoreError> {
        Err(self.note(StoreError::damaged(what)))
    }

    fn check<T>(&self, result: rusqlite::Result<T>) -> Result<T, StoreError> {
        result.map_err(|e| self.note(StoreError::of_sqlite(e)))
    }

    /// Keeps the worst error: a later fatal one must not hide behind an earlier refused statement.
    fn note(&self, error: StoreError) -> StoreError {
        let mut trouble = self.trouble.borrow_mut();
        let known = trouble.as_ref().map(StoreError::severity);
        if known.is_none_or(|known| known == Severity::Call && error.severity() != Severity::Call) {
            *trouble = Some(error.clone());
        }
        error
    }

    /// The indexed form of an id's first eight bytes: sorts as an integer as the bytes do.
    pub(crate) fn prefix(&self, prefix8: i64) -> i64 {
        (prefix8 ^ i64::MIN) & self.session.tuning.prefix_mask
    }

    /// An account key out of a row.
    pub(crate) fn account(&self, column: usize, bytes: &[u8]) -> rusqlite::Result<AccountId> {
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| misfit(column, "an account id is not 32 bytes long"))?;
        let mut known = self.session.accounts.borrow_mut();
        if let Some(account) = known.get(&bytes) {
            return Ok(*account);
        }
        let account = AccountId::try_from(bytes.as_slice()).map_err(|e| misfit(column, e))?;
        if known.len() >= ACCOUNTS_MAX {
            known.clear();
        }
        known.insert(bytes, account);
        Ok(account)
    }
}

/// A stored value that does not have the shape it was written in.
pub(crate) fn misfit(column: usize, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, why.into())
}

pub(crate) fn hash(row: &Row<'_>, column: usize) -> rusqlite::Result<[u8; 32]> {
    row.get(column)
}

pub(crate) fn blob(row: &Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(column)?.as_blob()?))
}

pub(crate) fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

pub(crate) fn seq(row: &Row<'_>, column: usize) -> rusqlite::Result<Seq> {
    number(row, column).map(Seq)
}

/// A number on its way into a row.
pub(crate) fn integer(what: &'static str, value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::OutOfRange { what, value })
}

/// Bits of a log key that hold the position.
const SEQ_BITS: u32 = 40;
const SEQ_MASK: i64 = (1 << SEQ_BITS) - 1;
/// The last position that a log can have.
const SEQ_LAST: Seq = Seq(SEQ_MASK.unsigned_abs());

/// The log key of an entry: appends to one space go to one end of one tree, and a space's log is one range.
pub(crate) fn log_key(space_no: i64, seq: Seq) -> Result<i64, StoreError> {
    let seq = integer("log position", seq.0)?;
    if seq > SEQ_MASK || !(0..1 << (63 - SEQ_BITS)).contains(&space_no) {
        return Err(StoreError::OutOfRange { what: "log position", value: seq.unsigned_abs() });
    }
    Ok(space_no << SEQ_BITS | seq)
}

/// The log key of an entry that is asked for; `None` where no log reaches.
pub(crate) fn log_key_asked(space_no: i64, seq: Seq) -> Result<Option<i64>, StoreError> {
    if seq > SEQ_LAST { Ok(None) } else { log_key(space_no, seq).map(Some) }
}

/// The log key after which entries are asked for: beyond the end there are none.
pub(crate) fn log_key_after(space_no: i64, seq: Seq) -> Result<i64, StoreError> {
    log_key(space_no, seq.min(SEQ_LAST))
}

/// The greatest key that an entry of this space can have.
pub(crate) fn log_key_last(space_no: i64) -> i64 {
    space_no << SEQ_BITS | SEQ_MASK
}

pub(crate) fn seq_of_key(key: i64) -> Seq {
    Seq((key & SEQ_MASK).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_keys_hold_what_they_are_given_or_refuse() {
        let last = Seq((1 << 40) - 1);
        let key = log_key((1 << 23) - 1, last).unwrap();
        assert_eq!(seq_of_key(key), last);
        assert_eq!(key, i64::MAX);
        assert!(matches!(log_key(1, last.next()), Err(StoreError::OutOfRange { .. })));
        assert!(matches!(log_key(1 << 23, Seq(1)), Err(StoreError::OutOfRange { .. })));
    }
}
