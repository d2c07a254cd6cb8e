//! Sketches of the spaces that were found to differ from some replica: built when somebody needs one, then kept up to date
//! with the log, the least recently used forgotten. Together they stay within [`limits::HEADSYNC_SKETCH_BYTES_MAX`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sync_core::ids::{Seq, SpaceId};
use sync_core::limits;
use sync_core::reconcile::{Sketch, SymbolKey};
use sync_host::Host;
use sync_store::{ElementFeed, ElementsMoved};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use crate::failure::CallError;
use crate::gate::Gate;
use crate::metrics;
use crate::session::Session;
use crate::shutdown::Tasks;

/// Spaces that are read through at the same time, of which each occupies a reader of the store for its length.
const BUILDING_MAX: usize = 1;

/// The node's sketches.
#[derive(Debug)]
pub(crate) struct Sketches {
    /// What the keys of all spaces are made from; new with each process.
    secret: [u8; 32],
    budget: Arc<Budget>,
    shelf: Arc<Shelf>,
    uses: AtomicU64,
    building: Semaphore,
    tasks: Tasks,
}

/// A sketch as it was after entry `seq`. It stays so for whoever holds it.
#[derive(Debug, Clone)]
pub(crate) struct Frozen {
    pub(crate) seq: Seq,
    kept: Arc<Kept>,
}

/// Whether there is a sketch of the set that was asked for.
#[derive(Debug)]
pub(crate) enum Found {
    Frozen(Frozen),
    /// The log has moved on.
    Moved(Seq),
    /// There is no room for it now.
    NoRoom,
}

impl Sketches {
    pub(crate) fn new(host: &Host, tasks: Tasks) -> Self {
        Self {
            secret: host.random(),
            budget: Arc::default(),
            shelf: Arc::default(),
            uses: AtomicU64::default(),
            building: Semaphore::new(BUILDING_MAX),
            tasks,
        }
    }

    /// What the cells of a space are keyed with.
    pub(crate) fn key(&self, space: &SpaceId) -> [u8; 32] {
        *blake3::keyed_hash(&self.secret, space.as_bytes()).as_bytes()
    }

    /// A sketch of at least `cells` cells as of `at`, which the caller has seen in the store.
    ///
    /// # Errors
    /// The gate's: the caller may not read the space, or the store failed.
    pub(crate) async fn frozen(
        &self,
        gate: &Gate,
        session: &Session,
        space: SpaceId,
        at: Seq,
        cells: usize,
    ) -> Result<Found, CallError> {
        if let Some(hot) = self.at_hand(&space, cells) {
            if let Some(found) = hot.at(at).await {
                return Ok(found);
            }
            self.shelf.forget(&hot);
        }
        let Ok(_turn) = self.building.acquire().await else { return Err(CallError::shutting_down()) };
        // Somebody else may have built it meanwhile.
        if let Some(found) = self.found_meanwhile(&space, at, cells).await {
            return Ok(found);
        }
        let cells = size_for(cells);
        let Some(room) = self.shelf.make_room(&self.budget, Sketch::bytes(cells)) else { return Ok(Found::NoRoom) };
        let feed = gate.follow_elements(session, space).await?;
        let mut sketch = Sketch::empty(SymbolKey::new(&self.key(&space)), cells);
        let read = move |view: &crate::gate::MemberView<'_, '_>| {
            view.each_element(|element| sketch.insert(&element))?;
            Ok((view.position()?.seq, sketch))
        };
        let (seq, sketch) = gate.as_member(session, space, read).await?;
        metrics::sketch_built();
        let frozen = Frozen { seq, kept: Arc::new(Kept { sketch, room }) };
        self.keep_hot(space, frozen.clone(), feed);
        Ok(if seq == at { Found::Frozen(frozen) } else { Found::Moved(seq) })
    }

    async fn found_meanwhile(&self, space: &SpaceId, at: Seq, cells: usize) -> Option<Found> {
        self.at_hand(space, cells)?.at(at).await
    }

    fn at_hand(&self, space: &SpaceId, cells: usize) -> Option<Arc<Hot>> {
        let hot = self.shelf.lock();
        let shelved = hot.get(space).filter(|shelved| shelved.hot.cells >= cells)?;
        shelved.hot.used.store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(Arc::clone(&shelved.hot))
    }

    fn keep_hot(&self, space: SpaceId, frozen: Frozen, feed: ElementFeed) {
        let used = AtomicU64::new(self.uses.fetch_add(1, Ordering::Relaxed));
        let (cells, state) = (frozen.kept.sketch.cells().len(), watch::channel(Some(frozen)).0);
        let hot = Arc::new(Hot { space, cells, used, state, budget: Arc::clone(&self.budget) });
        let forgotten = CancellationToken::new();
        self.shelf.put(space, Shelved { hot: Arc::clone(&hot), _forgets: forgotten.clone().drop_guard() });
        let (tasks, shelf) = (self.tasks.clone(), Arc::clone(&self.shelf));
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = tasks.stopped() => {}
                () = forgotten.cancelled() => {}
                () = hot.unused() => {}
                () = hot.follow(feed) => {}
            }
            hot.state.send_replace(None);
            shelf.forget(&hot);
        });
    }
}

/// The hot sketches, by space.
#[derive(Debug, Default)]
struct Shelf(Mutex<BTreeMap<SpaceId, Shelved>>);

impl Shelf {
    fn put(&self, space: SpaceId, shelved: Shelved) {
        let mut hot = self.lock();
        hot.insert(space, shelved);
        metrics::sketches_hot(hot.len());
    }

    /// Room for one more, for which others may have to go: those that nobody is being sent, since the others free nothing.
    fn make_room(&self, budget: &Arc<Budget>, bytes: usize) -> Option<Room> {
        let mut hot = self.lock();
        loop {
            if let Some(room) = Budget::take(budget, bytes) {
                return Some(room);
            }
            let unheld = hot.iter().filter(|(_, s)| !s.hot.is_held());
            let oldest = unheld.min_by_key(|(_, s)| s.hot.used.load(Ordering::Relaxed)).map(|(space, _)| *space)?;
            hot.remove(&oldest);
            metrics::sketches_hot(hot.len());
        }
    }

    /// Forgets what does not follow the log any more.
    fn forget(&self, stale: &Arc<Hot>) {
        let mut hot = self.lock();
        if hot.get(&stale.space).is_some_and(|shelved| Arc::ptr_eq(&shelved.hot, stale)) {
            hot.remove(&stale.space);
            metrics::sketches_hot(hot.len());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SpaceId, Shelved>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Most comparisons need a few cells; who needs more needs many.
fn size_for(cells: usize) -> usize {
    let mut size = limits::HEADSYNC_SKETCH_CELLS;
    while size < cells {
        size *= 8;
    }
    size.min(limits::HEADSYNC_CELLS_MAX)
}

impl Frozen {
    pub(crate) fn sketch(&self) -> &Sketch {
        &self.kept.sketch
    }
}

/// A hot sketch in its place. Out of it, nobody follows the log for it.
#[derive(Debug)]
struct Shelved {
    hot: Arc<Hot>,
    _forgets: DropGuard,
}

/// A sketch that follows the log of its space.
#[derive(Debug)]
struct Hot {
    space: SpaceId,
    cells: usize,
    used: AtomicU64,
    /// `None` once it does not follow any more.
    state: watch::Sender<Option<Frozen>>,
    budget: Arc<Budget>,
}

impl Hot {
    /// Waits for the moves that are committed and on their way here. `None` if they do not come.
    async fn at(&self, at: Seq) -> Option<Found> {
        let mut state = self.state.subscribe();
        let reached = state.wait_for(|state| state.as_ref().is_none_or(|frozen| frozen.seq >= at));
        let state = tokio::time::timeout(limits::RETRY_FIRST, reached).await.ok()?.ok()?.clone()?;
        Some(if state.seq == at { Found::Frozen(state) } else { Found::Moved(state.seq) })
    }

    /// A comparison is being sent it: dropping it here frees no memory.
    fn is_held(&self) -> bool {
        self.state.borrow().as_ref().is_some_and(|frozen| Arc::strong_count(&frozen.kept) > 1)
    }

    /// Ends when nobody asked for it for long.
    async fn unused(&self) {
        loop {
            let before = self.used.load(Ordering::Relaxed);
            tokio::time::sleep(limits::HEADSYNC_IDLE_MAX).await;
            if self.used.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    /// Ends when moves were left out, or there is no room to go on.
    async fn follow(&self, mut feed: ElementFeed) {
        while let Some(moved) = feed.next().await {
            let mut went_on = false;
            self.state.send_modify(|state| {
                went_on = state.take().and_then(|frozen| self.after(frozen, &moved)).is_some_and(|next| {
                    *state = Some(next);
                    true
                });
            });
            if !went_on {
                debug!(space = %self.space.short(), "a sketch has no room beside those that are being sent");
                return;
            }
        }
    }

    fn after(&self, mut frozen: Frozen, moved: &ElementsMoved) -> Option<Frozen> {
        if moved.seq <= frozen.seq {
            return Some(frozen);
        }
        // Blocks of one comparison are of one set: while somebody holds it, it goes on in a copy.
        if Arc::get_mut(&mut frozen.kept).is_none() {
            let room = Budget::take(&self.budget, frozen.kept.room.bytes)?;
            frozen.kept = Arc::new(Kept { sketch: frozen.kept.sketch.clone(), room });
        }
        let kept = Arc::get_mut(&mut frozen.kept)?;
        moved.steps.iter().for_each(|step| kept.sketch.apply(step));
        frozen.seq = moved.seq;
        Some(frozen)
    }
}

/// A sketch and the memory that it takes.
#[derive(Debug)]
struct Kept {
    sketch: Sketch,
    room: Room,
}

/// What all sketches take, hot or held by a comparison.
#[derive(Debug, Default)]
struct Budget(AtomicUsize);

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
struct Room {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    fn take(budget: &Arc<Self>, bytes: usize) -> Option<Room> {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|all| *all <= limits::HEADSYNC_SKETCH_BYTES_MAX);
        let before = budget.0.try_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        metrics::sketch_bytes(before + bytes);
        Some(Room { budget: Arc::clone(budget), bytes })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let before = self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
        metrics::sketch_bytes(before.saturating_sub(self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sync_core::ids::TreeId;
    use sync_core::reconcile::{Element, Step};

    fn hot(budget: &Arc<Budget>, cells: usize) -> (Hot, Frozen) {
        let room = Budget::take(budget, Sketch::bytes(cells)).unwrap();
        let sketch = Sketch::empty(SymbolKey::new(&[1; 32]), cells);
        let frozen = Frozen { seq: Seq(4), kept: Arc::new(Kept { sketch, room }) };
        let state = watch::channel(None).0;
        let space = SpaceId::from_hash([1; 32]);
        (Hot { space, cells, used: AtomicU64::default(), state, budget: Arc::clone(budget) }, frozen)
    }

    fn moved(seq: u64) -> ElementsMoved {
        let element = Element::Tree { tree: TreeId::from_hash([seq as u8; 32]), heads_hash: [1; 32] };
        ElementsMoved { seq: Seq(seq), steps: vec![Step::Insert(element)] }
    }

    #[test]
    fn what_is_being_sent_does_not_change() {
        let budget = Arc::default();
        let (hot, frozen) = hot(&budget, 64);
        let held = frozen.clone();
        let next = hot.after(frozen, &moved(5)).unwrap();
        assert_eq!((held.seq, held.sketch().elements()), (Seq(4), 0));
        assert_eq!((next.seq, next.sketch().elements()), (Seq(5), 1));
        assert_eq!(budget.0.load(Ordering::Relaxed), 2 * Sketch::bytes(64));
        // A move that the reader saw already is not taken twice.
        let next = hot.after(next, &moved(5)).unwrap();
        assert_eq!(next.sketch().elements(), 1);
        drop(held);
        let next = hot.after(next, &moved(6)).unwrap();
        assert_eq!(budget.0.load(Ordering::Relaxed), Sketch::bytes(64));
        drop(next);
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn nothing_is_taken_beyond_the_budget() {
        let budget = Arc::default();
        let (hot, frozen) = hot(&budget, 64);
        let rest = Budget::take(&budget, limits::HEADSYNC_SKETCH_BYTES_MAX - Sketch::bytes(64)).unwrap();
        let held = frozen.clone();
        assert!(hot.after(frozen, &moved(5)).is_none(), "no room for a copy");
        assert!(Budget::take(&budget, 1).is_none());
        drop((rest, held));
        assert!(Budget::take(&budget, 1).is_some());
    }

    #[test]
    fn only_what_frees_memory_makes_room() {
        let (budget, shelf) = (Arc::default(), Shelf::default());
        let put = |n: u8| {
            let (hot, frozen) = hot(&budget, 64);
            let space = SpaceId::from_hash([n; 32]);
            hot.state.send_replace(Some(frozen.clone()));
            hot.used.store(n.into(), Ordering::Relaxed);
            let forgets = CancellationToken::new().drop_guard();
            shelf.put(space, Shelved { hot: Arc::new(Hot { space, ..hot }), _forgets: forgets });
            frozen
        };
        let (held, free) = (put(1), put(2));
        drop(free);
        let rest = limits::HEADSYNC_SKETCH_BYTES_MAX - 2 * Sketch::bytes(64);
        let _others = Budget::take(&budget, rest).unwrap();
        assert!(shelf.make_room(&budget, 1).is_some(), "the one that nobody is being sent goes");
        assert_eq!(shelf.lock().keys().copied().collect::<Vec<_>>(), [SpaceId::from_hash([1; 32])]);
        assert!(shelf.make_room(&budget, 2 * Sketch::bytes(64)).is_none());
        assert_eq!(shelf.lock().len(), 1, "what frees nothing stays of use to others");
        drop(held);
    }

    #[test]
    fn a_sketch_has_room_for_what_is_asked() {
        assert_eq!(size_for(32), limits::HEADSYNC_SKETCH_CELLS);
        assert_eq!(size_for(limits::HEADSYNC_SKETCH_CELLS + 1), limits::HEADSYNC_SKETCH_CELLS * 8);
        assert_eq!(size_for(limits::HEADSYNC_CELLS_MAX), limits::HEADSYNC_CELLS_MAX);
    }
}
