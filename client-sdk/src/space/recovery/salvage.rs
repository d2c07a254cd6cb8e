//! What our log held and the node's does not: offered again, one record after the other in the old order, each decided anew.
//!
//! Nothing of ours goes out before all of it is settled: a write that was made after a rotation must not be encrypted for those
//! whom that rotation shut out, as long as the rotation may come back. What the rules refuse on our own log, once everything
//! before it is settled, is lost, and said to be.

use std::collections::BTreeMap;
use std::sync::Arc;

use sync_core::code::{Class, Code};
use sync_core::ids::{AccountId, EntryId, Seq, TreeId};
use sync_core::limits;
use sync_core::log::{DecideError, EntryKind, Reject, Submission, View as _, decide};
use sync_core::record::{AclRecord, TreeChange, verify, verify_as};
use sync_core::session::pause_asked;
use sync_proto::status::Failure;
use sync_proto::v1;
use sync_store::{ReadTx, RefusalRow, SalvageId, SalvageRow, SalvageState, WriteState, WriteTx};

use crate::error::{CallError, ReadError, WriteError, from_store_write, local};
use crate::events::Event;
use crate::space::push::{Pusher, accepted_of};
use crate::space::write::{Maker, Rebuild, Reparent};
use crate::space::{Space, SpaceInner};
use crate::status::{Example, Reason, ReasonCode};

/// Something that the node lost and that cannot stand in its log again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostEntry {
    pub id: SalvageId,
    /// Where it stood.
    pub seq: Seq,
    pub entry: EntryId,
    pub kind: EntryKind,
    pub author: Option<AccountId>,
    pub tree: Option<TreeId>,
    /// What an ACL record would have done.
    pub acts: Vec<String>,
    /// The stable name of the code that says why.
    pub code: &'static str,
    pub message: String,
}

/// How a round of offering ended.
enum Round {
    Nothing,
    Progress,
    /// The node does not take it yet.
    Stuck(Failure),
}

pub(in crate::space) async fn run(space: Arc<SpaceInner>) {
    let mut failures = 0;
    loop {
        let wanted = space.recovery.salvage_wanted.notified();
        let round = tokio::select! {
            biased;
            () = space.closed.cancelled() => return,
            round = space.salvage_round() => round,
        };
        let stuck = match round {
            Ok(Round::Progress) => {
                failures = 0;
                continue;
            }
            Ok(Round::Nothing) => {
                // What was held back for the salvage may go out.
                space.push_anew();
                None
            }
            Ok(Round::Stuck(failure)) => Some(failure.retry_after_ms),
            Err(error) => {
                tracing::debug!(space = %space.id.short(), error = %error, "the salvage waits");
                Some(0)
            }
        };
        let waits = async {
            let Some(hint_ms) = stuck else { return std::future::pending().await };
            failures += 1;
            let [jitter] = space.shared.host.random();
            let hint = std::time::Duration::from_millis(hint_ms);
            tokio::time::sleep(pause_asked(failures, jitter, hint)).await;
        };
        tokio::select! {
            biased;
            () = space.closed.cancelled() => return,
            () = wanted => {}
            () = waits => {}
        }
    }
}

/// A record of the salvage, with the root that came with it.
struct Offer {
    root: Option<SalvageRow>,
    row: SalvageRow,
}

impl SpaceInner {
    /// True while something that the node lost may still come back.
    pub(in crate::space) fn salvage_waits(&self) -> Result<bool, ReadError> {
        Ok(self.shared.store.read(|tx| tx.salvage_counts(self.id))?.0 > 0)
    }

    async fn salvage_round(&self) -> Result<Round, CallError> {
        let rows = self.shared.store.read(|tx| tx.salvage_waiting(self.id, limits::PUSH_ITEMS_MAX)).map_err(local)?;
        if rows.is_empty() {
            return Ok(Round::Nothing);
        }
        let Sorted { offers, orphans } = sort(rows);
        self.forget_roots(orphans).await.map_err(local)?;
        if offers.is_empty() {
            return Ok(Round::Progress);
        }
        let conn = self.shared.conn().await?;
        self.tail_stands(&conn).await?;
        let request = v1::PushRequest { space: self.id.to_bytes(), items: offers.iter().map(item).collect() };
        let verdicts = Pusher::open(&conn).await?.exchange(request).await?;
        let verdicts: BTreeMap<u64, Result<Seq, Failure>> =
            verdicts.into_iter().map(|verdict| (verdict.tag, accepted_of(verdict))).collect();
        // Where the node judged is where we judge.
        let reached = verdicts.values().map(|v| v.as_ref().map_or_else(|failure| failure.log_seq, |seq| *seq)).max();
        self.reaches(reached.unwrap_or_default()).await?;
        let settled = self.settle_offers(offers, verdicts).await.map_err(local)?;
        self.touch();
        if !self.salvage_waits().map_err(local)? {
            // What was held back for it may go out.
            self.push_anew();
        }
        Ok(settled)
    }

    async fn settle_offers(
        &self,
        offers: Vec<Offer>,
        verdicts: BTreeMap<u64, Result<Seq, Failure>>,
    ) -> Result<Round, WriteError> {
        let (space, account) = (self.id, self.shared.account.id());
        let inner = self.shared.space_of(space).ok_or(WriteError::Closed)?;
        let job = move |tx: &mut WriteTx<'_>| -> Result<(Round, u64, Vec<Event>), WriteError> {
            let (mut round, mut lost, mut events) = (None, 0, Vec::new());
            for offer in offers {
                if !tx.is_salvage_waiting(space, offer.row.entry)? {
                    round = Some(Round::Progress);
                    continue;
                }
                let failure = match verdicts.get(&offer.row.id.0) {
                    Some(Err(failure)) => failure,
                    Some(Ok(seq)) if tx.entry_at(space, *seq)?.is_some_and(|row| row.id == offer.row.entry) => {
                        tx.take_from_salvage(space, offer.row.entry)?;
                        round = Some(Round::Progress);
                        continue;
                    }
                    // It is taken and on its way here.
                    Some(Ok(_)) | None => {
                        round.get_or_insert(Round::Stuck(Failure::new(Code::MissingParent, "it is on its way")));
                        break;
                    }
                };
                match on_own_log(tx, space, account, &offer, failure)? {
                    Some((code, message)) => {
                        lost += u64::from(give_up(tx, &inner, &offer, code, &message, &mut events)?);
                        round = Some(Round::Progress);
                    }
                    None => {
                        round.get_or_insert(Round::Stuck(failure.clone()));
                        break;
                    }
                }
            }
            Ok((round.unwrap_or(Round::Nothing), lost, events))
        };
        let (round, lost, events) = self.shared.store.write(job).await.map_err(from_store_write)?.value;
        events.into_iter().for_each(|event| self.emit(event));
        if lost > 0 {
            self.emit(Event::LostByNode { space, entries: lost });
        }
        Ok(round)
    }

    /// What is lost, if that is anything.
    pub(crate) fn lost_reason(&self, tx: &ReadTx<'_>, count: u64) -> Result<Option<Reason>, ReadError> {
        if count == 0 {
            return Ok(None);
        }
        let first = tx.salvage_lost(self.id, None, limits::REASON_EXAMPLES_MAX)?;
        Ok(Some(self.lost_as(count, first.iter().map(read_lost))))
    }

    /// The same of what is lost of one tree.
    pub(crate) fn lost_of_tree(&self, tx: &ReadTx<'_>, tree: TreeId) -> Result<Option<Reason>, ReadError> {
        let mut of_tree = Vec::new();
        let mut after = None;
        loop {
            let page = tx.salvage_lost(self.id, after, limits::PUSH_ITEMS_MAX)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            of_tree.extend(page.iter().map(read_lost).filter(|lost| lost.tree == Some(tree)));
        }
        let count = of_tree.len() as u64;
        Ok((count > 0).then(|| self.lost_as(count, of_tree.into_iter().take(limits::REASON_EXAMPLES_MAX))))
    }

    fn lost_as(&self, count: u64, first: impl Iterator<Item = LostEntry>) -> Reason {
        let examples = first.map(|lost| Example {
            scope: lost.what(),
            detail: format!("{}: {}", lost.code, lost.message),
            attempts: 0,
            next_retry_ms: None,
        });
        let detail = format!("{count} entries that the node lost cannot stand in its log again");
        let mut reason = Reason::new(ReasonCode::LostByNode, self.id.short(), detail);
        (reason.count, reason.examples) = (count, examples.collect());
        reason
    }

    async fn forget_roots(&self, roots: Vec<SalvageId>) -> Result<(), WriteError> {
        if roots.is_empty() {
            return Ok(());
        }
        let space = self.id;
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), WriteError> {
            for root in &roots {
                tx.forget_salvage(space, *root)?;
            }
            Ok(())
        };
        self.shared.store.write(job).await.map_err(from_store_write)?;
        Ok(())
    }

    async fn dismiss_lost(self: &Arc<Self>, id: SalvageId) -> Result<bool, WriteError> {
        let (this, space) = (self.clone(), self.id);
        let job = move |tx: &mut WriteTx<'_>| -> Result<bool, WriteError> {
            let before = SalvageId(id.0.saturating_sub(1));
            let known = tx.salvage_lost(space, Some(before), 1)?.iter().any(|row| row.id == id);
            Ok(known && tx.forget_salvage(space, id)?)
        };
        let dismissing = async move {
            let done = this.shared.store.write(job).await.map_err(from_store_write)?.value;
            this.touch();
            Ok(done)
        };
        self.shared.to_its_end(dismissing).await?
    }
}

/// Rows of the salvage as they are offered.
struct Sorted {
    offers: Vec<Offer>,
    /// Roots of trees that the log has already: their first changes are not here.
    orphans: Vec<SalvageId>,
}

/// Rows in their order, each root with the change after it; as many as fit one message.
fn sort(rows: Vec<SalvageRow>) -> Sorted {
    let (mut sorted, mut root, mut bytes) = (Sorted { offers: Vec::new(), orphans: Vec::new() }, None, 0);
    for row in rows {
        bytes += row.record.wire_bytes();
        if bytes > limits::BATCH_BYTES_MAX && !sorted.offers.is_empty() {
            break;
        }
        if row.kind == EntryKind::Root {
            sorted.orphans.extend(root.replace(row).map(|before: SalvageRow| before.id));
            continue;
        }
        let is_its = |root: &SalvageRow| begins(&row) == Some(root.entry.into());
        let (own, orphan) = match root.take() {
            Some(root) if is_its(&root) => (Some(root), None),
            other => (None, other),
        };
        sorted.orphans.extend(orphan.map(|root| root.id));
        sorted.offers.push(Offer { root: own, row });
    }
    if sorted.offers.is_empty() {
        sorted.orphans.extend(root.map(|root| root.id));
    }
    sorted
}

/// The tree that a change is of.
fn begins(row: &SalvageRow) -> Option<TreeId> {
    match row.kind {
        EntryKind::Change => verify_as::<TreeChange>(row.record.clone()).ok().map(|change| change.body().tree),
        EntryKind::Acl | EntryKind::Root | EntryKind::Tombstone => None,
    }
}

fn item(offer: &Offer) -> v1::PushItem {
    v1::PushItem {
        tag: offer.row.id.0,
        root: offer.root.as_ref().map(|root| root.record.clone().into()),
        record: Some(offer.row.record.clone().into()),
    }
}

/// Why a record that the node refused can never stand on our own log, if so. Everything before it is settled.
fn on_own_log(
    tx: &WriteTx<'_>,
    space: sync_core::ids::SpaceId,
    account: AccountId,
    offer: &Offer,
    failure: &Failure,
) -> Result<Option<(Code, String)>, WriteError> {
    let view = tx.view(space)?.ok_or(ReadError::UnknownSpace(space))?;
    if view.position().seq < failure.log_seq {
        return Ok(None);
    }
    if failure.code == Code::Forbidden && !view.acl().members.contains_key(&account) {
        return Ok(Some((failure.code, "this account is no member any more, and cannot offer it".to_owned())));
    }
    if failure.code == Code::PayloadMissing && offer.row.record.payload.is_none() {
        return Ok(Some((failure.code, "its content is not here either".to_owned())));
    }
    if failure.code == Code::InviteExpired {
        return Ok(Some((failure.code, "its invite is over by now: who asked asks by a new one".to_owned())));
    }
    if failure.code == Code::RequiresMissing {
        // What it required stood before it, and so is settled: it is not coming back.
        return Ok(Some((failure.code, failure.message.clone())));
    }
    if !matches!(failure.code.class(), Class::Rule | Class::Bytes) {
        return Ok(None);
    }
    let root = offer.root.as_ref().map(|root| verify(root.record.clone())).transpose();
    let (Ok(root), Ok(record)) = (root, verify(offer.row.record.clone())) else {
        return Ok(Some((failure.code, failure.message.clone())));
    };
    let judged = Submission::pair(root, record).map_err(DecideError::Reject).and_then(|s| decide(&view, &s));
    match judged {
        Ok(_) | Err(DecideError::Refused(_)) => Ok(None),
        Err(DecideError::Reject(reject)) => Ok(Some((Code::from(&reject), explain(&reject)))),
        Err(DecideError::View(error)) => Err(error.into()),
    }
}

fn explain(reject: &Reject) -> String {
    let text = reject.to_string();
    if Code::from(reject) == Code::StaleEpoch {
        format!("{text}: its author's own device makes it again")
    } else {
        text
    }
}

/// An own write is made anew, or refused like any other; anything else is lost. True if it is lost.
fn give_up(
    tx: &mut WriteTx<'_>,
    space: &SpaceInner,
    offer: &Offer,
    code: Code,
    message: &str,
    events: &mut Vec<Event>,
) -> Result<bool, WriteError> {
    if let Some(root) = &offer.root {
        tx.forget_salvage(space.id, root.id)?;
    }
    let own = tx.pending_by_change(space.id, offer.row.entry.into())?;
    let Some(write) = own.filter(|write| matches!(write.state, WriteState::Pending { .. })) else {
        tx.lose_salvage(offer.row.id, code.number(), message)?;
        return Ok(true);
    };
    tx.forget_salvage(space.id, offer.row.id)?;
    let loses_parents = matches!(code, Code::MissingParent | Code::MissingRoot | Code::HeadsFull);
    let parents = if loses_parents { Reparent::OntoHeads } else { Reparent::Keep };
    match Maker::new(tx, space)?.rebuild(tx, write.tree, Rebuild::One(write.id, parents)) {
        Ok(_) => {}
        Err(WriteError::Read(ReadError::Store(error))) => return Err(error.into()),
        Err(error) => {
            let log_seq = tx.space(space.id)?.map_or(Seq::ZERO, |row| row.position.seq);
            let text = format!("{message}; {error}");
            let refusal = RefusalRow { code: code.number(), message: text, log_seq };
            space.refuse(tx, &write, &refusal, events)?;
        }
    }
    Ok(false)
}

fn read_lost(row: &SalvageRow) -> LostEntry {
    let (code, message) = match &row.state {
        SalvageState::Lost { code, message } => (*code, message.clone()),
        SalvageState::Waiting => (Code::Recovering.number(), String::new()),
    };
    let submission = verify(row.record.clone()).ok().and_then(|record| Submission::pair(None, record).ok());
    let acts = match row.kind {
        EntryKind::Acl => verify_as::<AclRecord>(row.record.clone())
            .map(|record| record.body().contents.iter().map(|content| content.name().to_owned()).collect())
            .unwrap_or_default(),
        EntryKind::Root | EntryKind::Change | EntryKind::Tombstone => Vec::new(),
    };
    LostEntry {
        id: row.id,
        seq: row.seq,
        entry: row.entry,
        kind: row.kind,
        author: submission.as_ref().map(Submission::author),
        tree: submission.as_ref().and_then(Submission::tree),
        acts,
        code: Code::from_number(code).map_or("UNKNOWN", Code::name),
        message,
    }
}

impl LostEntry {
    /// One line for people.
    #[must_use]
    pub fn what(&self) -> String {
        let by = self.author.map_or_else(String::new, |author| format!(" by {}", author.short()));
        let of = self.tree.map_or_else(String::new, |tree| format!(" of {}", tree.short()));
        let what = match self.kind {
            EntryKind::Acl => self.acts.join(", "),
            EntryKind::Root => "root".to_owned(),
            EntryKind::Change => "change".to_owned(),
            EntryKind::Tombstone => "purge".to_owned(),
        };
        format!("{what}{of}{by}, entry {} before", self.seq)
    }
}

impl Space {
    /// What the node lost and cannot take again, in the order in which it stood, after the first `skip`, at most `max`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn lost(&self, skip: usize, max: usize) -> Result<Vec<LostEntry>, ReadError> {
        let until = skip.saturating_add(max.min(limits::IDS_PER_REQUEST_MAX));
        let rows = self.inner.shared.store.read(|tx| tx.salvage_lost(self.inner.id, None, until))?;
        Ok(rows.iter().skip(skip).map(read_lost).collect())
    }

    /// The same, those after one of them.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn lost_after(&self, after: Option<SalvageId>, max: usize) -> Result<Vec<LostEntry>, ReadError> {
        let rows = self
            .inner
            .shared
            .store
            .read(|tx| tx.salvage_lost(self.inner.id, after, max.min(limits::IDS_PER_REQUEST_MAX + 1)))?;
        Ok(rows.iter().map(read_lost).collect())
    }

    /// Somebody has seen that an entry is lost: it stands in the way of `await_synced` no longer, and its bytes go. False if
    /// there is none of that number.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn dismiss_lost(&self, id: SalvageId) -> Result<bool, WriteError> {
        self.inner.dismiss_lost(id).await
    }
}
