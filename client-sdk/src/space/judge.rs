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
    /// Judges the trees that are wanted judged, `tree` among them, over one reading of the log. One whose attempt failed is
    /// judged alone from then on, so that it is in nobody's way.
    pub(super) async fn judge_wanted(self: &Arc<Self>, tree: TreeId) -> Result<(), FetchError> {
        let _alone = self.judging.lock().await;
        let Some(trees) = self.shared.store.read(|tx| judged_with(tx, self.id, tree)).map_err(ReadError::from)? else {
            // It went with another one.
            return Ok(());
        };
        let Places { end, mut of } = self.places_of(trees.clone(), BTreeSet::new()).await?;
        let placed = trees.into_iter().map(|tree| (tree, of.remove(&tree).unwrap_or_default())).collect();
        for batch in batches(placed) {
            let own = batch.iter().find(|(id, _)| *id == tree).cloned();
            match (self.judge(batch, end).await, own) {
                (Ok(()), _) => {}
                (Err(_), Some(own)) => return self.judge(vec![own], end).await,
                // Each of them has a turn of its own.
                (Err(error), None) => {
                    tracing::info!(space = %self.id.short(), error = %error, "trees could not be judged together");
                }
            }
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
        Ok(read.map_err(|e| FetchError::local(&e))??)
    }

    async fn judge(self: &Arc<Self>, trees: Vec<Placed>, end: Seq) -> Result<(), FetchError> {
        let (space, shared, ring) = (self.id, self.shared.clone(), self.ring());
        let job = move |tx: &mut WriteTx<'_>| -> Result<Corrected, ReadError> {
            let mut trees = trees;
            add_later(tx, space, end, &mut trees)?;
            let corrected = judge_in(tx, &shared, &ring, space, &trees)?;
            for (tree, _) in trees {
                tx.drop_sync_item(space, tree, SyncItemKind::Judge)?;
            }
            Ok(corrected)
        };
        let written = self.shared.store.write(job).await;
        let written = written.map_err(|e| FetchError::local(&from_store_write(e)))?;
        let Corrected { trees, objects } = written.value;
        self.tell_objects(objects, written.commit);
        for tree in trees {
            tracing::warn!(space = %self.id.short(), tree = %tree.short(), "a tree was derived wrongly, and is right now");
            self.refresh_to(tree, written.commit);
            self.emit(Event::Tree { space: self.id, tree });
        }
        self.touch();
        Ok(())
    }
}

/// A tree, and where its entries stand.
type Placed = (TreeId, Vec<Seq>);

/// What did not stand as the log says, and does now.
struct Corrected {
    trees: Vec<TreeId>,
    objects: Vec<ObjectTouched>,
}

/// The trees that are judged when it is the turn of one; `None` if that is not wanted any more.
fn judged_with(tx: &ReadTx<'_>, space: SpaceId, tree: TreeId) -> Result<Option<BTreeSet<TreeId>>, StoreError> {
    let Some(own) = tx.sync_item(space, tree, SyncItemKind::Judge)? else { return Ok(None) };
    if own.attempts > 0 {
        return Ok(Some(BTreeSet::from([tree])));
    }
    let wanted = tx.sync_items_of(space, SyncItemKind::Judge, 0, limits::JUDGED_TREES_MAX)?;
    let untried = wanted.into_iter().filter(|item| item.attempts == 0).map(|item| item.tree);
    Ok(Some(untried.chain([tree]).collect()))
}

/// As many trees at a time as have entries for one commit, and one at least.
fn batches(trees: Vec<Placed>) -> Vec<Vec<Placed>> {
    let mut batches: Vec<Vec<Placed>> = Vec::new();
    let mut entries = 0;
    for (tree, seqs) in trees {
        entries += seqs.len();
        match batches.last_mut().filter(|_| entries <= limits::PUSH_ITEMS_MAX) {
            Some(batch) => batch.push((tree, seqs)),
            None => {
                entries = seqs.len();
                batches.push(vec![(tree, seqs)]);
            }
        }
    }
    batches
}

/// Adds what was appended since the log was read.
fn add_later(tx: &ReadTx<'_>, space: SpaceId, end: Seq, trees: &mut [Placed]) -> Result<(), ReadError> {
    let mut places: BTreeMap<TreeId, &mut Vec<Seq>> = trees.iter_mut().map(|(tree, seqs)| (*tree, seqs)).collect();
    let mut after = end;
    loop {
        let page = tx.entries(space, after, limits::PUSH_ITEMS_MAX, limits::BATCH_BYTES_MAX)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.position.seq;
        for entry in &page {
            if let Some(seqs) = entry.tree.and_then(|tree| places.get_mut(&tree)) {
                seqs.push(entry.position.seq);
            }
        }
    }
}

/// Judges trees, and keeps those that do not stand as judged.
fn judge_in(
    tx: &mut WriteTx<'_>,
    shared: &Shared,
    ring: &KeyRing,
    space: SpaceId,
    trees: &[Placed],
) -> Result<Corrected, ReadError> {
    let acl = acl_walk(tx, space)?;
    let (mut corrected, mut wrong) = (Vec::new(), Vec::new());
    for (tree, seqs) in trees {
        let rows = rows_at(tx, space, seqs)?;
        let logged = logged(&rows)?;
        let judged = judge_tree(*tree, &mut acl.clone(), &logged).map_err(|e| damaged(&e))?;
        if tx.tree(space, *tree)? == judged.state && stands(&rows, &judged) {
            continue;
        }
        for (entry, at) in judged.entries.iter().zip(&logged) {
            keep_verdict(tx, (space, *tree), at.submission.id(), entry)?;
        }
        corrected.push(*tree);
        wrong.push((*tree, judged));
    }
    if wrong.is_empty() {
        return Ok(Corrected { trees: corrected, objects: Vec::new() });
    }
    tx.put_judged(space, &wrong)?;
    let objects = project::derive_again(tx, shared, space, ring, &corrected)?;
    Ok(Corrected { trees: corrected, objects })
}

fn rows_at(tx: &ReadTx<'_>, space: SpaceId, seqs: &[Seq]) -> Result<Vec<LogRow>, ReadError> {
    let mut rows = Vec::with_capacity(seqs.len());
    for seq in seqs {
        let Some(mut row) = tx.entry_at(space, *seq)? else { continue };
        // The rules never ask for content, and there may be much of it.
        row.record.payload = None;
        rows.push(row);
    }
    Ok(rows)
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
