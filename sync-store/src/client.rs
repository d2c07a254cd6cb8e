//! A client's own rows: local writes on their way, what its node has, the projection, and what cannot be shown.
//!
//! The methods stand on [`ReadTx`] and [`WriteTx`]; a node's store has the same tables and leaves them empty.

use std::fmt;

use bytes::Bytes;
use rusqlite::Row;
use sync_core::ids::{ChangeId, Seq, SpaceId, TreeId};
use sync_core::record::RawRecord;

use crate::db::{hash, integer, misfit, number, seq};
use crate::error::StoreError;
use crate::read::{ReadTx, limit, optional_blob};
use crate::write::WriteTx;

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The number of a local write. Grows, and is never given twice in the life of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why the rules or the node refused a local write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalRow {
    /// The shell's own code.
    pub code: i32,
    /// For people.
    pub message: String,
    /// The end of the log that it was judged at.
    pub log_seq: Seq,
}

/// How far a local write is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteState {
    /// Not in the log yet.
    Pending {
        /// How often it was sent.
        attempts: u32,
        /// The last answer, if it was a no that may pass.
        last_refusal: Option<RefusalRow>,
        /// Not before this time, milliseconds since 1970.
        next_retry_ms: Option<u64>,
    },
    /// In the log here; the node has not said that its copy is on disk.
    Logged {
        /// Where.
        seq: Seq,
    },
    /// On the node's disk. The bytes of the write are dropped.
    Durable {
        /// Where.
        seq: Seq,
    },
    /// Refused for good, and shown until it is dismissed.
    Refused(RefusalRow),
    /// Nothing comes of it any more: it was refused, and seen; or the node lost it after a purge had dropped its content. The
    /// bytes of the write are dropped.
    Dismissed,
}

/// A local write whose bytes are still here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingWrite {
    pub id: WriteId,
    pub space: SpaceId,
    pub tree: TreeId,
    /// The tree's root, if this write begins the tree.
    pub root: Option<RawRecord>,
    pub record: RawRecord,
    /// Opaque here: what its author needs to make the record again.
    pub local: Vec<u8>,
    pub state: WriteState,
}

/// Whether the node knows a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Registration {
    #[default]
    Unregistered,
    Registered,
}

/// What a client knows of its node's copy of a space.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeState {
    pub registration: Registration,
    /// What the node said is on its disk.
    pub durable_seq: Seq,
    /// The last receipt, as received.
    pub receipt: Option<Vec<u8>>,
}

/// The materialised state of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRow {
    pub tree: TreeId,
    pub type_tag: [u8; 16],
    /// Opaque here, and encrypted.
    pub state: Vec<u8>,
    /// The log entry that it includes.
    pub at: Seq,
}

/// Why a change of the log is not shown. The first three are settled: they do not hold up "synced".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerdictKind {
    /// Its author's fault: it does not open, or is not what it claims.
    Void,
    /// This reader holds no key of its epoch.
    Hidden,
    /// In a tree that is not the object's.
    Misplaced,
    /// The node's fault: it fails the rules.
    Quarantined,
    /// The node sent it without its content, and nothing in the log up to here says that the content was dropped.
    Missing,
    /// This program's fault: it panicked over it.
    Broken,
}

/// A settled change that cannot be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictRow {
    pub kind: VerdictKind,
    /// For people.
    pub detail: String,
    /// Where the change stands.
    pub seq: Seq,
}

// Numbers of the column `state`. Below `SETTLED` the bytes are kept and the indexes hold the row.
pub(crate) const PENDING: i64 = 0;
pub(crate) const LOGGED: i64 = 1;
pub(crate) const REFUSED: i64 = 2;
const DURABLE: i64 = 3;
const DISMISSED: i64 = 4;
const SETTLED: i64 = DURABLE;

/// The columns of a state, from column 0; see [`read_state`].
macro_rules! state_columns {
    () => {
        "state, seq, attempts, next_retry_ms, refusal_code, refusal_message, refusal_seq"
    };
}

/// The columns of a write, from column 0; see [`read_write`].
macro_rules! write_columns {
    () => {
        concat!("SELECT ", state_columns!(), ", id, tree, root, record, local FROM writes ")
    };
}

impl ReadTx<'_> {
    /// Writes that are not in the log yet, in the order they were made, after `after`, at most `max`.
    ///
    /// # Errors
    /// If the store fails.
    pub fn pending(&self, space: SpaceId, after: Option<WriteId>, max: usize) -> Result<Vec<PendingWrite>> {
        const SQL: &str = concat!(
            write_columns!(),
            "INDEXED BY writes_by_state WHERE space_no = ?1 AND state < 3 AND state = 0 AND seq IS NULL AND id > ?2
             ORDER BY id LIMIT ?3"
        );
        let after = integer("write", after.map_or(0, |id| id.0))?;
        self.writes(space, SQL, |space_no| (space_no, after, limit(max)))
    }

    /// How many writes are not in the log yet.
    ///
    /// # Errors
    /// If the store fails.
    pub fn pending_count(&self, space: SpaceId) -> Result<u64> {
        const SQL: &str = "SELECT count(*) FROM writes WHERE space_no = ?1 AND state < 3 AND state = 0";
        let Some(space_no) = self.space_no(&space)? else { return Ok(0) };
        Ok(self.db.one(SQL, [space_no], |row| number(row, 0))?.unwrap_or_default())
    }

    /// Writes to one tree that are not in the log yet, in the order they were made.
    ///
    /// # Errors
    /// If the store fails.
    pub fn pending_of_tree(&self, space: SpaceId, tree: TreeId) -> Result<Vec<PendingWrite>> {
        const SQL: &str = concat!(
            write_columns!(),
            "INDEXED BY writes_by_tree WHERE space_no = ?1 AND state < 3 AND tree8 = ?2 AND tree = ?3 AND state = 0 ORDER BY id"
        );
        let prefix = self.db.prefix(tree.prefix8());
        self.writes(space, SQL, |space_no| (space_no, prefix, *tree.as_bytes()))
    }

    /// The local write that made a change, as long as its bytes are here (pending, logged or refused).
    ///
    /// # Errors
    /// If the store fails.
    pub fn pending_by_change(&self, space: SpaceId, change: ChangeId) -> Result<Option<PendingWrite>> {
        const SQL: &str =
            concat!(write_columns!(), "INDEXED BY writes_by_change WHERE space_no = ?1 AND state < 3 AND change8 = ?2");
        let prefix = self.db.prefix(change.prefix8());
        let found = self.writes(space, SQL, |space_no| (space_no, prefix))?;
        Ok(found.into_iter().find(|w| ChangeId::from(w.record.id()) == change))
    }

    /// A local write whose bytes are here: pending, logged or refused.
    ///
    /// # Errors
    /// If the store fails.
    pub fn open_write(&self, space: SpaceId, id: WriteId) -> Result<Option<PendingWrite>> {
        const SQL: &str = concat!(write_columns!(), "WHERE id = ?2 AND space_no = ?1 AND state < 3");
        let id = integer("write", id.0)?;
        Ok(self.writes(space, SQL, |space_no| (space_no, id))?.pop())
    }

    /// Writes that were refused for good and not dismissed yet.
    ///
    /// # Errors
    /// If the store fails.
    pub fn refused(&self, space: SpaceId) -> Result<Vec<PendingWrite>> {
        const SQL: &str = concat!(
            write_columns!(),
            "INDEXED BY writes_by_state WHERE space_no = ?1 AND state < 3 AND state = 2 AND seq IS NULL ORDER BY id"
        );
        self.writes(space, SQL, |space_no| [space_no])
    }

    /// How far a write is; `None` for a number that was never given.
    ///
    /// # Errors
    /// If the store fails.
    pub fn write_state(&self, space: SpaceId, id: WriteId) -> Result<Option<WriteState>> {
        const SQL: &str = concat!("SELECT ", state_columns!(), " FROM writes WHERE id = ?1 AND space_no = ?2");
        let Some(space_no) = self.space_no(&space)? else { return Ok(None) };
        self.db.one(SQL, (integer("write", id.0)?, space_no), read_state)
    }

    /// The state of a write of any space.
    fn state_of(&self, id: WriteId) -> Result<Option<WriteState>> {
        const SQL: &str = concat!("SELECT ", state_columns!(), " FROM writes WHERE id = ?1");
        self.db.one(SQL, [integer("write", id.0)?], read_state)
    }

    fn writes<P: rusqlite::Params>(
        &self,
        space: SpaceId,
        sql: &'static str,
        params: impl FnOnce(i64) -> P,
    ) -> Result<Vec<PendingWrite>> {
        match self.space_no(&space)? {
            None => Ok(Vec::new()),
            Some(space_no) => self.db.all(sql, params(space_no), |row| read_write(space, row)),
        }
    }

    /// What is known of the node's copy; the default if nothing is.
    ///
    /// # Errors
    /// If the store fails.
    pub fn node_state(&self, space: SpaceId) -> Result<NodeState> {
        const SQL: &str = "SELECT registered, durable_seq, receipt FROM node_states WHERE space_no = ?1";
        let Some(space_no) = self.space_no(&space)? else { return Ok(NodeState::default()) };
        let found = self.db.one(SQL, [space_no], |row| {
            let registration = match row.get::<_, i64>(0)? {
                0 => Registration::Unregistered,
                1 => Registration::Registered,
                other => return Err(misfit(0, format!("{other} is no registration"))),
            };
            Ok(NodeState { registration, durable_seq: seq(row, 1)?, receipt: row.get(2)? })
        })?;
        Ok(found.unwrap_or_default())
    }

    /// The object of a tree.
    ///
    /// # Errors
    /// If the store fails.
    pub fn object(&self, space: SpaceId, tree: TreeId) -> Result<Option<ObjectRow>> {
        let Some(space_no) = self.log_no(&space)? else { return Ok(None) };
        self.db.one(
            "SELECT o.type_tag, o.state, o.at FROM trees t JOIN objects o USING (tree_no)
             WHERE t.space_no = ?1 AND t.id8 = ?2 AND t.id = ?3",
            (space_no, self.db.prefix(tree.prefix8()), tree.as_bytes()),
            |row| Ok(ObjectRow { tree, type_tag: row.get(0)?, state: row.get(1)?, at: seq(row, 2)? }),
        )
    }

    /// Objects of one type by tree id, after `after`, at most `max`.
    ///
    /// # Errors
    /// If the store fails.
    pub fn objects(
        &self,
        space: SpaceId,
        type_tag: [u8; 16],
        after: Option<TreeId>,
        max: usize,
    ) -> Result<Vec<ObjectRow>> {
        let Some(space_no) = self.log_no(&space)? else { return Ok(Vec::new()) };
        let (prefix, id) = after.as_ref().map_or((i64::MIN, &[][..]), |t| (self.db.prefix(t.prefix8()), t.as_bytes()));
        self.db.all(
            "SELECT t.id, o.state, o.at FROM objects o INDEXED BY objects_by_type CROSS JOIN trees t USING (tree_no)
             WHERE o.space_no = ?1 AND o.type_tag = ?2 AND o.tree8 >= ?3 AND (o.tree8 > ?3 OR t.id > ?4)
             ORDER BY o.tree8, t.id LIMIT ?5",
            (space_no, type_tag, prefix, id, limit(max)),
            |row| {
                let tree = TreeId::from_hash(hash(row, 0)?);
                Ok(ObjectRow { tree, type_tag, state: row.get(1)?, at: seq(row, 2)? })
            },
        )
    }

    /// Objects of all types by tree id, after `after`, at most `max`.
    ///
    /// # Errors
    /// If the store fails.
    pub fn all_objects(&self, space: SpaceId, after: Option<TreeId>, max: usize) -> Result<Vec<ObjectRow>> {
        let Some(space_no) = self.log_no(&space)? else { return Ok(Vec::new()) };
        let (prefix, id) = after.as_ref().map_or((i64::MIN, &[][..]), |t| (self.db.prefix(t.prefix8()), t.as_bytes()));
        self.db.all(
            "SELECT t.id, o.type_tag, o.state, o.at FROM trees t INDEXED BY trees_by_id CROSS JOIN objects o USING (tree_no)
             WHERE t.space_no = ?1 AND t.id8 >= ?2 AND (t.id8 > ?2 OR t.id > ?3) ORDER BY t.id8, t.id LIMIT ?4",
            (space_no, prefix, id, limit(max)),
            |row| {
                let tree = TreeId::from_hash(hash(row, 0)?);
                Ok(ObjectRow { tree, type_tag: row.get(1)?, state: row.get(2)?, at: seq(row, 3)? })
            },
        )
    }

    /// The tags of all types that have objects here.
    ///
    /// # Errors
    /// If the store fails.
    pub fn object_types(&self, space: SpaceId) -> Result<Vec<[u8; 16]>> {
        let Some(space_no) = self.log_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT DISTINCT type_tag FROM objects INDEXED BY objects_by_type WHERE space_no = ?1",
            (space_no,),
            |row| row.get(0),
        )
    }

    /// How many objects there are, of one type or of all.
    ///
    /// # Errors
    /// If the store fails.
    pub fn object_count(&self, space: SpaceId, type_tag: Option<[u8; 16]>) -> Result<u64> {
        let Some(space_no) = self.log_no(&space)? else { return Ok(0) };
        let found = match type_tag {
            None => self.db.one("SELECT count(*) FROM objects WHERE space_no = ?1", [space_no], |r| number(r, 0)),
            Some(tag) => self.db.one(
                "SELECT count(*) FROM objects WHERE space_no = ?1 AND type_tag = ?2",
                (space_no, tag),
                |r| number(r, 0),
            ),
        };
        Ok(found?.unwrap_or_default())
    }

    /// How much of the log the objects include.
    ///
    /// # Errors
    /// If the store fails.
    pub fn projected_to(&self, space: SpaceId) -> Result<Seq> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Seq::ZERO) };
        let found = self.db.one("SELECT seq FROM projections WHERE space_no = ?1", [space_no], |row| seq(row, 0))?;
        Ok(found.unwrap_or_default())
    }

    /// Every settled change that cannot be shown, by tree and change id.
    ///
    /// # Errors
    /// If the store fails.
    pub fn verdicts(&self, space: SpaceId) -> Result<Vec<(TreeId, ChangeId, VerdictRow)>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT tree, change_id, kind, detail, seq FROM verdicts WHERE space_no = ?1 ORDER BY tree, change_id",
            [space_no],
            |row| {
                let verdict = VerdictRow { kind: verdict_of_code(row)?, detail: row.get(3)?, seq: seq(row, 4)? };
                Ok((TreeId::from_hash(hash(row, 0)?), ChangeId::from_hash(hash(row, 1)?), verdict))
            },
        )
    }

    /// How many changes of a tree, up to a place in the log, cannot be read now and may be readable later: for want of a key, or of
    /// their content.
    ///
    /// # Errors
    /// If the store fails.
    pub fn unread_changes(&self, space: SpaceId, tree: TreeId, until: Seq) -> Result<u64> {
        const SQL: &str =
            "SELECT count(*) FROM verdicts WHERE space_no = ?1 AND tree = ?2 AND seq <= ?3 AND kind IN (2, 5)";
        let Some(space_no) = self.space_no(&space)? else { return Ok(0) };
        let until = integer("log position", until.0)?;
        Ok(self.db.one(SQL, (space_no, tree.as_bytes(), until), |row| number(row, 0))?.unwrap_or_default())
    }
}

impl WriteTx<'_> {
    /// Keeps a local write until the node has it. `root` stands with the first change of a tree.
    ///
    /// # Errors
    /// If the store fails.
    pub fn put_pending(
        &mut self,
        space: SpaceId,
        tree: TreeId,
        root: Option<&RawRecord>,
        record: &RawRecord,
        local: &[u8],
    ) -> Result<WriteId> {
        let space_no = self.intern(&space)?;
        let id = self.db.insert(
            "INSERT INTO writes (space_no, state, tree8, tree, change8, root, record, local)
             VALUES (?1, 0, ?2, ?3, ?4, ?5, ?6, ?7)",
            (
                space_no,
                self.db.prefix(tree.prefix8()),
                tree.as_bytes(),
                self.db.prefix(record.id().prefix8()),
                root.map(RawRecord::to_vec),
                record.to_vec(),
                local,
            ),
        )?;
        self.count_bytes(record.wire_bytes() + local.len());
        Ok(WriteId(id.unsigned_abs()))
    }

    /// Replaces the records of a local write whose bytes are still here; its state stays as it is.
    ///
    /// # Errors
    /// [`StoreError::UnknownWrite`], [`StoreError::WriteSettled`], or if the store fails.
    pub fn rebuild_pending(&mut self, id: WriteId, root: Option<&RawRecord>, record: &RawRecord) -> Result<()> {
        let changed = self.db.execute(
            "UPDATE writes SET root = ?2, record = ?3, change8 = ?4 WHERE id = ?1 AND state < 3",
            (
                integer("write", id.0)?,
                root.map(RawRecord::to_vec),
                record.to_vec(),
                self.db.prefix(record.id().prefix8()),
            ),
        )?;
        self.count_bytes(record.wire_bytes());
        self.require_changed(id, changed)
    }

    /// Moves a local write to another state. `Durable` and `Dismissed` drop its bytes for good.
    ///
    /// # Errors
    /// [`StoreError::UnknownWrite`], [`StoreError::WriteSettled`] if its bytes are gone and the new state needs them, or if
    /// the store fails.
    pub fn set_write_state(&mut self, id: WriteId, state: &WriteState) -> Result<()> {
        let columns = StateColumns::of(state)?;
        let changed = self.db.execute(
            "UPDATE writes SET state = ?2, seq = ?3, attempts = ?4, next_retry_ms = ?5, refusal_code = ?6,
             refusal_message = ?7, refusal_seq = ?8 WHERE id = ?1 AND (state < 3 OR ?2 >= 3)",
            (
                integer("write", id.0)?,
                columns.state,
                columns.seq,
                columns.attempts,
                columns.next_retry_ms,
                columns.refusal.map(|r| r.code),
                columns.refusal.map(|r| r.message.as_str()),
                columns.refusal.map(|r| integer("log position", r.log_seq.0)).transpose()?,
            ),
        )?;
        self.require_changed(id, changed)?;
        if columns.state >= SETTLED {
            self.db.execute(
                "UPDATE writes SET tree8 = NULL, tree = NULL, change8 = NULL, root = NULL, record = NULL, local = NULL
                 WHERE id = ?1",
                [integer("write", id.0)?],
            )?;
        }
        Ok(())
    }

    /// Every logged write up to `durable` becomes durable; how many did.
    ///
    /// # Errors
    /// If the store fails.
    pub fn settle_durable(&mut self, space: SpaceId, durable: Seq) -> Result<usize> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(0) };
        self.db.execute(
            "UPDATE writes SET state = 3, attempts = 0, next_retry_ms = NULL, refusal_code = NULL, refusal_message = NULL,
             refusal_seq = NULL, tree8 = NULL, tree = NULL, change8 = NULL, root = NULL, record = NULL, local = NULL
             WHERE space_no = ?1 AND state < 3 AND state = 1 AND seq <= ?2",
            (space_no, integer("log position", durable.0)?),
        )
    }

    fn require_changed(&self, id: WriteId, changed: usize) -> Result<()> {
        if changed > 0 {
            return Ok(());
        }
        match self.state_of(id)? {
            None => Err(StoreError::UnknownWrite { id }),
            Some(_) => Err(StoreError::WriteSettled { id }),
        }
    }

    /// Keeps what the node said of its copy.
    ///
    /// # Errors
    /// If the store fails.
    pub fn put_node_state(&mut self, space: SpaceId, state: &NodeState) -> Result<()> {
        let space_no = self.intern(&space)?;
        let registered = match state.registration {
            Registration::Unregistered => 0,
            Registration::Registered => 1,
        };
        self.db.execute(
            "INSERT INTO node_states VALUES (?1, ?2, ?3, ?4) ON CONFLICT (space_no) DO UPDATE
             SET registered = excluded.registered, durable_seq = excluded.durable_seq, receipt = excluded.receipt",
            (space_no, registered, integer("log position", state.durable_seq.0)?, state.receipt.as_deref()),
        )?;
        Ok(())
    }

    /// Keeps the state of an object. Its tree is in the log: the projection holds logged changes only.
    ///
    /// # Errors
    /// [`StoreError::UnknownSpace`], [`StoreError::UnknownTree`], or if the store fails.
    pub fn put_object(&mut self, space: SpaceId, object: &ObjectRow) -> Result<()> {
        let (space_no, tree_no) = self.object_key(space, object.tree)?;
        let at = integer("log position", object.at.0)?;
        self.count_bytes(object.state.len());
        // The usual case leaves the index alone.
        let changed = self.db.execute(
            "UPDATE objects SET state = ?2, at = ?3 WHERE tree_no = ?1 AND type_tag = ?4",
            (tree_no, &object.state, at, object.type_tag),
        )?;
        if changed > 0 {
            return Ok(());
        }
        self.db.execute(
            "INSERT INTO objects VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (tree_no) DO UPDATE
             SET type_tag = excluded.type_tag, state = excluded.state, at = excluded.at",
            (tree_no, space_no, object.type_tag, self.db.prefix(object.tree.prefix8()), &object.state, at),
        )?;
        Ok(())
    }

    /// Forgets the object of a tree.
    ///
    /// # Errors
    /// [`StoreError::UnknownSpace`], [`StoreError::UnknownTree`], or if the store fails.
    pub fn delete_object(&mut self, space: SpaceId, tree: TreeId) -> Result<()> {
        let (_, tree_no) = self.object_key(space, tree)?;
        self.db.execute("DELETE FROM objects WHERE tree_no = ?1", [tree_no])?;
        Ok(())
    }

    fn object_key(&self, space: SpaceId, tree: TreeId) -> Result<(i64, i64)> {
        let space_no = self.log_no(&space)?.ok_or(StoreError::UnknownSpace { space })?;
        let tree_no = self.tree_no(space_no, &tree)?.ok_or(StoreError::UnknownTree { space, tree })?;
        Ok((space_no, tree_no))
    }

    /// The objects include the log up to here.
    ///
    /// # Errors
    /// If the store fails.
    pub fn set_projected(&mut self, space: SpaceId, seq: Seq) -> Result<()> {
        let space_no = self.intern(&space)?;
        self.db.execute(
            "INSERT INTO projections VALUES (?1, ?2) ON CONFLICT (space_no) DO UPDATE SET seq = excluded.seq",
            (space_no, integer("log position", seq.0)?),
        )?;
        Ok(())
    }

    /// Keeps why a change cannot be shown; replaces an earlier verdict.
    ///
    /// # Errors
    /// If the store fails.
    pub fn put_verdict(&mut self, space: SpaceId, tree: TreeId, change: ChangeId, verdict: &VerdictRow) -> Result<()> {
        let space_no = self.intern(&space)?;
        let at = integer("log position", verdict.seq.0)?;
        self.db.execute(
            "INSERT INTO verdicts VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (space_no, tree, change_id) DO UPDATE
             SET kind = excluded.kind, detail = excluded.detail, seq = excluded.seq",
            (space_no, tree.as_bytes(), change.as_bytes(), verdict_code(verdict.kind), &verdict.detail, at),
        )?;
        Ok(())
    }

    /// Forgets a verdict: a key came, and the change can be shown.
    ///
    /// # Errors
    /// If the store fails.
    pub fn delete_verdict(&mut self, space: SpaceId, tree: TreeId, change: ChangeId) -> Result<()> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(()) };
        self.db.execute(
            "DELETE FROM verdicts WHERE space_no = ?1 AND tree = ?2 AND change_id = ?3",
            (space_no, tree.as_bytes(), change.as_bytes()),
        )?;
        Ok(())
    }
}

/// A state as its columns.
struct StateColumns<'a> {
    state: i64,
    seq: Option<i64>,
    attempts: u32,
    next_retry_ms: Option<i64>,
    refusal: Option<&'a RefusalRow>,
}

impl<'a> StateColumns<'a> {
    fn of(state: &'a WriteState) -> Result<Self> {
        let bare = Self { state: PENDING, seq: None, attempts: 0, next_retry_ms: None, refusal: None };
        Ok(match state {
            WriteState::Pending { attempts, last_refusal, next_retry_ms } => Self {
                attempts: *attempts,
                next_retry_ms: next_retry_ms.map(|ms| integer("time", ms)).transpose()?,
                refusal: last_refusal.as_ref(),
                ..bare
            },
            WriteState::Logged { seq } => Self { state: LOGGED, seq: Some(integer("log position", seq.0)?), ..bare },
            WriteState::Durable { seq } => Self { state: DURABLE, seq: Some(integer("log position", seq.0)?), ..bare },
            WriteState::Refused(refusal) => Self { state: REFUSED, refusal: Some(refusal), ..bare },
            WriteState::Dismissed => Self { state: DISMISSED, ..bare },
        })
    }
}

pub(crate) fn read_state(row: &Row<'_>) -> rusqlite::Result<WriteState> {
    match row.get::<_, i64>(0)? {
        PENDING => Ok(WriteState::Pending {
            attempts: row.get(2)?,
            last_refusal: read_refusal(row)?,
            next_retry_ms: row.get::<_, Option<i64>>(3)?.map(|_| number(row, 3)).transpose()?,
        }),
        LOGGED => Ok(WriteState::Logged { seq: seq(row, 1)? }),
        REFUSED => read_refusal(row)?.map(WriteState::Refused).ok_or_else(|| misfit(4, "a refusal without its reason")),
        DURABLE => Ok(WriteState::Durable { seq: seq(row, 1)? }),
        DISMISSED => Ok(WriteState::Dismissed),
        other => Err(misfit(0, format!("{other} is no state of a write"))),
    }
}

fn read_refusal(row: &Row<'_>) -> rusqlite::Result<Option<RefusalRow>> {
    let Some(code) = row.get(4)? else { return Ok(None) };
    Ok(Some(RefusalRow { code, message: row.get(5)?, log_seq: seq(row, 6)? }))
}

fn read_write(space: SpaceId, row: &Row<'_>) -> rusqlite::Result<PendingWrite> {
    let record = |column, bytes: &Bytes| RawRecord::from_slice(bytes).map_err(|e| misfit(column, e));
    Ok(PendingWrite {
        id: WriteId(number(row, 7)?),
        space,
        tree: TreeId::from_hash(hash(row, 8)?),
        root: optional_blob(row, 9)?.map(|bytes| record(9, &bytes)).transpose()?,
        record: record(10, &crate::db::blob(row, 10)?)?,
        local: row.get(11)?,
        state: read_state(row)?,
    })
}

pub(crate) const fn verdict_code(kind: VerdictKind) -> i64 {
    match kind {
        VerdictKind::Void => 1,
        VerdictKind::Hidden => 2,
        VerdictKind::Misplaced => 3,
        VerdictKind::Quarantined => 4,
        VerdictKind::Missing => 5,
        VerdictKind::Broken => 6,
    }
}

pub(crate) fn verdict_of_code(row: &Row<'_>) -> rusqlite::Result<VerdictKind> {
    match row.get::<_, i64>(2)? {
        1 => Ok(VerdictKind::Void),
        2 => Ok(VerdictKind::Hidden),
        3 => Ok(VerdictKind::Misplaced),
        4 => Ok(VerdictKind::Quarantined),
        5 => Ok(VerdictKind::Missing),
        6 => Ok(VerdictKind::Broken),
        other => Err(misfit(2, format!("{other} is no verdict"))),
    }
}
