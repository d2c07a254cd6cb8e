//! A replica over ordered maps: what a store keeps, without a store.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use sync_core::acl::AclState;
use sync_core::ids::{ChangeId, Seq, SpaceId, TreeId};
use sync_core::log::{
    ChangeState, DecideError, Decision, EntryKind, Genesis, NewEntry, Outcome, Position, Reject, Submission, TreeState,
    View, decide,
};
use sync_core::reconcile::{Element, SetDigest};
use sync_core::record::{TreeChange, verify_as};
use sync_core::tree::OrderKey;

/// One replica of one space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapLog {
    position: Position,
    acl: AclState,
    trees: BTreeMap<TreeId, TreeState>,
    changes: BTreeMap<(TreeId, ChangeId), ChangeState>,
    entries: Vec<NewEntry>,
    digest: SetDigest,
}

/// What became of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Known(Seq),
    Appended(Seq),
}

impl View for MapLog {
    type Error = Infallible;

    fn position(&self) -> Position {
        self.position
    }

    fn acl(&self) -> &AclState {
        &self.acl
    }

    fn tree(&self, tree: &TreeId) -> Result<Option<TreeState>, Infallible> {
        Ok(self.trees.get(tree).cloned())
    }

    fn change(&self, tree: &TreeId, change: &ChangeId) -> Result<Option<ChangeState>, Infallible> {
        Ok(self.changes.get(&(*tree, *change)).copied())
    }
}

impl MapLog {
    /// The log of a space that begins.
    #[must_use]
    pub fn found(genesis: &Genesis) -> Self {
        let entries = genesis.entries().to_vec();
        Self {
            position: entries[1].position,
            acl: genesis.acl().clone(),
            trees: BTreeMap::new(),
            changes: BTreeMap::new(),
            entries,
            digest: SetDigest::of_genesis(genesis.acl()),
        }
    }

    #[must_use]
    pub const fn space(&self) -> SpaceId {
        self.acl.space
    }

    #[must_use]
    pub const fn acl_state(&self) -> &AclState {
        &self.acl
    }

    #[must_use]
    pub fn entries(&self) -> &[NewEntry] {
        &self.entries
    }

    #[must_use]
    pub const fn trees(&self) -> &BTreeMap<TreeId, TreeState> {
        &self.trees
    }

    #[must_use]
    pub const fn digest(&self) -> &SetDigest {
        &self.digest
    }

    /// Judges, and appends what may stand.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn take(&mut self, submission: &Submission) -> Result<Taken, Reject> {
        match decide(self, submission) {
            Ok(Outcome::Known(seq)) => Ok(Taken::Known(seq)),
            Ok(Outcome::Append(decision)) => {
                self.append(submission, &decision);
                Ok(Taken::Appended(self.position.seq))
            }
            Err(DecideError::Reject(reject)) => Err(reject),
            Err(DecideError::Refused(refusal)) => unreachable!("decide does not admit: {refusal}"),
            Err(DecideError::View(never)) => match never {},
        }
    }

    fn append(&mut self, submission: &Submission, decision: &Decision) {
        self.digest.apply(decision);
        self.entries.extend_from_slice(decision.entries());
        self.position = decision.position();
        if let Some(acl) = decision.acl() {
            self.acl = acl.clone();
        }
        if let Some(update) = decision.tree() {
            self.trees.insert(update.tree, update.after.clone());
        }
        if let (Submission::Change { change, .. }, Some(entry)) = (submission, decision.entries().last()) {
            let body = change.body();
            let height = entry.height.expect("an accepted change has a height");
            let state = ChangeState { at: entry.position.seq, height, epoch: body.epoch };
            self.changes.insert((body.tree, change.id().into()), state);
        }
    }

    /// The accepted changes of a tree, in its total order.
    #[must_use]
    pub fn order(&self, tree: TreeId) -> Vec<OrderKey> {
        let of_tree = self.changes.iter().filter(|((t, _), _)| *t == tree);
        let keys: BTreeSet<_> = of_tree.map(|((_, id), state)| OrderKey { height: state.height, id: *id }).collect();
        keys.into_iter().collect()
    }

    /// What two replicas compare.
    #[must_use]
    pub fn elements(&self) -> Vec<Element> {
        let trees = self.trees.iter().map(|(tree, state)| Element::of_tree(*tree, state));
        std::iter::once(Element::AclHead(self.acl.head)).chain(trees).collect()
    }

    /// The parents of every accepted change of a tree, from the records themselves.
    #[must_use]
    pub fn parents(&self, tree: TreeId) -> BTreeMap<ChangeId, Vec<ChangeId>> {
        let changes = self.entries.iter().filter(|e| e.kind == EntryKind::Change && e.tree == Some(tree));
        changes
            .map(|entry| {
                let change = verify_as::<TreeChange>(entry.record.clone()).expect("what is logged was verified");
                (change.id().into(), change.body().parents.clone())
            })
            .collect()
    }

    /// Named invariant: the heads of every live tree are its changes without children.
    ///
    /// # Panics
    /// If they are not.
    pub fn heads_are_the_changes_without_children(&self) {
        self.trees.keys().for_each(|tree| self.heads_of_a_tree_are_its_changes_without_children(*tree));
    }

    /// The same of one tree.
    ///
    /// # Panics
    /// If they are not.
    pub fn heads_of_a_tree_are_its_changes_without_children(&self, tree: TreeId) {
        let Some(state) = self.trees.get(&tree) else { return };
        let parents = if state.purged.is_some() { BTreeMap::new() } else { self.parents(tree) };
        let with_children: BTreeSet<_> = parents.values().flatten().collect();
        let childless: BTreeSet<_> = parents.keys().filter(|id| !with_children.contains(id)).copied().collect();
        assert_eq!(state.heads, childless, "{tree}");
    }

    /// Named invariant: in the order of a tree every parent stands before its children.
    ///
    /// # Panics
    /// If one does not.
    pub fn parents_stand_before_their_children(&self) {
        for tree in self.trees.keys() {
            let parents = self.parents(*tree);
            let mut seen = BTreeSet::from([TreeChange::root_as_parent(*tree)]);
            for key in self.order(*tree) {
                let missing = parents[&key.id].iter().find(|p| !seen.contains(p));
                assert_eq!(missing, None, "{tree}: {:?} stands before its parent", key.id);
                seen.insert(key.id);
            }
        }
    }

    /// Named invariant: the digest is the sum of the elements, and the chain is that of the ids.
    ///
    /// # Panics
    /// If not.
    pub fn summaries_are_those_of_the_log(&self) {
        let mut digest = SetDigest::empty();
        self.elements().iter().for_each(|e| digest.insert(e));
        assert_eq!(self.digest, digest);
        let mut position = Position::start(&self.acl.space);
        for entry in &self.entries {
            position = position.after(&entry.id);
            assert_eq!(entry.position, position);
        }
        assert_eq!(self.position, position);
    }
}
