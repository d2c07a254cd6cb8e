//! What is kept of nodes that went back in time: recognised restores, accusations, and what a rewind took out of the log.

use std::fmt;

use rusqlite::Row;
use sync_core::ids::{Chain, EntryId, HistoryId, Seq, SpaceId, TreeId};
use sync_core::log::{EntryKind, Position};
use sync_core::record::RawRecord;

use crate::client::{WriteId, WriteState};
use crate::db::{blob, hash, integer, misfit, number, seq};
use crate::error::StoreError;
use crate::read::{ReadTx, limit, optional_blob};
use crate::rows::{entry_kind, kind_of_code};
use crate::write::WriteTx;

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The number of a salvaged entry. Grows in the order of the old log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SalvageId(pub u64);

impl fmt::Display for SalvageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far a salvaged entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SalvageState {
    /// It is pushed again, and goes when the log has it.
    Waiting,
    /// The rules do not allow it after what the log says now. Kept until it is dismissed.
    Lost {
        /// The shell's own code.
        code: i32,
        /// For people.
        message: String,
    },
}

/// An entry that a rewind took out of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SalvageRow {
    pub id: SalvageId,
    /// Where it stood.
    pub seq: Seq,
    pub entry: EntryId,
    pub kind: EntryKind,
    pub record: RawRecord,
    pub state: SalvageState,
}

/// The number of an accusation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccusationId(pub u64);

impl fmt::Display for AccusationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a node is accused of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccusationKind {
    /// It lost what it had signed for.
    Rollback,
    /// It signed for two logs.
    Fork,
    /// A member says that it saw another log.
    Seen,
}

impl AccusationKind {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Fork => "fork",
            Self::Seen => "seen",
        }
    }
}

impl AccusationState {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::MadeGood => "made_good",
            Self::Followed => "followed",
            Self::Dismissed => "dismissed",
        }
    }
}

/// What became of an accusation. It is kept in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccusationState {
    Open,
    /// The log holds again what was claimed.
    MadeGood,
    /// The log here gave up what was claimed and follows the node's.
    Followed,
    /// Somebody has seen it.
    Dismissed,
}

/// An accusation of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccusationRow {
    pub kind: AccusationKind,
    pub state: AccusationState,
    /// What the node had claimed, or a member says it saw.
    pub claim: Position,
    /// For people.
    pub detail: String,
    /// What can be shown to others, as the shell encodes it; `None` if the node did not sign what would prove it.
    pub evidence: Option<Vec<u8>>,
    pub at_ms: u64,
}

/// A stretch of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRange {
    /// Before the first entry.
    pub after: Seq,
    /// The last entry.
    pub to: Seq,
}

impl ReadTx<'_> {
    /// Recognised restores of a space, the oldest first, as the shell encodes them.
    ///
    /// # Errors
    /// If the store fails.
    pub fn histories(&self, space: SpaceId) -> Result<Vec<Vec<u8>>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all("SELECT export FROM histories WHERE space_no = ?1 ORDER BY id", [space_no], |row| row.get(0))
    }

    /// The history of the node's copy that the log here follows; `None` before the node has told.
    ///
    /// # Errors
    /// If the store fails.
    pub fn node_history(&self, space: SpaceId) -> Result<Option<HistoryId>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(None) };
        self.db
            .one("SELECT history FROM node_histories WHERE space_no = ?1", [space_no], |row| Ok(HistoryId(row.get(0)?)))
    }

    /// Salvaged entries that wait for the log, in their old order, at most `max`.
    ///
    /// # Errors
    /// If the store fails.
    pub fn salvage_waiting(&self, space: SpaceId, max: usize) -> Result<Vec<SalvageRow>> {
        self.salvage(space, WAITING, None, max)
    }

    /// Salvaged entries that are lost and were not dismissed, in their old order, after `after`, at most `max`.
    ///
    /// # Errors
    /// If the store fails.
    pub fn salvage_lost(&self, space: SpaceId, after: Option<SalvageId>, max: usize) -> Result<Vec<SalvageRow>> {
        self.salvage(space, LOST, after, max)
    }

    /// How many salvaged entries wait, and how many are lost.
    ///
    /// # Errors
    /// If the store fails.
    pub fn salvage_counts(&self, space: SpaceId) -> Result<(u64, u64)> {
        let Some(space_no) = self.space_no(&space)? else { return Ok((0, 0)) };
        let count = |state: i64| {
            self.db.one("SELECT count(*) FROM salvage WHERE space_no = ?1 AND state = ?2", (space_no, state), |row| {
                number(row, 0)
            })
        };
        Ok((count(WAITING)?.unwrap_or_default(), count(LOST)?.unwrap_or_default()))
    }

    /// Whether an entry waits in the salvage.
    ///
    /// # Errors
    /// If the store fails.
    pub fn is_salvage_waiting(&self, space: SpaceId, entry: EntryId) -> Result<bool> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(false) };
        let found = self.db.one(
            "SELECT 1 FROM salvage INDEXED BY salvage_by_entry
             WHERE space_no = ?1 AND id8 = ?2 AND entry = ?3 AND state = 0",
            (space_no, self.db.prefix(entry.prefix8()), entry.as_bytes()),
            |_| Ok(()),
        )?;
        Ok(found.is_some())
    }

    fn salvage(&self, space: SpaceId, state: i64, after: Option<SalvageId>, max: usize) -> Result<Vec<SalvageRow>> {
        let after = integer("salvage", after.map_or(0, |id| id.0))?;
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT id, seq, kind, entry, version, body, signature, payload, state, code, message FROM salvage
             WHERE space_no = ?1 AND state = ?2 AND id > ?3 ORDER BY id LIMIT ?4",
            (space_no, state, after, limit(max)),
            read_salvage,
        )
    }

    /// Every accusation of a space, the oldest first.
    ///
    /// # Errors
    /// If the store fails.
    pub fn accusations(&self, space: SpaceId) -> Result<Vec<(AccusationId, AccusationRow)>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT id, kind, state, seq, chain, detail, evidence, at_ms FROM accusations WHERE space_no = ?1 ORDER BY id",
            [space_no],
            read_accusation,
        )
    }

    /// Own writes that stand in a stretch of the log, with their places, in log order.
    ///
    /// # Errors
    /// If the store fails.
    pub fn writes_in(&self, space: SpaceId, range: LogRange) -> Result<Vec<(WriteId, Seq)>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        let (after, to) = (integer("log position", range.after.0)?, integer("log position", range.to.0)?);
        self.db.all(
            "SELECT id, seq FROM writes WHERE space_no = ?1 AND state IN (1, 3) AND seq > ?2 AND seq <= ?3 ORDER BY seq",
            (space_no, after, to),
            |row| Ok((WriteId(number(row, 0)?), seq(row, 1)?)),
        )
    }
}

impl WriteTx<'_> {
    /// Keeps a recognised restore for good. One that is known already is not kept twice.
    ///
    /// # Errors
    /// If the store fails.
    pub fn put_history(&mut self, space: SpaceId, new: HistoryId, export: &[u8]) -> Result<()> {
        let space_no = self.intern(&space)?;
        self.db.execute(
            "INSERT INTO histories (space_no, new, export) VALUES (?1, ?2, ?3) ON CONFLICT (space_no, new) DO NOTHING",
            (space_no, new.0, export),
        )?;
        self.count_bytes(export.len());
        Ok(())
    }

    /// The log here follows this history of the node's copy.
    ///
    /// # Errors
    /// If the store fails.
    pub fn set_node_history(&mut self, space: SpaceId, history: HistoryId) -> Result<()> {
        let space_no = self.intern(&space)?;
        self.db.execute(
            "INSERT INTO node_histories VALUES (?1, ?2) ON CONFLICT (space_no) DO UPDATE SET history = excluded.history",
            (space_no, history.0),
        )?;
        Ok(())
    }

    /// The log has an entry: it does not wait in the salvage any more, and is not lost. True if it was there.
    ///
    /// # Errors
    /// If the store fails.
    pub fn take_from_salvage(&mut self, space: SpaceId, entry: EntryId) -> Result<bool> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(false) };
        let taken = self.db.execute(
            "DELETE FROM salvage WHERE space_no = ?1 AND id8 = ?2 AND entry = ?3",
            (space_no, self.db.prefix(entry.prefix8()), entry.as_bytes()),
        )?;
        Ok(taken > 0)
    }

    /// A salvaged entry is lost, with the reason.
    ///
    /// # Errors
    /// If the store fails.
    pub fn lose_salvage(&mut self, id: SalvageId, code: i32, message: &str) -> Result<()> {
        self.db.execute(
            "UPDATE salvage SET state = 1, code = ?2, message = ?3 WHERE id = ?1",
            (integer("salvage", id.0)?, code, message),
        )?;
        Ok(())
    }

    /// Forgets a salvaged entry of a space, with its bytes. True if it was there.
    ///
    /// # Errors
    /// If the store fails.
    pub fn forget_salvage(&mut self, space: SpaceId, id: SalvageId) -> Result<bool> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(false) };
        let number = integer("salvage", id.0)?;
        Ok(self.db.execute("DELETE FROM salvage WHERE id = ?1 AND space_no = ?2", (number, space_no))? > 0)
    }

    /// Keeps an accusation; its number.
    ///
    /// # Errors
    /// If the store fails.
    pub fn put_accusation(&mut self, space: SpaceId, row: &AccusationRow) -> Result<AccusationId> {
        let space_no = self.intern(&space)?;
        let id = self.db.insert(
            "INSERT INTO accusations (space_no, kind, state, seq, chain, detail, evidence, at_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            (
                space_no,
                accusation_kind_code(row.kind),
                accusation_state_code(row.state),
                integer("log position", row.claim.seq.0)?,
                row.claim.chain.as_bytes(),
                &row.detail,
                row.evidence.as_deref(),
                integer("time", row.at_ms)?,
            ),
        )?;
        self.count_bytes(row.evidence.as_ref().map_or(0, Vec::len));
        Ok(AccusationId(id.unsigned_abs()))
    }

    /// Replaces what is kept of an accusation of a space: its state, detail and evidence. True if it is there.
    ///
    /// # Errors
    /// If the store fails.
    pub fn update_accusation(&mut self, space: SpaceId, id: AccusationId, row: &AccusationRow) -> Result<bool> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(false) };
        let changed = self.db.execute(
            "UPDATE accusations SET state = ?3, detail = ?4, evidence = ?5 WHERE id = ?1 AND space_no = ?2",
            (
                integer("accusation", id.0)?,
                space_no,
                accusation_state_code(row.state),
                &row.detail,
                row.evidence.as_deref(),
            ),
        )?;
        Ok(changed > 0)
    }

    /// Gives an own write its bytes back, whatever state it was in: the node lost it, and it has to go out again.
    ///
    /// # Errors
    /// [`StoreError::UnknownWrite`], or if the store fails.
    pub fn revive_write(
        &mut self,
        id: WriteId,
        tree: TreeId,
        root: Option<&RawRecord>,
        record: &RawRecord,
        local: &[u8],
        state: &WriteState,
    ) -> Result<()> {
        let changed = self.db.execute(
            "UPDATE writes SET state = 0, tree8 = ?2, tree = ?3, change8 = ?4, root = ?5, record = ?6, local = ?7
             WHERE id = ?1",
            (
                integer("write", id.0)?,
                self.db.prefix(tree.prefix8()),
                tree.as_bytes(),
                self.db.prefix(record.id().prefix8()),
                root.map(RawRecord::to_vec),
                record.to_vec(),
                local,
            ),
        )?;
        if changed == 0 {
            return Err(StoreError::UnknownWrite { id });
        }
        self.count_bytes(record.wire_bytes() + local.len());
        self.set_write_state(id, state)
    }
}

const WAITING: i64 = 0;
const LOST: i64 = 1;

fn read_salvage(row: &Row<'_>) -> rusqlite::Result<SalvageRow> {
    let kind = kind_of_code(row.get(2)?).map_err(|e| misfit(2, e))?;
    let record = RawRecord {
        kind,
        version: row.get(4)?,
        body: blob(row, 5)?,
        signature: blob(row, 6)?,
        payload: optional_blob(row, 7)?,
    };
    let state = match row.get::<_, i64>(8)? {
        WAITING => SalvageState::Waiting,
        LOST => SalvageState::Lost { code: row.get(9)?, message: row.get(10)? },
        other => return Err(misfit(8, format!("{other} is no state of a salvaged entry"))),
    };
    Ok(SalvageRow {
        id: SalvageId(number(row, 0)?),
        seq: seq(row, 1)?,
        entry: EntryId::from_hash(hash(row, 3)?),
        kind: entry_kind(kind).map_err(|e| misfit(2, e))?,
        record,
        state,
    })
}

fn read_accusation(row: &Row<'_>) -> rusqlite::Result<(AccusationId, AccusationRow)> {
    let kind = match row.get::<_, i64>(1)? {
        1 => AccusationKind::Rollback,
        2 => AccusationKind::Fork,
        3 => AccusationKind::Seen,
        other => return Err(misfit(1, format!("{other} is no kind of accusation"))),
    };
    let state = match row.get::<_, i64>(2)? {
        0 => AccusationState::Open,
        1 => AccusationState::MadeGood,
        2 => AccusationState::Followed,
        3 => AccusationState::Dismissed,
        other => return Err(misfit(2, format!("{other} is no state of an accusation"))),
    };
    let claim = Position { seq: seq(row, 3)?, chain: Chain::from_hash(hash(row, 4)?) };
    let id = AccusationId(number(row, 0)?);
    let (detail, evidence, at_ms) = (row.get(5)?, row.get(6)?, number(row, 7)?);
    Ok((id, AccusationRow { kind, state, claim, detail, evidence, at_ms }))
}

const fn accusation_kind_code(kind: AccusationKind) -> i64 {
    match kind {
        AccusationKind::Rollback => 1,
        AccusationKind::Fork => 2,
        AccusationKind::Seen => 3,
    }
}

const fn accusation_state_code(state: AccusationState) -> i64 {
    match state {
        AccusationState::Open => 0,
        AccusationState::MadeGood => 1,
        AccusationState::Followed => 2,
        AccusationState::Dismissed => 3,
    }
}
