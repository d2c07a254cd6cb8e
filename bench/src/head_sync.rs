//! HeadSync: bytes and round trips to find what differs, beside a range-based protocol on the same sets; and what keeping a
//! sketch up to date costs. Counts, so they do not depend on the machine.

use bytes::Bytes;
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use nix::time::{ClockId, clock_gettime};
use prost::Message as _;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;
use sync_core::ids::TreeId;
use sync_core::limits;
use sync_core::reconcile::{Asking, Element, Next, Sketch, SymbolKey, block_after, encode_cells};
use sync_proto::v1::{self, head_sync_request::Message as Ask, head_sync_response::Message as Answer};
use sync_tests::harness::Outcome;

use crate::Row;

const SIZES: [usize; 3] = [10_000, 100_000, 1_000_000];
const CHANGED: [usize; 3] = [0, 10, 1_000];
const KEYS: usize = 100;
/// The other protocol has no key; every run of it has other changes.
const PEER_RUNS: usize = 20;
/// What gRPC puts before each message.
const FRAME_BYTES: usize = 5;

/// What one comparison cost, both ways.
#[derive(Clone, Copy, Default)]
struct Cost {
    bytes: usize,
    round_trips: usize,
}

impl Cost {
    fn request(&mut self, message: Ask) {
        let message = v1::HeadSyncRequest { message: Some(message) };
        self.bytes += FRAME_BYTES + message.encoded_len();
        self.round_trips += 1;
    }

    fn answer(&mut self, message: Answer) {
        self.bytes += FRAME_BYTES + v1::HeadSyncResponse { message: Some(message) }.encoded_len();
    }
}

/// Two tables: comparisons, and upkeep.
pub(crate) fn run() -> Outcome<Vec<String>> {
    let mut lines = vec![
        String::new(),
        format!(
            "HeadSync: bytes both ways (round trips); Headwater over {KEYS} keys, negentropy over {PEER_RUNS} sets."
        ),
        String::new(),
        "| trees | changed | Headwater, median | Headwater, 99 of 100 | negentropy, median | negentropy, most |"
            .to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for trees in SIZES {
        let mut rng = ChaCha20Rng::seed_from_u64(trees as u64);
        let set: Vec<Element> = (0..trees).map(|_| live(TreeId::from_hash(random(&mut rng)), &mut rng)).collect();
        let ours = of_headwater(&set, &mut rng)?;
        let peer = of_negentropy(&set, &mut rng)?;
        for (changed, (ours, peer)) in CHANGED.into_iter().zip(ours.into_iter().zip(peer)) {
            let [ours_median, ours_99] = [0.5, 0.99].map(|part| at(&ours, part));
            let [peer_median, peer_most] = [0.5, 1.0].map(|part| at(&peer, part));
            lines.push(format!("| {trees} | {changed} | {ours_median} | {ours_99} | {peer_median} | {peer_most} |"));
        }
    }
    lines.extend([String::new(), "| benchmark | what | median | least | most |\n|---|---|---|---|---|".to_owned()]);
    lines.extend(upkeep()?.into_iter().map(|row| row.to_string()));
    Ok(lines)
}

/// Bytes and round trips each at its place in the order.
fn at(costs: &[Cost], part: f64) -> String {
    let pick = |mut values: Vec<usize>| {
        values.sort_unstable();
        values[((values.len() - 1) as f64 * part).round() as usize]
    };
    let bytes = pick(costs.iter().map(|c| c.bytes).collect());
    format!("{bytes} ({})", pick(costs.iter().map(|c| c.round_trips).collect()))
}

fn random(rng: &mut ChaCha20Rng) -> [u8; 32] {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn live(tree: TreeId, rng: &mut ChaCha20Rng) -> Element {
    Element::Tree { tree, heads_hash: random(rng) }
}

/// So many trees of the set, each with what it became.
fn changes(set: &[Element], changed: usize, rng: &mut ChaCha20Rng) -> Vec<(usize, Element)> {
    let mut places = std::collections::BTreeSet::new();
    while places.len() < changed {
        places.insert(rng.random_range(0..set.len()));
    }
    places.into_iter().filter_map(|place| Some((place, live(set[place].key()?, rng)))).collect()
}

/// For each number of changed trees, the cost under each key.
fn of_headwater(set: &[Element], rng: &mut ChaCha20Rng) -> Outcome<[Vec<Cost>; 3]> {
    let mut costs: [Vec<Cost>; 3] = Default::default();
    for _ in 0..KEYS {
        let seed = random(rng);
        let key = SymbolKey::new(&seed);
        let mut ours = Sketch::empty(key.clone(), limits::HEADSYNC_SKETCH_CELLS);
        set.iter().for_each(|element| ours.insert(element));
        for (changed, costs) in CHANGED.into_iter().zip(&mut costs) {
            let mut theirs = ours.clone();
            for (place, after) in changes(set, changed, rng) {
                theirs.remove(&set[place]);
                theirs.insert(&after);
            }
            costs.push(compare(seed, &ours, &theirs, changed)?);
        }
    }
    Ok(costs)
}

/// One comparison, in the messages of the protocol.
fn compare(seed: [u8; 32], ours: &Sketch, theirs: &Sketch, changed: usize) -> Outcome<Cost> {
    let mut cost = Cost::default();
    let id = Bytes::from_static(&[1; 32]);
    let seq = theirs.elements() * 3;
    cost.request(Ask::Open(v1::HeadSyncOpen { space: id.clone(), seq, digest: id.clone() }));
    if changed == 0 {
        cost.answer(Answer::Equal(v1::HeadSyncEqual { seq }));
        return Ok(cost);
    }
    let mut asking = Asking::new(ours.key().clone(), theirs.elements());
    loop {
        let block = block_after(asking.cells()).ok_or("no more blocks")?;
        let cells: Bytes = encode_cells(&theirs.cells()[block.clone()], block.start, theirs.elements()).into();
        cost.answer(if block.start == 0 {
            let (elements, key) = (theirs.elements(), Bytes::copy_from_slice(&seed));
            Answer::Different(v1::HeadSyncDifferent { seq, digest: id.clone(), elements, key, cells: cells.clone() })
        } else {
            Answer::Cells(v1::HeadSyncCells { cells: cells.clone() })
        });
        asking.take(&cells)?;
        match asking.next(ours)? {
            Next::Decoded(found) if found.ours.len() == changed && found.theirs.len() == changed => return Ok(cost),
            Next::Decoded(_) | Next::List => return Err("a wrong difference".into()),
            Next::More => cost.request(Ask::More(v1::HeadSyncMore {})),
        }
    }
}

/// The same for negentropy, whose items are ids: hashes of the elements. Without any framing.
fn of_negentropy(set: &[Element], rng: &mut ChaCha20Rng) -> Outcome<[Vec<Cost>; 3]> {
    let ids: Vec<Id> = set.iter().map(item).collect();
    let ours = sealed(ids.iter().copied())?;
    let mut costs: [Vec<Cost>; 3] = Default::default();
    for (changed, costs) in CHANGED.into_iter().zip(&mut costs) {
        for _ in 0..PEER_RUNS {
            let mut there = ids.clone();
            for (place, after) in changes(set, changed, rng) {
                there[place] = item(&after);
            }
            costs.push(compare_ranges(&ours, &sealed(there.into_iter())?, changed)?);
        }
    }
    Ok(costs)
}

/// Trees and heads are random, and so is this sum of both.
fn item(element: &Element) -> Id {
    let Element::Tree { tree, heads_hash } = element else { return Id::from_byte_array([0; 32]) };
    Id::from_byte_array(std::array::from_fn(|i| tree.as_bytes()[i] ^ heads_hash[i]))
}

fn sealed(ids: impl Iterator<Item = Id>) -> Outcome<NegentropyStorageVector> {
    let mut storage = NegentropyStorageVector::new();
    for id in ids {
        storage.insert(0, id)?;
    }
    storage.seal()?;
    Ok(storage)
}

fn compare_ranges(ours: &NegentropyStorageVector, theirs: &NegentropyStorageVector, changed: usize) -> Outcome<Cost> {
    let mut asking = Negentropy::borrowed(ours, 0)?;
    let mut answering = Negentropy::borrowed(theirs, 0)?;
    let (mut have, mut need) = (Vec::new(), Vec::new());
    let mut cost = Cost::default();
    let mut asked = Some(asking.initiate()?);
    while let Some(question) = asked {
        let answer = answering.reconcile(&question)?;
        cost.bytes += question.len() + answer.len();
        cost.round_trips += 1;
        asked = asking.reconcile_with_ids(&answer, &mut have, &mut need)?;
    }
    match have.len() == changed && need.len() == changed {
        true => Ok(cost),
        false => Err("negentropy found another difference".into()),
    }
}

/// What a head change costs a space whose sketch is kept: the element before goes, the one after comes.
fn upkeep() -> Outcome<Vec<Row>> {
    const RUNS: usize = 21;
    const CHANGES: u32 = 20_000;
    let mut rng = ChaCha20Rng::seed_from_u64(3);
    let moves: Vec<(Element, Element)> = (0..CHANGES)
        .map(|_| {
            let tree = TreeId::from_hash(random(&mut rng));
            (live(tree, &mut rng), live(tree, &mut rng))
        })
        .collect();
    let [mut sketches, mut digests] = [const { Vec::new() }; 2];
    for _ in 0..RUNS {
        let mut sketch = Sketch::empty(SymbolKey::new(&random(&mut rng)), limits::HEADSYNC_SKETCH_CELLS);
        let begun = processor_us()?;
        for (before, after) in &moves {
            sketch.remove(before);
            sketch.insert(after);
        }
        sketches.push((processor_us()? - begun) / f64::from(CHANGES));
        let mut digest = sync_core::reconcile::SetDigest::empty();
        let begun = processor_us()?;
        for (before, after) in &moves {
            digest.remove(before);
            digest.insert(after);
        }
        digests.push((processor_us()? - begun) / f64::from(CHANGES));
    }
    Ok(vec![
        Row::new("HeadSync, a head change", "Headwater: a hot sketch", sketches, "µs"),
        Row::new("HeadSync, a head change", "beside it: the digest", digests, "µs"),
    ])
}

/// What this thread has had of the processor, which other programs share.
fn processor_us() -> Outcome<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 * 1e6 + time.tv_nsec() as f64 / 1e3)
}
