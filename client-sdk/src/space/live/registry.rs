//! The registry of one space: one instance of each tree that anybody holds, and of those that were used last.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lru::LruCache;
use sync_core::ids::TreeId;

use super::TreeInner;

/// Live trees of a space, and what they cost. Counts begin with the opening of the space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeCounters {
    /// Instances in memory.
    pub live: usize,
    /// Of these, kept although nobody may hold them: at most as many as the client was told.
    pub cached: usize,
    /// How often an instance was built from the store: once for the first reader, and once for each commit that touched it.
    pub loads: u64,
    /// Reads that were answered by an instance as it was.
    pub hits: u64,
    /// Instances that made room in the cache for others.
    pub evicted: u64,
    /// Records that came from the node, of trees and of the ACL.
    pub fetched: u64,
    /// Of these, records that were here already.
    pub repeated: u64,
}

/// Counts that tasks add to.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) loads: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) fetched: AtomicU64,
    pub(super) repeated: AtomicU64,
}

/// The registry of one space.
pub(in crate::space) struct LiveTrees {
    table: Mutex<Table>,
    pub(super) counts: Counts,
}

struct Table {
    /// Every instance that anybody holds.
    live: BTreeMap<TreeId, Weak<TreeInner>>,
    /// The most recently used ones, held so that they need no rebuild.
    cached: LruCache<TreeId, Arc<TreeInner>>,
    evicted: u64,
    /// Instances after the last sweep of dropped ones: sweeping at twice as many keeps it cheap.
    swept_at: usize,
}

impl LiveTrees {
    pub(in crate::space) fn new(cached_max: NonZeroUsize) -> Self {
        let cached = LruCache::new(cached_max);
        let table = Table { live: BTreeMap::new(), cached, evicted: 0, swept_at: cached_max.get() };
        Self { table: Mutex::new(table), counts: Counts::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, tree: TreeId) -> Option<Arc<TreeInner>> {
        self.table().live.get(&tree).and_then(Weak::upgrade)
    }

    pub(super) fn get_or_make(&self, tree: TreeId, make: impl FnOnce() -> TreeInner) -> Arc<TreeInner> {
        let mut table = self.table();
        let instance = table.live.get(&tree).and_then(Weak::upgrade).unwrap_or_else(|| Arc::new(make()));
        table.live.insert(tree, Arc::downgrade(&instance));
        let displaced = table.cached.push(tree, instance.clone()).filter(|(other, _)| *other != tree);
        table.evicted += u64::from(displaced.is_some());
        table.sweep();
        drop(table);
        // What goes with an instance goes without the lock.
        drop(displaced);
        instance
    }

    pub(super) fn instances(&self) -> Vec<Arc<TreeInner>> {
        self.table().live.values().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn ids(&self) -> Vec<TreeId> {
        self.table().live.keys().copied().collect()
    }

    /// Notes what a message of the tail brought.
    pub(in crate::space) fn note_fetched(&self, fetched: usize, repeated: usize) {
        self.counts.fetched.fetch_add(fetched as u64, Ordering::Relaxed);
        self.counts.repeated.fetch_add(repeated as u64, Ordering::Relaxed);
    }

    pub(super) fn counters(&self) -> TreeCounters {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let table = self.table();
        TreeCounters {
            live: table.live.values().filter(|weak| weak.strong_count() > 0).count(),
            cached: table.cached.len(),
            loads: count(&self.counts.loads),
            hits: count(&self.counts.hits),
            evicted: table.evicted,
            fetched: count(&self.counts.fetched),
            repeated: count(&self.counts.repeated),
        }
    }
}

impl Table {
    fn sweep(&mut self) {
        if self.live.len() > self.swept_at * 2 {
            self.live.retain(|_, weak| weak.strong_count() > 0);
            self.swept_at = self.live.len().max(self.cached.cap().get());
        }
    }
}
