//! The one live instance of a tree.
//!
//! There is one registry, loading is single-flight, and nothing outside can rebuild or invalidate an instance. A read takes
//! an immutable snapshot; commits replace it by one from the store, so the last one always shows the last commit. No lock is held
//! while anything is read. An instance that nobody holds may be dropped, and loses nothing: everything it shows is in the store.

mod feed;
mod follow;
mod read;
mod reduced;
mod registry;
mod slot;

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use sync_core::ids::{ChangeId, Epoch, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::record::{TreeChange, Verified, verify_as};
use sync_core::tree::{Height, OrderKey};
use sync_e2ee::{KeyRing, decrypt};
use sync_store::{CommitNo, LogRow};
use tokio::sync::watch;

use super::outbox::RefusedWrite;
use super::project::context_of;
use super::{Space, SpaceInner, contained};
use crate::error::ReadError;
use crate::objects::Object;

pub use feed::{BadChangeCursor, ChangeCursor, ChangeFeed, ReplayWhy, ToldStep, TreeStep};
pub use follow::Place;
pub(crate) use read::read_object;
pub(super) use read::{overlaid_heads, overlaid_state};
pub use reduced::{Reduced, Reduction};
pub(super) use registry::LiveTrees;
pub use registry::TreeCounters;

use slot::{Replaced, Slot};

/// A live tree: a cheap handle on the one instance. It stays the same instance for as long as anybody holds a handle.
#[derive(Clone)]
pub struct Tree {
    inner: Arc<TreeInner>,
}

struct TreeInner {
    id: TreeId,
    space: Weak<SpaceInner>,
    /// The space's, for those who wait and must not keep it open.
    closed: tokio_util::sync::CancellationToken,
    snapshot: Slot<TreeSnapshot>,
    /// Counts the snapshots that were replaced by another one.
    changed: watch::Sender<u64>,
    /// Counts the commits that touched the tree.
    touched: watch::Sender<u64>,
    /// What applications reduce the tree to, by the type of the reducer.
    reduced: Mutex<BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    loads: AtomicU64,
}

/// A tree at one moment. Immutable: what is read from it fits together.
#[derive(Debug, Clone, PartialEq)]
pub struct TreeSnapshot {
    pub tree: TreeId,
    /// Changes without children, logged and pending.
    pub heads: BTreeSet<ChangeId>,
    /// Writes of ours that are laid over what is logged.
    pub pending: usize,
    pub purged: bool,
    /// The object that the tree is, if it is one and is not deleted.
    pub object: Option<Object>,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tree").field(&self.inner.id).finish()
    }
}

/// One change in the order of its tree, for listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedChange {
    pub id: ChangeId,
    pub seq: u64,
    pub height: u64,
    pub parents: Vec<ChangeId>,
    pub author: sync_core::ids::AccountId,
    pub at_ms: u64,
    /// The decrypted content, where this member can read it: data type and payload.
    pub content: Option<(String, bytes::Bytes)>,
}

impl LoggedChange {
    /// Where the change stands in the total order of its tree.
    #[must_use]
    pub const fn order(&self) -> OrderKey {
        OrderKey { height: Height(self.height), id: self.id }
    }

    /// From a row of the log, with the epoch it was encrypted in; `None` for one that does not verify.
    fn open(space: SpaceId, ring: &KeyRing, row: LogRow) -> Option<(Self, Epoch)> {
        let change: Verified<TreeChange> = verify_as(row.record).ok()?;
        let body = change.body();
        let content = change.raw().payload.as_ref().and_then(|payload| {
            let keys = ring.keys(body.epoch)?;
            let envelope = decrypt(keys, &context_of(space, body), &body.nonce, payload).ok()?;
            Some((envelope.data_type, envelope.payload))
        });
        let opened = Self {
            id: change.id().into(),
            seq: row.position.seq.0,
            height: row.height.map_or(0, |h| h.0),
            parents: body.parents.clone(),
            author: body.author,
            at_ms: body.at_ms,
            content,
        };
        Some((opened, body.epoch))
    }
}

/// Some of the changes of a tree, in log order.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangePage {
    pub changes: Vec<LoggedChange>,
    /// There are more after the last of these.
    pub more: bool,
}

/// Follows the snapshots of one tree. It holds the instance, so nothing is missed whatever else goes through the cache.
#[derive(Debug)]
pub struct TreeWatch {
    tree: Tree,
    turns: watch::Receiver<u64>,
    given: Arc<TreeSnapshot>,
}

impl TreeWatch {
    /// Waits until the tree shows something else than at the last call (or at the watch's beginning); the snapshot then. Several
    /// changes may come as one. `None` after the client was closed.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn next(&mut self) -> Result<Option<Arc<TreeSnapshot>>, ReadError> {
        loop {
            tokio::select! {
                biased;
                () = self.tree.inner.closed.cancelled() => return Ok(None),
                turned = self.turns.changed() => if turned.is_err() { return Ok(None) },
            }
            let now = self.tree.snapshot()?;
            // Two commits may have shown themselves as one.
            if now != self.given {
                self.given = now.clone();
                return Ok(Some(now));
            }
        }
    }

    /// Counts the commits that the instance has shown; grows, and means nothing else.
    #[must_use]
    pub fn seen(&self) -> u64 {
        *self.turns.borrow()
    }

    /// The tree.
    #[must_use]
    pub const fn tree(&self) -> &Tree {
        &self.tree
    }
}

impl Tree {
    /// The id.
    #[must_use]
    pub fn id(&self) -> TreeId {
        self.inner.id
    }

    /// What the tree shows now: a shared value, so a thousand readers cost one. Never touches the network; loads once if nothing
    /// is loaded, which is a read of a few local rows.
    ///
    /// # Errors
    /// [`ReadError`]. A load that failed is not remembered.
    pub fn snapshot(&self) -> Result<Arc<TreeSnapshot>, ReadError> {
        let space = self.space()?;
        if let Some(snapshot) = self.inner.snapshot.get() {
            space.live.counts.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(snapshot);
        }
        self.inner.snapshot.get_or_load(|| self.inner.load(&space))
    }

    /// Follows the snapshots from now on. What it tells of is shown already.
    ///
    /// # Errors
    /// [`ReadError`], if the tree is not loaded yet and cannot be.
    pub fn watch(&self) -> Result<TreeWatch, ReadError> {
        let turns = self.inner.changed.subscribe();
        // Only an instance that shows something is kept up to date.
        let given = self.snapshot()?;
        Ok(TreeWatch { tree: self.clone(), turns, given })
    }

    /// How often this instance was built from the store.
    #[must_use]
    pub fn loads(&self) -> u64 {
        self.inner.loads.load(Ordering::Relaxed)
    }

    /// True if both handles are on the same instance: there is never a second one.
    #[must_use]
    pub fn is_same_instance(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The accepted changes in tree order, parents before children, decrypted where possible. All of them, in memory: for a large
    /// tree there is [`Tree::feed`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn changes(&self) -> Result<Vec<LoggedChange>, ReadError> {
        let space = self.space()?;
        let ring = space.ring();
        let rows = space.shared.store.read(|tx| tx.tree_changes(space.id, self.inner.id))?;
        Ok(rows
            .into_iter()
            .filter_map(|row| LoggedChange::open(space.id, &ring, row))
            .map(|(change, _)| change)
            .collect())
    }

    /// The accepted changes in log order, those after an entry of the log, at most `max` and about half a megabyte. Reads no more
    /// than it gives.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn changes_after(&self, after_seq: u64, max: usize) -> Result<ChangePage, ReadError> {
        let (space, tree) = (self.space()?, self.inner.id);
        let ring = space.ring();
        space.shared.store.read(|tx| {
            let end = tx.space(space.id)?.ok_or(ReadError::UnknownSpace(space.id))?.position.seq;
            let mut page = ChangePage { changes: Vec::new(), more: false };
            let mut after = Seq(after_seq);
            // A row that cannot be opened at all is none of the page; a page without any would look like the end.
            while page.changes.is_empty() {
                let bytes_max = limits::BATCH_BYTES_MAX;
                let rows = tx.tree_changes_after(space.id, tree, (after, end), max.max(1), bytes_max)?;
                let Some(last) = rows.last() else { return Ok(page) };
                after = last.position.seq;
                let opened = rows.into_iter().filter_map(|row| LoggedChange::open(space.id, &ring, row));
                page.changes.extend(opened.map(|(change, _)| change));
            }
            page.more = !tx.tree_changes_after(space.id, tree, (after, end), 1, 1)?.is_empty();
            Ok(page)
        })
    }

    fn space(&self) -> Result<Arc<SpaceInner>, ReadError> {
        self.inner.space.upgrade().ok_or(ReadError::Closed)
    }
}

impl TreeInner {
    fn of(space: &Arc<SpaceInner>, id: TreeId) -> Self {
        Self {
            id,
            space: Arc::downgrade(space),
            closed: space.closed.clone(),
            snapshot: Slot::default(),
            changed: watch::channel(0).0,
            touched: watch::channel(0).0,
            reduced: Mutex::default(),
            loads: AtomicU64::new(0),
        }
    }

    /// Reads the tree, and says which commits are in what was read for certain.
    fn load(&self, space: &SpaceInner) -> Result<(CommitNo, TreeSnapshot), ReadError> {
        let as_of = space.shared.store.commit();
        self.loads.fetch_add(1, Ordering::Relaxed);
        space.live.counts.loads.fetch_add(1, Ordering::Relaxed);
        let load = || space.shared.store.read(|tx| read::read_snapshot(tx, &space.shared, space.id, self.id));
        let loaded = contained(load).unwrap_or_else(|message| Err(ReadError::Panicked { tree: self.id, message }));
        Ok((as_of, loaded?))
    }

    /// After a commit that touched the tree.
    fn refresh(&self, space: &SpaceInner, commit: CommitNo) {
        match self.snapshot.replace(commit, || self.load(space)) {
            Ok(Replaced::Other | Replaced::Owed) => self.changed.send_modify(|n| *n += 1),
            Ok(Replaced::Same | Replaced::NotLoaded) => {}
            // The next reader meets the error itself, or a healthy store.
            Err(error) => {
                tracing::warn!(tree = %self.id.short(), error = %error, "a live tree could not be refreshed");
                self.changed.send_modify(|n| *n += 1);
            }
        }
        self.touched.send_modify(|n| *n += 1);
    }
}

impl SpaceInner {
    /// The instance of a tree that exists.
    pub(crate) fn live_tree(self: &Arc<Self>, id: TreeId) -> Result<Option<Tree>, ReadError> {
        if self.live.get(id).is_none() && !self.shared.store.read(|tx| read::exists(tx, self.id, id))? {
            return Ok(None);
        }
        let inner = self.live.get_or_make(id, || TreeInner::of(self, id));
        Ok(Some(Tree { inner }))
    }

    /// After some commit that touched a tree: refreshes its instance, if there is one.
    pub(super) fn refresh(&self, tree: TreeId) {
        self.refresh_to(tree, self.shared.store.commit());
    }

    /// After a certain one: an instance that has seen it already is left alone.
    pub(super) fn refresh_to(&self, tree: TreeId, commit: CommitNo) {
        if let Some(instance) = self.live.get(tree) {
            instance.refresh(self, commit);
        }
    }

    /// A list reads the store, and live trees follow it a moment later. Where an instance shows another object than the list did
    /// it is read again: nobody gets an older one after it.
    pub(crate) fn follow_list(&self, object_type: Option<&str>, listed: &[Object]) {
        let live = self.live.instances();
        if live.is_empty() {
            return;
        }
        // Whatever the list saw is in the store before the next commit.
        let next = CommitNo(self.shared.store.commit().0 + 1);
        let listed: BTreeMap<TreeId, &Object> = listed.iter().map(|object| (object.tree, object)).collect();
        for instance in live {
            let Some(shown) = instance.snapshot.get() else { continue };
            let shown = shown.object.as_ref().filter(|o| object_type.is_none_or(|wanted| o.object_type == wanted));
            if shown != listed.get(&instance.id).copied() {
                instance.refresh(self, next);
            }
        }
    }

    /// The same for own writes that were refused: nobody is shown what they said after it is known.
    pub(in crate::space) fn follow_refused(&self, refused: &[RefusedWrite]) {
        let next = CommitNo(self.shared.store.commit().0 + 1);
        let trees: BTreeSet<TreeId> = refused.iter().map(|write| write.tree).collect();
        trees.into_iter().for_each(|tree| self.refresh_to(tree, next));
    }

    /// After a commit that touched all trees.
    pub(super) fn refresh_all(&self) {
        self.live.ids().into_iter().for_each(|tree| self.refresh(tree));
    }
}

impl Space {
    /// Instances of trees that are in memory now.
    #[must_use]
    pub fn live_trees(&self) -> usize {
        self.tree_counters().live
    }

    /// Live trees in memory, and what was read and fetched for them since the space was opened.
    #[must_use]
    pub fn tree_counters(&self) -> TreeCounters {
        self.inner.live.counters()
    }
}
