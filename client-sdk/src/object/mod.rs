//! JSON objects, folded out of the changes of one tree.
//!
//! A change carries a list of operations ([`Op`], payload type [`DATA_TYPE`]). [`ObjectState`] folds them into the fields a
//! reader sees. The fold depends on the set of changes alone: not on their arrival, nor on how often each arrived.
//!
//! # What wins
//!
//! Every operation has a key: `(height, change id, index in the change)`, compared in this order. "Newer" means a greater
//! key; no clock takes part.
//!
//! | Operation | Effect |
//! |---|---|
//! | `set`, `unset` | The newest of the two is the *base* of the field. It drops every older operation on the field. |
//! | `inc` | Counts when it is newer than the base. Each `inc` counts once. |
//! | `add_to_set`, `remove_from_set` | For each element the newest of the two decides, when it is newer than the base. |
//! | `exists: deleted` | Unsets every field at its key. |
//! | `exists: present` | The object exists from its key on. So do `set`, `inc` and `add_to_set`; `unset` and `remove_from_set` do not. |
//!
//! A field is what its newest operation says:
//!
//! - `set`: the value, as it was written. `unset`: nothing.
//! - `inc`: the base, when that is a number, and otherwise 0, plus the counted increments. See [`ObjectState::fields`] for the
//!   arithmetic.
//! - `add_to_set`, `remove_from_set`: an array of the elements of the base, when that is an array, and of those added, without
//!   those removed. Elements are equal when their canonical JSON is; each stands once, in the order of that text. The array
//!   may be empty.
//!
//! Increments and elements on one field do not drop each other: the newest of them only decides which are shown.
//!
//! An object exists when something that implies existence is newer than the newest delete. Because a delete unsets, an object
//! that was deleted and written again shows only what is newer than the delete: old fields do not come back, a counter begins
//! at 0, a set is empty. What a delete unset is no longer in the state.
//!
//! # Never here
//!
//! No IO, no clock, no randomness, no keys, no tree and no permission: whoever calls [`ObjectState::apply`] has verified the
//! change and knows its place in the tree.

pub mod canonical;
pub mod op;
pub mod state;
mod stored;

pub use canonical::{CanonicalError, canonical_json, check_exact, diff};
pub use op::{DATA_TYPE, Existence, Op, OpError, check, decode, encode};
pub use state::{ObjectState, StateError};
