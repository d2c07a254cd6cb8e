//! Fetching trees from the node: in chunks, each kept as it comes, from what is here already; so what breaks off goes on
//! where it stopped.

use std::collections::BTreeSet;
use std::sync::Arc;

use sync_core::ids::{ChangeId, Seq, TreeId};
use sync_core::limits;
use sync_core::record::{RawRecord, TreeChange, TreeHeads, Verified, VerifiedRecord, verify, verify_as};
use sync_proto::v1;
use sync_store::{SyncItemKind, VerdictKind, WriteTx};
use tonic::Streaming;

use super::SpaceInner;
use super::project::{self, ObjectTouched, Projection};
use super::syncer::FetchError;
use crate::client::Shared;
use crate::connect::Conn;
use crate::error::{CallError, ReadError, from_store_write};

/// Entries of one tree on their way.
pub(super) struct Chunks<'a> {
    shared: &'a Shared,
    conn: &'a Conn,
    answers: Streaming<v1::FetchResponse>,
}

/// One message of them.
pub(super) struct Chunk {
    pub(super) entries: Vec<(Seq, RawRecord)>,
    /// The node does not have the tree.
    pub(super) unknown: bool,
}

impl Chunks<'_> {
    pub(super) async fn next(&mut self) -> Result<Option<Chunk>, CallError> {
        let Some(answer) = self.shared.answer(self.conn, self.answers.message()).await? else { return Ok(None) };
        let mut entries = Vec::with_capacity(answer.entries.len());
        for entry in answer.entries {
            let record = entry.record.ok_or_else(|| CallError::BadAnswer("an entry without a record".to_owned()))?;
            let record = RawRecord::try_from(record).map_err(|e| CallError::BadAnswer(e.to_string()))?;
            entries.push((Seq(entry.seq), record));
        }
        Ok(Some(Chunk { entries, unknown: !answer.unknown_trees.is_empty() }))
    }
}

impl SpaceInner {
    /// Asks for a tree, without `heads` and what is before them.
    pub(super) async fn ask_for<'a>(
        &'a self,
        conn: &'a Conn,
        tree: TreeId,
        heads: Vec<ChangeId>,
    ) -> Result<Chunks<'a>, CallError> {
        let wanted = TreeHeads { tree, heads };
        let request = v1::FetchRequest { space: self.id.to_bytes(), trees: vec![(&wanted).into()] };
        let mut rpc = conn.rpc();
        let answers = self.shared.answer(conn, rpc.fetch(request)).await?.into_inner();
        Ok(Chunks { shared: &self.shared, conn, answers })
    }

    /// Asks again for content that the node left out.
    pub(super) async fn fetch_content(self: &Arc<Self>, conn: &Conn, tree: TreeId) -> Result<(), FetchError> {
        let (missing, held) = self.gaps(tree)?;
        let mut left = missing.clone();
        if !missing.is_empty() {
            let mut chunks = self.ask_for(conn, tree, held).await?;
            while let Some(chunk) = chunks.next().await? {
                if chunk.unknown {
                    return Err(FetchError::NoTree);
                }
                let found = with_content(chunk, &left)?;
                for change in &found {
                    left.remove(&change.id().into());
                }
                self.restore(tree, found).await?;
            }
        }
        if !left.is_empty() {
            return Err(FetchError::NoContent(left.len()));
        }
        self.restore(tree, Vec::new()).await
    }

    /// Changes of a tree without their content, and heads before which nothing is missing.
    fn gaps(&self, tree: TreeId) -> Result<(BTreeSet<ChangeId>, Vec<ChangeId>), ReadError> {
        self.shared.store.read(|tx| {
            let verdicts = tx.verdicts_of_tree(self.id, tree)?.into_iter();
            let missing: BTreeSet<_> =
                verdicts.filter(|(_, _, v)| v.kind == VerdictKind::Missing).map(|(_, change, _)| change).collect();
            let mut held = BTreeSet::new();
            for change in &missing {
                let Some(row) = tx.change(self.id, tree, *change)? else { continue };
                let parents = verify_as::<TreeChange>(row.record).map(|c| c.body().parents.clone()).unwrap_or_default();
                if parents.is_empty() || parents.iter().any(|p| missing.contains(p)) {
                    // The gap reaches to the beginning, or one lies before another: all of it then.
                    return Ok((missing, Vec::new()));
                }
                held.extend(parents);
            }
            // What one of them builds on may come after another one.
            let one = missing.len() <= 1;
            Ok((missing, if one { held.into_iter().take(limits::HEADS_MAX).collect() } else { Vec::new() }))
        })
    }

    /// Keeps content that came, and shows it; in the same transaction the verdict goes, and with the last of them the item.
    async fn restore(self: &Arc<Self>, tree: TreeId, found: Vec<Verified<TreeChange>>) -> Result<(), FetchError> {
        let (space, shared, ring) = (self.id, self.shared.clone(), self.ring());
        let job = move |tx: &mut WriteTx<'_>| -> Result<Vec<ObjectTouched>, ReadError> {
            let mut projection = Projection::default();
            let state = tx.tree(space, tree)?;
            for change in &found {
                let (Some(state), Some(row)) = (&state, tx.change(space, tree, change.id().into())?) else { continue };
                let Some(payload) = &change.raw().payload else { continue };
                tx.delete_verdict(space, tree, change.id().into())?;
                if !tx.restore_payload(space, tree, change.id().into(), payload)? {
                    continue;
                }
                let content = project::open(&shared, &ring, &state.root, change.body(), Some(payload));
                let place = (row.position.seq, row.height.unwrap_or_default());
                projection.fold(tx, &shared, &ring, change, place, (space, content))?;
            }
            let gap = tx.verdicts_of_tree(space, tree)?.iter().any(|(_, _, v)| v.kind == VerdictKind::Missing);
            if !gap {
                tx.drop_sync_item(space, tree, SyncItemKind::Content)?;
            }
            let to = tx.projected_to(space)?;
            projection.flush(tx, &shared, space, to)
        };
        let written = self.shared.store.write(job).await.map_err(|e| FetchError::local(&from_store_write(e)))?;
        self.tell_objects(written.value, written.commit);
        // Also a tree that is no object: what follows it reads again.
        self.refresh_to(tree, written.commit);
        Ok(())
    }
}

/// The changes of a chunk that were missing and came with what their hash promises.
fn with_content(chunk: Chunk, missing: &BTreeSet<ChangeId>) -> Result<Vec<Verified<TreeChange>>, CallError> {
    let mut found = Vec::new();
    for (_, record) in chunk.entries {
        if record.payload.is_none() || !missing.contains(&ChangeId::from(record.id())) {
            continue;
        }
        match verify(record).map_err(|e| CallError::BadAnswer(e.to_string()))? {
            VerifiedRecord::Change(change) => found.push(change),
            VerifiedRecord::SpaceHeader(_)
            | VerifiedRecord::AclRoot(_)
            | VerifiedRecord::Acl(_)
            | VerifiedRecord::TreeRoot(_)
            | VerifiedRecord::Tombstone(_) => {}
        }
    }
    Ok(found)
}
