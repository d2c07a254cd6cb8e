//! What to do about a node whose log does not continue ours.
//!
//! If its log is the beginning of ours, it lost the rest: we bring that back, in its old order, first what it once signed for
//! (whoever we are), then the rest as ordinary pushes. If its log has gone another way since, ours goes back to where they
//! part, follows the node's, and what was in it is offered anew ([`super::salvage`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sync_core::code::Code;
use sync_core::evidence::{Evidence, Trail, judge};
use sync_core::ids::{EntryId, HistoryId, Seq, SpaceId};
use sync_core::limits;
use sync_core::log::{EntryKind, Position};
use sync_core::pb::HistoryExport;
use sync_core::receipt::SignedReceipt;
use sync_core::record::{AclContent, AclRecord, RawRecord, TreeChange, verify_as};
use sync_core::session::Input;
use sync_e2ee::KeyRing;
use sync_proto::status::Failure;
use sync_proto::v1::{self, acl_read_entry, repush_request, repush_response};
use sync_store::{
    AccusationKind, AccusationRow, AccusationState, LogRange, LogRow, ReadTx, WriteId, WriteState, WriteTx,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::accuse::New;
use super::{Heard, Tail, read_error, seen};
use crate::client::Shared;
use crate::connect::{Conn, failure};
use crate::error::{CallError, ReadError, local};
use crate::events::Event;
use crate::link::ladder;
use crate::space::project::{self, ObjectTouched};
use crate::space::push::{Pusher, accepted_of};
use crate::space::write::{local_of, purge_envelope};
use crate::space::{RingRead, SpaceInner, read_ring};

type Ask = repush_request::Message;
type Answer = repush_response::Message;

/// The node's log, as `Rewound` says.
struct NodeLog {
    end: Position,
    history: HistoryId,
    /// Up to here it is ours for sure.
    common: Seq,
}

/// A part of our log that the node signed for and has no more.
struct Lost {
    stream: Repush,
    range: LogRange,
    history: HistoryId,
    histories: Vec<HistoryExport>,
}

impl SpaceInner {
    /// The node's log does not continue ours.
    pub(in crate::space) fn rewound(self: &Arc<Self>, rewound: v1::Rewound, conn: Option<Conn>) {
        self.note_tail(Tail::Rewound);
        let (node, common, own) = (rewound.node_seq, rewound.common_seq, self.cursor());
        let text = format!("the node's log ends at {node} and agrees with ours up to {common}; ours ends at {own}");
        self.note_trouble(|t| t.rewound = Some(text));
        self.shared.link(Input::SubscriptionFailed { space: self.id });
        let Some(conn) = conn else { return };
        let space = self.clone();
        self.recover(async move { space.meet_rewound(&conn, rewound).await });
    }

    /// The node does not let us in, although it once signed for a log in which we are a member: it may have lost that.
    pub(in crate::space) fn shut_out(self: &Arc<Self>, failure: Failure, conn: Option<Conn>) {
        let generation = conn.as_ref().map_or(0, Conn::generation);
        let way_back = self.way_back(failure.code).unwrap_or_else(|error| {
            tracing::warn!(space = %self.id.short(), error = %error, "whether there is a way back cannot be read");
            None
        });
        let (Some(conn), Some(way_back)) = (conn, way_back) else {
            return self.refused_for_good(failure, generation);
        };
        // Nobody is accused before it is known: the node may have let us go, and our log not have heard of it yet.
        self.note_tail(Tail::Rewound);
        self.shared.link(Input::SubscriptionFailed { space: self.id });
        let space = self.clone();
        self.recover(async move {
            let then = match way_back {
                WayBack::Receipt(receipt) => match space.bring_back_as_stranger(&conn, &receipt).await {
                    // Its log went another way, without us: what it lost of ours is lost.
                    Err(CallError::Refused(refused)) if refused.code == Code::LogDiverged => Then::Wait,
                    brought => brought?,
                },
                WayBack::Founding => {
                    let text = format!("the node lost the space: {}", failure.message);
                    space.note_trouble(|t| t.rewound = Some(text));
                    // It took the space once, on its disk. Of a restore it cannot tell where it has nothing of the space.
                    space.accuse_plainly("it lost the whole space").await;
                    crate::client::register_on(&space.shared, &conn, space.id).await?;
                    Then::Subscribe
                }
                WayBack::OfItsOwner(receipt) => {
                    let (kind, claim) = (AccusationKind::Rollback, receipt.position());
                    if !space.has_accused_of(claim).map_err(local)? {
                        let detail = "it signed for the space, and does not have it".to_owned();
                        space.accuse(New { kind, claim, detail, evidence: None }).await;
                    }
                    Then::Wait
                }
            };
            if let Then::Wait = then {
                // It has what it signed for, and means it; or it is for somebody else to bring that back.
                space.refused_for_good(failure, generation);
            }
            Ok(then)
        });
    }

    fn refused_for_good(&self, failure: Failure, generation: u64) {
        self.note_tail(Tail::Refused(generation));
        self.note_trouble(|t| (t.refused, t.rewound) = (Some((failure.code, failure.message)), None));
        self.shared.link(Input::SubscriptionFailed { space: self.id });
    }

    /// What can be done about a node that does not let us in.
    fn way_back(&self, code: Code) -> Result<Option<WayBack>, ReadError> {
        let acl = self.acl()?;
        let account = self.shared.account.id();
        if code == Code::Forbidden && acl.members.contains_key(&account) {
            return Ok(self.own_receipt_after(Seq::ZERO)?.map(|receipt| WayBack::Receipt(Box::new(receipt))));
        }
        if code != Code::SpaceUnknown || acl.deleted {
            return Ok(None);
        }
        if acl.owner == account {
            return Ok(self.shared.is_registered(self.id).then_some(WayBack::Founding));
        }
        Ok(self.own_receipt_after(Seq::ZERO)?.map(|receipt| WayBack::OfItsOwner(Box::new(receipt))))
    }

    /// One at a time; the tail tells of what is left to do.
    fn recover(self: &Arc<Self>, work: impl Future<Output = Result<Then, CallError>> + Send + 'static) {
        if self.recovery.running.swap(true, Ordering::AcqRel) {
            return;
        }
        let space = self.clone();
        self.shared.spawn_until_closed(async move {
            let closed = space.closed.clone();
            let done = closed.run_until_cancelled(Box::pin(work)).await;
            space.recovery.running.store(false, Ordering::Release);
            match done {
                Some(Ok(Then::Subscribe)) => {
                    space.shared.link(Input::Rewound { space: space.id, cursor: space.cursor() });
                }
                Some(Ok(Then::Wait)) | None => {}
                Some(Err(error)) => {
                    tracing::info!(space = %space.id.short(), error = %error, "recovering goes on later");
                    if let CallError::Refused(refused) = &error
                        && refused.code == Code::Recovering
                    {
                        space.note_trouble(|t| t.recovering = Some(refused.message.clone()));
                    }
                }
            }
        });
    }

    async fn meet_rewound(&self, conn: &Conn, rewound: v1::Rewound) -> Result<Then, CallError> {
        let node = read_rewound(&rewound)?;
        self.learn(rewound.histories).await.map_err(local)?;
        let heard = self.shared.store.read(|tx| self.heard(tx, node.history)).map_err(local)?;
        if self.chain_at(node.end.seq).map_err(local)? == Some(node.end.chain) {
            let signed = self.signed_now(conn).await;
            if let Err(CallError::Refused(failure)) = &signed
                && let Some(WayBack::Receipt(receipt)) = self.way_back(failure.code).map_err(local)?
                && let Then::Subscribe = self.bring_back_as_stranger(conn, &receipt).await?
            {
                // Our membership was in what it lost.
                return Ok(Then::Subscribe);
            }
            let signed = signed.ok().flatten();
            let grew = |now: &SignedReceipt| now.body().seq > node.end.seq;
            if signed.as_ref().is_some_and(|(before, now)| self.is_whole_again(before, now) && grew(now)) {
                // Others were faster than this answer.
                return Ok(Then::Subscribe);
            }
            if heard != Heard::Restored {
                self.accuse_of_rollback(signed, None).await;
            }
            self.bring_back(conn, node.end.seq).await?;
            return Ok(Then::Subscribe);
        }
        let theirs = self.ids_of_node(conn, node.common).await?;
        let common = self.common_with(node.common, &theirs).map_err(local)?;
        if common >= self.cursor() {
            // An answer to what our log was before.
            return Ok(Then::Subscribe);
        }
        if heard != Heard::Restored {
            let signed = self.signed_now(conn).await.ok().flatten();
            self.accuse_of_rollback(signed, Some((node.common, &theirs))).await;
        }
        if common < GENESIS {
            let text = "the node's log of this space begins otherwise".to_owned();
            self.note_trouble(|t| t.faulted = Some(text));
            return Ok(Then::Wait);
        }
        self.follow_node(common).await?;
        Ok(Then::Subscribe)
    }

    // ---- accusing ---------------------------------------------------------------------------------------------------

    /// What the node signs for now, with what it signed before, proves what it did; without, our word has to do. `theirs` are the ids of its log after an entry, if it is known not to be ours.
    async fn accuse_of_rollback(
        &self,
        signed: Option<(SignedReceipt, SignedReceipt)>,
        theirs: Option<(Seq, &[EntryId])>,
    ) {
        let Some((before, now)) = signed else {
            return self.accuse_plainly("it lost entries that it had, and does not sign for what it has now").await;
        };
        let rollback = Evidence::Rollback { earlier: before.clone(), later: now.clone() };
        let fork = theirs.and_then(|(from, ids)| self.fork_of(&before, &now, from, ids));
        let proven = [Some(rollback), fork].into_iter().flatten().find_map(|e| Some((judge(&e).ok()?, e)));
        match proven {
            Some((proven, evidence)) => {
                let (kind, claim) = (AccusationKind::Rollback, before.position());
                let detail = format!("{}, durably: {proven}", before.body().seq);
                let detail = format!("the node was at entry {detail}");
                self.accuse(New { kind, claim, detail, evidence: Some(evidence.to_message()) }).await;
            }
            None => self.accuse_of_unsigned("it lost entries that it had and did not sign for").await,
        }
    }

    /// The node signs for our log, as far as it signed for it before. Its tail may have brought more.
    fn is_whole_again(&self, before: &SignedReceipt, now: &SignedReceipt) -> bool {
        let own = self.chain_at(now.body().seq).ok().flatten();
        now.body().durable && now.body().seq >= before.body().seq && own == Some(now.body().chain)
    }

    fn fork_of(&self, before: &SignedReceipt, now: &SignedReceipt, from: Seq, theirs: &[EntryId]) -> Option<Evidence> {
        let start = self.shared.store.read(|tx| tx.position_at(self.id, from)).ok()??;
        let at = usize::try_from(before.body().seq.0.checked_sub(from.0)?).ok()?;
        let to = usize::try_from(now.body().seq.0.checked_sub(from.0)?).ok()?;
        let (until, after) = (theirs.get(..at)?, theirs.get(at..to)?);
        let chain = until.iter().fold(start, |at, id| at.after(id)).chain;
        let trail = Trail { chain, ids: after.to_vec() };
        Some(Evidence::Fork { earlier: before.clone(), later: now.clone(), trail })
    }

    // ---- a node that lost the end of our log ------------------------------------------------------------------------

    /// Brings back what comes after `held` in our log.
    async fn bring_back(&self, conn: &Conn, held: Seq) -> Result<(), CallError> {
        self.unsettle(held).await.map_err(local)?;
        let receipt = self.own_receipt_after(held).map_err(local)?;
        let held = match receipt {
            Some(receipt) => match self.find_lost(conn, &receipt).await? {
                Some(lost) => match self.repush(lost).await {
                    // Its content was purged after the receipt, everywhere: it never stands there again as it stood. The rest is
                    // offered anew, one by one.
                    Err(CallError::Refused(refused)) if refused.code == Code::PayloadMissing => {
                        return self.follow_node(held).await;
                    }
                    brought => brought?,
                },
                None => held,
            },
            None => held,
        };
        self.push_rest(conn, held).await
    }

    /// A member of a part that the node lost is a stranger to it. The node's own receipt is what lets us bring it back.
    async fn bring_back_as_stranger(&self, conn: &Conn, receipt: &SignedReceipt) -> Result<Then, CallError> {
        let Some(lost) = self.find_lost(conn, receipt).await? else { return Ok(Then::Wait) };
        self.learn(lost.histories.clone()).await.map_err(local)?;
        if self.shared.store.read(|tx| self.heard(tx, lost.history)).map_err(local)? != Heard::Restored {
            let (kind, claim) = (AccusationKind::Rollback, receipt.position());
            let detail =
                format!("it lost entries that it had signed for: it has our log up to {} only", lost.range.after);
            self.accuse(New { kind, claim, detail, evidence: None }).await;
        }
        self.repush(lost).await?;
        Ok(Then::Subscribe)
    }

    /// The last receipt, if it speaks of our log and of more than the node has.
    fn own_receipt_after(&self, held: Seq) -> Result<Option<SignedReceipt>, ReadError> {
        let Some(receipt) = self.last_receipt()?.filter(|r| r.body().durable && r.body().seq > held) else {
            return Ok(None);
        };
        Ok((self.chain_at(receipt.body().seq)? == Some(receipt.body().chain)).then_some(receipt))
    }

    /// What the node once signed for and has no more; `None` if it lost nothing.
    async fn find_lost(&self, conn: &Conn, receipt: &SignedReceipt) -> Result<Option<Lost>, CallError> {
        let mut stream = Repush::open(conn).await?;
        let to = receipt.body().seq;
        let points = self.shared.store.read(|tx| ladder(tx, self.id, to)).map_err(local)?;
        let export = Some(receipt.to_export());
        stream.ask(Ask::Open(v1::RepushOpen { space: self.id.to_bytes(), receipt: export, ladder: points })).await?;
        let Answer::Common(common) = stream.answer().await? else { return Err(unexpected()) };
        if common.common_seq == to.0 {
            return Ok(None);
        }
        let text = format!("the node signed for entry {to}, and has ours up to {} only", common.common_seq);
        self.note_trouble(|t| t.rewound = Some(text));
        let history = HistoryId::try_from(common.history.as_ref()).map_err(|e| CallError::BadAnswer(e.to_string()))?;
        let range = LogRange { after: Seq(common.common_seq), to };
        Ok(Some(Lost { stream, range, history, histories: common.histories }))
    }

    /// It takes that from anybody. To where it has our log then.
    async fn repush(&self, Lost { mut stream, range, .. }: Lost) -> Result<Seq, CallError> {
        let to = range.to;
        self.send_ids(&mut stream, range).await?;
        let Answer::Ready(ready) = stream.answer().await? else { return Err(unexpected()) };
        let mut held = Seq(ready.from_seq);
        while held < to {
            let rows = self.page(held).map_err(local)?;
            let rows: Vec<LogRow> = rows.into_iter().take_while(|row| row.position.seq <= to).collect();
            let Some(last) = rows.last().map(|row| row.position.seq) else { return Err(unexpected()) };
            let records = rows.into_iter().map(|row| row.record.into()).collect();
            stream.ask(Ask::Records(v1::RepushRecords { records })).await?;
            let Answer::Taken(_) = stream.answer().await? else { return Err(unexpected()) };
            held = last;
        }
        Ok(held)
    }

    async fn send_ids(&self, stream: &mut Repush, range: LogRange) -> Result<(), CallError> {
        let mut at = range.after;
        while at < range.to {
            let rows = self.page(at).map_err(local)?;
            let rows: Vec<LogRow> = rows.into_iter().take_while(|row| row.position.seq <= range.to).collect();
            let Some(end) = rows.last().map(|row| row.position.seq) else { return Err(unexpected()) };
            let ids = rows.iter().map(|row| row.id.to_bytes()).collect();
            let ends = rows.iter().filter(|row| ends_something(row)).map(|row| row.record.clone().into()).collect();
            stream.ask(Ask::Ids(v1::RepushIds { ids, last: end == range.to, ends })).await?;
            at = end;
        }
        Ok(())
    }

    fn page(&self, after: Seq) -> Result<Vec<LogRow>, ReadError> {
        let read = |tx: &ReadTx<'_>| tx.entries(self.id, after, limits::PUSH_ITEMS_MAX, limits::BATCH_BYTES_MAX);
        Ok(self.shared.store.read(read)?)
    }

    /// What the tail brought since the last receipt: an ordinary push, in the old order.
    async fn push_rest(&self, conn: &Conn, held: Seq) -> Result<(), CallError> {
        let mut held = held;
        let mut pusher = None;
        while held < self.cursor() {
            let rows = self.page(held).map_err(local)?;
            let Some(last) = rows.last().map(|row| row.position.seq) else { break };
            let items = items_of(rows);
            let before: BTreeMap<u64, Seq> = items.iter().map(|item| (item.tag, before_item(item))).collect();
            let request = v1::PushRequest { space: self.id.to_bytes(), items };
            let pusher = match &mut pusher {
                Some(pusher) => pusher,
                None => pusher.insert(Pusher::open(conn).await?),
            };
            for verdict in pusher.exchange(request).await? {
                let tag = verdict.tag;
                let Err(refused) = accepted_of(verdict) else { continue };
                let passes = refused.code.is_transient() || refused.code == Code::Recovering;
                match before.get(&tag) {
                    // It never stands there again as it stood: what comes after it is offered anew, one by one.
                    Some(common) if !passes => return self.follow_node(*common).await,
                    Some(_) | None => return Err(CallError::Refused(refused)),
                }
            }
            held = last;
        }
        Ok(())
    }

    /// What comes after `held` is not on the node's disk any more: own writes there wait for it again.
    async fn unsettle(&self, held: Seq) -> Result<(), ReadError> {
        let (space, ring, shared) = (self.id, self.ring(), self.shared.clone());
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            let Some(row) = tx.space(space)? else { return Ok(()) };
            for (write, seq) in tx.writes_in(space, LogRange { after: held, to: row.position.seq })? {
                if let Some(WriteState::Durable { .. }) = tx.write_state(space, write)?
                    && let Some(own) = own_write(tx, &shared, &ring, space, write, seq)?
                {
                    own.revive(tx, &WriteState::Logged { seq })?;
                }
            }
            lower_durable(tx, space, held)
        };
        self.shared.store.write(job).await.map_err(read_error)?;
        self.touch();
        Ok(())
    }

    // ---- a node whose log went another way --------------------------------------------------------------------------

    /// Ids of the node's log after an entry.
    async fn ids_of_node(&self, conn: &Conn, after: Seq) -> Result<Vec<EntryId>, CallError> {
        let request =
            v1::AclReadRequest { space: self.id.to_bytes(), from_seq: after.0, follow: false, invite_proof: None };
        let mut rpc = conn.rpc();
        let mut stream = self.shared.answer(conn, rpc.acl_read(request)).await?.into_inner();
        let mut ids = Vec::new();
        loop {
            let Some(message) = self.shared.answer(conn, stream.message()).await? else { return Ok(ids) };
            for entry in message.entries {
                if ids.len() >= limits::REPUSH_IDS_MAX {
                    return Ok(ids);
                }
                ids.push(id_of(entry)?);
            }
            if message.complete_to_seq != 0 {
                return Ok(ids);
            }
        }
    }

    fn common_with(&self, common: Seq, theirs: &[EntryId]) -> Result<Seq, ReadError> {
        let ours = self.shared.store.read(|tx| tx.entry_ids(self.id, common, theirs.len()))?;
        let same = ours.iter().zip(theirs).take_while(|((_, _, own), their)| own == *their).count();
        Ok(Seq(common.0 + same as u64))
    }

    /// Gives up our log after `common`, keeps what was in it aside, and derives everything anew.
    async fn follow_node(&self, common: Seq) -> Result<(), CallError> {
        let (space, shared) = (self.id, self.shared.clone());
        let job = move |tx: &mut WriteTx<'_>| follow(tx, &shared, space, common);
        self.recovery.note_rewind();
        let written = self.shared.store.write(job).await;
        self.recovery.note_rewind();
        let written = written.map_err(read_error).map_err(local)?;
        let (followed, commit) = (written.value, written.commit);
        self.announced.store(followed.to.0, Ordering::Release);
        self.publish_ring(followed.ring);
        let owed = followed.owed;
        self.note_trouble(|t| (t.forked, t.faulted, t.key) = (None, None, owed));
        self.refresh_all();
        self.tell_objects(followed.objects, commit);
        self.emit(Event::LogRewound { space, to: followed.to });
        Ok(())
    }
}

/// The entries that every log of a space begins with.
const GENESIS: Seq = Seq(2);

/// How a node that does not let us in may let us in again.
enum WayBack {
    /// It once signed for a log in which we are a member.
    Receipt(Box<SignedReceipt>),
    /// It lost the whole space, and we are its owner: the space is founded again, and the rest follows.
    Founding,
    /// It lost the whole space, although it signed for it: only the owner can found it again.
    OfItsOwner(Box<SignedReceipt>),
}

/// What comes after a recovery.
enum Then {
    /// The log is one again, as far as we know: follow it.
    Subscribe,
    /// Nothing can be done about it here.
    Wait,
}

struct Followed {
    to: Seq,
    ring: KeyRing,
    /// Keys that this member has to get, in words.
    owed: Option<String>,
    objects: Vec<ObjectTouched>,
}

fn follow(tx: &mut WriteTx<'_>, shared: &Shared, space: SpaceId, common: Seq) -> Result<Followed, ReadError> {
    let end = tx.space(space)?.ok_or(ReadError::UnknownSpace(space))?.position.seq;
    let before = read_ring(tx, shared, space)?.ring;
    let (mut own, mut erased) = (Vec::new(), Vec::new());
    for (write, seq) in tx.writes_in(space, LogRange { after: common, to: end })? {
        match own_write(tx, shared, &before, space, write, seq)? {
            Some(write) => own.push(write),
            None if is_erased(tx, space, seq)? => erased.push(write),
            None => {}
        }
    }
    let rewound = tx.rewind(space, common)?;
    let to = rewound.position.seq;
    for own in own {
        own.revive(tx, &WriteState::Pending { attempts: 0, last_refusal: None, next_retry_ms: None })?;
    }
    for write in erased {
        // Where it stood is no place of this log, and there is nothing left that could go out again.
        tx.set_write_state(write, &WriteState::Dismissed)?;
    }
    lower_durable(tx, space, to)?;
    let mut state = tx.node_state(space)?;
    state.receipt = None;
    tx.put_node_state(space, &state)?;
    for (id, row) in tx.accusations(space)? {
        if row.state == AccusationState::Open && row.claim.seq > to {
            tx.update_accusation(space, id, &AccusationRow { state: AccusationState::Followed, ..row })?;
        }
    }
    seen::note_rewind(tx, space, to, end)?;
    let RingRead { ring, problem: owed } = read_ring(tx, shared, space)?;
    let epochs = tx.acl(space)?.ok_or(ReadError::UnknownSpace(space))?.epochs.keys().copied().collect::<Vec<_>>();
    let lost_keys = epochs.iter().any(|epoch| before.keys(*epoch).is_some() && ring.keys(*epoch).is_none());
    let trees = if lost_keys {
        tx.elements(space, None, usize::MAX)?.iter().filter_map(sync_core::reconcile::Element::key).collect()
    } else {
        rewound.shortened
    };
    let objects = project::derive_again(tx, shared, space, &ring, &trees)?;
    Ok(Followed { to, ring, owed, objects })
}

fn lower_durable(tx: &mut WriteTx<'_>, space: SpaceId, to: Seq) -> Result<(), ReadError> {
    let mut state = tx.node_state(space)?;
    if state.durable_seq > to {
        state.durable_seq = to;
        tx.put_node_state(space, &state)?;
    }
    Ok(())
}

/// An own write that stands in our log, with everything that pushing it again needs.
struct OwnWrite {
    write: WriteId,
    tree: sync_core::ids::TreeId,
    root: Option<RawRecord>,
    record: RawRecord,
    local: Vec<u8>,
}

impl OwnWrite {
    fn revive(self, tx: &mut WriteTx<'_>, state: &WriteState) -> Result<(), ReadError> {
        Ok(tx.revive_write(self.write, self.tree, self.root.as_ref(), &self.record, &self.local, state)?)
    }
}

/// `None` if its content cannot be opened: it is salvaged like somebody else's.
fn own_write(
    tx: &ReadTx<'_>,
    shared: &Shared,
    ring: &KeyRing,
    space: SpaceId,
    write: WriteId,
    seq: Seq,
) -> Result<Option<OwnWrite>, ReadError> {
    let Some(row) = tx.entry_at(space, seq)? else { return Ok(None) };
    let Some(tree) = row.tree else { return Ok(None) };
    let before = tx.entry_at(space, Seq(seq.0.saturating_sub(1)))?;
    let root = before.filter(|b| b.kind == EntryKind::Root && b.tree == Some(tree)).map(|b| b.record);
    if let Some(kept) = tx.pending_by_change(space, row.id.into())? {
        return Ok(Some(OwnWrite { write, tree, root, record: row.record, local: kept.local }));
    }
    let envelope = match row.kind {
        EntryKind::Tombstone => Some(purge_envelope()),
        EntryKind::Change => verify_as::<TreeChange>(row.record.clone())
            .ok()
            .and_then(|change| project::envelope_of(ring, space, change.body(), change.raw().payload.as_ref())),
        EntryKind::Acl | EntryKind::Root => None,
    };
    let local = envelope.map(|envelope| local_of(shared, tree, &envelope));
    Ok(local.map(|local| OwnWrite { write, tree, root, record: row.record, local }))
}

/// Whether a purge dropped the content of a change.
fn is_erased(tx: &ReadTx<'_>, space: SpaceId, seq: Seq) -> Result<bool, ReadError> {
    let row = tx.entry_at(space, seq)?;
    Ok(row.is_some_and(|row| row.kind == EntryKind::Change && row.record.payload.is_none()))
}

fn read_rewound(rewound: &v1::Rewound) -> Result<NodeLog, CallError> {
    let bad = |e: sync_core::ids::IdError| CallError::BadAnswer(e.to_string());
    let chain = sync_core::ids::Chain::try_from(rewound.node_chain.as_ref()).map_err(bad)?;
    Ok(NodeLog {
        end: Position { seq: Seq(rewound.node_seq), chain },
        history: HistoryId::try_from(rewound.history.as_ref()).map_err(bad)?,
        common: Seq(rewound.common_seq),
    })
}

fn id_of(entry: v1::AclReadEntry) -> Result<EntryId, CallError> {
    let bad = |text: String| CallError::BadAnswer(text);
    match entry.entry.ok_or_else(|| bad("an empty entry".to_owned()))? {
        acl_read_entry::Entry::Id(id) => EntryId::try_from(id.as_ref()).map_err(|e| bad(e.to_string())),
        acl_read_entry::Entry::Acl(record) => {
            RawRecord::try_from(record).map(|raw| raw.id()).map_err(|e| bad(e.to_string()))
        }
    }
}

/// A tombstone, or the end of the space: content before it is gone.
fn ends_something(row: &LogRow) -> bool {
    match row.kind {
        EntryKind::Tombstone => true,
        EntryKind::Acl => verify_as::<AclRecord>(row.record.clone())
            .is_ok_and(|record| record.body().contents.iter().any(|c| matches!(c, AclContent::DeleteSpace))),
        EntryKind::Root | EntryKind::Change => false,
    }
}

/// Entries as items of a push, each root with the change after it.
pub(super) fn items_of(rows: Vec<LogRow>) -> Vec<v1::PushItem> {
    let mut root = None;
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        match row.kind {
            EntryKind::Root => root = Some(row.record.into()),
            EntryKind::Acl | EntryKind::Change | EntryKind::Tombstone => {
                let (tag, record) = (row.position.seq.0, Some(row.record.into()));
                items.push(v1::PushItem { tag, root: root.take(), record });
            }
        }
    }
    items
}

/// The end of the log before an item: a change that begins a tree comes with its root.
fn before_item(item: &v1::PushItem) -> Seq {
    Seq(item.tag.saturating_sub(1 + u64::from(item.root.is_some())))
}

/// One Repush stream: a message out, its answer back.
struct Repush {
    requests: mpsc::Sender<v1::RepushRequest>,
    answers: Streaming<v1::RepushResponse>,
}

impl Repush {
    async fn open(conn: &Conn) -> Result<Self, CallError> {
        let (requests, outgoing) = mpsc::channel(1);
        let mut rpc = conn.rpc();
        let opening = tokio::time::timeout(limits::UNARY_TIMEOUT, rpc.repush(ReceiverStream::new(outgoing)));
        let answers = opening.await.map_err(|_| CallError::TimedOut)?.map_err(|s| failure(&s))?.into_inner();
        Ok(Self { requests, answers })
    }

    /// If the node has ended the stream, what it says next tells why.
    async fn ask(&mut self, message: Ask) -> Result<(), CallError> {
        let request = v1::RepushRequest { message: Some(message) };
        match self.requests.send(request).await {
            Ok(()) => Ok(()),
            Err(_) => self.answer().await.and(Err(CallError::Broken("the stream ended".to_owned()))),
        }
    }

    async fn answer(&mut self) -> Result<Answer, CallError> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.map_err(|_| CallError::TimedOut)?;
        let answer = answer.map_err(|s| CallError::from(failure(&s)))?;
        answer.and_then(|answer| answer.message).ok_or_else(|| CallError::Broken("the stream ended".to_owned()))
    }
}

/// What the node may take for one message: it verifies it and flushes its disk.
const PATIENCE: Duration = limits::UNARY_TIMEOUT;

fn unexpected() -> CallError {
    CallError::BadAnswer("a re-push went another way than both sides agreed on".to_owned())
}
