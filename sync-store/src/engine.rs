//! A client's rows about its sync: what it still wants, what its peers have, what was fetched ahead of the tail; and counts
//! and pages of the rows that status is made of, so that nothing has to be read whole.

use std::collections::BTreeSet;

use bytes::Bytes;
use rusqlite::Row;
use sync_core::ids::{ChangeId, EntryId, Seq, SpaceId, TreeId};
use sync_core::record::RawRecord;

use crate::client::{
    LOGGED, PENDING, REFUSED, VerdictKind, VerdictRow, WriteId, WriteState, read_state, verdict_code, verdict_of_code,
};
use crate::db::{blob, hash, integer, misfit, number, seq};
use crate::error::StoreError;
use crate::read::{ReadTx, limit};
use crate::trees::encode_heads;
use crate::write::WriteTx;

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What is wanted of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SyncItemKind {
    /// Its entries, before the tail brings them.
    Fetch,
    /// Content of logged changes that came without it.
    Content,
    /// Its entries, judged again.
    Judge,
}

/// Something that a client fetches by itself, for as long as it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncItem {
    pub tree: TreeId,
    pub kind: SyncItemKind,
    /// The least number goes first.
    pub priority: u8,
    pub attempts: u32,
    /// The shell's code of the last failure, and its text for people.
    pub error: Option<(i32, String)>,
    /// Not before this time, milliseconds since 1970.
    pub next_retry_ms: u64,
    pub since_ms: u64,
}

/// Items that are due, and when the next one will be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncLoad {
    pub due: Vec<SyncItem>,
    pub next_ms: Option<u64>,
}

/// Who a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerKind {
    Node,
    Client,
}

/// The last time that a comparison with a peer found both equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRow {
    pub peer: [u8; 32],
    pub kind: PeerKind,
    pub confirmed: Seq,
    pub confirmed_ms: u64,
}

/// Heads that a peer told of and that are not the logged ones here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHeads {
    pub peer: [u8; 32],
    pub tree: TreeId,
    pub heads: Vec<ChangeId>,
    pub seq: Seq,
    pub told_ms: u64,
}

/// How heads that a peer told compare to the logged ones here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadsTold {
    Equal,
    /// It told something else before, or nothing.
    Apart,
    ApartAsBefore,
}

/// An entry that was fetched before the tail brought it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AheadRow {
    pub seq: Seq,
    /// `None` for an ACL record.
    pub tree: Option<TreeId>,
    pub id: EntryId,
    pub record: RawRecord,
}

/// Local writes by what holds them up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WriteClass {
    /// Never answered.
    Pending,
    /// Answered with a no that may pass.
    Retrying,
    /// In the log, not known to be on the node's disk.
    Logged,
    Refused,
}

/// How many writes of one class there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteCount {
    pub class: WriteClass,
    pub count: u64,
    pub attempts_max: u32,
    pub next_retry_ms: Option<u64>,
}

/// A write that waits for the node, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingLine {
    pub id: WriteId,
    pub tree: TreeId,
    /// Not before this time, milliseconds since 1970.
    pub next_retry_ms: Option<u64>,
}

/// A local write without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteLine {
    pub id: WriteId,
    pub tree: TreeId,
    pub state: WriteState,
}

impl ReadTx<'_> {
    /// How many writes there are of each class that is not settled; from the indexes alone.
    ///
    /// # Errors
    /// If the store fails.
    pub fn write_counts(&self, space: SpaceId) -> Result<Vec<WriteCount>> {
        const BY_STATE: &str = "SELECT state, count(*) FROM writes INDEXED BY writes_by_state
             WHERE space_no = ?1 AND state < 3 GROUP BY state";
        const RETRYING: &str =
            "SELECT count(*), max(attempts), min(next_retry_ms) FROM writes INDEXED BY writes_retrying
             WHERE space_no = ?1 AND state = 0 AND refusal_code IS NOT NULL";
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        let by_state = self.db.all(BY_STATE, [space_no], |row| Ok((row.get::<_, i64>(0)?, number(row, 1)?)))?;
        let of_state = |state| by_state.iter().find(|(s, _)| *s == state).map_or(0, |(_, count)| *count);
        let retrying = self.db.one(RETRYING, [space_no], |row| {
            let next_retry_ms = row.get::<_, Option<i64>>(2)?.map(i64::unsigned_abs);
            let attempts_max = row.get::<_, Option<u32>>(1)?.unwrap_or_default();
            Ok(WriteCount { class: WriteClass::Retrying, count: number(row, 0)?, attempts_max, next_retry_ms })
        })?;
        let answered = retrying.as_ref().map_or(0, |r| r.count);
        let plain = |class, count| WriteCount { class, count, attempts_max: 0, next_retry_ms: None };
        let mut counts = vec![plain(WriteClass::Pending, of_state(PENDING).saturating_sub(answered))];
        counts.extend(retrying);
        counts.push(plain(WriteClass::Logged, of_state(LOGGED)));
        counts.push(plain(WriteClass::Refused, of_state(REFUSED)));
        counts.retain(|c| c.count > 0);
        Ok(counts)
    }

    /// Writes of one class, the oldest first (those in the log in its order), after `skip`, at most `max`.
    ///
    /// # Errors
    /// If the store fails.
    pub fn writes_of(&self, space: SpaceId, class: WriteClass, skip: usize, max: usize) -> Result<Vec<WriteLine>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(lines_of(class), (space_no, limit(max), limit(skip)), read_line)
    }

    /// Writes that wait for the node, in the order they were made, after `after`, at most `max`; without their bytes.
    ///
    /// # Errors
    /// If the store fails.
    pub fn pending_lines(&self, space: SpaceId, after: Option<WriteId>, max: usize) -> Result<Vec<PendingLine>> {
        const SQL: &str = "SELECT id, tree, next_retry_ms FROM writes INDEXED BY writes_by_state
             WHERE space_no = ?1 AND state < 3 AND state = 0 AND seq IS NULL AND id > ?2 ORDER BY id LIMIT ?3";
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        let after = integer("write", after.map_or(0, |id| id.0))?;
        self.db.all(SQL, (space_no, after, limit(max)), |row| {
            let next_retry_ms = row.get::<_, Option<i64>>(2)?.map(i64::unsigned_abs);
            let tree = TreeId::from_hash(hash(row, 1)?);
            Ok(PendingLine { id: WriteId(number(row, 0)?), tree, next_retry_ms })
        })
    }

    /// Trees with writes that wait for the node.
    ///
    /// # Errors
    /// If the store fails.
    pub fn pending_trees(&self, space: SpaceId) -> Result<BTreeSet<TreeId>> {
        let mut trees = BTreeSet::new();
        let mut after = None;
        loop {
            let page = self.pending_lines(space, after, LINES_PAGE)?;
            let Some(last) = page.last() else { return Ok(trees) };
            after = Some(last.id);
            trees.extend(page.into_iter().map(|line| line.tree));
        }
    }

    /// Which writes from one to another are not in the log: pending, or refused and not dismissed. From the indexes alone.
    ///
    /// # Errors
    /// If the store fails.
    pub fn unlogged_writes(&self, space: SpaceId, from: WriteId, to: WriteId) -> Result<Vec<(WriteId, WriteClass)>> {
        const UNLOGGED: &str = "SELECT id, state FROM writes INDEXED BY writes_by_state
             WHERE space_no = ?1 AND state < 3 AND state IN (0, 2) AND seq IS NULL AND id BETWEEN ?2 AND ?3";
        const RETRYING: &str = "SELECT id FROM writes INDEXED BY writes_retrying
             WHERE space_no = ?1 AND state = 0 AND refusal_code IS NOT NULL AND id BETWEEN ?2 AND ?3";
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        let params = (space_no, integer("write", from.0)?, integer("write", to.0)?);
        let answered: BTreeSet<_> =
            self.db.all(RETRYING, params, |row| Ok(WriteId(number(row, 0)?)))?.into_iter().collect();
        self.db.all(UNLOGGED, params, |row| {
            let id = WriteId(number(row, 0)?);
            Ok((id, class_of(row.get(1)?, answered.contains(&id))?))
        })
    }

    /// Writes of one tree that are not settled, the oldest first.
    ///
    /// # Errors
    /// If the store fails.
    pub fn writes_of_tree(&self, space: SpaceId, tree: TreeId) -> Result<Vec<WriteLine>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT state, seq, attempts, next_retry_ms, refusal_code, refusal_message, refusal_seq, id, tree
             FROM writes INDEXED BY writes_by_tree
             WHERE space_no = ?1 AND state < 3 AND tree8 = ?2 AND tree = ?3 ORDER BY id",
            (space_no, self.db.prefix(tree.prefix8()), tree.as_bytes()),
            read_line,
        )
    }

    /// Every write that is not settled: pending, logged, or refused.
    ///
    /// # Errors
    /// If the store fails.
    pub fn open_writes(&self, space: SpaceId) -> Result<Vec<WriteId>> {
        self.open_writes_to(space, WriteId(u64::MAX))
    }

    /// As [`ReadTx::open_writes`], those up to and including one.
    ///
    /// # Errors
    /// If the store fails.
    pub fn open_writes_to(&self, space: SpaceId, to: WriteId) -> Result<Vec<WriteId>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        let to = i64::try_from(to.0).unwrap_or(i64::MAX);
        self.db.all(
            "SELECT id FROM writes WHERE space_no = ?1 AND state < 3 AND id <= ?2 ORDER BY id",
            (space_no, to),
            |row| Ok(WriteId(number(row, 0)?)),
        )
    }

    /// The newest write of all spaces, whatever became of it: all others have lower ids.
    ///
    /// # Errors
    /// If the store fails.
    pub fn last_write(&self) -> Result<WriteId> {
        let newest = self.db.one("SELECT max(id) FROM writes", [], |row| row.get::<_, Option<i64>>(0))?;
        Ok(WriteId(newest.flatten().and_then(|id| u64::try_from(id).ok()).unwrap_or(0)))
    }

    /// How many changes have each verdict.
    ///
    /// # Errors
    /// If the store fails.
    pub fn verdict_counts(&self, space: SpaceId) -> Result<Vec<(VerdictKind, u64)>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT 0, 0, kind, count(*) FROM verdicts INDEXED BY verdicts_by_kind WHERE space_no = ?1 GROUP BY kind",
            [space_no],
            |row| Ok((verdict_of_code(row)?, number(row, 3)?)),
        )
    }

    /// Changes with one verdict, by tree and change id, after `after`, at most `max`.
    ///
    /// # Errors
    /// If the store fails.
    pub fn verdicts_of(
        &self,
        space: SpaceId,
        kind: VerdictKind,
        after: Option<(TreeId, ChangeId)>,
        max: usize,
    ) -> Result<Vec<(TreeId, ChangeId, VerdictRow)>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        let (tree, change) = after.map_or(([].as_slice().to_vec(), Vec::new()), |(tree, change)| {
            (tree.as_bytes().to_vec(), change.as_bytes().to_vec())
        });
        self.db.all(
            "SELECT tree, change_id, kind, detail, seq FROM verdicts INDEXED BY verdicts_by_kind
             WHERE space_no = ?1 AND kind = ?2 AND (tree, change_id) > (?3, ?4) ORDER BY tree, change_id LIMIT ?5",
            (space_no, verdict_code(kind), tree, change, limit(max)),
            read_verdict,
        )
    }

    /// The verdicts on changes of one tree.
    ///
    /// # Errors
    /// If the store fails.
    pub fn verdicts_of_tree(&self, space: SpaceId, tree: TreeId) -> Result<Vec<(TreeId, ChangeId, VerdictRow)>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT tree, change_id, kind, detail, seq FROM verdicts WHERE space_no = ?1 AND tree = ?2 ORDER BY change_id",
            (space_no, tree.as_bytes()),
            read_verdict,
        )
    }

    /// How many changes up to a place in the log have a verdict, by the code that the last attempt to get their content failed
    /// with; `None` where none failed yet, or nothing is wanted of them.
    ///
    /// # Errors
    /// If the store fails.
    pub fn verdict_attempts(&self, space: SpaceId, kind: VerdictKind, until: Seq) -> Result<Vec<(Option<i32>, u64)>> {
        const SQL: &str = "SELECT s.code, count(*) FROM verdicts v INDEXED BY verdicts_by_kind
             LEFT JOIN sync_items s ON s.space_no = v.space_no AND s.tree = v.tree AND s.kind = 2
             WHERE v.space_no = ?1 AND v.kind = ?2 AND v.seq <= ?3 GROUP BY 1 ORDER BY 1";
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        let params = (space_no, verdict_code(kind), integer("log position", until.0)?);
        self.db.all(SQL, params, |row| Ok((row.get(0)?, number(row, 1)?)))
    }

    /// Changes with one verdict up to a place in the log, at most `max`.
    ///
    /// # Errors
    /// If the store fails.
    pub fn verdicts_until(
        &self,
        space: SpaceId,
        kind: VerdictKind,
        until: Seq,
        max: usize,
    ) -> Result<Vec<(TreeId, ChangeId, VerdictRow)>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT tree, change_id, kind, detail, seq FROM verdicts INDEXED BY verdicts_by_kind
             WHERE space_no = ?1 AND kind = ?2 AND seq <= ?3 ORDER BY tree, change_id LIMIT ?4",
            (space_no, verdict_code(kind), integer("log position", until.0)?, limit(max)),
            read_verdict,
        )
    }

    /// Whether any change of a tree is in quarantine.
    ///
    /// # Errors
    /// If the store fails.
    pub fn has_quarantined(&self, space: SpaceId, tree: TreeId) -> Result<bool> {
        const SQL: &str = "SELECT 1 FROM verdicts INDEXED BY verdicts_by_kind
             WHERE space_no = ?1 AND kind = ?2 AND tree = ?3 LIMIT 1";
        let Some(space_no) = self.space_no(&space)? else { return Ok(false) };
        let code = verdict_code(VerdictKind::Quarantined);
        Ok(self.db.one(SQL, (space_no, code, tree.as_bytes()), |_| Ok(()))?.is_some())
    }

    /// How many items of each kind are wanted, and how many of them failed before.
    ///
    /// # Errors
    /// If the store fails.
    pub fn sync_item_counts(&self, space: SpaceId) -> Result<Vec<(SyncItemKind, u64, u64)>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT kind, count(*), total(attempts > 0) FROM sync_items WHERE space_no = ?1 GROUP BY kind",
            [space_no],
            |row| {
                let failing: f64 = row.get(2)?;
                Ok((item_kind(0, row.get(0)?)?, number(row, 1)?, failing as u64))
            },
        )
    }

    /// Wanted items of one kind, those that fail most first, after `skip`, at most `max`.
    ///
    /// # Errors
    /// If the store fails.
    pub fn sync_items_of(&self, space: SpaceId, kind: SyncItemKind, skip: usize, max: usize) -> Result<Vec<SyncItem>> {
        const SQL: &str = "SELECT tree, kind, priority, attempts, code, error, next_retry_ms, since_ms FROM sync_items
             WHERE space_no = ?1 AND kind = ?2 ORDER BY attempts DESC, priority, tree LIMIT ?3 OFFSET ?4";
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(SQL, (space_no, item_code(kind), limit(max), limit(skip)), read_item)
    }

    /// One wanted item.
    ///
    /// # Errors
    /// If the store fails.
    pub fn sync_item(&self, space: SpaceId, tree: TreeId, kind: SyncItemKind) -> Result<Option<SyncItem>> {
        const SQL: &str = "SELECT tree, kind, priority, attempts, code, error, next_retry_ms, since_ms FROM sync_items
             WHERE space_no = ?1 AND tree = ?2 AND kind = ?3";
        let Some(space_no) = self.space_no(&space)? else { return Ok(None) };
        self.db.one(SQL, (space_no, tree.as_bytes(), item_code(kind)), read_item)
    }

    /// What may be tried at `now_ms`, most urgent first, at most `max`; and when something else may be. A moment further away
    /// than `wait_ms_max` is from before the clock was set back, and due.
    ///
    /// # Errors
    /// If the store fails.
    pub fn sync_items_due(&self, space: SpaceId, now_ms: u64, wait_ms_max: u64, max: usize) -> Result<SyncLoad> {
        const DUE: &str = "SELECT tree, kind, priority, attempts, code, error, next_retry_ms, since_ms FROM sync_items
             WHERE space_no = ?1 AND (next_retry_ms <= ?2 OR next_retry_ms > ?3)
             ORDER BY priority, next_retry_ms LIMIT ?4";
        let Some(space_no) = self.space_no(&space)? else { return Ok(SyncLoad::default()) };
        let (now, far) = (integer("time", now_ms)?, integer("time", now_ms.saturating_add(wait_ms_max))?);
        let due = self.db.all(DUE, (space_no, now, far, limit(max)), read_item)?;
        let next = self.db.one(
            "SELECT min(next_retry_ms) FROM sync_items WHERE space_no = ?1 AND next_retry_ms > ?2 AND next_retry_ms <= ?3",
            (space_no, now, far),
            |row| row.get::<_, Option<i64>>(0),
        )?;
        Ok(SyncLoad { due, next_ms: next.flatten().map(i64::unsigned_abs) })
    }

    /// What every peer was last found to have.
    ///
    /// # Errors
    /// If the store fails.
    pub fn peers(&self, space: SpaceId) -> Result<Vec<PeerRow>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT peer, kind, confirmed, confirmed_ms FROM peers WHERE space_no = ?1 ORDER BY kind, peer",
            [space_no],
            |row| {
                let kind = match row.get::<_, i64>(1)? {
                    1 => PeerKind::Node,
                    2 => PeerKind::Client,
                    other => return Err(misfit(1, format!("{other} is no kind of peer"))),
                };
                Ok(PeerRow { peer: hash(row, 0)?, kind, confirmed: seq(row, 2)?, confirmed_ms: number(row, 3)? })
            },
        )
    }

    /// How many trees of each peer have heads that are not here.
    ///
    /// # Errors
    /// If the store fails.
    pub fn peer_head_counts(&self, space: SpaceId) -> Result<Vec<([u8; 32], u64)>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all("SELECT peer, count(*) FROM peer_heads WHERE space_no = ?1 GROUP BY peer", [space_no], |row| {
            Ok((hash(row, 0)?, number(row, 1)?))
        })
    }

    /// What peers told of one tree, where it is not what is logged here.
    ///
    /// # Errors
    /// If the store fails.
    pub fn peer_heads_of(&self, space: SpaceId, tree: TreeId) -> Result<Vec<PeerHeads>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT peer, heads, seq, told_ms FROM peer_heads WHERE space_no = ?1 AND tree = ?2 ORDER BY peer",
            (space_no, tree.as_bytes()),
            |row| {
                let heads = read_heads(row, 1)?;
                Ok(PeerHeads { peer: hash(row, 0)?, tree, heads, seq: seq(row, 2)?, told_ms: number(row, 3)? })
            },
        )
    }

    /// ACL records that were read ahead of the tail, in order.
    ///
    /// # Errors
    /// If the store fails.
    pub fn ahead_acl(&self, space: SpaceId) -> Result<Vec<AheadRow>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT seq, tree, id, record FROM ahead WHERE space_no = ?1 AND tree IS NULL ORDER BY seq",
            [space_no],
            read_ahead,
        )
    }

    /// Entries of a tree that were fetched ahead of the tail, in order.
    ///
    /// # Errors
    /// If the store fails.
    pub fn ahead_of_tree(&self, space: SpaceId, tree: TreeId) -> Result<Vec<AheadRow>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT seq, tree, id, record FROM ahead WHERE space_no = ?1 AND tree = ?2 ORDER BY seq",
            (space_no, tree.as_bytes()),
            read_ahead,
        )
    }

    /// Trees with entries that were fetched ahead of the tail.
    ///
    /// # Errors
    /// If the store fails.
    pub fn ahead_trees(&self, space: SpaceId) -> Result<Vec<TreeId>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        self.db.all(
            "SELECT DISTINCT tree FROM ahead WHERE space_no = ?1 AND tree IS NOT NULL ORDER BY tree",
            [space_no],
            |row| Ok(TreeId::from_hash(hash(row, 0)?)),
        )
    }
}

impl WriteTx<'_> {
    /// Keeps that something is wanted. What is wanted already keeps its attempts, and takes the more urgent priority; then it
    /// may be tried at once.
    ///
    /// # Errors
    /// If the store fails.
    pub fn want_sync_item(&mut self, space: SpaceId, item: &SyncItem) -> Result<()> {
        let space_no = self.intern(&space)?;
        self.db.execute(
            "INSERT INTO sync_items VALUES (?1, ?2, ?3, ?4, ?5, NULL, NULL, ?6, ?7)
             ON CONFLICT (space_no, tree, kind) DO UPDATE SET
             next_retry_ms = iif(excluded.priority < priority, excluded.next_retry_ms, next_retry_ms),
             priority = min(priority, excluded.priority)",
            (
                space_no,
                item.tree.as_bytes(),
                item_code(item.kind),
                item.priority,
                item.attempts,
                integer("time", item.next_retry_ms)?,
                integer("time", item.since_ms)?,
            ),
        )?;
        Ok(())
    }

    /// Notes that an item failed; nothing happens if it is not wanted any more.
    ///
    /// # Errors
    /// If the store fails.
    pub fn note_sync_failure(&mut self, space: SpaceId, item: &SyncItem) -> Result<()> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(()) };
        let (code, error) = item.error.as_ref().map(|(code, text)| (*code, text.as_str())).unzip();
        self.db.execute(
            "UPDATE sync_items SET attempts = ?4, code = ?5, error = ?6, next_retry_ms = ?7
             WHERE space_no = ?1 AND tree = ?2 AND kind = ?3",
            (
                space_no,
                item.tree.as_bytes(),
                item_code(item.kind),
                item.attempts,
                code,
                error,
                integer("time", item.next_retry_ms)?,
            ),
        )?;
        Ok(())
    }

    /// Forgets an item: it is here, or not wanted any more.
    ///
    /// # Errors
    /// If the store fails.
    pub fn drop_sync_item(&mut self, space: SpaceId, tree: TreeId, kind: SyncItemKind) -> Result<()> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(()) };
        self.db.execute(
            "DELETE FROM sync_items WHERE space_no = ?1 AND tree = ?2 AND kind = ?3",
            (space_no, tree.as_bytes(), item_code(kind)),
        )?;
        Ok(())
    }

    /// Forgets every item of a kind: the log has reached what they were to bring.
    ///
    /// # Errors
    /// If the store fails.
    pub fn drop_sync_items(&mut self, space: SpaceId, kind: SyncItemKind) -> Result<()> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(()) };
        self.db.execute("DELETE FROM sync_items WHERE space_no = ?1 AND kind = ?2", (space_no, item_code(kind)))?;
        Ok(())
    }

    /// Gives a logged change its content, which the caller has checked against its hash; false if nothing of that kind is
    /// missing, or the tree was purged.
    ///
    /// # Errors
    /// If the store fails.
    pub fn restore_payload(&mut self, space: SpaceId, tree: TreeId, change: ChangeId, payload: &Bytes) -> Result<bool> {
        let Some(space_no) = self.log_no(&space)? else { return Ok(false) };
        let Some(tree_no) = self.tree_no(space_no, &tree)? else { return Ok(false) };
        let changed = self.db.execute(
            "UPDATE log SET payload = ?4 WHERE tree_no = ?1 AND id8 = ?2 AND id = ?3 AND kind = 4
             AND (SELECT purged_at IS NULL FROM trees WHERE tree_no = ?1)",
            (tree_no, self.db.prefix(change.prefix8()), change.as_bytes(), payload.as_ref()),
        )?;
        self.count_bytes(payload.len());
        Ok(changed > 0)
    }

    /// Keeps that a comparison with a peer found both equal.
    ///
    /// # Errors
    /// If the store fails.
    pub fn put_peer(&mut self, space: SpaceId, row: &PeerRow) -> Result<()> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(()) };
        let kind = match row.kind {
            PeerKind::Node => 1,
            PeerKind::Client => 2,
        };
        let (confirmed, at) = (integer("log position", row.confirmed.0)?, integer("time", row.confirmed_ms)?);
        self.db.execute(
            "INSERT INTO peers VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (space_no, peer) DO UPDATE
             SET kind = excluded.kind, confirmed = excluded.confirmed, confirmed_ms = excluded.confirmed_ms",
            (space_no, row.peer, kind, confirmed, at),
        )?;
        Ok(())
    }

    /// Keeps the heads that a peer told of, unless they are the logged ones here: then nothing is kept. Says how they compare.
    ///
    /// # Errors
    /// If the store fails.
    pub fn put_peer_heads(&mut self, space: SpaceId, told: &PeerHeads) -> Result<HeadsTold> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(HeadsTold::Equal) };
        let ours = self.tree(space, told.tree)?.map(|t| t.heads).unwrap_or_default();
        if told.heads.iter().copied().collect::<std::collections::BTreeSet<_>>() == ours {
            self.db.execute(
                "DELETE FROM peer_heads WHERE space_no = ?1 AND peer = ?2 AND tree = ?3",
                (space_no, told.peer, told.tree.as_bytes()),
            )?;
            return Ok(HeadsTold::Equal);
        }
        let before = self.peer_heads_of(space, told.tree)?.into_iter().find(|known| known.peer == told.peer);
        let heads = encode_heads(&told.heads.iter().copied().collect());
        let (seq, at) = (integer("log position", told.seq.0)?, integer("time", told.told_ms)?);
        self.db.execute(
            "INSERT INTO peer_heads VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (space_no, peer, tree) DO UPDATE
             SET heads = excluded.heads, seq = excluded.seq, told_ms = excluded.told_ms",
            (space_no, told.peer, told.tree.as_bytes(), heads, seq, at),
        )?;
        let as_before = before.is_some_and(|before| before.heads == told.heads);
        Ok(if as_before { HeadsTold::ApartAsBefore } else { HeadsTold::Apart })
    }

    /// Keeps an entry that was fetched ahead of the tail; what is kept for that place already stays.
    ///
    /// # Errors
    /// If the store fails.
    pub fn put_ahead(&mut self, space: SpaceId, row: &AheadRow) -> Result<()> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(()) };
        self.db.execute(
            "INSERT INTO ahead VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (space_no, seq) DO NOTHING",
            (
                space_no,
                integer("log position", row.seq.0)?,
                row.tree.as_ref().map(TreeId::as_bytes),
                row.id.as_bytes(),
                row.record.to_vec(),
            ),
        )?;
        self.count_bytes(row.record.wire_bytes());
        Ok(())
    }

    /// Takes what was kept ahead of the tail up to `seq`, in order, with the ids that stood there: the log has those places now.
    ///
    /// # Errors
    /// If the store fails.
    pub fn take_ahead(&mut self, space: SpaceId, seq: Seq) -> Result<Vec<(Seq, EntryId)>> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(Vec::new()) };
        let seq = integer("log position", seq.0)?;
        let taken = self.db.all(
            "SELECT seq, id FROM ahead WHERE space_no = ?1 AND seq <= ?2 ORDER BY seq",
            (space_no, seq),
            |row| Ok((crate::db::seq(row, 0)?, EntryId::from_hash(hash(row, 1)?))),
        )?;
        if !taken.is_empty() {
            self.db.execute("DELETE FROM ahead WHERE space_no = ?1 AND seq <= ?2", (space_no, seq))?;
        }
        Ok(taken)
    }

    /// Forgets everything that was kept ahead of the tail.
    ///
    /// # Errors
    /// If the store fails.
    pub fn drop_ahead(&mut self, space: SpaceId) -> Result<()> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(()) };
        self.db.execute("DELETE FROM ahead WHERE space_no = ?1", [space_no])?;
        Ok(())
    }
}

fn read_line(row: &Row<'_>) -> rusqlite::Result<WriteLine> {
    let tree = TreeId::from_hash(hash(row, 8)?);
    Ok(WriteLine { id: WriteId(number(row, 7)?), tree, state: read_state(row)? })
}

fn read_verdict(row: &Row<'_>) -> rusqlite::Result<(TreeId, ChangeId, VerdictRow)> {
    let verdict = VerdictRow { kind: verdict_of_code(row)?, detail: row.get(3)?, seq: seq(row, 4)? };
    Ok((TreeId::from_hash(hash(row, 0)?), ChangeId::from_hash(hash(row, 1)?), verdict))
}

fn read_item(row: &Row<'_>) -> rusqlite::Result<SyncItem> {
    let code: Option<i32> = row.get(4)?;
    let text: Option<String> = row.get(5)?;
    Ok(SyncItem {
        tree: TreeId::from_hash(hash(row, 0)?),
        kind: item_kind(1, row.get(1)?)?,
        priority: row.get(2)?,
        attempts: row.get(3)?,
        error: code.map(|code| (code, text.unwrap_or_default())),
        next_retry_ms: number(row, 6)?,
        since_ms: number(row, 7)?,
    })
}

fn read_ahead(row: &Row<'_>) -> rusqlite::Result<AheadRow> {
    let tree: Option<[u8; 32]> = row.get(1)?;
    let record = RawRecord::from_slice(&blob(row, 3)?).map_err(|e| misfit(3, e))?;
    let tree = tree.map(TreeId::from_hash);
    Ok(AheadRow { seq: seq(row, 0)?, tree, id: EntryId::from_hash(hash(row, 2)?), record })
}

fn read_heads(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<ChangeId>> {
    let bytes = row.get_ref(column)?.as_blob()?;
    let (ids, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() {
        return Err(misfit(column, "heads are ids of 32 bytes"));
    }
    Ok(ids.iter().map(|id| ChangeId::from_hash(*id)).collect())
}

const fn item_code(kind: SyncItemKind) -> i64 {
    match kind {
        SyncItemKind::Fetch => 1,
        SyncItemKind::Content => 2,
        SyncItemKind::Judge => 3,
    }
}

fn item_kind(column: usize, code: i64) -> rusqlite::Result<SyncItemKind> {
    match code {
        1 => Ok(SyncItemKind::Fetch),
        2 => Ok(SyncItemKind::Content),
        3 => Ok(SyncItemKind::Judge),
        other => Err(misfit(column, format!("{other} is no kind of item"))),
    }
}

fn class_of(state: i64, answered: bool) -> rusqlite::Result<WriteClass> {
    match (state, answered) {
        (PENDING, false) => Ok(WriteClass::Pending),
        (PENDING, true) => Ok(WriteClass::Retrying),
        (LOGGED, _) => Ok(WriteClass::Logged),
        (REFUSED, _) => Ok(WriteClass::Refused),
        (other, _) => Err(misfit(0, format!("{other} is no state of an open write"))),
    }
}

/// The columns of a write without its bytes; see [`read_line`].
macro_rules! line_columns {
    () => {
        "SELECT state, seq, attempts, next_retry_ms, refusal_code, refusal_message, refusal_seq, id, tree FROM writes INDEXED BY "
    };
}

/// Each class in the order of its index: nothing is sorted.
const fn lines_of(class: WriteClass) -> &'static str {
    match class {
        WriteClass::Pending => concat!(
            line_columns!(),
            "writes_by_state WHERE space_no = ?1 AND state < 3 AND state = 0 AND seq IS NULL AND refusal_code IS NULL
             ORDER BY id LIMIT ?2 OFFSET ?3"
        ),
        WriteClass::Retrying => concat!(
            line_columns!(),
            "writes_retrying WHERE space_no = ?1 AND state = 0 AND refusal_code IS NOT NULL
             ORDER BY id LIMIT ?2 OFFSET ?3"
        ),
        WriteClass::Logged => concat!(
            line_columns!(),
            "writes_by_state WHERE space_no = ?1 AND state < 3 AND state = 1 ORDER BY seq, id LIMIT ?2 OFFSET ?3"
        ),
        WriteClass::Refused => concat!(
            line_columns!(),
            "writes_by_state WHERE space_no = ?1 AND state < 3 AND state = 2 AND seq IS NULL
             ORDER BY id LIMIT ?2 OFFSET ?3"
        ),
    }
}

/// Writes that are read at a time where all of them are visited.
const LINES_PAGE: usize = 1024;
