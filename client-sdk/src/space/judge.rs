//! Trees judged again, from the log that both sides agree on: what was derived here is not what the peer derived. Quarantined
//! changes are judged so when the peer's heads of their tree change, and whatever HeadSync finds to differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sync_core::acl::AclState;
use sync_core::ids::{EntryId, Seq, SpaceId, TreeId};
use sync_core::judge::{AclWalk, Judged, JudgedTree, Logged, Standing, judge_tree};
use sync_core::limits;
use sync_core::log::{EntryKind, Submission};
use sync_core::reconcile::TreePrefix;
use sync_core::record::{AclRecord, AclRoot, VerifiedRecord, verify, verify_as};
use sync_e2ee::KeyRing;
use sync_store::{LogRow, ReadTx, StoreError, SyncItemKind, VerdictKind, VerdictRow, WriteTx};

use super::SpaceInner;
use super::project::{self, ObjectTouched};
use super::syncer::FetchError;
use crate::client::Shared;
use crate::error::{ReadError, from_store_write};
use crate::events::Event;

/// Where the entries of some trees stand, of the log up to `end`.
#[derive(Debug, Clone)]
pub(super) struct Places {
    end: Seq,
    pub(super) of: BTreeMap<TreeId, Vec<Seq>>,
}

impl SpaceInner {
    /// Judges the trees that are wanted judged, `tree` among them, over one reading of the log.
    pub(super) async fn judge_wanted(self: &Arc<Self>, tree: TreeId) -> Result<(), FetchError> {
        let wanted =
            self.shared.store.read(|tx| tx.sync_items_of(self.id, SyncItemKind::Judge, 0, limits::SYNC_WINDOW_MAX));
        let mut trees: BTreeSet<_> = wanted.map_err(ReadError::from)?.into_iter().map(|item| item.tree).collect();
        if !trees.contains(&tree) && trees.len() < limits::SYNC_WINDOW_MAX {
            // It went with another one.
            return Ok(());
        }
        trees.insert(tree);
        let places = self.places_of(trees.clone(), BTreeSet::new()).await?;
        for tree in trees {
            let seqs = places.of.get(&tree).cloned().unwrap_or_default();
            self.judge(tree, places.end, seqs).await?;
        }
        Ok(())
    }

    /// Finds the entries of trees in the log, whatever was derived from them.
    pub(super) async fn places_of(
        &self,
        trees: BTreeSet<TreeId>,
        prefixes: BTreeSet<TreePrefix>,
    ) -> Result<Places, FetchError> {
        let (store, space) = (self.shared.store.clone(), self.id);
        let read = move || {
            store.read(|tx| -> Result<Places, ReadError> {
                let end = tx.space(space)?.ok_or(ReadError::UnknownSpace(space))?.position.seq;
                Ok(Places { end, of: tx.entries_of_trees(space, &trees, &prefixes)? })
            })
        };
        let read = self.shared.host.blocking(read).await;
        Ok(read.map_err(|e| FetchError::Store(e.to_string()))??)
    }

    async fn judge(self: &Arc<Self>, tree: TreeId, end: Seq, seqs: Vec<Seq>) -> Result<(), FetchError> {
        let (space, shared, ring) = (self.id, self.shared.clone(), self.ring());
        let job = move |tx: &mut WriteTx<'_>| -> Result<Option<Vec<ObjectTouched>>, ReadError> {
            let seqs = with_later(tx, space, tree, end, seqs)?;
            let told = judge_in(tx, &shared, &ring, (space, tree), &seqs)?;
            tx.drop_sync_item(space, tree, SyncItemKind::Judge)?;
            Ok(told)
        };
        let written = self.shared.store.write(job).await;
        let written = written.map_err(|e| FetchError::Store(from_store_write(e).to_string()))?;
        if let Some(objects) = written.value {
            tracing::warn!(space = %self.id.short(), tree = %tree.short(), "a tree was derived wrongly, and is right now");
            self.tell_objects(objects, written.commit);
            self.refresh_to(tree, written.commit);
            self.emit(Event::Tree { space: self.id, tree });
        }
        self.touch();
        Ok(())
    }
}

/// With what was appended since the log was read.
fn with_later(
    tx: &ReadTx<'_>,
    space: SpaceId,
    tree: TreeId,
    end: Seq,
    mut seqs: Vec<Seq>,
) -> Result<Vec<Seq>, ReadError> {
    let mut after = end;
    loop {
        let page = tx.entries(space, after, limits::PUSH_ITEMS_MAX, limits::BATCH_BYTES_MAX)?;
        let Some(last) = page.last() else { return Ok(seqs) };
        after = last.position.seq;
        seqs.extend(page.iter().filter(|entry| entry.tree == Some(tree)).map(|entry| entry.position.seq));
    }
}

/// Judges one tree; `None` if everything stands as it did.
fn judge_in(
    tx: &mut WriteTx<'_>,
    shared: &Shared,
    ring: &KeyRing,
    (space, tree): (SpaceId, TreeId),
    seqs: &[Seq],
) -> Result<Option<Vec<ObjectTouched>>, ReadError> {
    let mut rows = Vec::with_capacity(seqs.len());
    for seq in seqs {
        let Some(mut row) = tx.entry_at(space, *seq)? else { continue };
        // The rules never ask for content, and there may be much of it.
        row.record.payload = None;
        rows.push(row);
    }
    let logged = logged(&rows)?;
    let judged = judge_tree(tree, &mut acl_walk(tx, space)?, &logged).map_err(|e| damaged(&e))?;
    if tx.tree(space, tree)? == judged.state && stands(&rows, &judged) {
        return Ok(None);
    }
    tx.put_judged(space, tree, &judged)?;
    for (entry, at) in judged.entries.iter().zip(&logged) {
        keep_verdict(tx, (space, tree), at.submission.id(), entry)?;
    }
    Ok(Some(project::derive_again(tx, shared, space, ring, &[tree])?))
}

fn keep_verdict(
    tx: &mut WriteTx<'_>,
    (space, tree): (SpaceId, TreeId),
    id: EntryId,
    entry: &Judged,
) -> Result<(), ReadError> {
    match &entry.standing {
        Standing::Accepted { .. } => tx.delete_verdict(space, tree, id.into())?,
        Standing::Quarantined(reject) => {
            let row = VerdictRow { kind: VerdictKind::Quarantined, detail: reject.to_string(), seq: entry.at };
            tx.put_verdict(space, tree, id.into(), &row)?;
        }
    }
    Ok(())
}

/// Whether each row says of itself what was judged.
fn stands(rows: &[LogRow], judged: &JudgedTree) -> bool {
    let of = |seq: Seq| rows.iter().find(|row| row.position.seq == seq);
    judged.entries.iter().all(|entry| {
        of(entry.at).is_some_and(|row| match &entry.standing {
            Standing::Accepted { height } => !row.quarantined && row.height == *height,
            Standing::Quarantined(_) => row.quarantined,
        })
    })
}

/// The entries of a tree as they are judged: a root with the change right after it.
fn logged(rows: &[LogRow]) -> Result<Vec<Logged>, ReadError> {
    let mut logged = Vec::with_capacity(rows.len());
    let mut root: Option<(Seq, VerifiedRecord)> = None;
    for row in rows {
        let (seq, record) = (row.position.seq, verify(row.record.clone()).map_err(|e| damaged(&e))?);
        if row.kind == EntryKind::Root {
            root = Some((seq, record));
            continue;
        }
        let root = root.take().filter(|(at, _)| at.next() == seq);
        let first = root.as_ref().map_or(seq, |(at, _)| *at);
        let submission = Submission::pair(root.map(|(_, record)| record), record).map_err(|e| damaged(&e))?;
        logged.push(Logged { first, submission });
    }
    Ok(logged)
}

fn acl_walk(tx: &ReadTx<'_>, space: SpaceId) -> Result<AclWalk, ReadError> {
    let mut records = tx.acl_records(space)?.into_iter();
    let (_, root) = records.next().ok_or(ReadError::UnknownSpace(space))?;
    let root = verify_as::<AclRoot>(root).map_err(|e| damaged(&e))?;
    let rest = records.map(|(at, record)| Ok((at, verify_as::<AclRecord>(record).map_err(|e| damaged(&e))?)));
    Ok(AclWalk::new(AclState::found(space, &root), rest.collect::<Result<_, ReadError>>()?))
}

/// Records of our own log were verified when they came.
fn damaged(error: &dyn std::fmt::Display) -> ReadError {
    StoreError::Damaged { what: format!("a logged record: {error}") }.into()
}
