//! From logged changes to readable objects: decrypt, check the name, fold.
//!
//! The projection holds logged changes only and is written in the transaction that logs them, so "stored" and "readable"
//! cannot drift apart. What cannot be shown gets a verdict, which is the same on every replica that holds the same keys.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sync_core::ids::{ChangeId, Seq, SpaceId, TreeId};
use sync_core::record::{TreeChange, TreeName, TreeRoot, Verified, verify_as};
use sync_core::syncer::Priority;
use sync_core::tree::{Height, OrderKey};
use sync_e2ee::{ContentContext, Envelope, KeyRing, decrypt, name_tag};
use sync_store::{ObjectRow, ReadTx, SyncItemKind, VerdictKind, VerdictRow, WriteTx};

use super::contained;
use super::syncer::wanted;
use crate::client::Shared;
use crate::error::ReadError;
use crate::object::{self, ObjectState, Op};

/// What a change turned out to be.
pub(crate) enum Content {
    /// Operations on the object that the tree is.
    Ops { object_type: String, object_id: String, ops: Vec<Op> },
    /// Something that is not ours to fold: another data type, or a tree without a name.
    Foreign,
    /// Not shown, with the reason.
    Settled { kind: VerdictKind, detail: Cow<'static, str> },
}

/// Opens a logged change with the keys at hand. The rules of an application's types run in here.
pub(crate) fn open(
    shared: &Shared,
    ring: &KeyRing,
    root: &TreeRoot,
    change: &TreeChange,
    payload: Option<&Bytes>,
) -> Content {
    let opened = contained(|| open_uncontained(shared, ring, root, change, payload));
    opened.unwrap_or_else(|message| Content::Settled { kind: VerdictKind::Broken, detail: panicked(&message).into() })
}

fn panicked(message: &str) -> String {
    format!("this program panicked over it: {message}")
}

fn open_uncontained(
    shared: &Shared,
    ring: &KeyRing,
    root: &TreeRoot,
    change: &TreeChange,
    payload: Option<&Bytes>,
) -> Content {
    let settled = |kind, detail: &'static str| Content::Settled { kind, detail: detail.into() };
    let Some(payload) = payload else {
        return settled(VerdictKind::Missing, "the node sent the change without its content");
    };
    let Some(keys) = ring.keys(change.epoch) else {
        return settled(VerdictKind::Hidden, "of an epoch whose keys this member does not hold");
    };
    let context = context_of(root.space, change);
    let Ok(envelope) = decrypt(keys, &context, &change.nonce, payload) else {
        return settled(VerdictKind::Void, "its author encrypted it wrongly");
    };
    read(shared, ring, root, envelope)
}

pub(super) fn context_of(space: SpaceId, change: &TreeChange) -> ContentContext {
    ContentContext { space, tree: change.tree, epoch: change.epoch, author: change.author, kind: change.kind }
}

fn read(shared: &Shared, ring: &KeyRing, root: &TreeRoot, envelope: Envelope) -> Content {
    let settled = |kind, detail: &'static str| Content::Settled { kind, detail: detail.into() };
    let TreeName::Tag(tag) = root.name else { return Content::Foreign };
    let (object_type, object_id) = (envelope.object_type, envelope.object_id);
    if ring.name_key().is_none_or(|key| name_tag(key, &object_type, &object_id) != tag) {
        return settled(VerdictKind::Void, "its author named another object than the tree's");
    }
    if shared.types.rule(&object_type, &object_id) != root.write_rule {
        return settled(VerdictKind::Misplaced, "the tree has another write rule than this type of object");
    }
    if envelope.data_type != object::DATA_TYPE {
        return Content::Foreign;
    }
    match object::decode(&envelope.payload) {
        Ok(ops) => Content::Ops { object_type, object_id, ops },
        Err(_) => settled(VerdictKind::Void, "its author wrote operations that nobody can read"),
    }
}

/// The objects that one batch changes, written back once.
#[derive(Default)]
pub(super) struct Projection {
    states: BTreeMap<TreeId, (ObjectState, Seq)>,
    wants_content: bool,
}

impl Projection {
    /// Folds one logged change in, or writes its verdict.
    pub(super) fn fold(
        &mut self,
        tx: &mut WriteTx<'_>,
        shared: &Shared,
        ring: &KeyRing,
        change: &Verified<TreeChange>,
        place: (Seq, Height),
        opened: (SpaceId, Content),
    ) -> Result<(), ReadError> {
        let ((seq, height), (space, content)) = (place, opened);
        let tree = change.body().tree;
        match content {
            Content::Foreign => Ok(()),
            Content::Settled { kind, detail } => {
                if kind == VerdictKind::Missing {
                    // Asked for again, for as long as it takes.
                    self.wants_content = true;
                    let item = wanted(tree, SyncItemKind::Content, Priority::Gap, shared.host.wall_ms());
                    tx.want_sync_item(space, &item)?;
                }
                let row = VerdictRow { kind, detail: detail.into_owned(), seq };
                Ok(tx.put_verdict(space, tree, change.id().into(), &row)?)
            }
            Content::Ops { object_type, object_id, ops } => {
                let key = OrderKey { height, id: change.id().into() };
                let state = match self.states.remove(&tree) {
                    Some((state, _)) => Some(state),
                    None => stored_state(tx, shared, space, tree)?,
                };
                let mut state = state.unwrap_or_else(|| ObjectState::new(&object_type, &object_id));
                match contained(|| state.apply(key, &ops)) {
                    Ok(()) => drop(self.states.insert(tree, (state, seq))),
                    // What is left of the state is not to be trusted.
                    Err(_) => self.fold_again(tx, shared, ring, (space, tree))?,
                }
                Ok(())
            }
        }
    }

    /// True if a change came without its content.
    pub(super) fn wants_content(&self) -> bool {
        self.wants_content
    }

    /// Folds a tree from its beginning, and leaves out the changes that cannot be folded without a panic.
    fn fold_again(
        &mut self,
        tx: &mut WriteTx<'_>,
        shared: &Shared,
        ring: &KeyRing,
        (space, tree): (SpaceId, TreeId),
    ) -> Result<(), ReadError> {
        let Some(root) = tx.tree(space, tree)?.map(|state| state.root) else { return Ok(()) };
        let mut folded: Option<ObjectState> = None;
        let mut last = Seq::ZERO;
        for row in tx.tree_changes(space, tree)? {
            let Ok(change) = verify_as::<TreeChange>(row.record) else { continue };
            let content = open(shared, ring, &root, change.body(), change.raw().payload.as_ref());
            let Content::Ops { object_type, object_id, ops } = content else { continue };
            let key = OrderKey { height: row.height.unwrap_or_default(), id: change.id().into() };
            let before = folded.clone().unwrap_or_else(|| ObjectState::new(&object_type, &object_id));
            let applied = contained(move || {
                let mut state = before;
                state.apply(key, &ops);
                state
            });
            last = last.max(row.position.seq);
            match applied {
                Ok(state) => folded = Some(state),
                Err(message) => {
                    let row =
                        VerdictRow { kind: VerdictKind::Broken, detail: panicked(&message), seq: row.position.seq };
                    tx.put_verdict(space, tree, change.id().into(), &row)?;
                }
            }
        }
        match folded {
            Some(state) => drop(self.states.insert(tree, (state, last))),
            None => tx.delete_object(space, tree)?,
        }
        Ok(())
    }

    /// Folds in what was hidden for want of keys that `ring` holds now; the trees it is of.
    pub(super) fn reveal(
        &mut self,
        tx: &mut WriteTx<'_>,
        shared: &Shared,
        space: SpaceId,
        ring: &KeyRing,
    ) -> Result<BTreeSet<TreeId>, ReadError> {
        let mut revealed = BTreeSet::new();
        let hidden = tx.verdicts(space)?.into_iter().filter(|(_, _, v)| v.kind == VerdictKind::Hidden);
        for (tree, change, _) in hidden.collect::<Vec<_>>() {
            let (Some(state), Some(row)) = (tx.tree(space, tree)?, tx.change(space, tree, change)?) else { continue };
            let Ok(change) = verify_as::<TreeChange>(row.record) else { continue };
            if ring.keys(change.body().epoch).is_none() {
                continue;
            }
            tx.delete_verdict(space, tree, change.id().into())?;
            if state.purged.is_some() {
                continue;
            }
            let content = open(shared, ring, &state.root, change.body(), change.raw().payload.as_ref());
            let place = (row.position.seq, row.height.unwrap_or_default());
            self.fold(tx, shared, ring, &change, place, (space, content))?;
            revealed.insert(tree);
        }
        Ok(revealed)
    }

    /// Drops what a purge ended.
    pub(super) fn purge(&mut self, tx: &mut WriteTx<'_>, space: SpaceId, tree: TreeId) -> Result<(), ReadError> {
        self.states.remove(&tree);
        Ok(tx.delete_object(space, tree)?)
    }

    /// Drops everything: the space was deleted.
    pub(super) fn end_space(&mut self, tx: &mut WriteTx<'_>, space: SpaceId) -> Result<(), ReadError> {
        self.states.clear();
        for tag in tx.object_types(space)? {
            loop {
                let rows = tx.objects(space, tag, None, OBJECTS_PAGE)?;
                for row in &rows {
                    tx.delete_object(space, row.tree)?;
                }
                if rows.len() < OBJECTS_PAGE {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes the changed objects and the watermark.
    pub(super) fn flush(
        self,
        tx: &mut WriteTx<'_>,
        shared: &Shared,
        space: SpaceId,
        to: Seq,
    ) -> Result<Vec<ObjectTouched>, ReadError> {
        let mut touched = Vec::with_capacity(self.states.len());
        for (tree, (state, at)) in self.states {
            let sealed = shared.local.seal_row(tree.as_bytes(), &state.encode(), &mut shared.host.rng());
            let type_tag = type_tag(shared, space, state.object_type());
            tx.put_object(space, &ObjectRow { tree, type_tag, state: sealed, at })?;
            touched.push(ObjectTouched {
                tree,
                object_type: state.object_type().to_owned(),
                id: state.object_id().to_owned(),
            });
        }
        tx.set_projected(space, to)?;
        Ok(touched)
    }
}

/// Folds the trees again that were misplaced under the types declared then and are not under those declared now, and those that
/// an earlier run of this program panicked over.
pub(super) fn place_misplaced(
    tx: &mut WriteTx<'_>,
    shared: &Shared,
    space: SpaceId,
    ring: &KeyRing,
) -> Result<Vec<ObjectTouched>, ReadError> {
    let again = |kind| matches!(kind, VerdictKind::Misplaced | VerdictKind::Broken);
    let misplaced = tx.verdicts(space)?.into_iter().filter(|(_, _, v)| again(v.kind));
    let by_tree: BTreeMap<TreeId, Vec<ChangeId>> = misplaced.fold(BTreeMap::new(), |mut all, (tree, change, _)| {
        all.entry(tree).or_default().push(change);
        all
    });
    let mut placed = Vec::new();
    for (tree, changes) in by_tree {
        let Some(state) = tx.tree(space, tree)?.filter(|t| t.purged.is_none()) else { continue };
        let mut projection = Projection::default();
        tx.delete_object(space, tree)?;
        for change in changes {
            tx.delete_verdict(space, tree, change)?;
        }
        for row in tx.tree_changes(space, tree)? {
            let Ok(change) = verify_as::<TreeChange>(row.record) else { continue };
            let content = open(shared, ring, &state.root, change.body(), change.raw().payload.as_ref());
            let place = (row.position.seq, row.height.unwrap_or_default());
            projection.fold(tx, shared, ring, &change, place, (space, content))?;
        }
        let to = tx.projected_to(space)?;
        placed.extend(projection.flush(tx, shared, space, to)?);
    }
    Ok(placed)
}

/// Folds trees again from their logged changes, after a rewind took out what was derived from them.
pub(super) fn derive_again(
    tx: &mut WriteTx<'_>,
    shared: &Shared,
    space: SpaceId,
    ring: &KeyRing,
    trees: &[TreeId],
) -> Result<Vec<ObjectTouched>, ReadError> {
    let mut projection = Projection::default();
    for tree in trees {
        let Some(state) = tx.tree(space, *tree)?.filter(|t| t.purged.is_none()) else { continue };
        tx.delete_object(space, *tree)?;
        for row in tx.tree_changes(space, *tree)? {
            let Ok(change) = verify_as::<TreeChange>(row.record) else { continue };
            tx.delete_verdict(space, *tree, change.id().into())?;
            let content = open(shared, ring, &state.root, change.body(), change.raw().payload.as_ref());
            let place = (row.position.seq, row.height.unwrap_or_default());
            projection.fold(tx, shared, ring, &change, place, (space, content))?;
        }
    }
    let to = tx.projected_to(space)?;
    projection.flush(tx, shared, space, to)
}

/// The plaintext of a change, if it opens.
pub(super) fn envelope_of(
    ring: &KeyRing,
    space: SpaceId,
    change: &TreeChange,
    payload: Option<&Bytes>,
) -> Option<Envelope> {
    decrypt(ring.keys(change.epoch)?, &context_of(space, change), &change.nonce, payload?).ok()
}

/// Objects deleted at a time when a space ends.
const OBJECTS_PAGE: usize = 512;

/// An object whose logged state moved.
pub(super) struct ObjectTouched {
    pub(super) tree: TreeId,
    pub(super) object_type: String,
    pub(super) id: String,
}

/// The lookup key of a type: the store never sees its name.
pub(crate) fn type_tag(shared: &Shared, space: SpaceId, object_type: &str) -> [u8; 16] {
    shared.local.tag("object-type", &[space.as_bytes(), object_type.as_bytes()].concat())
}

/// The logged state of an object.
pub(crate) fn stored_state(
    tx: &ReadTx<'_>,
    shared: &Shared,
    space: SpaceId,
    tree: TreeId,
) -> Result<Option<ObjectState>, ReadError> {
    let Some(row) = tx.object(space, tree)? else { return Ok(None) };
    Ok(Some(open_row(shared, &row)?))
}

pub(crate) fn open_row(shared: &Shared, row: &ObjectRow) -> Result<ObjectState, ReadError> {
    Ok(ObjectState::decode(&shared.local.open_row(row.tree.as_bytes(), &row.state)?)?)
}
