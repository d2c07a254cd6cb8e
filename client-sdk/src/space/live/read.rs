//! What a tree shows, read from the store: the logged state, with our own pending writes over it.

use std::collections::BTreeSet;

use sync_core::ids::{ChangeId, SpaceId, TreeId};
use sync_core::record::{TreeChange, verify_as};
use sync_core::tree::{Height, OrderKey, heads_after};
use sync_store::{PendingWrite, ReadTx};

use super::TreeSnapshot;
use crate::client::Shared;
use crate::error::ReadError;
use crate::object::{self, ObjectState};
use crate::objects::Object;
use crate::space::ahead::with_ahead;
use crate::space::project::stored_state;
use crate::space::write::{is_purge, local_envelope};

pub(super) fn exists(tx: &ReadTx<'_>, space: SpaceId, tree: TreeId) -> Result<bool, ReadError> {
    let here = tx.tree(space, tree)?.is_some() || !tx.pending_of_tree(space, tree)?.is_empty();
    Ok(here || !tx.ahead_of_tree(space, tree)?.is_empty())
}

pub(super) fn read_snapshot(
    tx: &ReadTx<'_>,
    shared: &Shared,
    space: SpaceId,
    tree: TreeId,
) -> Result<TreeSnapshot, ReadError> {
    let logged = tx.tree(space, tree)?;
    let pending = tx.pending_of_tree(space, tree)?;
    let purged = logged.as_ref().is_some_and(|t| t.purged.is_some()) || pending.iter().any(is_purge);
    let heads = overlaid_heads(logged.map(|t| t.heads).unwrap_or_default(), &pending);
    let object = if purged { None } else { read_object(tx, shared, space, tree, &pending)? };
    Ok(TreeSnapshot { tree, heads, pending: pending.len(), purged, object })
}

/// The heads with our pending changes on top.
pub(in crate::space) fn overlaid_heads(mut heads: BTreeSet<ChangeId>, pending: &[PendingWrite]) -> BTreeSet<ChangeId> {
    for write in pending {
        if let Ok(change) = verify_as::<TreeChange>(write.record.clone()) {
            heads = heads_after(&heads, change.id().into(), &change.body().parents);
        }
    }
    heads
}

/// An object as a reader sees it: the logged state with our pending operations over it. `None` if it does not exist.
pub(crate) fn read_object(
    tx: &ReadTx<'_>,
    shared: &Shared,
    space: SpaceId,
    tree: TreeId,
    pending: &[PendingWrite],
) -> Result<Option<Object>, ReadError> {
    let logged = with_ahead(tx, shared, space, tree, stored_state(tx, shared, space, tree)?)?;
    let state = overlaid_state(logged, shared, pending)?;
    Ok(state.filter(ObjectState::exists).map(|state| Object {
        object_type: state.object_type().to_owned(),
        id: state.object_id().to_owned(),
        tree,
        fields: state.fields(),
        pending: pending.len(),
    }))
}

/// A pending change stands above everything logged, in the order in which it was written.
pub(in crate::space) fn overlaid_state(
    logged: Option<ObjectState>,
    shared: &Shared,
    pending: &[PendingWrite],
) -> Result<Option<ObjectState>, ReadError> {
    let mut state = logged;
    for (index, write) in pending.iter().enumerate() {
        if is_purge(write) {
            return Ok(None);
        }
        let envelope = local_envelope(shared, write)?;
        if envelope.data_type != object::DATA_TYPE {
            continue;
        }
        let Ok(ops) = object::decode(&envelope.payload) else { continue };
        let state = state.get_or_insert_with(|| ObjectState::new(&envelope.object_type, &envelope.object_id));
        let height = Height(u64::MAX / 2 + index as u64);
        state.apply(OrderKey { height, id: write.record.id().into() }, &ops);
    }
    Ok(state)
}
