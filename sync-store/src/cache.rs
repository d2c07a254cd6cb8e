//! What is remembered of spaces, and when: memory is never ahead of disk.
//!
//! The storage thread keeps the end of each busy log ([`Live`]). A job changes copies; they move to the transaction when the
//! job succeeds, and to the cache when the transaction is committed. Readers share folded ACLs ([`AclCache`]) and use one
//! only if its head is the head in their own snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sync_core::acl::AclState;
use sync_core::ids::{AclId, Seq, SpaceId, TreeId};
use sync_core::log::{Committed, Decision, EntryKind, Position};
use sync_core::reconcile::SetDigest;

use crate::feed::{Feeds, Moved};
use crate::rows::SpaceCounts;
use crate::store::Marks;

/// Spaces whose log end the storage thread keeps, and whose ACL readers share.
const SPACES_MAX: usize = 1024;

/// The row of a log's end.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) space_no: i64,
    pub(crate) position: Position,
    pub(crate) acl_head: AclId,
    pub(crate) digest: SetDigest,
    pub(crate) counts: SpaceCounts,
}

/// The end of a log with its ACL.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) head: Head,
    pub(crate) acl: Arc<AclState>,
}

impl Live {
    pub(crate) fn follow(&mut self, decision: &Decision) {
        let head = &mut self.head;
        head.position = decision.position();
        head.digest.apply(decision);
        head.counts.entries = head.position.seq.0;
        for entry in decision.entries() {
            head.counts.bytes += entry.record.wire_bytes() as u64;
            head.counts.changes += u64::from(entry.kind == EntryKind::Change && !entry.quarantined);
        }
        head.counts.trees += u64::from(decision.tree().is_some_and(|t| t.before.is_none()));
        if let Some(acl) = decision.acl() {
            head.acl_head = acl.head;
            self.acl = Arc::new(acl.clone());
        }
    }
}

/// Values by space, the least recently used forgotten.
#[derive(Debug)]
pub(crate) struct Recent<T> {
    clock: u64,
    values: BTreeMap<SpaceId, (u64, T)>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { clock: 0, values: BTreeMap::new() }
    }
}

impl<T> Recent<T> {
    pub(crate) fn get(&mut self, space: &SpaceId) -> Option<&T> {
        self.clock += 1;
        let (used, value) = self.values.get_mut(space)?;
        *used = self.clock;
        Some(value)
    }

    pub(crate) fn put(&mut self, space: SpaceId, value: T) {
        self.clock += 1;
        self.values.insert(space, (self.clock, value));
        if self.values.len() > SPACES_MAX {
            self.forget_half();
        }
    }

    pub(crate) fn forget(&mut self, space: &SpaceId) {
        self.values.remove(space);
    }

    /// Half at a time, so that a put costs a constant amount on average.
    fn forget_half(&mut self) {
        let mut used: Vec<u64> = self.values.values().map(|(used, _)| *used).collect();
        used.sort_unstable();
        let middle = used.get(used.len() / 2).copied().unwrap_or_default();
        self.values.retain(|_, (used, _)| *used > middle);
    }
}

/// Folded ACLs of committed logs, each with the number of its space: a space that was forgotten and began again has another
/// one, and its ACL records may stand elsewhere in its log.
#[derive(Debug, Default)]
pub(crate) struct AclCache(Mutex<Recent<(i64, Arc<AclState>)>>);

impl AclCache {
    /// The ACL of a space, if it stands exactly there.
    pub(crate) fn get(&self, space: &SpaceId, space_no: i64, head: &AclId) -> Option<Arc<AclState>> {
        let mut known = self.lock();
        let (number, acl) = known.get(space)?;
        (*number == space_no && acl.head == *head).then(|| Arc::clone(acl))
    }

    /// Takes an ACL that was folded from, or committed with, rows that are on disk. An older one does not replace a newer.
    pub(crate) fn offer(&self, space: SpaceId, space_no: i64, acl: &Arc<AclState>) {
        let mut known = self.lock();
        if known.get(&space).is_none_or(|(number, k)| (*number, k.index) < (space_no, acl.index)) {
            known.put(space, (space_no, Arc::clone(acl)));
        }
    }

    pub(crate) fn forget(&self, space: &SpaceId) {
        self.lock().forget(space);
    }

    fn lock(&self) -> MutexGuard<'_, Recent<(i64, Arc<AclState>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a transaction did, so far in memory only.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) spaces: BTreeMap<SpaceId, Live>,
    /// Spaces that were forgotten. One that began again since is in `spaces`, too.
    pub(crate) forgotten: BTreeSet<SpaceId>,
    /// Logs that were taken back, and to where at least.
    pub(crate) rewound: BTreeMap<SpaceId, Seq>,
    pub(crate) moves: Vec<(SpaceId, Moved)>,
    pub(crate) spaces_created: u64,
    pub(crate) bytes: usize,
}

/// What a job did, so far in memory only.
#[derive(Debug, Default)]
pub(crate) struct JobEffects {
    pub(crate) spaces: BTreeMap<SpaceId, Live>,
    pub(crate) forgotten: BTreeSet<SpaceId>,
    pub(crate) rewound: BTreeMap<SpaceId, Seq>,
    pub(crate) effects: Effects,
    pub(crate) moves: Vec<(SpaceId, Moved)>,
    pub(crate) spaces_created: u64,
    pub(crate) bytes: usize,
}

/// The effects of a job's decisions, told after the commit. Of several that touch one tree (or none) only the last: the
/// records are in the file already, and the heads of a tree once for each change would fill the memory.
#[derive(Debug, Default)]
pub(crate) struct Effects(BTreeMap<(SpaceId, Option<TreeId>), Committed>);

impl Effects {
    pub(crate) fn add(&mut self, space: SpaceId, decision: Decision) {
        let tree = decision.tree().map(|update| update.tree);
        // Nobody sees it before the commit.
        self.0.insert((space, tree), decision.after_commit());
    }

    /// In log order within each space.
    pub(crate) fn into_committed(self) -> Vec<(SpaceId, Committed)> {
        let mut committed: Vec<_> = self.0.into_iter().map(|((space, _), effects)| (space, effects)).collect();
        committed.sort_unstable_by_key(|(space, effects)| (*space, effects.position().seq));
        committed
    }
}

impl JobEffects {
    pub(crate) fn forget(&mut self, space: SpaceId) {
        self.spaces.remove(&space);
        self.effects.0.retain(|(of, _), _| *of != space);
        self.rewound.remove(&space);
        self.forgotten.insert(space);
    }

    /// The log ends as `live` says, which is before where it did; what was appended beyond is nobody's news.
    pub(crate) fn rewind(&mut self, space: SpaceId, live: Live) {
        let to = live.head.position.seq;
        self.effects.0.retain(|(of, _), _| *of != space);
        self.rewound.entry(space).and_modify(|known| *known = to.min(*known)).or_insert(to);
        self.spaces.insert(space, live);
    }
}

impl Batch {
    /// The job succeeded: the rest of the transaction sees what it did. Returns what its caller is told after the commit.
    pub(crate) fn absorb(&mut self, effects: JobEffects) -> Effects {
        self.spaces.retain(|space, _| !effects.forgotten.contains(space));
        self.rewound.retain(|space, _| !effects.forgotten.contains(space));
        for (space, to) in effects.rewound {
            self.rewound.entry(space).and_modify(|known| *known = to.min(*known)).or_insert(to);
        }
        self.forgotten.extend(effects.forgotten);
        self.spaces.extend(effects.spaces);
        self.moves.extend(effects.moves);
        self.spaces_created += effects.spaces_created;
        self.bytes = self.bytes.saturating_add(effects.bytes);
        effects.effects
    }
}

/// What a job sees: its own changes, else the transaction's, else what is committed.
#[derive(Debug)]
pub(crate) struct Staging<'c> {
    pub(crate) committed: &'c mut Recent<Live>,
    pub(crate) batch: &'c Batch,
    pub(crate) marks: &'c Marks,
    pub(crate) feeds: &'c Feeds,
    pub(crate) job: JobEffects,
}

impl Staging<'_> {
    pub(crate) fn get(&mut self, space: &SpaceId) -> Option<&Live> {
        if let Some(live) = self.job.spaces.get(space) {
            return Some(live);
        }
        if self.job.forgotten.contains(space) {
            return None;
        }
        if let Some(live) = self.batch.spaces.get(space) {
            return Some(live);
        }
        if self.batch.forgotten.contains(space) {
            return None;
        }
        self.committed.get(space)
    }

    /// Nothing that is committed of it counts any more.
    pub(crate) fn is_forgotten(&self, space: &SpaceId) -> bool {
        self.job.forgotten.contains(space) || self.batch.forgotten.contains(space)
    }
}
