//! Accusations: what a node signed and does not stand by, kept with its evidence until somebody has seen it, and after.

use std::sync::Arc;

use prost::Message as _;
use sync_core::evidence::{Evidence, SeenRecord, Trail, judge};
use sync_core::ids::{EntryId, Seq, SpaceId};
use sync_core::limits;
use sync_core::log::Position;
use sync_core::pb;
use sync_core::receipt::{Accusation as Contradiction, SignedReceipt, contradiction};
use sync_core::session::Input;
use sync_store::{AccusationId, AccusationKind, AccusationRow, AccusationState, ReadTx, WriteTx};

use super::read_error;
use crate::connect::Conn;
use crate::error::{CallError, ReadError, WriteError, from_store_write, local};
use crate::events::Event;
use crate::space::{Space, SpaceInner};

/// What a node is accused of, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accusation {
    pub id: AccusationId,
    pub kind: AccusationKind,
    pub state: AccusationState,
    /// What the node had claimed, or a member says it saw.
    pub claim: Position,
    pub detail: String,
    /// What can be shown to others, if the node signed enough to prove it.
    pub evidence: Option<Evidence>,
    pub at_ms: u64,
}

/// An accusation before it is kept.
pub(in crate::space) struct New {
    pub(in crate::space) kind: AccusationKind,
    pub(in crate::space) claim: Position,
    pub(in crate::space) detail: String,
    /// Whole, or waiting for a receipt that completes it.
    pub(in crate::space) evidence: Option<pb::Evidence>,
}

impl SpaceInner {
    /// Keeps an accusation, and tells of it. Whatever it meets, it stands in nobody's way.
    pub(in crate::space) async fn accuse(&self, new: New) {
        let (space, at_ms, kind) = (self.id, self.shared.host.wall_ms(), new.kind);
        let job = move |tx: &mut WriteTx<'_>| keep(tx, space, at_ms, &new);
        match self.shared.store.write(job).await.map_err(read_error) {
            Ok(written) => self.tell_accused(kind, written.value),
            Err(error) => tracing::error!(space = %self.id.short(), error = %error, "an accusation could not be kept"),
        }
    }

    pub(in crate::space) fn tell_accused(&self, kind: AccusationKind, kept: Option<AccusationId>) {
        if let Some(accusation) = kept {
            tracing::warn!(space = %self.id.short(), accusation = accusation.0, ?kind, "the node is accused");
            self.emit(Event::NodeAccused { space: self.id, accusation, kind });
        }
        self.touch();
    }

    /// Accuses without anything signed: of having had what our log or our last receipt says.
    pub(in crate::space) async fn accuse_plainly(&self, detail: &str) {
        if let Ok(Some(claim)) = self.claim() {
            let (kind, detail) = (AccusationKind::Rollback, detail.to_owned());
            self.accuse(New { kind, claim, detail, evidence: None }).await;
        }
    }

    /// Whether it was accused of a rollback from here already, whatever became of that.
    pub(super) fn has_accused_of(&self, claim: Position) -> Result<bool, ReadError> {
        let known = self.shared.store.read(|tx| tx.accusations(self.id))?;
        Ok(known.iter().any(|(_, row)| row.kind == AccusationKind::Rollback && row.claim == claim))
    }

    /// The node showed an entry, ahead of its tail, that its tail then did not bring. Nothing of that is signed.
    pub(in crate::space) async fn accuse_of_showing_another(&self, seq: Seq) {
        if let Ok(Some(claim)) = self.claim() {
            let detail = format!("at entry {seq} it logs another entry than it showed before");
            self.accuse(New { kind: AccusationKind::Fork, claim, detail, evidence: None }).await;
        }
    }

    /// As [`SpaceInner::accuse_plainly`], of having had the end of our log, which its tail brought.
    pub(super) async fn accuse_of_unsigned(&self, detail: &str) {
        if let Ok(Some(row)) = self.shared.store.read(|tx| tx.space(self.id)) {
            let (kind, claim, detail) = (AccusationKind::Rollback, row.position, detail.to_owned());
            self.accuse(New { kind, claim, detail, evidence: None }).await;
        }
    }

    /// What the node is known to have had: the position of its last durable receipt, or what its tail brought.
    pub(super) fn claim(&self) -> Result<Option<Position>, ReadError> {
        let receipt = self.last_receipt()?.filter(|r| r.body().durable).map(|r| r.position());
        let end = self.shared.store.read(|tx| tx.space(self.id))?.map(|row| row.position);
        Ok(receipt.or(end))
    }

    /// Checks a receipt against our own log and the receipt before. What does not fit is held against the node.
    pub(in crate::space) async fn hold_against(
        &self,
        before: Option<&SignedReceipt>,
        receipt: &SignedReceipt,
    ) -> Result<(), CallError> {
        let found = before.and_then(|before| Some((before, contradiction(before, receipt)?)));
        if let Some((before, contradiction)) = found {
            let evidence = match contradiction {
                Contradiction::Rollback { .. } => {
                    Evidence::Rollback { earlier: before.clone(), later: receipt.clone() }
                }
                Contradiction::Fork { .. } => Evidence::Fork {
                    earlier: before.clone(),
                    later: receipt.clone(),
                    trail: Trail { chain: receipt.body().chain, ids: Vec::new() },
                },
            };
            let (detail, claim) = (contradiction.to_string(), before.position());
            let evidence = Some(evidence.to_message());
            return match contradiction {
                Contradiction::Rollback { .. } => {
                    self.accuse(New { kind: AccusationKind::Rollback, claim, detail: detail.clone(), evidence }).await;
                    // Where the logs part is for the tail to find.
                    self.note_trouble(|t| t.rewound = Some(detail.clone()));
                    self.shared.link(Input::Rewound { space: self.id, cursor: self.cursor() });
                    Err(CallError::Broken(detail))
                }
                Contradiction::Fork { .. } => {
                    self.accuse(New { kind: AccusationKind::Fork, claim, detail: detail.clone(), evidence }).await;
                    self.note_trouble(|t| t.forked = Some(detail.clone()));
                    Err(CallError::BadAnswer(detail))
                }
            };
        }
        // An earlier one may have run ahead of our log: the log that came since has to be the one that it speaks of.
        if let Some(before) = before.filter(|before| before.body().history == receipt.body().history) {
            let held = self.hold_against_log(before).await;
            if let Err(CallError::BadAnswer(_)) = &held {
                // It stands in the accusation now; whoever sets that aside goes on with what the node signs next.
                self.forget_receipt(before).await.map_err(local)?;
            }
            held?;
        }
        self.hold_against_log(receipt).await
    }

    /// What our log shows now is another log than the one that the node signed for: a rollback from there is no more made good.
    async fn forget_receipt(&self, receipt: &SignedReceipt) -> Result<(), ReadError> {
        let (space, text, position) = (self.id, receipt.to_text().into_bytes(), receipt.position());
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            let mut state = tx.node_state(space)?;
            if state.receipt.as_ref() == Some(&text) {
                state.receipt = None;
                tx.put_node_state(space, &state)?;
            }
            for (id, row) in tx.accusations(space)? {
                let is_open = row.kind == AccusationKind::Rollback && row.state == AccusationState::Open;
                if is_open && row.claim == position {
                    tx.update_accusation(space, id, &AccusationRow { state: AccusationState::Followed, ..row })?;
                }
            }
            Ok(())
        };
        self.shared.store.write(job).await.map_err(read_error)?;
        Ok(())
    }

    /// Checks a receipt against our own log.
    pub(crate) async fn hold_against_log(&self, receipt: &SignedReceipt) -> Result<(), CallError> {
        let own = self.chain_at(receipt.body().seq).map_err(local)?;
        if own.is_none_or(|chain| chain == receipt.body().chain) || !receipt.body().durable {
            return Ok(());
        }
        let detail = format!("at entry {} the node signed another log than it sent", receipt.body().seq);
        let evidence = self.fork_evidence(receipt).map_err(local)?;
        let claim = receipt.position();
        self.accuse(New { kind: AccusationKind::Fork, claim, detail: detail.clone(), evidence: Some(evidence) }).await;
        self.note_trouble(|t| t.forked = Some(detail.clone()));
        Err(CallError::BadAnswer(detail))
    }

    /// That a receipt and our own log are two: whole if our last receipt covers it.
    fn fork_evidence(&self, other: &SignedReceipt) -> Result<pb::Evidence, ReadError> {
        let half = pb::Evidence {
            proof: Some(pb::evidence::Proof::Fork(pb::ForkEvidence {
                earlier: Some(other.to_export()),
                ..pb::ForkEvidence::default()
            })),
        };
        let last = self.last_receipt()?;
        self.shared.store.read(|tx| {
            let whole = last.and_then(|last| complete(tx, self.id, &half, &last).transpose()).transpose()?;
            Ok(whole.map_or(half, |evidence| evidence.to_message()))
        })
    }

    /// Compares a receipt that somebody else holds with our own log.
    pub(crate) async fn compare_receipt(&self, other: &SignedReceipt) -> Result<Compared, WriteError> {
        let body = other.body();
        if body.space != self.id || body.authority != self.shared.address.authority || !body.durable {
            return Ok(Compared::Nothing);
        }
        let history = self.shared.store.read(|tx| tx.node_history(self.id)).map_err(ReadError::from)?;
        match self.chain_at(body.seq)? {
            None => Ok(Compared::Ahead),
            Some(chain) if chain == body.chain => Ok(Compared::Same),
            Some(_) if history.is_some_and(|known| known != body.history) => Ok(Compared::Nothing),
            Some(_) => {
                let detail = format!("at entry {} it signed another log to somebody else", body.seq);
                let (kind, claim) = (AccusationKind::Fork, other.position());
                let evidence = Some(self.fork_evidence(other)?);
                self.accuse(New { kind, claim, detail, evidence }).await;
                Ok(Compared::Forked)
            }
        }
    }

    pub(crate) fn accusations(&self) -> Result<Vec<Accusation>, ReadError> {
        let rows = self.shared.store.read(|tx| tx.accusations(self.id))?;
        let read = |(id, row): (AccusationId, AccusationRow)| Accusation {
            id,
            kind: row.kind,
            state: row.state,
            claim: row.claim,
            detail: row.detail,
            evidence: row.evidence.as_deref().and_then(whole),
            at_ms: row.at_ms,
        };
        Ok(rows.into_iter().map(read).collect())
    }

    /// An open proof that the node has two stories: what "synced" would mean then, nobody can say.
    pub(crate) fn proven_fork(&self) -> Option<String> {
        let rows = self.shared.store.read(|tx| tx.accusations(self.id)).ok()?;
        let is_open = |row: &AccusationRow| row.kind == AccusationKind::Fork && row.state == AccusationState::Open;
        rows.into_iter().map(|(_, row)| row).find(is_open).map(|row| row.detail)
    }

    async fn dismiss_accusation(self: &Arc<Self>, id: AccusationId) -> Result<bool, WriteError> {
        let (this, space) = (self.clone(), self.id);
        let job = move |tx: &mut WriteTx<'_>| -> Result<bool, WriteError> {
            let Some((_, row)) = tx.accusations(space)?.into_iter().find(|(known, _)| *known == id) else {
                return Ok(false);
            };
            Ok(tx.update_accusation(space, id, &AccusationRow { state: AccusationState::Dismissed, ..row })?)
        };
        let dismissing = async move {
            let done = this.shared.store.write(job).await.map_err(from_store_write)?.value;
            this.note_trouble(|t| t.forked = None);
            Ok(done)
        };
        self.shared.to_its_end(dismissing).await?
    }

    /// A receipt for the log as the node has it now, naming the last one. For the record, and not kept as ours.
    pub(super) async fn signed_now(&self, conn: &Conn) -> Result<Option<(SignedReceipt, SignedReceipt)>, CallError> {
        let Some(before) = self.last_receipt().map_err(local)? else { return Ok(None) };
        let nonce: [u8; 16] = self.shared.host.random();
        let request = sync_proto::v1::CertifyRequest {
            space: self.id.to_bytes(),
            nonce: nonce.to_vec().into(),
            prev: before.hash().to_vec().into(),
            trees: Vec::new(),
            with_set_digest: false,
        };
        let mut rpc = conn.rpc();
        let receipt = self.shared.answer(conn, rpc.certify(request)).await?.into_inner().receipt;
        let receipt = receipt.and_then(|r| r.try_into().ok());
        let receipt = receipt.ok_or_else(|| CallError::BadAnswer("Certify answered without a receipt".to_owned()))?;
        let signed = SignedReceipt::verify(receipt, conn.node_certificate().raw().clone());
        let signed = signed.map_err(|e| CallError::BadAnswer(e.to_string()))?;
        Ok(Some((before, signed)))
    }
}

/// What a receipt that somebody else holds says beside our own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// Both tell one story.
    Same,
    /// The node told two: it is accused.
    Forked,
    /// It speaks of entries that are not here yet.
    Ahead,
    /// It is for another space, authority or history, or not durable.
    Nothing,
}

/// Keeps an accusation. One that is there already gets evidence that it lacks, and is no news.
pub(super) fn keep(
    tx: &mut WriteTx<'_>,
    space: SpaceId,
    at_ms: u64,
    new: &New,
) -> Result<Option<AccusationId>, ReadError> {
    if tx.space(space)?.is_none() {
        return Ok(None);
    }
    let known = tx.accusations(space)?;
    let evidence = new.evidence.as_ref().map(pb::Evidence::encode_to_vec);
    let same =
        |row: &AccusationRow| row.kind == new.kind && row.claim == new.claim && row.state == AccusationState::Open;
    if let Some((id, row)) = known.iter().find(|(_, row)| same(row)) {
        let lacks = row.evidence.as_deref().and_then(whole).is_none();
        if lacks && evidence.is_some() {
            tx.update_accusation(space, *id, &AccusationRow { evidence, ..row.clone() })?;
        }
        return Ok(None);
    }
    if known.len() >= limits::ACCUSATIONS_MAX {
        tracing::warn!(space = %space.short(), "more accusations than are kept");
        return Ok(None);
    }
    let row = AccusationRow {
        kind: new.kind,
        state: AccusationState::Open,
        claim: new.claim,
        detail: new.detail.clone(),
        evidence,
        at_ms,
    };
    Ok(Some(tx.put_accusation(space, &row)?))
}

/// After a durable receipt that fits our log: what it makes good, and what it completes.
pub(in crate::space) fn settle(tx: &mut WriteTx<'_>, space: SpaceId, receipt: &SignedReceipt) -> Result<(), ReadError> {
    let known = tx.accusations(space)?;
    if known.is_empty() || tx.position_at(space, receipt.body().seq)? != Some(receipt.position()) {
        return Ok(());
    }
    for (id, mut row) in known.into_iter().filter(|(_, row)| row.state == AccusationState::Open) {
        let before = row.clone();
        if row.claim.seq <= receipt.body().seq && tx.position_at(space, row.claim.seq)? == Some(row.claim) {
            row.state = AccusationState::MadeGood;
        }
        let half = row.evidence.as_deref().filter(|bytes| whole(bytes).is_none());
        if let Some(half) = half.and_then(|bytes| pb::Evidence::decode(bytes).ok())
            && let Some(evidence) = complete(tx, space, &half, receipt)?
        {
            row.evidence = Some(evidence.to_message().encode_to_vec());
        }
        if row != before {
            tx.update_accusation(space, id, &row)?;
        }
    }
    Ok(())
}

/// Evidence that proves something.
fn whole(bytes: &[u8]) -> Option<Evidence> {
    let evidence = Evidence::from_message(pb::Evidence::decode(bytes).ok()?).ok()?;
    judge(&evidence).is_ok().then_some(evidence)
}

/// Puts a receipt that fits our log to half a bundle: with the ids that lead there from where the other story speaks of.
fn complete(
    tx: &ReadTx<'_>,
    space: SpaceId,
    half: &pb::Evidence,
    receipt: &SignedReceipt,
) -> Result<Option<Evidence>, ReadError> {
    use pb::evidence::Proof;
    let evidence = match &half.proof {
        Some(Proof::Fork(fork)) => {
            let earlier = fork.earlier.clone().and_then(|export| SignedReceipt::from_export(export).ok());
            let Some(earlier) = earlier else { return Ok(None) };
            trail(tx, space, earlier.body().seq, receipt)?.map(|trail| Evidence::Fork {
                earlier,
                later: receipt.clone(),
                trail,
            })
        }
        Some(Proof::Seen(seen)) => {
            let export = pb::SeenEvidence { receipt: Some(receipt.to_export()), ..seen.clone() };
            let Some(record) = seen_record(export) else { return Ok(None) };
            let Some(seen) = record.seen() else { return Ok(None) };
            trail(tx, space, seen.seq, receipt)?.map(|trail| Evidence::Seen { record, receipt: receipt.clone(), trail })
        }
        Some(Proof::Rollback(_)) | None => None,
    };
    Ok(evidence.filter(|evidence| judge(evidence).is_ok()))
}

fn seen_record(export: pb::SeenEvidence) -> Option<SeenRecord> {
    let chain = vec![0; 32].into();
    let message =
        pb::Evidence { proof: Some(pb::evidence::Proof::Seen(pb::SeenEvidence { chain, ids: Vec::new(), ..export })) };
    match Evidence::from_message(message).ok()? {
        Evidence::Seen { record, .. } => Some(record),
        Evidence::Rollback { .. } | Evidence::Fork { .. } => None,
    }
}

/// Our own log from an entry on, up to a receipt for it.
fn trail(tx: &ReadTx<'_>, space: SpaceId, from: Seq, receipt: &SignedReceipt) -> Result<Option<Trail>, ReadError> {
    let to = receipt.body().seq;
    let count = usize::try_from(to.0.saturating_sub(from.0)).unwrap_or(usize::MAX);
    if from > to || count > limits::EVIDENCE_IDS_MAX || tx.position_at(space, to)? != Some(receipt.position()) {
        return Ok(None);
    }
    let Some(at) = tx.position_at(space, from)? else { return Ok(None) };
    let ids: Vec<EntryId> = tx.entry_ids(space, from, count)?.into_iter().map(|(_, _, id)| id).collect();
    Ok(Some(Trail { chain: at.chain, ids }))
}

impl Space {
    /// Everything that the node was ever accused of in this space, the oldest first.
    ///
    /// ```no_run
    /// # fn doc(space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// for accusation in space.accusations()? {
    ///     println!("{:?}: {}", accusation.state, accusation.detail);
    ///     if let Some(evidence) = accusation.evidence {
    ///         println!("{}", evidence.to_text());
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn accusations(&self) -> Result<Vec<Accusation>, ReadError> {
        self.inner.accusations()
    }

    /// Somebody has seen an accusation: it stands in nobody's way any more, and is kept. False if there is none of that number.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn dismiss_accusation(&self, id: AccusationId) -> Result<bool, WriteError> {
        self.inner.dismiss_accusation(id).await
    }

    /// Compares a receipt that another member holds with the log here. If the node told two stories it is accused, with
    /// evidence as soon as it signs for the log here.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn compare_receipt(&self, other: &SignedReceipt) -> Result<Compared, WriteError> {
        self.inner.compare_receipt(other).await
    }
}
