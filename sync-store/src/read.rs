//! Reading: one transaction, one moment.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use rusqlite::Row;
use sync_core::acl::AclState;
use sync_core::ids::{AclId, Chain, ChangeId, EntryId, Epoch, HistoryId, Seq, SpaceId, TombstoneId, TreeId};
use sync_core::log::{ChangeState, EntryKind, Position, TreeState, View};
use sync_core::pb;
use sync_core::reconcile::{Element, SetDigest, TreePrefix};
use sync_core::record::{AclRecord, AclRoot, RawRecord, verify_as};
use sync_core::tree::{Height, OrderKey, heads_hash};

use crate::cache::{AclCache, Head, Live, Staging};
use crate::db::{
    Db, blob, hash, integer, log_key, log_key_after, log_key_asked, log_key_last, misfit, number, seq, seq_of_key,
};
use crate::error::StoreError;
use crate::rows::{ChangeLink, ChangePlace, LogRow, SpaceCounts, SpaceRow, entry_kind, kind_of_code, tree_named};
use crate::trees::{TreeRow, read_tree, tree_columns};

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// One moment of the store. Everything read through it belongs together.
///
/// Lives as long as the closure it was lent to; a [`crate::WriteTx`] derefs to it and shows the job's own writes.
pub struct ReadTx<'c> {
    pub(crate) db: Db<'c>,
    acls: &'c AclCache,
    /// Present on the storage thread.
    staging: Option<RefCell<Staging<'c>>>,
}

impl fmt::Debug for ReadTx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadTx").field("writes", &self.staging.is_some()).finish_non_exhaustive()
    }
}

/// The columns of a log entry, from column 0; see [`read_entry`].
macro_rules! entry_columns {
    () => {
        "key, kind, flags, height, id, chain, version, body, signature, payload"
    };
}
pub(crate) use entry_columns;

/// The columns of a log's end, from column 0; see [`read_head`].
macro_rules! head_columns {
    () => {
        "h.space_no, h.seq, h.chain, h.acl_head, h.digest, h.trees, h.changes, h.bytes"
    };
}

const FLAG_QUARANTINED: i64 = 1;

impl<'c> ReadTx<'c> {
    pub(crate) fn of_snapshot(db: Db<'c>, acls: &'c AclCache) -> Self {
        Self { db, acls, staging: None }
    }

    pub(crate) fn of_job(db: Db<'c>, acls: &'c AclCache, staging: Staging<'c>) -> Self {
        Self { db, acls, staging: Some(RefCell::new(staging)) }
    }

    // ---- spaces -----------------------------------------------------------------------------------------------------

    /// Every space with a log, by id.
    ///
    /// # Errors
    /// If the store fails.
    pub fn spaces(&self) -> Result<Vec<SpaceRow>> {
        let ids =
            self.db.all("SELECT i.id FROM spaces s JOIN space_ids i USING (space_no) ORDER BY i.id", [], |row| {
                hash(row, 0).map(SpaceId::from_hash)
            })?;
        let mut rows = Vec::with_capacity(ids.len());
        for space in ids {
            rows.extend(self.space(space)?);
        }
        Ok(rows)
    }

    /// One space, if it has a log here.
    ///
    /// # Errors
    /// If the store fails.
    pub fn space(&self, space: SpaceId) -> Result<Option<SpaceRow>> {
        let Some(end) = self.head(&space, |h| (h.space_no, h.position, h.acl_head))? else { return Ok(None) };
        let (space_no, position, acl_head) = end;
        self.db.one("SELECT header, history FROM spaces WHERE space_no = ?1", [space_no], |row| {
            let header = RawRecord::from_slice(row.get_ref(0)?.as_blob()?).map_err(|e| misfit(0, e))?;
            Ok(SpaceRow { space, header, position, acl_head, history: HistoryId(row.get(1)?) })
        })
    }

    /// How much a space holds.
    ///
    /// # Errors
    /// If the store fails.
    pub fn counts(&self, space: SpaceId) -> Result<Option<SpaceCounts>> {
        self.head(&space, |h| h.counts)
    }

    /// The digest of [`ReadTx::elements`].
    ///
    /// # Errors
    /// If the store fails.
    pub fn digest(&self, space: SpaceId) -> Result<Option<SetDigest>> {
        self.head(&space, |h| h.digest.clone())
    }

    /// The ACL at the end of the log.
    ///
    /// # Errors
    /// If the store fails, or the stored ACL log does not fold.
    pub fn acl(&self, space: SpaceId) -> Result<Option<Arc<AclState>>> {
        self.live(&space, |live| Arc::clone(&live.acl))
    }

    /// The end of the log, as the rules see it.
    ///
    /// # Errors
    /// If the store fails.
    pub fn view(&self, space: SpaceId) -> Result<Option<SpaceView<'_>>> {
        let found = self.live(&space, |live| (live.head.space_no, live.head.position, Arc::clone(&live.acl)))?;
        Ok(found.map(|(space_no, position, acl)| SpaceView {
            db: &self.db,
            space,
            space_no,
            position,
            acl,
            last_tree: RefCell::default(),
        }))
    }

    /// The number of a space that has a log.
    pub(crate) fn log_no(&self, space: &SpaceId) -> Result<Option<i64>> {
        self.head(space, |h| h.space_no)
    }

    /// The number of a space, log or not.
    pub(crate) fn space_no(&self, space: &SpaceId) -> Result<Option<i64>> {
        self.db.one("SELECT space_no FROM space_ids WHERE id = ?1", [space.as_bytes()], |row| row.get(0))
    }

    fn head<T>(&self, space: &SpaceId, get: impl FnOnce(&Head) -> T) -> Result<Option<T>> {
        if let Some(staging) = &self.staging
            && let Some(live) = staging.borrow_mut().get(space)
        {
            return Ok(Some(get(&live.head)));
        }
        Ok(self.head_row(space)?.as_ref().map(get))
    }

    /// The committed end of a log. Of one that is new in this transaction nothing is.
    pub(crate) fn committed_end(&self, space: &SpaceId) -> Result<Seq> {
        if let Some(staging) = &self.staging {
            let mut staging = staging.borrow_mut();
            if staging.is_forgotten(space) {
                return Ok(Seq::ZERO);
            }
            if let Some(live) = staging.committed.get(space) {
                return Ok(live.head.position.seq);
            }
            if staging.get(space).is_some() {
                return Ok(Seq::ZERO);
            }
        }
        Ok(self.head_row(space)?.map_or(Seq::ZERO, |head| head.position.seq))
    }

    fn head_row(&self, space: &SpaceId) -> Result<Option<Head>> {
        const SQL: &str = concat!(
            "SELECT ",
            head_columns!(),
            " FROM space_ids i JOIN space_heads h USING (space_no) WHERE i.id = ?1"
        );
        self.db.one(SQL, [space.as_bytes()], read_head)
    }

    /// The end of a log with its ACL; loads it into the storage thread's cache when called there.
    fn live<T>(&self, space: &SpaceId, get: impl FnOnce(&Live) -> T) -> Result<Option<T>> {
        if let Some(staging) = &self.staging
            && let Some(live) = staging.borrow_mut().get(space)
        {
            return Ok(Some(get(live)));
        }
        let Some(head) = self.head_row(space)? else { return Ok(None) };
        let acl = self.acl_at(space, &head)?;
        let live = Live { head, acl };
        let value = get(&live);
        if let Some(staging) = &self.staging {
            // Rows of log ends are written after the last job of a transaction, so what a job reads there is committed.
            staging.borrow_mut().committed.put(*space, live);
        }
        Ok(Some(value))
    }

    pub(crate) fn live_clone(&self, space: &SpaceId) -> Result<Option<Live>> {
        self.live(space, Live::clone)
    }

    fn acl_at(&self, space: &SpaceId, head: &Head) -> Result<Arc<AclState>> {
        if let Some(acl) = self.acls.get(space, head.space_no, &head.acl_head) {
            return Ok(acl);
        }
        let acl = match fold_acl(*space, self.acl_rows(head.space_no)?) {
            Ok(acl) if acl.head == head.acl_head => Arc::new(acl),
            Ok(acl) => {
                return self
                    .db
                    .damaged(format!("the ACL log of {space} ends with {}, not {}", acl.head, head.acl_head));
            }
            Err(why) => return self.db.damaged(format!("the ACL log of {space}: {why}")),
        };
        self.acls.offer(*space, head.space_no, &acl);
        Ok(acl)
    }

    pub(crate) fn staging_mut(&mut self) -> &mut Staging<'c> {
        self.staging.as_mut().expect("a WriteTx is made with a staging area").get_mut()
    }

    pub(crate) fn into_parts(self) -> (Db<'c>, Option<Staging<'c>>) {
        (self.db, self.staging.map(RefCell::into_inner))
    }

    // ---- the log ----------------------------------------------------------------------------------------------------

    /// Entries after a position, in order: at most `entries_max`, and not more once `bytes_max` bytes of records are
    /// reached. At least one if there is one, and a tree's root is never parted from the change right after it (one more
    /// comes if needed).
    ///
    /// # Errors
    /// If the store fails.
    pub fn entries(&self, space: SpaceId, after: Seq, entries_max: usize, bytes_max: usize) -> Result<Vec<LogRow>> {
        const SQL: &str = concat!("SELECT ", entry_columns!(), " FROM log WHERE key > ?1 AND key <= ?2 ORDER BY key");
        let Some(space_no) = self.log_no(&space)? else { return Ok(Vec::new()) };
        let mut found: Vec<LogRow> = Vec::new();
        let mut bytes = 0;
        self.db.each(SQL, [log_key_after(space_no, after)?, log_key_last(space_no)], |row| {
            let entry = read_entry(row)?;
            let size = entry.record.wire_bytes();
            let parted = found.last().is_some_and(|last| last.kind == EntryKind::Root);
            let full = found.len() >= entries_max || bytes + size > bytes_max;
            if full && !parted && !found.is_empty() {
                return Ok(ControlFlow::Break(()));
            }
            bytes += size;
            found.push(entry);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// The ids of entries after a position, in order.
    ///
    /// # Errors
    /// If the store fails.
    pub fn entry_ids(&self, space: SpaceId, after: Seq, max: usize) -> Result<Vec<(Seq, EntryKind, EntryId)>> {
        let Some(space_no) = self.log_no(&space)? else { return Ok(Vec::new()) };
        let range = (log_key_after(space_no, after)?, log_key_last(space_no), limit(max));
        self.db.all("SELECT key, kind, id FROM log WHERE key > ?1 AND key <= ?2 ORDER BY key LIMIT ?3", range, |row| {
            let kind = kind_of_code(row.get(1)?).and_then(entry_kind).map_err(|e| misfit(1, e))?;
            Ok((seq_of_key(row.get(0)?), kind, EntryId::from_hash(hash(row, 2)?)))
        })
    }

    /// The ACL log with its root, in order. Reads nothing else.
    ///
    /// # Errors
    /// If the store fails.
    pub fn acl_records(&self, space: SpaceId) -> Result<Vec<(Seq, RawRecord)>> {
        match self.log_no(&space)? {
            None => Ok(Vec::new()),
            Some(space_no) => self.acl_rows(space_no),
        }
    }

    pub(crate) fn acl_rows(&self, space_no: i64) -> Result<Vec<(Seq, RawRecord)>> {
        const SQL: &str = concat!(
            "SELECT ",
            entry_columns!(),
            " FROM log INDEXED BY log_acl WHERE kind <= 2 AND key > ?1 AND key <= ?2 ORDER BY key"
        );
        let range = [log_key(space_no, Seq::ZERO)?, log_key_last(space_no)];
        self.db.all(SQL, range, |row| read_entry(row).map(|e| (e.position.seq, e.record)))
    }

    /// The log up to and including an entry; `None` if it does not reach so far.
    ///
    /// # Errors
    /// If the store fails.
    pub fn position_at(&self, space: SpaceId, seq: Seq) -> Result<Option<Position>> {
        let Some(space_no) = self.log_no(&space)? else { return Ok(None) };
        if seq == Seq::ZERO {
            return Ok(Some(Position::start(&space)));
        }
        let Some(key) = log_key_asked(space_no, seq)? else { return Ok(None) };
        self.db.one("SELECT chain FROM log WHERE key = ?1", [key], |row| {
            Ok(Position { seq, chain: Chain::from_hash(hash(row, 0)?) })
        })
    }

    /// One entry.
    ///
    /// # Errors
    /// If the store fails.
    pub fn entry_at(&self, space: SpaceId, seq: Seq) -> Result<Option<LogRow>> {
        const SQL: &str = concat!("SELECT ", entry_columns!(), " FROM log WHERE key = ?1");
        let Some(space_no) = self.log_no(&space)? else { return Ok(None) };
        let Some(key) = log_key_asked(space_no, seq)? else { return Ok(None) };
        self.db.one(SQL, [key], read_entry)
    }

    // ---- trees ------------------------------------------------------------------------------------------------------

    /// What the log says of a tree.
    ///
    /// # Errors
    /// If the store fails.
    pub fn tree(&self, space: SpaceId, tree: TreeId) -> Result<Option<TreeState>> {
        Ok(self.tree_row(&space, &tree)?.map(|row| row.state))
    }

    pub(crate) fn tree_row(&self, space: &SpaceId, tree: &TreeId) -> Result<Option<TreeRow>> {
        match self.log_no(space)? {
            None => Ok(None),
            Some(space_no) => find_tree(&self.db, *space, space_no, tree),
        }
    }

    pub(crate) fn tree_no(&self, space_no: i64, tree: &TreeId) -> Result<Option<i64>> {
        self.db.one(
            "SELECT tree_no FROM trees WHERE space_no = ?1 AND id8 = ?2 AND id = ?3",
            (space_no, self.db.prefix(tree.prefix8()), tree.as_bytes()),
            |row| row.get(0),
        )
    }

    /// The accepted changes of a tree in its total order, by height and then id.
    ///
    /// # Errors
    /// If the store fails.
    pub fn tree_changes(&self, space: SpaceId, tree: TreeId) -> Result<Vec<LogRow>> {
        const SQL: &str = concat!("SELECT ", entry_columns!(), " FROM log WHERE tree_no = ?1 AND kind = 4");
        let Some(space_no) = self.log_no(&space)? else { return Ok(Vec::new()) };
        let Some(tree_no) = self.tree_no(space_no, &tree)? else { return Ok(Vec::new()) };
        let mut changes = self.db.all(SQL, [tree_no], read_entry)?;
        changes.sort_unstable_by_key(|c| (c.height, c.id));
        Ok(changes)
    }

    /// Where the accepted changes of a tree stand that the log has up to `until`, in the tree's total order, without their
    /// records: what of a large tree fits memory.
    ///
    /// # Errors
    /// If the store fails.
    pub fn change_places(&self, space: SpaceId, tree: TreeId, until: Seq) -> Result<Vec<ChangePlace>> {
        const SQL: &str = "SELECT key, height, id FROM log WHERE tree_no = ?1 AND kind = 4 AND key <= ?2";
        let Some(space_no) = self.log_no(&space)? else { return Ok(Vec::new()) };
        let Some(tree_no) = self.tree_no(space_no, &tree)? else { return Ok(Vec::new()) };
        let mut places = self.db.all(SQL, [tree_no, log_key_after(space_no, until)?], |row| {
            let order = OrderKey { height: Height(number(row, 1)?), id: ChangeId::from_hash(hash(row, 2)?) };
            Ok(ChangePlace { order, seq: seq_of_key(row.get(0)?) })
        })?;
        places.sort_unstable_by_key(|place| place.order);
        Ok(places)
    }

    /// The accepted changes of a tree that stand in the log after `after` and up to `until`, in log order: at most
    /// `changes_max`, and not more once `bytes_max` bytes of records are reached; at least one if there is one.
    ///
    /// # Errors
    /// If the store fails.
    pub fn tree_changes_after(
        &self,
        space: SpaceId,
        tree: TreeId,
        range: (Seq, Seq),
        changes_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<LogRow>> {
        // Both give the same rows. The first reads the part of the log, the second the index of the tree.
        const BY_LOG: &str = concat!(
            "SELECT ",
            entry_columns!(),
            " FROM log NOT INDEXED WHERE key > ?1 AND key <= ?2 AND tree_no = ?3 AND kind = 4 ORDER BY key"
        );
        const BY_TREE: &str = concat!(
            "SELECT ",
            entry_columns!(),
            " FROM log INDEXED BY log_by_tree WHERE key > ?1 AND key <= ?2 AND tree_no = ?3 AND kind = 4 ORDER BY key"
        );
        let Some(space_no) = self.log_no(&space)? else { return Ok(Vec::new()) };
        let sized = "SELECT tree_no, changes FROM trees WHERE space_no = ?1 AND id8 = ?2 AND id = ?3";
        let key = (space_no, self.db.prefix(tree.prefix8()), tree.as_bytes());
        let Some((tree_no, changes)) = self.db.one(sized, key, |row| Ok((row.get::<_, i64>(0)?, number(row, 1)?)))?
        else {
            return Ok(Vec::new());
        };
        let (after, until) = range;
        let sql = if until.0.saturating_sub(after.0) <= changes { BY_LOG } else { BY_TREE };
        let bounds = [log_key_after(space_no, after)?, log_key_after(space_no, until)?, tree_no];
        let mut found: Vec<LogRow> = Vec::new();
        let mut bytes = 0;
        self.db.each(sql, bounds, |row| {
            let entry = read_entry(row)?;
            bytes += entry.record.wire_bytes();
            let full = found.len() >= changes_max || bytes > bytes_max;
            if full && !found.is_empty() {
                return Ok(ControlFlow::Break(()));
            }
            found.push(entry);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// The accepted changes of a tree in log order, without their records: what of a large tree fits memory.
    ///
    /// # Errors
    /// If the store fails.
    pub fn change_links(&self, space: SpaceId, tree: TreeId) -> Result<Vec<ChangeLink>> {
        const SQL: &str = "SELECT key, id, body FROM log WHERE tree_no = ?1 AND kind = 4";
        let Some(space_no) = self.log_no(&space)? else { return Ok(Vec::new()) };
        let Some(tree_no) = self.tree_no(space_no, &tree)? else { return Ok(Vec::new()) };
        let mut links = self.db.all(SQL, [tree_no], read_link)?;
        links.sort_unstable_by_key(|link| link.seq);
        Ok(links)
    }

    /// One accepted change.
    ///
    /// # Errors
    /// If the store fails.
    pub fn change(&self, space: SpaceId, tree: TreeId, change: ChangeId) -> Result<Option<LogRow>> {
        const SQL: &str =
            concat!("SELECT ", entry_columns!(), " FROM log WHERE tree_no = ?1 AND id8 = ?2 AND id = ?3 AND kind = 4");
        let Some(space_no) = self.log_no(&space)? else { return Ok(None) };
        let Some(tree_no) = self.tree_no(space_no, &tree)? else { return Ok(None) };
        self.db.one(SQL, (tree_no, self.db.prefix(change.prefix8()), change.as_bytes()), read_entry)
    }

    /// What HeadSync compares, sorted: the ACL head first (when `after` is `None`), then trees by id. At most `max`, which
    /// should be 2 or more: a first page of the ACL head alone does not say where the second begins.
    ///
    /// # Errors
    /// If the store fails.
    pub fn elements(&self, space: SpaceId, after: Option<TreeId>, max: usize) -> Result<Vec<Element>> {
        let Some((space_no, acl_head)) = self.head(&space, |h| (h.space_no, h.acl_head))? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        if after.is_none() && max > 0 {
            found.push(Element::AclHead(acl_head));
        }
        let room = limit(max.saturating_sub(found.len()));
        // Before the first tree: no id is less than the empty one.
        let (prefix, id) = after.as_ref().map_or((i64::MIN, &[][..]), |t| (self.db.prefix(t.prefix8()), t.as_bytes()));
        found.extend(self.db.all(
            "SELECT id, heads, purged_by FROM trees
             WHERE space_no = ?1 AND id8 >= ?2 AND (id8 > ?2 OR id > ?3) ORDER BY id8, id LIMIT ?4",
            (space_no, prefix, id, room),
            read_element,
        )?);
        Ok(found)
    }

    /// Every element, in no order.
    ///
    /// # Errors
    /// If the store fails.
    pub fn each_element(&self, space: SpaceId, mut with: impl FnMut(Element)) -> Result<()> {
        let Some((space_no, acl_head)) = self.head(&space, |h| (h.space_no, h.acl_head))? else { return Ok(()) };
        with(Element::AclHead(acl_head));
        self.db.each("SELECT id, heads, purged_by FROM trees WHERE space_no = ?1", [space_no], |row| {
            with(read_element(row)?);
            Ok(ControlFlow::Continue(()))
        })
    }

    /// The elements of all trees whose id begins so.
    ///
    /// # Errors
    /// If the store fails.
    pub fn elements_with(&self, space: SpaceId, prefix: TreePrefix) -> Result<Vec<Element>> {
        let Some(space_no) = self.log_no(&space)? else { return Ok(Vec::new()) };
        let id8 = self.db.prefix(i64::from_be_bytes(prefix.0));
        let sql = "SELECT id, heads, purged_by FROM trees WHERE space_no = ?1 AND id8 = ?2 ORDER BY id";
        let mut found = self.db.all(sql, (space_no, id8), read_element)?;
        found.retain(|element| element.key().is_some_and(|tree| TreePrefix::of(&tree) == prefix));
        Ok(found)
    }

    // ---- free keys --------------------------------------------------------------------------------------------------

    /// A value that the shell keeps under a name of its own.
    ///
    /// # Errors
    /// If the store fails.
    pub fn kv(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.db.one("SELECT value FROM kv WHERE key = ?1", [key], |row| row.get(0))
    }

    /// Every key that begins with `prefix`, with its value, sorted.
    ///
    /// # Errors
    /// If the store fails.
    pub fn kv_scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut found = Vec::new();
        self.db.each("SELECT key, value FROM kv WHERE key >= ?1 ORDER BY key", [prefix], |row| {
            let key: String = row.get(0)?;
            if !key.starts_with(prefix) {
                return Ok(ControlFlow::Break(()));
            }
            found.push((key, row.get(1)?));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }
}

/// The end of one log, as [`sync_core::log::decide`] asks for it.
pub struct SpaceView<'a> {
    db: &'a Db<'a>,
    space: SpaceId,
    space_no: i64,
    position: Position,
    acl: Arc<AclState>,
    /// A decision asks for one tree several times.
    last_tree: RefCell<Option<(TreeId, Option<TreeRow>)>>,
}

impl fmt::Debug for SpaceView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpaceView")
            .field("space", &self.space)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl SpaceView<'_> {
    /// The ACL, to keep.
    #[must_use]
    pub fn acl_shared(&self) -> Arc<AclState> {
        Arc::clone(&self.acl)
    }

    fn with_tree<T>(&self, tree: &TreeId, get: impl FnOnce(Option<&TreeRow>) -> T) -> Result<T> {
        let mut last = self.last_tree.borrow_mut();
        if let Some((known, row)) = last.as_ref()
            && known == tree
        {
            return Ok(get(row.as_ref()));
        }
        let row = find_tree(self.db, self.space, self.space_no, tree)?;
        let value = get(row.as_ref());
        *last = Some((*tree, row));
        Ok(value)
    }
}

impl View for SpaceView<'_> {
    type Error = StoreError;

    fn position(&self) -> Position {
        self.position
    }

    fn acl(&self) -> &AclState {
        &self.acl
    }

    fn tree(&self, tree: &TreeId) -> Result<Option<TreeState>> {
        self.with_tree(tree, |row| row.map(|r| r.state.clone()))
    }

    fn change(&self, tree: &TreeId, change: &ChangeId) -> Result<Option<ChangeState>> {
        let Some(tree_no) = self.with_tree(tree, |row| row.map(|r| r.tree_no))? else { return Ok(None) };
        self.db.one(
            "SELECT key, height, epoch FROM log WHERE tree_no = ?1 AND id8 = ?2 AND id = ?3 AND kind = 4",
            (tree_no, self.db.prefix(change.prefix8()), change.as_bytes()),
            |row| {
                let epoch = Epoch(row.get(2)?);
                Ok(ChangeState { at: seq_of_key(row.get(0)?), height: Height(number(row, 1)?), epoch })
            },
        )
    }
}

fn find_tree(db: &Db<'_>, space: SpaceId, space_no: i64, tree: &TreeId) -> Result<Option<TreeRow>> {
    const SQL: &str = concat!("SELECT ", tree_columns!(), " FROM trees WHERE space_no = ?1 AND id8 = ?2 AND id = ?3");
    let key = (space_no, db.prefix(tree.prefix8()), tree.as_bytes());
    db.one(SQL, key, |row| read_tree(db, space, row))
}

fn read_head(row: &Row<'_>) -> rusqlite::Result<Head> {
    let position = Position { seq: seq(row, 1)?, chain: Chain::from_hash(hash(row, 2)?) };
    let digest = SetDigest::from_bytes(row.get_ref(4)?.as_blob()?).ok_or_else(|| misfit(4, "not a set digest"))?;
    let counts = SpaceCounts {
        trees: number(row, 5)?,
        changes: number(row, 6)?,
        entries: position.seq.0,
        bytes: number(row, 7)?,
    };
    Ok(Head { space_no: row.get(0)?, position, acl_head: AclId::from_hash(hash(row, 3)?), digest, counts })
}

pub(crate) fn read_entry(row: &Row<'_>) -> rusqlite::Result<LogRow> {
    let position = Position { seq: seq_of_key(row.get(0)?), chain: Chain::from_hash(hash(row, 5)?) };
    let id = EntryId::from_hash(hash(row, 4)?);
    let record = read_record(row)?;
    let kind = entry_kind(record.kind).map_err(|e| misfit(1, e))?;
    let height = row.get::<_, Option<i64>>(3)?.map(|_| number(row, 3).map(Height)).transpose()?;
    let quarantined = row.get::<_, i64>(2)? & FLAG_QUARANTINED != 0;
    let tree = tree_named(kind, &record, id);
    Ok(LogRow { position, kind, id, record, tree, height, quarantined })
}

/// A body that does not decode has no parents: whoever checks the record finds it damaged.
fn read_link(row: &Row<'_>) -> rusqlite::Result<ChangeLink> {
    let body = pb::TreeChange::decode(row.get_ref(2)?.as_blob()?).unwrap_or_default();
    let parents = body.parents.iter().filter_map(|parent| ChangeId::try_from(parent.as_ref()).ok()).collect();
    Ok(ChangeLink { seq: seq_of_key(row.get(0)?), id: ChangeId::from_hash(hash(row, 1)?), parents })
}

/// Columns 1 and 6 to 9 of an entry. One allocation for the three byte strings.
fn read_record(row: &Row<'_>) -> rusqlite::Result<RawRecord> {
    let kind = kind_of_code(row.get(1)?).map_err(|e| misfit(1, e))?;
    let (body, signature) = (row.get_ref(7)?.as_blob()?, row.get_ref(8)?.as_blob()?);
    let payload = row.get_ref(9)?.as_blob_or_null()?;
    let all = Bytes::from([body, signature, payload.unwrap_or_default()].concat());
    let (body_end, signature_end) = (body.len(), body.len() + signature.len());
    Ok(RawRecord {
        kind,
        version: row.get(6)?,
        body: all.slice(..body_end),
        signature: all.slice(body_end..signature_end),
        payload: payload.map(|_| all.slice(signature_end..)),
    })
}

fn read_element(row: &Row<'_>) -> rusqlite::Result<Element> {
    let tree = TreeId::from_hash(hash(row, 0)?);
    if row.get_ref(2)?.as_blob_or_null()?.is_some() {
        return Ok(Element::Purged { tree, by: TombstoneId::from_hash(hash(row, 2)?) });
    }
    let (heads, _) = row.get_ref(1)?.as_blob()?.as_chunks::<32>();
    let heads: BTreeSet<ChangeId> = heads.iter().map(|id| ChangeId::from_hash(*id)).collect();
    Ok(Element::Tree { tree, heads_hash: heads_hash(&tree, &heads) })
}

/// Replays an ACL log. Our own file is not trusted either: every record is verified and judged again.
pub(crate) fn fold_acl(space: SpaceId, rows: Vec<(Seq, RawRecord)>) -> std::result::Result<AclState, String> {
    let mut rows = rows.into_iter();
    let (_, root) = rows.next().ok_or("it is empty")?;
    let root = verify_as::<AclRoot>(root).map_err(|e| e.to_string())?;
    let mut acl = AclState::found(space, &root);
    for (at, record) in rows {
        let record = verify_as::<AclRecord>(record).map_err(|e| format!("entry {at}: {e}"))?;
        acl = acl.fold_in(&record, at).map_err(|e| format!("entry {at}: {e}"))?;
    }
    Ok(acl)
}

pub(crate) fn limit(max: usize) -> i64 {
    integer("limit", max as u64).unwrap_or(i64::MAX)
}

pub(crate) fn optional_blob(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Bytes>> {
    row.get_ref(column)?.as_blob_or_null()?.map(|_| blob(row, column)).transpose()
}
