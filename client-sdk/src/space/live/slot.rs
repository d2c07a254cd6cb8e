//! A value that is loaded once, by whoever comes first, and brought to each commit that touches it.
//!
//! The lock is held for a moment only, never while something is read. One loads at a time, so what is shown never goes back.
//! No commit waits for a load: it leaves a note that one is owed, and the next reader loads. Readers wait for the first load, or for
//! one that is owed to them, and for nothing else.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use sync_store::CommitNo;

pub(super) struct Slot<T> {
    state: Mutex<State<T>>,
    landed: Condvar,
}

struct State<T> {
    value: Option<Arc<T>>,
    /// Every commit up to here is in the value.
    as_of: CommitNo,
    /// Every commit up to here must be in what readers get.
    owed: CommitNo,
    flight: Flight,
}

/// Whether somebody loads now. One at a time: what is read later is newer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flight {
    None,
    Loading,
}

/// What a commit led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replaced {
    /// Nobody had asked for a value: there was nothing to replace.
    NotLoaded,
    /// What is shown says the same.
    Same,
    Other,
    /// Somebody is loading, from before the commit perhaps: the next reader loads again.
    Owed,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        let (as_of, owed) = (CommitNo::default(), CommitNo::default());
        Self { state: Mutex::new(State { value: None, as_of, owed, flight: Flight::None }), landed: Condvar::new() }
    }
}

impl<T: PartialEq> Slot<T> {
    /// What is shown now, unless a commit is owed to it.
    pub(super) fn get(&self) -> Option<Arc<T>> {
        self.lock().shown()
    }

    /// What is shown, or what `load` gives: the value, and a commit that is in it. Of many callers one loads, the others wait for
    /// it; a load that fails or panics is not remembered, and the next caller loads.
    pub(super) fn get_or_load<E>(&self, load: impl FnOnce() -> Result<(CommitNo, T), E>) -> Result<Arc<T>, E> {
        let mut state = self.lock();
        loop {
            if let Some(value) = state.shown() {
                return Ok(value);
            }
            match state.flight {
                Flight::None => break,
                Flight::Loading => state = self.landed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        self.fly(state, load)
    }

    /// Brings what is shown to a commit that touched it. Waits for nobody. A failure empties the slot, and the next reader
    /// meets it.
    pub(super) fn replace<E>(
        &self,
        commit: CommitNo,
        load: impl FnOnce() -> Result<(CommitNo, T), E>,
    ) -> Result<Replaced, E> {
        let mut state = self.lock();
        match (&state.value, state.flight) {
            (None, Flight::None) => return Ok(Replaced::NotLoaded),
            (Some(_), _) if state.as_of >= commit => return Ok(Replaced::Same),
            (_, Flight::Loading) => {
                state.owed = state.owed.max(commit);
                return Ok(Replaced::Owed);
            }
            (Some(_), Flight::None) => {}
        }
        let before = state.value.clone();
        let value = self.fly(state, load)?;
        Ok(if before.as_ref() == Some(&value) { Replaced::Same } else { Replaced::Other })
    }

    fn fly<E>(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        load: impl FnOnce() -> Result<(CommitNo, T), E>,
    ) -> Result<Arc<T>, E> {
        state.flight = Flight::Loading;
        drop(state);
        let landing = Landing { slot: self, landed: None };
        let (as_of, value) = load()?;
        let value = Arc::new(value);
        landing.with(as_of, value.clone());
        Ok(value)
    }
}

impl<T> Slot<T> {
    /// Whoever panicked here did so between two whole states.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn shown(&self) -> Option<Arc<T>> {
        self.value.clone().filter(|_| self.as_of >= self.owed)
    }
}

/// Ends a flight: with a value, or (when the load failed or panicked) with none.
struct Landing<'a, T> {
    slot: &'a Slot<T>,
    landed: Option<(CommitNo, Arc<T>)>,
}

impl<T> Landing<'_, T> {
    fn with(mut self, as_of: CommitNo, value: Arc<T>) {
        self.landed = Some((as_of, value));
    }
}

impl<T> Drop for Landing<'_, T> {
    fn drop(&mut self) {
        let mut state = self.slot.lock();
        state.flight = Flight::None;
        match self.landed.take() {
            Some((as_of, value)) => (state.as_of, state.value) = (as_of, Some(value)),
            None => state.value = None,
        }
        drop(state);
        self.slot.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    type Load = Result<(CommitNo, u64), &'static str>;

    fn loaded(commit: u64, value: u64) -> Load {
        Ok((CommitNo(commit), value))
    }

    #[test]
    fn of_many_one_loads() {
        let (slot, loads) = (Slot::default(), AtomicU64::new(0));
        let load = || loaded(1, loads.fetch_add(1, Ordering::Relaxed) + 7);
        std::thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| assert_eq!(slot.get_or_load(load).as_deref(), Ok(&7)));
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }

    #[test]
    fn a_failure_or_a_panic_is_not_remembered() {
        let slot = Slot::<u64>::default();
        assert_eq!(slot.get_or_load(|| Err("no")), Err("no"));
        let panicked = catch_unwind(AssertUnwindSafe(|| slot.get_or_load(|| -> Load { panic!("over it") })));
        assert!(panicked.is_err());
        assert_eq!(slot.get_or_load(|| loaded(1, 1)).as_deref(), Ok(&1));
        assert_eq!(slot.replace(CommitNo(2), || Err("no")), Err("no"));
        assert_eq!(slot.get(), None);
        assert_eq!(slot.get_or_load(|| loaded(2, 2)).as_deref(), Ok(&2));
    }

    /// What a load saw already is not loaded again.
    #[test]
    fn a_commit_that_is_in_it_loads_nothing() {
        let slot = Slot::default();
        let never = || -> Load { panic!("there is nothing to load") };
        assert_eq!(slot.replace(CommitNo(1), never), Ok(Replaced::NotLoaded));
        slot.get_or_load(|| loaded(5, 1)).expect("loaded");
        assert_eq!(slot.replace(CommitNo(5), never), Ok(Replaced::Same));
        assert_eq!(slot.replace(CommitNo(6), || loaded(6, 2)), Ok(Replaced::Other));
        assert_eq!(slot.replace(CommitNo(7), || loaded(7, 2)), Ok(Replaced::Same));
    }

    /// A commit during a load waits for nobody, and whoever reads after it sees it.
    #[test]
    fn a_commit_does_not_wait_for_a_load() {
        let slot = Slot::default();
        let (read, has_read) = channel();
        let (go_on, may_go_on) = channel();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                slot.get_or_load(move || {
                    read.send(()).map_err(|_| "gone")?;
                    may_go_on.recv().map_err(|_| "gone")?;
                    loaded(1, 1)
                })
            });
            has_read.recv().expect("the load began");
            assert_eq!(slot.replace(CommitNo(2), || loaded(2, 2)), Ok(Replaced::Owed));
            let second = scope.spawn(|| slot.get_or_load(|| loaded(2, 2)));
            go_on.send(()).expect("the load waits");
            assert_eq!(first.join().expect("no panic").as_deref(), Ok(&1));
            assert_eq!(second.join().expect("no panic").as_deref(), Ok(&2), "what was loaded before is not enough");
        });
        assert_eq!(slot.get().as_deref(), Some(&2));
    }

    /// While a commit is being brought in, readers go on with what was there.
    #[test]
    fn readers_do_not_wait_for_a_commit() {
        let slot = Slot::default();
        slot.get_or_load(|| loaded(1, 1)).expect("loaded");
        let replaced = slot.replace(CommitNo(2), || {
            assert_eq!(slot.get().as_deref(), Some(&1));
            loaded(2, 2)
        });
        assert_eq!(replaced, Ok(Replaced::Other));
        assert_eq!(slot.get().as_deref(), Some(&2));
    }
}
