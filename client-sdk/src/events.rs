//! What happened, as a feed. A slow reader never blocks a writer: it is told that it lagged, and lists again.

use sync_core::ids::{AccountId, AclId, Epoch, SpaceId, TreeId};
use sync_core::record::Role;
use sync_store::WriteId;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

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
    /// This reader missed `missed` events: it should list again.
    Lagged { missed: u64 },
}

/// A feed of [`Event`]s. Dropping it ends the subscription.
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
