//! The one live instance of a tree.
//!
//! There is one registry, loading is single-flight, and nothing outside can rebuild or invalidate an instance. A read takes
//! an immutable snapshot; commits refresh the instance from the store, under its own lock, so the last refresh always sees
//! the last commit. An instance that nobody holds is dropped, and loses nothing: everything it shows is in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lru::LruCache;
use sync_core::ids::{ChangeId, SpaceId, TreeId};
use sync_core::record::{TreeChange, verify_as};
use sync_core::tree::{Height, OrderKey, heads_after};
use sync_e2ee::decrypt;
use sync_store::{PendingWrite, ReadTx};
use tokio::sync::watch;

use super::ahead::with_ahead;
use super::project::{context_of, stored_state};
use super::write::is_purge;
use super::{Space, SpaceInner};
use crate::client::Shared;
use crate::error::ReadError;
use crate::object::{self, ObjectState};
use crate::objects::Object;

/// Instances kept although nobody holds them.
const CACHED_TREES: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not zero");

/// A live tree: a cheap handle on the one instance. It stays the same instance for as long as anybody holds a handle.
#[derive(Clone)]
pub struct Tree {
    inner: Arc<TreeInner>,
}

struct TreeInner {
    id: TreeId,
    space: Weak<SpaceInner>,
    snapshot: Mutex<Option<Arc<TreeSnapshot>>>,
    changed: watch::Sender<u64>,
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

impl Tree {
    /// The id.
    #[must_use]
    pub fn id(&self) -> TreeId {
        self.inner.id
    }

    /// What the tree shows now. Never touches the network; loads once if nothing is loaded.
    ///
    /// # Errors
    /// [`ReadError`]. A load that failed is not remembered.
    pub fn snapshot(&self) -> Result<Arc<TreeSnapshot>, ReadError> {
        let mut slot = self.inner.slot();
        if let Some(snapshot) = &*slot {
            return Ok(snapshot.clone());
        }
        let space = self.space()?;
        let snapshot = Arc::new(self.inner.load(&space)?);
        *slot = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// Counts the changes that this instance has shown; await with `wait_for` or `changed`.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
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

    /// The accepted changes in tree order, parents before children, decrypted where possible.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn changes(&self) -> Result<Vec<LoggedChange>, ReadError> {
        let space = self.space()?;
        let ring = space.ring();
        let rows = space.shared.store.read(|tx| tx.tree_changes(space.id, self.inner.id))?;
        let mut changes = Vec::with_capacity(rows.len());
        for row in rows {
            let Ok(change) = verify_as::<TreeChange>(row.record.clone()) else { continue };
            let body = change.body();
            let content = row.record.payload.as_ref().and_then(|payload| {
                let keys = ring.keys(body.epoch)?;
                let envelope = decrypt(keys, &context_of(space.id, body), &body.nonce, payload).ok()?;
                Some((envelope.data_type, envelope.payload))
            });
            changes.push(LoggedChange {
                id: change.id().into(),
                seq: row.position.seq.0,
                height: row.height.map_or(0, |h| h.0),
                parents: body.parents.clone(),
                author: body.author,
                at_ms: body.at_ms,
                content,
            });
        }
        Ok(changes)
    }

    fn space(&self) -> Result<Arc<SpaceInner>, ReadError> {
        self.inner.space.upgrade().ok_or(ReadError::NoKeys)
    }
}

impl TreeInner {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<TreeSnapshot>>> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, space: &SpaceInner) -> Result<TreeSnapshot, ReadError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        space.shared.store.read(|tx| read_snapshot(tx, &space.shared, space.id, self.id))
    }
}

/// The registry of one space.
pub(super) struct LiveTrees {
    table: Mutex<Table>,
}

struct Table {
    /// Every instance that anybody holds.
    live: BTreeMap<TreeId, Weak<TreeInner>>,
    /// The most recently used ones, held so that they need no rebuild.
    cached: LruCache<TreeId, Arc<TreeInner>>,
    /// Instances after the last sweep of dropped ones: sweeping at twice as many keeps it cheap.
    swept_at: usize,
}

impl Default for LiveTrees {
    fn default() -> Self {
        let cached = LruCache::new(CACHED_TREES);
        Self { table: Mutex::new(Table { live: BTreeMap::new(), cached, swept_at: CACHED_TREES.get() }) }
    }
}

impl LiveTrees {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, tree: TreeId) -> Option<Arc<TreeInner>> {
        self.table().live.get(&tree).and_then(Weak::upgrade)
    }

    fn get_or_make(&self, tree: TreeId, make: impl FnOnce() -> TreeInner) -> Arc<TreeInner> {
        let mut table = self.table();
        let instance = table.live.get(&tree).and_then(Weak::upgrade).unwrap_or_else(|| Arc::new(make()));
        table.live.insert(tree, Arc::downgrade(&instance));
        table.cached.put(tree, instance.clone());
        if table.live.len() > table.swept_at * 2 {
            table.live.retain(|_, weak| weak.strong_count() > 0);
            table.swept_at = table.live.len().max(CACHED_TREES.get());
        }
        instance
    }
}

impl SpaceInner {
    /// The instance of a tree that exists.
    pub(crate) fn live_tree(self: &Arc<Self>, id: TreeId) -> Result<Option<Tree>, ReadError> {
        if self.live.get(id).is_none() && !self.shared.store.read(|tx| exists(tx, self.id, id))? {
            return Ok(None);
        }
        Ok(Some(self.live_tree_handle(id)))
    }

    fn live_tree_handle(self: &Arc<Self>, id: TreeId) -> Tree {
        let inner = self.live.get_or_make(id, || TreeInner {
            id,
            space: Arc::downgrade(self),
            snapshot: Mutex::new(None),
            changed: watch::channel(0).0,
            loads: AtomicU64::new(0),
        });
        Tree { inner }
    }

    /// After a commit that touched a tree: refreshes its instance, if there is one.
    pub(super) fn refresh(&self, tree: TreeId) {
        let Some(instance) = self.live.get(tree) else { return };
        let mut slot = instance.slot();
        if slot.is_none() {
            return;
        }
        // A failed read leaves the slot empty: the next reader meets the error itself, or a healthy store.
        let next = instance.load(self).ok().map(Arc::new);
        let differs = *slot != next;
        *slot = next;
        drop(slot);
        if differs {
            instance.changed.send_modify(|n| *n += 1);
        }
    }
}

impl SpaceInner {
    /// After a commit that touched all trees.
    pub(super) fn refresh_all(&self) {
        let live: Vec<TreeId> = self.live.table().live.keys().copied().collect();
        live.into_iter().for_each(|tree| self.refresh(tree));
    }
}

fn exists(tx: &ReadTx<'_>, space: SpaceId, tree: TreeId) -> Result<bool, ReadError> {
    let here = tx.tree(space, tree)?.is_some() || !tx.pending_of_tree(space, tree)?.is_empty();
    Ok(here || !tx.ahead_of_tree(space, tree)?.is_empty())
}

fn read_snapshot(tx: &ReadTx<'_>, shared: &Shared, space: SpaceId, tree: TreeId) -> Result<TreeSnapshot, ReadError> {
    let logged = tx.tree(space, tree)?;
    let pending = tx.pending_of_tree(space, tree)?;
    let purged = logged.as_ref().is_some_and(|t| t.purged.is_some()) || pending.iter().any(is_purge);
    let heads = overlaid_heads(logged.map(|t| t.heads).unwrap_or_default(), &pending);
    let object = if purged { None } else { read_object(tx, shared, space, tree, &pending)? };
    Ok(TreeSnapshot { tree, heads, pending: pending.len(), purged, object })
}

/// The heads with our pending changes on top.
pub(super) fn overlaid_heads(mut heads: BTreeSet<ChangeId>, pending: &[PendingWrite]) -> BTreeSet<ChangeId> {
    for write in pending {
        if let Ok(change) = verify_as::<TreeChange>(write.record.clone()) {
            heads = heads_after(&heads, change.id().into(), &change.body().parents);
        }
    }
    heads
}

/// An object as a reader sees it: the logged state with our pending operations over it. `None` if it does not exist.
pub(crate) fn read_object(
    tx: &ReadTx<'_>,
    shared: &Shared,
    space: SpaceId,
    tree: TreeId,
    pending: &[PendingWrite],
) -> Result<Option<Object>, ReadError> {
    let logged = with_ahead(tx, shared, space, tree, stored_state(tx, shared, space, tree)?)?;
    let state = overlaid_state(logged, shared, pending)?;
    Ok(state.filter(ObjectState::exists).map(|state| Object {
        object_type: state.object_type().to_owned(),
        id: state.object_id().to_owned(),
        tree,
        fields: state.fields(),
        pending: pending.len(),
    }))
}

/// A pending change stands above everything logged, in the order in which it was written.
pub(super) fn overlaid_state(
    logged: Option<ObjectState>,
    shared: &Shared,
    pending: &[PendingWrite],
) -> Result<Option<ObjectState>, ReadError> {
    let mut state = logged;
    for (index, write) in pending.iter().enumerate() {
        if is_purge(write) {
            return Ok(None);
        }
        let envelope = super::write::local_envelope(shared, write)?;
        if envelope.data_type != object::DATA_TYPE {
            continue;
        }
        let Ok(ops) = object::decode(&envelope.payload) else { continue };
        let state = state.get_or_insert_with(|| ObjectState::new(&envelope.object_type, &envelope.object_id));
        let height = Height(u64::MAX / 2 + index as u64);
        state.apply(OrderKey { height, id: write.record.id().into() }, &ops);
    }
    Ok(state)
}

impl Space {
    /// Instances of trees that are in memory now.
    #[must_use]
    pub fn live_trees(&self) -> usize {
        self.inner.live.table().live.values().filter(|weak| weak.strong_count() > 0).count()
    }
}
