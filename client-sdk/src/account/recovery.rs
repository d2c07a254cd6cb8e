//! Bringing an account back on an empty machine: from its words alone, with the node's help.

use std::collections::BTreeMap;
use std::time::Duration;

use sync_core::ids::SpaceId;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::{JoinError, NotSynced, ReadError};
use crate::join::JoinInfo;
use crate::space::Space;

/// What a recovery brought back.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// Every space of the account; each is synced.
    pub spaces: Vec<Space>,
    /// Joins that were not over.
    pub joins: Vec<JoinInfo>,
}

/// A space that did not come back.
#[derive(Debug)]
pub struct MissingSpace {
    pub space: SpaceId,
    pub why: MissingWhy,
}

/// Why a space did not come back.
#[derive(Debug, thiserror::Error)]
pub enum MissingWhy {
    /// It is not here.
    #[error(transparent)]
    Absent(JoinError),
    /// It is here, and not all of it.
    #[error(transparent)]
    NotSynced(NotSynced),
}

/// Why a recovery is not complete. What came back stays, and the rest goes on coming.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// What the account has is not known yet.
    #[error("the account's own space is {0}")]
    Account(NotSynced),
    #[error("{} of {of} spaces did not come back; {}: {}", .missing.len(), .missing[0].space, .missing[0].why)]
    Missing { missing: Vec<MissingSpace>, of: usize },
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl RecoverError {
    /// The stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Account(error) => error.code.name(),
            Self::Missing { .. } => "SPACES_MISSING",
            Self::Read(error) => error.code(),
        }
    }
}

impl Client {
    /// Waits until everything that the account has at the node is here: the list of its spaces, every space of the list, and
    /// all that is in them. For a client that [`Client::restore`] made; true of any other, too.
    ///
    /// ```no_run
    /// # async fn doc(config: client_sdk::ClientConfig, words: client_sdk::Mnemonic) -> Result<(), Box<dyn std::error::Error>> {
    /// use client_sdk::Client;
    /// let client = Client::restore(config, words).await?;
    /// let recovered = client.recovered(std::time::Duration::from_secs(300)).await?;
    /// println!("{} spaces, {} unfinished joins", recovered.spaces.len(), recovered.joins.len());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`RecoverError`] after `timeout`, naming what is missing.
    pub async fn recovered(&self, timeout: Duration) -> Result<Recovered, RecoverError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let left = || deadline.saturating_duration_since(tokio::time::Instant::now());
        self.account_space()?.await_synced_within(left()).await.map_err(RecoverError::Account)?;
        // All at once: one that does not come takes no time from the others.
        let mut coming = JoinSet::new();
        for space in self.shared.listed_spaces()? {
            let client = self.clone();
            coming.spawn(async move { (space, client.recovered_space(space, deadline).await) });
        }
        let of = coming.len();
        let came: BTreeMap<_, _> = coming.join_all().await.into_iter().collect();
        let (mut spaces, mut missing) = (Vec::with_capacity(of), Vec::new());
        for (space, came) in came {
            match came {
                Ok(found) => spaces.push(found),
                // The account left it, or it was deleted, as its own log told in the meantime.
                Err(_) if !self.shared.listed_spaces()?.contains(&space) => {}
                Err(why) => missing.push(MissingSpace { space, why }),
            }
        }
        if missing.is_empty() {
            Ok(Recovered { spaces, joins: self.joins()? })
        } else {
            Err(RecoverError::Missing { missing, of })
        }
    }

    async fn recovered_space(&self, id: SpaceId, deadline: Instant) -> Result<Space, MissingWhy> {
        let left = || deadline.saturating_duration_since(tokio::time::Instant::now());
        let space = self.wait_for_space(id, left()).await.map_err(MissingWhy::Absent)?;
        space.await_synced_within(left()).await.map_err(MissingWhy::NotSynced)?;
        Ok(space)
    }
}
