use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::*;
use crate::limits;

const CELLS: usize = limits::HEADSYNC_SKETCH_CELLS;

/// A tree out of a small world in which many share a prefix.
fn tree(n: u16) -> TreeId {
    let mut id = [0; 32];
    id[0] = (n % 5) as u8;
    id[30..].copy_from_slice(&n.to_be_bytes());
    TreeId::from_hash(id)
}

fn random(rng: &mut ChaCha20Rng) -> [u8; 32] {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn live(n: u16, heads: u8) -> Element {
    Element::Tree { tree: tree(n), heads_hash: [heads; 32] }
}

fn purged(n: u16, by: u8) -> Element {
    Element::Purged { tree: tree(n), by: TombstoneId::from_hash([by; 32]) }
}

fn sketch(key: &SymbolKey, cells: usize, set: &[Element]) -> Sketch {
    let mut sketch = Sketch::empty(key.clone(), cells);
    set.iter().for_each(|element| sketch.insert(element));
    sketch
}

/// Both roles of one comparison, over the encoded form. Returns the outcome and how many blocks were sent.
fn compare(key: &SymbolKey, ours: &[Element], theirs: &[Element]) -> (Option<Difference>, usize) {
    let cells = limits::HEADSYNC_SKETCH_CELLS;
    let (mine, other) = (sketch(key, cells, ours), sketch(key, cells, theirs));
    let mut asking = Asking::new(key.clone(), other.elements());
    for blocks in 1.. {
        let block = block_after(asking.cells()).expect("far from the most");
        let sent = encode_cells(&other.cells()[block.clone()], block.start, other.elements());
        asking.take(&sent).expect("an honest block");
        match asking.next(&mine).expect("honest cells") {
            Next::Decoded(decoded) => {
                let prefixes = decoded.prefixes();
                let named = |e: &&Element| prefixes.contains(&e.key().map_or(TreePrefix::ACL, |t| TreePrefix::of(&t)));
                let candidates: Vec<Element> = ours.iter().filter(named).copied().collect();
                return (Some(decoded.resolve(key, &candidates).expect("our own symbols")), blocks);
            }
            Next::More => {}
            Next::List => return (None, blocks),
        }
    }
    unreachable!("blocks end")
}

/// What two sets differ in, worked out without any coding.
fn plain(ours: &[Element], theirs: &[Element]) -> Difference {
    let (ours, theirs): (BTreeSet<_>, BTreeSet<_>) = (ours.iter().collect(), theirs.iter().collect());
    let mut found = Difference::default();
    let mut here: BTreeMap<TreePrefix, usize> = BTreeMap::new();
    for element in ours.difference(&theirs) {
        let Some(tree) = element.key() else {
            found.acl = true;
            continue;
        };
        found.trees.push(tree);
        *here.entry(TreePrefix::of(&tree)).or_default() += 1;
    }
    found.trees.sort_unstable();
    let mut elsewhere = Vec::new();
    for element in theirs.difference(&ours) {
        let Some(tree) = element.key() else { continue };
        let prefix = TreePrefix::of(&tree);
        match here.get_mut(&prefix).filter(|count| **count > 0) {
            Some(count) => *count -= 1,
            None => elsewhere.push(prefix),
        }
    }
    elsewhere.sort_unstable();
    found.elsewhere = elsewhere;
    found
}

/// One thing that happens to a set, as a log would make it happen.
#[derive(Debug, Clone, Copy)]
enum Op {
    Write(u16, u8),
    Purge(u16, u8),
    Acl(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0..60_u16, any::<u8>()).prop_map(|(n, heads)| Op::Write(n, heads)),
        1 => (0..60_u16, any::<u8>()).prop_map(|(n, by)| Op::Purge(n, by)),
        1 => any::<u8>().prop_map(Op::Acl),
    ];
    prop::collection::vec(op, 0..120)
}

/// A set and everything that is kept of it while it moves.
struct Replica {
    elements: BTreeMap<Option<TreeId>, Element>,
    digest: SetDigest,
    sketch: Sketch,
}

impl Replica {
    fn new(key: &SymbolKey) -> Self {
        let (digest, sketch) = (SetDigest::empty(), Sketch::empty(key.clone(), CELLS));
        let mut replica = Self { elements: BTreeMap::new(), digest, sketch };
        replica.put(Element::AclHead(AclId::from_hash([0; 32])));
        replica
    }

    fn put(&mut self, element: Element) {
        if let Some(before) = self.elements.insert(element.key(), element) {
            self.digest.remove(&before);
            self.sketch.apply(&Step::Remove(before));
        }
        self.digest.insert(&element);
        self.sketch.apply(&Step::Insert(element));
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Acl(head) => self.put(Element::AclHead(AclId::from_hash([head; 32]))),
            Op::Write(n, _) | Op::Purge(n, _)
                if matches!(self.elements.get(&Some(tree(n))), Some(Element::Purged { .. })) => {}
            Op::Write(n, heads) => self.put(live(n, heads)),
            Op::Purge(n, by) => self.put(purged(n, by)),
        }
    }

    fn set(&self) -> Vec<Element> {
        self.elements.values().copied().collect()
    }
}

proptest! {
    #[test]
    fn what_is_kept_up_to_date_equals_a_fresh_build(seed: [u8; 32], ops in ops(), shuffle: u64) {
        let key = SymbolKey::new(&seed);
        let mut replica = Replica::new(&key);
        ops.into_iter().for_each(|op| replica.apply(op));
        let mut set = replica.set();
        // Any order.
        let len = set.len();
        set.rotate_left(usize::try_from(shuffle % len as u64).unwrap());
        let mut digest = SetDigest::empty();
        set.iter().for_each(|element| digest.insert(element));
        let fresh = sketch(&key, CELLS, &set);
        prop_assert_eq!(&digest, &replica.digest);
        prop_assert_eq!(fresh.cells(), replica.sketch.cells());
        prop_assert_eq!(fresh.elements(), replica.sketch.elements());
    }

    #[test]
    fn a_longer_sketch_begins_with_the_shorter_one(seed: [u8; 32], ops in ops(), cells in 1..500_usize) {
        let key = SymbolKey::new(&seed);
        let mut replica = Replica::new(&key);
        ops.into_iter().for_each(|op| replica.apply(op));
        let short = sketch(&key, cells, &replica.set());
        prop_assert_eq!(short.cells(), &replica.sketch.cells()[..cells]);
    }

    #[test]
    fn every_difference_between_two_lives_is_found(seed: [u8; 32], one in ops(), two in ops()) {
        let key = SymbolKey::new(&seed);
        let (mut ours, mut theirs) = (Replica::new(&key), Replica::new(&key));
        one.into_iter().for_each(|op| ours.apply(op));
        two.into_iter().for_each(|op| theirs.apply(op));
        let (ours, theirs) = (ours.set(), theirs.set());
        // Two small sets that have little in common are cheaper to list.
        if let (Some(found), _) = compare(&key, &ours, &theirs) {
            prop_assert_eq!(found, plain(&ours, &theirs));
        }
    }

    #[test]
    fn blocks_are_read_back(seed: [u8; 32], ops in ops(), first in 0..200_usize, len in 0..200_usize) {
        let key = SymbolKey::new(&seed);
        let mut replica = Replica::new(&key);
        ops.into_iter().for_each(|op| replica.apply(op));
        let cells = &replica.sketch.cells()[first..first + len];
        let elements = replica.sketch.elements();
        let sent = encode_cells(cells, first, elements);
        prop_assert_eq!(decode_cells(&sent, first, len, elements).unwrap(), cells);
        prop_assert!(decode_cells(&sent, first, len + 1, elements).is_err());
        if len > 0 {
            prop_assert!(decode_cells(&sent, first, len - 1, elements).is_err());
            prop_assert!(decode_cells(&sent[..sent.len() - 1], first, len, elements).is_err());
        }
    }

    #[test]
    fn hostile_blocks_are_refused_or_harmless(bytes: Vec<u8>, seed: [u8; 32], elements: u64, expected in 0..64_usize) {
        if let Ok(cells) = decode_cells(&bytes, 0, expected, elements) {
            let ours = sketch(&SymbolKey::new(&seed), expected, &[live(1, 1)]);
            let _ = peel(ours.key(), &cells, ours.cells());
        }
    }
}

/// A big common part does not matter: every number of changed, new and lost trees is found, whatever it is.
#[test]
fn every_difference_from_none_to_many_is_found_exactly() {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let common: Vec<Element> = (0..3000)
        .map(|_| Element::Tree { tree: TreeId::from_hash(random(&mut rng)), heads_hash: random(&mut rng) })
        .collect();
    for changed in (0..130).chain([200, 333, 500]) {
        let key = SymbolKey::new(&random(&mut rng));
        let mut theirs = common.clone();
        for (i, element) in theirs.iter_mut().enumerate().take(changed) {
            let Element::Tree { tree, heads_hash } = element else { unreachable!() };
            match i % 4 {
                0 => *element = Element::Purged { tree: *tree, by: TombstoneId::from_hash(random(&mut rng)) },
                // Lost on one side, new on the other.
                1 => *tree = TreeId::from_hash(random(&mut rng)),
                _ => *heads_hash = random(&mut rng),
            }
        }
        let (found, _) = compare(&key, &common, &theirs);
        assert_eq!(found, Some(plain(&common, &theirs)), "{changed} changed");
    }
}

/// Ids with one prefix are legal. Each tree is told apart by its own symbol.
#[test]
fn trees_that_share_a_prefix_are_told_apart() {
    let key = SymbolKey::new(&[4; 32]);
    let ours: Vec<Element> = (0..400).map(|n| live(n, 1)).collect();
    let mut theirs = ours.clone();
    for n in [0, 5, 10, 11, 399] {
        theirs[n] = live(u16::try_from(n).unwrap(), 2);
    }
    theirs.push(live(1000, 1));
    let (found, _) = compare(&key, &ours, &theirs);
    let found = found.expect("far cheaper than listing");
    assert_eq!(found.trees, [0, 5, 10, 11, 399].map(tree), "sorted by id");
    assert_eq!(found.elsewhere, [TreePrefix::of(&tree(1000))]);
}

#[test]
fn what_differs_in_nearly_everything_is_listed() {
    let key = SymbolKey::new(&[4; 32]);
    let set = |heads| (0..300).map(|n| live(n, heads)).collect::<Vec<_>>();
    assert_eq!(compare(&key, &set(1), &set(2)).0, None);
    assert_eq!(compare(&key, &[], &set(2)).0, Some(plain(&[], &set(2))), "one side has nothing");
}

#[test]
fn lists_are_compared() {
    let ours = [live(1, 1), live(2, 1), Element::AclHead(AclId::from_hash([0; 32]))];
    let theirs = [live(3, 1), live(2, 2), Element::AclHead(AclId::from_hash([1; 32]))];
    let trees = [1, 2, 3].map(tree).to_vec();
    assert_eq!(difference(&ours, &theirs), Difference { trees, acl: true, elsewhere: Vec::new() });
    assert_eq!(difference(&ours, &ours), Difference::default());
}

/// Blocks grow by half, and stop.
#[test]
fn blocks_are_bounded() {
    let mut sent = 0;
    let (mut sizes, mut ends) = (Vec::new(), Vec::new());
    while let Some(block) = block_after(sent) {
        assert_eq!(block.start, sent);
        assert!(block.len() <= limits::HEADSYNC_BLOCK_CELLS_MAX);
        sizes.push(block.len());
        ends.push(block.end);
        sent = block.end;
    }
    assert_eq!(sizes[..5], [32, 16, 24, 36, 54]);
    assert!(ends.contains(&limits::HEADSYNC_SKETCH_CELLS), "a sketch ends with a block");
    assert!(sent <= limits::HEADSYNC_CELLS_MAX && sent > limits::HEADSYNC_CELLS_MAX / 2);
}

/// The key's owner can make cells that hold what is in no set, or the same thing twice.
#[test]
fn cells_that_are_of_no_set_are_refused() {
    let key = SymbolKey::new(&[8; 32]);
    let weighed = key.weigh(key.symbol(&live(1, 1)));
    let nothing = Sketch::empty(key.clone(), 64);

    // In a cell that is not its own.
    let other = (0..64).find(|i| weighed.places(64).all(|place| place != *i)).unwrap();
    let mut cells = nothing.cells().to_vec();
    cells[other].put(&weighed, 1);
    assert_eq!(peel(&key, &cells, nothing.cells()), Err(SketchError::Contradiction));

    // Taken out of one place, it comes back in another.
    let mut cells = nothing.cells().to_vec();
    for place in weighed.places(64).skip(1) {
        cells[place].put(&weighed, 1);
    }
    assert_eq!(peel(&key, &cells, nothing.cells()), Err(SketchError::Contradiction));

    // All of one cell gone: never a complete difference.
    let mut cells = sketch(&key, 64, &[live(1, 1), live(2, 1)]).cells().to_vec();
    cells[0] = Cell::default();
    assert!(!matches!(peel(&key, &cells, nothing.cells()), Ok(Some(_))));
}

/// A difference that names elements of ours that are not here is not one.
#[test]
fn a_decoded_difference_is_held_against_our_own_set() {
    let key = SymbolKey::new(&[8; 32]);
    let decoded = Decoded { theirs: Vec::new(), ours: vec![key.symbol(&live(1, 1))] };
    assert_eq!(decoded.resolve(&key, &[live(1, 2)]), Err(SketchError::NotOurs));
    assert_eq!(decoded.resolve(&key, &[live(1, 1)]).unwrap().trees, [tree(1)]);
}
