//! What this node lost and signed for, on its way back: a re-push, followed entry by entry.

use std::collections::BTreeSet;
use std::sync::Arc;

use sync_core::code::Code;
use sync_core::ids::{EntryId, Seq, SpaceId, TreeId};
use sync_core::log::{self, Outcome, Position, Refusal, Submission};
use sync_store::{ReadTx, WriteTx};

use super::{forget_founding, row};
use crate::failure::CallError;

/// Entries that this authority signed for and that this store lacks, by their ids.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    from: Seq,
    ids: Arc<[EntryId]>,
    /// Up to here, the log is known to be on the way to the receipt.
    pub(super) at: Position,
    ended: Arc<BTreeSet<TreeId>>,
    space_ended: bool,
}

/// One or two neighbouring entries that are decided together.
#[derive(Debug)]
pub(crate) struct LostEntry {
    pub(crate) first: Seq,
    pub(crate) ids: Vec<EntryId>,
    pub(crate) submission: Submission,
}

/// What a message of a re-push led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TakenBack {
    /// The end of the log.
    pub(crate) to: Seq,
    /// Entries that were not there before.
    pub(crate) appended: usize,
}

impl Lost {
    /// `ids` lead from `common` to a receipt. The content of the trees that end among them, or of the space, is gone.
    pub(crate) fn new(common: Position, ids: Vec<EntryId>, ended: BTreeSet<TreeId>, space_ended: bool) -> Self {
        Self { from: common.seq, ids: ids.into(), at: common, ended: Arc::new(ended), space_ended }
    }

    pub(crate) fn id_at(&self, seq: Seq) -> Option<EntryId> {
        let index = usize::try_from(seq.0.checked_sub(self.from.0)?.checked_sub(1)?).ok()?;
        self.ids.get(index).copied()
    }

    /// Follows the log to its end, or to the end of what was lost; `LOG_DIVERGED` if it goes another way.
    pub(super) fn meet(&mut self, tx: &ReadTx<'_>, space: SpaceId) -> Result<Position, CallError> {
        let end = row(tx, space)?.position;
        while self.at.seq < end.seq
            && let Some(id) = self.id_at(self.at.seq.next())
        {
            self.at = self.at.after(&id);
        }
        if tx.position_at(space, self.at.seq)? == Some(self.at) { Ok(self.at) } else { Err(diverged()) }
    }

    /// Appends the next entry; how many rows that were.
    pub(super) fn append(
        &mut self,
        tx: &mut WriteTx<'_>,
        space: SpaceId,
        entry: &LostEntry,
    ) -> Result<usize, CallError> {
        self.may_lack_content(&entry.submission)?;
        let view = tx.view(space)?.ok_or_else(|| CallError::space_unknown(&space))?;
        let decided = log::decide(&view, &entry.submission);
        drop(view);
        let Outcome::Append(decision) = decided? else { return Err(diverged()) };
        let expected = entry.ids.iter().fold(self.at, |at, id| at.after(id));
        if decision.position() != expected {
            return Err(diverged());
        }
        let ends_space = decision.acl().is_some_and(|acl| acl.deleted);
        self.at = tx.append(space, decision)?;
        if ends_space {
            forget_founding(tx, space)?;
        }
        Ok(entry.ids.len())
    }

    /// A change without its content is taken only if the log says later that the content is gone: who brings it might have
    /// kept it back.
    fn may_lack_content(&self, submission: &Submission) -> Result<(), CallError> {
        match submission {
            Submission::Change { change, .. }
                if change.raw().payload.is_none() && !self.space_ended && !self.ended.contains(&change.body().tree) =>
            {
                Err(Refusal::PayloadMissing.into())
            }
            Submission::Change { .. } | Submission::Acl(_) | Submission::Tombstone(_) => Ok(()),
        }
    }
}

fn diverged() -> CallError {
    CallError::new(Code::LogDiverged, "this node's log has gone another way")
}
