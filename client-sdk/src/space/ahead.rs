//! Trees that are read before the tail has brought them.
//!
//! What is fetched ahead is bound to the log that the node showed with its ACL (each id must continue the chain), decided
//! against the ACL as of its place, and kept in rows of its own. Readers see it over what is logged. It never becomes a
//! parent, a head, or part of "synced"; the transaction that appends its place takes it away, and another id at that place
//! is the node's fault.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use sync_core::acl::AclState;
use sync_core::ids::{ChangeId, EntryId, Epoch, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::{ChangeState, DecideError, EntryKind, Outcome, Position, Submission, TreeState, View, decide};
use sync_core::record::{
    AclRecord, Kind, RawRecord, TreeChange, TreeRoot, Verified, VerifiedRecord, verify, verify_as,
};
use sync_core::tree::{Height, OrderKey, heads_after};
use sync_e2ee::KeyRing;
use sync_store::{AheadRow, ReadTx, SpaceView, StoreError, SyncItemKind, WriteTx};

use super::project::{self, Content};
use super::syncer::FetchError;
use super::{SpaceInner, absorb};
use crate::acl::read::{AclRead, Follow};
use crate::client::Shared;
use crate::connect::Conn;
use crate::error::{AclError, CallError, JoinError, ReadError, from_store_write};
use crate::events::Event;
use crate::object::ObjectState;
use crate::synced::Sight;

/// What is read ahead is read with this.
pub(crate) struct Ahead {
    pub(crate) acl: AclState,
    pub(crate) ring: KeyRing,
}

/// The ACL as the node showed it, to decide with.
pub(crate) struct AclAhead {
    read: AclRead,
    records: Vec<(Seq, Verified<AclRecord>)>,
}

impl AclAhead {
    fn new(read: AclRead) -> Result<Self, ReadError> {
        let mut records = Vec::new();
        for record in read.records().iter().filter(|r| r.kind != Kind::AclRoot) {
            // They were verified when they were read.
            let Ok(record) = verify_as::<AclRecord>(record.clone()) else { continue };
            let Some(seq) = read.state.records.get(&record.id().into()) else { continue };
            records.push((*seq, record));
        }
        Ok(Self { read, records })
    }

    /// The ACL before an entry.
    fn before(&self, seq: Seq, from: &mut (usize, AclState)) -> Result<(), CallError> {
        while let Some((at, record)) = self.records.get(from.0).filter(|(at, _)| *at < seq) {
            if !from.1.records.contains_key(&record.id().into()) {
                from.1 = from.1.apply(record, *at).map_err(|e| CallError::BadAnswer(e.to_string()))?;
            }
            from.0 += 1;
        }
        Ok(())
    }

    /// The node showed this id at this place before.
    fn continues(&self, seq: Seq, id: &EntryId) -> bool {
        let before = Seq(seq.0.saturating_sub(1));
        let Some(chain) = self.read.chain_at(before) else { return false };
        self.read.chain_at(seq) == Some(Position { seq: before, chain }.after(id).chain)
    }
}

/// The ACL as the node showed it last, read once for all that need it.
#[derive(Default)]
pub(crate) struct Shown {
    /// With how often it had been forgotten when it was asked for.
    known: tokio::sync::Mutex<Option<(u64, Arc<AclAhead>)>>,
    drops: AtomicU64,
}

impl Shown {
    /// Nobody waits here for whoever reads: what is being read now is forgotten, too.
    fn forget(&self) {
        self.drops.fetch_add(1, Ordering::AcqRel);
        if let Ok(mut known) = self.known.try_lock() {
            *known = None;
        }
    }
}

/// The log as of an entry of one tree, as far as that tree is concerned.
struct AheadView<'a> {
    position: Position,
    acl: &'a AclState,
    logged: SpaceView<'a>,
    tree: Option<&'a TreeState>,
    changes: &'a BTreeMap<ChangeId, ChangeState>,
}

impl View for AheadView<'_> {
    type Error = StoreError;

    fn position(&self) -> Position {
        self.position
    }

    fn acl(&self) -> &AclState {
        self.acl
    }

    fn tree(&self, _: &TreeId) -> Result<Option<TreeState>, StoreError> {
        Ok(self.tree.cloned())
    }

    fn change(&self, tree: &TreeId, change: &ChangeId) -> Result<Option<ChangeState>, StoreError> {
        if let Some(known) = self.changes.get(change) {
            return Ok(Some(*known));
        }
        self.logged.change(tree, change)
    }
}

/// What came of a chunk.
struct Kept {
    rows: Vec<AheadRow>,
    /// A root whose first change is in the next chunk.
    root: Option<(Seq, RawRecord)>,
}

impl SpaceInner {
    /// What is read ahead of the tail with; `None` when nothing is.
    pub(crate) fn ahead(&self) -> Option<Arc<Ahead>> {
        self.ahead.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_ahead(&self, ahead: Option<Arc<Ahead>>) {
        *self.ahead.write().unwrap_or_else(PoisonError::into_inner) = ahead;
    }

    /// The ACL to the end of the node's log, read once for all that need it.
    pub(crate) async fn acl_ahead(&self, at_least: Seq) -> Result<Arc<AclAhead>, CallError> {
        let mut known = self.ahead_acl.known.lock().await;
        let drops = self.ahead_acl.drops.load(Ordering::Acquire);
        if let Some((_, known)) = known.as_ref().filter(|(at, k)| *at == drops && k.read.seq() >= at_least) {
            return Ok(known.clone());
        }
        let read = self.shared.read_acl(self.id, None, Follow::No).await.map_err(|error| {
            if let JoinError::Acl(AclError::Call(call)) = error {
                call
            } else {
                CallError::BadAnswer(error.to_string())
            }
        })?;
        self.saw_node_seq(read.seq());
        let read = Arc::new(AclAhead::new(read).map_err(|e| CallError::BadAnswer(e.to_string()))?);
        *known = Some((drops, read.clone()));
        Ok(read)
    }

    /// The account's standing at the end of the node's log, and what it is read with.
    pub(crate) async fn look_ahead(&self) -> Result<Arc<Ahead>, CallError> {
        let acl = self.acl_ahead(self.node_seq()).await?;
        let ahead = Arc::new(Ahead { acl: acl.read.state.clone(), ring: acl.read.ring(&self.shared) });
        Ok(ahead)
    }

    /// Fetches a tree before the tail brings it. What the tail has brought meanwhile, or nobody wrote, is not wanted any more.
    pub(super) async fn fetch_ahead(self: &Arc<Self>, conn: &Conn, tree: TreeId) -> Result<(), FetchError> {
        let mut acl = self.acl_ahead(self.node_seq()).await?;
        let mut chunks = self.ask_for(conn, tree, self.heads_with_ahead(tree)?).await?;
        let mut root = None;
        let mut entries_left = limits::AHEAD_ENTRIES_MAX;
        while let Some(chunk) = chunks.next().await? {
            let last = chunk.entries.last().map_or(Seq::ZERO, |(seq, _)| *seq);
            if last > acl.read.seq() {
                acl = self.acl_ahead(last).await?;
            }
            let Some(left) = entries_left.checked_sub(chunk.entries.len()) else {
                // A tree of that size is the tail's: reading it over and over would cost more than waiting.
                break;
            };
            entries_left = left;
            let entries = root.take().into_iter().chain(chunk.entries).collect();
            let kept = self.decide_ahead(&acl, tree, entries)?;
            root = kept.root;
            self.keep_ahead(&acl, kept.rows).await?;
        }
        self.drop_item(tree).await?;
        self.show_ahead(&acl, tree)?;
        Ok(())
    }

    /// The heads of what is here of a tree, logged or ahead.
    fn heads_with_ahead(&self, tree: TreeId) -> Result<Vec<ChangeId>, ReadError> {
        self.shared.store.read(|tx| {
            let mut heads = tx.tree(self.id, tree)?.map(|t| t.heads).unwrap_or_default();
            for row in tx.ahead_of_tree(self.id, tree)? {
                if let Ok(change) = verify_as::<TreeChange>(row.record) {
                    heads = heads_after(&heads, change.id().into(), &change.body().parents);
                }
            }
            Ok(heads.into_iter().take(limits::HEADS_MAX).collect())
        })
    }

    /// Decides entries of one tree, in order, each against the ACL as of its place.
    fn decide_ahead(&self, acl: &AclAhead, tree: TreeId, entries: Vec<(Seq, RawRecord)>) -> Result<Kept, FetchError> {
        let bad = |text: String| FetchError::Call(CallError::BadAnswer(text));
        let begun = self.shared.store.read(|tx| -> Result<_, ReadError> {
            let end = tx.space(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?.position.seq;
            let acl = tx.acl(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            Ok((end, AclState::clone(&acl)))
        });
        let (end, base) = begun?;
        let mut at = (0, base);
        let mut rows = Vec::new();
        let mut root: Option<(Seq, RawRecord)> = None;
        let mut state = AheadTree::load(self, tree)?;
        for (seq, raw) in entries.into_iter().filter(|(seq, _)| *seq > end) {
            let record = verify(raw.clone()).map_err(|e| bad(e.to_string()))?;
            if !acl.continues(seq, &raw.id()) {
                return Err(bad(format!("the node shows another entry at {seq} than in its log")));
            }
            if let VerifiedRecord::TreeRoot(_) = &record {
                root = Some((seq, raw));
                continue;
            }
            acl.before(seq, &mut at)?;
            let begins = root.take();
            let first = begins.as_ref().map_or(seq, |(seq, _)| *seq);
            let before = begins.clone().map(|(_, raw)| verify(raw)).transpose().map_err(|e| bad(e.to_string()))?;
            let submission = Submission::pair(before, record).map_err(|e| bad(e.to_string()))?;
            if submission.tree() != Some(tree) {
                return Err(bad("an entry of another tree".to_owned()));
            }
            state.take(self, first, &at.1, &submission)?;
            let row = |(seq, record): (Seq, RawRecord)| AheadRow { seq, tree: Some(tree), id: record.id(), record };
            rows.extend(begins.into_iter().chain([(seq, raw)]).map(row));
        }
        Ok(Kept { rows, root })
    }

    async fn keep_ahead(&self, acl: &AclAhead, rows: Vec<AheadRow>) -> Result<(), FetchError> {
        if rows.is_empty() {
            return Ok(());
        }
        let space = self.id;
        let acl_row = |(seq, record): &(Seq, Verified<AclRecord>)| AheadRow {
            seq: *seq,
            tree: None,
            id: record.id(),
            record: record.raw().clone(),
        };
        let acl: Vec<_> = acl.records.iter().map(acl_row).collect();
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            let end = tx.space(space)?.ok_or(ReadError::UnknownSpace(space))?.position.seq;
            for row in acl.iter().chain(&rows).filter(|row| row.seq > end) {
                tx.put_ahead(space, row)?;
            }
            Ok(())
        };
        let stored = self.shared.store.write(job).await;
        stored.map_err(|e| FetchError::local(&from_store_write(e)))?;
        Ok(())
    }

    async fn drop_item(&self, tree: TreeId) -> Result<(), FetchError> {
        let space = self.id;
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            Ok(tx.drop_sync_item(space, tree, SyncItemKind::Fetch)?)
        };
        let stored = self.shared.store.write(job).await;
        stored.map_err(|e| FetchError::local(&from_store_write(e)))?;
        Ok(())
    }

    /// Readers see what was kept.
    fn show_ahead(self: &Arc<Self>, acl: &AclAhead, tree: TreeId) -> Result<(), ReadError> {
        if self.shared.store.read(|tx| tx.ahead_of_tree(self.id, tree))?.is_empty() {
            return Ok(());
        }
        let ring = acl.read.ring(&self.shared);
        self.set_ahead(Some(Arc::new(Ahead { acl: acl.read.state.clone(), ring })));
        self.refresh(tree);
        let object = self.live_tree(tree)?.and_then(|t| t.snapshot().ok()).and_then(|s| s.object.clone());
        match object {
            Some(object) => {
                let (object_type, id) = (object.object_type, object.id);
                self.emit(Event::Object { space: self.id, tree, object_type, id });
            }
            None => self.emit(Event::Tree { space: self.id, tree }),
        }
        self.touch();
        Ok(())
    }

    /// After the tail passed something that was read ahead: readers see the log alone when nothing is left.
    pub(super) async fn end_ahead(&self) {
        let space = self.id;
        let job = move |tx: &mut WriteTx<'_>| -> Result<bool, ReadError> {
            let is_over = tx.ahead_trees(space)?.is_empty();
            if is_over {
                tx.drop_ahead(space)?;
            }
            Ok(is_over)
        };
        self.forget_ahead(job).await;
    }

    /// Forgets all of it: the node's log is another one now.
    pub(super) async fn drop_ahead(&self) {
        let space = self.id;
        self.forget_ahead(move |tx| Ok::<_, ReadError>(tx.drop_ahead(space).map(|()| true)?)).await;
    }

    async fn forget_ahead(&self, job: impl FnOnce(&mut WriteTx<'_>) -> Result<bool, ReadError> + Send + 'static) {
        match self.shared.store.write(job).await.map_err(from_store_write::<ReadError>) {
            Ok(written) if written.value => {
                self.set_ahead(None);
                self.ahead_acl.forget();
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(space = %self.id.short(), error = %error, "what was read ahead could not be forgotten");
            }
        }
    }

    /// Whether the named changes of a tree, or any without them, can be read from what was fetched ahead.
    pub(crate) fn reads_ahead(&self, tree: TreeId, heads: &[ChangeId]) -> Result<bool, ReadError> {
        let Some(ahead) = self.ahead() else { return Ok(false) };
        self.shared.store.read(|tx| {
            let rows = tx.ahead_of_tree(self.id, tree)?;
            let mut readable = BTreeSet::new();
            let mut purged = false;
            for row in rows {
                match verify(row.record) {
                    // Without its content there is nothing to read.
                    Ok(VerifiedRecord::Change(change))
                        if change.raw().payload.is_some() && ahead.ring.keys(change.body().epoch).is_some() =>
                    {
                        readable.insert(ChangeId::from(change.id()));
                    }
                    Ok(VerifiedRecord::Tombstone(_)) => purged = true,
                    Ok(_) | Err(_) => {}
                }
            }
            for head in heads {
                if !readable.contains(head) && !matches!(self.sight_of(tx, tree, *head)?, Sight::Shown) {
                    return Ok(purged);
                }
            }
            Ok(purged || !readable.is_empty())
        })
    }
}

/// One tree as of the entries that were decided so far.
struct AheadTree {
    state: Option<TreeState>,
    changes: BTreeMap<ChangeId, ChangeState>,
}

impl AheadTree {
    /// What is logged of it, with what is kept ahead.
    fn load(space: &SpaceInner, tree: TreeId) -> Result<Self, ReadError> {
        space.shared.store.read(|tx| {
            let mut found = Self { state: tx.tree(space.id, tree)?, changes: BTreeMap::new() };
            let mut root = None;
            for row in tx.ahead_of_tree(space.id, tree)? {
                match verify(row.record) {
                    Ok(VerifiedRecord::TreeRoot(r)) => root = Some((row.seq, *r.body())),
                    Ok(VerifiedRecord::Change(change)) => {
                        found.add_decided(tx, space.id, (row.seq, root.take()), &change)?;
                    }
                    // A tombstone ends a tree; nothing follows it. Others are of no tree.
                    Ok(_) | Err(_) => {}
                }
            }
            Ok(found)
        })
    }

    fn add_decided(
        &mut self,
        tx: &ReadTx<'_>,
        space: SpaceId,
        (seq, root): (Seq, Option<(Seq, TreeRoot)>),
        change: &Verified<TreeChange>,
    ) -> Result<(), ReadError> {
        let (id, body) = (ChangeId::from(change.id()), change.body());
        let height = height_of(tx, space, body, &self.changes)?;
        self.changes.insert(id, ChangeState { at: seq, height, epoch: body.epoch });
        match &mut self.state {
            Some(state) => state.heads = heads_after(&state.heads, id, &body.parents),
            None => {
                self.state = root.map(|(created, root)| TreeState {
                    root,
                    created,
                    first_author: body.author,
                    heads: BTreeSet::from([id]),
                    purged: None,
                });
            }
        }
        Ok(())
    }

    /// Decides one step, and follows it.
    fn take(
        &mut self,
        space: &SpaceInner,
        first: Seq,
        acl: &AclState,
        submission: &Submission,
    ) -> Result<(), FetchError> {
        let broken = |text: String| FetchError::Call(CallError::BadAnswer(text));
        let decided = space.shared.store.read(|tx| -> Result<_, ReadError> {
            let start = Position::start(&space.id);
            let position = Position { seq: Seq(first.0.saturating_sub(1)), chain: start.chain };
            let (tree, changes) = (self.state.as_ref(), &self.changes);
            let logged = tx.view(space.id)?.ok_or(ReadError::UnknownSpace(space.id))?;
            let view = AheadView { position, acl, logged, tree, changes };
            match decide(&view, submission) {
                Ok(Outcome::Append(decision)) => Ok(Ok(decision)),
                Ok(Outcome::Known(at)) => Ok(Err(format!("the node logged one record twice, at {at} and {first}"))),
                Err(DecideError::Reject(reject)) => Ok(Err(format!("the node logged at {first}: {reject}"))),
                Err(DecideError::Refused(refusal)) => Ok(Err(refusal.to_string())),
                Err(DecideError::View(error)) => Err(error.into()),
            }
        });
        let decision = decided?.map_err(broken)?;
        for entry in decision.entries().iter().filter(|e| e.kind == EntryKind::Change) {
            let Submission::Change { change, .. } = submission else { continue };
            let height = entry.height.unwrap_or_default();
            let state = ChangeState { at: entry.position.seq, height, epoch: change.body().epoch };
            self.changes.insert(entry.id.into(), state);
        }
        if let Some(update) = decision.tree() {
            self.state = Some(update.after.clone());
        }
        Ok(())
    }
}

fn height_of(
    tx: &ReadTx<'_>,
    space: SpaceId,
    body: &TreeChange,
    known: &BTreeMap<ChangeId, ChangeState>,
) -> Result<Height, ReadError> {
    let mut heights = Vec::with_capacity(body.parents.len());
    for parent in &body.parents {
        let logged = || -> Result<_, ReadError> {
            Ok(tx.change(space, body.tree, *parent)?.and_then(|row| row.height).unwrap_or_default())
        };
        heights.push(match known.get(parent) {
            Some(change) => change.height,
            None => logged()?,
        });
    }
    Ok(Height::above(heights))
}

/// An object with what was fetched ahead over what is logged.
pub(super) fn with_ahead(
    tx: &ReadTx<'_>,
    shared: &Shared,
    space: SpaceId,
    tree: TreeId,
    logged: Option<ObjectState>,
) -> Result<Option<ObjectState>, ReadError> {
    let Some(ahead) = shared.space_of(space).and_then(|space| space.ahead()) else { return Ok(logged) };
    let rows = tx.ahead_of_tree(space, tree)?;
    if rows.is_empty() {
        return Ok(logged);
    }
    let mut state = logged;
    let mut root = tx.tree(space, tree)?.map(|t| t.root);
    let mut known = BTreeMap::new();
    for row in rows {
        match verify(row.record) {
            Ok(VerifiedRecord::TreeRoot(found)) => root = Some(*found.body()),
            Ok(VerifiedRecord::Tombstone(_)) => return Ok(None),
            Ok(VerifiedRecord::Change(change)) => {
                let Some(root) = &root else { continue };
                let height = height_of(tx, space, change.body(), &known)?;
                let id = ChangeId::from(change.id());
                known.insert(id, ChangeState { at: row.seq, height, epoch: change.body().epoch });
                let payload = change.raw().payload.as_ref();
                let content = project::open(shared, &ahead.ring, root, change.body(), payload);
                if let Content::Ops { object_type, object_id, ops } = content {
                    let state = state.get_or_insert_with(|| ObjectState::new(&object_type, &object_id));
                    state.apply(OrderKey { height, id }, &ops);
                }
            }
            // They are of no tree, or were kept before they could be damaged: the tail brings them again.
            Ok(VerifiedRecord::SpaceHeader(_) | VerifiedRecord::AclRoot(_) | VerifiedRecord::Acl(_)) | Err(_) => {}
        }
    }
    Ok(state)
}

/// What an earlier process read ahead, if the tail has not passed it.
pub(super) fn read_ahead(tx: &ReadTx<'_>, space: SpaceId, ring: &KeyRing) -> Result<Option<Arc<Ahead>>, ReadError> {
    if tx.ahead_trees(space)?.is_empty() {
        return Ok(None);
    }
    let mut acl = AclState::clone(&*tx.acl(space)?.ok_or(ReadError::UnknownSpace(space))?);
    let mut records = Vec::new();
    for row in tx.ahead_acl(space)? {
        let Ok(record) = verify_as::<AclRecord>(row.record) else { return Ok(None) };
        let Ok(next) = acl.apply(&record, row.seq) else { return Ok(None) };
        acl = next;
        records.push(record.into_raw());
    }
    let mut ring = ring.clone();
    let mut epoch = Epoch(0);
    let logged = tx.acl_records(space)?.into_iter().map(|(_, record)| record);
    for record in logged.chain(records) {
        // A seal to somebody else that is wrong is not our affair; a missing key shows when it is needed.
        let _ = absorb(&mut ring, record, &mut epoch, &acl);
    }
    Ok(Some(Arc::new(Ahead { acl, ring })))
}

/// After entries were appended: takes what had been read ahead of them. An id that stood there and does not now is the
/// node's fault.
pub(super) fn passed(tx: &mut WriteTx<'_>, space: SpaceId, end: Seq) -> Result<Passed, ReadError> {
    let taken = tx.take_ahead(space, end)?;
    for (seq, id) in &taken {
        let logged = tx.entry_at(space, *seq)?.map(|row| row.id);
        if logged != Some(*id) {
            return Ok(Passed::Another { seq: *seq });
        }
    }
    Ok(if taken.is_empty() { Passed::Nothing } else { Passed::Taken })
}

/// What the tail passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    Nothing,
    Taken,
    /// The node showed another entry at this place before.
    Another {
        seq: Seq,
    },
}
