//! A place in the events of a space, to be kept by whoever reads them.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use sync_core::ids::{Chain, Seq};
use sync_core::log::Position;

const PREFIX: &str = "events_";
const BYTES: usize = 8 + 4 + 32;

/// How far a reader of [`crate::Space::events_from`] has got. It stays good for as long as the log is the one that it was taken
/// from, over restarts and on any device of the space; kept as text, it is one word.
///
/// ```
/// use client_sdk::EventCursor;
/// let kept = EventCursor::START.to_string();
/// assert_eq!(kept.parse(), Ok(EventCursor::START));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventCursor {
    /// Every event of the log up to here was told.
    pub(super) seq: Seq,
    pub(super) chain: Chain,
    /// And so many of the events of the entry after it.
    pub(super) told: u32,
}

impl EventCursor {
    /// Before the first event of a space.
    pub const START: Self = Self { seq: Seq::ZERO, chain: Chain::from_hash([0; 32]), told: 0 };

    pub(super) const fn at(position: Position) -> Self {
        Self { seq: position.seq, chain: position.chain, told: 0 }
    }

    /// Every event of the log up to here was told.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq.0
    }
}

/// Why a text is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event cursor is \"events_\" and {} characters of base32, as it was given out", (BYTES * 8).div_ceil(5))]
pub struct BadEventCursor;

impl fmt::Display for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.seq.0.to_be_bytes()[..], &self.told.to_be_bytes(), self.chain.as_bytes()].concat();
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for EventCursor {
    type Err = BadEventCursor;

    fn from_str(text: &str) -> Result<Self, BadEventCursor> {
        let encoded = text.strip_prefix(PREFIX).ok_or(BadEventCursor)?.to_ascii_uppercase();
        let bytes = BASE32_NOPAD.decode(encoded.as_bytes()).map_err(|_| BadEventCursor)?;
        let bytes: &[u8; BYTES] = bytes.as_slice().try_into().map_err(|_| BadEventCursor)?;
        let (seq, rest) = bytes.split_first_chunk().ok_or(BadEventCursor)?;
        let (told, chain) = rest.split_first_chunk().ok_or(BadEventCursor)?;
        Ok(Self {
            seq: Seq(u64::from_be_bytes(*seq)),
            chain: Chain::try_from(chain).map_err(|_| BadEventCursor)?,
            told: u32::from_be_bytes(*told),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_nothing_else_is_read() {
        let cursor = EventCursor { seq: Seq(4711), chain: Chain::from_hash([7; 32]), told: 3 };
        let text = cursor.to_string();
        assert_eq!(text.parse(), Ok(cursor));
        for bad in ["", "events_", &text[1..], &text[..text.len() - 1], &format!("{text}a"), &text.replace('_', "-")] {
            assert_eq!(bad.parse::<EventCursor>(), Err(BadEventCursor), "{bad}");
        }
    }
}
