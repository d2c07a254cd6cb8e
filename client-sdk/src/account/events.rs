//! What happens to the client as a whole, as a feed.

use sync_core::ids::SpaceId;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::events::next_of;

/// One event of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientEvent {
    /// A space is here that was not before: made or joined here, or by another device of the account.
    SpaceAppeared { space: SpaceId },
    /// The account is no member of the space any more, or the space was deleted.
    SpaceGone { space: SpaceId },
    /// A join began, moved or ended, on any device of the account.
    JoinsChanged,
    /// The account's devices are others than before, or have other names.
    DevicesChanged,
    /// This very device is not on the account's list any more: the node refuses it from now on.
    DeviceRevoked,
    /// This reader missed `missed` events: it should list again.
    Lagged { missed: u64 },
}

/// A feed of [`ClientEvent`]s. Dropping it ends the subscription.
#[derive(Debug)]
pub struct ClientEvents {
    receiver: tokio::sync::broadcast::Receiver<ClientEvent>,
    closed: CancellationToken,
}

impl ClientEvents {
    /// The next event; `None` after the client was closed.
    pub async fn next(&mut self) -> Option<ClientEvent> {
        next_of(&mut self.receiver, &self.closed, |missed| ClientEvent::Lagged { missed }).await
    }
}

impl Client {
    /// A feed of what happens to the client as a whole from now on: spaces, joins, devices.
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use client_sdk::ClientEvent;
    /// let mut events = client.events();
    /// while let Some(event) = events.next().await {
    ///     if let ClientEvent::SpaceAppeared { space } = event {
    ///         println!("now also in {:?}", client.space(space)?.name()?);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn events(&self) -> ClientEvents {
        ClientEvents { receiver: self.shared.own.events.subscribe(), closed: self.shared.cancel.clone() }
    }
}
