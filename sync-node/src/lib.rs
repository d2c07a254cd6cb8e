//! The Headwater sync node: keeps encrypted spaces in order, hands them to those who may read them, and proves what it holds.
//!
//! A call passes four stations, each a module: `incoming` (a connection, TLS), `session` (who is calling), `service` (the
//! rpc: messages in and out), `gate` (the only way to the store, which asks `authorize`). The rules are `sync_core`'s; the
//! node decides nothing by itself. `receipts` signs what is on the disk.
//!
//! Work is spawned through one tracker (`shutdown`) and owned by connections and streams, never by a request's future: a
//! caller that goes away cancels its wait, and what it sent is kept.
//!
//! # Never here
//!
//! No plaintext and no key that could make some: this crate is not linked with the encryption of the clients. No rule about
//! what may stand in a log. No read that was not authorised in the transaction that it reads. No "durable" before the fsync.
//! No content and no token in a log line.

mod answers;
mod authorize;
mod config;
mod failure;
mod gate;
mod identity;
mod incoming;
mod metrics;
mod node;
mod receipts;
mod recovering;
mod restore;
mod service;
mod session;
mod shutdown;
mod sketches;
mod tls;

pub use config::{ConfigError, ENV_PREFIX, Flags, LogFormat, NodeCommand, NodeConfig};
pub use identity::{IdentityError, NodeKeys};
pub use incoming::Arrived;
pub use metrics::{MetricsError, serve as serve_metrics};
pub use node::{ADDRESS_FILE, Node, RunningNode, StartError, Stopped};
pub use recovering::{RECOVERING_FILE, Recovering};
pub use restore::{RestoreError, Restored, back_up, restore, restore_on};
pub use tls::{CERTIFICATE_NAME, TlsError};
