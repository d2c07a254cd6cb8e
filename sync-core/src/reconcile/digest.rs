//! The sum of a set of elements: LtHash (Bellare and Micciancio 1997; Lewi et al., IACR ePrint 2019/227) with 1,024 lanes of
//! 16 bits over the BLAKE3 XOF. Unlike a XOR of hashes, nobody can make two sets with one digest.

use super::{Element, Step, steps};
use crate::acl::AclState;
use crate::log::Decision;

const LANES: usize = 1024;

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
        for (lane, add) in self.0.iter_mut().zip(lanes_of(element)) {
            *lane = lane.wrapping_add(add);
        }
    }

    pub fn remove(&mut self, element: &Element) {
        for (lane, sub) in self.0.iter_mut().zip(lanes_of(element)) {
            *lane = lane.wrapping_sub(sub);
        }
    }

    /// Follows one decision.
    pub fn apply(&mut self, decision: &Decision) {
        for step in steps(decision) {
            match step {
                Step::Insert(element) => self.insert(&element),
                Step::Remove(element) => self.remove(&element),
            }
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

fn lanes_of(element: &Element) -> [u16; LANES] {
    let mut hasher = blake3::Hasher::new_derive_key("headwater/set-element/v1");
    let (tag, first, second): (u8, &[u8; 32], &[u8]) = match element {
        Element::AclHead(head) => (0, head.as_bytes(), &[]),
        Element::Tree { tree, heads_hash } => (1, tree.as_bytes(), heads_hash),
        Element::Purged { tree, by } => (2, tree.as_bytes(), by.as_bytes()),
    };
    hasher.update(&[tag]).update(first).update(second);
    let mut bytes = [0; LANES * 2];
    hasher.finalize_xof().fill(&mut bytes);
    lanes_from(&bytes)
}

fn lanes_from(bytes: &[u8; LANES * 2]) -> [u16; LANES] {
    std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TreeId;

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
}
