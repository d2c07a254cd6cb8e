//! What a new member is meant to find: written and durable before the member is let in.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use sync_core::ids::{AccountId, TreeId};
use sync_core::record::TreeHeads;
use sync_store::{WriteId, WriteLine, WriteState};

use crate::error::{AclError, ReadError, WriteError};
use crate::object::{self, Existence, ObjectState, Op};
use crate::objects::Update;
use crate::space::{MakeOps, ObjectKey, SpaceInner, read_object};
use crate::types::SPACE_INFO;

/// What [`crate::Space::approve`] writes and promises before it lets somebody in.
///
/// Every object that is named here is on the node's disk before the acceptance is appended, the acceptance names its heads,
/// and the new member is not *ready* before it has them. The other order cannot be written down.
#[derive(Debug)]
pub struct Preparation {
    account: AccountId,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
struct Step {
    key: Result<ObjectKey, TreeId>,
    act: Act,
}

#[derive(Debug, Clone)]
enum Act {
    Put(Map<String, Value>),
    Update(Update),
    /// It is there already.
    Promise,
}

impl Preparation {
    pub(super) const fn new(account: AccountId) -> Self {
        Self { account, steps: Vec::new() }
    }

    /// The account that is let in.
    #[must_use]
    pub fn account(&self) -> AccountId {
        self.account
    }

    /// Writes fields of an object, as [`crate::Objects::put`] does, and promises the object.
    ///
    /// # Errors
    /// [`AclError::Write`] if these cannot be fields or names of an object.
    pub fn put(&mut self, object_type: &str, id: &str, fields: Value) -> Result<(), AclError> {
        let Value::Object(fields) = fields else { return Err(WriteError::NotAnObject.into()) };
        object::check_exact(&Value::Object(fields.clone())).map_err(WriteError::from)?;
        let key = ObjectKey::new(object_type, id)?;
        self.steps.push(Step { key: Ok(key), act: Act::Put(fields) });
        Ok(())
    }

    /// Applies operations to an object that exists, and promises the object.
    ///
    /// # Errors
    /// [`AclError::Write`] if the operations are not acceptable.
    pub fn update(&mut self, object_type: &str, id: &str, update: Update) -> Result<(), AclError> {
        object::check(update.ops()).map_err(WriteError::from)?;
        let key = ObjectKey::new(object_type, id)?;
        self.steps.push(Step { key: Ok(key), act: Act::Update(update) });
        Ok(())
    }

    /// Promises an object as it is.
    ///
    /// # Errors
    /// [`AclError::Write`] for a bad name.
    pub fn promise(&mut self, object_type: &str, id: &str) -> Result<(), AclError> {
        let key = ObjectKey::new(object_type, id)?;
        self.steps.push(Step { key: Ok(key), act: Act::Promise });
        Ok(())
    }

    /// Promises trees as they are: the application's own, or objects'.
    ///
    /// # Errors
    /// None; the same form as the others.
    pub fn promise_trees(&mut self, trees: &[TreeId]) -> Result<(), AclError> {
        self.steps.extend(trees.iter().map(|tree| Step { key: Err(*tree), act: Act::Promise }));
        Ok(())
    }
}

impl Preparation {
    /// What it writes is written: from here on it is promised as it is.
    pub(super) fn is_done(&mut self) {
        for step in &mut self.steps {
            step.act = Act::Promise;
        }
    }
}

/// Whether a new member reads what was written before it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    OfHistory,
    /// What it is meant to see is written once more, with the keys that it gets.
    FromNowOn,
}

impl SpaceInner {
    /// Whether what is promised can be shown at all: asked before anything is done for it. Who reads from now on is shown objects
    /// written anew, and the space's own among them; what only its app can write anew cannot be promised to them.
    pub(super) fn can_prepare(&self, preparation: &mut Preparation, reader: Reader) -> Result<(), AclError> {
        self.shared.store.read(|tx| {
            for step in &mut preparation.steps {
                let Err(tree) = step.key else { continue };
                if tx.tree(self.id, tree)?.is_none() && tx.pending_of_tree(self.id, tree)?.is_empty() {
                    return Err(AclError::NothingToPromise { tree });
                }
                if reader == Reader::OfHistory {
                    continue;
                }
                let pending = tx.pending_of_tree(self.id, tree)?;
                let object = read_object(tx, &self.shared, self.id, tree, &pending)?;
                let object = object.ok_or(AclError::CannotShow { tree })?;
                step.key = Ok(ObjectKey::new(&object.object_type, &object.id)?);
            }
            Ok(())
        })?;
        let info = ObjectKey::new(SPACE_INFO, "self")?;
        let is_named = |step: &Step| step.key.as_ref() == Ok(&info);
        if reader == Reader::FromNowOn && !preparation.steps.iter().any(is_named) && self.has_object(&info)? {
            preparation.steps.push(Step { key: Ok(info), act: Act::Promise });
        }
        Ok(())
    }

    fn has_object(&self, key: &ObjectKey) -> Result<bool, ReadError> {
        let tree = self.object_tree(key)?;
        self.shared.store.read(|tx| {
            let pending = tx.pending_of_tree(self.id, tree)?;
            Ok(read_object(tx, &self.shared, self.id, tree, &pending)?.is_some())
        })
    }

    /// Makes the writes of a preparation durable at the node; returns the trees that it promises.
    pub(super) async fn prepare(
        self: &std::sync::Arc<Self>,
        preparation: &Preparation,
        reader: Reader,
    ) -> Result<Vec<TreeId>, AclError> {
        let mut promised = BTreeSet::new();
        let mut writes: Vec<(ObjectKey, Box<MakeOps>)> = Vec::new();
        for step in &preparation.steps {
            match &step.key {
                Ok(key) => {
                    promised.insert(self.object_tree(key)?);
                    writes.push((key.clone(), make(key.clone(), step.act.clone(), reader)));
                    if let (Act::Update(_), Reader::FromNowOn) = (&step.act, reader) {
                        writes.push((key.clone(), make(key.clone(), Act::Promise, reader)));
                    }
                }
                Err(tree) => drop(promised.insert(*tree)),
            }
        }
        let made = if writes.is_empty() { Vec::new() } else { self.write_objects(writes).await? };
        let made: BTreeSet<WriteId> = made.into_iter().flatten().chain(self.pending_writes(&promised)?).collect();
        for write in made {
            self.durable_within(write).await.map_err(|e| AclError::NotDurable(Box::new(e)))?;
        }
        Ok(promised.into_iter().collect())
    }

    /// Writes what the space says of itself once more, for those who read from now on; nothing where it has no name yet. It
    /// follows an act that stands, so it must not make that look undone: a failure is only logged.
    pub(super) async fn show_space_info(self: &std::sync::Arc<Self>) {
        let shown = async {
            let key = ObjectKey::new(SPACE_INFO, "self")?;
            let write = make(key.clone(), Act::Promise, Reader::FromNowOn);
            self.write_object(key, write).await
        };
        match shown.await {
            Ok(_) | Err(WriteError::NoSuchObject { .. }) => {}
            Err(error) => {
                let space = self.id.short();
                tracing::warn!(%space, %error, "the space's name could not be shown to newcomers");
            }
        }
    }

    /// Own writes to these trees that are not known to be on the node's disk.
    fn pending_writes(&self, trees: &BTreeSet<TreeId>) -> Result<Vec<WriteId>, ReadError> {
        self.shared.store.read(|tx| {
            let mut pending = Vec::new();
            for tree in trees {
                let open = tx.writes_of_tree(self.id, *tree)?.into_iter();
                let on_its_way =
                    |w: &WriteLine| matches!(w.state, WriteState::Pending { .. } | WriteState::Logged { .. });
                pending.extend(open.filter(on_its_way).map(|w| w.id));
            }
            pending.sort_unstable();
            Ok(pending)
        })
    }

    /// Heads of the promised trees, as logged.
    pub(super) fn frontier(&self, promised: &[TreeId]) -> Result<Vec<TreeHeads>, AclError> {
        self.shared.store.read(|tx| {
            let mut frontier = Vec::with_capacity(promised.len());
            for tree in promised {
                let state = tx.tree(self.id, *tree)?.ok_or(AclError::NothingToPromise { tree: *tree })?;
                frontier.push(TreeHeads { tree: *tree, heads: state.heads.into_iter().collect() });
            }
            Ok(frontier)
        })
    }
}

fn make(key: ObjectKey, act: Act, reader: Reader) -> Box<MakeOps> {
    Box::new(move |state: Option<&ObjectState>| ops(state, act, reader, &key))
}

fn ops(state: Option<&ObjectState>, act: Act, reader: Reader, key: &ObjectKey) -> Result<Vec<Op>, WriteError> {
    let exists = state.is_some_and(ObjectState::exists);
    let mut fields = state.map(ObjectState::fields).unwrap_or_default();
    let mut ops = match (act, reader) {
        (Act::Update(_) | Act::Promise, _) if !exists => {
            return Err(WriteError::NoSuchObject { object_type: key.object_type.clone(), id: key.id.clone() });
        }
        (Act::Update(update), _) => return Ok(update.into_ops()),
        (Act::Promise, Reader::OfHistory) => return Ok(Vec::new()),
        (Act::Put(wanted), Reader::OfHistory) => object::diff(&fields, &wanted),
        (act @ (Act::Put(_) | Act::Promise), Reader::FromNowOn) => {
            if let Act::Put(wanted) = act {
                fields.extend(wanted);
            }
            fields.into_iter().map(|(field, value)| Op::Set { field, value }).collect()
        }
    };
    if !exists || reader == Reader::FromNowOn {
        ops.push(Op::Exists(Existence::Present));
    }
    object::check(&ops)?;
    Ok(ops)
}
