//! Headwater for applications: encrypted spaces of JSON objects that work offline and always know whether they are synced.
//!
//! ```no_run
//! use client_sdk::{Client, ClientConfig, Unlock};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let node = "headwater://auth_…@127.0.0.1:4710".parse()?;
//!     let unlock = Unlock::KeyFile("./me/device.key".into());
//!     let (client, words) = Client::create(ClientConfig::new("./me", unlock).node(node)).await?;
//!     println!("keep these words: {}", words.phrase());
//!
//!     // Opening a space is starting its sync. Everything below works offline, too.
//!     let space = client.create_space("Shopping").await?;
//!     let items = space.objects();
//!     items.put("item", "milk", serde_json::json!({ "title": "Milk", "done": false })).await?;
//!     println!("{:?}", items.get("item", "milk")?);
//!
//!     // True or an error that names what is missing; the node has signed for it.
//!     let synced = space.await_synced().await?;
//!     println!("on the node's disk up to {}", synced.receipt.body().seq);
//!     client.close().await;
//!     Ok(())
//! }
//! ```
//!
//! - [`Client`]: an account on this device, in one data directory, with one node.
//! - [`Space`]: opening it starts its sync; [`Space::await_synced`] proves that it agrees with the node.
//! - [`Objects`]: put, get, list, update, delete, watch. Reads never touch the network.
//! - [`Tree`]: the one live instance of what is under an object; also for foreign CRDTs and imported histories.
//! - [`Space::invite`], [`Client::join`], [`Space::approve`]: membership. A joiner is *ready* when it can read what it is
//!   meant to see.
//!
//! - [`local`]: all of this as a gRPC service on this machine, for programs in other languages.
//!
//! # Never here
//!
//! No way to rebuild or invalidate a live tree, no way to start or stop sync by hand, no rules of its own: those are in
//! `sync-core`, and the same on every replica.

mod account;
mod acl;
mod client;
mod connect;
mod error;
mod events;
mod explain;
mod home;
mod join;
mod link;
pub mod local;
pub mod object;
mod objects;
mod peer;
mod reduce;
mod rest;
mod space;
mod status;
mod synced;
mod types;
mod waits;

pub use account::{
    ClientEvent, ClientEvents, DeviceError, DeviceInfo, MissingSpace, MissingWhy, RecoverError, Recovered,
};
pub use acl::{AclChange, AclPlan, Effect, Invite, InviteInfo, InviteOptions, JoinRequest, Preparation};
pub use client::{Client, ClientConfig, SpaceInfo};
pub use error::{AclError, CallError, JoinError, NotSynced, NotSyncedCode, OpenError, ReadError, WriteError};
pub use events::{BadEventCursor, Event, EventCursor, Events, LoggedEvent, LoggedEvents};
pub use home::{MemoryVault, Unlock};
pub use join::{JoinInfo, JoinStage, Joining};
pub use object::{CanonicalError, canonical_json};
pub use objects::{NewObject, Object, ObjectChange, ObjectWatch, Objects, Update};
pub use peer::{Comparison, Peer, PeerError, PeerIdentity, Pulled, TreeComparison, TreeStands};
pub use reduce::{FailedChange, FailedWhy, Order, ReduceError, ReducedChange, Reducer};
pub use space::recovery::{Accusation, Compared, LostEntry};
pub use space::{
    BadChangeCursor, ChangeCursor, ChangeFeed, ChangePage, LoggedChange, MemberInfo, NewTree, ParentRef, Place,
    Reduced, Reduction, RefusedContent, RefusedWrite, ReplayWhy, Space, ToldStep, Tree, TreeCounters, TreeSnapshot,
    TreeStep, TreeWatch, TreeWrite, TreeWritten,
};
pub use status::{
    Confirmed, Example, PeerBudget, PeerClass, PeerStatus, Reason, ReasonCode, SpaceStatus, StatusStream, SyncState,
    ToldHeads, TreeStatus,
};
pub use synced::{Await, AwaitEvent, DEADLINE, Level, Progress, Settled, Synced, SyncedStream};
pub use types::ObjectType;
pub use waits::{Wait, WaitFor, WaitId, WaitInfo, Waited};

pub use sync_core::acl::{AclState, InviteStatus, RequestStatus};
pub use sync_core::code::Code;
pub use sync_core::evidence::{Evidence, EvidenceError, Proven, ProvesNothing, judge};
pub use sync_core::ids::{
    AccountId, AclId, AuthorityId, Chain, ChangeId, DeviceId, IdError, InviteId, NodeId, Seq, SpaceId, TreeId,
};
pub use sync_core::receipt::{ReceiptError, SignedReceipt};
pub use sync_core::record::{HistoryMode, InviteMode, InviteToken, Role, SpaceOptions, Who, WriteRule};
pub use sync_core::token::{AddressError, NodeAddress, TokenError, token_from_text};
pub use sync_core::tree::{Height, OrderKey};
pub use sync_e2ee::{Mnemonic, MnemonicError};
pub use sync_host as host;
pub use sync_store::{AccusationId, AccusationKind, AccusationState, SalvageId};
pub use sync_store::{OpenError as StoreOpenError, Registration, WriteId, WriteState};
