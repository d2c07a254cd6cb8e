//! Comparing two replicas without trusting one's own bookkeeping.
//!
//! What is compared is a set with one [`Element`] per live tree (its logged heads), one per purged tree, and one for the ACL
//! head. A [`SetDigest`] sums the set up so that every log entry costs a constant amount of work; it is stored with the log
//! head, in the same transaction, and compared only at equal `seq`. When two digests differ, sorted pages of elements find
//! the trees that differ.
//!
//! The digest is LtHash (Bellare and Micciancio 1997; Lewi et al., IACR ePrint 2019/227) with 1,024 lanes of 16 bits over
//! the BLAKE3 XOF. Unlike a XOR of hashes, nobody can make two sets with one digest.

use std::collections::BTreeMap;

use crate::acl::AclState;
use crate::ids::{AclId, TombstoneId, TreeId};
use crate::log::{Decision, TreeState};
use crate::tree::heads_hash;

const LANES: usize = 1024;

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

    fn lanes(&self) -> [u16; LANES] {
        let mut hasher = blake3::Hasher::new_derive_key("headwater/set-element/v1");
        let (tag, first, second): (u8, &[u8; 32], &[u8]) = match self {
            Self::AclHead(head) => (0, head.as_bytes(), &[]),
            Self::Tree { tree, heads_hash } => (1, tree.as_bytes(), heads_hash),
            Self::Purged { tree, by } => (2, tree.as_bytes(), by.as_bytes()),
        };
        hasher.update(&[tag]).update(first).update(second);
        let mut bytes = [0; LANES * 2];
        hasher.finalize_xof().fill(&mut bytes);
        lanes_from(&bytes)
    }
}

fn lanes_from(bytes: &[u8; LANES * 2]) -> [u16; LANES] {
    std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]))
}

/// The sum of a set of elements.
#[derive(Clone, PartialEq, Eq)]
pub struct SetDigest(Box<[u16; LANES]>);

impl SetDigest {
    /// Bytes of the stored form.
    pub const BYTES: usize = LANES * 2;

    /// The digest of nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self(Box::new([0; LANES]))
    }

    /// The digest right after a space began.
    #[must_use]
    pub fn of_genesis(acl: &AclState) -> Self {
        let mut digest = Self::empty();
        digest.insert(&Element::AclHead(acl.head));
        digest
    }

    pub fn insert(&mut self, element: &Element) {
        for (lane, add) in self.0.iter_mut().zip(element.lanes()) {
            *lane = lane.wrapping_add(add);
        }
    }

    pub fn remove(&mut self, element: &Element) {
        for (lane, sub) in self.0.iter_mut().zip(element.lanes()) {
            *lane = lane.wrapping_sub(sub);
        }
    }

    /// Follows one decision.
    pub fn apply(&mut self, decision: &Decision) {
        if let Some(update) = decision.tree() {
            if let Some(before) = &update.before {
                self.remove(&Element::of_tree(update.tree, before));
            }
            self.insert(&Element::of_tree(update.tree, &update.after));
        }
        if let Some(acl) = decision.acl() {
            self.remove(&Element::AclHead(decision.acl_before()));
            self.insert(&Element::AclHead(acl.head));
        }
    }

    /// 32 bytes for the wire.
    #[must_use]
    pub fn finish(&self) -> [u8; 32] {
        blake3::derive_key("headwater/set-digest/v1", &self.to_bytes())
    }

    /// The stored form, [`SetDigest::BYTES`] long.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|lane| lane.to_le_bytes()).collect()
    }

    /// Reads what [`SetDigest::to_bytes`] wrote; `None` for another length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(Box::new(lanes_from(bytes.try_into().ok()?))))
    }
}

impl std::fmt::Debug for SetDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SetDigest({})", blake3::Hash::from(self.finish()).to_hex())
    }
}

/// What two replicas do not agree on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    /// Trees that differ or that one side lacks, sorted.
    pub trees: Vec<TreeId>,
    pub acl: bool,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(n: u8) -> Element {
        Element::Tree { tree: TreeId::from_hash([n; 32]), heads_hash: [n; 32] }
    }

    #[test]
    fn the_digest_depends_on_the_set_alone() {
        let mut one = SetDigest::empty();
        let mut two = SetDigest::empty();
        for n in 0..20 {
            one.insert(&tree(n));
            two.insert(&tree(19 - n));
        }
        assert_eq!(one, two);
        two.insert(&tree(77));
        assert_ne!(one.finish(), two.finish());
        two.remove(&tree(77));
        assert_eq!(one.finish(), two.finish());
        assert_eq!(SetDigest::from_bytes(&one.to_bytes()), Some(one));
    }

    #[test]
    fn every_difference_is_found() {
        let ours = [tree(1), tree(2), Element::AclHead(AclId::from_hash([0; 32]))];
        let mut changed = tree(2);
        if let Element::Tree { heads_hash, .. } = &mut changed {
            heads_hash[0] ^= 1;
        }
        let theirs = [tree(3), changed, Element::AclHead(AclId::from_hash([1; 32]))];
        let trees = [1, 2, 3].map(|n| TreeId::from_hash([n; 32])).to_vec();
        assert_eq!(difference(&ours, &theirs), Difference { trees, acl: true });
        assert_eq!(difference(&ours, &ours), Difference::default());
    }
}
