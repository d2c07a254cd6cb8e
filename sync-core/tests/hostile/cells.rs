//! What a fuzzer runs: a comparison with a side that sends what it likes, and an honest one whose cells were touched.

use sync_core::ids::TreeId;
use sync_core::reconcile::{Asking, Element, Next, Sketch, SymbolKey, block_after, difference, encode_cells};

const CELLS: usize = 256;

/// Runs one input. Panics if a bound or a promise is broken.
pub(crate) fn run(input: &[u8]) {
    let key = SymbolKey::new(&[5; 32]);
    let ours: Vec<Element> = (0..40).map(|n| element(n, 0)).collect();
    let mut sketch = Sketch::empty(key.clone(), CELLS);
    ours.iter().for_each(|element| sketch.insert(element));
    noise(&key, &sketch, input);
    touched(&key, &sketch, &ours, input);
}

fn element(n: u8, heads: u8) -> Element {
    let mut tree = [n; 32];
    // A few share a prefix.
    tree[..8].fill(n / 4);
    Element::Tree { tree: TreeId::from_hash(tree), heads_hash: [heads; 32] }
}

/// The input is the blocks.
fn noise(key: &SymbolKey, ours: &Sketch, input: &[u8]) {
    let (elements, mut rest) = input.split_first_chunk::<8>().map_or((0, input), |(n, r)| (u64::from_le_bytes(*n), r));
    let mut asking = Asking::new(key.clone(), elements);
    while let Some(block) = block_after(asking.cells()).filter(|block| block.end <= CELLS) {
        let (now, later) = rest.split_at(rest.len().min(block.len() * 33));
        rest = later;
        if asking.take(now).is_err() {
            return;
        }
        assert_eq!(asking.cells(), block.end, "a block is taken whole");
        match asking.next(ours) {
            Ok(Next::More) => {}
            Ok(Next::Decoded(decoded)) => {
                assert!(decoded.theirs.len() + decoded.ours.len() <= asking.cells(), "more symbols than cells");
                return;
            }
            Ok(Next::List) | Err(_) => return,
        }
    }
}

/// The input says which trees differ, and which bytes of honest cells are changed: what is decoded all the same is right.
fn touched(key: &SymbolKey, ours: &Sketch, set: &[Element], input: &[u8]) {
    let (changed, edits) = input.split_at(input.len() / 2);
    let mut theirs = ours.clone();
    let mut there = set.to_vec();
    for byte in changed.iter().take(20) {
        let n = byte % 40;
        let after = element(n, byte / 40 + 1);
        let before = std::mem::replace(&mut there[usize::from(n)], after);
        theirs.remove(&before);
        theirs.insert(&after);
    }
    let mut asking = Asking::new(key.clone(), theirs.elements());
    while let Some(block) = block_after(asking.cells()).filter(|block| block.end <= CELLS) {
        let mut sent = encode_cells(&theirs.cells()[block.clone()], block.start, theirs.elements());
        for edit in edits.chunks_exact(3).take(4) {
            let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
            if let Some(byte) = sent.get_mut(at) {
                *byte ^= edit[2];
            }
        }
        if asking.take(&sent).is_err() {
            return;
        }
        match asking.next(ours) {
            Ok(Next::More) => {}
            Ok(Next::Decoded(decoded)) => {
                let found = decoded.resolve(key, set).expect("what is ours is here");
                assert_eq!(found, difference(set, &there), "a wrong difference");
                return;
            }
            Ok(Next::List) | Err(_) => return,
        }
    }
}
