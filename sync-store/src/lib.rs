//! The embedded store of node and client: one SQLite file, one writer, any number of readers.
//!
//! A data directory holds `headwater.db` (with SQLite's `-wal` and `-shm` beside it) and `lock`. [`Store::open`] takes it for
//! one process. Writes are jobs for the storage thread ([`Store::write`]); reads are closures over one moment
//! ([`Store::read`]). What a [`sync_core::log::Decision`] says is written as it says it, and only a commit opens its effects.
//!
//! # Never here
//!
//! No rule: nothing in this crate knows whether a record may stand in a log. No network, no key, no plaintext, no clock in what
//! is stored. No SQLite type in the interface. No answer before the commit, no "durable" before the sync, and no second try
//! after a disk error.

mod backup;
mod cache;
mod client;
mod db;
mod engine;
mod error;
mod feed;
mod job;
mod judged;
pub mod memory;
mod open;
mod read;
mod readers;
mod recovery;
mod rewind;
mod rows;
mod schema;
mod store;
mod thread;
mod trees;
mod write;
mod writer;

#[cfg(test)]
mod tests;

pub use backup::{BackupError, backup, check_backup, copy_backup};
pub use client::{
    NodeState, ObjectRow, PendingWrite, RefusalRow, Registration, VerdictKind, VerdictRow, WriteId, WriteState,
};
pub use engine::{
    AheadRow, HeadsTold, PeerHeads, PeerKind, PeerRow, PendingLine, SyncItem, SyncItemKind, SyncLoad, WriteClass,
    WriteCount, WriteLine,
};
pub use error::{Cause, OpenError, StoreError, WriteError};
pub use feed::{ElementFeed, ElementsMoved};
pub use open::{DATABASE_FILE, DirLock, Holder, LOCK_FILE, holder, lock};
pub use read::{ReadTx, SpaceView};
pub use readers::READERS_MAX;
pub use recovery::{
    AccusationId, AccusationKind, AccusationRow, AccusationState, LogRange, SalvageId, SalvageRow, SalvageState,
};
pub use rewind::Rewound;
pub use rows::{ChangeLink, ChangePlace, LogRow, SpaceCounts, SpaceRow};
pub use schema::{APPLICATION_ID, SCHEMA_VERSION};
pub use store::{CommitNo, Store, StoreKind, Watermarks, Written};
pub use write::{Creation, Rebuilt, WriteTx};
