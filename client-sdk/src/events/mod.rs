//! What happened, as two feeds. The live one tells at once, own writes too, and a slow reader of it is told that it lagged;
//! the logged one is ordered and goes on from a cursor. Neither blocks a writer.

mod cursor;
mod logged;

use sync_core::acl::AclState;
use sync_core::ids::{AccountId, AclId, Epoch, Seq, SpaceId, TreeId};
use sync_core::record::Role;
use sync_e2ee::KeyRing;
use sync_store::{AccusationId, AccusationKind, WriteId};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

pub use cursor::{BadEventCursor, EventCursor};
pub use logged::{LoggedEvent, LoggedEvents};

/// One event of a space, sent after the commit that it tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An object was created, changed or deleted, here or elsewhere.
    Object { space: SpaceId, tree: TreeId, object_type: String, id: String },
    /// A tree that is not an object changed.
    Tree { space: SpaceId, tree: TreeId },
    /// Members, invites or requests changed.
    Acl { space: SpaceId },
    /// Somebody asks to join.
    JoinRequested { space: SpaceId, request: AclId, account: AccountId },
    /// A request was accepted, declined or cancelled.
    RequestDecided { space: SpaceId, request: AclId, account: AccountId, accepted: bool },
    /// Somebody is a member now.
    MemberJoined { space: SpaceId, account: AccountId, role: Role },
    /// A member has another role now.
    RoleChanged { space: SpaceId, account: AccountId, role: Role },
    /// Somebody is a member no more. For this account itself: nothing of this space comes any more.
    MemberGone { space: SpaceId, account: AccountId, removed: bool },
    /// What is written from now on is encrypted with new keys.
    KeysRotated { space: SpaceId, epoch: Epoch },
    /// The owner deleted the space; its contents are gone.
    SpaceDeleted { space: SpaceId },
    /// A write of ours was refused for good, with its code.
    WriteRefused { space: SpaceId, write: WriteId, code: i32 },
    /// The node lost what it had signed for, or told two stories: see [`crate::Space::accusations`].
    NodeAccused { space: SpaceId, accusation: AccusationId, kind: AccusationKind },
    /// The log here was taken back to `to`, to follow a node that lost what came after: everything should be listed again.
    LogRewound { space: SpaceId, to: Seq },
    /// So many entries that the node lost cannot stand in its log again: see [`crate::Space::lost`].
    LostByNode { space: SpaceId, entries: u64 },
    /// Keys of earlier epochs came: what could not be read before may be readable now, and should be listed again.
    Revealed { space: SpaceId },
    /// Of [`crate::Space::events_from`] only: the log here is not the one that the cursor was taken from. Everything should be
    /// listed again; the feed goes on from the end of the log.
    ListAgain { space: SpaceId },
    /// Of [`crate::Space::events`] only: this reader missed `missed` events. It should list again, or read from its cursor.
    Lagged { missed: u64 },
}

/// Epochs that began before an entry of the log and whose keys are held: more after an entry than before it mean that something
/// old was revealed.
pub(crate) fn older_epochs_held(acl: &AclState, ring: &KeyRing, at: Seq) -> usize {
    acl.epochs.iter().filter(|(epoch, info)| info.since < at && ring.holds(**epoch)).count()
}

/// A feed of [`Event`]s from now on. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Events {
    receiver: Receiver<Event>,
    closed: CancellationToken,
}

impl Events {
    pub(crate) const fn new(receiver: Receiver<Event>, closed: CancellationToken) -> Self {
        Self { receiver, closed }
    }

    /// The next event; `None` after the client was closed.
    pub async fn next(&mut self) -> Option<Event> {
        next_of(&mut self.receiver, &self.closed, |missed| Event::Lagged { missed }).await
    }
}

/// The next of a feed, what there is before the end of the client.
pub(crate) async fn next_of<T: Clone>(
    receiver: &mut Receiver<T>,
    closed: &CancellationToken,
    lagged: impl FnOnce(u64) -> T,
) -> Option<T> {
    let received = tokio::select! {
        biased;
        received = receiver.recv() => received,
        () = closed.cancelled() => return None,
    };
    match received {
        Ok(event) => Some(event),
        Err(RecvError::Lagged(missed)) => Some(lagged(missed)),
        Err(RecvError::Closed) => None,
    }
}
