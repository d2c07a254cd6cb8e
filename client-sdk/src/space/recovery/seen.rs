//! What records say that their authors had seen: filled in where we sign, compared where we apply.
//!
//! It is no rule: a record stands whatever it says. But two members whom a node told different stories find out from the next
//! record of either.

use sync_core::history::{Compare, common, compare};
use sync_core::ids::{AccountId, HistoryId, Seq, SpaceId};
use sync_core::log::Position;
use sync_core::pb;
use sync_core::record::{HistoryStarted, RawRecord, Seen};
use sync_store::{AccusationKind, AccusationState, ReadTx, WriteTx};

use super::accuse::{self, New};
use super::restores;
use crate::error::ReadError;

/// Stretches of a log that a rewind took out and that are remembered: what others saw of them is no news.
const REWINDS_MAX: usize = 64;

/// Our last durable position, as a record says it; `None` before the node has told its history, or of a log that is not here.
pub(crate) fn seen_now(tx: &ReadTx<'_>, space: SpaceId) -> Result<Option<Seen>, ReadError> {
    let Some(history) = tx.node_history(space)? else { return Ok(None) };
    let durable = tx.node_state(space)?.durable_seq;
    // The first two entries say nothing that the space id does not say.
    let Some(at) = tx.position_at(space, durable)?.filter(|at| at.seq > Seq(2)) else { return Ok(None) };
    Ok(Some(Seen { history, seq: at.seq, chain: at.chain }))
}

/// Compares what records had seen with our own log, for one batch of entries.
pub(in crate::space) struct SeenCheck {
    history: Option<HistoryId>,
    restores: Vec<HistoryStarted>,
    taken_out: Vec<(Seq, Seq)>,
    apart: Vec<Apart>,
}

/// A record whose author had seen another log.
struct Apart {
    author: AccountId,
    seen: Seen,
    at: Seq,
    record: RawRecord,
}

/// Mismatches of one batch that are looked at; more would say the same.
const APART_MAX: usize = 16;

impl SeenCheck {
    pub(in crate::space) fn new(tx: &ReadTx<'_>, space: SpaceId) -> Result<Self, ReadError> {
        Ok(Self {
            history: tx.node_history(space)?,
            restores: restores(tx, space)?,
            taken_out: rewinds(tx, space)?,
            apart: Vec::new(),
        })
    }

    /// A record was appended at `at`.
    pub(in crate::space) fn check(
        &mut self,
        tx: &ReadTx<'_>,
        space: SpaceId,
        (author, seen): (AccountId, Option<Seen>),
        at: Seq,
        record: &RawRecord,
    ) -> Result<(), ReadError> {
        let (Some(seen), Some(history)) = (seen, self.history) else { return Ok(()) };
        let differs = match compare(&seen, common(history, &self.restores, seen.history), at) {
            Compare::Never => false,
            Compare::Differs => true,
            Compare::Chain => tx.position_at(space, seen.seq)?.is_some_and(|own| own.chain != seen.chain),
        };
        let known = |(after, to): &(Seq, Seq)| seen.seq > *after && seen.seq <= *to;
        if differs && !self.taken_out.iter().any(known) && self.apart.len() < APART_MAX {
            self.apart.push(Apart { author, seen, at, record: record.clone() });
        }
        Ok(())
    }

    /// Keeps what was found: one open accusation for each author.
    pub(in crate::space) fn keep(
        self,
        tx: &mut WriteTx<'_>,
        space: SpaceId,
        at_ms: u64,
    ) -> Result<Vec<sync_store::AccusationId>, ReadError> {
        let mut kept = Vec::new();
        for apart in self.apart {
            let by = format!("by {}", apart.author);
            let told = |row: &sync_store::AccusationRow| {
                row.kind == AccusationKind::Seen && row.state == AccusationState::Open && row.detail.ends_with(&by)
            };
            if tx.accusations(space)?.iter().any(|(_, row)| told(row)) {
                continue;
            }
            let detail = format!(
                "the record at entry {} says that its author had seen another log, up to entry {}: {by}",
                apart.at, apart.seen.seq
            );
            let claim = Position { seq: apart.seen.seq, chain: apart.seen.chain };
            let half = pb::SeenEvidence { record: Some(apart.record.into()), ..pb::SeenEvidence::default() };
            let evidence = Some(pb::Evidence { proof: Some(pb::evidence::Proof::Seen(half)) });
            let new = New { kind: AccusationKind::Seen, claim, detail, evidence };
            kept.extend(accuse::keep(tx, space, at_ms, &new)?);
        }
        Ok(kept)
    }
}

fn rewinds_key(space: SpaceId) -> String {
    format!("rewinds/{space}")
}

/// Remembers a stretch that was taken out of our log.
pub(super) fn note_rewind(tx: &mut WriteTx<'_>, space: SpaceId, after: Seq, to: Seq) -> Result<(), ReadError> {
    let mut known = rewinds(tx, space)?;
    known.push((after, to));
    let latest = known.len().saturating_sub(REWINDS_MAX);
    let bytes: Vec<u8> =
        known[latest..].iter().flat_map(|(after, to)| [after.0.to_be_bytes(), to.0.to_be_bytes()].concat()).collect();
    Ok(tx.kv_put(&rewinds_key(space), &bytes)?)
}

fn rewinds(tx: &ReadTx<'_>, space: SpaceId) -> Result<Vec<(Seq, Seq)>, ReadError> {
    let bytes = tx.kv(&rewinds_key(space))?.unwrap_or_default();
    let (pairs, _) = bytes.as_chunks::<16>();
    let read = |pair: &[u8; 16]| {
        let number = u128::from_be_bytes(*pair);
        let low = u64::try_from(number & u128::from(u64::MAX)).unwrap_or_default();
        let high = u64::try_from(number >> 64).unwrap_or_default();
        (Seq(high), Seq(low))
    };
    Ok(pairs.iter().map(read).collect())
}
