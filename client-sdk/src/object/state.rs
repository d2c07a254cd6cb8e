//! The fold: operations in, fields out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Number, Value};
use sync_core::tree::OrderKey;

use super::canonical::Canonical;
use super::op::{Existence, Op};
use super::stored;

pub use super::stored::StateError;

/// One object: all that is needed to show it and to fold further changes into it.
///
/// It keeps what can still count: the base of each field, and what is newer than the base. Two states are equal, and encode to
/// equal bytes, exactly when they hold the same operations that can still count; the same set of changes always leads there.
///
/// ```
/// use client_sdk::object::{ObjectState, Op};
/// use serde_json::json;
/// use sync_core::ids::ChangeId;
/// use sync_core::tree::{Height, OrderKey};
///
/// let at = |height, id| OrderKey { height: Height(height), id: ChangeId::from_hash([id; 32]) };
/// let name = |name: &str| [Op::Set { field: "name".into(), value: json!(name) }];
///
/// let mut here = ObjectState::new("profile", "ada");
/// here.apply(at(1, 7), &name("Ada"));
/// here.apply(at(2, 3), &name("Ada L."));
///
/// let mut there = ObjectState::new("profile", "ada");
/// there.apply(at(2, 3), &name("Ada L."));
/// there.apply(at(1, 7), &name("Ada"));
///
/// assert_eq!(here.fields()["name"], "Ada L.");
/// assert_eq!(here.encode(), there.encode());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectState {
    pub(super) object_type: String,
    pub(super) object_id: String,
    /// The newest delete. Nothing in `fields` is older.
    pub(super) deleted: Option<Stamp>,
    /// The newest operation that implies existence.
    pub(super) present: Option<Stamp>,
    /// Without fields that hold nothing.
    pub(super) fields: BTreeMap<String, Field>,
}

/// The key of one operation: greater is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    pub(super) key: OrderKey,
    pub(super) index: u32,
}

/// One field. Increments and elements are newer than the base.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Field {
    pub(super) base: Option<(Stamp, Base)>,
    pub(super) increments: BTreeMap<Stamp, i64>,
    pub(super) elements: BTreeMap<Canonical, (Stamp, Membership)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Base {
    Set(Canonical),
    Unset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Membership {
    Added,
    Removed,
}

impl ObjectState {
    /// An object that nobody has written yet: it does not exist and has no fields.
    #[must_use]
    pub fn new(object_type: &str, object_id: &str) -> Self {
        Self {
            object_type: object_type.to_owned(),
            object_id: object_id.to_owned(),
            deleted: None,
            present: None,
            fields: BTreeMap::new(),
        }
    }

    /// The type, as the app declares it.
    #[must_use]
    pub fn object_type(&self) -> &str {
        &self.object_type
    }

    /// The id within the type.
    #[must_use]
    pub fn object_id(&self) -> &str {
        &self.object_id
    }

    /// Folds in the operations of the change at this place, in the order of their index.
    ///
    /// Changes may come in any order and more than once. A key always comes with the same operations: it contains the id, and
    /// so the hash, of the change.
    ///
    /// The operations are such as [`op::decode`](super::op::decode) yields. One whose value
    /// [`check_exact`](super::check_exact) refuses is left out, on every device alike.
    pub fn apply(&mut self, at: OrderKey, ops: &[Op]) {
        for (index, op) in (0..).zip(ops) {
            self.apply_op(Stamp { key: at, index }, op);
        }
    }

    /// What a reader sees. Empty when the object does not exist.
    ///
    /// A counter whose base is no number or an integer adds up as an integer and stops at the bounds of `i64`: the sum over all
    /// increments is taken first and bounded last, so it depends on no order. On a base with a fraction, or beyond `i64`, the
    /// sum is a double. A counter past 2^53 is shown exactly, but has no canonical text.
    #[must_use]
    pub fn fields(&self) -> Map<String, Value> {
        if !self.exists() {
            return Map::new();
        }
        self.fields.iter().filter_map(|(name, field)| Some((name.clone(), field.shown()?))).collect()
    }

    /// Whether something that implies existence is newer than the newest delete.
    ///
    /// ```
    /// # use client_sdk::object::{Existence, ObjectState, Op};
    /// # use sync_core::{ids::ChangeId, tree::{Height, OrderKey}};
    /// # let at = |height| OrderKey { height: Height(height), id: ChangeId::from_hash([0; 32]) };
    /// let mut state = ObjectState::new("note", "1");
    /// assert!(!state.exists());
    /// state.apply(at(1), &[Op::Inc { field: "seen".into(), by: 2 }]);
    /// state.apply(at(2), &[Op::Exists(Existence::Deleted)]);
    /// assert!(!state.exists());
    /// state.apply(at(3), &[Op::Inc { field: "seen".into(), by: 1 }]);
    /// assert!(state.exists());
    /// assert_eq!(state.fields()["seen"], 1);
    /// ```
    #[must_use]
    pub fn exists(&self) -> bool {
        self.present > self.deleted
    }

    /// The state as bytes for the local store, version 1: a protobuf message in which operations name their change by its place
    /// in one table.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        stored::encode(self)
    }

    /// A state out of bytes that [`encode`](Self::encode) made.
    ///
    /// # Errors
    ///
    /// Any other bytes are refused: those of an unknown version, and those that say the same in another way.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        stored::decode(bytes)
    }

    fn apply_op(&mut self, at: Stamp, op: &Op) {
        match op {
            Op::Set { field, value } => {
                let Ok(value) = Canonical::of(value) else { return };
                self.mark_present(at);
                self.apply_base(at, field, Base::Set(value));
            }
            Op::Unset { field } => self.apply_base(at, field, Base::Unset),
            Op::AddToSet { field, value } => {
                let Ok(element) = Canonical::of(value) else { return };
                self.mark_present(at);
                self.apply_element(at, field, element, Membership::Added);
            }
            Op::RemoveFromSet { field, value } => {
                let Ok(element) = Canonical::of(value) else { return };
                self.apply_element(at, field, element, Membership::Removed);
            }
            Op::Inc { field, by } => {
                self.mark_present(at);
                self.apply_increment(at, field, *by);
            }
            Op::Exists(Existence::Present) => self.mark_present(at),
            Op::Exists(Existence::Deleted) => self.apply_delete(at),
        }
    }

    fn mark_present(&mut self, at: Stamp) {
        self.present = self.present.max(Some(at));
    }

    fn apply_delete(&mut self, at: Stamp) {
        if self.deleted >= Some(at) {
            return;
        }
        self.deleted = Some(at);
        self.fields.retain(|_, field| {
            field.drop_through(at);
            *field != Field::default()
        });
    }

    fn apply_base(&mut self, at: Stamp, name: &str, base: Base) {
        let Some(field) = self.field_that_counts(at, name) else { return };
        field.put_base(at, base);
    }

    fn apply_increment(&mut self, at: Stamp, name: &str, by: i64) {
        let Some(field) = self.field_that_counts(at, name) else { return };
        field.increments.insert(at, by);
    }

    fn apply_element(&mut self, at: Stamp, name: &str, element: Canonical, membership: Membership) {
        let Some(field) = self.field_that_counts(at, name) else { return };
        let newest = field.elements.entry(element).or_insert((at, membership));
        if newest.0 < at {
            *newest = (at, membership);
        }
    }

    /// The field, for an operation that is newer than its base and than the newest delete. Both only ever grow, so what is
    /// older now can never count.
    fn field_that_counts(&mut self, at: Stamp, name: &str) -> Option<&mut Field> {
        let base = self.fields.get(name).and_then(Field::base_stamp);
        if base.max(self.deleted) >= Some(at) {
            return None;
        }
        Some(self.fields.entry(name.to_owned()).or_default())
    }
}

impl Field {
    fn base_stamp(&self) -> Option<Stamp> {
        self.base.as_ref().map(|(stamp, _)| *stamp)
    }

    /// A base that is newer than the one before.
    pub(super) fn put_base(&mut self, at: Stamp, base: Base) {
        self.drop_through(at);
        self.base = Some((at, base));
    }

    /// Drops what is not newer than this.
    pub(super) fn drop_through(&mut self, at: Stamp) {
        if self.base_stamp() <= Some(at) {
            self.base = None;
        }
        self.increments.retain(|stamp, _| *stamp > at);
        self.elements.retain(|_, (stamp, _)| *stamp > at);
    }

    fn shown(&self) -> Option<Value> {
        let counted = self.increments.keys().next_back();
        let changed = self.elements.values().map(|(stamp, _)| stamp).max();
        if counted.is_none() && changed.is_none() {
            return self.base_value();
        }
        Some(if counted > changed { self.counter() } else { self.set() })
    }

    fn base_value(&self) -> Option<Value> {
        match &self.base {
            Some((_, Base::Set(value))) => Some(value.value()),
            Some((_, Base::Unset)) | None => None,
        }
    }

    fn counter(&self) -> Value {
        // More increments than fit in memory could not overflow this.
        let sum: i128 = self.increments.values().copied().map(i128::from).sum();
        let base = self.base_value().filter(Value::is_number).unwrap_or_else(|| Value::from(0));
        match base.as_i64() {
            Some(base) => Value::from(saturate(i128::from(base) + sum)),
            None => add_to_double(base, sum),
        }
    }

    fn set(&self) -> Value {
        let base = self.base_value();
        let base = base.as_ref().and_then(Value::as_array).into_iter().flatten();
        let mut shown: BTreeSet<_> = base.filter_map(|element| Canonical::of(element).ok()).collect();
        for (element, (_, membership)) in &self.elements {
            match membership {
                Membership::Added => shown.insert(element.clone()),
                Membership::Removed => shown.remove(element),
            };
        }
        shown.iter().map(Canonical::value).collect()
    }
}

fn saturate(sum: i128) -> i64 {
    i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX })
}

/// The sum of a finite double and an `i128` is finite; should it ever have no text, the base stands.
fn add_to_double(base: Value, sum: i128) -> Value {
    let total = base.as_f64().and_then(|double| Number::from_f64(double + sum as f64));
    let total = total.and_then(|total| Canonical::of(&Value::Number(total)).ok());
    total.map_or(base, |total| total.value())
}

#[cfg(test)]
mod tests;
