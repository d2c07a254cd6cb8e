//! Awaits that survive a restart: what is waited for is a durable row, and whoever resumes it waits for the same.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sync_core::ids::SpaceId;
use sync_core::limits;
use sync_store::{ReadTx, StoreError, WriteId, WriteTx};
use tokio::sync::watch;

use crate::client::{Client, Shared};
use crate::error::{NotSynced, ReadError, WriteError, from_store_write};
use crate::objects::Object;
use crate::space::Space;
use crate::synced::{Await, Level, Progress, Settled, Synced};

const WAIT_PREFIX: &str = "wait/";
const WAIT_NEXT: &str = "wait-next";

/// The number of an await that survives a restart. Never given twice in the life of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WaitId(pub u64);

impl fmt::Display for WaitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for WaitId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// What an await that survives a restart waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// Everything that the node has, and everything of ours as of the moment when the wait was made.
    Synced,
    /// One write.
    Write { write: u64, level: Level },
    /// One object, whether it was written yet or not.
    Object { object_type: String, id: String },
}

/// An await that waits to be resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitInfo {
    pub id: WaitId,
    pub space: SpaceId,
    pub what: WaitFor,
    /// When it was made, milliseconds since 1970.
    pub made_ms: u64,
}

/// How a resumed await ended.
#[derive(Debug, Clone)]
pub enum Waited {
    Synced(Box<Synced>),
    Write(Box<Settled>),
    Object(Box<Object>),
}

/// A resumed await. Dropping it keeps the row: it can be resumed again.
#[derive(Debug, Clone)]
pub struct Wait {
    space: Space,
    info: WaitInfo,
    writes: BTreeSet<WriteId>,
}

/// What is kept of an await, encrypted.
#[derive(Serialize, Deserialize)]
struct WaitRow {
    space: String,
    what: WaitFor,
    /// Writes of ours that were not settled when it was made.
    writes: Vec<u64>,
    made_ms: u64,
}

impl Space {
    /// Keeps what is waited for, so that another process can wait for it: see [`Client::resume_wait`].
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client, space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// use client_sdk::{Await, WaitFor};
    /// let id = space.await_later(WaitFor::Synced).await?;
    /// // Later, or in another process on the same data directory:
    /// client.resume_wait(id)?.done(&Await::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`WriteError::TooManyWaits`], or if the store fails.
    pub async fn await_later(&self, what: WaitFor) -> Result<WaitId, WriteError> {
        let (space, shared) = (self.id(), self.inner.shared.clone());
        let job = move |tx: &mut WriteTx<'_>| -> Result<WaitId, WriteError> {
            if tx.kv_scan(WAIT_PREFIX)?.len() >= limits::WAITS_MAX {
                return Err(WriteError::TooManyWaits { max: limits::WAITS_MAX });
            }
            let id = WaitId(next_id(tx)?);
            let writes = tx.open_writes(space)?.into_iter().map(|w| w.0).collect();
            let row = WaitRow { space: space.to_string(), what, writes, made_ms: shared.host.wall_ms() };
            let key = wait_key(id);
            let bytes = serde_json::to_vec(&row).expect("a wait row is always JSON");
            tx.kv_put(&key, &shared.local.seal_row(key.as_bytes(), &bytes, &mut shared.host.rng()))?;
            tx.kv_put(WAIT_NEXT, &(id.0 + 1).to_le_bytes())?;
            Ok(id)
        };
        Ok(self.inner.shared.store.write(job).await.map_err(from_store_write)?.value)
    }
}

impl Client {
    /// Awaits that were made to be resumed, the oldest first.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn waits(&self) -> Result<Vec<WaitInfo>, ReadError> {
        let rows = self.shared.store.read(|tx| wait_rows(tx, &self.shared))?;
        Ok(rows.into_iter().map(|(info, _)| info).collect())
    }

    /// Goes on with an await, in this process or another one than made it.
    ///
    /// # Errors
    /// [`ReadError::UnknownWait`] if it was done or dropped, [`ReadError::UnknownSpace`] if its space was forgotten.
    pub fn resume_wait(&self, id: WaitId) -> Result<Wait, ReadError> {
        let rows = self.shared.store.read(|tx| wait_rows(tx, &self.shared))?;
        let (info, writes) =
            rows.into_iter().find(|(info, _)| info.id == id).ok_or(ReadError::UnknownWait { wait: id.0 })?;
        Ok(Wait { space: self.space(info.space)?, info, writes })
    }

    /// Forgets an await that nobody will resume.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn drop_wait(&self, id: WaitId) -> Result<(), WriteError> {
        forget(&self.shared, id).await
    }
}

impl Wait {
    /// What is waited for.
    #[must_use]
    pub fn info(&self) -> &WaitInfo {
        &self.info
    }

    /// Waits; on success the row is forgotten.
    ///
    /// # Errors
    /// [`NotSynced`]; the row stays.
    pub async fn done(&self, how: &Await) -> Result<Waited, NotSynced> {
        let space = &self.space;
        let waited = match &self.info.what {
            WaitFor::Synced => {
                let progress = watch::channel(Progress::default()).0;
                let kept = self.writes.clone();
                Waited::Synced(Box::new(space.inner.synced_with(how, kept, &progress).await?))
            }
            WaitFor::Write { write, level } => {
                let how = how.clone().level(how.chosen_level().max(*level));
                Waited::Write(Box::new(space.await_write(WriteId(*write), &how).await?))
            }
            WaitFor::Object { object_type, id } => {
                Waited::Object(Box::new(space.await_object_with(object_type, id, how).await?))
            }
        };
        if let Err(error) = forget(&space.inner.shared, self.info.id).await {
            // It will be found done once more.
            tracing::warn!(wait = self.info.id.0, error = %error, "a wait that is over could not be forgotten");
        }
        Ok(waited)
    }
}

/// Forgets the awaits of a space that is forgotten.
pub(crate) fn forget_of(tx: &mut WriteTx<'_>, shared: &Shared, space: SpaceId) -> Result<(), ReadError> {
    for (info, _) in wait_rows(tx, shared)?.into_iter().filter(|(info, _)| info.space == space) {
        tx.kv_delete(&wait_key(info.id))?;
    }
    Ok(())
}

async fn forget(shared: &Shared, id: WaitId) -> Result<(), WriteError> {
    let key = wait_key(id);
    let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> { Ok(tx.kv_delete(&key)?) };
    shared.store.write(job).await.map_err(from_store_write)?;
    Ok(())
}

fn next_id(tx: &ReadTx<'_>) -> Result<u64, StoreError> {
    let kept = tx.kv(WAIT_NEXT)?.and_then(|bytes| bytes.try_into().ok());
    Ok(kept.map_or(1, u64::from_le_bytes))
}

fn wait_rows(tx: &ReadTx<'_>, shared: &Shared) -> Result<Vec<(WaitInfo, BTreeSet<WriteId>)>, ReadError> {
    let mut found = Vec::new();
    for (key, sealed) in tx.kv_scan(WAIT_PREFIX)? {
        let bytes = shared.local.open_row(key.as_bytes(), &sealed)?;
        let damaged = || ReadError::Row(sync_e2ee::ContentError::Undecryptable);
        let row: WaitRow = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        let id = key.strip_prefix(WAIT_PREFIX).and_then(|id| u64::from_str_radix(id, 16).ok()).ok_or_else(damaged)?;
        let space = row.space.parse().map_err(|_| damaged())?;
        let writes = row.writes.into_iter().map(WriteId).collect();
        found.push((WaitInfo { id: WaitId(id), space, what: row.what, made_ms: row.made_ms }, writes));
    }
    Ok(found)
}

/// Sorts as the numbers do.
fn wait_key(id: WaitId) -> String {
    format!("{WAIT_PREFIX}{:016x}", id.0)
}
