//! The shape of a tree: heights, heads, and the one total order.
//!
//! A tree is a graph of changes under one root. The order of a set of changes is by `(height, id)`, where a first change has
//! height 1 and every other 1 + the greatest height of its parents: a parent always stands before its children, concurrent
//! changes stand by id, and the order depends on the set alone, never on arrival.

use std::collections::BTreeSet;

use crate::ids::{ChangeId, TreeId};

/// Distance from the root along the longest path. A first change has 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Height(pub u64);

impl Height {
    /// The height of a change with these parents. The root counts as 0.
    #[must_use]
    pub fn above(parents: impl IntoIterator<Item = Self>) -> Self {
        Self(1 + parents.into_iter().map(|h| h.0).max().unwrap_or(0))
    }
}

/// Where a change stands in the total order of its tree; also decides which of two operations on a field wins (the greater).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderKey {
    pub height: Height,
    pub id: ChangeId,
}

/// The heads after a change was added: changes without children.
#[must_use]
pub fn heads_after(heads: &BTreeSet<ChangeId>, id: ChangeId, parents: &[ChangeId]) -> BTreeSet<ChangeId> {
    let mut next: BTreeSet<_> = heads.iter().filter(|h| !parents.contains(h)).copied().collect();
    next.insert(id);
    next
}

/// One hash for the heads of a tree: what status, receipts and HeadSync compare.
#[must_use]
pub fn heads_hash(tree: &TreeId, heads: &BTreeSet<ChangeId>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("headwater/heads/v1");
    hasher.update(tree.as_bytes());
    for head in heads {
        hasher.update(head.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(n: u8) -> ChangeId {
        ChangeId::from_hash([n; 32])
    }

    #[test]
    fn heads_are_the_changes_without_children() {
        let root = change(0);
        let one = heads_after(&BTreeSet::new(), change(1), &[root]);
        let fork = heads_after(&one, change(2), &[root]);
        assert_eq!(fork, BTreeSet::from([change(1), change(2)]));
        let merge = heads_after(&fork, change(3), &[change(1), change(2)]);
        assert_eq!(merge, BTreeSet::from([change(3)]));
    }

    #[test]
    fn a_parent_stands_before_its_children() {
        let first = OrderKey { height: Height::above([]), id: change(9) };
        let second = OrderKey { height: Height::above([first.height]), id: change(1) };
        assert!(first < second);
        assert_eq!(second.height, Height(2));
    }
}
