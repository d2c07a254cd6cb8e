//! The client that the service speaks for.

use std::sync::{Arc, PoisonError, RwLock};

use super::failure::LocalError;
use crate::client::Client;

/// The client that is open now. It can be taken out, closed, and replaced by one that was opened with another configuration,
/// while the service goes on; calls that come in between are told to ask again.
#[derive(Debug, Clone)]
pub struct Current(Arc<RwLock<Option<Client>>>);

impl From<Client> for Current {
    fn from(client: Client) -> Self {
        Self(Arc::new(RwLock::new(Some(client))))
    }
}

impl Current {
    /// The open client; `None` between [`Current::take`] and [`Current::put`].
    #[must_use]
    pub fn client(&self) -> Option<Client> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the client out, to close it.
    #[must_use]
    pub fn take(&self) -> Option<Client> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Puts a client in.
    pub fn put(&self, client: Client) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(client);
    }

    pub(super) fn get(&self) -> Result<Client, LocalError> {
        self.client().ok_or(LocalError::Reopening)
    }
}
