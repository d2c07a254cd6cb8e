//! Comparing two replicas without trusting one's own bookkeeping.
//!
//! What is compared is a set with one [`Element`] per live tree (its logged heads), one per purged tree, and one for the ACL
//! head. A [`SetDigest`] sums the set up so that every log entry costs a constant amount of work; it is stored with the log
//! head, in the same transaction, and compared only at equal `seq`.
//!
//! When two digests differ, cells are sent ([`Sketch`]) from which the other side decodes ([`Asking`]) what differs: a
//! rateless invertible Bloom lookup table (Yang et al., "Practical Rateless Set Reconciliation", SIGCOMM 2024). Bytes follow
//! the difference, not the set. What cannot be decoded, or is cheaper so, is listed: sorted pages of elements.

mod digest;
mod exchange;
mod peel;
mod sketch;
mod symbol;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::ids::{AclId, TombstoneId, TreeId};
use crate::log::{Decision, TreeState};
use crate::tree::heads_hash;

pub use digest::SetDigest;
pub use exchange::{Asking, Next, block_after};
pub use peel::{Decoded, peel};
pub use sketch::{Cell, Sketch, SketchError, decode_cells, encode_cells};
pub use symbol::{Symbol, SymbolKey, TreePrefix};

/// One thing that two replicas compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    AclHead(AclId),
    Tree { tree: TreeId, heads_hash: [u8; 32] },
    Purged { tree: TreeId, by: TombstoneId },
}

impl Element {
    /// The element of a tree in this state.
    #[must_use]
    pub fn of_tree(tree: TreeId, state: &TreeState) -> Self {
        match state.purged {
            Some(purge) => Self::Purged { tree, by: purge.by },
            None => Self::Tree { tree, heads_hash: heads_hash(&tree, &state.heads) },
        }
    }

    /// What the element is about: `None` for the ACL head, which sorts first.
    #[must_use]
    pub const fn key(&self) -> Option<TreeId> {
        match self {
            Self::AclHead(_) => None,
            Self::Tree { tree, .. } | Self::Purged { tree, .. } => Some(*tree),
        }
    }
}

/// One step of the set that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Insert(Element),
    Remove(Element),
}

/// What a decision does to the set: at most four steps.
pub fn steps(decision: &Decision) -> impl Iterator<Item = Step> {
    let tree = decision.tree();
    let before = tree.and_then(|t| t.before.as_ref().map(|b| Step::Remove(Element::of_tree(t.tree, b))));
    let after = tree.map(|t| Step::Insert(Element::of_tree(t.tree, &t.after)));
    let acl = decision
        .acl()
        .map(|acl| [Step::Remove(Element::AclHead(decision.acl_before())), Step::Insert(Element::AclHead(acl.head))]);
    before.into_iter().chain(after).chain(acl.into_iter().flatten())
}

/// What two replicas do not agree on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    /// Trees that differ, sorted. From lists, those that only the other side has, too.
    pub trees: Vec<TreeId>,
    pub acl: bool,
    /// Trees that only the other side has, as far as cells tell; a prefix for each.
    pub elsewhere: Vec<TreePrefix>,
}

impl Difference {
    /// Trees that are not the same on both sides.
    #[must_use]
    pub const fn trees_len(&self) -> usize {
        self.trees.len() + self.elsewhere.len()
    }
}

/// Compares two whole sets. Both come as pages elsewhere; here they are collected.
#[must_use]
pub fn difference(ours: &[Element], theirs: &[Element]) -> Difference {
    let by_key = |elements: &[Element]| elements.iter().map(|e| (e.key(), *e)).collect::<BTreeMap<_, _>>();
    let (ours, theirs) = (by_key(ours), by_key(theirs));
    let mut found = Difference::default();
    let keys: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    for key in keys {
        if ours.get(key) == theirs.get(key) {
            continue;
        }
        match key {
            None => found.acl = true,
            Some(tree) => found.trees.push(*tree),
        }
    }
    found
}
