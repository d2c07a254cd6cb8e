//! From the cells of two sets to what differs. The other side's cells may be anything: work and memory are bounded, and what
//! does not come out to nothing is never called a difference.

use std::collections::{BTreeMap, BTreeSet};

use super::sketch::{Cell, SketchError};
use super::symbol::{Symbol, SymbolKey, TreePrefix};
use super::{Difference, Element};

/// Additions that a symbol costs at most on average. It is part of 2 ln(cells) of them: 25 of the most that are ever sent.
const PLACES_MAX: usize = 64;

/// What is in one set alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decoded {
    pub theirs: Vec<Symbol>,
    pub ours: Vec<Symbol>,
}

/// Takes apart the difference of the first cells of two sets under one key. `None`: more cells are needed.
///
/// # Errors
/// [`SketchError::Contradiction`] for cells that are of no set.
pub fn peel(key: &SymbolKey, theirs: &[Cell], ours: &[Cell]) -> Result<Option<Decoded>, SketchError> {
    let mut cells: Vec<Cell> = theirs.iter().zip(ours).map(|(theirs, ours)| theirs.minus(ours)).collect();
    let mut open: Vec<usize> = (0..cells.len()).collect();
    let mut found = BTreeSet::new();
    let mut decoded = Decoded::default();
    let mut room = cells.len() * PLACES_MAX;
    while let Some(place) = open.pop() {
        let cell = cells[place];
        let side = match cell.count {
            1 => &mut decoded.theirs,
            -1 => &mut decoded.ours,
            _ => continue,
        };
        let weighed = key.weigh(Symbol(cell.sum));
        if weighed.check != cell.check {
            continue;
        }
        // Each symbol that is taken out leaves a cell empty for good: there are not more symbols than cells.
        if !found.insert(weighed.symbol) || found.len() > cells.len() {
            return Err(SketchError::Contradiction);
        }
        side.push(weighed.symbol);
        for other in weighed.places(cells.len()) {
            cells[other].put(&weighed, -cell.count);
            open.push(other);
            room = room.checked_sub(1).ok_or(SketchError::Contradiction)?;
        }
        // A symbol in a place that is not its own.
        if !cells[place].is_zero() {
            return Err(SketchError::Contradiction);
        }
    }
    Ok(cells.iter().all(Cell::is_zero).then_some(decoded))
}

impl Decoded {
    /// The prefixes of our elements that are named: everything here with one of them is a candidate for
    /// [`Decoded::resolve`].
    #[must_use]
    pub fn prefixes(&self) -> BTreeSet<TreePrefix> {
        self.ours.iter().map(Symbol::prefix).collect()
    }

    /// Which of our elements differ. `candidates` has every element here with one of [`Decoded::prefixes`]; several trees
    /// may share one, and each is told apart by its own symbol.
    ///
    /// # Errors
    /// [`SketchError::NotOurs`]: what was decoded is not a difference to this set.
    pub fn resolve(&self, key: &SymbolKey, candidates: &[Element]) -> Result<Difference, SketchError> {
        let ours: BTreeMap<Symbol, &Element> = candidates.iter().map(|e| (key.symbol(e), e)).collect();
        let mut found = Difference::default();
        // Of each prefix, how many more there are than here.
        let mut more: BTreeMap<TreePrefix, usize> = BTreeMap::new();
        for symbol in &self.theirs {
            *more.entry(symbol.prefix()).or_default() += 1;
        }
        for symbol in &self.ours {
            let element = ours.get(symbol).ok_or(SketchError::NotOurs)?;
            match element.key() {
                None => found.acl = true,
                Some(tree) => found.trees.push(tree),
            }
            if let Some(count) = more.get_mut(&symbol.prefix()) {
                *count = count.saturating_sub(1);
            }
        }
        found.trees.sort_unstable();
        found.elsewhere = more.into_iter().flat_map(|(prefix, count)| std::iter::repeat_n(prefix, count)).collect();
        Ok(found)
    }
}
