//! How an object lies in the local store.
//!
//! One protobuf message. Many operations come from one change, so each change stands once, in a table in ascending order, and
//! operations name it by its place there. Values are canonical JSON. One state has one encoding: maps are written in order, and
//! bytes that would be written otherwise are refused.

use std::collections::BTreeSet;

use prost::Message;
use sync_core::ids::{ChangeId, IdError};
use sync_core::tree::{Height, OrderKey};

use super::canonical::{Canonical, CanonicalError};
use super::state::{Base, Field, Membership, ObjectState, Stamp};

const VERSION: u32 = 1;

/// Why bytes are not a stored object.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not a message at all.
    #[error("the stored object is not a protobuf message")]
    Malformed(#[source] prost::DecodeError),
    /// Written by another version of this library.
    #[error("the stored object has format {found}; this library reads format 1")]
    Version { found: u32 },
    /// A change id has the wrong length.
    #[error("the stored object names a change that is none")]
    ChangeId(#[source] IdError),
    /// An operation names a change that is not in the table.
    #[error("the stored object names change {place}, and has {changes}")]
    Change { place: u32, changes: usize },
    /// A kind of operation that this version does not know.
    #[error("the stored object has an operation of unknown kind {kind}")]
    Kind { kind: i32 },
    /// A value that is not JSON.
    #[error("the stored object has a value that is not JSON")]
    Json(#[source] serde_json::Error),
    /// A value that no operation can carry.
    #[error("the stored object has a value that is not acceptable")]
    Value(#[source] CanonicalError),
    /// The bytes say something that is never written so.
    #[error("the stored object is not in the form in which it is written")]
    Form,
}

#[derive(Clone, PartialEq, Message)]
struct StoredObject {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    object_type: String,
    #[prost(string, tag = "3")]
    object_id: String,
    #[prost(message, repeated, tag = "4")]
    changes: Vec<StoredChange>,
    #[prost(message, optional, tag = "5")]
    present: Option<StoredStamp>,
    #[prost(message, optional, tag = "6")]
    deleted: Option<StoredStamp>,
    #[prost(message, repeated, tag = "7")]
    fields: Vec<StoredField>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredChange {
    #[prost(uint64, tag = "1")]
    height: u64,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct StoredStamp {
    #[prost(uint32, tag = "1")]
    change: u32,
    #[prost(uint32, tag = "2")]
    index: u32,
}

#[derive(Clone, PartialEq, Message)]
struct StoredField {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(enumeration = "StoredBase", tag = "2")]
    base: i32,
    #[prost(uint32, tag = "3")]
    change: u32,
    #[prost(uint32, tag = "4")]
    index: u32,
    /// Canonical JSON.
    #[prost(string, tag = "5")]
    value: String,
    #[prost(message, repeated, tag = "6")]
    increments: Vec<StoredIncrement>,
    #[prost(message, repeated, tag = "7")]
    elements: Vec<StoredElement>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct StoredIncrement {
    #[prost(uint32, tag = "1")]
    change: u32,
    #[prost(uint32, tag = "2")]
    index: u32,
    #[prost(sint64, tag = "3")]
    by: i64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredElement {
    /// Canonical JSON.
    #[prost(string, tag = "1")]
    element: String,
    #[prost(uint32, tag = "2")]
    change: u32,
    #[prost(uint32, tag = "3")]
    index: u32,
    #[prost(enumeration = "StoredMembership", tag = "4")]
    membership: i32,
}

/// The commonest is 0, which takes no space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum StoredBase {
    Set = 0,
    Unset = 1,
    None = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum StoredMembership {
    Added = 0,
    Removed = 1,
}

pub(super) fn encode(state: &ObjectState) -> Vec<u8> {
    let table = Table::of(state);
    let message = StoredObject {
        version: VERSION,
        object_type: state.object_type.clone(),
        object_id: state.object_id.clone(),
        changes: table.0.iter().map(stored_change).collect(),
        present: state.present.map(|stamp| table.stored(stamp)),
        deleted: state.deleted.map(|stamp| table.stored(stamp)),
        fields: state.fields.iter().map(|(name, field)| stored_field(&table, name, field)).collect(),
    };
    message.encode_to_vec()
}

pub(super) fn decode(bytes: &[u8]) -> Result<ObjectState, StateError> {
    let message = StoredObject::decode(bytes).map_err(StateError::Malformed)?;
    if message.version != VERSION {
        return Err(StateError::Version { found: message.version });
    }
    let table = Table(message.changes.into_iter().map(change).collect::<Result<_, _>>()?);
    let mut state = ObjectState::new(&message.object_type, &message.object_id);
    state.present = message.present.map(|stamp| table.stamp(stamp)).transpose()?;
    state.deleted = message.deleted.map(|stamp| table.stamp(stamp)).transpose()?;
    for stored in message.fields {
        let name = stored.name.clone();
        state.fields.insert(name, field(&table, stored, state.deleted)?);
    }
    // Finds whatever the maps reordered, merged or dropped above, and all that protobuf lets pass.
    if encode(&state) == bytes { Ok(state) } else { Err(StateError::Form) }
}

/// The changes that a state names, in ascending order.
struct Table(Vec<OrderKey>);

impl Table {
    fn of(state: &ObjectState) -> Self {
        let mut keys: BTreeSet<OrderKey> =
            [state.present, state.deleted].into_iter().flatten().map(|s| s.key).collect();
        for field in state.fields.values() {
            keys.extend(field.base.iter().map(|(stamp, _)| stamp.key));
            keys.extend(field.increments.keys().map(|stamp| stamp.key));
            keys.extend(field.elements.values().map(|(stamp, _)| stamp.key));
        }
        Self(keys.into_iter().collect())
    }

    fn stored(&self, stamp: Stamp) -> StoredStamp {
        let place = self.0.binary_search(&stamp.key).expect("the table was made of every key of this state");
        let change = u32::try_from(place).expect("a table of 2^32 keys of 40 bytes does not fit in memory");
        StoredStamp { change, index: stamp.index }
    }

    fn stamp(&self, stored: StoredStamp) -> Result<Stamp, StateError> {
        let place = stored.change;
        let key = usize::try_from(place).ok().and_then(|place| self.0.get(place));
        let key = *key.ok_or(StateError::Change { place, changes: self.0.len() })?;
        Ok(Stamp { key, index: stored.index })
    }
}

fn stored_change(key: &OrderKey) -> StoredChange {
    StoredChange { height: key.height.0, id: key.id.as_bytes().to_vec() }
}

fn change(stored: StoredChange) -> Result<OrderKey, StateError> {
    let id = ChangeId::try_from(stored.id.as_slice()).map_err(StateError::ChangeId)?;
    Ok(OrderKey { height: Height(stored.height), id })
}

fn stored_field(table: &Table, name: &str, field: &Field) -> StoredField {
    let (base, at, value) = match &field.base {
        Some((at, Base::Set(value))) => (StoredBase::Set, table.stored(*at), value.text().to_owned()),
        Some((at, Base::Unset)) => (StoredBase::Unset, table.stored(*at), String::new()),
        None => (StoredBase::None, StoredStamp::default(), String::new()),
    };
    let increments = field.increments.iter().map(|(at, by)| {
        let StoredStamp { change, index } = table.stored(*at);
        StoredIncrement { change, index, by: *by }
    });
    let elements = field.elements.iter().map(|(element, (at, membership))| {
        let StoredStamp { change, index } = table.stored(*at);
        let membership = match membership {
            Membership::Added => StoredMembership::Added,
            Membership::Removed => StoredMembership::Removed,
        };
        StoredElement { element: element.text().to_owned(), change, index, membership: membership.into() }
    });
    StoredField {
        name: name.to_owned(),
        base: base.into(),
        change: at.change,
        index: at.index,
        value,
        increments: increments.collect(),
        elements: elements.collect(),
    }
}

fn field(table: &Table, stored: StoredField, deleted: Option<Stamp>) -> Result<Field, StateError> {
    let mut field = Field::default();
    for StoredIncrement { change, index, by } in stored.increments {
        field.increments.insert(table.stamp(StoredStamp { change, index })?, by);
    }
    for StoredElement { element, change, index, membership } in stored.elements {
        let at = table.stamp(StoredStamp { change, index })?;
        field.elements.insert(canonical(&element)?, (at, self::membership(membership)?));
    }
    let at = StoredStamp { change: stored.change, index: stored.index };
    match base(stored.base)? {
        StoredBase::Set => field.put_base(table.stamp(at)?, Base::Set(canonical(&stored.value)?)),
        StoredBase::Unset => field.put_base(table.stamp(at)?, Base::Unset),
        StoredBase::None => {}
    }
    if let Some(deleted) = deleted {
        field.drop_through(deleted);
    }
    if field == Field::default() { Err(StateError::Form) } else { Ok(field) }
}

/// The text itself is compared with what is written for it, together with all else.
fn canonical(text: &str) -> Result<Canonical, StateError> {
    let value = serde_json::from_str(text).map_err(StateError::Json)?;
    Canonical::of(&value).map_err(StateError::Value)
}

fn base(stored: i32) -> Result<StoredBase, StateError> {
    StoredBase::try_from(stored).map_err(|prost::UnknownEnumValue(kind)| StateError::Kind { kind })
}

fn membership(stored: i32) -> Result<Membership, StateError> {
    match StoredMembership::try_from(stored) {
        Ok(StoredMembership::Added) => Ok(Membership::Added),
        Ok(StoredMembership::Removed) => Ok(Membership::Removed),
        Err(prost::UnknownEnumValue(kind)) => Err(StateError::Kind { kind }),
    }
}
