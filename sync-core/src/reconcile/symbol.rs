//! What an element is when it is coded: 24 bytes under a key that nobody knew when the element was made.

use super::Element;
use crate::ids::TreeId;

/// What symbols are keyed with; every comparison has its own, or a node one for each space and life of its process.
///
/// Who knows the key can grind elements that do not decode. It comes out with the first cells, and what does not decode is
/// listed instead.
#[derive(Clone)]
pub struct SymbolKey {
    tree: [u8; 32],
    purged: [u8; 32],
    acl: [u8; 32],
    check: [u8; 32],
}

/// An element as it is coded: the first eight bytes of its tree id (zero for the ACL head), then 16 bytes of a keyed hash of
/// all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Symbol(pub(super) [u64; 3]);

/// The first eight bytes of a tree id. Two trees may have the same, and somebody will grind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreePrefix(pub [u8; 8]);

impl SymbolKey {
    /// The key of a comparison.
    #[must_use]
    pub fn new(seed: &[u8; 32]) -> Self {
        let key = |of: &[u8]| *blake3::keyed_hash(seed, of).as_bytes();
        Self { tree: key(b"tree"), purged: key(b"purged"), acl: key(b"acl"), check: key(b"check") }
    }

    /// The symbol of an element.
    #[must_use]
    pub fn symbol(&self, element: &Element) -> Symbol {
        let mac = match element {
            Element::AclHead(head) => blake3::keyed_hash(&self.acl, head.as_bytes()),
            Element::Tree { tree, heads_hash } => of_two(&self.tree, tree, heads_hash),
            Element::Purged { tree, by } => of_two(&self.purged, tree, by.as_bytes()),
        };
        let prefix = element.key().map_or([0; 8], |tree| TreePrefix::of(&tree).0);
        let [low, high, ..] = words(mac.as_bytes());
        Symbol([u64::from_le_bytes(prefix), low, high])
    }

    pub(super) fn weigh(&self, symbol: Symbol) -> Weighed {
        let hash = blake3::keyed_hash(&self.check, &symbol.to_bytes());
        let [check, seed, ..] = words(hash.as_bytes());
        Weighed { symbol, check, seed }
    }
}

impl std::fmt::Debug for SymbolKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SymbolKey").finish_non_exhaustive()
    }
}

/// One block of the hash function.
fn of_two(key: &[u8; 32], tree: &TreeId, state: &[u8; 32]) -> blake3::Hash {
    let mut block = [0; 64];
    block[..32].copy_from_slice(tree.as_bytes());
    block[32..].copy_from_slice(state);
    blake3::keyed_hash(key, &block)
}

fn words(bytes: &[u8; 32]) -> [u64; 4] {
    std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[8 * i + j])))
}

impl Symbol {
    /// Bytes of a symbol.
    pub const BYTES: usize = 24;

    /// What it is about: trees with this prefix, or the ACL head for zeros.
    #[must_use]
    pub const fn prefix(&self) -> TreePrefix {
        TreePrefix(self.0[0].to_le_bytes())
    }

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self(std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[8 * i + j]))))
    }
}

impl TreePrefix {
    /// What the ACL head has in the place of a tree's prefix.
    pub const ACL: Self = Self([0; 8]);

    /// The prefix of a tree.
    #[must_use]
    pub fn of(tree: &TreeId) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *tree.as_bytes();
        Self([a, b, c, d, e, f, g, h])
    }
}

/// A symbol with what tells it from a sum of symbols, and what chooses its cells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weighed {
    pub(super) symbol: Symbol,
    pub(super) check: u64,
    seed: u64,
}

impl Weighed {
    /// The cells below `end` that the symbol is part of, in order. The first is always 0.
    pub(super) const fn places(&self, end: usize) -> Places {
        Places { state: self.seed, next: 0, end: end as u64 }
    }
}

/// Cell `i` has a symbol with probability 1 / (1 + i/2). The distance to the next one is drawn by inverting that density
/// (Yang et al., "Practical Rateless Set Reconciliation", SIGCOMM 2024, section 4.2), in integers, so that it is the same on
/// every machine.
pub(super) struct Places {
    state: u64,
    next: u64,
    end: u64,
}

impl Iterator for Places {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let place = self.next;
        if place >= self.end {
            return None;
        }
        // SplitMix64: a step of a counter and a finaliser.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut r = self.state;
        r = (r ^ (r >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        r = (r ^ (r >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        r ^= r >> 31;
        // u in (0, 1) as u / 2^32; then root is 2^32 * sqrt(u), and the gap (place + 3/2) * (1 / sqrt(u) - 1), rounded up.
        let u = (r >> 32) | 1;
        let root = isqrt(u << 32);
        let gap = (2 * place + 3).saturating_mul((1 << 32) - root).div_ceil(2 * root);
        self.next = place.saturating_add(gap.max(1));
        usize::try_from(place).ok()
    }
}

/// `n.isqrt()`, several times as fast: the processor's root, made exact. Not for the last 2^32 numbers.
fn isqrt(n: u64) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate, which is corrected"
    )]
    let estimate = ((n as f64).sqrt() as u64).min(u64::from(u32::MAX));
    if estimate * estimate > n {
        return estimate - 1;
    }
    let next = estimate + 1;
    if next.checked_mul(next).is_some_and(|square| square <= n) { next } else { estimate }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{AclId, TombstoneId};

    #[test]
    fn roots_are_exact() {
        let mut n = 1_u64;
        for _ in 0..100_000 {
            n = n.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let u = (n >> 32) | 1;
            assert_eq!(isqrt(u << 32), (u << 32).isqrt());
            let square = (n >> 33) * (n >> 33);
            for near in [square.saturating_sub(1), square, square + 1] {
                assert_eq!(isqrt(near), near.isqrt(), "{near}");
            }
        }
        assert_eq!(isqrt(u64::from(u32::MAX) << 32), (u64::from(u32::MAX) << 32).isqrt());
        assert_eq!(isqrt(0), 0);
    }

    #[test]
    fn cells_have_a_symbol_with_the_density_of_the_paper() {
        let key = SymbolKey::new(&[7; 32]);
        let (symbols, cells) = (20_000, 200);
        let mut hits = vec![0_u32; cells];
        for n in 0..symbols {
            let weighed = key.weigh(Symbol([n, n, n]));
            weighed.places(cells).for_each(|place| hits[place] += 1);
        }
        for (i, hits) in hits.into_iter().enumerate() {
            let expected = symbols as f64 / (1.0 + i as f64 / 2.0);
            let spread = 6.0 * expected.sqrt() + 1.0;
            assert!((f64::from(hits) - expected).abs() < spread, "cell {i}: {hits}, not about {expected}");
        }
    }

    #[test]
    fn everything_that_differs_gives_another_symbol() {
        let (one, two) = (SymbolKey::new(&[1; 32]), SymbolKey::new(&[2; 32]));
        let tree = TreeId::from_hash([9; 32]);
        let elements = [
            Element::AclHead(AclId::from_hash([1; 32])),
            Element::AclHead(AclId::from_hash([2; 32])),
            Element::Tree { tree, heads_hash: [1; 32] },
            Element::Tree { tree, heads_hash: [2; 32] },
            Element::Purged { tree, by: TombstoneId::from_hash([1; 32]) },
            Element::Purged { tree, by: TombstoneId::from_hash([2; 32]) },
        ];
        let symbols: std::collections::BTreeSet<_> =
            [one, two].iter().flat_map(|key| elements.map(|e| key.symbol(&e))).collect();
        assert_eq!(symbols.len(), 12);
        assert_eq!(symbols.iter().filter(|s| s.prefix() == TreePrefix([9; 8])).count(), 8);
        assert_eq!(symbols.iter().filter(|s| s.prefix() == TreePrefix::ACL).count(), 4);
    }

    /// Both sides of a comparison may be of different builds: the places are part of the protocol.
    #[test]
    fn places_are_fixed_for_ever() {
        const PLACES: [usize; 18] = [0, 1, 3, 5, 8, 10, 19, 26, 29, 35, 69, 101, 110, 204, 216, 254, 278, 331];
        let weighed = SymbolKey::new(&[3; 32]).weigh(Symbol([1, 2, 3]));
        assert_eq!(weighed.places(1000).collect::<Vec<_>>(), PLACES);
    }
}
