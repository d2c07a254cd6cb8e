//! Fetch: named trees, parents first, without what the caller has.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use sync_core::code::Code;
use sync_core::ids::{Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::record::TreeHeads;
use sync_proto::id;
use sync_proto::v1::{FetchRequest, FetchResponse, FetchedEntry};
use sync_store::LogRow;

use super::State;
use crate::answers::Answers;
use crate::failure::CallError;
use crate::gate::AtLeast;
use crate::session::Session;

pub(super) async fn fetch(
    state: Arc<State>,
    session: Session,
    request: FetchRequest,
    answers: Answers<FetchResponse>,
) -> Result<(), CallError> {
    request.check()?;
    let space: SpaceId = id(&request.space)?;
    check_once(&request)?;
    let fetch = Fetch { state, session, space };
    // A chunk is read when there is a place for it, so that a slow reader costs one chunk and the list of what is to come.
    let mut place = answers.reserve().await?;
    let mut chunk = Chunk::default();
    for tree in request.trees {
        let Some(mut wanted) = fetch.wanted(tree.try_into()?, &mut chunk).await? else { continue };
        while !wanted.is_empty() {
            wanted = fetch.fill(&mut chunk, wanted).await?;
            if !wanted.is_empty() {
                place.send(std::mem::take(&mut chunk).into_wire());
                place = answers.reserve().await?;
            }
        }
    }
    place.send(chunk.into_wire());
    Ok(())
}

/// Each tree costs a read of all its links, whatever the caller has of it.
fn check_once(request: &FetchRequest) -> Result<(), CallError> {
    let mut seen = BTreeSet::new();
    if request.trees.iter().all(|tree| seen.insert(&tree.tree)) {
        return Ok(());
    }
    Err(CallError::new(Code::Malformed, "a tree is asked for twice"))
}

struct Fetch {
    state: Arc<State>,
    session: Session,
    space: SpaceId,
}

impl Fetch {
    /// Where the entries of a tree stand that the caller lacks. Notes a tree that is unknown.
    async fn wanted(&self, tree: TreeHeads, chunk: &mut Chunk) -> Result<Option<VecDeque<Seq>>, CallError> {
        let TreeHeads { tree, heads } = tree;
        let read = move |view: &crate::gate::MemberView<'_, '_>| view.tree_seqs(tree, &heads);
        let wanted = self.state.gate.as_member(&self.session, self.space, read).await?;
        if wanted.is_none() {
            chunk.unknown_trees.push(tree);
        }
        Ok(wanted)
    }

    /// Reads what the chunk has room for; what it has no room for comes back. The log only grows, so the entries are there.
    async fn fill(&self, chunk: &mut Chunk, mut wanted: VecDeque<Seq>) -> Result<VecDeque<Seq>, CallError> {
        let room = limits::BATCH_BYTES_MAX.saturating_sub(chunk.bytes);
        let at_least = if chunk.bytes == 0 { AtLeast::One } else { AtLeast::None };
        let read = move |view: &crate::gate::MemberView<'_, '_>| {
            let rows = view.take_entries(&mut wanted, room, at_least)?;
            Ok((rows, wanted))
        };
        let (rows, rest) = self.state.gate.as_member(&self.session, self.space, read).await?;
        chunk.bytes += rows.iter().map(|row| row.record.wire_bytes()).sum::<usize>();
        chunk.rows.extend(rows);
        Ok(rest)
    }
}

#[derive(Default)]
struct Chunk {
    rows: Vec<LogRow>,
    unknown_trees: Vec<TreeId>,
    bytes: usize,
}

impl Chunk {
    fn into_wire(self) -> FetchResponse {
        let entry = |row: LogRow| FetchedEntry { seq: row.position.seq.0, record: Some(row.record.into()) };
        let unknown_trees: Vec<Bytes> = self.unknown_trees.iter().map(|tree| tree.to_bytes()).collect();
        FetchResponse { entries: self.rows.into_iter().map(entry).collect(), unknown_trees }
    }
}
