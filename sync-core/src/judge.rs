//! A tree judged again from the log: each of its entries against what stood before it.
//!
//! The rules give the same answer for the same log, always. What was derived from the log may be lost or wrong all the same,
//! and then what came after was judged over something that never was. Judged again from the entries alone, everything of the
//! tree stands as it does for everybody else.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;

use crate::acl::{AclReject, AclState};
use crate::ids::{ChangeId, Seq, TreeId};
use crate::log::{ChangeState, DecideError, Outcome, Position, Refusal, Reject, Submission, TreeState, View, decide};
use crate::record::{AclRecord, Verified};
use crate::tree::Height;

/// The ACL of a log, walked from its beginning.
#[derive(Debug, Clone)]
pub struct AclWalk {
    acl: AclState,
    rest: VecDeque<(Seq, Verified<AclRecord>)>,
}

impl AclWalk {
    /// From the state after entry 1, with the records that follow, in order.
    #[must_use]
    pub fn new(found: AclState, records: Vec<(Seq, Verified<AclRecord>)>) -> Self {
        Self { acl: found, rest: records.into() }
    }

    /// The ACL that an entry was judged with. Goes forward only.
    ///
    /// # Errors
    /// The rule that an ACL record breaks: such a log was never accepted.
    pub fn before(&mut self, seq: Seq) -> Result<&AclState, AclReject> {
        while self.rest.front().is_some_and(|(at, _)| *at < seq) {
            let Some((at, record)) = self.rest.pop_front() else { break };
            self.acl = self.acl.clone().fold_in(&record, at)?;
        }
        Ok(&self.acl)
    }
}

/// An entry of a tree as the log has it, with its root where that stands right before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The place of the root, or of the entry itself where none came along.
    pub first: Seq,
    pub submission: Submission,
}

/// How an entry stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Allowed at its place. A tombstone has no height.
    Accepted { height: Option<Height> },
    /// Kept for the chain alone.
    Quarantined(Reject),
}

/// One judged entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The place of the root that came along.
    pub root: Option<Seq>,
    pub at: Seq,
    pub standing: Standing,
}

/// A tree as its entries make it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JudgedTree {
    pub entries: Vec<Judged>,
    /// `None` if nothing of it was accepted.
    pub state: Option<TreeState>,
}

/// Why a tree cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JudgeError {
    /// The ACL of the log does not fold: such a log was never accepted.
    #[error("the ACL of the log does not fold")]
    Acl(#[from] AclReject),
    /// What depends on the node has no say here.
    #[error("a condition of the node was asked of a log")]
    Refused(#[from] Refusal),
}

/// Judges all entries of one tree, in the order of the log.
///
/// # Errors
/// [`JudgeError`].
pub fn judge_tree(tree: TreeId, acl: &mut AclWalk, logged: &[Logged]) -> Result<JudgedTree, JudgeError> {
    let mut judged = JudgedTree::default();
    let mut changes = BTreeMap::new();
    for Logged { first, submission } in logged {
        let acl = acl.before(*first)?;
        // Nothing of the chain is judged here: it is what was logged.
        let before = Position { seq: Seq(first.0.saturating_sub(1)), ..Position::start(&acl.space) };
        let view = PastView { before, acl, tree, state: &judged.state, changes: &changes };
        let root = matches!(submission, Submission::Change { root: Some(_), .. }).then_some(*first);
        let at = if root.is_some() { first.next() } else { *first };
        let standing = match decide(&view, submission) {
            Ok(Outcome::Append(decision)) => {
                let height = decision.entries().last().and_then(|entry| entry.height);
                if let (Submission::Change { change, .. }, Some(height)) = (submission, height) {
                    changes.insert(ChangeId::from(change.id()), ChangeState { at, height, epoch: change.body().epoch });
                }
                if let Some(update) = decision.tree() {
                    judged.state = Some(update.after.clone());
                }
                Standing::Accepted { height }
            }
            // Twice in one log: the first one stands.
            Ok(Outcome::Known(_)) => Standing::Quarantined(Reject::NotAnEntry),
            Err(DecideError::Reject(reject)) => Standing::Quarantined(reject),
            Err(DecideError::Refused(refusal)) => return Err(refusal.into()),
            Err(DecideError::View(never)) => match never {},
        };
        judged.entries.push(Judged { root, at, standing });
    }
    Ok(judged)
}

/// The log before an entry, as far as one tree is concerned.
struct PastView<'a> {
    before: Position,
    acl: &'a AclState,
    tree: TreeId,
    state: &'a Option<TreeState>,
    changes: &'a BTreeMap<ChangeId, ChangeState>,
}

impl View for PastView<'_> {
    type Error = Infallible;

    fn position(&self) -> Position {
        self.before
    }

    fn acl(&self) -> &AclState {
        self.acl
    }

    fn tree(&self, tree: &TreeId) -> Result<Option<TreeState>, Infallible> {
        Ok(self.state.clone().filter(|_| *tree == self.tree))
    }

    fn change(&self, tree: &TreeId, change: &ChangeId) -> Result<Option<ChangeState>, Infallible> {
        Ok(self.changes.get(change).copied().filter(|_| *tree == self.tree))
    }
}
