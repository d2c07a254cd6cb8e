//! Automerge documents over trees: a change of the tree carries Automerge changes.

use automerge::transaction::Transaction;
use automerge::{Automerge, AutomergeError};
use bytes::Bytes;
use client_sdk::{Order, ReducedChange, Reducer};

/// What the payloads of the tree are.
pub(crate) const DATA_TYPE: &str = "automerge";

/// A tree as an Automerge document.
#[derive(Debug)]
pub(crate) struct Notes;

impl Reducer for Notes {
    type State = Automerge;
    type View = Automerge;
    type Error = AutomergeError;
    // Automerge puts changes in their place by itself, and knows those that it has.
    const ORDER: Order = Order::Any;

    fn start() -> Automerge {
        Automerge::new()
    }

    fn append(document: &mut Automerge, change: &ReducedChange) -> Result<(), AutomergeError> {
        document.load_incremental(&change.payload).map(drop)
    }

    fn view(document: &Automerge) -> Automerge {
        document.clone()
    }
}

/// What an edit of a document is as the payload of a change. Nothing is edited in place: the reduced document gets the edit with
/// the write.
pub(crate) fn edit(
    document: &Automerge,
    edit: impl FnOnce(&mut Transaction<'_>) -> Result<(), AutomergeError>,
) -> Result<Bytes, AutomergeError> {
    // A fork writes under an actor of its own, so two edits of one view do not collide.
    let mut fork = document.fork();
    let before = fork.get_heads();
    fork.transact(edit).map_err(|failure| failure.error)?;
    Ok(fork.save_after(&before).into())
}
