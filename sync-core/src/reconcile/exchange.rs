//! How cells are sent: in blocks, each half as large as all before it, until the other side has decoded.

use std::ops::Range;

use super::peel::{Decoded, peel};
use super::sketch::{Cell, Sketch, SketchError, decode_cells};
use super::symbol::SymbolKey;
use crate::limits;

/// Bytes of a listed element on the wire: two ids and their framing.
const LISTED_BYTES: u64 = 72;
/// Bytes of a cell on the wire: sum, check, and a count of two bytes.
const CELL_BYTES: u64 = 34;

/// The block that follows `sent` cells. `None`: no more are sent, list instead.
#[must_use]
pub fn block_after(sent: usize) -> Option<Range<usize>> {
    let cells = match sent {
        0 => limits::HEADSYNC_FIRST_CELLS,
        sent => (sent / 2).clamp(1, limits::HEADSYNC_BLOCK_CELLS_MAX),
    };
    let end = sent.checked_add(cells)?;
    (end <= limits::HEADSYNC_CELLS_MAX).then_some(sent..end)
}

/// The side that decodes.
#[derive(Debug)]
pub struct Asking {
    key: SymbolKey,
    elements: u64,
    theirs: Vec<Cell>,
}

/// What the side that decodes does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// This is the whole difference.
    Decoded(Decoded),
    /// Ask for one more block.
    More,
    /// Ask for the elements themselves: it is cheaper, or they cannot be told apart.
    List,
}

impl Asking {
    /// Begins a comparison with a set of `elements`, under the key that came with the first cells.
    #[must_use]
    pub const fn new(key: SymbolKey, elements: u64) -> Self {
        Self { key, elements, theirs: Vec::new() }
    }

    /// The key of this comparison.
    #[must_use]
    pub const fn key(&self) -> &SymbolKey {
        &self.key
    }

    /// How many elements the other side said it has.
    #[must_use]
    pub const fn elements(&self) -> u64 {
        self.elements
    }

    /// How many cells came.
    #[must_use]
    pub const fn cells(&self) -> usize {
        self.theirs.len()
    }

    /// Takes the next block.
    ///
    /// # Errors
    /// [`SketchError::Malformed`], [`SketchError::Count`]: the other side does not keep to the protocol.
    pub fn take(&mut self, block: &[u8]) -> Result<(), SketchError> {
        let sent = self.theirs.len();
        let due = block_after(sent).unwrap_or(sent..sent);
        self.theirs.extend(decode_cells(block, sent, due.len(), self.elements)?);
        Ok(())
    }

    /// Compares what came with our set, whose sketch has this key and at least as many cells.
    ///
    /// # Errors
    /// [`SketchError::Contradiction`]; [`SketchError::Count`] if `ours` is too short.
    pub fn next(&self, ours: &Sketch) -> Result<Next, SketchError> {
        let (expected, actual) = (self.theirs.len(), ours.cells().len());
        if actual < expected {
            return Err(SketchError::Count { expected, actual });
        }
        if let Some(decoded) = peel(&self.key, &self.theirs, ours.cells())? {
            return Ok(Next::Decoded(decoded));
        }
        Ok(match block_after(expected) {
            Some(block) if block.end as u64 * CELL_BYTES <= self.elements.saturating_mul(LISTED_BYTES) => Next::More,
            Some(_) | None => Next::List,
        })
    }
}
