//! Fetch: named trees, parents first, without what the caller has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use sync_core::ids::{ChangeId, EntryId, SpaceId, TreeId};
use sync_core::log::EntryKind;
use sync_core::record::TreeHeads;
use sync_core::{limits, pb};
use sync_proto::id;
use sync_proto::v1::{FetchRequest, FetchResponse, FetchedEntry};
use sync_store::LogRow;

use super::{Answers, State};
use crate::failure::CallError;
use crate::gate::withhold_damage;
use crate::session::Session;

pub(super) async fn fetch(
    state: Arc<State>,
    session: Session,
    request: FetchRequest,
    answers: Answers<FetchResponse>,
) -> Result<(), CallError> {
    request.check()?;
    let space: SpaceId = id(&request.space)?;
    let mut chunk = Chunk::default();
    for tree in request.trees {
        let wanted = TreeHeads::try_from(tree)?;
        let tree = wanted.tree;
        // One tree at a time: each is read at one moment, and no more than one is held.
        let rows = state.gate.as_member(&session, space, move |view| view.tree_entries(tree)).await?;
        match rows {
            None => chunk.unknown_trees.push(tree),
            Some(rows) => {
                for mut row in without_ancestors(rows, &wanted.heads) {
                    withhold_damage(space, &mut row);
                    if chunk.bytes + row.record.wire_bytes() > limits::BATCH_BYTES_MAX && chunk.bytes > 0 {
                        answers.send(std::mem::take(&mut chunk).into_wire()).await?;
                    }
                    chunk.push(row);
                }
            }
        }
    }
    answers.send(chunk.into_wire()).await
}

/// Leaves out the changes that are, or lead to, one of `heads`; and the root, if there is such a change.
fn without_ancestors(rows: Vec<LogRow>, heads: &[ChangeId]) -> Vec<LogRow> {
    if heads.is_empty() {
        return rows;
    }
    let parents: BTreeMap<EntryId, Vec<EntryId>> =
        rows.iter().filter(|row| row.kind == EntryKind::Change).map(|row| (row.id, parents_of(row))).collect();
    let mut held = BTreeSet::new();
    let mut open: Vec<EntryId> = heads.iter().map(|head| EntryId::from(*head)).collect();
    while let Some(id) = open.pop() {
        let Some(parents) = parents.get(&id) else { continue };
        if held.insert(id) {
            open.extend(parents);
        }
    }
    let is_held = |row: &LogRow| match row.kind {
        EntryKind::Root => !held.is_empty(),
        EntryKind::Change | EntryKind::Tombstone | EntryKind::Acl => held.contains(&row.id),
    };
    rows.into_iter().filter(|row| !is_held(row)).collect()
}

fn parents_of(row: &LogRow) -> Vec<EntryId> {
    let Ok(body) = pb::TreeChange::decode(row.record.body.clone()) else { return Vec::new() };
    body.parents.iter().filter_map(|parent| EntryId::try_from(parent.as_ref()).ok()).collect()
}

#[derive(Default)]
struct Chunk {
    rows: Vec<LogRow>,
    unknown_trees: Vec<TreeId>,
    bytes: usize,
}

impl Chunk {
    fn push(&mut self, row: LogRow) {
        self.bytes += row.record.wire_bytes();
        self.rows.push(row);
    }

    fn into_wire(self) -> FetchResponse {
        let entry = |row: LogRow| FetchedEntry { seq: row.position.seq.0, record: Some(row.record.into()) };
        let unknown_trees: Vec<Bytes> = self.unknown_trees.iter().map(|tree| tree.to_bytes()).collect();
        FetchResponse { entries: self.rows.into_iter().map(entry).collect(), unknown_trees }
    }
}
