//! What happens to the set that HeadSync compares, told to those who keep something of it in memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sync_core::ids::{Seq, SpaceId};
use sync_core::log::Decision;
use sync_core::reconcile::{Step, steps};
use tokio::sync::mpsc;

/// Moves that wait for one follower. One that falls further behind is cut off: what it keeps is built anew.
const WAITING_MAX: usize = 8192;

/// What one decision did to the elements of a space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementsMoved {
    /// The end of the log with it.
    pub seq: Seq,
    pub steps: Vec<Step>,
}

/// The moves of one space from here on, in log order, each after its commit. Its end means that some were left out.
#[derive(Debug)]
pub struct ElementFeed(mpsc::Receiver<ElementsMoved>);

impl ElementFeed {
    /// The next move; `None` if what was kept of the elements is not right any more.
    pub async fn next(&mut self) -> Option<ElementsMoved> {
        self.0.recv().await
    }
}

/// What a job did to the elements of followed spaces.
#[derive(Debug)]
pub(crate) enum Moved {
    By(ElementsMoved),
    /// Rows were repaired: no move says how.
    Anew,
}

impl Moved {
    pub(crate) fn by(decision: &Decision) -> Self {
        Self::By(ElementsMoved { seq: decision.position().seq, steps: steps(decision).collect() })
    }
}

/// Who follows which space.
#[derive(Debug, Default)]
pub(crate) struct Feeds(Mutex<BTreeMap<SpaceId, Vec<mpsc::Sender<ElementsMoved>>>>);

impl Feeds {
    pub(crate) fn follow(&self, space: SpaceId) -> ElementFeed {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        self.lock().entry(space).or_default().push(sender);
        ElementFeed(receiver)
    }

    pub(crate) fn is_followed(&self, space: &SpaceId) -> bool {
        self.lock().contains_key(space)
    }

    /// After the commit, in log order.
    pub(crate) fn publish(&self, moves: Vec<(SpaceId, Moved)>) {
        if moves.is_empty() {
            return;
        }
        let mut feeds = self.lock();
        for (space, moved) in moves {
            let Some(followers) = feeds.get_mut(&space) else { continue };
            match moved {
                Moved::By(moved) => followers.retain(|follower| follower.try_send(moved.clone()).is_ok()),
                Moved::Anew => followers.clear(),
            }
            if followers.is_empty() {
                feeds.remove(&space);
            }
        }
    }

    pub(crate) fn forget(&self, space: &SpaceId) {
        self.lock().remove(space);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SpaceId, Vec<mpsc::Sender<ElementsMoved>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
