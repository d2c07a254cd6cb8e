//! Writing: what a decision says, and nothing else.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use prost::Message as _;
use sync_core::ids::{AccountId, ChangeId, EntryId, HistoryId, Seq, SpaceId, TombstoneId, TreeId};
use sync_core::log::{Decision, EntryKind, Genesis, NewEntry, Position, Purge, TreeState, TreeUpdate};
use sync_core::pb;
use sync_core::reconcile::SetDigest;
use sync_core::record::{RawRecord, TreeRoot, verify_as};

use crate::cache::{AclCache, Head, JobEffects, Live, Staging};
use crate::db::{Db, integer, log_key, log_key_last, number};
use crate::error::StoreError;
use crate::feed::{ElementFeed, Moved};
use crate::read::ReadTx;
use crate::rows::{LogRow, SpaceCounts, kind_code};
use crate::trees::{encode_heads, encode_root};

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A job's own part of the storage thread's transaction. Derefs to [`ReadTx`], which shows the job's writes.
///
/// Lives as long as the job; if the job fails, nothing of it is kept.
pub struct WriteTx<'c> {
    pub(crate) read: ReadTx<'c>,
}

impl fmt::Debug for WriteTx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteTx").finish_non_exhaustive()
    }
}

impl<'c> Deref for WriteTx<'c> {
    type Target = ReadTx<'c>;
    fn deref(&self) -> &ReadTx<'c> {
        &self.read
    }
}

/// Every table with rows of a space, but for the log.
const FORGET: [&str; 17] = [
    "DELETE FROM sync_items WHERE space_no = ?1",
    "DELETE FROM peers WHERE space_no = ?1",
    "DELETE FROM peer_heads WHERE space_no = ?1",
    "DELETE FROM ahead WHERE space_no = ?1",
    "DELETE FROM objects WHERE space_no = ?1",
    "DELETE FROM projections WHERE space_no = ?1",
    "DELETE FROM verdicts WHERE space_no = ?1",
    "DELETE FROM writes WHERE space_no = ?1",
    "DELETE FROM node_states WHERE space_no = ?1",
    "DELETE FROM node_histories WHERE space_no = ?1",
    "DELETE FROM histories WHERE space_no = ?1",
    "DELETE FROM salvage WHERE space_no = ?1",
    "DELETE FROM accusations WHERE space_no = ?1",
    "DELETE FROM trees WHERE space_no = ?1",
    "DELETE FROM space_heads WHERE space_no = ?1",
    "DELETE FROM spaces WHERE space_no = ?1",
    "DELETE FROM space_ids WHERE space_no = ?1",
];

/// What became of a genesis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// The space has a log now, with two entries.
    Created,
    /// The space had a log already; nothing was changed.
    AlreadyThere,
}

/// What a repair found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuilt {
    /// The stored state was what the log says.
    Unchanged,
    /// It was not, and is now.
    Repaired,
}

impl<'c> WriteTx<'c> {
    pub(crate) fn new(db: Db<'c>, acls: &'c AclCache, staging: Staging<'c>) -> Self {
        Self { read: ReadTx::of_job(db, acls, staging) }
    }

    /// What the job did, and the first statement of it that failed.
    pub(crate) fn into_effects(self) -> (JobEffects, Option<StoreError>) {
        let (db, staging) = self.read.into_parts();
        (staging.map(|s| s.job).unwrap_or_default(), db.take_trouble())
    }

    /// Begins a log with its first two entries.
    ///
    /// # Errors
    /// If the store fails.
    pub fn create_space(&mut self, genesis: &Genesis, history: HistoryId) -> Result<Creation> {
        let space = genesis.space();
        if self.log_no(&space)?.is_some() {
            return Ok(Creation::AlreadyThere);
        }
        let space_no = self.intern(&space)?;
        let header = genesis.header().raw().to_vec();
        self.db.execute("INSERT INTO spaces VALUES (?1, ?2, ?3)", (space_no, header, history.0))?;
        let head = Head {
            space_no,
            position: Position::start(&space),
            acl_head: genesis.acl().head,
            digest: SetDigest::of_genesis(genesis.acl()),
            counts: SpaceCounts::default(),
        };
        let mut live = Live { head, acl: Arc::new(genesis.acl().clone()) };
        for entry in genesis.entries() {
            self.insert_entry(space_no, entry, None)?;
            live.head.position = entry.position;
            live.head.counts.entries = entry.position.seq.0;
            live.head.counts.bytes += entry.record.wire_bytes() as u64;
        }
        insert_head(&self.db, &live.head)?;
        let job = &mut self.read.staging_mut().job;
        job.spaces.insert(space, live);
        job.spaces_created += 1;
        Ok(Creation::Created)
    }

    /// What is durable of a log now: never what this transaction appends.
    ///
    /// # Errors
    /// If the store fails.
    pub fn durable_seq(&mut self, space: SpaceId) -> Result<Seq> {
        let committed = self.read.committed_end(&space)?;
        Ok(self.read.staging_mut().marks.durable(&space, committed))
    }

    /// Forgets a space with everything that belongs to it: its log and trees, and a client's own rows. What the shell keeps
    /// under names of its own stays. Nothing happens if there is none; afterwards the space may begin again.
    ///
    /// # Errors
    /// If the store fails.
    pub fn forget_space(&mut self, space: SpaceId) -> Result<()> {
        let Some(space_no) = self.space_no(&space)? else { return Ok(()) };
        let bytes = self.counts(space)?.map_or(0, |counts| counts.bytes);
        let range = [log_key(space_no, Seq::ZERO)?, log_key_last(space_no)];
        self.db.execute("DELETE FROM log WHERE key >= ?1 AND key <= ?2", range)?;
        for sql in FORGET {
            self.db.execute(sql, [space_no])?;
        }
        // No number is given twice: what somebody still remembers of this one must fit nothing that comes.
        self.db.execute(
            "INSERT INTO meta VALUES ('space_no_forgotten', ?1) ON CONFLICT (name) DO UPDATE SET value = max(value, ?1)",
            [space_no],
        )?;
        self.count_bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
        self.read.staging_mut().job.forget(space);
        Ok(())
    }

    /// Gives a space a new history, after a recognised restore.
    ///
    /// # Errors
    /// [`StoreError::UnknownSpace`], or if the store fails.
    pub fn set_history(&mut self, space: SpaceId, history: HistoryId) -> Result<()> {
        let space_no = self.log_no(&space)?.ok_or(StoreError::UnknownSpace { space })?;
        self.db.execute("UPDATE spaces SET history = ?2 WHERE space_no = ?1", (space_no, history.0))?;
        Ok(())
    }

    /// Appends what was decided. A tombstone drops the payloads of its tree, a `DeleteSpace` those of its space, with a
    /// client's verdicts about them. The effects come back with [`crate::Written`], after the commit.
    ///
    /// # Errors
    /// [`StoreError::StaleDecision`] if it was decided over another end of the log, [`StoreError::UnknownSpace`], or if the
    /// store fails.
    pub fn append(&mut self, space: SpaceId, decision: Decision) -> Result<Position> {
        let mut live = self.live_clone(&space)?.ok_or(StoreError::UnknownSpace { space })?;
        check_start(&space, &live, &decision)?;
        let space_no = live.head.space_no;
        let tree_no = decision.tree().map(|update| self.write_tree(&space, space_no, update, &decision)).transpose()?;
        for entry in decision.entries() {
            self.insert_entry(space_no, entry, tree_no)?;
        }
        live.follow(&decision);
        self.note_move(space, || Moved::by(&decision));
        let dropped = self.drop_ended(space_no, tree_no, &decision)?;
        live.head.counts.bytes = live.head.counts.bytes.saturating_sub(dropped);
        let position = live.head.position;
        let job = &mut self.read.staging_mut().job;
        job.spaces.insert(space, live);
        job.effects.add(space, decision);
        Ok(position)
    }

    /// Follows the elements of a space, from the transaction of this job on: who reads the store after this job was answered,
    /// and then takes the moves beyond what it read, has them all.
    #[must_use]
    pub fn follow_elements(&mut self, space: SpaceId) -> ElementFeed {
        self.read.staging_mut().feeds.follow(space)
    }

    pub(crate) fn note_move(&mut self, space: SpaceId, moved: impl FnOnce() -> Moved) {
        let staging = self.read.staging_mut();
        if staging.feeds.is_followed(&space) {
            staging.job.moves.push((space, moved()));
        }
    }

    /// The content of what a decision ends for good, a tree or the whole space, goes with it, and a client's verdicts about
    /// that content; the entries stay. Bytes that went.
    fn drop_ended(&mut self, space_no: i64, tree_no: Option<i64>, decision: &Decision) -> Result<u64> {
        let ends_tree = decision.tree().is_some_and(|tree| tree.after.purged.is_some());
        let ends_space = decision.acl().is_some_and(|acl| acl.deleted);
        let dropped = match tree_no {
            Some(tree_no) if ends_tree => self.drop_tree(space_no, tree_no)?,
            Some(_) | None if ends_space => self.drop_space(space_no)?,
            Some(_) | None => 0,
        };
        self.count_bytes(usize::try_from(dropped).unwrap_or(usize::MAX));
        Ok(dropped)
    }

    pub(crate) fn drop_tree(&self, space_no: i64, tree_no: i64) -> Result<u64> {
        let held = self.db.one(
            "SELECT coalesce(sum(length(payload)), 0) FROM log WHERE tree_no = ?1 AND kind = 4",
            [tree_no],
            |row| number(row, 0),
        )?;
        self.db.execute(
            "UPDATE log SET payload = NULL WHERE tree_no = ?1 AND kind = 4 AND payload IS NOT NULL",
            [tree_no],
        )?;
        self.db.execute(
            "DELETE FROM verdicts WHERE space_no = ?1 AND tree = (SELECT id FROM trees WHERE tree_no = ?2)
             AND change_id IN (SELECT id FROM log WHERE tree_no = ?2 AND kind = 4)",
            [space_no, tree_no],
        )?;
        Ok(held.unwrap_or_default())
    }

    fn drop_space(&self, space_no: i64) -> Result<u64> {
        let [first, last] = [log_key(space_no, Seq::ZERO)?, log_key_last(space_no)];
        let held = self.db.one(
            "SELECT coalesce(sum(length(payload)), 0) FROM log WHERE key > ?1 AND key <= ?2",
            [first, last],
            |row| number(row, 0),
        )?;
        self.db.execute(
            "UPDATE log SET payload = NULL WHERE key > ?1 AND key <= ?2 AND payload IS NOT NULL",
            [first, last],
        )?;
        self.db.execute(
            "DELETE FROM verdicts WHERE space_no = ?1
             AND change_id NOT IN (SELECT id FROM log WHERE key > ?2 AND key <= ?3 AND flags = 1)",
            [space_no, first, last],
        )?;
        Ok(held.unwrap_or_default())
    }

    /// Writes the row of a tree; its number.
    fn write_tree(&mut self, space: &SpaceId, space_no: i64, update: &TreeUpdate, decision: &Decision) -> Result<i64> {
        let changes = decision.entries().iter().filter(|e| e.kind == EntryKind::Change).count();
        let changes = integer("changes", changes as u64)?;
        match update.before {
            None => insert_tree(&self.db, space_no, &update.tree, &update.after, changes),
            Some(_) => {
                let tree_no = self.tree_no(space_no, &update.tree)?;
                let tree_no = tree_no.ok_or(StoreError::UnknownTree { space: *space, tree: update.tree })?;
                update_tree(&self.db, tree_no, &update.after, changes)?;
                Ok(tree_no)
            }
        }
    }

    fn insert_entry(&mut self, space_no: i64, entry: &NewEntry, tree_no: Option<i64>) -> Result<()> {
        let record = &entry.record;
        let (tree_no, epoch) = match entry.kind {
            EntryKind::Acl | EntryKind::Root => (None, None),
            EntryKind::Tombstone => (tree_no, None),
            EntryKind::Change => (tree_no, Some(epoch_of(record)?)),
        };
        let tree_no = if entry.quarantined { None } else { tree_no };
        let height = entry.height.map(|h| integer("height", h.0)).transpose()?;
        self.db.insert(
            "INSERT INTO log VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            rusqlite::params![
                log_key(space_no, entry.position.seq)?,
                kind_code(record.kind).map_err(StoreError::damaged)?,
                i64::from(entry.quarantined),
                tree_no,
                height,
                epoch,
                self.db.prefix(entry.id.prefix8()),
                entry.id.as_bytes(),
                entry.position.chain.as_bytes(),
                record.version,
                record.body.as_ref(),
                record.signature.as_ref(),
                record.payload.as_deref(),
            ],
        )?;
        self.count_bytes(record.wire_bytes());
        Ok(())
    }

    /// The number of a space, given now if it has none.
    pub(crate) fn intern(&mut self, space: &SpaceId) -> Result<i64> {
        match self.space_no(space)? {
            Some(space_no) => Ok(space_no),
            None => self.db.insert(
                "INSERT INTO space_ids (space_no, id) VALUES (1 + max(
                     coalesce((SELECT max(space_no) FROM space_ids), 0),
                     coalesce((SELECT value FROM meta WHERE name = 'space_no_forgotten'), 0)
                 ), ?1)",
                [space.as_bytes()],
            ),
        }
    }

    /// Bytes that this transaction appends: the storage thread closes it when there are many.
    pub(crate) fn count_bytes(&mut self, bytes: usize) {
        let job = &mut self.read.staging_mut().job;
        job.bytes = job.bytes.saturating_add(bytes);
    }

    /// Keeps a value under a name of the shell's own.
    ///
    /// # Errors
    /// If the store fails.
    pub fn kv_put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.db.execute(
            "INSERT INTO kv VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )?;
        self.count_bytes(value.len());
        Ok(())
    }

    /// Forgets a value. Nothing happens if there is none.
    ///
    /// # Errors
    /// If the store fails.
    pub fn kv_delete(&mut self, key: &str) -> Result<()> {
        self.db.execute("DELETE FROM kv WHERE key = ?1", [key])?;
        Ok(())
    }

    // ---- repair -----------------------------------------------------------------------------------------------------

    /// Works the rows of trees out again from their logged entries, after HeadSync found a difference at equal positions.
    /// If any was wrong, the digest is summed up again too. Returns the trees whose rows were wrong.
    ///
    /// # Errors
    /// [`StoreError::UnknownTree`], [`StoreError::UnknownSpace`], or if the store fails.
    pub fn rebuild_trees(&mut self, space: SpaceId, trees: &[TreeId]) -> Result<Vec<TreeId>> {
        let mut repaired = Vec::new();
        for tree in trees {
            let row = self.tree_row(&space, tree)?.ok_or(StoreError::UnknownTree { space, tree: *tree })?;
            let after = self.tree_of_log(space, *tree, row.tree_no)?;
            if after != row.state {
                update_tree(&self.db, row.tree_no, &after, 0)?;
                repaired.push(*tree);
            }
        }
        if !repaired.is_empty() {
            self.note_move(space, || Moved::Anew);
            self.rebuild_digest(space)?;
        }
        Ok(repaired)
    }

    /// [`WriteTx::rebuild_trees`] for one tree.
    ///
    /// # Errors
    /// [`StoreError::UnknownTree`], [`StoreError::UnknownSpace`], or if the store fails.
    pub fn rebuild_tree(&mut self, space: SpaceId, tree: TreeId) -> Result<Rebuilt> {
        let repaired = self.rebuild_trees(space, &[tree])?;
        Ok(if repaired.is_empty() { Rebuilt::Unchanged } else { Rebuilt::Repaired })
    }

    /// Sums the digest of a space up again from its elements; takes time in proportion to the trees of the space.
    ///
    /// # Errors
    /// [`StoreError::UnknownSpace`], or if the store fails.
    pub fn rebuild_digest(&mut self, space: SpaceId) -> Result<Rebuilt> {
        let mut live = self.live_clone(&space)?.ok_or(StoreError::UnknownSpace { space })?;
        let mut digest = SetDigest::empty();
        self.each_element(space, |element| digest.insert(&element))?;
        if digest == live.head.digest {
            return Ok(Rebuilt::Unchanged);
        }
        live.head.digest = digest;
        self.put_live(space, live);
        Ok(Rebuilt::Repaired)
    }

    /// The end of a log as this job leaves it.
    pub(crate) fn put_live(&mut self, space: SpaceId, live: Live) {
        self.read.staging_mut().job.spaces.insert(space, live);
    }

    pub(crate) fn count_changes(&self, tree_no: i64) -> Result<()> {
        self.db.execute(
            "UPDATE trees SET changes = (SELECT count(*) FROM log WHERE log.tree_no = ?1 AND kind = 4)
             WHERE tree_no = ?1",
            [tree_no],
        )?;
        Ok(())
    }

    pub(crate) fn tree_of_log(&self, space: SpaceId, tree: TreeId, tree_no: i64) -> Result<TreeState> {
        let changes = self.tree_changes(space, tree)?;
        let Some(first) = changes.iter().min_by_key(|c| c.position.seq) else {
            return self.db.damaged(format!("{tree} has a row and no change"));
        };
        // A root stands right before the first change.
        let created = Seq(first.position.seq.0.saturating_sub(1));
        let root = self.entry_at(space, created)?.and_then(|e| verify_as::<TreeRoot>(e.record).ok());
        let Some(root) = root.filter(|r| TreeId::from(r.id()) == tree) else {
            return self.db.damaged(format!("the root of {tree} is not before its first change"));
        };
        let author = change_body(first).and_then(|body| AccountId::try_from(body.author.as_ref()).ok());
        let (Some(first_author), Some(heads)) = (author, heads_of(&changes)) else {
            return self.db.damaged(format!("a change of {tree} does not decode"));
        };
        let purged = self.purge_of_log(tree_no)?;
        let heads = if purged.is_some() { BTreeSet::new() } else { heads };
        Ok(TreeState { root: *root.body(), created, first_author, heads, purged })
    }

    fn purge_of_log(&self, tree_no: i64) -> Result<Option<Purge>> {
        self.db.one("SELECT key, id FROM log WHERE tree_no = ?1 AND kind = 5", [tree_no], |row| {
            let by = TombstoneId::from_hash(crate::db::hash(row, 1)?);
            Ok(Purge { at: crate::db::seq_of_key(row.get(0)?), by })
        })
    }
}

/// A decision begins right where the log ends, or it was made over something else.
fn check_start(space: &SpaceId, live: &Live, decision: &Decision) -> Result<()> {
    let end = live.head.position;
    let first = decision.entries().first();
    let follows = first.is_some_and(|e| end.after(&e.id) == e.position) && decision.acl_before() == live.head.acl_head;
    if follows {
        return Ok(());
    }
    let decided = first.map_or(Seq::ZERO, |e| e.position.seq);
    Err(StoreError::StaleDecision { space: *space, log_end: end.seq, decided })
}

fn insert_head(db: &Db<'_>, head: &Head) -> Result<()> {
    db.execute("INSERT INTO space_heads VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)", head_values(head)?)?;
    Ok(())
}

/// Writes the end of a log; once per space and transaction.
pub(crate) fn update_head(db: &Db<'_>, head: &Head) -> Result<()> {
    db.execute(
        "UPDATE space_heads SET seq = ?2, chain = ?3, acl_head = ?4, digest = ?5, trees = ?6, changes = ?7, bytes = ?8
         WHERE space_no = ?1",
        head_values(head)?,
    )?;
    Ok(())
}

fn head_values(head: &Head) -> Result<impl rusqlite::Params + '_> {
    Ok((
        head.space_no,
        integer("log position", head.position.seq.0)?,
        head.position.chain.as_bytes(),
        head.acl_head.as_bytes(),
        head.digest.to_bytes(),
        integer("trees", head.counts.trees)?,
        integer("changes", head.counts.changes)?,
        integer("bytes", head.counts.bytes)?,
    ))
}

pub(crate) fn insert_tree(db: &Db<'_>, space_no: i64, tree: &TreeId, state: &TreeState, changes: i64) -> Result<i64> {
    let (purged_at, purged_by) = purge_values(state)?;
    db.insert(
        "INSERT INTO trees (space_no, id8, id, root, created, first_author, heads, changes, purged_at, purged_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        rusqlite::params![
            space_no,
            db.prefix(tree.prefix8()),
            tree.as_bytes(),
            encode_root(&state.root),
            integer("log position", state.created.0)?,
            state.first_author.as_bytes(),
            encode_heads(&state.heads),
            changes,
            purged_at,
            purged_by,
        ],
    )
}

pub(crate) fn update_tree(db: &Db<'_>, tree_no: i64, state: &TreeState, changes: i64) -> Result<()> {
    let (purged_at, purged_by) = purge_values(state)?;
    db.execute(
        "UPDATE trees SET root = ?2, created = ?3, first_author = ?4, heads = ?5, changes = changes + ?6, purged_at = ?7,
         purged_by = ?8 WHERE tree_no = ?1",
        rusqlite::params![
            tree_no,
            encode_root(&state.root),
            integer("log position", state.created.0)?,
            state.first_author.as_bytes(),
            encode_heads(&state.heads),
            changes,
            purged_at,
            purged_by,
        ],
    )?;
    Ok(())
}

fn purge_values(state: &TreeState) -> Result<(Option<i64>, Option<[u8; 32]>)> {
    match &state.purged {
        None => Ok((None, None)),
        Some(purge) => Ok((Some(integer("log position", purge.at.0)?), Some(*purge.by.as_bytes()))),
    }
}

fn epoch_of(record: &RawRecord) -> Result<u32> {
    let body = pb::TreeChange::decode(record.body.clone());
    body.map(|b| b.epoch).map_err(|e| StoreError::damaged(format!("a change to store does not decode: {e}")))
}

fn change_body(row: &LogRow) -> Option<pb::TreeChange> {
    pb::TreeChange::decode(row.record.body.clone()).ok()
}

/// Changes without children.
fn heads_of(changes: &[LogRow]) -> Option<BTreeSet<ChangeId>> {
    let mut heads: BTreeSet<EntryId> = changes.iter().map(|c| c.id).collect();
    for change in changes {
        for parent in change_body(change)?.parents {
            if let Ok(parent) = EntryId::try_from(parent.as_ref()) {
                heads.remove(&parent);
            }
        }
    }
    Some(heads.into_iter().map(ChangeId::from).collect())
}
