//! The one live reduced state of a tree and a reducer.
//!
//! A task owns the state; it ends with the tree's instance. Whoever asks waits for it to have read what the tree has, and may go
//! away at any time. It works a page at a time and lets others run in between.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, Weak};

use sync_core::ids::{ChangeId, TreeId};
use sync_core::record::{TreeChange, verify_as};
use sync_core::tree::OrderKey;
use sync_store::{ReadTx, WriteId, WriteState};
use tokio::sync::watch;

use super::follow::{Followed, Follower, Page, Phase, Place, Progress};
use super::{Tree, TreeInner};
use crate::error::ReadError;
use crate::reduce::{FailedChange, FailedWhy, Order, ReduceError, ReducedChange, Reducer};
use crate::space::write::{is_purge, local_envelope};
use crate::space::{SpaceInner, contained};

/// Changes that a reducer may panic over before it is given up.
const PANICS_MAX: usize = 16;
/// Failed changes that are listed.
const FAILED_LISTED_MAX: usize = 64;
/// Copies of a state that are kept to come back to, each about twice as far back as the one after it.
const COPIES_MAX: usize = 10;
/// Changes between two copies at the end.
const COPY_EVERY: u64 = 16;

/// What a tree is reduced to at one moment.
#[derive(Debug)]
pub struct Reduction<V> {
    pub view: Arc<V>,
    /// Changes of the log that are in it.
    pub changes: u64,
    /// Writes of this client that are in it and not in the log yet.
    pub pending: usize,
    /// Changes that are not in it because they cannot be read here, and may be readable later.
    pub unread: u64,
    /// Changes that are not in it because the reducer failed over them: the first ones.
    pub failed: Vec<FailedChange>,
    /// How many failed that are not listed.
    pub failed_more: u64,
}

/// A handle on the one live reduced state of a tree. It holds the tree's instance.
pub struct Reduced<R: Reducer> {
    tree: Tree,
    shown: watch::Receiver<Shown<R::View>>,
    /// What this handle gave out last.
    given: Option<Arc<Reduction<R::View>>>,
}

/// What readers see.
struct Shown<V> {
    /// How many commits to the tree it has followed.
    turn: Option<u64>,
    reduction: Option<Result<Arc<Reduction<V>>, ReduceError>>,
}

impl<R: Reducer> Clone for Reduced<R> {
    fn clone(&self) -> Self {
        Self { tree: self.tree.clone(), shown: self.shown.clone(), given: self.given.clone() }
    }
}

impl<R: Reducer> std::fmt::Debug for Reduced<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reduced").field(&self.tree.id()).finish()
    }
}

impl<R: Reducer> Reduced<R> {
    /// The reduction of everything that the tree has at the call, own writes included. Dropping the call stops nothing.
    ///
    /// # Errors
    /// [`ReduceError`].
    pub async fn get(&mut self) -> Result<Arc<Reduction<R::View>>, ReduceError> {
        let closed = self.tree.inner.closed.clone();
        let want = *self.tree.inner.touched.borrow();
        let caught_up = |shown: &Shown<R::View>| shown.is_final() || shown.turn.is_some_and(|turn| turn >= want);
        let found = tokio::select! {
            biased;
            shown = self.shown.wait_for(caught_up) => shown.ok().and_then(|shown| shown.reduction.clone()),
            () = closed.cancelled() => None,
        };
        let reduction = found.unwrap_or(Err(ReduceError::Closed))?;
        self.given = Some(reduction.clone());
        Ok(reduction)
    }

    /// The next reduction after the one that this handle gave last; several changes may come as one. `None` after the client was
    /// closed.
    ///
    /// # Errors
    /// [`ReduceError`].
    pub async fn next(&mut self) -> Result<Option<Arc<Reduction<R::View>>>, ReduceError> {
        let closed = self.tree.inner.closed.clone();
        let given = self.given.clone();
        let is_other = |shown: &Shown<R::View>| match (&shown.reduction, &given) {
            (Some(Ok(now)), Some(given)) => !Arc::ptr_eq(now, given),
            (Some(_), _) => true,
            (None, _) => false,
        };
        let found = tokio::select! {
            biased;
            () = closed.cancelled() => None,
            shown = self.shown.wait_for(is_other) => shown.ok().and_then(|shown| shown.reduction.clone()),
        };
        let Some(reduction) = found.transpose()? else { return Ok(None) };
        self.given = Some(reduction.clone());
        Ok(Some(reduction))
    }

    /// The tree.
    #[must_use]
    pub const fn tree(&self) -> &Tree {
        &self.tree
    }
}

impl<V> Shown<V> {
    /// The task has ended: nothing else will be shown.
    const fn is_final(&self) -> bool {
        matches!(self.reduction, Some(Err(ReduceError::Purged { .. } | ReduceError::Panicked { .. })))
    }
}

impl Tree {
    /// The live state that `R` makes of this tree: one for the tree, however many ask. It is made from the changes that are here
    /// and follows every commit, for as long as anybody holds the tree or the cache does.
    ///
    /// # Errors
    /// [`ReadError::Closed`].
    pub fn reduced<R: Reducer>(&self) -> Result<Reduced<R>, ReadError> {
        let space = self.space()?;
        let mut all = self.inner.reduced.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&TypeId::of::<R>()).cloned().and_then(|any| any.downcast().ok());
        let sender: Arc<watch::Sender<Shown<R::View>>> = match known {
            Some(sender) => sender,
            None => {
                let sender = Arc::new(watch::channel(Shown { turn: None, reduction: None }).0);
                all.insert(TypeId::of::<R>(), sender.clone());
                let touched = self.inner.touched.subscribe();
                let task = drive::<R>(Arc::downgrade(&self.inner), touched, sender.clone());
                space.shared.spawn(task);
                sender
            }
        };
        Ok(Reduced { tree: self.clone(), shown: sender.subscribe(), given: None })
    }
}

/// Follows the tree until its instance is gone, the client is closed, or there is nothing more to follow.
async fn drive<R: Reducer>(
    tree: Weak<TreeInner>,
    mut touched: watch::Receiver<u64>,
    shown: Arc<watch::Sender<Shown<R::View>>>,
) {
    let Some(closed) = tree.upgrade().map(|tree| tree.closed.clone()) else { return };
    let Some(id) = tree.upgrade().map(|tree| tree.id) else { return };
    let mut work: Option<Work<R>> = None;
    loop {
        let turn = *touched.borrow_and_update();
        let Some(space) = tree.upgrade().and_then(|tree| tree.space.upgrade()) else { return };
        let caught_up = async {
            let work = match &mut work {
                Some(work) => work,
                None => work.insert(Work::new(id)?),
            };
            work.catch_up(&space).await
        };
        let found = tokio::select! {
            biased;
            () = closed.cancelled() => return,
            found = caught_up => found,
        };
        drop(space);
        if let Err(error) = &found {
            tracing::warn!(tree = %id.short(), error = %error, "a tree could not be reduced");
        }
        shown.send_modify(|shown| {
            shown.turn = Some(turn);
            shown.reduction = Some(found);
        });
        if shown.borrow().is_final() {
            return;
        }
        tokio::select! {
            biased;
            () = closed.cancelled() => return,
            touched = touched.changed() => if touched.is_err() { return },
        }
    }
}

/// A reduced state, and what it takes to bring it further.
struct Work<R: Reducer> {
    tree: TreeId,
    follower: Follower,
    state: R::State,
    /// Changes of the log in the state.
    changes: u64,
    /// To go back to, the oldest first. Only of reducers for which the order matters.
    copies: Vec<Kept<R::State>>,
    laid: Laid,
    failed: Vec<(OrderKey, FailedChange)>,
    /// Changes that the reducer panicked over.
    poison: BTreeMap<ChangeId, String>,
    /// What was shown last, if nothing has moved since.
    shown: Option<Arc<Reduction<R::View>>>,
}

/// A copy of a state.
struct Kept<S> {
    at: Progress,
    changes: u64,
    state: S,
}

/// Own writes that are in the state and not in the log.
enum Laid {
    /// Each by the change that it was, to be taken out of the state by nothing but a new beginning.
    Mixed(BTreeMap<WriteId, ChangeId>),
    /// None: they are laid over copies. With them, if there are no copies.
    Over(Option<Vec<ChangeId>>),
}

/// Whether what follows in a page still goes onto the state.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    On,
    /// The follower went back, and brings it again.
    Back,
}

impl<R: Reducer> Work<R> {
    fn new(tree: TreeId) -> Result<Self, ReduceError> {
        Ok(Self {
            tree,
            follower: Follower::new(tree, Progress::START),
            state: guarded(tree, R::start)?,
            changes: 0,
            copies: Vec::new(),
            laid: Self::nothing_laid(),
            failed: Vec::new(),
            poison: BTreeMap::new(),
            shown: None,
        })
    }

    const fn nothing_laid() -> Laid {
        match R::ORDER {
            Order::Any => Laid::Mixed(BTreeMap::new()),
            Order::Total => Laid::Over(None),
        }
    }

    /// Reads to the end of what there is.
    async fn catch_up(&mut self, space: &SpaceInner) -> Result<Arc<Reduction<R::View>>, ReduceError> {
        loop {
            let page = space.shared.store.read(|tx| self.follower.page(tx, space)).map_err(read_failed)?;
            match page {
                Page::Changes(changes) => self.fold(changes)?,
                Page::Replay(_) => self.begin_again()?,
                Page::Purged => return Err(ReduceError::Purged { tree: self.tree }),
                Page::End if self.follower.at.phase == Phase::Ended => {
                    return Err(ReduceError::Purged { tree: self.tree });
                }
                Page::End => {
                    let laid = space.shared.store.read(|tx| self.pending(tx, space)).map_err(read_failed)?;
                    if let Some(shown) = self.lay(laid)? {
                        return Ok(shown);
                    }
                }
            }
            // A long tree is not read in one go.
            tokio::task::yield_now().await;
        }
    }

    fn fold(&mut self, changes: Vec<Followed>) -> Result<(), ReduceError> {
        self.shown = None;
        if let Laid::Over(Some(_)) = self.laid {
            // Own writes stand in the state, after which nothing of the log can go.
            return self.go_back(changes.iter().map(|followed| followed.change.order()).min());
        }
        let replaying = self.follower.at.phase == Phase::Replay;
        let mut left = changes.len() + self.follower.left();
        for (at, followed) in changes.iter().enumerate() {
            left -= 1;
            let inserts = R::ORDER == Order::Total && followed.place == Place::Insert;
            if inserts || self.append(followed)? == Goes::Back {
                // The rest of the page comes again: no copy may stand after any of it.
                let rest = changes[at..].iter().map(|followed| followed.change.order()).min();
                return self.go_back(rest);
            }
            let worth_a_copy = if replaying { is_power_of_four(left) } else { self.changes.is_multiple_of(COPY_EVERY) };
            if R::ORDER == Order::Total && worth_a_copy {
                self.keep_copy(followed.after)?;
            }
        }
        Ok(())
    }

    fn append(&mut self, followed: &Followed) -> Result<Goes, ReduceError> {
        let change = &followed.change;
        let Some((data_type, payload)) = change.content.clone() else { return Ok(Goes::On) };
        if let Laid::Mixed(own) = &mut self.laid
            && let Some(write) = own.iter().find(|(_, id)| **id == change.id).map(|(write, _)| *write)
        {
            own.remove(&write);
            self.changes += 1;
            return Ok(Goes::On);
        }
        let (id, author, at_ms) = (change.id, change.author, change.at_ms);
        let reduced = ReducedChange { id, author, at_ms, data_type, payload };
        match append_to::<R>(&mut self.state, &reduced, &self.poison) {
            Appended::Done => self.changes += 1,
            Appended::Failed(why) => self.failed.push((change.order(), FailedChange { change: id, why })),
            Appended::Panicked(message) => {
                self.leave_out(id, message)?;
                return Ok(Goes::Back);
            }
        }
        Ok(Goes::On)
    }

    /// The state may be half of anything: it must be made anew, without the change.
    fn leave_out(&mut self, change: ChangeId, message: String) -> Result<(), ReduceError> {
        if self.poison.len() >= PANICS_MAX {
            return Err(ReduceError::Panicked { tree: self.tree, message });
        }
        self.poison.insert(change, message);
        Ok(())
    }

    /// Before the first change.
    fn begin_again(&mut self) -> Result<(), ReduceError> {
        self.copies.clear();
        self.go_back_to_last()
    }

    /// To the last copy from before a place.
    fn go_back(&mut self, before: Option<OrderKey>) -> Result<(), ReduceError> {
        self.copies.retain(|kept| kept.at.top < before);
        self.go_back_to_last()
    }

    /// To the last copy; without one, to the beginning.
    fn go_back_to_last(&mut self) -> Result<(), ReduceError> {
        let tree = self.tree;
        let copied = self.copies.last().map(|kept| guarded(tree, || R::copy(&kept.state))).transpose()?.flatten();
        let (state, at, changes) = match (copied, self.copies.last()) {
            (Some(state), Some(kept)) => (state, kept.at, kept.changes),
            (None, _) | (_, None) => {
                self.copies.clear();
                (guarded(tree, R::start)?, Progress::START, 0)
            }
        };
        (self.state, self.changes, self.laid, self.shown) = (state, changes, Self::nothing_laid(), None);
        self.failed.retain(|(order, _)| Some(*order) <= at.top);
        self.follower.rewind(at.top, at.unread);
        Ok(())
    }

    fn keep_copy(&mut self, at: Progress) -> Result<(), ReduceError> {
        let Some(state) = guarded(self.tree, || R::copy(&self.state))? else { return Ok(()) };
        self.copies.push(Kept { at, changes: self.changes, state });
        if self.copies.len() > COPIES_MAX {
            thin(&mut self.copies, self.changes);
        }
        Ok(())
    }

    /// The own writes of the tree, in one moment with its end.
    fn pending(&self, tx: &ReadTx<'_>, space: &SpaceInner) -> Result<Pending, ReadError> {
        let mut pending = Pending { writes: Vec::new(), lost: false };
        for write in tx.pending_of_tree(space.id, self.tree)?.iter().filter(|write| !is_purge(write)) {
            let Ok(change) = verify_as::<TreeChange>(write.record.clone()) else { continue };
            let envelope = local_envelope(&space.shared, write)?;
            let (data_type, payload) = (envelope.data_type, envelope.payload);
            let (author, at_ms) = (change.body().author, change.body().at_ms);
            pending
                .writes
                .push((write.id, ReducedChange { id: change.id().into(), author, at_ms, data_type, payload }));
        }
        if let Laid::Mixed(own) = &self.laid {
            for write in own.keys().filter(|write| pending.writes.iter().all(|(id, _)| id != *write)) {
                match tx.write_state(space.id, *write)? {
                    Some(WriteState::Logged { .. } | WriteState::Durable { .. }) => {}
                    Some(WriteState::Pending { .. } | WriteState::Refused(_) | WriteState::Dismissed) | None => {
                        pending.lost = true;
                    }
                }
            }
        }
        Ok(pending)
    }

    /// Lays own writes on, and shows what that gives; `None` if the state must be made anew first.
    fn lay(&mut self, pending: Pending) -> Result<Option<Arc<Reduction<R::View>>>, ReduceError> {
        let ids: Vec<ChangeId> = pending.writes.iter().map(|(_, change)| change.id).collect();
        if pending.lost || matches!(&self.laid, Laid::Over(Some(laid)) if *laid != ids) {
            // A write that was refused is in the state: nothing but a new beginning takes it out.
            self.begin_again()?;
            return Ok(None);
        }
        if let Some(shown) = self.shown.as_ref().filter(|shown| self.shows(shown, &pending)) {
            return Ok(Some(shown.clone()));
        }
        let shown = match R::ORDER {
            Order::Any => self.mix_in(pending)?,
            Order::Total => self.lay_over(pending, ids)?,
        };
        self.shown.clone_from(&shown);
        Ok(shown)
    }

    /// Nothing was folded since, and no own write came or went.
    fn shows(&self, shown: &Reduction<R::View>, pending: &Pending) -> bool {
        match &self.laid {
            Laid::Mixed(own) => own.len() == pending.writes.len() && shown.pending == own.len(),
            Laid::Over(Some(_)) => true,
            Laid::Over(None) => pending.writes.is_empty() && shown.pending == 0,
        }
    }

    fn mix_in(&mut self, pending: Pending) -> Result<Option<Arc<Reduction<R::View>>>, ReduceError> {
        let known = match &mut self.laid {
            Laid::Mixed(own) => std::mem::take(own),
            Laid::Over(_) => BTreeMap::new(),
        };
        let mut own = BTreeMap::new();
        let mut failed = Vec::new();
        for (write, change) in pending.writes {
            if known.contains_key(&write) {
                own.insert(write, change.id);
                continue;
            }
            match append_to::<R>(&mut self.state, &change, &self.poison) {
                Appended::Done => drop(own.insert(write, change.id)),
                // It is not in the state, and is tried again as what it will be in the log.
                Appended::Failed(why) => failed.push(FailedChange { change: change.id, why }),
                Appended::Panicked(message) => {
                    self.leave_out(change.id, message)?;
                    self.go_back_to_last()?;
                    return Ok(None);
                }
            }
        }
        let count = own.len();
        self.laid = Laid::Mixed(own);
        self.reduction(&self.state, count, failed).map(Some)
    }

    fn lay_over(
        &mut self,
        pending: Pending,
        ids: Vec<ChangeId>,
    ) -> Result<Option<Arc<Reduction<R::View>>>, ReduceError> {
        let count = pending.writes.len();
        if count == 0 {
            return self.reduction(&self.state, 0, Vec::new()).map(Some);
        }
        let mut copy = guarded(self.tree, || R::copy(&self.state))?;
        if copy.is_none() {
            self.laid = Laid::Over(Some(ids));
        }
        let state = copy.as_mut().unwrap_or(&mut self.state);
        let mut failed = Vec::new();
        for (_, change) in pending.writes {
            match append_to::<R>(state, &change, &self.poison) {
                Appended::Done => {}
                Appended::Failed(why) => failed.push(FailedChange { change: change.id, why }),
                Appended::Panicked(message) => {
                    self.leave_out(change.id, message)?;
                    self.go_back_to_last()?;
                    return Ok(None);
                }
            }
        }
        let state = copy.as_ref().unwrap_or(&self.state);
        self.reduction(state, count, failed).map(Some)
    }

    fn reduction(
        &self,
        state: &R::State,
        pending: usize,
        own_failed: Vec<FailedChange>,
    ) -> Result<Arc<Reduction<R::View>>, ReduceError> {
        let view = Arc::new(guarded(self.tree, || R::view(state))?);
        let all = self.failed.len() + own_failed.len();
        let failed = self.failed.iter().map(|(_, failed)| failed.clone()).chain(own_failed);
        let failed: Vec<_> = failed.take(FAILED_LISTED_MAX).collect();
        let failed_more = all.saturating_sub(failed.len()) as u64;
        let unread = self.follower.at.unread;
        Ok(Arc::new(Reduction { view, changes: self.changes, pending, unread, failed, failed_more }))
    }
}

/// Own writes at one moment.
struct Pending {
    writes: Vec<(WriteId, ReducedChange)>,
    /// One that is in the state is neither pending nor in the log.
    lost: bool,
}

/// What came of one change.
enum Appended {
    Done,
    Failed(FailedWhy),
    Panicked(String),
}

fn append_to<R: Reducer>(
    state: &mut R::State,
    change: &ReducedChange,
    poison: &BTreeMap<ChangeId, String>,
) -> Appended {
    if let Some(message) = poison.get(&change.id) {
        return Appended::Failed(FailedWhy::Panicked(message.clone()));
    }
    match contained(|| R::append(state, change)) {
        Ok(Ok(())) => Appended::Done,
        Ok(Err(error)) => Appended::Failed(FailedWhy::Refused(error.to_string())),
        Err(message) => Appended::Panicked(message),
    }
}

fn guarded<T>(tree: TreeId, call: impl FnOnce() -> T) -> Result<T, ReduceError> {
    contained(call).map_err(|message| ReduceError::Panicked { tree, message })
}

fn read_failed(error: ReadError) -> ReduceError {
    ReduceError::Read(Arc::new(error))
}

/// How far from the end of a replay copies are taken: 16, 64, 256, … changes.
const fn is_power_of_four(left: usize) -> bool {
    left >= 16 && left.is_power_of_two() && left.trailing_zeros().is_multiple_of(2)
}

/// Keeps the copies that stand about twice as far back as the next: what comes out of order comes from near the end.
fn thin<S>(copies: &mut Vec<Kept<S>>, end: u64) {
    let mut wanted = 1;
    let mut kept = Vec::with_capacity(COPIES_MAX);
    for copy in copies.drain(..).rev() {
        let back = end.saturating_sub(copy.changes) + 1;
        if back >= wanted {
            wanted = back * 2;
            kept.push(copy);
        }
    }
    kept.reverse();
    *copies = kept;
}
