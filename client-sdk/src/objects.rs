//! Typed JSON objects over trees. Everybody who writes the same (type, id) writes the same tree.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use serde_json::{Map, Value};
use sync_core::ids::TreeId;
use sync_store::{ObjectRow, WriteId};

use crate::error::{ReadError, WriteError};
use crate::events::{Event, Events};
use crate::object::{self, Existence, ObjectState, Op};
use crate::space::{ObjectKey, SpaceInner, Tree, open_row, read_object, type_tag};

const LIST_PAGE: usize = 512;

/// An object as a reader sees it: what is logged, with this client's own pending writes over it.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub object_type: String,
    pub id: String,
    pub tree: TreeId,
    pub fields: Map<String, Value>,
    /// Own writes that are not in the log yet.
    pub pending: usize,
}

/// The objects of one space. Reads never touch the network.
#[derive(Clone)]
pub struct Objects {
    space: Arc<SpaceInner>,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Objects").field(&self.space.id).finish()
    }
}

/// Operations on one object, applied together.
///
/// ```
/// use client_sdk::Update;
/// let update = Update::new().set("title", "Milk").increment("bought", 1).add("tags", "shop").unset("note");
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Update {
    ops: Vec<Op>,
}

impl Update {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a field.
    #[must_use]
    pub fn set(self, field: impl Into<String>, value: impl Into<Value>) -> Self {
        self.with(Op::Set { field: field.into(), value: value.into() })
    }

    /// Removes a field.
    #[must_use]
    pub fn unset(self, field: impl Into<String>) -> Self {
        self.with(Op::Unset { field: field.into() })
    }

    /// Adds to a counter; concurrent increments add up.
    #[must_use]
    pub fn increment(self, field: impl Into<String>, by: i64) -> Self {
        self.with(Op::Inc { field: field.into(), by })
    }

    /// Adds an element to a set; concurrent additions are all kept.
    #[must_use]
    pub fn add(self, field: impl Into<String>, element: impl Into<Value>) -> Self {
        self.with(Op::AddToSet { field: field.into(), value: element.into() })
    }

    /// Removes an element from a set.
    #[must_use]
    pub fn remove(self, field: impl Into<String>, element: impl Into<Value>) -> Self {
        self.with(Op::RemoveFromSet { field: field.into(), value: element.into() })
    }

    pub(crate) fn ops(&self) -> &[Op] {
        &self.ops
    }

    pub(crate) fn into_ops(self) -> Vec<Op> {
        self.ops
    }

    fn with(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }
}

/// An object to write, for [`Objects::put_many`].
#[derive(Debug, Clone, PartialEq)]
pub struct NewObject {
    pub object_type: String,
    pub id: String,
    pub fields: Map<String, Value>,
}

impl Objects {
    pub(crate) const fn new(space: Arc<SpaceInner>) -> Self {
        Self { space }
    }

    /// Writes the named fields of an object, making it if it does not exist. Fields that are not named stay as they are.
    /// Returns once the write survives a killed process; `None` if the object says all of it already.
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// let items = space.objects();
    /// items.put("item", "milk", serde_json::json!({ "title": "Milk", "done": false })).await?;
    /// // A field that is not named stays as it is.
    /// items.put("item", "milk", serde_json::json!({ "done": true })).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`WriteError`]; nothing is written then.
    pub async fn put(&self, object_type: &str, id: &str, fields: Value) -> Result<Option<WriteId>, WriteError> {
        let Value::Object(fields) = fields else { return Err(WriteError::NotAnObject) };
        let (key, make) = put(object_type, id, fields)?;
        self.space.write_object(key, make).await
    }

    /// [`Objects::put`], if `still` says so of the object as it is in the transaction that writes; otherwise nothing.
    pub(crate) async fn put_if(
        &self,
        object_type: &str,
        id: &str,
        fields: Map<String, Value>,
        still: impl FnOnce(Option<&Map<String, Value>>) -> bool + Send + 'static,
    ) -> Result<Option<WriteId>, WriteError> {
        let (key, make) = put(object_type, id, fields)?;
        let make = move |state: Option<&ObjectState>| {
            let there = state.filter(|s| s.exists()).map(ObjectState::fields);
            if still(there.as_ref()) { make(state) } else { Ok(Vec::new()) }
        };
        self.space.write_object(key, Box::new(make)).await
    }

    /// Writes many objects in one transaction: all or none. One result for each, as of [`Objects::put`].
    ///
    /// # Errors
    /// [`WriteError`]; nothing is written then.
    pub async fn put_many(&self, objects: Vec<NewObject>) -> Result<Vec<Option<WriteId>>, WriteError> {
        let writes = objects.into_iter().map(|o| put(&o.object_type, &o.id, o.fields));
        self.space.write_objects(writes.collect::<Result<_, _>>()?).await
    }

    /// Applies operations to an object that exists.
    ///
    /// # Errors
    /// [`WriteError::NoSuchObject`], or as [`Objects::put`].
    pub async fn update(&self, object_type: &str, id: &str, update: Update) -> Result<Option<WriteId>, WriteError> {
        let key = ObjectKey::new(object_type, id)?;
        object::check(&update.ops)?;
        let missing = no_such(&key);
        let make = move |state: Option<&ObjectState>| {
            if state.is_some_and(ObjectState::exists) { Ok(update.ops) } else { Err(missing) }
        };
        self.space.write_object(key, Box::new(make)).await
    }

    /// Deletes an object. A later put makes it anew.
    ///
    /// # Errors
    /// [`WriteError::NoSuchObject`], or as [`Objects::put`].
    pub async fn delete(&self, object_type: &str, id: &str) -> Result<Option<WriteId>, WriteError> {
        self.update(object_type, id, Update { ops: vec![Op::Exists(Existence::Deleted)] }).await
    }

    /// Purges an object: its content is dropped here, at the node and at every member, for good, and nobody can write it
    /// again. See [`crate::Space::purge_tree`].
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// let write = space.objects().purge("photo", "passport").await?;
    /// space.await_durable(write).await?;
    /// // The node has dropped it; the members drop it as they read the tombstone.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn purge(&self, object_type: &str, id: &str) -> Result<WriteId, WriteError> {
        let key = ObjectKey::new(object_type, id)?;
        let tree = self.space.object_tree(&key)?;
        self.space.purge(tree, Some(key)).await
    }

    /// An object; `None` if it does not exist here.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn get(&self, object_type: &str, id: &str) -> Result<Option<Object>, ReadError> {
        match self.tree(object_type, id)? {
            Some(tree) => Ok(tree.snapshot()?.object.clone()),
            None => Ok(None),
        }
    }

    /// The live tree of an object, if the log or the outbox has it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn tree(&self, object_type: &str, id: &str) -> Result<Option<Tree>, ReadError> {
        self.space.live_tree(self.tree_id(object_type, id)?)
    }

    /// The tree that an object is, whether it exists yet or not: what an invite can name before it is written.
    ///
    /// # Errors
    /// [`ReadError::NoKeys`] while the keys of the space are not here.
    pub fn tree_id(&self, object_type: &str, id: &str) -> Result<TreeId, ReadError> {
        let key = ObjectKey { object_type: object_type.to_owned(), id: id.to_owned() };
        self.space.object_tree(&key)
    }

    /// Every object of a type, by id.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn list(&self, object_type: &str) -> Result<Vec<Object>, ReadError> {
        self.collect(Some(object_type))
    }

    /// Every object of the space, by type and id.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn list_all(&self) -> Result<Vec<Object>, ReadError> {
        self.collect(None)
    }

    /// Objects of a type (of all, without one) in the order of their trees, which no change moves: those after `after`, at most
    /// `max`. Reads no more than it gives.
    ///
    /// ```no_run
    /// # fn doc(space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut after = None;
    /// loop {
    ///     let page = space.objects().page(Some("item"), after, 100)?;
    ///     let Some(last) = page.last() else { break };
    ///     after = Some(last.tree);
    ///     page.iter().for_each(|item| println!("{}", item.id));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn page(&self, object_type: Option<&str>, after: Option<TreeId>, max: usize) -> Result<Vec<Object>, ReadError> {
        let mut page = Vec::new();
        if max == 0 {
            return Ok(page);
        }
        self.each(object_type, after, |object| {
            page.push(object);
            if page.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(page)
    }

    fn collect(&self, object_type: Option<&str>) -> Result<Vec<Object>, ReadError> {
        let mut objects = Vec::new();
        self.each(object_type, None, |object| {
            objects.push(object);
            ControlFlow::Continue(())
        })?;
        self.space.follow_list(object_type, &objects);
        objects.sort_by(|a, b| (&a.object_type, &a.id).cmp(&(&b.object_type, &b.id)));
        Ok(objects)
    }

    /// Visits objects by tree until `visit` breaks. What only waits in the outbox, or was read ahead of the tail, has its place
    /// among what is logged.
    pub(crate) fn each(
        &self,
        object_type: Option<&str>,
        after: Option<TreeId>,
        mut visit: impl FnMut(Object) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let (shared, space) = (&self.space.shared, self.space.id);
        let tag = object_type.map(|object_type| type_tag(shared, space, object_type));
        shared.store.read(|tx| -> Result<(), ReadError> {
            let mut overlaid = tx.pending_trees(space)?;
            overlaid.extend(tx.ahead_trees(space)?);
            let mut at = after;
            loop {
                let rows = match tag {
                    Some(tag) => tx.objects(space, tag, at, LIST_PAGE)?,
                    None => tx.all_objects(space, at, LIST_PAGE)?,
                };
                // Beyond the last row of a page that is full there may be others.
                let end = rows.last().map(|row| row.tree).filter(|_| rows.len() == LIST_PAGE);
                let within =
                    (at.map_or(Bound::Unbounded, Bound::Excluded), end.map_or(Bound::Unbounded, Bound::Included));
                let mut logged: BTreeMap<TreeId, ObjectRow> = rows.into_iter().map(|row| (row.tree, row)).collect();
                let places: BTreeSet<TreeId> = logged.keys().chain(overlaid.range(within)).copied().collect();
                for tree in places {
                    let object = match logged.remove(&tree).filter(|_| !overlaid.contains(&tree)) {
                        Some(row) => logged_object(tree, &open_row(shared, &row)?),
                        None => read_object(tx, shared, space, tree, &tx.pending_of_tree(space, tree)?)?,
                    };
                    let wanted = object.filter(|o| object_type.is_none_or(|wanted| o.object_type == wanted));
                    if wanted.is_some_and(|object| visit(object).is_break()) {
                        return Ok(());
                    }
                }
                let Some(end) = end else { return Ok(()) };
                at = Some(end);
            }
        })
    }

    /// The changes of objects of one type from now on, one event a change. A reader that is too slow is told so by
    /// [`Event::Lagged`] and lists again.
    #[must_use]
    pub fn watch(&self, object_type: impl Into<String>) -> ObjectWatch {
        ObjectWatch { events: self.space.feed(), object_type: object_type.into(), objects: self.clone() }
    }
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq)]
pub enum ObjectChange {
    /// The object as it is now; several changes may have been folded into one.
    Changed(Object),
    Deleted {
        object_type: String,
        id: String,
    },
    /// Changes were missed: list again.
    Lagged {
        missed: u64,
    },
}

/// A feed of changes to objects of one type.
#[derive(Debug)]
pub struct ObjectWatch {
    events: Events,
    object_type: String,
    objects: Objects,
}

impl ObjectWatch {
    /// The next change; `None` after the client was closed.
    ///
    /// # Errors
    /// [`ReadError`] if the changed object cannot be read.
    pub async fn next(&mut self) -> Result<Option<ObjectChange>, ReadError> {
        loop {
            match self.events.next().await {
                None => return Ok(None),
                Some(Event::Lagged { missed }) => return Ok(Some(ObjectChange::Lagged { missed })),
                Some(Event::Object { object_type, id, .. }) if object_type == self.object_type => {
                    let change = match self.objects.get(&object_type, &id)? {
                        Some(object) => ObjectChange::Changed(object),
                        None => ObjectChange::Deleted { object_type, id },
                    };
                    return Ok(Some(change));
                }
                Some(_) => {}
            }
        }
    }
}

fn logged_object(tree: TreeId, state: &ObjectState) -> Option<Object> {
    state.exists().then(|| Object {
        object_type: state.object_type().to_owned(),
        id: state.object_id().to_owned(),
        tree,
        fields: state.fields(),
        pending: 0,
    })
}

fn no_such(key: &ObjectKey) -> WriteError {
    WriteError::NoSuchObject { object_type: key.object_type.clone(), id: key.id.clone() }
}

type Make = Box<dyn FnOnce(Option<&ObjectState>) -> Result<Vec<Op>, WriteError> + Send>;

fn put(object_type: &str, id: &str, fields: Map<String, Value>) -> Result<(ObjectKey, Make), WriteError> {
    let key = ObjectKey::new(object_type, id)?;
    object::check_exact(&Value::Object(fields.clone()))?;
    let make = move |state: Option<&ObjectState>| {
        let exists = state.is_some_and(ObjectState::exists);
        let current = state.map(ObjectState::fields).unwrap_or_default();
        let mut ops = object::diff(&current, &fields);
        if !exists {
            ops.push(Op::Exists(Existence::Present));
        }
        object::check(&ops)?;
        Ok(ops)
    };
    Ok((key, Box::new(make)))
}
