//! What an application makes of the changes of a tree: a CRDT of its own, an index, a text.
//!
//! The SDK orders, encrypts, stores and delivers the changes of a tree; what they mean is the application's. It says so once, as a
//! [`Reducer`], and gets one live state for each tree, which follows every change by itself: changes that come at the end of
//! the tree's order are appended, one at a time; what was made anew by somebody else at the same time is put in its place.
//!
//! ```no_run
//! # async fn doc(space: client_sdk::Space, tree: client_sdk::TreeId) -> Result<(), Box<dyn std::error::Error>> {
//! use std::convert::Infallible;
//!
//! use client_sdk::{Order, ReducedChange, Reducer};
//!
//! /// How many bytes each author wrote. A change that is counted twice is wrong, so the order is the tree's.
//! struct Bytes;
//!
//! impl Reducer for Bytes {
//!     type State = std::collections::BTreeMap<String, usize>;
//!     type View = Self::State;
//!     type Error = Infallible;
//!     const ORDER: Order = Order::Total;
//!
//!     fn start() -> Self::State {
//!         Self::State::new()
//!     }
//!
//!     fn append(state: &mut Self::State, change: &ReducedChange) -> Result<(), Infallible> {
//!         *state.entry(change.author.to_string()).or_default() += change.payload.len();
//!         Ok(())
//!     }
//!
//!     fn view(state: &Self::State) -> Self::View {
//!         state.clone()
//!     }
//!
//!     fn copy(state: &Self::State) -> Option<Self::State> {
//!         Some(state.clone())
//!     }
//! }
//!
//! let tree = space.tree(tree)?.ok_or("no such tree")?;
//! let mut reduced = tree.reduced::<Bytes>()?;
//! println!("{:?}", reduced.get().await?.view);
//! while let Some(now) = reduced.next().await? {
//!     println!("{:?}, {} changes", now.view, now.changes);
//! }
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;

use bytes::Bytes;
use sync_core::ids::{AccountId, ChangeId, TreeId};

use crate::error::ReadError;

/// Whether the order of changes matters to a reducer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Any order that puts a change after its parents gives the same state, and so does a change that is appended twice: what a
    /// CRDT promises of its updates. Every change is appended once, when it comes; own writes before they are in the log.
    Any,
    /// Only the total order of the tree gives the right state. Changes that go before others are put in their place by going
    /// back to a copy of the state from before them, and own writes that are not in the log yet stand after everything else.
    Total,
}

/// One change, as a reducer sees it. What cannot be read is not shown to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReducedChange {
    pub id: ChangeId,
    pub author: AccountId,
    pub at_ms: u64,
    pub data_type: String,
    pub payload: Bytes,
}

/// What an application makes of the changes of a tree. The functions run on the client's own tasks, a few changes at a time: they
/// should compute and not wait.
pub trait Reducer: Send + Sync + 'static {
    /// What changes are folded into. Never shared.
    type State: Send + 'static;
    /// What readers get; shared between them.
    type View: Send + Sync + 'static;
    /// Why a change cannot be appended.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Whether the order of changes matters.
    const ORDER: Order;

    /// The state before the first change.
    fn start() -> Self::State;

    /// Puts one more change into the state.
    ///
    /// # Errors
    /// If the change makes no sense; it is left out and listed in [`Reduction::failed`](crate::Reduction::failed), and the others
    /// go on. The state must be as it was before. A panic leaves the change out, too, and the state is made anew.
    fn append(state: &mut Self::State, change: &ReducedChange) -> Result<(), Self::Error>;

    /// What readers see of a state. Called once after each batch of changes.
    fn view(state: &Self::State) -> Self::View;

    /// A copy to come back to. Without it, whatever does not append is done from the beginning of the tree.
    #[must_use]
    fn copy(_state: &Self::State) -> Option<Self::State> {
        None
    }
}

/// A change that is not in a reduced state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedChange {
    pub change: ChangeId,
    pub why: FailedWhy,
}

/// Why a change is not in a reduced state. The texts are the reducer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailedWhy {
    /// [`Reducer::append`] said no.
    Refused(String),
    /// [`Reducer::append`] panicked over it.
    Panicked(String),
}

/// Why there is no reduced state.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReduceError {
    #[error("{tree} was purged")]
    Purged { tree: TreeId },
    /// The reducer panics without a change to blame, or over more changes than are left out.
    #[error("the reducer panicked over {tree}: {message}")]
    Panicked { tree: TreeId, message: String },
    #[error(transparent)]
    Read(Arc<ReadError>),
    #[error("the client is closed")]
    Closed,
}

impl ReduceError {
    /// The stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Purged { .. } => "TREE_PURGED",
            Self::Panicked { .. } => "PANICKED",
            Self::Read(error) => error.code(),
            Self::Closed => "CLOSED",
        }
    }
}
