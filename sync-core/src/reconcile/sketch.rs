//! The coded form of a set: a prefix of its cells, kept while the set changes.

use super::symbol::{Symbol, SymbolKey, Weighed};
use super::{Element, Step};

/// The sum of the symbols that lie in one place. Linear: the cell of a union is the sum, that of a difference the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cell {
    pub(super) sum: [u64; 3],
    pub(super) check: u64,
    pub(super) count: i64,
}

/// A number of cells of one set: what a rateless coder would send first. Longer sketches of one set under one key begin with
/// the same cells.
#[derive(Debug, Clone)]
pub struct Sketch {
    key: SymbolKey,
    cells: Vec<Cell>,
    elements: u64,
}

/// Why a block of cells cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SketchError {
    #[error("a cell is cut off or malformed")]
    Malformed,
    #[error("a block has {actual} cells where {expected} were due")]
    Count { expected: usize, actual: usize },
    #[error("the cells contradict each other")]
    Contradiction,
    #[error("a decoded difference names an element that is not here")]
    NotOurs,
}

impl Cell {
    /// Bytes of a cell in memory.
    pub const BYTES: usize = size_of::<Self>();
    /// A cell on the wire is its sum, its check, and a count of one to ten bytes.
    const WIRE_BYTES_MIN: usize = Symbol::BYTES + 8 + 1;

    pub(super) const fn is_zero(&self) -> bool {
        let Self { sum: [a, b, c], check, count } = *self;
        (a | b | c | check) == 0 && count == 0
    }

    pub(super) fn put(&mut self, weighed: &Weighed, times: i64) {
        for (sum, word) in self.sum.iter_mut().zip(weighed.symbol.0) {
            *sum ^= word;
        }
        self.check ^= weighed.check;
        self.count = self.count.wrapping_add(times);
    }

    pub(super) fn minus(mut self, other: &Self) -> Self {
        for (sum, word) in self.sum.iter_mut().zip(other.sum) {
            *sum ^= word;
        }
        self.check ^= other.check;
        self.count = self.count.wrapping_sub(other.count);
        self
    }
}

impl Sketch {
    /// `cells` cells of the empty set.
    #[must_use]
    pub fn empty(key: SymbolKey, cells: usize) -> Self {
        Self { key, cells: vec![Cell::default(); cells], elements: 0 }
    }

    /// The first cells.
    #[must_use]
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// What its symbols are keyed with.
    #[must_use]
    pub const fn key(&self) -> &SymbolKey {
        &self.key
    }

    /// How many elements the set has.
    #[must_use]
    pub const fn elements(&self) -> u64 {
        self.elements
    }

    /// Bytes that it takes in memory.
    #[must_use]
    pub const fn bytes(cells: usize) -> usize {
        size_of::<Self>() + cells * Cell::BYTES
    }

    pub fn insert(&mut self, element: &Element) {
        self.elements = self.elements.wrapping_add(1);
        self.put(element, 1);
    }

    pub fn remove(&mut self, element: &Element) {
        self.elements = self.elements.wrapping_sub(1);
        self.put(element, -1);
    }

    /// Follows one step of a set.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Insert(element) => self.insert(element),
            Step::Remove(element) => self.remove(element),
        }
    }

    fn put(&mut self, element: &Element, times: i64) {
        let weighed = self.key.weigh(self.key.symbol(element));
        for place in weighed.places(self.cells.len()) {
            self.cells[place].put(&weighed, times);
        }
    }
}

/// The cells of one block, whose first is number `first` of a set of `elements`. A count is sent as what it has more than a
/// cell at its place has on average, so that it is short for every size of set.
#[must_use]
pub fn encode_cells(cells: &[Cell], first: usize, elements: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(cells.len() * (Cell::WIRE_BYTES_MIN + 1));
    for (place, cell) in (first..).zip(cells) {
        bytes.extend(Symbol(cell.sum).to_bytes());
        bytes.extend(cell.check.to_le_bytes());
        put_varint(&mut bytes, zigzag(cell.count.wrapping_sub(average_count(place, elements))));
    }
    bytes
}

/// Reads what [`encode_cells`] wrote: exactly `expected` cells.
///
/// # Errors
/// [`SketchError::Malformed`], [`SketchError::Count`].
pub fn decode_cells(bytes: &[u8], first: usize, expected: usize, elements: u64) -> Result<Vec<Cell>, SketchError> {
    if bytes.len() / Cell::WIRE_BYTES_MIN < expected {
        return Err(SketchError::Count { expected, actual: bytes.len() / Cell::WIRE_BYTES_MIN });
    }
    let mut cells = Vec::with_capacity(expected);
    let mut rest = bytes;
    while !rest.is_empty() {
        if cells.len() == expected {
            return Err(SketchError::Count { expected, actual: expected + 1 });
        }
        let (sum, after) = rest.split_first_chunk().ok_or(SketchError::Malformed)?;
        let (check, after) = after.split_first_chunk().ok_or(SketchError::Malformed)?;
        let (more, after) = take_varint(after).ok_or(SketchError::Malformed)?;
        let count = unzigzag(more).wrapping_add(average_count(first + cells.len(), elements));
        cells.push(Cell { sum: Symbol::from_bytes(sum).0, check: u64::from_le_bytes(*check), count });
        rest = after;
    }
    if cells.len() == expected { Ok(cells) } else { Err(SketchError::Count { expected, actual: cells.len() }) }
}

fn average_count(place: usize, elements: u64) -> i64 {
    let average = u128::from(elements) * 2 / (place as u128 + 2);
    i64::try_from(average).unwrap_or(i64::MAX)
}

const fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)).cast_unsigned()
}

const fn unzigzag(n: u64) -> i64 {
    (n >> 1).cast_signed() ^ -((n & 1).cast_signed())
}

fn put_varint(bytes: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        bytes.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    bytes.push(n.to_le_bytes()[0]);
}

/// The shortest form only: one block has one spelling.
fn take_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut n = 0_u64;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        if i == 9 && part > 1 {
            return None;
        }
        n |= part << (7 * i);
        if byte & 0x80 == 0 {
            let is_shortest = i == 0 || *byte != 0;
            return is_shortest.then(|| (n, &bytes[i + 1..]));
        }
    }
    None
}
